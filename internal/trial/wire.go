package trial

// task is what the first process of the machine has to do, the file /task in its initramfs.
type task struct {
	Port     string   `json:"port"`     // device that events go to
	Needed   []string `json:"needed"`   // modules of the kernel, by name: each after what it needs; the file is /modules/NAME
	Modules  []tried  `json:"modules"`  // likewise, that are tried
	LoadOnly bool     `json:"loadonly"` // don't unload them, nor load them again
	Script   []string `json:"script,omitempty"`
	Step     int64    `json:"step"`           // nanoseconds that a step may take
	Sign     []form   `json:"sign,omitempty"` // what is then loaded under module.sig_enforce=1, and must be refused
}

type tried struct {
	Name   string `json:"name"`
	Params string `json:"params"`
}

// form is a module's file in one of the forms of Signature.
type form struct {
	Module string `json:"module"`
	Form   string `json:"form"`
	File   string `json:"file"`
}

// event is a line from the machine. What is said in one is all from the guest, where the module can say what it likes.
type event struct {
	Type   string   `json:"type"`             // "boot", "step" when one begins, "done" when it ended, "kmsg", "stack", "output", "end"
	Step   string   `json:"step,omitempty"`   // "need", "load", "unload", "reload", "again" (the second unload), "script", "sign"
	Name   string   `json:"name,omitempty"`   // of the module, or the form of "sign"
	Errno  int      `json:"errno,omitempty"`  // of a step that failed; the exit status of the script
	Error  string   `json:"error,omitempty"`  // what failed that has no number
	Took   int64    `json:"took,omitempty"`   // nanoseconds
	State  *State   `json:"state,omitempty"`  // of "load"
	Lines  []string `json:"lines,omitempty"`  // of kmsg (level and text), stack or output
	Uname  []string `json:"uname,omitempty"`  // release and version, of "boot"
	Killed bool     `json:"killed,omitempty"` // the thread that made the step is gone: the kernel ended it
}
