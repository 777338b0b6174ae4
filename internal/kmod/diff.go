package kmod

import (
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"slices"
	"strings"
)

// Limits for what Diff tells.
const (
	maxDifferences = 64
	shownBytes     = 16  // of each module
	shownTexts     = 8   // of each module
	shownText      = 200 // bytes of one of them
)

// A Difference is a part of a module that another build of it hasn't got like that.
type Difference struct {
	Part   string      // the name of a section, PartSignature or PartRest
	Sizes  [2]int64    // bytes in each; -1: it isn't there
	Offset int64       // of the first byte that differs, from the part's beginning; -1: none is there to compare, or all are the same
	Count  int64       // bytes that differ, as far as both go
	Bytes  [2][]byte   // 16 of each from Offset on, or what there is
	Only   [2][]string // of texts, symbols and attributes: what just one of them has, sorted, 8 of each at most
	Hash   bool        // it is a hash over the rest, and so differs whenever anything does
}

// Names of parts that are no sections.
const (
	PartSignature = "appended signature"
	PartRest      = "outside of sections" // of a file that is no ELF: all of it
)

// Diff says where two modules differ, which aren't compressed: section by section in the first one's order, what only the second has after
// them, hashes last, 64 at most. There is none if, and only if, they are the same to the byte. It trusts nothing in them; an error is one
// of reading. Headers and gaps are looked at only where the sections are the same: they have the sections' offsets.
func Diff(a, b io.ReaderAt, sizeA, sizeB int64) ([]Difference, error) {
	x, y := &side{file: file{r: a, size: sizeA}}, &side{file: file{r: b, size: sizeB}}
	whole, same, err := diffBytes(x, y, part{name: PartRest, n: uint64(sizeA)}, part{name: PartRest, n: uint64(sizeB)})
	if same || err != nil {
		return nil, err
	}
	if !x.read() || !y.read() {
		return []Difference{whole}, nil
	}
	var out, hashes []Difference
	for _, p := range x.parts {
		d, same := Difference{Part: p.name, Sizes: [2]int64{int64(p.n), -1}, Offset: -1}, false
		if q, ok := y.find(p); ok {
			if d, same, err = diffParts(x, y, p, q); err != nil {
				return nil, err
			}
		}
		switch {
		case same:
		case d.Hash:
			hashes = append(hashes, d)
		default:
			out = append(out, d)
		}
	}
	for _, q := range y.parts {
		if _, ok := x.find(q); !ok {
			out = append(out, Difference{Part: q.name, Sizes: [2]int64{-1, int64(q.n)}, Offset: -1})
		}
	}
	if out = append(out, hashes...); len(out) == 0 {
		out = []Difference{whole}
	}
	return out[:min(len(out), maxDifferences)], nil
}

// A side is one of two modules.
type side struct {
	file
	parts []part
	index map[place]int // of parts
}

// A part is a section or a signature.
type part struct {
	name   string
	nth    int // among those of its name
	off, n uint64
	s      *section // nil of a signature
}

type place struct {
	name string
	nth  int
}

func (s *side) find(p part) (part, bool) {
	i, ok := s.index[place{p.name, p.nth}]
	if !ok {
		return part{}, false
	}
	return s.parts[i], true
}

// read finds the parts. It reports false for what is no module that can be read: then the file is one part.
func (s *side) read() bool {
	if s.header(&Module{}) != nil {
		return false
	}
	end := uint64(s.size)
	tail := make([]byte, min(s.size, maxSignature))
	if _, err := s.r.ReadAt(tail, s.size-int64(len(tail))); err != nil && err != io.EOF {
		return false
	}
	if rest, _, err := cutSignature(tail); err == nil {
		end -= uint64(len(tail) - len(rest))
	}
	s.index = map[place]int{}
	seen := map[string]int{}
	left := end // sections of one file don't overlap: with those that do, there would be no end of comparing
	for i := range s.sects {
		sect := &s.sects[i]
		p := part{name: sect.name, nth: seen[sect.name], off: sect.offset, n: sect.sz, s: sect}
		switch elf.SectionType(sect.typ) {
		case elf.SHT_NULL:
			continue
		case elf.SHT_NOBITS:
			p.off, p.n = 0, 0
		}
		if p.off > end || p.n > end-p.off || p.n > left {
			return false
		}
		left -= p.n
		seen[p.name]++
		s.index[place{p.name, p.nth}] = len(s.parts)
		s.parts = append(s.parts, p)
	}
	if end < uint64(s.size) {
		s.index[place{name: PartSignature}] = len(s.parts)
		s.parts = append(s.parts, part{name: PartSignature, off: end, n: uint64(s.size) - end})
	}
	return true
}

// diffParts compares parts that both have.
func diffParts(x, y *side, p, q part) (d Difference, same bool, err error) {
	if d, same, err = diffBytes(x, y, p, q); err != nil || p.s == nil || q.s == nil {
		return d, same, err
	}
	a, b := p.s.attributes(), q.s.attributes()
	if same && a == b {
		return d, true, nil
	}
	d.Hash = p.name == ".note.gnu.build-id"
	if a != b {
		d.Only[0], d.Only[1] = append(d.Only[0], a), append(d.Only[1], b)
	}
	if same || max(p.n, q.n) > maxSection {
		return d, false, nil
	}
	texts := [2][]string{x.texts(p), y.texts(q)}
	for i := range texts {
		slices.Sort(texts[i])
	}
	for i := range texts {
		d.Only[i] = append(d.Only[i], lacking(texts[i], texts[1-i])...)
	}
	return d, false, nil
}

// attributes are what else than its bytes makes a section.
func (s *section) attributes() string {
	a := fmt.Sprintf("%s, flags %#x", elf.SectionType(s.typ), s.flags)
	if elf.SectionType(s.typ) == elf.SHT_NOBITS {
		a += fmt.Sprintf(", %d bytes", s.sz)
	}
	return a
}

// lacking gives those of sorted texts that others, sorted too, haven't got.
func lacking(texts, others []string) (out []string) {
	for _, t := range texts {
		for len(others) > 0 && others[0] < t {
			others = others[1:]
		}
		if len(others) > 0 && others[0] == t {
			others = others[1:]
			continue
		}
		if len(t) > shownText {
			t = strings.ToValidUTF8(t[:shownText], "") + "…"
		}
		if out = append(out, t); len(out) == shownTexts {
			break
		}
	}
	return out
}

// texts are what a section consists of, if that can be said in words: strings, or symbols.
func (s *side) texts(p part) []string {
	isText := p.s.flags&uint64(elf.SHF_STRINGS) != 0 || p.name == ".modinfo" || elf.SectionType(p.s.typ) == elf.SHT_STRTAB
	isSymbols := elf.SectionType(p.s.typ) == elf.SHT_SYMTAB
	if !isText && !isSymbols {
		return nil
	}
	b, err := s.at(p.off, p.n, p.name)
	if err != nil {
		return nil
	}
	if isSymbols {
		return s.symbolTexts(p, b)
	}
	if bytes.Count(b, []byte{0}) > maxSymbols {
		return nil
	}
	return strings.FieldsFunc(string(b), func(r rune) bool { return r == 0 })
}

// symbolTexts describes the symbols of a table, without their values: those change with anything before them.
func (s *side) symbolTexts(p part, table []byte) (out []string) {
	entry := 16
	if s.is64 {
		entry = 24
	}
	if int(p.s.link) >= len(s.sects) || len(table)/entry > maxSymbols {
		return nil
	}
	names, err := s.data(&s.sects[p.s.link])
	if err != nil {
		return nil
	}
	all := string(names)
	for ; len(table) >= entry; table = table[entry:] {
		var size uint64
		var shndx uint16
		if s.is64 {
			shndx, size = s.order.Uint16(table[6:]), s.order.Uint64(table[16:])
		} else {
			size, shndx = uint64(s.order.Uint32(table[8:])), s.order.Uint16(table[14:])
		}
		name, err := cstring(all, uint64(s.order.Uint32(table)))
		if err != nil {
			return nil
		}
		in := elf.SectionIndex(shndx).String()
		if int(shndx) < len(s.sects) && shndx != 0 {
			in = s.sects[shndx].name
		}
		out = append(out, fmt.Sprintf("%s: %d bytes in %s", name, size, in))
	}
	return out
}

// diffBytes compares the bytes of two parts, and their number.
func diffBytes(x, y *side, p, q part) (d Difference, same bool, err error) {
	d = Difference{Part: p.name, Sizes: [2]int64{int64(p.n), int64(q.n)}, Offset: -1}
	var a, b [64 << 10]byte
	both := min(p.n, q.n)
	for at := uint64(0); at < both; {
		n := min(both-at, uint64(len(a)))
		if err := x.full(a[:n], p.off+at); err != nil {
			return d, false, err
		}
		if err := y.full(b[:n], q.off+at); err != nil {
			return d, false, err
		}
		if !bytes.Equal(a[:n], b[:n]) {
			for i := range a[:n] {
				if a[i] == b[i] {
					continue
				}
				if d.Offset < 0 {
					d.Offset = int64(at) + int64(i)
				}
				d.Count++
			}
		}
		at += n
	}
	if d.Offset < 0 {
		if p.n == q.n {
			return d, true, nil
		}
		d.Offset = int64(both)
	}
	for i, o := range []struct {
		s *side
		part
	}{{x, p}, {y, q}} {
		d.Bytes[i] = make([]byte, min(shownBytes, o.n-min(o.n, uint64(d.Offset))))
		if err := o.s.full(d.Bytes[i], o.off+uint64(d.Offset)); err != nil {
			return d, false, err
		}
	}
	return d, false, nil
}

// full reads all of b.
func (f *file) full(b []byte, off uint64) error {
	n, err := f.r.ReadAt(b, int64(off))
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}
