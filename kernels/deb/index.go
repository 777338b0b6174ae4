package deb

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sort"
	"strings"
)

// The compact form of a Packages index, little endian:
//
//	magic (8 bytes)   format version
//	crc32c            of all that follows
//	packages, provides, essentials: counts
//	packages   x offset of a record, sorted by name, then newest version first, then architecture
//	provides   x (offset of a name and version, number of the package), sorted by name, then package
//	essentials x number of the package
//	records
//
// Counts, offsets and numbers are 32 bits; strings are led by their length as a uvarint. It is read without being parsed as a
// whole: lookups are binary searches, and only the records they end on are decoded.
const (
	indexMagic  = "apt-idx1"
	indexHeader = 8 + 4 + 3*4
)

var (
	castagnoli      = crc32.MakeTable(crc32.Castagnoli)
	errDamagedIndex = errors.New("compact index is damaged")
)

type index struct {
	data                       []byte
	packages, provs, essential int
}

type provided struct {
	name, version string
	pkg           int
}

// buildIndex turns the text of a Packages index into its compact form. Packages of other architectures are left out.
func buildIndex(r io.Reader, arch string) ([]byte, error) {
	type record struct {
		name, version string
		all           bool
		offset        int
	}
	var (
		recs  []record
		blobs []byte
		provs []provided // pkg is the place in the input, for now
		ess   []int
	)
	err := readStanzas(r, func(s *stanza) error {
		p, ok, err := s.parse(arch)
		if err != nil || !ok {
			return err
		}
		if p.provides != "" {
			groups, err := parseDepends(p.provides)
			if err != nil {
				return fmt.Errorf("package %q: %w", p.name, err)
			}
			for _, g := range groups {
				if g[0].op == "" || g[0].op == "=" {
					provs = append(provs, provided{g[0].name, g[0].ver, len(recs)})
				}
			}
		}
		if p.essential {
			ess = append(ess, len(recs))
		}
		recs = append(recs, record{p.name, p.version, p.all, len(blobs)})
		blobs = appendPkg(blobs, p)
		if len(blobs) > 1<<31 {
			return errors.New("more than 2 GB of packages")
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	order := make([]int, len(recs))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int {
		a, b := recs[i], recs[j]
		if c := cmp.Or(cmp.Compare(a.name, b.name), -compareVersions(a.version, b.version)); c != 0 {
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
	place := make([]int, len(recs))
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

	base := indexHeader + 4*len(recs) + 8*len(provs) + 4*len(ess)
	le := binary.LittleEndian
	out := make([]byte, 0, base+len(blobs)+32*len(provs))
	out = append(out, indexMagic...)
	out = le.AppendUint32(out, 0)
	out = le.AppendUint32(out, uint32(len(recs)))
	out = le.AppendUint32(out, uint32(len(provs)))
	out = le.AppendUint32(out, uint32(len(ess)))
	for _, i := range order {
		out = le.AppendUint32(out, uint32(base+recs[i].offset))
	}
	for _, p := range provs {
		out = le.AppendUint32(out, uint32(base+len(blobs)))
		out = le.AppendUint32(out, uint32(p.pkg))
		blobs = appendString(appendString(blobs, p.name), p.version)
	}
	for _, i := range ess {
		out = le.AppendUint32(out, uint32(i))
	}
	out = append(out, blobs...)
	if int64(len(out)) > 1<<32-1 {
		return nil, errors.New("more than 4 GB of packages")
	}
	le.PutUint32(out[8:], crc32.Checksum(out[12:], castagnoli))
	return out, nil
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendPkg(b []byte, p pkg) []byte {
	b = appendString(appendString(b, p.name), p.version)
	var flags byte
	if p.all {
		flags |= 1
	}
	if p.essential {
		flags |= 2
	}
	b = append(b, flags, p.priority)
	b = appendString(appendString(appendString(b, p.depends), p.provides), p.filename)
	b = binary.AppendUvarint(b, uint64(p.size))
	return append(b, p.sha256[:]...)
}

// openIndex checks the compact form's checksum and shape.
func openIndex(data []byte) (*index, error) {
	if len(data) < indexHeader || string(data[:8]) != indexMagic {
		return nil, errDamagedIndex
	}
	le := binary.LittleEndian
	if le.Uint32(data[8:]) != crc32.Checksum(data[12:], castagnoli) {
		return nil, errDamagedIndex
	}
	x := &index{data, int(le.Uint32(data[12:])), int(le.Uint32(data[16:])), int(le.Uint32(data[20:]))}
	if int64(indexHeader)+4*int64(x.packages)+8*int64(x.provs)+4*int64(x.essential) > int64(len(data)) {
		return nil, errDamagedIndex
	}
	return x, nil
}

// decoder reads records; after something impossible it gives zero values.
type decoder struct {
	b   []byte
	bad bool
}

func (x *index) at(offset uint32) decoder {
	if int64(offset) > int64(len(x.data)) {
		return decoder{bad: true}
	}
	return decoder{b: x.data[offset:]}
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

func (x *index) u32(at int) uint32 { return binary.LittleEndian.Uint32(x.data[at:]) }

func (x *index) name(i int) []byte {
	d := x.at(x.u32(indexHeader + 4*i))
	return d.str()
}

func (x *index) pkg(i int) (*pkg, error) {
	if i >= x.packages {
		return nil, errDamagedIndex
	}
	d := x.at(x.u32(indexHeader + 4*i))
	p := &pkg{name: string(d.str()), version: string(d.str())}
	if flags := d.bytes(2); flags != nil {
		p.all, p.essential, p.priority = flags[0]&1 != 0, flags[0]&2 != 0, flags[1]
	}
	p.depends, p.provides, p.filename = string(d.str()), string(d.str()), string(d.str())
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
	at := indexHeader + 4*x.packages + 8*i
	d := x.at(x.u32(at))
	return d.str(), d.str(), int(x.u32(at + 4))
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
		p, err := x.pkg(int(x.u32(indexHeader + 4*x.packages + 8*x.provs + 4*i)))
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
