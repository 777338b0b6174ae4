package builder

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/builder/dkms"
	"github.com/godkms-hermetic/godkms-hermetic/cache"
	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/kmod"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
)

// Local is Result.From where the results' own cache had it.
const Local = "local"

// A Remote is a store of results that other machines fill too. A build doesn't trust it, and goes on without it: what it gives is checked
// against what its key was made of, and after its first failure it is left alone, with one warning. Whoever waits for it then stops
// waiting. One that only can't be written to is read further. It is safe for concurrent use.
type Remote struct {
	name        string
	store       cache.Store
	warn        func(string)
	read, write gate
	once        sync.Once
}

// NewRemote makes a Remote of a store, whose name is for messages. warn is told of its failure, one line: once, or twice where reading
// fails after writing.
func NewRemote(name string, store cache.Store, warn func(string)) *Remote {
	return &Remote{name: name, store: store, warn: warn, read: newGate(), write: newGate()}
}

// A gate is a way of use that ends at its first failure.
type gate struct {
	once *sync.Once
	shut chan struct{}
}

func newGate() gate { return gate{new(sync.Once), make(chan struct{})} }

func (g gate) close() (first bool) {
	g.once.Do(func() { first = true; close(g.shut) })
	return first
}

// errGone says that a remote failed before, or another's use of it at the same time, and that this was said.
var errGone = errors.New("the shared cache is not used any more")

// use calls f unless the way is shut, and ends it when that happens meanwhile.
func (g gate) use(ctx context.Context, f func(context.Context) error) error {
	select {
	case <-g.shut:
		return errGone
	default:
	}
	inner, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-g.shut:
			cancel(errGone)
		case <-inner.Done():
		}
	}()
	return f(inner)
}

func (r *Remote) get(ctx context.Context, key v1.Hash) (e cache.Entry, err error) {
	err = r.read.use(ctx, func(ctx context.Context) error {
		e, err = r.store.Get(ctx, key)
		return err
	})
	if err == nil || ctx.Err() != nil || errors.Is(err, errGone) || errors.Is(err, cache.ErrNotFound) {
		return e, err
	}
	r.gone(err)
	return cache.Entry{}, errGone
}

func (r *Remote) put(ctx context.Context, key v1.Hash, e cache.Entry) error {
	err := r.write.use(ctx, func(ctx context.Context) error { return r.store.Put(ctx, key, e) })
	if err == nil || ctx.Err() != nil || errors.Is(err, errGone) || errors.Is(err, cache.ErrDiffers) {
		return err
	}
	if errors.Is(err, registry.ErrUnavailable) {
		r.gone(err)
	} else if r.write.close() {
		r.warn(fmt.Sprintf("shared cache %q: %s; nothing more is sent there", r.name, firstOf(err)))
	}
	return errGone
}

// gone ends every use.
func (r *Remote) gone(err error) {
	r.read.close()
	r.write.close()
	r.once.Do(func() { r.warn(fmt.Sprintf("shared cache %q: %s; going on without it", r.name, firstOf(err))) })
}

// firstOf bounds what a server can make a message say.
func firstOf(err error) string {
	const longest = 400 // bytes
	text, _, _ := strings.Cut(err.Error(), "\n")
	if len(text) > longest {
		text = strings.ToValidUTF8(text[:longest], "") + "…"
	}
	return text
}

// fetch fills r from the first remote that has what belongs there, and keeps that. It reports whether there was one. What doesn't belong
// there is refused, with a warning.
func (b *Builder) fetch(ctx context.Context, r *Result, j Job, w Watch) bool {
	if len(b.Remotes) > 0 {
		w.phase("shared cache")
	}
	for _, remote := range b.Remotes {
		e, err := remote.get(ctx, r.Key)
		if ctx.Err() != nil {
			r.Err = context.Cause(ctx)
			return false
		}
		if err != nil {
			continue
		}
		found := Result{Key: r.Key}
		err = found.read(e)
		if err == nil {
			err = b.fits(found, j)
		}
		if err != nil {
			w.warn(fmt.Sprintf("shared cache %q: what it has for key %s is refused: %s", remote.name, r.Key, firstOf(err)))
			continue
		}
		if err := b.Results.Put(ctx, r.Key, b.entry(e.Image, e.Log, j)); err != nil {
			r.Err = fmt.Errorf("cache: %w", err)
			return false
		}
		*r = found
		r.From = remote.name
		return true
	}
	return false
}

// share gives others a result. What stands in the way is said, and changes nothing.
func (b *Builder) share(ctx context.Context, r Result, j Job, w Watch) {
	if b.Share == nil || r.From == b.Share.name {
		return
	}
	w.phase("sharing")
	err := b.Share.put(ctx, r.Key, b.entry(r.Image, r.Log, j))
	if errors.Is(err, cache.ErrDiffers) {
		w.warn(fmt.Sprintf("shared cache %q: it has another result for key %s and keeps it: %s; one of the two was altered, or the build is not "+
			"reproducible: --no-cache tells", b.Share.name, r.Key, firstOf(err)))
	}
}

// meta is what the artifact of a job says, as far as that is known without building it.
func (b *Builder) meta(j Job, key v1.Hash) artifact.Meta {
	k := j.Lock.Kernel
	m := artifact.Meta{
		Module: j.Source.Module, Version: j.Source.Version,
		Kernel: artifact.Kernel{Distro: k.Distro, Suite: k.Suite, Arch: k.Arch, Release: k.Release},
		Key:    key, Source: j.Source.Digest, Lock: j.Lock.Digest(),
	}
	for _, p := range j.Lock.Headers {
		if p.Name == "linux-headers-"+k.Release {
			m.Headers = p.Version
		}
	}
	return m
}

// fits checks a result from elsewhere against the job that has its key: everything that can be known without a build. Its bytes are
// those that its digests promise.
func (b *Builder) fits(r Result, j Job) error {
	got, want := r.Meta, b.meta(j, r.Key)
	for _, f := range []struct{ what, got, want string }{
		{"key", got.Key.String(), want.Key.String()},
		{"module", got.Module, want.Module},
		{"version", got.Version, want.Version},
		{"distribution", got.Kernel.Distro, want.Kernel.Distro},
		{"suite", got.Kernel.Suite, want.Kernel.Suite},
		{"architecture", got.Kernel.Arch, want.Kernel.Arch},
		{"kernel release", got.Kernel.Release, want.Kernel.Release},
		{"source digest", got.Source.String(), want.Source.String()},
		{"lock digest", got.Lock.String(), want.Lock.String()},
		{"version of the kernel's headers", got.Headers, want.Headers},
	} {
		if f.got != f.want {
			return fmt.Errorf("its %s is %q, not %q", f.what, f.got, f.want)
		}
	}
	if got.Symvers == (v1.Hash{}) {
		return errors.New("it doesn't say for which Module.symvers of the kernel it was built")
	}
	if !b.compiled(got.Compiler, j) {
		return fmt.Errorf("its compiler is %q, the kernel's is %q", got.Compiler, j.Lock.Compiler)
	}
	for _, f := range r.Files {
		if !dkms.Installable(want.Kernel.Distro, f.Dest) {
			return fmt.Errorf("%s is for the folder %q, where nothing is installed", f.Name, f.Dest)
		}
		if release, _, _ := strings.Cut(f.Vermagic, " "); release != want.Kernel.Release {
			return fmt.Errorf("%s has the vermagic %q", f.Name, f.Vermagic)
		}
	}
	for _, e := range got.Extras {
		if err := checkExtra(e, j.Source); err != nil {
			return err
		}
	}
	return nil
}

// compiled tells whether a kernel's CONFIG_CC_VERSION_TEXT names the locked compiler.
func (b *Builder) compiled(text string, j Job) bool {
	t := target(j, 1)
	if strings.Contains(text, "clang version ") {
		t.Config = map[string]string{"CONFIG_CC_IS_CLANG": "y"}
	}
	_, err := compilers(t, text, j.Lock)
	return err == nil || text == j.Lock.Compiler
}

// checkExtra wants a Module.symvers to be one, and a script for the host to be that of the source.
func checkExtra(e artifact.Extra, source *Source) error {
	if e.Name == artifact.ModuleSymvers {
		r, err := e.Open()
		if err != nil {
			return err
		}
		defer r.Close()
		if _, err := kmod.ReadSymvers(r); err != nil {
			return fmt.Errorf("its Module.symvers: %w", err)
		}
		return nil
	}
	scripts, err := hostScripts(source, []dkms.HostScript{{Directive: e.Name, Command: e.Command}})
	if err != nil {
		return err
	}
	text, err := scripts[0].Open()
	if err != nil {
		return err
	}
	defer text.Close()
	digest, _, err := v1.SHA256(text)
	if err != nil {
		return err
	}
	if digest != e.Digest || scripts[0].Executable != e.Executable {
		return fmt.Errorf("its %s, %.80q, is not the source's", e.Name, e.Command)
	}
	return nil
}
