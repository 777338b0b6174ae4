package deb

import (
	"path"
	"slices"
)

// A distro describes the archives of one distribution that are kept in the form of APT repositories.
type distro struct {
	name     string
	keyring  string    // armored OpenPGP public keys that may sign its indexes
	archives []archive // the first one is the main archive
	archs    []string  // that the archives have; nil: all
	ports    *distro   // the same distribution where it has archives of their own for all other architectures, or nil
	suites   []suite   // newest first
	aliases  []string  // other names that a source of apt may have for suites
	// isOurs tells the archives from third parties' among the sources of apt that name our suites and main; nil: there is no telling.
	isOurs func(aptSource) bool
	// components are the parts of its archives that are read, the first of them always, the others for what that hasn't got.
	components []string
	forms      []string // patterns of the releases of its kernels
	// headers tells whether a package is the headers of one kernel, of which flavour, and whether that is one of the kernels that are
	// meant where no flavour is named, backports and hardware enablement aside.
	headers func(*candidate) (flavour string, isDefault, ok bool)
	tools   []string // what a module's build needs beside essential packages and the compiler
	prefer  []string // packages that are chosen first of all where they exist, as an answer to alternatives
	moot    []string // patterns (path.Match) of names that a package file's dependency is passed over for
}

// An archive is a tree with dists/ and pool/ on a mirror.
type archive struct {
	name string // "debian-security"; also the last part of its path on an ordinary mirror
	url  string // where it is when nothing else is said
}

// A suite is known by its codename. Its pockets are indexes that are used together; the first one must exist.
type suite struct {
	name    string
	number  int  // its version, as its kernels' releases have it behind "deb"; 0: they don't
	ended   bool // ordinary mirrors have it no more; only who names it is told of it
	pockets []pocket
}

type pocket struct {
	name      string // the folder below dists/, and what the index says that it is: its Codename, or its Suite where that is codename
	archive   string
	codename  string // empty: name
	backports bool
}

func (d *distro) suite(name string) (suite, bool) {
	for _, s := range d.suites {
		if s.name == name {
			return s, true
		}
	}
	return suite{}, false
}

func (d *distro) suiteNames() []string {
	out := make([]string, len(d.suites))
	for i, s := range d.suites {
		out[i] = s.name
	}
	return out
}

// isMoot tells whether one of a dependency's alternatives is not for the tool to install, which settles the dependency.
func (d *distro) isMoot(g group) bool {
	return slices.ContainsFunc(g, func(r relation) bool {
		return slices.ContainsFunc(d.moot, func(pattern string) bool {
			ok, err := path.Match(pattern, r.name)
			return err == nil && ok
		})
	})
}
