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
	"os"
	"slices"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sys/unix"
)

// maxLayers bounds the layers of an image; overlayfs takes 500.
const maxLayers = 512

// stream reads a registry's blob, over as many connections as it takes, and fails before EOF if it hasn't its digest.
type stream struct {
	ctx  context.Context
	repo *registry
	d    v1.Descriptor
	n    int64 // bytes that were read, and are in sum
	sum  hash.Hash
	mu   sync.Mutex    // of what Close, which may come at any time, shares with Read
	body io.ReadCloser // nil: none is open
	shut bool          // it has been closed
	from int64         // n when it was opened
	poor int           // connections in a row that brought hardly anything
	err  error         // the end
}

func openStream(ctx context.Context, r *registry, d v1.Descriptor) (*stream, error) {
	s := &stream{ctx: ctx, repo: r, d: d, sum: sha256.New()}
	if err := s.connect(nil); err != nil {
		return nil, s.fail(err)
	}
	return s, nil
}

func (s *stream) fail(err error) error {
	if s.ctx.Err() != nil {
		s.err = context.Cause(s.ctx)
	} else {
		s.err = fmt.Errorf("read blob %s of %q: %w", s.d.Digest, s.repo.repo, failure(err))
	}
	return s.err
}

// connect asks for what is missing, again and again until there is at least a byte of it. broke is why it isn't the first time.
func (s *stream) connect(broke error) error {
	return s.repo.client.pace.retry(s.ctx, func() (err error) {
		if broke != nil {
			err, broke = broke, nil
			return err
		}
		body, err := s.repo.part(s.ctx, s.d, s.n)
		if err != nil {
			return err
		}
		var first [1]byte
		if s.n < s.d.Size {
			if _, err := io.ReadFull(body, first[:]); err != nil {
				body.Close()
				return early(err)
			}
			body = &unread{first[:], body}
		}
		s.from = s.n
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.body != nil {
			s.body.Close()
		}
		s.body = body
		if s.shut {
			s.body.Close()
			return os.ErrClosed
		}
		return nil
	})
}

// early makes an error of an end that came too early.
func early(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &brokenError{io.ErrUnexpectedEOF}
	}
	return err
}

// unread puts bytes back before a body.
type unread struct {
	head []byte
	io.ReadCloser
}

func (u *unread) Read(p []byte) (int, error) {
	if len(u.head) == 0 {
		return u.ReadCloser.Read(p)
	}
	n := copy(p, u.head)
	u.head = u.head[n:]
	return n, nil
}

func (s *stream) Read(p []byte) (int, error) {
	for s.err == nil && s.n < s.d.Size && len(p) > 0 {
		if err := s.ctx.Err(); err != nil { // what has come already doesn't keep it from ending
			s.fail(err)
			break
		}
		n, err := s.body.Read(p[:min(int64(len(p)), s.d.Size-s.n)])
		s.sum.Write(p[:n])
		s.n += int64(n)
		if n > 0 {
			return n, nil
		}
		if err != nil {
			if s.poor++; s.n-s.from >= slowest {
				s.poor = 0
			}
			s.mu.Lock()
			shut := s.shut
			s.mu.Unlock()
			if err = early(err); shut {
				err = os.ErrClosed
			} else if s.poor < s.repo.client.pace.tries {
				err = s.connect(err)
			}
			if err != nil {
				s.fail(err)
			}
		}
	}
	if s.err == nil && s.n == s.d.Size {
		s.err = io.EOF
		if got := hex.EncodeToString(s.sum.Sum(nil)); got != s.d.Digest.Hex {
			s.fail(fmt.Errorf("%w: it has digest sha256:%s", ErrAltered, got))
		}
	}
	return 0, s.err
}

func (s *stream) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shut = true
	if s.body == nil {
		return nil
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

// newImage gives the image of a manifest. from is the repository that has its blobs, for mounting them; it may be the zero value.
func newImage(raw []byte, media types.MediaType, from name.Repository, open func(v1.Descriptor) (io.ReadCloser, error)) (v1.Image, error) {
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("%w: its manifest: %w", ErrAltered, err)
	}
	if len(m.Layers) > maxLayers {
		return nil, fmt.Errorf("%w: it has %d layers", ErrRefused, len(m.Layers))
	}
	for _, d := range blobs(m) {
		if err := usable(d); err != nil {
			return nil, fmt.Errorf("%w: its manifest: %w", ErrAltered, err)
		}
	}
	img, err := partial.CompressedToImage(&image{raw, media, m, open})
	if err != nil || from == (name.Repository{}) {
		return img, err
	}
	return &mountable{img, from}, nil
}

// blobs lists what an image consists of, each blob once.
func blobs(m *v1.Manifest) []v1.Descriptor {
	var out []v1.Descriptor
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if !slices.ContainsFunc(out, func(o v1.Descriptor) bool { return o.Digest == d.Digest }) {
			out = append(out, d)
		}
	}
	return out
}

func usable(d v1.Descriptor) error {
	if d.Digest.Algorithm != "sha256" || d.Size < 0 {
		return fmt.Errorf("the blob %q with %d bytes is not usable", d.Digest, d.Size)
	}
	return nil
}

func (i *image) RawManifest() ([]byte, error)        { return i.raw, nil }
func (i *image) MediaType() (types.MediaType, error) { return i.media, nil }

func (i *image) RawConfigFile() ([]byte, error) {
	d := i.manifest.Config
	if d.Size > maxManifest {
		return nil, fmt.Errorf("%w: its config has %d bytes", ErrRefused, d.Size)
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
	for _, d := range blobs(i.manifest) {
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
func (l *imageLayer) Descriptor() (*v1.Descriptor, error) { return l.d.DeepCopy(), nil }
func (l *imageLayer) Compressed() (io.ReadCloser, error)  { return l.image.open(l.d) }

// mountable is an image whose layers say which repository they are from.
type mountable struct {
	v1.Image
	from name.Repository
}

func (m *mountable) layer(l v1.Layer, err error) (v1.Layer, error) {
	if err != nil {
		return nil, err
	}
	h, err := l.Digest()
	if err != nil {
		return nil, err
	}
	return &remote.MountableLayer{Layer: l, Reference: m.from.Digest(h.String())}, nil
}

func (m *mountable) Layers() ([]v1.Layer, error) {
	all, err := m.Image.Layers()
	for i := range all {
		if all[i], err = m.layer(all[i], err); err != nil {
			return nil, err
		}
	}
	return all, err
}

func (m *mountable) LayerByDigest(h v1.Hash) (v1.Layer, error) {
	return m.layer(m.Image.LayerByDigest(h))
}
func (m *mountable) LayerByDiffID(h v1.Hash) (v1.Layer, error) {
	return m.layer(m.Image.LayerByDiffID(h))
}

// openFile reads a file that is to have a descriptor's bytes, and fails before EOF if it hasn't.
func openFile(name string, d v1.Descriptor) (io.ReadCloser, error) {
	f, err := openRegular(name)
	if err != nil {
		return nil, err
	}
	return &checkedFile{file: f, d: d, sum: sha256.New()}, nil
}

// openRegular opens a file that is one: others may block, or never end.
func openRegular(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%q is not a regular file", name)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
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
