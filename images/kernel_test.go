package images

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/kmod"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// ko makes a module that has a .modinfo section alone.
func ko(info ...string) string {
	modinfo := strings.Join(info, "\x00") + "\x00"
	names := "\x00.modinfo\x00.shstrtab\x00"
	h := elf.Header64{Type: uint16(elf.ET_REL), Machine: uint16(elf.EM_X86_64), Version: 1, Ehsize: 64, Shentsize: 64, Shnum: 3, Shstrndx: 2}
	copy(h.Ident[:], elf.ELFMAG+"\x02\x01\x01")
	h.Shoff = uint64(64 + len(modinfo) + len(names))
	var b bytes.Buffer
	binary.Write(&b, binary.LittleEndian, h)
	b.WriteString(modinfo + names)
	binary.Write(&b, binary.LittleEndian, []elf.Section64{{},
		{Name: 1, Type: uint32(elf.SHT_PROGBITS), Off: 64, Size: uint64(len(modinfo))},
		{Name: 10, Type: uint32(elf.SHT_STRTAB), Off: uint64(64 + len(modinfo)), Size: uint64(len(names))},
	})
	return b.String()
}

// packed compresses a module.
func packedKo(t testing.TB, compression, module string) string {
	t.Helper()
	var b bytes.Buffer
	w, err := kmod.Compress(&b, compression)
	if err == nil {
		_, err = w.Write([]byte(module))
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// bzImage is nothing but the magic number of what boots on x86.
var bzImage = strings.Repeat("\x00", 0x202) + "HdrS" + strings.Repeat("boot ", 100)

const bootRelease = "6.1.0-9-amd64"

// tinyKernel is a kernel of two packages, with modules in all forms.
func tinyKernel(t testing.TB, m *packageServer) kernels.Image {
	t.Helper()
	lib := "./lib/modules/" + bootRelease + "/"
	first := []ent{
		e("./boot/vmlinuz-"+bootRelease, bzImage), e("./boot/vmlinuz -> vmlinuz-"+bootRelease, ""), e("./lib/modules/"+bootRelease+"/vmlinuz", "another"),
		e(lib+"modules.builtin", "kernel/fs/ext4.ko\nkernel/drivers/dax.ko\n"),
		e(lib+"modules.builtin.modinfo", "ext4.license=GPL\x00ext4.alias=fs-ext4\x00ext4.alias=pci:*\x00"),
		e(lib+"kernel/drivers/media/mc.ko", ko("name=mc", "depends=")),
		e(lib+"kernel/drivers/media/videodev.ko.xz", packedKo(t, "xz", ko("depends=mc,i2c-core", "alias=char-major-81-*"))),
		e(lib+"kernel/drivers/i2c-core.ko.gz", packedKo(t, "gzip", ko("softdep=pre: fs-ext4 crc32c none post: mc"))),
		e(lib+"kernel/lib/crc32c_generic.ko", ko("alias=crc32c", "alias=crypto-crc32c")),
		e(lib+"kernel/lib/crc32c-intel.ko", ko("alias=crc32c", "alias=cpu:type:x86*")),
		e(lib+"kernel/lib/orphan.ko", ko("depends=gone")),
		e("./lib/modules/6.1.0-8-amd64/kernel/other.ko", ko()),
	}
	second := []ent{
		e("./usr/lib/modules/"+bootRelease+"/updates/mc.ko.zst", packedKo(t, "zstd", ko("name=mc", "updated=yes"))),
		e("./usr/lib/modules/"+bootRelease+"/extra/i2c-core.ko => ./boot/vmlinuz-"+bootRelease, ""),
	}
	return kernels.Image{Kernel: kernels.Kernel{Distro: "debian", Suite: "bookworm", Arch: "amd64", Release: bootRelease},
		Packages: []kernels.Package{m.add("linux-image", gz(t, makeTar(t, first...))), m.add("linux-modules-extra", zst(t, makeTar(t, second...)))}}
}

func mustKernel(t testing.TB, s *Store, img kernels.Image) *Kernel {
	t.Helper()
	k, err := s.Kernel(t.Context(), img, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k
}

func TestKernel(t *testing.T) {
	m := newMirror(t)
	img := tinyKernel(t, m)
	dir := t.TempDir()
	total := map[string]int64{}
	k, err := openStore(t, dir).Kernel(t.Context(), img, func(phase string, done, _ int64) { total[phase] = done })
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	if want := img.Packages[0].Size + img.Packages[1].Size; total["download"] != want || total["unpack"] != want {
		t.Errorf("progress is %v; want %d of each", total, want)
	}
	if b, err := os.ReadFile(k.Path()); err != nil || string(b) != bzImage || k.Digest().String() != sha256Name(b) {
		t.Errorf("what boots is %.20q, %v, with the digest %s; want that of the folder boot", b, err, k.Digest())
	}
	got, err := k.Resolve([]string{"videodev"})
	if want := []string{"mc", "crc32c_generic", "i2c_core", "videodev"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("Resolve: %q, %v; want %q", got, err, want)
	}
	for _, name := range []string{"other", "orphan"} {
		if got, err := k.Resolve([]string{name}); !errors.Is(err, kernels.ErrNotFound) || !strings.Contains(err.Error(), "debian/bookworm:"+bootRelease) {
			t.Errorf("Resolve of %s: %q, %v", name, got, err)
		}
	}
	for name, want := range map[string]string{"mc": ko("name=mc", "updated=yes"), "videodev": ko("depends=mc,i2c-core", "alias=char-major-81-*"),
		"i2c-core": ko("softdep=pre: fs-ext4 crc32c none post: mc"), "crc32c_generic": ko("alias=crc32c", "alias=crypto-crc32c")} {
		if b, err := k.Read(name); err != nil || string(b) != want {
			t.Errorf("module %s is %q, %v; want %q", name, b, err, want)
		}
	}
	if _, err := k.Read("../boot"); !errors.Is(err, kernels.ErrNotFound) {
		t.Errorf("Read of ../boot: %v", err)
	}

	// What is there is used, without its packages, and is no other image's.
	asked := len(m.seen())
	if err := os.RemoveAll(filepath.Join(dir, "packages/sha256")); err != nil {
		t.Fatal(err)
	}
	off, err := Open(Options{Dir: dir, Payload: tarPayload, Offline: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := mustKernel(t, off, img).Close(); err != nil || len(m.seen()) != asked {
		t.Errorf("the second time: %v, asked for %q", err, m.seen()[asked:])
	}
	img.Packages = img.Packages[:1]
	if _, err := off.Kernel(t.Context(), img, nil); !errors.Is(err, ErrOffline) {
		t.Errorf("another image, offline: %v", err)
	}
}

// Whatever order packages arrive in, and from wherever, what is kept is the same to the byte.
func TestKernelIsReproducible(t *testing.T) {
	var want string
	for range 2 {
		m := newMirror(t)
		s := openStore(t, t.TempDir())
		k := mustKernel(t, s, tinyKernel(t, m))
		var got strings.Builder
		for _, name := range []string{"boot", "index", "modules", "record.json"} {
			b, err := os.ReadFile(filepath.Join(s.kernelDir(k.key), name))
			if err != nil {
				t.Fatal(err)
			}
			got.WriteString(sha256Name(b) + "\n")
		}
		if want == "" {
			want = got.String()
		} else if got.String() != want {
			t.Errorf("it is\n%s\nwant\n%s", got.String(), want)
		}
	}
}

// Processes that want one kernel at a time make it once.
func TestKernelOnce(t *testing.T) {
	m := newMirror(t)
	img := tinyKernel(t, m)
	dir := t.TempDir()
	var all sync.WaitGroup
	for range 4 {
		s := openStore(t, dir)
		all.Go(func() { mustKernel(t, s, img) })
	}
	all.Wait()
	if got := len(m.seen()); got != len(img.Packages) {
		t.Errorf("%d packages were asked for; want %d", got, len(img.Packages))
	}
}

func TestKernelRefused(t *testing.T) {
	own := "lib/modules/" + bootRelease + "/kernel/"
	good := e("boot/vmlinuz-"+bootRelease, bzImage)
	for name, c := range map[string]struct {
		arch  string
		files []ent
		err   string
	}{
		"nothing that boots":     {"amd64", []ent{e(own+"a.ko", ko())}, "the packages have none of boot/vmlinuz-" + bootRelease},
		"a link that boots":      {"amd64", []ent{e("boot/vmlinuz-"+bootRelease+" -> /etc/passwd", "")}, "the packages have none of"},
		"another architecture's": {"amd64", []ent{e("boot/vmlinuz-"+bootRelease, strings.Repeat("x", 1000))}, "no boot header of x86"},
		"another one's":          {"arm64", []ent{good}, "it is no kernel of arm64"},
		"no module":              {"amd64", []ent{good, e(own+"a.ko", strings.Repeat("text", 20))}, `module "kernel/a.ko": not an ELF file`},
		"a damaged module":       {"amd64", []ent{good, e(own+"a.ko.xz", packedKo(t, "xz", ko())[:40])}, `module "kernel/a.ko.xz": xz`},
		"a name that's a path":   {"amd64", []ent{good, e(own+"a.ko", ko("depends=../../x"))}, `it depends on "../../x", which is no module's name`},
	} {
		m := newMirror(t)
		img := kernels.Image{Kernel: kernels.Kernel{Distro: "debian", Suite: "bookworm", Arch: c.arch, Release: bootRelease},
			Packages: []kernels.Package{m.add("linux-image", makeTar(t, c.files...))}}
		s := openStore(t, t.TempDir())
		if _, err := s.Kernel(t.Context(), img, nil); err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v; want %q", name, err, c.err)
		}
		for _, f := range files(t, s.dir) {
			if !strings.HasPrefix(f, "packages/") && !strings.HasPrefix(f, "kernels/"+kernelKey(img)+".json") {
				t.Errorf("%s: it leaves %s", name, f)
			}
		}
	}
	img := tinyKernel(t, newMirror(t))
	img.Kernel.Release = "../6.1"
	if _, err := openStore(t, t.TempDir()).Kernel(t.Context(), img, nil); err == nil || !strings.Contains(err.Error(), "unusable name") {
		t.Errorf("a release that's a path: %v", err)
	}
}

// What is damaged is found when it's opened or read, and made again.
func TestKernelHeals(t *testing.T) {
	m := newMirror(t)
	img := tinyKernel(t, m)
	s := openStore(t, t.TempDir())
	k := mustKernel(t, s, img)
	dir := s.kernelDir(k.key)
	k.Close()
	alter := func(name string) {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)/2] ^= 1
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"boot", "index"} {
		alter(name)
		k := mustKernel(t, s, img)
		if _, err := k.Read("mc"); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		k.Close()
	}
	for name, damage := range map[string]func(file string) error{
		"cut off":   func(file string) error { return os.Truncate(filepath.Join(dir, file), 10) },
		"no longer": func(file string) error { return os.Remove(filepath.Join(dir, file)) },
	} {
		for _, file := range []string{"boot", "index", "modules", "record.json"} {
			if err := damage(file); err != nil {
				t.Fatal(err)
			}
			k := mustKernel(t, s, img)
			if _, err := k.Read("mc"); err != nil {
				t.Errorf("%s is %s: %v", file, name, err)
			}
			k.Close()
		}
	}
	k = mustKernel(t, s, img)
	for name := range k.index.modules {
		m := k.index.modules[name]
		b := make([]byte, 1)
		f, err := os.OpenFile(filepath.Join(dir, "modules"), os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.ReadAt(b, m.offset+m.length/2)
		b[0] ^= 1
		f.WriteAt(b, m.offset+m.length/2)
		f.Close()
	}
	if _, damaged, err := s.Verify(t.Context()); err != nil || len(damaged) != 1 || damaged[0].Path != "kernels/"+k.key || damaged[0].Removed {
		t.Errorf("Verify: %+v, %v; want the kernel, which is in use", damaged, err)
	}
	if _, err := k.Read("mc"); err == nil || !strings.Contains(err.Error(), "run again to make it anew") {
		t.Errorf("Read of a damaged module: %v", err)
	}
	k.Close()
	if _, err := mustKernel(t, s, img).Read("mc"); err != nil {
		t.Errorf("it was not made anew: %v", err)
	}
	if got := len(m.seen()); got != len(img.Packages) {
		t.Errorf("%d packages were asked for; want %d", got, len(img.Packages))
	}
	// A package that is damaged is fetched again.
	s.drop(dir)
	if err := os.WriteFile(s.packageFile(img.Packages[0]), make([]byte, img.Packages[0].Size), 0o644); err != nil {
		t.Fatal(err)
	}
	mustKernel(t, s, img)
}

func TestKernelsAreManaged(t *testing.T) {
	m := newMirror(t)
	img := tinyKernel(t, m)
	other := img
	other.Kernel.Suite = "trixie"
	s := openStore(t, t.TempDir())
	lock := tinyLock(t, m)
	mustRoot(t, s, lock).Close()
	k := mustKernel(t, s, img)
	mustKernel(t, s, other).Close()
	list, err := s.Kernels()
	if err != nil || len(list) != 2 || list[0].Kernel != other.Kernel || list[1].Boot != k.Digest() || list[1].Size < int64(len(bzImage)) {
		t.Fatalf("Kernels: %+v, %v", list, err)
	}
	if n, damaged, err := s.Verify(t.Context()); err != nil || len(damaged) > 0 || n < 4 {
		t.Errorf("Verify: %d, %v, %v", n, damaged, err)
	}
	if _, _, err := s.Remove(t.Context(), bootRelease); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), img.Kernel.String()) {
		t.Errorf("Remove of what is open: %v", err)
	}
	if roots, removed, err := s.Remove(t.Context(), "debian/trixie:*"); err != nil || len(roots) != 0 || len(removed) != 1 || removed[0].Kernel != other.Kernel {
		t.Errorf("Remove: %v, %v, %v", roots, removed, err)
	}
	if left, _ := filepath.Glob(s.path("kernels", kernelKey(other)+"*")); len(left) > 0 {
		t.Errorf("Remove leaves %q", left)
	}

	// What is open stays, without its packages; what is too old, or too much, goes.
	freed, err := s.GC(t.Context(), GCOptions{MaxSize: 1})
	if err != nil || freed < img.Packages[0].Size || s.have(img.Packages[0]) {
		t.Errorf("GC: %d, %v", freed, err)
	}
	if _, err := k.Read("mc"); err != nil {
		t.Errorf("after GC: %v", err)
	}
	k.Close()
	if _, err := s.GC(t.Context(), GCOptions{}); err != nil {
		t.Fatal(err)
	}
	if list, err := s.Kernels(); err != nil || len(list) != 1 {
		t.Errorf("GC without limits leaves %v, %v", list, err)
	}
	old := time.Now().Add(-48 * time.Hour)
	if err := os.Chtimes(s.kernelDir(k.key)+".json", old, old); err != nil {
		t.Fatal(err)
	}
	if _, err := s.GC(t.Context(), GCOptions{OlderThan: 24 * time.Hour}); err != nil {
		t.Fatal(err)
	}
	if left := files(t, s.path("kernels")); len(left) > 0 {
		t.Errorf("GC by age leaves %q", left)
	}
	// Of the least recently used, whatever they are, as many go as have to.
	mustRoot(t, s, lock).Close()
	mustKernel(t, s, img).Close()
	if _, err := s.GC(t.Context(), GCOptions{MaxSize: s.usage() - 1 - img.Packages[0].Size - img.Packages[1].Size}); err != nil {
		t.Fatal(err)
	}
	roots, err := s.List(t.Context())
	if list, _ := s.Kernels(); err != nil || len(list) != 1 || len(roots) != 0 {
		t.Errorf("GC leaves the roots %v and the kernels %v, %v; want the kernel, which was used last", roots, list, err)
	}
}

// What a process that was killed, or gave up, leaves is no kernel, and GC removes it.
func TestKernelCancelled(t *testing.T) {
	m := newMirror(t)
	img := tinyKernel(t, m)
	s := openStore(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	if _, err := s.Kernel(ctx, img, func(phase string, _, _ int64) {
		if phase == "unpack" {
			cancel()
		}
	}); !errors.Is(err, context.Canceled) {
		t.Fatalf("Kernel: %v", err)
	}
	if list, err := s.Kernels(); err != nil || len(list) > 0 {
		t.Errorf("Kernels: %v, %v", list, err)
	}
	if entries, err := os.ReadDir(s.path("tmp")); err != nil || len(entries) > 1 {
		t.Errorf("it leaves %v, %v", entries, err)
	}
	if _, err := s.GC(t.Context(), GCOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, folder := range []string{"kernels", "packages"} {
		if left := files(t, s.path(folder)); len(left) > 0 {
			t.Errorf("GC leaves %q", left)
		}
	}
	mustKernel(t, s, img)
}

// qemu takes what is compressed in an EFI program only from version 8.1 on.
func TestZboot(t *testing.T) {
	image := strings.Repeat("\x00", 56) + "ARM\x64" + strings.Repeat("kernel", 1000)
	zboot := func(compression, of string) string {
		body := packedKo(t, compression, of)
		head := make([]byte, 64)
		copy(head, "MZ\x00\x00zimg")
		binary.LittleEndian.PutUint32(head[8:], 64)
		binary.LittleEndian.PutUint32(head[12:], uint32(len(body)))
		copy(head[24:], compression)
		return string(head) + body + "signature"
	}
	for name, c := range map[string]struct{ file, want, err string }{
		"plain":      {image, image, ""},
		"gzip":       {packedKo(t, "gzip", image), packedKo(t, "gzip", image), ""},
		"zboot gzip": {zboot("gzip", image), image, ""},
		"zboot zstd": {zboot("zstd", image), image, ""},
		"no kernel":  {zboot("gzip", "text"), "", "what is compressed in it is no kernel of arm64"},
		"cut off":    {zboot("gzip", image)[:80], "", "decompress the kernel"},
	} {
		m := newMirror(t)
		img := kernels.Image{Kernel: kernels.Kernel{Distro: "debian", Suite: "bookworm", Arch: "arm64", Release: bootRelease},
			Packages: []kernels.Package{m.add("linux-image", makeTar(t, e("usr/lib/modules/"+bootRelease+"/vmlinuz", c.file)))}}
		k, err := openStore(t, t.TempDir()).Kernel(t.Context(), img, nil)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v; want %q", name, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if b, err := os.ReadFile(k.Path()); err != nil || string(b) != c.want {
			t.Errorf("%s: what boots has %d bytes, %v; want %d", name, len(b), err, len(c.want))
		}
		k.Close()
	}
}

// While it's made the disk fills up: nothing is left of it, and with room again it's made.
func TestKernelOnFullDisk(t *testing.T) {
	dir := smallDisk(t, "1m")
	if dir == "" {
		return
	}
	m := newMirror(t)
	img := tinyKernel(t, m)
	img.Packages = append(img.Packages, m.add("linux-modules", makeTar(t, e("lib/modules/"+bootRelease+"/kernel/big.ko", ko(string(randomBytes(600<<10)))))))
	s := openStore(t, dir)
	_, err := s.Kernel(t.Context(), img, nil)
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "no room in "+dir) {
		t.Errorf("Kernel: %v; want it to say that there is no room in %q", err, dir)
	}
	for _, f := range files(t, dir) {
		if !strings.HasPrefix(f, "packages/") && f != "kernels/"+kernelKey(img)+".json" {
			t.Errorf("left %q", f)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=4m"); err != nil {
		t.Fatal(err)
	}
	mustKernel(t, s, img)
}
