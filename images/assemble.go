package images

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// task is one package of one layer.
type task struct {
	tree  *tree
	owner int
	pkg   kernels.Package
}

// errDamaged says that a cached package file was not what its name says. It has been removed.
var errDamaged = errors.New("the cached file is damaged")

// assemble makes layers and puts them in their places. The caller holds their locks.
func (s *Store) assemble(ctx context.Context, lock kernels.Lock, specs []layerSpec, m *meter) error {
	for try := 1; ; try++ {
		err := s.assembleOnce(ctx, lock, specs, m)
		// A damaged file shows when it has been unpacked. Then everything is made again, rather than guessing what it left.
		if errors.Is(err, errDamaged) && try < 3 {
			continue
		}
		return err
	}
}

func (s *Store) assembleOnce(ctx context.Context, lock kernels.Lock, specs []layerSpec, m *meter) (err error) {
	temp, err := durable.NewTemp(s.path("tmp"))
	if err != nil {
		return err
	}
	defer temp.Close()
	var trees []*tree
	var tasks []task
	defer func() {
		for _, t := range trees {
			t.close()
		}
	}()
	for _, l := range specs {
		var owners []string
		for _, p := range l.pkgs {
			owners = append(owners, p.Name)
		}
		t, err := newTree(filepath.Join(temp.Dir, l.kind), owners, s.limits)
		if err != nil {
			return err
		}
		trees = append(trees, t)
		for i, p := range l.pkgs {
			tasks = append(tasks, task{t, i, p})
		}
		if l.tar != nil {
			if err := t.glue(ctx, l); err != nil {
				return err
			}
		}
	}
	if err := s.unpackAll(ctx, lock.Kernel.Distro, tasks, m); err != nil {
		return err
	}
	for i, t := range trees {
		if _, err := s.finish(t, specs[i], ""); err != nil {
			return fmt.Errorf("make layer %s: %w", specs[i].kind, err)
		}
	}
	for i, t := range trees {
		if err := placeFolder(t.dir, s.layerDir(specs[i].key)); err != nil {
			return fmt.Errorf("make layer %s: %w", specs[i].kind, err)
		}
	}
	return nil
}

func (t *tree) glue(ctx context.Context, l layerSpec) error {
	if err := t.extract(ctx, 0, bytes.NewReader(l.tar), policy{place: asNamed, sticky: true}); err != nil {
		return fmt.Errorf("make glue: %w", err)
	}
	return nil
}

func asNamed(name string) (string, bool) { return name, true }

// finish makes a tree a layer's folder that only needs its final name.
func (s *Store) finish(t *tree, l layerSpec, from string) (record, error) {
	rec, err := t.finish()
	if err != nil {
		return rec, err
	}
	rec.Kind, rec.Boot, rec.Created, rec.From = l.kind, s.boot, time.Now().UTC(), from
	return rec, durable.WriteFile(t.dir, filepath.Join(t.dir, "record.json"), 0o644, func(w io.Writer) error {
		return json.NewEncoder(w).Encode(rec)
	})
}

// placeFolder gives a finished folder its final name, unless it is there: then it is the same.
func placeFolder(from, to string) error {
	err := durable.Rename(from, to)
	if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTEMPTY) {
		return nil
	}
	return err
}

// unpackAll downloads what is missing and unpacks everything, the largest of what is there first: they are what the whole
// waits for.
func (s *Store) unpackAll(ctx context.Context, distro string, tasks []task, m *meter) error {
	slices.SortStableFunc(tasks, func(a, b task) int { return int(min(max(b.pkg.Size-a.pkg.Size, -1), 1)) })
	var missing []task
	ready := &queue{tokens: make(chan struct{}, len(tasks))}
	for _, t := range tasks {
		m.expect("unpack", t.pkg.Size)
		if s.have(t.pkg) {
			ready.push(t)
		} else {
			m.expect("download", t.pkg.Size)
			missing = append(missing, t)
		}
	}
	g, ctx := errgroup.WithContext(ctx)
	wanted := make(chan task, len(missing))
	for _, t := range missing {
		wanted <- t
	}
	close(wanted)
	for range min(len(missing), cap(s.downloads)) {
		g.Go(func() error {
			for t := range wanted {
				if err := acquire(ctx, s.downloads); err != nil {
					return err
				}
				err := s.fetch(ctx, t.pkg, func(n int64) { m.add("download", n) })
				<-s.downloads
				if err != nil {
					return packageErr(t.pkg, err)
				}
				ready.push(t)
			}
			return nil
		})
	}
	left := make(chan struct{}, len(tasks)) // one for each that no decoder has taken on
	for range tasks {
		left <- struct{}{}
	}
	close(left)
	for range min(len(tasks), cap(s.decoders)) {
		g.Go(func() error {
			for range left {
				t, err := ready.pop(ctx)
				if err != nil {
					return err
				}
				if err := acquire(ctx, s.decoders); err != nil {
					return err
				}
				err = s.unpack(ctx, distro, t, func(n int64) { m.add("unpack", n) })
				<-s.decoders
				if err != nil {
					return packageErr(t.pkg, err)
				}
			}
			return nil
		})
	}
	return g.Wait()
}

func packageErr(p kernels.Package, err error) error {
	var pe *PackageError
	if errors.As(err, &pe) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return &PackageError{Package: p, Err: err}
}

func acquire(ctx context.Context, slots chan struct{}) error {
	select {
	case slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// A queue hands out the largest task first.
type queue struct {
	mu     sync.Mutex
	tasks  []task
	tokens chan struct{} // one for each task; never full
}

func (q *queue) push(t task) {
	q.mu.Lock()
	q.tasks = append(q.tasks, t)
	q.mu.Unlock()
	q.tokens <- struct{}{}
}

func (q *queue) pop(ctx context.Context) (task, error) {
	select {
	case <-q.tokens:
	case <-ctx.Done():
		return task{}, context.Cause(ctx)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	best := 0
	for i, t := range q.tasks {
		if t.pkg.Size > q.tasks[best].pkg.Size {
			best = i
		}
	}
	t := q.tasks[best]
	q.tasks = slices.Delete(q.tasks, best, best+1)
	return t, nil
}

// unpack unpacks one package, checking its hash on the way. A file that turns out to be damaged is removed.
func (s *Store) unpack(ctx context.Context, distro string, t task, progress func(int64)) error {
	f, err := s.openPackage(t.pkg, progress)
	if errors.Is(err, fs.ErrNotExist) { // another process found it damaged since
		return &PackageError{t.pkg, errDamaged, "run again to download it anew"}
	}
	if err != nil {
		return err
	}
	defer f.Close()
	err = func() error {
		payload, err := s.payload(distro, f)
		if err != nil {
			return err
		}
		p := policy{place: placePackage}
		switch distro {
		case "debian", "ubuntu":
		default:
			p.drop = isMerged
		}
		err = t.tree.extract(ctx, t.owner, payload, p)
		if cerr := payload.Close(); err == nil {
			err = cerr
		}
		return err
	}()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if good, verr := f.verify(); verr != nil {
		return verr
	} else if !good {
		s.dropPackage(f)
		return &PackageError{t.pkg, errDamaged, "run again to download it anew"}
	}
	if err != nil {
		return fmt.Errorf("unpack: %w", err)
	}
	return nil
}

// merged are the folders that a Linux root with merged /usr has as links into /usr. Packages up to Debian 12 name their files
// by them.
var merged = []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32"}

// diverted are programs that the glue replaces; the package's own go where the glue finds them.
var diverted = map[string]string{
	"usr/bin/date":  privateDir + "/date",
	"usr/bin/uname": privateDir + "/uname",
}

const privateDir = "usr/lib/godkms-hermetic"

// dropped, with all that is below and most of /usr/share/doc: measured on Debian 12's toolchain, a fifth of the bytes and almost
// half of the files, of no use to a compiler.
var dropped = []string{
	"usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian", "usr/share/bug", "usr/share/doc-base",
	"usr/share/gtk-doc", "usr/share/help", "usr/share/menu", "usr/share/linda", "usr/share/bash-completion", "usr/share/zsh",
}

// placePackage says where a file of a package goes: into the merged /usr, out of the way of the glue, or nowhere. Of
// /usr/share/doc the copyright files stay, and the links of packages that share them.
func placePackage(name string) (string, bool) {
	top, rest, below := strings.Cut(name, "/")
	if slices.Contains(merged, top) {
		if !below {
			return "", false // the glue has the link
		}
		name = "usr/" + top + "/" + rest
	}
	if to, ok := diverted[name]; ok {
		return to, true
	}
	for _, d := range dropped {
		if name == d || strings.HasPrefix(name, d+"/") {
			return "", false
		}
	}
	if rest, ok := strings.CutPrefix(name, "usr/share/doc/"); ok && strings.Contains(rest, "/") {
		if path.Base(name) != "copyright" || strings.Count(rest, "/") != 1 {
			return "", false
		}
	}
	return name, true
}

// isMerged tells whether a symbolic link is one that the merged /usr makes pointless: one that would link to itself, as bin/cat does that
// packages from before link to usr/bin/cat, or one of the folders that the glue has (see unified).
func isMerged(name, to string) bool {
	if name == "usr/sbin" || name == "usr/lib64" {
		return true
	}
	if !path.IsAbs(to) {
		to = path.Join("/", path.Dir(name), to)
	}
	at, _ := placePackage(name)
	target, _ := placePackage(strings.TrimPrefix(path.Clean(to), "/"))
	return at == target
}
