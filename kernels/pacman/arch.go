package pacman

import (
	_ "embed"
	"regexp"
	"slices"
	"strings"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// The keys of Arch's packagers that pacman trusts, of the package archlinux-keyring 20260420-1: those that three of its five master keys have
// certified, made from it by scripts/archkeys. Only the keys and what binds one user ID and the signing subkeys is kept of them. What else
// is needed of a package whose packager came later is Options.Keyring.
//
//go:embed keys/arch.asc
var archKeys string

// A distro describes the repositories of one distribution that are kept in pacman's form.
type distro struct {
	name    string
	keyring string // armored OpenPGP public keys of those who sign its packages
	url     string // of a mirror
	suite   string
	machine string // the one architecture, in its own words
	// repositories are the databases that are read, of each mirror: REPOSITORY/os/MACHINE/REPOSITORY.db.
	repositories []string
	flavours     []flavour // the default one first
	tools        []string  // what a module's build needs beside the compiler
	moot         []string  // what a package file's dependency on is passed over
}

// A flavour is a kernel with a header package of its own.
type flavour struct {
	name    string
	headers string         // name of the package
	tag     *regexp.Regexp // of its version, behind the kernel's; nil: none
	suffix  string         // of its release
	form    string         // pattern of its releases, up to the package's own release
}

func arch() *distro {
	return &distro{
		name: "arch", keyring: archKeys, url: "https://geo.mirror.pkgbuild.com", suite: "rolling", machine: "x86_64",
		repositories: []string{"core", "extra"},
		flavours: []flavour{
			{"arch", "linux-headers", regexp.MustCompile(`^arch[0-9]+$`), "", "[0-9]*-arch[0-9]*"},
			{"lts", "linux-lts-headers", nil, "-lts", "[0-9]*"},
			{"zen", "linux-zen-headers", regexp.MustCompile(`^zen[0-9]+$`), "-zen", "[0-9]*-zen[0-9]*"},
			{"hardened", "linux-hardened-headers", regexp.MustCompile(`^hardened[0-9]+$`), "-hardened", "[0-9]*-hardened[0-9]*"},
		},
		// The folders' links come with filesystem. kbuild and dkms run the rest; a base installation has all but make and patch of it.
		tools: []string{"filesystem", "bash", "coreutils", "sed", "grep", "gawk", "findutils", "diffutils", "make", "patch", "binutils", "bc",
			"kmod", "tar", "gzip", "xz", "zstd", "libelf"},
		// dkms and headers, which this program stands in for; the kernels; the compiler, which is to be the kernel's own.
		moot: []string{"dkms", "linux", "linux-lts", "linux-zen", "linux-hardened", "linux-headers", "linux-lts-headers", "linux-zen-headers",
			"linux-hardened-headers", "gcc", "systemd"},
	}
}

// version is that of a kernel's package: the kernel's own, perhaps a tag behind a dot, and the package's release.
var version = regexp.MustCompile(`^([0-9]+\.[0-9]+)(\.[0-9]+)?(?:\.([a-z]+[0-9]+))?(-[0-9]+(?:\.[0-9]+)?)$`)

// release gives what uname -r prints on the kernel of a package of that version: the kernel's version has three numbers there, and the tag a
// hyphen before it. 6.8.arch1-1 is 6.8.0-arch1-1, 6.6.30-1 of linux-lts is 6.6.30-1-lts.
func (f flavour) release(v string) (string, bool) {
	m := version.FindStringSubmatch(v)
	if m == nil || (f.tag == nil) != (m[3] == "") || f.tag != nil && !f.tag.MatchString(m[3]) {
		return "", false
	}
	out := m[1] + m[2]
	if m[2] == "" {
		out += ".0"
	}
	if m[3] != "" {
		out += "-" + m[3]
	}
	return out + m[4] + f.suffix, true
}

// claims tells whether some flavour's kernels are named that way.
func (d *distro) claims(release string) bool {
	return slices.ContainsFunc(d.flavours, func(f flavour) bool {
		return slices.ContainsFunc([]string{"-[0-9]", "-[0-9][0-9]", "-[0-9].[0-9]"}, func(own string) bool {
			return kernels.Overlap(f.form+own+f.suffix, release)
		})
	})
}

// compilerPackages are the packages of a compiler, the one that gives it its version first. A kernel that clang built is linked by lld, or
// takes LLVM's tools at least.
func compilerPackages(compiler string) (names []string, major string, ok bool) {
	family, major, ok := strings.Cut(compiler, "-")
	switch family {
	case "gcc":
		names = []string{"gcc"}
	case "clang":
		names = []string{"clang", "lld", "llvm"}
	}
	return names, major, ok && names != nil && major != ""
}
