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
	date       time.Time
	validUntil time.Time           // zero: for ever
	indexes    map[string]indexRef // of one component, by architecture
	contents   map[string]indexRef // the lists of files of its packages, the same; of those for all architectures under "all"
}

// An indexRef pins a compressed Packages index.
type indexRef struct {
	Path   string `json:"path"` // below dists/POCKET/
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"` // bytes
	ByHash bool   `json:"by_hash"`
}

// readRelease checks the signature of an InRelease file and reads what was signed, of the indexes those of a component. There may be
// nothing else in the file.
func readRelease(text []byte, component string, keys openpgp.EntityList, now func() time.Time) (*release, error) {
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
	return parseRelease(block.Bytes, component)
}

// parseRelease reads the text of a Release file (https://wiki.debian.org/DebianRepository/Format).
func parseRelease(text []byte, component string) (*release, error) {
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
	r := &release{codename: fields["Codename"], indexes: map[string]indexRef{}, contents: map[string]indexRef{}}
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
		if arch, ok := strings.CutPrefix(path, component+"/Contents-"); ok {
			if arch, packed := strings.CutSuffix(arch, ".gz"); packed && validName(arch) {
				r.contents[arch] = ref
			}
			continue
		}
		rest, ok := strings.CutPrefix(path, component+"/binary-")
		if !ok {
			continue
		}
		arch, file, _ := strings.Cut(rest, "/")
		rank := slices.Index(indexFiles, file)
		if rank < 0 || !validName(arch) {
			continue
		}
		if have, ok := r.indexes[arch]; !ok || rank < slices.Index(indexFiles, have.Path[strings.LastIndexByte(have.Path, '/')+1:]) {
			r.indexes[arch] = ref
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
	for _, layout := range []string{time.RFC1123, "Mon, _2 Jan 2006 15:04:05 MST", time.RFC1123Z} {
		if t, err := time.Parse(layout, s); err == nil {
			if name, offset := t.Zone(); offset == 0 && name != "UTC" && name != "GMT" && name != "" {
				return time.Time{}, fmt.Errorf("%q is not in UTC", s)
			}
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no date", s)
}
