package pacman

import (
	"cmp"
	"strings"
)

// split takes a version, [EPOCH:]VERSION[-RELEASE], apart as pacman does: digits before a colon are an epoch, the last hyphen begins the
// release, which may be an empty one.
func split(v string) (epoch, version, release string, released bool) {
	n := 0
	for n < len(v) && isDigit(v[n]) {
		n++
	}
	if n < len(v) && v[n] == ':' {
		epoch, v = v[:n], v[n+1:]
	}
	if i := strings.LastIndexByte(v, '-'); i >= 0 {
		v, release, released = v[:i], v[i+1:], true
	}
	return cmp.Or(epoch, "0"), v, release, released
}

// compareVersions orders two versions as vercmp(8) does: negative when a is older. Where only one of them has a release it doesn't count.
func compareVersions(a, b string) int {
	ae, av, ar, both := split(a)
	be, bv, br, released := split(b)
	c := cmp.Or(compareParts(ae, be), compareParts(av, bv))
	if c != 0 || !both || !released {
		return c
	}
	return compareParts(ar, br)
}

// compareParts compares runs of digits and of letters, one after another. A number is newer than letters, and the run behind more
// separators newer than that behind fewer. Where one ends before the other, the longer is newer, unless it goes on with letters: 1.0rc is
// older than 1.0, and 1.0.1 isn't.
func compareParts(a, b string) int {
	if a == b {
		return 0
	}
	for a != "" && b != "" {
		i, j := separators(a), separators(b)
		if i == len(a) || j == len(b) {
			a, b = a[i:], b[j:]
			break
		}
		if i != j {
			return cmp.Compare(i, j)
		}
		a, b = a[i:], b[j:]
		isNumber := isDigit(a[0])
		class := isLetter
		if isNumber {
			class = isDigit
		}
		n, m := length(a, class), length(b, class)
		switch {
		case m == 0 && isNumber:
			return 1
		case m == 0:
			return -1
		}
		x, y := a[:n], b[:m]
		if isNumber {
			x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
			if c := cmp.Compare(len(x), len(y)); c != 0 {
				return c
			}
		}
		if c := strings.Compare(x, y); c != 0 {
			return c
		}
		a, b = a[n:], b[m:]
	}
	switch {
	case a == "" && b == "":
		return 0
	case a == "" && !isLetter(b[0]), a != "" && isLetter(a[0]):
		return -1
	}
	return 1
}

func isDigit(c byte) bool  { return c >= '0' && c <= '9' }
func isLetter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

func separators(s string) int {
	return length(s, func(c byte) bool { return !isDigit(c) && !isLetter(c) })
}

func length(s string, class func(byte) bool) int {
	n := 0
	for n < len(s) && class(s[n]) {
		n++
	}
	return n
}

// A relation is a dependency as Arch writes it: a name, perhaps with what its version must be.
type relation struct {
	name, op, version string // op: "", "<", "<=", "=", ">=" or ">"
}

// parseRelation reads "glibc>=2.38" or "libgmp.so=10-64". A description behind a colon, which optional dependencies have, is no part of it.
func parseRelation(s string) (relation, bool) {
	s = strings.TrimSpace(s)
	i := strings.IndexAny(s, "<>=")
	if i < 0 {
		return relation{name: s}, isName(s)
	}
	r := relation{name: s[:i], op: s[i : i+1]}
	rest := s[i+1:]
	if r.op != "=" && strings.HasPrefix(rest, "=") {
		r.op, rest = r.op+"=", rest[1:]
	}
	r.version = rest
	return r, isName(r.name) && isVersion(r.version)
}

func (r relation) String() string { return r.name + r.op + r.version }

// accepts tells whether a version will do. What is provided without one satisfies only what wants none.
func (r relation) accepts(version string) bool {
	if r.op == "" {
		return true
	}
	if version == "" {
		return false
	}
	c := compareVersions(version, r.version)
	switch r.op {
	case "<":
		return c < 0
	case "<=":
		return c <= 0
	case "=":
		return c == 0
	case ">=":
		return c >= 0
	}
	return c > 0
}

// isName tells names of packages and of what they provide, whose characters PKGBUILD(5) gives; those of what is provided have more, as in
// "java-runtime=21" or "perl-test2-suite".
func isName(s string) bool {
	return s != "" && len(s) <= 256 && s[0] != '-' && s[0] != '.' && onlyOf(s, "@._+-:/")
}

func isVersion(s string) bool { return s != "" && len(s) <= 256 && onlyOf(s, "._+-:~^%") }

func onlyOf(s, more string) bool {
	for i := range len(s) {
		if !isDigit(s[i]) && !isLetter(s[i]) && strings.IndexByte(more, s[i]) < 0 {
			return false
		}
	}
	return true
}
