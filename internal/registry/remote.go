package registry

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

const (
	maxPages = 1000    // of a list
	maxTags  = 200_000 // of a repository
)

// registry is a repository behind the distribution API (opencontainers/distribution-spec).
type registry struct {
	client *Client
	repo   name.Repository
}

func (r *registry) lock(context.Context) (io.Closer, error) { return unlocked{}, nil }

func (r *registry) reading(ctx context.Context) (*access, error) {
	a := r.client.access(r.repo, transport.PullScope)
	return a, a.ready(ctx)
}

func (r *registry) writing(ctx context.Context, from ...name.Repository) (*access, error) {
	a := r.client.access(r.repo, transport.PushScope, from...)
	return a, a.ready(ctx)
}

func (r *registry) tags(ctx context.Context) ([]string, error) {
	a, err := r.reading(ctx)
	if err != nil {
		return nil, failure(err)
	}
	u := a.url("/tags/list")
	u.RawQuery = "n=1000"
	seen := map[string]bool{}
	err = a.pages(ctx, u, nil, func(_ *http.Response, body []byte) (int, error) {
		var list struct{ Tags []string }
		if err := json.Unmarshal(body, &list); err != nil {
			return 0, fmt.Errorf("%w: list of tags: %w", ErrAltered, err)
		}
		news := 0
		for _, t := range list.Tags {
			if tagForm.MatchString(t) && !seen[t] { // nothing else can be a tag
				seen[t] = true
				news++
			}
		}
		if len(seen) > maxTags {
			return 0, fmt.Errorf("%w: more than %d tags", ErrRefused, maxTags)
		}
		return news, nil
	})
	if err != nil {
		return nil, failure(err)
	}
	out := make([]string, 0, len(seen))
	for t := range seen {
		out = append(out, t)
	}
	slices.Sort(out)
	return out, nil
}

// pages reads a list that a registry may give in pieces, each with a Link to the next. use tells how much of a page was new: a list
// that goes on without anything new has an end here.
func (a *access) pages(ctx context.Context, u *url.URL, header map[string]string, use func(*http.Response, []byte) (int, error)) error {
	for range maxPages {
		resp, body, err := a.small(ctx, request{method: http.MethodGet, url: u, header: header}, maxAnswer, http.StatusOK)
		if err != nil {
			return err
		}
		news, err := use(resp, body)
		if err != nil {
			return err
		}
		link, ok := strings.CutPrefix(resp.Header.Get("Link"), "<")
		link, _, found := strings.Cut(link, ">")
		if !ok || !found || news == 0 {
			return nil
		}
		if u, err = a.follow(u, link); err != nil {
			return err
		}
		if origin(u) != a.origin() {
			return fmt.Errorf("%w: the next page of its list is at another host, %s", ErrRefused, printable(u.Host))
		}
	}
	return fmt.Errorf("%w: a list with more than %d pages", ErrRefused, maxPages)
}

// follow resolves a URL that the registry refers to. Registries behind a proxy that ends TLS may take themselves to have none.
func (a *access) follow(from *url.URL, to string) (*url.URL, error) {
	u, err := url.Parse(to)
	if err != nil {
		return nil, fmt.Errorf("%w: it refers to an unusable URL", ErrRefused)
	}
	u = from.ResolveReference(u)
	u.User = nil
	if own := a.url(""); u.Host == own.Host {
		u.Scheme = own.Scheme
	}
	if err := mayFollow(from, u); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return u, nil
}

// manifestTypes are the media types of manifests that this package knows.
var manifestTypes = []types.MediaType{types.OCIManifestSchema1, types.OCIImageIndex, types.DockerManifestSchema2, types.DockerManifestList}

// acceptManifests is for requests of manifests.
func acceptManifests() map[string]string {
	var all []string
	for _, t := range manifestTypes {
		all = append(all, string(t))
	}
	return map[string]string{"Accept": strings.Join(all, ", ")}
}

// contentType is what a server says of what it sends; empty if it says nothing of worth.
func contentType(resp *http.Response) types.MediaType {
	t, _, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if err != nil || !slices.Contains(manifestTypes, types.MediaType(t)) {
		return ""
	}
	return types.MediaType(t)
}

func (r *registry) head(ctx context.Context, identifier string) (v1.Descriptor, error) {
	a, err := r.reading(ctx)
	if err != nil {
		return v1.Descriptor{}, failure(err)
	}
	d, err := a.head(ctx, identifier)
	return d, failure(err)
}

func (a *access) head(ctx context.Context, identifier string) (v1.Descriptor, error) {
	resp, _, err := a.small(ctx, request{method: http.MethodHead, url: a.url("/manifests/" + identifier), header: acceptManifests()}, 0, http.StatusOK)
	if err != nil {
		return v1.Descriptor{}, err
	}
	d := v1.Descriptor{MediaType: contentType(resp), Size: resp.ContentLength}
	d.Digest, err = v1.NewHash(resp.Header.Get("Docker-Content-Digest"))
	if err != nil || d.Digest.Algorithm != "sha256" || d.Size < 0 || d.MediaType == "" { // the specification asks for less
		_, d, err = a.manifest(ctx, identifier)
		return d, err
	}
	return d, ofDigest(d, identifier)
}

// ofDigest checks that what has been found is what a digest names, if the identifier is one.
func ofDigest(d v1.Descriptor, identifier string) error {
	if h, err := v1.NewHash(identifier); err == nil && h != d.Digest {
		return fmt.Errorf("%w: it has digest %s", ErrAltered, d.Digest)
	}
	return nil
}

func (r *registry) manifest(ctx context.Context, identifier string) ([]byte, v1.Descriptor, error) {
	a, err := r.reading(ctx)
	if err != nil {
		return nil, v1.Descriptor{}, failure(err)
	}
	raw, d, err := a.manifest(ctx, identifier)
	return raw, d, failure(err)
}

func (a *access) manifest(ctx context.Context, identifier string) ([]byte, v1.Descriptor, error) {
	resp, raw, err := a.small(ctx, request{method: http.MethodGet, url: a.url("/manifests/" + identifier), header: acceptManifests()}, maxManifest, http.StatusOK)
	if err != nil {
		return nil, v1.Descriptor{}, err
	}
	d, err := describe(raw, contentType(resp), identifier)
	if err != nil {
		return nil, v1.Descriptor{}, err
	}
	// What a tag names can be altered in the registry's storage.
	if said, err := v1.NewHash(resp.Header.Get("Docker-Content-Digest")); err == nil && said.Algorithm == "sha256" && said != d.Digest {
		return nil, v1.Descriptor{}, fmt.Errorf("%w: it is sent as %s and has digest %s", ErrAltered, said, d.Digest)
	}
	return raw, d, nil
}

// describe checks a manifest's digest, if the identifier is one, and its type: said, or what it says itself. One that could be read as
// an image and as an index is neither (CVE-2021-41190).
func describe(raw []byte, said types.MediaType, identifier string) (v1.Descriptor, error) {
	digest, size, err := v1.SHA256(bytes.NewReader(raw))
	if err != nil {
		return v1.Descriptor{}, err
	}
	d := v1.Descriptor{MediaType: said, Size: size, Digest: digest}
	if err := ofDigest(d, identifier); err != nil {
		return v1.Descriptor{}, err
	}
	var m struct {
		MediaType                 types.MediaType
		Config, Layers, Manifests json.RawMessage
	}
	if err := json.Unmarshal(raw, &m); err != nil {
		return v1.Descriptor{}, fmt.Errorf("%w: its manifest: %w", ErrAltered, err)
	}
	image, index := len(m.Config) > 0 || len(m.Layers) > 0, len(m.Manifests) > 0
	switch {
	case d.MediaType == "":
		d.MediaType = m.MediaType
	case m.MediaType != "" && m.MediaType != d.MediaType:
		return v1.Descriptor{}, fmt.Errorf("%w: it is sent as %q and says that it is %q", ErrAltered, d.MediaType, m.MediaType)
	}
	if d.MediaType == "" && index {
		d.MediaType = types.OCIImageIndex
	} else if d.MediaType == "" && image {
		d.MediaType = types.OCIManifestSchema1
	}
	switch {
	case !slices.Contains(manifestTypes, d.MediaType):
		return v1.Descriptor{}, fmt.Errorf("%w: it is neither an image nor an index but %q", ErrRefused, printable(string(d.MediaType)))
	case d.MediaType.IsImage() && index, d.MediaType.IsIndex() && image:
		return v1.Descriptor{}, fmt.Errorf("%w: it can be read as an image and as an index", ErrAltered)
	}
	return d, nil
}

func (r *registry) blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	return openStream(ctx, r, d)
}

// part gives a blob's bytes from an offset on, over one connection. They are not verified.
func (r *registry) part(ctx context.Context, d v1.Descriptor, offset int64) (io.ReadCloser, error) {
	a, err := r.reading(ctx)
	if err != nil {
		return nil, err
	}
	req := request{method: http.MethodGet, url: a.url("/blobs/" + d.Digest.String()), blob: true, header: map[string]string{"Accept-Encoding": "identity"}}
	if offset > 0 {
		req.header["Range"] = "bytes=" + strconv.FormatInt(offset, 10) + "-"
	}
	resp, err := a.send(ctx, req, http.StatusOK, http.StatusPartialContent)
	if e := (*answerError)(nil); errors.As(err, &e) && e.status == http.StatusRequestedRangeNotSatisfiable {
		return nil, fmt.Errorf("%w: it has at most %d bytes; want %d", ErrAltered, offset, d.Size)
	}
	if err != nil {
		return nil, err
	}
	from, err := int64(0), error(nil)
	if resp.StatusCode == http.StatusPartialContent {
		if from = offset; !strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", offset)) {
			err = &brokenError{fmt.Errorf("the server answers with another range, %q", printable(resp.Header.Get("Content-Range")))}
		}
	}
	if err == nil && resp.ContentLength >= 0 && from+resp.ContentLength != d.Size {
		err = fmt.Errorf("%w: it has %d bytes; want %d", ErrAltered, from+resp.ContentLength, d.Size)
	}
	if err == nil && from < offset { // the server ignores ranges
		if _, err = io.CopyN(io.Discard, resp.Body, offset); err != nil {
			err = early(err)
		}
	}
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp.Body, nil
}
