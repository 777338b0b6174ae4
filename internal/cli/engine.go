package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/builder/docker"
	"github.com/godkms-hermetic/godkms-hermetic/builder/sandbox"
)

// engineNames are what --engine can be.
var engineNames = []string{"auto", "sandbox", "docker"}

// engineOf is the engine of a run, which is looked for once, by the first kernel that has to be built.
type engineOf struct {
	name string       // of engineNames
	note func(string) // told that auto fell to Docker

	mu     sync.Mutex
	engine builder.Engine
	docker *docker.Engine // to be closed
	err    error          // wraps a *builder.UnavailableError for each engine that was asked; read when the run is over
}

// get gives an engine that works here.
func (e *engineOf) get(ctx context.Context) (builder.Engine, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.engine != nil || e.err != nil {
		return e.engine, e.err
	}
	engine, err := e.choose(ctx)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	e.engine, e.err = engine, err
	return engine, err
}

// refused says whether no engine was found.
func (e *engineOf) refused() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.err != nil
}

func (e *engineOf) choose(ctx context.Context) (builder.Engine, error) {
	var refused error
	if e.name != "docker" {
		if refused = checkSandbox(ctx); refused == nil {
			return sandbox.Engine{}, nil
		}
		if e.name == "sandbox" {
			return nil, refused
		}
	}
	d := docker.New()
	info, err := d.Check(ctx)
	switch {
	case err != nil && refused != nil:
		return nil, noEngineError{refused, err}
	case err != nil:
		return nil, err
	case refused != nil:
		e.note(fmt.Sprintf("building with Docker at %s; %s", info.Host, causes(refused)))
	}
	e.docker = d
	return d, nil
}

// checkSandbox gives nil or a *builder.UnavailableError.
func checkSandbox(ctx context.Context) error {
	err := sandbox.Engine{}.Check(ctx)
	if err == nil || errors.As(err, new(*builder.UnavailableError)) {
		return err
	}
	return &builder.UnavailableError{Engine: "sandbox", Cause: "it can't be started", Hint: "use another engine", Err: err}
}

func (e *engineOf) close() {
	if e.docker != nil {
		e.docker.Close()
	}
}

// noEngineError has the reasons of all engines, a line for each.
type noEngineError []error

func (e noEngineError) Error() string {
	s := "no engine works here:"
	for _, err := range e {
		s += "\n  " + err.Error()
	}
	return s
}
func (e noEngineError) Unwrap() []error { return e }

// causes says in one line why engines don't work, without the ways out.
func causes(err error) string {
	if all, ok := err.(noEngineError); ok {
		var out []string
		for _, err := range all {
			out = append(out, causes(err))
		}
		return "no engine works here: " + strings.Join(out, "; ")
	}
	if e := (*builder.UnavailableError)(nil); errors.As(err, &e) {
		return e.Engine + ": " + e.Cause
	}
	first, _, _ := strings.Cut(err.Error(), "\n")
	return first
}

// minMemory is what the smallest of builds takes.
const minMemory = 64 << 20

// parseMemory reads the limit for a build, in bytes. Nothing is three quarters of this machine's memory; 0 is no limit.
func parseMemory(s string) (int64, error) {
	switch s {
	case "":
		total := memory("/")
		if total == 0 {
			return 0, nil
		}
		return max(total/4*3, minMemory), nil
	case "0":
		return 0, nil
	}
	n, err := parseSize(s)
	if err != nil {
		return 0, fmt.Errorf("%w; 0 is no limit", err)
	}
	if n < minMemory {
		return 0, fmt.Errorf("%q is too little for any build: give at least 64M, or 0 for no limit", s)
	}
	return n, nil
}

// memory is how many bytes this machine has (MemTotal of proc_meminfo(5)), or this process's control group where that is less; 0 when
// it can't be known. root is where /proc and /sys are.
func memory(root string) int64 {
	least := int64(0)
	limit := func(n int64, err error) {
		if err == nil && n > 0 && (least == 0 || n < least) {
			least = n
		}
	}
	b, _ := os.ReadFile(filepath.Join(root, "proc/meminfo"))
	for line := range strings.Lines(string(b)) {
		if kB, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(kB), " kB"), 10, 54)
			limit(n<<10, err)
		}
	}
	// ID:CONTROLLERS:PATH (cgroups(7)). In a container the path may be one of the host, and the group what is mounted.
	b, _ = os.ReadFile(filepath.Join(root, "proc/self/cgroup"))
	for line := range strings.Lines(string(b)) {
		part := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(part) != 3 {
			continue
		}
		mounted, file := "sys/fs/cgroup", "memory.max"
		if part[1] != "" {
			mounted, file = "sys/fs/cgroup/memory", "memory.limit_in_bytes"
			if !strings.Contains(","+part[1]+",", ",memory,") {
				continue
			}
		}
		for group := filepath.Join("/", part[2]); ; group = filepath.Dir(group) { // each is bound by those above it
			b, err := os.ReadFile(filepath.Join(root, mounted, group, file))
			if err == nil {
				limit(strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64)) // "max" is none
			}
			if group == "/" {
				break
			}
		}
	}
	return least
}
