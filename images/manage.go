package images

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// ErrInUse is wrapped by the error of removing a root or a kernel that is open, here or in another process.
var ErrInUse = errors.New("in use")

// Info describes a root in the cache.
type Info struct {
	Kernel   kernels.Kernel `json:"kernel"`
	Compiler string         `json:"compiler"`
	Lock     v1.Hash        `json:"lock"`   // digest of the lock
	Image    v1.Hash        `json:"image"`  // the zero value until the image has been packed
	Size     int64          `json:"size"`   // bytes of its layers, unpacked and packed
	Shared   int64          `json:"shared"` // of those, bytes of layers that other roots have too
	From     string         `json:"from"`   // the repository that layers of it were pulled from; empty if none was
	Created  time.Time      `json:"created"`
	Used     time.Time      `json:"used"`
}

// List lists the roots that are complete, most recently used first.
func (s *Store) List(ctx context.Context) ([]Info, error) {
	roots, _, err := s.roots()
	if err != nil {
		return nil, fmt.Errorf("list header images: %w", err)
	}
	var list []Info
	for _, r := range roots {
		if !s.complete(r) {
			continue
		}
		info, err := s.info(r, roots)
		if err != nil {
			return nil, fmt.Errorf("list header images: %w", err)
		}
		list = append(list, info)
	}
	return list, nil
}

// cachedRoot is a root's record as it lies in the cache.
type cachedRoot struct {
	rootRecord
	name string // hexadecimal digest of the lock
	used time.Time
}

// roots reads all records, most recently used first, and names the files that are none.
func (s *Store) roots() (list []cachedRoot, bad []string, err error) {
	entries, err := os.ReadDir(s.path("roots"))
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		file := s.path("roots", e.Name())
		st, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		rec, err := readRoot(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil || rec.Lock.Digest().Hex != name {
			bad = append(bad, file)
			continue
		}
		list = append(list, cachedRoot{rec, name, st.ModTime()})
	}
	slices.SortStableFunc(list, func(a, b cachedRoot) int { return b.used.Compare(a.used) })
	return list, bad, nil
}

func (s *Store) complete(r cachedRoot) bool {
	for _, key := range r.Layers {
		if _, err := os.Lstat(filepath.Join(s.layerDir(key), "record.json")); err != nil {
			return false
		}
	}
	return true
}

func (s *Store) info(r cachedRoot, all []cachedRoot) (Info, error) {
	info := Info{Kernel: r.Lock.Kernel, Compiler: r.Lock.Compiler, Lock: r.Lock.Digest(), Created: r.Created, Used: r.used.UTC()}
	for _, key := range r.Layers {
		n := s.layerSize(key)
		info.Size += n
		if rec, err := readRecord(s.layerDir(key)); err == nil && rec.From != "" {
			info.From = rec.From
		}
		if slices.ContainsFunc(all, func(o cachedRoot) bool { return o.name != r.name && slices.Contains(o.Layers, key) }) {
			info.Shared += n
		}
	}
	specs, err := specsOf(r.Lock)
	if err != nil {
		return info, err
	}
	if !sameKeys(r.Layers, specs) {
		return info, nil
	}
	digest, err := s.digestOf(specs)
	if errors.Is(err, fs.ErrNotExist) { // not complete
		return info, nil
	}
	if err != nil {
		return info, err
	}
	missing := false
	img, err := (&Root{store: s, lock: r.Lock, specs: specs, digest: digest}).build(func(key string) (packed, error) {
		p, err := readPacked(s.packedDir(key))
		missing = missing || err != nil
		return p, err
	})
	if missing { // or another process is removing it
		return info, nil
	}
	if err != nil {
		return info, err
	}
	info.Image, err = img.Digest()
	return info, err
}

// layerSize counts a layer's unpacked and packed bytes.
func (s *Store) layerSize(key string) (n int64) {
	if rec, err := readRecord(s.layerDir(key)); err == nil {
		n += rec.Size
	}
	if p, err := readPacked(s.packedDir(key)); err == nil {
		n += p.Size
	}
	return n
}

// Remove removes roots, the layers that no other root needs, and kernels; packages stay until GC. A selector is a kernel
// ("debian/bookworm:6.1.0-56-amd64"), a release, a shell glob over either, or the digest of a lock, an image or what boots. If one
// selects nothing, or what is in use, nothing is removed.
func (s *Store) Remove(ctx context.Context, selectors ...string) ([]Info, []KernelInfo, error) {
	var removed []Info
	var kernelsRemoved []KernelInfo
	err := s.exclusively(ctx, func(temp string) error {
		roots, _, err := s.roots()
		if err != nil {
			return err
		}
		infos := make([]Info, len(roots))
		chosen := make([]bool, len(roots))
		for i, r := range roots {
			if infos[i], err = s.info(r, roots); err != nil {
				return err
			}
		}
		allKernels, _, err := s.cachedKernels()
		if err != nil {
			return err
		}
		chosenKernels := make([]bool, len(allKernels))
		for _, sel := range selectors {
			any := false
			for i, k := range allKernels {
				if k.info().selectedBy(sel) {
					chosenKernels[i], any = true, true
				}
			}
			for i, info := range infos {
				if info.selectedBy(sel) {
					chosen[i], any = true, true
				}
			}
			if !any {
				return fmt.Errorf("no header image or kernel %q in the cache: %w", sel, kernels.ErrNotFound)
			}
		}
		var keep, drop []cachedRoot
		for i, r := range roots {
			if !chosen[i] {
				keep = append(keep, r)
				continue
			}
			if s.inUse(r) {
				return fmt.Errorf("header image of %q is %w by a build: wait for it to end", r.Lock.Kernel, ErrInUse)
			}
			drop = append(drop, r)
			removed = append(removed, infos[i])
		}
		var keepKernels, dropKernels []cachedKernel
		for i, k := range allKernels {
			if !chosenKernels[i] {
				keepKernels = append(keepKernels, k)
				continue
			}
			if s.kernelInUse(k) {
				return fmt.Errorf("kernel image of %q is %w by a test: wait for it to end", k.Image.Kernel, ErrInUse)
			}
			dropKernels = append(dropKernels, k)
			kernelsRemoved = append(kernelsRemoved, k.info())
		}
		for _, r := range drop {
			if err := s.forget(r); err != nil {
				return err
			}
		}
		for _, k := range dropKernels {
			if err := s.forgetKernel(k); err != nil {
				return err
			}
		}
		return s.sweep(temp, keep, keepKernels, false)
	})
	if err != nil {
		return nil, nil, fmt.Errorf("remove images: %w", err)
	}
	return removed, kernelsRemoved, nil
}

func (i Info) selectedBy(sel string) bool { return selects(sel, i.Kernel, i.Lock, i.Image) }

// selects tells whether a selector is of a kernel, or one of some digests.
func selects(sel string, k kernels.Kernel, digests ...v1.Hash) bool {
	for _, name := range []string{k.String(), k.Release} {
		if ok, err := path.Match(sel, name); sel == name || (ok && err == nil) {
			return true
		}
	}
	for _, h := range digests {
		if h.Hex != "" && (sel == h.String() || sel == h.Hex) {
			return true
		}
	}
	return false
}

// exclusively runs fn while no root or kernel can be opened. What fn moves to the folder that it is given is removed afterwards, while
// others can go on.
func (s *Store) exclusively(ctx context.Context, fn func(temp string) error) error {
	temp, err := durable.NewTemp(s.path("tmp"))
	if err != nil {
		return err
	}
	defer temp.Close()
	store, err := durable.Lock(ctx, s.path("locks", "store"), false)
	if err != nil {
		return err
	}
	defer store.Close()
	return fn(temp.Dir)
}

// inUse tells whether a root is open. The store's lock is held.
func (s *Store) inUse(r cachedRoot) bool {
	return isLocked(s.path("roots", r.name+".lock"))
}

func isLocked(name string) bool {
	f, err := tryLock(name)
	if err != nil {
		return true
	}
	f.Close()
	return false
}

func tryLock(name string) (*os.File, error) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel() // Lock tries once before it looks
	return durable.Lock(ctx, name, false)
}

func (s *Store) forget(r cachedRoot) error {
	if err := os.Remove(s.path("roots", r.name+".json")); err != nil {
		return err
	}
	os.Remove(s.path("roots", r.name+".lock"))
	return nil
}

// sweep moves what none of the roots and kernels needs to temp. The store's lock is held.
func (s *Store) sweep(temp string, roots []cachedRoot, booted []cachedKernel, packages bool) error {
	needed := map[string]bool{}
	for _, r := range roots {
		for _, key := range r.Layers {
			needed[key] = true
		}
		for _, p := range slices.Concat(r.Lock.Toolchain, r.Lock.Headers) {
			needed[p.Digest.Hex] = true
		}
	}
	for _, k := range booted {
		needed[k.key] = true
		if k.size == 0 { // being made
			for _, p := range k.Image.Packages {
				needed[p.Digest.Hex] = true
			}
		}
	}
	folders := map[string]func(string) string{
		"layers":  func(name string) string { return name },
		"kernels": func(name string) string { return strings.TrimSuffix(strings.TrimSuffix(name, ".lock"), ".json") },
		"packed":  func(name string) string { return strings.TrimSuffix(name, "-"+packing) },
	}
	if packages {
		folders["packages/sha256"] = func(name string) string { return name }
		folders["packages/sha512"] = folders["packages/sha256"]
		folders["packages/partial"] = func(name string) string { return name }
	}
	for folder, key := range folders {
		entries, err := os.ReadDir(s.path(folder))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if needed[key(e.Name())] {
				continue
			}
			to := filepath.Join(temp, strings.ReplaceAll(folder, "/", "-")+"-"+e.Name())
			if err := os.Rename(s.path(folder, e.Name()), to); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	locks, err := os.ReadDir(s.path("locks"))
	if err != nil {
		return err
	}
	for _, e := range locks {
		_, key, ok := strings.Cut(e.Name(), "-")
		if !ok || needed[key] {
			continue
		}
		if f, err := tryLock(s.path("locks", e.Name())); err == nil {
			os.Remove(f.Name())
			f.Close()
		}
	}
	return nil
}

// GCOptions say what GC removes.
type GCOptions struct {
	MaxSize   int64         // bytes that may stay, over packages and layers; 0: no bound
	OlderThan time.Duration // roots not used for that long go; 0: none for its age
}

// GC removes roots and kernels that are too old, then the least recently used until the rest is small enough, and all packages, partial
// downloads and layers that no remaining root needs; a kernel that is there needs none. What is in use stays. It returns how many bytes
// it removed.
func (s *Store) GC(ctx context.Context, o GCOptions) (int64, error) {
	var before, after int64
	err := s.exclusively(ctx, func(temp string) error {
		roots, bad, err := s.roots()
		if err != nil {
			return err
		}
		booted, badKernels, err := s.cachedKernels()
		if err != nil {
			return err
		}
		for _, file := range slices.Concat(bad, badKernels) {
			if err := os.Remove(file); err != nil {
				return err
			}
		}
		before = s.usage()
		var keep []cachedRoot
		var keepKernels []cachedKernel
		used := func(rs []cachedRoot) (n int64) {
			seen := map[string]bool{}
			for _, r := range rs {
				for _, key := range r.Layers {
					if !seen[key] {
						seen[key], n = true, n+s.layerSize(key)
					}
				}
				for _, p := range slices.Concat(r.Lock.Toolchain, r.Lock.Headers) {
					if !seen[p.Digest.Hex] && s.have(p) {
						seen[p.Digest.Hex], n = true, n+p.Size
					}
				}
			}
			for _, k := range keepKernels {
				n += k.size
			}
			return n
		}
		stays := func(last time.Time, complete, inUse bool, size int64) bool {
			old := o.OlderThan > 0 && time.Since(last) > o.OlderThan
			big := o.MaxSize > 0 && size > o.MaxSize
			return !old && !big && complete || inUse
		}
		for len(roots) > 0 || len(booted) > 0 { // most recently used first
			if len(booted) == 0 || len(roots) > 0 && roots[0].used.After(booted[0].used) {
				r := roots[0]
				roots = roots[1:]
				if stays(r.used, s.complete(r), s.inUse(r), used(append(keep[:len(keep):len(keep)], r))) {
					keep = append(keep, r)
				} else if err := s.forget(r); err != nil {
					return err
				}
				continue
			}
			k := booted[0]
			booted = booted[1:]
			if stays(k.used, k.size > 0, s.kernelInUse(k), used(keep)+k.size) {
				keepKernels = append(keepKernels, k)
			} else if err := s.forgetKernel(k); err != nil {
				return err
			}
		}
		if err := s.sweep(temp, keep, keepKernels, true); err != nil {
			return err
		}
		after = s.usage()
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("clean images: %w", err)
	}
	return before - after, nil
}

// usage counts the bytes of packages, layers and kernels.
func (s *Store) usage() (n int64) {
	for _, d := range []string{"packages/sha256", "packages/sha512", "packages/partial"} {
		entries, _ := os.ReadDir(s.path(d))
		for _, e := range entries {
			if st, err := e.Info(); err == nil {
				n += st.Size()
			}
		}
	}
	entries, _ := os.ReadDir(s.path("layers"))
	for _, e := range entries {
		if rec, err := readRecord(s.layerDir(e.Name())); err == nil {
			n += rec.Size
		}
	}
	entries, _ = os.ReadDir(s.path("packed"))
	for _, e := range entries {
		if p, err := readPacked(s.path("packed", e.Name())); err == nil {
			n += p.Size
		}
	}
	entries, _ = os.ReadDir(s.path("kernels"))
	for _, e := range entries {
		if rec, err := readKernelRecord(s.path("kernels", e.Name())); err == nil {
			n += rec.Size
		}
	}
	return n
}

// Damage is something in the cache that is not what it was when it was put there.
type Damage struct {
	Path    string // below the cache folder
	Err     error
	Removed bool // false when a build is using it, or it could not be removed
}

// Verify hashes every package, every layer, unpacked and packed, and every kernel, and removes what is damaged: it is made again when it is
// next needed. It returns how many things it checked.
func (s *Store) Verify(ctx context.Context) (checked int, damaged []Damage, err error) {
	fail := func(err error) (int, []Damage, error) {
		return checked, damaged, fmt.Errorf("verify header images: %w", err)
	}
	found := func(elem []string, cause error, remove func() error) {
		damaged = append(damaged, Damage{filepath.Join(elem...), cause, remove() == nil})
	}
	for _, kind := range []string{"packages/sha256", "packages/sha512", "packed", "layers", "roots", "kernels"} {
		entries, err := os.ReadDir(s.path(kind))
		if err != nil {
			return fail(err)
		}
		for _, e := range entries {
			if ctx.Err() != nil {
				return fail(context.Cause(ctx))
			}
			elem := []string{kind, e.Name()}
			file := s.path(elem...)
			var cause error
			remove := func() error { return s.drop(file) }
			switch kind {
			case "packages/sha256", "packages/sha512":
				cause = verifyFile(ctx, file, v1.Hash{Algorithm: strings.TrimPrefix(kind, "packages/"), Hex: e.Name()})
			case "packed":
				var p packed
				if p, cause = readPacked(file); cause == nil {
					cause = verifyFile(ctx, filepath.Join(file, "layer.tar.gz"), p.Digest)
				}
			case "layers":
				cause = s.verifyLayer(ctx, e.Name())
				remove = func() error { return s.dropLayer(ctx, e.Name()) }
			case "kernels":
				name, isEntry := strings.CutSuffix(e.Name(), ".json")
				switch {
				case strings.HasSuffix(e.Name(), ".lock"):
					continue
				case isEntry:
					var k kernelEntry
					if k, cause = readKernelEntry(file); cause == nil && kernelKey(k.Image) != name {
						cause = errors.New("not the image that its name says")
					}
				default:
					cause = s.verifyKernel(ctx, e.Name())
					remove = func() error { return s.dropKernel(ctx, e.Name()) }
				}
			case "roots":
				if !strings.HasSuffix(e.Name(), ".json") {
					continue
				}
				var rec rootRecord
				if rec, cause = readRoot(file); cause == nil && rec.Lock.Digest().Hex+".json" != e.Name() {
					cause = errors.New("not the lock that its name says")
				}
			}
			if ctx.Err() != nil {
				return fail(context.Cause(ctx))
			}
			if errors.Is(cause, fs.ErrNotExist) {
				if _, err := os.Lstat(file); err != nil {
					continue // removed meanwhile by another process
				}
			}
			checked++
			if cause != nil {
				found(elem, cause, remove)
			}
		}
	}
	return checked, damaged, nil
}

// dropLayer removes a layer that no open root has.
func (s *Store) dropLayer(ctx context.Context, key string) error {
	return s.exclusively(ctx, func(temp string) error {
		roots, _, err := s.roots()
		if err != nil {
			return err
		}
		for _, r := range roots {
			if slices.Contains(r.Layers, key) && s.inUse(r) {
				return ErrInUse
			}
		}
		return os.Rename(s.layerDir(key), filepath.Join(temp, key))
	})
}

func verifyFile(ctx context.Context, name string, want v1.Hash) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	sum, err := v1.Hasher(want.Algorithm)
	if err != nil {
		return err
	}
	if _, err := io.Copy(sum, readerFunc(func(b []byte) (int, error) {
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		return f.Read(b)
	})); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != want.Hex {
		return fmt.Errorf("its hash is %s; want %s", got, want.Hex)
	}
	return nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }
