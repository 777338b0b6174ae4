package dkmstest

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

func TestScript(t *testing.T) {
	out, err := exec.Command("bash", Script(t), "--version").CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "dkms-3.2.") {
		t.Errorf("dkms --version: %v, %q; want dkms-3.2.*, whose rules the tool follows", err, out)
	}
}

// newest gives the newest kernel of bookworm's 6.1 line.
func newest(t *testing.T, d *DKMS) kernels.Kernel {
	t.Helper()
	list, err := d.index.Kernels(t.Context(), "bookworm", "amd64")
	if err != nil {
		need.Skip(t, "no kernel to build for: %v", err)
	}
	for _, c := range list {
		if c.Flavour == kernels.HostArch() {
			return c.Kernel
		}
	}
	t.Fatal("bookworm has no kernel")
	return kernels.Kernel{}
}

func TestBuild(t *testing.T) {
	d, err := Open(Cache())
	if err != nil {
		t.Fatal(err)
	}
	root, err := d.Root(t.Context(), newest(t, d), nil)
	if err != nil {
		need.Skip(t, "no root to build on: %v", err)
	}
	defer root.Close()
	tree := t.TempDir()
	if err := os.CopyFS(filepath.Join(tree, "usr/src/hello-1.0"), os.DirFS("../../testdata/hello")); err != nil {
		t.Fatal(err)
	}
	conf, err := os.OpenFile(filepath.Join(tree, "usr/src/hello-1.0/dkms.conf"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	// The root of a build that root runs is this machine's to the kernel, which lets it write the settings in /proc/sys.
	_, err = conf.WriteString("\n[[ ! -e /proc/sys ]] || PACKAGE_NAME=\n")
	if err := errors.Join(err, conf.Close()); err != nil {
		t.Fatal(err)
	}
	r, err := root.Build(t.Context(), Job{Tree: tree, Module: "hello", Version: "1.0"})
	if err != nil {
		t.Fatal(err)
	}
	m := r.Modules["hello.ko"]
	if r.Code != 0 || !bytes.HasPrefix(m, []byte("\x7fELF")) || !bytes.Contains(m, []byte("vermagic="+root.kernel.Release+" ")) || r.Seconds <= 0 {
		t.Errorf("dkms: exit code %d, a module of %d bytes, %f s; want 0 and a module for %s\n%s%s", r.Code, len(m), r.Seconds, root.kernel.Release, r.Output, r.Log)
	}
	if !strings.Contains(r.Log, "make.log for hello/1.0 for kernel "+root.kernel.Release) {
		t.Errorf("the log is %q", r.Log)
	}
	r, err = root.Build(t.Context(), Job{Tree: tree, Module: "hello", Version: "2"})
	if err != nil || r.Code != 2 || len(r.Modules) > 0 {
		t.Errorf("a source that isn't there: %v, exit code %d, modules %d; want 2 and none", err, r.Code, len(r.Modules))
	}
}
