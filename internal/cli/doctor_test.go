package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// doctor runs the program and gives its findings by name.
func doctor(t *testing.T, env []string, args ...string) (found map[string]ui.Check, code int) {
	t.Helper()
	return diagnosis(t, env, append([]string{"godkms-hermetic", "doctor"}, args...)...)
}

func diagnosis(t *testing.T, env []string, command ...string) (found map[string]ui.Check, code int) {
	t.Helper()
	cmd := exec.Command(command[0], append(command[1:], "--format", "json", "--cache-dir", filepath.Join(t.TempDir(), "cache"))...)
	cmd.Env = append(os.Environ(), env...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	var all struct{ Checks []ui.Check }
	if err := json.Unmarshal(out, &all); err != nil {
		t.Fatalf("doctor printed %q, %q: %v", out, &errs, err)
	}
	found = map[string]ui.Check{}
	for _, c := range all.Checks {
		if (c.Status == ui.CheckOK) != (c.Hint == "") {
			t.Errorf("%+v: a hint belongs to what is not ok", c)
		}
		found[c.Name] = c
	}
	return found, cmd.ProcessState.ExitCode()
}

// silent is the address of a server that takes connections and says nothing.
func silent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() }) // connections wait in its queue
	return l.Addr().String()
}

// A Docker Engine, a mirror and a configuration that never answer hold doctor up for a bounded time.
func TestDoctorDoesNotHang(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "godkms-hermetic/config.toml")
	writeFile(t, fifo, "")
	if err := errors.Join(os.Remove(fifo), unix.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		env   []string
		code  int
		check map[string]string // status by name
	}{
		"servers":       {[]string{"DOCKER_HOST=tcp://" + silent(t), "XDG_CONFIG_HOME=/nonexistent"}, 0, map[string]string{"docker": "warn", "mirror debian": "warn", "cache": "ok"}},
		"configuration": {[]string{"DOCKER_HOST=unix:///nonexistent", "XDG_CONFIG_HOME=" + dir}, 1, map[string]string{"configuration": "fail", "mirrors": "warn", "cache": "ok"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			start := time.Now()
			found, code := doctor(t, c.env, "--mirror", "debian=http://"+silent(t)+"/debian")
			if took := time.Since(start); took > 15*time.Second {
				t.Errorf("it took %s", took)
			}
			if code != c.code {
				t.Errorf("exit code %d; want %d", code, c.code)
			}
			for name, want := range c.check {
				got := found[name]
				if got.Status != want || want != "ok" && !strings.Contains(got.Detail, "no answer within 8s") && name != "mirrors" {
					t.Errorf("%s: %+v; want %s", name, got, want)
				}
			}
		})
	}
}

// Modules can be built without a qemu.
func TestDoctorWithoutQEMU(t *testing.T) {
	t.Parallel()
	found, code := doctor(t, []string{"PATH=/nonexistent"}, "--offline")
	if got := found["qemu "+runtime.GOARCH]; code != 0 || got.Status != ui.CheckWarn || !strings.Contains(got.Detail, "not on PATH") || !strings.Contains(got.Hint, "install qemu-") {
		t.Errorf("exit code %d, %+v", code, got)
	}
}

// What this machine's kernel doesn't have is read from files.
func TestCheckKernel(t *testing.T) {
	const status = "Name:\tx\nCapEff:\t000001ffffffffff\nSeccomp:\t0\n"
	healthy := map[string]string{
		"sys/user/max_user_namespaces": "100\n", "sys/kernel/osrelease": "6.1.0-1\n", "filesystems": "nodev\tsysfs\nnodev\toverlay\n", "self/status": status,
		"self/uid_map": "0 0 4294967295\n",
	}
	for name, c := range map[string]struct {
		uid   int
		works bool
		files map[string]string
		check string // the one that is not ok
		want  string
		hint  string
	}{
		"healthy":         {1000, true, nil, "", "", ""},
		"switched off":    {0, false, map[string]string{"sys/user/max_user_namespaces": "0\n"}, "user namespaces", "is 0", "user.max_user_namespaces=10000"},
		"not for users":   {1000, false, map[string]string{"sys/kernel/unprivileged_userns_clone": "0\n"}, "user namespaces", "unprivileged_userns_clone is 0", "unprivileged_userns_clone=1"},
		"but for root":    {0, true, map[string]string{"sys/kernel/unprivileged_userns_clone": "0\n"}, "", "", ""},
		"none":            {1000, false, map[string]string{"sys/user/max_user_namespaces": ""}, "user namespaces", "has none", "CONFIG_USER_NS"},
		"apparmor":        {1000, false, map[string]string{"sys/kernel/apparmor_restrict_unprivileged_userns": "1\n"}, "apparmor", "is 1", "userns,"},
		"a profile":       {1000, true, map[string]string{"sys/kernel/apparmor_restrict_unprivileged_userns": "1\n"}, "", "", ""},
		"old":             {1000, false, map[string]string{"sys/kernel/osrelease": "5.10.0-30-amd64\n"}, "overlayfs", "before 5.11", "newer kernel"},
		"not loaded":      {1000, false, map[string]string{"filesystems": "ext4\n"}, "overlayfs", "doesn't have it", "modprobe overlay"},
		"no seccomp":      {1000, true, map[string]string{"self/status": "CapEff:\t0\n"}, "seccomp", "has none", "CONFIG_SECCOMP_FILTER"},
		"a container":     {0, false, map[string]string{"self/status": "CapEff:\t00000000a80425fb\nSeccomp:\t2\n"}, "privileges", "root, without CAP_SYS_ADMIN", "ordinary user"},
		"which is enough": {0, true, map[string]string{"self/status": "CapEff:\t00000000a80425fb\nSeccomp:\t2\n"}, "", "", ""},
	} {
		root := t.TempDir()
		for file, text := range healthy {
			if changed, ok := c.files[file]; ok {
				text = changed
			}
			writeFile(t, filepath.Join(root, "proc", file), text)
		}
		for file, text := range c.files {
			writeFile(t, filepath.Join(root, "proc", file), text)
		}
		for _, got := range checkKernel(root, c.uid, c.works) {
			if got.Name != c.check {
				if got.Status != ui.CheckOK || got.Hint != "" {
					t.Errorf("%s: %+v; want ok", name, got)
				}
			} else if got.Status != ui.CheckWarn || !strings.Contains(got.Detail, c.want) || !strings.Contains(got.Hint, c.hint) {
				t.Errorf("%s: %+v; want warn, %q, %q", name, got, c.want, c.hint)
			}
		}
	}
}

// keyring is a distribution with these keys.
type keyring struct {
	keys    []repo.Key
	err     error
	mirrors []repo.Mirror
}

func (k keyring) Keys() ([]repo.Key, error)                      { return k.keys, k.err }
func (k keyring) Mirrors() []repo.Mirror                         { return k.mirrors }
func (keyring) Probe(context.Context, repo.Mirror) (bool, error) { return true, nil }

func TestToProbe(t *testing.T) {
	of := func(from string, archives ...string) (out []repo.Mirror) {
		for _, a := range archives {
			out = append(out, repo.Mirror{Archive: a, URL: "http://" + from + "/" + a, From: from})
		}
		return out
	}
	for name, c := range map[string]struct {
		own, given string
		want       string
	}{
		"a Debian":                    {"debian", "", "debian debian-security"},
		"a Rocky":                     {"rocky", "", "rocky"},
		"of which nothing is known":   {"gentoo", "", "debian debian-security"},
		"a Rocky, for Fedora":         {"rocky", "fedora", "fedora rocky"},
		"for two of Debian's mirrors": {"", "debian", "debian debian"},
	} {
		all := map[string]prober{}
		for distro, archives := range map[string][]string{"debian": {"debian", "debian-security"}, "rocky": {"rocky"}, "fedora": {"fedora"}, "arch": {"arch"}} {
			k := keyring{mirrors: of(repo.BuiltIn, archives...)}
			if distro == c.given {
				k.mirrors = append(of(repo.Given, archives[0]), k.mirrors[1:]...)
				if distro == "debian" {
					k.mirrors = append(k.mirrors, of(repo.Given, "debian")...)
				}
			}
			all[distro] = k
		}
		var got []string
		for _, a := range toProbe(all, c.own) {
			for _, m := range a.mirrors {
				got = append(got, m.Archive)
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%s: %q are asked; want %q", name, got, c.want)
		}
	}
}

func TestConfigOfMirrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.toml")
	for text, want := range map[string]string{
		`[mirrors]` + "\n" + `debian = "http://a/debian"`:                      "[http://a/debian]",
		`[mirrors]` + "\n" + `debian = ["http://a/debian", "http://b/debian"]`: "[http://a/debian http://b/debian]",
		`[mirrors]` + "\n" + `debian = ["http://a/debian", 1]`:                 "a URL must be a string",
		`[mirrors]` + "\n" + `debian = 1`:                                      "a URL, or a list of URLs",
	} {
		writeFile(t, file, text)
		c := config{}
		got := fmt.Sprint(c.read(file))
		if got == "<nil>" {
			got = fmt.Sprint(c.Mirrors["debian"])
		}
		if !strings.Contains(got, want) {
			t.Errorf("%s: %s; want %s", text, got, want)
		}
	}
	// The user's own file wins over the system's, a list over a list.
	c := config{}
	for _, text := range []string{`mirrors.debian = ["http://a/debian", "http://b/debian"]`, `mirrors.debian = ["http://c/debian"]`} {
		writeFile(t, file, text)
		if err := c.read(file); err != nil {
			t.Fatal(err)
		}
	}
	if got := fmt.Sprint(c.Mirrors["debian"]); got != "[http://c/debian]" {
		t.Errorf("after two files: %s", got)
	}
}

func TestCheckKeys(t *testing.T) {
	now := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	never, past, soon, later := repo.Key{Name: "never"}, repo.Key{Name: "past", Expires: now}, repo.Key{Name: "soon", Expires: now.AddDate(1, 0, 0)}, repo.Key{Name: "later", Expires: now.AddDate(2, 0, 0)}
	for name, c := range map[string]struct {
		keyring
		status, detail string
	}{
		"all valid":      {keyring{keys: []repo.Key{later, never, soon}}, "ok", "3 keys are built in; the next expires on 2031-01-01: soon"},
		"one expired":    {keyring{keys: []repo.Key{later, past}}, "ok", "2 keys are built in, 1 of them expired; the next expires on 2032-01-01: later"},
		"all expired":    {keyring{keys: []repo.Key{past, past}}, "fail", "2 keys are built in, 2 of them expired"},
		"none":           {keyring{}, "fail", "0 keys are built in"},
		"without end":    {keyring{keys: []repo.Key{never, past}}, "ok", "2 keys are built in, 1 of them expired"},
		"not to be read": {keyring{err: errors.New("damaged")}, "fail", "damaged"},
	} {
		if got := checkKeys("x", c.keyring, now); got.Status != c.status || got.Detail != c.detail || (got.Hint == "") != (c.status == "ok") {
			t.Errorf("%s: %+v; want %s, %q", name, got, c.status, c.detail)
		}
	}
}
