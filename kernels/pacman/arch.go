package pacman

import (
	_ "embed"
	"regexp"
	"slices"
	"strings"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// The 73 keys of Arch's packagers that pacman trusts, as of 2026-04-20: scripts/archkeys made them from Debian's package archlinux-keyring
// 0~20260420-1~deb13u1, by what three of the five master keys there have certified. Only the keys, and what binds one user ID and the
// signing subkeys, is kept of them. A package whose packager came later needs Options.Keyring. The master keys are
//
//	2AC0A42EFB0B5CBC7A0402ED4DC95B6D7BE9892E  David Runge
//	3572FA2A1B067F22C58AF155F8B821B42A6FDCD7  Leonidas Spyropoulos
//	69E6471E3AE065297529832E6BA0F5A2037F4F41  Johannes Löthberg
//	99B6618472A3B3B814185BAED7D3D823B88BDB9B  Christian Heusel
//	D8AFDDA07A5B6EDFA7D8CCDAD6D055F927843F1C  Levente Polyak
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
