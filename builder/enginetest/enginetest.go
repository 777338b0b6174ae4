// Package enginetest is the suite that every engine passes.
package enginetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// environ is what the suite's commands get.
var environ = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}

// prompt is how soon a Run must return after its command was cancelled or ended.
const prompt = 3 * time.Second

// Arch is this machine's architecture as Debian names it.
func Arch() string {
	if runtime.GOARCH == "386" {
		return "i386"
	}
	return runtime.GOARCH
}

// Run runs the suite against an engine. The root needs a POSIX shell, bash and coreutils; NewRoot makes one.
func Run(t *testing.T, e builder.Engine, root builder.Root) {
	layers := root.Layers()
	if !slices.ContainsFunc(layers, func(dir string) bool { _, err := os.Stat(filepath.Join(dir, probePath)); return err == nil }) {
		dir := t.TempDir()
		if err := buildProbe(dir); err != nil {
			t.Fatal(err)
		}
		root = Folders(append(layers, dir)...)
	}
	s := suite{e, root, new(common)}
	defer func() {
		if s.common.sandbox != nil {
			if err := s.common.sandbox.Close(); err != nil {
				t.Errorf("Close() = %v", err)
			}
		}
	}()
	for _, test := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"Exit", s.exit},
		{"Streams", s.streams},
		{"Stdin", s.stdin},
		{"StreamErrors", s.streamErrors},
		{"Cancel", s.cancel},
		{"Timeout", s.timeout},
		{"Stragglers", s.stragglers},
		{"ForkBomb", s.forkBomb},
		{"Memory", s.memory},
		{"Environment", s.environment},
		{"Identity", s.identity},
		{"ReadOnly", s.readOnly},
		{"Scratch", s.scratch},
		{"WorkingDirectory", s.workingDirectory},
		{"Network", s.network},
		{"Secrets", s.secrets},
		{"Cache", s.cache},
		{"IPC", s.ipc},
		{"Host", s.host},
		{"Hostile", s.hostile},
		{"SetuidProgram", s.setuidProgram},
		{"Two", s.two},
		{"Job", s.job},
		{"Surroundings", s.surroundings},
		{"Close", s.close},
		{"Arch", s.arch},
	} {
		t.Run(test.name, test.run)
	}
}

type suite struct {
	engine builder.Engine
	root   builder.Root
	common *common
}

// common is the sandbox of those tests that need no new one: a start takes an engine up to half a second.
type common struct{ sandbox builder.Sandbox }

func (s suite) shared(t *testing.T) builder.Sandbox {
	t.Helper()
	if sb := s.common.sandbox; sb != nil {
		if err := sb.Run(t.Context(), builder.Command{Args: []string{"true"}, Env: environ, Dir: "/"}); err != nil {
			t.Errorf("an earlier test has broken the sandbox: %v", err)
			sb.Close()
			s.common.sandbox = nil
		}
	}
	if s.common.sandbox == nil {
		sb, err := s.engine.Start(context.WithoutCancel(t.Context()), s.spec("/writable"))
		if err != nil {
			t.Fatal(err)
		}
		s.common.sandbox = sb
	}
	return s.common.sandbox
}

func (s suite) spec(scratch ...string) builder.Spec {
	return builder.Spec{Root: s.root, Kernel: kernels.Kernel{Distro: "debian", Suite: "bookworm", Arch: Arch(), Release: "6.1.0"}, Scratch: scratch}
}

func (s suite) start(t *testing.T, scratch ...string) builder.Sandbox {
	t.Helper()
	sb, err := s.engine.Start(t.Context(), s.spec(scratch...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sb.Close(); err != nil {
			t.Errorf("Close() = %v", err)
		}
	})
	return sb
}

// sh runs a shell script and returns what it printed.
func sh(t *testing.T, sb builder.Sandbox, script string) string {
	t.Helper()
	return output(t, sb, "sh", "-c", script)
}

func output(t *testing.T, sb builder.Sandbox, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	if err := sb.Run(t.Context(), builder.Command{Args: args, Env: environ, Dir: "/", Stdout: &out, Stderr: &errs}); err != nil {
		t.Errorf("Run(%q) = %v; stderr %q", args, err, errs.String())
	}
	return strings.TrimSpace(out.String())
}

// Try has the probe try one of its attempts, and returns "ok" or the name of the errno.
func Try(t *testing.T, sb builder.Sandbox, attempt string) string {
	t.Helper()
	return output(t, sb, "enginetest-probe", "try", attempt)
}

func (s suite) exit(t *testing.T) {
	sb := s.start(t, "/writable")
	sh(t, sb, "cd /writable; printf '#!/no/such/interpreter\n' > script; chmod 755 script; echo text > text; mkdir folder")
	for _, test := range []struct {
		args   []string
		code   int
		signal string
		stderr bool // says something
	}{
		{args: []string{"true"}},
		{args: []string{"sh", "-c", "exit 0"}},
		{args: []string{"sh", "-c", "exit 1"}, code: 1},
		{args: []string{"sh", "-c", "exit 42"}, code: 42},
		{args: []string{"sh", "-c", "exit 255"}, code: 255},
		{args: []string{"sh", "-c", "kill -KILL $$"}, code: 137, signal: "killed"},
		{args: []string{"sh", "-c", "kill -SEGV $$"}, code: 139, signal: "segmentation fault"},
		{args: []string{"no-such-program"}, code: 127, stderr: true},
		{args: []string{"/no/such/program"}, code: 127, stderr: true},
		{args: []string{"/writable/script"}, code: 127, stderr: true},
		{args: []string{"/writable/text"}, code: 126, stderr: true},
		{args: []string{"/writable/folder"}, code: 126, stderr: true},
	} {
		var errs bytes.Buffer
		err := sb.Run(t.Context(), builder.Command{Args: test.args, Env: environ, Dir: "/", Stderr: &errs})
		var exit *builder.ExitError
		switch {
		case test.code == 0:
			if err != nil {
				t.Errorf("Run(%q) = %v; want nil", test.args, err)
			}
		case !errors.As(err, &exit):
			t.Errorf("Run(%q) = %v; want an *ExitError", test.args, err)
		case exit.Code != test.code || exit.Signal != test.signal || !slices.Equal(exit.Args, test.args):
			t.Errorf("Run(%q) = %+v; want code %d, signal %q", test.args, exit, test.code, test.signal)
		}
		if test.stderr != (errs.Len() > 0) {
			t.Errorf("Run(%q) wrote %q to stderr", test.args, errs.String())
		}
	}
}

// noise is a reader of random bytes, the same ones for the same seed.
func noise(seed uint64, size int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{byte(seed)}), size)
}

func (s suite) streams(t *testing.T) {
	sb := s.shared(t)
	const size = 100 << 20
	in, out := sha256.New(), sha256.New()
	begin := time.Now()
	err := sb.Run(t.Context(), builder.Command{Args: []string{"cat"}, Env: environ, Dir: "/", Stdin: io.TeeReader(noise(1, size), in), Stdout: out})
	if err != nil || !bytes.Equal(in.Sum(nil), out.Sum(nil)) {
		t.Errorf("cat of %d bytes = %v; hashes %x, %x", size, err, in.Sum(nil), out.Sum(nil))
	}
	t.Logf("%d MB through cat in %v", size>>20, time.Since(begin))

	var stdout, stderr bytes.Buffer
	err = sb.Run(t.Context(), builder.Command{Args: []string{"sh", "-c", "echo out; echo err >&2"}, Env: environ, Dir: "/", Stdout: &stdout, Stderr: &stderr})
	if err != nil || stdout.String() != "out\n" || stderr.String() != "err\n" {
		t.Errorf("Run() = %v, stdout %q, stderr %q", err, stdout.String(), stderr.String())
	}
	// The same writer twice keeps the order, and is never written to by two goroutines.
	var both bytes.Buffer
	err = sb.Run(t.Context(), builder.Command{
		Args: []string{"sh", "-c", "i=0; while [ $i -lt 200 ]; do echo $i; echo $i >&2; i=$((i+1)); done"}, Env: environ, Dir: "/",
		Stdout: &both, Stderr: &both,
	})
	var want strings.Builder
	for i := range 200 {
		fmt.Fprintf(&want, "%d\n%d\n", i, i)
	}
	if err != nil || both.String() != want.String() {
		t.Errorf("Run() = %v, output %q", err, both.String())
	}
	// Nothing to write to is not an error for the command.
	if err := sb.Run(t.Context(), builder.Command{Args: []string{"sh", "-c", "echo x && echo y >&2"}, Env: environ, Dir: "/"}); err != nil {
		t.Errorf("Run() = %v", err)
	}
}

func (s suite) stdin(t *testing.T) {
	sb := s.shared(t)
	run := func(stdin io.Reader, args ...string) (string, error) {
		var out bytes.Buffer
		begin := time.Now()
		err := sb.Run(t.Context(), builder.Command{Args: args, Env: environ, Dir: "/", Stdin: stdin, Stdout: &out})
		if d := time.Since(begin); d > prompt {
			t.Errorf("Run(%q) took %v", args, d)
		}
		return out.String(), err
	}
	if out, err := run(nil, "wc", "-c"); err != nil || strings.TrimSpace(out) != "0" {
		t.Errorf("wc of no stdin = %q, %v; want 0", out, err)
	}
	if out, err := run(strings.NewReader("abc"), "cat"); err != nil || out != "abc" {
		t.Errorf("cat = %q, %v; want abc", out, err)
	}
	// A command needn't read all of it, or any.
	if _, err := run(noise(2, 1<<40), "head", "-c", "1"); err != nil {
		t.Errorf("head -c 1 of endless input = %v", err)
	}
	if _, err := run(noise(3, 1<<40), "true"); err != nil {
		t.Errorf("true with endless input = %v", err)
	}
	r, w := io.Pipe() // that nobody writes to
	defer w.Close()
	if _, err := run(r, "true"); err != nil {
		t.Errorf("true with silent input = %v", err)
	}
}

type failing struct {
	n   int64 // bytes until it fails
	err error
}

func (f *failing) Read(p []byte) (int, error) {
	if f.n -= int64(len(p)); f.n < 0 {
		return 0, f.err
	}
	return len(p), nil
}

func (f *failing) Write(p []byte) (int, error) { return f.Read(p) }

func (s suite) streamErrors(t *testing.T) {
	sb := s.shared(t)
	broken := errors.New("broken on purpose")
	for name, c := range map[string]builder.Command{
		"stdin":       {Args: []string{"sh", "-c", "cat >/dev/null; sleep 1000"}, Stdin: &failing{1 << 20, broken}},
		"stdin, last": {Args: []string{"cat"}, Stdin: io.MultiReader(strings.NewReader("x"), &failing{0, broken})},
		"stdout":      {Args: []string{"sh", "-c", "trap '' PIPE; while :; do echo x; done"}, Stdout: &failing{1 << 16, broken}},
		"stderr":      {Args: []string{"sh", "-c", "echo x >&2; sleep 1000"}, Stderr: &failing{0, broken}},
	} {
		c.Env, c.Dir = environ, "/"
		begin := time.Now()
		if err := sb.Run(t.Context(), c); !errors.Is(err, broken) {
			t.Errorf("Run() with a broken %s = %v; want its error", name, err)
		}
		if d := time.Since(begin); d > prompt {
			t.Errorf("Run() with a broken %s took %v", name, d)
		}
	}
}

// stubborn starts processes that ignore every polite signal, leave their session and lose their parent, prints "ready" and
// stays.
const stubborn = `trap '' TERM INT HUP QUIT
setsid sh -c '(trap "" TERM INT HUP; while :; do sleep 1000; done) & (setsid sh -c "sleep 1000 & sleep 1000" &) '
setsid sleep 1000 &
echo ready
`

// alone fails the test when processes are left in the sandbox. The shell lists /proc by itself, so it's the only one.
func alone(t *testing.T, sb builder.Sandbox) {
	t.Helper()
	out := sh(t, sb, "for p in /proc/[0-9]*; do case $p in /proc/1|/proc/$$) ;; *) read -r line < $p/stat; echo $line;; esac; done")
	if out != "" {
		t.Errorf("processes are left:\n%s", out)
	}
}

// onReady is a writer that calls f at the first line.
type onReady struct {
	f    func()
	once sync.Once
}

func (o *onReady) Write(p []byte) (int, error) {
	o.once.Do(o.f)
	return len(p), nil
}

func (s suite) cancel(t *testing.T) {
	sb := s.start(t, "/writable")
	why := errors.New("because")
	ctx, cancel := context.WithCancelCause(t.Context())
	var since time.Time
	ready := &onReady{f: func() { since = time.Now(); cancel(why) }}
	err := sb.Run(ctx, builder.Command{Args: []string{"sh", "-c", "echo kept > /writable/file; " + stubborn + "sleep 1000"}, Env: environ, Dir: "/", Stdout: ready})
	if !errors.Is(err, why) {
		t.Errorf("Run() = %v; want %v", err, why)
	}
	if d := time.Since(since); d > prompt {
		t.Errorf("Run() returned %v after it was cancelled", d)
	}
	alone(t, sb)
	if out := sh(t, sb, "cat /writable/file"); out != "kept" {
		t.Errorf("a scratch file is %q after a cancelled command", out)
	}
	if err := sb.Run(ctx, builder.Command{Args: []string{"touch", "/writable/never"}, Env: environ, Dir: "/"}); !errors.Is(err, why) {
		t.Errorf("Run() with a context that has ended = %v; want %v", err, why)
	}
	sh(t, sb, "[ ! -e /writable/never ]")
	if _, err := s.engine.Start(ctx, s.spec()); !errors.Is(err, why) {
		t.Errorf("Start() with a context that has ended = %v; want %v", err, why)
	}
	// Cancelled at any moment, it returns.
	for i := range 50 {
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Duration(i)*100*time.Microsecond, why)
		if err := sb.Run(ctx, builder.Command{Args: []string{"sleep", "1000"}, Env: environ, Dir: "/"}); !errors.Is(err, why) {
			t.Errorf("Run() = %v; want %v", err, why)
		}
		cancel()
	}
	alone(t, sb)
}

func (s suite) timeout(t *testing.T) {
	sb := s.shared(t)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	begin := time.Now()
	err := sb.Run(ctx, builder.Command{Args: []string{"sh", "-c", stubborn + "while :; do :; done"}, Env: environ, Dir: "/", Stdout: io.Discard})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Run() = %v; want %v", err, context.DeadlineExceeded)
	}
	if d := time.Since(begin); d > prompt {
		t.Errorf("Run() took %v", d)
	}
	alone(t, sb)
}

func (s suite) stragglers(t *testing.T) {
	sb := s.shared(t)
	begin := time.Now()
	var out bytes.Buffer // held open by those who stay
	err := sb.Run(t.Context(), builder.Command{Args: []string{"sh", "-c", stubborn + "exit 3"}, Env: environ, Dir: "/", Stdout: &out, Stderr: &out})
	var exit *builder.ExitError
	if !errors.As(err, &exit) || exit.Code != 3 || out.String() != "ready\n" {
		t.Errorf("Run() = %v, output %q; want code 3", err, out.String())
	}
	if d := time.Since(begin); d > prompt {
		t.Errorf("Run() took %v", d)
	}
	alone(t, sb)
}

// forkBomb has a thousand processes that start others all the time, and then as many as there can be. Each ends by itself after
// some seconds, should the sandbox not end it.
func (s suite) forkBomb(t *testing.T) {
	sb := s.shared(t)
	for _, test := range []struct {
		name, probe, number string
	}{
		{"Thousand", "bomb", "1000"},
		{"Limit", "fork", "20000"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			var out bytes.Buffer
			var since time.Time
			made := writerFunc(func(p []byte) (int, error) {
				since = time.Now()
				cancel()
				return out.Write(p)
			})
			begin := time.Now()
			err := sb.Run(ctx, builder.Command{Args: []string{"enginetest-probe", test.probe, test.number, "10"}, Env: environ, Dir: "/", Stdout: made})
			t.Logf("%s in %v, ended in %v", strings.TrimSpace(out.String()), since.Sub(begin).Round(time.Millisecond), time.Since(since).Round(time.Millisecond))
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Run() = %v; want %v", err, context.Canceled)
			}
			if d := time.Since(since); d > prompt {
				t.Errorf("Run() returned %v after it was cancelled", d)
			}
			n, why, _ := strings.Cut(strings.TrimSpace(out.String()), " ")
			switch number, err := strconv.Atoi(n); {
			case err != nil:
				t.Errorf("the probe said %q", out.String())
			case test.name == "Thousand" && why != "ok":
				t.Errorf("a thousand processes: there can be no more than %d: %s", number, why)
			case test.name == "Limit" && (why != "EAGAIN" || number > 1<<13):
				t.Errorf("a command started %d processes, until %s; want at most %d, until EAGAIN", number, why, 1<<13)
			}
			alone(t, sb)
		})
	}
	if got := s.outside(t, "fork", "200", "0"); got != "200 ok" {
		t.Errorf("outside of the sandbox the probe started %s processes", got)
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func (s suite) environment(t *testing.T) {
	t.Setenv("ENGINETEST_SECRET", "of-the-tool")
	sb := s.start(t)
	env := []string{"PATH=/usr/bin", "EMPTY=", "BYTES=a\xffb \n\tc", "Q='\"$x`"}
	var out bytes.Buffer
	if err := sb.Run(t.Context(), builder.Command{Args: []string{"cat", "/proc/self/environ"}, Env: env, Dir: "/", Stdout: &out}); err != nil {
		t.Fatal(err)
	}
	if want := strings.Join(env, "\x00") + "\x00"; out.String() != want {
		t.Errorf("the environment is %q; want %q", out.String(), want)
	}
	for script, want := range map[string]string{
		"umask":                    "0022",
		"hostname; uname -n":       builder.HostName + "\n" + builder.HostName,
		"bash -c 'ulimit -c'":      "0",
		"ls /proc/self/fd | wc -l": "4", // the three, and the folder itself
		// A session of its own, and no terminal.
		`read -r line < /proc/self/stat; set -- $line; [ "$1" = "$6" ] && echo "$7"`: "0",
		// Blocked, ignored and caught signals, of a program that changes none of them.
		"while read -r k v; do case $k in SigBlk:|SigIgn:) echo $v;; esac; done < /proc/self/status": "0000000000000000\n0000000000000000",
	} {
		if got := sh(t, sb, script); got != want {
			t.Errorf("%q printed %q; want %q", script, got, want)
		}
	}
	args := []string{"sh", "-c", `printf '%s|' "$@"`, "sh", "", "a b", "\xff", "'\"$`\\\n"}
	if got, want := output(t, sb, args...), strings.Join(args[4:], "|")+"|"; got != want {
		t.Errorf("arguments arrived as %q; want %q", got, want)
	}
}

func (s suite) identity(t *testing.T) {
	sb := s.shared(t)
	status := map[string]string{}
	for line := range strings.Lines(sh(t, sb, "cat /proc/self/status")) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), ":")
		status[k] = strings.Join(strings.Fields(v), " ")
	}
	for k, want := range map[string]string{
		"Uid": fmt.Sprintf("%[1]d %[1]d %[1]d %[1]d", builder.UID), "Gid": fmt.Sprintf("%[1]d %[1]d %[1]d %[1]d", builder.GID),
		"CapInh": "0000000000000000", "CapPrm": "0000000000000000", "CapEff": "0000000000000000", "CapBnd": "0000000000000000", "CapAmb": "0000000000000000",
		"NoNewPrivs": "1", "Seccomp": "2",
	} {
		if status[k] != want {
			t.Errorf("%s of a command is %q; want %q", k, status[k], want)
		}
	}
	// An ordinary user can't leave his own groups (user_namespaces(7)); the sandbox has no name for them: 65534.
	for g := range strings.FieldsSeq(status["Groups"]) {
		if g != "65534" && g != strconv.Itoa(builder.GID) {
			t.Errorf("Groups of a command are %q", status["Groups"])
		}
	}
}

func (s suite) readOnly(t *testing.T) {
	before := snapshot(t, s.root.Layers())
	sb := s.start(t, "/writable", "/usr/lib/made/by the/engine")
	for _, script := range []string{
		"touch /new", "mkdir /usr/new", "rm /usr/bin/cat", "echo x > /usr/bin/cat", "chmod 777 /usr", "touch /usr/bin/cat", "mkdir /proc/new",
	} {
		if got := sh(t, sb, "("+script+") 2>/dev/null && echo succeeded"+"; true"); got != "" {
			t.Errorf("%q %s", script, got)
		}
	}
	if err := sb.Close(); err != nil {
		t.Error(err)
	}
	if after := snapshot(t, s.root.Layers()); after != before {
		t.Errorf("the layers have changed, from\n%sto\n%s", before, after)
	}
}

func snapshot(t *testing.T, layers []string) string {
	var b strings.Builder
	for _, layer := range layers {
		err := filepath.WalkDir(layer, func(path string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, "%s %v %d %v\n", path, info.Mode(), info.Size(), info.ModTime())
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

func (s suite) scratch(t *testing.T) {
	dirs := []string{"/writable", "/var/lib/some thing/deep", "/writable/inner/most", "/lib/through-a-link"}
	sb := s.start(t, dirs...)
	for _, dir := range dirs {
		want := fmt.Sprintf("%d %d 755", builder.UID, builder.GID)
		if got := sh(t, sb, "stat -c '%u %g %a' '"+dir+"'"); got != want {
			t.Errorf("%q is owned and open as %q; want %q", dir, got, want)
		}
		if got := sh(t, sb, "ls -A '"+dir+"'"); got != "" && dir != "/writable" {
			t.Errorf("%q isn't empty: %q", dir, got)
		}
		sh(t, sb, "cd '"+dir+"' && echo x > file && mkdir folder && printf '#!/bin/sh\necho ran' > folder/script && chmod 755 folder/script")
	}
	for _, dir := range dirs { // in another Run
		if got := sh(t, sb, "cd '"+dir+"' && cat file && folder/script"); got != "x\nran" {
			t.Errorf("%q has %q in a second command", dir, got)
		}
	}
	if got := sh(t, sb, "stat -c %a /tmp; echo x > /tmp/file && cat /tmp/file"); got != "1777\nx" {
		t.Errorf("/tmp: %q", got)
	}
	other := s.start(t, "/writable")
	if got := sh(t, other, "ls -A /writable /tmp"); got != "/tmp:\n\n/writable:" {
		t.Errorf("scratch folders of a new sandbox hold %q", got)
	}
	for _, dir := range []string{"relative", "/", "/proc", "/dev/x"} {
		if sb, err := s.engine.Start(t.Context(), s.spec(dir)); err == nil {
			sb.Close()
			t.Errorf("Start() with scratch folder %q succeeded", dir)
		}
	}
}

func (s suite) workingDirectory(t *testing.T) {
	sb := s.shared(t)
	for _, dir := range []string{"/", "/writable", "/usr/bin"} {
		var out bytes.Buffer
		err := sb.Run(t.Context(), builder.Command{Args: []string{"pwd"}, Env: environ, Dir: dir, Stdout: &out})
		if err != nil || strings.TrimSpace(out.String()) != dir {
			t.Errorf("pwd in %q = %q, %v", dir, out.String(), err)
		}
	}
	for _, dir := range []string{"/missing", "relative", "", "/usr/bin/cat"} {
		err := sb.Run(t.Context(), builder.Command{Args: []string{"true"}, Env: environ, Dir: dir})
		var exit *builder.ExitError
		if err == nil || errors.As(err, &exit) || !strings.Contains(err.Error(), dir) {
			t.Errorf("Run() in %q = %v; want an error that names it and isn't an *ExitError", dir, err)
		}
	}
	sh(t, sb, "true")
}

// ipc has something of each kind that this machine's processes share by name. The probe finds it outside, and not inside.
func (s suite) ipc(t *testing.T) {
	sb := s.shared(t)
	key := 0x60000000 + os.Getpid()
	name := strconv.Itoa(key)
	if got := s.outside(t, "ipc", "make", name); got != "ok" {
		t.Fatalf("shared memory, semaphores and queues can't be made: %s", got)
	}
	defer s.outside(t, "ipc", "remove", name)
	for _, kind := range []string{"shm", "sem", "msg", "mq"} {
		if got := s.outside(t, "ipc", kind, name); got != "ok" && got != "ENOSYS" {
			t.Errorf("outside of the sandbox, %s: %s", kind, got)
		}
		if got := inside(t, sb, "ipc", kind, name); got != "ENOENT" && got != "ENOSYS" && got != "EPERM" {
			t.Errorf("%s of the host: %s", kind, got)
		}
	}
}

// host looks for what belongs to this machine. An engine may have files of its own where the host has some: what's in them
// must not be the host's.
func (s suite) host(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	sb := s.shared(t)
	for _, path := range append(s.root.Layers(), file, exe) {
		if got := output(t, sb, "sh", "-c", `[ -e "$1" ] && echo visible; true`, "sh", path); got != "" {
			t.Errorf("%q of the host is visible", path)
		}
		if got := inside(t, sb, "hunt", path, path); got != "" {
			t.Errorf("%q of the host is named in %s", path, got)
		}
	}
	for _, path := range []string{
		"/etc/shadow", "/etc/passwd", "/etc/group", "/etc/machine-id", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf", "/etc/fstab",
		"/etc/os-release", "/proc/cmdline", "/proc/cpuinfo", "/proc/meminfo", "/proc/modules", "/proc/kallsyms", "/proc/partitions",
		"/proc/interrupts", "/proc/keys", "/proc/key-users", "/proc/timer_list", "/proc/diskstats", "/proc/net/unix", "/proc/net/arp", "/proc/net/route",
		"/sys/class/dmi/id/product_name", "/sys/kernel/notes", "/sys/kernel/vmcoreinfo", "/sys/power/state", "/proc/sys/kernel/random/boot_id",
	} {
		ours, err := os.ReadFile(path)
		if err != nil || len(bytes.TrimSpace(ours)) == 0 {
			continue
		}
		got := output(t, sb, "sh", "-c", `cat "$1" 2>/dev/null; true`, "sh", path)
		if got == "" {
			continue
		}
		if inLayers(s.root, path) {
			continue
		}
		// Line by line: a file may have been made of the host's. The first of those of /proc/net is a heading.
		lines := slices.Collect(strings.Lines(string(ours)))
		if strings.HasPrefix(path, "/proc/net/") {
			lines = lines[1:]
		}
		for _, line := range lines {
			if line = strings.TrimSpace(line); hostly(line) && slices.Contains(strings.Split(got, "\n"), line) {
				t.Errorf("%s has %q, as on the host", path, line)
				break
			}
		}
	}
	for _, dir := range []string{"/run", "/dev/shm", "/dev/mqueue", "/dev/pts", "/sys/block", "/sys/class/net", "/proc/bus", "/proc/scsi", "/home", "/root", "/mnt", "/media", "/srv", "/boot"} {
		list, err := os.ReadDir(dir)
		if err != nil || inLayers(s.root, dir) {
			continue
		}
		got := strings.Fields(output(t, sb, "sh", "-c", `ls -A "$1" 2>/dev/null; true`, "sh", dir))
		for _, e := range list {
			if name := e.Name(); slices.Contains(got, name) && name != "ptmx" && name != "lo" {
				t.Errorf("%s has %q, as on the host", dir, name)
			}
		}
	}
	if name, err := os.Hostname(); err == nil && len(name) > 3 && name != "localhost" {
		got := sh(t, sb, "cat /etc/hosts /etc/hostname /etc/resolv.conf /proc/self/mountinfo /proc/self/cgroup 2>/dev/null; true")
		if strings.Contains(got, name) {
			t.Errorf("the host's name is in the sandbox's files:\n%s", got)
		}
	}
	// No mount beside the contract's, and pid 1 beside the shell.
	mounts := strings.Fields(sh(t, sb, "while read -r a b c d e f; do echo $e; done < /proc/self/mountinfo"))
	for _, m := range mounts {
		if m != "/" && m != "/proc" && m != "/tmp" && m != "/writable" && m != "/dev" && !strings.HasPrefix(m, "/dev/") && !strings.HasPrefix(m, "/proc/") && !strings.HasPrefix(m, "/sys") &&
			m != "/etc/hosts" && m != "/etc/hostname" && m != "/etc/resolv.conf" {
			t.Errorf("%q is mounted", m)
		}
	}
	if len(mounts) < 4 {
		t.Errorf("mounts: %q", mounts)
	}
	alone(t, sb)
	for _, d := range []string{"null", "zero", "full", "random", "urandom"} {
		if got := sh(t, sb, "[ -c /dev/"+d+" ] && head -c 0 /dev/"+d+" && [ -w /dev/"+d+" ] && echo ok"); got != "ok" {
			t.Errorf("/dev/%s doesn't work", d)
		}
	}
	if got := sh(t, sb, "echo x > /dev/null; echo y > /dev/stdout; cat /dev/fd/0 </dev/null; head -c 3 /dev/zero | wc -c"); got != "y\n3" {
		t.Errorf("devices: %q", got)
	}
}

// hostly says whether a line tells one machine from another.
func hostly(line string) bool {
	return len(line) >= 4 && !strings.HasPrefix(line, "#") && !strings.Contains(line, "localhost") && !strings.Contains(line, "ip6-")
}

func inLayers(root builder.Root, path string) bool {
	return slices.ContainsFunc(root.Layers(), func(dir string) bool { return exists(filepath.Join(dir, path)) })
}

// setuidProgram puts a program into a layer that makes whoever runs it its owner, and one with capabilities of its own. Outside
// they work, where it's root that made them.
func (s suite) setuidProgram(t *testing.T) {
	dir := t.TempDir()
	for p := dir; p != os.TempDir() && p != "/"; p = filepath.Dir(p) { // for another user
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(s.probe(t))
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(dir, "usr/bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{"become-root": 0o755 | os.ModeSetuid | os.ModeSetgid, "with-capabilities": 0o755} {
		if err := os.WriteFile(filepath.Join(bin, name), b, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(bin, name), mode); err != nil {
			t.Fatal(err)
		}
	}
	if os.Geteuid() == 0 {
		// struct vfs_cap_data of linux/capability.h, revision 2: effective, CAP_SYS_ADMIN permitted
		all := []byte{1, 0, 0, 2, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
		if err := unix.Setxattr(filepath.Join(bin, "with-capabilities"), "security.capability", all, 0); err != nil {
			t.Logf("not tried: capabilities of a file: %v", err)
		}
		for _, name := range []string{"become-root", "with-capabilities"} {
			cmd := exec.Command(filepath.Join(bin, name), "ids")
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 54321, Gid: 54321}}
			cmd.Dir = "/"
			want := "54321 0 54321 0 "
			if name == "with-capabilities" {
				want = "54321 54321 54321 54321 200000"
			}
			if out, err := cmd.CombinedOutput(); !strings.HasPrefix(string(out), want) {
				t.Logf("%s has no effect outside either: %v, %q; want %q", name, err, out, want)
			}
		}
	}
	s.root = Folders(append(s.root.Layers(), dir)...)
	sb := s.start(t)
	want := fmt.Sprintf("%[1]d %[1]d %[2]d %[2]d 0", builder.UID, builder.GID)
	for _, name := range []string{"become-root", "with-capabilities"} {
		if got := output(t, sb, name, "ids"); got != want {
			t.Errorf("%s runs as %q; want %q", name, got, want)
		}
	}
}

func (s suite) two(t *testing.T) {
	var wait sync.WaitGroup
	for i := range 2 {
		sb := s.start(t, "/writable")
		wait.Go(func() {
			for range 5 {
				want := strconv.Itoa(i)
				sh(t, sb, "echo "+want+" > /writable/file; sleep 0.05")
				if got := sh(t, sb, "cat /writable/file"); got != want {
					t.Errorf("sandbox %d reads %q", i, got)
				}
				alone(t, sb)
			}
		})
	}
	wait.Wait()
}

// job looks twice: two sandboxes are the same. Whether two engines' are, is for a test that has both.
func (s suite) job(t *testing.T) {
	text, first, err := Job(t.Context(), s.engine, s.spec())
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if !strings.Contains(text, "== end\n== said\n") {
		t.Errorf("the job did not come to its end:\n%s", text)
	}
	again, second, err := Job(t.Context(), s.engine, s.spec())
	if err != nil || second != first {
		t.Errorf("two sandboxes show different things: %v\n%s\n%s", err, text, again)
	}
	t.Logf("%s\n%s", first, text)
}

// surroundings are others where they are asked for, and the sandbox is as usable.
func (s suite) surroundings(t *testing.T) {
	spec := s.spec("/writable/inner", "/writable")
	spec.Surroundings = builder.Surroundings{User: 65534, Host: "elsewhere", Processors: 1}
	sb, err := s.engine.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	defer sb.Close()
	for script, want := range map[string]string{
		"id -u; id -g":       "65534\n65534",
		"hostname; uname -n": "elsewhere\nelsewhere",
		"nproc":              "1",
		"stat -c '%u %g' /writable /writable/inner":                                                        "65534 65534\n65534 65534",
		"echo x >/writable/inner/file && echo y >/tmp/file && stat -c %u /tmp/file && echo z >/dev/stdout": "65534\nz",
	} {
		if got := sh(t, sb, script); got != want {
			t.Errorf("%q printed %q; want %q", script, got, want)
		}
	}
	if got, want := sh(t, s.shared(t), "nproc"), strconv.Itoa(runtime.NumCPU()); got != want {
		t.Errorf("nproc printed %s in a sandbox like any; want %s", got, want)
	}
}

func (s suite) close(t *testing.T) {
	sb := s.start(t)
	result := make(chan error)
	started := make(chan struct{})
	go func() {
		result <- sb.Run(t.Context(), builder.Command{Args: []string{"sh", "-c", stubborn + "sleep 1000"}, Env: environ, Dir: "/", Stdout: &onReady{f: func() { close(started) }}})
	}()
	<-started
	for range 2 {
		if err := sb.Close(); err != nil {
			t.Errorf("Close() = %v", err)
		}
	}
	select {
	case err := <-result:
		var exit *builder.ExitError
		if err == nil || errors.As(err, &exit) {
			t.Errorf("Run() of a sandbox that was closed = %v; want an error that isn't an *ExitError", err)
		}
	case <-time.After(prompt):
		t.Error("Run() goes on after Close()")
	}
	if err := sb.Run(t.Context(), builder.Command{Args: []string{"true"}, Env: environ, Dir: "/"}); err == nil {
		t.Error("Run() after Close() succeeded")
	}
}

func (s suite) arch(t *testing.T) {
	spec := s.spec()
	spec.Kernel.Arch = "s390x"
	if runtime.GOARCH == "s390x" {
		spec.Kernel.Arch = "amd64"
	}
	sb, err := s.engine.Start(t.Context(), spec)
	if err == nil {
		sb.Close()
		t.Fatalf("Start() for %s succeeded", spec.Kernel.Arch)
	}
	if !strings.Contains(err.Error(), spec.Kernel.Arch) || !strings.Contains(err.Error(), Arch()) {
		t.Errorf("Start() for %s = %v; want both architectures named", spec.Kernel.Arch, err)
	}
}
