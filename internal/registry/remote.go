package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// registry is a repository behind the distribution API (opencontainers/distribution-spec).
type registry struct {
	client *Client
	repo   name.Repository
}

func (r *registry) local() bool                             { return false }
func (r *registry) lock(context.Context) (io.Closer, error) { return unlocked{}, nil }

// reader is what reads a repository: it has logged in.
type reader struct {
	once   sync.Once
	err    error
	http   *http.Client
	puller *remote.Puller
}

func (r *registry) reader(ctx context.Context) (*reader, error) {
	c := r.client
	c.mu.Lock()
	rd, ok := c.readers[r.repo]
	if !ok {
		rd = &reader{}
		c.readers[r.repo] = rd
	}
	c.mu.Unlock()
	rd.once.Do(func() { rd.err = rd.login(ctx, c, r.repo) })
	if rd.err != nil { // the next one tries again
		c.mu.Lock()
		if c.readers[r.repo] == rd {
			delete(c.readers, r.repo)
		}
		c.mu.Unlock()
		return nil, rd.err
	}
	return rd, nil
}

func (rd *reader) login(ctx context.Context, c *Client, repo name.Repository) error {
	auth, err := authn.Resolve(ctx, c.options.Keychain, repo)
	if err != nil {
		return fmt.Errorf("%w: credentials: %w", ErrDenied, err)
	}
	retrying := transport.NewRetry(transport.NewUserAgent(c.transport, userAgent), transport.WithRetryBackoff(backoff),
		transport.WithRetryPredicate(temporary), transport.WithRetryStatusCodes(retried...))
	t, err := transport.NewWithContext(ctx, repo.Registry, auth, retrying, []string{repo.Scope(transport.PullScope)})
	if err != nil {
		return failure(err)
	}
	rd.http = &http.Client{Transport: t}
	rd.puller, err = remote.NewPuller(remote.WithTransport(t), remote.WithJobs(hostRequests))
	return err
}

func (r *registry) ref(identifier string) name.Reference {
	if h, err := v1.NewHash(identifier); err == nil {
		return r.repo.Digest(h.String())
	}
	return r.repo.Tag(identifier)
}

func (r *registry) tags(ctx context.Context) ([]string, error) {
	rd, err := r.reader(ctx)
	if err != nil {
		return nil, err
	}
	list, err := rd.puller.List(ctx, r.repo)
	if err != nil {
		return nil, failure(err)
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}

func (r *registry) head(ctx context.Context, identifier string) (v1.Descriptor, error) {
	rd, err := r.reader(ctx)
	if err != nil {
		return v1.Descriptor{}, err
	}
	d, err := rd.puller.Head(ctx, r.ref(identifier))
	if err != nil {
		return v1.Descriptor{}, failure(err)
	}
	return *d, nil
}

func (r *registry) manifest(ctx context.Context, identifier string) ([]byte, types.MediaType, error) {
	rd, err := r.reader(ctx)
	if err != nil {
		return nil, "", err
	}
	d, err := rd.puller.Get(ctx, r.ref(identifier))
	if err != nil {
		return nil, "", failure(err)
	}
	if len(d.Manifest) > maxManifest {
		return nil, "", fmt.Errorf("its manifest has more than %d bytes", maxManifest)
	}
	return d.Manifest, d.MediaType, nil
}

func (r *registry) blob(ctx context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error) {
	rd, err := r.reader(ctx)
	if err != nil {
		return nil, err
	}
	u := url.URL{Scheme: r.repo.Scheme(), Host: r.repo.RegistryStr(), Path: fmt.Sprintf("/v2/%s/blobs/%s", r.repo.RepositoryStr(), d.Digest)}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept-Encoding", "identity")
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	}
	resp, err := rd.http.Do(req)
	if err != nil {
		return nil, failure(err)
	}
	if err := transport.CheckError(resp, http.StatusOK, http.StatusPartialContent); err != nil {
		resp.Body.Close()
		return nil, failure(err)
	}
	switch {
	case offset > 0 && resp.StatusCode == http.StatusOK: // the server ignores ranges
		if _, err := io.CopyN(io.Discard, resp.Body, offset); err != nil {
			resp.Body.Close()
			return nil, failure(err)
		}
	case resp.StatusCode == http.StatusPartialContent && !strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", offset)):
		resp.Body.Close()
		return nil, fmt.Errorf("%w: the server answers with another range, %q", ErrUnavailable, resp.Header.Get("Content-Range"))
	}
	return resp.Body, nil
}

func (r *registry) push(ctx context.Context, identifier string, t remote.Taggable) error {
	ref := r.ref(identifier)
	if m, ok := t.(rawManifest); ok {
		return failure(r.client.pusher.Put(ctx, ref, m))
	}
	return failure(r.client.pusher.Push(ctx, ref, t))
}

func (r *registry) referrers(ctx context.Context, subject v1.Hash) ([]v1.Descriptor, error) {
	rd, err := r.reader(ctx)
	if err != nil {
		return nil, err
	}
	idx, err := remote.Referrers(r.repo.Digest(subject.String()), remote.WithTransport(rd.http.Transport), remote.WithContext(ctx))
	if err != nil {
		return nil, failure(err)
	}
	m, err := idx.IndexManifest()
	if err != nil {
		return nil, err
	}
	return m.Manifests, nil
}

// failure says of what kind an error of a request is.
func failure(err error) error {
	if err == nil || errors.Is(err, context.Canceled) {
		return err
	}
	if e := (*transport.Error)(nil); errors.As(err, &e) {
		switch {
		case e.StatusCode == http.StatusNotFound:
			return fmt.Errorf("%w: %w", ErrNotFound, err)
		case e.StatusCode == http.StatusUnauthorized, e.StatusCode == http.StatusForbidden:
			return fmt.Errorf("%w: %w", ErrDenied, err)
		case temporary(err):
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		return err
	}
	if n := (net.Error)(nil); temporary(err) || errors.As(err, &n) {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
}
