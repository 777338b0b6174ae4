package sandbox

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
)

// nobody is the id of the host that the user of a sandbox stands for when root starts it: the kernel's own
// overflow id, which owns nothing (kernel: Documentation/admin-guide/sysctl/fs.rst, overflowuid).
const nobody = 65534

// everyID maps each id that this process's own user namespace has to itself, but inner to outer and outer to inner. With
// every id mapped, the set-up may pass through folders of any user, as root does outside. It reports false when the
// namespace lacks one of the two, which may be the same.
func everyID(mapFile string, inner, outer int) ([]syscall.SysProcIDMap, bool) {
	b, err := os.ReadFile(mapFile)
	if err != nil {
		return nil, false
	}
	var m []syscall.SysProcIDMap
	ids, swapped := slices.Compact([]int{min(inner, outer), max(inner, outer)}), 0
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			return nil, false
		}
		first, err1 := strconv.ParseUint(f[0], 10, 32)
		count, err2 := strconv.ParseUint(f[2], 10, 32)
		if err1 != nil || err2 != nil {
			return nil, false
		}
		start, end := int(first), int(first+count)
		points := []int{start}
		for _, id := range ids {
			if id >= start && id < end {
				points = append(points, id, id+1)
				swapped++
			}
		}
		points = slices.Compact(append(points, end))
		for i := range len(points) - 1 {
			from, size := points[i], points[i+1]-points[i]
			to := from
			if size == 1 && from == inner {
				to = outer
			} else if size == 1 && from == outer {
				to = inner
			}
			m = append(m, syscall.SysProcIDMap{ContainerID: from, HostID: to, Size: size})
		}
	}
	return m, swapped == len(ids)
}

// identity fills in who the sandbox's first process is. Root becomes inner root for the set-up, with every id mapped;
// anyone else can map only himself (user_namespaces(7)), and becomes the sandbox's user at once, with the set-up's capabilities
// kept over the exec as ambient ones. It returns the host's uid and gid for the sandbox's user.
func identity(attr *syscall.SysProcAttr, asRoot bool, s builder.Surroundings) (uid, gid int) {
	userID, groupID := s.IDs()
	if asRoot {
		uids, ok1 := everyID("/proc/self/uid_map", userID, nobody)
		gids, ok2 := everyID("/proc/self/gid_map", groupID, nobody)
		if ok1 && ok2 {
			attr.UidMappings, attr.GidMappings, attr.GidMappingsEnableSetgroups = uids, gids, true
			attr.Credential = &syscall.Credential{Uid: 0, Gid: 0}
			return nobody, nobody
		}
	}
	uid, gid = os.Geteuid(), os.Getegid()
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: userID, HostID: uid, Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: groupID, HostID: gid, Size: 1}}
	for c := uintptr(0); c <= lastCap(); c++ {
		attr.AmbientCaps = append(attr.AmbientCaps, c)
	}
	return uid, gid
}
