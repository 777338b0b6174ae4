package registry_test

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/authn/github"

	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
)

const password = "s3cr3t-pa55word"

// config has no other credentials than these, for DOCKER_CONFIG.
func config(t *testing.T, content any) {
	t.Helper()
	b, err := json.Marshal(content)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write(t, b, dir, "config.json")
	t.Setenv("HOME", dir)
	t.Setenv("XDG_RUNTIME_DIR", dir)
	t.Setenv("DOCKER_CONFIG", dir)
}

func login(host, user, password string) map[string]any {
	return map[string]any{"auths": map[string]any{host: map[string]string{"auth": base64.StdEncoding.EncodeToString([]byte(user + ":" + password))}}}
}

var usual = authn.NewMultiKeychain(authn.DefaultKeychain, github.Keychain)

// basic has a server ask for a password.
func basic(s *server) {
	s.breaks(func(w http.ResponseWriter, r *http.Request) bool {
		if user, pass, _ := r.BasicAuth(); user != "tester" || pass != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(401)
			io.WriteString(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`)
			return true
		}
		return false
	})
}

func TestBasicAuth(t *testing.T) {
	img := layers(t, 1, 1000)
	s := serve(t)
	basic(s)
	try := func() error {
		return open(t, client(t, registry.Options{Keychain: usual}), s.host()+"/team/mod").Push(t.Context(), "1.0", img)
	}
	config(t, login(s.host(), "tester", password))
	if err := try(); err != nil {
		t.Fatal(err)
	}
	basic(s)
	config(t, login(s.host(), "tester", "wr0ng-"+password))
	if err := try(); !errors.Is(err, registry.ErrDenied) || strings.Contains(err.Error(), password) || strings.Contains(err.Error(), "dGVzd") {
		t.Errorf("with a wrong password: %v; want ErrDenied", err)
	}
	if n := s.count("", ""); n > 5 { // two blobs at once, and /v2/ with TLS and without
		t.Errorf("%d requests with a wrong password", n)
	}
	config(t, map[string]any{})
	if err := try(); !errors.Is(err, registry.ErrDenied) {
		t.Errorf("without a password: %v; want ErrDenied", err)
	}
	// A credential helper, for this registry and for all.
	bin := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\nread host\n[ \"$1 $host\" = 'get %s' ] || { echo 'credentials not found in native keychain'; exit 1; }\necho '{\"Username\":\"tester\",\"Secret\":\"%s\"}'\n", s.host(), password)
	if err := os.WriteFile(filepath.Join(bin, "docker-credential-test"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	for _, c := range []map[string]any{{"credsStore": "test"}, {"credHelpers": map[string]string{s.host(): "test"}}} {
		config(t, c)
		if err := try(); err != nil {
			t.Errorf("with %v: %v", c, err)
		}
	}
	config(t, map[string]any{"credsStore": "no-such"})
	if err := try(); !errors.Is(err, registry.ErrDenied) || !strings.Contains(err.Error(), "no-such") {
		t.Errorf("with a helper that isn't there: %v; want ErrDenied", err)
	}
}

// Tokens that run out in the middle, of an upload too, are replaced.
func TestBearerAuth(t *testing.T) {
	s := serve(t)
	var mu sync.Mutex
	valid, given := map[string]int{}, 0 // requests that a token is good for still
	var scopes []string
	bearer := func(uses int) {
		s.breaks(func(w http.ResponseWriter, r *http.Request) bool {
			mu.Lock()
			defer mu.Unlock()
			if r.URL.Path == "/token" {
				user, pass, ok := r.BasicAuth()
				if ok && (user != "tester" || pass != password) {
					w.WriteHeader(401)
					fmt.Fprintf(w, "no %s", pass)
					return true
				}
				given++
				token := fmt.Sprintf("token%d", given)
				if ok {
					valid[token] = uses
				}
				scopes = append(scopes, r.URL.Query()["scope"]...)
				fmt.Fprintf(w, `{"token":%q,"expires_in":60}`, token)
				return true
			}
			token := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
			if valid[token]--; valid[token] < 0 {
				w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="test",scope="repository:team/mod:pull"`, s.host()))
				w.WriteHeader(401)
				return true
			}
			return false
		})
	}
	config(t, login(s.host(), "tester", password))
	img := layers(t, 1, 3_000_000, 2000)
	for _, uses := range []int{5, 7, 100} {
		bearer(uses)
		c := client(t, registry.Options{Keychain: usual})
		repo := open(t, c, fmt.Sprintf("%s/team/mod%d", s.host(), uses))
		if err := repo.Push(t.Context(), "1.0", img); err != nil {
			t.Fatalf("tokens for %d requests: %v", uses, err)
		}
		got, err := c.Fetch(t.Context(), repo, "1.0", t.TempDir(), nil)
		if err != nil {
			t.Fatalf("tokens for %d requests: %v", uses, err)
		}
		same(t, got, img)
	}
	if !strings.Contains(strings.Join(scopes, " "), "repository:team/mod100:push,pull") {
		t.Errorf("scopes: %q", scopes)
	}
	bearer(100)
	config(t, login(s.host(), "tester", "wr0ng"))
	if _, err := open(t, client(t, registry.Options{Keychain: usual}), s.host()+"/team/mod").Tags(t.Context()); !errors.Is(err, registry.ErrDenied) || strings.Contains(err.Error(), "wr0ng") {
		t.Errorf("with a wrong password: %v; want ErrDenied", err)
	}
	if n := s.count("GET", "/token"); n != 1 {
		t.Errorf("asked %d times for a token with a wrong password", n)
	}
	config(t, map[string]any{})
	if _, err := open(t, client(t, registry.Options{Keychain: usual}), s.host()+"/team/mod").Tags(t.Context()); !errors.Is(err, registry.ErrDenied) {
		t.Errorf("with a token for nobody: %v; want ErrDenied", err)
	}
}

func TestParseChallenges(t *testing.T) {
	for _, tt := range []struct {
		headers []string
		scheme  string
		params  map[string]string
	}{
		{[]string{`Bearer realm="https://auth.example/token",service="registry.example",scope="repository:a/b:pull,push"`}, "bearer",
			map[string]string{"realm": "https://auth.example/token", "service": "registry.example", "scope": "repository:a/b:pull,push"}},
		{[]string{`Basic realm="a \"b\", c"`}, "basic", map[string]string{"realm": `a "b", c`}},
		{[]string{"Negotiate", `BASIC realm=x , charset="UTF-8"`}, "basic", map[string]string{"realm": "x", "charset": "UTF-8"}},
		{[]string{`Negotiate abc==, Basic realm="x", Bearer Realm="y"`}, "bearer", map[string]string{"realm": "y"}},
		{[]string{`Bearer realm="unended`}, "bearer", map[string]string{"realm": "unended"}},
		{[]string{"", ",", "=", "Digest"}, "", nil},
	} {
		if scheme, params := registry.ParseChallenges(tt.headers); scheme != tt.scheme || !maps.Equal(params, tt.params) {
			t.Errorf("%q: %q, %q; want %q, %q", tt.headers, scheme, params, tt.scheme, tt.params)
		}
	}
}

func FuzzParseChallenges(f *testing.F) {
	f.Add(`Bearer realm="x",scope="y", Basic a=b`)
	f.Fuzz(func(t *testing.T, s string) { registry.ParseChallenges([]string{s}) }) // ends
}

// Redirects don't get the credentials, also not those to another port of the same host.
func TestRedirects(t *testing.T) {
	img := layers(t, 1, 1000)
	d, content := layer(t, img, 0)
	s := serve(t)
	config(t, login(s.host(), "tester", password))
	repo := open(t, client(t, registry.Options{Keychain: usual}), s.host()+"/team/mod")
	if err := repo.Push(t.Context(), "1.0", img); err != nil {
		t.Fatal(err)
	}
	var leaked atomic.Int64
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			leaked.Add(1)
		}
		if r.URL.Query().Get("sig") != "signature" {
			w.WriteHeader(403)
			return
		}
		w.Write(content)
	}))
	defer other.Close()
	to := other.URL + "/blob?sig=signature"
	s.breaks(func(w http.ResponseWriter, r *http.Request) bool {
		if user, _, _ := r.BasicAuth(); user != "tester" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(401)
			return true
		}
		if !strings.Contains(r.URL.Path, d.Digest.Hex) {
			return false
		}
		http.Redirect(w, r, to, http.StatusTemporaryRedirect)
		return true
	})
	read := func() error {
		repo := open(t, client(t, registry.Options{Keychain: usual}), s.host()+"/team/mod")
		rc, err := repo.Blob(t.Context(), d)
		if err != nil {
			return err
		}
		defer rc.Close()
		_, err = io.Copy(io.Discard, rc)
		return err
	}
	if err := read(); err != nil {
		t.Fatal(err)
	}
	if leaked.Load() > 0 {
		t.Error("the other server got the credentials")
	}
	to = other.URL + "/blob?sig=other-signature"
	if err := read(); !errors.Is(err, registry.ErrDenied) || strings.Contains(err.Error(), "signature") {
		t.Errorf("a signature that is refused: %v; want ErrDenied, and not the signature", err)
	}
	to = s.URL + "/v2/team/mod/blobs/" + d.Digest.String() // for ever
	if err := read(); err == nil || !strings.Contains(err.Error(), "redirects more than") {
		t.Errorf("a loop: %v", err)
	}
	for _, bad := range []string{"http://registry.example/blob", "ftp://127.0.0.1/blob"} {
		to = bad
		if err := read(); err == nil {
			t.Errorf("followed to %s", bad)
		}
	}
}

// Without TLS only the loopback device is spoken to, and what was named; with credentials only the first. Networks and names that
// others take for local are not.
func TestPlain(t *testing.T) {
	s := serve(t)
	basic(s)
	var asked []string
	var mu sync.Mutex
	transport := roundTripper(func(r *http.Request) (*http.Response, error) {
		mu.Lock()
		asked = append(asked, r.URL.Scheme+"://"+r.URL.Host+" "+r.Header.Get("Authorization"))
		mu.Unlock()
		if r.URL.Scheme == "https" {
			return nil, http.ErrSchemeMismatch
		}
		r = r.Clone(r.Context())
		r.URL.Host = s.host()
		return http.DefaultTransport.RoundTrip(r)
	})
	keys := keychain{authn.FromConfig(authn.AuthConfig{Username: "tester", Password: password})}
	for _, tt := range []struct {
		host     string
		insecure []string
		plain    bool
		want     error
		text     string
	}{
		{"localhost:5000", nil, true, registry.ErrNotFound, ""},
		{"127.0.0.1:5000", nil, true, registry.ErrNotFound, ""},
		{"[::1]:5000", nil, true, registry.ErrNotFound, ""},
		{"10.0.0.1:5000", nil, false, registry.ErrUnavailable, "--insecure-registry 10.0.0.1:5000"},
		{"192.168.1.1", nil, false, registry.ErrUnavailable, "--insecure-registry 192.168.1.1"},
		{"registry.local:5000", nil, false, registry.ErrUnavailable, "--insecure-registry"},
		{"registry.example", []string{"registry.example:5000"}, false, registry.ErrUnavailable, "--insecure-registry"},
		{"registry.example:5000", []string{"registry.example:5000"}, true, registry.ErrDenied, "not sent without TLS"},
		{"registry.example:5001", []string{"registry.example"}, true, registry.ErrDenied, "not sent without TLS"},
	} {
		asked = nil
		_, err := open(t, client(t, registry.Options{Keychain: keys, Insecure: tt.insecure, Transport: transport}), tt.host+"/team/mod").Tags(t.Context())
		if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v; want %v with %q", tt.host, err, tt.want, tt.text)
		}
		all := strings.Join(asked, "\n")
		if plain := strings.Contains(all, "http://"); plain != tt.plain {
			t.Errorf("%s: asked %q", tt.host, all)
		}
		if strings.Contains(all, "Basic") && !errors.Is(tt.want, registry.ErrNotFound) {
			t.Errorf("%s: it got the credentials", tt.host)
		}
	}
}

// A registry with TLS can't lead to what has none, or into this network.
func TestLeadsAway(t *testing.T) {
	for _, to := range []string{"http://127.0.0.1:1/away", "http://registry.example/away", "https://127.0.0.1:1/away", "https://10.0.0.1/away", "https://169.254.169.254/away"} {
		for _, location := range []bool{false, true} {
			var mu sync.Mutex
			var asked []string
			transport := roundTripper(func(r *http.Request) (*http.Response, error) {
				mu.Lock()
				asked = append(asked, r.URL.String())
				mu.Unlock()
				resp := &http.Response{Request: r, StatusCode: 200, Header: http.Header{}, Body: http.NoBody}
				switch {
				case r.URL.Path == "/v2/":
				case location && r.Method == "HEAD":
					resp.StatusCode = 404
				case location && r.Method == "POST":
					resp.StatusCode = 202
					resp.Header.Set("Location", to)
				default:
					resp.StatusCode = 307
					resp.Header.Set("Location", to)
				}
				return resp, nil
			})
			repo := open(t, client(t, registry.Options{Transport: transport, Insecure: []string{"registry.example"}}), "example.com/team/mod")
			var err error
			if location {
				err = repo.Push(t.Context(), "1.0", layers(t, 1, 10))
			} else {
				_, err = repo.Tags(t.Context())
			}
			mu.Lock() // a second request may be on its way still
			all := strings.Join(asked, " ")
			mu.Unlock()
			if err == nil || strings.Contains(all, "/away") {
				t.Errorf("%s: %v, asked %s", to, err, all)
			}
		}
	}
}

type roundTripper func(r *http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

type keychain struct{ authn.Authenticator }

func (k keychain) Resolve(authn.Resource) (authn.Authenticator, error) { return k.Authenticator, nil }

// The environment's proxies are used. It is read once by a process, so another one does it.
func TestProxy(t *testing.T) {
	if host := os.Getenv("TEST_PROXIED"); host != "" {
		for _, ref := range []string{"plain.example/team/mod", "tls.example/team/mod", "direct.invalid/team/mod"} {
			tags, err := open(t, client(t, registry.Options{Insecure: []string{"plain.example", "direct.invalid"}}), ref).Tags(t.Context())
			fmt.Println(ref, tags, err)
		}
		return
	}
	img := layers(t, 1, 10)
	s := seeded(t, img)
	tls := httptest.NewUnstartedServer(s.Config.Handler)
	tls.StartTLS()
	defer tls.Close()
	var mu sync.Mutex
	var asked []string
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		asked = append(asked, r.Method+" "+r.Host)
		mu.Unlock()
		to := s.host()
		if r.Method == "CONNECT" {
			if r.Host != "tls.example:443" {
				w.WriteHeader(502)
				return
			}
			to = strings.TrimPrefix(tls.URL, "https://")
			there, err := net.Dial("tcp", to)
			if err != nil {
				w.WriteHeader(502)
				return
			}
			w.WriteHeader(200)
			here, buf, err := w.(http.Hijacker).Hijack()
			if err != nil {
				return
			}
			go func() { io.Copy(there, buf); there.Close() }()
			io.Copy(here, there)
			here.Close()
			return
		}
		r.URL.Host, r.RequestURI = to, ""
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			w.WriteHeader(502)
			return
		}
		defer resp.Body.Close()
		maps.Copy(w.Header(), resp.Header)
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, resp.Body)
	}))
	defer proxy.Close()
	cmd := exec.Command(os.Args[0], "-test.run=^TestProxy$")
	cmd.Env = append(os.Environ(), "TEST_PROXIED=1", "HTTP_PROXY="+proxy.URL, "HTTPS_PROXY="+proxy.URL, "http_proxy=", "https_proxy=",
		"no_proxy=", "NO_PROXY=direct.invalid")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text := string(out)
	if !strings.Contains(text, "plain.example/team/mod [1.0] <nil>") {
		t.Errorf("through the proxy: %s", text)
	}
	if !strings.Contains(text, "tls.example/team/mod []") || !strings.Contains(text, "certificate") {
		t.Errorf("with TLS, and a certificate of nobody's, through the proxy: %s", text)
	}
	mu.Lock()
	defer mu.Unlock()
	if all := strings.Join(asked, ", "); !strings.Contains(all, "CONNECT tls.example:443") || strings.Contains(all, "direct.invalid") {
		t.Errorf("the proxy was asked for %s", all)
	}
}

// An answer of a token server isn't shown, whatever stands in it.
func TestTokenAnswer(t *testing.T) {
	s := serve(t)
	s.breaks(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			io.WriteString(w, `{"refresh_token":"secret","realm":"x"}`)
			return true
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+s.URL+`/token",service="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	_, err := open(t, client(t, registry.Options{}), s.host()+"/team/mod").Tags(t.Context())
	if !errors.Is(err, registry.ErrDenied) || strings.Contains(err.Error(), "secret") {
		t.Errorf("Tags = %v; want ErrDenied", err)
	}
}
