package host

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/dkmstest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// bookworm is the kernel that most tests are about.
var bookworm = artifact.Kernel{Distro: "debian", Suite: "bookworm", Arch: "amd64", Release: "6.1.0-56-amd64"}

var image = sync.OnceValues(func() (string, error) {
	d, err := dkmstest.Open(dkmstest.Cache())
	if err != nil {
		return "", err
	}
	return d.Image(context.Background(), kernels.Kernel(bookworm))
})

// own are the kernel's own modules that a test's root has.
var own = []string{"kernel/drivers/net/dummy.ko", "kernel/drivers/net/veth.ko", "kernel/drivers/net/mii.ko", "kernel/drivers/net/geneve.ko",
	"kernel/net/ipv4/udp_tunnel.ko", "kernel/net/ipv6/ip6_udp_tunnel.ko"}

// root is one for a test: a few modules of a real kernel, and what depmod has made of them.
type root struct {
	*Root
	lib  string
	warn *warnings
}

type warnings struct {
	sync.Mutex
	lines []string
}

func (w *warnings) add(s string) {
	w.Lock()
	defer w.Unlock()
	w.lines = append(w.lines, s)
}

func (w *warnings) has(parts ...string) bool {
	w.Lock()
	defer w.Unlock()
	return slices.ContainsFunc(w.lines, func(l string) bool {
		return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(l, p) })
	})
}

// newRoot makes a root with a bookworm kernel.
func newRoot(t testing.TB) *root {
	t.Helper()
	need.Program(t, "depmod")
	dir := t.TempDir()
	lib := filepath.Join(dir, "lib/modules", bookworm.Release)
	from, err := image()
	if err != nil {
		need.Skip(t, "no kernel's modules: %v", err)
	}
	for _, name := range append([]string{"modules.order", "modules.builtin", "modules.builtin.modinfo"}, own...) {
		copyFile(t, filepath.Join(from, name), filepath.Join(lib, name))
	}
	r := reopen(t, dir, Options{})
	r.add(t, "hello", "1.0")
	depmod(t, dir)
	return r
}

// reopen opens a root that is there.
func reopen(t testing.TB, dir string, o Options) *root {
	t.Helper()
	w := &warnings{}
	o.Warn = w.add
	r, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return &root{r, filepath.Join(dir, "lib/modules", bookworm.Release), w}
}

func (r *root) add(t testing.TB, module, version string) {
	t.Helper()
	if err := r.Add(context.Background(), Registration{Module: module, Version: version}); err != nil {
		t.Fatal(err)
	}
}

func depmod(t testing.TB, dir string) {
	t.Helper()
	if out, err := exec.Command(need.Program(t, "depmod"), "-b", dir, bookworm.Release).CombinedOutput(); err != nil {
		t.Fatalf("depmod: %v: %s", err, out)
	}
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(from)
	if err != nil {
		t.Fatal(err)
	}
	write(t, to, b)
	if err := os.Chtimes(to, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// bytesOf gives a module of the kernel's own, which stands in for one that was built: it fits.
func bytesOf(t testing.TB, name string) []byte {
	t.Helper()
	from, err := image()
	if err != nil {
		need.Skip(t, "no kernel's modules: %v", err)
	}
	b, err := os.ReadFile(filepath.Join(from, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// built makes an artifact of modules by their path below the kernel's folder.
func built(t testing.TB, module, version string, files map[string][]byte, extras ...artifact.Extra) v1.Image {
	t.Helper()
	hash := v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}
	meta := artifact.Meta{Module: module, Version: version, Kernel: bookworm, Key: hash, Source: hash, Lock: hash, Status: artifact.Built, Extras: extras}
	return builtAs(t, meta, files)
}

func builtAs(t testing.TB, meta artifact.Meta, files map[string][]byte) v1.Image {
	t.Helper()
	var list []artifact.File
	for path, b := range files {
		list = append(list, artifact.File{Name: filepath.Base(path), Dest: filepath.Dir(path), Size: int64(len(b)),
			Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }})
	}
	img, err := artifact.New(meta, list)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// resolves tells which file modprobe would load for a module.
func resolves(t testing.TB, dir, module string) string {
	t.Helper()
	out, err := exec.Command(need.Program(t, "modprobe"), "-d", dir, "-S", bookworm.Release, "--show-depends", module).CombinedOutput()
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	path := strings.TrimPrefix(strings.TrimSpace(lines[len(lines)-1]), "insmod ")
	return strings.TrimPrefix(path, filepath.Join(dir, "lib/modules", bookworm.Release)+"/")
}

func TestInstall(t *testing.T) {
	t.Parallel()
	r := newRoot(t)
	img := built(t, "hello", "1.0", map[string][]byte{"updates/dkms/hello.ko": bytesOf(t, "kernel/drivers/net/veth.ko")})
	rec, err := r.Install(t.Context(), Install{Artifact: img, From: "registry.example/hello"})
	if err != nil {
		t.Fatal(err)
	}
	if got := resolves(t, r.Dir(), "hello"); got != "updates/dkms/hello.ko" {
		t.Errorf("modprobe hello finds %q", got)
	}
	if len(rec.Files) != 1 || rec.State != Installed || rec.From != "registry.example/hello" {
		t.Errorf("record %+v", rec)
	}
	if m, err := r.Module("hello", "1.0"); err != nil || len(m.Records) != 1 || m.Records[0].State != Installed {
		t.Errorf("state %+v, %v", m, err)
	}
	rec, err = r.Uninstall(t.Context(), "hello", "1.0", bookworm)
	if err != nil || rec.State != Built {
		t.Fatalf("%+v, %v", rec, err)
	}
	if got := resolves(t, r.Dir(), "hello"); got != "" {
		t.Errorf("after uninstall modprobe hello finds %q", got)
	}
	for _, gone := range []string{"lib/modules/" + bookworm.Release + "/updates", "lib/modules/" + bookworm.Release + "/" + aside, StateDir + "/journal", StateDir + "/journal.json"} {
		if _, err := os.Lstat(filepath.Join(r.Dir(), gone)); err == nil {
			t.Errorf("%s is left", gone)
		}
	}
	if len(r.warn.lines) > 0 {
		t.Errorf("warnings %q", r.warn.lines)
	}
}
