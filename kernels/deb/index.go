package deb

import (
	"encoding/binary"
	"fmt"
	"io"

	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// indexMagic is the form of a compact Packages index: repo's, with essential packages marked and records as appendPkg makes them.
const indexMagic = "apt-idx3"

var errDamagedIndex = repo.ErrDamagedIndex

// An index is an open compact Packages index. It is safe for concurrent use.
type index struct{ *repo.Index }

// buildIndex turns the text of a Packages index into its compact form. Packages of other architectures are left out.
func buildIndex(w io.Writer, r io.Reader, arch string) error {
	x := repo.NewIndexWriter(w, indexMagic, compareVersions)
	var rec []byte
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
					x.Offer([]byte(g[0].name), []byte(g[0].ver))
				}
			}
		}
		if p.essential {
			x.Mark()
		}
		var rank byte
		if p.all {
			rank = 1
		}
		rec = appendPkg(rec[:0], p)
		return x.Add(s.name, s.version, rank, rec)
	})
	if err != nil {
		return err
	}
	return x.Close()
}

// appendPkg appends all of a package but its name.
func appendPkg(b []byte, p pkg) []byte {
	var flags byte
	if p.all {
		flags |= 1
	}
	if p.essential {
		flags |= 2
	}
	b = append(b, flags, p.priority)
	for _, s := range []string{p.version, p.depends, p.provides, p.filename} {
		b = repo.AppendString(b, s)
	}
	b = binary.AppendUvarint(b, uint64(p.size))
	return append(b, p.sha256[:]...)
}

// openIndex checks the compact form's checksum and shape.
func openIndex(file io.ReaderAt, size int64) (*index, error) {
	x, err := repo.OpenIndex(file, size, indexMagic)
	if err != nil {
		return nil, err
	}
	return &index{x}, nil
}

func (x *index) pkg(i int) (*pkg, error) {
	rec, err := x.Record(i)
	if err != nil {
		return nil, err
	}
	d := repo.NewDecoder(rec)
	p := &pkg{name: string(x.Name(i))}
	if flags := d.Raw(2); flags != nil {
		p.all, p.essential, p.priority = flags[0]&1 != 0, flags[0]&2 != 0, flags[1]
	}
	p.version, p.depends, p.provides, p.filename = string(d.Bytes()), string(d.Bytes()), string(d.Bytes()), string(d.Bytes())
	p.size = int64(d.Uvarint())
	copy(p.sha256[:], d.Raw(32))
	if d.Damaged() {
		return nil, errDamagedIndex
	}
	return p, nil
}

// withPrefix gives all packages whose names begin with prefix, in the index's order; exact asks for that very name.
func (x *index) withPrefix(prefix string, exact bool) ([]*pkg, error) {
	find := x.WithPrefix
	if exact {
		find = x.Named
	}
	var out []*pkg
	for i, end := find(prefix); i < end; i++ {
		p, err := x.pkg(i)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

// An offer is a package together with the version under which it provides some name.
type offer struct {
	*pkg
	as string // empty: without a version
}

func (x *index) providers(name string) ([]offer, error) {
	offers, err := x.Offers(name)
	if err != nil {
		return nil, err
	}
	var out []offer
	for _, o := range offers {
		p, err := x.pkg(o.Package)
		if err != nil {
			return nil, err
		}
		out = append(out, offer{p, o.Version})
	}
	return out, nil
}

func (x *index) essentials() ([]*pkg, error) {
	var out []*pkg
	for _, i := range x.Marked() {
		p, err := x.pkg(i)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}
