package trial

import (
	"bytes"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"golang.org/x/sys/unix"
)

// record is what a real machine said: its task, its events and its console.
type record struct {
	task            task
	events, console []byte
}

func readRecord(t testing.TB, name string) record {
	t.Helper()
	a, err := txtar.ParseFile(filepath.Join("testdata", name+".txtar"))
	if err != nil {
		t.Fatal(err)
	}
	var r record
	for _, f := range a.Files {
		switch f.Name {
		case "task":
			if err := json.Unmarshal(f.Data, &r.task); err != nil {
				t.Fatal(err)
			}
		case "events":
			r.events = f.Data
		case "console":
			r.console = f.Data
		}
	}
	return r
}

// judge judges a record: of a machine that ended after its last event or, if it hangs, one that said nothing any more.
func (r record) judge(t *testing.T, hangs bool) (got Result) {
	t.Helper()
	synctest.Test(t, func(*testing.T) { // whose clock waits for nobody
		events := make(chan event)
		j := newJudge(r.task, events)
		j.boot, j.step = 2*time.Minute, time.Minute
		stop, done := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(done)
			read(bytes.NewReader(r.events), func(e event) bool {
				select {
				case events <- e:
					return true
				case <-stop:
					return false
				}
			})
			if !hangs {
				close(events)
			}
		}()
		j.follow()
		close(stop)
		<-done
		got = j.verdict(string(r.console))
	})
	return got
}

// What real kernels said, Debian's 6.1.0-56 and 6.12.117, is judged right.
func TestJudge(t *testing.T) {
	for _, c := range []struct {
		record, verdict, step, module, errno string
		hangs                                bool
		reason, at                           string   // parts
		modules                              []string // "name verdict part of the reason"
	}{
		{record: "6.12-loads", verdict: "loads", modules: []string{"top loads", "good loads"}},
		{record: "6.12-script", verdict: "script", step: "script", reason: "exit status 1; the last it said: \"Mon", modules: []string{"top loads", "good loads"}},
		{record: "6.1-oops", verdict: "crashes", step: "load", module: "bad", reason: "NULL pointer dereference, address: 0000000000000000", at: "oops_here+0x16/0x30 [bad]"},
		{record: "6.12-gpf", verdict: "crashes", step: "load", module: "bad", reason: "general protection fault, probably for non-canonical address 0xdead", at: "act+"},
		{record: "6.12-work", verdict: "crashes", step: "load", module: "bad", reason: "NULL pointer", at: "oops_here+"},
		{record: "6.12-panic", verdict: "crashes", step: "load", module: "bad", reason: "Kernel panic - not syncing: bad: panic asked for", at: "act+"},
		{record: "6.1-timer", verdict: "crashes", step: "load", module: "bad", reason: "NULL pointer dereference, address: 0000000000000000; Kernel panic - not syncing: Fatal exception in interrupt", at: "oops_here+"},
		{record: "6.1-deadlock", verdict: "hangs", step: "load", module: "bad", reason: "didn't end within 5s", at: "bad_init+"},
		{record: "6.1-spin", verdict: "hangs", step: "load", module: "bad", hangs: true, reason: "stands still: watchdog: BUG: soft lockup", at: "act+"},
		{record: "6.1-need", verdict: "no-hardware", step: "need", module: "base", errno: "ENODEV", reason: "not tried for it: top; the kernel's own module base, which is needed (it is no fault of those tried): its init function returned ENODEV",
			modules: []string{"top untried it needs base: that finds no hardware", "good loads"}},
		{record: "6.1-several", verdict: "refused", step: "load", module: "inval", errno: "EINVAL", modules: []string{
			"base loads", "top loads", `inval refused init function returned EINVAL (invalid argument); the kernel itself gives no reason; the last it said: "bad: I don't`,
			"nodev no-hardware its init function returned ENODEV", "perm loads it can't be unloaded", `good refused it has no parameter "nosuch": the kernel ignores it; it has b, n, s`,
			"other refused module_layout", "again refused of its name already", "truncated refused damaged, truncated", "bad stays use count"}},
		{record: "6.12-several", verdict: "refused", step: "load", module: "inval", modules: []string{
			"top loads", "inval refused isn't in /proc/modules", "value refused parameter n", "other refused built for another kernel", "truncated refused damaged", "bad warns bad.c:"}},
	} {
		t.Run(c.record, func(t *testing.T) {
			r := readRecord(t, c.record).judge(t, c.hangs)
			if string(r.Verdict) != c.verdict || r.Step != c.step || r.Module != c.module || r.Errno != c.errno || !strings.Contains(r.Reason, c.reason) {
				t.Errorf("%s at %q of %q, %q: %s\nwant %s at %q of %q, %q: %s", r.Verdict, r.Step, r.Module, r.Errno, r.Reason, c.verdict, c.step, c.module, c.errno, c.reason)
			}
			if c.at != "" && (r.Trace == nil || !strings.HasPrefix(r.Trace.At, c.at) || r.Trace.Module != "bad" || len(r.Trace.Calls) == 0) {
				t.Errorf("its trace is %+v; want one at %s", r.Trace, c.at)
			}
			for i, want := range c.modules {
				words := strings.SplitN(want, " ", 3)
				if s := r.Modules[i]; s.Name != words[0] || string(s.Verdict) != words[1] || len(words) > 2 && !strings.Contains(s.Reason, words[2]) {
					t.Errorf("%s %s: %s; want %s", s.Name, s.Verdict, s.Reason, want)
				}
			}
			if len(r.Log) == 0 || r.Machine.Release == "" {
				t.Errorf("no transcript, or no release: %+v", r)
			}
		})
	}
}

func TestJudgeReadsBack(t *testing.T) {
	r := readRecord(t, "6.12-loads").judge(t, false)
	good := r.Modules[1]
	if good.Version != "1.2" || len(good.Srcversion) != 23 || good.Taint != "OE" || good.Size < 4096 || good.Load <= 0 || good.Params["n"] != "7" {
		t.Errorf("read back was %+v", good)
	}
	var forms []string
	for _, s := range r.Signature {
		forms = append(forms, fmt.Sprint(s.Module, " ", s.Form, " ", s.Errno, " ", s.OK))
	}
	want := []string{"top unsigned EKEYREJECTED true", "top signed EKEYREJECTED true", "top malformed EBADMSG true",
		"good unsigned EKEYREJECTED true", "good signed EKEYREJECTED true", "good malformed EBADMSG true"}
	if !slices.Equal(forms, want) {
		t.Errorf("signatures: %q; want %q", forms, want)
	}
	if !slices.Contains(r.Log, "  top good: 7") {
		t.Errorf("the script's output is not in %q", r.Log)
	}
}

// Of a machine that passes, no line that a step consists of can be left out, come twice, or be another's.
func TestJudgeFailsClosed(t *testing.T) {
	r := readRecord(t, "6.12-loads")
	if v := r.judge(t, false).Verdict; v != Loads {
		t.Fatalf("the record is judged %s", v)
	}
	lines := slices.Collect(bytes.Lines(r.events))
	for i, line := range lines {
		var e event
		if err := json.Unmarshal(line, &e); err != nil {
			t.Fatal(err)
		}
		if e.Type == "kmsg" || e.Type == "output" || e.Type == "end" {
			continue
		}
		for change, with := range map[string][][]byte{"left out": nil, "twice": {line, line}, "no event": {[]byte("{}\n")}, "garbage": {[]byte("\xff{\n")}} {
			x := r
			x.events = bytes.Join(slices.Concat(lines[:i], with, lines[i+1:]), nil)
			if got := x.judge(t, false); got.Verdict.Passed() {
				t.Errorf("with %s %s it is judged %s", line, change, got.Verdict)
			}
		}
		x := r
		x.events = bytes.Join(lines[:i], nil)
		if got := x.judge(t, false); got.Verdict.Passed() {
			t.Errorf("ended before %s it is judged %s", line, got.Verdict)
		}
	}
	got := record{task: r.task, events: r.events, console: r.console}
	got.events = slices.Concat(lines[0], []byte("not JSON\n"), []byte("{\"type\":\"\"}\n"), bytes.Repeat([]byte("x"), 2*maxEvent), []byte("\n"), bytes.Join(lines[1:], nil))
	if v := got.judge(t, false); v.Verdict != Loads || !strings.Contains(strings.Join(v.Log, "\n"), "what is no event") {
		t.Errorf("with garbage between it is judged %s, %q", v.Verdict, v.Reason)
	}
}

// The kernel's taint is believed where its words are missing, and words of a module are none of the kernel's.
func TestJudgeTaint(t *testing.T) {
	r := readRecord(t, "6.12-loads")
	for _, c := range []struct {
		what, old, new string
		want           Verdict
	}{
		{"died", `"step":"unload","name":"top","taint":12288`, `"step":"unload","name":"top","taint":12416`, Crashes},
		{"warned", `"step":"unload","name":"top","taint":12288`, `"step":"unload","name":"top","taint":12800`, Warns},
		{"its own words", `"text":"top: 42"`, `"text":"WARNING: the top is high"`, Loads},
		{"lockdep", `"text":"top: 42"`, `"text":"WARNING: possible circular locking dependency detected"`, Warns},
		{"lockdep of 4.9", `"text":"top: 42"`, `"text":"[ INFO: possible recursive locking detected ]"`, Warns},
		{"loaded without a trace of it", `"size":12288`, `"size":0`, Crashes},
		{"a forged crash", `"text":"top: 42"`, `"text":"BUG: unable to handle page fault for address: 0"`, Loads},
	} {
		x := r
		x.events = bytes.Replace(r.events, []byte(c.old), []byte(c.new), 1)
		if bytes.Equal(x.events, r.events) {
			t.Fatalf("%s: nothing is replaced", c.what)
		}
		if got := x.judge(t, false); got.Verdict != c.want {
			t.Errorf("%s: %s (%s); want %s", c.what, got.Verdict, got.Reason, c.want)
		}
	}
}

// What a console has from before the last event is none of the end's.
func TestJudgeConsole(t *testing.T) {
	r := readRecord(t, "6.1-spin")
	r.console = append([]byte("[    1.000000] Oops: of the boot\n[    4.000000] BUG: unable to handle page fault\n"), r.console...)
	if got := r.judge(t, true); got.Verdict != Hangs {
		t.Errorf("%s: %s; want a hang", got.Verdict, got.Reason)
	}
}

// What the kernel has built in needn't be loaded.
func TestJudgeBuiltIn(t *testing.T) {
	r := readRecord(t, "6.12-loads")
	r.events = bytes.Replace(r.events, []byte(`"done","step":"need","name":"base"`), []byte(`"done","step":"need","name":"base","errno":17`), 1)
	if got := r.judge(t, false); got.Verdict != Loads {
		t.Errorf("%s: %s; want that it loads", got.Verdict, got.Reason)
	}
}

// Other answers than those that a form must get are found.
func TestJudgeSignatures(t *testing.T) {
	for _, c := range []struct {
		form, step string
		errno      unix.Errno
		say        string // the kernel does
		ok         bool
	}{
		{Unsigned, "sign", unix.EKEYREJECTED, "Loading of unsigned module is rejected", true},
		{Unsigned, "sign", unix.ENOKEY, "", true}, // until 5.1
		{Unsigned, "sign", 0, "", false},
		{Unsigned, "sign", unix.EKEYREJECTED, "Loading of module with unavailable key is rejected", false},
		{Signed, "sign", unix.EKEYREJECTED, "Loading of module with unavailable key is rejected", true},
		{Signed, "sign", unix.ENOKEY, "", true},
		{Signed, "sign", 0, "", true},
		{Signed, "sign", unix.EKEYREJECTED, "Loading of module with unsupported crypto is rejected", false},
		{Signed, "sign", unix.EKEYREJECTED, "", false},
		{Signed, "sign", unix.EBADMSG, "", false},
		{Malformed, "sign", unix.EBADMSG, "", true},
		{Malformed, "sign", unix.EKEYREJECTED, "Loading of module with unavailable key is rejected", false},
		{Malformed, "sign", 0, "", false},
		{Signed, "enforce", unix.ENOENT, "", true}, // without CONFIG_MODULE_SIG
	} {
		j := newJudge(task{Modules: []tried{{Name: "m"}}, Sign: []form{{"m", c.form}}}, nil)
		name := c.form + "/m"
		if c.step == "enforce" {
			name = ""
		}
		j.signature(event{Step: c.step, Name: name, Errno: int(c.errno)}, []message{{5, 1, c.say}})
		if len(j.sigs) != 1 || j.sigs[0].OK != c.ok || j.sigs[0].Reason == "" || (j.states[0].Verdict == Refused) == c.ok {
			t.Errorf("%+v: %+v, %+v", c, j.sigs, j.states[0].Finding)
		}
	}
}

// What another kernel says is nothing about the one that was meant.
func TestJudgeRelease(t *testing.T) {
	events := make(chan event, 1)
	events <- event{Type: "boot", Uname: []string{"6.1.0-55-amd64", "#1"}}
	j := newJudge(task{Modules: []tried{{Name: "m"}}}, events)
	j.boot, j.step, j.release = time.Minute, time.Nanosecond, "6.1.0-56-amd64"
	j.follow()
	r := j.verdict("")
	if want := "the kernel that booted is 6.1.0-55-amd64, and not 6.1.0-56-amd64"; r.Verdict != NoBoot || !strings.HasPrefix(r.Reason, want) || r.Modules[0].Verdict != Untried {
		t.Errorf("it is judged %+v; want %s: %s", r, NoBoot, want)
	}
}

// No hardware at the second time is a fault, when there was some at the first.
func TestJudgeReload(t *testing.T) {
	r := readRecord(t, "6.12-loads")
	var kept [][]byte
	for line := range bytes.Lines(r.events) {
		if !bytes.Contains(line, []byte(`"step":"again","name":"top"`)) {
			kept = append(kept, bytes.Replace(line, []byte(`"done","step":"reload","name":"top"`), []byte(`"done","step":"reload","name":"top","errno":19`), 1))
		}
	}
	r.events = bytes.Join(kept, nil)
	if got := r.judge(t, false); got.Verdict != Refused || got.Step != "reload" || got.Module != "top" || !strings.Contains(got.Reason, "doesn't any more: its init function returned ENODEV") {
		t.Errorf("%s at %q of %q: %s", got.Verdict, got.Step, got.Module, got.Reason)
	}
}

// A state from the guest says nothing of the verdict, and its texts come without what a terminal would act on.
func TestJudgeCleans(t *testing.T) {
	r := readRecord(t, "6.1-deadlock")
	r.events = []byte(`{"type":"boot","uname":["6.1\u001b[2J","x"]}
{"type":"step","step":"load","name":"bad"}
{"type":"kmsg","level":4,"text":"a\u001b]0;x\u0007b\u202ec"}
{"type":"done","step":"load","name":"bad","state":{"name":"other","verdict":"loads","reason":"forged","size":1,"version":"\u001b[31m","params":{"\u001bp":"\u009b"}}}
`)
	got := r.judge(t, false)
	if s := got.Modules[0]; s.Name != "bad" || s.Verdict == Loads || s.Reason == "forged" || got.Verdict != Crashes {
		t.Errorf("the state is %+v, the verdict %s", s, got.Verdict)
	}
	b, _ := json.Marshal(got)
	for _, bad := range []string{`\u001b`, "\u009b", "\u202e"} {
		if strings.Contains(string(b), bad) {
			t.Errorf("%q is in %s", bad, b)
		}
	}
}

func TestJudgeNoBoot(t *testing.T) {
	r := readRecord(t, "6.1-oops")
	r.events = nil
	for _, c := range []struct {
		console string
		hangs   bool
		reason  string
	}{
		{"", true, "didn't boot within 2m0s"},
		{"", false, "said nothing"},
		{"[    1.0] x\n[    1.300000] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\n[    1.300001] CPU: 0\n", false, "VFS: Unable to mount root fs"},
		{"[    1.000000] one\n[    1.300000] the last of it\n", true, "its last words: the last of it"},
	} {
		r.console = []byte(c.console)
		if got := r.judge(t, c.hangs); got.Verdict != NoBoot || got.Step != "boot" || !strings.Contains(got.Reason, c.reason) || got.Modules[0].Verdict != Untried {
			t.Errorf("%q: %+v; want %q", c.console, got.Finding, c.reason)
		}
	}
	r.events = []byte(`{"type":"end","error":"mount /dev: no such device"}` + "\n")
	if got := r.judge(t, false); got.Verdict != NoBoot || !strings.Contains(got.Reason, "mount /dev: no such device") {
		t.Errorf("a first process that can't begin: %+v", got.Finding)
	}
}

// A machine that never stops talking is held on to by nobody.
func TestJudgeIsBounded(t *testing.T) {
	r := readRecord(t, "6.1-oops")
	line := `{"type":"kmsg","level":6,"text":"` + strings.Repeat("x", 5000) + `"}` + "\n"
	r.events = []byte(`{"type":"boot","uname":["6.1","x"]}` + "\n" + `{"type":"step","step":"load","name":"bad"}` + "\n" + strings.Repeat(line, 10000))
	got := r.judge(t, false)
	if n := len(got.Log); n > 3*maxLog+2 || got.Verdict != Crashes {
		t.Errorf("%d lines are kept; the verdict is %s", n, got.Verdict)
	}
	if n := len(got.Log[100]); n > 2100 {
		t.Errorf("a line of %d bytes is kept", n)
	}
	var c consoleText
	for range 300 {
		c.Write(make([]byte, 10000))
	}
	if n := len(c.String()); n > 3*maxConsole {
		t.Errorf("%d bytes of console are kept", n)
	}
}

// Whatever a machine sends, judging it ends, and without the whole course it doesn't pass.
func FuzzJudge(f *testing.F) {
	r := readRecord(f, "6.1-several")
	f.Add(r.events, r.console)
	f.Add([]byte(`{"type":"boot","uname":["",""]}`+"\n"+`{"type":"done"}`+"\n"), []byte("[ 1.000000] Oops: x\n[ 1.000000] RIP: 0010:0x8\nCall Trace:\n a+0x1/0x2\n"))
	f.Fuzz(func(t *testing.T, events, console []byte) {
		x := record{r.task, events, console}
		if got := x.judge(t, false); got.Verdict == "" || len(got.Modules) != len(r.task.Modules) {
			t.Errorf("judged %+v", got)
		}
	})
}
