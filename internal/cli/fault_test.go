package cli

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// TestFaults runs the program as processes of its own, and kills them, starves them and takes away what they stand on. Each part
// has a cache of its own; the unpacked roots are shared by those that don't change them.
func TestFaults(t *testing.T) {
	exe, err := exec.LookPath("godkms-hermetic")
	if err != nil {
		t.Fatal(err)
	}
	// The children of a process that was killed become this one's: so it sees which are left.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)

	g := &ground{exe: exe, shared: sharedCache(t), dir: t.TempDir(), k61: newest(t, sharedCache(t), "6.1."), k612: newest(t, sharedCache(t), "6.12.")}
	program(t, g.shared, "image", "build", g.k61.String(), g.k612.String())
	g.roots(t)
	g.link(t, filepath.Join(g.dir, "base"), true, true)
	// From now on a build is a copy of this module: it takes a tenth of the time.
	repository, err := filepath.Abs("../../testdata")
	if err != nil {
		t.Fatal(err)
	}
	s := g.scene(t)
	p := s.start("build", filepath.Join(repository, "hello"), "--kernels", g.k61.String(), "--out", s.out, "-q")
	p.succeeds()
	if g.module, err = os.ReadFile(filepath.Join(s.modules(), "hello.ko")); err != nil {
		t.Fatal(err)
	}

	t.Run("killed", g.killed)
	t.Run("killed at any moment", g.killedAnywhen)
	t.Run("mirror", g.mirror)
	t.Run("crowd", g.crowd)
	t.Run("timeout", g.timeout)
	t.Run("log", g.log)
	t.Run("damage", g.damage)
}

// ground is what the parts of TestFaults stand on.
type ground struct {
	exe, shared, dir string
	k61, k612        kernels.Kernel
	layers           map[string][]string // by release: the keys of toolchain, headers and glue
	records          map[string]string   // by release: the name of the root's record
	packages         map[string][]kernels.Package
	module           []byte // hello.ko for k61
}

// newest is the newest kernel of a line, of the default flavour, that bookworm has.
func newest(t *testing.T, shared, line string) kernels.Kernel {
	t.Helper()
	var out struct {
		Kernels []kernels.Candidate `json:"kernels"`
	}
	if err := json.Unmarshal(program(t, shared, "kernels", "debian/bookworm", "--format", "json"), &out); err != nil {
		t.Fatal(err)
	}
	for _, k := range out.Kernels {
		if strings.HasPrefix(k.Release, line) && !strings.Contains(k.Release, "-cloud-") && !strings.Contains(k.Release, "-rt-") {
			return k.Kernel
		}
	}
	t.Fatalf("the mirror has no kernel %s*", line)
	return kernels.Kernel{}
}

// roots reads which layers the kernels' roots have.
func (g *ground) roots(t *testing.T) {
	t.Helper()
	g.layers, g.records, g.packages = map[string][]string{}, map[string]string{}, map[string][]kernels.Package{}
	for _, k := range []kernels.Kernel{g.k61, g.k612} {
		i, err := plainImage(g.shared, k)
		if err != nil {
			t.Fatal(err)
		}
		g.layers[k.Release], g.records[k.Release], g.packages[k.Release] = i.Layers, filepath.Base(i.file), i.Lock.Headers
	}
}

// link makes a cache folder with the indexes and packages of the shared one, the layers of both kernels' toolchain, and the headers
// of either on demand.
func (g *ground) link(t *testing.T, dir string, headers61, headers612 bool) {
	t.Helper()
	images := filepath.Join(dir, "images")
	for _, sub := range []string{"packages", "layers", "roots"} {
		if err := os.MkdirAll(filepath.Join(images, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	copy := func(from, to string) {
		t.Helper()
		if out, err := exec.Command("cp", "-al", filepath.Join(g.shared, from), filepath.Join(dir, to)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	copy("index", "")
	copy("images/packages/sha256", "images/packages")
	seen := map[string]bool{}
	for release, with := range map[string]bool{g.k61.Release: headers61, g.k612.Release: headers612} {
		for i, key := range g.layers[release] {
			if !seen[key] && (i != 1 || with) {
				seen[key] = true
				copy("images/layers/"+key, "images/layers")
			}
		}
		if with {
			copy("images/roots/"+g.records[release], "images/roots")
		}
	}
}

// scene is one cache and one folder for modules.
type scene struct {
	*ground
	t          *testing.T
	dir        string
	cache, out string
}

// scene makes a cache on the shared roots, which it does not change.
func (g *ground) scene(t *testing.T) *scene {
	t.Helper()
	s := g.emptyScene(t)
	for _, name := range []string{"images", "index"} {
		if err := os.Symlink(filepath.Join(g.dir, "base", name), filepath.Join(s.cache, name)); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (g *ground) emptyScene(t *testing.T) *scene {
	t.Helper()
	dir, err := os.MkdirTemp(g.dir, "scene-")
	if err != nil {
		t.Fatal(err)
	}
	s := &scene{ground: g, t: t, dir: dir, cache: filepath.Join(dir, "cache"), out: filepath.Join(dir, "out")}
	for _, d := range []string{s.cache, filepath.Join(dir, "home")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (s *scene) modules() string { return filepath.Join(s.out, "debian-bookworm", s.k61.Release) }

// source makes a source whose MAKE runs a script before it brings the module that was built once.
func (s *scene) source(name, script string) string {
	s.t.Helper()
	dir := filepath.Join(s.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.t.Fatal(err)
	}
	for file, text := range map[string]string{
		"dkms.conf": "PACKAGE_NAME=hello\nPACKAGE_VERSION=" + name + "\nDEST_MODULE_LOCATION=/extra\nSTRIP=no\nMAKE=\"sh -e make.sh\"\n",
		"make.sh":   script + "\ncp hello.bin hello.ko\n",
		"hello.bin": string(s.module),
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			s.t.Fatal(err)
		}
	}
	return dir
}

// build are the arguments of a build for k61.
func (s *scene) build(source string, more ...string) []string {
	return append([]string{"build", source, "--kernels", s.k61.String(), "--out", s.out}, more...)
}

// proc is the program while it runs.
type proc struct {
	*exec.Cmd
	t      *testing.T
	stdout bytes.Buffer
	mu     sync.Mutex
	stderr strings.Builder
	lines  chan string   // of standard error; closed at its end
	done   chan struct{} // closed when it has ended
}

func (s *scene) start(args ...string) *proc {
	s.t.Helper()
	p := &proc{Cmd: exec.Command(s.exe, append(args, "--cache-dir", s.cache)...), t: s.t, lines: make(chan string, 1<<16), done: make(chan struct{})}
	home := filepath.Join(s.dir, "home")
	p.Env = append(os.Environ(), "HOME="+home, "XDG_CACHE_HOME="+home, "XDG_CONFIG_HOME="+home)
	p.Cmd.Stdout = &p.stdout
	r, w, err := os.Pipe()
	if err != nil {
		s.t.Fatal(err)
	}
	p.Cmd.Stderr = w
	if err := p.Start(); err != nil {
		s.t.Fatal(err)
	}
	w.Close()
	go func() {
		defer r.Close()
		defer close(p.lines)
		in := bufio.NewScanner(r)
		in.Buffer(nil, 1<<20)
		for in.Scan() {
			p.mu.Lock()
			p.stderr.WriteString(in.Text() + "\n")
			p.mu.Unlock()
			select {
			case p.lines <- in.Text():
			default:
			}
		}
	}()
	go func() {
		p.Wait()
		close(p.done)
	}()
	s.t.Cleanup(func() { p.Process.Kill(); <-p.done })
	return p
}

// said is all that it wrote so far on standard error.
func (p *proc) said() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stderr.String()
}

// patience is how long anything here may take on a slow machine.
const patience = 2 * time.Minute

// exits waits for the program's end and wants that exit code.
func (p *proc) exits(code int) (stdout, stderr string) {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		p.t.Fatalf("%q has not ended after %s; it said:\n%s", p.Args, patience, p.said())
	}
	for range p.lines {
	}
	if got := p.ProcessState.ExitCode(); got != code {
		p.t.Fatalf("%q: exit code %d; want %d\n%s%s", p.Args[1:], got, code, p.stdout.String(), p.said())
	}
	return p.stdout.String(), p.said()
}

func (p *proc) succeeds() (stdout string) {
	p.t.Helper()
	stdout, _ = p.exits(0)
	return stdout
}

// until waits for a line on standard error that has the text.
func (p *proc) until(text string) {
	p.t.Helper()
	late := time.After(patience)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				p.t.Fatalf("%q never said %q:\n%s", p.Args[1:], text, p.said())
			}
			if strings.Contains(line, text) {
				return
			}
		case <-late:
			p.t.Fatalf("%q did not say %q within %s:\n%s", p.Args[1:], text, patience, p.said())
		}
	}
}

// await waits until something holds; false means that the program ended first.
func (p *proc) await(holds func() bool) bool {
	p.t.Helper()
	for late := time.Now().Add(patience); time.Now().Before(late); time.Sleep(time.Millisecond) {
		if holds() {
			return true
		}
		select {
		case <-p.done:
			return holds()
		default:
		}
	}
	p.t.Fatalf("%q: nothing happened within %s:\n%s", p.Args[1:], patience, p.said())
	return false
}

// kill kills the program, and makes sure that it takes its processes and mounts with it.
func (s *scene) kill(p *proc) {
	s.t.Helper()
	p.Process.Kill()
	<-p.done
	s.alone()
}

// alone makes sure that no process and no mount of the program is left.
func (s *scene) alone() {
	s.t.Helper()
	var left []string
	for late := time.Now().Add(patience / 4); time.Now().Before(late); time.Sleep(5 * time.Millisecond) {
		if left = descendants(s.t); len(left) == 0 {
			break
		}
	}
	if len(left) > 0 {
		s.t.Errorf("processes that outlive the program: %q", left)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		s.t.Fatal(err)
	}
	if bytes.Contains(mounts, []byte(s.ground.dir)) {
		s.t.Errorf("mounts that outlive the program:\n%s", mounts)
	}
}

// descendants lists the processes below this one, and buries the dead among those that it was left.
func descendants(t *testing.T) []string {
	t.Helper()
	parents := map[int]int{}
	self := os.Getpid()
	for _, file := range glob(t, "/proc/[0-9]*/stat") {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil {
			t.Fatal(err)
		}
		f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		parent, err := strconv.Atoi(f[1])
		if err != nil {
			t.Fatal(err)
		}
		if f[0] == "Z" && parent == self {
			unix.Wait4(pid, nil, unix.WNOHANG, nil)
			continue
		}
		parents[pid] = parent
	}
	var left []string
	for pid := range parents {
		for at := pid; at > 1; at = parents[at] {
			if parents[at] == self {
				name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
				left = append(left, fmt.Sprintf("%d %q", pid, name))
				break
			}
		}
	}
	return left
}

// clean makes sure that a build left the modules and its results, and nothing unfinished.
func (s *scene) clean() {
	s.t.Helper()
	s.alone()
	want := []string{"build.log", "hello.ko"}
	var got []string
	for _, f := range files(s.t, s.out) {
		got = append(got, strings.TrimPrefix(f, s.modules()+"/"))
	}
	if !slices.Equal(got, want) {
		s.t.Errorf("the folder for modules has %q; want %q", got, want)
	}
	b, err := os.ReadFile(filepath.Join(s.modules(), "hello.ko"))
	if err != nil || len(b) < len(s.module) || !bytes.HasPrefix(b, s.module[:16]) {
		s.t.Errorf("hello.ko is no module (%v)", err)
	}
	for _, dir := range []string{"tmp", "results/v1/tmp", "images/tmp", "images/packages/partial", "index/debian/tmp"} {
		for _, f := range files(s.t, filepath.Join(s.cache, dir)+"/") {
			if filepath.Base(f) != ".lock" {
				s.t.Errorf("left in the cache: %s", f)
			}
		}
		if entries, _ := os.ReadDir(filepath.Join(s.cache, dir)); slices.ContainsFunc(entries, fs.DirEntry.IsDir) {
			s.t.Errorf("left in the cache below %s: %s", dir, entries)
		}
	}
}

// files lists all that is no folder.
func files(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && !d.IsDir() {
			out = append(out, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	found, err := filepath.Glob(pattern)
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// same wants the modules of two scenes to have the same bytes.
func (s *scene) same(want *scene) {
	s.t.Helper()
	a, err := os.ReadFile(filepath.Join(want.modules(), "hello.ko"))
	if err != nil {
		s.t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(s.modules(), "hello.ko"))
	if err != nil {
		s.t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		s.t.Error("hello.ko has other bytes than without the fault")
	}
}

// big is a script for a module that takes a moment to collect, pack, store and hand out.
const big = "head -c 24M /dev/zero >pad\nobjcopy --add-section .pad=pad hello.bin padded\nmv padded hello.bin"

// killed kills the program in each phase. The next run succeeds, gives the same bytes, and leaves nothing behind.
func (g *ground) killed(t *testing.T) {
	lockFile := func(t *testing.T, path string) io.Closer {
		t.Helper()
		f, err := durable.Lock(context.Background(), path, false)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}

	t.Run("fetching an index", func(t *testing.T) {
		s := g.emptyScene(t)
		weak := newWeakMirror(t, g.shared)
		weak.reset = "/by-hash/"
		out, _ := s.start(s.build(s.source("a", ""), "--mirror", weak.flag(), "-q")...).exits(exitNoKernel)
		if !strings.Contains(out, weak.URL+"/debian") || !strings.Contains(out, "/by-hash/") || !strings.Contains(out, "--mirror") || strings.Count(out, "\n") != 1 {
			t.Errorf("a mirror that dies: %s; want one line with the URL of the index", out)
		}

		m := newWeakMirror(t, g.shared)
		m.stall = "/by-hash/"
		p := s.start("kernels", "debian/bookworm", "--mirror", m.flag())
		m.reached(p)
		s.kill(p)
		if !slices.ContainsFunc(files(t, s.cache), func(f string) bool { return strings.HasSuffix(f, "/packed") }) {
			t.Error("it was not killed in the middle of a download")
		}
		m.heal()
		if out := s.start("kernels", "debian/bookworm", "--mirror", m.flag()).succeeds(); !strings.Contains(out, g.k61.String()+" ") {
			t.Errorf("kernels = %s; want %s among them", out, g.k61)
		}
		for _, f := range files(t, filepath.Join(s.cache, "index/debian/tmp")) {
			if filepath.Base(f) != ".lock" {
				t.Errorf("left: %s", f)
			}
		}
	})

	// One package never comes, while the others are unpacked: a kill hits both.
	t.Run("downloading and unpacking", func(t *testing.T) {
		s := g.emptyScene(t)
		g.link(t, s.cache, false, false)
		missing := s.dropPackage("linux-headers-" + g.k61.Release)
		m := newWeakMirror(t, g.shared)
		m.stall = filepath.Base(missing.URL)
		src := s.source("a", "")
		p := s.start(s.build(src, "--mirror", m.flag())...)
		m.reached(p)
		p.await(func() bool { return len(glob(t, filepath.Join(s.cache, "images/tmp/*/headers/fs/usr/src/*"))) > 0 })
		partial := filepath.Join(s.cache, "images/packages/partial", missing.Digest.Hex)
		p.await(func() bool { st, err := os.Stat(partial); return err == nil && st.Size() > 0 })
		s.kill(p)
		m.heal()
		if out := s.start(s.build(src, "--mirror", m.flag())...).succeeds(); !strings.Contains(out, " built ") {
			t.Errorf("the next run: %s; want built", out)
		}
		if !slices.ContainsFunc(m.seen(), func(r string) bool { return strings.Contains(r, m.stall+" bytes=") }) {
			t.Errorf("requests: %q; want one for the rest of %s", m.seen(), m.stall)
		}
		s.clean()
	})

	t.Run("packing an image", func(t *testing.T) {
		s := g.emptyScene(t)
		g.link(t, s.cache, true, false)
		p := s.start("image", "build", g.k61.String())
		p.await(func() bool {
			for _, f := range glob(t, filepath.Join(s.cache, "images/tmp/*/packed/file-*")) {
				if st, err := os.Stat(f); err == nil && st.Size() > 1<<20 {
					return true
				}
			}
			return false
		})
		s.kill(p)
		if len(glob(t, filepath.Join(s.cache, "images/tmp/*/packed"))) == 0 {
			t.Error("it was not killed while it packed")
		}
		if out := s.start(s.build(s.source("a", ""))...).succeeds(); !strings.Contains(out, " built ") {
			t.Errorf("the next run: %s; want built", out)
		}
		s.clean()
	})

	t.Run("building", func(t *testing.T) {
		s := g.scene(t)
		src := s.source("a", "echo in the middle; [ -e go ] || sleep 1000")
		p := s.start(s.build(src, "--verbose")...)
		p.until("in the middle")
		if len(descendants(t)) < 3 {
			t.Error("there are no processes to be left behind")
		}
		s.kill(p)
		if err := os.WriteFile(filepath.Join(src, "go"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if out := s.start(s.build(src)...).succeeds(); !strings.Contains(out, " built ") {
			t.Errorf("the next run: %s; want built", out)
		}
		s.clean()
	})

	want := g.scene(t)
	want.start(want.build(want.source("big", big))...).succeeds()
	for _, c := range []struct {
		name  string
		seize func(s *scene) io.Closer // stops it there for good
		now   func(s *scene) bool      // else it is killed when this holds
		next  string
	}{
		{name: "collecting", now: func(s *scene) bool { return true }, next: " built "},
		{name: "about to store", seize: func(s *scene) io.Closer { return lockFile(s.t, filepath.Join(s.cache, "results/v1/lock")) }, next: " built "},
		{name: "storing", now: func(s *scene) bool { return len(glob(s.t, filepath.Join(s.cache, "results/v1/tmp/file-*"))) > 0 }, next: " built "},
		{name: "about to hand out", seize: func(s *scene) io.Closer {
			if err := os.MkdirAll(s.out, 0o755); err != nil {
				s.t.Fatal(err)
			}
			f, err := durable.LockDir(context.Background(), s.out)
			if err != nil {
				s.t.Fatal(err)
			}
			return f
		}, next: " cached "},
		{name: "handing out", now: func(s *scene) bool { return len(glob(s.t, filepath.Join(s.out, ".partial/*/*"))) > 0 }, next: " cached "},
	} {
		t.Run(c.name, func(t *testing.T) {
			for range 20 { // the moment may be over before it was seen
				s := g.scene(t)
				src := s.source("big", big)
				var held io.Closer
				if c.seize != nil {
					held = c.seize(s)
				}
				p := s.start(s.build(src)...)
				hit := true
				if c.seize != nil {
					p.until(map[string]string{"about to store": "storing", "about to hand out": "storing"}[c.name])
					p.await(func() bool {
						return c.name != "about to hand out" || len(glob(t, filepath.Join(s.cache, "results/v1/entries/*"))) > 0
					})
				} else {
					p.until("checking")
					hit = p.await(func() bool { return c.now(s) })
				}
				s.kill(p)
				if held != nil {
					held.Close()
				}
				if hit = hit && p.ProcessState.ExitCode() == -1; !hit {
					continue
				}
				if out := s.start(s.build(src)...).succeeds(); !strings.Contains(out, c.next) {
					t.Errorf("the next run: %s; want%s", out, c.next)
				}
				s.clean()
				s.same(want)
				return
			}
			t.Error("in twenty runs it was always too fast to be killed there")
		})
	}
}

// dropPackage takes a package of k61's headers, and the record that would tell that it was there, from the cache.
func (s *scene) dropPackage(name string) kernels.Package {
	s.t.Helper()
	for _, p := range s.packages[s.k61.Release] {
		if p.Name == name {
			if err := os.Remove(filepath.Join(s.cache, "images/packages/sha256", p.Digest.Hex)); err != nil {
				s.t.Fatal(err)
			}
			return p
		}
	}
	s.t.Fatalf("the root of %s has no package %q", s.k61, name)
	return kernels.Package{}
}

// killedAnywhen kills the program at random moments of one run after the other.
func (g *ground) killedAnywhen(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	s := g.scene(t)
	begin := time.Now()
	s.start(s.build(s.source("first", big))...).succeeds()
	whole := time.Since(begin)
	enough := time.Now().Add(10 * time.Second)
	src := s.source("next", big)
	killed := 0
	for n := 0; n < 12 && time.Now().Before(enough); n++ {
		if err := os.RemoveAll(filepath.Join(s.cache, "results/v1/entries")); err != nil { // or it would be done already
			t.Fatal(err)
		}
		p := s.start(s.build(src)...)
		select {
		case <-time.After(time.Duration(random.Int64N(int64(whole)))):
		case <-p.done:
		}
		s.kill(p)
		if p.ProcessState.ExitCode() == -1 {
			killed++
		} else if p.ProcessState.ExitCode() != 0 {
			t.Errorf("run %d: exit code %d\n%s", n, p.ProcessState.ExitCode(), p.said())
		}
	}
	t.Logf("killed %d times", killed)
	if out := s.start(s.build(src)...).succeeds(); !strings.Contains(out, " built ") && !strings.Contains(out, " cached ") {
		t.Errorf("the next run: %s", out)
	}
	s.clean()
	if rest, err := os.ReadDir(filepath.Join(s.cache, "results/v1/tmp")); err != nil || len(rest) > 1 {
		t.Errorf("left in the cache: %s (%v)", rest, err)
	}
}

// weakMirror passes on what another mirror has, until it is told to be weak.
type weakMirror struct {
	*httptest.Server
	mu      sync.Mutex
	stall   string // what to stop in the middle of
	reset   string // what to break off in the middle of, and refuse from then on
	short   string // what to send the half of as if it were all
	broken  bool
	middle  chan struct{} // closed when the middle was reached
	end     chan struct{} // closed when the test has ended
	once    sync.Once
	request []string
}

func newWeakMirror(t *testing.T, shared string) *weakMirror {
	t.Helper()
	base, err := mirrorURL(shared)
	if err != nil {
		t.Fatal(err)
	}
	m := &weakMirror{middle: make(chan struct{}), end: make(chan struct{})}
	proxy := &httputil.ReverseProxy{
		ErrorLog: log.New(io.Discard, "", 0), // a program that was killed is no news
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(base)
			r.Out.Host = base.Host
			r.Out.Header.Del("If-Modified-Since")
			r.Out.Header.Del("If-None-Match")
			r.Out.Header.Set("Accept-Encoding", "identity")
		},
	}
	m.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		m.mu.Lock()
		m.request = append(m.request, r.URL.Path+" "+r.Header.Get("Range"))
		is := func(what string) bool { return what != "" && strings.Contains(r.URL.Path, what) }
		stall, reset, short, broken := is(m.stall) && !m.broken, is(m.reset), is(m.short), m.broken
		m.mu.Unlock()
		if !stall && !reset && !short {
			proxy.ServeHTTP(w, r)
			return
		}
		if reset && broken {
			panic(http.ErrAbortHandler)
		}
		whole := httptest.NewRecorder()
		proxy.ServeHTTP(whole, r)
		body := whole.Body.Bytes()
		if short {
			w.Header().Set("Content-Length", fmt.Sprint(len(body)/2))
			w.Write(body[:len(body)/2])
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		w.Write(body[:len(body)/2])
		w.(http.Flusher).Flush()
		m.once.Do(func() { close(m.middle) })
		if reset {
			m.mu.Lock()
			m.broken = true
			m.mu.Unlock()
			conn, _, err := w.(http.Hijacker).Hijack()
			if err != nil {
				panic(http.ErrAbortHandler)
			}
			time.Sleep(50 * time.Millisecond) // what was sent is to arrive
			conn.(*net.TCPConn).SetLinger(0)  // so that closing it resets it
			conn.Close()
			return
		}
		select {
		case <-m.end:
		case <-r.Context().Done():
		}
		panic(http.ErrAbortHandler)
	}))
	t.Cleanup(func() { close(m.end); m.Close() })
	return m
}

func (m *weakMirror) flag() string { return "debian=" + m.URL + "/debian" }

// reached waits until the program has half of what it was to get.
func (m *weakMirror) reached(p *proc) {
	p.t.Helper()
	select {
	case <-m.middle:
	case <-p.done:
		p.t.Fatalf("%q has ended before the mirror was weak:\n%s", p.Args[1:], p.said())
	case <-time.After(patience):
		p.t.Fatalf("%q asked for nothing within %s:\n%s", p.Args[1:], patience, p.said())
	}
}

func (m *weakMirror) heal() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.broken, m.reset, m.short = true, "", ""
}

func (m *weakMirror) seen() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.request)
}

// mirror lets the mirror die in the middle of a package, in one way and then in another. The error names the package and the host;
// when the mirror is well again, the download goes on where it stopped.
func (g *ground) mirror(t *testing.T) {
	s := g.emptyScene(t)
	g.link(t, s.cache, false, false)
	missing := s.dropPackage("linux-headers-" + g.k61.Release)
	file := filepath.Base(missing.URL)
	m := newWeakMirror(t, g.shared)
	host, err := url.Parse(m.URL)
	if err != nil {
		t.Fatal(err)
	}
	src := s.source("a", "")
	for _, c := range []struct {
		weak  *string
		tells string
	}{
		{&m.short, "not the file that the signed index describes"},
		{&m.reset, "tried 4 times"},
	} {
		m.mu.Lock()
		m.short, m.reset = "", ""
		*c.weak = file
		m.mu.Unlock()
		stdout, _ := s.start(s.build(src, "--mirror", m.flag(), "-q")...).exits(exitNoKernel)
		for _, word := range []string{strconv.Quote(missing.Name), host.Host, c.tells, "--mirror"} {
			if !strings.Contains(stdout, word) || strings.Count(stdout, "\n") != 1 {
				t.Errorf("it says %s; want %q in one line", stdout, word)
			}
		}
		if left := files(t, s.out); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	}
	m.heal()
	asked := len(m.seen())
	if out := s.start(s.build(src, "--mirror", m.flag())...).succeeds(); !strings.Contains(out, " built ") {
		t.Errorf("the next run: %s; want built", out)
	}
	if rest := m.seen()[asked:]; !slices.ContainsFunc(rest, func(r string) bool { return strings.Contains(r, file+" bytes=") }) {
		t.Errorf("requests of the next run: %q; want one for the rest of %s", rest, file)
	}
	s.clean()
}

// crowd runs many tools at once on one cache, which has neither the headers nor a result yet, while somebody cleans it.
func (g *ground) crowd(t *testing.T) {
	for _, n := range []int{2, 8} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			s, want := g.scene(t), g.scene(t)
			if n == 8 { // these make the headers first, and have another root that can be removed
				s = g.emptyScene(t)
				g.link(t, s.cache, false, true)
			}
			same := s.source("same", "sleep 0.2")
			want.start(want.build(same)...).succeeds()
			var sames, others []*proc
			for i := range n {
				if i < max(2, n/2) {
					sames = append(sames, s.start(s.build(same, "--format", "json")...)) // into one folder, too
					continue
				}
				other := s.source(fmt.Sprint("other", i), "")
				others = append(others, s.start("build", other, "--kernels", g.k61.String(), "--out", filepath.Join(s.dir, fmt.Sprint("out", i)), "--format", "json"))
			}
			if n == 8 { // one of them holds the root now
				p := sames[0]
				p.await(func() bool {
					return strings.Contains(p.said(), "  building") || strings.Contains(p.said(), "  cached") || strings.Contains(p.said(), "  waiting")
				})
				gc := s.start("cache", "gc")
				unused := s.start("image", "rm", g.k612.String())
				helpers := []*proc{gc, unused, s.start("image", "ls"), s.start("cache", "ls"), s.start("cache", "verify")}
				for _, p := range helpers {
					p.succeeds()
				}
				used := s.start("image", "rm", g.k61.String())
				<-used.done
				if code := used.ProcessState.ExitCode(); code != 0 {
					if _, stderr := used.exits(exitUsage); !strings.Contains(stderr, "in use") && !strings.Contains(stderr, "no header image") {
						t.Errorf("image rm: %s; want it to be done, or in use", stderr)
					}
				}
			}
			digests, statuses := map[string]int{}, map[string]int{}
			look := func(p *proc) {
				t.Helper()
				var out struct {
					Results []struct{ Status, Digest string }
				}
				if err := json.Unmarshal([]byte(p.succeeds()), &out); err != nil || len(out.Results) != 1 {
					t.Fatalf("%v: %s", err, p.stdout.String())
				}
				digests[out.Results[0].Digest]++
				statuses[out.Results[0].Status]++
			}
			for _, p := range sames {
				look(p)
			}
			if len(digests) != 1 || statuses["built"] != 1 || statuses["cached"] != len(sames)-1 {
				t.Errorf("the same source: digests %v, %v; want one digest, built once", digests, statuses)
			}
			for _, p := range others {
				look(p)
			}
			if len(digests) != 1+len(others) || statuses["built"] != 1+len(others) {
				t.Errorf("other sources: digests %v, %v; want as many as there are sources", digests, statuses)
			}
			s.clean()
			s.same(want)
			if out := s.start("cache", "verify").succeeds(); !strings.HasPrefix(out, fmt.Sprintf("%d results", 1+len(others))) {
				t.Errorf("cache verify: %s; want %d results", out, 1+len(others))
			}
		})
	}
}

// timeout has a build that loops. It is ended, and the next kernel has its turn.
func (g *ground) timeout(t *testing.T) {
	s := g.scene(t)
	src := s.source("loop", "case $kernelver in 6.12.*) while :; do sleep 0.1; done ;; esac")
	stdout, _ := s.start("build", src, "--kernels", g.k612.String()+","+g.k61.String(), "--out", s.out, "--jobs", "1", "--timeout", "5s").exits(exitBuild)
	if want := regexp.MustCompile(`^\S+:6\.12\S+ +failed +make failed: the build took longer than 5s; --timeout sets the limit\n\S+:6\.1\.0\S+ +built .*\n$`); !want.MatchString(stdout) {
		t.Errorf("it says %s; want %s", stdout, want)
	}
	if logs := files(t, filepath.Join(s.cache, "results/v1/logs")); len(logs) != 1 {
		t.Errorf("logs: %q; want that of the build that was ended", logs)
	}
	s.clean()
}

// log has a build that prints 50 MB. Begin and end are kept, with a note of what is left out between them, in little memory.
func (g *ground) log(t *testing.T) {
	const width, lines = 50, 1_000_000
	s := g.scene(t)
	p := s.start(s.build(s.source("loud", fmt.Sprintf("seq -f %%0%d.0f %d", width-1, lines)))...)
	peak := 0
	for running := true; running; {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Process.Pid)); err == nil {
			if m := regexp.MustCompile(`VmHWM:\s+(\d+) kB`).FindSubmatch(b); m != nil {
				peak, _ = strconv.Atoi(string(m[1]))
			}
		}
		select {
		case <-p.done:
			running = false
		case <-time.After(5 * time.Millisecond):
		}
	}
	p.succeeds()
	if peak == 0 || peak > 150<<10 {
		t.Errorf("the program took %d kB of memory; want some, and less than 150 MB", peak)
	}
	t.Logf("%d kB of memory", peak)
	log, err := os.ReadFile(filepath.Join(s.modules(), "build.log"))
	if err != nil {
		t.Fatal(err)
	}
	if len(log) > 1<<20 || len(log) < 1<<20-256 {
		t.Errorf("the log has %d bytes; want 1 MiB", len(log))
	}
	note := regexp.MustCompile(`\n\[… (\d+) bytes of the log were cut here …\]\n`)
	at := note.FindSubmatchIndex(log)
	if at == nil {
		t.Fatalf("the log has no note of what was cut:\n%.300s", log)
	}
	cut, err := strconv.Atoi(string(log[at[2]:at[3]]))
	if err != nil {
		t.Fatal(err)
	}
	head, tail := log[:at[0]], log[at[1]:]
	first := bytes.Index(head, []byte("\n# make\n"))
	last := fmt.Appendf(nil, "\n%0*d\n", width-1, lines)
	end := bytes.LastIndex(tail, last)
	if first < 0 || !bytes.HasPrefix(head, []byte("# hello loud for ")) || end < 0 {
		t.Fatalf("the log begins with %.100q and ends with %q", head, tail[max(0, len(tail)-100):])
	}
	begun, ended := len(head)-first-len("\n# make\n"), end+len(last) // bytes of the lines before and after the note
	if begun+cut+ended != width*lines {
		t.Errorf("%d bytes, %d cut and %d bytes are %d; want %d", begun, cut, ended, begun+cut+ended, width*lines)
	}
}

// damage spoils each kind of file. What is read is checked, and made again; cache verify finds the rest.
func (g *ground) damage(t *testing.T) {
	s := g.emptyScene(t)
	g.link(t, s.cache, true, false)
	want := g.scene(t)
	src := s.source("a", "")
	want.start(want.build(src)...).succeeds()
	s.start(s.build(src)...).succeeds()
	packed, err := headerImage{Layers: g.layers[g.k61.Release]}.packed(g.shared)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range packed { // or it would pack for seconds
		if out, err := exec.Command("cp", "-al", filepath.Join(g.shared, "images", name), filepath.Join(s.cache, "images/packed")).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	s.start("image", "build", g.k61.String()).succeeds()
	toolchain, headers, glue := g.layers[g.k61.Release][0], g.layers[g.k61.Release][1], g.layers[g.k61.Release][2]

	times := 0
	spoil := func(pattern string) {
		t.Helper()
		times++ // so that what is spoiled twice is not whole again
		found := glob(t, filepath.Join(s.cache, pattern))
		if len(found) == 0 {
			t.Fatalf("no file is %s", pattern)
		}
		for _, file := range found {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if len(b) == 0 { // a lock
				b = []byte("\x00")
			}
			switch at := bytes.Index(b, []byte(`"gcc-12"`)); {
			case at >= 0: // a lock, which stays one, but another
				b[at+len(`"gcc-1`)] ^= byte(times)
			case slices.Contains([]string{"record.json", "packed.json"}, filepath.Base(file)): // one bit may not matter, as in the case of a key's letter
				b = b[:len(b)/2]
			default:
				b[min(len(b)/2+times, len(b)-1)] ^= 0x20
			}
			if err := os.Remove(file); err != nil { // it may be linked to the shared cache's
				t.Fatal(err)
			}
			if err := os.WriteFile(file, b, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	pkg := ""
	for _, p := range g.packages[g.k61.Release] {
		if p.Name == "linux-headers-"+g.k61.Release {
			pkg = "images/packages/sha256/" + p.Digest.Hex
		}
	}
	for _, c := range []struct {
		name   string
		files  []string
		status string
	}{
		{"record of a result", []string{"results/v1/entries/*"}, "built"},
		{"blobs of a result", []string{"results/v1/blobs/sha256/*"}, "built"},
		{"locks", []string{"results/v1/lock", "results/v1/locks/*", "results/v1/tmp/.lock", "images/locks/*", "images/roots/*.lock", "index/debian/*/.lock"}, "cached"},
		{"answers and indexes", []string{"index/debian/memo/*", "index/debian/bookworm/*.idx"}, "cached"},
		{"state of an index", []string{"index/debian/bookworm/*.state"}, "cached"},
		{"record of a root, package", []string{"images/roots/*.json", pkg, "results/v1/entries/*"}, "built"},
	} {
		for _, f := range c.files {
			spoil(f)
		}
		if out := s.start(s.build(src)...).succeeds(); !strings.Contains(out, " "+c.status+" ") {
			t.Errorf("%s spoiled: %s; want %s", c.name, out, c.status)
		}
		s.clean()
		s.same(want)
	}
	s.start("cache", "gc").succeeds()
	if out := s.start("image", "ls").succeeds(); !strings.HasPrefix(out, g.k61.String()+" ") {
		t.Errorf("image ls: %s; want that of %s", out, g.k61)
	}
	fs := "images/layers/" + headers + "/fs/usr/src/linux-headers-" + g.k61.Release
	everything := []string{
		"results/v1/entries/*", pkg, "images/roots/*.json", "images/packed/" + glue + "*/layer.tar.gz", "images/packed/" + toolchain + "*/packed.json",
		fs + "/Module.symvers", "images/layers/" + glue + "/record.json",
	}
	for _, f := range everything {
		spoil(f)
	}
	out, _ := s.start("cache", "verify").exits(1)
	for _, name := range []string{"record ", filepath.Base(pkg), "roots/", "packed/" + glue, "packed/" + toolchain, "layers/" + headers, "layers/" + glue} {
		if !regexp.MustCompile(`damaged, removed: .*` + regexp.QuoteMeta(name)).MatchString(out) {
			t.Errorf("cache verify: %s; want %q among what is damaged and removed", out, name)
		}
	}
	if out := s.start(s.build(src)...).succeeds(); !strings.Contains(out, " built ") {
		t.Errorf("the next run: %s; want built", out)
	}
	s.clean()
	s.same(want)
	if out := s.start("cache", "verify").succeeds(); !strings.Contains(out, " 0 damaged") {
		t.Errorf("cache verify: %s; want none damaged", out)
	}
	s.start("cache", "gc").succeeds()
	if out := s.start(s.build(src)...).succeeds(); !strings.Contains(out, " cached ") {
		t.Errorf("after gc: %s; want cached", out)
	}
}

// What the network or a build refuses is no error of the disk, though the words are the same.
func TestOfDisk(t *testing.T) {
	here := t.TempDir()
	if err := os.WriteFile(filepath.Join(here, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	_, below := os.Open(filepath.Join(here, "file/below"))
	_, gone := os.Open("gone")
	_, connect := net.Dial("tcp", "127.0.0.1:1")
	for _, c := range []struct {
		err  error
		want bool
	}{
		{below, true}, {fmt.Errorf("write: %w", unix.ENOSPC), true}, {gone, false}, {connect, false}, {unix.EPERM, false}, {io.EOF, false},
	} {
		if got := ofDisk(c.err); got != c.want {
			t.Errorf("ofDisk(%v) = %v; want %v", c.err, got, c.want)
		}
	}
}
