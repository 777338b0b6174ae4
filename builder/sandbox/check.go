package sandbox

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/builder/guest"
)

// Check starts a sandbox and ends it. It returns nil when this machine allows sandboxes, and a *builder.UnavailableError that says
// why not and what to do about it.
func (Engine) Check(ctx context.Context) error {
	if _, ok := machines[runtime.GOARCH]; !ok {
		return runnable("")
	}
	s, err := start(ctx, nil, builder.Spec{})
	if err != nil {
		return err
	}
	return s.Close()
}

// explain finds the reason for an error of the set-up, as far as the kernel lets one know it.
func explain(err error) error {
	why := func(cause, hint string) error {
		return &builder.UnavailableError{Engine: "sandbox", Cause: cause, Hint: hint, Err: err}
	}
	const other = "or use another engine"
	switch remote := (*guest.Error)(nil); {
	case !errors.As(err, &remote): // the process could not even be started
		for _, kind := range []string{"user", "mnt", "pid", "net", "ipc", "uts", "cgroup"} {
			if name := "user.max_" + kind + "_namespaces"; sysctl(name) == "0" {
				return why(kind+" namespaces are switched off: "+name+" is 0", "raise it as root, with sysctl "+name+"=10000, "+other)
			}
		}
		if sysctl("kernel.unprivileged_userns_clone") == "0" {
			return why("user namespaces are switched off for ordinary users", "allow them as root, with sysctl kernel.unprivileged_userns_clone=1, "+other)
		}
		switch {
		case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EUSERS):
			return why("too many namespaces, or too deep in each other", "end what holds them, or raise the limits user.max_*_namespaces, "+other)
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOSYS):
			return why("the kernel was built without some kind of namespace", "use another kernel or another engine")
		case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
			if filtered() {
				return why("the seccomp filter of a container refuses user namespaces", "run outside of it, or give it a seccomp profile that allows clone, unshare and mount, "+other)
			}
			return why("user namespaces are refused here", "look at the machine's security policy (SELinux, a chroot, a container), "+other)
		}
	case remote.Errno == unix.EPERM || remote.Errno == unix.EACCES:
		if sysctl("kernel.apparmor_restrict_unprivileged_userns") == "1" {
			return why("AppArmor gives user namespaces of ordinary users no rights",
				"install an AppArmor profile with \"userns,\" for this program, or allow all, as root, with sysctl kernel.apparmor_restrict_unprivileged_userns=0, "+other)
		}
		switch {
		case strings.HasPrefix(remote.Text, "mount /proc"):
			return why("parts of /proc are covered, as in a container, and so the kernel gives out no new one", "run outside of the container, or give it an unmasked /proc, "+other)
		case strings.HasPrefix(remote.Text, "mount the overlay"):
			return why("overlayfs is refused in user namespaces, as before Linux 5.11", "use a newer kernel or another engine")
		case strings.HasPrefix(remote.Text, "make mounts private"), filtered():
			return why("mounting is refused inside user namespaces", "look at the machine's security policy (AppArmor, SELinux, a container's seccomp filter), "+other)
		}
	case remote.Errno == unix.ENODEV && strings.HasPrefix(remote.Text, "mount the overlay"):
		return why("the kernel has no overlayfs", "load it as root, with modprobe overlay, "+other)
	case remote.Errno == unix.EINVAL && strings.HasPrefix(remote.Text, "change the root"): // pivot_root(2)
		return why("this system runs from its initramfs, which can't be left", "switch to another root first, "+other)
	case remote.Errno == unix.EINVAL && strings.HasPrefix(remote.Text, "mount /proc"):
		return why("the kernel's /proc knows no subset=pid, as before Linux 5.8", "use a newer kernel or another engine")
	}
	return err
}

func sysctl(name string) string {
	b, _ := os.ReadFile("/proc/sys/" + strings.ReplaceAll(name, ".", "/"))
	return strings.TrimSpace(string(b))
}

// filtered says whether a seccomp filter is on this process.
func filtered() bool {
	b, _ := os.ReadFile("/proc/self/status")
	return strings.Contains(string(b), "\nSeccomp:\t2")
}
