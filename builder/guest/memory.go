package guest

import (
	"bytes"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// How often the memory is added up. Far below the limit it's seldom: nobody fills memory faster than fillRate, in bytes a
// second for each processor, so the limit can't be reached meanwhile. Near it, the time between two looks is what a sandbox can
// take beyond it.
const (
	fillRate  = 4 << 30
	shortest  = 5 * time.Millisecond
	longest   = 250 * time.Millisecond
	statusCap = 4 << 10 // bytes of /proc/PID/status that are read; the counted lines are in the first
	inodeSize = 1 << 10 // bytes of the kernel's own for a file of a tmpfs, even an empty one: inode and name
)

// FolderSize is how large the tmpfs of a scratch folder may become under a memory limit, in bytes; 0 is the kernel's default.
// It's a little more than the limit: so that a command which fills a folder is ended for it, and doesn't find a full disk.
func FolderSize(memory int64) int64 {
	if memory <= 0 {
		return 0
	}
	return memory + 64<<20
}

// watch calls over, once, when more memory is held than the limits allow. It returns when done is closed.
func (l Limits) watch(done <-chan struct{}, over func()) {
	if l.Memory <= 0 {
		return
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	buf := make([]byte, statusCap)
	for {
		select {
		case <-done:
			return
		case <-timer.C:
		}
		held := l.held(buf)
		if held > l.Memory {
			over()
			return
		}
		wait := time.Duration(float64(l.Memory-held) / float64(runtime.NumCPU()) / fillRate * float64(time.Second))
		timer.Reset(min(max(wait, shortest), longest))
	}
}

// held is what the sandbox's folders and processes hold, in bytes, without this process. A page of a scratch folder that is
// mapped too counts twice; pages of programs and libraries don't count, as the machine can drop them.
func (l Limits) held(buf []byte) int64 {
	var total int64
	for _, dir := range l.Scratch {
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) == nil {
			total += int64(st.Blocks-st.Bfree)*int64(st.Bsize) + int64(st.Files-st.Ffree)*inodeSize
		}
	}
	entries("/proc", func(name string) bool {
		if name[0] < '0' || name[0] > '9' || name == "1" {
			return true
		}
		n, known := resident("/proc/"+name+"/status", buf)
		if !known { // it has ended, or its first thread alone, whose status says nothing of the memory any more
			n = ofThreads("/proc/"+name+"/task", buf)
		}
		total += n
		return true
	})
	return total
}

// ofThreads is the memory of a process by way of any thread of it that has not ended.
func ofThreads(dir string, buf []byte) (total int64) {
	entries(dir, func(name string) bool {
		n, known := resident(dir+"/"+name+"/status", buf)
		if known {
			total = n
		}
		return !known
	})
	return total
}

// entries calls f with the names in a folder of /proc, until it returns false. It reads few at a time: memory can be handed on
// from process to process (CLONE_VM), each of which lives for less time than a long list takes. Their pids rise, so that the next
// one is met further on.
func entries(dir string, f func(name string) bool) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	b := make([]byte, 64) // two processes
	var names []string
	for {
		n, err := unix.Getdents(fd, b)
		if err == unix.EINVAL && len(b) < 4096 { // the next name is longer
			b = make([]byte, 2*len(b))
			continue
		}
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		_, _, names = unix.ParseDirent(b[:n], -1, names[:0])
		for _, name := range names {
			if !f(name) {
				return
			}
		}
	}
}

// counted are the lines of a process's memory that only it holds, or that is in no file (proc_pid_status(5)), its page tables, and
// what of it the machine has swapped out.
var counted = [][]byte{[]byte("\nRssAnon:"), []byte("\nRssShmem:"), []byte("\nVmPTE:"), []byte("\nVmSwap:")}

// resident adds up the counted lines, in bytes. It's not known where a thread has ended.
func resident(path string, buf []byte) (total int64, known bool) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, false
	}
	n, _ := unix.Read(fd, buf)
	unix.Close(fd)
	for _, line := range counted {
		_, rest, found := bytes.Cut(buf[:max(n, 0)], line)
		if !found {
			continue
		}
		known = true
		text, _, _ := bytes.Cut(bytes.TrimLeft(rest, " \t"), []byte(" "))
		kb, _ := strconv.ParseInt(string(text), 10, 64)
		total += kb << 10
	}
	return total, known
}
