package host

import (
	"cmp"
	"strings"
)

// CompareVersions compares versions of modules, those of folders as those in a module itself: negative where a is older than b, zero
// where they are the same, positive where a is newer. The rules are those of Debian's upstream versions, and of sort -V: numbers go by
// their value, other text by its characters, letters before the rest, and ~ before even the end, so that 1.0~rc1 < 1.0 < 1.0a < 1.0-1 <
// 1.0.1 < 1.10. Two spellings of the same numbers are the same version, as 1.0 and 1.00. So are v1.0 and 1.0.
func CompareVersions(a, b string) int {
	a, b = withoutV(a), withoutV(b)
	for a != "" || b != "" {
		var x, y string
		x, a = split(a, false)
		y, b = split(b, false)
		for i := range max(len(x), len(y)) {
			if c := cmp.Compare(weight(x, i), weight(y, i)); c != 0 {
				return c
			}
		}
		x, a = split(a, true)
		y, b = split(b, true)
		x, y = strings.TrimLeft(x, "0"), strings.TrimLeft(y, "0")
		if c := cmp.Or(cmp.Compare(len(x), len(y)), strings.Compare(x, y)); c != 0 {
			return c
		}
	}
	return 0
}

// withoutV cuts the v off that some write before a number.
func withoutV(version string) string {
	if rest, ok := strings.CutPrefix(version, "v"); ok && rest != "" && isDigit(rest[0]) {
		return rest
	}
	return version
}

// split cuts off what s begins with that is digits, or is none.
func split(s string, digits bool) (head, rest string) {
	i := 0
	for i < len(s) && isDigit(s[i]) == digits {
		i++
	}
	return s[:i], s[i:]
}

// weight says where the character at i sorts; at its end a text has 0.
func weight(text string, i int) int {
	if i >= len(text) {
		return 0
	}
	switch c := text[i]; {
	case c == '~':
		return -1
	case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z':
		return int(c)
	default:
		return int(c) + 256
	}
}

func isDigit(c byte) bool { return '0' <= c && c <= '9' }
