package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
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

const (
	attempts     = 4                      // in a row that bring nothing new
	firstBackoff = 200 * time.Millisecond // doubles with each
	stall        = 30 * time.Second       // without a byte ends an attempt
)

func newClient() *http.Client {
	return &http.Client{Transport: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 15 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: stall,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   16,
		IdleConnTimeout:       30 * time.Second,
		DisableCompression:    true, // ranges count the bytes of the file
	}}
}

func (s *Store) packageFile(p kernels.Package) string {
	return s.path("packages", "sha256", p.Digest.Hex)
}

// have tells whether a package file of the right size is there. Its hash is checked when it is read.
func (s *Store) have(p kernels.Package) bool {
	st, err := os.Stat(s.packageFile(p))
	return err == nil && st.Size() == p.Size
}

// fetch makes sure that a package file is in the cache. Of several processes that want it one downloads. What was downloaded
// before a process died is kept and goes on from there; if the whole then has the wrong hash, it is fetched once more from the
// start. Files are not fsynced: each reader checks the hash. progress is told of bytes, negative ones when they start again.
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
	d := &download{store: s, pkg: p, file: f, sum: sha256.New(), progress: progress}
	err = d.run(ctx)
	if errors.Is(err, ErrMismatch) && d.resumed {
		if err = d.restart(); err == nil {
			d.resumed = false
			err = d.run(ctx)
		}
	}
	if errors.Is(err, ErrMismatch) {
		os.Remove(f.Name())
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), s.packageFile(p))
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

type download struct {
	store    *Store
	pkg      kernels.Package
	file     *os.File
	sum      hash.Hash // of the file's first n bytes
	n        int64
	resumed  bool // not all bytes are from one response
	progress func(int64)
}

func (d *download) restart() error {
	d.progress(-d.n)
	d.n = 0
	d.sum.Reset()
	if err := d.file.Truncate(0); err != nil {
		return err
	}
	_, err := d.file.Seek(0, io.SeekStart)
	return err
}

// run completes the file and checks its hash.
func (d *download) run(ctx context.Context) error {
	d.sum.Reset()
	d.n = 0
	if _, err := d.file.Seek(0, io.SeekStart); err != nil {
		return err
	}
	n, err := io.Copy(d.sum, d.file)
	if err != nil {
		return err
	}
	d.n, d.resumed = n, d.resumed || n > 0
	d.progress(n)
	if n > d.pkg.Size {
		if err := d.restart(); err != nil {
			return err
		}
	}
	wait, best := firstBackoff, d.n // best: as far as any attempt got
	for try := 1; d.n < d.pkg.Size; try++ {
		err := d.attempt(ctx)
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var again *retryError
		if !errors.As(err, &again) {
			return err
		}
		if d.n > best {
			try, wait, best = 1, firstBackoff, d.n
		}
		if try >= attempts {
			return &PackageError{d.pkg, fmt.Errorf("download %q, tried %d times: %w", d.pkg.URL, try, again.error),
				"check the network, or try another --mirror"}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait + rand.N(wait/2)):
		}
		wait *= 2
	}
	if got := hex.EncodeToString(d.sum.Sum(nil)); got != d.pkg.Digest.Hex {
		return d.mismatch("hash sha256:"+got, d.pkg.Digest.String())
	}
	return nil
}

func (d *download) mismatch(got, want string) error {
	return &PackageError{d.pkg, fmt.Errorf("%w: %q has %s; want %s", ErrMismatch, d.pkg.URL, got, want),
		"the mirror may be in the middle of an update or altered: try --refresh or another --mirror"}
}

// retryError is one that another attempt may not meet.
type retryError struct{ error }

// attempt makes one request for what is missing.
func (d *download) attempt(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.pkg.URL, nil)
	if err != nil {
		return &PackageError{d.pkg, err, "give a --mirror with an http or https address"}
	}
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("User-Agent", "godkms-hermetic")
	if d.n > 0 {
		d.resumed = true
		req.Header.Set("Range", "bytes="+strconv.FormatInt(d.n, 10)+"-")
	}
	stalled := fmt.Errorf("no byte for %v", d.store.stall)
	timer := time.AfterFunc(d.store.stall, func() { cancel(stalled) })
	defer timer.Stop()
	resp, err := d.store.client.Do(req)
	if err != nil {
		if context.Cause(ctx) == stalled {
			err = stalled
		}
		if strings.Contains(err.Error(), "unsupported protocol scheme") {
			return &PackageError{d.pkg, err, "give a --mirror with an http or https address"}
		}
		return &retryError{err}
	}
	defer resp.Body.Close()
	switch code := resp.StatusCode; {
	case code == http.StatusOK:
		if d.n > 0 { // the server ignores ranges
			if err := d.restart(); err != nil {
				return err
			}
		}
	case code == http.StatusPartialContent && strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", d.n)):
	case code == http.StatusPartialContent, code == http.StatusRequestedRangeNotSatisfiable:
		if d.n == 0 {
			return &retryError{fmt.Errorf("the server answers %s", resp.Status)}
		}
		return d.restart() // the server's file is another one
	case code == http.StatusNotFound, code == http.StatusGone:
		return &PackageError{d.pkg, fmt.Errorf("%w: %q: %s", ErrGone, d.pkg.URL, resp.Status),
			"try --refresh or another --mirror"}
	case code >= 500, code == http.StatusTooManyRequests, code == http.StatusRequestTimeout:
		return &retryError{errors.New("the server answers " + resp.Status)}
	default:
		return &PackageError{d.pkg, fmt.Errorf("download %q: %s", d.pkg.URL, resp.Status), "try another --mirror"}
	}
	if resp.ContentLength >= 0 && d.n+resp.ContentLength != d.pkg.Size {
		return d.mismatch(fmt.Sprintf("%d bytes", d.n+resp.ContentLength), strconv.FormatInt(d.pkg.Size, 10))
	}
	buf := make([]byte, 64<<10)
	for {
		k, rerr := resp.Body.Read(buf)
		timer.Reset(d.store.stall)
		if d.n+int64(k) > d.pkg.Size {
			return d.mismatch("more bytes", strconv.FormatInt(d.pkg.Size, 10))
		}
		if _, err := d.file.Write(buf[:k]); err != nil {
			return err
		}
		d.sum.Write(buf[:k])
		d.n += int64(k)
		d.progress(int64(k))
		if rerr == io.EOF && d.n == d.pkg.Size {
			return nil
		}
		if rerr != nil {
			if rerr == io.EOF {
				rerr = io.ErrUnexpectedEOF
			}
			if context.Cause(ctx) == stalled {
				rerr = stalled
			}
			return &retryError{rerr}
		}
	}
}

// openPackage gives a package file as a stream that fails, when it ends, if its hash is not the package's.
func (s *Store) openPackage(p kernels.Package, progress func(int64)) (*packageReader, error) {
	f, err := os.Open(s.packageFile(p))
	if err != nil {
		return nil, err
	}
	unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_SEQUENTIAL)
	return &packageReader{pkg: p, file: f, sum: sha256.New(), progress: progress}, nil
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
