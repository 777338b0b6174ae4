package cache_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/godkms-hermetic/godkms-hermetic/cache"
)

func key(s string) v1.Hash {
	h, _, err := v1.SHA256(bytes.NewReader([]byte(s)))
	if err != nil {
		panic(err)
	}
	return h
}

func TestSmoke(t *testing.T) {
	ctx := context.Background()
	d, err := cache.Open(t.TempDir(), cache.Options{Warn: func(s string) { t.Error(s) }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Get(ctx, key("a")); !errors.Is(err, cache.ErrNotFound) {
		t.Fatal(err)
	}
	img, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Put(ctx, key("a"), cache.Entry{Image: img, Log: []byte("log")}); err != nil {
		t.Fatal(err)
	}
	e, err := d.Get(ctx, key("a"))
	if err != nil {
		t.Fatal(err)
	}
	if err := validate.Image(e.Image); err != nil {
		t.Fatal(err)
	}
	t.Log(d.List(ctx))
	t.Log(d.Verify(ctx))
	t.Log(d.GC(ctx, cache.GCOptions{MaxSize: 1}))
	ls, _ := e.Image.Layers()
	rc, err := ls[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, rc); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Get(ctx, key("a")); !errors.Is(err, cache.ErrNotFound) {
		t.Fatal(err)
	}
}
