//go:build amd64 || arm64

package guest

import (
	"fmt"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data (linux/seccomp.h); the low half of an argument comes first on both architectures.
const (
	offNr   = 0
	offArch = 4
	offArg0 = 16
	offArg1 = 24
)

const (
	retAllow = unix.SECCOMP_RET_ALLOW
	retKill  = unix.SECCOMP_RET_KILL_PROCESS
)

func retErrno(e unix.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(e) }

// refused are the system calls that no compiler, shell or make needs, and that reach for privileges or for those parts of
// the kernel where namespaces had their holes. They fail with EPERM, as they would for want of a capability: it's the answer
// that programs are used to. Docker's default profile refuses about the same (docs.docker.com/engine/security/seccomp).
var refused = []uint32{
	// The mount tree.
	unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_CHROOT, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT,
	unix.SYS_FSPICK, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE, unix.SYS_MOUNT_SETATTR, unix.SYS_OPEN_TREE_ATTR,
	unix.SYS_NAME_TO_HANDLE_AT, unix.SYS_OPEN_BY_HANDLE_AT, unix.SYS_FANOTIFY_INIT, unix.SYS_FANOTIFY_MARK,
	unix.SYS_QUOTACTL, unix.SYS_QUOTACTL_FD, unix.SYS_ACCT, unix.SYS_SWAPON, unix.SYS_SWAPOFF,
	// Namespaces; clone's flags are looked at below.
	unix.SYS_UNSHARE, unix.SYS_SETNS,
	// Other processes.
	unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_PROCESS_MADVISE, unix.SYS_PROCESS_MRELEASE,
	unix.SYS_KCMP, unix.SYS_PIDFD_GETFD, unix.SYS_MIGRATE_PAGES, unix.SYS_MOVE_PAGES,
	// The kernel itself.
	unix.SYS_BPF, unix.SYS_PERF_EVENT_OPEN, unix.SYS_USERFAULTFD, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER,
	unix.SYS_IO_URING_REGISTER, unix.SYS_ADD_KEY, unix.SYS_REQUEST_KEY, unix.SYS_KEYCTL, unix.SYS_INIT_MODULE,
	unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD, unix.SYS_KEXEC_FILE_LOAD, unix.SYS_REBOOT,
	unix.SYS_SYSLOG, unix.SYS_LSM_SET_SELF_ATTR, unix.SYS_NFSSERVCTL,
	// Memory that belongs to no process and no folder, and so would not be counted against the limit.
	unix.SYS_MEMFD_CREATE, unix.SYS_MEMFD_SECRET, unix.SYS_SHMGET, unix.SYS_MSGGET, unix.SYS_SEMGET, unix.SYS_MQ_OPEN,
	// The machine's clock, name and terminals.
	unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME, unix.SYS_CLOCK_ADJTIME, unix.SYS_ADJTIMEX, unix.SYS_SETHOSTNAME,
	unix.SYS_SETDOMAINNAME, unix.SYS_VHANGUP,
}

// newestCall is the newest system call that the list above was checked against (file_setattr, Linux 6.17; new numbers are
// the same on every architecture). A newer one fails with ENOSYS, as on the kernels that don't have it.
const newestCall = unix.SYS_FILE_SETATTR

const newNamespaces = unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC |
	unix.CLONE_NEWUTS | unix.CLONE_NEWCGROUP

// filter assembles the seccomp program (kernel: Documentation/userspace-api/seccomp_filter.rst).
func filter() []unix.SockFilter {
	load := func(off uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
	}
	jump := func(op uint16, k uint32, yes, no int) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, Jt: uint8(yes), Jf: uint8(no), K: k}
	}
	ret := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }

	// A process that calls by another architecture's table would pass the filter under wrong numbers: it is killed.
	p := []unix.SockFilter{
		load(offArch),
		jump(unix.BPF_JEQ, auditArch, 1, 0),
		ret(retKill),
		load(offNr),
	}
	if x32Bit != 0 {
		p = append(p, jump(unix.BPF_JSET, x32Bit, 0, 1), ret(retKill))
	}
	p = append(p, jump(unix.BPF_JGT, newestCall, 0, 1), ret(retErrno(unix.ENOSYS)))
	for _, nr := range slices.Concat(refused, refusedHere) {
		p = append(p, jump(unix.BPF_JEQ, nr, 0, 1), ret(retErrno(unix.EPERM)))
	}
	// clone3's flags lie in memory, where a filter can't look. ENOSYS makes libc take clone.
	p = append(p, jump(unix.BPF_JEQ, unix.SYS_CLONE3, 0, 1), ret(retErrno(unix.ENOSYS)))

	// arg appends a check of one argument: when the call is nr, its argument's low half must match one of the values.
	arg := func(nr, off uint32, op uint16, values []uint32, match, other uint32) {
		p = append(p, jump(unix.BPF_JEQ, nr, 0, len(values)+3), load(off))
		for i, v := range values {
			p = append(p, jump(op, v, len(values)-i, 0))
		}
		p = append(p, ret(other), ret(match))
	}
	arg(unix.SYS_CLONE, offArg0, unix.BPF_JSET, []uint32{newNamespaces}, retErrno(unix.EPERM), retAllow)
	// Only these families live in the network namespace, where nothing is up. vsock is not namespaced; the others
	// (netlink, packet, alg, …) are attack surface.
	families := []uint32{unix.AF_UNIX, unix.AF_INET, unix.AF_INET6}
	arg(unix.SYS_SOCKET, offArg0, unix.BPF_JEQ, families, retAllow, retErrno(unix.EAFNOSUPPORT))
	arg(unix.SYS_SOCKETPAIR, offArg0, unix.BPF_JEQ, families, retAllow, retErrno(unix.EAFNOSUPPORT))
	// Typing into a terminal, pasting into a console, taking over the console's output.
	arg(unix.SYS_IOCTL, offArg1, unix.BPF_JEQ, []uint32{unix.TIOCSTI, unix.TIOCLINUX, unix.TIOCCONS}, retErrno(unix.EPERM), retAllow)
	// The normal personality, without address space randomization (compilers ask for it), or the question which it is.
	arg(unix.SYS_PERSONALITY, offArg0, unix.BPF_JEQ, []uint32{0, addrNoRandomize, 0xffffffff}, retAllow, retErrno(unix.EPERM))
	// A process's limits, scheduler and priority are its own to change. For the first process's it would be enough to have the
	// same uid: without descriptors, or idle, it doesn't see how much memory is held.
	for _, nr := range []uint32{
		unix.SYS_PRLIMIT64, unix.SYS_SCHED_SETSCHEDULER, unix.SYS_SCHED_SETPARAM, unix.SYS_SCHED_SETATTR, unix.SYS_SCHED_SETAFFINITY,
	} {
		arg(nr, offArg0, unix.BPF_JEQ, []uint32{0}, retAllow, retErrno(unix.EPERM))
	}
	p = append(p, jump(unix.BPF_JEQ, unix.SYS_SETPRIORITY, 0, 6), load(offArg0), jump(unix.BPF_JEQ, unix.PRIO_PROCESS, 0, 3),
		load(offArg1), jump(unix.BPF_JEQ, 0, 0, 1), ret(retAllow), ret(retErrno(unix.EPERM)))
	return append(p, ret(retAllow))
}

const addrNoRandomize = 0x0040000

// confine puts the filter on every thread of this process, and so on every process that it starts.
func confine() error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	p := filter()
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	tid, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("install the seccomp filter: %w", errno)
	}
	if tid != 0 {
		return fmt.Errorf("install the seccomp filter: thread %d has another", tid)
	}
	return nil
}
