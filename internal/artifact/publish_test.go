package artifact_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1registry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registrytest"
)

// TestMain lets the test binary be another process that pushes.
func TestMain(m *testing.M) {
	if ref := os.Getenv("ARTIFACT_TEST_PUSH"); ref != "" {
		if err := pushAlone(ref, os.Getenv("ARTIFACT_TEST_RELEASE"), os.Getenv("ARTIFACT_TEST_NAIVE") != ""); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func publication(release string) (artifact.Publication, error) {
	m := attachable()
	m.Kernel.Release = release
	m.Key = hash(release)
	img, err := artifact.New(m, []artifact.File{file("a.ko", "for "+release)})
	return artifact.Publication{Image: img, Log: []byte("built for " + release), Created: time.Unix(1e9, 0), Lock: []byte("the lock")}, err
}

// pushAlone pushes the artifact of a kernel. Naively, an index is read, changed and written.
func pushAlone(ref, release string, naive bool) error {
	ctx := context.Background()
	r, err := registry.Parse(ref)
	if err != nil {
		return err
	}
	c, err := registry.New(registry.Options{})
	if err != nil {
		return err
	}
	repo, err := c.Open(r)
	if err != nil {
		return err
	}
	p, err := publication(release)
	if err != nil {
		return err
	}
	io.ReadAll(os.Stdin) // until all are there
	if !naive {
		_, err := artifact.Publish(ctx, repo, []artifact.Publication{p})
		return err
	}
	if err := repo.Push(ctx, "3.23_-1-d-s-"+release, p.Image); err != nil {
		return err
	}
	idx := &v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex}
	if _, raw, err := repo.Manifest(ctx, "3.23_-1"); err == nil {
		if idx, err = v1.ParseIndexManifest(bytes.NewReader(raw)); err != nil {
			return err
		}
	}
	d, err := repo.Head(ctx, "3.23_-1-d-s-"+release)
	if err != nil {
		return err
	}
	idx.Manifests = append(idx.Manifests, d)
	raw, err := json.Marshal(idx)
	if err != nil {
		return err
	}
	return repo.PutManifest(ctx, "3.23_-1", types.OCIImageIndex, raw)
}

// pushers lets n processes push to one repository at once, each another kernel.
func pushers(t *testing.T, n int, ref string, naive bool) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var start []io.Closer
	for i := range n {
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), "ARTIFACT_TEST_PUSH="+ref, fmt.Sprintf("ARTIFACT_TEST_RELEASE=6.1.0-%d-amd64", i))
		if naive {
			cmd.Env = append(cmd.Env, "ARTIFACT_TEST_NAIVE=1")
		}
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		start = append(start, in)
		wg.Go(func() {
			if err := cmd.Wait(); err != nil {
				t.Errorf("pusher %d: %v\n%s", i, err, &out)
			}
		})
	}
	for _, in := range start {
		in.Close()
	}
	wg.Wait()
}

// adverse makes n pushers undo each other's changes as far as it can: their tags come one after the other, all see that there is no
// index yet, and the less of them an index has, the later it is written.
func adverse(h http.Handler, n int) http.Handler {
	var mu sync.Mutex
	tags, reads := 0, 0
	all := make(chan struct{})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		index := strings.HasSuffix(r.URL.Path, "/manifests/3.23_-1")
		switch {
		case r.Method == http.MethodPut && index:
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			r.Body = io.NopCloser(bytes.NewReader(body))
			time.Sleep(time.Duration(n-bytes.Count(body, []byte(`"platform"`)))*10*time.Millisecond + rand.N(10*time.Millisecond))
			h.ServeHTTP(w, r)
		case r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "-amd64"):
			mu.Lock()
			tags++
			wait := tags
			mu.Unlock()
			time.Sleep(time.Duration(wait) * 10 * time.Millisecond)
			h.ServeHTTP(w, r)
		case r.Method == http.MethodGet && index:
			rec := httptest.NewRecorder()
			h.ServeHTTP(rec, r)
			mu.Lock()
			if reads++; reads == n {
				close(all)
			}
			mu.Unlock()
			select {
			case <-all: // later ones find it closed
			case <-time.After(10 * time.Second):
			}
			for k, v := range rec.Header() {
				w.Header()[k] = v
			}
			w.WriteHeader(rec.Code)
			w.Write(rec.Body.Bytes())
		default:
			h.ServeHTTP(w, r)
		}
	})
}

// Eight processes push eight kernels to one index at once.
func TestConcurrentPushers(t *testing.T) {
	const n = 8
	ctx := context.Background()
	serve := func(t *testing.T, h http.Handler) string {
		s := httptest.NewServer(adverse(h, n))
		t.Cleanup(s.Close)
		return strings.TrimPrefix(s.URL, "http://") + "/team/mod"
	}
	inProcess := func(t *testing.T) string { return serve(t, newRegistry(v1registry.WithReferrersSupport(true))) }
	distribution := func(t *testing.T) string { // the real thing, without the referrers API
		r := registrytest.Start(t, registrytest.Options{})
		return serve(t, httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: r.Host}))
	}
	want := func(t *testing.T) v1.Hash { // what one who pushes all makes of them
		var list []artifact.Publication
		for i := range n {
			p, err := publication(fmt.Sprintf("6.1.0-%d-amd64", i))
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, p)
		}
		out, err := artifact.Publish(ctx, openRepo(t, "oci:"+filepath.Join(t.TempDir(), "x")), list)
		if err != nil {
			t.Fatal(err)
		}
		return out.Index
	}
	for name, ref := range map[string]func(*testing.T) string{
		"registry": inProcess, "distribution": distribution, "layout": func(t *testing.T) string { return "oci:" + filepath.Join(t.TempDir(), "layout") },
	} {
		t.Run(name, func(t *testing.T) {
			ref := ref(t)
			pushers(t, n, ref, false)
			repo := openRepo(t, ref)
			idx, err := artifact.ReadIndex(ctx, repo, "3.23-1")
			if err != nil || len(idx.Entries) != n || idx.Digest != want(t) {
				t.Errorf("the index has %d entries and digest %s, %v; want %d", len(idx.Entries), idx.Digest, err, n)
			}
			for _, e := range idx.Entries {
				got, err := artifact.ReadAttachments(ctx, repo, e.Digest)
				if err != nil || string(got.Log) != "built for "+e.Kernel.Release || string(got.Lock) != "the lock" || string(got.Symvers) != exported {
					t.Errorf("%s: attachments %+v, %v", e.Tag, got, err)
				}
			}
		})
	}
	// The test can fail: who reads the index, changes and writes it, loses what others write.
	t.Run("naive", func(t *testing.T) {
		ref := inProcess(t)
		pushers(t, n, ref, true)
		_, raw, err := openRepo(t, ref).Manifest(ctx, "3.23_-1")
		if err != nil {
			t.Fatal(err)
		}
		m, err := v1.ParseIndexManifest(bytes.NewReader(raw))
		if err != nil || len(m.Manifests) >= n {
			t.Errorf("no entry was lost: the test provokes nothing (%d, %v)", len(m.Manifests), err)
		}
	})
}

func publishOne(t *testing.T, repo *registry.Repo, release string) artifact.Published {
	t.Helper()
	p, err := publication(release)
	if err != nil {
		t.Fatal(err)
	}
	out, err := artifact.Publish(context.Background(), repo, []artifact.Publication{p})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func releases(t *testing.T, repo *registry.Repo) []string {
	t.Helper()
	idx, err := artifact.ReadIndex(context.Background(), repo, "3.23-1")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range idx.Entries {
		out = append(out, e.Kernel.Release)
	}
	return out
}

func TestPublish(t *testing.T) {
	stores(t, func(t *testing.T, open func() *registry.Repo) {
		ctx, repo := context.Background(), open()
		first := publishOne(t, repo, "6.1.0-2-amd64")
		if len(first.Entries) != 1 || first.Entries[0].Tag != "3.23_-1-debian-bookworm-6.1.0-2-amd64" || len(first.Warnings) != 0 {
			t.Errorf("Publish = %+v", first)
		}
		if again := publishOne(t, open(), "6.1.0-2-amd64"); again.Index != first.Index {
			t.Errorf("pushed again, the index is %s; want %s", again.Index, first.Index)
		}
		if e := first.Entries[0]; e.Size < 1024 || e.Headers != "6.1.192-2" || e.Symvers != hash("symvers") || e.Module != "xtables-addons" {
			t.Errorf("entry %+v", e)
		}

		// One died after its tag was pushed.
		p, err := publication("6.1.0-1-amd64")
		if err != nil {
			t.Fatal(err)
		}
		if err := repo.Push(ctx, "3.23_-1-debian-bookworm-6.1.0-1-amd64", p.Image); err != nil {
			t.Fatal(err)
		}
		// Tags that are not what they say.
		for _, tag := range []string{"3.23_-1-debian-bookworm-other", "3.23_-1-debian-bookworm-index"} {
			if err := repo.Push(ctx, tag, p.Image); err != nil {
				t.Fatal(err)
			}
		}
		if err := repo.PutManifest(ctx, "3.23_-1-debian-bookworm-index", types.OCIImageIndex, []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`)); err != nil {
			t.Fatal(err)
		}
		out := publishOne(t, open(), "6.1.0-3-amd64")
		if got := releases(t, open()); !slices.Equal(got, []string{"6.1.0-1-amd64", "6.1.0-2-amd64", "6.1.0-3-amd64"}) {
			t.Errorf("the index has %q", got)
		}
		if len(out.Warnings) != 2 || !strings.Contains(fmt.Sprint(out.Warnings), "bookworm-other") {
			t.Errorf("warnings %v", out.Warnings)
		}

		// A kernel's tag that moves takes its entry along.
		m := attachable()
		m.Kernel.Release, m.Key = "6.1.0-1-amd64", hash("rebuilt")
		img := newImage(t, m, file("a.ko", "other"))
		if err := repo.Push(ctx, "3.23_-1-debian-bookworm-6.1.0-1-amd64", img); err != nil {
			t.Fatal(err)
		}
		publishOne(t, open(), "6.1.0-3-amd64")
		idx, err := artifact.ReadIndex(ctx, open(), "3.23_-1")
		if err != nil || len(idx.Entries) != 3 || idx.Entries[0].Digest.Hex != digest(t, img) {
			t.Errorf("index %+v, %v", idx, err)
		}
	})
}

// The forms of an index and of attachments, in their digests. A change of them is a change of the format.
func TestPublishGolden(t *testing.T) {
	repo := openRepo(t, "oci:"+filepath.Join(t.TempDir(), "layout"))
	publishOne(t, repo, "6.1.0-2-amd64")
	out := publishOne(t, repo, "6.1.0-1-amd64")
	list, err := repo.Referrers(context.Background(), out.Entries[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	got := []string{out.Index.Hex}
	for _, d := range list {
		got = append(got, d.ArtifactType+" "+d.Digest.Hex)
	}
	slices.Sort(got[1:])
	if want := []string{
		"15f55d628eeeed27be41fd9cf2267f8c9f2598665a7932ed68fea89b9918f829",
		"application/vnd.dev.godkms-hermetic.lock.v1 38da6634516876d403724b5128362e771f3387db0d362726192d22bdb21630ae",
		"application/vnd.dev.godkms-hermetic.log.v1 0d473fe36a68a181f7a1063fc54e3800ac9f0905b5a4e57765a4c2f99fc282c0",
		"application/vnd.dev.godkms-hermetic.symvers.v1 093c0e9d811464b392b4928ce6e60b4420ee17ed560e641c692c3e73011d403b",
	}; !slices.Equal(got, want) {
		t.Errorf("digests:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestPublishRefuses(t *testing.T) {
	stores(t, func(t *testing.T, open func() *registry.Repo) {
		ctx, repo := context.Background(), open()
		of := func(change func(*artifact.Meta)) artifact.Publication {
			m := meta()
			change(&m)
			return artifact.Publication{Image: newImage(t, m, file("a.ko", "a"))}
		}
		one := of(func(*artifact.Meta) {})
		none, err := artifact.Publish(ctx, repo, []artifact.Publication{{Image: newImage(t, skipped())}})
		if err != nil || len(none.Skipped) != 1 || none.Skipped[0] != meta().Kernel || none.Index != (v1.Hash{}) {
			t.Errorf("Publish of what was skipped = %+v, %v", none, err)
		}
		for name, list := range map[string][]artifact.Publication{
			"two versions":           {one, of(func(m *artifact.Meta) { m.Version = "2" })},
			"two modules":            {one, of(func(m *artifact.Meta) { m.Module = "other"; m.Kernel.Suite = "sid" })},
			"two are for":            {one, of(func(m *artifact.Meta) { m.Headers = "2" })},
			"more than the 128 that": {of(func(m *artifact.Meta) { m.Version = strings.Repeat("1", 120) })},
		} {
			if _, err := artifact.Publish(ctx, repo, list); err == nil {
				t.Errorf("Publish(%s) = nil", name)
			}
		}
		if tags, err := repo.Tags(ctx); err == nil && len(tags) > 0 {
			t.Errorf("%q were pushed", tags)
		}
		if _, err := artifact.Publish(ctx, repo, []artifact.Publication{one}); err != nil {
			t.Fatal(err)
		}
		for _, version := range []string{"3.23-1", "4"} {
			other := of(func(m *artifact.Meta) { m.Module, m.Version = "Other", version })
			if _, err := artifact.Publish(ctx, open(), []artifact.Publication{other}); err == nil || !strings.Contains(err.Error(), "/other\"") && !strings.Contains(err.Error(), ":other\"") {
				t.Errorf("Publish of another module = %v; want the name of another repository", err)
			}
		}
		if tags, err := repo.Tags(ctx); err != nil || len(slices.DeleteFunc(tags, func(s string) bool { return strings.HasPrefix(s, "sha256-") })) != 2 {
			t.Errorf("tags %q, %v", tags, err)
		}
	})
}

// What is pushed but isn't in the index is said so, and pushing again mends it.
func TestPublishIndexFails(t *testing.T) {
	fails := true
	inner := newRegistry(v1registry.WithReferrersSupport(true))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fails && r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/3.23_-1") {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	defer s.Close()
	repo := openRepo(t, strings.TrimPrefix(s.URL, "http://")+"/mod")
	p, err := publication("6.1.0-1-amd64")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := artifact.Publish(context.Background(), repo, []artifact.Publication{p}); !errors.Is(err, artifact.ErrIndex) || !errors.Is(err, registry.ErrDenied) {
		t.Errorf("Publish = %v; want ErrIndex and ErrDenied", err)
	}
	fails = false
	publishOne(t, repo, "6.1.0-1-amd64")
	if got := releases(t, repo); len(got) != 1 {
		t.Errorf("the index has %q", got)
	}
}

// Another program may write the same index in another way at the same time: the two must not go on correcting each other.
func TestPublishOtherWriter(t *testing.T) {
	puts := 0
	inner := newRegistry(v1registry.WithReferrersSupport(true))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/3.23_-1") {
			puts++
			body, err := io.ReadAll(r.Body)
			if err != nil {
				return
			}
			var other bytes.Buffer
			if err := json.Indent(&other, body, "", "  "); err != nil {
				t.Error(err)
			}
			r.Body = io.NopCloser(&other)
		}
		inner.ServeHTTP(w, r)
	}))
	defer s.Close()
	repo := openRepo(t, strings.TrimPrefix(s.URL, "http://")+"/mod")
	publishOne(t, repo, "6.1.0-1-amd64")
	if got := releases(t, repo); len(got) != 1 || puts != 1 {
		t.Errorf("the index has %q after it was written %d times", got, puts)
	}
}
