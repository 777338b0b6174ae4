package cli

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/distpkg"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// packages is what mkdeb and mkrpm print as JSON.
type packages struct {
	Packages []madePackage
}

// hello61 builds testdata/hello for bookworm's newest 6.1 kernel, in the shared cache.
func hello61(t *testing.T) (cache, kernel, release string) {
	t.Helper()
	cache = sharedCache(t)
	k := newest(t, cache, "6.1.")
	program(t, cache, "build", "../../testdata/hello", "--kernels", k.String(), "--out", t.TempDir(), "--quiet")
	return cache, k.String(), k.Release
}

// dpkgRoot is a root that has a kernel, as far as dpkg, depmod and modprobe look at it.
func dpkgRoot(t *testing.T, release string) string {
	t.Helper()
	if os.Getuid() != 0 {
		need.Skip(t, "dpkg installs for root only")
	}
	root := t.TempDir()
	writeFile(t, filepath.Join(root, "var/lib/dpkg/status"),
		fmt.Sprintf("Package: linux-image-%s\nStatus: install ok installed\nVersion: 1\nArchitecture: amd64\nMaintainer: a\nDescription: b\n", release))
	for _, dir := range []string{"var/lib/dpkg/info", "var/lib/dpkg/updates", "usr/lib"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("usr/lib", filepath.Join(root, "lib")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"modules.order", "modules.builtin", "modules.builtin.modinfo"} {
		writeFile(t, filepath.Join(root, "usr/lib/modules", release, name), "")
	}
	return root
}

// dpkg runs dpkg on a root, with programs from a folder before all others.
func dpkg(t *testing.T, root, first string, args ...string) string {
	t.Helper()
	cmd := exec.Command(need.Program(t, "dpkg"), append([]string{"--root", root, "--force-script-chrootless", "--log=/dev/null"}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+first+":"+os.Getenv("PATH")+":/usr/sbin:/sbin")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("dpkg %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// A package of a built module installs, is found by modprobe, and goes again; the checkers of both formats find no fault in it.
func TestMakePrebuilt(t *testing.T) {
	t.Parallel()
	cache, kernel, release := hello61(t)
	make := func(t *testing.T, command string, more ...string) madePackage {
		t.Helper()
		args := append([]string{command, "--prebuilt", "hello/1.0", "-k", kernel, "--maintainer", "A Name <a@example.org>", "--format", "json", "--quiet"}, more...)
		got := parse[packages](t, program(t, cache, append(args, "--out", t.TempDir())...)).Packages
		again := parse[packages](t, program(t, cache, append(args, "--out", t.TempDir())...)).Packages
		if len(got) != 1 || len(again) != 1 || got[0].SHA256 != again[0].SHA256 || got[0].Kernel != kernel {
			t.Fatalf("%s says %+v, and again %+v", command, got, again)
		}
		if b, err := os.ReadFile(got[0].Path); err != nil || sum(b) != got[0].SHA256 {
			t.Errorf("%s isn't what it is said to be (%v)", got[0].Path, err)
		}
		return got[0]
	}
	t.Run("deb", func(t *testing.T) {
		p := make(t, "mkdeb")
		if want := "hello-modules-" + release; p.Name != want || filepath.Base(p.Path) != want+"_1.0_amd64.deb" {
			t.Errorf("the package is %+v; want %s", p, want)
		}
		command(t, need.Program(t, "lintian"), "--fail-on", "error", "--allow-root", p.Path)
		root := dpkgRoot(t, release)
		dpkg(t, root, "/usr/bin", "-i", p.Path)
		ko := filepath.Join(root, "lib/modules", release, "updates/dkms/hello.ko")
		shown := command(t, need.Program(t, "modprobe"), "-d", root, "-S", release, "--show-depends", "hello")
		if want := "insmod " + ko; !strings.Contains(string(shown), want) {
			t.Errorf("modprobe says %s; want %s", shown, want)
		}
		dpkg(t, root, "/usr/bin", "-r", p.Name)
		deps, err := os.ReadFile(filepath.Join(root, "lib/modules", release, "modules.dep"))
		if _, there := os.Stat(ko); there == nil || err != nil || bytes.Contains(deps, []byte("hello")) {
			t.Errorf("the module is still there: %v, %s", err, deps)
		}

		// Signed, it's the same module with a signature, and the same bytes again.
		key, crt := filepath.Join(t.TempDir(), "key.pem"), filepath.Join(t.TempDir(), "cert.pem")
		command(t, need.Program(t, "openssl"), "req", "-new", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=packager", "-keyout", key, "-out", crt)
		signed := make(t, "mkdeb", "--sign-key", key, "--sign-cert", crt)
		dpkg(t, root, "/usr/bin", "-i", signed.Path)
		if got := strings.TrimSpace(string(command(t, need.Program(t, "modinfo"), "-F", "signer", ko))); got != "packager" || signed.Signer != got {
			t.Errorf("it is signed by %q, and mkdeb says %q", got, signed.Signer)
		}
		dpkg(t, root, "/usr/bin", "-r", p.Name)
		run(t, cache, "mkdeb", "--prebuilt", "hello/1.0", "-k", kernel, "--sign-key", filepath.Join(root, "none")).wants(t, 6, "can't be signed")

		// A depmod that fails stops nothing, and is told of.
		bin := t.TempDir()
		if err := os.Symlink("/bin/false", filepath.Join(bin, "depmod")); err != nil {
			t.Fatal(err)
		}
		if out := dpkg(t, root, bin, "-i", p.Path); !strings.Contains(out, "depmod failed for "+release) {
			t.Errorf("dpkg says %s", out)
		}
	})
	t.Run("rpm", func(t *testing.T) {
		p := make(t, "mkrpm")
		if out := command(t, need.Program(t, "rpm"), "-K", p.Path); !strings.HasSuffix(strings.TrimSpace(string(out)), ": digests OK") {
			t.Errorf("rpm -K says %s", out)
		}
		need.Program(t, "rpm2cpio")
		sh := fmt.Sprintf("rpm2cpio '%s' | cpio -t --quiet", p.Path)
		if out := string(command(t, "sh", "-c", sh)); !strings.Contains(out, "/lib/modules/"+release+"/updates/dkms/hello.ko\n") {
			t.Errorf("cpio -t says %s", out)
		}
	})
}

func TestMakePackagesUsage(t *testing.T) {
	t.Parallel()
	dir, out := t.TempDir(), filepath.Join(t.TempDir(), "out")
	stock(t, dir, made{version: "1.0", kernel: k1, size: 10}, made{version: "2.0", kernel: k1, size: 10, skipped: true})
	for _, c := range []struct {
		args  []string
		code  int
		texts []string
	}{
		{[]string{"made/1.0"}, 1, []string{"at least one of the flags", "prebuilt", "source"}},
		{[]string{"made/1.0", "--prebuilt", "--source"}, 1, []string{"--prebuilt and --source exclude each other"}},
		{[]string{"made/1.0", "--prebuilt"}, 1, []string{"made.ko"}}, // which is no module
		{[]string{"made/2.0", "--prebuilt"}, 77, []string{"BUILD_EXCLUSIVE"}},
		{[]string{"made/3.0", "--prebuilt"}, 1, []string{"build it first"}},
		{[]string{"made/1.0", "--prebuilt", "-k", "9*"}, 1, []string{`for "9*"`, k1}},
		{[]string{"made/1.0", "--prebuilt", "--version", "1.0\nX"}, 1, []string{"--version", "digit"}},
		{[]string{"made/1.0", "--prebuilt", "--version", "git"}, 1, []string{"--version git", "no folder"}},
		{[]string{"made/1.0", "--prebuilt", "--maintainer", "me"}, 1, []string{`"me"`, "Name <name@example.org>"}},
	} {
		run(t, dir, append(append([]string{"mkdeb"}, c.args...), "--out", out)...).wants(t, c.code, c.texts...)
	}
	if _, err := os.Stat(out); err == nil {
		t.Errorf("%s was made for nothing", out)
	}
}

// A package of a source has just its files, and names it in scripts; its version is the repository's.
func TestMakeSource(t *testing.T) {
	t.Parallel()
	src, ran := filepath.Join(t.TempDir(), "src"), filepath.Join(t.TempDir(), "ran")
	writeFile(t, filepath.Join(src, "dkms.conf"), "PACKAGE_NAME=good\nPACKAGE_VERSION=1.5-rc1\nBUILT_MODULE_NAME=good\nDEST_MODULE_LOCATION=/extra\n")
	writeFile(t, filepath.Join(src, "a b * 'c'.c"), "MODULE_LICENSE(\"Dual MIT/GPL\");\n")
	git := func(args ...string) {
		t.Helper()
		command(t, need.Program(t, "git"), append([]string{"-C", src, "-c", "user.name=a", "-c", "user.email=a@example.org"}, args...)...)
	}
	make := func(command string, args ...string) madePackage {
		t.Helper()
		args = append([]string{command, "--source", src, "--out", filepath.Join(src, "out"), "--format", "json"}, args...)
		return parse[packages](t, program(t, t.TempDir(), args...)).Packages[0]
	}
	deb, again := make("mkdeb"), make("mkdeb")
	if want := (madePackage{filepath.Join(src, "out/good-hermetic_1.5~rc1_all.deb"), "good-hermetic", "1.5~rc1", "all", "", "", deb.SHA256}); deb != want || again != want {
		t.Errorf("mkdeb says %+v, and again %+v; want %+v", deb, again, want)
	}
	command(t, need.Program(t, "lintian"), "--fail-on", "error", "--allow-root", deb.Path)
	root := t.TempDir()
	command(t, need.Program(t, "dpkg-deb"), "-R", deb.Path, root)
	if b, err := os.ReadFile(filepath.Join(root, "usr/src/good-1.5-rc1/a b * 'c'.c")); err != nil || !bytes.Contains(b, []byte("MIT")) {
		t.Errorf("the source is %s, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(root, "usr/share/doc/good-hermetic/copyright")); err != nil || !bytes.Contains(b, []byte("  Dual MIT/GPL\n")) {
		t.Errorf("the copyright is %s, %v", b, err)
	}
	if b, err := os.ReadFile(filepath.Join(root, "DEBIAN/prerm")); err != nil || !bytes.Contains(b, []byte("module='good/1.5-rc1'\n")) {
		t.Errorf("prerm is %s, %v", b, err)
	}

	// Of its repository, which has commands of its own to run, the commits count.
	git("init", "--quiet")
	git("config", "core.fsmonitor", "touch '"+ran+"'")
	git("-c", "core.fsmonitor=false", "add", ".")
	git("commit", "--quiet", "-m", "one")
	os.Remove(ran)
	short := strings.TrimSpace(string(command(t, "git", "-C", src, "rev-parse", "--short=12", "HEAD")))
	for _, c := range []struct{ tag, deb, rpm string }{
		{"", "1.5~rc1+1.g" + short, "1.5~rc1^1.g" + short}, {"v1.6", "1.6", "1.6"},
	} {
		if c.tag != "" {
			git("tag", c.tag)
		}
		if got := make("mkdeb", "--version", "git"); got.Version != c.deb {
			t.Errorf("mkdeb: the version is %q; want %q", got.Version, c.deb)
		}
		if got := make("mkrpm", "--version", "git"); got.Version != c.rpm {
			t.Errorf("mkrpm: the version is %q; want %q", got.Version, c.rpm)
		}
	}
	git("commit", "--quiet", "--allow-empty", "-m", "two")
	os.Remove(ran)
	if got := make("mkdeb", "--version", "git").Version; !strings.HasPrefix(got, "1.6+1.g") {
		t.Errorf("the version is %q", got)
	}
	if _, err := os.Stat(ran); err == nil {
		t.Error("a command of the repository was run")
	}

	// Commits can't be counted where there are not all.
	shallow := filepath.Join(t.TempDir(), "clone")
	git("tag", "-d", "v1.6")
	command(t, "git", "clone", "--quiet", "--depth=1", "file://"+src, shallow)
	run(t, t.TempDir(), "mkdeb", "--source", shallow, "--version", "git", "--out", t.TempDir()).wants(t, 1, "the clone is shallow")

	// Names that would stand in scripts.
	for _, name := range []string{"a'b", "$(id)", "-m", "..", "a/b", "a\nb", "a=b"} {
		writeFile(t, filepath.Join(src, "dkms.conf"), "PACKAGE_NAME=\""+strings.ReplaceAll(name, "$", `\$`)+"\"\nPACKAGE_VERSION=1\nBUILT_MODULE_NAME=good\nDEST_MODULE_LOCATION=/extra\n")
		if r := run(t, t.TempDir(), "mkdeb", "--source", src, "--out", t.TempDir()); r.code == 0 {
			t.Errorf("a module %q was packaged: %s", name, r.out)
		}
	}
}

func TestKernelPackages(t *testing.T) {
	debian, ubuntu, fedora := kernels.Kernel{Distro: "debian", Suite: "trixie", Release: "R"}, kernels.Kernel{Distro: "ubuntu", Release: "R"}, kernels.Kernel{Distro: "fedora", Release: "R"}
	for _, c := range []struct {
		f    distpkg.Format
		k    kernels.Kernel
		want string
	}{
		{distpkg.Deb, debian, "linux-image-R | linux-image-R-unsigned"}, {distpkg.Deb, ubuntu, "linux-image-R | linux-image-unsigned-R"}, {distpkg.Deb, fedora, ""},
		{distpkg.RPM, fedora, "kernel-uname-r = R"}, {distpkg.RPM, debian, ""}, {distpkg.Deb, kernels.Kernel{Distro: "sles", Release: "1-2"}, ""},
		{distpkg.RPM, kernels.Kernel{Distro: "almalinux", Release: "5.14.0-427.el9.x86_64+rt"}, "kernel-uname-r = 5.14.0-427.el9.x86_64+rt"},
		{distpkg.RPM, kernels.Kernel{Distro: "opensuse-leap", Release: "6.4.0-150600.21-default"}, "kernel-default, kernel = 6.4.0-150600.21"},
		{distpkg.RPM, kernels.Kernel{Distro: "arch", Release: "6.9.3-arch1-1"}, ""},
	} {
		if got := strings.Join(kernelDepends(c.f, c.k), ", "); got != c.want {
			t.Errorf("a .%s for %s depends on %q; want %q", c.f, c.k, got, c.want)
		}
	}
	bookworm := debian
	bookworm.Suite = "bookworm"
	for k, want := range map[kernels.Kernel]string{debian: "/usr/lib/modules", bookworm: "/lib/modules", ubuntu: "/lib/modules", fedora: "/lib/modules"} {
		if got := modulesDir(k); got != want {
			t.Errorf("modules of %s are in %s; want %s", k, got, want)
		}
	}
}
