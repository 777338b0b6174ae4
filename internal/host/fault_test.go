package host

import (
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

	v1 "github.com/google/go-containerregistry/pkg/v1"
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
		t.Skip("for TestKilled")
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
