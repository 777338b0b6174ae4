package enginetest

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Where an attempt would succeed, which proves that it's the sandbox that refuses it.
const (
	nowhere   = iota // it's about the sandbox itself
	anywhere         // for a process of the same user
	namespace        // in a user namespace of its own, where one is root
	asRoot           // for the machine's root
)

// attacks are what the probe tries. Outside, anything but a refusal proves that the attempt got through to the kernel: a bad
// descriptor, say, for those that would do harm.
var attacks = []struct {
	name    string
	outside int
}{
	{"mount", namespace},
	{"bind", namespace},
	{"remount", nowhere},
	{"umount", nowhere},
	{"fsopen", namespace},
	{"open_tree", namespace},
	{"mount_setattr", namespace},
	{"move_mount", namespace},
	{"pivot_root", nowhere},
	{"chroot", namespace},
	{"unshare user", anywhere},
	{"clone user", anywhere},
	{"clone net", namespace},
	{"setns", namespace},
	{"setns of init", nowhere},
	{"sethostname", namespace},
	{"ptrace parent", anywhere},
	{"ptrace self", anywhere},
	{"process_vm_readv", anywhere},
	{"pidfd_getfd", anywhere},
	{"kcmp", anywhere},
	{"bpf", asRoot},
	{"keyctl", anywhere},
	{"add_key", anywhere},
	{"finit_module", asRoot},
	{"init_module", asRoot},
	{"delete_module", asRoot},
	{"kexec_file_load", asRoot},
	{"kexec_load", asRoot},
	{"reboot", asRoot},
	{"perf_event_open", asRoot},
	{"io_uring_setup", anywhere},
	{"userfaultfd", anywhere},
	{"open_by_handle_at", asRoot},
	{"fanotify_init", anywhere},
	{"syslog", asRoot},
	{"clock_settime", asRoot},
	{"personality", anywhere},
	{"type into tty", anywhere},
	{"raw socket", namespace},
	{"raw socket, IPv6", namespace},
	{"packet socket", namespace},
	{"vsock", anywhere},
	{"netlink", anywhere},
	{"alg", anywhere},
	{"mknod", asRoot},
	{"mknod of a disk", asRoot},
	{"real-time", asRoot},
	{"nice", asRoot},
	{"raise a limit", asRoot},
	{"spare from OOM", asRoot},
	{"write settings", asRoot},
	{"memory device", asRoot},
	{"port device", asRoot},
	{"kvm", anywhere},
	{"fuse", anywhere},
	{"tun", anywhere},
	{"loop device", asRoot},
	{"first disk", anywhere},
	{"debugfs", asRoot},
	{"cgroups", anywhere},
	{"write a cgroup", asRoot},
	{"docker's socket", asRoot},
	{"systemd's socket", asRoot},
	{"setuid", namespace},
	{"setgid", namespace},
	{"setgroups", asRoot},
	{"chown", asRoot},
	{"read shadow", asRoot},
	{"read init's env", nowhere},
	{"read init's mem", nowhere},
	{"list init's fds", nowhere},
	{"enter init's root", nowhere},
	{"init's program", nowhere},
	{"limit init", nowhere},
	{"idle init", nowhere},
	{"idle init's attr", nowhere},
	{"pin init", nowhere},
	{"slow init", nowhere},
	{"slow all", nowhere},
	{"write to root", nowhere},
	{"write to program", nowhere},
	{"replace program", nowhere},
	{"chmod in root", nowhere},
	{"write to dev", nowhere},
	{"chmod device", nowhere},
	{"sysrq", nowhere},
	{"kernel log", nowhere},
}

// refusals are the errors that say no, rather than that the attempt was not quite right. EINVAL is one where it means that a
// user namespace doesn't map an id.
var refusals = []string{"EPERM", "EACCES", "ENOSYS", "EAFNOSUPPORT", "EROFS", "ENOENT"}

func (s suite) hostile(t *testing.T) {
	sb := s.start(t)
	for _, a := range attacks {
		got := Try(t, sb, a.name)
		switch {
		case slices.Contains(refusals, got):
		case got == "EINVAL" && slices.Contains([]string{"setuid", "setgid", "chown"}, a.name):
		default:
			t.Errorf("%s: %s", a.name, got)
		}
		if out, tried := s.tryOutside(t, a.name, a.outside); !tried {
			continue
		} else if slices.Contains(refusals, out) {
			t.Logf("%s: refused on this machine outside of the sandbox too: %s", a.name, out)
		}
	}
	if got := Try(t, sb, "kill init"); got == "" {
		t.Error("kill init: no answer")
	}
	if got := Try(t, sb, "fault init"); got == "" {
		t.Error("fault init: no answer")
	}
	for _, sig := range []string{"TERM", "INT", "HUP", "QUIT", "SEGV", "BUS", "ABRT", "STOP", "USR1", "PROF", "URG", "CHLD"} {
		sh(t, sb, "kill -"+sig+" 1 2>/dev/null; true")
	}
	if got := sh(t, sb, "echo alive"); got != "alive" {
		t.Errorf("a command can end the sandbox's first process")
	}
}

// tryOutside runs the probe on the host, or reports that it can't be tried there.
func (s suite) tryOutside(t *testing.T, name string, where int) (string, bool) {
	if where == nowhere || where == asRoot && os.Geteuid() != 0 {
		return "", false
	}
	cmd := exec.Command("sh", "-c", `"$0" try "$1"; exit $?`, s.probe(t), name) // under a parent that it may trace
	cmd.Env, cmd.Dir = environ, "/"
	if where == namespace {
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWUTS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		}
	}
	out, err := cmd.Output()
	if err != nil {
		t.Logf("%s: not tried outside: %v", name, err)
		return "", false
	}
	return strings.TrimSpace(string(out)), true
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
