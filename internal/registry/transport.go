package registry

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
)

const (
	userAgent   = "godkms-hermetic"
	requests    = 8 // to one host that wait for an answer at a time
	transfers   = 4 // of blobs by Fetch and Push, from or to one host at a time
	redirects   = 5
	maxAnswer   = 16 << 20 // bytes of an answer that is read into memory
	maxMessage  = 300      // bytes of a registry's own words in an error
	dialTimeout = 10 * time.Second
	slowest     = 4 << 10 // bytes that a transfer must bring within pace.stall
)

// pace is how long things are waited for.
type pace struct {
	tries    int           // of a request, in a row that bring nothing new
	backoff  time.Duration // before the second try, and twice as long before each further one
	patience time.Duration // after which no further try is begun
	asked    time.Duration // the longest wait that a server's Retry-After is granted
	answer   time.Duration // for the head of an answer, and for the whole of a small one
	commit   time.Duration // for the answer to an upload whose bytes have been sent
	stall    time.Duration // for the next bytes of a blob
}

// A registry that refuses connections is given up after 3 to 4 seconds, one that swallows packets after 20, one that takes
// requests and never answers after 30.
var defaultPace = pace{
	tries: 5, backoff: 200 * time.Millisecond, patience: 20 * time.Second, asked: time.Minute,
	answer: 30 * time.Second, commit: 5 * time.Minute, stall: 30 * time.Second,
}

func newTransport() http.RoundTripper {
	return &http.Transport{
		Proxy:                  http.ProxyFromEnvironment,
		DialContext:            (&net.Dialer{Timeout: dialTimeout, KeepAlive: 30 * time.Second}).DialContext,
		TLSHandshakeTimeout:    dialTimeout,
		ForceAttemptHTTP2:      true,
		MaxIdleConnsPerHost:    requests,
		IdleConnTimeout:        30 * time.Second,
		DisableCompression:     true, // ranges and digests count the bytes of the blob
		MaxResponseHeaderBytes: 1 << 20,
		WriteBufferSize:        64 << 10,
	}
}

// guarded refuses plain http where it isn't allowed, redirected requests too.
type guarded struct {
	inner    http.RoundTripper
	insecure []string
}

func (g *guarded) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !plainAllowed(req.URL.Host, g.insecure) {
		if req.Body != nil {
			req.Body.Close()
		}
		return nil, &plainError{req.URL.Host}
	}
	return g.inner.RoundTrip(req)
}

// plainError says that a host without TLS was not spoken to.
type plainError struct{ host string }

func (e *plainError) Error() string {
	return fmt.Sprintf("%s has no TLS: --insecure-registry %s allows that", e.host, e.host)
}

func plainAllowed(host string, insecure []string) bool {
	u := url.URL{Host: host}
	return loopback(host) || slices.Contains(insecure, u.Hostname()) || slices.Contains(insecure, host)
}

// loopback tells whether a host, with or without port, is this machine by its name.
func loopback(host string) bool {
	u := url.URL{Host: host}
	h := u.Hostname()
	ip := net.ParseIP(h)
	return ip != nil && ip.IsLoopback() || h == "localhost" || strings.HasSuffix(h, ".localhost")
}

// internal tells whether a host is an address that only a network's own machines reach.
func internal(host string) bool {
	ip := net.ParseIP(host)
	return ip != nil && (ip.IsLoopback() || ip.IsPrivate() || ip.IsLinkLocalUnicast() || ip.IsUnspecified()) || loopback(host)
}

// mayFollow tells whether a registry at one URL may send a client to another.
func mayFollow(from, to *url.URL) error {
	switch {
	case to.Scheme != "https" && to.Scheme != "http", to.Scheme == "http" && from.Scheme == "https":
		return fmt.Errorf("%s refers to %s without TLS", from.Host, to.Host)
	case internal(to.Hostname()) && !internal(from.Hostname()):
		return fmt.Errorf("%s refers to the internal address %s", from.Host, to.Host)
	}
	return nil
}

// origin is the scheme, host and port of a URL.
func origin(u *url.URL) string {
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[u.Scheme]
	}
	return u.Scheme + "://" + net.JoinHostPort(strings.ToLower(u.Hostname()), port)
}

// brokenError is a request that got no answer, or not the whole of one.
type brokenError struct{ error }

func (e *brokenError) Unwrap() error { return e.error }

// answerError is an answer other than the one that was hoped for.
type answerError struct {
	method, url string
	status      int
	codes       []string // distribution-spec, "Error Codes"
	message     string
	after       time.Duration // to wait, as the server asks
	lost        bool          // the server has forgotten an upload: another may succeed
	manifest    bool          // it is about a manifest
}

// passing tells whether the same request may have a better answer later.
func (e *answerError) passing() bool {
	switch e.status {
	case http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusBadGateway,
		http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return true
	}
	return e.lost || slices.ContainsFunc(e.codes, func(code string) bool {
		switch code {
		case "TOOMANYREQUESTS", "UNAVAILABLE":
			return true
		case "MANIFEST_BLOB_UNKNOWN", "BLOB_UNKNOWN", "DIGEST_INVALID":
			// Of what has been sent: distribution misses a blob for a moment when another client sends it too.
			return e.manifest && e.method == http.MethodPut
		}
		return false
	})
}

// answered gives the answer that an error is, or nil. What ended ctx may be the answer to another request.
func answered(ctx context.Context, err error) *answerError {
	if e := (*answerError)(nil); ctx.Err() == nil && errors.As(err, &e) {
		return e
	}
	return nil
}

// finalError is one that has been retried enough.
type finalError struct{ error }

func (e *finalError) Unwrap() error { return e.error }

func (e *answerError) Error() string {
	s := fmt.Sprintf("%s %s: %d %s", e.method, e.url, e.status, http.StatusText(e.status))
	if e.message != "" {
		s += ": " + e.message
	}
	if e.after > 0 {
		s += fmt.Sprintf("; it asks to wait %s", e.after.Round(time.Second))
	}
	return s
}

// answer makes an error of a response and closes it.
func answer(resp *http.Response) *answerError {
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10)) // what has come says enough
	e := &answerError{method: resp.Request.Method, url: redacted(resp.Request.URL), status: resp.StatusCode, after: retryAfter(resp),
		manifest: strings.Contains(resp.Request.URL.Path, "/manifests/")}
	var said struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(body, &said) != nil || len(said.Errors) == 0 {
		if !strings.Contains(resp.Header.Get("Content-Type"), "html") {
			e.message = printable(string(body))
		}
		return e
	}
	var words []string
	for _, d := range said.Errors {
		e.codes = append(e.codes, d.Code)
		words = append(words, strings.Trim(d.Code+": "+d.Message, ": "))
	}
	e.message = printable(strings.Join(words, "; "))
	return e
}

// redacted is a URL without what may be secret: signed URLs of storage services have that behind the question mark.
func redacted(u *url.URL) string {
	return printable((&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}).String())
}

// printable makes a hostile text fit for a terminal.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return ' '
		}
		if !unicode.IsPrint(r) || r == unicode.ReplacementChar {
			return -1
		}
		return r
	}, strings.TrimSpace(s))
	if len(s) > maxMessage {
		s = strings.ToValidUTF8(s[:maxMessage], "") + "…"
	}
	return s
}

// retryAfter reads how long a server asks to wait (RFC 9110, 10.2.3); 0 if it doesn't.
func retryAfter(resp *http.Response) time.Duration {
	if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return 0
	}
	text := resp.Header.Get("Retry-After")
	if n, err := strconv.ParseUint(text, 10, 31); err == nil {
		return time.Duration(n) * time.Second
	}
	if at, err := http.ParseTime(text); err == nil {
		return max(time.Until(at), 0)
	}
	return 0
}

// temporary tells whether another try may succeed.
func temporary(err error) bool {
	if errors.As(err, new(*finalError)) {
		return false
	}
	if e := (*answerError)(nil); errors.As(err, &e) {
		return e.passing()
	}
	if !errors.As(err, new(*brokenError)) {
		return false
	}
	if dns := (*net.DNSError)(nil); errors.As(err, &dns) {
		return !dns.IsNotFound
	}
	return !errors.As(err, new(*plainError)) && !errors.As(err, new(*tls.CertificateVerificationError)) &&
		!errors.As(err, new(tls.RecordHeaderError)) && !errors.Is(err, http.ErrSchemeMismatch)
}

// failure says of what kind an error is.
func failure(err error) error {
	for _, kind := range []error{nil, context.Canceled, context.DeadlineExceeded, ErrNotFound, ErrDenied, ErrUnavailable, ErrAltered, ErrRefused} {
		if errors.Is(err, kind) {
			return err
		}
	}
	if e := (*answerError)(nil); errors.As(err, &e) {
		switch {
		case e.passing(), e.status >= 500:
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		case e.status == http.StatusNotFound:
			return fmt.Errorf("%w: %w", ErrNotFound, err)
		case e.status == http.StatusUnauthorized, e.status == http.StatusForbidden,
			slices.Contains(e.codes, "DENIED"), slices.Contains(e.codes, "UNAUTHORIZED"):
			return fmt.Errorf("%w: %w", ErrDenied, err)
		}
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	if !errors.As(err, new(*brokenError)) {
		return err
	}
	hint := ""
	if dns := (*net.DNSError)(nil); errors.As(err, &dns) && dns.IsNotFound {
		hint = "; is the name right?"
	} else if errors.As(err, new(*tls.CertificateVerificationError)) {
		hint = "; have this machine trust its certificate's authority, or name a file with that in SSL_CERT_FILE"
	}
	return fmt.Errorf("%w: %w%s", ErrUnavailable, err, hint)
}

// retry does something again for as long as its failure may be a passing one.
func (p pace) retry(ctx context.Context, op func() error) error {
	start := time.Now()
	for try, wait := 1, p.backoff; ; try, wait = try+1, 2*wait {
		err := op()
		if err == nil || ctx.Err() != nil {
			return err
		}
		pause := wait + rand.N(wait/4+1)
		if e := (*answerError)(nil); errors.As(err, &e) && e.after > 0 {
			if e.after > p.asked {
				return err
			}
			pause = max(pause, e.after)
			start = start.Add(e.after)
		}
		if !temporary(err) || try == p.tries || time.Since(start) > p.patience {
			return err
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// take takes a slot of a limit, until it is called back.
func take(ctx context.Context, slots chan struct{}) (func(), error) {
	select {
	case slots <- struct{}{}:
		return func() { <-slots }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// watch ends a request that nothing comes of.
type watch struct {
	timer *time.Timer
	n     atomic.Int64 // bytes since it was set
}

func newWatch(limit time.Duration, cancel context.CancelCauseFunc, why error) *watch {
	return &watch{timer: time.AfterFunc(limit, func() { cancel(&brokenError{why}) })}
}

// moved sets the watch anew when enough bytes have moved.
func (w *watch) moved(n int, limit time.Duration) {
	if w.n.Add(int64(n)) >= slowest {
		w.n.Store(0)
		w.timer.Reset(limit)
	}
}
