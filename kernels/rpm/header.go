package rpm

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strconv"
)

// The bounds of a header, the values of whose tags have maxEntries. A kernel's files take some 10 MB, and their signatures in the signature header as much again.
const (
	maxTags   = 1 << 16
	maxHeader = 64 << 20 // bytes
	leadSize  = 96
)

// Tags of the main header and of the signature header, and the types of their values
// (https://rpm-software-management.github.io/rpm/manual/tags.html, .../format_header.html).
const (
	tagName, tagVersion, tagRelease, tagEpoch                   = 1000, 1001, 1002, 1003
	tagArch, tagSourceRPM                                       = 1022, 1044
	tagFileSizes, tagFileModes, tagFileTimes, tagFileLinks      = 1028, 1030, 1034, 1036
	tagFileDevices, tagFileInodes                               = 1095, 1096
	tagProvideName, tagProvideFlags, tagProvideVersion          = 1047, 1112, 1113
	tagRequireFlags, tagRequireName, tagRequireVersion          = 1048, 1049, 1050
	tagDirIndexes, tagBaseNames, tagDirNames                    = 1116, 1117, 1118
	tagPayloadFormat, tagPayloadCompressor                      = 1124, 1125
	tagLongFileSizes, tagPayloadDigest, tagPayloadDigestAlgo    = 5008, 5092, 5093
	sigDSA, sigRSA, sigOpenPGP                                  = 267, 268, 278
	typeInt16, typeInt32, typeInt64                             = 3, 4, 5
	typeString, typeBinary, typeStringArray, typeTranslatedText = 6, 7, 8, 9
)

// A header is rpm's form of tagged values.
type header struct {
	raw  []byte // all of it, which is what is signed
	data []byte // the part that tags' offsets are into
	tags map[uint32]tagEntry
}

type tagEntry struct{ kind, at, count uint32 }

// readHeader reads a header: magic, number of tags, bytes of data, 16 bytes for each tag, data.
func readHeader(in io.Reader) (*header, error) {
	raw := make([]byte, 16, 4096)
	if _, err := io.ReadFull(in, raw); err != nil {
		return nil, noEOF(err)
	}
	if !bytes.Equal(raw[:8], []byte{0x8e, 0xad, 0xe8, 1, 0, 0, 0, 0}) {
		return nil, errors.New("a header is missing")
	}
	be := binary.BigEndian
	n, size := be.Uint32(raw[8:]), be.Uint32(raw[12:])
	if n > maxTags || size > maxHeader {
		return nil, fmt.Errorf("a header has %d tags of %d bytes; at most %d of %d are read", n, size, maxTags, maxHeader)
	}
	body := bytes.NewBuffer(raw) // grows with what comes, not with what is announced
	if got, err := io.CopyN(body, in, 16*int64(n)+int64(size)); err != nil {
		return nil, fmt.Errorf("a header ends after %d bytes: %w", got, noEOF(err))
	}
	h := &header{raw: body.Bytes(), tags: make(map[uint32]tagEntry, n)}
	h.data = h.raw[16+16*n:]
	for i := range n {
		e := h.raw[16+16*i:]
		tag, t := be.Uint32(e), tagEntry{be.Uint32(e[4:]), be.Uint32(e[8:]), be.Uint32(e[12:])}
		if _, twice := h.tags[tag]; twice {
			return nil, fmt.Errorf("tag %d comes twice in a header", tag)
		}
		if t.at > size || t.count > size-t.at {
			return nil, fmt.Errorf("tag %d is outside of its header", tag)
		}
		h.tags[tag] = t
	}
	return h, nil
}

// texts gives a value of strings, none if the tag is missing.
func (h *header) texts(tag uint32) ([]string, error) {
	t, ok := h.tags[tag]
	if !ok {
		return nil, nil
	}
	if t.kind != typeString && t.kind != typeStringArray && t.kind != typeTranslatedText || t.kind == typeString && t.count != 1 || t.count > maxEntries {
		return nil, fmt.Errorf("tag %d has type %d with %d values", tag, t.kind, t.count)
	}
	out := make([]string, 0, t.count)
	rest := h.data[t.at:]
	for range t.count {
		i := bytes.IndexByte(rest, 0)
		if i < 0 {
			return nil, fmt.Errorf("tag %d is cut", tag)
		}
		out = append(out, string(rest[:i]))
		rest = rest[i+1:]
	}
	return out, nil
}

// text gives the one string of a tag, "" if it is missing.
func (h *header) text(tag uint32) (string, error) {
	all, err := h.texts(tag)
	if err != nil || len(all) == 0 {
		return "", err
	}
	return all[0], nil
}

// numbers gives a value of unsigned numbers, none if the tag is missing.
func (h *header) numbers(tag uint32) ([]uint64, error) {
	t, ok := h.tags[tag]
	if !ok {
		return nil, nil
	}
	size, ok := map[uint32]int{typeInt16: 2, typeInt32: 4, typeInt64: 8}[t.kind]
	if !ok || t.count > maxEntries || size*int(t.count) > len(h.data)-int(t.at) {
		return nil, fmt.Errorf("tag %d has type %d with %d values", tag, t.kind, t.count)
	}
	out := make([]uint64, t.count)
	for i := range out {
		b := h.data[int(t.at)+size*i:]
		switch size {
		case 2:
			out[i] = uint64(binary.BigEndian.Uint16(b))
		case 4:
			out[i] = uint64(binary.BigEndian.Uint32(b))
		default:
			out[i] = binary.BigEndian.Uint64(b)
		}
	}
	return out, nil
}

// blob gives a value of bytes, nil if the tag is missing.
func (h *header) blob(tag uint32) ([]byte, error) {
	t, ok := h.tags[tag]
	if !ok {
		return nil, nil
	}
	if t.kind != typeBinary || int(t.count) > len(h.data)-int(t.at) {
		return nil, fmt.Errorf("tag %d has type %d with %d bytes", tag, t.kind, t.count)
	}
	return h.data[t.at:][:t.count], nil
}

// entries gives dependencies or what is provided: a name, how its version is meant, and the version.
func (h *header) entries(name, flags, version uint32) ([]depend, error) {
	names, err1 := h.texts(name)
	is, err2 := h.numbers(flags)
	versions, err3 := h.texts(version)
	if err := errors.Join(err1, err2, err3); err != nil {
		return nil, err
	}
	if len(is) != len(names) || len(versions) != len(names) {
		return nil, fmt.Errorf("tags %d, %d and %d are of different lengths", name, flags, version)
	}
	out := make([]depend, len(names))
	for i := range names {
		out[i] = depend{name: names[i]}
		if s := sense(is[i]>>1) & (less | greater | equal); s != 0 && versions[i] != "" {
			out[i].is, out[i].evr = s, splitEVR(versions[i])
		}
	}
	return out, nil
}

// requires gives what a package depends on and hasn't itself, sorted as in its header, each once; features of rpm aside.
func (h *header) requires() ([]string, error) {
	needs, err := h.entries(tagRequireName, tagRequireFlags, tagRequireVersion)
	if err != nil {
		return nil, err
	}
	has, err := h.entries(tagProvideName, tagProvideFlags, tagProvideVersion)
	if err != nil {
		return nil, err
	}
	provided := map[string][]depend{}
	for _, p := range has {
		provided[p.name] = append(provided[p.name], p)
	}
	seen := map[string]bool{}
	var out []string
next:
	for _, d := range needs {
		if bytes.HasPrefix([]byte(d.name), []byte("rpmlib(")) {
			continue
		}
		for _, p := range provided[d.name] {
			if overlap(p.evr, p.is, d.evr, d.is) {
				continue next
			}
		}
		text := d.String()
		if _, err := parseDepend(text); err != nil {
			return nil, err
		}
		if !seen[text] {
			seen[text] = true
			out = append(out, text)
		}
	}
	return out, nil
}

// identity gives a package's name, version and architecture.
func (h *header) identity() (name, version, arch string, err error) {
	var text [4]string
	for i, tag := range []uint32{tagName, tagVersion, tagRelease, tagArch} {
		if text[i], err = h.text(tag); err != nil {
			return "", "", "", err
		}
	}
	epoch, err := h.numbers(tagEpoch)
	if err != nil {
		return "", "", "", err
	}
	version = text[1] + "-" + text[2]
	if len(epoch) > 0 && epoch[0] != 0 {
		version = strconv.FormatUint(epoch[0], 10) + ":" + version
	}
	if _, binary := h.tags[tagSourceRPM]; !binary {
		return "", "", "", errors.New("it is a source package")
	}
	return text[0], version, text[3], errors.Join(validName(text[0]), validVersion(version), validName(text[3]))
}
