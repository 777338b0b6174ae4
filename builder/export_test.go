package builder

import (
	"testing"
	"time"
)

// LowerMaxOutput bounds the modules of a build, for one test.
func LowerMaxOutput(t *testing.T, n int64) {
	old := maxOutput
	t.Cleanup(func() { maxOutput = old })
	maxOutput = n
}

// LowerEvaluationLimit bounds the time that a dkms.conf may take, for one test.
func LowerEvaluationLimit(t *testing.T, d time.Duration) {
	old := evaluationLimit
	t.Cleanup(func() { evaluationLimit = old })
	evaluationLimit = d
}

// Compilers is what a build exports of a kernel's compiler.
var Compilers = compilers
