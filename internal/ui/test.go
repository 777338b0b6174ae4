package ui

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/godkms-hermetic/godkms-hermetic/internal/trial"
)

// PrintTests writes one line per result, in the order given: kernel, the source where there are several, the verdict, and what it is
// about. What wasn't tried has its status and the reason.
func PrintTests(w io.Writer, results []Result) error {
	return printRows(w, results, func(r Result) (string, []string) {
		if r.Test == nil {
			return string(r.Status), []string{r.Reason}
		}
		return string(r.Test.Verdict), []string{Outcome(*r.Test), machineOf(*r.Test)}
	})
}

// maxNamed is how many modules a line names.
const maxNamed = 4

// Outcome is what a trial found, in one line without its verdict: the modules that load, or what is wrong with which.
func Outcome(t trial.Result) string {
	if t.Verdict == trial.Loads {
		var names []string
		for _, m := range t.Modules {
			name := m.Name
			if m.Version != "" {
				name += " " + m.Version
			}
			names = append(names, name)
		}
		if n := len(names) - maxNamed; n > 0 {
			names = append(names[:maxNamed], fmt.Sprintf("and %d more", n))
		}
		text := strings.Join(names, ", ")
		if answers := signatures(t); answers != "" {
			text += "; " + answers
		}
		return cleanLine(text)
	}
	return finding(t.Module, t.Finding)
}

// signatures are the kernel's answers to the forms of the first module that it was asked for.
func signatures(t trial.Result) string {
	var answers []string
	for _, s := range t.Signature {
		if s.Module == t.Signature[0].Module {
			answers = append(answers, s.Form+" "+cmp.Or(s.Errno, s.Reason))
		}
	}
	if len(answers) == 0 {
		return ""
	}
	return "signatures: " + strings.Join(answers, ", ")
}

// finding is what is wrong with a module, in one line.
func finding(module string, f trial.Finding) string {
	var parts []string
	for _, s := range []string{module, f.Step} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	if f.Errno != "" && !strings.Contains(f.Reason, f.Errno) {
		parts = append(parts, f.Errno)
	}
	if f.Reason != "" {
		parts = append(parts, f.Reason)
	}
	text := strings.Join(parts, ": ")
	if f.Trace != nil && f.Trace.At != "" && !strings.Contains(text, f.Trace.At) {
		text += ", at " + f.Trace.At
	}
	return cleanLine(text)
}

// machineOf says how long a trial took, and on what.
func machineOf(t trial.Result) string {
	if t.Took == 0 {
		return ""
	}
	return fmt.Sprintf("%.1fs, %s", t.Took.Seconds(), t.Machine.Accel)
}

// verdicts are what verdicts against modules say.
var verdicts = map[trial.Verdict]string{
	trial.Refused: "the kernel refuses to load it",
	trial.Crashes: "it crashes the kernel",
	trial.Hangs:   "it hangs",
	trial.Stays:   "it loads, but doesn't unload",
	trial.Warns:   "it loads, but the kernel warns",
	trial.Script:  "it loads, but the script fails",
	trial.NoBoot:  "the kernel doesn't boot, so that nothing is known of the modules",
}

// Of a failed test: how many lines of what the kernel said are shown, and how many modules beside the one that it's about.
const (
	maxSaid   = 12
	maxOthers = 8
)

// TestFailure is what there is to say of a trial that wasn't passed.
func TestFailure(t trial.Result) Failure {
	f := Failure{First: Outcome(t), Why: verdicts[t.Verdict], Hint: testHint(t)}
	if tr := t.Trace; tr != nil {
		f.Of, f.Tail = "the trace", []string{tr.What}
		if tr.At != "" {
			f.Tail = append(f.Tail, "at "+tr.At)
		}
		for _, call := range tr.Calls[:min(len(tr.Calls), maxSaid-2)] {
			f.Tail = append(f.Tail, "called from "+call)
		}
	} else if said := saidAt(t); len(said) > 0 {
		f.Of, f.Tail = "what was said", said
	}
	others := 0
	for _, m := range t.Modules {
		if m.Verdict.Passed() || m.Verdict == trial.Untried || m.Name == t.Module {
			continue
		}
		if others++; others == 1 {
			f.Tail = append(f.Tail, "and of the others:")
		}
		if others > maxOthers {
			f.Tail = append(f.Tail, "and more")
			break
		}
		f.Tail = append(f.Tail, string(m.Verdict)+": "+finding(m.Name, m.Finding))
	}
	return f
}

// saidAt is the end of the part of a transcript that is about the step of a finding, or else its end.
func saidAt(t trial.Result) []string {
	log := t.Log
	step := "* " + t.Step
	if t.Module != "" {
		step += " " + t.Module
	}
	if i := slices.IndexFunc(log, func(line string) bool { return line == step || t.Module == "" && strings.HasPrefix(line, step+" ") }); i >= 0 {
		log = log[i:]
		if n := slices.IndexFunc(log[1:], func(line string) bool { return strings.HasPrefix(line, "* ") }); n >= 0 {
			log = log[:n+1]
		}
	}
	return log[max(0, len(log)-maxSaid):]
}

// testHint is what to do next.
func testHint(t trial.Result) string {
	switch t.Verdict {
	case trial.Refused:
		switch t.Errno {
		case "ENOEXEC":
			return "it is damaged, or was built for another kernel: build it for this one"
		case "ENOENT":
			return "what it needs is not there: name the source that has it with --depends, or its module in BUILD_DEPENDS"
		case "EINVAL":
			return "its own code or a parameter may say so: --param gives it parameters, --verbose shows all that the kernel said"
		case "EEXIST":
			return "the kernel has a module of that name built in, or it was loaded for another"
		}
	case trial.Hangs:
		return "--timeout gives each step more time"
	case trial.Stays:
		return "where it is meant to stay, test it with --load-only"
	case trial.NoBoot:
		return "--mem gives the machine more memory"
	}
	return "--verbose shows all that the kernel said"
}
