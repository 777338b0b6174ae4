package registry

import (
	"context"
	"io"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// FetchBlob is Fetch for one blob. It can be read once it is there whole; that of a layout directory is read where it is.
func (c *Client) FetchBlob(ctx context.Context, r *Repo, d v1.Descriptor, dir string, progress func(done, total int64)) (io.ReadCloser, error) {
	if r.local() {
		return r.Blob(ctx, d)
	}
	meter := newMeter(progress)
	meter.add(0, d.Size)
	to := filepath.Join(dir, d.Digest.Hex)
	if err := c.download(ctx, r, d, to, meter); err != nil {
		return nil, err
	}
	return openFile(to, d)
}
