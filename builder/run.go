package builder

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/builder/dkms"
	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/kmod"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// Bounds of what is taken from a sandbox, in bytes.
const (
	maxHeaders    = 32 << 20
	maxDirectives = 4 << 20
)

// maxOutput bounds the modules of a build, all together. Tests lower it.
var maxOutput int64 = 1 << 30

// StepError says which step of a build failed.
type StepError struct {
	Step   string // "make"
	Err    error  // an *ExitError, or why it could not be run
	Output string // the last line that the step printed, for steps that say what is wrong in their last line
	dkms   int    // dkms's exit code; see DKMSCode
}

func (e *StepError) Error() string {
	if exit := (*ExitError)(nil); errors.As(e.Err, &exit) && exit.Signal == "" {
		if e.Output != "" {
			return fmt.Sprintf("%s: %s", e.Step, e.Output)
		}
		return fmt.Sprintf("%s failed with exit code %d", e.Step, exit.Code)
	}
	return fmt.Sprintf("%s failed: %v", e.Step, e.Err)
}

func (e *StepError) Unwrap() error { return e.Err }

// DKMSCode is the exit code that dkms ends with where this step fails.
func (e *StepError) DKMSCode() int { return e.dkms }

// output is what a build came to: modules that were checked, or the reason for a skip.
type output struct {
	skip     string
	compiler string  // CONFIG_CC_VERSION_TEXT of the kernel
	symvers  v1.Hash // of the kernel's Module.symvers
	files    []artifact.File
	extras   []artifact.Extra
	spool    *os.File
}

func (o *output) Close() {
	if o.spool != nil {
		o.spool.Close()
	}
}

// session is one job in its sandbox.
type session struct {
	sandbox   Sandbox
	target    dkms.Target
	input     dkms.Input
	installed installed
	env       []string
	log       *logBuffer
}

// enter starts a sandbox for a job and puts the sources into it. The caller closes its sandbox.
func (b *Builder) enter(ctx context.Context, engine Engine, root Root, j Job, log *logBuffer) (_ *session, headers memFS, err error) {
	k := j.Lock.Kernel
	t := target(j, b.Jobs)
	installed, err := install(j, t)
	if err != nil {
		return nil, nil, err
	}
	sources := append([]string{t.Source()}, installed.sources...)
	for _, dir := range sources {
		if err := uncovered(root, dir); err != nil {
			return nil, nil, err
		}
	}
	scratch := slices.Concat([]string{"/tmp", dkms.Tree}, sources, installed.modules)
	sandbox, err := engine.Start(ctx, Spec{Root: root, Kernel: k, Scratch: scratch, Memory: b.Memory, Surroundings: b.Surroundings})
	if err != nil {
		return nil, nil, fmt.Errorf("start the sandbox: %w", err)
	}
	defer func() {
		if err != nil {
			sandbox.Close()
		}
	}()
	s := &session{sandbox: sandbox, target: t, input: j.input(), installed: installed, env: environment(t), log: log}
	fmt.Fprintf(log, "# %s %s for %s with %s\n", t.Module, t.Version, k, j.Lock.Compiler)
	if headers, err = s.unpack(ctx, j.Source.Tar()); err != nil {
		return nil, nil, err
	}
	if err = s.install(ctx); err != nil {
		return nil, nil, err
	}
	return s, headers, nil
}

// run builds a job in a new sandbox and checks what came out.
func (b *Builder) run(ctx context.Context, engine Engine, root Root, j Job, w Watch, log *logBuffer) (*output, error) {
	k := j.Lock.Kernel
	w.phase("building")
	s, headers, err := b.enter(ctx, engine, root, j, log)
	if err != nil {
		return nil, err
	}
	defer s.sandbox.Close()
	known := make(chan facts, 1)
	go func() { known <- readFacts(headers, k) }() // some twenty milliseconds, beside the compiler
	compiler, err := s.configure(headers, j.Lock)
	if err != nil {
		return nil, err
	}
	if err := s.checkCompiler(ctx, j.Lock); err != nil {
		return nil, err
	}
	plan, err := s.plan(ctx)
	if err != nil {
		return nil, err
	}
	if plan.Skip != "" {
		f := <-known
		if f.err != nil {
			return nil, f.err
		}
		return &output{skip: plan.Skip, compiler: compiler, symvers: f.symvers}, nil
	}
	for _, warning := range plan.Warnings {
		w.warn(warning)
	}
	if err := s.installed.satisfy(plan.Depends); err != nil {
		return nil, err
	}
	scripts, err := hostScripts(j.Source, plan.Scripts)
	if err != nil {
		return nil, err
	}
	for _, step := range plan.Steps {
		fmt.Fprintf(log, "\n# %s\n", step.Name)
		if step.Script != "" && s.run(ctx, Command{Args: []string{"test", "-x", step.Script}, Dir: s.target.Build()}) != nil && ctx.Err() == nil {
			w.warn(fmt.Sprintf("the %s script %q is not there or not executable: it was not run, as under dkms", step.Name, step.Script))
			continue
		}
		last := &lastLine{w: log}
		if err := s.run(ctx, Command{Args: step.Args, Dir: s.target.Build(), Stdout: last, Stderr: last}); err != nil {
			return nil, &StepError{step.Name, err, last.If(step.Tells), step.DKMSCode(exitCode(err))}
		}
	}

	w.phase("checking")
	f := <-known
	if f.err != nil {
		return nil, f.err
	}
	f.kernel.Others = s.installed.exports
	o, err := s.collect(ctx, plan.Modules, f.kernel, b.Temp)
	if err != nil {
		return nil, err
	}
	o.extras = append(o.extras, scripts...)
	o.compiler, o.symvers = compiler, f.symvers
	return o, nil
}

// facts are what a kernel's headers say about the modules that it loads.
type facts struct {
	kernel  kmod.Target
	symvers v1.Hash
	err     error
}

func readFacts(headers memFS, k kernels.Kernel) (f facts) {
	if f.kernel, f.err = kmod.ReadTarget(headers, k.Arch); f.err != nil {
		f.err = fmt.Errorf("the headers of %s: %w", k, f.err)
		return f
	}
	f.symvers, _, f.err = v1.SHA256(bytes.NewReader(headers["Module.symvers"]))
	return f
}

// uncovered makes sure that the folder of the source hides nothing of the root: a module with the name and version
// linux-headers and 6.1.0-56-amd64 would bring its own kernel to be held against. Another DKMS source may be hidden.
func uncovered(root Root, source string) error {
	for _, layer := range root.Layers() {
		dir := filepath.Join(layer, source)
		if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if _, err := os.Lstat(filepath.Join(dir, "dkms.conf")); err != nil {
			return fmt.Errorf("PACKAGE_NAME and PACKAGE_VERSION make %q, which is a folder of the kernel's headers; rename one of them", source)
		}
	}
	return nil
}

// environment is all that a build finds in its environment: what dkms exports, and what fixes time, place and language.
func environment(t dkms.Target) []string {
	return []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=/tmp", "LC_ALL=C", "TZ=UTC0",
		"PERL_HASH_SEED=0", "PYTHONHASHSEED=0", // else the order of their hashes is another one in each run
		"SOURCE_DATE_EPOCH=" + strconv.FormatInt(Epoch.Unix(), 10),
		"KBUILD_BUILD_TIMESTAMP=" + Epoch.Format(time.UnixDate),
		"KBUILD_BUILD_USER=build", "KBUILD_BUILD_HOST=" + HostName, "KBUILD_BUILD_VERSION=1",
		"kernelver=" + t.Release, "arch=" + t.Machine, "module=" + t.Module, "module_version=" + t.Version,
	}
}

func (s *session) run(ctx context.Context, c Command) error {
	c.Env = s.env
	if c.Dir == "" {
		c.Dir = "/"
	}
	return s.sandbox.Run(ctx, c)
}

// unpack puts the source where dkms has it, and the copy that is built. It reads the few files of the kernel's header tree that say
// what the kernel is. The root is read-only: nothing that the source does later can change them.
func (s *session) unpack(ctx context.Context, source io.Reader) (memFS, error) {
	t := s.target
	script := `set -e
tar -xp -C "$1" -f -
mkdir -p "$2"
ln -s "$1" "$2/source"
cp -a "$1" "$2/build"
cd "$3" || exit 90
shift 3
for f; do shift; if [ -e "$f" ]; then set -- "$@" "$f"; fi; done
tar -ch -f - -- "$@" || [ $? = 1 ] || exit 90` // 1: an inode changed meanwhile, as by a hard link to it; its bytes did not
	var out bytes.Buffer
	args := []string{"sh", "-c", script, "sh", t.Source(), path.Dir(t.Build()), t.KernelSource(), "Module.symvers", ".config", "include/config/auto.conf",
		"include/generated/utsrelease.h", "include/generated/randstruct_hash.h", "include/generated/randomize_layout_hash.h"}
	if err := s.run(ctx, Command{Args: args, Stdin: source, Stdout: &bounded{w: &out, limit: maxHeaders}, Stderr: s.log}); err != nil {
		step := "unpacking the source"
		if exit := (*ExitError)(nil); errors.As(err, &exit) && exit.Code == 90 || out.Len() > 0 {
			step = "reading the kernel's headers"
		}
		return nil, &StepError{Step: step, Err: err}
	}
	files := memFS{}
	for tr := tar.NewReader(&out); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return files, nil
		}
		if err != nil {
			return nil, fmt.Errorf("the kernel's headers: %w", err)
		}
		if files[h.Name], err = io.ReadAll(tr); err != nil {
			return nil, fmt.Errorf("the kernel's headers: %w", err)
		}
	}
}

// configure takes from the kernel's configuration what dkms takes: the options and the compiler, which compilers judges.
func (s *session) configure(headers fs.FS, l kernels.Lock) (compiler string, err error) {
	for _, name := range []string{"include/config/auto.conf", ".config"} {
		f, err := headers.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		if s.target.Config, err = kmod.ReadConfig(f); err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		break
	}
	compiler = strings.Trim(s.target.Config["CONFIG_CC_VERSION_TEXT"], `"`)
	if compiler == "" {
		// Before Linux 4.18 nothing is said, and up to 5.7 it's a number.
		if c, err := kernels.ConfigCompiler(s.target.Config); err == nil && c.String() != l.Compiler && !l.Forced {
			return "", fmt.Errorf("the kernel was built by %s %s, but the lock of %s has %q; --compiler %s takes that all the same",
				c.Family, c.Version, l.Kernel, l.Compiler, l.Compiler)
		}
		return l.Compiler, nil
	}
	env, err := compilers(s.target, compiler, l)
	s.env = append(s.env, env...)
	return compiler, err
}

// collect reads the modules out of the sandbox and checks that the kernel would load each.
func (s *session) collect(ctx context.Context, modules []dkms.Module, kernel kmod.Target, temp string) (_ *output, err error) {
	spool, err := durable.Unnamed(temp)
	if err != nil {
		return nil, err
	}
	o := &output{spool: spool}
	defer func() {
		if err != nil {
			o.Close()
		}
	}()
	args := []string{"tar", "-cf", "-", "-C", path.Dir(s.target.Symvers()), "--", path.Base(s.target.Symvers())}
	for _, m := range modules {
		args = append(args, path.Join(path.Base(s.target.Output()), m.Name))
	}
	files, err := s.receive(ctx, args, spool)
	if err != nil {
		return nil, err
	}

	symvers := kmod.Symvers{}
	if f := files[path.Base(s.target.Symvers())]; f != nil {
		if symvers, err = kmod.ReadSymvers(f); err != nil {
			return nil, fmt.Errorf("the Module.symvers of the build: %w", err)
		}
	}
	exported := kmod.Symvers{} // what the modules of this build offer to each other
	var names []string
	for _, m := range modules {
		f := files[path.Join(path.Base(s.target.Output()), m.Name)]
		if f == nil {
			return nil, fmt.Errorf("%s vanished after it was built", m.Name)
		}
		k, err := readModule(f)
		if err != nil {
			return nil, fmt.Errorf("%s is no kernel module: %w", m.Name, err)
		}
		for _, name := range k.Exports {
			if symbol, ok := symvers[name]; ok {
				exported[strings.Clone(name)] = symbol
				names = append(names, strings.Clone(name))
			}
		}
		o.files = append(o.files, artifact.File{
			Name: m.Name, Dest: m.Dest, Size: f.Size(), Vermagic: strings.Clone(strings.TrimSpace(k.Vermagic())),
			Open: func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(f, 0, f.Size())), nil },
		})
	}
	if len(names) > 0 {
		f := files[path.Base(s.target.Symvers())]
		text, err := kmod.SelectSymvers(io.NewSectionReader(f, 0, f.Size()), names)
		if err != nil {
			return nil, fmt.Errorf("the Module.symvers of the build: %w", err)
		}
		o.extras = append(o.extras, artifact.Extra{Name: artifact.ModuleSymvers, Size: int64(len(text)), Open: opener(text)})
	}
	kernel.Others = append([]kmod.Symvers{exported}, kernel.Others...)
	var problems []string
	for _, m := range modules { // read again: one at a time is in memory
		k, err := readModule(files[path.Join(path.Base(s.target.Output()), m.Name)])
		if err == nil {
			err = kmod.Check(k, kernel)
		}
		if err != nil {
			problems = append(problems, fmt.Sprintf("%s could not be loaded: %s", m.Name, strings.ReplaceAll(err.Error(), "\n", "; ")))
		}
	}
	if len(problems) > 0 {
		fmt.Fprintf(s.log, "\n# check\n%s\n", strings.Join(problems, "\n"))
		return nil, &CheckError{problems}
	}
	return o, nil
}

// receive runs tar and spools what it sends. A file that can't be taken ends it where its header says so: the bytes of a sparse
// file of some gigabytes are neither sent nor kept.
func (s *session) receive(ctx context.Context, args []string, spool *os.File) (map[string]*io.SectionReader, error) {
	const step = "collecting the modules"
	r, w := io.Pipe()
	var files map[string]*io.SectionReader
	read := make(chan error, 1)
	go func() {
		var err error
		files, err = readOutput(r, spool, maxOutput)
		read <- err
		r.CloseWithError(err)
	}()
	said := &firstLine{w: s.log}
	if err := s.run(ctx, Command{Args: args, Stdout: w, Stderr: said}); err != nil {
		select {
		case refused := <-read:
			if refused != nil {
				return nil, fmt.Errorf("%s: %w", step, refused)
			}
		default:
			w.CloseWithError(err)
			<-read // the spool is the caller's again
		}
		return nil, &StepError{step, err, strings.TrimPrefix(said.line.String(), "tar: "), 7}
	}
	w.Close()
	if err := <-read; err != nil {
		return nil, fmt.Errorf("%s: %w", step, err)
	}
	return files, nil
}

// readModule reads a module, which is not compressed: that is for the host that installs it.
func readModule(f *io.SectionReader) (*kmod.Module, error) {
	head := make([]byte, 6)
	n, err := f.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	if by := kmod.Compression(head[:n]); by != "" {
		return nil, fmt.Errorf("it is compressed with %s; the build must leave that to the installation", by)
	}
	return kmod.Read(f, f.Size())
}

// CheckError says that modules were built which the kernel would not load. One line a module.
type CheckError struct{ Problems []string }

func (e *CheckError) Error() string { return strings.Join(e.Problems, "\n") }

// readOutput copies a tar to the spool and finds its files there. Anything but a regular file is an error, as is one that
// would make it more than limit bytes.
func readOutput(r io.Reader, spool *os.File, limit int64) (map[string]*io.SectionReader, error) {
	in := &counted{r: io.TeeReader(r, spool)}
	files := map[string]*io.SectionReader{}
	for tr := tar.NewReader(in); ; {
		h, err := tr.Next()
		if err == io.EOF {
			_, err := io.Copy(io.Discard, in) // tar fills up its last block
			return files, err
		}
		if err != nil {
			return nil, err
		}
		name := path.Base(h.Name)
		if h.Typeflag != tar.TypeReg || h.PAXRecords["GNU.sparse.major"] != "" {
			return nil, fmt.Errorf("%s is not a regular file", name)
		}
		if h.Size > limit-in.n {
			return nil, fmt.Errorf("%s has %d bytes; all modules together may have %d", name, h.Size, limit)
		}
		files[h.Name] = io.NewSectionReader(spool, in.n, h.Size) // the tar reader reads headers block by block, and no further
	}
}

// counted counts what is read.
type counted struct {
	r io.Reader
	n int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// lastLine passes a log on and remembers its last line.
type lastLine struct {
	w    io.Writer
	tail []byte
}

func (l *lastLine) Write(p []byte) (int, error) {
	const longest = 1 << 10
	l.tail = append(l.tail, p[max(0, len(p)-longest):]...)
	l.tail = l.tail[max(0, len(l.tail)-longest):]
	return l.w.Write(p)
}

// If gives the line, or nothing.
func (l *lastLine) If(wanted bool) string {
	if !wanted {
		return ""
	}
	text := bytes.TrimSpace(l.tail)
	return string(text[bytes.LastIndexByte(text, '\n')+1:])
}

// firstLine passes a log on and remembers its first line.
type firstLine struct {
	w    io.Writer
	line strings.Builder
	over bool
}

func (f *firstLine) Write(p []byte) (int, error) {
	if !f.over {
		text, _, found := bytes.Cut(p, []byte("\n"))
		f.line.Write(text[:min(len(text), 1<<10)])
		f.over = found || f.line.Len() >= 1<<10
	}
	return f.w.Write(p)
}

// memFS is a few files in memory.
type memFS map[string][]byte

func (m memFS) Open(name string) (fs.File, error) {
	b, ok := m[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return memFile{bytes.NewReader(b), name}, nil
}

type memFile struct {
	*bytes.Reader
	name string
}

func (f memFile) Close() error { return nil }
func (f memFile) Stat() (fs.FileInfo, error) {
	return nil, &fs.PathError{Op: "stat", Path: f.name, Err: errors.ErrUnsupported}
}

// bounded passes on up to limit bytes.
type bounded struct {
	w        io.Writer
	n, limit int
}

func (b *bounded) Write(p []byte) (int, error) {
	if len(p) > b.limit-b.n {
		return 0, fmt.Errorf("there are more than %d bytes", b.limit)
	}
	n, err := b.w.Write(p)
	b.n += n
	return n, err
}
