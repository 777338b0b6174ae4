package rpm

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/decompress"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
)

// What createrepo_c writes is read, in each of its compressions, and says of packages what rpm says.
func TestPrimaryOfCreaterepo(t *testing.T) {
	need.Program(t, "createrepo_c")
	need.Program(t, "rpm")
	dir := t.TempDir()
	if err := os.MkdirAll(dir+"/Packages", 0o755); err != nil {
		t.Fatal(err)
	}
	file := dir + "/Packages/thing.rpm"
	if err := os.WriteFile(file, samples(t)["w3.zstdio"], 0o644); err != nil {
		t.Fatal(err)
	}
	rpm := func(arg ...string) []string {
		out, err := exec.Command("rpm", append([]string{"-qp"}, append(arg, file)...)...).Output()
		if err != nil {
			t.Fatal(err)
		}
		lines := slices.DeleteFunc(strings.Split(strings.TrimSpace(string(out)), "\n"), func(s string) bool { return strings.HasPrefix(s, "rpmlib(") })
		slices.Sort(lines)
		return slices.Compact(lines)
	}
	for _, packing := range []string{"gz", "xz", "zstd", "sha512"} {
		arg := []string{"--quiet", "--general-compress-type=" + packing, dir}
		if packing == "sha512" {
			arg = []string{"--quiet", "--checksum=sha512", "--compress-type=gz", dir}
		}
		if out, err := exec.Command("createrepo_c", arg...).CombinedOutput(); err != nil {
			if bytes.Contains(out, []byte("ompression")) && packing == "zstd" {
				continue // older ones can't
			}
			t.Fatalf("%s: %v: %s", packing, err, out)
		}
		text, err := os.ReadFile(dir + "/repodata/repomd.xml")
		if err != nil {
			t.Fatal(err)
		}
		md, err := parseRepomd(text)
		if err != nil {
			t.Fatalf("%s: %v", packing, err)
		}
		f, err := os.Open(filepath.Join(dir, md.primary.Path))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if st, err := f.Stat(); err != nil || st.Size() != md.primary.Size {
			t.Errorf("%s: %v, %v; repomd.xml says %d bytes", packing, st, err, md.primary.Size)
		}
		z, err := decompress.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		defer z.Close()
		var b bytes.Buffer
		if err := buildIndex(&b, z, "x86_64"); err != nil {
			t.Fatalf("%s: %v", packing, err)
		}
		x, err := openIndex(bytes.NewReader(b.Bytes()), int64(b.Len()), "x86_64")
		if err != nil {
			t.Fatal(err)
		}
		all, err := x.named("thing")
		if err != nil || len(all) != 1 {
			t.Fatalf("%s: %v, %v", packing, all, err)
		}
		k := all[0]
		if algorithm := map[bool]string{true: "sha512", false: "sha256"}[packing == "sha512"]; k.digest.Algorithm != algorithm || md.primary.Digest.Algorithm != algorithm {
			t.Errorf("%s: digests are %s and %s", packing, k.digest, md.primary.Digest)
		}
		if k.version != "3:1.0~rc1-2.fc40" || k.arch != noarch || k.path != "Packages/thing.rpm" || k.size != int64(len(samples(t)["w3.zstdio"])) || k.built == 0 {
			t.Errorf("%s: %+v", packing, k)
		}
		got := strings.Split(strings.TrimSpace(k.requires), "\n")
		slices.Sort(got)
		want := slices.DeleteFunc(rpm("--requires"), func(s string) bool { return strings.HasPrefix(s, "config(") || strings.HasPrefix(s, "own ") }) // it has these itself
		if !slices.Equal(got, want) {
			t.Errorf("%s: it requires %q; rpm says %q", packing, got, want)
		}
		p := newPool("x86_64", []source{{index: x, base: "http://mirror"}})
		for _, what := range append(rpm("--provides"), "/usr/bin/one", "/etc/thing.conf") {
			d, err := parseDepend(what)
			if err != nil {
				t.Fatal(err)
			}
			if list, err := p.meeting(d); err != nil || len(list) != 1 {
				t.Errorf("%s: %s is provided by %v, %v", packing, what, list, err)
			}
		}
	}
}
