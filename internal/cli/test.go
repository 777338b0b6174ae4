package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/cache"
	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/host"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// testExits are the exit codes of verdicts.
var testExits = []string{
	" 30  a kernel refuses to load a module, or its own code does",
	" 31  a module crashes its kernel",
	" 32  a module hangs",
	" 33  a module loads, but doesn't unload",
	" 34  a module loads, but its kernel warns: WARNING, lockdep, what is left behind",
	" 35  the script of --script failed",
	" 36  a kernel didn't boot, or there is no qemu for it: nothing is known of the modules",
}

// ofSources are the flags of test that are about sources.
var ofSources = []string{"lock", "with", "compiler", "depends", "overrides", "directive", "images", "push-images", "cache-from", "cache-to"}

func (a *app) testCommand() *cobra.Command {
	o := defaultBuild()
	t := defaultTrial()
	var h hostOptions
	cmd := &cobra.Command{
		Use:   "test [SRC...|MODULE/VERSION|ARTIFACT|KEY|REF] --kernels KERNELS",
		Short: "Load modules in a virtual machine that runs their kernel",
		Long: `Loads modules, unloads them, and does that once more, in a virtual machine that runs just the kernel that they are for, and says
what the kernel said to it. What is tried is one of these:

  SRC             a source, or several, as for build, each of which is built first for each of KERNELS unless it's cached
  MODULE/VERSION  a module that is registered with this host, or that of --root, for KERNELS of it, by default the running one
  ARTIFACT        modules as files: .ko, compressed or not, or a folder of them, or what 'build --out' made. Files of one folder
                  are tried together. Their kernel is the one that the folder is named for, or else that of --kernels
  KEY             a result in the cache, by its key or digest, as build and 'cache ls' print it, or the first 8 digits or more
  REF             what is in a registry, for those of KERNELS that it has, by default for all; see pull

The default is the current folder. KERNELS and the flags of builds are explained with build.

The kernel is that of the distribution's own package, in the version of the headers that the modules were built with, pinned and
checked as these are. The machine has no disk, no network and nothing of this host, and ends when the program does. Beside the
modules it has just what they need of the kernel's own, and of the modules that BUILD_DEPENDS names. Neither root nor KVM is
needed: where KVM doesn't work, qemu does without. What runs is qemu-system-x86_64 or qemu-system-aarch64, from PATH.

Parameters are given with --param. With --script a program runs while the modules are loaded; it fails the test unless it exits
with 0. With --signature the kernel must also refuse, under module.sig_enforce=1, the modules without a signature and with one
by a key that it doesn't know, for just these reasons: that shows that what the key of --sign-key, else of the configuration, else
the host's own, or where there is none a new one makes is a signature in the kernel's form. With --load-only the test ends when
the modules are loaded.

A driver whose hardware isn't in the machine may say so (ENODEV): its verdict is no-hardware, which is no failure. The verdict
is kept with what was built, and goes to a registry with it; see push, list and 'install --require-tested'.

Standard output has one line for each kernel: the kernel; the verdict; the modules, or what is wrong; the time, and kvm or tcg,
for qemu without it. With --verbose the rest has all that the kernel said. With --format json it has one object.` + exitStatus(append(append([]string{
			"  0  all load, or their hardware isn't there, or they were skipped beside others that are tested",
			"  1  the command line, the source or the configuration is wrong, this machine's disk or permissions are, or no engine works",
			"  2, 3, 4  of MODULE/VERSION: see add and install",
			" 10  a build failed",
			" 13  a module of BUILD_DEPENDS is missing, failed or was skipped, or they go in a circle",
			" 21  a kernel, its headers or its image can't be found, fetched or trusted",
			" 22  the registry of REF can't be reached, refuses, or has something that was altered",
			" 23  the registry of REF has no such module, or none for that kernel",
		}, testExits...),
			" 77  every kernel was skipped (BUILD_EXCLUSIVE in dkms.conf)",
			"130  interrupted", "", "With several failures, the lowest of their codes.")...),
		Example: `  godkms-hermetic test . --kernels debian/bookworm:6.1.0-56-amd64,debian/trixie:latest
  godkms-hermetic test . --kernels 'debian/*:latest' --param debug=1 --script check.sh
  godkms-hermetic test v4l2loopback-dkms_0.12.7-2_all.deb --kernels debian/bookworm:latest --signature
  godkms-hermetic test out/debian-bookworm/6.1.0-56-amd64/hello.ko
  godkms-hermetic test registry.example/modules/hello:1.0 --format json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			args = sourcesOf(args)
			kind, err := kindOf(args)
			if err != nil {
				return err
			}
			for _, name := range ofSources {
				if kind != testsSources && (kind != testsHost || name == "lock" || name == "depends") && cmd.Flags().Changed(name) {
					return fmt.Errorf("--%s is for sources, and %q is none", name, args[0])
				}
			}
			if kind != testsHost && cmd.Flags().Changed("root") {
				return errors.New("--root is for the modules of a host: name one as MODULE/VERSION")
			}
			t.root = h.root
			o.trial, h.kernels, h.arch = &t, o.kernels, kernels.HostArch()
			return a.runTest(cmd.Context(), kind, o, h, args)
		},
	}
	o.flags(a, cmd)
	t.flags(cmd.Flags())
	h.rootFlags(cmd)
	cmd.ValidArgsFunction = h.completeSources()
	return cmd
}

// tested is a kind of what a test is of.
type tested int

const (
	testsSources tested = iota
	testsHost
	testsFiles
	testsKey
	testsReference
)

// kindOf tells what arguments are. There are several of sources and of files only.
func kindOf(args []string) (tested, error) {
	first, err := kindOfOne(args[0])
	for _, arg := range args[1:] {
		kind, otherErr := kindOfOne(arg)
		switch {
		case errors.Join(err, otherErr) != nil:
		case kind != first:
			err = fmt.Errorf("%q and %q are not of one kind; test them one after the other", args[0], arg)
		case kind != testsSources && kind != testsFiles:
			err = fmt.Errorf("%q and %q: test them one after the other", args[0], arg)
		}
		err = errors.Join(err, otherErr)
	}
	return first, err
}

func kindOfOne(arg string) (tested, error) {
	info, err := os.Stat(arg)
	switch {
	case err == nil && !info.IsDir() && koFile.MatchString(arg):
		return testsFiles, nil
	case err == nil && info.IsDir():
		if _, err := os.Stat(filepath.Join(arg, "dkms.conf")); err == nil {
			return testsSources, nil
		}
		if dirs, err := foldersOf(arg); err != nil || len(dirs) > 0 {
			return testsFiles, err
		}
	case err == nil:
	case keyForm.MatchString(arg) || strings.HasPrefix(arg, "sha256:"):
		return testsKey, nil
	case isReference(arg):
		return testsReference, nil
	case moduleVersion.MatchString(arg):
		return testsHost, nil
	}
	return testsSources, nil // which says what is wrong with it
}

func (a *app) runTest(ctx context.Context, kind tested, o buildOptions, h hostOptions, args []string) error {
	o.out = "out" // no part of the source, as for build
	r, err := a.newRun(o)
	if err != nil {
		return err
	}
	defer r.close()
	r.print, r.trials.reuse = ui.PrintTests, false
	r.handOut = func(context.Context, *cell, builder.Result) ([]ui.Module, string, error) { return nil, "", nil }
	var list []candidate
	switch kind {
	case testsFiles:
		list, err = r.files(ctx, args)
	case testsKey:
		list, err = r.ofKey(ctx, args[0])
	case testsReference:
		list, err = r.ofReference(ctx, args[0])
	case testsHost:
		list, err = r.ofHost(ctx, h, args[0])
	default:
		targets, err := r.plan(ctx, args)
		if err != nil {
			return err
		}
		return r.run(ctx, targets)
	}
	if err != nil {
		return err
	}
	return r.try(ctx, list)
}

// candidate is what is tested for a kernel and isn't built by this run.
type candidate struct {
	kernel kernels.Kernel
	report ui.Result
	err    error // why it can't be had
	// The result that it is of, and the cache that has it, if any.
	key, digest v1.Hash
	results     *cache.Dir
	// open gives the modules, which can be read until done is called, and the lock of what they were built on in its canonical form, or
	// nil where that isn't known.
	open func(context.Context, *ui.Line) (files []artifact.File, lock []byte, done func(), err error)
}

func candidateOf(m artifact.Meta) candidate {
	k := kernelOf(m)
	return candidate{kernel: k, report: ui.Result{Module: m.Module, Version: m.Version, Kernel: k.String(), Distro: k.Distro, Suite: k.Suite, Release: k.Release,
		Key: m.Key.String(), Compiler: m.Compiler}}
}

// try tests candidates and reports in their order.
func (r *buildRun) try(ctx context.Context, list []candidate) error {
	reports, codes := make([]ui.Result, len(list)), make([]int, len(list))
	for _, c := range list {
		if c.err == nil {
			if _, err := r.trials.program(ctx, c.kernel.Arch); err != nil {
				return err
			}
		}
	}
	var g errgroup.Group
	g.SetLimit(8)
	for i, c := range list {
		reports[i] = c.report
		line := r.board.Line(c.report.Kernel)
		g.Go(func() error {
			codes[i] = r.tryOne(ctx, c, line, &reports[i])
			return nil
		})
	}
	g.Wait()
	return r.conclude(ctx, reports, codes, nil)
}

func (r *buildRun) tryOne(ctx context.Context, c candidate, line *ui.Line, report *ui.Result) int {
	if report.Status == ui.Skipped {
		line.End(ui.Skipped, report.Reason)
		return 0
	}
	s, done, code, err := r.subject(ctx, c, line)
	defer done()
	if err != nil {
		if ctx.Err() != nil {
			err = errInterrupted
		}
		report.Status = ui.Failed
		report.Reason, _, _ = strings.Cut(err.Error(), "\n")
		line.End(ui.Failed, err.Error())
		return code
	}
	return r.trials.test(ctx, s, line, report)
}

// subject opens a candidate. An error has its exit code.
func (r *buildRun) subject(ctx context.Context, c candidate, line *ui.Line) (s subject, done func(), code int, err error) {
	s, done = subject{title: c.report.Kernel, kernel: c.kernel, key: c.key, digest: c.digest, results: c.results}, func() {}
	if c.err != nil {
		return s, done, codeOf(c.err), c.err
	}
	var lock []byte
	if s.files, lock, done, err = c.open(ctx, line); err != nil {
		return s, done, codeOf(err), err
	}
	if lock != nil {
		if s.lock, err = kernels.DecodeLock(lock); err == nil && s.lock.Kernel != c.kernel {
			err = fmt.Errorf("its lock is that of %s", s.lock.Kernel)
		}
		return s, done, exitRegistry, err
	}
	line.Phase("locking")
	s.lock, err = r.lock(ctx, target{kernel: c.kernel}, kernels.Extra{})
	return s, done, lockCode(err), err
}

// ofKey is a result in the cache.
func (r *buildRun) ofKey(ctx context.Context, name string) ([]candidate, error) {
	if len(r.options.kernels) > 0 {
		return nil, fmt.Errorf("%q is of one kernel: leave --kernels away", name)
	}
	results, err := r.results()
	if err != nil {
		return nil, err
	}
	info, err := storedResult(ctx, results, name)
	if err != nil {
		return nil, err
	}
	c, err := candidateIn(ctx, results, info.Key, ui.Cached)
	return []candidate{c}, err
}

// candidateIn is what a cache has.
func candidateIn(ctx context.Context, results *cache.Dir, key v1.Hash, status ui.Status) (candidate, error) {
	e, err := results.Get(ctx, key)
	if err != nil {
		return candidate{}, err
	}
	b, err := resultOf(e)
	if err != nil {
		return candidate{}, err
	}
	c := candidateOf(b.Meta)
	c.key, c.digest, c.results = key, b.Digest, results
	c.report.Status, c.report.Digest = status, b.Digest.String()
	if b.Meta.Status == artifact.Skipped {
		c.report.Status, c.report.Reason = ui.Skipped, b.Meta.Reason
	}
	c.open = func(context.Context, *ui.Line) ([]artifact.File, []byte, func(), error) {
		return b.Files, e.Lock, func() {}, nil
	}
	return c, nil
}

// ofReference is what a reference stands for, for the kernels of the options.
func (r *buildRun) ofReference(ctx context.Context, text string) ([]candidate, error) {
	selectors, err := listSelectors(r.options.kernels)
	if err != nil {
		return nil, err
	}
	client, repo, ref, err := r.app.open(text)
	if err != nil {
		return nil, err
	}
	var entries []artifact.Entry
	if len(selectors) > 0 {
		entries, err = choose(ctx, repo, ref, selectors, machine{running: running()}, kernels.HostArch())
	} else {
		entries, err = offered(ctx, repo, ref)
	}
	if err == nil && len(entries) == 0 {
		err = &exitError{code: exitAbsent, err: fmt.Errorf("%s has no modules", ref)}
	}
	if err != nil {
		return nil, err
	}
	temp, err := r.temp()
	if err != nil {
		return nil, err
	}
	results, err := r.results()
	if err != nil {
		return nil, err
	}
	var list []candidate
	for _, e := range entries {
		c := candidateOf(e.Meta)
		c.report.Status, c.report.Digest, c.report.Reference = ui.Pulled, e.Digest.String(), repo.Name()+"@"+e.Digest.String()
		c.key, c.digest, c.results = e.Key, e.Digest, results // which may have it too
		c.open = func(ctx context.Context, line *ui.Line) ([]artifact.File, []byte, func(), error) {
			line.Phase("pulling")
			dir, err := durable.NewTemp(filepath.Join(temp, "pull"))
			if err != nil {
				return nil, nil, func() {}, err
			}
			done := func() { dir.Close() }
			img, err := client.Fetch(ctx, repo, e.Digest.String(), dir.Dir, line.Bytes)
			if err == nil {
				err = e.Check(img)
			}
			if err != nil {
				return nil, nil, done, registryError(err)
			}
			meta, files, err := artifact.Read(img)
			if err != nil {
				return nil, nil, done, registryError(err)
			}
			attached, err := artifact.ReadAttachmentsOf(ctx, repo, e.Digest, meta, artifact.LockType)
			if err != nil {
				return nil, nil, done, registryError(err)
			}
			return files, attached.Lock, done, nil
		}
		list = append(list, c)
	}
	return list, nil
}

// ofHost is a module that is registered with a host, obtained for kernels of it.
func (r *buildRun) ofHost(ctx context.Context, h hostOptions, name string) ([]candidate, error) {
	root, err := r.openRoot(h)
	if err != nil {
		return nil, err
	}
	module, version, err := h.named([]string{name})
	if err != nil {
		return nil, err
	}
	m, err := root.Module(module, version)
	if err != nil {
		return nil, hostError(root, err)
	}
	ks, err := r.kernelsOf(root, h)
	if err != nil {
		return nil, err
	}
	build := r.options
	build.trial = nil
	got, err := r.obtain(ctx, root, []host.Module{m}, ks, obtainOptions{buildOptions: build})
	if err != nil {
		return nil, err
	}
	kept, err := rootResults(root, r.board.Warn)
	if err != nil {
		return nil, hostError(root, err)
	}
	var list []candidate
	for _, o := range got {
		c := candidate{kernel: kernels.Kernel(o.kernel), report: o.report, err: o.err}
		if o.image != nil {
			key, err := v1.NewHash(o.report.Key)
			if err != nil {
				return nil, err
			}
			if c, err = candidateIn(ctx, kept, key, o.status); err != nil {
				return nil, hostError(root, err)
			}
		}
		list = append(list, c)
	}
	return list, nil
}

// koFile is the name of a module's file.
var koFile = regexp.MustCompile(`\.ko(\.gz|\.xz|\.zst)?$`)

// maxFolders bounds what is looked through for modules.
const maxFolders = 4096

// foldersOf finds the folders that have modules: dir, or up to three below it, as build makes them.
func foldersOf(dir string) (dirs []string, err error) {
	for _, below := range []string{"", "*", "*/*", "*/*/*"} {
		files, err := filepath.Glob(filepath.Join(quoteGlob(dir), below, "*.ko*"))
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			if d := filepath.Dir(f); koFile.MatchString(f) && !slices.Contains(dirs, d) {
				dirs = append(dirs, d)
			}
		}
		if len(dirs) > maxFolders {
			return nil, fmt.Errorf("%q has modules in more than %d folders: name one of them", dir, maxFolders)
		}
	}
	return dirs, nil
}

func quoteGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(s)
}

// files are modules in files and folders. Those of one folder are tried together, as are all where the kernels are named.
func (r *buildRun) files(ctx context.Context, args []string) ([]candidate, error) {
	groups := map[string][]string{}
	var order []string
	add := func(file string) {
		dir := filepath.Dir(file)
		if groups[dir] == nil {
			order = append(order, dir)
		}
		groups[dir] = append(groups[dir], file)
	}
	for _, arg := range args {
		if koFile.MatchString(arg) {
			add(arg)
			continue
		}
		dirs, err := foldersOf(arg)
		if err != nil {
			return nil, err
		}
		for _, dir := range dirs {
			entries, err := os.ReadDir(dir)
			if err != nil {
				return nil, err
			}
			for _, e := range entries {
				if koFile.MatchString(e.Name()) {
					add(filepath.Join(dir, e.Name()))
				}
			}
		}
	}
	var list []candidate
	named := map[kernels.Kernel]int{} // that folders are named for
	for _, dir := range order {
		k, ok := r.kernelOfFolder(dir)
		if !ok {
			continue
		}
		if _, again := named[k]; again {
			return nil, fmt.Errorf("several folders have modules for %s: name one of them, or the files", k)
		}
		named[k] = len(list)
		c, err := fileCandidate(k, groups[dir])
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	if len(r.options.kernels) == 0 {
		if len(list) < len(order) {
			return nil, fmt.Errorf("which kernel %q is for isn't known from its folder; name it with --kernels", args[0])
		}
		return list, nil
	}
	find, err := r.finder("", r.options.kernels)
	if err != nil {
		return nil, err
	}
	targets, err := find(ctx)
	if err != nil {
		return nil, err
	}
	var all []string
	for _, dir := range order {
		all = append(all, groups[dir]...)
	}
	var out []candidate
	for _, t := range targets {
		i, own := named[t.kernel]
		switch {
		case t.err != nil:
			out = append(out, candidate{report: ui.Result{Kernel: t.label}, err: &exitError{code: lockCode(t.err), err: t.err}})
		case own:
			out = append(out, list[i])
		case len(order) > 1:
			out = append(out, candidate{report: ui.Result{Kernel: t.label}, err: fmt.Errorf("none of the folders of modules is named for it")})
		default:
			c, err := fileCandidate(t.kernel, all)
			if err != nil {
				return nil, err
			}
			out = append(out, c)
		}
	}
	return out, nil
}

// kernelOfFolder reads the kernel from where build puts modules: <distro>-<suite>/<release>, or a folder there.
func (r *buildRun) kernelOfFolder(dir string) (kernels.Kernel, bool) {
	at, err := filepath.Abs(dir)
	if err != nil {
		return kernels.Kernel{}, false
	}
	for range 2 {
		release, where := filepath.Base(at), filepath.Base(filepath.Dir(at))
		for _, suite := range r.suites() {
			if strings.Replace(suite, "/", "-", 1) == where {
				distro, suite, _ := strings.Cut(suite, "/")
				return kernels.Kernel{Distro: distro, Suite: suite, Arch: kernels.HostArch(), Release: release}, true
			}
		}
		at = filepath.Dir(at)
	}
	return kernels.Kernel{}, false
}

// fileCandidate is made of files, which are tried together.
func fileCandidate(k kernels.Kernel, names []string) (candidate, error) {
	c := candidate{kernel: k, report: ui.Result{Kernel: k.String(), Distro: k.Distro, Suite: k.Suite, Release: k.Release, Status: ui.Built}}
	var files []artifact.File
	for _, name := range names {
		info, err := os.Stat(name)
		if err == nil && !info.Mode().IsRegular() {
			err = fmt.Errorf("%q is no file", name)
		}
		if err != nil {
			return c, err
		}
		files = append(files, artifact.File{Name: koFile.ReplaceAllString(filepath.Base(name), ".ko"), Size: info.Size(),
			Open: func() (io.ReadCloser, error) { return os.Open(name) }})
	}
	c.report.Module = strings.TrimSuffix(files[0].Name, ".ko")
	c.open = func(context.Context, *ui.Line) ([]artifact.File, []byte, func(), error) {
		return files, nil, func() {}, nil
	}
	return c, nil
}
