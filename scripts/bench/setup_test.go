package main

import (
	"os"
	"path/filepath"
	"testing"
)

// Layers come over each other as in overlayfs.
func TestLink(t *testing.T) {
	base := t.TempDir()
	write := func(name, text string) {
		name = filepath.Join(base, name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("low/dir/one", "low")
	write("low/dir/two", "low")
	write("low/run/file", "hidden")
	write("high/dir/two", "high")
	if err := os.Symlink("dir", filepath.Join(base, "high/run")); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(base, "root")
	for _, layer := range []string{"low", "high"} {
		if err := link(filepath.Join(base, layer), root); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"dir/one": "low", "dir/two": "high", "run/two": "high", "low": ""} {
		if got, _ := os.ReadFile(filepath.Join(root, name)); string(got) != want {
			t.Errorf("%s holds %q; want %q", name, got, want)
		}
	}
	if got, _ := os.ReadFile(filepath.Join(base, "low/dir/two")); string(got) != "low" {
		t.Errorf("the lower layer was changed to %q", got)
	}
}
