package trial

import (
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	if IsInit() { // these tests make trials of their own
		os.Exit(Init())
	}
	os.Exit(m.Run())
}
