package rpm

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
)

const sampleRepomd = `<?xml version="1.0" encoding="UTF-8"?>
<repomd xmlns="http://linux.duke.edu/metadata/repo" xmlns:rpm="http://linux.duke.edu/metadata/rpm">
  <revision>1709645151</revision>
  <tags><distro cpeid="cpe:/o:x">x</distro></tags>
  <data type="primary">
    <checksum type="sha256">9e0b5aabb2465b3d2e7a7fe27f9913846277833f7a2826e7767acccff5b588c5</checksum>
    <open-checksum type="sha256">8e0b5aabb2465b3d2e7a7fe27f9913846277833f7a2826e7767acccff5b588c5</open-checksum>
    <location href="repodata/9e0b5aab-primary.xml.zst"/>
    <timestamp>1709645151</timestamp>
    <size>1234</size>
    <open-size>56789</open-size>
  </data>
  <data type="primary_db">
    <checksum type="sha">da39a3ee5e6b4b0d3255bfef95601890afd80709</checksum>
    <location href="repodata/primary.sqlite.bz2"/>
    <timestamp>1709645152.25</timestamp>
  </data>
</repomd>
`

func TestRepomd(t *testing.T) {
	r, err := parseRepomd([]byte(sampleRepomd))
	if err != nil {
		t.Fatal(err)
	}
	if p := r.primary; p.Path != "repodata/9e0b5aab-primary.xml.zst" || p.Size != 1234 || p.Digest.String() !=
		"sha256:9e0b5aabb2465b3d2e7a7fe27f9913846277833f7a2826e7767acccff5b588c5" || !r.date.Equal(time.Unix(1709645152, 0)) {
		t.Errorf("it says %+v", r)
	}
	sum := strings.Repeat("0123456789abcdef", 8)
	r, err = parseRepomd([]byte(strings.Replace(sampleRepomd, `sha256">9e0b5aabb2465b3d2e7a7fe27f9913846277833f7a2826e7767acccff5b588c5`, `sha512">`+sum, 1)))
	if err != nil || r.primary.Digest.String() != "sha512:"+sum {
		t.Errorf("%+v, %v", r, err)
	}
	for what, edit := range map[string][3]string{
		"sha1":          {`<checksum type="sha256">`, `<checksum type="sha">`, "only sha256 and sha512"},
		"md5":           {`<checksum type="sha256">`, `<checksum type="md5">`, "only sha256 and sha512"},
		"no sum":        {"<checksum ", "<check ", "ends <check>"},
		"short":         {"9e0b5aabb", "9e", "is no sha256"},
		"elsewhere":     {"<location ", `<location xml:base="http://x/" `, "xml:base"},
		"above":         {`href="repodata`, `href="../repodata`, "not relative"},
		"no place":      {`<location href="repodata/9e0b5aab-primary.xml.zst"/>`, "", "no file name"},
		"two primaries": {`type="primary_db"`, `type="primary"`, "twice"},
		"no primary":    {`type="primary"`, `type="other"`, "no primary"},
		"two sums":      {"<open-checksum", `<checksum type="sha256"></checksum><open-checksum`, "twice"},
		"bad size":      {"<size>1234", "<size>-1", "no size"},
		"bad time":      {"<timestamp>", "<timestamp>x", "no time"},
		"trailing":      {"</repomd>", "</repomd><x/>", "follows"},
		"cut":           {"</repomd>", "", "EOF"},
		"other":         {"<repomd", "<html", "no repomd"},
	} {
		if text := strings.Replace(sampleRepomd, edit[0], edit[1], 1); text == sampleRepomd {
			t.Fatalf("%s: not edited", what)
		} else if r, err := parseRepomd([]byte(text)); err == nil || !strings.Contains(err.Error(), edit[2]) {
			t.Errorf("%s: %+v, %v; want %q", what, r, err, edit[2])
		}
	}
}

func TestRepomdSignature(t *testing.T) {
	var keys [2]*openpgp.Entity
	for i := range keys {
		k, err := openpgp.NewEntity("a", "", "a@x", nil)
		if err != nil {
			t.Fatal(err)
		}
		keys[i] = k
	}
	var sig bytes.Buffer
	if err := openpgp.ArmoredDetachSign(&sig, keys[0], strings.NewReader(sampleRepomd), nil); err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		text, sig string
		key       int
		want      string
	}{
		"signed":    {sampleRepomd, sig.String(), 0, ""},
		"changed":   {sampleRepomd + " ", sig.String(), 0, "does not hold"},
		"other key": {sampleRepomd, sig.String(), 1, "none of the distribution's keys"},
		"nothing":   {sampleRepomd, "", 0, "does not hold"},
	} {
		err := checkSignature([]byte(c.text), []byte(c.sig), openpgp.EntityList{keys[c.key]}, time.Now)
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", what, err, c.want)
		}
	}
}

func FuzzRepomd(f *testing.F) {
	f.Add([]byte(sampleRepomd))
	f.Fuzz(func(t *testing.T, text []byte) {
		r, err := parseRepomd(text)
		if err != nil {
			return
		}
		if err := validPath(r.primary.Path); err != nil || len(r.primary.Digest.Hex) < 64 {
			t.Fatalf("%+v, %v", r, err)
		}
	})
}
