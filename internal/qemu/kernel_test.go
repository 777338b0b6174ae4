package qemu

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
)

// Of a real kernel it's the kernel proper that is booted, and the file as it is where that isn't whole or its header lies.
func TestKernelProper(t *testing.T) {
	file, err := os.ReadFile(newest(t, "amd64").Path())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "kernel")
	booted := func(b []byte) []byte {
		t.Helper()
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		f, err := Program{Arch: "amd64"}.kernel(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		k := make([]byte, st.Size())
		if _, err := f.ReadAt(k, 0); err != nil && len(k) > 0 {
			t.Fatal(err)
		}
		return k
	}
	if k := booted(file); !bytes.HasPrefix(k, []byte("\x7fELF")) || len(k) < 2*len(file) {
		t.Errorf("of %d bytes it gives %d", len(file), len(k))
	}
	for _, n := range []int{0, 0x206, 0x24f, 0x250, len(file) / 2} {
		if k := booted(file[:n]); !bytes.Equal(k, file[:n]) {
			t.Errorf("of the first %d bytes it gives %d others", n, len(k))
		}
	}
	for at, values := range map[int][]uint32{0x202: {0}, 0x206: {0, 0x207}, 0x248: {1, 1<<32 - 1}, 0x24c: {0, 1, 1<<32 - 1}} {
		for _, v := range values {
			b := bytes.Clone(file)
			binary.LittleEndian.PutUint32(b[at:], v)
			if k := booted(b); !bytes.Equal(k, b) {
				t.Errorf("with %#x at %#x it gives %d other bytes", v, at, len(k))
			}
		}
	}
}

func FuzzEntersByPVH(f *testing.F) {
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(exe[:4096])
	f.Fuzz(func(_ *testing.T, b []byte) { entersByPVH(bytes.NewReader(b)) })
}
