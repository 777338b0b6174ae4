package decompress

import (
	"io"
	"os"
	"runtime"
	"sync/atomic"
)

// A reader may be this far ahead of who reads from it: chunks of chunkSize bytes.
const (
	chunkSize = 128 << 10
	chunks    = 8
)

// working counts the readers that were read from and not closed. While there are as many of them as processors, one reads
// by itself: where none is idle, a goroutine would only cost.
var working atomic.Int32

// ahead reads from r in a goroutine, so that decompressing and what is done with the result take two processors, where one is
// idle. It gives the bytes and the error of r, in order. After Close the goroutine has ended, and uses r no more. Its methods are
// not safe for concurrent use.
type ahead struct {
	r        io.Reader
	filled   chan chunk
	spare    chan []byte
	stop     chan struct{} // closed by Close
	begun    bool
	done     chan struct{} // closed at the goroutine's end; nil before there is one
	now      chunk         // what of it is not read yet
	buf      []byte        // that of now
	isClosed bool
}

type chunk struct {
	b   []byte
	err error // what follows b; nil: another chunk
}

func newAhead(r io.Reader, stop chan struct{}) *ahead {
	return &ahead{r: r, stop: stop, filled: make(chan chunk, chunks), spare: make(chan []byte, chunks)}
}

func (a *ahead) Read(p []byte) (int, error) {
	if a.isClosed {
		return 0, os.ErrClosed
	}
	if len(p) == 0 {
		return 0, nil
	}
	if !a.begun {
		a.begun = true
		working.Add(1)
	}
	if a.done == nil {
		if int(working.Load()) >= runtime.GOMAXPROCS(0) {
			return a.r.Read(p)
		}
		a.done = make(chan struct{})
		go a.fill()
	}
	for len(a.now.b) == 0 {
		if a.now.err != nil {
			return 0, a.now.err
		}
		if a.buf != nil {
			a.spare <- a.buf
		}
		a.now = <-a.filled
		a.buf = a.now.b[:0]
	}
	n := copy(p, a.now.b)
	a.now.b = a.now.b[n:]
	return n, nil
}

// fill reads r until it has an error.
func (a *ahead) fill() {
	defer close(a.done)
	for made := 0; ; {
		var buf []byte
		if made < chunks {
			select {
			case buf = <-a.spare:
			default:
				buf = make([]byte, chunkSize)
				made++
			}
		} else {
			select {
			case buf = <-a.spare:
			case <-a.stop:
				return
			}
		}
		var c chunk
		n := 0
		for n < chunkSize && c.err == nil {
			var k int
			k, c.err = a.r.Read(buf[n:chunkSize])
			n += k
		}
		c.b = buf[:n]
		a.filled <- c // has room for every chunk there is
		if c.err != nil {
			return
		}
	}
}

func (a *ahead) Close() error {
	if !a.isClosed {
		a.isClosed = true
		close(a.stop)
		if a.done != nil {
			<-a.done
		}
		if a.begun {
			working.Add(-1)
		}
		a.now, a.buf = chunk{}, nil
	}
	return nil
}

// until reads r until stop is closed.
type until struct {
	r    io.Reader
	stop <-chan struct{}
}

func (u until) Read(p []byte) (int, error) {
	select {
	case <-u.stop:
		return 0, os.ErrClosed
	default:
		return u.r.Read(p)
	}
}
