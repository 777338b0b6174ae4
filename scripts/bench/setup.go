package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/registrytest"
)

// suite is where the kernels, the compiler, dkms and the module come from.
const suite = "debian/bookworm"

// bench is what the rows share.
type bench struct {
	tool, version string
	cache         string   // the tool's --cache-dir
	downloads     string   // what else was downloaded
	work          string   // of this run, removed at its end; on the file system of cache
	releases      []string // six kernels of the default flavour, newest first
	source        string   // the module's folder, as its Debian package has it
	module        string   // its name
	moduleVersion string
	never         string // a source that is for no kernel
	bareRoot      string // the root that the tool builds for the newest kernel on, in one folder
	dkmsRoot      string // the same with dkms, the module's source, and the headers of all six
	count         int
	spare         string // a cache folder with one header image and the packages of another
	docker        *docker

	registry     *registrytest.Server
	craneProgram string
	publisher    string   // the cache folder of who pushes
	big          string   // a source with a large module
	pushed       string   // the repository that has it for six kernels, under the tag 1
	layout       string   // a folder with the same
	prebuilt     string   // the repository that has the module for six kernels
	shared       string   // the one that is a shared cache
	many         string   // the root of a host with many modules
	manyOfDKMS   string   // dkms's tree, which has some of them
	installed    string   // the root of a host with the newest kernel and the module
	keys         string   // a folder with a key
	unsigned     string   // a module
	signFile     string   // the kernel's own program
	lock         *os.File // of the folder that work is in
	say          func(string, ...any)
}

// newBench downloads what is missing and makes the roots. The bench that it returns with an error is to be closed too.
func newBench(ctx context.Context, o options, say func(string, ...any)) (b *bench, err error) {
	b = &bench{say: say}
	if b.tool, err = filepath.Abs(o.tool); err != nil {
		return nil, err
	}
	if o.cache, err = filepath.Abs(o.cache); err != nil {
		return nil, err
	}
	for _, name := range []string{"bwrap", "dpkg-deb"} {
		if _, err := exec.LookPath(name); err != nil {
			return nil, fmt.Errorf("%w: install Debian's package (bubblewrap, dpkg)", err)
		}
	}
	b.cache, b.downloads = filepath.Join(o.cache, "tool"), filepath.Join(o.cache, "downloads")
	if err := os.MkdirAll(b.downloads, 0o755); err != nil {
		return nil, err
	}
	if err := b.alone(o.cache); err != nil {
		return nil, err
	}
	if b.work, err = os.MkdirTemp(o.cache, "run-"); err != nil {
		return nil, err
	}
	version, err := b.output(ctx, b.tool, "version")
	if err != nil {
		return b, fmt.Errorf("%w; 'make build' makes the program", err)
	}
	b.version = strings.TrimSpace(version)
	if b.releases, err = b.kernels(ctx); err != nil {
		return b, err
	}
	b.never = filepath.Join(b.work, "never")
	if err := os.Mkdir(b.never, 0o755); err != nil {
		return b, err
	}
	if err := os.WriteFile(filepath.Join(b.never, "dkms.conf"), []byte(neverConf), 0o644); err != nil {
		return b, err
	}
	say("header images of %s; what is missing is downloaded", strings.Join(b.releases, ", "))
	if err := b.fetch(ctx); err != nil {
		return b, err
	}
	return b, b.roots()
}

// alone keeps other runs out of the folder, which would disturb both, and removes what a run that was killed left there.
func (b *bench) alone(dir string) (err error) {
	if b.lock, err = os.Open(dir); err != nil {
		return err
	}
	if err := unix.Flock(int(b.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("another run uses %q: %w", dir, err)
	}
	left, err := filepath.Glob(filepath.Join(dir, "run-*"))
	if err != nil {
		return err
	}
	for _, l := range left {
		if err := os.RemoveAll(l); err != nil {
			return err
		}
	}
	return nil
}

// neverConf is of a source that is skipped as soon as its dkms.conf has been read. What its "build" takes is the header image.
const neverConf = `PACKAGE_NAME="never"
PACKAGE_VERSION="1"
BUILT_MODULE_NAME[0]="never"
DEST_MODULE_LOCATION[0]="/updates"
BUILD_EXCLUSIVE_KERNEL="^never$"
`

func (b *bench) close() error {
	err := errors.Join(b.docker.stop(), b.stopRegistry())
	return errors.Join(err, os.RemoveAll(b.work))
}

// command is a program with its arguments that ends when ctx does: first it is asked to, by its own process id. It is kept out of
// the terminal's process group: Ctrl-C is for this program, which then ends what it has started.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(unix.SIGTERM) }
	cmd.WaitDelay = grace
	return cmd
}

// output runs a program and gives what it prints. Its error has what it complains about.
func (b *bench) output(ctx context.Context, name string, args ...string) (string, error) {
	cmd := command(ctx, name, args...)
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("%s %q: %w: %s", filepath.Base(name), args, err, lastLine(string(exit.Stderr)))
	}
	return string(out), err
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// offlineFirst runs the tool without the network, and only if that fails with it.
func (b *bench) offlineFirst(ctx context.Context, args ...string) (string, error) {
	args = append([]string{"--cache-dir", b.cache}, args...)
	out, err := b.output(ctx, b.tool, append(args, "--offline")...)
	if err == nil || exitCode(err) == skipped {
		return out, nil
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	out, err = b.output(ctx, b.tool, args...)
	if exitCode(err) == skipped {
		err = nil
	}
	return out, err
}

// skipped is the tool's exit code when the source is for none of the kernels.
const skipped = 77

func exitCode(err error) int {
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exit.ExitCode()
	}
	return -1
}

var defaultFlavour = regexp.MustCompile(`(?m)^` + suite + `:(6\.1\.0-[0-9]+-amd64)\s`)

func (b *bench) kernels(ctx context.Context) ([]string, error) {
	list, err := b.offlineFirst(ctx, "kernels", suite)
	if err != nil {
		return nil, err
	}
	var releases []string
	for _, m := range defaultFlavour.FindAllStringSubmatch(list, 6) {
		releases = append(releases, m[1])
	}
	if len(releases) < 6 {
		return nil, fmt.Errorf("%s has %d kernels 6.1 of the default flavour; six are needed", suite, len(releases))
	}
	return releases, nil
}

// list is the argument of --kernels.
func list(releases ...string) string { return suite + ":" + strings.Join(releases, ","+suite+":") }

// fetch makes the header images of all kernels, and one that has dkms and the module's source.
func (b *bench) fetch(ctx context.Context) error {
	out := filepath.Join(b.work, "out")
	if _, err := b.offlineFirst(ctx, "build", b.never, "--kernels", list(b.releases...), "--out", out); err != nil {
		return err
	}
	_, err := b.offlineFirst(ctx, "build", b.never, "--kernels", list(b.releases[0]), "--out", out, "--with", "dkms,v4l2loopback-dkms")
	return err
}

// rootRecord is what the tool's cache knows of a header image: images/roots/<lock>.json.
type rootRecord struct {
	Lock struct {
		Kernel             struct{ Release string }
		Toolchain, Headers []struct{ Name, Digest string }
	}
	Layers []string // folders below images/layers, lowest first: toolchain, headers, glue
}

func (r rootRecord) packages() []string {
	var digests []string
	for _, p := range slices.Concat(r.Lock.Toolchain, r.Lock.Headers) {
		digests = append(digests, strings.TrimPrefix(p.Digest, "sha256:"))
	}
	return digests
}

func (r rootRecord) has(name string) bool {
	for _, p := range slices.Concat(r.Lock.Toolchain, r.Lock.Headers) {
		if p.Name == name {
			return true
		}
	}
	return false
}

// record finds a header image of a cache folder.
func record(cache, release string, withDKMS bool) (rootRecord, error) {
	files, err := filepath.Glob(filepath.Join(cache, "images", "roots", "*.json"))
	if err != nil {
		return rootRecord{}, err
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return rootRecord{}, err
		}
		var r rootRecord
		if err := json.Unmarshal(text, &r); err != nil {
			return rootRecord{}, fmt.Errorf("%s: %w", f, err)
		}
		if r.Lock.Kernel.Release == release && r.has("dkms") == withDKMS {
			return r, nil
		}
	}
	return rootRecord{}, fmt.Errorf("no header image of %s in %q: has the layout of the cache changed?", release, cache)
}

// roots makes the folders that bare make and dkms run on, from the same files that the tool builds on.
func (b *bench) roots() error {
	layer := func(key string) string { return filepath.Join(b.cache, "images", "layers", key, "fs") }
	merge := func(dir string, keys ...string) error {
		for _, key := range keys {
			if err := link(layer(key), dir); err != nil {
				return err
			}
		}
		return nil
	}
	newest, err := record(b.cache, b.releases[0], false)
	if err != nil {
		return err
	}
	b.bareRoot = filepath.Join(b.work, "bare-root")
	if err := merge(b.bareRoot, newest.Layers...); err != nil {
		return err
	}
	extra, err := record(b.cache, b.releases[0], true)
	if err != nil {
		return err
	}
	b.dkmsRoot = filepath.Join(b.work, "dkms-root")
	if err := merge(b.dkmsRoot, extra.Layers...); err != nil {
		return err
	}
	for _, release := range b.releases[1:] {
		r, err := record(b.cache, release, false)
		if err != nil {
			return err
		}
		if err := merge(b.dkmsRoot, r.Layers[1]); err != nil {
			return err
		}
	}
	found, err := filepath.Glob(filepath.Join(b.dkmsRoot, "usr/src/v4l2loopback-*"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("the package v4l2loopback-dkms has %q: %v", found, err)
	}
	b.source = found[0]
	b.module, b.moduleVersion, _ = strings.Cut(filepath.Base(b.source), "-")
	return nil
}

// link puts a layer over a folder as overlayfs would: folders merge, anything else replaces what is there. Files are hard links, so
// that both sides read the same pages of the page cache.
func link(layer, dir string) error {
	return filepath.WalkDir(layer, func(from string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(layer, from)
		if err != nil {
			return err
		}
		to := filepath.Join(dir, rel)
		there, err := os.Lstat(to)
		if err == nil && d.IsDir() && there.IsDir() {
			return nil
		}
		if err == nil {
			if err := os.RemoveAll(to); err != nil {
				return err
			}
		}
		switch d.Type() {
		case fs.ModeDir:
			return os.MkdirAll(to, 0o755)
		case fs.ModeSymlink:
			target, err := os.Readlink(from)
			if err != nil {
				return err
			}
			return os.Symlink(target, to)
		}
		return os.Link(from, to)
	})
}

// folder is a path of this run's own that nothing has been at.
func (b *bench) folder(name string) string {
	b.count++
	return filepath.Join(b.work, fmt.Sprintf("%s-%d", name, b.count))
}
