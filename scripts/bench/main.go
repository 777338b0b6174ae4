// Bench compares godkms-hermetic with what it stands in for: bare make, dkms, dpkg-deb. It runs the built program as a user
// would, prints a table, and writes it as JSON:
//
//	go run ./scripts/bench -cache .cache/bench -json out/bench.json
//
// The machine needs bubblewrap (bwrap), dpkg and, for the Docker row, root. Everything else, dkms and the module's source
// included, comes from the packages of the kernels that are built for, and is downloaded once for each -cache. The comparisons
// of all rows take turns, ours and the other's, so that a machine that is busy for a while is so for both; a table's number is
// the median of the runs. What a row does is said where it is made, in rows.go.
//
// On a machine with more processors it uses two.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"
)

type options struct {
	tool, cache, json string
	runs              int
	only              *regexp.Regexp
}

func main() {
	if len(os.Args) > 1 && os.Args[1] == signCommand {
		if err := signOne(os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, "sign:", err)
			os.Exit(1)
		}
		return
	}
	var o options
	flag.StringVar(&o.tool, "tool", "bin/godkms-hermetic", "the program to measure")
	flag.StringVar(&o.cache, "cache", "", "`DIR` that keeps downloads for the next time (default: a temporary one); unfinished work is in it too, some 8 GB")
	flag.StringVar(&o.json, "json", "", "write the results to `FILE` as well")
	flag.IntVar(&o.runs, "runs", 5, "how often each is measured")
	only := flag.String("only", "", "measure only rows whose names match `REGEXP`")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := func() (err error) {
		if flag.NArg() > 0 || o.runs < 1 {
			return errors.New("usage: bench [-runs N] [-only REGEXP] [-cache DIR] [-json FILE] [-tool PROGRAM]")
		}
		if o.only, err = regexp.Compile(*only); err != nil {
			return fmt.Errorf("-only: %w", err)
		}
		return run(ctx, o, os.Stdout, os.Stderr)
	}()
	if err != nil {
		if ctx.Err() != nil {
			err = errors.New("interrupted")
		}
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// sample is one run.
type sample struct {
	Seconds float64 `json:"seconds"`
	PeakMB  float64 `json:"peak_mb,omitempty"` // of the tool's own process
}

// measure runs something once. Only a part of it is timed.
type measure func(context.Context) (sample, error)

// A row is one comparison. Where it has no other, what is asked for is about ours alone.
type row struct {
	// warm has both run once before they are measured: after a row that fills the disk, the first to use the compiler again would
	// read it for the other.
	warm bool

	name, against string
	prepare       func(context.Context) error // makes both sides warm; an *unavailable leaves the row out, with the reason
	ours, other   measure
	asked         limit
}

// unavailable says why a row can't be measured on this machine.
type unavailable struct{ reason string }

func (u *unavailable) Error() string { return u.reason }

// limit is what is asked for. Exactly one is set.
type limit struct {
	Ratio float64 `json:"ratio,omitempty"`   // ours, of the other
	More  float64 `json:"more_s,omitempty"`  // seconds that ours may take more than the other
	Total float64 `json:"seconds,omitempty"` // ours
	Peak  float64 `json:"peak_mb,omitempty"` // ours, in every run
}

func (l limit) String() string {
	switch {
	case l.Ratio > 0:
		return fmt.Sprintf("≤ %.2f", l.Ratio)
	case l.More > 0:
		return fmt.Sprintf("≤ +%g s", l.More)
	case l.Total > 0:
		return "≤ " + seconds(l.Total)
	}
	return fmt.Sprintf("≤ %.0f MB", l.Peak)
}

// result is a row of the table.
type result struct {
	Name         string   `json:"comparison"`
	Against      string   `json:"against,omitempty"`
	Ours         float64  `json:"ours_s"` // median
	Other        float64  `json:"other_s,omitempty"`
	Ratio        float64  `json:"ratio,omitempty"`
	PeakMB       float64  `json:"peak_mb"` // the highest of all runs
	Asked        limit    `json:"asked"`
	Met          bool     `json:"met"`
	NotAvailable string   `json:"not_available,omitempty"`
	OursRuns     []sample `json:"ours_runs,omitempty"`
	OtherRuns    []sample `json:"other_runs,omitempty"`
}

// judge turns the runs of a row into its line of the table.
func judge(r row, ours, other []sample) result {
	out := result{Name: r.name, Against: r.against, Asked: r.asked, Ours: median(ours), OursRuns: ours, OtherRuns: other}
	for _, s := range ours {
		out.PeakMB = max(out.PeakMB, s.PeakMB)
	}
	if len(other) > 0 {
		out.Other = median(other)
		out.Ratio = out.Ours / out.Other
	}
	switch {
	case r.asked.Ratio > 0:
		out.Met = out.Ratio <= r.asked.Ratio
	case r.asked.More > 0:
		out.Met = out.Ours-out.Other <= r.asked.More
	default:
		out.Met = out.Ours <= r.asked.Total
	}
	return out
}

// peak is the row about memory: the highest of all rows.
func peak(results []result) result {
	out := result{Name: "peak memory of the tool, in every row", Asked: limit{Peak: 150}}
	for _, r := range results {
		out.PeakMB = max(out.PeakMB, r.PeakMB)
	}
	out.Met = out.PeakMB <= out.Asked.Peak
	return out
}

func median(runs []sample) float64 {
	sorted := slices.SortedFunc(slices.Values(runs), func(a, b sample) int { return cmp.Compare(a.Seconds, b.Seconds) })
	n := len(sorted)
	if n == 0 {
		return 0
	}
	return (sorted[(n-1)/2].Seconds + sorted[n/2].Seconds) / 2
}

// report is the JSON file.
type report struct {
	Tool       string    `json:"tool"`
	Kernels    []string  `json:"kernels"`
	Runs       int       `json:"runs"`
	Processors int       `json:"processors"`
	Load       [2]string `json:"load"` // the machine's, of the last minute, at the start and at the end
	Start      time.Time `json:"start"`
	Results    []result  `json:"results"`
}

func run(ctx context.Context, o options, stdout, stderr io.Writer) (err error) {
	say := func(format string, a ...any) { fmt.Fprintf(stderr, "bench: "+format+"\n", a...) }
	if err := twoProcessors(); err != nil {
		return err
	}
	if o.cache == "" {
		if o.cache, err = os.MkdirTemp("", "godkms-hermetic-bench-"); err != nil {
			return err
		}
		defer os.RemoveAll(o.cache)
	}
	rep := report{Runs: o.runs, Processors: min(2, runtime.NumCPU()), Start: time.Now().UTC(), Load: [2]string{load()}}
	b, err := newBench(ctx, o, say)
	if b != nil {
		defer func() { err = errors.Join(err, b.close()) }()
	}
	if err != nil {
		return err
	}
	rep.Tool, rep.Kernels = b.version, b.releases

	var rows []row
	missing := map[string]string{}
	for _, r := range b.rows() {
		if !o.only.MatchString(r.name) {
			continue
		}
		say("preparing: %s", r.name)
		err := r.prepare(ctx)
		if no := (*unavailable)(nil); errors.As(err, &no) && ctx.Err() == nil {
			missing[r.name] = no.reason
		} else if err != nil {
			return fmt.Errorf("%s: %w", r.name, err)
		}
		rows = append(rows, r)
	}
	ours, other := make([][]sample, len(rows)), make([][]sample, len(rows))
	for n := range o.runs {
		say("run %d of %d", n+1, o.runs)
		for i, r := range rows {
			if missing[r.name] != "" {
				continue
			}
			var thrown []sample
			sides := []struct {
				do   measure
				runs *[]sample
			}{{r.ours, &ours[i]}, {r.other, &other[i]}}
			if r.warm {
				sides = append(slices.Clone(sides), sides...)
				sides[0].runs, sides[1].runs = &thrown, &thrown
			}
			for _, side := range sides {
				if side.do == nil {
					continue
				}
				unix.Sync() // what the one before has written is not this one's
				s, err := side.do(ctx)
				if err != nil {
					return fmt.Errorf("%s: %w", r.name, err)
				}
				*side.runs = append(*side.runs, s)
			}
		}
	}
	for i, r := range rows {
		if reason := missing[r.name]; reason != "" {
			rep.Results = append(rep.Results, result{Name: r.name, Against: r.against, Asked: r.asked, NotAvailable: reason})
			continue
		}
		rep.Results = append(rep.Results, judge(r, ours[i], other[i]))
	}
	if len(rep.Results) > 0 {
		rep.Results = append(rep.Results, peak(rep.Results))
	}
	rep.Load[1] = load()
	if o.json != "" {
		text, err := json.MarshalIndent(rep, "", "  ")
		if err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Dir(o.json), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(o.json, append(text, '\n'), 0o644); err != nil {
			return err
		}
	}
	return rep.print(stdout)
}

func (r report) print(out io.Writer) error {
	fmt.Fprintf(out, "%s, %d processors, median of %d, load %s at the start and %s at the end\n\n", r.Tool, r.Processors, r.Runs, r.Load[0], r.Load[1])
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "comparison\tours\tthe other\tratio\tasked for\tmet\tpeak memory")
	for _, l := range r.Results {
		name := l.Name
		if l.Against != "" {
			name += " : " + l.Against
		}
		if l.NotAvailable != "" {
			fmt.Fprintf(w, "%s\t\t\t\t%s\tnot available: %s\n", name, l.Asked, l.NotAvailable)
			continue
		}
		ours, other, ratio, memory := seconds(l.Ours), "", "", fmt.Sprintf("%.0f MB", l.PeakMB)
		switch {
		case l.Asked.Peak > 0:
			ours, memory = memory, ""
		case l.Asked.More > 0:
			other, ratio = seconds(l.Other), fmt.Sprintf("%+.2f s", l.Ours-l.Other)
		case l.Other > 0:
			other, ratio = seconds(l.Other), fmt.Sprintf("%.2f", l.Ratio)
		}
		met := "NO"
		if l.Met {
			met = "yes"
		}
		fmt.Fprintf(w, "%s\n", strings.TrimRight(strings.Join([]string{name, ours, other, ratio, l.Asked.String(), met, memory}, "\t"), "\t"))
	}
	return w.Flush()
}

func seconds(s float64) string {
	if s < 0.1 {
		return fmt.Sprintf("%.0f ms", s*1000)
	}
	return fmt.Sprintf("%.2f s", s)
}

func load() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	first, _, _ := strings.Cut(string(b), " ")
	return first
}

// twoProcessors keeps this process, and with it all that it starts, on two of the machine's processors.
func twoProcessors() error {
	var may, two unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		return fmt.Errorf("read which processors may be used: %w", err)
	}
	for cpu := 0; cpu < 1024 && two.Count() < 2; cpu++ {
		if may.IsSet(cpu) {
			two.Set(cpu)
		}
	}
	threads, err := os.ReadDir("/proc/self/task") // those of Go's runtime; new threads and processes inherit it
	if err != nil {
		return err
	}
	for _, t := range threads {
		var id int
		if _, err := fmt.Sscan(t.Name(), &id); err != nil {
			return err
		}
		if err := unix.SchedSetaffinity(id, &two); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("keep to two processors: %w", err)
		}
	}
	return nil
}
