package deb

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"path"
	"strconv"
	"strings"

	"github.com/godkms-hermetic/godkms-hermetic/internal/decompress"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// Payload streams the data.tar of a .deb file (deb(5), format 2.x; uncompressed, gzip, xz or zstd). Before it reports io.EOF it has
// read pkg to its end, so that a pkg which checks its own digest gets to do so. It uses nothing of the provider.
func (*Provider) Payload(pkg io.Reader) (io.ReadCloser, error) {
	r, err := openPayload(bufio.NewReaderSize(pkg, 64<<10), nil)
	if err != nil {
		return nil, fmt.Errorf("read deb package: %w", err)
	}
	return r, nil
}

// Open is Payload, with the Pre-Depends and Depends that the package's control file lists.
func (*Provider) Open(pkg io.Reader) (io.ReadCloser, []string, error) {
	var depends []string
	seen := false
	r, err := openPayload(bufio.NewReaderSize(pkg, 64<<10), func(member io.Reader) (err error) {
		seen = true
		depends, err = readControl(member)
		return err
	})
	if err == nil && !seen {
		r.Close()
		err = errors.New("no control.tar before its data.tar")
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read deb package: %w", err)
	}
	return r, depends, nil
}

// The bounds of a control.tar: of the texts in it that come before the control file, and of that file.
const (
	maxControlTar = 64 << 20
	maxControl    = 1 << 20
)

// readControl reads the dependencies of a control.tar.
func readControl(member io.Reader) ([]string, error) {
	z, err := decompress.NewReader(member)
	if err != nil {
		return nil, noEOF(err)
	}
	defer z.Close()
	in := tar.NewReader(&repo.Capped{R: z, N: maxControlTar})
	for {
		h, err := in.Next()
		if err == io.EOF {
			return nil, errors.New("no control file in it")
		}
		if err != nil {
			return nil, noEOF(err)
		}
		if path.Clean("/"+h.Name) != "/control" || h.Typeflag != tar.TypeReg {
			continue
		}
		if h.Size > maxControl {
			return nil, fmt.Errorf("the control file has %d bytes; at most %d are read", h.Size, maxControl)
		}
		return parseControl(in)
	}
}

// parseControl reads the dependencies of a binary package's control file, each as Depends would have it.
func parseControl(text io.Reader) ([]string, error) {
	var field string
	n := 0
	err := readStanzas(text, func(s *stanza) error {
		n++
		field = string(s.preDepends) + "," + string(s.depends)
		return nil
	})
	if err == nil && n != 1 {
		err = fmt.Errorf("%d stanzas instead of one", n)
	}
	if err != nil {
		return nil, fmt.Errorf("control file: %w", noEOF(err))
	}
	groups, err := parseDepends(field)
	if err != nil {
		return nil, fmt.Errorf("control file: %w", err)
	}
	var out []string
	for _, g := range groups {
		out = append(out, g.String())
	}
	return out, nil
}

// openPayload opens the data.tar of a package; control, if any, is handed the control.tar on the way.
func openPayload(in *bufio.Reader, control func(member io.Reader) error) (io.ReadCloser, error) {
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
		padding := size & 1
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
		if strings.HasPrefix(name, "control.tar") && control != nil {
			m := &member{in: in, left: size}
			if err := control(m); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			control = func(io.Reader) error { return errors.New("it is there twice") }
			size = m.left
		}
		if n, err := io.CopyN(io.Discard, in, size+padding); err != nil && !(err == io.EOF && n == size) {
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
