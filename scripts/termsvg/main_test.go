package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func TestRun(t *testing.T) {
	out := filepath.Join(t.TempDir(), "x.svg")
	err := run(60, 20, out, []string{
		`printf 'a <tag> &\nlive 1\nlive 2\n'; printf '\033[2A\033[Jdone \033[32mbuilt\033[0m ok\n'; exit 3`,
		`tput cols 2>/dev/null || stty size | cut -d' ' -f2`,
	})
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(b), "live 1</text>") {
		t.Error("a row that was taken off the screen is in the picture")
	}
	var rows []string
	for _, m := range regexp.MustCompile(`(?m)^<text[^>]*>(.*)</text>$`).FindAllStringSubmatch(string(b), -1) {
		rows = append(rows, m[1])
	}
	want := []string{"a &lt;tag&gt; &amp;", `done <tspan fill="#3fb950">built</tspan> ok`}
	if len(rows) < 4 || !slices.Contains(rows, want[0]) || !slices.Contains(rows, want[1]) || rows[len(rows)-1] != "60" {
		t.Errorf("rows %q", rows)
	}
	if run(60, 20, out, nil) == nil {
		t.Error("no command: no error")
	}
}
