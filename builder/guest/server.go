package guest

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
)

// firstFD is the first descriptor beyond the standard ones.
const firstFD = 3

// Limits bound what a sandbox may hold.
type Limits struct {
	Memory  int64    // bytes, of processes and folders together; 0 is no limit
	Scratch []string // the folders, each a tmpfs of its own
}

// Serve runs commands for the client at the other end of the socket, until that is closed. The caller has called Begin and
// Confine; commands are started from its thread, whose rights and filter they inherit.
func Serve(conn *os.File, limits Limits) error {
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return Fail(conn, fmt.Errorf("open /dev/null: %w", err))
	}
	s := server{conn: conn, null: null, limits: limits, requests: make(chan request)}
	if err := send(conn, pack([]string{"ready"})); err != nil {
		return err
	}
	go s.listen()
	for r := range s.requests {
		answer := s.run(r)
		s.killAll()
		if err := send(conn, answer); err != nil {
			return err
		}
	}
	return nil
}

// Receive is the client's SetUp, as it arrives at the first process.
func Receive(conn *os.File) ([][]string, error) {
	lists, _, err := receive(conn)
	return lists, err
}

// Fail tells the client why the set-up failed, and returns the error.
func Fail(conn *os.File, err error) error {
	send(conn, failure(err))
	return err
}

// failure packs an error with the errno at its root, which the tool explains.
func failure(err error) []byte {
	var errno syscall.Errno
	errors.As(err, &errno)
	return pack([]string{"error", err.Error(), strconv.Itoa(int(errno))})
}

// Begin takes off what the tool's own caller may have left on this process, and would reach commands. It's the first call of
// a first process, which has locked its thread.
func Begin() error {
	// A blocked signal stays blocked in children of this thread. Handlers go with exec; ignored signals get one below.
	var none unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &none, nil); err != nil {
		return err
	}
	// Signals of the sandbox's own processes reach pid 1 where it has a handler, and Go's runtime would end the process on
	// some. Caught and dropped they do nothing, and unlike ignored ones they are the default's again after exec.
	signal.Notify(make(chan os.Signal, 1))
	// The C library's own signals are none of Go's business (but for 33, which Go uses as the library does), and posix_spawn, as
	// make calls it, leaves the first ignored. Those of a fault would end this process by Go's handler, when a command sends them
	// as another than kill does (rt_sigqueueinfo(2), F_SETSIG of fcntl(2)); without a handler the kernel drops them for pid 1.
	var byDefault [4]uint64 // struct sigaction: handler, flags, restorer, mask
	for _, sig := range []unix.Signal{
		32, 34, unix.SIGILL, unix.SIGTRAP, unix.SIGBUS, unix.SIGFPE, unix.SIGSEGV, unix.SIGSTKFLT, unix.SIGSYS,
	} {
		if _, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&byDefault)), 0, 8, 0, 0); errno != 0 {
			return errno
		}
	}

	if err := unix.CloseRange(firstFD, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		for fd := firstFD; fd < 4096; fd++ { // before Linux 5.11
			unix.CloseOnExec(fd)
		}
	}
	spareThreads()
	var err error
	if score, err = os.OpenFile("/proc/self/oom_score_adj", os.O_WRONLY, 0); err != nil {
		return err
	}
	if err := setScore(scoreHere); err != nil {
		return err
	}
	syscall.Umask(0o022)
	unix.Syscall(unix.SYS_PERSONALITY, 0, 0, 0) // may have been linux32, which changes uname -m
	return nil
}

// spareThreads makes the threads that this process will ever need. When a command has filled the process limit, or the memory,
// there are no more to be had, and Go's runtime would end the process.
func spareThreads() {
	const number = 16
	runtime.GOMAXPROCS(2)
	var all, done sync.WaitGroup
	all.Add(number)
	for range number {
		done.Go(func() {
			runtime.LockOSThread() // so each has its own
			all.Done()
			all.Wait()
			runtime.UnlockOSThread() // which stays, idle
		})
	}
	done.Wait()
}

// A machine, or a container, that runs out of memory ends commands before anything else, and this process, which then reports
// it, after them (proc_pid_oom_score_adj(5)).
const (
	scoreHere     = "900"
	scoreCommands = "1000"
)

var score *os.File // opened before this process closed its /proc to its own user

func setScore(value string) error {
	_, err := score.WriteAt([]byte(value), 0)
	return err
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
	limits   Limits
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
		if err = setScore(scoreCommands); err == nil {
			pid, err = syscall.ForkExec(path, r.args, attr)
			setScore(scoreHere)
		}
		s.mu.Unlock()
		if err == nil {
			closeFDs()
			return s.attend(pid)
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

// attend waits for a command, and ends it when the sandbox holds too much memory.
func (s *server) attend(pid int) []byte {
	over := false
	done, watched := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(watched)
		s.limits.watch(done, func() {
			over = true
			unix.Kill(-1, unix.SIGKILL)
		})
	}()
	answer := wait(pid)
	close(done)
	<-watched // or a last look at this command's memory could end the next command
	if over {
		return pack([]string{"memory"})
	}
	return answer
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
// none. A fork that is under way when all are killed fails (copy_process in kernel/fork.c); killing again is for safety, and not
// for each process, since the kernel goes through all of them every time.
func (s *server) killAll() {
	for n := 0; ; n++ {
		if n%256 == 0 {
			unix.Kill(-1, unix.SIGKILL)
		}
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
