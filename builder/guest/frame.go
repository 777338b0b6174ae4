package guest

import (
	"encoding/binary"
	"fmt"
	"io"
	"sync"
)

// Where the first process can't be reached by a socket that carries descriptors, it's spoken to over one stream in each
// direction. A frame is a kind, the number of the run that it belongs to, the length of its body (both 4 bytes, big endian),
// and the body. A frame of a run that has ended is dropped.
const (
	frameSetUp  = 's' // to the first process: lists of the scratch folders and the memory limit
	frameRun    = 'r' // lists of arguments, environment, and folder with a letter for each stream that the caller has
	frameInput  = 'i' // of stdin
	frameEOF    = 'e' // of stdin
	frameKill   = 'k'
	frameAnswer = 'a' // from it: to the set-up or a run, as of a Client
	frameOutput = 'o' // of stdout
	frameErrors = 'x' // of stderr
	frameCredit = 'c' // so many bytes of stdin have been taken (4 bytes)
)

const (
	frameHead = 9
	frameData = 64 << 10 // the longest body with a stream's bytes
	window    = 1 << 20  // bytes of stdin under way: what the first process keeps for a command that reads slowly
)

// frames writes frames, one at a time.
type frames struct {
	mu sync.Mutex
	w  io.Writer
}

func (f *frames) write(kind byte, run uint32, body []byte) error {
	b := make([]byte, frameHead, frameHead+len(body))
	b[0] = kind
	binary.BigEndian.PutUint32(b[1:], run)
	binary.BigEndian.PutUint32(b[5:], uint32(len(body)))
	b = append(b, body...)
	f.mu.Lock()
	defer f.mu.Unlock()
	_, err := f.w.Write(b)
	return err
}

// lists writes lists as pack has them.
func (f *frames) lists(kind byte, run uint32, lists ...[]string) error {
	b := pack(lists...)[4:]
	if len(b) > maxMessage {
		return fmt.Errorf("message of %d bytes is too long", len(b))
	}
	return f.write(kind, run, b)
}

func readFrame(r io.Reader) (kind byte, run uint32, body []byte, err error) {
	var head [frameHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, 0, nil, err
	}
	size := binary.BigEndian.Uint32(head[5:])
	if size > maxMessage {
		return 0, 0, nil, errGarbled
	}
	body = make([]byte, size)
	if _, err := io.ReadFull(r, body); err != nil {
		return 0, 0, nil, err
	}
	return head[0], binary.BigEndian.Uint32(head[1:]), body, nil
}

// part is one output stream of a run, as an io.Writer of frames.
type part struct {
	to   *frames
	kind byte
	run  uint32
}

func (p *part) Write(b []byte) (int, error) {
	n := 0
	for len(b) > 0 {
		k := min(len(b), frameData)
		if err := p.to.write(p.kind, p.run, b[:k]); err != nil {
			return n, err
		}
		n, b = n+k, b[k:]
	}
	return n, nil
}
