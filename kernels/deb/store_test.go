package deb

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/internal/mirror"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

const inRelease = "/debian/dists/bookworm/InRelease"

func kernel(release string) kernels.Kernel {
	return kernels.Kernel{Distro: "debian", Suite: "bookworm", Arch: "amd64", Release: release}
}

func use(p *Provider) error {
	_, err := p.Lock(context.Background(), kernel("6.1.0-1-amd64"), kernels.Extra{})
	return err
}

func TestRefused(t *testing.T) {
	good := published{pocket: "bookworm", packages: stanzas(basePackages)}
	index := func(b *bench) string {
		for path := range b.files {
			if strings.Contains(path, "/by-hash/") {
				return path
			}
		}
		return ""
	}
	for _, c := range []struct {
		name string
		pub  func(p *published)
		spy  func(b *bench)
		want []string
	}{
		{"mirror down", nil, func(b *bench) {
			b.answer = func(w http.ResponseWriter, r *http.Request) bool { panic(http.ErrAbortHandler) }
		},
			[]string{"fetch", inRelease, "--mirror"}},
		{"no such suite", nil, func(b *bench) { delete(b.files, inRelease) }, []string{"404", inRelease, "--mirror"}},
		{"unsigned", nil, func(b *bench) { b.files[inRelease] = []byte("Codename: bookworm\n") }, []string{"refused", inRelease, "not signed", "another mirror"}},
		{"wrong key", func(p *published) { p.key = newKey("other") }, nil, []string{"refused", inRelease, "none of the distribution's keys"}},
		{"altered text", nil, func(b *bench) {
			b.files[inRelease] = []byte(strings.Replace(string(b.files[inRelease]), "Suite: whatever", "Suite: whatsoever", 1))
		}, []string{"refused", inRelease, "signature does not hold"}},
		{"text before", nil, func(b *bench) { b.files[inRelease] = append([]byte("Codename: sid\n"), b.files[inRelease]...) },
			[]string{"refused", inRelease, "outside of what is signed"}},
		{"text after", nil, func(b *bench) { b.files[inRelease] = append(b.files[inRelease], "\nCodename: sid\n"...) },
			[]string{"refused", inRelease, "outside of what is signed"}},
		{"expired", func(p *published) { p.validUntil = epoch.Add(-time.Minute) }, nil,
			[]string{inRelease, `"bookworm" expired on 2024-05-01 11:59 UTC`, "--accept-expired"}},
		{"other suite", func(p *published) { p.codename = "bullseye" }, nil, []string{"refused", inRelease, `index of "bullseye"`}},
		{"from the future", func(p *published) { p.date = epoch.Add(25 * time.Hour) }, nil, []string{"refused", inRelease, "2024-05-02", "clock"}},
		{"release too large", nil, func(b *bench) { b.files[inRelease] = make([]byte, maxRelease+1) }, []string{inRelease, "too large"}},
		{"release without end", nil, func(b *bench) {
			b.answer = func(w http.ResponseWriter, r *http.Request) bool {
				for range maxRelease>>20 + 1 {
					w.Write(make([]byte, 1<<20))
				}
				return true
			}
		}, []string{inRelease, "too large"}},
		{"index truncated", nil, func(b *bench) { p := index(b); b.files[p] = b.files[p][:100] }, []string{"refused", "/by-hash/", "100 of", "try again"}},
		{"index longer", nil, func(b *bench) { p := index(b); b.files[p] = append(b.files[p], 0) }, []string{"/by-hash/", "too large"}},
		{"index altered", nil, func(b *bench) { p := index(b); b.files[p][50] ^= 1 }, []string{"refused", "/by-hash/", "sha256", "another mirror"}},
		{"index missing", nil, func(b *bench) {
			delete(b.files, index(b))
			delete(b.files, "/debian/dists/bookworm/main/binary-amd64/Packages.gz")
		},
			[]string{"404", "Packages.gz", "--mirror"}},
		{"index malformed", func(p *published) { p.packages = "nonsense\n" }, nil, []string{"line 1 is no field"}},
		{"path outside", func(p *published) {
			p.packages = strings.Replace(stanzas(basePackages), "pool/main/", "../", 1)
		}, nil, []string{"not relative and clean"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b, pub := newBench(t), good
			if c.pub != nil {
				c.pub(&pub)
			}
			b.publish(pub)
			if c.spy != nil {
				c.spy(b)
			}
			err := use(b.client(Options{}))
			if err == nil {
				t.Fatal("Lock: no error")
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not say %q", err, want)
				}
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("error has several lines: %q", err)
			}
			untrusted := c.want[0] == "refused" && c.name != "from the future" && c.name != "index truncated"
			if errors.Is(err, kernels.ErrUntrusted) != untrusted {
				t.Errorf("error %q wraps ErrUntrusted: %v; want %v", err, !untrusted, untrusted)
			}
			if left := append(b.cached(".idx"), b.cached("file-")...); len(left) > 0 {
				t.Errorf("files left behind: %v", left)
			}
		})
	}
}

func TestExpiredIsAcceptedOnRequest(t *testing.T) {
	b := newBench(t)
	pub := published{pocket: "bookworm", packages: stanzas(basePackages), validUntil: epoch.Add(-time.Minute)}
	b.publish(pub)
	if err := use(b.client(Options{AcceptExpired: true})); err != nil {
		t.Fatal(err)
	}
	if !b.warned("expired on") {
		t.Errorf("no warning: %q", b.warnings)
	}
	if err := use(b.client(Options{})); err == nil || !strings.Contains(err.Error(), "--accept-expired") {
		t.Errorf("without AcceptExpired, from the cache: error is %v", err)
	}
	if n := b.count("bookworm/InRelease"); n != 1 {
		t.Errorf("a refused index was asked for %d times; want 1", n)
	}
	pub.key = newKey("other")
	b.publish(pub)
	b.cache = t.TempDir()
	if err := use(b.client(Options{AcceptExpired: true})); err == nil {
		t.Error("AcceptExpired accepts an unknown key")
	}
}

func TestAsksAgainAfterSixHours(t *testing.T) {
	b := newBench(t)
	b.publish(published{pocket: "bookworm", packages: stanzas(basePackages)})
	b.dates[inRelease] = epoch.Add(-time.Hour)
	step := func(what string, o Options, wantAsked, wantIndexes int) {
		t.Helper()
		if err := use(b.client(o)); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if n := b.count("bookworm/InRelease"); n != wantAsked {
			t.Errorf("%s: InRelease was asked for %d times; want %d", what, n, wantAsked)
		}
		if n := b.count("backports/InRelease"); n != wantAsked {
			t.Errorf("%s: the missing pocket was asked for %d times; want %d", what, n, wantAsked)
		}
		if n := b.count("amd64/Packages.gz"); n != 0 {
			t.Errorf("%s: the plain path was asked for %d times; want 0", what, n)
		}
		b.mu.Lock()
		n := 0
		for path, hits := range b.hits {
			if strings.Contains(path, "/by-hash/") {
				n += hits
			}
		}
		b.mu.Unlock()
		if n != wantIndexes {
			t.Errorf("%s: indexes were asked for %d times; want %d", what, n, wantIndexes)
		}
	}
	notModified := 0
	b.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == inRelease && r.Header.Get("If-Modified-Since") == b.dates[inRelease].UTC().Format(http.TimeFormat) {
			notModified++
		}
		return false
	}
	step("first", Options{}, 1, 1)
	step("at once", Options{}, 1, 1)
	b.clock.add(5*time.Hour + 59*time.Minute)
	step("before 6 h", Options{}, 1, 1)
	if notModified != 0 {
		t.Errorf("%d conditional requests; want 0", notModified)
	}
	b.clock.add(2 * time.Minute)
	step("after 6 h", Options{}, 2, 1)
	if notModified != 1 {
		t.Errorf("%d conditional requests; want 1", notModified)
	}
	step("then", Options{}, 2, 1)
	step("refresh", Options{Refresh: true}, 3, 1)
	b.clock.add(300 * time.Hour)
	step("offline", Options{Offline: true}, 3, 1)
	b.publish(published{pocket: "bookworm", date: epoch, packages: stanzas(basePackages + "extra 1\n")})
	b.dates[inRelease] = epoch
	step("changed", Options{}, 4, 2)
}

func TestETag(t *testing.T) {
	b := newBench(t)
	b.publish(published{pocket: "bookworm", packages: stanzas(basePackages)})
	same := 0
	b.answer = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("ETag", `"one"`)
		if r.Header.Get("If-None-Match") != `"one"` {
			return false
		}
		same++
		w.WriteHeader(http.StatusNotModified)
		return true
	}
	for range 2 {
		if err := use(b.client(Options{Refresh: true})); err != nil {
			t.Fatal(err)
		}
	}
	if same != 1 {
		t.Errorf("%d requests with the ETag; want 1", same)
	}
}

func TestOffline(t *testing.T) {
	b := newBench(t)
	b.publish(published{pocket: "bookworm", packages: stanzas(basePackages), validUntil: epoch.Add(time.Hour)})
	if err := use(b.client(Options{Offline: true})); err == nil || !strings.Contains(err.Error(), "without --offline") {
		t.Errorf("empty cache: error is %v", err)
	}
	if n := b.count(""); n != 0 {
		t.Errorf("%d requests while offline", n)
	}
	if err := use(b.client(Options{})); err != nil {
		t.Fatal(err)
	}
	asked := b.count("")
	b.clock.add(59 * time.Minute)
	if err := use(b.client(Options{Offline: true})); err != nil {
		t.Error(err)
	}
	b.clock.add(2 * time.Minute)
	if err := use(b.client(Options{Offline: true})); err == nil || !strings.Contains(err.Error(), "expired on") {
		t.Errorf("past Valid-Until: error is %v", err)
	}
	if err := use(b.client(Options{Offline: true, AcceptExpired: true})); err != nil {
		t.Error(err)
	}
	if n := b.count(""); n != asked {
		t.Errorf("%d requests while offline", n-asked)
	}
}

func TestMirrorFails(t *testing.T) {
	down := func(w http.ResponseWriter, r *http.Request) bool {
		w.WriteHeader(http.StatusBadGateway)
		return true
	}
	for _, c := range []struct {
		name       string
		validFor   time.Duration // from epoch; 0: no Valid-Until
		works, not time.Duration // after the first use
	}{
		{"without Valid-Until", 0, 7*24*time.Hour - time.Minute, 7*24*time.Hour + time.Minute},
		{"with Valid-Until", 9 * 24 * time.Hour, 9*24*time.Hour - time.Minute, 9*24*time.Hour + time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBench(t)
			pub := published{pocket: "bookworm", packages: stanzas(basePackages)}
			if c.validFor > 0 {
				pub.validUntil = epoch.Add(c.validFor)
			}
			b.publish(pub)
			if err := use(b.client(Options{})); err != nil {
				t.Fatal(err)
			}
			b.answer = down
			if c.validFor > 0 { // pockets that were missing are known to be for 7 days only
				b.answer = func(w http.ResponseWriter, r *http.Request) bool { return r.URL.Path == inRelease && down(w, r) }
			}
			b.clock.add(c.works)
			before := b.count("bookworm/InRelease")
			if err := use(b.client(Options{})); err != nil {
				t.Errorf("after %v: %v", c.works, err)
			}
			if n := b.count("bookworm/InRelease") - before; n != 3 {
				t.Errorf("asked %d times; want 3", n)
			}
			if !b.warned("502 Bad Gateway: check the network and the mirror (--mirror); using what was fetched on 2024-05-01 12:00 UTC") {
				t.Errorf("warnings are %q", b.warnings)
			}
			b.clock.add(c.not - c.works)
			if err := use(b.client(Options{})); err == nil || !strings.Contains(err.Error(), "502") {
				t.Errorf("after %v: error is %v", c.not, err)
			}
		})
	}
}

func TestBriefFailureIsTriedAgain(t *testing.T) {
	b := newBench(t)
	b.publish(published{pocket: "bookworm", packages: stanzas(basePackages)})
	b.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if b.hits[r.URL.Path] < 3 {
			w.WriteHeader(http.StatusServiceUnavailable)
			return true
		}
		return false
	}
	if err := use(b.client(Options{})); err != nil {
		t.Error(err)
	}
}

func TestOlderIndexIsRefused(t *testing.T) {
	b := newBench(t)
	b.publish(published{pocket: "bookworm", packages: stanzas(basePackages)})
	if err := use(b.client(Options{})); err != nil {
		t.Fatal(err)
	}
	b.publish(published{pocket: "bookworm", date: epoch.AddDate(0, 0, -1), packages: stanzas(strings.Replace(basePackages, "bc 1\n", "bc 0\n", 1))})
	l, err := b.client(Options{Refresh: true}).Lock(t.Context(), kernel("6.1.0-1-amd64"), kernels.Extra{})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range l.Toolchain {
		if k.Name == "bc" && k.Version != "1" {
			t.Errorf("bc %s was taken from the older index", k.Version)
		}
	}
	if !b.warned("older than the one of 2024-05-01 11:00 UTC") {
		t.Errorf("warnings are %q", b.warnings)
	}
	b.clock.add(8 * 24 * time.Hour)
	if err := use(b.client(Options{})); err == nil || !strings.Contains(err.Error(), "older than") {
		t.Errorf("when the newer index is too old as well: error is %v", err)
	}
}

func TestDamagedCacheIsMadeAnew(t *testing.T) {
	b := newBench(t)
	b.publish(published{pocket: "bookworm", packages: stanzas(basePackages)})
	want, err := b.client(Options{}).Lock(t.Context(), kernel("6.1.0-1-amd64"), kernels.Extra{})
	if err != nil {
		t.Fatal(err)
	}
	files := append(append(b.cached(".idx"), b.cached("state")...), b.cached("")...)
	hit := map[string]bool{}
	for _, path := range files {
		data := mustRead(t, path)
		if hit[path] || len(data) == 0 {
			continue
		}
		hit[path] = true
		for what, damaged := range map[string][]byte{
			"shortened": data[:len(data)/2],
			"emptied":   {},
			"changed":   append(append(append([]byte{}, data[:len(data)/2]...), data[len(data)/2]^1), data[len(data)/2+1:]...),
		} {
			for _, m := range b.cached("") { // answers would hide the damage
				if filepath.Base(filepath.Dir(m)) == "memo" && m != path {
					os.Remove(m)
				}
			}
			if err := os.WriteFile(path, damaged, 0o644); err != nil {
				t.Fatal(err)
			}
			got, err := b.client(Options{}).Lock(t.Context(), kernel("6.1.0-1-amd64"), kernels.Extra{})
			if err != nil {
				t.Errorf("%s %s: %v", path, what, err)
			} else if got.Digest() != want.Digest() {
				t.Errorf("%s %s: another lock", path, what)
			}
			if now := mustRead(t, path); len(now) != len(data) {
				t.Errorf("%s %s: not made anew", path, what)
			}
		}
	}
	if len(hit) < 3 {
		t.Errorf("only %v were damaged", hit)
	}
}

func TestByHashFallsBack(t *testing.T) {
	for _, pub := range []published{{noByHash: true}, {noHashFiles: true}} {
		b := newBench(t)
		pub.pocket, pub.packages = "bookworm", stanzas(basePackages)
		b.publish(pub)
		if err := use(b.client(Options{})); err != nil {
			t.Fatal(err)
		}
		if n := b.count("amd64/Packages.gz"); n != 1 {
			t.Errorf("the plain path was asked for %d times; want 1", n)
		}
	}
}

func TestProcessesShareACache(t *testing.T) {
	b := newBench(t)
	b.publish(published{pocket: "bookworm", packages: stanzas(basePackages)})
	var wg sync.WaitGroup
	for range 8 {
		p := b.client(Options{})
		wg.Go(func() {
			if err := use(p); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := b.count("bookworm/InRelease"); n != 1 {
		t.Errorf("asked %d times; want 1", n)
	}
	if left := b.cached("file-"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestMissingSecurityWarns(t *testing.T) {
	b := newBench(t)
	b.publish(published{pocket: "bookworm", packages: stanzas(basePackages)})
	if err := use(b.client(Options{})); err != nil {
		t.Fatal(err)
	}
	if !b.warned("/debian-security/dists/bookworm-security/InRelease does not exist") {
		t.Errorf("warnings are %q", b.warnings)
	}
}

func TestCancel(t *testing.T) {
	b := newBench(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	cancel(stop)
	if _, err := b.client(Options{}).Kernels(ctx, "bookworm", "amd64"); !errors.Is(err, stop) && !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

func TestProgress(t *testing.T) {
	b := newBench(t)
	b.publish(published{pocket: "bookworm", packages: stanzas(basePackages)})
	var got string
	if err := use(b.client(Options{Progress: func(what string, done, total int64) { got = fmt.Sprint(what, done == total && total > 0) }})); err != nil {
		t.Fatal(err)
	}
	if got != "bookworm amd64true" {
		t.Errorf("progress is %q", got)
	}
}

func TestStalledMirrorIsGivenUp(t *testing.T) {
	b := newBench(t)
	b.answer = func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("Content-Length", "100")
		w.Write([]byte("half"))
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	}
	p := b.client(Options{})
	p.asker.Net.Stall = 20 * time.Millisecond
	done := make(chan error, 1)
	go func() { done <- use(p) }()
	select {
	case err := <-done:
		if !errors.Is(err, mirror.ErrStalled) {
			t.Errorf("error is %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("still waiting")
	}
}

func TestClientUsesTheEnvironmentsProxy(t *testing.T) {
	p, err := New("debian", Options{CacheDir: t.TempDir(), Etc: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if tr, ok := p.asker.Net.Client.Transport.(*http.Transport); !ok || tr.Proxy == nil {
		t.Errorf("no proxy function in %v", p.asker.Net.Client.Transport)
	}
}

// TestVanishedPocket: a mirror that no longer has the security updates does not take them away at once, and cannot bring back
// older ones later.
func TestVanishedPocket(t *testing.T) {
	b := newBench(t)
	b.publish(published{pocket: "bookworm", packages: stanzas(basePackages)})
	security := published{archive: "debian-security", pocket: "bookworm-security", packages: stanzas("bc 2")}
	b.publish(security)
	version := func() string {
		t.Helper()
		l, err := b.client(Options{}).Lock(t.Context(), kernel("6.1.0-1-amd64"), kernels.Extra{})
		if err != nil {
			t.Fatal(err)
		}
		return l.Toolchain[1].Name + " " + l.Toolchain[1].Version
	}
	if got := version(); got != "bc 2" {
		t.Errorf("with security updates: %s", got)
	}
	delete(b.files, "/debian-security/dists/bookworm-security/InRelease")
	b.clock.add(7 * time.Hour)
	if got := version(); got != "bc 2" || !b.warned("using what was fetched on 2024-05-01 12:00 UTC") {
		t.Errorf("a little after they vanished: %s, warnings %q", got, b.warnings)
	}
	b.clock.add(8 * 24 * time.Hour)
	if got := version(); got != "bc 1" || !b.warned("security updates of it are left out") {
		t.Errorf("long after they vanished: %s, warnings %q", got, b.warnings)
	}
	b.warnings = nil
	if version(); !b.warned("security updates of it are left out") {
		t.Errorf("at the next run: warnings %q", b.warnings)
	}
	security.date, security.packages = epoch.Add(-2*time.Hour), stanzas("bc 1.5")
	b.publish(security)
	b.clock.add(7 * time.Hour)
	if got := version(); got != "bc 1" || !b.warned("older than the one of") {
		t.Errorf("with older ones: %s, warnings %q", got, b.warnings)
	}
}

// What a process that was killed while it wrote has left goes when another writes, even if that downloads nothing.
func TestUnfinishedFilesAreRemoved(t *testing.T) {
	b := newBench(t)
	b.publish(published{pocket: "bookworm", packages: stanzas(basePackages)})
	if err := use(b.client(Options{})); err != nil {
		t.Fatal(err)
	}
	left := filepath.Join(b.cache, "debian/tmp/file-1")
	if err := os.WriteFile(left, []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	b.clock.add(repo.MaxAge + time.Minute)
	if err := use(b.client(Options{})); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(left); err == nil {
		t.Errorf("%s is still there", left)
	}
}
