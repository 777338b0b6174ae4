package host

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/kmod"
)

// compressions of modules, as kmod names them, and how files end that have them. What is further down counts first: dkms's order.
var compressions = []struct{ name, suffix string }{{"", ".ko"}, {"gzip", ".ko.gz"}, {"xz", ".ko.xz"}, {"zstd", ".ko.zst"}}

// cutModule gives the name of the module that a file is, as the kernel has it, and its place among compressions.
func cutModule(file string) (name string, compression int, ok bool) {
	if i := strings.LastIndex(file, ".ko"); i > 0 {
		for c := range compressions {
			if compressions[c].suffix == file[i:] {
				return strings.ReplaceAll(file[:i], "-", "_"), c, true
			}
		}
	}
	return "", 0, false
}

// moduleName gives the name of the module that a file is, or nothing if it is none.
func moduleName(file string) (name string, ok bool) {
	name, _, ok = cutModule(file)
	return name, ok
}

// tree is what is in a kernel's folder.
type tree struct {
	named       map[string][]string // paths of the modules that were asked for by name, sorted
	own         []string            // some of the kernel's own modules
	compression int                 // of the kernel's own, in compressions
}

// ownEnough is how many of a kernel's own modules are remembered, of which one is looked at. The others are there in case that
// somebody has put a strange one in between.
const ownEnough = 20

// readTree looks through a kernel's folder, for modules of some names.
func readTree(lib *os.Root, names ...string) (tree, error) {
	t := tree{named: map[string][]string{}}
	dir := lib.Name() + "/"
	err := filepath.WalkDir(lib.Name(), func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, compression, ok := cutModule(d.Name())
		switch {
		case d.IsDir() && d.Name() == aside:
			return fs.SkipDir
		case d.IsDir() || !ok:
			return nil
		}
		path := strings.TrimPrefix(file, dir)
		if slices.Contains(names, name) {
			t.named[name] = append(t.named[name], path)
		}
		if inTree(path) && d.Type().IsRegular() {
			t.compression = max(t.compression, compression)
			if len(t.own) < ownEnough {
				t.own = append(t.own, path)
			}
		}
		return nil
	})
	return t, err
}

// inTree tells whether a path below the kernel's folder is where its own modules are.
func inTree(path string) bool { return strings.HasPrefix(path, "kernel/") }

func readModule(lib *os.Root, name string) (*kmod.Module, error) {
	f, err := lib.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	m, err := kmod.Read(f, info.Size())
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(lib.Name(), name), err)
	}
	return m, nil
}

// native gives one of the kernel's own modules, or nil where it has none.
func (t tree) native(lib *os.Root) *kmod.Module {
	for _, path := range t.own {
		if m, err := readModule(lib, path); err == nil && m.Get("intree") != "" {
			return m
		}
	}
	return nil
}

// fits checks that the kernel loads a module: it must be as the kernel's own ones are. Release strings alone don't tell kernels
// apart: Ubuntu gives one to two kernels whose struct module differs.
func fits(m, native *kmod.Module, name string, k artifact.Kernel) error {
	unfit := func(what, got, want string) error {
		return fmt.Errorf("%w: %s has the %s %q, and the modules of the kernel %s on this root have %q; "+
			"build or pull the module for the kernel that is here", ErrUnfit, name, what, got, k.Release, want)
	}
	arch, err := kmod.ArchOf(k.Arch)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnfit, err)
	}
	if got := (kmod.Arch{Machine: m.Machine, Class: m.Class, Data: m.Data}); got != arch {
		return unfit("architecture", got.String(), arch.String())
	}
	if native == nil { // all that the kernel has is built in
		if release, _, _ := strings.Cut(m.Vermagic(), " "); release != k.Release {
			return fmt.Errorf("%w: %s is for the kernel %q, not %q", ErrUnfit, name, release, k.Release)
		}
		return nil
	}
	if want := (kmod.Arch{Machine: native.Machine, Class: native.Class, Data: native.Data}); arch != want {
		return unfit("architecture", arch.String(), want.String())
	}
	if got, want := strings.TrimRight(m.Vermagic(), " "), strings.TrimRight(native.Vermagic(), " "); got != want {
		return unfit("vermagic", got, want)
	}
	if got, want := layout(m), layout(native); got != want {
		return unfit("version of module_layout", got, want)
	}
	return nil
}

// layout is the version of struct module that a module is built for.
func layout(m *kmod.Module) string {
	i := slices.IndexFunc(m.Versions, func(v kmod.Version) bool { return v.Name == "module_layout" })
	if i < 0 {
		return "none"
	}
	return fmt.Sprintf("%#08x", m.Versions[i].CRC)
}

// fitsSymvers compares the symbols that an artifact was built against with those of the headers, where they are installed.
func (r *Root) fitsSymvers(m artifact.Meta) error {
	have, path, err := r.Symvers(m.Kernel.Release)
	if err != nil || path == "" || m.Symvers == (v1.Hash{}) || have == m.Symvers {
		return err
	}
	return fmt.Errorf("%w: %s/%s was built for a Module.symvers with the digest %s, and %s has %s; build the module again, or pull it for the kernel that is here",
		ErrUnfit, m.Module, m.Version, m.Symvers, path, have)
}

// Symvers is the digest of the Module.symvers in the headers of a release, and its path. Where they aren't installed both are empty.
func (r *Root) Symvers(release string) (digest v1.Hash, path string, err error) {
	if err := CheckName("kernel", release); err != nil {
		return v1.Hash{}, "", err
	}
	for _, dir := range []string{
		"lib/modules/" + release + "/build", // a link, on a host whose headers are complete
		"usr/src/linux-headers-" + release,  // Debian, Ubuntu
		"usr/src/kernels/" + release,        // Fedora and its kin
	} {
		path, err := r.Path(filepath.Join(dir, "Module.symvers"))
		if err != nil {
			return v1.Hash{}, "", err
		}
		f, _, err := openRegular(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return v1.Hash{}, "", err
		}
		defer f.Close()
		sum := sha256.New()
		if _, err := io.Copy(sum, f); err != nil {
			return v1.Hash{}, "", err
		}
		return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}, path, nil
	}
	return v1.Hash{}, "", nil
}
