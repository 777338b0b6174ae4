package cache

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
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
)

// A Registry is a Store in a repository that many machines share, of a registry or a layout directory: the tag key-<hex> names an
// entry's image, and its log and lock are attached to that. An entry comes whole: its tag is set last. It stays as it is.
//
// The bytes of an entry are checked against the digests that the repository gives. Whether they are what the key stands for, who asks
// must check. A Get or Put that gets nowhere for RegistryOptions.Patience fails, with an error that wraps registry.ErrUnavailable.
type Registry struct {
	repo    *registry.Repo
	options RegistryOptions
	doubted sync.Map // the keys that Get found nothing good for: Put doesn't take their tags at their word
}

var _ Store = (*Registry)(nil)

// RegistryOptions are settings of a Registry.
type RegistryOptions struct {
	Temp     string        // folder for unnamed files: the layers that Get gave, for as long as they are referenced. Default: os.TempDir().
	Warn     func(string)  // is told of damaged entries, one line each; may be called concurrently. Default: nobody is told.
	Patience time.Duration // default: 10 seconds
}

const (
	maxEntry  = 2 << 30 // bytes of an entry's layers
	maxLayers = 64      // of an entry
	leastRate = 64_000  // bytes in a second; what is slower is as good as not moving
)

// NewRegistry makes a store of a repository, which need not exist. Nothing is asked of it yet.
func NewRegistry(repo *registry.Repo, o RegistryOptions) *Registry {
	if o.Temp == "" {
		o.Temp = os.TempDir()
	}
	if o.Warn == nil {
		o.Warn = func(string) {}
	}
	if o.Patience == 0 {
		o.Patience = 10 * time.Second
	}
	return &Registry{repo: repo, options: o}
}

func tag(key v1.Hash) string { return "key-" + key.Hex }

// Get implements Store. A damaged entry is reported through RegistryOptions.Warn, and stays. The Log of one without, or whose log can't
// be read, is a line that says so. Lock is nil: it is attached for others, and who has the key has the lock.
func (s *Registry) Get(ctx context.Context, key v1.Hash) (Entry, error) {
	if err := checkHash(key); err != nil {
		return Entry{}, fmt.Errorf("read cache key %q: %w", key, err)
	}
	ctx, p := newPatience(ctx, s.options.Patience)
	defer p.end()
	e, err := s.load(ctx, key, p)
	if err == nil {
		return e, nil
	}
	s.doubted.Store(key, true)
	var bad *damage
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case errors.As(err, &bad):
		s.options.Warn(fmt.Sprintf("shared cache %q: the entry of key %s is damaged and was passed over: %s", s.repo.Name(), key, oneLine(bad)))
		err = fmt.Errorf("%w: it is damaged: %w", ErrNotFound, bad.err)
	}
	return Entry{}, fmt.Errorf("read cache entry %q: %w", key, err)
}

// load reads an entry. Damage comes back as *damage.
func (s *Registry) load(ctx context.Context, key v1.Hash, p *patience) (Entry, error) {
	d, raw, err := s.repo.Manifest(ctx, tag(key))
	if errors.Is(err, registry.ErrNotFound) {
		return Entry{}, ErrNotFound
	}
	if err != nil {
		return Entry{}, entryError(err)
	}
	if !d.MediaType.IsImage() {
		return Entry{}, damaged("its tag names no image but a %.80q", d.MediaType)
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return Entry{}, damaged("manifest %s: %w", d.Digest, err)
	}
	if err := checkManifest(m); err != nil {
		return Entry{}, err
	}
	// All by digest: whatever the tag names by now.
	img := &image{manifest: raw, mediaType: d.MediaType, layers: map[v1.Hash]*layer{}}
	for _, desc := range m.Layers {
		img.layers[desc.Digest] = &layer{desc: desc}
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	g.Go(func() (err error) {
		img.config, err = s.read(gctx, m.Config, p)
		return entryError(err)
	})
	for _, l := range img.layers {
		g.Go(func() (err error) {
			l.f, err = s.download(gctx, l.desc, p)
			return entryError(err)
		})
	}
	var log []byte
	var logErr error
	g.Go(func() error {
		var with artifact.Attachments
		with, logErr = artifact.ReadAttachmentsOf(gctx, s.repo, d.Digest, artifact.Meta{}, artifact.LogType)
		log = with.Log
		return nil
	})
	if err := g.Wait(); err != nil {
		return Entry{}, err
	}
	if err := context.Cause(ctx); err != nil {
		return Entry{}, err
	}
	i, err := partial.CompressedToImage(img)
	if err != nil {
		return Entry{}, err
	}
	switch {
	case logErr != nil:
		log = fmt.Appendf(nil, "[the log of this build can't be read from %q: %s]\n", s.repo.Name(), oneLine(logErr))
	case len(log) == 0:
		log = fmt.Appendf(nil, "[%q has no log of this build]\n", s.repo.Name())
	}
	return Entry{Image: i, Log: log}, nil
}

// checkManifest bounds what an image makes this machine download.
func checkManifest(m *v1.Manifest) error {
	if len(m.Layers) > maxLayers {
		return damaged("it has %d layers, more than %d", len(m.Layers), maxLayers)
	}
	if m.Config.Size > maxManifest {
		return damaged("its config has %d bytes, more than %d", m.Config.Size, maxManifest)
	}
	var total int64
	for _, d := range append([]v1.Descriptor{m.Config}, m.Layers...) {
		if err := checkHash(d.Digest); err != nil {
			return damaged("%w", err)
		}
		if d.Size < 0 || d.Size > maxEntry-total {
			return damaged("it has more than %d bytes", maxEntry)
		}
		total += d.Size
	}
	return nil
}

// entryError tells what is wrong with an entry from what is wrong with the repository. Once there is a manifest, what it names must be
// there.
func entryError(err error) error {
	if errors.Is(err, registry.ErrAltered) || errors.Is(err, registry.ErrNotFound) {
		return damaged("%w", err)
	}
	return err
}

// read reads a small blob.
func (s *Registry) read(ctx context.Context, d v1.Descriptor, p *patience) ([]byte, error) {
	r, err := s.repo.Blob(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(p.watch(r))
}

// download copies a blob to an unnamed file.
func (s *Registry) download(ctx context.Context, d v1.Descriptor, p *patience) (_ *os.File, err error) {
	r, err := s.repo.Blob(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	f, err := durable.Unnamed(s.options.Temp)
	if err != nil {
		return nil, err
	}
	if _, err := io.Copy(f, p.watch(contextReader{ctx, r})); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Put implements Store. Where the tag names the image already, that is all that is asked.
func (s *Registry) Put(ctx context.Context, key v1.Hash, e Entry) error {
	ctx, p := newPatience(ctx, s.options.Patience)
	defer p.end()
	err := s.put(ctx, key, e, p)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("write cache entry %q: %w", key, err)
	}
	s.doubted.Delete(key)
	return nil
}

func (s *Registry) put(ctx context.Context, key v1.Hash, e Entry, p *patience) error {
	if err := checkHash(key); err != nil {
		return err
	}
	img, err := newOutgoing(e.Image, p)
	if err != nil {
		return err
	}
	subject, err := partial.Descriptor(img)
	if err != nil {
		return err
	}
	if there, err := s.there(ctx, key, subject.Digest); err != nil || there {
		return err
	}
	lock, err := s.repo.Lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	if there, err := s.there(ctx, key, subject.Digest); err != nil || there {
		return err
	}
	if err := s.repo.Push(ctx, subject.Digest.String(), img); err != nil {
		return err
	}
	with := artifact.Attachments{Log: capLog(e.Log), Created: time.Now(), Lock: e.Lock}
	if err := artifact.Attach(ctx, s.repo, *subject, with); err != nil {
		return err
	}
	return s.repo.PutManifest(ctx, tag(key), subject.MediaType, img.manifest)
}

// there tells whether a key's tag names that image. If it names another the error wraps ErrDiffers.
func (s *Registry) there(ctx context.Context, key, digest v1.Hash) (bool, error) {
	d, err := s.repo.Head(ctx, tag(key))
	switch {
	case errors.Is(err, registry.ErrNotFound), errors.Is(err, registry.ErrAltered): // what is damaged is of no use to anybody
		return false, nil
	case err != nil:
		return false, err
	case d.Digest != digest:
		return false, fmt.Errorf("%w: %s, and not %s", ErrDiffers, d.Digest, digest)
	}
	_, doubted := s.doubted.Load(key)
	return !doubted, nil
}

// outgoing is an image whose layers are read by digest, as its manifest has them, and fail before EOF if their bytes are others.
type outgoing struct {
	v1.Image
	manifest []byte
	layers   []v1.Layer
}

func newOutgoing(from v1.Image, p *patience) (*outgoing, error) {
	raw, err := from.RawManifest()
	if err != nil {
		return nil, err
	}
	if len(raw) > maxManifest {
		return nil, fmt.Errorf("a manifest of %d bytes, more than %d", len(raw), maxManifest)
	}
	m, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	if err := checkManifest(m); err != nil {
		return nil, err
	}
	config, err := from.RawConfigFile()
	if err != nil {
		return nil, err
	}
	if h := hashBytes(config); h != m.Config.Digest {
		return nil, fmt.Errorf("its config has digest %s, want %s", h, m.Config.Digest)
	}
	o := &outgoing{Image: from, manifest: raw}
	for _, d := range m.Layers {
		o.layers = append(o.layers, &outgoingLayer{from, d, p})
	}
	return o, nil
}

func (o *outgoing) Layers() ([]v1.Layer, error) { return o.layers, nil }

func (o *outgoing) LayerByDigest(h v1.Hash) (v1.Layer, error) {
	for _, l := range o.layers {
		if d, err := l.Digest(); err == nil && d == h {
			return l, nil
		}
	}
	return o.Image.LayerByDigest(h) // the config
}

type outgoingLayer struct {
	from v1.Image
	d    v1.Descriptor
	p    *patience
}

func (l *outgoingLayer) Digest() (v1.Hash, error)            { return l.d.Digest, nil }
func (l *outgoingLayer) Size() (int64, error)                { return l.d.Size, nil }
func (l *outgoingLayer) MediaType() (types.MediaType, error) { return l.d.MediaType, nil }

func (l *outgoingLayer) inner() (v1.Layer, error) { return l.from.LayerByDigest(l.d.Digest) }

func (l *outgoingLayer) DiffID() (v1.Hash, error) {
	in, err := l.inner()
	if err != nil {
		return v1.Hash{}, err
	}
	return in.DiffID()
}

func (l *outgoingLayer) Uncompressed() (io.ReadCloser, error) {
	in, err := l.inner()
	if err != nil {
		return nil, err
	}
	return in.Uncompressed()
}

func (l *outgoingLayer) Compressed() (io.ReadCloser, error) {
	in, err := l.inner()
	if err != nil {
		return nil, err
	}
	r, err := in.Compressed()
	if err != nil {
		return nil, err
	}
	return struct {
		io.Reader
		io.Closer
	}{&exact{r: l.p.watch(r), d: l.d, sum: sha256.New()}, r}, nil
}

// exact fails before it gives the last byte when the bytes are not those of a descriptor: who knows their number need not ask for more.
type exact struct {
	r   io.Reader
	d   v1.Descriptor
	n   int64
	sum hash.Hash
}

func (e *exact) Read(b []byte) (int, error) {
	n, err := e.r.Read(b)
	e.n += int64(n)
	e.sum.Write(b[:n])
	for e.n == e.d.Size && err == nil {
		var more [1]byte
		var m int
		m, err = e.r.Read(more[:])
		e.n += int64(m)
	}
	if e.n > e.d.Size || err == io.EOF && (e.n != e.d.Size || hex.EncodeToString(e.sum.Sum(nil)) != e.d.Digest.Hex) {
		return 0, fmt.Errorf("layer %s: its bytes are others", e.d.Digest)
	}
	return n, err
}

// patience ends a context when what it is for gets nowhere: every byte buys time, up to the limit.
type patience struct {
	limit  time.Duration
	cancel context.CancelCauseFunc
	timer  *time.Timer
	mu     sync.Mutex
	until  time.Time
}

func newPatience(ctx context.Context, limit time.Duration) (context.Context, *patience) {
	ctx, cancel := context.WithCancelCause(ctx)
	p := &patience{limit: limit, cancel: cancel, until: time.Now().Add(limit)}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timer = time.AfterFunc(limit, p.check)
	return ctx, p
}

func (p *patience) check() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if left := time.Until(p.until); left > 0 {
		p.timer.Reset(left)
		return
	}
	p.cancel(fmt.Errorf("%w: it got nowhere for %s", registry.ErrUnavailable, p.limit))
}

func (p *patience) end() {
	p.timer.Stop()
	p.cancel(nil)
}

func (p *patience) moved(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.until = p.until.Add(time.Duration(n) * time.Second / leastRate)
	if most := time.Now().Add(p.limit); p.until.After(most) {
		p.until = most
	}
}

func (p *patience) watch(r io.Reader) io.Reader { return &watched{r, p} }

type watched struct {
	r io.Reader
	p *patience
}

func (w *watched) Read(b []byte) (int, error) {
	n, err := w.r.Read(b)
	w.p.moved(n)
	return n, err
}

// oneLine bounds what a server can make a message say.
func oneLine(err error) string {
	const longest = 400 // bytes
	text, _, _ := strings.Cut(err.Error(), "\n")
	if len(text) > longest {
		text = strings.ToValidUTF8(text[:longest], "") + "…"
	}
	return text
}
