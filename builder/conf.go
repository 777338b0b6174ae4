package builder

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/builder/dkms"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// evaluationLimit is how long a dkms.conf may take. Tests lower it.
var evaluationLimit = time.Minute

// Evaluation is what the dkms.conf of a source comes to for one kernel.
type Evaluation struct {
	Plan     dkms.Plan
	Compiler string        // CONFIG_CC_VERSION_TEXT of the kernel, or the locked one where it says none
	Took     time.Duration // by bash, for the files alone
}

// Evaluate says what a job would do, without doing it: it needs the job's root and an engine, but neither the cache nor a
// compiler.
func (b *Builder) Evaluate(ctx context.Context, j Job, w Watch) (Evaluation, error) {
	engine, err := b.Engine(ctx)
	if err != nil {
		return Evaluation{}, err
	}
	w.phase("root")
	root, err := b.Root(ctx, j.Lock, w.Progress)
	if err != nil {
		return Evaluation{}, err
	}
	defer root.Close()
	w.phase("evaluating")
	s, headers, err := b.enter(ctx, engine, root, j, &logBuffer{stream: w.Log})
	if err != nil {
		return Evaluation{}, err
	}
	defer s.sandbox.Close()
	var e Evaluation
	if e.Compiler, err = s.configure(headers, j.Lock); err != nil {
		return Evaluation{}, err
	}
	start := time.Now()
	e.Plan, err = s.plan(ctx)
	e.Took = time.Since(start)
	return e, err
}

// target is what the dkms.conf of a job is evaluated for.
func target(j Job, jobs int) dkms.Target {
	k := j.Lock.Kernel
	return dkms.Target{
		Module: j.Source.Module, Version: j.Source.Version,
		Distro: k.Distro, Release: k.Release, Machine: k.Machine(), Jobs: max(1, jobs),
	}
}

func (j Job) input() dkms.Input {
	return dkms.Input{Conf: j.Source.conf, Overrides: j.Overrides, Directives: j.Directives}
}

// plan evaluates the dkms.conf.
func (s *session) plan(ctx context.Context) (dkms.Plan, error) {
	const step = "evaluating dkms.conf"
	ctx, cancel := context.WithTimeoutCause(ctx, evaluationLimit,
		fmt.Errorf("dkms.conf was not evaluated within %s: does it loop, or wait for input?", evaluationLimit))
	defer cancel()
	if len(s.input.Overrides) > 0 {
		args := []string{"sh", "-c", `mkdir -p "$1" && tar -x -C "$1" -f -`, "sh", dkms.OverrideFolder}
		if err := s.run(ctx, Command{Args: args, Stdin: overrides(s.input.Overrides), Stderr: s.log}); err != nil {
			return dkms.Plan{}, &StepError{Step: "unpacking the overrides", Err: err}
		}
	}
	var out bytes.Buffer
	said := &head{w: s.log}
	last := &lastLine{w: said}
	stdout := &bounded{w: &out, limit: maxDirectives}
	if err := s.run(ctx, Command{Args: s.target.Evaluation(s.input), Dir: s.target.Build(), Stdout: stdout, Stderr: last}); err != nil {
		return dkms.Plan{}, &StepError{step, err, last.If(true), 8}
	}
	conf, err := dkms.Parse(&out, said.bytes, s.input)
	var plan dkms.Plan
	if err == nil {
		plan, err = conf.Plan(s.target)
	}
	if err != nil {
		fmt.Fprintf(s.log, "%s\n", err)
		return dkms.Plan{}, err
	}
	for _, notice := range plan.Notices {
		fmt.Fprintf(s.log, "%s\n", notice)
	}
	return plan, nil
}

// overrides is a tar of them.
func overrides(list []dkms.Override) io.Reader {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, o := range list {
		w.WriteHeader(&tar.Header{Name: o.Name, Mode: 0o644, Size: int64(len(o.Text)), ModTime: Epoch}) // into memory
		w.Write(o.Text)
	}
	w.Close()
	return &b
}

// compilers is what dkms exports of the compiler and the linker that a kernel was built with. A compiler of another family or major
// version than the locked one is an error, unless the lock says that it was asked for: the module would be built by another program
// than the kernel.
func compilers(t dkms.Target, text string, l kernels.Lock) ([]string, error) {
	c, err := kernels.ParseCompiler(text)
	if err != nil && !l.Forced {
		return nil, fmt.Errorf("%w; the lock of %s has %q, and --compiler %s takes that all the same", err, l.Kernel, l.Compiler, l.Compiler)
	}
	program, _, _ := strings.Cut(text, " ")
	if t.Clang() { // its text is like "Debian clang version 14.0.6"
		program = "clang"
	}
	if c.String() != l.Compiler {
		if !l.Forced {
			return nil, fmt.Errorf("the kernel was built by %q, but the lock of %s has %q; --compiler %s takes that all the same",
				text, l.Kernel, l.Compiler, l.Compiler)
		}
		family, _, _ := strings.Cut(l.Compiler, "-")
		if isClang := family == "clang"; isClang != t.Clang() {
			return nil, fmt.Errorf("the kernel was built by %q, and its headers ask for the tools of that: %s can't stand in", text, l.Compiler)
		}
		program = l.Compiler
	}
	env := []string{"CC=" + program, "KERNEL_CC=" + program}
	if t.Config["CONFIG_LD_IS_LLD"] == "y" {
		env = append(env, "LD=ld.lld", "KERNEL_LD=ld.lld")
	}
	return env, nil
}

// checkCompiler asks the compiler that kbuild is going to run which one it is, and holds it against the lock. Only the log tells of another
// point release than the kernel's: those have the same ABI and options, distributions mix them in each update of either, and a module
// that the kernel would refuse is found when it is checked.
func (s *session) checkCompiler(ctx context.Context, l kernels.Lock) error {
	const step = "asking the compiler for its version"
	program := "gcc"
	if s.target.Clang() {
		program = "clang"
	}
	var out bytes.Buffer
	last := &lastLine{w: s.log}
	if err := s.run(ctx, Command{Args: []string{program, "--version"}, Stdout: &bounded{w: &out, limit: 64 << 10}, Stderr: last}); err != nil {
		return &StepError{Step: step, Err: err, Output: last.If(true)}
	}
	line, _, _ := strings.Cut(out.String(), "\n")
	have, err := kernels.ParseCompiler(line)
	if err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	if have.String() != l.Compiler {
		return fmt.Errorf("%s: it says %q, but the lock of %s has %q", step, line, l.Kernel, l.Compiler)
	}
	kernel, err := kernels.ConfigCompiler(s.target.Config)
	switch {
	case err != nil: // an old kernel, or a text of its own: compilers has judged it
	case kernel.String() != l.Compiler:
		fmt.Fprintf(s.log, "# the kernel was built by %q; %s stands in for it, as --compiler says\n", kernel.Text, l.Compiler)
	case kernel.Version != have.Version:
		fmt.Fprintf(s.log, "# the kernel was built by another release of %s, %s; this is %s\n", l.Compiler, kernel.Version, have.Version)
	}
	return nil
}

// DKMSCode is the exit code that dkms ends with where a job fails with err: 8 for a bad dkms.conf, 5 and 6 for a patch, 7 for a module
// that was not made, 10 for make, a script's own, 13 for a module of BUILD_DEPENDS, 21 for a kernel without headers. It is 0 where dkms knows no such failure. A job
// that was skipped has no error; dkms ends it with 77.
func DKMSCode(err error) int {
	if coded := (interface{ DKMSCode() int })(nil); errors.As(err, &coded) {
		return coded.DKMSCode()
	}
	if errors.Is(err, kernels.ErrNotFound) {
		return 21
	}
	return 0
}

func exitCode(err error) int {
	if exit := (*ExitError)(nil); errors.As(err, &exit) {
		return exit.Code
	}
	return 0
}

// head passes a log on and remembers its beginning.
type head struct {
	w     io.Writer
	bytes []byte
}

func (h *head) Write(p []byte) (int, error) {
	const most = 64 << 10
	h.bytes = append(h.bytes, p[:min(len(p), most-len(h.bytes))]...)
	return h.w.Write(p)
}
