// Package need is for tests that need something of the machine: where it is missing they are skipped, and in CI they fail.
package need

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Skip ends a test that can't be run here: it skips it, or fails it if the environment variable CI is set.
func Skip(t testing.TB, format string, a ...any) {
	t.Helper()
	if os.Getenv("CI") != "" {
		t.Fatalf(format, a...)
	}
	t.Skipf("NOT TESTED: "+format, a...)
}

// Program gives the path of a program, which may be in a folder that root alone has in its PATH, or ends the test.
func Program(t testing.TB, name string) string {
	t.Helper()
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin") {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p
		}
	}
	Skip(t, "no %s here", name)
	return ""
}
