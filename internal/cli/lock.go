package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/internal/mirror"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// maxLockFile bounds a lock file: one for 50 kernels has 150 kB.
const maxLockFile = 64 << 20

type lockOptions struct {
	kernels []string
	out     string
	update  bool
	diff    bool
	with    []string
	input   confInput
	depends []string
}

func (a *app) lockCommand() *cobra.Command {
	var o lockOptions
	cmd := &cobra.Command{
		Use:   "lock [SRC...] --kernels KERNELS",
		Short: "Pin the packages that builds for kernels take, in a file",
		Long: `Writes a file with every package that builds of SRC for these kernels take, by digest, and where it is. 'build --lock FILE' builds
with just these: it asks for no index, whatever the distribution has published since, and fails where a package can't be had as it
was. The results are those of a build without the file that takes the same packages, to the byte and by the same key.

SRC and KERNELS are those of build, and so are --with, --depends, --overrides and --directive, where they add packages or sources:
a kernel is locked for each set of extra packages that the sources ask for. The file is for people to review and to keep beside
the source: one package on a line, a toolchain once for all of its kernels, in one order. The packages of the kernels themselves
are in it too, where the distribution has them: no build takes them, 'test --lock' does. A godkms.lock beside a dkms.conf is no
part of the source. A file that is there already is written anew if it's a lock file; any other is left alone, which is an error.

--update renews what the file has locked for its kernels, with the packages of now. If kernels are named, only these are renewed,
or added. Arguments that aren't files are KERNELS then. A kernel that its distribution has no more can't be renewed.

--diff writes nothing. It shows what --update would change: compilers, and the packages of toolchains, headers and kernels, each
with the kernels where that is so. With two lock files it shows what changes from one to the other. A change is no failure.

Passwords in the URLs of mirrors aren't written: a build takes them from --mirror or the configuration. The mirrors that are given
there are asked first where the distribution's packages have the same paths in all of them, then those that the file names.` + exitStatus(
			"  0  the file was written, or its changes are shown",
			"  1  the command line, the source or the configuration is wrong, or FILE is no lock file or can't be written",
			" 13  modules of BUILD_DEPENDS go in a circle",
			" 21  a kernel or a package can't be found, or its index can't be had or trusted; nothing is written",
			"130  interrupted"),
		Example: `  godkms-hermetic lock . --kernels 'debian/bookworm:6.1.*-amd64,debian/trixie:latest'
  godkms-hermetic build . --lock godkms.lock
  godkms-hermetic lock . --diff
  godkms-hermetic lock . --update
  godkms-hermetic lock --update debian/bookworm:6.1.0-56-amd64
  godkms-hermetic lock --diff old.lock godkms.lock --format json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runLock(cmd.Context(), o, args)
		},
	}
	f := cmd.Flags()
	f.StringSliceVarP(&o.kernels, "kernels", "k", nil, "`KERNELS` to lock; required, but for --update and --diff")
	f.StringVarP(&o.out, "out", "o", "godkms.lock", "`FILE` to write, renew or compare")
	f.BoolVar(&o.update, "update", false, "renew what the file has, or just the kernels that are named")
	f.BoolVar(&o.diff, "diff", false, "show what --update would change, and write nothing")
	f.StringSliceVar(&o.with, "with", nil, "extra `PACKAGES` for the build root, of the kernel's distribution")
	o.input.flags(f)
	a.compilerFlag(f)
	f.StringArrayVar(&o.depends, "depends", nil, "`DIR` with the sources of modules that BUILD_DEPENDS names; can be repeated")
	cmd.MarkFlagsMutuallyExclusive("update", "diff")
	cmd.RegisterFlagCompletionFunc("kernels", a.completeKernels)
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if !o.update {
			return nil, cobra.ShellCompDirectiveDefault
		}
		return a.completeKernels(cmd, args, typed)
	}
	return cmd
}

func (a *app) runLock(ctx context.Context, o lockOptions, args []string) error {
	if o.diff && len(args) == 2 && isLockFile(args[0]) && isLockFile(args[1]) {
		old, err := readLockFile(args[0])
		if err != nil {
			return err
		}
		new, err := readLockFile(args[1])
		if err != nil {
			return err
		}
		return a.printChanges(old.Diff(new))
	}
	sources := args
	if o.update || o.diff {
		isFile := func(arg string) bool { _, err := os.Lstat(arg); return !errors.Is(err, fs.ErrNotExist) }
		sources = slices.DeleteFunc(slices.Clone(args), func(arg string) bool { return !isFile(arg) })
		o.kernels = append(o.kernels, slices.DeleteFunc(slices.Clone(args), isFile)...)
	}
	if len(sources) == 0 {
		sources = []string{"."}
	}
	old := &kernels.LockFile{}
	_, err := os.Lstat(o.out)
	switch {
	case o.update || o.diff:
		if old, err = readLockFile(o.out); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%w; make it first, without --update and --diff", err)
		} else if err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist) && !isLockFile(o.out):
		return fmt.Errorf("%q is there and is no lock file: remove it, or name another file with --out", o.out)
	case !slices.ContainsFunc(o.kernels, func(s string) bool { return strings.TrimSpace(s) != "" }):
		return errors.New("no kernel given; use --kernels, as in --kernels debian/trixie:latest ('godkms-hermetic kernels debian/trixie' lists them)")
	}
	if !o.diff {
		if err := writable(filepath.Dir(o.out)); err != nil {
			return fmt.Errorf("--out: %w", err)
		}
	}
	if err := o.input.read(); err != nil {
		return err
	}
	distros, err := a.distros()
	if err != nil {
		return err
	}
	selectors, err := parseSelectors(distros, o.kernels)
	if err != nil {
		return err
	}
	temp, err := a.temp()
	if err != nil {
		return err
	}
	units, err := openUnits(ctx, sources, o.depends, o.input, builder.SourceOptions{
		Temp: temp, Exclude: []string{"out", o.out, filepath.Dir(temp)}, Open: distros["debian"].Open})
	if err != nil {
		return err
	}
	defer units.close()
	var targets []target
	if len(selectors) > 0 {
		if targets, err = a.resolve(ctx, distros, selectors); err != nil {
			return err
		}
	} else {
		for _, k := range old.Kernels() {
			targets = append(targets, target{label: k.String(), kernel: k})
			if distros[k.Distro] == nil {
				return fmt.Errorf("%s: this program knows no distribution %q", o.out, k.Distro)
			}
		}
	}
	locked, err := a.lockAll(ctx, distros, units, targets, o)
	if err != nil {
		return err
	}
	now := locked
	if len(selectors) > 0 {
		now = &kernels.LockFile{Indexes: slices.Clone(old.Indexes), Locks: slices.Clone(old.Locks)}
		now.Renew(locked)
	}
	if o.diff {
		a.board.Close()
		return a.printChanges(old.Diff(now))
	}
	text, err := now.Encode()
	if err != nil {
		return err
	}
	if err := writeWhole(ctx, o.out, func(w io.Writer) error { _, err := w.Write(text); return err }); err != nil {
		return fmt.Errorf("write %q: %w", o.out, err)
	}
	a.board.Close()
	return a.printLocks(o.out, locked)
}

func isLockFile(name string) bool {
	text, err := readAtMost(name, 100)
	return err == nil && kernels.IsLockFile(text)
}

// readLockFile reads a whole lock file. One that isn't there wraps fs.ErrNotExist.
func readLockFile(name string) (*kernels.LockFile, error) {
	text, err := readAtMost(name, maxLockFile+1)
	if err == nil && len(text) > maxLockFile {
		err = fmt.Errorf("it has more than %d bytes", maxLockFile)
	}
	var f *kernels.LockFile
	if err == nil {
		f, err = kernels.ParseLockFile(text)
	}
	if errors.Is(err, unix.EISDIR) {
		err = errors.New("it is a folder")
	}
	if err != nil {
		return nil, fmt.Errorf("lock file %q: %w", name, err)
	}
	return f, nil
}

// lockAll locks every target for every set of extra packages that the units ask for, or none at all. When a file is compared with what
// there is now, kernels that are gone are left out.
func (a *app) lockAll(ctx context.Context, distros map[string]kernels.Provider, units units, targets []target, o lockOptions) (*kernels.LockFile, error) {
	type job struct {
		unit unit
		target
		extra kernels.Extra
		lock  kernels.Lock
		image kernels.Image
	}
	var jobs []*job
	for _, t := range targets {
		var extras []kernels.Extra // of this kernel
		for _, u := range units {
			e := extraOf(u.source, o.with)
			if c := e.Canonical(); !slices.ContainsFunc(extras, func(o kernels.Extra) bool { return reflect.DeepEqual(o, c) }) {
				extras = append(extras, c)
				jobs = append(jobs, &job{unit: u, target: t, extra: e})
			}
			if t.err != nil { // for all units the same
				break
			}
		}
	}
	line := a.board.Line(o.out)
	line.Phase("locking")
	var all sync.WaitGroup
	slots := make(chan struct{}, runtime.NumCPU())
	for _, j := range jobs {
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if j.err != nil || ctx.Err() != nil {
				return
			}
			if j.lock, j.err = distros[j.kernel.Distro].Lock(ctx, j.kernel, j.extra); j.err != nil {
				j.err = a.advise(askedBy(j.unit.source, o.with, j.err))
				return
			}
			// Builds don't need the kernel itself, and not every archive has it.
			if j.image, j.err = distros[j.kernel.Distro].Image(ctx, j.lock); errors.Is(j.err, kernels.ErrNotFound) {
				j.err = nil
			}
		})
	}
	all.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	var (
		f       = &kernels.LockFile{}
		failed  []error
		indexed = map[kernels.Kernel]bool{} // without a release
		hidden  bool
	)
	for _, j := range jobs {
		gone := errors.Is(j.err, kernels.ErrNotFound) && !errors.As(j.err, new(*kernels.ExtraError))
		switch {
		case gone && o.diff && len(o.kernels) == 0:
			continue
		case gone && o.update:
			j.err = fmt.Errorf("%w; name a --mirror that has it still, or lock again with --kernels and without it", j.err)
		}
		if j.err != nil {
			failed = append(failed, j.err)
			continue
		}
		for _, list := range []*[]kernels.Package{&j.lock.Toolchain, &j.lock.Headers, &j.image.Packages} {
			*list = slices.Clone(*list)
			for i := range *list {
				hidden = hideUser(&(*list)[i]) || hidden
			}
		}
		f.Locks = append(f.Locks, kernels.ExtraLock{Extra: j.extra, Lock: j.lock, Image: j.image})
		k := j.kernel
		if k.Release = ""; indexed[k] {
			continue
		}
		indexed[k] = true
		list, err := distros[k.Distro].Indexes(ctx, k.Suite, k.Arch)
		if err != nil {
			return nil, &exitError{code: lockCode(err), err: err}
		}
		for _, i := range list {
			f.Indexes = append(f.Indexes, kernels.LockedIndex{Distro: k.Distro, Suite: k.Suite, Arch: k.Arch, Index: i})
		}
	}
	if len(failed) == 0 {
		line.End("locked", "")
		if hidden && !o.diff {
			a.board.Warn(fmt.Sprintf("the passwords of mirrors are not in %s: a build needs the same --mirror or configuration", o.out))
		}
		return f, nil
	}
	line.End(ui.Failed, "")
	code := 0
	for _, err := range failed {
		if c := lockCode(err); code == 0 || c < code {
			code = c
		}
	}
	return nil, &exitError{code: code, err: errors.Join(failed...)}
}

// hideUser takes user and password out of a package's URLs.
func hideUser(p *kernels.Package) (had bool) {
	hide := func(from string) string {
		to := mirror.Public(from)
		had = had || to != from
		return to
	}
	p.URL = hide(p.URL)
	p.Mirrors = slices.Clone(p.Mirrors)
	for i, m := range p.Mirrors {
		p.Mirrors[i] = hide(m)
	}
	return had
}

// lockedKernel is what the lock command prints of one. Its JSON form is a promise: fields are added, never renamed.
type lockedKernel struct {
	Kernel   string   `json:"kernel"` // as --kernels takes it
	Distro   string   `json:"distro"`
	Suite    string   `json:"suite"`
	Arch     string   `json:"arch"`
	Release  string   `json:"release"`
	Extra    []string `json:"extra"` // packages that were asked for
	Compiler string   `json:"compiler"`
	Lock     string   `json:"lock"` // its digest
	Packages int      `json:"packages"`
	Size     int64    `json:"size"` // of the packages, in bytes
}

func (a *app) printLocks(name string, f *kernels.LockFile) error {
	rows := []lockedKernel{}
	for _, l := range f.Locks {
		k, c := l.Lock.Kernel, l.Extra.Canonical()
		row := lockedKernel{Kernel: k.String(), Distro: k.Distro, Suite: k.Suite, Arch: k.Arch, Release: k.Release, Compiler: l.Lock.Compiler,
			Extra: list(slices.Concat(c.Packages, c.Depends)), Lock: l.Lock.Digest().String()}
		for _, p := range slices.Concat(l.Lock.Toolchain, l.Lock.Headers) {
			row.Packages++
			row.Size += p.Size
		}
		rows = append(rows, row)
	}
	if a.json() {
		return ui.WriteJSON(a.stdout, struct {
			File    string         `json:"file"`
			Kernels []lockedKernel `json:"kernels"`
		}{name, rows})
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%d packages\t%s", r.Kernel, r.Compiler, r.Packages, r.Lock)
		if len(r.Extra) > 0 {
			fmt.Fprintf(w, "\twith %s", ui.Clean(strings.Join(r.Extra, ", ")))
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

func (a *app) printChanges(changes []kernels.LockChange) error {
	if a.json() {
		return ui.WriteJSON(a.stdout, struct {
			Changes []kernels.LockChange `json:"changes"`
		}{changes})
	}
	if len(changes) == 0 {
		a.board.Print("nothing changes")
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, c := range changes {
		old, new := c.Old, c.New
		if old == "" {
			old = "(none)"
		}
		if new == "" {
			new = "(none)"
		}
		name, where := c.Name, c.Kernels[0]
		switch n := len(c.Kernels); {
		case c.What == "kernel":
			where = ""
		case n > 1:
			where += fmt.Sprintf(" and %d more", n-1)
		}
		fmt.Fprintf(w, "%s\t%s\t%s -> %s", c.What, name, old, new)
		if where != "" {
			fmt.Fprintf(w, "\t%s", where)
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

// useLock makes the providers of a run answer from a lock file alone.
func (a *app) useLock(name string, distros map[string]kernels.Provider) (map[string]kernels.Provider, *kernels.LockFile, error) {
	f, err := readLockFile(name)
	if err != nil {
		return nil, nil, err
	}
	out := maps.Clone(distros)
	for distro, p := range distros {
		locked := lockProvider{Provider: f.Provider(distro, p), name: name, file: f, users: a.mirrorUsers()}
		if p, ok := p.(interface{ Mirrors() []repo.Mirror }); ok {
			locked.mirrors = p.Mirrors()
		}
		out[distro] = locked
	}
	return out, f, nil
}

// lockProvider answers from a lock file, and knows further places for its packages.
type lockProvider struct {
	kernels.Provider
	name    string
	file    *kernels.LockFile
	mirrors []repo.Mirror
	users   []*url.URL // mirrors with a password
}

// mirrorUsers gives the mirrors with a user's name or password, of the command line and the configuration.
func (a *app) mirrorUsers() []*url.URL {
	var all []string
	for _, archive := range slices.Sorted(maps.Keys(a.config.Mirrors)) {
		all = append(all, a.config.Mirrors[archive]...)
	}
	for _, m := range a.mirrors {
		_, from, _ := strings.Cut(m, "=")
		all = append(all, from)
	}
	var out []*url.URL
	for _, from := range all {
		if u, err := url.Parse(from); err == nil && u.User != nil {
			u.Path = strings.TrimRight(u.Path, "/") + "/"
			out = append(out, u)
		}
	}
	return out
}

// withUser adds to a URL what its mirror wants to know of who asks.
func (p lockProvider) withUser(from string) string {
	u, err := url.Parse(from)
	if err != nil || u.User != nil {
		return from
	}
	for _, m := range p.users {
		if m.Scheme == u.Scheme && m.Host == u.Host && strings.HasPrefix(u.Path, m.Path) {
			u.User = m.User
			return u.String()
		}
	}
	return from
}

func (p lockProvider) Lock(ctx context.Context, k kernels.Kernel, extra kernels.Extra) (kernels.Lock, error) {
	l, err := p.Provider.Lock(ctx, k, extra)
	if err != nil {
		return l, fmt.Errorf("%s: %w; 'godkms-hermetic lock --update' locks what is asked for now", p.name, err)
	}
	l.Toolchain, l.Headers = p.placed(k, l.Toolchain), p.placed(k, l.Headers)
	return l, nil
}

func (p lockProvider) Image(ctx context.Context, l kernels.Lock) (kernels.Image, error) {
	i, err := p.Provider.Image(ctx, l)
	if err != nil {
		return i, fmt.Errorf("%s: %w; 'godkms-hermetic lock --update' adds it", p.name, err)
	}
	i.Packages = p.placed(l.Kernel, i.Packages)
	return i, nil
}

// placed adds to packages where they may be in the mirrors of this run: those that were given come first, for that's where the user wants
// them from; others are asked last.
func (p lockProvider) placed(k kernels.Kernel, list []kernels.Package) []kernels.Package {
	out := slices.Clone(list)
	for i := range out {
		locked := append([]string{out[i].URL}, out[i].Mirrors...)
		var first, last []string
		for _, x := range p.file.Indexes {
			if x.Distro != k.Distro || x.Suite != k.Suite || x.Arch != k.Arch || x.Archive == "" {
				continue
			}
			for _, u := range locked {
				path, inside := strings.CutPrefix(u, strings.TrimRight(x.URL, "/")+"/")
				for _, m := range p.mirrors {
					switch at := m.URL + "/" + path; {
					case !inside || m.Archive != x.Archive:
					case m.From == repo.Given:
						first = append(first, at)
					default:
						last = append(last, at)
					}
				}
			}
		}
		var urls []string
		for _, u := range slices.Concat(first, locked, last) {
			if u = p.withUser(u); !slices.Contains(urls, u) {
				urls = append(urls, u)
			}
		}
		out[i].URL, out[i].Mirrors = urls[0], urls[1:]
	}
	return out
}

// lockedTargets are the kernels of a lock file that selectors name, or all of them, for this machine's architecture.
func lockedTargets(name string, f *kernels.LockFile, list []string) ([]target, error) {
	selectors, err := listSelectors(list)
	if err != nil {
		return nil, err
	}
	var here []kernels.Kernel
	for _, k := range f.Kernels() {
		if k.Arch == kernels.HostArch() {
			here = append(here, k)
		}
	}
	if len(here) == 0 {
		return nil, &exitError{code: exitNoKernel, err: fmt.Errorf("lock file %q has no kernel for %s", name, kernels.HostArch())}
	}
	var out []target
	add := func(k kernels.Kernel) {
		if !slices.ContainsFunc(out, func(t target) bool { return t.err == nil && t.kernel == k }) {
			out = append(out, target{label: k.String(), kernel: k})
		}
	}
	for _, s := range wantedOf(selectors) {
		found := false
		for _, k := range here {
			if selects(s, k, running()) {
				found = true
				if !kernels.Excluded(selectors, k) {
					add(k)
				}
			}
		}
		if !found {
			out = append(out, target{label: s.String(), kernel: kernels.Kernel{Distro: s.Distro, Suite: s.Suite}, asked: s,
				err: fmt.Errorf("lock file %q has no kernel %s: %w; 'godkms-hermetic lock --update' adds it", name, s, kernels.ErrNotFound)})
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("lock file %q: --kernels leaves nothing of it", name)
	}
	return out, nil
}
