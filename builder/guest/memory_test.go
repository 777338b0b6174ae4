package guest

import (
	"os"
	"path/filepath"
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
