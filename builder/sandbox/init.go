package sandbox

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/builder/guest"
)

// marker is argv[0] of a sandbox's first process.
const marker = "godkms-hermetic: sandbox"

// control is the first process's end of the socket to the tool.
const control = 3

// IsInit says whether this process was started to be a sandbox's first. A program that starts sandboxes asks before it does
// anything else, and when it's so, does nothing but os.Exit(sandbox.Init()).
//
// Naming the program like that by hand gives nobody anything: a pid 1 without the tool's socket ends at once, and with
// one it has no more rights than whoever started it.
func IsInit() bool { return os.Getpid() == 1 && len(os.Args) == 1 && os.Args[0] == marker }

// Init is the first process of a sandbox: it sets up the namespaces it was started in, gives up every capability and then
// runs the tool's commands, until the tool closes the socket or dies. When Init ends the kernel ends every process of the
// sandbox, and with the last of them go its mounts. Init returns the process's exit code.
func Init() int {
	runtime.LockOSThread() // capabilities and no_new_privs are a thread's; every command is started from this one
	if err := guest.Begin(); err != nil {
		return 125
	}
	conn := os.NewFile(control, "control")
	lists, err := guest.Receive(conn)
	if err != nil || len(lists) != 3 || len(lists[2]) != 4 {
		return 125
	}
	memory, err1 := strconv.ParseInt(lists[2][0], 10, 64)
	in := builder.Surroundings{Host: lists[2][2]}
	var err2, err3 error
	in.User, err2 = strconv.Atoi(lists[2][1])
	in.Processors, err3 = strconv.Atoi(lists[2][3])
	if err1 != nil || err2 != nil || err3 != nil {
		return 125
	}
	folders, err := setUp(lists[0], lists[1], memory, in)
	if err != nil {
		guest.Fail(conn, err)
		return 125
	}
	if err := guest.Serve(conn, guest.Limits{Memory: memory, Scratch: folders}); err != nil {
		return 125
	}
	return 0
}

// setUp turns the namespaces that this process was started in into a sandbox with nothing left to give away. It returns the
// scratch folders.
func setUp(layers, scratch []string, memory int64, in builder.Surroundings) ([]string, error) {
	folders, err := buildRoot(layers, scratch, memory, in)
	if err != nil {
		return nil, err
	}
	if err := unix.Sethostname([]byte(in.HostName())); err != nil {
		return nil, fmt.Errorf("set the host name: %w", err)
	}
	if err := unix.Setdomainname(nil); err != nil {
		return nil, fmt.Errorf("set the domain name: %w", err)
	}
	if err := guest.Pin(in.Processors); err != nil {
		return nil, err
	}
	if err := dropPrivileges(in.IDs()); err != nil {
		return nil, err
	}
	return folders, guest.Confine(processes)
}

// processes is how many a sandbox may have: they are counted for each user namespace by itself, since Linux 5.14.
const processes = 4096

func lastCap() uintptr {
	for c := uintptr(0); ; c++ {
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err != nil {
			return c - 1
		}
	}
}

// dropPrivileges makes this process the sandbox's user and empties all five sets of capabilities. Commands inherit from this
// thread; the other threads of the Go runtime follow where a program without cgo allows it.
func dropPrivileges(uid, gid int) error {
	for c := uintptr(0); c <= lastCap(); c++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d from the bounding set: %w", c, err)
		}
	}
	if syscall.Getuid() != uid { // root started the tool
		if err := syscall.Setresgid(gid, gid, gid); err != nil {
			return fmt.Errorf("become group %d: %w", gid, err)
		}
		if err := syscall.Setresuid(uid, uid, uid); err != nil {
			return fmt.Errorf("become user %d: %w", uid, err)
		}
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&head)), uintptr(unsafe.Pointer(&none)), 0)
	if errno == syscall.ENOTSUP {
		if err := unix.Capset(&head, &none[0]); err != nil {
			return fmt.Errorf("drop capabilities: %w", err)
		}
	} else if errno != 0 {
		return fmt.Errorf("drop capabilities: %w", errno)
	}
	return nil
}
