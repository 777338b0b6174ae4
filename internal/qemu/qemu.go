// Package qemu runs kernels in virtual machines: no disk, no network, no firmware to speak of, two serial ports.
//
// What runs in a machine is hostile. qemu is confined: it has its own seccomp filter, and of this process neither environment, folder
// nor open files but the kernel, the initramfs (copies without a name) and the two ports; where this process is root, qemu is not.
package qemu

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// platform is what depends on an architecture.
type platform struct {
	program string
	machine string   // -M
	cpu     string   // -cpu under TCG
	data    []string // arguments that make the second serial port of the character device "data"
	console string   // the kernel's name of the first serial port
	port    string   // and of the second
	params  []string // kernel parameters
}

var platforms = map[string]platform{
	"amd64": {
		program: "qemu-system-x86_64",
		machine: "microvm,acpi=off",
		cpu:     "max,-erms,-fsrm", // TCG is slower with what makes processors quicker at copying
		data:    []string{"-device", "isa-serial,index=1,chardev=data"},
		console: "ttyS0",
		port:    "/dev/ttyS1",
		params: []string{
			"reboot=t",       // the restart that ends a machine without ACPI
			"no_timer_check", // which fails where the host has no time for it
		},
	},
	"arm64": {
		program: "qemu-system-aarch64",
		machine: "virt,gic-version=max",
		cpu:     "max",
		data:    []string{"-device", "pci-serial,chardev=data"},
		console: "ttyAMA0",
		port:    "/dev/ttyS0",
	},
}

const (
	// overhead is what qemu needs beside a machine's memory, in bytes.
	overhead = 256 << 20
	// patience is how long a machine under KVM may say nothing on its second port before KVM is taken to be broken.
	patience = 10 * time.Second
	// nobody is the user and the group that qemu runs as instead of root. It owns nothing.
	nobody = 65534
)

// Program is a qemu on this machine.
type Program struct {
	Arch    string // of the machines that it runs, in Debian's words
	Path    string
	Version string // "7.2.22"

	host *Host
}

// Architectures are those that there are machines of, in Debian's words.
func Architectures() []string { return slices.Sorted(maps.Keys(platforms)) }

// Find looks on PATH for the qemu of an architecture, in Debian's words. If there is none, the error is a *MissingError.
func (h *Host) Find(ctx context.Context, arch string) (Program, error) {
	p, ok := platforms[arch]
	if !ok {
		return Program{}, fmt.Errorf("no virtual machine is known for %s kernels", arch)
	}
	path, err := exec.LookPath(p.program)
	if err != nil {
		return Program{}, &MissingError{arch, p.program, packageFor("/", arch)}
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return Program{}, fmt.Errorf("%s --version: %w", path, err)
	}
	_, rest, _ := strings.Cut(string(out), " version ")
	words := strings.Fields(rest)
	if len(words) == 0 {
		return Program{}, fmt.Errorf("%s --version says %q: it names no version", path, out)
	}
	return Program{Arch: arch, Path: path, Version: words[0], host: h}, nil
}

// Port is the guest's name of the second serial port, "/dev/ttyS1".
func (p Program) Port() string { return platforms[p.Arch].port }

// Machine is what a virtual machine is made of.
type Machine struct {
	Kernel string                  // path of the file that boots
	Initrd func(w io.Writer) error // writes the initramfs; called once, when there is room for the machine
	Append []string                // kernel parameters, and behind "--" the arguments of init
	Memory int64                   // bytes

	// Start is called when the machine starts, with its accelerator, "kvm" or "tcg". What the kernel prints on the first serial port
	// goes to console, and what the guest writes to the second to data; the two are written to at the same time. An error of one ends
	// the machine. If Start is called again, KVM has failed, and all that came before is void.
	Start func(accel string) (console, data io.Writer)
}

// Run runs a machine until it ends, restarts or ctx does, and leaves nothing of it. Before, it waits until the machines that run have
// left enough memory, and a processor. It fails if qemu does, with what qemu says, or a writer of the machine's; when ctx ends, with its
// cause. What happened in the guest is no concern of it, but for one thing: a guest under KVM is to write to its second port within
// 10 s, or else it's run again under TCG.
func (p Program) Run(ctx context.Context, m Machine) error {
	done, err := p.host.claim(ctx, m.Memory+overhead)
	if err != nil {
		return err
	}
	defer done()
	kernel, err := p.kernel(m.Kernel)
	if err != nil {
		return fmt.Errorf("read the kernel: %w", err)
	}
	defer kernel.Close()
	initrd, err := memory("initrd", m.Initrd)
	if err != nil {
		return fmt.Errorf("make the initramfs: %w", err)
	}
	defer initrd.Close()

	kvm, answered, err := p.host.choose(ctx, p)
	if err != nil {
		return err
	}
	if kvm {
		alive, err := p.run(ctx, m, "kvm", kernel, initrd, func() { answered("kvm") })
		if err == nil && alive || ctx.Err() != nil || errors.As(err, new(*writeError)) {
			answered("")
			return err
		}
		if alive { // it's this guest that KVM can't run
			answered = func(string) {}
		}
	}
	_, err = p.run(ctx, m, "tcg", kernel, initrd, func() { answered("tcg") })
	answered("")
	return err
}

// writeError is an error of a machine's writer.
type writeError struct{ err error }

func (e *writeError) Error() string { return e.err.Error() }
func (e *writeError) Unwrap() error { return e.err }

// run runs a machine once. It tells whether the guest wrote to its second port, and calls sign when it first does.
func (p Program) run(ctx context.Context, m Machine, accel string, kernel, initrd *os.File, sign func()) (alive bool, err error) {
	outer := ctx
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	consoleOurs, console, err := pair()
	if err != nil {
		return false, err
	}
	defer consoleOurs.Close()
	defer console.Close()
	dataOurs, data, err := pair()
	if err != nil {
		return false, err
	}
	defer dataOurs.Close()
	defer data.Close()

	stderr := &tail{}
	if accel == "kvm" {
		stderr.broken = func() { cancel(errors.New("KVM failed")) }
	}
	runtime.LockOSThread() // qemu ends with the thread that started it
	defer runtime.UnlockOSThread()
	cmd, err := p.start(ctx, p.args(m, accel), stderr, kernel, initrd, console, data)
	if err != nil {
		return false, err
	}
	console.Close()
	data.Close()
	var heard atomic.Bool
	if accel == "kvm" {
		timer := time.AfterFunc(p.host.patience, func() {
			if !heard.Load() {
				cancel(errors.New("nothing heard of the machine"))
			}
		})
		defer timer.Stop()
	}
	toConsole, toData := m.Start(accel)
	var copies sync.WaitGroup
	copies.Go(func() { pass(toConsole, consoleOurs, cancel, func() {}) })
	copies.Go(func() {
		pass(toData, dataOurs, cancel, func() {
			if !heard.Swap(true) {
				sign()
			}
		})
	})
	err = cmd.Wait()
	copies.Wait()
	switch e := (*writeError)(nil); {
	case outer.Err() != nil:
		err = context.Cause(outer)
	case errors.As(context.Cause(ctx), &e):
		err = e
	case ctx.Err() != nil:
		err = fmt.Errorf("%s: %w: %s", p.Path, context.Cause(ctx), bytes.TrimSpace(stderr.text))
	case err != nil:
		err = fmt.Errorf("%s: %w: %s", p.Path, err, bytes.TrimSpace(stderr.text))
	}
	return heard.Load(), err
}

// pass copies what a machine says, and ends the machine if it can't. It calls heard before each write.
func pass(w io.Writer, r io.Reader, end func(error), heard func()) {
	buf := make([]byte, 16<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			heard()
			if _, err := w.Write(buf[:n]); err != nil {
				end(&writeError{err})
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (p Program) args(m Machine, accel string) []string {
	pl := platforms[p.Arch]
	cpu, accelerator := pl.cpu, "tcg,thread=single,tb-size=128"
	if accel == "kvm" {
		cpu, accelerator = "host", "kvm"
	}
	params := append([]string{"console=" + pl.console, "panic=-1"}, append(pl.params, m.Append...)...)
	args := []string{"-M", pl.machine + ",dump-guest-core=off", "-accel", accelerator, "-cpu", cpu, "-smp", "1", "-m", strconv.FormatInt(m.Memory>>20, 10),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-chardev", "socket,id=console,fd=5", "-serial", "chardev:console", "-chardev", "socket,id=data,fd=6"}
	return append(append(args, pl.data...), "-kernel", "/proc/self/fd/3", "-initrd", "/proc/self/fd/4", "-append", strings.Join(params, " "))
}

// start starts qemu with files, its descriptors from 3 on. It's killed when ctx ends, or the thread that called.
func (p Program) start(ctx context.Context, args []string, stderr io.Writer, files ...*os.File) (*exec.Cmd, error) {
	inheritNothing()
	attr := syscall.SysProcAttr{Setsid: true, Pdeathsig: unix.SIGKILL, Credential: p.host.user()}
	start := func() (*exec.Cmd, error) {
		c := exec.CommandContext(ctx, p.Path, args...)
		c.Dir, c.Env, c.Stderr, c.ExtraFiles, c.SysProcAttr = "/", []string{}, stderr, files, &attr
		c.Cancel = func() error { return unix.Kill(-c.Process.Pid, unix.SIGKILL) } // with what it may have started
		c.WaitDelay = 5 * time.Second
		return c, c.Start()
	}
	c, err := start()
	if attr.Credential != nil && (errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL)) {
		attr.Credential = nil // a root that may not be another user, or of a namespace that knows no other
		c, err = start()
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", p.Path, err)
	}
	none := unix.Rlimit{}
	unix.Prlimit(c.Process.Pid, unix.RLIMIT_CORE, &none, nil)
	return c, nil
}

// user is who qemu is where this process is root, and nil elsewhere.
func (h *Host) user() *syscall.Credential {
	if os.Geteuid() != 0 {
		return nil
	}
	c := &syscall.Credential{Uid: nobody, Gid: nobody}
	if st := (unix.Stat_t{}); unix.Stat(h.device, &st) == nil {
		c.Groups = kvmGroup(st)
	}
	return c
}

// inheritNothing sees to it that files which this process has from its parent aren't handed on to a qemu.
func inheritNothing() {
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return
	}
	for _, f := range open {
		if fd, err := strconv.Atoi(f.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
}

// memory is a file without a name, with what write writes.
func memory(name string, write func(io.Writer) error) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	w := bufio.NewWriterSize(f, 1<<16)
	if err := errors.Join(write(w), w.Flush()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// pair is a stream's two ends.
func pair() (ours, theirs *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	if err := unix.SetNonblock(fds[0], true); err != nil {
		return nil, nil, errors.Join(os.NewSyscallError("fcntl", err), unix.Close(fds[0]), unix.Close(fds[1]))
	}
	return os.NewFile(uintptr(fds[0]), "machine"), os.NewFile(uintptr(fds[1]), "machine"), nil
}

// tail keeps the end of what qemu says, 4 KiB. It calls broken, if there is one, when that is KVM's end: qemu says so and then waits for
// somebody to look at the machine.
type tail struct {
	text   []byte
	broken func()
}

func (t *tail) Write(b []byte) (int, error) {
	t.text = append(t.text, b...)
	if t.broken != nil && (bytes.Contains(t.text, []byte("KVM internal error")) || bytes.Contains(t.text, []byte("kvm run failed"))) {
		t.broken()
	}
	if n := len(t.text) - 4096; n > 0 {
		t.text = append(t.text[:0], t.text[n:]...)
	}
	return len(b), nil
}
