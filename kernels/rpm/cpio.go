package rpm

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
)

// The bounds of a payload.
const (
	maxEntriesHeld = 1 << 16 // names of hard links whose content has not come yet
	trailer        = "TRAILER!!!"
)

// Types of files in a mode (stat(2), which cpio has them from).
const (
	modeType                                                   = 0o170000
	modeFifo, modeChar, modeDir, modeBlock, modeFile, modeLink = 0o010000, 0o020000, 0o040000, 0o060000, 0o100000, 0o120000
)

// A member is one file of a payload.
type member struct {
	name  string // "usr/bin/sh"
	mode  uint64
	mtime int64
	size  int64
	set   uint64 // the same for hard links of one file, 0 for what has no others
	links int    // how many there are of them
}

// A converter turns a cpio archive, "newc" or rpm's stripped form of it, into a tar stream. Owners are left out: all is root's. Of
// hard links, whose content comes with the last of them, the one that has it comes first.
type converter struct {
	in      io.Reader
	at      int64    // bytes read
	list    []member // of the header, for the stripped form
	out     bytes.Buffer
	left    int64 // bytes of content that go to the reader as they are
	pad     int64 // behind them, in the tar stream
	waiting map[uint64][]member
	order   []uint64 // of waiting
	held    int
	first   map[uint64]string // names of the files that hard links link to
	after   []member          // links that come behind the content
	ended   bool              // the archive
	done    bool              // the tar stream
}

func newConverter(in io.Reader, list []member) *converter {
	return &converter{in: in, list: list, waiting: map[uint64][]member{}, first: map[uint64]string{}}
}

func (c *converter) Read(b []byte) (int, error) {
	if len(b) == 0 {
		return 0, nil
	}
	for c.out.Len() == 0 {
		switch {
		case c.left > 0:
			if int64(len(b)) > c.left {
				b = b[:c.left]
			}
			n, err := c.in.Read(b)
			c.at += int64(n)
			if c.left -= int64(n); c.left > 0 {
				err = noEOF(err)
			} else if err == io.EOF {
				err = nil
			}
			return n, err
		case c.pad > 0:
			c.out.Write(make([]byte, c.pad))
			c.pad = 0
		case len(c.after) > 0:
			m := c.after[0]
			c.after = c.after[1:]
			if err := c.header(m, tar.TypeLink, c.first[m.set]); err != nil {
				return 0, err
			}
		case c.done:
			return 0, io.EOF
		case c.ended:
			if err := c.end(); err != nil {
				return 0, err
			}
		default:
			if err := c.next(); err != nil {
				return 0, err
			}
		}
	}
	return c.out.Read(b)
}

// full reads n bytes.
func (c *converter) full(b []byte) error {
	n, err := io.ReadFull(c.in, b)
	c.at += int64(n)
	return noEOF(err)
}

// align skips to a multiple of 4.
func (c *converter) align() error {
	var b [3]byte
	return c.full(b[:-c.at&3])
}

// next reads one member's header and puts its tar header out.
func (c *converter) next() error {
	if err := c.align(); err != nil {
		return err
	}
	m, err := c.member()
	if err != nil {
		return fmt.Errorf("cpio: %w", err)
	}
	if m == nil {
		c.ended = true
		return nil
	}
	if m.name == "" { // the root
		if m.mode&modeType != modeDir || m.size != 0 {
			return errors.New("cpio: a file without a name")
		}
		return nil
	}
	switch m.mode & modeType {
	case modeFile:
		return c.file(*m)
	case modeLink:
		if m.size <= 0 || m.size > maxWord {
			return fmt.Errorf("link %q of %d bytes", m.name, m.size)
		}
		to := make([]byte, m.size)
		if err := c.full(to); err != nil {
			return err
		}
		if bytes.IndexByte(to, 0) >= 0 {
			return fmt.Errorf("link %q points to %.80q", m.name, to)
		}
		return c.header(*m, tar.TypeSymlink, string(to))
	}
	kind, ok := map[uint64]byte{modeDir: tar.TypeDir, modeFifo: tar.TypeFifo, modeChar: tar.TypeChar, modeBlock: tar.TypeBlock}[m.mode&modeType]
	if !ok {
		return fmt.Errorf("%q is of an unknown kind, mode %o", m.name, m.mode)
	}
	if m.size != 0 {
		return fmt.Errorf("%q has %d bytes, mode %o", m.name, m.size, m.mode)
	}
	return c.header(*m, kind, "")
}

func (c *converter) file(m member) error {
	if m.set == 0 {
		return c.content(m)
	}
	if to, ok := c.first[m.set]; ok {
		if m.size > 0 {
			return c.content(m)
		}
		return c.header(m, tar.TypeLink, to)
	}
	waiting := c.waiting[m.set]
	if m.size == 0 && len(waiting)+1 < m.links {
		if c.held++; c.held > maxEntriesHeld {
			return fmt.Errorf("more than %d hard links without content", maxEntriesHeld)
		}
		if waiting == nil {
			c.order = append(c.order, m.set)
		}
		c.waiting[m.set] = append(waiting, m)
		return nil
	}
	return c.withLinks(m, waiting)
}

// withLinks puts out a file, and behind it the links to it.
func (c *converter) withLinks(m member, links []member) error {
	c.first[m.set] = m.name
	delete(c.waiting, m.set)
	c.after = append(c.after, links...)
	return c.content(m)
}

func (c *converter) content(m member) error {
	c.left, c.pad = m.size, -m.size&511
	return c.header(m, tar.TypeReg, "")
}

// end puts out one file of what still waits for content, which is empty then, or else the end of the tar stream.
func (c *converter) end() error {
	for len(c.order) > 0 {
		set := c.order[0]
		c.order = c.order[1:]
		if all := c.waiting[set]; len(all) > 0 {
			return c.withLinks(all[0], all[1:])
		}
	}
	c.done = true
	c.out.Write(make([]byte, 1024))
	return nil
}

func (c *converter) header(m member, kind byte, link string) error {
	h := &tar.Header{Typeflag: kind, Name: m.name, Linkname: link, Mode: int64(m.mode & 0o7777), ModTime: time.Unix(m.mtime, 0)}
	switch kind {
	case tar.TypeReg:
		h.Size = m.size
	case tar.TypeDir:
		h.Name += "/"
	}
	if err := tar.NewWriter(&c.out).WriteHeader(h); err != nil {
		return fmt.Errorf("%q: %w", m.name, err)
	}
	return nil
}

// member reads the header of one, nil for the end of the archive. Numbers are of 8 hexadecimal digits.
func (c *converter) member() (*member, error) {
	var magic [6]byte
	if err := c.full(magic[:]); err != nil {
		return nil, err
	}
	switch string(magic[:]) {
	case "070701":
	case "07070X":
		return c.stripped()
	default:
		return nil, fmt.Errorf("magic %q is not known", magic)
	}
	var text [13 * 8]byte
	if err := c.full(text[:]); err != nil {
		return nil, err
	}
	var f [13]uint64 // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
	for i := range f {
		n, err := strconv.ParseUint(string(text[8*i:8*i+8]), 16, 32)
		if err != nil {
			return nil, fmt.Errorf("damaged header: %w", err)
		}
		f[i] = n
	}
	if f[11] < 2 || f[11] > maxWord {
		return nil, fmt.Errorf("a name of %d bytes", f[11])
	}
	name := make([]byte, f[11])
	if err := c.full(name); err != nil {
		return nil, err
	}
	name, end := name[:len(name)-1], name[len(name)-1]
	if err := c.align(); err != nil {
		return nil, err
	}
	if end != 0 || bytes.IndexByte(name, 0) >= 0 {
		return nil, fmt.Errorf("name %.80q is damaged", name)
	}
	if string(name) == trailer {
		return nil, nil
	}
	m := &member{mode: f[1], mtime: int64(f[5]), size: int64(f[6])}
	if f[4] > 1 && f[1]&modeType == modeFile {
		m.set, m.links = 1<<63|(f[7]&0x7fff)<<48|(f[8]&0xffff)<<32|f[0], int(f[4])
	}
	var err error
	m.name, err = cleanName(string(name))
	return m, err
}

// stripped reads the header of a member in rpm's own form, which only numbers a file of the package's header.
func (c *converter) stripped() (*member, error) {
	var text [8]byte
	if err := c.full(text[:]); err != nil {
		return nil, err
	}
	i, err := strconv.ParseUint(string(text[:]), 16, 32)
	if err != nil {
		return nil, fmt.Errorf("damaged header: %w", err)
	}
	if i >= uint64(len(c.list)) {
		return nil, fmt.Errorf("file %d of %d", i, len(c.list))
	}
	if err := c.align(); err != nil {
		return nil, err
	}
	m := c.list[i]
	m.name, err = cleanName(m.name)
	return &m, err
}

// cleanName makes a name relative, and refuses one that isn't clean. The root has none.
func cleanName(name string) (string, error) {
	name = strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(name, "."), "/"), "/")
	if name == "" {
		return "", nil
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == "" || part == "." || part == ".." {
			return "", fmt.Errorf("name %.200q is not clean", name)
		}
	}
	return name, nil
}

// fileList gives the files of a header, in its order. It is nil if some of it isn't there, as old packages have it. Of hard links only the
// last has a size: that is where the content is.
func (h *header) fileList() ([]member, error) {
	base, err1 := h.texts(tagBaseNames)
	dirs, err2 := h.texts(tagDirNames)
	in, err3 := h.numbers(tagDirIndexes)
	modes, err4 := h.numbers(tagFileModes)
	times, err5 := h.numbers(tagFileTimes)
	sizes, err6 := h.numbers(tagLongFileSizes)
	dev, err7 := h.numbers(tagFileDevices)
	ino, err8 := h.numbers(tagFileInodes)
	if err := errors.Join(err1, err2, err3, err4, err5, err6, err7, err8); err != nil {
		return nil, err
	}
	if sizes == nil {
		var err error
		if sizes, err = h.numbers(tagFileSizes); err != nil {
			return nil, err
		}
	}
	n := len(base)
	for _, more := range []int{len(in), len(modes), len(times), len(sizes), len(dev), len(ino)} {
		if more != n {
			return nil, nil
		}
	}
	type inode struct{ dev, ino uint64 }
	out, sets := make([]member, n), map[inode][]int{}
	for i := range out {
		if in[i] >= uint64(len(dirs)) || sizes[i] > 1<<62 {
			return nil, fmt.Errorf("file %d of the header is damaged", i)
		}
		out[i] = member{name: dirs[in[i]] + base[i], mode: modes[i], mtime: int64(times[i]), size: int64(sizes[i])}
		switch modes[i] & modeType {
		case modeFile:
			sets[inode{dev[i], ino[i]}] = append(sets[inode{dev[i], ino[i]}], i)
		case modeDir, modeChar, modeBlock, modeFifo:
			out[i].size = 0
		}
	}
	for _, set := range sets {
		if len(set) < 2 {
			continue
		}
		for _, i := range set {
			out[i].set, out[i].links = uint64(set[0])+1, len(set)
			if i != set[len(set)-1] {
				out[i].size = 0
			}
		}
	}
	return out, nil
}
