// Package dkmstest has the real dkms, for tests and commands that compare this tool with it.
//
// It is dkms 3.2 as Debian packages it, found through the signed index and verified like any package of a header image. Nothing
// of it is installed on this machine.
package dkmstest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/images"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/deb"
)

// suite has the dkms that the rules of this tool are from.
const suite = "trixie"

// Cache is the folder that keeps what tests download, so that a developer's second run downloads nothing.
func Cache() string {
	user, err := os.UserCacheDir()
	if err != nil {
		user = os.TempDir()
	}
	return filepath.Join(user, "godkms-hermetic-test")
}

var shared struct {
	sync.Once
	script string
	err    error
}

// Script is the path of dkms, which is a program for bash, or ends the test. The file is not to be written to.
func Script(t testing.TB) string {
	t.Helper()
	shared.Do(func() {
		d, err := Open(Cache())
		if err == nil {
			shared.script, err = d.Script(context.Background())
		}
		shared.err = err
	})
	if shared.err != nil {
		need.Skip(t, "no dkms to compare with: %v", shared.err)
	}
	return shared.script
}

// DKMS is the real dkms. It is safe for concurrent use.
type DKMS struct {
	index *deb.Provider
	store *images.Store
	dir   string // the store's
}

// Open opens dkms in a folder that is, or may become, the tool's --cache-dir: indexes, packages and header images are shared.
func Open(cache string) (*DKMS, error) {
	index, err := deb.New("debian", deb.Options{CacheDir: filepath.Join(cache, "index")})
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cache, "images")
	store, err := images.Open(images.Options{
		Dir:     dir,
		Payload: func(_ string, pkg io.Reader) (io.ReadCloser, error) { return index.Payload(pkg) },
	})
	if err != nil {
		return nil, err
	}
	return &DKMS{index, store, dir}, nil
}

// Script is the path of dkms, in an unpacked package of its own.
func (d *DKMS) Script(ctx context.Context) (string, error) {
	root, err := d.unpacked(ctx)
	if err != nil {
		return "", fmt.Errorf("dkms: %w", err)
	}
	defer root.Close()
	script := filepath.Join(packageLayer(root), "usr/sbin/dkms")
	_, err = os.Stat(script)
	return script, err
}

// unpacked is a root of dkms's package alone.
func (d *DKMS) unpacked(ctx context.Context) (*images.Root, error) {
	list, err := d.index.Kernels(ctx, suite, kernels.HostArch())
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(list, func(c kernels.Candidate) bool { return c.Flavour == kernels.HostArch() })
	if i < 0 {
		return nil, errors.New(suite + " has no kernel") // without one there is no lock
	}
	lock, err := d.index.Lock(ctx, list[i].Kernel, kernels.Extra{Packages: []string{"dkms"}})
	if err != nil {
		return nil, err
	}
	return d.only(ctx, lock, "dkms")
}

// only unpacks one package of a lock.
func (d *DKMS) only(ctx context.Context, lock kernels.Lock, name string) (*images.Root, error) {
	i := slices.IndexFunc(lock.Headers, func(p kernels.Package) bool { return p.Name == name })
	if i < 0 {
		return nil, fmt.Errorf("%q is not among the packages of %s", name, lock.Kernel)
	}
	lock.Toolchain, lock.Headers = nil, lock.Headers[i:i+1]
	return d.store.Root(ctx, lock, nil)
}

// packageLayer is the layer of a root made by only that has the package.
func packageLayer(root *images.Root) string { return root.Layers()[1] }

// Kernels lists the kernels of a suite, newest first.
func (d *DKMS) Kernels(ctx context.Context, suite string) ([]kernels.Candidate, error) {
	return d.index.Kernels(ctx, suite, kernels.HostArch())
}

// Packages finds packages of a suite's component by name.
func (d *DKMS) Packages(ctx context.Context, suite, component string, wanted func(name string) bool) ([]kernels.Package, error) {
	index := d.index
	if component != "main" {
		var err error
		index, err = deb.New("debian", deb.Options{CacheDir: filepath.Join(filepath.Dir(d.dir), "index-"+component), Component: component})
		if err != nil {
			return nil, err
		}
	}
	return index.Packages(ctx, suite, kernels.HostArch(), wanted)
}

// Image gives the folder with a kernel's own modules, as its package has them: kernel, modules.order and so on. It is not to be
// written to.
func (d *DKMS) Image(ctx context.Context, k kernels.Kernel) (string, error) {
	img, err := d.image(ctx, k)
	if err != nil {
		return "", err
	}
	root, err := d.store.Root(ctx, kernels.Lock{Kernel: k, Compiler: "none", Headers: img.Packages}, nil)
	if err != nil {
		return "", err
	}
	defer root.Close()
	dir := filepath.Join(packageLayer(root), "usr/lib/modules", k.Release)
	_, err = os.Stat(filepath.Join(dir, "kernel"))
	return dir, err
}

// Kernel gives a kernel itself. The caller closes it.
func (d *DKMS) Kernel(ctx context.Context, k kernels.Kernel) (*images.Kernel, error) {
	img, err := d.image(ctx, k)
	if err != nil {
		return nil, err
	}
	return d.store.Kernel(ctx, img, nil)
}

func (d *DKMS) image(ctx context.Context, k kernels.Kernel) (kernels.Image, error) {
	lock, err := d.index.Lock(ctx, k, kernels.Extra{})
	if err != nil {
		return kernels.Image{}, err
	}
	return d.index.Image(ctx, lock)
}

// Fetch downloads a package and gives its file, which is not to be written to.
func (d *DKMS) Fetch(ctx context.Context, p kernels.Package) (string, error) {
	any := kernels.Kernel{Distro: "debian", Suite: suite, Arch: kernels.HostArch(), Release: "none"}
	root, err := d.store.Root(ctx, kernels.Lock{Kernel: any, Compiler: "none", Headers: []kernels.Package{p}}, nil)
	if err != nil {
		return "", err
	}
	defer root.Close()
	return filepath.Join(d.dir, "packages/sha256", p.Digest.Hex), nil
}
