package registry

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

const (
	partialSuffix = ".partial"
	copied        = 128 << 10          // bytes at a time
	partialAge    = 7 * 24 * time.Hour // after which an unfinished download is dropped
)

// fetch downloads blobs: all of them to files of the client's Dir, which stay there when it fails or its process ends, and then moves
// them to dir. The files are locked throughout, so that processes which want the same blobs download them once.
func (r *registry) fetch(ctx context.Context, list []v1.Descriptor, dir string, progress func(done, total int64)) error {
	base := cmp.Or(r.client.options.Dir, dir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(base, 0o755); err != nil {
		return err
	}
	sweepPartials(base)
	// In one order for everyone, so that no two wait for each other.
	list = slices.SortedFunc(slices.Values(list), func(a, b v1.Descriptor) int { return strings.Compare(a.Digest.Hex, b.Digest.Hex) })
	m := newMeter(progress)
	files := make([]*os.File, len(list))
	defer func() {
		for _, f := range files {
			if f != nil {
				dropEmpty(f)
				f.Close()
			}
		}
	}()
	for i, d := range list { // before any is waited for: what others finish meanwhile can be read still
		var err error
		if files[i], err = openPartial(filepath.Join(base, d.Digest.Hex+partialSuffix)); err != nil {
			return err
		}
		m.add(0, d.Size)
	}
	for i, d := range list {
		var err error
		if files[i], err = lockPartial(ctx, files[i], d.Size); err != nil {
			return err
		}
	}
	g, gctx := errgroup.WithContext(ctx)
	for i, d := range list {
		g.Go(func() error { return r.download(gctx, d, files[i], m) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for i, d := range list {
		if err := os.Rename(files[i].Name(), filepath.Join(dir, d.Digest.Hex)); err != nil {
			return err
		}
	}
	return nil
}

// dropEmpty leaves nothing where nothing has come, unless another process has it.
func dropEmpty(f *os.File) {
	st, err := f.Stat()
	if err == nil && st.Size() == 0 && unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && same(f, os.Lstat, f.Name()) {
		os.Remove(f.Name())
	}
}

func openPartial(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o644)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, cmp.Or(err, fmt.Errorf("%q is not a regular file", name))
	}
	return f, nil
}

// lockPartial locks the file of an unfinished download, or closes it and gives another one: when a process has finished it meanwhile,
// the new file begins with what that one has brought.
func lockPartial(ctx context.Context, f *os.File, size int64) (_ *os.File, err error) {
	var finished *os.File
	defer func() {
		if finished != nil {
			finished.Close()
		}
		if err != nil && f != nil {
			f.Close()
		}
	}()
	for {
		if err := flock(ctx, f, unix.LOCK_EX); err != nil {
			return nil, err
		}
		st, err := f.Stat()
		if err != nil {
			return nil, err
		}
		if same(f, os.Lstat, f.Name()) {
			if st.Size() == 0 && finished != nil {
				if _, err := io.Copy(f, io.LimitReader(finished, size)); err != nil {
					return nil, err
				}
			}
			return f, nil
		}
		old := f
		if f, err = openPartial(old.Name()); err != nil {
			old.Close()
			return nil, err
		}
		if st.Size() != size || finished != nil {
			old.Close()
			continue
		}
		finished = old
		if err := unix.Flock(int(old.Fd()), unix.LOCK_UN); err != nil { // others wait for it too
			return nil, err
		}
	}
}

// sweepPartials removes downloads that nobody has gone on with for long. What can't be removed does no harm.
func sweepPartials(base string) {
	names, err := filepath.Glob(filepath.Join(base, strings.Repeat("[0-9a-f]", 64)+partialSuffix))
	if err != nil {
		return
	}
	for _, name := range names {
		if st, err := os.Lstat(name); err != nil || !st.Mode().IsRegular() || time.Since(st.ModTime()) < partialAge {
			continue
		}
		f, err := os.Open(name)
		if err != nil {
			continue
		}
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			if st, err := f.Stat(); err == nil && time.Since(st.ModTime()) >= partialAge {
				os.Remove(name)
			}
		}
		f.Close()
	}
}

// download completes a file. Where what was there before turns out to be wrong, it starts again.
func (r *registry) download(ctx context.Context, d v1.Descriptor, f *os.File, m *meter) error {
	done, err := take(ctx, r.client.host(r.repo.Registry).transfers)
	if err != nil {
		return err
	}
	defer done()
	for {
		s := &stream{ctx: ctx, repo: r, d: d, sum: sha256.New()}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		if s.n, err = io.Copy(s.sum, io.LimitReader(f, d.Size)); err != nil {
			return err
		}
		if err := f.Truncate(s.n); err != nil {
			return err
		}
		resumed := s.n > 0
		m.add(s.n, 0)
		if s.n < d.Size {
			if err := s.connect(nil); err != nil {
				s.fail(err)
			}
		}
		_, err := io.CopyBuffer(struct{ io.Writer }{f}, &metered{s, m}, make([]byte, copied)) // larger than net/http's buffer: it goes around that
		s.Close()
		if err == nil {
			return nil
		}
		if !errors.Is(err, ErrAltered) {
			return err
		}
		m.add(-s.n, 0)
		if err := f.Truncate(0); err != nil {
			return err
		}
		if !resumed {
			os.Remove(f.Name())
			return err
		}
	}
}

// metered reports what is read.
type metered struct {
	io.Reader
	meter *meter
}

func (m *metered) Read(p []byte) (int, error) {
	n, err := m.Reader.Read(p)
	m.meter.add(int64(n), 0)
	return n, err
}
