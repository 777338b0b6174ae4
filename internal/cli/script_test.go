package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	v1registry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/godkms-hermetic/godkms-hermetic/builder/docker"
	"github.com/godkms-hermetic/godkms-hermetic/builder/sandbox"
	"github.com/godkms-hermetic/godkms-hermetic/cache"
	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/trial"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/deb"
)

func TestMain(m *testing.M) {
	if sandbox.IsInit() || docker.IsInit() || trial.IsInit() { // Main sees to it
		os.Exit(Main(context.Background(), nil, os.Stdout, os.Stderr))
	}
	for name, value := range onlyDebian() {
		os.Setenv(name, value)
	}
	testscript.Main(m, map[string]func(){
		"godkms-hermetic": func() {
			ctx, stop := Interruptible()
			defer stop()
			os.Exit(Main(ctx, os.Args[1:], os.Stdout, os.Stderr))
		},
	})
}

// onlyDebian is an environment in which no request leaves this machine but to its mirrors of Debian: a test whose release is one of another
// distribution's gets no answer, rather than that distribution's own archive.
var onlyDebian = sync.OnceValue(func() map[string]string {
	hosts := []string{"localhost", "127.0.0.1", "::1"}
	if p, err := deb.New("debian", deb.Options{CacheDir: os.DevNull}); err == nil {
		for _, m := range p.Mirrors() {
			if u, err := url.Parse(m.URL); err == nil {
				hosts = append(hosts, u.Hostname())
			}
		}
	}
	env := map[string]string{}
	for _, name := range []string{"HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"} {
		if os.Getenv(name) == "" && os.Getenv(strings.ToUpper(name)) == "" {
			env[name] = "http://127.0.0.1:1" // nothing listens there
		}
	}
	if len(env) == 4 { // else the machine's own proxies stand
		env["NO_PROXY"], env["no_proxy"] = strings.Join(hosts, ","), strings.Join(hosts, ",")
	}
	return env
})

// TestScripts runs the program on real packages, real kernels and the machine's own mirror. Beside testscript's commands a
// script has:
//
//	fresh NAME [KERNEL ...]  makes the cache folder $WORK/NAME: it has the indexes and packages of the other tests, and the unpacked
//	                         header images of these kernels, which are among $K61, $K612 and $TRIXIE, and no results; with
//	                         -packed before the kernels, the images are packed as well
//	bootable NAME KERNEL     gives the cache folder $WORK/NAME the kernel itself, in the form that boots
//	host NAME KERNEL ...     makes the root of a host, $WORK/NAME, with a few modules of each of these kernels, which are among $K61 and $K612,
//	                         and the sources hello-1.0 and importer-3 in /usr/src
//	fetch PACKAGE            downloads a Debian package to $WORK/PACKAGE.deb
//	mirror MODE              starts a mirror on loopback, $MIRROR, that spoils what it passes on, as MODE says
//	registry                 starts a registry on loopback, $REGISTRY, that refuses all below denied/
//	offline CMD ...          runs a command where there is no network
//	nobody CMD ...           runs a command as an ordinary user
//	nosandbox CODE CMD       as exits, where there can be no more user namespaces
//	exits CODE CMD ...       runs a command and wants that exit code
//	count PATTERN N          wants N files whose paths match
//	same A B                 wants two files with the same bytes
//	spoil PATTERN            turns one bit of a file
//	alter NAME               gives the modules of all results of a cache folder another license, and their artifacts the digests for that
//
// $K61, $K612 and $TRIXIE are the newest kernels of bookworm's 6.1 and 6.12 lines and of trixie's 6.12; $R61, $R612 and $RTRIXIE
// their releases. The condition stale-sid holds where the mirror's index of sid is past its Valid-Until, root for
// root. $LATEST is what trixie:latest stands for. $TREES has the module sources.
func TestScripts(t *testing.T) {
	t.Parallel()
	shared := sharedCache(t)
	exe, err := exec.LookPath("godkms-hermetic")
	if err != nil {
		t.Fatal(err)
	}
	vars := newestKernels(t, shared)
	repository, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	vars = append(vars, "TREES="+filepath.Join(repository, "testdata"))
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata",
		WorkdirRoot:         t.TempDir(),
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Condition: func(name string) (bool, error) {
			if name == "root" {
				return os.Getuid() == 0, nil
			}
			if name != "stale-sid" {
				return false, fmt.Errorf("no condition %q", name)
			}
			var out, errs bytes.Buffer
			code := Main(t.Context(), []string{"kernels", "debian/sid", "--cache-dir", shared}, &out, &errs)
			return code != 0 && strings.Contains(errs.String(), "expired"), nil
		},
		Setup: func(e *testscript.Env) error {
			e.Vars = append(e.Vars, vars...)
			for name, value := range onlyDebian() {
				e.Setenv(name, value)
			}
			e.Setenv("HOME", filepath.Join(e.WorkDir, "home"))
			e.Setenv("XDG_CACHE_HOME", filepath.Join(e.WorkDir, "home/cache"))
			e.Setenv("XDG_CONFIG_HOME", filepath.Join(e.WorkDir, "home/config"))
			return os.MkdirAll(filepath.Join(e.WorkDir, "home"), 0o755)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"fresh": func(ts *testscript.TestScript, _ bool, args []string) {
				dir := ts.MkAbs(args[0])
				ts.Check(os.MkdirAll(filepath.Join(dir, "images/packages"), 0o755))
				ts.Check(exec.Command("cp", "-a", filepath.Join(shared, "index"), dir).Run())
				linked := []string{"packages/sha256"}
				of := args[1:]
				packed := len(of) > 0 && of[0] == "-packed"
				if packed {
					of = of[1:]
				}
				for _, name := range of {
					where, release, _ := strings.Cut(name, ":")
					distro, suite, _ := strings.Cut(where, "/")
					i, err := plainImage(shared, kernels.Kernel{Distro: distro, Suite: suite, Arch: kernels.HostArch(), Release: release})
					ts.Check(err)
					linked = append(linked, i.file)
					for _, key := range i.Layers {
						if layer := "layers/" + key; !slices.Contains(linked, layer) { // kernels share their toolchain
							linked = append(linked, layer)
						}
					}
					if packed {
						names, err := i.packed(shared)
						ts.Check(err)
						linked = append(linked, names...)
					}
				}
				for _, name := range linked {
					to := filepath.Join(dir, "images", filepath.Dir(name))
					ts.Check(os.MkdirAll(to, 0o755))
					ts.Check(exec.Command("cp", "-al", filepath.Join(shared, "images", name), to).Run())
				}
			},
			"bootable": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(bootable(shared, args[1]))
				to := ts.MkAbs(filepath.Join(args[0], "images"))
				ts.Check(exec.Command("cp", "-alf", filepath.Join(shared, "images/kernels"), to).Run())
			},
			"host": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(makeHost(ts.MkAbs(args[0]), filepath.Join(repository, "testdata"), args[1:]))
			},
			"fetch": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(fetch(shared, args[0], ts.MkAbs(args[0]+".deb")))
			},
			"mirror": func(ts *testscript.TestScript, _ bool, args []string) {
				base, err := mirrorURL(shared)
				ts.Check(err)
				s := httptest.NewServer(spoil(base, args[0]))
				ts.Defer(s.Close)
				ts.Setenv("MIRROR", s.URL+"/debian")
			},
			"registry": func(ts *testscript.TestScript, _ bool, _ []string) {
				inner := v1registry.New(v1registry.Logger(log.New(io.Discard, "", 0)))
				s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if strings.HasPrefix(r.URL.Path, "/v2/denied/") {
						w.WriteHeader(http.StatusForbidden)
						return
					}
					inner.ServeHTTP(w, r)
				}))
				ts.Defer(s.Close)
				ts.Setenv("REGISTRY", strings.TrimPrefix(s.URL, "http://"))
			},
			"offline": func(ts *testscript.TestScript, neg bool, args []string) {
				check(ts, neg, ts.Exec("unshare", append([]string{"--map-root-user", "--net"}, args...)...))
			},
			"nobody": func(ts *testscript.TestScript, neg bool, args []string) {
				if os.Getuid() == 0 {
					ts.Check(letIn(ts.Getenv("WORK"), filepath.Dir(exe)))
					args = append([]string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}, args...)
				}
				check(ts, neg, ts.Exec(args[0], args[1:]...))
			},
			"nosandbox": func(ts *testscript.TestScript, _ bool, args []string) {
				err := ts.Exec("unshare", append([]string{"--user", "--map-root-user", "sh", "-c", noNamespaces, "sh"}, args[1:]...)...)
				if got := exitCode(err); fmt.Sprint(got) != args[0] {
					ts.Fatalf("exit code %d; want %s", got, args[0])
				}
			},
			"exits": func(ts *testscript.TestScript, _ bool, args []string) {
				err := ts.Exec(args[1], args[2:]...)
				if got := exitCode(err); fmt.Sprint(got) != args[0] {
					ts.Fatalf("exit code %d; want %s", got, args[0])
				}
			},
			"count": func(ts *testscript.TestScript, _ bool, args []string) {
				files, err := filepath.Glob(ts.MkAbs(args[0]))
				ts.Check(err)
				if fmt.Sprint(len(files)) != args[1] {
					ts.Fatalf("%d files are %s; want %s: %s", len(files), args[0], args[1], files)
				}
			},
			"same":  func(ts *testscript.TestScript, neg bool, args []string) { compare(ts, !neg, args) },
			"alter": func(ts *testscript.TestScript, _ bool, args []string) { ts.Check(alter(ts.MkAbs(args[0]))) },
			"spoil": func(ts *testscript.TestScript, _ bool, args []string) {
				files, err := filepath.Glob(ts.MkAbs(args[0]))
				ts.Check(err)
				if len(files) == 0 {
					ts.Fatalf("no file is %s", args[0])
				}
				b, err := os.ReadFile(files[0])
				ts.Check(err)
				b[len(b)/2] ^= 1
				ts.Check(os.Remove(files[0])) // it may be linked to the shared cache's
				ts.Check(os.WriteFile(files[0], b, 0o644))
			},
		},
	})
}

// bootable has a cache keep a kernel in the form that boots.
func bootable(cache, name string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	a := &app{stdout: io.Discard, stderr: io.Discard, env: os.Getenv, format: "text", cacheDir: cache}
	if err := a.start(); err != nil {
		return err
	}
	r, err := a.newRun(defaultBuild())
	if err != nil {
		return err
	}
	where, release, _ := strings.Cut(name, ":")
	distro, suite, _ := strings.Cut(where, "/")
	lock, err := r.distros[distro].Lock(ctx, kernels.Kernel{Distro: distro, Suite: suite, Arch: kernels.HostArch(), Release: release}, kernels.Extra{})
	if err != nil {
		return err
	}
	img, err := r.image(ctx, lock)
	if err != nil {
		return err
	}
	k, err := r.kernel(ctx, img, nil)
	if err != nil {
		return err
	}
	return k.Close()
}

// headerImage is a cache's record of a header image.
type headerImage struct {
	file   string // of the record, below images
	Lock   kernels.Lock
	Layers []string // the keys of toolchain, headers and glue
}

// packed gives the folders, below images, with the packed layers that the cache has.
func (i headerImage) packed(cache string) (names []string, err error) {
	for _, key := range i.Layers {
		found, err := filepath.Glob(filepath.Join(cache, "images/packed", key+"-*"))
		if err != nil || len(found) == 0 {
			return nil, fmt.Errorf("layer %s is not packed (%v)", key, err)
		}
		for _, dir := range found { // one for each form that there has been
			names = append(names, "packed/"+filepath.Base(dir))
		}
	}
	return names, nil
}

// plainImage reads the record of a kernel's header image without extra packages.
func plainImage(cache string, k kernels.Kernel) (i headerImage, err error) {
	p, err := deb.New("debian", deb.Options{CacheDir: filepath.Join(cache, "index")})
	if err != nil {
		return i, err
	}
	l, err := p.Lock(context.Background(), k, kernels.Extra{})
	if err != nil {
		return i, err
	}
	i.file = "roots/" + l.Digest().Hex + ".json"
	text, err := os.ReadFile(filepath.Join(cache, "images", i.file))
	if err != nil {
		return i, err
	}
	return i, json.Unmarshal(text, &i)
}

// noNamespaces is for a shell in a user namespace of its own: the limit is that namespace's.
const noNamespaces = `echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"`

// letIn opens folders, and those above them below the temporary folder, to other users.
func letIn(dirs ...string) error {
	for _, dir := range dirs {
		for ; strings.HasPrefix(dir, os.TempDir()+"/"); dir = filepath.Dir(dir) {
			if err := os.Chmod(dir, 0o755); err != nil {
				return err
			}
		}
	}
	return nil
}

func check(ts *testscript.TestScript, neg bool, err error) {
	if neg == (err == nil) {
		ts.Fatalf("error %v", err)
	}
}

func compare(ts *testscript.TestScript, want bool, args []string) {
	a, err := os.ReadFile(ts.MkAbs(args[0]))
	ts.Check(err)
	b, err := os.ReadFile(ts.MkAbs(args[1]))
	ts.Check(err)
	if bytes.Equal(a, b) != want {
		ts.Fatalf("%s and %s: the same is %v; want %v", args[0], args[1], !want, want)
	}
}

// alter is the command of that name.
func alter(dir string) error {
	ctx := context.Background()
	results, err := cache.Open(filepath.Join(dir, "results"), cache.Options{})
	if err != nil {
		return err
	}
	list, err := results.List(ctx)
	if err != nil {
		return err
	}
	for _, i := range list {
		e, err := results.Get(ctx, i.Key)
		if err != nil {
			return err
		}
		meta, files, err := artifact.Read(e.Image)
		if err != nil {
			return err
		}
		for i := range files {
			r, err := files[i].Open()
			if err != nil {
				return err
			}
			b, err := io.ReadAll(r)
			if err != nil {
				return err
			}
			b = bytes.Replace(b, []byte("license=GPL"), []byte("license=GPM"), 1)
			files[i].Digest = v1.Hash{}
			files[i].Open = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
		}
		if e.Image, err = artifact.New(meta, files); err != nil {
			return err
		}
		if err := results.Put(ctx, i.Key, e); err != nil {
			return err
		}
	}
	return nil
}

func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if m := regexp.MustCompile(`exit status (\d+)`).FindStringSubmatch(err.Error()); m != nil {
		var n int
		fmt.Sscan(m[1], &n)
		return n
	}
	return -1
}

// sharedCache is a cache folder that outlives the test, so that a developer's second run downloads nothing. Only indexes and
// packages are taken from it, which are verified each time.
func sharedCache(t *testing.T) string {
	t.Helper()
	user, err := os.UserCacheDir()
	if err != nil {
		user = os.TempDir()
	}
	dir := filepath.Join(user, "godkms-hermetic-test")
	if err := os.MkdirAll(filepath.Join(dir, "images/packages/sha256"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// newestKernels finds out what the mirror has, and downloads the packages of these kernels' roots.
func newestKernels(t *testing.T, shared string) []string {
	t.Helper()
	newest := func(suite, line string) kernels.Kernel { // of the default flavour
		var out struct {
			Kernels []kernels.Candidate `json:"kernels"`
		}
		if err := json.Unmarshal(program(t, shared, "kernels", "debian/"+suite, "--format", "json"), &out); err != nil {
			t.Fatal(err)
		}
		for _, k := range out.Kernels {
			if k.Latest && line == "" {
				return k.Kernel
			}
			if line != "" && strings.HasPrefix(k.Release, line) && !strings.Contains(k.Release, "-cloud-") && !strings.Contains(k.Release, "-rt-") {
				return k.Kernel
			}
		}
		t.Fatalf("the mirror has no kernel %s* for %s", line, suite)
		return kernels.Kernel{}
	}
	k61, k612, trixie := newest("bookworm", "6.1."), newest("bookworm", "6.12."), newest("trixie", "6.12.")
	program(t, shared, "image", "build", k61.String(), k612.String(), trixie.String())
	return []string{
		"K61=" + k61.String(), "R61=" + k61.Release, "K612=" + k612.String(), "R612=" + k612.Release,
		"TRIXIE=" + trixie.String(), "RTRIXIE=" + trixie.Release, "LATEST=" + newest("trixie", "").String(),
	}
}

// program runs the program in this process.
func program(t *testing.T, cache string, args ...string) []byte {
	t.Helper()
	var out, errs bytes.Buffer
	if code := Main(context.Background(), append(args, "--cache-dir", cache), &out, &errs); code != 0 {
		t.Fatalf("godkms-hermetic %s: exit code %d\n%s", strings.Join(args, " "), code, errs.String())
	}
	return out.Bytes()
}

// lock finds a package, and what else it needs, through the signed index.
func lock(cache string, packages ...string) (kernels.Lock, error) {
	p, err := deb.New("debian", deb.Options{CacheDir: filepath.Join(cache, "index")})
	if err != nil {
		return kernels.Lock{}, err
	}
	list, err := p.Kernels(context.Background(), "bookworm", kernels.HostArch())
	if err != nil {
		return kernels.Lock{}, err
	}
	return p.Lock(context.Background(), list[0].Kernel, kernels.Extra{Packages: packages})
}

func fetch(cache, name, to string) error {
	kept := filepath.Join(cache, name+".deb")
	l, err := lock(cache, name)
	if err != nil {
		return err
	}
	for _, p := range l.Headers {
		if p.Name != name {
			continue
		}
		b, err := os.ReadFile(kept)
		if err != nil || sum(b) != p.Digest.Hex {
			r, err := http.Get(p.URL)
			if err != nil {
				return err
			}
			defer r.Body.Close()
			if b, err = io.ReadAll(r.Body); err != nil {
				return err
			}
			if sum(b) != p.Digest.Hex {
				return fmt.Errorf("%s: sha256 %s; want %s", p.URL, sum(b), p.Digest.Hex)
			}
			if err := os.WriteFile(kept, b, 0o644); err != nil {
				return err
			}
		}
		return os.WriteFile(to, b, 0o644)
	}
	return fmt.Errorf("%s is not in the lock", name)
}

func sum(b []byte) string {
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:])
}

// mirrorURL is the mirror that the program uses on this machine, up to and without "/debian".
func mirrorURL(cache string) (*url.URL, error) {
	l, err := lock(cache)
	if err != nil {
		return nil, err
	}
	for _, p := range l.Toolchain {
		if before, _, ok := strings.Cut(p.URL, "/debian/pool/"); ok {
			return url.Parse(before)
		}
	}
	return nil, fmt.Errorf("no package of %s comes from a mirror's /debian", l.Kernel)
}

// spoil is a mirror that passes on what another has, spoiled in one way.
func spoil(base *url.URL, mode string) http.Handler {
	var once sync.Once
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(base)
			r.Out.Host = base.Host
			r.Out.Header.Del("If-Modified-Since")
			r.Out.Header.Del("If-None-Match")
			r.Out.Header.Set("Accept-Encoding", "identity")
		},
		ModifyResponse: func(r *http.Response) error {
			name := r.Request.URL.Path
			release, index, pkg := path.Base(name) == "InRelease", strings.Contains(name, "/binary-"), strings.HasSuffix(name, ".deb")
			change := func(f func([]byte) []byte) error {
				b, err := io.ReadAll(r.Body)
				r.Body.Close()
				b = f(b)
				r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
				r.Header.Set("Content-Length", fmt.Sprint(len(b)))
				return err
			}
			flip := func(b []byte) []byte {
				if len(b) > 0 {
					b[len(b)/2] ^= 1
				}
				return b
			}
			switch {
			case mode == "altered-release" && release:
				return change(func(b []byte) []byte { return bytes.Replace(b, []byte("Origin: Debian"), []byte("Origin: Debiam"), 1) })
			case mode == "unsigned" && release:
				return change(func(b []byte) []byte {
					_, b, _ = bytes.Cut(b, []byte("\n\n"))
					b, _, _ = bytes.Cut(b, []byte("-----BEGIN PGP SIGNATURE"))
					return b
				})
			case mode == "altered-index" && index:
				return change(flip)
			case mode == "altered-files" && (strings.Contains(name, "/main/by-hash/") || strings.Contains(name, "/main/Contents-")):
				return change(flip)
			case mode == "truncated-index" && index:
				return change(func(b []byte) []byte { return b[:len(b)/2] })
			case mode == "altered-package" && pkg && r.Request.Header.Get("Range") == "":
				return change(flip)
			case mode == "broken-once" && pkg:
				broken := false
				once.Do(func() { broken = true })
				if broken { // the length that was promised does not come
					b, err := io.ReadAll(r.Body)
					r.Body = io.NopCloser(bytes.NewReader(b[:len(b)/2]))
					return err
				}
			}
			return nil
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if mode == "gone" && strings.HasSuffix(r.URL.Path, ".deb") {
			http.NotFound(w, r)
			return
		}
		proxy.ServeHTTP(w, r)
	})
}

// Every command's help has an example and says what its exit codes mean.
func TestHelp(t *testing.T) {
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Name() == "help" || c.Name() == "completion" || c.HasParent() && c.Parent().Name() == "completion" {
			return
		}
		if c.Example == "" || c.Short == "" {
			t.Errorf("%s: no example or no short text", c.CommandPath())
		}
		if c.HasParent() && !strings.Contains(c.Long, "Exit status:") {
			t.Errorf("%s: the help does not say what the exit codes mean", c.CommandPath())
		}
		for _, line := range strings.Split(c.Long, "\n") {
			if len(line) > 130 {
				t.Errorf("%s: a line of its help has %d characters", c.CommandPath(), len(line))
			}
		}
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	a := &app{env: os.Getenv}
	walk(a.command())
}

func TestParseSizeAndAge(t *testing.T) {
	for s, want := range map[string]int64{"": 0, "1": 1, "5k": 5 << 10, "500M": 500 << 20, "2GB": 2 << 30} {
		if got, err := parseSize(s); err != nil || got != want {
			t.Errorf("parseSize(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"0", "-1", "x", "1X", "1KM", "9999999999T", "1.5G"} {
		if got, err := parseSize(s); err == nil {
			t.Errorf("parseSize(%q) = %d; want an error", s, got)
		}
	}
	for s, want := range map[string]time.Duration{"": 0, "30d": 720 * time.Hour, "12h": 12 * time.Hour, "1m": time.Minute} {
		if got, err := parseAge(s); err != nil || got != want {
			t.Errorf("parseAge(%q) = %s, %v; want %s", s, got, err, want)
		}
	}
	for _, s := range []string{"0", "-1h", "d", "1x", "-3d"} {
		if got, err := parseAge(s); err == nil {
			t.Errorf("parseAge(%q) = %s; want an error", s, got)
		}
	}
}
