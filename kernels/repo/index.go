package repo

import (
	"bufio"
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

// The compact form of a list of packages, little endian:
//
//	for each package, in the order in which they were added:
//	  record   its length, then what the reader of that kind of list made of it
//	  offers   of names beside the package's own: name and version
//	directory:
//	  packages x (offset of a record, offset of a name in names), sorted by name, then newest version first, then rank
//	  offers   x (hash of the name, number of the package, offset of the offer), sorted by hash, then package
//	  marked   x number of the package
//	  names      of the packages
//	footer:
//	  packages, offers, marked: counts
//	  offset of the directory
//	  crc32c of all before
//	  form (8 bytes): of the file and of its records
//
// Counts, offsets and numbers are 32 bits; strings are led by their length as a uvarint. It is written as the list is read, and
// read without being parsed as a whole: the directory alone is kept in memory, lookups are binary searches in it, and only what they end
// on is read from the file. So indexes of all suites at once take little memory.
const (
	indexFooter = 5*4 + formSize
	formSize    = 8
	packageSize = 8 // bytes in the directory
	offerSize   = 12
	maxRecord   = 8 << 20              // bytes
	maxOffer    = 2*math.MaxUint16 + 8 // bytes of name and version
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// ErrDamagedIndex is wrapped by the errors of an Index whose file is not, or no longer, what was written.
var ErrDamagedIndex = errors.New("compact index is damaged")

// An IndexWriter writes the compact form of a list of packages. Of each it holds some 100 bytes in memory, and 12 of each offer.
type IndexWriter struct {
	w       *bufio.Writer
	form    string
	compare func(a, b string) int
	at      uint32 // bytes written
	sum     uint32 // of them

	entries []entry
	keys    []byte
	offers  []offerEntry
	marked  []uint32
	packed  []byte // the offers of the package that's added next
	isNext  bool   // marked
	tooLong bool   // one of its offers
}

type entry struct { // small, and without pointers: there are 70000
	key     uint32 // where name and version begin in keys
	record  uint32 // where the record begins in the file
	name    uint16 // bytes
	version uint16
	rank    byte
}

type offerEntry struct{ hash, pkg, at uint32 } // pkg counts in the order of adding; at, until its package is added, in packed

// NewIndexWriter begins an index. Form, of 8 bytes, says what the records are. Compare orders versions, negative when a is older.
func NewIndexWriter(w io.Writer, form string, compare func(a, b string) int) *IndexWriter {
	return &IndexWriter{w: bufio.NewWriterSize(w, 64<<10), form: form, compare: compare}
}

// Offer says that the package that is added next has another name, too, and as which version. Neither slice is kept.
func (x *IndexWriter) Offer(name, version []byte) {
	x.tooLong = x.tooLong || len(name) > math.MaxUint16 || len(version) > math.MaxUint16
	x.offers = append(x.offers, offerEntry{hashName(name), uint32(len(x.entries)), uint32(len(x.packed))})
	x.packed = AppendString(AppendString(x.packed, name), version)
}

// Mark says that the package that is added next is one of those that Marked gives.
func (x *IndexWriter) Mark() { x.isNext = true }

// Add adds a package. Of equal names and versions those of the lower rank come first, and else those that were added first. No slice
// is kept.
func (x *IndexWriter) Add(name, version []byte, rank byte, record []byte) error {
	if len(name) > math.MaxUint16 || len(version) > math.MaxUint16 {
		return fmt.Errorf("package %.80q: name or version is too long", name)
	}
	if len(record) > maxRecord || len(x.packed) > maxRecord || x.tooLong {
		return fmt.Errorf("package %q: its fields are too long", name)
	}
	if x.isNext {
		x.marked = append(x.marked, uint32(len(x.entries)))
		x.isNext = false
	}
	x.entries = append(x.entries, entry{uint32(len(x.keys)), x.at, uint16(len(name)), uint16(len(version)), rank})
	x.keys = append(append(x.keys, name...), version...)
	if err := x.write(binary.LittleEndian.AppendUint32(nil, uint32(len(record)))); err != nil {
		return err
	}
	if err := x.write(record); err != nil {
		return err
	}
	for i := len(x.offers) - 1; i >= 0 && x.offers[i].pkg == uint32(len(x.entries)-1); i-- {
		x.offers[i].at += x.at
	}
	err := x.write(x.packed)
	x.packed = x.packed[:0]
	return err
}

func (x *IndexWriter) write(b []byte) error {
	if uint64(x.at)+uint64(len(b)) > math.MaxInt32 {
		return errors.New("more than 2 GB of packages")
	}
	x.at += uint32(len(b))
	x.sum = crc32.Update(x.sum, castagnoli, b)
	_, err := x.w.Write(b)
	return err
}

// Close writes the directory. It doesn't close the writer below.
func (x *IndexWriter) Close() error {
	name := func(e entry) []byte { return x.keys[e.key:][:e.name] }
	version := func(e entry) string { return string(x.keys[e.key+uint32(e.name):][:e.version]) }
	order := make([]uint32, len(x.entries))
	for i := range order {
		order[i] = uint32(i)
	}
	slices.SortFunc(order, func(i, j uint32) int {
		a, b := x.entries[i], x.entries[j]
		if c := bytes.Compare(name(a), name(b)); c != 0 {
			return c
		}
		return cmp.Or(-x.compare(version(a), version(b)), cmp.Compare(a.rank, b.rank), cmp.Compare(i, j))
	})
	place := make([]uint32, len(order))
	for to, from := range order {
		place[from] = uint32(to)
	}
	for i := range x.offers {
		x.offers[i].pkg = place[x.offers[i].pkg]
	}
	slices.SortFunc(x.offers, func(a, b offerEntry) int {
		if a.hash != b.hash {
			return cmp.Compare(a.hash, b.hash)
		}
		return cmp.Or(cmp.Compare(a.pkg, b.pkg), cmp.Compare(a.at, b.at))
	})
	for i := range x.marked {
		x.marked[i] = place[x.marked[i]]
	}
	slices.Sort(x.marked)

	le, records := binary.LittleEndian, x.at
	buf := make([]byte, 0, 64<<10)
	var err error
	flush := func(force bool) {
		if err == nil && (force || len(buf) > cap(buf)-offerSize) {
			err = x.write(buf)
			buf = buf[:0]
		}
	}
	names := 0
	for _, i := range order {
		e := x.entries[i]
		buf = le.AppendUint32(le.AppendUint32(buf, e.record), uint32(names))
		names += len(binary.AppendUvarint(nil, uint64(e.name))) + int(e.name)
		flush(false)
	}
	for _, o := range x.offers {
		buf = le.AppendUint32(le.AppendUint32(le.AppendUint32(buf, o.hash), o.pkg), o.at)
		flush(false)
	}
	for _, m := range x.marked {
		buf = le.AppendUint32(buf, m)
		flush(false)
	}
	flush(true)
	for _, i := range order {
		buf = AppendString(buf, name(x.entries[i]))
		flush(len(buf) > 32<<10)
	}
	for _, n := range []uint32{uint32(len(x.entries)), uint32(len(x.offers)), uint32(len(x.marked)), records} {
		buf = le.AppendUint32(buf, n)
	}
	flush(true)
	if err != nil {
		return err
	}
	if _, err := x.w.Write(append(le.AppendUint32(nil, x.sum), x.form...)); err != nil {
		return err
	}
	return x.w.Flush()
}

// hashName is 32-bit FNV-1a.
func hashName[S string | []byte](name S) uint32 {
	h := uint32(2166136261)
	for i := range len(name) {
		h = (h ^ uint32(name[i])) * 16777619
	}
	return h
}

// An Index is an open file in the compact form. It is safe for concurrent use.
type Index struct {
	File io.ReaderAt

	records                  int64 // bytes of the file that are records and offers
	dir                      []byte
	packages, offers, marked int
}

// OpenIndex checks a file's checksum and shape, and that it is of a form. What doesn't hold wraps ErrDamagedIndex.
func OpenIndex(file io.ReaderAt, size int64, form string) (*Index, error) {
	var foot [indexFooter]byte
	if size < indexFooter {
		return nil, ErrDamagedIndex
	}
	if err := readAt(file, foot[:], size-indexFooter); err != nil {
		return nil, err
	}
	le := binary.LittleEndian
	x := &Index{File: file, records: int64(le.Uint32(foot[12:])),
		packages: int(le.Uint32(foot[0:])), offers: int(le.Uint32(foot[4:])), marked: int(le.Uint32(foot[8:]))}
	end := size - indexFooter
	if string(foot[20:]) != form || x.records > end || x.tables() > end-x.records {
		return nil, ErrDamagedIndex
	}
	sum := crc32.New(castagnoli)
	if _, err := io.Copy(sum, io.NewSectionReader(file, 0, x.records)); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamagedIndex, err)
	}
	x.dir = make([]byte, end-x.records)
	if err := readAt(file, x.dir, x.records); err != nil {
		return nil, err
	}
	sum.Write(x.dir)
	sum.Write(foot[:16])
	if sum.Sum32() != le.Uint32(foot[16:]) {
		return nil, ErrDamagedIndex
	}
	return x, nil
}

// tables is the length of the directory's tables in bytes, where its names begin.
func (x *Index) tables() int64 {
	return packageSize*int64(x.packages) + offerSize*int64(x.offers) + 4*int64(x.marked)
}

// readAt fills b. A file that fails is as damaged as one that is too short.
func readAt(file io.ReaderAt, b []byte, at int64) error {
	if n, err := file.ReadAt(b, at); n < len(b) {
		return fmt.Errorf("%w: %w", ErrDamagedIndex, err)
	}
	return nil
}

func (x *Index) u32(at int) uint32 { return binary.LittleEndian.Uint32(x.dir[at:]) }

// Len is how many packages there are. They are numbered from 0, sorted by name, then newest first, then by rank.
func (x *Index) Len() int { return x.packages }

// Name is that of a package.
func (x *Index) Name(pkg int) []byte {
	at := x.tables() + int64(x.u32(packageSize*pkg+4))
	if at > int64(len(x.dir)) {
		return nil
	}
	return NewDecoder(x.dir[at:]).Bytes()
}

// Record is what was added of a package.
func (x *Index) Record(pkg int) ([]byte, error) {
	if pkg < 0 || pkg >= x.packages {
		return nil, ErrDamagedIndex
	}
	at := int64(x.u32(packageSize * pkg))
	var head [4]byte
	if err := readAt(x.File, head[:], at); err != nil {
		return nil, err
	}
	n := int64(binary.LittleEndian.Uint32(head[:]))
	if n > maxRecord || at+4+n > x.records {
		return nil, ErrDamagedIndex
	}
	b := make([]byte, n)
	return b, readAt(x.File, b, at+4)
}

// Named gives the numbers of the packages of a name: from first until, but without, end.
func (x *Index) Named(name string) (first, end int) {
	first = sort.Search(x.packages, func(i int) bool { return string(x.Name(i)) >= name })
	for end = first; end < x.packages && string(x.Name(end)) == name; {
		end++
	}
	return first, end
}

// WithPrefix is Named for all names that begin with a prefix.
func (x *Index) WithPrefix(prefix string) (first, end int) {
	first = sort.Search(x.packages, func(i int) bool { return string(x.Name(i)) >= prefix })
	for end = first; end < x.packages && strings.HasPrefix(string(x.Name(end)), prefix); {
		end++
	}
	return first, end
}

// Names lists every package name once, sorted.
func (x *Index) Names() []string {
	out := make([]string, 0, x.packages)
	for i := range x.packages {
		if n := x.Name(i); len(out) == 0 || out[len(out)-1] != string(n) {
			out = append(out, string(n))
		}
	}
	return out
}

// An Offer is a package that has a name beside its own, as a version, which may be empty.
type Offer struct {
	Package int
	Version string
}

// Offers gives the packages that offer a name, in the order of their numbers.
func (x *Index) Offers(name string) ([]Offer, error) {
	hash, base := hashName(name), packageSize*x.packages
	i := sort.Search(x.offers, func(i int) bool { return x.u32(base+offerSize*i) >= hash })
	var out []Offer
	for ; i < x.offers && x.u32(base+offerSize*i) == hash; i++ {
		at := int64(x.u32(base + offerSize*i + 8))
		buf := make([]byte, min(maxOffer, max(0, x.records-at), int64(len(name))+256))
		for {
			if err := readAt(x.File, buf, at); err != nil {
				return nil, err
			}
			d := NewDecoder(buf)
			n, v := d.Bytes(), d.Bytes()
			if d.Damaged() && int64(len(buf)) < min(maxOffer, x.records-at) { // a version that long is rare
				buf = make([]byte, min(maxOffer, x.records-at))
				continue
			}
			if d.Damaged() {
				return nil, ErrDamagedIndex
			}
			if string(n) == name {
				out = append(out, Offer{int(x.u32(base + offerSize*i + 4)), string(v)})
			}
			break
		}
	}
	return out, nil
}

// Marked gives the numbers of the packages that were marked.
func (x *Index) Marked() []int {
	out := make([]int, x.marked)
	for i := range out {
		out[i] = int(x.u32(packageSize*x.packages + offerSize*x.offers + 4*i))
	}
	return out
}

// A Decoder reads what was put into a record with binary.AppendUvarint and AppendString. Behind the end it gives nothing, and is Damaged.
type Decoder struct {
	b   []byte
	bad bool
}

// NewDecoder reads b, which it keeps.
func NewDecoder(b []byte) *Decoder { return &Decoder{b: b} }

// AppendString appends a string's length and the string.
func AppendString[S string | []byte](b []byte, s S) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// Uvarint reads a number.
func (d *Decoder) Uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.b, d.bad = nil, true
		return 0
	}
	d.b = d.b[n:]
	return v
}

// Raw reads n bytes, none if there are fewer.
func (d *Decoder) Raw(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.b, d.bad = nil, true
		return nil
	}
	out := d.b[:n:n]
	d.b = d.b[n:]
	return out
}

// Bytes reads a string; what it gives is part of what is decoded.
func (d *Decoder) Bytes() []byte { return d.Raw(d.Uvarint()) }

// Damaged tells whether something was read that isn't there.
func (d *Decoder) Damaged() bool { return d.bad }
