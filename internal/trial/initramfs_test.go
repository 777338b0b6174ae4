package trial

import (
	"bytes"
	"debug/elf"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/internal/qemu"
)

// cpio reads what was written, folders and links too, and puts the same files on a disk.
func TestArchive(t *testing.T) {
	cpio := need.Program(t, "cpio")
	long := strings.Repeat("n", 200)
	entries := []entry{
		{name: "dev/"}, {name: "init", mode: 0o755, data: []byte("#!")}, {name: "modules/a", mode: 0o644, data: bytes.Repeat([]byte{7}, 70001)},
		{name: "lib", link: "usr/lib"}, {name: "usr/lib/deep/" + long, mode: 0o600, data: []byte("x")}, {name: "empty", mode: 0o644}, {name: "part", mode: 0o644, from: io.NewSectionReader(strings.NewReader("a part"), 2, 4)},
	}
	var b bytes.Buffer
	if err := archive(&b, entries); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command(cpio, "--extract", "--quiet", "--no-absolute-filenames", "--verbose")
	cmd.Dir, cmd.Stdin = dir, &b
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("cpio: %v: %s", err, out)
	}
	want := "dev\ninit\nmodules\nmodules/a\nlib\nusr\nusr/lib\nusr/lib/deep\nusr/lib/deep/" + long + "\nempty\npart\n"
	if string(out) != want {
		t.Errorf("cpio lists %q; want %q", out, want)
	}
	for _, e := range entries {
		name := filepath.Join(dir, e.name)
		info, err := os.Lstat(name)
		if err != nil {
			t.Fatal(err)
		}
		if link, _ := os.Readlink(name); link != e.link {
			t.Errorf("%s is a link to %q; want %q", e.name, link, e.link)
		}
		if e.from != nil {
			e.data = []byte("part")
		}
		if got, _ := os.ReadFile(name); info.Mode().IsRegular() && (!bytes.Equal(got, e.data) || uint32(info.Mode().Perm()) != e.mode) {
			t.Errorf("%s has %d bytes and mode %v; want %d and %o", e.name, len(got), info.Mode(), len(e.data), e.mode)
		}
	}
}

// The same options come to the same initramfs.
func TestInitramfsIsDeterministic(t *testing.T) {
	o := Options{
		QEMU: qemu.Program{Arch: runtime.GOARCH}, Init: self(t), Needed: []Module{{Name: "n", File: []byte("n")}},
		Modules: []Module{{Name: "m", Params: []string{"b=1", "a=2"}, File: []byte("m")}},
		Script:  &ScriptFile{Name: "s", File: []byte("#!/bin/sh\n"), Layers: []string{"/"}},
	}
	var first []byte
	for range 3 {
		_, entries, err := prepare(o)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := archive(&b, entries); err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = b.Bytes()
		} else if !bytes.Equal(first, b.Bytes()) {
			t.Fatal("two archives of the same differ")
		}
	}
}

func self(t *testing.T) *io.SectionReader {
	t.Helper()
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	return section(b)
}

// The part of a program that is loaded runs as the whole does.
func TestLoaded(t *testing.T) {
	whole := self(t)
	part, err := loaded(whole, machines[runtime.GOARCH])
	if err != nil || part.Size() >= whole.Size() {
		t.Fatalf("loaded() = %v of %d bytes, %v", part, whole.Size(), err)
	}
	b, err := io.ReadAll(part)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "part")
	if err := os.WriteFile(program, b, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command(program, "-test.list", "TestLoaded").CombinedOutput(); err != nil || string(out) != "TestLoaded\n" {
		t.Errorf("it says %q, %v", out, err)
	}
	dynamic, err := os.ReadFile(need.Program(t, "cpio"))
	if err != nil {
		t.Fatal(err)
	}
	for what, f := range map[string]func() (*io.SectionReader, error){
		"static":            func() (*io.SectionReader, error) { return loaded(section(dynamic), machines[runtime.GOARCH]) },
		"another processor": func() (*io.SectionReader, error) { return loaded(whole, elf.EM_MIPS) },
		"first process":     func() (*io.SectionReader, error) { return loaded(section(b[:len(b)-1]), machines[runtime.GOARCH]) },
	} {
		if _, err := f(); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%v; want an error with %q", err, what)
		}
	}
}

func TestPrepareRefusesNames(t *testing.T) {
	for _, name := range []string{"", ".", "..", "../x", "a/b", "a b", "a\n", strings.Repeat("x", 65), "twice"} {
		_, _, err := prepare(Options{QEMU: qemu.Program{Arch: runtime.GOARCH}, Init: self(t), Needed: []Module{{Name: "twice"}}, Modules: []Module{{Name: name}}})
		if err == nil || !strings.Contains(err.Error(), "a name of its own") {
			t.Errorf("a module of the name %q is taken, or %v", name, err)
		}
	}
}

func names(entries []entry) []string {
	var out []string
	for _, e := range entries {
		out = append(out, e.name)
	}
	return out
}

// write makes files below a new folder; what begins with > is a link.
func write(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, data := range files {
		name = filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if target, ok := strings.CutPrefix(data, ">"); ok {
			err = os.Symlink(target, name)
		} else {
			err = os.WriteFile(name, []byte(data), 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// Links are followed as in the root that the layers make, never out of it, and what they need comes with a program.
func TestScriptFile(t *testing.T) {
	machine := machines["amd64"]
	low := write(t, map[string]string{"usr/bin/real": "low", "usr/bin/dash": "dash", "etc/alternatives/awk": ">/usr/bin/mawk", "usr/bin/mawk": "mawk"})
	high := write(t, map[string]string{"bin": ">usr/bin", "usr/bin/sh": ">dash", "usr/bin/awk": ">/etc/alternatives/awk", "usr/bin/sed": "high"})
	s := ScriptFile{Name: "x.sh", File: []byte("#! /bin/sh -e\n"), Layers: []string{low, high}}
	got, err := s.entries(machine)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"script", "bin", "etc/alternatives/awk", "usr/bin/awk", "usr/bin/dash", "usr/bin/mawk", "usr/bin/sed", "usr/bin/sh"}
	if !slices.Equal(names(got), want) {
		t.Errorf("entries are %q; want %q", names(got), want)
	}
	for _, c := range []struct{ name, file, link, err string }{
		{"out of the root", "#!/x\n", ">../../../../etc/hostname", "/x"},
		{"in a circle", "#!/x\n", ">x", "links don't end"},
		{"a folder", "#!/x\n", ">/usr", "it is no file"},
		{"no interpreter", "#!\n", "", "names no interpreter"},
		{"a relative one", "#!sh\n", "", "names no interpreter"},
		{"not there", "#!/bin/nothing\n", "", "its interpreter"},
		{"no program", "hello", "", "neither a program"},
	} {
		files := map[string]string{"y": "y"}
		if c.link != "" {
			files["x"] = c.link
		}
		s := ScriptFile{Name: "x.sh", File: []byte(c.file), Layers: []string{low, write(t, files)}}
		if got, err := s.entries(machine); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %q, %v; want an error with %q", c.name, names(got), err, c.err)
		}
	}
}

// A dynamic program needs a root; in this machine's own, its interpreter and libraries are found.
func TestDynamicScriptFile(t *testing.T) {
	b, err := os.ReadFile(need.Program(t, "cpio"))
	if err != nil {
		t.Fatal(err)
	}
	s := ScriptFile{Name: "cpio", File: b}
	machine := machines[runtime.GOARCH]
	if _, err := s.entries(machine); err == nil || !strings.Contains(err.Error(), "link it statically") {
		t.Errorf("without a root: %v; want it to say that it must be static", err)
	}
	s.Layers = []string{"/"}
	got, err := s.entries(machine)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"ld-linux", "libc.so.6"} {
		if !slices.ContainsFunc(names(got), func(n string) bool { return strings.Contains(n, want) }) {
			t.Errorf("%s is not among %q", want, names(got))
		}
	}
	if _, err := s.entries(0); err == nil || !strings.Contains(err.Error(), "another processor") {
		t.Errorf("for another processor: %v", err)
	}
}
