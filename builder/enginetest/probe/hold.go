package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const mib = 1 << 20

// step is what is taken at once.
const step = 4 * mib

// holders take memory, each in its own way: take is called again and again until it has been asked for all that is wanted.
// What it returns has been taken for good, until the process ends.
var holders = map[string]func(folder string) (take func() error, err error){
	"private": func(string) (func() error, error) {
		return func() error { return touched(mapped(step, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)) }, nil
	},
	"leaderless": func(string) (func() error, error) {
		return func() error { return touched(mapped(step, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)) }, nil
	},
	"shared": func(string) (func() error, error) {
		return func() error { return touched(mapped(step, unix.MAP_SHARED|unix.MAP_ANONYMOUS)) }, nil
	},
	// No process has its pages in its tables any more, but they are there.
	"dropped": func(string) (func() error, error) {
		return func() error {
			b, err := mapped(step, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
			if err := touched(b, err); err != nil {
				return err
			}
			return unix.Madvise(b, unix.MADV_DONTNEED)
		}, nil
	},
	"memfd": func(string) (func() error, error) {
		fd, err := unix.MemfdCreate("enginetest", unix.MFD_CLOEXEC)
		return func() error { return write(fd) }, err
	},
	"file": func(folder string) (func() error, error) {
		fd, err := unix.Open(filepath.Join(folder, "held"), unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
		return func() error { return write(fd) }, err
	},
	"files": func(folder string) (func() error, error) {
		n := 0
		return func() error { // empty ones: the kernel has an inode and a name for each, about 1 KiB
			for range step / 1024 {
				n++
				if err := unix.Mknod(filepath.Join(folder, "held-"+strconv.Itoa(n)), unix.S_IFREG|0o600, 0); err != nil {
					return err
				}
			}
			return nil
		}, nil
	},
	"unlinked": func(folder string) (func() error, error) {
		name := filepath.Join(folder, "unlinked")
		fd, err := unix.Open(name, unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
		if err == nil {
			err = unix.Unlink(name)
		}
		return func() error { return write(fd) }, err
	},
	"shm": func(string) (func() error, error) {
		return func() error {
			id, err := unix.SysvShmGet(unix.IPC_PRIVATE, step, unix.IPC_CREAT|0o600)
			if err != nil {
				return err
			}
			b, err := unix.SysvShmAttach(id, 0, 0)
			unix.SysvShmCtl(id, unix.IPC_RMID, nil) // when the last process that is attached has ended
			return touched(b, err)
		}, nil
	},
	// The kernel's own, on behalf of a process: a table for each 2 MiB of which one page, the one of zeros, is looked at.
	"tables": func(string) (func() error, error) {
		return func() error {
			b, err := unix.Mmap(-1, 0, step/4096*2*mib, unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
			if err != nil {
				return err
			}
			unix.Madvise(b, unix.MADV_NOHUGEPAGE)
			for i := 0; i < len(b); i += 2 * mib {
				if b[i] != 0 {
					return unix.EIO
				}
			}
			return nil
		}, nil
	},
	"sockets": func(string) (func() error, error) {
		allFiles()
		return func() error {
			return filled(func() (p [2]int, err error) {
				p, err = unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
				if err == nil {
					unix.SetsockoptInt(p[1], unix.SOL_SOCKET, unix.SO_SNDBUF, mib)
				}
				return p, err
			})
		}, nil
	},
	"pipes": func(string) (func() error, error) {
		allFiles()
		return func() error {
			return filled(func() (p [2]int, err error) {
				err = unix.Pipe2(p[:], unix.O_NONBLOCK|unix.O_CLOEXEC)
				if err == nil {
					unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, mib)
				}
				return p, err
			})
		}, nil
	},
}

func mapped(size, flags int) ([]byte, error) {
	return unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, flags)
}

func touched(b []byte, err error) error {
	for i := 0; i < len(b); i += 4096 {
		b[i] = 1
	}
	return err
}

var block = make([]byte, step)

func write(fd int) error {
	for b := block; len(b) > 0; {
		n, err := unix.Write(fd, b)
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

// allFiles raises the number of files that may be open to the limit.
func allFiles() {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) == nil {
		l.Cur = l.Max
		unix.Setrlimit(unix.RLIMIT_NOFILE, &l)
	}
}

// filled writes one step's bytes into as many channels as it takes.
func filled(open func() ([2]int, error)) error {
	for left := step; left > 0; {
		p, err := open()
		if err != nil {
			return err
		}
		for {
			n, err := unix.Write(p[1], block[:4096])
			if err != nil {
				break
			}
			left -= n
		}
	}
	return nil
}

// hold takes memory step by step, with a pause after each, and prints a line for each. With pauses it keeps it for a while.
func hold(kind, size, folder, pause string) error {
	total, err := strconv.Atoi(size)
	if err != nil {
		return err
	}
	wait, err := time.ParseDuration(pause)
	if err != nil {
		return err
	}
	if kind == "many" { // processes, which each hold little
		const n = 16
		var all []*exec.Cmd
		for range n {
			cmd := exec.Command("/proc/self/exe", "hold", "private", strconv.Itoa(total/n), folder, (n * wait).String())
			cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
			if err := cmd.Start(); err != nil {
				return err
			}
			all = append(all, cmd)
		}
		for _, cmd := range all {
			if err := cmd.Wait(); err != nil {
				return err
			}
		}
		return nil
	}
	start, ok := holders[kind]
	if !ok {
		return fmt.Errorf("no such kind")
	}
	if kind == "leaderless" {
		// The first thread ends, and with it what /proc/PID/status says of memory. A process lives as long as any of its threads.
		done := make(chan error)
		go func() { done <- keep(start, total, folder, wait) }()
		go func() {
			if err := <-done; err != nil {
				report(err)
				os.Exit(1)
			}
			os.Exit(0)
		}()
		unix.Syscall(unix.SYS_EXIT, 0, 0, 0) // not a raw one: the scheduler must know that this thread is busy
	}
	return keep(start, total, folder, wait)
}

func keep(start func(string) (func() error, error), total int, folder string, wait time.Duration) error {
	take, err := start(folder)
	if err != nil {
		return err
	}
	for range total * mib / step {
		if err := take(); err != nil {
			return err
		}
		fmt.Println(step / mib)
		time.Sleep(wait)
	}
	time.Sleep(300 * wait)
	return nil
}
