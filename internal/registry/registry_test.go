package registry_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1registry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
)

func TestParse(t *testing.T) {
	digest := "sha256:" + strings.Repeat("ab", 32)
	for _, tt := range []struct{ text, repository, tag, digest string }{
		{"registry.example/team/mod", "registry.example/team/mod", "", ""},
		{"registry.example:5000/team/mod", "registry.example:5000/team/mod", "", ""},
		{"registry.example:5000/team/mod:1.0", "registry.example:5000/team/mod", "1.0", ""},
		{"127.0.0.1:5000/mod:1.0@" + digest, "127.0.0.1:5000/mod", "1.0", digest},
		{"team/mod", "index.docker.io/team/mod", "", ""},
		{"oci:out", "oci:out", "", ""},
		{"oci:/a/b:c/d/", "oci:/a/b:c/d", "", ""},
		{"oci:out:1.0", "oci:out", "1.0", ""},
		{"oci:./out@" + digest, "oci:out", "", digest},
	} {
		r, err := registry.Parse(tt.text)
		if err != nil || r.Repository() != tt.repository || r.Tag != tt.tag || (tt.digest != "") != (r.Digest != v1.Hash{}) {
			t.Errorf("Parse(%q) = %q, %q, %q, %v; want %+v", tt.text, r.Repository(), r.Tag, r.Digest, err, tt)
		}
	}
	for _, text := range []string{"", "oci:", "registry.example", "localhost:5000", "127.0.0.1:5000", "https://registry.example/mod", "registry.example/UPPER", "mod:ta g", "mod@sha256:12", "mod@md5:" + strings.Repeat("a", 32), "oci::tag"} {
		if r, err := registry.Parse(text); err == nil {
			t.Errorf("Parse(%q) = %v; want an error", text, r)
		}
	}
}

// stores runs a test against both kinds of repository.
func stores(t *testing.T, run func(t *testing.T, c *registry.Client, r *registry.Repo)) {
	open := func(t *testing.T, ref string) (*registry.Client, *registry.Repo) {
		c, err := registry.New(registry.Options{Dir: t.TempDir()})
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
		return c, r
	}
	t.Run("registry", func(t *testing.T) {
		s := httptest.NewServer(v1registry.New())
		t.Cleanup(s.Close)
		c, r := open(t, strings.TrimPrefix(s.URL, "http://")+"/team/mod")
		run(t, c, r)
	})
	t.Run("layout", func(t *testing.T) {
		c, r := open(t, "oci:"+filepath.Join(t.TempDir(), "layout"))
		run(t, c, r)
	})
}

func newImage(t *testing.T) v1.Image {
	t.Helper()
	img, err := random.Image(10_000, 2)
	if err != nil {
		t.Fatal(err)
	}
	return mutate.ConfigMediaType(mutate.MediaType(img, types.OCIManifestSchema1), types.OCIConfigJSON)
}

func digest(t *testing.T, i partial.WithRawManifest) v1.Hash {
	t.Helper()
	raw, err := i.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	h, _, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestRoundTrip(t *testing.T) {
	stores(t, func(t *testing.T, c *registry.Client, r *registry.Repo) {
		ctx := context.Background()
		if _, err := r.Head(ctx, "1.0"); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("Head of nothing = %v; want ErrNotFound", err)
		}
		if _, err := r.Tags(ctx); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("Tags of nothing = %v; want ErrNotFound", err)
		}
		img := newImage(t)
		if err := r.Push(ctx, "1.0", img); err != nil {
			t.Fatal(err)
		}
		if err := r.Push(ctx, digest(t, img).String(), img); err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"1.0", digest(t, img).String()} {
			d, err := r.Head(ctx, id)
			if err != nil || d.Digest != digest(t, img) || d.MediaType != types.OCIManifestSchema1 {
				t.Errorf("Head(%q) = %v, %v", id, d, err)
			}
			dir := t.TempDir()
			got, err := c.Fetch(ctx, r, id, dir, nil)
			if err != nil {
				t.Fatal(err)
			}
			same(t, got, img)
		}
		if tags, err := r.Tags(ctx); err != nil || !slices.Equal(tags, []string{"1.0"}) {
			t.Errorf("Tags = %q, %v", tags, err)
		}
	})
}

func TestAttach(t *testing.T) {
	stores(t, func(t *testing.T, c *registry.Client, r *registry.Repo) {
		ctx := context.Background()
		img := newImage(t)
		if err := r.Push(ctx, "1.0", img); err != nil {
			t.Fatal(err)
		}
		subject, err := partial.Descriptor(img)
		if err != nil {
			t.Fatal(err)
		}
		a := mutate.Subject(newImage(t), *subject).(v1.Image)
		b := mutate.Subject(newImage(t), *subject).(v1.Image)
		for range 2 { // again is no more
			if err := r.Attach(ctx, subject.Digest, a, b); err != nil {
				t.Fatal(err)
			}
		}
		list, err := r.Referrers(ctx, subject.Digest)
		if err != nil || len(list) != 2 {
			t.Fatalf("Referrers = %v, %v; want 2", list, err)
		}
		for _, d := range list {
			if d.ArtifactType != string(types.OCIConfigJSON) || d.Digest != digest(t, a) && d.Digest != digest(t, b) {
				t.Errorf("referrer %+v", d)
			}
		}
	})
}

func same(t *testing.T, got, want v1.Image) {
	t.Helper()
	if digest(t, got) != digest(t, want) {
		t.Fatalf("digest %s; want %s", digest(t, got), digest(t, want))
	}
	gl, err := got.Layers()
	if err != nil {
		t.Fatal(err)
	}
	wl, err := want.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for i := range wl {
		if !bytes.Equal(content(t, gl[i]), content(t, wl[i])) {
			t.Errorf("layer %d differs", i)
		}
	}
	a, err := got.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if b, err := want.RawConfigFile(); err != nil || !bytes.Equal(a, b) {
		t.Errorf("config %q, %v; want %q", a, err, b)
	}
}

func content(t *testing.T, l v1.Layer) []byte {
	t.Helper()
	rc, err := l.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	b, err := io.ReadAll(rc)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestOffline(t *testing.T) {
	c, err := registry.New(registry.Options{Offline: true})
	if err != nil {
		t.Fatal(err)
	}
	ref, err := registry.Parse("registry.example/mod")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Open(ref); !errors.Is(err, registry.ErrOffline) {
		t.Errorf("Open = %v; want ErrOffline", err)
	}
	if _, err := os.Stat("blobs"); err == nil {
		t.Error("something was written")
	}
}
