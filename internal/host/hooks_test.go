package host

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// rootWith is a root with files in it, by path.
func rootWith(t *testing.T, files ...string) *Root {
	t.Helper()
	dir := t.TempDir()
	for _, f := range files {
		if err := os.MkdirAll(filepath.Join(dir, filepath.Dir(f)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, f), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Open(dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// states are those of a root's hooks, by path.
func states(t *testing.T, r *Root, program string) map[string]HookState {
	t.Helper()
	list, err := r.Hooks(program)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]HookState{}
	for _, h := range list {
		out[h.Path] = h.State
	}
	return out
}

const postinst, alpm = "/etc/kernel/postinst.d/40-godkms-hermetic", "/usr/share/libalpm/scripts/godkms-hermetic"

func TestHookSystems(t *testing.T) {
	for want, files := range map[string][]string{
		"":                             nil,
		"dpkg systemd":                 {"/var/lib/dpkg/status", "/lib/systemd/systemd"},
		"kernel-install systemd":       {"/usr/bin/kernel-install", "/usr/lib/systemd/systemd"},
		"kernel-install pacman":        {"/bin/kernel-install", "/usr/bin/pacman"},
		strings.Join(HookSystems, " "): {"/var/lib/dpkg/status", "/usr/bin/kernel-install", "/usr/bin/pacman", "/lib/systemd/systemd"},
	} {
		if got, err := rootWith(t, files...).HookSystems(); err != nil || strings.Join(got, " ") != want {
			t.Errorf("a root with %q has %q, %v; want %q", files, got, err, want)
		}
	}
}

func TestHooks(t *testing.T) {
	r := rootWith(t)
	if err := r.InstallHooks("/usr/bin/godkms-hermetic", HookSystems); err != nil {
		t.Fatal(err)
	}
	for path, s := range states(t, r, "/usr/bin/godkms-hermetic") {
		if s != HookInstalled {
			t.Errorf("%s is %s", path, s)
		}
	}
	before, err := os.Stat(filepath.Join(r.Dir(), postinst))
	if err != nil || before.Mode() != 0o755 {
		t.Fatalf("%v, %v", before, err)
	}
	if err := r.InstallHooks("/usr/bin/godkms-hermetic", HookSystems); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(filepath.Join(r.Dir(), postinst)); err != nil || !os.SameFile(before, after) || !before.ModTime().Equal(after.ModTime()) {
		t.Errorf("what was up to date is written again (%v)", err)
	}

	// The program is in another place now.
	if s := states(t, r, "godkms-hermetic"); s[postinst] != HookOutdated {
		t.Errorf("a hook for another place of the program is %s", s[postinst])
	}
	if err := r.InstallHooks("godkms-hermetic", []string{"dpkg"}); err != nil {
		t.Fatal(err)
	}
	if s := states(t, r, "godkms-hermetic"); s[postinst] != HookInstalled || s[alpm] != HookOutdated {
		t.Errorf("after an update for dpkg: %s, and pacman's %s", s[postinst], s[alpm])
	}

	if err := r.RemoveHooks("godkms-hermetic", HookSystems); err != nil { // outdated ones, too
		t.Fatal(err)
	}
	err = filepath.WalkDir(r.Dir(), func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			t.Errorf("%s was left behind", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.RemoveHooks("godkms-hermetic", HookSystems); err != nil {
		t.Errorf("removing hooks that aren't there: %v", err)
	}
}

// What somebody else wrote, or changed, is never touched; the others are written all the same.
func TestHooksOfOthers(t *testing.T) {
	change := func(f func(path string) error) func(string) error { return f }
	text := func(edit func([]byte) []byte) func(string) error {
		return change(func(path string) error {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(path, edit(b), 0o755)
		})
	}
	for name, c := range map[string]struct {
		spoil func(path string) error
		want  HookState
	}{
		"a line more":    {text(func(b []byte) []byte { return append(b, "exit 1\n"...) }), HookAltered},
		"without a line": {text(func(b []byte) []byte { return bytes.TrimSuffix(b, []byte("exit 0\n")) }), HookAltered},
		"not executable": {func(path string) error { return os.Chmod(path, 0o644) }, HookAltered},
		"without mark":   {text(func(b []byte) []byte { return mark.ReplaceAll(b, nil) }), HookForeign},
		"another's":      {text(func([]byte) []byte { return []byte("#!/bin/sh\nexit 1\n") }), HookForeign},
		"empty":          {text(func([]byte) []byte { return nil }), HookForeign},
		"large":          {text(func(b []byte) []byte { return append(b, bytes.Repeat([]byte("#\n"), 1<<16)...) }), HookForeign},
		"a link to it": {func(path string) error {
			return errors.Join(os.Rename(path, path+".old"), os.Symlink(path+".old", path))
		}, HookForeign},
		"a dangling link": {func(path string) error { return errors.Join(os.Remove(path), os.Symlink("/nowhere", path)) }, HookForeign},
		"a folder":        {func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o755)) }, HookForeign},
	} {
		r := rootWith(t)
		path := filepath.Join(r.Dir(), postinst)
		if err := r.InstallHooks("godkms-hermetic", []string{"dpkg"}); err != nil {
			t.Fatal(err)
		}
		if err := c.spoil(path); err != nil {
			t.Fatal(err)
		}
		before, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := states(t, r, "godkms-hermetic")[postinst]; got != c.want {
			t.Errorf("%s: %s; want %s", name, got, c.want)
		}
		if err := r.InstallHooks("godkms-hermetic", []string{"dpkg", "pacman"}); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: install says %v", name, err)
		}
		if got := states(t, r, "godkms-hermetic")[alpm]; got != HookInstalled {
			t.Errorf("%s: another hook is %s", name, got)
		}
		if err := r.RemoveHooks("godkms-hermetic", []string{"dpkg", "pacman"}); errors.Is(err, ErrRefused) != (c.want == HookAltered) {
			t.Errorf("%s: remove says %v", name, err)
		}
		if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) || after.Size() != before.Size() {
			t.Errorf("%s: it was touched (%v)", name, err)
		}
		if got := states(t, r, "godkms-hermetic")[alpm]; got != HookAbsent {
			t.Errorf("%s: after the removal another hook is %s", name, got)
		}
	}
}

// A root's links lead nowhere else.
func TestHooksStayInTheRoot(t *testing.T) {
	r, outside := rootWith(t), t.TempDir()
	if err := os.Symlink(outside, filepath.Join(r.Dir(), "etc")); err != nil {
		t.Fatal(err)
	}
	if err := r.InstallHooks("godkms-hermetic", HookSystems); err != nil {
		t.Fatal(err)
	}
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Errorf("outside of the root there are %v (%v)", entries, err)
	}
}

func TestHookProgram(t *testing.T) {
	for _, bad := range []string{"", "/usr/bin/a b", "$(reboot)", "a;b", "a'b", "a\nb"} {
		if _, err := HookFiles(bad); err == nil {
			t.Errorf("%q can be a hook's program", bad)
		}
	}
}

// A script ends with exit code 0, whatever the program does, and says what it did.
func TestHookScripts(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "log")
	program := filepath.Join(dir, "program")
	shells := []string{"sh"}
	for _, other := range []string{"dash", "bash"} {
		if path, err := exec.LookPath(other); err == nil {
			shells = append(shells, path)
		}
	}
	run := func(t *testing.T, shell, path, stdin string, env []string, args ...string) (output, calls string) {
		t.Helper()
		files, err := HookFiles(program)
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(files, func(f HookFile) bool { return f.Path == path })
		script := filepath.Join(t.TempDir(), "script")
		if err := os.WriteFile(script, files[i].Text, 0o755); err != nil {
			t.Fatal(err)
		}
		os.Remove(log)
		cmd := exec.Command(shell, append([]string{script}, args...)...)
		cmd.Env = append([]string{"PATH=" + dir + ":/usr/bin:/bin", "HOME=/home/of-a-user"}, env...)
		cmd.Stdin = strings.NewReader(stdin)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Errorf("%s %s %q: %v\n%s", shell, path, args, err, out)
		}
		b, _ := os.ReadFile(log)
		nobody, broken, err := os.Pipe() // who reads what it prints has gone
		if err != nil {
			t.Fatal(err)
		}
		nobody.Close()
		again := exec.Command(cmd.Path, cmd.Args[1:]...)
		again.Env, again.Stdin, again.Stdout, again.Stderr = cmd.Env, strings.NewReader(stdin), broken, broken
		err = again.Run()
		broken.Close()
		if err != nil {
			t.Errorf("%s %s %q, with nobody to read: %v", shell, path, args, err)
		}
		return string(out), string(b)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(name, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(dir, "logger"), `echo "logged: $*"`)
	const install, upgraded = "/usr/lib/kernel/install.d/40-godkms-hermetic.install", "DEB_MAINT_PARAMS='upgrade' '6.1'"
	note := `echo "$*, home $HOME, cache $XDG_CACHE_HOME, stdin $(cat)" >>` + log + "\n"
	const then = ", home /root, cache /var/cache, stdin \n"
	for _, shell := range shells {
		write(program, note)
		for _, c := range []struct {
			path, stdin string
			env, args   []string
			want        string
		}{
			{postinst, "debconf's", []string{"DPKG_ROOT="}, []string{"6.1.0-56-amd64", "/boot/vmlinuz-6.1.0-56-amd64"}, "autoinstall -k 6.1.0-56-amd64 --timeout 15m --root /" + then},
			{postinst, "", []string{"DPKG_ROOT=/mnt/an image"}, []string{"6.1"}, "autoinstall -k 6.1 --timeout 15m --root /mnt/an image" + then},
			{postinst, "", nil, nil, ""},
			{"/etc/kernel/prerm.d/40-godkms-hermetic", "", []string{"DEB_MAINT_PARAMS='remove'"}, []string{"6.1"}, "kernel_prerm -k 6.1 --timeout 5m --root /" + then},
			{"/etc/kernel/prerm.d/40-godkms-hermetic", "", []string{upgraded}, []string{"6.1"}, ""},
			{install, "", nil, []string{"add", "6.1", "/boot/x", "/lib/modules/6.1/vmlinuz"}, "autoinstall -k 6.1 --timeout 15m" + then},
			{install, "", nil, []string{"remove", "6.1", "/boot/x"}, "kernel_prerm -k 6.1 --timeout 5m" + then},
			{install, "", nil, []string{"inspect", "6.1"}, ""},
			{install, "", []string{"DPKG_MAINTSCRIPT_NAME=postinst"}, []string{"add", "6.1"}, ""},
			{alpm, "usr/lib/modules/6.9.1-arch1-1/vmlinuz\nusr/lib/modules/6.6.30-1-lts/vmlinuz\n", nil, []string{"add"},
				"autoinstall -k 6.9.1-arch1-1 --timeout 15m" + then + "autoinstall -k 6.6.30-1-lts --timeout 15m" + then},
			{alpm, "usr/lib/modules/6.9.1-arch1-1/vmlinuz\n", nil, []string{"remove"}, "kernel_prerm -k 6.9.1-arch1-1 --timeout 5m" + then},
			{alpm, "usr/lib/modules/6.9/build/vmlinuz\n\n", nil, []string{"add"}, ""},
		} {
			if out, calls := run(t, shell, c.path, c.stdin, c.env, c.args...); out != "" || calls != c.want {
				t.Errorf("%s %s %q: it called %q, and printed %q; want %q", shell, c.path, c.args, calls, out, c.want)
			}
		}
		for name, c := range map[string]struct{ program, want string }{
			"fails":          {"exit 11", "exit code 11"},
			"is killed":      {"kill -9 $$", "exit code 137"},
			"is interrupted": {"kill -INT $PPID; exit 130", "exit code 130"},
			"is ended":       {"kill -TERM $PPID; exit 130", "exit code 130"},
		} {
			write(program, c.program)
			for _, call := range [][]string{{postinst, "6.1"}, {"/etc/kernel/prerm.d/40-godkms-hermetic", "6.1"}, {install, "add", "6.1"}, {alpm, "add"}} {
				out, _ := run(t, shell, call[0], "usr/lib/modules/6.1/vmlinuz\n", nil, call[1:]...)
				for _, want := range []string{c.want, "godkms-hermetic: 'godkms-hermetic ", "logged: -t godkms-hermetic -p daemon.err -- "} {
					if !strings.Contains(out, want) {
						t.Errorf("%s: a program that %s: %s says %q, without %q", shell, name, call[0], out, want)
					}
				}
			}
		}
		if err := os.Remove(program); err != nil {
			t.Fatal(err)
		}
		if out, _ := run(t, shell, postinst, "", nil, "6.1"); out != "" {
			t.Errorf("%s: without the program: %q", shell, out)
		}
	}
}
