// Package decompress reads compressed streams, whichever of the formats of packages, indexes and source archives they are in.
package decompress

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
	"github.com/mikelolasagasti/xz"
)

// NewReader tells gzip, xz and zstd by their magic numbers and returns the decompressed stream; anything else is passed
// through as it is. Closing the result does not close r, but is needed: xz, the slowest by far, is decompressed by a goroutine, up to
// 1 MiB ahead of who reads. From the first Read until Close has returned r is the reader's own; Close waits for a read of r that is
// under way. Streams that need a window of more than 64 MiB (xz) or 128 MiB (zstd, the
// limit of its own program) are refused.
func NewReader(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	magic, err := br.Peek(6)
	if err != nil && err != io.EOF {
		return nil, err
	}
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return gzip.NewReader(br)
	case bytes.HasPrefix(magic, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		stop := make(chan struct{})
		x, err := xz.NewReader(until{br, stop}, 64<<20)
		if err != nil {
			return nil, fmt.Errorf("xz: %w", err)
		}
		return newAhead(x, stop), nil
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(128<<20))
		if err != nil {
			return nil, fmt.Errorf("zstd: %w", err)
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(br), nil
}
