package main

import (
	"errors"
	"strconv"

	"golang.org/x/sys/unix"
)

// ipc finds what is shared under a key: "shm", "sem", "msg" of System V and "mq" of POSIX. It makes, or removes, all of them.
func ipc(kind, name string) error {
	key, err := strconv.Atoi(name)
	if err != nil {
		return err
	}
	get := func(kind string, flags int) (int, error) {
		var id uintptr
		var errno unix.Errno
		switch kind {
		case "shm":
			return unix.SysvShmGet(key, 4096, flags)
		case "sem":
			id, _, errno = unix.Syscall(unix.SYS_SEMGET, uintptr(key), 1, uintptr(flags))
		case "msg":
			id, _, errno = unix.Syscall(unix.SYS_MSGGET, uintptr(key), uintptr(flags), 0)
		case "mq":
			open := unix.O_RDWR
			if flags&unix.IPC_CREAT != 0 {
				open |= unix.O_CREAT | unix.O_EXCL
			}
			id, _, errno = unix.Syscall6(unix.SYS_MQ_OPEN, str(name), uintptr(open), 0o666, 0, 0, 0)
		}
		if errno != 0 {
			return 0, errno
		}
		return int(id), nil
	}
	switch kind {
	case "make":
		for _, kind := range []string{"shm", "sem", "msg", "mq"} {
			if _, err := get(kind, unix.IPC_CREAT|unix.IPC_EXCL|0o666); err != nil && !errors.Is(err, unix.ENOSYS) {
				return err
			}
		}
		return nil
	case "remove":
		if id, err := get("shm", 0); err == nil {
			unix.SysvShmCtl(id, unix.IPC_RMID, nil)
		}
		if id, err := get("sem", 0); err == nil {
			unix.Syscall6(unix.SYS_SEMCTL, uintptr(id), 0, unix.IPC_RMID, 0, 0, 0)
		}
		if id, err := get("msg", 0); err == nil {
			unix.Syscall(unix.SYS_MSGCTL, uintptr(id), unix.IPC_RMID, 0)
		}
		return call(unix.SYS_MQ_UNLINK, str(name))
	}
	_, err = get(kind, 0)
	return err
}
