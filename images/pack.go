package images

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// Labels of an image's configuration, and annotations of its manifest.
const (
	LabelLock       = "dev.godkms-hermetic.lock" // the whole lock, encoded; label only
	LabelLockDigest = "dev.godkms-hermetic.lock.digest"
	LabelKernel     = "dev.godkms-hermetic.kernel"  // "debian/bookworm:6.1.0-56-amd64"
	LabelDistro     = "dev.godkms-hermetic.distro"  // "debian"
	LabelSuite      = "dev.godkms-hermetic.suite"   // "bookworm"
	LabelRelease    = "dev.godkms-hermetic.release" // "6.1.0-56-amd64"
	LabelCompiler   = "dev.godkms-hermetic.compiler"
	LabelRoot       = "dev.godkms-hermetic.root" // Digest of the root
)

// The tar form is compressed with gzip, which every Docker loads (20.10 has no zstd), at a level where the toolchain packs in a
// second or two. It is cut into blocks that are compressed on their own, several at a time, and stand one after the other as
// members of one gzip file; their borders depend on the content alone, and so do the bytes. blocks
// of 1 MiB cost 0.2 % of size.
const (
	gzipLevel = 6
	gzipBlock = 1 << 20
	packing   = "1" // changes with the bytes that the same layer is packed to
)

// packed is packed/<key>/packed.json.
type packed struct {
	DiffID v1.Hash `json:"diff_id"`
	Digest v1.Hash `json:"digest"`
	Size   int64   `json:"size"`
}

// Image gives the root as an OCI image. Layers are packed once and kept in the cache; an image holds on to no memory. Its
// digest is a function of the lock. It can be read until the root is closed.
func (r *Root) Image(ctx context.Context) (v1.Image, error) {
	return r.image(ctx, nil)
}

func (r *Root) image(ctx context.Context, progress Progress) (v1.Image, error) {
	m := newMeter(progress)
	img, err := r.build(func(key string) (packed, error) { return r.store.pack(ctx, key, m) })
	if err != nil {
		return nil, fmt.Errorf("pack image of %q: %w", r.lock.Kernel, located(r.store.dir, err))
	}
	return img, nil
}

// build makes the image of packed layers.
func (r *Root) build(pack func(key string) (packed, error)) (v1.Image, error) {
	var adds []mutate.Addendum
	made := v1.Time{Time: time.Unix(epoch, 0).UTC()}
	for _, l := range r.specs {
		p, err := pack(l.key)
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", l.kind, err)
		}
		layer, err := partial.CompressedToLayer(&packedLayer{packed: p, dir: r.store.packedDir(l.key)})
		if err != nil {
			return nil, err
		}
		adds = append(adds, mutate.Addendum{
			Layer: layer, MediaType: types.OCILayer,
			History: v1.History{Created: made, CreatedBy: "godkms-hermetic " + l.kind},
		})
	}
	img := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	img, err := mutate.Append(img, adds...)
	if err != nil {
		return nil, err
	}
	old, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	labels := labelsOf(r.lock)
	labels[LabelRoot] = r.digest.String()
	cfg := old.DeepCopy()
	cfg.OS = "linux"
	cfg.Architecture, cfg.Variant = platform(r.lock.Kernel.Arch)
	cfg.Created = made
	cfg.Config = v1.Config{
		Env:    []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C"},
		Cmd:    []string{"/bin/sh"},
		Labels: labels,
	}
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		return nil, err
	}
	notes := map[string]string{
		ocispec.AnnotationCreated: made.Format(time.RFC3339),
		ocispec.AnnotationTitle:   "headers and compiler of " + r.lock.Kernel.String(),
	}
	for k, v := range labels {
		if k != LabelLock {
			notes[k] = v
		}
	}
	annotated, ok := mutate.Annotations(img, notes).(v1.Image)
	if !ok {
		return nil, errors.New("annotate: not an image any more")
	}
	return annotated, nil
}

// labelsOf says what an image is for. The lock travels in it, so that a registry that has the image is an archive of the kernel.
func labelsOf(lock kernels.Lock) map[string]string {
	k := lock.Kernel
	return map[string]string{
		LabelLock: string(lock.Encode()), LabelLockDigest: lock.Digest().String(), LabelKernel: k.String(), LabelDistro: k.Distro,
		LabelSuite: k.Suite, LabelRelease: k.Release, LabelCompiler: lock.Compiler,
	}
}

// platform gives OCI's names of an architecture.
func platform(arch string) (name, variant string) {
	if a, ok := architectures[arch]; ok {
		return a.oci, a.variant
	}
	return arch, ""
}

func (s *Store) packedDir(key string) string { return s.path("packed", key+"-"+packing) }

// pack makes the tar form of a layer, if the cache has it not.
func (s *Store) pack(ctx context.Context, key string, m *meter) (packed, error) {
	dir := s.packedDir(key)
	if p, err := readPacked(dir); err == nil {
		return p, nil
	}
	lock, err := durable.Lock(ctx, s.path("locks", "pack-"+key), false)
	if err != nil {
		return packed{}, err
	}
	defer lock.Close()
	if p, err := readPacked(dir); err == nil {
		return p, nil
	}
	if err := s.drop(dir); err != nil { // not readable
		return packed{}, err
	}
	temp, err := durable.NewTemp(s.path("tmp"))
	if err != nil {
		return packed{}, err
	}
	defer temp.Close()
	work := filepath.Join(temp.Dir, "packed")
	if err := os.Mkdir(work, 0o755); err != nil {
		return packed{}, err
	}
	var p packed
	err = durable.WriteFile(work, filepath.Join(work, "layer.tar.gz"), 0o644, func(w io.Writer) error {
		var err error
		p, err = writeLayer(ctx, w, s.layerDir(key), s.jobs, m)
		return err
	})
	if err != nil {
		return packed{}, err
	}
	err = durable.WriteFile(work, filepath.Join(work, "packed.json"), 0o644, func(w io.Writer) error {
		return json.NewEncoder(w).Encode(p)
	})
	if err != nil {
		return packed{}, err
	}
	return p, placeFolder(work, dir)
}

// readPacked reads a packed layer's record, and checks that the file beside it has that size.
func readPacked(dir string) (p packed, err error) {
	b, err := os.ReadFile(filepath.Join(dir, "packed.json"))
	if err != nil {
		return p, err
	}
	if err := json.Unmarshal(b, &p); err != nil {
		return p, err
	}
	st, err := os.Stat(filepath.Join(dir, "layer.tar.gz"))
	if err != nil {
		return p, err
	}
	if st.Size() != p.Size {
		return p, fmt.Errorf("%q has %d bytes; want %d", dir, st.Size(), p.Size)
	}
	return p, nil
}

// writeLayer writes the compressed tar form of an unpacked layer. It is made from the layer's index; the files must have the
// hashes that stand there.
func writeLayer(ctx context.Context, w io.Writer, dir string, jobs int, m *meter) (p packed, err error) {
	rec, err := readRecord(dir)
	if err != nil {
		return p, err
	}
	m.expect("pack", rec.Size)
	root, err := os.OpenRoot(filepath.Join(dir, "fs"))
	if err != nil {
		return p, err
	}
	defer root.Close()
	out := &counter{w: w, sum: sha256.New()}
	blocks := newBlocks(out, jobs)
	diff := sha256.New()
	tw := tar.NewWriter(io.MultiWriter(diff, blocks))
	buf := make([]byte, 128<<10)
	sum := sha256.New()
	err = readIndex(dir, rec.Tree, func(e entry) error {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		h := &tar.Header{Name: e.Path, Mode: int64(e.Mode), ModTime: time.Unix(e.Mtime, 0), Size: e.Size, Linkname: e.Link}
		switch e.Kind {
		case "d":
			h.Typeflag, h.Name = tar.TypeDir, e.Path+"/"
		case "l":
			h.Typeflag = tar.TypeSymlink
		case "h":
			h.Typeflag = tar.TypeLink
		default:
			h.Typeflag = tar.TypeReg
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			return nil
		}
		f, err := root.Open(e.Path)
		if err != nil {
			return err
		}
		defer f.Close()
		sum.Reset()
		n, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(tw, sum)}, struct{ io.Reader }{f}, buf)
		if err != nil {
			return err
		}
		m.add("pack", n)
		if got := hex.EncodeToString(sum.Sum(nil)); got != e.Sum {
			return fmt.Errorf("%q was altered: its hash is %s; want %s; run \"cache verify\"", e.Path, got, e.Sum)
		}
		return nil
	})
	if err == nil {
		err = tw.Close()
	}
	if cerr := blocks.Close(); cerr != nil { // why writing stopped
		err = cerr
	}
	if err != nil {
		return p, err
	}
	return packed{DiffID: hashOf(diff), Digest: hashOf(out.sum), Size: out.n}, nil
}

func hashOf(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}

type counter struct {
	w   io.Writer
	sum hash.Hash
	n   int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.sum.Write(b[:n])
	c.n += int64(n)
	return n, err
}

// blocks compresses what is written to it in blocks, several at a time, and writes them in order.
type blocks struct {
	buf     []byte
	pending chan chan block // in order; its capacity bounds memory
	free    chan []byte
	group   errgroup.Group
	workers errgroup.Group
	failed  chan struct{} // closed when the writer of the results has given up
}

type block struct {
	gz  *bytes.Buffer
	err error
}

func newBlocks(w io.Writer, jobs int) *blocks {
	b := &blocks{pending: make(chan chan block, jobs), failed: make(chan struct{})}
	b.free = make(chan []byte, 2*jobs+2)
	b.workers.SetLimit(jobs)
	b.group.Go(func() error {
		for result := range b.pending {
			r := <-result
			if r.err == nil {
				_, r.err = w.Write(r.gz.Bytes())
			}
			if r.err != nil {
				close(b.failed)
				for range b.pending {
				}
				return r.err
			}
		}
		return nil
	})
	return b
}

func (b *blocks) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		if b.buf == nil {
			select {
			case b.buf = <-b.free:
			default:
				b.buf = make([]byte, 0, gzipBlock)
			}
		}
		n := min(len(p), gzipBlock-len(b.buf))
		b.buf = append(b.buf, p[:n]...)
		p = p[n:]
		if len(b.buf) == gzipBlock {
			if err := b.flush(); err != nil {
				return total - len(p), err
			}
		}
	}
	return total, nil
}

func (b *blocks) flush() error {
	select {
	case <-b.failed:
		return errors.New("write packed layer: stopped") // Close has the reason
	default:
	}
	raw, result := b.buf, make(chan block, 1)
	b.buf = nil
	b.pending <- result
	b.workers.Go(func() error {
		gz := new(bytes.Buffer)
		w, err := gzip.NewWriterLevel(gz, gzipLevel)
		if err == nil {
			_, err = w.Write(raw)
		}
		if err == nil {
			err = w.Close()
		}
		result <- block{gz, err}
		select {
		case b.free <- raw[:0]:
		default:
		}
		return nil
	})
	return nil
}

// Close writes the rest. Its error is the first that a block met.
func (b *blocks) Close() error {
	if len(b.buf) > 0 {
		b.flush()
	}
	close(b.pending)
	return b.group.Wait()
}

// packedLayer reads a packed layer from the cache. go-containerregistry derives the rest of a v1.Layer.
type packedLayer struct {
	packed
	dir string
}

func (l *packedLayer) Digest() (v1.Hash, error)            { return l.packed.Digest, nil }
func (l *packedLayer) DiffID() (v1.Hash, error)            { return l.packed.DiffID, nil }
func (l *packedLayer) Size() (int64, error)                { return l.packed.Size, nil }
func (l *packedLayer) MediaType() (types.MediaType, error) { return types.OCILayer, nil }

// Compressed gives the packed bytes, which are checked while they are read: a damaged file fails before its end, and is
// removed, so that the next image packs it again.
func (l *packedLayer) Compressed() (io.ReadCloser, error) {
	f, err := os.Open(filepath.Join(l.dir, "layer.tar.gz"))
	if err != nil {
		return nil, err
	}
	return &checkedFile{layer: l, file: f, sum: sha256.New()}, nil
}

type checkedFile struct {
	layer *packedLayer
	file  *os.File
	sum   hash.Hash
	n     int64
}

func (c *checkedFile) Read(b []byte) (int, error) {
	n, err := c.file.Read(b)
	c.sum.Write(b[:n])
	c.n += int64(n)
	if c.n > c.layer.packed.Size || (err == io.EOF && (c.n != c.layer.packed.Size || hashOf(c.sum) != c.layer.packed.Digest)) {
		os.Remove(filepath.Join(c.layer.dir, "packed.json"))
		return 0, fmt.Errorf("packed layer %q is damaged: run again to pack it anew", filepath.Base(c.layer.dir))
	}
	return n, err
}

func (c *checkedFile) Close() error { return c.file.Close() }
