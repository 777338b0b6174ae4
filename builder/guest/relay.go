package guest

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
)

// Relay is the whole of a first process that is spoken to in frames: it sets itself up, runs commands until in ends, and
// returns the process's exit code. The engine has made the root, the outer scratch folders and the user. The process limit is Confine's.
func Relay(in io.Reader, out io.Writer, processes uint64) int {
	runtime.LockOSThread() // filter and limits are a thread's; every command is started from this one
	if err := Begin(); err != nil {
		return 125
	}
	to := &frames{w: out}
	fail := func(err error) int {
		answer, _ := unpack(failure(err)[4:])
		to.lists(frameAnswer, 0, answer...)
		return 125
	}
	kind, _, body, err := readFrame(in)
	if err != nil || kind != frameSetUp {
		return 125
	}
	lists, err := unpack(body)
	if err != nil || len(lists) != 2 || len(lists[1]) != 2 {
		return fail(errGarbled)
	}
	var limits Limits
	if limits.Memory, err = strconv.ParseInt(lists[1][0], 10, 64); err != nil {
		return fail(errGarbled)
	}
	n, err := strconv.Atoi(lists[1][1])
	if err != nil {
		return fail(errGarbled)
	}
	if err := Pin(n); err != nil {
		return fail(err)
	}
	if limits.Scratch, err = scratch(lists[0]); err != nil {
		return fail(err)
	}
	if err := Confine(processes); err != nil {
		return fail(err)
	}
	ends, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fail(fmt.Errorf("make a socket: %w", err))
	}
	unix.SetNonblock(ends[0], true)
	r := &relay{to: to, client: &Client{
		Conn: os.NewFile(uintptr(ends[0]), "client"), UID: os.Getuid(), GID: os.Getgid(), Memory: limits.Memory,
		Kill: func() { os.Exit(125) },
	}}
	go func() {
		defer r.client.Conn.Close() // ends Serve
		if err := r.client.ready(); err != nil {
			fail(err)
			return
		}
		to.lists(frameAnswer, 0, []string{"ready"})
		for r.next(in) == nil {
		}
	}()
	if err := Serve(os.NewFile(uintptr(ends[1]), "server"), limits); err != nil {
		return 125
	}
	return 0
}

// scratch makes those folders that lie within others, and returns one of each file system.
func scratch(dirs []string) (one []string, err error) {
	seen := map[uint64]bool{}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("make scratch folder %q: %w", dir, err)
		}
		var st unix.Stat_t
		if err := unix.Stat(dir, &st); err != nil {
			return nil, fmt.Errorf("scratch folder %q: %w", dir, err)
		}
		if !seen[st.Dev] {
			seen[st.Dev] = true
			one = append(one, dir)
		}
	}
	return one, nil
}

type relay struct {
	client *Client
	to     *frames
	run    uint32 // the one that is under way, or was the last
	input  *input
	cancel context.CancelFunc
}

// next takes one frame.
func (r *relay) next(in io.Reader) error {
	kind, run, body, err := readFrame(in)
	if err != nil {
		return err
	}
	if kind == frameRun {
		return r.start(run, body)
	}
	if run != r.run || r.input == nil {
		return nil
	}
	switch kind {
	case frameInput:
		r.input.add(body)
	case frameEOF:
		r.input.end()
	case frameKill:
		r.cancel()
	}
	return nil
}

func (r *relay) start(run uint32, body []byte) error {
	lists, err := unpack(body)
	if err != nil || len(lists) != 3 || len(lists[2]) != 2 {
		return errGarbled
	}
	c := builder.Command{Args: lists[0], Env: lists[1], Dir: lists[2][0]}
	ctx, cancel := context.WithCancel(context.Background())
	r.run, r.cancel = run, cancel
	r.input = newInput(func(n int) { r.to.write(frameCredit, run, binary.BigEndian.AppendUint32(nil, uint32(n))) })
	for _, stream := range lists[2][1] {
		switch stream {
		case 'i':
			c.Stdin = r.input
		case 'o':
			c.Stdout = &part{r.to, frameOutput, run}
		case 'x':
			c.Stderr = &part{r.to, frameErrors, run}
		case 'b': // both are one writer
			c.Stderr = c.Stdout
		}
	}
	input := r.input
	go func() {
		defer cancel()
		answer, err := r.client.Answer(ctx, c)
		input.end()
		if err != nil {
			lists, _ := unpack(failure(err)[4:])
			answer = lists[0]
		}
		r.to.lists(frameAnswer, run, answer) // where it can't be written, in has ended too
	}()
	return nil
}

// input is a command's stdin as it arrives.
type input struct {
	mu    sync.Mutex
	some  *sync.Cond
	data  [][]byte
	ended bool
	taken func(n int)
}

func newInput(taken func(n int)) *input {
	i := &input{taken: taken}
	i.some = sync.NewCond(&i.mu)
	return i
}

func (i *input) add(b []byte) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if !i.ended && len(b) > 0 {
		i.data = append(i.data, b)
		i.some.Signal()
	}
}

func (i *input) end() {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.ended = true
	i.some.Broadcast()
}

func (i *input) Read(p []byte) (int, error) {
	i.mu.Lock()
	for len(i.data) == 0 && !i.ended {
		i.some.Wait()
	}
	if len(i.data) == 0 {
		i.mu.Unlock()
		return 0, io.EOF
	}
	n := copy(p, i.data[0])
	if i.data[0] = i.data[0][n:]; len(i.data[0]) == 0 {
		i.data = i.data[1:]
	}
	i.mu.Unlock()
	i.taken(n)
	return n, nil
}
