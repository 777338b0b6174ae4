package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func runs(seconds ...float64) []sample {
	var out []sample
	for _, s := range seconds {
		out = append(out, sample{Seconds: s, PeakMB: 100 * s})
	}
	return out
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
	} {
		if got := judge(row{asked: c.asked}, c.ours, c.other); got.Met != c.met {
			t.Errorf("%s: met is %v; want %v", c.name, got.Met, c.met)
		}
	}
	if got := peak([]result{{PeakMB: 10}, {PeakMB: 151}, {PeakMB: 3}}); got.Met || got.PeakMB != 151 {
		t.Errorf("peak is %v, met %v; want 151, false", got.PeakMB, got.Met)
	}
}

func TestPrint(t *testing.T) {
	a := judge(row{name: "a", against: "b", asked: limit{Ratio: 1.05}}, runs(2, 1, 3), runs(2.5, 2, 1))
	rep := report{Results: []result{a, {Name: "c", Asked: limit{More: 0.6}, NotAvailable: "no c"}, peak([]result{a})}}
	var out bytes.Buffer
	if err := rep.print(&out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"a : b  2.00 s  2.00 s  1.00  ≤ 1.05  yes  300 MB", "c  ≤ +0.6 s  not available: no c", "peak memory of the tool, in every row  300 MB  ≤ 150 MB  NO",
	} {
		if got := strings.Join(strings.Fields(out.String()), " "); !strings.Contains(got, strings.Join(strings.Fields(want), " ")) {
			t.Errorf("the table is %q; want %q in it", got, want)
		}
	}
}

// Layers come over each other as in overlayfs.
func TestLink(t *testing.T) {
	base := t.TempDir()
	write := func(name, text string) {
		name = filepath.Join(base, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("low/dir/one", "low")
	write("low/dir/two", "low")
	write("low/run/file", "hidden")
	write("high/dir/two", "high")
	if err := os.Symlink("dir", filepath.Join(base, "high/run")); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(base, "root")
	for _, layer := range []string{"low", "high"} {
		if err := link(filepath.Join(base, layer), root); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"dir/one": "low", "dir/two": "high", "run/two": "high", "low": ""} {
		if got, _ := os.ReadFile(filepath.Join(root, name)); string(got) != want {
			t.Errorf("%s holds %q; want %q", name, got, want)
		}
	}
	if got, _ := os.ReadFile(filepath.Join(base, "low/dir/two")); string(got) != "low" {
		t.Errorf("the lower layer was changed to %q", got)
	}
}
