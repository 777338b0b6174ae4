// Package registry reads and writes repositories of OCI images, in registries and in layout directories.
package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// What errors wrap.
var (
	ErrNotFound    = errors.New("not found")              // the repository has no such tag, manifest or blob, or doesn't exist
	ErrDenied      = errors.New("access denied")          // it wants other credentials
	ErrUnavailable = errors.New("unavailable")            // it can't be reached, or goes on failing
	ErrAltered     = errors.New("not what its digest is") // its bytes are not those that were asked for
	ErrOffline     = errors.New("offline")                // it is on the network, which isn't to be used
)

// maxManifest bounds the manifests and configs that are read into memory, in bytes.
const maxManifest = 4 << 20

// Options describe a Client.
type Options struct {
	// Dir is a folder for downloads that are cut off, made when it's needed: the next one goes on from there.
	Dir string
	// Insecure are registries ("host" or "host:port") that may be spoken to without TLS. Those on the loopback device always may.
	Insecure []string
	// Offline makes every use of a registry an error that wraps ErrOffline. Layout directories can be used.
	Offline bool
	// Keychain has the credentials. Default: Docker's and Podman's configuration with their credential helpers, and GITHUB_TOKEN for
	// ghcr.io.
	Keychain authn.Keychain
	// Transport is for tests. Default: one with this package's timeouts, and the proxy of the environment.
	Transport http.RoundTripper
}

// A Client shares connections, credentials and limits among repositories. It is safe for concurrent use.
type Client struct {
	options   Options
	transport http.RoundTripper // with retries
	pusher    *remote.Pusher
	mu        sync.Mutex
	readers   map[name.Repository]*reader
}

// New makes a client. Nothing is asked of a registry yet.
func New(o Options) (*Client, error) {
	if o.Keychain == nil {
		o.Keychain = defaultKeychain
	}
	c := &Client{options: o, readers: map[name.Repository]*reader{}}
	c.transport = newTransport(o)
	var err error
	c.pusher, err = remote.NewPusher(c.remoteOptions()...)
	return c, err
}

// Open gives a reference's repository. It need not exist.
func (c *Client) Open(r Reference) (*Repo, error) {
	switch {
	case r.dir != "":
		return &Repo{name: r.Repository(), backend: &layout{dir: r.dir}}, nil
	case r.repo == (name.Repository{}):
		return nil, errors.New("open repository: no reference")
	case c.options.Offline:
		return nil, fmt.Errorf("open %q: %w", r.Repository(), ErrOffline)
	}
	repo, err := c.secured(r.repo)
	if err != nil {
		return nil, err
	}
	return &Repo{name: r.Repository(), backend: &registry{client: c, repo: repo}}, nil
}

// A Repo is a repository of images. It is safe for concurrent use, by processes too. What it returns has been checked against
// its digest.
type Repo struct {
	name string
	backend
}

// backend is a kind of repository. An identifier is a tag or a digest.
type backend interface {
	tags(ctx context.Context) ([]string, error)
	head(ctx context.Context, identifier string) (v1.Descriptor, error)
	manifest(ctx context.Context, identifier string) ([]byte, types.MediaType, error)
	// blob gives bytes from an offset on; they are not verified.
	blob(ctx context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error)
	push(ctx context.Context, identifier string, t remote.Taggable) error
	referrers(ctx context.Context, subject v1.Hash) ([]v1.Descriptor, error)
	lock(ctx context.Context) (io.Closer, error)
	// local tells whether blobs can be read again at no cost.
	local() bool
}

// Name is the reference of the repository.
func (r *Repo) Name() string { return r.name }

func (r *Repo) at(identifier string) string {
	if _, err := v1.NewHash(identifier); err == nil {
		return r.name + "@" + identifier
	}
	return r.name + ":" + identifier
}

// Tags lists all tags, sorted. A repository that doesn't exist wraps ErrNotFound.
func (r *Repo) Tags(ctx context.Context) ([]string, error) {
	tags, err := r.tags(ctx)
	if err != nil {
		return nil, fmt.Errorf("list tags of %q: %w", r.name, err)
	}
	return tags, nil
}

// Head gives the descriptor of what a tag or a digest names, without its content.
func (r *Repo) Head(ctx context.Context, identifier string) (v1.Descriptor, error) {
	d, err := r.head(ctx, identifier)
	if err != nil {
		return d, fmt.Errorf("look for %q: %w", r.at(identifier), err)
	}
	return d, nil
}

// Manifest gives the manifest or index that a tag or a digest names.
func (r *Repo) Manifest(ctx context.Context, identifier string) (v1.Descriptor, []byte, error) {
	raw, media, err := r.manifest(ctx, identifier)
	if err != nil {
		return v1.Descriptor{}, nil, fmt.Errorf("read %q: %w", r.at(identifier), err)
	}
	digest, size, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		return v1.Descriptor{}, nil, err
	}
	if h, err := v1.NewHash(identifier); err == nil && h != digest {
		return v1.Descriptor{}, nil, fmt.Errorf("read %q: %w: it has digest %s", r.at(identifier), ErrAltered, digest)
	}
	return v1.Descriptor{MediaType: media, Size: size, Digest: digest}, raw, nil
}

// Blob reads a blob, and fails before EOF if its bytes are not those of the descriptor. A connection that breaks is made again, and
// goes on where it was.
func (r *Repo) Blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	return openBlob(ctx, r, d)
}

// Image gives the image that a tag or a digest names. Its manifest has been read, and it holds on to nothing else: config and layers
// are read from the repository whenever they are asked for, until ctx ends. See Fetch.
func (r *Repo) Image(ctx context.Context, identifier string) (v1.Image, error) {
	d, raw, err := r.Manifest(ctx, identifier)
	if err != nil {
		return nil, err
	}
	if !d.MediaType.IsImage() {
		return nil, fmt.Errorf("read %q: it is not an image but a %q", r.at(identifier), d.MediaType)
	}
	return newImage(raw, d.MediaType, func(d v1.Descriptor) (io.ReadCloser, error) { return r.Blob(ctx, d) })
}

// Fetch gives the image that a tag or a digest names, with all its blobs downloaded to dir, a folder on the file system of the
// client's Dir. It can be read for as long as they are there. progress, which may be nil, is told of the bytes.
func (c *Client) Fetch(ctx context.Context, r *Repo, identifier, dir string, progress func(done, total int64)) (v1.Image, error) {
	img, err := r.Image(ctx, identifier)
	if err != nil || r.local() {
		return img, err
	}
	return c.fetch(ctx, r, img, dir, progress)
}

// Push sends an image, or an index with its images, and then lets identifier name it: a tag, or its own digest. Blobs that the
// repository has are not sent. When it fails, what identifier named before is as it was.
func (r *Repo) Push(ctx context.Context, identifier string, t remote.Taggable) error {
	if err := r.push(ctx, identifier, t); err != nil {
		return fmt.Errorf("push %q: %w", r.at(identifier), err)
	}
	return nil
}

// PutManifest stores a manifest or an index whose content the repository has already, and lets identifier name it.
func (r *Repo) PutManifest(ctx context.Context, identifier string, media types.MediaType, raw []byte) error {
	return r.Push(ctx, identifier, rawManifest{raw, media})
}

// Attach pushes images by their digests that have a subject, a manifest that the repository has, one after the other. Referrers
// lists them then, whoever attaches others meanwhile.
func (r *Repo) Attach(ctx context.Context, subject v1.Hash, images ...v1.Image) error {
	return attach(ctx, r, subject, images)
}

// Referrers lists the manifests with that subject; there may be none. Their ArtifactType is set.
func (r *Repo) Referrers(ctx context.Context, subject v1.Hash) ([]v1.Descriptor, error) {
	list, err := r.referrers(ctx, subject)
	if err != nil {
		return nil, fmt.Errorf("list what refers to %q: %w", r.at(subject.String()), err)
	}
	return list, nil
}

// Lock keeps other processes from changing a layout directory's tags until Close. Registries have no locks: there it does nothing,
// and what was changed must be looked at again.
func (r *Repo) Lock(ctx context.Context) (io.Closer, error) {
	l, err := r.lock(ctx)
	if err != nil {
		return nil, fmt.Errorf("lock %q: %w", r.name, err)
	}
	return l, nil
}

// rawManifest is a Taggable without content of its own.
type rawManifest struct {
	raw   []byte
	media types.MediaType
}

func (m rawManifest) RawManifest() ([]byte, error)        { return m.raw, nil }
func (m rawManifest) MediaType() (types.MediaType, error) { return m.media, nil }

// unlocked is the lock of what has none.
type unlocked struct{}

func (unlocked) Close() error { return nil }

var _ partial.WithRawManifest = rawManifest{}

// attach has the referrers in the list, looks, and does it again where another's change of the list has undone it: registries without
// the referrers API keep the list below a tag (distribution-spec, "Referrers tag schema").
func attach(ctx context.Context, r *Repo, subject v1.Hash, images []v1.Image) error {
	want := map[v1.Hash]v1.Image{}
	for _, img := range images {
		h, err := img.Digest()
		if err != nil {
			return err
		}
		want[h] = img
	}
	const tries = 20
	for try := 0; ; try++ {
		have, err := r.Referrers(ctx, subject)
		if err != nil {
			return err
		}
		for _, d := range have {
			delete(want, d.Digest)
		}
		if len(want) == 0 {
			return nil
		}
		if try == tries {
			return fmt.Errorf("attach to %q: others go on changing the list of what refers to it", r.at(subject.String()))
		}
		for _, img := range images {
			h, err := img.Digest()
			if err != nil {
				return err
			}
			if want[h] == nil {
				continue
			}
			if err := r.Push(ctx, h.String(), img); err != nil {
				return err
			}
		}
	}
}
