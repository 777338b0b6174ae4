package kmod

import (
	"bytes"
	"crypto"
	"crypto/elliptic"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
)

func diff(t testing.TB, a, b []byte) []Difference {
	t.Helper()
	d, err := Diff(bytes.NewReader(a), bytes.NewReader(b), int64(len(a)), int64(len(b)))
	if err != nil {
		t.Fatalf("Diff = %v", err)
	}
	return d
}

func parts(list []Difference) (out []string) {
	for _, d := range list {
		out = append(out, d.Part)
	}
	return out
}

// What objcopy and a signature change in a module of the kernel's own is found where they changed it.
func TestDiff(t *testing.T) {
	modules, _ := realKernel(t)
	objcopy := need.Program(t, "objcopy")
	path := filepath.Join(modules, "kernel/drivers/net/dummy.ko")
	module, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := diff(t, module, module); d != nil {
		t.Errorf("Diff of the same module = %+v", d)
	}

	again, err := ecdsaSigner(t, elliptic.P256()).Sign(module, crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if d := diff(t, module, again); !slices.Equal(parts(d), []string{PartSignature}) || len(d[0].Bytes[0]) != shownBytes {
		t.Errorf("Diff of another signature = %+v", d)
	}
	plain, _, err := cutSignature(module)
	if err != nil {
		t.Fatal(err)
	}
	if d := diff(t, plain, again); !slices.Equal(parts(d), []string{PartSignature}) || d[0].Sizes[0] != -1 {
		t.Errorf("Diff of a signature = %+v", d)
	}

	dir := t.TempDir()
	in := filepath.Join(dir, "in.ko")
	if err := os.WriteFile(in, plain, 0o644); err != nil {
		t.Fatal(err)
	}
	change := func(args ...string) []byte {
		t.Helper()
		out := filepath.Join(dir, "out.ko")
		if text, err := exec.Command(objcopy, append(args, in, out)...).CombinedOutput(); err != nil {
			t.Fatalf("objcopy %q: %v\n%s", args, err, text)
		}
		b, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	base := change() // objcopy lays a file out in its own way
	section := func(name string) string {
		t.Helper()
		file := filepath.Join(dir, "section"+name)
		change("--dump-section", name+"="+file)
		return file
	}

	info := section(".modinfo")
	text, err := os.ReadFile(info)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(text, []byte("license="))
	if at < 0 {
		t.Fatalf(".modinfo is %q", text)
	}
	longer := slices.Concat(text[:at], []byte("built_by=somebody\x00"), text[at:])
	if err := os.WriteFile(info, longer, 0o644); err != nil {
		t.Fatal(err)
	}
	d := diff(t, base, change("--update-section", ".modinfo="+info))
	if !slices.Equal(parts(d), []string{".modinfo"}) {
		t.Fatalf("Diff of another .modinfo = %+v", d)
	}
	want := Difference{Part: ".modinfo", Sizes: [2]int64{int64(len(text)), int64(len(longer))}, Offset: int64(at), Count: d[0].Count,
		Bytes: [2][]byte{text[at : at+16], longer[at : at+16]}, Only: [2][]string{nil, {"built_by=somebody"}}}
	if got, want := fmt.Sprintf("%+v", d[0]), fmt.Sprintf("%+v", want); got != want {
		t.Errorf("Diff of another .modinfo = %s; want %s", got, want)
	}

	id := section(".note.gnu.build-id")
	b, err := os.ReadFile(id)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1
	if err := os.WriteFile(id, b, 0o644); err != nil {
		t.Fatal(err)
	}
	d = diff(t, base, change("--update-section", ".note.gnu.build-id="+id, "--add-section", ".new="+id))
	if !slices.Equal(parts(d), []string{".shstrtab", ".new", ".note.gnu.build-id"}) || !d[2].Hash || d[2].Count != 1 || d[1].Sizes[0] != -1 {
		t.Errorf("Diff of another build id and a new section = %+v", d)
	}
	d = diff(t, base, flipped(t, base, ".init.text", 3))
	if !slices.Equal(parts(d), []string{".init.text"}) || d[0].Offset != 3 || d[0].Count != 1 || d[0].Only[0] != nil {
		t.Errorf("Diff of a byte of code = %+v", d)
	}
	d = diff(t, base, change("--redefine-sym", "dummy_init_module=dammy_init_module"))
	if !slices.Contains(parts(d), ".strtab") || !strings.Contains(fmt.Sprint(d), "dammy_init_module") {
		t.Errorf("Diff of a symbol's name = %+v", d)
	}
	d = diff(t, base, change("--weaken-symbol", "init_module"))
	if !slices.Equal(parts(d), []string{".symtab"}) || d[0].Offset < 0 {
		t.Errorf("Diff of a symbol's binding = %+v", d)
	}
	d = diff(t, base, change("--set-section-flags", ".init.text=alloc,load,data"))
	if !slices.Equal(parts(d), []string{".init.text"}) || d[0].Offset != -1 || d[0].Only[0] == nil {
		t.Errorf("Diff of a section's flags = %+v", d)
	}
	head := slices.Clone(base)
	head[elf.EI_OSABI] ^= 1
	if d := diff(t, base, head); !slices.Equal(parts(d), []string{PartRest}) || d[0].Offset != int64(elf.EI_OSABI) {
		t.Errorf("Diff of the header = %+v", d)
	}
	if d := diff(t, base, base[:len(base)-1]); len(d) != 1 || d[0].Part != PartRest || d[0].Offset != int64(len(base)-1) || len(d[0].Bytes[0]) != 1 {
		t.Errorf("Diff of a module that is cut off = %+v", d)
	}
	if d := diff(t, base, nil); len(d) != 1 || d[0].Part != PartRest {
		t.Errorf("Diff with nothing = %+v", d)
	}
}

// flipped is a module with another bit in a section.
func flipped(t *testing.T, module []byte, section string, at uint64) []byte {
	t.Helper()
	f, err := elf.NewFile(bytes.NewReader(module))
	if err != nil {
		t.Fatal(err)
	}
	out := slices.Clone(module)
	out[f.Section(section).Offset+at] ^= 1
	return out
}

// Whatever the files are, there is a difference if and only if they aren't the same.
func FuzzDiff(f *testing.F) {
	for _, is64 := range []bool{true, false} {
		one := fake(binary.BigEndian, is64, elf.EM_X86_64, map[string][]byte{".modinfo": []byte("a=1\x00")}, []sym{{"printk", elf.STB_GLOBAL, 1}})
		f.Add(one, fake(binary.BigEndian, is64, elf.EM_X86_64, map[string][]byte{".modinfo": []byte("b=1\x00")}, []sym{{"printk", elf.STB_WEAK, 2}}))
		f.Add(one, one)
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		if d := diff(t, a, b); (len(d) == 0) != bytes.Equal(a, b) || len(d) > maxDifferences {
			t.Errorf("Diff = %+v", d)
		}
	})
}
