package cli

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestLayoutDirs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "[odd]*")
	for _, name := range []string{"a/oci-layout", "b/index.json", "a-c/oci-layout"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	whole := func(name string) (out []string) { // what may be the source itself
		for _, part := range []string{"", "blobs", "index.json", "oci-layout", ".partial"} {
			out = append(out, filepath.Join(dir, name, part))
		}
		return out
	}
	for _, tt := range []struct {
		text string
		want []string
	}{
		{"", nil},
		{"registry.example/a", nil},
		{"oci:" + dir + "/{module}", slices.Concat(whole("a"), whole("a-c"))},
		{"oci:" + dir + "/a-{module}/", whole("a-c")},
		{"oci:" + dir + "/a", whole("a")},
		{"oci:" + dir + "/b", []string{dir + "/b"}}, // no layout, yet
		{"oci:" + dir + "/new", []string{dir + "/new"}},
	} {
		if got := layoutDirs("", tt.text); !slices.Equal(got, tt.want) {
			t.Errorf("layoutDirs(%q) = %q; want %q", tt.text, got, tt.want)
		}
	}
}
