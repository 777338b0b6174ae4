package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
)

const (
	// MaxNote is how many bytes a note has at most.
	MaxNote = 1 << 20
	// notesKept is how many notes of an entry are kept: the newest.
	notesKept = 16
)

// Note keeps what was found out about an entry since it was built. It is no part of the entry, and goes with it. An earlier note about the
// same is replaced; of many notes the newest are kept. It wraps ErrNotFound where there is no entry.
func (d *Dir) Note(ctx context.Context, key, about v1.Hash, note []byte) error {
	fail := func(err error) error { return fmt.Errorf("note on cache entry %q: %w", key, err) }
	if err := errors.Join(checkHash(key), checkHash(about)); err != nil {
		return fail(err)
	}
	if len(note) > MaxNote {
		return fail(fmt.Errorf("it has %d bytes, more than %d", len(note), MaxNote))
	}
	lock, err := d.lock(ctx, true)
	if err != nil {
		return fail(err)
	}
	defer lock.Close()
	if _, _, err := d.readRecord(key); err != nil {
		return fail(err)
	}
	if err := durable.Sweep(d.path("tmp")); err != nil {
		return fail(err)
	}
	if err := os.MkdirAll(d.notesPath(key), 0o755); err != nil {
		return fail(err)
	}
	err = durable.WriteFile(d.path("tmp"), d.notesPath(key, about.Hex), 0o644, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%s\n%s", hashBytes(note).Hex, note)
		return err
	})
	if err != nil {
		return fail(err)
	}
	notes, err := d.noteFiles(key)
	if err != nil {
		return fail(err)
	}
	for _, old := range notes[min(len(notes), notesKept):] {
		if err := os.Remove(d.notesPath(key, old.about.Hex)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fail(err)
		}
	}
	return nil
}

// Notes gives the notes on an entry, the newest first. A damaged one is left out; Verify names it. There may be none.
func (d *Dir) Notes(ctx context.Context, key v1.Hash) ([][]byte, error) {
	fail := func(err error) ([][]byte, error) { return nil, fmt.Errorf("notes on cache entry %q: %w", key, err) }
	if err := checkHash(key); err != nil {
		return fail(err)
	}
	files, err := d.noteFiles(key)
	if err != nil {
		return fail(err)
	}
	var out [][]byte
	for _, f := range files[:min(len(files), notesKept)] {
		b, err := d.readNote(key, f.about)
		var bad *damage
		switch {
		case err == nil:
			out = append(out, b)
		case errors.As(err, &bad), errors.Is(err, fs.ErrNotExist):
		default:
			return fail(err)
		}
	}
	return out, nil
}

func (d *Dir) notesPath(key v1.Hash, elem ...string) string {
	return d.path(append([]string{"notes", key.Hex}, elem...)...)
}

// noteFile is a note that is there.
type noteFile struct {
	about v1.Hash
	time  time.Time
	size  int64
}

// noteFiles lists the notes on an entry, the newest first.
func (d *Dir) noteFiles(key v1.Hash) ([]noteFile, error) {
	names, err := hashes(d.notesPath(key))
	if err != nil {
		return nil, err
	}
	var out []noteFile
	for _, h := range names {
		info, err := os.Lstat(d.notesPath(key, h.Hex))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, noteFile{h, info.ModTime(), info.Size()})
	}
	slices.SortStableFunc(out, func(a, b noteFile) int { return b.time.Compare(a.time) })
	return out, nil
}

func (d *Dir) readNote(key, about v1.Hash) ([]byte, error) {
	f, err := os.Open(d.notesPath(key, about.Hex))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, MaxNote+2*64))
	if err != nil {
		return nil, err
	}
	sum, note, ok := bytes.Cut(b, []byte("\n"))
	if !ok || hashBytes(note).Hex != string(sum) {
		return nil, damaged("a note on %q does not have the checksum that it names", key.Hex)
	}
	return note, nil
}

// verifyNotes removes and names the damaged notes on an entry.
func (d *Dir) verifyNotes(key v1.Hash, rep *Report) error {
	files, err := d.noteFiles(key)
	if err != nil {
		return err
	}
	for _, f := range files {
		_, err := d.readNote(key, f.about)
		var bad *damage
		switch {
		case errors.As(err, &bad):
			err = os.Remove(d.notesPath(key, f.about.Hex))
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !notWritable(err) {
				return err
			}
			rep.Damaged = append(rep.Damaged, Damage{Key: key, Err: bad, Removed: !notWritable(err)})
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return err
		}
		rep.Bytes += f.size
	}
	return nil
}

// sweepNotes removes the notes on entries that aren't there. The caller holds the exclusive lock.
func (d *Dir) sweepNotes(there func(v1.Hash) bool) (freed int64, err error) {
	keys, err := hashes(d.path("notes"))
	if err != nil {
		return 0, err
	}
	for _, key := range keys {
		if there(key) {
			continue
		}
		files, err := d.noteFiles(key)
		if err != nil {
			return freed, err
		}
		for _, f := range files {
			freed += f.size
		}
		if err := os.RemoveAll(d.notesPath(key)); err != nil {
			return freed, err
		}
	}
	return freed, nil
}
