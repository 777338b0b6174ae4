package cli

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1registry "github.com/google/go-containerregistry/pkg/registry"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registrytest"
)

// A relay passes on what a registry is asked and answers, and lets a test into the middle of it.
type relay struct {
	*httptest.Server
	mu     sync.Mutex
	asked  func(w http.ResponseWriter, r *http.Request) bool // whether it has answered
	passed func(r *http.Request, n int64)                    // so many bytes of a body, of the request or of the answer
	log    []*http.Request
}

func newRelay(t testing.TB, to http.Handler) *relay {
	t.Helper()
	m := &relay{}
	m.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		m.log = append(m.log, r)
		asked, passed := m.asked, m.passed
		m.mu.Unlock()
		if asked != nil && asked(w, r) {
			return
		}
		if passed != nil {
			var n atomic.Int64
			count := func(more int) { passed(r, n.Add(int64(more))) }
			r.Body = &counted{r.Body, count}
			w = &countedAnswer{w, count}
		}
		to.ServeHTTP(w, r)
	}))
	t.Cleanup(m.Close)
	return m
}

// relayTo is a relay to a registry that listens.
func relayTo(t testing.TB, host string) *relay {
	return newRelay(t, &httputil.ReverseProxy{
		ErrorLog: log.New(io.Discard, "", 0),
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host, p.Out.Host = "http", host, p.In.Host // its own URLs lead to the relay
		},
	})
}

// relayToMemory is a relay to a registry of this process.
func relayToMemory(t testing.TB) *relay {
	return newRelay(t, v1registry.New(v1registry.Logger(log.New(io.Discard, "", 0))))
}

func (m *relay) repo() string { return strings.TrimPrefix(m.URL, "http://") + "/modules/made" }

func (m *relay) on(asked func(http.ResponseWriter, *http.Request) bool, passed func(*http.Request, int64)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.asked, m.passed, m.log = asked, passed, nil
}

func (m *relay) seen(is func(r *http.Request) bool) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.log {
		if is(r) {
			n++
		}
	}
	return n
}

type counted struct {
	io.ReadCloser
	count func(int)
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	c.count(n)
	return n, err
}

type countedAnswer struct {
	http.ResponseWriter
	count func(int)
}

func (c *countedAnswer) Write(p []byte) (n int, err error) {
	for err == nil && n < len(p) {
		more := 0
		more, err = c.ResponseWriter.Write(p[n:min(n+64<<10, len(p))])
		n += more
		c.count(more)
	}
	return n, err
}

func (c *countedAnswer) Unwrap() http.ResponseWriter { return c.ResponseWriter }

const mib = 1 << 20

// small goes to its place as it comes, large is kept while it comes.
var small, large = made{version: "1.0", kernel: k1, size: 4 * mib}, made{version: "1.0", kernel: k1, size: smallArtifact + mib}

// indexed lists the kernels that the index of a repository's only version has; list must say the same.
func indexed(t *testing.T, repo string) (names []string) {
	t.Helper()
	dir := t.TempDir()
	r := run(t, dir, "list", repo, "--format", "json").wants(t, 0)
	if r.errs != "" {
		t.Errorf("list says %s", r.errs)
	}
	for _, m := range parse[struct{ Modules []struct{ Kernel string } }](t, []byte(r.out)).Modules {
		names = append(names, m.Kernel)
	}
	a := &app{stderr: io.Discard, env: os.Getenv, cacheDir: dir}
	_, opened, _, err := a.open(repo)
	if err != nil {
		t.Fatal(err)
	}
	idx, err := artifact.ReadIndex(t.Context(), opened, "")
	if err != nil {
		t.Fatal(err)
	}
	var in []string
	for _, e := range idx.Entries {
		in = append(in, kernelOf(e.Meta).String())
	}
	if !slices.Equal(in, names) {
		t.Errorf("the index has %q; list says %q", in, names)
	}
	return names
}

// holds checks that a folder for modules has these and nothing else.
func holds(t testing.TB, out string, list ...made) {
	t.Helper()
	var want []string
	for _, m := range list {
		k := kernelNamed(t, m.kernel)
		name := filepath.Join(k.Distro+"-"+k.Suite, k.Release, "made.ko")
		if b, err := os.ReadFile(filepath.Join(out, name)); err != nil || !bytes.Equal(b, contentOf(m)) {
			t.Errorf("%s has %d bytes, %v", name, len(b), err)
		}
		want = append(want, name)
	}
	if got := below(t, out); !slices.Equal(got, want) {
		t.Errorf("%q is in the folder for modules; want %q", got, want)
	}
}

// below lists the files below a folder, which need not be.
func below(t testing.TB, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if os.IsNotExist(err) && path == dir {
			return nil
		}
		if err == nil && (!d.IsDir() || d.Name() == ".partial") {
			name, _ := filepath.Rel(dir, path)
			names = append(names, name)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	return names
}

// tidy checks that nothing unnamed is left in a cache folder, and of downloads none, or, where some are kept, the layer's.
func tidy(t testing.TB, cache string, downloads int) {
	t.Helper()
	for _, name := range below(t, filepath.Join(cache, "tmp")) {
		if filepath.Base(name) != ".lock" {
			t.Errorf("left in the cache: tmp/%s", name)
		}
	}
	if got := below(t, filepath.Join(cache, "downloads")); len(got) < downloads || len(got) > 2*downloads { // and the config
		t.Errorf("downloads: %q; want %d", got, downloads)
	}
}

// arrived waits until a part of a layer is among a cache folder's downloads: what is still on its way doesn't count.
func arrived(t testing.TB, cache string) {
	t.Helper()
	for late := time.Now().Add(patience); time.Now().Before(late); time.Sleep(time.Millisecond) {
		for _, name := range below(t, filepath.Join(cache, "downloads")) {
			if info, err := os.Stat(filepath.Join(cache, "downloads", name)); err == nil && info.Size() > 64<<10 {
				return
			}
		}
	}
	t.Error("nothing arrives")
}

// Each of these has a registry of its own. Many wait for most of their time, so they go all at once.
func TestRegistryFaults(t *testing.T) {
	var all sync.WaitGroup
	for name, test := range map[string]func(*testing.T){
		"killed in mid-push": testKilledInPush,
		"killed in mid-pull": func(t *testing.T) { testKilledInPull(t, small, 0) }, "killed in mid-pull, large": func(t *testing.T) { testKilledInPull(t, large, 1) },
		"full registry": testFullRegistry, "altered": testAlteredStorage,
		"tag moved": testTagMoved, "token expired": testTokenExpired, "too many requests": testTooManyRequests, "interrupted": testInterrupted,
		"program killed": testProgramKilled, "full here": testFullHere, "eight pushers": testEightPushers, "write denied": testWriteDenied,
	} {
		all.Go(func() { t.Run(name, test) }) // t.Parallel would have as many at once as there are processors
	}
	all.Wait()
}

// A registry that is killed when it has a part of a module: if it comes back the push succeeds; if it doesn't, that is said, and the
// index has what it had.
func testKilledInPush(t *testing.T) {
	reg := registrytest.Start(t, registrytest.Options{})
	m := relayTo(t, reg.Host)
	cache := t.TempDir()
	stock(t, cache, made{version: "1.0", kernel: k2, size: 10})
	run(t, cache, "push", m.repo(), "made/1.0").wants(t, 0)
	stock(t, cache, small, made{version: "1.0", kernel: kPlus, size: small.size})
	kill := func(again bool) {
		var once sync.Once
		m.on(nil, func(r *http.Request, n int64) {
			if r.Method != http.MethodGet && n > mib {
				once.Do(func() {
					err := reg.Server.Kill()
					if err == nil && again {
						err = reg.Server.Restart()
					}
					if err != nil {
						t.Error(err)
					}
				})
			}
		})
	}
	kill(false)
	r := run(t, cache, "push", m.repo(), "made/1.0", "-q").wants(t, 22, "unavailable", m.repo())
	if r.out != "" {
		t.Errorf("a push that failed prints %s", r.out)
	}
	m.on(nil, nil)
	reg.Restart()
	if got := indexed(t, m.repo()); !slices.Equal(got, []string{k2}) {
		t.Errorf("after a push that failed %q are listed", got)
	}
	kill(true)
	run(t, cache, "push", m.repo(), "made/1.0", "-q").wants(t, 0)
	m.on(nil, nil)
	if got := indexed(t, m.repo()); !slices.Equal(got, []string{k1, k2, kPlus}) {
		t.Errorf("%q are listed", got)
	}
	out := t.TempDir()
	run(t, t.TempDir(), "pull", m.repo(), "--kernel", k1, "--out", out).wants(t, 0)
	holds(t, out, small)
}

// A registry that is killed in mid-pull: if it comes back the pull succeeds; if it doesn't, that is said, and there is nothing below
// --out. What has come of a large artifact is kept for the next time.
func testKilledInPull(t *testing.T, what made, kept int) {
	reg := registrytest.Start(t, registrytest.Options{})
	m := relayTo(t, reg.Host)
	source, cache := t.TempDir(), t.TempDir()
	stock(t, source, what)
	run(t, source, "push", m.repo(), "made/1.0").wants(t, 0)
	kill := func(again bool) {
		var once sync.Once
		m.on(nil, func(r *http.Request, n int64) {
			if r.Method == http.MethodGet && n > 2*mib {
				once.Do(func() {
					if kept > 0 && !again {
						arrived(t, cache)
					}
					err := reg.Server.Kill()
					if err == nil && again {
						err = reg.Server.Restart()
					}
					if err != nil {
						t.Error(err)
					}
					panic(http.ErrAbortHandler) // what it had sent is lost, too
				})
			}
		})
	}
	out := filepath.Join(t.TempDir(), "out")
	pull := []string{"pull", m.repo(), "--kernel", what.kernel, "--out", out, "-q"}
	kill(false)
	if r := run(t, cache, pull...).wants(t, 22, "unavailable", m.repo()); r.out != "" {
		t.Errorf("a pull that failed prints %s", r.out)
	}
	holds(t, out)
	tidy(t, cache, kept)
	reg.Restart()
	m.on(nil, nil)
	run(t, cache, pull...).wants(t, 0)
	holds(t, out, what)
	tidy(t, cache, 0)
	if rest := m.seen(func(r *http.Request) bool { return strings.HasPrefix(r.Header.Get("Range"), "bytes=") }); rest != kept {
		t.Errorf("%d requests for the rest of something; want %d", rest, kept)
	}
	out = filepath.Join(t.TempDir(), "out")
	pull[5] = out
	kill(true)
	run(t, cache, pull...).wants(t, 0)
	holds(t, out, what)
	tidy(t, cache, 0)
}

// tinyDisk mounts a small file system.
func tinyDisk(t testing.TB, size int) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		need.Skip(t, "no mount: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

func testFullRegistry(t *testing.T) {
	disk := tinyDisk(t, mib)
	reg := registrytest.Start(t, registrytest.Options{Dir: filepath.Join(disk, "storage")})
	repo, cache := reg.Host+"/modules/made", t.TempDir()
	stock(t, cache, made{version: "1.0", kernel: k2, size: 10})
	run(t, cache, "push", repo, "made/1.0").wants(t, 0)
	stock(t, cache, small)
	run(t, cache, "push", repo, "made/1.0").wants(t, 22, "unavailable", repo)
	if got := indexed(t, repo); !slices.Equal(got, []string{k2}) {
		t.Errorf("after a push that failed %q are listed", got)
	}
	if err := unix.Mount("tmpfs", disk, "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("size=%d", 32*mib)); err != nil {
		t.Fatal(err)
	}
	run(t, cache, "push", repo, "made/1.0").wants(t, 0)
	if got := indexed(t, repo); !slices.Equal(got, []string{k1, k2}) {
		t.Errorf("%q are listed", got)
	}

	// A layout directory's disk is ours.
	disk = tinyDisk(t, mib)
	layout := "oci:" + filepath.Join(disk, "layout")
	run(t, cache, "push", layout, "made/1.0", "--kernels", k2).wants(t, 0)
	before := below(t, disk)
	run(t, cache, "push", layout, "made/1.0").wants(t, 1, "no space left", disk)
	if got := indexed(t, layout); !slices.Equal(got, []string{k2}) {
		t.Errorf("after a push that failed %q are listed", got)
	}
	if got := below(t, disk); !slices.Equal(got, before) {
		t.Errorf("left: %q; there was %q", got, before)
	}
}

// Whatever a registry has altered is refused, and nothing is written; what is whole can still be had.
func testAlteredStorage(t *testing.T) {
	reg := registrytest.Start(t, registrytest.Options{})
	repo, source := reg.Host+"/modules/made", t.TempDir()
	stock(t, source, small)
	run(t, source, "push", repo, "made/1.0").wants(t, 0)
	files, err := filepath.Glob(filepath.Join(reg.Dir, "docker/registry/v2/blobs/sha256/*/*/data"))
	if err != nil || len(files) < 4 {
		t.Fatalf("%q, %v", files, err)
	}
	codes := map[int]int{}
	for _, name := range files {
		good, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		bad := bytes.Clone(good)
		bad[len(bad)/2] ^= 1
		if err := os.WriteFile(name, bad, 0o644); err != nil {
			t.Fatal(err)
		}
		cache, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
		r := run(t, cache, "pull", repo, "--kernel", k1, "--out", out, "-q")
		codes[r.code]++
		switch r.code {
		case 0: // nobody needs the log
			holds(t, out, small)
		default:
			r.wants(t, 22, repo)
			holds(t, out)
			tidy(t, cache, 0)
		}
		if r.code == 22 && len(good) < small.size { // not the layer
			if r := run(t, cache, "inspect", repo); r.code != 22 {
				t.Errorf("inspect: %+v; want 22", r)
			}
		}
		if err := os.WriteFile(name, good, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if codes[22] != 4 { // layer, config, manifest, index
		t.Errorf("exit codes %v; want 22 four times", codes)
	}
}

// A tag that moves while a pull is under way changes nothing: all is taken by digest from the first answer on. What was removed
// meanwhile is not there.
func testTagMoved(t *testing.T) {
	m := relayToMemory(t)
	for _, old := range []made{small, large} {
		m.on(nil, nil)
		cache, other := t.TempDir(), t.TempDir()
		now := old
		now.note = "moved"
		stock(t, cache, old)
		stock(t, other, now)
		run(t, cache, "push", m.repo(), "made/1.0").wants(t, 0)
		var moved atomic.Bool
		m.on(func(_ http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/manifests/") && !strings.HasSuffix(r.URL.Path, "/1.0") && !moved.Swap(true) {
				run(t, other, "push", m.repo(), "made/1.0").wants(t, 0)
			}
			return false
		}, nil)
		out := t.TempDir()
		run(t, t.TempDir(), "pull", m.repo(), "--kernel", k1, "--out", out).wants(t, 0)
		holds(t, out, old)
		run(t, t.TempDir(), "pull", m.repo(), "--kernel", k1, "--out", out).wants(t, 0)
		holds(t, out, now)
	}

	m.on(func(w http.ResponseWriter, r *http.Request) bool {
		gone := strings.Contains(r.URL.Path, "/manifests/sha256:")
		if gone {
			http.Error(w, `{"errors":[{"code":"MANIFEST_UNKNOWN"}]}`, http.StatusNotFound)
		}
		return gone
	}, nil)
	out := filepath.Join(t.TempDir(), "out")
	run(t, t.TempDir(), "pull", m.repo(), "--kernel", k1, "--out", out).wants(t, 23, "not found", m.repo())
	holds(t, out)
}

// A token that expires is replaced, in the middle of a push and of a pull.
func testTokenExpired(t *testing.T) {
	m := relayToMemory(t)
	var mu sync.Mutex
	given, end, valid := 0, 8, ""
	m.on(func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if r.URL.Path == "/token" {
			given++
			if valid == "" {
				valid = fmt.Sprintf("token-%d", given)
			}
			fmt.Fprintf(w, `{"token":%q}`, valid)
			return true
		}
		if end--; end == 0 {
			valid = ""
		}
		if valid != "" && r.Header.Get("Authorization") == "Bearer "+valid {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="test"`, m.URL))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}, nil)
	cache, out := t.TempDir(), t.TempDir()
	stock(t, cache, large, made{version: "1.0", kernel: k2, size: 10})
	run(t, cache, "push", m.repo(), "made/1.0").wants(t, 0)
	mu.Lock()
	pushed := given
	end = 5
	mu.Unlock()
	run(t, t.TempDir(), "pull", m.repo(), "--kernel", k1, "--out", out).wants(t, 0)
	holds(t, out, large)
	mu.Lock()
	defer mu.Unlock()
	if pushed < 2 || given < pushed+2 {
		t.Errorf("%d tokens for the push, %d for the pull", pushed, given-pushed)
	}
}

// With the wrong password, and with none, the end comes at once, and says what to do. The password is not said.
func TestWrongPassword(t *testing.T) {
	reg := registrytest.Start(t, registrytest.Options{Auth: true})
	repo, cache, out := reg.Host+"/modules/made", t.TempDir(), filepath.Join(t.TempDir(), "out")
	stock(t, cache, made{version: "1.0", kernel: k1, size: 10})
	config := t.TempDir()
	t.Setenv("DOCKER_CONFIG", config)
	login := func(password string) {
		auth := base64.StdEncoding.EncodeToString([]byte(reg.User + ":" + password))
		writeFile(t, filepath.Join(config, "config.json"), fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, reg.Host, auth))
	}
	for _, password := range []string{"", "s3cret"} {
		writeFile(t, filepath.Join(config, "config.json"), "{}")
		if password != "" {
			login(password)
		}
		for _, args := range [][]string{{"push", repo, "made/1.0"}, {"pull", repo, "--kernel", k1, "--out", out}, {"list", repo}, {"inspect", repo}} {
			start := time.Now()
			r := run(t, cache, args...).wants(t, 22, "access denied", "docker login", reg.Host)
			if d := time.Since(start); d > 3*time.Second {
				t.Errorf("%q took %s", args, d)
			}
			if strings.Contains(r.errs+r.out, "s3cret") {
				t.Errorf("%q says %s", args, r.errs)
			}
		}
	}
	holds(t, out)
	login(reg.Password)
	run(t, cache, "push", repo, "made/1.0").wants(t, 0)
	run(t, cache, "pull", repo, "--kernel", k1, "--out", out).wants(t, 0)
}

// Who may read only is told so when he pushes, before anything is sent.
func testWriteDenied(t *testing.T) {
	m := relayToMemory(t)
	cache := t.TempDir()
	stock(t, cache, small)
	run(t, cache, "push", m.repo(), "made/1.0").wants(t, 0)
	stock(t, cache, made{version: "1.0", kernel: k2, size: 10})
	m.on(func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			return false
		}
		http.Error(w, `{"errors":[{"code":"DENIED","message":"for readers only"}]}`, http.StatusForbidden)
		return true
	}, nil)
	run(t, cache, "push", m.repo(), "made/1.0").wants(t, 22, "access denied", "for readers only", "docker login")
	if got := indexed(t, m.repo()); !slices.Equal(got, []string{k1}) {
		t.Errorf("%q are listed", got)
	}
}

// 429 is waited for, but not for ever.
func testTooManyRequests(t *testing.T) {
	m := relayToMemory(t)
	cache, out := t.TempDir(), t.TempDir()
	stock(t, cache, small)
	var busy atomic.Int64
	m.on(func(w http.ResponseWriter, r *http.Request) bool {
		if busy.Add(-1) < 0 {
			return false
		}
		w.Header().Set("Retry-After", "0")
		http.Error(w, `{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}`, http.StatusTooManyRequests)
		return true
	}, nil)
	for _, args := range [][]string{{"push", m.repo(), "made/1.0"}, {"pull", m.repo(), "--kernel", k1, "--out", out}, {"list", m.repo()}, {"inspect", m.repo()}} {
		busy.Store(1)
		run(t, cache, args...).wants(t, 0)
	}
	holds(t, out, small)
	busy.Store(1 << 40)
	out = filepath.Join(out, "none")
	run(t, cache, "pull", m.repo(), "--kernel", k1, "--out", out).wants(t, 22, "429", "slow down")
	holds(t, out)
}

// A pull that is interrupted leaves nothing below its folder, and the next one goes on.
func testInterrupted(t *testing.T) {
	m := relayToMemory(t)
	source := t.TempDir()
	stock(t, source, large, made{version: "1.0", kernel: k2, size: small.size})
	run(t, source, "push", m.repo(), "made/1.0").wants(t, 0)
	for _, c := range []struct {
		made
		downloads int
	}{{large, 1}, {made{version: "1.0", kernel: k2, size: small.size}, 0}} {
		cache, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
		ctx, cancel := context.WithCancel(t.Context())
		m.on(nil, func(r *http.Request, n int64) {
			if n > 2*mib {
				if c.downloads > 0 {
					arrived(t, cache)
				}
				cancel()
				<-r.Context().Done() // until it has gone
			}
		})
		pull := []string{"pull", m.repo(), "--kernel", c.kernel, "--out", out, "-q"}
		if r := runWith(ctx, cache, pull...).wants(t, 130, "interrupted; nothing unfinished was left behind"); r.out != "" {
			t.Errorf("it prints %s", r.out)
		}
		holds(t, out)
		tidy(t, cache, c.downloads)
		m.on(nil, nil)
		run(t, cache, pull...).wants(t, 0)
		holds(t, out, c.made)
		tidy(t, cache, 0)
		if rest := m.seen(func(r *http.Request) bool { return r.Header.Get("Range") != "" }); rest != c.downloads {
			t.Errorf("%d requests for the rest of something; want %d", rest, c.downloads)
		}
	}

	// A push: the index has what it had.
	stock(t, source, made{version: "1.0", kernel: kPlus, size: small.size})
	ctx, cancel := context.WithCancel(t.Context())
	m.on(nil, func(r *http.Request, n int64) {
		if r.Method != http.MethodGet && n > mib {
			cancel()
		}
	})
	runWith(ctx, source, "push", m.repo(), "made/1.0", "-q").wants(t, 130, "interrupted")
	m.on(nil, nil)
	if got := indexed(t, m.repo()); !slices.Equal(got, []string{k1, k2}) {
		t.Errorf("after an interrupted push %q are listed", got)
	}
}

// process is the real program, with a cache folder.
func process(t testing.TB, cache string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := exec.LookPath("godkms-hermetic")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, append(args, "--cache-dir", cache)...)
	cmd.Stdout, cmd.Stderr = new(bytes.Buffer), new(bytes.Buffer)
	return cmd
}

// kill -9 in the middle: nothing has a module's name, and the next pull goes on and clears up.
func testProgramKilled(t *testing.T) {
	m := relayToMemory(t)
	source := t.TempDir()
	stock(t, source, large, made{version: "1.0", kernel: k2, size: small.size})
	run(t, source, "push", m.repo(), "made/1.0").wants(t, 0)
	for _, c := range []struct {
		made
		downloads int
	}{{large, 1}, {made{version: "1.0", kernel: k2, size: small.size}, 0}} {
		cache, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
		middle, dead := make(chan struct{}), make(chan struct{})
		var once sync.Once
		m.on(nil, func(r *http.Request, n int64) {
			if n > 2*mib {
				once.Do(func() { close(middle) })
				<-dead
			}
		})
		pull := []string{"pull", m.repo(), "--kernel", c.kernel, "--out", out, "-q"}
		p := process(t, cache, pull...)
		if err := p.Start(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-middle:
			if c.downloads > 0 {
				arrived(t, cache)
			}
		case <-time.After(patience):
			t.Errorf("it never came to the middle: %s", p.Stderr)
		}
		p.Process.Kill()
		p.Wait()
		close(dead)
		for _, name := range below(t, out) {
			if !strings.HasPrefix(name, ".partial") && name != ".lock" {
				t.Errorf("left: %s", name)
			}
		}
		m.on(nil, nil)
		run(t, cache, pull...).wants(t, 0)
		holds(t, out, c.made)
		tidy(t, cache, 0)
		if rest := m.seen(func(r *http.Request) bool { return r.Header.Get("Range") != "" }); rest != c.downloads {
			t.Errorf("%d requests for the rest of something; want %d", rest, c.downloads)
		}
	}
}

// Where our disk is full it is said which, and what to do; nothing unfinished stays, and with room again the pull succeeds.
func testFullHere(t *testing.T) {
	m := relayToMemory(t)
	source := t.TempDir()
	stock(t, source, large, made{version: "1.0", kernel: k2, size: small.size})
	run(t, source, "push", m.repo(), "made/1.0").wants(t, 0)
	grow := func(disk string) {
		t.Helper()
		if err := unix.Mount("tmpfs", disk, "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("size=%d", 64*mib)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []made{large, {version: "1.0", kernel: k2, size: small.size}} {
		disk, cache := tinyDisk(t, mib), t.TempDir()
		out := filepath.Join(disk, "out")
		pull := []string{"pull", m.repo(), "--kernel", c.kernel, "--out", out, "-q"}
		run(t, cache, pull...).wants(t, 1, "no space left", out, "--out")
		holds(t, out)
		grow(disk)
		run(t, cache, pull...).wants(t, 0)
		holds(t, out, c)
		tidy(t, cache, 0)
	}
	disk, out := tinyDisk(t, mib), filepath.Join(t.TempDir(), "out")
	pull := []string{"pull", m.repo(), "--kernel", large.kernel, "--out", out, "-q"}
	run(t, disk, pull...).wants(t, 1, "no space left", disk, "cache gc", "--cache-dir")
	holds(t, out)
	grow(disk)
	run(t, disk, pull...).wants(t, 0)
	holds(t, out, large)
	tidy(t, disk, 0)
}

// Eight runners push a kernel each to one index of a real registry at once: it has all of them, and so has a layout directory.
func testEightPushers(t *testing.T) {
	const n = 8
	reg := registrytest.Start(t, registrytest.Options{})
	layout := "oci:" + filepath.Join(t.TempDir(), "layout")
	for _, repo := range []string{reg.Host + "/modules/made", layout} {
		var want []string
		var runners []*exec.Cmd
		for i := range n {
			k := fmt.Sprintf("debian/bookworm:6.1.0-%d-amd64", i)
			want = append(want, k)
			cache := t.TempDir()
			stock(t, cache, made{version: "1.0", kernel: k, size: 1000})
			runners = append(runners, process(t, cache, "push", repo, "made/1.0", "-q"))
		}
		for _, p := range runners {
			if err := p.Start(); err != nil {
				t.Fatal(err)
			}
		}
		for _, p := range runners {
			if err := p.Wait(); err != nil {
				t.Errorf("%v: %s", err, p.Stderr)
			}
		}
		if got := indexed(t, repo); !slices.Equal(got, want) {
			t.Errorf("%s has %q; want %q", repo, got, want)
		}
		out := t.TempDir()
		run(t, t.TempDir(), "pull", repo+":1.0", "--kernel", "6.1.0-*", "--out", out, "-q").wants(t, 0)
		if got := below(t, out); len(got) != n {
			t.Errorf("pulled %q", got)
		}
	}
}
