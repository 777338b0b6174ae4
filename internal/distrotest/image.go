package distrotest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/dkmstest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// Booted are the files of a kernel itself: what boots, and a few modules with all that they need.
type Booted struct {
	Boot    File
	Modules map[string]File // by name: "videodev"
}

// booted are the modules that Booted has, and those that they need: of the second a soft dependency is an alias.
var booted = []string{"videodev", "libcrc32c", "dm_bufio"}

var loadedKernel struct {
	sync.Once
	*Booted
	err error
}

// Itself gives bookworm's newest kernel, or ends the test.
func Itself(t testing.TB) *Booted {
	t.Helper()
	if kernels.HostArch() != "amd64" {
		need.Skip(t, "the packages are amd64's")
	}
	loadedKernel.Do(func() { loadedKernel.Booted, loadedKernel.err = loadKernel(context.Background()) })
	if loadedKernel.err != nil {
		need.Skip(t, "no kernel of %s to make repositories of: %v", suite, loadedKernel.err)
	}
	return loadedKernel.Booted
}

func loadKernel(ctx context.Context) (*Booted, error) {
	d, err := dkmstest.Open(dkmstest.Cache())
	if err != nil {
		return nil, err
	}
	list, err := d.Kernels(ctx, suite)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(list, func(c kernels.Candidate) bool { return line.MatchString(c.Release) })
	if i < 0 {
		return nil, fmt.Errorf("it has no kernel %s", line)
	}
	k, err := d.Kernel(ctx, list[i].Kernel)
	if err != nil {
		return nil, err
	}
	defer k.Close()
	names, err := k.Resolve(booted)
	if err != nil {
		return nil, err
	}
	dir, err := keep(ctx, "kernel", []string{k.Digest().String(), strings.Join(names, " ")}, func(dir string) error {
		boot, err := os.ReadFile(k.Path())
		if err != nil {
			return err
		}
		put := func(name string, b []byte) error {
			at := filepath.Join(dir, name)
			return errors.Join(os.WriteFile(at, b, 0o644), os.Chtimes(at, epoch, epoch))
		}
		if err := put("boot", boot); err != nil {
			return err
		}
		for _, name := range names {
			b, err := k.Read(name)
			if err != nil {
				return err
			}
			if err := put(name+".ko", b); err != nil {
				return err
			}
			// As the kernel's own scripts/Makefile.modinst compresses them.
			for end, program := range map[string][]string{"gz": {"gzip", "-n"}, "xz": {"xz", "--check=crc32", "--lzma2=dict=2MiB"}, "zst": {"zstd", "-T0", "-q"}} {
				packed, err := run("", string(b), program[0], append(program[1:], "-c")...)
				if err != nil {
					return err
				}
				if err := put(name+".ko."+end, packed); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	file := func(name string) File {
		return File{From: filepath.Join(dir, name), Sum: filepath.Base(dir) + "/" + name}
	}
	out := &Booted{Boot: file("boot"), Modules: map[string]File{}}
	for _, name := range names {
		out.Modules[name] = file(name + ".ko")
	}
	return out, nil
}

// Below gives modules by their paths in a distribution's folder of them, compressed as "gz", "xz", "zst" or not at all: "".
func (b *Booted) Below(dir, compression string, names ...string) Files {
	out := Files{}
	for _, name := range names {
		f, at := b.Modules[name], filepath.Join(dir, "kernel/"+name+".ko")
		if compression != "" {
			f.From, f.Sum, at = f.From+"."+compression, f.Sum+"."+compression, at+"."+compression
		}
		out[at] = f
	}
	return out
}
