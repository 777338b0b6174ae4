package pacman

import (
	"archive/tar"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/internal/decompress"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// Bounds of a database. Arch's largest, extra, has 15000 packages, and 8 MB packed; the longest desc of a package is some 50 kB.
const (
	maxPacked    = 128 << 20 // bytes of the file
	maxText      = 1 << 30   // bytes of the tar
	maxPackages  = 500000
	maxProvided  = 2000000
	maxDesc      = 4 << 20  // bytes of what is said of a package
	maxSize      = 64 << 30 // bytes of a package
	maxSignature = 64 << 10 // bytes
)

// A pkg is what a database says of a package. Nothing of it is signed but the package.
type pkg struct {
	name, version, arch string
	file                string // name of the package's file, beside the database
	size                int64  // bytes of that
	sha256              [32]byte
	built               time.Time
	signature           []byte // of the file; empty where that has it beside it
	depends, provides   []string

	urls []string // of the file, by mirror
}

// indexForm is the form of the records below.
const indexForm = "pacman1\n"

// record is the compact form, less name and what is provided.
func (p *pkg) record() []byte {
	b := repo.AppendString(nil, p.version)
	b = repo.AppendString(repo.AppendString(b, p.arch), p.file)
	b = repo.AppendString(repo.AppendString(b, strconv.FormatInt(p.size, 10)), strconv.FormatInt(p.built.Unix(), 10))
	b = repo.AppendString(repo.AppendString(b, p.sha256[:]), p.signature)
	b = repo.AppendString(b, strings.Join(p.depends, "\n"))
	return repo.AppendString(b, strings.Join(p.provides, "\n"))
}

func readRecord(name string, b []byte) (*pkg, error) {
	d := repo.NewDecoder(b)
	text := func() string { return string(d.Bytes()) }
	lines := func() []string {
		if s := text(); s != "" {
			return strings.Split(s, "\n")
		}
		return nil
	}
	p := &pkg{name: name, version: text(), arch: text(), file: text()}
	size, serr := strconv.ParseInt(text(), 10, 64)
	built, berr := strconv.ParseInt(text(), 10, 64)
	copy(p.sha256[:], d.Bytes())
	p.size, p.built, p.signature = size, time.Unix(built, 0).UTC(), d.Bytes()
	p.depends, p.provides = lines(), lines()
	if d.Damaged() || serr != nil || berr != nil {
		return nil, repo.ErrDamagedIndex
	}
	return p, nil
}

// buildIndex writes the compact form of a database, a tar of NAME-VERSION/desc that may be compressed, and tells when the newest of its
// packages was built. Databases of before 2016 have dependencies in a file of their own, depends.
func buildIndex(w io.Writer, database []byte) (newest time.Time, err error) {
	text, err := decompress.NewReader(bytes.NewReader(database))
	if err != nil {
		return newest, err
	}
	defer text.Close()
	end := &ending{r: &repo.Capped{R: text, N: maxText}}
	out := repo.NewIndexWriter(w, indexForm, compareVersions)
	var (
		in     = tar.NewReader(end)
		folder string
		one    *pkg

		packages, provided int
		buf                []byte
	)
	flush := func() error {
		if one == nil {
			return nil
		}
		if err := one.check(); err != nil {
			return fmt.Errorf("%.200q: %w", folder, err)
		}
		packages++
		if provided += len(one.provides); packages > maxPackages || provided > maxProvided {
			return errors.New("it has too many packages, or they provide too much")
		}
		if one.built.After(newest) {
			newest = one.built
		}
		for _, s := range one.provides {
			if r, ok := parseRelation(s); ok && (r.op == "" || r.op == "=") {
				out.Offer([]byte(r.name), []byte(r.version))
			}
		}
		err := out.Add([]byte(one.name), []byte(one.version), 0, one.record())
		one = nil
		return err
	}
	for {
		h, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return newest, err
		}
		dir, file := path.Split(path.Clean(h.Name))
		if h.Typeflag != tar.TypeReg || file != "desc" && file != "depends" {
			continue
		}
		if dir != folder {
			if err := flush(); err != nil {
				return newest, err
			}
			folder = dir
		}
		if one == nil {
			one = &pkg{}
		}
		if h.Size > maxDesc {
			return newest, fmt.Errorf("%.200q has %d bytes", h.Name, h.Size)
		}
		buf = slices.Grow(buf[:0], int(h.Size))[:h.Size]
		if _, err := io.ReadFull(in, buf); err != nil {
			return newest, fmt.Errorf("%.200q: %w", h.Name, err)
		}
		if err := one.read(buf); err != nil {
			return newest, fmt.Errorf("%.200q: %w", h.Name, err)
		}
	}
	if err := flush(); err != nil {
		return newest, err
	}
	if err := end.reached(); err != nil {
		return newest, err
	}
	return newest, out.Close()
}

// read takes a desc or depends: fields in capitals between percent signs, each with its values below it, and a blank line after those.
func (p *pkg) read(text []byte) error {
	var field []byte
	for len(text) > 0 {
		line, rest, _ := bytes.Cut(text, newline)
		text = rest
		switch {
		case len(line) == 0:
			field = nil
			continue
		case field == nil:
			field = line
			continue
		}
		if err := p.value(field, line); err != nil {
			return fmt.Errorf("%.100q is %.100q: %w", field, line, err)
		}
	}
	return nil
}

var newline = []byte("\n")

// value takes a value of a field, if that is of use.
func (p *pkg) value(field, value []byte) error {
	number := func(what string, least, most int64) (int64, error) {
		n, err := strconv.ParseInt(string(value), 10, 64)
		if err != nil || n < least || n > most {
			return 0, errors.New(what)
		}
		return n, nil
	}
	var err error
	switch string(field) {
	case "%NAME%":
		p.name = string(value)
	case "%VERSION%":
		p.version = string(value)
	case "%ARCH%":
		p.arch = string(value)
	case "%FILENAME%":
		p.file = string(value)
	case "%CSIZE%":
		p.size, err = number("no size of a package", 1, maxSize)
	case "%SHA256SUM%":
		if n, err := hex.Decode(p.sha256[:], value[:min(len(value), 2*len(p.sha256))]); err != nil || n != len(p.sha256) || len(value) != 2*n {
			return errors.New("no SHA-256")
		}
	case "%BUILDDATE%":
		var n int64
		n, err = number("no time", 0, 1<<40)
		p.built = time.Unix(n, 0).UTC()
	case "%PGPSIG%":
		p.signature, err = base64.StdEncoding.AppendDecode(nil, value)
		if err != nil || len(p.signature) > maxSignature {
			return errors.New("no signature")
		}
	case "%DEPENDS%":
		p.depends = append(p.depends, string(value))
	case "%PROVIDES%":
		p.provides = append(p.provides, string(value))
	}
	return err
}

// check refuses what can't be used, or would be dangerous to.
func (p *pkg) check() error {
	switch {
	case !isName(p.name) || strings.Contains(p.name, "/"):
		return fmt.Errorf("%.100q is no name of a package", p.name)
	case !isVersion(p.version):
		return fmt.Errorf("%.100q is no version", p.version)
	case !isName(p.file) || strings.Contains(p.file, "/") || !onlyOf(p.file, "@._+-:~^"):
		return fmt.Errorf("%.100q is no name of a file", p.file)
	case p.arch == "" || !onlyOf(p.arch, "_"):
		return fmt.Errorf("%.100q is no architecture", p.arch)
	case p.size == 0 || p.sha256 == [32]byte{}:
		return errors.New("neither size nor SHA-256 of the package is said")
	}
	return nil
}

// ending sees that a tar isn't cut off between two of its files: its end is two blocks of zeros at least.
type ending struct {
	r    io.Reader
	zero int // bytes that were last read
}

func (e *ending) Read(b []byte) (int, error) {
	n, err := e.r.Read(b)
	i := n
	for i > 0 && b[i-1] == 0 {
		i--
	}
	if e.zero += n; i > 0 {
		e.zero = n - i
	}
	return n, err
}

// reached reads on to the end.
func (e *ending) reached() error {
	if _, err := io.Copy(io.Discard, e); err != nil {
		return err
	}
	if e.zero < 1024 {
		return io.ErrUnexpectedEOF
	}
	return nil
}
