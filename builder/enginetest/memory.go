package enginetest

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
)

const (
	memoryLimit = 256 // MiB
	memoryBound = 4 * memoryLimit
)

// taken adds up what the probe says it took, in MiB. The last line is an error's name, if it had one.
func taken(out string) (mib int, refused string) {
	for line := range strings.Lines(out) {
		n, err := strconv.Atoi(strings.TrimSpace(line))
		if err != nil {
			refused = strings.TrimSpace(line)
		}
		mib += n
	}
	return mib, refused
}

// memory takes four times what a sandbox may have, in every way that a process has. It's ended, or is refused, before it had
// twice of that. It takes it at the pace of a fast machine's program: an engine that looks now and then must look often enough.
func (s suite) memory(t *testing.T) {
	start := func(limit int64) builder.Sandbox {
		spec := s.spec("/writable")
		spec.Memory = limit
		sb, err := s.engine.Start(t.Context(), spec)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { sb.Close() })
		return sb
	}
	hold := func(sb builder.Sandbox, kind string, size int, folder, pause string) (string, error) {
		var out bytes.Buffer
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		err := sb.Run(ctx, builder.Command{
			Args: []string{"enginetest-probe", "hold", kind, strconv.Itoa(size), folder, pause}, Env: environ, Dir: "/", Stdout: &out, Stderr: &out,
		})
		return out.String(), err
	}
	var shared builder.Sandbox
	for _, test := range []struct {
		name, kind, folder, pause string
	}{
		{"Private", "private", "", "1ms"},
		{"Many", "many", "", "1ms"},
		{"Leaderless", "leaderless", "", "1ms"},
		{"Shared", "shared", "", "1ms"},
		{"Tables", "tables", "", "1ms"},
		{"Memfd", "memfd", "", "1ms"},
		{"SysV", "shm", "", "1ms"},
		{"Unlinked", "unlinked", "/writable", "1ms"},
		{"Scratch", "file", "/writable", "1ms"},
		{"Tmp", "file", "/tmp", "1ms"},
		{"Empty", "files", "/writable", "1ms"},
	} {
		t.Run(test.name, func(t *testing.T) {
			size := 64
			if test.kind == "files" {
				size = 8 // of a disk, as it may be
			}
			if out, err := s.holdOutside(t, test.kind, size); err != nil {
				t.Errorf("outside of the sandbox: %v: %s", err, out)
			}
			keeps := test.kind == "file" || test.kind == "files" // beyond its process
			sb := shared
			if sb == nil || keeps {
				sb = start(memoryLimit << 20)
				if shared == nil {
					shared = sb
				}
			}
			begin := time.Now()
			out, err := hold(sb, test.kind, memoryBound, test.folder, test.pause)
			mib, refused := taken(out)
			var over *builder.MemoryError
			var exit *builder.ExitError
			switch {
			case errors.As(err, &over):
				if over.Limit != memoryLimit<<20 {
					t.Errorf("Run() = %#v; want the limit of %d MiB", over, memoryLimit)
				}
				if mib < memoryLimit/2 {
					t.Errorf("ended after %d MiB of %d", mib, memoryLimit)
				}
			case errors.As(err, &exit) && exit.Code == 1 && refused != "":
				t.Logf("refused: %s", refused)
			default:
				t.Errorf("Run() = %v, after %d MiB; want a *MemoryError", err, mib)
			}
			if mib >= 2*memoryLimit {
				t.Errorf("took %d MiB of %d", mib, memoryLimit)
			}
			t.Logf("%d MiB in %v", mib, time.Since(begin).Round(time.Millisecond))
			// The sandbox can be used further. Files that hold the memory may have been left, and no command runs beside them.
			err = sb.Run(t.Context(), builder.Command{Args: []string{"rm", "-f", test.folder + "/held"}, Env: environ, Dir: "/"})
			if err != nil && !(keeps && errors.As(err, &over)) {
				t.Errorf("Run() after a command that took too much = %v", err)
			}
			if !keeps {
				alone(t, sb)
			}
		})
	}
	t.Run("AtOnce", func(t *testing.T) { // however fast; how far it came by then depends on the machine
		if shared == nil {
			shared = start(memoryLimit << 20)
		}
		out, err := hold(shared, "private", memoryBound, "", "0s")
		if mib, _ := taken(out); !errors.As(err, new(*builder.MemoryError)) {
			t.Errorf("Run() = %v, after %d MiB; want a *MemoryError", err, mib)
		}
	})
	t.Run("Within", func(t *testing.T) {
		if shared == nil {
			shared = start(memoryLimit << 20)
		}
		for _, kind := range []string{"private", "file"} {
			out, err := hold(shared, kind, 100, "/writable", "0s")
			if mib, _ := taken(out); err != nil || mib != 100 {
				t.Errorf("hold %s: %v; %q", kind, err, out)
			}
		}
		sh(t, shared, "rm /writable/held")
	})
	t.Run("NoLimit", func(t *testing.T) {
		out, err := hold(start(0), "private", 2*memoryLimit, "", "0s")
		if mib, _ := taken(out); err != nil || mib != 2*memoryLimit {
			t.Errorf("hold: %v; %q", err, out)
		}
	})
	// What belongs to no process, or to the kernel on behalf of one. Only an engine that has the kernel count can hold it to a
	// limit; the others' ends where the kernel's own limits do.
	for _, kind := range []string{"dropped", "sockets", "pipes"} {
		t.Run("Kernel_"+kind, func(t *testing.T) {
			if out, err := s.holdOutside(t, kind, 64); err != nil {
				t.Errorf("outside of the sandbox: %v: %s", err, out)
			}
			if shared == nil {
				shared = start(memoryLimit << 20)
			}
			out, err := hold(shared, kind, memoryLimit*5/4, "", "1ms")
			mib, refused := taken(out)
			t.Logf("took %d MiB of %d: %v %s", mib, memoryLimit, err, refused)
			alone(t, shared)
		})
	}
}

// holdOutside has the probe hold memory outside of any sandbox.
func (s suite) holdOutside(t *testing.T, kind string, mib int) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, s.probe(t), "hold", kind, strconv.Itoa(mib), t.TempDir(), "0s").CombinedOutput()
	if got, _ := taken(string(out)); err == nil && got < mib/2 {
		t.Errorf("outside of the sandbox the probe took %d MiB of %d", got, mib)
	}
	return string(out), err
}

// probe is the path of the probe on this machine.
func (s suite) probe(t *testing.T) string {
	t.Helper()
	for _, layer := range s.root.Layers() {
		if p := filepath.Join(layer, probePath); exists(p) {
			return p
		}
	}
	t.Fatal("no layer has the probe")
	return ""
}
