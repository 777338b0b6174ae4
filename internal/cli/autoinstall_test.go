package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/cache"
	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/host"
	"github.com/godkms-hermetic/godkms-hermetic/internal/hosttest"
)

// autoHost is a host with the newest 6.1 kernel, on which hello/1.0 is registered.
func autoHost(t *testing.T, cache string) (*host.Root, artifact.Kernel) {
	t.Helper()
	k := hosttest.Kernel(t, "6.1.", "amd64")
	dir := filepath.Join(t.TempDir(), "r")
	if err := makeHost(dir, "../../testdata", []string{k.String()}); err != nil {
		t.Fatal(err)
	}
	root, err := host.Open(dir, host.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if code, out := call(t.Context(), "add", "hello/1.0", "--root", dir, "--cache-dir", cache); code != 0 {
		t.Fatalf("add: exit code %d: %s", code, out)
	}
	return root, artifact.Kernel(k)
}

// call runs the program in this process.
func call(ctx context.Context, args ...string) (code int, out string) {
	var b bytes.Buffer
	code = Main(ctx, args, &b, &b)
	return code, b.String()
}

func recordOf(t *testing.T, root *host.Root, k artifact.Kernel, module, version string) host.Record {
	t.Helper()
	m, err := root.Module(module, version)
	if err != nil {
		t.Fatal(err)
	}
	rec, _ := m.Find(k.Release, k.Arch)
	return rec
}

// A distribution can put another kernel in the place of one with the same release: what was built for that is built, or looked for,
// again. dkms leaves it as it is.
func TestAutoinstallAfterAnABIChange(t *testing.T) {
	shared := sharedCache(t)
	root, k := autoHost(t, shared)
	program(t, shared, "autoinstall", "--root", root.Dir())
	was := recordOf(t, root, k, "hello", "1.0")

	// What is installed becomes one that was built for other headers.
	results, err := cache.Open(filepath.Join(root.Dir(), host.StateDir, "results"), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	e, err := results.Get(t.Context(), was.Key)
	if err != nil {
		t.Fatal(err)
	}
	meta, files, err := artifact.Read(e.Image)
	if err != nil {
		t.Fatal(err)
	}
	right := meta.Symvers
	meta.Symvers, meta.Key = hashOf("other headers"), hashOf("another key")
	other, err := artifact.New(meta, files)
	if err != nil {
		t.Fatal(err)
	}
	if err := results.Put(t.Context(), meta.Key, cache.Entry{Image: other}); err != nil {
		t.Fatal(err)
	}
	if _, err := root.Install(t.Context(), host.Install{Artifact: other, Force: true}); err != nil {
		t.Fatal(err)
	}
	if rec := recordOf(t, root, k, "hello", "1.0"); rec.Key != meta.Key {
		t.Fatalf("what is installed is %+v", rec)
	}
	if out := program(t, shared, "autoinstall", "--root", root.Dir()); len(out) > 0 {
		t.Errorf("without headers to compare with autoinstall says %s", out)
	}

	program(t, shared, "image", "build", "debian/bookworm:"+k.Release)
	symvers, err := filepath.Glob(filepath.Join(shared, "images/layers/*/fs/usr/src/linux-headers-"+k.Release+"/Module.symvers"))
	if err != nil {
		t.Fatal(err)
	}
	headers := filepath.Join(root.Dir(), "usr/src/linux-headers-"+k.Release)
	if err := os.MkdirAll(headers, 0o755); err != nil {
		t.Fatal(err)
	}
	found := false
	for _, name := range symvers {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if sum := sha256.Sum256(b); hex.EncodeToString(sum[:]) == right.Hex {
			found = true
			if err := os.WriteFile(filepath.Join(headers, "Module.symvers"), b, 0o644); err != nil {
				t.Fatal(err)
			}
			break
		}
	}
	if !found {
		t.Fatalf("none of %q is what the module was built against", symvers)
	}
	if out := program(t, shared, "autoinstall", "--root", root.Dir()); !strings.Contains(string(out), "succeeded for module(s) hello.") {
		t.Errorf("with other headers autoinstall says %q", out)
	}
	if rec := recordOf(t, root, k, "hello", "1.0"); rec.Key != was.Key || rec.Artifact != was.Artifact {
		t.Errorf("what is installed is %+v; want %+v", rec, was)
	}
	if out := program(t, shared, "autoinstall", "--root", root.Dir()); len(out) > 0 {
		t.Errorf("when all is well autoinstall says %s", out)
	}
}

// A mirror that doesn't answer holds a kernel's installation up for so long only. What is ready is installed.
func TestAutoinstallInTime(t *testing.T) {
	shared := sharedCache(t)
	root, k := autoHost(t, shared)
	const limit = 2 * time.Second
	l, err := net.Listen("tcp", "127.0.0.1:0") // which says nothing
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	source := filepath.Join(t.TempDir(), "ready")
	if err := os.CopyFS(source, os.DirFS("../../testdata/hello")); err != nil {
		t.Fatal(err)
	}
	for _, edit := range []string{"s/^BUILT_MODULE_NAME.*/&\\nDEST_MODULE_NAME[0]=ready/", "s/PACKAGE_NAME=.*/PACKAGE_NAME=ready/"} {
		if out, err := exec.Command("sed", "-i", edit, filepath.Join(source, "dkms.conf")).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	program(t, shared, "build", source, "--kernels", "debian/bookworm:"+k.Release, "--out", t.TempDir(), "--push", "oci:"+filepath.Join(source, "layout"))
	program(t, shared, "add", "oci:"+filepath.Join(source, "layout"), "--root", root.Dir())
	args := []string{"autoinstall", "--root", root.Dir(), "--cache-dir", t.TempDir(), "--mirror", "debian=http://" + l.Addr().String() + "/debian"}

	start := time.Now()
	code, out := call(t.Context(), append(args, "--timeout", limit.String())...)
	if took := time.Since(start); code != exitAuto || took < limit || took > 20*time.Second {
		t.Errorf("after %s: exit code %d\n%s", took, code, out)
	}
	if rec := recordOf(t, root, k, "ready", "1.0"); rec.State != host.Installed {
		t.Errorf("what was ready is %q: %s\n%s", rec.State, rec.Reason, out)
	}
	if rec := recordOf(t, root, k, "hello", "1.0"); rec.State != host.Failed || rec.Reason != "given up after 2s" {
		t.Errorf("what wasn't ready is %q: %q", rec.State, rec.Reason)
	}

	// An interruption isn't a failure.
	if err := root.Forget(t.Context(), "hello", "1.0", k); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithTimeout(t.Context(), limit)
	defer stop()
	if code, out := call(ctx, args...); code != exitSignal {
		t.Errorf("interrupted: exit code %d\n%s", code, out)
	}
	if rec := recordOf(t, root, k, "hello", "1.0"); rec.State != "" {
		t.Errorf("after an interruption there is a record: %+v", rec)
	}
}

// A kernel that comes is newer than an index of some hours ago: the mirror is asked.
func TestAutoinstallAsksTheMirror(t *testing.T) {
	shared := sharedCache(t)
	base, err := mirrorURL(shared)
	if err != nil {
		t.Fatal(err)
	}
	var asked atomic.Int32
	mirror := spoil(base, "")
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if path.Base(r.URL.Path) == "InRelease" {
			asked.Add(1)
		}
		mirror.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	dir := t.TempDir()
	if out, err := exec.Command("cp", "-a", filepath.Join(shared, "index"), dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	root, _ := autoHost(t, dir)
	for range 2 {
		asked.Store(0)
		if code, out := call(t.Context(), "gate", "-k", "6.1.0-0-amd64", "--root", root.Dir(), "--cache-dir", dir, "--mirror", "debian="+s.URL+"/debian"); code != exitAuto {
			t.Fatalf("exit code %d\n%s", code, out)
		}
		if asked.Load() == 0 {
			t.Error("the mirror wasn't asked for its index")
		}
	}
}
