package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
)

// layout is a repository in a directory (image-spec, image-layout.md). Tags are entries of its index.json with the annotation
// org.opencontainers.image.ref.name; manifests that have none but are to be found, such as referrers, are entries without it.
//
// Blobs are written before what names them, each whole; index.json is replaced while the directory is locked.
type layout struct{ dir string }

func (l *layout) local() bool { return true }

func (l *layout) path(elem ...string) string {
	return filepath.Join(append([]string{l.dir}, elem...)...)
}

func (l *layout) blobPath(h v1.Hash) string { return l.path("blobs", h.Algorithm, h.Hex) }

// index reads index.json.
func (l *layout) index() (*v1.IndexManifest, error) {
	f, err := os.Open(l.path("index.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %q is no OCI layout directory: it has no index.json", ErrNotFound, l.dir)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	idx, err := v1.ParseIndexManifest(io.LimitReader(f, maxManifest))
	if err != nil {
		return nil, fmt.Errorf("%q: %w", l.path("index.json"), err)
	}
	return idx, nil
}

func (l *layout) tags(context.Context) ([]string, error) {
	idx, err := l.index()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, d := range idx.Manifests {
		if t := d.Annotations[ocispec.AnnotationRefName]; t != "" {
			out = append(out, t)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

func (l *layout) head(_ context.Context, identifier string) (v1.Descriptor, error) {
	idx, err := l.index()
	if err != nil {
		return v1.Descriptor{}, err
	}
	h, err := v1.NewHash(identifier)
	byDigest := err == nil
	for _, d := range idx.Manifests {
		if byDigest && d.Digest == h || !byDigest && d.Annotations[ocispec.AnnotationRefName] == identifier {
			return v1.Descriptor{MediaType: d.MediaType, Size: d.Size, Digest: d.Digest}, nil
		}
	}
	if byDigest { // one that an index names
		if raw, err := l.small(h); err == nil {
			return v1.Descriptor{MediaType: mediaOf(raw), Size: int64(len(raw)), Digest: h}, nil
		}
	}
	return v1.Descriptor{}, fmt.Errorf("%w in %q", ErrNotFound, l.dir)
}

func (l *layout) manifest(ctx context.Context, identifier string) ([]byte, types.MediaType, error) {
	d, err := l.head(ctx, identifier)
	if err != nil {
		return nil, "", err
	}
	raw, err := l.small(d.Digest)
	if err != nil {
		return nil, "", err
	}
	return raw, d.MediaType, nil
}

// small reads a manifest's blob and checks it.
func (l *layout) small(h v1.Hash) ([]byte, error) {
	if h.Algorithm != "sha256" {
		return nil, fmt.Errorf("digest %q: only SHA-256 is known", h)
	}
	f, err := os.Open(l.blobPath(h))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s in %q", ErrNotFound, h, l.dir)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err != nil {
		return nil, err
	}
	if got, _, err := v1.SHA256(bytes.NewReader(raw)); err != nil || got != h {
		return nil, fmt.Errorf("%w: %q has digest %s", ErrAltered, f.Name(), got)
	}
	return raw, nil
}

func mediaOf(raw []byte) types.MediaType {
	var m struct {
		MediaType types.MediaType `json:"mediaType"`
	}
	if json.Unmarshal(raw, &m) != nil {
		return ""
	}
	return m.MediaType
}

func (l *layout) blob(_ context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error) {
	f, err := os.Open(l.blobPath(d.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s in %q", ErrNotFound, d.Digest, l.dir)
	}
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// lock locks the folder of the blobs, for push locks the layout's own.
func (l *layout) lock(ctx context.Context) (io.Closer, error) {
	if err := l.create(ctx); err != nil {
		return nil, err
	}
	return durable.LockDir(ctx, l.path("blobs"))
}

func (l *layout) push(ctx context.Context, identifier string, t remote.Taggable) error {
	if err := l.create(ctx); err != nil {
		return err
	}
	d, err := l.write(ctx, t)
	if err != nil {
		return err
	}
	if h, err := v1.NewHash(identifier); err == nil {
		if h != d.Digest {
			return fmt.Errorf("it has digest %s", d.Digest)
		}
		identifier = ""
	}
	return l.update(ctx, func(idx *v1.IndexManifest) {
		if identifier == "" && slices.ContainsFunc(idx.Manifests, func(m v1.Descriptor) bool { return m.Digest == d.Digest }) {
			return
		}
		if identifier != "" {
			idx.Manifests = slices.DeleteFunc(idx.Manifests, func(m v1.Descriptor) bool {
				return m.Annotations[ocispec.AnnotationRefName] == identifier
			})
			d.Annotations = map[string]string{ocispec.AnnotationRefName: identifier}
		}
		idx.Manifests = append(idx.Manifests, d)
	})
}

func (l *layout) create(ctx context.Context) error {
	if err := os.MkdirAll(l.path("blobs", "sha256"), 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(l.temp(), 0o755); err != nil {
		return err
	}
	if _, err := os.Stat(l.path("index.json")); err == nil {
		return nil
	}
	if err := durable.WriteFile(l.temp(), l.path(ocispec.ImageLayoutFile), 0o644, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "{%q:%q}", "imageLayoutVersion", ocispec.ImageLayoutVersion)
		return err
	}); err != nil {
		return err
	}
	return l.update(ctx, func(*v1.IndexManifest) {})
}

func (l *layout) temp() string { return l.path(".partial") }

// update replaces index.json while no other process does.
func (l *layout) update(ctx context.Context, change func(*v1.IndexManifest)) error {
	lock, err := durable.LockDir(ctx, l.dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := durable.Sweep(l.temp()); err != nil {
		return err
	}
	idx, err := l.index()
	if errors.Is(err, ErrNotFound) {
		idx, err = &v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: []v1.Descriptor{}}, nil
	}
	if err != nil {
		return err
	}
	change(idx)
	// A total order, so that who pushes first makes no difference.
	slices.SortStableFunc(idx.Manifests, func(a, b v1.Descriptor) int {
		if c := strings.Compare(a.Annotations[ocispec.AnnotationRefName], b.Annotations[ocispec.AnnotationRefName]); c != 0 {
			return c
		}
		return strings.Compare(a.Digest.String(), b.Digest.String())
	})
	return durable.WriteFile(l.temp(), l.path("index.json"), 0o644, func(w io.Writer) error { return json.NewEncoder(w).Encode(idx) })
}

// write stores the blobs of an image or an index, and its manifest.
func (l *layout) write(ctx context.Context, t remote.Taggable) (v1.Descriptor, error) {
	switch t := t.(type) {
	case v1.ImageIndex:
		children, err := partial.Manifests(t)
		if err != nil {
			return v1.Descriptor{}, err
		}
		for _, c := range children {
			m, ok := c.(remote.Taggable)
			if !ok {
				return v1.Descriptor{}, fmt.Errorf("an index with a %T", c)
			}
			if _, err := l.write(ctx, m); err != nil {
				return v1.Descriptor{}, err
			}
		}
	case v1.Image:
		m, err := t.Manifest()
		if err != nil {
			return v1.Descriptor{}, err
		}
		for _, d := range m.Layers {
			if err := l.writeBlob(ctx, d.Digest, d.Size, func() (io.ReadCloser, error) {
				layer, err := t.LayerByDigest(d.Digest)
				if err != nil {
					return nil, err
				}
				return layer.Compressed()
			}); err != nil {
				return v1.Descriptor{}, err
			}
		}
		config, err := t.RawConfigFile()
		if err != nil {
			return v1.Descriptor{}, err
		}
		if err := l.writeBytes(ctx, config); err != nil {
			return v1.Descriptor{}, err
		}
	}
	raw, err := t.RawManifest()
	if err != nil {
		return v1.Descriptor{}, err
	}
	h, n, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		return v1.Descriptor{}, err
	}
	return v1.Descriptor{MediaType: mediaOf(raw), Size: n, Digest: h}, l.writeBytes(ctx, raw)
}

func (l *layout) writeBytes(ctx context.Context, b []byte) error {
	h, n, err := v1.SHA256(bytes.NewReader(b))
	if err != nil {
		return err
	}
	return l.writeBlob(ctx, h, n, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil })
}

// writeBlob stores a blob unless it is there, whole.
func (l *layout) writeBlob(ctx context.Context, h v1.Hash, size int64, open func() (io.ReadCloser, error)) error {
	d := v1.Descriptor{Digest: h, Size: size}
	if f, err := openFile(l.blobPath(h), d); err == nil {
		_, err := io.Copy(io.Discard, f)
		f.Close()
		if err == nil {
			return nil
		}
	}
	r, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	return durable.WriteFile(l.temp(), l.blobPath(h), 0o644, func(w io.Writer) error {
		sum := sha256.New()
		n, err := io.Copy(io.MultiWriter(w, sum), io.LimitReader(contextReader{ctx, r}, size+1))
		if got := hex.EncodeToString(sum.Sum(nil)); err == nil && (n != size || got != h.Hex) {
			err = fmt.Errorf("%w: want %s with %d bytes, have %s with %d", ErrAltered, h, size, got, n)
		}
		return err
	})
}

func (l *layout) referrers(_ context.Context, subject v1.Hash) ([]v1.Descriptor, error) {
	idx, err := l.index()
	if err != nil {
		return nil, err
	}
	var out []v1.Descriptor
	seen := map[v1.Hash]bool{}
	for _, d := range idx.Manifests {
		if seen[d.Digest] || !d.MediaType.IsImage() {
			continue
		}
		seen[d.Digest] = true
		raw, err := l.small(d.Digest)
		if err != nil {
			continue
		}
		m, err := v1.ParseManifest(bytes.NewReader(raw))
		if err != nil || m.Subject == nil || m.Subject.Digest != subject {
			continue
		}
		d.ArtifactType, d.Annotations = m.ArtifactType, m.Annotations
		if d.ArtifactType == "" {
			d.ArtifactType = string(m.Config.MediaType)
		}
		out = append(out, d)
	}
	return out, nil
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}
