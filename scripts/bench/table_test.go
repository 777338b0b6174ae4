package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func runs(seconds ...float64) []sample {
	var out []sample
	for _, s := range seconds {
		out = append(out, sample{Seconds: s, PeakMB: 100 * s})
	}
	return out
}

func judged(r result) result {
	r.judge()
	return r
}

func TestJudge(t *testing.T) {
	for _, c := range []struct {
		name        string
		asked       limit
		ours, other []sample
		met         bool
	}{
		{"ratio met", limit{Ratio: 1.05}, runs(9, 1.05, 1), runs(1, 1, 7), true},
		{"ratio not met", limit{Ratio: 1.05}, runs(1.1, 1.1, 1), runs(1, 1, 7), false},
		{"difference met", limit{More: 0.6}, runs(2.5, 2.5), runs(2), true},
		{"difference not met", limit{More: 0.6}, runs(2.7), runs(2), false},
		{"time met", limit{Total: 0.05}, runs(0.01, 0.05, 9), nil, true},
		{"time not met", limit{Total: 0.05}, runs(0.01, 0.06, 9), nil, false},
		{"memory met", limit{Peak: 100}, runs(0.5, 1), nil, true},
		{"memory not met in one run", limit{Peak: 100}, runs(0.1, 1.1, 0.1), nil, false},
		{"time met, memory not", limit{Total: 2, Peak: 100}, runs(1.5), nil, false},
		{"memory met, time not", limit{Total: 0.1, Peak: 100}, runs(0.5), nil, false},
		{"both met", limit{Total: 1, Peak: 100}, runs(1), nil, true},
	} {
		if got := judged(result{Asked: c.asked, OursRuns: c.ours, OtherRuns: c.other}); got.Met != c.met {
			t.Errorf("%s: met is %v; want %v", c.name, got.Met, c.met)
		}
	}
	if got := judged(result{Asked: limit{Total: 1}, Failed: "x", OursRuns: runs(0.1)}); got.Met {
		t.Error("a row that failed is met")
	}
	if got := peak([]result{{PeakMB: 10}, {PeakMB: 151}, {PeakMB: 3}}); got.Met || got.PeakMB != 151 {
		t.Errorf("peak is %v, met %v; want 151, false", got.PeakMB, got.Met)
	}
}

// sampleReport has lines of each kind.
func sampleReport() report {
	lines := []result{
		judged(result{Name: "a", Against: "b", Asked: limit{Ratio: 1.05}, OursRuns: runs(2, 1, 3), OtherRuns: runs(2.5, 2, 1)}),
		{Name: "c", Asked: limit{More: 0.6}, NotAvailable: "no c"},
		{Name: "d", Asked: limit{Total: 0.6}, Failed: "d broke"},
		judged(result{Name: "e <&>", Against: "f", Asked: limit{More: 0.05}, OursRuns: runs(0.5), OtherRuns: runs(0.4)}),
		judged(result{Name: "g", Asked: limit{Total: 0.05, Peak: 100}, OursRuns: runs(0.02), OtherRuns: runs(0.01)}),
	}
	day := time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)
	return report{Tool: "tool 1", Machine: "a machine", Processors: 2, Runs: 3, Start: day, End: day.Add(time.Minute), Results: append(lines, peak(lines))}
}

func TestPrint(t *testing.T) {
	var out bytes.Buffer
	if err := sampleReport().print(&out); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range []string{
		"a : b 2.00 s 2.00 s 1.00 ≤ 1.05 yes 300 MB", "c ≤ +0.6 s not available: no c", "d ≤ 0.60 s FAILED: d broke",
		"e <&> : f 0.50 s 0.40 s +0.10 s ≤ +0.05 s NO 50 MB", "g 20 ms 10 ms ≤ 50 ms, 100 MB yes 2 MB", "peak memory of the tool, in every row 300 MB ≤ 150 MB NO",
		"took 1m0s",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("the table is %q; want %q in it", got, want)
		}
	}
	if strings.HasSuffix(got, "MB NO 300 MB") {
		t.Error("the line about memory says it twice")
	}
}

func TestRegressions(t *testing.T) {
	line := func(name string, asked limit, ours ...float64) result {
		return judged(result{Name: name, Asked: asked, OursRuns: runs(ours...), OtherRuns: runs(1)})
	}
	before := report{Results: []result{
		line("ratio", limit{Ratio: 1}, 0.5), line("more", limit{More: 1}, 1.5), line("total", limit{Total: 1}, 0.5), line("memory", limit{Total: 1, Peak: 100}, 0.5),
		line("not met before", limit{Total: 1}, 1.1), line("gone", limit{Total: 1}, 0.5),
		{Name: "not measured before", Asked: limit{Total: 1}, NotAvailable: "x"},
	}}
	after := func(ratio, more, total, memory float64) report {
		return report{Results: []result{
			line("ratio", limit{Ratio: 1}, ratio), line("more", limit{More: 1}, 1+more), line("total", limit{Total: 1}, total),
			judged(result{Name: "memory", Asked: limit{Total: 1, Peak: 100}, OursRuns: []sample{{Seconds: 0.5, PeakMB: memory}}}),
			line("not met before", limit{Total: 1}, 9), line("not measured before", limit{Total: 1}, 9), line("new", limit{Total: 1}, 9),
			{Name: "gone", Asked: limit{Total: 1}, NotAvailable: "x"},
		}}
	}
	if got := after(1.19, 1.19, 1.19, 119).regressions(before); len(got) > 0 {
		t.Errorf("missed by less than 20 %%: %q", got)
	}
	for name, now := range map[string]report{
		"ratio": after(1.21, 0, 0, 0), "more": after(0, 1.21, 0, 0), "total": after(0, 0, 1.21, 0), "memory": after(0, 0, 0, 121),
	} {
		if got := now.regressions(before); len(got) != 1 || !strings.HasPrefix(got[0], name+": ") {
			t.Errorf("%s missed by more than 20 %%: %q", name, got)
		}
		if got := now.regressions(report{}); len(got) > 0 {
			t.Errorf("without a baseline: %q", got)
		}
	}
	want := "ratio: 1.21 s : 1.00 s = 1.21, asked for is ≤ 1.00; before it was 0.50 s : 1.00 s = 0.50"
	if got := after(1.21, 0, 0, 0).regressions(before); got[0] != want {
		t.Errorf("it says %q; want %q", got[0], want)
	}
}

func TestAccept(t *testing.T) {
	dir := t.TempDir()
	out, baseline := filepath.Join(dir, "out/bench.json"), filepath.Join(dir, "docs/bench.json")
	r := sampleReport()
	for _, edit := range []func(){
		func() {}, // a row failed
		func() { r.Results[2].Failed, r.Partial = "", true },
	} {
		edit()
		if err := r.write(out); err != nil {
			t.Fatal(err)
		}
		if err := accept(out, baseline); err == nil {
			t.Errorf("it takes %+v", r)
		}
	}
	if _, err := os.Stat(filepath.Dir(baseline)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what isn't taken leaves a baseline: %v", err)
	}
	r.Partial = false
	if err := r.write(out); err != nil {
		t.Fatal(err)
	}
	if err := accept(out, baseline); err != nil {
		t.Fatal(err)
	}
	got, err := readReport(baseline)
	if err != nil || len(got.Results) != len(r.Results) || got.Results[0].Ratio != 1 || got.Results[0].OursRuns != nil {
		t.Errorf("the baseline is %+v, %v", got, err)
	}
	for _, name := range []string{out, baseline} {
		if plot, err := os.ReadFile(plotOf(name)); err != nil || !bytes.Equal(plot, r.plot()) {
			t.Errorf("%s is %q, %v", plotOf(name), plot, err)
		}
	}
}

// element is one of a plot.
type element struct {
	XMLName xml.Name
	Class   string    `xml:"class,attr"`
	X       float64   `xml:"x,attr"`
	Width   float64   `xml:"width,attr"`
	D       string    `xml:"d,attr"`
	X1      float64   `xml:"x1,attr"`
	X2      float64   `xml:"x2,attr"`
	Y1      float64   `xml:"y1,attr"`
	Y2      float64   `xml:"y2,attr"`
	Text    string    `xml:",chardata"`
	Parts   []element `xml:",any"`
}

func parsePlot(t *testing.T, plot []byte) element {
	t.Helper()
	d := xml.NewDecoder(bytes.NewReader(plot))
	var svg element
	if err := d.Decode(&svg); err != nil {
		t.Fatalf("the plot is not XML: %v\n%s", err, plot)
	}
	if _, err := d.Token(); err != nil { // the last line's end
		t.Error(err)
	}
	if next, err := d.Token(); err != io.EOF {
		t.Errorf("after the plot comes %v, %v", next, err)
	}
	return svg
}

func TestPlot(t *testing.T) {
	plot := sampleReport().plot()
	if !bytes.Equal(plot, sampleReport().plot()) {
		t.Error("the same report gives two plots")
	}
	svg := parsePlot(t, plot)
	var texts, bars []string
	for _, e := range svg.Parts {
		switch {
		case e.XMLName.Local == "text":
			texts = append(texts, e.Text)
		case e.Class == "met" || e.Class == "missed":
			bars = append(bars, strings.TrimSpace(e.Class+" "+e.D))
			if e.D == "" && (e.X != barsAt || e.Width > barsWidth) {
				t.Errorf("a bar is at %v, %v wide", e.X, e.Width)
			}
		}
	}
	if l := svg.Parts[len(svg.Parts)-1]; l.Class != "limit" || l.X1 != barsAt+barLimit || l.X1 != l.X2 || l.Y1 > plotTop || l.Y2 < plotTop+6*plotLine {
		t.Errorf("what was asked for is at %+v", l)
	}
	// e takes 2.0 of what is allowed, and the last 3.0 of 150 MB: both are too long.
	if got, want := strings.Join(bars, "\n"), `met
missed M390 148h262l8 7l-8 7h-262 z
met
missed M390 192h262l8 7l-8 7h-262 z`; got != want {
		t.Errorf("the bars are\n%s\nwant\n%s", got, want)
	}
	if got, want := svg.Parts[3].Text, "Speed: what is taken of what was asked for; 2 of 4 met"; got != want {
		t.Errorf("the title is %q; want %q", got, want)
	}
	for _, want := range []string{
		"a : b", "2.00 s : 2.00 s = 1.00", "≤ 1.05", "e <&> : f", "0.50 s : 0.40 s = +0.10 s", "20 ms : 10 ms, 2 MB", "not measured", "300 MB",
		"tool 1; a machine; 2 used, medians of 3, 2026-01-31",
	} {
		if !strings.Contains("\n"+strings.Join(texts, "\n")+"\n", "\n"+want+"\n") {
			t.Errorf("the plot's texts are %q; want %q among them", texts, want)
		}
	}
}

// No two rows have one name, by which they are found in the baseline.
func TestRowNames(t *testing.T) {
	seen := map[string]bool{}
	for _, r := range (&bench{releases: make([]string, 6)}).rows() {
		if r.name == "" || seen[r.name] || r.ours == nil || r.prepare == nil || r.asked == (limit{}) {
			t.Errorf("row %q has no name of its own, or misses what it needs", r.name)
		}
		seen[r.name] = true
	}
}

// What the README shows is what the baseline has, and each of its lines is measured still: one that had another name would be held
// against nothing.
func TestBaseline(t *testing.T) {
	const name = "../../docs/bench.json"
	r, err := readReport(name)
	if err != nil {
		t.Fatal(err)
	}
	if plot, err := os.ReadFile(plotOf(name)); err != nil || !bytes.Equal(plot, r.plot()) {
		t.Errorf("docs/bench.svg is not the plot of docs/bench.json (%v): draw it with go run ./scripts/bench -accept -json docs/bench.json -baseline docs/bench.json", err)
	}
	rows := map[string]bool{peak(nil).Name: true}
	for _, row := range (&bench{releases: make([]string, 6)}).rows() {
		rows[row.name] = true
	}
	for _, l := range r.Results {
		if !rows[l.Name] {
			t.Errorf("no row is named %q: correct docs/bench.json, or measure it again", l.Name)
		}
	}
}

func TestParseBenchmark(t *testing.T) {
	const text = "goos: linux\ncpu: Some\nBenchmarkIndex/xz-2   1\t529480041 ns/op\t  55.15 peak-MB\t 12 B/op\nPASS\n"
	if got, err := parseBenchmark(text); err != nil || got != (sample{Seconds: 0.529480041, PeakMB: 55.15}) {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{
		"", "PASS\n", "BenchmarkIndex 1 5 ns/op\n", "BenchmarkIndex 1 x ns/op 5 peak-MB\n", "BenchmarkA 1 5 ns/op 5 peak-MB\nBenchmarkB 1 5 ns/op 5 peak-MB\n",
	} {
		if got, err := parseBenchmark(bad); err == nil {
			t.Errorf("%q is %+v", bad, got)
		}
	}
}
