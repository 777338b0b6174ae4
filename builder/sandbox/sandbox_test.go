package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/builder/enginetest"
	"github.com/godkms-hermetic/godkms-hermetic/builder/guest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// layersVar has the layers of a test root, for a test binary that another one starts.
const layersVar = "SANDBOX_TEST_LAYERS"

func TestMain(m *testing.M) {
	if IsInit() {
		os.Exit(Init())
	}
	if len(os.Args) == 2 {
		if f, ok := tools[os.Args[1]]; ok {
			if err := f(); err != nil {
				fmt.Println(err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

func testRoot(t testing.TB) builder.Root {
	if v := os.Getenv(layersVar); v != "" {
		return enginetest.Folders(strings.Split(v, "\n")...)
	}
	return enginetest.NewRoot(t)
}

func spec(root builder.Root, scratch ...string) builder.Spec {
	return builder.Spec{Root: root, Kernel: kernels.Kernel{Arch: enginetest.Arch()}, Scratch: scratch}
}

func command(script string) builder.Command {
	return builder.Command{Args: []string{"sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}, Dir: "/"}
}

func startWith(t *testing.T, root builder.Root, scratch ...string) *sandbox {
	t.Helper()
	sb, err := Engine{}.Start(t.Context(), spec(root, scratch...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sb.Close() })
	return sb.(*sandbox)
}

func output(t *testing.T, sb builder.Sandbox, script string) string {
	t.Helper()
	var out bytes.Buffer
	c := command(script)
	c.Stdout, c.Stderr = &out, &out
	if err := sb.Run(t.Context(), c); err != nil {
		t.Errorf("Run(%q) = %v; output %q", script, err, out.String())
	}
	return strings.TrimSpace(out.String())
}

func TestSuite(t *testing.T) {
	enginetest.Run(t, Engine{}, testRoot(t))
}

// TestOrdinaryUser runs every test of this package once more under an ordinary uid when this one is root's: with layers
// that are the user's own, and the suite alone with layers of root's.
func TestOrdinaryUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("an ordinary user runs the tests already")
	}
	const uid = 54321
	root := enginetest.NewRoot(t)
	dir := open(t)
	exe := filepath.Join(dir, "test")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", self, exe).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var own []string
	for i, layer := range root.Layers() {
		to := filepath.Join(dir, "layer "+strconv.Itoa(i))
		if out, err := exec.Command("cp", "-a", layer, to).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		own = append(own, to)
	}
	if out, err := exec.Command("chown", "-R", strconv.Itoa(uid), dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, test := range []struct {
		name, run, skip string
		layers          []string
	}{
		{"OwnLayers", ".", "^$", own},
		{"LayersOfRoot", "TestSuite", "^TestSuite$/^(Memory|ForkBomb)$", root.Layers()}, // limits are not about the layers' owner
	} {
		t.Run(test.name, func(t *testing.T) {
			cmd := exec.Command(exe, "-test.v", "-test.run="+test.run, "-test.skip="+test.skip)
			cmd.Dir = dir
			cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "TMPDIR=" + dir, layersVar + "=" + strings.Join(test.layers, "\n")}
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, Groups: []uint32{uid, 20}}}
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Errorf("as an ordinary user: %v\n%s", err, out)
			}
			if !bytes.Contains(out, []byte("--- PASS: TestSuite/Hostile")) {
				t.Errorf("as an ordinary user the suite did not run:\n%s", out)
			}
		})
	}
}

// open makes a temporary folder that every user may enter.
func open(t *testing.T) string {
	dir, err := os.MkdirTemp("", "sandbox-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Root can start a sandbox from a chroot as well, and nothing of that is seen outside of it.
func TestChroot(t *testing.T) {
	if os.Getenv(layersVar) != "" {
		return
	}
	if os.Geteuid() != 0 {
		need.Skip(t, "only root leaves a chroot")
	}
	dir := open(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var inside []string
	for i, layer := range enginetest.NewRoot(t).Layers() {
		inside = append(inside, "/layer "+strconv.Itoa(i))
		if out, err := exec.Command("cp", "-a", layer, dir+inside[i]).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	const script = `set -e
cp "$1" "$2/test"
mkdir -p "$2/proc" "$2/dev" "$2/tmp"
mount -t proc proc "$2/proc"
mount --rbind /dev "$2/dev"
cat /proc/self/mountinfo >"$2/before"
chroot "$2" /test -test.run="^(TestChrooted|TestFirstProcess)$" -test.v
cat /proc/self/mountinfo >"$2/after"
cmp "$2/before" "$2/after"`
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "--propagation=slave", "--pid", "--fork", "--kill-child", "sh", "-c",
		"mount --make-rshared /\n"+script, "sh", self, dir) // what is mounted would be seen outside
	cmd.Env = append(os.Environ(), layersVar+"="+strings.Join(inside, "\n"))
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: TestChrooted") || !strings.Contains(string(out), chrooted) {
		t.Errorf("in a chroot: %v\n%s", err, out)
	}
}

const chrooted = "tried in a chroot"

// TestChrooted is run by TestChroot in a chroot.
func TestChrooted(t *testing.T) {
	if _, err := os.Stat("/layer 0"); err != nil {
		return
	}
	if _, err := os.StartProcess("/proc/self/exe", nil, &os.ProcAttr{Sys: &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}}); !errors.Is(err, unix.EPERM) {
		t.Errorf("a user namespace in a chroot: %v; want %v", err, unix.EPERM)
	}
	sb := startWith(t, testRoot(t))
	if got := output(t, sb, "[ ! -e /test ] && echo alone"); got != "alone" {
		t.Errorf("in the sandbox: %q", got)
	}
	if _, err := os.Stat("/before"); err != nil { // this process is where it was
		t.Error(err)
	}
	t.Log(chrooted)
}

// Beyond what every engine refuses.
func TestClosed(t *testing.T) {
	sb := startWith(t, testRoot(t))
	for attempt, want := range map[string]string{
		"terminal": "ENOENT", "pseudo-terminals": "ENOENT", "kernel settings": "ENOENT", "disk": "ENOENT", "sysrq": "ENOENT",
		"clone3": "ENOSYS", "newer call": "ENOSYS", "vsock": "EAFNOSUPPORT", "mount": "EPERM", "init's program": "EACCES",
		"touch device": "EROFS",
	} {
		if got := enginetest.Try(t, sb, attempt); got != want {
			t.Errorf("%s: %s; want %s", attempt, got, want)
		}
	}
	c := command("exec enginetest-probe try 'other abi'")
	var exit *builder.ExitError
	if err := sb.Run(t.Context(), c); runtime.GOARCH == "amd64" && (!errors.As(err, &exit) || exit.Signal != "bad system call") {
		t.Errorf("a call of the x32 ABI: %v; want it killed", err)
	}
	if got := output(t, sb, "while read -r line; do echo \"${line##*:}\"; done < /proc/self/cgroup"); strings.Trim(got, "/\n") != "" {
		t.Errorf("/proc/self/cgroup shows\n%s", got)
	}
	if got := output(t, sb, "ls /proc; ls /dev"); strings.Contains(got, "cpuinfo") || strings.Contains(got, "sys") {
		t.Errorf("/proc and /dev show\n%s", got)
	}
}

// The first process knows no secret, and every thread of it gives up its rights, not only the one that starts commands.
func TestFirstProcess(t *testing.T) {
	t.Setenv("SANDBOX_TEST_SECRET", "of-the-tool")
	sb := startWith(t, testRoot(t))
	output(t, sb, "true")
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", sb.init.Pid)); len(b) > 0 || err != nil && os.Geteuid() == 0 {
		t.Errorf("the first process's environment is %q, %v; want none", b, err)
	}
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_GETPID, 0, 0, 0); errno == syscall.ENOTSUP {
		t.Skip("built with cgo")
	}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", sb.init.Pid))
	if err != nil || len(files) < 2 {
		t.Fatalf("threads: %q, %v", files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"CapPrm:\t0000000000000000\n", "CapEff:\t0000000000000000\n", "NoNewPrivs:\t1\n", "Seccomp:\t2\n"} {
			if !strings.Contains(string(b), want) {
				t.Errorf("%s lacks %q:\n%s", f, want, b)
			}
		}
	}
}

// Layers may lie where only their owner may go, and be closed themselves.
func TestClosedFolders(t *testing.T) {
	root := testRoot(t)
	dir := t.TempDir()
	layer := filepath.Join(dir, "layer")
	if err := os.MkdirAll(filepath.Join(layer, "usr/share"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(layer, "usr/share/file"), []byte("seen"), 0o644); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 { // somebody else's
		if err := os.Chown(dir, 54321, 54321); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(os.Chmod(layer, 0o700), os.Chmod(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	sb := startWith(t, enginetest.Folders(append(root.Layers(), layer)...), "/writable")
	if got := output(t, sb, "cat /usr/share/file; echo; stat -c %a /"); got != "seen\n755" {
		t.Errorf("Run() = %q", got)
	}
}

func TestManyLayers(t *testing.T) {
	layers := testRoot(t).Layers()
	dir := t.TempDir()
	for i := 0; len(layers) < maxLayers; i++ {
		layer := filepath.Join(dir, fmt.Sprint(i), strings.Repeat("long", 50))
		if err := os.MkdirAll(filepath.Join(layer, "layers"), 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"top", fmt.Sprint(i)} {
			if err := os.WriteFile(filepath.Join(layer, "layers", name), []byte(fmt.Sprint(i)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		layers = append(layers, layer)
	}
	n := maxLayers - len(testRoot(t).Layers())
	sb := startWith(t, enginetest.Folders(layers...))
	if got, want := output(t, sb, "cat /layers/top; echo; ls /layers | wc -l"), fmt.Sprintf("%d\n%d", n-1, n+1); got != want {
		t.Errorf("the top layer's file and the number of files: %q; want %q", got, want)
	}
	if _, err := (Engine{}).Start(t.Context(), spec(enginetest.Folders(append(layers, dir)...))); err == nil {
		t.Errorf("Start() with %d layers succeeded", len(layers)+1)
	}
}

func TestBadRoot(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, layers := range [][]string{{}, {"/no/such/layer"}, {file}} {
		sb, err := Engine{}.Start(t.Context(), spec(enginetest.Folders(layers...)))
		if err == nil {
			sb.Close()
			t.Errorf("Start() with layers %q succeeded", layers)
		} else if len(layers) > 0 && !strings.Contains(err.Error(), strconv.Quote(layers[0])) {
			t.Errorf("Start() with layers %q = %v; want the layer named", layers, err)
		}
	}
}

func TestResolve(t *testing.T) {
	dir := t.TempDir()
	low, high := filepath.Join(dir, "low"), filepath.Join(dir, "high")
	for _, p := range []string{low + "/usr/lib", low + "/run", low + "/hidden/below", high + "/var"} {
		if err := os.MkdirAll(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for at, to := range map[string]string{
		low + "/lib": "usr/lib", high + "/var/run": "/run", low + "/up": "../../../run/../usr", high + "/loop": "loop", high + "/far": "/var/run/x",
	} {
		if err := os.Symlink(to, at); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(high+"/hidden", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for in, want := range map[string]string{
		"/": "/", "/new": "/new", "/new/../other/./deep": "/other/deep", "/lib/modules": "/usr/lib/modules", "/var/run/lock": "/run/lock",
		"/up/lib": "/usr/lib", "/far": "/run/x", "/..": "/", "/loop/x": "", "/hidden": "", "/hidden/below": "",
	} {
		got, err := resolve([]string{low, high}, in)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("resolve(%q) = %q, %v; want %q", in, got, err, want)
		}
	}
}

// tools are what a test has this binary do in another process, by its only argument.
var tools = map[string]func() error{
	"check": func() error { return Engine{}.Check(context.Background()) },
	"check without namespaces": func() error {
		if err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0); err != nil {
			return err
		}
		return Engine{}.Check(context.Background())
	},
	"check with covered proc": func() error {
		if err := unix.Mount("none", "/proc/sys", "tmpfs", 0, ""); err != nil {
			return err
		}
		return Engine{}.Check(context.Background())
	},
	"check under a filter": func() error {
		if err := guest.Confine(processes); err != nil {
			return err
		}
		return Engine{}.Check(context.Background())
	},
	"sleep": func() error {
		return runScript("echo ready; sleep 1000 & (setsid sh -c 'trap \"\" TERM; sleep 1000; true' &); sleep 1000")
	},
	"inherited": func() error {
		return runScript(`ls /proc/self/fd | wc -l; while read -r k v; do case $k in SigBlk:|SigIgn:) echo $v;; esac; done < /proc/self/status; uname -m; umask; ulimit -c`)
	},
}

func runScript(script string) error {
	sb, err := Engine{}.Start(context.Background(), spec(testRoot(nil), "/writable"))
	if err != nil {
		return err
	}
	defer sb.Close()
	c := command(script)
	c.Args = append(c.Args, os.Getenv("SANDBOX_TEST_MARK"))
	c.Stdout, c.Stderr = os.Stdout, os.Stdout
	return sb.Run(context.Background(), c)
}

// tool prepares this binary to do one of the above.
func tool(t *testing.T, name string, env ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", name)
	cmd.Env = append(os.Environ(), env...)
	return cmd
}

func TestCheck(t *testing.T) {
	if err := (Engine{}).Check(t.Context()); err != nil {
		t.Errorf("Check() = %v", err)
	}
	for name, want := range map[string]string{
		"check":                    "",
		"check without namespaces": "sysctl user.max_user_namespaces=",
		"check with covered proc":  "parts of /proc are covered",
		"check under a filter":     "seccomp filter",
	} {
		cmd := tool(t, name)
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		}
		out, err := cmd.CombinedOutput()
		if (err != nil) != (want != "") || !strings.Contains(string(out), want) || want != "" && !strings.Contains(string(out), "or use another engine") {
			t.Errorf("%s: %v, %q; want %q and what to do", name, err, out, want)
		}
	}
}

// What the tool's own caller left on it doesn't reach commands.
func TestInherited(t *testing.T) {
	extra, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer extra.Close()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", `ulimit -S -c 1; exec "$@"`, "sh", "env", "--block-signal=USR1,CHLD,PIPE", "--ignore-signal=HUP,PIPE,INT,CHLD", "setarch", "i686", self, "inherited")
	cmd.Env = append(os.Environ(), layersVar+"="+strings.Join(testRoot(t).Layers(), "\n"))
	cmd.ExtraFiles = []*os.File{extra, extra, extra}
	old := syscall.Umask(0o077)
	out, err := cmd.CombinedOutput()
	syscall.Umask(old)
	var uts unix.Utsname
	unix.Uname(&uts)
	want := fmt.Sprintf("4\n%[1]s\n%[1]s\n%[2]s\n0022\n0\n", "0000000000000000", unix.ByteSliceToString(uts.Machine[:]))
	if err != nil || string(out) != want {
		t.Errorf("descriptors; blocked, ignored signals; machine; umask; core size: %q, %v; want %q", out, err, want)
	}
}

// marked counts those of this machine that have mark in their arguments.
func marked(t *testing.T, mark string) int {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && bytes.Contains(b, []byte(mark)) {
			n++
		}
	}
	return n
}

// When the tool is killed, in whatever phase, nothing of its sandboxes is left.
func TestKilled(t *testing.T) {
	layers := layersVar + "=" + strings.Join(testRoot(t).Layers(), "\n")
	mounts := func() string {
		b, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	before := mounts()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	phases := []time.Duration{-1} // until the command runs
	for i := range 16 {
		phases = append(phases, time.Duration(i)*1500*time.Microsecond)
	}
	for i, phase := range phases {
		mark := fmt.Sprintf("mark-%d-%d", os.Getpid(), i)
		tmp := t.TempDir()
		cmd := tool(t, "sleep", layers, "SANDBOX_TEST_MARK="+mark, "TMPDIR="+tmp)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if phase < 0 {
			if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
				t.Fatal(err)
			}
			if n := marked(t, mark); n == 0 {
				t.Fatal("the command isn't seen from outside")
			}
		} else {
			time.Sleep(phase)
		}
		pid := cmd.Process.Pid
		cmd.Process.Kill()
		cmd.Wait()
		deadline := time.Now().Add(5 * time.Second)
		for marked(t, mark) > 0 || orphans(t) > 0 {
			if time.Now().After(deadline) {
				t.Fatalf("killed after %v: processes of %d are left", phase, pid)
			}
			time.Sleep(time.Millisecond)
		}
		if files, err := os.ReadDir(tmp); err != nil || len(files) > 0 {
			t.Errorf("killed after %v: %v is left, %v", phase, files, err)
		}
	}
	if after := mounts(); after != before {
		t.Errorf("mounts have changed, from\n%sto\n%s", before, after)
	}
}

// orphans counts sandboxes' first processes that this one, a subreaper, has inherited.
func orphans(t *testing.T) int {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range files {
		if b, err := os.ReadFile(f); err != nil || string(b) != marker+"\x00" {
			continue
		}
		stat, err := os.ReadFile(filepath.Join(filepath.Dir(f), "stat"))
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(stat), ") ") // state, parent, …
		if fields := strings.Fields(rest); len(fields) > 1 && fields[1] == strconv.Itoa(os.Getpid()) {
			n++
		}
	}
	return n
}

// A caller's writer that takes nothing doesn't hold up a cancelled Run for long.
func TestBlockedWriter(t *testing.T) {
	sb := startWith(t, testRoot(t))
	r, w := io.Pipe()
	defer r.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	c := command("while :; do echo x; done")
	c.Stdout = w
	begin := time.Now()
	if err := sb.Run(ctx, c); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Run() = %v; want %v", err, context.DeadlineExceeded)
	}
	if d := time.Since(begin); d > 5*time.Second {
		t.Errorf("Run() took %v", d)
	}
	output(t, sb, "true")
}

// A program that starts sandboxes without asking IsInit gets an error, and no chain of programs that start each other.
func TestNotWired(t *testing.T) {
	old := os.Args
	defer func() { os.Args = old }()
	os.Args = []string{marker}
	if _, err := (Engine{}).Start(t.Context(), spec(testRoot(t))); err == nil || !strings.Contains(err.Error(), "IsInit") {
		t.Errorf("Start() = %v; want it to name IsInit", err)
	}
	if IsInit() {
		t.Error("IsInit() is true for a process that isn't pid 1")
	}
}
