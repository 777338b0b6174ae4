// Probe is run inside a sandbox by the suite of package enginetest. It tries one thing, and reports.
package main

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func main() {
	runtime.LockOSThread()
	switch {
	case len(os.Args) == 3 && os.Args[1] == "try":
		try, ok := attempts[os.Args[2]]
		if !ok {
			fmt.Fprintln(os.Stderr, "no such attempt")
			os.Exit(2)
		}
		report(try())
	case len(os.Args) == 4 && os.Args[1] == "dial":
		report(dial(os.Args[2], os.Args[3]))
	case len(os.Args) == 4 && os.Args[1] == "lookup":
		report(lookup(os.Args[2], os.Args[3]))
	case len(os.Args) == 4 && (os.Args[1] == "fork" || os.Args[1] == "bomb"):
		report(fork(os.Args[2], os.Args[3], os.Args[1] == "bomb"))
	case len(os.Args) == 4 && os.Args[1] == "ipc":
		report(ipc(os.Args[2], os.Args[3]))
	case len(os.Args) == 4 && os.Args[1] == "hunt":
		hunt(os.Args[2], os.Args[3])
	case len(os.Args) == 3 && os.Args[1] == "overwrite":
		overwrite(os.Args[2])
	case len(os.Args) == 6 && os.Args[1] == "hold":
		if err := hold(os.Args[2], os.Args[3], os.Args[4], os.Args[5]); err != nil {
			report(err)
			os.Exit(1)
		}
	case len(os.Args) == 3 && os.Args[1] == "socket": // makes one with a path
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err == nil {
			err = unix.Bind(fd, &unix.SockaddrUnix{Name: os.Args[2]})
		}
		report(err)
	case len(os.Args) == 2 && os.Args[1] == "ids":
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var caps [2]unix.CapUserData
		unix.Capget(&head, &caps[0])
		fmt.Printf("%d %d %d %d %x\n", os.Getuid(), os.Geteuid(), os.Getgid(), os.Getegid(), uint64(caps[1].Effective)<<32|uint64(caps[0].Effective))
	default:
		fmt.Fprintln(os.Stderr, "usage: probe try NAME | dial NETWORK ADDRESS | lookup NAME SERVER | ipc KIND KEY | hunt TEXT FILE | overwrite FILE | fork N SECONDS | bomb N SECONDS | hold KIND MIB FOLDER PAUSE | socket PATH | ids")
		os.Exit(2)
	}
}

func report(err error) {
	if e, ok := err.(syscall.Errno); ok {
		fmt.Println(unix.ErrnoName(e))
	} else if err != nil {
		fmt.Println(err)
	} else {
		fmt.Println("ok")
	}
}

func call(nr uintptr, args ...uintptr) error {
	var a [6]uintptr
	copy(a[:], args)
	r, _, e := unix.Syscall6(nr, a[0], a[1], a[2], a[3], a[4], a[5])
	if e != 0 {
		return e
	}
	_ = r
	return nil
}

func ptr[T any](v *T) uintptr { return uintptr(unsafe.Pointer(v)) }

func str(s string) uintptr {
	b, _ := unix.BytePtrFromString(s)
	return uintptr(unsafe.Pointer(b))
}

const bad = ^uintptr(0) // a descriptor that isn't one

func socket(family, kind, proto int) func() error {
	return func() error {
		fd, err := unix.Socket(family, kind, proto)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
}

func open(path string, flags int) func() error {
	return func() error {
		fd, err := unix.Open(path, flags, 0o600)
		if err == nil {
			unix.Close(fd)
		}
		return err
	}
}

// attempts are what a hostile source tree could try. Each is bounded and harmless where it succeeds: this process and what
// it made end at once.
var attempts = map[string]func() error{
	"mount":         func() error { return unix.Mount("none", "/tmp", "tmpfs", 0, "size=4k") },
	"bind":          func() error { return unix.Mount("/tmp", "/tmp", "", unix.MS_BIND, "") },
	"remount":       func() error { return unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND, "") },
	"umount":        func() error { return unix.Unmount("/proc", unix.MNT_DETACH) },
	"fsopen":        func() error { return call(unix.SYS_FSOPEN, str("tmpfs"), 0) },
	"open_tree":     func() error { return call(unix.SYS_OPEN_TREE, 0, str("/tmp"), unix.OPEN_TREE_CLONE) },
	"mount_setattr": func() error { return call(unix.SYS_MOUNT_SETATTR, bad, 0, 0, 0, 0) },
	"move_mount": func() error {
		return call(unix.SYS_MOVE_MOUNT, bad, str(""), bad, str(""), unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
	},
	"pivot_root":        func() error { return unix.PivotRoot("/nonexistent", "/nonexistent") },
	"chroot":            func() error { return unix.Chroot("/") },
	"unshare user":      func() error { return unix.Unshare(unix.CLONE_NEWUSER | unix.CLONE_FS) },
	"clone user":        func() error { return clone(unix.CLONE_NEWUSER) },
	"clone net":         func() error { return clone(unix.CLONE_NEWNET) },
	"clone3":            func() error { return call(unix.SYS_CLONE3, 0, 0) },
	"setns":             setns,
	"setns of init":     setnsInit,
	"sethostname":       func() error { return unix.Sethostname([]byte("elsewhere")) },
	"ptrace parent":     func() error { return call(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(os.Getppid()), 0, 0) },
	"ptrace self":       func() error { return call(unix.SYS_PTRACE, unix.PTRACE_TRACEME, 0, 0, 0) },
	"process_vm_readv":  processVM,
	"pidfd_getfd":       pidfdGetfd,
	"kcmp":              func() error { p := uintptr(os.Getpid()); return call(unix.SYS_KCMP, p, p, 0, 0, 0) },
	"bpf":               bpf,
	"keyctl":            func() error { return call(unix.SYS_KEYCTL, unix.KEYCTL_GET_KEYRING_ID, ^uintptr(0), 1) },
	"add_key":           addKey,
	"finit_module":      func() error { return call(unix.SYS_FINIT_MODULE, bad, str(""), 0) },
	"init_module":       func() error { return call(unix.SYS_INIT_MODULE, 0, 0, str("")) },
	"delete_module":     func() error { return call(unix.SYS_DELETE_MODULE, str("no such module"), unix.O_NONBLOCK) },
	"kexec_file_load":   func() error { return call(unix.SYS_KEXEC_FILE_LOAD, bad, bad, 0, 0, 0) },
	"kexec_load":        func() error { return call(unix.SYS_KEXEC_LOAD, 0, 0, 0, ^uintptr(0)) },
	"reboot":            func() error { return call(unix.SYS_REBOOT, 0, 0, 0, 0) },
	"perf_event_open":   perf,
	"io_uring_setup":    func() error { var p [120]byte; return call(unix.SYS_IO_URING_SETUP, 1, ptr(&p)) },
	"userfaultfd":       func() error { return call(unix.SYS_USERFAULTFD, 1) }, // UFFD_USER_MODE_ONLY
	"open_by_handle_at": openByHandle,
	"fanotify_init":     func() error { return call(unix.SYS_FANOTIFY_INIT, unix.FAN_REPORT_FID, 0) },
	"syslog":            func() error { return call(unix.SYS_SYSLOG, 10, 0, 0) },
	"clock_settime":     func() error { return call(unix.SYS_CLOCK_SETTIME, 0, ptr(&unix.Timespec{Nsec: -1})) },
	"personality":       func() error { return call(unix.SYS_PERSONALITY, 0x0400000) }, // READ_IMPLIES_EXEC
	"type into tty":     func() error { return call(unix.SYS_IOCTL, 0, unix.TIOCSTI, str("x")) },
	"raw socket":        socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP),
	"raw socket, IPv6":  socket(unix.AF_INET6, unix.SOCK_RAW, unix.IPPROTO_ICMPV6),
	"packet socket":     socket(unix.AF_PACKET, unix.SOCK_RAW, 0),
	"vsock":             socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0),
	"netlink":           socket(unix.AF_NETLINK, unix.SOCK_RAW, 0),
	"alg":               socket(unix.AF_ALG, unix.SOCK_SEQPACKET, 0),
	"mknod":             mknod(unix.S_IFCHR, 1, 3),
	"mknod of a disk":   mknod(unix.S_IFBLK, 254, 0),
	"real-time":         func() error { return call(unix.SYS_SCHED_SETSCHEDULER, 0, unix.SCHED_FIFO, ptr(new(uint32(1)))) },
	"nice":              func() error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -20) },
	"raise a limit":     func() error { return unix.Setrlimit(unix.RLIMIT_NPROC, &unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}) },
	"spare from OOM":    write1("/proc/self/oom_score_adj", "-1000"),
	"write settings":    open("/proc/sys/kernel/core_pattern", unix.O_WRONLY),
	"memory device":     open("/dev/mem", unix.O_RDONLY),
	"port device":       open("/dev/port", unix.O_RDONLY),
	"kvm":               open("/dev/kvm", unix.O_RDWR),
	"fuse":              open("/dev/fuse", unix.O_RDWR),
	"tun":               open("/dev/net/tun", unix.O_RDWR),
	"loop device":       open("/dev/loop-control", unix.O_RDWR),
	"first disk":        list("/dev/disk"),
	"debugfs":           list("/sys/kernel/debug"),
	"cgroups":           list("/sys/fs/cgroup/system.slice"),
	"write a cgroup":    open("/sys/fs/cgroup/cgroup.procs", unix.O_WRONLY),
	"docker's socket":   connect("/var/run/docker.sock"),
	"systemd's socket":  connect("/run/systemd/private"),
	"setuid":            func() error { return call(unix.SYS_SETUID, 0) },
	"setgid":            func() error { return call(unix.SYS_SETGID, 0) },
	"setgroups":         func() error { return call(unix.SYS_SETGROUPS, 0, 0) },
	"chown":             chown,
	"kill init":         func() error { return unix.Kill(1, unix.SIGKILL) },
	"fault init":        faultInit,
	"limit init":        func() error { return unix.Prlimit(1, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: 4096}, nil) },
	"idle init":         func() error { return call(unix.SYS_SCHED_SETSCHEDULER, 1, unix.SCHED_IDLE, ptr(new(uint32))) },
	"idle init's attr": func() error {
		return unix.SchedSetAttr(1, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE}, 0)
	},
	"pin init":          pinInit,
	"slow init":         func() error { return unix.Setpriority(unix.PRIO_PROCESS, 1, 19) },
	"slow all":          func() error { return unix.Setpriority(unix.PRIO_USER, 0, 1) },
	"read shadow":       open("/etc/shadow", unix.O_RDONLY),
	"read init's env":   read("/proc/1/environ"),
	"read init's mem":   open("/proc/1/mem", unix.O_RDWR),
	"list init's fds":   list("/proc/1/fd"),
	"enter init's root": list("/proc/1/root/"),
	"init's program":    open("/proc/1/exe", unix.O_RDONLY),
	"write to root":     open("/made-by-probe", unix.O_CREAT|unix.O_WRONLY),
	"write to program":  open("/usr/bin/enginetest-probe", unix.O_WRONLY),
	"replace program":   func() error { return unix.Unlink("/usr/bin/enginetest-probe") },
	"chmod in root":     func() error { return unix.Chmod("/usr/bin", 0o777) },
	"write to dev":      open("/dev/made-by-probe", unix.O_CREAT|unix.O_WRONLY),
	"chmod device":      func() error { return unix.Chmod("/dev/null", 0o666) },
	"touch device":      func() error { return unix.Utimes("/dev/null", nil) },
	"kernel settings":   open("/proc/sys/kernel/core_pattern", unix.O_RDONLY),
	"sysrq":             open("/proc/sysrq-trigger", unix.O_WRONLY),
	"kernel log":        open("/dev/kmsg", unix.O_RDONLY),
	"terminal":          open("/dev/tty", unix.O_RDONLY),
	"pseudo-terminals":  open("/dev/ptmx", unix.O_RDWR),
	"disk":              list("/sys/block"),
	"other abi":         func() error { return call(unix.SYS_GETPID | 0x40000000) },
	"newer call":        func() error { return call(unix.SYS_LISTNS, 0, 0, 0, 0) },
}

func clone(flag uintptr) error {
	pid, err := syscall.ForkExec("/proc/self/exe", []string{"probe", "ids"}, &syscall.ProcAttr{Sys: &syscall.SysProcAttr{Cloneflags: flag}})
	if err != nil {
		return err
	}
	_, err = unix.Wait4(pid, nil, 0, nil)
	return err
}

func setns() error {
	fd, err := unix.Open("/proc/self/ns/uts", unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	return unix.Setns(fd, unix.CLONE_NEWUTS)
}

func processVM() error {
	from, to := []byte("secret"), make([]byte, 6)
	_, err := unix.ProcessVMReadv(os.Getpid(), []unix.Iovec{{Base: &to[0], Len: 6}}, []unix.RemoteIovec{{Base: uintptr(unsafe.Pointer(&from[0])), Len: 6}}, 0)
	return err
}

func pidfdGetfd() error {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return err
	}
	_, err = unix.PidfdGetfd(fd, 0, 0)
	return err
}

func bpf() error {
	attr := struct{ kind, key, value, entries uint32 }{unix.BPF_MAP_TYPE_ARRAY, 4, 4, 1}
	return call(unix.SYS_BPF, unix.BPF_MAP_CREATE, ptr(&attr), unsafe.Sizeof(attr))
}

func addKey() error {
	ring := -1 // KEY_SPEC_THREAD_KEYRING, which ends with this thread
	return call(unix.SYS_ADD_KEY, str("user"), str("enginetest"), str("x"), 1, uintptr(ring))
}

func perf() error {
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_TASK_CLOCK, Bits: unix.PerfBitExcludeKernel}
	attr.Size = uint32(unsafe.Sizeof(attr))
	_, err := unix.PerfEventOpen(&attr, 0, -1, -1, 0)
	return err
}

func openByHandle() error {
	h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, "/tmp", 0)
	if err != nil {
		return err
	}
	_, err = unix.OpenByHandleAt(unix.AT_FDCWD, h, unix.O_RDONLY)
	return err
}

func setnsInit() error {
	fd, err := unix.PidfdOpen(1, 0)
	if err != nil {
		return err
	}
	return unix.Setns(fd, unix.CLONE_NEWNS|unix.CLONE_NEWNET)
}

// faultInit sends the first process the signals that a fault of its own would, and says that they are none of kill's.
func faultInit() error {
	for _, sig := range []unix.Signal{unix.SIGILL, unix.SIGTRAP, unix.SIGBUS, unix.SIGFPE, unix.SIGSEGV, unix.SIGSTKFLT, unix.SIGSYS} {
		info := [32]int32{0, 0, -1} // siginfo_t: signal, errno, SI_QUEUE
		if err := call(unix.SYS_RT_SIGQUEUEINFO, 1, uintptr(sig), ptr(&info)); err != nil {
			return err
		}
	}
	return nil
}

func pinInit() error {
	var now unix.CPUSet
	if err := unix.SchedGetaffinity(1, &now); err != nil {
		return err
	}
	return unix.SchedSetaffinity(1, &now)
}

func mknod(kind uint32, major, minor uint32) func() error {
	return func() error {
		err := unix.Mknod("/tmp/enginetest-node", kind|0o600, int(unix.Mkdev(major, minor)))
		unix.Unlink("/tmp/enginetest-node")
		return err
	}
}

func write1(path, text string) func() error {
	return func() error {
		fd, err := unix.Open(path, unix.O_WRONLY, 0)
		if err != nil {
			return err
		}
		_, err = unix.Write(fd, []byte(text))
		return err
	}
}

func connect(path string) func() error {
	return func() error {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		return unix.Connect(fd, &unix.SockaddrUnix{Name: path})
	}
}

func chown() error {
	f, err := os.CreateTemp("/tmp", "enginetest")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	return unix.Fchown(int(f.Fd()), 0, 0)
}

func read(path string) func() error {
	return func() error {
		b, err := os.ReadFile(path)
		if err == nil && len(b) == 0 {
			return unix.ENODATA
		}
		return bare(err)
	}
}

func list(path string) func() error {
	return func() error {
		_, err := os.ReadDir(path)
		return bare(err)
	}
}

func bare(err error) error {
	if e, ok := err.(*os.PathError); ok {
		return e.Err
	}
	return err
}
