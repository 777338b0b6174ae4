package cache_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1registry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/godkms-hermetic/godkms-hermetic/cache"
	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registrytest"
)

// A server is a registry that writes down what it's asked, and answers through whatever is put in front.
type server struct {
	*httptest.Server
	mu    sync.Mutex
	asked []string
	front func(w http.ResponseWriter, r *http.Request, next http.Handler)
}

func serve(t testing.TB, referrers bool) *server {
	t.Helper()
	s := &server{}
	inner := v1registry.New(v1registry.Logger(log.New(io.Discard, "", 0)), v1registry.WithReferrersSupport(referrers))
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.asked = append(s.asked, r.Method+" "+r.URL.Path)
		front := s.front
		s.mu.Unlock()
		if front != nil {
			front(w, r, inner)
			return
		}
		inner.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *server) place(front func(w http.ResponseWriter, r *http.Request, next http.Handler)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.front = front
}

// since gives what was asked since the last time.
func (s *server) since() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.asked
	s.asked = nil
	return out
}

func (s *server) ref() string { return strings.TrimPrefix(s.URL, "http://") + "/team/cache" }

func repo(t testing.TB, ref string) *registry.Repo {
	t.Helper()
	c, err := registry.New(registry.Options{})
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := registry.Parse(ref)
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Open(parsed)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// shared opens a store whose folder for temporary files must be empty in the end, and that warns of nothing.
func shared(t testing.TB, ref string) *cache.Registry {
	t.Helper()
	s, _ := warned(t, ref, 0)
	return s
}

func warned(t testing.TB, ref string, patience time.Duration) (*cache.Registry, func() []string) {
	t.Helper()
	var mu sync.Mutex
	var warnings []string
	taken := false
	temp := t.TempDir()
	t.Cleanup(func() {
		if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
			t.Errorf("files are left: %v, %v", left, err)
		}
		if !taken && len(warnings) > 0 {
			t.Errorf("warnings %q", warnings)
		}
	})
	return cache.NewRegistry(repo(t, ref), cache.RegistryOptions{Temp: temp, Patience: patience, Warn: func(s string) {
			mu.Lock()
			defer mu.Unlock()
			warnings = append(warnings, s)
		}}), func() []string {
			mu.Lock()
			defer mu.Unlock()
			taken = true
			out := warnings
			warnings = nil
			return out
		}
}

func TestRegistry(t *testing.T) {
	t.Run("registry", func(t *testing.T) {
		suite(t, func(t *testing.T) cache.Store { return shared(t, serve(t, true).ref()) })
	})
	t.Run("registry without the referrers API", func(t *testing.T) {
		suite(t, func(t *testing.T) cache.Store { return shared(t, serve(t, false).ref()) })
	})
	t.Run("layout", func(t *testing.T) {
		suite(t, func(t *testing.T) cache.Store { return shared(t, "oci:"+filepath.Join(t.TempDir(), "layout")) })
	})
}

// Debian's registry misses blobs for moments while several clients send them.
func TestDebianRegistry(t *testing.T) {
	atOnce(t, shared(t, registrytest.Start(t, registrytest.Options{Debian: true}).Host+"/team/cache"))
}

// What is there is not sent again: it's asked for once. A hit takes few requests. Another client sees all of it.
func TestRegistryTraffic(t *testing.T) {
	s := serve(t, true)
	put(t, shared(t, s.ref()), "a", "1")
	fresh := shared(t, s.ref())
	s.since()
	put(t, fresh, "a", "1")
	if got := s.since(); len(got) > 2 || !slices.Contains(got, "HEAD /v2/team/cache/manifests/key-"+hash("a").Hex) {
		t.Errorf("a second Put asks %q; want one HEAD after the login", got)
	}
	fresh = shared(t, s.ref())
	s.since()
	check(t, fresh, "a", "1")
	// Login, manifest, config, two layers; referrers, two manifests of them, since this registry doesn't tell of what kind they are, and
	// the log.
	if got := s.since(); len(got) > 9 {
		t.Errorf("a hit takes %d requests: %q", len(got), got)
	}
	with, err := artifact.ReadAttachmentsOf(context.Background(), repo(t, s.ref()), digest(t, image(t, "1")), artifact.Meta{Lock: hash("lock of 1")})
	if err != nil || string(with.Log) != "log of 1" || string(with.Lock) != "lock of 1" || time.Since(with.Created) > time.Minute {
		t.Errorf("attached are %q, %q of %s, %v", with.Log, with.Lock, with.Created, err)
	}
}

func digest(t testing.TB, img v1.Image) v1.Hash {
	t.Helper()
	h, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// A tag that moves between the two looks doesn't mix two entries.
func TestTagMoves(t *testing.T) {
	s := serve(t, true)
	store := shared(t, s.ref())
	put(t, store, "a", "1")
	put(t, store, "b", "2")
	var once sync.Once
	s.place(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		next.ServeHTTP(w, r)
		if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/manifests/key-"+hash("a").Hex) {
			once.Do(func() {
				raw, _ := image(t, "2").RawManifest()
				req := httptest.NewRequest(http.MethodPut, r.URL.Path, bytes.NewReader(raw))
				req.Header.Set("Content-Type", string(types.OCIManifestSchema1))
				got := httptest.NewRecorder()
				next.ServeHTTP(got, req)
				if got.Code != http.StatusCreated {
					t.Errorf("moving the tag: %d", got.Code)
				}
			})
		}
	})
	check(t, store, "a", "1")
	check(t, store, "a", "2")
}

// Damage of any kind is no hit, is named with the key, and stops nothing.
func TestRegistryDamage(t *testing.T) {
	alter := func(suffix string, with func([]byte) []byte) func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, suffix) {
				next.ServeHTTP(w, r)
				return
			}
			got := httptest.NewRecorder()
			next.ServeHTTP(got, r)
			body := with(got.Body.Bytes())
			if body == nil {
				http.NotFound(w, r)
				return
			}
			w.Header().Set("Content-Type", got.Header().Get("Content-Type"))
			w.Write(body)
		}
	}
	flip := func(b []byte) []byte { b = slices.Clone(b); b[len(b)/2] ^= 1; return b }
	gone := func([]byte) []byte { return nil }
	longer := func(b []byte) []byte { return append(slices.Clone(b), 'x') }
	config, err := image(t, "1").ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	tag := "/manifests/key-" + hash("a").Hex
	manifest := func(change func(m *v1.Manifest)) func([]byte) []byte {
		return func(b []byte) []byte {
			m, err := v1.ParseManifest(bytes.NewReader(b))
			if err != nil {
				t.Fatal(err)
			}
			change(m)
			b, _ = json.Marshal(m)
			return b
		}
	}
	for name, front := range map[string]func(w http.ResponseWriter, r *http.Request, next http.Handler){
		"layer":         alter(hash("1").String(), flip),
		"long layer":    alter(hash("1").String(), longer),
		"missing layer": alter(hash("1").String(), gone),
		"config":        alter(config.String(), flip),
		"lost config":   alter(config.String(), gone),
		"no manifest":   alter(tag, func([]byte) []byte { return []byte("{}}") }),
		"giant layer":   alter(tag, manifest(func(m *v1.Manifest) { m.Layers[1].Size = 1 << 40 })),
		"many layers":   alter(tag, manifest(func(m *v1.Manifest) { m.Layers = slices.Repeat(m.Layers, 100) })),
		"giant config":  alter(tag, manifest(func(m *v1.Manifest) { m.Config.Size = 1 << 30 })),
		"other digest":  alter(tag, manifest(func(m *v1.Manifest) { m.Layers[0].Digest.Algorithm = "sha512" })),
		"an index": func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if !strings.HasSuffix(r.URL.Path, tag) {
				next.ServeHTTP(w, r)
				return
			}
			w.Header().Set("Content-Type", string(types.OCIImageIndex))
			raw, _ := empty.Index.RawManifest()
			w.Write(raw)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, true)
			store, warnings := warned(t, s.ref(), 0)
			put(t, store, "a", "1")
			s.place(front)
			checkMissing(t, store, "a")
			if got := warnings(); len(got) != 1 || !strings.Contains(got[0], hash("a").Hex) || !strings.Contains(got[0], s.ref()) {
				t.Errorf("warnings %q", got)
			}
			s.place(nil)
			check(t, store, "a", "1")
		})
	}
	t.Run("log", func(t *testing.T) { // isn't the entry
		s := serve(t, true)
		store := shared(t, s.ref())
		put(t, store, "a", "1")
		for name, front := range map[string]func(w http.ResponseWriter, r *http.Request, next http.Handler){
			"can't be read":            alter(hash("log of 1").String(), flip),
			"has no log of this build": alter("/referrers/"+digest(t, image(t, "1")).String(), func([]byte) []byte { raw, _ := empty.Index.RawManifest(); return raw }),
		} {
			s.place(front)
			e, err := store.Get(context.Background(), hash("a"))
			if err != nil || !strings.Contains(string(e.Log), name) {
				t.Errorf("Get = %q, %v; want a log that says %q", e.Log, err, name)
			}
		}
	})
}

// A layout that was damaged is whole again after a Put.
func TestLayoutHeals(t *testing.T) {
	for _, what := range []string{"1", "manifest"} {
		dir := filepath.Join(t.TempDir(), "layout")
		store, warnings := warned(t, "oci:"+dir, 0)
		put(t, store, "a", "1")
		blob := hash("1")
		if what == "manifest" {
			blob = digest(t, image(t, "1"))
		}
		if err := os.WriteFile(filepath.Join(dir, "blobs/sha256", blob.Hex), []byte("2"), 0o644); err != nil {
			t.Fatal(err)
		}
		checkMissing(t, store, "a")
		if got := warnings(); len(got) != 1 {
			t.Errorf("warnings %q", got)
		}
		put(t, store, "a", "1")
		check(t, store, "a", "1")
	}
}

// A registry that hangs, wherever, is given up soon, and so is one that drips.
func TestPatience(t *testing.T) {
	stuck := func(suffix string, body func(w http.ResponseWriter, r *http.Request)) func(w http.ResponseWriter, r *http.Request, next http.Handler) {
		return func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			if !strings.Contains(r.URL.Path, suffix) {
				next.ServeHTTP(w, r)
				return
			}
			io.Copy(io.Discard, r.Body) // else the server doesn't see that the client has gone
			if body != nil {
				body(w, r)
			}
			<-r.Context().Done()
		}
	}
	drip := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "1")
		for r.Context().Err() == nil {
			w.Write([]byte("1")[:0])
			w.(http.Flusher).Flush()
			time.Sleep(5 * time.Millisecond)
		}
	}
	for name, front := range map[string]func(w http.ResponseWriter, r *http.Request, next http.Handler){
		"login":    stuck("/v2/", nil),
		"manifest": stuck("/manifests/key-", nil),
		"layer":    stuck("/blobs/"+hash("1").String(), nil),
		"drip":     stuck("/blobs/"+hash("1").String(), drip),
		"log":      stuck("/referrers/", nil),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, true)
			put(t, shared(t, s.ref()), "a", "1")
			s.place(front)
			store, _ := warned(t, s.ref(), 100*time.Millisecond)
			start := time.Now()
			if _, err := store.Get(context.Background(), hash("a")); !errors.Is(err, registry.ErrUnavailable) {
				t.Errorf("Get = %v; want %v", err, registry.ErrUnavailable)
			}
			if took := time.Since(start); took > 2*time.Second {
				t.Errorf("Get took %s", took)
			}
			s.CloseClientConnections()
		})
	}
	t.Run("upload", func(t *testing.T) {
		t.Parallel()
		s := serve(t, true)
		s.place(stuck("/uploads/", nil))
		store, _ := warned(t, s.ref(), 100*time.Millisecond)
		if err := store.Put(context.Background(), hash("a"), entry(t, "1")); !errors.Is(err, registry.ErrUnavailable) {
			t.Errorf("Put = %v; want %v", err, registry.ErrUnavailable)
		}
		s.CloseClientConnections()
		s.place(nil)
		checkMissing(t, store, "a")
	})
}

// A Put that is cut off wherever leaves no tag.
func TestPutCutOff(t *testing.T) {
	s := serve(t, true)
	ctx := context.Background()
	put(t, shared(t, s.ref()), "a", "1")
	n := len(s.since())
	for i := range n - 1 {
		s := serve(t, true)
		store := shared(t, s.ref())
		cctx, cancel := context.WithCancelCause(ctx)
		cause := errors.New("enough")
		seen := 0
		var mu sync.Mutex
		s.place(func(w http.ResponseWriter, r *http.Request, next http.Handler) {
			mu.Lock()
			seen++
			cut := seen == i+1
			mu.Unlock()
			if cut {
				io.Copy(io.Discard, r.Body) // else the server doesn't see that the client has gone
				cancel(cause)
				<-r.Context().Done()
				return
			}
			next.ServeHTTP(w, r)
		})
		err := store.Put(cctx, hash("a"), entry(t, "1"))
		if err == nil && cctx.Err() == nil { // what goes on at once can save a request
			s.Close()
			continue
		}
		if !errors.Is(err, cause) {
			t.Errorf("Put cut off at request %d = %v; want %v", i+1, err, cause)
		}
		s.place(nil)
		checkMissing(t, store, "a")
		put(t, store, "a", "1")
		check(t, store, "a", "1")
		s.Close()
	}
}
