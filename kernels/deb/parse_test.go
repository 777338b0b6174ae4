package deb

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/internal/decompress"
	"github.com/godkms-hermetic/godkms-hermetic/internal/memtest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
)

var versionSeeds = [][2]string{
	{"1", "2"}, {"1.0", "1.0"}, {"1.0~rc1", "1.0"}, {"1:0", "2"}, {"1.0-1", "1.0-2"}, {"1.0", "1.0-0"}, {"6.1.0-0.deb11.52", "6.1.0-52"},
	{"6.12.95-1~bpo12+1", "6.12.95-1"}, {"1.2.3", "1.2.03"}, {"1a", "1+"}, {"1~~", "1~"}, {"0:1", "1"}, {"2.36-9+deb12u10", "2.36-9+deb12u9"},
	{"1-1-1", "1-1"}, {"1-1-1", "1-2"}, {"99999999999999999999", "100000000000000000000"}, {"1.a", "1.1"}, {"5.6+really5.4.5-1", "5.6"},
}

func sign3(n int) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}

// dpkgCompare asks dpkg, or fails the test when it does not take the versions.
func dpkgCompare(t *testing.T, a, b string) (int, bool) {
	t.Helper()
	for op, want := range map[string]int{"lt": -1, "eq": 0, "gt": 1} {
		out, err := exec.Command("dpkg", "--compare-versions", a, op, b).CombinedOutput()
		if len(out) > 0 {
			return 0, false // a warning: dpkg finds a version odd
		}
		if err == nil {
			return want, true
		}
	}
	return 0, false
}

func TestCompareVersionsAsDpkg(t *testing.T) {
	need.Program(t, "dpkg")
	pairs := versionSeeds
	r := rand.New(rand.NewPCG(1, 2))
	piece := func() string {
		var b strings.Builder
		b.WriteByte("0123"[r.IntN(4)])
		for range r.IntN(6) {
			b.WriteByte("0019aZ.+~"[r.IntN(9)])
		}
		if r.IntN(2) == 0 {
			b.WriteString("-" + string("01a~+"[r.IntN(5)]))
		}
		if r.IntN(5) == 0 {
			return string("012"[r.IntN(3)]) + ":" + b.String()
		}
		return b.String()
	}
	for range 300 {
		pairs = append(pairs, [2]string{piece(), piece()})
	}
	checked := 0
	for _, p := range pairs {
		want, ok := dpkgCompare(t, p[0], p[1])
		if !ok {
			continue
		}
		checked++
		if got := sign3(compareVersions(p[0], p[1])); got != want {
			t.Errorf("compareVersions(%q, %q) = %d; want %d", p[0], p[1], got, want)
		}
		if got := sign3(compareVersions(p[1], p[0])); got != -want {
			t.Errorf("compareVersions(%q, %q) = %d; want %d", p[1], p[0], got, -want)
		}
	}
	if checked < 200 {
		t.Errorf("dpkg took only %d pairs", checked)
	}
}

func FuzzCompareVersions(f *testing.F) {
	need.Program(f, "dpkg")
	for _, p := range versionSeeds {
		f.Add(p[0], p[1])
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		got := sign3(compareVersions(a, b))
		if back := sign3(compareVersions(b, a)); back != -got {
			t.Fatalf("compareVersions(%q, %q) = %d, but the other way round %d", a, b, got, back)
		}
		if !validVersion(a) || !validVersion(b) || !isDigit(a[0]) || !isDigit(b[0]) || strings.Contains(a+b, "--") {
			return
		}
		if want, ok := dpkgCompare(t, a, b); ok && got != want {
			t.Fatalf("compareVersions(%q, %q) = %d; dpkg says %d", a, b, got, want)
		}
	})
}

func TestParseDepends(t *testing.T) {
	for in, want := range map[string]string{
		"":                                  "",
		"a":                                 "a",
		" a , b|c(>= 1.0)":                  "a, b | c (>= 1.0)",
		"a:any (= 1:2-3) , b (<<2),":        "a:any (= 1:2-3), b (<< 2)",
		"a (< 1), b (> 1)":                  "a (<= 1), b (>= 1)",
		"python3:any | x:native, y (>= 1~)": "python3:any | x:native, y (>= 1~)",
	} {
		g, err := parseDepends(in)
		var got []string
		for _, g := range g {
			got = append(got, g.String())
		}
		if err != nil || strings.Join(got, ", ") != want {
			t.Errorf("parseDepends(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"a |", "a (1)", "a (>= )", "a (>= 1", "a (>= 1) b", "(>= 1)", "a (=> 1)", "ä", "a b"} {
		if g, err := parseDepends(in); err == nil {
			t.Errorf("parseDepends(%q) = %v; want an error", in, g)
		}
	}
}

func FuzzParseDepends(f *testing.F) {
	f.Add("a | b (>= 1), c:any (= 2)")
	f.Fuzz(func(t *testing.T, in string) {
		groups, err := parseDepends(in)
		if err != nil {
			return
		}
		var text []string
		for _, g := range groups {
			text = append(text, g.String())
		}
		once := strings.Join(text, ", ")
		again, err := parseDepends(once)
		if err != nil {
			t.Fatalf("%q became %q: %v", in, once, err)
		}
		text = nil
		for _, g := range again {
			text = append(text, g.String())
		}
		if twice := strings.Join(text, ", "); twice != once {
			t.Fatalf("%q became %q, then %q", in, once, twice)
		}
	})
}

func compact(text string) ([]byte, error) {
	var out bytes.Buffer
	err := buildIndex(&out, strings.NewReader(text), "amd64")
	return out.Bytes(), err
}

func TestIndexRefusesWhatItCannotUse(t *testing.T) {
	good := stanzas("a 1; Depends: b")
	if _, err := compact(good); err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{
		"two names":     strings.Replace(good, "Version:", "Package: x\nVersion:", 1),
		"bad name":      strings.Replace(good, "Package: a", "Package: ../a", 1),
		"bad version":   strings.Replace(good, "Version: 1", "Version: 1 2", 1),
		"no file":       strings.Replace(good, "Filename", "X-Filename", 1),
		"absolute":      strings.Replace(good, "Filename: pool", "Filename: /pool", 1),
		"dots":          strings.Replace(good, "Filename: pool", "Filename: pool/../..", 1),
		"query":         strings.Replace(good, "Filename: pool", "Filename: pool?", 1),
		"no size":       strings.Replace(good, "Size", "X-Size", 1),
		"negative size": strings.Replace(good, "Size: ", "Size: -", 1),
		"no sum":        strings.Replace(good, "SHA256", "SHA1", 1),
		"no field":      strings.Replace(good, "Version: 1", "Version", 1),
		"continuation":  " x\n" + good,
		"long line":     good + "X: " + strings.Repeat("a", maxLine) + "\n",
		"bad provides":  strings.Replace(good, "Depends: b", "Provides: (", 1),
	} {
		if _, err := compact(text); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

func TestIndexFindsAll(t *testing.T) {
	data, err := compact(stanzas("b 1\na 2; Provides: v (= 3), w; Essential: yes\na 10\nab 1 all\nz 1 arm64\nc 1; Provides: v"))
	if err != nil {
		t.Fatal(err)
	}
	x, err := openIndex(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(x.Names(), " "); got != "a ab b c" {
		t.Errorf("names = %s", got)
	}
	list := func(prefix string, exact bool) string {
		pkgs, err := x.withPrefix(prefix, exact)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, p := range pkgs {
			out = append(out, p.name+" "+p.version)
		}
		return strings.Join(out, ", ")
	}
	for _, c := range []struct {
		prefix string
		exact  bool
		want   string
	}{{"a", true, "a 10, a 2"}, {"a", false, "a 10, a 2, ab 1"}, {"z", true, ""}, {"", false, "a 10, a 2, ab 1, b 1, c 1"}} {
		if got := list(c.prefix, c.exact); got != c.want {
			t.Errorf("withPrefix(%q, %v) = %s; want %s", c.prefix, c.exact, got, c.want)
		}
	}
	offers, err := x.providers("v")
	if err != nil || len(offers) != 2 || offers[0].name != "a" || offers[0].as != "3" || offers[1].name != "c" || offers[1].as != "" {
		t.Errorf("providers(v) = %v, %v", offers, err)
	}
	ess, err := x.essentials()
	if err != nil || len(ess) != 1 || ess[0].version != "2" {
		t.Errorf("essentials = %v, %v", ess, err)
	}
}

type brokenFile struct{}

func (brokenFile) ReadAt([]byte, int64) (int, error) { return 0, io.ErrClosedPipe }

// A disk that fails must not look like a package that is not there: another alternative would be taken.
func TestIndexOnBrokenDisk(t *testing.T) {
	data, err := compact(stanzas("a 1; Provides: v; Essential: yes"))
	if err != nil {
		t.Fatal(err)
	}
	x, err := openIndex(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	x.File = brokenFile{}
	_, named := x.withPrefix("a", true)
	_, provided := x.providers("v")
	_, essential := x.essentials()
	_, opened := openIndex(x.File, int64(len(data)))
	for what, err := range map[string]error{"withPrefix": named, "providers": provided, "essentials": essential, "openIndex": opened} {
		if !errors.Is(err, errDamagedIndex) || !errors.Is(err, io.ErrClosedPipe) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func FuzzPackages(f *testing.F) {
	f.Add([]byte(stanzas(basePackages)))
	f.Add([]byte("Package: a\nDepends: b,\n c\n\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		data, err := compact(string(text))
		if err != nil {
			return
		}
		x, err := openIndex(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			t.Fatal(err)
		}
		readAll(t, x)
	})
}

func readAll(t *testing.T, x *index) {
	t.Helper()
	for _, n := range x.Names() {
		if pkgs, err := x.withPrefix(n, true); err != nil || len(pkgs) == 0 {
			t.Fatalf("withPrefix(%q) = %v, %v", n, pkgs, err)
		}
	}
	if _, err := x.essentials(); err != nil {
		t.Fatal(err)
	}
}

// FuzzCompact is about files of the cache that have the right checksum and the wrong content.
func FuzzCompact(f *testing.F) {
	data, err := compact(stanzas(basePackages))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		data = resum(data)
		x, err := openIndex(bytes.NewReader(data), int64(len(data)))
		if err != nil {
			return
		}
		x.Names()
		x.withPrefix("a", false)
		x.providers("awk")
		x.essentials()
	})
}

// resum corrects the checksum.
func resum(data []byte) []byte {
	at := len(data) - 12
	if at < 0 {
		return data
	}
	data = bytes.Clone(data)
	binary.LittleEndian.PutUint32(data[at:], crc32.Checksum(data[:at], crc32.MakeTable(crc32.Castagnoli)))
	return data
}

func TestParseRelease(t *testing.T) {
	const sum = "9e0b5aabb2465b3d2e7a7fe27f9913846277833f7a2826e7767acccff5b588c5"
	text := []byte("Codename: x\r\nDate: Sat, 11 Jul 2026 10:16:37 +0000\r\nValid-Until: Sat,  1 Aug 2026 10:16:37 UTC\r\n" +
		"SHA256:\r\n " + sum + "  300 main/binary-amd64/Packages\r\n " + sum + " 100 main/binary-amd64/Packages.xz\r\n " +
		sum + " 200 main/binary-amd64/Packages.gz\r\n " + sum + " 1 contrib/binary-arm64/Packages.xz\r\n " +
		sum + " 1 main/debian-installer/binary-arm64/Packages.xz\r\nAcquire-By-Hash: yes\r\n")
	r, err := parseRelease(text, []string{"main"})
	if err != nil {
		t.Fatal(err)
	}
	if len(r.indexes) != 1 || r.indexes["amd64"] != (indexRef{"main/binary-amd64/Packages.xz", sum, 100, true}) {
		t.Errorf("indexes = %v", r.indexes)
	}
	if r, err := parseRelease(text, []string{"contrib"}); err != nil || len(r.indexes) != 1 || r.indexes["arm64"].Path != "contrib/binary-arm64/Packages.xz" {
		t.Errorf("indexes of contrib = %v, %v", r, err)
	}
	if got := r.date.Format(time.DateTime) + " " + r.validUntil.Format(time.DateTime); got != "2026-07-11 10:16:37 2026-08-01 10:16:37" {
		t.Errorf("dates are %s", got)
	}
	for _, text := range []string{
		"Codename: x\n", "Date: never\n", "Date: Sat, 11 Jul 2026 10:16:37 CEST\n", "Date: Sat, 11 Jul 2026 10:16:37 UTC\nValid-Until: soon\n",
		"Date: Sat, 11 Jul 2026 10:16:37 UTC\nDate: Sat, 11 Jul 2026 10:16:37 UTC\n", "nonsense\n",
		"Date: Sat, 11 Jul 2026 10:16:37 UTC\nSHA256:\n abc 1 x\n", "Date: Sat, 11 Jul 2026 10:16:37 UTC\nSHA256:\n " + sum + " -1 x\n",
		"Date: Sat, 11 Jul 2026 10:16:37 UTC\nSHA256:\n " + sum + " 1\n",
	} {
		if r, err := parseRelease([]byte(text), []string{"main"}); err == nil {
			t.Errorf("parseRelease(%q) = %v; want an error", text, r)
		}
	}
}

func FuzzParseRelease(f *testing.F) {
	f.Add([]byte("Codename: x\nDate: Sat, 11 Jul 2026 10:16:37 UTC\nSHA256:\n 00 1 main/binary-amd64/Packages.xz\n"))
	f.Fuzz(func(t *testing.T, text []byte) { parseRelease(text, []string{"main"}) })
}

// BenchmarkIndex is about an index of 100,000 packages: at most 1 s and 100 MB on one processor, decompression included. make bench
// has it in its table.
func BenchmarkIndex(b *testing.B) {
	plain := filepath.Join(b.TempDir(), "Packages")
	text, err := os.Create(plain)
	if err != nil {
		b.Fatal(err)
	}
	w := bufio.NewWriter(text)
	for i := range 100_000 {
		fmt.Fprintf(w, "Package: lib%[1]d-package%[2]d-dev\nSource: package%[2]d\nVersion: 1:%[3]d.%[4]d-1+deb12u1\nInstalled-Size: %[2]d\n"+
			"Maintainer: Debian Quality Assurance Maintainers <maintainers@lists.alioth.debian.org>\nArchitecture: amd64\n"+
			"Provides: virtual%[5]d (= %[3]d), other-virtual%[4]d\n"+
			"Depends: lib%[1]d-package%[2]d (= 1:%[3]d.%[4]d-1+deb12u1), libc6 (>= 2.36), libgcc-s1 (>= 3.0), libstdc++6 (>= 12)\n"+
			"Description: something that is described in one line\nMulti-Arch: same\nHomepage: https://www.example.org/package%[2]d\n"+
			"Description-md5: %032[2]x\nTag: devel::library, implemented-in::c++, role::devel-lib\nSection: libdevel\nPriority: optional\n"+
			"Filename: pool/main/p/package%[2]d/lib%[1]d-package%[2]d-dev_%[3]d.%[4]d-1+deb12u1_amd64.deb\nSize: %[6]d\nMD5sum: %032[2]x\nSHA256: %064[2]x\n\n",
			i%7, i, i%20, i%30, i%1000, i+1)
	}
	if err := errors.Join(w.Flush(), text.Close()); err != nil {
		b.Fatal(err)
	}
	for _, packed := range []string{"plain", "gzip", "xz"} {
		b.Run(packed, func(b *testing.B) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
			name := plain
			if packed != "plain" {
				name += "." + packed
				out, err := os.Create(name)
				if err != nil {
					b.Fatal(err)
				}
				cmd := exec.Command(need.Program(b, packed), "-c", plain)
				cmd.Stdout = out
				if err := errors.Join(cmd.Run(), out.Close()); err != nil {
					b.Fatal(err)
				}
			}
			index := filepath.Join(b.TempDir(), "index")
			memtest.Reset(b)
			for b.Loop() {
				in, err := os.Open(name)
				if err != nil {
					b.Fatal(err)
				}
				r, err := decompress.NewReader(in)
				if err != nil {
					b.Fatal(err)
				}
				out, err := os.Create(index)
				if err != nil {
					b.Fatal(err)
				}
				if err := buildIndex(out, r, "amd64"); err != nil {
					b.Fatal(err)
				}
				for _, c := range []io.Closer{r, in, out} {
					c.Close()
				}
			}
			b.ReportMetric(memtest.Peak(b), "peak-MB")
		})
	}
}
