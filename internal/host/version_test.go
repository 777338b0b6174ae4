package host

import (
	"cmp"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
)

func TestCompareVersions(t *testing.T) {
	order := []string{"", "1.0~~", "1.0~rc1", "1.0", "1.0a", "1.0+b", "1.0-1", "1.0-10", "1.0.1", "1.2", "v1.10", "1.10.1", "2", "20240101", "1208925819614629174706176"}
	for i, a := range order {
		for j, b := range order {
			if got, want := CompareVersions(a, b), cmp.Compare(i, j); got != want {
				t.Errorf("CompareVersions(%q, %q) = %d; want %d", a, b, got, want)
			}
		}
	}
	for _, same := range [][2]string{{"1.0", "1.00"}, {"v1.2", "1.2"}, {"1.02-k", "1.2-k"}, {"v", "v"}} {
		if got := CompareVersions(same[0], same[1]); got != 0 {
			t.Errorf("CompareVersions(%q, %q) = %d; want 0", same[0], same[1], got)
		}
	}
}

// Versions sort as sort -V has them, and each pair compares as dpkg says. Left out is what those read more into than a module's
// version has: file names' extensions (".ko"), a revision behind the last "-", an epoch.
func TestCompareVersionsAsOthers(t *testing.T) {
	for _, program := range []string{"sort", "dpkg"} {
		if _, err := exec.LookPath(program); err != nil {
			need.Skip(t, "%v", err)
		}
	}
	const seed = 6
	rnd := rand.New(rand.NewPCG(seed, seed))
	pick := func(from []string) string { return from[rnd.IntN(len(from))] }
	numbers := []string{"0", "1", "2", "9", "10", "09", "100", "20240131", "18446744073709551616"}
	joins := []string{".", ".", ".", "-", "+", "~", "a", "rc", "-k", "~rc", "B", "_", "+git"}
	var versions []string
	for range 3000 {
		v := pick(numbers)
		for range rnd.IntN(4) {
			v += pick(joins) + pick(numbers)
		}
		versions = append(versions, v)
	}
	sort := exec.Command("sort", "-V")
	sort.Env = []string{"LC_ALL=C"}
	sort.Stdin = strings.NewReader(strings.Join(versions, "\n") + "\n")
	out, err := sort.Output()
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(versions, func(a, b string) int { return cmp.Or(CompareVersions(a, b), strings.Compare(a, b)) })
	for i, want := range strings.Fields(string(out)) {
		if versions[i] != want {
			t.Fatalf("version %d in order is %q; sort -V has %q there, after %q", i, versions[i], want, versions[max(i-1, 0)])
		}
	}
	for range 40 {
		a, b := strings.NewReplacer("-", "", "_", "").Replace(pick(versions)), strings.NewReplacer("-", "", "_", "").Replace(pick(versions))
		relation := map[int]string{-1: "lt", 0: "eq", 1: "gt"}[CompareVersions(a, b)]
		if out, err := exec.Command("dpkg", "--compare-versions", a, relation, b).CombinedOutput(); err != nil {
			t.Errorf("%q %s %q: dpkg says no: %v %s", a, relation, b, err, out)
		}
	}
}
