package cli

import (
	"net/http"
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
	got := indexed(t, reg.Host+"/ci/hello")
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

	// Where it may not push, the modules are there all the same, and the exit code is the registry's.
	m := newRelay(t, http.NotFoundHandler())
	m.on(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/v2/" {
			http.Error(w, `{"errors":[{"code":"DENIED"}]}`, http.StatusForbidden)
		}
		return true
	}, nil)
	out := filepath.Join(t.TempDir(), "out")
	denied := run(t, newCache(t), "build", "../../testdata/hello", "--kernels", want[0], "--cache-from", reg.Host+"/ci/cache", "--push", m.repo(), "--out", out, "--format", "json", "-q").
		wants(t, 22, "access denied", "docker login", m.repo())
	if r := parse[results](t, []byte(denied.out)).Results; len(r) != 1 || r[0].Status != "cached" || r[0].Reference != "" || len(r[0].Modules) != 1 {
		t.Errorf("who may not push has %+v", r)
	}
	if got := below(t, out); len(got) != 2 { // the log, too
		t.Errorf("%q is in the folder for modules", got)
	}
}
