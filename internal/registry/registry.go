// Package registry reads and writes repositories of OCI images, in registries and in layout directories.
package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/authn/github"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"
)

// What errors wrap.
var (
	ErrNotFound    = errors.New("not found")          // the repository has no such tag, manifest or blob, or doesn't exist
	ErrDenied      = errors.New("access denied")      // it wants other credentials
	ErrUnavailable = errors.New("unavailable")        // it can't be reached, or goes on failing
	ErrAltered     = errors.New("altered or damaged") // its bytes are not those that were asked for
	ErrRefused     = errors.New("refused")            // it doesn't do what it was asked, or asks for what isn't done
	ErrOffline     = errors.New("offline")            // it is on the network, which isn't to be used
)

// maxManifest bounds the manifests and configs that are read into memory, in bytes.
const maxManifest = 4 << 20

// Options describe a Client.
type Options struct {
	// Dir is a folder for downloads that are cut off, made when it's needed: the next one goes on from there. Those that are left for
	// a week are removed. Default: where the blobs are fetched to.
	Dir string
	// Insecure are registries ("host" or "host:port") that may be spoken to without TLS, though never with credentials then. Those on
	// the loopback device always may.
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
	transport http.RoundTripper
	pace      pace
	mu        sync.Mutex
	hosts     map[string]*host
	accesses  map[string]*access
}

// New makes a client. Nothing is asked of a registry yet.
func New(o Options) (*Client, error) {
	if o.Keychain == nil {
		o.Keychain = authn.NewMultiKeychain(authn.DefaultKeychain, github.Keychain)
	}
	if o.Transport == nil {
		o.Transport = newTransport()
	}
	return &Client{
		options: o, transport: &guarded{o.Transport, o.Insecure}, pace: defaultPace,
		hosts: map[string]*host{}, accesses: map[string]*access{},
	}, nil
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
	return &Repo{name: r.Repository(), backend: &registry{client: c, repo: r.repo}}, nil
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
	manifest(ctx context.Context, identifier string) ([]byte, v1.Descriptor, error)
	// blob fails before EOF if the bytes are not the descriptor's.
	blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error)
	push(ctx context.Context, identifier string, c *content, o PushOptions) error
	referrers(ctx context.Context, subject v1.Hash) ([]v1.Descriptor, error)
	// refer has referrers list manifests that have been pushed by their digests.
	refer(ctx context.Context, subject v1.Hash, add []v1.Descriptor) error
	lock(ctx context.Context) (io.Closer, error)
}

// Name is the reference of the repository.
func (r *Repo) Name() string { return r.name }

func (r *Repo) at(identifier string) string {
	if _, err := v1.NewHash(identifier); err == nil {
		return r.name + "@" + identifier
	}
	return r.name + ":" + identifier
}

// check refuses what can be neither a tag nor a digest.
func check(identifier string) error {
	if h, err := v1.NewHash(identifier); err == nil && h.Algorithm == "sha256" || tagForm.MatchString(identifier) {
		return nil
	}
	return fmt.Errorf("%q is neither a tag nor a SHA-256 digest", identifier)
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
	err := check(identifier)
	if err == nil {
		var d v1.Descriptor
		if d, err = r.head(ctx, identifier); err == nil {
			return d, nil
		}
	}
	return v1.Descriptor{}, fmt.Errorf("look for %q: %w", r.at(identifier), err)
}

// Manifest gives the manifest or index that a tag or a digest names.
func (r *Repo) Manifest(ctx context.Context, identifier string) (v1.Descriptor, []byte, error) {
	err := check(identifier)
	if err == nil {
		var raw []byte
		var d v1.Descriptor
		if raw, d, err = r.manifest(ctx, identifier); err == nil {
			return d, raw, nil
		}
	}
	return v1.Descriptor{}, nil, fmt.Errorf("read %q: %w", r.at(identifier), err)
}

// Blob reads a blob, and fails before EOF if its bytes are not those of the descriptor. A connection that breaks is made again, and
// goes on where it was.
func (r *Repo) Blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	if err := usable(d); err != nil {
		return nil, fmt.Errorf("read from %q: %w", r.name, err)
	}
	return r.blob(ctx, d)
}

// Image gives the image that a tag or a digest names. Its manifest has been read, and it holds on to nothing else: config and layers
// are read from the repository whenever they are asked for, until ctx ends. Pushed to another repository of the same registry, its
// layers are mounted there where the registry allows that. See Fetch.
func (r *Repo) Image(ctx context.Context, identifier string) (v1.Image, error) {
	return r.image(ctx, identifier, func(d v1.Descriptor) (io.ReadCloser, error) { return r.Blob(ctx, d) })
}

func (r *Repo) image(ctx context.Context, identifier string, open func(v1.Descriptor) (io.ReadCloser, error)) (v1.Image, error) {
	d, raw, err := r.Manifest(ctx, identifier)
	if err != nil {
		return nil, err
	}
	if !d.MediaType.IsImage() {
		return nil, fmt.Errorf("read %q: it is not an image but a %q", r.at(identifier), d.MediaType)
	}
	var from name.Repository
	if reg, ok := r.backend.(*registry); ok {
		from = reg.repo
	}
	img, err := newImage(raw, d.MediaType, from, open)
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", r.at(identifier), err)
	}
	return img, nil
}

// Fetch gives the image that a tag or a digest names, with all its blobs downloaded to dir, a folder on the file system of the
// client's Dir, as files that are named by their digests' hexadecimal digits. It can be read for as long as they are there, and checks
// them again. When it fails there is nothing of it in dir, and the next Fetch goes on from what has come. progress, which may be nil,
// is told of the bytes. An image of a layout directory is not copied.
func (c *Client) Fetch(ctx context.Context, r *Repo, identifier, dir string, progress func(done, total int64)) (v1.Image, error) {
	reg, ok := r.backend.(*registry)
	if !ok {
		return r.Image(ctx, identifier)
	}
	img, err := r.image(ctx, identifier, func(d v1.Descriptor) (io.ReadCloser, error) {
		return openFile(filepath.Join(dir, d.Digest.Hex), d)
	})
	if err != nil {
		return nil, err
	}
	m, err := img.Manifest()
	if err != nil {
		return nil, err
	}
	if err := reg.fetch(ctx, blobs(m), dir, progress); err != nil {
		return nil, fmt.Errorf("fetch %q: %w", r.at(identifier), err)
	}
	return img, nil
}

// FetchBlob is Fetch for one blob. It can be read once it is there whole; that of a layout directory is read where it is.
func (c *Client) FetchBlob(ctx context.Context, r *Repo, d v1.Descriptor, dir string, progress func(done, total int64)) (io.ReadCloser, error) {
	reg, ok := r.backend.(*registry)
	if !ok {
		return r.Blob(ctx, d)
	}
	err := usable(d)
	if err == nil {
		err = reg.fetch(ctx, []v1.Descriptor{d}, dir, progress)
	}
	if err != nil {
		return nil, fmt.Errorf("fetch from %q: %w", r.name, err)
	}
	return openFile(filepath.Join(dir, d.Digest.Hex), d)
}

// PushOptions are what a push can have besides. The zero value is nothing.
type PushOptions struct {
	// From are repositories that may have some of the blobs: those of the same registry are asked to share them. An image that was
	// read from such a repository names it itself.
	From []Reference
	// Progress is told of bytes that were sent or needn't be. done may go back when a connection breaks.
	Progress func(done, total int64)
}

// Push sends an image, or an index with its images, and then lets identifier name it: a tag, or its own digest. Blobs that the
// repository has are not sent. When it fails, what identifier named before is as it was. Layers may be Blobs of any repository; they
// must not be fetched by Fetch while they are read.
func (r *Repo) Push(ctx context.Context, identifier string, t remote.Taggable) error {
	return r.PushWith(ctx, identifier, t, PushOptions{})
}

// PushWith is Push with options.
func (r *Repo) PushWith(ctx context.Context, identifier string, t remote.Taggable, o PushOptions) error {
	top, subject, err := r.send(ctx, identifier, t, o)
	if err == nil && subject != (v1.Hash{}) {
		err = r.refer(ctx, subject, []v1.Descriptor{top})
	}
	if err != nil {
		return fmt.Errorf("push %q: %w", r.at(identifier), err)
	}
	return nil
}

// send gives the descriptor of what was pushed as a list of referrers has it, and its subject if there is one.
func (r *Repo) send(ctx context.Context, identifier string, t remote.Taggable, o PushOptions) (v1.Descriptor, v1.Hash, error) {
	if err := check(identifier); err != nil {
		return v1.Descriptor{}, v1.Hash{}, err
	}
	c, err := contents(t)
	if err != nil {
		return v1.Descriptor{}, v1.Hash{}, err
	}
	if err := ofDigest(c.top().Descriptor, identifier); err != nil {
		return v1.Descriptor{}, v1.Hash{}, err
	}
	d, subject, err := asReferrer(c.top())
	if err != nil {
		return v1.Descriptor{}, v1.Hash{}, err
	}
	return d, subject, r.push(ctx, identifier, c, o)
}

// PutManifest stores a manifest or an index whose content the repository has already, and lets identifier name it.
func (r *Repo) PutManifest(ctx context.Context, identifier string, media types.MediaType, raw []byte) error {
	return r.Push(ctx, identifier, rawManifest{raw, media})
}

// Attach pushes images by their digests that have a subject, a manifest that the repository has. Referrers lists them then. Of two
// calls at once for one subject, in a registry without the referrers API, the images of one may miss in that list; never some of them.
func (r *Repo) Attach(ctx context.Context, subject v1.Hash, images ...v1.Image) error {
	add := make([]v1.Descriptor, len(images))
	g, gctx := errgroup.WithContext(ctx)
	for i, img := range images {
		g.Go(func() error {
			h, err := img.Digest()
			if err != nil {
				return err
			}
			d, to, err := r.send(gctx, h.String(), img, PushOptions{})
			if err == nil && to != subject {
				err = fmt.Errorf("its subject is not %s", subject)
			}
			if err != nil {
				return fmt.Errorf("push %q: %w", r.at(h.String()), err)
			}
			add[i] = d
			return nil
		})
	}
	if err := g.Wait(); err != nil || len(add) == 0 {
		return err
	}
	if err := r.refer(ctx, subject, add); err != nil {
		return fmt.Errorf("attach to %q: %w", r.at(subject.String()), err)
	}
	return nil
}

// Referrers lists the manifests with that subject; there may be none.
func (r *Repo) Referrers(ctx context.Context, subject v1.Hash) ([]v1.Descriptor, error) {
	err := usable(v1.Descriptor{Digest: subject})
	if err == nil {
		var list []v1.Descriptor
		if list, err = r.referrers(ctx, subject); err == nil {
			return list, nil
		}
	}
	return nil, fmt.Errorf("list what refers to %q: %w", r.at(subject.String()), err)
}

// Lock keeps other processes from changing a layout directory's tags until Close, if they take it too. Registries have no locks: there
// it does nothing, and what was changed must be looked at again.
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
