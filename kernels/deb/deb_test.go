package deb

import (
	"cmp"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

func names(pkgs []kernels.Package) string {
	var out []string
	for _, p := range pkgs {
		out = append(out, p.Name)
	}
	return strings.Join(out, " ")
}

// lockOf publishes pockets of bookworm by name and locks a kernel of it.
func lockOf(t *testing.T, pockets map[string]string, release string, extra ...string) (kernels.Lock, error) {
	t.Helper()
	b := newBench(t)
	for name, text := range pockets {
		archive := "debian"
		if strings.HasSuffix(name, "-security") {
			archive = "debian-security"
		}
		b.publish(published{archive: archive, pocket: name, packages: stanzas(text)})
	}
	return b.client(Options{}).Lock(t.Context(), kernel(release), kernels.Extra{Packages: extra})
}

const baseToolchain = "base-files bc binutils dash gcc-12 init kmod libc6 libgcc-s1 make mawk patch usr-is-merged xz-utils"

const clangPackages = `clang-14 1:14.0.6; Depends: libllvm14, binutils
lld-14 1:14.0.6; Depends: libllvm14
llvm-14 1:14.0.6; Depends: libllvm14
libllvm14 1:14.0.6`

func TestLock(t *testing.T) {
	for _, c := range []struct {
		name      string
		pockets   map[string]string // added to the base packages in bookworm
		release   string            // default 6.1.0-1-amd64
		extra     []string
		compiler  string // default gcc-12
		toolchain string // default baseToolchain
		headers   string
		versions  []string // "name version" that must be in the lock
		err       string
	}{
		{
			// Mawk is more important than gawk, the marker of a merged /usr comes before the converter, Recommends don't count.
			name:    "base",
			headers: "libelf1 linux-compiler-gcc-12-x86 linux-headers-6.1.0-1-amd64 linux-headers-6.1.0-1-common linux-kbuild-6.1",
		},
		{
			name:    "extra packages",
			extra:   []string{"perl", "bc", "perl"},
			headers: "libelf1 linux-compiler-gcc-12-x86 linux-headers-6.1.0-1-amd64 linux-headers-6.1.0-1-common linux-kbuild-6.1 perl",
		},
		{
			name: "security has newer ones, backports stay out",
			pockets: map[string]string{
				"bookworm-security":  "libelf1 0.188+deb12u1\nlinux-kbuild-6.1 6.1.2-1; Depends: libelf1 (>= 0.188+)",
				"bookworm-backports": "libelf1 0.190\nmake 5\nlibc6 2.40\nnew-base 1; Essential: yes",
			},
			headers:  "libelf1 linux-compiler-gcc-12-x86 linux-headers-6.1.0-1-amd64 linux-headers-6.1.0-1-common linux-kbuild-6.1",
			versions: []string{"libelf1 0.188+deb12u1", "linux-kbuild-6.1 6.1.2-1", "make 4", "libc6 2.36"},
		},
		{
			name: "a backports kernel brings what only backports have, and no kernel image",
			pockets: map[string]string{"bookworm-backports": `linux-headers-6.12.1+deb12-amd64 6.12.1-1~bpo12+1; Depends: linux-headers-6.12.1+deb12-common (= 6.12.1-1~bpo12+1), linux-image-6.12.1+deb12-amd64 (= 6.12.1-1~bpo12+1) | linux-image-6.12.1+deb12-amd64-unsigned (= 6.12.1-1~bpo12+1), linux-kbuild-6.12.1+deb12, gcc-12-for-host
linux-headers-6.12.1+deb12-common 6.12.1-1~bpo12+1 all
linux-image-6.12.1+deb12-amd64 6.12.1-1~bpo12+1
linux-kbuild-6.12.1+deb12 6.12.1-1~bpo12+1; Depends: libelf1 (>= 0.100), pahole (>= 1.26)
gcc-12-for-host 12.2; Depends: gcc-12
libelf1 0.190
pahole 1.26`,
				"bookworm-updates": "pahole 1.24"},
			release:  "6.12.1+deb12-amd64",
			headers:  "gcc-12-for-host libelf1 linux-headers-6.12.1+deb12-amd64 linux-headers-6.12.1+deb12-common linux-kbuild-6.12.1+deb12 pahole",
			versions: []string{"libelf1 0.188", "pahole 1.26"},
		},
		{
			name: "a kernel that clang built brings lld and LLVM's tools of the same version, even where gcc is named too",
			pockets: map[string]string{"bookworm-updates": clangPackages + `
linux-headers-6.1.0-1-clang-amd64 6.1.1-1; Depends: linux-headers-6.1.0-1-common (= 6.1.1-1), linux-kbuild-6.1 (>= 6.1.1-1), gcc-12-for-host, clang-14
gcc-12-for-host 12.2; Depends: gcc-12`},
			release:   "6.1.0-1-clang-amd64",
			compiler:  "clang-14",
			toolchain: "base-files bc binutils clang-14 dash init kmod libc6 libgcc-s1 libllvm14 lld-14 llvm-14 make mawk patch usr-is-merged xz-utils",
			headers:   "gcc-12 gcc-12-for-host libelf1 linux-headers-6.1.0-1-clang-amd64 linux-headers-6.1.0-1-common linux-kbuild-6.1",
		},
		{
			name: "clang through the package of the kernel's compiler",
			pockets: map[string]string{"bookworm-updates": clangPackages + `
linux-headers-6.1.0-1-clang-amd64 6.1.1-1; Depends: linux-headers-6.1.0-1-common, linux-compiler-clang-14-x86
linux-compiler-clang-14-x86 6.1.1-1; Depends: clang-14`},
			release:   "6.1.0-1-clang-amd64",
			compiler:  "clang-14",
			toolchain: "base-files bc binutils clang-14 dash init kmod libc6 libgcc-s1 libllvm14 lld-14 llvm-14 make mawk patch usr-is-merged xz-utils",
			headers:   "linux-compiler-clang-14-x86 linux-headers-6.1.0-1-clang-amd64 linux-headers-6.1.0-1-common",
		},
		{
			name: "clang without lld",
			pockets: map[string]string{"bookworm-updates": `clang-14 14.0.6
linux-headers-6.1.0-1-clang-amd64 6.1.1-1; Depends: linux-headers-6.1.0-1-common, clang-14`},
			release: "6.1.0-1-clang-amd64",
			err:     `toolchain: nothing satisfies "lld-14"`,
		},
		{
			name: "alternatives, provides and qualifiers",
			pockets: map[string]string{"bookworm-updates": `tool 1; Depends: absent | second, mail-agent, make | perl, lib:native, other:amd64, versioned (>= 2)
second 1
exim 4; Provides: mail-agent; Priority: optional
aaa 4; Provides: mail-agent; Priority: extra
lib 1; Provides: other (= 3)
old-one 1; Provides: versioned (= 1)
plain-one 1; Provides: versioned
the-new-one 1; Provides: versioned (= 2.5)`},
			extra:   []string{"tool"},
			headers: "exim lib libelf1 linux-compiler-gcc-12-x86 linux-headers-6.1.0-1-amd64 linux-headers-6.1.0-1-common linux-kbuild-6.1 second the-new-one tool",
		},
		{
			name: "an alternative that cannot be installed is left for the next",
			pockets: map[string]string{"bookworm-updates": `tool 1; Depends: broken | fine, helper, offered
broken 1; Depends: helper, offering, nowhere
helper 1
offering 1; Provides: offered
fine 1`},
			extra:   []string{"tool"},
			headers: "fine helper libelf1 linux-compiler-gcc-12-x86 linux-headers-6.1.0-1-amd64 linux-headers-6.1.0-1-common linux-kbuild-6.1 offering tool",
		},
		{
			name:    "an unsatisfiable dependency names its chain",
			pockets: map[string]string{"bookworm-updates": "tool 1; Depends: helper\nhelper 2; Depends: libc6 (>> 2.36) | libc6 (<< 2.36)"},
			extra:   []string{"tool"},
			err:     `extra package "tool": tool 1: helper 2: nothing satisfies "libc6 (>> 2.36) | libc6 (<< 2.36)"`,
		},
		{
			name:    "another architecture does not count",
			pockets: map[string]string{"bookworm-updates": "tool 1; Depends: make:arm64"},
			extra:   []string{"tool"},
			err:     `nothing satisfies "make:arm64"`,
		},
		{name: "unknown release", release: "6.1.0-2-amd64", err: `no kernel "6.1.0-2-amd64"; near are "6.1.0-1-amd64", "6.1.0-1-cloud-amd64": not found`},
		{name: "metapackage", release: "6.1-amd64", err: "not found"},
		{name: "common headers", release: "6.1.0-1-common", err: "not found"},
		{name: "unknown extra", extra: []string{"pearl"}, err: `no package "pearl"; near are "perl", `},
	} {
		t.Run(c.name, func(t *testing.T) {
			pockets := map[string]string{"bookworm": basePackages}
			for k, v := range c.pockets {
				pockets[k] = v
			}
			if c.release == "" {
				c.release = "6.1.0-1-amd64"
			}
			if c.toolchain == "" {
				c.toolchain = baseToolchain
			}
			l, err := lockOf(t, pockets, c.release, c.extra...)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("Lock: %v; want %q", err, c.err)
				}
				if strings.Contains(c.err, "near are") && !errors.Is(err, kernels.ErrNotFound) {
					t.Errorf("Lock: %v does not wrap ErrNotFound", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := names(l.Toolchain); got != c.toolchain {
				t.Errorf("Toolchain = %s\nwant        %s", got, c.toolchain)
			}
			if got := names(l.Headers); got != c.headers {
				t.Errorf("Headers = %s\nwant      %s", got, c.headers)
			}
			if want := cmp.Or(c.compiler, "gcc-12"); l.Compiler != want {
				t.Errorf("Compiler = %q; want %q", l.Compiler, want)
			}
			all := slices.Concat(l.Toolchain, l.Headers)
			for _, want := range c.versions {
				if !slices.ContainsFunc(all, func(p kernels.Package) bool { return p.Name+" "+p.Version == want }) {
					t.Errorf("%q is not in the lock", want)
				}
			}
		})
	}
}

func TestLockedPackage(t *testing.T) {
	b := newBench(t)
	b.publish(published{pocket: "bookworm", packages: stanzas(basePackages)})
	b.publish(published{archive: "debian-security", pocket: "bookworm-security", packages: strings.ReplaceAll(stanzas("bc 1.1"), "bc_1.1", "bc_1%3a1.1")})
	l, err := b.client(Options{}).Lock(t.Context(), kernel("6.1.0-1-amd64"), kernels.Extra{})
	if err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("%+v", l)
	for _, want := range []string{
		"{Name:bc Version:1.1 Arch:amd64 URL:" + b.url + "/debian-security/pool/main/bc_1%253a1.1.deb Mirrors:[] Digest:sha256:",
		"{Name:linux-headers-6.1.0-1-common Version:6.1.1-1 Arch:all URL:" + b.url + "/debian/pool/main/linux-headers-6.1.0-1-common_6.1.1-1.deb Mirrors:[] Digest:sha256:",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%s\nhas no %s", text, want)
		}
	}
	again, err := b.client(Options{}).Lock(t.Context(), kernel("6.1.0-1-amd64"), kernels.Extra{Packages: []string{}, Depends: []string{}})
	if err != nil || !reflect.DeepEqual(again, l) {
		t.Errorf("the second lock differs: %v", err)
	}
}

// TestLocksOfOneCache is about answers that are kept: each must be found for its own question only.
func TestLocksOfOneCache(t *testing.T) {
	b := newBench(t)
	b.publish(published{pocket: "bookworm", packages: stanzas(basePackages)})
	seen := map[string]string{}
	for range 2 {
		for _, release := range []string{"6.1.0-1-amd64", "6.1.0-1-cloud-amd64"} {
			for _, extra := range [][]string{nil, {"perl"}, {"perl", "libc6-dev"}, {"libc6-dev", "perl"}} {
				l, err := b.client(Options{}).Lock(t.Context(), kernel(release), kernels.Extra{Packages: extra})
				if err != nil {
					t.Fatal(err)
				}
				slices.Sort(extra)
				question, answer := release+" "+strings.Join(extra, " "), l.Digest().String()
				if l.Kernel.Release != release {
					t.Errorf("%s: lock of %s", question, l.Kernel)
				}
				for q, a := range seen {
					if (q == question) != (a == answer) {
						t.Errorf("%q and %q: locks are %s and %s", question, q, answer, a)
					}
				}
				seen[question] = answer
			}
		}
	}
	// Another mirror means other URLs.
	b.publish(published{archive: "copy/debian", pocket: "bookworm", packages: stanzas(basePackages)})
	l, err := b.client(Options{Mirrors: map[string][]string{"debian": {b.url + "/copy/debian"}}}).Lock(t.Context(), kernel("6.1.0-1-amd64"), kernels.Extra{})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(l.Headers[0].URL, b.url+"/copy/debian/pool/") || seen["6.1.0-1-amd64 "] != l.Digest().String() {
		t.Errorf("from another mirror: %+v", l.Headers[0])
	}
}

func TestLockDoesNotDependOnOrder(t *testing.T) {
	lines := strings.Split(strings.TrimSpace(basePackages), "\n")
	one, err := lockOf(t, map[string]string{"bookworm": strings.Join(lines, "\n")}, "6.1.0-1-amd64")
	if err != nil {
		t.Fatal(err)
	}
	slices.Reverse(lines)
	two, err := lockOf(t, map[string]string{"bookworm": strings.Join(lines, "\n")}, "6.1.0-1-amd64")
	if err != nil {
		t.Fatal(err)
	}
	if one.Digest() != two.Digest() {
		t.Errorf("%s\n%s", names(one.Toolchain), names(two.Toolchain))
	}
}

func TestToolchainDoesNotDependOnTheKernel(t *testing.T) {
	one, err := lockOf(t, map[string]string{"bookworm": basePackages}, "6.1.0-1-amd64")
	if err != nil {
		t.Fatal(err)
	}
	two, err := lockOf(t, map[string]string{"bookworm": basePackages}, "6.1.0-1-cloud-amd64", "perl")
	if err != nil {
		t.Fatal(err)
	}
	if one.ToolchainDigest() != two.ToolchainDigest() {
		t.Errorf("%s\n%s", names(one.Toolchain), names(two.Toolchain))
	}
}

func TestKernels(t *testing.T) {
	b := newBench(t)
	b.publish(published{pocket: "bookworm", packages: stanzas(basePackages)})
	b.publish(published{archive: "debian-security", pocket: "bookworm-security", packages: stanzas(`
linux-headers-6.1.0-10-common 6.1.10-1 all
linux-headers-6.1.0-10-common-rt 6.1.10-1 all
linux-headers-6.1.0-10-all 6.1.10-1 all; Depends: linux-headers-6.1.0-10-common
linux-headers-6.1.0-10-amd64 6.1.10-1; Depends: linux-headers-6.1.0-10-common (= 6.1.10-1), linux-compiler-gcc-12-x86
linux-headers-6.1.0-10-rt-amd64 6.1.10-1; Depends: linux-headers-6.1.0-10-common-rt (= 6.1.10-1), linux-compiler-gcc-12-x86
linux-headers-amd64 6.1.10-1; Depends: linux-headers-6.1.0-10-amd64 (= 6.1.10-1)`)})
	b.publish(published{pocket: "bookworm-backports", packages: stanzas(`
linux-headers-6.12.1+deb12-amd64 6.12.1-1~bpo12+1; Depends: linux-headers-6.12.1+deb12-common (= 6.12.1-1~bpo12+1), gcc-12-for-host
linux-headers-6.1.0-1-amd64 6.1.1-1~bpo1; Depends: linux-headers-6.1.0-1-common, gcc-11
linux-headers-amd64 6.12.1-1~bpo12+1; Depends: linux-headers-6.12.1+deb12-amd64 (= 6.12.1-1~bpo12+1)`)})
	p := b.client(Options{})
	for range 2 { // the second answer is from the cache
		list, err := p.Kernels(t.Context(), "bookworm", "amd64")
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, k := range list {
			s := k.Release + " " + k.PackageVersion + " " + k.Compiler
			if k.Latest {
				s += " latest"
			}
			if k.Distro != "debian" || k.Suite != "bookworm" || k.Arch != "amd64" || len(k.Digest.Hex) != 64 {
				t.Errorf("%+v", k)
			}
			got = append(got, s)
		}
		want := []string{
			"6.12.1+deb12-amd64 6.12.1-1~bpo12+1 gcc-12",
			"6.1.0-10-amd64 6.1.10-1 gcc-12 latest",
			"6.1.0-10-rt-amd64 6.1.10-1 gcc-12",
			"6.1.0-1-amd64 6.1.1-1 gcc-12",
			"6.1.0-1-cloud-amd64 6.1.1-1 gcc-12",
		}
		if !slices.Equal(got, want) {
			t.Errorf("Kernels =\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	if _, err := p.Kernels(t.Context(), "bookwurm", "amd64"); !errors.Is(err, kernels.ErrNotFound) ||
		!strings.Contains(err.Error(), "sid, forky, trixie, bookworm, bullseye") {
		t.Errorf("unknown suite: %v", err)
	}
	if _, err := p.Kernels(t.Context(), "bookworm", "vax"); !errors.Is(err, kernels.ErrNotFound) || !strings.Contains(err.Error(), "it has amd64") {
		t.Errorf("unknown architecture: %v", err)
	}
}

func TestSuites(t *testing.T) {
	p, err := New("debian", Options{CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(p.Suites(), " "); got != "sid forky trixie bookworm bullseye" {
		t.Errorf("Suites = %s", got)
	}
}

const extraPackages = basePackages + `
libxtables-dev 1.8; Depends: libxtables12 (= 1.8)
libxtables12 1.8
pkg-config 1
companion 1; Depends: libxtables12, firmware-of-contrib
`

// Extra packages make the same lock in any order, however often and with whatever spaces they are named.
func TestExtraOrder(t *testing.T) {
	b := newBench(t)
	b.publish(published{pocket: "bookworm", packages: stanzas(extraPackages)})
	digest := func(e kernels.Extra) string {
		t.Helper()
		l, err := b.client(Options{}).Lock(t.Context(), kernel("6.1.0-1-amd64"), e)
		if err != nil {
			t.Fatal(err)
		}
		return l.Digest().String()
	}
	want := digest(kernels.Extra{Packages: []string{"libxtables-dev|iptables-dev", "pkg-config", "perl | gawk"}})
	for _, e := range []kernels.Extra{
		{Packages: []string{"perl | gawk", "pkg-config", " libxtables-dev  | iptables-dev "}},
		{Packages: []string{"pkg-config", "pkg-config", "perl | gawk", "libxtables-dev | iptables-dev", "libxtables12"}},
		{Packages: []string{"iptables-dev | libxtables-dev (>= 1)", "pkg-config", "perl", "gawk | perl"}}, // perl is there before
		{Depends: []string{"perl | gawk", "pkg-config", "libxtables-dev (>= 1.4) | iptables-dev"}},
	} {
		if got := digest(e); got != want {
			t.Errorf("%+v: lock %s; want %s", e, got, want)
		}
	}
	if digest(kernels.Extra{Packages: []string{"perl"}}) == want || digest(kernels.Extra{}) == want {
		t.Error("other extra packages have the same lock")
	}
}

func TestExtraErrors(t *testing.T) {
	for _, c := range []struct{ entry, err string }{
		{"libxtables-dve", `extra package "libxtables-dve": no package "libxtables-dve"; near are "libxtables-dev", `},
		{"a-dev | b-dev", `extra package "a-dev | b-dev": no package "a-dev"; near are `},
		{"libxtables-dev (>= 2)", `nothing satisfies "libxtables-dev (>= 2)"`},
		{"companion", `extra package "companion": companion 1: nothing satisfies "firmware-of-contrib"`},
		{"perl, gawk", `extra package "perl, gawk": it must be one package`},
		{"perl gawk", `extra package "perl gawk": dependency "perl gawk": "perl gawk" is no package name`},
		{"", `it must be one package`},
	} {
		_, err := lockOf(t, map[string]string{"bookworm": extraPackages}, "6.1.0-1-amd64", c.entry)
		if err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q: %v; want %q", c.entry, err, c.err)
			continue
		}
		if e := (*kernels.ExtraError)(nil); !errors.As(err, &e) || e.Entry != c.entry {
			t.Errorf("%q: the error does not carry it: %v", c.entry, err)
		}
	}
}

// What a package depends on and the suite can't give is left out with a warning, said at every run and once for all kernels.
func TestDependsLeftOut(t *testing.T) {
	b := newBench(t)
	b.publish(published{pocket: "bookworm", packages: stanzas(extraPackages)})
	extra := kernels.Extra{Depends: []string{"companion", "nvidia-kernel-common (>= 1) | nvidia", "pkg-config", "libxtables12 (>> 9)"}}
	for range 2 {
		p := b.client(Options{})
		b.warnings = slices.DeleteFunc(b.warnings, func(s string) bool { return strings.Contains(s, "left out of the build root") })
		for _, release := range []string{"6.1.0-1-amd64", "6.1.0-1-cloud-amd64"} {
			l, err := p.Lock(t.Context(), kernel(release), extra)
			if err != nil {
				t.Fatal(err)
			}
			if got := names(l.Headers); !strings.Contains(got, "pkg-config") || strings.Contains(got, "companion") || strings.Contains(got, "libxtables") {
				t.Errorf("Headers = %s", got)
			}
		}
		var said []string
		for _, w := range b.warnings {
			if strings.Contains(w, "left out of the build root") {
				said = append(said, w)
			}
		}
		if len(said) != 3 || !b.warned(`debian/bookworm: of what the package depends on, "nvidia-kernel-common (>= 1) | nvidia" is left out`) {
			t.Errorf("warnings are %q", said)
		}
	}
}

// Of what a package depends on, what this program stands in for is passed over in silence, and what brings a desktop is not
// for building.
func TestDependsOfNoUse(t *testing.T) {
	text := extraPackages + "desktop 1; Depends: d1\ngcc 12; Depends: gcc-12\ndkms 3; Depends: gcc\nudev 1\n"
	for i := range maxBrought {
		text += fmt.Sprintf("d%d 1; Depends: d%d\n", i+1, i+2)
	}
	text += fmt.Sprintf("d%d 1\n", maxBrought+1)
	b := newBench(t)
	b.publish(published{pocket: "bookworm", packages: stanzas(text)})
	lock := func(e kernels.Extra) string {
		t.Helper()
		l, err := b.client(Options{}).Lock(t.Context(), kernel("6.1.0-1-amd64"), e)
		if err != nil {
			t.Fatal(err)
		}
		return names(l.Headers)
	}
	none := lock(kernels.Extra{})
	if got := lock(kernels.Extra{Depends: []string{"dkms (>= 3.0)", "linux-headers-amd64 | linux-headers-generic", "gcc | c-compiler", "udev", "gcc-12"}}); got != none {
		t.Errorf("Headers = %s; want %s", got, none)
	}
	if b.warned("of what the package depends on") {
		t.Errorf("warnings are %q", b.warnings)
	}
	if got := lock(kernels.Extra{Depends: []string{"desktop", "pkg-config"}}); got != none+" pkg-config" {
		t.Errorf("Headers = %s; want %s and pkg-config", got, none)
	}
	if !b.warned(`"desktop" is left out of the build root: it brings`) {
		t.Errorf("warnings are %q", b.warnings)
	}
	if got := lock(kernels.Extra{Packages: []string{"desktop", "udev"}}); !strings.Contains(got, "desktop") || !strings.Contains(got, "udev") {
		t.Errorf("Headers = %s; want what was asked for", got)
	}
}

// The security archive of a suite has kernels of later lines beside the suite's own: they are listed, and none is the latest.
func TestLatestIsOfTheSuitesOwnLine(t *testing.T) {
	b := newBench(t)
	b.publish(published{pocket: "bookworm", packages: stanzas(basePackages)})
	b.publish(published{archive: "debian-security", pocket: "bookworm-security", packages: stanzas(`
linux-headers-6.12.9+deb12-common 6.12.9-1~deb12u1 all
linux-headers-6.12.9+deb12-amd64 6.12.9-1~deb12u1; Depends: linux-headers-6.12.9+deb12-common (= 6.12.9-1~deb12u1), gcc-12
linux-headers-6.1.0-2-common 6.1.2-1 all
linux-headers-6.1.0-2-amd64 6.1.2-1; Depends: linux-headers-6.1.0-2-common (= 6.1.2-1), gcc-12
linux-headers-6.12-amd64 6.12.9-1~deb12u1; Depends: linux-headers-6.12.9+deb12-amd64 (= 6.12.9-1~deb12u1)
`)})
	list, err := b.client(Options{}).Kernels(t.Context(), "bookworm", "amd64")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, k := range list {
		got = append(got, fmt.Sprintf("%s %s %t %t", k.Release, k.Flavour, k.Default, k.Latest))
	}
	want := []string{"6.12.9+deb12-amd64 amd64 false false", "6.1.0-2-amd64 amd64 true true", "6.1.0-1-amd64 amd64 true false",
		"6.1.0-1-cloud-amd64 cloud-amd64 false false"}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
