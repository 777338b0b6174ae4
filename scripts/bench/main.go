// Bench measures every figure of speed and memory that was asked for, most beside what godkms-hermetic stands in for: bare make, dkms,
// dpkg-deb, crane, sign-file, depmod. It runs the built program as a user would, prints a table, and writes it as JSON and as a plot:
//
//	go run ./scripts/bench -cache .cache/bench -json out/bench.json -baseline docs/bench.json
//
// It fails if a line was met in the baseline and is now missed by more than 20 % of what was asked for. With -accept nothing is measured:
// the JSON of a run becomes the baseline.
//
// The machine needs bubblewrap (bwrap), dpkg, qemu for the rows about tests, and root for those about Docker. Everything else, dkms and
// the module's source included, comes from the packages of the kernels that are built for, and is downloaded once for each -cache. The
// comparisons of all rows take turns, ours and the other's, so that a machine that is busy for a while is so for both; a table's number is
// the median of the runs. What a row does is said where it is made, in rows.go and beside it. A row that fails leaves the others as they
// are.
//
// On a machine with more processors it uses two.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

type options struct {
	tool, cache, json, baseline string
	runs                        int
	only                        *regexp.Regexp
	quick                       bool
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
	flag.StringVar(&o.cache, "cache", "", "`DIR` that keeps downloads for the next time (default: a temporary one); unfinished work is in it too, some 12 GB")
	flag.StringVar(&o.json, "json", "", "write the results to `FILE` as well, and the plot beside it")
	flag.StringVar(&o.baseline, "baseline", "", "compare with the results in `FILE`, if it's there")
	flag.IntVar(&o.runs, "runs", 5, "how often each is measured")
	flag.BoolVar(&o.quick, "quick", false, "measure only rows that take little time")
	only := flag.String("only", "", "measure only rows whose names match `REGEXP`")
	accepts := flag.Bool("accept", false, "measure nothing: the results of -json become those of -baseline")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := func() (err error) {
		if flag.NArg() > 0 || o.runs < 1 {
			return errors.New("usage: bench [-runs N] [-quick] [-only REGEXP] [-cache DIR] [-json FILE] [-baseline FILE] [-accept] [-tool PROGRAM]")
		}
		if *accepts {
			return accept(o.json, o.baseline)
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

// measure runs something once. Only a part of it is timed.
type measure func(context.Context) (sample, error)

// A row is one comparison. Where it has no other, what is asked for is about ours alone.
type row struct {
	// warm has both run once before they are measured: after a row that fills the disk, the first to use the compiler again would
	// read it for the other.
	warm bool

	quick         bool // it's in the short table
	name, against string
	prepare       func(context.Context) error // makes both sides warm; an *unavailable leaves the row out, with the reason
	ours, other   measure
	asked         limit
}

// unavailable says why a row can't be measured on this machine.
type unavailable struct{ reason string }

func (u *unavailable) Error() string { return u.reason }

func run(ctx context.Context, o options, stdout, stderr io.Writer) (err error) {
	say := func(format string, a ...any) { fmt.Fprintf(stderr, "bench: "+format+"\n", a...) }
	rep := report{Runs: o.runs, Machine: machine(), Processors: min(2, runtime.NumCPU()), Start: time.Now().UTC(), Load: [2]string{load()}}
	var before report
	if o.baseline != "" {
		if before, err = readReport(o.baseline); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if err := twoProcessors(); err != nil {
		return err
	}
	if o.cache == "" {
		if o.cache, err = os.MkdirTemp("", "godkms-hermetic-bench-"); err != nil {
			return err
		}
		defer os.RemoveAll(o.cache)
	}
	b, err := newBench(ctx, o, say)
	if b != nil {
		defer func() { err = errors.Join(err, b.close()) }()
	}
	if err != nil {
		return err
	}
	rep.Tool, rep.Kernels = b.version, b.releases

	var rows []row
	for _, r := range b.rows() {
		if o.only.MatchString(r.name) && (r.quick || !o.quick) {
			rows = append(rows, r)
		} else {
			rep.Partial = true
		}
	}
	rep.Results = make([]result, len(rows))
	for i, r := range rows {
		say("preparing: %s", r.name)
		l := result{Name: r.name, Against: r.against, Asked: r.asked}
		err := r.prepare(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if no := (*unavailable)(nil); errors.As(err, &no) {
			l.NotAvailable = no.reason
		} else if err != nil {
			l.Failed = err.Error()
			say("failed: %s: %v", r.name, err)
		}
		rep.Results[i] = l
	}
	for n := range o.runs {
		say("run %d of %d", n+1, o.runs)
		for i, r := range rows {
			l := &rep.Results[i]
			if !l.measured() {
				continue
			}
			if err := r.measure(ctx, l); ctx.Err() != nil {
				return ctx.Err()
			} else if err != nil {
				l.Failed = err.Error()
				say("failed: %s: %v", r.name, err)
			}
		}
	}
	for i := range rep.Results {
		rep.Results[i].judge()
	}
	if len(rep.Results) > 0 {
		rep.Results = append(rep.Results, peak(rep.Results))
	}
	rep.Load[1], rep.End = load(), time.Now().UTC()
	if o.json != "" {
		if err := rep.write(o.json); err != nil {
			return err
		}
	}
	if err := rep.print(stdout); err != nil {
		return err
	}
	for _, l := range rep.Results {
		if l.Failed != "" {
			err = errors.Join(err, fmt.Errorf("failed: %s: %s", l.Name, l.Failed))
		}
	}
	for _, text := range rep.regressions(before) {
		err = errors.Join(err, fmt.Errorf("no longer met: %s", text))
	}
	return err
}

// measure runs both sides once, and adds what it took to the result.
func (r row) measure(ctx context.Context, l *result) error {
	type side struct {
		do   measure
		runs *[]sample
	}
	sides := []side{{r.ours, &l.OursRuns}, {r.other, &l.OtherRuns}}
	if r.warm {
		var thrown []sample
		sides = append([]side{{r.ours, &thrown}, {r.other, &thrown}}, sides...)
	}
	for _, s := range sides {
		if s.do == nil {
			continue
		}
		unix.Sync() // what the one before has written is not this one's
		took, err := s.do(ctx)
		if err != nil {
			return err
		}
		*s.runs = append(*s.runs, took)
	}
	return nil
}

// machine describes this one, without its name.
func machine() string {
	processor := runtime.GOARCH
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		if m := regexp.MustCompile(`(?m)^model name\s*: (.*)$`).FindSubmatch(text); m != nil {
			processor = string(m[1])
		}
	}
	var info unix.Sysinfo_t
	var name unix.Utsname
	unix.Sysinfo(&info) // neither fails
	unix.Uname(&name)
	release, _, _ := strings.Cut(unix.ByteSliceToString(name.Release[:]), "-")
	return fmt.Sprintf("%s, %d processors, %.0f GB, Linux %s", processor, runtime.NumCPU(), float64(info.Totalram)*float64(info.Unit)/1e9, release)
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
