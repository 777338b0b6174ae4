package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/authn/github"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

var defaultKeychain = authn.NewMultiKeychain(authn.DefaultKeychain, github.Keychain)

const (
	hostRequests = 8                // at a time, to one host
	answer       = 30 * time.Second // without an answer, a request is given up
	maxWait      = time.Minute      // as long a Retry-After is heeded
	userAgent    = "godkms-hermetic"
)

// What is tried again: after 0.2, 0.6 and 1.8 seconds.
var (
	backoff = remote.Backoff{Duration: 200 * time.Millisecond, Factor: 3, Jitter: 0.2, Steps: 4}
	retried = []int{http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout}
)

func temporary(err error) bool {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.As(err, new(*plainError)) {
		return false
	}
	if e := (*transport.Error)(nil); errors.As(err, &e) {
		return slices.Contains(retried, e.StatusCode) || e.Temporary()
	}
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) ||
		errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.ECONNREFUSED)
}

func (c *Client) remoteOptions() []remote.Option {
	return []remote.Option{
		remote.WithTransport(c.transport), remote.WithAuthFromKeychain(c.options.Keychain), remote.WithJobs(4), remote.WithUserAgent(userAgent),
		remote.WithRetryBackoff(backoff), remote.WithRetryPredicate(temporary), remote.WithRetryStatusCodes(retried...),
	}
}

func newTransport(o Options) http.RoundTripper {
	base := o.Transport
	if base == nil {
		base = &http.Transport{
			Proxy:                 http.ProxyFromEnvironment,
			DialContext:           (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
			TLSHandshakeTimeout:   10 * time.Second,
			ResponseHeaderTimeout: answer,
			ExpectContinueTimeout: time.Second,
			ForceAttemptHTTP2:     true,
			MaxIdleConnsPerHost:   hostRequests,
			IdleConnTimeout:       30 * time.Second,
			DisableCompression:    true,
		}
	}
	return &polite{inner: base, insecure: o.Insecure, slots: map[string]chan struct{}{}}
}

// polite refuses plain http where it isn't allowed, keeps to a number of requests for each host, waits as long as a server asks to,
// and bounds the answers that are read into memory.
type polite struct {
	inner    http.RoundTripper
	insecure []string
	mu       sync.Mutex
	slots    map[string]chan struct{} // by host
}

// plainError says that a registry without TLS was not spoken to.
type plainError struct{ host string }

func (e *plainError) Error() string {
	return fmt.Sprintf("%s has no TLS: --insecure-registry %s allows that", e.host, e.host)
}

func (p *polite) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !plainAllowed(req.URL, p.insecure) {
		return nil, &plainError{req.URL.Host}
	}
	slot := p.slot(req.URL.Host)
	select {
	case slot <- struct{}{}:
	case <-req.Context().Done():
		return nil, context.Cause(req.Context())
	}
	release := sync.OnceFunc(func() { <-slot })
	resp, err := p.inner.RoundTrip(req)
	if err != nil {
		release()
		return nil, err
	}
	if wait, ok := retryAfter(resp); ok {
		release()
		select {
		case <-time.After(wait):
		case <-req.Context().Done():
			resp.Body.Close()
			return nil, context.Cause(req.Context())
		}
	}
	body := io.Reader(resp.Body)
	if !strings.Contains(req.URL.Path, "/blobs/") {
		body = io.LimitReader(body, maxManifest+1)
	}
	resp.Body = &releasing{body, resp.Body, release}
	return resp, nil
}

func (p *polite) slot(host string) chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.slots[host]
	if !ok {
		s = make(chan struct{}, hostRequests)
		p.slots[host] = s
	}
	return s
}

type releasing struct {
	io.Reader
	body    io.Closer
	release func()
}

func (r *releasing) Close() error {
	defer r.release()
	return r.body.Close()
}

// retryAfter reads how long a server asks to wait (RFC 9110, 10.2.3).
func retryAfter(resp *http.Response) (time.Duration, bool) {
	if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return 0, false
	}
	text := resp.Header.Get("Retry-After")
	if n, err := strconv.Atoi(text); err == nil && n > 0 {
		return min(time.Duration(n)*time.Second, maxWait), true
	}
	if at, err := http.ParseTime(text); err == nil && time.Until(at) > 0 {
		return min(time.Until(at), maxWait), true
	}
	return 0, false
}

func plainAllowed(u *url.URL, insecure []string) bool {
	host := u.Hostname()
	if ip := net.ParseIP(host); ip != nil && ip.IsLoopback() || host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	return slices.Contains(insecure, host) || slices.Contains(insecure, u.Host)
}

// secured gives a repository whose registry is spoken to without TLS only if that is allowed.
func (c *Client) secured(r name.Repository) (name.Repository, error) {
	var opts []name.Option
	if plainAllowed(&url.URL{Host: r.RegistryStr()}, c.options.Insecure) {
		opts = append(opts, name.Insecure)
	}
	return name.NewRepository(r.Name(), opts...)
}
