// Compare-dkms runs the real dkms and this tool over the same modules, for the same kernels, on the same header images, and shows
// where they differ. Without arguments it takes every *-dkms package of Debian bookworm:
//
//	go run ./scripts/compare-dkms -json out/compare-dkms.json
//	go run ./scripts/compare-dkms v4l2loopback-dkms ./some-dkms_1.0_all.deb
//
// Dkms is Debian's dkms 3.2; see package dkmstest. The two take turns, so that their seconds can be compared: of dkms those of
// "dkms build", of the tool those of the whole program, with packages downloaded and header images there, and no result in the
// cache. A difference is explained where the tool refuses a module that dkms built, and the kernel's own tools, depmod and
// modinfo, confirm on dkms's module that the kernel could not have loaded it. The exit code is 1 when one is not.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/internal/dkmstest"
)

type options struct {
	tool, cache, json   string
	kernels, components string
	timeout             time.Duration
	resume              bool
	packages            []string
}

func main() {
	var o options
	flag.StringVar(&o.tool, "tool", "bin/godkms-hermetic", "the program to compare")
	flag.StringVar(&o.cache, "cache", dkmstest.Cache(), "`DIR` that keeps downloads and header images for the next time")
	flag.StringVar(&o.json, "json", "", "write the results to `FILE` as well, after each row")
	flag.StringVar(&o.kernels, "kernels", "6.1,6.12", "`LINES` of kernels, the newest of each, or whole releases")
	flag.StringVar(&o.components, "components", "main", "`LIST` of the archive's components whose packages are taken: main,contrib,non-free")
	flag.DurationVar(&o.timeout, "timeout", 20*time.Minute, "limit for each build")
	flag.BoolVar(&o.resume, "resume", false, "take the rows that the file of -json has already from it")
	flag.Parse()
	o.packages = flag.Args()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	unexplained, err := run(ctx, o, os.Stdout, os.Stderr)
	if err != nil {
		if ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		fmt.Fprintln(os.Stderr, "compare-dkms:", err)
	}
	if err != nil || unexplained > 0 {
		os.Exit(1)
	}
}

// report is the JSON file.
type report struct {
	Tool  string    `json:"tool"`
	Start time.Time `json:"start"`
	Rows  []row     `json:"rows"`
}

// run compares and prints the table. It gives the number of differences that nothing explains.
func run(ctx context.Context, o options, stdout, stderr io.Writer) (unexplained int, err error) {
	say := func(format string, a ...any) { fmt.Fprintf(stderr, "compare-dkms: "+format+"\n", a...) }
	if o.resume && o.json == "" {
		return 0, errors.New("-resume needs the file of -json")
	}
	work, err := os.MkdirTemp("", "compare-dkms-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	c, err := newComparison(ctx, o, work)
	if err != nil {
		return 0, err
	}
	rep := report{Tool: c.version, Start: time.Now().UTC()}
	var before report
	if o.resume {
		if before, err = readReport(o.json); err != nil {
			return 0, err
		}
	}
	targets, err := c.targets(ctx, strings.Split(o.kernels, ","))
	if err != nil {
		return 0, err
	}
	packages, err := c.packages(ctx, strings.Split(o.components, ","), o.packages)
	if err != nil {
		return 0, err
	}
	say("%d packages, each for %s", len(packages), targets)
	for i, p := range packages {
		for _, k := range targets {
			if i := slices.IndexFunc(before.Rows, func(r row) bool { return r.Package == p.label && r.Kernel == k.Release && r.Error == "" }); i >= 0 {
				rep.Rows = append(rep.Rows, before.Rows[i])
				continue
			}
			r := c.compare(ctx, p, k)
			if ctx.Err() != nil {
				return 0, ctx.Err()
			}
			rep.Rows = append(rep.Rows, r)
			say("%d/%d %s", i+1, len(packages), strings.ReplaceAll(r.line(), "\t", "  "))
			if err := rep.write(o.json); err != nil {
				return 0, err
			}
		}
	}
	return rep.unexplained(), rep.print(stdout)
}

func readReport(file string) (rep report, err error) {
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return rep, nil
	}
	if err != nil {
		return rep, err
	}
	if err := json.Unmarshal(text, &rep); err != nil {
		return rep, fmt.Errorf("%s: %w", file, err)
	}
	return rep, nil
}

func (rep report) write(file string) error {
	if file == "" {
		return nil
	}
	text, err := json.MarshalIndent(rep, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", append(text, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}

func (rep report) unexplained() (n int) {
	for _, r := range rep.Rows {
		if r.different() && !r.Explained {
			n++
		}
	}
	return n
}

// print prints the table, and below it what is to be said about the rows that differ.
func (rep report) print(out io.Writer) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "package\tkernel\tdkms\tours\tmodules\tdkms\tours\tratio\t")
	var modules, same, both, differ, explained int
	var dkms, ours float64
	for _, r := range rep.Rows {
		fmt.Fprintln(w, r.line())
		if r.different() {
			differ++
		}
		if r.Explained {
			explained++
		}
		if r.DKMS.Verdict == built && r.Ours.Verdict == built {
			both, dkms, ours = both+1, dkms+r.DKMS.Seconds, ours+r.Ours.Seconds
			modules, same = modules+len(r.DKMS.Modules), same+r.SameBytes
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, r := range rep.Rows {
		if r.different() {
			fmt.Fprintf(out, "\n%s for %s:\n%s", r.Package, r.Kernel, indent(r.why()))
		}
	}
	fmt.Fprintf(out, "\n%d comparisons, %d differences: %d explained, %d unexplained\n", len(rep.Rows), differ, explained, rep.unexplained())
	if both > 0 {
		fmt.Fprintf(out, "where both built, %d times: %d of %d modules have the same bytes; dkms took %.1f s, ours %.1f s: %.2f\n", both, same, modules, dkms, ours, ours/dkms)
	}
	return nil
}

func indent(text string) string {
	return "\t" + strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n\t") + "\n"
}
