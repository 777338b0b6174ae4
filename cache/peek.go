package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
)

// Peek gives an entry's image without its layers: enough to tell what it is. Manifest and config have been checked. A damaged entry
// wraps ErrNotFound; Get sees to it.
func (d *Dir) Peek(_ context.Context, key v1.Hash) (v1.Image, error) {
	img, err := d.peek(key)
	if err != nil {
		if bad := (*damage)(nil); errors.As(err, &bad) {
			err = fmt.Errorf("%w: it is damaged: %w", ErrNotFound, bad)
		}
		return nil, fmt.Errorf("read cache entry %q: %w", key, err)
	}
	return img, nil
}

func (d *Dir) peek(key v1.Hash) (v1.Image, error) {
	if err := checkHash(key); err != nil {
		return nil, err
	}
	r, _, err := d.readRecord(key)
	if err != nil {
		return nil, err
	}
	manifest, err := d.readBlob(r.Manifest, maxManifest)
	if err != nil {
		return nil, err
	}
	m, err := v1.ParseManifest(bytes.NewReader(manifest))
	if err != nil {
		return nil, damaged("manifest %s: %w", r.Manifest, err)
	}
	config, err := d.readBlob(m.Config.Digest, maxManifest)
	if err != nil {
		return nil, err
	}
	img := &image{manifest: manifest, config: config, mediaType: m.MediaType, layers: map[v1.Hash]*layer{}}
	for _, desc := range m.Layers {
		img.layers[desc.Digest] = &layer{desc: desc}
	}
	return partial.CompressedToImage(img)
}
