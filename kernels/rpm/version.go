package rpm

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
)

// An evr is a version as rpm has it, [EPOCH:]VERSION[-RELEASE]. An epoch that isn't said is 0; a release that isn't said is any.
type evr struct{ epoch, version, release string }

// splitEVR takes a version apart as rpm does: digits before the first colon are an epoch, the last hyphen begins the release.
func splitEVR(s string) evr {
	var v evr
	n := 0
	for n < len(s) && isDigit(s[n]) {
		n++
	}
	if n < len(s) && s[n] == ':' {
		v.epoch, s = s[:n], s[n+1:]
	}
	v.version = s
	if i := strings.LastIndexByte(s, '-'); i >= 0 {
		v.version, v.release = s[:i], s[i+1:]
	}
	return v
}

func (v evr) String() string {
	s := v.version
	if v.epoch != "" && v.epoch != "0" {
		s = v.epoch + ":" + s
	}
	if v.release != "" {
		s += "-" + v.release
	}
	return s
}

// compareVersions orders two versions, [EPOCH:]VERSION[-RELEASE], as rpm does: negative when a is older. What has no release is older
// than what has one.
func compareVersions(a, b string) int { return splitEVR(a).compare(splitEVR(b)) }

func (v evr) compare(w evr) int {
	return cmp.Or(v.compareVersion(w), compareBool(v.release != "", w.release != ""), compareSegments(v.release, w.release))
}

// compareVersion leaves the releases aside.
func (v evr) compareVersion(w evr) int {
	return cmp.Or(compareSegments(cmp.Or(v.epoch, "0"), cmp.Or(w.epoch, "0")), compareSegments(v.version, w.version))
}

// compareSegments is rpmvercmp: runs of digits and runs of letters are compared one after another, whatever stands between only
// separates. A number is newer than letters, ~ is older than the end, ^ is newer than the end and older than all else. It gives -1, 0 or 1.
func compareSegments(a, b string) int {
	if a == b {
		return 0
	}
	for a != "" || b != "" {
		a, b = skipSeparators(a), skipSeparators(b)
		if at, bt := strings.HasPrefix(a, "~"), strings.HasPrefix(b, "~"); at || bt {
			if !at {
				return 1
			}
			if !bt {
				return -1
			}
			a, b = a[1:], b[1:]
			continue
		}
		if ac, bc := strings.HasPrefix(a, "^"), strings.HasPrefix(b, "^"); ac || bc {
			switch {
			case a == "":
				return -1
			case b == "":
				return 1
			case !ac:
				return 1
			case !bc:
				return -1
			}
			a, b = a[1:], b[1:]
			continue
		}
		if a == "" || b == "" {
			break
		}
		class := isLetter
		if isDigit(a[0]) {
			class = isDigit
		}
		i, j := run(a, class), run(b, class)
		if j == 0 { // other kinds: the number is newer
			if isDigit(a[0]) {
				return 1
			}
			return -1
		}
		x, y := a[:i], b[:j]
		a, b = a[i:], b[j:]
		if isDigit(x[0]) {
			x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
			if c := cmp.Compare(len(x), len(y)); c != 0 {
				return c
			}
		}
		if c := strings.Compare(x, y); c != 0 {
			return c
		}
	}
	return cmp.Compare(min(len(a), 1), min(len(b), 1))
}

func skipSeparators(s string) string {
	i := 0
	for i < len(s) && !isDigit(s[i]) && !isLetter(s[i]) && s[i] != '~' && s[i] != '^' {
		i++
	}
	return s[i:]
}

func run(s string, class func(byte) bool) int {
	n := 0
	for n < len(s) && class(s[n]) {
		n++
	}
	return n
}

func isDigit(c byte) bool  { return c >= '0' && c <= '9' }
func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }

// sense says which versions a dependency means, relative to its own.
type sense byte

// As bits they are rpm's RPMSENSE_LESS, _GREATER and _EQUAL. None of them: any version.
const (
	less    sense = 1 << iota
	greater       // newer
	equal
)

var senses = map[string]sense{"": 0, "<": less, "<=": less | equal, "=": equal, "==": equal, ">=": greater | equal, ">": greater}

func (s sense) String() string {
	return [8]string{"", "<", ">", "<>", "=", "<=", ">=", ""}[s&7]
}

// overlap tells whether some version is meant by both of two dependencies on one name, as rpm decides it: what has no version fits any,
// and a release that only one of them says doesn't count, if the other means equal versions.
func overlap(v evr, f sense, w evr, g sense) bool {
	if f == 0 || g == 0 {
		return true
	}
	c := v.compareVersion(w)
	if c == 0 {
		if v.release != "" && w.release != "" {
			c = compareSegments(v.release, w.release)
		} else if v.release != "" && g&equal != 0 || w.release != "" && f&equal != 0 {
			return true
		}
	}
	switch {
	case c < 0:
		return f&greater != 0 || g&less != 0
	case c > 0:
		return f&less != 0 || g&greater != 0
	}
	return f&g != 0
}

// checkWord refuses what can't be a name or a version in a dependency. rpm itself hardly restricts them.
func checkWord(s string) error {
	if s == "" {
		return errors.New("empty name")
	}
	if len(s) > maxWord {
		return fmt.Errorf("%.40q… is longer than %d bytes", s, maxWord)
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] == 0x7f {
			return fmt.Errorf("%.80q has white space or control characters", s)
		}
	}
	return nil
}

const maxWord = 4096 // bytes of a name, a version or a file's path
