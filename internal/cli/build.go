package cli

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/builder/dkms"
	"github.com/godkms-hermetic/godkms-hermetic/cache"
	"github.com/godkms-hermetic/godkms-hermetic/images"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

type buildOptions struct {
	kernels []string
	lock    string
	out     string
	engine  string
	jobs    int
	noCache bool
	with    []string
	timeout time.Duration
	memory  string
	input   confInput
	depends []string
	push    string
	headers headerOptions
	shared  sharedOptions
	shard   string
	reports []string
	trial   *trialOptions // what is built is tried; nil: it isn't
}

// defaultBuild are the options of a build that nothing is said about.
func defaultBuild() buildOptions { return buildOptions{engine: "auto", jobs: runtime.NumCPU()} }

func (a *app) buildCommand() *cobra.Command {
	o := defaultBuild()
	var h hostOptions
	var test bool
	cmd := &cobra.Command{
		Use:   "build [SRC...] --kernels KERNELS",
		Short: "Build DKMS source trees for kernels",
		Long: `Builds DKMS source trees for each of the kernels, and puts the modules and the build's log into
DIR/<distro>-<suite>/<release>/; where there are several sources, into a folder <module>-<version> there for each.

SRC is a folder with a dkms.conf, the dkms.conf itself, a tarball (plain, gzip, xz, zstd), or a Debian package that carries
usr/src/*/dkms.conf. The default is the current folder.

SRC can also be a module of this host, as MODULE/VERSION or with -m and -v, which is added first if it isn't registered; see add.
KERNELS are releases that the host has then, by default the running one, and with --all all of them. Where the module's registry
has it prebuilt, that is taken. The result is kept for install, and goes to DIR too if --out is given; what is built already is
left as it is, unless --force is given. A build that fails leaves the one before.

What a dkms.conf names in BUILD_DEPENDS is built first, and its modules, its Module.symvers and its source are where dkms has them
when the dependent is built. It is taken from the other sources, else from the folders of --depends (as /usr/src, with a source in
each folder below, or in a package or tarball), of which just what is needed is built.

KERNELS is a list with commas of [DISTRO/SUITE:]SELECTOR. A SELECTOR is one of these:

  RELEASE           a kernel release, or a shell pattern over releases, as '6.1.0-*-cloud-amd64'
  latest            the newest of the default flavour, backports and hardware enablement aside; latest=3 are three
  since=2026-01-31  those of that flavour whose packages were built on that day or later, where the index has dates
  running           this machine's, of the distribution and suite that its os-release names

latest and since take other flavours behind @: latest@cloud-amd64, or latest=2@* for two of each. Without DISTRO/SUITE a release
is looked for in the suites that name their kernels like that; where two have it with different packages, say which, and so
where a pattern fits the kernels of several distributions. DISTRO and SUITE may be patterns: 'ubuntu/*:latest' stands for each
of its suites. Suites whose indexes have expired are passed over. What has ! before it, as '!*-rt-*', is left out of all of the
list. @FILE is a list in a file, with a selector in each line and # before comments; @- is standard input.

The compiler is the one that built the kernel, in its major version, from its distribution and suite. A kernel whose suite
hasn't got that, or whose headers turn out to name another, fails; --compiler takes another all the same.

What a build needs beside the compiler and make is named with --with, or as packages below [build] in a godkms.toml beside the
dkms.conf; a Debian package brings what it depends on. "a | b" is one or the other, whichever the kernel's suite has.

With --lock, the kernels are those of a file that the command lock has written, or those of them that --kernels names by a release
or a pattern, and their packages are the file's. No index is asked for. What can't be had as it was locked, or is asked for and
isn't locked, is a failure; see lock.

With --images, the header image of a kernel is taken from a registry that has it, rather than assembled from the distribution's
packages. A kernel that the distribution has no more, named by its release or by a pattern that nothing there matches, is built
for with the packages that its newest image in the registry was made of; so is one that is named in full while the distribution
can't be asked. What comes from the registry is trusted as much as the distribution is.

With --cache-to, results go to a repository that other machines look into with --cache-from before they build: what is there under
the same key, and fits in all that it says of itself, counts as built here. Neither stops a build: a shared cache that can't be
used is named once and left alone, and a result that doesn't fit is refused with a warning. None is replaced by another.

With --push, what was built or was cached is pushed when all kernels are done, for the commands pull and list; see push. What
failed is left out. Where it can't be pushed the modules are in DIR all the same.

--shard 2/4 builds the second of four parts of the kernels: each kernel is in one of them, the same one for the same request and
indexes, and the parts differ by one kernel at most. A part without any is a success. The command matrix divides a build by its
kernels' names for jobs of a CI service, so that a kernel that comes in between is not in two of them, or in none.

--report writes what came of each module for each kernel, with times and the first error of what failed, for a CI service (junit),
a step's summary (markdown) or a browser (html, one file without a script). The files are replaced, and are there whenever a build
was begun, also where some failed or were interrupted.

With --test, what was built or was cached is loaded in a virtual machine that runs its kernel, as the command test does without
any of its flags. What fails that is a failure: it is neither put into DIR nor pushed. What is cached and has passed on the same
image of the kernel before isn't tried again.

A build runs in a sandbox of Linux namespaces where the kernel allows it, else in a container of the Docker Engine that
DOCKER_HOST or the Docker context names; --engine sets one of them. The result is the same to the byte. The engine is looked for
when there is something to build: what is in the cache needs none.

Standard output has one line for each kernel, in the order of the request: the kernel; built, cached, skipped or failed; the
digest of the artifact; where the modules are. With --format json it has one object.` + exitStatus(
			"  0  all were built or cached, or skipped beside others that are there",
			"  1  the command line, the source or the configuration is wrong, this machine's disk or permissions are, or no engine works",
			"  2, 3, 4, 6, 8  of MODULE/VERSION: see add and install",
			" 10  a build failed",
			" 13  a module of BUILD_DEPENDS is missing, failed or was skipped, or they go in a circle",
			" 21  a kernel's headers can't be found, fetched or trusted",
			" 22  the registry of --push, or of the module, can't be reached or refuses",
			" 23  the module's registry has none for that kernel, and there is no source",
			" 30 to 36  the test of --test failed; see test",
			" 77  every kernel was skipped (BUILD_EXCLUSIVE in dkms.conf)",
			"130  interrupted", "", "With several failures, the lowest of their codes."),
		Example: `  godkms-hermetic build . --kernels debian/bookworm:6.1.0-56-amd64,debian/trixie:latest
  godkms-hermetic build v4l2loopback-dkms_0.12.7-2_all.deb --kernels 'debian/bookworm:6.1.*-amd64' --out modules
  godkms-hermetic build . --kernels 6.5.0-14-generic,6.8.0-31-generic
  godkms-hermetic build . --kernels 'rocky/9:latest=3,debian/*:latest@*,!*-rt-*'
  godkms-hermetic build . --kernels @kernels.txt --with libxtables-dev --format json
  godkms-hermetic build zfs --depends /usr/src --kernels debian/trixie:latest
  godkms-hermetic build . --lock godkms.lock --out modules
  godkms-hermetic build hello/1.0 -k 6.1.0-56-amd64
  godkms-hermetic build . --kernels 'debian/trixie:*' --cache-from registry.example/cache --cache-to registry.example/cache
  godkms-hermetic build . --kernels 'debian/bookworm:*' --shard 2/4 --report junit=report.xml,html=report.html
  godkms-hermetic build . --kernels debian/bookworm:latest --test`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if test {
				o.trial = new(defaultTrial())
			}
			if h.isFor(args) {
				if o.lock != "" {
					return errors.New("--lock is for sources, not for MODULE/VERSION")
				}
				if !cmd.Flags().Changed("out") {
					o.out = ""
				}
				return a.runHostBuild(cmd.Context(), h, o, args)
			}
			for _, name := range []string{"root", "arch", "all", "force"} {
				if cmd.Flags().Changed(name) {
					return fmt.Errorf("--%s is for the modules of a host: name one as MODULE/VERSION", name)
				}
			}
			return a.runBuild(cmd.Context(), o, sourcesOf(args))
		},
	}
	o.flags(a, cmd)
	h.moduleFlags(cmd)
	h.archFlags(cmd)
	f := cmd.Flags()
	h.forceFlag(f, "build MODULE/VERSION again, although it's built")
	f.StringVar(&o.out, "out", "out", "`DIR` for modules and logs; for MODULE/VERSION there is none by default")
	f.BoolVar(&o.noCache, "no-cache", false, "build what is cached too, and fail where a byte of the result differs")
	f.DurationVar(&o.timeout, "timeout", 0, "limit for each kernel's build, as in 10m (default none)")
	f.StringVar(&o.memory, "memory", "", "limit for each kernel's build, as in 2G; 0 is none (default three quarters of this machine's memory)")
	f.StringVar(&o.shard, "shard", "", "build just one part of the kernels, `N/SHARDS`, as in 2/4 (default all)")
	f.StringVar(&o.push, "push", "", "push what was built to `REF`, a repository; {module} in it is the module's name")
	f.BoolVar(&test, "test", false, "load the modules in a virtual machine with their kernel, as the command test; what fails is not put into DIR, nor pushed")
	cmd.ValidArgsFunction = h.completeSources()
	return cmd
}

// flags are those of commands that build sources for kernels.
func (o *buildOptions) flags(a *app, cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVarP(&o.kernels, "kernels", "k", nil, "`KERNELS` to build for; required, but for --lock and MODULE/VERSION")
	f.StringVar(&o.lock, "lock", "", "`FILE` of the command lock, whose kernels are built for with its packages and no others")
	f.StringVar(&o.engine, "engine", o.engine, "what runs the build: sandbox, docker, or auto, the first of them that works here")
	f.IntVarP(&o.jobs, "jobs", "j", o.jobs, "processes at a time, over all kernels")
	f.StringSliceVar(&o.with, "with", nil, "extra `PACKAGES` for the build root, of the kernel's distribution")
	a.compilerFlag(f)
	o.input.flags(f)
	o.headers.flags(f)
	o.shared.flags(f)
	f.StringArrayVar(&o.depends, "depends", nil, "`DIR` with the sources of modules that BUILD_DEPENDS names; can be repeated")
	f.StringSliceVar(&o.reports, "report", nil, "write a report, `FORM=FILE`, where FORM is junit, markdown or html; several with commas, or repeated")
	cmd.RegisterFlagCompletionFunc("engine", cobra.FixedCompletions(engineNames, cobra.ShellCompDirectiveNoFileComp))
	cmd.RegisterFlagCompletionFunc("kernels", a.completeKernels)
	cmd.RegisterFlagCompletionFunc("report", completeReports)
	cmd.MarkFlagsMutuallyExclusive("lock", "compiler")
}

// target is one kernel of the request. Its err, if any, is why there is nothing to build for.
type target struct {
	label    string
	kernel   kernels.Kernel
	archived bool             // its lock is that of a header image in a registry
	asked    kernels.Selector // that it's the answer to, where err is set
	err      error
}

// sourcesOf are the sources that were named, or the current folder.
func sourcesOf(args []string) []string {
	if len(args) == 0 {
		return []string{"."}
	}
	return args
}

func (a *app) runBuild(ctx context.Context, o buildOptions, sources []string) error {
	if err := writable(o.out); err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	r, err := a.newRun(o)
	if err != nil {
		return err
	}
	defer r.close()
	targets, err := r.plan(ctx, sources)
	if err != nil {
		return err
	}
	return r.run(ctx, targets)
}

// plan opens the caches and the sources, and finds the kernels of the request, or of its shard.
func (r *buildRun) plan(ctx context.Context, sources []string) ([]target, error) {
	o := r.options
	if o.lock == "" && !slices.ContainsFunc(o.kernels, func(s string) bool { return strings.TrimSpace(s) != "" }) {
		return nil, errors.New("no kernel given; use --kernels, as in --kernels debian/trixie:latest ('godkms-hermetic kernels debian/trixie' lists them), or --lock")
	}
	find, err := r.finder(o.lock, o.kernels)
	if err != nil {
		return nil, err
	}
	if err := r.open(); err != nil {
		return nil, err
	}
	exclude := append([]string{o.out, filepath.Dir(r.builder.Temp)}, // any may lie in the source, or be it
		layoutDirs(append([]string{o.push, o.headers.repo, o.shared.to}, o.shared.from...)...)...)
	if o.lock != "" {
		exclude = append(exclude, o.lock)
	}
	for _, suite := range r.suites() {
		exclude = append(exclude, filepath.Join(o.out, strings.Replace(suite, "/", "-", 1)))
	}
	for _, f := range r.reports {
		exclude = append(exclude, f.path, partialOf(f.path))
	}
	from := builder.SourceOptions{Temp: r.builder.Temp, Exclude: exclude, Open: r.distros["debian"].Open}
	if r.units, err = openUnits(ctx, sources, o.depends, r.options.input, from); err != nil {
		return nil, err
	}
	if o.push != "" {
		if r.targets, err = r.pushTargets(o.push, r.units); err != nil {
			return nil, err
		}
	}
	targets, err := find(ctx)
	if err != nil {
		return nil, err
	}
	part := r.shard.take(targets)
	if len(part) == 0 && r.shard.of > 0 {
		r.board.Print(fmt.Sprintf("--shard %s: there is nothing to build, as the kernels are fewer: %d", r.shard, len(targets)))
	}
	return part, r.trials.ready(ctx, part)
}

// finder reads the kernels of a request, and the lock file that has them if one is named, and gives what finds them. Nothing is opened yet.
func (r *buildRun) finder(lock string, list []string) (func(context.Context) ([]target, error), error) {
	if lock != "" {
		distros, file, err := r.useLock(lock, r.distros)
		if err != nil {
			return nil, err
		}
		r.distros, r.locked = distros, lock
		targets, err := lockedTargets(lock, file, list)
		return func(context.Context) ([]target, error) { return targets, nil }, err
	}
	selectors, err := parseSelectors(r.distros, list)
	return func(ctx context.Context) ([]target, error) {
		targets, err := r.resolve(ctx, r.distros, selectors)
		if err != nil {
			return nil, err
		}
		found, err := r.archived(ctx, r.headers.remote, selectors, targets)
		switch {
		case err == nil:
			return found, nil
		case ctx.Err() != nil:
			return nil, err
		}
		r.board.Warn(fmt.Sprintf("--images: %v", err))
		return targets, nil
	}, err
}

// newRun makes a run of options that are about builds. Nothing is opened yet.
func (a *app) newRun(o buildOptions) (*buildRun, error) {
	switch {
	case o.jobs < 1:
		return nil, fmt.Errorf("--jobs is %d: it must be at least 1", o.jobs)
	case o.timeout < 0:
		return nil, fmt.Errorf("--timeout is %s: it must not be negative", o.timeout)
	case !slices.Contains(engineNames, o.engine):
		return nil, fmt.Errorf("--engine is %q: it can be %s", o.engine, strings.Join(engineNames, ", "))
	}
	remote, err := a.headersRemote(o.headers)
	if err != nil {
		return nil, err
	}
	memory, err := parseMemory(o.memory)
	if err != nil {
		return nil, fmt.Errorf("--memory: %w", err)
	}
	if err := o.input.read(); err != nil {
		return nil, err
	}
	part, err := parseShard(o.shard)
	if err != nil {
		return nil, err
	}
	reports, err := parseReports(o.reports)
	if err != nil {
		return nil, err
	}
	distros, err := a.distros()
	if err != nil {
		return nil, err
	}
	r := &buildRun{app: a, options: o, distros: distros, shard: part, reports: reports, began: time.Now()}
	r.handOut, r.print = r.toOut, ui.PrintText
	if o.trial != nil {
		if r.trials, err = a.newTrials(*o.trial); err != nil {
			return nil, err
		}
		r.trials.image, r.trials.kernel, r.trials.headers, r.trials.reuse = r.image, r.kernel, r.headersRoot, true
	}
	r.headers.remote = remote
	r.engine = engineOf{name: o.engine, note: a.board.Print}
	r.builder = &builder.Builder{
		RootVersion: images.Version, Timeout: o.timeout, Memory: memory, Verify: o.noCache,
		Engine: r.engine.get,
		Root:   r.root,
	}
	return r, nil
}

// open opens the caches.
func (r *buildRun) open() error {
	temp, err := r.temp()
	if err != nil {
		return err
	}
	shared, err := r.shared(r.options.shared, temp)
	if err != nil {
		return err
	}
	results, err := r.results()
	if err != nil {
		return err
	}
	r.caches, r.tests = shared.refs, results
	r.builder.Temp, r.builder.Results, r.builder.Remotes, r.builder.Share = temp, results, shared.from, shared.to
	return nil
}

func (r *buildRun) close() {
	r.units.close()
	r.engine.close()
}

// buildRun is one run of the build command.
type buildRun struct {
	*app
	options buildOptions
	distros map[string]kernels.Provider
	units   units
	locked  string // the lock file that distros answer from; empty: they read indexes
	jobs    int    // builds at a time
	builder *builder.Builder
	engine  engineOf
	partial partialDir
	targets map[string]*registry.Repo // of --push, by module
	caches  []registry.Reference      // that machines share
	headers headerUse
	shard   shard
	reports []reportFile
	began   time.Time

	trials *trials    // nil: nothing is tried
	tests  *cache.Dir // that has what is built, and what came of tests

	// print prints the results as text.
	print func(io.Writer, []ui.Result) error
	// handOut puts what was built to where it is wanted. It gives the modules there, and the log.
	handOut func(context.Context, *cell, builder.Result) ([]ui.Module, string, error)
	// have gives what needn't be built; nil: all is to be.
	have func(unit, target) (b builder.Result, found bool)

	once   sync.Once // opens the store of header images, which a run that finds all in the cache does not need
	store  *images.Store
	failed error
}

// images is the store of header images and kernels.
func (r *buildRun) images() (*images.Store, error) {
	r.once.Do(func() { r.store, r.failed = r.imagesOf(r.distros, r.options.jobs, r.headers.remote) })
	return r.store, r.failed
}

// image pins the kernel whose headers a lock has.
func (r *buildRun) image(ctx context.Context, lock kernels.Lock) (kernels.Image, error) {
	provider, ok := r.distros[lock.Kernel.Distro]
	if !ok {
		return kernels.Image{}, fmt.Errorf("there are no packages of %q: known are %s", lock.Kernel.Distro, strings.Join(slices.Sorted(maps.Keys(r.distros)), ", "))
	}
	return provider.Image(ctx, lock)
}

// kernel gets a kernel that boots, and its modules.
func (r *buildRun) kernel(ctx context.Context, img kernels.Image, progress images.Progress) (*images.Kernel, error) {
	store, err := r.images()
	if err != nil {
		return nil, err
	}
	return store.Kernel(ctx, img, progress)
}

func (r *buildRun) root(ctx context.Context, l kernels.Lock, progress images.Progress) (builder.Root, error) {
	root, err := r.headersRoot(ctx, l, progress)
	if err != nil {
		return nil, err
	}
	return root, nil
}

func (r *buildRun) headersRoot(ctx context.Context, l kernels.Lock, progress images.Progress) (*images.Root, error) {
	store, err := r.images()
	if err != nil {
		return nil, err
	}
	root, err := store.Root(ctx, l, progress)
	if r.locked != "" && errors.As(err, new(*images.PackageError)) && !errors.Is(err, images.ErrOffline) {
		err = fmt.Errorf("%w; %s can be renewed with 'godkms-hermetic lock --update'", err, r.locked)
	}
	if err != nil {
		return nil, err
	}
	r.headers.used(l)
	return root, nil
}

// progress shows on a line how far the assembly of a root is. Downloads and unpacking overlap: the line shows the downloads as
// long as there are any.
func progress(line *ui.Line) func(phase string, done, total int64) {
	downloading := false
	return func(phase string, done, total int64) {
		if phase == "download" {
			downloading = done < total
		} else if downloading || done == 0 {
			return
		}
		line.Phase(phase)
		line.Bytes(done, total)
	}
}

// cell is one source for one kernel.
type cell struct {
	unit
	target
	title  string // for people: the kernel, and the source if there are several
	line   *ui.Line
	report ui.Result
	lock   []byte         // in its canonical form
	code   int            // exit code that a failure of it stands for
	had    bool           // result was there before
	result builder.Result // to be read when done is closed
	done   chan struct{}
}

// builds builds every source for every target. One's failure stops no other, but for those that depend on it. The cells are kernel by
// kernel, in the request's order.
func (r *buildRun) builds(ctx context.Context, targets []target) []*cell {
	n := len(r.units)
	r.jobs = max(1, min(r.options.jobs, len(targets)*n))
	r.builder.Jobs = max(1, r.options.jobs/r.jobs)
	cells := make([]*cell, n*len(targets))
	for i := range cells {
		u, t := r.units[i%n], targets[i/n]
		c := &cell{unit: u, target: t, title: t.label, done: make(chan struct{})}
		cells[i] = c
		if r.have != nil {
			if c.result, c.had = r.have(u, t); c.had {
				close(c.done)
				continue
			}
		}
		if n > 1 || r.have != nil {
			c.title += " " + u.name()
		}
		c.line = r.board.Line(c.title)
		if err := cmp.Or(t.err, u.err); err != nil { // known before any work, and said so
			c.line.End(ui.Failed, err.Error())
		}
	}
	slots := make(chan struct{}, r.jobs)
	order := r.units.order()
	var all sync.WaitGroup
	for t := range targets {
		row := cells[t*n : (t+1)*n]
		for _, i := range order {
			c := row[i]
			if c.had {
				continue
			}
			release := sync.OnceFunc(func() { <-slots })
			if len(c.needs) == 0 {
				slots <- struct{}{} // in the request's order
			}
			all.Go(func() {
				for _, need := range c.needs {
					<-row[need].done
				}
				if len(c.needs) > 0 {
					slots <- struct{}{}
				}
				defer release()
				r.one(ctx, c, row, release)
			})
		}
	}
	all.Wait()
	return cells
}

// run builds every source for every target and reports in the request's order.
func (r *buildRun) run(ctx context.Context, targets []target) error {
	cells := r.builds(ctx, targets)
	if r.options.headers.push {
		r.pushHeaders(ctx)
	}
	var pushed error
	if ctx.Err() == nil {
		pushed = r.push(ctx, cells)
	}
	reports, codes := make([]ui.Result, len(cells)), make([]int, len(cells))
	for i, c := range cells {
		reports[i], codes[i] = c.report, c.code
	}
	return r.conclude(ctx, reports, codes, pushed)
}

// conclude writes the reports, prints the results and gives the error that they and a push come to.
func (r *buildRun) conclude(ctx context.Context, reports []ui.Result, codes []int, pushed error) error {
	err := outcome(reports, codes)
	built := (*exitError)(nil)
	if errors.As(err, &built) && pushed != nil && built.code != exitSkipped && built.code <= codeOf(pushed) && ctx.Err() == nil {
		r.board.Warn("--push: " + pushed.Error())
		pushed = nil
	}
	reported := r.report(ctx, reports)
	if reported != nil && err != nil { // whose exit code counts
		r.board.Warn(reported.Error())
		reported = nil
	}
	r.board.Close()

	print := r.print
	if r.json() {
		print = ui.PrintJSON
	}
	if err := print(r.stdout, reports); err != nil {
		return err
	}
	if reported != nil {
		return reported
	}
	if pushed != nil {
		return pushed
	}
	if r.engine.err != nil && built != nil { // the ways out are the same for all kernels
		return &exitError{code: built.code, err: r.engine.err}
	}
	return err
}

// outcome is the error, with the exit code, that the results of a run come to.
func outcome(reports []ui.Result, codes []int) error {
	lowest, failures, skips := 0, 0, 0
	for i, r := range reports {
		switch r.Status {
		case ui.Failed:
			failures++
			if lowest == 0 || codes[i] < lowest {
				lowest = codes[i]
			}
		case ui.Skipped:
			skips++
		}
	}
	switch {
	case failures > 0:
		return &exitError{code: lowest, err: fmt.Errorf("%d of %d builds failed", failures, len(reports)), silent: true}
	case skips > 0 && skips == len(reports):
		return &exitError{code: exitSkipped, err: errors.New("every kernel was skipped"), silent: true}
	}
	return nil
}

// one builds a cell, whose needs among the cells of its kernel are done, and calls built once there is nothing left to compute.
func (r *buildRun) one(ctx context.Context, c *cell, row []*cell, built func()) {
	start := time.Now()
	finish := sync.OnceFunc(func() { close(c.done) })
	defer finish()
	c.report = ui.Result{Module: c.source.Module, Version: c.source.Version,
		Kernel: c.label, Distro: c.kernel.Distro, Suite: c.kernel.Suite, Release: c.kernel.Release}
	report, line := &c.report, c.line
	fail := func(err error, code int) {
		if ctx.Err() != nil {
			err = errInterrupted
		}
		first, _, _ := strings.Cut(err.Error(), "\n")
		report.Status, report.Reason, report.Seconds = ui.Failed, first, time.Since(start).Seconds()
		line.End(ui.Failed, err.Error())
		c.code = code
	}
	c.result.Status = builder.Failed
	if c.target.err != nil {
		line = nil // it has ended
		fail(c.target.err, lockCode(c.target.err))
		c.result.Reason = report.Reason
		return
	}
	if c.unit.err != nil {
		line = nil
		fail(c.unit.err, codeOf(c.unit.err))
		c.result.Reason = report.Reason
		return
	}
	line.Phase("locking")
	lock, err := r.lock(ctx, c.target, extraOf(c.source, r.options.with))
	if err != nil {
		fail(r.advise(askedBy(c.source, r.options.with, err)), lockCode(err))
		c.result.Reason = report.Reason
		return
	}
	c.lock = lock.Encode()
	job := r.options.input.of(c.source, lock)
	if !c.named {
		job.Directives = nil
	}
	for _, i := range c.needs {
		job.Depends = append(job.Depends, builder.Dependency{Source: row[i].source, Result: row[i].result})
	}
	watch := builder.Watch{Phase: line.Phase, Progress: progress(line), Warn: func(text string) { r.board.Warn(c.title + ": " + text) }}
	if r.verbose {
		watch.Log = line.Log()
	}
	b := r.builder.Build(ctx, job, watch)
	built()
	c.result = b
	if b.Status != builder.Failed { // else the reason is not known yet as well as it will be
		finish()
	}
	report.Key, report.Reason, report.Compiler = b.Key.String(), b.Reason, lock.Compiler
	report.Status, report.Seconds, report.Cache = ui.Status(b.Status), b.Seconds, b.From
	switch b.Status {
	case builder.Failed:
		report.Log, report.DKMSCode = b.LogPath, builder.DKMSCode(b.Err)
		if ctx.Err() != nil {
			fail(b.Err, exitBuild)
			return
		}
		if errors.As(b.Err, new(*builder.UnavailableError)) {
			report.Reason, report.Log = causes(b.Err), ""
			if r.engine.refused() { // the ways out are said once, at the end
				line.End(ui.Failed, report.Reason)
			} else { // it went away since
				line.End(ui.Failed, b.Err.Error())
			}
			c.code = exitUsage
			return
		}
		code := failureCode(b.Err)
		if code != exitBuild || len(b.Log) == 0 {
			fail(r.advise(b.Err), code)
			return
		}
		f := r.explain(c, b)
		report.Reason, report.Why, report.Hint = f.reason, f.Why, r.hint(ctx, c, lock, f.Missing)
		report.First, report.Tail = f.First, f.Tail
		f.Hint = report.Hint
		line.End(ui.Failed, b.Err.Error())
		r.board.Fail(c.title, f.Failure, b.LogPath)
		c.code, c.result.Reason = code, report.Reason
		return
	case builder.Skipped:
		report.DKMSCode = exitSkipped
		line.End(ui.Skipped, b.Reason)
		return
	}
	report.Digest = b.Digest.String()
	if r.trials != nil && c.named {
		s := subject{title: c.title, kernel: c.kernel, lock: lock, files: b.Files, key: b.Key, digest: b.Digest, results: r.tests}
		for _, i := range c.needs {
			s.needs = append(s.needs, row[i].result.Files...)
		}
		if c.code = r.trials.test(ctx, s, line, report); c.code != 0 {
			return
		}
	}
	if report.Modules, report.Log, err = r.handOut(ctx, c, b); err != nil {
		report.Digest, report.Modules, report.Log = "", nil, ""
		fail(err, failureCode(err))
		return
	}
	detail := ""
	if b.From != "" && b.From != builder.Local {
		detail = "from " + b.From
	}
	line.End(report.Status, detail)
}

var errInterrupted = errors.New(ui.Interruption)

// failure is why a build failed, with the reason in one line.
type failure struct {
	ui.Failure
	reason string
}

// explain reads why a build failed from its log.
func (r *buildRun) explain(c *cell, b builder.Result) failure {
	f, err := ui.ReadFailure(bytes.NewReader(b.Log))
	if err != nil {
		return failure{ui.Failure{First: b.Reason}, b.Reason}
	}
	all := f.Tail
	f, reason := ui.Failure{First: b.Reason}, b.Reason
	step := (*builder.StepError)(nil)
	switch {
	case errors.As(b.Err, new(*builder.MemoryError)):
		f.Why = "out of memory"
	case errors.As(b.Err, new(*builder.TimeoutError)):
		f.Why = "the time limit of --timeout was reached"
	case errors.As(b.Err, &step):
		_, log, _ := bytes.Cut(b.Log, []byte("\n# "+step.Step+"\n")) // what other steps and the dkms.conf said is not why
		made, hidden := hiddenFailure(b.Log, step)
		if hidden {
			log, reason = made, "make failed, and the dkms.conf's MAKE hides that"
		}
		if f, err = ui.ReadFailure(bytes.NewReader(log)); err != nil || f.First == "" {
			f = ui.Failure{First: b.Reason}
			break
		}
		f.First = strings.ReplaceAll(f.First, dkms.Target{Module: c.source.Module, Version: c.source.Version}.Build()+"/", "")
		if step.Output != "" && !hidden { // the reason has the step's own words
			f.First = b.Reason
			break
		}
		if f.Why != "" {
			reason += ": " + f.Why
		}
		reason += ": " + f.First
	}
	f.Tail = all
	return failure{f, reason}
}

var makeStopped = regexp.MustCompile(`(?m)^make(\[\d+\])?: \*\*\* `)

// hiddenFailure gives the log of a make that failed where only missing modules say so, as after MAKE="make modules; true".
func hiddenFailure(log []byte, step *builder.StepError) ([]byte, bool) {
	_, log, _ = bytes.Cut(log, []byte("\n# make\n"))
	log, _, found := bytes.Cut(log, []byte("\n# collecting the modules\n"))
	return log, found && step.Step == "collecting the modules" && makeStopped.Match(log)
}

// toOut writes the modules and the log to their folder below out.
func (r *buildRun) toOut(ctx context.Context, c *cell, b builder.Result) (modules []ui.Module, log string, err error) {
	dir := folderOf(r.options.out, c.kernel)
	if len(r.units) > 1 {
		dir = filepath.Join(dir, c.source.Module+"-"+c.source.Version)
	}
	if modules, err = handOut(ctx, &r.partial, r.options.out, dir, b.Files, map[string][]byte{buildLog: b.Log}); err != nil {
		return nil, "", fmt.Errorf("write the modules: %w; see to it or choose another folder with --out", err)
	}
	return modules, filepath.Join(dir, buildLog), nil
}

// writable says whether a folder can be made or written to, without making it: a run that fails leaves none.
func writable(dir string) error {
	if dir == "" {
		return errors.New("no folder given")
	}
	at, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	for {
		info, err := os.Stat(at)
		if errors.Is(err, os.ErrNotExist) && at != filepath.Dir(at) {
			at = filepath.Dir(at)
			continue
		}
		if err != nil {
			return err
		}
		if !info.IsDir() {
			return fmt.Errorf("%q is not a folder", at)
		}
		if err := unix.Access(at, unix.W_OK|unix.X_OK); err != nil {
			return fmt.Errorf("%q can't be written to: %w", at, err)
		}
		return nil
	}
}
