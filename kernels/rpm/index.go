package rpm

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// indexForm is the form of a compact primary list: repo's, with records of rpm packages.
const indexForm = "rpm-idx1"

var errDamagedIndex = repo.ErrDamagedIndex

// An index is an open compact primary list. It is safe for concurrent use.
type index struct {
	*repo.Index
	arch string // "x86_64"
}

// buildIndex turns the text of a primary list, uncompressed, into its compact form. Packages of other architectures are left out, but
// for those of all ("noarch"). What packages provide under their own name and version is left out, too: providers knows.
func buildIndex(w io.Writer, text io.Reader, arch string) error {
	x := repo.NewIndexWriter(w, indexForm, compareVersions)
	var rec []byte
	isa := isaSuffix(arch)
	err := readPrimary(text, func(a []byte) bool { return string(a) == arch || string(a) == noarch }, func(p *listed) error {
		for _, o := range p.offers {
			name, version := p.offered[o.at:o.at+o.name], p.offered[o.at+o.name:o.at+o.name+o.version]
			own := len(name) >= len(p.name) && string(name[:len(p.name)]) == string(p.name) && string(version) == string(p.version)
			if own && (len(name) == len(p.name) || string(name[len(p.name):]) == isa && string(p.arch) == arch) {
				continue
			}
			x.Offer(name, version)
		}
		rec = p.appendTo(rec[:0])
		var rank byte
		if string(p.arch) == noarch {
			rank = 1
		}
		return x.Add(p.name, p.version, rank, rec)
	})
	if err != nil {
		return err
	}
	return x.Close()
}

const noarch = "noarch"

// isaSuffix is what rpm puts behind a package's name to say its instruction set, "(x86-64)"; rpm's macro _isa.
func isaSuffix(arch string) string {
	switch arch {
	case "x86_64":
		return "(x86-64)"
	case "aarch64":
		return "(aarch-64)"
	case "ppc64le":
		return "(ppc-64)"
	case "s390x":
		return "(s390-64)"
	case "riscv64":
		return "(riscv-64)"
	case "loongarch64":
		return "(loongarch-64)"
	}
	return "(" + arch + ")"
}

// appendTo appends all of a package but its name.
func (p *listed) appendTo(b []byte) []byte {
	b = repo.AppendString(repo.AppendString(b, p.version), p.arch)
	b = binary.AppendUvarint(binary.AppendUvarint(b, uint64(p.built)), uint64(p.size))
	b = append(b, byte(len(p.sum)/2))
	b, _ = hex.AppendDecode(b, p.sum)
	return repo.AppendString(repo.AppendString(b, p.path), p.requires)
}

// openIndex checks the compact form's checksum and shape.
func openIndex(file io.ReaderAt, size int64, arch string) (*index, error) {
	x, err := repo.OpenIndex(file, size, indexForm)
	if err != nil {
		return nil, err
	}
	return &index{x, arch}, nil
}

func (x *index) pkg(i int) (*pkg, error) {
	rec, err := x.Record(i)
	if err != nil {
		return nil, err
	}
	d := repo.NewDecoder(rec)
	p := &pkg{name: string(x.Name(i))}
	p.version, p.arch = string(d.Bytes()), string(d.Bytes())
	p.built, p.size = int64(d.Uvarint()), int64(d.Uvarint())
	n := d.Raw(1)
	if n == nil {
		return nil, errDamagedIndex
	}
	sum := d.Raw(uint64(n[0]))
	p.digest = v1.Hash{Algorithm: fmt.Sprintf("sha%d", 8*len(sum)), Hex: hex.EncodeToString(sum)}
	p.path, p.requires = string(d.Bytes()), string(d.Bytes())
	if d.Damaged() {
		return nil, errDamagedIndex
	}
	return p, nil
}

// named gives the packages of a name, the newest first.
func (x *index) named(name string) ([]*pkg, error) {
	var out []*pkg
	i, end := x.Named(name)
	if end-i > maxSame {
		return nil, fmt.Errorf("%w: a list has %d packages %q", errTooHard, end-i, name)
	}
	for ; i < end; i++ {
		p, err := x.pkg(i)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}
