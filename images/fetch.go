package images

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"strconv"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/mirror"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// What a *PackageError can wrap.
var (
	ErrOffline  = errors.New("offline, and not in the cache")
	ErrGone     = errors.New("the mirror has it no longer")
	ErrMismatch = errors.New("not the file that the signed index describes")
)

// PackageError says which package could not be had, and why.
type PackageError struct {
	Package kernels.Package
	Err     error
	Hint    string // what to do next
}

func (e *PackageError) Error() string {
	s := fmt.Sprintf("package %q %s (%s): %v", e.Package.Name, e.Package.Version, e.Package.Arch, e.Err)
	if e.Hint != "" {
		s += "; " + e.Hint
	}
	return s
}

func (e *PackageError) Unwrap() error { return e.Err }

func (s *Store) packageFile(p kernels.Package) string {
	return s.path("packages", p.Digest.Algorithm, p.Digest.Hex)
}

// have tells whether a package file of the right size is there. Its hash is checked when it is read.
func (s *Store) have(p kernels.Package) bool {
	st, err := os.Stat(s.packageFile(p))
	return err == nil && st.Size() == p.Size
}

// fetch makes sure that a package file is in the cache, from whichever of its mirrors. Of several processes that want it one downloads.
// What was downloaded before a process died is kept and goes on from there; if the whole then has the wrong hash, it is fetched once
// more from the start. Files are not fsynced: each reader checks the hash. progress is told of bytes, negative ones when they start
// again.
func (s *Store) fetch(ctx context.Context, p kernels.Package, progress func(int64)) error {
	if !s.have(p) && s.offline {
		return &PackageError{p, ErrOffline, "run once without --offline"}
	}
	if !s.have(p) && p.URL == "" { // a lock that was read from an image
		return &PackageError{p, errors.New("the lock does not say where it is"), "lock the kernel again, from a --mirror that has it"}
	}
	f, err := s.partial(ctx, p)
	if err != nil {
		return err
	}
	if f == nil {
		progress(p.Size)
		return nil
	}
	defer f.Close()
	err = s.net.Download(ctx, mirror.File{URLs: append([]string{p.URL}, p.Mirrors...), Digest: p.Digest, Size: p.Size}, f, progress)
	if all, ok := errors.AsType[mirror.Failures](err); ok {
		err = packageFailure(p, all)
	}
	if errors.Is(err, ErrMismatch) {
		os.Remove(f.Name())
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), s.packageFile(p))
}

// packageFailure says why none of a package's URLs gave it, and what to do about the first of them.
func packageFailure(p kernels.Package, all mirror.Failures) *PackageError {
	out := explain(p, all[0])
	for _, f := range all[1:] {
		out.Err = fmt.Errorf("%w; %w", out.Err, explain(p, f).Err)
	}
	return out
}

func explain(p kernels.Package, f *mirror.Failure) *PackageError {
	if other, ok := errors.AsType[*mirror.Another](f.Err); ok {
		got, want := fmt.Sprintf("%d bytes", other.Size), strconv.FormatInt(p.Size, 10)
		switch {
		case other.Digest.Hex != "":
			got, want = "hash "+other.Digest.String(), p.Digest.String()
		case other.Size < 0:
			got = "more bytes"
		}
		return &PackageError{p, fmt.Errorf("%w: %q has %s; want %s", ErrMismatch, f.URL, got, want),
			"the mirror may be in the middle of an update or altered: try --refresh or another --mirror"}
	}
	if status, ok := errors.AsType[*mirror.StatusError](f.Err); ok && mirror.IsMissing(status) {
		return &PackageError{p, fmt.Errorf("%w: %q: %s", ErrGone, f.URL, status.Status()), "try --refresh or another --mirror"}
	}
	switch err := fmt.Errorf("download %q: %w", f.URL, f.Err); {
	case errors.Is(f.Err, mirror.ErrAddress):
		return &PackageError{p, err, "give a --mirror with an http or https address"}
	case f.Tries == 0:
		return &PackageError{p, err, "try another --mirror"}
	}
	return &PackageError{p, fmt.Errorf("download %q, tried %d times: %w", f.URL, f.Tries, f.Err), "check the network, or try another --mirror"}
}

// partial opens and locks the unfinished file of a package; nil means that the finished one is there.
func (s *Store) partial(ctx context.Context, p kernels.Package) (*os.File, error) {
	name := s.path("packages", "partial", p.Digest.Hex)
	for !s.have(p) {
		f, err := durable.Lock(ctx, name, false)
		if err != nil {
			return nil, err
		}
		mine, err := f.Stat()
		if err != nil {
			f.Close()
			return nil, err
		}
		// The process that had the lock has finished or dropped the file that this one opened.
		if now, err := os.Stat(name); err != nil || !os.SameFile(mine, now) {
			f.Close()
			continue
		}
		if s.have(p) {
			os.Remove(name)
			f.Close()
			break
		}
		return f, nil
	}
	return nil, nil
}

// openPackage gives a package file as a stream that fails, when it ends, if its hash is not the package's.
func (s *Store) openPackage(p kernels.Package, progress func(int64)) (*packageReader, error) {
	sum, err := v1.Hasher(p.Digest.Algorithm)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(s.packageFile(p))
	if err != nil {
		return nil, err
	}
	unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_SEQUENTIAL)
	return &packageReader{pkg: p, file: f, sum: sum, progress: progress}, nil
}

type packageReader struct {
	pkg      kernels.Package
	file     *os.File
	sum      hash.Hash
	progress func(int64)
}

func (r *packageReader) Read(b []byte) (int, error) {
	n, err := r.file.Read(b)
	r.sum.Write(b[:n])
	r.progress(int64(n))
	return n, err
}

// verify reads what is left and tells whether the file is the package.
func (r *packageReader) verify() (bool, error) {
	if _, err := io.Copy(io.Discard, r); err != nil {
		return false, err
	}
	return hex.EncodeToString(r.sum.Sum(nil)) == r.pkg.Digest.Hex, nil
}

func (r *packageReader) Close() error { return r.file.Close() }

// dropPackage removes a damaged package file, unless another process has put a good one in its place since r was opened.
func (s *Store) dropPackage(r *packageReader) {
	name := s.packageFile(r.pkg)
	mine, err := r.file.Stat()
	if err != nil {
		return
	}
	if now, err := os.Stat(name); err == nil && os.SameFile(mine, now) {
		if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return
		}
	}
}
