package pacman

import (
	"context"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/distrotest"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// headers gives the header package of a version, whose kernel has that release.
func headers(t *testing.T, name, version, release string) distrotest.Package {
	return distrotest.Package{Name: name, Version: version, Arch: "x86_64", Depends: []string{"pahole"},
		Files: distrotest.Headers(t, release, "gcc (GCC) 12.2.1 20230801").OneFolder("usr/lib/modules/" + release + "/build")}
}

// packages are all that a lock wants, empty but for the headers.
func packages(t *testing.T) []distrotest.Package {
	out := []distrotest.Package{
		headers(t, "linux-headers", "6.8.arch1-1", "6.8.0-arch1-1"),
		headers(t, "linux-lts-headers", "6.6.30-2", "6.6.30-2-lts"),
	}
	add := func(name, version string, depends ...string) *distrotest.Package {
		out = append(out, distrotest.Package{Name: name, Version: version, Arch: "x86_64", Depends: depends, Files: distrotest.Files{"usr/share/" + name: distrotest.Text(name)}})
		return &out[len(out)-1]
	}
	add("gcc", "12.2.1+r3+gabc-1", "gcc-libs=12.2.1+r3+gabc-1", "binutils>=2.28", "libisl.so=23-64")
	add("gcc-libs", "12.2.1+r3+gabc-1", "glibc>=2.27").Provides = []string{"libgcc_s.so=1-64"}
	add("glibc", "2.39-1", "filesystem")
	add("libisl", "0.26-1").Provides = []string{"libisl.so=23-64"}
	add("pahole", "1:1.26-1", "libelf")
	for _, name := range arch().tools {
		switch name {
		case "bash":
			add(name, "5.2-1", "glibc").Provides = []string{"sh"}
		case "binutils":
			add(name, "2.42-1")
		default:
			add(name, "1-1")
		}
	}
	return out
}

// mirrorOf makes a mirror of these packages, with changes to its two repositories.
func mirrorOf(t *testing.T, change func(core, extra *distrotest.Pacman)) string {
	core, extra := distrotest.Pacman{Name: "core", Index: "zst"}, distrotest.Pacman{Name: "extra"}
	for _, p := range packages(t) {
		if p.Name == "pahole" || p.Name == "libelf" {
			extra.Packages = append(extra.Packages, p)
		} else {
			core.Packages = append(core.Packages, p)
		}
	}
	extra.Packages = append(extra.Packages, distrotest.Package{Name: "gcc", Version: "13.1.1-1", Arch: "x86_64", Depends: []string{"binutils"},
		Files: distrotest.Files{"usr/share/gcc": distrotest.Text("13")}}) // newer than the kernels' own
	if change != nil {
		change(&core, &extra)
	}
	return distrotest.Mirror(t, core, extra)
}

// provider reads mirrors with the tests' key.
func provider(t *testing.T, cache string, mirrors ...string) *Provider {
	t.Helper()
	p, err := New("arch", repo.Options{CacheDir: cache, Etc: "/nonexistent", Mirrors: map[string][]string{"arch": mirrors}, Keyring: distrotest.Keyring(t), Warn: func(w string) { t.Log(w) },
		Fetch: func(ctx context.Context, p kernels.Package) (io.ReadCloser, error) {
			r, err := http.Get(p.URL)
			if err != nil {
				return nil, err
			}
			if r.StatusCode != 200 {
				return nil, errors.New(r.Status)
			}
			return r.Body, nil
		}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func kernel(release string) kernels.Kernel {
	return kernels.Kernel{Distro: "arch", Suite: "rolling", Arch: "amd64", Release: release}
}

func TestLock(t *testing.T) {
	t.Parallel()
	cache, url := t.TempDir(), distrotest.Serve(t, mirrorOf(t, nil))
	p := provider(t, cache, url)
	list, err := p.Kernels(t.Context(), "rolling", "amd64")
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range list {
		got = append(got, c.Release+" "+c.Flavour+" "+c.PackageVersion)
	}
	if want := []string{"6.8.0-arch1-1 arch 6.8.arch1-1", "6.6.30-2-lts lts 6.6.30-2"}; !slices.Equal(got, want) || !list[0].Latest || list[1].Default {
		t.Fatalf("kernels: %q, %+v; want %q", got, list, want)
	}
	l, err := p.Lock(t.Context(), kernel("6.8.0-arch1-1"), kernels.Extra{Packages: []string{"sh"}, Depends: []string{"dkms", "xorg-server"}})
	if err != nil {
		t.Fatal(err)
	}
	names := func(list []kernels.Package) string {
		var out []string
		for _, p := range list {
			out = append(out, p.Name)
		}
		return strings.Join(out, " ")
	}
	if l.Compiler != "gcc-12" || l.Forced || l.Build != "usr/lib/modules/6.8.0-arch1-1/build" || names(l.Headers) != "linux-headers pahole" ||
		!strings.Contains(names(l.Toolchain), "gcc gcc-libs glibc grep") || !strings.Contains(names(l.Toolchain), "libisl") {
		t.Errorf("%s; %s; %s; %s", l.Compiler, l.Build, names(l.Headers), names(l.Toolchain))
	}

	if _, err := p.Probe(t.Context(), p.Mirrors()[0]); err != nil {
		t.Errorf("probe: %v", err)
	}
	if x, err := p.Indexes(t.Context(), "rolling", "amd64"); err != nil || len(x) != 2 || x[0].Name != "core" || x[0].URL != url || x[0].Date.IsZero() {
		t.Errorf("indexes: %+v, %v; want core and extra, with their dates", x, err)
	}

	// The second time, and offline, nothing is fetched, and the compiler is known.
	off, err := New("arch", repo.Options{CacheDir: cache, Mirrors: map[string][]string{"arch": {url}}, Keyring: distrotest.Keyring(t), Offline: true})
	if err != nil {
		t.Fatal(err)
	}
	again, err := off.Lock(t.Context(), kernel("6.8.0-arch1-1"), kernels.Extra{Packages: []string{"sh", "bash"}})
	if err != nil || again.Digest() != l.Digest() {
		t.Errorf("offline: %v, %s; want %s", err, again.Digest(), l.Digest())
	}
	if list, err := off.Kernels(t.Context(), "rolling", "amd64"); err != nil || list[0].Compiler != "gcc-12" {
		t.Errorf("offline: %v, %+v", err, list)
	}

	// Two mirrors, in any order, come to the same.
	other := distrotest.Serve(t, mirrorOf(t, nil))
	for _, mirrors := range [][]string{{url, other}, {other, url}} {
		both, err := provider(t, t.TempDir(), mirrors...).Lock(t.Context(), kernel("6.8.0-arch1-1"), kernels.Extra{Packages: []string{"bash"}})
		if err != nil || both.Digest() != l.Digest() {
			t.Errorf("of two mirrors: %v, %s; want %s", err, both.Digest(), l.Digest())
			continue
		}
		if h := both.Headers[0]; !strings.HasPrefix(h.URL, mirrors[0]) || len(h.Mirrors) != 1 || !strings.HasPrefix(h.Mirrors[0], mirrors[1]) {
			t.Errorf("%+v; want the first mirror's, and the second's beside it", h)
		}
	}

	// What was lost of the cache is fetched again.
	if err := os.RemoveAll(filepath.Join(cache, "arch/memo")); err != nil {
		t.Fatal(err)
	}
	lists, err := filepath.Glob(filepath.Join(cache, "arch/*/*.idx"))
	if err != nil || len(lists) != 2 {
		t.Fatalf("compact indexes: %q, %v; want two", lists, err)
	}
	edit(t, lists[0], func(b []byte) []byte { return b[:100] })
	if again, err := provider(t, cache, url).Lock(t.Context(), kernel("6.8.0-arch1-1"), kernels.Extra{Packages: []string{"bash"}}); err != nil || again.Digest() != l.Digest() {
		t.Errorf("of a damaged cache: %v, %s; want %s", err, again.Digest(), l.Digest())
	}

	if _, err := p.Lock(t.Context(), kernel("6.8.1-arch1-1"), kernels.Extra{}); !errors.Is(err, kernels.ErrNotFound) || !strings.Contains(err.Error(), "6.8.0-arch1-1") {
		t.Errorf("%v; want not found, with what is near", err)
	}
	p.opts.Compiler = "gcc-13"
	forced, err := p.Lock(t.Context(), kernel("6.8.0-arch1-1"), kernels.Extra{})
	if i := slices.IndexFunc(forced.Toolchain, func(p kernels.Package) bool { return p.Name == "gcc" }); err != nil || !forced.Forced || forced.Compiler != "gcc-13" ||
		forced.Toolchain[i].Version != "13.1.1-1" {
		t.Errorf("%v, %+v; want gcc-13 as it was asked for", err, forced.Toolchain)
	}
	p.opts.Compiler = "gcc-14"
	if _, err := p.Lock(t.Context(), kernel("6.8.0-arch1-1"), kernels.Extra{}); !errors.Is(err, kernels.ErrNotFound) || !strings.Contains(err.Error(), "gcc-14") {
		t.Errorf("%v; want no such compiler", err)
	}
}

// What a mirror has is refused unless it's signed, whole, and what it's said to be.
func TestTrust(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(core, extra *distrotest.Pacman)
		spoil  func(t *testing.T, dir string)
		keys   bool // Arch's own
		want   string
	}{
		"signatures beside the packages": {change: func(core, extra *distrotest.Pacman) { core.NoSignatures, extra.NoSignatures = true, true }},
		"an unsigned package":            {change: func(core, extra *distrotest.Pacman) { extra.Unsigned = []string{"libelf"} }, want: `"libelf" 1-1: it isn't signed`},
		"unsigned headers": {change: func(core, extra *distrotest.Pacman) { core.Unsigned = []string{"linux-headers"} },
			want: `"linux-headers" 6.8.arch1-1: it isn't signed`},
		"an altered package": {spoil: func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, "core/os/x86_64/gcc-12.2.1+r3+gabc-1-x86_64.pkg.tar.zst"), func(b []byte) []byte { b[len(b)/2] ^= 1; return b })
		}, want: `"gcc" 12.2.1+r3+gabc-1: its signature: openpgp: invalid signature`},
		"another package under its name": {spoil: func(t *testing.T, dir string) {
			at := filepath.Join(dir, "core/os/x86_64/")
			for _, end := range []string{"", ".sig"} {
				b, err := os.ReadFile(at + "/make-1-1-x86_64.pkg.tar.zst" + end)
				if err != nil {
					t.Fatal(err)
				}
				edit(t, at+"/bc-1-1-x86_64.pkg.tar.zst"+end, func([]byte) []byte { return b })
			}
		}, want: `is signed as "make" 1-1`},
		"a truncated database": {spoil: func(t *testing.T, dir string) {
			edit(t, filepath.Join(dir, "core/os/x86_64/core.db"), func(b []byte) []byte { return b[:len(b)-len(b)/3] })
		}, want: "core.db"},
		"a key that isn't Arch's": {keys: true, want: "signature"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := mirrorOf(t, c.change)
			if c.spoil != nil {
				dir = distrotest.Copy(t, dir)
				c.spoil(t, dir)
			}
			p := provider(t, t.TempDir(), distrotest.Serve(t, dir))
			if c.keys {
				p.opts.Keyring = nil
				p2, err := newProvider(p.distro, p.opts)
				if err != nil {
					t.Fatal(err)
				}
				p = p2
			}
			l, err := p.Lock(t.Context(), kernel("6.8.0-arch1-1"), kernels.Extra{})
			switch {
			case c.want == "" && err != nil:
				t.Error(err)
			case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, kernels.ErrUntrusted)):
				t.Errorf("%v, %d packages; want an untrusted %q", err, len(l.Toolchain), c.want)
			}
		})
	}
}

// edit replaces a file, whose content is another repository's too.
func edit(t *testing.T, name string, change func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(name)
	if err == nil {
		err = os.Remove(name)
	}
	if err == nil {
		err = os.WriteFile(name, change(b), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestReleases(t *testing.T) {
	flavours := arch().flavours
	for _, c := range []struct {
		flavour       int
		version, want string
	}{
		{0, "6.8.arch1-1", "6.8.0-arch1-1"}, {0, "6.8.1.arch1-1", "6.8.1-arch1-1"}, {0, "6.8.9.arch1-2", "6.8.9-arch1-2"},
		{0, "6.8.1-1", ""}, {0, "6.8.1.zen1-1", ""}, {0, "6.8.1.arch1", ""},
		{1, "6.6.30-1", "6.6.30-1-lts"}, {1, "6.12-1", "6.12.0-1-lts"}, {1, "6.6.30.arch1-1", ""},
		{2, "6.8.9.zen1-1", "6.8.9-zen1-1-zen"}, {2, "6.9.zen1-1", "6.9.0-zen1-1-zen"},
		{3, "6.8.9.hardened1-1", "6.8.9-hardened1-1-hardened"},
	} {
		got, ok := flavours[c.flavour].release(c.version)
		if got != c.want || ok != (c.want != "") {
			t.Errorf("%s %s: %q; want %q", flavours[c.flavour].name, c.version, got, c.want)
		}
		p, err := New("arch", repo.Options{CacheDir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		if ok && len(p.Claims(got)) != 1 {
			t.Errorf("%q is not claimed", got)
		}
	}
}

func TestClaims(t *testing.T) {
	p, err := New("arch", repo.Options{CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	for release, want := range map[string]bool{
		"6.8.0-31-generic": false, "6.1.0-56-amd64": false, "5.14.0-427.13.1.el9_4.x86_64": false, "6.4.0-150600.21-default": false,
		"6.8.*": true, "*-lts": true, "*-zen": true, "6.8.9-arch1-1": true,
	} {
		if got := len(p.Claims(release)) > 0; got != want {
			t.Errorf("Claims(%q): %v; want %v", release, got, want)
		}
	}
}

func TestKeys(t *testing.T) {
	p, err := New("arch", repo.Options{CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if keys, err := p.Keys(); err != nil || len(keys) != 73 {
		t.Errorf("%d keys, %v; want 73", len(keys), err)
	}
}

func TestHostMirror(t *testing.T) {
	etc := t.TempDir()
	write := func(name, text string) {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(etc, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("pacman.d/mirrorlist", "# Server = https://no.example/$repo/os/$arch\nServer = https://one.example/arch/$repo/os/$arch\nServer = https://two.example/$repo/os/$arch\n")
	for id, want := range map[string]string{"arch": "https://one.example/arch", "manjaro": arch().url} {
		write("os-release", "NAME=x\nID="+id+"\n")
		p, err := New("arch", repo.Options{CacheDir: t.TempDir(), Etc: etc})
		if err != nil {
			t.Fatal(err)
		}
		if m := p.Mirrors(); len(m) != 1 || m[0].URL != want {
			t.Errorf("on %s: %+v; want %s", id, m, want)
		}
	}
}
