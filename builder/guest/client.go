package guest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
)

// Client is the tool's end of a socket to a first process.
type Client struct {
	Conn     *os.File
	UID, GID int    // who the sandbox's user is where the client runs
	Memory   int64  // the limit that the first process was told, for errors
	Kill     func() // ends the first process when it doesn't answer

	running sync.Mutex // held by Run
}

// SetUp tells the first process what it needs for its set-up, and waits until it's ready. Its failure is an *Error.
func (s *Client) SetUp(lists ...[]string) error {
	if err := send(s.Conn, pack(lists...)); err != nil {
		return fmt.Errorf("%w: %w", ErrEnded, err)
	}
	return s.ready()
}

func (s *Client) ready() error {
	answer, err := s.answer()
	if err != nil {
		return err
	}
	if answer[0] != "ready" {
		return errGarbled
	}
	return nil
}

// ErrEnded is wrapped by the error of a Run whose first process has ended, or can't be reached any more.
var ErrEnded = errors.New("the sandbox has ended")

func (s *Client) answer() ([]string, error) {
	lists, _, err := receive(s.Conn)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEnded, err)
	}
	if len(lists) != 1 || len(lists[0]) == 0 {
		return nil, errGarbled
	}
	return lists[0], asError(lists[0])
}

// asError is the error that an answer stands for, if it does.
func asError(answer []string) error {
	if len(answer) != 3 || answer[0] != "error" {
		return nil
	}
	n, _ := strconv.Atoi(answer[2])
	return &Error{Text: answer[1], Errno: syscall.Errno(n)}
}

// An Error is one that happened in the first process.
type Error struct {
	Text  string
	Errno syscall.Errno
}

func (e *Error) Error() string { return e.Text }
func (e *Error) Unwrap() error {
	if e.Errno == 0 {
		return nil
	}
	return e.Errno
}

// endGrace is how long a first process gets to end a command's processes, before it's ended itself. On a busy machine thousands
// of processes take seconds. drainGrace is how long a caller's writer gets to take the last output.
const (
	endGrace   = 15 * time.Second
	drainGrace = 2 * time.Second
)

// Run implements builder.Sandbox. Commands get pipes for their streams, never an open file of the host: a file could be
// opened again, with other rights, by way of /proc. When reading Stdin or writing Stdout or Stderr fails, the command is
// killed, and Run returns that error. A Read of Stdin may still be under way when Run returns; its bytes are dropped.
func (s *Client) Run(ctx context.Context, c builder.Command) error {
	answer, err := s.Answer(ctx, c)
	if err != nil {
		return err
	}
	return Result(c.Args, answer, s.Memory)
}

// Answer runs a command as Run does, and returns what the first process says about its end, for Result.
func (s *Client) Answer(ctx context.Context, c builder.Command) ([]string, error) {
	s.running.Lock()
	defer s.running.Unlock()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if len(c.Args) == 0 {
		return nil, errors.New("run a command: no arguments")
	}
	if !filepath.IsAbs(c.Dir) {
		return nil, fmt.Errorf("run %q: working directory %q is not absolute", c.Args[0], c.Dir)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	pipes, err := connect(c, s.UID, s.GID, cancel)
	if err != nil {
		return nil, fmt.Errorf("run %q: %w", c.Args[0], err)
	}

	type result struct {
		answer []string
		err    error
	}
	done := make(chan result, 1)
	msg := pack([]string{"run"}, c.Args, c.Env, []string{c.Dir, pipes.index[0], pipes.index[1], pipes.index[2]})
	err = send(s.Conn, msg, pipes.theirs...)
	pipes.closeTheirs()
	if err != nil {
		pipes.abandon()
		if !errors.Is(err, unix.E2BIG) {
			err = fmt.Errorf("%w: %w", ErrEnded, err)
		}
		return nil, fmt.Errorf("run %q: %w", c.Args[0], err)
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
		if send(s.Conn, pack([]string{"kill"})) != nil {
			s.Kill()
		}
		select {
		case r = <-done:
		case <-time.After(endGrace):
			s.Kill()
			r = <-done
		}
	}
	pipes.drain(ctx)
	if killed {
		return nil, context.Cause(ctx)
	}
	switch {
	case ctx.Err() != nil && errors.As(context.Cause(ctx), new(*streamError)): // failed on the last bytes
		return nil, context.Cause(ctx)
	case r.err != nil:
		return nil, fmt.Errorf("run %q: %w", c.Args[0], r.err)
	}
	return r.answer, nil
}

// Result is the error of Run for an answer.
func Result(args, answer []string, memory int64) error {
	switch {
	case len(answer) == 1 && answer[0] == "memory":
		return &builder.MemoryError{Limit: memory}
	case len(answer) == 2 && (answer[0] == "exit" || answer[0] == "signal"):
		n, err := strconv.Atoi(answer[1])
		if err != nil {
			return errGarbled
		}
		if answer[0] == "signal" {
			return &builder.ExitError{Args: args, Code: 128 + n, Signal: syscall.Signal(n).String()}
		}
		if n != 0 {
			return &builder.ExitError{Args: args, Code: n}
		}
		return nil
	}
	return errGarbled
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

// drain waits until the output has been written, or for drainGrace after ctx has ended, and closes every pipe.
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
		case <-time.After(drainGrace):
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
