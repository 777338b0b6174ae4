package rpm

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// tools are what kbuild runs for a module and a kernel's configuration can ask for, what dkms runs, and what sources and modules are
// packed with. The shell, sed and awk come with what package managers take for granted.
var tools = []string{"bash", "coreutils", "sed", "gawk", "grep", "findutils", "diffutils", "tar", "gzip", "xz", "make", "patch", "kmod", "bc", "binutils"}

// preferred are packages that are chosen first of all where they exist: as an answer to alternatives, or for what no dependency says:
// the libraries of objtool and sign-file, which packages of headers have without depending on them.
var preferred = []string{"glibc-minimal-langpack", "bash-sh", "elfutils-libelf", "openssl-libs", "libelf1", "libopenssl3"}

// moot are patterns (path.Match) of names that a package file's dependency is passed over for: dkms and the headers, which this program
// stands in for; the kernel; the compiler, which is to be the kernel's own and no other; what serves a running system.
var moot = []string{"dkms", "kernel", "kernel-*", "kernel[0-9]*", "gcc", "gcc-[0-9]*", "gcc[0-9]*", "systemd", "systemd-*", "udev"}

func isMoot(d *depend) bool {
	return slices.ContainsFunc(append(d.args, d), func(d *depend) bool {
		return d.op == plain && slices.ContainsFunc(moot, func(pattern string) bool {
			ok, err := path.Match(pattern, d.name)
			return err == nil && ok
		})
	})
}

// An extra is a dependency of a build root, with the words that it was given in.
type extra struct {
	*depend
	given string
}

// parseExtra reads dependencies and gives each of them once, sorted, so that the order they were given in makes no difference; those that
// leave a choice come last, for the others may settle it.
func parseExtra(list []string) ([]extra, error) {
	var out []extra
	for _, entry := range list {
		d, err := parseDepend(entry)
		if err != nil {
			return nil, &kernels.ExtraError{Entry: entry, Err: err}
		}
		out = append(out, extra{d, entry})
	}
	slices.SortFunc(out, func(a, b extra) int {
		return cmp.Or(compareBool(a.op != plain, b.op != plain), cmp.Compare(a.String(), b.String()), cmp.Compare(a.given, b.given))
	})
	return slices.CompactFunc(out, func(a, b extra) bool { return a.String() == b.String() }), nil
}

// wanted is what a lock is of.
type wanted struct {
	kernel            kernels.Kernel
	root              kernels.Package // of its headers
	build             string          // as Lock.Build
	compiler          string          // as Lock.Compiler
	version           string          // of it that built the kernel; may be empty
	forced            bool
	packages, depends []extra
}

func (w wanted) key() []string {
	out := []string{w.kernel.Release, w.root.Digest.String(), w.build, w.compiler, w.version, strconv.FormatBool(w.forced)}
	for _, list := range [][]extra{w.packages, w.depends} {
		out = append(out, strconv.Itoa(len(list)))
		for _, e := range list {
			out = append(out, e.String())
		}
	}
	return out
}

// locked is a lock with what it lacks of the dependencies that were wished for.
type locked struct {
	Lock    kernels.Lock `json:"lock"`
	LeftOut []string     `json:"left_out"` // each with why, for a warning
}

// maxBrought is how many packages one dependency of a package file may bring, as in package deb.
const maxBrought = 40

func (p *pool) lock(d *distro, w wanted) (locked, error) {
	versions, err := p.named(w.root.Name)
	if err != nil {
		return locked{}, err
	}
	i := slices.IndexFunc(versions, func(k *candidate) bool { return k.digest == w.root.Digest })
	if i < 0 {
		return locked{}, errDamagedIndex
	}
	root := versions[i]
	compilers, err := p.compilers(w.compiler, w.version)
	if err != nil {
		return locked{}, err
	}
	if len(compilers) == 0 {
		family, _, _ := strings.Cut(w.compiler, "-")
		have, err := p.have(family)
		if err != nil {
			return locked{}, err
		}
		return locked{}, fmt.Errorf("no package has the compiler %s, which built the kernel; there are %s: take one of these with --compiler, "+
			"or a mirror that has it (--mirror): %w", w.compiler, strings.Join(have, ", "), kernels.ErrNotFound)
	}

	c := newClosure(p)
	c.skip = func(k *candidate, d *depend) bool { return k == root && isOfImage(d) }
	for _, name := range preferred {
		if all, err := p.named(name); err != nil {
			return locked{}, err
		} else if len(all) > 0 {
			if err := c.install(all[0]); fatal(err) {
				return locked{}, err
			}
		}
	}
	for _, k := range compilers {
		if err := c.install(k); err != nil {
			return locked{}, fmt.Errorf("toolchain: %w", err)
		}
	}
	for _, name := range tools {
		if err := c.satisfy(&depend{name: name}); err != nil {
			return locked{}, fmt.Errorf("toolchain: %w", err)
		}
	}
	mark := len(c.order)
	if err := c.install(root); err != nil {
		return locked{}, err
	}
	for _, e := range w.packages {
		if err := p.known(e.depend); err != nil {
			return locked{}, &kernels.ExtraError{Entry: e.given, Err: err}
		}
		if err := c.satisfy(e.depend); err != nil {
			return locked{}, &kernels.ExtraError{Entry: e.given, Err: err}
		}
	}
	leftOut := []string{}
	for _, e := range w.depends {
		if isMoot(e.depend) {
			continue
		}
		before := c.mark()
		switch err := c.satisfy(e.depend); {
		case fatal(err):
			return locked{}, err
		case err != nil:
			leftOut = append(leftOut, fmt.Sprintf("%q is left out of the build root: the distribution's repositories don't have it", e))
		case len(c.order)-before.order > maxBrought:
			leftOut = append(leftOut, fmt.Sprintf("%q is left out of the build root: it brings %d packages, so it's there to run something; "+
				"--with adds it all the same", e, len(c.order)-before.order))
			c.rollback(before)
		}
	}
	return locked{LeftOut: leftOut, Lock: kernels.Lock{Kernel: w.kernel, Compiler: w.compiler, Forced: w.forced, Build: w.build,
		Toolchain: pin(c.order[:mark]), Headers: pin(c.order[mark:])}}, nil
}

// compilers gives the packages of a compiler of a family and major version, "gcc-13": the version that is asked for if there is one,
// else the newest. Names differ: the distribution's default one is gcc, others are SUSE's and Amazon's gcc13, and the toolsets of
// Enterprise Linux. What clang built is linked by lld, or takes LLVM's tools at least.
func (p *pool) compilers(compiler, version string) ([]*candidate, error) {
	family, major, _ := strings.Cut(compiler, "-")
	best, err := p.compiler([]string{family, family + major, "gcc-toolset-" + major + "-" + family}, major, version)
	if best == nil || err != nil {
		return nil, err
	}
	out := []*candidate{best}
	if family == "clang" {
		for _, name := range []string{"lld", "llvm"} {
			k, err := p.compiler([]string{name, name + major}, major, splitEVR(best.version).version)
			if err != nil {
				return nil, err
			}
			if k != nil {
				out = append(out, k)
			}
		}
	}
	return out, nil
}

// compiler gives the package with one of some names that has a version, or else the newest of its major version.
func (p *pool) compiler(names []string, major, version string) (*candidate, error) {
	var best *candidate
	for _, name := range names {
		all, err := p.named(name)
		if err != nil {
			return nil, err
		}
		for _, k := range all {
			v := splitEVR(k.version).version
			if !isVersion(v, major) {
				continue
			}
			exact := version != "" && isVersion(v, version)
			switch {
			case best == nil:
				best = k
			case exact == isVersion(splitEVR(best.version).version, cmp.Or(version, "none")):
				if name == best.name && compareVersions(k.version, best.version) > 0 {
					best = k
				}
			case exact:
				best = k
			}
		}
	}
	return best, nil
}

// isVersion tells whether a version is another, or one of its line: 13.2.1+git8285 is 13, 13.2 and 13.2.1.
func isVersion(version, line string) bool {
	rest, ok := strings.CutPrefix(version, line)
	return ok && (rest == "" || !isDigit(rest[0]))
}

// have lists the compilers of a family that there are.
func (p *pool) have(family string) ([]string, error) {
	var out []string
	for _, s := range p.sources {
		for _, name := range s.Names() {
			rest, ok := strings.CutPrefix(name, family)
			toolset, isToolset := strings.CutSuffix(name, "-"+family)
			if !(ok && strings.Trim(rest, "0123456789") == "" || isToolset && strings.HasPrefix(toolset, "gcc-toolset-")) {
				continue
			}
			all, err := p.named(name)
			if err != nil {
				return nil, err
			}
			for _, k := range all {
				major, _, _ := strings.Cut(splitEVR(k.version).version, ".")
				out = append(out, family+"-"+major)
			}
		}
	}
	slices.Sort(out)
	if out = slices.Compact(out); len(out) == 0 {
		out = []string{"none"}
	}
	return out, nil
}

// known tells whether some package has or provides what a plain dependency names.
func (p *pool) known(d *depend) error {
	if d.op != plain {
		return nil
	}
	if all, err := p.meeting(&depend{name: d.name}); err != nil || len(all) > 0 {
		return err
	}
	var have []string
	for _, s := range p.sources {
		have = append(have, s.Names()...)
	}
	return fmt.Errorf("no package %q%s: %w", d.name, kernels.DidYouMean(d.name, have), kernels.ErrNotFound)
}

func (k *candidate) pin() kernels.Package {
	p := kernels.Package{Name: k.name, Version: k.version, Arch: k.arch, Digest: k.digest, Size: k.size}
	for i, b := range k.bases {
		url := b + "/" + strings.ReplaceAll(k.path, "%", "%25")
		if i == 0 {
			p.URL = url
		} else {
			p.Mirrors = append(p.Mirrors, url)
		}
	}
	return p
}

func pin(chosen []*candidate) []kernels.Package {
	out := make([]kernels.Package, len(chosen))
	for i, k := range chosen {
		out[i] = k.pin()
	}
	slices.SortFunc(out, func(a, b kernels.Package) int { return cmp.Compare(a.Name, b.Name) })
	return out
}
