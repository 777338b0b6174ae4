package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/host"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// isFor tells whether the arguments of build name modules of a host rather than sources.
func (o hostOptions) isFor(args []string) bool {
	return o.module != "" || o.version != "" || slices.ContainsFunc(args, func(arg string) bool {
		_, err := os.Stat(arg)
		return err != nil && (moduleVersion.MatchString(arg) || isReference(arg))
	})
}

// known is an error where a MODULE/VERSION that was named is neither registered nor can be: nothing else need be looked at then.
func known(root *host.Root, o hostOptions, args []string) error {
	for _, arg := range append(slices.Clone(args), o.module+"/"+o.version) {
		if _, err := os.Stat(arg); err == nil || !moduleVersion.MatchString(arg) || isReference(arg) || hasSource(root, arg) {
			continue
		}
		m := moduleVersion.FindStringSubmatch(arg)
		if _, err := registrable(root, m[1], m[2]); err != nil {
			return err
		}
	}
	return nil
}

// take gives the module that was named, which is added first if it isn't registered.
func (a *app) take(ctx context.Context, root *host.Root, o hostOptions, args []string) (host.Module, error) {
	g, err := a.add(ctx, root, addOptions{hostOptions: o}, args)
	switch {
	case err == nil:
		a.board.Print(fmt.Sprintf("%s/%s: added", g.Module, g.Version))
	case !errors.Is(err, host.ErrAdded):
		return host.Module{}, err
	}
	return root.ModuleFor(g.Module, g.Version)
}

func (a *app) runHostBuild(ctx context.Context, h hostOptions, o buildOptions, args []string) error {
	if o.push != "" {
		return errors.New("--push: of a module of a host there is nothing to push; name the folder of its source, as in build /usr/src/hello-1.0")
	}
	if o.trial != nil {
		return errors.New("--test: a module of a host is tested with the command test, as in 'test hello/1.0'")
	}
	if o.shard != "" || len(o.reports) > 0 {
		return errors.New("--shard and --report are for sources; name the folder of it, as in build /usr/src/hello-1.0")
	}
	if o.out != "" {
		if err := writable(o.out); err != nil {
			return fmt.Errorf("--out: %w", err)
		}
	}
	h.kernels = o.kernels
	root, err := a.openRoot(h)
	if err != nil {
		return err
	}
	if err := known(root, h, args); err != nil {
		return err
	}
	ks, err := a.kernelsOf(root, h)
	if err != nil {
		return err
	}
	var modules []host.Module
	for _, arg := range append(args, "")[:max(1, len(args))] {
		var named []string
		if arg != "" {
			named = []string{arg}
		}
		m, err := a.take(ctx, root, hostOptions{module: h.module, version: h.version}, named)
		if err != nil {
			return hostError(root, err)
		}
		if slices.ContainsFunc(modules, func(o host.Module) bool { return o.Module == m.Module }) {
			return fmt.Errorf("two versions of %s; build them one after the other", m.Module)
		}
		modules = append(modules, m)
	}
	o.noCache = o.noCache || h.force
	got, err := a.obtain(ctx, root, inOrder(modules), ks, obtainOptions{buildOptions: o, again: o.noCache})
	if err != nil {
		return err
	}
	reports, codes := make([]ui.Result, len(got)), make([]int, len(got))
	for i, c := range got {
		if o.out != "" && c.image != nil {
			if c.report.Modules, err = a.handOutOf(ctx, o.out, c, len(modules) > 1); err != nil {
				return err
			}
		}
		reports[i] = c.report
		if c.err != nil {
			codes[i] = codeOf(c.err)
		}
	}
	a.board.Close()
	if a.json() {
		if err := ui.PrintJSON(a.stdout, reports); err != nil {
			return err
		}
		return outcome(reports, codes)
	}
	for _, c := range got {
		text := fmt.Sprintf("%s: built", nameFor(c.module, c.kernel))
		switch {
		case c.err != nil:
			text = fmt.Sprintf("%s: failed: %s", nameFor(c.module, c.kernel), c.report.Reason)
		case c.status == ui.Skipped:
			text = fmt.Sprintf("%s: skipped: %s", nameFor(c.module, c.kernel), c.report.Reason)
		case c.already:
			text = fmt.Sprintf("Module %s/%s already built for kernel %s (%s), skip. You may override by specifying --force.",
				c.module.Module, c.module.Version, c.kernel.Release, kernels.Kernel(c.kernel).Machine())
		}
		if err := a.println(text); err != nil {
			return err
		}
	}
	return outcome(reports, codes)
}

// println prints lines on standard output.
func (a *app) println(lines ...string) error {
	for _, text := range lines {
		if _, err := fmt.Fprintln(a.stdout, ui.Clean(text)); err != nil {
			return err
		}
	}
	return nil
}

// nameFor is what dkms calls a module for a kernel.
func nameFor(g host.Registration, k artifact.Kernel) string {
	return fmt.Sprintf("%s/%s, %s, %s", g.Module, g.Version, k.Release, kernels.Kernel(k).Machine())
}

// handOutOf writes the modules of what was obtained below a folder, as build does.
func (a *app) handOutOf(ctx context.Context, out string, c obtained, several bool) ([]ui.Module, error) {
	_, files, err := artifact.Read(c.image)
	if err != nil {
		return nil, err
	}
	dir := folderOf(out, kernels.Kernel(c.kernel))
	if several {
		dir = filepath.Join(dir, c.module.Module+"-"+c.module.Version)
	}
	modules, err := handOut(ctx, new(partialDir), out, dir, files, nil)
	if err != nil {
		err = fmt.Errorf("write the modules: %w; see to it or choose another folder with --out", err)
	}
	return modules, err
}
