package cli

import (
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/registrytest"
)

// Two runners of a CI matrix build for a kernel each and push to one repository at once, sharing a cache. A third one, with nothing of
// its own but indexes, builds for both and has all from them.
func TestRunners(t *testing.T) {
	reg := registrytest.Start(t, registrytest.Options{})
	shared := sharedCache(t)
	var want []string
	var runners []*exec.Cmd
	args := func(kernels string) []string {
		return []string{"build", "../../testdata/hello", "--kernels", kernels, "--cache-from", reg.Host + "/ci/cache", "--cache-to", reg.Host + "/ci/cache",
			"--push", reg.Host + "/ci/{module}", "--out", filepath.Join(t.TempDir(), "out"), "--format", "json", "-q"}
	}
	for _, line := range []string{"6.1.", "6.12."} {
		k := newest(t, shared, line).String()
		want = append(want, k)
		runners = append(runners, process(t, newCache(t), args(k)...))
	}
	for _, p := range runners {
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
	}
	for _, p := range runners {
		if err := p.Wait(); err != nil {
			t.Fatalf("%v: %s", err, p.Stderr)
		}
	}
	slices.Sort(want)
	got := indexed(t, reg.Host+"/ci/hello:1.0")
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the index has %q; want %q", got, want)
	}
	third := run(t, newCache(t), args(want[0]+","+want[1])...).wants(t, 0)
	for _, r := range parse[results](t, []byte(third.out)).Results {
		if r.Status != "cached" || r.Reference == "" || r.Digest == "" {
			t.Errorf("the third runner has %+v", r)
		}
	}
	if got := indexed(t, reg.Host+"/ci/hello"); len(got) != 2 {
		t.Errorf("%q are listed", got)
	}
	if third.errs != "" {
		t.Errorf("the third runner says %s", third.errs)
	}
}
