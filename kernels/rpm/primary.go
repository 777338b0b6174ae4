package rpm

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// A pkg is one package of a primary list.
type pkg struct {
	name     string
	version  string // [EPOCH:]VERSION-RELEASE; no epoch where it is 0
	arch     string // "x86_64", "noarch"
	built    int64  // seconds since 1970; 0 where it isn't said
	path     string // relative to the repository's URL
	size     int64  // bytes
	digest   v1.Hash
	requires string // dependencies as parseDepend takes them, each with a line break after it
}

// A listed is what the primary list says of a package. Its slices are only valid until the next one is read.
type listed struct {
	name, version, arch []byte
	sumType, sum        []byte
	path                []byte
	size, built         int64
	requires            []byte  // each with a line break after it; rpm's own features left out
	offers              []offer // what it provides, and its files
	offered             []byte  // names and versions of the offers
	has                 listing // what was seen of it
}

// An offer is a name with a version, "", "2:1.0-1", or ">=1.0" for the rare one that isn't one version. Both are in listed.offered.
type offer struct{ at, name, version int }

type listing byte

const (
	hasName listing = 1 << iota
	hasArch
	hasVersion
	hasSum
	hasSize
	hasPath
	hasTime
	hasFormat
	hasAll = hasName | hasArch | hasVersion | hasSum | hasSize | hasPath
)

// maxEntries bounds how many dependencies, provides and files a package may have. Kernels have some ten thousand provides.
const (
	maxEntries  = 1 << 20
	maxRequires = 1 << 20 // bytes of what a package depends on
)

// maxOffered bounds their names and versions together, in bytes. Those of a kernel have 1 MB.
const maxOffered = 8 << 20

// readPrimary calls each for every package of a primary list, uncompressed (namespace http://linux.duke.edu/metadata/common, as
// createrepo_c writes it: with the prefix rpm for what is rpm's). If the list says how many packages it has, it must have as many. Of
// packages whose architecture isn't wanted nothing else is checked.
func readPrimary(r io.Reader, want func(arch []byte) bool, each func(*listed) error) error {
	s := newScanner(r)
	t, err := s.next(nil)
	if err != nil {
		return noEOF(err)
	}
	if t != startTag || string(s.name()) != "metadata" {
		return errors.New("it is no list of packages: <metadata> is missing")
	}
	stated := -1
	count, err := s.attr("packages")
	if err != nil {
		return err
	}
	if count != nil {
		if stated, err = strconv.Atoi(string(count)); err != nil || stated < 0 {
			return fmt.Errorf("%q is no number of packages", count)
		}
	}
	var p listed
	n := 0
	for {
		t, err := s.next(nil)
		if err != nil {
			return err
		}
		if t == endTag {
			break
		}
		if string(s.name()) != "package" {
			if err := s.skip(); err != nil {
				return err
			}
			continue
		}
		n++
		p.reset()
		ok, err := p.read(s, want)
		if err == nil && ok {
			if err = p.check(); err == nil {
				err = each(&p)
			}
		}
		if err != nil {
			if len(p.name) > 0 {
				return fmt.Errorf("package %.80q: %w", p.name, err)
			}
			return fmt.Errorf("package %d: %w", n, err)
		}
	}
	if t, err := s.next(nil); err != nil {
		return err
	} else if t != eof {
		return errors.New("something follows </metadata>")
	}
	if stated >= 0 && stated != n {
		return fmt.Errorf("it has %d packages and says %d", n, stated)
	}
	return nil
}

func (p *listed) reset() {
	*p = listed{name: p.name[:0], version: p.version[:0], arch: p.arch[:0], sumType: p.sumType[:0], sum: p.sum[:0], path: p.path[:0],
		requires: p.requires[:0], offers: p.offers[:0], offered: p.offered[:0]}
}

// once marks a part of a package as seen.
func (p *listed) once(part listing, name string) error {
	if p.has&part != 0 {
		return fmt.Errorf("<%s> comes twice", name)
	}
	p.has |= part
	return nil
}

// read reads a <package>. ok is false for one of another architecture.
func (p *listed) read(s *scanner, want func(arch []byte) bool) (ok bool, err error) {
	kind, err := s.attr("type")
	if err != nil {
		return false, err
	}
	if string(kind) != "rpm" {
		return false, s.skip()
	}
	ok = true
	for {
		t, err := s.next(nil)
		if err != nil {
			return false, err
		}
		if t == endTag {
			return ok, nil
		}
		if !ok {
			if err := s.skip(); err != nil {
				return false, err
			}
			continue
		}
		switch string(s.name()) {
		case "name":
			if err = p.once(hasName, "name"); err == nil {
				err = s.into(&p.name)
			}
		case "arch":
			if err = p.once(hasArch, "arch"); err == nil {
				err = s.into(&p.arch)
			}
			ok = want(p.arch)
		case "version":
			if err = p.once(hasVersion, "version"); err == nil {
				var e entry
				if err = e.read(s); err == nil {
					p.version = e.appendEVR(p.version)
					if len(e.rel) == 0 {
						err = errors.New("no release")
					}
				}
			}
			err = errors.Join(err, s.skip())
		case "checksum":
			if err = p.once(hasSum, "checksum"); err == nil {
				var kind []byte
				if kind, err = s.attr("type"); err == nil {
					p.sumType = append(p.sumType, kind...)
					err = s.into(&p.sum)
				}
			}
		case "size":
			err = p.once(hasSize, "size")
			err = errors.Join(err, s.number("package", &p.size), s.skip())
		case "time":
			err = p.once(hasTime, "time")
			err = errors.Join(err, s.number("build", &p.built), s.skip())
		case "location":
			err = p.once(hasPath, "location")
			err = errors.Join(err, s.eachAttr(func(name, value []byte) error {
				switch string(name) {
				case "href":
					p.path = append(p.path, value...)
				case "xml:base":
					return fmt.Errorf("its file is elsewhere: xml:base=%.200q", value)
				}
				return nil
			}), s.skip())
		case "format":
			if err = p.once(hasFormat, "format"); err == nil {
				err = p.format(s)
			}
		default:
			err = s.skip()
		}
		if err != nil {
			return false, err
		}
	}
}

// into appends an element's text.
func (s *scanner) into(b *[]byte) error {
	text, err := s.content()
	*b = append(*b, text...)
	return err
}

// number reads an attribute of the last start tag, if it is there.
func (s *scanner) number(name string, n *int64) error {
	v, err := s.attr(name)
	if err != nil || v == nil {
		return err
	}
	if *n, err = strconv.ParseInt(string(v), 10, 64); err != nil || *n < 0 {
		return fmt.Errorf("%s=%.40q is no number", name, v)
	}
	return nil
}

func (p *listed) format(s *scanner) error {
	for {
		t, err := s.next(nil)
		if err != nil || t == endTag {
			return err
		}
		switch string(s.name()) {
		case "rpm:requires":
			err = p.entries(s, p.require)
		case "rpm:provides":
			err = p.entries(s, p.provide)
		case "file":
			at := len(p.offered)
			if err = s.into(&p.offered); err == nil {
				if bytes.HasPrefix(p.offered[at:], []byte("/")) {
					err = p.offer(at, len(p.offered))
				} else {
					err = fmt.Errorf("file %.200q isn't absolute", p.offered[at:])
				}
			}
		default:
			err = s.skip()
		}
		if err != nil {
			return err
		}
	}
}

func (p *listed) entries(s *scanner, add func(*entry) error) error {
	for {
		t, err := s.next(nil)
		if err != nil || t == endTag {
			return err
		}
		if string(s.name()) == "rpm:entry" {
			var e entry
			if err := e.read(s); err != nil {
				return err
			}
			if err := add(&e); err != nil {
				return err
			}
		}
		if err := s.skip(); err != nil {
			return err
		}
	}
}

// An entry is a dependency, or a provided name, in its attributes.
type entry struct {
	name, epoch, ver, rel []byte
	is                    sense
}

func (e *entry) read(s *scanner) error {
	return s.eachAttr(func(name, value []byte) error {
		switch string(name) {
		case "name":
			e.name = value
		case "epoch":
			e.epoch = value
		case "ver":
			e.ver = value
		case "rel":
			e.rel = value
		case "flags":
			switch string(value) {
			case "EQ":
				e.is = equal
			case "LT":
				e.is = less
			case "LE":
				e.is = less | equal
			case "GT":
				e.is = greater
			case "GE":
				e.is = greater | equal
			default:
				return fmt.Errorf("flags %.40q are not known", value)
			}
		}
		return nil
	})
}

// appendEVR appends the version as rpm writes it.
func (e *entry) appendEVR(b []byte) []byte {
	if len(e.epoch) > 0 && string(e.epoch) != "0" {
		b = append(append(b, e.epoch...), ':')
	}
	b = append(b, e.ver...)
	if len(e.rel) > 0 {
		b = append(append(b, '-'), e.rel...)
	}
	return b
}

// require adds a dependency, unless it is on a feature of rpm. Whether it can be read is seen when somebody wants its package.
func (p *listed) require(e *entry) error {
	if bytes.HasPrefix(e.name, []byte("rpmlib(")) {
		return nil
	}
	at := len(p.requires)
	p.requires = append(p.requires, e.name...)
	if e.is != 0 {
		p.requires = append(append(append(p.requires, ' '), e.is.String()...), ' ')
		p.requires = e.appendEVR(p.requires)
	}
	if len(p.requires) == at || bytes.IndexByte(p.requires[at:], '\n') >= 0 || len(p.requires) > maxRequires {
		return fmt.Errorf("dependency %.200q", p.requires[at:])
	}
	p.requires = append(p.requires, '\n')
	return nil
}

// provide adds what is provided, unless it is nothing that a dependency can name.
func (p *listed) provide(e *entry) error {
	at := len(p.offered)
	p.offered = append(p.offered, e.name...)
	end := len(p.offered)
	if e.is != 0 {
		if e.is != equal {
			p.offered = append(p.offered, e.is.String()...)
		}
		p.offered = e.appendEVR(p.offered)
	}
	if plainWord(e.name) != nil || len(p.offered) > end && plainWord(p.offered[end:]) != nil {
		p.offered = p.offered[:at]
		return nil
	}
	return p.offer(at, end)
}

// offer adds what was appended to offered: a name up to end, then a version.
func (p *listed) offer(at, end int) error {
	if len(p.offers) == maxEntries || len(p.offered) > maxOffered {
		return errors.New("too many provides and files")
	}
	if end-at > maxWord || len(p.offered)-end > maxWord {
		return fmt.Errorf("%.40q… is longer than %d bytes", p.offered[at:], maxWord)
	}
	p.offers = append(p.offers, offer{at, end - at, len(p.offered) - end})
	return nil
}

// plainWord is checkWord for bytes.
func plainWord(b []byte) error {
	if len(b) == 0 || len(b) > maxWord {
		return checkWord(string(b[:min(len(b), maxWord+1)]))
	}
	for _, c := range b {
		if c <= ' ' || c == 0x7f {
			return checkWord(string(b))
		}
	}
	return nil
}

// check refuses a package that isn't whole.
func (p *listed) check() error {
	if p.has&hasAll != hasAll {
		return errors.New("name, arch, version, checksum, size or location is missing")
	}
	if err := validName(string(p.name)); err != nil {
		return err
	}
	if err := validName(string(p.arch)); err != nil {
		return err
	}
	if err := validVersion(string(p.version)); err != nil {
		return err
	}
	if p.size <= 0 {
		return fmt.Errorf("%d bytes are no size", p.size)
	}
	if _, err := parseSum(string(p.sumType), string(p.sum)); err != nil {
		return err
	}
	return validPath(string(p.path))
}

// parseSum reads a checksum element, of SHA-256 or SHA-512.
func parseSum(kind, sum string) (v1.Hash, error) {
	size := 0
	switch kind {
	case "sha256":
		size = 32
	case "sha512":
		size = 64
	default:
		return v1.Hash{}, fmt.Errorf("checksum type %.40q isn't taken: only sha256 and sha512 are", kind)
	}
	if b, err := hex.DecodeString(sum); err != nil || len(b) != size {
		return v1.Hash{}, fmt.Errorf("%.140q is no %s", sum, kind)
	}
	return v1.Hash{Algorithm: kind, Hex: strings.ToLower(sum)}, nil
}

// validName refuses what no package or architecture is called.
func validName(s string) error {
	ok := s != "" && len(s) <= 255
	for i := range len(s) {
		c := s[i]
		ok = ok && (isLetter(c) || isDigit(c) || i > 0 && strings.IndexByte("+-._", c) >= 0 || c == '_')
	}
	if !ok {
		return fmt.Errorf("%.80q is no name", s)
	}
	return nil
}

// validVersion refuses what is no [EPOCH:]VERSION-RELEASE.
func validVersion(s string) error {
	ok := len(s) <= 255
	for i := range len(s) {
		c := s[i]
		ok = ok && (isLetter(c) || isDigit(c) || strings.IndexByte("+-._~^:", c) >= 0)
	}
	v := splitEVR(s)
	ok = ok && v.version != "" && v.release != "" && strings.IndexByte(v.version+v.release, ':') < 0 && (v.epoch == "") == (strings.IndexByte(s, ':') < 0) &&
		strings.IndexByte(v.version, '-') < 0
	if !ok {
		return fmt.Errorf("%.80q is no version", s)
	}
	return nil
}

// validPath refuses what would leave a repository or could not be put into a URL as it is.
func validPath(s string) error {
	if s == "" || len(s) > maxWord {
		return errors.New("no file name")
	}
	for i := range len(s) {
		c := s[i]
		if !(isLetter(c) || isDigit(c) || strings.IndexByte("/.+-~_:%=,@^", c) >= 0) {
			return fmt.Errorf("file name %.200q has unusual characters", s)
		}
	}
	for part := range strings.SplitSeq(s, "/") {
		if part == "" || part == "." || part == ".." {
			return fmt.Errorf("file name %.200q is not relative and clean", s)
		}
	}
	return nil
}
