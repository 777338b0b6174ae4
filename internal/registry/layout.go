package registry

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
)

// layout is a repository in a directory (image-spec, image-layout.md). Tags are entries of its index.json with the annotation
// org.opencontainers.image.ref.name; manifests that have none but are to be found, such as referrers, are entries without it.
//
// A push gathers its blobs in a folder of its own below .partial. They are moved into place while blobs is locked, and index.json is
// replaced last: without it there is no layout yet. Blobs are never removed.
type layout struct{ dir string }

func (l *layout) path(elem ...string) string {
	return filepath.Join(append([]string{l.dir}, elem...)...)
}

func (l *layout) blobPath(h v1.Hash) string { return l.path("blobs", h.Algorithm, h.Hex) }

// indexFile is an index.json as it is, whoever wrote it.
type indexFile struct {
	fields  map[string]json.RawMessage
	entries []entry
}

// entry is a descriptor. Those that this package has no use for are kept.
type entry struct {
	raw         json.RawMessage
	Digest      string
	MediaType   types.MediaType
	Annotations map[string]string
}

func (e entry) tag() string {
	if t := e.Annotations[ocispec.AnnotationRefName]; tagForm.MatchString(t) {
		return t
	}
	return ""
}

// index reads index.json.
func (l *layout) index() (*indexFile, error) {
	name := l.path(ocispec.ImageIndexFile)
	f, err := openRegular(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %q is no OCI layout directory: it has no %s", ErrNotFound, l.dir, ocispec.ImageIndexFile)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxAnswer+1))
	if err != nil {
		return nil, err
	}
	var version struct{ SchemaVersion int }
	idx := &indexFile{}
	var list []json.RawMessage
	if len(raw) > maxAnswer {
		err = fmt.Errorf("it has more than %d bytes", maxAnswer)
	} else if err = json.Unmarshal(raw, &idx.fields); err == nil {
		err = json.Unmarshal(raw, &version)
	}
	if err == nil && version.SchemaVersion != 2 {
		err = fmt.Errorf("it has schema version %d, not 2", version.SchemaVersion)
	}
	if m := idx.fields["manifests"]; err == nil && m != nil {
		err = json.Unmarshal(m, &list)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %q: %w", ErrAltered, name, err)
	}
	for _, raw := range list {
		e := entry{raw: raw}
		if json.Unmarshal(raw, &e) != nil {
			e = entry{raw: raw}
		}
		idx.entries = append(idx.entries, e)
	}
	return idx, nil
}

// write replaces index.json. The entries have a total order, so that who pushes first makes no difference.
func (l *layout) write(idx *indexFile, temp string) error {
	slices.SortStableFunc(idx.entries, func(a, b entry) int {
		if c := strings.Compare(a.Annotations[ocispec.AnnotationRefName], b.Annotations[ocispec.AnnotationRefName]); c != 0 {
			return c
		}
		return strings.Compare(a.Digest, b.Digest)
	})
	list := make([]json.RawMessage, len(idx.entries))
	for i, e := range idx.entries {
		list[i] = e.raw
	}
	raw, err := json.Marshal(list)
	if err != nil {
		return err
	}
	fields := maps.Clone(idx.fields)
	fields["manifests"] = raw
	return durable.WriteFile(temp, l.path(ocispec.ImageIndexFile), 0o644, func(w io.Writer) error { return json.NewEncoder(w).Encode(fields) })
}

func (l *layout) tags(context.Context) ([]string, error) {
	idx, err := l.index()
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range idx.entries {
		if t := e.tag(); t != "" {
			out = append(out, t)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

func (l *layout) head(ctx context.Context, identifier string) (v1.Descriptor, error) {
	_, d, err := l.manifest(ctx, identifier)
	return d, err
}

func (l *layout) manifest(_ context.Context, identifier string) ([]byte, v1.Descriptor, error) {
	idx, err := l.index()
	if err != nil {
		return nil, v1.Descriptor{}, err
	}
	digest := identifier // one that an index names is no entry
	var said types.MediaType
	for _, e := range idx.entries {
		if e.Digest == identifier || e.tag() == identifier {
			digest, said = e.Digest, e.MediaType
			break
		}
	}
	h, err := v1.NewHash(digest)
	switch {
	case err != nil && digest == identifier:
		return nil, v1.Descriptor{}, fmt.Errorf("%w in %q", ErrNotFound, l.dir)
	case err != nil, h.Algorithm != "sha256":
		return nil, v1.Descriptor{}, fmt.Errorf("%w: the digest %q in %q is not usable", ErrAltered, printable(digest), l.path(ocispec.ImageIndexFile))
	}
	raw, err := l.small(h)
	if err != nil {
		return nil, v1.Descriptor{}, err
	}
	if !slices.Contains(manifestTypes, said) {
		said = ""
	}
	d, err := describe(raw, said, h.String())
	if err != nil {
		return nil, v1.Descriptor{}, fmt.Errorf("%q: %w", l.blobPath(h), err)
	}
	return raw, d, nil
}

// small reads a manifest's blob.
func (l *layout) small(h v1.Hash) ([]byte, error) {
	f, err := l.open(h)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxManifest+1))
	if err == nil && len(raw) > maxManifest {
		err = fmt.Errorf("%w: %q has more than %d bytes", ErrRefused, f.Name(), maxManifest)
	}
	return raw, err
}

func (l *layout) open(h v1.Hash) (*os.File, error) {
	f, err := openRegular(l.blobPath(h))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s in %q", ErrNotFound, h, l.dir)
	}
	return f, err
}

func (l *layout) blob(_ context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	f, err := l.open(d.Digest)
	if err != nil {
		return nil, err
	}
	return &checkedFile{file: f, d: d, sum: sha256.New()}, nil
}

// lock locks the directory. For push, which may come below it, the blobs are locked.
func (l *layout) lock(ctx context.Context) (io.Closer, error) {
	for {
		made, err := l.make()
		if err != nil {
			return nil, err
		}
		f, err := durable.LockDir(ctx, l.dir)
		if err != nil {
			l.unmake(made)
			return nil, err
		}
		if same(f, os.Stat, l.dir) {
			return &layoutLock{f, l, made}, nil
		}
		f.Close() // removed meanwhile, by who made it for nothing
	}
}

// same tells whether a file still has its name.
func same(f *os.File, stat func(string) (fs.FileInfo, error), name string) bool {
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	now, err := stat(name)
	return err == nil && os.SameFile(mine, now)
}

type layoutLock struct {
	*os.File
	layout *layout
	made   bool
}

func (k *layoutLock) Close() error {
	k.layout.unmake(k.made)
	return k.File.Close()
}

// make makes the directory, and tells whether it did.
func (l *layout) make() (bool, error) {
	if err := os.MkdirAll(filepath.Dir(l.dir), 0o755); err != nil {
		return false, err
	}
	err := os.Mkdir(l.dir, 0o755)
	if errors.Is(err, fs.ErrExist) {
		if st, serr := os.Stat(l.dir); serr == nil && st.IsDir() {
			return false, nil
		}
	}
	return err == nil, err
}

// unmake removes a directory that make made, if it is empty still.
func (l *layout) unmake(made bool) {
	if made {
		os.Remove(l.dir)
	}
}

// staging gives a folder for what a push writes, and what is to be called after it. Processes share a lock of .partial for as long as
// they have something there. Who can have it alone removes it, with all that dead ones have left.
func (l *layout) staging(ctx context.Context) (string, func(), error) {
	base := l.path(".partial")
	for {
		if err := os.MkdirAll(base, 0o755); err != nil {
			return "", nil, err
		}
		f, err := os.OpenFile(base, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", nil, err
		}
		if err := flock(ctx, f, unix.LOCK_SH); err != nil {
			f.Close()
			return "", nil, err
		}
		if !same(f, os.Lstat, base) { // removed meanwhile
			f.Close()
			continue
		}
		dir, err := os.MkdirTemp(base, "")
		if err != nil {
			f.Close()
			return "", nil, err
		}
		return dir, func() {
			os.RemoveAll(dir)
			if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
				os.RemoveAll(base)
			}
			f.Close()
		}, nil
	}
}

// flock waits for a lock.
func flock(ctx context.Context, f *os.File, how int) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("lock %q: %w", f.Name(), err)
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

func (l *layout) push(ctx context.Context, identifier string, c *content, o PushOptions) (err error) {
	made, err := l.make()
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			l.unmake(made)
		}
	}()
	stage, done, err := l.staging(ctx)
	if err != nil {
		return err
	}
	defer done()
	m := newMeter(o.Progress)
	for _, b := range c.blobs {
		m.add(0, b.Size)
	}
	var staged []string
	add := func(d v1.Descriptor, open func() (io.ReadCloser, error), m *meter) error {
		if slices.Contains(staged, d.Digest.Hex) {
			return nil
		}
		ok, err := l.stage(ctx, stage, d, open, m)
		if ok {
			staged = append(staged, d.Digest.Hex)
		}
		return err
	}
	for _, b := range c.blobs {
		if err := add(b.Descriptor, b.open, m); err != nil {
			return err
		}
	}
	for _, step := range c.manifests {
		for _, one := range step {
			if err := add(one.Descriptor, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(one.raw)), nil }, newMeter(nil)); err != nil {
				return err
			}
		}
	}
	if err := os.MkdirAll(l.path("blobs", "sha256"), 0o755); err != nil {
		return err
	}
	lock, err := durable.LockDir(ctx, l.path("blobs"))
	if err != nil {
		return err
	}
	defer lock.Close()
	// From here on it is quick, and isn't cut off.
	idx, err := l.index()
	if errors.Is(err, ErrNotFound) {
		idx, err = &indexFile{fields: map[string]json.RawMessage{
			"schemaVersion": json.RawMessage("2"), "mediaType": json.RawMessage(`"` + types.OCIImageIndex + `"`),
		}}, nil
	}
	if err != nil {
		return err
	}
	if err := durable.RenameAll(stage, l.path("blobs", "sha256"), staged); err != nil {
		return err
	}
	if _, err := os.Stat(l.path(ocispec.ImageLayoutFile)); errors.Is(err, fs.ErrNotExist) {
		if err := durable.WriteFile(stage, l.path(ocispec.ImageLayoutFile), 0o644, func(w io.Writer) error {
			_, err := fmt.Fprintf(w, "{%q:%q}", "imageLayoutVersion", ocispec.ImageLayoutVersion)
			return err
		}); err != nil {
			return err
		}
	}
	if err := idx.set(identifier, c.top().Descriptor); err != nil {
		return err
	}
	return l.write(idx, stage)
}

// set lets a tag name a manifest, or lists it without one.
func (idx *indexFile) set(identifier string, d v1.Descriptor) error {
	if _, err := v1.NewHash(identifier); err == nil {
		if slices.ContainsFunc(idx.entries, func(e entry) bool { return e.Digest == d.Digest.String() }) {
			return nil
		}
	} else {
		if slices.ContainsFunc(idx.entries, func(e entry) bool { return e.tag() == identifier && e.Digest == d.Digest.String() }) {
			return nil
		}
		idx.entries = slices.DeleteFunc(idx.entries, func(e entry) bool { return e.tag() == identifier })
		d.Annotations = map[string]string{ocispec.AnnotationRefName: identifier}
	}
	raw, err := json.Marshal(d)
	if err != nil {
		return err
	}
	idx.entries = append(idx.entries, entry{raw, d.Digest.String(), d.MediaType, d.Annotations})
	return nil
}

// stage writes a blob, unless the layout has it, whole.
func (l *layout) stage(ctx context.Context, stage string, d v1.Descriptor, open func() (io.ReadCloser, error), m *meter) (bool, error) {
	if have, err := openFile(l.blobPath(d.Digest), d); err == nil {
		_, err := io.Copy(io.Discard, contextReader{ctx, have})
		have.Close()
		if ctx.Err() != nil {
			return false, context.Cause(ctx)
		}
		if err == nil {
			m.add(d.Size, 0)
			return false, nil
		}
	}
	r, err := open()
	if err != nil {
		return false, err
	}
	defer r.Close()
	f, err := os.OpenFile(filepath.Join(stage, d.Digest.Hex), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return false, err
	}
	defer f.Close()
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum), &metered{io.LimitReader(contextReader{ctx, r}, d.Size+1), m})
	if got := hex.EncodeToString(sum.Sum(nil)); err == nil && (n != d.Size || got != d.Digest.Hex) {
		err = fmt.Errorf("%w: want %s with %d bytes, have %s with %d", ErrAltered, d.Digest, d.Size, got, n)
	}
	if err == nil {
		err = f.Sync()
	}
	return err == nil, err
}

func (l *layout) refer(context.Context, v1.Hash, []v1.Descriptor) error { return nil }

func (l *layout) referrers(ctx context.Context, subject v1.Hash) ([]v1.Descriptor, error) {
	idx, err := l.index()
	if err != nil {
		return nil, err
	}
	var out []v1.Descriptor
	for _, e := range idx.entries {
		if ctx.Err() != nil { // there may be many
			return nil, context.Cause(ctx)
		}
		h, err := v1.NewHash(e.Digest)
		if err != nil || h.Algorithm != "sha256" || !slices.Contains(manifestTypes, e.MediaType) {
			continue
		}
		raw, err := l.small(h)
		if err != nil {
			continue
		}
		d, err := describe(raw, e.MediaType, h.String())
		if err != nil {
			continue
		}
		if d, to, err := asReferrer(manifestSource{d, raw}); err == nil && to == subject {
			out = merge(out, []v1.Descriptor{d})
		}
	}
	return out, nil
}

type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}
