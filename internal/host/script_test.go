package host

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
)

func scriptOf(name, command, text string) artifact.Extra {
	return artifact.Extra{Name: name, Command: command, Executable: true, Size: int64(len(text)),
		Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text)), nil }}
}

// Scripts that came with an artifact for another root aren't run on this machine.
func TestScriptsOfAnotherRoot(t *testing.T) {
	t.Parallel()
	r := newRoot(t)
	out := filepath.Join(t.TempDir(), "out")
	text := "#!/bin/sh\ntouch " + out + "\n"
	r.install(t, Install{Artifact: built(t, "hello", "1.0", map[string][]byte{"updates/hello.ko": bytesOf(t, own[1])},
		scriptOf("PRE_INSTALL", "pre.sh", text), scriptOf("POST_INSTALL", "post.sh a", text), scriptOf("POST_REMOVE", "remove.sh", text))})
	r.uninstall(t, "hello", "1.0")
	for _, name := range []string{"PRE_INSTALL", "POST_INSTALL", "POST_REMOVE"} {
		if !r.warn.has(name, "hello/1.0", "not run", r.Dir()) {
			t.Errorf("no warning of %s: %q", name, r.warn.lines)
		}
	}
	if _, err := os.Stat(out); err == nil {
		t.Error("a script was run")
	}
}

const ownEnv = "GODKMS_HERMETIC_TEST_OWN"

// TestOwnRoot has a process whose / is a copy of this machine's, with the modules of a test: there scripts run.
func TestOwnRoot(t *testing.T) {
	t.Parallel()
	r := newRoot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestOwnRootChild$", "-test.v")
	cmd.Env = append(os.Environ(), ownEnv+"="+r.Dir(), "TMPDIR="+t.TempDir()) // it can't remove that itself
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	out, err := cmd.CombinedOutput()
	if errors.Is(err, unix.EPERM) || bytes.Contains(out, []byte("--- SKIP")) {
		need.Skip(t, "no root of its own: %v: %s", err, out)
	}
	if err != nil {
		t.Fatalf("%v:\n%s", err, out)
	}
}

// enter makes dir's modules and state those of this process, in a copy of the machine's root that is thrown away.
func enter(t *testing.T, dir string) {
	t.Helper()
	work := t.TempDir()
	root := filepath.Join(work, "root")
	mount := func(source, target, kind string, flags uintptr, data string) {
		t.Helper()
		if err := os.MkdirAll(target, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(source, target, kind, flags, data); err != nil {
			t.Skipf("mount %s: %v", target, err)
		}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		t.Skip(err)
	}
	mount("tmpfs", work, "tmpfs", 0, "")
	for _, d := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(work, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mount("overlay", root, "overlay", 0, "lowerdir=/,upperdir="+work+"/upper,workdir="+work+"/work")
	mount("/dev", root+"/dev", "", unix.MS_BIND, "")
	mount("tmpfs", root+"/tmp", "tmpfs", 0, "")
	mount(filepath.Join(dir, "lib/modules"), root+"/usr/lib/modules", "", unix.MS_BIND, "")
	mount(filepath.Join(dir, StateDir), root+StateDir, "", unix.MS_BIND, "")
	if err := unix.Chroot(root); err != nil {
		t.Fatal(err)
	}
	if err := os.Chdir("/"); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", "/tmp")
}

func TestOwnRootChild(t *testing.T) {
	dir := os.Getenv(ownEnv)
	if dir == "" {
		return
	}
	say := "#!/bin/sh\necho \"$0 $* in $PWD: $kernelver $arch $module $module_version $dkms_tree $source_tree $kernel_source_dir $SECRET\" >>/tmp/out\n"
	set := func(extras ...artifact.Extra) v1.Image {
		return built(t, "hello", "1.0", map[string][]byte{"updates/dkms/hello.ko": bytesOf(t, own[1])}, extras...)
	}
	all := set(scriptOf("PRE_INSTALL", "scripts/pre.sh a $b", say), scriptOf("POST_INSTALL", "post.sh", say), scriptOf("POST_REMOVE", "remove.sh x", say))
	plain := set()
	fails := set(scriptOf("PRE_INSTALL", "pre.sh", "#!/bin/sh\necho no luck; exit 3\n"))
	quiet := scriptOf("POST_INSTALL", "post.sh", say)
	quiet.Executable = false
	warns := set(quiet, scriptOf("POST_REMOVE", "remove.sh", "#!/bin/sh\nexit 4\n"))
	hangs := set(scriptOf("PRE_INSTALL", "pre.sh", "#!/bin/sh\nsleep 60 & wait\n"))
	t.Setenv("SECRET", "secret")
	enter(t, dir)

	r := reopen(t, "/", Options{})
	output := func() string {
		t.Helper()
		b, err := os.ReadFile("/tmp/out")
		if err != nil {
			t.Fatal(err)
		}
		os.Remove("/tmp/out")
		return string(b)
	}
	values := ": " + bookworm.Release + " x86_64 hello 1.0 /var/lib/dkms /usr/src /lib/modules/" + bookworm.Release + "/build \n"
	r.install(t, Install{Artifact: all})
	if got := output(); !strings.Contains(got, "/pre.sh a $b in "+StateDir+"/tmp/") || !strings.Contains(got, values) || !strings.Contains(got, "/post.sh  in ") {
		t.Errorf("the scripts print %q", got)
	}
	if got := resolves(t, "/", "hello"); !strings.HasSuffix(got, "/updates/dkms/hello.ko") {
		t.Errorf("modprobe hello finds %q", got)
	}
	if err := os.MkdirAll("/usr/src/hello-1.0", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := r.Update(t.Context(), Registration{Module: "hello", Version: "1.0", Source: "/usr/src/hello-1.0"}); err != nil {
		t.Fatal(err)
	}
	r.uninstall(t, "hello", "1.0")
	if got := output(); !strings.HasSuffix(got, "/remove.sh x in /usr/src/hello-1.0"+values) {
		t.Errorf("POST_REMOVE prints %q", got)
	}
	if left, err := filepath.Glob(StateDir + "/tmp/[^.]*"); err != nil || len(left) > 0 {
		t.Errorf("%q are left, %v", left, err)
	}
	if left, err := filepath.Glob(StateDir + "/modules/hello/1.0/*.POST_REMOVE"); err != nil || len(left) > 0 {
		t.Errorf("%q are left, %v", left, err)
	}

	if _, err := r.Install(t.Context(), Install{Artifact: fails}); !errors.Is(err, ErrPre) || !errors.Is(err, ErrRefused) || !says(err, "no luck", "exit status 3", "--force") {
		t.Errorf("a PRE_INSTALL that fails: %v", err)
	}
	if len(r.warn.lines) > 0 {
		t.Errorf("warnings %q", r.warn.lines)
	}
	r.install(t, Install{Artifact: fails, Force: true})
	if !r.warn.has("PRE_INSTALL", "exit status 3") || !r.warn.has("no luck") {
		t.Errorf("warnings %q", r.warn.lines)
	}
	r.install(t, Install{Artifact: plain})
	r.install(t, Install{Artifact: warns})
	if !r.warn.has("POST_INSTALL", "not executable") {
		t.Errorf("warnings %q", r.warn.lines)
	}
	r.uninstall(t, "hello", "1.0")
	if !r.warn.has("POST_REMOVE", "exit status 4") {
		t.Errorf("warnings %q", r.warn.lines)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := r.Install(ctx, Install{Artifact: hangs, Force: true}); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 10*time.Second {
		t.Errorf("a script that hangs: %v after %s", err, time.Since(start))
	}

	// Without depmod nothing is installed.
	for _, name := range []string{"/usr/sbin/depmod", "/sbin/depmod", "/usr/bin/depmod"} {
		os.Remove(name)
	}
	if _, err := r.Install(t.Context(), Install{Artifact: plain}); !errors.Is(err, ErrDepmod) || !says(err, "no depmod", "kmod", "--no-depmod") {
		t.Errorf("Install without depmod: %v", err)
	}
	if _, err := os.Stat("/lib/modules/" + bookworm.Release + "/updates"); err == nil {
		t.Error("something is installed")
	}
}
