package guest

import (
	"bytes"
	"os"
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
	statusCap = 4 << 10 // bytes of /proc/PID/status that are read; the Rss lines are in the first
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
			total += int64(st.Blocks-st.Bfree) * st.Bsize
		}
	}
	proc, err := os.Open("/proc")
	if err != nil {
		return total
	}
	defer proc.Close()
	names, _ := proc.Readdirnames(-1)
	for _, name := range names {
		if name[0] < '0' || name[0] > '9' || name == "1" {
			continue
		}
		total += resident("/proc/"+name+"/status", buf)
	}
	return total
}

// resident reads the anonymous and shared memory of a process (proc_pid_status(5)); 0 for one that has ended.
func resident(path string, buf []byte) int64 {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0
	}
	n, _ := unix.Read(fd, buf)
	unix.Close(fd)
	var total int64
	for _, field := range [][]byte{[]byte("\nRssAnon:"), []byte("\nRssShmem:")} {
		_, rest, found := bytes.Cut(buf[:max(n, 0)], field)
		if !found {
			continue
		}
		text, _, _ := bytes.Cut(bytes.TrimLeft(rest, " \t"), []byte(" "))
		kb, _ := strconv.ParseInt(string(text), 10, 64)
		total += kb << 10
	}
	return total
}
