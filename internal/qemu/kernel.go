package qemu

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io"

	"github.com/godkms-hermetic/godkms-hermetic/internal/decompress"
)

// maxKernel bounds what is unpacked of a kernel, in bytes. Debian's 6.1 has 66 MB.
const maxKernel = 512 << 20

// payload gives the kernel proper of a file that boots on amd64: the ELF file that the boot loader's part of it would unpack
// (Documentation/arch/x86/boot.rst, payload_offset). Under TCG it takes that part 2.5 s, here it takes a fifth of it. What is left out
// besides is the choice of random addresses. It's nil where the file is of another form or compressed in a way that isn't known, or
// where the kernel can't be entered directly, which takes a PVH entry: then the file has to do it itself.
func payload(file []byte) []byte {
	le := binary.LittleEndian
	if len(file) < 0x250 || string(file[0x202:0x206]) != "HdrS" || le.Uint16(file[0x206:]) < 0x208 {
		return nil
	}
	setup := max(int64(file[0x1f1]), 1)
	if file[0x1f1] == 0 {
		setup = 4
	}
	from := (setup+1)*512 + int64(le.Uint32(file[0x248:]))
	to := from + int64(le.Uint32(file[0x24c:]))
	if from+4 > to || to > int64(len(file)) {
		return nil
	}
	size := int64(le.Uint32(file[to-4:])) // which kbuild, or gzip, put behind it
	if size > maxKernel {
		return nil
	}
	r, err := decompress.NewReader(bytes.NewReader(file[from:to]))
	if err != nil {
		return nil
	}
	defer r.Close()
	kernel := make([]byte, size)
	if _, err := io.ReadFull(r, kernel); err != nil || !entersByPVH(kernel) {
		return nil
	}
	return kernel
}

// entersByPVH says whether a kernel has the note of an entry for virtual machines, XEN_ELFNOTE_PHYS32_ENTRY (include/xen/interface/elfnote.h).
func entersByPVH(kernel []byte) bool {
	f, err := elf.NewFile(bytes.NewReader(kernel))
	if err != nil || f.Class != elf.ELFCLASS64 || f.Machine != elf.EM_X86_64 {
		return false
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > maxKernel {
			continue
		}
		notes := make([]byte, p.Filesz)
		if _, err := p.ReadAt(notes, 0); err != nil {
			continue
		}
		for len(notes) >= 12 {
			word := func(i int) int { return int(f.ByteOrder.Uint32(notes[4*i:])) }
			name, typ := (word(0)+3)&^3, word(2)
			next := 12 + name + (word(1)+3)&^3
			if next > len(notes) {
				break
			}
			if typ == 18 && bytes.HasPrefix(notes[12:], []byte("Xen\x00")) {
				return true
			}
			notes = notes[next:]
		}
	}
	return false
}
