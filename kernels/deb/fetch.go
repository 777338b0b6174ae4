package deb

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
	"time"
)

const (
	userAgent = "godkms-hermetic"
	tries     = 3
	firstWait = 200 * time.Millisecond
	stallTime = 30 * time.Second
)

// newClient is the client that is used unless the caller has one: proxies from the environment, no waiting for ever.
func newClient() *http.Client {
	return &http.Client{Transport: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: stallTime,
		IdleConnTimeout:       30 * time.Second,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   4,
		DisableCompression:    true, // indexes are compressed files; what is hashed is what is sent
	}}
}

// A statusError is an answer other than 200 or 304.
type statusError struct{ code int }

func (e *statusError) Error() string {
	return fmt.Sprintf("the mirror answers %d %s", e.code, http.StatusText(e.code))
}

func isMissing(err error) bool {
	e, ok := errors.AsType[*statusError](err)
	return ok && (e.code == http.StatusNotFound || e.code == http.StatusGone)
}

var (
	errTooLarge = errors.New("the answer is too large")
	errStalled  = errors.New("the mirror stopped sending")
)

// A reply is a whole answer; notModified leaves body empty.
type reply struct {
	body        []byte // only of fetch
	header      http.Header
	notModified bool
}

// A fetcher is a client with its patience.
type fetcher struct {
	client *http.Client
	wait   time.Duration // before the second try; three times as long before each further one
	stall  time.Duration // without a byte, a download is given up
}

// fetch gets a whole file of at most limit bytes into memory.
func (f fetcher) fetch(ctx context.Context, from string, header http.Header, limit int64) (*reply, error) {
	var body bytes.Buffer
	r, err := f.fetchTo(ctx, func() (io.Writer, error) { body.Reset(); return &body, nil }, from, header, limit, nil)
	if err != nil {
		return nil, err
	}
	r.body = body.Bytes()
	return r, nil
}

// fetchTo gets a whole file of at most limit bytes into what start gives, which is called before each try. Broken connections and
// server errors are tried again.
func (f fetcher) fetchTo(ctx context.Context, start func() (io.Writer, error), from string, header http.Header, limit int64,
	progress func(done int64)) (*reply, error) {
	wait := f.wait
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
		if e, ok := errors.AsType[*statusError](err); ok && e.code < 500 && e.code != http.StatusTooManyRequests {
			return nil, err
		}
		if _, local := errors.AsType[*os.PathError](err); try == tries || local || errors.Is(err, errTooLarge) {
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

func (f fetcher) once(ctx context.Context, w io.Writer, from string, header http.Header, limit int64, progress func(int64)) (*reply, error) {
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
	resp, err := f.client.Do(req)
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
		return &reply{header: resp.Header, notModified: true}, nil
	default:
		return nil, &statusError{resp.StatusCode}
	}
	if resp.ContentLength > limit {
		return nil, errTooLarge
	}
	stall := time.AfterFunc(f.stall, func() { cancel(errStalled) })
	defer stall.Stop()
	var done int64
	in := io.LimitReader(resp.Body, limit+1)
	buf := make([]byte, 64<<10)
	for {
		n, err := in.Read(buf)
		if n > 0 {
			stall.Reset(f.stall)
			done += int64(n)
			if progress != nil {
				progress(done)
			}
		}
		if done > limit {
			return nil, errTooLarge
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return nil, err
		}
		if err == io.EOF {
			return &reply{header: resp.Header}, nil
		}
		if err != nil {
			if cause := context.Cause(ctx); cause != nil {
				err = cause
			}
			return nil, err
		}
	}
}
