package cli

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/dkmstest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/host"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
)

// bareRoot is a root of Debian 12 without anything.
func bareRoot(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	writeFile(t, filepath.Join(root, "etc/os-release"), "ID=debian\nVERSION_CODENAME=bookworm\n")
	return root
}

// tree lists the files of a folder, without locks.
func tree(t *testing.T, dir string) (names []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !strings.HasSuffix(name, "lock") {
			names = append(names, strings.TrimPrefix(name, dir))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

// A tarball carries a module to another host, of which one that is made there is the same to the byte.
func TestTarball(t *testing.T) {
	t.Parallel()
	cache, kernel, release := hello61(t)
	dir := t.TempDir()
	type report struct {
		Path, Module, Version, SHA256 string
		Source                        bool
		Kernels                       []string
	}
	first := parse[report](t, program(t, cache, "mktarball", "../../testdata/hello", "-k", kernel, "--archive", filepath.Join(dir, "a.tar.gz"), "--format", "json"))
	if first.Module != "hello" || first.Version != "1.0" || !first.Source || !slices.Equal(first.Kernels, []string{kernel}) {
		t.Fatalf("mktarball says %+v", first)
	}
	root := bareRoot(t)
	loaded := parse[report](t, program(t, t.TempDir(), "ldtarball", first.Path, "--root", root, "--format", "json"))
	if !loaded.Source || !slices.Equal(loaded.Kernels, first.Kernels) {
		t.Errorf("ldtarball says %+v; want %+v", loaded, first)
	}
	second := parse[report](t, program(t, t.TempDir(), "mktarball", "-m", "hello", "-v", "1.0", "--root", root, "--archive", filepath.Join(dir, "b.tar.gz"), "--format", "json"))
	if second.SHA256 != first.SHA256 {
		t.Errorf("the tarball of what was loaded is another one: %+v, %+v", second, first)
	}
	if out := string(program(t, t.TempDir(), "ldtarball", second.Path, "--root", root)); out != "hello/1.0: added, with modules for "+kernel+"\n" {
		t.Errorf("loaded again, ldtarball says %s", out)
	}

	// Without the source it is registered all the same, and what was built is known.
	binaries := filepath.Join(dir, "c.tar.gz")
	program(t, t.TempDir(), "mktarball", "hello/1.0", "--root", root, "--binaries-only", "--archive", binaries)
	bare := bareRoot(t)
	program(t, t.TempDir(), "ldtarball", binaries, "--root", bare)
	r, err := host.Open(bare, host.Options{})
	if err != nil {
		t.Fatal(err)
	}
	m, err := r.Module("hello", "1.0")
	if rec, ok := m.Find(release, "amd64"); err != nil || !ok || rec.State != host.Built || m.Source != "" {
		t.Errorf("the state is %+v, %v", m, err)
	}
	if run(t, t.TempDir(), "mktarball", "hello/1.0", "--root", bare).code == 0 {
		t.Error("there is a source")
	}
	if got := parse[packages](t, program(t, t.TempDir(), "mkdeb", "--prebuilt", "hello/1.0", "--root", bare, "--out", dir, "--format", "json")); len(got.Packages) != 1 {
		t.Errorf("mkdeb says %+v", got)
	}

	// What is for another distribution is left out.
	other := t.TempDir()
	writeFile(t, filepath.Join(other, "etc/os-release"), "ID=debian\nVERSION_CODENAME=trixie\n")
	if r := run(t, t.TempDir(), "ldtarball", first.Path, "--root", other).wants(t, 0, "left out: this is debian/trixie"); r.out != "hello/1.0: added\n" {
		t.Errorf("ldtarball says %s", r.out)
	}

	whole, err := os.ReadFile(first.Path)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("hostile", func(t *testing.T) { testHostileTarballs(t, whole) })
}

// edited gives a .tar.gz whose entries edit has changed, and more of them.
func edited(t *testing.T, file []byte, edit func(h *tar.Header, b []byte) ([]byte, bool), more ...*tar.Header) []byte {
	t.Helper()
	z, err := gzip.NewReader(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	zw := gzip.NewWriter(&out)
	w := tar.NewWriter(zw)
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		b, readErr := io.ReadAll(r)
		if err := errors.Join(err, readErr); err != nil {
			t.Fatal(err)
		}
		if b, keep := edit(h, b); keep {
			h.Size = int64(len(b))
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			if _, err := w.Write(b); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, h := range more {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), zw.Close()); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Nothing of a tarball that isn't whole, or that isn't what it says, comes to the host or anywhere else.
func testHostileTarballs(t *testing.T, whole []byte) {
	same := func(_ *tar.Header, b []byte) ([]byte, bool) { return b, true }
	without := func(part string) func(*tar.Header, []byte) ([]byte, bool) {
		return func(h *tar.Header, b []byte) ([]byte, bool) { return b, !strings.HasSuffix(h.Name, part) }
	}
	replace := func(part, old, with string) func(*tar.Header, []byte) ([]byte, bool) {
		return func(h *tar.Header, b []byte) ([]byte, bool) {
			if strings.Contains(h.Name, part) {
				b = bytes.ReplaceAll(b, []byte(old), []byte(with))
			}
			return b, true
		}
	}
	for name, file := range map[string][]byte{
		"cut":             whole[:len(whole)*2/3],
		"no tarball":      []byte("hello"),
		"empty":           {},
		"a module":        edited(t, whole, replace("blobs/", "hello, %s", "howdy, %s")),
		"the source":      edited(t, whole, replace("hello.c", "hello, %s", "howdy, %s")),
		"the conf":        edited(t, whole, replace("dkms.conf", "hello", "$(id)")),
		"the index":       edited(t, whole, replace("index.json", "sha256:", "sha256:0")),
		"no index":        edited(t, whole, without("index.json")),
		"nothing":         edited(t, whole, func(h *tar.Header, b []byte) ([]byte, bool) { return b, h.Typeflag == tar.TypeDir }),
		"no blobs":        edited(t, whole, func(h *tar.Header, b []byte) ([]byte, bool) { return b, !strings.Contains(h.Name, "/sha256/") }),
		"twice":           edited(t, whole, same, &tar.Header{Name: "hello-1.0/modules.oci/oci-layout"}),
		"out of the tree": edited(t, whole, same, &tar.Header{Name: "hello-1.0/modules.oci/../../../evil"}),
		"in the layout":   edited(t, whole, same, &tar.Header{Name: "hello-1.0/modules.oci/blobs/../../evil"}),
		"another file":    edited(t, whole, same, &tar.Header{Name: "hello-1.0/modules.oci/evil"}),
		"a link":          edited(t, whole, without("oci-layout"), &tar.Header{Name: "hello-1.0/modules.oci/oci-layout", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}),
		"a source's link": edited(t, whole, same, &tar.Header{Name: "hello-1.0/source/evil", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"}),
		"a device":        edited(t, whole, same, &tar.Header{Name: "hello-1.0/source/evil", Typeflag: tar.TypeBlock}),
		"two sources":     edited(t, whole, same, &tar.Header{Name: "hello-1.0/other/dkms.conf"}),
	} {
		root := bareRoot(t)
		path := filepath.Join(t.TempDir(), "x.tar.gz")
		if err := os.WriteFile(path, file, 0o644); err != nil {
			t.Fatal(err)
		}
		cache := t.TempDir()
		if r := run(t, cache, "ldtarball", path, "--root", root); r.code == 0 || strings.Count(r.errs, "\n") > 2 {
			t.Errorf("%s: exit code %d: %s%s", name, r.code, r.out, r.errs)
		}
		if got := tree(t, root); !slices.Equal(got, []string{"/etc/os-release"}) {
			t.Errorf("%s: there is %q", name, got)
		}
		if got := tree(t, filepath.Join(cache, "tmp")); len(got) > 0 {
			t.Errorf("%s: left behind: %q", name, got)
		}
	}
}

// A file of zeros takes no place in a tarball, and would take all of the disk.
func TestSparseTarball(t *testing.T) {
	dir := t.TempDir()
	blob := filepath.Join(dir, "hello-1.0/modules.oci/blobs/sha256", strings.Repeat("0", 64))
	writeFile(t, blob, "")
	if err := os.Truncate(blob, 1<<40); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "x.tar")
	command(t, need.Program(t, "tar"), "-C", dir, "--sparse", "--format=posix", "-cf", file, "hello-1.0")
	if _, err := readTarball(t.Context(), file, t.TempDir()); err == nil || !strings.Contains(err.Error(), "it has more than") {
		t.Error(err)
	}
}

// Of a tarball that dkms itself has made the source is taken.
func TestTarballOfDKMS(t *testing.T) {
	t.Parallel()
	script := dkmstest.Script(t)
	dir := t.TempDir()
	src, state := filepath.Join(dir, "src"), filepath.Join(dir, "state")
	if err := os.CopyFS(filepath.Join(src, "hello-1.0"), os.DirFS("../../testdata/hello")); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(state, "hello/1.0/6.1.0-1-amd64/x86_64/module/hello.ko"), "a module\n")
	if err := os.Symlink(filepath.Join(src, "hello-1.0"), filepath.Join(state, "hello/1.0/source")); err != nil {
		t.Fatal(err)
	}
	pack := func(args ...string) string {
		t.Helper()
		file := filepath.Join(t.TempDir(), "hello.dkms.tar.gz")
		command(t, need.Program(t, "bash"), append([]string{script, "mktarball", "-m", "hello", "-v", "1.0", "-k", "6.1.0-1-amd64", "-a", "x86_64",
			"--dkmstree", state, "--sourcetree", src, "--archive", file}, args...)...)
		return file
	}
	root := bareRoot(t)
	run(t, t.TempDir(), "ldtarball", pack(), "--root", root).wants(t, 0, "hello/1.0: added\n", "dkms has built for 6.1.0-1-amd64 (x86_64) are not taken")
	if b, err := os.ReadFile(filepath.Join(root, "usr/src/hello-1.0/hello.c")); err != nil || !bytes.Contains(b, []byte("hello_init")) {
		t.Errorf("the source is %s, %v", b, err)
	}
	bare := bareRoot(t)
	run(t, t.TempDir(), "ldtarball", pack("--binaries-only"), "--root", bare).wants(t, 1, "neither a source nor modules")
	if got := tree(t, bare); len(got) != 1 {
		t.Errorf("there is %q", got)
	}
}
