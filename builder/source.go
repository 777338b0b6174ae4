package builder

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/builder/dkms"
	"github.com/godkms-hermetic/godkms-hermetic/internal/decompress"
	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
)

// Epoch is the time that a build lives in: the mtime of every source file, SOURCE_DATE_EPOCH, and what date says. It is
// 1980-01-01, the earliest that every archive format can hold.
var Epoch = time.Unix(315532800, 0).UTC()

// The bounds of a source tree.
const (
	maxSourceFiles = 200_000
	maxSourceBytes = 2 << 30
	maxSourceNames = 32 << 20 // bytes of all names and targets of links, which are held in memory
)

// lockFile has what a build takes (kernels.LockFile). It is kept beside the dkms.conf and is no part of the source: else all would have to
// be built again when one kernel is added to it.
const lockFile = "godkms.lock"

// vcsFolders are left out of a source tree, at any depth.
var vcsFolders = []string{".git", ".hg", ".svn", ".bzr", "CVS", "_darcs"}

// Source is a DKMS source tree, read once: what was hashed is what is built, whatever happens to the files later. It is held
// in a file without a name, so that nothing is left behind however the process ends. Safe for concurrent use.
type Source struct {
	Module  string // PACKAGE_NAME
	Version string // PACKAGE_VERSION
	// MayDepend is every module that the dkms.conf may name in BUILD_DEPENDS, for one kernel or another.
	MayDepend []string
	Digest    v1.Hash // SHA-256 of the tree in its canonical form: names, exec bits, links, contents

	Packages []Wish   // what its godkms.toml asks for in the build root
	Depends  []string // what the package file that it came in depends on

	tar  *os.File
	size int64
	conf []byte // the dkms.conf
}

// SourceOptions says how to read a source.
type SourceOptions struct {
	Temp    string   // folder for the unnamed file; default: os.TempDir()
	Exclude []string // files and folders of this machine that are not part of the tree, nor are folders that have nothing else

	// Open opens a .deb; see kernels.Provider. Without it a .deb is no source.
	Open func(pkg io.Reader) (payload io.ReadCloser, depends []string, err error)
}

// OpenSource reads a source tree, and the godkms.toml beside its dkms.conf, from a folder with a dkms.conf, from the dkms.conf itself, from a tarball (plain, gzip, xz,
// zstd), or from a .deb with usr/src/*/dkms.conf. Links that leave the tree, devices, sockets and pipes are errors.
func OpenSource(ctx context.Context, src string, o SourceOptions) (*Source, error) {
	t := &tree{entries: map[string]*entry{}}
	defer t.close()
	info, err := os.Stat(src)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("source %q: there is no such file or folder", src)
	}
	if err != nil {
		return nil, fmt.Errorf("source: %w", err)
	}
	switch {
	case info.IsDir():
		err = t.readDir(ctx, src, o.Exclude)
	case filepath.Base(src) == "dkms.conf":
		err = t.readDir(ctx, filepath.Dir(src), o.Exclude)
	default:
		err = t.readArchive(ctx, src, o)
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("source %q: %w", src, err)
	}
	s, err := t.canonical(ctx, o.Temp)
	if err != nil {
		return nil, fmt.Errorf("source %q: %w", src, err)
	}
	return s, nil
}

// Tar is the tree as a tar stream in canonical form: sorted, owned by UID and GID, every file as old as Epoch.
func (s *Source) Tar() io.Reader {
	return bufio.NewReaderSize(io.NewSectionReader(s.tar, 0, s.size), 256<<10)
}

// ReadFile gives a file of the tree and whether it is executable, for names below its root with slashes. It follows links. An absent
// one wraps fs.ErrNotExist.
func (s *Source) ReadFile(name string, limit int64) (text []byte, executable bool, err error) {
	for range 8 {
		tr := tar.NewReader(io.NewSectionReader(s.tar, 0, s.size)) // it seeks over what is not read
		for {
			h, err := tr.Next()
			if err == io.EOF {
				return nil, false, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
			}
			if err != nil {
				return nil, false, err
			}
			rest, ok := strings.CutPrefix(name, h.Name)
			isLink := h.Typeflag == tar.TypeSymlink
			if !ok || rest != "" && !(isLink && rest[0] == '/') {
				continue
			}
			switch {
			case isLink: // the file, or a folder on the way
				name = path.Join(path.Dir(h.Name), h.Linkname) + rest
			case h.Size > limit:
				return nil, false, fmt.Errorf("%q has %d bytes, more than %d", name, h.Size, limit)
			default:
				text, err = io.ReadAll(tr)
				return text, h.Mode&0o111 != 0, err
			}
			break
		}
	}
	return nil, false, fmt.Errorf("%q is a link to a link, and so on", name)
}

// Close frees the tree. Readers that Tar gave fail from then on.
func (s *Source) Close() error { return s.tar.Close() }

// tree is a source tree that is being read: from a folder, or from an archive whose contents are spooled to one file.
type tree struct {
	entries map[string]*entry // by slash-separated path below the root, without "./"
	bytes   int64
	names   int
	root    *os.Root // of a folder
	spool   *os.File // of an archive
	depends []string // of a package file
}

type entry struct {
	mode   fs.FileMode // type, and whether it is executable
	link   string      // target of a symbolic link
	offset int64       // in the spool
	size   int64
}

func (t *tree) close() {
	if t.root != nil {
		t.root.Close()
	}
	if t.spool != nil {
		t.spool.Close()
	}
}

func (t *tree) add(name string, e *entry) error {
	t.bytes += e.size
	t.names += len(name) + len(e.link)
	switch {
	case len(t.entries) >= maxSourceFiles:
		return fmt.Errorf("the tree has more than %d files", maxSourceFiles)
	case t.bytes > maxSourceBytes:
		return fmt.Errorf("the tree is larger than %d bytes", int64(maxSourceBytes))
	case t.names > maxSourceNames:
		return fmt.Errorf("the names of the tree's files are longer than %d bytes together", maxSourceNames)
	}
	t.entries[name] = e
	return nil
}

func (t *tree) readDir(ctx context.Context, dir string, exclude []string) error {
	left := make([]string, 0, len(exclude))
	for _, e := range exclude {
		e = filepath.Clean(e)
		if at, err := real(filepath.Dir(e)); err == nil { // what is in a folder that is not there is not in the tree
			left = append(left, filepath.Join(at, filepath.Base(e)))
		}
	}
	abs, err := real(dir)
	if err != nil {
		return err
	}
	if t.root, err = os.OpenRoot(dir); err != nil {
		return err
	}
	if _, err := t.root.Stat("dkms.conf"); errors.Is(err, fs.ErrNotExist) {
		return errors.New("there is no dkms.conf in it; give the folder that has one, a tarball, or a -dkms .deb")
	}
	var above []string // folders with something that is left out
	err = fs.WalkDir(t.root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		excluded := slices.Contains(left, filepath.Join(abs, filepath.FromSlash(name)))
		switch {
		case err != nil:
			return err
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case name == ".":
			return nil
		case excluded, slices.Contains(vcsFolders, d.Name()):
			if excluded {
				above = append(above, path.Dir(name))
			}
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		e := &entry{mode: info.Mode() & (fs.ModeType | 0o111)}
		switch e.mode.Type() {
		case 0:
			e.size = info.Size()
		case fs.ModeSymlink:
			if e.link, err = t.root.Readlink(filepath.FromSlash(name)); err != nil {
				return err
			}
		}
		return t.add(name, e)
	})
	t.prune(above)
	return err
}

// prune leaves out folders, and those above them, in which nothing is left: they are there for what was excluded.
func (t *tree) prune(folders []string) {
	children := map[string]int{}
	for name := range t.entries {
		children[path.Dir(name)]++
	}
	for _, dir := range folders {
		for ; dir != "." && children[dir] == 0 && t.entries[dir] != nil; dir = path.Dir(dir) {
			delete(t.entries, dir)
			children[path.Dir(dir)]--
		}
	}
}

// real is the absolute path of a folder without links.
func real(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}

func (t *tree) readArchive(ctx context.Context, file string, o SourceOptions) error {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe that nobody writes to is empty
	if err != nil {
		return err
	}
	defer f.Close()
	defer context.AfterFunc(ctx, func() { f.Close() })() // or a pipe could be waited for without end
	br := bufio.NewReader(f)
	magic, _ := br.Peek(8)
	isDeb := bytes.Equal(magic, []byte("!<arch>\n"))
	var stream io.ReadCloser
	if isDeb && o.Open != nil {
		stream, t.depends, err = o.Open(br)
	} else {
		stream, err = decompress.NewReader(br)
	}
	if err != nil {
		return fmt.Errorf("neither a folder, a tarball (plain, gzip, xz or zstd) nor a .deb: %w", err)
	}
	defer stream.Close()
	defer f.Close() // before the stream, which would wait for a pipe
	if t.spool, err = durable.Unnamed(o.Temp); err != nil {
		return err
	}
	tr := tar.NewReader(stream)
	for n := 0; ; n++ {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			if n == 0 {
				return fmt.Errorf("neither a folder with a dkms.conf, a tarball (plain, gzip, xz or zstd) nor a .deb: %w", err)
			}
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		name := strings.TrimPrefix(path.Clean("/"+h.Name), "/")
		if name == "" || slices.ContainsFunc(strings.Split(name, "/"), func(s string) bool { return slices.Contains(vcsFolders, s) }) {
			continue
		}
		if slices.Contains(strings.Split(h.Name, "/"), "..") {
			return fmt.Errorf("%q has a \"..\" in its name", h.Name)
		}
		e := &entry{mode: fs.FileMode(h.Mode) & 0o111, link: h.Linkname}
		switch h.Typeflag {
		case tar.TypeReg:
			e.offset, e.size = t.bytes, h.Size
			if h.Size > maxSourceBytes-t.bytes {
				return fmt.Errorf("the tree is larger than %d bytes", int64(maxSourceBytes))
			}
			if _, err := io.Copy(t.spool, tr); err != nil {
				return fmt.Errorf("%q: %w", h.Name, err)
			}
		case tar.TypeDir:
			e.mode |= fs.ModeDir
		case tar.TypeSymlink:
			e.mode |= fs.ModeSymlink
		case tar.TypeLink:
			to := t.entries[strings.TrimPrefix(path.Clean("/"+h.Linkname), "/")]
			if to == nil || to.mode.Type() != 0 {
				return fmt.Errorf("the hard link %q names %q, which is no file before it", h.Name, h.Linkname)
			}
			same := *to
			t.bytes -= same.size // add counts it, but the spool has it once
			e = &same
		case tar.TypeXGlobalHeader:
			continue
		default:
			e.mode |= fs.ModeIrregular
		}
		if err := t.add(name, e); err != nil {
			return err
		}
	}
	return t.descend(isDeb)
}

// descend makes the folder of the archive's only dkms.conf (the least deep one) the root.
func (t *tree) descend(isDeb bool) error {
	var found []string
	for name := range t.entries {
		if path.Base(name) != "dkms.conf" {
			continue
		}
		if dir := path.Dir(name); !isDeb || path.Dir(dir) == "usr/src" {
			found = append(found, dir)
		}
	}
	if len(found) == 0 {
		return errors.New("there is no dkms.conf in it")
	}
	depth := func(dir string) int {
		if dir == "." {
			return 0
		}
		return 1 + strings.Count(dir, "/")
	}
	slices.SortFunc(found, func(a, b string) int {
		if d := depth(a) - depth(b); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
	if len(found) > 1 && depth(found[0]) == depth(found[1]) {
		return fmt.Errorf("it has several: %s; unpack it and name one of the folders", strings.Join(found, ", "))
	}
	if found[0] == "." {
		return nil
	}
	below := map[string]*entry{}
	for name, e := range t.entries {
		rest, ok := strings.CutPrefix(name, found[0]+"/")
		if !ok {
			continue
		}
		if e.mode.Type() == fs.ModeSymlink && leaves(rest, e.link) { // to another file of the package, perhaps: its contents count
			if to := t.entries[t.follow(name)]; to != nil && to.mode.Type() == 0 {
				e = to
			}
		}
		below[rest] = e
	}
	t.entries = below
	return nil
}

// canonical writes the tree in canonical form and reads what is known of it.
func (t *tree) canonical(ctx context.Context, temp string) (_ *Source, err error) {
	out, err := durable.Unnamed(temp)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			out.Close()
		}
	}()
	for _, name := range slices.Collect(maps.Keys(t.entries)) { // archives may leave out folders
		for dir := path.Dir(name); dir != "." && t.entries[dir] == nil; dir = path.Dir(dir) {
			if err := t.add(dir, &entry{mode: fs.ModeDir}); err != nil {
				return nil, err
			}
		}
	}
	if e := t.entries[lockFile]; e != nil && e.mode.IsRegular() {
		delete(t.entries, lockFile)
	}
	confName := t.follow("dkms.conf")
	if e := t.entries[confName]; e != nil && e.size > dkms.MaxConf {
		return nil, fmt.Errorf("dkms.conf has %d bytes; at most %d are read", e.size, dkms.MaxConf)
	}
	settingsName := t.follow(settingsFile)
	if e := t.entries[settingsName]; e != nil && e.size > maxSettings {
		return nil, fmt.Errorf("%s has %d bytes; at most %d are read", settingsFile, e.size, maxSettings)
	}
	hash := sha256.New()
	buffer := bufio.NewWriterSize(io.MultiWriter(out, hash), 256<<10)
	w := tar.NewWriter(buffer)
	var conf, settings bytes.Buffer
	for _, name := range slices.Sorted(maps.Keys(t.entries)) {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		e := t.entries[name]
		h := &tar.Header{Name: name, Mode: 0o644, Uid: UID, Gid: GID, ModTime: Epoch, Typeflag: tar.TypeReg, Size: e.size}
		if e.mode&0o111 != 0 {
			h.Mode = 0o755
		}
		switch e.mode.Type() {
		case 0:
		case fs.ModeDir:
			h.Typeflag, h.Name, h.Mode, h.Size = tar.TypeDir, name+"/", 0o755, 0
		case fs.ModeSymlink:
			if leaves(name, e.link) {
				return nil, fmt.Errorf("the link %q leads out of the tree, to %q", name, e.link)
			}
			h.Typeflag, h.Linkname, h.Mode, h.Size = tar.TypeSymlink, e.link, 0o777, 0
		default:
			return nil, fmt.Errorf("%q is neither a file, a folder nor a link", name)
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("%q: %w", name, err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		to := io.Writer(w)
		switch name {
		case confName:
			to = io.MultiWriter(w, &conf)
		case settingsName:
			to = io.MultiWriter(w, &settings)
		}
		if err := t.copy(to, name, e); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	if err := buffer.Flush(); err != nil {
		return nil, err
	}
	s := &Source{tar: out, Depends: t.depends, Digest: v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(hash.Sum(nil))}}
	if s.size, err = out.Seek(0, io.SeekCurrent); err != nil {
		return nil, err
	}
	h, err := dkms.Read(conf.Bytes())
	if err != nil {
		return nil, err
	}
	s.Module, s.Version, s.MayDepend, s.conf = h.Name, h.Version, h.BuildDepends, conf.Bytes()
	if s.Packages, err = readSettings(settings.Bytes()); err != nil {
		return nil, err
	}
	return s, nil
}

// follow resolves symbolic links to a file of the tree.
func (t *tree) follow(name string) string {
	for range 8 {
		e := t.entries[name]
		if e == nil || e.mode.Type() != fs.ModeSymlink {
			break
		}
		name = path.Join(path.Dir(name), e.link)
	}
	return name
}

// leaves says whether a symbolic link leads out of the tree that it is in.
func leaves(name, link string) bool {
	return path.IsAbs(link) || !filepath.IsLocal(path.Join(path.Dir(name), link))
}

func (t *tree) copy(to io.Writer, name string, e *entry) error {
	var from io.Reader
	if t.spool != nil {
		from = io.NewSectionReader(t.spool, e.offset, e.size)
	} else {
		f, err := t.root.Open(filepath.FromSlash(name))
		if err != nil {
			return err
		}
		defer f.Close()
		from = io.LimitReader(f, e.size+1)
	}
	n, err := io.Copy(to, from)
	if errors.Is(err, tar.ErrWriteTooLong) || err == nil && n != e.size {
		err = errors.New("it changed while it was read")
	}
	if err != nil {
		return fmt.Errorf("%q: %w", name, err)
	}
	return nil
}
