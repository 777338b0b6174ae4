package cache_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/cache"
)

// notes are those on an entry, as they are given.
func notes(t testing.TB, d *cache.Dir, key string) (out []string) {
	t.Helper()
	list, err := d.Notes(t.Context(), hash(key))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range list {
		out = append(out, string(n))
	}
	return out
}

// backdate makes every note older than what is written next.
func backdate(t testing.TB, dir string) {
	t.Helper()
	for _, f := range files(t, dir, "notes") {
		info, err := os.Stat(f)
		if err != nil {
			t.Fatal(err)
		}
		then := info.ModTime().Add(-time.Hour)
		if err := os.Chtimes(f, then, then); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNotes(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	if err := d.Note(t.Context(), hash("a"), hash("x"), []byte("lost")); !errors.Is(err, cache.ErrNotFound) {
		t.Fatalf("note on nothing: %v; want ErrNotFound", err)
	}
	put(t, d, "a", "content of a")
	put(t, d, "b", "content of b")
	note := func(key, about, text string) {
		t.Helper()
		backdate(t, dir)
		if err := d.Note(t.Context(), hash(key), hash(about), []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	note("a", "x", "first")
	note("a", "y", "second\n\x00")
	note("a", "x", "third")
	note("b", "x", "other")
	if got, want := notes(t, d, "a"), []string{"third", "second\n\x00"}; !slices.Equal(got, want) {
		t.Fatalf("Notes = %q; want %q", got, want)
	}
	if err := d.Note(t.Context(), hash("a"), hash("z"), make([]byte, cache.MaxNote+1)); err == nil {
		t.Error("a note that is too large was kept")
	}

	// They go with their entry.
	if err := d.Remove(t.Context(), hash("b")); err != nil {
		t.Fatal(err)
	}
	if got := notes(t, d, "b"); len(got) != 0 {
		t.Errorf("notes of a removed entry: %q", got)
	}
	if _, err := d.GC(t.Context(), cache.GCOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := notes(t, d, "a"); len(got) != 2 {
		t.Errorf("GC left of the notes on what it keeps: %q", got)
	}

	// Of many the newest are kept.
	for i := range 20 {
		note("a", fmt.Sprint(i), fmt.Sprint(i))
	}
	if got := notes(t, d, "a"); len(got) != 16 || got[0] != "19" || got[15] != "4" {
		t.Errorf("Notes = %q; want 19 to 4", got)
	}

	// A damaged one is none, and Verify removes it.
	broken := filepath.Join(dir, "v1/notes", hash("a").Hex, hash("19").Hex)
	if err := os.WriteFile(broken, []byte("what is this\n19"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := notes(t, d, "a"); slices.Contains(got, "19") {
		t.Errorf("a damaged note is given: %q", got)
	}
	rep, err := d.Verify(t.Context())
	if err != nil || len(rep.Damaged) != 1 || !rep.Damaged[0].Removed || rep.Entries != 1 {
		t.Errorf("Verify = %+v, %v; want one damaged note, removed", rep, err)
	}
	if _, err := os.Stat(broken); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the damaged note is there still: %v", err)
	}

	res, err := d.GC(t.Context(), cache.GCOptions{OlderThan: 1})
	if err != nil || res.Entries != 1 || len(files(t, dir, "notes")) != 0 {
		t.Errorf("GC = %+v, %v, and there are %q; want no notes", res, err, files(t, dir, "notes"))
	}
}
