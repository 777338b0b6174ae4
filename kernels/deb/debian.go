package deb

import (
	_ "embed"
	"strings"
)

// The automatic, security and stable release keys of Debian 11 to 13, from the package debian-archive-keyring. They sign testing and
// unstable too. Only the keys and what binds their user IDs and subkeys is kept of them.
//
//go:embed keys/debian.asc
var debianKeys string

// debian describes Debian. Without an option only the component main is read: kernels, their headers and their compilers are never anywhere else,
// and main depends on nothing outside it (Debian Policy, section 2.2.1).
func debian() *distro {
	d := &distro{
		name:    "debian",
		aliases: []string{"unstable", "testing", "stable", "oldstable", "oldoldstable"},
		keyring: debianKeys,
		archives: []archive{
			{"debian", "http://ftp.debian.org/debian"},
			{"debian-security", "http://security.debian.org/debian-security"},
		},
		// What kbuild runs for a module and a kernel configuration can ask for (make, bc, binutils), what dkms runs (patch, kmod), and
		// xz for sources and modules that are packed with it. The shell, awk, sed, find and perl-base come with the essential packages.
		// No C library headers, C++ or full perl: kernel code includes nothing of them.
		tools: []string{"make", "patch", "kmod", "bc", "xz-utils", "binutils"},
		// Roots are made with a merged /usr. Without this marker init-system-helpers asks for the converter, which brings perl.
		prefer: []string{"usr-is-merged"},
		// What a -dkms package depends on and a root has or has no use for: dkms and the headers, which this program stands in for; the
		// kernel; the compiler, which is to be the kernel's own and no other; what asks or serves a running system.
		moot: []string{"dkms", "dh-dkms", "linux-headers-*", "linux-image-*", "gcc", "gcc-[0-9]*", "c-compiler", "debconf", "debconf-2.0",
			"udev", "systemd"},
	}
	d.components, d.headers, d.forms = []string{"main"}, debianHeaders, debianForms
	d.suites = append(d.suites, suite{name: "sid", number: 14, pockets: []pocket{{name: "sid", archive: "debian"}}})
	for i, name := range []string{"forky", "trixie", "bookworm", "bullseye"} {
		d.suites = append(d.suites, suite{name: name, number: 14 - i, pockets: []pocket{
			{name: name, archive: "debian"},
			{name: name + "-security", archive: "debian-security"},
			{name: name + "-updates", archive: "debian"},
			{name: name + "-backports", archive: "debian", backports: true},
		}})
	}
	return d
}

// debianForms are what releases of Debian's kernels look like: "6.1.0-56-amd64", "6.12.117+deb12-cloud-amd64", "6.1.0-0.deb11.21-rt-arm64".
var debianForms = func() []string {
	var out []string
	for _, flavour := range []string{"686", "686-pae", "amd64", "arm64", "arm64-16k", "armmp", "armmp-lpae", "4kc-malta", "5kc-malta", "loong64",
		"loongson-3", "mips32r2el", "mips64r2el", "mips64r6el", "octeon", "marvell", "powerpc", "powerpc64", "powerpc64le", "powerpc64le-64k",
		"riscv64", "rpi", "s390x"} {
		out = append(out, "[0-9]*.[0-9]*-"+flavour) // cloud-amd64 and rt-amd64 too
	}
	return out
}()

// debianHeaders is distro.headers. Headers of a kernel depend on those that all flavours share; metapackages don't. The plain flavour
// is named like the architecture.
func debianHeaders(k *candidate) (flavour string, isDefault, ok bool) {
	release, named := strings.CutPrefix(k.name, headersPrefix)
	if !named || k.all {
		return "", false, false
	}
	groups, err := parseDepends(k.depends)
	if err != nil {
		return "", false, false
	}
	for _, g := range groups {
		if base, ok := commonOf(g[0].name); ok {
			if flavour, ok := strings.CutPrefix(release, base+"-"); ok {
				return flavour, flavour == k.arch && !k.backports, true
			}
		}
	}
	return "", false, false
}

// commonOf gives the release, without a flavour, of the headers that flavours share: linux-headers-RELEASE-common or, for rt,
// linux-headers-RELEASE-common-rt.
func commonOf(name string) (release string, ok bool) {
	name, isHeaders := strings.CutPrefix(name, headersPrefix)
	release, tail, isCommon := strings.Cut(name, "-common")
	return release, isHeaders && isCommon && release != "" && (tail == "" || tail[0] == '-')
}
