package trial

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What kernels from 4.4 on print when they refuse a module.
func TestRefusal(t *testing.T) {
	for _, c := range []struct {
		errno   unix.Errno
		say     string // lines
		verdict Verdict
		reason  string // a part
	}{
		{unix.ENOEXEC, "x: version magic '6.1.0 SMP ' should be '6.1.0 SMP preempt '", Refused, "built for another kernel"},
		{unix.EINVAL, "x: disagrees about version of symbol b\nx: Unknown symbol b (err -22)\nx: disagrees about version of symbol a", Refused, "a, b is another one there: the kernel"},
		{unix.ENOENT, "x: Unknown symbol f (err -2)\nx: Unknown symbol e (err -2)\nx: Unknown symbol d (err -2)\nx: Unknown symbol c (err -2)\nx: Unknown symbol b (err -2)\nx: Unknown symbol a (err -2)\nx: Unknown symbol a (err -2)",
			Refused, "exports to it: a, b, c, d, e and 1 more"},
		{unix.ENOENT, "x: Unknown symbol a (err 0)", Refused, "exports to it: a"},
		{unix.EINVAL, "x: module uses symbol (a) from namespace NS, but does not import it.\nx: Unknown symbol a (err -22)", Refused, "doesn't import the namespace of a"},
		{unix.ENOEXEC, "x: exports duplicate symbol a (owned by kernel)", Refused, "a is exported by another"},
		{unix.EKEYREJECTED, "Loading of module with unsupported crypto is rejected", Refused, "can't check"},
		{unix.EPERM, "Lockdown: init: unsigned module loading is restricted; see man kernel_lockdown.7", Refused, "locked down"},
		{unix.EINVAL, "x: `q' invalid for parameter `n'", Refused, "parameter n isn't one"},
		{unix.ENOSPC, "x: `q' too large for parameter `n'", Refused, "parameter n isn't one"},
		{unix.ENOEXEC, "Invalid ELF section header overflow", Refused, "damaged"},
		{unix.ENOEXEC, "x: module has no symbols (stripped?)", Refused, "damaged"},
		{unix.ENOEXEC, "", Refused, "damaged, truncated"},
		{unix.EBADMSG, "", Refused, "malformed"},
		{unix.ENOKEY, "", Refused, "a key that this kernel doesn't know"},
		{unix.ENOMEM, "vmap allocation for size 1 failed", Refused, "--mem"},
		{unix.EEXIST, "", Refused, "of its name already"},
		{unix.ENODEV, "x: no device", NoHardware, `ENODEV (no such device): what it drives isn't in this machine; the last it said: "x: no device"`},
		{unix.ENXIO, "", NoHardware, "ENXIO"},
		{unix.EINVAL, "", Refused, "EINVAL (invalid argument); the kernel itself gives no reason"},
		{unix.EINVAL, "x: loading out-of-tree module taints kernel.\n" + cutHere + "\nproc_dir_entry 'x' already registered\nWARNING: CPU: 0 PID: 1 at x\n f+0x1/0x2\n---[ end trace 0000000000000000 ]---",
			Refused, `gives no reason; the last it said: "proc_dir_entry 'x' already registered"`},
	} {
		var log []message
		for line := range strings.SplitSeq(c.say, "\n") {
			log = append(log, message{4, 1, line})
		}
		v, reason := refusal(event{Errno: int(c.errno)}, log)
		if v != c.verdict || !strings.Contains(reason, c.reason) {
			t.Errorf("%v, %q: %s, %s; want %s, %s", c.errno, c.say, v, reason, c.verdict, c.reason)
		}
	}
}
