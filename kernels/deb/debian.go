package deb

import _ "embed"

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
	d.suites = append(d.suites, suite{"sid", []pocket{{"sid", "debian", false}}})
	for _, name := range []string{"forky", "trixie", "bookworm", "bullseye"} {
		d.suites = append(d.suites, suite{name, []pocket{
			{name, "debian", false},
			{name + "-security", "debian-security", false},
			{name + "-updates", "debian", false},
			{name + "-backports", "debian", true},
		}})
	}
	return d
}
