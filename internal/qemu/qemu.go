// Package qemu runs one kernel in a virtual machine: no disk, no network, no firmware to speak of, two serial ports.
package qemu

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// MissingError says that there is no qemu for an architecture on PATH.
type MissingError struct {
	Arch    string // in Debian's words
	Program string // "qemu-system-x86_64"
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("%s is not on PATH: install %s", e.Program, platforms[e.Arch].packages)
}

// platform is what depends on an architecture.
type platform struct {
	program  string
	packages string   // that have it, by distribution
	machine  []string // arguments
	data     []string // arguments that make the second serial port of the character device "data"
	console  string   // the kernel's name of the first serial port
	port     string   // and of the second
	reboot   string   // parameters with which the kernel's restart ends the machine
}

var platforms = map[string]platform{
	"amd64": {
		program:  "qemu-system-x86_64",
		packages: "qemu-system-x86 (Debian, Ubuntu), qemu-system-x86-core (Fedora), qemu-kvm (RHEL and its kin), qemu-x86 (openSUSE), qemu-system-x86 (Arch)",
		machine:  []string{"-M", "microvm,acpi=off"},
		data:     []string{"-device", "isa-serial,index=1,chardev=data"},
		console:  "ttyS0",
		port:     "/dev/ttyS1",
		reboot:   "reboot=t",
	},
	"arm64": {
		program:  "qemu-system-aarch64",
		packages: "qemu-system-arm (Debian, Ubuntu), qemu-system-aarch64-core (Fedora), qemu-arm (openSUSE), qemu-system-aarch64 (Arch)",
		machine:  []string{"-M", "virt,gic-version=max"},
		data:     []string{"-device", "pci-serial,chardev=data"},
		console:  "ttyAMA0",
		port:     "/dev/ttyS0",
	},
}

// Program is a qemu on this machine.
type Program struct {
	Arch    string // of the machines that it runs, in Debian's words
	Path    string
	Version string // "7.2.22"
}

// Find looks on PATH for the qemu of an architecture. If there is none, the error is a *MissingError.
func Find(ctx context.Context, arch string) (Program, error) {
	p, ok := platforms[arch]
	if !ok {
		return Program{}, fmt.Errorf("no virtual machine is known for %s kernels", arch)
	}
	path, err := exec.LookPath(p.program)
	if err != nil {
		return Program{}, &MissingError{arch, p.program}
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
	return Program{Arch: arch, Path: path, Version: words[0]}, nil
}

// Port is the guest's name of the second serial port, "/dev/ttyS1".
func (p Program) Port() string { return platforms[p.Arch].port }

// Machine is what a virtual machine is made of.
type Machine struct {
	Kernel string    // path of the file that boots
	Initrd io.Reader // read to its end before the machine starts
	Append []string  // kernel parameters, and behind "--" the arguments of init
	Memory int64     // bytes
	Accel  string    // "kvm" or "tcg"

	Console io.Writer // gets what the kernel prints on the first serial port
	Data    io.Writer // gets what the guest writes to the second
}

// Run runs a machine until it ends, restarts or ctx does, and leaves nothing of it. It fails if qemu does; what happened in the
// guest is no concern of it.
func (p Program) Run(ctx context.Context, m Machine) error {
	initrd, err := memory("initrd", m.Initrd)
	if err != nil {
		return err
	}
	defer initrd.Close()
	console, consoleEnd, err := pair()
	if err != nil {
		return err
	}
	defer console.Close()
	defer consoleEnd.Close()
	data, dataEnd, err := pair()
	if err != nil {
		return err
	}
	defer data.Close()
	defer dataEnd.Close()
	pl := platforms[p.Arch]
	cpu := "max"
	if m.Accel == "kvm" {
		cpu = "host"
	}
	append_ := append([]string{"console=" + pl.console, "panic=-1", pl.reboot}, m.Append...)
	args := append([]string(nil), pl.machine...)
	args = append(args, "-accel", m.Accel, "-cpu", cpu, "-smp", "1", "-m", strconv.FormatInt(m.Memory>>20, 10),
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		"-chardev", "socket,id=console,fd=4", "-serial", "chardev:console", "-chardev", "socket,id=data,fd=5")
	args = append(args, pl.data...)
	args = append(args, "-kernel", m.Kernel, "-initrd", "/proc/self/fd/3", "-append", strings.Join(append_, " "))
	cmd := exec.CommandContext(ctx, p.Path, args...)
	cmd.ExtraFiles = []*os.File{initrd, consoleEnd, dataEnd}
	var stderr tail
	cmd.Stderr = &stderr
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	cmd.WaitDelay = 5 * time.Second
	runtime.LockOSThread() // Pdeathsig is about the thread
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.Path, err)
	}
	consoleEnd.Close()
	dataEnd.Close()
	var copies sync.WaitGroup
	copies.Go(func() { io.Copy(m.Console, console) })
	copies.Go(func() { io.Copy(m.Data, data) })
	err = cmd.Wait()
	copies.Wait()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", p.Path, err, strings.TrimSpace(string(stderr)))
	}
	return nil
}

// memory is a file without a name that has what r has.
func memory(name string, r io.Reader) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("memfd_create", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := io.Copy(f, r); err != nil {
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

// tail keeps the end of what is written to it, 4 KiB.
type tail []byte

func (t *tail) Write(b []byte) (int, error) {
	*t = append(*t, b...)
	if n := len(*t) - 4096; n > 0 {
		*t = append((*t)[:0], (*t)[n:]...)
	}
	return len(b), nil
}
