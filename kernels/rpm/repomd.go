package rpm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// A repomd is what a repository's repodata/repomd.xml says, of use here.
type repomd struct {
	date    time.Time // the newest of its lists
	primary listRef
}

// A listRef pins a compressed list.
type listRef struct {
	Path   string    `json:"path"`   // relative to the repository's URL
	Digest v1.Hash   `json:"digest"` // sha256 or sha512 of the file
	Size   int64     `json:"size"`   // bytes of the file; 0: it isn't said
	Date   time.Time `json:"date,omitzero"`
}

// parseRepomd reads a repomd.xml. Lists that are only pinned by SHA-1 or MD5 are refused.
func parseRepomd(text []byte) (*repomd, error) {
	s := newScanner(bytes.NewReader(text))
	if t, err := s.next(nil); err != nil {
		return nil, noEOF(err)
	} else if t != startTag || string(s.name()) != "repomd" {
		return nil, errors.New("it is no repomd.xml: <repomd> is missing")
	}
	var (
		r     repomd
		found bool
	)
	for {
		t, err := s.next(nil)
		if err != nil {
			return nil, err
		}
		if t == endTag {
			break
		}
		if string(s.name()) != "data" {
			if err := s.skip(); err != nil {
				return nil, err
			}
			continue
		}
		kind, err := s.attr("type")
		if err != nil {
			return nil, err
		}
		isPrimary := string(kind) == "primary"
		if isPrimary && found {
			return nil, errors.New("the primary list comes twice")
		}
		ref, err := readData(s, isPrimary)
		if err != nil {
			return nil, fmt.Errorf("list %.40q: %w", kind, err)
		}
		if isPrimary {
			found, r.primary = true, ref
		}
		if ref.Date.After(r.date) {
			r.date = ref.Date
		}
	}
	if t, err := s.next(nil); err != nil {
		return nil, err
	} else if t != eof {
		return nil, errors.New("something follows </repomd>")
	}
	if !found {
		return nil, errors.New("it has no primary list")
	}
	return &r, nil
}

// readData reads a <data> element. Only of a list that is wanted all must be there.
func readData(s *scanner, wanted bool) (listRef, error) {
	var (
		ref  listRef
		seen = map[string]bool{}
	)
	for {
		t, err := s.next(nil)
		if err != nil {
			return ref, err
		}
		if t == endTag {
			break
		}
		name := string(s.name())
		switch name {
		case "location", "checksum", "size", "timestamp":
			if seen[name] {
				return ref, fmt.Errorf("<%s> comes twice", name)
			}
			seen[name] = true
		}
		switch {
		case name == "timestamp":
			var text []byte
			if err := s.into(&text); err != nil {
				return ref, err
			}
			sec, err := strconv.ParseFloat(string(text), 64) // some have fractions
			if err != nil || !(sec >= 0 && sec < 1<<33) {
				return ref, fmt.Errorf("%.40q is no time", text)
			}
			ref.Date = time.Unix(int64(sec), 0).UTC()
		case name == "location" && wanted:
			err = s.eachAttr(func(name, value []byte) error {
				switch string(name) {
				case "href":
					ref.Path = string(value)
				case "xml:base":
					return fmt.Errorf("it is elsewhere: xml:base=%.200q", value)
				}
				return nil
			})
			if err = errors.Join(err, s.skip()); err != nil {
				return ref, err
			}
		case name == "checksum" && wanted:
			kind, err := s.attr("type")
			if err != nil {
				return ref, err
			}
			k := string(kind)
			sum, err := s.content()
			if err != nil {
				return ref, err
			}
			if ref.Digest, err = parseSum(k, string(sum)); err != nil {
				return ref, err
			}
		case name == "size" && wanted:
			text, err := s.content()
			if err != nil {
				return ref, err
			}
			if ref.Size, err = strconv.ParseInt(string(text), 10, 64); err != nil || ref.Size <= 0 {
				return ref, fmt.Errorf("%.40q is no size", text)
			}
		default:
			if err := s.skip(); err != nil {
				return ref, err
			}
		}
	}
	if !wanted {
		return ref, nil
	}
	if !seen["checksum"] {
		return ref, errors.New("no checksum")
	}
	return ref, validPath(ref.Path)
}

// checkSignature checks the detached signature of a repomd.xml, armoured, against the distribution's keys.
func checkSignature(text, signature []byte, keys openpgp.EntityList, now func() time.Time) error {
	block, err := armor.Decode(bytes.NewReader(signature))
	if err != nil || block.Type != openpgp.SignatureType {
		return errors.New("its signature does not hold: it can't be read")
	}
	raw, err := io.ReadAll(block.Body)
	if err != nil {
		return fmt.Errorf("its signature can't be read: %w", err)
	}
	old, err := readOldSignature(raw)
	if err != nil {
		return fmt.Errorf("its signature can't be used: %w", err)
	}
	if old != nil {
		err = old.verify(keys, text, now())
	} else {
		_, err = openpgp.CheckDetachedSignature(keys, bytes.NewReader(text), bytes.NewReader(raw), &packet.Config{Time: now})
	}
	switch {
	case errors.Is(err, pgperrors.ErrUnknownIssuer):
		return errors.New("it is signed with none of the distribution's keys")
	case err != nil:
		return fmt.Errorf("its signature does not hold: %w", err)
	}
	return nil
}
