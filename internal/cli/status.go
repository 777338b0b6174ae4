package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/host"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

func (a *app) statusCommand() *cobra.Command {
	var o hostOptions
	cmd := &cobra.Command{
		Use:   "status [MODULE[/VERSION]]",
		Short: "Show the modules of this host",
		Long: `Shows each module that is registered: added, or for each kernel built, installed or failed, in dkms's words:

  hello/1.0: added
  hello/1.0, 6.1.0-56-amd64, x86_64: installed
  hello/1.0, 6.12.117+deb12-amd64, x86_64: failed (the reason)

What dkms itself manages is shown too, with "(by dkms)" behind it. What is damaged is a warning.

` + moduleHelp + `
With -k it is about these kernels only, and a module that has nothing for one of them is added.` + exitStatus(
			"  0  the modules were shown, whatever their state",
			"  1  the command line is wrong, or the state can't be read"),
		Example: `  godkms-hermetic status
  godkms-hermetic status hello/1.0 -k 6.1.0-56-amd64
  godkms-hermetic status --root /mnt --format json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return a.runStatus(o, args) },
	}
	o.moduleFlags(cmd)
	cmd.Flags().StringSliceVarP(&o.kernels, "kernel", "k", nil, "`RELEASE` of a kernel, or a list with commas; can be repeated (default all)")
	cmd.Flags().StringVarP(&o.arch, "arch", "a", "", "`ARCH` of the kernels, as the distribution or uname names it (default all)")
	cmd.RegisterFlagCompletionFunc("kernel", o.completeKernels)
	cmd.RegisterFlagCompletionFunc("arch", cobra.NoFileCompletions)
	cmd.ValidArgsFunction = o.completeModules()
	return cmd
}

func (a *app) runStatus(o hostOptions, args []string) error {
	if len(args) > 0 && o.module == "" && !moduleVersion.MatchString(args[0]) {
		o.module, args = args[0], nil
	}
	module, version, err := o.named(args)
	if err != nil {
		return err
	}
	root, err := a.openRoot(o)
	if err != nil {
		return err
	}
	machine := func(arch string) string { return kernels.Kernel{Arch: arch}.Machine() }
	var releases []string
	for _, text := range o.kernels {
		release, arch, ok := strings.Cut(strings.TrimSpace(text), "/") // as dkms takes it, too
		if ok && o.arch != "" && machine(arch) != machine(o.arch) {
			return fmt.Errorf("kernel %q: the architecture is %q; show one at a time", text, o.arch)
		}
		if ok {
			o.arch = arch
		}
		releases = append(releases, release)
	}
	lines, err := root.Status(host.Filter{Module: module, Version: version, Kernels: releases, Arch: o.arch})
	if err != nil {
		return hostError(root, err)
	}
	a.board.Close()
	if a.json() {
		return ui.WriteJSON(a.stdout, struct {
			Modules []host.Line `json:"modules"`
		}{list(lines)})
	}
	if len(lines) == 0 {
		return nil
	}
	var text []string
	for _, l := range lines {
		text = append(text, l.String())
	}
	return a.println(strings.Join(text, "\n"))
}

func (a *app) matchCommand() *cobra.Command {
	o := installOptions{build: defaultBuild()}
	var template string
	cmd := &cobra.Command{
		Use:   "match --templatekernel RELEASE [-k RELEASE]",
		Short: "Install for a kernel what another one has",
		Long: `Installs for kernels the versions of modules that are installed for another one, building what isn't built, as install does.

` + kernelHelp + exitStatus(slices.Concat([]string{
			"  0  all are installed, or there was nothing to do", installExits[1],
			"  2  the kernel is the template itself"}, installExits[3:])...),
		Example: "  godkms-hermetic match --templatekernel 6.1.0-55-amd64 -k 6.1.0-56-amd64",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.runMatch(cmd.Context(), o, template) },
	}
	o.moduleFlags(cmd)
	o.kernelFlags(cmd)
	o.installFlags(cmd)
	cmd.Flags().StringVar(&template, "templatekernel", "", "`RELEASE` of the kernel whose modules are wanted")
	cmd.RegisterFlagCompletionFunc("templatekernel", o.completeKernels)
	return cmd
}

func (a *app) runMatch(ctx context.Context, o installOptions, template string) error {
	if template == "" {
		return errors.New("match what? name the kernel whose modules are wanted with --templatekernel")
	}
	module, version, err := o.named(nil)
	if err != nil {
		return err
	}
	root, err := a.openRoot(o.hostOptions)
	if err != nil {
		return err
	}
	ks, err := a.kernelsOf(root, o.hostOptions)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(ks, func(k artifact.Kernel) bool { return k.Release == template }) && !o.all {
		return &exitError{code: exitNoSource, err: fmt.Errorf("the kernel %s is the template itself", template)}
	}
	ks = slices.DeleteFunc(ks, func(k artifact.Kernel) bool { return k.Release == template })
	lines, err := root.Status(host.Filter{Module: module, Version: version, Kernels: []string{template}, Arch: o.arch})
	if err != nil {
		return hostError(root, err)
	}
	if module != "" && len(lines) == 0 {
		return &exitError{code: exitAdded, err: fmt.Errorf("%s: %w", module, host.ErrNotAdded)}
	}
	var modules []host.Module
	for _, l := range lines {
		switch {
		case l.State != host.Installed:
			continue
		case l.By != "":
			a.board.Warn(fmt.Sprintf("%s/%s is %s's: 'adopt %[1]s/%[2]s' takes it over", l.Module, l.Version, l.By))
			continue
		}
		m, err := root.ModuleFor(l.Module, l.Version, l.Record.Kernel)
		if err != nil {
			return hostError(root, err)
		}
		modules = append(modules, m)
	}
	if len(modules) == 0 {
		a.board.Print("there is nothing to be done: no module is installed for " + template)
		return a.reportInstalls(nil, nil)
	}
	got, err := a.install(ctx, root, inOrder(modules), ks, o)
	if err != nil {
		return err
	}
	return a.reportInstalls(got, modules)
}

func (a *app) adoptCommand() *cobra.Command {
	o := installOptions{build: defaultBuild()}
	cmd := &cobra.Command{
		Use:   "adopt [MODULE/VERSION]",
		Short: "Take modules over from dkms",
		Long: `Takes a module over from dkms, or with --all every one that it manages: registers it, obtains it for each kernel that dkms has it
installed for, as install does, puts it in the place of what dkms has installed, and takes it away from dkms. Modules that dkms
has moved aside are this tool's to put back then. Its source stays where it is.

Nothing is installed before all kernels' modules are there. As long as one is missing, the module stays dkms's.` + exitStatus(installExits...),
		Example: "  godkms-hermetic adopt hello/1.0\n  godkms-hermetic adopt --all",
		Args:    cobra.MaximumNArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.runAdopt(cmd.Context(), o, args) },
	}
	o.moduleFlags(cmd)
	o.installFlags(cmd)
	cmd.Flags().BoolVar(&o.all, "all", false, "every module that dkms manages")
	cmd.ValidArgsFunction = func(_ *cobra.Command, args []string, _ string) (out []string, _ cobra.ShellCompDirective) {
		if root, err := host.Open(o.root, host.Options{}); err == nil && len(args) == 0 {
			for _, m := range root.DKMSModules() {
				out = append(out, m.Module+"/"+m.Version)
			}
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
	return cmd
}

func (a *app) runAdopt(ctx context.Context, o installOptions, args []string) error {
	root, err := a.openRoot(o.hostOptions)
	if err != nil {
		return err
	}
	module, version, err := o.named(args)
	if err != nil {
		return err
	}
	if (module == "" || version == "") != o.all {
		return errors.New("adopt what? name a module as MODULE/VERSION, or take --all")
	}
	theirs := slices.DeleteFunc(root.DKMSModules(), func(m host.DKMSModule) bool {
		return !o.all && (m.Module != module || m.Version != version)
	})
	if len(theirs) == 0 && !o.all {
		return &exitError{code: exitAdded, err: fmt.Errorf("%s/%s: dkms has no such module: %w", module, version, host.ErrNotAdded)}
	}
	var got []obtained
	var asked []host.Module
	var failures []error
	for _, d := range dkmsOrder(root, theirs) {
		m, c, err := a.adopt(ctx, root, d, o)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			failures = append(failures, hostError(root, fmt.Errorf("%s/%s stays with dkms: %w", d.Module, d.Version, err)))
		}
		got, asked = append(got, c...), append(asked, m)
	}
	err = a.reportInstalls(got, asked)
	if len(failures) > 0 {
		slices.SortStableFunc(failures, func(a, b error) int { return codeOf(a) - codeOf(b) })
		return errors.Join(failures...)
	}
	return err
}

// dkmsOrder sorts modules of dkms's so that each comes after those that it may need.
func dkmsOrder(root *host.Root, list []host.DKMSModule) []host.DKMSModule {
	var modules []host.Module
	for _, d := range list {
		g := host.Registration{Module: d.Module, Version: d.Version}
		if path, err := root.Path(filepath.Join(d.Source, "dkms.conf")); err == nil {
			h, _ := readHeader(path) // whose faults adopt tells
			g.Depends = h.BuildDepends
		}
		modules = append(modules, host.Module{Registration: g})
	}
	var out []host.DKMSModule
	for _, m := range inOrder(modules) {
		for _, d := range list {
			if d.Module == m.Module && d.Version == m.Version {
				out = append(out, d)
			}
		}
	}
	return out
}

// adopt takes one module over from dkms. With an error it is still dkms's.
func (a *app) adopt(ctx context.Context, root *host.Root, d host.DKMSModule, o installOptions) (m host.Module, got []obtained, err error) {
	var releases []string
	arch := ""
	for _, k := range d.Kernels {
		if k.Installed {
			releases, arch = append(releases, k.Release), k.Arch
		}
	}
	if m, err = root.ModuleFor(d.Module, d.Version); err == nil && d.Source == "" && len(releases) == 0 { // what was cut off is finished
		return m, nil, root.ReleaseFromDKMS(ctx, d.Module, d.Version)
	}
	o.hostOptions.arch, o.adopt = arch, true
	ks, err := o.complete(root, releases)
	if err != nil {
		return m, nil, err
	}
	if d.Source == "" {
		return m, nil, fmt.Errorf("%w: its source is gone", host.ErrBroken)
	}
	path, err := root.Path(d.Source)
	if err != nil {
		return m, nil, err
	}
	g, err := a.registerTheirs(ctx, root, d, path)
	added := err == nil
	if err != nil && !errors.Is(err, host.ErrAdded) {
		return m, nil, err
	}
	if m, err = root.ModuleFor(g.Module, g.Version); err != nil {
		return m, nil, err
	}
	// All is obtained before anything is changed.
	got, err = a.obtain(ctx, root, []host.Module{m}, ks, obtainOptions{buildOptions: o.build})
	if err == nil {
		for _, c := range got {
			if c.image == nil && c.err == nil {
				c.err = &exitError{code: exitSkipped, err: fmt.Errorf("it is skipped for %s: %s", c.kernel.Release, c.report.Reason)}
			}
			if c.err != nil && err == nil {
				err = fmt.Errorf("%s: %w", c.kernel.Release, c.err)
			}
		}
	}
	if err != nil {
		if added { // it is as it was
			err = errors.Join(err, a.forget(context.WithoutCancel(ctx), root, g))
		}
		return m, nil, err
	}
	if m, err = root.ModuleFor(g.Module, g.Version); err != nil {
		return m, nil, err
	}
	if got, err = a.install(ctx, root, []host.Module{m}, ks, o); err != nil {
		return m, got, err
	}
	for _, c := range got {
		if c.err != nil {
			return m, got, fmt.Errorf("%s: %w", c.kernel.Release, c.err)
		}
	}
	return m, got, root.ReleaseFromDKMS(ctx, d.Module, d.Version)
}

// registerTheirs registers a module of dkms's, whose source stays where it is.
func (a *app) registerTheirs(ctx context.Context, root *host.Root, d host.DKMSModule, path string) (g host.Registration, err error) {
	source, err := a.openToAdd(ctx, path)
	if err != nil {
		return g, err
	}
	defer source.Close()
	if source.Module != d.Module || source.Version != d.Version {
		return g, &exitError{code: exitConf, err: fmt.Errorf("%s is of %s/%s, by its dkms.conf", filepath.Join(path, "dkms.conf"), source.Module, source.Version)}
	}
	if g, err = registration(source); err != nil {
		return g, err
	}
	g.Source = d.Source
	return g, root.Add(ctx, g)
}

// registration is what a source says of itself.
func registration(source *builder.Source) (host.Registration, error) {
	h, err := headerOf(source)
	return host.Registration{Module: source.Module, Version: source.Version, Source: sourceOf(source.Module, source.Version),
		Autoinstall: h.Autoinstall, Depends: source.MayDepend, Added: time.Now().UTC().Truncate(time.Second)}, err
}

// forget takes back a registration with what was obtained for it.
func (a *app) forget(ctx context.Context, root *host.Root, g host.Registration) error {
	m, err := root.Module(g.Module, g.Version)
	if err != nil {
		return err
	}
	results, err := rootResults(root, a.board.Warn)
	if err != nil {
		return err
	}
	for _, rec := range m.Records {
		if _, err := a.withdraw(ctx, root, results, m, rec.Kernel, unbuilding); err != nil {
			return err
		}
	}
	return root.Remove(ctx, g.Module, g.Version)
}
