package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
)

// scriptTime is how long a script of a module may take.
const scriptTime = 10 * time.Minute

// maxScript is more than a script of an artifact has, in bytes.
const maxScript = 64 << 20

// scriptOutput is how much of what a script prints is kept, in bytes.
const scriptOutput = 8 << 10

// script is one of a dkms.conf's that runs on the host.
type script struct {
	name       string // "PRE_INSTALL"
	command    string // its path in the source, and arguments
	executable bool
	content    []byte
}

// readScripts reads an artifact's scripts, by name.
func readScripts(extras []artifact.Extra) (map[string]script, error) {
	out := map[string]script{}
	for _, e := range extras {
		if !slices.Contains(artifact.ScriptNames, e.Name) {
			continue
		}
		r, err := e.Open()
		if err != nil {
			return nil, err
		}
		b, err := io.ReadAll(r)
		r.Close()
		if err != nil {
			return nil, err
		}
		out[e.Name] = script{e.Name, e.Command, e.Executable, b}
	}
	return out, nil
}

// run runs a script as dkms does: in the folder of the module's source, or an empty one where there is none, without a shell. Where
// it isn't run, ran is false and a warning says why.
func (r *Root) run(ctx context.Context, s script, g Registration, k artifact.Kernel) (ran bool, err error) {
	if s.command == "" {
		return false, nil
	}
	what := fmt.Sprintf("%s of %s/%s, %q", s.name, g.Module, g.Version, s.command)
	if !r.IsHost() {
		r.warnf("%s is not run: %s is not the root of this machine", what, r.dir)
		return false, nil
	}
	args := strings.Fields(s.command)
	if !s.executable || len(args) == 0 {
		r.warnf("%s is not run: the script is not executable", what)
		return false, nil
	}
	base, err := r.state("tmp")
	if err != nil {
		return false, err
	}
	tmp, err := os.MkdirTemp(base, "script-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(tmp)
	program, dir := filepath.Join(tmp, path.Base(args[0])), filepath.Join(tmp, ".source")
	if err := errors.Join(os.WriteFile(program, s.content, 0o700), os.Mkdir(dir, 0o755)); err != nil {
		return false, err
	}
	if g.Source != "" {
		if p, err := r.Path(g.Source); err == nil {
			if info, err := os.Stat(p); err == nil && info.IsDir() {
				dir = p
			}
		}
	}
	timed, cancel := context.WithTimeoutCause(ctx, scriptTime, fmt.Errorf("it took longer than %s", scriptTime))
	defer cancel()
	out := &tail{}
	for range 10 {
		cmd := exec.CommandContext(timed, program, args[1:]...)
		cmd.Dir = dir
		cmd.Env = []string{
			"PATH=" + systemPath, "HOME=/root", "LC_ALL=C",
			"kernelver=" + k.Release, "arch=" + machine(k.Arch), "module=" + g.Module, "module_version=" + g.Version,
			"dkms_tree=/var/lib/dkms", "source_tree=/usr/src", "kernel_source_dir=/lib/modules/" + k.Release + "/build",
		}
		cmd.Stdout, cmd.Stderr = out, out
		if err = runToEnd(cmd); !errors.Is(err, unix.ETXTBSY) { // a process that is just being started elsewhere holds the file open
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if timed.Err() != nil {
		err = context.Cause(timed)
	}
	if err != nil {
		return true, fmt.Errorf("%s: %w%s", what, err, out)
	}
	return true, nil
}

// tail keeps the end of what is written.
type tail struct{ b []byte }

func (t *tail) Write(b []byte) (int, error) {
	t.b = append(t.b, b...)
	t.b = t.b[max(0, len(t.b)-scriptOutput):]
	return len(b), nil
}

// String gives what was written, if anything was, to follow an error.
func (t *tail) String() string {
	if text := bytes.TrimSpace(t.b); len(text) > 0 {
		return ":\n" + string(text)
	}
	return ""
}
