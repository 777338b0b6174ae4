package repo

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
)

// maxMemoAge is how long answers are kept that nothing has asked for.
const maxMemoAge = 30 * 24 * time.Hour

// Keep is a folder that a reader keeps indexes and answers in, for any number of processes. Each file appears whole, under its final
// name; memo/HASH are answers, by everything that they were computed from; tmp/ is what is being written, and who writes next removes
// what dead processes left there.
type Keep struct{ Dir string }

// Path is a file of the folder.
func (k Keep) Path(parts ...string) string {
	return filepath.Join(append([]string{k.Dir}, parts...)...)
}

// Temp is a folder for unfinished work, which is removed by its Close.
func (k Keep) Temp() (*durable.Temp, error) {
	t, err := durable.NewTemp(k.Path("tmp"))
	if err != nil {
		return nil, fmt.Errorf("write to the cache: %w", err)
	}
	return t, nil
}

// Write puts a whole file in place. It gives an error of fill as it is.
func (k Keep) Write(path string, fill func(io.Writer) error) error {
	err := os.MkdirAll(k.Path("tmp"), 0o755)
	if err == nil {
		err = durable.Sweep(k.Path("tmp"))
	}
	if err != nil {
		return fmt.Errorf("write to the cache: %w", err)
	}
	var filled error
	err = durable.WriteFile(k.Path("tmp"), path, 0o644, func(w io.Writer) error {
		filled = fill(w)
		return filled
	})
	if filled != nil {
		return filled
	}
	if err != nil {
		return fmt.Errorf("write to the cache: %w", err)
	}
	return nil
}

// WriteJSON keeps a value behind a line with its SHA-256, for ReadJSON.
func (k Keep) WriteJSON(path string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(data)
	return k.Write(path, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, "%x\n%s", sum, data)
		return err
	})
}

// ReadJSON tells whether there was an undamaged file.
func (k Keep) ReadJSON(path string, v any) bool {
	data, err := os.ReadFile(path)
	if err != nil {
		return false
	}
	line, data, ok := bytes.Cut(data, []byte("\n"))
	sum := sha256.Sum256(data)
	return ok && string(line) == hex.EncodeToString(sum[:]) && json.Unmarshal(data, v) == nil
}

// Memo gives the answer to key from the folder, or makes it and keeps it. That it can't be kept is a warning.
func Memo[T any](k Keep, key string, warn func(string), compute func() (T, error)) (T, error) {
	path := k.Path("memo", key)
	var v T
	if k.ReadJSON(path, &v) {
		return v, nil
	}
	v, err := compute()
	if err != nil {
		return v, err
	}
	if err := k.WriteJSON(path, v); err != nil {
		warn(err.Error()) // the answer is no worse for it
	}
	return v, nil
}

// Prune removes what the file at keep has replaced a day ago, in its folder and with that prefix and suffix, and old answers.
func (k Keep) Prune(keep, prefix, suffix string) {
	old := func(dir, prefix, suffix string, age time.Duration) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return
		}
		for _, e := range entries {
			path := filepath.Join(dir, e.Name())
			if path == keep || !strings.HasPrefix(e.Name(), prefix) || !strings.HasSuffix(e.Name(), suffix) {
				continue
			}
			if i, err := e.Info(); err == nil && time.Since(i.ModTime()) > age {
				os.Remove(path)
			}
		}
	}
	old(filepath.Dir(keep), prefix, suffix, 24*time.Hour)
	old(k.Path("memo"), "", "", maxMemoAge)
}

// Slots holds values that are made once each, by key. Failures are not kept. Its zero value is empty.
type Slots[T any] struct {
	mu sync.Mutex
	m  map[string]*Slot[T]
}

// Slot is the place for one value. Whoever reads or sets it holds its lock.
type Slot[T any] struct {
	sync.Mutex
	Value T
	OK    bool
}

// At gives the slot of a key.
func (s *Slots[T]) At(key string) *Slot[T] {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		s.m = map[string]*Slot[T]{}
	}
	if s.m[key] == nil {
		s.m[key] = &Slot[T]{}
	}
	return s.m[key]
}

// Get gives the value of a key, which is made if it isn't there.
func (s *Slots[T]) Get(key string, make func() (T, error)) (T, error) {
	slot := s.At(key)
	slot.Lock()
	defer slot.Unlock()
	if slot.OK {
		return slot.Value, nil
	}
	v, err := make()
	if err == nil {
		slot.Value, slot.OK = v, true
	}
	return v, err
}
