package distrotest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// debs are one package for each group, in Debian's form.
func debs(t *testing.T) []Package {
	var out []Package
	for name, g := range Tools(t, Multiarch) {
		out = append(out, Package{Name: name, Version: "1:2-3", Arch: "amd64", Files: g.Files})
	}
	common, own := Headers(t, "6.8.0-31-generic", "").Linked("usr/src/linux-headers-6.8.0-31", "usr/src/linux-headers-6.8.0-31-generic")
	return append(out, Package{Name: "linux-headers-6.8.0-31", Version: "6.8.0-31.31", Arch: "all", Files: common},
		Package{Name: "linux-headers-6.8.0-31-generic", Version: "6.8.0-31.31", Arch: "amd64", Depends: []string{"linux-headers-6.8.0-31"}, Files: own})
}

// apt itself reads an archive, and finds its packages.
func TestAPT(t *testing.T) {
	programs(t, "apt-get", "apt-cache")
	dir := APT(t, Pocket{Codename: "noble", Origin: "Ubuntu", Components: map[string][]Package{"main": debs(t)}, ByHash: true})
	root := t.TempDir()
	for _, d := range []string{"lists/partial", "cache/archives/partial", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ring, err := os.Create(filepath.Join(root, "key.gpg"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range Keyring(t) {
		if err := e.Serialize(ring); err != nil {
			t.Fatal(err)
		}
	}
	ring.Close()
	os.WriteFile(filepath.Join(root, "sources.list"), []byte("deb [arch=amd64 signed-by="+ring.Name()+"] "+Serve(t, dir)+" noble main\n"), 0o644)
	os.WriteFile(filepath.Join(root, "status"), nil, 0o644)
	args := []string{"-o", "Dir::Etc=" + root, "-o", "Dir::Etc::sourceparts=-", "-o", "Dir::State=" + root, "-o", "Dir::State::status=" + root + "/status",
		"-o", "Dir::Cache=" + root + "/cache", "-o", "APT::Sandbox::User=root", "-o", "Dir::Etc::trusted=-", "-o", "Dir::Etc::trustedparts=-"}
	if out, err := run("", "", "apt-get", append(args, "update", "-q", "--error-on=any")...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	out, err := run("", "", "apt-cache", append(args, "show", "gcc", "linux-headers-6.8.0-31-generic")...)
	if err != nil || !strings.Contains(string(out), "Version: 1:2-3") || !strings.Contains(string(out), "Depends: linux-headers-6.8.0-31\n") {
		t.Errorf("apt-cache show: %v\n%s", err, out)
	}
}

// rpm and createrepo_c read what is written.
func TestYUM(t *testing.T) {
	var tools []Package
	for name, g := range Tools(t, Lib64) {
		p := Package{Name: name, Version: "1:2-3.el9", Arch: "x86_64", Files: g.Files}
		for _, lib := range g.Has {
			p.Provides = append(p.Provides, lib+"()(64bit)")
		}
		for _, lib := range g.Needs {
			p.Depends = append(p.Depends, lib+"()(64bit)")
		}
		tools = append(tools, p)
	}
	var kernels []Package
	for _, release := range []string{"5.14.0-427.13.1.el9_4", "5.14.0-427.16.1.el9_4"} {
		kernels = append(kernels, Package{Name: "kernel-devel", Version: release, Arch: "x86_64", Compression: "xz",
			Depends: []string{"(gcc or clang)", "/bin/sh"}, Files: Headers(t, release+".x86_64", "").OneFolder("usr/src/kernels/" + release + ".x86_64")})
	}
	dir := YUM{Packages: [][]Package{tools, kernels}, Index: "zst", SignPackages: true, SignIndex: true}.Repository(t)
	files, err := filepath.Glob(filepath.Join(dir, "Packages/*/*.rpm"))
	if err != nil || len(files) != len(tools)+2 {
		t.Fatalf("%d packages of %d", len(files), len(tools)+2)
	}
	out, err := run("", "", "rpm", append([]string{"-qp", "--nosignature", "--qf", "%{NAME} %{EPOCH}:%{VERSION}-%{RELEASE} %{PAYLOADCOMPRESSOR} %{RSAHEADER:pgpsig}\n"}, files...)...)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(out), "RSA/SHA256"); n != len(files) {
		t.Errorf("%d of %d packages are signed:\n%s", n, len(files), out)
	}
	for _, want := range []string{"gcc 1:2-3.el9 zstd ", "kernel-devel (none):5.14.0-427.13.1.el9_4 xz "} {
		if !strings.Contains(string(out), want) {
			t.Errorf("rpm -qp doesn't say %q:\n%s", want, out)
		}
	}
	if lists, err := filepath.Glob(filepath.Join(dir, "repodata/*-primary.xml.zst")); err != nil || len(lists) != 1 || !exists(filepath.Join(dir, "repodata/repomd.xml.asc")) {
		t.Errorf("%q is in repodata, %v; want one primary.xml.zst and a signature", lists, err)
	}
}

// pacman reads the database, whatever it's packed with, and finds and verifies a package.
func TestPacman(t *testing.T) {
	programs(t, "pacman")
	release := "6.8.1-arch1-1"
	dir := Mirror(t, Pacman{Name: "core", Packages: []Package{
		{Name: "linux-headers", Version: "6.8.1.arch1-1", Arch: "x86_64", Depends: []string{"pahole"}, Files: Headers(t, release, "").OneFolder("usr/lib/modules/" + release + "/build")},
		{Name: "pahole", Version: "1:1.26-1", Arch: "x86_64", Compression: "xz", Files: Files{"usr/bin/pahole": Text("#!/bin/sh\n")}}}, Index: "zst"})
	root := t.TempDir()
	for _, d := range []string{"db", "cache"} {
		if err := os.Mkdir(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	conf := filepath.Join(root, "pacman.conf")
	text := "[options]\nArchitecture = x86_64\nSigLevel = Never\n[core]\nServer = " + Serve(t, dir) + "/$repo/os/$arch\n"
	if err := os.WriteFile(conf, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"--config", conf, "--dbpath", filepath.Join(root, "db"), "--cachedir", filepath.Join(root, "cache"), "--logfile", "/dev/null", "--noconfirm"}
	if _, err := run("", "", "pacman", append(args, "-Sy")...); err != nil {
		t.Fatal(err)
	}
	out, err := run("", "", "pacman", append(args, "-Si", "linux-headers", "pahole")...)
	if err != nil || !strings.Contains(string(out), "1:1.26-1") || !strings.Contains(string(out), "Signature") {
		t.Errorf("pacman -Si: %v\n%s; want a version and that a signature is there", err, out)
	}
	if _, err := run("", "", "pacman", append(args, "-Sw", "pahole")...); err != nil {
		t.Errorf("pacman -Sw: %v", err)
	}
}
