package cli

import (
	"errors"
	"fmt"
	"slices"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// extraOf is what a source and the command line ask for in the build root. Which of them asks makes no difference to the lock.
func extraOf(s *builder.Source, with []string) kernels.Extra {
	e := kernels.Extra{Packages: slices.Clone(with), Depends: s.Depends}
	for _, w := range s.Packages {
		e.Packages = append(e.Packages, w.Package)
	}
	return e
}

// askedBy adds to an error about an extra package where it was asked for.
func askedBy(s *builder.Source, with []string, err error) error {
	e := (*kernels.ExtraError)(nil)
	if !errors.As(err, &e) {
		return err
	}
	if slices.Contains(with, e.Entry) {
		return fmt.Errorf("--with: %w", err)
	}
	for _, w := range s.Packages {
		if w.Package == e.Entry {
			return fmt.Errorf("%s: %w", w.From, err)
		}
	}
	return err
}
