package images

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

func readRecord(dir string) (rec record, err error) {
	b, err := os.ReadFile(filepath.Join(dir, "record.json"))
	if err == nil {
		err = json.Unmarshal(b, &rec)
	}
	return rec, err
}

// verifyLayer checks everything in a layer against its index, and that there is nothing else.
func (s *Store) verifyLayer(ctx context.Context, key string) error {
	dir := s.layerDir(key)
	rec, err := readRecord(dir)
	if err != nil {
		return err
	}
	want := map[string]entry{}
	if err := readIndex(dir, rec.Tree, func(e entry) error { want[e.Path] = e; return nil }); err != nil {
		return err
	}
	root := filepath.Join(dir, "fs")
	seen := 0
	err = filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || name == root {
			return err
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		rel := name[len(root)+1:]
		e, ok := want[rel]
		if !ok {
			return fmt.Errorf("%q is no part of the layer", rel)
		}
		seen++
		if err := verifyEntry(root, e); err != nil {
			return fmt.Errorf("%q was altered: %w", rel, err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if seen != len(want) {
		return fmt.Errorf("%d of %d entries are missing", len(want)-seen, len(want))
	}
	return nil
}

func verifyEntry(root string, e entry) error {
	name := filepath.Join(root, e.Path)
	st, err := os.Lstat(name)
	if err != nil {
		return err
	}
	if e.Kind == "h" {
		to, err := os.Lstat(filepath.Join(root, e.Link))
		if err != nil {
			return err
		}
		if !os.SameFile(st, to) {
			return fmt.Errorf("no hard link to %q", e.Link)
		}
		return nil
	}
	if st.ModTime().Unix() != e.Mtime {
		return fmt.Errorf("its time is %d; want %d", st.ModTime().Unix(), e.Mtime)
	}
	kind := map[fs.FileMode]string{0: "f", fs.ModeDir: "d", fs.ModeSymlink: "l"}[st.Mode().Type()]
	if kind != e.Kind {
		return fmt.Errorf("it is a %v", st.Mode().Type())
	}
	if kind == "l" {
		to, err := os.Readlink(name)
		if err == nil && to != e.Link {
			err = fmt.Errorf("it links to %q; want %q", to, e.Link)
		}
		return err
	}
	if tarMode(st.Mode()) != e.Mode {
		return fmt.Errorf("its mode is %o; want %o", tarMode(st.Mode()), e.Mode)
	}
	if kind == "d" {
		return nil
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != e.Sum {
		return fmt.Errorf("its hash is %s; want %s", got, e.Sum)
	}
	return nil
}
