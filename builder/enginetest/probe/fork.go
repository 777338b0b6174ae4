package main

import (
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"

	"golang.org/x/sys/unix"
)

// fork makes processes until it has n or can make no more, prints how many and why it stopped, and keeps them. Each ends by
// itself after some seconds. With churn each of them starts others all the time, whatever happens to those, some thousand.
func fork(number, seconds string, churn bool) error {
	n, err := strconv.Atoi(number)
	if err != nil {
		return err
	}
	life, err := strconv.Atoi(seconds)
	if err != nil {
		return err
	}
	signal.Ignore(unix.SIGTERM, unix.SIGINT, unix.SIGHUP)
	// Where there can be no more processes there can be no more threads, and Go's runtime would end the program that it can't make
	// one for: from here on it has no reason to.
	debug.SetGCPercent(-1)
	runtime.GOMAXPROCS(1)
	line := make([]byte, 0, 64)
	why := " ok\n"
	made := 0
	for ; made < n; made++ {
		pid, errno := rawFork()
		if errno != 0 {
			why = " another error\n"
			if errno == unix.EAGAIN {
				why = " EAGAIN\n"
			}
			break
		}
		if pid == 0 {
			child(life, churn)
		}
	}
	line = append(strconv.AppendInt(line, int64(made), 10), why...)
	unix.RawSyscall(unix.SYS_WRITE, 1, ptr(&line[0]), uintptr(len(line)))
	nap := unix.Timespec{Sec: int64(life)}
	for errno := unix.EINTR; errno == unix.EINTR; { // by a signal of Go's own
		_, _, errno = unix.RawSyscall(unix.SYS_NANOSLEEP, ptr(&nap), ptr(&nap), 0)
	}
	unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	return nil
}

// rawFork is fork(2). The child has this thread alone, no scheduler and no collector: it may only make system calls.
//
//go:nosplit
//go:norace
func rawFork() (uintptr, unix.Errno) {
	pid, _, errno := unix.RawSyscall6(forkCall, forkFlags, 0, 0, 0, 0, 0)
	return pid, errno
}

const (
	forkCall  = unix.SYS_CLONE
	forkFlags = uintptr(unix.SIGCHLD)
)

// child stays for so many seconds. With churn it starts 20 processes, one after the other, the next one as soon as one has
// ended; they leave their session and wait a little longer than it takes to kill them all.
//
//go:nosplit
//go:norace
func child(life int, churn bool) {
	nap := unix.Timespec{Sec: int64(life)}
	unix.RawSyscall(unix.SYS_SETSID, 0, 0, 0)
	if churn {
		short := unix.Timespec{Nsec: 100e6}
		for range 20 {
			pid, _, errno := unix.RawSyscall6(forkCall, forkFlags, 0, 0, 0, 0, 0)
			if errno == 0 && pid == 0 {
				unix.RawSyscall(unix.SYS_SETSID, 0, 0, 0)
				unix.RawSyscall(unix.SYS_NANOSLEEP, ptr(&short), 0, 0)
				unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
			}
			unix.RawSyscall6(unix.SYS_WAIT4, ^uintptr(0), 0, 0, 0, 0, 0)
		}
	}
	unix.RawSyscall(unix.SYS_NANOSLEEP, ptr(&nap), 0, 0)
	unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
}
