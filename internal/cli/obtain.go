package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/cache"
	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/host"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// obtainOptions say how obtain goes about it.
type obtainOptions struct {
	buildOptions      // what is about how to build; see defaultBuild
	again        bool // pass over what the root has
}

// obtained is a registered module for a kernel of a root: where it came from, or why it couldn't be had.
type obtained struct {
	module host.Registration
	kernel artifact.Kernel
	status ui.Status // Built, Cached (it was built before), Pulled (from the registry, now or before), Skipped (by BUILD_EXCLUSIVE), or Failed
	image  v1.Image  // nil of what Failed or was Skipped
	from   string    // host.Record.From
	err    error     // of what Failed; codeOf gives its exit code
	report ui.Result

	already bool // it was recorded as Built or Installed before
}

// obtain gets modules of a root for kernels: what was obtained before, what the module's registry has for just that kernel, or what is
// built in the sandbox, the user's cache first. What BUILD_DEPENDS names is taken from the registered modules, and obtained first. What
// was obtained is kept in the root's results, with a record: Built, or Failed with the reason, unless one says that it's Built or
// Installed already. One failure stops no other; the answers are kernel by kernel, in the order of what was asked for. An error is one
// that nothing can be obtained with. No two of the modules are versions of one.
func (a *app) obtain(ctx context.Context, root *host.Root, modules []host.Module, ks []artifact.Kernel, o obtainOptions) ([]obtained, error) {
	for _, k := range ks {
		if k.Distro == "" || k.Suite == "" {
			return nil, fmt.Errorf("%s doesn't say which distribution it is, and which release of it: ID is wanted, and VERSION_CODENAME or VERSION_ID", filepath.Join(root.Dir(), "etc/os-release"))
		}
	}
	if err := root.Recover(ctx); err != nil { // as root can
		return nil, hostError(root, err)
	}
	run, err := a.newRun(o.buildOptions)
	if err != nil {
		return nil, err
	}
	if err := run.open(); err != nil {
		return nil, err
	}
	defer run.close()
	x := &obtaining{buildRun: run, root: root, again: o.again, cells: map[wish]*obtained{}}
	if x.kept, err = rootResults(root, a.board.Warn); err != nil {
		return nil, hostError(root, err)
	}
	var out []*obtained
	for _, k := range ks {
		for _, m := range modules {
			c := &obtained{module: m.Registration, kernel: k, report: reportOf(m, k)}
			out = append(out, c)
			x.cells[wish{m.Module, m.Version, k}] = c
		}
	}
	if err := x.find(ctx, modules, ks); err != nil {
		return nil, err
	}
	if err := x.build(ctx, modules, ks); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	list := make([]obtained, len(out))
	for i, c := range out {
		if c.status == ui.Skipped { // whatever it failed for before
			if err := forgetFailure(ctx, root, *c); err != nil {
				return nil, hostError(root, err)
			}
		}
		if c.err != nil {
			c.status, c.image, c.report.Status = ui.Failed, nil, ui.Failed
			c.report.Reason, _, _ = strings.Cut(c.err.Error(), "\n")
			switch err := x.noteFailure(ctx, c); {
			case errors.Is(err, host.ErrBroken): // no other module's or kernel's matter
				c.err = hostError(root, err)
			case err != nil:
				return nil, hostError(root, err)
			}
		}
		list[i] = *c
	}
	return list, nil
}

// rootResults is where a root keeps the artifacts of its modules.
func rootResults(root *host.Root, warn func(string)) (*cache.Dir, error) {
	dir, err := root.Path(filepath.Join(host.StateDir, "results"))
	if err != nil {
		return nil, err
	}
	return cache.Open(dir, cache.Options{Warn: warn})
}

// inOrder sorts modules so that each comes after those that it may name in BUILD_DEPENDS, otherwise as they are.
func inOrder(modules []host.Module) []host.Module {
	var out []host.Module
	var add func(m host.Module, path []string)
	add = func(m host.Module, path []string) {
		same := func(o host.Module) bool { return o.Module == m.Module && o.Version == m.Version }
		if slices.Contains(path, m.Module) || slices.ContainsFunc(out, same) {
			return
		}
		for _, name := range m.Depends {
			for _, d := range modules {
				if d.Module == name {
					add(d, append(path, m.Module))
				}
			}
		}
		out = append(out, m)
	}
	for _, m := range modules {
		add(m, nil)
	}
	return out
}

// wish is a module for a kernel.
type wish struct {
	module, version string
	kernel          artifact.Kernel
}

// obtaining is a run of obtain.
type obtaining struct {
	*buildRun
	root  *host.Root
	kept  *cache.Dir // the root's results
	again bool
	cells map[wish]*obtained
	found map[wish]builder.Result // what is there without building
}

// find looks for what needn't be built.
func (x *obtaining) find(ctx context.Context, modules []host.Module, ks []artifact.Kernel) error {
	x.found = map[wish]builder.Result{}
	if slices.ContainsFunc(modules, func(m host.Module) bool { return m.Reference != "" }) {
		if _, err := x.registries(); err != nil { // once for all
			return err
		}
	}
	var mu sync.Mutex // of found
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for _, m := range modules {
		for _, k := range ks {
			w := wish{m.Module, m.Version, k}
			g.Go(func() error {
				c := x.cells[w]
				b, from, ok := x.recorded(gctx, m, k)
				c.already = ok
				if !ok && m.Reference != "" && (m.Source == "" || !x.options.noCache) {
					from = m.Reference
					b, ok, c.err = x.pull(gctx, m.Registration, k) // the error counts if it can't be built
					if gctx.Err() != nil {
						return context.Cause(gctx)
					}
				}
				if !ok {
					return nil
				}
				c.status, c.image, c.from = ui.Cached, b.Image, from
				if from != "" {
					c.status = ui.Pulled
				}
				c.report.Status, c.report.Key, c.report.Digest, c.report.Reference = c.status, b.Key.String(), b.Digest.String(), from
				mu.Lock()
				defer mu.Unlock()
				x.found[w] = b
				return nil
			})
		}
	}
	return g.Wait()
}

// recorded gives what a record says is there, if it is, and where that came from.
func (x *obtaining) recorded(ctx context.Context, m host.Module, k artifact.Kernel) (b builder.Result, from string, found bool) {
	rec, _ := m.Find(k.Release, k.Arch)
	if x.again || !isThere(rec) {
		return b, "", false
	}
	e, err := x.kept.Get(ctx, rec.Key)
	if err != nil {
		return b, "", false
	}
	b, err = resultOf(e)
	return b, rec.From, err == nil && b.Digest == rec.Artifact && b.Meta.Module == m.Module && b.Meta.Version == m.Version && b.Meta.Kernel == rec.Kernel
}

// resultOf is a result that was built before; every byte of it is checked.
func resultOf(e cache.Entry) (b builder.Result, err error) {
	b = builder.Result{Status: builder.Cached, From: builder.Local, Image: e.Image, Log: e.Log, Inputs: e.Inputs}
	if b.Meta, b.Files, err = artifact.Read(e.Image); err != nil {
		return b, err
	}
	b.Key = b.Meta.Key
	b.Digest, err = e.Image.Digest()
	return b, err
}

// pull gets from a module's registry what fits the kernel, and keeps it. found is false where there is none; the error says why.
func (x *obtaining) pull(ctx context.Context, g host.Registration, k artifact.Kernel) (b builder.Result, found bool, err error) {
	client, repo, _, err := x.app.open(g.Reference)
	if err != nil {
		return b, false, err
	}
	want := artifact.Want{Distro: k.Distro, Suite: k.Suite, Release: k.Release, Arch: k.Arch}
	m := readMachine(x.root.Dir(), "")
	if want.Symvers, _, err = m.symvers(k.Release); err != nil {
		return b, false, fmt.Errorf("read the headers of %s: %w", k.Release, err)
	}
	e, img, err := artifact.Find(ctx, repo, g.Version, want)
	if errors.Is(err, registry.ErrNotFound) {
		return b, false, &exitError{code: exitAbsent, err: err}
	}
	if err == nil {
		err = e.Check(img)
	}
	if err == nil && (e.Module != g.Module || e.Version != g.Version) {
		err = fmt.Errorf("%w: it is of %s/%s", artifact.ErrInvalid, e.Module, e.Version)
	}
	if err != nil {
		return b, false, x.notPulled(ctx, g, k, err)
	}
	line := x.board.Line(k.Release + " " + g.Module + "/" + g.Version)
	line.Phase("pulling")
	fail := func(err error) (builder.Result, bool, error) {
		err = x.notPulled(ctx, g, k, err)
		line.End(ui.Failed, err.Error())
		return b, false, err
	}
	temp, err := durable.NewTemp(filepath.Join(x.builder.Temp, "pull"))
	if err != nil {
		return fail(err)
	}
	defer temp.Close()
	if img, err = client.Fetch(ctx, repo, e.Digest.String(), temp.Dir, line.Bytes); err != nil {
		return fail(err)
	}
	if b, err = resultOf(cache.Entry{Image: img}); err != nil {
		return fail(err)
	}
	attached, err := artifact.ReadAttachmentsOf(ctx, repo, e.Digest, b.Meta, artifact.LockType, artifact.TestType)
	if err != nil { // the modules are there
		x.board.Warn(fmt.Sprintf("%s/%s for %s: without its lock and what came of its tests: %v", g.Module, g.Version, k.Release, err))
	}
	if err := x.keep(ctx, g, k, g.Reference, &b, attached.Lock); err != nil {
		return fail(err)
	}
	for _, t := range attachedTests(e.Digest, attached) {
		if now := time.Now().UTC().Truncate(time.Second); t.Tested.After(now) {
			t.Tested = now // one that is made here from now on is newer, whatever the registry's clock says
		}
		if err := noteTest(ctx, x.kept, b.Key, t); err != nil {
			return fail(err)
		}
	}
	line.End(ui.Pulled, g.Reference)
	return b, true, nil
}

// notPulled is why a registry isn't of use. Where there is a source that is a warning.
func (x *obtaining) notPulled(ctx context.Context, g host.Registration, k artifact.Kernel, err error) error {
	if ofRegistry(err) || errors.Is(err, registry.ErrOffline) {
		err = registryError(err)
	}
	if g.Source != "" && ctx.Err() == nil {
		x.board.Warn(fmt.Sprintf("%s/%s for %s: %v; it is built instead", g.Module, g.Version, k.Release, err))
	}
	return err
}

// keep puts what was obtained into the root's results, with a record. The result is the one that is there then.
func (x *obtaining) keep(ctx context.Context, g host.Registration, k artifact.Kernel, from string, b *builder.Result, lock []byte) error {
	if err := x.kept.Put(ctx, b.Key, cache.Entry{Image: b.Image, Log: b.Log, Lock: lock, Inputs: b.Inputs}); err != nil {
		return err
	}
	e, err := x.kept.Get(ctx, b.Key)
	if err != nil {
		return err
	}
	log, status := b.Log, b.Status
	if *b, err = resultOf(e); err != nil {
		return err
	}
	b.Log, b.Status = log, status
	m, err := x.root.ModuleFor(g.Module, g.Version, k)
	if err != nil {
		return err
	}
	before, _ := m.Find(k.Release, k.Arch)
	err = x.root.Note(ctx, host.Record{Module: g.Module, Version: g.Version, Kernel: k, State: host.Built, Key: b.Key, Artifact: b.Digest, From: from,
		Changed: time.Now().UTC().Truncate(time.Second)})
	switch {
	case errors.Is(err, host.ErrRefused): // what is installed stays, and its record
		return nil
	case err == nil && before.State == host.Built && before.Key != b.Key:
		return x.kept.Remove(ctx, before.Key)
	}
	return err
}

// build builds what wasn't found.
func (x *obtaining) build(ctx context.Context, modules []host.Module, ks []artifact.Kernel) error {
	from := builder.SourceOptions{Temp: x.builder.Temp, Open: x.distros["debian"].Open}
	missing, err := x.openMissing(ctx, modules, ks, from)
	if err != nil || len(missing) == 0 {
		return err
	}
	offers, err := x.offers(modules)
	if err != nil {
		return err
	}
	if x.units, err = x.units.complete(ctx, offers, x.options.input, from); err != nil {
		return err
	}
	var targets []target
	for _, k := range ks {
		t := target{label: k.Release, kernel: kernels.Kernel(k)}
		if x.distros[k.Distro] == nil {
			t.err = fmt.Errorf("there are no packages of %q to build with; a registry may have the module prebuilt", k.Distro)
		}
		targets = append(targets, t)
	}
	needed := x.needed(ctx, targets, missing)
	x.have = func(u unit, t target) (builder.Result, bool) {
		b, ok := x.found[wishOf(u, t)]
		return b, ok || !needed[wishOf(u, t)]
	}
	x.handOut = func(ctx context.Context, c *cell, b builder.Result) ([]ui.Module, string, error) {
		g := host.Registration{Module: c.source.Module, Version: c.source.Version}
		if err := x.keep(ctx, g, artifact.Kernel(c.kernel), "", &b, c.lock); err != nil {
			return nil, "", hostError(x.root, err)
		}
		if got := x.cells[wishOf(c.unit, c.target)]; got != nil {
			got.image = b.Image
		}
		return nil, "", nil
	}
	for _, c := range x.builds(ctx, targets) {
		got := x.cells[wishOf(c.unit, c.target)]
		if c.had || got == nil {
			continue
		}
		got.status, got.report, got.err = c.report.Status, c.report, nil
		got.report.Kernel = c.kernel.String()
		if c.report.Status == ui.Failed {
			if got.err = errors.New(c.report.Reason); c.code == exitDepends {
				got.err = fmt.Errorf("%w; 'add' registers a module", got.err)
			}
			got.err = &exitError{code: c.code, err: got.err}
		}
	}
	if x.engine.err != nil { // the ways out are the same for all
		x.board.Warn(x.engine.err.Error())
	}
	return nil
}

func wishOf(u unit, t target) wish {
	return wish{u.source.Module, u.source.Version, artifact.Kernel(t.kernel)}
}

// openMissing opens the sources of modules that are missing for a kernel, and says which are. What has no source fails here.
func (x *obtaining) openMissing(ctx context.Context, modules []host.Module, ks []artifact.Kernel, from builder.SourceOptions) (map[wish]bool, error) {
	missing := map[wish]bool{}
	for _, m := range modules {
		var lacks []wish
		for _, k := range ks {
			if w := (wish{m.Module, m.Version, k}); x.found[w].Image == nil {
				lacks = append(lacks, w)
			}
		}
		if len(lacks) == 0 {
			continue
		}
		u, err := x.openUnit(ctx, m, from)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err == nil {
			x.units = append(x.units, u)
		}
		for _, w := range lacks {
			if c := x.cells[w]; err == nil {
				missing[w] = true
			} else if c.err == nil || m.Source != "" { // else the registry's reason is the better one
				c.err = err
			}
		}
	}
	return missing, nil
}

// openUnit opens the source of a registered module.
func (x *obtaining) openUnit(ctx context.Context, m host.Module, from builder.SourceOptions) (u unit, err error) {
	if m.Source == "" {
		return u, &exitError{code: exitAbsent, err: errors.New("there is no source to build it of")}
	}
	u.named = true
	if u.from, err = x.root.Path(m.Source); err == nil {
		u.source, err = builder.OpenSource(ctx, u.from, from)
	}
	if err == nil && (u.source.Module != m.Module || u.source.Version != m.Version) {
		u.source.Close()
		err = fmt.Errorf("%q is the source of %s/%s now", m.Source, u.source.Module, u.source.Version)
	}
	if err != nil {
		return u, &exitError{code: exitBroken, err: fmt.Errorf("%w; put the source back, or remove the module", err)}
	}
	u.may = x.options.input.mayDepend(u.source, true)
	return u, nil
}

// needed is what of the units has to be there for what is missing: itself, and what it depends on. What of that needn't be built, since
// it has a record, is found then.
func (x *obtaining) needed(ctx context.Context, targets []target, missing map[wish]bool) map[wish]bool {
	needed := map[wish]bool{}
	for _, t := range targets {
		for _, u := range x.units {
			if !missing[wishOf(u, t)] {
				continue
			}
			needed[wishOf(u, t)] = true
			for _, n := range u.needs {
				needed[wishOf(x.units[n], t)] = true
			}
		}
	}
	for w := range needed {
		if missing[w] || x.found[w].Image != nil {
			continue
		}
		if m, err := x.root.ModuleFor(w.module, w.version, w.kernel); err == nil {
			if b, _, ok := x.recorded(ctx, m, w.kernel); ok {
				x.found[w] = b
			}
		}
	}
	return needed
}

// offers are the sources of registered modules that aren't opened yet: those that were asked for, and of each other one the newest version.
func (x *obtaining) offers(asked []host.Module) ([]offer, error) {
	all, err := x.root.Modules()
	if err != nil && !errors.Is(err, host.ErrBroken) {
		return nil, err
	}
	var out []offer
	for _, m := range append(slices.Clone(asked), host.Newest(all)...) {
		if m.Source == "" || x.units.find(m.Module) >= 0 || slices.ContainsFunc(out, func(o offer) bool { return o.module == m.Module }) {
			continue
		}
		path, err := x.root.Path(m.Source)
		if err == nil {
			_, err = readHeader(filepath.Join(path, "dkms.conf"))
		}
		if err == nil { // else it is missing, and what depends on it says so
			out = append(out, offer{m.Module, path})
		}
	}
	return out, nil
}

// noteFailure keeps a record of what couldn't be had, unless there is a better one. Where that isn't known the error wraps host.ErrBroken.
func (x *obtaining) noteFailure(ctx context.Context, c *obtained) error {
	m, err := x.root.ModuleFor(c.module.Module, c.module.Version, c.kernel)
	if err != nil {
		return err
	}
	if rec, _ := m.Find(c.kernel.Release, c.kernel.Arch); isThere(rec) {
		return nil
	}
	return x.root.Note(ctx, host.Record{Module: c.module.Module, Version: c.module.Version, Kernel: c.kernel, State: host.Failed, Reason: c.report.Reason,
		Changed: time.Now().UTC().Truncate(time.Second)})
}
