package guest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestResident(t *testing.T) {
	for _, test := range []struct {
		status string
		want   int64
		known  bool
	}{
		{"Name:\tcc1\nVmRSS:\t    9999 kB\nRssAnon:\t    100 kB\nRssFile:\t    20 kB\nRssShmem:\t  3 kB\nVmPTE:\t  40 kB\nVmSwap:\t  5000 kB\n", 5143 << 10, true},
		{"Name:\tRssAnon:\nState:\tZ (zombie)\n", 0, false},
		{"", 0, false},
	} {
		file := filepath.Join(t.TempDir(), "status")
		if err := os.WriteFile(file, []byte(test.status), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, known := resident(file, make([]byte, statusCap)); got != test.want || known != test.known {
			t.Errorf("resident(%q) = %d, %v; want %d, %v", test.status, got, known, test.want, test.known)
		}
	}
}

func TestEntries(t *testing.T) {
	dir := t.TempDir()
	var want []string
	for i := range 260 {
		name := strings.Repeat("x", i%250) + strings.Repeat("1", 1+i/250)
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		want = append(want, name)
	}
	var got []string
	entries(dir, func(name string) bool { got = append(got, name); return true })
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("entries() gave %d names: %q; want %d", len(got), got, len(want))
	}
	n := 0
	entries(dir, func(string) bool { n++; return n < 3 })
	if n != 3 {
		t.Errorf("entries() went on to %d names; want 3", n)
	}
}
