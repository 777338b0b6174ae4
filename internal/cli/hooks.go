package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/godkms-hermetic/godkms-hermetic/internal/host"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
)

func (a *app) hooksCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "hooks COMMAND",
		Short: "Have modules follow the host's kernels",
		Long: `Installs and removes the hooks of package managers, by which a new kernel gets the modules that the host has ('autoinstall'),
and a kernel that goes loses them, and a service that does what is left to do when the host starts.` + exitStatus("0  done", "1  see the commands"),
		Example: "  godkms-hermetic hooks install\n  godkms-hermetic hooks status",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var dir string
	var systems []string
	sub := func(use, short, long, example string, run func(ctx context.Context, r *host.Root, program string, systems []string) error) {
		c := &cobra.Command{
			Use: use, Short: short, Example: example, Args: cobra.NoArgs,
			Long: long + exitStatus(
				"0  all is as it was asked for", "1  the command line is wrong, a file can't be written, or one that somebody changed is in the way"),
			RunE: func(cmd *cobra.Command, _ []string) error {
				for _, s := range systems {
					if !slices.Contains(host.HookSystems, s) {
						return fmt.Errorf("--for is %q: it can be %s", s, strings.Join(host.HookSystems, ", "))
					}
				}
				r, err := host.Open(dir, host.Options{Warn: a.board.Warn})
				if err != nil {
					return fmt.Errorf("--root: %w", err)
				}
				program, err := hookProgram(r)
				if err != nil {
					return err
				}
				if err = run(cmd.Context(), r, program, systems); !errors.Is(err, host.ErrRefused) { // for which a host's modules have a code of their own
					err = hostError(r, err)
				}
				return err
			},
		}
		c.Flags().StringVar(&dir, "root", "/", "`DIR` of the host: a mounted image or a chroot")
		c.MarkFlagDirname("root")
		if use != "status" {
			c.Flags().StringSliceVar(&systems, "for", nil, "only those for `SYSTEMS`, of "+strings.Join(host.HookSystems, ", ")+" (default those that the root has)")
			c.RegisterFlagCompletionFunc("for", cobra.FixedCompletions(host.HookSystems, cobra.ShellCompDirectiveNoFileComp))
		}
		cmd.AddCommand(c)
	}
	sub("install", "Install the hooks, or bring them up to date",
		`Writes the hooks for the package managers that the host has: for dpkg below /etc/kernel, for kernel-install below
/usr/lib/kernel/install.d, for pacman below /usr/share/libalpm, and for systemd godkms-hermetic.service, which it enables. Hooks
that an earlier version wrote are brought up to date. A file that was changed by hand, or is somebody else's, is left alone.

A hook never fails the package manager: what couldn't be had is in 'godkms-hermetic status' and in the journal. It gives up after
15 minutes. What it downloads is kept in /var/cache/godkms-hermetic. The hooks call the program by its path in /usr/bin,
/usr/local/bin or another such folder; where it's gone they do nothing.`,
		"  godkms-hermetic hooks install\n  godkms-hermetic hooks install --root /mnt/image --for dpkg", a.installHooks)
	sub("remove", "Remove the hooks", `Removes the hooks that 'hooks install' wrote. A file that was changed since is left alone.`,
		"  godkms-hermetic hooks remove", func(_ context.Context, r *host.Root, program string, systems []string) error {
			if systems == nil {
				systems = host.HookSystems
			}
			return errors.Join(r.RemoveHooks(program, systems), a.printHooks(r, program, nil))
		})
	sub("status", "Show the hooks",
		`Shows each hook with what there is of it: installed, absent, outdated (an earlier version's: 'hooks install' brings it up to
date), altered (changed since it was written), or foreign (somebody else's).`,
		"  godkms-hermetic hooks status --format json", func(_ context.Context, r *host.Root, program string, _ []string) error {
			return a.printHooks(r, program, host.HookSystems)
		})
	return cmd
}

func (a *app) installHooks(_ context.Context, r *host.Root, program string, systems []string) error {
	if systems == nil {
		var err error
		if systems, err = r.HookSystems(); err != nil {
			return err
		}
		if len(systems) == 0 {
			return fmt.Errorf("%s has none of %s; name one with --for", r.Dir(), strings.Join(host.HookSystems, ", "))
		}
	}
	if !path.IsAbs(program) {
		a.board.Warn(fmt.Sprintf("%s isn't in /usr/bin, /usr/local/bin or another such folder of %s: until it is, hooks do nothing", program, r.Dir()))
	}
	return errors.Join(r.InstallHooks(program, systems), a.printHooks(r, program, systems))
}

// printHooks prints those for some systems, and any others that are there.
func (a *app) printHooks(r *host.Root, program string, systems []string) error {
	list, err := r.Hooks(program)
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(h host.Hook) bool { return h.State == host.HookAbsent && !slices.Contains(systems, h.For) })
	if a.json() {
		return ui.WriteJSON(a.stdout, struct {
			Hooks []host.Hook `json:"hooks"`
		}{append([]host.Hook{}, list...)})
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, h := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\n", h.For, h.State, h.Path)
	}
	return w.Flush()
}

// systemFolders are where hooks call the program by its path.
var systemFolders = []string{"/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin", "/bin", "/sbin"}

// hookProgram is what hooks of a root are to call: this program, if the root is the one it runs on and it's in a folder of the system's, or
// else the one of its name that is in such a folder of the root, or else its name.
func hookProgram(r *host.Root) (string, error) {
	const name = "godkms-hermetic"
	if r.IsHost() {
		exe, err := os.Executable()
		if err != nil {
			return "", err
		}
		if slices.Contains(systemFolders, filepath.Dir(exe)) {
			return exe, nil
		}
	}
	for _, dir := range systemFolders {
		at, err := r.Path(path.Join(dir, name))
		if err != nil {
			return "", err
		}
		if info, err := os.Stat(at); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path.Join(dir, name), nil
		}
	}
	return name, nil
}

// kernelPrermCommand is what hooks run before a kernel is removed, by dkms's name of it.
func (a *app) kernelPrermCommand() *cobra.Command {
	var dir string
	var releases []string
	var limit time.Duration
	cmd := &cobra.Command{
		Use:    "kernel_prerm -k RELEASE",
		Short:  "Take the modules off a kernel that is to be removed",
		Hidden: true,
		Long: `Uninstalls and forgets all modules for kernels that are about to be removed, as hooks do it, so that nothing of them is left in
/lib/modules.` + exitStatus("0  nothing is left", "1  the command line is wrong", "6  something couldn't be taken off"),
		Example: "  godkms-hermetic kernel_prerm -k 6.1.0-56-amd64",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(releases) == 0 {
				return errors.New("no kernel given; use -k")
			}
			r, err := host.Open(dir, host.Options{Warn: a.board.Warn})
			if err != nil {
				return fmt.Errorf("--root: %w", err)
			}
			ctx, stop := limited(cmd.Context(), limit)
			defer stop()
			return a.leaveKernels(ctx, r, releases)
		},
	}
	cmd.Flags().StringVar(&dir, "root", "/", "`DIR` of the host: a mounted image or a chroot")
	cmd.Flags().StringSliceVarP(&releases, "kernel", "k", nil, "`RELEASE` of the kernel; can be repeated")
	cmd.Flags().DurationVar(&limit, "timeout", 0, "give up after this time, as in 5m (default never)")
	return cmd
}

// limited is ctx with a limit; 0 is none.
func limited(ctx context.Context, limit time.Duration) (context.Context, context.CancelFunc) {
	if limit == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, limit, fmt.Errorf("given up after %s", limit))
}

// leaveKernels takes all modules off kernels and forgets what was built for them. One failure stops nothing.
func (a *app) leaveKernels(ctx context.Context, r *host.Root, releases []string) error {
	results, err := rootResults(r, a.board.Warn)
	if err != nil {
		return hostError(r, err)
	}
	list, err := r.Modules()
	failed := []error{err}
	for _, m := range list {
		for _, rec := range m.Records {
			if !slices.Contains(releases, rec.Kernel.Release) {
				continue
			}
			text, err := a.withdraw(ctx, r, results, m, rec.Kernel, unbuilding)
			failed = append(failed, err)
			if err == nil && rec.State == host.Installed {
				failed = append(failed, a.println(text...))
			}
		}
	}
	if err := errors.Join(failed...); err != nil {
		return &exitError{code: exitInstall, err: err}
	}
	return nil
}
