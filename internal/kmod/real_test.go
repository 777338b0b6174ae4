package kmod

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/deb"
)

// realKernel returns the modules and the headers of the newest amd64 kernel of bookworm's 6.1 line, as its packages have them.
// They are downloaded once, into the user's cache. -short leaves out what needs them.
func realKernel(t testing.TB) (modules, headers string) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a Debian mirror")
	}
	need.Program(t, "dpkg-deb")
	prepareKernel()
	if prepare.err != nil {
		need.Skip(t, "no real kernel to test with: %v", prepare.err)
	}
	return filepath.Join(prepare.root, "lib/modules", prepare.release), filepath.Join(prepare.root, "usr/src/linux-headers-"+prepare.release)
}

func prepareKernel() {
	prepare.Do(func() {
		prepare.root, prepare.release, prepare.err = download("", func(release string) []string { return []string{"linux-image-" + release, "linux-headers-" + release} })
	})
}

var prepare struct {
	sync.Once
	root, release string
	err           error
}

// download unpacks packages of the kernel or its headers into a folder, whose name ends in what is given.
func download(end string, of func(release string) []string) (root, release string, err error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", "", err
	}
	base := filepath.Join(cache, "godkms-hermetic-test")
	p, err := deb.New("debian", deb.Options{CacheDir: filepath.Join(base, "index")})
	if err != nil {
		return "", "", err
	}
	list, err := p.Kernels(context.Background(), "bookworm", "amd64")
	if err != nil {
		return "", "", err
	}
	i := slices.IndexFunc(list, func(k kernels.Candidate) bool {
		return strings.HasPrefix(k.Release, "6.1.0-") && strings.Count(k.Release, "-") == 2
	})
	if i < 0 {
		return "", "", errors.New("bookworm has no 6.1 kernel")
	}
	release = list[i].Release
	root = filepath.Join(base, "kernel-"+release+end)
	if _, err := os.Stat(root); err == nil {
		return root, release, nil
	}
	lock, err := p.Lock(context.Background(), list[i].Kernel, kernels.Extra{})
	if err != nil {
		return "", "", err
	}
	image, err := p.Image(context.Background(), lock)
	if err != nil {
		return "", "", err
	}
	tmp, err := os.MkdirTemp(base, "tmp-")
	if err != nil {
		return "", "", err
	}
	defer os.RemoveAll(tmp)
	for _, k := range slices.Concat(lock.Headers, image.Packages) {
		if !slices.Contains(of(release), k.Name) {
			continue
		}
		if err := unpack(k, filepath.Join(tmp, "root")); err != nil {
			return "", "", fmt.Errorf("%s: %w", k.URL, err)
		}
	}
	if err := os.Rename(filepath.Join(tmp, "root"), root); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", "", err
	}
	return root, release, nil
}

func unpack(k kernels.Package, dir string) error {
	resp, err := http.Get(k.URL)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(body); hex.EncodeToString(sum[:]) != k.Digest.Hex {
		return fmt.Errorf("%s: sha256 is %x", resp.Status, sum)
	}
	cmd := exec.Command("dpkg-deb", "-x", "/dev/stdin", dir)
	cmd.Stdin = bytes.NewReader(body)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("dpkg-deb: %w: %s", err, out)
	}
	return nil
}

func listModules(t testing.TB, dir string) []string {
	t.Helper()
	var out []string
	if err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if b := filepath.Base(p); strings.HasSuffix(b, ".ko") || strings.HasSuffix(b, ".ko.xz") {
			out = append(out, p)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return out
}

func readFile(t testing.TB, path string) *Module {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	m, err := Read(bytes.NewReader(b), int64(len(b)))
	if err != nil {
		t.Fatalf("Read(%s) = %v", filepath.Base(path), err)
	}
	return m
}

func target(t testing.TB, headers string) Target {
	t.Helper()
	target, err := ReadTarget(os.DirFS(headers), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	return target
}

// Every module of a kernel must pass for that kernel.
func TestInTreeModulesLoad(t *testing.T) {
	modules, headers := realKernel(t)
	target := target(t, headers)
	paths := listModules(t, modules)
	exports := map[string][]string{}
	for name, s := range target.Symvers {
		exports[s.Module] = append(exports[s.Module], name)
	}
	start := time.Now()
	for _, path := range paths {
		m := readFile(t, path)
		if err := Check(m, target); err != nil {
			t.Errorf("Check(%s):\n%v", filepath.Base(path), err)
		}
		// Module.symvers is the kernel's own list of what each module exports.
		rel, _ := filepath.Rel(filepath.Join(modules, "kernel"), path)
		want := exports[strings.TrimSuffix(rel, ".ko")]
		slices.Sort(want)
		if !slices.Equal(m.Exports, want) {
			t.Errorf("%s: Exports = %q; want %q", rel, m.Exports, want)
		}
	}
	t.Logf("%d modules in %v", len(paths), time.Since(start))
	if len(paths) < 1000 {
		t.Errorf("%d modules; want more than 1000", len(paths))
	}
}

// modinfo of the kmod package is the oracle for .modinfo and signatures.
func TestModinfoAgrees(t *testing.T) {
	modules, _ := realKernel(t)
	modinfo := need.Program(t, "modinfo")
	for batch := range slices.Chunk(listModules(t, modules), 500) {
		out, err := exec.Command(modinfo, append([]string{"-0"}, batch...)...).Output()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string][]string{}
		var path string
		for line := range strings.SplitSeq(string(out), "\x00") {
			if p, ok := strings.CutPrefix(line, "filename:"); ok {
				path = strings.TrimSpace(p)
			} else if line != "" {
				got[path] = append(got[path], line)
			}
		}
		var parmtype []string
		for _, path := range batch {
			m := readFile(t, path)
			var want []string
			for _, f := range m.Info {
				if f.Key != "parm" && f.Key != "parmtype" { // modinfo merges the two and prints them last
					want = append(want, f.Key+"="+f.Value)
				}
			}
			parmtype = append(parmtype, m.All("parmtype")...)
			signature := slices.IndexFunc(got[path], func(l string) bool { return strings.HasPrefix(l, "sig_id=") })
			if (signature >= 0) != m.Signed {
				t.Errorf("%s: Signed = %v; modinfo disagrees", filepath.Base(path), m.Signed)
			}
			if signature >= 0 {
				got[path] = got[path][:signature]
			}
			got[path] = slices.DeleteFunc(got[path], func(l string) bool { return strings.HasPrefix(l, "parm") })
			if !slices.Equal(got[path], want) {
				t.Errorf("%s: Info = %q; modinfo says %q", filepath.Base(path), want, got[path])
			}
		}
		out, err = exec.Command(modinfo, append([]string{"-0", "-F", "parmtype"}, batch...)...).Output()
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(parmtype, "\x00") + "\x00"; got != string(out) {
			t.Errorf("parmtype has %d values, modinfo says %d", len(parmtype), bytes.Count(out, []byte{0}))
		}
	}
}

// modprobe and nm are the oracles for symbol versions and undefined symbols. One process a module: every 16th is enough.
func TestSymbolsAgree(t *testing.T) {
	modules, _ := realKernel(t)
	modprobe := need.Program(t, "modprobe")
	nm := need.Program(t, "nm")
	for i, path := range listModules(t, modules) {
		if i%16 != 0 {
			continue
		}
		m := readFile(t, path)
		out, err := exec.Command(modprobe, "--dump-modversions", path).Output()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, v := range m.Versions {
			got = append(got, fmt.Sprintf("0x%08x\t%s", v.CRC, v.Name))
		}
		if want := strings.Split(strings.TrimSpace(string(out)), "\n"); !slices.Equal(got, want) {
			t.Errorf("%s: Versions = %q; want %q", filepath.Base(path), got, want)
		}
		if out, err = exec.Command(nm, "-u", path).Output(); err != nil {
			t.Fatal(err)
		}
		var undefined, weak []string
		for line := range strings.Lines(string(out)) {
			switch f := strings.Fields(line); f[0] {
			case "U":
				undefined = append(undefined, f[1])
			default:
				weak = append(weak, f[1])
			}
		}
		slices.Sort(undefined)
		slices.Sort(weak)
		if !slices.Equal(m.Undefined, undefined) || !slices.Equal(m.Weak, weak) {
			t.Errorf("%s: Undefined, Weak = %q, %q; want %q, %q", filepath.Base(path), m.Undefined, m.Weak, undefined, weak)
		}
	}
}

// Altered modules: each change of one real module must give its own line, and only that.
func TestAlteredModules(t *testing.T) {
	modules, headers := realKernel(t)
	target := target(t, headers)
	path := filepath.Join(modules, "kernel/drivers/net/dummy.ko")
	orig, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	replace := func(from, to string) []byte {
		t.Helper()
		if len(from) != len(to) || bytes.Count(orig, []byte(from)) != 1 {
			t.Fatalf("%q is there %d times", from, bytes.Count(orig, []byte(from)))
		}
		return bytes.Replace(orig, []byte(from), []byte(to), 1)
	}
	patch := func(off int, b ...byte) []byte {
		c := bytes.Clone(orig)
		copy(c[off:], b)
		return c
	}
	release := target.Release
	other := strings.Replace(release, "6.", "5.", 1)
	// The CRC stands before the name in __versions.
	version := bytes.Index(orig, append([]byte("module_layout"), make([]byte, 43)...)) - 8
	layout := target.Symvers["module_layout"].CRC
	tests := []struct {
		name string
		data []byte
		want []string
	}{
		{"nothing", orig, nil},
		{"vermagic", replace("vermagic="+release, "vermagic="+other), []string{
			fmt.Sprintf(`vermagic is "%s SMP preempt mod_unload modversions", the kernel wants "%s SMP preempt mod_unload modversions"`, other, release),
		}},
		{"flags", replace(" SMP preempt ", " SMP PREEMPT "), []string{
			fmt.Sprintf(`vermagic is "%s SMP PREEMPT mod_unload modversions", the kernel wants "%s SMP preempt mod_unload modversions"`, release, release),
		}},
		{"no vermagic", replace("vermagic=", "vermagiX="), []string{
			fmt.Sprintf(`vermagic is "", the kernel wants "%s SMP preempt mod_unload modversions"`, release),
		}},
		{"crc", patch(version, 1, 2, 3, 4), []string{
			fmt.Sprintf(`symbol "module_layout" has version 0x04030201, the kernel's is %#08x`, layout),
		}},
		{"no crc of the layout", replace(string(orig[version+8:version+24]), "module_layouX\x00\x00\x00"), []string{
			`it has no version for "module_layout"`,
		}},
		{"machine", patch(18, 183, 0), []string{"built for aarch64, the kernel is x86_64"}},
		{"unknown machine", patch(18, 0xee, 0xee), []string{"built for ELF machine 61166, ELFCLASS64, ELFDATA2LSB, the kernel is x86_64"}},
		{"type", patch(16, 3, 0), []string{
			"not a kernel module: its ELF type is shared object and section .gnu.linkonce.this_module is there",
		}},
		{"section", replace(".gnu.linkonce.this_module", ".gnu.linkonce.this_modulX"), []string{
			"not a kernel module: its ELF type is relocatable and section .gnu.linkonce.this_module is missing",
		}},
		{"licence", replace("license=GPL\x00", "license=BSD\x00"), []string{
			`the licence "BSD" is not compatible with the GPL, but these symbols need it: …`,
		}},
		{"unversioned", replace("\x00__versions\x00", "\x00__versionX\x00"), []string{"it has no symbol versions, the kernel wants them"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := Read(bytes.NewReader(tt.data), int64(len(tt.data)))
			if err != nil {
				t.Fatal(err)
			}
			got := problems(Check(m, target))
			if !slices.EqualFunc(got, tt.want, func(g, w string) bool {
				prefix, open := strings.CutSuffix(w, "…")
				return g == w || open && strings.HasPrefix(g, prefix)
			}) {
				t.Errorf("Check(%s) =\n%s\nwant\n%s", tt.name, strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
			}
		})
	}
	for cut := range len(orig) {
		if cut%97 != 0 {
			continue
		}
		m, err := Read(bytes.NewReader(orig[:cut]), int64(cut))
		if err == nil && m.HasSymbols && Check(m, target) == nil && cut < len(orig)-2048 {
			t.Errorf("Read of the first %d of %d bytes passes", cut, len(orig))
		}
	}
}

func problems(err error) []string {
	var e *LoadError
	if errors.As(err, &e) {
		return e.Problems
	}
	if err != nil {
		return []string{err.Error()}
	}
	return nil
}

// What is read of a compressed module is the same.
func TestCompressedModule(t *testing.T) {
	modules, _ := realKernel(t)
	path := filepath.Join(modules, "kernel/drivers/net/dummy.ko")
	want := readFile(t, path)
	for _, c := range []struct{ name, program string }{{"gzip", "gzip"}, {"xz", "xz"}, {"zstd", "zstd"}} {
		t.Run(c.name, func(t *testing.T) {
			b, err := exec.Command(need.Program(t, c.program), "-c", path).Output()
			if err != nil {
				t.Fatal(err)
			}
			got, err := Read(bytes.NewReader(b), int64(len(b)))
			if err != nil {
				t.Fatal(err)
			}
			if got.Compression != c.name {
				t.Errorf("Compression = %q; want %q", got.Compression, c.name)
			}
			got.Compression = ""
			if fmt.Sprint(got) != fmt.Sprint(want) {
				t.Errorf("Read(%s) = %v; want %v", c.name, got, want)
			}
			if _, err := Read(bytes.NewReader(b[:len(b)/2]), int64(len(b)/2)); err == nil {
				t.Error("half of it is read without error")
			}
		})
	}
}

// Whatever a file claims, reading it takes no more memory than a small multiple of its size.
func TestMemoryIsBounded(t *testing.T) {
	modules, _ := realKernel(t)
	orig, err := os.ReadFile(filepath.Join(modules, "kernel/drivers/net/dummy.ko"))
	if err != nil {
		t.Fatal(err)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	n := uint64(0)
	for off := 0; off < 64; off++ { // every field of the ELF header at its largest
		b := bytes.Clone(orig)
		copy(b[off:], "\xff\xff\xff\xff\xff\xff\xff\x7f")
		Read(bytes.NewReader(b), int64(len(b)))
		n++
	}
	runtime.ReadMemStats(&after)
	if per := (after.TotalAlloc - before.TotalAlloc) / n; per > 8*uint64(len(orig)) {
		t.Errorf("Read allocates %d bytes for a file of %d", per, len(orig))
	}
}

func BenchmarkRead(b *testing.B) {
	modules, _ := realKernel(b)
	data, err := os.ReadFile(filepath.Join(modules, "kernel/drivers/net/dummy.ko"))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := Read(bytes.NewReader(data), int64(len(data))); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkReadSymvers(b *testing.B) {
	_, headers := realKernel(b)
	data, err := os.ReadFile(filepath.Join(headers, "Module.symvers"))
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := ReadSymvers(bytes.NewReader(data)); err != nil {
			b.Fatal(err)
		}
	}
}
