package cache

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
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
)

// A Dir is a Store in a directory:
//
//	v1/entries/<key>        a record: which blobs an entry is made of, with a checksum of its own; its mtime is the last use
//	v1/blobs/sha256/<hex>   manifests, configs, layers, logs and locks; entries share them
//	v1/notes/<key>/<hash>   what was found out about an entry since, behind a checksum; see Note
//	v1/locks/<key>          held while a key is being built
//	v1/logs/<key>.log       of the last failed build of a key
//	v1/tmp/                 what is being written
//	v1/lock                 held shared by writers, exclusively by what removes
//
// Readers take no lock: a record appears after its blobs and goes before them. A writer that dies leaves, at worst, blobs
// without a record and temporary files, which GC removes: it holds the lock exclusively, so nobody else is writing then.
type Dir struct {
	root string // the directory of this layout's version
	warn func(string)
}

var _ Store = (*Dir)(nil)

// Options are settings of a Dir.
type Options struct {
	Warn func(string) // is told of damaged entries, one line each; may be called concurrently. Default: nobody is told.
}

// layout is the folder for this version of the layout.
const layout = "v1"

// touchAfter is how exact the time of last use is: a fresh one is not written again.
const touchAfter = time.Hour

// maxManifest bounds what is read into memory of manifests, configs and records, in bytes.
const maxManifest = 4 << 20

// Open opens a cache directory and makes it if absent. One that can't be written to is good for Get, List and Verify. The folders in it
// must be folders: a link in a mounted image's could lead out of the image.
func Open(dir string, o Options) (*Dir, error) {
	d := &Dir{root: filepath.Join(dir, layout), warn: o.Warn}
	if d.warn == nil {
		d.warn = func(string) {}
	}
	for _, sub := range []string{"", "entries", "blobs", "blobs/sha256", "notes", "locks", "logs", "tmp"} {
		path := filepath.Join(d.root, sub)
		if info, err := os.Lstat(path); err == nil && !info.IsDir() {
			return nil, fmt.Errorf("open cache %q: %q is no folder; remove it", dir, path)
		}
		if err := os.MkdirAll(path, 0o755); err != nil {
			if _, statErr := os.Stat(filepath.Join(d.root, "entries")); statErr == nil && notWritable(err) {
				return d, nil
			}
			return nil, fmt.Errorf("open cache %q: %w", dir, err)
		}
	}
	return d, nil
}

// record is what an entry's file holds, after a line with its own SHA-256.
type record struct {
	Key      v1.Hash   `json:"key"`
	Manifest v1.Hash   `json:"manifest"`
	Log      v1.Hash   `json:"log"`
	Lock     *v1.Hash  `json:"lock,omitempty"`
	Inputs   bool      `json:"inputs,omitempty"` // are kept: as a blob, whose digest is the key
	Blobs    []blob    `json:"blobs"`            // the manifest, what it refers to, the log, the lock and the inputs
	Created  time.Time `json:"created"`
}

type blob struct {
	Digest v1.Hash `json:"digest"`
	Size   int64   `json:"size"`
}

// A damage is content that is not what it was stored as.
type damage struct {
	err   error
	blobs []v1.Hash // damaged ones
}

func (d *damage) Error() string { return d.err.Error() }
func (d *damage) Unwrap() error { return d.err }

func damaged(format string, a ...any) *damage { return &damage{err: fmt.Errorf(format, a...)} }

func (d *Dir) path(elem ...string) string {
	return filepath.Join(append([]string{d.root}, elem...)...)
}
func (d *Dir) blobPath(h v1.Hash) string   { return d.path("blobs", "sha256", h.Hex) }
func (d *Dir) recordPath(k v1.Hash) string { return d.path("entries", k.Hex) }

// Get implements Store. A damaged entry is reported through Options.Warn and dropped.
func (d *Dir) Get(ctx context.Context, key v1.Hash) (Entry, error) {
	if err := checkHash(key); err != nil {
		return Entry{}, fmt.Errorf("read cache key %q: %w", key, err)
	}
	e, mtime, err := d.load(ctx, key)
	var bad *damage
	if errors.As(err, &bad) {
		e, mtime, err = d.drop(ctx, key)
	}
	if err != nil {
		return Entry{}, fmt.Errorf("read cache entry %q: %w", key, err)
	}
	if now := time.Now(); now.Sub(mtime) > touchAfter {
		os.Chtimes(d.recordPath(key), now, now) // a read-only cache keeps no times of use
	}
	return e, nil
}

// load reads an entry and checks all of it. Damage comes back as *damage.
func (d *Dir) load(ctx context.Context, key v1.Hash) (Entry, time.Time, error) {
	r, mtime, err := d.readRecord(key)
	if err != nil {
		return Entry{}, mtime, err
	}
	manifest, err := d.readBlob(r.Manifest, maxManifest)
	if err != nil {
		return Entry{}, mtime, err
	}
	m, err := v1.ParseManifest(bytes.NewReader(manifest))
	if err != nil {
		return Entry{}, mtime, damaged("manifest %s: %w", r.Manifest, err)
	}
	img := &image{manifest: manifest, mediaType: m.MediaType, layers: map[v1.Hash]*layer{}}
	if img.config, err = d.readBlob(m.Config.Digest, maxManifest); err != nil {
		return Entry{}, mtime, err
	}
	for _, desc := range m.Layers {
		f, err := d.openBlob(ctx, blob{desc.Digest, desc.Size})
		if err != nil {
			return Entry{}, mtime, err
		}
		img.layers[desc.Digest] = &layer{f: f, desc: desc}
	}
	log, err := d.readBlob(r.Log, 2*MaxLog)
	if err != nil {
		return Entry{}, mtime, err
	}
	var lock []byte
	if r.Lock != nil {
		if lock, err = d.readBlob(*r.Lock, maxManifest); err != nil {
			return Entry{}, mtime, err
		}
	}
	var inputs []byte
	if r.Inputs {
		if inputs, err = d.readBlob(r.Key, maxManifest); err != nil {
			return Entry{}, mtime, err
		}
	}
	i, err := partial.CompressedToImage(img)
	if err != nil {
		return Entry{}, mtime, err
	}
	return Entry{Image: i, Log: log, Lock: lock, Inputs: inputs}, mtime, nil
}

// drop looks at an entry again while nobody writes, removes what is damaged of it, and warns. It returns the entry if it
// turns out to be whole: then another process has replaced it meanwhile.
func (d *Dir) drop(ctx context.Context, key v1.Hash) (Entry, time.Time, error) {
	lock, lockErr := d.lock(ctx, false)
	if lockErr == nil {
		defer lock.Close()
	} else if !notWritable(lockErr) {
		return Entry{}, time.Time{}, lockErr
	}
	e, mtime, err := d.load(ctx, key)
	var bad *damage
	if !errors.As(err, &bad) {
		return e, mtime, err
	}
	if lockErr != nil {
		d.warn(fmt.Sprintf("cache entry %s is damaged and can't be removed, since the cache is read-only: %v", key, bad))
		return Entry{}, mtime, fmt.Errorf("%w: it is damaged: %w", ErrNotFound, bad.err)
	}
	if err := d.remove(key, bad); err != nil {
		return Entry{}, mtime, err
	}
	d.warn(fmt.Sprintf("cache entry %s was damaged and has been removed: %v", key, bad))
	return Entry{}, mtime, fmt.Errorf("%w: it was damaged: %w", ErrNotFound, bad.err)
}

// remove removes a record and damaged blobs. The caller holds the exclusive lock.
func (d *Dir) remove(key v1.Hash, bad *damage) error {
	if err := os.Remove(d.recordPath(key)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.RemoveAll(d.notesPath(key)); err != nil {
		return err
	}
	for _, h := range bad.blobs {
		if err := os.Remove(d.blobPath(h)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// Remove removes an entry, which may be absent, with the blobs that no other entry has.
func (d *Dir) Remove(ctx context.Context, key v1.Hash) error {
	fail := func(err error) error { return fmt.Errorf("remove cache entry %q: %w", key, err) }
	if err := checkHash(key); err != nil {
		return fail(err)
	}
	lock, err := d.lock(ctx, false)
	if err != nil {
		return fail(err)
	}
	defer lock.Close()
	_, records, err := d.list(ctx)
	if err != nil {
		return fail(err)
	}
	own := &damage{}
	for _, b := range records[key].Blobs {
		own.blobs = append(own.blobs, b.Digest)
	}
	delete(records, key)
	for _, r := range records {
		for _, b := range r.Blobs {
			own.blobs = slices.DeleteFunc(own.blobs, func(h v1.Hash) bool { return h == b.Digest })
		}
	}
	if err := d.remove(key, own); err != nil {
		return fail(err)
	}
	return nil
}

// Put implements Store.
func (d *Dir) Put(ctx context.Context, key v1.Hash, e Entry) error {
	if err := d.put(ctx, key, e); err != nil {
		if notWritable(err) {
			return fmt.Errorf("write cache entry %q: the cache can't be written to: %w", key, err)
		}
		return fmt.Errorf("write cache entry %q: %w", key, err)
	}
	return nil
}

func (d *Dir) put(ctx context.Context, key v1.Hash, e Entry) error {
	if err := checkHash(key); err != nil {
		return err
	}
	manifest, err := e.Image.RawManifest()
	if err != nil {
		return err
	}
	m, err := v1.ParseManifest(bytes.NewReader(manifest))
	if err != nil {
		return err
	}
	config, err := e.Image.RawConfigFile()
	if err != nil {
		return err
	}
	if len(manifest) > maxManifest || len(config) > maxManifest || len(e.Lock) > maxManifest || len(e.Inputs) > maxManifest {
		return fmt.Errorf("a manifest of %d bytes, a config of %d, a lock of %d and inputs of %d, more than %d",
			len(manifest), len(config), len(e.Lock), len(e.Inputs), maxManifest)
	}
	if err := durable.Sweep(d.path("tmp")); err != nil {
		return err
	}
	log := capLog(e.Log)
	r := record{Key: key, Manifest: hashBytes(manifest), Log: hashBytes(log), Created: time.Now().UTC()}
	r.Blobs = []blob{{r.Manifest, int64(len(manifest))}, {m.Config.Digest, m.Config.Size}}

	lock, err := d.lock(ctx, true)
	if err != nil {
		return err
	}
	defer lock.Close()
	// At once: each waits for the disk, and a file system lets those that wait share one commit of its journal.
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, desc := range m.Layers {
		r.Blobs = append(r.Blobs, blob{desc.Digest, desc.Size})
		g.Go(func() error {
			if err := d.writeBlob(ctx, desc.Digest, desc.Size, func() (io.ReadCloser, error) {
				l, err := e.Image.LayerByDigest(desc.Digest)
				if err != nil {
					return nil, err
				}
				return l.Compressed()
			}); err != nil {
				return fmt.Errorf("layer %s: %w", desc.Digest, err)
			}
			return nil
		})
	}
	r.Blobs = append(r.Blobs, blob{r.Log, int64(len(log))})
	small := []struct {
		h    v1.Hash
		data []byte
	}{{m.Config.Digest, config}, {r.Manifest, manifest}, {r.Log, log}}
	if e.Lock != nil {
		h := hashBytes(e.Lock)
		r.Lock = &h
		r.Blobs = append(r.Blobs, blob{h, int64(len(e.Lock))})
		small = append(small, struct {
			h    v1.Hash
			data []byte
		}{h, e.Lock})
	}
	if e.Inputs != nil {
		r.Inputs = true
		r.Blobs = append(r.Blobs, blob{key, int64(len(e.Inputs))})
		small = append(small, struct {
			h    v1.Hash
			data []byte
		}{key, e.Inputs})
	}
	for _, b := range small {
		g.Go(func() error {
			return d.writeBlob(ctx, b.h, int64(len(b.data)), func() (io.ReadCloser, error) {
				return io.NopCloser(bytes.NewReader(b.data)), nil
			})
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return durable.WriteFile(d.path("tmp"), d.recordPath(key), 0o644, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s\n%s\n", hashBytes(body).Hex, body)
		return err
	})
}

// writeBlob stores a blob unless it is there, whole. The caller holds the shared lock.
func (d *Dir) writeBlob(ctx context.Context, h v1.Hash, size int64, open func() (io.ReadCloser, error)) error {
	if err := checkHash(h); err != nil {
		return err
	}
	f, err := d.openBlob(ctx, blob{h, size})
	if err == nil {
		f.Close()
		return nil
	}
	var bad *damage
	if !errors.As(err, &bad) {
		return err
	}
	r, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	return durable.WriteFile(d.path("tmp"), d.blobPath(h), 0o644, func(w io.Writer) error {
		sum := sha256.New()
		n, err := io.Copy(io.MultiWriter(w, sum), contextReader{ctx, io.LimitReader(r, size+1)})
		if err != nil {
			return err
		}
		if got := hex.EncodeToString(sum.Sum(nil)); n != size || got != h.Hex {
			return fmt.Errorf("it has digest %q, want %q", got, h.Hex)
		}
		return nil
	})
}

// KeepLog keeps the log of a failed build and returns its path. It replaces that of an earlier failure of the same key, and
// is no entry: Get does not see it. GC removes it in time.
func (d *Dir) KeepLog(ctx context.Context, key v1.Hash, log []byte) (string, error) {
	fail := func(err error) (string, error) { return "", fmt.Errorf("keep the log of %q: %w", key, err) }
	if err := checkHash(key); err != nil {
		return fail(err)
	}
	lock, err := d.lock(ctx, true)
	if err != nil {
		return fail(err)
	}
	defer lock.Close()
	if err := durable.Sweep(d.path("tmp")); err != nil {
		return fail(err)
	}
	path := d.path("logs", key.Hex+".log")
	if err := durable.WriteFile(d.path("tmp"), path, 0o644, func(w io.Writer) error {
		_, err := w.Write(capLog(log))
		return err
	}); err != nil {
		return fail(err)
	}
	return path, nil
}

// Lock waits until no other holds the key, in this process or another, and holds it until Close. Whoever builds for a key
// takes it first and then asks Get again, so that a key is built once. What is held, GC leaves alone.
func (d *Dir) Lock(ctx context.Context, key v1.Hash) (io.Closer, error) {
	if err := checkHash(key); err != nil {
		return nil, fmt.Errorf("lock cache key %q: %w", key, err)
	}
	path := d.path("locks", key.Hex)
	for {
		f, err := durable.Lock(ctx, path, false)
		if err != nil {
			return nil, fmt.Errorf("lock cache key %q: %w", key, err)
		}
		if same(f, path) { // not so if GC removed the file between opening and locking it
			return f, nil
		}
		f.Close()
	}
}

func same(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Stat(path)
	return err == nil && os.SameFile(a, b)
}

// lock takes the lock of the whole store.
func (d *Dir) lock(ctx context.Context, shared bool) (io.Closer, error) {
	return durable.Lock(ctx, d.path("lock"), shared)
}

func (d *Dir) readRecord(key v1.Hash) (record, time.Time, error) {
	f, err := os.Open(d.recordPath(key))
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, time.Time{}, ErrNotFound
	}
	if err != nil {
		return record{}, time.Time{}, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return record{}, time.Time{}, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxManifest))
	if err != nil {
		return record{}, time.Time{}, err
	}
	sum, rest, _ := bytes.Cut(b, []byte("\n"))
	body, ok := bytes.CutSuffix(rest, []byte("\n"))
	if !ok || hashBytes(body).Hex != string(sum) {
		return record{}, st.ModTime(), damaged("record %q does not have the checksum that it names", key.Hex)
	}
	var r record
	if err := json.Unmarshal(body, &r); err != nil {
		return record{}, st.ModTime(), damaged("record %q: %w", key.Hex, err)
	}
	if r.Key != key {
		return record{}, st.ModTime(), damaged("record %q is of key %q", key.Hex, r.Key)
	}
	return r, st.ModTime(), nil
}

// readBlob reads a small blob whole.
func (d *Dir) readBlob(h v1.Hash, limit int64) ([]byte, error) {
	if err := checkHash(h); err != nil {
		return nil, damaged("%w", err)
	}
	f, err := os.Open(d.blobPath(h))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, damaged("blob %s is missing", h)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if got := hashBytes(b); got != h {
		return nil, &damage{fmt.Errorf("blob %s has digest %s", h, got), []v1.Hash{h}}
	}
	return b, nil
}

// openBlob opens a blob and hashes it. The open file stays readable when GC removes the blob.
func (d *Dir) openBlob(ctx context.Context, b blob) (*os.File, error) {
	if err := checkHash(b.Digest); err != nil {
		return nil, damaged("%w", err)
	}
	f, err := os.Open(d.blobPath(b.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, damaged("blob %s is missing", b.Digest)
	}
	if err != nil {
		return nil, err
	}
	sum := sha256.New()
	n, err := io.Copy(sum, contextReader{ctx, f})
	if err != nil {
		f.Close()
		return nil, err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != b.Digest.Hex || n != b.Size {
		f.Close()
		return nil, &damage{fmt.Errorf("blob %s has %d bytes and digest sha256:%s", b.Digest, n, got), []v1.Hash{b.Digest}}
	}
	return f, nil
}

// image implements partial.CompressedImageCore.
type image struct {
	manifest, config []byte
	mediaType        types.MediaType
	layers           map[v1.Hash]*layer
}

func (i *image) RawManifest() ([]byte, error)        { return i.manifest, nil }
func (i *image) RawConfigFile() ([]byte, error)      { return i.config, nil }
func (i *image) MediaType() (types.MediaType, error) { return i.mediaType, nil }
func (i *image) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	l, ok := i.layers[h]
	if !ok {
		return nil, fmt.Errorf("no layer %s", h)
	}
	return l, nil
}

// layer reads an open blob. The file is closed when the layer is garbage.
type layer struct {
	f    *os.File
	desc v1.Descriptor
}

func (l *layer) Digest() (v1.Hash, error)            { return l.desc.Digest, nil }
func (l *layer) Size() (int64, error)                { return l.desc.Size, nil }
func (l *layer) MediaType() (types.MediaType, error) { return l.desc.MediaType, nil }
func (l *layer) Compressed() (io.ReadCloser, error) {
	if l.f == nil {
		return nil, errors.New("an image without its layers")
	}
	return io.NopCloser(&verifier{l: l, r: io.NewSectionReader(l.f, 0, l.desc.Size), sum: sha256.New()}), nil
}

// verifier fails before EOF when the bytes are not those of the digest.
type verifier struct {
	l   *layer // keeps the file open
	r   io.Reader
	sum interface {
		io.Writer
		Sum([]byte) []byte
	}
}

func (v *verifier) Read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.sum.Write(p[:n])
	if err == io.EOF {
		if got := hex.EncodeToString(v.sum.Sum(nil)); got != v.l.desc.Digest.Hex {
			return 0, fmt.Errorf("blob %s has digest sha256:%s", v.l.desc.Digest, got)
		}
	}
	return n, err
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

func checkHash(h v1.Hash) error {
	if b, err := hex.DecodeString(h.Hex); err != nil || h.Algorithm != "sha256" || len(b) != sha256.Size || strings.ToLower(h.Hex) != h.Hex {
		return fmt.Errorf("%q is not a SHA-256 digest", h)
	}
	return nil
}

func hashBytes(b []byte) v1.Hash {
	sum := sha256.Sum256(b)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

// capLog leaves out the middle of a long log: its begin says what was run, its end what went wrong.
func capLog(log []byte) []byte {
	if len(log) <= MaxLog {
		return log
	}
	head, tail := log[:MaxLog/4], log[len(log)-MaxLog/4*3+64:]
	return bytes.Join([][]byte{head, tail}, fmt.Appendf(nil, "\n[%d bytes left out]\n", len(log)-len(head)-len(tail)))
}

func notWritable(err error) bool {
	return errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrPermission)
}
