package rpm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"unicode/utf8"
)

// The bounds of a document. The longest tag of real lists has some 5 kB, a file's path or a description is no longer.
const (
	maxTag   = 1 << 20  // bytes
	maxText  = 64 << 10 // bytes of a text that is of use
	maxNest  = 32       // elements
	xmlChunk = 128 << 10
)

// A scanner reads the XML of repository metadata: UTF-8, elements, attributes, text, comments, CDATA, and the five entities with
// numeric ones. It refuses document types. It is some ten times as quick as encoding/xml, as it leaves alone what nobody asks for: the
// content of elements that are skipped isn't checked beyond their tags. What it gives is valid until the next call.
type scanner struct {
	r    io.Reader
	buf  []byte
	pos  int // buf[pos:] is not read yet
	end  error
	open []byte // names of the open elements, behind one another
	ends []int  // where in open each begins
	// of the last start tag
	tag     []byte // what is between < and >
	attrs   int    // where in tag the attributes begin
	empty   bool   // <a/>: its end comes next
	pending bool
	scratch []byte
}

type token byte

const (
	startTag token = iota
	endTag
	textToken
	eof
)

var errXML = errors.New("not well-formed")

func newScanner(r io.Reader) *scanner { return &scanner{r: r, buf: make([]byte, 0, 2*xmlChunk)} }

// fill reads more, of which there is room for maxTag.
func (s *scanner) fill() error {
	if s.end != nil {
		return s.end
	}
	if s.pos > 0 {
		s.buf = s.buf[:copy(s.buf, s.buf[s.pos:])]
		s.pos = 0
	}
	if len(s.buf) > maxTag {
		return fmt.Errorf("more than %d bytes in one piece", maxTag)
	}
	if cap(s.buf)-len(s.buf) < xmlChunk {
		s.buf = append(make([]byte, 0, 2*cap(s.buf)), s.buf...)
	}
	for range 100 {
		n, err := s.r.Read(s.buf[len(s.buf) : len(s.buf)+xmlChunk])
		s.buf = s.buf[:len(s.buf)+n]
		if n > 0 {
			s.end = err
			return nil
		}
		if err != nil {
			s.end = err
			return err
		}
	}
	s.end = io.ErrNoProgress
	return s.end
}

// find gives the place of a string behind pos+from, relative to pos.
func (s *scanner) find(what string, from int) (int, error) {
	for {
		if i := bytes.Index(s.buf[s.pos+from:], []byte(what)); i >= 0 {
			return from + i, nil
		}
		from = max(from, len(s.buf)-s.pos-len(what)+1)
		if err := s.fill(); err != nil {
			return 0, noEOF(err)
		}
	}
}

// next gives the next tag, or the end of the file. Text before it is appended to into, unless that is nil.
func (s *scanner) next(into *[]byte) (token, error) {
	if s.pending {
		s.pending = false
		s.pop()
		return endTag, nil
	}
	for {
		// text
		for {
			i := bytes.IndexByte(s.buf[s.pos:], '<')
			n := i
			if i < 0 {
				n = len(s.buf) - s.pos
			}
			if into != nil && n > 0 {
				if i < 0 && s.end == nil { // entities may be cut
					if n > maxText {
						return 0, fmt.Errorf("a text is longer than %d bytes", maxText)
					}
				} else if err := s.text(into, s.buf[s.pos:s.pos+n], true); err != nil {
					return 0, err
				} else {
					s.pos += n
				}
			} else {
				if len(s.ends) == 0 && len(bytes.Trim(s.buf[s.pos:s.pos+n], " \t\r\n")) > 0 {
					return 0, fmt.Errorf("%w: text outside of the document", errXML)
				}
				s.pos += n
			}
			if i >= 0 {
				break
			}
			if err := s.fill(); err == io.EOF {
				if s.pos < len(s.buf) {
					continue
				}
				if len(s.ends) > 0 {
					return 0, io.ErrUnexpectedEOF
				}
				return eof, nil
			} else if err != nil {
				return 0, err
			}
		}
		for len(s.buf)-s.pos < len("<![CDATA[") {
			if err := s.fill(); err == io.EOF {
				break
			} else if err != nil {
				return 0, err
			}
		}
		rest := s.buf[s.pos:]
		switch {
		case bytes.HasPrefix(rest, []byte("<!--")):
			if err := s.skipTo("-->", 4); err != nil {
				return 0, err
			}
		case bytes.HasPrefix(rest, []byte("<?")):
			if err := s.instruction(); err != nil {
				return 0, err
			}
		case bytes.HasPrefix(rest, []byte("<![CDATA[")):
			if len(s.ends) == 0 {
				return 0, fmt.Errorf("%w: text outside of the document", errXML)
			}
			if into == nil {
				if err := s.skipTo("]]>", 9); err != nil {
					return 0, err
				}
				continue
			}
			n, err := s.find("]]>", 9)
			if err != nil {
				return 0, err
			}
			if err := s.text(into, s.buf[s.pos+9:s.pos+n], false); err != nil {
				return 0, err
			}
			s.pos += n + 3
		case bytes.HasPrefix(rest, []byte("<!")):
			return 0, errors.New("document types are not taken")
		case bytes.HasPrefix(rest, []byte("</")):
			n, err := s.find(">", 2)
			if err != nil {
				return 0, err
			}
			name := bytes.TrimRight(s.buf[s.pos+2:s.pos+n], " \t\r\n")
			if len(s.ends) == 0 || !bytes.Equal(name, s.name()) {
				return 0, fmt.Errorf("%w: </%.40s> ends <%.40s>", errXML, name, s.name())
			}
			s.pos += n + 1
			s.pop()
			return endTag, nil
		default:
			return startTag, s.start()
		}
	}
}

// skipTo reads behind a string, over however much.
func (s *scanner) skipTo(what string, from int) error {
	s.pos += from
	for {
		if i := bytes.Index(s.buf[s.pos:], []byte(what)); i >= 0 {
			s.pos += i + len(what)
			return nil
		}
		s.pos = max(s.pos, len(s.buf)-len(what)+1)
		if err := s.fill(); err != nil {
			return noEOF(err)
		}
	}
}

// instruction skips one; the declaration at a document's begin may name no encoding but UTF-8.
func (s *scanner) instruction() error {
	n, err := s.find("?>", 2)
	if err != nil {
		return err
	}
	body := s.buf[s.pos+2 : s.pos+n]
	if bytes.HasPrefix(body, []byte("xml")) && (len(body) == 3 || isXMLSpace(body[3])) {
		s.tag, s.attrs = body, 3
		encoding, err := s.attr("encoding")
		if err != nil {
			return err
		}
		if encoding != nil && !bytes.EqualFold(encoding, []byte("utf-8")) {
			return fmt.Errorf("encoding %.40q is not UTF-8", encoding)
		}
	}
	s.pos += n + 2
	return nil
}

// start reads a start tag, whose name is then that of the innermost open element.
func (s *scanner) start() error {
	n, from, seen, quote := 0, 1, 1, byte(0) // quote is the one that is open at seen
	for {
		if i := bytes.IndexByte(s.buf[s.pos+from:], '>'); i >= 0 {
			if n = from + i; n > maxTag {
				return fmt.Errorf("a tag is longer than %d bytes", maxTag)
			}
			if quote = unclosed(quote, s.buf[s.pos+seen:s.pos+n]); quote == 0 {
				s.tag = s.buf[s.pos+1 : s.pos+n]
				break
			}
			from, seen = n+1, n+1
			continue
		}
		from = len(s.buf) - s.pos
		if err := s.fill(); err != nil {
			return noEOF(err)
		}
	}
	s.pos += n + 1
	if s.empty = bytes.HasSuffix(s.tag, []byte("/")); s.empty {
		s.tag = s.tag[:len(s.tag)-1]
	}
	i := 0
	for i < len(s.tag) && !isXMLSpace(s.tag[i]) {
		c := s.tag[i]
		if !(isLetter(c) || c == '_' || c == ':' || c >= 0x80 || i > 0 && (isDigit(c) || c == '-' || c == '.')) {
			return fmt.Errorf("%w: no tag: <%.40s", errXML, s.tag)
		}
		i++
	}
	if i == 0 {
		return fmt.Errorf("%w: < begins no tag", errXML)
	}
	if len(s.ends) == maxNest {
		return fmt.Errorf("more than %d elements inside one another", maxNest)
	}
	s.ends = append(s.ends, len(s.open))
	s.open = append(s.open, s.tag[:i]...)
	s.attrs, s.pending = i, s.empty
	return nil
}

// unclosed gives the quote that is open behind a piece of a tag, 0 for none; quote is the one that was open before it.
func unclosed(quote byte, b []byte) byte {
	for _, c := range b {
		switch {
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case c == quote:
			quote = 0
		}
	}
	return quote
}

// name is the innermost open element's.
func (s *scanner) name() []byte {
	if len(s.ends) == 0 {
		return nil
	}
	return s.open[s.ends[len(s.ends)-1]:]
}

func (s *scanner) pop() {
	s.open, s.ends = s.open[:s.ends[len(s.ends)-1]], s.ends[:len(s.ends)-1]
}

// skip reads to the end of the element whose start tag was the last.
func (s *scanner) skip() error {
	for depth := len(s.ends); len(s.ends) >= depth; {
		if _, err := s.next(nil); err != nil {
			return err
		}
	}
	return nil
}

// content gives the text of the element whose start tag was the last, without the space around it. It may have no elements inside.
func (s *scanner) content() ([]byte, error) {
	name := string(s.name())
	s.scratch = s.scratch[:0]
	switch t, err := s.next(&s.scratch); {
	case err != nil:
		return nil, err
	case t != endTag:
		return nil, fmt.Errorf("<%s> has elements in it", name)
	}
	return bytes.TrimSpace(s.scratch), nil
}

// attr gives the value of one attribute of the last start tag, nil if there is none.
func (s *scanner) attr(name string) ([]byte, error) {
	var out []byte
	err := s.eachAttr(func(n, v []byte) error {
		if string(n) == name {
			out = v
		}
		return nil
	})
	return out, err
}

// eachAttr hands over the attributes of the last start tag. A value is valid until the next tag is read. One that comes twice is an error.
func (s *scanner) eachAttr(each func(name, value []byte) error) error {
	b := s.tag[s.attrs:]
	for n := 0; ; n++ {
		spaced := len(b) > 0 && isXMLSpace(b[0])
		for len(b) > 0 && isXMLSpace(b[0]) {
			b = b[1:]
		}
		if len(b) == 0 {
			return nil
		}
		i := bytes.IndexByte(b, '=')
		if i <= 0 || !spaced || n > 64 {
			return fmt.Errorf("%w: attributes of <%.200s>", errXML, s.tag)
		}
		name := b[:i]
		for len(name) > 0 && isXMLSpace(name[len(name)-1]) {
			name = name[:len(name)-1]
		}
		for _, c := range name {
			if !(isLetter(c) || isDigit(c) || c == ':' || c == '-' || c == '_' || c == '.' || c >= 0x80) {
				return fmt.Errorf("%w: attributes of <%.200s>", errXML, s.tag)
			}
		}
		b = b[i+1:]
		for len(b) > 0 && isXMLSpace(b[0]) {
			b = b[1:]
		}
		if len(name) == 0 || len(b) == 0 || b[0] != '"' && b[0] != '\'' {
			return fmt.Errorf("%w: attributes of <%.200s>", errXML, s.tag)
		}
		end := bytes.IndexByte(b[1:], b[0])
		if end < 0 {
			return fmt.Errorf("%w: attributes of <%.200s>", errXML, s.tag)
		}
		value := b[1 : 1+end]
		b = b[end+2:]
		if bytes.IndexByte(value, '<') >= 0 {
			return fmt.Errorf("%w: < in an attribute of <%.200s>", errXML, s.tag)
		}
		if bytes.IndexByte(value, '&') >= 0 {
			plain := make([]byte, 0, len(value))
			if err := s.text(&plain, value, true); err != nil {
				return err
			}
			value = plain
		}
		if err := each(name, value); err != nil {
			return err
		}
	}
}

// text appends a piece of text, whose entities are resolved if it has them.
func (s *scanner) text(into *[]byte, b []byte, entities bool) error {
	for len(b) > 0 {
		i := -1
		if entities {
			i = bytes.IndexByte(b, '&')
		}
		if i < 0 {
			*into = append(*into, b...)
			break
		}
		*into = append(*into, b[:i]...)
		b = b[i+1:]
		end := bytes.IndexByte(b[:min(len(b), 12)], ';')
		if end < 0 {
			return fmt.Errorf("%w: & begins no entity", errXML)
		}
		r, err := entity(string(b[:end]))
		if err != nil {
			return err
		}
		*into = utf8.AppendRune(*into, r)
		b = b[end+1:]
	}
	if len(*into) > maxText {
		return fmt.Errorf("a text is longer than %d bytes", maxText)
	}
	return nil
}

func entity(name string) (rune, error) {
	switch name {
	case "lt":
		return '<', nil
	case "gt":
		return '>', nil
	case "amp":
		return '&', nil
	case "quot":
		return '"', nil
	case "apos":
		return '\'', nil
	}
	if len(name) > 1 && name[0] == '#' {
		digits, base := name[1:], 10
		if digits[0] == 'x' {
			digits, base = digits[1:], 16
		}
		if n, err := strconv.ParseUint(digits, base, 21); err == nil && utf8.ValidRune(rune(n)) {
			if r := rune(n); r >= ' ' && r != 0xfffe && r != 0xffff || r == '\t' || r == '\n' || r == '\r' {
				return r, nil
			}
		}
	}
	return 0, fmt.Errorf("%w: no entity &%s;", errXML, name)
}

func isXMLSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}
