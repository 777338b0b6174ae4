package rpm

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/godkms-hermetic/godkms-hermetic/internal/decompress"
	"github.com/godkms-hermetic/godkms-hermetic/internal/memtest"
)

// samplePackage is one as createrepo_c writes it.
const samplePackage = `<package type="rpm">
  <name>gcc</name>
  <arch>x86_64</arch>
  <version epoch="0" ver="11.4.1" rel="3.el9"/>
  <checksum type="sha256" pkgid="YES">9e0b5aabb2465b3d2e7a7fe27f9913846277833f7a2826e7767acccff5b588c5</checksum>
  <summary>Various compilers (C, C++, Objective-C, ...) &amp; more</summary>
  <description>The gcc package contains the GNU Compiler Collection version 11.
You'll need this package in order to compile C code.</description>
  <packager>Somebody</packager>
  <url>http://gcc.gnu.org</url>
  <time file="1709645151" build="1709641522"/>
  <size package="33880215" installed="87654321" archive="87690000"/>
  <location href="Packages/g/gcc-11.4.1-3.el9.x86_64.rpm"/>
  <format>
    <rpm:license>GPLv3+</rpm:license>
    <rpm:vendor>Somebody</rpm:vendor>
    <rpm:group>Unspecified</rpm:group>
    <rpm:buildhost>build</rpm:buildhost>
    <rpm:sourcerpm>gcc-11.4.1-3.el9.src.rpm</rpm:sourcerpm>
    <rpm:header-range start="4504" end="271001"/>
    <rpm:provides>
      <rpm:entry name="bundled(gnulib)"/>
      <rpm:entry name="gcc" flags="EQ" epoch="0" ver="11.4.1" rel="3.el9"/>
      <rpm:entry name="gcc(x86-64)" flags="EQ" epoch="0" ver="11.4.1" rel="3.el9"/>
      <rpm:entry name="liblto_plugin.so()(64bit)"/>
      <rpm:entry name="some" flags="GE" epoch="1" ver="2"/>
    </rpm:provides>
    <rpm:requires>
      <rpm:entry name="(annobin if redhat-rpm-config)"/>
      <rpm:entry name="/bin/sh" pre="1"/>
      <rpm:entry name="binutils" flags="GE" epoch="0" ver="2.31"/>
      <rpm:entry name="cpp" flags="EQ" epoch="0" ver="11.4.1" rel="3.el9"/>
      <rpm:entry name="libc.so.6(GLIBC_2.34)(64bit)"/>
      <rpm:entry name="rpmlib(CompressedFileNames)" flags="LE" epoch="0" ver="3.0.4" rel="1"/>
    </rpm:requires>
    <rpm:conflicts>
      <rpm:entry name="gcc-c++" flags="LT" epoch="0" ver="4"/>
    </rpm:conflicts>
    <file>/usr/bin/gcc</file>
    <file>/usr/bin/x86_64-redhat-linux-gcc</file>
    <file type="dir">/etc/gcc</file>
  </format>
</package>
`

func primaryOf(packages ...string) string {
	return `<?xml version="1.0" encoding="UTF-8"?>
<metadata xmlns="http://linux.duke.edu/metadata/common" xmlns:rpm="http://linux.duke.edu/metadata/rpm" packages="` +
		fmt.Sprint(len(packages)) + `">
` + strings.Join(packages, "") + "</metadata>\n"
}

// read is what readPrimary says of a list, in a form to compare.
type read struct {
	Name, Arch, Version, Sum, Path string
	Size, Built                    int64
	Requires                       string
	Offers                         []string
}

func readAll(text []byte) ([]read, error) {
	var out []read
	err := readPrimary(bytes.NewReader(text), func([]byte) bool { return true }, func(p *listed) error {
		r := read{string(p.name), string(p.arch), string(p.version), strings.ToLower(string(p.sum)), string(p.path), p.size, p.built, string(p.requires), nil}
		for _, o := range p.offers {
			r.Offers = append(r.Offers, string(p.offered[o.at:o.at+o.name])+" "+string(p.offered[o.at+o.name:o.at+o.name+o.version]))
		}
		out = append(out, r)
		return nil
	})
	return out, err
}

func TestPrimary(t *testing.T) {
	got, err := readAll([]byte(primaryOf(samplePackage)))
	if err != nil {
		t.Fatal(err)
	}
	want := []read{{"gcc", "x86_64", "11.4.1-3.el9", "9e0b5aabb2465b3d2e7a7fe27f9913846277833f7a2826e7767acccff5b588c5",
		"Packages/g/gcc-11.4.1-3.el9.x86_64.rpm", 33880215, 1709641522,
		"(annobin if redhat-rpm-config)\n/bin/sh\nbinutils >= 2.31\ncpp = 11.4.1-3.el9\nlibc.so.6(GLIBC_2.34)(64bit)\n",
		[]string{"bundled(gnulib) ", "gcc 11.4.1-3.el9", "gcc(x86-64) 11.4.1-3.el9", "liblto_plugin.so()(64bit) ", "some >=1:2",
			"/usr/bin/gcc ", "/usr/bin/x86_64-redhat-linux-gcc ", "/etc/gcc "}}}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("read %+v; want %+v", got, want)
	}
}

// Forms of XML that createrepo_c doesn't write, but may.
func TestPrimaryForms(t *testing.T) {
	plain, err := readAll([]byte(primaryOf(samplePackage)))
	if err != nil {
		t.Fatal(err)
	}
	for what, edit := range map[string][]string{
		"CDATA":            {"<name>gcc<", "<name><![CDATA[g]]>c<![CDATA[c]]><"},
		"comments":         {"<name>", "<!-- > <a b='--><name><!-- - -->"},
		"entities":         {"<name>gcc<", "<name>&#103;&#x63;c<"},
		"single quotes":    {`epoch="0" ver="11.4.1"`, `ver='11.4.1' epoch='0'`},
		"other quotes":     {`start="4504"`, `start='"' x=">" y='>"'`},
		"spaces":           {`<rpm:entry name="binutils"`, "<rpm:entry\n\t name = \"binutils\"\r\n"},
		"spaced end":       {"</name>", "</name \n>"},
		"instruction":      {"<format>", "<?x > ?><format>"},
		"entities in name": {`name="liblto_plugin.so()(64bit)"`, `name="liblto&#95;plugin.so()&#40;64bit)"`},
	} {
		text := strings.Replace(primaryOf(samplePackage), edit[0], edit[1], 1)
		if text == primaryOf(samplePackage) {
			t.Fatalf("%s: not edited", what)
		}
		got, err := readAll([]byte(text))
		if err != nil || !reflect.DeepEqual(got, plain) {
			t.Errorf("%s: %+v, %v", what, got, err)
		}
	}
}

func TestPrimaryRefuses(t *testing.T) {
	good := primaryOf(samplePackage)
	for what, edit := range map[string][3]string{
		"sha1":              {`type="sha256"`, `type="sha"`, "only sha256"},
		"short sum":         {"9e0b5a", "", "is no sha256"},
		"elsewhere":         {"<location ", `<location xml:base="http://elsewhere/" `, "xml:base"},
		"absolute":          {`href="Packages`, `href="/Packages`, "not relative"},
		"dots":              {`href="Packages`, `href="../Packages`, "not relative"},
		"URL":               {`href="Packages`, `href="http://x/Packages`, "not relative"},
		"query":             {`href="Packages`, `href="Packages?`, "unusual"},
		"no name":           {"<name>gcc</name>", "", "missing"},
		"two names":         {"<arch>", "<name>x</name><arch>", "twice"},
		"bad name":          {">gcc<", ">../gcc<", "no name"},
		"no release":        {` rel="3.el9"/>`, "/>", "no release"},
		"bad version":       {`ver="11.4.1"`, `ver="11-4"`, "no version"},
		"no size":           {"<size ", "<sizes ", "missing"},
		"negative size":     {`package="338`, `package="-338`, "no number"},
		"flags":             {`flags="GE"`, `flags="XX"`, "not known"},
		"newline in rich":   {`name="(annobin if`, `name="(annobin&#10;if`, "dependency"},
		"relative file":     {">/usr/bin/gcc<", ">usr/bin/gcc<", "absolute"},
		"count":             {`packages="1"`, `packages="2"`, "says 2"},
		"cut":               {"</metadata>", "", "unexpected EOF"},
		"other end":         {"</format>", "</formats>", "ends <format>"},
		"trailing":          {"</metadata>", "</metadata><x/>", "follows"},
		"doctype":           {"<metadata", "<!DOCTYPE metadata><metadata", "document types"},
		"encoding":          {"UTF-8", "ISO-8859-1", "not UTF-8"},
		"unknown entity":    {"<name>gcc", "<name>&gcc;", "entity"},
		"unquoted":          {`epoch="0"`, `epoch=0`, "well-formed"},
		"other document":    {"<metadata", "<html", "no list"},
		"deep":              {"<summary>", strings.Repeat("<a>", 40), "inside one another"},
		"nothing":           {good, "", "no list"},
		"element in a name": {"<name>gcc", "<name><b/>gcc", "elements in it"},
	} {
		text := strings.Replace(good, edit[0], edit[1], 1)
		if text == good {
			t.Fatalf("%s: not edited", what)
		}
		if _, err := readAll([]byte(text)); err == nil || !strings.Contains(err.Error(), edit[2]) {
			t.Errorf("%s: error is %v; want %q", what, err, edit[2])
		}
	}
	long := strings.Replace(good, "<summary>", "<summary x='"+strings.Repeat("a", maxTag)+"'>", 1)
	if _, err := readAll([]byte(long)); err == nil {
		t.Error("a tag of 1 MB is read")
	}
	many := strings.Repeat("<rpm:entry name='"+strings.Repeat("a", maxWord)+"'/>", maxOffered/maxWord+2)
	if _, err := readAll([]byte(strings.Replace(good, "<rpm:provides>", "<rpm:provides>"+many, 1))); err == nil || !strings.Contains(err.Error(), "too many") {
		t.Errorf("error of 8 MB of provides is %v", err)
	}
}

// A tag is read in one pass, however many of the signs that would end it are in its values.
func TestPrimaryQuotedEnds(t *testing.T) {
	tag := "<summary x='" + strings.Repeat(">", maxTag-100) + "'>"
	start := time.Now()
	if _, err := readAll([]byte(strings.Replace(primaryOf(samplePackage), "<summary>", tag, 1))); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("it took %v", d)
	}
}

// One odd package doesn't make a list useless.
func TestPrimaryOddities(t *testing.T) {
	text := strings.Replace(packages("a 1-1; Provides: v; Requires: b\nc 1-1"), `name="v"`, `name="v w"`, 1)
	text = strings.Replace(text, `name="b"`, `name="b =&gt; 1"`, 1)
	p := newPool("x86_64", []source{{index: compact(t, text), base: "http://mirror"}})
	if got := resolve(t, p, "c"); got != "c-1-1" {
		t.Error(got)
	}
	if got := resolve(t, p, "a"); !strings.Contains(got, `dependency "b => 1": unexpected "=> 1"`) {
		t.Error(got)
	}
}

// xmlPackage is what encoding/xml reads of a package, for comparison.
type xmlPackage struct {
	Type     string   `xml:"type,attr"`
	Names    []string `xml:"name"`
	Archs    []string `xml:"arch"`
	Versions []struct {
		Epoch string `xml:"epoch,attr"`
		Ver   string `xml:"ver,attr"`
		Rel   string `xml:"rel,attr"`
	} `xml:"version"`
	Sums []struct {
		Text string `xml:",chardata"`
	} `xml:"checksum"`
	Locations []struct {
		Href string `xml:"href,attr"`
	} `xml:"location"`
	Sizes []struct {
		Package int64 `xml:"package,attr"`
	} `xml:"size"`
	Files []string `xml:"format>file"`
}

// FuzzPrimary compares with encoding/xml, which takes more, and checks that what was taken can be looked up.
func FuzzPrimary(f *testing.F) {
	f.Add([]byte(primaryOf(samplePackage)))
	f.Add([]byte(primaryOf(strings.Replace(samplePackage, "<name>gcc<", "<name><![CDATA[g]]>&#x63;c<", 1), strings.ReplaceAll(samplePackage, "x86_64", "noarch"))))
	f.Add([]byte("<metadata packages='0'><!-- --></metadata>"))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := readAll(text)
		if err != nil {
			return
		}
		var slow struct {
			XMLName  xml.Name
			Packages []xmlPackage `xml:"package"`
		}
		d := xml.NewDecoder(bytes.NewReader(text))
		if d.Decode(&slow) == nil {
			slow.Packages = slices.DeleteFunc(slow.Packages, func(p xmlPackage) bool { return p.Type != "rpm" })
			if len(slow.Packages) != len(got) {
				t.Fatalf("%d packages; encoding/xml reads %d", len(got), len(slow.Packages))
			}
			for i, p := range slow.Packages {
				if len(p.Names) != 1 || strings.TrimSpace(p.Names[0]) != got[i].Name || strings.TrimSpace(p.Archs[0]) != got[i].Arch ||
					p.Versions[0].Rel != splitEVR(got[i].Version).release || p.Locations[0].Href != got[i].Path || p.Sizes[0].Package != got[i].Size {
					t.Fatalf("%+v; encoding/xml reads %+v", got[i], p)
				}
			}
		}
		var idx bytes.Buffer
		if err := buildIndex(&idx, bytes.NewReader(text), "x86_64"); err != nil {
			t.Fatal(err)
		}
		x, err := openIndex(bytes.NewReader(idx.Bytes()), int64(idx.Len()), "x86_64")
		if err != nil {
			t.Fatal(err)
		}
		p := newPool("x86_64", []source{{index: x, base: "http://mirror"}})
		for _, r := range got {
			if r.Arch != "x86_64" && r.Arch != noarch {
				continue
			}
			all, err := p.named(r.Name)
			if err != nil || !slices.ContainsFunc(all, func(c *candidate) bool { return compareVersions(c.version, r.Version) == 0 }) {
				t.Fatalf("%s: %v, %v", r.Name, all, err)
			}
			for _, o := range r.Offers {
				name, _, _ := strings.Cut(o, " ")
				if strings.HasPrefix(name, "(") {
					continue
				}
				if strings.HasPrefix(o, "/") { // a file's name may have spaces
					name = strings.TrimSuffix(o, " ")
				}
				if list, err := p.meeting(&depend{name: name}); err != nil || len(list) == 0 {
					t.Fatalf("nothing provides %q: %v", name, err)
				}
			}
			for _, c := range all {
				newClosure(p).install(c)
			}
		}
	})
}

// bigPrimary writes a list of n packages of the usual size: some 2 kB each.
func bigPrimary(w io.Writer, n int) {
	fmt.Fprintf(w, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<metadata packages=\"%d\">\n", n)
	for i := range n {
		name := fmt.Sprintf("package-%d-%x", i, uint32(i)*2654435761)
		fmt.Fprintf(w, `<package type="rpm">
  <name>%[1]s</name>
  <arch>x86_64</arch>
  <version epoch="0" ver="1.%[2]d" rel="3.fc40"/>
  <checksum type="sha256" pkgid="YES">%064[3]x</checksum>
  <summary>A package of number %[2]d for measuring how long lists take</summary>
  <description>This is about as long as descriptions of packages are: some have a line, others have twenty of them.
It has text &amp; entities, and is skipped as a whole.  %[3]x %[3]x %[3]x %[3]x %[3]x %[3]x
And another line, so that there are some three hundred bytes of it.</description>
  <packager>Somebody</packager>
  <url>https://example.org/%[1]s</url>
  <time file="1706200000" build="1706100000"/>
  <size package="%[2]d1" installed="123456" archive="123456"/>
  <location href="Packages/p/%[1]s-1.%[2]d-3.fc40.x86_64.rpm"/>
  <format>
    <rpm:license>GPL-2.0-or-later</rpm:license>
    <rpm:vendor>Somebody</rpm:vendor>
    <rpm:group>Unspecified</rpm:group>
    <rpm:buildhost>build.example.org</rpm:buildhost>
    <rpm:sourcerpm>%[1]s-1.%[2]d-3.fc40.src.rpm</rpm:sourcerpm>
    <rpm:header-range start="4504" end="%[2]d9"/>
    <rpm:provides>
      <rpm:entry name="%[1]s" flags="EQ" epoch="0" ver="1.%[2]d" rel="3.fc40"/>
      <rpm:entry name="%[1]s(x86-64)" flags="EQ" epoch="0" ver="1.%[2]d" rel="3.fc40"/>
      <rpm:entry name="lib%[1]s.so.1()(64bit)"/>
      <rpm:entry name="perl(Some::Module%[2]d)" flags="EQ" epoch="0" ver="1.%[2]d"/>
    </rpm:provides>
    <rpm:requires>
      <rpm:entry name="/usr/bin/sh"/>
      <rpm:entry name="libc.so.6()(64bit)"/>
      <rpm:entry name="libc.so.6(GLIBC_2.2.5)(64bit)"/>
      <rpm:entry name="libc.so.6(GLIBC_2.34)(64bit)"/>
      <rpm:entry name="libm.so.6()(64bit)"/>
      <rpm:entry name="perl(Some::Other)" flags="GE" epoch="0" ver="1.2"/>
      <rpm:entry name="rtld(GNU_HASH)"/>
    </rpm:requires>
    <file>/usr/bin/%[1]s</file>
  </format>
</package>
`, name, i, uint64(i)*11400714819323198485)
	}
	fmt.Fprintln(w, "</metadata>")
}

// BenchmarkIndex is about lists of 100,000 packages: at most 1 s and 100 MB on one processor, decompression included. make bench has it in
// its table.
func BenchmarkIndex(b *testing.B) {
	var gz, zst bytes.Buffer
	g := gzip.NewWriter(&gz)
	z, err := zstd.NewWriter(&zst)
	if err != nil {
		b.Fatal(err)
	}
	bigPrimary(io.MultiWriter(g, z), 100000)
	g.Close()
	z.Close()
	files := map[string]string{"gz": b.TempDir() + "/list", "zst": b.TempDir() + "/list"} // what made them isn't to be in memory
	if err := errors.Join(os.WriteFile(files["gz"], gz.Bytes(), 0o644), os.WriteFile(files["zst"], zst.Bytes(), 0o644)); err != nil {
		b.Fatal(err)
	}
	g, z, gz, zst = nil, nil, bytes.Buffer{}, bytes.Buffer{}
	for name, list := range files {
		b.Run(name, func(b *testing.B) {
			defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
			path := b.TempDir() + "/idx"
			memtest.Reset(b)
			for b.Loop() {
				f, err := os.Create(path)
				if err != nil {
					b.Fatal(err)
				}
				in, err := os.Open(list)
				if err != nil {
					b.Fatal(err)
				}
				r, err := decompress.NewReader(in)
				if err != nil {
					b.Fatal(err)
				}
				if err := buildIndex(f, r, "x86_64"); err != nil {
					b.Fatal(err)
				}
				r.Close()
				in.Close()
				f.Close()
			}
			b.ReportMetric(memtest.Peak(b), "peak-MB")
		})
	}
}
