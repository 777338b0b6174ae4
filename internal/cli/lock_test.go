package cli

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"

	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// lockAgain locks the kernels of results that were built, and wants the same from the lock file without any index.
func lockAgain(t *testing.T, keys openpgp.EntityList, cache string, selectors, args []string, results map[string]ui.Result) {
	name := filepath.Join(cache, "godkms.lock")
	var locked struct{ Kernels []lockedKernel }
	runRPM(t, keys, 0, &locked, append([]string{"lock", "../../testdata/hello", "--kernels", strings.Join(selectors, ","), "--out", name}, args...)...)
	if err := os.RemoveAll(filepath.Join(cache, "index")); err != nil {
		t.Fatal(err)
	}
	var built struct{ Results []ui.Result }
	runRPM(t, keys, 0, &built, append([]string{"build", "../../testdata/hello", "--lock", name, "--out", filepath.Join(cache, "again"), "--offline"}, args...)...)
	if len(locked.Kernels) != len(selectors) || len(built.Results) != len(selectors) {
		t.Errorf("%d kernels were locked, and %d built; want %d", len(locked.Kernels), len(built.Results), len(selectors))
	}
	for _, r := range built.Results {
		if want := results[r.Kernel]; r.Status != ui.Cached || r.Key != want.Key || r.Digest != want.Digest || r.Compiler != want.Compiler {
			t.Errorf("from the lock file: %+v; want %+v", r, want)
		}
	}
	if text, err := os.ReadFile(name); err != nil || !bytes.Contains(text, []byte("\nindex ")) {
		t.Errorf("the lock file names no index (%v):\n%s", err, text)
	}
}

// lockOne locks a module for a kernel of the real archive, changes that, and writes it.
func lockOne(t *testing.T, change func(*kernels.LockFile)) (name, release string) {
	t.Helper()
	name = filepath.Join(t.TempDir(), "godkms.lock")
	program(t, sharedCache(t), "lock", "../../testdata/hello", "--kernels", "debian/bookworm:latest", "--out", name, "-q")
	f, err := readLockFile(name)
	if err != nil {
		t.Fatal(err)
	}
	release = f.Locks[0].Lock.Kernel.Release
	change(f)
	text, err := f.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return name, release
}

// tryMain runs the program, which has to end with an exit code.
func tryMain(t *testing.T, code int, args ...string) (stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	if got := Main(t.Context(), args, &out, &errs); got != code {
		t.Errorf("%s: exit code %d; want %d\n%s", strings.Join(args, " "), got, code, errs.String())
	}
	return out.String(), errs.String()
}

// A build from a lock file asks for packages alone, where the file says that they are, and fails where they can't be had as they were.
func TestLockedPackagesAreGone(t *testing.T) {
	var mu sync.Mutex
	var asked []string
	answer := http.NotFound
	sizes := map[string]int64{}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.URL.Path)
		mu.Unlock()
		answer(w, r)
	}))
	defer s.Close()
	name, _ := lockOne(t, func(f *kernels.LockFile) {
		for _, list := range [][]kernels.Package{f.Locks[0].Lock.Toolchain, f.Locks[0].Lock.Headers} {
			for i := range list {
				list[i].URL, list[i].Mirrors = s.URL+"/pool/"+list[i].Name, nil
				sizes["/pool/"+list[i].Name] = list[i].Size
			}
		}
		for i := range f.Indexes {
			f.Indexes[i].URL = s.URL
		}
	})
	args := []string{"build", "../../testdata/hello", "--lock", name, "--cache-dir", t.TempDir(), "--out", filepath.Join(t.TempDir(), "out"), "--mirror", "debian=" + s.URL + "/none"}
	if out, errs := tryMain(t, 21, args...); !strings.Contains(out, " failed ") || !strings.Contains(errs, "no longer") ||
		!strings.Contains(errs, "godkms.lock can be renewed with 'godkms-hermetic lock --update'") {
		t.Errorf("%s%s", out, errs)
	}
	answer = func(w http.ResponseWriter, r *http.Request) { w.Write(make([]byte, sizes[r.URL.Path])) }
	if out, errs := tryMain(t, 21, args...); !strings.Contains(errs, "not the file that the signed index describes") {
		t.Errorf("%s%s", out, errs)
	}
	tryMain(t, 21, append(args, "--offline")...)
	if len(asked) == 0 || slices.ContainsFunc(asked, func(path string) bool { return !strings.Contains(path, "/pool/") }) {
		t.Errorf("it was asked for %q; want packages alone", asked)
	}
	if !strings.HasPrefix(asked[0], "/none/pool/") {
		t.Errorf("it was asked for %q first; want what --mirror has", asked[0])
	}
}

// What the distribution has changed since is shown, and a kernel that it has no more can't be renewed.
func TestLockDiff(t *testing.T) {
	header := ""
	name, release := lockOne(t, func(f *kernels.LockFile) {
		l := &f.Locks[0].Lock
		i := slices.IndexFunc(l.Toolchain, func(p kernels.Package) bool { return p.Name == "bash" })
		l.Toolchain[i].Version = "5.1-1"
		header, l.Headers = l.Headers[0].Name, l.Headers[1:]
		f.Locks[0].Image = kernels.Image{} // as in files from before there were images in them
		gone := f.Locks[0]
		gone.Lock.Kernel.Release = "6.1.0-1-amd64"
		f.Locks = append(f.Locks, gone)
	})
	before, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	cache := sharedCache(t)
	out, _ := tryMain(t, 0, "lock", "../../testdata/hello", "--diff", "--out", name, "--cache-dir", cache, "-q")
	var got []string
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if f[0] == "toolchain" || f[0] == "headers" || f[0] == "image" {
			f[slices.Index(f, "->")+1] = "NEW"
		}
		got = append(got, strings.Join(f, " "))
	}
	want := []string{
		"kernel debian/bookworm:6.1.0-1-amd64 gcc-12 -> (none)",
		"toolchain bash 5.1-1 -> NEW debian/bookworm:" + release,
		"headers " + header + " (none) -> NEW debian/bookworm:" + release,
		"image linux-image-" + release + " (none) -> NEW debian/bookworm:" + release,
	}
	if !slices.Equal(got, want) {
		t.Errorf("the changes are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if _, errs := tryMain(t, 21, "lock", "../../testdata/hello", "--update", "--out", name, "--cache-dir", cache); !strings.Contains(errs, `no kernel "6.1.0-1-amd64"`) ||
		!strings.Contains(errs, "--mirror") {
		t.Error(errs)
	}
	if after, err := os.ReadFile(name); err != nil || !bytes.Equal(before, after) {
		t.Errorf("a failed update has written the file (%v)", err)
	}
	tryMain(t, 0, "lock", "../../testdata/hello", "--update", "debian/bookworm:"+release, "--out", name, "--cache-dir", cache, "-q")
	if out, _ = tryMain(t, 0, "lock", "../../testdata/hello", "--diff", "--out", name, "--cache-dir", cache, "-q"); out != "kernel  debian/bookworm:6.1.0-1-amd64  gcc-12 -> (none)\n" {
		t.Errorf("after the update the changes are\n%s", out)
	}
}

// The mirrors of a run come before those of a lock file if they were given, with their passwords, and else behind them.
func TestLockedPackagesPlaces(t *testing.T) {
	k := kernels.Kernel{Distro: "debian", Suite: "bookworm", Arch: "amd64", Release: "6.1.0-1-amd64"}
	index := func(archive, suite, url string) kernels.LockedIndex {
		return kernels.LockedIndex{Distro: "debian", Suite: suite, Arch: "amd64", Index: kernels.Index{Archive: archive, URL: url}}
	}
	p := lockProvider{
		file: &kernels.LockFile{Indexes: []kernels.LockedIndex{
			index("debian", "bookworm", "http://m.example/debian"), index("debian", "bookworm", "http://m.example/debian"),
			index("debian-security", "bookworm", "http://m.example/debian-security/"), index("debian", "trixie", "http://other.example/debian"),
		}},
		mirrors: []repo.Mirror{
			{Archive: "debian", URL: "http://u:p@m.example/debian", From: repo.Given}, {Archive: "debian", URL: "http://new.example/d", From: repo.Given},
			{Archive: "debian-security", URL: "http://host.example/s", From: repo.FromHost},
		},
	}
	a := &app{mirrors: []string{"rhel=https://me:secret@cdn.example/rhel", "debian=http://none.example/debian"}}
	p.users = a.mirrorUsers()
	in := []kernels.Package{
		{Name: "d", URL: "https://cdn.example/rhel/d.rpm", Mirrors: []string{"https://cdn.example/rhel9/d.rpm", "http://cdn.example/rhel/d.rpm"}},
		{Name: "a", URL: "http://m.example/debian/pool/a.deb", Mirrors: []string{"http://second.example/a.deb"}},
		{Name: "b", URL: "http://m.example/debian-security/pool/b.deb"},
		{Name: "c", URL: "http://other.example/debian/pool/c.deb"},
	}
	var got [][]string
	for _, p := range p.placed(k, in) {
		got = append(got, append([]string{p.URL}, p.Mirrors...))
	}
	want := [][]string{
		{"https://me:secret@cdn.example/rhel/d.rpm", "https://cdn.example/rhel9/d.rpm", "http://cdn.example/rhel/d.rpm"},
		{"http://u:p@m.example/debian/pool/a.deb", "http://new.example/d/pool/a.deb", "http://m.example/debian/pool/a.deb", "http://second.example/a.deb"},
		{"http://m.example/debian-security/pool/b.deb", "http://host.example/s/pool/b.deb"},
		{"http://other.example/debian/pool/c.deb"},
	}
	if !reflect.DeepEqual(got, want) || in[1].URL != "http://m.example/debian/pool/a.deb" {
		t.Errorf("%q; want %q", got, want)
	}
}

func TestLockHidesPasswords(t *testing.T) {
	p := kernels.Package{URL: "http://m.example/a", Mirrors: []string{"http://u:p@m.example/a", "http://n.example/a"}}
	if !hideUser(&p) || p.URL != "http://m.example/a" || !slices.Equal(p.Mirrors, []string{"http://m.example/a", "http://n.example/a"}) {
		t.Errorf("%+v", p)
	}
	if hideUser(&p) {
		t.Error("there was nothing left to hide")
	}
}
