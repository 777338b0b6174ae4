package cli

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/builder/sandbox"
	"github.com/godkms-hermetic/godkms-hermetic/internal/distrotest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/pacman"
)

// archSonames are the packages that Arch has libraries in, where they aren't called like those.
var archSonames = map[string]string{"libacl.so.1": "acl", "libattr.so.1": "attr", "libcrypto.so.3": "openssl", "libgmp.so.10": "gmp", "libjansson.so.4": "jansson",
	"liblzma.so.5": "xz", "libmpfr.so.6": "mpfr", "libpcre2-8.so.0": "pcre2", "libtinfo.so.6": "ncurses", "libz.so.1": "zlib", "libzstd.so.1": "zstd",
	"libsframe.so.0": "binutils"}

var soname = regexp.MustCompile(`^(.*\.so)\.([0-9]+)$`)

var _ prober = (*pacman.Provider)(nil) // doctor asks its mirrors

// archTools are a toolchain in the names, places and kinds of dependencies of Arch.
func archTools(t *testing.T) []distrotest.Package {
	t.Helper()
	all := map[string]*distrotest.Package{}
	add := func(name string, files distrotest.Files) *distrotest.Package {
		p := all[name]
		if p == nil {
			p = &distrotest.Package{Name: name, Version: "1.0-1", Arch: "x86_64", Files: distrotest.Files{}}
			all[name] = p
		}
		p.Files = p.Files.With(files)
		return p
	}
	provided := func(lib string) string { // as a dependency, and a provide
		if m := soname.FindStringSubmatch(lib); m != nil {
			return m[1] + "=" + m[2] + "-64"
		}
		return ""
	}
	home := func(lib string) string {
		if name := archSonames[lib]; name != "" {
			return name
		}
		name, _, _ := strings.Cut(lib, ".so")
		return name
	}
	tools := distrotest.Tools(t, distrotest.Lib)
	glibc := tools["glibc"]
	for name, g := range tools {
		if name == "dash" {
			continue
		}
		if name == "libs" {
			for _, lib := range g.Has {
				base, _, _ := strings.Cut(lib, ".so.")
				files := g.Files.Rename(func(name string) string {
					if strings.HasPrefix(filepath.Base(name), base+".") || strings.HasPrefix(filepath.Base(name), base+"-") {
						return name
					}
					return ""
				})
				p := add(home(lib), files)
				p.Provides = append(p.Provides, provided(lib))
				p.Depends = append(p.Depends, "glibc>=2.27")
			}
			continue
		}
		to, files := name, g.Files
		if name == "awk" {
			to, files = "gawk", distrotest.Files{"usr/bin/gawk": g.Files["usr/bin/mawk"]}
		}
		p := add(to, files.Rename(func(name string) string { return strings.Replace(name, "usr/sbin/", "usr/bin/", 1) }))
		for _, lib := range g.Needs {
			d := provided(lib)
			if slices.Contains(glibc.Has, lib) {
				d = "glibc"
			}
			if d != "" && home(lib) != to {
				p.Depends = append(p.Depends, d)
			}
		}
	}
	all["glibc"].Version, all["glibc"].Depends = "2.36-6", []string{"filesystem"}
	all["bash"].Provides = []string{"sh"}
	all["gcc"].Version, all["gcc"].Depends = "12.2.1+r3+gabcdef-1", append(all["gcc"].Depends, "binutils>=1.0", "gcc-libs=12.2.1+r3+gabcdef-1")
	add("gcc-libs", distrotest.Files{"usr/share/gcc-libs": distrotest.Text("\n")}).Version = "12.2.1+r3+gabcdef-1"
	add("bc", distrotest.Files{"usr/share/bc": distrotest.Text("\n")})
	add("pahole", distrotest.Files{"usr/share/pahole": distrotest.Text("\n")}).Depends = []string{"libelf.so=1-64"}
	add("filesystem", distrotest.Files{"bin": distrotest.Link("usr/bin"), "lib": distrotest.Link("usr/lib"), "lib64": distrotest.Link("usr/lib"),
		"sbin": distrotest.Link("usr/bin"), "usr/lib64": distrotest.Link("lib"), "usr/sbin": distrotest.Link("bin")}).Arch = "any"
	var out []distrotest.Package
	for _, p := range all {
		slices.Sort(p.Depends)
		slices.Sort(p.Provides)
		p.Depends, p.Provides = slices.Compact(p.Depends), slices.Compact(p.Provides)
		out = append(out, *p)
	}
	return out
}

// archHeaders is a header package as Arch has it.
func archHeaders(t *testing.T, name, version, release, compression string) distrotest.Package {
	t.Helper()
	build := "usr/lib/modules/" + release + "/build"
	return distrotest.Package{Name: name, Version: version, Arch: "x86_64", Depends: []string{"pahole"}, Compression: compression,
		Files: distrotest.Headers(t, release, "gcc (GCC) 12.2.1 20230801").OneFolder(build).With(distrotest.Files{"usr/src/" + strings.TrimSuffix(name, "-headers"): distrotest.Link("/" + build)})}
}

// Modules are built on an Arch mirror's packages, for kernels of today and of a dated folder of its archive. What isn't signed, or was
// altered, or cut off, comes to nothing.
func TestArch(t *testing.T) {
	t.Parallel()
	if kernels.HostArch() != "amd64" {
		need.Skip(t, "the packages are amd64's")
	}
	if err := (sandbox.Engine{}).Check(t.Context()); err != nil {
		need.Skip(t, "no sandbox: %v", err)
	}
	keys, tools := distrotest.Keyring(t), archTools(t)
	core := distrotest.Pacman{Name: "core", Index: "zst", Packages: append(slices.Clone(tools),
		archHeaders(t, "linux-headers", "6.8.9.arch1-2", "6.8.9-arch1-2", "zstd"), archHeaders(t, "linux-lts-headers", "6.6.30-1", "6.6.30-1-lts", "zstd"))}
	extra := distrotest.Pacman{Name: "extra", NoSignatures: true, Packages: []distrotest.Package{
		archHeaders(t, "linux-zen-headers", "6.8.9.zen1-1", "6.8.9-zen1-1-zen", "zstd"),
		archHeaders(t, "linux-hardened-headers", "6.8.9.hardened1-1", "6.8.9-hardened1-1-hardened", "zstd")}}
	today := distrotest.Mirror(t, core, extra)
	then := distrotest.Mirror(t, distrotest.Pacman{Name: "core", Packages: []distrotest.Package{archHeaders(t, "linux-headers", "6.8.arch1-1", "6.8.0-arch1-1", "xz")}},
		distrotest.Pacman{Name: "extra", Index: "xz", Packages: []distrotest.Package{{Name: "pahole", Version: "0.9-1", Arch: "x86_64", Files: distrotest.Files{"usr/share/pahole": distrotest.Text("old\n")}}}})

	cache := t.TempDir()
	kept := filepath.Join(sharedCache(t), "arch/images") // roots are kept between runs
	if err := errors.Join(os.MkdirAll(kept, 0o755), os.Symlink(kept, filepath.Join(cache, "images"))); err != nil {
		t.Fatal(err)
	}
	args := []string{"--mirror", "arch=" + distrotest.Serve(t, today), "--mirror", "arch=" + distrotest.Serve(t, then), "--cache-dir", cache, "--format", "json"}
	releases := map[string]string{"6.8.9-arch1-2": "arch", "6.8.0-arch1-1": "arch", "6.6.30-1-lts": "lts", "6.8.9-zen1-1-zen": "zen", "6.8.9-hardened1-1-hardened": "hardened"}

	// Their names alone say whose kernels they are.
	var built struct{ Results []ui.Result }
	said := runRPM(t, keys, 0, &built, append([]string{"build", "../../testdata/hello", "--kernels", "arch/rolling:latest,6.8.0-arch1-1,6.6.30-1-lts,6.8.9-zen1-1-zen", "--out", cache + "/out", "--engine", "sandbox"}, args...)...)
	if len(built.Results) != 4 {
		t.Fatalf("%+v; want 4 results\n%s", built, said)
	}
	for _, r := range built.Results {
		release, ok := strings.CutPrefix(r.Kernel, "arch/rolling:")
		if !ok || releases[release] == "" || r.Status != ui.Built || r.Compiler != "gcc-12" || len(r.Modules) != 1 ||
			r.Modules[0].Vermagic != release+" SMP preempt mod_unload modversions" {
			t.Errorf("%+v; want it built with gcc-12\n%s", r, said)
		}
	}
	var list struct{ Kernels []kernels.Candidate }
	runRPM(t, keys, 0, &list, append([]string{"kernels", "arch"}, args...)...)
	for _, k := range list.Kernels {
		compiler := "gcc-12"
		if k.Flavour == "hardened" { // whose headers nothing has read yet
			compiler = ""
		}
		if releases[k.Release] != k.Flavour || k.Latest != (k.Release == "6.8.9-arch1-2") || k.Compiler != compiler || k.Date.IsZero() {
			t.Errorf("%+v; want %s, and the compiler %q", k, releases[k.Release], compiler)
		}
	}
	if len(list.Kernels) != len(releases) {
		t.Errorf("%d kernels; want %d", len(list.Kernels), len(releases))
	}

	// What is locked needs no database any more, and comes to the same.
	file := filepath.Join(cache, "godkms.lock")
	runRPM(t, keys, 0, nil, append([]string{"lock", "../../testdata/hello", "--kernels", "6.6.30-1-lts", "-o", file}, args...)...)
	if err := os.RemoveAll(filepath.Join(cache, "index")); err != nil {
		t.Fatal(err)
	}
	var again struct{ Results []ui.Result }
	runRPM(t, keys, 0, &again, "build", "../../testdata/hello", "--lock", file, "--offline", "--engine", "sandbox", "--out", cache+"/again", "--cache-dir", cache, "--format", "json")
	if r := again.Results; len(r) != 1 || r[0].Status != ui.Cached || r[0].Kernel != "arch/rolling:6.6.30-1-lts" {
		t.Errorf("with the lock: %+v; want it cached", r)
	}

	for name, change := range map[string]func(dir string) error{
		"unsigned": func(dir string) error {
			return os.Remove(dir + "/extra/os/x86_64/linux-zen-headers-6.8.9.zen1-1-x86_64.pkg.tar.zst.sig")
		},
		"altered": func(dir string) error {
			return replace(dir+"/extra/os/x86_64/linux-zen-headers-6.8.9.zen1-1-x86_64.pkg.tar.zst", func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
		},
		"cut off": func(dir string) error {
			return replace(dir+"/core/os/x86_64/core.db", func(b []byte) []byte { return b[:len(b)-100] })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := distrotest.Copy(t, today)
			if err := change(dir); err != nil {
				t.Fatal(err)
			}
			said := runRPM(t, keys, exitNoKernel, nil, "build", "../../testdata/hello", "--kernels", "arch/rolling:6.8.9-zen1-1-zen", "--engine", "sandbox",
				"--mirror", "arch="+distrotest.Serve(t, dir), "--cache-dir", t.TempDir(), "--out", t.TempDir())
			if !strings.Contains(said, "another mirror") && !strings.Contains(said, "another --mirror") {
				t.Errorf("it says what to do nowhere:\n%s", said)
			}
		})
	}
}

// replace puts another file into a file's place, whose content is another repository's too.
func replace(name string, change func([]byte) []byte) error {
	b, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	return errors.Join(os.Remove(name), os.WriteFile(name, change(b), 0o644))
}
