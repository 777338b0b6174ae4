package guest

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Confine puts resource limits and a seccomp filter on this process and on all that it starts, and closes it to them. A
// process limit counts the user's processes in his user namespace, or, without one, on the machine.
func Confine(processes uint64) error {
	if err := limit(processes); err != nil {
		return err
	}
	// Not dumpable: /proc/1/mem, fd, root and environ are closed to commands, though they have the same uid (proc(5)).
	// exec makes the commands themselves dumpable again.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("clear the dumpable attribute: %w", err)
	}
	return confine()
}

// Pin binds the calling thread, and commands that are started from it, to the first n of the processors that it may run on. 0 is all of them.
func Pin(n int) error {
	var all, first unix.CPUSet
	if n == 0 {
		return nil
	}
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		return fmt.Errorf("ask for the processors: %w", err)
	}
	for cpu := 0; n > 0 && cpu < len(all)*64; cpu++ {
		if all.IsSet(cpu) {
			first.Set(cpu)
			n--
		}
	}
	if err := unix.SchedSetaffinity(0, &first); err != nil {
		return fmt.Errorf("choose processors: %w", err)
	}
	return nil
}

// limit fixes the resource limits that a build could notice. Hard limits are only lowered.
func limit(processes uint64) error {
	for _, l := range []struct {
		resource   int
		soft, hard uint64
	}{
		{unix.RLIMIT_CORE, 0, 0},
		{unix.RLIMIT_NOFILE, 1024, 4096},
		{unix.RLIMIT_STACK, 8 << 20, unix.RLIM_INFINITY},
		{unix.RLIMIT_NPROC, processes, processes},
	} {
		var now syscall.Rlimit
		if err := syscall.Getrlimit(l.resource, &now); err != nil {
			return fmt.Errorf("read resource limit %d: %w", l.resource, err)
		}
		now.Max = min(now.Max, l.hard)
		now.Cur = min(l.soft, now.Max)
		if err := syscall.Setrlimit(l.resource, &now); err != nil {
			return fmt.Errorf("set resource limit %d: %w", l.resource, err)
		}
	}
	return nil
}
