package decompress

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/mikelolasagasti/xz"

	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
)

// text is of all sorts, and more than fits between a reader and who reads it.
func text() []byte {
	r := rand.New(rand.NewPCG(1, 2))
	var b bytes.Buffer
	for b.Len() < (chunks+2)*chunkSize {
		fmt.Fprintf(&b, "%x %s\n", r.Uint32()&0xfff, plain[:r.IntN(80)])
	}
	return b.Bytes()
}

func xzOf(t testing.TB, text []byte, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(need.Program(t, "xz"), append([]string{"-c"}, args...)...)
	cmd.Stdin = bytes.NewReader(text)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// alone is what the library makes of a stream without a goroutine, or the first most bytes of it. It loses what a Read found before
// an error, so that it matters how much is asked for at once.
func alone(r io.Reader, most int) (out []byte, err error) {
	x, err := xz.NewReader(r, 64<<20)
	if err != nil {
		return nil, err
	}
	buf := make([]byte, chunkSize)
	for len(out) < most {
		n, err := io.ReadFull(x, buf)
		out = append(out, buf[:n]...)
		if err == io.EOF || err == io.ErrUnexpectedEOF {
			return out, nil
		}
		if err != nil {
			return out, err
		}
	}
	return out, nil
}

// sameAsAlone compares the bytes and the error.
func sameAsAlone(t *testing.T, what string, data []byte) {
	t.Helper()
	want, wantErr := alone(bytes.NewReader(data), len(data)<<20)
	got, err := unpack(bytes.NewReader(data))
	if !bytes.Equal(got, want) || !errors.Is(err, wantErr) {
		t.Errorf("%s: %d bytes, %v; want %d bytes, %v", what, len(got), err, len(want), wantErr)
	}
}

func TestXZ(t *testing.T) {
	text := text()
	small := text[:20000]
	for _, args := range [][]string{
		{"-C", "none"}, {"-C", "crc32"}, {"-C", "crc64"}, {"-C", "sha256"},
		{"-T1"}, {"-T2", "--block-size=100000"}, {"-T1", "--block-size=4096"}, {"-T0", "--block-size=1MiB"}, {"--x86"},
	} {
		args = append(args, "--lzma2=preset=1,dict=64KiB")
		whole := xzOf(t, text, args...)
		twice := slices.Concat(whole, make([]byte, 8), whole, make([]byte, 4))
		for what, c := range map[string]struct{ data, want []byte }{
			"whole": {whole, text}, "two streams with padding": {twice, slices.Concat(text, text)},
		} {
			for how, r := range map[string]io.Reader{
				"at once": bytes.NewReader(c.data), "byte by byte": iotest.OneByteReader(bytes.NewReader(c.data)),
				"with the end": iotest.DataErrReader(bytes.NewReader(c.data)),
			} {
				if got, err := unpack(r); err != nil || !bytes.Equal(got, c.want) {
					t.Errorf("xz %q, %s, %s: %d bytes, %v; want %d", args, what, how, len(got), err, len(c.want))
				}
			}
		}
		sameAsAlone(t, fmt.Sprintf("xz %q with padding of 3 bytes", args), slices.Concat(whole, make([]byte, 3)))
		sameAsAlone(t, fmt.Sprintf("xz %q with something behind it", args), slices.Concat(whole, []byte("more")))

		data := xzOf(t, small, args...)
		for n := 6; n < len(data); n += 1 + len(data)/100 {
			if got, err := unpack(bytes.NewReader(data[:n])); err == nil {
				t.Errorf("xz %q, the first %d of %d bytes: %d bytes and no error", args, n, len(data), len(got))
			}
			sameAsAlone(t, fmt.Sprintf("xz %q, the first %d bytes", args, n), data[:n])
		}
		seed := rand.Uint64()
		r := rand.New(rand.NewPCG(seed, 0))
		for range 100 {
			bad, at, bit := bytes.Clone(data), 6+r.IntN(len(data)-6), r.IntN(8)
			bad[at] ^= 1 << bit
			sameAsAlone(t, fmt.Sprintf("xz %q, seed %d, byte %d, bit %d", args, seed, at, bit), bad)
		}
	}
}

func TestReadErrorIsKept(t *testing.T) {
	data := xzOf(t, text())
	d, err := NewReader(io.MultiReader(bytes.NewReader(data[:len(data)/2]), iotest.ErrReader(io.ErrClosedPipe)))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for range 2 {
		if _, err := io.Copy(io.Discard, d); err != io.ErrClosedPipe {
			t.Errorf("a reader that fails: %v", err)
		}
	}
}

type counted struct {
	n      atomic.Int64
	closed atomic.Bool
	late   atomic.Bool
}

func (c *counted) Read(p []byte) (int, error) {
	if c.closed.Load() {
		c.late.Store(true)
	}
	n := min(len(p), 1000)
	c.n.Add(int64(n))
	return n, nil
}

func TestAheadIsBounded(t *testing.T) {
	before := runtime.NumGoroutine()
	var c counted
	a := newAhead(&c, make(chan struct{}))
	if n, err := a.Read(nil); n != 0 || err != nil || c.n.Load() != 0 {
		t.Errorf("Read of nothing: %d, %v", n, err)
	}
	buf := make([]byte, 3*chunkSize/2)
	for range 100 {
		if _, err := io.ReadFull(a, buf); err != nil {
			t.Fatal(err)
		}
	}
	read := int64(100 * len(buf))
	for was := int64(-1); was != c.n.Load(); time.Sleep(50 * time.Millisecond) {
		was = c.n.Load()
	}
	if got := c.n.Load() - read; got > chunks*chunkSize {
		t.Errorf("it is %d bytes ahead; want at most %d", got, chunks*chunkSize)
	}
	for range 2 {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		c.closed.Store(true)
	}
	if _, err := a.Read(buf); err != os.ErrClosed {
		t.Errorf("Read after Close: %v", err)
	}
	if c.late.Load() {
		t.Error("it reads after Close")
	}
	noMore(t, before)
}

// Whoever stops in the middle leaves no goroutine, nor does an error.
func TestCloseEndsGoroutines(t *testing.T) {
	data := xzOf(t, text())
	before := runtime.NumGoroutine()
	for _, n := range []int64{0, 1, chunkSize, 3*chunkSize + 1, 1 << 40} {
		for _, data := range [][]byte{data, data[:len(data)-100], data[:100]} {
			d, err := NewReader(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			io.CopyN(io.Discard, d, n)
			d.Close()
		}
	}
	noMore(t, before)
	// A stream that gives nothing: its padding has no end.
	d, err := NewReader(io.MultiReader(bytes.NewReader(xzOf(t, nil)), zeros{}))
	if err != nil {
		t.Fatal(err)
	}
	go func() { time.Sleep(20 * time.Millisecond); close(d.(*ahead).stop) }()
	if _, err := d.Read(make([]byte, 1)); err != os.ErrClosed {
		t.Errorf("endless padding, stopped: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// noMore waits until there are no more goroutines than before: one that has ended may still be counted.
func noMore(t *testing.T, before int) {
	t.Helper()
	for range 100 {
		if runtime.NumGoroutine() <= before {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d goroutines; there were %d", runtime.NumGoroutine(), before)
}
