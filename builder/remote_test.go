package builder_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1registry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/cache"
	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

var errNoEngine = errors.New("there is no engine")

// A runner is a machine with a cache of its own and no engine: what it doesn't find, it fails to build.
type runner struct {
	builder.Builder
	results *cache.Dir
	mu      sync.Mutex
	said    []string
}

func newRunner(t testing.TB) *runner {
	t.Helper()
	r := &runner{results: openCache(t)}
	r.Builder = builder.Builder{Results: r.results, Temp: t.TempDir(), RootVersion: "1",
		Engine: func(context.Context) (builder.Engine, error) { return nil, errNoEngine }}
	return r
}

func openCache(t testing.TB) *cache.Dir {
	t.Helper()
	d, err := cache.Open(t.TempDir(), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (r *runner) say(text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.said = append(r.said, text)
}

func (r *runner) warnings() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := r.said
	r.said = nil
	return out
}

func (r *runner) build(t testing.TB, j builder.Job) builder.Result {
	return r.Build(t.Context(), j, builder.Watch{Warn: r.say})
}

// job is of a source with a script for the host.
func job(t testing.TB) builder.Job {
	t.Helper()
	dir := t.TempDir()
	write(t, filepath.Join(dir, "dkms.conf"), "PACKAGE_NAME=hello\nPACKAGE_VERSION=1.0\nDEST_MODULE_LOCATION=/extra\nPOST_INSTALL=post.sh\n")
	write(t, filepath.Join(dir, "post.sh"), "#!/bin/sh\necho installed\n")
	write(t, filepath.Join(dir, "other.sh"), "#!/bin/sh\necho other\n")
	source, err := builder.OpenSource(t.Context(), dir, builder.SourceOptions{Temp: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { source.Close() })
	return builder.Job{Source: source, Lock: kernels.Lock{
		Kernel:   kernels.Kernel{Distro: "debian", Suite: "bookworm", Arch: runtime.GOARCH, Release: release},
		Compiler: "gcc-12",
		Headers:  []kernels.Package{{Name: "linux-headers-" + release, Version: "6.1.1-1", Digest: sha("headers")}},
	}}
}

func sha(text string) v1.Hash {
	h, _, err := v1.SHA256(strings.NewReader(text))
	if err != nil {
		panic(err)
	}
	return h
}

func open(text string) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text)), nil }
}

// made is what a build of the job comes to.
func made(r *runner, j builder.Job) (artifact.Meta, []artifact.File) {
	k := j.Lock.Kernel
	script, symvers := "#!/bin/sh\necho installed\n", "0x12345678\thello\thello\tEXPORT_SYMBOL\t\n"
	return artifact.Meta{
			Module: "hello", Version: "1.0", Kernel: artifact.Kernel{Distro: k.Distro, Suite: k.Suite, Arch: k.Arch, Release: k.Release},
			Headers: "6.1.1-1", Compiler: "gcc-12 (Debian 12.2.0-14) 12.2.0", Symvers: sha("symvers"),
			Key: r.Key(j), Source: j.Source.Digest, Lock: j.Lock.Digest(), Root: sha("root"), Status: artifact.Built,
			Extras: []artifact.Extra{
				{Name: artifact.ModuleSymvers, Size: int64(len(symvers)), Open: open(symvers)},
				{Name: "POST_INSTALL", Command: "post.sh", Executable: true, Size: int64(len(script)), Open: open(script)},
			},
		}, []artifact.File{{
			Name: "hello.ko", Dest: "updates/dkms", Size: 6, Vermagic: release + " SMP preempt mod_unload modversions", Open: open("module"),
		}}
}

func entry(t testing.TB, m artifact.Meta, files []artifact.File) cache.Entry {
	t.Helper()
	img, err := artifact.New(m, files)
	if err != nil {
		t.Fatal(err)
	}
	return cache.Entry{Image: img, Log: []byte("the log\n")}
}

func put(t testing.TB, s cache.Store, key v1.Hash, e cache.Entry) {
	t.Helper()
	if err := s.Put(t.Context(), key, e); err != nil {
		t.Fatal(err)
	}
}

// What another machine built is taken without an engine, kept, and had locally from then on. A wrong entry is refused, whatever is
// wrong with it, and so is an artifact of another build in its place; the next cache is asked then.
func TestRemote(t *testing.T) {
	j := job(t)
	good := openCache(t)
	{
		r := newRunner(t)
		m, files := made(r, j)
		put(t, good, r.Key(j), entry(t, m, files))
	}
	r := newRunner(t)
	empty := openCache(t)
	r.Remotes = []*builder.Remote{builder.NewRemote("empty", empty, r.say), builder.NewRemote("good", good, r.say)}
	r.Share = builder.NewRemote("share", openCache(t), r.say)
	for _, from := range []string{"good", builder.Local} {
		got := r.build(t, j)
		if got.Status != builder.Cached || got.From != from || string(got.Log) != "the log\n" || len(got.Files) != 1 || len(r.said) != 0 {
			t.Fatalf("a result of %q: %+v, %q", from, got, r.said)
		}
	}
	e, err := r.results.Get(t.Context(), r.Key(j))
	if err != nil || !bytes.Equal(e.Lock, j.Lock.Encode()) {
		t.Errorf("the local entry has the lock %q, %v", e.Lock, err)
	}

	for what, change := range map[string]func(m *artifact.Meta, f *artifact.File){
		"key":                             func(m *artifact.Meta, _ *artifact.File) { m.Key = sha("another") },
		"module":                          func(m *artifact.Meta, _ *artifact.File) { m.Module = "hallo" },
		"version":                         func(m *artifact.Meta, _ *artifact.File) { m.Version = "1.1" },
		"distribution":                    func(m *artifact.Meta, _ *artifact.File) { m.Kernel.Distro = "ubuntu" },
		"suite":                           func(m *artifact.Meta, _ *artifact.File) { m.Kernel.Suite = "trixie" },
		"architecture":                    func(m *artifact.Meta, _ *artifact.File) { m.Kernel.Arch = "riscv64" },
		"kernel release":                  func(m *artifact.Meta, _ *artifact.File) { m.Kernel.Release = "6.1.0-other" },
		"source digest":                   func(m *artifact.Meta, _ *artifact.File) { m.Source = sha("another") },
		"lock digest":                     func(m *artifact.Meta, _ *artifact.File) { m.Lock = sha("another") },
		"version of the kernel's headers": func(m *artifact.Meta, _ *artifact.File) { m.Headers = "" },
		"Module.symvers of the kernel":    func(m *artifact.Meta, _ *artifact.File) { m.Symvers = v1.Hash{} },
		"compiler":                        func(m *artifact.Meta, _ *artifact.File) { m.Compiler = "gcc-13 (Debian 13.1) 13.1.0" },
		"compiler is \"Debian clang":      func(m *artifact.Meta, _ *artifact.File) { m.Compiler = "Debian clang version 14.0.6" },
		`folder "build/include"`:          func(_ *artifact.Meta, f *artifact.File) { f.Dest = "build/include" },
		`folder "extra"`:                  func(_ *artifact.Meta, f *artifact.File) { f.Dest = "extra" },
		"vermagic":                        func(_ *artifact.Meta, f *artifact.File) { f.Vermagic = release + "1 SMP" },
		"its Module.symvers": func(m *artifact.Meta, _ *artifact.File) {
			m.Extras[0].Open = open(strings.Repeat("x", int(m.Extras[0].Size)))
		},
		`its POST_INSTALL, "post.sh"`: func(m *artifact.Meta, _ *artifact.File) {
			m.Extras[1].Open = open(strings.Repeat("x", int(m.Extras[1].Size)))
		},
		`its POST_INSTALL, "none.sh"`: func(m *artifact.Meta, _ *artifact.File) { m.Extras[1].Command = "none.sh" },
		`its POST_INSTALL, "../x.sh"`: func(m *artifact.Meta, _ *artifact.File) { m.Extras[1].Command = "../x.sh" },
		`"post.sh -x", is not`: func(m *artifact.Meta, _ *artifact.File) {
			m.Extras[1].Command, m.Extras[1].Executable = "post.sh -x", false
		},
	} {
		t.Run(what, func(t *testing.T) {
			r := newRunner(t)
			m, files := made(r, j)
			change(&m, &files[0])
			wrong := openCache(t)
			put(t, wrong, r.Key(j), entry(t, m, files))
			r.Remotes = []*builder.Remote{builder.NewRemote("wrong", wrong, r.say)}
			if got := r.build(t, j); !errors.Is(got.Err, errNoEngine) {
				t.Errorf("with the wrong one alone: %+v", got)
			}
			if w := r.warnings(); len(w) != 1 || !strings.Contains(w[0], what) || !strings.Contains(w[0], `"wrong"`) || !strings.Contains(w[0], r.Key(j).Hex) {
				t.Errorf("warnings %q", w)
			}
			if _, err := r.results.Get(t.Context(), r.Key(j)); !errors.Is(err, cache.ErrNotFound) {
				t.Errorf("it was kept: %v", err)
			}
			r.Remotes = append(r.Remotes, builder.NewRemote("good", good, r.say))
			if got := r.build(t, j); got.Status != builder.Cached || got.From != "good" || len(r.warnings()) != 1 {
				t.Errorf("with a good one behind it: %+v", got)
			}
		})
	}
}

// A skip is a result.
func TestRemoteSkip(t *testing.T) {
	j := job(t)
	r := newRunner(t)
	key := r.Key(j)
	m, _ := made(r, j)
	m.Status, m.Reason, m.Extras = artifact.Skipped, "BUILD_EXCLUSIVE_ARCH", nil
	skip := openCache(t)
	put(t, skip, key, entry(t, m, nil))
	r.Remotes = []*builder.Remote{builder.NewRemote("skip", skip, r.say)}
	if got := r.build(t, j); got.Status != builder.Skipped || got.Reason != "BUILD_EXCLUSIVE_ARCH" || got.From != "skip" {
		t.Errorf("a skip from elsewhere: %+v", got)
	}
}

// A shared cache gets what a local one has, once, and keeps what it has.
func TestShare(t *testing.T) {
	j := job(t)
	r := newRunner(t)
	m, files := made(r, j)
	put(t, r.results, r.Key(j), entry(t, m, files))
	web := serve(t, nil)
	r.Share = builder.NewRemote("share", web.store(t, 0), r.say)
	if got := r.build(t, j); got.From != builder.Local || len(r.said) != 0 {
		t.Fatalf("%+v, %q", got, r.said)
	}
	sent := web.count()
	if got := r.build(t, j); got.From != builder.Local || len(r.said) != 0 {
		t.Fatalf("%+v, %q", got, r.said)
	}
	if again := web.count() - sent; again != 1 {
		t.Errorf("what is there takes %d requests", again)
	}
	b := newRunner(t)
	b.Remotes = []*builder.Remote{builder.NewRemote("share", web.store(t, 0), b.say)}
	b.Share = b.Remotes[0]
	if got := b.build(t, j); got.From != "share" || string(got.Log) != "the log\n" || len(b.said) != 0 {
		t.Fatalf("%+v, %q", got, b.said)
	}

	// Another one for the same key isn't replaced, and that is said; the result is what it was.
	c := newRunner(t)
	files[0].Open = open("eludom")
	put(t, c.results, c.Key(j), entry(t, m, files))
	c.Share = builder.NewRemote("share", web.store(t, 0), c.say)
	if got := c.build(t, j); got.Status != builder.Cached || got.Err != nil {
		t.Errorf("%+v", got)
	}
	if w := c.warnings(); len(w) != 1 || !strings.Contains(w[0], "another result") || !strings.Contains(w[0], c.Key(j).Hex) {
		t.Errorf("warnings %q", w)
	}
	if got := newRunnerOf(t, web).build(t, j); got.From != "share" || got.Files[0].Digest != sha("module") {
		t.Errorf("the shared cache has %+v", got)
	}
}

func newRunnerOf(t testing.TB, w *web) *runner {
	r := newRunner(t)
	r.Remotes = []*builder.Remote{builder.NewRemote("share", w.store(t, 0), r.say)}
	return r
}

// web is a registry whose answers can be replaced.
type web struct {
	*httptest.Server
	mu    sync.Mutex
	n     int
	front http.HandlerFunc // may be nil; answers what it doesn't leave alone
}

func serve(t testing.TB, front http.HandlerFunc) *web {
	t.Helper()
	w := &web{front: front}
	inner := v1registry.New(v1registry.Logger(log.New(io.Discard, "", 0)))
	w.Server = httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		w.n++
		w.mu.Unlock()
		if w.front != nil {
			io.Copy(io.Discard, r.Body) // else the server doesn't see a client that goes
			w.front(rw, r)
			return
		}
		inner.ServeHTTP(rw, r)
	}))
	t.Cleanup(w.Close)
	return w
}

func (w *web) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.n
}

func (w *web) store(t testing.TB, patience time.Duration) *cache.Registry {
	t.Helper()
	client, err := registry.New(registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ref, err := registry.Parse(strings.TrimPrefix(w.URL, "http://") + "/cache")
	if err != nil {
		t.Fatal(err)
	}
	repo, err := client.Open(ref)
	if err != nil {
		t.Fatal(err)
	}
	return cache.NewRegistry(repo, cache.RegistryOptions{Temp: t.TempDir(), Patience: patience})
}

// A shared cache that refuses or hangs is named once, costs little time however many builds there are, and stops none.
func TestRemoteDown(t *testing.T) {
	refuse := func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	for name, front := range map[string]http.HandlerFunc{"refuses": refuse, "hangs": hang} {
		t.Run(name, func(t *testing.T) {
			j := job(t)
			good := openCache(t)
			r := newRunner(t)
			m, files := made(r, j)
			put(t, good, r.Key(j), entry(t, m, files))
			down := serve(t, front)
			r.Remotes = []*builder.Remote{builder.NewRemote("down", down.store(t, 200*time.Millisecond), r.say), builder.NewRemote("good", good, r.say)}
			r.Share = r.Remotes[0]
			start := time.Now()
			var all sync.WaitGroup
			for i := range 20 { // each with a key of its own, that only the last shares with the good cache
				all.Go(func() {
					j := j
					if i < 19 {
						j.Directives = []string{fmt.Sprintf("A%d=x", i)}
					}
					got := r.build(t, j)
					if i < 19 && !errors.Is(got.Err, errNoEngine) || i == 19 && got.From != "good" {
						t.Errorf("build %d: %+v", i, got)
					}
				})
			}
			all.Wait()
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("it took %s", took)
			}
			if w := r.warnings(); len(w) != 1 || !strings.HasPrefix(w[0], `shared cache "down": `) || !strings.HasSuffix(w[0], "going on without it") {
				t.Errorf("warnings %q", w)
			}
			asked := down.count()
			j.Directives = []string{"A=x"}
			r.build(t, j)
			if n := down.count(); n != asked {
				t.Errorf("it was asked %d times more", n-asked)
			}
			down.CloseClientConnections()
		})
	}
}

// One that may be read only is read further.
func TestShareRefused(t *testing.T) {
	w := serve(t, nil)
	w.Config.Handler = readOnly(w.Config.Handler)
	j := job(t)
	r := newRunner(t)
	shared := builder.NewRemote("shared", w.store(t, 0), r.say)
	r.Remotes, r.Share = []*builder.Remote{shared}, shared
	m, files := made(r, j)
	put(t, r.results, r.Key(j), entry(t, m, files))
	for range 2 {
		if got := r.build(t, j); got.Err != nil {
			t.Fatal(got.Err)
		}
	}
	asked := w.count()
	j.Directives = []string{"A=x"}
	if got := r.build(t, j); !errors.Is(got.Err, errNoEngine) || w.count() == asked {
		t.Errorf("%+v; it was asked %d times", got, w.count()-asked)
	}
	if said := r.warnings(); len(said) != 1 || !strings.HasSuffix(said[0], "nothing more is sent there") {
		t.Errorf("warnings %q", said)
	}
}

func readOnly(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !slices.Contains([]string{http.MethodGet, http.MethodHead}, r.Method) {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		next.ServeHTTP(w, r)
	})
}

// With Verify no remote is asked, and what a build that ends early was about is its error, and no warning.
func TestRemoteNotAsked(t *testing.T) {
	j := job(t)
	r := newRunner(t)
	m, files := made(r, j)
	w := serve(t, nil)
	put(t, w.store(t, 0), r.Key(j), entry(t, m, files))
	asked := w.count()
	r.Remotes = []*builder.Remote{builder.NewRemote("shared", w.store(t, 0), r.say)}
	r.Verify = true
	if got := r.build(t, j); !errors.Is(got.Err, errNoEngine) || w.count() != asked {
		t.Errorf("with Verify: %+v, %d requests", got, w.count()-asked)
	}
	r.Verify = false
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	w.front = func(_ http.ResponseWriter, r *http.Request) { cancel(cause); <-r.Context().Done() }
	if got := r.Build(ctx, j, builder.Watch{Warn: r.say}); !errors.Is(got.Err, cause) {
		t.Errorf("interrupted: %+v", got)
	}
	if said := r.warnings(); len(said) != 0 {
		t.Errorf("warnings %q", said)
	}
}
