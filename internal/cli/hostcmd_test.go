package cli

import (
	"bytes"
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
	t.Parallel()
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

	few(t, r.Dir, k.Release)
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
	program(t, shared, "build", filepath.Join("../../testdata/hello"), "--kernels", k.String(), "-q", "--out", t.TempDir(), "--push", "oci:"+filepath.Join(r.Dir, "srv/layout"))
	program(t, shared, "build", filepath.Join("../../testdata/hello"), "--kernels", k.String(), "-q", "--out", t.TempDir(), "--push", reference)
	if err := os.RemoveAll(filepath.Join(r.Dir, "usr/src/hello-1.0")); err != nil {
		t.Fatal(err)
	}
	empty := []string{"--cache-dir", "/srv/empty", "-q"}
	for _, ref := range []string{"oci:/srv/layout", reference} {
		must("hello/1.0: added", append([]string{"godkms-hermetic", "add", ref}, empty...)...)
		must(name+"installed", append([]string{"godkms-hermetic", "install", "hello/1.0"}, empty...)...)
		must(found, "modprobe", "--show-depends", "-S", k.Release, "hello")
		must("hello/1.0: removed", "godkms-hermetic", "remove", "hello/1.0", "--all", "--no-depmod")
	}
	if _, err := os.Stat(filepath.Join(r.Dir, "srv/empty/images")); err == nil {
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
		if err := os.WriteFile(filepath.Join(dir, "ran.sh"), []byte("#!/bin/sh\npwd >/srv/ran\necho $* >>/srv/ran\n[ $1 != fail ]\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	must("good/1.0: added", "godkms-hermetic", "add", "good/1.0")
	if b, err := os.ReadFile(filepath.Join(r.Dir, "srv/ran")); err != nil || string(b) != "/usr/src/good-1.0\none two\n" {
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

// Modules that real dkms has built and installed are taken over, those that others need first. One that can't be had stays dkms's, to the
// last file.
func TestAdopt(t *testing.T) {
	t.Parallel()
	d, err := dkmstest.Open(dkmstest.Cache())
	if err != nil {
		t.Fatal(err)
	}
	tree, end := t.TempDir(), t.TempDir()
	k := hostKernel(t, tree)
	few(t, tree, k.Release)
	for name, to := range map[string]string{"hello": "hello-1.0", "exporter": "exporter-1.2", "importer": "importer-3"} {
		copySource(t, name, filepath.Join(tree, "usr/src", to))
		copySource(t, name, filepath.Join(end, "usr/src", to))
	}
	root, err := d.Root(t.Context(), k, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	session, err := root.Run(t.Context(), tree, end, [][]string{
		{"dkms", "install", "exporter/1.2", "-k", k.Release}, {"dkms", "install", "importer/3", "-k", k.Release}, {"dkms", "install", "hello/1.0", "-k", k.Release},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range session.Steps {
		if s.Code != 0 {
			t.Fatalf("dkms: exit code %d: %s", s.Code, s.Output)
		}
	}
	if err := os.MkdirAll(filepath.Join(end, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"etc/os-release": "ID=debian\nVERSION_CODENAME=bookworm\n", "usr/src/hello-1.0/hello.c": "#error no\n"} {
		if err := os.WriteFile(filepath.Join(end, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("usr/lib", filepath.Join(end, "lib")); err != nil {
		t.Fatal(err)
	}
	ours := func(want string, code int, args ...string) {
		t.Helper()
		var out, errs bytes.Buffer
		got := Main(t.Context(), append(args, "--root", end, "--cache-dir", sharedCache(t), "-q"), &out, &errs)
		if got != code || out.String() != want {
			t.Errorf("%q: exit code %d, prints\n%s\nwant %d and\n%s\n%s", args, got, &out, code, want, &errs)
		}
	}
	at := ", " + k.Release + ", x86_64: installed"
	ours("exporter/1.2"+at+" (by dkms)\nhello/1.0"+at+" (by dkms)\nimporter/3"+at+" (by dkms)\n", 0, "status")
	ours("", 1, "adopt")
	ours("", 3, "adopt", "other/1")
	ours("exporter/1.2"+at+"\nimporter/3"+at+"\n", exitBuild, "adopt", "--all")
	ours("exporter/1.2"+at+"\nhello/1.0"+at+" (by dkms)\nimporter/3"+at+"\n", 0, "status")
	if out, err := exec.Command("modprobe", "-d", end, "-S", k.Release, "--show-depends", "importer").CombinedOutput(); err != nil || !strings.Contains(string(out), "dkms/exporter.ko.xz") {
		t.Errorf("modprobe finds %s (%v)", out, err)
	}

	copySource(t, "hello", filepath.Join(end, "usr/src/again"))
	if err := os.Rename(filepath.Join(end, "usr/src/again/hello.c"), filepath.Join(end, "usr/src/hello-1.0/hello.c")); err != nil {
		t.Fatal(err)
	}
	ours("hello/1.0"+at+"\n", 0, "adopt", "hello/1.0")
	for _, m := range []string{"hello/1.0", "importer/3", "exporter/1.2"} {
		ours(m+", "+k.Release+", x86_64: unbuilt\n"+m+": removed\n", 0, "remove", m, "--all")
	}
	if left, err := filepath.Glob(filepath.Join(end, "usr/lib/modules", k.Release, "updates/dkms/*")); err != nil || len(left) > 0 {
		t.Errorf("there still is %q", left)
	}
}

// few leaves one module of a kernel in a root, for depmod reads all, which takes five seconds.
func few(t *testing.T, root, release string) {
	t.Helper()
	find := exec.Command("find", filepath.Join(root, "usr/lib/modules", release, "kernel"), "-name", "*.ko*", "!", "-name", "dummy.ko*", "-delete")
	if out, err := find.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
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
	i := slices.IndexFunc(list, func(c kernels.Candidate) bool { return c.Flavour == kernels.HostArch() })
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
