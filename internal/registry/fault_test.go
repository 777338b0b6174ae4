package registry_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1registry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
)

// Every request fails once, each in the same way: what is asked for still comes about.
func TestEveryRequestFailsOnce(t *testing.T) {
	for name, fail := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
		"500": func(w http.ResponseWriter, r *http.Request) bool { w.WriteHeader(500); return true },
		"429": func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Retry-After", "0")
			w.WriteHeader(429)
			return true
		},
		"503 with a body that breaks": func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Length", "100")
			w.WriteHeader(503)
			return true
		},
		"cut": func(w http.ResponseWriter, r *http.Request) bool { return cut(w) },
		"cut after the body": func(w http.ResponseWriter, r *http.Request) bool {
			io.Copy(io.Discard, r.Body)
			return cut(w)
		},
		"forgets uploads": func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != "PUT" || !strings.Contains(r.URL.Path, "/uploads/") {
				return false
			}
			io.Copy(io.Discard, r.Body)
			w.WriteHeader(404)
			io.WriteString(w, `{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}`)
			return true
		},
		"hangs": func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == "PUT" && strings.Contains(r.URL.Path, "/manifests/") { // one of them is enough
				select {
				case <-r.Context().Done():
				case <-time.After(500 * time.Millisecond):
				}
				return cut(w)
			}
			return false
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t)
			var seen sync.Map
			s.breaks(func(w http.ResponseWriter, r *http.Request) bool {
				path := r.URL.Path
				if strings.Contains(path, "/uploads/") && r.Method != "POST" { // each upload has its own
					path = r.URL.Query().Get("digest")
				}
				if _, again := seen.LoadOrStore(r.Method+path, true); again {
					return false
				}
				return fail(w, r)
			})
			img := layers(t, 1, 100_000, 200_000)
			c := client(t, registry.Options{})
			repo := open(t, c, s.host()+"/team/mod")
			var done, total int64
			if err := repo.PushWith(t.Context(), "1.0", img, registry.PushOptions{Progress: func(d, n int64) { done, total = d, n }}); err != nil {
				t.Fatal(err)
			}
			if done != total || total < 300_000 {
				t.Errorf("progress ended at %d of %d", done, total)
			}
			got, err := c.Fetch(t.Context(), repo, "1.0", t.TempDir(), func(d, n int64) { done, total = d, n })
			if err != nil {
				t.Fatal(err)
			}
			if done != total || total < 300_000 {
				t.Errorf("progress of Fetch ended at %d of %d", done, total)
			}
			same(t, got, img)
			if tags, err := repo.Tags(t.Context()); err != nil || len(tags) != 1 {
				t.Errorf("Tags = %v, %v", tags, err)
			}
		})
	}
}

// What goes on failing is given up, says why, and leaves the tag as it was.
func TestGivesUp(t *testing.T) {
	before, after := layers(t, 1, 1000), layers(t, 2, 1000)
	for _, tt := range []struct {
		name  string
		fault func(w http.ResponseWriter, r *http.Request) bool
		want  error
		text  string
		tries int // of the blob's upload, where it gets there
	}{
		{"disk full", func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == "PUT" && strings.Contains(r.URL.Path, "/uploads/") {
				io.Copy(io.Discard, r.Body)
				w.WriteHeader(500)
				io.WriteString(w, `{"errors":[{"code":"UNKNOWN","message":"no space left on device"}]}`)
				return true
			}
			return false
		}, registry.ErrUnavailable, "no space left on device", 3},
		{"too large", func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == "PUT" {
				io.Copy(io.Discard, r.Body)
				w.WriteHeader(413)
				return true
			}
			return false
		}, registry.ErrRefused, "413 Request Entity Too Large", 1},
		{"read only", func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == "POST" {
				w.WriteHeader(405)
				io.WriteString(w, `{"errors":[{"code":"UNSUPPORTED","message":"pull through cache"}]}`)
				return true
			}
			return false
		}, registry.ErrRefused, "pull through cache", 0},
		{"denied", func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == "POST" {
				w.WriteHeader(403)
				io.WriteString(w, `{"errors":[{"code":"DENIED","message":"quota\u001b[31m exceeded"}]}`)
				return true
			}
			return false
		}, registry.ErrDenied, "DENIED: quota[31m exceeded", 0},
		{"long wait", func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(429)
			return true
		}, registry.ErrUnavailable, "it asks to wait 1h0m0s", 0},
		{"hangs", func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != "PUT" {
				return false
			}
			select {
			case <-r.Context().Done():
			case <-time.After(1500 * time.Millisecond):
			}
			return cut(w)
		}, registry.ErrUnavailable, "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := seeded(t, before)
			s.breaks(tt.fault)
			c := client(t, registry.Options{})
			repo := open(t, c, s.host()+"/team/mod")
			err := repo.Push(t.Context(), "1.0", after)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) || !strings.Contains(err.Error(), s.host()) {
				t.Errorf("Push = %v; want %v with %q", err, tt.want, tt.text)
			}
			if tt.tries > 0 && s.count("PUT", "/uploads/") > 2*tt.tries { // a layer and a config
				t.Errorf("%d uploads; want at most %d of each blob", s.count("PUT", "/uploads/"), tt.tries)
			}
			s.breaks(nil)
			if d, err := repo.Head(t.Context(), "1.0"); err != nil || d.Digest != digest(t, before) {
				t.Errorf("the tag is at %v (%v) now", d.Digest, err)
			}
			if err := repo.Push(t.Context(), "1.0", after); err != nil { // nothing is remembered
				t.Errorf("Push after it: %v", err)
			}
		})
	}
}

// Fetch leaves nothing behind when the registry hasn't got what it says, and goes on when it has it again.
func TestFetchGoesOn(t *testing.T) {
	img := layers(t, 1, 300_000, 1000)
	d, content := layer(t, img, 0)
	blob := "/blobs/" + d.Digest.String()
	for _, tt := range []struct {
		name   string
		before []byte // the unfinished file
		bytes  int    // that have to be sent at least, and not many more
	}{
		{"nothing", nil, 300_000},
		{"the first part", content[:200_000], 100_000},
		{"all of it", content, 0},
		{"more than it", append(bytes.Clone(content), "more"...), 0},
		{"something else", bytes.Repeat([]byte{1}, 200_000), 400_000},
		{"as much of something else", bytes.Repeat([]byte{1}, 300_000), 300_000},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := seeded(t, img)
			var sent atomic.Int64
			s.breaks(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, blob) {
					return false
				}
				from := 0
				if v := r.Header.Get("Range"); v != "" {
					fmt.Sscanf(v, "bytes=%d-", &from)
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(content)-1, len(content)))
					w.WriteHeader(206)
				}
				sent.Add(int64(len(content) - from))
				w.Write(content[from:])
				return true
			})
			base, dir := t.TempDir(), t.TempDir()
			if tt.before != nil {
				write(t, tt.before, base, d.Digest.Hex+".partial")
			}
			c := client(t, registry.Options{Dir: base})
			got, err := c.Fetch(t.Context(), open(t, c, s.host()+"/team/mod"), "1.0", dir, nil)
			if err != nil {
				t.Fatal(err)
			}
			same(t, got, img)
			if n := int(sent.Load()); n != tt.bytes {
				t.Errorf("%d bytes were sent; want %d", n, tt.bytes)
			}
			if left := names(t, base); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// A connection that breaks again and again brings the blob, whether the server knows ranges or not.
func TestResume(t *testing.T) {
	img := layers(t, 1, 300_000)
	d, content := layer(t, img, 0)
	for _, ranges := range []bool{true, false} {
		s := seeded(t, img)
		var asked atomic.Int64
		s.breaks(func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, d.Digest.Hex) {
				return false
			}
			asked.Add(1)
			from := 0
			if v := r.Header.Get("Range"); v != "" && ranges {
				fmt.Sscanf(v, "bytes=%d-", &from)
				w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(content)-1, len(content)))
				w.WriteHeader(206)
			}
			end := min(from+70_000, len(content))
			if !ranges {
				end = min(70_000*int(asked.Load()), len(content))
			}
			w.Write(content[from:end]) // the rest of what the Content-Length would be isn't sent
			w.(http.Flusher).Flush()
			if end < len(content) {
				panic(http.ErrAbortHandler)
			}
			return true
		})
		c := client(t, registry.Options{})
		rc, err := open(t, c, s.host()+"/team/mod").Blob(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(rc)
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("ranges %v: %d bytes, %v", ranges, len(got), err)
		}
		rc.Close()
		if asked.Load() != 5 {
			t.Errorf("ranges %v: asked %d times; want 5", ranges, asked.Load())
		}
	}
}

// Those who want a blob at once download it once, and get it each.
func TestFetchShared(t *testing.T) {
	img := layers(t, 1, 400_000, 10)
	d, _ := layer(t, img, 0)
	s := seeded(t, img)
	s.breaks(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, d.Digest.Hex) {
			time.Sleep(50 * time.Millisecond)
		}
		return false
	})
	base := t.TempDir()
	var wg sync.WaitGroup
	for range 6 {
		wg.Go(func() {
			c := client(t, registry.Options{Dir: base})
			got, err := c.Fetch(context.Background(), open(t, c, s.host()+"/team/mod"), "1.0", t.TempDir(), nil)
			if err != nil {
				t.Error(err)
				return
			}
			same(t, got, img)
		})
	}
	wg.Wait()
	if n := s.count("GET", d.Digest.Hex); n != 1 {
		t.Errorf("the blob was downloaded %d times", n)
	}
	if left := names(t, base); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
}

// Unfinished downloads that nobody came back for are removed, and no other files.
func TestSweep(t *testing.T) {
	s := seeded(t, layers(t, 1, 10))
	base := t.TempDir()
	old, young, other := strings.Repeat("a", 64)+".partial", strings.Repeat("b", 64)+".partial", "notes.partial"
	for _, name := range []string{old, young, other} {
		write(t, []byte("x"), base, name)
		if name != young {
			then := time.Now().Add(-8 * 24 * time.Hour)
			if err := os.Chtimes(filepath.Join(base, name), then, then); err != nil {
				t.Fatal(err)
			}
		}
	}
	c := client(t, registry.Options{Dir: base})
	if _, err := c.Fetch(t.Context(), open(t, c, s.host()+"/team/mod"), "1.0", t.TempDir(), nil); err != nil {
		t.Fatal(err)
	}
	if got := names(t, base); len(got) != 2 || got[0] != young || got[1] != other {
		t.Errorf("left: %q", got)
	}
}

// A registry's lies about blobs are found out, in bounded time, and nothing of them is left.
func TestLyingBlobs(t *testing.T) {
	img := layers(t, 1, 100_000)
	d, content := layer(t, img, 0)
	altered := bytes.Clone(content)
	altered[77] ^= 1
	for _, tt := range []struct {
		name   string
		answer func(w http.ResponseWriter, r *http.Request)
		want   error
		keeps  bool // what may be gone on from
	}{
		{"altered", func(w http.ResponseWriter, r *http.Request) { w.Write(altered) }, registry.ErrAltered, false},
		{"shorter", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "99999")
			w.Write(content[:99_999])
		}, registry.ErrAltered, false},
		{"longer", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "100001")
			w.Write(append(bytes.Clone(content), 1))
		}, registry.ErrAltered, false},
		{"endless", func(w http.ResponseWriter, r *http.Request) {
			for { // the client closes
				if _, err := w.Write(altered); err != nil {
					return
				}
			}
		}, registry.ErrAltered, false},
		{"short, chunked", func(w http.ResponseWriter, r *http.Request) {
			w.(http.Flusher).Flush()
			w.Write(content[:1000])
		}, registry.ErrUnavailable, true},
		{"a drip", func(w http.ResponseWriter, r *http.Request) {
			from := 0
			fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
			w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-", from))
			if from > 0 {
				w.WriteHeader(206)
			}
			w.Write(content[from : from+1])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, registry.ErrUnavailable, true},
		{"another range", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Range", "bytes 5-100/100000")
			w.WriteHeader(206)
			w.Write(content[5:])
		}, registry.ErrUnavailable, false},
		{"nothing", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, registry.ErrUnavailable, false},
		{"gone", func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(404) }, registry.ErrNotFound, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := seeded(t, img)
			s.breaks(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, d.Digest.Hex) {
					return false
				}
				tt.answer(w, r)
				return true
			})
			base, dir := t.TempDir(), t.TempDir()
			c := client(t, registry.Options{Dir: base})
			_, err := c.Fetch(t.Context(), open(t, c, s.host()+"/team/mod"), "1.0", dir, nil)
			if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), s.host()+"/team/mod") {
				t.Errorf("Fetch = %v; want %v", err, tt.want)
			}
			if got := names(t, dir); len(got) > 0 {
				t.Errorf("%q in the folder", got)
			}
			for _, name := range names(t, base) {
				if strings.HasPrefix(name, d.Digest.Hex) && !tt.keeps {
					t.Errorf("left: %s", name)
				}
			}
		})
	}
}

// So are those about manifests and tags.
func TestLyingManifests(t *testing.T) {
	img := layers(t, 1, 100)
	raw, err := img.RawManifest()
	if err != nil {
		t.Fatal(err)
	}
	announced := func(digest v1.Hash, media string, b []byte) func(w http.ResponseWriter, r *http.Request) {
		return func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", media)
			w.Header().Set("Docker-Content-Digest", digest.String())
			w.Header().Set("Content-Length", strconv.Itoa(len(b)))
			w.Write(b)
		}
	}
	answer := func(media string, b []byte) func(w http.ResponseWriter, r *http.Request) {
		return announced(sum(b), media, b)
	}
	oci := string(types.OCIManifestSchema1)
	for _, tt := range []struct {
		name, id string
		answer   func(w http.ResponseWriter, r *http.Request)
		want     error
	}{
		{"another than announced", "1.0", announced(digest(t, img), oci, append(bytes.Clone(raw), ' ')), registry.ErrAltered},
		{"another by digest", digest(t, img).String(), answer(oci, append(bytes.Clone(raw), ' ')), registry.ErrAltered},
		{"large", "1.0", answer(oci, append(bytes.Clone(raw), bytes.Repeat([]byte{' '}, registry.MaxManifest)...)), registry.ErrAltered},
		{"endless", "1.0", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", oci)
			for b := bytes.Repeat([]byte{' '}, 1<<20); ; {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
		}, registry.ErrAltered},
		{"as another type", "1.0", answer(string(types.OCIImageIndex), raw), registry.ErrAltered},
		{"two in one", "1.0", answer(oci, []byte(`{"schemaVersion":2,"config":{},"layers":[],"manifests":[]}`)), registry.ErrAltered},
		{"no manifest", "1.0", answer("text/html", []byte("<html>")), registry.ErrAltered},
		{"schema 1", "1.0", answer("application/json", []byte(`{"schemaVersion":1,"mediaType":"application/vnd.docker.distribution.manifest.v1+json"}`)), registry.ErrRefused},
		{"layers with paths", "1.0", answer(oci, []byte(`{"schemaVersion":2,"config":{"digest":"../../etc:passwd","size":1}}`)), registry.ErrAltered},
		{"negative sizes", "1.0", answer(oci, []byte(`{"schemaVersion":2,"config":{"digest":"sha256:`+strings.Repeat("a", 64)+`","size":-1}}`)), registry.ErrAltered},
		{"thousands of layers", "1.0", answer(oci, []byte(`{"schemaVersion":2,"layers":[{}`+strings.Repeat(",{}", 2000)+`]}`)), registry.ErrRefused},
		{"a slow one", "1.0", func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", oci)
			for r.Context().Err() == nil {
				w.Write([]byte(" "))
				w.(http.Flusher).Flush()
				time.Sleep(10 * time.Millisecond)
			}
		}, registry.ErrUnavailable},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := seeded(t, img)
			s.breaks(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, "/manifests/") {
					return false
				}
				tt.answer(w, r)
				return true
			})
			c := client(t, registry.Options{})
			repo := open(t, c, s.host()+"/team/mod")
			if _, err := repo.Image(t.Context(), tt.id); !errors.Is(err, tt.want) {
				t.Errorf("Image = %v; want %v", err, tt.want)
			}
		})
	}
	t.Run("another digest of what was asked for by one", func(t *testing.T) {
		s := seeded(t, img)
		s.breaks(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == "HEAD" {
				w.Header().Set("Content-Type", oci)
				w.Header().Set("Content-Length", "5")
				w.Header().Set("Docker-Content-Digest", sum(nil).String())
			}
			return r.Method == "HEAD"
		})
		repo := open(t, client(t, registry.Options{}), s.host()+"/team/mod")
		if _, err := repo.Head(t.Context(), digest(t, img).String()); !errors.Is(err, registry.ErrAltered) {
			t.Errorf("Head = %v; want ErrAltered", err)
		}
	})
	t.Run("a HEAD that says nothing", func(t *testing.T) {
		s := seeded(t, img)
		s.breaks(func(w http.ResponseWriter, r *http.Request) bool { return r.Method == "HEAD" })
		repo := open(t, client(t, registry.Options{}), s.host()+"/team/mod")
		if d, err := repo.Head(t.Context(), "1.0"); err != nil || d.Digest != digest(t, img) {
			t.Errorf("Head = %v, %v", d, err)
		}
	})
}

func TestLyingTags(t *testing.T) {
	for _, tt := range []struct {
		name   string
		answer func(w http.ResponseWriter, r *http.Request, n int)
		want   error
		tags   string
	}{
		{"hostile", func(w http.ResponseWriter, r *http.Request, n int) {
			io.WriteString(w, `{"tags":["2.0","../x","a b","1.0","\u001b[2J","","2.0"]}`)
		}, nil, "1.0 2.0"},
		{"the same page for ever", func(w http.ResponseWriter, r *http.Request, n int) {
			w.Header().Set("Link", `</v2/team/mod/tags/list?last=1>; rel="next"`)
			io.WriteString(w, `{"tags":["1.0"]}`)
		}, nil, "1.0"},
		{"another page for ever", func(w http.ResponseWriter, r *http.Request, n int) {
			w.Header().Set("Link", `<list?last=1>; rel="next"`)
			fmt.Fprintf(w, `{"tags":["1.%d"]}`, n)
		}, registry.ErrRefused, ""},
		{"elsewhere", func(w http.ResponseWriter, r *http.Request, n int) {
			w.Header().Set("Link", `<http://127.0.0.1:1/v2/>; rel="next"`)
			io.WriteString(w, `{"tags":["1.0"]}`)
		}, registry.ErrRefused, ""},
		{"no list", func(w http.ResponseWriter, r *http.Request, n int) { io.WriteString(w, `<html>`) }, registry.ErrAltered, ""},
		{"null", func(w http.ResponseWriter, r *http.Request, n int) { io.WriteString(w, `{"tags":null}`) }, nil, ""},
		{"endless", func(w http.ResponseWriter, r *http.Request, n int) {
			for b := bytes.Repeat([]byte{' '}, 1<<20); ; {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
		}, registry.ErrAltered, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			s := serve(t)
			var n atomic.Int64
			s.breaks(func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.Contains(r.URL.Path, "/tags/") {
					return false
				}
				tt.answer(w, r, int(n.Add(1)))
				return true
			})
			tags, err := open(t, client(t, registry.Options{}), s.host()+"/team/mod").Tags(t.Context())
			if !errors.Is(err, tt.want) || strings.Join(tags, " ") != tt.tags {
				t.Errorf("Tags = %q, %v; want %q, %v", tags, err, tt.tags, tt.want)
			}
		})
	}
}

// A caller may hold as many blobs open as it likes while it asks for other things.
func TestManyOpenBlobs(t *testing.T) {
	img := layers(t, 1, 3_000_000)
	d, _ := layer(t, img, 0)
	s := seeded(t, img)
	var now, most atomic.Int64
	s.breaks(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/manifests/") {
			n := now.Add(1)
			for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
			}
			time.Sleep(5 * time.Millisecond)
			now.Add(-1)
		}
		return false
	})
	c := client(t, registry.Options{})
	repo := open(t, c, s.host()+"/team/mod")
	for range 20 {
		rc, err := repo.Blob(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		defer rc.Close()
	}
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			if _, err := repo.Head(context.Background(), "1.0"); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if most.Load() > 8 {
		t.Errorf("%d requests at a time", most.Load())
	}
	// A push from one repository to another of the same registry reads and writes at once.
	big, err := repo.Image(t.Context(), "1.0")
	if err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		wg.Go(func() {
			if err := open(t, c, fmt.Sprintf("%s/other/mod%d", s.host(), i)).Push(context.Background(), "1.0", big); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestCancel(t *testing.T) {
	img := layers(t, 1, 1_000_000)
	d, _ := layer(t, img, 0)
	for _, tt := range []struct {
		name  string
		fault func(w http.ResponseWriter, r *http.Request) bool
	}{
		{"asked to wait", func(w http.ResponseWriter, r *http.Request) bool {
			w.WriteHeader(503)
			return true
		}},
		{"hanging", func(w http.ResponseWriter, r *http.Request) bool {
			select {
			case <-r.Context().Done():
			case <-time.After(5 * time.Second):
			}
			return true
		}},
		{"in a blob", func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, d.Digest.Hex) {
				return false
			}
			w.Header().Set("Content-Length", "1000000")
			w.Write(make([]byte, 5000))
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := seeded(t, img)
			s.breaks(tt.fault)
			dir := t.TempDir()
			c, err := registry.New(registry.Options{Dir: t.TempDir()}) // with the usual patience
			if err != nil {
				t.Fatal(err)
			}
			why := errors.New("enough")
			ctx, cancel := context.WithCancelCause(t.Context())
			time.AfterFunc(100*time.Millisecond, func() { cancel(why) })
			start := time.Now()
			_, err = c.Fetch(ctx, open(t, c, s.host()+"/team/mod"), "1.0", dir, nil)
			if !errors.Is(err, why) && !errors.Is(err, context.Canceled) || time.Since(start) > 2*time.Second {
				t.Errorf("Fetch = %v after %v", err, time.Since(start))
			}
			if errors.Is(err, registry.ErrUnavailable) {
				t.Errorf("Fetch = %v; that's nothing the registry did", err)
			}
			if len(names(t, dir)) > 0 {
				t.Error("something is in the folder")
			}
		})
	}
}

func TestDead(t *testing.T) {
	s := serve(t)
	host := s.host()
	s.Close()
	repo := open(t, client(t, registry.Options{}), host+"/team/mod")
	start := time.Now()
	if _, err := repo.Tags(t.Context()); !errors.Is(err, registry.ErrUnavailable) || !strings.Contains(err.Error(), host) {
		t.Errorf("Tags = %v; want ErrUnavailable", err)
	}
	if time.Since(start) > 2*time.Second {
		t.Errorf("it took %v", time.Since(start))
	}
	repo = open(t, client(t, registry.Options{Insecure: []string{"no.such.host.invalid"}}), "no.such.host.invalid/team/mod")
	if _, err := repo.Tags(t.Context()); !errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("Tags = %v; want ErrUnavailable", err)
	}
	tls := httptest.NewTLSServer(v1registry.New())
	defer tls.Close()
	tls.Config.ErrorLog = s.Config.ErrorLog
	repo = open(t, client(t, registry.Options{}), strings.TrimPrefix(tls.URL, "https://")+"/team/mod")
	if _, err := repo.Tags(t.Context()); !errors.Is(err, registry.ErrUnavailable) || !strings.Contains(err.Error(), "SSL_CERT_FILE") {
		t.Errorf("Tags = %v; want ErrUnavailable, and what to do", err)
	}
}

// Attachments of several at once are all there with the referrers API; without, nobody's are there in part.
func TestAttachAtOnce(t *testing.T) {
	for _, api := range []bool{false, true} {
		t.Run(fmt.Sprint(api), func(t *testing.T) {
			s := serve(t, v1registry.WithReferrersSupport(api))
			s.breaks(func(w http.ResponseWriter, r *http.Request) bool {
				if strings.Contains(r.URL.Path, "/manifests/sha256-") {
					time.Sleep(time.Duration(time.Now().UnixNano()%5) * time.Millisecond)
				}
				return false
			})
			img := layers(t, 1, 100)
			if err := open(t, client(t, registry.Options{}), s.host()+"/team/mod").Push(t.Context(), "1.0", img); err != nil {
				t.Fatal(err)
			}
			subject, err := partial.Descriptor(img)
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			pairs := make([][2]v1.Image, 8)
			for i := range pairs {
				a := mutate.Subject(layers(t, uint64(i+10), 10), *subject).(v1.Image)
				b := mutate.Subject(layers(t, uint64(i+30), 10), *subject).(v1.Image)
				pairs[i] = [2]v1.Image{a, b}
				wg.Go(func() {
					if err := open(t, client(t, registry.Options{}), s.host()+"/team/mod").Attach(context.Background(), subject.Digest, a, b); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			list, err := open(t, client(t, registry.Options{}), s.host()+"/team/mod").Referrers(t.Context(), subject.Digest)
			if err != nil || api && len(list) != 16 {
				t.Errorf("%d referrers, %v; want 16", len(list), err)
			}
			// Without the API, one that is there is there with what was attached beside it.
			found := map[v1.Hash]bool{}
			for _, d := range list {
				found[d.Digest] = true
			}
			whole := 0
			for _, p := range pairs {
				if a, b := found[digest(t, p[0])], found[digest(t, p[1])]; a != b {
					t.Error("one of two that were attached together is missing")
				} else if a {
					whole++
				}
			}
			if whole == 0 {
				t.Error("nothing is attached")
			}
		})
	}
}

// A connection that breaks while a layer is being read closes the layer: that it then can't be read is no reason to give up.
func TestClosedWhileRead(t *testing.T) {
	s := serve(t)
	img := layers(t, 1, 1_000_000)
	d, _ := layer(t, img, 0)
	var once sync.Once
	s.breaks(func(w http.ResponseWriter, r *http.Request) bool {
		broken := false
		if r.Method == "PUT" && r.URL.Query().Get("digest") == d.Digest.String() {
			once.Do(func() {
				io.CopyN(io.Discard, r.Body, 1000)
				broken = cut(w)
			})
		}
		return broken
	})
	if err := open(t, client(t, registry.Options{}), s.host()+"/team/mod").Push(t.Context(), "1.0", &stuck{Image: img}); err != nil {
		t.Error(err)
	}
}

// stuck is an image whose first layer, when it is read first, stops until it is closed.
type stuck struct {
	v1.Image
	once sync.Once
}

func (s *stuck) LayerByDigest(h v1.Hash) (v1.Layer, error) {
	l, err := s.Image.LayerByDigest(h)
	return &stuckLayer{l, s}, err
}

type stuckLayer struct {
	v1.Layer
	s *stuck
}

func (l *stuckLayer) Compressed() (io.ReadCloser, error) {
	rc, err := l.Layer.Compressed()
	l.s.once.Do(func() {
		r, w := io.Pipe()
		go io.CopyN(w, rc, 70_000)
		rc = r
	})
	return rc, err
}

// The registry has lost everything between two pushes of one process.
func TestPushAgain(t *testing.T) {
	img := layers(t, 1, 1000)
	s, empty := serve(t), serve(t)
	c := client(t, registry.Options{})
	repo := open(t, c, s.host()+"/team/mod")
	for i := range 2 {
		if err := repo.Push(t.Context(), "1.0", img); err != nil {
			t.Fatal(err)
		}
		if i == 1 && s.count("PUT", "") > 0 {
			t.Error("it was sent again")
		}
		s.breaks(nil)
	}
	s.breaks(func(w http.ResponseWriter, r *http.Request) bool { empty.Config.Handler.ServeHTTP(w, r); return true })
	if err := repo.Push(t.Context(), "1.0", img); err != nil {
		t.Fatal(err)
	}
	got, err := c.Fetch(t.Context(), repo, "1.0", t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, img)
}

// What ends a context may be the answer to another request, and says nothing about the registry then.
func TestCancelledByAnswer(t *testing.T) {
	s := serve(t, v1registry.WithReferrersSupport(true))
	r := open(t, client(t, registry.Options{}), s.host()+"/team/mod")
	ctx := context.Background()
	img := layers(t, 1, 10)
	if err := r.Push(ctx, "1.0", img); err != nil {
		t.Fatal(err)
	}
	subject, err := partial.Descriptor(img)
	if err != nil {
		t.Fatal(err)
	}
	about, ok := mutate.Subject(layers(t, 2, 10), *subject).(v1.Image)
	if !ok {
		t.Fatal("no image")
	}
	if err := r.Attach(ctx, subject.Digest, about); err != nil {
		t.Fatal(err)
	}
	_, _, cause := r.Manifest(ctx, "gone")
	ended, cancel := context.WithCancelCause(ctx)
	cancel(cause)
	if list, err := r.Referrers(ended, subject.Digest); err == nil {
		t.Errorf("Referrers in an ended context = %v; want an error", list)
	}
	if list, err := r.Referrers(ctx, subject.Digest); err != nil || len(list) != 1 {
		t.Errorf("Referrers afterwards = %v, %v; want one", list, err)
	}
}

// Distribution misses a blob for a moment that another client sends too.
func TestMissedBlob(t *testing.T) {
	for _, tt := range []struct {
		code  string
		times int64
		good  bool
	}{{"MANIFEST_BLOB_UNKNOWN", 3, true}, {"DIGEST_INVALID", 1, true}, {"MANIFEST_BLOB_UNKNOWN", 99, false}, {"MANIFEST_INVALID", 1, false}} {
		s := serve(t)
		var n atomic.Int64
		s.breaks(func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method != http.MethodPut || !strings.Contains(r.URL.Path, "/manifests/") || n.Add(1) > tt.times {
				return false
			}
			w.WriteHeader(http.StatusBadRequest)
			fmt.Fprintf(w, `{"errors":[{"code":%q,"message":"blob unknown to registry"}]}`, tt.code)
			return true
		})
		err := open(t, client(t, registry.Options{}), s.host()+"/team/mod").Push(t.Context(), "1.0", layers(t, 1, 10))
		if good := err == nil; good != tt.good || n.Load() > 5 {
			t.Errorf("Push to one that answers %s %d times = %v, after %d tries", tt.code, tt.times, err, n.Load())
		}
	}
}
