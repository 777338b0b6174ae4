package artifact

import (
	"context"
	"errors"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"

	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
)

// Entries gives all that an identifier stands for, a version, a tag or a digest: what an index has, or one artifact. If it is empty,
// those of the only version. A version whose index isn't there yet has the artifacts that have its tags.
func Entries(ctx context.Context, repo *registry.Repo, identifier string) ([]Entry, error) {
	identifier, err := resolve(ctx, repo, identifier)
	if err != nil {
		return nil, err
	}
	idx, err := readIndex(ctx, repo, identifier)
	tag, ours := ParseTag(identifier)
	switch {
	case err == nil:
		return idx.Entries, nil
	case errors.Is(err, errForeign) && (!ours || tag.Release != ""):
		e, err := readEntry(ctx, repo, identifier)
		if err != nil {
			return nil, err
		}
		return []Entry{e}, nil
	case !errors.Is(err, registry.ErrNotFound) || !ours || tag.Release != "":
		return nil, err
	}
	list, listErr := List(ctx, repo)
	if listErr != nil {
		return nil, err
	}
	var out []Entry
	for _, l := range list {
		if l.Err == nil && l.Version == tag.Version {
			out = append(out, l.Entry)
		}
	}
	if len(out) == 0 {
		return nil, err
	}
	return out, nil
}

// Check compares an artifact with what an index says of it: the artifact's own word is what counts. A difference wraps ErrInvalid.
func (e Entry) Check(img v1.Image) error {
	d, err := partial.Descriptor(img)
	if err != nil {
		return err
	}
	own, err := entryOf(*d, img)
	if err != nil {
		return err
	}
	if !e.sameAs(own) {
		return fmt.Errorf("%s: %w", own.Digest, invalid("it is not what its index says of it"))
	}
	return nil
}
