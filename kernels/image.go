package kernels

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Image pins a kernel itself, as its distribution hands it out: the packages with the file that boots, and with all of its modules. They are
// sorted by name. A file that several have is that of the first.
type Image struct {
	Kernel   Kernel    `json:"kernel"`
	Packages []Package `json:"packages"`
}

// Digest is the SHA-256 over the image's canonical form, in which it has no URLs.
func (i Image) Digest() v1.Hash { return hash(i.Encode()) }

// Encode is the image's canonical form, JSON of one kind only: what Digest hashes.
func (i Image) Encode() []byte {
	i.Packages = withoutURLs(i.Packages)
	return encode(i)
}

// DecodeImage reads what Encode wrote, and refuses anything else.
func DecodeImage(b []byte) (Image, error) {
	var i Image
	if err := json.Unmarshal(b, &i); err != nil {
		return Image{}, fmt.Errorf("read kernel image: %w", err)
	}
	if string(i.Encode()) != string(b) {
		return Image{}, errors.New("read kernel image: it is not in its canonical form")
	}
	return i, nil
}

// NoImage is Provider.Image's error where there is no package of some names in the version of the headers. have are the versions that there
// are, each behind its name.
func NoImage(version string, names, have []string) error {
	there := "has neither " + strings.Join(names, " nor ")
	if len(have) > 0 {
		there = "has " + strings.Join(have, ", ")
	}
	return fmt.Errorf("the headers are %s, and the index %s: %w; another mirror, or a dated snapshot, may have that version (--mirror)",
		version, there, ErrNotFound)
}
