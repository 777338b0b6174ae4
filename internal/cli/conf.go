package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/builder/dkms"
	"github.com/godkms-hermetic/godkms-hermetic/images"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// confInput is what the command line says beside a dkms.conf.
type confInput struct {
	folder     string
	directives []string
	overrides  map[string][]byte // the files of folder, by name
}

func (c *confInput) flags(f *pflag.FlagSet) {
	f.StringVar(&c.folder, "overrides", "", "`DIR` with overrides of dkms.conf, named as in /etc/dkms (default none)")
	f.StringArrayVar(&c.directives, "directive", nil, "a directive, `NAME=VALUE`, that comes after dkms.conf and its overrides; can be repeated")
}

// read checks the directives and reads the overrides.
func (c *confInput) read() error {
	for _, d := range c.directives {
		if err := dkms.CheckDirective(d); err != nil {
			return fmt.Errorf("--directive: %w", err)
		}
	}
	if c.folder == "" {
		return nil
	}
	c.overrides = map[string][]byte{}
	entries, err := os.ReadDir(c.folder)
	if err != nil {
		return fmt.Errorf("--overrides: %w", err)
	}
	for _, e := range entries {
		name := filepath.Join(c.folder, e.Name())
		info, err := os.Stat(name)
		if filepath.Ext(name) != ".conf" || e.Name() == "framework.conf" || err == nil && !info.Mode().IsRegular() {
			continue
		}
		var text []byte
		if err == nil {
			text, err = readAtMost(name, dkms.MaxConf+1)
		}
		if err == nil {
			err = dkms.CheckOverride(dkms.Override{Name: e.Name(), Text: text})
		}
		if err != nil {
			return fmt.Errorf("--overrides: %w", err)
		}
		c.overrides[e.Name()] = text
	}
	return nil
}

func readAtMost(name string, n int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, n))
}

// mayDepend is what a source may find in BUILD_DEPENDS, for one kernel or another. The directives are for sources that were named.
func (c *confInput) mayDepend(s *builder.Source, named bool) []string {
	var overrides []dkms.Override
	for _, name := range slices.Sorted(maps.Keys(c.overrides)) {
		version := s.Module + "-" + s.Version
		if name == s.Module+".conf" || name == version+".conf" || strings.HasPrefix(name, version+"-") || strings.HasPrefix(name, s.Module+"--") {
			overrides = append(overrides, dkms.Override{Name: name, Text: c.overrides[name]})
		}
	}
	if !named {
		return dkms.MayDepend(s.MayDepend, overrides, nil)
	}
	return dkms.MayDepend(s.MayDepend, overrides, c.directives)
}

// of is a job with the overrides that hold for it.
func (c *confInput) of(s *builder.Source, l kernels.Lock) builder.Job {
	j := builder.Job{Source: s, Lock: l, Directives: c.directives}
	t := dkms.Target{Module: s.Module, Version: s.Version, Release: l.Kernel.Release, Machine: l.Kernel.Machine()}
	for _, name := range t.OverrideNames() {
		if text, ok := c.overrides[name]; ok {
			j.Overrides = append(j.Overrides, dkms.Override{Name: name, Text: text})
		}
	}
	return j
}

type confOptions struct {
	kernels []string
	lock    string
	engine  string
	input   confInput
}

func (a *app) confCommand() *cobra.Command {
	var o confOptions
	cmd := &cobra.Command{
		Use:   "conf [SRC] --kernel KERNELS",
		Short: "Show what a dkms.conf comes to for kernels, and why",
		Long: `Evaluates the dkms.conf of a source for each of the kernels, as a build does, and shows what came out: the modules, the make
command, patches and scripts, what it depends on, and whether the kernel is excluded; for each choice, the directive that decided.
Nothing is compiled. All faults of a dkms.conf are shown at once, with their lines.

SRC, KERNELS and --lock are those of 'build'. A kernel's header image is assembled if it isn't there, since its bash evaluates the
file.

--overrides DIR has files as /etc/dkms has on a host: M.conf, M-V.conf, M-V-K.conf, M-V-K-A.conf, M--K.conf and M--K-A.conf, for
module M, version V, release K and machine A, are read after the dkms.conf, in this order; then come the values of
--directive.` + exitStatus(
			"  0  the module would be built for at least one of the kernels",
			"  1  the command line, the source or the configuration is wrong, this machine's disk or permissions are, or no engine works",
			" 10  the dkms.conf is faulty",
			" 21  a kernel's headers can't be found, fetched or trusted",
			" 77  every kernel is excluded",
			"130  interrupted", "", "With several failures, the lowest of their codes."),
		Example: `  godkms-hermetic conf . --kernel debian/bookworm:6.1.0-56-amd64
  godkms-hermetic conf . --kernel debian/trixie:latest --directive 'MAKE=make modules' --format json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			src := "."
			if len(args) > 0 {
				src = args[0]
			}
			return a.runConf(cmd.Context(), o, src)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.kernels, "kernel", nil, "`KERNELS` to evaluate for; required, but for --lock")
	f.StringSliceVar(&o.kernels, "kernels", nil, "the same")
	f.StringVar(&o.lock, "lock", "", "`FILE` of the command lock, for whose kernels and packages it is evaluated")
	f.StringVar(&o.engine, "engine", "auto", "what runs bash: sandbox, docker, or auto, the first of them that works here")
	o.input.flags(f)
	a.compilerFlag(f)
	f.MarkHidden("kernels")
	cmd.MarkFlagsMutuallyExclusive("lock", "compiler")
	cmd.RegisterFlagCompletionFunc("engine", cobra.FixedCompletions(engineNames, cobra.ShellCompDirectiveNoFileComp))
	cmd.RegisterFlagCompletionFunc("kernel", a.completeKernels)
	return cmd
}

func (a *app) runConf(ctx context.Context, o confOptions, src string) error {
	switch {
	case o.lock == "" && !slices.ContainsFunc(o.kernels, func(s string) bool { return strings.TrimSpace(s) != "" }):
		return errors.New("no kernel given; use --kernel, as in --kernel debian/trixie:latest ('godkms-hermetic kernels debian/trixie' lists them), or --lock")
	case !slices.Contains(engineNames, o.engine):
		return fmt.Errorf("--engine is %q: it can be %s", o.engine, strings.Join(engineNames, ", "))
	}
	if err := o.input.read(); err != nil {
		return err
	}
	distros, err := a.distros()
	if err != nil {
		return err
	}
	r := &buildRun{app: a, options: buildOptions{jobs: runtime.NumCPU()}, distros: distros}
	find, err := r.finder(o.lock, o.kernels)
	if err != nil {
		return err
	}
	temp, err := a.temp()
	if err != nil {
		return err
	}
	source, err := builder.OpenSource(ctx, src, builder.SourceOptions{Temp: temp, Exclude: []string{filepath.Dir(temp)}, Open: distros["debian"].Open})
	if err != nil {
		return err
	}
	defer source.Close()
	targets, err := find(ctx)
	if err != nil {
		return err
	}

	r.engine = engineOf{name: o.engine, note: a.board.Print}
	r.builder = &builder.Builder{RootVersion: images.Version, Temp: temp, Jobs: r.options.jobs, Engine: r.engine.get, Root: r.root}
	defer r.engine.close()
	report := confReport{Module: source.Module, Version: source.Version, Kernels: []confResult{}}
	lowest, skips := 0, 0
	for _, t := range targets {
		result, code := r.conf(ctx, o, source, t)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if code != 0 && code != exitSkipped && (lowest == 0 || code < lowest) {
			lowest = code
		}
		if code == exitSkipped {
			skips++
		}
		report.Kernels = append(report.Kernels, result)
	}
	a.board.Close()
	if a.json() {
		err = ui.WriteJSON(a.stdout, report)
	} else {
		_, err = io.WriteString(a.stdout, report.text())
	}
	switch {
	case err != nil:
		return err
	case r.engine.err != nil:
		return r.engine.err
	case lowest != 0:
		return &exitError{code: lowest, err: errors.New("a kernel failed"), silent: true}
	case skips == len(targets):
		return &exitError{code: exitSkipped, err: errors.New("every kernel is excluded"), silent: true}
	}
	return nil
}

// conf evaluates for one kernel.
func (r *buildRun) conf(ctx context.Context, o confOptions, source *builder.Source, t target) (confResult, int) {
	result := confResult{Kernel: t.label, Distro: t.kernel.Distro, Suite: t.kernel.Suite, Release: t.kernel.Release, Directives: o.input.directives}
	line := r.board.Line(t.label)
	fail := func(err error, code int) (confResult, int) {
		result.Status, result.Reason, result.DKMSCode = "failed", err.Error(), builder.DKMSCode(err)
		if faults := (dkms.Errors)(nil); errors.As(err, &faults) {
			result.Status, result.Reason, result.Faults = "faulty", "", faults
			err = fmt.Errorf("%d faults in dkms.conf", len(faults)) // what they are is printed
		}
		line.End(ui.Failed, err.Error())
		return result.complete(), code
	}
	if t.err != nil {
		return fail(t.err, lockCode(t.err))
	}
	line.Phase("locking")
	lock, err := r.distros[t.kernel.Distro].Lock(ctx, t.kernel, extraOf(source, nil))
	if err != nil {
		return fail(r.advise(askedBy(source, nil, err)), lockCode(err))
	}
	job := o.input.of(source, lock)
	for _, o := range job.Overrides {
		result.Overrides = append(result.Overrides, o.Name)
	}
	watch := builder.Watch{Phase: line.Phase, Progress: progress(line)}
	if r.verbose {
		watch.Log = line.Log()
	}
	e, err := r.builder.Evaluate(ctx, job, watch)
	if err != nil {
		return fail(r.advise(err), failureCode(err))
	}
	line.End("evaluated", "")
	result.fill(e)
	if e.Plan.Skip != "" {
		return result.complete(), exitSkipped
	}
	return result.complete(), 0
}

// confReport is what the conf command prints. Its JSON form is a promise: fields are added, never renamed.
type confReport struct {
	Module  string       `json:"module"`
	Version string       `json:"version"`
	Kernels []confResult `json:"kernels"`
}

type confResult struct {
	Kernel         string       `json:"kernel"` // as --kernel takes it
	Distro         string       `json:"distro"`
	Suite          string       `json:"suite"`
	Release        string       `json:"release"`
	Status         string       `json:"status"`    // builds, excluded, faulty (see faults) or failed (see reason)
	Reason         string       `json:"reason"`    // why it is excluded or failed
	DKMSCode       int          `json:"dkms_code"` // the exit code that dkms would end with, where it would get no further
	Compiler       string       `json:"compiler"`
	Modules        []confModule `json:"modules"`
	Make           confChoice   `json:"make"`
	Patches        []confChoice `json:"patches"`
	Exclusive      []confChoice `json:"exclusive"` // a rule that's not taken excludes the kernel
	Scripts        []confScript `json:"scripts"`
	Depends        []string     `json:"build_depends"`
	DependsRebuild bool         `json:"build_depends_rebuild"`
	Autoinstall    bool         `json:"autoinstall"`
	NoWeakModules  bool         `json:"no_weak_modules"`
	Overrides      []string     `json:"overrides"` // names of the files that were read, in order
	Directives     []string     `json:"directives"`
	Faults         []dkms.Fault `json:"faults"`
	Warnings       []string     `json:"warnings"`
	Notices        []string     `json:"notices"`
	Seconds        float64      `json:"seconds"` // that bash took
}

type confModule struct {
	Built string `json:"built"` // path below the build folder
	Dest  string `json:"dest"`  // path below /lib/modules/<release>
	Strip bool   `json:"strip"`
}

type confChoice struct {
	Directive string `json:"directive"` // "MAKE[1]"; empty for the default
	Value     string `json:"value"`
	Taken     bool   `json:"taken"`
	Why       string `json:"why"`
}

type confScript struct {
	Directive string `json:"directive"`
	Command   string `json:"command"`
	Runs      string `json:"runs"` // in the "build", or on the "host"
}

func (c *confResult) fill(e builder.Evaluation) {
	p := e.Plan
	c.Status, c.Reason, c.Compiler = "builds", p.Skip, e.Compiler
	if p.Skip != "" {
		c.Status, c.DKMSCode = "excluded", exitSkipped
	}
	for _, m := range p.Modules {
		c.Modules = append(c.Modules, confModule{m.Built, m.Dest + "/" + m.Name, m.Strip})
	}
	c.Make = confChoice(p.Make)
	for _, v := range p.Patches {
		c.Patches = append(c.Patches, confChoice(v))
	}
	for _, v := range p.Rules {
		c.Exclusive = append(c.Exclusive, confChoice(v))
	}
	if p.PreBuild != "" {
		c.Scripts = append(c.Scripts, confScript{"PRE_BUILD", p.PreBuild, "build"})
	}
	if p.PostBuild != "" {
		c.Scripts = append(c.Scripts, confScript{"POST_BUILD", p.PostBuild, "build"})
	}
	for _, s := range p.Scripts {
		c.Scripts = append(c.Scripts, confScript{s.Directive, s.Command, "host"})
	}
	c.Depends, c.DependsRebuild, c.Autoinstall, c.NoWeakModules = p.Depends, p.DependsRebuild, p.Autoinstall, p.NoWeakModules
	c.Warnings, c.Notices = p.Warnings, p.Notices
	c.Seconds = float64(e.Took.Milliseconds()) / 1000
}

// complete makes lists of what JSON would show as null.
func (c confResult) complete() confResult {
	c.Modules, c.Patches, c.Exclusive, c.Scripts = list(c.Modules), list(c.Patches), list(c.Exclusive), list(c.Scripts)
	c.Depends, c.Overrides, c.Directives, c.Faults = list(c.Depends), list(c.Overrides), list(c.Directives), list(c.Faults)
	c.Warnings, c.Notices = list(c.Warnings), list(c.Notices)
	return c
}

func list[T any](s []T) []T { return append([]T{}, s...) }

// text is the report for people: for each kernel its name, and lines of a word and what it says.
func (c confReport) text() string {
	var b strings.Builder
	for i, k := range c.Kernels {
		if i > 0 {
			b.WriteString("\n")
		}
		line := func(word, format string, args ...any) {
			text := fmt.Sprintf(format, args...)
			for j, part := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
				if j > 0 {
					word = ""
				}
				fmt.Fprintf(&b, "  %-10s  %s\n", word, strings.TrimRight(ui.Clean(part), " "))
			}
		}
		fmt.Fprintf(&b, "%s %s for %s: %s\n", c.Module, c.Version, k.Kernel, k.Status)
		if k.Reason != "" {
			line("because", "%s", k.Reason)
		}
		for _, f := range k.Faults {
			line("fault", "%s", f)
		}
		for _, r := range k.Exclusive {
			line(map[bool]string{true: "allowed", false: "excluded"}[r.Taken], "%s", r.Why)
		}
		for _, m := range k.Modules {
			line("module", "%s -> %s%s", m.Built, m.Dest, map[bool]string{true: "", false: ", not stripped"}[m.Strip])
		}
		if k.Make.Value != "" {
			line("make", "%s\n%s: %s", k.Make.Value, cmp.Or(k.Make.Directive, "the default"), k.Make.Why)
		}
		for _, p := range k.Patches {
			line("patch", "%s %s: %s, %s", p.Directive, p.Value, map[bool]string{true: "applied", false: "not applied"}[p.Taken], p.Why)
		}
		for _, s := range k.Scripts {
			line("script", "%s %s%s", s.Directive, s.Command, map[string]string{"host": ", on the host that installs"}[s.Runs])
		}
		for _, d := range k.Depends {
			line("depends on", "%s", d)
		}
		for _, v := range []struct {
			name string
			is   bool
		}{{"AUTOINSTALL", k.Autoinstall}, {"BUILD_DEPENDS_REBUILD", k.DependsRebuild}, {"NO_WEAK_MODULES", k.NoWeakModules}} {
			if v.is {
				line("set", "%s", v.name)
			}
		}
		for _, o := range k.Overrides {
			line("override", "%s", o)
		}
		for _, d := range k.Directives {
			line("directive", "%s", d)
		}
		for _, w := range k.Warnings {
			line("warning", "%s", w)
		}
		for _, n := range k.Notices {
			line("notice", "%s", n)
		}
	}
	return b.String()
}
