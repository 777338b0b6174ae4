package registry_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registrytest"
)

// set is six images of 8 MB whose layers are files.
func set(b *testing.B) []v1.Image {
	b.Helper()
	dir := b.TempDir()
	var out []v1.Image
	for i := range 6 {
		img := layers(b, uint64(i), 8<<20)
		d, content := layer(b, img, 0)
		path := filepath.Join(dir, d.Digest.Hex)
		if err := os.WriteFile(path, content, 0o644); err != nil {
			b.Fatal(err)
		}
		l, err := partial.CompressedToLayer(&fileLayer{d, path})
		if err != nil {
			b.Fatal(err)
		}
		out = append(out, &fromFile{img, l})
	}
	return out
}

type fromFile struct {
	v1.Image
	l v1.Layer
}

func (f *fromFile) Layers() ([]v1.Layer, error) { return []v1.Layer{f.l}, nil }
func (f *fromFile) LayerByDigest(h v1.Hash) (v1.Layer, error) {
	if d, err := f.l.Digest(); err != nil || d != h {
		return f.Image.LayerByDigest(h)
	}
	return f.l, nil
}

type fileLayer struct {
	d    v1.Descriptor
	path string
}

func (f *fileLayer) Digest() (v1.Hash, error)            { return f.d.Digest, nil }
func (f *fileLayer) Size() (int64, error)                { return f.d.Size, nil }
func (f *fileLayer) MediaType() (types.MediaType, error) { return f.d.MediaType, nil }
func (f *fileLayer) Compressed() (io.ReadCloser, error)  { return os.Open(f.path) }

// 50 MB, as this package and as crane's functions do it.
func BenchmarkPush(b *testing.B) {
	reg := registrytest.Start(b, registrytest.Options{})
	images := set(b)
	n := 0
	b.Run("ours", func(b *testing.B) {
		b.SetBytes(6 * 8 << 20)
		for b.Loop() {
			n++
			r := open(b, client(b, registry.Options{}), fmt.Sprintf("%s/ours/mod%d", reg.Host, n))
			for i, img := range images {
				if err := r.Push(context.Background(), fmt.Sprint(i), img); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
	b.Run("crane", func(b *testing.B) {
		b.SetBytes(6 * 8 << 20)
		for b.Loop() {
			n++
			p, err := remote.NewPusher()
			if err != nil {
				b.Fatal(err)
			}
			for i, img := range images {
				ref, err := name.ParseReference(fmt.Sprintf("%s/crane/mod%d:%d", reg.Host, n, i))
				if err != nil {
					b.Fatal(err)
				}
				if err := p.Push(context.Background(), ref, img); err != nil {
					b.Fatal(err)
				}
			}
		}
	})
}

func BenchmarkPull(b *testing.B) {
	reg := registrytest.Start(b, registrytest.Options{})
	r := open(b, client(b, registry.Options{}), reg.Host+"/team/mod")
	for i, img := range set(b) {
		if err := r.Push(context.Background(), fmt.Sprint(i), img); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("ours", func(b *testing.B) {
		b.SetBytes(6 * 8 << 20)
		for b.Loop() {
			dir := b.TempDir()
			c := client(b, registry.Options{})
			r := open(b, c, reg.Host+"/team/mod")
			for i := range 6 {
				if _, err := c.Fetch(context.Background(), r, fmt.Sprint(i), dir, nil); err != nil {
					b.Fatal(err)
				}
			}
			os.RemoveAll(dir)
		}
	})
	b.Run("crane", func(b *testing.B) {
		b.SetBytes(6 * 8 << 20)
		for b.Loop() {
			dir := b.TempDir()
			p, err := remote.NewPuller()
			if err != nil {
				b.Fatal(err)
			}
			for i := range 6 {
				ref, err := name.ParseReference(fmt.Sprintf("%s/team/mod:%d", reg.Host, i))
				if err != nil {
					b.Fatal(err)
				}
				d, err := p.Get(context.Background(), ref)
				if err != nil {
					b.Fatal(err)
				}
				img, err := d.Image()
				if err != nil {
					b.Fatal(err)
				}
				all, err := img.Layers()
				if err != nil {
					b.Fatal(err)
				}
				for _, l := range all {
					rc, err := l.Compressed()
					if err != nil {
						b.Fatal(err)
					}
					f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
					if err != nil {
						b.Fatal(err)
					}
					if _, err := io.Copy(f, rc); err != nil {
						b.Fatal(err)
					}
					f.Close()
					rc.Close()
				}
			}
			os.RemoveAll(dir)
		}
	})
}
