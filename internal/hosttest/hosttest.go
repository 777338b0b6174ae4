// Package hosttest has a Debian host for a test: a root with apt and dpkg of its own, in which programs run in a chroot.
//
// What runs there has its own mounts, processes and /dev, and ends with the test however that ends; the network is this machine's.
package hosttest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/dkmstest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// Suite is the release of Debian that a Root is of.
const Suite = "bookworm"

// packages are what a Root has beside apt and the essential ones, Arch's pacman among them. It has no compiler, make or headers, and no kernel.
const packages = "initramfs-tools,kmod,linux-base,pacman-package-manager,systemd"

// CacheDir is where a Root has the test cache's indexes and packages, and the header images that are made of them.
const CacheDir = "/var/cache/godkms-hermetic"

// Root is a Debian host. A test may look at its files and change them by their path on this machine.
type Root struct {
	Dir string // on this machine

	t testing.TB
}

// New gives a fresh Root, with program as its /usr/bin/godkms-hermetic, a static file. The first one on a machine takes half a
// minute, others a second. Only root can have one.
func New(t testing.TB, program string) *Root {
	t.Helper()
	if os.Geteuid() != 0 {
		need.Skip(t, "only root makes a root of Debian's")
	}
	need.Program(t, "mmdebstrap")
	base.Do(func() { base.tar, base.err = bootstrap(context.Background()) })
	if base.err != nil {
		t.Fatal(base.err)
	}
	dir, err := os.MkdirTemp("", "host-") // short, for sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	r := &Root{Dir: dir, t: t}
	if out, err := exec.Command("tar", "-xf", base.tar, "--numeric-owner", "-C", dir).CombinedOutput(); err != nil {
		t.Fatalf("unpack the root: %v\n%s", err, out)
	}
	for _, name := range []string{"index", "images"} { // to be mounted
		if err := errors.Join(os.MkdirAll(filepath.Join(dkmstest.Cache(), name), 0o755), os.MkdirAll(filepath.Join(dir, CacheDir, name), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	r.copy(program, "/usr/bin/godkms-hermetic", 0o755)
	return r
}

// enter is run by a shell in namespaces of its own: it mounts what a root has below $1, and becomes what follows, with that as its root.
const enter = `set -e
root=$1 cache=$2 at=$3
shift 3
cd "$root"
mount -t proc proc proc
mount --rbind /sys sys
mount -t tmpfs -o mode=755 dev dev
for d in null zero full random urandom tty; do : >dev/$d; mount --bind /dev/$d dev/$d; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
ln -s /run/log dev/log
for d in index images; do mount --bind "$cache/$d" "./$at/$d"; done
exec chroot . "$@"`

// Command is a program of the root, with its arguments, to be run in it. Its environment is root's, and has CacheDir as the cache folder.
func (r *Root) Command(args ...string) *exec.Cmd {
	cmd := exec.CommandContext(r.t.Context(), "unshare", append([]string{"--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--ipc", "--uts", "--",
		"sh", "-c", enter, "enter", r.Dir, dkmstest.Cache(), CacheDir}, args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "XDG_CACHE_HOME=" + filepath.Dir(CacheDir), "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"}
	return cmd
}

// Run runs a program in the root and gives what it printed, to standard output and error as they came, and its exit code.
func (r *Root) Run(args ...string) (output string, code int) {
	r.t.Helper()
	var out bytes.Buffer
	cmd := r.Command(args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		r.t.Fatalf("%q: %v", args, err)
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// Must is Run of what is to succeed.
func (r *Root) Must(args ...string) string {
	r.t.Helper()
	out, code := r.Run(args...)
	if code != 0 {
		r.t.Fatalf("%q: exit code %d\n%s", args, code, out)
	}
	return out
}

// Kernel finds the newest kernel of the root's suite that has a prefix and a flavour: Kernel(t, "6.1.", "cloud-amd64").
func Kernel(t testing.TB, line, flavour string) kernels.Kernel {
	t.Helper()
	d, err := dkmstest.Open(dkmstest.Cache())
	if err != nil {
		t.Fatal(err)
	}
	list, err := d.Kernels(t.Context(), Suite)
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range list {
		rest, ok := strings.CutSuffix(k.Release, "-"+flavour)
		if ok && strings.HasPrefix(k.Release, line) && strings.Count(rest, "-") <= 1 { // 6.1.0-56, or 6.12.117+deb12
			return k.Kernel
		}
	}
	t.Fatalf("%s has no kernel %s*-%s", Suite, line, flavour)
	return kernels.Kernel{}
}

// KernelPackage puts the package of a kernel into the root and gives its path there, for apt-get install.
func (r *Root) KernelPackage(k kernels.Kernel) string {
	r.t.Helper()
	d, err := dkmstest.Open(dkmstest.Cache())
	if err != nil {
		r.t.Fatal(err)
	}
	name := "linux-image-" + k.Release
	found, err := d.Packages(r.t.Context(), k.Suite, "main", func(n string) bool { return n == name })
	if err != nil || len(found) == 0 {
		r.t.Fatalf("the package %s: %v", name, err)
	}
	file, err := d.Fetch(r.t.Context(), found[0])
	if err != nil {
		r.t.Fatal(err)
	}
	path := "/srv/" + name + ".deb"
	r.copy(file, path, 0o644)
	return path
}

// copy puts a file of this machine into the root.
func (r *Root) copy(from, to string, mode os.FileMode) {
	r.t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(filepath.Join(r.Dir, to), b, mode)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

var base struct {
	sync.Once
	tar string
	err error
}

// bootstrap gives the tar of a root, which stays in the test cache.
func bootstrap(ctx context.Context) (string, error) {
	cache := dkmstest.Cache()
	d, err := dkmstest.Open(cache)
	if err != nil {
		return "", err
	}
	found, err := d.Packages(ctx, Suite, "main", func(n string) bool { return n == "base-files" })
	if err != nil || len(found) == 0 {
		return "", fmt.Errorf("the packages of %s: %w", Suite, errors.Join(err, ctx.Err()))
	}
	mirror, _, ok := strings.Cut(found[0].URL, "/pool/")
	if !ok {
		return "", fmt.Errorf("%s is in no mirror's pool", found[0].URL)
	}
	args := []string{"--quiet", "--mode=root", "--variant=apt", "--include=" + packages,
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/man/*",
		// A small initramfs takes a second, the usual one half a minute.
		`--customize-hook=printf 'MODULES=list\nCOMPRESS=gzip\n' >"$1/etc/initramfs-tools/conf.d/small"`,
		Suite}
	sum := sha256.Sum256([]byte(strings.Join(args, "\n")))
	path := filepath.Join(cache, fmt.Sprintf("host-%x.tar", sum[:8]))
	lock, err := durable.Lock(ctx, path+".lock", false)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	partial := filepath.Join(cache, "host-partial.tar")
	if out, err := exec.CommandContext(ctx, "mmdebstrap", append(args, partial, mirror)...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("make a root of %s: %w\n%s", Suite, err, out)
	}
	return path, os.Rename(partial, path)
}
