package qemu

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/godkms-hermetic/godkms-hermetic/internal/decompress"
)

// maxKernel bounds what is unpacked of a kernel, in bytes. Debian's 6.1 has 66 MB.
const maxKernel = 512 << 20

// maxNotes bounds a segment of notes, in bytes. Debian's 6.1 has 504.
const maxNotes = 1 << 20

// kernel is a file without a name, with what is booted of a kernel's file: on amd64 the kernel proper, which the boot loader's part of the
// file would unpack. Under TCG that takes 2.5 s, here it takes a fifth of it. What is left out besides is the choice of random addresses.
// Where the file is of another form or compressed in a way that isn't known, or where the kernel can't be entered directly, which takes a
// PVH entry, it's the file as it is: then that has to do it itself.
func (p Program) kernel(path string) (*os.File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if p.Arch == "amd64" {
		if proper, err := memory("kernel", func(w io.Writer) error { return unpack(w, file) }); err == nil {
			if entersByPVH(proper) {
				return proper, nil
			}
			proper.Close()
		}
	}
	return memory("kernel", func(w io.Writer) error {
		_, err := io.Copy(w, file)
		return err
	})
}

// unpack writes the payload of a file that boots on amd64 (Documentation/arch/x86/boot.rst, payload_offset).
func unpack(w io.Writer, file io.ReaderAt) error {
	le := binary.LittleEndian
	head := make([]byte, 0x250)
	if _, err := file.ReadAt(head, 0); err != nil {
		return err
	}
	if string(head[0x202:0x206]) != "HdrS" || le.Uint16(head[0x206:]) < 0x208 {
		return errors.New("it has no header of a kernel with a payload")
	}
	setup := int64(cmp.Or(head[0x1f1], 4))
	from, length := (setup+1)*512+int64(le.Uint32(head[0x248:])), int64(le.Uint32(head[0x24c:]))
	last := make([]byte, 4) // the size, which kbuild, or gzip, put behind it
	if _, err := file.ReadAt(last, from+length-4); err != nil {
		return err
	}
	size := int64(le.Uint32(last))
	if size > maxKernel {
		return fmt.Errorf("its payload has %d bytes: it is to have at most %d", size, maxKernel)
	}
	r, err := decompress.NewReader(io.NewSectionReader(file, from, length))
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.CopyN(w, r, size)
	return err
}

// entersByPVH says whether a kernel has the note of an entry for virtual machines, XEN_ELFNOTE_PHYS32_ENTRY (include/xen/interface/elfnote.h).
func entersByPVH(kernel io.ReaderAt) bool {
	f, err := elf.NewFile(kernel)
	if err != nil || f.Class != elf.ELFCLASS64 || f.Machine != elf.EM_X86_64 {
		return false
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE || p.Filesz > maxNotes {
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
