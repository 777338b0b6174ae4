package cache_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/cache"
)

func TestPeek(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	d := open(t, dir)
	if _, err := d.Peek(ctx, hash("a")); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("Peek at nothing = %v; want ErrNotFound", err)
	}
	put(t, d, "a", "1")
	want := image(t, "1")
	blob := filepath.Join(dir, "v1/blobs/sha256", hash("1").Hex)
	if err := os.WriteFile(blob, []byte("2"), 0o644); err != nil { // it doesn't look at layers
		t.Fatal(err)
	}
	img, err := d.Peek(ctx, hash("a"))
	if err != nil {
		t.Fatal(err)
	}
	if a, err := img.Digest(); err != nil {
		t.Error(err)
	} else if b, err := want.Digest(); err != nil || a != b {
		t.Errorf("digest %s; want %s (%v)", a, b, err)
	}
	if all, err := layers(img); err == nil {
		t.Errorf("layers = %q; want an error", all)
	}
	config, err := want.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "v1/blobs/sha256", config.Hex), []byte("{}"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Peek(ctx, hash("a")); !errors.Is(err, cache.ErrNotFound) {
		t.Errorf("Peek at an entry with a damaged config = %v; want ErrNotFound", err)
	}
}
