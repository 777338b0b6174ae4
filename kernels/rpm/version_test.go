package rpm

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
)

// versions are those that rpm's own documentation and bug reports are about, and what differs from one of them by little.
func versions(rnd *rand.Rand, n int) []string {
	out := []string{"0", "1", "1.0", "1.00", "1.01", "1.a", "1a", "1.0~rc1", "1.0^git1", "1.0^git1~pre", "1.0~rc1^git1", "1:1.0", "0:1.0", "1-1", "1.0-1.fc40",
		"5.14.0-427.13.1.el9_4", "5.14.0-427.el9", "6.4.0-150600.21.1", "6.1.90-99.173.amzn2023", "1.0.", ".1.0", "1..0", "1_0", "a", "A", "aa", "a1", "1a1",
		"2.50.1.a-2.52.b", "~", "^", "~~", "^^", "~^", "1~", "1^", "1+", "00", "10", "010", "18446744073709551616", "1:0", ":1", "a:1", "-1", "1-2-3"}
	for len(out) < n {
		b := []byte(out[rnd.IntN(len(out))])
		for range 1 + rnd.IntN(3) {
			i, c := rnd.IntN(len(b)+1), "0123456789aAzZ.~^-+_:"[rnd.IntN(21)]
			if rnd.IntN(3) == 0 && i < len(b) {
				b[i] = c
			} else {
				b = append(b[:i:i], append([]byte{c}, b[i:]...)...)
			}
		}
		if v := splitEVR(string(b)); v.version != "" && b[len(b)-1] != '-' && len(b) < 60 { // an empty release is not none to rpm
			out = append(out, string(b))
		}
	}
	return out
}

// The order is that of rpm itself.
func TestCompareVersionsAsRPM(t *testing.T) {
	need.Program(t, "rpm")
	rnd := rand.New(rand.NewPCG(1, 2))
	all := versions(rnd, 600)
	var pairs [][2]string
	for range 6000 {
		pairs = append(pairs, [2]string{all[rnd.IntN(len(all))], all[rnd.IntN(len(all))]})
	}
	var list strings.Builder
	for _, p := range pairs {
		fmt.Fprintln(&list, p[0], p[1])
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "pairs"), []byte(list.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("rpm", "--eval", `%{lua: for l in io.lines("pairs") do local a, b = l:match("(%S+) (%S+)")
		local ok, c = pcall(rpm.vercmp, a, b); print((ok and c or "none") .. "\n") end}`)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	n, refused := 0, 0
	for line := bufio.NewScanner(strings.NewReader(string(out))); line.Scan(); {
		if line.Text() == "" {
			continue
		}
		p, got := pairs[n], ""
		if n++; line.Text() == "none" {
			refused++
			continue
		}
		if got = fmt.Sprint(compareVersions(p[0], p[1])); got != line.Text() {
			t.Errorf("compareVersions(%q, %q) = %s; rpm says %s", p[0], p[1], got, line.Text())
		}
	}
	if n != len(pairs) || refused > n/10 {
		t.Errorf("rpm compared %d of %d pairs, and refused %d", n, len(pairs), refused)
	}
}

func FuzzVersion(f *testing.F) {
	for _, v := range versions(rand.New(rand.NewPCG(1, 2)), 100) {
		f.Add(v, "1.0~rc1-1", "2")
	}
	f.Fuzz(func(t *testing.T, a, b, c string) {
		ab, ba, bc, ac := compareSegments(a, b), compareSegments(b, a), compareSegments(b, c), compareSegments(a, c)
		// That a run of letters is older than a number on either side makes rpm's order one, but for what ends in nothing but separators.
		if ab != -ba {
			t.Errorf("%q against %q: %d and %d", a, b, ab, ba)
		}
		if ab < 0 && bc < 0 && ac >= 0 {
			t.Errorf("%q < %q < %q: %d", a, b, c, ac)
		}
		if compareVersions(a, a) != 0 {
			t.Errorf("%q isn't itself", a)
		}
		v := splitEVR(a)
		if strings.ContainsRune(v.version, ':') || v.version == "" || v.release == "" || v.epoch == "0" {
			return
		}
		if w := splitEVR(v.String()); w.compare(v) != 0 {
			t.Errorf("%q became %q", a, w)
		}
	})
}

func TestOverlap(t *testing.T) {
	for _, c := range []struct {
		provided, wanted string
		want             bool
	}{
		{"a = 1-2", "a", true},
		{"a", "a >= 5", true}, // what has no version fits any
		{"a = 1-2", "a = 1", true},
		{"a = 1-2", "a = 1-2", true},
		{"a = 1-2", "a = 1-3", false},
		{"a = 1-2", "a > 1", false},
		{"a = 1-2", "a >= 1", true},
		{"a = 1-2", "a < 1", false},
		{"a = 1", "a > 1-1", true},
		{"a = 1", "a >= 1-1", true},
		{"a = 1:1-1", "a >= 2", true},
		{"a = 1:1-1", "a = 1-1", false},
		{"a = 0:1-1", "a = 1-1", true},
		{"a >= 2", "a < 2", false},
		{"a >= 2", "a <= 2", true},
		{"a > 2", "a < 3", true},
		{"a < 2", "a < 1", true},
		{"a = 1.0~rc1-1", "a >= 1.0", false},
		{"a = 1.0^git-1", "a >= 1.0", true},
	} {
		p, err1 := parseDepend(c.provided)
		w, err2 := parseDepend(c.wanted)
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		if got := overlap(p.evr, p.is, w.evr, w.is); got != c.want {
			t.Errorf("overlap(%s, %s) = %v; want %v", p, w, got, c.want)
		}
	}
}
