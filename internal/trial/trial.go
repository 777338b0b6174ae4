// Package trial finds out whether kernel modules load: it boots the kernel that they are for in a virtual machine, loads them there,
// looks at what the kernel says, unloads them, and does it again.
//
// The machine has no disk and no network. Its first process is this program (see Init), which works off a task from its initramfs and
// tells of every step, a line of JSON each, over the second serial port; the first one is the kernel's console. What happened is judged
// outside. Only a machine that reports every step, in order and in time, can pass: whatever is missing is a crash or a hang.
//
// A module is code of the kernel that it is tried in. One that means harm can't leave the machine, fill this one's memory or keep it
// waiting for ever, but can lie: patch the kernel, or write to the serial port itself, and so have "loads" said of it. A trial
// finds mistakes; it is no proof against malice.
package trial

import (
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Verdict is the outcome of a trial.
type Verdict string

const (
	Loads      Verdict = "loads"       // and unloads, twice, unless that wasn't asked for or the kernel has no unloading of it
	NoHardware Verdict = "no-hardware" // its init, or that of a module that it needs, says ENODEV or ENXIO: what that drives isn't in the machine, which is no failure
	Refused    Verdict = "refused"     // the kernel, or the module's own init, refuses to load it
	Crashes    Verdict = "crashes"     // the kernel oopsed, hit a BUG or panicked
	Hangs      Verdict = "hangs"       // a step didn't end in time, or the machine says nothing any more
	Stays      Verdict = "stays"       // it loads, but doesn't unload
	Warns      Verdict = "warns"       // it loads and unloads, but the kernel warned: WARNING, lockdep, a leak
	Script     Verdict = "script"      // the user's script failed
	NoBoot     Verdict = "no-boot"     // the kernel didn't come as far as the first process: nothing is known of the modules
	Untried    Verdict = "untried"     // of a module, never of a trial: one that it needs isn't there, or the machine ended before its turn
)

// severity are the verdicts of a trial, the worst first.
var severity = []Verdict{NoBoot, Crashes, Hangs, Refused, Stays, Warns, Script, NoHardware, Loads}

// Passed says whether a verdict is none against the modules.
func (v Verdict) Passed() bool { return v == Loads || v == NoHardware }

// Module is one that is tried.
type Module struct {
	Name   string   // as the kernel has it in /proc/modules: "dm_writeboost"; [A-Za-z0-9_.-]+, once in a trial
	Params []string // "key=value"
	File   []byte   // not compressed
}

// Finding is what came of a module, or of a trial.
type Finding struct {
	Verdict Verdict `json:"verdict"`
	Step    string  `json:"step,omitempty"`   // "boot", "need", "load", "script", "unload", "reload", "again", "settle", "sign"; see task
	Errno   string  `json:"errno,omitempty"`  // "EINVAL"
	Reason  string  `json:"reason,omitempty"` // in one line: what it means, and the kernel's own words where it said something
	Trace   *Trace  `json:"trace,omitempty"`  // of a crash, a hang or a warning
}

// Result is what a trial found.
type Result struct {
	Finding                 // the worst of all
	Module    string        `json:"module,omitempty"` // that it is about, if it's about one; at the step "need" one of the kernel's own
	Modules   []State       `json:"modules"`          // the tried ones, in their order
	Wanted    []string      `json:"wanted,omitempty"` // modules and aliases, at most 32, that the kernel asked for (request_module) and that weren't there
	Signature []Signature   `json:"signature,omitempty"`
	Machine   MachineInfo   `json:"machine"`
	Took      time.Duration `json:"took"`       // from the start of the machine to its end, in nanoseconds
	Log       []string      `json:"transcript"` // the steps, and what the kernel and the script said from the first one on; bounded
}

// Untried are the names of the modules that weren't tried, of which a trial that was passed says nothing.
func (r Result) Untried() (names []string) {
	for _, m := range r.Modules {
		if m.Verdict == Untried {
			names = append(names, m.Name)
		}
	}
	return names
}

// State is what came of a module, and how it was once it had been loaded.
type State struct {
	Name string `json:"name"`
	Finding
	Version    string            `json:"version,omitempty"`
	Srcversion string            `json:"srcversion,omitempty"`
	Taint      string            `json:"taint,omitempty"`     // the letters of /sys/module/NAME/taint: "OE"
	Params     map[string]string `json:"params,omitempty"`    // that can be read
	Size       int64             `json:"size"`                // bytes, by /proc/modules
	Permanent  bool              `json:"permanent,omitempty"` // it, or the kernel, has no unloading
	Load       time.Duration     `json:"load"`                // the kernel took for it, in nanoseconds
}

// Signature is what the kernel answered to one form of a signed module, under module.sig_enforce=1.
type Signature struct {
	Module string `json:"module"`
	Form   string `json:"form"`            // see Unsigned
	Errno  string `json:"errno,omitempty"` // "EKEYREJECTED"
	Reason string `json:"reason"`          // what it means, and the kernel's own words where it said something
	OK     bool   `json:"ok"`              // it's the answer that such a module must get, or the kernel checks no signatures
}

// Forms of a signed module.
const (
	Unsigned  = "unsigned"  // without a signature: to be refused for that
	Signed    = "signed"    // as Sign of internal/kmod does it: to be refused for its key alone, which the kernel doesn't know, or loaded if it does
	Malformed = "malformed" // the same, but one byte of the signature's structure is another: to be refused for that
)

// Trace is where a kernel was when something went wrong.
type Trace struct {
	What   string   `json:"what"`             // "BUG: kernel NULL pointer dereference, address: 0000000000000000"
	At     string   `json:"at,omitempty"`     // function+offset/size, and [module]
	Calls  []string `json:"calls,omitempty"`  // likewise, the innermost first
	Module string   `json:"module,omitempty"` // the first one that it goes through
}

// MachineInfo says on what a trial was made.
type MachineInfo struct {
	Release string  `json:"release"` // of the kernel that ran, by uname(2)
	Build   string  `json:"build"`   // its version, by uname(2)
	Image   v1.Hash `json:"image"`   // digest of the file that was booted
	QEMU    string  `json:"qemu"`    // version
	Accel   string  `json:"accel"`   // "kvm" or "tcg"
	Memory  int64   `json:"memory"`  // bytes
}
