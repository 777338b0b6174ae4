package kmod

import (
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
)

// Compress compresses what is written as the kernel reads it: "gzip", "xz", "zstd", or "" not at all. The same bytes give the same
// bytes. Closing it ends the stream and leaves w open.
func Compress(w io.Writer, compression string) (io.WriteCloser, error) {
	switch compression {
	case "":
		return plain{w}, nil
	case "gzip":
		return gzip.NewWriter(w), nil // without name and time
	case "xz":
		// The kernel's own decoder knows no CRC64, and has 1 MiB for the dictionary: Documentation/staging/xz.rst.
		return xz.WriterConfig{CheckSum: xz.CRC32, DictCap: 1 << 20}.NewWriter(w)
	case "zstd":
		// A wider window makes no real module smaller, and takes memory of the kernel's and time here.
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	}
	return nil, fmt.Errorf("modules are not compressed with %q", compression)
}

type plain struct{ io.Writer }

func (plain) Close() error { return nil }
