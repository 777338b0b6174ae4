package trial

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
)

// ScriptFile is a program that is run once the modules are loaded, as root, in an empty folder /tmp. Its environment is PATH, HOME, MODULES (the
// names of those tried, with spaces) and KERNEL (the release). It passes if it exits with 0.
type ScriptFile struct {
	Name string // of the file, for messages
	File []byte // a static program of the kernel's architecture, or what begins with #!
	// Layers are the folders that a root is made of, the lowest first, such as those of images.Root. The interpreter comes from there with its
	// libraries, and so do those of the usual programs of a shell script that are there. Nothing else of the root does.
	Layers []string
}

const (
	maxScriptRoot = 64 << 20 // bytes of what the initramfs has for a script
	// scriptPath has first where the glue of images keeps the programs that it puts scripts of its own before, such as date.
	scriptPath = "/usr/lib/godkms-hermetic:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

// usual are the programs that a shell script finds if the root has them.
var usual = strings.Fields("[ awk basename bash cat chmod chown cmp cp cut date dd diff dirname dmesg echo egrep env expr false find grep head id insmod kill " +
	"ln losetup ls lsmod mkdir mkfifo mknod mktemp modinfo mount mountpoint mv od printf ps pwd readlink realpath rm rmdir rmmod sed seq sh sleep sort " +
	"stat stty sync tail tee test timeout touch tr true umount uname uniq wc xargs")

// entries are the script at /script and all that it needs.
func (s *ScriptFile) entries(machine elf.Machine) ([]entry, error) {
	r, err := openRoot(s.Layers)
	if err != nil {
		return nil, err
	}
	defer r.close()
	r.machine = machine
	fail := func(err error) error { return fmt.Errorf("the script %q: %w", s.Name, err) }
	rest, isScript := bytes.CutPrefix(s.File, []byte("#!"))
	if !isScript {
		if err := r.program(s.File); err != nil {
			return nil, fail(err)
		}
	} else {
		line, _, _ := bytes.Cut(rest, []byte("\n"))
		words := strings.Fields(string(line))
		if len(words) == 0 || !path.IsAbs(words[0]) {
			return nil, fail(fmt.Errorf("its first line names no interpreter: %q", line))
		}
		if err := r.add(words[0]); err != nil {
			return nil, fail(fmt.Errorf("its interpreter: %w", err))
		}
		programs := usual
		if path.Base(words[0]) == "env" && len(words) > 1 {
			programs = slices.Concat(words[1:2], usual)
		}
		for _, name := range programs {
			if err := r.addProgram(name); err != nil {
				return nil, fail(err)
			}
		}
	}
	out := []entry{{name: "script", mode: 0o755, data: s.File}}
	for _, name := range slices.Sorted(maps.Keys(r.entries)) {
		out = append(out, r.entries[name])
	}
	return out, nil
}

// scriptRoot gathers files of a root. Paths are absolute outside and without the / inside.
type scriptRoot struct {
	layers  []*os.Root // the uppermost first
	machine elf.Machine
	entries map[string]entry
	size    int64
}

func openRoot(layers []string) (*scriptRoot, error) {
	r := &scriptRoot{entries: map[string]entry{}}
	for _, dir := range slices.Backward(layers) {
		layer, err := os.OpenRoot(dir)
		if err != nil {
			r.close()
			return nil, err
		}
		r.layers = append(r.layers, layer)
	}
	return r, nil
}

// OpenFile opens a file of a root that is made of folders, the lowest first, such as those of images.Root. Links lead to where they would in the
// root. If it isn't there, the error wraps fs.ErrNotExist.
func OpenFile(layers []string, name string) (*os.File, error) {
	r, err := openRoot(layers)
	if err != nil {
		return nil, err
	}
	defer r.close()
	real, layer, err := r.resolve(name, map[string]entry{})
	if err != nil {
		return nil, err
	}
	return layer.Open(real)
}

func (r *scriptRoot) close() {
	for _, l := range r.layers {
		l.Close()
	}
}

// addProgram adds a program of PATH if there is one.
func (r *scriptRoot) addProgram(name string) error {
	for dir := range strings.SplitSeq(scriptPath, ":") {
		if err := r.add(path.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// add adds a file, the links on the way to it, and if it's a program what it needs. If it isn't there, the error wraps fs.ErrNotExist.
func (r *scriptRoot) add(name string) error {
	links := map[string]entry{}
	real, layer, err := r.resolve(name, links)
	if err != nil {
		return err
	}
	maps.Copy(r.entries, links)
	if _, there := r.entries[real]; there {
		return nil
	}
	f, err := layer.Open(real)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxScriptRoot-r.size+1))
	if err != nil {
		return err
	}
	if r.size += int64(len(b)); r.size > maxScriptRoot {
		return fmt.Errorf("it needs more than %d MB of programs and libraries", maxScriptRoot>>20)
	}
	r.entries[real] = entry{name: real, mode: 0o755, data: b}
	if !bytes.HasPrefix(b, []byte(elf.ELFMAG)) {
		return nil // such as a script, whose interpreter is among the usual programs or isn't
	}
	if err := r.program(b); err != nil {
		return fmt.Errorf("/%s: %w", real, err)
	}
	return nil
}

// resolve follows the links of a path, which it adds to links, as they would be followed in the root. The result has none.
func (r *scriptRoot) resolve(name string, links map[string]entry) (real string, layer *os.Root, err error) {
	todo := strings.Split(strings.TrimPrefix(path.Clean(name), "/"), "/")
	hops := 0
	for len(todo) > 0 {
		at := path.Join(real, todo[0])
		todo = todo[1:]
		info, in, err := r.lstat(at)
		if err != nil {
			return "", nil, &fs.PathError{Op: "find in the build root", Path: name, Err: err}
		}
		switch {
		case info.Mode()&fs.ModeSymlink != 0:
			if hops++; hops > 40 {
				return "", nil, &fs.PathError{Op: "find in the build root", Path: name, Err: errors.New("its links don't end")}
			}
			target, err := in.Readlink(at)
			if err != nil {
				return "", nil, err
			}
			links[at] = entry{name: at, link: target}
			if !path.IsAbs(target) {
				target = path.Join("/", path.Dir(at), target)
			}
			todo, real = append(strings.Split(strings.TrimPrefix(path.Clean(target), "/"), "/"), todo...), ""
			continue
		case len(todo) == 0 && !info.Mode().IsRegular():
			return "", nil, &fs.PathError{Op: "find in the build root", Path: name, Err: errors.New("it is no file")}
		}
		real, layer = at, in
	}
	return real, layer, nil
}

// lstat finds a path without links before its end in the uppermost layer that has it.
func (r *scriptRoot) lstat(name string) (fs.FileInfo, *os.Root, error) {
	for _, l := range r.layers {
		info, err := l.Lstat(name)
		if err == nil {
			return info, l, nil
		}
	}
	return nil, nil, fs.ErrNotExist
}

// program adds what an ELF program needs: its interpreter, ld.so, and the libraries.
func (r *scriptRoot) program(b []byte) error {
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		return errors.New("it is neither a program (ELF) nor a script with #! at its beginning")
	}
	if f.Machine != r.machine {
		return fmt.Errorf("it is a program for another processor (%v): the kernel's is %v", f.Machine, r.machine)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		name, err := io.ReadAll(io.LimitReader(p.Open(), 4096))
		if err != nil {
			return err
		}
		if err := r.library(strings.TrimRight(string(name), "\x00")); err != nil {
			return err
		}
	}
	libraries, err := f.ImportedLibraries()
	if err != nil {
		return err
	}
	for _, name := range libraries {
		if err := r.library(name); err != nil {
			return err
		}
	}
	return nil
}

// library adds a library, by path or by name. It's looked for where ld.so looks by default (ld.so(8)), in Debian's form and in the plain one.
func (r *scriptRoot) library(name string) error {
	if path.IsAbs(name) {
		return needed(name, r.add(name))
	}
	triple := map[elf.Machine]string{elf.EM_X86_64: "x86_64-linux-gnu", elf.EM_AARCH64: "aarch64-linux-gnu"}[r.machine]
	for _, dir := range []string{"/lib/" + triple, "/usr/lib/" + triple, "/lib64", "/usr/lib64", "/lib", "/usr/lib"} {
		if err := r.add(path.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return needed(name, fs.ErrNotExist)
}

// needed says of a library that isn't there what to do.
func needed(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("it needs %s, which the build root doesn't have: link it statically, or name the package with --with", name)
	}
	return err
}
