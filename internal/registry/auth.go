package registry

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
)

// host is a registry that has been spoken to. Its limits can't lock up: a request holds one of requests until the head of its answer
// is there, a transfer one of transfers until the blob has been moved, and whoever holds one waits for nothing else of the kind.
// Blobs that a caller reads at its own pace count for neither.
type host struct {
	requests, transfers chan struct{}
	found               chan struct{} // holds one; who takes it may look for
	scheme              string        // empty: not found yet
	challenge           []string      // the WWW-Authenticate headers that the registry answers with
	noReferrers         atomic.Bool   // it has no referrers API
}

func (c *Client) host(r name.Registry) *host {
	c.mu.Lock()
	defer c.mu.Unlock()
	h, ok := c.hosts[r.RegistryStr()]
	if !ok {
		h = &host{requests: make(chan struct{}, requests), transfers: make(chan struct{}, transfers), found: make(chan struct{}, 1)}
		c.hosts[r.RegistryStr()] = h
	}
	return h
}

// access is what one repository is spoken to with: either for reading or for writing too.
type access struct {
	client *Client
	repo   name.Repository
	host   *host
	scopes []string
	http   *http.Client
	turn   chan struct{} // holds one; who takes it may change what follows
	header string        // Authorization
	asked  bool          // whether the host's challenge has been met
}

// access gives a repository's access, which is made once. actions are the token specification's; from are other repositories of the
// same registry that are to be read.
func (c *Client) access(repo name.Repository, actions string, from ...name.Repository) *access {
	scopes := []string{repo.Scope(actions)}
	for _, r := range from {
		scopes = append(scopes, r.Scope(transport.PullScope))
	}
	key := repo.RegistryStr() + " " + strings.Join(scopes, " ")
	h := c.host(repo.Registry)
	c.mu.Lock()
	defer c.mu.Unlock()
	a, ok := c.accesses[key]
	if !ok {
		a = &access{client: c, repo: repo, host: h, scopes: scopes, turn: make(chan struct{}, 1)}
		a.http = &http.Client{Transport: a, CheckRedirect: checkRedirect}
		c.accesses[key] = a
	}
	return a
}

func checkRedirect(req *http.Request, via []*http.Request) error {
	last := via[len(via)-1]
	switch {
	case len(via) > redirects:
		return fmt.Errorf("%s redirects more than %d times", via[0].URL.Host, redirects)
	case req.Method != last.Method:
		return fmt.Errorf("%s redirects a %s request", last.URL.Host, last.Method)
	}
	return mayFollow(last.URL, req.URL)
}

// RoundTrip keeps the credentials to the registry's own origin: net/http alone would take them to other ports and subdomains.
func (a *access) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Header.Get("Authorization") != "" && origin(req.URL) != a.origin() {
		req = req.Clone(req.Context())
		req.Header.Del("Authorization")
	}
	return a.client.transport.RoundTrip(req)
}

func (a *access) origin() string {
	return origin(&url.URL{Scheme: a.host.scheme, Host: a.repo.RegistryStr()})
}

// open finds out how the registry wants to be spoken to, and logs in.
func (a *access) open(ctx context.Context) error {
	h := a.host
	done, err := take(ctx, h.found)
	if err != nil {
		return err
	}
	if h.scheme == "" {
		err = a.find(ctx)
	}
	done()
	if err != nil {
		return err
	}
	done, err = take(ctx, a.turn)
	if err != nil {
		return err
	}
	defer done()
	if a.asked || len(h.challenge) == 0 {
		return nil
	}
	if err := a.login(ctx, h.challenge); err != nil {
		return err
	}
	a.asked = true
	return nil
}

// find looks at /v2/: with TLS, and without where that is allowed and what answers is not TLS.
func (a *access) find(ctx context.Context) error {
	host := a.repo.RegistryStr()
	schemes := []string{"https"}
	if plainAllowed(host, a.client.options.Insecure) {
		schemes = append(schemes, "http")
	}
	var err error
	for _, scheme := range schemes {
		var resp *http.Response
		u := &url.URL{Scheme: scheme, Host: host, Path: "/v2/"}
		resp, err = a.try(ctx, request{method: http.MethodGet, url: u}, "")
		if err == nil {
			if resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests {
				return answer(resp)
			}
			resp.Body.Close()
			a.host.scheme = scheme
			if resp.StatusCode == http.StatusUnauthorized {
				a.host.challenge = resp.Header.Values("WWW-Authenticate")
			}
			return nil
		}
		if ctx.Err() != nil || errors.As(err, new(*tls.CertificateVerificationError)) {
			return err
		}
	}
	if len(schemes) == 1 && errors.Is(err, http.ErrSchemeMismatch) {
		return fmt.Errorf("%w: %w", ErrUnavailable, &plainError{host})
	}
	return err
}

// login gets the Authorization header that a challenge asks for; an empty one where there are no credentials.
func (a *access) login(ctx context.Context, challenge []string) error {
	plain := a.host.scheme == "http" && !loopback(a.repo.RegistryStr())
	auth := authn.AuthConfig{}
	if !plain {
		var err error
		if auth, err = credentials(ctx, a.client.options.Keychain, a.repo); err != nil {
			return err
		}
	}
	scheme, params := parseChallenges(challenge)
	switch {
	case auth.RegistryToken != "":
		a.header = "Bearer " + auth.RegistryToken
	case scheme == "basic" && auth.Username != "" && auth.Password != "":
		a.header = "Basic " + base64.StdEncoding.EncodeToString([]byte(auth.Username+":"+auth.Password))
	case scheme == "basic" && auth.Auth != "":
		a.header = "Basic " + auth.Auth
	case scheme == "basic" && plain:
		return fmt.Errorf("%w: %s wants credentials, and they are not sent without TLS", ErrDenied, a.repo.RegistryStr())
	case scheme == "bearer":
		token, err := a.token(ctx, auth, params)
		if err != nil {
			return err
		}
		a.header = "Bearer " + token
	default:
		a.header = ""
	}
	return nil
}

// credentials asks the keychain, which may run programs that wait for a person.
func credentials(ctx context.Context, keys authn.Keychain, repo name.Repository) (authn.AuthConfig, error) {
	type result struct {
		auth *authn.AuthConfig
		err  error
	}
	got := make(chan result, 1)
	go func() {
		auth, err := authn.Resolve(ctx, keys, repo)
		if err != nil {
			got <- result{nil, err}
			return
		}
		config, err := authn.Authorization(ctx, auth)
		got <- result{config, err}
	}()
	select {
	case <-ctx.Done():
		return authn.AuthConfig{}, context.Cause(ctx)
	case r := <-got:
		if r.err != nil {
			return authn.AuthConfig{}, fmt.Errorf("%w: credentials for %s: %s", ErrDenied, repo.RegistryStr(), printable(r.err.Error()))
		}
		return *r.auth, nil
	}
}

// token exchanges credentials, or none, for a token (distribution's token specification).
func (a *access) token(ctx context.Context, auth authn.AuthConfig, params map[string]string) (string, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, a.client.pace.answer, &brokenError{errors.New("no token came for too long")})
	defer cancel()
	scopes := a.scopes
	if s := params["scope"]; s != "" && !slices.Contains(scopes, s) {
		scopes = append([]string{s}, scopes...) // first: some look at no other
	}
	got, err := transport.Exchange(ctx, a.repo.Registry, authn.FromConfig(auth), a.client.transport, scopes,
		&transport.Challenge{Scheme: "bearer", Parameters: params, Insecure: a.host.scheme == "http"})
	where := params["realm"]
	if u, perr := url.Parse(where); perr == nil {
		where = redacted(u)
	}
	// What it answered is never part of an error: there may be a token in it.
	switch e, u := (*transport.Error)(nil), (*url.Error)(nil); {
	case err == nil && got.AccessToken != "":
		return got.AccessToken, nil
	case err == nil && got.Token != "":
		return got.Token, nil
	case ctx.Err() != nil:
		return "", context.Cause(ctx)
	case errors.As(err, &e):
		return "", &answerError{method: http.MethodGet, url: where, status: e.StatusCode}
	case errors.As(err, &u):
		return "", &brokenError{fmt.Errorf("get a token from %s: %w", where, u.Err)}
	case strings.HasPrefix(err.Error(), "malformed www-authenticate"), strings.HasPrefix(err.Error(), "invalid realm"): // what it challenged with
		return "", fmt.Errorf("%w: get a token: %s", ErrDenied, printable(err.Error()))
	}
	return "", fmt.Errorf("%w: %s answers without a token", ErrDenied, where)
}

// again logs in anew after an answer said that a header is not, or no more, enough. It tells whether there is another to try, and
// whether another request had got that.
func (a *access) again(ctx context.Context, challenge []string, used string) (more, others bool, err error) {
	done, err := take(ctx, a.turn)
	if err != nil {
		return false, false, err
	}
	defer done()
	if a.header != used {
		return true, true, nil
	}
	err = a.login(ctx, challenge)
	return err == nil && a.header != used, false, err
}

func (a *access) authorization(ctx context.Context) (string, error) {
	done, err := take(ctx, a.turn)
	if err != nil {
		return "", err
	}
	defer done()
	return a.header, nil
}

// request is one to a registry.
type request struct {
	method string
	url    *url.URL
	header map[string]string
	// body opens what is sent, for each try anew; nil is nothing.
	body func() (io.ReadCloser, error)
	size int64 // of the body
	// blob tells that a blob is sent or asked for: it takes as long as bytes come.
	blob bool
}

// url is that of a path in the repository.
func (a *access) url(path string) *url.URL {
	return &url.URL{Scheme: a.host.scheme, Host: a.repo.RegistryStr(), Path: "/v2/" + a.repo.RepositoryStr() + path}
}

// send makes a request once, and again when its authorization isn't enough any more. Answers other than those wanted are errors.
func (a *access) send(ctx context.Context, r request, want ...int) (*http.Response, error) {
	const most = 5
	last := false // it has logged in itself
	for try := 1; ; try++ {
		used, err := a.authorization(ctx)
		if err != nil {
			return nil, err
		}
		resp, err := a.try(ctx, r, used)
		if err != nil {
			return nil, err
		}
		if slices.Contains(want, resp.StatusCode) {
			return resp, nil
		}
		denied := answer(resp)
		if challenge := resp.Header.Values("WWW-Authenticate"); resp.StatusCode == http.StatusUnauthorized && !last && try < most && len(challenge) > 0 {
			more, others, err := a.again(ctx, challenge, used)
			if err != nil {
				return nil, err
			}
			if last = !others; more {
				continue
			}
		}
		return nil, denied
	}
}

// try makes a request once. Whatever the answer is, its body must be closed.
func (a *access) try(parent context.Context, r request, authorization string) (*http.Response, error) {
	if r.body == nil || !r.blob {
		done, err := take(parent, a.host.requests)
		if err != nil {
			return nil, err
		}
		defer done()
	}
	ctx, cancel := context.WithCancelCause(parent)
	pace := a.client.pace
	w := newWatch(pace.answer, cancel, fmt.Errorf("%s %s: nothing came for too long", r.method, redacted(r.url)))
	fail := func(err error) (*http.Response, error) {
		w.timer.Stop()
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		cancel(nil)
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, r.method, r.url.String(), nil)
	if err != nil {
		return fail(err)
	}
	for k, v := range r.header {
		req.Header.Set(k, v)
	}
	req.Header.Set("User-Agent", userAgent)
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	var source sourceError
	if r.body != nil && r.size > 0 {
		req.ContentLength = r.size
		req.GetBody = func() (io.ReadCloser, error) {
			b, err := r.body()
			if err != nil {
				source.set(err)
				return nil, err
			}
			body := &sent{ReadCloser: b, watch: w, pace: pace, blob: r.blob, left: r.size, failed: &source}
			context.AfterFunc(ctx, func() { body.Close() }) // net/http waits for a Read to end, whatever it is told
			return body, nil
		}
		if req.Body, err = req.GetBody(); err != nil {
			return fail(err)
		}
	}
	resp, err := a.http.Do(req)
	if err != nil {
		if serr := source.get(); serr != nil && parent.Err() == nil {
			w.timer.Stop()
			cancel(nil)
			return nil, serr
		}
		return fail(broken(r, err))
	}
	if r.blob {
		w.timer.Reset(pace.stall)
	}
	resp.Body = &received{body: resp.Body, watch: w, limit: pace.stall, blob: r.blob, ctx: ctx, cancel: cancel}
	return resp, nil
}

// broken describes a request without an answer. net/http names the URL in full, the query too.
func broken(r request, err error) error {
	u := r.url
	if e := (*url.Error)(nil); errors.As(err, &e) {
		if at, perr := url.Parse(e.URL); perr == nil {
			u = at
		}
		err = e.Err
	}
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return &brokenError{fmt.Errorf("%s %s: %w", r.method, redacted(u), err)}
}

// received is an answer's body. It fails when nothing comes for too long: small ones have to be there in the time that their head had.
type received struct {
	body   io.ReadCloser
	watch  *watch
	limit  time.Duration
	blob   bool
	ctx    context.Context // the request's own
	cancel context.CancelCauseFunc
}

func (b *received) Read(p []byte) (int, error) {
	n, err := b.body.Read(p)
	if b.blob {
		b.watch.moved(n, b.limit)
	}
	if err != nil && err != io.EOF {
		if cause := context.Cause(b.ctx); cause != nil {
			return n, cause
		}
		err = &brokenError{err}
	}
	return n, err
}

func (b *received) Close() error {
	b.watch.timer.Stop()
	defer b.cancel(nil)
	return b.body.Close()
}

// sent is a request's body.
type sent struct {
	io.ReadCloser
	watch  *watch
	pace   pace
	blob   bool
	left   int64
	failed *sourceError
	closed atomic.Bool
	once   sync.Once
}

func (b *sent) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if b.left -= int64(n); b.blob && b.left <= 0 {
		b.watch.timer.Reset(b.pace.commit)
	} else if b.blob {
		b.watch.moved(n, b.pace.stall)
	}
	switch {
	case b.closed.Load(): // as the connection broke
	case err == io.EOF && b.left > 0:
		b.failed.set(fmt.Errorf("%w: it ends %d bytes early", ErrAltered, b.left))
	case err != nil && err != io.EOF:
		b.failed.set(err)
	}
	return n, err
}

func (b *sent) Close() error {
	b.closed.Store(true)
	var err error
	b.once.Do(func() { err = b.ReadCloser.Close() })
	return err
}

// sourceError is why what was to be sent could not be read.
type sourceError struct{ err atomic.Pointer[error] }

func (s *sourceError) set(err error) { s.err.Store(&err) }

func (s *sourceError) get() error {
	if p := s.err.Load(); p != nil {
		return *p
	}
	return nil
}

// small makes a request again and again for as long as its failure may be a passing one, and reads its whole answer, of at most limit
// bytes.
func (a *access) small(ctx context.Context, r request, limit int64, want ...int) (resp *http.Response, body []byte, err error) {
	err = a.client.pace.retry(ctx, func() error {
		if resp, err = a.send(ctx, r, want...); err != nil {
			return err
		}
		defer resp.Body.Close()
		if body, err = io.ReadAll(io.LimitReader(resp.Body, limit+1)); err != nil {
			return err
		}
		if int64(len(body)) > limit {
			return fmt.Errorf("%w: %s answers with more than %d bytes", ErrAltered, redacted(r.url), limit)
		}
		return nil
	})
	return resp, body, err
}

// ready opens the access, again and again if need be.
func (a *access) ready(ctx context.Context) error {
	return a.client.pace.retry(ctx, func() error { return a.open(ctx) })
}
