package ui

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Report is what a run came to, for those who weren't there. What it has from sources, logs and indexes is made safe for each form.
type Report struct {
	Results     []Result      // kernel by kernel
	Shard       string        // which part of the request it is, "2/4"; empty: all of it
	Took        time.Duration // from the run's beginning to its end
	Interrupted bool          // before all was done: what failed for the reason Interruption wasn't done
	Version     string        // of the program
}

// Interruption is the reason of what was under way or still to do when a run was interrupted.
const Interruption = "interrupted"

// interrupted is the status of such a result in a report.
const interrupted Status = Interruption

// ReportForms are what Write knows.
var ReportForms = [...]string{"junit", "markdown", "html"}

// Write writes the report in one of the ReportForms. The same report gives the same bytes.
func (r Report) Write(w io.Writer, form string) error {
	switch form {
	case "junit":
		return r.junit(w)
	case "markdown":
		return r.markdown(w)
	case "html":
		return r.html(w)
	}
	return fmt.Errorf("no report of the form %q", form)
}

// table is a report's results by kernel and module.
type table struct {
	modules []string // "hello/1.0", in the order of the results
	rows    []row
}

type row struct {
	kernel string
	cells  []*Result // by module; nil where the kernel has none
}

func (r Report) table() table {
	var t table
	for i, res := range r.Results {
		name := moduleOf(res)
		m := slices.Index(t.modules, name)
		if m < 0 {
			m = len(t.modules)
			t.modules = append(t.modules, name)
		}
		last := len(t.rows) - 1
		if last < 0 || t.rows[last].kernel != res.Kernel || m < len(t.rows[last].cells) && t.rows[last].cells[m] != nil {
			t.rows = append(t.rows, row{kernel: res.Kernel})
			last++
		}
		at := &t.rows[last].cells
		for len(*at) <= m {
			*at = append(*at, nil)
		}
		(*at)[m] = &r.Results[i]
	}
	for i := range t.rows {
		for len(t.rows[i].cells) < len(t.modules) {
			t.rows[i].cells = append(t.rows[i].cells, nil)
		}
	}
	return t
}

func moduleOf(r Result) string { return r.Module + "/" + r.Version }

// status is a result's, or interrupted.
func (r Report) status(res Result) Status {
	if r.Interrupted && res.Status == Failed && res.Reason == Interruption {
		return interrupted
	}
	return res.Status
}

// tally is how many results have a status.
type tally struct {
	Status Status
	N      int
}

// tallies counts the results. Those of a status that none has are left out.
func (r Report) tallies() (all []tally) {
	for _, s := range []Status{Built, Cached, Skipped, Failed, interrupted} {
		n := 0
		for _, res := range r.Results {
			if r.status(res) == s {
				n++
			}
		}
		if n > 0 {
			all = append(all, tally{s, n})
		}
	}
	return all
}

func (r Report) count(s Status) int {
	for _, t := range r.tallies() {
		if t.Status == s {
			return t.N
		}
	}
	return 0
}

// headline is the report in a few words.
func (r Report) headline() string {
	n, failed, undone := len(r.Results), r.count(Failed), r.count(interrupted)
	what := "build"
	if slices.ContainsFunc(r.Results, func(res Result) bool { return res.Test != nil }) {
		what = "test"
	}
	builds := fmt.Sprintf("%d %ss", n, what)
	if n == 1 {
		builds = "1 " + what
	}
	switch {
	case undone > 0:
		return fmt.Sprintf("Interrupted: %d of %s done", n-undone, builds)
	case n == 0:
		return "Nothing to build"
	case failed > 0:
		return fmt.Sprintf("%d of %s failed", failed, builds)
	case r.count(Skipped) == n:
		return "All skipped: " + builds
	}
	return builds + ", none failed"
}

// about says which run it is: its part of the request, its time, the program.
func (r Report) about() string {
	var parts []string
	if r.Shard != "" {
		parts = append(parts, "shard "+r.Shard)
	}
	return strings.Join(append(parts, elapsed(r.Took), "godkms-hermetic "+cleanLine(r.Version)), " · ")
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// why is why a build failed, a line each: what that comes from and the first error, else the reason, which has both in one line.
func why(res Result) (lines []string) {
	for _, s := range []string{res.Why, res.First} {
		if s != "" {
			lines = append(lines, cleanLine(s))
		}
	}
	if len(lines) == 0 {
		lines = []string{cleanLine(res.Reason)}
	}
	return lines
}
