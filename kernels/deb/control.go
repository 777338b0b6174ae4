package deb

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// maxLine bounds one line of an index. The longest Depends fields of Debian have some 20 kB.
const maxLine = 1 << 20

// stanza holds those fields of a Packages index that are of use here. Its slices are only valid until the next one is read.
type stanza struct {
	name, version, arch, essential, priority []byte
	depends, preDepends, provides            []byte
	filename, size, sha256                   []byte
}

func (s *stanza) field(name []byte) *[]byte {
	switch string(name) {
	case "Package":
		return &s.name
	case "Version":
		return &s.version
	case "Architecture":
		return &s.arch
	case "Essential":
		return &s.essential
	case "Priority":
		return &s.priority
	case "Depends":
		return &s.depends
	case "Pre-Depends":
		return &s.preDepends
	case "Provides":
		return &s.provides
	case "Filename":
		return &s.filename
	case "Size":
		return &s.size
	case "SHA256":
		return &s.sha256
	}
	return nil
}

func (s *stanza) reset() {
	for _, f := range []*[]byte{&s.name, &s.version, &s.arch, &s.essential, &s.priority, &s.depends, &s.preDepends, &s.provides,
		&s.filename, &s.size, &s.sha256} {
		*f = (*f)[:0]
	}
}

// readStanzas calls each for every stanza of a Packages index (deb-control(5)). A field that comes twice is an error.
func readStanzas(r io.Reader, each func(*stanza) error) error {
	br := bufio.NewReaderSize(r, maxLine)
	var (
		s       stanza
		current *[]byte
		used    bool
	)
	flush := func() error {
		if !used {
			return nil
		}
		err := each(&s)
		s.reset()
		current, used = nil, false
		return err
	}
	for n := 1; ; n++ {
		line, err := br.ReadSlice('\n')
		if err == bufio.ErrBufferFull {
			return fmt.Errorf("line %d is longer than %d bytes", n, maxLine)
		}
		if err != nil && err != io.EOF {
			return err
		}
		last := err == io.EOF
		line = bytes.TrimRight(line, " \t\r\n")
		switch {
		case len(line) == 0:
			if err := flush(); err != nil {
				return err
			}
		case line[0] == ' ' || line[0] == '\t':
			if !used {
				return fmt.Errorf("line %d continues no field", n)
			}
			if current != nil {
				*current = append(*current, line...)
			}
		case line[0] == '#':
		default:
			name, value, ok := bytes.Cut(line, []byte(":"))
			if !ok || len(name) == 0 {
				return fmt.Errorf("line %d is no field", n)
			}
			used = true
			if current = s.field(name); current != nil {
				if len(*current) > 0 {
					return fmt.Errorf("line %d: field %q comes twice", n, name)
				}
				*current = append(*current, bytes.TrimSpace(value)...)
			}
		}
		if last {
			return flush()
		}
	}
}

// A pkg is one package of an index.
type pkg struct {
	name, version string
	all           bool // Architecture: all
	essential     bool
	priority      byte // 0 is required, larger is less important
	depends       string
	provides      string
	filename      string // relative to the archive's URL
	size          int64  // bytes
	sha256        [32]byte
}

// parse checks a stanza. ok is false for a package of another architecture.
func (s *stanza) parse(arch string) (p pkg, ok bool, err error) {
	switch string(s.arch) {
	case "all":
		p.all = true
	case arch:
	default:
		return p, false, nil
	}
	p.name, p.version, p.filename = string(s.name), string(s.version), string(s.filename)
	if !validName(p.name) {
		return p, false, fmt.Errorf("%q is no package name", p.name)
	}
	if !validVersion(p.version) {
		return p, false, fmt.Errorf("package %q: %q is no version", p.name, p.version)
	}
	if err := validPath(p.filename); err != nil {
		return p, false, fmt.Errorf("package %q: %w", p.name, err)
	}
	p.size, err = strconv.ParseInt(string(s.size), 10, 64)
	if err != nil || p.size <= 0 {
		return p, false, fmt.Errorf("package %q: %q is no size", p.name, s.size)
	}
	if len(s.sha256) != 64 {
		return p, false, fmt.Errorf("package %q: %q is no sha256", p.name, s.sha256)
	}
	if _, err := hex.Decode(p.sha256[:], s.sha256); err != nil {
		return p, false, fmt.Errorf("package %q: sha256: %w", p.name, err)
	}
	p.essential = string(s.essential) == "yes"
	switch string(s.priority) {
	case "required":
		p.priority = 0
	case "important":
		p.priority = 1
	case "standard":
		p.priority = 2
	case "optional":
		p.priority = 3
	default:
		p.priority = 4
	}
	p.depends = string(s.preDepends)
	if len(s.depends) > 0 {
		if p.depends != "" {
			p.depends += ", "
		}
		p.depends += string(s.depends)
	}
	p.provides = string(s.provides)
	return p, true, nil
}

// validPath refuses what would leave an archive or could not be put into a URL as it is.
func validPath(s string) error {
	if s == "" {
		return errors.New("no file name")
	}
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || isDigit(c) || strings.IndexByte("/.+-~_:%=,@", c) >= 0) {
			return fmt.Errorf("file name %q has unusual characters", s)
		}
	}
	for part := range strings.SplitSeq(s, "/") {
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("file name %q is not relative and clean", s)
		}
	}
	return nil
}
