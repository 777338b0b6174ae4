package deb

import (
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMirrors(t *testing.T) {
	const (
		main     = "http://ftp.debian.org/debian"
		security = "http://security.debian.org/debian-security"
	)
	for _, c := range []struct {
		name           string
		given          map[string][]string
		files          map[string]string
		main, security string
	}{
		{"nothing", nil, nil, main, security},
		{"given", map[string][]string{"debian": {"https://m.example/x/debian/"}}, map[string]string{"sources.list": "deb http://apt.example/debian bookworm main\n"},
			"https://m.example/x/debian", "https://m.example/x/debian-security"},
		{"given, no sibling", map[string][]string{"debian": {"https://m.example/x/"}}, nil, "https://m.example/x", security},
		{"both given", map[string][]string{"debian": {"https://m.example/debian"}, "debian-security": {"https://s.example/y"}}, nil,
			"https://m.example/debian", "https://s.example/y"},
		{"security given", map[string][]string{"debian-security": {"https://s.example/y"}}, nil, main, "https://s.example/y"},
		{"several given", map[string][]string{"debian": {"https://m.example/debian", "https://m.example/x", "https://n.example/debian/", "https://m.example/debian/"}}, nil,
			"https://m.example/debian https://m.example/x https://n.example/debian", "https://m.example/debian-security https://n.example/debian-security"},
		{"a snapshot given", map[string][]string{"debian": {"https://s.example/archive/debian/20240301T083000Z/"}}, nil,
			"https://s.example/archive/debian/20240301T083000Z", "https://s.example/archive/debian-security/20240301T083000Z"},
		{"one line", nil, map[string]string{"sources.list": `
# deb http://comment.example/debian bookworm main
deb-src http://source.example/debian bookworm main
deb cdrom:[Debian GNU/Linux 12]/ bookworm main
deb file:/srv/debian bookworm main
deb http://contrib.example/debian bookworm contrib
deb	[ arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg ]  http://apt.example/debian/   bookworm-updates main contrib # here
deb http://later.example/debian bookworm main
deb http://sec.example/debian-security bookworm-security main
`}, "http://apt.example/debian", "http://sec.example/debian-security"},
		{"third parties", nil, map[string]string{
			"sources.list.d/a.list":   "deb [signed-by=/usr/share/keyrings/vendor.gpg] https://vendor.example/stable/debian bookworm main\ndeb https://flat.example/debian ./\n",
			"sources.list.d/b.list":   "deb https://docker.example/linux/debian bookworm stable\ndeb https://apt.example/pub bookworm-pgdg main\n",
			"sources.list.d/c.list.x": "deb http://ignored.example/debian bookworm main\n",
			"sources.list.d/z.list":   "deb http://ours.example/debian stable main\n",
		}, "http://ours.example/debian", "http://ours.example/debian-security"},
		{"deb822", nil, map[string]string{"sources.list.d/x.sources": `# comment
Enabled: no
Types: deb
URIs: http://disabled.example/debian
Suites: bookworm
Components: main

Types: deb-src
URIs: http://source.example/debian
Suites: bookworm
Components: main

types: deb deb-src
uris: ftp://no.example/debian
  http://apt.example/debian
  http://second.example/debian
suites:
  nonsense
# in between
  trixie
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb
URIs: http://sec.example/sec
Suites: oldstable-security
Components: main
`}, "http://apt.example/debian", "http://sec.example/sec"},
		{"old security", nil, map[string]string{"sources.list": "deb http://sec.example/debian-security stable/updates main\n"}, main, "http://sec.example/debian-security"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range c.files {
				path := filepath.Join(dir, name)
				os.MkdirAll(filepath.Dir(path), 0o755)
				if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			list, err := debian().mirrors(c.given, dir)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]string{}
			for _, m := range list {
				got[m.Archive] = strings.TrimSpace(got[m.Archive] + " " + m.URL)
			}
			want := map[string]string{"debian": c.main, "debian-security": c.security}
			if !maps.Equal(got, want) {
				t.Errorf("mirrors = %v; want %v", got, want)
			}
		})
	}
	for given, want := range map[string]string{"ftp://x/debian": "http or https", "/srv": "http or https", "http://x/?a": "of a folder", "http://%": "invalid"} {
		if _, err := debian().mirrors(map[string][]string{"debian": {given}}, t.TempDir()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("mirror %q: error is %v; want %q", given, err, want)
		}
	}
	if _, err := debian().mirrors(map[string][]string{"debian": {main, "/srv"}}, t.TempDir()); err == nil || !strings.Contains(err.Error(), `"/srv"`) {
		t.Errorf("a bad second one: error is %v", err)
	}
	if _, err := debian().mirrors(map[string][]string{"ubuntu": {main}}, t.TempDir()); err == nil || !strings.Contains(err.Error(), "debian, debian-security") {
		t.Errorf("unknown archive: error is %v", err)
	}
}

func FuzzSources(f *testing.F) {
	f.Add("deb [a=b] http://x/debian bookworm main\n")
	f.Add("Types: deb\nURIs: http://x\nSuites: a\n b\n\n")
	f.Fuzz(func(t *testing.T, text string) {
		oneLineSources(text)
		deb822Sources(text)
	})
}
