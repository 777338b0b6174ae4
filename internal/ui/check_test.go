package ui

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/creack/pty"
)

func TestPrintChecks(t *testing.T) {
	checks := []Check{
		{"sandbox", CheckOK, "works", ""},
		{"user namespaces", CheckWarn, "odd\x1b[2J\nlines", "do this"},
		{"cache", CheckFail, "full", "free some"},
	}
	var plain bytes.Buffer
	if err := PrintChecks(&plain, checks, nil); err != nil {
		t.Fatal(err)
	}
	want := "ok    sandbox          works\nwarn  user namespaces  odd lines; do this\nfail  cache            full; free some\n"
	if plain.String() != want {
		t.Errorf("PrintChecks:\n%s\nwant:\n%s", &plain, want)
	}
	for env, colored := range map[string]bool{"": true, "NO_COLOR=1": false, "TERM=dumb": false} {
		master, slave, err := pty.Open()
		if err != nil {
			t.Fatal(err)
		}
		err = PrintChecks(slave, checks, func(name string) string {
			if k, v, _ := strings.Cut(env, "="); k == name {
				return v
			}
			return ""
		})
		buf := make([]byte, 4096)
		n := 0
		var rerr error
		for rerr == nil && bytes.Count(buf[:n], []byte("\n")) < len(checks) { // a terminal gives what it has by now
			var more int
			more, rerr = master.Read(buf[n:])
			n += more
		}
		slave.Close()
		master.Close()
		if err != nil || rerr != nil {
			t.Fatal(err, rerr)
		}
		got := strings.ReplaceAll(string(buf[:n]), "\r\n", "\n")
		if strings.Contains(got, "\x1b[32mok  \x1b[0m") != colored || strings.Contains(got, "\x1b[31mfail\x1b[0m") != colored {
			t.Errorf("%q: on a terminal %q; want colours: %v", env, got, colored)
		}
	}
	if err := PrintChecks(failing{}, checks, os.Getenv); err == nil {
		t.Error("a closed file is no error")
	}
}
