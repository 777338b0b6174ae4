package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"
)

// content is everything that a push may have to send, in an order in which each manifest comes after what it names.
type content struct {
	blobs     []blobSource
	manifests [][]manifestSource // those of one step name nothing of the same
}

type blobSource struct {
	v1.Descriptor
	open func() (io.ReadCloser, error)
	from []name.Repository // that may have it too
}

type manifestSource struct {
	v1.Descriptor
	raw []byte
}

// top is the manifest that the rest is for.
func (c *content) top() manifestSource {
	last := c.manifests[len(c.manifests)-1]
	return last[len(last)-1]
}

// contents lists what an image, an index with its images, or a manifest consists of.
func contents(t remote.Taggable) (*content, error) {
	c := &content{}
	d, err := c.add(t, 0)
	if err != nil {
		return nil, err
	}
	if len(c.manifests) == 0 {
		return nil, fmt.Errorf("nothing in %s", d.Digest)
	}
	return c, nil
}

const maxDepth = 4 // of indexes in indexes

func (c *content) add(t remote.Taggable, depth int) (d v1.Descriptor, err error) {
	step := 0 // the first that comes after all that t names
	switch t := t.(type) {
	case v1.ImageIndex:
		if depth == maxDepth {
			return d, fmt.Errorf("an index below %d others", depth)
		}
		children, err := partial.Manifests(t)
		if err != nil {
			return d, err
		}
		for _, child := range children {
			m, ok := child.(remote.Taggable)
			if !ok {
				return d, fmt.Errorf("an index with a %T", child)
			}
			if _, err := c.add(m, depth+1); err != nil {
				return d, err
			}
		}
		step = len(c.manifests)
	case v1.Image:
		if err := c.addImage(t); err != nil {
			return d, err
		}
	}
	raw, err := t.RawManifest()
	if err != nil {
		return d, err
	}
	var said types.MediaType
	if m, ok := t.(interface {
		MediaType() (types.MediaType, error)
	}); ok {
		if said, err = m.MediaType(); err != nil {
			return d, err
		}
	}
	if len(raw) > maxManifest {
		return d, fmt.Errorf("its manifest has %d bytes; at most %d can be read again", len(raw), maxManifest)
	}
	if d, err = describe(raw, said, ""); err != nil {
		return d, err
	}
	for _, have := range c.manifests {
		if slices.ContainsFunc(have, func(m manifestSource) bool { return m.Digest == d.Digest }) {
			return d, nil
		}
	}
	for len(c.manifests) <= step {
		c.manifests = append(c.manifests, nil)
	}
	c.manifests[step] = append(c.manifests[step], manifestSource{d, raw})
	return d, nil
}

func (c *content) addImage(img v1.Image) error {
	m, err := img.Manifest()
	if err != nil {
		return err
	}
	for _, d := range blobs(m) {
		if slices.ContainsFunc(c.blobs, func(b blobSource) bool { return b.Digest == d.Digest }) {
			continue
		}
		if err := usable(d); err != nil {
			return err
		}
		b := blobSource{Descriptor: d}
		if d.Digest == m.Config.Digest {
			config, err := img.RawConfigFile()
			if err != nil {
				return err
			}
			b.open = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(config)), nil }
		} else {
			l, err := img.LayerByDigest(d.Digest)
			if err != nil {
				return err
			}
			if ml, ok := l.(*remote.MountableLayer); ok {
				b.from = []name.Repository{ml.Reference.Context()}
			}
			b.open = l.Compressed
		}
		c.blobs = append(c.blobs, b)
	}
	return nil
}

// push sends the blobs, and then the manifests from the leaves up. The last request is the one that identifier is named by.
func (r *registry) push(ctx context.Context, identifier string, c *content, o PushOptions) error {
	err := r.send(ctx, identifier, c, o)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return failure(err)
}

func (r *registry) send(ctx context.Context, identifier string, c *content, o PushOptions) error {
	var from []name.Repository
	for _, ref := range o.From {
		if !ref.IsLayout() { // those have nothing to share
			from = append(from, ref.repo)
		}
	}
	m := newMeter(o.Progress)
	for _, b := range c.blobs {
		m.add(0, b.Size)
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(requests)
	for _, b := range c.blobs {
		b.from = append(slices.Clone(from), b.from...)
		g.Go(func() error { return r.sendBlob(gctx, b, m) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, step := range c.manifests {
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(requests)
		for _, one := range step {
			id := one.Digest.String()
			if one.Digest == c.top().Digest {
				id = identifier
			}
			g.Go(func() error { return r.sendManifest(gctx, id, one) })
		}
		if err := g.Wait(); err != nil {
			return err
		}
	}
	return nil
}

func (r *registry) sendManifest(ctx context.Context, identifier string, m manifestSource) error {
	a, err := r.writing(ctx)
	if err != nil {
		return err
	}
	// A tag that is right already is left alone: some registries refuse to set one again.
	if d, err := a.head(ctx, identifier); err == nil && d.Digest == m.Digest {
		return nil
	} else if err != nil && answered(ctx, err) == nil && !errors.Is(err, ErrAltered) && !errors.Is(err, ErrRefused) {
		return err
	}
	return a.putManifest(ctx, identifier, m.MediaType, m.raw)
}

func (a *access) putManifest(ctx context.Context, identifier string, media types.MediaType, raw []byte) error {
	_, _, err := a.small(ctx, request{
		method: http.MethodPut, url: a.url("/manifests/" + identifier), header: map[string]string{"Content-Type": string(media)},
		body: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }, size: int64(len(raw)),
	}, maxAnswer, http.StatusCreated, http.StatusOK, http.StatusAccepted)
	return err
}

// uploadTries bounds how often a blob's bytes are sent.
const uploadTries = 3

func (r *registry) sendBlob(ctx context.Context, b blobSource, m *meter) error {
	a, err := r.writing(ctx)
	if err != nil {
		return err
	}
	_, _, err = a.small(ctx, request{method: http.MethodHead, url: a.url("/blobs/" + b.Digest.String())}, 0, http.StatusOK)
	if err == nil {
		m.add(b.Size, 0)
		return nil
	}
	if e := answered(ctx, err); e == nil || e.status != http.StatusNotFound {
		return err
	}
	for _, from := range b.from {
		if mounted, err := r.mount(ctx, b, from); err != nil {
			return err
		} else if mounted {
			m.add(b.Size, 0)
			return nil
		}
	}
	done, err := take(ctx, a.host.transfers)
	if err != nil {
		return err
	}
	defer done()
	body := &counted{open: b.open, meter: m}
	pace := a.client.pace
	pace.tries = min(pace.tries, uploadTries)
	return pace.retry(ctx, func() error { return a.upload(ctx, b, body) })
}

// mount asks for a blob that another repository of the registry may have.
func (r *registry) mount(ctx context.Context, b blobSource, from name.Repository) (bool, error) {
	if from.RegistryStr() != r.repo.RegistryStr() || from.RepositoryStr() == r.repo.RepositoryStr() {
		return false, nil
	}
	a, err := r.writing(ctx, from)
	if err == nil {
		u := a.url("/blobs/uploads/")
		u.RawQuery = url.Values{"mount": {b.Digest.String()}, "from": {from.RepositoryStr()}}.Encode()
		var resp *http.Response
		resp, _, err = a.small(ctx, request{method: http.MethodPost, url: u}, maxAnswer, http.StatusCreated, http.StatusAccepted)
		if err == nil && resp.StatusCode == http.StatusAccepted { // it has begun an upload instead
			a.drop(ctx, u, resp.Header.Get("Location"))
		}
		if err == nil {
			return resp.StatusCode == http.StatusCreated, nil
		}
	}
	// Whoever may not read there may still write here. A registry that can't be reached is another matter.
	if ctx.Err() != nil || temporary(err) {
		return false, err
	}
	return false, nil
}

// upload sends a blob once.
func (a *access) upload(ctx context.Context, b blobSource, body *counted) error {
	begin := a.url("/blobs/uploads/")
	resp, _, err := a.small(ctx, request{method: http.MethodPost, url: begin}, maxAnswer, http.StatusAccepted)
	if err != nil {
		return &finalError{err}
	}
	to, err := a.follow(begin, resp.Header.Get("Location"))
	if err != nil {
		return err
	}
	put := *to
	q := put.Query()
	q.Set("digest", b.Digest.String())
	put.RawQuery = q.Encode()
	resp, err = a.send(ctx, request{method: http.MethodPut, url: &put, body: body.reader, size: b.Size, blob: true,
		header: map[string]string{"Content-Type": "application/octet-stream"}}, http.StatusCreated, http.StatusNoContent)
	if err == nil {
		return resp.Body.Close()
	}
	body.reset()
	if e := answered(ctx, err); e != nil && (e.status == http.StatusNotFound || slices.Contains(e.codes, "BLOB_UPLOAD_UNKNOWN") ||
		slices.Contains(e.codes, "BLOB_UPLOAD_INVALID")) { // it has been restarted, and knows of no upload
		e.lost = true
		return err
	}
	a.drop(ctx, to, to.String())
	return err
}

// drop tells a registry that an upload won't be finished. Those that don't care drop it in time.
func (a *access) drop(ctx context.Context, from *url.URL, location string) {
	to, err := a.follow(from, location)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.client.pace.patience/20)
	defer cancel()
	if resp, err := a.send(ctx, request{method: http.MethodDelete, url: to}, http.StatusNoContent); err == nil {
		resp.Body.Close()
	}
}

// counted opens a blob for sending, and reports what is read of it, once.
type counted struct {
	open  func() (io.ReadCloser, error)
	meter *meter
	mu    sync.Mutex
	n     int64
	last  *countedReader // earlier ones count no more
}

func (c *counted) reader() (io.ReadCloser, error) {
	rc, err := c.open()
	if err != nil {
		return nil, err
	}
	c.reset()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last = &countedReader{rc, c}
	return c.last, nil
}

func (c *counted) reset() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.meter.add(-c.n, 0)
	c.n, c.last = 0, nil
}

type countedReader struct {
	io.ReadCloser
	of *counted
}

func (r *countedReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	r.of.mu.Lock()
	defer r.of.mu.Unlock()
	if r.of.last == r {
		r.of.n += int64(n)
		r.of.meter.add(int64(n), 0)
	}
	return n, err
}

// meter adds up what concurrent work reports.
type meter struct {
	mu          sync.Mutex
	report      func(done, total int64)
	done, total int64
}

func newMeter(report func(done, total int64)) *meter { return &meter{report: report} }

func (m *meter) add(done, total int64) {
	if m.report == nil || done == 0 && total == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done += done
	m.total += total
	m.report(m.done, m.total)
}
