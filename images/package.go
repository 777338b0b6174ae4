package images

import (
	"context"
	"io"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// Package gives a package's file, which is downloaded if the cache has it not. Reading it to its end fails if it isn't the file that p
// describes. Errors are of type *PackageError. The caller closes it.
func (s *Store) Package(ctx context.Context, p kernels.Package) (io.ReadCloser, error) {
	if err := s.fetch(ctx, p, func(int64) {}); err != nil {
		return nil, packageErr(p, err)
	}
	f, err := s.openPackage(p, func(int64) {})
	if err != nil {
		return nil, packageErr(p, err)
	}
	return &checked{s, f}, nil
}

// Package is the one that the file must be of.
func (r *packageReader) Package() kernels.Package { return r.pkg }

// checked fails at the end of a file that is not the package's, which is removed.
type checked struct {
	store *Store
	*packageReader
}

func (c *checked) Read(b []byte) (int, error) {
	n, err := c.packageReader.Read(b)
	if err != io.EOF {
		return n, err
	}
	if good, verr := c.verify(); verr != nil {
		err = verr
	} else if !good {
		c.store.dropPackage(c.packageReader)
		err = &PackageError{c.pkg, errDamaged, "run again to download it anew"}
	}
	return n, err
}
