package decompress

import (
	"bytes"
	"compress/gzip"
	"io"
	"os/exec"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/klauspost/compress/zstd"

	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
)

var plain = []byte(strings.Repeat("All work and no play makes Jack a dull boy.\n", 20000))

// packed are the forms of a text. xz has no writer in Go here: its own program makes it, in two streams, as pixz and cat do.
func packed(t testing.TB, text []byte) map[string][]byte {
	t.Helper()
	var gz, zst, xzs bytes.Buffer
	g := gzip.NewWriter(&gz)
	g.Write(text)
	g.Close()
	z, err := zstd.NewWriter(&zst)
	if err != nil {
		t.Fatal(err)
	}
	z.Write(text)
	z.Close()
	xz := need.Program(t, "xz")
	for _, part := range [][]byte{text[:len(text)/2], text[len(text)/2:]} {
		cmd := exec.Command(xz, "-c")
		cmd.Stdin, cmd.Stdout = bytes.NewReader(part), &xzs
		if err := cmd.Run(); err != nil {
			t.Fatal(err)
		}
	}
	return map[string][]byte{"gzip": gz.Bytes(), "zstd": zst.Bytes(), "xz": xzs.Bytes()}
}

func unpack(r io.Reader) ([]byte, error) {
	d, err := NewReader(r)
	if err != nil {
		return nil, err
	}
	defer d.Close()
	return io.ReadAll(d)
}

func TestNewReader(t *testing.T) {
	forms := packed(t, plain)
	forms["plain"] = plain
	for name, data := range forms {
		for how, r := range map[string]io.Reader{"whole": bytes.NewReader(data), "byte by byte": iotest.OneByteReader(bytes.NewReader(data))} {
			if got, err := unpack(r); err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%s, %s: %d bytes, %v; want %d", name, how, len(got), err, len(plain))
			}
		}
	}
	for name, data := range packed(t, nil) {
		if got, err := unpack(bytes.NewReader(data)); err != nil || len(got) != 0 {
			t.Errorf("%s of nothing: %q, %v", name, got, err)
		}
	}
	for _, short := range []string{"", "x", "12345", "\xfd7zXZ"} {
		if got, err := unpack(strings.NewReader(short)); err != nil || string(got) != short {
			t.Errorf("%q: %q, %v", short, got, err)
		}
	}
	if _, err := unpack(iotest.ErrReader(io.ErrClosedPipe)); err != io.ErrClosedPipe {
		t.Errorf("a reader that fails: %v", err)
	}
}

// What is cut off or damaged must not pass for the whole.
func TestNewReaderRefuses(t *testing.T) {
	for name, data := range packed(t, plain) {
		for _, n := range []int{7, 10, 20, len(data) / 4, len(data) - 9, len(data) - 1} {
			if got, err := unpack(bytes.NewReader(data[:n])); err == nil {
				t.Errorf("%s, the first %d of %d bytes: %d bytes and no error", name, n, len(data), len(got))
			}
		}
		for at := 6; at < len(data); at += max(1, len(data)/200) {
			bad := bytes.Clone(data)
			bad[at] ^= 0x10
			if got, err := unpack(bytes.NewReader(bad)); err == nil && !bytes.Equal(got, plain) {
				t.Errorf("%s with byte %d altered: %d bytes and no error", name, at, len(got))
			}
		}
		broken := io.MultiReader(bytes.NewReader(data[:len(data)/2]), iotest.ErrReader(io.ErrClosedPipe))
		if _, err := unpack(broken); err == nil {
			t.Errorf("%s from a reader that fails: no error", name)
		}
	}
}

func FuzzNewReader(f *testing.F) {
	for _, data := range packed(f, plain[:500]) {
		f.Add(data)
	}
	f.Add([]byte{})
	f.Add(plain[:100])
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := NewReader(bytes.NewReader(data))
		if err != nil {
			return
		}
		defer d.Close()
		if _, ok := d.(*ahead); !ok {
			io.Copy(io.Discard, io.LimitReader(d, 1<<20))
			return
		}
		want, wantErr := alone(bytes.NewReader(data), 8*chunkSize)
		got, err := io.ReadAll(io.LimitReader(d, 8*chunkSize))
		if !bytes.Equal(got, want) || err != wantErr {
			t.Fatalf("%d bytes, %v; without a goroutine %d bytes, %v", len(got), err, len(want), wantErr)
		}
	})
}
