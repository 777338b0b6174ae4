// Package host puts modules on a Linux root and takes them off: files, depmod, signatures, hooks, and the state that says what is
// there.
package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
)

// What errors of this package wrap, beside those of the file system.
var (
	ErrNotAdded = errors.New("not added")              // no such module and version is registered, or none for that kernel
	ErrAdded    = errors.New("already added")          // of an Add of what is registered
	ErrBroken   = errors.New("broken")                 // what the state refers to is gone or damaged
	ErrNoKernel = errors.New("no such kernel")         // there is no /lib/modules/<release>
	ErrRefused  = errors.New("refused")                // an install that force would do: a version gate, a foreign file, PRE_INSTALL
	ErrUnfit    = errors.New("not for this kernel")    // vermagic or symbol versions differ; force doesn't help
	ErrSigning  = errors.New("can't be signed")        // or must be and isn't
	ErrDepmod   = errors.New("depmod failed")          // what was done has been undone
	ErrPre      = errors.New("PRE_INSTALL failed")     // wraps ErrRefused too
	ErrRemains  = errors.New("still used by a kernel") // of a Remove of a module that is built or installed
)

// StateDir is where a root keeps what this package knows of it:
//
//	modules/<module>/<version>/module.json             a Registration
//	modules/<module>/<version>/<release>.<arch>.json   a Record: one module for one kernel
//	originals/<release>/…                              modules of the kernel's own that were moved aside, by path below /lib/modules/<release>
//	results/                                           artifacts that were built or pulled, a cache.Dir
//	keys/                                              the host's own signing key
//	journal.json                                       of a change under way; see Root.Recover
//	journal/                                           what the journal refers to
//	lock                                               held by whoever changes anything
//	tmp/                                               what is being written
//
// Every file appears whole or not at all.
const StateDir = "/var/lib/godkms-hermetic"

// Options are settings of a Root.
type Options struct {
	NoDepmod bool         // leave modules.dep as it is
	Warn     func(string) // is told, a line each, of what is odd and stops nothing. Default: nobody is told.
	Sys      string       // where sysfs tells how the machine was started. Default: /sys for this machine's own root, else nowhere.

	// Step is called before each step of a change that the power could fail at, with the step's name. An error of it ends the change
	// there, as if the process had died: nothing is undone. It is for tests.
	Step func(name string) error
}

// Root is a Linux file system that modules are put on: this machine's, or the mounted image of another. It is safe for concurrent
// use, by processes too: who changes something waits for the others.
type Root struct {
	dir string // absolute
	o   Options
}

// Open opens the root at dir, "/" for this machine's own. It writes nothing, and reads nothing but that dir is a folder.
func Open(dir string, o Options) (*Root, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(abs)
	if err != nil {
		return nil, fmt.Errorf("root: %w", err)
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("root: %q is not a folder", abs)
	}
	if o.Warn == nil {
		o.Warn = func(string) {}
	}
	return &Root{dir: abs, o: o}, nil
}

// Dir is the root's own path on this machine.
func (r *Root) Dir() string { return r.dir }

// IsHost tells whether the root is the one that this process runs on.
func (r *Root) IsHost() bool { return r.dir == "/" }

// Path gives the path on this machine of one below the root. Links in the root are followed as within it: none leads out.
func (r *Root) Path(name string) (string, error) { return resolve(r.dir, name) }

// state is the path of a file or folder of the state.
func (r *Root) state(name ...string) (string, error) {
	return r.Path(filepath.Join(append([]string{StateDir}, name...)...))
}

// lock waits until no other process changes the root, and finishes or undoes what one left that died.
func (r *Root) lock(ctx context.Context) (unlock func(), err error) {
	path, err := r.state("lock")
	if err != nil {
		return nil, err
	}
	f, err := durable.Lock(ctx, path, false)
	if err != nil {
		return nil, fmt.Errorf("the state of installed modules: %w", err)
	}
	if err := errors.Join(r.recover(ctx), r.sweep()); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}

// sweep removes what processes that died were writing.
func (r *Root) sweep() error {
	tmp, err := r.state("tmp")
	if err != nil {
		return err
	}
	return durable.Sweep(tmp)
}

// Recover finishes or undoes a change that was cut off: afterwards all of it is there or nothing. Every change does this first.
func (r *Root) Recover(ctx context.Context) error {
	unlock, err := r.lock(ctx)
	if err == nil {
		unlock()
	}
	return err
}
