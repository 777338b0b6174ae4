package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

func (a *app) kernelsCommand() *cobra.Command {
	var arch string
	cmd := &cobra.Command{
		Use:   "kernels [DISTRO[/SUITE] | KERNELS]...",
		Short: "List the kernels that modules can be built for",
		Long: `Lists the kernels that can be built for, newest first: all that the archive of a suite has the headers of now, its updates,
security and backports included. DISTRO is for all its suites, and each may be a shell pattern. KERNELS are written as for
'build --kernels', and the list is what a build with them is for. Without an argument it lists the distributions and suites that
are known, and where their packages come from.

Each line has the kernel, its architecture, the version of its header package, the compiler that built it ("-" where only the
package itself tells, and wasn't read yet), the flavour, as latest@FLAVOUR takes it, and the day of the package where the
index has dates.` + exitStatus(
			"  0  the list was printed",
			"  1  the command line is wrong, or the index can't be had or trusted",
			" 21  there is no such suite or kernel"),
		Example: `  godkms-hermetic kernels debian/bookworm
  godkms-hermetic kernels debian/trixie --arch arm64 --format json
  godkms-hermetic kernels 'ubuntu/*:*-generic,!*/jammy:*'
  godkms-hermetic kernels`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return a.runDistros()
			}
			return a.runKernels(cmd.Context(), args, arch)
		},
		ValidArgsFunction: a.completeKernels,
	}
	cmd.Flags().StringVar(&arch, "arch", kernels.HostArch(), "architecture, as Debian names it or uname -m")
	return cmd
}

// listed makes a selector of what names a suite or a distribution.
func listed(distros map[string]kernels.Provider, text string) (string, error) {
	distro, suite, _ := strings.Cut(text, "/")
	switch {
	case suite == "" && distros[distro] != nil:
		return distro + "/*:*", nil
	case suite != "" && !strings.ContainsAny(text, ":@"):
		return text + ":*", nil
	case text == kernels.Running || text == kernels.Latest:
	case distro != "" && unicode.IsLetter(rune(text[0])) && !strings.ContainsAny(text, ":*?[=@"):
		return "", fmt.Errorf("no distribution %q; a suite is named DISTRO/SUITE, as in debian/bookworm, of the distributions %s", distro, strings.Join(slices.Sorted(maps.Keys(distros)), ", "))
	}
	return text, nil
}

func (a *app) runKernels(ctx context.Context, args []string, arch string) error {
	distros, err := a.distros()
	if err != nil {
		return err
	}
	var texts []string
	for _, arg := range args {
		for text := range strings.SplitSeq(arg, ",") {
			if text, err = listed(distros, strings.TrimSpace(text)); err != nil {
				return err
			}
			texts = append(texts, text)
		}
	}
	selectors, err := parseSelectors(distros, texts)
	if err != nil {
		return err
	}
	if len(selectors) == 0 {
		return errors.New("no kernel given; name some as in debian/trixie:latest, or give no argument for the distributions and suites")
	}
	answers, err := a.resolver(distros, kernels.ArchOf(arch)).Resolve(ctx, selectors)
	if err != nil {
		return err
	}
	list := []kernels.Candidate{}
	dated := false
	for _, w := range answers {
		if errors.Is(w.Err, kernels.ErrNotFound) {
			return &exitError{code: exitNoKernel, err: w.Err}
		}
		if w.Err != nil {
			return w.Err
		}
		list = append(list, w.Kernels...)
		dated = dated || slices.ContainsFunc(w.Kernels, func(k kernels.Candidate) bool { return !k.Date.IsZero() })
	}
	if a.json() {
		return ui.WriteJSON(a.stdout, struct {
			Kernels []kernels.Candidate `json:"kernels"`
		}{list})
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, k := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s", k.Kernel, k.Arch, k.PackageVersion, cmp.Or(k.Compiler, "-"), cmp.Or(k.Flavour, "-"))
		if dated {
			date := "-"
			if !k.Date.IsZero() {
				date = k.Date.UTC().Format(time.DateOnly)
			}
			fmt.Fprintf(w, "\t%s", date)
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

// distroReport is a distribution in what kernels prints without an argument.
type distroReport struct {
	Distro  string         `json:"distro"`
	Suites  []string       `json:"suites"` // newest first
	Mirrors []mirrorReport `json:"mirrors"`
}

type mirrorReport struct {
	Archive string `json:"archive"`
	URL     string `json:"url"` // without passwords
	From    string `json:"from"`
}

// runDistros lists the distributions and suites that are known.
func (a *app) runDistros() error {
	distros, err := a.distros()
	if err != nil {
		return err
	}
	reports := []distroReport{}
	for _, name := range slices.Sorted(maps.Keys(distros)) {
		r := distroReport{Distro: name, Suites: distros[name].Suites(), Mirrors: []mirrorReport{}}
		if p, ok := distros[name].(interface{ Mirrors() []repo.Mirror }); ok {
			for _, m := range p.Mirrors() {
				r.Mirrors = append(r.Mirrors, mirrorReport{m.Archive, redacted(m.URL), a.origin(p.Mirrors(), m)})
			}
		}
		reports = append(reports, r)
	}
	if a.json() {
		return ui.WriteJSON(a.stdout, struct {
			Distributions []distroReport `json:"distributions"`
		}{reports})
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, r := range reports {
		where := fmt.Sprintf("no mirror: name one with --mirror %s=URL", r.Distro)
		if len(r.Mirrors) > 0 {
			where = fmt.Sprintf("%s (%s)", r.Mirrors[0].URL, r.Mirrors[0].From)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", r.Distro, strings.Join(r.Suites, " "), where)
	}
	return w.Flush()
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
	if strings.HasPrefix(typed, "@") && !strings.Contains(typed, ",") {
		return nil, cobra.ShellCompDirectiveDefault // a file
	}
	done, last := "", typed
	if i := strings.LastIndex(typed, ","); i >= 0 {
		done, last = typed[:i+1], typed[i+1:]
	}
	if rest, excluded := strings.CutPrefix(last, "!"); excluded {
		done, last = done+"!", rest
	}
	where, which, qualified := strings.Cut(last, ":")
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
	distros, err := a.distros()
	if err != nil || distros[distro] == nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	list, _ := distros[distro].Kernels(cmd.Context(), suite, kernels.HostArch())
	if word, _, flavoured := strings.Cut(which, "@"); flavoured {
		var flavours []string
		for _, k := range list {
			flavours = append(flavours, k.Flavour)
		}
		slices.Sort(flavours)
		for _, f := range slices.Compact(append([]string{"*"}, flavours...)) {
			out = append(out, done+where+":"+word+"@"+f)
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
	if !strings.HasSuffix(done, "!") {
		out = append(out, done+where+":"+kernels.Latest)
	}
	for _, k := range list {
		out = append(out, done+k.String())
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
