package deb

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

func TestClaims(t *testing.T) {
	const (
		debians = "sid forky trixie bookworm bullseye"
		ubuntus = "stonking resolute noble jammy focal"
	)
	for _, c := range []struct{ release, debian, ubuntu string }{
		{"6.1.0-56-amd64", debians, ""},
		{"6.1.0-56-cloud-amd64", debians, ""},
		{"6.1.0-0.deb11.21-amd64", "bullseye", ""},
		{"6.12.115+deb13-amd64", "trixie", ""},
		{"6.12.117+deb12-rt-amd64", "bookworm", ""},
		{"6.17.8+deb14-arm64-16k", "sid forky", ""},
		{"7.1.3+deb15-amd64", "sid", ""},
		{"6.12.9+bpo-amd64", debians, ""},
		{"6.8.0-31-generic", "", ubuntus},
		{"6.8.0-1008-aws", "", ubuntus},
		{"6.8.0-1008-aws-64k", "", ubuntus},
		{"5.15.0-100-lowlatency", "", ubuntus},
		{"6.8.0-31-generic-64k", "", ubuntus},
		{"6.8.9-300.fc40.x86_64", "", ""},
		{"6.4.0-150600.21-default", "", ""},
		{"6.8.0-arch1-1", "", ""},
		{"5.14.0-427.13.1.el9_4.x86_64", "", ""},
		{"6.1.90-99.173.amzn2023.x86_64", "", ""},
		{"6.*-amd64", debians, ""},
		{"*+deb13-*", "trixie", ""},
		{"6.8.0-*", debians, ubuntus},
		{"*", debians, ubuntus},
		{"6.8.0-31-gener?c", "", ubuntus},
		{"[", "", ""},
	} {
		for name, want := range map[string]string{"debian": c.debian, "ubuntu": c.ubuntu} {
			p, err := New(name, Options{CacheDir: t.TempDir(), Etc: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.Join(p.Claims(c.release), " "); got != want {
				t.Errorf("%s claims %q for %s; want %s", name, c.release, got, want)
			}
		}
	}
}

// ubuntuPackages is a suite's own kernel, with its metapackage and one for a cloud, and one for newer hardware.
var ubuntuPackages = strings.ReplaceAll(basePackages[:strings.Index(basePackages, "linux-headers")], "gcc-12 12.2;", "gcc-13 13.2.0-23ubuntu4;") + `
linux-headers-6.8.0-31 6.8.0-31.31 all
linux-headers-6.8.0-31-generic 6.8.0-31.31; Depends: linux-headers-6.8.0-31, libc6 (>= 2.36), libelf1
linux-headers-6.8.0-31-lowlatency 6.8.0-31.31.1; Depends: linux-lowlatency-headers-6.8.0-31, libc6
linux-lowlatency-headers-6.8.0-31 6.8.0-31.31.1 all
linux-headers-6.8.0-1008-aws 6.8.0-1008.8; Depends: linux-aws-headers-6.8.0-1008
linux-aws-headers-6.8.0-1008 6.8.0-1008.8 all
linux-headers-generic 6.8.0-31.31; Depends: linux-headers-6.8.0-31-generic
linux-headers-6.8.0-31-oem 6.8.0-31.31; Depends: linux-headers-6.8.0-31
linux-headers-6.8.0-31-broken 6.8.0-31.31; Depends: linux-headers-6.8.0-32
libelf1 0.190
`

const ubuntuUpdates = `
linux-headers-6.8.0-45 6.8.0-45.45 all
linux-headers-6.8.0-45-generic 6.8.0-45.45; Depends: linux-headers-6.8.0-45
linux-headers-6.17.0-41-generic 6.17.0-41.41~24.04.1; Depends: linux-hwe-6.17-headers-6.17.0-41
linux-hwe-6.17-headers-6.17.0-41 6.17.0-41.41~24.04.1 all
linux-headers-6.17.0-42-generic 6.17.0-42.42; Depends: linux-hwe-6.17-headers-6.17.0-42
linux-hwe-6.17-headers-6.17.0-42 6.17.0-42.42 all
`

// noble publishes a suite whose headers are packages that say which compiler built the kernel, and gives what reads them.
func (b *bench) noble(texts map[string]string, more ...published) func(context.Context, kernels.Package) (io.ReadCloser, error) {
	b.publish(published{archive: "ubuntu", pocket: "noble", suite: "noble", codename: "noble", packages: b.withHeaders(ubuntuPackages, texts)})
	b.publish(published{archive: "ubuntu", pocket: "noble-updates", suite: "noble-updates", codename: "noble", packages: b.withHeaders(ubuntuUpdates, texts)})
	for _, p := range more {
		b.publish(p)
	}
	return func(_ context.Context, p kernels.Package) (io.ReadCloser, error) {
		b.archiveRepo.mu.Lock()
		defer b.archiveRepo.mu.Unlock()
		data, ok := b.files["/fetched/"+p.Digest.Hex]
		if !ok {
			return nil, fmt.Errorf("no package %s", p.Name)
		}
		b.hits["/fetched/"+p.Name]++
		return io.NopCloser(bytes.NewReader(data)), nil
	}
}

// withHeaders is stanzas, with packages for the releases whose compilers are given.
func (b *bench) withHeaders(text string, texts map[string]string) string {
	out := stanzas(text)
	for release, compiler := range texts {
		var payload, file bytes.Buffer
		w := tar.NewWriter(&payload)
		compiler, is, other := strings.Cut(compiler, "; release ") // of what is in it
		config := "CONFIG_CC_VERSION_TEXT=\"" + compiler + "\"\n"
		if !other {
			is = release
		}
		for name, text := range map[string]string{".config": config, "include/config/kernel.release": is + "\n"} {
			w.WriteHeader(&tar.Header{Name: "./usr/src/linux-headers-" + release + "/" + name, Mode: 0o644, Size: int64(len(text))})
			io.WriteString(w, text)
		}
		w.Close()
		file.WriteString("!<arch>\n")
		for _, m := range []struct {
			name string
			data []byte
		}{{"debian-binary", []byte("2.0\n")}, {"data.tar", payload.Bytes()}} {
			fmt.Fprintf(&file, "%-16s%-12d%-6d%-6d%-8o%-10d`\n%s", m.name, 0, 0, 0, 0o100644, len(m.data), m.data)
		}
		sum := fmt.Sprintf("%x", sha256.Sum256(file.Bytes()))
		b.archiveRepo.mu.Lock()
		b.files["/fetched/"+sum] = bytes.Clone(file.Bytes())
		b.archiveRepo.mu.Unlock()
		parts := strings.SplitAfter(out, "\n\n")
		for i, p := range parts {
			if strings.HasPrefix(p, "Package: linux-headers-"+release+"\n") {
				at := strings.Index(p, "SHA256: ") + len("SHA256: ")
				parts[i] = p[:at] + sum + p[at+64:]
			}
		}
		out = strings.Join(parts, "")
	}
	return out
}

func (b *bench) ubuntu(o Options) *Provider {
	b.t.Helper()
	o.Mirrors = map[string][]string{"ubuntu": {b.url + "/ubuntu"}, "ubuntu-ports": {b.url + "/ubuntu-ports"}}
	return b.clientOf("ubuntu", o)
}

func nobleKernel(release string) kernels.Kernel {
	return kernels.Kernel{Distro: "ubuntu", Suite: "noble", Arch: "amd64", Release: release}
}

func TestUbuntuKernels(t *testing.T) {
	b := newBench(t)
	fetch := b.noble(nil)
	list, err := b.ubuntu(Options{Fetch: fetch}).Kernels(t.Context(), "noble", "amd64")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, k := range list {
		got = append(got, fmt.Sprintf("%s %s %t %t", k.Release, k.Flavour, k.Default, k.Latest))
	}
	if want := []string{
		"6.17.0-42-generic generic false false", "6.17.0-41-generic generic false false", "6.8.0-1008-aws aws false false",
		"6.8.0-45-generic generic true true", "6.8.0-31-lowlatency lowlatency false false", "6.8.0-31-generic generic true false",
		"6.8.0-31-oem oem false false",
	}; !slices.Equal(got, want) {
		t.Errorf("kernels are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestUbuntuLock(t *testing.T) {
	const gcc13 = "x86_64-linux-gnu-gcc-13 (Ubuntu 13.2.0-23ubuntu4) 13.2.0"
	texts := map[string]string{
		"6.8.0-31-generic": gcc13, "6.8.0-45-generic": "x86_64-linux-gnu-gcc-13 (Ubuntu 13.3.0-6ubuntu2~24.04) 13.3.0",
		"6.17.0-41-generic": "x86_64-linux-gnu-gcc-14 (Ubuntu 14.2.0-4ubuntu2) 14.2.0", "6.8.0-1008-aws": "x86_64-linux-gnu-gcc-12 (Ubuntu 12.3.0-17ubuntu1) 12.3.0",
		"6.17.0-42-generic": "Ubuntu clang version 18.1.3 (1ubuntu1)", "6.8.0-31-lowlatency": "icc 19", "6.8.0-31-oem": gcc13 + "; release 6.8.0-32-oem",
	}
	b := newBench(t)
	fetch := b.noble(texts,
		published{archive: "ubuntu", pocket: "noble-security", suite: "noble-security", codename: "noble",
			packages: stanzas("gcc-13 13.3.0-6ubuntu2~24.04; Depends: binutils, libc6"),
			universe: stanzas("gcc-12 12.3.0-17ubuntu1; Depends: binutils, libc6\nclang-18 1:18.1.3-1ubuntu1\nlld-18 1:18.1.3\nllvm-18 1:18.1.3\nmake 99\nonly-there 1; Depends: make")})
	for _, c := range []struct {
		release, asked string // asked: of Options.Compiler
		extra          string
		compiler       string
		has            []string // "name version"
		err            string
		universe       bool // is read
	}{
		{release: "6.8.0-31-generic", compiler: "gcc-13", has: []string{"gcc-13 13.2.0-23ubuntu4", "linux-headers-6.8.0-31 6.8.0-31.31", "make 4"}},
		{release: "6.8.0-45-generic", compiler: "gcc-13", has: []string{"gcc-13 13.3.0-6ubuntu2~24.04"}},
		{release: "6.8.0-31-lowlatency", err: `compiler "icc 19": neither gcc nor clang`},
		{release: "6.8.0-31-lowlatency", asked: "gcc-13", compiler: "gcc-13", has: []string{"gcc-13 13.3.0-6ubuntu2~24.04"}},
		{release: "6.8.0-1008-aws", compiler: "gcc-12", has: []string{"gcc-12 12.3.0-17ubuntu1", "make 4"}, universe: true},
		{release: "6.8.0-31-generic", extra: "only-there", compiler: "gcc-13", has: []string{"only-there 1", "make 4"}},
		{release: "6.17.0-42-generic", compiler: "clang-18", has: []string{"clang-18 1:18.1.3-1ubuntu1", "lld-18 1:18.1.3", "linux-hwe-6.17-headers-6.17.0-42 6.17.0-42.42"}},
		{release: "6.17.0-41-generic", err: `the kernel was built by "x86_64-linux-gnu-gcc-14 (Ubuntu 14.2.0-4ubuntu2) 14.2.0", and ubuntu/noble has no package "gcc-14"; it has gcc-13, gcc-12, clang-18, and --compiler`},
		{release: "6.17.0-41-generic", asked: "gcc-11", err: "--compiler gcc-11: ubuntu/noble has no such package; it has gcc-13"},
		{release: "6.8.0-31-oem", err: `package "linux-headers-6.8.0-31-oem" has the headers of another kernel, "6.8.0-32-oem"`},
		{release: "6.8.0-32-generic", err: `no kernel "6.8.0-32-generic"; near are "6.8.0-31-generic"`},
	} {
		before := b.hitsOf("/universe/")
		var extra kernels.Extra
		if c.extra != "" {
			extra.Packages = []string{c.extra}
		}
		l, err := b.ubuntu(Options{Fetch: fetch, Compiler: c.asked}).Lock(t.Context(), nobleKernel(c.release), extra)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v; want %q", c.release, err, c.err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", c.release, err)
			continue
		}
		if l.Compiler != c.compiler || l.Forced != (c.asked != "") || l.Build != "" {
			t.Errorf("%s: compiler %s, forced %t, build %q; want %s", c.release, l.Compiler, l.Forced, l.Build, c.compiler)
		}
		for _, want := range c.has {
			if !slices.ContainsFunc(slices.Concat(l.Toolchain, l.Headers), func(p kernels.Package) bool { return p.Name+" "+p.Version == want }) {
				t.Errorf("%s: %q is not in the lock", c.release, want)
			}
		}
		if read := b.hitsOf("/universe/") > 0; read && before == 0 && !c.universe {
			t.Errorf("%s: universe was read, which isn't needed", c.release)
		}
	}
	if n := b.count("/fetched/linux-headers-6.8.0-31-generic"); n != 1 {
		t.Errorf("the headers were read %d times; want once", n)
	}
	list, err := b.ubuntu(Options{Fetch: fetch}).Kernels(t.Context(), "noble", "amd64")
	if i := slices.IndexFunc(list, func(k kernels.Candidate) bool { return k.Release == "6.8.0-31-generic" }); err != nil || i < 0 || list[i].Compiler != "gcc-13" {
		t.Errorf("%+v, %v: the compiler is known by now", list, err)
	}
}

// Other architectures have an archive of their own.
func TestUbuntuPorts(t *testing.T) {
	b := newBench(t)
	fetch := b.noble(nil)
	b.publish(published{archive: "ubuntu-ports", pocket: "noble", suite: "noble", codename: "noble", arch: "arm64",
		packages: strings.ReplaceAll(stanzas(ubuntuPackages), "Architecture: amd64", "Architecture: arm64")})
	p := b.ubuntu(Options{Fetch: fetch})
	for arch, want := range map[string]int{"amd64": 7, "arm64": 4} {
		list, err := p.Kernels(t.Context(), "noble", arch)
		if err != nil || len(list) != want || list[0].Arch != arch {
			t.Errorf("%s: %d kernels, %v; want %d", arch, len(list), err, want)
		}
	}
	if _, err := p.Kernels(t.Context(), "noble", "riscv64"); !errors.Is(err, kernels.ErrNotFound) {
		t.Errorf("riscv64: %v; want that there is none", err)
	}
	var from []string
	for _, m := range p.Mirrors() {
		from = append(from, m.Archive+"="+strings.TrimPrefix(m.URL, b.url))
	}
	if got, want := strings.Join(from, " "), "ubuntu=/ubuntu ubuntu-ports=/ubuntu-ports"; got != want {
		t.Errorf("mirrors are %s; want %s", got, want)
	}
}

// All pockets have the suite's codename: which one an index is of says its Suite.
func TestUbuntuPockets(t *testing.T) {
	for _, c := range []struct{ suite, codename, err string }{
		{"noble-updates", "noble", ""}, {"noble", "noble", `refused`}, {"noble-updates", "jammy", `refused`}, {"noble-updates", "noble-updates", "refused"},
	} {
		b := newBench(t)
		fetch := b.noble(nil, published{archive: "ubuntu", pocket: "noble-updates", suite: c.suite, codename: c.codename})
		_, err := b.ubuntu(Options{Fetch: fetch}).Kernels(t.Context(), "noble", "amd64")
		if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err) || !errors.Is(err, kernels.ErrUntrusted)) {
			t.Errorf("suite %s, codename %s: %v; want %q", c.suite, c.codename, err, c.err)
		}
	}
}

func TestUbuntuKey(t *testing.T) {
	p, err := New("ubuntu", Options{CacheDir: t.TempDir(), Etc: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	keys, err := p.keys()
	if err != nil || len(keys) != 1 {
		t.Fatalf("%d keys, %v", len(keys), err)
	}
	if got, want := fmt.Sprintf("%X", keys[0].PrimaryKey.Fingerprint), "F6ECB3762474EDA9D21B7022871920D1991BC93C"; got != want {
		t.Errorf("fingerprint %s; want %s", got, want)
	}
}

func TestUbuntuSources(t *testing.T) {
	for _, c := range []struct{ name, file, text, main, ports string }{
		{"24.04", "sources.list.d/ubuntu.sources", "Types: deb\nURIs: http://de.archive.example/ubuntu/\nSuites: noble noble-updates noble-backports\n" +
			"Components: main restricted universe multiverse\nSigned-By: /usr/share/keyrings/ubuntu-archive-keyring.gpg\n",
			"http://de.archive.example/ubuntu", ""},
		{"22.04", "sources.list", "deb http://archive.example/ubuntu jammy main restricted\ndeb http://security.example/ubuntu jammy-security main restricted\n",
			"http://archive.example/ubuntu", ""},
		{"arm64", "sources.list", "deb http://ports.example/ubuntu-ports/ jammy main universe\n", "", "http://ports.example/ubuntu-ports"},
		{"others'", "sources.list.d/a.list", "deb http://ppa.example/someone/ppa/ubuntu noble main\ndeb [signed-by=/etc/apt/keyrings/x.gpg] http://x.example/ubuntu noble main universe\n" +
			"deb [arch=amd64] http://chrome.example/deb stable main\ndeb http://other.example/ubuntu bookworm main universe\n", "", ""},
	} {
		dir := t.TempDir()
		file := filepath.Join(dir, "apt", c.file)
		os.MkdirAll(filepath.Dir(file), 0o755)
		if err := os.WriteFile(file, []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		p, err := New("ubuntu", Options{CacheDir: t.TempDir(), Etc: dir})
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]string{}
		for _, m := range p.Mirrors() {
			if m.From == "host" && got[m.Archive] == "" {
				got[m.Archive] = m.URL
			}
		}
		if got["ubuntu"] != c.main || got["ubuntu-ports"] != c.ports {
			t.Errorf("%s: mirrors of this host are %v; want %q and %q", c.name, got, c.main, c.ports)
		}
	}
}
