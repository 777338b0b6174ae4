package images

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// Remote is a repository of header images, and the client that opened it. The zero value is none.
type Remote struct {
	Client *registry.Client
	Repo   *registry.Repo
}

// ErrInvalid is wrapped by every error that means: the remote has something below the tag of a header image that is none, or is that of
// another lock, or was altered.
var ErrInvalid = errors.New("not the header image that it should be")

func (r Remote) invalid(tag, format string, a ...any) error {
	return fmt.Errorf("%s:%s is %w: %w", r.Repo.Name(), tag, ErrInvalid, fmt.Errorf(format, a...))
}

// Kernels lists the kernels that the remote has images of, with whatever extra packages, sorted by tag.
func (r Remote) Kernels(ctx context.Context) ([]kernels.Kernel, error) {
	tags, err := r.Repo.Tags(ctx)
	if err != nil {
		return nil, err
	}
	var out []kernels.Kernel
	seen := map[kernels.Kernel]bool{}
	for _, tag := range tags {
		if k, _, err := parseTag(tag); err == nil && !seen[k] {
			seen[k] = true
			out = append(out, k)
		}
	}
	return out, nil
}

// Lock reads the lock of the image of a kernel with extra packages that was pushed last. It has no URLs. Where there is none and only the
// dependencies of package files are asked for, it is that of the kernel without extra packages, and plain is true: a provider leaves
// out as well what its suite hasn't got. An image that isn't there wraps registry.ErrNotFound.
func (r Remote) Lock(ctx context.Context, k kernels.Kernel, extra kernels.Extra) (lock kernels.Lock, plain bool, err error) {
	lock, err = r.lockOf(ctx, k, extra)
	if errors.Is(err, registry.ErrNotFound) && !errors.Is(err, ErrInvalid) && len(extra.Packages) == 0 && len(extra.Depends) > 0 {
		if other, err := r.lockOf(ctx, k, kernels.Extra{}); err == nil {
			return other, true, nil
		}
	}
	return lock, false, err
}

func (r Remote) lockOf(ctx context.Context, k kernels.Kernel, extra kernels.Extra) (kernels.Lock, error) {
	tag := KernelTag(k, extra)
	if tag == "" {
		return kernels.Lock{}, fmt.Errorf("%s of %s: %w", k, r.Repo.Name(), registry.ErrNotFound)
	}
	img, err := r.image(ctx, tag)
	if err != nil {
		return kernels.Lock{}, err
	}
	if img.lock.Kernel != k {
		return kernels.Lock{}, r.invalid(tag, "it is that of %s (%s)", img.lock.Kernel, img.lock.Kernel.Arch)
	}
	return img.lock, nil
}

// remoteImage is what is known of an image of a remote before its layers are read.
type remoteImage struct {
	digest  v1.Hash
	raw     []byte // the manifest
	lock    kernels.Lock
	root    v1.Hash
	layers  []v1.Descriptor // toolchain, headers, glue
	diffIDs []v1.Hash
}

// image reads the manifest and the config below a tag, and checks all that can be checked without the layers.
func (r Remote) image(ctx context.Context, tag string) (*remoteImage, error) {
	d, raw, err := r.Repo.Manifest(ctx, tag)
	if err != nil {
		return nil, err
	}
	if d.MediaType != types.OCIManifestSchema1 {
		return nil, r.invalid(tag, "its media type is %q", d.MediaType)
	}
	img, err := r.Repo.Image(ctx, d.Digest.String()) // of that manifest, whatever becomes of the tag
	if err != nil {
		return nil, err
	}
	m, err := img.Manifest()
	if err != nil {
		return nil, r.invalid(tag, "%w", err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return nil, r.blame(tag, "config", err)
	}
	labels := cfg.Config.Labels
	lock, err := kernels.DecodeLock([]byte(labels[LabelLock]))
	if err == nil {
		err = check(lock)
	}
	if err != nil {
		return nil, r.invalid(tag, "label %s: %w", LabelLock, err)
	}
	for name, want := range labelsOf(lock) {
		if labels[name] != want {
			return nil, r.invalid(tag, "label %s is %.80q; its lock's is %.80q", name, labels[name], want)
		}
	}
	root, err := v1.NewHash(labels[LabelRoot])
	if err != nil || root.Algorithm != "sha256" {
		return nil, r.invalid(tag, "label %s is %.80q", LabelRoot, labels[LabelRoot])
	}
	arch, variant := platform(lock.Kernel.Arch)
	if cfg.OS != "linux" || cfg.Architecture != arch || cfg.Variant != variant {
		return nil, r.invalid(tag, "it is for %s/%s", cfg.OS, cfg.Architecture)
	}
	if len(m.Layers) != 3 || len(cfg.RootFS.DiffIDs) != 3 {
		return nil, r.invalid(tag, "it has %d layers and %d diff IDs; want toolchain, headers and glue", len(m.Layers), len(cfg.RootFS.DiffIDs))
	}
	for i, pkgs := range [][]kernels.Package{lock.Toolchain, lock.Headers, nil} {
		l := m.Layers[i]
		if l.MediaType != types.OCILayer || l.Size < 0 || l.Size > maxPacked(pkgs) {
			return nil, r.invalid(tag, "layer %d has %d bytes of type %q", i+1, l.Size, l.MediaType)
		}
	}
	return &remoteImage{d.Digest, raw, lock, root, m.Layers, cfg.RootFS.DiffIDs}, nil
}

// maxPacked bounds a layer's bytes by those of its packages, and where those are the registry's word too, by what may be unpacked of
// it. Packed by gzip they take about half as much again as their packages do.
func maxPacked(pkgs []kernels.Package) int64 {
	n := int64(1 << 20)
	for _, p := range pkgs {
		n = min(n+16*min(p.Size, 4<<30), defaultLimits.bytes)
	}
	return n
}

// Pull gives the root of a lock, like Root, but takes what the cache lacks from the remote alone. That the remote has no image of the
// lock wraps registry.ErrNotFound.
func (s *Store) Pull(ctx context.Context, lock kernels.Lock, progress Progress) (*Root, error) {
	return s.root(ctx, lock, func(ctx context.Context, specs, missing []layerSpec) error {
		return s.pull(ctx, lock, specs, missing, newMeter(progress))
	})
}

// provide makes layers and puts them in their places. The caller holds their locks.
func (s *Store) provide(ctx context.Context, lock kernels.Lock, specs, missing []layerSpec, progress Progress) error {
	if s.remote.Repo == nil || s.havePackages(missing) {
		return s.assemble(ctx, lock, missing, newMeter(progress))
	}
	pulled := errors.New("it can't be used, as was said before")
	if !s.down.Load() {
		pulled = s.pull(ctx, lock, specs, missing, newMeter(progress))
	}
	switch {
	case pulled == nil || ctx.Err() != nil:
		return pulled
	case s.down.Load():
	case errors.Is(pulled, ErrInvalid), errors.Is(pulled, registry.ErrAltered):
		s.refused.Store(LockTag(lock), true)
		s.warn(fmt.Sprintf("%v; the header image is assembled from packages", pulled))
	case errors.Is(pulled, registry.ErrNotFound):
	case !s.down.Swap(true):
		s.warn(fmt.Sprintf("no header images from %q: %v", s.remote.Repo.Name(), pulled))
	}
	err := s.assemble(ctx, lock, missing, newMeter(progress))
	if errors.As(err, new(*PackageError)) {
		if errors.Is(pulled, registry.ErrNotFound) && !errors.Is(pulled, ErrInvalid) {
			return fmt.Errorf("%w; %q has no header image of it either", err, s.remote.Repo.Name())
		}
		return fmt.Errorf("%w; nor is there a header image from %q: %w", err, s.remote.Repo.Name(), pulled)
	}
	return err
}

func (s *Store) havePackages(specs []layerSpec) bool {
	for _, l := range specs {
		if slices.ContainsFunc(l.pkgs, func(p kernels.Package) bool { return !s.have(p) }) {
			return false
		}
	}
	return true
}

// pull makes layers of those of the remote's image and puts them in their places: all, or none. The glue is made here; the image has to
// have the same.
func (s *Store) pull(ctx context.Context, lock kernels.Lock, specs, missing []layerSpec, m *meter) error {
	if s.remote.Repo == nil {
		return errors.New("pull header image: no repository")
	}
	tag := LockTag(lock)
	img, err := s.remote.image(ctx, tag)
	if err != nil {
		return err
	}
	if img.lock.Digest() != lock.Digest() {
		return s.remote.invalid(tag, "its lock has digest %s", img.lock.Digest())
	}
	temp, err := durable.NewTemp(s.path("tmp"))
	if err != nil {
		return err
	}
	defer temp.Close()
	blobs := filepath.Join(temp.Dir, "blobs")
	if err := os.Mkdir(blobs, 0o755); err != nil {
		return err
	}
	trees := make([]*tree, len(specs)) // nil: the layer is there
	defer func() {
		for _, t := range trees {
			if t != nil {
				t.close()
			}
		}
	}()
	recs := make([]record, len(specs))
	for i, l := range specs {
		if !slices.ContainsFunc(missing, func(o layerSpec) bool { return o.key == l.key }) {
			if recs[i], err = readRecord(s.layerDir(l.key)); err != nil {
				return err
			}
			continue
		}
		if trees[i], err = newTree(filepath.Join(temp.Dir, l.kind), []string{"the image"}, s.limits); err != nil {
			return err
		}
		if l.tar != nil {
			if err := trees[i].glue(ctx, l); err != nil {
				return err
			}
			if recs[i], err = s.finish(trees[i], l, ""); err != nil {
				return err
			}
		}
	}
	for i, l := range specs { // what needs no download, first
		if l.tar == nil {
			continue
		}
		dir := s.layerDir(l.key)
		if trees[i] != nil {
			dir = trees[i].dir
		}
		ours, err := writeLayer(ctx, io.Discard, dir, 1, newMeter(nil))
		if err != nil {
			return err
		}
		if ours.DiffID != img.diffIDs[i] {
			return s.remote.invalid(tag, "its %s is %s; this program makes %s", l.kind, img.diffIDs[i], ours.DiffID)
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	for i, l := range specs {
		if trees[i] == nil || l.tar != nil {
			continue
		}
		m.expect("download", img.layers[i].Size)
		m.expect("unpack", img.layers[i].Size)
		g.Go(func() error {
			if err := s.pullLayer(gctx, trees[i], blobs, img.layers[i], img.diffIDs[i], m); err != nil {
				return s.remote.blame(tag, "layer "+l.kind, err)
			}
			var err error
			recs[i], err = s.finish(trees[i], l, s.remote.Repo.Name())
			return err
		})
	}
	if err := g.Wait(); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	if got := digestOfTrees(recs); got != img.root {
		return s.remote.invalid(tag, "its layers make the root %s; its label says %s", got, img.root)
	}
	for i, t := range trees {
		if t == nil {
			continue
		}
		if err := placeFolder(t.dir, s.layerDir(specs[i].key)); err != nil {
			return fmt.Errorf("place layer %s: %w", specs[i].kind, err)
		}
	}
	return nil
}

// blame says of an error of reading a part of an image that it is invalid, unless the registry or this machine is in the way.
func (r Remote) blame(tag, part string, err error) error {
	for _, other := range []error{context.Canceled, context.DeadlineExceeded, registry.ErrDenied, registry.ErrUnavailable, registry.ErrAltered} {
		if errors.Is(err, other) {
			return err
		}
	}
	if errors.As(err, new(unix.Errno)) {
		return err
	}
	return r.invalid(tag, "%s: %w", part, err)
}

// pullLayer downloads a layer and unpacks it. Its bytes have been checked before they are unpacked; the downloaded file is removed.
func (s *Store) pullLayer(ctx context.Context, t *tree, blobs string, d v1.Descriptor, diffID v1.Hash, m *meter) error {
	var downloaded int64
	blob, err := s.remote.Client.FetchBlob(ctx, s.remote.Repo, d, blobs, func(done, _ int64) {
		m.add("download", done-downloaded)
		downloaded = done
	})
	if err != nil {
		return err
	}
	defer os.Remove(filepath.Join(blobs, d.Digest.Hex))
	defer blob.Close()
	m.add("download", d.Size-downloaded) // what was there
	if err := acquire(ctx, s.decoders); err != nil {
		return err
	}
	defer func() { <-s.decoders }()
	counted := readerFunc(func(b []byte) (int, error) {
		n, err := blob.Read(b)
		m.add("unpack", int64(n))
		return n, err
	})
	z, err := gzip.NewReader(bufio.NewReaderSize(counted, 128<<10))
	if err != nil {
		return err
	}
	sum := sha256.New()
	if err := t.extract(ctx, 0, io.TeeReader(z, sum), policy{place: asNamed}); err != nil {
		return err
	}
	if got := hashOf(sum); got != diffID {
		return fmt.Errorf("unpacked it is %s; the config says %s", got, diffID)
	}
	return nil
}
