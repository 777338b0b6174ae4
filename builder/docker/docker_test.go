package docker

import (
	"os"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/builder/enginetest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/dockertest"
)

func TestMain(m *testing.M) {
	if IsInit() {
		os.Exit(Init())
	}
	os.Exit(m.Run())
}

// engine gives an engine of a Docker Engine.
func engine(t *testing.T, d *dockertest.Daemon) *Engine {
	t.Helper()
	t.Setenv("DOCKER_HOST", d.Host)
	e := New()
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func TestSuite(t *testing.T) {
	e := engine(t, dockertest.Start(t, dockertest.Options{}))
	enginetest.Run(t, e, enginetest.NewRoot(t))
}
