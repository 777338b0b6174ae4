package cli

import (
	"errors"
	"io"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"

	"github.com/godkms-hermetic/godkms-hermetic/cache"
	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/trial"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
)

func TestParseParam(t *testing.T) {
	for text, want := range map[string]param{
		"debug=1":               {"", "debug", "1"},
		"v4l2loopback.devices=": {"v4l2loopback", "devices", ""},
		"dm-crypt.name=a=b c":   {"dm_crypt", "name", "a=b c"},
		"video_nr=1,2.5":        {"", "video_nr", "1,2.5"},
	} {
		if got, err := parseParam(text); err != nil || got != want {
			t.Errorf("parseParam(%q) = %+v, %v; want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "debug", "=1", ".debug=1", "a b=1", "a.b.c=1", `a="`, "a=\n", "a=\x00", "a=" + strings.Repeat("x", 1024)} {
		if got, err := parseParam(text); err == nil {
			t.Errorf("parseParam(%.20q) = %+v; want an error", text, got)
		}
	}
}

func TestGive(t *testing.T) {
	modules := func(names ...string) (out []loadable) {
		for _, n := range names {
			out = append(out, loadable{Module: trial.Module{Name: n}})
		}
		return out
	}
	one, two := modules("a"), modules("a", "b")
	of := func(list ...param) *trials { return &trials{params: list} }
	if err := of(param{"", "x", "1"}, param{"a", "y", "two words"}).give(one); err != nil || !reflect.DeepEqual(one[0].Params, []string{"x=1", `y="two words"`}) {
		t.Errorf("the only module got %q, %v", one[0].Params, err)
	}
	if err := of(param{"b", "x", "1"}).give(two); err != nil || two[0].Params != nil || len(two[1].Params) != 1 {
		t.Errorf("two modules got %q and %q, %v", two[0].Params, two[1].Params, err)
	}
	for _, p := range []param{{"", "x", "1"}, {"c", "x", "1"}} {
		if err := of(p).give(two); err == nil || !strings.Contains(err.Error(), "one of a, b") {
			t.Errorf("give %s to two: %v", p, err)
		}
	}
}

func TestBefore(t *testing.T) {
	for text, want := range map[string][]string{
		"pre: a b post: c": {"a", "b"}, "post: c pre: a-b": {"a-b"}, "a": nil, "pre: ../x y": {"y"}, "": nil,
	} {
		if got := before(text); !reflect.DeepEqual(got, want) {
			t.Errorf("before(%q) = %q; want %q", text, got, want)
		}
	}
}

func TestLoadOrder(t *testing.T) {
	module := func(name string, depends ...string) loadable {
		return loadable{Module: trial.Module{Name: name}, depends: depends}
	}
	names := func(list []loadable) (out []string) {
		for _, l := range list {
			out = append(out, l.Name)
		}
		return out
	}
	before, order, outside, _ := loadOrder(
		[]loadable{module("a", "b", "lib"), module("b", "x"), module("c", "d"), module("d", "c")}, // the last two in a circle
		[]loadable{module("unused", "z"), module("lib", "base", "y"), module("base")})
	for _, x := range []struct {
		what string
		got  []string
		want []string
	}{{"before", names(before), []string{"base", "lib"}}, {"order", names(order), []string{"b", "a", "d", "c"}}, {"outside", outside, []string{"x", "y"}}} {
		if !reflect.DeepEqual(x.got, x.want) {
			t.Errorf("%s: %q; want %q", x.what, x.got, x.want)
		}
	}
}

// A file that is no module is left to the kernel; one that is too large isn't read.
func TestReadLoadable(t *testing.T) {
	f := artifact.File{Name: "not-one.ko", Size: 4, Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("what")), nil }}
	if l, err := readLoadable(f, 4); err != nil || l.Name != "not_one" || string(l.File) != "what" {
		t.Errorf("readLoadable = %+v, %v", l, err)
	}
	if _, err := readLoadable(f, 3); err == nil || !strings.Contains(err.Error(), "--mem") {
		t.Errorf("readLoadable of a large file: %v", err)
	}
}

// Of a result's tests the last one counts, and one under other conditions is none that a build could do without.
func TestRecords(t *testing.T) {
	open := func(name string) *cache.Dir {
		c, err := cache.Open(filepath.Join(t.TempDir(), name), cache.Options{})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	ctx, mine, others := t.Context(), open("mine"), open("others")
	key, of := hashOf("k"), hashOf("d")
	for _, c := range []*cache.Dir{mine, others} {
		if err := c.Put(ctx, key, cache.Entry{Image: empty.Image}); err != nil {
			t.Fatal(err)
		}
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	note := func(c *cache.Dir, v trial.Verdict, change func(*testRecord)) testRecord {
		t.Helper()
		at = at.Add(time.Minute)
		r := testRecord{Artifact: of, Kernel: "debian/bookworm:6.1.0-56-amd64", Packages: hashOf("p"), Options: testedWith{Memory: 1, Timeout: 2}, Tested: at,
			Result: trial.Result{Finding: trial.Finding{Verdict: v}, Machine: trial.MachineInfo{Image: hashOf("i"), QEMU: "7.2", Accel: "tcg"}}}
		if change != nil {
			change(&r)
		}
		if err := noteTest(ctx, c, key, r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	expect := func(wantPassed bool, wantN int) {
		t.Helper()
		if passed, n, err := passedIn(ctx, key, of, mine, others); err != nil || passed != wantPassed || n != wantN {
			t.Errorf("passedIn = %t, %d, %v; want %t, %d", passed, n, err, wantPassed, wantN)
		}
	}
	tr := &trials{app: &app{board: ui.New(io.Discard, ui.Options{Quiet: true})}}
	s := subject{key: key, digest: of, results: mine}
	known := func(r testRecord, want bool) {
		t.Helper()
		if _, ok := tr.before(ctx, s, r); ok != want {
			t.Errorf("before(%+v) = %t; want %t", r, ok, want)
		}
	}
	expect(false, 0)
	passed := note(mine, trial.Loads, nil)
	expect(true, 1)
	known(passed, true)
	for _, change := range []func(*testRecord){
		func(r *testRecord) { r.Packages = hashOf("q") }, func(r *testRecord) { r.Options.LoadOnly = true }, func(r *testRecord) { r.Options.Params = []string{"a=1"} },
		func(r *testRecord) { r.Options.Script = "x" }, func(r *testRecord) { r.Options.Memory++ }, func(r *testRecord) { r.Options.Signature = true },
	} {
		other := passed
		change(&other)
		known(other, false)
	}
	note(others, trial.Crashes, nil)
	expect(false, 2)
	note(mine, trial.NoHardware, func(r *testRecord) { r.Options.LoadOnly = true })
	expect(true, 3)
	note(mine, trial.Hangs, nil) // in the place of the first
	known(passed, false)
	note(mine, trial.Loads, func(r *testRecord) { r.Artifact = hashOf("e"); r.Options.Memory = 9 }) // of other modules
	expect(false, 3)

	list, err := attachableTests(ctx, mine, key, of)
	if err != nil || len(list) != 1 || list[0].Verdict != "hangs" || list[0].Image != hashOf("i") {
		t.Errorf("attachableTests = %+v, %v; want the last one", list, err)
	}
	back := attachedTests(of, artifact.Attachments{Tests: list})
	if len(back) != 1 || back[0].Result.Verdict != trial.Hangs || !back[0].Tested.Equal(list[0].Tested) {
		t.Errorf("attachedTests = %+v", back)
	}
	if err := noteTest(ctx, mine, hashOf("x"), passed); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("noteTest without an entry: %v", err)
	}
}
