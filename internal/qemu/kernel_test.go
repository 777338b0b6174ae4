package qemu

import (
	"bytes"
	"encoding/binary"
	"os"
	"testing"
)

// The kernel proper of a real kernel is found, and nothing is of a file that isn't whole or whose header lies.
func TestPayload(t *testing.T) {
	file, err := os.ReadFile(newest(t, "amd64").Path())
	if err != nil {
		t.Fatal(err)
	}
	if k := payload(file); !bytes.HasPrefix(k, []byte("\x7fELF")) || len(k) < 2*len(file) {
		t.Errorf("of %d bytes it gives %d", len(file), len(k))
	}
	for _, n := range []int{0, 0x206, 0x24f, 0x250, len(file) / 2} {
		if k := payload(file[:n]); k != nil {
			t.Errorf("of the first %d bytes it gives %d", n, len(k))
		}
	}
	for at, values := range map[int][]uint32{0x202: {0}, 0x206: {0, 0x207}, 0x248: {1, 1<<32 - 1}, 0x24c: {0, 1, 1<<32 - 1}} {
		for _, v := range values {
			b := bytes.Clone(file)
			binary.LittleEndian.PutUint32(b[at:], v)
			if k := payload(b); k != nil {
				t.Errorf("with %#x at %#x it gives %d bytes", v, at, len(k))
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
	f.Fuzz(func(_ *testing.T, b []byte) { entersByPVH(b) })
}
