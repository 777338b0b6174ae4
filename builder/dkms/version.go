package dkms

import (
	"bytes"
	"strconv"
	"strings"
)

// compareBound compares a release with a bound from a dkms.conf: the numbers before the first other sign first, where an
// absent one counts as 0; then, if the bound goes on ("5.14.0-427"), what follows, number by number. So 6.2.0-b is within a
// maximum of 6.2, which dkms itself gets wrong, and 6.2.1 is not.
func compareBound(release, bound string) int {
	rn, rr := versionNumbers(release)
	bn, br := versionNumbers(bound)
	for i := range max(len(rn), len(bn)) {
		var a, b int
		if i < len(rn) {
			a = rn[i]
		}
		if i < len(bn) {
			b = bn[i]
		}
		if a != b {
			return a - b
		}
	}
	if br == "" {
		return 0
	}
	return strings.Compare(padNumbers(rr), padNumbers(br))
}

func versionNumbers(v string) (numbers []int, rest string) {
	rest = v
	for {
		end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
		if end < 0 {
			end = len(rest)
		}
		n, err := strconv.Atoi(rest[:end])
		if err != nil {
			return numbers, rest
		}
		numbers, rest = append(numbers, n), rest[end:]
		if len(rest) < 2 || rest[0] != '.' || rest[1] < '0' || rest[1] > '9' {
			return numbers, rest
		}
		rest = rest[1:]
	}
}

// padNumbers makes numbers comparable as text.
func padNumbers(s string) string {
	var b bytes.Buffer
	for i := 0; i < len(s); {
		j := i
		for j < len(s) && s[j] >= '0' && s[j] <= '9' {
			j++
		}
		if j > i {
			b.WriteString(strings.Repeat("0", max(0, 12-(j-i))))
			b.WriteString(s[i:j])
			i = j
			continue
		}
		b.WriteByte(s[i])
		i++
	}
	return b.String()
}
