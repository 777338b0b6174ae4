package docker

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/client"
	"golang.org/x/sys/unix"
)

// ownerLabel is on every container, and says which process of which machine started it.
const ownerLabel = "dev.godkms-hermetic.owner"

// abandoned is how long a container that doesn't run may be of use to a process that can't be seen from here.
const abandoned = time.Hour

// owner names this process: the machine's boot, the process namespace, the process and when it was started.
func owner() string { return fmt.Sprintf("%s %d %s", machine(), os.Getpid(), started(os.Getpid())) }

func machine() string {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	space, _ := os.Readlink("/proc/self/ns/pid")
	return strings.TrimSpace(string(boot)) + " " + space
}

// started is a process's start time (field 22 of proc_pid_stat(5)), or nothing when it isn't there.
func started(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	_, rest, _ := strings.Cut(string(b), ") ")
	if f := strings.Fields(rest); len(f) > 19 {
		return f[19]
	}
	return ""
}

// stale says whether nobody is there any more who would remove a container.
func stale(label string, running bool, age time.Duration) bool {
	if rest, here := strings.CutPrefix(label, machine()+" "); here {
		var pid int
		var start string
		if _, err := fmt.Sscan(rest, &pid, &start); err == nil {
			now := started(pid)
			if now == "" && pid > 0 { // or /proc doesn't show other users' processes (hidepid)
				return unix.Kill(pid, 0) == unix.ESRCH
			}
			return now != start
		}
	}
	return !running && age > abandoned
}

// sweep removes the containers of dead runs: as a rule a container goes with its run, but not when the Engine was ended first.
func sweep(ctx context.Context, c *client.Client) error {
	list, err := c.ContainerList(ctx, container.ListOptions{All: true, Filters: filters.NewArgs(filters.Arg("label", ownerLabel))})
	if err != nil {
		return err
	}
	for _, found := range list {
		if !stale(found.Labels[ownerLabel], found.State == container.StateRunning, time.Since(time.Unix(found.Created, 0))) {
			continue
		}
		limit, cancel := context.WithTimeout(ctx, patience)
		err := remove(limit, c, found.ID) // the next run tries again
		cancel()
		if err != nil && ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return nil
}
