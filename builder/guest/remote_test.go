package guest

import (
	"context"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
)

// remote gives a Remote that is set up, and the first process's end of its stream.
func remote(t *testing.T) (*Remote, net.Conn) {
	t.Helper()
	ours, theirs := net.Pipe() // takes nothing that isn't read
	t.Cleanup(func() { theirs.Close() })
	go func() {
		readFrame(theirs)
		(&frames{w: theirs}).lists(frameAnswer, 0, []string{"ready"})
	}()
	r, err := NewRemote(t.Context(), ours, nil, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r, theirs
}

func command(stdin io.Reader) builder.Command {
	return builder.Command{Args: []string{"program"}, Dir: "/", Stdin: stdin}
}

// A machine that is frozen, or out of reach, takes nothing and says nothing.
func TestRemoteStuck(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, theirs := remote(t)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		go readFrame(theirs) // the command, and no more
		begin := time.Now()
		if err := r.Run(ctx, command(nil)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Run() = %v; want %v", err, context.DeadlineExceeded)
		}
		if d := time.Since(begin); d > endGrace+drainGrace+2*time.Second {
			t.Errorf("Run() took %v", d)
		}
	})
}

// counting blocks in each Read until it's told to go on.
type counting struct {
	next  chan struct{}
	reads atomic.Int32
}

func (c *counting) Read(p []byte) (int, error) {
	c.reads.Add(1)
	<-c.next
	return 1, nil
}

// When a command ends, its input is left alone, but for a Read that is under way.
func TestRemoteInput(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, theirs := remote(t)
		in := &counting{next: make(chan struct{})}
		go func() {
			_, run, _, _ := readFrame(theirs)
			(&frames{w: theirs}).lists(frameAnswer, run, []string{"exit", "0"})
			io.Copy(io.Discard, theirs)
		}()
		synctest.Wait()
		if err := r.Run(t.Context(), command(in)); err != nil {
			t.Errorf("Run() = %v", err)
		}
		synctest.Wait()
		close(in.next)
		synctest.Wait()
		if n := in.reads.Load(); n > 1 {
			t.Errorf("%d reads of the input after the command's end", n)
		}
	})
}
