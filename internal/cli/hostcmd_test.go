package cli

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1registry "github.com/google/go-containerregistry/pkg/registry"

	"github.com/godkms-hermetic/godkms-hermetic/internal/dkmstest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/hosttest"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// makeHost makes the root of a bookworm host: of each kernel a few modules and what depmod makes of them, and two sources.
func makeHost(dir, trees string, list []string) error {
	d, err := dkmstest.Open(dkmstest.Cache())
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "etc"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "etc/os-release"), []byte("ID=debian\nVERSION_CODENAME=bookworm\n"), 0o644); err != nil {
		return err
	}
	for _, name := range list {
		s, err := kernels.ParseSelector(name)
		if err != nil {
			return err
		}
		from, err := d.Image(context.Background(), kernels.Kernel{Distro: s.Distro, Suite: s.Suite, Arch: kernels.HostArch(), Release: s.Release})
		if err != nil {
			return err
		}
		to := filepath.Join(dir, "lib/modules", s.Release)
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		cp := exec.Command("sh", "-c", `cp --parents modules.order modules.builtin modules.builtin.modinfo kernel/drivers/net/dummy.ko* kernel/drivers/net/veth.ko* "$1"`, "sh", to)
		cp.Dir = from
		for _, cmd := range []*exec.Cmd{cp, exec.Command("depmod", "-b", dir, s.Release)} {
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
			}
		}
	}
	src := filepath.Join(dir, "usr/src")
	if err := os.MkdirAll(src, 0o755); err != nil {
		return err
	}
	for from, to := range map[string]string{"hello": "hello-1.0", "importer": "importer-3"} {
		if err := os.CopyFS(filepath.Join(src, to), os.DirFS(filepath.Join(trees, from))); err != nil {
			return err
		}
	}
	return nil
}

// The recipe that users of dkms know works word for word, on a Debian with the newest kernel's modules and without a compiler or headers:
// with its source in /usr/src, in both spellings, and prebuilt from a directory and from a registry.
func TestRecipe(t *testing.T) {
	exe, err := exec.LookPath("godkms-hermetic")
	if err != nil {
		t.Fatal(err)
	}
	r := hosttest.New(t, exe)
	k := hostKernel(t, r.Dir)
	copySource(t, "hello", filepath.Join(r.Dir, "usr/src/hello-1.0"))
	must := func(want string, args ...string) {
		t.Helper()
		if out := r.Must(args...); !strings.Contains(out, want) {
			t.Errorf("%q prints %q; want %q", args, out, want)
		}
	}
	found := "/lib/modules/" + k.Release + "/updates/dkms/hello.ko"
	name := "hello/1.0, " + k.Release + ", x86_64: "

	if out, code := r.Run("sh", "-c", "command -v gcc make || ls -d /usr/src/linux-headers-*"); code == 0 {
		t.Errorf("the host has %s", out)
	}
	must("hello/1.0: added", "godkms-hermetic", "add", "hello/1.0")
	must(name+"built", "godkms-hermetic", "build", "hello/1.0")
	must(name+"installed", "godkms-hermetic", "install", "hello/1.0")
	must(found, "modprobe", "--show-depends", "-S", k.Release, "hello")
	must(name+"installed", "godkms-hermetic", "status")
	must("hello/1.0: removed", "godkms-hermetic", "remove", "hello/1.0", "--all", "--no-depmod")

	must("hello/1.0: added", "godkms-hermetic", "add", "-m", "hello", "-v", "1.0")
	must(name+"built", "godkms-hermetic", "build", "-m", "hello", "-v", "1.0")
	must(name+"installed", "godkms-hermetic", "install", "-m", "hello", "-v", "1.0")
	must(found, "modprobe", "--show-depends", "-S", k.Release, "hello")
	must("hello/1.0: removed", "godkms-hermetic", "remove", "-m", "hello", "-v", "1.0", "--all", "--no-depmod")

	// Prebuilt, and nothing to build with at all.
	server := httptest.NewServer(v1registry.New(v1registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	reference := strings.TrimPrefix(server.URL, "http://") + "/modules/hello"
	shared := sharedCache(t)
	program(t, shared, "build", filepath.Join("../../testdata/hello"), "--kernels", k.String(), "-q", "--out", t.TempDir(), "--push", "oci:"+filepath.Join(r.Dir, "root/layout"))
	program(t, shared, "build", filepath.Join("../../testdata/hello"), "--kernels", k.String(), "-q", "--out", t.TempDir(), "--push", reference)
	if err := os.RemoveAll(filepath.Join(r.Dir, "usr/src/hello-1.0")); err != nil {
		t.Fatal(err)
	}
	empty := []string{"--cache-dir", "/root/empty", "-q"}
	for _, ref := range []string{"oci:/root/layout", reference} {
		must("hello/1.0: added", append([]string{"godkms-hermetic", "add", ref}, empty...)...)
		must(name+"installed", append([]string{"godkms-hermetic", "install", "hello/1.0"}, empty...)...)
		must(found, "modprobe", "--show-depends", "-S", k.Release, "hello")
		must("hello/1.0: removed", "godkms-hermetic", "remove", "hello/1.0", "--all", "--no-depmod")
	}
	if _, err := os.Stat(filepath.Join(r.Dir, "root/empty/images")); err == nil {
		t.Error("there is something to build with")
	}

	// Scripts of the host's own: what POST_ADD does is there, and one that fails undoes the adding; so does PRE_INSTALL the install.
	for name, conf := range map[string]string{"good": "POST_ADD='ran.sh one two'", "bad": "POST_ADD='ran.sh fail'", "refused": "PRE_INSTALL='ran.sh fail'"} {
		dir := filepath.Join(r.Dir, "usr/src", name+"-1.0")
		copySource(t, "hello", dir)
		text, err := os.ReadFile(filepath.Join(dir, "dkms.conf"))
		if err != nil {
			t.Fatal(err)
		}
		text = []byte(strings.Replace(string(text), `PACKAGE_NAME="hello"`, "PACKAGE_NAME="+name, 1) + "\n" + conf + "\n")
		if err := os.WriteFile(filepath.Join(dir, "dkms.conf"), text, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "ran.sh"), []byte("#!/bin/sh\npwd >/root/ran\necho $* >>/root/ran\n[ $1 != fail ]\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	must("good/1.0: added", "godkms-hermetic", "add", "good/1.0")
	if b, err := os.ReadFile(filepath.Join(r.Dir, "root/ran")); err != nil || string(b) != "/usr/src/good-1.0\none two\n" {
		t.Errorf("POST_ADD: %q, %v", b, err)
	}
	if out, code := r.Run("godkms-hermetic", "add", "bad/1.0"); code != exitUsage || !strings.Contains(out, "POST_ADD") {
		t.Errorf("a POST_ADD that fails: exit code %d: %s", code, out)
	}
	if out, code := r.Run("godkms-hermetic", "install", "refused/1.0", "-q"); code != exitPre || !strings.Contains(out, "PRE_INSTALL") {
		t.Errorf("a PRE_INSTALL that fails: exit code %d: %s", code, out)
	}
	if out := r.Must("godkms-hermetic", "status"); strings.Contains(out, "bad") || !strings.Contains(out, "refused/1.0, "+k.Release+", x86_64: built\n") {
		t.Errorf("status is %s", out)
	}
}

// hostKernel gives a root the modules of the newest kernel of bookworm, and nothing else of it.
func hostKernel(t *testing.T, root string) kernels.Kernel {
	t.Helper()
	d, err := dkmstest.Open(dkmstest.Cache())
	if err != nil {
		t.Fatal(err)
	}
	list, err := d.Kernels(t.Context(), hosttest.Suite)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(c kernels.Candidate) bool { return c.Latest })
	if i < 0 {
		t.Fatalf("%s has no kernel", hosttest.Suite)
	}
	k := list[i].Kernel
	from, err := d.Image(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	// A link is as good as a copy where it can be made: nothing writes to the kernel's own modules.
	to := filepath.Join(root, "usr/lib/modules", k.Release)
	if out, err := exec.Command("sh", "-c", `mkdir -p "${2%/*}" && cp -al "$1" "$2" 2>/dev/null || { rm -rf "$2" && cp -a "$1" "$2"; }`, "sh", from, to).CombinedOutput(); err != nil {
		t.Fatalf("copy the modules: %v\n%s", err, out)
	}
	return k
}

func copySource(t *testing.T, name, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(filepath.Join("../../testdata", name))); err != nil {
		t.Fatal(err)
	}
}
