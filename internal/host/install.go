package host

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/kmod"
)

// Install is what Root.Install is asked for.
type Install struct {
	Artifact v1.Image     // of a registered module; every byte is checked
	From     string       // Record.From
	Signer   *kmod.Signer // nil leaves modules as they are in the artifact
	Force    bool         // past the version gate, a failing PRE_INSTALL, and files of others in the way, which are moved aside like originals
	Adopt    bool         // files that dkms has installed for the same module and kernel are replaced, and its originals become ours
}

// Install puts the modules of an artifact in their places, as one change: when it returns an error, or the power fails, all is as it
// was, or will be after the next change. It signs, compresses as the kernel's own modules are, moves modules of the kernel's own
// with these names aside, takes off another version of the module, runs depmod, and keeps a record. Installing what is
// installed already changes nothing, without Force.
//
// Errors wrap ErrNotAdded, ErrNoKernel, ErrUnfit, ErrRefused, ErrPre, ErrSigning, ErrDepmod, ErrBroken, or artifact.ErrInvalid. What
// PRE_INSTALL and POST_INSTALL did is not undone.
func (r *Root) Install(ctx context.Context, in Install) (Record, error) {
	unlock, err := r.lock(ctx)
	if err != nil {
		return Record{}, err
	}
	defer unlock()
	rec, err := r.install(ctx, in)
	if err != nil {
		return Record{}, fmt.Errorf("install: %w", err)
	}
	return rec, nil
}

func (r *Root) install(ctx context.Context, in Install) (Record, error) {
	meta, _, err := artifact.ReadMeta(in.Artifact)
	if err != nil {
		return Record{}, err
	}
	digest, err := in.Artifact.Digest()
	if err != nil {
		return Record{}, err
	}
	m, err := r.ModuleFor(meta.Module, meta.Version, meta.Kernel)
	if err != nil {
		return Record{}, err
	}
	lib, err := r.kernel(meta.Kernel.Release)
	if err != nil {
		return Record{}, err
	}
	defer lib.Close()
	if rec, ok := m.Find(meta.Kernel.Release, meta.Kernel.Arch); ok && !in.Force && rec.State == Installed && rec.Artifact == digest && rec.SignedBy(in.Signer) {
		if there, err := rec.there(lib); err != nil || there {
			return rec, err
		}
	}
	if meta.Status == artifact.Skipped {
		return Record{}, fmt.Errorf("%w: %s/%s was skipped for %s: %s", ErrUnfit, meta.Module, meta.Version, meta.Kernel.Release, meta.Reason)
	}

	base, err := r.state("tmp")
	if err != nil {
		return Record{}, err
	}
	tmp, err := durable.NewTemp(base)
	if err != nil {
		return Record{}, err
	}
	defer tmp.Close()
	i := &installation{r: r, in: in, lib: lib, g: m.Registration, dir: tmp.Dir}
	if err := i.unpack(); err != nil {
		return Record{}, err
	}
	if err := i.check(ctx); err != nil {
		return Record{}, err
	}
	dkms, err := r.dkms()
	if err != nil {
		return Record{}, err
	}
	if dkms != nil {
		defer dkms.Close()
	}
	if err := i.plan(dkms); err != nil {
		return Record{}, err
	}
	c, err := i.change(digest)
	if err != nil {
		return Record{}, err
	}
	if err := r.carryOut(ctx, c, lib); err != nil {
		return Record{}, err
	}
	return c.Records[0], nil
}

// there tells whether all files of a record are as they were installed.
func (rec Record) there(lib *os.Root) (bool, error) {
	for _, f := range rec.Files {
		h, _, err := digestOf(lib, f.Path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && h != f.Digest {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}

// installation is an Install under way.
type installation struct {
	r   *Root
	in  Install
	lib *os.Root
	g   Registration
	dir string // for what is unpacked

	meta    artifact.Meta
	modules []*module
	scripts map[string]script
	tree    tree
	native  *kmod.Module // one of the kernel's own, or nil
	records []Record     // installed for this kernel, of all modules
	replace []Record     // of the module's, this version or another
	take    []take
	move    []keep     // originals that come into the state
	keep    []Original // that the new record has
	restore []Original // that are put back
	adopted []string   // of dkms's, that go
}

// module is one of an installation.
type module struct {
	artifact.File
	name   string // as the kernel has it
	path   string // on this machine, unpacked
	facts  *kmod.Module
	dest   string // below the kernel's folder
	ready  string // path on this machine of what is to be there
	size   int64
	digest v1.Hash // of that
}

// unpack reads the artifact, and checks every byte of it.
func (i *installation) unpack() error {
	meta, files, err := artifact.Unpack(i.in.Artifact, func(f artifact.File) (io.WriteCloser, error) {
		return os.OpenFile(filepath.Join(i.dir, f.Name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	})
	if err != nil {
		return err
	}
	for _, f := range files {
		name, _ := moduleName(f.Name)
		if slices.ContainsFunc(i.modules, func(m *module) bool { return m.name == name }) {
			return fmt.Errorf("%w: two of its modules are named %s to the kernel", artifact.ErrInvalid, name)
		}
		m := &module{File: f, name: name, path: filepath.Join(i.dir, f.Name)}
		file, err := os.Open(m.path)
		if err != nil {
			return err
		}
		m.facts, err = kmod.Read(file, f.Size)
		file.Close()
		if err != nil {
			return fmt.Errorf("%w: %s: %w", artifact.ErrInvalid, f.Name, err)
		}
		i.modules = append(i.modules, m)
	}
	i.meta = meta
	if !slices.ContainsFunc(meta.Extras, func(e artifact.Extra) bool { return e.Name != artifact.ModuleSymvers }) {
		return nil
	}
	if meta, _, err = artifact.Read(i.in.Artifact); err != nil {
		return err
	}
	i.scripts, err = readScripts(meta.Extras)
	return err
}

// check refuses what the kernel wouldn't load, and runs PRE_INSTALL.
func (i *installation) check(ctx context.Context) (err error) {
	var names []string
	for _, m := range i.modules {
		names = append(names, m.name)
	}
	if i.tree, err = readTree(i.lib, names...); err != nil {
		return err
	}
	i.native = i.tree.native(i.lib)
	for _, m := range i.modules {
		if err := fits(m.facts, i.native, m.Name, i.meta.Kernel); err != nil {
			return err
		}
	}
	if err := i.r.fitsSymvers(i.meta); err != nil {
		return err
	}
	if i.in.Signer == nil {
		if j := slices.IndexFunc(i.modules, func(m *module) bool { return !m.facts.Signed }); j >= 0 {
			why, err := i.r.Enforced(i.meta.Kernel.Release)
			if err != nil {
				return err
			}
			if why != "" {
				return fmt.Errorf("%w: %s has no signature, and the kernel would refuse it: %s; sign it with --sign-key and --sign-cert, "+
					"or make a key with 'godkms-hermetic keys generate'",
					ErrSigning, i.modules[j].Name, why)
			}
		}
	}
	ran, err := i.r.run(ctx, i.scripts["PRE_INSTALL"], i.g, i.meta.Kernel)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case !ran:
		return err
	case err != nil && !i.in.Force:
		return fmt.Errorf("%w, %w: %w; --force installs all the same", ErrPre, ErrRefused, err)
	case err != nil:
		i.r.warn(err)
	}
	i.tree, err = readTree(i.lib, names...) // it may have moved something
	return err
}

// plan finds out what is in the way of the modules, and what becomes of it.
func (i *installation) plan(dkms *os.Root) error {
	// A file whose record can't be read is nobody's, and in the way.
	all, err := i.r.modules(func(err error) { i.r.warn(err) })
	if err != nil {
		return err
	}
	for _, m := range all {
		if rec, ok := m.Find(i.meta.Kernel.Release, i.meta.Kernel.Arch); ok && rec.State == Installed {
			i.records = append(i.records, rec)
			if m.Module == i.g.Module {
				i.replace = append(i.replace, rec)
			}
		}
	}
	var other []*module
	var same []string
	for _, m := range i.modules {
		there, err := i.gate(m)
		if err != nil {
			return err
		}
		if there != "" {
			same = append(same, there)
		} else {
			other = append(other, m)
		}
	}
	i.modules = other
	for _, s := range same {
		if len(i.modules) == 0 {
			return fmt.Errorf("%w: %s; --force replaces it", ErrRefused, s)
		}
		i.r.warnf("%s: it is left out; --force replaces it", s)
	}
	for _, m := range i.modules {
		m.dest = path.Join(m.Dest, strings.TrimSuffix(m.Name, ".ko")+compressions[i.tree.compression].suffix)
		for _, there := range i.tree.named[m.name] {
			if err := i.clear(m, there); err != nil {
				return err
			}
		}
	}
	if err := i.takeOff(); err != nil {
		return err
	}
	if err := i.unclaimed(); err != nil {
		return err
	}
	if dkms != nil && i.in.Adopt {
		return i.adopt(dkms)
	}
	return nil
}

// adopt takes over what dkms moved aside for the module.
func (i *installation) adopt(dkms *os.Root) error {
	originals, err := i.r.dkmsOriginals(i.g.Module, i.meta.Kernel)
	if err != nil {
		return err
	}
	for _, o := range originals {
		i.adopted = append(i.adopted, o.files...)
		if slices.ContainsFunc(i.keep, func(k Original) bool { return k.Path == o.path }) { // a newer one is there
			continue
		}
		h, info, err := digestOf(dkms, o.files[0])
		if err != nil {
			return err
		}
		i.move = append(i.move, keep{o.path, h, dkms, o.files[0]})
		i.keep = append(i.keep, Original{o.path, info.Size(), h, info.Mode().Perm(), info.ModTime()})
	}
	return nil
}

// gate is dkms's version gate. It says what is there already where the very same module is.
func (i *installation) gate(m *module) (same string, err error) {
	paths := i.tree.named[m.name]
	if i.in.Force || len(paths) == 0 {
		return "", nil
	}
	if len(paths) > 1 {
		i.r.warnf("%s is there %d times below %s: versions are not compared", m.name, len(paths), i.r.shown(i.meta.Kernel.Release, ""))
		return "", nil
	}
	info, err := i.lib.Lstat(paths[0])
	if err != nil || !info.Mode().IsRegular() {
		return "", err
	}
	there, err := readModule(i.lib, paths[0])
	if err != nil {
		i.r.warnf("versions are not compared: %v", err)
		return "", nil
	}
	shown := i.r.shown(i.meta.Kernel.Release, paths[0])
	ours, theirs := firstWord(m.facts.Get("version")), firstWord(there.Get("version"))
	switch c := CompareVersions(theirs, ours); {
	case c > 0:
		return "", fmt.Errorf("%w: %s has version %q, and %s is there with %q, which is newer; --force installs all the same",
			ErrRefused, m.Name, ours, shown, theirs)
	case c < 0:
		return "", nil
	}
	if module, _ := i.owner(paths[0]); module == i.g.Module {
		return "", nil // it is replaced
	}
	if ours+m.facts.Get("srcversion") == "" {
		if h, _, err := digestOf(i.lib, paths[0]); err != nil || h != m.Digest {
			return "", err
		}
	}
	if m.facts.Get("srcversion") == there.Get("srcversion") {
		return fmt.Sprintf("%s is already there as %s, version %q", m.Name, shown, theirs), nil
	}
	return "", nil
}

func firstWord(s string) string {
	word, _, _ := strings.Cut(strings.TrimSpace(s), " ")
	return word
}

// owner tells which module a file is of: one of ours, or, where that is asked for, one to adopt from dkms.
func (i *installation) owner(there string) (module string, f File) {
	for _, rec := range i.records {
		for _, f := range rec.Files {
			if f.Path == there {
				return rec.Module, f
			}
		}
	}
	if i.in.Adopt {
		module, _ = i.r.dkmsOwner(i.meta.Kernel.Release, there)
	}
	return module, File{}
}

// clear decides what becomes of a file of the same module.
func (i *installation) clear(m *module, there string) error {
	release := i.meta.Kernel.Release
	shown := i.r.shown(release, there)
	h, info, err := digestOf(i.lib, there)
	if err != nil {
		return err
	}
	module, f := i.owner(there)
	inTheWay := func(whose string) error {
		return fmt.Errorf("%w: %s is in the way of %s: %s", ErrRefused, shown, m.Name, whose)
	}
	ours := f.Path != ""
	switch {
	case ours && module != i.g.Module:
		return inTheWay(fmt.Sprintf("it is %s's; uninstall that first", module))
	case ours && h == f.Digest, !ours && module == i.g.Module: // of another version, or dkms's
		i.take = append(i.take, take{Path: there, Digest: h})
		return nil
	case !info.Mode().IsRegular():
		return inTheWay("it is not a regular file; remove it")
	case inTree(there) || i.in.Force:
		i.take = append(i.take, take{there, h})
		i.move = append(i.move, keep{there, h, i.lib, there})
		i.keep = append(i.keep, Original{there, info.Size(), h, info.Mode().Perm(), info.ModTime()})
		return nil
	case ours:
		return inTheWay("it has been changed since it was installed; --force moves it aside")
	}
	switch dkms, version := i.r.dkmsOwner(release, there); {
	case dkms == i.g.Module:
		return inTheWay(fmt.Sprintf("dkms has installed it for %s/%s; 'adopt' takes it over", dkms, version))
	case dkms != "":
		return inTheWay(fmt.Sprintf("dkms has installed it for %s/%s; run 'dkms uninstall %s/%s -k %s', or use --force to move it aside",
			dkms, version, dkms, version, release))
	}
	return inTheWay(i.r.packageOwner(release, there) + "; remove it, or use --force to move it aside")
}

// takeOff takes off what there is of the module in this kernel that isn't replaced file by file. Originals pass over to the new
// record if they still are in the new one's way.
func (i *installation) takeOff() error {
	for _, rec := range i.replace {
		for _, f := range rec.Files {
			if slices.ContainsFunc(i.take, func(t take) bool { return t.Path == f.Path }) {
				continue
			}
			t, ok, err := i.r.takeOwn(i.lib, rec, f)
			if err != nil {
				return err
			}
			if ok {
				i.take = append(i.take, t)
			}
		}
		for _, o := range rec.Originals {
			name, _ := moduleName(path.Base(o.Path))
			switch {
			case slices.ContainsFunc(i.keep, func(k Original) bool { return k.Path == o.Path }): // a newer one is there
			case slices.ContainsFunc(i.modules, func(m *module) bool { return m.name == name }):
				i.keep = append(i.keep, o)
			default:
				i.restore = append(i.restore, o)
			}
		}
	}
	return nil
}

// unclaimed takes over originals of the modules that are in the state without a record, which was damaged and is gone.
func (i *installation) unclaimed() error {
	dir, err := i.r.state("originals", i.meta.Kernel.Release)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(file string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		has := func(o Original) bool { return o.Path == file }
		name, _ := moduleName(d.Name())
		if !slices.ContainsFunc(i.modules, func(m *module) bool { return m.name == name }) || slices.ContainsFunc(i.keep, has) ||
			slices.ContainsFunc(i.records, func(rec Record) bool { return slices.ContainsFunc(rec.Originals, has) }) {
			return nil
		}
		h, info, err := digestOf(root, file)
		if err != nil {
			return err
		}
		i.keep = append(i.keep, Original{file, info.Size(), h, info.Mode().Perm(), info.ModTime()})
		return nil
	})
}

// takeOwn takes a file that was installed, unless it isn't any more what was.
func (r *Root) takeOwn(lib *os.Root, rec Record, f File) (_ take, ok bool, err error) {
	h, _, err := digestOf(lib, f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		r.warnf("%s is gone", r.shown(rec.Kernel.Release, f.Path))
		return take{}, false, nil
	}
	if err != nil {
		return take{}, false, err
	}
	if h != f.Digest {
		r.warnf("%s is not what was installed: it stays", r.shown(rec.Kernel.Release, f.Path))
		return take{}, false, nil
	}
	return take{Path: f.Path, Digest: h}, true, nil
}

// change signs and compresses, and puts the change together.
func (i *installation) change(digest v1.Hash) (*change, error) {
	k, now := i.meta.Kernel, time.Now().UTC()
	rec := Record{
		Module: i.g.Module, Version: i.g.Version, Kernel: k, State: Installed, Key: i.meta.Key, Artifact: digest,
		From: i.in.From, Originals: i.keep, Changed: now,
	}
	if s := i.in.Signer; s != nil {
		rec.Signer, rec.Signature = s.Name(), s.Fingerprint()
	}
	c := &change{What: fmt.Sprintf("the install of %s/%s for %s", i.g.Module, i.g.Version, k.Release), Release: k.Release,
		Take: i.take, Keep: i.move, Adopted: i.adopted}
	for _, m := range i.modules {
		if err := i.ready(m); err != nil {
			return nil, err
		}
		rec.Files = append(rec.Files, File{m.dest, m.size, m.digest, m.Digest})
		c.Put = append(c.Put, put{Path: m.dest, Digest: m.digest, Mode: 0o644, open: func() (io.ReadCloser, error) { return os.Open(m.ready) }})
	}
	if err := i.r.putBack(c, i.lib, i.restore); err != nil {
		return nil, err
	}
	slices.SortFunc(rec.Files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	slices.SortFunc(rec.Originals, func(a, b Original) int { return cmp.Compare(a.Path, b.Path) })
	if s, ok := i.scripts["POST_REMOVE"]; ok && s.executable {
		rec.PostRemove, c.script = s.command, s.content
	}
	if s, ok := i.scripts["POST_INSTALL"]; ok {
		c.after = func(ctx context.Context) {
			if _, err := i.r.run(ctx, s, i.g, k); err != nil {
				i.r.warn(err)
			}
		}
	}
	c.Folders = missing(i.lib, c.Put)
	rec.Folders = i.folders(rec.Files, c.Folders)
	c.Records = []Record{rec}
	for _, old := range i.replace {
		if old.Version != rec.Version {
			c.Records = append(c.Records, old.taken(now))
		}
		for _, f := range old.Folders {
			if !slices.Contains(rec.Folders, f) {
				c.Prune = append(c.Prune, f)
			}
		}
	}
	slices.SortFunc(c.Prune, func(a, b string) int { return cmp.Compare(b, a) })
	return c, nil
}

// ready makes of a module what is to be installed.
func (i *installation) ready(m *module) (err error) {
	file, err := os.Open(m.path)
	if err != nil {
		return err
	}
	defer file.Close()
	var in io.Reader = file
	if i.in.Signer != nil {
		b, err := io.ReadAll(in)
		if err != nil {
			return err
		}
		hash, err := i.r.signatureHash(i.meta.Kernel.Release, func() *kmod.Module { return i.native })
		if err != nil {
			return err
		}
		if b, err = i.in.Signer.Sign(b, hash); err != nil {
			return fmt.Errorf("%w: %s: %w", ErrSigning, m.Name, err)
		}
		in = bytes.NewReader(b)
	}
	m.ready = m.path + ".ready"
	f, err := os.OpenFile(m.ready, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	w, err := kmod.Compress(f, compressions[i.tree.compression].name)
	if err != nil {
		return err
	}
	if _, err := io.Copy(w, in); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	m.digest, m.size, err = v1.SHA256(f)
	return err
}

// taken is a record when its module is no longer installed.
func (rec Record) taken(now time.Time) Record {
	rec.State, rec.Signer, rec.Signature, rec.PostRemove = Built, "", "", ""
	rec.Files, rec.Originals, rec.Folders, rec.Changed = nil, nil, nil, now
	return rec
}

// missing lists the folders that files need and that aren't there, outer ones first.
func missing(lib *os.Root, files []put) []string {
	var out []string
	for _, f := range files {
		for dir := path.Dir(f.Path); dir != "."; dir = path.Dir(dir) {
			if _, err := lib.Stat(dir); errors.Is(err, fs.ErrNotExist) {
				out = append(out, dir)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// folders are those of a record's files that this tool has made, now or for another module.
func (i *installation) folders(files []File, made []string) []string {
	for _, rec := range i.records {
		made = append(made[:len(made):len(made)], rec.Folders...)
	}
	var out []string
	for _, f := range files {
		for dir := path.Dir(f.Path); dir != "."; dir = path.Dir(dir) {
			if slices.Contains(made, dir) {
				out = append(out, dir)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// putBack adds originals to a change, which come back where their places are free.
func (r *Root) putBack(c *change, lib *os.Root, originals []Original) error {
	for _, o := range originals {
		c.Drop = append(c.Drop, o.Path)
		_, err := lib.Lstat(o.Path)
		if err == nil && !slices.ContainsFunc(c.Take, func(t take) bool { return t.Path == o.Path }) ||
			slices.ContainsFunc(c.Put, func(p put) bool { return p.Path == o.Path }) {
			r.warnf("%s is there again: the one that was moved aside is dropped", r.shown(c.Release, o.Path))
			continue
		}
		kept, err := r.state(originalPath(c.Release, o.Path))
		if err != nil {
			return err
		}
		if err := r.intact(kept, o); err != nil {
			return fmt.Errorf("%w: %s, the original of %s, can't be put back (%w): install the kernel's package again, which has it, and then try again",
				ErrBroken, kept, r.shown(c.Release, o.Path), err)
		}
		c.Put = append(c.Put, put{o.Path, o.Digest, o.Mode, o.ModTime, func() (io.ReadCloser, error) { return os.Open(kept) }})
	}
	return nil
}

func (r *Root) intact(kept string, o Original) error {
	f, _, err := openRegular(kept)
	if err != nil {
		return err
	}
	defer f.Close()
	h, _, err := v1.SHA256(f)
	if err == nil && h != o.Digest {
		err = fmt.Errorf("its digest is %s, not %s", h, o.Digest)
	}
	return err
}

// Uninstall takes an installed module off a kernel, puts what was moved aside for it back, runs depmod, and leaves the record
// as Built, as one change like Install. A file that isn't what was installed stays, with a warning. One that isn't installed wraps
// ErrNotAdded.
func (r *Root) Uninstall(ctx context.Context, module, version string, k artifact.Kernel) (Record, error) {
	unlock, err := r.lock(ctx)
	if err != nil {
		return Record{}, err
	}
	defer unlock()
	rec, err := r.uninstall(ctx, module, version, k)
	if err != nil {
		return Record{}, fmt.Errorf("uninstall: %w", err)
	}
	return rec, nil
}

func (r *Root) uninstall(ctx context.Context, module, version string, k artifact.Kernel) (Record, error) {
	m, err := r.Module(module, version)
	if err != nil && !errors.Is(err, ErrBroken) { // of what is broken, the record that counts may be whole
		return Record{}, err
	}
	rec, ok := m.Find(k.Release, k.Arch)
	if !ok || rec.State != Installed {
		if err == nil {
			err = fmt.Errorf("%s/%s for %s: %w", module, version, k.Release, ErrNotAdded)
		}
		return Record{}, err
	}
	c := &change{
		What:    fmt.Sprintf("the uninstall of %s/%s for %s", module, version, k.Release),
		Release: k.Release,
		Records: []Record{rec.taken(time.Now().UTC())},
		Prune:   slices.Sorted(slices.Values(rec.Folders)),
	}
	slices.Reverse(c.Prune)
	lib, err := r.kernel(k.Release)
	if errors.Is(err, ErrNoKernel) { // it went with its modules
		return c.Records[0], r.forgetInstalled(rec, c.Records[0])
	}
	if err != nil {
		return Record{}, err
	}
	defer lib.Close()
	if _, err := lib.Lstat("modules.dep"); errors.Is(err, fs.ErrNotExist) { // of a kernel that is gone but for what is ours: as dkms
		c.NoDepmod = true
	}
	for _, f := range rec.Files {
		t, ok, err := r.takeOwn(lib, rec, f)
		if err != nil {
			return Record{}, err
		}
		if ok {
			c.Take = append(c.Take, t)
		}
	}
	if err := r.putBack(c, lib, rec.Originals); err != nil {
		return Record{}, err
	}
	c.Folders = missing(lib, c.Put)
	if rec.PostRemove != "" {
		name, err := r.state(rec.scriptPath())
		if err != nil {
			return Record{}, err
		}
		content, err := readRegular(name, maxScript)
		if err != nil {
			r.warnf("POST_REMOVE of %s/%s is not run: %v", module, version, err)
		} else {
			s := script{"POST_REMOVE", rec.PostRemove, true, content}
			c.after = func(ctx context.Context) {
				if _, err := r.run(ctx, s, m.Registration, rec.Kernel); err != nil {
					r.warn(err)
				}
			}
		}
	}
	if err := r.carryOut(ctx, c, lib); err != nil {
		return Record{}, err
	}
	return c.Records[0], nil
}

// forgetInstalled is for a module whose kernel is gone. Where the folder of all kernels is, too, it may only not be mounted: what was
// moved aside stays then, for a later install.
func (r *Root) forgetInstalled(old, rec Record) error {
	all, err := r.Path("/lib/modules")
	if err != nil {
		return err
	}
	if _, err := os.Lstat(all); errors.Is(err, fs.ErrNotExist) {
		r.warnf("there is no %s: is it mounted? What was moved aside for %s/%s stays in %s", filepath.Join(r.dir, "lib/modules"), old.Module, old.Version,
			filepath.Join(r.dir, StateDir, "originals", old.Kernel.Release))
		old.Originals = nil
	}
	for _, o := range old.Originals {
		name, err := r.state(originalPath(rec.Kernel.Release, o.Path))
		if err != nil {
			return err
		}
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if name, err := r.state(old.scriptPath()); err == nil {
		os.Remove(name)
	}
	return r.writeRecord(rec)
}
