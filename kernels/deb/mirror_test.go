package deb

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// The tests below and TestPayloadOfRealPackages run against the real archive, through the mirror of this machine's apt
// configuration, or else Debian's own. -short leaves them out.

// mirrorCache is shared by them: indexes are large.
var mirrorCache = sync.OnceValues(func() (string, error) { return os.MkdirTemp("", "deb-mirror-*") })

func TestMain(m *testing.M) {
	code := m.Run()
	if dir, err := mirrorCache(); err == nil {
		os.RemoveAll(dir)
	}
	os.Exit(code)
}

func mirrorProvider(t testing.TB, o Options) *Provider {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a Debian mirror")
	}
	dir, err := mirrorCache()
	if err != nil {
		t.Fatal(err)
	}
	o.CacheDir = dir
	o.Warn = func(s string) { t.Log("warning: " + s) }
	p, err := New("debian", o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// newestLock locks the newest kernel of the default flavour and of a line, as in "6.1.", or of any.
func newestLock(t testing.TB, p *Provider, suite, arch, line string) kernels.Lock {
	t.Helper()
	list, err := p.Kernels(t.Context(), suite, arch)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(k kernels.Candidate) bool {
		plain := !strings.Contains(k.Release, "cloud") && !strings.Contains(k.Release, "rt")
		return k.Latest && line == "" || line != "" && plain && strings.HasPrefix(k.Release, line)
	})
	if i < 0 {
		t.Fatalf("%s has no such kernel among %v", suite, list)
	}
	l, err := p.Lock(t.Context(), list[i].Kernel, kernels.Extra{})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestMirrorSuites(t *testing.T) {
	for _, c := range []struct {
		suite, arch string
		compiler    string   // of all kernels, if it says so
		series      []string // that kernels of the plain flavour come in
		expired     bool
	}{
		{"bullseye", "amd64", "gcc-10", []string{"5.10.0-", "6.1.0-0.deb11."}, false},
		{"bookworm", "amd64", "gcc-12", []string{"6.1.0-", "6.12."}, false},
		{"bookworm", "arm64", "gcc-12", []string{"6.1.0-", "6.12."}, false},
		{"trixie", "amd64", "gcc-14", []string{"6.12."}, false},
		{"trixie", "arm64", "gcc-14", []string{"6.12."}, false},
		{"sid", "amd64", "", []string{""}, true},
	} {
		t.Run(c.suite+" "+c.arch, func(t *testing.T) {
			p := mirrorProvider(t, Options{AcceptExpired: c.expired})
			list, err := p.Kernels(t.Context(), c.suite, c.arch)
			if err != nil {
				t.Fatal(err)
			}
			for _, s := range c.series {
				if !slices.ContainsFunc(list, func(k kernels.Candidate) bool {
					return strings.HasPrefix(k.Release, s) && strings.HasSuffix(k.Release, "-"+c.arch)
				}) {
					t.Errorf("no kernel %s*-%s", s, c.arch)
				}
			}
			toolchains, defaults := map[string]bool{}, 0
			for i, k := range list {
				if i > 0 && compareVersions(list[i-1].PackageVersion, k.PackageVersion) < 0 {
					t.Errorf("%s comes before %s", list[i-1].Release, k.Release)
				}
				if strings.Contains(k.Release, "common") || !strings.Contains(k.Release, ".") || strings.Count(k.Release, "-") < 1 {
					t.Errorf("%q is no kernel", k.Release)
				}
				l, err := p.Lock(t.Context(), k.Kernel, kernels.Extra{})
				if err != nil {
					t.Error(err)
					continue
				}
				if k.Latest {
					defaults++
					var size int64
					for _, q := range slices.Concat(l.Toolchain, l.Headers) {
						size += q.Size
					}
					t.Logf("%s: %d packages in the toolchain and %d more, %d MB in all", k.Release, len(l.Toolchain), len(l.Headers), size/1e6)
				}
				toolchains[l.ToolchainDigest().String()+l.Compiler] = true
				if l.Compiler != k.Compiler || c.compiler != "" && l.Compiler != c.compiler {
					t.Errorf("Lock(%v).Compiler = %q; listed is %q, want %q", k.Kernel, l.Compiler, k.Compiler, c.compiler)
				}
				checkLock(t, l)
			}
			if defaults != 1 {
				t.Errorf("%d kernels are the default; want 1", defaults)
			}
			if c.compiler != "" && len(toolchains) != 1 {
				t.Errorf("%d toolchains for one compiler", len(toolchains))
			}
		})
	}
}

func checkLock(t *testing.T, l kernels.Lock) {
	t.Helper()
	all := slices.Concat(l.Toolchain, l.Headers)
	has := map[string]bool{}
	var size int64
	for _, k := range all {
		if has[k.Name] {
			t.Errorf("%v: %q is there twice", l.Kernel, k.Name)
		}
		has[k.Name] = true
		size += k.Size
		if k.Arch != "all" && k.Arch != l.Kernel.Arch || k.Size <= 0 || len(k.Digest.Hex) != 64 || !strings.HasPrefix(k.URL, "http") {
			t.Errorf("%+v", k)
		}
	}
	for _, want := range []string{"dash", "mawk", "bash", "perl-base", "libc6", "make", "patch", "kmod", "bc", "xz-utils", "binutils", l.Compiler,
		"linux-headers-" + l.Kernel.Release} {
		if !has[want] {
			t.Errorf("%v: no %s", l.Kernel, want)
		}
	}
	for name := range has {
		if name == "perl" || name == "libc6-dev" || strings.HasPrefix(name, "g++") || strings.HasPrefix(name, "python") ||
			strings.HasPrefix(name, "linux-image-") || strings.HasPrefix(name, "systemd") {
			t.Errorf("%v: %s is in it", l.Kernel, name)
		}
	}
	if len(all) > 115 || size > 110<<20 {
		t.Errorf("%v: %d packages of %d MB", l.Kernel, len(all), size>>20)
	}
}

func TestMirrorSidIsExpired(t *testing.T) {
	p := mirrorProvider(t, Options{})
	_, err := p.Kernels(t.Context(), "sid", "amd64")
	if err == nil {
		return // this mirror is up to date
	}
	for _, want := range []string{`"sid" expired on 20`, "/dists/sid/InRelease", "--accept-expired"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
}

func TestMirrorUnknown(t *testing.T) {
	p := mirrorProvider(t, Options{})
	_, err := p.Lock(t.Context(), kernels.Kernel{Distro: "debian", Suite: "bookworm", Arch: "amd64", Release: "6.1.0-999-amd64"}, kernels.Extra{})
	if !errors.Is(err, kernels.ErrNotFound) || strings.Count(err.Error(), "-amd64\"") != 4 {
		t.Errorf("unknown release: %v", err)
	}
	l := newestLock(t, p, "bookworm", "amd64", "")
	if _, err = p.Lock(t.Context(), l.Kernel, kernels.Extra{Packages: []string{"libelf-dve"}}); !errors.Is(err, kernels.ErrNotFound) || !strings.Contains(err.Error(), `"libelf-dev"`) {
		t.Errorf("unknown extra: %v", err)
	}
	with, err := p.Lock(t.Context(), l.Kernel, kernels.Extra{Packages: []string{"libelf-dev"}})
	if err != nil {
		t.Fatal(err)
	}
	if with.ToolchainDigest() != l.ToolchainDigest() || !strings.Contains(names(with.Headers), "libelf-dev") {
		t.Errorf("with libelf-dev: %s", names(with.Headers))
	}
}

// TestMirrorResolve finds kernels without being told the suite.
func TestMirrorResolve(t *testing.T) {
	p := mirrorProvider(t, Options{})
	bookworm, trixie := newestLock(t, p, "bookworm", "amd64", "").Kernel, newestLock(t, p, "trixie", "amd64", "").Kernel
	sel, err := kernels.ParseSelectors(trixie.Release + ",running,debian/bookworm:latest,debian/trixie:latest")
	if err != nil {
		t.Fatal(err)
	}
	r := kernels.Resolver{Providers: map[string]kernels.Provider{"debian": p}, Arch: "amd64", Running: bookworm,
		Warn: func(s string) { t.Log("warning: " + s) }}
	if got := resolved(t, r, sel); !slices.Equal(got, []kernels.Kernel{trixie, bookworm}) {
		t.Errorf("Resolve = %v; want %v, %v", got, trixie, bookworm)
	}
}

// resolved are the kernels of a request that has answers.
func resolved(t testing.TB, r kernels.Resolver, request []kernels.Selector) (out []kernels.Kernel) {
	t.Helper()
	answers, err := r.Resolve(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range answers {
		if a.Err != nil {
			t.Fatal(a.Err)
		}
		for _, k := range a.Kernels {
			out = append(out, k.Kernel)
		}
	}
	return out
}

// aptOptions sets up an apt of its own, for an empty root and the indexes of one suite. What this machine's apt has fetched, and
// from where, does not matter.
func aptOptions(t *testing.T, p *Provider, suite string) []string {
	t.Helper()
	need.Program(t, "apt-get")
	dir := t.TempDir()
	keys, list := filepath.Join(dir, "keys.asc"), ""
	s, _ := p.distro.suite(suite)
	for _, pk := range s.pockets {
		list += fmt.Sprintf("deb [arch=amd64 signed-by=%s] %s %s main\n", keys, p.bases[pk.archive][0], pk.name)
	}
	for name, text := range map[string]string{"keys.asc": p.distro.keyring, "sources.list": list, "status": "", "preferences": ""} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"state/lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	var opts []string
	for _, o := range []string{"Dir::State=" + dir + "/state", "Dir::State::status=" + dir + "/status", "Dir::Cache=" + dir + "/cache",
		"Dir::Etc::sourcelist=" + dir + "/sources.list", "Dir::Etc::sourceparts=-", "Dir::Etc::preferences=" + dir + "/preferences",
		"Dir::Etc::preferencesparts=-", "APT::Architecture=amd64", "APT::Architectures=amd64", "APT::Sandbox::User=root",
		"Acquire::Languages=none", "Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false", "Debug::NoLocking=1"} {
		opts = append(opts, "-o", o)
	}
	if out, err := exec.Command("apt-get", append(slices.Clone(opts), "-q", "update")...).CombinedOutput(); err != nil {
		need.Skip(t, "apt-get update: %v: %s", err, out)
	}
	return opts
}

// TestMirrorAsApt compares a lock with what apt would install into an empty root.
func TestMirrorAsApt(t *testing.T) {
	p := mirrorProvider(t, Options{})
	apt := aptOptions(t, p, "bookworm")
	l := newestLock(t, p, "bookworm", "amd64", "6.1.") // later headers depend on the kernel itself, which is not locked
	v, err := p.view(t.Context(), "bookworm")
	if err != nil {
		t.Fatal(err)
	}
	pool, err := p.pool(t.Context(), v, "amd64", false)
	if err != nil {
		t.Fatal(err)
	}
	ess, err := pool.sources[0].essentials()
	if err != nil {
		t.Fatal(err)
	}
	args := append(apt, "-s", "install", "--no-install-recommends", "linux-headers-"+l.Kernel.Release, l.Compiler, "usr-is-merged")
	for _, e := range ess {
		args = append(args, e.name)
	}
	out, err := exec.Command("apt-get", append(args, debian().tools...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("apt-get: %v: %s", err, out)
	}
	want := map[string]bool{}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "Inst" {
			want[f[1]] = true
		}
	}
	for _, k := range slices.Concat(l.Toolchain, l.Headers) {
		if !want[k.Name] {
			t.Errorf("%s is locked, and not installed by apt", k.Name)
		}
		delete(want, k.Name)
	}
	for name := range want {
		t.Errorf("%s is installed by apt, and not locked", name)
	}
}

func BenchmarkMirror(b *testing.B) {
	l := newestLock(b, mirrorProvider(b, Options{}), "bookworm", "amd64", "")
	b.Run("kernels", func(b *testing.B) {
		for b.Loop() {
			if _, err := mirrorProvider(b, Options{}).Kernels(b.Context(), "bookworm", "amd64"); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("lock", func(b *testing.B) {
		for b.Loop() {
			if _, err := mirrorProvider(b, Options{}).Lock(b.Context(), l.Kernel, kernels.Extra{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("six kernels of two suites", func(b *testing.B) {
		sel, err := kernels.ParseSelectors("6.1.0-5[3-6]-amd64,debian/bookworm:6.12.117+deb12-amd64,debian/trixie:latest")
		if err != nil {
			b.Fatal(err)
		}
		n := 0
		run := func() {
			p := mirrorProvider(b, Options{})
			r := kernels.Resolver{Providers: map[string]kernels.Provider{"debian": p}, Arch: "amd64"}
			list := resolved(b, r, sel)
			n = len(list)
			for _, k := range list {
				if _, err := p.Lock(b.Context(), k, kernels.Extra{}); err != nil {
					b.Fatal(err)
				}
			}
		}
		run()
		for b.Loop() {
			run()
		}
		b.ReportMetric(float64(n), "kernels")
	})
	b.Run("lock that was never made", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			p := mirrorProvider(b, Options{})
			os.RemoveAll(p.keep.Path("memo"))
			b.StartTimer()
			if _, err := p.Lock(b.Context(), l.Kernel, kernels.Extra{}); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("50 locks that were never made", func(b *testing.B) { // at most 2 s
		list, err := mirrorProvider(b, Options{}).Kernels(b.Context(), "bookworm", "amd64")
		if err != nil {
			b.Fatal(err)
		}
		for b.Loop() {
			b.StopTimer()
			p := mirrorProvider(b, Options{})
			os.RemoveAll(p.keep.Path("memo"))
			b.StartTimer()
			for i := range 50 { // where the suite has fewer, with packages that make it another lock
				extra := kernels.Extra{Packages: []string{"perl", "flex", "bison", "gawk", "rsync"}[:i/len(list)]}
				if _, err := p.Lock(b.Context(), list[i%len(list)].Kernel, extra); err != nil {
					b.Fatal(err)
				}
			}
		}
		b.ReportMetric(float64(len(list)), "kernels")
	})
	b.Run("cold", func(b *testing.B) {
		for b.Loop() {
			p := mirrorProvider(b, Options{})
			p.opts.CacheDir = b.TempDir()
			if _, err := p.Lock(b.Context(), l.Kernel, kernels.Extra{}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
