package sandbox

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
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
	if err := dropInherited(); err != nil {
		return 125
	}
	conn := os.NewFile(control, "control")
	lists, _, err := receive(conn)
	if err != nil || len(lists) != 2 {
		return 125
	}
	if err := setUp(lists[0], lists[1]); err != nil {
		send(conn, failure(err))
		return 125
	}
	s := server{conn: conn, requests: make(chan request)}
	if s.null, err = unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0); err != nil {
		send(conn, failure(fmt.Errorf("open /dev/null: %w", err)))
		return 125
	}
	if err := send(conn, pack([]string{"ready"})); err != nil {
		return 125
	}
	go s.listen()
	for r := range s.requests {
		answer := s.run(r)
		s.killAll()
		if err := send(conn, answer); err != nil {
			return 125
		}
	}
	return 0
}

// failure packs an error with the errno at its root, which the tool explains.
func failure(err error) []byte {
	var errno syscall.Errno
	errors.As(err, &errno)
	return pack([]string{"error", err.Error(), strconv.Itoa(int(errno))})
}

// dropInherited takes off what the tool's own caller may have left on it, and would reach commands.
func dropInherited() error {
	// A blocked signal stays blocked in children of this thread. Handlers go with exec; ignored signals get one below.
	var none unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &none, nil); err != nil {
		return err
	}
	// Signals of the sandbox's own processes reach pid 1 where it has a handler, and Go's runtime would end the process on
	// some. Caught and dropped they do nothing, and unlike ignored ones they are the default's again after exec.
	signal.Notify(make(chan os.Signal, 1))
	// The C library's own signals are none of Go's business (but for 33, which Go uses as the library does), and posix_spawn, as
	// make calls it, leaves the first ignored.
	var byDefault [4]uint64 // struct sigaction: handler, flags, restorer, mask
	for _, sig := range []uintptr{32, 34} {
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&byDefault)), 0, 8, 0, 0); errno != 0 {
			return errno
		}
	}

	if err := unix.CloseRange(control, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		for fd := control; fd < 4096; fd++ { // before Linux 5.11
			unix.CloseOnExec(fd)
		}
	}
	syscall.Umask(0o022)
	unix.Syscall(unix.SYS_PERSONALITY, 0, 0, 0) // may have been linux32, which changes uname -m
	return nil
}

// setUp turns the namespaces that this process was started in into a sandbox with nothing left to give away.
func setUp(layers, scratch []string) error {
	if err := buildRoot(layers, scratch); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(builder.HostName)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	if err := unix.Setdomainname(nil); err != nil {
		return fmt.Errorf("set the domain name: %w", err)
	}
	if err := limit(); err != nil {
		return err
	}
	if err := dropPrivileges(); err != nil {
		return err
	}
	// Not dumpable: /proc/1/mem, fd, root and environ are closed to commands, though they have the same uid (proc(5)).
	// exec makes the commands themselves dumpable again.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("clear the dumpable attribute: %w", err)
	}
	return confine()
}

// limit fixes the resource limits that a build could notice. Hard limits are only lowered.
func limit() error {
	for _, l := range []struct {
		resource   int
		soft, hard uint64
	}{
		{unix.RLIMIT_CORE, 0, 0},
		{unix.RLIMIT_NOFILE, 1024, 4096},
		{unix.RLIMIT_STACK, 8 << 20, unix.RLIM_INFINITY},
		{unix.RLIMIT_NPROC, 4096, 4096}, // counted for each user namespace by itself, since Linux 5.14
	} {
		var now syscall.Rlimit
		if err := syscall.Getrlimit(l.resource, &now); err != nil {
			return fmt.Errorf("read resource limit %d: %w", l.resource, err)
		}
		now.Max = min(now.Max, l.hard)
		now.Cur = min(l.soft, now.Max)
		if err := syscall.Setrlimit(l.resource, &now); err != nil {
			return fmt.Errorf("set resource limit %d: %w", l.resource, err)
		}
	}
	return nil
}

func lastCap() uintptr {
	for c := uintptr(0); ; c++ {
		if _, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, c, 0, 0, 0); err != nil {
			return c - 1
		}
	}
}

// dropPrivileges makes this process builder.UID and empties all five sets of capabilities. Commands inherit from this
// thread; the other threads of the Go runtime follow where a program without cgo allows it.
func dropPrivileges() error {
	for c := uintptr(0); c <= lastCap(); c++ {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d from the bounding set: %w", c, err)
		}
	}
	if syscall.Getuid() != builder.UID { // root started the tool
		if err := syscall.Setresgid(builder.GID, builder.GID, builder.GID); err != nil {
			return fmt.Errorf("become group %d: %w", builder.GID, err)
		}
		if err := syscall.Setresuid(builder.UID, builder.UID, builder.UID); err != nil {
			return fmt.Errorf("become user %d: %w", builder.UID, err)
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

// A request is one command as it came over the socket.
type request struct {
	args, env []string
	dir       string
	stdio     [3]int // descriptors; -1 is the null device
	fds       []int  // those that the command gets, to be closed here
}

func parse(lists [][]string, fds []int) (request, error) {
	if len(lists) != 4 || len(lists[1]) == 0 || len(lists[3]) != 4 {
		return request{}, errGarbled
	}
	r := request{args: lists[1], env: lists[2], dir: lists[3][0], fds: fds}
	for i := range r.stdio {
		r.stdio[i] = -1
		if s := lists[3][1+i]; s != "" {
			n, err := strconv.Atoi(s)
			if err != nil || n < 0 || n >= len(fds) {
				return request{}, errGarbled
			}
			r.stdio[i] = fds[n]
		}
	}
	return r, nil
}

type server struct {
	conn     *os.File
	null     int
	requests chan request

	mu     sync.Mutex // held while a command is started
	killed bool       // the command that runs, or is about to, is to be killed
}

// listen reads the tool's messages. When the socket ends, for whatever reason, so does the sandbox.
func (s *server) listen() {
	defer close(s.requests)
	defer s.kill()
	for {
		lists, fds, err := receive(s.conn)
		if err != nil || len(lists) == 0 || len(lists[0]) != 1 {
			return
		}
		switch lists[0][0] {
		case "run":
			r, err := parse(lists, fds)
			if err != nil {
				return
			}
			s.mu.Lock()
			s.killed = false
			s.mu.Unlock()
			s.requests <- r
		case "kill":
			s.kill()
		}
	}
}

func (s *server) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.killed = true
	unix.Kill(-1, unix.SIGKILL) // every process of this pid namespace but this one
}

// run runs one command and returns the answer to the tool.
func (s *server) run(r request) []byte {
	closeFDs := sync.OnceFunc(func() {
		for _, fd := range r.fds {
			unix.Close(fd)
		}
	})
	defer closeFDs()
	if st, err := os.Stat(r.dir); err != nil {
		return failure(fmt.Errorf("working directory: %w", err))
	} else if !st.IsDir() {
		return failure(fmt.Errorf("working directory: %w", &fs.PathError{Op: "chdir", Path: r.dir, Err: unix.ENOTDIR}))
	}
	attr := &syscall.ProcAttr{Dir: r.dir, Env: r.env, Sys: &syscall.SysProcAttr{Setsid: true}}
	for _, fd := range r.stdio {
		if fd < 0 {
			fd = s.null
		}
		attr.Files = append(attr.Files, uintptr(fd))
	}
	path, err := lookPath(r.args[0], r.dir, r.env)
	if err == nil {
		s.mu.Lock()
		if s.killed {
			s.mu.Unlock()
			return pack([]string{"signal", strconv.Itoa(int(unix.SIGKILL))})
		}
		var pid int
		pid, err = syscall.ForkExec(path, r.args, attr)
		s.mu.Unlock()
		if err == nil {
			closeFDs()
			return wait(pid)
		}
	}
	code := 126
	switch {
	case errors.Is(err, fs.ErrNotExist):
		code = 127
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.ENOEXEC):
	default:
		return failure(fmt.Errorf("start %q: %w", r.args[0], err))
	}
	if fd := r.stdio[2]; fd >= 0 {
		text := err.Error()
		if path == "" && code == 127 {
			text = "command not found"
		}
		unix.Write(fd, []byte(r.args[0]+": "+text+"\n"))
	}
	return pack([]string{"exit", strconv.Itoa(code)})
}

// wait reaps until the command itself has ended.
func wait(pid int) []byte {
	for {
		var ws unix.WaitStatus
		got, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return failure(fmt.Errorf("wait for the command: %w", err))
		case got != pid:
		case ws.Signaled():
			return pack([]string{"signal", strconv.Itoa(int(ws.Signal()))})
		case ws.Exited():
			return pack([]string{"exit", strconv.Itoa(ws.ExitStatus())})
		}
	}
}

// killAll ends and reaps what a command left behind. Orphans become this process's children, so none is left when it has
// none. A process that is born while the others are killed is met in the next round.
func (s *server) killAll() {
	for {
		unix.Kill(-1, unix.SIGKILL)
		if _, err := unix.Wait4(-1, nil, 0, nil); err != nil && err != unix.EINTR {
			return
		}
	}
}

// lookPath finds a program as execvp(3) does: a name with a slash is taken as it is, others are searched for in PATH.
func lookPath(name, dir string, env []string) (string, error) {
	check := func(path string) error {
		full := path
		if !filepath.IsAbs(full) {
			full = filepath.Join(dir, full)
		}
		st, err := os.Stat(full)
		if err != nil {
			return errno(err)
		}
		if st.IsDir() {
			return unix.EACCES
		}
		return unix.Access(full, unix.X_OK)
	}
	if strings.Contains(name, "/") {
		return name, check(name)
	}
	err := error(unix.ENOENT)
	for _, v := range env {
		list, ok := strings.CutPrefix(v, "PATH=")
		if !ok {
			continue
		}
		for _, d := range filepath.SplitList(list) {
			if d == "" {
				d = "."
			}
			path := d + "/" + name
			switch e := check(path); e {
			case nil:
				return path, nil
			case unix.EACCES:
				err = e
			}
		}
		break
	}
	return "", err
}

// errno is the bare error number of a PathError, whose path would say "stat".
func errno(err error) error {
	var e syscall.Errno
	if errors.As(err, &e) {
		return e
	}
	return err
}
