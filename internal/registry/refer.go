package registry

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Registries without the referrers API have a tag for each subject instead, whose index lists what refers to it (distribution-spec,
// "Referrers tag schema"). Nothing there keeps two clients from undoing each other's change of it. What one adds is written at once
// and looked for afterwards, so that of two changes at the same time one stays whole, and mostly both do.

// maxReferrers bounds a list.
const maxReferrers = 10_000

var errNoAPI = errors.New("no referrers API")

// fallbackTag is the tag that lists what refers to a subject.
func fallbackTag(subject v1.Hash) string { return subject.Algorithm + "-" + subject.Hex }

func (r *registry) referrers(ctx context.Context, subject v1.Hash) ([]v1.Descriptor, error) {
	a, err := r.reading(ctx)
	if err != nil {
		return nil, failure(err)
	}
	list, err := a.referrers(ctx, subject)
	if errors.Is(err, errNoAPI) {
		list, err = a.list(ctx, fallbackTag(subject))
	}
	return list, failure(err)
}

// referrers asks the API; without one it gives errNoAPI, and asks no more.
func (a *access) referrers(ctx context.Context, subject v1.Hash) ([]v1.Descriptor, error) {
	if a.host.noReferrers.Load() {
		return nil, errNoAPI
	}
	var list []v1.Descriptor
	accept := map[string]string{"Accept": string(types.OCIImageIndex)}
	err := a.pages(ctx, a.url("/referrers/"+subject.String()), accept, func(resp *http.Response, body []byte) (int, error) {
		if contentType(resp) != types.OCIImageIndex {
			return 0, errNoAPI
		}
		page, err := parseList(body)
		before := len(list)
		list = merge(list, page)
		if err == nil && len(list) > maxReferrers {
			err = fmt.Errorf("%w: more than %d manifests refer to it", ErrRefused, maxReferrers)
		}
		return len(list) - before, err
	})
	e := answered(ctx, err)
	if e != nil && slices.Contains(e.codes, "NAME_UNKNOWN") { // the repository isn't there yet
		return nil, errNoAPI
	}
	if e != nil && slices.Contains([]int{http.StatusNotFound, http.StatusBadRequest,
		http.StatusMethodNotAllowed, http.StatusNotAcceptable, http.StatusNotImplemented}, e.status) {
		err = errNoAPI
	}
	if errors.Is(err, errNoAPI) {
		a.host.noReferrers.Store(true)
		return nil, err
	}
	return list, err
}

// list reads the index below a tag; there need not be one.
func (a *access) list(ctx context.Context, tag string) ([]v1.Descriptor, error) {
	raw, d, err := a.manifest(ctx, tag)
	if e := answered(ctx, err); e != nil && e.status == http.StatusNotFound {
		return nil, nil
	}
	if err == nil && !d.MediaType.IsIndex() {
		err = fmt.Errorf("%w: tag %q is not a list of referrers but %q", ErrRefused, tag, d.MediaType)
	}
	if err != nil {
		return nil, err
	}
	return parseList(raw)
}

func parseList(raw []byte) ([]v1.Descriptor, error) {
	var idx v1.IndexManifest
	if err := json.Unmarshal(raw, &idx); err != nil {
		return nil, fmt.Errorf("%w: list of referrers: %w", ErrAltered, err)
	}
	return merge(nil, slices.DeleteFunc(idx.Manifests, func(d v1.Descriptor) bool { return usable(d) != nil })), nil
}

// merge adds what isn't in a list.
func merge(list, more []v1.Descriptor) []v1.Descriptor {
	have := map[v1.Hash]bool{}
	for _, d := range list {
		have[d.Digest] = true
	}
	for _, d := range more {
		if !have[d.Digest] {
			have[d.Digest] = true
			list = append(list, d)
		}
	}
	return list
}

// refer makes manifests that have been pushed findable as referrers of a subject.
func (r *registry) refer(ctx context.Context, subject v1.Hash, add []v1.Descriptor) error {
	a, err := r.writing(ctx)
	if err != nil {
		return failure(err)
	}
	switch _, err := a.referrers(ctx, subject); {
	case err == nil: // the registry does it
		return nil
	case !errors.Is(err, errNoAPI):
		return failure(err)
	}
	return failure(a.refer(ctx, fallbackTag(subject), add))
}

// refer adds to the list below a tag until it has all.
func (a *access) refer(ctx context.Context, tag string, add []v1.Descriptor) error {
	const tries = 100
	for range tries {
		have, err := a.list(ctx, tag)
		if err != nil {
			return err
		}
		want := merge(have, add)
		if len(want) == len(have) {
			return nil
		}
		raw, err := encodeList(want)
		if err != nil {
			return err
		}
		if err := a.putManifest(ctx, tag, types.OCIImageIndex, raw); err != nil {
			return err
		}
		if err := sleep(ctx, rand.N(a.client.pace.backoff/100)); err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: others go on changing the list of what refers to it", ErrUnavailable)
}

func encodeList(list []v1.Descriptor) ([]byte, error) {
	list = slices.SortedFunc(slices.Values(list), func(a, b v1.Descriptor) int { return strings.Compare(a.Digest.Hex, b.Digest.Hex) })
	return json.Marshal(v1.IndexManifest{SchemaVersion: 2, MediaType: types.OCIImageIndex, Manifests: list})
}

// asReferrer describes a manifest as a list of referrers does (distribution-spec, "Listing Referrers"), and gives its subject, if any.
func asReferrer(m manifestSource) (v1.Descriptor, v1.Hash, error) {
	var about struct {
		Subject      *v1.Descriptor    `json:"subject"`
		ArtifactType string            `json:"artifactType"`
		Annotations  map[string]string `json:"annotations"`
		Config       struct {
			MediaType string `json:"mediaType"`
		} `json:"config"`
	}
	if err := json.Unmarshal(m.raw, &about); err != nil {
		return v1.Descriptor{}, v1.Hash{}, fmt.Errorf("%w: its manifest: %w", ErrAltered, err)
	}
	d := m.Descriptor
	d.Annotations, d.ArtifactType = about.Annotations, about.ArtifactType
	if d.ArtifactType == "" {
		d.ArtifactType = about.Config.MediaType
	}
	if about.Subject == nil {
		return d, v1.Hash{}, nil
	}
	return d, about.Subject.Digest, usable(*about.Subject)
}
