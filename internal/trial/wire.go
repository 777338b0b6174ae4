package trial

import "slices"

// task is what the first process of the machine has to do, the file /task in its initramfs.
type task struct {
	Port     string   `json:"port"`     // device that events go to
	Needed   []tried  `json:"needed"`   // modules of the kernel: each after what it needs; the file is /modules/NAME
	Modules  []tried  `json:"modules"`  // likewise, that are tried
	LoadOnly bool     `json:"loadonly"` // don't unload them, nor load them again
	Script   []string `json:"script,omitempty"`
	Env      []string `json:"env,omitempty"`  // of the script, without KERNEL
	Step     int64    `json:"step"`           // nanoseconds that a step may take
	Sign     []form   `json:"sign,omitempty"` // what is then loaded under module.sig_enforce=1
}

type tried struct {
	Name   string   `json:"name"`
	Params string   `json:"params,omitempty"`
	Needs  []string `json:"needs,omitempty"` // those of Needed and Modules that its modinfo depends on

	empty bool // the file is, which the kernel answers with EINVAL and no word
}

// form is a module in one of the forms of Signature. Its file is /sign/FORM/MODULE.
type form struct {
	Module string `json:"module"`
	Form   string `json:"form"`
}

// event is a line from the machine. What is said in one is all from the guest, where the module can say what it likes.
type event struct {
	Type string `json:"type"`           // "boot", "step" when one begins, "done" when it ended, "kmsg", "wanted", "lost", "output", "end"
	Step string `json:"step,omitempty"` // see course
	Name string `json:"name,omitempty"` // what the step is about

	Uname []string `json:"uname,omitempty"` // of "boot": release and version
	Taint uint64   `json:"taint,omitempty"` // of "boot" and "done": /proc/sys/kernel/tainted

	Errno  int      `json:"errno,omitempty"`  // of a step that failed
	Error  string   `json:"error,omitempty"`  // of "done" and "end": what failed that has no number
	Took   int64    `json:"took,omitempty"`   // of "done", nanoseconds
	State  *State   `json:"state,omitempty"`  // of "done" of "load"
	Killed bool     `json:"killed,omitempty"` // of "done": the thread that made the step is gone: the kernel ended it
	Hung   bool     `json:"hung,omitempty"`   // of "done": it didn't end in time; Lines is its stack
	Lines  []string `json:"lines,omitempty"`

	Level int    `json:"level,omitempty"` // of "kmsg", 0 to 7
	Time  int64  `json:"time,omitempty"`  // of "kmsg" and "boot", microseconds on the clock of the kernel's log
	Text  string `json:"text,omitempty"`  // of "kmsg" and "output"; of "wanted" the module or alias that the kernel asked for
}

func (e event) failed() bool { return e.Errno != 0 || e.Error != "" || e.Killed || e.Hung }

// course goes through the steps of a task. The guest goes by it to make them, and the host to follow: so nothing passes that
// wasn't told of in this order. do makes a step, or hears of it, and gives the event of its end; what it's about is a module, a script or
// a form of signature. If it gives false the course ends there.
//
// The steps are "need" for each module of the kernel, "load" for each that is tried, "script", "unload", "reload", and "again" for the
// second unloading, "enforce" and "sign" for each form of signature, and "settle", a wait for what comes late. A module isn't loaded
// if one that it needs could not be; it isn't unloaded if it can't be, or is needed by one that stayed.
func (t *task) course(do func(step, name string) (event, bool)) bool {
	missing := map[string]bool{}
	load := func(step string, m tried) (e event, loaded, goOn bool) {
		if slices.ContainsFunc(m.Needs, func(n string) bool { return missing[n] }) {
			missing[m.Name] = true
			return event{}, false, true
		}
		e, goOn = do(step, m.Name)
		missing[m.Name] = e.failed() && !(step == "need" && e.Errno == eexist) // it may be there as part of the kernel
		return e, !missing[m.Name], goOn
	}
	for _, m := range t.Needed {
		if _, _, goOn := load("need", m); !goOn {
			return false
		}
	}
	modules, permanent := t.Modules, map[string]bool{}
	for _, steps := range [][2]string{{"load", "unload"}, {"reload", "again"}} {
		var there []tried
		for _, m := range modules {
			e, loaded, goOn := load(steps[0], m)
			if !goOn {
				return false
			}
			if loaded {
				there = append(there, m)
				permanent[m.Name] = e.State != nil && e.State.Permanent
			}
		}
		if steps[0] == "load" && len(t.Script) > 0 {
			if _, goOn := do("script", t.Script[0]); !goOn {
				return false
			}
		}
		if t.LoadOnly {
			break
		}
		held := map[string]bool{}
		modules = nil
		for _, m := range slices.Backward(there) {
			if !permanent[m.Name] && !held[m.Name] {
				e, goOn := do(steps[1], m.Name)
				if !goOn {
					return false
				}
				if !e.failed() {
					modules = append(modules, m)
					continue
				}
			}
			for _, n := range m.Needs {
				held[n] = true
			}
		}
		slices.Reverse(modules)
	}
	if len(t.Sign) > 0 {
		e, goOn := do("enforce", "")
		if !goOn {
			return false
		}
		for _, f := range t.Sign {
			if e.failed() {
				break
			}
			if _, goOn := do("sign", f.Form+"/"+f.Module); !goOn {
				return false
			}
		}
	}
	_, goOn := do("settle", "")
	return goOn
}

// depended says whether a tried module needs one, if only through others. The rest of Needed is there because it may be of use: whether
// it loads is no matter.
func (t *task) depended(name string) bool {
	on := map[string]bool{}
	for i, m := range slices.Backward(slices.Concat(t.Needed, t.Modules)) {
		for _, n := range m.Needs {
			on[n] = on[n] || i >= len(t.Needed) || on[m.Name]
		}
	}
	return on[name]
}

const eexist = 17 // EEXIST, the same on all architectures that there are machines for
