package mirror

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

const (
	attempts = 4        // in a row, at one URL, that bring nothing new
	slowest  = 32 << 10 // bytes within Stall, where there is another mirror
)

// A File is known by its digest, wherever it comes from.
type File struct {
	URLs   []string // at least one; of those that are as good as each other the first is asked first
	Digest v1.Hash  // sha256 or sha512
	Size   int64    // bytes
}

// Another is the error of a URL that has another file than the one that is wanted.
type Another struct {
	Size   int64   // its bytes, or -1 for more than are wanted; 0 where the digest tells
	Digest v1.Hash // of that file
}

func (e *Another) Error() string {
	switch {
	case e.Digest.Hex != "":
		return fmt.Sprintf("another file, with the digest %s", e.Digest)
	case e.Size < 0:
		return "another file, with more bytes"
	}
	return fmt.Sprintf("another file, of %d bytes", e.Size)
}

// ErrAddress is wrapped by the error of a URL that is none of a file on a server.
var ErrAddress = errors.New("no http or https address of a file")

// A Failure is why a URL was given up.
type Failure struct {
	URL   string // without a password
	Tries int    // at its end, in a row
	Err   error  // *StatusError, *Another, ErrStalled, ErrAddress or the network's
}

func (e *Failure) Error() string { return e.URL + ": " + e.Err.Error() }
func (e *Failure) Unwrap() error { return e.Err }

// Failures are those of all URLs of a file, in their order.
type Failures []*Failure

func (e Failures) Error() string {
	var text []string
	for _, f := range e {
		text = append(text, f.Error())
	}
	return strings.Join(text, "; ")
}

func (e Failures) Unwrap() []error {
	var out []error
	for _, f := range e {
		out = append(out, f)
	}
	return out
}

// Download completes a file that begins with what is in to already, from any of its mirrors: of those that have failed least the one
// that does least now. When an answer breaks off, stalls, or, where there are others, is slower than 1 kB/s, the next one goes on where it
// stopped; each is tried again, after a wait, until it has failed four times in a row and nothing has come. The digest decides: a file
// that is put together of several answers and isn't the right one is fetched once more, all of it from one mirror. progress is told of
// bytes, negative ones when they start again.
//
// It fails with Failures, one for each URL, with ctx's cause, or with what is wrong with to.
func (f Fetcher) Download(ctx context.Context, file File, to *os.File, progress func(int64)) error {
	d := &download{Fetcher: f, file: file, to: to, progress: progress}
	switch file.Digest.Algorithm {
	case "sha256":
		d.sum = sha256.New()
	case "sha512":
		d.sum = sha512.New()
	default:
		return fmt.Errorf("no use of a digest of the kind %q", file.Digest.Algorithm)
	}
	if err := d.resume(); err != nil {
		return err
	}
	return d.run(ctx)
}

type download struct {
	Fetcher
	file     File
	to       *os.File
	progress func(int64)
	sum      hash.Hash // of the first n bytes
	n        int64
	parts    int // answers that the n bytes are of
}

// resume takes up what is there.
func (d *download) resume() error {
	if _, err := d.to.Seek(0, io.SeekStart); err != nil {
		return err
	}
	n, err := io.Copy(d.sum, d.to)
	if err != nil {
		return err
	}
	d.n = n
	d.progress(n)
	if n > 0 {
		d.parts = 2 // nobody knows
	}
	if n > d.file.Size {
		return d.restart()
	}
	return nil
}

func (d *download) restart() error {
	d.progress(-d.n)
	d.n, d.parts = 0, 0
	d.sum.Reset()
	if err := d.to.Truncate(0); err != nil {
		return err
	}
	_, err := d.to.Seek(0, io.SeekStart)
	return err
}

func (d *download) run(ctx context.Context) error {
	var (
		failed = map[string]*Failure{}      // given up
		tries  = map[string]int{}           // in a row that brought nothing new
		wait   = map[string]time.Duration{} // before the next
		best   = d.n                        // as far as any attempt got
		last   string                       // whose bytes came last
		single bool                         // all bytes are to be from one URL, the last
	)
	giveUp := func(from string, err error) { failed[from] = &Failure{Public(from), tries[from], err} }
	for {
		if d.n == d.file.Size {
			got := v1.Hash{Algorithm: d.file.Digest.Algorithm, Hex: hex.EncodeToString(d.sum.Sum(nil))}
			if got == d.file.Digest {
				return nil
			}
			if d.parts > 1 && !single {
				single, last, best = true, "", 0
				clear(tries)
			} else {
				d.Health.note(last, false)
				giveUp(last, &Another{Digest: got})
			}
			if err := d.restart(); err != nil {
				return err
			}
		}
		left := slices.DeleteFunc(slices.Clone(d.file.URLs), func(u string) bool { return failed[u] != nil })
		if len(left) == 0 {
			var all Failures
			for _, u := range d.file.URLs {
				all = append(all, failed[u])
			}
			return all
		}
		among := left
		if single && slices.Contains(left, last) {
			among = []string{last}
		}
		from, done := d.Health.take(among, tries)
		if single && from != last && d.n > 0 {
			if err := d.restart(); err != nil {
				done()
				return err
			}
		}
		if pause := wait[from]; pause > 0 {
			select {
			case <-ctx.Done():
			case <-time.After(pause + rand.N(max(pause/2, 1))):
			}
		}
		last = from
		err := d.attempt(ctx, from, len(left) > 1)
		done()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if d.n > best {
			best = d.n
			clear(tries)
			clear(wait)
		}
		var again *retryError
		switch {
		case err == nil:
			d.Health.note(from, true)
		case err == errOther:
			tries[from]++
		case errors.As(err, &again):
			d.Health.note(from, false)
			wait[from] = max(2*wait[from], d.Wait)
			if tries[from]++; tries[from] >= attempts {
				giveUp(from, again.error)
			}
		default:
			if _, ok := errors.AsType[*Another](err); ok {
				d.Health.note(from, false)
			} else if _, ok := errors.AsType[*StatusError](err); !ok && !errors.Is(err, ErrAddress) {
				return err
			}
			giveUp(from, err)
		}
	}
}

// retryError is one that another attempt may not meet.
type retryError struct{ error }

// errOther is for a server that has no such part of its file: it's another file than the one that was begun, or it has no use of ranges.
var errOther = errors.New("not that file")

// attempt makes one request for what is missing. others says that another mirror may do better.
func (d *download) attempt(ctx context.Context, from string, others bool) error {
	if u, err := url.Parse(from); err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return ErrAddress
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return ErrAddress
	}
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("User-Agent", userAgent)
	if d.n > 0 {
		req.Header.Set("Range", "bytes="+strconv.FormatInt(d.n, 10)+"-")
	}
	stalled := &stallError{d.Stall, 1}
	if others {
		stalled.least = slowest
	}
	timer := time.AfterFunc(d.Stall, func() { cancel(stalled) })
	defer timer.Stop()
	broken := func(err error) error {
		if cause := context.Cause(ctx); cause == error(stalled) {
			err = cause
		}
		return &retryError{err}
	}
	resp, err := d.Client.Do(req)
	if e, ok := errors.AsType[*url.Error](err); ok {
		err = e.Err // callers name the URL
	}
	if err != nil {
		return broken(err)
	}
	defer resp.Body.Close()
	begin := d.n
	switch code := resp.StatusCode; {
	case code == http.StatusOK: // of the whole, with or without a range
		begin = 0
	case code == http.StatusPartialContent && strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", d.n)):
	case code == http.StatusPartialContent, code == http.StatusRequestedRangeNotSatisfiable:
		if d.n == 0 {
			return &retryError{&StatusError{code}}
		}
		if err := d.restart(); err != nil {
			return err
		}
		return errOther
	case code >= 500, code == http.StatusTooManyRequests, code == http.StatusRequestTimeout:
		return &retryError{&StatusError{code}}
	default:
		return &StatusError{code}
	}
	if resp.ContentLength >= 0 && begin+resp.ContentLength != d.file.Size {
		return &Another{Size: begin + resp.ContentLength}
	}
	if begin < d.n {
		if err := d.restart(); err != nil {
			return err
		}
	}
	buf := make([]byte, 64<<10)
	var fresh int64 // bytes since the clock was started
	counted := false
	for {
		k, rerr := resp.Body.Read(buf)
		if fresh += int64(k); fresh >= stalled.least {
			fresh = 0
			timer.Reset(d.Stall)
		}
		if d.n+int64(k) > d.file.Size {
			return &Another{Size: -1}
		}
		if _, err := d.to.Write(buf[:k]); err != nil {
			return err
		}
		if k > 0 && !counted {
			counted = true
			d.parts++
		}
		d.sum.Write(buf[:k])
		d.n += int64(k)
		d.progress(int64(k))
		if rerr == io.EOF && d.n == d.file.Size {
			return nil
		}
		if rerr == io.EOF {
			rerr = io.ErrUnexpectedEOF
		}
		if rerr != nil {
			return broken(rerr)
		}
	}
}

// stallError is ErrStalled with the patience that was had.
type stallError struct {
	after time.Duration
	least int64 // bytes
}

func (e *stallError) Error() string {
	if e.least > 1 {
		return fmt.Sprintf("fewer than %d bytes in %v", e.least, e.after)
	}
	return fmt.Sprintf("no byte for %v", e.after)
}

func (e *stallError) Is(target error) bool { return target == ErrStalled }
