package images

import (
	"context"
	"fmt"
	"io"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// Tag is the name that the image of a kernel with these extra packages has in an archive, "godkms-hermetic/debian-bookworm:6.1.0-56-amd64".
// The tag is escaped as KernelTag's is.
func Tag(k kernels.Kernel, extra kernels.Extra) string {
	return "godkms-hermetic/" + k.Distro + "-" + k.Suite + ":" + releaseTag(k, extra)
}

// Export writes the root's image, under a name such as Tag gives, as the tar that docker load and skopeo's docker-archive read. The same
// lock and name give the same bytes. Every layer is verified while it is read; after an error what was written is of no use.
func (r *Root) Export(ctx context.Context, w io.Writer, tag string) error {
	err := r.export(ctx, w, tag)
	if err != nil {
		return fmt.Errorf("export image of %q: %w", r.lock.Kernel, err)
	}
	return nil
}

func (r *Root) export(ctx context.Context, w io.Writer, as string) error {
	img, err := r.Image(ctx)
	if err != nil {
		return err
	}
	tag, err := name.NewTag(as)
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
