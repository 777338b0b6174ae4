package deb

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// A release is what an InRelease file says, of use here.
type release struct {
	codename   string
	suite      string
	date       time.Time
	validUntil time.Time           // zero: for ever
	indexes    map[string]indexRef // by indexKey
	contents   map[string]indexRef // the lists of files of the first component's packages, or of all, by architecture; of those for all architectures under "all"
}

// indexKey names an index within a pocket: that of the first component by its architecture alone.
func indexKey(component int, components []string, arch string) string {
	if component == 0 {
		return arch
	}
	return components[component] + "/" + arch
}

// isOf tells whether it is what a pocket has. All of Ubuntu's pockets have the codename of their suite.
func (r *release) isOf(pk pocket) bool {
	if pk.codename != "" {
		return r.codename == pk.codename && r.suite == pk.name
	}
	return r.codename == pk.name
}

// An indexRef pins a compressed Packages index.
type indexRef struct {
	Path   string `json:"path"` // below dists/POCKET/
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"` // bytes
	ByHash bool   `json:"by_hash"`
}

// readRelease checks the signature of an InRelease file and reads what was signed, of the indexes those of some components. There may be
// nothing else in the file.
func readRelease(text []byte, components []string, keys openpgp.EntityList, now func() time.Time) (*release, error) {
	block, rest := clearsign.Decode(text)
	if block == nil {
		return nil, errors.New("it is not signed")
	}
	if !bytes.HasPrefix(text, []byte("-----BEGIN PGP SIGNED MESSAGE-----")) || len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("it has text outside of what is signed")
	}
	_, err := block.VerifySignature(keys, &packet.Config{Time: now})
	switch {
	case errors.Is(err, pgperrors.ErrUnknownIssuer):
		return nil, errors.New("it is signed with none of the distribution's keys")
	case err != nil:
		return nil, fmt.Errorf("its signature does not hold: %w", err)
	}
	return parseRelease(block.Bytes, components)
}

// parseRelease reads the text of a Release file (https://wiki.debian.org/DebianRepository/Format).
func parseRelease(text []byte, components []string) (*release, error) {
	var (
		fields = map[string]string{}
		files  = map[string]indexRef{}
		field  string
	)
	for line := range bytes.Lines(text) {
		line := strings.TrimRight(string(line), " \t\r\n")
		if line == "" {
			continue
		}
		if line[0] != ' ' && line[0] != '\t' {
			name, value, ok := strings.Cut(line, ":")
			if !ok {
				return nil, fmt.Errorf("line %q is no field", line)
			}
			if _, twice := fields[name]; twice {
				return nil, fmt.Errorf("field %q comes twice", name)
			}
			field, fields[name] = name, strings.TrimSpace(value)
			continue
		}
		if field != "SHA256" {
			continue
		}
		part := strings.Fields(line)
		if len(part) != 3 {
			return nil, fmt.Errorf("line %q names no file", line)
		}
		size, err := strconv.ParseInt(part[1], 10, 64)
		if err != nil || size < 0 {
			return nil, fmt.Errorf("line %q has no size", line)
		}
		if sum, err := hex.DecodeString(part[0]); err != nil || len(sum) != 32 {
			return nil, fmt.Errorf("line %q has no sha256", line)
		}
		files[part[2]] = indexRef{Path: part[2], SHA256: strings.ToLower(part[0]), Size: size, ByHash: fields["Acquire-By-Hash"] == "yes"}
	}
	r := &release{codename: fields["Codename"], suite: fields["Suite"], indexes: map[string]indexRef{}, contents: map[string]indexRef{}}
	var err error
	if r.date, err = parseDate(fields["Date"]); err != nil {
		return nil, fmt.Errorf("date: %w", err)
	}
	if v, ok := fields["Valid-Until"]; ok {
		if r.validUntil, err = parseDate(v); err != nil {
			return nil, fmt.Errorf("valid-until: %w", err)
		}
	}
	for path, ref := range files {
		component, name, ok := strings.Cut(path, "/")
		if !ok { // of Ubuntu's archives there is one list of all files
			component, name = components[0], path
		}
		n := slices.Index(components, component)
		if arch, ok := strings.CutPrefix(name, "Contents-"); ok && n == 0 {
			if arch, packed := strings.CutSuffix(arch, ".gz"); packed && validName(arch) {
				if _, better := files[components[0]+"/"+name]; !better || name != path {
					r.contents[arch] = ref
				}
			}
			continue
		}
		rest, ok := strings.CutPrefix(name, "binary-")
		if n < 0 || !ok {
			continue
		}
		arch, file, _ := strings.Cut(rest, "/")
		rank := slices.Index(indexFiles, file)
		if rank < 0 || !validName(arch) {
			continue
		}
		key := indexKey(n, components, arch)
		if have, ok := r.indexes[key]; !ok || rank < slices.Index(indexFiles, have.Path[strings.LastIndexByte(have.Path, '/')+1:]) {
			r.indexes[key] = ref
		}
	}
	for _, refs := range []map[string]indexRef{r.indexes, r.contents} { // fields come in any order
		for arch, ref := range refs {
			ref.ByHash = fields["Acquire-By-Hash"] == "yes"
			refs[arch] = ref
		}
	}
	return r, nil
}

// indexFiles are the forms of an index, the preferred ones first.
var indexFiles = []string{"Packages.xz", "Packages.gz", "Packages"}

func parseDate(s string) (time.Time, error) {
	for _, layout := range []string{time.RFC1123Z, time.RFC1123, "Mon, _2 Jan 2006 15:04:05 MST"} {
		if t, err := time.Parse(layout, s); err == nil {
			if name, offset := t.Zone(); offset == 0 && name != "UTC" && name != "GMT" && name != "" {
				return time.Time{}, fmt.Errorf("%q is not in UTC", s)
			}
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no date", s)
}
