package trial

import (
	"bytes"
	"cmp"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// entry is a file of an initramfs, a link or, if its name ends in /, a folder.
type entry struct {
	name string // below the root, without / before it
	mode uint32 // permissions of a file
	data []byte
	from *io.SectionReader // of which a file is, in place of data
	link string            // where a link goes
}

// loaded is the part of an ELF program that a kernel loads: without the symbols and the debugging information behind it, a third of this program.
func loaded(program io.ReaderAt, machine elf.Machine) (*io.SectionReader, error) {
	f, err := elf.NewFile(program)
	if err != nil {
		return nil, fmt.Errorf("the machine's first process: %w", err)
	}
	if f.Machine != machine {
		return nil, fmt.Errorf("the machine's first process is a program for another processor (%v): the kernel's is %v", f.Machine, machine)
	}
	var end uint64
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return nil, errors.New("the machine's first process would be a program that isn't static: build it with CGO_ENABLED=0")
		}
		if p.Type == elf.PT_LOAD {
			end = max(end, p.Off+p.Filesz)
		}
	}
	if n, _ := program.ReadAt(make([]byte, 1), int64(end)-1); n != 1 {
		return nil, errors.New("the machine's first process would be a program that is cut short")
	}
	return io.NewSectionReader(program, 0, int64(end)), nil
}

// archive writes entries as a cpio archive of the form that kernels unpack (Documentation/driver-api/early-userspace/buffer-format.rst).
// Its bytes follow from the entries alone. Folders that they are in are added.
func archive(w io.Writer, entries []entry) error {
	made := map[string]bool{".": true}
	ino := 0
	put := func(name string, mode uint32, nlink int, data *io.SectionReader) error {
		ino++
		head := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", ino, mode, 0, 0, nlink, 0, data.Size(), 0, 0, 0, 0, len(name)+1, 0)
		head += name + "\x00"
		if _, err := w.Write(pad([]byte(head))); err != nil {
			return err
		}
		if _, err := io.CopyN(w, io.NewSectionReader(data, 0, data.Size()), data.Size()); err != nil {
			return err
		}
		_, err := w.Write(make([]byte, -data.Size()&3))
		return err
	}
	var folder func(name string) error
	folder = func(name string) error {
		if made[name] {
			return nil
		}
		made[name] = true
		if err := folder(path.Dir(name)); err != nil {
			return err
		}
		return put(name, unix.S_IFDIR|0o755, 2, section(nil))
	}
	for _, e := range entries {
		if dir, ok := strings.CutSuffix(e.name, "/"); ok {
			if err := folder(dir); err != nil {
				return err
			}
			continue
		}
		if err := folder(path.Dir(e.name)); err != nil {
			return err
		}
		mode, data := unix.S_IFREG|e.mode, cmp.Or(e.from, section(e.data))
		if e.link != "" {
			mode, data = unix.S_IFLNK|0o777, section([]byte(e.link))
		}
		if err := put(e.name, mode, 1, data); err != nil {
			return err
		}
	}
	return put("TRAILER!!!", 0, 1, section(nil))
}

func pad(b []byte) []byte { return append(b, make([]byte, -len(b)&3)...) }

func section(b []byte) *io.SectionReader {
	return io.NewSectionReader(bytes.NewReader(b), 0, int64(len(b)))
}
