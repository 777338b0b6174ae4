package cache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/godkms-hermetic/godkms-hermetic/cache"
)

func hash(s string) v1.Hash {
	h, _, err := v1.SHA256(bytes.NewReader([]byte(s)))
	if err != nil {
		panic(err)
	}
	return h
}

// image has an uncompressed layer with that content, and one that all images share.
func image(t testing.TB, content string) v1.Image {
	t.Helper()
	img, err := mutate.AppendLayers(mutate.MediaType(empty.Image, types.OCIManifestSchema1),
		static.NewLayer([]byte("shared"), types.OCIUncompressedLayer), static.NewLayer([]byte(content), types.OCIUncompressedLayer))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// layers reads all layers of an image.
func layers(img v1.Image) (string, error) {
	ls, err := img.Layers()
	if err != nil {
		return "", err
	}
	var all []byte
	for _, l := range ls {
		r, err := l.Compressed()
		if err != nil {
			return "", err
		}
		b, err := io.ReadAll(r)
		if err != nil {
			return "", err
		}
		if err := r.Close(); err != nil {
			return "", err
		}
		all = append(all, b...)
	}
	return string(all), nil
}

func open(t testing.TB, dir string) *cache.Dir {
	t.Helper()
	d, err := cache.Open(dir, cache.Options{Warn: func(s string) { t.Errorf("warning: %s", s) }})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func put(t testing.TB, s cache.Store, key, content string) {
	t.Helper()
	if err := s.Put(context.Background(), hash(key), entry(t, content)); err != nil {
		t.Fatalf("Put(%s) = %v", key, err)
	}
}

func entry(t testing.TB, content string) cache.Entry {
	return cache.Entry{Image: image(t, content), Log: []byte("log of " + content), Lock: lock(content)}
}

func lock(content string) []byte { return []byte("lock of " + content[:min(len(content), 4)]) }

// check wants the entry that put stores.
func check(t testing.TB, s cache.Store, key, content string) {
	t.Helper()
	if err := compare(s, key, content); err != nil {
		t.Error(err)
	}
}

func compare(s cache.Store, key, content string) error {
	e, err := s.Get(context.Background(), hash(key))
	if err != nil {
		return fmt.Errorf("Get(%s) = %w", key, err)
	}
	if got, err := layers(e.Image); err != nil || got != "shared"+content {
		return fmt.Errorf("Get(%s): layers = %.80q, %v; want %.80q", key, got, err, "shared"+content)
	}
	if want := "log of " + content; string(e.Log) != want {
		return fmt.Errorf("Get(%s): log = %.80q; want %.80q", key, e.Log, want)
	}
	if _, shared := s.(*cache.Registry); shared { // who asks it has the lock
		return nil
	}
	if want := lock(content); !bytes.Equal(e.Lock, want) {
		return fmt.Errorf("Get(%s): lock = %.80q; want %.80q", key, e.Lock, want)
	}
	return nil
}

func checkMissing(t testing.TB, s cache.Store, key string) {
	t.Helper()
	if _, err := s.Get(context.Background(), hash(key)); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("Get(%s) = %v; want %v", key, err, cache.ErrNotFound)
	}
}

// suite is what every Store must pass.
func suite(t *testing.T, newStore func(t *testing.T) cache.Store) {
	ctx := context.Background()
	t.Run("absent", func(t *testing.T) { checkMissing(t, newStore(t), "a") })
	t.Run("put and get", func(t *testing.T) {
		s := newStore(t)
		put(t, s, "a", "1")
		put(t, s, "b", "2")
		check(t, s, "a", "1")
		check(t, s, "b", "2")
		check(t, s, "a", "1")
		checkMissing(t, s, "c")
		e, err := s.Get(ctx, hash("a"))
		if err != nil {
			t.Fatal(err)
		}
		want := image(t, "1")
		gotDigest, err := e.Image.Digest()
		if err != nil {
			t.Fatal(err)
		}
		if wantDigest, _ := want.Digest(); gotDigest != wantDigest {
			t.Errorf("digest = %s; want %s", gotDigest, wantDigest)
		}
		got, err := e.Image.RawConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		if want, _ := want.RawConfigFile(); !bytes.Equal(got, want) {
			t.Errorf("config = %s; want %s", got, want)
		}
		if mt, err := e.Image.MediaType(); err != nil || mt != types.OCIManifestSchema1 {
			t.Errorf("media type = %s, %v", mt, err)
		}
		ls, err := e.Image.Layers()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range ls {
			digest, _ := l.Digest()
			if diff, err := l.DiffID(); err != nil || diff != digest {
				t.Errorf("diff id of an uncompressed layer = %s, %v; want %s", diff, err, digest)
			}
			if mt, err := l.MediaType(); err != nil || mt != types.OCIUncompressedLayer {
				t.Errorf("media type of a layer = %s, %v", mt, err)
			}
		}
	})
	t.Run("copy", func(t *testing.T) { // what one store gives, another takes
		a, b := newStore(t), newStore(t)
		put(t, a, "a", "1")
		e, err := a.Get(ctx, hash("a"))
		if err != nil {
			t.Fatal(err)
		}
		e.Lock = lock("1")
		if err := b.Put(ctx, hash("a"), e); err != nil {
			t.Fatal(err)
		}
		check(t, b, "a", "1")
	})
	t.Run("replace", func(t *testing.T) {
		s := newStore(t)
		put(t, s, "a", "1")
		e, err := s.Get(ctx, hash("a"))
		if err != nil {
			t.Fatal(err)
		}
		switch err := s.Put(ctx, hash("a"), entry(t, "2")); s.(type) {
		case *cache.Registry:
			if !errors.Is(err, cache.ErrDiffers) {
				t.Errorf("Put of another = %v; want %v", err, cache.ErrDiffers)
			}
			check(t, s, "a", "1")
		default:
			if err != nil {
				t.Fatal(err)
			}
			check(t, s, "a", "2")
		}
		if got, err := layers(e.Image); err != nil || got != "shared1" {
			t.Errorf("the image that was got before = %q, %v", got, err)
		}
	})
	t.Run("bad key", func(t *testing.T) {
		s := newStore(t)
		for _, key := range []v1.Hash{{}, {Algorithm: "sha256", Hex: "../../x"}, {Algorithm: "sha512", Hex: hash("a").Hex}, {Algorithm: "sha256", Hex: "ABCD"}} {
			if _, err := s.Get(ctx, key); err == nil || errors.Is(err, cache.ErrNotFound) {
				t.Errorf("Get(%q) = %v", key, err)
			}
			if err := s.Put(ctx, key, cache.Entry{Image: image(t, "1")}); err == nil {
				t.Errorf("Put(%q) succeeds", key)
			}
		}
	})
	t.Run("image that lies", func(t *testing.T) {
		for name, img := range map[string]v1.Image{
			"other bytes": liar{image(t, "1"), "X"},
			"fewer bytes": liar{image(t, "1"), ""},
			"more bytes":  liar{image(t, "1"), "12"},
		} {
			s := newStore(t) // what a store has already, it doesn't read
			if err := s.Put(ctx, hash("a"), cache.Entry{Image: img}); err == nil {
				t.Errorf("Put of a layer with %s succeeds", name)
			}
			checkMissing(t, s, "a")
			put(t, s, "a", "1")
			check(t, s, "a", "1")
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		s := newStore(t)
		ctx, cancel := context.WithCancelCause(ctx)
		cause := errors.New("enough")
		cancel(cause)
		if err := s.Put(ctx, hash("a"), cache.Entry{Image: image(t, "1")}); !errors.Is(err, cause) {
			t.Errorf("Put = %v; want %v", err, cause)
		}
		checkMissing(t, s, "a")
		put(t, s, "a", "1")
		if _, err := s.Get(ctx, hash("a")); !errors.Is(err, cause) {
			t.Errorf("Get = %v; want %v", err, cause)
		}
	})
	t.Run("at once", func(t *testing.T) {
		atOnce(t, newStore(t))
	})
	t.Run("long log", func(t *testing.T) {
		s := newStore(t)
		log := bytes.Repeat([]byte("0123456789abcde\n"), cache.MaxLog/8)
		copy(log, "first line")
		copy(log[len(log)-9:], "last line")
		if err := s.Put(ctx, hash("a"), cache.Entry{Image: image(t, "1"), Log: log}); err != nil {
			t.Fatal(err)
		}
		e, err := s.Get(ctx, hash("a"))
		if err != nil {
			t.Fatal(err)
		}
		if len(e.Log) > cache.MaxLog || !bytes.HasPrefix(e.Log, []byte("first line")) || !bytes.HasSuffix(e.Log, []byte("last line")) ||
			!bytes.Contains(e.Log, []byte(" bytes left out]\n")) {
			t.Errorf("the log has %d bytes, begins with %q and ends with %q", len(e.Log), e.Log[:16], e.Log[len(e.Log)-16:])
		}
	})
}

// atOnce has eight writers, two to a key.
func atOnce(t *testing.T, s cache.Store) {
	t.Helper()
	var all sync.WaitGroup
	for i := range 8 {
		all.Go(func() {
			key := fmt.Sprint(i % 4)
			if err := s.Put(context.Background(), hash(key), entry(t, key)); err != nil {
				t.Errorf("Put(%s) = %v", key, err)
			}
			if err := compare(s, key, key); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	for i := range 4 {
		check(t, s, fmt.Sprint(i), fmt.Sprint(i))
	}
}

// liar gives other bytes for a layer than its digest says.
type liar struct {
	v1.Image
	content string
}

func (l liar) LayerByDigest(h v1.Hash) (v1.Layer, error) {
	if h == hash("shared") {
		return l.Image.LayerByDigest(h)
	}
	return static.NewLayer([]byte(l.content), types.OCIUncompressedLayer), nil
}

func TestDir(t *testing.T) {
	suite(t, func(t *testing.T) cache.Store { return open(t, t.TempDir()) })
}

func TestMain(m *testing.M) {
	if helper := os.Getenv("CACHE_TEST_HELPER"); helper != "" {
		if err := helpers[helper](os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}
