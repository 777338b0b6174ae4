package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/cache"
	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/host"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// kept is what there is of a module for a kernel, every byte of it checked.
type kept struct {
	meta  artifact.Meta
	files []artifact.File
	entry cache.Entry
}

func (k kept) kernel() kernels.Kernel { return kernelOf(k.meta) }

// keptOf gives what was built of a module for kernels, in the order of their names, or of selectors: what a root has of a MODULE/VERSION
// that is registered there, else what the user's cache has; see storedOf. What was skipped is left out, with a warning; where that is
// all, the error has the exit code for it.
func (a *app) keptOf(ctx context.Context, root *host.Root, src string, selectors []kernels.Selector, exclude []string) ([]kept, error) {
	list, err := a.registeredOf(ctx, root, src)
	if err != nil {
		return nil, err
	}
	if len(list) > 0 {
		return chosen(list, src, selectors)
	}
	results, err := a.results()
	if err != nil {
		return nil, err
	}
	found, err := a.storedOf(ctx, results, src, selectors, exclude)
	if err != nil {
		return nil, err
	}
	for _, s := range found {
		if s.meta.Status == artifact.Skipped {
			a.board.Warn(fmt.Sprintf("%s: left out: %s", s.kernel(), s.meta.Reason))
			continue
		}
		e, err := results.Get(ctx, s.Key)
		if err != nil {
			return nil, err
		}
		k := kept{entry: e}
		if k.meta, k.files, err = artifact.Read(e.Image); err != nil {
			return nil, fmt.Errorf("%s: %w", s.kernel(), err)
		}
		list = append(list, k)
	}
	if len(list) == 0 {
		return nil, &exitError{code: exitSkipped, err: errors.New("every kernel was skipped by the module's BUILD_EXCLUSIVE rules; there is nothing to pack")}
	}
	return list, nil
}

// registeredOf is what a root has of a MODULE/VERSION; nothing if it isn't registered there, or nothing was built.
func (a *app) registeredOf(ctx context.Context, root *host.Root, name string) ([]kept, error) {
	m := moduleVersion.FindStringSubmatch(name)
	if m == nil || host.CheckName("module", m[1]) != nil || host.CheckName("version", m[2]) != nil {
		return nil, nil
	}
	module, err := root.Module(m[1], m[2])
	if errors.Is(err, host.ErrNotAdded) {
		return nil, nil
	}
	if err != nil {
		return nil, hostError(root, err)
	}
	var list []kept
	var results *cache.Dir
	for _, r := range module.Records {
		if r.State == host.Failed {
			continue
		}
		if results == nil {
			if results, err = rootResults(root, a.board.Warn); err != nil {
				return nil, hostError(root, err)
			}
		}
		e, err := results.Get(ctx, r.Key)
		if err != nil {
			return nil, hostError(root, fmt.Errorf("%s for %s: %w: %w; build it again", name, r.Kernel.Release, host.ErrBroken, err))
		}
		b, err := resultOf(e)
		if err != nil || b.Digest != r.Artifact {
			return nil, hostError(root, fmt.Errorf("%s for %s: %w: it is not what was built; build it again", name, r.Kernel.Release, host.ErrBroken))
		}
		list = append(list, kept{b.Meta, b.Files, e})
	}
	return list, nil
}

// chosen keeps what selectors name, all if there are none.
func chosen(list []kept, name string, selectors []kernels.Selector) ([]kept, error) {
	slices.SortFunc(list, func(a, b kept) int { return strings.Compare(a.kernel().String(), b.kernel().String()) })
	out, none := pick(list, kept.kernel, selectors)
	if none != "" {
		return nil, fmt.Errorf("%s isn't built for %q; 'status' shows what is", name, none)
	}
	return out, nil
}

// keptSource opens the source of a MODULE/VERSION that is registered with a root, else one as build does.
func (a *app) keptSource(ctx context.Context, root *host.Root, src string, exclude []string) (*builder.Source, error) {
	m := moduleVersion.FindStringSubmatch(src)
	if m == nil {
		return a.openSource(ctx, src, exclude)
	}
	g, err := root.Module(m[1], m[2])
	if err != nil && !errors.Is(err, host.ErrNotAdded) {
		return nil, hostError(root, err)
	}
	if err != nil || g.Source == "" {
		return a.openSource(ctx, src, exclude)
	}
	path, err := root.Path(g.Source)
	if err != nil {
		return nil, err
	}
	source, err := a.openSource(ctx, path, nil)
	if err == nil && (source.Module != g.Module || source.Version != g.Version) {
		source.Close()
		err = fmt.Errorf("%w: %q is the source of %s/%s now", host.ErrBroken, path, source.Module, source.Version)
	}
	return source, hostError(root, err)
}
