package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// A Kernel is a distribution's kernel as it is kept: the file that boots, and its modules. Nothing removes it until Close. Its methods are
// safe for concurrent use.
type Kernel struct {
	store  *Store
	kernel kernels.Kernel
	key    string
	rec    kernelRecord
	index  *moduleIndex
	blob   *os.File
	hold   *os.File
	once   sync.Once
}

// kernelEntry is kernels/<key>.json, by whose time is known when the kernel was last used.
type kernelEntry struct {
	Image   kernels.Image `json:"image"`
	Created time.Time     `json:"created"`
}

// kernelRecord is kernels/<key>/record.json.
type kernelRecord struct {
	Boot    v1.Hash `json:"boot"` // of the files of these names
	Index   v1.Hash `json:"index"`
	Modules v1.Hash `json:"modules"`
	Blob    int64   `json:"blob"` // bytes of the file modules
	Size    int64   `json:"size"` // bytes of all files
}

// kernelForm is part of every kernel's key: it changes when the same packages come to other files.
const kernelForm = "1"

func kernelKey(img kernels.Image) string {
	sum := sha256.Sum256([]byte("kernel " + kernelForm + " " + img.Digest().String()))
	return hex.EncodeToString(sum[:])
}

// Kernel gives a kernel. If the cache has it not, or it's damaged, it is made from its packages, which are fetched. The caller closes it.
// progress may be nil.
//
// Errors about a package are of type *PackageError.
func (s *Store) Kernel(ctx context.Context, img kernels.Image, progress Progress) (*Kernel, error) {
	k, err := s.kernel(ctx, img, progress)
	if err != nil {
		return nil, fmt.Errorf("kernel image of %q: %w", img.Kernel, located(s.dir, err))
	}
	return k, nil
}

func (s *Store) kernel(ctx context.Context, img kernels.Image, progress Progress) (*Kernel, error) {
	if err := checkImage(img); err != nil {
		return nil, err
	}
	key := kernelKey(img)
	hold, err := s.registerKernel(ctx, key, img)
	if err != nil {
		return nil, err
	}
	k, err := s.openKernel(key, img)
	if err != nil {
		k, err = s.makeAndOpen(ctx, key, img, progress)
	}
	if err != nil {
		hold.Close()
		return nil, err
	}
	k.hold = hold
	return k, nil
}

func (s *Store) makeAndOpen(ctx context.Context, key string, img kernels.Image, progress Progress) (*Kernel, error) {
	lock, err := durable.Lock(ctx, s.path("locks", "kernel-"+key), false)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	k, err := s.openKernel(key, img) // another process has made it
	if err == nil {
		return k, nil
	}
	if err := s.drop(s.kernelDir(key)); err != nil { // what is there is damaged
		return nil, err
	}
	if err := s.makeKernel(ctx, key, img, newMeter(progress)); err != nil {
		return nil, err
	}
	return s.openKernel(key, img)
}

func (s *Store) kernelDir(key string) string { return s.path("kernels", key) }

// registerKernel makes the kernel's entry, which keeps its packages from being removed from now on, and takes the shared lock that keeps the
// entry.
func (s *Store) registerKernel(ctx context.Context, key string, img kernels.Image) (*os.File, error) {
	store, err := durable.Lock(ctx, s.path("locks", "store"), true)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	hold, err := durable.Lock(ctx, s.kernelDir(key)+".lock", true)
	if err != nil {
		return nil, err
	}
	file := s.kernelDir(key) + ".json"
	now := time.Now()
	if os.Chtimes(file, now, now) == nil {
		if e, err := readKernelEntry(file); err == nil && kernelKey(e.Image) == key {
			return hold, nil
		}
	}
	e := kernelEntry{Image: img, Created: now.UTC()}
	err = durable.WriteFile(s.path("tmp"), file, 0o644, func(w io.Writer) error { return json.NewEncoder(w).Encode(e) })
	if err != nil {
		hold.Close()
		return nil, err
	}
	return hold, nil
}

func readKernelEntry(file string) (e kernelEntry, err error) {
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, &e)
	}
	return e, err
}

// checkImage refuses images with names that can't be part of a path.
func checkImage(img kernels.Image) error {
	return check(kernels.Lock{Kernel: img.Kernel, Compiler: "none", Headers: img.Packages})
}

func readKernelRecord(dir string) (rec kernelRecord, err error) {
	b, err := os.ReadFile(filepath.Join(dir, "record.json"))
	if err == nil {
		err = json.Unmarshal(b, &rec)
	}
	return rec, err
}

// openKernel opens a kernel that is there. What boots and the index are checked; modules are when they are read.
func (s *Store) openKernel(key string, img kernels.Image) (*Kernel, error) {
	dir := s.kernelDir(key)
	rec, err := readKernelRecord(dir)
	if err != nil {
		return nil, err
	}
	if err := verifyFile(context.Background(), filepath.Join(dir, "boot"), rec.Boot); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(filepath.Join(dir, "index"))
	if err != nil {
		return nil, err
	}
	if got := sha256.Sum256(text); hex.EncodeToString(got[:]) != rec.Index.Hex {
		return nil, errors.New("its index is damaged")
	}
	blob, err := os.Open(filepath.Join(dir, "modules"))
	if err != nil {
		return nil, err
	}
	k := &Kernel{store: s, kernel: img.Kernel, key: key, rec: rec, blob: blob}
	st, err := blob.Stat()
	if err == nil && st.Size() != rec.Blob {
		err = fmt.Errorf("its modules have %d bytes; want %d", st.Size(), rec.Blob)
	}
	if err == nil {
		k.index, err = decodeModuleIndex(text, rec.Blob)
	}
	if err != nil {
		blob.Close()
		return nil, err
	}
	return k, nil
}

// Close lets go of the kernel. Calling it twice is harmless.
func (k *Kernel) Close() error {
	var err error
	k.once.Do(func() { err = errors.Join(k.blob.Close(), k.hold.Close()) })
	return err
}

// Path is the file that boots. It must not be written to.
func (k *Kernel) Path() string { return filepath.Join(k.store.kernelDir(k.key), "boot") }

// Digest is the SHA-256 of the file that boots.
func (k *Kernel) Digest() v1.Hash { return k.rec.Boot }

// Resolve gives the kernel's own modules that must be loaded for some, by their names or aliases: these, and all that they need, each once
// and after what it needs, in an order that follows from names. What is built in is left out. A name that the kernel hasn't got wraps
// kernels.ErrNotFound.
func (k *Kernel) Resolve(names []string) ([]string, error) {
	out, err := k.index.resolve(names)
	if err != nil {
		return nil, fmt.Errorf("modules of %s: %w", k.kernel, err)
	}
	return out, nil
}

// Read gives a module of those that Resolve names, decompressed. One that is damaged is an error; what is kept of the kernel is removed
// then, and made again when it's next opened.
func (k *Kernel) Read(name string) ([]byte, error) {
	b, err := k.read(name)
	if err != nil {
		return nil, fmt.Errorf("read module %q of %s: %w", name, k.kernel, err)
	}
	return b, nil
}

func (k *Kernel) read(name string) ([]byte, error) {
	n, _ := normal(name)
	m, ok := k.index.modules[n]
	if !ok {
		return nil, errNoModule(name)
	}
	b, err := readModule(k.blob, m)
	if err != nil {
		k.store.drop(k.store.kernelDir(k.key))
		return nil, fmt.Errorf("what is kept of it is damaged (%w): run again to make it anew", err)
	}
	return b, nil
}

func readModule(blob io.ReaderAt, m indexed) ([]byte, error) {
	frame := make([]byte, m.length)
	if _, err := blob.ReadAt(frame, m.offset); err != nil {
		return nil, err
	}
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(uint64(max(m.size, zstd.MinWindowSize))))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	b, err := d.DecodeAll(frame, make([]byte, 0, m.size))
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) != m.sum {
		return nil, errors.New("its hash is another")
	}
	return b, nil
}
