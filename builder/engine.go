package builder

import (
	"cmp"
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
	// Digest is a hash of everything in it. It is a function of the lock.
	Digest() v1.Hash
	// Image is the same root as an OCI image, packed on demand.
	Image(ctx context.Context) (v1.Image, error)
	Close() error
}

// Spec describes a sandbox.
type Spec struct {
	Root    Root
	Kernel  kernels.Kernel // the target; an engine refuses an architecture that this machine can't run
	Scratch []string       // absolute paths of empty, writable folders, made where the root lacks them; /tmp is always one more
	Memory  int64          // bytes that the sandbox's processes and scratch folders may hold in all; 0 is no limit
	Surroundings
}

// Surroundings are what commands see of where they run and nothing that's built may depend on. All builds have the same, the zero value:
// others are there to find out what depends on them.
type Surroundings struct {
	User       int    // uid and gid in place of UID and GID; 0 is none
	Host       string // in place of HostName; empty is none
	Processors int    // how many of the processors commands may run on; 0 is all. They may take more of them by themselves.
}

// IDs are the user's.
func (s Surroundings) IDs() (uid, gid int) { return cmp.Or(s.User, UID), cmp.Or(s.User, GID) }

// HostName is the machine's name.
func (s Surroundings) HostName() string { return cmp.Or(s.Host, HostName) }

// Engine starts sandboxes. What a sandbox sees is fixed: the root, read-only; /proc of its own processes; a minimal /dev; the
// scratch folders and /tmp; user UID without any capability, or a way to gain one; umask 022; host name HostName; and no
// network, whether its loopback device is up or not. Surroundings change user and host name, and nothing else. Nothing of the host, no
// environment variable, no file descriptor reaches it. Engines are safe for concurrent use. Package enginetest has this contract as tests.
type Engine interface {
	Start(ctx context.Context, s Spec) (Sandbox, error)
}

// Sandbox runs commands, one at a time; files written to its scratch folders stay until Close.
type Sandbox interface {
	// Run runs a command and waits for it. It returns an *ExitError when the command ran and failed; a program that's missing
	// has code 127, one that can't be executed 126, as in a shell, and Stderr says so. Any other error means that the command
	// did not run to its end: it was ended for its memory (a *MemoryError), its Dir is missing, the sandbox has ended, or
	// reading Stdin or writing Stdout or Stderr failed, whose error is then wrapped. When Run returns, no process that the command started is left. When ctx ends, the whole
	// tree is killed and the error is ctx's cause; the sandbox can be used further.
	Run(ctx context.Context, c Command) error
	// Close ends every process and removes everything that the sandbox made. Calling it twice is harmless.
	Close() error
}

// Command is one program to run in a sandbox. All data goes in and out through the three streams; a nil stream is empty
// or discarded. The command needn't read all of Stdin, and a Read of it may still be under way when Run returns: its bytes are
// lost, and whoever writes into a pipe that Stdin reads from must close it himself. Where Stdout and Stderr are the same
// writer, the order of what is written is kept.
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

// MemoryError says that a command was ended because the sandbox held more memory than Spec allows.
type MemoryError struct{ Limit int64 } // bytes

func (e *MemoryError) Error() string {
	return fmt.Sprintf("more than %.1f MiB of memory were needed; --memory sets the limit", float64(e.Limit)/(1<<20))
}

// UnavailableError says that an engine doesn't work on this machine.
type UnavailableError struct {
	Engine string // "sandbox", "docker"
	Cause  string // what is in the way: "user namespaces are switched off: user.max_user_namespaces is 0"
	Hint   string // what to do next
	Err    error  // the step that failed
}

func (e *UnavailableError) Error() string {
	return e.Engine + ": " + e.Cause + " (" + e.Err.Error() + "); " + e.Hint
}
func (e *UnavailableError) Unwrap() error { return e.Err }
