package images

import (
	"bytes"
	"context"
	"crypto/sha512"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

func randomBytes(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	r.Read(b)
	return b
}

func fetched(t *testing.T, s *Store, p kernels.Package) error {
	t.Helper()
	var total atomic.Int64
	err := s.fetch(context.Background(), p, func(n int64) { total.Add(n) })
	if err == nil {
		if verr := verifyFile(context.Background(), s.packageFile(p), p.Digest); verr != nil {
			t.Errorf("fetch returned nil for a wrong file: %v", verr)
		}
		if total.Load() != p.Size {
			t.Errorf("progress adds up to %d; want %d", total.Load(), p.Size)
		}
		if left := files(t, s.path("packages", "partial")); len(left) > 0 {
			t.Errorf("a finished download left %v", left)
		}
	} else if s.have(p) {
		t.Errorf("fetch failed (%v) but left a final file", err)
	}
	return err
}

func TestFetchKeepsByHash(t *testing.T) {
	m := newMirror(t)
	p := m.add("a", randomBytes(1<<20))
	s := openStore(t, t.TempDir())
	for range 2 {
		if err := fetched(t, s, p); err != nil {
			t.Fatal(err)
		}
	}
	if got := m.seen(); len(got) != 1 {
		t.Errorf("requests = %q; want one", got)
	}
}

// A server that breaks off and then takes no ranges never gets further than to the same byte: it is given up.
// Some indexes have only SHA-512 sums.
func TestFetchBySHA512(t *testing.T) {
	m := newMirror(t)
	body := randomBytes(1 << 16)
	p, s := m.add("a", body), openStore(t, t.TempDir())
	p.Digest = v1.Hash{Algorithm: "sha512", Hex: fmt.Sprintf("%x", sha512.Sum512(body))}
	if err := fetched(t, s, p); err != nil {
		t.Fatal(err)
	}
	r, err := s.Package(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, body) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	r.Close()
	if _, damaged, err := s.Verify(t.Context()); err != nil || len(damaged) > 0 {
		t.Errorf("Verify = %v, %v", damaged, err)
	}
	if err := os.WriteFile(s.packageFile(p), randomBytes(1<<16-1), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, damaged, err := s.Verify(t.Context()); err != nil || len(damaged) != 1 {
		t.Errorf("of a damaged file, Verify = %v, %v", damaged, err)
	}
}

func TestFetchGivesUp(t *testing.T) {
	m := newMirror(t)
	m.hook = func(w http.ResponseWriter, r *http.Request, _ string, body []byte) bool {
		if r.Header.Get("Range") != "" {
			w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
			return true
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		w.Write(body[:len(body)/2])
		w.(http.Flusher).Flush()
		time.Sleep(50 * time.Millisecond)
		panic(http.ErrAbortHandler)
	}
	p := m.add("a", randomBytes(1<<20))
	s := openStore(t, t.TempDir())
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.fetch(ctx, p, func(int64) {}); err == nil || !strings.Contains(err.Error(), " times: ") {
		t.Errorf("fetch = %v; want that it was tried some times", err)
	}
}

func TestFetchResumes(t *testing.T) {
	body := randomBytes(1 << 20)
	half := len(body) / 2
	damagedHalf := slices.Clone(body[:half])
	damagedHalf[7]++
	var calls atomic.Int32
	for name, c := range map[string]struct {
		partial []byte
		hook    func(w http.ResponseWriter, r *http.Request, name string, body []byte) bool
		want    []string
	}{
		"half":         {body[:half], nil, []string{fmt.Sprintf("a bytes=%d-", half)}},
		"all":          {body, nil, nil},
		"too much":     {append(slices.Clone(body), 1), nil, []string{"a"}},
		"damaged":      {damagedHalf, nil, []string{fmt.Sprintf("a bytes=%d-", half), "a"}},
		"damaged, all": {append(slices.Clone(damagedHalf), body[half:]...), nil, []string{"a"}},
		"range ignored": {body[:half], func(w http.ResponseWriter, r *http.Request, _ string, body []byte) bool {
			w.Write(body)
			return true
		}, []string{fmt.Sprintf("a bytes=%d-", half)}},
		"range refused": {body[:half], func(w http.ResponseWriter, r *http.Request, _ string, body []byte) bool {
			if r.Header.Get("Range") != "" {
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return true
			}
			return false
		}, []string{fmt.Sprintf("a bytes=%d-", half), "a"}},
		"wrong range": {body[:half], func(w http.ResponseWriter, r *http.Request, _ string, body []byte) bool {
			if r.Header.Get("Range") != "" {
				w.Header().Set("Content-Range", "bytes 3-4/5")
				w.WriteHeader(http.StatusPartialContent)
				return true
			}
			return false
		}, []string{fmt.Sprintf("a bytes=%d-", half), "a"}},
		"broken off": {nil, func(w http.ResponseWriter, r *http.Request, _ string, body []byte) bool {
			if calls.Add(1) > 1 {
				return false
			}
			w.Header().Set("Content-Length", fmt.Sprint(len(body)))
			w.Write(body[:half])
			w.(http.Flusher).Flush()
			time.Sleep(50 * time.Millisecond)
			panic(http.ErrAbortHandler)
		}, []string{"a", fmt.Sprintf("a bytes=%d-", half)}},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMirror(t)
			m.hook = c.hook
			p := m.add("a", body)
			s := openStore(t, t.TempDir())
			if c.partial != nil {
				if err := os.WriteFile(s.path("packages", "partial", p.Digest.Hex), c.partial, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if err := fetched(t, s, p); err != nil {
				t.Fatal(err)
			}
			if got := m.seen(); !slices.Equal(got, c.want) {
				t.Errorf("requests = %q; want %q", got, c.want)
			}
		})
	}
}

func TestFetchErrors(t *testing.T) {
	body := randomBytes(100000)
	other := slices.Clone(body)
	other[99999]++
	status := func(code int) func(http.ResponseWriter, *http.Request, string, []byte) bool {
		return func(w http.ResponseWriter, _ *http.Request, _ string, _ []byte) bool {
			w.WriteHeader(code)
			return true
		}
	}
	serve := func(b []byte, length bool) func(http.ResponseWriter, *http.Request, string, []byte) bool {
		return func(w http.ResponseWriter, _ *http.Request, _ string, _ []byte) bool {
			if !length {
				w.(http.Flusher).Flush()
			}
			w.Write(b)
			return true
		}
	}
	for name, c := range map[string]struct {
		hook     func(w http.ResponseWriter, r *http.Request, name string, body []byte) bool
		offline  bool
		is       error
		words    []string
		requests int
	}{
		"wrong hash":          {serve(other, true), false, ErrMismatch, []string{"URL", "DIGEST", "sha256:", "--mirror", "--refresh"}, 1},
		"wrong size":          {serve([]byte("<html>log in</html>"), true), false, ErrMismatch, []string{"URL", "19 bytes", "100000"}, 1},
		"too long, no length": {serve(append(slices.Clone(body), 1), false), false, ErrMismatch, []string{"URL", "100000"}, 1},
		"gone":                {status(404), false, ErrGone, []string{"URL", "404", "--mirror"}, 1},
		"forbidden":           {status(403), false, nil, []string{"URL", "403", "--mirror"}, 1},
		"offline":             {nil, true, ErrOffline, []string{"--offline"}, 0},
		"down":                {status(503), false, nil, []string{"URL", "503", "4 times", "--mirror"}, 4},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := newMirror(t)
			m.hook = c.hook
			p := m.add("libfoo", body)
			s := openStore(t, t.TempDir())
			s.offline = c.offline
			err := fetched(t, s, p)
			if err == nil {
				t.Fatal("fetch = nil; want an error")
			}
			var pe *PackageError
			if !errors.As(err, &pe) || (c.is != nil && !errors.Is(err, c.is)) {
				t.Errorf("fetch = %v; want a *PackageError that wraps %v", err, c.is)
			}
			for _, w := range append(c.words, "libfoo", "1.0-1") {
				w = strings.NewReplacer("URL", p.URL, "DIGEST", p.Digest.String()).Replace(w)
				if !strings.Contains(err.Error(), w) {
					t.Errorf("fetch = %v; want it to name %q", err, w)
				}
			}
			if got := m.seen(); len(got) != c.requests {
				t.Errorf("requests = %q; want %d", got, c.requests)
			}
			if left := files(t, s.path("packages")); len(left) > 0 {
				if st, _ := os.Stat(s.path("packages", left[0])); len(left) > 1 || st.Size() > 0 {
					t.Errorf("left %v", left)
				}
			}
		})
	}
}

// A server that stops sending is left; what it had sent is not asked for again.
func TestFetchLeavesStalledServers(t *testing.T) {
	for _, c := range []struct {
		name     string
		stalls   int32 // requests that it stalls
		requests []string
	}{
		{"once", 1, []string{"a", "a bytes=50000-"}},
		{"for good", 100, []string{"a", "a bytes=50000-", "a bytes=50000-", "a bytes=50000-"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMirror(t)
			var calls atomic.Int32
			m.hook = func(w http.ResponseWriter, r *http.Request, _ string, body []byte) bool {
				n := calls.Add(1)
				if n > c.stalls {
					return false
				}
				if n == 1 {
					w.Header().Set("Content-Length", fmt.Sprint(len(body)))
					w.Write(body[:len(body)/2])
					w.(http.Flusher).Flush()
				}
				<-r.Context().Done()
				return true
			}
			s := openStore(t, t.TempDir())
			s.net.Stall = 300 * time.Millisecond
			err := s.fetch(context.Background(), m.add("a", randomBytes(100000)), func(int64) {})
			if c.stalls == 1 && err != nil || c.stalls > 1 && (err == nil || !strings.Contains(err.Error(), "no byte for 300ms; check the network")) {
				t.Errorf("fetch = %v", err)
			}
			if got := m.seen(); !slices.Equal(got, c.requests) {
				t.Errorf("requests = %q; want %q", got, c.requests)
			}
		})
	}
}

func TestFetchOutlivesBadMoments(t *testing.T) {
	m := newMirror(t)
	var calls atomic.Int32
	m.hook = func(w http.ResponseWriter, _ *http.Request, _ string, _ []byte) bool {
		if calls.Add(1) <= 2 {
			w.WriteHeader(http.StatusBadGateway)
			return true
		}
		return false
	}
	if err := fetched(t, openStore(t, t.TempDir()), m.add("a", randomBytes(1000))); err != nil {
		t.Fatal(err)
	}
}

func TestFetchOnceForAll(t *testing.T) {
	m := newMirror(t)
	m.hook = func(http.ResponseWriter, *http.Request, string, []byte) bool {
		time.Sleep(100 * time.Millisecond)
		return false
	}
	p := m.add("a", randomBytes(1<<20))
	dir := t.TempDir()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := openStore(t, dir).fetch(context.Background(), p, func(int64) {}); err != nil { // each store has its own open files
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := m.seen(); len(got) != 1 {
		t.Errorf("requests = %q; want one", got)
	}
}

// smallDisk gives a folder on a file system of that size, which only this process sees: it runs the test anew, in namespaces of
// its own, and gives "" when that is done.
func smallDisk(t *testing.T, size string) string {
	t.Helper()
	if os.Getenv("IMAGES_TEST_PRIVATE") == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), "IMAGES_TEST_PRIVATE=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		}
		out, err := cmd.CombinedOutput()
		if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
			need.Skip(t, "no namespaces here: %v", err)
		} else if err != nil {
			t.Errorf("%s", out)
		}
		return ""
	}
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// While it packs the disk fills up. With room again, the image is the one that it would have been.
func TestPackOnFullDisk(t *testing.T) {
	dir := smallDisk(t, "4m")
	if dir == "" {
		return
	}
	m := newMirror(t)
	lock := tinyLock(t, m)
	lock.Headers = append(lock.Headers, m.add("big", gz(t, makeTar(t, e("./usr/big", string(randomBytes(1<<20)))))))
	want := mustDigest(t, mustImage(t, mustRoot(t, openStore(t, t.TempDir()), lock)))
	s := openStore(t, dir)
	r := mustRoot(t, s, lock)
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=2800k"); err != nil {
		t.Fatal(err)
	}
	_, err := r.Image(context.Background())
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "no room in "+dir) {
		t.Errorf("Image = %v; want it to say that there is no room in %q", err, dir)
	}
	for _, f := range append(files(t, s.path("tmp")), files(t, s.path("packed"))...) {
		if !strings.HasPrefix(f, r.specs[0].key) && !strings.HasPrefix(f, r.specs[2].key) {
			t.Errorf("left %q", f)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=8m"); err != nil {
		t.Fatal(err)
	}
	if got := mustDigest(t, mustImage(t, r)); got != want {
		t.Errorf("the image is %s; want %s", got, want)
	}
}

func TestFetchOnFullDisk(t *testing.T) {
	dir := smallDisk(t, "256k")
	if dir == "" {
		return
	}
	m := newMirror(t)
	lock := tinyLock(t, m)
	lock.Headers = append(lock.Headers, m.add("big", randomBytes(1<<20)))
	s := openStore(t, dir)
	_, err := s.Root(context.Background(), lock, nil)
	if err == nil || !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "no space left") {
		t.Errorf("Root = %v; want it to say that %q has no space left", err, dir)
	}
	for _, f := range files(t, dir) {
		if strings.HasPrefix(f, "packages/sha256/") {
			if err := verifyFile(context.Background(), filepath.Join(dir, f), v1.Hash{Algorithm: "sha256", Hex: filepath.Base(f)}); err != nil {
				t.Error(err)
			}
		} else if !strings.HasPrefix(f, "packages/partial/") && !strings.HasPrefix(f, "roots/") {
			t.Errorf("left %q", f)
		}
	}
}

// TestHelperProcess is a process of its own for the tests that kill one.
func TestHelperProcess(t *testing.T) {
	if os.Getenv("IMAGES_TEST_HELPER") == "" {
		t.Skip("for other tests")
	}
	lock, err := readRoot(os.Getenv("IMAGES_TEST_LOCK"))
	if err != nil {
		t.Fatal(err)
	}
	s := openStore(t, os.Getenv("IMAGES_TEST_HELPER"))
	r, err := s.Root(context.Background(), lock.Lock, nil)
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("IMAGES_TEST_PACK") != "" {
		if _, err := r.Image(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Println("root is there")
	if os.Getenv("IMAGES_TEST_STAY") != "" {
		time.Sleep(time.Minute)
	}
	r.Close()
}

// helper starts a process that asks for a root.
func helper(t *testing.T, dir string, lock kernels.Lock, env ...string) (*exec.Cmd, *bytes.Buffer) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "lock.json")
	writeJSON(t, file, rootRecord{Lock: lock})
	cmd := exec.Command(os.Args[0], "-test.run=^TestHelperProcess$", "-test.v")
	cmd.Env = append(os.Environ(), append(env, "IMAGES_TEST_HELPER="+dir, "IMAGES_TEST_LOCK="+file)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return cmd, &out
}

func TestFetchResumesAfterKill(t *testing.T) {
	m := newMirror(t)
	lock := tinyLock(t, m)
	body := gz(t, makeTar(t, e("./usr/big", string(randomBytes(1<<20)))))
	lock.Headers = append(lock.Headers, m.add("zbig", body))
	half := make(chan struct{})
	var once sync.Once
	m.hook = func(w http.ResponseWriter, r *http.Request, name string, body []byte) bool {
		if name != "zbig" || r.Header.Get("Range") != "" {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		w.Write(body[:len(body)/2])
		w.(http.Flusher).Flush()
		once.Do(func() { close(half) })
		<-r.Context().Done()
		return true
	}
	dir := t.TempDir()
	cmd, out := helper(t, dir, lock)
	<-half
	partial := filepath.Join(dir, "packages", "partial", lock.Headers[1].Digest.Hex)
	for range 500 {
		if st, err := os.Stat(partial); err == nil && st.Size() == int64(len(body)/2) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	cmd.Process.Kill()
	if err := cmd.Wait(); err == nil {
		t.Fatalf("helper was not killed: %s", out)
	}
	mustRoot(t, openStore(t, dir), lock)
	if want := fmt.Sprintf("zbig bytes=%d-", len(body)/2); !slices.Contains(m.seen(), want) {
		t.Errorf("requests = %q; want %q", m.seen(), want)
	}
	if left := files(t, filepath.Join(dir, "tmp")); len(left) > 0 {
		t.Errorf("tmp has %v", left)
	}
}

// A package comes from whichever mirror has it whole; what one began, or an earlier run, another completes.
func TestFetchFromSeveralMirrors(t *testing.T) {
	body := randomBytes(1 << 20)
	half := len(body) / 2
	status := func(code int) func(http.ResponseWriter, *http.Request, string, []byte) bool {
		return func(w http.ResponseWriter, _ *http.Request, _ string, _ []byte) bool {
			w.WriteHeader(code)
			return true
		}
	}
	garbage := func(w http.ResponseWriter, _ *http.Request, _ string, body []byte) bool {
		w.Write(make([]byte, len(body)))
		return true
	}
	cut := func(w http.ResponseWriter, _ *http.Request, _ string, body []byte) bool {
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		w.Write(body[:half])
		w.(http.Flusher).Flush()
		time.Sleep(50 * time.Millisecond)
		panic(http.ErrAbortHandler)
	}
	for name, c := range map[string]struct {
		bad     func(http.ResponseWriter, *http.Request, string, []byte) bool
		partial []byte // of an earlier run
		want    []string
	}{
		"gone":    {status(404), nil, []string{"a"}},
		"down":    {status(503), nil, []string{"a"}},
		"garbage": {garbage, nil, []string{"a"}},
		"cut":     {cut, nil, []string{fmt.Sprintf("a bytes=%d-", half)}},
		"begun":   {status(404), body[:half], []string{fmt.Sprintf("a bytes=%d-", half)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad, good := newMirror(t), newMirror(t)
			bad.hook = c.bad
			p := bad.add("a", body)
			p.Mirrors = []string{good.add("a", body).URL}
			s := openStore(t, t.TempDir())
			if c.partial != nil {
				if err := os.WriteFile(s.path("packages", "partial", p.Digest.Hex), c.partial, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if err := fetched(t, s, p); err != nil {
				t.Fatal(err)
			}
			if got := good.seen(); !slices.Equal(got, c.want) || len(bad.seen()) != 1 {
				t.Errorf("requests = %q after %q; want %q", got, bad.seen(), c.want)
			}
		})
	}
	a, b := newMirror(t), newMirror(t)
	a.hook, b.hook = status(404), garbage
	p := a.add("a", body)
	p.Mirrors = []string{b.add("a", body).URL}
	err := fetched(t, openStore(t, t.TempDir()), p)
	if pe := (*PackageError)(nil); !errors.As(err, &pe) || !errors.Is(err, ErrGone) || !errors.Is(err, ErrMismatch) ||
		!strings.Contains(err.Error(), a.URL) || !strings.Contains(err.Error(), b.URL) || strings.Contains(err.Error(), "\n") {
		t.Errorf("both bad: %v", err)
	}
}
