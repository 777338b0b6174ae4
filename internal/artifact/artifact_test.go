package artifact_test

import (
	"bytes"
	"io"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
)

func key(s string) v1.Hash {
	h, _, _ := v1.SHA256(bytes.NewReader([]byte(s)))
	return h
}

func TestSmoke(t *testing.T) {
	mk := func(n, s string) artifact.File {
		return artifact.File{Name: n, Dest: "updates/dkms", Size: int64(len(s)), Vermagic: "x ", Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader([]byte(s))), nil }}
	}
	m := artifact.Meta{Module: "m", Version: "1", Kernel: artifact.Kernel{"debian", "bookworm", "amd64", "6.1.0-56-amd64"}, Key: key("k"), Source: key("s"), Lock: key("l"), Status: artifact.Built}
	img, err := artifact.New(m, []artifact.File{mk("b.ko", "bbb"), mk("a.ko", "aaaa")})
	if err != nil {
		t.Fatal(err)
	}
	m2, fs, err := artifact.Read(img)
	if err != nil || m2 != m {
		t.Fatal(err, m2)
	}
	r, _ := fs[1].Open()
	b, err := io.ReadAll(r)
	t.Log(string(b), err)
}
