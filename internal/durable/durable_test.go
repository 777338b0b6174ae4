package durable

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// child is what the test binary does instead of tests when it is run again: "hold BASE" makes a Temp with a file in it, prints its
// folder and waits; "unwritable DIR" removes a folder.
func TestMain(m *testing.M) {
	what, arg, _ := strings.Cut(os.Getenv("DURABLE_TEST_CHILD"), " ")
	var err error
	switch what {
	case "":
		os.Exit(m.Run())
	case "hold":
		var tmp *Temp
		if tmp, err = NewTemp(arg); err != nil {
			break
		}
		if err = os.WriteFile(filepath.Join(tmp.Dir, "unfinished"), []byte("x"), 0o644); err != nil {
			break
		}
		fmt.Println(tmp.Dir)
		io.Copy(io.Discard, os.Stdin)
		err = tmp.Close()
	case "unwritable":
		err = removeUnwritable(arg)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func child(t *testing.T, what string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "DURABLE_TEST_CHILD="+what)
	cmd.Stderr = os.Stderr
	return cmd
}

// names lists a folder.
func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func text(s string) func(io.Writer) error {
	return func(w io.Writer) error { _, err := io.WriteString(w, s); return err }
}

func TestWriteFile(t *testing.T) {
	tmp, path := t.TempDir(), filepath.Join(t.TempDir(), "a/b/file")
	read := func() string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if err := WriteFile(tmp, path, 0o640, text("one")); err != nil || read() != "one" {
		t.Fatalf("WriteFile: %v, %q", err, read())
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != 0o640 {
		t.Errorf("mode is %v, %v; want 0640", st.Mode(), err)
	}
	open, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	if err := WriteFile(tmp, path, 0o600, text("two")); err != nil || read() != "two" {
		t.Errorf("WriteFile in place of a file: %v, %q", err, read())
	}
	if b, err := io.ReadAll(open); err != nil || string(b) != "one" {
		t.Errorf("who has the old file open reads %q, %v; want all of it", b, err)
	}

	broken := errors.New("broken")
	large := strings.Repeat("x", 1<<20) // more than is buffered
	for what, write := range map[string]func(io.Writer) error{
		"at once":    func(io.Writer) error { return broken },
		"in the end": func(w io.Writer) error { return errors.Join(text(large)(w), broken) },
	} {
		if err := WriteFile(tmp, path, 0o600, write); !errors.Is(err, broken) || read() != "two" {
			t.Errorf("a write that fails %s: %v, then the file is %.10q", what, err, read())
		}
		if err := WriteFile(tmp, path+"-new", 0o600, write); !errors.Is(err, broken) {
			t.Errorf("a write that fails %s: %v", what, err)
		}
	}
	// What can't be put in place.
	dir := filepath.Join(filepath.Dir(path), "dir")
	if err := os.MkdirAll(filepath.Join(dir, "full"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, to := range []string{dir, filepath.Join(path, "below-a-file")} {
		if err := WriteFile(tmp, to, 0o600, text("x")); err == nil {
			t.Errorf("WriteFile(%s): no error", to)
		}
	}
	if err := WriteFile(filepath.Join(tmp, "none"), path, 0o600, text("x")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("WriteFile through a folder that is not there: %v", err)
	}
	if left := names(t, tmp); len(left) != 0 {
		t.Errorf("temporary files are left: %q", left)
	}
	if got := names(t, filepath.Dir(path)); !slices.Equal(got, []string{"dir", "file"}) || read() != "two" {
		t.Errorf("there are %q, with %q", got, read())
	}
}

// While a file is written over and over, a reader sees one whole version or the other.
func TestWriteFileIsAtomic(t *testing.T) {
	tmp, path := t.TempDir(), filepath.Join(t.TempDir(), "file")
	versions := []string{strings.Repeat("a", 200<<10), strings.Repeat("b", 100<<10)}
	done := make(chan error, 1)
	go func() {
		var err error
		for i := 0; i < 40 && err == nil; i++ {
			err = WriteFile(tmp, path, 0o600, text(versions[i%2]))
		}
		done <- err
	}()
	for {
		b, err := os.ReadFile(path)
		if err == nil && !slices.Contains(versions, string(b)) || err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("read %d bytes, %v", len(b), err)
		}
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			return
		default:
		}
	}
}

func TestNewTempSweepsTheDead(t *testing.T) {
	base := filepath.Join(t.TempDir(), "tmp")
	type process struct {
		cmd *exec.Cmd
		in  io.Closer
		dir string
	}
	hold := func() process {
		cmd := child(t, "hold "+base)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		line, err := bufio.NewReader(out).ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		return process{cmd, in, strings.TrimSpace(line)}
	}
	there := func(p process) bool {
		_, err := os.Stat(filepath.Join(p.dir, "unfinished"))
		return err == nil
	}
	own, err := NewTemp(base)
	if err != nil {
		t.Fatal(err)
	}
	dead, alive := hold(), hold()
	if err := dead.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	dead.cmd.Wait()
	if !there(dead) || !there(alive) {
		t.Fatalf("before: dead %v, alive %v; want both", there(dead), there(alive))
	}
	if err := os.WriteFile(filepath.Join(base, "file-123"), nil, 0o644); err != nil { // of a WriteFile that died
		t.Fatal(err)
	}
	tmp, err := NewTemp(base)
	if err != nil {
		t.Fatal(err)
	}
	if there(dead) || !there(alive) {
		t.Errorf("after: dead %v, alive %v; want the living one alone", there(dead), there(alive))
	}
	if _, err := os.Stat(own.Dir); err != nil {
		t.Errorf("another one of this process: %v", err)
	}
	if tmp.Dir == own.Dir || len(names(t, tmp.Dir)) != 0 {
		t.Errorf("NewTemp gives %q beside %q, with %q in it", tmp.Dir, own.Dir, names(t, tmp.Dir))
	}
	alive.in.Close()
	if err := alive.cmd.Wait(); err != nil {
		t.Error(err)
	}
	if err := errors.Join(tmp.Close(), own.Close()); err != nil {
		t.Error(err)
	}
	if left := names(t, base); !slices.Equal(left, []string{".lock"}) {
		t.Errorf("left: %q", left)
	}
}

// Nothing sweeps the file of a WriteFile that is at work, at any moment of it.
func TestNewTempLeavesWritersAlone(t *testing.T) {
	base, out := t.TempDir(), filepath.Join(t.TempDir(), "file")
	done := make(chan error, 1)
	go func() {
		var err error
		for i := 0; i < 300 && err == nil; i++ {
			err = WriteFile(base, out, 0o644, text("x"))
		}
		done <- err
	}()
	for {
		tmp, err := NewTemp(base)
		if err == nil {
			err = tmp.Close()
		}
		if err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			return
		default:
		}
	}
}

// removeUnwritable makes folders that even their owner may not write to, as packages can contain them, and removes them.
func removeUnwritable(dir string) error {
	deep := filepath.Join(dir, "root", "a", "b")
	if err := os.MkdirAll(deep, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(deep, "file"), nil, 0); err != nil {
		return err
	}
	if err := os.Symlink(dir, filepath.Join(deep, "link")); err != nil {
		return err
	}
	for _, d := range []struct {
		path string
		mode fs.FileMode
	}{{deep, 0o555}, {filepath.Dir(deep), 0}, {filepath.Join(dir, "root"), 0o555}} {
		if err := os.Chmod(d.path, d.mode); err != nil {
			return err
		}
	}
	if os.Geteuid() != 0 && os.RemoveAll(filepath.Join(dir, "root")) == nil {
		return errors.New("os.RemoveAll can do it: the test is no test")
	}
	if err := RemoveAll(filepath.Join(dir, "root")); err != nil {
		return err
	}
	if _, err := os.Lstat(filepath.Join(dir, "root")); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("it is still there: %v", err)
	}
	if _, err := os.Stat(dir); err != nil {
		return fmt.Errorf("a link was followed: %w", err)
	}
	return RemoveAll(filepath.Join(dir, "root"))
}

func TestRemoveAllOfUnwritableFolders(t *testing.T) {
	if err := removeUnwritable(t.TempDir()); err != nil {
		t.Error(err)
	}
	if os.Geteuid() != 0 {
		return
	}
	// Once more as an ordinary user, who can't reach this test's folders or binary where they are.
	const uid = 54321
	dir, err := os.MkdirTemp("", "durable-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "test"), exe, 0o755), os.Mkdir(filepath.Join(dir, "own"), 0o755),
		os.Chown(filepath.Join(dir, "own"), uid, uid), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	cmd := child(t, "unwritable "+filepath.Join(dir, "own"))
	cmd.Path, cmd.Dir = filepath.Join(dir, "test"), "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
}

func TestLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "lock")
	lock := func(shared bool) *os.File {
		t.Helper()
		f, err := Lock(t.Context(), path, shared)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	// blocked tells whether a lock can't be had, without waiting for long.
	blocked := func(shared bool) bool {
		t.Helper()
		why := errors.New("waited long enough")
		ctx, cancel := context.WithTimeoutCause(t.Context(), 20*time.Millisecond, why)
		defer cancel()
		f, err := Lock(ctx, path, shared)
		if err == nil {
			f.Close()
		} else if !errors.Is(err, why) {
			t.Fatalf("Lock ends with %v; want the context's cause", err)
		}
		return err != nil
	}
	one := lock(true)
	two := lock(true)
	if blocked(true) || !blocked(false) {
		t.Error("shared locks must exclude exclusive ones, and nothing else")
	}
	one.Close()
	if !blocked(false) {
		t.Error("one of two shared locks must do")
	}
	two.Close()
	three := lock(false)
	if !blocked(true) || !blocked(false) {
		t.Error("an exclusive lock must exclude all")
	}

	got := make(chan error, 1)
	go func() {
		f, err := Lock(context.Background(), path, true)
		if err == nil {
			f.Close()
		}
		got <- err
	}()
	select {
	case err := <-got:
		t.Errorf("Lock did not wait: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	three.Close()
	if err := <-got; err != nil {
		t.Error(err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	held := lock(false)
	defer held.Close()
	if _, err := Lock(ctx, path, false); !errors.Is(err, context.Canceled) {
		t.Errorf("with a cancelled context: %v", err)
	}
	if _, err := Lock(t.Context(), filepath.Join(path, "below-a-file"), false); err == nil {
		t.Error("a lock below a file: no error")
	}
}

func TestLockDir(t *testing.T) {
	dir := t.TempDir()
	one, err := LockDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if _, err := LockDir(ctx, dir); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("LockDir of a held folder: %v", err)
	}
	if f, err := tryLock(dir); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("tryLock of a held folder: %v, %v", f, err)
	}
	one.Close()
	two, err := LockDir(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	two.Close()
	if left := names(t, dir); len(left) != 0 {
		t.Errorf("left: %q", left)
	}
	if _, err := LockDir(t.Context(), filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("LockDir of no folder: %v", err)
	}
}
