package host

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
)

// A scenario is a change that is cut off at every step.
type scenario struct {
	name string
	old  func(t testing.TB, r *root) // makes the state before
	do   func(ctx context.Context, t testing.TB, r *root) error
}

// set is an artifact with a module that the kernel has too, and one that it doesn't have.
func set(t testing.TB, version string) v1.Image {
	from := map[string]string{"1.0": "kernel/drivers/net/veth.ko", "2.0": "kernel/drivers/net/mii.ko"}[version]
	b := bytesOf(t, from)
	files := map[string][]byte{"updates/dkms/hello.ko": b}
	if version == "1.0" {
		files["updates/dkms/dummy.ko"] = b // 2.0 has none: the kernel's own comes back
	} else {
		files["updates/dkms/geneve.ko"] = b
	}
	return built(t, "hello", version, files)
}

func doInstall(version string) func(context.Context, testing.TB, *root) error {
	return func(ctx context.Context, t testing.TB, r *root) error {
		_, err := r.Install(ctx, Install{Artifact: set(t, version), Force: true}) // geneve has a version, which mii lacks
		return err
	}
}

var scenarios = []scenario{
	{"install", func(testing.TB, *root) {}, doInstall("1.0")},
	{"upgrade", hasOne, doInstall("2.0")},
	{"uninstall", hasOne, func(ctx context.Context, t testing.TB, r *root) error {
		_, err := r.Uninstall(ctx, "hello", "1.0", bookworm)
		return err
	}},
}

func hasOne(t testing.TB, r *root) {
	t.Helper()
	if err := doInstall("1.0")(context.Background(), t, r); err != nil {
		t.Fatal(err)
	}
}

var changed = regexp.MustCompile(`"changed": "[^"]*"`)

// snapshot tells all that is in a root: type, mode and content of each file, and the time of the kernel's own modules, which is kept.
func snapshot(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(path, dir)
		info, err := d.Info()
		if err != nil {
			return err
		}
		what := info.Mode().String()
		if d.Type().IsRegular() {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			if strings.HasPrefix(name, StateDir) {
				b = changed.ReplaceAll(b, nil)
			}
			what += fmt.Sprintf(" %d %x", len(b), sha256.Sum256(b))
			if strings.Contains(name, "/kernel/") {
				what += info.ModTime().String()
			}
		}
		// Folders of the state that may be empty, and what they are made for.
		if d.IsDir() && strings.HasPrefix(name, StateDir) || strings.HasSuffix(name, "/tmp/.lock") {
			return nil
		}
		out[name] = what
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// difference names what is not the same in two snapshots.
func difference(a, b map[string]string) (out []string) {
	for _, name := range slices.Sorted(maps.Keys(a)) {
		if a[name] != b[name] {
			out = append(out, fmt.Sprintf("%s: %q, %q", name, a[name], b[name]))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(b)) {
		if _, ok := a[name]; !ok {
			out = append(out, fmt.Sprintf("%s: not there, %q", name, b[name]))
		}
	}
	return out
}

// copyRoot copies a root with modes and times.
func copyRoot(t testing.TB, from string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "root")
	if out, err := exec.Command("cp", "-a", from, to).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	return to
}

var errCut = errors.New("cut off")

// cutAt fails at a step, counted from 0, and at all after it.
func cutAt(n int) func(string) error {
	return func(string) error {
		if n--; n < 0 {
			return errCut
		}
		return nil
	}
}

// walk makes the change of a scenario once whole, and gives the state before and after it, and the steps.
func (s scenario) walk(t testing.TB) (dir string, old, new map[string]string, steps []string) {
	t.Helper()
	r := newRoot(t)
	r.add(t, "hello", "2.0")
	s.old(t, r)
	old = snapshot(t, r.Dir())
	whole := reopen(t, copyRoot(t, r.Dir()), Options{Step: func(name string) error { steps = append(steps, name); return nil }})
	if err := s.do(t.Context(), t, whole); err != nil {
		t.Fatal(err)
	}
	if len(difference(old, snapshot(t, whole.Dir()))) == 0 || len(steps) < 15 || !slices.Contains(steps, "commit") {
		t.Fatalf("the change does nothing, in the steps %q", steps)
	}
	return r.Dir(), old, snapshot(t, whole.Dir()), steps
}

// Whatever step a change is cut off at, afterwards it is done or undone.
func TestCutOff(t *testing.T) {
	t.Parallel()
	for _, s := range scenarios {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			dir, old, new, steps := s.walk(t)
			commit := slices.Index(steps, "commit")
			for n, name := range steps {
				r := reopen(t, copyRoot(t, dir), Options{Step: cutAt(n)})
				if err := s.do(t.Context(), t, r); !errors.Is(err, errCut) {
					t.Fatalf("%s: %v", name, err)
				}
				want := old
				if n > commit {
					want = new
				}
				// A recovery may be cut off as well.
				for k := 0; ; k += 3 {
					if err := reopen(t, r.Dir(), Options{Step: cutAt(k)}).Recover(t.Context()); err == nil {
						break
					} else if !errors.Is(err, errCut) {
						t.Fatalf("%s: recover: %v", name, err)
					}
				}
				if d := difference(want, snapshot(t, r.Dir())); len(d) > 0 {
					t.Errorf("cut off at step %d, %q: after Recover these differ:\n%s", n, name, strings.Join(d, "\n"))
				}
			}
		})
	}
}

const killEnv = "GODKMS_HERMETIC_TEST_KILL"

// TestKilledChild is the process that TestKilled kills.
func TestKilledChild(t *testing.T) {
	args := strings.Split(os.Getenv(killEnv), ":") // scenario:step:dir
	if len(args) != 3 {
		return
	}
	i := slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == args[0] })
	n, err := strconv.Atoi(args[1])
	if err != nil {
		t.Fatal(err)
	}
	r := reopen(t, args[2], Options{Step: func(string) error {
		if n--; n < 0 {
			syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
		return nil
	}})
	if err := scenarios[i].do(t.Context(), t, r); err != nil {
		t.Fatal(err)
	}
}

// The same with processes that are killed.
func TestKilled(t *testing.T) {
	t.Parallel()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range scenarios {
		if s.name == "upgrade" {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			dir, old, new, steps := s.walk(t)
			commit := slices.Index(steps, "commit")
			for n, name := range steps {
				r := reopen(t, copyRoot(t, dir), Options{})
				cmd := exec.Command(self, "-test.run=^TestKilledChild$")
				cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s:%d:%s", killEnv, s.name, n, r.Dir()))
				out, err := cmd.CombinedOutput()
				var exit *exec.ExitError
				if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("%s: %v: %s", name, err, out)
				}
				if err := r.Recover(t.Context()); err != nil {
					t.Fatalf("%s: recover: %v", name, err)
				}
				want := old
				if n > commit {
					want = new
				}
				got := snapshot(t, r.Dir())
				if d := difference(want, got); len(d) > 0 {
					t.Errorf("killed at step %d, %q: after Recover these differ:\n%s", n, name, strings.Join(d, "\n"))
				}
			}
		})
	}
}

// disk mounts a file system of some bytes at a folder of a root.
func disk(t testing.TB, dir string, size int) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		need.Skip(t, "no mount: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
}

// With the state on a disk of its own nothing can be moved or linked between it and the modules.
func TestTwoDisks(t *testing.T) {
	t.Parallel()
	r := newRoot(t)
	state := filepath.Join(r.Dir(), StateDir)
	if err := os.RemoveAll(state); err != nil {
		t.Fatal(err)
	}
	disk(t, state, 64<<20)
	r.add(t, "hello", "1.0")
	old := snapshot(t, r.lib)
	hasOne(t, r)
	new := snapshot(t, r.lib)
	for n := 0; ; n++ {
		err := scenarios[2].do(t.Context(), t, reopen(t, r.Dir(), Options{Step: cutAt(n)}))
		if err == nil {
			break
		} else if !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		if err := r.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		m, err := r.Module("hello", "1.0")
		if err != nil {
			t.Fatal(err)
		}
		want := new
		if m.Records[0].State != Installed {
			want = old
		}
		if d := difference(want, snapshot(t, r.lib)); len(d) > 0 {
			t.Fatalf("cut off at step %d of an uninstall:\n%s", n, strings.Join(d, "\n"))
		}
		if m.Records[0].State != Installed {
			hasOne(t, r)
		}
	}
	if d := difference(old, snapshot(t, r.lib)); len(d) > 0 {
		t.Errorf("after an uninstall:\n%s", strings.Join(d, "\n"))
	}
}

// The power fails: of what was written, the disk has what had been asked to be durable, and whatever else had got there. At each step
// the disk of a change is copied as it is then, and used as after a crash.
func TestPowerFails(t *testing.T) {
	t.Parallel()
	mount := func(image, dir string) {
		t.Helper()
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(need.Program(t, "mount"), "-o", "loop", image, dir).CombinedOutput(); err != nil {
			need.Skip(t, "no mount of a file: %v: %s", err, out)
		}
	}
	program := func(name string, args ...string) {
		t.Helper()
		if out, err := exec.Command(need.Program(t, name), args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
	}
	for _, s := range scenarios {
		dir, old, new, steps := s.walk(t)
		commit := slices.Index(steps, "commit")
		work := t.TempDir()
		image, at := filepath.Join(work, "image"), filepath.Join(work, "mount")
		write(t, image, nil)
		if err := os.Truncate(image, 24<<20); err != nil {
			t.Fatal(err)
		}
		program("mkfs.ext4", "-q", image)
		unmount := func() { unix.Unmount(at, unix.MNT_DETACH) }
		t.Cleanup(unmount)
		mount(image, at)
		program("cp", "-a", dir+"/.", filepath.Join(at, "root"))
		program("sync", "-f", at)
		n := 0
		r := reopen(t, filepath.Join(at, "root"), Options{Step: func(string) error {
			program("cp", "--sparse=always", image, fmt.Sprintf("%s-%d", image, n))
			n++
			return nil
		}})
		if err := s.do(t.Context(), t, r); err != nil {
			t.Fatal(err)
		}
		program("cp", "--sparse=always", image, fmt.Sprintf("%s-%d", image, n))
		unmount()
		for i := range n + 1 {
			name, want := "the end", new
			if i < n {
				name = steps[i]
			}
			if i <= commit {
				want = old
			}
			crashed := fmt.Sprintf("%s-%d", image, i)
			mount(crashed, at)
			if err := reopen(t, filepath.Join(at, "root"), Options{}).Recover(t.Context()); err != nil {
				t.Errorf("%s: the power fails before %q: Recover: %v", s.name, name, err)
			}
			if d := difference(want, snapshot(t, filepath.Join(at, "root"))); len(d) > 0 {
				t.Errorf("%s: the power fails before %q: after Recover these differ:\n%s", s.name, name, strings.Join(d, "\n"))
			}
			unmount()
			if err := os.Remove(crashed); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// However much space there is on a full disk, a change is made or nothing is.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	for _, full := range []string{"lib/modules", StateDir} {
		t.Run(filepath.Base(full), func(t *testing.T) {
			t.Parallel()
			r := newRoot(t)
			dir := filepath.Join(r.Dir(), full)
			was := filepath.Join(t.TempDir(), "was")
			if out, err := exec.Command("cp", "-a", dir, was).CombinedOutput(); err != nil {
				t.Fatalf("cp: %v: %s", err, out)
			}
			disk(t, dir, 4<<20)
			if out, err := exec.Command("cp", "-a", was+"/.", dir).CombinedOutput(); err != nil {
				t.Fatalf("cp: %v: %s", err, out)
			}
			depmod(t, r.Dir()) // it lists in the order of the folder
			filler := filepath.Join(dir, "filler")
			failed := 0
			for space := 0; ; space += 24 << 10 {
				var st unix.Statfs_t
				if err := unix.Statfs(dir, &st); err != nil {
					t.Fatal(err)
				}
				write(t, filler, make([]byte, int64(st.Bavail)*st.Bsize-int64(space)))
				before := snapshot(t, r.Dir())
				_, err := r.Install(t.Context(), Install{Artifact: set(t, "1.0")})
				if err != nil {
					if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, ErrDepmod) {
						t.Fatal(err)
					}
					failed++
					if d := difference(before, snapshot(t, r.Dir())); len(d) > 0 {
						t.Fatalf("%v changes:\n%s", err, strings.Join(d, "\n"))
					}
				}
				if err := os.Remove(filler); err != nil {
					t.Fatal(err)
				}
				if err == nil {
					break
				}
			}
			if failed < 4 || resolves(t, r.Dir(), "dummy") != "updates/dkms/dummy.ko" {
				t.Errorf("after %d failures modprobe dummy finds %q", failed, resolves(t, r.Dir(), "dummy"))
			}
		})
	}
}

func TestReadOnly(t *testing.T) {
	t.Parallel()
	r := newRoot(t)
	lib := filepath.Join(r.Dir(), "lib/modules")
	if err := unix.Mount(lib, lib, "", unix.MS_BIND, ""); err != nil {
		need.Skip(t, "no mount: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(lib, unix.MNT_DETACH) })
	if err := unix.Mount("", lib, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	r.fails(t, Install{Artifact: set(t, "1.0")}, unix.EROFS)
	if _, err := os.Stat(filepath.Join(r.Dir(), StateDir, journalFile)); err == nil {
		t.Error("a journal is left")
	}
}

// fakeDepmod puts a script in depmod's place, which has the real one in $depmod.
func fakeDepmod(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	real := need.Program(t, "depmod")
	if err := os.WriteFile(filepath.Join(dir, "depmod"), []byte("#!/bin/sh\ndepmod="+real+"\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestDepmodFails(t *testing.T) {
	r := newRoot(t)
	img := set(t, "1.0")
	for name, script := range map[string]string{
		"afterwards": `$depmod "$@"; echo no luck; exit 3`,
		"at once":    `echo no luck >&2; exit 1`,
		"killed":     `cd "$2/lib/modules/$3"; echo >modules.alias.new; mv modules.alias.new modules.alias; rm modules.dep; echo >modules.builtin.alias.bin.$$.620384.1795388825; echo no luck; kill -9 $$`,
	} {
		t.Run(name, func(t *testing.T) {
			fakeDepmod(t, script)
			if err := r.fails(t, Install{Artifact: img}, ErrDepmod); !says(err, "no luck", bookworm.Release) {
				t.Error(err)
			}
		})
	}
	t.Run("for the first time", func(t *testing.T) {
		r := newRoot(t)
		names, err := filepath.Glob(filepath.Join(r.lib, "modules.*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			if depmodFiles.MatchString(filepath.Base(name)) {
				if err := os.Remove(name); err != nil {
					t.Fatal(err)
				}
			}
		}
		fakeDepmod(t, `$depmod "$@"; exit 3`)
		r.fails(t, Install{Artifact: img}, ErrDepmod)
	})
	t.Run("uninstall", func(t *testing.T) {
		hasOne(t, r)
		before := snapshot(t, r.Dir())
		fakeDepmod(t, "exit 1")
		if _, err := r.Uninstall(t.Context(), "hello", "1.0", bookworm); !errors.Is(err, ErrDepmod) {
			t.Error(err)
		}
		if d := difference(before, snapshot(t, r.Dir())); len(d) > 0 {
			t.Errorf("an uninstall that fails changes:\n%s", strings.Join(d, "\n"))
		}
		quiet := reopen(t, r.Dir(), Options{NoDepmod: true}) // which is not run then
		quiet.uninstall(t, "hello", "1.0")
	})
	t.Run("left alone", func(t *testing.T) {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		depmod(t, r.Dir())
		before := snapshot(t, r.Dir())
		pid := filepath.Join(t.TempDir(), "pid")
		fakeDepmod(t, `echo $$ >`+pid+`.new; mv `+pid+`.new `+pid+`; exec sleep 60`)
		cmd := exec.Command(self, "-test.run=^TestKilledChild$")
		cmd.Env = append(os.Environ(), fmt.Sprintf("%s=install:1000:%s", killEnv, r.Dir()), "TMPDIR="+t.TempDir()) // it is killed
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		deadline := time.Now().Add(20 * time.Second)
		var text []byte
		for text, err = os.ReadFile(pid); err != nil && time.Now().Before(deadline); text, err = os.ReadFile(pid) {
			time.Sleep(5 * time.Millisecond)
		}
		cmd.Process.Kill()
		cmd.Wait()
		if err != nil {
			t.Fatal(err)
		}
		for proc := filepath.Join("/proc", strings.TrimSpace(string(text)), "stat"); ; time.Sleep(5 * time.Millisecond) {
			if stat, err := os.ReadFile(proc); err != nil || strings.Contains(string(stat), ") Z ") {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("depmod lives on when the process that runs it has died")
			}
		}
		t.Setenv("PATH", os.Getenv("PATH")[strings.IndexByte(os.Getenv("PATH"), ':')+1:]) // the real one
		if err := r.Recover(t.Context()); err != nil {
			t.Fatal(err)
		}
		if d := difference(before, snapshot(t, r.Dir())); len(d) > 0 {
			t.Errorf("killed while depmod runs:\n%s", strings.Join(d, "\n"))
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		fakeDepmod(t, `$depmod "$@"; exec sleep 60`)
		before := snapshot(t, r.Dir())
		ctx, cancel := context.WithCancelCause(t.Context())
		s := reopen(t, r.Dir(), Options{Step: func(name string) error {
			if name == "depmod" {
				time.AfterFunc(200*time.Millisecond, func() { cancel(errCut) })
			}
			return nil
		}})
		start := time.Now()
		if _, err := s.Install(ctx, Install{Artifact: img}); !errors.Is(err, errCut) || time.Since(start) > 10*time.Second {
			t.Errorf("Install, cancelled: %v after %s", err, time.Since(start))
		}
		if d := difference(before, snapshot(t, r.Dir())); len(d) > 0 {
			t.Errorf("an install that is cancelled changes:\n%s", strings.Join(d, "\n"))
		}
	})
}

// Cancelled at any step, an install is made or undone at once.
func TestCancelled(t *testing.T) {
	t.Parallel()
	dir, old, new, steps := scenarios[0].walk(t)
	for n := 0; n < len(steps); n += 2 {
		ctx, cancel := context.WithCancel(t.Context())
		left := n
		r := reopen(t, copyRoot(t, dir), Options{Step: func(string) error {
			if left--; left < 0 {
				cancel()
			}
			return nil
		}})
		err := scenarios[0].do(ctx, t, r)
		want := new
		if err != nil {
			want = old
		}
		if err != nil && !errors.Is(err, context.Canceled) || (err == nil) != (n >= slices.Index(steps, "commit")) {
			t.Errorf("cancelled at %q: %v", steps[n], err)
		}
		if d := difference(want, snapshot(t, r.Dir())); len(d) > 0 {
			t.Errorf("cancelled at %q:\n%s", steps[n], strings.Join(d, "\n"))
		}
		cancel()
	}
}

// Between a crash and the next command the kernel's package may come with other modules.
func TestChangedMeanwhile(t *testing.T) {
	t.Parallel()
	dir, _, _, steps := scenarios[0].walk(t)
	r := reopen(t, dir, Options{Step: cutAt(slices.Index(steps, "commit"))})
	if err := doInstall("1.0")(t.Context(), t, r); !errors.Is(err, errCut) {
		t.Fatal(err)
	}
	newer := bytesOf(t, own[1])
	for _, name := range []string{own[0], "kernel/drivers/net/another.ko"} {
		write(t, filepath.Join(r.lib, name), newer)
	}
	r = reopen(t, dir, Options{})
	if err := r.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	for module, want := range map[string]string{"dummy": own[0], "another": "kernel/drivers/net/another.ko", "hello": ""} {
		if got := resolves(t, dir, module); got != want {
			t.Errorf("modprobe %s finds %q; want %q", module, got, want)
		}
	}
	if b, err := os.ReadFile(filepath.Join(r.lib, own[0])); err != nil || !bytes.Equal(b, newer) || !r.warn.has(own[0], "meanwhile") {
		t.Errorf("the newer module is not left, %v; warnings %q", err, r.warn.lines)
	}
}

// A file of ours that somebody else writes just when it is to go is not ours any more.
func TestChangedJustThen(t *testing.T) {
	t.Parallel()
	r := newRoot(t)
	hasOne(t, r)
	ours := filepath.Join(r.lib, "updates/dkms/hello.ko")
	hit := reopen(t, r.Dir(), Options{Step: func(name string) error {
		if name == "take updates/dkms/hello.ko" {
			write(t, ours, []byte("theirs"))
		}
		return nil
	}})
	if _, err := hit.Uninstall(t.Context(), "hello", "1.0", bookworm); !errors.Is(err, ErrRefused) || !says(err, ours) {
		t.Errorf("Uninstall: %v", err)
	}
	if b, err := os.ReadFile(ours); string(b) != "theirs" {
		t.Errorf("it is %q, %v", b, err)
	}
	// And one that comes where one of ours is to be put.
	dir, old, _, _ := scenarios[0].walk(t)
	r = reopen(t, dir, Options{})
	comes := filepath.Join(r.lib, "updates/dkms/hello.ko")
	hit = reopen(t, dir, Options{Step: func(name string) error {
		if name == "put updates/dkms/hello.ko" {
			write(t, comes, []byte("theirs"))
		}
		return nil
	}})
	if err := doInstall("1.0")(t.Context(), t, hit); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Install: %v", err)
	}
	if b, err := os.ReadFile(comes); string(b) != "theirs" {
		t.Errorf("it is %q, %v", b, err)
	}
	if err := os.RemoveAll(filepath.Join(r.lib, "updates")); err != nil {
		t.Fatal(err)
	}
	if d := difference(old, snapshot(t, dir)); len(d) > 0 {
		t.Errorf("an install that fails changes:\n%s", strings.Join(d, "\n"))
	}
}

// Processes wait for each other: here two of them for every module.
func TestAtOnce(t *testing.T) {
	t.Parallel()
	r := newRoot(t)
	b := bytesOf(t, own[1])
	names := []string{"hello", "other"}
	r.add(t, "other", "1.0")
	var all errgroup.Group
	for i := range 4 {
		name := names[i%2]
		img := built(t, name, "1.0", map[string][]byte{"updates/dkms/" + name + ".ko": b})
		all.Go(func() error {
			_, err := reopen(t, r.Dir(), Options{}).Install(t.Context(), Install{Artifact: img})
			return err
		})
	}
	if err := all.Wait(); err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if got := resolves(t, r.Dir(), name); got != "updates/dkms/"+name+".ko" {
			t.Errorf("modprobe %s finds %q", name, got)
		}
	}
	r.uninstall(t, "hello", "1.0")
	r.uninstall(t, "other", "1.0")
	if _, err := os.Stat(filepath.Join(r.lib, "updates")); err == nil {
		t.Error("a folder is left that both used")
	}
}

func TestDamagedState(t *testing.T) {
	t.Parallel()
	r := newRoot(t)
	hasOne(t, r)
	state := filepath.Join(r.Dir(), StateDir)
	cut := func(path string) {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		write(t, path, b[:len(b)/2])
	}
	record := filepath.Join(state, "modules/hello/1.0", recordName(bookworm))
	cut(record)
	if err := r.fails(t, Install{Artifact: set(t, "1.0")}, ErrBroken); !says(err, record, "remove that file") {
		t.Error(err)
	}
	if _, err := r.Uninstall(t.Context(), "hello", "1.0", bookworm); !errors.Is(err, ErrBroken) || !says(err, record) {
		t.Error(err)
	}
	// Another module has nothing to do with it.
	r.add(t, "other", "1")
	r.install(t, Install{Artifact: built(t, "other", "1", map[string][]byte{"updates/dkms/other.ko": bytesOf(t, own[1])})})

	// Nor has another kernel of the same module.
	other := bookworm
	other.Release = "6.1.0-1-amd64"
	write(t, filepath.Join(state, "modules/other/1", recordName(other)), []byte("{"))
	r.uninstall(t, "other", "1")
	rec := Record{Module: "other", Version: "1", Kernel: bookworm, State: Failed}
	if err := r.Note(t.Context(), rec); err != nil {
		t.Error(err)
	}
	rec.Kernel = other
	if err := r.Note(t.Context(), rec); !errors.Is(err, ErrBroken) {
		t.Errorf("a damaged record is replaced: %v", err)
	}
	r.install(t, Install{Artifact: built(t, "other", "1", map[string][]byte{"updates/dkms/other.ko": bytesOf(t, own[1])})})

	cutOff := reopen(t, r.Dir(), Options{Step: cutAt(8)})
	if _, err := cutOff.Uninstall(t.Context(), "other", "1", bookworm); !errors.Is(err, errCut) {
		t.Fatal(err)
	}
	journal := filepath.Join(state, journalFile)
	good, err := os.ReadFile(journal)
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{string(good[:len(good)/2]), "{}", "", `{"format":2}`,
		strings.Replace(string(good), "updates/dkms/other.ko", "../../../../etc/passwd", 1), strings.Replace(string(good), `"other"`, `"../other"`, 1),
		strings.Replace(string(good), `"release": "`+bookworm.Release, `"release": "../../../etc`, 1)} {
		write(t, journal, []byte(bad))
		if err := r.fails(t, Install{Artifact: set(t, "1.0")}, ErrBroken); !says(err, journal, "remove the file") {
			t.Error(err)
		}
		if _, err := r.Uninstall(t.Context(), "other", "1", bookworm); !errors.Is(err, ErrBroken) {
			t.Error(err)
		}
	}
	write(t, journal, good)
	r.uninstall(t, "other", "1")
}

// The kernel is removed between, or while a change is under way.
func TestKernelGone(t *testing.T) {
	t.Parallel()
	for _, cut := range []int{-1, 5, 18, 25} {
		r := newRoot(t)
		if cut < 0 {
			hasOne(t, r)
		} else if err := doInstall("1.0")(t.Context(), t, reopen(t, r.Dir(), Options{Step: cutAt(cut)})); !errors.Is(err, errCut) {
			t.Fatal(err)
		}
		if err := os.RemoveAll(r.lib); err != nil {
			t.Fatal(err)
		}
		rec, err := r.Uninstall(t.Context(), "hello", "1.0", bookworm)
		if cut < 0 && (err != nil || rec.State != Built) || err != nil && !errors.Is(err, ErrNotAdded) {
			t.Errorf("cut %d: Uninstall: %+v, %v", cut, rec, err)
		}
		if left, _ := filepath.Glob(filepath.Join(r.Dir(), StateDir, "originals/*/*/*/*/*")); len(left) > 0 {
			t.Errorf("cut %d: %q is left", cut, left)
		}
	}
}

// Of a kernel that was removed with all but what others put there, nothing is made anew.
func TestKernelLeftovers(t *testing.T) {
	t.Parallel()
	r := newRoot(t)
	r.install(t, Install{Artifact: built(t, "hello", "1.0", map[string][]byte{"updates/dkms/hello.ko": bytesOf(t, own[1])})})
	entries, err := os.ReadDir(r.lib)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "updates" {
			if err := os.RemoveAll(filepath.Join(r.lib, e.Name())); err != nil {
				t.Fatal(err)
			}
		}
	}
	r.uninstall(t, "hello", "1.0")
	if left, err := os.ReadDir(r.lib); err != nil || len(left) > 0 {
		t.Errorf("there is %v, %v", left, err)
	}
}

// A root whose /lib/modules isn't mounted has lost nothing.
func TestModulesNotMounted(t *testing.T) {
	t.Parallel()
	r := newRoot(t)
	hasOne(t, r)
	dummy := filepath.Join(r.lib, "kernel/drivers/net/dummy.ko")
	all := filepath.Dir(r.lib)
	if err := os.Rename(all, all+"-away"); err != nil {
		t.Fatal(err)
	}
	r.uninstall(t, "hello", "1.0")
	if !r.warn.has("is it mounted?") {
		t.Errorf("warnings: %q", r.warn.lines)
	}
	if err := os.Rename(all+"-away", all); err != nil {
		t.Fatal(err)
	}
	r.install(t, Install{Artifact: set(t, "1.0"), Force: true})
	r.uninstall(t, "hello", "1.0")
	if b, err := os.ReadFile(dummy); !bytes.Equal(b, bytesOf(t, "kernel/drivers/net/dummy.ko")) {
		t.Errorf("the kernel's own module has %d bytes, %v", len(b), err)
	}
}

// Links of a root lead nowhere else on this machine.
func TestHostileRoot(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	for _, name := range []string{"updates", "dkms", "a"} {
		write(t, filepath.Join(outside, name, "file"), []byte(name))
	}
	before := snapshot(t, outside)
	img := set(t, "1.0")
	for name, hostile := range map[string]func(r *root) (link, to string){
		"the folder of modules": func(r *root) (string, string) { return filepath.Join(r.lib, "updates"), outside },
		"a folder in it":        func(r *root) (string, string) { return filepath.Join(r.lib, "updates/dkms"), outside },
		"what is aside":         func(r *root) (string, string) { return filepath.Join(r.lib, aside), outside },
		"the journal's":         func(r *root) (string, string) { return filepath.Join(r.Dir(), StateDir, journalDir), outside },
		"that of originals":     func(r *root) (string, string) { return filepath.Join(r.Dir(), StateDir, "originals"), outside },
		"that of depmod's files": func(r *root) (string, string) {
			return filepath.Join(r.lib, "modules.dep"), filepath.Join(outside, "a/file")
		},
		"a module": func(r *root) (string, string) {
			return filepath.Join(r.lib, "updates/dkms/dummy.ko"), filepath.Join(outside, "a/file")
		},
		"the folder that it goes": func(r *root) (string, string) { return filepath.Join(r.lib, "kernel/drivers/net"), outside },
	} {
		r := newRoot(t)
		link, to := hostile(r)
		if err := os.RemoveAll(link); err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
		_, err := r.Install(t.Context(), Install{Artifact: img, Force: true})
		if d := difference(before, snapshot(t, outside)); len(d) > 0 {
			t.Errorf("%s: Install (%v) changes what is outside:\n%s", name, err, strings.Join(d, "\n"))
		}
		if err == nil {
			r.uninstall(t, "hello", "1.0")
		}
		if d := difference(before, snapshot(t, outside)); len(d) > 0 {
			t.Errorf("%s: Uninstall changes what is outside:\n%s", name, strings.Join(d, "\n"))
		}
	}

	// Absolute links that an image may well have are followed as within it, by depmod too.
	r := newRoot(t)
	usr := filepath.Join(r.Dir(), "usr")
	if err := os.Mkdir(usr, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(r.Dir(), "lib"), filepath.Join(usr, "lib")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/usr/lib", filepath.Join(r.Dir(), "lib")); err != nil {
		t.Fatal(err)
	}
	r.install(t, Install{Artifact: img})
	if got := resolves(t, usr, "dummy"); !strings.HasSuffix(got, "updates/dkms/dummy.ko") {
		t.Errorf("modprobe dummy finds %q", got)
	}
}
