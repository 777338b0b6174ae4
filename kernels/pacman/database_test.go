package pacman

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"io"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/klauspost/compress/zstd"

	"github.com/godkms-hermetic/godkms-hermetic/internal/memtest"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// A desc as repo-add writes it, with fields that nothing is done with.
const desc = `%FILENAME%
linux-headers-6.8.9.arch1-2-x86_64.pkg.tar.zst

%NAME%
linux-headers

%BASE%
linux

%VERSION%
6.8.9.arch1-2

%DESC%
Headers and scripts for building modules for the Linux kernel

%CSIZE%
27000000

%ISIZE%
160000000

%SHA256SUM%
ef9039e348fe04d30b64cde9f2abe6e3b86a7152b87130d73c86998ba752eb86

%PGPSIG%
aGVsbG8=

%ARCH%
x86_64

%BUILDDATE%
1714856400

%PACKAGER%
Someone <someone@example.org>

%LICENSE%
GPL2
LGPL

%DEPENDS%
pahole
glibc>=2.38

%PROVIDES%
LINUX-HEADERS=6.8.9

`

// packed is a database of these files.
func packed(files ...[2]string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f[0], Mode: 0o644, Size: int64(len(f[1]))})
		io.WriteString(w, f[1])
	}
	w.Close()
	return b.Bytes()
}

func open(t *testing.T, database []byte) (*repo.Index, time.Time) {
	t.Helper()
	var out bytes.Buffer
	newest, err := buildIndex(&out, database)
	if err != nil {
		t.Fatal(err)
	}
	x, err := repo.OpenIndex(bytes.NewReader(out.Bytes()), int64(out.Len()), indexForm)
	if err != nil {
		t.Fatal(err)
	}
	return x, newest
}

func TestDatabase(t *testing.T) {
	x, newest := open(t, packed([2]string{"linux-headers-6.8.9.arch1-2/desc", desc}))
	b, err := x.Record(0)
	if err != nil {
		t.Fatal(err)
	}
	p, err := readRecord("linux-headers", b)
	if err != nil {
		t.Fatal(err)
	}
	want := &pkg{name: "linux-headers", version: "6.8.9.arch1-2", arch: "x86_64", file: "linux-headers-6.8.9.arch1-2-x86_64.pkg.tar.zst", size: 27000000,
		sha256: p.sha256, built: time.Unix(1714856400, 0).UTC(), signature: []byte("hello"), depends: []string{"pahole", "glibc>=2.38"},
		provides: []string{"LINUX-HEADERS=6.8.9"}}
	if !reflect.DeepEqual(p, want) || p.digest().Hex != "ef9039e348fe04d30b64cde9f2abe6e3b86a7152b87130d73c86998ba752eb86" || !newest.Equal(want.built) {
		t.Errorf("%+v, %s; want %+v", p, newest, want)
	}
	if o, err := x.Offers("LINUX-HEADERS"); err != nil || len(o) != 1 || o[0].Version != "6.8.9" {
		t.Errorf("%+v, %v; want an offer of 6.8.9", o, err)
	}

	// Before 2016 what a package depends on was in a file beside desc.
	one, two, _ := strings.Cut(desc, "%DEPENDS%")
	x, _ = open(t, packed([2]string{"a/desc", one}, [2]string{"a/depends", "%DEPENDS%" + two}))
	if b, err := x.Record(0); err != nil || x.Len() != 1 {
		t.Errorf("%d packages, %v", x.Len(), err)
	} else if p, err := readRecord("linux-headers", b); err != nil || !reflect.DeepEqual(p, want) {
		t.Errorf("%+v, %v; want %+v", p, err, want)
	}
}

// An entry of Arch's own core.db of June 2022, and who signed that package: one of the embedded keys.
func TestRealEntry(t *testing.T) {
	p := &pkg{}
	if err := p.read([]byte(zstdEntry)); err != nil {
		t.Fatal(err)
	}
	if err := p.check(); err != nil {
		t.Fatal(err)
	}
	if p.name != "zstd" || p.version != "1.5.2-7" || p.size != 403882 || strings.Join(p.depends, " ") != "glibc gcc-libs zlib xz lz4" ||
		!p.offers(relation{"libzstd.so", "=", "1-64"}) || p.offers(relation{"libzstd.so", "=", "2-64"}) {
		t.Errorf("%+v", p)
	}
	made, err := signedAt(p.signature)
	if err != nil || made.UTC().Format(time.DateOnly) != "2022-06-16" {
		t.Errorf("signed on %s, %v; want 2022-06-16", made, err)
	}
	real, err := New("arch", repo.Options{CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := real.keys()
	if err != nil {
		t.Fatal(err)
	}
	read, err := packet.Read(bytes.NewReader(p.signature))
	if err != nil {
		t.Fatal(err)
	}
	of := keys.list.KeysByIdUsage(*read.(*packet.Signature).IssuerKeyId, packet.KeyFlagSign)
	if len(of) != 1 || of[0].Entity.PrimaryIdentity().UserId.Name != "Levente Polyak" {
		t.Errorf("%d keys of the embedded ones have signed it; want Levente Polyak's", len(of))
	}
}

const zstdEntry = "%FILENAME%\nzstd-1.5.2-7-x86_64.pkg.tar.zst\n\n%NAME%\nzstd\n\n%BASE%\nzstd\n\n%VERSION%\n1.5.2-7\n\n" +
	"%DESC%\nZstandard - Fast real-time compression algorithm\n\n%CSIZE%\n403882\n\n%ISIZE%\n1238511\n\n%MD5SUM%\ne704f66752b15459e3bf65de8b03701c\n\n" +
	"%SHA256SUM%\n4fa198f85e1a0675c56fdd0f31ea145337959a2bbdc17f5b93f69f91cd337703\n\n%PGPSIG%\n" +
	"iQIzBAABCgAdFiEE4kC1fixGMLp2ji8m/BtUfI2BcsgFAmKrdpMACgkQ/BtUfI2BcsgNjw/7BBGvjr2Oq1QQvlCqwGZYmt3U6LcFoghpE8W0goy8zN2qoqenVsGG0EN8R/ry" +
	"vSzn83XKfjJImoT0k/YupzCXXj+LIPr/nub6WRdGE7H9rRC5C69jTOD1jcWbE8DCsnotSaYgX0TiRMModfuLA3t8pPB2eZjXjQ/ifleVDcZnV4yGKh2rlAxDqjaQKffcTNTl" +
	"2sZOeuKX44SDNzUj7zOkT/QORP+HPl0Nn+4ujriHxGxou7oTMXBxEhTlnkOqF7to9QmGxRNBWUzZbl6R37apV1pIh6Oc5g4ci20e8y4xl5g8oekd+W/ewZUqHj9gpYuttZSE" +
	"2ztTn/PrX7VL8w0rkFqs5L98upF+N3q6n0l+lyvoV2EpvbY14v7R1L6JerrObUpF3ZaniaoTQN6QL1dEC60xbXHofXWMeqAU3rqeAuAo5vmulSOMc6s6ia0feybtwEnmyghL" +
	"n0tkwW39SlNDfui+rZ6Wnx+Hrfl6B5PL45HI33cCB580T7nSD1MmjO1ueO5iwFiEVI/TNs8Lb+7xFsnuhYKKhtlGgPNticXCauFBs+zbhG+pGjMWFqzR4CXLDZP/R8dVrOBI" +
	"jmY5a8KfKLgABVfcopvxHpt9LBlVvPUW6xnLdktF5GVsZRiheLeUihypsi7pa+F3Wd09wtrOoboMYQFa7pYyStpmC+Nz4tM=\n\n" +
	"%URL%\nhttps://facebook.github.io/zstd/\n\n%LICENSE%\nBSD\nGPL2\n\n%ARCH%\nx86_64\n\n%BUILDDATE%\n1655402860\n\n" +
	"%PACKAGER%\nLevente Polyak <anthraxx@archlinux.org>\n\n%PROVIDES%\nlibzstd.so=1-64\n\n%DEPENDS%\nglibc\ngcc-libs\nzlib\nxz\nlz4\n\n" +
	"%MAKEDEPENDS%\ncmake\ngtest\nninja\n\n"

func TestBadDatabase(t *testing.T) {
	with := func(old, new string) []byte {
		return packed([2]string{"a/desc", strings.Replace(desc, old, new, 1)})
	}
	var gz bytes.Buffer
	z := gzip.NewWriter(&gz)
	z.Write(packed([2]string{"a/desc", desc}))
	z.Close()
	whole := packed([2]string{"a/desc", desc})
	for name, b := range map[string][]byte{
		"too much provided": with("LINUX-HEADERS=6.8.9\n", strings.Repeat("a\n", maxProvided+1)), "nothing": nil, "no tar": []byte("<html>not here</html>"), "cut off in a gzip": gz.Bytes()[:gz.Len()-9], "cut off between files": whole[:len(whole)-1024],
		"cut off": whole[:700], "no name": with("%NAME%", "%X%"), "a path": with("linux-headers-6.8.9.arch1-2-x86_64.pkg.tar.zst", "../../x"),
		"a hidden file": with("linux-headers-6.8.9.arch1-2-x86_64.pkg.tar.zst", ".x"), "an option": with("linux-headers-6.8.9.arch1-2-x86_64.pkg.tar.zst", "-x"),
		"no size": with("27000000", "0"), "a size": with("27000000", "99999999999999999999"), "a digest": with("ef9039", "xx9039"), "no digest": with("%SHA256SUM%", "%X%"),
		"a version": with("6.8.9.arch1-2\n\n%DESC", "6.8 9\n\n%DESC"), "a signature": with("aGVsbG8=", "*"), "a date": with("1714856400", "-1"),
		"an architecture": with("%ARCH%\nx86_64", "%ARCH%\nx/y"),
	} {
		if _, err := buildIndex(io.Discard, b); err == nil {
			t.Errorf("%s: it's taken", name)
		}
	}
}

// What comes from a mirror is read without trouble, and what's taken is what the compact form gives back.
func FuzzDatabase(f *testing.F) {
	f.Add(packed([2]string{"a/desc", desc}))
	f.Add(packed([2]string{"a/desc", desc}, [2]string{"b/desc", strings.Replace(desc, "linux-headers\n", "b\n", 1)}))
	f.Add([]byte("%NAME%"))
	f.Fuzz(func(t *testing.T, database []byte) {
		var out bytes.Buffer
		if _, err := buildIndex(&out, database); err != nil {
			return
		}
		x, err := repo.OpenIndex(bytes.NewReader(out.Bytes()), int64(out.Len()), indexForm)
		if err != nil {
			t.Fatal(err)
		}
		for i := range x.Len() {
			b, err := x.Record(i)
			if err != nil {
				t.Fatal(err)
			}
			p, err := readRecord(string(x.Name(i)), b)
			if err == nil {
				err = p.check()
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	})
}

// FuzzDesc is FuzzDatabase for what is in a tar.
func FuzzDesc(f *testing.F) {
	f.Add(desc)
	f.Fuzz(func(t *testing.T, text string) {
		p := &pkg{}
		if err := p.read([]byte(text)); err != nil || p.check() != nil {
			return
		}
		again, err := readRecord(p.name, p.record())
		if err != nil || again.version != p.version || len(again.depends) != len(p.depends) || again.sha256 != p.sha256 || !again.built.Equal(p.built) && !p.built.IsZero() {
			t.Errorf("%+v, %v; want %+v", again, err, p)
		}
	})
}

func FuzzPackage(f *testing.F) {
	f.Add(packed([2]string{".PKGINFO", "pkgname = a\npkgver = 1-1\narch = any\n"}, [2]string{"usr/a", "a"}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, _, err := openPackage(bytes.NewReader(b))
		if err != nil {
			return
		}
		defer r.Close()
		in := tar.NewReader(r)
		for {
			h, err := in.Next()
			if err != nil {
				return
			}
			if isMetadata(h.Name) {
				t.Errorf("%q is handed out", h.Name)
			}
		}
	})
}

// BenchmarkIndex is about a database of 100,000 packages, seven times as many as Arch's largest repository has: at most 1 s and 100 MB
// on one processor. make bench has it in its table.
func BenchmarkIndex(b *testing.B) {
	var text bytes.Buffer
	z, err := zstd.NewWriter(&text)
	if err != nil {
		b.Fatal(err)
	}
	w := tar.NewWriter(z)
	signature := base64.StdEncoding.EncodeToString(bytes.Repeat([]byte("signature"), 30))
	for i := range 100000 {
		s := strings.Replace(desc, "%NAME%\nlinux-headers", fmt.Sprintf("%%NAME%%\nlinux-headers%d", i), 1)
		s = strings.Replace(s, "aGVsbG8=", signature, 1)
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("p%d/desc", i), Mode: 0o644, Size: int64(len(s))})
		io.WriteString(w, s)
	}
	w.Close()
	z.Close()
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	memtest.Reset(b)
	for b.Loop() {
		if _, err := buildIndex(io.Discard, text.Bytes()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(memtest.Peak(b), "peak-MB")
}

// atEnd tells whether it was read to its end.
type atEnd struct {
	io.Reader
	reached bool
}

func (a *atEnd) Read(b []byte) (int, error) {
	n, err := a.Reader.Read(b)
	a.reached = a.reached || err == io.EOF
	return n, err
}

func TestPayload(t *testing.T) {
	info := [2]string{".PKGINFO", "# makepkg\npkgname = a\npkgver = 1-1\narch = any\ndepend = sh\ndepend = glibc>=2.38\n"}
	whole := packed([2]string{".BUILDINFO", "x"}, [2]string{".MTREE", "x"}, info, [2]string{"usr/a", "1"}, [2]string{".INSTALL", "x"}, [2]string{"usr/.b", "2"})
	p, err := New("arch", repo.Options{CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	read := func(b []byte) (names string, depends []string, err error) {
		in := &atEnd{Reader: bytes.NewReader(append(b, make([]byte, 100000)...))}
		if len(b) < len(whole) {
			in.Reader = bytes.NewReader(b)
		}
		r, depends, err := p.Open(in)
		if err != nil {
			return "", nil, err
		}
		defer r.Close()
		out := tar.NewReader(r)
		for {
			h, err := out.Next()
			if err == io.EOF {
				if _, err := io.Copy(io.Discard, r); err != nil {
					return names, depends, err
				}
				if !in.reached {
					t.Error("the package wasn't read to its end")
				}
				return names, depends, nil
			}
			if err != nil {
				return names, depends, err
			}
			names += h.Name + " "
		}
	}
	if names, depends, err := read(whole); err != nil || names != "usr/a usr/.b " || strings.Join(depends, " ") != "sh glibc>=2.38" {
		t.Errorf("%q, %q, %v; want what is installed, and two dependencies", names, depends, err)
	}
	for _, n := range []int{0, 600, len(whole) - 1024, len(whole) - 1600} {
		if names, _, err := read(whole[:n]); err == nil {
			t.Errorf("%d of %d bytes are taken, with %q", n, len(whole), names)
		}
	}
	if _, _, err := read(packed([2]string{"usr/a", "1"}, info)); err == nil {
		t.Error("a package that doesn't begin with what it says of itself is taken")
	}
}
