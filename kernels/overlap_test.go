package kernels

import (
	"path"
	"strings"
	"testing"
)

func TestOverlap(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"", "", true}, {"a", "", false}, {"*", "", true}, {"a", "a", true}, {"a", "b", false}, {"a*", "*b", true}, {"a*c", "ab", false},
		{"a*c", "a?", true}, {"6.8.0-31-generic", "[0-9]*.[0-9]*.0-[0-9]*-generic", true}, {"6.8.1-31-generic", "[0-9]*.[0-9]*.0-[0-9]*-generic", false},
		{"6.8.*", "[0-9]*-generic", true}, {"*-amd64", "[0-9]*-generic", false}, {"*", "[0-9]*-generic", true}, {"[a-c]x", "[^b]x", true},
		{"[b]x", "[^b]x", false}, {"*a*b*", "*b*a*", true}, {"[", "a", false}, {`a\*`, "a*", true}, {`a\*`, "ab", false}, {"[]-]", "]", false}, {`[\]\-]`, "]", true},
	} {
		if Overlap(c.a, c.b) != c.want || Overlap(c.b, c.a) != c.want {
			t.Errorf("Overlap(%q, %q) = %t, and %t the other way; want %t", c.a, c.b, Overlap(c.a, c.b), Overlap(c.b, c.a), c.want)
		}
	}
}

// FuzzOverlap holds it against path.Match: what a pattern matches overlaps with it, and a plain text with nothing else.
func FuzzOverlap(f *testing.F) {
	f.Add("6.8.0-31-generic", "6.*-[g]eneri?")
	f.Add("a-b", "[^a]-b")
	f.Fuzz(func(t *testing.T, text, pattern string) {
		if strings.ContainsAny(text, `*?[\/`) || strings.Contains(pattern, "/") {
			return
		}
		for i := range len(text + pattern) { // path.Match reads characters, Overlap bytes
			if (text + pattern)[i] >= 0x80 {
				return
			}
		}
		want, err := path.Match(pattern, text)
		if err != nil {
			Overlap(text, pattern)
			return
		}
		if got := Overlap(text, pattern); got != want {
			t.Errorf("Overlap(%q, %q) = %t; path.Match says %t", text, pattern, got, want)
		}
	})
}
