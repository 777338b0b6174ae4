package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/godkms-hermetic/godkms-hermetic/internal/host"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

func (a *app) gateCommand() *cobra.Command {
	var o hostOptions
	cmd := &cobra.Command{
		Use:   "gate -k RELEASE",
		Short: "Say whether a kernel upgrade would lose a module",
		Long: `Tells, before a kernel is installed, whether each module that the running kernel has can be had for it too, and each that new
kernels get. It is taken from where autoinstall would take it, and kept: what had to be built here is there when the kernel comes.
With --root the newest kernel of that root takes the running one's place. Nothing is installed, and the kernel needn't be there.

Standard output has one line for each module: whether it's built, cached (from before), pulled (from its registry), skipped (it
doesn't want that kernel), or failed, and why. One that is skipped is lost if the running kernel has it.` + exitStatus(
			"  0  no module would be lost",
			"  1  the command line is wrong, or the root can't be changed",
			"  4  none would be lost of those that are known, but the state of others is broken",
			" 11  one or more would be lost",
			"130  interrupted"),
		Example: "  godkms-hermetic gate -k 6.1.0-57-amd64 && apt-get install linux-image-6.1.0-57-amd64",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.runGate(cmd.Context(), o) },
	}
	o.rootFlags(cmd)
	f := cmd.Flags()
	f.StringSliceVarP(&o.kernels, "kernel", "k", nil, "`RELEASE` of the kernel that is to come; can be repeated")
	f.StringVarP(&o.arch, "arch", "a", kernels.HostArch(), "`ARCH` of the kernel, as the distribution or uname names it")
	cmd.RegisterFlagCompletionFunc("kernel", cobra.NoFileCompletions)
	cmd.RegisterFlagCompletionFunc("arch", cobra.NoFileCompletions)
	return cmd
}

// gateResult is what a module comes to for a kernel.
type gateResult struct {
	Module  string    `json:"module"`
	Version string    `json:"version"`
	Release string    `json:"release"`
	Arch    string    `json:"arch"`
	Status  ui.Status `json:"status"`
	From    string    `json:"from,omitempty"`   // the registry that has it
	Reason  string    `json:"reason,omitempty"` // why it failed or was skipped
	Lost    bool      `json:"lost"`
}

func (a *app) runGate(ctx context.Context, o hostOptions) error {
	if len(o.kernels) == 0 {
		return errors.New("no kernel given; name the one that is to come with -k")
	}
	root, err := a.openRoot(o)
	if err != nil {
		return err
	}
	ks, err := a.kernelsOf(root, o)
	if err != nil {
		return err
	}
	all, broken := root.Modules()
	if broken != nil && !errors.Is(broken, host.ErrBroken) {
		return hostError(root, broken)
	}
	have, err := releases(root)
	if err != nil {
		return err
	}
	now := running()
	if !root.IsHost() && len(have) > 0 {
		now = slices.MaxFunc(have, host.CompareVersions)
	}
	wanted, err := following(root, all)
	if err != nil {
		return hostError(root, err)
	}
	has := map[string]bool{} // modules that the kernel of now has
	for _, m := range all {
		if rec, ok := m.Find(now, ks[0].Arch); !ok || rec.State != host.Installed {
			continue
		}
		has[m.Module] = true
		if !slices.ContainsFunc(wanted, func(w host.Module) bool { return w.Module == m.Module }) {
			wanted = append(wanted, m)
		}
	}
	a.refresh = !a.offline // as autoinstall does
	got, err := a.obtain(ctx, root, inOrder(wanted), ks, obtainOptions{buildOptions: defaultBuild()})
	if err != nil {
		return err
	}
	a.board.Close()
	results := make([]gateResult, len(got))
	var lost []string
	for i, c := range got {
		results[i] = gateResult{Module: c.module.Module, Version: c.module.Version, Release: c.kernel.Release, Arch: kernels.Kernel(c.kernel).Machine(),
			Status: c.status, From: c.from, Reason: c.report.Reason, Lost: c.err != nil || c.status == ui.Skipped && has[c.module.Module]}
		if results[i].Lost {
			lost = append(lost, c.module.Module)
		}
		if c.err == nil || slices.Contains(have, c.kernel.Release) {
			continue
		}
		if err := root.Forget(ctx, c.module.Module, c.module.Version, c.kernel); err != nil && !errors.Is(err, host.ErrNotAdded) { // of a kernel that may never come
			return hostError(root, err)
		}
	}
	if a.json() {
		err = ui.WriteJSON(a.stdout, struct {
			Modules []gateResult `json:"modules"`
		}{results})
	} else {
		for i, g := range results {
			text := fmt.Sprintf("%s: %s", nameFor(got[i].module, got[i].kernel), g.Status)
			if g.Reason != "" {
				text += ": " + g.Reason
			}
			err = errors.Join(err, a.println(text))
		}
	}
	switch {
	case err != nil:
	case len(lost) > 0:
		err = &exitError{code: exitAuto, err: fmt.Errorf("%s would be lost", strings.Join(lost, ", "))}
	default: // what isn't known may be lost
		err = hostError(root, broken)
	}
	return err
}
