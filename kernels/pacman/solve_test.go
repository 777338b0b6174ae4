package pacman

import (
	"bytes"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// A database, which nobody has signed, can be made to take for ever.
func TestPoolTooMany(t *testing.T) {
	var file bytes.Buffer
	w := repo.NewIndexWriter(&file, indexForm, compareVersions)
	one := &pkg{name: "many", version: "1-1", arch: "any", file: "many-1-1-any.pkg.tar.zst", size: 1, sha256: [32]byte{1}}
	for range maxSame + 1 {
		if err := w.Add([]byte(one.name), []byte(one.version), 0, one.record()); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	x, err := repo.OpenIndex(bytes.NewReader(file.Bytes()), int64(file.Len()), indexForm)
	if err != nil {
		t.Fatal(err)
	}
	p := &pool{sources: []source{{x, "http://mirror"}}, known: map[string][]*pkg{}}
	if _, err := p.named("many"); err == nil || !strings.Contains(err.Error(), "10001 packages") {
		t.Errorf("error is %v", err)
	}
}
