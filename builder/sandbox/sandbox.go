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
	"io"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
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
	return start(ctx, layers, s.Scratch)
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

func start(ctx context.Context, layers, scratch []string) (*sandbox, error) {
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

	s, err := launch(os.Geteuid() == 0)
	if errors.Is(err, unix.EPERM) && os.Geteuid() == 0 {
		s, err = launch(false) // root without CAP_SETUID, as in some containers, may map only himself
	}
	if err != nil {
		return nil, explain(err)
	}
	stop := context.AfterFunc(ctx, func() { s.conn.Close(); s.init.Kill() })
	lists, err := s.exchange(pack(config, scratch))
	if !stop() {
		s.Close()
		return nil, context.Cause(ctx)
	}
	if err != nil {
		s.Close()
		return nil, explain(err)
	}
	if lists[0] != "ready" {
		s.Close()
		return nil, errGarbled
	}
	return s, nil
}

// launch starts the first process of a sandbox.
func launch(asRoot bool) (*sandbox, error) {
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
	uid, gid := identity(attr, asRoot)
	p, err := os.StartProcess("/proc/self/exe", []string{marker}, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{}, // the tool's own has secrets
		Files: []*os.File{null, null, null, theirs},
		Sys:   attr,
	})
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("start a process in namespaces of its own: %w", errno(err))
	}
	return &sandbox{init: p, conn: conn, uid: uid, gid: gid}, nil
}

type sandbox struct {
	init     *os.Process
	conn     *os.File
	uid, gid int // the host's ids for builder.UID and builder.GID

	running sync.Mutex // held by Run
	closing sync.Once
}

var errEnded = errors.New("the sandbox has ended")

// exchange sends a message and returns the first list of the answer. An answer that is an error is returned as one.
func (s *sandbox) exchange(msg []byte, fds ...int) ([]string, error) {
	if err := send(s.conn, msg, fds...); err != nil {
		if errors.Is(err, unix.E2BIG) {
			return nil, err
		}
		return nil, fmt.Errorf("%w: %w", errEnded, err)
	}
	return s.answer()
}

func (s *sandbox) answer() ([]string, error) {
	lists, _, err := receive(s.conn)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errEnded, err)
	}
	if len(lists) != 1 || len(lists[0]) == 0 {
		return nil, errGarbled
	}
	if a := lists[0]; a[0] == "error" && len(a) == 3 {
		n, _ := strconv.Atoi(a[2])
		return nil, &remoteError{text: a[1], errno: syscall.Errno(n)}
	}
	return lists[0], nil
}

// A remoteError is one that happened in the sandbox's first process.
type remoteError struct {
	text  string
	errno syscall.Errno
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error {
	if e.errno == 0 {
		return nil
	}
	return e.errno
}

// killGrace is how long a sandbox gets to end a command's processes, and a caller's writer to take the last output, before
// the whole sandbox is ended, or the writer is left alone.
const killGrace = 2 * time.Second

// Run implements builder.Sandbox. Commands get pipes for their streams, never an open file of the host: a file could be
// opened again, with other rights, by way of /proc. When reading Stdin or writing Stdout or Stderr fails, the command is
// killed, and Run returns that error. A Read of Stdin may still be under way when Run returns; its bytes are dropped.
func (s *sandbox) Run(ctx context.Context, c builder.Command) error {
	s.running.Lock()
	defer s.running.Unlock()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if len(c.Args) == 0 {
		return errors.New("run a command: no arguments")
	}
	if !filepath.IsAbs(c.Dir) {
		return fmt.Errorf("run %q: working directory %q is not absolute", c.Args[0], c.Dir)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	pipes, err := connect(c, s.uid, s.gid, cancel)
	if err != nil {
		return fmt.Errorf("run %q: %w", c.Args[0], err)
	}

	type result struct {
		answer []string
		err    error
	}
	done := make(chan result, 1)
	msg := pack([]string{"run"}, c.Args, c.Env, []string{c.Dir, pipes.index[0], pipes.index[1], pipes.index[2]})
	err = send(s.conn, msg, pipes.theirs...)
	pipes.closeTheirs()
	if err != nil {
		pipes.abandon()
		if !errors.Is(err, unix.E2BIG) {
			err = fmt.Errorf("%w: %w", errEnded, err)
		}
		return fmt.Errorf("run %q: %w", c.Args[0], err)
	}
	pipes.start()
	go func() {
		answer, err := s.answer()
		done <- result{answer, err}
	}()

	var r result
	killed := false
	select {
	case r = <-done:
	case <-ctx.Done():
		killed = true
		if send(s.conn, pack([]string{"kill"})) != nil {
			s.init.Kill()
		}
		select {
		case r = <-done:
		case <-time.After(killGrace):
			s.init.Kill()
			r = <-done
		}
	}
	pipes.drain(ctx)
	if killed {
		return context.Cause(ctx)
	}
	switch {
	case ctx.Err() != nil && errors.As(context.Cause(ctx), new(*streamError)): // failed on the last bytes
		return context.Cause(ctx)
	case r.err != nil:
		return fmt.Errorf("run %q: %w", c.Args[0], r.err)
	case len(r.answer) == 2 && (r.answer[0] == "exit" || r.answer[0] == "signal"):
		n, err := strconv.Atoi(r.answer[1])
		if err != nil {
			return errGarbled
		}
		if r.answer[0] == "signal" {
			return &builder.ExitError{Args: c.Args, Code: 128 + n, Signal: syscall.Signal(n).String()}
		}
		if n != 0 {
			return &builder.ExitError{Args: c.Args, Code: n}
		}
		return nil
	}
	return errGarbled
}

// Close implements builder.Sandbox. It may be called while a Run is under way, which then returns an error.
func (s *sandbox) Close() error {
	s.closing.Do(func() {
		s.init.Kill()
		s.init.Wait() // returns when the last process of the pid namespace is gone
		s.conn.Close()
	})
	return nil
}

// A streamError is a failure of the caller's reader or writer.
type streamError struct {
	what string
	err  error
}

func (e *streamError) Error() string { return e.what + ": " + e.err.Error() }
func (e *streamError) Unwrap() error { return e.err }

// streams are the pipes between a command and the caller's reader and writers.
type streams struct {
	theirs  []int     // the command's ends
	index   [3]string // which of them each stream is; empty for none
	ours    []*os.File
	copies  []func()
	outputs sync.WaitGroup
	outs    []*os.File
}

func connect(c builder.Command, uid, gid int, cancel context.CancelCauseFunc) (*streams, error) {
	s := &streams{}
	pipe := func(ours int) (*os.File, error) {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
			s.closeTheirs()
			s.abandon()
			return nil, fmt.Errorf("make a pipe: %w", err)
		}
		unix.Fchown(p[0], uid, gid)     // for /dev/stdout: it opens the pipe anew, which only its owner may
		unix.SetNonblock(p[ours], true) // ours alone: each end has its own flags
		f := os.NewFile(uintptr(p[ours]), "pipe")
		s.ours = append(s.ours, f)
		s.theirs = append(s.theirs, p[1-ours])
		return f, nil
	}
	last := func() string { return strconv.Itoa(len(s.theirs) - 1) }

	if c.Stdin != nil {
		f, err := pipe(1)
		if err != nil {
			return nil, err
		}
		s.index[0] = last()
		s.copies = append(s.copies, func() {
			in := &reader{r: c.Stdin}
			io.Copy(f, in) // a failed write is a command that doesn't want to read on
			if in.err != nil {
				cancel(&streamError{"read the command's input", in.err})
			}
			f.Close()
		})
	}
	for i, w := range []io.Writer{c.Stdout, c.Stderr} {
		if w == nil {
			continue
		}
		if i == 1 && same(c.Stdout, c.Stderr) { // one pipe keeps the order
			s.index[2] = s.index[1]
			continue
		}
		f, err := pipe(0)
		if err != nil {
			return nil, err
		}
		s.index[1+i] = last()
		s.outs = append(s.outs, f)
		s.outputs.Add(1)
		s.copies = append(s.copies, func() {
			defer s.outputs.Done()
			out := &writer{w: w}
			io.Copy(out, f)
			if out.err != nil {
				cancel(&streamError{"write the command's output", out.err})
			}
			f.Close()
		})
	}
	return s, nil
}

func (s *streams) closeTheirs() {
	for _, fd := range s.theirs {
		unix.Close(fd)
	}
	s.theirs = nil
}

func (s *streams) abandon() {
	for _, f := range s.ours {
		f.Close()
	}
}

func (s *streams) start() {
	for _, copy := range s.copies {
		go copy()
	}
}

// drain waits until the output has been written, or for killGrace after ctx has ended, and closes every pipe.
func (s *streams) drain(ctx context.Context) {
	done := make(chan struct{})
	go func() {
		s.outputs.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		select {
		case <-done:
		case <-time.After(killGrace):
		}
	}
	s.abandon()
}

// reader and writer keep the caller's error apart from the pipe's.
type reader struct {
	r   io.Reader
	err error
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.r.Read(p)
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

type writer struct {
	w   io.Writer
	err error
}

func (w *writer) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	if err != nil {
		w.err = err
	}
	return n, err
}

func same(a, b io.Writer) bool {
	return a != nil && b != nil && reflect.TypeOf(a).Comparable() && reflect.TypeOf(b).Comparable() && a == b
}
