package deb

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"slices"
	"sort"
	"strings"
)

// The compact form of a Packages index, little endian:
//
//	records    of packages, in the order of the text
//	directory:
//	  packages   x (offset of a record, offset of a name), sorted by name, then newest version first, then architecture
//	  provides   x (number of the package, offset of a name and version), sorted by name, then package
//	  essentials x number of the package
//	  strings    that the directory's offsets are into
//	footer:
//	  packages, provides, essentials: counts
//	  offset of the directory
//	  crc32c of all before
//	  magic (8 bytes): format version
//
// Counts, offsets and numbers are 32 bits; strings are led by their length as a uvarint. It is written as the text is read, and
// read without being parsed as a whole: the directory alone is kept in memory, lookups are binary searches in it, and only the
// records that they end on are read from the file. So indexes of all suites at once take little memory.
const (
	indexMagic  = "apt-idx2"
	indexFooter = 5*4 + 8
	packageSize = 8 // bytes in the directory
	provideSize = 8
	maxRecord   = 8 << 20 // bytes; three fields of a stanza, each of few lines
)

var (
	castagnoli      = crc32.MakeTable(crc32.Castagnoli)
	errDamagedIndex = errors.New("compact index is damaged")
)

// An index is an open file in the compact form.
type index struct {
	file                       io.ReaderAt
	records                    int64 // bytes of the file that are records
	dir                        []byte
	packages, provs, essential int
}

type provided struct {
	name, version string
	pkg           int
}

// buildIndex turns the text of a Packages index into its compact form. Packages of other architectures are left out.
func buildIndex(w io.Writer, r io.Reader, arch string) error {
	type entry struct { // small, and without pointers: there are 70000
		key     uint32 // where name and version begin in keys
		record  uint32 // where the record begins in the file
		name    uint16 // bytes
		version uint16
		all     bool
	}
	var (
		entries []entry
		keys    []byte
		provs   []provided // pkg is the place in the input, for now
		ess     []int
		rec     []byte
		offset  int64
		sum     = crc32.New(castagnoli)
		out     = io.MultiWriter(w, sum)
	)
	err := readStanzas(r, func(s *stanza) error {
		p, ok, err := s.parse(arch)
		if err != nil || !ok {
			return err
		}
		if len(p.name) > math.MaxUint16 || len(p.version) > math.MaxUint16 {
			return fmt.Errorf("package %.80q: name or version is too long", p.name)
		}
		if p.provides != "" {
			groups, err := parseDepends(p.provides)
			if err != nil {
				return fmt.Errorf("package %q: %w", p.name, err)
			}
			for _, g := range groups {
				if g[0].op == "" || g[0].op == "=" {
					provs = append(provs, provided{g[0].name, g[0].ver, len(entries)})
				}
			}
		}
		if p.essential {
			ess = append(ess, len(entries))
		}
		entries = append(entries, entry{uint32(len(keys)), uint32(offset), uint16(len(p.name)), uint16(len(p.version)), p.all})
		keys = append(append(keys, p.name...), p.version...)
		rec = appendPkg(rec[:0], p)
		if len(rec) > maxRecord {
			return fmt.Errorf("package %q: its fields are too long", p.name)
		}
		if offset += int64(len(rec)); offset > 1<<31 {
			return errors.New("more than 2 GB of packages")
		}
		_, err = out.Write(rec)
		return err
	})
	if err != nil {
		return err
	}

	name := func(e entry) []byte { return keys[e.key:][:e.name] }
	version := func(e entry) string { return string(keys[e.key+uint32(e.name):][:e.version]) }
	order := make([]int, len(entries))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int {
		a, b := entries[i], entries[j]
		if c := bytes.Compare(name(a), name(b)); c != 0 {
			return c
		}
		if c := -compareVersions(version(a), version(b)); c != 0 {
			return c
		}
		if a.all != b.all {
			if b.all {
				return -1
			}
			return 1
		}
		return cmp.Compare(i, j)
	})
	place := make([]int, len(entries))
	for to, from := range order {
		place[from] = to
	}
	for i := range provs {
		provs[i].pkg = place[provs[i].pkg]
	}
	slices.SortFunc(provs, func(a, b provided) int {
		return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.pkg, b.pkg), cmp.Compare(a.version, b.version))
	})
	for i := range ess {
		ess[i] = place[ess[i]]
	}
	slices.Sort(ess)

	le := binary.LittleEndian
	dir := make([]byte, 0, packageSize*len(entries)+provideSize*len(provs)+4*len(ess))
	var strs []byte
	for _, i := range order {
		dir = le.AppendUint32(le.AppendUint32(dir, entries[i].record), uint32(len(strs)))
		strs = appendString(strs, name(entries[i]))
	}
	for _, p := range provs {
		dir = le.AppendUint32(le.AppendUint32(dir, uint32(p.pkg)), uint32(len(strs)))
		strs = appendString(appendString(strs, p.name), p.version)
	}
	for _, i := range ess {
		dir = le.AppendUint32(dir, uint32(i))
	}
	if int64(len(strs)) > 1<<31 {
		return errors.New("more than 2 GB of names")
	}
	foot := le.AppendUint32(nil, uint32(len(entries)))
	foot = le.AppendUint32(foot, uint32(len(provs)))
	foot = le.AppendUint32(foot, uint32(len(ess)))
	foot = le.AppendUint32(foot, uint32(offset))
	for _, b := range [][]byte{dir, strs, foot} {
		if _, err := out.Write(b); err != nil {
			return err
		}
	}
	_, err = w.Write(append(le.AppendUint32(nil, sum.Sum32()), indexMagic...))
	return err
}

func appendString[S string | []byte](b []byte, s S) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// appendPkg appends a record: its own length, then all of a package but its name.
func appendPkg(b []byte, p pkg) []byte {
	b = append(b, 0, 0, 0, 0)
	var flags byte
	if p.all {
		flags |= 1
	}
	if p.essential {
		flags |= 2
	}
	b = append(b, flags, p.priority)
	b = appendString(appendString(appendString(appendString(b, p.version), p.depends), p.provides), p.filename)
	b = binary.AppendUvarint(b, uint64(p.size))
	b = append(b, p.sha256[:]...)
	binary.LittleEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

// openIndex checks the compact form's checksum and shape.
func openIndex(file io.ReaderAt, size int64) (*index, error) {
	var foot [indexFooter]byte
	if size < indexFooter {
		return nil, errDamagedIndex
	}
	if err := readAt(file, foot[:], size-indexFooter); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	x := &index{file: file, records: int64(le.Uint32(foot[12:])),
		packages: int(le.Uint32(foot[0:])), provs: int(le.Uint32(foot[4:])), essential: int(le.Uint32(foot[8:]))}
	end := size - indexFooter
	if string(foot[20:]) != indexMagic || x.records > end || x.tables() > end-x.records {
		return nil, errDamagedIndex
	}
	sum := crc32.New(castagnoli)
	if _, err := io.Copy(sum, io.NewSectionReader(file, 0, x.records)); err != nil {
		return nil, fmt.Errorf("%w: %w", errDamagedIndex, err)
	}
	x.dir = make([]byte, end-x.records)
	if err := readAt(file, x.dir, x.records); err != nil {
		return nil, err
	}
	sum.Write(x.dir)
	sum.Write(foot[:16])
	if sum.Sum32() != le.Uint32(foot[16:]) {
		return nil, errDamagedIndex
	}
	return x, nil
}

// tables is the length of the directory's tables in bytes, where its strings begin.
func (x *index) tables() int64 {
	return packageSize*int64(x.packages) + provideSize*int64(x.provs) + 4*int64(x.essential)
}

// readAt fills b. That it can't is damage like any other: it must not pass for a package that isn't there.
func readAt(file io.ReaderAt, b []byte, off int64) error {
	if n, err := file.ReadAt(b, off); n < len(b) {
		return fmt.Errorf("%w: %w", errDamagedIndex, err)
	}
	return nil
}

// decoder reads records; after something impossible it gives zero values.
type decoder struct {
	b   []byte
	bad bool
}

// at reads the directory's strings.
func (x *index) at(offset uint32) decoder {
	strs := x.dir[x.tables():]
	if int64(offset) > int64(len(strs)) {
		return decoder{bad: true}
	}
	return decoder{b: strs[offset:]}
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.b, d.bad = nil, true
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) bytes(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.b, d.bad = nil, true
		return nil
	}
	out := d.b[:n]
	d.b = d.b[n:]
	return out
}

func (d *decoder) str() []byte { return d.bytes(d.uvarint()) }

func (x *index) u32(at int) uint32 { return binary.LittleEndian.Uint32(x.dir[at:]) }

func (x *index) name(i int) []byte {
	d := x.at(x.u32(packageSize*i + 4))
	return d.str()
}

func (x *index) pkg(i int) (*pkg, error) {
	if i >= x.packages {
		return nil, errDamagedIndex
	}
	at := int64(x.u32(packageSize * i))
	var head [4]byte
	if err := readAt(x.file, head[:], at); err != nil {
		return nil, err
	}
	n := int64(binary.LittleEndian.Uint32(head[:]))
	if n > maxRecord || at+4+n > x.records {
		return nil, errDamagedIndex
	}
	d := decoder{b: make([]byte, n)}
	if err := readAt(x.file, d.b, at+4); err != nil {
		return nil, err
	}
	p := &pkg{name: string(x.name(i))}
	if flags := d.bytes(2); flags != nil {
		p.all, p.essential, p.priority = flags[0]&1 != 0, flags[0]&2 != 0, flags[1]
	}
	p.version, p.depends, p.provides, p.filename = string(d.str()), string(d.str()), string(d.str()), string(d.str())
	p.size = int64(d.uvarint())
	copy(p.sha256[:], d.bytes(32))
	if d.bad {
		return nil, errDamagedIndex
	}
	return p, nil
}

// withPrefix gives all packages whose names begin with prefix, in the index's order; exact asks for that very name.
func (x *index) withPrefix(prefix string, exact bool) ([]*pkg, error) {
	i := sort.Search(x.packages, func(i int) bool { return string(x.name(i)) >= prefix })
	var out []*pkg
	for ; i < x.packages; i++ {
		n := x.name(i)
		if exact && string(n) != prefix || !exact && !strings.HasPrefix(string(n), prefix) {
			break
		}
		p, err := x.pkg(i)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

func (x *index) provide(i int) (name, version []byte, pkg int) {
	at := packageSize*x.packages + provideSize*i
	d := x.at(x.u32(at + 4))
	return d.str(), d.str(), int(x.u32(at))
}

// An offer is a package together with the version under which it provides some name.
type offer struct {
	*pkg
	as string // empty: without a version
}

func (x *index) providers(name string) ([]offer, error) {
	i := sort.Search(x.provs, func(i int) bool { n, _, _ := x.provide(i); return string(n) >= name })
	var out []offer
	for ; i < x.provs; i++ {
		n, v, num := x.provide(i)
		if string(n) != name {
			break
		}
		p, err := x.pkg(num)
		if err != nil {
			return nil, err
		}
		out = append(out, offer{p, string(v)})
	}
	return out, nil
}

func (x *index) essentials() ([]*pkg, error) {
	var out []*pkg
	for i := range x.essential {
		p, err := x.pkg(int(x.u32(packageSize*x.packages + provideSize*x.provs + 4*i)))
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// names lists every package name once, sorted.
func (x *index) names() []string {
	out := make([]string, 0, x.packages)
	for i := range x.packages {
		if n := x.name(i); len(out) == 0 || out[len(out)-1] != string(n) {
			out = append(out, string(n))
		}
	}
	return out
}
