package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
)

const (
	attempts = 4                      // in a row that bring nothing new
	pause    = 200 * time.Millisecond // after the first, and twice as long after each further one
	stall    = 30 * time.Second       // without a byte, a connection is given up
)

// stream reads a blob from an offset on, over as many connections as it takes, and hashes it.
type stream struct {
	ctx  context.Context
	repo *Repo
	d    v1.Descriptor
	n    int64 // bytes that were read
	sum  hash.Hash
	body io.ReadCloser
	stop func() bool // of the body's timer
	idle *time.Timer
	fail int // attempts in a row that brought nothing
	done bool
}

func openBlob(ctx context.Context, r *Repo, d v1.Descriptor) (*stream, error) {
	s := &stream{ctx: ctx, repo: r, d: d, sum: sha256.New()}
	if d.Digest.Algorithm != "sha256" || d.Size < 0 {
		return nil, fmt.Errorf("read blob of %q: %q has an unusable digest or size", r.name, d.Digest)
	}
	if err := s.connect(); err != nil {
		return nil, s.wrap(err)
	}
	return s, nil
}

func (s *stream) wrap(err error) error {
	return fmt.Errorf("read %s of %q: %w", s.d.Digest, s.repo.name, err)
}

// connect asks for what is missing.
func (s *stream) connect() error {
	ctx, cancel := context.WithCancelCause(s.ctx)
	idle := time.AfterFunc(stall, func() { cancel(fmt.Errorf("%w: no byte for %s", ErrUnavailable, stall)) })
	body, err := s.repo.blob(ctx, s.d, s.n)
	if err != nil {
		idle.Stop()
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(nil)
		return err
	}
	s.body, s.idle = body, idle
	s.stop = func() bool { cancel(nil); return idle.Stop() }
	return nil
}

func (s *stream) Read(p []byte) (int, error) {
	for {
		if s.done {
			return 0, io.EOF
		}
		n, err := s.body.Read(p)
		s.sum.Write(p[:n])
		s.n += int64(n)
		if n > 0 {
			s.idle.Reset(stall)
			s.fail = 0
		}
		switch {
		case s.n > s.d.Size:
			return 0, s.wrap(fmt.Errorf("%w: it has more than %d bytes", ErrAltered, s.d.Size))
		case err == nil:
			return n, nil
		case errors.Is(err, io.EOF) && s.n == s.d.Size:
			if got := hex.EncodeToString(s.sum.Sum(nil)); got != s.d.Digest.Hex {
				return 0, s.wrap(fmt.Errorf("%w: it has digest sha256:%s", ErrAltered, got))
			}
			s.done = true
			if n > 0 {
				return n, nil
			}
		case s.ctx.Err() != nil:
			return n, context.Cause(s.ctx)
		case s.repo.local():
			if errors.Is(err, io.EOF) {
				err = fmt.Errorf("%w: it ends after %d of %d bytes", ErrAltered, s.n, s.d.Size)
			}
			return n, s.wrap(err)
		default:
			if err := s.again(err); err != nil {
				return n, err
			}
			if n > 0 {
				return n, nil
			}
		}
	}
}

// again makes the connection anew after it broke.
func (s *stream) again(cause error) error {
	s.stop()
	s.body.Close()
	for wait := pause; ; wait *= 2 {
		if s.fail++; s.fail >= attempts {
			return s.wrap(fmt.Errorf("%w: the connection broke after %d of %d bytes: %w", ErrUnavailable, s.n, s.d.Size, cause))
		}
		select {
		case <-s.ctx.Done():
			return context.Cause(s.ctx)
		case <-time.After(wait + rand.N(wait/2)):
		}
		err := s.connect()
		if err == nil {
			return nil
		}
		if !errors.Is(err, ErrUnavailable) {
			return s.wrap(err)
		}
		cause = err
	}
}

func (s *stream) Close() error {
	if s.stop != nil {
		s.stop()
	}
	return s.body.Close()
}

// image implements partial.CompressedImageCore.
type image struct {
	raw      []byte
	media    types.MediaType
	manifest *v1.Manifest
	open     func(v1.Descriptor) (io.ReadCloser, error)
}

func newImage(raw []byte, media types.MediaType, open func(v1.Descriptor) (io.ReadCloser, error)) (v1.Image, error) {
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return partial.CompressedToImage(&image{raw, media, m, open})
}

func (i *image) RawManifest() ([]byte, error)        { return i.raw, nil }
func (i *image) MediaType() (types.MediaType, error) { return i.media, nil }

func (i *image) RawConfigFile() ([]byte, error) {
	d := i.manifest.Config
	if d.Size > maxManifest {
		return nil, fmt.Errorf("its config has %d bytes", d.Size)
	}
	if d.Digest == emptyJSON {
		return []byte("{}"), nil
	}
	r, err := i.open(d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// emptyJSON is the digest of {}, the config of what has none (image-spec, "Guidance for an Empty Descriptor").
var emptyJSON = v1.Hash{Algorithm: "sha256", Hex: "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}

func (i *image) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	for _, d := range append(i.manifest.Layers, i.manifest.Config) {
		if d.Digest == h {
			return &imageLayer{i, d}, nil
		}
	}
	return nil, fmt.Errorf("no layer %s", h)
}

type imageLayer struct {
	image *image
	d     v1.Descriptor
}

func (l *imageLayer) Digest() (v1.Hash, error)            { return l.d.Digest, nil }
func (l *imageLayer) Size() (int64, error)                { return l.d.Size, nil }
func (l *imageLayer) MediaType() (types.MediaType, error) { return l.d.MediaType, nil }
func (l *imageLayer) Compressed() (io.ReadCloser, error)  { return l.image.open(l.d) }

// fetch downloads the blobs of an image.
func (c *Client) fetch(ctx context.Context, r *Repo, img v1.Image, dir string, progress func(done, total int64)) (v1.Image, error) {
	m, err := img.Manifest()
	if err != nil {
		return nil, err
	}
	raw, err := img.RawManifest()
	if err != nil {
		return nil, err
	}
	media, err := img.MediaType()
	if err != nil {
		return nil, err
	}
	meter := newMeter(progress)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	seen := map[v1.Hash]bool{}
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if seen[d.Digest] {
			continue
		}
		seen[d.Digest] = true
		meter.add(0, d.Size)
		g.Go(func() error { return c.download(gctx, r, d, filepath.Join(dir, d.Digest.Hex), meter) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return newImage(raw, media, func(d v1.Descriptor) (io.ReadCloser, error) {
		return openFile(filepath.Join(dir, d.Digest.Hex), d)
	})
}

// download makes a file of a blob. What was downloaded before a process ended is kept in the client's Dir, and is gone on from.
func (c *Client) download(ctx context.Context, r *Repo, d v1.Descriptor, to string, m *meter) error {
	base := c.options.Dir
	if base == "" {
		base = filepath.Dir(to)
	}
	if err := os.MkdirAll(base, 0o755); err != nil {
		return err
	}
	name := filepath.Join(base, d.Digest.Hex+".partial")
	f, err := durable.Lock(ctx, name, false)
	if err != nil {
		return err
	}
	defer f.Close()
	s := &stream{ctx: ctx, repo: r, d: d, sum: sha256.New()}
	if s.n, err = io.Copy(s.sum, io.LimitReader(f, d.Size)); err != nil {
		return err
	}
	if err := f.Truncate(s.n); err != nil {
		return err
	}
	resumed := s.n > 0
	for {
		m.add(s.n, 0)
		if s.n < d.Size || s.n == 0 {
			if err := s.connect(); err != nil {
				return s.wrap(err)
			}
		} else {
			s.body, s.stop, s.idle = io.NopCloser(bytes.NewReader(nil)), func() bool { return true }, time.NewTimer(stall)
		}
		_, err := io.Copy(f, io.TeeReader(s, writerFunc(func(p []byte) { m.add(int64(len(p)), 0) })))
		s.Close()
		if err == nil {
			return os.Rename(name, to)
		}
		if !errors.Is(err, ErrAltered) {
			return err
		}
		os.Remove(name)
		if !resumed {
			return err
		}
		// What was there before may have been the damage.
		resumed = false
		if err := f.Truncate(0); err != nil {
			return err
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		m.add(-s.n, 0)
		s = &stream{ctx: ctx, repo: r, d: d, sum: sha256.New()}
	}
}

type writerFunc func([]byte)

func (w writerFunc) Write(p []byte) (int, error) {
	w(p)
	return len(p), nil
}

// openFile reads a file that is to have a descriptor's bytes, and fails before EOF if it hasn't.
func openFile(name string, d v1.Descriptor) (io.ReadCloser, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	return &checkedFile{file: f, d: d, sum: sha256.New()}, nil
}

type checkedFile struct {
	file *os.File
	d    v1.Descriptor
	sum  hash.Hash
	n    int64
}

func (c *checkedFile) Read(p []byte) (int, error) {
	n, err := c.file.Read(p)
	c.sum.Write(p[:n])
	c.n += int64(n)
	if c.n > c.d.Size || err == io.EOF && (c.n != c.d.Size || hex.EncodeToString(c.sum.Sum(nil)) != c.d.Digest.Hex) {
		return 0, fmt.Errorf("%q: %w: want %s with %d bytes", c.file.Name(), ErrAltered, c.d.Digest, c.d.Size)
	}
	return n, err
}

func (c *checkedFile) Close() error { return c.file.Close() }
