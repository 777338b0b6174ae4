package images

import (
	"context"
	"fmt"
	"io"
	"regexp"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

var notInTag = regexp.MustCompile(`[^A-Za-z0-9_.-]`)

// Tag is the name that a kernel's image has in an archive: "godkms-hermetic/debian-bookworm:6.1.0-56-amd64". What a tag can't have, such as
// the plus of 6.12.117+deb13-amd64, is an underscore.
func Tag(k kernels.Kernel) string {
	return "godkms-hermetic/" + k.Distro + "-" + k.Suite + ":" + notInTag.ReplaceAllString(k.Release, "_")
}

// Export writes the root's image, under its Tag, as the tar that docker load and skopeo's docker-archive read. The same lock gives the same
// bytes. Every layer is verified while it is read; after an error what was written is of no use.
func (r *Root) Export(ctx context.Context, w io.Writer) error {
	err := r.export(ctx, w)
	if err != nil {
		return fmt.Errorf("export image of %q: %w", r.lock.Kernel, err)
	}
	return nil
}

func (r *Root) export(ctx context.Context, w io.Writer) error {
	img, err := r.Image(ctx)
	if err != nil {
		return err
	}
	tag, err := name.NewTag(Tag(r.lock.Kernel))
	if err != nil {
		return err
	}
	return tarball.Write(tag, img, untilDone{ctx, w})
}

// untilDone is a writer that fails once ctx has ended.
type untilDone struct {
	ctx context.Context
	w   io.Writer
}

func (u untilDone) Write(b []byte) (int, error) {
	if u.ctx.Err() != nil {
		return 0, context.Cause(u.ctx)
	}
	return u.w.Write(b)
}
