package host

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
)

// Hook is a file that another program runs, or reads, when a kernel comes or goes or the host starts.
type Hook struct {
	Path  string    `json:"path"` // in the root
	For   string    `json:"for"`  // whose it is, one of HookSystems
	State HookState `json:"state"`
}

// HookState is what there is of a hook.
type HookState string

const (
	HookAbsent    HookState = "absent"
	HookInstalled HookState = "installed"
	HookOutdated  HookState = "outdated" // another version of this program wrote it, or for another place of the program
	HookAltered   HookState = "altered"  // this program wrote it, and somebody has changed it since
	HookForeign   HookState = "foreign"  // somebody else's
)

// HookSystems are those that there are hooks for.
var HookSystems = []string{"dpkg", "kernel-install", "pacman", "systemd"}

// hookSigns are files of which a root with such a system has one.
var hookSigns = map[string][]string{
	"dpkg":           {"/var/lib/dpkg/status"}, // Debian's and Ubuntu's kernels run what is in /etc/kernel
	"kernel-install": {"/usr/bin/kernel-install", "/bin/kernel-install"},
	"pacman":         {"/usr/bin/pacman"},
	"systemd":        {"/usr/lib/systemd/systemd", "/lib/systemd/systemd"},
}

// HookFile is what a hook is to be like.
type HookFile struct {
	Path string      // in a root
	For  string      // one of HookSystems
	Mode fs.FileMode // of a file
	Text []byte      // of a file
	Link string      // target of a link, which has no Text
}

//go:embed hooks
var hookTexts embed.FS

// HookFiles gives all hooks, for a program that they call by an absolute path, or by a name that is looked for in PATH.
func HookFiles(program string) ([]HookFile, error) {
	if !regexp.MustCompile(`^[A-Za-z0-9/._+-]+$`).MatchString(program) {
		return nil, fmt.Errorf("hooks: the path %q of the program can't stand in a script", program)
	}
	const unit = "/usr/lib/systemd/system/godkms-hermetic.service"
	files := []HookFile{
		{Path: "/etc/kernel/postinst.d/40-godkms-hermetic", For: "dpkg", Mode: 0o755},
		{Path: "/etc/kernel/prerm.d/40-godkms-hermetic", For: "dpkg", Mode: 0o755},
		{Path: "/usr/lib/kernel/install.d/40-godkms-hermetic.install", For: "kernel-install", Mode: 0o755},
		{Path: "/usr/share/libalpm/scripts/godkms-hermetic", For: "pacman", Mode: 0o755},
		{Path: "/usr/share/libalpm/hooks/70-godkms-hermetic-install.hook", For: "pacman", Mode: 0o644},
		{Path: "/usr/share/libalpm/hooks/70-godkms-hermetic-remove.hook", For: "pacman", Mode: 0o644},
		{Path: unit, For: "systemd", Mode: 0o644},
		{Path: "/etc/systemd/system/multi-user.target.wants/" + path.Base(unit), For: "systemd", Link: unit}, // as 'systemctl enable' does it
	}
	common, err := hookTexts.ReadFile("hooks/common.sh")
	if err != nil {
		return nil, err
	}
	for i, f := range files {
		if f.Link != "" {
			continue
		}
		text, err := hookTexts.ReadFile(path.Join("hooks", f.Path)) // kept below the paths that they have
		if err != nil {
			return nil, err
		}
		text = bytes.Replace(text, []byte("@COMMON@\n"), common, 1)
		text = bytes.ReplaceAll(text, []byte("@PROGRAM@"), []byte(program))
		rest := bytes.Replace(text, []byte("@MARK@\n"), nil, 1)
		files[i].Text = bytes.Replace(text, []byte("@MARK@\n"), fmt.Appendf(nil, markLine, sum(rest)), 1)
	}
	return files, nil
}

// markLine says of a file that this program wrote it, and has the SHA-256 of all its other lines.
const markLine = "# Written by 'godkms-hermetic hooks', which won't touch it once it's changed. The sum of its other lines: %s\n"

var mark = regexp.MustCompile(`(?m)^# Written by 'godkms-hermetic hooks'.* ([0-9a-f]{64})\n`)

func sum(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// Hooks gives the state of every hook of the root, in a fixed order.
func (r *Root) Hooks(program string) ([]Hook, error) {
	files, err := HookFiles(program)
	if err != nil {
		return nil, err
	}
	var out []Hook
	for _, f := range files {
		_, state, err := r.hook(f)
		if err != nil {
			return nil, err
		}
		out = append(out, Hook{f.Path, f.For, state})
	}
	return out, nil
}

// hook gives the path on this machine of a hook, and its state.
func (r *Root) hook(want HookFile) (at string, s HookState, err error) {
	dir, err := r.Path(path.Dir(want.Path))
	if err != nil {
		return "", "", err
	}
	at = filepath.Join(dir, path.Base(want.Path)) // itself, if it's a link
	info, err := os.Lstat(at)
	if errors.Is(err, fs.ErrNotExist) {
		return at, HookAbsent, nil
	}
	if err != nil {
		return at, "", err
	}
	if want.Link != "" {
		if to, err := os.Readlink(at); err == nil && to == want.Link {
			return at, HookInstalled, nil
		}
		return at, HookForeign, nil
	}
	if !info.Mode().IsRegular() || info.Size() > 1<<16 {
		return at, HookForeign, nil
	}
	text, err := os.ReadFile(at)
	if err != nil {
		return at, "", err
	}
	m := mark.FindSubmatchIndex(text)
	switch {
	case m == nil:
		return at, HookForeign, nil
	case string(text[m[2]:m[3]]) != sum(slices.Concat(text[:m[0]], text[m[1]:])) || info.Mode().Perm() != want.Mode:
		return at, HookAltered, nil
	case !bytes.Equal(text, want.Text):
		return at, HookOutdated, nil
	}
	return at, HookInstalled, nil
}

// HookSystems are those of HookSystems that the root has.
func (r *Root) HookSystems() ([]string, error) {
	var out []string
	for _, name := range HookSystems {
		for _, sign := range hookSigns[name] {
			at, err := r.Path(sign)
			if err != nil {
				return nil, err
			}
			if _, err := os.Stat(at); err == nil {
				out = append(out, name)
				break
			}
		}
	}
	return out, nil
}

// InstallHooks writes the hooks for some systems that are absent or outdated, each whole or not at all. Those that somebody altered
// or that are somebody else's stay, and the error says so; it wraps ErrRefused then. One's failure stops no other.
func (r *Root) InstallHooks(program string, systems []string) error {
	return r.changeHooks(program, systems, func(f HookFile, at string, s HookState) error {
		switch s {
		case HookInstalled:
			return nil
		case HookAbsent, HookOutdated:
			return place(f, at)
		case HookAltered:
			return fmt.Errorf("%s has been changed, and is left alone: %w; remove it, and install the hooks again", at, ErrRefused)
		}
		return fmt.Errorf("%s isn't of godkms-hermetic, and is left alone: %w; move it away, and install the hooks again", at, ErrRefused)
	})
}

// RemoveHooks removes the hooks for some systems, but those that somebody altered, as InstallHooks has it.
func (r *Root) RemoveHooks(program string, systems []string) error {
	return r.changeHooks(program, systems, func(f HookFile, at string, s HookState) error {
		switch s {
		case HookInstalled, HookOutdated:
			return os.Remove(at)
		case HookAltered:
			return fmt.Errorf("%s has been changed, and is left alone: %w; remove it by hand", at, ErrRefused)
		}
		return nil
	})
}

func (r *Root) changeHooks(program string, systems []string, change func(HookFile, string, HookState) error) error {
	files, err := HookFiles(program)
	if err != nil {
		return err
	}
	var failed []error
	for _, f := range files {
		if !slices.Contains(systems, f.For) {
			continue
		}
		at, s, err := r.hook(f)
		if err == nil {
			err = change(f, at, s)
		}
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

// place puts a hook to its path on this machine. Until then it has a name that nothing runs.
func place(f HookFile, at string) error {
	dir := filepath.Dir(at)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if f.Link != "" {
		return os.Symlink(f.Link, at)
	}
	tmp, err := os.CreateTemp(dir, ".godkms-hermetic-*.tmp")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(f.Text)
	if err = errors.Join(err, tmp.Chmod(f.Mode), tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return durable.Rename(tmp.Name(), at)
}
