// Package durable writes files and folders that appear whole or not at all, and cleans up after processes that died.
package durable

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// WriteFile writes path through a temporary file in tmp, which must be on the same file system, and fsyncs the file and its
// folder. When write returns an error path is left as it was. Folders above path are made.
func WriteFile(tmp, path string, mode fs.FileMode, write func(io.Writer) error) (err error) {
	f, err := tempFile(tmp)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
		}
	}()
	w := bufio.NewWriterSize(f, 1<<16)
	if err := write(w); err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := Rename(f.Name(), path); err != nil { // while it is locked, so that nobody takes it for a dead process's
		return err
	}
	return f.Close()
}

// tempFile makes a file whose lock says that its process lives; see NewTemp.
func tempFile(dir string) (*os.File, error) {
	for {
		f, err := os.CreateTemp(dir, "file-*")
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			f.Close()
			os.Remove(f.Name())
			return nil, fmt.Errorf("lock %q: %w", f.Name(), err)
		}
		mine, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		if named, err := os.Stat(f.Name()); err == nil && os.SameFile(mine, named) {
			return f, nil
		}
		f.Close() // it was cleaned up before it was locked
	}
}

// Rename moves a finished file or folder to its final place and fsyncs the folder that it lands in, which is made if absent.
func Rename(from, to string) error {
	dir := filepath.Dir(to)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return syncDir(dir)
}

// RenameAll moves finished files of one folder to another, which is there, in their order, and fsyncs that one once. When it fails,
// those before the one that failed have been moved.
func RenameAll(from, to string, names []string) error {
	for _, name := range names {
		if err := os.Rename(filepath.Join(from, name), filepath.Join(to, name)); err != nil {
			return err
		}
	}
	return syncDir(to)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) { // EINVAL: a file system without fsync for folders
		return err
	}
	return nil
}

// A Temp is a folder for unfinished work. Each process holds its own below a common folder, under a lock that the kernel
// drops when the process ends, however it ends.
type Temp struct {
	Dir  string // an empty folder of this process's own
	lock *os.File
}

// NewTemp makes a folder below base and removes what dead processes left there: such folders, and WriteFile's files.
func NewTemp(base string) (*Temp, error) {
	if err := os.MkdirAll(base, 0o755); err != nil {
		return nil, err
	}
	guard, err := Lock(context.Background(), filepath.Join(base, ".lock"), false)
	if err != nil {
		return nil, err
	}
	defer guard.Close()
	if err := sweep(base); err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp(base, "")
	if err != nil {
		return nil, err
	}
	f, err := tryLock(dir)
	if err != nil {
		return nil, err
	}
	return &Temp{Dir: dir, lock: f}, nil
}

// Sweep removes what dead processes left in a folder that is for unfinished work.
func Sweep(base string) error {
	guard, err := Lock(context.Background(), filepath.Join(base, ".lock"), false)
	if err != nil {
		return err
	}
	defer guard.Close()
	return sweep(base)
}

func sweep(base string) error {
	entries, err := os.ReadDir(base)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == ".lock" || !e.IsDir() && !e.Type().IsRegular() {
			continue
		}
		name := filepath.Join(base, e.Name())
		if f, err := tryLock(name); err == nil {
			RemoveAll(name)
			f.Close()
		}
	}
	return nil
}

// Close removes the folder with all that is in it.
func (t *Temp) Close() error {
	err := RemoveAll(t.Dir)
	t.lock.Close()
	return err
}

// RemoveAll is os.RemoveAll that also empties folders without write permission, as packages can contain them.
func RemoveAll(dir string) error {
	if os.RemoveAll(dir) == nil {
		return nil
	}
	filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if d != nil && d.IsDir() {
			os.Chmod(p, 0o700)
		}
		return nil
	})
	return os.RemoveAll(dir)
}

// Lock waits for an advisory lock (flock) on the file at path, which is made if absent, and is no link: none is made where one leads to.
// Shared locks exclude only exclusive ones. Closing the file releases it. It ends early with ctx's cause.
func Lock(ctx context.Context, path string, shared bool) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return nil, err
	}
	how := unix.LOCK_EX
	if shared {
		how = unix.LOCK_SH
	}
	return wait(ctx, f, how)
}

// LockDir is Lock, exclusive, on a folder itself. It leaves no file.
func LockDir(ctx context.Context, dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	return wait(ctx, f, unix.LOCK_EX)
}

// wait takes the lock, or closes the file.
func wait(ctx context.Context, f *os.File, how int) (*os.File, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %q: %w", f.Name(), err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, context.Cause(ctx)
		case <-time.After(wait):
		}
	}
}

func tryLock(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Unnamed makes a file that vanishes when it is closed, or the process ends, however it ends. It has no name in dir, by default
// os.TempDir().
func Unnamed(dir string) (*os.File, error) {
	if dir == "" {
		dir = os.TempDir()
	}
	f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
	if err == nil {
		return f, nil
	}
	f, err = os.CreateTemp(dir, "unnamed-*") // not every file system has files without a name
	if err != nil {
		return nil, fmt.Errorf("make a temporary file: %w", err)
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
