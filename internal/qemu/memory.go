package qemu

import (
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// available is the memory, in bytes, that a process can have without taking it from others: the kernel's estimate (proc_meminfo(5)) or,
// where that is less, what the limits of this process's control groups leave. root is where /proc and the like are.
func available(root string) int64 {
	room := int64(math.MaxInt64)
	if kb, ok := field(filepath.Join(root, "proc/meminfo"), "MemAvailable:"); ok {
		room = kb << 10
	}
	for _, dir := range memoryGroups(root) {
		for _, v := range []struct{ limit, usage, cached string }{
			{"memory.max", "memory.current", "inactive_file"}, // Documentation/admin-guide/cgroup-v2.rst
			{"memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"},
		} {
			limit, limited := number(filepath.Join(dir, v.limit)) // "max" is none
			usage, known := number(filepath.Join(dir, v.usage))
			if !limited || !known {
				continue
			}
			cached, _ := field(filepath.Join(dir, "memory.stat"), v.cached) // goes when the memory is wanted
			room = min(room, max(0, limit-usage+cached))
		}
	}
	return room
}

// memoryGroups are the folders of the control groups that limit this process's memory, from its own up (cgroups(7)).
func memoryGroups(root string) []string {
	paths := map[string]string{} // by controllers, "" for those of version 2
	b, _ := os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	for line := range strings.Lines(string(b)) {
		if f := strings.SplitN(strings.TrimSpace(line), ":", 3); len(f) == 3 {
			for c := range strings.SplitSeq(f[1], ",") {
				paths[c] = f[2]
			}
		}
	}
	var dirs []string
	b, _ = os.ReadFile(filepath.Join(root, "proc/self/mountinfo"))
	for line := range strings.Lines(string(b)) {
		mount, fs, _ := strings.Cut(line, " - ")
		m, f := strings.Fields(mount), strings.Fields(fs)
		if len(m) < 5 || len(f) < 3 {
			continue
		}
		controller := ""
		if f[0] == "cgroup" && strings.Contains(","+f[2]+",", ",memory,") {
			controller = "memory"
		} else if f[0] != "cgroup2" {
			continue
		}
		path, known := paths[controller]
		if !known {
			continue
		}
		below, err := filepath.Rel(m[3], path) // a container's mount begins at its own group
		if err != nil || !filepath.IsLocal(below) {
			below = "."
		}
		for ; ; below = filepath.Dir(below) {
			dirs = append(dirs, filepath.Join(root, m[4], below))
			if below == "." {
				break
			}
		}
	}
	return dirs
}

// number reads a file that has a number alone.
func number(name string) (int64, bool) {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)
	return n, err == nil
}

// field reads the number behind a word at the beginning of a line.
func field(name, word string) (int64, bool) {
	b, err := os.ReadFile(name)
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) >= 2 && f[0] == word {
			n, err := strconv.ParseInt(f[1], 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}
