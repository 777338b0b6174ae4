package sandbox

import (
	"fmt"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
)

// launchFromChroot is launch where this process is in a chroot(2), in which the kernel gives out no user namespaces
// (user_namespaces(7), EPERM). It is done by a thread for which the folder has become a real root; nothing else changes. Only root
// can do that. Where this process is in no chroot it fails.
func launchFromChroot(in builder.Surroundings) (s *sandbox, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for ever: the thread ends with this function
		if err = becomeRoot(); err == nil {
			s, err = launch(true, in)
		}
	}()
	<-done
	return s, err
}

// becomeRoot gives the calling thread a mount namespace whose root is what the thread has as /, with all that is mounted below it.
func becomeRoot() error {
	if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("leave a chroot: make a mount namespace: %w", err)
	}
	here, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("leave a chroot: %w", err)
	}
	defer unix.Close(here)
	var inside, outside unix.Stat_t
	if err := unix.Fstat(here, &inside); err != nil {
		return fmt.Errorf("leave a chroot: %w", err)
	}
	// From a folder that isn't below its root a process climbs to the root of its mount namespace (chroot(2)).
	var path string
	for _, step := range []func() error{
		func() error { return unix.Chroot("/proc") },
		func() error { return unix.Fchdir(here) },
		func() error { return unix.Chdir(strings.Repeat("../", unix.PathMax/3-1)) },
		func() error { return unix.Chroot(".") },
		func() error { return unix.Stat("/", &outside) },
		func() error {
			if inside.Dev == outside.Dev && inside.Ino == outside.Ino {
				return unix.EPERM
			}
			return nil
		},
		func() error { return unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "") },
		func() error { return unix.Fchdir(here) },
		func() (err error) { path, err = unix.Getwd(); return err },
		func() error { return unix.Mount(path, path, "", unix.MS_BIND|unix.MS_REC, "") }, // pivot_root(2) takes a mount only
		func() error { return unix.Chdir(path) },
		func() error { return unix.PivotRoot(".", ".") },
		func() error { return unix.Unmount(".", unix.MNT_DETACH) },
		func() error { return unix.Chdir("/") },
	} {
		if err := step(); err != nil {
			return fmt.Errorf("leave a chroot: %w", err)
		}
	}
	return nil
}
