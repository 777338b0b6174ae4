package trial

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/internal/kmod"
	"github.com/godkms-hermetic/godkms-hermetic/internal/qemu"
)

// Options say what is tried, on what, and how.
type Options struct {
	QEMU     qemu.Program
	Kernel   string      // path of the file that boots
	Image    v1.Hash     // digest of that file
	Release  string      // that the kernel must call itself, by uname(2); of another one nothing is tried. Default: any
	Init     io.ReaderAt // this program, static, for the kernel's architecture
	Needed   []Module    // modules of the kernel, each after what it needs
	Modules  []Module    // that are tried, likewise
	LoadOnly bool        // don't unload them, nor load them again
	Script   *ScriptFile // that is run once they are loaded. Default: none

	Signature bool         // whether the kernel's answers to the forms of Signature are asked for too
	Signer    *kmod.Signer // of them. Default: one with a key made for this trial
	Hash      crypto.Hash  // in signatures. Default: SHA-256

	Memory   int64                   // bytes
	Timeout  time.Duration           // of each step; the kernel's boot has two minutes, if this isn't more. Default: a minute
	Progress func(step, name string) // is told of each step as it begins, by one goroutine. Default: nothing
}

const (
	defaultTimeout = time.Minute
	bootTimeout    = 2 * time.Minute // at least: under emulation, on a busy machine
)

// OptionsError means that options are wrong: nothing was started.
type OptionsError struct{ Err error }

func (e *OptionsError) Error() string { return e.Err.Error() }
func (e *OptionsError) Unwrap() error { return e.Err }

// Run makes a trial. What the modules do is in the result; an error means that none could be made: an [*OptionsError], or qemu failed,
// or ctx ended. Several can run at a time.
func Run(ctx context.Context, o Options) (Result, error) {
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	t, entries, err := prepare(o)
	if err != nil {
		return Result{}, &OptionsError{err}
	}
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	var f *following
	err = o.QEMU.Run(ctx, qemu.Machine{
		Kernel: o.Kernel,
		Initrd: func(w io.Writer) error { return archive(w, entries) },
		// With times, which tell the console's lines apart. The kernel's own algorithms aren't tested at boot; see guest.run.
		Append: []string{"quiet", "printk.time=1", "cryptomgr.notests=1", "rdinit=/init", "--", marker},
		Memory: o.Memory,
		Start: func(accel string) (console, data io.Writer) {
			f.stop() // of a machine that is void
			f = follow(o, t, accel, end)
			return &f.console, f.data
		},
	})
	f.stop()
	if err != nil && !errors.Is(err, errFollowed) {
		return Result{}, err
	}
	r := f.judge.verdict(f.console.String())
	r.Took = f.took
	r.Machine.Image, r.Machine.QEMU, r.Machine.Accel, r.Machine.Memory = o.Image, o.QEMU.Version, f.accel, o.Memory
	return r, nil
}

// errFollowed ends a machine of which everything is known. There is nothing on its disks to lose.
var errFollowed = errors.New("the trial is over")

// following is a judge at work.
type following struct {
	accel   string
	judge   *judge
	console consoleText
	data    *io.PipeWriter
	done    chan struct{} // closed when it ends
	took    time.Duration
}

// follow follows a machine as it starts, and calls end with errFollowed when it need not run any more. It doesn't of one that has ended:
// if that is void, another one runs by then.
func follow(o Options, t task, accel string, end func(error)) *following {
	start := time.Now()
	r, w := io.Pipe()
	events := make(chan event, 64)
	f := &following{accel: accel, judge: newJudge(t, events), data: w, done: make(chan struct{})}
	f.judge.release = o.Release
	f.judge.boot, f.judge.step = max(bootTimeout, o.Timeout), o.Timeout+o.Timeout/4+5*time.Second // the guest notices first, if it can
	if o.Progress != nil {
		f.judge.progress = o.Progress
	}
	go func() {
		defer close(events)
		read(r, func(e event) bool {
			select {
			case events <- e:
				return true
			case <-f.done:
				return false
			}
		})
		io.Copy(io.Discard, r) // an error of the writer would be the machine's
	}()
	go func() {
		defer close(f.done)
		f.judge.follow()
		f.took = time.Since(start)
		if f.judge.halt != over && !f.judge.ended {
			end(errFollowed)
		}
	}()
	return f
}

// stop ends what follows a machine that has ended.
func (f *following) stop() {
	if f != nil {
		f.data.Close()
		<-f.done
	}
}

// machines are the processors of architectures, in Debian's words.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

var nameForm = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,64}$`)

// prepare makes the task and the files of the initramfs.
func prepare(o Options) (task, []entry, error) {
	t := task{Port: o.QEMU.Port(), LoadOnly: o.LoadOnly, Step: int64(o.Timeout)}
	if len(o.Modules) == 0 {
		return t, nil, errors.New("there is no module to try")
	}
	machine := machines[o.QEMU.Arch]
	init, err := loaded(o.Init, machine)
	if err != nil {
		return t, nil, err
	}
	entries := []entry{{name: "dev/"}, {name: "proc/"}, {name: "sys/"}, {name: "tmp/"}, {name: "init", mode: 0o755, from: init}}
	var names []string
	add := func(m Module) (tried, error) {
		if !nameForm.MatchString(m.Name) || m.Name == "." || m.Name == ".." || slices.Contains(names, m.Name) {
			return tried{}, fmt.Errorf("try the module %q: it must have a name of its own, of letters, digits and _.-", m.Name)
		}
		needs := slices.DeleteFunc(depends(m.File), func(n string) bool { return !slices.Contains(names, n) })
		names = append(names, m.Name)
		entries = append(entries, entry{name: "modules/" + m.Name, mode: 0o644, data: m.File})
		return tried{m.Name, strings.Join(m.Params, " "), needs, len(m.File) == 0}, nil
	}
	for _, m := range o.Needed {
		one, err := add(m)
		if err != nil {
			return t, nil, err
		}
		t.Needed = append(t.Needed, one)
	}
	for _, m := range o.Modules {
		one, err := add(m)
		if err != nil {
			return t, nil, err
		}
		t.Modules = append(t.Modules, one)
	}
	if o.Script != nil {
		files, err := o.Script.entries(machine)
		if err != nil {
			return t, nil, err
		}
		t.Script, entries = []string{"/script"}, append(entries, files...)
		var tried []string
		for _, m := range o.Modules {
			tried = append(tried, m.Name)
		}
		t.Env = []string{"PATH=" + scriptPath, "HOME=/tmp", "MODULES=" + strings.Join(tried, " ")}
	}
	if o.Signature {
		forms, files, err := signatures(o)
		if err != nil {
			return t, nil, err
		}
		t.Sign, entries = forms, append(entries, files...)
	}
	b, err := json.Marshal(t)
	if err != nil {
		return t, nil, err
	}
	return t, append(entries, entry{name: "task", mode: 0o644, data: b}), nil
}

// depends are the modules that a module's modinfo says it needs; none if it can't be read, which the kernel will say.
func depends(file []byte) []string {
	m, err := kmod.Read(bytes.NewReader(file), int64(len(file)))
	if err != nil {
		return nil
	}
	var names []string
	for _, list := range m.All("depends") {
		for name := range strings.SplitSeq(list, ",") {
			if name != "" {
				names = append(names, strings.ReplaceAll(name, "-", "_"))
			}
		}
	}
	return names
}

// maxEvent is the length of the longest line that is taken for an event.
const maxEvent = 256 << 10

// read gives each line from the machine to f, until that says false or there are no more. What is no event is one of the type "".
func read(r io.Reader, f func(event) bool) {
	br := bufio.NewReaderSize(r, maxEvent)
	for {
		line, err := br.ReadSlice('\n')
		long := errors.Is(err, bufio.ErrBufferFull)
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = br.ReadSlice('\n')
		}
		if err != nil {
			return
		}
		var e event
		if long || json.Unmarshal(line, &e) != nil {
			e = event{}
		}
		if !f(e) {
			return
		}
	}
}

// consoleText keeps the beginning and the end of a console, half a MiB each. It is safe for concurrent use.
type consoleText struct {
	mu         sync.Mutex
	head, tail []byte
}

const maxConsole = 512 << 10

func (c *consoleText) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(b)
	if room := maxConsole - len(c.head); room > 0 {
		k := min(room, len(b))
		c.head, b = append(c.head, b[:k]...), b[k:]
	}
	c.tail = append(c.tail, b...)
	if over := len(c.tail) - 2*maxConsole; over > 0 {
		c.tail = slices.Delete(c.tail, 0, over+maxConsole)
	}
	return n, nil
}

func (c *consoleText) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return string(c.head) + string(c.tail)
}
