package artifact

import (
	"context"
	"fmt"

	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
)

// ReadIndex reads the index that a version, a tag or a digest names.
func ReadIndex(ctx context.Context, repo *registry.Repo, identifier string) (Index, error) {
	tag, err := VersionTag(identifier)
	if err != nil {
		return Index{}, err
	}
	if _, ok := ParseTag(identifier); ok {
		tag = identifier
	}
	_, raw, err := repo.Manifest(ctx, tag)
	if err != nil {
		return Index{}, err
	}
	idx, wrong, err := parseIndex(raw)
	if err == nil && len(wrong) > 0 {
		err = wrong[0]
	}
	if err != nil {
		return Index{}, fmt.Errorf("%q in %q: %w", tag, repo.Name(), err)
	}
	return idx, nil
}
