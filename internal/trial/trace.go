package trial

import (
	"regexp"
	"strconv"
	"strings"
)

// message is a line of the kernel's log.
type message struct {
	level int   // 0 to 7; 7 for what the console alone showed, which has none
	time  int64 // microseconds from the kernel's start; 0 if it isn't known
	text  string
}

// What kernels print. The texts are those of Linux 4.4 to 6.18, for amd64 and arm64.
var (
	// crashed begins what is printed when the kernel kills a thread or itself: arch/x86/mm/fault.c, arch/x86/kernel/{traps,dumpstack}.c,
	// arch/arm64/{mm/fault.c,kernel/traps.c}, lib/bug.c, kernel/panic.c, kernel/exit.c.
	crashed = regexp.MustCompile(`^(BUG: kernel NULL pointer|BUG: unable to handle|BUG: stack guard page|BUG: \S+ stack guard page|kernel BUG at |Kernel BUG at |` +
		`[Gg]eneral protection fault|Oops\b|Internal error: |Unable to handle kernel |Unhandled fault|Unexpected kernel BRK|Insufficient stack space|` +
		`kernel tried to execute NX|PANIC: |invalid opcode: |divide error: |stack segment: |double fault: |int3: |bounds: |` +
		`Kernel panic - not syncing|watchdog: CPU\d+: Watchdog detected hard LOCKUP|NMI watchdog: Watchdog detected hard LOCKUP)`)

	// stuck begins what is printed of a processor or a thread that doesn't go on. It proves nothing by itself: a machine that stood
	// still for a while, as its host was busy, says it too.
	stuck = regexp.MustCompile(`^((watchdog: |NMI watchdog: )?BUG: soft lockup - |rcu: INFO: rcu_|INFO: rcu_|INFO: task .* blocked for more than )`)

	// warned begins what is printed of something wrong that the kernel survives: kernel/panic.c, kernel/locking/lockdep.c (INFO: until 4.14),
	// kernel/sched/core.c, mm/slab_common.c, mm/slub.c, mm/kasan/report.c, lib/ubsan.c, fs/sysfs/dir.c, kernel/irq/spurious.c, kernel/module/main.c.
	warned = regexp.MustCompile(`^(WARNING: CPU: \d+ PID: \d+ |WARNING: \S+:\d+ at |WARNING: at \S+\+0x|` +
		`(\[ )?(WARNING|INFO|BUG): (possible (recursive locking|circular locking|irq lock inversion|\S+ deadlock)|(inconsistent lock state|suspicious RCU usage|` +
		`bad unlock balance|bad contention|held lock freed|Nested lock was not taken|lock held (when|at)|Invalid wait context|.*-safe -> .*-unsafe lock order|` +
		`trying to register non-static key))|WARNING: inconsistent lock state|` +
		`BUG: (sleeping function called|scheduling while atomic|using \w+\(\) in preemptible|workqueue leaked|KASAN|KFENCE|KMSAN|KCSAN|Bad page|Bad rss|spinlock |rwlock |atomic sleep)|` +
		`BUG \S+ \(.*\): |UBSAN: |refcount_t: |kmemleak: \d+ new|sysfs: cannot create duplicate|sysfs group .* not found|irq \d+: nobody cared|` +
		`kmem_cache_destroy \S+: Slab cache still has objects|do_init_module: .* suspiciously returned)`)

	cutHere = "------------[ cut here ]------------"

	place   = `([\w.$]+\+0x[0-9a-f]+/0x[0-9a-f]+|0x[0-9a-f]+)(?: \[([\w-]+)(?: [0-9a-f]+)?\])?`
	pointer = regexp.MustCompile(`^(?:RIP: 0010:|pc : |EIP: (?:0060:)?)` + place)
	called  = regexp.MustCompile(`^\s*(?:\[<[0-9a-f]+>\]\s+)?(\? )?` + place + `\s*(?:\([PLU]+\))?$`)
	ended   = regexp.MustCompile(`^---\[ end (trace|Kernel panic)`)
)

// find gives the first message that p fits, or -1.
func find(log []message, p *regexp.Regexp) int {
	for i, m := range log {
		if p.MatchString(m.text) {
			return i
		}
	}
	return -1
}

const maxCalls = 64

// traceAt reads the trace that message i begins.
func traceAt(log []message, i int) *Trace {
	t := &Trace{What: log[i].text}
	inCalls, more := false, false // whether there may be more than the calls
	for _, m := range log[i+1:] {
		text := m.text
		if ended.MatchString(text) {
			break
		}
		if at := pointer.FindStringSubmatch(text); at != nil && t.At == "" {
			t.At = at[1]
			t.through(at[2], &t.At)
		}
		if strings.EqualFold(text, "Call Trace:") || strings.EqualFold(text, "Call trace:") {
			inCalls = !more
			continue
		}
		call := called.FindStringSubmatch(text)
		switch {
		case !inCalls:
		case call != nil:
			if call[1] == "" && len(t.Calls) < maxCalls {
				t.Calls = append(t.Calls, call[2])
				t.through(call[3], &t.Calls[len(t.Calls)-1])
			}
		case strings.Contains(text, "TASK>") || strings.Contains(text, "IRQ>") || strings.Contains(text, "SOFTIRQ>"):
		case len(t.Calls) > 0:
			inCalls, more = false, true // the first ones alone: another trace is that of something else
		}
	}
	return t.settled()
}

// through notes that a place is one of a module.
func (t *Trace) through(module string, at *string) {
	if module == "" {
		return
	}
	*at += " [" + module + "]"
	if t.Module == "" {
		t.Module = module
	}
}

// telling are the functions that a trace which has no place of its own begins with.
var telling = regexp.MustCompile(`^(dump_backtrace|show_stack|dump_stack|dump_stack_lvl|panic|vpanic)[.+]`)

// settled gives At to a trace that has none, which is the innermost call that isn't one of telling. It isn't among the calls then, as it is
// in arm64's.
func (t *Trace) settled() *Trace {
	for t.At == "" && len(t.Calls) > 0 {
		if !telling.MatchString(t.Calls[0]) {
			t.At = t.Calls[0]
			break
		}
		t.Calls = t.Calls[1:]
	}
	if len(t.Calls) > 0 && t.Calls[0] == t.At {
		t.Calls = t.Calls[1:]
	}
	return t
}

// stackTrace reads /proc/PID/stack, whose lines are "[<0>] function+offset/size [module]".
func stackTrace(what string, lines []string) *Trace {
	t := &Trace{What: what}
	for _, l := range lines {
		if call := called.FindStringSubmatch(l); call != nil && len(t.Calls) < maxCalls {
			t.Calls = append(t.Calls, call[2])
			t.through(call[3], &t.Calls[len(t.Calls)-1])
		}
	}
	if len(t.Calls) == 0 {
		return nil
	}
	return t.settled()
}

// consolePrefix is "[    2.860432] ", and with CONFIG_PRINTK_CALLER "[    2.860432][    T1] ".
var consolePrefix = regexp.MustCompile(`^(?:<\d>)?\[ *(\d+)\.(\d{6})\](?:\[ *[TC]\d+\])? `)

// onConsole are the kernel's messages on a console that are later than a time. What has no time of its own, such as what a program wrote
// between, belongs to the message before.
func onConsole(console string, after int64) []message {
	var log []message
	at := int64(0)
	for line := range strings.Lines(console) {
		line = clean(strings.TrimRight(line, "\r\n"))
		if p := consolePrefix.FindStringSubmatch(line); p != nil {
			s, _ := strconv.ParseInt(p[1], 10, 32)
			us, _ := strconv.ParseInt(p[2], 10, 32)
			at, line = s*1e6+us, line[len(p[0]):]
		}
		if line != "" && (at > after || after == 0) {
			log = append(log, message{7, at, line})
		}
	}
	return log
}

// clean makes a line of text of what the guest says: without control characters, and of a bounded length.
func clean(s string) string {
	const maxLine = 2048
	if len(s) > maxLine {
		s = s[:maxLine] + "…"
	}
	return strings.Map(func(r rune) rune {
		if r == '\t' {
			return ' '
		}
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == '\u2028' || r == '\u2029' || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
}
