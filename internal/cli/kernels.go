package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

func (a *app) kernelsCommand() *cobra.Command {
	var arch string
	cmd := &cobra.Command{
		Use:   "kernels DISTRO/SUITE",
		Short: "List the kernels of a suite that modules can be built for",
		Long: `Lists the kernels that can be built for, newest first: all that the suite's archive has the headers of now, its updates,
security and backports pockets included.` + exitStatus(
			"  0  the list was printed",
			"  1  the command line is wrong, or the index can't be had or trusted",
			" 21  there is no such suite"),
		Example: `  godkms-hermetic kernels debian/bookworm
  godkms-hermetic kernels debian/trixie --arch arm64 --format json`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("kernels takes one DISTRO/SUITE, as in debian/bookworm; known are %s", strings.Join(a.suites(), ", "))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runKernels(cmd.Context(), args[0], arch)
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return a.suites(), cobra.ShellCompDirectiveNoFileComp
		},
	}
	cmd.Flags().StringVar(&arch, "arch", kernels.HostArch(), "architecture, in the distribution's words")
	return cmd
}

func (a *app) runKernels(ctx context.Context, where, arch string) error {
	distro, suite, ok := strings.Cut(where, "/")
	if !ok || distro == "" || suite == "" {
		return fmt.Errorf("%q is not of the form DISTRO/SUITE, as in debian/bookworm; known are %s", where, strings.Join(a.suites(), ", "))
	}
	distros, err := a.distros()
	if err != nil {
		return err
	}
	p, ok := distros[distro]
	if !ok {
		return fmt.Errorf("no distribution %q; known are %s", distro, strings.Join(slices.Sorted(maps.Keys(distros)), ", "))
	}
	list, err := p.Kernels(ctx, suite, arch)
	if err != nil {
		if errors.Is(err, kernels.ErrNotFound) {
			return &exitError{code: exitNoKernel, err: err}
		}
		return err
	}
	if a.json() {
		return ui.WriteJSON(a.stdout, struct {
			Kernels []kernels.Candidate `json:"kernels"`
		}{append([]kernels.Candidate{}, list...)})
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, k := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", k.Kernel, k.Arch, k.PackageVersion, k.Compiler)
	}
	return w.Flush()
}

// parseSelectors reads a list of selectors, and passes over empty ones. One that is malformed or names an unknown distribution is
// an error.
func parseSelectors(distros map[string]kernels.Provider, list []string) ([]kernels.Selector, error) {
	var parsed []kernels.Selector
	for _, text := range list {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		s, err := kernels.ParseSelector(text)
		if err != nil {
			return nil, err
		}
		if _, ok := distros[s.Distro]; s.Distro != "" && !ok {
			return nil, fmt.Errorf("kernel %q: no distribution %q; known are %s", text, s.Distro, strings.Join(slices.Sorted(maps.Keys(distros)), ", "))
		}
		parsed = append(parsed, s)
	}
	return parsed, nil
}

// resolve finds the kernels of a request, before any of them is built for. A selector that names none becomes a target with an
// error, so that it stops no other.
func (a *app) resolve(ctx context.Context, distros map[string]kernels.Provider, selectors []kernels.Selector) ([]target, error) {
	r := kernels.Resolver{Providers: distros, Arch: kernels.HostArch(), Running: running(), Warn: a.board.Warn}
	var targets []target
	seen := map[kernels.Kernel]bool{}
	for _, s := range selectors {
		found, err := r.Resolve(ctx, []kernels.Selector{s})
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err != nil {
			targets = append(targets, target{label: s.String(), kernel: kernels.Kernel{Distro: s.Distro, Suite: s.Suite}, asked: s, err: a.advise(err)})
		}
		for _, k := range found {
			if !seen[k] {
				seen[k] = true
				targets = append(targets, target{label: k.String(), kernel: k})
			}
		}
	}
	return targets, nil
}

// running is this machine's uname -r.
func running() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// suites are all that are known, as DISTRO/SUITE.
func (a *app) suites() []string {
	distros, err := a.distros()
	if err != nil {
		return nil
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(distros)) {
		for _, s := range distros[name].Suites() {
			out = append(out, name+"/"+s)
		}
	}
	return out
}

// completeKernels completes the last selector of a list: suites first, then what the indexes that were fetched before offer; or what the
// lock file has that is named before.
func (a *app) completeKernels(cmd *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	done, last := "", typed
	if i := strings.LastIndex(typed, ","); i >= 0 {
		done, last = typed[:i+1], typed[i+1:]
	}
	where, _, qualified := strings.Cut(last, ":")
	distro, suite, _ := strings.Cut(where, "/")
	var out []string
	if f := cmd.Flags().Lookup("lock"); f != nil && f.Changed {
		file, err := readLockFile(f.Value.String())
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		for _, k := range file.Kernels() {
			out = append(out, done+k.String())
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
	if !qualified {
		for _, s := range a.suites() {
			out = append(out, done+s+":")
		}
		return out, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
	}
	a.offline = true
	if distros, err := a.distros(); err == nil && distros[distro] != nil {
		list, _ := distros[distro].Kernels(cmd.Context(), suite, kernels.HostArch())
		out = append(out, done+where+":"+kernels.Latest)
		for _, k := range list {
			out = append(out, done+k.String())
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
