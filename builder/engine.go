package builder

import (
	"context"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// UID and GID are the ordinary user's that every command of a build runs as, the same in every engine. HostName is the
// machine's name that it sees.
const (
	UID      = 1000
	GID      = 1000
	HostName = "godkms-hermetic"
)

// Root is the file system that a build runs on: a header image. It stays valid until Close.
type Root interface {
	// Layers are folders of this machine with the unpacked layers, lowest first. They must not be written to.
	Layers() []string
	// Image is the same root as an OCI image, packed on demand.
	Image(ctx context.Context) (v1.Image, error)
	Close() error
}

// Spec describes a sandbox.
type Spec struct {
	Root    Root
	Kernel  kernels.Kernel // the target; an engine refuses an architecture that this machine can't run
	Scratch []string       // absolute paths of empty, writable folders, made where the root lacks them; all else is read-only
}

// Engine starts sandboxes. What a sandbox sees is fixed: the root, /proc of its own processes, a minimal /dev, the scratch
// folders, user UID, host name HostName, and no network. Nothing of the host, no environment variable, no file descriptor
// reaches it. Engines are safe for concurrent use.
type Engine interface {
	Start(ctx context.Context, s Spec) (Sandbox, error)
}

// Sandbox runs commands, one at a time; files written to its scratch folders stay until Close.
type Sandbox interface {
	// Run runs a command and waits for it. It returns an *ExitError when the command ran and failed. When it returns, no
	// process that the command started is left. When ctx ends, the whole tree is killed and the error is ctx's cause.
	Run(ctx context.Context, c Command) error
	// Close ends every process and removes everything that the sandbox made. Calling it twice is harmless.
	Close() error
}

// Command is one program to run in a sandbox. All data goes in and out through the three streams; a nil stream is empty
// or discarded.
type Command struct {
	Args           []string // Args[0] is looked up in the PATH of Env
	Env            []string // the whole environment, NAME=value
	Dir            string   // absolute
	Stdin          io.Reader
	Stdout, Stderr io.Writer
}

// ExitError says that a command ran and failed.
type ExitError struct {
	Args   []string
	Code   int    // exit code; 128 + signal when a signal ended it
	Signal string // "killed", "segmentation fault", …; empty when it exited by itself
}

func (e *ExitError) Error() string {
	if e.Signal != "" {
		return fmt.Sprintf("%q was ended by a signal: %s", e.Args[0], e.Signal)
	}
	return fmt.Sprintf("%q exited with code %d", e.Args[0], e.Code)
}
