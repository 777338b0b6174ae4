package qemu

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/images"
	"github.com/godkms-hermetic/godkms-hermetic/internal/dkmstest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/deb"
)

// asHelper is the environment variable with which the test program is another process.
const asHelper = "GODKMS_HERMETIC_QEMU_TEST"

func TestMain(m *testing.M) {
	switch os.Getenv(asHelper) {
	case "wait": // until it's killed
		fmt.Fprintln(os.Stderr, helper(os.Args[1], os.Args[2], "wait", func(string, string) { fmt.Println("up") }))
		os.Exit(1)
	case "kvm":
		fmt.Fprintln(os.Stderr, tryKVM(os.Args[1], os.Args[2], os.Args[3], os.Args[4]))
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// newest is Debian's newest 6.1 kernel of an architecture, in the cache that tests share.
func newest(t *testing.T, arch string) *images.Kernel {
	t.Helper()
	p, err := deb.New("debian", deb.Options{CacheDir: filepath.Join(dkmstest.Cache(), "index")})
	if err != nil {
		t.Fatal(err)
	}
	store, err := images.Open(images.Options{
		Dir:     filepath.Join(dkmstest.Cache(), "images"),
		Payload: func(_ string, pkg io.Reader) (io.ReadCloser, error) { return p.Payload(pkg) },
	})
	if err != nil {
		t.Fatal(err)
	}
	list, err := p.Kernels(t.Context(), "bookworm", arch)
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(list, func(k kernels.Candidate) bool {
		return strings.HasPrefix(k.Release, "6.1.") && k.Flavour == arch
	})
	if i < 0 {
		t.Fatalf("no 6.1 kernel for %s", arch)
	}
	lock, err := p.Lock(t.Context(), list[i].Kernel, kernels.Extra{})
	if err != nil {
		t.Fatal(err)
	}
	image, err := p.Image(t.Context(), lock)
	if err != nil {
		t.Fatal(err)
	}
	k, err := store.Kernel(t.Context(), image, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	return k
}

// program finds qemu, or ends the test.
func program(t *testing.T, arch string) Program {
	t.Helper()
	p, err := NewHost(filepath.Join(t.TempDir(), "host")).Find(t.Context(), arch)
	if err != nil {
		need.Skip(t, "%v", err)
	}
	return p
}

var inits sync.Map // by architecture: a func() (string, error)

// initOf builds testdata/init.
func initOf(t *testing.T, arch string) string {
	t.Helper()
	build, _ := inits.LoadOrStore(arch, sync.OnceValues(func() (string, error) {
		dir, err := os.MkdirTemp("", "init-")
		if err != nil {
			return "", err
		}
		cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(dir, "init"), "./testdata/init")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOARCH="+arch)
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("%w: %s", err, out)
		}
		defer os.RemoveAll(dir)
		f, err := os.ReadFile(filepath.Join(dir, "init"))
		return string(f), err
	}))
	file, err := build.(func() (string, error))()
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// cpio writes files, and the folders dev and proc.
func cpio(w io.Writer, files map[string]string) error {
	put := func(name string, mode int, data string) {
		fmt.Fprintf(w, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", 0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		pad := func(n int) string { return strings.Repeat("\x00", -n&3) }
		io.WriteString(w, name+"\x00"+pad(110+len(name)+1)+data+pad(len(data)))
	}
	put("dev", 0o40755, "")
	put("proc", 0o40755, "")
	for name, data := range files {
		put(name, 0o100755, data)
	}
	put("TRAILER!!!", 0, "")
	return nil
}

// machine is one whose init does something.
func machine(p Program, kernel, init string, do ...string) Machine {
	return Machine{
		Kernel: kernel,
		Initrd: func(w io.Writer) error { return cpio(w, map[string]string{"init": init}) },
		Append: append([]string{"quiet", "rdinit=/init", "cryptomgr.notests=1", "--", p.Port()}, do...),
		Memory: 256 << 20,
	}
}

// writer is an io.Writer.
type writer func(b []byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }

// children are the processes that this one started, by pid.
func children(t *testing.T) []string {
	t.Helper()
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, l := range lists {
		b, _ := os.ReadFile(l)
		out = append(out, strings.Fields(string(b))...)
	}
	return out
}

// The guest's words come out of its ports. qemu is confined meanwhile, and gone afterwards.
func TestRun(t *testing.T) {
	p := program(t, runtime.GOARCH)
	p.host.device = "/nonexistent" // tested below
	inherited, err := os.Open("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	defer inherited.Close()
	fd, err := unix.FcntlInt(inherited.Fd(), unix.F_DUPFD, 100) // as if it came from the parent
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	t.Setenv("SECRET", "x")
	m := machine(p, newest(t, p.Arch).Path(), initOf(t, p.Arch), "hello")
	var console, data bytes.Buffer
	var started []string
	checked := false
	m.Start = func(accel string) (io.Writer, io.Writer) {
		started = append(started, accel)
		return &console, writer(func(b []byte) (int, error) {
			if !checked {
				checked = true
				for _, pid := range children(t) {
					checkConfined(t, "/proc/"+pid)
				}
			}
			return data.Write(b)
		})
	}
	if err := p.Run(t.Context(), m); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(console.String(), "hello, console") || data.String() != "hello, port" || !slices.Equal(started, []string{"tcg"}) {
		t.Errorf("console %q, port %q, started with %q", &console, &data, started)
	}
	if !checked || len(children(t)) > 0 {
		t.Errorf("seen: %v, left: %q", checked, children(t))
	}
}

func checkConfined(t *testing.T, proc string) {
	t.Helper()
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(proc, name))
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	status := read("status")
	want := []string{"\nSeccomp:\t2\n", "\nNoNewPrivs:\t1\n", "\nCapEff:\t0000000000000000\n", "\nCapPrm:\t0000000000000000\n"}
	if os.Geteuid() == 0 {
		want = append(want, "\nUid:\t65534\t65534\t65534\t65534\n", "\nGid:\t65534\t65534\t65534\t65534\n", "\nGroups:\t \n")
	}
	for _, line := range want {
		if !strings.Contains(status, line) {
			t.Errorf("status has not %q:\n%s", line, status)
		}
	}
	if os.Geteuid() != 0 {
		return
	}
	if env := read("environ"); env != "" {
		t.Errorf("environment %q", env)
	}
	if dir, err := os.Readlink(filepath.Join(proc, "cwd")); dir != "/" {
		t.Errorf("it is in %q, %v", dir, err)
	}
	fds, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		t.Error(err)
	}
	for _, fd := range fds {
		file, _ := os.Readlink(filepath.Join(proc, "fd", fd.Name()))
		if strings.HasPrefix(file, "/") && file != "/dev/null" && !strings.HasPrefix(file, "/memfd:") {
			t.Errorf("it has %s open", file)
		}
	}
}

// A machine that never ends, or floods its ports, is ended from outside.
func TestEnds(t *testing.T) {
	p := program(t, runtime.GOARCH)
	p.host.device = "/nonexistent"
	kernel, init := newest(t, p.Arch).Path(), initOf(t, p.Arch)
	enough := errors.New("enough")
	for _, c := range []struct {
		name, do string
		data     func(n int, cancel func(error)) error
	}{
		{"cancelled", "wait", func(_ int, cancel func(error)) error { cancel(enough); return nil }},
		{"flood", "flood", func(n int, _ func(error)) error {
			if n > 32<<10 {
				return enough
			}
			return nil
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			m := machine(p, kernel, init, c.do)
			n := 0
			m.Start = func(string) (io.Writer, io.Writer) {
				return io.Discard, writer(func(b []byte) (int, error) {
					n += len(b)
					return len(b), c.data(n, cancel)
				})
			}
			if err := p.Run(ctx, m); !errors.Is(err, enough) {
				t.Errorf("Run: %v; want %v", err, enough)
			}
			if left := children(t); len(left) > 0 {
				t.Errorf("left: %q", left)
			}
		})
	}
}

// A file that is no kernel ends in what qemu says of it.
func TestNoKernel(t *testing.T) {
	p := program(t, runtime.GOARCH)
	p.host.device = "/nonexistent"
	file := filepath.Join(t.TempDir(), "vmlinuz")
	if err := os.WriteFile(file, bytes.Repeat([]byte("no kernel "), 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	m := machine(p, file, "", "")
	m.Start = func(string) (io.Writer, io.Writer) { return io.Discard, io.Discard }
	if err := p.Run(t.Context(), m); err == nil || !strings.Contains(err.Error(), "kernel") {
		t.Errorf("Run: %v", err)
	}
	m.Kernel += "0"
	if err := p.Run(t.Context(), m); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Run without a file: %v", err)
	}
}

// helper runs a machine in a process of its own.
func helper(kernel, initFile, do string, up func(accel, text string)) error {
	p, err := NewHost(filepath.Join(os.TempDir(), "none")).Find(context.Background(), runtime.GOARCH)
	if err != nil {
		return err
	}
	p.host.device = "/nonexistent"
	init, err := os.ReadFile(initFile)
	if err != nil {
		return err
	}
	m := machine(p, kernel, string(init), do)
	m.Start = func(accel string) (io.Writer, io.Writer) {
		return io.Discard, writer(func(b []byte) (int, error) { up(accel, string(b)); return len(b), nil })
	}
	return p.Run(context.Background(), m)
}

// qemu ends with this program even if that is killed.
func TestKilled(t *testing.T) {
	p := program(t, runtime.GOARCH)
	initFile := filepath.Join(t.TempDir(), "init")
	if err := os.WriteFile(initFile, []byte(initOf(t, p.Arch)), 0o755); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, newest(t, p.Arch).Path(), initFile)
	cmd.Env = append(os.Environ(), asHelper+"=wait")
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "up\n" {
		t.Fatalf("it says %q, %v", line, err)
	}
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", cmd.Process.Pid))
	var pids []int
	for _, l := range lists {
		b, _ := os.ReadFile(l)
		for _, f := range strings.Fields(string(b)) {
			pid, _ := strconv.Atoi(f)
			pids = append(pids, pid)
		}
	}
	if len(pids) != 1 {
		t.Fatalf("it has the children %d", pids)
	}
	cmd.Process.Kill()
	for i := 0; ; i++ {
		state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pids[0]))
		if err != nil || bytes.Contains(state, []byte(") Z ")) { // nobody here waits for it
			break
		}
		if i == 100 {
			syscall.Kill(pids[0], syscall.SIGKILL)
			t.Fatal("qemu lives on")
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// An arm64 kernel boots under emulation and loads a module of its own: make test-arm64. It takes half a minute of processor time.
func TestARM64(t *testing.T) {
	if os.Getenv("GODKMS_HERMETIC_TEST_ARM64") == "" {
		t.Skip("only make test-arm64 runs it")
	}
	p := program(t, "arm64")
	k := newest(t, p.Arch)
	const name = "dummy" // of network devices; it needs nothing else
	module, err := k.Read(name)
	if err != nil {
		t.Fatal(err)
	}
	m := machine(p, k.Path(), "", "load", "/"+name)
	m.Initrd = func(w io.Writer) error {
		return cpio(w, map[string]string{"init": initOf(t, p.Arch), name: string(module)})
	}
	m.Memory = 512 << 20
	var console, data bytes.Buffer
	m.Start = func(string) (io.Writer, io.Writer) { return &console, &data }
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if err := p.Run(ctx, m); err != nil || data.String() != "<nil> "+name {
		t.Errorf("Run: %v; port %q, console\n%s", err, &data, &console)
	}
}
