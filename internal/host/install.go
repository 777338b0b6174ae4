package host

import (
	"context"
	"errors"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/kmod"
)

// Install is what Root.Install is asked for.
type Install struct {
	Artifact v1.Image     // of a registered module; every byte is checked
	From     string       // Record.From
	Signer   *kmod.Signer // nil leaves modules unsigned
	Force    bool         // past the version gate, a failing PRE_INSTALL, and files of others in the way, which are moved aside like originals
	Adopt    bool         // files that dkms has installed for the same module and kernel are replaced, and its originals become ours
}

// Install puts the modules of an artifact in their places, as one change: when it returns an error, or the power fails, all is as it
// was, or will be after the next change. It signs, compresses as the kernel's own modules are, moves modules of the kernel's own
// with these names aside, takes off another version of the module, runs depmod, and keeps a record. Installing what is
// installed already changes nothing.
//
// Errors wrap ErrNotAdded, ErrNoKernel, ErrUnfit, ErrRefused, ErrSigning, ErrDepmod, ErrBroken, or artifact.ErrInvalid.
func (r *Root) Install(ctx context.Context, in Install) (Record, error) {
	return Record{}, errors.New("not there yet")
}

// Uninstall takes an installed module off a kernel, puts what was moved aside for it back, runs depmod, and leaves the record
// as Built, as one change like Install. A file that isn't what was installed stays, with a warning. One that isn't installed wraps
// ErrNotAdded.
func (r *Root) Uninstall(ctx context.Context, module, version string, k artifact.Kernel) (Record, error) {
	return Record{}, errors.New("not there yet")
}

// recover finishes or undoes the change that the journal tells of; the root is locked.
func (r *Root) recover(ctx context.Context) error { return nil }
