package sandbox

import (
	"os"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/builder/enginetest"
)

func TestMain(m *testing.M) {
	if IsInit() {
		os.Exit(Init())
	}
	os.Exit(m.Run())
}

func TestSuite(t *testing.T) {
	enginetest.Run(t, Engine{}, enginetest.NewRoot(t))
}
