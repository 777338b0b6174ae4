package builder

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestReadSettings(t *testing.T) {
	for _, c := range []struct{ text, want, err string }{
		{text: ""},
		{text: "# nothing yet\n\n[build]\n"},
		{text: "[build]\npackages = []\n"},
		{text: "[build]\npackages = [\"a-dev\", 'b'] # both\n", want: "a-dev godkms.toml:2, b godkms.toml:2"},
		{text: "build.packages = [\n  \"a\",\n  # why\n  \"b | c (>= 1.2)\",\n]\n", want: "a godkms.toml:2, b | c (>= 1.2) godkms.toml:4"},
		{text: "\ufeff[build]\r\npackages = [\"a\"]\r\n", want: "a godkms.toml:2"},
		{text: "build = { packages = [\"\"\"a\"\"\"] }", want: "a godkms.toml:1"},

		{text: "[build]\npakages = [\"a\"]\n", err: `godkms.toml:2: there is no setting "pakages" in [build]; near are "packages"`},
		{text: "[build]\npackages = [\"a\"]\n\n[build.debian]\npackages = [\"b\"]\n", err: `godkms.toml:4: there is no setting "debian" in [build]`},
		{text: "# x\n[biuld]\npackages = [\"a\"]\n", err: `godkms.toml:2: there is no setting "biuld"; near are "build"`},
		{text: "\npackages = [\"a\"]\n", err: `godkms.toml:2: there is no setting "packages"; near are "build"`},
		{text: "[Build]\npackages = [\"a\"]\n", err: `godkms.toml:1: there is no setting "Build"`},
		{text: "[build]\nPackages = [\"a\"]\n", err: `godkms.toml:2: there is no setting "Packages"`},
		{text: "build = 1\n", err: "godkms.toml:1: build must be a table"},
		{text: "\n[[build]]\npackages = [\"a\"]\n", err: "godkms.toml:2: build must be a table"},
		{text: "[build]\n\npackages = \"a\"\n", err: "godkms.toml:3: packages must be a list of texts"},
		{text: "[build]\npackages = [\n\"a\",\n1]\n", err: "godkms.toml:2: entry 2 of packages is no text"},
		{text: "[build]\npackages = [[\"a\"]]\n", err: "godkms.toml:2: entry 1 of packages is no text"},
		{text: "[build]\npackages = [\n\"a\",\n\" \"]\n", err: "godkms.toml:4: entry 2 of packages is empty"},
		{text: "[build]\npackages = [\n\"a, b\"]\n", err: `godkms.toml:3: entry 1 of packages is "a, b": write each package as an entry of its own`},
		{text: "[build]\npackages = [\"a\\u001b[31m\"]\n", err: `godkms.toml:2: entry 1 of packages is "a\x1b[31m": a package's name has no such characters`},
		{text: "[build]\npackages = [\"bücher\"]\n", err: "no such characters"},
		{text: "[build]\npackages = [\"" + strings.Repeat("a", maxWish+1) + "\"]\n", err: "godkms.toml:2: entry 1 of packages has 1025 bytes"},
		{text: "[build]\npackages = [" + strings.Repeat("\"a\",", maxWishes+1) + "]\n", err: "godkms.toml:2: packages has 257 entries"},
		{text: "[build]\npackages = [\"a\"\n", err: "godkms.toml:2: it is not valid TOML: "},
		{text: "[build]\npackages: [a]\n", err: "godkms.toml:2: it is not valid TOML: "},
		{text: "[build]\npackages = [\"a\"]\n[build]\n", err: "godkms.toml:3: it is not valid TOML: "},
		{text: "[build]\npackages = [\"\xff\"]\n", err: "godkms.toml:2: it is not valid TOML: invalid UTF-8"},
	} {
		list, err := readSettings([]byte(c.text))
		var got []string
		for _, w := range list {
			got = append(got, w.Package+" "+w.From)
		}
		if c.err == "" && (err != nil || strings.Join(got, ", ") != c.want) {
			t.Errorf("%q: %q, %v; want %q", c.text, got, err, c.want)
		}
		if c.err != "" && (err == nil || !strings.HasPrefix(err.Error(), "godkms.toml:") || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%q: %q, %v; want the error %q", c.text, got, err, c.err)
		}
	}
}

// A settings file that is nothing but settings takes no time worth mentioning.
func TestManySettings(t *testing.T) {
	var text strings.Builder
	for i := 0; text.Len() < maxSettings-8; i++ {
		fmt.Fprintf(&text, "%x=1\n", i)
	}
	start := time.Now()
	if _, err := readSettings([]byte(text.String())); err == nil || !strings.Contains(err.Error(), `no setting "0"`) {
		t.Errorf("readSettings() = %v", err)
	}
	if took := time.Since(start); took > time.Second {
		t.Errorf("it took %s", took)
	}
}

func FuzzSettings(f *testing.F) {
	f.Add([]byte("[build]\npackages = [\"a\", 'b | c']\n"))
	f.Add([]byte("build.packages = [\n\"a\"]\n[build.x]\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := readSettings(text)
		if err != nil && !strings.HasPrefix(err.Error(), "godkms.toml:") {
			t.Fatalf("the error does not name the file: %v", err)
		}
		lines := bytes.Count(text, []byte("\n")) + 1
		for _, w := range list {
			var n int
			if _, err := fmt.Sscanf(w.From, "godkms.toml:%d", &n); err != nil || n < 1 || n > lines {
				t.Fatalf("%q is said to stand in %q of %d lines", w.Package, w.From, lines)
			}
		}
	})
}

// A source's settings are read wherever it comes from, through links within it, and are part of its digest.
func TestSourceSettings(t *testing.T) {
	const settings = "[build]\npackages = [\"pkg-config\"]\n"
	plain := open(t, writeTree(t, map[string]string{"dkms.conf": conf}), SourceOptions{})
	if plain.Packages != nil || plain.Depends != nil {
		t.Errorf("without settings: %v, %v", plain.Packages, plain.Depends)
	}
	dir := writeTree(t, map[string]string{"dkms.conf": conf, "godkms.toml": settings})
	archive := filepath.Join(t.TempDir(), "a.tar.gz")
	run(t, dir, "tar", "--transform=s,^\\.,m-1,", "-czf", archive, ".")
	linked := writeTree(t, map[string]string{"dkms.conf": conf, "godkms.toml": "->conf/settings.toml", "conf/settings.toml": settings})
	for _, src := range []string{dir, filepath.Join(dir, "dkms.conf"), archive, linked} {
		s := open(t, src, SourceOptions{})
		if len(s.Packages) != 1 || s.Packages[0] != (Wish{"pkg-config", "godkms.toml:2"}) {
			t.Errorf("%s: %v", src, s.Packages)
		}
		if s.Digest == plain.Digest {
			t.Errorf("%s: the digest is the same as without", src)
		}
	}
	deeper := open(t, writeTree(t, map[string]string{"dkms.conf": conf, "sub/godkms.toml": settings}), SourceOptions{})
	if deeper.Packages != nil {
		t.Errorf("one in a folder below: %v", deeper.Packages)
	}
	for want, files := range map[string]map[string]string{
		"godkms.toml has 16385 bytes; at most 16384 are read": {"dkms.conf": conf, "godkms.toml": strings.Repeat("#", maxSettings+1)},
		"godkms.toml:1: there is no setting":                  {"dkms.conf": conf, "godkms.toml": "x = 1\n"},
		"leads out of the tree":                               {"dkms.conf": conf, "godkms.toml": "->/etc/passwd"},
	} {
		if s, err := OpenSource(context.Background(), writeTree(t, files), SourceOptions{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("OpenSource = %v, %v; want the error %q", s, err, want)
		}
	}
}

// What a package file depends on comes with its source.
func TestSourceDepends(t *testing.T) {
	dir := writeTree(t, map[string]string{"usr/src/m-1/dkms.conf": conf})
	archive := filepath.Join(t.TempDir(), "a.tar")
	run(t, dir, "tar", "-cf", archive, ".")
	data, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	deb := filepath.Join(t.TempDir(), "m.deb")
	if err := os.WriteFile(deb, append([]byte("!<arch>\n"), data...), 0o644); err != nil {
		t.Fatal(err)
	}
	s := open(t, deb, SourceOptions{Open: func(pkg io.Reader) (io.ReadCloser, []string, error) {
		_, err := io.CopyN(io.Discard, pkg, 8)
		return io.NopCloser(pkg), []string{"dkms", "libc6-dev | libc-dev"}, err
	}})
	if got := strings.Join(s.Depends, ", "); got != "dkms, libc6-dev | libc-dev" {
		t.Errorf("Depends = %q", got)
	}
}
