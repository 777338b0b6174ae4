package repo

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// factsRecipe counts the ways in which facts are read from a package.
const factsRecipe = "1"

// Facts reads what the header package p says of its kernel, from the file that Options.Fetch gives and payload opens. Nothing of a file
// is believed that wasn't checked to its end. The answer is kept in k, by the package's digest.
func Facts(ctx context.Context, k Keep, o Options, payload func(io.Reader) (io.ReadCloser, error), p kernels.Package) (kernels.Facts, error) {
	return Memo(k, factsKey(p), o.Warn, func() (kernels.Facts, error) {
		f, err := readFacts(ctx, o, payload, p)
		if errors.Is(err, kernels.ErrNotFound) {
			err = fmt.Errorf("%w; say it with --compiler", err)
		}
		if err != nil {
			return f, fmt.Errorf("which compiler built the kernel of package %q %s: %w", p.Name, p.Version, err)
		}
		return f, nil
	})
}

// KnownFacts is Facts where they were read before; it fetches nothing.
func KnownFacts(k Keep, p kernels.Package) (kernels.Facts, bool) {
	var f kernels.Facts
	ok := k.ReadJSON(k.Path("memo", factsKey(p)), &f)
	return f, ok
}

// factsKey is the name that the facts of a package are kept under.
func factsKey(p kernels.Package) string { return "facts" + factsRecipe + "-" + p.Digest.Hex }

func readFacts(ctx context.Context, o Options, payload func(io.Reader) (io.ReadCloser, error), p kernels.Package) (kernels.Facts, error) {
	file, err := o.Fetch(ctx, p)
	if err != nil {
		return kernels.Facts{}, err
	}
	defer file.Close()
	f, err := func() (kernels.Facts, error) {
		in, err := payload(file)
		if err != nil {
			return kernels.Facts{}, err
		}
		defer in.Close()
		return kernels.ReadFacts(in)
	}()
	if _, bad := io.Copy(io.Discard, file); bad != nil { // a file that isn't the package's is the reason for anything before
		return kernels.Facts{}, bad
	}
	return f, err
}
