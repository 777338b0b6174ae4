package cli

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"

	"github.com/godkms-hermetic/godkms-hermetic/cache"
	"github.com/godkms-hermetic/godkms-hermetic/internal/trial"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// resultWith is a cache with a result, and its key and digest.
func resultWith(t *testing.T) (results *cache.Dir, key, digest v1.Hash) {
	t.Helper()
	results, err := cache.Open(t.TempDir(), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	key = v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("1", 64)}
	if err := results.Put(t.Context(), key, cache.Entry{Image: empty.Image}); err != nil {
		t.Fatal(err)
	}
	digest, err = empty.Image.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return results, key, digest
}

func aTestOf(digest v1.Hash, verdict trial.Verdict, hour int) testRecord {
	image := v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("2", 64)}
	return testRecord{
		Artifact: digest, Kernel: "debian/bookworm:6.1.0-56-amd64", Packages: image, Tested: time.Date(2026, 1, 1, hour, 0, 0, 0, time.UTC),
		Result: trial.Result{Finding: trial.Finding{Verdict: verdict}, Machine: trial.MachineInfo{Release: "6.1.0-56-amd64", Image: image, QEMU: "7.2", Accel: "tcg"}},
	}
}

// What is believed of modules, to install or push them, is what came of a whole test as they are installed, on their kernel.
func TestPassed(t *testing.T) {
	t.Parallel()
	kernel := kernels.Kernel{Distro: "debian", Suite: "bookworm", Arch: "amd64", Release: "6.1.0-56-amd64"}
	pass, fail := trial.Loads, trial.Crashes
	record := func(v trial.Verdict, with testedWith) func(testRecord) testRecord {
		return func(r testRecord) testRecord { r.Result.Verdict, r.Options = v, with; return r }
	}
	altered := func(alter func(*testRecord)) func(testRecord) testRecord {
		return func(r testRecord) testRecord { alter(&r); return r }
	}
	whole, loadOnly, param, script := testedWith{}, testedWith{LoadOnly: true}, testedWith{Params: []string{"how=well"}}, testedWith{Script: "ab"}
	for name, c := range map[string]struct {
		records []func(testRecord) testRecord // the newest last
		passed  bool
		n       int
	}{
		"none":                {},
		"passed":              {[]func(testRecord) testRecord{record(pass, whole)}, true, 1},
		"passed, no hardware": {[]func(testRecord) testRecord{record(trial.NoHardware, whole)}, true, 1},
		"one wasn't tried": {[]func(testRecord) testRecord{altered(func(r *testRecord) {
			r.Result.Verdict, r.Result.Modules = trial.NoHardware, []trial.State{{Finding: trial.Finding{Verdict: trial.Untried}}}
		})}, false, 0},
		"failed":                        {[]func(testRecord) testRecord{record(fail, whole)}, false, 1},
		"passed with a script":          {[]func(testRecord) testRecord{record(pass, script)}, true, 1},
		"only loaded":                   {[]func(testRecord) testRecord{record(pass, loadOnly)}, false, 0},
		"failed, then only loaded":      {[]func(testRecord) testRecord{record(fail, whole), record(pass, loadOnly)}, false, 1},
		"failed, then with a parameter": {[]func(testRecord) testRecord{record(fail, whole), record(pass, param)}, false, 1},
		"passed, and with a parameter":  {[]func(testRecord) testRecord{record(pass, whole), record(fail, param)}, true, 1},
		"passed, then didn't load":      {[]func(testRecord) testRecord{record(pass, whole), record(fail, loadOnly)}, false, 2},
		"passed, then not a script":     {[]func(testRecord) testRecord{record(pass, whole), record(trial.Script, script)}, false, 2},
		"another kernel":                {[]func(testRecord) testRecord{altered(func(r *testRecord) { r.Kernel = "debian/bookworm:6.1.0-55-amd64" })}, false, 0},
		"another kernel ran":            {[]func(testRecord) testRecord{altered(func(r *testRecord) { r.Result.Machine.Release = "6.1.0-55-amd64" })}, false, 0},
		"other modules":                 {[]func(testRecord) testRecord{altered(func(r *testRecord) { r.Artifact = r.Packages })}, false, 0},
		"no verdict that there is":      {[]func(testRecord) testRecord{record("fine", whole)}, false, 0},
	} {
		results, key, digest := resultWith(t)
		for i, alter := range c.records {
			if err := noteTest(t.Context(), results, key, alter(aTestOf(digest, pass, i))); err != nil {
				t.Fatal(err)
			}
		}
		passed, n, err := passedIn(t.Context(), key, digest, kernel, results)
		if err != nil || passed != c.passed || n != c.n {
			t.Errorf("%s: %v of %d, %v; want %v of %d", name, passed, n, err, c.passed, c.n)
		}
		list, err := attachableTests(t.Context(), results, key, digest, kernel)
		if err != nil || len(list) != min(c.n, 1) || c.n > 0 && trial.Verdict(list[0].Verdict).Passed() != c.passed {
			t.Errorf("%s: to be pushed are %d, %v, or one that says another verdict", name, len(list), err)
		}
	}
}

// A guest that says too much doesn't keep its verdict from taking the place of a better one.
func TestNoteTestBounded(t *testing.T) {
	t.Parallel()
	results, key, digest := resultWith(t)
	long := strings.Repeat("<", 2000) // six bytes each as JSON
	for i, alter := range []func(*trial.Result){
		func(r *trial.Result) {
			for range 3000 {
				r.Log = append(r.Log, long)
			}
		},
		func(r *trial.Result) {
			for range 3000 {
				r.Modules = append(r.Modules, trial.State{Name: long})
			}
		},
	} {
		if err := noteTest(t.Context(), results, key, aTestOf(digest, trial.Loads, 2*i)); err != nil {
			t.Fatal(err)
		}
		r := aTestOf(digest, trial.Crashes, 2*i+1)
		alter(&r.Result)
		if err := noteTest(t.Context(), results, key, r); err != nil {
			t.Errorf("note: %v", err)
		}
		list, err := testsIn(t.Context(), results, key, digest)
		if err != nil || len(list) != 1 || list[0].Result.Verdict != trial.Crashes {
			b, _ := json.Marshal(list)
			t.Errorf("kept is %.200s, %v; want one that crashes", b, err)
		}
	}
}
