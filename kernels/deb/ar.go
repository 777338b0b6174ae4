package deb

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/godkms-hermetic/godkms-hermetic/internal/decompress"
)

// Payload streams the data.tar of a .deb file (deb(5), format 2.x; uncompressed, gzip, xz or zstd). Before it reports io.EOF it has
// read pkg to its end, so that a pkg which checks its own digest gets to do so. It uses nothing of the provider.
func (*Provider) Payload(pkg io.Reader) (io.ReadCloser, error) {
	r, err := openPayload(bufio.NewReaderSize(pkg, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("read deb package: %w", err)
	}
	return r, nil
}

func openPayload(in *bufio.Reader) (io.ReadCloser, error) {
	magic := make([]byte, 8)
	if _, err := io.ReadFull(in, magic); err != nil {
		return nil, noEOF(err)
	}
	if string(magic) != "!<arch>\n" {
		return nil, errors.New("not an ar archive")
	}
	name, size, err := nextMember(in)
	if err != nil {
		return nil, err
	}
	if name != "debian-binary" || size < 4 || size > 1024 {
		return nil, fmt.Errorf("first member is %q of %d bytes, not debian-binary", name, size)
	}
	version := make([]byte, size+size&1)
	if _, err := io.ReadFull(in, version); err != nil {
		return nil, noEOF(err)
	}
	if !strings.HasPrefix(string(version), "2.") {
		return nil, fmt.Errorf("format %q is not 2.x", strings.TrimSpace(string(version[:size])))
	}
	for range 100 { // a .deb has three members; newer ones may add a few
		name, size, err := nextMember(in)
		if err == io.EOF {
			return nil, errors.New("no data.tar in it")
		}
		if err != nil {
			return nil, err
		}
		if ext, ok := strings.CutPrefix(name, "data.tar"); ok {
			switch ext {
			case "", ".gz", ".xz", ".zst":
			default:
				return nil, fmt.Errorf("compression %q is not supported", name)
			}
			m := &member{in: in, left: size}
			z, err := decompress.NewReader(m)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, noEOF(err))
			}
			return &payload{ReadCloser: z, name: name, member: m}, nil
		}
		if n, err := io.CopyN(io.Discard, in, size+size&1); err != nil && !(err == io.EOF && n == size) {
			return nil, noEOF(err)
		}
	}
	return nil, errors.New("more than 100 members")
}

// nextMember reads the header of an ar member (System V form: 60 bytes of text) and gives its name and size in bytes.
func nextMember(in io.Reader) (string, int64, error) {
	var h [60]byte
	if _, err := io.ReadFull(in, h[:]); err != nil {
		return "", 0, err
	}
	if h[58] != '`' || h[59] != '\n' {
		return "", 0, errors.New("damaged ar header")
	}
	size, err := strconv.ParseUint(strings.TrimRight(string(h[48:58]), " "), 10, 62)
	if err != nil {
		return "", 0, fmt.Errorf("size of an ar member: %w", err)
	}
	return strings.TrimSuffix(strings.TrimRight(string(h[:16]), " "), "/"), int64(size), nil
}

// member reads one member, whose end before its stated size is an error.
type member struct {
	in   io.Reader
	left int64
}

func (m *member) Read(b []byte) (int, error) {
	if m.left == 0 {
		return 0, io.EOF
	}
	if int64(len(b)) > m.left {
		b = b[:m.left]
	}
	n, err := m.in.Read(b)
	m.left -= int64(n)
	if m.left > 0 {
		err = noEOF(err)
	}
	return n, err
}

type payload struct {
	io.ReadCloser
	name   string
	member *member
	ended  error
}

func (p *payload) Read(b []byte) (int, error) {
	if p.ended != nil {
		return 0, p.ended
	}
	n, err := p.ReadCloser.Read(b)
	if err == nil {
		return n, nil
	}
	if err == io.EOF {
		if _, derr := io.Copy(io.Discard, p.member); derr != nil {
			err = derr
		} else if _, derr := io.Copy(io.Discard, p.member.in); derr != nil {
			err = derr
		}
	}
	if err != io.EOF {
		err = fmt.Errorf("read deb package: %s: %w", p.name, err)
	}
	p.ended = err
	return n, err
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
