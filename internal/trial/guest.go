package trial

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// marker is the only argument of the first process in a machine.
const marker = "godkms-hermetic-trial"

// IsInit says whether this process is the first one of a trial's machine, or its modprobe. A program that makes trials asks before it
// does anything else, and when it's so, does nothing but os.Exit(trial.Init()).
func IsInit() bool {
	return len(os.Args) > 1 && os.Args[0] == "/init" && (os.Getpid() == 1 && os.Args[1] == marker || isModprobe())
}

// isModprobe says whether the kernel runs this process as its modprobe (kernel/module/kmod.c, call_modprobe): /init -q -- NAME.
func isModprobe() bool {
	return len(os.Args) == 4 && os.Args[1] == "-q" && os.Args[2] == "--"
}

// Init is the first process of a trial's machine: it works off the task and restarts the machine, which ends it.
// As modprobe it has no modules to give, and only tells of one that is asked for and isn't there, in the kernel's log.
func Init() int {
	if isModprobe() {
		name := os.Args[3]
		if _, err := os.Stat("/sys/module/" + strings.ReplaceAll(filepath.Base(name), "-", "_")); err == nil {
			return 0
		}
		os.WriteFile("/dev/kmsg", []byte(wants+name+"\n"), 0)
		return 1
	}
	g := &guest{}
	e := event{Type: "end"}
	if err := g.run(); err != nil {
		fmt.Fprintln(os.Stderr, "trial:", err) // the console
		e.Error = err.Error()
	}
	g.send(e)
	if g.port != nil {
		unix.IoctlSetInt(int(g.port.Fd()), unix.TCSBRK, 1) // tcdrain(3)
	}
	unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
	return 1
}

// guest is what the first process knows. Its methods are called by one goroutine, but for send, which is one write, and output.
type guest struct {
	task  task
	port  *os.File
	kmsg  int    // descriptor
	taint uint64 // at the start
	told  int    // records of the kernel's log that were sent during this step
}

// maxRecords is how many lines of the kernel's log are sent of one step, and of warnings and what is worse as many again.
const maxRecords = 4000

func (g *guest) send(e event) {
	if g.port != nil {
		line, _ := json.Marshal(e)
		g.port.Write(append(line, '\n'))
	}
}

func (g *guest) run() error {
	for _, m := range []struct{ kind, dir string }{{"devtmpfs", "/dev"}, {"proc", "/proc"}, {"sysfs", "/sys"}} {
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
	for name, value := range g.settings() {
		os.WriteFile("/proc/sys/kernel/"+name, []byte(value), 0) // not every kernel has all
	}
	os.WriteFile("/sys/module/cryptomgr/parameters/notests", []byte("N"), 0) // those of modules are tested as ever
	began, err := g.listen()
	if err != nil {
		return fmt.Errorf("/dev/kmsg: %w", err)
	}
	g.taint = taint()
	g.send(event{Type: "boot", Uname: []string{unix.ByteSliceToString(u.Release[:]), unix.ByteSliceToString(u.Version[:])}, Taint: g.taint, Time: began})
	g.task.Env = append(g.task.Env, "KERNEL="+unix.ByteSliceToString(u.Release[:]))
	g.task.course(g.do)
	return nil
}

// settings of /proc/sys/kernel: an oops ends a thread and not the machine, so that it can be told of; the console shows warnings, and so the
// traces of what can't be told of any more, but not what a module chats, which would take it long; and a processor that is kept busy is
// noticed before a step's time is over. What is written to the log isn't to be counted and dropped: "on" is taken with a newline only
// (kernel/printk/printk.c, devkmsg_sysctl_set_loglvl).
func (g *guest) settings() map[string]string {
	watchdog := min(max(int64(time.Duration(g.task.Step)/time.Second)/5, 1), 10) // says it after twice that
	return map[string]string{"panic_on_oops": "0", "panic_on_warn": "0", "softlockup_panic": "0", "hung_task_panic": "0",
		"watchdog_thresh": strconv.FormatInt(watchdog, 10), "printk": "5", "printk_devkmsg": "on\n", "modprobe": "/init"}
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

// listen opens the kernel's log at its end, and gives the time there, on the log's own clock.
func (g *guest) listen() (int64, error) {
	fd, err := unix.Open("/dev/kmsg", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	g.kmsg = fd
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		return 0, err
	}
	if _, err := unix.Write(fd, []byte(mark)); err != nil {
		return 0, err
	}
	for {
		e, err := g.record()
		if err != nil || e.Type == "mark" {
			return e.Time, err
		}
	}
}

// mark is what this process writes to the kernel's log. Whatever was printed before without a newline is a whole record then,
// that can be read. It has the level of what isn't shown on the console.
const mark = "<7>trial\n"

// wants is what stands before the name of a module that the kernel asks modprobe for.
const wants = "<7>trial wants "

// record reads from the kernel's log. A record is "level,sequence,microseconds,flags;text" (Documentation/ABI/testing/dev-kmsg),
// the level with 8 times the facility, which is 0 for the kernel alone.
func (g *guest) record() (event, error) {
	buf := make([]byte, 8192)
	n, err := unix.Read(g.kmsg, buf)
	for err == unix.EINTR {
		n, err = unix.Read(g.kmsg, buf)
	}
	if err == unix.EPIPE { // records were overwritten before they were read
		return event{Type: "lost"}, nil
	}
	if err != nil {
		return event{}, err
	}
	head, text, _ := strings.Cut(string(buf[:n]), ";")
	text, _, _ = strings.Cut(text, "\n")
	fields := strings.SplitN(head, ",", 4)
	if len(fields) < 3 {
		return event{Type: "lost"}, nil
	}
	e := event{Type: "kmsg", Text: text}
	e.Level, _ = strconv.Atoi(fields[0])
	e.Time, _ = strconv.ParseInt(fields[2], 10, 64)
	if e.Level > 7 {
		e.Type = "output" // of a program
		if text == "trial" {
			e.Type = "mark"
		} else if name, ok := strings.CutPrefix(text, wants[len("<7>"):]); ok {
			e.Type, e.Text = "wanted", name
		}
	}
	return e, nil
}

// tell sends what the kernel has said since it was last called. What a system call printed is in the log when it returns.
func (g *guest) tell() {
	for {
		e, err := g.record()
		if err != nil {
			return
		}
		if e.Type == "mark" {
			continue
		}
		for line := range strings.SplitSeq(e.Text, `\x0a`) { // as a newline within a record is given
			g.told++
			switch e.Text = line; {
			case g.told == maxRecords:
				g.send(event{Type: "lost"})
			case g.told < maxRecords, g.told < 2*maxRecords && e.Type == "kmsg" && e.Level <= 4:
				g.send(e)
			}
		}
	}
}

// do makes a step of the course.
func (g *guest) do(step, name string) (event, bool) {
	switch step {
	case "need", "load", "reload":
		m := g.find(name)
		return g.step(step, name, func() (*State, error) {
			took, err := load("/modules/"+name, m.Params)
			if err != nil || step != "load" {
				return nil, err
			}
			s, err := state(name)
			s.Load = took
			return &s, err
		})
	case "unload", "again":
		return g.step(step, name, func() (*State, error) { return nil, unix.DeleteModule(name, unix.O_NONBLOCK) })
	case "script":
		return g.script()
	case "enforce":
		return g.step(step, name, func() (*State, error) {
			return nil, os.WriteFile("/sys/module/module/parameters/sig_enforce", []byte("1"), 0)
		})
	case "sign":
		return g.step(step, name, func() (*State, error) {
			_, err := load("/sign/"+name, "")
			if err == nil {
				err = unix.DeleteModule(filepath.Base(name), unix.O_NONBLOCK)
			}
			return nil, err
		})
	case "settle":
		return g.step(step, name, func() (*State, error) {
			time.Sleep(settle)
			return nil, nil
		})
	}
	return event{}, false
}

// settle is how long a machine is watched after its last step, for what a timer or a work queue does.
const settle = 150 * time.Millisecond

// find gives a module of the task.
func (g *guest) find(name string) tried {
	for _, m := range append(g.task.Needed, g.task.Modules...) {
		if m.Name == name {
			return m
		}
	}
	return tried{}
}

// step does something that the kernel may never return from, on a thread of its own: what kills it, or lets it hang, is the
// thread's end and not that of the process. It says whether the machine is of use for another step.
func (g *guest) step(step, name string, do func() (*State, error)) (event, bool) {
	g.told = 0
	g.send(event{Type: "step", Step: step, Name: name})
	start := time.Now()
	tid := make(chan int, 1)
	type outcome struct {
		state *State
		err   error
		took  time.Duration
	}
	done := make(chan outcome, 1)
	go func() {
		runtime.LockOSThread() // and never unlocks: the thread goes with the goroutine
		tid <- unix.Gettid()
		state, err := do()
		done <- outcome{state, err, time.Since(start)}
	}()
	id := <-tid
	e := event{Type: "done", Step: step, Name: name}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var end *outcome
	for end == nil && !e.Killed && !e.Hung {
		select {
		case o := <-done:
			end = &o
		case <-tick.C:
			g.tell()
			if gone(id) {
				select {
				case o := <-done: // the thread goes then too
					end = &o
				default:
					e.Killed = true
				}
			} else if time.Since(start) > time.Duration(g.task.Step) {
				e.Hung, e.Lines = true, stacks(id)
			}
			e.Took = int64(time.Since(start))
		}
	}
	if end != nil {
		e.Took, e.State = int64(end.took), end.state
		if errno := syscall.Errno(0); errors.As(end.err, &errno) {
			e.Errno = int(errno)
		} else if end.err != nil {
			e.Error = end.err.Error()
		}
	}
	unix.Write(g.kmsg, []byte(mark))
	g.tell()
	e.Taint = taint()
	g.send(e)
	return e, !e.Killed && !e.Hung && (e.Taint&^g.taint)&taintDie == 0
}

// gone says whether a thread of this process has ended. The first one stays as a zombie then.
func gone(tid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/stat", tid))
	_, rest, ok := bytes.Cut(b, []byte(") "))
	return err != nil || ok && len(rest) > 0 && (rest[0] == 'Z' || rest[0] == 'X')
}

// stacks is where a thread is in the kernel or, if it only waits for a child, where a child is that can't go on.
func stacks(tid int) []string {
	read := func(path string) []string {
		b, _ := os.ReadFile(path)
		return strings.Split(strings.TrimSpace(string(b)), "\n")
	}
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, stat := range stats {
		b, _ := os.ReadFile(stat)
		_, rest, _ := bytes.Cut(b, []byte(") ")) // state, parent, process group, session …
		if f := strings.Fields(string(rest)); len(f) > 3 && f[0] == "D" && f[3] != "0" && f[3] != "1" {
			return read(filepath.Dir(stat) + "/stack")
		}
	}
	return read(fmt.Sprintf("/proc/self/task/%d/stack", tid))
}

// The bits of /proc/sys/kernel/tainted that say that something went wrong (Documentation/admin-guide/tainted-kernels.rst).
const (
	taintBadPage = 1 << 5
	taintDie     = 1 << 7
	taintWarn    = 1 << 9
)

func taint() uint64 {
	b, _ := os.ReadFile("/proc/sys/kernel/tainted")
	n, _ := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	return n
}

func load(path, params string) (time.Duration, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	start := time.Now()
	err = unix.FinitModule(int(f.Fd()), params, 0)
	return time.Since(start), err
}

// state reads back what the kernel knows of a module (Documentation/ABI/testing/sysfs-module, kernel/module/procfs.c).
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
			s.Permanent = words[2] == "-" || strings.Contains(words[3], "[permanent]") // "-": a kernel without CONFIG_MODULE_UNLOAD
		}
	}
	if !found {
		return s, errors.New("it was loaded, but isn't in /proc/modules")
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

// maxOutput is how many bytes of a script's output are told of.
const maxOutput = 256 << 10

// script runs the user's script in a session of its own. What it leaves running is ended with it.
func (g *guest) script() (event, bool) {
	out, err := os.Create("/tmp/.output")
	if err != nil {
		return event{Type: "done", Step: "script", Name: g.task.Script[0], Error: err.Error()}, true
	}
	defer out.Close()
	os.Remove(out.Name())
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(g.task.Step))
	defer cancel()
	cmd := exec.CommandContext(ctx, g.task.Script[0], g.task.Script[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = "/tmp", g.task.Env, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	limit := g.task.Step
	g.task.Step += int64(2 * time.Second) // what isn't gone then can't be ended
	e, goOn := g.step("script", g.task.Script[0], func() (*State, error) {
		err := cmd.Run()
		if cmd.Process != nil {
			unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		}
		if ctx.Err() != nil {
			err = fmt.Errorf("it didn't end within %v", time.Duration(limit))
		}
		g.output(out)
		return nil, err
	})
	g.task.Step = limit
	if e.Hung {
		g.output(out)
	}
	return e, goOn
}

// output sends what a script wrote. It may be called while the kernel's words are sent.
func (g *guest) output(f *os.File) {
	b := make([]byte, maxOutput)
	n, _ := f.ReadAt(b, 0)
	for line := range strings.Lines(string(b[:n])) {
		g.send(event{Type: "output", Text: strings.TrimSuffix(line, "\n")})
	}
}
