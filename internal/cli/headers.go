package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/pflag"

	"github.com/godkms-hermetic/godkms-hermetic/images"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// headerOptions say which repository has header images, and whether those that a build uses are sent there.
type headerOptions struct {
	repo string
	push bool
}

func (o *headerOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.repo, "images", "", "repository of header images, `REPO` of a registry or oci:DIR, to take them from (default none)")
	f.BoolVar(&o.push, "push-images", false, "send the header images that builds ran on to the repository of --images, where it lacks them")
}

// openHeaders opens a repository of header images.
func (a *app) openHeaders(text string) (images.Remote, error) {
	ref, err := registry.Parse(text)
	if err != nil {
		return images.Remote{}, err
	}
	if ref.Identifier() != "" {
		return images.Remote{}, fmt.Errorf("reference %q: header images have tags of their own: write %s", text, ref.Repository())
	}
	client, err := a.registries()
	if err != nil {
		return images.Remote{}, err
	}
	repo, err := client.Open(ref)
	if err != nil {
		return images.Remote{}, registryError(err)
	}
	return images.Remote{Client: client, Repo: repo}, nil
}

// headersRemote is the repository of the options, if any. One that is on the network is none when offline.
func (a *app) headersRemote(o headerOptions) (images.Remote, error) {
	if o.repo == "" {
		if o.push {
			return images.Remote{}, errors.New("--push-images: push where? name a repository with --images")
		}
		return images.Remote{}, nil
	}
	remote, err := a.openHeaders(o.repo)
	switch {
	case errors.Is(err, registry.ErrOffline):
		a.board.Warn(fmt.Sprintf("--images: %q is not asked: offline", o.repo))
		return images.Remote{}, nil
	case err != nil:
		return images.Remote{}, fmt.Errorf("--images: %w", err)
	}
	return remote, nil
}

// archived finds in a repository what of a request the indexes haven't got: a release, or a pattern; and what is named in full where the
// index can't be had. An error is of the repository.
func (a *app) archived(ctx context.Context, remote images.Remote, request []kernels.Selector, targets []target) ([]target, error) {
	if remote.Repo == nil || !slices.ContainsFunc(targets, mayBeArchived) {
		return targets, nil
	}
	list, err := remote.Kernels(ctx)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil && !errors.Is(err, registry.ErrNotFound) {
		return nil, err
	}
	var out []target
	for _, t := range targets {
		if !mayBeArchived(t) {
			out = append(out, t)
			continue
		}
		found := slices.DeleteFunc(matching(t.asked, list), func(k kernels.Kernel) bool { return kernels.Excluded(request, k) })
		if again := slices.IndexFunc(found, func(k kernels.Kernel) bool {
			return t.asked.Distro == "" && slices.ContainsFunc(found, func(o kernels.Kernel) bool { return o != k && o.Release == k.Release })
		}); again >= 0 {
			k := found[again]
			t.err = fmt.Errorf("%w; %q has the release %q of several suites: write DISTRO/SUITE:%s", t.err, remote.Repo.Name(), k.Release, t.asked.Release)
			out = append(out, t)
			continue
		}
		if len(found) == 0 {
			t.err = fmt.Errorf("%w; %q has no header image of it either", t.err, remote.Repo.Name())
			out = append(out, t)
			continue
		}
		for _, k := range found {
			if !slices.ContainsFunc(targets, func(o target) bool { return o.err == nil && o.kernel == k }) &&
				!slices.ContainsFunc(out, func(o target) bool { return o.err == nil && o.kernel == k }) {
				a.board.Warn(fmt.Sprintf("%s: %v; its packages are those of its header image in %q", k, t.err, remote.Repo.Name()))
				out = append(out, target{label: k.String(), kernel: k, archived: true})
			}
		}
	}
	return out, nil
}

// mayBeArchived tells whether a target without a kernel may have one in a registry. A mirror whose signatures are wrong is no reason
// to look there: somebody may want just that.
func mayBeArchived(t target) bool {
	word := t.asked.Release == kernels.Latest || t.asked.Release == kernels.Since
	return t.err != nil && !errors.Is(t.err, kernels.ErrUntrusted) && t.asked.Release != "" && !word &&
		(errors.Is(t.err, kernels.ErrNotFound) || t.asked.IsExact())
}

// matching gives the kernels of this machine's architecture that a selector stands for.
func matching(s kernels.Selector, list []kernels.Kernel) []kernels.Kernel {
	var out []kernels.Kernel
	for _, k := range list {
		if k.Arch == kernels.HostArch() && selects(s, k, running()) {
			out = append(out, k)
		}
	}
	return out
}

// headerUse is which header images a run of builds uses.
type headerUse struct {
	remote images.Remote
	mu     sync.Mutex
	extras map[v1.Hash]map[string]kernels.Extra // by lock, then by the tag that they have
	roots  map[v1.Hash]kernels.Lock             // that builds ran on
}

func (h *headerUse) locked(l kernels.Lock, extra kernels.Extra) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.extras == nil {
		h.extras = map[v1.Hash]map[string]kernels.Extra{}
	}
	d := l.Digest()
	if h.extras[d] == nil {
		h.extras[d] = map[string]kernels.Extra{}
	}
	h.extras[d][images.KernelTag(l.Kernel, extra)] = extra
}

func (h *headerUse) used(l kernels.Lock) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.roots == nil {
		h.roots = map[v1.Hash]kernels.Lock{}
	}
	h.roots[l.Digest()] = l
}

// lock pins the packages of a target.
func (r *buildRun) lock(ctx context.Context, t target, extra kernels.Extra) (kernels.Lock, error) {
	if t.archived {
		return r.archivedLock(ctx, r.headers.remote, t.kernel, extra)
	}
	lock, err := r.distros[t.kernel.Distro].Lock(ctx, t.kernel, extra)
	if err == nil && !lock.Forced { // else the kernel's tag in the registry would name a root with another compiler than its own
		r.headers.locked(lock, extra)
	}
	return lock, err
}

// archivedLock is the lock of a kernel's header image in a repository.
func (a *app) archivedLock(ctx context.Context, remote images.Remote, k kernels.Kernel, extra kernels.Extra) (kernels.Lock, error) {
	lock, plain, err := remote.Lock(ctx, k, extra)
	if errors.Is(err, registry.ErrNotFound) && len(extra.Packages)+len(extra.Depends) > 0 {
		return lock, fmt.Errorf("header image of %s with the extra packages %s: %w", k,
			strings.Join(slices.Concat(extra.Packages, extra.Depends), ", "), err)
	}
	if err == nil && a.compiler != "" && a.compiler != lock.Compiler {
		return lock, fmt.Errorf("header image of %s: it has %s: --compiler %s takes a kernel that its distribution still has", k, lock.Compiler, a.compiler)
	}
	if plain {
		a.board.Warn(fmt.Sprintf("%s: its header image in %q has not been made with %s", k, remote.Repo.Name(), strings.Join(extra.Depends, ", ")))
	}
	return lock, err
}

// pushHeaders sends the header images that builds ran on to where they are taken from. What fails is a warning: the modules are there.
func (r *buildRun) pushHeaders(ctx context.Context) {
	if r.headers.remote.Repo == nil {
		return
	}
	for _, d := range slices.SortedFunc(maps.Keys(r.headers.roots), func(a, b v1.Hash) int { return strings.Compare(a.Hex, b.Hex) }) {
		lock := r.headers.roots[d]
		for _, tag := range slices.Sorted(maps.Keys(r.headers.extras[d])) {
			if ctx.Err() != nil {
				return
			}
			if err := r.pushHeader(ctx, lock, r.headers.extras[d][tag]); err != nil && ctx.Err() == nil {
				r.board.Warn(fmt.Sprintf("--push-images: %v", err))
				if !errors.Is(err, images.ErrInvalid) {
					return // so would the others
				}
			}
		}
	}
}

func (r *buildRun) pushHeader(ctx context.Context, lock kernels.Lock, extra kernels.Extra) error {
	root, err := r.store.Root(ctx, lock, nil)
	if err != nil {
		return err
	}
	defer root.Close()
	line := r.board.Line("header image of " + lock.Kernel.String())
	sent, err := root.PushMissing(ctx, extra, progress(line))
	switch {
	case err != nil:
		line.End(ui.Failed, "")
	case sent:
		line.End(ui.Pushed, r.headers.remote.Repo.Name())
	}
	return err
}
