package builder

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/builder/dkms"
)

const conf = "PACKAGE_NAME=\"m\"\nPACKAGE_VERSION=\"1\"\n"

// writeTree makes a source tree: names that end in / are folders, values that begin with -> are links.
func writeTree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if to, ok := strings.CutPrefix(content, "->"); ok {
			err = os.Symlink(to, p)
		} else if strings.HasSuffix(name, "/") {
			err = os.MkdirAll(p, 0o755)
		} else {
			err = os.WriteFile(p, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func open(t *testing.T, src string, o SourceOptions) *Source {
	t.Helper()
	s, err := OpenSource(context.Background(), src, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// One tree has one digest, whichever way it comes in, whatever its times, owners, masks and version control.
func TestSourceDigest(t *testing.T) {
	dir := writeTree(t, map[string]string{
		"dkms.conf": conf, "Makefile": "obj-m := m.o\n", "src/m.c": "int x;\n", "link": "->src/m.c", "run.sh": "#!/bin/sh\n", "empty/": "",
	})
	os.Chmod(filepath.Join(dir, "run.sh"), 0o755)
	want := open(t, dir, SourceOptions{})
	if want.Module != "m" || want.Version != "1" {
		t.Errorf("OpenSource(%q) = %q, %q; want m, 1", dir, want.Module, want.Version)
	}

	archive := filepath.Join(t.TempDir(), "a.tar")
	run(t, dir, "tar", "--transform=s,^\\.,m-1,", "-cf", archive, ".")
	run(t, "", "gzip", "-k", archive)
	run(t, "", "xz", "-k", archive)
	out := filepath.Join(dir, "out")
	for _, tt := range []struct {
		name    string
		prepare func()
		src     string
	}{
		{"conf", func() {}, filepath.Join(dir, "dkms.conf")},
		{"tar", func() {}, archive},
		{"gzip", func() {}, archive + ".gz"},
		{"xz", func() {}, archive + ".xz"},
		{"times", func() { os.Chtimes(filepath.Join(dir, "Makefile"), time.Time{}, time.Unix(1, 0)) }, dir},
		{"modes", func() { os.Chmod(filepath.Join(dir, "Makefile"), 0o600) }, dir},
		{"git", func() { os.MkdirAll(filepath.Join(dir, ".git/objects"), 0o755) }, dir},
		{"lock file", func() { os.WriteFile(filepath.Join(dir, "godkms.lock"), []byte("godkms.lock 1\n"), 0o644) }, dir},
		{"output", func() { os.MkdirAll(filepath.Join(out, "debian-bookworm"), 0o755) }, dir},
		{"output in folders made for it", func() { os.MkdirAll(filepath.Join(dir, "made/for/it/deep"), 0o755) }, dir},
		{"output, by way of a link", func() { os.Symlink(dir, dir+"-link") }, dir + "-link"},
	} {
		tt.prepare()
		if got := open(t, tt.src, SourceOptions{Exclude: []string{out, filepath.Join(dir, "made/for/it")}}); got.Digest != want.Digest {
			t.Errorf("%s: digest %s; want %s", tt.name, got.Digest, want.Digest)
		}
	}

	for _, tt := range []struct {
		name   string
		change func()
	}{
		{"content", func() { os.WriteFile(filepath.Join(dir, "src/m.c"), []byte("int y;\n"), 0o644) }},
		{"mode", func() { os.Chmod(filepath.Join(dir, "run.sh"), 0o644) }},
		{"lock file elsewhere", func() { os.Rename(filepath.Join(dir, "godkms.lock"), filepath.Join(dir, "src/godkms.lock")) }},
		{"name", func() { os.Rename(filepath.Join(dir, "run.sh"), filepath.Join(dir, "runs.sh")) }},
		{"link", func() { os.Remove(filepath.Join(dir, "link")); os.Symlink("Makefile", filepath.Join(dir, "link")) }},
	} {
		before := open(t, dir, SourceOptions{})
		tt.change()
		if after := open(t, dir, SourceOptions{}); after.Digest == before.Digest {
			t.Errorf("%s: the digest is the same after the change", tt.name)
		}
	}
}

// What was hashed is what is built: changes after OpenSource do not matter.
func TestSourceIsRead(t *testing.T) {
	dir := writeTree(t, map[string]string{"dkms.conf": conf, "m.c": "before"})
	s := open(t, dir, SourceOptions{})
	os.WriteFile(filepath.Join(dir, "m.c"), []byte("later!"), 0o644)
	for range 2 {
		b, err := io.ReadAll(s.Tar())
		if err != nil || !bytes.Contains(b, []byte("before")) || bytes.Contains(b, []byte("later!")) {
			t.Fatalf("Tar() does not hold what was hashed (error %v)", err)
		}
	}
}

// A link of a package to another file of it is that file: Debian's packages link to their documentation.
func TestSourceLinkInPackage(t *testing.T) {
	dir := writeTree(t, map[string]string{"usr/src/m-1/dkms.conf": conf, "usr/src/m-1/README": "->../../share/doc/README", "usr/share/doc/README": "read me"})
	archive := filepath.Join(t.TempDir(), "a.tar")
	run(t, dir, "tar", "-cf", archive, "usr")
	got := open(t, archive, SourceOptions{})
	want := open(t, writeTree(t, map[string]string{"dkms.conf": conf, "README": "read me"}), SourceOptions{})
	if got.Digest != want.Digest {
		t.Errorf("digest %s; want that of the tree with the file, %s", got.Digest, want.Digest)
	}
}

func TestSourceRefused(t *testing.T) {
	fifo := writeTree(t, map[string]string{"dkms.conf": conf})
	run(t, fifo, "mkfifo", "pipe")
	hostile := filepath.Join(t.TempDir(), "hostile.tar.gz")
	writeTar(t, hostile, func(w *tar.Writer) error {
		for _, name := range []string{"dkms.conf", "../../outside"} {
			if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(conf))}); err != nil {
				return err
			}
			io.WriteString(w, conf)
		}
		return nil
	})

	text := filepath.Join(t.TempDir(), "text")
	os.WriteFile(text, []byte("this is no archive"), 0o644)
	two := filepath.Join(t.TempDir(), "two.tar")
	run(t, writeTree(t, map[string]string{"a/dkms.conf": conf, "b/dkms.conf": conf}), "tar", "-cf", two, "a", "b")

	names := filepath.Join(t.TempDir(), "names.tar.gz")
	writeTar(t, names, func(w *tar.Writer) error {
		for i := range 40 {
			if err := w.WriteHeader(&tar.Header{Name: fmt.Sprint(i, strings.Repeat("n", 1000<<10)), Mode: 0o644}); err != nil {
				return err
			}
		}
		return nil
	})
	deep := filepath.Join(t.TempDir(), "deep.tar.gz")
	writeTar(t, deep, func(w *tar.Writer) error {
		if err := w.WriteHeader(&tar.Header{Name: "dkms.conf", Mode: 0o644}); err != nil {
			return err
		}
		return w.WriteHeader(&tar.Header{Name: strings.Repeat("d/", 20_000) + "x", Mode: 0o644})
	})
	large := writeTree(t, map[string]string{"dkms.conf": conf})
	os.Truncate(filepath.Join(large, "dkms.conf"), 1<<30)

	for _, tt := range []struct{ name, src, err string }{
		{"names", names, "the names of the tree's files are longer"},
		{"folders that are only implied", deep, "the names of the tree's files are longer"},
		{"large conf", large, "dkms.conf has 1073741824 bytes"},
		{"no conf", writeTree(t, map[string]string{"Makefile": ""}), "there is no dkms.conf in it"},
		{"no such file", "/nonexistent/tree", "there is no such file or folder"},
		{"absolute link", writeTree(t, map[string]string{"dkms.conf": conf, "x": "->/etc/passwd"}), `the link "x" leads out of the tree`},
		{"link up", writeTree(t, map[string]string{"dkms.conf": conf, "a/x": "->../../y"}), `the link "a/x" leads out of the tree`},
		{"pipe", fifo, `"pipe" is neither a file, a folder nor a link`},
		{"name that leaves", hostile, `has a ".." in its name`},
		{"no archive", text, "neither a folder with a dkms.conf, a tarball"},
		{"two trees", two, "it has several: a, b"},
		{"not bash", writeTree(t, map[string]string{"dkms.conf": "if then"}), "not valid bash"},
	} {
		s, err := OpenSource(context.Background(), tt.src, SourceOptions{})
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: error %v; want one with %q", tt.name, err, tt.err)
		}
	}
}

// A pipe is read as a file is, and waiting for what nobody writes ends with the context.
func TestSourceFromPipe(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "pipe")
	run(t, "", "mkfifo", pipe)
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if _, err := OpenSource(ctx, pipe, SourceOptions{}); err == nil || ctx.Err() != nil {
		t.Errorf("OpenSource of a pipe without a writer = %v; want an error at once", err)
	}

	w, err := os.OpenFile(pipe, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	ctx, cancel = context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	if _, err := OpenSource(ctx, pipe, SourceOptions{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("OpenSource of a silent pipe = %v; want that its time was up", err)
	}
	run(t, writeTree(t, map[string]string{"dkms.conf": conf}), "sh", "-c", "tar -cf "+pipe+" . &")
	if s := open(t, pipe, SourceOptions{}); s.Module != "m" {
		t.Errorf("OpenSource of a pipe = %q; want m", s.Module)
	}
}

// A file that is appended to while it is read is not taken up to what was its end.
func TestSourceGrows(t *testing.T) {
	root, err := os.OpenRoot(writeTree(t, map[string]string{"m.c": "int x;"}))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, size := range []int64{5, 7} {
		w := tar.NewWriter(io.Discard)
		if err := w.WriteHeader(&tar.Header{Name: "m.c", Size: size}); err != nil {
			t.Fatal(err)
		}
		err := (&tree{root: root}).copy(w, "m.c", &entry{size: size})
		if want := `"m.c": it changed while it was read`; err == nil || err.Error() != want {
			t.Errorf("copy of 6 bytes that were %d = %v; want %s", size, err, want)
		}
	}
}

func writeTar(t *testing.T, name string, write func(*tar.Writer) error) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	z := gzip.NewWriter(f)
	w := tar.NewWriter(z)
	if err := errors.Join(write(w), w.Close(), z.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
}

// What the host is to run comes from the source as it was given.
func TestReadFile(t *testing.T) {
	dir := writeTree(t, map[string]string{"dkms.conf": conf, "a/run.sh": "#!/bin/sh\n", "a/data": "x",
		"link": "->a/link", "a/link": "->run.sh", "loop": "->loop", "none": "->nowhere", "b/folder": "->../a"})
	if err := os.Chmod(filepath.Join(dir, "a/run.sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	s, err := OpenSource(t.Context(), dir, SourceOptions{Temp: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, tt := range []struct {
		name, text string
		executable bool
		err        string
	}{
		{"a/data", "x", false, ""},
		{"a/run.sh", "#!/bin/sh\n", true, ""},
		{"link", "#!/bin/sh\n", true, ""},
		{"b/folder/link", "#!/bin/sh\n", true, ""},
		{"a/data/x", "", false, "does not exist"},
		{"a", "", false, "does not exist"},
		{"loop", "", false, "link to a link"},
		{"none", "", false, "does not exist"},
		{"dkms.conf", "", false, "more than 20"},
	} {
		text, executable, err := s.ReadFile(tt.name, 20)
		if string(text) != tt.text || executable != tt.executable || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("ReadFile(%q) = %q, %v, %v; want %q, %v, %q", tt.name, text, executable, err, tt.text, tt.executable, tt.err)
		}
	}
	scripts, err := hostScripts(s, []dkms.HostScript{{Directive: "POST_INSTALL", Command: "/b/folder/run.sh now"}})
	if err != nil || len(scripts) != 1 || !scripts[0].Executable || scripts[0].Command != "/b/folder/run.sh now" {
		t.Errorf("hostScripts() = %v, %v; want one that is executable", scripts, err)
	}
}
