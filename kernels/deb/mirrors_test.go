package deb

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// pair is a bench with a second mirror.
type pair struct {
	*bench
	other *archiveRepo
}

func newPair(t *testing.T) *pair { return &pair{newBench(t), newRepo(t)} }

// both are the options of a client of both, the bench's own mirror first.
func (p *pair) both() Options {
	return Options{Mirrors: map[string][]string{"debian": {p.url + "/debian", p.other.url + "/debian"}}}
}

func (p *pair) swapped() Options {
	return Options{Mirrors: map[string][]string{"debian": {p.other.url + "/debian", p.url + "/debian"}}}
}

// onlyOld are packages of an older snapshot: the same, but for an older bc and another kernel.
var onlyOld = strings.ReplaceAll(strings.Replace(basePackages, "bc 1\n", "bc 0\n", 1), "6.1.0-1", "6.1.0-0")

// publishTwo gives the bench's mirror what is new and the other one what it was months ago.
func (p *pair) publishTwo() {
	p.publish(published{pocket: "bookworm", packages: stanzas(basePackages)})
	p.other.publish(published{pocket: "bookworm", date: epoch.AddDate(0, -3, 0), packages: stanzas(onlyOld)})
}

func releases(t *testing.T, p *Provider) []string {
	t.Helper()
	list, err := p.Kernels(t.Context(), "bookworm", "amd64")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, k := range list {
		out = append(out, k.Release)
	}
	slices.Sort(out)
	return out
}

func lockAt(t *testing.T, p *Provider, release string) kernels.Lock {
	t.Helper()
	l, err := p.Lock(t.Context(), kernel(release), kernels.Extra{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func find(t *testing.T, l kernels.Lock, name string) kernels.Package {
	t.Helper()
	for _, p := range slices.Concat(l.Toolchain, l.Headers) {
		if p.Name == name {
			return p
		}
	}
	t.Fatalf("no %s in the lock", name)
	return kernels.Package{}
}

// TestSnapshotsAreUnited: what one mirror has no longer, or not yet, comes from the other.
func TestSnapshotsAreUnited(t *testing.T) {
	p := newPair(t)
	p.publishTwo()
	want := []string{"6.1.0-0-amd64", "6.1.0-0-cloud-amd64", "6.1.0-1-amd64", "6.1.0-1-cloud-amd64"}
	var digests []string
	for _, o := range []Options{p.both(), p.swapped()} {
		c := p.client(o)
		if got := releases(t, c); !slices.Equal(got, want) {
			t.Errorf("kernels are %v; want %v", got, want)
		}
		old := lockAt(t, c, "6.1.0-0-amd64")
		digests = append(digests, old.Digest().String())
		first := strings.TrimSuffix(o.Mirrors["debian"][0], "/debian")
		for _, q := range slices.Concat(old.Toolchain, old.Headers) {
			switch has := map[bool]string{true: p.other.url, false: p.url}; {
			case strings.Contains(q.Name, "6.1.0-0"):
				if !strings.HasPrefix(q.URL, has[true]+"/") || q.Mirrors != nil {
					t.Errorf("%s is at %s and %v; want it at %s alone", q.Name, q.URL, q.Mirrors, has[true])
				}
			case q.Name == "bc":
				if q.Version != "1" || !strings.HasPrefix(q.URL, p.url) || q.Mirrors != nil {
					t.Errorf("bc is %+v; want the new one", q)
				}
			case !strings.HasPrefix(q.URL, first) || len(q.Mirrors) != 1 || strings.HasPrefix(q.Mirrors[0], first):
				t.Errorf("%s is at %s and %v; want it at both, %s first", q.Name, q.URL, q.Mirrors, first)
			}
		}
		if got := p.warnings; slices.ContainsFunc(got, func(s string) bool { return !strings.Contains(s, "security updates") }) {
			t.Errorf("warnings are %q", got)
		}
	}
	if digests[0] != digests[1] {
		t.Errorf("the mirrors' order makes two locks")
	}
	list, err := p.client(p.both()).Indexes(t.Context(), "bookworm", "amd64")
	if err != nil || len(list) != 2 || list[0].Name != "bookworm" || list[0].Archive != "debian" || list[0].URL != p.url+"/debian" ||
		!list[1].Date.Equal(epoch.AddDate(0, -3, 0)) || list[0].Digest == list[1].Digest || list[0].Digest.Hex == "" {
		t.Errorf("Indexes = %+v, %v", list, err)
	}
}

// One version with two digests is what the first mirror says, in its index of whichever pocket.
func TestMirrorsDisagree(t *testing.T) {
	p := newPair(t)
	p.publish(published{pocket: "bookworm", packages: stanzas(basePackages)})
	p.other.publish(published{pocket: "bookworm", packages: strings.Replace(stanzas(basePackages), "Package: bc\nVersion: 1\nArchitecture: amd64\nFilename: pool/main/bc_1.deb\nSize: ", "Package: bc\nVersion: 1\nArchitecture: amd64\nFilename: pool/main/bc_1.deb\nSize: 9", 1)})
	for _, o := range []Options{p.both(), p.swapped()} {
		bc := find(t, lockAt(t, p.client(o), "6.1.0-1-amd64"), "bc")
		if !strings.HasPrefix(bc.URL, o.Mirrors["debian"][0]) || bc.Mirrors != nil || (bc.Size > 50) != strings.HasPrefix(bc.URL, p.other.url) {
			t.Errorf("bc is %+v; want it as the first mirror has it", bc)
		}
	}
}

// An index that both have is downloaded once, from whichever gives it.
func TestSameIndexIsSharedByMirrors(t *testing.T) {
	p := newPair(t)
	for _, r := range []*archiveRepo{p.archiveRepo, p.other} {
		r.publish(published{pocket: "bookworm", packages: stanzas(basePackages)})
	}
	l := lockAt(t, p.client(p.both()), "6.1.0-1-amd64")
	if q := find(t, l, "make"); !strings.HasPrefix(q.URL, p.url) || len(q.Mirrors) != 1 || !strings.HasPrefix(q.Mirrors[0], p.other.url) {
		t.Errorf("make is at %s and %v; want both", q.URL, q.Mirrors)
	}
	swapped := lockAt(t, p.client(p.swapped()), "6.1.0-1-amd64")
	if q := find(t, swapped, "make"); swapped.Digest() != l.Digest() || !strings.HasPrefix(q.URL, p.other.url) || len(q.Mirrors) != 1 {
		t.Errorf("in the other order make is at %s and %v, in lock %s; want the other first in %s", q.URL, q.Mirrors, swapped.Digest(), l.Digest())
	}
	hashes := func(r *archiveRepo) (n int) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for path, hits := range r.hits {
			if strings.Contains(path, "/by-hash/") {
				n += hits
			}
		}
		return n
	}
	if a, b := hashes(p.archiveRepo), hashes(p.other); a+b != 1 {
		t.Errorf("it was asked for %d and %d times; want once", a, b)
	}
	p.cache = t.TempDir()
	p.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/binary-amd64/") {
			w.WriteHeader(http.StatusInternalServerError)
			return true
		}
		return false
	}
	p.warnings = nil
	if again := lockAt(t, p.client(p.both()), "6.1.0-1-amd64"); again.Digest() != l.Digest() || p.warned("other mirrors") {
		t.Errorf("where one doesn't give it: another lock, or warnings %q", p.warnings)
	}
}

// mirrorFaults are what can be wrong with a mirror. All of them are refused, whole, each with a word about it; none stops what the other
// mirror has. breaks is called after the mirror was published.
var mirrorFaults = []struct {
	name   string
	pub    func(*published)
	breaks func(*archiveRepo)
	says   string // in the one warning, which names the mirror
}{
	{"500", nil, func(r *archiveRepo) {
		r.answer = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(500); return true }
	}, "500 Internal Server Error"},
	{"dies", nil, func(r *archiveRepo) {
		r.answer = func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }
	}, "EOF"},
	{"stalls", nil, func(r *archiveRepo) {
		r.answer = func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Length", "100")
			w.Write([]byte("half"))
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		}
	}, "the mirror stopped sending"},
	{"no such suite", nil, func(r *archiveRepo) { delete(r.files, inRelease) }, "404 Not Found"},
	{"garbage", nil, func(r *archiveRepo) { r.files[inRelease] = []byte("<html>log in</html>") }, "it is not signed"},
	{"truncated release", nil, func(r *archiveRepo) { r.files[inRelease] = r.files[inRelease][:300] }, "it is not signed"},
	{"wrong key", func(p *published) { p.key = newKey("other") }, nil, "none of the distribution's keys"},
	{"altered", nil, func(r *archiveRepo) {
		r.files[inRelease] = []byte(strings.Replace(string(r.files[inRelease]), "Suite: whatever", "Suite: whatsoever", 1))
	}, "signature does not hold"},
	{"expired", func(p *published) { p.validUntil = epoch.Add(-time.Hour) }, nil, "accept it with --accept-expired"},
	{"another suite's", func(p *published) { p.codename = "trixie" }, nil, `index of "trixie"`},
	{"from the future", func(p *published) { p.date = epoch.AddDate(0, 0, 2) }, nil, "in the future"},
	{"no index", nil, func(r *archiveRepo) { dropIndex(r) }, "404 Not Found"},
	{"altered index", nil, func(r *archiveRepo) { changeIndex(r, func(b []byte) []byte { b[50] ^= 1; return b }) }, "signed is"},
	{"truncated index", nil, func(r *archiveRepo) { changeIndex(r, func(b []byte) []byte { return b[:100] }) }, "it ends after 100 of"},
	{"longer index", nil, func(r *archiveRepo) { changeIndex(r, func(b []byte) []byte { return append(b, 0) }) }, "too large"},
	{"malformed index", func(p *published) { p.packages = p.packages + "nonsense\n" }, nil, "is no field"},
}

func changeIndex(r *archiveRepo, change func([]byte) []byte) {
	for path, b := range r.files {
		if strings.Contains(path, "/binary-amd64/") {
			r.files[path] = change(slices.Clone(b))
		}
	}
}

func dropIndex(r *archiveRepo) {
	for path := range r.files {
		if strings.Contains(path, "/binary-amd64/") {
			delete(r.files, path)
		}
	}
}

func TestBadMirrorBesideAGoodOne(t *testing.T) {
	for _, c := range mirrorFaults {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := newPair(t)
			p.publish(published{pocket: "bookworm", packages: stanzas(basePackages)})
			bad := published{pocket: "bookworm", packages: stanzas(onlyOld)}
			if c.pub != nil {
				c.pub(&bad)
			}
			p.other.publish(bad)
			if c.breaks != nil {
				c.breaks(p.other)
			}
			client := func() *Provider {
				q := p.client(p.swapped()) // the bad one first
				q.asker.Net.Stall = 300 * time.Millisecond
				return q
			}
			q := client()
			l := lockAt(t, q, "6.1.0-1-amd64")
			if got, want := releases(t, q), []string{"6.1.0-1-amd64", "6.1.0-1-cloud-amd64"}; !slices.Equal(got, want) {
				t.Errorf("kernels are %v; want %v", got, want)
			}
			for _, k := range slices.Concat(l.Toolchain, l.Headers) {
				if !strings.HasPrefix(k.URL, p.url+"/") || k.Mirrors != nil {
					t.Fatalf("%s is taken from %s, %v", k.Name, k.URL, k.Mirrors)
				}
			}
			told := slices.DeleteFunc(slices.Clone(p.warnings), func(s string) bool { // of the other archive it's told by itself
				return strings.Contains(s, "security updates") || strings.Contains(s, "/debian-security can't be looked into")
			})
			if len(told) != 1 || !strings.Contains(told[0], p.other.url) || !strings.Contains(told[0], c.says) || strings.Contains(told[0], "\n") {
				t.Errorf("warnings are %q; want one that names %s and says %q", told, p.other.url, c.says)
			}
			for range 2 { // nothing was kept that would say otherwise the next time
				_, err := q.Lock(t.Context(), kernel("6.1.0-0-amd64"), kernels.Extra{})
				if !errors.Is(err, kernels.ErrNotFound) || !strings.Contains(err.Error(), "; not looked into: ") ||
					!strings.Contains(err.Error(), p.other.url) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("a kernel that only the bad one has: %v", err)
				}
				if list := q.Unread("bookworm"); len(list) == 0 || !strings.Contains(list[0].Error(), p.other.url) {
					t.Errorf("Unread = %v", list)
				}
				r := kernels.Resolver{Providers: map[string]kernels.Provider{"debian": q}, Arch: "amd64"}
				sel, err := kernels.ParseSelectors("debian/bookworm:6.1.0-0-amd64")
				if err != nil {
					t.Fatal(err)
				}
				answers, err := r.Resolve(t.Context(), sel)
				if err != nil || len(answers) != 1 {
					t.Fatal(answers, err)
				}
				err = answers[0].Err
				if !errors.Is(err, kernels.ErrNotFound) || !strings.Contains(err.Error(), "; not looked into: ") || !strings.Contains(err.Error(), p.other.url) {
					t.Errorf("a selector of it: %v", err)
				}
				q = client()
			}

			// Alone it's an error, and nothing of it is left.
			p.cache = t.TempDir()
			alone := p.client(Options{Mirrors: map[string][]string{"debian": {p.other.url + "/debian"}}})
			alone.asker.Net.Stall = 20 * time.Millisecond
			if err := use(alone); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("alone: %v", err)
			}
			if left := p.cached(".idx"); len(left) > 0 {
				t.Errorf("alone: left %v", left)
			}
		})
	}
}

// A mirror that is well again is used again.
func TestMirrorRecovers(t *testing.T) {
	p := newPair(t)
	p.publishTwo()
	index := map[string][]byte{}
	for path, b := range p.other.files {
		index[path] = b
	}
	dropIndex(p.other)
	if got := releases(t, p.client(p.both())); len(got) != 2 {
		t.Errorf("without the index: %v", got)
	}
	p.other.files = index
	if got := releases(t, p.client(p.both())); len(got) != 4 {
		t.Errorf("with it: %v", got)
	}
}

// Each mirror may be as old as it is, and not older than it was.
func TestRollbackIsAMirrorsOwn(t *testing.T) {
	p := newPair(t)
	p.publishTwo()
	if got := releases(t, p.client(p.both())); len(got) != 4 {
		t.Fatalf("kernels are %v", got)
	}
	p.publish(published{pocket: "bookworm", date: epoch.AddDate(0, 0, -1), packages: stanzas(strings.ReplaceAll(basePackages, "6.1.0-1", "6.1.0-9"))})
	o := p.both()
	o.Refresh = true
	if got := releases(t, p.client(o)); len(got) != 4 || slices.Contains(got, "6.1.0-9-amd64") {
		t.Errorf("after one went back: %v", got)
	}
	if !p.warned("older than the one of 2024-05-01 11:00 UTC that was seen before: use another mirror; using what was fetched on") {
		t.Errorf("warnings are %q", p.warnings)
	}
	p.clock.add(8 * 24 * time.Hour) // what is held is too old
	if got := releases(t, p.client(o)); len(got) != 2 || !slices.Contains(got, "6.1.0-0-amd64") {
		t.Errorf("long after that: %v", got)
	}
	if !p.warned("that was seen before: use another mirror; going on with the archive's other mirrors") {
		t.Errorf("warnings are %q", p.warnings)
	}
}

func TestAllMirrorsFail(t *testing.T) {
	p := newPair(t)
	p.publishTwo()
	p.other.publish(published{pocket: "bookworm", packages: stanzas(onlyOld), key: newKey("other")})
	down := func(w http.ResponseWriter, r *http.Request) bool { w.WriteHeader(502); return true }
	p.answer = down
	err := use(p.client(p.both()))
	if !errors.Is(err, kernels.ErrUntrusted) || errors.Is(err, kernels.ErrNotFound) || strings.Contains(err.Error(), "\n") {
		t.Errorf("error is %v", err)
	}
	for _, want := range []string{p.url, "502 Bad Gateway", p.other.url, "none of the distribution's keys"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v does not say %q", err, want)
		}
	}

	// What was had before stands in, of each mirror its own.
	p.answer = nil
	p.publishTwo()
	want := releases(t, p.client(p.both()))
	p.answer, p.other.answer = down, down
	p.clock.add(repo.MaxAge + time.Minute)
	if got := releases(t, p.client(p.both())); !slices.Equal(got, want) {
		t.Errorf("with what is held: %v; want %v", got, want)
	}
	if !p.warned(p.url+inRelease) || !p.warned(p.other.url+inRelease) {
		t.Errorf("warnings are %q", p.warnings)
	}
	p.clock.add(8 * 24 * time.Hour)
	if err := use(p.client(p.both())); err == nil {
		t.Error("what is held is used after 8 days")
	}
}

func TestMirrorsOffline(t *testing.T) {
	p := newPair(t)
	p.publishTwo()
	o := p.both()
	o.Offline = true
	if err := use(p.client(o)); err == nil || !strings.Contains(err.Error(), "without --offline") {
		t.Errorf("empty cache: %v", err)
	}
	releases(t, p.client(Options{})) // of the first one alone
	asked := p.count("") + p.other.count("")
	if got := releases(t, p.client(o)); len(got) != 2 || !p.warned("run once without --offline; going on") {
		t.Errorf("with the first one's: %v, warnings %q", got, p.warnings)
	}
	only := Options{Offline: true, Mirrors: map[string][]string{"debian": {"http://mirror.invalid/debian"}}}
	if got := releases(t, p.client(only)); len(got) != 2 { // as ever: whichever mirror it came from
		t.Errorf("with a mirror that was never asked: %v", got)
	}
	if n := p.count("") + p.other.count(""); n != asked {
		t.Errorf("%d requests while offline", n-asked)
	}
	releases(t, p.client(p.both()))
	if got := releases(t, p.client(o)); len(got) != 4 {
		t.Errorf("with both: %v", got)
	}
}

// A password goes to the mirror, and into nothing that is shown or tells of the mirror.
func TestPasswordsAreKept(t *testing.T) {
	p := newPair(t)
	p.publish(published{pocket: "bookworm", packages: stanzas(basePackages)})
	var user string
	p.answer = func(w http.ResponseWriter, r *http.Request) bool {
		user, _, _ = r.BasicAuth()
		return false
	}
	secret := func(u string) string { return strings.Replace(u, "://", "://me:secret@", 1) + "/debian" }
	c := p.client(Options{Mirrors: map[string][]string{"debian": {secret(p.url), secret(p.other.url)}}})
	if err := use(c); err != nil || user != "me" {
		t.Fatalf("user %q: %v", user, err)
	}
	_, missing := c.Lock(t.Context(), kernel("6.1.0-9-amd64"), kernels.Extra{})
	list, err := c.Indexes(t.Context(), "bookworm", "amd64")
	if err != nil || len(list) != 1 || list[0].URL != p.url+"/debian" {
		t.Errorf("Indexes = %+v, %v", list, err)
	}
	if said := fmt.Sprint(missing, p.warnings); strings.Contains(said, "secret") || !strings.Contains(said, p.other.url) {
		t.Errorf("it says %s", said)
	}
	for _, path := range p.cached(".state") {
		if strings.Contains(string(mustRead(t, path)), "secret") {
			t.Errorf("%s has it", path)
		}
	}
}
