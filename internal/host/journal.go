package host

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// A change moves one kernel's modules from one state to another. Its exported fields are the journal, which is there before anything
// else is written:
//
//	the files to come, and copies of what is kept, are written aside; what goes is moved aside; what comes is moved in; depmod
//	the journal is replaced by one that says Committed, which is one rename
//	what was moved aside goes, the state's files are moved in, the journal goes
//
// Until the rename every step can be undone from what is aside; after it there are only renames and removals left, which need no
// space on the disk and can be done again.
type change struct {
	Format    int      `json:"format"`
	What      string   `json:"what"` // "install of hello/1.0", for messages
	Release   string   `json:"release"`
	Committed bool     `json:"committed,omitempty"`
	NoDepmod  bool     `json:"no_depmod,omitempty"`
	Take      []take   `json:"take,omitempty"`
	Put       []put    `json:"put,omitempty"`
	Folders   []string `json:"folders,omitempty"` // to be made below the kernel's, outer ones first
	Prune     []string `json:"prune,omitempty"`   // of the kernel's, that go if they are empty, inner ones first
	Saved     []string `json:"saved,omitempty"`   // depmod's files that were there
	Keep      []keep   `json:"keep,omitempty"`    // originals that come into the state
	Drop      []string `json:"drop,omitempty"`    // and those that go
	Adopted   []string `json:"adopted,omitempty"` // below dkmsDir: files of dkms's that go, for the state has them now
	Records   []Record `json:"records"`           // as they will be

	script []byte                // POST_REMOVE of the first record
	after  func(context.Context) // runs the scripts that come before depmod
}

// take is a file that goes.
type take struct {
	Path   string  `json:"path"`            // below /lib/modules/<release>
	Digest v1.Hash `json:"digest,omitzero"` // of a regular file
}

// keep is an original to come.
type keep struct {
	Path   string  `json:"path"`
	Digest v1.Hash `json:"digest"`

	root *os.Root // where it is now
	name string
}

// put is a file that comes.
type put struct {
	Path    string      `json:"path"`
	Digest  v1.Hash     `json:"digest"`
	Mode    fs.FileMode `json:"mode"`
	ModTime time.Time   `json:"modtime,omitzero"` // now, if it is zero

	open func() (io.ReadCloser, error)
}

const (
	journalFormat = 1
	journalFile   = "journal.json"
	journalDir    = "journal"          // of the state: what is to become part of it
	aside         = ".godkms-hermetic" // of the kernel's folder: depmod takes no file in it for a module
	maxJournal    = 64 << 20           // bytes
)

// Where things are while a change is under way.
func putAside(i int) string         { return fmt.Sprintf("%s/put-%d", aside, i) }
func takenAside(i int) string       { return fmt.Sprintf("%s/taken-%d", aside, i) }
func savedAside(name string) string { return aside + "/saved-" + name }
func keptAside(i int) string        { return fmt.Sprintf("%s/original-%d", journalDir, i) }
func recordAside(i int) string      { return fmt.Sprintf("%s/record-%d", journalDir, i) }

const scriptAside = journalDir + "/script"

// originalPath is where an original is kept in the state.
func originalPath(release, name string) string { return path.Join("originals", release, name) }

// statePath is where a record is in the state.
func (rec Record) statePath() string {
	return path.Join("modules", rec.Module, rec.Version, recordName(rec.Kernel))
}

// scriptPath is where the script of an installed record is in the state.
func (rec Record) scriptPath() string {
	return path.Join("modules", rec.Module, rec.Version, rec.Kernel.Release+"."+rec.Kernel.Arch+".POST_REMOVE")
}

// depmodFiles are what depmod writes: kmod's tools/depmod.c.
var depmodFiles = regexp.MustCompile(`^modules\.(dep|alias|symbols|softdep|weakdep|devname|(dep|alias|symbols|builtin|builtin\.alias)\.bin)$`)

// depmodTemps are what depmod leaves when it's killed: kmod's tools/depmod.c.
var depmodTemps = regexp.MustCompile(`^modules\.[a-z.]+(\.[0-9]+){3}$`)

// died is the end of a change that is to look as if the process had died.
type died struct{ error }

func (d died) Unwrap() error { return d.error }

func (r *Root) step(format string, a ...any) error {
	if r.o.Step == nil {
		return nil
	}
	if err := r.o.Step(fmt.Sprintf(format, a...)); err != nil {
		return died{err}
	}
	return nil
}

// carryOut makes a change, or leaves all as it was.
func (r *Root) carryOut(ctx context.Context, c *change, lib *os.Root) error {
	t, err := r.open(c, lib)
	if err != nil {
		return err
	}
	defer t.state.Close()
	c.Format, c.NoDepmod = journalFormat, c.NoDepmod || r.o.NoDepmod
	if !c.NoDepmod {
		if c.Saved, err = depmodOutput(t.lib); err != nil {
			return err
		}
	}
	err = t.apply(ctx)
	if d := (died{}); errors.As(err, &d) {
		return err
	}
	if err != nil {
		undone := t.undo(context.WithoutCancel(ctx), false)
		if d := (died{}); undone != nil && !errors.As(undone, &d) {
			undone = fmt.Errorf("%s could not be undone, which the next command will try again: %w", c.What, undone)
		}
		return errors.Join(err, undone)
	}
	if err := t.finish(); err != nil {
		return fmt.Errorf("%s is done, but what it leaves couldn't be cleared up, which the next command will try again: %w", c.What, err)
	}
	return nil
}

// recover finishes or undoes the change that the journal tells of; the root is locked.
func (r *Root) recover(ctx context.Context) error {
	c, err := r.readJournal()
	if c == nil || err != nil {
		return err
	}
	lib, err := r.kernel(c.Release)
	if errors.Is(err, ErrNoKernel) { // it went with its modules: what is left of the change is in the state
		var empty string
		if empty, err = os.MkdirTemp("", "godkms-hermetic-"); err != nil {
			return err
		}
		defer os.RemoveAll(empty)
		lib, err = os.OpenRoot(empty)
	}
	if err != nil {
		return err
	}
	defer lib.Close()
	t, err := r.open(c, lib)
	if err != nil {
		return err
	}
	defer t.state.Close()
	if c.Committed {
		err = t.finish()
	} else {
		r.warnf("%s was cut off: it is undone", c.What)
		err = t.undo(ctx, true)
	}
	if err != nil {
		return fmt.Errorf("%s was cut off, and what is left of it can't be cleared up: %w", c.What, err)
	}
	return nil
}

// readJournal gives none where no change is under way.
func (r *Root) readJournal() (*change, error) {
	name, err := r.state(journalFile)
	if err != nil {
		return nil, err
	}
	f, _, err := openRegular(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxJournal))
	if err != nil {
		return nil, err
	}
	c := &change{}
	if err = json.Unmarshal(b, c); err == nil {
		err = c.check()
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %s, the journal of a change that was cut off, can't be read (%v): nothing is changed before it is away; "+
			"install the kernel's package again, which puts its modules and modules.dep right, and then remove the file", ErrBroken, name, err)
	}
	return c, nil
}

// check is for journals of a root that isn't trusted.
func (c *change) check() error {
	if c.Format != journalFormat {
		return fmt.Errorf("format %d, not %d", c.Format, journalFormat)
	}
	if err := CheckName("kernel", c.Release); err != nil {
		return err
	}
	paths := slices.Concat(c.Folders, c.Prune, c.Drop, c.Adopted)
	for _, p := range c.Put {
		paths = append(paths, p.Path)
	}
	for _, t := range c.Take {
		paths = append(paths, t.Path)
	}
	for _, k := range c.Keep {
		paths = append(paths, k.Path)
	}
	for _, p := range paths {
		if !filepath.IsLocal(p) || p == "." {
			return fmt.Errorf("path %q", p)
		}
	}
	for _, s := range c.Saved {
		if !depmodFiles.MatchString(s) {
			return fmt.Errorf("file %q of depmod", s)
		}
	}
	for _, rec := range c.Records {
		if err := rec.check(); err != nil {
			return err
		}
	}
	return nil
}

// transaction is a change with the folders that it is made in. No link leads out of them.
type transaction struct {
	*change
	r          *Root
	lib, state *os.Root
}

// open makes a transaction in the folder of a kernel. Its state is to be closed.
func (r *Root) open(c *change, lib *os.Root) (*transaction, error) {
	dir, err := r.state()
	if err != nil {
		return nil, err
	}
	state, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	return &transaction{c, r, lib, state}, nil
}

// kernel opens the folder of a kernel's modules, or wraps ErrNoKernel.
func (r *Root) kernel(release string) (*os.Root, error) {
	if err := CheckName("kernel", release); err != nil {
		return nil, err
	}
	dir, err := r.Path("/lib/modules/" + release)
	if err != nil {
		return nil, err
	}
	lib, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: there is no %s", ErrNoKernel, filepath.Join(r.dir, "lib/modules", release))
	}
	return lib, err
}

// apply does all that can be undone, and commits.
func (t *transaction) apply(ctx context.Context) error {
	if err := t.journal(); err != nil {
		return err
	}
	if err := t.prepare(ctx); err != nil {
		return err
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	if err := t.swap(); err != nil {
		return err
	}
	if t.after != nil {
		if err := t.r.step("scripts"); err != nil {
			return err
		}
		t.after(ctx)
	}
	if !t.NoDepmod {
		if err := t.r.step("depmod"); err != nil {
			return err
		}
		if err := t.r.depmod(ctx, t.lib, t.Release); err != nil {
			return err
		}
		if err := t.syncDepmod(); err != nil {
			return err
		}
	}
	if err := context.Cause(ctx); err != nil {
		return err
	}
	t.Committed = true
	err := t.journal()
	if err != nil {
		t.Committed = false
		if c, _ := t.r.readJournal(); c != nil && c.Committed { // it is in place, and only not known to be durable
			err = errors.Join(err, t.journal())
		}
	}
	return err
}

// journal writes the journal.
func (t *transaction) journal() error {
	name := "journal"
	if t.Committed {
		name = "commit"
	}
	if err := t.r.step("%s", name); err != nil {
		return err
	}
	path, err := t.r.state(journalFile)
	if err != nil {
		return err
	}
	return t.r.write(path, t.change)
}

// prepare writes aside what is to come.
func (t *transaction) prepare(ctx context.Context) error {
	if err := t.r.step("aside"); err != nil {
		return err
	}
	if err := t.clear(); err != nil { // of a journal that somebody has removed
		return err
	}
	if err := t.lib.Mkdir(aside, 0o755); err != nil {
		return err
	}
	if err := t.state.Mkdir(journalDir, 0o755); err != nil {
		return err
	}
	for i, p := range t.Put {
		if err := t.r.step("write %s", p.Path); err != nil {
			return err
		}
		in, err := p.open()
		if err != nil {
			return err
		}
		err = writeAside(ctx, t.lib, putAside(i), in, p)
		in.Close()
		if err != nil {
			return fmt.Errorf("write %s: %w", p.Path, err)
		}
	}
	for i, k := range t.Keep {
		if err := t.r.step("keep %s", k.Path); err != nil {
			return err
		}
		if err := t.keep(ctx, i, k); err != nil {
			return fmt.Errorf("keep %s: %w", k.Path, err)
		}
	}
	for i, rec := range t.Records {
		if err := t.r.step("record %d", i); err != nil {
			return err
		}
		if err := t.state.MkdirAll(path.Dir(rec.statePath()), 0o755); err != nil {
			return err
		}
		b, err := json.MarshalIndent(rec, "", "  ")
		if err != nil {
			return err
		}
		if err := writeState(t.state, recordAside(i), append(b, '\n')); err != nil {
			return err
		}
	}
	if t.script != nil {
		if err := t.r.step("script"); err != nil {
			return err
		}
		if err := writeState(t.state, scriptAside, t.script); err != nil {
			return err
		}
	}
	for _, name := range t.Saved {
		if err := t.r.step("save %s", name); err != nil {
			return err
		}
		if err := t.save(ctx, name); err != nil {
			return fmt.Errorf("save %s: %w", name, err)
		}
	}
	return errors.Join(syncFile(t.state, journalDir), syncFile(t.lib, aside))
}

// writeAside writes a file and verifies it.
func writeAside(ctx context.Context, root *os.Root, name string, in io.Reader, p put) error {
	out, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	sum := sha256.New()
	if _, err := io.Copy(io.MultiWriter(out, sum), &reader{ctx, in}); err != nil {
		return err
	}
	if h := hex.EncodeToString(sum.Sum(nil)); p.Digest.Hex != h {
		return fmt.Errorf("%w: its SHA-256 is %s, want %s", ErrBroken, h, p.Digest.Hex)
	}
	if err := out.Chmod(p.Mode); err != nil {
		return err
	}
	if !p.ModTime.IsZero() {
		if err := root.Chtimes(name, p.ModTime, p.ModTime); err != nil {
			return err
		}
	}
	return out.Sync()
}

// reader ends with its context.
type reader struct {
	ctx context.Context
	io.Reader
}

func (r *reader) Read(b []byte) (int, error) {
	if err := context.Cause(r.ctx); err != nil {
		return 0, err
	}
	return r.Reader.Read(b)
}

func writeState(root *os.Root, name string, b []byte) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	return errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()) // whatever the umask
}

// keep makes a copy in the state, or a link where both are on one file system.
func (t *transaction) keep(ctx context.Context, i int, k keep) error {
	if err := t.state.MkdirAll(path.Dir(originalPath(t.Release, k.Path)), 0o755); err != nil {
		return err
	}
	if unix.Linkat(unix.AT_FDCWD, filepath.Join(k.root.Name(), k.name), unix.AT_FDCWD, filepath.Join(t.state.Name(), keptAside(i)), 0) == nil {
		return nil
	}
	return copyAside(ctx, k.root, k.name, t.state, keptAside(i), k.Digest)
}

// copyAside copies a file with its mode and time.
func copyAside(ctx context.Context, from *os.Root, name string, to *os.Root, as string, want v1.Hash) error {
	in, err := from.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	return writeAside(ctx, to, as, in, put{Digest: want, Mode: info.Mode().Perm(), ModTime: info.ModTime()})
}

// save keeps one of depmod's files, which writes new ones and moves them in.
func (t *transaction) save(ctx context.Context, name string) error {
	if t.lib.Link(name, savedAside(name)) == nil {
		return nil
	}
	h, _, err := digestOf(t.lib, name)
	if err != nil {
		return err
	}
	return copyAside(ctx, t.lib, name, t.lib, savedAside(name), h)
}

// swap moves out what goes, and moves in what comes.
func (t *transaction) swap() error {
	for i, g := range t.Take {
		if err := t.r.step("take %s", g.Path); err != nil {
			return err
		}
		if err := t.lib.Rename(g.Path, takenAside(i)); err != nil {
			return err
		}
		if h, _, err := digestOf(t.lib, takenAside(i)); err != nil {
			return err
		} else if h != g.Digest {
			return fmt.Errorf("%w: %s is changing; try again", ErrRefused, t.shown(g.Path))
		}
	}
	for _, dir := range t.Folders {
		if err := t.r.step("folder %s", dir); err != nil {
			return err
		}
		err := t.lib.Mkdir(dir, 0o755)
		if err == nil {
			err = t.lib.Chmod(dir, 0o755) // whatever the umask
		}
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	for i, p := range t.Put {
		if err := t.r.step("put %s", p.Path); err != nil {
			return err
		}
		// Not even a file that came while this was prepared is written over.
		if err := t.lib.Link(putAside(i), p.Path); errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%s: %w", p.Path, err)
		} else if err == nil {
			continue
		}
		if err := t.lib.Rename(putAside(i), p.Path); err != nil {
			return err
		}
	}
	return t.syncLib()
}

// syncLib makes durable what was moved in the kernel's folder.
func (t *transaction) syncLib() error {
	dirs := []string{".", aside}
	for _, p := range t.Put {
		dirs = append(dirs, path.Dir(p.Path))
	}
	for _, g := range t.Take {
		dirs = append(dirs, path.Dir(g.Path))
	}
	for _, f := range t.Folders {
		dirs = append(dirs, path.Dir(f))
	}
	slices.Sort(dirs)
	for _, dir := range slices.Compact(dirs) {
		if err := syncFile(t.lib, dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// undo puts all back as it was, as far as apply has come. What is done already, it does not do again.
func (t *transaction) undo(ctx context.Context, recovering bool) error {
	taken := map[string]bool{}
	for _, g := range t.Take {
		taken[g.Path] = true
	}
	for _, p := range t.Put {
		if taken[p.Path] {
			continue
		}
		if err := t.r.step("undo put %s", p.Path); err != nil {
			return err
		}
		if err := removeIf(t.lib, p.Path, p.Digest); err != nil {
			return err
		}
	}
	for i, g := range t.Take {
		if err := t.r.step("undo take %s", g.Path); err != nil {
			return err
		}
		if err := t.untake(i, g); err != nil {
			return err
		}
	}
	for _, dir := range slices.Backward(t.Folders) {
		rmdir(t.lib, dir)
	}
	if err := t.r.step("undo depmod"); err != nil {
		return err
	}
	if err := t.unsave(ctx, recovering); err != nil {
		return err
	}
	if err := t.syncLib(); err != nil {
		return err
	}
	return t.close()
}

// untake puts a file back that was moved aside, if nobody but this change has put another there.
func (t *transaction) untake(i int, g take) error {
	if _, err := t.lib.Lstat(takenAside(i)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	have, _, err := digestOf(t.lib, g.Path)
	ours := slices.ContainsFunc(t.Put, func(p put) bool { return p.Path == g.Path && p.Digest == have })
	if err == nil && !ours {
		t.r.warnf("%s was put there meanwhile: it stays, and the one that was there before is dropped", t.shown(g.Path))
		return t.lib.Remove(takenAside(i))
	}
	if err := t.lib.MkdirAll(path.Dir(g.Path), 0o755); err != nil {
		return err
	}
	return t.lib.Rename(takenAside(i), g.Path)
}

// unsave puts depmod's files back. After a crash others may have changed the modules since, so depmod runs again then.
func (t *transaction) unsave(ctx context.Context, recovering bool) error {
	if t.NoDepmod {
		return nil
	}
	temps, err := regularFiles(t.lib, depmodTemps)
	if err != nil {
		return err
	}
	for _, name := range temps {
		if err := t.lib.Remove(name); err != nil {
			return err
		}
	}
	now, err := depmodOutput(t.lib)
	if err != nil {
		return err
	}
	for _, name := range now {
		if !recovering && !slices.Contains(t.Saved, name) {
			if err := t.lib.Remove(name); err != nil {
				return err
			}
		}
	}
	for _, name := range t.Saved {
		if err := moveIf(t.lib, savedAside(name), name); err != nil {
			return err
		}
	}
	if recovering && len(now) > 0 && !t.r.o.NoDepmod {
		if err := t.r.depmod(ctx, t.lib, t.Release); err != nil {
			if cause := context.Cause(ctx); cause != nil {
				return cause
			}
			t.r.warn(err)
		}
	}
	return nil
}

// finish does what is left after the commit. What is done already, it does not do again.
func (t *transaction) finish() error {
	dirs := []string{}
	move := func(from, to string) error {
		if err := t.r.step("move %s", to); err != nil {
			return err
		}
		dirs = append(dirs, path.Dir(to))
		return moveIf(t.state, from, to)
	}
	kept := map[string]bool{}
	for i, k := range t.Keep {
		kept[k.Path] = true
		if err := move(keptAside(i), originalPath(t.Release, k.Path)); err != nil {
			return err
		}
	}
	for i, rec := range t.Records {
		if err := move(recordAside(i), rec.statePath()); err != nil {
			return err
		}
		if i == 0 && rec.PostRemove != "" {
			if err := move(scriptAside, rec.scriptPath()); err != nil {
				return err
			}
		} else if err := remove(t.state, rec.scriptPath()); err != nil {
			return err
		}
	}
	if err := t.r.step("drop"); err != nil {
		return err
	}
	for _, name := range t.Drop {
		if kept[name] {
			continue
		}
		if err := remove(t.state, originalPath(t.Release, name)); err != nil {
			return err
		}
		prune(t.state, path.Dir(originalPath(t.Release, name)))
	}
	for _, dir := range t.Prune {
		rmdir(t.lib, dir)
	}
	slices.Sort(dirs)
	for _, dir := range slices.Compact(dirs) {
		if err := syncFile(t.state, dir); err != nil {
			return err
		}
	}
	if err := t.r.step("adopted"); err != nil {
		return err
	}
	for _, name := range t.Adopted {
		if err := t.r.removeFromDKMS(name); err != nil {
			return err
		}
	}
	return t.close()
}

// close ends a change, whichever way it went.
func (t *transaction) close() error {
	if err := t.r.step("clear"); err != nil {
		return err
	}
	if err := t.clear(); err != nil {
		return err
	}
	if err := syncFile(t.lib, "."); err != nil {
		return err
	}
	if err := t.r.step("close"); err != nil {
		return err
	}
	if err := remove(t.state, journalFile); err != nil {
		return err
	}
	return syncFile(t.state, ".")
}

// clear removes what is aside.
func (t *transaction) clear() error {
	for _, at := range []struct {
		root *os.Root
		name string
	}{{t.lib, aside}, {t.state, journalDir}} {
		if _, err := at.root.Lstat(at.name); errors.Is(err, fs.ErrNotExist) { // on a read-only file system it couldn't even be tried
			continue
		}
		if err := at.root.RemoveAll(at.name); err != nil {
			return err
		}
	}
	return nil
}

// moveIf moves a file that may have been moved before.
func moveIf(root *os.Root, from, to string) error {
	if _, err := root.Lstat(from); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return root.Rename(from, to)
}

// shown is how a file of the kernel's folder is called in messages.
func (t *transaction) shown(name string) string { return t.r.shown(t.Release, name) }

func (r *Root) shown(release, name string) string {
	return filepath.Join(r.dir, "lib/modules", release, name)
}

// depmodOutput lists what depmod has written.
func depmodOutput(lib *os.Root) ([]string, error) { return regularFiles(lib, depmodFiles) }

func regularFiles(lib *os.Root, pattern *regexp.Regexp) ([]string, error) {
	entries, err := fs.ReadDir(lib.FS(), ".")
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.Type().IsRegular() && pattern.MatchString(e.Name()) {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// syncDepmod makes durable what depmod has written, which it leaves to chance.
func (t *transaction) syncDepmod() error {
	names, err := depmodOutput(t.lib)
	if err != nil {
		return err
	}
	for _, name := range append(names, ".") {
		if err := syncFile(t.lib, name); err != nil {
			return err
		}
	}
	return nil
}

// digestOf reads a regular file.
func digestOf(root *os.Root, name string) (v1.Hash, fs.FileInfo, error) {
	info, err := root.Lstat(name)
	if err != nil {
		return v1.Hash{}, nil, err
	}
	if !info.Mode().IsRegular() {
		return v1.Hash{}, info, nil
	}
	f, err := root.Open(name)
	if err != nil {
		return v1.Hash{}, nil, err
	}
	defer f.Close()
	h, _, err := v1.SHA256(f)
	return h, info, err
}

// removeIf removes a file that has the digest.
func removeIf(root *os.Root, name string, want v1.Hash) error {
	have, _, err := digestOf(root, name)
	if errors.Is(err, fs.ErrNotExist) || err == nil && have != want {
		return nil
	}
	if err != nil {
		return err
	}
	return remove(root, name)
}

// remove removes a file that may be gone.
func remove(root *os.Root, name string) error {
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// prune removes a folder, and those above it, as far as they are empty.
func prune(root *os.Root, dir string) {
	for ; strings.Contains(dir, "/"); dir = path.Dir(dir) {
		if !rmdir(root, dir) {
			return
		}
	}
}

// rmdir removes a folder if it is empty.
func rmdir(root *os.Root, dir string) bool {
	info, err := root.Lstat(dir)
	return err == nil && info.IsDir() && root.Remove(dir) == nil
}

func syncFile(root *os.Root, name string) error {
	d, err := root.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) {
		return err
	}
	return nil
}
