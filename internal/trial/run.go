package trial

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/internal/qemu"
)

// Options say what is tried, on what, and how.
type Options struct {
	QEMU     qemu.Program
	Kernel   string   // path of the file that boots
	Needed   []Module // modules of the kernel, each after what it needs
	Modules  []Module // that are tried, likewise
	LoadOnly bool
	Init     []byte        // this program, static, for the kernel's architecture
	Memory   int64         // bytes
	Timeout  time.Duration // of each step
}

// Run makes a trial.
func Run(ctx context.Context, o Options) (Result, error) {
	t := task{Port: o.QEMU.Port(), LoadOnly: o.LoadOnly, Step: int64(o.Timeout)}
	entries := []entry{{name: "dev/"}, {name: "proc/"}, {name: "sys/"}, {name: "tmp/"}, {"init", 0o755, o.Init}}
	for _, m := range o.Needed {
		t.Needed = append(t.Needed, m.Name)
		entries = append(entries, entry{"modules/" + m.Name, 0o644, m.File})
	}
	for _, m := range o.Modules {
		t.Modules = append(t.Modules, tried{m.Name, strings.Join(m.Params, " ")})
		entries = append(entries, entry{"modules/" + m.Name, 0o644, m.File})
	}
	b, err := json.Marshal(t)
	if err != nil {
		return Result{}, err
	}
	entries = append(entries, entry{"task", 0o644, b})
	var data bytes.Buffer
	var accel string
	start := time.Now()
	err = o.QEMU.Run(ctx, qemu.Machine{
		Kernel: o.Kernel,
		Initrd: func(w io.Writer) error { return archive(w, entries) },
		Append: []string{"quiet", "rdinit=/init", "--", marker},
		Memory: o.Memory,
		Start: func(a string) (console, out io.Writer) {
			accel = a
			data.Reset()
			return os.Stderr, &data
		},
	})
	fmt.Fprintf(os.Stderr, "%s\n%s %v %v\n", data.String(), accel, time.Since(start), err)
	return Result{}, err
}
