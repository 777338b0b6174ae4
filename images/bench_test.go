package images_test

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/images"
	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/deb"
)

// BenchmarkRoot assembles the roots of two kernels of bookworm from packages that are there, beside what dpkg-deb -x takes for the
// packages of the first, one after the other. Run it alone, with -benchtime 1x or more: peak-MB is the process's.
func BenchmarkRoot(b *testing.B) {
	cache := os.Getenv("IMAGES_TEST_CACHE") // keeps the packages between runs
	if cache == "" {
		cache = b.TempDir()
	}
	ctx := context.Background()
	p, err := deb.New("debian", deb.Options{CacheDir: filepath.Join(cache, "deb")})
	if err != nil {
		b.Fatal(err)
	}
	open := func(dir string) *images.Store {
		s, err := images.Open(images.Options{Dir: dir, Payload: func(_ string, r io.Reader) (io.ReadCloser, error) { return p.Payload(r) }})
		if err != nil {
			b.Fatal(err)
		}
		return s
	}
	root := func(s *images.Store, l kernels.Lock) *images.Root {
		r, err := s.Root(ctx, l, nil)
		if err != nil {
			b.Fatal(err)
		}
		return r
	}
	list, err := p.Kernels(ctx, "bookworm", "amd64")
	if err != nil {
		b.Skip(err)
	}
	var locks []kernels.Lock
	for _, k := range list {
		if strings.HasPrefix(k.Release, "6.1.") && strings.Count(k.Release, "-") == 2 && len(locks) < 2 {
			l, err := p.Lock(ctx, k.Kernel, kernels.Extra{})
			if err != nil {
				b.Fatal(err)
			}
			locks = append(locks, l)
			root(open(cache), l).Close() // downloads
		}
	}
	if len(locks) < 2 {
		b.Skip("the mirror has no two 6.1 kernels")
	}
	packages := filepath.Join(cache, "packages", "sha256")
	fresh := func(b *testing.B) string {
		dir := b.TempDir()
		to := filepath.Join(dir, "packages", "sha256")
		if err := os.MkdirAll(to, 0o755); err != nil {
			b.Fatal(err)
		}
		names, err := os.ReadDir(packages)
		if err != nil {
			b.Fatal(err)
		}
		for _, n := range names {
			if err := os.Symlink(filepath.Join(packages, n.Name()), filepath.Join(to, n.Name())); err != nil {
				b.Fatal(err)
			}
		}
		return dir
	}
	// Each times fn, for every round after prepare; the disk has nothing to do when fn starts.
	each := func(name string, prepare func(dir string) (fn func())) {
		b.Run(name, func(b *testing.B) {
			var busy float64
			for b.Loop() {
				b.StopTimer()
				dir := fresh(b)
				fn := prepare(dir)
				unix.Sync()
				before := processorSeconds(b)
				b.StartTimer()
				fn()
				b.StopTimer()
				busy += processorSeconds(b) - before
				if err := durable.RemoveAll(dir); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(busy/float64(b.N), "cpu-s/op")
			var ru unix.Rusage
			if unix.Getrusage(unix.RUSAGE_SELF, &ru) == nil {
				b.ReportMetric(float64(ru.Maxrss)/1024, "peak-MB")
			}
		})
	}
	each("first", func(dir string) func() {
		s := open(dir)
		return func() { root(s, locks[0]) }
	})
	each("dpkg-deb", func(dir string) func() {
		return func() {
			for _, pkg := range slices.Concat(locks[0].Toolchain, locks[0].Headers) {
				if out, err := exec.Command("dpkg-deb", "-x", filepath.Join(packages, pkg.Digest.Hex), dir).CombinedOutput(); err != nil {
					b.Fatalf("%v: %s", err, out)
				}
			}
		}
	})
	each("second", func(dir string) func() {
		s := open(dir)
		root(s, locks[0]).Close()
		return func() { root(s, locks[1]) }
	})
	each("image", func(dir string) func() {
		r := root(open(dir), locks[0])
		return func() {
			if _, err := r.Image(ctx); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("warm", func(b *testing.B) {
		s := open(cache)
		for b.Loop() {
			root(s, locks[0]).Close()
		}
	})
}

// processorSeconds is what this process and those that it started have used of the processors. Unlike the time of a clock it
// says something on a busy machine.
func processorSeconds(b *testing.B) float64 {
	var sum float64
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var ru unix.Rusage
		if err := unix.Getrusage(who, &ru); err != nil {
			b.Fatal(err)
		}
		sum += float64(ru.Utime.Nano()+ru.Stime.Nano()) / 1e9
	}
	return sum
}
