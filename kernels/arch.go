package kernels

import (
	"cmp"
	"runtime"
	"strings"
)

// machines are the names that uname -m prints for the architectures as Debian names them.
var machines = map[string]string{
	"amd64": "x86_64", "arm64": "aarch64", "armhf": "armv7l", "i386": "i686", "loong64": "loongarch64", "mips64el": "mips64",
	"ppc64el": "ppc64le", "riscv64": "riscv64", "s390x": "s390x",
}

// Machine is what uname -m prints on this kernel: "x86_64".
func (k Kernel) Machine() string {
	if m, ok := machines[k.Arch]; ok {
		return m
	}
	return k.Arch
}

// ArchOf is Debian's name of an architecture that uname -m or RPM call by another, "amd64" for x86_64. Other names stay as they are.
func ArchOf(name string) string {
	if name == "armv7hl" {
		return "armhf"
	}
	for arch, machine := range machines {
		if machine == name {
			return arch
		}
	}
	return name
}

// HostArch is the architecture of this machine, in Debian's words.
func HostArch() string {
	switch runtime.GOARCH {
	case "386":
		return "i386"
	case "arm":
		return "armhf"
	case "ppc64le":
		return "ppc64el"
	case "mips64le":
		return "mips64el"
	}
	return runtime.GOARCH
}

// SuiteOf gives the distribution and the suite that the fields of os-release(5) name, as Kernel has them. What installs another
// distribution's kernels is that one: Ubuntu's derivatives have UBUNTU_CODENAME, Linux Mint's Debian edition has DEBIAN_CODENAME. Either
// is empty where it isn't said. Testing and unstable of Debian say the same of themselves: testing's codename.
func SuiteOf(osRelease map[string]string) (distro, suite string) {
	distro = osRelease["ID"]
	version := osRelease["VERSION_ID"]
	if name := osRelease["UBUNTU_CODENAME"]; name != "" {
		return "ubuntu", name
	}
	if name := osRelease["DEBIAN_CODENAME"]; name != "" && distro == "linuxmint" {
		return "debian", name
	}
	switch distro {
	case "debian":
		name := osRelease["VERSION_CODENAME"]
		if pretty := osRelease["PRETTY_NAME"]; name == "" && strings.HasSuffix(pretty, "/sid") { // "Debian GNU/Linux bullseye/sid"
			name = pretty[strings.LastIndexByte(pretty, ' ')+1:]
		}
		suite, _, _ = strings.Cut(name, "/")
	case "rhel", "centos", "rocky", "almalinux", "ol":
		suite, _, _ = strings.Cut(version, ".")
	case "sles", "sled", "sles_sap": // one set of kernels
		return "sles", version
	case "fedora", "opensuse-leap", "amzn":
		suite = version
	case "opensuse-tumbleweed", "opensuse-microos":
		return "opensuse-tumbleweed", "rolling"
	case "arch", "endeavouros", "garuda": // not Manjaro, CachyOS or Artix, whose kernels are their own
		return "arch", "rolling"
	default:
		suite = cmp.Or(osRelease["VERSION_CODENAME"], version)
		if suite == "" && osRelease["BUILD_ID"] == "rolling" {
			suite = "rolling"
		}
	}
	return distro, suite
}
