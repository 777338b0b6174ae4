package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/internal/dkmstest"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// The verdicts.
const (
	built   = "built"
	skipped = "skipped"
	failed  = "failed"
)

// side is what one of the two made of a module.
type side struct {
	Verdict string   `json:"verdict"`
	Code    int      `json:"code"`         // exit code
	As      int      `json:"as,omitempty"` // of ours: the exit code that dkms has for what it says, as far as there is one
	Reason  string   `json:"reason,omitempty"`
	Modules []string `json:"modules"` // file names, sorted
	Seconds float64  `json:"seconds"`
}

func (s side) String() string { return fmt.Sprintf("%s %d", s.Verdict, s.Code) }

// row is one module for one kernel.
type row struct {
	Package   string `json:"package"`
	Kernel    string `json:"kernel"`
	DKMS      side   `json:"dkms"`
	Ours      side   `json:"ours"`
	SameBytes int    `json:"same_bytes"` // of the modules that both built, how many are the same
	// OtherErrors says that make failed on both sides, and that of what the compiler found on one it found nothing on the other.
	OtherErrors bool   `json:"other_errors,omitempty"`
	Proof       string `json:"proof,omitempty"`
	Explained   bool   `json:"explained,omitempty"`
	Error       string `json:"error,omitempty"` // why there is no comparison
}

func (r row) sameModules() bool { return slices.Equal(r.DKMS.Modules, r.Ours.Modules) }

// different: the verdicts, the reasons of a failure or the modules are not the same. An error is a difference that nothing explains.
func (r row) different() bool {
	return r.Error != "" || r.DKMS.Verdict != r.Ours.Verdict || r.otherStep() || r.OtherErrors || !r.sameModules()
}

// otherStep says that both fail, but not at the same step.
func (r row) otherStep() bool {
	return r.DKMS.Verdict == failed && r.Ours.Verdict == failed && r.Ours.As != 0 && r.Ours.As != r.DKMS.Code
}

func (r row) line() string {
	if r.Error != "" {
		first, _, _ := strings.Cut(r.Error, "\n")
		return fmt.Sprintf("%s\t%s\t-\t-\t-\t-\t-\t-\tNOT COMPARED: %s", r.Package, r.Kernel, first)
	}
	verdict := "same"
	switch {
	case r.different() && r.Explained:
		verdict = "different, explained"
	case r.different():
		verdict = "DIFFERENT"
	}
	modules := "-"
	if n := len(r.DKMS.Modules); n > 0 {
		modules = fmt.Sprint(n)
		if !r.sameModules() {
			modules = fmt.Sprintf("%d/%d", n, len(r.Ours.Modules))
		}
	}
	ours := r.Ours.String()
	if r.otherStep() {
		ours += fmt.Sprintf(" (as %d)", r.Ours.As)
	}
	return fmt.Sprintf("%s\t%s\t%s\t%s\t%s\t%.2f s\t%.2f s\t%.2f\t%s", r.Package, r.Kernel, r.DKMS, ours, modules,
		r.DKMS.Seconds, r.Ours.Seconds, r.Ours.Seconds/r.DKMS.Seconds, verdict)
}

// why says what each has to say.
func (r row) why() string {
	if r.Error != "" {
		return r.Error
	}
	return fmt.Sprintf("dkms: %s %s\nours: %s %s\n%s", r.DKMS, r.DKMS.Reason, r.Ours, r.Ours.Reason, r.Proof)
}

// subject is a module's source, in the forms that the two take.
type subject struct {
	label           string // name and version
	source          string // for the tool: a .deb or a folder
	tree            string // for dkms: a folder with usr/src/MODULE-VERSION
	module, version string
	with            []string // packages that are on dkms's root; the tool finds out by itself
	first           []string // what BUILD_DEPENDS names and the tree has, as MODULE/VERSION
	err             error    // why there is none of this
}

// comparison is one run.
type comparison struct {
	options
	version string // of the tool
	work    string
	dkms    *dkmstest.DKMS
	count   atomic.Int64
	images  sync.Map // of header images that were made, by kernel and packages
}

func newComparison(ctx context.Context, o options, work string) (c *comparison, err error) {
	c = &comparison{options: o, work: work}
	if c.tool, err = filepath.Abs(o.tool); err != nil {
		return nil, err
	}
	version, err := output(ctx, c.tool, "version")
	if err != nil {
		return nil, fmt.Errorf("%w; 'make build' makes the program", err)
	}
	c.version = strings.TrimSpace(version)
	if c.cache, err = filepath.Abs(o.cache); err != nil {
		return nil, err
	}
	c.dkms, err = dkmstest.Open(c.cache)
	return c, err
}

// compare has both build a module for a kernel.
func (c *comparison) compare(ctx context.Context, s subject, k kernels.Kernel) row {
	r := row{Package: s.label, Kernel: k.Release}
	err := s.err
	if err == nil {
		err = c.both(ctx, s, k, &r)
	}
	if err != nil {
		r.Error = err.Error()
	}
	return r
}

func (c *comparison) both(ctx context.Context, s subject, k kernels.Kernel, r *row) error {
	root, err := c.dkms.Root(ctx, k, s.with)
	if err != nil {
		return err
	}
	defer root.Close()
	tool, err := c.ready(ctx, s, k)
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeoutCause(ctx, c.timeout, fmt.Errorf("it took longer than %s", c.timeout))
	defer cancel()
	theirs, err := root.Build(limited, dkmstest.Job{Tree: s.tree, Module: s.module, Version: s.version, First: s.first})
	if err != nil {
		return err
	}
	r.DKMS = side{Verdict: failed, Code: theirs.Code, Seconds: theirs.Seconds}
	switch theirs.Code {
	case 0:
		r.DKMS.Verdict, r.DKMS.Modules = built, slices.Sorted(maps.Keys(theirs.Modules))
	case 77:
		r.DKMS.Verdict = skipped
	}
	if theirs.Code != 0 {
		r.DKMS.Reason = complaint(theirs.Output)
	}
	ours, err := tool(ctx)
	if err != nil {
		return err
	}
	r.Ours = ours.side
	for name, b := range theirs.Modules {
		if bytes.Equal(b, ours.modules[name]) {
			r.SameBytes++
		}
	}
	if r.DKMS.Verdict == failed && r.Ours.Verdict == failed {
		a, b := faults(theirs.Log), faults(ours.log)
		common := slices.ContainsFunc(a, func(f string) bool { return slices.Contains(b, f) })
		if r.OtherErrors = !common && len(a)+len(b) > 0; r.OtherErrors {
			r.Proof = fmt.Sprintf("dkms: %s\nours: %s", strings.Join(a, "\n      "), strings.Join(b, "\n      "))
		}
	}
	if r.different() && r.DKMS.Verdict == built {
		r.Proof, r.Explained, err = c.prove(ctx, k, root, theirs.Modules, ours)
	}
	return err
}

// complaint is what dkms prints about an error.
func complaint(output string) string {
	_, after, ok := strings.Cut(output, "Error!")
	if !ok {
		return lastLine(output)
	}
	return strings.Join(strings.Fields(after), " ")
}

var fault = regexp.MustCompile(`(?m)(?:[^\s/]+:\d+:\d+: (?:fatal )?error: |^ERROR: |: undefined reference to ).*$`)

// faults are the errors of the compiler and of modpost in the log of a build, without the folders of files. Which comes first is up
// to how many processes there are.
func faults(log string) []string { return fault.FindAllString(log, -1) }

// outcome is what the tool came to.
type outcome struct {
	side
	modules map[string][]byte
	log     string
}

// ready gets everything there that the tool needs for a build, and gives the build. It has a cache of its own, with the indexes,
// packages and header images of all, and without any result.
func (c *comparison) ready(ctx context.Context, s subject, k kernels.Kernel) (func(context.Context) (outcome, error), error) {
	cache, out := c.folder("cache"), c.folder("out")
	if err := os.Mkdir(cache, 0o755); err != nil {
		return nil, err
	}
	for _, part := range []string{"index", "images"} {
		if err := os.Symlink(filepath.Join(c.cache, part), filepath.Join(cache, part)); err != nil {
			return nil, err
		}
	}
	args := []string{"build", s.source, "--kernels", k.String(), "--out", out, "--format", "json", "--cache-dir", cache, "--quiet"}
	if len(s.first) > 0 {
		args = append(args, "--depends", filepath.Join(s.tree, "usr/src"))
	}
	// A build whose time is over at once has its header image made; whatever else is in its way is so for the next too.
	image := k.String() + " " + strings.Join(s.with, " ")
	if _, there := c.images.Load(image); !there {
		if _, err := output(ctx, c.tool, append(args, "--timeout=1ms")...); err != nil && !errors.As(err, new(*exec.ExitError)) {
			return nil, err
		}
		c.images.Store(image, true)
	}
	args = append(args, "--offline", "--timeout="+c.timeout.String())
	return func(ctx context.Context) (outcome, error) {
		defer os.RemoveAll(cache)
		defer os.RemoveAll(out)
		return c.build(ctx, s.module, args)
	}, nil
}

func (c *comparison) build(ctx context.Context, module string, args []string) (outcome, error) {
	cmd := command(ctx, c.tool, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	start := time.Now()
	err := cmd.Run()
	o := outcome{side: side{Verdict: failed, Seconds: time.Since(start).Seconds()}, modules: map[string][]byte{}}
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		return o, err
	}
	o.Code = cmd.ProcessState.ExitCode()
	if o.Code == 21 || o.Code > 77 || o.Code < 0 { // no header image, or interrupted
		return o, fmt.Errorf("%s: exit code %d: %s", filepath.Base(c.tool), o.Code, lastLine(stderr.String()))
	}
	type result struct {
		Module, Status, Reason, Log string
		DKMSCode                    int `json:"dkms_code"`
		Modules                     []struct{ Path string }
	}
	var got struct{ Results []result }
	err = json.Unmarshal(stdout.Bytes(), &got)
	i := slices.IndexFunc(got.Results, func(r result) bool { return r.Module == module })
	if err != nil || i < 0 { // the source or the command line is wrong
		o.Reason = lastLine(stderr.String())
		return o, nil
	}
	r := got.Results[i]
	o.Reason, o.As = r.Reason, r.DKMSCode
	switch {
	case o.Code == 0 && r.Status == built:
		o.Verdict = built
	case o.Code == 77 && r.Status == skipped:
		o.Verdict = skipped
	}
	for _, m := range r.Modules {
		if o.modules[filepath.Base(m.Path)], err = os.ReadFile(m.Path); err != nil {
			return o, err
		}
	}
	o.Modules = slices.Sorted(maps.Keys(o.modules))
	if r.Log != "" {
		log, err := os.ReadFile(r.Log)
		if err != nil {
			return o, err
		}
		o.log = string(log)
	}
	return o, nil
}

// folder is a path that nothing has been at.
func (c *comparison) folder(name string) string {
	return filepath.Join(c.work, fmt.Sprintf("%s-%d", name, c.count.Add(1)))
}

// command is a program that ends when ctx does: it is asked to first. Ctrl-C on the terminal is for this program alone.
func command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// output runs a program and gives what it prints. Its error has what it complains about.
func output(ctx context.Context, name string, args ...string) (string, error) {
	out, err := command(ctx, name, args...).Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("%s %q: %w: %s", filepath.Base(name), args, err, lastLine(string(exit.Stderr)))
	}
	return string(out), err
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}
