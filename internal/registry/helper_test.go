package registry_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	v1registry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
)

// A server is a registry in this process whose requests can be met with faults.
type server struct {
	*httptest.Server
	mu    sync.Mutex
	log   []string // "METHOD path", in the order in which they came
	fault func(w http.ResponseWriter, r *http.Request) (answered bool)
}

func serve(t testing.TB, options ...v1registry.Option) *server {
	t.Helper()
	s := &server{}
	inner := v1registry.New(append([]v1registry.Option{v1registry.Logger(log.New(io.Discard, "", 0))}, options...)...)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.log = append(s.log, r.Method+" "+r.URL.RequestURI())
		fault := s.fault
		s.mu.Unlock()
		if fault != nil && fault(w, r) {
			return
		}
		inner.ServeHTTP(w, r)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(s.Close)
	return s
}

func (s *server) host() string { return strings.TrimPrefix(s.URL, "http://") }

// breaks sets the fault, and forgets the requests so far.
func (s *server) breaks(fault func(w http.ResponseWriter, r *http.Request) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault, s.log = fault, nil
}

// count tells how many requests begin with a prefix, and contain a text.
func (s *server) count(prefix, text string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, l := range s.log {
		if strings.HasPrefix(l, prefix) && strings.Contains(l, text) {
			n++
		}
	}
	return n
}

// cut ends a connection without an answer.
func cut(w http.ResponseWriter) bool {
	c, _, err := w.(http.Hijacker).Hijack()
	if err == nil {
		c.Close()
	}
	return true
}

func client(t testing.TB, o registry.Options) *registry.Client {
	t.Helper()
	if o.Keychain == nil {
		o.Keychain = authn.NewMultiKeychain() // what this machine has is no part of it
	}
	c, err := registry.New(o)
	if err != nil {
		t.Fatal(err)
	}
	c.Hurry()
	return c
}

func open(t testing.TB, c *registry.Client, ref string) *registry.Repo {
	t.Helper()
	r, err := c.Open(parse(t, ref))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func parse(t testing.TB, ref string) registry.Reference {
	t.Helper()
	r, err := registry.Parse(ref)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// layers makes an image of random layers with these sizes.
func layers(t testing.TB, seed uint64, sizes ...int) v1.Image {
	t.Helper()
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	for i, size := range sizes {
		b := make([]byte, size)
		rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(i)}).Read(b)
		var err error
		if img, err = mutate.AppendLayers(img, static.NewLayer(b, types.OCIUncompressedLayer)); err != nil {
			t.Fatal(err)
		}
	}
	return img
}

// layer is the descriptor of an image's layer, and its bytes.
func layer(t testing.TB, img v1.Image, i int) (v1.Descriptor, []byte) {
	t.Helper()
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	l, err := img.LayerByDigest(m.Layers[i].Digest)
	if err != nil {
		t.Fatal(err)
	}
	rc, err := l.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	return m.Layers[i], b
}

// seeded is a registry with an image at team/mod:1.0.
func seeded(t testing.TB, img v1.Image) *server {
	t.Helper()
	s := serve(t)
	if err := open(t, client(t, registry.Options{}), s.host()+"/team/mod").Push(context.Background(), "1.0", img); err != nil {
		t.Fatal(err)
	}
	return s
}

// names lists the files of a folder.
func names(t testing.TB, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var out []string
	for _, e := range list {
		out = append(out, e.Name())
	}
	return out
}

func sum(b []byte) v1.Hash {
	h := sha256.Sum256(b)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h[:])}
}

func write(t testing.TB, b []byte, path ...string) string {
	t.Helper()
	name := filepath.Join(path...)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, b, 0o644); err != nil {
		t.Fatal(err)
	}
	return name
}
