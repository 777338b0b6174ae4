package kernels

import "runtime"

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

// SuiteOf gives the distribution and the suite that the fields of os-release(5) name: ID, and of VERSION_CODENAME and VERSION_ID what the
// distribution goes by. Derivatives that use another's kernels have that one's (UBUNTU_CODENAME). Either is empty where it isn't said.
func SuiteOf(osRelease map[string]string) (distro, suite string) {
	return osRelease["ID"], osRelease["VERSION_CODENAME"]
}
