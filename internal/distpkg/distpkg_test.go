package distpkg_test

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/distpkg"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
)

// hello is a package with all that a package can have.
func hello() distpkg.Package {
	return distpkg.Package{
		Name: "hello", Version: "1.0", Arch: "all", Maintainer: "A Name <a@example.org>", License: "GPL", Summary: "greets", Text: "One line.\n\nAnother.",
		Depends: []string{"base"}, Provides: []string{"greeter"}, Conflicts: []string{"goodbye"},
		Files: []distpkg.File{
			distpkg.Text("/usr/share/hello/text", "hello\n"),
			distpkg.Text("/usr/share/hello/a * [b] {c}", ""),
			{Path: "/etc/hello", Mode: 0o600, Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("")), nil }, Config: true},
			{Path: "/usr/share/hello/dir", Mode: fs.ModeDir | 0o755},
			{Path: "/usr/share/hello/link", Mode: fs.ModeSymlink, Link: "../../../etc/passwd"},
			{Path: "/usr/bin/hello", Mode: 0o755, Size: 10, Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("#!/bin/sh\n")), nil }},
		},
		Scripts:  distpkg.Scripts{PostInstall: "#!/bin/sh\n# in\n", PreRemove: "#!/bin/sh\n# before\n", PostRemove: "#!/bin/sh\n# out\n", PostTrans: "# trans\n"},
		Triggers: distpkg.Triggers{Interest: []string{"one"}, Activate: []string{"two"}},
	}
}

func write(t *testing.T, f distpkg.Format, p distpkg.Package) ([]byte, error) {
	t.Helper()
	var b bytes.Buffer
	err := distpkg.Write(t.Context(), &b, f, p, t.TempDir())
	return b.Bytes(), err
}

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(need.Program(t, name), args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// What the formats' own programs read is what was given, and twice the same package is the same bytes.
func TestWrite(t *testing.T) {
	for f, reads := range map[distpkg.Format]func(file string) string{
		distpkg.Deb: func(file string) string {
			return run(t, "dpkg-deb", "-I", file) + run(t, "dpkg-deb", "-c", file) + run(t, "dpkg-deb", "-I", file, "postinst", "prerm", "postrm", "triggers", "conffiles")
		},
		distpkg.RPM: func(file string) string {
			return run(t, "rpm", "-K", file) +
				run(t, "rpm", "-qp", "--info", "--requires", "--provides", "--conflicts", "--scripts", "-lv", file) + run(t, "rpm", "-qpc", file)
		},
	} {
		p := hello()
		if f == distpkg.RPM {
			p.Depends = append(p.Depends, "kernel-uname-r = 6.5.6-300.fc39.x86_64")
		} else {
			p.Depends = append(p.Depends, "linux-image-6.1.0-56-amd64 | linux-image-6.1.0-56-amd64-unsigned")
		}
		b, err := write(t, f, p)
		if err != nil {
			t.Fatal(err)
		}
		again, err := write(t, f, p)
		if err != nil || !bytes.Equal(b, again) {
			t.Errorf("%s: written again, it differs (%v)", f, err)
		}
		file := filepath.Join(t.TempDir(), f.FileName(hello()))
		if err := os.WriteFile(file, b, 0o644); err != nil {
			t.Fatal(err)
		}
		text := reads(file)
		want := []string{"A Name <a@example.org>", "greets", "Another.", "base", "greeter", "goodbye", "# in", "# before", "# out", "hello/a * [b] {c}",
			"hello/dir", "link -> ../../../etc/passwd", "2000", "root", "\n/etc/hello\n", "-rw-------"}
		if f == distpkg.Deb {
			want = append(want, "hello\n", "-rwxr-xr-x root/root        10", "interest-noawait one", "Depends: base, linux-image-6.1.0-56-amd64 | linux-image-6.1.0-56-amd64-unsigned\n", "activate-noawait two")
		} else {
			want = append(want, "digests OK", " kernel-uname-r = 6.5.6-300.fc39.x86_64\n", "# trans", "-rwxr-xr-x", "localhost")
		}
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("%s: no %q in\n%s", f, w, text)
			}
		}
	}
}

func TestWriteRefuses(t *testing.T) {
	for what, spoil := range map[string]func(*distpkg.Package){
		"name":           func(p *distpkg.Package) { p.Name = "Hello; rm" },
		"path as name":   func(p *distpkg.Package) { p.Name = "../hello" },
		"version":        func(p *distpkg.Package) { p.Version = "1.0\nDepends: x" },
		"hyphen":         func(p *distpkg.Package) { p.Version = "1-0" },
		"architecture":   func(p *distpkg.Package) { p.Arch = "../x" },
		"maintainer":     func(p *distpkg.Package) { p.Maintainer = "A <a@b>\nX: y" },
		"no address":     func(p *distpkg.Package) { p.Maintainer = "A" },
		"summary":        func(p *distpkg.Package) { p.Summary = "a\nDepends: evil" },
		"depends":        func(p *distpkg.Package) { p.Depends = []string{"a\nPre-Depends: b"} },
		"relative path":  func(p *distpkg.Package) { p.Files[0].Path = "x" },
		"path with dots": func(p *distpkg.Package) { p.Files[0].Path = "/usr/../etc/x" },
		"the root":       func(p *distpkg.Package) { p.Files[0].Path = "/" },
		"line in a path": func(p *distpkg.Package) { p.Files[0].Path = "/usr/a\nb" },
		"line in a link": func(p *distpkg.Package) { p.Files[4].Link = "a\nb" },
		"device":         func(p *distpkg.Package) { p.Files[0].Mode = fs.ModeDevice },
		"twice":          func(p *distpkg.Package) { p.Files[1].Path = p.Files[0].Path },
		"below a file":   func(p *distpkg.Package) { p.Files[1].Path = p.Files[0].Path + "/x" },
		"size":           func(p *distpkg.Package) { p.Files[0].Size = 1 },
		"too large":      func(p *distpkg.Package) { p.Files[0].Size = 2 << 30 },
		"can't be opened": func(p *distpkg.Package) {
			p.Files[0].Open = func() (io.ReadCloser, error) { return nil, errors.New("gone") }
		},
	} {
		for _, f := range []distpkg.Format{distpkg.Deb, distpkg.RPM} {
			p := hello()
			spoil(&p)
			if _, err := write(t, f, p); err == nil {
				t.Errorf("%s: %s: it was written", f, what)
			}
		}
	}
}

// Versions come in the order of what they stand for, as dpkg and rpm have it.
func TestVersionOrder(t *testing.T) {
	order := []distpkg.Version{
		{Commits: 3, Commit: "abcdef0"}, {Commits: 20, Commit: "0bcdef0"}, {Base: "0.9"}, {Base: "v1.0-alpha1"}, {Base: "1.0-rc1"}, {Base: "1.0-rc2"},
		{Base: "V1.0"}, {Base: "1.0", Commits: 2, Commit: "ffff"}, {Base: "v1.0", Commits: 10, Commit: "0000"}, {Base: "1.0_1"}, {Base: "1.0.2"}, {Base: "1.1"},
	}
	for i := range order[1:] {
		a, b := order[i].In(distpkg.Deb), order[i+1].In(distpkg.Deb)
		run(t, "dpkg", "--compare-versions", a, "lt", b)
		a, b = order[i].In(distpkg.RPM), order[i+1].In(distpkg.RPM)
		if got := run(t, "rpm", "--eval", `%{lua:print(rpm.vercmp("`+a+`", "`+b+`"))}`); strings.TrimSpace(got) != "-1" {
			t.Errorf("rpm: %s and %s compare as %s", a, b, got)
		}
	}
}

func TestVersion(t *testing.T) {
	for _, c := range []struct{ base, want string }{
		{"1.0", "1.0"}, {"v1.0", "1.0"}, {"1:2.0", "1.2.0"}, {"2.0-1", "2.0.1"}, {"git", "0.git"}, {"~", "0"}, {"", "0"}, {"-", "0"}, {"é", "0"}, {"0+x y", "0+x.y"},
		{"1.0-rc.1", "1.0~rc.1"}, {"rc1", "0.rc1"}, {"v", "0.v"}, {"1.0\xff", "1.0"}, {"+1", "0.1"},
	} {
		for _, f := range []distpkg.Format{distpkg.Deb, distpkg.RPM} {
			got := distpkg.Version{Base: c.base}.In(f)
			if got != c.want || f.CheckVersion(got) != nil {
				t.Errorf("%s: %q becomes %q; want %q (%v)", f, c.base, got, c.want, f.CheckVersion(got))
			}
		}
	}
	for _, text := range []string{"", "v1.0", "v1.0-3", "v1.0-x-gabcdef0", "v1.0-3-gxyz", "v1.0-99999999999999999999-gabcdef0", "-3-gabcdef0"} {
		if v, err := distpkg.ParseDescribe(text); err == nil {
			t.Errorf("ParseDescribe(%q) = %+v; want an error", text, v)
		}
	}
	if v, err := distpkg.ParseDescribe("v1.0-rc1-3-gabcdef0"); err != nil || v != (distpkg.Version{Base: "v1.0-rc1", Commits: 3, Commit: "abcdef0"}) {
		t.Errorf("%+v, %v", v, err)
	}
}
