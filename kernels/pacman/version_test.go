package pacman

import (
	"math/rand/v2"
	"os/exec"
	"strconv"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
)

// vercmp itself orders pairs that are made of what versions are made of.
func TestCompareVersions(t *testing.T) {
	program := need.Program(t, "vercmp")
	random := rand.New(rand.NewPCG(7, 11))
	pieces := []string{"0", "1", "2", "9", "10", "01", "007", "1999", "a", "b", "rc", "arch", "alpha", "Z", ".", ".", ".", "..", "_", "+", "r12", "-", "-1", "-2", ":", "1:", "~", "^"}
	version := func() string {
		var b strings.Builder
		for range 1 + random.IntN(6) {
			b.WriteString(pieces[random.IntN(len(pieces))])
		}
		return b.String()
	}
	pairs := [][2]string{{"6.8.arch1-1", "6.8.1.arch1-1"}, {"1.0rc1-1", "1.0-1"}, {"1.0.1-1", "1.0-2"}, {"1:1-1", "2-1"}, {"2.38-5", "2.38"}, {"1.0", "1.0."}, {"1.0", "1.0.a"}, {"1.0a", "1.0.1"}}
	for range 300 {
		a := version()
		b := a
		switch random.IntN(3) {
		case 0:
			b = version()
		case 1:
			b += pieces[random.IntN(len(pieces))]
		case 2:
			at := random.IntN(len(a) + 1)
			b = a[:at] + pieces[random.IntN(len(pieces))] + a[at:]
		}
		pairs = append(pairs, [2]string{a, b})
	}
	for _, p := range pairs {
		if p[0][0] == '-' || p[1][0] == '-' { // vercmp takes it for an option
			continue
		}
		out, err := exec.Command(program, p[0], p[1]).Output()
		if err != nil {
			t.Fatalf("vercmp %q %q: %v", p[0], p[1], err)
		}
		want, err := strconv.Atoi(strings.TrimSpace(string(out)))
		if err != nil {
			t.Fatal(err)
		}
		if got := compareVersions(p[0], p[1]); got != want {
			t.Errorf("compareVersions(%q, %q) = %d; vercmp says %d", p[0], p[1], got, want)
		}
		if got := compareVersions(p[1], p[0]); got != -want {
			t.Errorf("compareVersions(%q, %q) = %d; want %d", p[1], p[0], got, -want)
		}
	}
}

func FuzzCompareVersions(f *testing.F) {
	f.Add("6.8.arch1-1", "1:6.8.1.arch1-1", "6.8")
	f.Fuzz(func(t *testing.T, a, b, c string) {
		if x, y := compareVersions(a, b), compareVersions(b, a); x < -1 || x > 1 || (x == 0) != (y == 0) {
			t.Errorf("compareVersions(%q, %q) = %d, and %d the other way", a, b, x, y)
		}
		if r, ok := parseRelation(a); ok {
			if again, ok := parseRelation(r.String()); !ok || again != r {
				t.Errorf("%q is read as %+v, and that as %+v", a, r, again)
			}
			r.accepts(c)
		}
	})
}

func TestRelation(t *testing.T) {
	for _, c := range []struct {
		relation, version string
		want              bool
	}{
		{"glibc", "2.39-1", true}, {"glibc", "", true}, {"glibc>=2.38", "2.39-1", true}, {"glibc>=2.39", "2.39-1", true}, {"glibc>2.39", "2.39-1", false},
		{"glibc<2.39", "2.38-7", true}, {"gcc-libs=13.2.1-5", "13.2.1-6", false}, {"libgmp.so=10-64", "10-64", true}, {"libgmp.so=10-64", "10-32", false},
		{"libgmp.so=10-64", "", false}, {"linux-api-headers>=4.10", "1:4.9-1", true},
	} {
		r, ok := parseRelation(c.relation)
		if got := ok && r.accepts(c.version); got != c.want {
			t.Errorf("%q accepts %q: %v; want %v", c.relation, c.version, got, c.want)
		}
	}
	for _, bad := range []string{"", "=1", "a b", "-x", "a>=", "a=1 2", "../x\n"} {
		if r, ok := parseRelation(bad); ok {
			t.Errorf("%q is taken for %+v", bad, r)
		}
	}
}
