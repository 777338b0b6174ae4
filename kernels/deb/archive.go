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
	suites   []suite   // newest first
	tools    []string  // what a module's build needs beside essential packages and the compiler
	prefer   []string  // packages that are chosen first of all where they exist, as an answer to alternatives
	moot     []string  // patterns (path.Match) of names that a package file's dependency is passed over for
}

// An archive is a tree with dists/ and pool/ on a mirror.
type archive struct {
	name string // "debian-security"; also the last part of its path on an ordinary mirror
	url  string // where it is when nothing else is said
}

// A suite is known by its codename. Its pockets are indexes that are used together; the first one must exist.
type suite struct {
	name    string
	pockets []pocket
}

type pocket struct {
	name      string // the folder below dists/, and the index's Codename
	archive   string
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
