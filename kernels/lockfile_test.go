package kernels

import (
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func lockPackage(name, version, urls string) Package {
	u := strings.Fields(urls)
	p := Package{Name: name, Version: version, Arch: "amd64", URL: u[0], Digest: hash([]byte(name + version)), Size: int64(100 + len(name))}
	p.Mirrors = append(p.Mirrors, u[1:]...)
	return p
}

// lockFile has two suites, of one of them two kernels, and for one of these also extra packages.
func lockFile() *LockFile {
	const at, second = "http://m.example/debian/pool/", " https://snapshot.example/debian/pool/"
	toolchain := []Package{lockPackage("bash", "5.2-1+b7", at+"bash.deb"+second+"bash.deb"), lockPackage("gcc-12", "12.2.0-14", at+"gcc.deb")}
	lock := func(suite, release string, toolchain []Package, extra Extra, more ...Package) ExtraLock {
		l := Lock{Kernel: Kernel{"debian", suite, "amd64", release}, Compiler: "gcc-12", Toolchain: toolchain}
		l.Headers = append([]Package{lockPackage("linux-headers-"+release, "6.1.2", at+"h.deb")}, more...)
		return ExtraLock{Extra: extra, Lock: l}
	}
	day := time.Date(2026, 7, 11, 8, 12, 1, 0, time.UTC)
	index := func(suite, name string) LockedIndex {
		return LockedIndex{"debian", suite, "amd64", Index{"debian", name, "http://m.example/debian", day, hash([]byte(name))}}
	}
	other := lock("trixie", "6.12.1+deb13-amd64", []Package{lockPackage("gcc-14", "14.2.0-19", at+"gcc14.deb")}, Extra{})
	other.Lock.Compiler, other.Lock.Forced, other.Lock.Build = "gcc-14", true, "usr/src/kernels/6.12"
	other.Image = Image{other.Lock.Kernel, []Package{lockPackage("linux-image-6.12.1+deb13-amd64", "6.1.2", at+"i.deb")}}
	return &LockFile{
		Indexes: []LockedIndex{index("trixie", "trixie"), index("bookworm", "bookworm"), index("bookworm", "bookworm-updates")},
		Locks: []ExtraLock{
			other,
			lock("bookworm", "6.1.0-9-amd64", toolchain, Extra{Packages: []string{"pkg-config", "a|b"}, Depends: []string{"gawk (>=  1)"}},
				lockPackage("pkg-config", "1.8", at+"p.deb")),
			lock("bookworm", "6.1.0-9-amd64", toolchain, Extra{}),
			lock("bookworm", "6.1.0-10-amd64", toolchain, Extra{}),
		},
	}
}

func encodeLockFile(t testing.TB, f *LockFile) string {
	t.Helper()
	text, err := f.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestLockFile(t *testing.T) {
	text := encodeLockFile(t, lockFile())
	var words []string
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if i := slices.IndexFunc(f, func(s string) bool { return strings.HasPrefix(s, "sha256:") }); i >= 0 {
			f[i] = f[i][:9]
		}
		words = append(words, strings.Join(f, " "))
	}
	h := func(s string) string { return hash([]byte(s)).String()[:9] }
	l := lockFile().Locks
	want := []string{
		"godkms.lock 1", "",
		"index debian/bookworm amd64 debian bookworm 2026-07-11T08:12:01Z " + h("bookworm") + " http://m.example/debian",
		"index debian/bookworm amd64 debian bookworm-updates 2026-07-11T08:12:01Z " + h("bookworm-updates") + " http://m.example/debian",
		"index debian/trixie amd64 debian trixie 2026-07-11T08:12:01Z " + h("trixie") + " http://m.example/debian", "",
		"kernel debian/bookworm:6.1.0-10-amd64 amd64 gcc-12 " + l[3].Lock.Digest().String()[:9],
		"toolchain " + l[3].Lock.ToolchainDigest().String()[:9],
		"package linux-headers-6.1.0-10-amd64 6.1.2 amd64 128 " + h("linux-headers-6.1.0-10-amd646.1.2") + " http://m.example/debian/pool/h.deb", "",
		"kernel debian/bookworm:6.1.0-9-amd64 amd64 gcc-12 " + l[2].Lock.Digest().String()[:9],
		"toolchain " + l[3].Lock.ToolchainDigest().String()[:9],
		"package linux-headers-6.1.0-9-amd64 6.1.2 amd64 127 " + h("linux-headers-6.1.0-9-amd646.1.2") + " http://m.example/debian/pool/h.deb", "",
		"kernel debian/bookworm:6.1.0-9-amd64 amd64 gcc-12 " + l[1].Lock.Digest().String()[:9],
		"with a | b", "with pkg-config", "depends gawk (>= 1)",
		"toolchain " + l[3].Lock.ToolchainDigest().String()[:9],
		"package linux-headers-6.1.0-9-amd64 6.1.2 amd64 127 " + h("linux-headers-6.1.0-9-amd646.1.2") + " http://m.example/debian/pool/h.deb",
		"package pkg-config 1.8 amd64 110 " + h("pkg-config1.8") + " http://m.example/debian/pool/p.deb", "",
		"kernel debian/trixie:6.12.1+deb13-amd64 amd64 gcc-14 " + l[0].Lock.Digest().String()[:9],
		"forced", "build usr/src/kernels/6.12",
		"toolchain " + l[0].Lock.ToolchainDigest().String()[:9],
		"package linux-headers-6.12.1+deb13-amd64 6.1.2 amd64 132 " + h("linux-headers-6.12.1+deb13-amd646.1.2") + " http://m.example/debian/pool/h.deb",
		"image " + l[0].Image.Digest().String()[:9],
		"package linux-image-6.12.1+deb13-amd64 6.1.2 amd64 130 " + h("linux-image-6.12.1+deb13-amd646.1.2") + " http://m.example/debian/pool/i.deb", "",
		"toolchain " + l[3].Lock.ToolchainDigest().String()[:9],
		"package bash 5.2-1+b7 amd64 104 " + h("bash5.2-1+b7") + " http://m.example/debian/pool/bash.deb https://snapshot.example/debian/pool/bash.deb",
		"package gcc-12 12.2.0-14 amd64 106 " + h("gcc-1212.2.0-14") + " http://m.example/debian/pool/gcc.deb", "",
		"toolchain " + l[0].Lock.ToolchainDigest().String()[:9],
		"package gcc-14 14.2.0-19 amd64 106 " + h("gcc-1414.2.0-19") + " http://m.example/debian/pool/gcc14.deb",
	}
	if !slices.Equal(words, want) {
		t.Errorf("the text is\n%s\nwant\n%s", strings.Join(words, "\n"), strings.Join(want, "\n"))
	}
	f, err := ParseLockFile([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	if again := encodeLockFile(t, f); again != text {
		t.Errorf("what was read is written as\n%s\nwant\n%s", again, text)
	}
	for i, j := range []int{3, 2, 1, 0} {
		if !reflect.DeepEqual(f.Locks[i].Lock, l[j].Lock) || !reflect.DeepEqual(f.Locks[i].Image, l[j].Image) {
			t.Errorf("lock %d is\n%+v\nwant\n%+v", i, f.Locks[i], l[j])
		}
	}
	if none := encodeLockFile(t, &LockFile{}); none != "godkms.lock 1\n" {
		t.Errorf("an empty file is %q", none)
	}
}

// Some repositories have no SHA-256 of their files.
func TestLockFileSHA512(t *testing.T) {
	sum := v1.Hash{Algorithm: "sha512", Hex: strings.Repeat("5a", 64)}
	f := lockFile()
	f.Indexes[0].Digest, f.Locks[0].Lock.Headers[0].Digest = sum, sum
	got, err := ParseLockFile([]byte(encodeLockFile(t, f)))
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(got.Locks, func(l ExtraLock) bool {
		return slices.ContainsFunc(l.Lock.Headers, func(p Package) bool { return p.Digest == sum })
	}) {
		t.Errorf("locks are %v; want a package with the digest %s", got.Locks, sum)
	}
}

func TestLockFileRefused(t *testing.T) {
	text := encodeLockFile(t, lockFile())
	lines := strings.SplitAfter(text, "\n")
	swap := func(i, j int) string {
		s := slices.Clone(lines)
		s[i-1], s[j-1] = s[j-1], s[i-1]
		return strings.Join(s, "")
	}
	without := func(i int) string { return strings.Join(slices.Delete(slices.Clone(lines), i-1, i), "") }
	twice := func(i, j int) string { return strings.Join(slices.Insert(slices.Clone(lines), j, lines[i-1:j]...), "") }
	replace := func(old, new string) string { return strings.Replace(text, old, new, 1) }
	for _, c := range []struct{ name, text, err string }{
		{"nothing", "", "it is no lock file"},
		{"another file", "[build]\n", "it is no lock file"},
		{"a newer version", replace("lock 1", "lock 2"), `line 1: a lock file of the version "2"; this program reads 1`},
		{"cut off", text[:len(text)-1], `line 37: the end is missing`},
		{"something behind", text + "\n", "behind the end"},
		{"unsorted indexes", swap(3, 4), "line 3: it is "},
		{"an index twice", twice(3, 3), "line 4: it is "},
		{"unsorted packages", swap(32, 33), "line 31: the packages of this toolchain have the digest sha256:"},
		{"a package less", without(21), "line 15: what is locked for this kernel has the digest sha256:"},
		{"a package twice", twice(21, 21), "line 15: what is locked"},
		{"a kernel twice", twice(7, 10), "line 11: debian/bookworm:6.1.0-10-amd64 comes twice"},
		{"a toolchain twice", twice(31, 34), "line 35: the toolchain comes twice"},
		{"no toolchain", without(8), "line 7: this kernel's toolchain is not in the file"},
		{"a toolchain of nobody", text + "\ntoolchain " + (Lock{}).ToolchainDigest().String() + "\n", "line 38: there is something behind the end"},
		{"unsorted extra packages", swap(16, 17), `line 16: it is "  with pkg-config" where "  with a | b" belongs`},
		{"an empty line less", without(2), "line 2: it is "},
		{"spaces", replace("amd64 gcc-12", "amd64  gcc-12"), "line 7: kernel has 4 words"},
		{"spaces in front", replace("index", " index"), "no meaning here"},
		{"tab", replace("pkg-config\n", "pkg-config\t\n"), `line 17: it has the character '\t'`},
		{"unknown word", replace("kernel", "kernels"), `line 7: "kernels debian/`},
		{"unknown word inside", replace("  with", "  without"), "line 16: "},
		{"a package of nothing", replace("index", "  package"), "line 3: "},
		{"a word of a kernel in a toolchain", replace("  package bash", "  forced\n  package bash"), `line 32: "  forced" has no meaning here`},
		{"a short digest", replace(lockFile().Locks[3].Lock.Digest().Hex, "abc"), `line 7: "sha256:abc" is no digest`},
		{"no suite", replace("kernel debian/bookworm:", "kernel debian:"), `line 7: "debian" is not of the form DISTRO/SUITE`},
		{"a release that leaves the folder", replace(":6.1.0-10-amd64", ":.."), "line 7: "},
		{"a folder that leaves the root", replace("build usr", "build ../usr"), `line 25: "../usr/src/kernels/6.12" is no folder`},
		{"a size", replace(" 104 ", " 0 "), `line 32: package "bash": "0" is no size`},
		{"a size of another form", replace(" 104 ", " 0104 "), "line 32: it is "},
		{"a file", replace("http://m.example/debian/pool/bash.deb", "file:///bash.deb"), "is no http or https URL"},
		{"a password", replace("http://m.example/debian/pool/bash.deb", "http://u:p@m.example/bash.deb"), "has a password"},
		{"a date", replace("2026-07-11T08:12:01Z", "2026-07-11"), "is no date"},
		{"a date of another form", replace("2026-07-11T08:12:01Z", "2026-07-11T10:12:01+02:00"), "line 3: it is "},
		{"another compiler", replace("gcc-12", "gcc-13"), "line 7: what is locked"},
		{"another version", replace("5.2-1+b7", "5.2-1+b8"), "line 31: the packages"},
		{"another image", replace("linux-image-6.12.1+deb13-amd64 6.1.2", "linux-image-6.12.1+deb13-amd64 6.1.3"), "line 23: the packages of this kernel itself have the digest"},
		{"an image less", without(29), "line 28: it is "},
		{"an image in a toolchain", replace("  package bash", "  image "+lockFile().Locks[3].Lock.Digest().String()+"\n  package bash"), "no meaning here"},
		{"another architecture", replace("10-amd64 amd64", "10-amd64 arm64"), "line 7: what is locked"},
	} {
		f, err := ParseLockFile([]byte(c.text))
		if c.text == text {
			t.Errorf("%s: nothing was changed", c.name)
		}
		if err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, %v; want %q", c.name, f, err, c.err)
		}
	}
}

// A changed byte is refused, or changes nothing that counts for a build: where a package is downloaded from, what indexes there were, and
// which extra packages a lock is for, which is not found then.
func TestLockFileAltered(t *testing.T) {
	text := encodeLockFile(t, lockFile())
	good := map[string]bool{}
	for _, l := range lockFile().Locks {
		good[string(l.Lock.Encode())] = true
	}
	for i := range len(text) {
		for _, bit := range []byte{1, 2, 0x20} {
			b := []byte(text)
			b[i] ^= bit
			f, err := ParseLockFile(b)
			if err != nil {
				continue
			}
			if len(f.Locks) != len(lockFile().Locks) {
				t.Fatalf("byte %d: %d locks", i, len(f.Locks))
			}
			for _, l := range f.Locks {
				if !good[string(l.Lock.Encode())] {
					t.Fatalf("byte %d, %q: lock %s", i, b[max(0, i-20):i+20], l.Lock.Encode())
				}
			}
		}
	}
}

func TestLockFileNotWritten(t *testing.T) {
	for err, spoil := range map[string]func(*Lock){
		"with single spaces": func(l *Lock) { l.Headers[0].URL = "" },
		"has a password":     func(l *Lock) { l.Headers[0].URL = "http://u:p@m.example/h.deb" },
		"is no size":         func(l *Lock) { l.Headers[0].Size = 0 },
		"it has the char":    func(l *Lock) { l.Headers[0].Version = "1\t2" },
		"is no digest":       func(l *Lock) { l.Headers[0].Digest.Hex = "" },
	} {
		f := lockFile()
		spoil(&f.Locks[0].Lock)
		if text, got := f.Encode(); got == nil || !strings.Contains(got.Error(), err) {
			t.Errorf("%s, %v; want %q", text, got, err)
		}
	}
}

type opener struct{ Provider }

func (opener) Payload(io.Reader) (io.ReadCloser, error) { return nil, io.ErrUnexpectedEOF }

func TestLockFileProvider(t *testing.T) {
	f, err := ParseLockFile([]byte(encodeLockFile(t, lockFile())))
	if err != nil {
		t.Fatal(err)
	}
	p := f.Provider("debian", opener{})
	if _, err := p.Payload(nil); err != io.ErrUnexpectedEOF {
		t.Errorf("Payload: %v", err)
	}
	r := Resolver{Providers: map[string]Provider{"debian": p, "fedora": f.Provider("fedora", opener{})}, Arch: "amd64"}
	resolve := func(list string) string {
		selectors, err := ParseSelectors(list)
		if err != nil {
			t.Fatal(err)
		}
		found, err := all(r.Resolve(t.Context(), selectors))
		if err != nil {
			return err.Error()
		}
		return fmt.Sprint(found)
	}
	for list, want := range map[string]string{
		"6.1.0-9-amd64":          "[debian/bookworm:6.1.0-9-amd64]",
		"debian/bookworm:6.1.*":  "[debian/bookworm:6.1.0-10-amd64 debian/bookworm:6.1.0-9-amd64]",
		"6.12.*,6.1.0-1*":        "[debian/trixie:6.12.1+deb13-amd64 debian/bookworm:6.1.0-10-amd64]",
		"6.1.0-8-amd64":          `no release "6.1.0-8-amd64" in any known suite`,
		"debian/sid:6.12.*":      `debian has no suite "sid"`,
		"fedora/40:6.8.9-300.fc": `fedora has no suite "40"`,
	} {
		if got := resolve(list); !strings.HasPrefix(got, want) {
			t.Errorf("%s: %s; want %s", list, got, want)
		}
	}
	k := lockFile().Locks[1].Lock.Kernel
	for _, c := range []struct {
		extra Extra
		want  int // of lockFile
		err   string
	}{
		{extra: Extra{}, want: 2},
		{extra: Extra{Packages: []string{" a | b", "pkg-config", "a|b"}, Depends: []string{"gawk (>= 1)"}}, want: 1},
		{extra: Extra{Packages: []string{"pkg-config"}}, err: `debian/bookworm:6.1.0-9-amd64 with pkg-config is not in the lock file, which has ` +
			`debian/bookworm:6.1.0-9-amd64; debian/bookworm:6.1.0-9-amd64 with a | b, pkg-config, gawk (>= 1)`},
	} {
		l, err := p.Lock(t.Context(), k, c.extra)
		if c.err != "" {
			if err == nil || !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%v: %v; want %q", c.extra, err, c.err)
			}
		} else if want := lockFile().Locks[c.want].Lock; err != nil || !reflect.DeepEqual(l, want) {
			t.Errorf("%v: %+v, %v; want %+v", c.extra, l, err, want)
		}
	}
	k.Release = "6.1.0-11-amd64"
	if _, err := p.Lock(t.Context(), k, Extra{}); !errors.Is(err, ErrNotFound) {
		t.Errorf("an unknown kernel: %v", err)
	}
	for _, l := range lockFile().Locks {
		i, err := p.Image(t.Context(), l.Lock)
		if none := l.Image.Packages == nil; none != errors.Is(err, ErrNotFound) || !none && !reflect.DeepEqual(i, l.Image) {
			t.Errorf("the image of %s: %+v, %v; want %+v", l.Lock.Kernel, i, err, l.Image)
		}
	}
	newer := slices.Clone(f.Locks[3].Lock.Headers)
	newer[0].Version = "6.1.3"
	if i, err := p.Image(t.Context(), Lock{Kernel: f.Locks[3].Lock.Kernel, Headers: newer}); !errors.Is(err, ErrNotFound) {
		t.Errorf("the image of other headers of %s: %+v, %v", f.Locks[3].Lock.Kernel, i, err)
	}
	if list, err := p.Indexes(t.Context(), "bookworm", "amd64"); err != nil || len(list) != 2 || list[0].Name != "bookworm" {
		t.Errorf("Indexes: %v, %v", list, err)
	}
}

func TestLockFileDiff(t *testing.T) {
	old, f := lockFile(), lockFile()
	if d := old.Diff(f); len(d) != 0 {
		t.Errorf("the same file: %v", d)
	}
	for i := 1; i < 4; i++ {
		l := &f.Locks[i].Lock
		l.Toolchain = slices.Clone(l.Toolchain)
		l.Toolchain[0] = lockPackage("bash", "5.2-2", "http://m.example/b.deb")
		l.Toolchain = append(l.Toolchain, lockPackage("make", "4.3", "http://m.example/m.deb"))
	}
	f.Locks[1].Lock.Headers = f.Locks[1].Lock.Headers[:1]
	f.Locks[1].Lock.Headers[0].Digest = hash([]byte("rebuilt"))
	f.Locks[2].Lock.Compiler = "gcc-13"
	f.Locks[2].Lock.Headers[0].URL = "http://elsewhere.example/h.deb"
	f.Locks[0].Lock.Kernel.Release = "6.12.2+deb13-amd64"
	f.Locks[3].Image.Packages = []Package{lockPackage("linux-image-6.1.0-10-amd64", "6.1.2", "http://m.example/i.deb")}
	var got []string
	for _, c := range old.Diff(f) {
		got = append(got, fmt.Sprintf("%s %s: %s -> %s: %s", c.What, c.Name, c.Old, c.New, strings.Join(c.Kernels, "; ")))
	}
	const ten, nine = "debian/bookworm:6.1.0-10-amd64", "debian/bookworm:6.1.0-9-amd64"
	const with = nine + " with a | b, pkg-config, gawk (>= 1)"
	header := func(h string) string { return "6.1.2 (" + hash([]byte(h)).String() + ")" }
	want := []string{
		"toolchain bash: 5.2-1+b7 -> 5.2-2: " + ten + "; " + nine + "; " + with,
		"toolchain make:  -> 4.3: " + ten + "; " + nine + "; " + with,
		"image linux-image-6.1.0-10-amd64:  -> 6.1.2: " + ten,
		"compiler : gcc-12 -> gcc-13: " + nine,
		"headers linux-headers-6.1.0-9-amd64: " + header("linux-headers-6.1.0-9-amd646.1.2") + " -> " + header("rebuilt") + ": " + with,
		"headers pkg-config: 1.8 -> : " + with,
		"kernel debian/trixie:6.12.1+deb13-amd64: gcc-14 -> : debian/trixie:6.12.1+deb13-amd64",
		"kernel debian/trixie:6.12.2+deb13-amd64:  -> gcc-14: debian/trixie:6.12.2+deb13-amd64",
	}
	if !slices.Equal(got, want) {
		t.Errorf("Diff is\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestLockFileRenew(t *testing.T) {
	f, by := lockFile(), lockFile()
	by.Locks, by.Indexes = by.Locks[2:3], []LockedIndex{by.Indexes[1]}
	by.Indexes[0].Date = by.Indexes[0].Date.AddDate(0, 0, 1)
	l := &by.Locks[0].Lock
	l.Toolchain = slices.Clone(l.Toolchain)
	l.Toolchain[0].URL = "http://new.example/bash.deb"
	l.Headers[0].Version = "6.1.3"
	f.Renew(by)
	text := encodeLockFile(t, f)
	for part, n := range map[string]int{
		"\nkernel ": 3, "  with ": 0, " 6.1.3 ": 1, "6.1.0-9-amd64 6.1.2 ": 0, // of that kernel, only what's asked for now
		"bookworm 2026-07-11": 1, "bookworm 2026-07-12": 1, "\nindex ": 4, // another kernel was read from the older one
		"http://new.example/bash.deb": 1, "http://m.example/debian/pool/bash.deb": 0,
	} {
		if got := strings.Count(text, part); got != n {
			t.Errorf("%q is there %d times; want %d:\n%s", part, got, n, text)
		}
	}
	again := lockFile()
	again.Locks, again.Indexes = again.Locks[2:], []LockedIndex{by.Indexes[0]}
	f.Renew(again)
	if text = encodeLockFile(t, f); strings.Contains(text, "bookworm 2026-07-11") || !strings.Contains(text, "trixie 2026-07-11") {
		t.Errorf("of a suite that was renewed whole, older indexes are there still:\n%s", text)
	}
}

func FuzzParseLockFile(f *testing.F) {
	text := encodeLockFile(f, lockFile())
	f.Add([]byte(text))
	f.Add([]byte("godkms.lock 1\n"))
	f.Add([]byte("godkms.lock 1\n\nkernel a/b:c d e sha256:" + strings.Repeat("0", 64) + "\n  package\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		file, err := ParseLockFile(b)
		if err != nil {
			return
		}
		if again, err := file.Encode(); err != nil || string(again) != string(b) {
			t.Errorf("%q is written as %q, %v", b, again, err)
		}
		for _, l := range file.Locks {
			if got, err := file.Provider(l.Lock.Kernel.Distro, nil).Lock(t.Context(), l.Lock.Kernel, l.Extra); err != nil || got.Digest() != l.Lock.Digest() {
				t.Errorf("%s: %v", l, err)
			}
		}
		if d := file.Diff(file); len(d) != 0 {
			t.Errorf("it differs from itself: %v", d)
		}
	})
}

// What can be written is read as it was, whatever names and URLs are in it.
func FuzzEncodeLockFile(f *testing.F) {
	f.Add("debian", "bookworm", "6.1.0-9-amd64", "gcc-12", "usr/src/x", "bash", "5.2-1+b7", "http://m.example/b.deb", "a | b (>= 1)", int64(1))
	f.Add("fedora", "40", "6.8.9-300.fc40.x86_64", "gcc-14", "", "lib(x)", "1:2^3~4", "https://m.example/a%5Eb.rpm", "(a if b)", int64(1<<40))
	f.Fuzz(func(t *testing.T, distro, suite, release, compiler, build, name, version, url, extra string, size int64) {
		p := Package{Name: name, Version: version, Arch: "amd64", URL: url, Digest: hash([]byte(name)), Size: size}
		l := Lock{Kernel: Kernel{distro, suite, "amd64", release}, Compiler: compiler, Build: build, Toolchain: []Package{p}, Headers: []Package{}}
		file := &LockFile{Locks: []ExtraLock{{Extra: Extra{Packages: []string{extra}}, Lock: l}, {Extra: Extra{Depends: []string{extra, "x"}}, Lock: l}}}
		text, err := file.Encode()
		if err != nil {
			return
		}
		again, err := ParseLockFile(text)
		if err != nil || len(again.Locks) != 2 {
			t.Fatalf("%q: %v", text, err)
		}
		for _, got := range again.Locks {
			if !reflect.DeepEqual(got.Lock, l) {
				t.Errorf("%+v is read as %+v", l, got.Lock)
			}
		}
		for _, e := range file.Locks {
			if _, err := again.Provider(distro, nil).Lock(t.Context(), l.Kernel, e.Extra); err != nil {
				t.Errorf("%s: %v", e, err)
			}
		}
	})
}
