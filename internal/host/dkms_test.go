package host

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

func symlink(t *testing.T, r *Root, target, name string) {
	t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

// dkmsHas makes what real dkms would have made of a module that is added, and built for kernels.
func dkmsHas(t *testing.T, r *Root, module, version string, kernels ...string) {
	t.Helper()
	putFile(t, r, "usr/src/"+module+"-"+version+"/dkms.conf", "")
	symlink(t, r, "/usr/src/"+module+"-"+version, "var/lib/dkms/"+module+"/"+version+"/source")
	for _, k := range kernels {
		putFile(t, r, "var/lib/dkms/"+module+"/"+version+"/"+k+"/x86_64/module/"+module+".ko.xz", "12345")
	}
}

func dkmsInstalls(t *testing.T, r *Root, module, version, kernel string) {
	t.Helper()
	symlink(t, r, version+"/"+kernel+"/x86_64", "var/lib/dkms/"+module+"/kernel-"+kernel+"-x86_64")
	putFile(t, r, "lib/modules/"+kernel+"/updates/dkms/"+module+".ko.xz", "12345")
}

func TestStatusOfDKMS(t *testing.T) {
	r, _ := testRoot(t)
	register(t, r, "hello/1.0")
	dkmsHas(t, r, "hello", "1.0", k612, k56)
	dkmsInstalls(t, r, "hello", "1.0", k56)
	dkmsHas(t, r, "hello", "0.9")
	putFile(t, r, "var/lib/dkms/hello/original_module/"+k56+"/x86_64/hello.ko.xz", "")
	dkmsHas(t, r, "a-b", "1", k56)
	dkmsInstalls(t, r, "a-b", "1", k56)
	putFile(t, r, "lib/modules/"+k56+"/updates/dkms/a-b.ko.xz", "123456")
	dkmsHas(t, r, "a", "1", k56, k612)
	dkmsInstalls(t, r, "a", "1", k56)
	if err := os.Rename(filepath.Join(r.dir, "lib/modules", k56, "updates/dkms/a.ko.xz"), filepath.Join(r.dir, "lib/modules", k56, "a.ko.xz")); err != nil {
		t.Fatal(err)
	}
	dkmsInstalls(t, r, "a", "1", k612)
	dkmsHas(t, r, "a", "0", k56)
	for _, name := range []string{"lib/modules/" + k612 + "/updates/dkms/a.ko.xz", "usr/src/hello-0.9/dkms.conf", "usr/src/hello-0.9"} {
		if err := os.Remove(filepath.Join(r.dir, name)); err != nil {
			t.Fatal(err)
		}
	}

	// What a tree may have beside it.
	for _, odd := range []string{
		"mok.key", "file", "odd/file", "odd/1/file", "odd/.hidden/source", "odd/no-source/build/x", "hello/1.0/build/Makefile",
		"hello/1.0/6.5-file", "hello/1.0/6.6-empty/x86_64/log", "hello/1.0/notakernel/x86_64/module/hello.ko",
	} {
		putFile(t, r, "var/lib/dkms/"+odd, "")
	}
	dkmsHas(t, r, "esc\x1b[31m\nape", "1")
	symlink(t, r, "/etc", "var/lib/dkms/linked/away")
	symlink(t, r, "loop", "var/lib/dkms/loop")
	symlink(t, r, "source", "var/lib/dkms/round/1/source")
	symlink(t, r, "../../../../../../../../../../..", "var/lib/dkms/out/1/source")
	if err := unix.Mkfifo(filepath.Join(r.dir, "var/lib/dkms/fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	putFile(t, r, "usr/src/unlinked-1/dkms.conf", "")
	putFile(t, r, "var/lib/dkms/unlinked/1/build/x", "")

	wantLines(t, "status", texts(t, r, Filter{}),
		"a-b/1, "+k56+ofHost+"installed (Differences between built and installed modules) (by dkms)",
		"a/0, "+k56+ofHost+"built (by dkms)",
		"a/1, "+k56+ofHost+"installed (by dkms)",
		"a/1, "+k612+ofHost+"installed (Differences between built and installed modules) (by dkms)",
		"esc?[31m?ape/1: added (by dkms)",
		"hello/0.9: broken (by dkms)",
		"hello/1.0: added",
		"hello/1.0, "+k56+ofHost+"installed (Original modules exist) (by dkms)",
		"hello/1.0, "+k612+ofHost+"built (by dkms)",
		"out/1: added (by dkms)",
		"round/1: broken (by dkms)",
		"unlinked/1: broken (by dkms)",
	)
	for _, m := range r.DKMSModules() {
		if m.Module == "out" && m.Source != "/" {
			t.Errorf("the source of a link that leads out of the root is %q; want the root itself", m.Source)
		}
		if m.Module == "hello" && m.Version == "1.0" && m.Source != "/usr/src/hello-1.0" {
			t.Errorf("the source of hello is %q; want /usr/src/hello-1.0", m.Source)
		}
	}
}

func TestReleaseFromDKMS(t *testing.T) {
	r, warnings := testRoot(t)
	ctx := t.Context()
	register(t, r, "hello/1.0", "hello/2.0")
	for _, v := range []string{"1.0", "2.0"} {
		os.RemoveAll(filepath.Join(r.dir, "usr/src/hello-"+v))
		dkmsHas(t, r, "hello", v, k56, k56rt, k612)
	}
	dkmsInstalls(t, r, "hello", "1.0", k56)
	dkmsInstalls(t, r, "hello", "1.0", k56rt)
	dkmsInstalls(t, r, "hello", "2.0", k612)
	original := "var/lib/dkms/hello/original_module/" + k56 + "/x86_64/hello.ko.xz"
	putFile(t, r, original, "x")
	putFile(t, r, "var/lib/dkms/hello/original_module/"+k56rt+"/x86_64/hello.ko.xz.origin", "x") // its module is ours now
	before := listing(t, r.dir)

	if err := r.ReleaseFromDKMS(ctx, "hello", "3"); !errors.Is(err, ErrNotAdded) {
		t.Errorf("a version that dkms doesn't have: %v; want ErrNotAdded", err)
	}
	note(t, r, "hello/1.0", k56, Installed, nil)
	note(t, r, "hello/1.0", k56rt, Built, nil)
	err := r.ReleaseFromDKMS(ctx, "hello", "1.0")
	if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), k56rt) || strings.Contains(err.Error(), k612) {
		t.Errorf("with a kernel that is dkms's alone: %v; want ErrRefused and its name", err)
	}
	if now := listing(t, filepath.Join(r.dir, "var/lib/dkms")); len(now) == 0 || !slices.Equal(now, under(before, "var/lib/dkms/")) {
		t.Errorf("a refusal has changed dkms's tree: %q", now)
	}
	note(t, r, "hello/2.0", k56rt, Installed, nil) // any version of ours will do
	if err := r.ReleaseFromDKMS(ctx, "hello", "1.0"); err != nil {
		t.Fatal(err)
	}
	want := under(before, "var/lib/dkms/")
	want = slices.DeleteFunc(want, func(p string) bool {
		return strings.HasPrefix(p, "hello/1.0") || strings.HasPrefix(p, "hello/kernel-"+k56) || strings.HasPrefix(p, "hello/original_module/"+k56rt)
	})
	if now := listing(t, filepath.Join(r.dir, "var/lib/dkms")); !slices.Equal(now, want) {
		t.Errorf("dkms's tree is %q; want %q", now, want)
	}
	if _, err := os.Stat(filepath.Join(r.dir, "usr/src/hello-1.0")); err != nil {
		t.Errorf("the source: %v", err)
	}
	if len(*warnings) != 1 || !strings.Contains((*warnings)[0], "original_module/"+k56) {
		t.Errorf("warnings: %q; want one about the original that is left", *warnings)
	}

}

// Wherever the power fails, dkms shows the version still, and a second call takes away what is left.
func TestReleaseFromDKMSCutOff(t *testing.T) {
	for n, done := 0, false; !done; n++ {
		r, _ := testRoot(t)
		register(t, r, "hello/2.0")
		dkmsHas(t, r, "hello", "1.0", k56, k612)
		dkmsInstalls(t, r, "hello", "1.0", k56)
		dkmsInstalls(t, r, "hello", "1.0", k612)
		putFile(t, r, "var/lib/dkms/hello/1.0/tarball/x", "") // sorts behind the source
		note(t, r, "hello/2.0", k56, Installed, nil)
		note(t, r, "hello/2.0", k612, Installed, nil)
		off, steps := errors.New("off"), 0
		r.o.Step = func(string) error {
			if steps++; steps > n {
				return off
			}
			return nil
		}
		err := r.ReleaseFromDKMS(t.Context(), "hello", "1.0")
		if done = err == nil; done {
			if n != 7 {
				t.Errorf("it has %d steps; want one for each of two links, two kernels, the tarball, the source and the folder", n)
			}
			continue
		}
		if !errors.Is(err, off) {
			t.Fatal(err)
		}
		// The source goes last but for the folder.
		if all := r.DKMSModules(); len(all) != 1 || n < 6 && all[0].Source == "" {
			t.Errorf("cut off at step %d, dkms shows %v; want the version", n+1, all)
		}
		r.o.Step = nil
		if err := r.ReleaseFromDKMS(t.Context(), "hello", "1.0"); err != nil {
			t.Errorf("after it was cut off at step %d: %v", n+1, err)
		}
		if _, err := os.Lstat(filepath.Join(r.dir, dkmsDir, "hello")); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("after a second call dkms's folder is there still: %v", err)
		}
	}
}

// A module of dkms's whose version is a link is not dkms's work, and nothing behind it is removed.
func TestReleaseFollowsNoLink(t *testing.T) {
	r, _ := testRoot(t)
	putFile(t, r, "srv/data", "x")
	symlink(t, r, "/srv", "var/lib/dkms/hello/1.0")
	symlink(t, r, "/srv", "var/lib/dkms/linked")
	for _, m := range []string{"hello", "linked"} {
		if err := r.ReleaseFromDKMS(t.Context(), m, "1.0"); !errors.Is(err, ErrNotAdded) {
			t.Errorf("%s: %v; want ErrNotAdded", m, err)
		}
	}
	dkmsHas(t, r, "inner", "1.0")
	symlink(t, r, filepath.Join(r.dir, "srv"), "var/lib/dkms/inner/1.0/"+k56)
	if err := r.ReleaseFromDKMS(t.Context(), "inner", "1.0"); err != nil {
		t.Error(err)
	}
	// dkms's notes of originals: a link in their path may lead out of the root, to folders that aren't dkms's.
	outside := t.TempDir()
	if err := os.MkdirAll(filepath.Join(outside, k56, "x86_64", "precious"), 0o755); err != nil {
		t.Fatal(err)
	}
	register(t, r, "notes/1.0")
	for _, link := range []struct{ at, to string }{{"original_module", outside}, {"original_module/" + k56, filepath.Join(outside, k56)}} {
		dkmsHas(t, r, "notes", "1.0", k56)
		dkmsInstalls(t, r, "notes", "1.0", k56)
		note(t, r, "notes/1.0", k56, Installed, nil)
		symlink(t, r, link.to, "var/lib/dkms/notes/"+link.at)
		err := r.ReleaseFromDKMS(t.Context(), "notes", "1.0")
		if _, lost := os.Stat(filepath.Join(outside, k56, "x86_64", "precious")); lost != nil {
			t.Errorf("with a link at %s: %v, %v", link.at, err, lost)
		}
		if err := os.RemoveAll(filepath.Join(r.dir, "var/lib/dkms/notes")); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(r.dir, "srv/data")); err != nil {
		t.Error(err)
	}
}

// listing lists what is in a folder, sorted.
func listing(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, path); rel != "." && !d.IsDir() {
			out = append(out, rel)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func under(paths []string, dir string) []string {
	var out []string
	for _, p := range paths {
		if rest, ok := strings.CutPrefix(p, dir); ok {
			out = append(out, rest)
		}
	}
	return out
}

var someHash = v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}
