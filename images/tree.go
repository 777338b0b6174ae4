package images

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
)

// epoch is the time of every folder that no package dates, and of all that the glue makes: 1980-01-01, the earliest that a zip
// file can hold, which is the customary SOURCE_DATE_EPOCH of builds without one. Seconds since 1970.
const epoch = 315532800

// limits bound what an archive may unpack to. A Debian toolchain has 15,000 entries and 400 MB.
type limits struct {
	entries int64 // per layer
	bytes   int64 // of file contents, per layer
}

var defaultLimits = limits{entries: 1 << 20, bytes: 16 << 30}

// maxTrailer bounds what may follow an archive's end mark: tar pads to a record of 10 KiB, some writers to more.
const maxTrailer = 1 << 20

// A tree is a layer while it is unpacked. Its content depends on the archives and their numbers only: where several hold the
// same file or link, the highest number wins, whatever the order in which they arrive. Folders merge. A path that is a folder
// in one archive and something else in another is an error. All methods but finish are safe for concurrent use.
type tree struct {
	dir    string   // holds fs (the layer), stage (entries that have no place yet) and lost (entries that another archive overrides)
	owners []string // names for messages, by number
	limits limits
	fs     *os.Root
	stage  *os.File
	lost   *os.File

	mu      sync.Mutex
	nodes   map[string]*node
	losers  map[loser]place
	seq     int
	entries int64
	bytes   int64
}

type node struct {
	kind  byte // 'd', 'f' or 'l'
	owner int  // -1: a folder that is only implied by what is in it
	mode  fs.FileMode
	mtime int64
	link  string   // kind 'l'
	file  *content // kind 'f'; hard links share it
}

type content struct {
	mode  fs.FileMode
	mtime int64
	size  int64
	sum   [sha256.Size]byte
}

type loser struct {
	owner int
	path  string
}

type place struct {
	name string // in lost
	node *node
}

// An entry is one line of a layer's index: all that its tar form is made from.
type entry struct {
	Path  string `json:"p"`
	Kind  string `json:"t"`           // "d", "f", "l" (symbolic link) or "h" (hard link to an earlier entry)
	Mode  uint32 `json:"m,omitempty"` // tar's permission bits, with 01000 for sticky
	Mtime int64  `json:"s,omitempty"` // seconds since 1970
	Size  int64  `json:"n,omitempty"`
	Sum   string `json:"h,omitempty"` // SHA-256, hexadecimal
	Link  string `json:"l,omitempty"`
}

func newTree(dir string, owners []string, lim limits) (t *tree, err error) {
	t = &tree{dir: dir, owners: owners, limits: lim, nodes: map[string]*node{}, losers: map[loser]place{}}
	defer func() {
		if err != nil {
			t.close()
		}
	}()
	for _, d := range []string{"fs", "stage", "lost"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if t.fs, err = os.OpenRoot(filepath.Join(dir, "fs")); err != nil {
		return nil, err
	}
	if t.stage, err = os.Open(filepath.Join(dir, "stage")); err != nil {
		return nil, err
	}
	t.lost, err = os.Open(filepath.Join(dir, "lost"))
	return t, err
}

func (t *tree) close() {
	if t.fs != nil {
		t.fs.Close()
	}
	for _, f := range []*os.File{t.stage, t.lost} {
		if f != nil {
			f.Close()
		}
	}
}

// policy says how the names of an archive become the names of a layer.
type policy struct {
	place  func(name string) (string, bool) // where a cleaned name goes; false drops the entry
	sticky bool                             // keep the sticky bit of folders
	drop   func(name, to string) bool       // of a symbolic link: whether to drop it; may be nil
}

// extract unpacks an archive as number owner. Nothing is written outside the tree: a path is followed through folders only,
// never through a link. Files become 0644 or 0755 and folders 0755, so that whatever user a build is mapped to can read them;
// owners, set-id bits and extended attributes are not kept. Devices, pipes and everything else that is no file, folder or link
// are refused.
func (t *tree) extract(ctx context.Context, owner int, r io.Reader, p policy) error {
	x := &extractor{tree: t, owner: owner, policy: p, sum: sha256.New(), buf: make([]byte, 128<<10)}
	defer x.close()
	tr := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("read tar: %w", err)
		}
		if err := x.entry(ctx, h, tr); err != nil {
			return err
		}
	}
	n, err := io.CopyBuffer(io.Discard, io.LimitReader(r, maxTrailer+1), x.buf)
	if err != nil {
		return fmt.Errorf("read tar: %w", err)
	}
	if n > maxTrailer {
		return fmt.Errorf("read tar: more than %d bytes follow its end", maxTrailer)
	}
	return nil
}

type extractor struct {
	*tree
	policy
	owner   int
	sum     hash.Hash
	buf     []byte
	dirName string   // the folder that dirFile is
	dirFile *os.File // kept open: archives list a folder's files one after the other
}

func (x *extractor) close() {
	if x.dirFile != nil {
		x.dirFile.Close()
	}
}

func (x *extractor) entry(ctx context.Context, h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	if h.Name == "" {
		return errors.New("an entry without a name")
	}
	if h.Size < 0 {
		return fmt.Errorf("entry %q has a negative size", h.Name)
	}
	x.mu.Lock()
	x.entries++
	x.bytes += h.Size
	over := x.entries > x.limits.entries || x.bytes > x.limits.bytes || x.bytes < 0
	x.mu.Unlock()
	if over {
		return fmt.Errorf("unpacks to more than %d entries or %d bytes", x.limits.entries, x.limits.bytes)
	}
	name, err := cleanName(h.Name)
	if err != nil {
		return err
	}
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return fmt.Errorf("entry %q is no folder", h.Name)
		}
		return nil
	}
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeDir, tar.TypeSymlink, tar.TypeLink:
	default:
		return fmt.Errorf("entry %q is a %s: only files, folders and links are unpacked", h.Name, typeName(h.Typeflag))
	}
	at, keep := x.place(name)
	if !keep || h.Typeflag == tar.TypeSymlink && x.drop != nil && x.drop(name, h.Linkname) {
		return nil
	}
	mtime := min(max(h.ModTime.Unix(), 0), 1<<33-1) // what the plain tar format can hold
	switch h.Typeflag {
	case tar.TypeDir:
		mode := fs.FileMode(0o755)
		if x.sticky && h.Mode&0o1000 != 0 {
			mode = 0o777 | fs.ModeSticky
		}
		return x.folder(at, &node{kind: 'd', owner: x.owner, mode: mode, mtime: mtime})
	case tar.TypeSymlink:
		link := h.Linkname
		if strings.HasPrefix(at, privateDir+"/") && !path.IsAbs(link) { // it's diverted: Ubuntu's date has been a link since 25.10
			link = path.Join("/", path.Dir(name), link)
		}
		if err := checkLink(at, link); err != nil {
			return err
		}
		tmp := x.temp()
		if err := unix.Symlinkat(link, int(x.stage.Fd()), tmp); err != nil {
			return fmt.Errorf("link %q: %w", at, err)
		}
		if err := utimes(int(x.stage.Fd()), tmp, mtime); err != nil {
			return fmt.Errorf("link %q: %w", at, err)
		}
		return x.commit(at, tmp, &node{kind: 'l', owner: x.owner, mtime: mtime, link: link})
	case tar.TypeLink:
		return x.hardLink(at, h.Linkname)
	}
	return x.file(ctx, at, h, mtime, r)
}

func (x *extractor) file(ctx context.Context, at string, h *tar.Header, mtime int64, r io.Reader) error {
	c := &content{mode: 0o644, mtime: mtime, size: h.Size}
	if h.Mode&0o111 != 0 {
		c.mode = 0o755
	}
	entry := &node{kind: 'f', owner: x.owner, file: c}
	fd, tmp, err := x.create(at, entry)
	if err != nil {
		return fmt.Errorf("file %q: %w", at, err)
	}
	f := os.NewFile(uintptr(fd), at)
	defer f.Close()
	x.sum.Reset()
	var n int64
	for {
		k, rerr := r.Read(x.buf)
		x.sum.Write(x.buf[:k])
		if _, err := f.Write(x.buf[:k]); err != nil {
			return err
		}
		n += int64(k)
		if rerr == io.EOF {
			break
		}
		if rerr != nil {
			return fmt.Errorf("file %q: read tar: %w", at, rerr)
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
	}
	if n != h.Size {
		return fmt.Errorf("file %q has %d bytes; its header says %d", at, n, h.Size)
	}
	x.sum.Sum(c.sum[:0])
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("file %q: %w", at, err)
	}
	if st.Mode&0o7777 != uint32(c.mode) { // this process's umask took some of it
		if err := f.Chmod(c.mode); err != nil {
			return err
		}
	}
	if err := futimes(fd, mtime); err != nil {
		return fmt.Errorf("file %q: %w", at, err)
	}
	if err := f.Close(); err != nil {
		return err
	}
	if tmp == "" {
		return nil
	}
	return x.commit(at, tmp, entry)
}

// create makes the file of an entry: in its place if no archive has anything there, which spares renaming it, or else in the stage
// folder, with the name tmp. In its place it may be overridden, and so moved, before it is written.
func (x *extractor) create(at string, n *node) (fd int, tmp string, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	dir, name := x.stage, ""
	if x.nodes[at] == nil {
		if dir, name, err = x.parent(at); err != nil {
			return -1, "", err
		}
	} else {
		x.seq++
		tmp = strconv.Itoa(x.seq)
		name = tmp
	}
	fd, err = unix.Openat(int(dir.Fd()), name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, uint32(n.file.mode))
	if err == nil && tmp == "" {
		x.nodes[at] = n
	}
	return fd, tmp, err
}

func (x *extractor) folder(at string, n *node) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	old := x.nodes[at]
	if old == nil {
		return x.mkdir(at, n)
	}
	if old.kind != 'd' {
		return x.clash(at, old)
	}
	if n.owner >= old.owner {
		x.nodes[at] = n
	}
	return nil
}

func (x *extractor) hardLink(at, linkname string) error {
	target, err := cleanName(linkname)
	if err != nil {
		return fmt.Errorf("hard link %q: %w", at, err)
	}
	target, _ = x.place(target)
	tmp := x.temp()
	n, err := func() (*node, error) {
		x.mu.Lock()
		defer x.mu.Unlock()
		from, name := x.lost, ""
		n := x.nodes[target]
		if n != nil && n.owner == x.owner && n.kind != 'd' {
			dir, err := x.fs.Open(path.Dir(target))
			if err != nil {
				return nil, err
			}
			defer dir.Close()
			from, name = dir, path.Base(target)
		} else if lost, ok := x.losers[loser{x.owner, target}]; ok {
			n, name = lost.node, lost.name
		} else {
			return nil, fmt.Errorf("its target %q is no file that came before it in the same package", linkname)
		}
		return n, unix.Linkat(int(from.Fd()), name, int(x.stage.Fd()), tmp, 0)
	}()
	if err != nil {
		return fmt.Errorf("hard link %q: %w", at, err)
	}
	return x.commit(at, tmp, n)
}

func (x *extractor) temp() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.seq++
	return strconv.Itoa(x.seq)
}

// commit gives a finished file or link of the stage folder its place: in the layer, or aside if a later archive has it.
func (x *extractor) commit(at, tmp string, n *node) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	old := x.nodes[at]
	if old != nil && old.kind == 'd' {
		return x.clash(at, old)
	}
	if old != nil && old.owner > x.owner {
		return x.lose(x.owner, at, n, x.stage, tmp)
	}
	dir, base, err := x.parent(at)
	if err != nil {
		return err
	}
	if old != nil && old.owner < x.owner {
		if err := x.lose(old.owner, at, old, dir, base); err != nil {
			return err
		}
	}
	if err := unix.Renameat(int(x.stage.Fd()), tmp, int(dir.Fd()), base); err != nil {
		return fmt.Errorf("place %q: %w", at, err)
	}
	x.nodes[at] = n
	return nil
}

// lose puts an entry aside that another archive overrides: its own archive may still have hard links to it.
func (t *tree) lose(owner int, at string, n *node, dir *os.File, name string) error {
	t.seq++
	to := strconv.Itoa(t.seq)
	if err := unix.Renameat(int(dir.Fd()), name, int(t.lost.Fd()), to); err != nil {
		return fmt.Errorf("put %q aside: %w", at, err)
	}
	t.losers[loser{owner, at}] = place{to, n}
	return nil
}

// parent makes the folder that an entry is in, if there is none, and opens it; name is the entry's in it.
func (x *extractor) parent(at string) (dir *os.File, name string, err error) {
	if err := x.parents(at); err != nil {
		return nil, "", err
	}
	to, name := path.Split(at)
	if to == "" {
		to = "."
	}
	if x.dirFile == nil || to != x.dirName {
		f, err := x.fs.Open(to)
		if err != nil {
			return nil, "", err
		}
		x.close()
		x.dirName, x.dirFile = to, f
	}
	return x.dirFile, name, nil
}

func (x *extractor) parents(at string) error {
	dir := path.Dir(at)
	if dir == "." {
		return nil
	}
	if n := x.nodes[dir]; n != nil {
		if n.kind != 'd' {
			return x.clash(dir, n)
		}
		return nil
	}
	return x.mkdir(dir, &node{kind: 'd', owner: -1, mode: 0o755, mtime: epoch})
}

func (x *extractor) mkdir(at string, n *node) error {
	if err := x.parents(at); err != nil {
		return err
	}
	if err := x.fs.Mkdir(at, 0o700); err != nil {
		return err
	}
	x.nodes[at] = n
	return nil
}

func (x *extractor) clash(at string, old *node) error {
	if old.owner < 0 || old.owner == x.owner {
		return fmt.Errorf("%q is a folder and a file or link at once", at)
	}
	return fmt.Errorf("%q is a folder in one package and a file or link in another: %s has it too", at, x.owners[old.owner])
}

// finish completes what extract could not know: the times of folders. It writes the index and returns the totals. The folder
// then holds fs and index alone.
func (t *tree) finish() (rec record, err error) {
	defer t.close()
	if err := chtimesDir(t.fs, ".", 0o755, epoch); err != nil {
		return rec, err
	}
	first := map[*content]string{}
	sum := sha256.New()
	out, err := os.OpenFile(filepath.Join(t.dir, "index"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return rec, err
	}
	defer out.Close()
	w := bufio.NewWriterSize(io.MultiWriter(out, sum), 64<<10)
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	for _, p := range slices.Sorted(maps.Keys(t.nodes)) {
		n := t.nodes[p]
		e := entry{Path: p, Kind: string(n.kind), Mtime: n.mtime}
		switch n.kind {
		case 'd':
			if err := chtimesDir(t.fs, p, n.mode, n.mtime); err != nil {
				return rec, err
			}
			e.Mode = tarMode(n.mode)
		case 'l':
			e.Mode, e.Link = 0o777, n.link
		case 'f':
			e.Mode, e.Mtime, e.Size = tarMode(n.file.mode), n.file.mtime, n.file.size
			if to, ok := first[n.file]; ok {
				e.Kind, e.Link, e.Size = "h", to, 0
			} else {
				first[n.file] = p
				e.Sum = hex.EncodeToString(n.file.sum[:])
			}
		}
		rec.Entries++
		rec.Size += e.Size
		if err := enc.Encode(e); err != nil {
			return rec, err
		}
	}
	if err := w.Flush(); err != nil {
		return rec, err
	}
	if err := out.Close(); err != nil {
		return rec, err
	}
	rec.Tree = "sha256:" + hex.EncodeToString(sum.Sum(nil))
	for _, d := range []string{"stage", "lost"} {
		if err := durable.RemoveAll(filepath.Join(t.dir, d)); err != nil {
			return rec, err
		}
	}
	return rec, nil
}

func chtimesDir(root *os.Root, name string, mode fs.FileMode, mtime int64) error {
	d, err := root.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Chmod(mode); err != nil {
		return err
	}
	return utimes(int(d.Fd()), ".", mtime)
}

func utimes(dir int, name string, mtime int64) error {
	ts := unix.NsecToTimespec(mtime * int64(time.Second))
	return unix.UtimesNanoAt(dir, name, []unix.Timespec{ts, ts}, unix.AT_SYMLINK_NOFOLLOW)
}

// futimes is utimes for an open file.
func futimes(fd int, mtime int64) error {
	ts := unix.NsecToTimespec(mtime * int64(time.Second))
	both := [2]unix.Timespec{ts, ts}
	if _, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&both)), 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

func tarMode(m fs.FileMode) uint32 {
	bits := uint32(m.Perm())
	if m&fs.ModeSticky != 0 {
		bits |= 0o1000
	}
	return bits
}

// cleanName gives the relative, slash-separated form of an archive's name, "." for its top. Names that could lead out of the
// tree or that no file system takes are errors.
func cleanName(name string) (string, error) {
	if strings.HasPrefix(name, "/") {
		return "", fmt.Errorf("name %q is absolute", name)
	}
	if len(name) > 4000 || strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("name %.80q is too long or has a zero byte", name)
	}
	if !utf8.ValidString(name) {
		return "", fmt.Errorf("name %q is not UTF-8", name)
	}
	for part := range strings.SplitSeq(name, "/") {
		if part == ".." {
			return "", fmt.Errorf("name %q leads out of the archive", name)
		}
		if len(part) > 255 {
			return "", fmt.Errorf("name %.80q has a part of more than 255 bytes", name)
		}
	}
	return path.Clean(name), nil
}

// checkLink refuses a symbolic link whose target would leave the tree. Absolute targets count from the tree's own top: that is
// where a sandbox resolves them.
func checkLink(at, target string) error {
	if target == "" || len(target) > 4000 || strings.ContainsRune(target, 0) || !utf8.ValidString(target) {
		return fmt.Errorf("link %q has the unusable target %.80q", at, target)
	}
	depth := strings.Count(at, "/")
	if strings.HasPrefix(target, "/") {
		depth = 0
	}
	for part := range strings.SplitSeq(target, "/") {
		switch part {
		case "", ".":
		case "..":
			if depth--; depth < 0 {
				return fmt.Errorf("link %q to %q leads out of the archive", at, target)
			}
		default:
			depth++
		}
	}
	return nil
}

func typeName(flag byte) string {
	switch flag {
	case tar.TypeChar, tar.TypeBlock:
		return "device"
	case tar.TypeFifo:
		return "named pipe"
	}
	return fmt.Sprintf("tar entry of type %q", flag)
}

// readIndex calls fn for each entry of a layer's index, in order, and checks the index against the record's hash.
func readIndex(dir string, want string, fn func(entry) error) error {
	b, err := os.ReadFile(filepath.Join(dir, "index"))
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(b); "sha256:"+hex.EncodeToString(sum[:]) != want {
		return fmt.Errorf("the index of layer %q was altered", filepath.Base(dir))
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	for {
		var e entry
		if err := dec.Decode(&e); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if err := fn(e); err != nil {
			return err
		}
	}
}
