package dkmstest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/images"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// Root is what dkms builds on: the header image of a kernel, the same files that this tool builds on, and over it dkms with the
// packages that it depends on.
type Root struct {
	kernel kernels.Kernel
	layers []string // lowest first
	held   []*images.Root
}

// Root makes the root of a kernel, with extra packages by name.
func (d *DKMS) Root(ctx context.Context, k kernels.Kernel, extra []string) (_ *Root, err error) {
	r := &Root{kernel: k}
	defer func() {
		if err != nil {
			r.Close()
			err = fmt.Errorf("root for dkms: %w", err)
		}
	}()
	hold := func(root *images.Root, err error) ([]string, error) {
		if err != nil {
			return nil, err
		}
		r.held = append(r.held, root)
		return root.Layers(), nil
	}
	plain, err := d.index.Lock(ctx, k, kernels.Extra{})
	if err != nil {
		return nil, err
	}
	full, err := d.index.Lock(ctx, k, kernels.Extra{Packages: append([]string{"dkms"}, extra...)})
	if err != nil {
		return nil, err
	}
	// The extra packages are the same for many kernels. They get a layer of their own, and the names of compilers that are among them.
	full.Toolchain = nil
	full.Headers = slices.DeleteFunc(full.Headers, func(p kernels.Package) bool {
		return slices.ContainsFunc(slices.Concat(plain.Toolchain, plain.Headers), func(q kernels.Package) bool { return q.Name == p.Name })
	})
	base, err := hold(d.store.Root(ctx, plain, nil))
	if err != nil {
		return nil, err
	}
	more, err := hold(d.store.Root(ctx, full, nil))
	if err != nil {
		return nil, err
	}
	dkms, err := hold(d.unpacked(ctx))
	if err != nil {
		return nil, err
	}
	r.layers = []string{base[0], base[1], more[1], more[2], base[2], dkms[1]}
	return r, nil
}

// Close lets go of the root's files. Calling it twice is harmless.
func (r *Root) Close() {
	for _, h := range r.held {
		h.Close()
	}
}

// File finds a file of the root, by its path without links.
func (r *Root) File(name string) (string, error) {
	for _, l := range slices.Backward(r.layers) {
		file := filepath.Join(l, name)
		if _, err := os.Lstat(file); err == nil {
			return file, nil
		}
	}
	return "", &fs.PathError{Op: "find in the root", Path: name, Err: fs.ErrNotExist}
}

// Job is a module that is registered and built.
type Job struct {
	Tree            string // folder of this machine that is laid over the root; it has the source in usr/src/MODULE-VERSION
	Module, Version string
	First           []string // modules of the tree, as MODULE/VERSION, that are installed before: BUILD_DEPENDS wants them so
}

// Result is what dkms made of it.
type Result struct {
	Code    int               // dkms's exit code, of "add" where that failed
	Modules map[string][]byte // by file name
	Output  string            // what dkms printed
	Log     string            // make.log
	Seconds float64           // of "dkms build"
}

// enter is run by a shell in namespaces of its own: the layers with a writable folder over them, the processes of
// /proc, a few devices, and then
// dkms's root in place of this machine's. What is written is in memory, and gone with the namespace. Root in there has none of
// the privileges to get out.
const enter = `set -e
work=$1 lower=$2 option=$3
shift 3
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$work"
cd "$work"
mkdir up work root
mount -t overlay -o "lowerdir=$lower,upperdir=$work/up,workdir=$work/work$option" overlay root
cd root
mount -t proc -o subset=pid proc proc
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom; do
	: >dev/$node
	mount --bind /dev/$node dev/$node
done
ln -s /proc/self/fd dev/fd
ln -s /proc/self/fd/0 dev/stdin
ln -s /proc/self/fd/1 dev/stdout
ln -s /proc/self/fd/2 dev/stderr
hostname godkms-hermetic
exec chroot . setpriv --bounding-set=-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid -- "$@"`

// build is run by bash in there. Its output is a tar of /result.
const build = `module=$1 version=$2 kernel=$3
shift 3
mkdir -p /result/module
exec 3>&1 </dev/null >/result/output 2>&1
for first; do
	dkms install "$first" -k "$kernel" || { cat /result/output >&3; exit 1; }
done
dkms add -m "$module" -v "$version"
code=$?
start=$EPOCHREALTIME
if [[ $code = 0 ]]; then
	dkms build -m "$module" -v "$version" -k "$kernel"
	code=$?
fi
echo "$code $start $EPOCHREALTIME" >/result/status
tree=/var/lib/dkms/$module/$version
made=$tree/$kernel/$(uname -m)
for log in "$made/log/make.log" "$tree/build/make.log"; do
	if [[ -f $log ]]; then cp "$log" /result/make.log; fi
done
for file in "$made"/module/*; do
	if [[ -f $file ]]; then cp "$file" /result/module/; fi
done
exec tar -C /result -cf - . >&3`

// environment is that of this tool's builds, without what dkms sets: modules depend on it, to the byte.
var environment = []string{
	"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "LC_ALL=C", "TZ=UTC0",
	"PERL_HASH_SEED=0", "PYTHONHASHSEED=0", "SOURCE_DATE_EPOCH=315532800", "KBUILD_BUILD_TIMESTAMP=Tue Jan  1 00:00:00 UTC 1980",
	"KBUILD_BUILD_USER=build", "KBUILD_BUILD_HOST=godkms-hermetic", "KBUILD_BUILD_VERSION=1",
}

// Build has dkms add a module and build it for the root's kernel. The error says why dkms could not be run; what dkms came to is in
// the result. When ctx ends, everything in the root does.
func (r *Root) Build(ctx context.Context, j Job) (Result, error) {
	res, err := r.build(ctx, j)
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return Result{}, fmt.Errorf("run dkms for %s %s on %s: %w", j.Module, j.Version, r.kernel, err)
	}
	return res, nil
}

func (r *Root) build(ctx context.Context, j Job) (Result, error) {
	stdout, err := r.bash(ctx, j.Tree, build, append([]string{j.Module, j.Version, r.kernel.Release}, j.First...)...)
	if err != nil {
		return Result{}, err
	}
	return read(stdout)
}

// bash runs a script in namespaces of its own on the root, with a tree laid over it, and gives what it prints.
func (r *Root) bash(ctx context.Context, tree, script string, args ...string) (*bytes.Buffer, error) {
	work, err := os.MkdirTemp("", "dkmstest-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(work) // a mount point: this machine's is empty
	if tree, err = filepath.Abs(tree); err != nil {
		return nil, err
	}
	lower := []string{tree}
	for _, l := range slices.Backward(r.layers) {
		lower = append(lower, l)
	}
	option, ids := "", []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 1 << 16}}
	if os.Geteuid() != 0 {
		option, ids = ",userxattr", nil
	}
	cmd := exec.CommandContext(ctx, "sh", append([]string{"-c", enter, "sh", work, strings.Join(lower, ":"), option, "bash", "-c", script, "bash"}, args...)...)
	cmd.Env = environment
	attr := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Setsid:     true,
		Pdeathsig:  unix.SIGKILL,
	}
	attr.UidMappings, attr.GidMappings, attr.GidMappingsEnableSetgroups = ids, ids, ids != nil
	if ids == nil {
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	cmd.SysProcAttr = attr
	cmd.WaitDelay = 10 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	runtime.LockOSThread() // Pdeathsig is about the thread
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%w: %s%s", err, &stdout, strings.TrimSpace(stderr.String()))
	}
	return &stdout, nil
}

// read reads what build prints.
func read(r io.Reader) (Result, error) {
	res := Result{Modules: map[string][]byte{}}
	said := false
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return Result{}, err
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			return Result{}, err
		}
		switch name := path.Clean(h.Name); {
		case name == "status":
			var start, end float64
			if _, err := fmt.Sscan(string(b), &res.Code, &start, &end); err != nil {
				return Result{}, fmt.Errorf("status %q: %w", b, err)
			}
			res.Seconds, said = end-start, true
		case name == "output":
			res.Output = string(b)
		case name == "make.log":
			res.Log = string(b)
		case strings.HasSuffix(name, ".ko"):
			res.Modules[path.Base(name)] = b
		}
	}
	if !said {
		return Result{}, errors.New("it has not said how it ended")
	}
	return res, nil
}
