package trial

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// marker is the only argument of the first process in a machine.
const marker = "godkms-hermetic-trial"

// IsInit says whether this process is the first one of a trial's machine.
func IsInit() bool {
	return os.Getpid() == 1 && len(os.Args) == 2 && os.Args[0] == "/init" && os.Args[1] == marker
}

// Init is the first process of a trial's machine: it works off the task and restarts the machine, which ends it.
func Init() int {
	g := &guest{}
	if err := g.run(); err != nil {
		fmt.Fprintln(os.Stderr, "trial:", err) // the console
		g.send(event{Type: "end", Error: err.Error()})
	} else {
		g.send(event{Type: "end"})
	}
	if g.port != nil {
		unix.IoctlSetInt(int(g.port.Fd()), unix.TCSBRK, 1) // tcdrain(3)
	}
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	return 1
}

type guest struct {
	task task
	mu   sync.Mutex
	port *os.File
}

func (g *guest) send(e event) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.port != nil {
		line, _ := json.Marshal(e)
		g.port.Write(append(line, '\n'))
	}
}

func (g *guest) run() error {
	for _, m := range []struct{ kind, dir string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil && err != unix.EBUSY {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	b, err := os.ReadFile("/task")
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &g.task); err != nil {
		return err
	}
	if err := g.open(); err != nil {
		return err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	g.send(event{Type: "boot", Uname: []string{unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Version[:])}})
	for name, value := range map[string]string{"panic_on_oops": "0", "printk": "7", "watchdog_thresh": "5"} {
		os.WriteFile("/proc/sys/kernel/"+name, []byte(value), 0) // not every kernel has all
	}
	kmsg, err := g.follow()
	if err != nil {
		return err
	}
	defer kmsg.Close()
	for _, name := range g.task.Needed {
		if !g.load("need", tried{Name: name}) {
			return nil
		}
	}
	for _, first := range []bool{true, false} {
		step, back := "load", "unload"
		if !first {
			step, back = "reload", "again"
		}
		for _, m := range g.task.Modules {
			if !g.load(step, m) {
				return nil
			}
		}
		if first && len(g.task.Script) > 0 && !g.script() {
			return nil
		}
		if g.task.LoadOnly {
			return nil
		}
		for i := len(g.task.Modules) - 1; i >= 0; i-- {
			if m := g.task.Modules[i]; !g.unload(back, m.Name) {
				return nil
			}
		}
	}
	return nil
}

// open opens the port, as it is: the terminal's own ways of changing bytes are turned off.
func (g *guest) open() error {
	f, err := os.OpenFile(g.task.Port, os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	t, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	if err != nil {
		return err
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200
	if err := unix.IoctlSetTermios(int(f.Fd()), unix.TCSETS, t); err != nil {
		return err
	}
	g.port = f
	return nil
}

// follow sends what the kernel says from now on.
func (g *guest) follow() (io.Closer, error) {
	f, err := os.OpenFile("/dev/kmsg", os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if _, err := f.Seek(0, io.SeekEnd); err != nil {
		return nil, err
	}
	go func() {
		buf := make([]byte, 8192)
		for {
			n, err := f.Read(buf)
			if errors.Is(err, unix.EPIPE) { // records were overwritten before they were read
				continue
			}
			if err != nil {
				return
			}
			head, text, _ := strings.Cut(string(buf[:n]), ";")
			text, _, _ = strings.Cut(text, "\n")
			prio, _, _ := strings.Cut(head, ",")
			level, _ := strconv.Atoi(prio)
			g.send(event{Type: "kmsg", Lines: []string{strconv.Itoa(level & 7), text}})
		}
	}()
	return f, nil
}

// step does something that the kernel may never return from, on a thread of its own: what kills it, or lets it hang, is the
// thread's end and not that of the process.
func (g *guest) step(step, name string, do func() (*State, error)) bool {
	g.send(event{Type: "step", Step: step, Name: name})
	start := time.Now()
	tid := make(chan int, 1)
	type outcome struct {
		state *State
		err   error
	}
	done := make(chan outcome, 1)
	go func() {
		runtime.LockOSThread() // and never unlocks: the thread goes with the goroutine
		tid <- unix.Gettid()
		state, err := do()
		done <- outcome{state, err}
	}()
	id := <-tid
	e := event{Type: "done", Step: step, Name: name}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case o := <-done:
			e.Took, e.State = int64(time.Since(start)), o.state
			if errno := syscall.Errno(0); errors.As(o.err, &errno) {
				e.Errno = int(errno)
			} else if o.err != nil {
				e.Error = o.err.Error()
			}
			time.Sleep(10 * time.Millisecond) // for what the kernel says at the end of it
			g.send(e)
			return o.err == nil
		case <-tick.C:
			if _, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", id)); err != nil {
				time.Sleep(200 * time.Millisecond)
				e.Killed = true
				g.send(e)
				return false
			}
			if time.Since(start) > time.Duration(g.task.Step) {
				stack, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/stack", id))
				g.send(event{Type: "stack", Step: step, Name: name, Lines: strings.Split(strings.TrimSpace(string(stack)), "\n")})
				return false
			}
		}
	}
}

func (g *guest) load(step string, m tried) bool {
	return g.step(step, m.Name, func() (*State, error) {
		f, err := os.Open("/modules/" + m.Name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		start := time.Now()
		if err := unix.FinitModule(int(f.Fd()), m.Params, 0); err != nil {
			return nil, err
		}
		took := time.Since(start)
		if step != "load" {
			return nil, nil
		}
		s, err := state(m.Name)
		if err != nil {
			return nil, err
		}
		s.Load = took
		return &s, nil
	})
}

func (g *guest) unload(step, name string) bool {
	return g.step(step, name, func() (*State, error) { return nil, unix.DeleteModule(name, unix.O_NONBLOCK) })
}

// state reads back what the kernel knows of a module (Documentation/ABI/testing/sysfs-module, proc_modules in kernel/module).
func state(name string) (State, error) {
	s := State{Name: name}
	f, err := os.Open("/proc/modules")
	if err != nil {
		return s, err
	}
	defer f.Close()
	found := false
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if words := strings.Fields(sc.Text()); len(words) >= 5 && words[0] == name {
			found = true
			s.Size, _ = strconv.ParseInt(words[1], 10, 64)
			s.Permanent = strings.Contains(words[3], "[permanent]")
		}
	}
	if !found {
		return s, errors.New("it is not in /proc/modules")
	}
	dir := "/sys/module/" + name
	read := func(name string) string {
		b, _ := os.ReadFile(filepath.Join(dir, name))
		return strings.TrimSpace(string(b))
	}
	s.Version, s.Srcversion, s.Taint = read("version"), read("srcversion"), read("taint")
	params, _ := os.ReadDir(dir + "/parameters")
	for _, p := range params {
		if s.Params == nil {
			s.Params = map[string]string{}
		}
		s.Params[p.Name()] = read("parameters/" + p.Name())
	}
	return s, nil
}

func (g *guest) script() bool {
	return g.step("script", g.task.Script[0], func() (*State, error) {
		out, err := exec.Command(g.task.Script[0], g.task.Script[1:]...).CombinedOutput()
		g.send(event{Type: "output", Lines: strings.Split(string(out), "\n")})
		return nil, err
	})
}
