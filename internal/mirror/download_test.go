package mirror

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// A server has one file, at any path, unless its hook answers.
type server struct {
	*httptest.Server
	mu   sync.Mutex
	seen []string // "path range"
}

// hook tells whether it has answered. n counts a server's requests, from 1.
type hook func(w http.ResponseWriter, r *http.Request, n int, body []byte) bool

func serve(t *testing.T, body []byte, answers hook) *server {
	s := &server{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.seen = append(s.seen, strings.TrimSpace(r.URL.Path+" "+r.Header.Get("Range")))
		n := len(s.seen)
		s.mu.Unlock()
		if answers == nil || !answers(w, r, n, body) {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *server) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.seen)
}

func content(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}

func fileOf(body []byte, urls ...string) File {
	sum := sha256.Sum256(body)
	return File{URLs: urls, Size: int64(len(body)), Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}}
}

func quick() Fetcher {
	f := NewFetcher(NewClient())
	f.Wait, f.Stall = 5*time.Millisecond, 150*time.Millisecond
	return f
}

// get downloads a file into a new one and checks the progress.
func get(t *testing.T, f Fetcher, file File) ([]byte, error) {
	t.Helper()
	to, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	var told int64
	if err := f.Download(t.Context(), file, to, func(n int64) { told += n }); err != nil {
		return nil, err
	}
	got, err := os.ReadFile(to.Name())
	if err != nil {
		t.Fatal(err)
	}
	if told != file.Size {
		t.Errorf("progress adds up to %d; want %d", told, file.Size)
	}
	return got, nil
}

// begin sends the length of all and the bytes of some of it.
func begin(w http.ResponseWriter, all, some []byte) {
	w.Header().Set("Content-Length", fmt.Sprint(len(all)))
	w.Write(some)
	w.(http.Flusher).Flush()
}

func status(code int) hook {
	return func(w http.ResponseWriter, _ *http.Request, _ int, _ []byte) bool {
		w.WriteHeader(code)
		return true
	}
}

// What a mirror can do to a download, and what the good one beside it, which comes second, is asked for then.
var faults = map[string]struct {
	bad   hook
	want  string // "" is the whole file
	alone string // in the error where there is no other mirror
}{
	"500":       {status(500), "", "500 Internal Server Error"},
	"404":       {status(404), "", "404 Not Found"},
	"forbidden": {status(403), "", "403 Forbidden"},
	"resets": {func(http.ResponseWriter, *http.Request, int, []byte) bool { panic(http.ErrAbortHandler) },
		"", "EOF"},
	"says nothing": {func(_ http.ResponseWriter, r *http.Request, _ int, _ []byte) bool {
		<-r.Context().Done()
		return true
	}, "", "no byte for 150ms"},
	"stalls": {func(w http.ResponseWriter, r *http.Request, n int, body []byte) bool {
		if n == 1 {
			begin(w, body, body[:len(body)/2])
		}
		<-r.Context().Done()
		return true
	}, "bytes=150000-", "no byte for 150ms"},
	"cuts": {func(w http.ResponseWriter, r *http.Request, n int, body []byte) bool {
		if n == 1 {
			begin(w, body, body[:len(body)/2])
		}
		time.Sleep(20 * time.Millisecond) // what was sent is read
		panic(http.ErrAbortHandler)
	}, "bytes=150000-", "EOF"},
	"garbage": {func(w http.ResponseWriter, _ *http.Request, _ int, body []byte) bool {
		begin(w, body, make([]byte, len(body)))
		return true
	}, "", "another file, with the digest sha256:"},
	"garbage, cut": {func(w http.ResponseWriter, r *http.Request, n int, body []byte) bool {
		if r.Header.Get("Range") != "" {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return true
		}
		begin(w, body, make([]byte, len(body)/2))
		time.Sleep(20 * time.Millisecond)
		panic(http.ErrAbortHandler)
	}, "bytes=150000-", "EOF"},
	"truncated": {func(w http.ResponseWriter, _ *http.Request, _ int, body []byte) bool {
		w.Write(body[:1000])
		return true
	}, "", "another file, of 1000 bytes"},
	"truncated, no length": {func(w http.ResponseWriter, r *http.Request, _ int, body []byte) bool {
		if r.Header.Get("Range") != "" {
			w.WriteHeader(500)
			return true
		}
		w.(http.Flusher).Flush()
		w.Write(body[:150000])
		return true
	}, "bytes=150000-", "500 Internal"},
	"too long": {func(w http.ResponseWriter, _ *http.Request, _ int, body []byte) bool {
		begin(w, append(slices.Clone(body), 1), body[:1])
		return true
	}, "", "another file, of 300001 bytes"},
	"other range": {func(w http.ResponseWriter, r *http.Request, _ int, body []byte) bool {
		w.Header().Set("Content-Range", "bytes 3-4/5")
		w.WriteHeader(http.StatusPartialContent)
		return true
	}, "", "206 Partial Content"},
}

func TestAnotherMirrorStandsIn(t *testing.T) {
	body := content(300_000)
	for name, c := range faults {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad, good := serve(t, body, c.bad), serve(t, body, nil)
			f := quick()
			got, err := get(t, f, fileOf(body, bad.URL+"/a", good.URL+"/b"))
			if err != nil || !bytes.Equal(got, body) {
				t.Fatalf("Download = %d bytes, %v", len(got), err)
			}
			if n := len(bad.requests()); n != 1 {
				t.Errorf("the bad one was asked %d times; want once", n)
			}
			want := []string{strings.TrimSpace("/b " + c.want)}
			if name == "garbage, cut" { // what two have made together isn't right: one makes it
				want = append(want, "/b")
			}
			if seen := good.requests(); !slices.Equal(seen, want) {
				t.Errorf("the good one was asked for %q; want %q", seen, want)
			}

			bad = serve(t, body, c.bad)
			got, err = get(t, quick(), fileOf(body, bad.URL+"/a"))
			all, ok := errors.AsType[Failures](err)
			if got != nil || !ok || len(all) != 1 || all[0].URL != bad.URL+"/a" || !strings.Contains(err.Error(), c.alone) {
				t.Errorf("without the good one: %d bytes, %v; want what says %q", len(got), err, c.alone)
			}
		})
	}
}

// One that sends, but not in a lifetime, is left for another, and borne where it's the only one.
func TestSlowMirror(t *testing.T) {
	t.Parallel()
	body := content(80_000)
	slow := func(w http.ResponseWriter, r *http.Request, _ int, body []byte) bool {
		var at int
		fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &at)
		if at > 0 {
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", at, len(body)-1, len(body)))
			w.WriteHeader(http.StatusPartialContent)
		}
		for part := range slices.Chunk(body[at:], 2000) { // 80 kB/s
			w.Write(part)
			w.(http.Flusher).Flush()
			time.Sleep(25 * time.Millisecond)
		}
		return true
	}
	bad, good := serve(t, body, slow), serve(t, body, nil)
	got, err := get(t, quick(), fileOf(body, bad.URL, good.URL))
	if err != nil || !bytes.Equal(got, body) {
		t.Fatalf("Download = %d bytes, %v", len(got), err)
	}
	if seen := good.requests(); len(seen) != 1 || !strings.Contains(seen[0], "bytes=") {
		t.Errorf("the good one was asked for %q; want the rest", seen)
	}
	got, err = get(t, quick(), fileOf(body, bad.URL))
	if err != nil || !bytes.Equal(got, body) || len(bad.requests()) != 2 {
		t.Errorf("the slow one alone: %d bytes, %v, %d requests", len(got), err, len(bad.requests()))
	}
}

func TestAllMirrorsFail(t *testing.T) {
	t.Parallel()
	body := content(100)
	a, b, gone := serve(t, body, status(503)), serve(t, body, status(503)), serve(t, body, status(404))
	dead := serve(t, body, nil)
	dead.Close()
	f := quick()
	f.Wait = 10 * time.Millisecond
	start := time.Now()
	_, err := get(t, f, fileOf(body, a.URL, strings.Replace(b.URL, "://", "://me:secret@", 1), gone.URL, dead.URL, "ftp://x/y"))
	all, ok := errors.AsType[Failures](err)
	if !ok || len(all) != 5 {
		t.Fatalf("Download = %v; want five failures", err)
	}
	for i, want := range []struct {
		url, text string
		tries     int
	}{{a.URL, "503 Service", 4}, {b.URL, "503 Service", 4}, {gone.URL, "404 Not Found", 0}, {dead.URL, "refused", 4}, {"ftp://x/y", ErrAddress.Error(), 0}} {
		if all[i].URL != want.url || !strings.Contains(all[i].Err.Error(), want.text) || all[i].Tries != want.tries {
			t.Errorf("%+v; want %+v", all[i], want)
		}
	}
	if !IsMissing(all[2]) || IsMissing(all[0]) || len(a.requests()) != 4 || len(b.requests()) != 4 || len(gone.requests()) != 1 {
		t.Errorf("requests: %q, %q, %q", a.requests(), b.requests(), gone.requests())
	}
	if took := time.Since(start); took < 70*time.Millisecond {
		t.Errorf("it was over in %v: nobody waited", took)
	}
}

// Which mirror was bad is remembered: the next file is had from the other at once.
func TestHealth(t *testing.T) {
	t.Parallel()
	body := content(1000)
	for name, c := range map[string]struct {
		bad  hook
		asks int
	}{
		"down": {status(502), 1}, "garbage": {faults["garbage"].bad, 1},
		"only without that file": {status(404), 3},
	} {
		bad, good := serve(t, body, c.bad), serve(t, body, nil)
		f := quick()
		for range 3 {
			if _, err := get(t, f, fileOf(body, bad.URL, good.URL)); err != nil {
				t.Fatal(err)
			}
		}
		if n := len(bad.requests()); n != c.asks {
			t.Errorf("%s: asked %d times; want %d", name, n, c.asks)
		}
		if _, err := get(t, quick(), fileOf(body, bad.URL, good.URL)); err != nil || len(bad.requests()) != c.asks+1 {
			t.Errorf("%s: another memory has it too: %v", name, err)
		}
	}
}

// Downloads at a time are spread over mirrors that are well; one at a time is the first mirror's.
func TestSpread(t *testing.T) {
	t.Parallel()
	body := content(1000)
	var wg, under sync.WaitGroup
	under.Add(6)
	wait := func(http.ResponseWriter, *http.Request, int, []byte) bool {
		under.Done()
		under.Wait() // all are under way
		return false
	}
	a, b := serve(t, body, wait), serve(t, body, wait)
	f := quick()
	f.Stall = time.Minute
	for range 6 {
		wg.Go(func() {
			if _, err := get(t, f, fileOf(body, a.URL, b.URL)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(a.requests()) != 3 || len(b.requests()) != 3 {
		t.Errorf("%d and %d requests; want 3 each", len(a.requests()), len(b.requests()))
	}
	a, b = serve(t, body, nil), serve(t, body, nil)
	for range 3 {
		if _, err := get(t, f, fileOf(body, a.URL, b.URL)); err != nil {
			t.Error(err)
		}
	}
	if len(a.requests()) != 3 {
		t.Errorf("%d of 3 are the first mirror's", len(a.requests()))
	}
}

func TestDownloadEnds(t *testing.T) {
	t.Parallel()
	body := content(1000)
	hangs := func(_ http.ResponseWriter, r *http.Request, _ int, _ []byte) bool {
		<-r.Context().Done()
		return true
	}
	to, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer to.Close()
	why := errors.New("enough")
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, why)
	defer cancel()
	f := quick()
	f.Stall = time.Minute
	if err := f.Download(ctx, fileOf(body, serve(t, body, hangs).URL, serve(t, body, hangs).URL), to, func(int64) {}); err != why {
		t.Errorf("Download = %v; want %v", err, why)
	}
	to.Close()
	if err := f.Download(t.Context(), fileOf(body, serve(t, body, nil).URL), to, func(int64) {}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("into a closed file: %v", err)
	}
}
