package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/builder/guest"
)

// maxLayers is what overlayfs takes (OVL_MAX_STACK in fs/overlayfs/super.c), without the two that buildRoot adds.
const maxLayers = 500 - 2

// stage is a folder that every host has and no layer lies in. A tmpfs is mounted over it, in this mount namespace alone, for
// the few folders that the set-up needs; so nothing is made on the host.
const stage = "/proc"

// devices are the host's device nodes that a sandbox sees.
var devices = []string{"null", "zero", "full", "random", "urandom"}

// buildRoot makes this mount namespace hold the sandbox's file system and nothing else, and returns its scratch folders. The root is an overlay of the layers
// without an upper one, and so read-only by itself (kernel: Documentation/filesystems/overlayfs.rst). Mount points that the
// layers lack are in a layer of the stage's below them, where they can't cover or change anything.
func buildRoot(layers, scratch []string, memory int64, in builder.Surroundings) (folders []string, err error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return nil, fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("tmpfs", stage, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0755"); err != nil {
		return nil, fmt.Errorf("mount a tmpfs: %w", err)
	}
	if err := os.Chdir(stage); err != nil {
		return nil, err
	}
	places, err := mountPoints(layers, scratch)
	if err != nil {
		return nil, err
	}
	if err := mountOverlay(layers, places); err != nil {
		return nil, err
	}

	// From here on paths are looked up in the new root, so no link in a layer can lead out of it. The host's devices are held
	// by descriptors, and the host's tree stays mounted beneath until the end: without a whole /proc in sight the kernel
	// gives out no new one (mount_too_revealing in fs/namespace.c).
	var held []int
	for _, d := range devices {
		fd, err := unix.Open("/dev/"+d, unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, fmt.Errorf("open /dev/%s: %w", d, err)
		}
		defer unix.Close(fd)
		held = append(held, fd)
	}
	if err := os.Chdir("root"); err != nil {
		return nil, err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return nil, fmt.Errorf("change the root: %w", err)
	}
	if err := mountProc(places[0].path); err != nil {
		return nil, err
	}
	if err := mountDev(places[1].path, held); err != nil {
		return nil, err
	}
	for i, p := range places[2:] {
		if err := mountScratch(p, places[2:2+i], memory, in); err != nil {
			return nil, err
		}
		folders = append(folders, p.path)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return nil, fmt.Errorf("detach the host's file system: %w", err)
	}
	return folders, os.Chdir("/")
}

// A place is a folder of the new root that gets a mount of its own, with its links resolved.
type place struct {
	path string
	mode fs.FileMode
}

// mountPoints returns /proc, /dev, and the scratch folders, those above others first. /tmp is always one of them.
func mountPoints(layers, scratch []string) ([]place, error) {
	places := make([]place, 0, 3+len(scratch))
	for _, p := range slices.Concat([]string{"/proc", "/dev", "/tmp"}, scratch) {
		if !path.IsAbs(p) {
			return nil, fmt.Errorf("scratch folder %q: not an absolute path", p)
		}
		to, err := resolve(layers, p)
		if err != nil {
			return nil, fmt.Errorf("make folder %q: %w", p, err)
		}
		switch i := slices.IndexFunc(places, func(o place) bool { return o.path == to }); {
		case to == "/", i == 0, i == 1, len(places) > 2 && (within(to, places[0].path) || within(to, places[1].path)):
			return nil, fmt.Errorf("scratch folder %q: can't be a folder of its own", p)
		case i > 1:
			continue // asked for twice
		}
		mode := fs.FileMode(0o755)
		if len(places) == 2 {
			mode = 0o777 | fs.ModeSticky
		}
		places = append(places, place{to, mode})
	}
	slices.SortFunc(places[2:], func(a, b place) int { return strings.Compare(a.path, b.path) })
	return places, nil
}

func within(p, dir string) bool { return strings.HasPrefix(p, dir+"/") }

// resolve follows the links in a path as a process with the merged layers as its root would. What doesn't exist stays as it
// is; what exists must be a folder.
func resolve(layers []string, p string) (string, error) {
	done, rest := "/", strings.Split(path.Clean(p), "/")
	for links := 0; len(rest) > 0; {
		name := rest[0]
		rest = rest[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			done = path.Dir(done)
			continue
		}
		next := path.Join(done, name)
		for _, layer := range slices.Backward(layers) {
			st, err := os.Lstat(layer + next)
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
				continue
			} else if err != nil {
				return "", err
			}
			if st.Mode()&fs.ModeSymlink != 0 {
				if links++; links > 40 { // MAXSYMLINKS of the kernel
					return "", unix.ELOOP
				}
				to, err := os.Readlink(layer + next)
				if err != nil {
					return "", err
				}
				if path.IsAbs(to) {
					done = "/"
				}
				rest = append(strings.Split(to, "/"), rest...)
				next = ""
			} else if !st.IsDir() && st.Mode()&fs.ModeCharDevice == 0 { // a character device is a whiteout
				return "", fmt.Errorf("%q: %w", next, unix.ENOTDIR)
			}
			break
		}
		if next != "" {
			done = next
		}
	}
	return done, nil
}

// mountOverlay mounts the layers at "root" in the stage. They are named by short links: mount(2) takes a page of options, in
// which paths would have to be escaped.
func mountOverlay(layers []string, places []place) error {
	for _, dir := range []string{"links", "top", "bottom", "root"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	for _, p := range places {
		if err := os.MkdirAll("bottom"+p.path, 0o755); err != nil {
			return err
		}
	}
	// An empty folder goes on top: the root folder of a layer may be closed, as temporary folders are.
	names := []string{"t"}
	links := map[string]string{"t": "../top", "b": "../bottom"}
	for i, layer := range slices.Backward(layers) {
		name := strconv.Itoa(i)
		names = append(names, name)
		links[name] = layer
	}
	names = append(names, "b")
	for name, to := range links {
		if err := os.Symlink(to, "links/"+name); err != nil {
			return err
		}
	}
	if err := os.Chdir("links"); err != nil {
		return err
	}
	err := unix.Mount("overlay", "../root", "overlay", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "xino=off,lowerdir="+strings.Join(names, ":"))
	if err != nil {
		return fmt.Errorf("mount the overlay of %d layers: %w", len(layers), err)
	}
	return os.Chdir("..")
}

// mountProc shows the processes of this pid namespace and nothing of the machine: no cpuinfo, no version, no sys.
func mountProc(at string) error {
	if err := unix.Mount("proc", at, "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "subset=pid"); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

func mountDev(at string, held []int) error {
	const flags = unix.MS_NOSUID | unix.MS_NOEXEC
	if err := unix.Mount("tmpfs", at, "tmpfs", flags, "mode=0755"); err != nil {
		return fmt.Errorf("mount /dev: %w", err)
	}
	for i, d := range devices {
		node := at + "/" + d
		if err := os.WriteFile(node, nil, 0o666); err != nil {
			return err
		}
		if err := unix.Mount("/proc/self/fd/"+strconv.Itoa(held[i]), node, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind /dev/%s: %w", d, err)
		}
		// Read-only is about the node's times and mode; devices can be written to all the same.
		if err := addFlags(node, flags|unix.MS_RDONLY); err != nil {
			return fmt.Errorf("bind /dev/%s: %w", d, err)
		}
	}
	for name, to := range map[string]string{
		"fd": "/proc/self/fd", "stdin": "/proc/self/fd/0", "stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2",
	} {
		if err := os.Symlink(to, at+"/"+name); err != nil {
			return err
		}
	}
	if err := addFlags(at, flags|unix.MS_RDONLY); err != nil {
		return fmt.Errorf("make /dev read-only: %w", err)
	}
	return nil
}

// addFlags adds flags to a mount. Those that it has must be repeated: the kernel doesn't let a user namespace take away what
// the mount was inherited with (mount_namespaces(7)).
func addFlags(at string, flags uintptr) error {
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		return err
	}
	for has, flag := range map[int64]uintptr{
		unix.ST_RDONLY: unix.MS_RDONLY, unix.ST_NOSUID: unix.MS_NOSUID, unix.ST_NODEV: unix.MS_NODEV, unix.ST_NOEXEC: unix.MS_NOEXEC,
		unix.ST_NOATIME: unix.MS_NOATIME, unix.ST_NODIRATIME: unix.MS_NODIRATIME, unix.ST_RELATIME: unix.MS_RELATIME,
	} {
		if int64(st.Flags)&has != 0 {
			flags |= flag
		}
	}
	return unix.Mount("", at, "", unix.MS_REMOUNT|unix.MS_BIND|flags, "")
}

// mountScratch gives a folder its own tmpfs. Where it lies within another scratch folder it's made there first.
func mountScratch(p place, before []place, memory int64, in builder.Surroundings) error {
	uid, gid := in.IDs()
	for _, outer := range slices.Backward(before) {
		if !within(p.path, outer.path) {
			continue
		}
		dir := outer.path
		for name := range strings.SplitSeq(strings.TrimPrefix(p.path, outer.path+"/"), "/") {
			dir += "/" + name
			if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
			if err := os.Chown(dir, uid, gid); err != nil {
				return err
			}
		}
		break
	}
	mode := p.mode.Perm()
	if p.mode&fs.ModeSticky != 0 {
		mode |= 0o1000
	}
	options := fmt.Sprintf("mode=%#o,uid=%d,gid=%d", uint32(mode), uid, gid)
	if size := guest.FolderSize(memory); size > 0 {
		options += fmt.Sprintf(",size=%d", size)
	}
	if err := unix.Mount("tmpfs", p.path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, options); err != nil {
		return fmt.Errorf("mount scratch folder %q: %w", p.path, err)
	}
	return nil
}
