package images

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sync/errgroup"

	"github.com/godkms-hermetic/godkms-hermetic/internal/decompress"
	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/kmod"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// Limits for what is read of a kernel's packages. Of Debian's 6.12 the largest module has 12 MB, and what boots of arm64's 40 MB.
const (
	maxModule = 128 << 20 // bytes of a module, unpacked
	maxBoot   = 512 << 20 // bytes of the file that boots
	maxList   = 16 << 20  // bytes of modules.builtin and modules.builtin.modinfo
)

// maxPackers is how many modules are compressed at a time: each takes memory, and the package is what they wait for.
const maxPackers = 4

// makeKernel makes a kernel's folder and puts it in its place. The caller holds its lock.
func (s *Store) makeKernel(ctx context.Context, key string, img kernels.Image, m *meter) error {
	for try := 1; ; try++ {
		err := s.makeKernelOnce(ctx, key, img, m)
		if errors.Is(err, errDamaged) && try < 3 {
			continue
		}
		return err
	}
}

func (s *Store) makeKernelOnce(ctx context.Context, key string, img kernels.Image, m *meter) error {
	for _, p := range img.Packages {
		m.expect("unpack", p.Size)
		if !s.have(p) {
			m.expect("download", p.Size)
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, p := range img.Packages {
		if s.have(p) {
			continue
		}
		g.Go(func() error {
			if err := acquire(gctx, s.downloads); err != nil {
				return err
			}
			defer func() { <-s.downloads }()
			return fetchErr(p, s.fetch(gctx, p, func(n int64) { m.add("download", n) }))
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := acquire(ctx, s.decoders); err != nil {
		return err
	}
	defer func() { <-s.decoders }()
	temp, err := durable.NewTemp(s.path("tmp"))
	if err != nil {
		return err
	}
	defer temp.Close()
	w := &kernelWriter{dir: filepath.Join(temp.Dir, "kernel"), image: img, lists: map[string][]byte{}, modules: map[string]*packedModule{}, sum: sha256.New()}
	if err := os.Mkdir(w.dir, 0o755); err != nil {
		return err
	}
	if err := w.pack(ctx, s, m); err != nil {
		return err
	}
	return placeFolder(w.dir, s.kernelDir(key))
}

// A kernelWriter makes a kernel's folder.
type kernelWriter struct {
	dir   string
	image kernels.Image

	boot    string            // the file that w.dir has as boot; empty: none yet
	lists   map[string][]byte // what modules.builtin and the like have
	modules map[string]*packedModule
	size    int64     // of the file modules
	sum     hash.Hash // of it
}

// packedModule is a module on its way from a package to the file of modules.
type packedModule struct {
	path   string
	raw    []byte // as the package has it
	done   chan struct{}
	frame  []byte // compressed
	mod    indexed
	alias  []string
	failed error
}

func (w *kernelWriter) pack(ctx context.Context, s *Store, m *meter) error {
	blob, err := os.Create(filepath.Join(w.dir, "modules"))
	if err != nil {
		return err
	}
	defer blob.Close()
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(s.packers()), zstd.WithEncoderCRC(false))
	if err != nil {
		return err
	}
	defer enc.Close()
	g, ctx := errgroup.WithContext(ctx)
	work := make(chan *packedModule)               // to those that compress
	order := make(chan *packedModule, s.packers()) // the same, to the one that writes
	for range s.packers() {
		g.Go(func() error {
			for p := range work {
				p.failed = p.compress(enc)
				p.raw = nil
				close(p.done)
			}
			return nil
		})
	}
	g.Go(func() error {
		defer close(work)
		defer close(order)
		for _, p := range w.image.Packages {
			err := w.unpack(ctx, s, p, m, func(mod *packedModule) error {
				for _, to := range []chan *packedModule{order, work} {
					select {
					case to <- mod:
					case <-ctx.Done():
						return context.Cause(ctx)
					}
				}
				return nil
			})
			if err != nil {
				return packageErr(p, err)
			}
		}
		return nil
	})
	g.Go(func() error {
		for p := range order {
			select {
			case <-p.done:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
			if p.failed != nil {
				return fmt.Errorf("module %q: %w", p.path, p.failed)
			}
			p.mod.offset, p.mod.length = w.size, int64(len(p.frame))
			if _, err := blob.Write(p.frame); err != nil {
				return err
			}
			w.sum.Write(p.frame)
			w.size += p.mod.length
			p.frame = nil
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if err := blob.Sync(); err != nil {
		return err
	}
	return w.finish()
}

func (s *Store) packers() int { return min(s.jobs, maxPackers) }

func fetchErr(p kernels.Package, err error) error {
	if err == nil {
		return nil
	}
	return packageErr(p, err)
}

// unpack takes what is of use out of a package, checking its hash on the way. A file that turns out to be damaged is removed.
func (w *kernelWriter) unpack(ctx context.Context, s *Store, p kernels.Package, m *meter, module func(*packedModule) error) error {
	f, err := s.openPackage(p, func(n int64) { m.add("unpack", n) })
	if errors.Is(err, fs.ErrNotExist) {
		return &PackageError{p, errDamaged, "run again to download it anew"}
	}
	if err != nil {
		return err
	}
	defer f.Close()
	err = func() error {
		payload, err := s.payload(w.image.Kernel.Distro, f)
		if err != nil {
			return err
		}
		err = w.files(ctx, payload, module)
		if cerr := payload.Close(); err == nil {
			err = cerr
		}
		return err
	}()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if good, verr := f.verify(); verr != nil {
		return verr
	} else if !good {
		s.dropPackage(f)
		return &PackageError{p, errDamaged, "run again to download it anew"}
	}
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	return nil
}

// bootNames are the files that boot a kernel, the best first. What is below lib may be below usr/lib as well.
func bootNames(release string) []string {
	return []string{"boot/vmlinuz-" + release, "lib/modules/" + release + "/vmlinuz", "boot/Image-" + release, "lib/modules/" + release + "/Image",
		"boot/vmlinux-" + release}
}

// files reads the files of a package.
func (w *kernelWriter) files(ctx context.Context, payload io.Reader, module func(*packedModule) error) error {
	boots := bootNames(w.image.Kernel.Release)
	own := "lib/modules/" + w.image.Kernel.Release + "/"
	entries := tar.NewReader(payload)
	for n := int64(0); ; n++ {
		h, err := entries.Next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err == nil && n == defaultLimits.entries {
			err = fmt.Errorf("it has more than %d entries", n)
		}
		if err != nil {
			return err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		name := strings.TrimPrefix(strings.TrimPrefix(path.Clean("/"+h.Name), "/"), "usr/")
		rel, inside := strings.CutPrefix(name, own)
		ko, isModule := moduleFile(rel)
		switch {
		case slices.Contains(boots, name):
			if w.boot != "" && slices.Index(boots, w.boot) <= slices.Index(boots, name) {
				continue
			}
			if err := w.putBoot(name, entries, h.Size); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		case inside && (rel == "modules.builtin" || rel == "modules.builtin.modinfo"):
			if _, ok := w.lists[rel]; ok {
				continue
			}
			if w.lists[rel], err = readAll(entries, h.Size, maxList); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		case inside && isModule:
			if len(w.modules) == maxModules {
				return fmt.Errorf("it has more than %d modules", maxModules)
			}
			if old, ok := w.modules[ko]; ok && preference(old.path) <= preference(rel) {
				continue
			}
			raw, err := readAll(entries, h.Size, maxModule)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			p := &packedModule{path: rel, raw: raw, done: make(chan struct{})}
			w.modules[ko] = p
			if err := module(p); err != nil {
				return err
			}
		}
	}
}

// moduleFile gives a module's name by that of its file.
func moduleFile(rel string) (name string, ok bool) {
	base := path.Base(rel)
	for _, end := range []string{".gz", ".xz", ".zst"} {
		base = strings.TrimSuffix(base, end)
	}
	base, ok = strings.CutSuffix(base, ".ko")
	if !ok {
		return "", false
	}
	return normal(base)
}

// preference orders files of one module, the one that depmod takes first: see "search" in depmod.d(5).
func preference(rel string) int {
	top, _, _ := strings.Cut(rel, "/")
	switch top {
	case "updates":
		return 0
	case "extra":
		return 1
	}
	return 2
}

func readAll(r io.Reader, size, limit int64) ([]byte, error) {
	if size > limit {
		return nil, fmt.Errorf("it has %d bytes, more than %d", size, limit)
	}
	b := make([]byte, size)
	_, err := io.ReadFull(r, b)
	return b, err
}

// compress makes of a module what is kept of it.
func (p *packedModule) compress(enc *zstd.Encoder) error {
	b := p.raw
	if kmod.Compression(b) != "" {
		d, err := decompress.NewReader(bytes.NewReader(b))
		if err != nil {
			return err
		}
		defer d.Close()
		if b, err = io.ReadAll(io.LimitReader(d, maxModule+1)); err != nil {
			return err
		}
		if len(b) > maxModule {
			return fmt.Errorf("it has more than %d bytes", maxModule)
		}
	}
	info, err := kmod.ReadInfo(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		return err
	}
	sum := sha256.Sum256(b)
	p.mod.size, p.mod.sum = int64(len(b)), hex.EncodeToString(sum[:])
	if p.mod.needs, err = needsOf(info); err != nil {
		return err
	}
	p.mod.before, p.alias = beforeOf(info), aliasesOf(info)
	p.frame = enc.EncodeAll(b, nil)
	return nil
}

// putBoot writes the file that boots.
func (w *kernelWriter) putBoot(name string, r io.Reader, size int64) error {
	if size > maxBoot {
		return fmt.Errorf("it has %d bytes, more than %d", size, maxBoot)
	}
	f, err := os.Create(filepath.Join(w.dir, "boot"))
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := io.Copy(f, r); err != nil {
		return err
	}
	w.boot = name
	return f.Close()
}

// finish writes what the files have in common, when they are all there.
func (w *kernelWriter) finish() error {
	if w.boot == "" {
		return fmt.Errorf("the packages have none of %s: %w", strings.Join(bootNames(w.image.Kernel.Release), ", "), kernels.ErrNotFound)
	}
	boot, size, err := bootable(filepath.Join(w.dir, "boot"), w.image.Kernel.Arch)
	if err != nil {
		return fmt.Errorf("%s: %w", w.boot, err)
	}
	x := &moduleIndex{modules: map[string]indexed{}, aliases: map[string]string{}, builtin: map[string]bool{}}
	aliases := 0
	for _, name := range slices.Sorted(maps.Keys(w.modules)) {
		p := w.modules[name]
		x.modules[name] = p.mod
		if aliases += len(p.alias); aliases > maxModuleNames {
			return fmt.Errorf("the modules have more than %d aliases", maxModuleNames)
		}
		for _, a := range p.alias {
			x.addAlias(a, name)
		}
	}
	builtin := slices.Concat(readBuiltin(w.lists["modules.builtin"]), readBuiltinInfo(w.lists["modules.builtin.modinfo"]))
	if len(builtin) > maxModuleNames {
		return fmt.Errorf("more than %d modules are built in", maxModuleNames)
	}
	for _, name := range builtin {
		x.builtin[name] = true
	}
	text := x.encode()
	sum := sha256.Sum256(text)
	rec := kernelRecord{Boot: boot, Index: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}, Modules: hashOf(w.sum),
		Blob: w.size, Size: size + w.size + int64(len(text))}
	for name, write := range map[string]func(io.Writer) error{
		"index":       func(to io.Writer) error { _, err := to.Write(text); return err },
		"record.json": func(to io.Writer) error { return json.NewEncoder(to).Encode(rec) },
	} {
		if err := durable.WriteFile(w.dir, filepath.Join(w.dir, name), 0o644, write); err != nil {
			return err
		}
	}
	return nil
}

// bootable checks that a file is what qemu's -kernel takes, or makes it that, and gives its digest and size.
func bootable(name, arch string) (v1.Hash, int64, error) {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return v1.Hash{}, 0, err
	}
	defer f.Close()
	head := make([]byte, 0x210)
	n, err := io.ReadFull(f, head)
	if err != nil && err != io.ErrUnexpectedEOF {
		return v1.Hash{}, 0, err
	}
	head = head[:n]
	switch arch {
	case "amd64", "i386": // Documentation/arch/x86/boot.rst: the magic number of the header
		if len(head) < 0x206 || string(head[0x202:0x206]) != "HdrS" {
			return v1.Hash{}, 0, fmt.Errorf("it has no boot header of x86: %w", errNotAKernel)
		}
	case "arm64":
		if err := unzboot(f, head); err != nil {
			return v1.Hash{}, 0, err
		}
	}
	if err := f.Sync(); err != nil {
		return v1.Hash{}, 0, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return v1.Hash{}, 0, err
	}
	sum := sha256.New()
	size, err := io.Copy(sum, f)
	return hashOf(sum), size, err
}

// unzboot puts the kernel in the place of an EFI program that has it compressed (drivers/firmware/efi/libstub/zboot-header.S), which qemu
// takes from version 8.1 on only. Other forms stay as they are.
func unzboot(f *os.File, head []byte) error {
	isImage := func(b []byte) bool { return len(b) >= 64 && string(b[56:60]) == "ARM\x64" } // Documentation/arch/arm64/booting.rst
	switch {
	case isImage(head), kmod.Compression(head) == "gzip":
		return nil
	case len(head) < 64 || string(head[:2]) != "MZ" || string(head[4:8]) != "zimg":
		return fmt.Errorf("it is no kernel of arm64, nor a compressed one: %w", errNotAKernel)
	}
	at, size := int64(binary.LittleEndian.Uint32(head[8:])), int64(binary.LittleEndian.Uint32(head[12:]))
	d, err := decompress.NewReader(io.NewSectionReader(f, at, size))
	if err != nil {
		return err
	}
	defer d.Close()
	b, err := io.ReadAll(io.LimitReader(d, maxBoot+1))
	if err != nil {
		return fmt.Errorf("decompress the kernel in it: %w", err)
	}
	if len(b) > maxBoot || !isImage(b) {
		return fmt.Errorf("what is compressed in it is no kernel of arm64: %w", errNotAKernel)
	}
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = f.WriteAt(b, 0)
	return err
}
