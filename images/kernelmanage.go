package images

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// KernelInfo describes a kernel in the cache.
type KernelInfo struct {
	Kernel  kernels.Kernel `json:"kernel"`
	Image   v1.Hash        `json:"image"` // digest of the image
	Boot    v1.Hash        `json:"boot"`  // digest of the file that boots
	Size    int64          `json:"size"`  // bytes
	Created time.Time      `json:"created"`
	Used    time.Time      `json:"used"`
}

func (i KernelInfo) selectedBy(sel string) bool { return selects(sel, i.Kernel, i.Image, i.Boot) }

// Kernels lists the kernels that are complete, most recently used first.
func (s *Store) Kernels() ([]KernelInfo, error) {
	all, _, err := s.cachedKernels()
	if err != nil {
		return nil, err
	}
	var list []KernelInfo
	for _, k := range all {
		if k.size > 0 {
			list = append(list, k.info())
		}
	}
	return list, nil
}

// cachedKernel is a kernel's entry as it lies in the cache.
type cachedKernel struct {
	kernelEntry
	key  string
	used time.Time
	boot v1.Hash
	size int64 // bytes; 0 if it isn't complete
}

func (k cachedKernel) info() KernelInfo {
	return KernelInfo{k.Image.Kernel, k.Image.Digest(), k.boot, k.size, k.Created, k.used.UTC()}
}

// cachedKernels reads all entries, most recently used first, and names the files that are none.
func (s *Store) cachedKernels() (list []cachedKernel, bad []string, err error) {
	entries, err := os.ReadDir(s.path("kernels"))
	if err != nil {
		return nil, nil, err
	}
	for _, e := range entries {
		key, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		file := s.path("kernels", e.Name())
		st, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		entry, err := readKernelEntry(file)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil || kernelKey(entry.Image) != key {
			bad = append(bad, file)
			continue
		}
		k := cachedKernel{kernelEntry: entry, key: key, used: st.ModTime()}
		if rec, err := readKernelRecord(s.kernelDir(key)); err == nil {
			k.boot, k.size = rec.Boot, rec.Size
		}
		list = append(list, k)
	}
	slices.SortStableFunc(list, func(a, b cachedKernel) int { return b.used.Compare(a.used) })
	return list, bad, nil
}

// kernelInUse tells whether a kernel is open, or being made. The store's lock is held.
func (s *Store) kernelInUse(k cachedKernel) bool { return isLocked(s.kernelDir(k.key) + ".lock") }

func (s *Store) forgetKernel(k cachedKernel) error {
	if err := os.Remove(s.kernelDir(k.key) + ".json"); err != nil {
		return err
	}
	os.Remove(s.kernelDir(k.key) + ".lock")
	return nil
}

// verifyKernel hashes a kernel's files.
func (s *Store) verifyKernel(ctx context.Context, key string) error {
	dir := s.kernelDir(key)
	rec, err := readKernelRecord(dir)
	if err != nil {
		return err
	}
	for name, want := range map[string]v1.Hash{"boot": rec.Boot, "index": rec.Index, "modules": rec.Modules} {
		if err := verifyFile(ctx, filepath.Join(dir, name), want); err != nil {
			return err
		}
	}
	return nil
}

// dropKernel removes a kernel that isn't open.
func (s *Store) dropKernel(ctx context.Context, key string) error {
	return s.exclusively(ctx, func(temp string) error {
		if isLocked(s.kernelDir(key) + ".lock") {
			return ErrInUse
		}
		return os.Rename(s.kernelDir(key), filepath.Join(temp, key))
	})
}
