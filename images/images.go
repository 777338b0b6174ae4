// Package images turns locks into header images: reproducible OCI images, assembled from distribution packages without a daemon.
//
// A header image has three layers: the toolchain, shared by every kernel of a suite with that compiler; the headers of one
// kernel; and the glue, which is what the maintainer scripts of the packages would have made. No script of a package is run.
// Layers are unpacked first, for a sandbox to run on; their tar form, and with it the image's digest, is made when it is asked
// for. Both are functions of the lock alone: not of the mirror, the order of arrival, the user, the machine or the time.
//
// A registry can keep header images, by the digests of their locks, for machines that don't assemble them and for kernels that no mirror
// has any more. What is pulled is checked against itself: every byte has its digest, the image is that of the lock, and its glue is the
// one that this package makes. That its files are those of the lock's packages is the registry's word: pulled layers are as trusted as
// the registry that the user named, and stay in the cache for whoever uses it.
//
// Of each package, documentation, manuals and translations are left out (see placePackage); licences are kept, because images
// are handed on.
package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/mirror"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// Version is part of every layer's key, and of the key of what is built on a root: it changes when the same packages come to another
// root, glue included. So does the form of LockTag then.
const Version = "1"

// Options describe a Store.
type Options struct {
	// Dir is the cache folder, made if absent. Processes of one user can share it; so can kernels built at the same time.
	Dir string
	// Payload turns a package file of a distribution into the tar stream of the files that it installs.
	Payload func(distro string, pkg io.Reader) (io.ReadCloser, error)
	// Client downloads packages. Default: one with time-outs that honours the environment's proxies.
	Client *http.Client
	// Health is what this process knows of the mirrors. Default: nothing yet.
	Health *mirror.Health
	// Offline makes a package that is not in the cache an error that wraps ErrOffline.
	Offline bool
	// Jobs is how many packages are unpacked at a time, over all roots that are being assembled; at most 6, for each takes some
	// ten megabytes. Default: the processors.
	Jobs int
	// Remote has header images: a root is taken from there, rather than assembled, if it has the lock's and not all packages are in the
	// cache. Default: none.
	Remote Remote
	// Warn is told once why the remote can't be used, and of each image there that is not what it should be. It may be called by several
	// goroutines at a time. Default: nothing.
	Warn func(string)
}

// A Store keeps packages and layers in a folder:
//
//	packages/sha256/<hex>   package files
//	packages/sha512/<hex>   those of which an index has no SHA-256
//	packages/partial/<hex>  downloads that were cut off
//	layers/<key>/fs         an unpacked layer; beside it index, its entries, and record.json, their totals, hash and origin
//	packed/<key>/           the layer's tar form: layer.tar.gz and packed.json
//	roots/<lock>.json       a lock, its layers, and by the file's time when it was last used
//	kernels/<key>/          a kernel: what boots, its modules one after the other, their index, and record.json, the hashes of these;
//	                        <key>.json is its image, and by the file's time when it was last used
//	tmp, locks, */.lock     unfinished work and advisory locks
//
// It is safe for concurrent use, by several processes too. What a killed process leaves behind is removed by the next one;
// downloads are resumed.
type Store struct {
	dir       string
	payload   func(string, io.Reader) (io.ReadCloser, error)
	net       mirror.Fetcher
	offline   bool
	jobs      int
	boot      string        // names this start of the machine; empty when unknown
	decoders  chan struct{} // a slot for each package that is being unpacked
	downloads chan struct{}
	limits    limits
	remote    Remote
	warn      func(string)
	down      atomic.Bool // the remote is not asked any more
	refused   sync.Map    // tags of images of the remote that are not what they should be
}

// maxJobs is where memory counts for more: the largest packages are what the whole waits for, whatever goes on beside them.
const maxJobs = 6

// minDownloads is for mirrors that are slow to answer: most packages are small.
const minDownloads = 6

// Open opens a store, which is made if absent.
func Open(o Options) (*Store, error) {
	if o.Dir == "" || o.Payload == nil {
		return nil, errors.New("images: a folder and a payload reader are needed")
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	for _, d := range []string{"packages/sha256", "packages/sha512", "packages/partial", "layers", "packed", "roots", "kernels", "tmp", "locks"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, fmt.Errorf("make cache folder: %w", err)
		}
	}
	if o.Jobs <= 0 {
		o.Jobs = runtime.NumCPU()
	}
	o.Jobs = min(o.Jobs, maxJobs)
	if o.Client == nil {
		o.Client = mirror.NewClient()
	}
	if o.Warn == nil {
		o.Warn = func(string) {}
	}
	net := mirror.NewFetcher(o.Client)
	if o.Health != nil {
		net.Health = o.Health
	}
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return &Store{
		dir: dir, payload: o.Payload, net: net, offline: o.Offline, jobs: o.Jobs,
		boot:     strings.TrimSpace(string(boot)),
		decoders: make(chan struct{}, o.Jobs), downloads: make(chan struct{}, max(o.Jobs, minDownloads)),
		limits: defaultLimits, remote: o.Remote, warn: o.Warn,
	}, nil
}

// Progress is told how far a phase ("download", "unpack", "pack") is, in bytes. Calls do not overlap.
type Progress = func(phase string, done, total int64)

// A Root is the root file system that a kernel's modules are built on. Nothing removes its layers until Close.
type Root struct {
	store  *Store
	lock   kernels.Lock
	specs  []layerSpec
	digest v1.Hash
	hold   *os.File
	once   sync.Once
	saved  chan struct{} // closed when what was unpacked is known to be on the disk
}

// Root gives the root of a lock. If the cache has it not, it is pulled from the remote, or else assembled. The caller closes it.
// progress may be nil.
//
// Errors about a package are of type *PackageError. When ctx ends, what is left is finished and partial downloads, for the next
// call, and the root's record, which List passes over and GC removes.
func (s *Store) Root(ctx context.Context, lock kernels.Lock, progress Progress) (*Root, error) {
	return s.root(ctx, lock, func(ctx context.Context, specs, missing []layerSpec) error {
		return s.provide(ctx, lock, specs, missing, progress)
	})
}

// root opens the root of a lock, whose missing layers are made by provide.
func (s *Store) root(ctx context.Context, lock kernels.Lock, provide func(ctx context.Context, specs, missing []layerSpec) error) (*Root, error) {
	if err := check(lock); err != nil {
		return nil, fmt.Errorf("root of %q: %w", lock.Kernel, err)
	}
	specs, err := specsOf(lock)
	if err != nil {
		return nil, fmt.Errorf("root of %q: make glue: %w", lock.Kernel, err)
	}
	r := &Root{store: s, lock: lock, specs: specs, saved: make(chan struct{})}
	hold, err := s.register(ctx, lock, r.specs)
	if err != nil {
		return nil, fmt.Errorf("root of %q: %w", lock.Kernel, err)
	}
	r.hold = hold
	durable.Sweep(s.path("tmp")) // of processes that were killed; it can wait
	made, err := s.ensure(ctx, r.specs, provide)
	if err == nil {
		r.digest, err = s.digestOf(specs)
	}
	if err != nil {
		hold.Close()
		return nil, fmt.Errorf("root of %q: %w", lock.Kernel, located(s.dir, err))
	}
	go func() {
		defer close(r.saved)
		s.settle(made)
	}()
	return r, nil
}

// Layers are the folders of the unpacked layers, lowest first: toolchain, headers, glue. They must not be written to.
func (r *Root) Layers() []string {
	var dirs []string
	for _, l := range r.specs {
		dirs = append(dirs, filepath.Join(r.store.layerDir(l.key), "fs"))
	}
	return dirs
}

// Digest is a hash of everything in the root. It is a function of the lock, and doesn't depend on how layers are packed.
func (r *Root) Digest() v1.Hash { return r.digest }

// digestOf gives the Digest of layers that are there.
func (s *Store) digestOf(specs []layerSpec) (v1.Hash, error) {
	recs := make([]record, len(specs))
	for i, l := range specs {
		var err error
		if recs[i], err = readRecord(s.layerDir(l.key)); err != nil {
			return v1.Hash{}, err
		}
	}
	return digestOfTrees(recs), nil
}

func digestOfTrees(recs []record) v1.Hash {
	sum := sha256.New()
	fmt.Fprintln(sum, "root 1")
	for _, r := range recs {
		fmt.Fprintln(sum, r.Kind, r.Tree)
	}
	return hashOf(sum)
}

// Close lets go of the root's layers. Calling it twice is harmless.
func (r *Root) Close() error {
	var err error
	r.once.Do(func() {
		select {
		case <-r.saved:
		case <-time.After(2 * time.Second): // no harm: layers that were not saved are verified after a restart of the machine
		}
		err = r.hold.Close()
	})
	return err
}

var releaseForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+~_-]*$`)

// check refuses locks with names that can't be part of a path or a script.
func check(lock kernels.Lock) error {
	k := lock.Kernel
	for _, s := range []string{k.Distro, k.Suite, k.Arch, k.Release, lock.Compiler} {
		if len(s) > 201 || !releaseForm.MatchString(s) {
			return fmt.Errorf("lock has the unusable name %q", s)
		}
	}
	if len(lock.Toolchain)+len(lock.Headers) == 0 {
		return errors.New("lock names no packages")
	}
	for _, p := range append(lock.Toolchain[:len(lock.Toolchain):len(lock.Toolchain)], lock.Headers...) {
		if _, err := v1.NewHash(p.Digest.String()); err != nil || p.Size <= 0 {
			return fmt.Errorf("lock has no usable digest and size for package %q", p.Name)
		}
	}
	return nil
}

type layerSpec struct {
	kind string // "toolchain", "headers" or "glue"
	key  string // of everything that the layer is made from, hexadecimal
	pkgs []kernels.Package
	tar  []byte // in place of packages
}

func specsOf(lock kernels.Lock) ([]layerSpec, error) {
	key := func(kind, of string) string {
		sum := sha256.Sum256([]byte("layer " + Version + " " + kind + " " + lock.Kernel.Distro + " " + of))
		return hex.EncodeToString(sum[:])
	}
	glue, err := glueTar(lock)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(glue)
	return []layerSpec{
		{kind: "toolchain", key: key("toolchain", lock.ToolchainDigest().String()), pkgs: lock.Toolchain},
		{kind: "headers", key: key("headers", kernels.Lock{Toolchain: lock.Headers}.ToolchainDigest().String()), pkgs: lock.Headers},
		{kind: "glue", key: key("glue", hex.EncodeToString(sum[:])), tar: glue},
	}, nil
}

// rootRecord is roots/<lock>.json.
type rootRecord struct {
	Lock    kernels.Lock `json:"lock"`
	Layers  []string     `json:"layers"`
	Created time.Time    `json:"created"`
}

// record is layers/<key>/record.json.
type record struct {
	Kind    string    `json:"kind"`
	Tree    string    `json:"tree"` // hash of the index
	Entries int64     `json:"entries"`
	Size    int64     `json:"size"` // bytes of file contents
	Boot    string    `json:"boot"` // the start of the machine during which it was written
	Created time.Time `json:"created"`
	From    string    `json:"from,omitempty"` // the repository that it was pulled from
}

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.dir}, elem...)...)
}
func (s *Store) layerDir(key string) string { return s.path("layers", key) }

// register makes the root's record, which keeps its layers from being removed from now on, and takes the shared lock that
// keeps the record.
func (s *Store) register(ctx context.Context, lock kernels.Lock, specs []layerSpec) (*os.File, error) {
	store, err := durable.Lock(ctx, s.path("locks", "store"), true)
	if err != nil {
		return nil, err
	}
	defer store.Close()
	name := lock.Digest().Hex
	hold, err := durable.Lock(ctx, s.path("roots", name+".lock"), true)
	if err != nil {
		return nil, err
	}
	file := s.path("roots", name+".json")
	now := time.Now()
	if os.Chtimes(file, now, now) == nil {
		if rec, err := readRoot(file); err == nil && rec.Lock.Digest().Hex == name && sameKeys(rec.Layers, specs) {
			return hold, nil
		}
	}
	rec := rootRecord{Lock: lock, Created: now.UTC()}
	for _, l := range specs {
		rec.Layers = append(rec.Layers, l.key)
	}
	err = durable.WriteFile(s.path("tmp"), file, 0o644, func(w io.Writer) error { return json.NewEncoder(w).Encode(rec) })
	if err != nil {
		hold.Close()
		return nil, err
	}
	return hold, nil
}

func readRoot(file string) (rec rootRecord, err error) {
	b, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(b, &rec)
	}
	return rec, err
}

func sameKeys(keys []string, specs []layerSpec) bool {
	if len(keys) != len(specs) {
		return false
	}
	for i := range keys {
		if keys[i] != specs[i].key {
			return false
		}
	}
	return true
}

// ensure makes the layers that are missing and returns their keys. A layer is made under a lock of its own. Toolchains are
// locked before headers and those before glue, so that no two processes wait for each other.
func (s *Store) ensure(ctx context.Context, specs []layerSpec,
	provide func(ctx context.Context, specs, missing []layerSpec) error) (made []string, err error) {
	var missing []layerSpec
	var locks []*os.File
	defer func() {
		for _, f := range locks {
			f.Close()
		}
	}()
	for _, l := range specs {
		if _, ok := s.trusted(l.key); ok {
			continue
		}
		f, err := durable.Lock(ctx, s.path("locks", "layer-"+l.key), false)
		if err != nil {
			return nil, err
		}
		if _, ok := s.trusted(l.key); ok || s.recover(ctx, l.key) {
			f.Close()
			continue
		}
		locks = append(locks, f)
		missing = append(missing, l)
	}
	if len(missing) == 0 {
		return nil, nil
	}
	if err := provide(ctx, specs, missing); err != nil {
		return nil, err
	}
	for _, l := range missing {
		made = append(made, l.key)
	}
	return made, nil
}

// trusted tells whether a layer is there and known to be whole: it was put in its place during this start of the machine, or
// is marked as being on the disk. A layer's files are not fsynced one by one, which takes longer than unpacking them.
func (s *Store) trusted(key string) (rec record, ok bool) {
	rec, err := readRecord(s.layerDir(key))
	if err != nil {
		return rec, false
	}
	if s.boot != "" && rec.Boot == s.boot {
		return rec, true
	}
	_, err = os.Lstat(filepath.Join(s.layerDir(key), "synced"))
	return rec, err == nil
}

// recover verifies a layer that is there but not trusted. One that is not whole is removed.
func (s *Store) recover(ctx context.Context, key string) bool {
	dir := s.layerDir(key)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return false
	}
	if err := s.verifyLayer(ctx, key); err == nil {
		s.settle([]string{key})
		return true
	} else if ctx.Err() != nil {
		return false
	}
	s.drop(dir)
	return false
}

// drop removes a folder in two steps, so that no one sees half of it.
func (s *Store) drop(dir string) error {
	t, err := durable.NewTemp(s.path("tmp"))
	if err != nil {
		return err
	}
	defer t.Close()
	if err := os.Rename(dir, filepath.Join(t.Dir, "dropped")); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// settle has the system write everything to the disk, then marks layers as being there.
func (s *Store) settle(keys []string) {
	if len(keys) == 0 {
		return
	}
	d, err := os.Open(s.path("layers"))
	if err != nil {
		return
	}
	defer d.Close()
	if unix.Syncfs(int(d.Fd())) != nil {
		return
	}
	for _, k := range keys {
		if f, err := os.Create(filepath.Join(s.layerDir(k), "synced")); err == nil {
			f.Close()
		}
	}
}

// meter adds up what concurrent work reports.
type meter struct {
	mu          sync.Mutex
	report      Progress
	done, total map[string]int64
}

func newMeter(report Progress) *meter {
	return &meter{report: report, done: map[string]int64{}, total: map[string]int64{}}
}

func (m *meter) expect(phase string, n int64) { m.update(phase, 0, n) }
func (m *meter) add(phase string, n int64)    { m.update(phase, n, 0) }

func (m *meter) update(phase string, done, total int64) {
	if m.report == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.done[phase] += done
	m.total[phase] += total
	m.report(phase, m.done[phase], m.total[phase])
}

// located says which folder is full: what wrote to it knows files by their names in a package.
func located(dir string, err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return &fs.PathError{Op: "no room in", Path: dir, Err: err}
	}
	return err
}
