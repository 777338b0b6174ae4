package host

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// systemPath is where the programs of a system are, whatever the caller's PATH.
const systemPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// depmod writes modules.dep and its kin anew. Failing, it wraps ErrDepmod.
func (r *Root) depmod(ctx context.Context, lib *os.Root, release string) error {
	program, err := findProgram("depmod")
	if err != nil {
		return fmt.Errorf("%w: %v; install kmod, or use --no-depmod and run it later", ErrDepmod, err)
	}
	base := r.dir
	if !r.IsHost() {
		// An absolute link of the root would lead depmod out of it. Some have modules below /lib, some below /usr/lib.
		if base, err = os.MkdirTemp("", "godkms-hermetic-depmod-"); err != nil {
			return err
		}
		defer os.RemoveAll(base)
		if err := os.MkdirAll(filepath.Join(base, "lib/modules"), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(".", filepath.Join(base, "usr")); err != nil {
			return err
		}
		if err := os.Symlink(lib.Name(), filepath.Join(base, "lib/modules", release)); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, program, "-b", base, release)
	cmd.Env = []string{"PATH=" + systemPath, "LC_ALL=C"}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = runToEnd(cmd)
	text := strings.TrimSpace(strings.ReplaceAll(out.String(), base+"/lib/", filepath.Join(r.dir, "lib")+"/"))
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return fmt.Errorf("%w for %s (%w): %s", ErrDepmod, release, err, text)
	}
	for line := range strings.Lines(text) {
		r.warnf("%s", strings.TrimSpace(line))
	}
	return nil
}

// runToEnd runs a program that outlives neither its context nor this process, whatever ends that: a depmod that were left would write
// while another undoes what it is for.
func runToEnd(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = time.Second
	runtime.LockOSThread() // Pdeathsig is about the thread
	defer runtime.UnlockOSThread()
	return cmd.Run()
}

// findProgram looks where root's programs are too, which many a PATH leaves out.
func findProgram(name string) (string, error) {
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range filepath.SplitList(systemPath) {
		if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("there is no %s in PATH or %s", name, systemPath)
}
