package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
)

// sample is one run.
type sample struct {
	Seconds float64 `json:"seconds"`
	Busy    float64 `json:"cpu_s,omitempty"`   // what the tool used of processors, and all that it started and waited for
	PeakMB  float64 `json:"peak_mb,omitempty"` // of the tool's own process
}

// limit is what is asked for: all that is set.
type limit struct {
	Ratio float64 `json:"ratio,omitempty"`   // ours, of the other
	More  float64 `json:"more_s,omitempty"`  // seconds that ours may take more than the other
	Total float64 `json:"seconds,omitempty"` // ours
	Peak  float64 `json:"peak_mb,omitempty"` // ours, in every run
}

func (l limit) String() string {
	var all []string
	if l.Ratio > 0 {
		all = append(all, fmt.Sprintf("%.2f", l.Ratio))
	}
	if l.More > 0 {
		all = append(all, fmt.Sprintf("+%g s", l.More))
	}
	if l.Total > 0 {
		all = append(all, seconds(l.Total))
	}
	if l.Peak > 0 {
		all = append(all, megabytes(l.Peak))
	}
	return "≤ " + strings.Join(all, ", ")
}

// result is a line of the table.
type result struct {
	Name         string   `json:"comparison"`
	Against      string   `json:"against,omitempty"`
	Ours         float64  `json:"ours_s,omitempty"` // median
	Other        float64  `json:"other_s,omitempty"`
	Ratio        float64  `json:"ratio,omitempty"`
	PeakMB       float64  `json:"peak_mb,omitempty"` // the highest of all runs
	Asked        limit    `json:"asked"`
	Met          bool     `json:"met"`
	NotAvailable string   `json:"not_available,omitempty"` // why this machine can't measure it
	Failed       string   `json:"failed,omitempty"`        // what went wrong
	OursRuns     []sample `json:"ours_runs,omitempty"`
	OtherRuns    []sample `json:"other_runs,omitempty"`
}

// measured tells whether there is a figure.
func (r result) measured() bool { return r.NotAvailable == "" && r.Failed == "" }

func (r result) title() string {
	if r.Against == "" {
		return r.Name
	}
	return r.Name + " : " + r.Against
}

// judge makes the figures of the runs.
func (r *result) judge() {
	if !r.measured() {
		return
	}
	r.Ours = median(r.OursRuns)
	for _, s := range r.OursRuns {
		r.PeakMB = max(r.PeakMB, s.PeakMB)
	}
	if len(r.OtherRuns) > 0 {
		r.Other = median(r.OtherRuns)
		r.Ratio = r.Ours / r.Other
	}
	r.Met = r.share() <= 1
}

// share is how much was taken of what is allowed: 1 is all of it. Where several limits are set it's that of the one that is nearest, or
// exceeded most.
func (r result) share() float64 {
	var most float64
	for _, l := range []struct{ taken, allowed float64 }{
		{r.Ratio, r.Asked.Ratio}, {r.Ours - r.Other, r.Asked.More}, {r.Ours, r.Asked.Total}, {r.PeakMB, r.Asked.Peak},
	} {
		if l.allowed > 0 {
			most = max(most, l.taken/l.allowed)
		}
	}
	return most
}

// figures are the texts of ours, the other, and how the two compare if that was asked for. Where memory alone was, ours is that.
func (r result) figures() (ours, other, ratio string) {
	ours = seconds(r.Ours)
	switch {
	case r.Asked == limit{Peak: r.Asked.Peak}:
		return megabytes(r.PeakMB), "", ""
	case r.Asked.More > 0:
		return ours, seconds(r.Other), fmt.Sprintf("%+.2f s", r.Ours-r.Other)
	case r.Asked.Ratio > 0:
		return ours, seconds(r.Other), fmt.Sprintf("%.2f", r.Ratio)
	case r.Other > 0:
		return ours, seconds(r.Other), ""
	}
	return ours, "", ""
}

// peak is the line about memory: the highest of all lines.
func peak(results []result) result {
	out := result{Name: "peak memory of the tool, in every row", Asked: limit{Peak: 150}}
	for _, r := range results {
		out.PeakMB = max(out.PeakMB, r.PeakMB)
	}
	out.Met = out.share() <= 1
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
	Machine    string    `json:"machine"`
	Processors int       `json:"processors"` // that were used
	Load       [2]string `json:"load"`       // the machine's, of the last minute, at the start and at the end
	Runs       int       `json:"runs"`
	Partial    bool      `json:"partial,omitempty"` // rows were chosen
	Start      time.Time `json:"start"`
	End        time.Time `json:"end"`
	Results    []result  `json:"results"`
}

func readReport(name string) (report, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return report{}, err
	}
	var r report
	if err := json.Unmarshal(text, &r); err != nil {
		return report{}, fmt.Errorf("%s: %w", name, err)
	}
	return r, nil
}

// write makes the file, and the plot beside it.
func (r report) write(name string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	for path, content := range map[string][]byte{name: append(text, '\n'), plotOf(name): r.plot()} {
		err := durable.WriteFile(filepath.Dir(path), path, 0o644, func(w io.Writer) error {
			_, err := w.Write(content)
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// plotOf is where the plot of a JSON file is.
func plotOf(name string) string { return strings.TrimSuffix(name, ".json") + ".svg" }

func (r report) print(out io.Writer) error {
	fmt.Fprintf(out, "%s\n%s; %d used, median of %d, load %s at the start and %s at the end; took %s\n\n", r.Tool, r.Machine, r.Processors, r.Runs,
		r.Load[0], r.Load[1], r.End.Sub(r.Start).Round(time.Second))
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "comparison\tours\tthe other\tratio\tasked for\tmet\tpeak memory")
	for _, l := range r.Results {
		if !l.measured() {
			fmt.Fprintf(w, "%s\t\t\t\t%s\t%s\n", l.title(), l.Asked, l.excuse())
			continue
		}
		ours, other, ratio := l.figures()
		met, memory := "NO", megabytes(l.PeakMB)
		if l.Met {
			met = "yes"
		}
		if memory == ours || l.PeakMB == 0 { // it was said, or isn't known
			memory = ""
		}
		fmt.Fprintf(w, "%s\n", strings.TrimRight(strings.Join([]string{l.title(), ours, other, ratio, l.Asked.String(), met, memory}, "\t"), "\t"))
	}
	return w.Flush()
}

// excuse says why there is no figure.
func (r result) excuse() string {
	if r.Failed != "" {
		return "FAILED: " + r.Failed
	}
	return "not available: " + r.NotAvailable
}

// tolerance is how much of what was asked for may be missed by what was met before: runs differ.
const tolerance = 0.2

// regressions are the lines that were met before and are missed by more than the tolerance, as texts.
func (r report) regressions(before report) []string {
	var out []string
	for _, now := range r.Results {
		i := slices.IndexFunc(before.Results, func(b result) bool { return b.Name == now.Name })
		if i < 0 || !before.Results[i].Met || !now.measured() || now.share() <= 1+tolerance {
			continue
		}
		out = append(out, fmt.Sprintf("%s: %s, asked for is %s; before it was %s", now.title(), now.summary(), now.Asked, before.Results[i].summary()))
	}
	return out
}

// summary has the figures in a line, and the memory where that was asked for.
func (r result) summary() string {
	ours, other, ratio := r.figures()
	if other != "" {
		ours += " : " + other
	}
	if ratio != "" {
		ours += " = " + ratio
	}
	if memory := megabytes(r.PeakMB); r.Asked.Peak > 0 && memory != ours {
		ours += ", " + memory
	}
	return ours
}

// accept makes the results of a whole run the baseline of those that follow.
func accept(name, baseline string) error {
	r, err := readReport(name)
	if err != nil {
		return err
	}
	if r.Partial {
		return fmt.Errorf("%q has only some of the rows: a baseline takes a whole run", name)
	}
	for i, l := range r.Results {
		if l.Failed != "" {
			return fmt.Errorf("in %q a row failed: %s: %s", name, l.Name, l.Failed)
		}
		r.Results[i].OursRuns, r.Results[i].OtherRuns = nil, nil
	}
	return r.write(baseline)
}

func seconds(s float64) string {
	if s < 0.1 {
		return fmt.Sprintf("%.3g ms", s*1000)
	}
	return fmt.Sprintf("%.2f s", s)
}

func megabytes(m float64) string { return fmt.Sprintf("%.0f MB", m) }
