package guest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
)

// Remote is the tool's end of a stream to a first process that runs Relay.
type Remote struct {
	conn   io.ReadWriteCloser
	to     *frames
	memory int64

	running sync.Mutex // held by Run

	mu      sync.Mutex
	current *remoteRun
	runs    uint32
	failed  error // why the stream has ended
}

// NewRemote sets the first process up and waits until it's ready. The stream is the Remote's from then on; when ctx ends first,
// or the set-up fails, it's closed.
func NewRemote(ctx context.Context, conn io.ReadWriteCloser, scratch []string, memory int64, processors int) (*Remote, error) {
	r := &Remote{conn: conn, to: &frames{w: conn}, memory: memory}
	ready := r.begin(nil, nil)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	err := r.to.lists(frameSetUp, 0, scratch, []string{strconv.FormatInt(memory, 10), strconv.Itoa(processors)})
	go r.receive()
	var answer []string
	if err == nil {
		answer = <-ready.answer
		err = asError(answer)
	}
	if !stop() {
		return nil, context.Cause(ctx)
	}
	if err == nil && len(answer) != 1 {
		err = r.ended()
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return r, nil
}

// Close ends the stream, and with it the first process and all of its commands.
func (r *Remote) Close() error { return r.conn.Close() }

// A remoteRun is one command that is under way.
type remoteRun struct {
	number  uint32
	answer  chan []string // closed without an answer when the stream ends
	outputs [2]*output    // stdout, stderr; may be nil, or the same
	over    chan struct{} // closed when nobody waits for output any more

	mu     sync.Mutex
	credit int
	more   *sync.Cond
}

// begin makes a new run the current one.
func (r *Remote) begin(stdout, stderr *output) *remoteRun {
	run := &remoteRun{answer: make(chan []string, 1), outputs: [2]*output{stdout, stderr}, over: make(chan struct{}), credit: window}
	run.more = sync.NewCond(&run.mu)
	r.mu.Lock()
	defer r.mu.Unlock()
	run.number = r.runs
	r.runs++
	if r.failed != nil {
		run.finish(nil)
		return run
	}
	r.current = run
	return run
}

func (r *Remote) ended() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failed == nil || r.failed == io.EOF {
		return ErrEnded
	}
	return fmt.Errorf("%w: %w", ErrEnded, r.failed)
}

// receive takes frames until the stream ends.
func (r *Remote) receive() {
	for {
		kind, number, body, err := readFrame(r.conn)
		r.mu.Lock()
		run := r.current
		if err != nil {
			r.failed = err
			if run != nil {
				run.finish(nil)
			}
			r.current = nil
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		if run == nil || run.number != number {
			continue
		}
		switch kind {
		case frameOutput:
			run.put(run.outputs[0], body)
		case frameErrors:
			run.put(run.outputs[1], body)
		case frameCredit:
			if len(body) == 4 {
				run.pay(int(binary.BigEndian.Uint32(body)))
			}
		case frameAnswer:
			lists, err := unpack(body)
			if err != nil || len(lists) != 1 || len(lists[0]) == 0 {
				lists = [][]string{{"garbled"}}
			}
			r.mu.Lock()
			run.finish(lists[0])
			r.current = nil
			r.mu.Unlock()
		}
	}
}

// finish ends a run's outputs and hands out the answer, if there is one.
func (run *remoteRun) finish(answer []string) {
	for i, o := range run.outputs {
		if o != nil && (i == 0 || o != run.outputs[0]) {
			close(o.data)
		}
	}
	if answer != nil {
		run.answer <- answer
	}
	close(run.answer)
}

func (run *remoteRun) put(o *output, body []byte) {
	if o == nil {
		return
	}
	select {
	case o.data <- body:
	case <-run.over:
	}
}

func (run *remoteRun) pay(n int) {
	run.mu.Lock()
	defer run.mu.Unlock()
	run.credit += n
	run.more.Signal()
}

// spend waits until n bytes may be sent; false when the run is over.
func (run *remoteRun) spend(n int) bool {
	run.mu.Lock()
	defer run.mu.Unlock()
	for {
		select {
		case <-run.over:
			return false
		default:
		}
		if run.credit >= n {
			run.credit -= n
			return true
		}
		run.more.Wait()
	}
}

// stop has nobody wait for output or input any more.
func (run *remoteRun) stop() {
	run.mu.Lock()
	defer run.mu.Unlock()
	close(run.over)
	run.more.Broadcast()
}

// An output brings what arrives to the caller's writer, which may be slow.
type output struct {
	data chan []byte
	done chan struct{}
}

func copyTo(w io.Writer, cancel context.CancelCauseFunc) *output {
	o := &output{make(chan []byte, 16), make(chan struct{})}
	go func() {
		defer close(o.done)
		out := &writer{w: w}
		for b := range o.data {
			if out.err != nil {
				continue // the command is being killed
			}
			if out.Write(b); out.err != nil {
				cancel(&streamError{"write the command's output", out.err})
			}
		}
	}()
	return o
}

// Run implements builder.Sandbox.
func (r *Remote) Run(ctx context.Context, c builder.Command) error {
	r.running.Lock()
	defer r.running.Unlock()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	name := ""
	if len(c.Args) > 0 {
		name = c.Args[0]
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)

	var streams bytes.Buffer
	var stdout, stderr *output
	if c.Stdin != nil {
		streams.WriteByte('i')
	}
	if c.Stdout != nil {
		streams.WriteByte('o')
		stdout = copyTo(c.Stdout, cancel)
	}
	switch {
	case c.Stderr == nil:
	case same(c.Stdout, c.Stderr):
		streams.WriteByte('b')
		stderr = stdout
	default:
		streams.WriteByte('x')
		stderr = copyTo(c.Stderr, cancel)
	}
	run := r.begin(stdout, stderr)
	defer run.stop()
	if err := r.to.lists(frameRun, run.number, c.Args, c.Env, []string{c.Dir, streams.String()}); err != nil {
		r.mu.Lock()
		if r.current == run {
			r.current = nil
			run.finish(nil)
		}
		r.mu.Unlock()
		return fmt.Errorf("run %q: %w", name, err)
	}
	if c.Stdin != nil {
		go r.feed(run, c.Stdin, cancel)
	}

	var answer []string
	killed := false
	select {
	case answer = <-run.answer:
	case <-ctx.Done():
		killed = true
		go func() { // an Engine that takes nothing any more holds it up
			if r.to.write(frameKill, run.number, nil) != nil {
				r.conn.Close()
			}
		}()
		// What is printed meanwhile is dropped, so that the answer isn't held up behind it.
		go discard(stdout)
		go discard(stderr)
		select {
		case answer = <-run.answer:
		case <-time.After(endGrace + time.Second): // the first process has its own
			r.conn.Close()
			answer = <-run.answer
		}
	}
	for _, o := range []*output{stdout, stderr} {
		if o == nil {
			continue
		}
		select {
		case <-o.done:
		case <-ctx.Done():
			select {
			case <-o.done:
			case <-time.After(drainGrace):
			}
		}
	}
	if killed || ctx.Err() != nil && errors.As(context.Cause(ctx), new(*streamError)) {
		return context.Cause(ctx)
	}
	if answer == nil {
		return fmt.Errorf("run %q: %w", name, r.ended())
	}
	if err := asError(answer); err != nil {
		return err
	}
	return Result(c.Args, answer, r.memory)
}

func discard(o *output) {
	if o != nil {
		for range o.data {
		}
	}
}

// feed sends the command's input, as far as it's taken.
func (r *Remote) feed(run *remoteRun, stdin io.Reader, cancel context.CancelCauseFunc) {
	in := &reader{r: stdin}
	buf := make([]byte, frameData)
	for {
		n, err := in.Read(buf)
		if n > 0 && (!run.spend(n) || r.to.write(frameInput, run.number, buf[:n]) != nil) {
			return
		}
		if in.err != nil {
			cancel(&streamError{"read the command's input", in.err})
			return
		}
		if err != nil {
			r.to.write(frameEOF, run.number, nil)
			return
		}
	}
}
