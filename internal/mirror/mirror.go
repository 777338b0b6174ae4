// Package mirror fetches files from the mirrors of a distribution: it waits and tries again, gives up what stalls, never takes more
// bytes than it was told to, and goes on at another mirror where there are several.
package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// A Fetcher's usual patience, and how often Fetch tries.
const (
	userAgent = "godkms-hermetic"
	tries     = 3
	firstWait = 200 * time.Millisecond
	stallTime = 30 * time.Second
)

// NewClient is the client that is used unless the caller has one: proxies from the environment, no waiting for ever.
func NewClient() *http.Client {
	return &http.Client{Transport: &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:   10 * time.Second,
		ResponseHeaderTimeout: stallTime,
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

// A Reply is a whole answer.
type Reply struct {
	Body        []byte // empty where NotModified
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
	return Fetcher{Client: c, Health: new(Health), Wait: firstWait, Stall: stallTime}
}

// Fetch gets a whole file of at most limit bytes into memory. Broken connections and server errors are tried again.
func (f Fetcher) Fetch(ctx context.Context, from string, header http.Header, limit int64) (*Reply, error) {
	wait := f.Wait
	for try := 1; ; try++ {
		r, err := f.once(ctx, from, header, limit)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		status, answered := errors.AsType[*StatusError](err)
		late, timed := errors.AsType[net.Error](err)
		var final bool
		switch {
		case err == nil, errors.Is(err, ErrTooLarge):
			final = true
		case answered:
			final = status.Code < 500 && status.Code != http.StatusTooManyRequests
		default:
			final = f.Others && (errors.Is(err, ErrStalled) || timed && late.Timeout())
		}
		if final || try == tries {
			f.Health.note(from, err == nil || answered && status.Code < 500)
			return r, err
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait + rand.N(max(wait/2, 1))):
		}
		wait *= 3
	}
}

func (f Fetcher) once(ctx context.Context, from string, header http.Header, limit int64) (*Reply, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(f.Stall, func() { cancel(ErrStalled) })
	defer stall.Stop()
	broken := func(err error) error {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
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
		err = e.Err // callers name the URL
	}
	if err != nil {
		return nil, broken(err)
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
	var body bytes.Buffer
	in := io.LimitReader(resp.Body, limit+1)
	buf := make([]byte, 64<<10)
	for {
		n, err := in.Read(buf)
		if n > 0 {
			stall.Reset(f.Stall)
		}
		body.Write(buf[:n])
		if int64(body.Len()) > limit {
			return nil, ErrTooLarge
		}
		if err == io.EOF {
			return &Reply{Body: body.Bytes(), Header: resp.Header}, nil
		}
		if err != nil {
			return nil, broken(err)
		}
	}
}
