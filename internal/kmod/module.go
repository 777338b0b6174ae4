// Package kmod tells the ELF facts about a kernel module and whether a given kernel would load it, signs it, and compresses it.
package kmod

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/godkms-hermetic/godkms-hermetic/internal/decompress"
)

// Limits for what is read of one module. Real ones stay far below: amdgpu, the largest in Debian, has a 1.5 MB string table.
const (
	maxSection      = 16 << 20  // bytes of one section that is read
	maxDecompressed = 128 << 20 // bytes of a compressed module, unpacked in memory
	maxName         = 1024      // bytes of a symbol name; the kernel's KSYM_NAME_LEN is 512
	maxSymbols      = 1 << 17   // undefined, exported or versioned symbols
	maxSignature    = 64 << 10  // bytes at the end of a module where its signature is; those with RSA have some 500
	maxFields       = 1 << 16   // of .modinfo; modules with many aliases have a few thousand
)

// A Field is one "key=value" of the .modinfo section.
type Field struct{ Key, Value string }

// A Version is one symbol that a module was built against, with its CRC (CONFIG_MODVERSIONS).
type Version struct {
	Name string
	CRC  uint32
}

// A Module is what one .ko says about itself. Symbol lists are sorted and without repetitions.
type Module struct {
	Class   elf.Class
	Data    elf.Data
	Type    elf.Type
	Machine elf.Machine

	Info      Info     // .modinfo, in order
	Undefined []string // symbols that must be found for the module to load
	Weak      []string // undefined symbols that may be missing
	Exports   []string // symbols that it offers to other modules

	HasVersions bool      // a __versions or __version_ext_crcs section is there
	Versions    []Version // in order; the extended form where both are there, as the kernel prefers it

	HasSymbols  bool      // there is a symbol table; without one no kernel loads it
	ThisModule  bool      // .gnu.linkonce.this_module is there
	Signed      bool      // a signature is appended
	Signature   Signature // what it says; zero if it can't be read, or there is none
	Compression string    // of the file: "gzip", "xz", "zstd", or "" for none
}

// Get returns the first value of a .modinfo key, as the kernel does, or "".
func (m *Module) Get(key string) string { return m.Info.Get(key) }

// All returns every value of a .modinfo key, in order.
func (m *Module) All(key string) []string { return m.Info.All(key) }

// Info is what a module's .modinfo section has, in order.
type Info []Field

// Get returns the first value of a key, as the kernel does, or "".
func (i Info) Get(key string) string {
	for _, f := range i {
		if f.Key == key {
			return f.Value
		}
	}
	return ""
}

// All returns every value of a key, in order.
func (i Info) All(key string) []string {
	var out []string
	for _, f := range i {
		if f.Key == key {
			out = append(out, f.Value)
		}
	}
	return out
}

// Vermagic is the module's vermagic as the kernel compares it; most end in a space.
func (m *Module) Vermagic() string { return m.Get("vermagic") }

// signatureMarker ends a signed module: include/linux/module_signature.h.
const signatureMarker = "~Module signature appended~\n"

var errMalformed = errors.New("malformed ELF file")

func malformed(format string, a ...any) error {
	return fmt.Errorf("%w: %s", errMalformed, fmt.Sprintf(format, a...))
}

// Compression tells by its first bytes how a file is compressed: "gzip", "xz", "zstd", or "" for none.
func Compression(head []byte) string {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return "gzip"
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return "xz"
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return "zstd"
	}
	return ""
}

// Read reads a module of size bytes, compressed or not. It trusts nothing in it: whatever the bytes are, it returns an error or
// a Module, and its memory stays within a small multiple of the file's own size. A compressed module is unpacked in memory,
// up to 128 MiB.
func Read(r io.ReaderAt, size int64) (*Module, error) {
	var head [6]byte
	n, err := r.ReadAt(head[:min(size, 6)], 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	compression := Compression(head[:n])
	if compression != "" {
		d, err := decompress.NewReader(io.NewSectionReader(r, 0, size))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", compression, err)
		}
		defer d.Close()
		b, err := io.ReadAll(io.LimitReader(d, maxDecompressed+1))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", compression, err)
		}
		if len(b) > maxDecompressed {
			return nil, fmt.Errorf("%s: more than %d bytes when unpacked", compression, maxDecompressed)
		}
		r, size = bytes.NewReader(b), int64(len(b))
	}
	m, err := read(r, size)
	if err != nil {
		return nil, err
	}
	m.Compression = compression
	return m, nil
}

// ReadInfo reads just the .modinfo section of a module that isn't compressed; of one without there is nothing. It trusts nothing, as Read.
func ReadInfo(r io.ReaderAt, size int64) (Info, error) {
	f := file{r: r, size: size}
	var m Module
	if err := f.header(&m); err != nil {
		return nil, err
	}
	if s := f.section(".modinfo"); s != nil {
		if err := f.modinfo(s, &m); err != nil {
			return nil, err
		}
	}
	return m.Info, nil
}

type section struct {
	name                    string
	typ, link               uint32
	flags, offset, sz, ents uint64
}

type file struct {
	r     io.ReaderAt
	size  int64
	order binary.ByteOrder
	is64  bool
	sects []section
}

func read(r io.ReaderAt, size int64) (*Module, error) {
	f := file{r: r, size: size}
	var m Module
	if err := f.header(&m); err != nil {
		return nil, err
	}
	for i := range f.sects {
		s := &f.sects[i]
		var err error
		switch {
		case s.name == ".modinfo":
			err = f.modinfo(s, &m)
		case s.name == ".gnu.linkonce.this_module":
			m.ThisModule = true
		case s.typ == uint32(elf.SHT_SYMTAB) && !m.HasSymbols:
			m.HasSymbols = true
			err = f.symbols(s, &m)
		}
		if err != nil {
			return nil, err
		}
	}
	if err := f.versions(&m); err != nil {
		return nil, err
	}
	tail := make([]byte, min(size, maxSignature))
	if _, err := r.ReadAt(tail, size-int64(len(tail))); err != nil && err != io.EOF {
		return nil, err
	}
	if m.Signed = bytes.HasSuffix(tail, []byte(signatureMarker)); m.Signed {
		m.Signature, _ = readSignature(tail)
	}
	return &m, nil
}

// at reads n bytes at offset off, which must lie within the file.
func (f *file) at(off, n uint64, what string) ([]byte, error) {
	if off > uint64(f.size) || n > uint64(f.size)-off {
		return nil, malformed("%s lies outside the file", what)
	}
	if n > maxSection {
		return nil, malformed("%s has %d bytes, more than the %d that are read", what, n, maxSection)
	}
	b := make([]byte, n)
	if got, err := f.r.ReadAt(b, int64(off)); err != nil && (err != io.EOF || got < len(b)) {
		return nil, fmt.Errorf("read %s: %w", what, err)
	}
	return b, nil
}

func (f *file) data(s *section) ([]byte, error) {
	if s.flags&uint64(elf.SHF_COMPRESSED) != 0 {
		return nil, malformed("section %q is compressed", s.name)
	}
	if s.typ == uint32(elf.SHT_NOBITS) {
		return nil, malformed("section %q has no data", s.name)
	}
	return f.at(s.offset, s.sz, fmt.Sprintf("section %q", s.name))
}

func (f *file) section(name string) *section {
	for i := range f.sects {
		if f.sects[i].name == name {
			return &f.sects[i]
		}
	}
	return nil
}

func (f *file) header(m *Module) error {
	ident, err := f.at(0, elf.EI_NIDENT, "the header")
	if err != nil {
		return err
	}
	if string(ident[:4]) != elf.ELFMAG {
		return fmt.Errorf("not an ELF file: it begins with %q", ident[:4])
	}
	m.Class, m.Data = elf.Class(ident[elf.EI_CLASS]), elf.Data(ident[elf.EI_DATA])
	switch m.Data {
	case elf.ELFDATA2LSB:
		f.order = binary.LittleEndian
	case elf.ELFDATA2MSB:
		f.order = binary.BigEndian
	default:
		return malformed("byte order %d", ident[elf.EI_DATA])
	}
	var shoff uint64
	var shentsize, shnum, shstrndx uint16
	switch m.Class {
	case elf.ELFCLASS64:
		f.is64 = true
		h, err := f.at(0, 64, "the header")
		if err != nil {
			return err
		}
		shoff, shentsize, shnum, shstrndx = f.order.Uint64(h[40:]), f.order.Uint16(h[58:]), f.order.Uint16(h[60:]), f.order.Uint16(h[62:])
		m.Type, m.Machine = elf.Type(f.order.Uint16(h[16:])), elf.Machine(f.order.Uint16(h[18:]))
	case elf.ELFCLASS32:
		h, err := f.at(0, 52, "the header")
		if err != nil {
			return err
		}
		shoff, shentsize, shnum, shstrndx = uint64(f.order.Uint32(h[32:])), f.order.Uint16(h[46:]), f.order.Uint16(h[48:]), f.order.Uint16(h[50:])
		m.Type, m.Machine = elf.Type(f.order.Uint16(h[16:])), elf.Machine(f.order.Uint16(h[18:]))
	default:
		return malformed("class %d", ident[elf.EI_CLASS])
	}
	if shnum == 0 {
		return nil // the kernel reads e_shnum alone, never the extended number
	}
	want := uint16(40)
	if f.is64 {
		want = 64
	}
	if shentsize != want {
		return malformed("section headers of %d bytes", shentsize)
	}
	table, err := f.at(shoff, uint64(shnum)*uint64(want), "the section table")
	if err != nil {
		return err
	}
	f.sects = make([]section, shnum)
	names := make([]uint32, shnum)
	for i := range f.sects {
		b, s := table[i*int(want):], &f.sects[i]
		names[i], s.typ = f.order.Uint32(b), f.order.Uint32(b[4:])
		if f.is64 {
			s.flags, s.offset, s.sz = f.order.Uint64(b[8:]), f.order.Uint64(b[24:]), f.order.Uint64(b[32:])
			s.link, s.ents = f.order.Uint32(b[40:]), f.order.Uint64(b[56:])
		} else {
			s.flags, s.offset, s.sz = uint64(f.order.Uint32(b[8:])), uint64(f.order.Uint32(b[16:])), uint64(f.order.Uint32(b[20:]))
			s.link, s.ents = f.order.Uint32(b[24:]), uint64(f.order.Uint32(b[36:]))
		}
	}
	if int(shstrndx) >= len(f.sects) {
		return malformed("no section %d for section names", shstrndx)
	}
	b, err := f.data(&f.sects[shstrndx])
	if err != nil {
		return err
	}
	strs := string(b)
	for i := range f.sects {
		if f.sects[i].name, err = cstring(strs, uint64(names[i])); err != nil {
			return err
		}
	}
	return nil
}

// cstring returns the zero-terminated string at off without copying it.
func cstring(strs string, off uint64) (string, error) {
	if off >= uint64(len(strs)) {
		if off == 0 {
			return "", nil
		}
		return "", malformed("a name at %d lies outside its string table", off)
	}
	s := strs[off:]
	end := strings.IndexByte(s[:min(len(s), maxName+1)], 0)
	if end < 0 {
		return "", malformed("a name at %d is not terminated or has more than %d bytes", off, maxName)
	}
	return s[:end], nil
}

func (f *file) modinfo(s *section, m *Module) error {
	b, err := f.data(s)
	if err != nil {
		return err
	}
	for rest := string(b); rest != ""; {
		var kv string
		kv, rest, _ = strings.Cut(rest, "\x00")
		if kv == "" {
			continue
		}
		if len(m.Info) == maxFields {
			return malformed("more than %d fields in .modinfo", maxFields)
		}
		k, v, _ := strings.Cut(kv, "=")
		m.Info = append(m.Info, Field{k, v})
	}
	return nil
}

func (f *file) symbols(s *section, m *Module) error {
	if int(s.link) >= len(f.sects) {
		return malformed("the symbol table has no string table")
	}
	tab, err := f.data(s)
	if err != nil {
		return err
	}
	b, err := f.data(&f.sects[s.link])
	if err != nil {
		return err
	}
	strs := string(b)
	entry := 16
	if f.is64 {
		entry = 24
	}
	if s.ents != uint64(entry) {
		return malformed("symbols of %d bytes", s.ents)
	}
	for i := entry; i+entry <= len(tab); i += entry { // the first is empty
		e := tab[i:]
		var info byte
		var shndx uint16
		if f.is64 {
			info, shndx = e[4], f.order.Uint16(e[6:])
		} else {
			info, shndx = e[12], f.order.Uint16(e[14:])
		}
		name, err := cstring(strs, uint64(f.order.Uint32(e)))
		if err != nil {
			return err
		}
		switch {
		case name == "":
		case elf.SectionIndex(shndx) == elf.SHN_UNDEF:
			if f.linker(m.Machine, name, info) {
				continue
			}
			if elf.ST_BIND(info) == elf.STB_WEAK {
				m.Weak = append(m.Weak, name)
			} else {
				m.Undefined = append(m.Undefined, name)
			}
		case strings.HasPrefix(name, "__ksymtab_") && len(name) > len("__ksymtab_"):
			// EXPORT_SYMBOL leaves a symbol of this name: include/linux/export.h, and since 6.4 include/linux/export-internal.h.
			if name != "__ksymtab_strings" && name != "__ksymtab_gpl" {
				m.Exports = append(m.Exports, name[len("__ksymtab_"):])
			}
		}
		if len(m.Undefined)+len(m.Weak)+len(m.Exports) > maxSymbols {
			return malformed("more than %d symbols", maxSymbols)
		}
	}
	for _, l := range []*[]string{&m.Undefined, &m.Weak, &m.Exports} {
		slices.Sort(*l)
		*l = slices.Compact(*l)
	}
	return nil
}

// linker tells the undefined symbols that the kernel's loader provides itself: ignore_undef_symbol in scripts/mod/modpost.c.
func (f *file) linker(machine elf.Machine, name string, info byte) bool {
	if name == "_GLOBAL_OFFSET_TABLE_" {
		return true
	}
	switch machine {
	case elf.EM_PPC:
		return hasAnyPrefix(name, "_restgpr_", "_savegpr_", "_rest32gpr_", "_save32gpr_", "_restvr_", "_savevr_")
	case elf.EM_PPC64:
		return name == ".TOC." || hasAnyPrefix(name, "_restgpr0_", "_savegpr0_", "_restvr_", "_savevr_")
	case elf.EM_SPARC, elf.EM_SPARCV9:
		return elf.ST_TYPE(info) == 13 // STT_SPARC_REGISTER
	}
	return false
}

func hasAnyPrefix(s string, prefixes ...string) bool {
	return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(s, p) })
}

// versions reads the symbol versions. There are three forms of them:
// the extended one of kernel 6.14 (CONFIG_EXTENDED_MODVERSIONS), CRCs and names in sections of their own; the classic array of
// struct modversion_info { unsigned long crc; char name[64 - sizeof(long)] }; and Ubuntu's own from 22.10 on, entries of
// { u32 next; u32 crc; char name[] } where next is the offset of the following entry from this one.
func (f *file) versions(m *Module) error {
	if crcs, names := f.section("__version_ext_crcs"), f.section("__version_ext_names"); crcs != nil && names != nil {
		m.HasVersions = true
		c, err := f.data(crcs)
		if err != nil {
			return err
		}
		n, err := f.data(names)
		if err != nil {
			return err
		}
		if len(c)/4 > maxSymbols {
			return malformed("more than %d symbol versions", maxSymbols)
		}
		rest := strings.TrimRight(string(n), "\x00")
		for ; len(c) >= 4; c = c[4:] {
			var name string
			name, rest, _ = strings.Cut(rest, "\x00")
			if name == "" || len(name) > maxName {
				return malformed("__version_ext_names and __version_ext_crcs do not fit together")
			}
			m.Versions = append(m.Versions, Version{name, f.order.Uint32(c)})
		}
		if rest != "" || len(c) != 0 {
			return malformed("__version_ext_names and __version_ext_crcs do not fit together")
		}
		return nil
	}
	s := f.section("__versions")
	if s == nil {
		return nil
	}
	m.HasVersions = true
	b, err := f.data(s)
	if err != nil {
		return err
	}
	if len(b)/12 > maxSymbols*6 {
		return malformed("more than %d symbol versions", maxSymbols)
	}
	v, ok := f.classicVersions(b)
	if !ok {
		if v, ok = f.chainedVersions(b); !ok {
			return malformed("section \"__versions\" has no known form")
		}
	}
	m.Versions = v
	return nil
}

func (f *file) classicVersions(b []byte) ([]Version, bool) {
	const entry = 64
	long := 4
	if f.is64 {
		long = 8
	}
	if len(b)%entry != 0 {
		return nil, false
	}
	out := make([]Version, 0, len(b)/entry)
	for ; len(b) > 0; b = b[entry:] {
		crc := uint64(f.order.Uint32(b))
		if f.is64 {
			crc = f.order.Uint64(b)
		}
		name, _, ok := bytes.Cut(b[long:entry], []byte{0})
		if crc>>32 != 0 || !ok || !printable(name) {
			return nil, false
		}
		out = append(out, Version{string(name), uint32(crc)})
	}
	return out, true
}

func (f *file) chainedVersions(b []byte) ([]Version, bool) {
	var out []Version
	for len(b) >= 8 {
		next, crc := f.order.Uint32(b), f.order.Uint32(b[4:])
		if next == 0 {
			break // a last entry of zeros
		}
		if next < 10 || uint64(next) > uint64(len(b)) || next > maxName+8 {
			return nil, false
		}
		name, _, ok := bytes.Cut(b[8:next], []byte{0})
		if !ok || !printable(name) {
			return nil, false
		}
		out = append(out, Version{string(name), crc})
		b = b[next:]
	}
	return out, len(bytes.Trim(b, "\x00")) == 0
}

func printable(name []byte) bool {
	return len(name) > 0 && !slices.ContainsFunc(name, func(c byte) bool { return c <= ' ' || c >= 0x7f })
}
