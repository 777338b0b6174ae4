package repo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/internal/decompress"
	"github.com/godkms-hermetic/godkms-hermetic/internal/mirror"
)

const (
	maxPacked = 256 << 20 // bytes of a compressed index
	maxText   = 2 << 30   // bytes of an index's text
)

// Pinned is a file of which a signed one tells the digest and the size.
type Pinned struct {
	What   string   // for an error: "bookworm amd64"
	Paths  []string // below a mirror's URL; a mirror is asked for the next one where it doesn't have the one before
	Digest v1.Hash  // sha256 or sha512
	Size   int64    // bytes
}

// Get fetches a compressed index from any of the mirrors that have it, and hands its text to use when all of the file is there and is
// the one that was signed. url is for errors. progress is told how many bytes are there.
func (a *Asker) Get(ctx context.Context, p Pinned, mirrors []string, progress func(done int64), use func(url string, text io.Reader) error) error {
	if p.Size > maxPacked {
		return fmt.Errorf("index of %s: %d bytes are too many", p.What, p.Size)
	}
	tmp, err := a.Keep.Temp()
	if err != nil {
		return err
	}
	defer tmp.Close()
	packed, err := os.Create(filepath.Join(tmp.Dir, "packed"))
	if err != nil {
		return fmt.Errorf("write to the cache: %w", err)
	}
	defer packed.Close()
	var done int64
	report := func(n int64) { done += n; progress(done) }
	var why []error // of mirrors that are given up
	for i, path := range p.Paths {
		file := mirror.File{Digest: p.Digest, Size: p.Size}
		for _, m := range mirrors {
			file.URLs = append(file.URLs, m+"/"+path)
		}
		err = a.Net.Download(ctx, file, packed, report)
		all, ok := errors.AsType[mirror.Failures](err)
		if !ok {
			break
		}
		var left []string
		for j, f := range all {
			if i < len(p.Paths)-1 && mirror.IsMissing(f) {
				left = append(left, mirrors[j])
			} else {
				why = append(why, p.refusal(f))
			}
		}
		if mirrors = left; len(left) == 0 {
			return oneLine(why)
		}
	}
	if err != nil {
		return fmt.Errorf("fetch the index of %s: %w", p.What, err)
	}
	url := mirror.Public(mirrors[0]) + "/" + p.Paths[0]
	text, err := decompress.NewReader(io.NewSectionReader(packed, 0, p.Size))
	if err != nil {
		return fmt.Errorf("read %s: %w", url, err)
	}
	defer text.Close()
	return use(url, &Capped{R: text, N: maxText})
}

// refusal says why a mirror's file isn't used.
func (p Pinned) refusal(f *mirror.Failure) error {
	other, ok := errors.AsType[*mirror.Another](f.Err)
	switch {
	case !ok:
		return &unreachable{f.URL, f.Err}
	case other.Digest.Hex != "":
		return Refuse(fmt.Errorf("refused %s: its %s is %s, signed is %s: try again (the mirror may be updating), or use another mirror",
			f.URL, p.Digest.Algorithm, other.Digest.Hex, p.Digest.Hex))
	case other.Size < 0 || other.Size > p.Size:
		return &unreachable{f.URL, mirror.ErrTooLarge}
	}
	return fmt.Errorf("refused %s: it ends after %d of %d bytes: try again, or use another mirror", f.URL, other.Size, p.Size)
}
