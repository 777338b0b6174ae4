package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// grace is how long a program that is asked to end may take.
const grace = 10 * time.Second

// rows are the comparisons, in the order of the table.
func (b *bench) rows() []row {
	newest := b.releases[0]
	return append([]row{
		{
			name: "one kernel, not cached, sandbox", against: "bare make", warm: true, quick: true,
			prepare: func(ctx context.Context) error { return b.sameModule(ctx, newest) },
			ours: func(ctx context.Context) (sample, error) {
				return b.uncached(ctx, []string{newest}, "--engine", "sandbox")
			},
			other: b.bareMake(newest),
			asked: limit{Ratio: 1.05},
		},
		{
			name: "one kernel, not cached, Docker", against: "bare make", warm: true,
			prepare: func(ctx context.Context) error { return b.warmDocker(ctx, newest) },
			ours: func(ctx context.Context) (sample, error) {
				return b.uncached(ctx, []string{newest}, "--engine", "docker")
			},
			other: b.bareMake(newest),
			asked: limit{More: 0.6},
		},
		{
			name: "six kernels, not cached", against: "dkms, in turn",
			prepare: func(ctx context.Context) error {
				_, err := b.dkms(ctx, b.releases)
				return err
			},
			ours:  func(ctx context.Context) (sample, error) { return b.uncached(ctx, b.releases) },
			other: func(ctx context.Context) (sample, error) { return b.dkms(ctx, b.releases) },
			asked: limit{Ratio: 0.45},
		},
		{
			name: "six kernels, all cached, offline", quick: true,
			prepare: func(ctx context.Context) error {
				_, err := b.uncached(ctx, b.releases)
				return err
			},
			ours:  b.cached,
			asked: limit{Total: 0.05},
		},
		{
			name: "evaluating dkms.conf, sandbox", quick: true,
			prepare: func(context.Context) error { return nil },
			ours:    func(ctx context.Context) (sample, error) { return b.evaluated(ctx, newest, "sandbox") },
			asked:   limit{Total: 0.03},
		},
		{
			name:    "evaluating dkms.conf, Docker",
			prepare: func(ctx context.Context) error { return b.warmDocker(ctx, newest) },
			ours:    func(ctx context.Context) (sample, error) { return b.evaluated(ctx, newest, "docker") },
			asked:   limit{Total: 0.15},
		},
		{
			name: "first header image, packages there", against: "dpkg-deb -x",
			prepare: func(ctx context.Context) error { return nil },
			ours:    func(ctx context.Context) (sample, error) { return b.firstImage(ctx) },
			other:   b.dpkgDeb,
			asked:   limit{Ratio: 1},
		},
		{
			name: "one more kernel's header image", against: "the first",
			prepare: func(ctx context.Context) error {
				_, err := b.firstImage(ctx)
				return err
			},
			ours:  b.secondImage,
			other: func(ctx context.Context) (sample, error) { return b.firstImage(ctx) },
			asked: limit{Ratio: 0.25},
		},
	}, slices.Concat(b.indexRows(), b.parserRows(), b.registryRows(), b.statusRows(), b.signRows(), b.installRows(), b.trialRows())...)
}

// run times the tool, from its start to its end, and follows its memory. The results of wait4 are of no use for the latter: they
// are the largest of the tool and all that it waited for, its sandbox with the compiler included. The peak of the process
// itself is VmHWM, which the kernel keeps; it is read every few milliseconds, since it's gone when the process has ended. What
// the last of them might add in memory is missed.
func (b *bench) run(ctx context.Context, cache string, want int, args ...string) (sample, error) {
	s, _, err := b.text(ctx, cache, want, args...)
	return s, err
}

// text gives what the tool prints, too.
func (b *bench) text(ctx context.Context, cache string, want int, args ...string) (sample, []byte, error) {
	cmd := command(ctx, b.tool, append([]string{"--cache-dir", cache, "--quiet"}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if b.docker != nil {
		cmd.Env = append(os.Environ(), "DOCKER_HOST="+b.docker.host)
	}
	start := time.Now()
	if err := cmd.Start(); err != nil {
		return sample{}, nil, err
	}
	done, peak := make(chan struct{}), make(chan float64)
	go func() { peak <- follow(cmd.Process.Pid, done) }()
	err := cmd.Wait()
	s := sample{Seconds: time.Since(start).Seconds(), Busy: (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()}
	close(done)
	s.PeakMB = <-peak
	if ctx.Err() != nil {
		return s, nil, ctx.Err()
	}
	if code := cmd.ProcessState.ExitCode(); code != want {
		return s, nil, fmt.Errorf("%s %s: %v: %s", filepath.Base(b.tool), strings.Join(args, " "), err, lastLine(stderr.String()))
	}
	return s, stdout.Bytes(), nil
}

// follow gives the most memory that a process had, in 10^6 bytes.
func follow(pid int, done <-chan struct{}) float64 {
	var peak float64
	for {
		text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
		if err != nil {
			return peak
		}
		if _, rest, ok := strings.Cut(string(text), "VmHWM:"); ok {
			var kib float64
			if _, err := fmt.Sscan(rest, &kib); err == nil {
				peak = kib * 1024 / 1e6
			}
		}
		select {
		case <-done:
			return peak
		case <-time.After(4 * time.Millisecond):
		}
	}
}

// build runs the tool as it is used most: for modules in a folder.
func (b *bench) build(ctx context.Context, releases []string, args ...string) (sample, string, error) {
	out := b.folder("out")
	args = append([]string{"build", b.source, "--kernels", list(releases...), "--out", out, "--offline"}, args...)
	s, err := b.run(ctx, b.cache, 0, args...)
	return s, out, err
}

// uncached builds with the header images there, but no result: those are removed first. (--no-cache would compare with the
// cached result, which is other work.)
func (b *bench) uncached(ctx context.Context, releases []string, args ...string) (sample, error) {
	if err := os.RemoveAll(filepath.Join(b.cache, "results")); err != nil {
		return sample{}, err
	}
	s, _, err := b.build(ctx, releases, args...)
	return s, err
}

// cached builds what is built, without the network.
func (b *bench) cached(ctx context.Context) (sample, error) {
	found, err := filepath.Glob(filepath.Join(b.cache, "results", "*", "entries", "*"))
	if err != nil {
		return sample{}, err
	}
	if len(found) < len(b.releases) { // another row has removed the results
		if _, _, err := b.build(ctx, b.releases); err != nil {
			return sample{}, err
		}
	}
	s, _, err := b.build(ctx, b.releases)
	return s, err
}

// evaluated is what evaluating the module's dkms.conf adds to a build: the program itself says how long its bash took.
func (b *bench) evaluated(ctx context.Context, release, engine string) (sample, error) {
	s, text, err := b.text(ctx, b.cache, 0, "conf", b.source, "--kernel", list(release), "--engine", engine, "--offline", "--format", "json")
	if err != nil {
		return s, err
	}
	var result struct{ Kernels []struct{ Seconds float64 } }
	if err := json.Unmarshal(text, &result); err != nil {
		return s, err
	}
	if len(result.Kernels) != 1 || result.Kernels[0].Seconds <= 0 {
		return s, fmt.Errorf("conf says %q", text)
	}
	s.Seconds = result.Kernels[0].Seconds
	return s, nil
}

// timed runs a shell script on a root, in bubblewrap, and times the part of it that follows "ready": it prints that line when all
// is set up, and waits for one on its standard input. Starting bubblewrap is not in the time either. The log is of what it
// printed besides.
func (b *bench) timed(ctx context.Context, root string, env, sandbox []string, script string, args ...string) (sample, string, error) {
	argv := []string{"--unshare-all", "--new-session", "--die-with-parent", "--ro-bind", root, "/", "--proc", "/proc", "--dev", "/dev",
		"--tmpfs", "/tmp", "--tmpfs", "/var/lib/dkms", "--clearenv"}
	for _, v := range env {
		name, value, _ := strings.Cut(v, "=")
		argv = append(argv, "--setenv", name, value)
	}
	argv = append(append(argv, sandbox...), "bash", "-c", script, "bash")
	cmd := command(ctx, "bwrap", append(argv, args...)...)
	cmd.Cancel = func() error { return cmd.Process.Kill() } // what runs in it dies with it
	log, err := os.Create(b.folder("log"))
	if err != nil {
		return sample{}, "", err
	}
	defer os.Remove(log.Name())
	defer log.Close()
	cmd.Stderr = log
	in, err := cmd.StdinPipe()
	if err != nil {
		return sample{}, "", err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return sample{}, "", err
	}
	if err := cmd.Start(); err != nil {
		return sample{}, "", err
	}
	ready := make([]byte, len("ready\n"))
	_, err = io.ReadFull(out, ready)
	start := time.Now()
	if err == nil {
		_, err = io.WriteString(in, "go\n")
	}
	err = errors.Join(cmd.Wait(), err)
	s := sample{Seconds: time.Since(start).Seconds()}
	if ctx.Err() != nil {
		return s, "", ctx.Err()
	}
	text, _ := os.ReadFile(log.Name())
	if err != nil {
		return s, string(text), fmt.Errorf("in bubblewrap: %w: %s", err, lastLine(string(text)))
	}
	return s, string(text), nil
}

const path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// environment is that of the tool's builds (package builder has its reasons), which the module's bytes depend on.
func (b *bench) environment(release string) []string {
	return []string{
		path, "HOME=/tmp", "LC_ALL=C", "TZ=UTC0", "PERL_HASH_SEED=0", "PYTHONHASHSEED=0",
		"SOURCE_DATE_EPOCH=315532800", "KBUILD_BUILD_TIMESTAMP=Tue Jan  1 00:00:00 UTC 1980",
		"KBUILD_BUILD_USER=build", "KBUILD_BUILD_HOST=godkms-hermetic", "KBUILD_BUILD_VERSION=1",
		"kernelver=" + release, "arch=x86_64", "module=" + b.module, "module_version=" + b.moduleVersion,
		"CC=x86_64-linux-gnu-gcc-12", "KERNEL_CC=x86_64-linux-gnu-gcc-12",
	}
}

// bareScript copies the source to memory, as the tool does, and then runs the command that the source's dkms.conf comes to, with as
// many processes as the tool gives it. Nothing but make is timed.
const bareScript = `set -e
mkdir -p "$1"
cp -a /tmp/source "$1/build"
cd "$1/build"
echo ready
read
exec make -j2 KERNELRELEASE="$2" KERNEL_DIR="/lib/modules/$2/build" all >/dev/null`

func (b *bench) bareMake(release string) measure {
	return func(ctx context.Context) (sample, error) {
		s, _, err := b.bare(ctx, release, bareScript)
		return s, err
	}
}

func (b *bench) bare(ctx context.Context, release, script string, sandbox ...string) (sample, string, error) {
	sandbox = append([]string{"--ro-bind", b.source, "/tmp/source"}, sandbox...)
	return b.timed(ctx, b.bareRoot, b.environment(release), sandbox, script, "/var/lib/dkms/"+b.module+"/"+b.moduleVersion, release)
}

// sameModule makes sure that both sides do the same: bare make's module, stripped as dkms does, is the tool's to the byte.
func (b *bench) sameModule(ctx context.Context, release string) error {
	if err := os.RemoveAll(filepath.Join(b.cache, "results")); err != nil {
		return err
	}
	_, out, err := b.build(ctx, []string{release})
	if err != nil {
		return err
	}
	ours, err := os.ReadFile(filepath.Join(out, strings.Replace(suite, "/", "-", 1), release, b.module+".ko"))
	if err != nil {
		return err
	}
	to := b.folder("bare")
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	script := strings.Replace(bareScript, "exec make", "make", 1) + "\nstrip -g -o /tmp/out/module.ko ./*.ko"
	if _, _, err := b.bare(ctx, release, script, "--bind", to, "/tmp/out"); err != nil {
		return err
	}
	bare, err := os.ReadFile(filepath.Join(to, "module.ko"))
	if err != nil {
		return err
	}
	if !bytes.Equal(ours, bare) {
		return fmt.Errorf("the tool's module for %s and that of bare make differ: they are no comparison", release)
	}
	return nil
}

// dkmsScript registers the source, as its package's installation does, and then builds it for each kernel with one call of dkms, as
// the hook of a kernel's package does. DKMS keeps what it built before, so its tree is in memory, and new for each run. The root has
// neither openssl nor a key, so that nothing is signed: neither does the tool.
const dkmsScript = `set -e
module=$1 version=$2; shift 2
dkms add -m "$module" -v "$version" >&2
echo ready
read
for kernel; do dkms build -m "$module" -v "$version" -k "$kernel" --force >&2; done
for kernel; do [ -e "/var/lib/dkms/$module/$version/$kernel/x86_64/module/$module.ko" ]; done`

// dkms builds for kernels, one after the other, with Debian's dkms, by root (in a namespace of his own), with the compiler and the
// headers of the tool's header images.
func (b *bench) dkms(ctx context.Context, releases []string) (sample, error) {
	s, log, err := b.timed(ctx, b.dkmsRoot, []string{path, "HOME=/tmp"}, []string{"--uid", "0", "--gid", "0"}, dkmsScript,
		append([]string{b.module, b.moduleVersion}, releases...)...)
	if err != nil && ctx.Err() == nil {
		return s, fmt.Errorf("dkms: %w\n%s", err, log)
	}
	return s, err
}

// newCache is a cache folder for the tool with every package and index, but no header image. Nothing is removed between runs: ext4
// is slow to make files where many were removed in the last minute.
func (b *bench) newCache() (string, error) {
	dir := b.folder("cache")
	for _, part := range []string{"images/packages", "index"} {
		if err := os.MkdirAll(filepath.Join(dir, part), 0o755); err != nil {
			return "", err
		}
		if err := link(filepath.Join(b.cache, part), filepath.Join(dir, part)); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// image times the tool for one header image: it "builds" a source that is for no kernel. The sandbox in which that is found out is in
// the time, a twentieth of a second. The disk has nothing left to do when it begins.
func (b *bench) image(ctx context.Context, cache, release string) (sample, error) {
	unix.Sync()
	return b.run(ctx, cache, skipped, "build", b.never, "--kernels", list(release), "--out", b.folder("out"), "--offline")
}

func (b *bench) firstImage(ctx context.Context) (sample, error) {
	cache, err := b.newCache()
	if err != nil {
		return sample{}, err
	}
	b.spare = cache
	return b.image(ctx, cache, b.releases[0])
}

// secondImage adds one to the cache of the last firstImage, whose toolchain is the same.
func (b *bench) secondImage(ctx context.Context) (sample, error) {
	return b.image(ctx, b.spare, b.releases[1])
}

// dpkgDeb unpacks the packages of the first header image, one after the other.
func (b *bench) dpkgDeb(ctx context.Context) (sample, error) {
	r, err := record(b.cache, b.releases[0], false)
	if err != nil {
		return sample{}, err
	}
	dir := b.folder("dpkg")
	unix.Sync()
	start := time.Now()
	for _, digest := range r.packages() {
		cmd := command(ctx, "dpkg-deb", "-x", filepath.Join(b.cache, "images", "packages", "sha256", digest), dir)
		if out, err := cmd.CombinedOutput(); err != nil {
			if errors.As(err, new(*exec.ExitError)) {
				err = fmt.Errorf("dpkg-deb: %w: %s", err, lastLine(string(out)))
			}
			return sample{}, err
		}
	}
	return sample{Seconds: time.Since(start).Seconds()}, nil
}
