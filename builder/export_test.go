package builder

import "testing"

// LowerMaxOutput bounds the modules of a build, for one test.
func LowerMaxOutput(t *testing.T, n int64) {
	old := maxOutput
	t.Cleanup(func() { maxOutput = old })
	maxOutput = n
}
