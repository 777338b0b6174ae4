// Package sandbox is the engine that runs builds in Linux namespaces: no daemon, no root, no helper programs.
//
// A sandbox is a process tree. Its first process is this same program, started anew in namespaces of its own (user, mount,
// pid, network, IPC, UTS, cgroup); see IsInit. It mounts the root, drops every capability, confines itself with a seccomp
// filter, and then runs commands that it's sent over a socket. Nothing is made on the host that would have to be removed:
// when that process ends, however it ends, the kernel ends the whole tree, and the mounts go with it.
//
// What a command sees beside builder.Engine's contract: the loopback device is down, so sockets reach nothing at all; /proc
// has processes but neither hardware nor settings; /dev has null, zero, full, random and urandom; /sys is whatever the layers
// have there. Files belong to whom they belong on the host, or to nobody where only one id is mapped; when an ordinary user
// starts the sandbox, his own files are builder.UID's.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/builder/guest"
)

// Engine starts sandboxes. The zero value is ready to use.
type Engine struct{}

var _ builder.Engine = Engine{}

// Start starts a sandbox; it takes some ten milliseconds. The error is a *builder.UnavailableError when this machine doesn't allow
// sandboxes. The program must have asked IsInit first.
func (Engine) Start(ctx context.Context, s builder.Spec) (builder.Sandbox, error) {
	if err := runnable(s.Kernel.Arch); err != nil {
		return nil, err
	}
	layers := s.Root.Layers()
	if len(layers) == 0 {
		return nil, errors.New("start a sandbox: the root has no layers")
	}
	return start(ctx, layers, s)
}

// machines are the names that Debian and RPM distributions have for Go's architectures.
var machines = map[string][]string{
	"amd64": {"amd64", "x86_64"},
	"arm64": {"arm64", "aarch64"},
}

func runnable(arch string) error {
	names, ok := machines[runtime.GOARCH]
	if !ok {
		return &builder.UnavailableError{
			Engine: "sandbox", Cause: "no seccomp filter for " + runtime.GOARCH,
			Hint: "use another engine, or a machine with amd64 or arm64",
			Err:  errors.ErrUnsupported,
		}
	}
	for _, name := range names {
		if arch == name {
			return nil
		}
	}
	return fmt.Errorf("start a sandbox for %q: this machine is %s and runs no programs of another architecture: %w", arch, names[0], errors.ErrUnsupported)
}

func start(ctx context.Context, layers []string, spec builder.Spec) (*sandbox, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if os.Args[0] == marker {
		return nil, errors.New("start a sandbox: this program must ask sandbox.IsInit first")
	}
	if len(layers) > maxLayers {
		return nil, fmt.Errorf("start a sandbox: %d layers, overlayfs takes %d", len(layers), maxLayers)
	}
	config := make([]string, len(layers))
	for i, layer := range layers {
		abs, err := filepath.Abs(layer)
		if err != nil {
			return nil, fmt.Errorf("start a sandbox: layer %q: %w", layer, err)
		}
		if config[i], err = filepath.EvalSymlinks(abs); err != nil {
			return nil, fmt.Errorf("start a sandbox: layer %q: %w", layer, err)
		}
		if st, err := os.Stat(config[i]); err != nil {
			return nil, fmt.Errorf("start a sandbox: layer %q: %w", layer, err)
		} else if !st.IsDir() {
			return nil, fmt.Errorf("start a sandbox: layer %q: %w", layer, unix.ENOTDIR)
		}
	}

	s, err := launch(os.Geteuid() == 0, spec.Surroundings)
	if errors.Is(err, unix.EPERM) && os.Geteuid() == 0 {
		s, err = launch(false, spec.Surroundings) // root without CAP_SETUID, as in some containers, may map only himself
	}
	if errors.Is(err, unix.EPERM) && os.Geteuid() == 0 {
		if there, failed := launchFromChroot(spec.Surroundings); failed == nil {
			s, err = there, nil
		}
	}
	if err != nil {
		return nil, explain(err)
	}
	s.Memory = spec.Memory
	stop := context.AfterFunc(ctx, func() { s.Conn.Close(); s.Kill() })
	err = s.SetUp(config, spec.Scratch, []string{strconv.FormatInt(spec.Memory, 10), strconv.Itoa(spec.User), spec.Host, strconv.Itoa(spec.Processors)})
	if !stop() {
		s.Close()
		return nil, context.Cause(ctx)
	}
	if err != nil {
		s.Close()
		return nil, explain(err)
	}
	return s, nil
}

// launch starts the first process of a sandbox.
func launch(asRoot bool, s builder.Surroundings) (*sandbox, error) {
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket: %w", err)
	}
	theirs := os.NewFile(uintptr(ends[1]), "sandbox")
	defer theirs.Close()
	unix.SetNonblock(ends[0], true)
	conn := os.NewFile(uintptr(ends[0]), "sandbox")
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		conn.Close()
		return nil, err
	}
	defer null.Close()

	attr := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Setsid:     true, // no terminal to type into, and none whose Ctrl-C would end the sandbox
	}
	if _, err := os.Stat("/proc/self/ns/cgroup"); err == nil {
		attr.Cloneflags |= unix.CLONE_NEWCGROUP
	}
	uid, gid := identity(attr, asRoot, s)
	p, err := os.StartProcess("/proc/self/exe", []string{marker}, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{}, // the tool's own has secrets
		Files: []*os.File{null, null, null, theirs},
		Sys:   attr,
	})
	if err != nil {
		conn.Close()
		if e := syscall.Errno(0); errors.As(err, &e) {
			err = e // without "fork/exec /proc/self/exe"
		}
		return nil, fmt.Errorf("start a process in namespaces of its own: %w", err)
	}
	return &sandbox{Client: &guest.Client{Conn: conn, UID: uid, GID: gid, Kill: func() { p.Kill() }}, init: p}, nil
}

type sandbox struct {
	*guest.Client
	init    *os.Process
	closing sync.Once
}

// Close implements builder.Sandbox. It may be called while a Run is under way, which then returns an error.
func (s *sandbox) Close() error {
	s.closing.Do(func() {
		s.init.Kill()
		s.init.Wait() // returns when the last process of the pid namespace is gone
		s.Conn.Close()
	})
	return nil
}
