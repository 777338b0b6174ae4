// Package mirror fetches files from the mirrors of a distribution: it waits and tries again, gives up what stalls, never takes more
// bytes than it was told to, and goes on at another mirror where there are several.
package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

// A Fetcher's usual patience, and how often it tries.
const (
	userAgent = "godkms-hermetic"
	tries     = 3
	FirstWait = 200 * time.Millisecond
	StallTime = 30 * time.Second
)

// NewClient is the client that is used unless the caller has one: proxies from the environment, no waiting for ever.
func NewClient() *http.Client {
	return &http.Client{Transport: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: StallTime,
		IdleConnTimeout:       30 * time.Second,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   16,
		DisableCompression:    true, // what is hashed is what is sent, and ranges count its bytes
	}}
}

// A StatusError is an answer other than 200 or 304.
type StatusError struct{ Code int }

// Status is the answer in words: "404 Not Found".
func (e *StatusError) Status() string {
	return strings.TrimSpace(fmt.Sprint(e.Code, " ", http.StatusText(e.Code)))
}

func (e *StatusError) Error() string { return "the mirror answers " + e.Status() }

// IsMissing tells whether an error is the answer that there is no such file.
func IsMissing(err error) bool {
	e, ok := errors.AsType[*StatusError](err)
	return ok && (e.Code == http.StatusNotFound || e.Code == http.StatusGone)
}

// Why a file is given up.
var (
	ErrTooLarge = errors.New("the answer is too large")
	ErrStalled  = errors.New("the mirror stopped sending")
)

// A Reply is a whole answer; NotModified leaves body empty.
type Reply struct {
	Body        []byte // only of fetch
	Header      http.Header
	NotModified bool
}

// A Fetcher is a client with its patience. It is safe for concurrent use.
type Fetcher struct {
	Client *http.Client
	Health *Health       // which of several mirrors is asked first
	Wait   time.Duration // before the second try; longer before each further one
	Stall  time.Duration // without a byte, a download is given up
	// Others says that what is asked for may come from elsewhere too: a mirror that doesn't answer in time isn't waited for again.
	Others bool
}

// NewFetcher gives a client the usual patience, and no memory of any mirror.
func NewFetcher(c *http.Client) Fetcher {
	return Fetcher{Client: c, Health: new(Health), Wait: FirstWait, Stall: StallTime}
}

// Fetch gets a whole file of at most limit bytes into memory.
func (f Fetcher) Fetch(ctx context.Context, from string, header http.Header, limit int64) (*Reply, error) {
	var body bytes.Buffer
	r, err := f.FetchTo(ctx, func() (io.Writer, error) { body.Reset(); return &body, nil }, from, header, limit, nil)
	if err != nil {
		return nil, err
	}
	r.Body = body.Bytes()
	return r, nil
}

// FetchTo gets a whole file of at most limit bytes into what start gives, which is called before each try. Broken connections and
// server errors are tried again.
func (f Fetcher) FetchTo(ctx context.Context, start func() (io.Writer, error), from string, header http.Header, limit int64,
	progress func(done int64)) (*Reply, error) {
	r, err := f.fetchTo(ctx, start, from, header, limit, progress)
	if e, ok := errors.AsType[*StatusError](err); ctx.Err() == nil {
		f.Health.note(from, err == nil || ok && e.Code < 500)
	}
	return r, err
}

func (f Fetcher) fetchTo(ctx context.Context, start func() (io.Writer, error), from string, header http.Header, limit int64,
	progress func(done int64)) (*Reply, error) {
	wait := f.Wait
	for try := 1; ; try++ {
		w, err := start()
		if err != nil {
			return nil, err
		}
		r, err := f.once(ctx, w, from, header, limit, progress)
		if err == nil {
			return r, nil
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if e, ok := errors.AsType[*StatusError](err); ok && e.Code < 500 && e.Code != http.StatusTooManyRequests {
			return nil, err
		}
		late, ok := errors.AsType[net.Error](err)
		if f.Others && (errors.Is(err, ErrStalled) || ok && late.Timeout()) {
			return nil, err
		}
		if _, local := errors.AsType[*os.PathError](err); try == tries || local || errors.Is(err, ErrTooLarge) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(wait):
		}
		wait *= 3
	}
}

func (f Fetcher) once(ctx context.Context, w io.Writer, from string, header http.Header, limit int64, progress func(int64)) (*Reply, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, from, nil)
	if err != nil {
		return nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	req.Header.Set("User-Agent", userAgent)
	resp, err := f.Client.Do(req)
	if e, ok := errors.AsType[*url.Error](err); ok {
		return nil, e.Err // callers name the URL
	}
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
	case http.StatusNotModified:
		return &Reply{Header: resp.Header, NotModified: true}, nil
	default:
		return nil, &StatusError{Code: resp.StatusCode}
	}
	if resp.ContentLength > limit {
		return nil, ErrTooLarge
	}
	stall := time.AfterFunc(f.Stall, func() { cancel(ErrStalled) })
	defer stall.Stop()
	var done int64
	in := io.LimitReader(resp.Body, limit+1)
	buf := make([]byte, 64<<10)
	for {
		n, err := in.Read(buf)
		if n > 0 {
			stall.Reset(f.Stall)
			done += int64(n)
			if progress != nil {
				progress(done)
			}
		}
		if done > limit {
			return nil, ErrTooLarge
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return nil, err
		}
		if err == io.EOF {
			return &Reply{Header: resp.Header}, nil
		}
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return nil, err
		}
	}
}
