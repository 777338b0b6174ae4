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
)

type autoinstallOptions struct {
	hostOptions
	sign  signOptions
	limit time.Duration
}

func (a *app) autoinstallCommand() *cobra.Command {
	var o autoinstallOptions
	cmd := &cobra.Command{
		Use:   "autoinstall",
		Short: "Install all modules for a kernel",
		Long: `Installs for a kernel the newest version of each module that is to follow the host's kernels: those whose dkms.conf says
AUTOINSTALL=yes, and those that were added by a reference. Each is taken from the registry that it was registered with, or is
there from an earlier build, or is built in the sandbox; modules come after those that they depend on. What is installed already
is left alone, unless the kernel that has this release now is another one, or it has no signature and there is a key now. Where
there is nothing to do nothing is printed.

One module's failure stops no other, but for those that depend on it. It is kept for 'godkms-hermetic status', with the reason,
is told to the system's journal, and is tried again the next time. A module that doesn't want this kernel (BUILD_EXCLUSIVE) is no
failure.

` + signHelp + `

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
	o.sign.flags(cmd.Flags())
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
	for _, k := range ks {
		if err := hasKernel(root, k); err != nil {
			return hostError(root, err)
		}
	}
	all, err := root.Modules()
	if err != nil && !errors.Is(err, host.ErrBroken) {
		return hostError(root, err)
	}
	reports, failures := []ui.Result{}, 0
	if err != nil {
		a.board.Warn(err.Error())
		failures++
	}
	modules, err := following(root, all)
	if err != nil {
		return hostError(root, err)
	}
	for _, k := range ks {
		got, err := a.autoinstall(ctx, root, modules, k, o)
		if err != nil {
			return err
		}
		a.board.Close()
		var installed, skipped, failed []string
		for _, c := range got {
			reports = append(reports, c.report)
			switch name := c.module.Module; {
			case c.err != nil:
				failed = append(failed, fmt.Sprintf("%s(%d)", name, codeOf(c.err))) // as dkms has it
				failures++
			case c.status == ui.Skipped:
				skipped = append(skipped, name)
			default:
				installed = append(installed, name)
			}
		}
		for _, part := range []struct {
			verb  string
			names []string
		}{{"succeeded", installed}, {"was skipped", skipped}, {"failed", failed}} {
			if len(part.names) == 0 || a.json() {
				continue
			}
			if err := a.println(fmt.Sprintf("Autoinstall on %s %s for module(s) %s.", k.Release, part.verb, strings.Join(part.names, " "))); err != nil {
				return err
			}
		}
	}
	if a.json() {
		if err := ui.PrintJSON(a.stdout, reports); err != nil {
			return err
		}
	}
	if failures > 0 {
		return &exitError{code: exitAuto, err: errors.New("one or more modules couldn't be installed; see 'godkms-hermetic status'")}
	}
	return nil
}

// following are the modules that new kernels get: of each the newest version, if that is to follow or another one needs it, after those that
// it may need.
func following(root *host.Root, all []host.Module) ([]host.Module, error) {
	var out []host.Module
	for _, m := range host.Newest(all) {
		if !m.Autoinstall {
			continue
		}
		list, err := withDepends(root, m)
		if err != nil {
			return nil, err
		}
		for _, d := range list {
			if !slices.ContainsFunc(out, func(o host.Module) bool { return o.Module == d.Module }) {
				out = append(out, d)
			}
		}
	}
	return out, nil
}

// autoinstall installs those of the modules that aren't installed for a kernel, and gives how that ended. What failed has been told, and
// is kept. When the limit has passed what isn't ready fails.
func (a *app) autoinstall(ctx context.Context, root *host.Root, modules []host.Module, k artifact.Kernel, o autoinstallOptions) ([]obtained, error) {
	var todo []host.Module
	var out []obtained
	for _, m := range modules {
		switch m, needed, err := a.needs(ctx, root, m, k, o.sign); {
		case err != nil:
			out = append(out, failed(m, k, hostError(root, err)))
		case needed:
			todo = append(todo, m)
		}
	}
	if len(todo) > 0 {
		got, err := a.autoinstallAll(ctx, root, todo, k, o)
		if err != nil {
			return nil, err
		}
		out = append(out, got...)
	}
	for _, c := range out {
		var err error
		switch {
		case c.err != nil:
			err = a.keepFailure(ctx, root, c)
		case c.status == ui.Skipped:
			err = forgetFailure(ctx, root, c)
		}
		if err != nil {
			return nil, hostError(root, err)
		}
	}
	return out, nil
}

// autoinstallAll installs modules for a kernel. What can't be had has failed; an error says that it was interrupted.
func (a *app) autoinstallAll(ctx context.Context, root *host.Root, todo []host.Module, k artifact.Kernel, o autoinstallOptions) ([]obtained, error) {
	a.refresh = !a.offline // a kernel that has just come is newer than an index of some hours ago
	ks, how := []artifact.Kernel{k}, installOptions{build: defaultBuild(), sign: o.sign}
	short, stop := limited(ctx, o.limit)
	defer stop()
	got, err := a.install(short, root, todo, ks, how)
	if err != nil && short.Err() != nil && ctx.Err() == nil {
		got, err = a.installReady(ctx, root, todo, ks, how, context.Cause(short))
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil { // it's what all fail for
		got = nil
		for _, m := range todo {
			got = append(got, failed(m, k, err))
		}
	}
	return got, nil
}

// needs tells whether a module is to be installed for a kernel. One that was built for another kernel of that release is so without its
// record, so that it's obtained anew. One that isn't signed is, when there is a key now; what another key has signed stays, since the
// firmware may not trust this one yet.
func (a *app) needs(ctx context.Context, root *host.Root, m host.Module, k artifact.Kernel, sign signOptions) (host.Module, bool, error) {
	rec, ok := m.Find(k.Release, k.Arch)
	if !ok || rec.State != host.Installed {
		return m, true, nil
	}
	err := root.Check(rec, a.symversOf(ctx, root, rec))
	switch {
	case err == nil && rec.Signer != "":
		return m, false, nil
	case err == nil:
		signer, _ := a.signer(root, sign) // a key that can't be used harms nothing that is installed
		return m, signer != nil, nil
	case errors.Is(err, host.ErrUnfit):
		m.Records = slices.DeleteFunc(slices.Clone(m.Records), func(r host.Record) bool { return r.Kernel == rec.Kernel })
	case !errors.Is(err, host.ErrBroken):
		return m, false, err
	}
	a.board.Print(err.Error())
	return m, true, nil
}

// symversOf is the digest of the Module.symvers that an installed module was built against, empty if that isn't known any more.
func (a *app) symversOf(ctx context.Context, root *host.Root, rec host.Record) v1.Hash {
	results, err := rootResults(root, a.board.Warn)
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

// installReady installs those modules that are ready. The others are too late.
func (a *app) installReady(ctx context.Context, root *host.Root, modules []host.Module, ks []artifact.Kernel, o installOptions, late error) ([]obtained, error) {
	var ready []host.Module
	var out []obtained
	for _, m := range modules {
		now, err := root.ModuleFor(m.Module, m.Version, ks...)
		needed := false
		if err == nil {
			now, needed, err = a.needs(ctx, root, now, ks[0], o.sign)
		}
		if err != nil {
			out = append(out, failed(m, ks[0], hostError(root, err)))
			continue
		}
		if rec, ok := now.Find(ks[0].Release, ks[0].Arch); !needed || ok && rec.State != host.Failed {
			ready = append(ready, now)
		} else {
			out = append(out, failed(m, ks[0], late))
		}
	}
	if len(ready) == 0 {
		return out, nil
	}
	ctx, stop := limited(ctx, 4*time.Minute) // the service has 20, of which 15 are gone
	defer stop()
	got, err := a.install(ctx, root, ready, ks, o)
	return append(got, out...), err
}

// keepFailure tells the journal why a module couldn't be installed, and keeps it for status.
func (a *app) keepFailure(ctx context.Context, root *host.Root, c obtained) error {
	reason, _, _ := strings.Cut(c.err.Error(), "\n")
	message := fmt.Sprintf("%s: failed: %s", nameFor(c.module, c.kernel), reason)
	a.board.Warn(message)
	if root.IsHost() && a.env("JOURNAL_STREAM") == "" { // else it gets what is printed
		tellJournal(message)
	}
	err := root.Note(ctx, host.Record{Module: c.module.Module, Version: c.module.Version, Kernel: c.kernel, State: host.Failed, Reason: reason,
		Changed: time.Now().UTC().Truncate(time.Second)})
	if errors.Is(err, host.ErrRefused) || errors.Is(err, host.ErrBroken) { // what is installed stays so, and what is damaged
		return nil
	}
	return err
}

// forgetFailure removes the record of an earlier failure of what doesn't want the kernel.
func forgetFailure(ctx context.Context, root *host.Root, c obtained) error {
	m, err := root.Module(c.module.Module, c.module.Version)
	if err != nil && !errors.Is(err, host.ErrBroken) {
		return err
	}
	if rec, ok := m.Find(c.kernel.Release, c.kernel.Arch); ok && rec.State == host.Failed {
		return root.Forget(ctx, rec.Module, rec.Version, rec.Kernel)
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
