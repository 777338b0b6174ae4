package images

import (
	"context"
	"errors"
	"fmt"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// Push sends the root's image to a repository, below LockTag and below KernelTag for the extra packages that its lock was made with, and
// gives its digest. Blobs that are there are not sent: a second kernel's image costs its headers. progress, which may be nil, is told
// of packing ("pack") and of bytes that were sent or needn't be ("push").
func (r *Root) Push(ctx context.Context, to *registry.Repo, extra kernels.Extra, progress Progress) (v1.Hash, error) {
	img, err := r.image(ctx, progress)
	if err != nil {
		return v1.Hash{}, err
	}
	digest, err := r.push(ctx, to, extra, img, progress)
	if err != nil {
		return digest, fmt.Errorf("push image of %q: %w", r.lock.Kernel, err)
	}
	return digest, nil
}

func (r *Root) push(ctx context.Context, to *registry.Repo, extra kernels.Extra, img v1.Image, progress Progress) (v1.Hash, error) {
	digest, err := img.Digest()
	if err != nil {
		return digest, err
	}
	raw, err := img.RawManifest()
	if err != nil {
		return digest, err
	}
	// The kernel's tag comes last: what it names can be found by its lock.
	var o registry.PushOptions
	if progress != nil {
		o.Progress = func(done, total int64) { progress("push", done, total) }
	}
	if err := to.PushWith(ctx, LockTag(r.lock), img, o); err != nil {
		return digest, err
	}
	if tag := KernelTag(r.lock.Kernel, extra); tag != "" {
		err = to.PutManifest(ctx, tag, types.OCIManifestSchema1, raw)
	}
	return digest, err
}

// PushMissing is Push to the store's remote, unless it has the image. Then it only adds the kernel's tag, if there is none. It tells
// whether the image was sent.
func (r *Root) PushMissing(ctx context.Context, extra kernels.Extra, progress Progress) (sent bool, err error) {
	remote, tag := r.store.remote, LockTag(r.lock)
	if remote.Repo == nil {
		return false, errors.New("push header image: no repository")
	}
	img, err := remote.image(ctx, tag)
	_, refused := r.store.refused.Load(tag)
	switch {
	case err == nil && !refused && img.root == r.digest && img.lock.Digest() == r.lock.Digest():
	case err == nil, errors.Is(err, registry.ErrNotFound), errors.Is(err, ErrInvalid), errors.Is(err, registry.ErrAltered):
		_, err := r.Push(ctx, remote.Repo, extra, progress)
		return err == nil, err
	default:
		return false, fmt.Errorf("push image of %q: %w", r.lock.Kernel, err)
	}
	tag = KernelTag(r.lock.Kernel, extra)
	if tag == "" {
		return false, nil
	}
	if _, err = remote.Repo.Head(ctx, tag); errors.Is(err, registry.ErrNotFound) {
		err = remote.Repo.PutManifest(ctx, tag, types.OCIManifestSchema1, img.raw)
	}
	if err != nil {
		return false, fmt.Errorf("push image of %q: %w", r.lock.Kernel, err)
	}
	return false, nil
}
