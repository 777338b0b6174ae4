package rpm

import (
	"archive/tar"
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

const spec = `Name: thing
Version: 1.0~rc1
Release: 2.fc40
Epoch: 3
Summary: Some thing
License: MIT
BuildArch: noarch
Requires: gcc >= 11
Requires: (annobin if redhat-rpm-config)
Requires: /bin/sh
Requires: own = 5
Provides: own = 5
%description
Some thing.
%install
mkdir -p %{buildroot}/usr/bin %{buildroot}/usr/share/thing/empty %{buildroot}/etc
echo hi > %{buildroot}/usr/bin/one; chmod 4755 %{buildroot}/usr/bin/one
ln -s one %{buildroot}/usr/bin/link
ln %{buildroot}/usr/bin/one %{buildroot}/usr/bin/two
ln %{buildroot}/usr/bin/one %{buildroot}/usr/share/thing/three
touch %{buildroot}/usr/share/thing/zero
ln %{buildroot}/usr/share/thing/zero %{buildroot}/usr/share/thing/zero2
seq 1 50000 > %{buildroot}/usr/share/thing/numbers
echo x > %{buildroot}/etc/thing.conf
touch %{buildroot}/usr/share/thing/ghost
%files
/usr/bin/*
/usr/share/thing
%config /etc/thing.conf
%ghost /usr/share/thing/ghost
`

// built makes packages of spec with rpmbuild, one of each compression, and signs that with zstd; the key is beside them.
var built = sync.OnceValues(func() (map[string][]byte, error) {
	top, err := os.MkdirTemp("", "rpm")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(top)
	run := func(name string, arg ...string) error {
		cmd := exec.Command(name, arg...)
		cmd.Env = append(os.Environ(), "HOME="+top, "GNUPGHOME="+top+"/gnupg", "SOURCE_DATE_EPOCH=1700000000")
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s %q: %w: %s", name, arg, err, out)
		}
		return nil
	}
	if err := errors.Join(os.WriteFile(top+"/thing.spec", []byte(spec), 0o600), os.Mkdir(top+"/gnupg", 0o700)); err != nil {
		return nil, err
	}
	out := map[string][]byte{}
	file := top + "/RPMS/noarch/thing-1.0~rc1-2.fc40.noarch.rpm"
	for _, c := range []string{"w9.gzdio", "w2.xzdio", "w.ufdio", "w3.zstdio"} {
		if err := run("rpmbuild", "-bb", "--define", "_topdir "+top, "--define", "_binary_payload "+c, top+"/thing.spec"); err != nil {
			return nil, err
		}
		if out[c], err = os.ReadFile(file); err != nil {
			return nil, err
		}
	}
	for _, key := range []string{"a@x", "b@x"} {
		if err := run("gpg", "--batch", "--passphrase", "", "--quick-gen-key", key, "rsa2048", "sign", "never"); err != nil {
			return nil, err
		}
		if err := run("gpg", "--armor", "--output", top+"/"+key, "--export", key); err != nil {
			return nil, err
		}
		if out[key], err = os.ReadFile(top + "/" + key); err != nil {
			return nil, err
		}
	}
	gpg, err := exec.LookPath("gpg")
	if err != nil {
		return nil, err
	}
	if err := run("rpmsign", "--addsign", "--define", "__gpg "+gpg, "--define", "_gpg_name a@x", file); err != nil {
		return nil, err
	}
	run("gpgconf", "--kill", "all")
	out["signed"], err = os.ReadFile(file)
	return out, err
})

func samples(t testing.TB) map[string][]byte {
	t.Helper()
	for _, p := range []string{"rpmbuild", "rpmsign", "gpg"} {
		need.Program(t, p)
	}
	all, err := built()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// list gives the files of a tar stream: kind, mode, size, name, where a link points.
func list(r io.Reader) ([]string, error) {
	var out []string
	in := tar.NewReader(r)
	for {
		h, err := in.Next()
		if err == io.EOF {
			_, err = io.Copy(io.Discard, r)
			return out, err
		}
		if err != nil {
			return out, err
		}
		b, err := io.ReadAll(in)
		if err != nil {
			return out, err
		}
		out = append(out, strings.TrimSpace(fmt.Sprintf("%c %o %d %s %s", h.Typeflag, h.Mode, len(b), h.Name, h.Linkname)))
	}
}

func TestPackage(t *testing.T) {
	want := []string{"0 644 2 etc/thing.conf", "0 644 0 usr/share/thing/zero2", "0 644 288894 usr/share/thing/numbers", "0 4755 3 usr/share/thing/three",
		"1 4755 0 usr/bin/one usr/share/thing/three", "1 4755 0 usr/bin/two usr/share/thing/three", "1 644 0 usr/share/thing/zero usr/share/thing/zero2",
		"2 777 0 usr/bin/link one", "5 755 0 usr/share/thing/", "5 755 0 usr/share/thing/empty/"}
	for name, data := range samples(t) {
		if strings.Contains(name, "@") {
			continue
		}
		in := bytes.NewReader(data)
		f, err := openPackage(in, trust{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := fmt.Sprint(f.name, " ", f.version, " ", f.arch, " ", strings.Join(f.requires, ", ")); got !=
			"thing 3:1.0~rc1-2.fc40 noarch (annobin if redhat-rpm-config), /bin/sh, gcc >= 11" {
			t.Errorf("%s: it is %s", name, got)
		}
		got, err := list(f)
		if slices.Sort(got); err != nil || !slices.Equal(got, slices.Sorted(slices.Values(want))) {
			t.Errorf("%s: %v, files are\n%s\nwant\n%s", name, err, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		if in.Len() > 0 {
			t.Errorf("%s: %d bytes are not read", name, in.Len())
		}
		f.Close()
	}
}

// What is unpacked is what rpm2cpio and cpio unpack.
func TestPackageAsCpio(t *testing.T) {
	need.Program(t, "rpm2cpio")
	need.Program(t, "cpio")
	need.Program(t, "tar")
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/a.rpm", samples(t)["w3.zstdio"], 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := openPackage(bytes.NewReader(samples(t)["w3.zstdio"]), trust{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, d := range []string{"cpio", "tar"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	cpio := exec.Command("sh", "-c", "rpm2cpio ../a.rpm | cpio -idm --quiet")
	cpio.Dir = dir + "/cpio"
	unpack := exec.Command("tar", "-xp")
	unpack.Dir, unpack.Stdin = dir+"/tar", f
	for _, c := range []*exec.Cmd{cpio, unpack} {
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	list := func(d string) string {
		cmd := exec.Command("sh", "-c", `find . -type f -printf '%p %m %T@ %n\n' -exec sha256sum {} + -o -type l -printf '%p -> %l\n' -o -path './usr/share/thing*' -printf '%p %m\n' | sort`)
		cmd.Dir = filepath.Join(dir, d)
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	if a, b := list("cpio"), list("tar"); a != b || !strings.Contains(a, "numbers") {
		t.Errorf("cpio unpacks\n%s\nhere it is\n%s", a, b)
	}
}

type known struct {
	io.Reader
	p kernels.Package
}

func (k known) Package() kernels.Package { return k.p }

func TestPackageTrust(t *testing.T) {
	all := samples(t)
	keys := func(name string) openpgp.EntityList {
		k, err := openpgp.ReadArmoredKeyRing(bytes.NewReader(all[name]))
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
	signed := all["signed"]
	change := func(at int) []byte { b := bytes.Clone(signed); b[at] ^= 1; return b }
	thing := kernels.Package{Name: "thing", Version: "3:1.0~rc1-2.fc40", Arch: "noarch"}
	other := thing
	other.Version = "3:1.0-2.fc40"
	for what, c := range map[string]struct {
		pkg  io.Reader
		keys openpgp.EntityList
		want string
	}{
		"signed":          {bytes.NewReader(signed), keys("a@x"), ""},
		"one of two keys": {bytes.NewReader(signed), append(keys("b@x"), keys("a@x")...), ""},
		"other key":       {bytes.NewReader(signed), keys("b@x"), "none of the distribution's keys"},
		"no keys at all":  {bytes.NewReader(signed), openpgp.EntityList{}, "none of the distribution's keys"},
		"not signed":      {bytes.NewReader(all["w3.zstdio"]), keys("a@x"), "not signed"},
		"header changed":  {bytes.NewReader(change(bytes.Index(signed, []byte("Some thing")))), keys("a@x"), "signature does not hold"},
		"payload changed": {bytes.NewReader(change(len(signed) - 30)), keys("a@x"), "any"}, // what is noticed first
		"file changed":    {bytes.NewReader(bytes.Replace(all["w.ufdio"], []byte("\n4711\n"), []byte("\n4712\n"), 1)), nil, "its files have the digest"},
		"trailing":        {bytes.NewReader(append(bytes.Clone(signed), 0)), keys("a@x"), "any"},
		"as expected":     {known{bytes.NewReader(signed), thing}, keys("a@x"), ""},
		"another package": {known{bytes.NewReader(signed), other}, keys("a@x"), "it is thing-3:1.0~rc1-2.fc40.noarch, and not"},
	} {
		f, err := openPackage(c.pkg, trust{c.keys, time.Now})
		if err == nil {
			_, err = list(f)
			f.Close()
		}
		switch {
		case c.want == "any":
			if err == nil {
				t.Errorf("%s: no error", what)
			}
		case c.want == "":
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		case err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, kernels.ErrUntrusted):
			t.Errorf("%s: error is %v; want %q", what, err, c.want)
		}
	}
}

// Packages outlive the keys that they were signed with; what is signed with an expired key isn't trusted.
func TestPackageOfExpiredKey(t *testing.T) {
	at := func(day int) *packet.Config {
		return &packet.Config{Time: func() time.Time { return time.Date(2024, 1, day, 0, 0, 0, 0, time.UTC) }, KeyLifetimeSecs: 5 * 24 * 3600}
	}
	key, err := openpgp.NewEntity("a", "", "a@x", at(1))
	if err != nil {
		t.Fatal(err)
	}
	for day, want := range map[int]bool{2: true, 10: false} {
		signer := key.PrivateKey
		sig := &packet.Signature{Version: 4, SigType: packet.SigTypeBinary, PubKeyAlgo: signer.PubKeyAlgo, Hash: crypto.SHA256, CreationTime: at(day).Now(),
			IssuerKeyId: &key.PrimaryKey.KeyId}
		sum := sha256.New()
		sum.Write([]byte("header"))
		var b bytes.Buffer
		if err := errors.Join(sig.Sign(sum, signer, at(day)), sig.Serialize(&b)); err != nil {
			t.Fatal(err)
		}
		h := &header{data: b.Bytes(), tags: map[uint32]tagEntry{sigRSA: {typeBinary, 0, uint32(b.Len())}}}
		for _, now := range []int{day, 20} {
			err := checkPackage([]byte("header"), h, trust{openpgp.EntityList{key}, at(now).Time})
			if (err == nil) != want {
				t.Errorf("signed on day %d, read on day %d: %v", day, now, err)
			}
		}
	}
}

// A package that is cut anywhere is an error.
func TestPackageCut(t *testing.T) {
	data := samples(t)["w3.zstdio"]
	for n := 0; n < len(data); n += 1 + n/50 {
		f, err := openPackage(bytes.NewReader(data[:n]), trust{})
		if err == nil {
			_, err = list(f)
			f.Close()
		}
		if err == nil {
			t.Fatalf("no error after %d of %d bytes", n, len(data))
		}
	}
}

// An archived file is one of a cpio archive.
type archived struct {
	name  string
	mode  int
	nlink int
	text  string
}

func archive(entries ...archived) []byte {
	var b bytes.Buffer
	pad := func() { b.Write(make([]byte, -b.Len()&3)) }
	for i, e := range append(entries, archived{trailer, 0, 1, ""}) {
		ino := i + 1
		if e.nlink > 1 {
			ino = 1000
		}
		fmt.Fprintf(&b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00", ino, e.mode, 0, 0, e.nlink, 1, len(e.text), 8, 1, 0, 0, len(e.name)+1, 0, e.name)
		pad()
		b.WriteString(e.text)
		pad()
	}
	return b.Bytes()
}

func TestCpio(t *testing.T) {
	for what, c := range map[string]struct {
		in   []archived
		want string // files, or an error
	}{
		"names":           {[]archived{{".", 0o40755, 1, ""}, {"./a", 0o40755, 1, ""}, {"/b", 0o100644, 1, "x"}, {"c", 0o120777, 1, "../x"}}, "5 755 0 a/|0 644 1 b|2 777 0 c ../x"},
		"above":           {[]archived{{"../a", 0o100644, 1, ""}}, "not clean"},
		"above below":     {[]archived{{"a/../../b", 0o100644, 1, ""}}, "not clean"},
		"dot":             {[]archived{{"a/./b", 0o100644, 1, ""}}, "not clean"},
		"twice a slash":   {[]archived{{"a//b", 0o100644, 1, ""}}, "not clean"},
		"a root file":     {[]archived{{"/", 0o100644, 1, "x"}}, "without a name"},
		"folder's bytes":  {[]archived{{"a", 0o40755, 1, "x"}}, "has 1 bytes"},
		"empty link":      {[]archived{{"a", 0o120777, 1, ""}}, "of 0 bytes"},
		"long link":       {[]archived{{"a", 0o120777, 1, strings.Repeat("a", 5000)}}, "of 5000 bytes"},
		"socket":          {[]archived{{"a", 0o140777, 1, ""}}, "unknown kind"},
		"device":          {[]archived{{"a", 0o20644, 1, ""}}, "3 644 0 a"},
		"hard links":      {[]archived{{"a", 0o100644, 3, ""}, {"b", 0o100644, 3, ""}, {"c", 0o100644, 3, "text"}}, "0 644 4 c|1 644 0 a c|1 644 0 b c"},
		"content first":   {[]archived{{"a", 0o100644, 3, "text"}, {"b", 0o100644, 3, ""}, {"c", 0o100644, 3, ""}}, "0 644 4 a|1 644 0 b a|1 644 0 c a"},
		"empty links":     {[]archived{{"a", 0o100644, 2, ""}, {"b", 0o100644, 2, ""}}, "0 644 0 b|1 644 0 a b"},
		"missing links":   {[]archived{{"a", 0o100644, 3, ""}, {"b", 0o100644, 3, ""}}, "0 644 0 a|1 644 0 b a"},
		"a long name":     {[]archived{{strings.Repeat("n", 300), 0o100644, 1, ""}}, "0 644 0 " + strings.Repeat("n", 300)},
		"too long a name": {[]archived{{strings.Repeat("n", 5000), 0o100644, 1, ""}}, "a name of 5001 bytes"},
	} {
		got, err := list(newConverter(bytes.NewReader(archive(c.in...)), nil))
		if err != nil {
			got = []string{err.Error()}
		}
		if text := strings.Join(got, "|"); text != c.want && (err == nil || !strings.Contains(text, c.want)) {
			t.Errorf("%s: %s; want %s", what, text, c.want)
		}
	}
}

// rpm numbers the files of large packages, and of all of format 6, by its header: this is what it writes then.
func TestStrippedCpio(t *testing.T) {
	files := []member{{name: "/usr/a", mode: 0o40755}, {name: "/usr/a/b", mode: 0o100644, set: 2, links: 2}, {name: "/usr/a/c", mode: 0o100644, size: 5, set: 2, links: 2},
		{name: "/usr/l", mode: 0o120777, size: 3}}
	var b bytes.Buffer
	for i, text := range []string{"", "", "hello", "a/b"} {
		fmt.Fprintf(&b, "07070X%08x\x00\x00%s", i, text)
		b.Write(make([]byte, -b.Len()&3))
	}
	b.Write(archive())
	got, err := list(newConverter(&b, files))
	if text := strings.Join(got, "|"); err != nil || text != "5 755 0 usr/a/|0 644 5 usr/a/c|1 644 0 usr/a/b usr/a/c|2 777 0 usr/l a/b" {
		t.Errorf("%s, %v", text, err)
	}
	if _, err := list(newConverter(strings.NewReader("07070X00000004\x00\x00"), files)); err == nil {
		t.Error("a file that the header hasn't is taken")
	}
}

func FuzzCpio(f *testing.F) {
	f.Add(archive(archived{"a", 0o100644, 2, ""}, archived{"b", 0o100644, 2, "text"}, archived{"c", 0o120777, 1, "x"}))
	f.Add([]byte("07070X00000000\x00\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := list(newConverter(bytes.NewReader(data), []member{{name: "/a", mode: 0o100644, size: 3}}))
		for _, name := range got {
			if strings.Contains(name, " /") || strings.Contains(name, " ../") {
				t.Fatalf("%q, %v", got, err)
			}
		}
	})
}

// FuzzPackage is about all of a package file: its headers, and what they say of its payload.
func FuzzPackage(f *testing.F) {
	for name, data := range samples(f) {
		if !strings.Contains(name, "@") {
			f.Add(data)
		}
	}
	keys, err := openpgp.ReadArmoredKeyRing(bytes.NewReader(samples(f)["a@x"]))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, by := range []trust{{}, {keys, time.Now}} {
			p, err := openPackage(bytes.NewReader(data), by)
			if err != nil {
				continue
			}
			io.Copy(io.Discard, io.LimitReader(p, 16<<20))
			p.Close()
		}
	})
}

// FuzzHeader is about a header alone.
func FuzzHeader(f *testing.F) {
	data := samples(f)["w.ufdio"]
	at := bytes.Index(data[200:], []byte{0x8e, 0xad, 0xe8, 1}) + 200
	f.Add(data[at : at+6000])
	f.Fuzz(func(t *testing.T, data []byte) {
		h, err := readHeader(bytes.NewReader(data))
		if err != nil {
			return
		}
		h.identity()
		h.requires()
		h.fileList()
		h.payloadDigest()
		checkPackage(h.raw, h, trust{openpgp.EntityList{}, time.Now})
	})
}

// A header's values are bounded before room is made for them: each byte of it may be said to be a string of its own.
func TestHeaderValues(t *testing.T) {
	be := binary.BigEndian
	raw := append([]byte{0x8e, 0xad, 0xe8, 1}, make([]byte, 4)...)
	raw = be.AppendUint32(be.AppendUint32(raw, 1), maxEntries+1)
	for _, n := range []uint32{tagName, typeStringArray, 0, maxEntries + 1} {
		raw = be.AppendUint32(raw, n)
	}
	h, err := readHeader(bytes.NewReader(append(raw, make([]byte, maxEntries+1)...)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.text(tagName); err == nil {
		t.Error("a tag with a million strings is read")
	}
}
