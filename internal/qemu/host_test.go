package qemu

import (
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
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
)

// tryKVM runs a machine twice and says under what. A device node is /dev/kvm meanwhile: for this process alone.
func tryKVM(kernel, initFile, dir, node string) error {
	if err := unix.Mount(node, "/dev/kvm", "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	init, err := os.ReadFile(initFile)
	if err != nil {
		return err
	}
	for range 2 {
		p, err := NewHost(dir).Find(context.Background(), runtime.GOARCH) // anew, as another process would
		if err != nil {
			return err
		}
		m := machine(p, kernel, string(init), "hello")
		said := ""
		m.Start = func(accel string) (io.Writer, io.Writer) {
			fmt.Print(accel, " ")
			said = ""
			return io.Discard, writer(func(b []byte) (int, error) { said += string(b); return len(b), nil })
		}
		err = p.Run(context.Background(), m)
		fmt.Println(said, p.Accelerator(), err)
	}
	return nil
}

// KVM, if the machine has it, is tried with the kernel itself, and only once.
func TestKVM(t *testing.T) {
	p := program(t, runtime.GOARCH)
	var st unix.Stat_t
	if os.Geteuid() != 0 || unix.Stat("/dev/kvm", &st) != nil {
		t.Skip("no /dev/kvm here, or one that can't be given to others for this test")
	}
	kernel := newest(t, p.Arch).Path()
	dir, err := os.MkdirTemp("", "kvm-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	node, initFile := filepath.Join(dir, "kvm"), filepath.Join(dir, "init")
	if err := unix.Mknod(node, unix.S_IFCHR|0o666, int(st.Rdev)); err != nil {
		need.Skip(t, "mknod: %v", err)
	}
	if err := errors.Join(os.Chmod(node, 0o666), os.WriteFile(initFile, []byte(initOf(t, p.Arch)), 0o755)); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, kernel, initFile, filepath.Join(dir, "host"), node)
	cmd.Env = append(os.Environ(), asHelper+"=kvm")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: unix.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	works := "kvm hello, port kvm <nil>\nkvm hello, port kvm <nil>\n<nil>\n"
	broken := "kvm tcg hello, port tcg <nil>\ntcg hello, port tcg <nil>\n<nil>\n"
	if s := string(out); s != works && s != broken {
		t.Errorf("it says\n%s\nwant, where KVM works here\n%s\nand elsewhere\n%s", s, works, broken)
	}
}

// fake is a qemu that does as a shell script says under KVM, and speaks on the second port under TCG. Its host takes a file for KVM's
// device.
func fake(t *testing.T, underKVM string) Program {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "qemu")
	script := "#!/bin/sh\ncase \"$*\" in *'-accel kvm'*)\n" + underKVM + "\n;; *) echo tcg >&6;; esac\n"
	if err := errors.Join(os.WriteFile(path, []byte(script), 0o755), os.WriteFile(filepath.Join(dir, "kvm"), nil, 0o666), os.Chmod(filepath.Join(dir, "kvm"), 0o666)); err != nil {
		t.Fatal(err)
	}
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) { // nobody runs it
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	h := NewHost(filepath.Join(dir, "host"))
	h.device, h.patience = filepath.Join(dir, "kvm"), time.Second
	return Program{Arch: runtime.GOARCH, Path: path, Version: "1", host: h}
}

// run gives the accelerators that a machine was started with, and what came out of its ports the last time.
func run(t *testing.T, p Program) (started []string, said string, err error) {
	t.Helper()
	kernel := filepath.Join(t.TempDir(), "kernel")
	if err := os.WriteFile(kernel, []byte("a kernel"), 0o600); err != nil {
		t.Fatal(err)
	}
	m := machine(p, kernel, "")
	var data, console bytes.Buffer
	m.Start = func(accel string) (io.Writer, io.Writer) {
		started = append(started, accel)
		data.Reset()
		console.Reset()
		return &console, &data
	}
	err = p.Run(t.Context(), m)
	return started, data.String() + console.String(), err
}

func TestChoose(t *testing.T) {
	t.Parallel()
	const speaks = "echo kvm >&6\n"
	for name, c := range map[string]struct {
		kvm           string
		first, second string // the accelerators, and what was said
		remembered    string
	}{
		"works":         {speaks, "kvm: kvm", "kvm: kvm", "kvm"},
		"ends":          {"echo failed to set MSR >&2; exit 1", "kvm tcg: tcg", "tcg: tcg", "tcg"},
		"is killed":     {"echo console >&5; kill -6 $$", "kvm tcg: tcg", "tcg: tcg", "tcg"},
		"waits":         {"echo 'KVM internal error. Suberror: 1' >&2; sleep 100", "kvm tcg: tcg", "tcg: tcg", "tcg"},
		"says nothing":  {"sleep 100", "kvm tcg: tcg", "tcg: tcg", "tcg"},
		"restarts":      {"exit 0", "kvm tcg: tcg", "tcg: tcg", "tcg"},
		"but not later": {speaks + "echo 'error: kvm run failed Bad address' >&2; sleep 100", "kvm tcg: tcg", "kvm tcg: tcg", "kvm"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := fake(t, c.kvm)
			if got := p.Accelerator(); got != "" {
				t.Errorf("before: %q", got)
			}
			for i, want := range []string{c.first, c.second} {
				started, said, err := run(t, p)
				if got := fmt.Sprintf("%s: %s", strings.Join(started, " "), strings.TrimSpace(said)); got != want || err != nil {
					t.Errorf("run %d: %q, %v; want %q", i+1, got, err, want)
				}
			}
			if got := p.Accelerator(); got != c.remembered {
				t.Errorf("it remembers %q; want %q", got, c.remembered)
			}
			later := time.Now().Add(time.Hour)
			if err := os.Chtimes(p.Path, later, later); err != nil {
				t.Fatal(err)
			}
			if got := p.Accelerator(); got != "" {
				t.Errorf("of another qemu it knows %q", got)
			}
		})
	}
}

// A KVM that works no more is found out in the run that needs it. That a kernel boots under neither says nothing of KVM.
func TestChooseAgain(t *testing.T) {
	t.Parallel()
	p := fake(t, "exit 1")
	p.remember("kvm")
	started, said, err := run(t, p)
	if err != nil || said != "tcg\n" || !slices.Equal(started, []string{"kvm", "tcg"}) || p.Accelerator() != "tcg" {
		t.Errorf("%q, %q, %v; it remembers %q", started, said, err, p.Accelerator())
	}

	p = fake(t, "exit 1")
	script, err := os.ReadFile(p.Path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p.Path, bytes.ReplaceAll(script, []byte("echo tcg >&6"), []byte("echo no kernel >&2; exit 3")), 0o755); err != nil {
		t.Fatal(err)
	}
	started, _, err = run(t, p)
	if err == nil || !strings.Contains(err.Error(), "exit status 3: no kernel") || len(started) != 2 || p.Accelerator() != "" {
		t.Errorf("%q, %v; it remembers %q", started, err, p.Accelerator())
	}
}

// Machines that start at once try KVM once.
func TestChooseTogether(t *testing.T) {
	t.Parallel()
	p := fake(t, "sleep 0.5; exit 1")
	counts := make(chan int)
	for range 3 {
		go func() {
			started, _, err := run(t, p)
			if err != nil {
				t.Error(err)
			}
			counts <- len(started)
		}()
	}
	if n := <-counts + <-counts + <-counts; n != 4 {
		t.Errorf("%d starts; want 4", n)
	}
}

// There are as many machines at a time as have room, and one that could never have it is refused.
func TestClaim(t *testing.T) {
	h := NewHost(t.TempDir())
	room := available("/")
	if _, err := h.claim(t.Context(), room*2); err == nil || !strings.Contains(err.Error(), "--mem") {
		t.Errorf("twice what there is: %v", err)
	}
	release, err := h.claim(t.Context(), room/3*2)
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error)
	go func() {
		release, err := h.claim(t.Context(), room/2)
		if err == nil {
			release()
		}
		got <- err
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := h.claim(ctx, room/2); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("more than there is room for: %v", err)
	}
	select {
	case err := <-got:
		t.Errorf("it didn't wait: %v", err)
	default:
	}
	release()
	if err := <-got; err != nil {
		t.Error(err)
	}

	var all []func()
	for range runtime.GOMAXPROCS(0) {
		release, err := h.claim(t.Context(), 1)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, release)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := h.claim(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("more than there are processors: %v", err)
	}
	for _, release := range all {
		release()
	}
}

func TestAvailable(t *testing.T) {
	t.Parallel()
	const (
		v2   = "24 23 0:22 / /sys/fs/cgroup rw shared:4 - cgroup2 cgroup2 rw\n"
		v1   = "35 31 0:31 %s /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n34 31 0:30 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
		free = "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:    4000 kB\n"
		none = 4000 << 10
	)
	for name, c := range map[string]struct {
		files map[string]string
		want  int64
	}{
		"no groups": {nil, none},
		"no limit":  {map[string]string{"proc/self/mountinfo": v2, "proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "max\n", "sys/fs/cgroup/a/memory.current": "7\n"}, none},
		"version 2": {map[string]string{"proc/self/mountinfo": v2, "proc/self/cgroup": "0::/a/b\n",
			"sys/fs/cgroup/a/b/memory.max": "2000000\n", "sys/fs/cgroup/a/b/memory.current": "1500000\n", "sys/fs/cgroup/a/b/memory.stat": "anon 1\ninactive_file 100000\n"}, 600000},
		"the group above": {map[string]string{"proc/self/mountinfo": v2, "proc/self/cgroup": "0::/a/b\n",
			"sys/fs/cgroup/a/memory.max": "1000\n", "sys/fs/cgroup/a/memory.current": "600\n",
			"sys/fs/cgroup/a/b/memory.max": "2000\n", "sys/fs/cgroup/a/b/memory.current": "100\n"}, 400},
		"over its limit": {map[string]string{"proc/self/mountinfo": v2, "proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "100\n", "sys/fs/cgroup/a/memory.current": "700\n"}, 0},
		"version 1": {map[string]string{"proc/self/mountinfo": fmt.Sprintf(v1, "/"), "proc/self/cgroup": "4:memory:/a\n1:cpu:/\n0::/\n",
			"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "2000\n", "sys/fs/cgroup/memory/a/memory.usage_in_bytes": "1500\n",
			"sys/fs/cgroup/memory/a/memory.stat": "inactive_file 5\ntotal_inactive_file 100\n"}, 600},
		"a container": {map[string]string{"proc/self/mountinfo": fmt.Sprintf(v1, "/docker/x"), "proc/self/cgroup": "4:memory:/docker/x\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "2000\n", "sys/fs/cgroup/memory/memory.usage_in_bytes": "1500\n"}, 500},
	} {
		root := t.TempDir()
		files := map[string]string{"proc/meminfo": free}
		for name, text := range c.files {
			files[name] = text
		}
		for name, text := range files {
			path := filepath.Join(root, name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		if got := available(root); got != c.want {
			t.Errorf("%s: %d; want %d", name, got, c.want)
		}
	}
}

func TestPackageFor(t *testing.T) {
	t.Parallel()
	for release, want := range map[string]string{
		"ID=debian\n": "qemu-system-x86",
		"NAME=x\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\n": "qemu-system-x86",
		"ID=fedora\n": "qemu-system-x86-core",
		"ID=\"opensuse-leap\"\nID_LIKE='suse opensuse'\n": "qemu-x86",
		"ID=arch\n": "qemu-system-x86",
	} {
		root := t.TempDir()
		if err := errors.Join(os.Mkdir(filepath.Join(root, "etc"), 0o755), os.WriteFile(filepath.Join(root, "etc/os-release"), []byte(release), 0o644)); err != nil {
			t.Fatal(err)
		}
		if got := packageFor(root, "amd64"); got != want {
			t.Errorf("%q: %q; want %q", release, got, want)
		}
	}
	if got := packageFor(t.TempDir(), "arm64"); !strings.Contains(got, "qemu-system-arm (Debian, Ubuntu), ") {
		t.Errorf("of a host that isn't known: %q", got)
	}
}
