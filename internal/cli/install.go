package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/godkms-hermetic/godkms-hermetic/cache"
	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/host"
	"github.com/godkms-hermetic/godkms-hermetic/internal/kmod"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// installOptions say how modules are installed.
type installOptions struct {
	hostOptions
	build buildOptions
	sign  signOptions
	adopt bool // what dkms has installed of the same module is replaced

	tested bool // what has passed no test isn't installed
}

// installExits are the exit codes of commands that install.
var installExits = []string{
	"  0  all are installed, now or before, or skipped beside others that are",
	"  1  the command line or the configuration is wrong, this machine's disk or permissions are, or no engine works",
	"  2  there is no such source to add",
	"  3  there is no such module",
	"  4  the state of the module is broken",
	"  6  there is no such kernel, or the install is refused or failed: a newer version is there, a file is in the way, the module",
	"     doesn't fit the kernel or can't be signed, it isn't tested, or depmod failed",
	"  8  the dkms.conf that is to be added is faulty",
	" 10, 13, 21  it couldn't be built; see build",
	" 22  the module's registry can't be reached or refuses, and there is no source",
	" 23  the module's registry has none for that kernel, and there is no source",
	" 77  it was skipped for every kernel (BUILD_EXCLUSIVE in dkms.conf)",
	"101  PRE_INSTALL failed",
	"130  interrupted", "", "With several failures, the lowest of their codes."}

func (a *app) installCommand() *cobra.Command {
	o := installOptions{build: defaultBuild()}
	cmd := &cobra.Command{
		Use:   "install [MODULE/VERSION|SRC|REF]",
		Short: "Install a module for kernels of this host",
		Long: `Puts a module in its place below /lib/modules and runs depmod. What isn't registered is added first, as add does it; what isn't
built is built, or taken from the module's registry; registered modules that it names in BUILD_DEPENDS are installed before it.
What is installed already is left as it is; --force puts it there anew.

Modules of the kernel's own with the same names are moved aside, and put back by uninstall. A newer version that is there is a
refusal, as is a file that this tool didn't write; --force moves it aside, too. An install that fails leaves all as it was.

With --require-tested a module is refused whose last test on its kernel wasn't passed, or that has none: one that was made here
with the command test, or that came with it from a registry, which is trusted for it. Tests with --param don't count, nor does it
pass one with --load-only. What is installed already stays.

` + signHelp + `

` + moduleHelp + `
` + kernelHelp + exitStatus(installExits...),
		Example: `  godkms-hermetic install hello/1.0
  godkms-hermetic install -m hello -v 1.0 -k 6.1.0-56-amd64
  godkms-hermetic install registry.example/modules/hello:1.0 --all --root /mnt`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runInstall(cmd.Context(), o, args) },
	}
	o.moduleFlags(cmd)
	o.kernelFlags(cmd)
	o.installFlags(cmd)
	cmd.Flags().BoolVar(&o.tested, "require-tested", false, "refuse modules whose last test wasn't passed, and those without one; see test")
	cmd.ValidArgsFunction = o.completeSources()
	return cmd
}

// installFlags are those of commands that install.
func (o *installOptions) installFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	o.forceFlag(f, "install all the same: what is installed already, is there in a newer version, or is in the way")
	o.depmodFlag(f)
	o.sign.flags(f)
	f.StringVar(&o.build.engine, "engine", o.build.engine, "what runs a build: sandbox, docker, or auto, the first of them that works here")
	f.IntVarP(&o.build.jobs, "jobs", "j", o.build.jobs, "processes at a time")
	cmd.RegisterFlagCompletionFunc("engine", cobra.FixedCompletions(engineNames, cobra.ShellCompDirectiveNoFileComp))
}

func (a *app) runInstall(ctx context.Context, o installOptions, args []string) error {
	root, err := a.openRoot(o.hostOptions)
	if err != nil {
		return err
	}
	if err := known(root, o.hostOptions, args); err != nil {
		return err
	}
	ks, err := a.kernelsOf(root, o.hostOptions)
	if err != nil {
		return err
	}
	m, err := a.take(ctx, root, o.hostOptions, args)
	if err != nil {
		return hostError(root, err)
	}
	modules, err := withDepends(root, m, ks...)
	if err != nil {
		return hostError(root, err)
	}
	got, err := a.install(ctx, root, modules, ks, o)
	if err != nil {
		return err
	}
	return a.reportInstalls(got, []host.Module{m})
}

// reportInstalls prints how installs ended, and gives the error that they come to. Of others than what was asked for, those that were
// installed are named.
func (a *app) reportInstalls(got []obtained, asked []host.Module) error {
	for _, c := range got {
		if c.err != nil && strings.Contains(c.err.Error(), "\n") { // the rest of it
			a.board.Warn(fmt.Sprintf("%s: %v", nameFor(c.module, c.kernel), c.err))
		}
	}
	a.board.Close()
	var reports []ui.Result
	var codes []int
	var lines []string
	for _, c := range got {
		wasAsked := slices.ContainsFunc(asked, func(m host.Module) bool { return m.Module == c.module.Module && m.Version == c.module.Version })
		if !wasAsked && (c.status != ui.Installed || c.already) {
			continue
		}
		line := nameFor(c.module, c.kernel) + ": " + string(c.status)
		code := 0
		switch {
		case c.err != nil:
			line += ": " + c.report.Reason
			code = codeOf(c.err)
		case c.status == ui.Skipped:
			line += ": " + c.report.Reason
		case c.already:
			line = fmt.Sprintf("Module %s/%s already installed on kernel %s (%s), skip. You may override by specifying --force.",
				c.module.Module, c.module.Version, c.kernel.Release, kernels.Kernel(c.kernel).Machine())
		}
		reports, codes, lines = append(reports, c.report), append(codes, code), append(lines, line)
	}
	var err error
	if a.json() {
		err = ui.PrintJSON(a.stdout, reports)
	} else {
		err = a.println(lines...)
	}
	if err != nil {
		return err
	}
	return outcome(reports, codes)
}

// withDepends gives a module and, before it, the registered ones that it may need: of each the version that one of the kernels has
// installed, or else the newest.
func withDepends(root *host.Root, m host.Module, ks ...artifact.Kernel) ([]host.Module, error) {
	all, err := root.Modules()
	if err != nil && !errors.Is(err, host.ErrBroken) {
		return nil, err
	}
	installed := slices.DeleteFunc(slices.Clone(all), func(m host.Module) bool {
		return !slices.ContainsFunc(ks, func(k artifact.Kernel) bool {
			rec, _ := m.Find(k.Release, k.Arch)
			return rec.State == host.Installed
		})
	})
	offers := append(host.Newest(installed), host.Newest(all)...)
	out := []host.Module{m}
	for i := 0; i < len(out); i++ { // grows
		for _, name := range out[i].Depends {
			has := func(o host.Module) bool { return o.Module == name }
			if j := slices.IndexFunc(offers, has); j >= 0 && !slices.ContainsFunc(out, has) {
				out = append(out, offers[j])
			}
		}
	}
	return inOrder(out), nil
}

// install obtains modules for kernels and installs them, each after those before it, which it may need. One failure stops no other, but
// for what needs it. The answers are as those of obtain; what is installed has the status ui.Installed.
func (a *app) install(ctx context.Context, root *host.Root, modules []host.Module, ks []artifact.Kernel, o installOptions) ([]obtained, error) {
	signer, err := a.signer(root, o.sign)
	if err != nil {
		return nil, hostError(root, err)
	}
	there, err := intact(root)
	if err != nil {
		return nil, hostError(root, err)
	}
	// What isn't there is obtained for all kernels at once that lack the same modules.
	type lack struct {
		modules []host.Module
		kernels []artifact.Kernel
	}
	var lacks []lack
	got := map[wish]obtained{}
	for _, k := range ks {
		if err := hasKernel(root, k); err != nil {
			for _, m := range modules {
				got[wish{m.Module, m.Version, k}] = failed(m, k, hostError(root, err))
			}
			continue
		}
		var l lack
		for _, m := range modules {
			if rec, ok := m.Find(k.Release, k.Arch); ok && !o.force && !o.adopt && there[wish{m.Module, m.Version, rec.Kernel}] &&
				rec.SignedBy(signer) {
				c := obtained{module: m.Registration, kernel: k, status: ui.Installed, from: rec.From, already: true, report: reportOf(m, k)}
				c.report.Status, c.report.Key, c.report.Digest = ui.Installed, rec.Key.String(), rec.Artifact.String()
				got[wish{m.Module, m.Version, k}] = c
				continue
			}
			l.modules = append(l.modules, m)
		}
		same := func(o lack) bool {
			return slices.EqualFunc(o.modules, l.modules, func(a, b host.Module) bool { return a.Module == b.Module })
		}
		if i := slices.IndexFunc(lacks, same); i >= 0 {
			lacks[i].kernels = append(lacks[i].kernels, k)
		} else if len(l.modules) > 0 {
			l.kernels = []artifact.Kernel{k}
			lacks = append(lacks, l)
		}
	}
	for _, l := range lacks {
		list, err := a.obtain(ctx, root, l.modules, l.kernels, obtainOptions{buildOptions: o.build, again: o.force})
		if err != nil {
			return nil, err
		}
		for _, c := range list {
			c.already = false
			got[wish{c.module.Module, c.module.Version, c.kernel}] = c
		}
	}
	var out []obtained
	for _, k := range ks {
		broken := map[string]error{} // modules that are there and couldn't be installed
		for _, m := range modules {
			c := got[wish{m.Module, m.Version, k}]
			if c.err == nil && c.image != nil {
				c.err = a.installOne(ctx, root, c, broken, signer, o)
				if ctx.Err() != nil {
					return nil, context.Cause(ctx)
				}
				c.status = ui.Installed
				if c.err != nil {
					broken[m.Module] = c.err
					c.status = ui.Failed
					c.report.Reason, _, _ = strings.Cut(c.err.Error(), "\n")
				}
				c.report.Status = c.status
			}
			out = append(out, c)
		}
	}
	return out, nil
}

// installOne installs what was obtained, unless what it needs is among what couldn't be installed.
func (a *app) installOne(ctx context.Context, root *host.Root, c obtained, broken map[string]error, signer *kmod.Signer, o installOptions) error {
	for _, name := range c.module.Depends {
		if err := broken[name]; err != nil {
			return &exitError{code: exitDepends, err: fmt.Errorf("BUILD_DEPENDS %q isn't installed: %w", name, err)}
		}
	}
	m, err := root.ModuleFor(c.module.Module, c.module.Version, c.kernel)
	if err != nil {
		return hostError(root, err)
	}
	if o.tested {
		if err := a.requireTested(ctx, root, c); err != nil {
			return err
		}
	}
	before, _ := m.Find(c.kernel.Release, c.kernel.Arch)
	rec, err := root.Install(ctx, host.Install{Artifact: c.image, From: c.from, Signer: signer, Force: o.force, Adopt: o.adopt})
	if err != nil || before.State != host.Installed || before.Key == rec.Key {
		return hostError(root, err)
	}
	results, err := rootResults(root, a.board.Warn) // has what was installed before, too
	if err == nil {
		err = results.Remove(ctx, before.Key)
	}
	return hostError(root, err)
}

// requireTested refuses what was obtained unless the last test of it was passed: as the root has it from a registry, or this user's cache.
func (a *app) requireTested(ctx context.Context, root *host.Root, c obtained) error {
	meta, _, err := artifact.ReadMeta(c.image)
	if err != nil {
		return err
	}
	digest, err := c.image.Digest()
	if err != nil {
		return err
	}
	kept, err := rootResults(root, a.board.Warn)
	if err != nil {
		return hostError(root, err)
	}
	own, err := a.results()
	if err != nil {
		return err
	}
	passed, n, err := passedIn(ctx, meta.Key, digest, kernelOf(meta), kept, own)
	if err != nil || passed {
		return err
	}
	why := "it has no test that is known"
	if n > 0 {
		why = "its last test wasn't passed"
	}
	where := ""
	if root.Dir() != "/" {
		where = " --root " + root.Dir()
	}
	return &exitError{code: exitInstall, err: fmt.Errorf("refused for --require-tested: %s; 'godkms-hermetic test%s %s/%s --kernels %s' tests it",
		why, where, c.module.Module, c.module.Version, c.kernel.Release)}
}

// reportOf is the beginning of a report.
func reportOf(m host.Module, k artifact.Kernel) ui.Result {
	return ui.Result{Module: m.Module, Version: m.Version, Kernel: kernels.Kernel(k).String(), Distro: k.Distro, Suite: k.Suite, Release: k.Release}
}

// failed is a module that can't be had for a kernel.
func failed(m host.Module, k artifact.Kernel, err error) obtained {
	c := obtained{module: m.Registration, kernel: k, status: ui.Failed, err: err, report: reportOf(m, k)}
	c.report.Status = ui.Failed
	c.report.Reason, _, _ = strings.Cut(err.Error(), "\n")
	return c
}

// hasKernel wraps host.ErrNoKernel where a root has no modules of a kernel.
func hasKernel(root *host.Root, k artifact.Kernel) error {
	path, err := root.Path(filepath.Join("/lib/modules", k.Release))
	if err != nil {
		return err
	}
	if info, err := os.Stat(path); err != nil || !info.IsDir() {
		return fmt.Errorf("%w: there is no %s", host.ErrNoKernel, path)
	}
	return nil
}

// intact are the modules that are installed, with all their files.
func intact(root *host.Root) (map[wish]bool, error) {
	lines, err := root.Status(host.Filter{})
	if err != nil {
		return nil, err
	}
	out := map[wish]bool{}
	for _, l := range lines {
		if l.By == "" && l.State == host.Installed && l.Record != nil &&
			!slices.Contains(l.Notes, host.NoteMissing) && !slices.Contains(l.Notes, host.NoteDifferences) {
			out[wish{l.Module, l.Version, l.Record.Kernel}] = true
		}
	}
	return out, nil
}

// withdraw is how far uninstall, unbuild and remove go.
type withdraw int

const (
	uninstalling withdraw = iota
	unbuilding
	removing
)

func (a *app) uninstallCommand() *cobra.Command {
	return a.withdrawCommand(uninstalling, "uninstall", "Take a module off kernels of this host",
		`Takes what was installed of a module off, puts what was moved aside for it back, and runs depmod. It stays built, and registered.
A file that isn't any more what was installed stays, with a warning.`)
}

func (a *app) unbuildCommand() *cobra.Command {
	return a.withdrawCommand(unbuilding, "unbuild", "Take a module off kernels, and drop what was built",
		`Takes a module off as uninstall does, and removes what was built or pulled of it for these kernels. It stays registered.`)
}

func (a *app) removeCommand() *cobra.Command {
	return a.withdrawCommand(removing, "remove", "Take a module off kernels, and forget it",
		`Takes a module off as uninstall does, and removes what was built or pulled of it for these kernels. When no kernel has it any
more, its registration goes. The source in /usr/src stays.`)
}

func (a *app) withdrawCommand(far withdraw, name, short, long string) *cobra.Command {
	var o hostOptions
	cmd := &cobra.Command{
		Use:   name + " [MODULE/VERSION]",
		Short: short,
		Long: long + `

` + moduleHelp + `
The kernels are those of -k, or with --all every one that it is built for. The default is as that of install. With --format json
the output is that of status for the module as it is then.` + exitStatus(
			"  0  done, or there was nothing to do",
			"  1  the command line is wrong, or the root can't be changed",
			"  3  the module is not registered",
			"  4  the state of the module is broken",
			"  6  depmod failed, and all is as it was",
			"130  interrupted"),
		Example: fmt.Sprintf("  godkms-hermetic %[1]s hello/1.0\n  godkms-hermetic %[1]s -m hello -v 1.0 --all", name),
		Args:    cobra.MaximumNArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.runWithdraw(cmd.Context(), far, o, args) },
	}
	o.moduleFlags(cmd)
	o.kernelFlags(cmd)
	if far == removing {
		o.forceFlag(cmd.Flags(), "remove a module whose state is broken, too; what isn't known to be its stays in /lib/modules")
	}
	o.depmodFlag(cmd.Flags())
	cmd.ValidArgsFunction = o.completeModules()
	return cmd
}

func (a *app) runWithdraw(ctx context.Context, far withdraw, o hostOptions, args []string) error {
	root, err := a.openRoot(o)
	if err != nil {
		return err
	}
	module, version, err := o.theModule(args)
	if err != nil {
		return err
	}
	m, broken := root.Module(module, version)
	switch {
	case errors.Is(broken, host.ErrBroken) && far == removing && o.force:
		a.board.Warn(broken.Error())
		m.Records = slices.DeleteFunc(m.Records, func(rec host.Record) bool { // they go with the module
			if rec.State == host.Broken {
				a.board.Warn(fmt.Sprintf("%s: what was installed of it isn't known, and stays in %s", nameFor(m.Registration, rec.Kernel),
					filepath.Join(root.Dir(), "lib/modules", rec.Kernel.Release)))
			}
			return rec.State == host.Broken
		})
		broken = nil
	case errors.Is(broken, host.ErrBroken): // of another kernel it's in nobody's way
		_, err = root.ModuleFor(module, version)
	default:
		err = broken
	}
	if err != nil {
		return hostError(root, err)
	}
	results, err := rootResults(root, a.board.Warn)
	if err != nil {
		return hostError(root, err)
	}
	var ks []artifact.Kernel
	switch {
	case o.all && len(o.kernels) > 0:
		return errors.New("-k and --all exclude each other")
	case o.all, far == removing && len(o.kernels) == 0 && !slices.ContainsFunc(m.Records, isThere):
		for _, rec := range m.Records {
			ks = append(ks, rec.Kernel)
		}
	default:
		if ks, err = a.kernelsOf(root, o); err != nil {
			return err
		}
	}
	if broken != nil {
		if _, err := root.ModuleFor(module, version, ks...); err != nil {
			return hostError(root, err)
		}
	}
	var lines []string
	var failures []error
	for _, k := range ks {
		text, err := a.withdraw(ctx, root, results, m, k, far)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			failures = append(failures, hostError(root, err))
		}
		lines = append(lines, text...)
	}
	if far == removing && len(failures) == 0 && broken == nil { // else a kernel may have it
		switch err := root.Remove(ctx, module, version); {
		case err == nil:
			lines = append(lines, fmt.Sprintf("%s/%s: removed", module, version))
		case !errors.Is(err, host.ErrRemains): // where another kernel has it, it stays
			failures = append(failures, hostError(root, err))
		}
	}
	if a.json() {
		err = a.runStatus(hostOptions{root: o.root, module: module, version: version}, nil)
	} else {
		err = a.println(lines...)
	}
	slices.SortStableFunc(failures, func(a, b error) int { return codeOf(a) - codeOf(b) })
	return errors.Join(append(failures, err)...)
}

func isThere(rec host.Record) bool { return rec.State == host.Built || rec.State == host.Installed }

// withdraw takes a module off one kernel, and says so.
func (a *app) withdraw(ctx context.Context, root *host.Root, results *cache.Dir, m host.Module, k artifact.Kernel, far withdraw) (text []string, err error) {
	at := fmt.Sprintf("for kernel %s (%s)", k.Release, kernels.Kernel(k).Machine())
	name := m.Module + "/" + m.Version
	rec, ok := m.Find(k.Release, k.Arch)
	if !ok || rec.State != host.Installed {
		text = append(text, fmt.Sprintf("Module %s is not installed %s. Skipping...", name, at))
	} else {
		if rec, err = root.Uninstall(ctx, m.Module, m.Version, rec.Kernel); err != nil {
			return text, err
		}
		if far == uninstalling {
			return append(text, nameFor(m.Registration, k)+": built"), nil
		}
	}
	switch {
	case far == uninstalling:
		return text, nil
	case !ok || rec.State != host.Built:
		if ok { // a failure is forgotten as well
			err = root.Forget(ctx, m.Module, m.Version, rec.Kernel)
		}
		return append(text, fmt.Sprintf("Module %s is not built %s. Skipping...", name, at)), err
	}
	if err := root.Forget(ctx, m.Module, m.Version, rec.Kernel); err != nil {
		return text, err
	}
	return append(text, nameFor(m.Registration, k)+": unbuilt"), results.Remove(ctx, rec.Key)
}
