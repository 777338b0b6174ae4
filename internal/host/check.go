package host

import (
	"errors"
	"fmt"
	"io/fs"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
)

// Check looks whether an installed module is still as it was installed, and fits the kernel that has its release now: a distribution can
// put another kernel there. symvers is of what it was built against; where it's empty it isn't compared. Errors wrap ErrUnfit, which
// takes another build to mend, ErrBroken where a file is gone or changed, which another Install mends, or ErrNoKernel.
func (r *Root) Check(rec Record, symvers v1.Hash) error {
	lib, err := r.kernel(rec.Kernel.Release)
	if err != nil {
		return err
	}
	defer lib.Close()
	there, err := rec.there(lib)
	if err != nil {
		return err
	}
	if !there {
		return fmt.Errorf("%w: files of %s/%s are gone from %s, or changed", ErrBroken, rec.Module, rec.Version, r.shown(rec.Kernel.Release, ""))
	}
	t, err := readTree(lib)
	if err != nil {
		return err
	}
	native := t.native(lib)
	for _, f := range rec.Files {
		m, err := readModule(lib, f.Path)
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w: %w", ErrBroken, err)
		}
		if err != nil {
			return err
		}
		if err := fits(m, native, f.Path, rec.Kernel); err != nil {
			return err
		}
	}
	return r.fitsSymvers(artifact.Meta{Module: rec.Module, Version: rec.Version, Kernel: rec.Kernel, Symvers: symvers})
}
