package trial

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// judge follows a machine by its events and says what came of the trial. It is used by one goroutine: follow, then verdict.
type judge struct {
	task     task
	events   <-chan event // closed when the machine has ended
	release  string       // of the kernel that is to run; empty: any
	boot     time.Duration
	step     time.Duration // that a step may take before the machine is given up, more than the guest gives it
	progress func(step, name string)

	states   []State
	kernel   []Finding // of modules of the kernel, with their names in culprits
	culprits []string
	other    []Finding // of no module: of the script, of signatures
	sigs     []Signature
	wanted   []string
	machine  MachineInfo
	log      transcript
	output   string // the script's last line

	taint   uint64
	last    int64     // time of the last message that an event told of
	now     []message // of the step under way
	atStep  string    // the one under way, or the last
	atName  string
	blocked map[string]string // modules that could not be loaded, with the reason why those that need them aren't tried
	halt    halt
	ended   bool // with notBegun: the machine did, by itself
}

// halt is why a trial isn't followed any further.
type halt int

const (
	complete halt = iota // every step was told of, and the end
	told                 // a step was fatal, by its own event
	silent               // nothing was told for too long
	over                 // the machine ended
	garbled              // what was told is none of the course
	notBegun             // the kernel, or the first process, didn't come to the first step
)

func newJudge(t task, events <-chan event) *judge {
	j := &judge{task: t, events: events, progress: func(string, string) {}, blocked: map[string]string{}}
	for _, m := range t.Modules {
		j.states = append(j.states, State{Name: m.Name})
	}
	return j
}

// next waits for an event.
func (j *judge) next(limit <-chan time.Time) (event, bool) {
	select {
	case e, ok := <-j.events:
		if !ok {
			j.halt = over
		}
		return e, ok
	case <-limit:
		j.halt = silent
		return event{}, false
	}
}

// follow follows the course until it ends.
func (j *judge) follow() {
	j.progress("boot", "")
	limit := time.NewTimer(j.boot)
	defer limit.Stop()
	e, ok := j.next(limit.C)
	if !ok {
		j.ended, j.halt = j.halt == over, notBegun
		return
	}
	if e.Type != "boot" || len(e.Uname) != 2 {
		j.other = append(j.other, Finding{Verdict: NoBoot, Step: "boot", Reason: "the first process can't begin: " + clean(e.Error)})
		j.halt = notBegun
		return
	}
	j.machine.Release, j.machine.Build, j.taint, j.last = clean(e.Uname[0]), clean(e.Uname[1]), e.Taint, e.Time
	if j.release != "" && j.machine.Release != j.release {
		j.other = append(j.other, Finding{Verdict: NoBoot, Step: "boot", Reason: fmt.Sprintf("the kernel that booted is %s, and not %s: its packages, "+
			"or the lock file that names them, have another one", j.machine.Release, j.release)})
		j.halt = notBegun
		return
	}
	if j.task.course(j.do) && j.drain(j.step) {
		j.halt = complete
	}
	if j.halt == told { // the first process still has something to say, such as what a script wrote
		j.drain(2 * time.Second)
		j.halt = told
	}
}

// do hears of a step, see course.
func (j *judge) do(step, name string) (event, bool) {
	j.progress(step, name)
	limit := time.NewTimer(j.step)
	defer limit.Stop()
	j.atStep, j.atName = step, name
	begun, garbage := false, 0
	for {
		e, ok := j.next(limit.C)
		if !ok {
			return event{}, false
		}
		switch {
		case j.heard(e):
		case e.Type == "step" && !begun && e.Step == step && e.Name == name:
			begun = true
			j.log.add(strings.TrimRight("* "+step+" "+name, " "))
		case e.Type == "done" && begun && e.Step == step && e.Name == name:
			return e, j.done(e)
		case e.Type == "" && garbage < 100: // a line that is none
			garbage++
			j.log.add("(the machine sent what is no event)")
		default:
			j.halt = garbled
			return event{}, false
		}
	}
}

// heard takes note of an event that no step waits for.
func (j *judge) heard(e event) bool {
	switch e.Type {
	case "kmsg":
		j.last = max(j.last, e.Time)
		m := message{e.Level & 7, e.Time, clean(e.Text)}
		j.log.message(m)
		if len(j.now) < 2*maxRecords { // the guest sends no more
			j.now = append(j.now, m)
		}
	case "wanted":
		if text := clean(e.Text); wantedForm.MatchString(text) && !slices.Contains(j.wanted, text) && len(j.wanted) < maxWanted {
			j.wanted = append(j.wanted, text)
			j.log.add("  (it asks for the module " + text + ", which isn't there)")
		}
	case "output":
		j.output = clean(e.Text)
		j.log.add("  " + j.output)
	case "lost":
		j.log.add("(some of what the kernel said was lost: it was too much)")
	default:
		return false
	}
	return true
}

// drain hears what more there is to say after the last step. It says whether the first process ended as it should, in time.
func (j *judge) drain(limit time.Duration) bool {
	after := time.NewTimer(limit)
	defer after.Stop()
	for {
		e, ok := j.next(after.C)
		if !ok {
			return false
		}
		if e.Type == "end" && e.Error == "" {
			return true
		}
		if !j.heard(e) {
			j.halt = garbled
			return false
		}
	}
}

// wantedForm is that of modules and aliases which kernels ask for: "nf_nat", "ipt_REJECT", "net-pf-10", "crypto-hmac(sha256)".
var wantedForm = regexp.MustCompile(`^[A-Za-z0-9_.:,()+*-]{1,64}$`)

const maxWanted = 32

// done judges a step that ended, and says whether the machine goes on.
func (j *judge) done(e event) bool {
	log := j.now
	j.now = nil
	raised := e.Taint &^ j.taint
	j.taint |= e.Taint
	j.log.add(fmt.Sprintf("  %s", ending(e)))
	f := Finding{Step: e.Step, Errno: errnoName(e.Errno)}
	switch {
	case e.Killed || raised&taintDie != 0:
		f.Verdict, f.Errno, f.Reason, f.Trace = Crashes, "", "the kernel oopsed", nil
		if i := find(log, crashed); i >= 0 {
			f.Trace = traceAt(log, i)
			f.Reason = "the kernel oopsed: " + f.Trace.What
		}
		j.find(e.Name, f)
		j.halt = told
		return false
	case e.Hung && e.Step == "script" && find(log, stuck) < 0 && stackTrace("", e.Lines) == nil:
		f.Verdict, f.Reason = Script, "the script didn't end in time, and could not be ended"
		j.find("", f)
		j.halt = told
		return false
	case e.Hung:
		f.Verdict, f.Errno = Hangs, ""
		f.Reason = fmt.Sprintf("it didn't end within %v", time.Duration(j.task.Step))
		if f.Trace = stackTrace(f.Reason, cleaned(e.Lines)); f.Trace == nil {
			if i := find(log, stuck); i >= 0 {
				f.Trace = traceAt(log, i)
			}
		}
		if f.Trace != nil {
			f.Reason += ": it is in " + f.Trace.At
		}
		j.find(e.Name, f)
		j.halt = told
		return false
	}
	if e.Step == "load" && !e.failed() && !j.loaded(e) {
		j.halt = garbled
		return false
	}
	if w, trace := warning(log, raised); w != "" && e.Step != "sign" {
		j.find(e.Name, Finding{Verdict: Warns, Step: e.Step, Reason: w, Trace: trace})
	}
	switch e.Step {
	case "need":
		if e.failed() && e.Errno != eexist && j.task.depended(e.Name) {
			f.Verdict, f.Reason = refusal(e, log)
			j.blocked[e.Name] = e.Name + " can't be loaded"
			if f.Verdict == NoHardware {
				j.blocked[e.Name] = "that finds no hardware"
			}
			j.find(e.Name, f)
		}
	case "load", "reload":
		if e.failed() {
			f.Verdict, f.Reason = refusal(e, log)
			switch {
			case slices.ContainsFunc(j.task.Modules, func(m tried) bool { return m.Name == e.Name && m.empty }):
				f.Reason = "the file is empty"
			case e.Step == "reload": // the hardware was there at first
				f.Verdict, f.Reason = Refused, "it loaded, but after it was unloaded it doesn't any more: "+f.Reason
			}
			j.blocked[e.Name] = e.Name + " isn't there"
			j.find(e.Name, f)
		} else if ignored := unknownParam(log, e.Name); ignored != "" && e.Step == "load" {
			f.Verdict, f.Reason = Refused, fmt.Sprintf("it has no parameter %q: the kernel ignores it", ignored)
			if s := j.state(e.Name); s != nil && len(s.Params) > 0 {
				f.Reason += "; it has " + strings.Join(sorted(s.Params), ", ")
			}
			j.find(e.Name, f)
		}
	case "unload", "again":
		if e.failed() {
			f.Verdict, f.Reason = Stays, "it doesn't unload: "+meaning(e, "the kernel says no")
			if e.Errno == int(unix.EAGAIN) || e.Errno == int(unix.EBUSY) { // delete_module(2): EWOULDBLOCK, its use count isn't 0
				f.Reason = "it is in use, by its own reference or another's: its use count isn't 0"
			}
			j.find(e.Name, f)
		}
	case "script":
		if e.failed() {
			f.Verdict, f.Reason = Script, clean(e.Error)
			if e.Errno != 0 {
				f.Reason = "it can't be run: " + meaning(e, "")
			} else if j.output != "" {
				f.Reason += fmt.Sprintf("; the last it said: %q", j.output)
			}
			j.find("", f)
		}
	case "enforce", "sign":
		j.signature(e, log)
	}
	return true
}

// find notes what was found of a module, or of none if it isn't one of the trial's. The worst of a module stays.
func (j *judge) find(name string, f Finding) {
	if f.Trace != nil && f.Trace.Module != "" && j.state(f.Trace.Module) != nil {
		name = f.Trace.Module // such as a timer of one while another is loaded
	}
	if s := j.state(name); s != nil {
		if s.Verdict == "" || rank(f.Verdict) < rank(s.Verdict) {
			s.Finding = f
		}
		return
	}
	if slices.ContainsFunc(j.task.Needed, func(m tried) bool { return m.Name == name }) {
		f.Reason = fmt.Sprintf("the kernel's own module %s, which is needed (it is no fault of those tried): %s", name, f.Reason)
		j.kernel, j.culprits = append(j.kernel, f), append(j.culprits, name)
		return
	}
	j.other = append(j.other, f)
}

func (j *judge) state(name string) *State {
	if i := slices.IndexFunc(j.states, func(s State) bool { return s.Name == name }); i >= 0 {
		return &j.states[i]
	}
	return nil
}

// loaded takes over what the guest read back of a module. It says whether there is something.
func (j *judge) loaded(e event) bool {
	s := j.state(e.Name)
	if s == nil || e.State == nil || e.State.Size <= 0 {
		return false
	}
	f := s.Finding
	*s = *e.State
	s.Name, s.Finding = e.Name, f
	s.Version, s.Srcversion, s.Taint = clean(s.Version), clean(s.Srcversion), clean(s.Taint)
	s.Params = nil
	for name, value := range e.State.Params {
		if s.Params == nil {
			s.Params = map[string]string{}
		}
		s.Params[clean(name)] = clean(value)
	}
	return true
}

func rank(v Verdict) int { return slices.Index(severity, v) }

// verdict gives the result, once the machine has ended.
func (j *judge) verdict(console string) Result {
	switch j.halt {
	case notBegun:
		j.noBoot(console)
	case silent, over, garbled:
		j.cut(console)
	}
	r := Result{Modules: j.states, Wanted: j.wanted, Signature: j.sigs, Machine: j.machine}
	for i := range r.Modules {
		j.settle(&r.Modules[i])
	}
	worst := func(f Finding, name string) {
		if f.Verdict != Untried && (r.Verdict == "" || rank(f.Verdict) < rank(r.Verdict)) {
			r.Finding, r.Module = f, name
		}
	}
	for i, f := range j.kernel {
		worst(f, j.culprits[i])
	}
	for _, s := range r.Modules {
		worst(s.Finding, s.Name)
	}
	for _, f := range j.other {
		worst(f, "")
	}
	if names := r.Untried(); r.Verdict == NoHardware && len(names) > 0 {
		r.Reason = "not tried for it: " + list(names) + "; " + r.Reason
	}
	if r.Verdict == Loads && len(r.Modules) > 1 {
		r.Module, r.Finding = "", Finding{Verdict: Loads}
	}
	r.Log = j.log.lines()
	return r
}

// settle gives a module its verdict if nothing was found of it.
func (j *judge) settle(s *State) {
	if s.Verdict != "" {
		return
	}
	if m := slices.IndexFunc(j.task.Modules, func(m tried) bool { return m.Name == s.Name }); s.Size == 0 {
		s.Verdict, s.Reason = Untried, "the machine ended before its turn"
		for _, n := range j.task.Modules[m].Needs {
			if why := j.blocked[n]; why != "" {
				s.Reason = "it needs " + n + ": " + why
				j.blocked[s.Name] = s.Name + " isn't there"
			}
		}
		return
	}
	if j.halt != complete {
		s.Verdict, s.Reason = Untried, "it loads, but the machine ended before it was tried any further"
		return
	}
	s.Verdict = Loads
	if s.Permanent && !j.task.LoadOnly {
		s.Reason = "it can't be unloaded: it has no exit function, or the kernel has no unloading"
	}
}

// noBoot judges a machine that didn't come to the first step.
func (j *judge) noBoot(console string) {
	if len(j.other) > 0 {
		return
	}
	f := Finding{Verdict: NoBoot, Step: "boot", Reason: fmt.Sprintf("the kernel didn't boot within %v", j.boot)}
	if j.ended {
		f.Reason = "the kernel didn't boot"
	}
	log := onConsole(console, 0)
	j.log.messages(log)
	if i := find(log, crashed); i >= 0 {
		f.Trace = traceAt(log, i)
		f.Reason = "the kernel doesn't boot: " + f.Trace.What
	} else if len(log) == 0 {
		f.Reason += ": it said nothing"
	} else {
		f.Reason += "; its last words: " + log[len(log)-1].text
	}
	j.other = append(j.other, f)
}

// cut judges a machine that ended, or went silent, in the middle of a step.
func (j *judge) cut(console string) {
	log := onConsole(console, j.last)
	j.log.messages(log)
	log = append(slices.Clone(j.now), log...)
	f := Finding{Verdict: Crashes, Step: j.atStep}
	i := find(log, crashed)
	switch {
	case i >= 0:
		f.Trace = traceAt(log, i)
		f.Reason = "the kernel died: " + f.Trace.What
		if p := find(log, panicked); p >= 0 && p != i {
			f.Reason += "; " + log[p].text
		}
	case j.halt == over:
		f.Reason = "the machine ended without a word of the kernel's"
	case j.halt == garbled:
		f.Reason = "what the first process tells is garbled: its memory, or the port, was written over"
	default:
		f.Verdict = Hangs
		f.Reason = "the machine stands still"
		if i := find(log, stuck); i >= 0 {
			f.Trace = traceAt(log, i)
			f.Reason += ": " + f.Trace.What
		} else {
			f.Reason += ", and its kernel says nothing of where: interrupts may be off"
		}
	}
	name := j.atName
	if j.atStep == "script" || j.atStep == "sign" {
		name = ""
	}
	if name == "" && j.atStep == "settle" && len(j.states) == 1 {
		name = j.states[0].Name
	}
	j.find(name, f)
}

// warning is what the kernel warned of in a step, with its trace if it has one; empty if it didn't.
func warning(log []message, raised uint64) (string, *Trace) {
	i := find(log, warned)
	if i < 0 {
		if raised&(taintWarn|taintBadPage) != 0 {
			return "the kernel warned, and what it said was lost", nil
		}
		return "", nil
	}
	what := log[i].text
	trace := traceAt(log, i)
	if trace.At == "" {
		trace = nil
	}
	if i >= 2 && log[i-2].text == cutHere { // WARN() with a message prints it between the two
		what = log[i-1].text + " (" + what + ")"
	}
	return what, trace
}

// transcript keeps the first and the last lines.
type transcript struct {
	head, tail []string
	lost       int
}

const maxLog = 1000

func (t *transcript) add(line string) {
	if len(t.head) < maxLog {
		t.head = append(t.head, line)
		return
	}
	if t.tail = append(t.tail, line); len(t.tail) > 2*maxLog {
		t.lost += maxLog
		t.tail = slices.Delete(t.tail, 0, maxLog)
	}
}

func (t *transcript) message(m message) {
	t.add(fmt.Sprintf("[%5d.%06d] %s", m.time/1e6, m.time%1e6, m.text))
}

func (t *transcript) messages(log []message) {
	for _, m := range log {
		t.message(m)
	}
}

func (t *transcript) lines() []string {
	if t.lost == 0 {
		return append(t.head, t.tail...)
	}
	return slices.Concat(t.head, []string{fmt.Sprintf("(%d lines are left out)", t.lost)}, t.tail)
}

// ending is a step's end in words.
func ending(e event) string {
	took := time.Duration(e.Took).Round(time.Millisecond)
	switch {
	case e.Killed:
		return "killed"
	case e.Hung:
		return fmt.Sprintf("not done after %v", took)
	case e.Errno != 0:
		return fmt.Sprintf("%s, %v", errnoName(e.Errno), took)
	case e.Error != "":
		return fmt.Sprintf("%s, %v", clean(e.Error), took)
	}
	return fmt.Sprintf("done, %v", took)
}

func errnoName(n int) string {
	if n == 0 {
		return ""
	}
	if name := unix.ErrnoName(syscall.Errno(n)); name != "" {
		return name
	}
	return fmt.Sprintf("errno %d", n)
}

func cleaned(lines []string) []string {
	lines = lines[:min(len(lines), maxCalls)]
	for i, l := range lines {
		lines[i] = clean(l)
	}
	return lines
}
