package cli

import (
	"context"
	"errors"
	"fmt"
	"log/syslog"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/host"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

type autoinstallOptions struct {
	hostOptions
	limit time.Duration
}

func (a *app) autoinstallCommand() *cobra.Command {
	var o autoinstallOptions
	cmd := &cobra.Command{
		Use:   "autoinstall",
		Short: "Install all modules for a kernel",
		Long: `Installs for a kernel the newest version of each module that is to follow the host's kernels: those whose dkms.conf says
AUTOINSTALL=yes, and those that were added by a reference. Each is taken from the registry that it was registered with, or is there from
an earlier build, or is built in the sandbox; modules come after those that they depend on. What is installed already is left alone,
unless the kernel that has this release now is another one. Where there is nothing to do nothing is printed.

One module's failure stops no other, but for those that depend on it. It is kept for 'godkms-hermetic status', with the reason, is
told to the system's journal, and is tried again the next time. A module that doesn't want this kernel (BUILD_EXCLUSIVE) is no failure.

` + kernelHelp + exitStatus(
			"  0  all are installed, or don't want this kernel",
			"  1  the command line is wrong, or the root can't be changed",
			"  6  there is no such kernel",
			" 11  one or more couldn't be installed",
			"130  interrupted"),
		Example: "  godkms-hermetic autoinstall\n  godkms-hermetic autoinstall -k 6.1.0-56-amd64 --root /mnt",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.runAutoinstall(cmd.Context(), o) },
	}
	o.rootFlags(cmd)
	o.kernelFlags(cmd)
	o.depmodFlag(cmd.Flags())
	cmd.Flags().DurationVar(&o.limit, "timeout", 0, "give up after this time, as in 15m; what is ready then is installed (default never)")
	return cmd
}

func (a *app) runAutoinstall(ctx context.Context, o autoinstallOptions) error {
	root, err := a.openRoot(o.hostOptions)
	if err != nil {
		return err
	}
	ks, err := a.kernelsOf(root, o.hostOptions)
	if err != nil {
		return err
	}
	have, err := releases(root)
	if err != nil {
		return err
	}
	for _, k := range ks {
		if !slices.Contains(have, k.Release) {
			return hostError(root, fmt.Errorf("%w: %q has no modules on %s", host.ErrNoKernel, k.Release, root.Dir()))
		}
	}
	all, err := root.Modules()
	if err != nil && !errors.Is(err, host.ErrBroken) {
		return hostError(root, err)
	}
	failed := 0
	if err != nil {
		a.board.Warn(err.Error())
		failed++
	}
	for _, k := range ks {
		i := &autoinstallation{app: a, root: root, kernel: k, done: map[string]string{}}
		if err := i.run(ctx, following(all), o.limit); err != nil {
			return err
		}
		failed += len(i.failed)
	}
	if failed > 0 {
		return &exitError{code: exitAuto, err: errors.New("one or more modules couldn't be installed; see 'godkms-hermetic status'")}
	}
	return nil
}

// following are the modules that new kernels get: of each the newest version, if that is to follow, after those that it may depend on.
func following(all []host.Module) []host.Module {
	newest := map[string]host.Module{}
	for _, m := range all {
		if have, ok := newest[m.Module]; !ok || host.CompareVersions(have.Version, m.Version) < 0 {
			newest[m.Module] = m
		}
	}
	return inOrder(slices.DeleteFunc(slices.Clone(all), func(m host.Module) bool { return !m.Autoinstall || newest[m.Module].Version != m.Version }))
}

// autoinstallation is one for a kernel.
type autoinstallation struct {
	*app
	root   *host.Root
	kernel artifact.Kernel

	done      map[string]string // "", or why a module isn't installed, by its name
	installed []string
	skipped   []string
	failed    []string // with exit codes, as dkms has them
}

// run installs what isn't installed. An error is one that stops all.
func (i *autoinstallation) run(ctx context.Context, modules []host.Module, limit time.Duration) error {
	var todo []host.Module
	for _, m := range modules {
		needed, err := i.needed(ctx, &m)
		if err != nil {
			return hostError(i.root, err)
		}
		if needed {
			todo = append(todo, m)
		} else {
			i.done[m.Module] = ""
		}
	}
	if len(todo) == 0 {
		return nil
	}
	got, err := i.obtainInTime(ctx, todo, limit)
	if err != nil {
		return err
	}
	for _, c := range got {
		if err := i.install(ctx, c); err != nil {
			return err
		}
	}
	i.board.Close()
	for _, part := range []struct {
		names []string
		verb  string
	}{{i.installed, "succeeded"}, {i.skipped, "was skipped"}, {i.failed, "failed"}} {
		if len(part.names) > 0 {
			if err := i.println(fmt.Sprintf("Autoinstall on %s %s for module(s) %s.", i.kernel.Release, part.verb, strings.Join(part.names, " "))); err != nil {
				return err
			}
		}
	}
	return nil
}

// needed tells whether a module isn't installed as it is to be. From one that was built for another kernel of this release it takes the
// record away, so that it is obtained anew.
func (i *autoinstallation) needed(ctx context.Context, m *host.Module) (bool, error) {
	rec, ok := m.Find(i.kernel.Release, i.kernel.Arch)
	if !ok || rec.State != host.Installed {
		return true, nil
	}
	err := i.root.Check(rec, i.symvers(ctx, rec))
	switch {
	case err == nil:
		return false, nil
	case errors.Is(err, host.ErrBroken):
		i.board.Print(err.Error())
		return true, nil
	case errors.Is(err, host.ErrUnfit):
		i.board.Print(err.Error())
		m.Records = slices.DeleteFunc(slices.Clone(m.Records), func(r host.Record) bool { return r.Kernel == rec.Kernel })
		return true, nil
	}
	return false, err
}

// symvers is the digest of the Module.symvers that an installed module was built against, empty if that isn't known any more.
func (i *autoinstallation) symvers(ctx context.Context, rec host.Record) v1.Hash {
	results, err := rootResults(i.root, i.board.Warn)
	if err != nil {
		return v1.Hash{}
	}
	img, err := results.Peek(ctx, rec.Key)
	if err != nil {
		return v1.Hash{}
	}
	meta, _, err := artifact.ReadMeta(img)
	if err != nil {
		return v1.Hash{}
	}
	return meta.Symvers
}

// obtainInTime is obtain with a limit, 0 for none. When it has passed, what isn't ready is a failure.
func (i *autoinstallation) obtainInTime(ctx context.Context, modules []host.Module, limit time.Duration) ([]obtained, error) {
	ks, o := []artifact.Kernel{i.kernel}, obtainOptions{buildOptions: defaultBuild()}
	short, stop := limited(ctx, limit)
	defer stop()
	got, err := i.obtain(short, i.root, modules, ks, o)
	if err == nil || short.Err() == nil || ctx.Err() != nil {
		return got, err
	}
	late := context.Cause(short)
	var ready []host.Module
	for _, m := range modules {
		m, err := i.root.Module(m.Module, m.Version)
		if err != nil {
			return nil, hostError(i.root, err)
		}
		if rec, ok := m.Find(i.kernel.Release, i.kernel.Arch); ok && rec.State == host.Built {
			ready = append(ready, m)
		}
	}
	if len(ready) > 0 {
		if got, err = i.obtain(ctx, i.root, ready, ks, o); err != nil {
			return nil, err
		}
	}
	var out []obtained
	for _, m := range modules {
		j := slices.IndexFunc(got, func(c obtained) bool { return c.module.Module == m.Module })
		if j >= 0 {
			out = append(out, got[j])
		} else {
			out = append(out, obtained{module: m.Registration, kernel: i.kernel, status: ui.Failed, err: &exitError{code: exitUsage, err: late}})
		}
	}
	return out, nil
}

// install installs what was obtained. An error is one that stops all.
func (i *autoinstallation) install(ctx context.Context, c obtained) error {
	m, name := c.module, c.module.Module+"/"+c.module.Version
	err := c.err
	for _, need := range m.Depends {
		if why := i.done[need]; err == nil && why != "" {
			err = &exitError{code: exitDepends, err: fmt.Errorf("it may need %s, which isn't installed: %s", need, why)}
		}
	}
	if err == nil && c.status == ui.Skipped {
		i.skipped = append(i.skipped, m.Module)
		return i.forget(ctx, m)
	}
	if err == nil {
		if err := i.println(fmt.Sprintf("Autoinstall of module %s for kernel %s (%s)", name, i.kernel.Release, kernels.Kernel(i.kernel).Machine())); err != nil {
			return err
		}
		_, err = i.root.Install(ctx, host.Install{Artifact: c.image, From: c.from})
		err = hostError(i.root, err)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err == nil {
		i.done[m.Module] = ""
		i.installed = append(i.installed, m.Module)
		return nil
	}
	reason, _, _ := strings.Cut(err.Error(), "\n")
	i.done[m.Module] = reason
	i.failed = append(i.failed, fmt.Sprintf("%s(%d)", m.Module, codeOf(err)))
	message := fmt.Sprintf("%s for %s: %s", name, i.kernel.Release, reason)
	i.board.Warn(message)
	if i.root.IsHost() && i.env("JOURNAL_STREAM") == "" { // else the journal has it from standard error
		tellJournal(message)
	}
	rec := host.Record{Module: m.Module, Version: m.Version, Kernel: i.kernel, State: host.Failed, Reason: reason, Changed: time.Now().UTC().Truncate(time.Second)}
	if err := i.root.Note(ctx, rec); err != nil && !errors.Is(err, host.ErrRefused) {
		i.board.Warn(fmt.Sprintf("%s: the reason can't be kept: %v", name, err))
	}
	return nil
}

// forget removes the record of an earlier failure.
func (i *autoinstallation) forget(ctx context.Context, g host.Registration) error {
	m, err := i.root.Module(g.Module, g.Version)
	if err != nil {
		return hostError(i.root, err)
	}
	if rec, ok := m.Find(i.kernel.Release, i.kernel.Arch); ok && rec.State == host.Failed {
		return hostError(i.root, i.root.Forget(ctx, g.Module, g.Version, i.kernel))
	}
	return nil
}

// tellJournal sends an error to the system's log, if there is one.
func tellJournal(message string) {
	if w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_ERR, "godkms-hermetic"); err == nil {
		w.Err(ui.Clean(message))
		w.Close()
	}
}
