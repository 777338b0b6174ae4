package repo

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"strings"
	"testing"
)

const testForm = "test-ix1"

// compact makes an index of packages whose records are their name and version; of each the words behind those are offers.
func compact(t testing.TB, packages ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := NewIndexWriter(&b, testForm, func(a, b string) int { return cmp.Compare(a, b) })
	for _, p := range packages {
		words := strings.Fields(p)
		for _, o := range words[2:] {
			name, version, _ := strings.Cut(o, "=")
			w.Offer([]byte(name), []byte(version))
		}
		if words[0] == "e" {
			w.Mark()
		}
		if err := w.Add([]byte(words[0]), []byte(words[1]), byte(len(words)), []byte(words[0]+" "+words[1])); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestIndex(t *testing.T) {
	// costarring and liquid have the same 32-bit FNV-1a hash, as have declinate and macallums
	long := strings.Repeat("1", 5000)
	data := compact(t, "b 1 v=1", "a 1 v=2 w", "a 3 costarring=1", "ab 1", "a 2 liquid=2 declinate macallums=5", "e 1 v="+long+" w")
	x, err := OpenIndex(bytes.NewReader(data), int64(len(data)), testForm)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for i := range x.Len() {
		rec, err := x.Record(i)
		if err != nil || !bytes.HasPrefix(rec, append(x.Name(i), ' ')) {
			t.Errorf("record %d of %q: %q, %v", i, x.Name(i), rec, err)
		}
		all = append(all, string(rec))
	}
	if want := []string{"a 3", "a 2", "a 1", "ab 1", "b 1", "e 1"}; !slices.Equal(all, want) {
		t.Errorf("packages: %q; want %q", all, want)
	}
	if got := x.Names(); !slices.Equal(got, []string{"a", "ab", "b", "e"}) {
		t.Errorf("names: %q", got)
	}
	for name, want := range map[string][2]int{"a": {0, 3}, "ab": {3, 4}, "aa": {3, 3}, "z": {6, 6}} {
		if first, end := x.Named(name); first != want[0] || end != want[1] {
			t.Errorf("Named(%q) = %d, %d; want %v", name, first, end, want)
		}
	}
	if first, end := x.WithPrefix("a"); first != 0 || end != 4 {
		t.Errorf("WithPrefix(a) = %d, %d", first, end)
	}
	for name, want := range map[string]string{"v": "[{2 2} {4 1} {5 " + long + "}]", "w": "[{2 } {5 }]", "costarring": "[{0 1}]", "liquid": "[{1 2}]",
		"declinate": "[{1 }]", "macallums": "[{1 5}]", "a": "[]"} {
		if got, err := x.Offers(name); err != nil || fmt.Sprint(got) != want {
			t.Errorf("Offers(%q) = %.80v, %v; want %.80s", name, got, err, want)
		}
	}
	if hashName("costarring") != hashName("liquid") || hashName([]byte("declinate")) != hashName("macallums") {
		t.Error("names of the same hash haven't the same")
	}
	if got := x.Marked(); !slices.Equal(got, []int{5}) {
		t.Errorf("Marked = %v", got)
	}
}

// Any byte that is changed, and any that is missing, makes an index damaged.
func TestIndexDamaged(t *testing.T) {
	data := compact(t, "b 1 v=1", "a 1 v=2 w", "e 1")
	open := func(b []byte, form string) error {
		_, err := OpenIndex(bytes.NewReader(b), int64(len(b)), form)
		return err
	}
	if err := open(data, testForm); err != nil {
		t.Fatal(err)
	}
	for i := range data {
		bad := bytes.Clone(data)
		bad[i] ^= 4
		if err := open(bad, testForm); !errors.Is(err, ErrDamagedIndex) {
			t.Errorf("byte %d is changed: %v", i, err)
		}
		if err := open(data[:i], testForm); !errors.Is(err, ErrDamagedIndex) {
			t.Errorf("cut after byte %d: %v", i, err)
		}
	}
	if err := open(data, "other-ix"); !errors.Is(err, ErrDamagedIndex) {
		t.Errorf("another form: %v", err)
	}
	w := NewIndexWriter(io.Discard, testForm, strings.Compare)
	w.Offer(make([]byte, 1<<16), nil)
	if err := w.Add([]byte("a"), []byte("1"), 0, nil); err == nil {
		t.Error("a name of 64 kB is taken")
	}
}

// FuzzIndex is about files that have the right checksum and the wrong content.
func FuzzIndex(f *testing.F) {
	f.Add(compact(f, "b 1 v=1", "a 1 v=2 w", "e 1"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if at := len(data) - 4 - formSize; at >= 0 {
			data = append(binary.LittleEndian.AppendUint32(bytes.Clone(data[:at]), crc32.Checksum(data[:at], castagnoli)), testForm...)
		}
		x, err := OpenIndex(bytes.NewReader(data), int64(len(data)), testForm)
		if err != nil {
			return
		}
		x.Names()
		for i := range x.Len() {
			x.Record(i)
		}
		x.WithPrefix("a")
		x.Offers("v")
		for _, i := range x.Marked() {
			x.Record(i)
		}
	})
}
