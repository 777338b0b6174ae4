//go:build amd64 || arm64

package guest

import (
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

// evaluate runs the filter as the kernel does, over a struct seccomp_data.
func evaluate(t *testing.T, p []unix.SockFilter, arch, nr uint32, args ...uint64) uint32 {
	t.Helper()
	data := make([]uint32, 16)
	data[0], data[1] = nr, arch
	for i, a := range args {
		data[4+2*i], data[5+2*i] = uint32(a), uint32(a>>32)
	}
	var acc uint32
	for pc := 0; pc < len(p); pc++ {
		in := p[pc]
		jump := func(yes bool) {
			if yes {
				pc += int(in.Jt)
			} else {
				pc += int(in.Jf)
			}
		}
		switch in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			acc = data[in.K/4]
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			jump(acc == in.K)
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			jump(acc > in.K)
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			jump(acc&in.K != 0)
		case unix.BPF_RET | unix.BPF_K:
			return in.K
		default:
			t.Fatalf("instruction %d: unknown code %#x", pc, in.Code)
		}
	}
	t.Fatal("the filter ends without a verdict")
	return 0
}

func TestFilter(t *testing.T) {
	p := filter()
	if len(p) > unix.BPF_MAXINSNS {
		t.Errorf("the filter has %d instructions, the kernel takes %d", len(p), unix.BPF_MAXINSNS)
	}
	eperm, enosys, efamily := retErrno(unix.EPERM), retErrno(unix.ENOSYS), retErrno(unix.EAFNOSUPPORT)
	denied := slices.Concat(refused, refusedHere)
	for _, nr := range []uint32{ // those that must never leave the list
		unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_FSOPEN, unix.SYS_FSCONFIG, unix.SYS_FSMOUNT, unix.SYS_FSPICK,
		unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE, unix.SYS_OPEN_TREE_ATTR, unix.SYS_MOUNT_SETATTR, unix.SYS_UNSHARE, unix.SYS_SETNS,
		unix.SYS_PTRACE, unix.SYS_PROCESS_VM_READV, unix.SYS_PROCESS_VM_WRITEV, unix.SYS_BPF, unix.SYS_KEYCTL, unix.SYS_ADD_KEY,
		unix.SYS_REQUEST_KEY, unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE, unix.SYS_KEXEC_LOAD,
		unix.SYS_KEXEC_FILE_LOAD, unix.SYS_PERF_EVENT_OPEN, unix.SYS_IO_URING_SETUP, unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
		unix.SYS_USERFAULTFD, unix.SYS_REBOOT, unix.SYS_OPEN_BY_HANDLE_AT,
	} {
		if !slices.Contains(denied, nr) {
			t.Errorf("system call %d isn't refused", nr)
		}
	}
	for nr := range uint32(newestCall + 100) {
		want := uint32(retAllow)
		switch {
		case slices.Contains(denied, nr):
			want = eperm
		case nr == unix.SYS_CLONE3 || nr > newestCall:
			want = enosys
		case nr == unix.SYS_SOCKET || nr == unix.SYS_SOCKETPAIR: // of family 0
			want = efamily
		}
		if got := evaluate(t, p, auditArch, nr); got != want {
			t.Errorf("system call %d: %#x; want %#x", nr, got, want)
		}
		if got := evaluate(t, p, unix.AUDIT_ARCH_I386, nr); got != retKill {
			t.Errorf("system call %d of another architecture: %#x; want %#x", nr, got, uint32(retKill))
		}
		if x32Bit != 0 {
			if got := evaluate(t, p, auditArch, nr|x32Bit); got != retKill {
				t.Errorf("system call %d of x32: %#x; want %#x", nr, got, uint32(retKill))
			}
		}
	}
	const junk = 0xdead << 32 // the kernel looks at 32 bits of these
	for _, test := range []struct {
		nr   uint32
		args []uint64
		want uint32
	}{
		{unix.SYS_CLONE, []uint64{unix.CLONE_VM | unix.CLONE_THREAD | unix.CLONE_SIGHAND}, retAllow},
		{unix.SYS_CLONE, []uint64{uint64(unix.SIGCHLD)}, retAllow},
		{unix.SYS_CLONE, []uint64{unix.CLONE_NEWUSER | uint64(unix.SIGCHLD)}, eperm},
		{unix.SYS_CLONE, []uint64{unix.CLONE_NEWNS | junk}, eperm},
		{unix.SYS_CLONE, []uint64{unix.CLONE_NEWNET}, eperm},
		{unix.SYS_CLONE, []uint64{unix.CLONE_NEWPID}, eperm},
		{unix.SYS_CLONE, []uint64{unix.CLONE_NEWIPC}, eperm},
		{unix.SYS_CLONE, []uint64{unix.CLONE_NEWUTS}, eperm},
		{unix.SYS_CLONE, []uint64{unix.CLONE_NEWCGROUP}, eperm},
		{unix.SYS_SOCKET, []uint64{unix.AF_UNIX}, retAllow},
		{unix.SYS_SOCKET, []uint64{unix.AF_INET}, retAllow},
		{unix.SYS_SOCKET, []uint64{unix.AF_INET6}, retAllow},
		{unix.SYS_SOCKET, []uint64{unix.AF_NETLINK}, efamily},
		{unix.SYS_SOCKET, []uint64{unix.AF_PACKET}, efamily},
		{unix.SYS_SOCKET, []uint64{unix.AF_ALG}, efamily},
		{unix.SYS_SOCKET, []uint64{unix.AF_VSOCK}, efamily},
		{unix.SYS_SOCKET, []uint64{unix.AF_VSOCK | junk}, efamily},
		{unix.SYS_SOCKETPAIR, []uint64{unix.AF_UNIX}, retAllow},
		{unix.SYS_SOCKETPAIR, []uint64{unix.AF_TIPC}, efamily},
		{unix.SYS_IOCTL, []uint64{0, unix.TCGETS}, retAllow},
		{unix.SYS_IOCTL, []uint64{0, unix.TIOCSTI}, eperm},
		{unix.SYS_IOCTL, []uint64{0, unix.TIOCSTI | junk}, eperm},
		{unix.SYS_IOCTL, []uint64{0, unix.TIOCLINUX}, eperm},
		{unix.SYS_IOCTL, []uint64{0, unix.TIOCCONS}, eperm},
		{unix.SYS_PERSONALITY, []uint64{0}, retAllow},
		{unix.SYS_PERSONALITY, []uint64{0xffffffff}, retAllow},
		{unix.SYS_PERSONALITY, []uint64{addrNoRandomize}, retAllow},
		{unix.SYS_PERSONALITY, []uint64{8}, eperm},
		{unix.SYS_PRLIMIT64, []uint64{0, unix.RLIMIT_STACK}, retAllow},
		{unix.SYS_PRLIMIT64, []uint64{junk, unix.RLIMIT_STACK}, retAllow},
		{unix.SYS_PRLIMIT64, []uint64{1, unix.RLIMIT_NOFILE}, eperm},
		{unix.SYS_SCHED_SETSCHEDULER, []uint64{0, unix.SCHED_IDLE}, retAllow},
		{unix.SYS_SCHED_SETSCHEDULER, []uint64{1, unix.SCHED_IDLE}, eperm},
		{unix.SYS_SCHED_SETPARAM, []uint64{1}, eperm},
		{unix.SYS_SCHED_SETATTR, []uint64{1}, eperm},
		{unix.SYS_SCHED_SETAFFINITY, []uint64{1 | junk}, eperm},
		{unix.SYS_SETPRIORITY, []uint64{unix.PRIO_PROCESS, 0, 5}, retAllow},
		{unix.SYS_SETPRIORITY, []uint64{unix.PRIO_PROCESS, 1, 5}, eperm},
		{unix.SYS_SETPRIORITY, []uint64{unix.PRIO_PGRP, 0, 5}, eperm},
		{unix.SYS_SETPRIORITY, []uint64{unix.PRIO_USER, 0, 5}, eperm},
	} {
		if got := evaluate(t, p, auditArch, test.nr, test.args...); got != test.want {
			t.Errorf("system call %d with %#x: %#x; want %#x", test.nr, test.args, got, test.want)
		}
	}
}
