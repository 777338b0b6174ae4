package cli

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"

	"github.com/godkms-hermetic/godkms-hermetic/builder/sandbox"
	"github.com/godkms-hermetic/godkms-hermetic/internal/distrotest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// rpmRow is a suite of an RPM distribution, as a test makes it. Its packages are signed where its indexes aren't.
type rpmRow struct {
	distro, suite string
	signed        bool                              // its indexes are
	index, sum    string                            // compression of its lists of packages, and what pins these
	repos         map[string][][]distrotest.Package // by path below the archive
	list          string                            // a mirror.list that leads to the repository
	mirrors       []string                          // folders that are mirrors of the archive; none: all is one
	flavours      map[string]string                 // of its kernels, by release
	latest        string
}

// What distributions' compilers say of themselves.
const (
	redHatGCC = "gcc (GCC) 12.2.1 20221121 (Red Hat 12.2.1-7)"
	suseGCC   = "gcc (SUSE Linux) 12.2.1 20220830 [revision e927d1cf141f221c5a32574bde0913307e140984]"
	amazonGCC = "gcc12-gcc (GCC) 12.2.1 20221121 (Red Hat 12.2.1-7)"
)

// rpmTools are a toolchain in the names of RPM distributions, without the compiler.
func rpmTools(t *testing.T) (tools []distrotest.Package, gcc distrotest.Group) {
	t.Helper()
	for name, g := range distrotest.Tools(t, distrotest.Lib64) {
		p := distrotest.Package{Name: name, Version: "2.0-1", Arch: "x86_64", Files: g.Files}
		switch name {
		case "gcc":
			gcc = g
			continue
		case "dash": // there is none
			continue
		case "awk":
			p.Name, p.Files = "gawk", g.Files.Rename(func(string) string { return "usr/bin/gawk" })
		case "binutils":
			p.Files = g.Files.Rename(func(name string) string {
				if name == "usr/bin/ld" || name == "usr/bin/x86_64-linux-gnu-ld" { // what alternatives make
					return ""
				}
				return name
			})
		case "kmod":
			p.Files = g.Files.Rename(func(name string) string { return strings.Replace(name, "/sbin/", "/bin/", 1) })
		}
		for _, lib := range g.Has {
			p.Provides = append(p.Provides, lib+"()(64bit)")
		}
		for _, lib := range g.Needs {
			p.Depends = append(p.Depends, lib+"()(64bit)")
		}
		tools = append(tools, p)
	}
	filesystem := distrotest.Files{"bin": distrotest.Link("usr/bin"), "lib64": distrotest.Link("usr/lib64"), "sbin": distrotest.Link("usr/sbin"),
		"usr/sbin": distrotest.Link("bin")}
	return append(tools, distrotest.Package{Name: "bc", Version: "1.07-1", Arch: "x86_64", Files: distrotest.Files{"usr/share/doc/bc/NEWS": distrotest.Text("bc\n")}},
		distrotest.Package{Name: "filesystem", Version: "3.18-1", Arch: "x86_64", Files: filesystem}), gcc
}

// headersOf is a package of headers as Red Hat's distributions have it: kernel-rt-devel of 5.14.0-427.el9.x86_64+rt.
func headersOf(t *testing.T, name, release, compiler, compression string, says ...string) distrotest.Package {
	t.Helper()
	version, suffix, _ := strings.Cut(release, ".x86_64")
	p := distrotest.Package{Name: name, Version: version, Arch: "x86_64", Compression: compression,
		Depends: []string{"/usr/bin/find", "make", "kernel-core-uname-r = " + version + ".x86_64" + suffix, // the kernel itself isn't there
			"(gcc or clang or gcc-toolset-12-gcc or gcc12)"},
		Files: distrotest.Headers(t, release, compiler).OneFolder("usr/src/kernels/" + release)}
	for _, name := range says {
		p.Provides = append(p.Provides, name+" = "+version+".x86_64"+suffix)
	}
	return p
}

// suseHeaders are the two packages of headers of SUSE, whose own release counts rebuilds.
func suseHeaders(t *testing.T, version, release, flavour, rebuild, compression string) []distrotest.Package {
	t.Helper()
	full := version + "-" + release
	shared, own := distrotest.Headers(t, full+"-"+flavour, suseGCC).TwoFolders("usr/src/linux-"+full, "usr/src/linux-"+full+"-obj/x86_64/"+flavour)
	own["usr/src/linux-"+full+"-obj/x86_64/"+flavour+"/Makefile"] = distrotest.Text("include ../../../linux-" + full + "/Makefile\n")
	return []distrotest.Package{
		{Name: "kernel-devel", Version: full + rebuild, Arch: "noarch", Provides: []string{"kernel-devel = " + full, "multiversion(kernel)"}, Files: shared, Compression: compression},
		{Name: "kernel-" + flavour + "-devel", Version: full + rebuild, Arch: "x86_64", Depends: []string{"kernel-devel = " + full},
			Provides: []string{"kernel-" + flavour + "-devel = " + full, "multiversion(kernel)"}, Files: own, Compression: compression},
	}
}

// rpmRows are the distributions, each in its own layout.
func rpmRows(t *testing.T) []rpmRow {
	t.Helper()
	type list = []distrotest.Package
	tools, gcc := rpmTools(t)
	named := func(name string, files distrotest.Files) list {
		p := distrotest.Package{Name: name, Version: "12.2.1-7", Arch: "x86_64", Files: files}
		for _, lib := range gcc.Needs {
			p.Depends = append(p.Depends, lib+"()(64bit)")
		}
		return list{p}
	}
	without := gcc.Files.Rename(func(name string) string {
		if name == "usr/bin/gcc" {
			return ""
		}
		return name
	})
	redHat, suse, toolset := named("gcc", gcc.Files), named("gcc12", without), named("gcc-toolset-12-gcc", gcc.Files.Below("opt/rh/gcc-toolset-12/root"))
	amazon := named("gcc12", gcc.Files.With(distrotest.Files{"usr/bin/gcc12-gcc": distrotest.Link("gcc-12")}))
	other := func(version string) list { // that is not the kernel's
		return list{{Name: "gcc", Version: version, Arch: "x86_64", Files: distrotest.Files{
			"usr/bin/gcc": {Text: "#!/bin/sh\necho this is another gcc >&2\nexit 1\n", Exec: true}}}}
	}
	uname := "kernel-devel-uname-r"
	sles := func(module, kind string) string { return kind + "/SLE-Module-" + module + "/15-SP6/x86_64/" }
	return []rpmRow{
		{distro: "fedora", suite: "43", index: "zst", latest: "6.17.5-300.fc43.x86_64",
			flavours: map[string]string{"6.17.1-300.fc43.x86_64": "default", "6.17.5-300.fc43.x86_64": "default"},
			repos: map[string][][]distrotest.Package{
				"releases/43/Everything/x86_64/os": {tools, redHat, {headersOf(t, "kernel-devel", "6.17.1-300.fc43.x86_64", redHatGCC, "zstd", uname)}},
				"updates/43/Everything/x86_64":     {{headersOf(t, "kernel-devel", "6.17.5-300.fc43.x86_64", redHatGCC, "zstd", uname)}},
			}},
		{distro: "centos", suite: "9", signed: true, index: "gz", latest: "5.14.0-580.el9.x86_64",
			flavours: map[string]string{"5.14.0-580.el9.x86_64": "default"},
			repos: map[string][][]distrotest.Package{
				"9-stream/BaseOS/x86_64/os":    {tools},
				"9-stream/AppStream/x86_64/os": {redHat, other("12.3.1-1"), {headersOf(t, "kernel-devel", "5.14.0-580.el9.x86_64", redHatGCC, "zstd", uname)}},
			}},
		{distro: "rocky", suite: "9", signed: true, index: "gz", mirrors: []string{"/pub/rocky", "/vault/rocky/9.4"}, latest: "5.14.0-427.13.1.el9_4.x86_64",
			flavours: map[string]string{"5.14.0-427.13.1.el9_4.x86_64": "default", "5.14.0-427.13.1.el9_4.x86_64+rt": "rt",
				"5.14.0-427.13.1.el9_4.x86_64+64k": "64k", "5.14.0-427.13.1.el9_4.x86_64+debug": "debug"},
			repos: map[string][][]distrotest.Package{
				"pub/rocky/9/BaseOS/x86_64/os": {tools},
				"pub/rocky/9/AppStream/x86_64/os": {redHat, {headersOf(t, "kernel-devel", "5.14.0-427.13.1.el9_4.x86_64", redHatGCC, "zstd", uname),
					headersOf(t, "kernel-64k-devel", "5.14.0-427.13.1.el9_4.x86_64+64k", redHatGCC, "zstd", uname),
					headersOf(t, "kernel-debug-devel", "5.14.0-427.13.1.el9_4.x86_64+debug", redHatGCC, "zstd")}},
				"vault/rocky/9.4/RT/x86_64/os": {{headersOf(t, "kernel-rt-devel", "5.14.0-427.13.1.el9_4.x86_64+rt", redHatGCC, "zstd", uname)}},
			}},
		{distro: "almalinux", suite: "8", signed: true, index: "gz", latest: "4.18.0-553.el8_10.x86_64",
			flavours: map[string]string{"4.18.0-553.el8_10.x86_64": "default"},
			repos: map[string][][]distrotest.Package{
				"8/BaseOS/x86_64/os":    {tools, {headersOf(t, "kernel-devel", "4.18.0-553.el8_10.x86_64", redHatGCC, "xz", uname)}},
				"8/AppStream/x86_64/os": {redHat},
			}},
		{distro: "rhel", suite: "10", index: "xz", latest: "6.12.0-55.9.1.el10_0.x86_64",
			flavours: map[string]string{"6.12.0-55.9.1.el10_0.x86_64": "default"},
			repos: map[string][][]distrotest.Package{
				"rhel10/10/x86_64/baseos/os":    {tools},
				"rhel10/10/x86_64/appstream/os": {redHat, {headersOf(t, "kernel-devel", "6.12.0-55.9.1.el10_0.x86_64", redHatGCC, "gzip", uname)}},
			}},
		{distro: "ol", suite: "9", index: "gz", latest: "5.15.0-100.96.32.el9uek.x86_64",
			flavours: map[string]string{"5.15.0-100.96.32.el9uek.x86_64": "uek"},
			repos: map[string][][]distrotest.Package{
				"OL9/baseos/latest/x86_64": {tools},
				"OL9/appstream/x86_64":     {other("11.4.1-3"), toolset},
				"OL9/UEKR7/x86_64":         {{headersOf(t, "kernel-uek-devel", "5.15.0-100.96.32.el9uek.x86_64", redHatGCC, "xz", "kernel-uek-devel-uname-r")}},
			}},
		{distro: "opensuse-leap", suite: "15.6", signed: true, index: "gz", latest: "6.4.0-150600.23.7-default",
			flavours: map[string]string{"6.4.0-150600.21-default": "default", "6.4.0-150600.23.7-default": "default"},
			repos: map[string][][]distrotest.Package{
				"distribution/leap/15.6/repo/oss": {tools, suse, suseHeaders(t, "6.4.0", "150600.21", "default", ".3", "xz")},
				"update/leap/15.6/sle":            {suseHeaders(t, "6.4.0", "150600.23.7", "default", ".4", "xz")},
			}},
		{distro: "opensuse-tumbleweed", suite: "rolling", signed: true, index: "gz", sum: "sha512", latest: "6.17.8-1-default",
			flavours: map[string]string{"6.17.8-1-default": "default"},
			repos: map[string][][]distrotest.Package{
				"tumbleweed/repo/oss": {tools, suse, suseHeaders(t, "6.17.8", "1", "default", ".2", "zstd")},
			}},
		{distro: "sles", suite: "15.6", signed: true, index: "gz", latest: "6.4.0-150600.23.60-default",
			flavours: map[string]string{"6.4.0-150600.23.60-default": "default"},
			repos: map[string][][]distrotest.Package{
				sles("Basesystem", "Products") + "product":        {tools},
				sles("Basesystem", "Updates") + "update":          {suseHeaders(t, "6.4.0", "150600.23.60", "default", ".5", "xz")},
				sles("Development-Tools", "Products") + "product": {suse},
			}},
		{distro: "amzn", suite: "2023", index: "gz", list: "x86_64/mirror.list", latest: "6.1.90-99.173.amzn2023.x86_64",
			flavours: map[string]string{"6.1.90-99.173.amzn2023.x86_64": "default", "6.12.20-23.97.amzn2023.x86_64": "6.12"},
			repos: map[string][][]distrotest.Package{
				"guids/0123456789abcdef/x86_64": {tools, amazon, {headersOf(t, "kernel-devel", "6.1.90-99.173.amzn2023.x86_64", redHatGCC, "zstd", uname),
					headersOf(t, "kernel6.12-devel", "6.12.20-23.97.amzn2023.x86_64", amazonGCC, "zstd", uname)}},
			}},
	}
}

// serve makes the repositories, and gives the flags that say where the distribution's archive is. What is sent spoil may change.
func (r rpmRow) serve(t *testing.T, signPackages bool, spoil func(path string, body []byte) []byte) (flags []string) {
	t.Helper()
	dirs := map[string]http.Handler{}
	for at, lists := range r.repos {
		dir := distrotest.YUM{Packages: lists, Index: r.index, Sum: r.sum, SignPackages: signPackages, SignIndex: r.signed}.Repository(t)
		dirs["/"+at+"/"] = http.StripPrefix("/"+at, http.FileServer(http.Dir(dir)))
	}
	var s *httptest.Server
	s = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/"+r.list {
			fmt.Fprintf(w, "%s/guids/0123456789abcdef/$basearch/\n", s.URL)
			return
		}
		for at, h := range dirs {
			if !strings.HasPrefix(req.URL.Path, at) {
				continue
			}
			if spoil == nil {
				h.ServeHTTP(w, req)
				return
			}
			got := httptest.NewRecorder()
			h.ServeHTTP(got, req)
			w.WriteHeader(got.Code)
			w.Write(spoil(req.URL.Path, got.Body.Bytes()))
			return
		}
		http.NotFound(w, req)
	}))
	t.Cleanup(s.Close)
	for _, m := range append(r.mirrors, "")[:max(1, len(r.mirrors))] {
		flags = append(flags, "--mirror", r.distro+"="+s.URL+m)
	}
	return flags
}

// Every RPM distribution, from repositories in its layout, with its names, compressions and signatures: what it has is listed, locked, and
// built for.
func TestRPMDistributions(t *testing.T) {
	t.Parallel()
	if kernels.HostArch() != "amd64" {
		need.Skip(t, "the packages are amd64's")
	}
	if err := (sandbox.Engine{}).Check(t.Context()); err != nil {
		need.Skip(t, "no sandbox: %v", err)
	}
	cache := t.TempDir()
	kept := filepath.Join(sharedCache(t), "rpm/images") // roots are kept between runs
	if err := os.MkdirAll(kept, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(kept, filepath.Join(cache, "images")); err != nil {
		t.Fatal(err)
	}
	keys := distrotest.Keyring(t)
	var args, selectors []string
	rows := rpmRows(t)
	for _, r := range rows {
		args = append(args, r.serve(t, r.distro != "opensuse-leap", nil)...)
		for release := range r.flavours {
			switch r.distro {
			case "fedora", "ol", "opensuse-tumbleweed", "amzn": // nobody else has such a name
				selectors = append(selectors, release)
			default:
				selectors = append(selectors, r.distro+"/"+r.suite+":"+release)
			}
		}
	}
	slices.Sort(selectors)
	args = append(args, "--cache-dir", cache, "--format", "json")

	var built struct{ Results []ui.Result }
	said := runRPM(t, keys, 0, &built, append([]string{"build", "../../testdata/hello", "--kernels", strings.Join(selectors, ","), "--out", cache + "/out",
		"--engine", "sandbox"}, args...)...)
	results := map[string]ui.Result{}
	for _, res := range built.Results {
		results[res.Kernel] = res
	}
	for _, r := range rows {
		t.Run(r.distro, func(t *testing.T) {
			var list struct{ Kernels []kernels.Candidate }
			runRPM(t, keys, 0, &list, append([]string{"kernels", r.distro + "/" + r.suite}, args...)...)
			got := map[string]string{}
			for _, k := range list.Kernels {
				got[k.Release] = k.Flavour
				if k.Latest != (k.Release == r.latest) || k.Date.IsZero() || k.Compiler != "gcc-12" {
					t.Errorf("%+v; want gcc-12, a date, and %s as the latest", k, r.latest)
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(r.flavours) {
				t.Errorf("it lists %v; want %v", got, r.flavours)
			}
			for release := range r.flavours {
				res := results[r.distro+"/"+r.suite+":"+release]
				if res.Status != ui.Built || res.Compiler != "gcc-12" || len(res.Modules) != 1 {
					t.Fatalf("%s: %+v; want it built with gcc-12\n%s", release, res, said)
				}
				if got, want := res.Modules[0].Vermagic, release+" SMP preempt mod_unload modversions"; got != want {
					t.Errorf("vermagic %q; want %q", got, want)
				}
			}
		})
	}
	t.Run("lock", func(t *testing.T) { lockAgain(t, keys, cache, selectors, args, results) })
	layout := "oci:" + t.TempDir()
	runRPM(t, keys, 0, nil, "push", layout, "hello/1.0", "--cache-dir", cache)
	for _, r := range rows {
		t.Run("host/"+r.distro, func(t *testing.T) { installOn(t, r, layout, results[r.distro+"/"+r.suite+":"+r.latest].Modules[0]) })
	}
}

// installOn has a host of a distribution install what was built for its kernel, which is told by the host's os-release.
func installOn(t *testing.T, r rpmRow, layout string, built ui.Module) {
	t.Helper()
	root := t.TempDir()
	version := r.suite
	if r.suite == "9" {
		version = "9.4"
	}
	text := fmt.Sprintf("ID=%q\nVERSION_ID=%q\n", r.distro, version)
	if err := errors.Join(os.Mkdir(filepath.Join(root, "etc"), 0o755), os.WriteFile(filepath.Join(root, "etc/os-release"), []byte(text), 0o644),
		os.MkdirAll(filepath.Join(root, "lib/modules", r.latest, "kernel"), 0o755)); err != nil {
		t.Fatal(err)
	}
	of := filepath.Join(root, "lib/modules", r.latest)
	module, err := os.ReadFile(built.Path)
	if err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string][]byte{"kernel/own.ko": module, "modules.order": []byte("kernel/own.ko\n"), "modules.builtin": nil} {
		if err := os.WriteFile(filepath.Join(of, name), body, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, args := range [][]string{{"add", layout}, {"install", "hello/1.0"}} {
		runRPM(t, nil, 0, nil, append(args, "--root", root, "--cache-dir", filepath.Join(root, "cache"), "--offline")...)
	}
	found, err := filepath.Glob(of + "/*/hello.ko*")
	if deps, _ := os.ReadFile(filepath.Join(of, "modules.dep")); err != nil || len(found) != 1 || !strings.Contains(string(deps), filepath.Base(found[0])) {
		t.Errorf("%v, %v; want the module once, and depmod's %q to know it", found, err, deps)
	}
}

// What can't be had is named, with what to do.
func TestRPMNotFound(t *testing.T) {
	t.Parallel()
	if kernels.HostArch() != "amd64" {
		need.Skip(t, "the packages are amd64's")
	}
	var rocky, centos rpmRow
	for _, r := range rpmRows(t) {
		switch r.distro {
		case "rocky":
			rocky = r
		case "centos":
			centos = r
		}
	}
	r := "rocky/9:5.14.0-427.13.1.el9_4.x86_64"
	vault := rocky.serve(t, true, nil)[2:]
	toolless := centos
	toolless.repos = map[string][][]distrotest.Package{"9-stream/BaseOS/x86_64/os": centos.repos["9-stream/BaseOS/x86_64/os"],
		"9-stream/AppStream/x86_64/os": centos.repos["9-stream/AppStream/x86_64/os"][1:]}
	for _, c := range []struct {
		kernel string
		flags  []string
		want   []string
	}{
		{"rhel/9:5.14.0-1.el9.x86_64", nil, []string{"rhel has no public mirror", "--mirror rhel=https://"}},
		{"sles/15.6:latest", nil, []string{"sles has no public mirror", "--mirror sles=https://"}},
		{"rocky/8:4.18.0-553.el8_10.x86_64", vault, []string{"none of the mirrors of rocky has release 8"}},
		{strings.Replace(r, "13.1", "13.2", 1), rocky.serve(t, true, nil), []string{"near are", "5.14.0-427.13.1.el9_4.x86_64"}},
		{"centos/9:latest", append(centos.serve(t, true, nil), "--with", "gaw"), []string{"no package", "near are", "gawk"}},
		{"centos/9:latest", append(toolless.serve(t, true, nil), "--compiler", "gcc-13"), []string{"gcc-13", "there are gcc-12"}},
	} {
		said := runRPM(t, distrotest.Keyring(t), exitNoKernel, nil, append([]string{"build", "../../testdata/hello", "--kernels", c.kernel,
			"--cache-dir", t.TempDir()}, c.flags...)...)
		for _, want := range c.want {
			if !strings.Contains(said, want) {
				t.Errorf("%s: it says %q; want %q in it", c.kernel, said, want)
			}
		}
	}
}

// What nobody vouches for isn't used.
func TestRPMFaults(t *testing.T) {
	t.Parallel()
	if kernels.HostArch() != "amd64" {
		need.Skip(t, "the packages are amd64's")
	}
	rows, ours := map[string]rpmRow{}, distrotest.Keyring(t)
	for _, r := range rpmRows(t) {
		rows[r.distro] = r
	}
	other, err := openpgp.NewEntity("somebody else", "", "else@example.org", nil)
	if err != nil {
		t.Fatal(err)
	}
	unsigned := rows["rocky"]
	unsigned.signed = false
	cut := func(path string, body []byte) []byte {
		if strings.Contains(path, "-primary.xml") {
			return body[:len(body)/2]
		}
		return body
	}
	altered := func(offset int) func(path string, body []byte) []byte {
		return func(path string, body []byte) []byte {
			if strings.Contains(path, "/kernel-") {
				body[(len(body)+offset)%len(body)] ^= 1
			}
			return body
		}
	}
	for name, c := range map[string]struct {
		row   rpmRow
		sign  bool
		keys  openpgp.EntityList
		spoil func(path string, body []byte) []byte
		want  string
	}{
		"packages without a signature":    {rows["fedora"], false, ours, nil, "is not signed"},
		"packages of another key":         {rows["fedora"], true, openpgp.EntityList{other}, nil, "none of the distribution's keys"},
		"an index without a signature":    {unsigned, true, ours, nil, "repodata/repomd.xml.asc is not beside it"},
		"an index of another key":         {rows["opensuse-leap"], false, openpgp.EntityList{other}, nil, "none of the distribution's keys"},
		"a list that was cut":             {rows["fedora"], true, ours, cut, "it ends after"},
		"a package altered in its header": {rows["fedora"], true, ours, altered(2000), "not the file that the signed index describes"},
		"a package altered at its end":    {rows["rhel"], true, ours, altered(-9), "not the file that the signed index describes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var built struct{ Results []ui.Result }
			runRPM(t, c.keys, exitNoKernel, &built, append([]string{"build", "../../testdata/hello", "--kernels", c.row.distro + "/" + c.row.suite + ":" + c.row.latest,
				"--cache-dir", t.TempDir(), "--format", "json"}, c.row.serve(t, c.sign, c.spoil)...)...)
			if len(built.Results) != 1 || !strings.Contains(built.Results[0].Reason, c.want) {
				t.Errorf("%+v; want a reason with %q", built.Results, c.want)
			}
		})
	}
}

// runRPM runs the program with other keys, and gives what it says.
func runRPM(t *testing.T, keys openpgp.EntityList, want int, v any, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	a := &app{stdout: &out, stderr: &errs, env: os.Getenv, keyring: keys}
	if code := a.run(t.Context(), args); code != want {
		t.Fatalf("godkms-hermetic %s: exit code %d; want %d\n%s%s", strings.Join(args, " "), code, want, &out, &errs)
	}
	if v != nil {
		if err := json.Unmarshal(out.Bytes(), v); err != nil {
			t.Fatal(err)
		}
	}
	return errs.String()
}
