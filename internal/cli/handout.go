package cli

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

const buildLog = "build.log"

// folderOf is where the modules for a kernel are below out.
func folderOf(out string, k kernels.Kernel) string {
	return filepath.Join(out, k.Distro+"-"+k.Suite, k.Release)
}

// handOut writes modules, and texts by name, to dir, a folder below out.
func handOut(ctx context.Context, p *partialDir, out, dir string, files []artifact.File, texts map[string][]byte) ([]ui.Module, error) {
	var modules []ui.Module
	err := place(ctx, p, out, dir, func(partial string) (names []string, err error) {
		// Each of these waits for the disk; those that wait together wait once.
		var writes errgroup.Group
		writes.SetLimit(8)
		for name, text := range texts {
			writes.Go(func() error { return write(filepath.Join(partial, name), io.NopCloser(bytes.NewReader(text))) })
			names = append(names, name)
		}
		for _, f := range files {
			writes.Go(func() error {
				r, err := f.Open()
				if err != nil {
					return err
				}
				return write(filepath.Join(partial, f.Name), r)
			})
			names = append(names, f.Name)
			modules = append(modules, moduleIn(dir, f))
		}
		return names, writes.Wait()
	})
	if err != nil {
		return nil, err
	}
	return modules, nil
}

func moduleIn(dir string, f artifact.File) ui.Module {
	return ui.Module{Name: strings.TrimSuffix(f.Name, ".ko"), Path: filepath.Join(dir, f.Name), SHA256: f.Digest.Hex, Vermagic: f.Vermagic}
}

// place puts files into dir, a folder below out, that fill writes to another folder, and names. None is put in its place before all
// are written; files that are there already and have other names stay.
func place(ctx context.Context, p *partialDir, out, dir string, fill func(partial string) (names []string, err error)) error {
	partial, done, err := p.enter(ctx, out)
	if err != nil {
		return err
	}
	defer done()
	if partial, err = os.MkdirTemp(partial, ""); err != nil {
		return err
	}
	names, err := fill(partial)
	if err != nil {
		if p := (*fs.PathError)(nil); errors.As(err, &p) && strings.HasPrefix(p.Path, partial) {
			err = &fs.PathError{Op: p.Op, Path: dir, Err: p.Err} // where they were to be
		}
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return durable.RenameAll(partial, dir, names)
}

// write makes a file that is on the disk when it returns.
func write(name string, from io.ReadCloser) error {
	defer from.Close()
	f, err := create(name)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Close())
}

// create makes a file that is on the disk when Close has returned.
func create(name string) (io.WriteCloser, error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	if err := f.Chmod(0o644); err != nil { // whatever the umask
		return nil, errors.Join(err, f.Close())
	}
	return synced{f}, nil
}

type synced struct{ *os.File }

func (s synced) Close() error { return errors.Join(s.Sync(), s.File.Close()) }

// partialDir is the folder below --out for files that are being written. The process that has it keeps others out, so that what
// is in it when it's entered is of one that was killed.
type partialDir struct {
	mu    sync.Mutex
	users int
	lock  *os.File
	made  []string // --out and the folders above it that weren't there, the deepest first
}

// enter gives the folder until done is called. What was made for it and is empty then goes again.
func (p *partialDir) enter(ctx context.Context, out string) (dir string, done func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	dir = filepath.Join(out, ".partial")
	if p.users == 0 {
		lock, err := p.open(ctx, out)
		if err != nil {
			return "", nil, err
		}
		if err = os.RemoveAll(dir); err == nil {
			err = os.Mkdir(dir, 0o755)
		}
		if err != nil {
			lock.Close()
			return "", nil, err
		}
		p.lock = lock
	}
	p.users++
	return dir, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.users--; p.users == 0 {
			os.RemoveAll(dir)
			for _, d := range p.made {
				os.Remove(d)
			}
			p.lock.Close()
		}
	}, nil
}

// open makes --out and locks it.
func (p *partialDir) open(ctx context.Context, out string) (*os.File, error) {
	for {
		var made []string
		for d := filepath.Clean(out); ; d = filepath.Dir(d) {
			if _, err := os.Lstat(d); !errors.Is(err, fs.ErrNotExist) {
				break
			}
			made = append(made, d)
		}
		if err := os.MkdirAll(out, 0o755); err != nil {
			return nil, err
		}
		lock, err := durable.LockDir(ctx, out)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		mine, err := lock.Stat()
		if err != nil {
			lock.Close()
			return nil, err
		}
		if now, err := os.Stat(out); err == nil && os.SameFile(mine, now) {
			p.made = append(made, p.made...)
			return lock, nil
		}
		lock.Close() // another process made it for nothing, and has removed it
	}
}

// writeHashed makes a file that is on the disk when it returns, and gives its SHA-256.
func writeHashed(name string, fill func(io.Writer) error) (sum string, err error) {
	f, err := create(name)
	if err != nil {
		return "", err
	}
	h := sha256.New()
	w := bufio.NewWriter(io.MultiWriter(f, h))
	err = errors.Join(fill(w), w.Flush(), f.Close())
	return hex.EncodeToString(h.Sum(nil)), err
}
