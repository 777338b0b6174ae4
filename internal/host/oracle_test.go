package host

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/decompress"
	"github.com/godkms-hermetic/godkms-hermetic/internal/dkmstest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// oracle is a root of real dkms for the newest kernel of bookworm, and the folder of that kernel's own modules.
func oracle(t *testing.T) (*dkmstest.Root, kernels.Kernel, string) {
	t.Helper()
	d, err := dkmstest.Open(dkmstest.Cache())
	if err != nil {
		t.Fatal(err)
	}
	list, err := d.Kernels(t.Context(), "bookworm")
	if err != nil {
		need.Skip(t, "no kernel: %v", err)
	}
	for _, c := range list {
		if c.Flavour != kernels.HostArch() {
			continue
		}
		root, err := d.Root(t.Context(), c.Kernel, nil)
		if err != nil {
			need.Skip(t, "no root for dkms: %v", err)
		}
		t.Cleanup(root.Close)
		image, err := d.Image(t.Context(), c.Kernel)
		if err != nil {
			need.Skip(t, "no modules of %s: %v", c.Kernel, err)
		}
		return root, c.Kernel, image
	}
	t.Fatal("bookworm has no kernel")
	return nil, kernels.Kernel{}, ""
}

// dummySource writes the source of a module that has the name of one of the kernel's own.
func dummySource(t *testing.T, root, version string) {
	t.Helper()
	dir := filepath.Join(root, "usr/src/dummy-"+version)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"Makefile":  "obj-m := dummy.o\n",
		"dkms.conf": fmt.Sprintf("PACKAGE_NAME=dummy\nPACKAGE_VERSION=%s\nBUILT_MODULE_NAME=dummy\nDEST_MODULE_LOCATION=/kernel/drivers/net\n", version),
		"dummy.c":   fmt.Sprintf("#include <linux/module.h>\nMODULE_LICENSE(\"GPL\");\nMODULE_DESCRIPTION(\"Has a name that is taken\");\nMODULE_VERSION(\"%s\");\n", version),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// ownModules puts a few of a kernel's own modules into a root.
func ownModules(t *testing.T, root, image, release string) {
	t.Helper()
	lib := filepath.Join(root, "usr/lib/modules", release)
	for _, name := range []string{"kernel/drivers/net/dummy.ko.xz", "kernel/drivers/net/veth.ko.xz", "modules.order", "modules.builtin", "modules.builtin.modinfo"} {
		b, err := os.ReadFile(filepath.Join(image, name))
		if err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(lib, name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("depmod", "-b", filepath.Join(root, "usr"), release).CombinedOutput(); err != nil {
		t.Fatalf("depmod: %v: %s", err, out)
	}
}

// decompressed is a module as it was before dkms compressed it.
func decompressed(t *testing.T, b []byte) []byte {
	t.Helper()
	r, err := decompress.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	out, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// ownWay does what commands of dkms do, with this package.
type ownWay struct {
	*Root
	kernel artifact.Kernel
	image  func(version string) v1.Image
}

const dummy = "dummy"

func (o ownWay) add(ctx context.Context, version string) error {
	return o.Add(ctx, Registration{Module: dummy, Version: version, Source: "/usr/src/dummy-" + version})
}

func (o ownWay) build(ctx context.Context, version string) error {
	return o.Note(ctx, Record{Module: dummy, Version: version, Kernel: o.kernel, State: Built, Key: someHash, Artifact: someHash})
}

func (o ownWay) install(ctx context.Context, version string) error {
	if _, err := o.Module(dummy, version); errors.Is(err, ErrNotAdded) {
		if err := o.add(ctx, version); err != nil {
			return err
		}
	}
	if err := o.build(ctx, version); err != nil && !errors.Is(err, ErrRefused) { // it is installed
		return err
	}
	_, err := o.Install(ctx, Install{Artifact: o.image(version)})
	return err
}

// uninstall passes over what isn't installed, as the command does.
func (o ownWay) uninstall(ctx context.Context, version string) error {
	m, err := o.Module(dummy, version)
	if err != nil {
		return err
	}
	if err := o.CheckSource(m.Registration); err != nil {
		return err
	}
	if rec, _ := m.Find(o.kernel.Release, o.kernel.Arch); rec.State != Installed {
		return nil
	}
	_, err = o.Uninstall(ctx, dummy, version, o.kernel)
	return err
}

func (o ownWay) unbuild(ctx context.Context, version string) error {
	if err := o.uninstall(ctx, version); err != nil {
		return err
	}
	if err := o.Forget(ctx, dummy, version, o.kernel); !errors.Is(err, ErrNotAdded) {
		return err
	}
	return nil
}

func (o ownWay) remove(ctx context.Context, version string) error {
	if err := o.unbuild(ctx, version); err != nil {
		return err
	}
	return o.Remove(ctx, dummy, version)
}

// dkmsCode is the exit code of dkms that an error has.
func dkmsCode(err error) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, ErrNotAdded), errors.Is(err, ErrAdded):
		return 3
	case errors.Is(err, ErrBroken):
		return 4
	case errors.Is(err, ErrRefused):
		return 6
	}
	return -1
}

// One sequence of commands, by real dkms on a root of its own and by this package on another: after each, the exit code, the status, and
// which modules are where are the same, and the kernel's own modules are the same to the byte. What differs is said at the step.
func TestAsDKMS(t *testing.T) {
	t.Parallel()
	root, k, image := oracle(t)
	dir, end := t.TempDir(), t.TempDir()
	ownModules(t, dir, image, k.Release)
	for _, v := range []string{"0.9", "1.0", "2.0"} {
		dummySource(t, dir, v)
	}
	dummySource(t, dir, "3.0")
	if err := os.Rename(filepath.Join(dir, "usr/src/dummy-3.0"), filepath.Join(dir, "usr/src/kept")); err != nil { // overlayfs lets nobody remove it
		t.Fatal(err)
	}
	var o ownWay
	there := "/usr/lib/modules/" + k.Release + "/updates/dkms/dummy.ko.xz"
	onVersion := func(do func(ownWay, context.Context, string) error, version string) func() error {
		return func() error { return do(o, t.Context(), version) }
	}
	dkms := func(command, version string) []string {
		args := []string{"dkms", command, "dummy/" + version}
		switch command {
		case "add":
			return args
		case "remove":
			return append(args, "--all")
		}
		return append(args, "-k", k.Release)
	}
	onFiles := func(name string, args ...string) func() error {
		return func() error {
			for i, a := range args {
				if strings.HasPrefix(a, "/") {
					args[i] = filepath.Join(o.dir, a)
				}
			}
			return exec.Command(name, args...).Run()
		}
	}
	steps := []struct {
		dkms []string
		ours func() error
		want []string // the status; nil: dkms's
	}{
		{dkms("add", "1.0"), onVersion(ownWay.add, "1.0"), nil},
		{dkms("add", "1.0"), onVersion(ownWay.add, "1.0"), nil},
		{dkms("build", "1.0"), onVersion(ownWay.build, "1.0"), nil},
		{dkms("install", "1.0"), onVersion(ownWay.install, "1.0"), nil},
		{dkms("install", "1.0"), onVersion(ownWay.install, "1.0"), nil},
		{dkms("install", "2.0"), onVersion(ownWay.install, "2.0"), nil},
		{dkms("install", "0.9"), onVersion(ownWay.install, "0.9"), nil},
		{dkms("uninstall", "1.0"), onVersion(ownWay.uninstall, "1.0"), nil},
		{dkms("uninstall", "2.0"), onVersion(ownWay.uninstall, "2.0"), nil},
		{dkms("unbuild", "2.0"), onVersion(ownWay.unbuild, "2.0"), nil},
		{dkms("install", "1.0"), onVersion(ownWay.install, "1.0"), nil},
		{[]string{"truncate", "-s", "100", there}, onFiles("truncate", "-s", "100", there), nil},
		// dkms has the same remark for a file that is gone as for one that differs, and keeps the other for its own copy.
		{[]string{"rm", there}, onFiles("rm", there), []string{
			"dummy/0.9, " + k.Release + ", x86_64: built (Original modules exist)",
			"dummy/1.0, " + k.Release + ", x86_64: installed (Original modules exist) (Built modules are missing in the kernel modules folder)",
			"dummy/2.0: added",
		}},
		{dkms("remove", "1.0"), onVersion(ownWay.remove, "1.0"), nil},
		{dkms("remove", "1.0"), onVersion(ownWay.remove, "1.0"), nil},
		{[]string{"cp", "-r", "/usr/src/kept", "/usr/src/dummy-3.0"}, onFiles("cp", "-r", "/usr/src/kept", "/usr/src/dummy-3.0"), nil},
		{dkms("add", "3.0"), onVersion(ownWay.add, "3.0"), nil},
		{[]string{"rm", "-r", "/usr/src/dummy-3.0"}, onFiles("rm", "-r", "/usr/src/dummy-3.0"), nil},
		{dkms("uninstall", "3.0"), onVersion(ownWay.uninstall, "3.0"), nil},
		{dkms("install", "1.0"), onVersion(ownWay.install, "1.0"), nil},
	}
	var commands [][]string
	for _, s := range steps {
		commands = append(commands, s.dkms)
	}
	filters := []Filter{{Kernels: []string{"6.99", k.Release}}, {Module: dummy, Version: "0.9"}, {Module: "other"}}
	for _, args := range []string{"-k 6.99 -k " + k.Release, "dummy/0.9", "other"} {
		commands = append(commands, []string{"bash", "-c", "dkms status " + args + " 2>/dev/null"})
	}
	session, err := root.Run(t.Context(), dir, end, commands)
	if err != nil {
		t.Fatal(err)
	}

	if err := os.Symlink("usr/lib", filepath.Join(dir, "lib")); err != nil {
		t.Fatal(err)
	}
	if o.Root, err = Open(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	o.kernel = artifact.Kernel(k)
	o.image = func(version string) v1.Image {
		b := decompressed(t, session.Built["dummy/"+version+"/dummy.ko.xz"])
		return builtAs(t, artifact.Meta{
			Module: dummy, Version: version, Kernel: o.kernel, Key: someHash, Source: someHash, Lock: someHash, Status: artifact.Built,
		}, map[string][]byte{"updates/dkms/dummy.ko": b})
	}
	for i, s := range steps {
		theirs := session.Steps[i]
		err := s.ours()
		if code := dkmsCode(err); code != theirs.Code {
			t.Errorf("%q: %v, which is exit code %d; dkms's is %d: %s", s.dkms, err, code, theirs.Code, theirs.Output)
		}
		want := s.want
		if want == nil {
			want = theirs.Status
		}
		wantLines(t, fmt.Sprintf("the status after %q", s.dkms), texts(t, o.Root, Filter{}), want...)
		sameModules(t, fmt.Sprintf("after %q", s.dkms), filepath.Join(dir, "usr/lib/modules", k.Release), theirs.Files)
	}
	for i, f := range filters {
		want := strings.FieldsFunc(session.Steps[len(steps)+i].Output, func(r rune) bool { return r == '\n' })
		wantLines(t, fmt.Sprintf("%q", commands[len(steps)+i]), texts(t, o.Root, f), want...)
	}

	// What is there at the end of dkms's is taken over.
	if err := os.Symlink("usr/lib", filepath.Join(end, "lib")); err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{"0.9", "1.0", "2.0"} {
		dummySource(t, end, v)
	}
	if o.Root, err = Open(end, Options{}); err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, l := range session.Steps[len(steps)-1].Status {
		want = append(want, l+" (by dkms)")
	}
	wantLines(t, "the status of dkms's modules", texts(t, o.Root, Filter{}), want...)
	all := o.DKMSModules()
	if len(all) != 4 || all[1].Version != "1.0" || all[1].Source != "/usr/src/dummy-1.0" || len(all[1].Kernels) != 1 || !all[1].Kernels[0].Installed {
		t.Fatalf("dkms has %+v; want dummy 1.0, installed, the second of four", all)
	}
	if err := o.ReleaseFromDKMS(t.Context(), dummy, "1.0"); !errors.Is(err, ErrRefused) {
		t.Errorf("release of what dkms alone has installed: %v; want ErrRefused", err)
	}
	if err := errors.Join(o.add(t.Context(), "1.0"), o.build(t.Context(), "1.0")); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Install(t.Context(), Install{Artifact: o.image("1.0"), Adopt: true}); err != nil {
		t.Fatal(err)
	}
	if err := o.ReleaseFromDKMS(t.Context(), dummy, "1.0"); err != nil {
		t.Fatal(err)
	}
	wantLines(t, "the status after dummy/1.0 was taken over", texts(t, o.Root, Filter{}),
		"dummy/0.9, "+k.Release+", x86_64: built (by dkms)",
		"dummy/1.0, "+k.Release+", x86_64: installed (Original modules exist)",
		"dummy/2.0: added (by dkms)",
		"dummy/3.0: broken (by dkms)")
	if err := o.uninstall(t.Context(), "1.0"); err != nil {
		t.Fatal(err)
	}
	sameModules(t, "after dummy/1.0 was taken over and uninstalled", filepath.Join(end, "usr/lib/modules", k.Release), session.Steps[0].Files)
	if left := listing(t, filepath.Join(end, dkmsDir, dummy)); slices.ContainsFunc(left, func(p string) bool {
		return strings.HasPrefix(p, "kernel-") || strings.HasPrefix(p, "1.0") || strings.HasPrefix(p, "original_module")
	}) {
		t.Errorf("dkms still has %q", left)
	}
}

// sameModules compares the modules of a kernel's folder with those of dkms, the kernel's own by their content as well.
func sameModules(t *testing.T, when, lib string, theirs map[string]string) {
	t.Helper()
	ours := map[string]string{}
	for _, name := range listing(t, lib) {
		if _, ok := moduleName(filepath.Base(name)); !ok {
			continue
		}
		b, err := os.ReadFile(filepath.Join(lib, name))
		if err != nil {
			t.Fatal(err)
		}
		ours[name] = fmt.Sprintf("%x", sha256.Sum256(b))
	}
	for name, sum := range theirs {
		if got, ok := ours[name]; !ok || inTree(name) && got != sum {
			t.Errorf("%s: %s is %q; dkms has %q there", when, name, got, sum)
		}
		delete(ours, name)
	}
	for name := range ours {
		t.Errorf("%s: there is %s, which dkms has not", when, name)
	}
}
