package trial

import (
	"reflect"
	"testing"
)

// Traces in the forms of kernels that no record is of.
func TestTrace(t *testing.T) {
	for _, c := range []struct {
		name, console string
		want          Trace
	}{
		{"arm64", `[    2.100000] Unable to handle kernel NULL pointer dereference at virtual address 0000000000000000
[    2.100010] Mem abort info:
[    2.100020]   ESR = 0x0000000096000045
[    2.100030] Internal error: Oops: 0000000096000045 [#1] SMP
[    2.100040] Modules linked in: bad(OE+)
[    2.100050] pstate: 60400005 (nZCv daif +PAN -UAO -TCO -DIT -SSBS BTYPE=--)
[    2.100060] pc : oops_here+0x10/0x20 [bad]
[    2.100070] lr : bad_init+0x34/0x1000 [bad]
[    2.100080] Call trace:
[    2.100090]  oops_here+0x10/0x20 [bad]
[    2.100100]  do_one_initcall+0x50/0x284
[    2.100110]  el0t_64_sync+0x190/0x194 (P)
[    2.100120] Code: d503233f a9bf7bfd (f9000000)
[    2.100130] ---[ end trace 0000000000000000 ]---
`, Trace{"Unable to handle kernel NULL pointer dereference at virtual address 0000000000000000", "oops_here+0x10/0x20 [bad]",
			[]string{"do_one_initcall+0x50/0x284", "el0t_64_sync+0x190/0x194"}, "bad"}},
		{"arm64's panic", `[   17.085390] Kernel panic - not syncing: sysrq triggered crash
[   17.087655] CPU: 0 UID: 0 PID: 123 Comm: script Not tainted 6.12.117+deb13-cloud-arm64 #1  Debian 6.12.117-1
[   17.088186] Hardware name: linux,dummy-virt (DT)
[   17.088498] Call trace:
[   17.088674]  dump_backtrace+0xd8/0x130
[   17.092044]  show_stack+0x20/0x38
[   17.092271]  dump_stack_lvl+0x60/0x80
[   17.092488]  dump_stack+0x18/0x28
[   17.092711]  panic+0x160/0x378
[   17.092909]  sysrq_handle_crash+0x20/0x28
[   17.093139]  __handle_sysrq+0xa4/0x1a8
[   17.103775] Kernel Offset: 0x2a4241600000 from 0xffff800080000000
`, Trace{"Kernel panic - not syncing: sysrq triggered crash", "sysrq_handle_crash+0x20/0x28", []string{"__handle_sysrq+0xa4/0x1a8"}, ""}},
		{"with callers and build IDs", `[    2.100000][   T80] BUG: unable to handle page fault for address: ffffffffc0000000
[    2.100000][   T80] RIP: 0010:f.isra.0.cold+0x1/0x2 [my_mod f00d]
[    2.100000][   T80] Call Trace:
[    2.100000][   T80]  <IRQ>
[    2.100000][   T80]  ? g+0x1/0x2
[    2.100000][   T80]  h+0x3/0x4 [my_mod f00d]
[    2.100000][   T80]  </IRQ>
[    2.100000][   T80] RIP: 0033:0x7f00
[    2.100000][   T80] Call Trace:
[    2.100000][   T80]  another+0x3/0x4
`, Trace{"BUG: unable to handle page fault for address: ffffffffc0000000", "f.isra.0.cold+0x1/0x2 [my_mod]", []string{"h+0x3/0x4 [my_mod]"}, "my_mod"}},
		{"a jump to nowhere", `[    2.100000] BUG: kernel NULL pointer dereference, address: 0000000000000008
[    2.100000] RIP: 0010:0x8
[    2.100000] Call Trace:
[    2.100000]  [<ffffffff81000000>] h+0x3/0x4 [m]
`, Trace{"BUG: kernel NULL pointer dereference, address: 0000000000000008", "0x8", []string{"h+0x3/0x4 [m]"}, "m"}},
	} {
		log := onConsole(c.console, 1)
		i := find(log, crashed)
		if i != 0 {
			t.Errorf("%s: the trace begins at %d", c.name, i)
			continue
		}
		if got := traceAt(log, i); !reflect.DeepEqual(*got, c.want) {
			t.Errorf("%s: %+v; want %+v", c.name, *got, c.want)
		}
	}
}

func TestWarnings(t *testing.T) {
	for _, text := range []string{
		"WARNING: CPU: 0 PID: 1 at /x/bad.c:35 act+0x194/0x573 [bad]", "WARNING: drivers/x.c:12 at f+0x1/0x2 [x], CPU#0: init/80", "WARNING: at f+0x1/0x2, CPU#0: init/80",
		"WARNING: possible recursive locking detected", "WARNING: inconsistent lock state", "WARNING: suspicious RCU usage",
		"WARNING: possible irq lock inversion dependency detected", "WARNING: HARDIRQ-safe -> HARDIRQ-unsafe lock order detected",
		"[ BUG: Invalid wait context ]", "[ INFO: suspicious RCU usage. ]", "INFO: trying to register non-static key.",
		"BUG: sleeping function called from invalid context at x.c:1", "BUG: scheduling while atomic: init/1/0x00000002", "BUG: KASAN: slab-out-of-bounds in f+0x1/0x2",
		"BUG kmalloc-64 (Tainted: G           OE     ): Poison overwritten", "UBSAN: array-index-out-of-bounds in x.c:1:2", "refcount_t: underflow; use-after-free.",
		"kmem_cache_destroy badcache: Slab cache still has objects", "do_init_module: 'bad'->init suspiciously returned 1, it should follow 0/-E convention",
		"sysfs: cannot create duplicate filename '/x'",
	} {
		if w, _ := warning([]message{{4, 1, text}}, 0); w != text {
			t.Errorf("%q is no warning: %q", text, w)
		}
	}
	for _, text := range []string{"WARNING: my own", "bad: WARNING: CPU: 0 PID: 1 at", "INFO: lockdep is turned off.", "BUG: no", "watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [init:1]"} {
		if w, _ := warning([]message{{4, 1, text}}, 0); w != "" {
			t.Errorf("%q is a warning: %q", text, w)
		}
	}
}
