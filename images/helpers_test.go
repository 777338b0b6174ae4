package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
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
	"github.com/klauspost/compress/zstd"

	"github.com/godkms-hermetic/godkms-hermetic/internal/decompress"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// In these tests a package is a compressed tar, which decompress opens.
func tarPayload(_ string, pkg io.Reader) (io.ReadCloser, error) { return decompress.NewReader(pkg) }

// ent is an archive entry with a file's text.
type ent struct {
	tar.Header
	text string
}

// e makes an archive entry: "name/" is a folder, "name -> to" a symbolic link, "name => to" a hard link, else a file.
func e(spec, text string) ent {
	h := tar.Header{Name: spec, Typeflag: tar.TypeReg, Mode: 0o644, ModTime: time.Unix(1700000000, 0)}
	if name, to, ok := strings.Cut(spec, " -> "); ok {
		h.Name, h.Linkname, h.Typeflag = name, to, tar.TypeSymlink
	} else if name, to, ok := strings.Cut(spec, " => "); ok {
		h.Name, h.Linkname, h.Typeflag = name, to, tar.TypeLink
	} else if strings.HasSuffix(spec, "/") {
		h.Typeflag, h.Mode = tar.TypeDir, 0o755
	}
	return ent{h, text}
}

func makeTar(t testing.TB, entries ...ent) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range entries {
		if h.Typeflag != tar.TypeReg {
			h.text = ""
		}
		h.Size = int64(len(h.text))
		if err := w.WriteHeader(&h.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, h.text); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func gz(t testing.TB, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := gzip.NewWriter(&buf)
	w.Write(b)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

func zst(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

// packageServer serves packages, and does to them what a test asks for.
type packageServer struct {
	*httptest.Server
	mu       sync.Mutex
	files    map[string][]byte
	requests []string // "name range"
	hook     func(w http.ResponseWriter, r *http.Request, name string, body []byte) bool
}

func newMirror(t testing.TB) *packageServer {
	m := &packageServer{files: map[string][]byte{}}
	m.Server = httptest.NewServer(m)
	t.Cleanup(m.Close)
	return m
}

func (m *packageServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/")
	m.mu.Lock()
	m.requests = append(m.requests, strings.TrimSpace(name+" "+r.Header.Get("Range")))
	body, ok := m.files[name]
	hook := m.hook
	m.mu.Unlock()
	if hook != nil && hook(w, r, name, body) {
		return
	}
	if !ok {
		http.NotFound(w, r)
		return
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

func (m *packageServer) seen() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.requests)
}

func (m *packageServer) add(name string, body []byte) kernels.Package {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.files[name] = body
	sum := sha256.Sum256(body)
	return kernels.Package{Name: name, Version: "1.0-1", Arch: "amd64", URL: m.URL + "/" + name, Size: int64(len(body)),
		Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}}
}

// tinyLock is a lock of small packages that have a bit of everything: shared paths, hard links, all compressions, documents.
func tinyLock(t testing.TB, m *packageServer) kernels.Lock { return tinyLockIn(t, m, gz, zst) }

// plain is for golden digests: compressors may change.
func plain(_ testing.TB, b []byte) []byte { return b }

func tinyLockIn(t testing.TB, m *packageServer, gz, zst func(testing.TB, []byte) []byte) kernels.Lock {
	t.Helper()
	lock := kernels.Lock{Kernel: kernels.Kernel{Distro: "debian", Suite: "bookworm", Arch: "amd64", Release: "6.1.0-9-amd64"}, Compiler: "gcc-12"}
	setuid := e("./bin/su", "su")
	setuid.Mode = 0o4755
	lock.Toolchain = []kernels.Package{
		m.add("coreutils", gz(t, makeTar(t, e("./", ""), e("./bin/", ""), e("./bin/date", "date"), e("./bin/uname", "uname"), setuid,
			e("./usr/bin/install => ./bin/su", ""), e("./usr/share/doc/coreutils/", ""), e("./usr/share/doc/coreutils/copyright", "(c)"),
			e("./usr/share/doc/coreutils/changelog.gz", "no"), e("./usr/share/man/man1/date.1.gz", "no")))),
		m.add("dash", zst(t, makeTar(t, e("./bin/dash", "dash"), e("./bin/sh -> dash", "")))),
		m.add("gcc-12", makeTar(t, e("./usr/bin/gcc-12 -> x86_64-linux-gnu-gcc-12", ""),
			e("./usr/bin/x86_64-linux-gnu-gcc-12", strings.Repeat("gcc", 100000)), e("./usr/share/both", "gcc"))),
		m.add("mawk", gz(t, makeTar(t, e("./usr/bin/mawk", "mawk"), e("./usr/share/both", "mawk")))),
	}
	lock.Headers = []kernels.Package{
		m.add("linux-headers-6.1.0-9-amd64", gz(t, makeTar(t, e("./lib/modules/6.1.0-9-amd64/", ""),
			e("./usr/src/linux-headers-6.1.0-9-amd64/.config", "CONFIG_MODULES=y\n")))),
	}
	return lock
}

func openStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(Options{Dir: dir, Payload: tarPayload})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func mustRoot(t testing.TB, s *Store, lock kernels.Lock) *Root {
	t.Helper()
	r, err := s.Root(context.Background(), lock, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// files lists what is below a folder, without locks.
func files(t testing.TB, dir string) []string {
	t.Helper()
	var list []string
	err := filepath.Walk(dir, func(p string, st os.FileInfo, err error) error {
		if err == nil && !st.IsDir() && !strings.Contains(p, "lock") {
			list = append(list, p[len(dir)+1:])
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// describe gives a folder in full: names, kinds, modes, times, texts.
func describe(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.Walk(dir, func(p string, st os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %v %d", strings.TrimPrefix(p, dir), st.Mode(), st.ModTime().Unix())
		switch {
		case st.Mode()&os.ModeSymlink != 0:
			to, err := os.Readlink(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " -> %s", to)
		case st.Mode().IsRegular():
			text, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %.40q", text)
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func sha256Name(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}
