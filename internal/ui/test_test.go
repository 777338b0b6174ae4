package ui

import (
	"encoding/xml"
	"strings"
	"testing"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/internal/trial"
)

func tested(v trial.Verdict, change func(*trial.Result)) *trial.Result {
	t := &trial.Result{Finding: trial.Finding{Verdict: v}, Took: 2912 * time.Millisecond, Machine: trial.MachineInfo{Accel: "tcg"}}
	if change != nil {
		change(t)
	}
	return t
}

var oops = tested(trial.Crashes, func(t *trial.Result) {
	t.Module, t.Step, t.Reason = "hello", "load", "the kernel oopsed: BUG: kernel NULL pointer dereference"
	t.Trace = &trial.Trace{What: "BUG: kernel NULL pointer dereference", At: "init+0xc/0x20 [hello]", Calls: []string{"do_one_initcall+0x59/0x220"}}
	t.Modules = []trial.State{{Name: "hello", Finding: t.Finding}, {Name: "other", Finding: trial.Finding{Verdict: trial.Untried}}}
})

var refusal = tested(trial.Refused, func(t *trial.Result) {
	t.Module, t.Step, t.Errno, t.Reason = "hello", "load", "ENOEXEC", "version magic is another\x1b[31m"
	t.Log = []string{"* load hello", "[ 1.0] hello: version magic", "  ENOEXEC", "* settle", "  done"}
	t.Modules = []trial.State{{Name: "hello", Finding: t.Finding}, {Name: "more", Finding: trial.Finding{Verdict: trial.Stays, Step: "unload", Errno: "EBUSY"}}}
})

func TestPrintTests(t *testing.T) {
	loads := tested(trial.Loads, func(t *trial.Result) {
		for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
			t.Modules = append(t.Modules, trial.State{Name: name, Version: "1.0"})
		}
		t.Signature = []trial.Signature{{Module: "a", Form: "unsigned", Errno: "EKEYREJECTED"}, {Module: "a", Form: "malformed", Errno: "EBADMSG"}, {Module: "b", Form: "unsigned", Errno: "ENOKEY"}}
	})
	var b strings.Builder
	err := PrintTests(&b, []Result{
		{Kernel: "debian/bookworm:6.1.0-56-amd64", Module: "m", Status: Cached, Test: loads},
		{Kernel: "debian/trixie:6.12.1", Module: "m", Status: Failed, Reason: "crashes: …", Test: oops},
		{Kernel: "debian/trixie:6.12.2", Module: "m", Status: Failed, Test: refusal},
		{Kernel: "debian/trixie:6.12.3", Module: "m", Status: Skipped, Reason: "not for this one"},
		{Kernel: "debian/trixie:6.12.4", Module: "m", Status: Built, Test: tested(trial.NoHardware, func(t *trial.Result) {
			t.Module, t.Step, t.Errno, t.Reason = "a", "load", "ENODEV", "ENODEV: no such hardware"
		})},
	})
	want := `debian/bookworm:6.1.0-56-amd64  loads        a 1.0, b 1.0, c 1.0, d 1.0, and 2 more; signatures: unsigned EKEYREJECTED, malformed EBADMSG  2.9s, tcg
debian/trixie:6.12.1            crashes      hello: load: the kernel oopsed: BUG: kernel NULL pointer dereference, at init+0xc/0x20 [hello]  2.9s, tcg
debian/trixie:6.12.2            refused      hello: load: ENOEXEC: version magic is another  2.9s, tcg
debian/trixie:6.12.3            skipped      not for this one
debian/trixie:6.12.4            no-hardware  a: load: ENODEV: no such hardware  2.9s, tcg
`
	if err != nil || b.String() != want {
		t.Errorf("PrintTests, %v:\n%s\nwant:\n%s", err, b.String(), want)
	}
}

func TestFailedTest(t *testing.T) {
	var b strings.Builder
	board := New(&b, Options{})
	board.Fail("k", TestFailure(*oops), "")
	board.Fail("k", TestFailure(*refusal), "")
	want := `k: it crashes the kernel
  hello: load: the kernel oopsed: BUG: kernel NULL pointer dereference, at init+0xc/0x20 [hello]
  the trace:
    BUG: kernel NULL pointer dereference
    at init+0xc/0x20 [hello]
    called from do_one_initcall+0x59/0x220
  hint: --verbose shows all that the kernel said
k: the kernel refuses to load it
  hello: load: ENOEXEC: version magic is another
  what was said:
    * load hello
    [ 1.0] hello: version magic
      ENOEXEC
    and of the others:
    stays: more: unload: EBUSY
  hint: it is damaged, or was built for another kernel: build it for this one
`
	if b.String() != want {
		t.Errorf("Fail:\n%s\nwant:\n%s", b.String(), want)
	}
}

// A report has a failed test as a failure, and says what passed.
func TestReportOfTests(t *testing.T) {
	f := TestFailure(*oops)
	r := Report{Version: "v1", Results: []Result{
		{Kernel: "k1", Module: "hello", Version: "1.0", Status: Built, Digest: "sha256:00", Test: tested(trial.Loads, func(t *trial.Result) {
			t.Modules = []trial.State{{Name: "hello", Version: "1.0"}}
		})},
		{Kernel: "k2", Module: "hello", Version: "1.0", Status: Failed, Test: oops, Reason: "crashes: " + f.First, Why: f.Why, First: f.First, Tail: f.Tail, Hint: f.Hint},
	}}
	var doc junitSuites
	if err := xml.Unmarshal([]byte(render(t, r, "junit")), &doc); err != nil {
		t.Fatal(err)
	}
	good, bad := doc.Suites[0].Cases[0], doc.Suites[1].Cases[0]
	if good.Failure != nil || !strings.Contains(good.Out, "loads hello 1.0") {
		t.Errorf("a passed test is %+v", good)
	}
	if bad.Failure == nil || bad.Failure.Type != "test" || !strings.Contains(bad.Failure.Message, "crashes: hello") || !strings.Contains(bad.Out, "at init+0xc/0x20") {
		t.Errorf("a failed test is %+v, %+v", bad, bad.Failure)
	}
	for form, want := range map[string][]string{
		"markdown": {"1 of 2 tests failed", "built loads", "failed crashes", "init+0xc/0x20"},
		"html":     {"1 of 2 tests failed", "loads", "called from do_one_initcall"},
	} {
		got := render(t, r, form)
		for _, text := range want {
			if !strings.Contains(got, text) {
				t.Errorf("%s lacks %q:\n%s", form, text, got)
			}
		}
	}
}
