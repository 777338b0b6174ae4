// Package memtest measures the memory of a benchmark.
package memtest

import (
	"fmt"
	"os"
	"runtime/debug"
	"strings"
	"testing"
)

// Reset gives back to the system what the process no longer uses, and has Peak count from here on. What made a benchmark's input is
// not counted then.
func Reset(t testing.TB) {
	t.Helper()
	debug.FreeOSMemory()
	if err := os.WriteFile("/proc/self/clear_refs", []byte("5"), 0); err != nil { // proc_pid_clear_refs(5)
		t.Fatal(err)
	}
}

// Peak is the most that the process had in memory since Reset, its program included, in 10^6 bytes.
func Peak(t testing.TB) float64 {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	var kib float64
	if _, err := fmt.Sscan(rest, &kib); err != nil {
		t.Fatalf("VmHWM of /proc/self/status: %v", err)
	}
	return kib * 1024 / 1e6
}
