package host

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/dkmstest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// bookworm is the kernel that most tests are about.
var bookworm = artifact.Kernel{Distro: "debian", Suite: "bookworm", Arch: "amd64", Release: "6.1.0-56-amd64"}

var image = sync.OnceValues(func() (string, error) {
	d, err := dkmstest.Open(dkmstest.Cache())
	if err != nil {
		return "", err
	}
	return d.Image(context.Background(), kernels.Kernel(bookworm))
})

// own are the kernel's own modules that a test's root has.
var own = []string{"kernel/drivers/net/dummy.ko", "kernel/drivers/net/veth.ko", "kernel/drivers/net/mii.ko", "kernel/drivers/net/geneve.ko",
	"kernel/net/ipv4/udp_tunnel.ko", "kernel/net/ipv6/ip6_udp_tunnel.ko"}

// root is one for a test: a few modules of a real kernel, and what depmod has made of them.
type root struct {
	*Root
	lib  string
	warn *warnings
}

type warnings struct {
	sync.Mutex
	lines []string
}

func (w *warnings) add(s string) {
	w.Lock()
	defer w.Unlock()
	w.lines = append(w.lines, s)
}

func (w *warnings) has(parts ...string) bool {
	w.Lock()
	defer w.Unlock()
	return slices.ContainsFunc(w.lines, func(l string) bool {
		return !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(l, p) })
	})
}

// newRoot makes a root with a bookworm kernel.
func newRoot(t testing.TB) *root {
	t.Helper()
	need.Program(t, "depmod")
	dir := t.TempDir()
	lib := filepath.Join(dir, "lib/modules", bookworm.Release)
	from, err := image()
	if err != nil {
		need.Skip(t, "no kernel's modules: %v", err)
	}
	for _, name := range append([]string{"modules.order", "modules.builtin", "modules.builtin.modinfo"}, own...) {
		copyFile(t, filepath.Join(from, name), filepath.Join(lib, name))
	}
	r := reopen(t, dir, Options{})
	r.add(t, "hello", "1.0")
	depmod(t, dir)
	return r
}

// reopen opens a root that is there.
func reopen(t testing.TB, dir string, o Options) *root {
	t.Helper()
	w := &warnings{}
	o.Warn = w.add
	r, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return &root{r, filepath.Join(dir, "lib/modules", bookworm.Release), w}
}

func (r *root) add(t testing.TB, module, version string) {
	t.Helper()
	if err := r.Add(context.Background(), Registration{Module: module, Version: version}); err != nil {
		t.Fatal(err)
	}
}

func depmod(t testing.TB, dir string) {
	t.Helper()
	if out, err := exec.Command(need.Program(t, "depmod"), "-b", dir, bookworm.Release).CombinedOutput(); err != nil {
		t.Fatalf("depmod: %v: %s", err, out)
	}
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(from)
	if err != nil {
		t.Fatal(err)
	}
	write(t, to, b)
	if err := os.Chtimes(to, info.ModTime(), info.ModTime()); err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// bytesOf gives a module of the kernel's own, which stands in for one that was built: it fits.
func bytesOf(t testing.TB, name string) []byte {
	t.Helper()
	from, err := image()
	if err != nil {
		need.Skip(t, "no kernel's modules: %v", err)
	}
	b, err := os.ReadFile(filepath.Join(from, name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// built makes an artifact of modules by their path below the kernel's folder.
func built(t testing.TB, module, version string, files map[string][]byte, extras ...artifact.Extra) v1.Image {
	t.Helper()
	hash := v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}
	meta := artifact.Meta{Module: module, Version: version, Kernel: bookworm, Key: hash, Source: hash, Lock: hash, Status: artifact.Built, Extras: extras}
	return builtAs(t, meta, files)
}

func builtAs(t testing.TB, meta artifact.Meta, files map[string][]byte) v1.Image {
	t.Helper()
	var list []artifact.File
	for path, b := range files {
		list = append(list, artifact.File{Name: filepath.Base(path), Dest: filepath.Dir(path), Size: int64(len(b)),
			Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }})
	}
	img, err := artifact.New(meta, list)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// resolves tells which file modprobe would load for a module.
func resolves(t testing.TB, dir, module string) string {
	t.Helper()
	out, err := exec.Command(need.Program(t, "modprobe"), "-d", dir, "-S", bookworm.Release, "--show-depends", module).CombinedOutput()
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	words := strings.Fields(lines[len(lines)-1]) // insmod PATH, and options
	return strings.TrimPrefix(words[1], filepath.Join(dir, "lib/modules", bookworm.Release)+"/")
}

func TestInstall(t *testing.T) {
	t.Parallel()
	r := newRoot(t)
	img := built(t, "hello", "1.0", map[string][]byte{"updates/dkms/hello.ko": bytesOf(t, "kernel/drivers/net/veth.ko")})
	rec, err := r.Install(t.Context(), Install{Artifact: img, From: "registry.example/hello"})
	if err != nil {
		t.Fatal(err)
	}
	if got := resolves(t, r.Dir(), "hello"); got != "updates/dkms/hello.ko" {
		t.Errorf("modprobe hello finds %q", got)
	}
	if len(rec.Files) != 1 || rec.State != Installed || rec.From != "registry.example/hello" {
		t.Errorf("record %+v", rec)
	}
	if m, err := r.Module("hello", "1.0"); err != nil || len(m.Records) != 1 || m.Records[0].State != Installed {
		t.Errorf("state %+v, %v", m, err)
	}
	rec, err = r.Uninstall(t.Context(), "hello", "1.0", bookworm)
	if err != nil || rec.State != Built {
		t.Fatalf("%+v, %v", rec, err)
	}
	if got := resolves(t, r.Dir(), "hello"); got != "" {
		t.Errorf("after uninstall modprobe hello finds %q", got)
	}
	for _, gone := range []string{"lib/modules/" + bookworm.Release + "/updates", "lib/modules/" + bookworm.Release + "/" + aside, StateDir + "/journal", StateDir + "/journal.json"} {
		if _, err := os.Lstat(filepath.Join(r.Dir(), gone)); err == nil {
			t.Errorf("%s is left", gone)
		}
	}
	if len(r.warn.lines) > 0 {
		t.Errorf("warnings %q", r.warn.lines)
	}
}

// fails runs an Install that must change nothing, and gives its error.
func (r *root) fails(t testing.TB, in Install, want ...error) error {
	t.Helper()
	before := snapshot(t, r.Dir())
	_, err := r.Install(t.Context(), in)
	for _, w := range want {
		if !errors.Is(err, w) {
			t.Errorf("Install: %v; want %v", err, w)
		}
	}
	if d := difference(before, snapshot(t, r.Dir())); len(d) > 0 {
		t.Errorf("an Install that fails with %v changes:\n%s", err, strings.Join(d, "\n"))
	}
	if err == nil {
		t.Fatal("Install: no error")
	}
	return err
}

// says tells whether an error has all of some words.
func says(err error, words ...string) bool {
	return err != nil && !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(err.Error(), w) })
}

func (r *root) install(t testing.TB, in Install) Record {
	t.Helper()
	rec, err := r.Install(t.Context(), in)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

func (r *root) uninstall(t testing.TB, module, version string) Record {
	t.Helper()
	rec, err := r.Uninstall(t.Context(), module, version, bookworm)
	if err != nil {
		t.Fatal(err)
	}
	return rec
}

// one is an artifact of hello/1.0 with one module.
func one(t testing.TB, name string, b []byte) v1.Image {
	return built(t, "hello", "1.0", map[string][]byte{"updates/dkms/" + name: b})
}

func TestOriginals(t *testing.T) {
	t.Parallel()
	r := newRoot(t)
	dummy := filepath.Join(r.lib, "kernel/drivers/net/dummy.ko")
	if err := os.Chmod(dummy, 0o600); err != nil {
		t.Fatal(err)
	}
	before := snapshot(t, r.Dir())
	img := one(t, "dummy.ko", bytesOf(t, "kernel/drivers/net/veth.ko"))
	rec := r.install(t, Install{Artifact: img})
	if got := resolves(t, r.Dir(), "dummy"); got != "updates/dkms/dummy.ko" {
		t.Errorf("modprobe dummy finds %q", got)
	}
	kept := filepath.Join(r.Dir(), StateDir, "originals", bookworm.Release, "kernel/drivers/net/dummy.ko")
	if b, err := os.ReadFile(kept); err != nil || !bytes.Equal(b, bytesOf(t, "kernel/drivers/net/dummy.ko")) || len(rec.Originals) != 1 {
		t.Errorf("the original is kept with %d bytes, %v, in the record as %+v", len(b), err, rec.Originals)
	}
	r.uninstall(t, "hello", "1.0")
	after := snapshot(t, r.Dir())
	delete(after, StateDir+"/modules/hello/1.0/"+recordName(bookworm))
	if d := difference(before, after); len(d) > 0 {
		t.Errorf("install and uninstall leave:\n%s", strings.Join(d, "\n"))
	}

	// The kernel's package puts its module there again.
	r.install(t, Install{Artifact: img})
	write(t, dummy, []byte("newer"))
	r.uninstall(t, "hello", "1.0")
	if b, err := os.ReadFile(dummy); string(b) != "newer" || !r.warn.has("dummy.ko", "there again") {
		t.Errorf("the kernel's new module is %q, %v; warnings %q", b, err, r.warn.lines)
	}
	if _, err := os.Stat(kept); err == nil {
		t.Error("the original is still kept")
	}

	// Its record is damaged, and removed as the error says: the next one has the original all the same.
	r.install(t, Install{Artifact: img})
	record := filepath.Join(r.Dir(), StateDir, "modules/hello/1.0", recordName(bookworm))
	write(t, record, []byte("{"))
	r.fails(t, Install{Artifact: img, Force: true}, ErrBroken)
	if err := os.Remove(record); err != nil {
		t.Fatal(err)
	}
	r.fails(t, Install{Artifact: img}, ErrRefused)
	r.install(t, Install{Artifact: img, Force: true})
	r.uninstall(t, "hello", "1.0")
	if b, err := os.ReadFile(dummy); string(b) != "newer" {
		t.Errorf("after its record was lost, the original is %q, %v", b, err)
	}
	if err := os.Remove(filepath.Join(r.lib, "updates/dkms/dummy.ko")); err != nil { // moved aside by force
		t.Fatal(err)
	}

	// One that is damaged isn't put back.
	copyFile(t, filepath.Join(must(image()), "kernel/drivers/net/dummy.ko"), dummy)
	r.install(t, Install{Artifact: img})
	write(t, kept, []byte("damaged"))
	if _, err := r.Uninstall(t.Context(), "hello", "1.0", bookworm); !errors.Is(err, ErrBroken) || !says(err, kept, "package again") {
		t.Errorf("uninstall with a damaged original: %v", err)
	}
}

func must(path string, err error) string {
	if err != nil {
		return err.Error()
	}
	return path
}

// In a set, what is no longer part of a new version goes, and what was in its way comes back; the rest passes over.
func TestUpgrade(t *testing.T) {
	t.Parallel()
	r := newRoot(t)
	r.add(t, "hello", "2.0")
	veth, mii := bytesOf(t, "kernel/drivers/net/veth.ko"), bytesOf(t, "kernel/drivers/net/mii.ko")
	r.install(t, Install{Artifact: built(t, "hello", "1.0", map[string][]byte{"updates/dkms/hello.ko": mii, "updates/dkms/dummy.ko": mii, "updates/dkms/veth.ko": mii})})
	rec := r.install(t, Install{Artifact: built(t, "hello", "2.0", map[string][]byte{"extra/hello.ko": veth, "extra/veth.ko": veth})})
	for module, want := range map[string]string{"hello": "extra/hello.ko", "veth": "extra/veth.ko", "dummy": own[0]} {
		if got := resolves(t, r.Dir(), module); got != want {
			t.Errorf("modprobe %s finds %q; want %q", module, got, want)
		}
	}
	if len(rec.Originals) != 1 || rec.Originals[0].Path != own[1] {
		t.Errorf("2.0 has the originals %+v", rec.Originals)
	}
	if m, err := r.Module("hello", "1.0"); err != nil || m.Records[0].State != Built || m.Records[0].Files != nil {
		t.Errorf("1.0 is %+v, %v", m, err)
	}
	if _, err := os.Stat(filepath.Join(r.lib, "updates")); err == nil {
		t.Error("1.0's folder is left")
	}
	if _, err := r.Uninstall(t.Context(), "hello", "1.0", bookworm); !errors.Is(err, ErrNotAdded) {
		t.Errorf("uninstall of 1.0: %v", err)
	}
	r.uninstall(t, "hello", "2.0")
	if got := resolves(t, r.Dir(), "veth"); got != own[1] {
		t.Errorf("modprobe veth finds %q", got)
	}
	if _, err := os.Stat(filepath.Join(r.lib, "extra")); err == nil {
		t.Error("2.0's folder is left")
	}
}

func TestInstallTwice(t *testing.T) {
	t.Parallel()
	r := newRoot(t)
	img := one(t, "hello.ko", bytesOf(t, own[1]))
	first := r.install(t, Install{Artifact: img})
	again := reopen(t, r.Dir(), Options{Step: func(name string) error { t.Errorf("step %q", name); return nil }})
	if rec := again.install(t, Install{Artifact: img}); !rec.Changed.Equal(first.Changed) {
		t.Error("installing what is installed makes a new record")
	}
	if err := os.Remove(filepath.Join(r.lib, "updates/dkms/hello.ko")); err != nil {
		t.Fatal(err)
	}
	r.install(t, Install{Artifact: img})
	if got := resolves(t, r.Dir(), "hello"); got != "updates/dkms/hello.ko" {
		t.Errorf("a file that was gone is at %q", got)
	}
}

// patch replaces bytes of a module by as many others.
func patch(t testing.TB, b []byte, old, new string) []byte {
	t.Helper()
	if len(old) != len(new) || bytes.Count(b, []byte(old)) == 0 {
		t.Fatalf("%q can't be replaced by %q", old, new)
	}
	return bytes.ReplaceAll(b, []byte(old), []byte(new))
}

func TestGate(t *testing.T) {
	t.Parallel()
	geneve := bytesOf(t, "kernel/drivers/net/geneve.ko") // its version is 0.6
	for _, test := range []struct {
		name  string
		ours  []byte
		force bool
		want  []string // of the error; none if it is installed
	}{
		{name: "older", ours: patch(t, geneve, "\x00version=0.6\x00", "\x00version=0.5\x00"), want: []string{`"0.5"`, `"0.6"`, "newer", "--force"}},
		{name: "older, forced", ours: patch(t, geneve, "\x00version=0.6\x00", "\x00version=0.5\x00"), force: true},
		{name: "newer", ours: patch(t, geneve, "\x00version=0.6\x00", "\x00version=0.7\x00")},
		{name: "newer as a number", ours: patch(t, geneve, "\x00version=0.6\x00license=GPL\x00", "\x00version=0.10\x00licens=GPL\x00")},
		{name: "none", ours: bytesOf(t, "kernel/drivers/net/mii.ko"), want: []string{"newer"}},
		{name: "the same", ours: geneve, want: []string{"already there", "--force"}},
		{name: "the same, forced", ours: geneve, force: true},
		{name: "the same of another source", ours: patch(t, geneve, "\x00srcversion=", "\x00srcversioN=")},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := newRoot(t)
			in := Install{Artifact: one(t, "geneve.ko", test.ours), Force: test.force}
			if test.want != nil {
				if err := r.fails(t, in, ErrRefused); !says(err, append(test.want, "geneve.ko")...) {
					t.Errorf("Install: %v", err)
				}
				return
			}
			r.install(t, in)
			if got := resolves(t, r.Dir(), "geneve"); got != "updates/dkms/geneve.ko" {
				t.Errorf("modprobe geneve finds %q", got)
			}
		})
	}
	t.Run("one of two", func(t *testing.T) {
		r := newRoot(t)
		rec := r.install(t, Install{Artifact: built(t, "hello", "1.0", map[string][]byte{"updates/dkms/geneve.ko": geneve, "updates/dkms/hello.ko": geneve})})
		if len(rec.Files) != 1 || !r.warn.has("geneve.ko is already there", "left out") || resolves(t, r.Dir(), "geneve") != "kernel/drivers/net/geneve.ko" {
			t.Errorf("record %+v, warnings %q", rec, r.warn.lines)
		}
	})
	t.Run("unversioned", func(t *testing.T) {
		r := newRoot(t)
		r.fails(t, Install{Artifact: one(t, "mii.ko", bytesOf(t, own[2]))}, ErrRefused) // byte by byte the kernel's own
		r.install(t, Install{Artifact: one(t, "mii.ko", bytesOf(t, own[1]))})
	})
}

func TestUnfit(t *testing.T) {
	t.Parallel()
	r := newRoot(t)
	veth := bytesOf(t, own[1])
	layout := bytes.Index(veth, []byte("module_layout\x00")) - 8
	if layout < 0 {
		t.Fatal("veth has no version of module_layout")
	}
	other := bytes.Clone(veth)
	other[layout] ^= 1
	arm := bytes.Clone(veth)
	arm[18] = 183 // e_machine: EM_AARCH64
	for _, test := range []struct {
		name string
		b    []byte
		want []string
	}{
		{"release", patch(t, veth, "vermagic=6.1.0-56-amd64", "vermagic=6.1.0-55-amd64"), []string{"6.1.0-55-amd64", "6.1.0-56-amd64"}},
		{"flags", patch(t, veth, "mod_unload modversions", "mod_unload modver5ions"), []string{"modver5ions"}},
		{"module_layout", other, []string{"module_layout"}},
		{"machine", arm, []string{"aarch64", "x86_64"}},
	} {
		for _, force := range []bool{false, true} {
			if err := r.fails(t, Install{Artifact: one(t, "hello.ko", test.b), Force: force}, ErrUnfit); !says(err, append(test.want, "hello.ko", "build or pull")...) {
				t.Errorf("%s: %v", test.name, err)
			}
		}
	}
	if err := r.fails(t, Install{Artifact: one(t, "hello.ko", []byte("not a module"))}, artifact.ErrInvalid); !says(err, "hello.ko") {
		t.Error(err)
	}

	if err := r.fails(t, Install{Artifact: built(t, "hello", "1.0", map[string][]byte{"updates/my-mod.ko": veth, "updates/my_mod.ko": veth})},
		artifact.ErrInvalid); !says(err, "my_mod") {
		t.Error(err)
	}

	// Its headers are there, and others than it was built with.
	symvers := filepath.Join(r.Dir(), "usr/src/linux-headers-"+bookworm.Release, "Module.symvers")
	write(t, symvers, []byte("0x1\ta\tvmlinux\tEXPORT_SYMBOL\t\n"))
	hash := v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("0", 64)}
	meta := artifact.Meta{Module: "hello", Version: "1.0", Kernel: bookworm, Key: hash, Source: hash, Lock: hash, Status: artifact.Built, Symvers: hash}
	files := map[string][]byte{"updates/dkms/hello.ko": veth}
	have, _, err := r.Symvers(bookworm.Release)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.fails(t, Install{Artifact: builtAs(t, meta, files), Force: true}, ErrUnfit); !says(err, hash.String(), have.String(), symvers) {
		t.Error(err)
	}
	meta.Symvers = have
	r.install(t, Install{Artifact: builtAs(t, meta, files)})

	skipped := meta
	skipped.Status, skipped.Reason = artifact.Skipped, "not for this one"
	r.fails(t, Install{Artifact: builtAs(t, skipped, nil)}, ErrUnfit)
	elsewhere := meta
	elsewhere.Kernel.Release = "6.1.0-57-amd64"
	r.fails(t, Install{Artifact: builtAs(t, elsewhere, files)}, ErrNoKernel)
	unknown := meta
	unknown.Version = "9"
	r.fails(t, Install{Artifact: builtAs(t, unknown, files)}, ErrNotAdded)
}

// What is in the way and isn't the kernel's own stays, and its owner is named.
func TestInTheWay(t *testing.T) {
	t.Parallel()
	r := newRoot(t)
	veth, mii := bytesOf(t, own[1]), bytesOf(t, own[2])
	img := one(t, "my-mod.ko", veth)
	there := filepath.Join(r.lib, "extra/my_mod.ko.xz")
	write(t, there, mii)
	if err := r.fails(t, Install{Artifact: img}, ErrRefused); !says(err, there, "nobody known", "--force") {
		t.Error(err)
	}
	write(t, filepath.Join(r.Dir(), "var/lib/rpm/rpmdb.sqlite"), nil)
	if err := r.fails(t, Install{Artifact: img}, ErrRefused); !says(err, "rpm -qf "+there) {
		t.Error(err)
	}
	if err := errors.Join(os.MkdirAll(filepath.Join(r.Dir(), "var/lib/dpkg/info"), 0o755), // no list, and not waited for
		unix.Mkfifo(filepath.Join(r.Dir(), "var/lib/dpkg/info/a.list"), 0o644)); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(r.Dir(), "var/lib/dpkg/info/my-mod-image:amd64.list"), []byte("/.\n/usr/lib/modules/"+bookworm.Release+"/extra/my_mod.ko.xz\n"))
	if err := r.fails(t, Install{Artifact: img}, ErrRefused); !says(err, there, "package my-mod-image:amd64 ") {
		t.Error(err)
	}
	dkmsHas(t, r.Root, "my_mod", "3", bookworm.Release)
	dkmsInstalls(t, r.Root, "my_mod", "3", bookworm.Release)
	if err := os.Remove(filepath.Join(r.lib, "updates/dkms/my_mod.ko.xz")); err != nil {
		t.Fatal(err)
	}
	if err := r.fails(t, Install{Artifact: img, Adopt: true}, ErrRefused); !says(err, there, "dkms uninstall my_mod/3 -k "+bookworm.Release) {
		t.Error(err)
	}
	depmod(t, r.Dir())
	before := snapshot(t, r.lib)
	r.install(t, Install{Artifact: img, Force: true})
	if _, err := os.Stat(there); err == nil {
		t.Error("it is still in the way")
	}

	// Another module of ours, even with force.
	r.add(t, "other", "1")
	if err := r.fails(t, Install{Artifact: built(t, "other", "1", map[string][]byte{"extra/my_mod.ko": mii}), Force: true}, ErrRefused); !says(err, "hello's", "uninstall that first") {
		t.Error(err)
	}
	r.uninstall(t, "hello", "1.0")
	if d := difference(before, snapshot(t, r.lib)); len(d) > 0 {
		t.Errorf("it isn't put back as it was:\n%s", strings.Join(d, "\n"))
	}

	// One of our own that somebody has changed.
	img = one(t, "hello.ko", veth)
	r.install(t, Install{Artifact: img})
	ours := filepath.Join(r.lib, "updates/dkms/hello.ko")
	write(t, ours, mii)
	if err := r.fails(t, Install{Artifact: img}, ErrRefused); !says(err, ours, "changed since", "--force") {
		t.Error(err)
	}
	r.uninstall(t, "hello", "1.0")
	if b, err := os.ReadFile(ours); !bytes.Equal(b, mii) || !r.warn.has(ours, "not what was installed") {
		t.Errorf("a changed file isn't left: %v, warnings %q", err, r.warn.lines)
	}
	if err := os.Remove(ours); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../../kernel/drivers/net/veth.ko", ours); err != nil {
		t.Fatal(err)
	}
	if err := r.fails(t, Install{Artifact: img, Force: true}, ErrRefused); !says(err, ours, "regular file") {
		t.Error(err)
	}
}

func TestAdopt(t *testing.T) {
	t.Parallel()
	r := newRoot(t)
	img := one(t, "hello.ko", bytesOf(t, own[1]))
	dkmsHas(t, r.Root, "hello", "0.9", bookworm.Release)
	dkmsInstalls(t, r.Root, "hello", "0.9", bookworm.Release)
	originals := filepath.Join(r.Dir(), "var/lib/dkms/hello/original_module", bookworm.Release, "x86_64")
	place := "/lib/modules/" + bookworm.Release + "/kernel/drivers/misc/hello.ko"
	copyFile(t, filepath.Join(r.lib, own[0]), filepath.Join(originals, "hello.ko"))
	write(t, filepath.Join(originals, "hello.ko.origin"), []byte(place+"\n"))
	write(t, filepath.Join(originals, "collisions/etc/hello.ko"), []byte("x"))
	write(t, filepath.Join(originals, "collisions/etc/hello.ko.origin"), []byte("/lib/modules/"+bookworm.Release+"/../../../etc/hello.ko\n"))
	if err := r.fails(t, Install{Artifact: img}, ErrRefused); !says(err, "hello/0.9", "adopt") {
		t.Error(err)
	}
	rec := r.install(t, Install{Artifact: img, Adopt: true})
	if got := resolves(t, r.Dir(), "hello"); got != "updates/dkms/hello.ko" || len(rec.Originals) != 1 {
		t.Errorf("modprobe hello finds %q, originals %+v", got, rec.Originals)
	}
	if _, err := os.Stat(filepath.Join(originals, "hello.ko")); err == nil || !r.warn.has("collisions/etc", "left to dkms") {
		t.Errorf("dkms's original is still there, or one is that may not be; warnings %q", r.warn.lines)
	}
	r.uninstall(t, "hello", "1.0")
	if info, err := os.Stat(filepath.Join(r.Dir(), place)); err != nil {
		t.Error(err)
	} else if want, err := os.Stat(filepath.Join(r.lib, own[0])); err != nil || !info.ModTime().Equal(want.ModTime()) {
		t.Errorf("dkms's original is back with the time %v, %v", info.ModTime(), err)
	}

	// dkms's symlink_modules makes links.
	link := "lib/modules/" + bookworm.Release + "/updates/dkms/hello.ko.xz"
	symlink(t, r.Root, "/var/lib/dkms/hello/0.9/"+bookworm.Release+"/x86_64/module/hello.ko.xz", link)
	before := snapshot(t, r.lib)
	cut := reopen(t, r.Dir(), Options{Step: func(name string) error {
		if name == "commit" {
			return errCut
		}
		return nil
	}})
	if _, err := cut.Install(t.Context(), Install{Artifact: img, Adopt: true}); !errors.Is(err, errCut) {
		t.Fatal(err)
	}
	if err := r.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if d := difference(before, snapshot(t, r.lib)); len(d) > 0 {
		t.Errorf("cut off:\n%s", strings.Join(d, "\n"))
	}
	r.install(t, Install{Artifact: img, Adopt: true})
	if _, err := os.Lstat(filepath.Join(r.Dir(), link)); err == nil {
		t.Error("dkms's link is still there")
	}
}

// A module is compressed as the kernel's own are, for the tools of the system to read.
func TestCompression(t *testing.T) {
	t.Parallel()
	b := bytesOf(t, own[1])
	for _, test := range []struct{ suffix, program, unpack string }{
		{".ko.xz", "xz --check=crc32 --lzma2=dict=1MiB", "xz -dc"},
		{".ko.zst", "zstd -q --rm", "zstd -dcq"},
		{".ko.gz", "gzip -n", "gzip -dc"},
	} {
		t.Run(test.suffix, func(t *testing.T) {
			r := newRoot(t)
			for _, name := range own {
				args := strings.Fields(test.program)
				if out, err := exec.Command(need.Program(t, args[0]), append(args[1:], filepath.Join(r.lib, name))...).CombinedOutput(); err != nil {
					t.Fatalf("%s: %v: %s", test.program, err, out)
				}
			}
			depmod(t, r.Dir())
			before := snapshot(t, r.lib)
			write(t, filepath.Join(r.lib, "updates/dkms/hello.ko"), b) // of another suffix, and dkms's
			dkmsHas(t, r.Root, "hello", "0.9", bookworm.Release)
			symlink(t, r.Root, "0.9/"+bookworm.Release+"/x86_64", "var/lib/dkms/hello/kernel-"+bookworm.Release+"-x86_64")
			rec := r.install(t, Install{Adopt: true, Artifact: built(t, "hello", "1.0", map[string][]byte{"updates/dkms/hello.ko": b, "updates/dkms/dummy.ko": b})})
			want := "updates/dkms/hello" + test.suffix
			if len(rec.Files) != 2 || rec.Files[1].Path != want {
				t.Errorf("record %+v", rec.Files)
			}
			if _, err := os.Stat(filepath.Join(r.lib, "updates/dkms/hello.ko")); err == nil {
				t.Error("dkms's is still there")
			}
			args := append(strings.Fields(test.unpack), filepath.Join(r.lib, want))
			if out, err := exec.Command(args[0], args[1:]...).Output(); err != nil || !bytes.Equal(out, b) {
				t.Errorf("%s gives %d bytes, %v; want %d", test.unpack, len(out), err, len(b))
			}
			features, err := exec.Command(need.Program(t, "depmod"), "--version").Output()
			if err != nil {
				t.Fatal(err)
			}
			if got := resolves(t, r.Dir(), "hello"); got != want && !bytes.Contains(features, []byte("-ZLIB")) {
				t.Errorf("modprobe hello finds %q; want %q", got, want)
			}
			r.uninstall(t, "hello", "1.0")
			if err := os.Remove(filepath.Join(r.lib, "updates/dkms")); err == nil {
				os.Remove(filepath.Join(r.lib, "updates"))
			}
			if d := difference(before, snapshot(t, r.lib)); len(d) > 0 {
				t.Errorf("install and uninstall leave:\n%s", strings.Join(d, "\n"))
			}
		})
	}
}
