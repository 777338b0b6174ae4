package cli

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/pflag"

	"github.com/godkms-hermetic/godkms-hermetic/cache"
	"github.com/godkms-hermetic/godkms-hermetic/images"
	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/decompress"
	"github.com/godkms-hermetic/godkms-hermetic/internal/host"
	"github.com/godkms-hermetic/godkms-hermetic/internal/kmod"
	"github.com/godkms-hermetic/godkms-hermetic/internal/qemu"
	"github.com/godkms-hermetic/godkms-hermetic/internal/trial"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// Of a machine that modules are tried in.
const (
	defaultMachine = 512 << 20 // bytes
	minMachine     = 128 << 20
	maxMachine     = 64 << 30
	defaultStep    = time.Minute
	maxStep        = 24 * time.Hour
	maxScript      = 64 << 20
)

// trialOptions say how modules are tried.
type trialOptions struct {
	loadOnly  bool
	script    string
	params    []string
	timeout   time.Duration
	memory    string
	signature bool
	sign      signOptions
	root      string // of the host whose key signs. Default: this one's
}

func defaultTrial() trialOptions { return trialOptions{timeout: defaultStep} }

func (o *trialOptions) flags(f *pflag.FlagSet) {
	f.BoolVar(&o.loadOnly, "load-only", false, "load the modules and no more: neither unload them nor load them again")
	f.StringVar(&o.script, "script", "", "`FILE` to run while the modules are loaded: a program, or a script; interpreter and libraries are those of the build root")
	f.StringArrayVar(&o.params, "param", nil, "`PARAMETER` of a module, NAME=VALUE, or MODULE.NAME=VALUE where there are several; can be repeated")
	f.DurationVar(&o.timeout, "timeout", o.timeout, "limit for each step in the machine, as in 2m")
	f.StringVar(&o.memory, "mem", "", "memory of each machine, as in 1G (default 512M)")
	f.BoolVar(&o.signature, "signature", false, "also have the kernel refuse modules that are unsigned, or signed by a key that it doesn't know")
	o.sign.flags(f)
}

// trials tries modules, on each kernel in a machine of its own. It is safe for concurrent use.
type trials struct {
	*app
	options trialOptions
	memory  int64   // bytes of a machine
	params  []param // in the order of the flags
	reuse   bool    // what passed under the same conditions is not tried again
	script  []byte
	// image pins the kernel whose headers a lock has, and kernel gets it.
	image  func(context.Context, kernels.Lock) (kernels.Image, error)
	kernel func(context.Context, kernels.Image, images.Progress) (*images.Kernel, error)
	// headers is the root that a script's interpreter, or a program's libraries, come from, and the kernel's configuration.
	headers func(context.Context, kernels.Lock, images.Progress) (*images.Root, error)
	signer  *kmod.Signer // of --signature; nil: that of a new key

	slots chan struct{} // bound what is prepared: one more than the machines that run

	mu       sync.Mutex
	host     *qemu.Host
	programs map[string]qemu.Program // by architecture
}

// newTrials checks the options and reads the script. What else is needed is for the caller to set.
func (a *app) newTrials(o trialOptions) (*trials, error) {
	t := &trials{app: a, options: o, memory: defaultMachine, programs: map[string]qemu.Program{},
		slots: make(chan struct{}, runtime.GOMAXPROCS(0)+1)}
	if o.timeout < time.Second || o.timeout > maxStep {
		return nil, fmt.Errorf("--timeout is %s: it must be a second or more, and a day at most", o.timeout)
	}
	if o.memory != "" {
		var err error
		if t.memory, err = parseSize(o.memory); err != nil {
			return nil, fmt.Errorf("--mem: %w", err)
		}
		if t.memory < minMachine || t.memory > maxMachine {
			return nil, fmt.Errorf("--mem is %s: a machine has 128M to 64G", o.memory)
		}
	}
	if !o.signature && (o.sign.key != "" || o.sign.cert != "") {
		return nil, errors.New("--sign-key and --sign-cert are for --signature")
	}
	if o.signature {
		root, err := a.openRoot(hostOptions{root: cmp.Or(o.root, "/")})
		if err != nil {
			return nil, err
		}
		t.signer, err = a.signer(root, o.sign)
		named := o.sign.key+a.config.Signing.Key != ""
		if err != nil && (named || !errors.Is(err, fs.ErrPermission)) { // the host's own key is root's alone
			return nil, err
		}
	}
	if o.script != "" {
		path, err := regularFile(o.script)
		if err == nil {
			t.script, err = readAtMost(path, maxScript)
		}
		if err == nil && !bytes.HasPrefix(t.script, []byte("#!")) && !bytes.HasPrefix(t.script, []byte(elf.ELFMAG)) {
			err = fmt.Errorf("%q neither begins with #! nor is a program (ELF)", o.script)
		}
		if err != nil {
			return nil, fmt.Errorf("--script: %w", err)
		}
	}
	for _, text := range o.params {
		p, err := parseParam(text)
		if err != nil {
			return nil, err
		}
		t.params = append(t.params, p)
	}
	return t, nil
}

// machineDir is the folder of the cache where it's kept whether KVM works.
const machineDir = "machine"

// program finds the qemu for an architecture. Where there is none that is the end of a run: nothing could be tried.
func (t *trials) program(ctx context.Context, arch string) (qemu.Program, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p, ok := t.programs[arch]; ok {
		return p, nil
	}
	if t.host == nil {
		dir, err := t.dir(machineDir)
		if err != nil {
			return qemu.Program{}, err
		}
		t.host = qemu.NewHost(dir)
	}
	p, err := t.host.Find(ctx, arch)
	if err != nil {
		return p, &exitError{code: exitNoBoot, err: fmt.Errorf("modules are tested in a virtual machine: %w", err)}
	}
	t.programs[arch] = p
	return p, nil
}

// ready says whether there is a virtual machine for each of some kernels. Without trials there need be none.
func (t *trials) ready(ctx context.Context, targets []target) error {
	for _, k := range targets {
		if t == nil || k.err != nil {
			continue
		}
		if _, err := t.program(ctx, k.kernel.Arch); err != nil {
			return err
		}
	}
	return nil
}

// param is a parameter of a module. Its module is empty where only one is tried.
type param struct{ module, name, value string }

func (p param) String() string {
	if p.module == "" {
		return p.name + "=" + p.value
	}
	return p.module + "." + p.name + "=" + p.value
}

var paramForm = regexp.MustCompile(`^(?:([A-Za-z0-9_-]+)\.)?([A-Za-z0-9_-]+)=(.*)$`)

// maxParam bounds a parameter, in bytes: the kernel takes a page of them for a module.
const maxParam = 1024

// parseParam reads a --param. Its value goes to the kernel as it is, quoted where it has a blank; a quote in it couldn't be.
func parseParam(text string) (param, error) {
	m := paramForm.FindStringSubmatch(text)
	switch {
	case m == nil:
		return param{}, fmt.Errorf("--param is %q: it must be NAME=VALUE, or MODULE.NAME=VALUE, as in debug=1", text)
	case len(text) > maxParam || strings.ContainsFunc(m[3], func(r rune) bool { return r < ' ' || r == '"' || r == 0x7f }):
		return param{}, fmt.Errorf("--param %s: a value can't have quotes or control characters, nor more than %d bytes", m[2], maxParam)
	}
	return param{moduleName(m[1]), m[2], m[3]}, nil
}

// moduleName is a module's name as the kernel has it.
func moduleName(s string) string { return strings.ReplaceAll(s, "-", "_") }

// subject is what is tried on one kernel.
type subject struct {
	title  string // for people
	kernel kernels.Kernel
	lock   kernels.Lock // of the headers that the modules were built on
	files  []artifact.File
	needs  []artifact.File // of modules of BUILD_DEPENDS, which are loaded before them where they need them

	// The result that the modules are of, and the cache that has it. Without one the test is not recorded.
	key, digest v1.Hash
	results     *cache.Dir
}

// loadable is a module that is tried, or that one of these needs.
type loadable struct {
	trial.Module
	depends []string // modules that must be there before it
	wants   []string // modules or aliases that are to be there before it, where the kernel has them
	aliases []string // patterns
}

// readLoadable reads a module's file. What it says of itself is not to be trusted; where it can't be read it is left to the kernel.
func readLoadable(f artifact.File, limit int64) (loadable, error) {
	l := loadable{Module: trial.Module{Name: moduleName(strings.TrimSuffix(f.Name, ".ko"))}}
	if f.Size > limit {
		return l, fmt.Errorf("%s has %s, too much for the machine's memory; give it more with --mem", f.Name, bytesText(f.Size))
	}
	r, err := f.Open()
	if err != nil {
		return l, err
	}
	l.File, err = io.ReadAll(io.LimitReader(r, f.Size))
	if err = errors.Join(err, r.Close()); err == nil && kmod.Compression(l.File) != "" {
		l.File, err = unpacked(l.File, limit)
	}
	if err != nil {
		return l, fmt.Errorf("%s: %w", f.Name, err)
	}
	m, err := kmod.Read(bytes.NewReader(l.File), int64(len(l.File)))
	if err != nil {
		return l, nil
	}
	if name := m.Get("name"); moduleForm.MatchString(name) {
		l.Name = moduleName(name)
	}
	for _, name := range strings.Split(m.Get("depends"), ",") {
		if moduleForm.MatchString(name) {
			l.depends = append(l.depends, moduleName(name))
		}
	}
	l.aliases = m.All("alias")
	for _, text := range m.All("softdep") {
		l.wants = append(l.wants, before(text)...)
	}
	return l, nil
}

// unpacked decompresses a module.
func unpacked(b []byte, limit int64) ([]byte, error) {
	d, err := decompress.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	defer d.Close()
	if b, err = io.ReadAll(io.LimitReader(d, limit+1)); err == nil && int64(len(b)) > limit {
		err = errors.New("it is too much for the machine's memory; give it more with --mem")
	}
	return b, err
}

var moduleForm = regexp.MustCompile(`^[A-Za-z0-9_-]{1,55}$`) // MODULE_NAME_LEN of linux/moduleparam.h

// before reads what a softdep has before the module: "pre: a b post: c" (modprobe.d(5)).
func before(softdep string) (names []string) {
	pre := false
	for _, word := range strings.Fields(softdep) {
		if kind, ok := strings.CutSuffix(word, ":"); ok {
			pre = kind == "pre"
		} else if pre && moduleForm.MatchString(word) {
			names = append(names, word)
		}
	}
	return names
}

// loadOrder sorts modules so that each comes after those that it depends on. Of needs it takes those that are depended on. outside is what
// neither has, and wanted what may be there before them.
func loadOrder(tried, needs []loadable) (before, order []loadable, outside, wanted []string) {
	seen := map[string]bool{}
	var add func(l loadable, own bool)
	add = func(l loadable, own bool) {
		if seen[l.Name] {
			return
		}
		seen[l.Name] = true
		for _, name := range l.depends {
			at := func(o loadable) bool { return o.Name == name }
			if i := slices.IndexFunc(tried, at); i >= 0 {
				add(tried[i], true)
			} else if i := slices.IndexFunc(needs, at); i >= 0 {
				add(needs[i], false)
			} else if !slices.Contains(outside, name) {
				outside = append(outside, name)
			}
		}
		wanted = append(wanted, l.wants...)
		if own {
			order = append(order, l)
		} else {
			before = append(before, l)
		}
	}
	for _, l := range tried {
		add(l, true)
	}
	return before, order, outside, wanted
}

// distinct refuses several modules of one name, each read of one of files: just one of them could be tried, and all would have its verdict.
func distinct(modules []loadable, files []artifact.File) error {
	for i, l := range modules {
		if first := slices.IndexFunc(modules, func(o loadable) bool { return o.Name == l.Name }); first < i {
			return fmt.Errorf("%s and %s are both the module %s: test them one after the other", files[first].Name, files[i].Name, l.Name)
		}
	}
	return nil
}

// give hands the parameters of the options to modules.
func (t *trials) give(modules []loadable) error {
	for _, p := range t.params {
		i := slices.IndexFunc(modules, func(l loadable) bool { return l.Name == p.module })
		if p.module == "" && len(modules) == 1 {
			i = 0
		}
		if i < 0 {
			names := make([]string, len(modules))
			for i, l := range modules {
				names[i] = l.Name
			}
			slices.Sort(names)
			return fmt.Errorf("--param %s: of which module? write MODULE.NAME=VALUE with one of %s", p, strings.Join(names, ", "))
		}
		value := p.value
		if strings.Contains(value, " ") || strings.Contains(value, "\xa0") { // a byte that is a blank to the kernel (lib/ctype.c), as in "à"
			value = `"` + value + `"`
		}
		modules[i].Params = append(modules[i].Params, p.name+"="+value)
	}
	return nil
}

// verdictCodes are the exit codes of verdicts against modules.
var verdictCodes = map[trial.Verdict]int{
	trial.Refused: exitRefused, trial.Crashes: exitCrashes, trial.Hangs: exitHangs, trial.Stays: exitStays, trial.Warns: exitWarns,
	trial.Script: exitScript, trial.NoBoot: exitNoBoot,
}

// test tries the modules of a subject, ends its line and completes its report, whose status is that of a build until then. It gives the
// exit code for what failed, or 0.
func (t *trials) test(ctx context.Context, s subject, line *ui.Line, report *ui.Result) int {
	start := time.Now()
	got, again, err := t.outcome(ctx, s, line)
	report.Seconds += time.Since(start).Seconds()
	if err != nil {
		if ctx.Err() != nil {
			err = errInterrupted
		}
		report.Status = ui.Failed
		report.Reason, _, _ = strings.Cut(err.Error(), "\n")
		line.End(ui.Failed, err.Error())
		return codeOf(err)
	}
	for _, text := range got.Log {
		fmt.Fprintln(line.Log(), text)
	}
	report.Test = &got
	if got.Verdict.Passed() {
		text := string(got.Verdict)
		if n := len(got.Untried()); n > 0 {
			text += fmt.Sprintf(", %d of %d not tried", n, len(got.Modules))
		}
		if again {
			text += ", tested before"
		}
		line.End(report.Status, text)
		return 0
	}
	f := ui.TestFailure(got)
	report.Status, report.Reason, report.Why, report.First, report.Tail, report.Hint = ui.Failed, string(got.Verdict)+": "+f.First, f.Why, f.First, f.Tail, f.Hint
	line.End(ui.Failed, string(got.Verdict))
	t.board.Fail(s.title, f, "")
	return cmp.Or(verdictCodes[got.Verdict], exitNoBoot)
}

// outcome tries the modules of a subject and keeps what comes of it, or, with reuse, gives what came of it before. An error, which has its
// exit code, is one that nothing is known of the modules by.
func (t *trials) outcome(ctx context.Context, s subject, line *ui.Line) (got trial.Result, again bool, err error) {
	line.Phase("kernel")
	img, err := t.image(ctx, s.lock)
	if err != nil {
		return got, false, &exitError{code: lockCode(err), err: err}
	}
	r := testRecord{Artifact: s.digest, Kernel: s.kernel.String(), Packages: img.Digest(), Options: t.with()}
	if t.reuse {
		if got, again = t.before(ctx, s, r); again {
			return got, true, nil
		}
	}
	if got, err = t.run(ctx, s, img, line); err != nil {
		return got, false, err
	}
	r.Result, r.Tested = got, time.Now().UTC().Truncate(time.Second)
	t.record(ctx, s, r)
	return got, false, nil
}

// with says under which conditions modules are tried.
func (t *trials) with() testedWith {
	w := testedWith{LoadOnly: t.options.loadOnly, Signature: t.options.signature, Memory: t.memory, Timeout: t.options.timeout.Seconds()}
	if t.signer != nil {
		w.Signer = t.signer.Fingerprint()
	}
	if t.script != nil {
		w.Script = fmt.Sprintf("%x", sha256.Sum256(t.script))
	}
	for _, p := range t.params {
		w.Params = append(w.Params, p.String())
	}
	return w
}

// stepPhases are the phases that steps of trials are shown as, unless by their own names.
var stepPhases = map[string]string{"need": "load", "again": "unload", "enforce": "signatures", "sign": "signatures", "settle": "unload"}

func (t *trials) run(ctx context.Context, s subject, img kernels.Image, line *ui.Line) (got trial.Result, err error) {
	select {
	case t.slots <- struct{}{}:
		defer func() { <-t.slots }()
	case <-ctx.Done():
		return got, context.Cause(ctx)
	}
	program, err := t.program(ctx, s.kernel.Arch)
	if err != nil {
		return got, err
	}
	init, err := openInit(s.kernel.Arch)
	if err != nil {
		return got, err
	}
	defer init.Close()
	tried, err := t.read(s.files)
	if err != nil {
		return got, err
	}
	needs, err := t.read(s.needs)
	if err != nil {
		return got, err
	}
	if err := distinct(tried, s.files); err != nil {
		return got, err
	}
	if err := t.give(tried); err != nil {
		return got, err
	}
	kernel, err := t.kernel(ctx, img, progress(line))
	if err != nil {
		return got, &exitError{code: lockCode(err), err: err}
	}
	defer kernel.Close()
	o := trial.Options{
		QEMU: program, Kernel: kernel.Path(), Image: kernel.Digest(), Release: s.kernel.Release, Init: init,
		LoadOnly: t.options.loadOnly, Memory: t.memory, Timeout: t.options.timeout, Signature: t.options.signature, Signer: t.signer,
		Progress: func(step, _ string) { line.Phase(cmp.Or(stepPhases[step], step)) },
	}
	if t.script != nil {
		o.Script = &trial.ScriptFile{Name: t.options.script, File: t.script}
	}
	if script := t.script != nil && runsAlone(bytes.NewReader(t.script), s.kernel.Arch) != nil; script || o.Signature {
		root, err := t.headers(ctx, s.lock, progress(line))
		if err != nil {
			return got, &exitError{code: lockCode(err), err: err}
		}
		defer root.Close()
		if script {
			o.Script.Layers = root.Layers()
		}
		if o.Signature {
			if o.Hash, err = signatureHash(root.Layers(), s.kernel.Release); err != nil {
				return got, err
			}
		}
	}
	// Modules may ask for others as they run, which a host's modprobe would give them. Those are there before them the next time.
	var asked, names []string
	for range maxRounds {
		slices.SortStableFunc(tried, func(a, b loadable) int { return cmp.Compare(a.answers(asked), b.answers(asked)) })
		before, order, outside, wanted := loadOrder(tried, needs)
		own := make([]string, 0, len(before)+len(order))
		for _, l := range slices.Concat(before, order) {
			own = append(own, l.Name)
		}
		if o.Needed, err = t.needed(kernel, outside, append(wanted, asked...), own); err != nil {
			return got, err
		}
		o.Modules = nil
		for _, l := range before {
			o.Needed = append(o.Needed, l.Module)
		}
		for _, l := range order {
			o.Modules = append(o.Modules, l.Module)
		}
		now := moduleNames(slices.Concat(o.Needed, o.Modules))
		if slices.Equal(now, names) {
			break
		}
		names = now
		line.Phase("waiting")
		if got, err = trial.Run(ctx, o); errors.As(err, new(*trial.OptionsError)) {
			return got, err
		} else if err != nil {
			return got, &exitError{code: exitNoBoot, err: err}
		}
		if asked = append(asked, got.Wanted...); len(got.Wanted) == 0 {
			break
		}
	}
	return got, nil
}

// signatureHash is what a kernel's own modules are signed with, as the configuration in the root of its headers says, or 0 where that doesn't.
func signatureHash(layers []string, release string) (crypto.Hash, error) {
	f, err := trial.OpenFile(layers, "/boot/config-"+release)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("the configuration of kernel %s: %w", release, err)
	}
	defer f.Close()
	config, err := host.ReadConfig(f)
	if err != nil {
		return 0, fmt.Errorf("the configuration of kernel %s: %w", release, err)
	}
	hash, err := host.SignatureHash(config, release)
	if err != nil {
		return 0, fmt.Errorf("--signature: modules %w", err)
	}
	return hash, nil
}

// maxRounds bounds how often modules are tried with what they asked for the time before, which may ask for more.
const maxRounds = 3

// answers is 0 for a module that is one of those asked for, and else 1.
func (l loadable) answers(asked []string) int {
	for _, name := range asked {
		if l.Name == moduleName(name) || slices.ContainsFunc(l.aliases, func(a string) bool { ok, _ := path.Match(a, name); return ok }) {
			return 0
		}
	}
	return 1
}

func moduleNames(modules []trial.Module) (names []string) {
	for _, m := range modules {
		names = append(names, m.Name)
	}
	return names
}

// openInit opens what runs as the first process of machines of an architecture: this program, or that for the other one, which is looked for
// beside it and on PATH.
func openInit(arch string) (*os.File, error) {
	path := "/proc/self/exe"
	if arch != runtime.GOARCH {
		var err error
		if path, err = otherProgram(arch); err != nil {
			return nil, &exitError{code: exitNoBoot, err: err}
		}
	}
	f, err := os.Open(path)
	if err == nil {
		if err = runsAlone(f, arch); err != nil {
			f.Close()
		}
	}
	if err != nil {
		return nil, &exitError{code: exitNoBoot, err: fmt.Errorf("the first process of the machine is this program: %s: %w", path, err)}
	}
	return f, nil
}

// otherProgram finds this program for another architecture.
func otherProgram(arch string) (string, error) {
	name := "godkms-hermetic-" + arch
	if own, err := os.Executable(); err == nil {
		beside := filepath.Join(filepath.Dir(own), name)
		if _, err := os.Stat(beside); err == nil {
			return beside, nil
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("the first process of a machine for %s is this program for %[1]s: put it as %q beside this one, or into PATH; "+
			"'GOARCH=%[1]s CGO_ENABLED=0 go build -o %[2]s ./cmd/godkms-hermetic' makes it", arch, name)
	}
	return path, nil
}

// runsAlone says whether a program is one for an architecture that needs no other file.
func runsAlone(program io.ReaderAt, arch string) error {
	f, err := elf.NewFile(program)
	if err != nil {
		return err
	}
	want, err := kmod.ArchOf(arch)
	switch {
	case err != nil:
		return err
	case f.Machine != want.Machine:
		return fmt.Errorf("it is a program for %s, not for %s", f.Machine, arch)
	case slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }):
		return errors.New("it isn't static: build it with CGO_ENABLED=0")
	}
	return nil
}

// read reads modules. Together they have at most a quarter of a machine's memory, where they are twice at first.
func (t *trials) read(files []artifact.File) ([]loadable, error) {
	left := t.memory / 4
	var out []loadable
	for _, f := range files {
		l, err := readLoadable(f, left)
		if err != nil {
			return nil, err
		}
		left -= int64(len(l.File))
		out = append(out, l)
	}
	return out, nil
}

// kernelModules are those of an images.Kernel.
type kernelModules interface {
	Resolve(names []string) ([]string, error)
	Read(name string) ([]byte, error)
}

// needed reads the kernel's own modules that others need, and those that may be of use to them. What the kernel hasn't got is left away: it says
// itself what is missing then. So is what own stands in for, and what is just of use where it would take more than a quarter of the
// machine's memory: what modules ask for is theirs to say.
func (t *trials) needed(kernel kernelModules, depends, wants, own []string) ([]trial.Module, error) {
	var names []string
	files := map[string][]byte{}
	left := t.memory / 4
	for i, name := range slices.Concat(depends, wants) {
		all, err := kernel.Resolve(append(slices.Clone(names), name))
		if errors.Is(err, kernels.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		must := i < len(depends)
		if !must && slices.ContainsFunc(all, func(n string) bool { return !slices.Contains(names, n) && slices.Contains(own, n) }) {
			continue
		}
		more, size := map[string][]byte{}, int64(0)
		for _, n := range all {
			if files[n] != nil || slices.Contains(own, n) {
				continue
			}
			if more[n], err = kernel.Read(n); err != nil {
				return nil, err
			}
			size += int64(len(more[n]))
		}
		if size > left {
			if !must {
				continue
			}
			return nil, fmt.Errorf("the kernel's own modules that are needed are too much for the machine's memory; give it more with --mem")
		}
		left -= size
		names = all
		maps.Copy(files, more)
	}
	var out []trial.Module
	for _, name := range names {
		if !slices.Contains(own, name) {
			out = append(out, trial.Module{Name: name, File: files[name]})
		}
	}
	return out, nil
}
