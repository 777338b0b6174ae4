package distpkg

import (
	"fmt"
	"regexp"
	"strings"
)

// A Version is one of what is packaged, from which each format makes its own.
type Version struct {
	Base    string // "1.0", "v1.0-rc2"; empty: there was no version yet
	Commits int    // after that version; 0: it is that version
	Commit  string // the abbreviated name of the last, if Commits isn't 0
}

// described is what git-describe(1) prints with --long: tag, commits since, and the commit.
var described = regexp.MustCompile(`^(.+)-([0-9]{1,9})-g([0-9a-f]{4,64})$`)

// ParseDescribe reads what git describe --tags --long prints.
func ParseDescribe(text string) (Version, error) {
	m := described.FindStringSubmatch(text)
	var v Version
	if m == nil {
		return v, fmt.Errorf("git describe says %q: not a tag, a number of commits and a commit", text)
	}
	if _, err := fmt.Sscan(m[2], &v.Commits); err != nil {
		return v, fmt.Errorf("git describe says %q: %w", text, err)
	}
	v.Base, v.Commit = m[1], m[3]
	return v, nil
}

var (
	prerelease = regexp.MustCompile(`[-_.]?(alpha|beta|pre|rc)`)
	strange    = regexp.MustCompile(`[^A-Za-z0-9.+~]+`)
)

// In gives the version in a format's own characters and order: a pre-release comes before its release, and commits after a version
// come before the next one. Different versions can become the same one.
//
//	v1.0-rc2          deb 1.0~rc2         rpm 1.0~rc2
//	v1.0-3-gabcdef0   deb 1.0+3.gabcdef0  rpm 1.0^3.gabcdef0
func (v Version) In(f Format) string {
	base := v.Base
	if len(base) > 1 && (base[0] == 'v' || base[0] == 'V') && isDigit(base[1]) {
		base = base[1:]
	}
	base = prerelease.ReplaceAllString(strings.ToValidUTF8(base, "."), "~$1")
	base = strings.Trim(strange.ReplaceAllString(base, "."), ".")
	if base == "" || !isDigit(base[0]) {
		base = strings.TrimRight("0."+strings.TrimLeft(base, "~+"), ".")
	}
	if v.Commits == 0 {
		return base
	}
	after := "+"
	if f == RPM { // to which 1.0+3 comes after 1.0.1; "^" is made for this, from rpm 4.15 on
		after = "^"
	}
	return fmt.Sprintf("%s%s%d.g%s", base, after, v.Commits, v.Commit)
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
