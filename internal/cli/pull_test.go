package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	v1registry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
)

// pulled is a repository with an artifact of one module, hello.ko, for debian/bookworm:6.1.0-1-amd64.
type pulled struct {
	ref   string
	repo  *registry.Repo
	layer v1.Hash
	fault atomic.Pointer[func(http.ResponseWriter, *http.Request) (answered bool)]
}

func newPulled(t *testing.T, module []byte) *pulled {
	t.Helper()
	p := &pulled{}
	inner := v1registry.New(v1registry.Logger(log.New(io.Discard, "", 0)), v1registry.WithReferrersSupport(true))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if fault := p.fault.Load(); fault == nil || !(*fault)(w, r) {
			inner.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	p.ref = strings.TrimPrefix(s.URL, "http://") + "/modules/hello"
	c, err := registry.New(registry.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	ref, err := registry.Parse(p.ref)
	if err != nil {
		t.Fatal(err)
	}
	if p.repo, err = c.Open(ref); err != nil {
		t.Fatal(err)
	}
	digest, _, err := v1.SHA256(strings.NewReader("x"))
	if err != nil {
		t.Fatal(err)
	}
	img, err := artifact.New(artifact.Meta{
		Module: "hello", Version: "1.0", Kernel: artifact.Kernel{Distro: "debian", Suite: "bookworm", Arch: "amd64", Release: "6.1.0-1-amd64"},
		Key: digest, Source: digest, Lock: digest, Status: artifact.Built,
	}, []artifact.File{{Name: "hello.ko", Dest: "updates/dkms", Size: int64(len(module)),
		Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(module)), nil }}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := artifact.Publish(t.Context(), p.repo, []artifact.Publication{{Image: img}}); err != nil {
		t.Fatal(err)
	}
	m, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	p.layer = m.Layers[0].Digest
	return p
}

// pull runs the command, to a folder that isn't there yet.
func (p *pulled) pull(t *testing.T) (code int, stderr, out string) {
	t.Helper()
	var stdout, errs bytes.Buffer
	out = filepath.Join(t.TempDir(), "built", "modules")
	a := &app{stdout: &stdout, stderr: &errs, env: func(string) string { return "" }}
	code = a.run(context.Background(), []string{"pull", p.ref, "--kernel", "debian/bookworm:6.1.0-1-amd64", "--out", out,
		"--cache-dir", t.TempDir(), "--arch", "amd64"})
	return code, errs.String(), out
}

// What is wrong with the registry while the modules come is no fault of the folder for them.
func TestPullBreaks(t *testing.T) {
	p := newPulled(t, bytes.Repeat([]byte("x"), 100_000))
	refuses := func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, p.layer.String()) {
			return false
		}
		w.WriteHeader(http.StatusForbidden)
		return true
	}
	p.fault.Store(&refuses)
	code, stderr, out := p.pull(t)
	if code != exitRegistry || strings.Contains(stderr, "--out") || !strings.Contains(stderr, "docker login") {
		t.Errorf("pull from a registry that refuses the layer = %d: %s", code, stderr)
	}
	if _, err := os.Lstat(filepath.Dir(out)); err == nil {
		t.Errorf("it leaves %q", filepath.Dir(out))
	}
	p.fault.Store(nil)
	code, stderr, out = p.pull(t)
	if b, err := os.ReadFile(filepath.Join(out, "debian-bookworm", "6.1.0-1-amd64", "hello.ko")); code != 0 || err != nil || len(b) != 100_000 {
		t.Errorf("pull = %d, %d bytes, %v: %s", code, len(b), err, stderr)
	}
}

// An index that isn't to be believed makes nobody download anything.
func TestPullChecksFirst(t *testing.T) {
	p := newPulled(t, []byte("module"))
	_, raw, err := p.repo.Manifest(t.Context(), "1.0")
	if err != nil {
		t.Fatal(err)
	}
	var idx v1.IndexManifest
	if err := json.Unmarshal(raw, &idx); err != nil {
		t.Fatal(err)
	}
	idx.Manifests[0].Annotations[artifact.AnnotationSize] = "1000000000"
	if raw, err = json.Marshal(idx); err != nil {
		t.Fatal(err)
	}
	if err := p.repo.PutManifest(t.Context(), "1.0", artifact.IndexType, raw); err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int64
	count := func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, p.layer.String()) {
			asked.Add(1)
		}
		return false
	}
	p.fault.Store(&count)
	if code, stderr, _ := p.pull(t); code != exitRegistry || asked.Load() > 0 {
		t.Errorf("pull = %d, with %d requests for the layer: %s", code, asked.Load(), stderr)
	}
	run(t, t.TempDir(), "inspect", p.ref, "--kernel", "6.1.0-1-amd64", "--arch", "amd64").wants(t, exitRegistry, "not what its index says")
}

// What an artifact says of itself stays in its line.
func TestInspectedText(t *testing.T) {
	if text := (inspected{Compiler: "gcc\n  key\tsha256:0"}).text(); strings.Count(text, "\n") != 3 {
		t.Errorf("text = %q", text)
	}
}

// Where no host is looked at, the folder that the program runs in isn't taken for one.
func TestNoHost(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if err := os.MkdirAll("usr/src/linux-headers-6.1", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("usr/src/linux-headers-6.1/Module.symvers", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, found, err := (machine{}).symvers("6.1"); found || err != nil {
		t.Errorf("symvers of no host = %v, %v", found, err)
	}
	if _, found, err := (machine{root: dir}).symvers("6.1"); !found || err != nil {
		t.Errorf("symvers = %v, %v", found, err)
	}
	if err := errors.Join(os.Mkdir("etc", 0o755), unix.Mkfifo("etc/os-release", 0o644)); err != nil { // an image's, that nobody writes to
		t.Fatal(err)
	}
	if m := readMachine(dir, ""); m.distro != "" {
		t.Errorf("a pipe says that it's %s", m.distro)
	}
}
