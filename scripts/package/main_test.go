package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/cli"
	"github.com/godkms-hermetic/godkms-hermetic/internal/distpkg"
	"github.com/godkms-hermetic/godkms-hermetic/internal/dkmstest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/hosttest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	if !filepath.IsAbs(name) {
		name = need.Program(t, name)
	}
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// The packages have no fault that the formats' checkers know, and the program is there once one is installed.
func TestPackages(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	program := filepath.Join(dir, name)
	command(t, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", program, "../../cmd/"+name)
	made := map[distpkg.Format]string{}
	for _, f := range []distpkg.Format{distpkg.Deb, distpkg.RPM} {
		out := filepath.Join(dir, "out")
		file, err := run(t.Context(), program, out, f)
		if err != nil {
			t.Fatal(err)
		}
		if rest, _ := filepath.Glob(filepath.Join(out, ".*")); len(rest) > 0 {
			t.Errorf("left behind: %q", rest)
		}
		made[f] = file
	}
	command(t, "lintian", "--fail-on", "error", "--allow-root", made[distpkg.Deb])
	if out := command(t, "rpm", "-K", made[distpkg.RPM]); !strings.Contains(out, "digests OK") {
		t.Errorf("rpm -K says %s", out)
	}
	files := command(t, "rpm", "-qpl", made[distpkg.RPM])
	for _, want := range []string{binary, "/usr/share/man/man1/godkms-hermetic-build.1.gz", "/usr/share/zsh/site-functions/_" + name,
		"/usr/lib/kernel/install.d/40-godkms-hermetic.install", "/usr/lib/systemd/system/multi-user.target.wants/godkms-hermetic.service"} {
		if !strings.Contains(files, want+"\n") {
			t.Errorf("the .rpm has no %s", want)
		}
	}

	root := hosttest.New(t, "/bin/false")
	put := func(file, as string) {
		t.Helper()
		b, err := os.ReadFile(file)
		if err == nil {
			err = os.WriteFile(filepath.Join(root.Dir, as), b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	put(made[distpkg.Deb], "/tool.deb")
	for _, module := range []string{"hello", "broken"} {
		out := filepath.Join(dir, module)
		command(t, program, "mkdeb", "--source", "../../testdata/"+module, "--out", out, "--cache-dir", filepath.Join(dir, "cache"))
		debs, _ := filepath.Glob(filepath.Join(out, "*.deb"))
		put(debs[0], "/"+module+".deb")
	}
	k := hosttest.Kernel(t, "6.1.", "amd64")
	someOf(t, k, root.Dir)

	// With the program come modules, one of which can't be built; and all is configured.
	root.Must("dpkg", "-i", "/tool.deb", "/hello.deb", "/broken.deb")
	if out := root.Must("dpkg", "--audit"); out != "" {
		t.Errorf("dpkg --audit says\n%s", out)
	}
	if out := root.Must(name, "version"); !strings.HasPrefix(out, name+" ") {
		t.Errorf("version says %s", out)
	}
	if out := root.Must(name, "hooks", "status"); strings.Count(out, " installed ") < 4 {
		t.Errorf("hooks status says\n%s", out)
	}
	status := root.Must(name, "status")
	for _, want := range []string{"hello/1.0, " + k.Release + ", x86_64: installed\n", "broken/"} {
		if !strings.Contains(status, want) {
			t.Errorf("no %q in the status:\n%s", want, status)
		}
	}
	root.Must("modprobe", "-S", k.Release, "--show-depends", "hello")

	// An upgrade, here of the package alone, has the module again; and without its package it goes.
	newer := filepath.Join(dir, "newer")
	command(t, program, "mkdeb", "--source", "--version", "1.0+1", "../../testdata/hello", "--out", newer, "--cache-dir", filepath.Join(dir, "cache"))
	put(filepath.Join(newer, "hello-hermetic_1.0+1_all.deb"), "/newer.deb")
	root.Must("dpkg", "-i", "/newer.deb")
	if got := root.Must(name, "status", "hello"); got != "hello/1.0, "+k.Release+", x86_64: installed\n" {
		t.Errorf("after an upgrade the status is\n%s", got)
	}
	root.Must("dpkg", "-r", "hello-hermetic", "broken-hermetic")
	if out := root.Must(name, "status"); out != "" {
		t.Errorf("when they are gone, the status is\n%s", out)
	}
	if _, code := root.Run("modprobe", "-S", k.Release, "--show-depends", "hello"); code == 0 {
		t.Error("the module is still there")
	}
	root.Must("dpkg", "-P", name)
}

// someOf puts a kernel's lists of its modules, and one of these, into a root.
func someOf(t *testing.T, k kernels.Kernel, root string) {
	t.Helper()
	d, err := dkmstest.Open(dkmstest.Cache())
	if err != nil {
		t.Fatal(err)
	}
	from, err := d.Image(t.Context(), k)
	if err != nil {
		t.Fatal(err)
	}
	lists, _ := filepath.Glob(filepath.Join(from, "modules.*"))
	for _, file := range append(lists, filepath.Join(from, "kernel/drivers/net/dummy.ko")) {
		to := filepath.Join(root, "usr/lib/modules", k.Release, strings.TrimPrefix(file, from))
		b, err := os.ReadFile(file)
		if err := errors.Join(err, os.MkdirAll(filepath.Dir(to), 0o755), os.WriteFile(to, b, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
}

// The manual has a page for every command, in which two checkers find no fault, and none of what help says is lost.
func TestManual(t *testing.T) {
	t.Parallel()
	pages := manPages(cli.Command(), "2026-01-01", "1.0")
	dir := t.TempDir()
	var files []string
	for file, text := range pages {
		files = append(files, filepath.Join(dir, file))
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	command(t, "mandoc", append([]string{"-T", "lint", "-W", "warning"}, files...)...)
	if _, ok := pages["godkms-hermetic-image-push.1"]; !ok || len(pages) < 20 {
		t.Errorf("there are %d pages", len(pages))
	}
	shown := command(t, "mandoc", "-T", "utf8", "-O", "width=500", filepath.Join(dir, "godkms-hermetic-pull.1"))
	shown = regexp.MustCompile(`.\x08`).ReplaceAllString(shown, "") // bold and underlined
	for _, want := range []string{"DIR/<distro>-<suite>/<release>/", "--out DIR", "(default out)", "130    interrupted", "EXAMPLES", "pull registry.example/modules/hello\n"} {
		if !strings.Contains(shown, want) {
			t.Errorf("no %q in\n%s", want, shown)
		}
	}
}

func TestRoff(t *testing.T) {
	for in, want := range map[string]string{".TH x": `\&.TH x`, "'br": `\(aqbr`, `a\fBb`: `a\efBb`, "--x": `\-\-x`} {
		if got := roff(in); got != want {
			t.Errorf("roff(%q) = %q; want %q", in, got, want)
		}
	}
}
