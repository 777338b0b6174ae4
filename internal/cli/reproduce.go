package cli

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/builder/dkms"
	"github.com/godkms-hermetic/godkms-hermetic/cache"
	"github.com/godkms-hermetic/godkms-hermetic/images"
	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// reproduceOptions say what is rebuilt, and how.
type reproduceOptions struct {
	kernels []string // of a reference
	arch    string
	build   buildOptions // engine, images, timeout, memory and depends
}

func (a *app) reproduceCommand() *cobra.Command {
	o := reproduceOptions{build: defaultBuild()}
	cmd := &cobra.Command{
		Use:   "reproduce KEY|REF [SRC]",
		Short: "Build again from what was recorded, elsewhere as it were, and compare",
		Long: `Builds again what was built before, from the inputs that were recorded with it, and compares every byte. KEY is the key
of a result in the cache, or its digest, as build and 'cache ls' print it; 8 digits are enough where there is one such only.

` + referenceHelp + `

Recorded are the packages of the build root, the overrides and directives of dkms.conf, the keys of what BUILD_DEPENDS names,
and the digest of the source. The source itself is not: it is SRC, by default the current folder if it has that module and
version, else /usr/src/MODULE-VERSION. Another source than the recorded one isn't built. The modules that BUILD_DEPENDS names
are taken from the cache, and their sources from --depends, else from /usr/src.

The build has other surroundings than the recorded one:

  user        nobody, in place of build
  host name   another one
  clock       that has gone on; date and __DATE__ say the same in every build
  processors  one less than there are, and another -j
  engine      Docker, where build would take the sandbox and a Docker Engine answers; --engine sets it

The folder stays the same: a build sees dkms's own, /var/lib/dkms/MODULE/VERSION/build, which modules may name, and none of
this machine's. So do the values that every build is given, such as KBUILD_BUILD_USER and SOURCE_DATE_EPOCH.

Where bytes differ, it prints in which sections of the modules, from which byte on, with the bytes and texts of both, and
builds once more in the surroundings of every build. That tells why: the module depends on its surroundings; or no two builds
are the same; or these two are, and what is recorded was altered or made of something else. Nothing is stored.` + exitStatus(
			"  0  the same bytes came out",
			"  1  the command line is wrong, there is no such result, the source is another one, or no engine works",
			" 10  the build failed",
			" 13  a module of BUILD_DEPENDS is missing",
			" 21  the kernel's headers can't be found, fetched or trusted",
			" 22  the registry can't be reached, refuses, or has something that was altered",
			" 23  the registry has no such module, or none for that kernel",
			" 37  other bytes came out",
			"130  interrupted"),
		Example: `  godkms-hermetic reproduce 4f2a90c1 hello
  godkms-hermetic reproduce registry.example/modules/hello:1.0 hello --kernel debian/bookworm:6.1.0-56-amd64
  godkms-hermetic reproduce oci:out/layout hello-1.0.tar.gz --engine sandbox --format json`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.arch = kernels.ArchOf(o.arch)
			src := ""
			if len(args) == 2 {
				src = args[1]
			}
			return a.runReproduce(cmd.Context(), args[0], src, o)
		},
		ValidArgsFunction: completeReference(cobra.ShellCompDirectiveDefault),
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.kernels, "kernel", nil, "`KERNEL` of a reference, [DISTRO/SUITE:]RELEASE; may be left away where there is one only")
	f.StringVar(&o.arch, "arch", kernels.HostArch(), "architecture of a reference, as Debian names it or uname -m")
	f.StringVar(&o.build.engine, "engine", o.build.engine, "what runs the build: sandbox, docker, or auto, another one than build takes, if there is")
	f.StringArrayVar(&o.build.depends, "depends", nil, "`DIR` with the sources of modules that BUILD_DEPENDS names; can be repeated")
	f.StringVar(&o.build.headers.repo, "images", "", "repository of header images, `REPO` of a registry or oci:DIR, to take them from (default none)")
	f.DurationVar(&o.build.timeout, "timeout", 0, "limit for each build, as in 10m (default none)")
	f.StringVar(&o.build.memory, "memory", "", "limit for each build, as in 2G; 0 is none (default three quarters of this machine's memory)")
	cmd.RegisterFlagCompletionFunc("engine", cobra.FixedCompletions(engineNames, cobra.ShellCompDirectiveNoFileComp))
	for _, name := range []string{"kernel", "arch"} {
		cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	cmd.MarkFlagDirname("depends")
	return cmd
}

// A record is a result that was built before, and what is known of how.
type record struct {
	builder.Result
	lock    []byte
	created time.Time // when it was stored or pushed; zero if that isn't known
}

// keyForm is that of a key or digest, or of its beginning.
var keyForm = regexp.MustCompile(`^(sha256:)?([0-9a-f]{8,64})$`)

// A surrounding is what a build sees of where it runs.
type surrounding struct {
	What string `json:"what"`
	From string `json:"from"`          // of the recorded build: where it isn't known, what builds have here
	To   string `json:"to"`            // of this build
	Why  string `json:"why,omitempty"` // it's the same
}

// Why bytes differ.
const (
	causeSurroundings = "surroundings" // a build in those that every build has gives what is recorded
	causeUnstable     = "unstable"     // no two builds are the same
	causeRecord       = "record"       // all builds are the same, and not what is recorded
)

// reproduction is what reproduce prints as JSON.
type reproduction struct {
	Module      string             `json:"module"`
	Version     string             `json:"version"`
	Kernel      string             `json:"kernel"`
	Key         string             `json:"key"`
	Recorded    string             `json:"recorded"` // digest of the artifact
	Rebuilt     string             `json:"rebuilt"`
	Reproduced  bool               `json:"reproduced"`
	Cause       string             `json:"cause,omitempty"`
	Skipped     string             `json:"skipped,omitempty"` // why both have no modules
	Varied      []surrounding      `json:"varied"`
	Same        []surrounding      `json:"same"`
	Differences []reproducedChange `json:"differences"`
	Modules     []reproducedModule `json:"modules"`
	Seconds     float64            `json:"seconds"`
}

type reproducedModule struct {
	Name   string `json:"name"`
	Digest string `json:"digest"` // as it's recorded
}

type reproducedChange struct {
	Name     string           `json:"name"`
	Recorded string           `json:"recorded"`
	Rebuilt  string           `json:"rebuilt"`
	Sizes    [2]int64         `json:"sizes"` // bytes, as recorded and rebuilt; 0 of what is no file
	Parts    []reproducedPart `json:"parts"`
}

type reproducedPart struct {
	Part     string    `json:"part"`
	Sizes    [2]int64  `json:"sizes"`  // bytes; -1: it isn't there
	Offset   int64     `json:"offset"` // of the first byte that differs, in the part; -1: none does
	Count    int64     `json:"count"`  // of bytes that differ
	Hash     bool      `json:"hash"`   // over the rest of the module: it differs where anything does
	Bytes    [2]string `json:"bytes"`  // from there on, hexadecimal
	Recorded []string  `json:"recorded"`
	Rebuilt  []string  `json:"rebuilt"` // texts that only one of them has
}

func (a *app) runReproduce(ctx context.Context, what, src string, o reproduceOptions) error {
	began := time.Now()
	r, err := a.newRun(o.build)
	if err != nil {
		return err
	}
	defer r.close()
	if err := r.open(); err != nil {
		return err
	}
	temp, err := durable.NewTemp(filepath.Join(r.builder.Temp, "pull"))
	if err != nil {
		return err
	}
	defer temp.Close()
	var rec record
	switch {
	case keyForm.MatchString(what):
		rec, err = r.storedRecord(ctx, what)
	case !strings.Contains(what, "/") && !strings.HasPrefix(what, registry.Layout):
		err = fmt.Errorf("%q is neither a key or digest, of which 8 digits are the least, nor a reference, as HOST/REPOSITORY or oci:DIR", what)
	default:
		rec, err = r.pushedRecord(ctx, what, o, temp.Dir)
	}
	if err != nil {
		return err
	}
	job, err := r.jobOf(ctx, rec, src, layoutDirs(what))
	if err != nil {
		return err
	}
	r.builder.Root = r.rootOfRecord
	varied, same, err := r.vary(ctx, rec, o.build.engine)
	if err != nil {
		return err
	}
	now, free, err := r.rebuild(ctx, job, r.builder)
	defer free()
	if err != nil {
		return err
	}
	changes, err := builder.Compare(rec.Result, now, r.builder.Temp)
	if err != nil {
		return err
	}
	out := reproduction{
		Skipped: rec.Meta.Reason,
		Module:  rec.Meta.Module, Version: rec.Meta.Version, Kernel: kernelOf(rec.Meta).String(), Key: rec.Key.String(),
		Recorded: rec.Digest.String(), Rebuilt: now.Digest.String(), Reproduced: len(changes) == 0, Varied: varied, Same: same,
		Differences: changesOf(changes), Modules: []reproducedModule{},
	}
	for _, f := range rec.Files {
		out.Modules = append(out.Modules, reproducedModule{f.Name, f.Digest.String()})
	}
	if !out.Reproduced {
		if out.Cause, err = r.cause(ctx, job, rec.Result, now); err != nil {
			return err
		}
	}
	out.Seconds = time.Since(began).Seconds()
	a.board.Close()
	if a.json() {
		err = ui.WriteJSON(a.stdout, out)
	} else {
		_, err = a.stdout.Write([]byte(out.text()))
	}
	if err == nil && !out.Reproduced {
		err = &exitError{code: exitDiffers, err: errors.New("other bytes came out than are recorded"), silent: true}
	}
	return err
}

// storedResult finds a result of a cache by its key or digest, or by how one of them begins.
func storedResult(ctx context.Context, results *cache.Dir, what string) (cache.Info, error) {
	m := keyForm.FindStringSubmatch(what)
	if m == nil {
		return cache.Info{}, fmt.Errorf("%q is no key or digest, of which 8 digits are the least", what)
	}
	infos, err := results.List(ctx)
	if err != nil {
		return cache.Info{}, err
	}
	infos = slices.DeleteFunc(infos, func(i cache.Info) bool {
		return !strings.HasPrefix(i.Key.Hex, m[2]) && !strings.HasPrefix(i.Digest.Hex, m[2])
	})
	switch len(infos) {
	case 0:
		return cache.Info{}, fmt.Errorf("no result in the cache has the key or the digest %q; 'cache ls --format json' lists them", what)
	case 1:
		return infos[0], nil
	}
	return cache.Info{}, fmt.Errorf("%q is the beginning of the keys or digests of %d results in the cache; give more digits of it", what, len(infos))
}

// storedRecord finds a result of the cache, as storedResult does.
func (r *buildRun) storedRecord(ctx context.Context, what string) (rec record, err error) {
	results, err := r.results()
	if err != nil {
		return rec, err
	}
	info, err := storedResult(ctx, results, what)
	if err != nil {
		return rec, err
	}
	e, err := results.Get(ctx, info.Key)
	if err != nil {
		return rec, err
	}
	if rec.Result, err = resultOf(e); err != nil {
		return rec, fmt.Errorf("cache: %w", err)
	}
	rec.lock, rec.created = e.Lock, info.Created
	if rec.Key != info.Key {
		return rec, fmt.Errorf("cache: what it has for key %s says that its key is %s: it was altered", info.Key, rec.Key)
	}
	return rec, nil
}

// pushedRecord reads an artifact of a registry, and downloads it to a folder.
func (r *buildRun) pushedRecord(ctx context.Context, text string, o reproduceOptions, dir string) (rec record, err error) {
	selectors, err := listSelectors(o.kernels)
	if err != nil {
		return rec, err
	}
	client, repo, ref, err := r.app.open(text)
	if err != nil {
		return rec, err
	}
	e, err := chooseOne(ctx, repo, ref, selectors, o.arch)
	if err != nil {
		return rec, err
	}
	line := r.board.Line(kernelOf(e.Meta).String())
	line.Phase("pulling")
	fail := func(err error) (record, error) {
		err = registryError(fmt.Errorf("%s: %w", repo.Name(), err))
		line.End(ui.Failed, err.Error())
		return rec, err
	}
	img, err := client.Fetch(ctx, repo, e.Digest.String(), dir, line.Bytes)
	if err == nil {
		err = e.Check(img)
	}
	if err == nil {
		rec.Result, err = resultOf(cache.Entry{Image: img})
	}
	if err != nil {
		return fail(err)
	}
	with, err := artifact.ReadAttachmentsOf(ctx, repo, e.Digest, rec.Meta)
	if err != nil {
		return fail(err)
	}
	line.End(ui.Pulled, "")
	rec.lock, rec.created, rec.Inputs = with.Lock, with.Created, with.Inputs
	return rec, nil
}

// jobOf is the job that a record stands for. Inputs that aren't those that were recorded are an error.
func (r *buildRun) jobOf(ctx context.Context, rec record, src string, exclude []string) (job builder.Job, err error) {
	m := rec.Meta
	name := m.Module + "/" + m.Version
	if rec.lock == nil {
		return job, fmt.Errorf("the packages that %s was built with aren't recorded with it, only their digest, %s: an earlier version of this program built it, "+
			"or it was pushed without them", name, m.Lock)
	}
	if job.Lock, err = kernels.DecodeLock(rec.lock); err != nil {
		return job, fmt.Errorf("the recorded lock of %s: %w", name, err)
	}
	if job.Lock.Digest() != m.Lock || job.Lock.Kernel != kernelOf(m) {
		return job, fmt.Errorf("the recorded lock of %s is for %s and has the digest %s; it should be for %s and have %s", name,
			job.Lock.Kernel, job.Lock.Digest(), kernelOf(m), m.Lock)
	}
	if src == "" {
		src = usualSource(m.Module, m.Version)
	}
	if job.Source, err = r.recordedSource(ctx, src, m, exclude); err != nil {
		return job, err
	}
	inputs, conf := builder.Inputs{}, confInput{overrides: map[string][]byte{}}
	if rec.Inputs != nil {
		if inputs, err = builder.ReadInputs(rec.Inputs); err != nil {
			return job, err
		}
		for _, o := range inputs.Overrides {
			conf.overrides[o.Name], err = o.Text, cmp.Or(err, dkms.CheckOverride(o))
		}
		for _, d := range inputs.Directives {
			err = cmp.Or(err, dkms.CheckDirective(d))
		}
		if err != nil {
			return job, fmt.Errorf("the recorded inputs of %s: %w", name, err)
		}
		conf.directives = inputs.Directives
	}
	job = conf.of(job.Source, job.Lock)
	for _, d := range inputs.Depends {
		dep, err := r.dependency(ctx, d)
		if err != nil {
			return job, &exitError{code: exitDepends, err: err}
		}
		job.Depends = append(job.Depends, dep)
	}
	key := r.builder.Key(job)
	if key == rec.Key {
		return job, nil
	}
	switch now := r.builder.Inputs(job); {
	case rec.Inputs == nil:
		return job, fmt.Errorf("source and packages are those of %s, but their key is %s now, and not %s: another version of this program built it, "+
			"or one that didn't record overrides, directives and BUILD_DEPENDS", name, key, rec.Key)
	case now.Recipe != inputs.Recipe || now.RootVersion != inputs.RootVersion:
		return job, fmt.Errorf("%s was built by another version of this program (recipe %d, root %s); this one is %d, %s: build with that version", name,
			inputs.Recipe, inputs.RootVersion, now.Recipe, now.RootVersion)
	default:
		return job, fmt.Errorf("the recorded inputs of %s have the key %s, and not %s: they were altered", name, key, rec.Key)
	}
}

// usualSource is where the source of a module is looked for.
func usualSource(module, version string) string {
	if h, err := readHeader("dkms.conf"); err == nil && h.Name == module && h.Version == version {
		return "."
	}
	return dkms.Target{Module: module, Version: version}.Source()
}

// recordedSource opens a source that must be the one that a result was built of.
func (r *buildRun) recordedSource(ctx context.Context, src string, m artifact.Meta, exclude []string) (*builder.Source, error) {
	if _, err := os.Stat(src); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("source %q: it isn't there; give the source of %s/%s, whose digest is %s", src, m.Module, m.Version, m.Source)
	}
	source, err := r.openSource(ctx, src, exclude)
	if err != nil {
		return nil, err
	}
	if source.Digest != m.Source {
		source.Close()
		return nil, fmt.Errorf("source %q is another one than %s/%s was built of: it is %s/%s and has the digest %s, and not %s; give the source as it was then",
			src, m.Module, m.Version, source.Module, source.Version, source.Digest, m.Source)
	}
	r.units = append(r.units, unit{source: source, from: src}) // they are closed with the run
	return source, nil
}

// dependency finds a module that BUILD_DEPENDS names, by "MODULE VERSION KEY".
func (r *buildRun) dependency(ctx context.Context, text string) (d builder.Dependency, err error) {
	f := strings.Fields(text)
	if len(f) != 3 {
		return d, fmt.Errorf("BUILD_DEPENDS: %q is recorded, which is no module", text)
	}
	key, err := v1.NewHash(f[2])
	if err != nil {
		return d, fmt.Errorf("BUILD_DEPENDS %q: %w", f[0], err)
	}
	e, err := r.builder.Results.Get(ctx, key)
	if errors.Is(err, cache.ErrNotFound) {
		return d, fmt.Errorf("BUILD_DEPENDS %q: %s/%s was built then with the key %s, which isn't in the cache; build it first", f[0], f[0], f[1], key)
	}
	if err == nil {
		d.Result, err = resultOf(e)
	}
	if err == nil && (d.Result.Meta.Module != f[0] || d.Result.Meta.Version != f[1]) {
		err = fmt.Errorf("BUILD_DEPENDS %q: the cache has %s/%s for %s", f[0], d.Result.Meta.Module, d.Result.Meta.Version, key)
	}
	if err != nil {
		return d, err
	}
	if d.Result.Meta.Status == artifact.Skipped {
		d.Result.Status, d.Result.Reason = builder.Skipped, d.Result.Meta.Reason
	}
	src := usualSource(f[0], f[1])
	from := builder.SourceOptions{Temp: r.builder.Temp, Open: r.distros["debian"].Open}
	for _, dir := range r.options.depends {
		offers, err := offersOf(ctx, dir, from)
		if err != nil {
			return d, fmt.Errorf("--depends: %w", err)
		}
		if i := slices.IndexFunc(offers, func(o offer) bool { return o.module == f[0] }); i >= 0 {
			src = offers[i].from
			break
		}
	}
	d.Source, err = r.recordedSource(ctx, src, d.Result.Meta, nil)
	return d, err
}

// rootOfRecord is root for a lock without URLs: they are looked up where a package isn't there yet.
func (r *buildRun) rootOfRecord(ctx context.Context, l kernels.Lock, progress func(phase string, done, total int64)) (builder.Root, error) {
	root, err := r.root(ctx, l, progress)
	missing := (*images.PackageError)(nil)
	if !errors.As(err, &missing) || missing.Package.URL != "" || r.offline {
		return root, err
	}
	urls, lockErr := r.urlsOf(ctx, l)
	if lockErr != nil {
		return nil, fmt.Errorf("%w, nor do the indexes: %w", err, lockErr)
	}
	for _, list := range [][]kernels.Package{l.Toolchain, l.Headers} {
		for i, p := range list {
			list[i].URL, list[i].Mirrors = urls[p.Digest].URL, urls[p.Digest].Mirrors
		}
	}
	return r.root(ctx, l, progress)
}

// urlsOf asks a distribution for the packages of a lock that it still has.
func (r *buildRun) urlsOf(ctx context.Context, l kernels.Lock) (map[v1.Hash]kernels.Package, error) {
	var extra kernels.Extra
	for _, p := range slices.Concat(l.Toolchain, l.Headers) {
		extra.Depends = append(extra.Depends, p.Name) // what isn't there any more is left out
	}
	p, ok := r.distros[l.Kernel.Distro]
	if !ok {
		return nil, fmt.Errorf("there are no packages of %q: %w", l.Kernel.Distro, kernels.ErrNotFound)
	}
	now, err := p.Lock(ctx, l.Kernel, extra)
	if err != nil {
		return nil, err
	}
	urls := map[v1.Hash]kernels.Package{}
	for _, p := range slices.Concat(now.Toolchain, now.Headers) {
		urls[p.Digest] = p
	}
	return urls, nil
}

// vary gives the builder other surroundings, and an engine, and says what is another one now and what isn't.
func (r *buildRun) vary(ctx context.Context, rec record, engine string) (varied, same []surrounding, err error) {
	add := func(what, from, to, why string) {
		s := surrounding{what, from, to, why}
		if from == to {
			same = append(same, s)
			return
		}
		s.Why = ""
		varied = append(varied, s)
	}
	const nobody = 65534
	cpus := runtime.NumCPU()
	r.builder.Surroundings = builder.Surroundings{User: nobody, Host: "elsewhere", Processors: max(1, cpus-1)}
	r.builder.Jobs = cpus + 1
	name, usual, why, err := r.otherEngine(ctx, engine)
	if err != nil {
		return nil, nil, err
	}
	clock := "an unknown time"
	if !rec.created.IsZero() {
		clock = rec.created.UTC().Format(time.RFC3339)
		next := time.Until(rec.created.Truncate(time.Second).Add(time.Second))
		select { // until a clock of whole seconds has gone on
		case <-time.After(min(next, time.Second)):
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
	}
	add("user", fmt.Sprintf("build (%d)", builder.UID), fmt.Sprintf("nobody (%d)", nobody), "")
	add("host name", builder.HostName, r.builder.Surroundings.HostName(), "")
	add("clock", clock, time.Now().UTC().Format(time.RFC3339), "")
	add("processors", strconv.Itoa(cpus), strconv.Itoa(r.builder.Surroundings.Processors), "this machine has no more")
	add("make", fmt.Sprintf("-j%d", cpus), fmt.Sprintf("-j%d", r.builder.Jobs), "")
	add("engine", usual, name, why)
	folder := dkms.Target{Module: rec.Meta.Module, Version: rec.Meta.Version}.Build()
	add("folder", folder, folder, "a build sees dkms's own, and none of this machine's")
	return varied, same, nil
}

// otherEngine sets the run's engine: that which was asked for, else another one than builds usually have here, if one works. why says why
// it's the same.
func (r *buildRun) otherEngine(ctx context.Context, asked string) (name, usual, why string, err error) {
	usual = "sandbox"
	if refused := checkSandbox(ctx); refused != nil {
		usual, why = "docker", causes(refused)
	}
	name = asked
	if asked != "auto" {
		why = "--engine asks for it"
	} else if name = "docker"; usual != "docker" {
		r.engine = engineOf{name: name}
		if _, err := r.engine.get(ctx); err != nil {
			name, why = "sandbox", causes(r.engine.err)
		}
	}
	if ctx.Err() != nil {
		return "", "", "", context.Cause(ctx)
	}
	if r.engine.name != name {
		r.engine = engineOf{name: name, note: r.board.Print}
	}
	return name, usual, why, nil
}

// rebuild builds a job. The error has been shown.
func (r *buildRun) rebuild(ctx context.Context, job builder.Job, b *builder.Builder) (builder.Result, func(), error) {
	c := &cell{unit: unit{source: job.Source}, target: target{kernel: job.Lock.Kernel, label: job.Lock.Kernel.String()}}
	line := r.board.Line(c.label)
	watch := builder.Watch{Phase: line.Phase, Progress: progress(line), Warn: func(text string) { r.board.Warn(c.label + ": " + text) }}
	if r.verbose {
		watch.Log = line.Log()
	}
	result, free := b.Rebuild(ctx, job, watch)
	err := result.Err
	switch {
	case err == nil:
		line.End(ui.Built, "")
		return result, free, nil
	case ctx.Err() != nil:
		return result, free, errInterrupted
	case errors.As(err, new(*builder.UnavailableError)):
		line.End(ui.Failed, causes(err))
		return result, free, err
	case failureCode(err) != exitBuild || len(result.Log) == 0:
		line.End(ui.Failed, "")
		return result, free, &exitError{code: failureCode(err), err: r.advise(err)}
	}
	line.End(ui.Failed, err.Error())
	f := r.explain(c, result)
	r.board.Fail(c.label, f.Failure, result.LogPath)
	return result, free, &exitError{code: exitBuild, err: fmt.Errorf("the rebuild failed, for its surroundings or for another reason: %s; "+
		"'build --no-cache' tells which", cmp.Or(f.reason, result.Reason))}
}

// cause finds out why a build differs from the record, by one that is as every build is.
func (r *buildRun) cause(ctx context.Context, job builder.Job, recorded, now builder.Result) (string, error) {
	r.board.Print("it differs: building once more, in the surroundings of every build")
	r.engine.close()
	r.engine = engineOf{name: "auto", note: r.board.Print}
	usual := *r.builder
	usual.Surroundings, usual.Jobs = builder.Surroundings{}, r.options.jobs
	third, free, err := r.rebuild(ctx, job, &usual)
	defer free()
	if err != nil {
		return "", err
	}
	for _, c := range []struct {
		with  builder.Result
		cause string
	}{{recorded, causeSurroundings}, {now, causeRecord}} {
		changes, err := builder.Compare(c.with, third, r.builder.Temp)
		if err != nil {
			return "", err
		}
		if len(changes) == 0 {
			return c.cause, nil
		}
	}
	return causeUnstable, nil
}

func changesOf(changes []builder.Change) []reproducedChange {
	out := []reproducedChange{}
	for _, c := range changes {
		parts := []reproducedPart{}
		for _, d := range c.Parts {
			p := reproducedPart{Part: d.Part, Sizes: d.Sizes, Offset: d.Offset, Count: d.Count, Hash: d.Hash, Recorded: []string{}, Rebuilt: []string{}}
			for i, b := range d.Bytes {
				p.Bytes[i] = fmt.Sprintf("%x", b)
			}
			p.Recorded, p.Rebuilt = append(p.Recorded, d.Only[0]...), append(p.Rebuilt, d.Only[1]...)
			parts = append(parts, p)
		}
		out = append(out, reproducedChange{c.Name, c.Values[0], c.Values[1], c.Sizes, parts})
	}
	return out
}

// inWords says what a cause means.
var inWords = map[string]string{
	causeSurroundings: "it depends on its surroundings: a build in those that every build has comes to what is recorded",
	causeUnstable:     "no two builds are the same: look for random numbers, a clock other than date, or the order of files or processes",
	causeRecord:       "two builds come to these bytes, in whatever surroundings; what is recorded was altered, or made of something else",
}

// text is for people.
func (p reproduction) text() string {
	var b strings.Builder
	verdict := "reproduced, every byte"
	if !p.Reproduced {
		verdict = "other bytes came out"
	}
	fmt.Fprintf(&b, "%s/%s for %s: %s\n", p.Module, p.Version, p.Kernel, verdict)
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "  key\t%s\n", p.Key)
	for _, s := range p.Varied {
		fmt.Fprintf(w, "  %s\t%s -> %s\n", s.What, s.From, s.To)
	}
	for _, s := range p.Same {
		fmt.Fprintf(w, "  %s\t%s, the same: %s\n", s.What, s.From, s.Why)
	}
	if p.Reproduced {
		for _, m := range p.Modules {
			fmt.Fprintf(w, "  %s\t%s\n", m.Name, m.Digest)
		}
		if p.Skipped != "" {
			fmt.Fprintf(w, "  skipped\t%s\n", oneLine(p.Skipped))
		}
	} else {
		fmt.Fprintf(w, "  why\t%s\n", inWords[p.Cause])
	}
	w.Flush()
	for _, d := range p.Differences {
		d.print(&b)
	}
	return ui.Clean(b.String())
}

func (d reproducedChange) print(b *strings.Builder) {
	fmt.Fprintf(b, "%s\n", oneLine(d.Name))
	for i, v := range []string{d.Recorded, d.Rebuilt} {
		size := ""
		if d.Sizes[i] > 0 {
			size = fmt.Sprintf(", %d bytes", d.Sizes[i])
		}
		fmt.Fprintf(b, "  %s  %s%s\n", sides[i], cmp.Or(oneLine(v), "not there"), size)
	}
	for _, p := range d.Parts {
		fmt.Fprintf(b, "  %s: %s\n", oneLine(p.Part), p.summary())
		for i, h := range p.Bytes {
			if raw, _ := hex.DecodeString(h); len(raw) > 0 {
				fmt.Fprintf(b, "    %s  % -47x  %s\n", sides[i], raw, printable(raw))
			}
		}
		for i, texts := range [][]string{p.Recorded, p.Rebuilt} {
			for _, t := range texts {
				fmt.Fprintf(b, "    %s  %s\n", sides[i], oneLine(t))
			}
		}
	}
}

// sides are the two that are compared, of one width.
var sides = [2]string{"recorded", "rebuilt "}

func (p reproducedPart) summary() string {
	switch {
	case p.Sizes[0] < 0:
		return fmt.Sprintf("only rebuilt, %d bytes", p.Sizes[1])
	case p.Sizes[1] < 0:
		return fmt.Sprintf("only recorded, %d bytes", p.Sizes[0])
	case p.Offset < 0:
		return "the same bytes"
	}
	s := fmt.Sprintf("%d bytes, from %#x on", p.Sizes[0], p.Offset)
	if p.Sizes[0] != p.Sizes[1] {
		s = fmt.Sprintf("%d and %d bytes, from %#x on", p.Sizes[0], p.Sizes[1], p.Offset)
	}
	if p.Hash {
		s += "; a hash over the rest"
	}
	return s
}

// printable is bytes as a line of text.
func printable(raw []byte) string {
	out := slices.Clone(raw)
	for i, c := range out {
		if c < ' ' || c > '~' {
			out[i] = '.'
		}
	}
	return string(out)
}

func oneLine(s string) string { return strings.NewReplacer("\n", " ", "\t", " ").Replace(s) }
