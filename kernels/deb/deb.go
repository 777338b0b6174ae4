// Package deb reads signed APT repositories: it lists their kernels, pins what builds modules for one, and opens .deb files.
package deb

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/ProtonMail/go-crypto/openpgp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// recipe counts the ways in which answers are computed from indexes. It changes with anything that changes an answer: a lock, or which
// kernel is the latest.
const recipe = 5

// Options are those of every reader of repositories.
type Options = repo.Options

// Provider is a kernels.Provider for one distribution.
//
// Of several mirrors each is asked, and what any of them has can be used: of a package that several have, with the same digest, all URLs
// are locked; where one version has several digests, it's the first mirror's. A mirror that can't be looked into is told of by a warning,
// and by the error of what isn't found. Else it is as repo.Asker says.
type Provider struct {
	distro *distro
	ports  *Provider // see distro
	opts   Options
	from   []repo.Mirror
	bases  map[string][]string // URLs by archive, without slashes at their ends
	asker  *repo.Asker
	keys   func() (openpgp.EntityList, error)

	mu    sync.Mutex
	keep  repo.Keep
	views repo.Slots[*view]  // by suite
	pools repo.Slots[*pool]  // by view key and architecture
	index repo.Slots[*index] // by path

	warned map[string]bool // what warnOnce has said
}

var (
	_ kernels.Provider = (*Provider)(nil)
	_ kernels.Finder   = (*Provider)(nil)
	_ kernels.Partial  = (*Provider)(nil)
)

// distros are those that New takes.
func distros() []*distro { return []*distro{debian(), ubuntu()} }

// Distros lists what New takes, each with the archives that Options.Mirrors may name, the main one first.
func Distros() map[string][]string {
	out := map[string][]string{}
	for _, d := range distros() {
		for ; d != nil; d = d.ports {
			for _, a := range d.archives {
				out[d.name] = append(out[d.name], a.name)
			}
		}
	}
	return out
}

// New makes the provider of a distribution. It touches no network.
func New(distro string, o Options) (*Provider, error) {
	for _, d := range distros() {
		if d.name == distro {
			return newProviders(d, o)
		}
	}
	return nil, fmt.Errorf("deb: no distribution %q", distro)
}

// newProviders makes the provider of a distribution with that of its other architectures.
func newProviders(d *distro, o Options) (*Provider, error) {
	if d.ports == nil {
		return newProvider(d, o)
	}
	here, there := o, o
	here.Mirrors, there.Mirrors = maps.Clone(o.Mirrors), map[string][]string{}
	for _, a := range d.ports.archives {
		if urls, ok := o.Mirrors[a.name]; ok {
			there.Mirrors[a.name] = urls
			delete(here.Mirrors, a.name)
		}
	}
	p, err := newProvider(d, here)
	if err != nil {
		return nil, err
	}
	p.ports, err = newProvider(d.ports, there)
	return p, err
}

// of is the provider of an architecture.
func (p *Provider) of(arch string) *Provider {
	if p.ports != nil && !slices.Contains(p.distro.archs, arch) {
		return p.ports
	}
	return p
}

func newProvider(d *distro, o Options) (*Provider, error) {
	o, err := o.Defaults()
	if err != nil {
		return nil, fmt.Errorf("deb: %w", err)
	}
	if o.Component != "" {
		d.components = []string{o.Component}
	}
	from, err := d.mirrors(o.Mirrors, filepath.Join(o.Etc, "apt"))
	if err != nil {
		return nil, err
	}
	bases := map[string][]string{}
	for _, m := range from {
		bases[m.Archive] = append(bases[m.Archive], m.URL)
	}
	keep := repo.Keep{Dir: filepath.Join(o.CacheDir, d.archives[0].name)}
	p := &Provider{distro: d, opts: o, from: from, bases: bases, asker: repo.NewAsker(o, keep), keep: keep, warned: map[string]bool{}}
	p.keys = sync.OnceValues(func() (openpgp.EntityList, error) {
		if o.Keyring != nil {
			return o.Keyring, nil
		}
		return openpgp.ReadArmoredKeyRing(strings.NewReader(d.keyring))
	})
	return p, nil
}

// Suites implements kernels.Provider.
func (p *Provider) Suites() []string { return p.distro.suiteNames() }

// Claims implements kernels.Provider. Suites that ordinary mirrors don't have any more are left out: who means one names it.
func (p *Provider) Claims(release string) []string {
	if !slices.ContainsFunc(p.distro.forms, func(form string) bool { return kernels.Overlap(form, release) }) {
		return nil
	}
	number := 0
	if m := ofSuite.FindStringSubmatch(release); m != nil {
		number, _ = strconv.Atoi(m[1])
	}
	var out []string
	for _, s := range p.distro.suites {
		if !s.ended && (number == 0 || s.number == number || s.name == "sid" && number > s.number) {
			out = append(out, s.name)
		}
	}
	return out
}

// ofSuite finds the suite's number that a release of Debian's says it was made for: "6.12.115+deb13-amd64", "6.1.0-0.deb11.21-amd64".
var ofSuite = regexp.MustCompile(`[+.]deb([0-9]+)`)

// Kernels implements kernels.Provider. A kernel is listed when the suite has its headers.
func (p *Provider) Kernels(ctx context.Context, suite, arch string) ([]kernels.Candidate, error) {
	out, err := p.of(arch).kernels(ctx, suite, arch)
	if err != nil {
		return nil, fmt.Errorf("kernels of %s/%s %s: %w", p.distro.name, suite, arch, err)
	}
	return out, nil
}

func (p *Provider) kernels(ctx context.Context, suite, arch string) ([]kernels.Candidate, error) {
	list, err := answer(ctx, p, suite, arch, func(v *view) ([]kernels.Candidate, error) {
		return repo.Memo(p.keep, v.key("kernels", arch), p.opts.Warn, func() ([]kernels.Candidate, error) {
			pool, err := p.pool(ctx, v, arch, false)
			if err != nil {
				return nil, err
			}
			pool.Lock()
			defer pool.Unlock()
			return pool.kernels(p.distro, suite)
		})
	})
	for i, c := range list {
		if c.Compiler == "" {
			if f, ok := repo.KnownFacts(p.keep, kernels.Package{Digest: c.Digest}); ok {
				list[i].Compiler = f.Compiler.String()
			}
		}
	}
	return list, err
}

// Lock implements kernels.Provider. Toolchain is the closure of the suite's essential packages, the tools that kbuild and dkms run,
// and the kernel's compiler; Headers is what the closure of the kernel's headers and the extra packages adds to it.
func (p *Provider) Lock(ctx context.Context, k kernels.Kernel, extra kernels.Extra) (kernels.Lock, error) {
	if k.Distro != p.distro.name {
		return kernels.Lock{}, fmt.Errorf("lock %s: distribution %q is not %q", k, k.Distro, p.distro.name)
	}
	l, err := p.of(k.Arch).lock(ctx, k, extra)
	if err != nil {
		return kernels.Lock{}, fmt.Errorf("lock %s: %w", k, err)
	}
	return l, nil
}

// locked is a lock with what it lacks of the dependencies that were wished for.
type locked struct {
	Lock    kernels.Lock `json:"lock"`
	LeftOut []string     `json:"left_out"` // each with why, for a warning
}

func (p *Provider) lock(ctx context.Context, k kernels.Kernel, extra kernels.Extra) (kernels.Lock, error) {
	packages, err := parseExtra(extra.Packages)
	if err != nil {
		return kernels.Lock{}, err
	}
	depends, err := parseExtra(extra.Depends)
	if err != nil {
		return kernels.Lock{}, err
	}
	l, err := answer(ctx, p, k.Suite, k.Arch, func(v *view) (locked, error) {
		key := v.key("lock", k.Arch, k.Release, p.opts.Compiler, asField(packages), asField(depends))
		return repo.Memo(p.keep, key, p.opts.Warn, func() (locked, error) { return p.resolve(ctx, v, k, packages, depends) })
	})
	if err != nil {
		return kernels.Lock{}, err
	}
	for _, why := range l.LeftOut {
		p.warnOnce(fmt.Sprintf("%s/%s: of what the package depends on, %s", k.Distro, k.Suite, why))
	}
	return l.Lock, nil
}

// resolve makes a lock: of the first component's packages if they will do, else of those of all.
func (p *Provider) resolve(ctx context.Context, v *view, k kernels.Kernel, packages, depends []extra) (locked, error) {
	pool, err := p.pool(ctx, v, k.Arch, false)
	if err != nil {
		return locked{}, err
	}
	root, by, err := pool.root(k, p.distro)
	if err != nil {
		return locked{}, err
	}
	c := choice{name: by}
	switch {
	case p.opts.Compiler != "":
		c = choice{name: p.opts.Compiler, forced: true}
	case by == "":
		facts, err := repo.Facts(ctx, p.keep, p.opts, p.Payload, pin([]*candidate{root})[0])
		if err != nil {
			return locked{}, err
		}
		if facts.Release != "" && facts.Release != k.Release {
			return locked{}, fmt.Errorf("package %q has the headers of another kernel, %q", root.name, facts.Release)
		}
		c = choice{name: facts.Compiler.String(), facts: facts}
	}
	l, err := pool.lock(k, p.distro, root, c, packages, depends)
	if len(p.distro.components) == 1 || errors.Is(err, errDamagedIndex) || err == nil && len(l.LeftOut) == 0 {
		return l, err
	}
	if pool, err = p.pool(ctx, v, k.Arch, true); err != nil {
		return locked{}, err
	}
	if root, _, err = pool.root(k, p.distro); err != nil {
		return locked{}, err
	}
	return pool.lock(k, p.distro, root, c, packages, depends)
}

// A choice is the compiler of a lock.
type choice struct {
	name   string // as Lock.Compiler
	forced bool
	facts  kernels.Facts // that it was read from, if it was
}

// warnOnce says a thing once, for however many kernels it holds.
func (p *Provider) warnOnce(text string) {
	p.mu.Lock()
	said := p.warned[text]
	p.warned[text] = true
	p.mu.Unlock()
	if !said {
		p.opts.Warn(text)
	}
}

const headersPrefix = "linux-headers-"

// compilerOf gives gcc-VERSION for the packages gcc-VERSION and gcc-VERSION-for-host, and clang-VERSION for that package.
func compilerOf(name string) (compiler string, ok bool) {
	compiler = strings.TrimSuffix(name, "-for-host")
	version, known := strings.CutPrefix(compiler, "gcc-")
	if !known {
		compiler = name
		version, known = strings.CutPrefix(name, "clang-")
	}
	return compiler, known && version != "" && strings.Trim(version, "0123456789.") == ""
}

// withCompiler is what the compiler brings to the toolchain. A kernel that clang built is linked by lld, or takes LLVM's tools at
// least: kbuild asks for all of them with LLVM=1. Which linker it was is in the configuration, and that's in no index.
func withCompiler(compiler string) []string {
	if version, ok := strings.CutPrefix(compiler, "clang-"); ok {
		return []string{compiler, "lld-" + version, "llvm-" + version}
	}
	return []string{compiler}
}

// compiler follows the headers' own dependencies to the package of the compiler: directly, through the kernel's package
// linux-compiler-gcc-*, or from gcc-*-for-host. It is empty if there is none. Where they name a gcc too, clang it is: what gcc has
// built has no use for the other.
func (p *pool) compiler(k *candidate) (string, error) {
	groups, err := parseDepends(k.depends)
	if err != nil {
		return "", err
	}
	var found []string
	for _, g := range groups {
		for _, r := range g {
			if c, ok := compilerOf(r.name); ok {
				found = append(found, c)
			}
			if !strings.HasPrefix(r.name, "linux-compiler-") {
				continue
			}
			all, err := p.named(r.name)
			if err != nil {
				return "", err
			}
			for _, c := range all {
				if !r.accepts(c.version) {
					continue
				}
				inner, err := parseDepends(c.depends)
				if err != nil {
					return "", err
				}
				for _, g := range inner {
					if c, ok := compilerOf(g[0].name); ok {
						found = append(found, c)
					}
				}
			}
		}
	}
	if i := slices.IndexFunc(found, func(c string) bool { return strings.HasPrefix(c, "clang-") }); i >= 0 {
		return found[i], nil
	}
	return strings.Join(found[:min(1, len(found))], ""), nil
}

func (p *pool) kernels(d *distro, suite string) ([]kernels.Candidate, error) {
	var all []*candidate
	seen := map[string]bool{}
	for _, s := range p.sources {
		pkgs, err := s.withPrefix(headersPrefix, false)
		if err != nil {
			return nil, err
		}
		for _, k := range pkgs {
			if seen[k.name] {
				continue
			}
			seen[k.name] = true
			versions, err := p.named(k.name)
			if err != nil {
				return nil, err
			}
			all = append(all, versions[0])
		}
	}
	slices.SortFunc(all, func(a, b *candidate) int {
		return cmp.Or(-compareVersions(a.version, b.version), cmp.Compare(a.name, b.name))
	})
	line, err := p.line()
	if err != nil {
		return nil, err
	}
	out := []kernels.Candidate{}
	latest := false
	for _, k := range all {
		flavour, isDefault, ok := d.headers(k)
		if !ok {
			continue
		}
		isDefault = isDefault && strings.HasPrefix(k.name, headersPrefix+line)
		gcc, err := p.compiler(k)
		if err != nil {
			return nil, err
		}
		out = append(out, kernels.Candidate{
			Kernel:         kernels.Kernel{Distro: d.name, Suite: suite, Arch: p.arch, Release: strings.TrimPrefix(k.name, headersPrefix)},
			PackageVersion: k.version, Compiler: gcc, Flavour: flavour, Default: isDefault, Digest: k.digest(), Latest: isDefault && !latest,
		})
		latest = latest || isDefault
	}
	return out, nil
}

// line is how the releases begin of a suite's own line of kernels, "6.1.": the version of the package that stands for its newest headers says
// so. Debian's security archive has later lines beside it. It is empty where there is no such package, as in Ubuntu, whose names tell.
func (p *pool) line() (string, error) {
	meta, err := p.current(headersPrefix + p.arch)
	if err != nil || meta == nil {
		return "", err
	}
	_, upstream, _ := splitVersion(meta.version)
	part := strings.SplitN(upstream, ".", 3)
	if len(part) < 2 {
		return "", nil
	}
	minor, _, _ := strings.Cut(part[1], "~")
	return part[0] + "." + minor + ".", nil
}

// root gives the headers of a kernel, and the compiler that their dependencies name, if they do.
func (p *pool) root(k kernels.Kernel, d *distro) (root *candidate, compiler string, err error) {
	p.Lock()
	defer p.Unlock()
	versions, err := p.named(headersPrefix + k.Release)
	if err != nil {
		return nil, "", err
	}
	i := slices.IndexFunc(versions, func(c *candidate) bool { _, _, ok := d.headers(c); return ok })
	if i < 0 {
		return nil, "", p.noKernel(k, d)
	}
	compiler, err = p.compiler(versions[i])
	return versions[i], compiler, err
}

// start gives the names of what a toolchain is made of, but for the compiler.
func (p *pool) start(d *distro) ([]string, error) {
	var start []string
	for _, s := range p.sources {
		if s.backports {
			continue
		}
		ess, err := s.essentials()
		if err != nil {
			return nil, err
		}
		for _, e := range ess {
			if now, err := p.current(e.name); err != nil {
				return nil, err
			} else if now.essential {
				start = append(start, e.name)
			}
		}
	}
	slices.Sort(start)
	start = slices.Concat(slices.Compact(start), d.tools)
	for _, name := range slices.Backward(d.prefer) {
		if k, err := p.current(name); err != nil {
			return nil, err
		} else if k != nil {
			start = slices.Insert(start, 0, name)
		}
	}
	return start, nil
}

// exact gives the version of a compiler's package that built a kernel, else the newest of the same upstream version, else "".
func (p *pool) exact(c choice) (string, error) {
	all, err := p.named(c.name)
	if err != nil {
		return "", err
	}
	same := ""
	for _, k := range all {
		if strings.Contains(c.facts.Compiler.Text, " "+k.version+")") {
			return k.version, nil
		}
		if _, upstream, _ := splitVersion(k.version); same == "" && upstream == c.facts.Compiler.Version {
			same = k.version
		}
	}
	return same, nil
}

func (p *pool) lock(k kernels.Kernel, d *distro, root *candidate, by choice, packages, depends []extra) (locked, error) {
	p.Lock()
	defer p.Unlock()
	if have, err := p.named(by.name); err != nil {
		return locked{}, err
	} else if len(have) == 0 {
		return locked{}, p.noCompiler(k, root, by)
	}
	start, err := p.start(d)
	if err != nil {
		return locked{}, err
	}
	c := newClosure(p)
	version, err := p.exact(by)
	if err != nil {
		return locked{}, err
	}
	for _, name := range slices.Concat(start, withCompiler(by.name)) {
		if name == by.name && version != "" {
			err := c.satisfy(group{{name: name, op: "=", ver: version}})
			if err == nil {
				continue
			}
			if errors.Is(err, errTooHard) || errors.Is(err, errDamagedIndex) {
				return locked{}, fmt.Errorf("toolchain: %w", err)
			}
		}
		if err := c.satisfy(group{{name: name}}); err != nil {
			return locked{}, fmt.Errorf("toolchain: %w", err)
		}
	}
	mark := len(c.order)

	// Newer headers depend on their kernel's image too, so that the two are removed together. Nothing in a build reads it, and it is
	// ten times as large.
	c.skip = func(k *candidate, g group) bool {
		return k == root && !slices.ContainsFunc(g, func(r relation) bool { return !strings.HasPrefix(r.name, "linux-image-") })
	}
	if err := c.install(root); err != nil {
		return locked{}, err
	}
	for _, e := range packages {
		if err := p.known(e.group); err != nil {
			return locked{}, &kernels.ExtraError{Entry: e.given, Err: err}
		}
		if err := c.satisfy(e.group); err != nil {
			return locked{}, &kernels.ExtraError{Entry: e.given, Err: err}
		}
	}
	leftOut := []string{}
	for _, e := range depends {
		if d.isMoot(e.group) {
			continue
		}
		before := len(c.order)
		switch err := c.satisfy(e.group); {
		case errors.Is(err, errDamagedIndex):
			return locked{}, err
		case err != nil:
			leftOut = append(leftOut, fmt.Sprintf("%q is left out of the build root: it's not to be had in the component %s", e, strings.Join(d.components, " or ")))
		case len(c.order)-before > maxBrought:
			leftOut = append(leftOut, fmt.Sprintf("%q is left out of the build root: it brings %d packages, so it's there to run something; "+
				"--with adds it all the same", e, len(c.order)-before))
			c.rollback(before)
		}
	}
	l := kernels.Lock{Kernel: k, Compiler: by.name, Forced: by.forced, Build: by.facts.Build, Toolchain: pin(c.order[:mark]), Headers: pin(c.order[mark:])}
	if l.Build == "usr/src/"+headersPrefix+k.Release {
		l.Build = ""
	}
	return locked{LeftOut: leftOut, Lock: l}, nil
}

// noCompiler says which compiler there isn't, and who asked for it.
func (p *pool) noCompiler(k kernels.Kernel, root *candidate, by choice) error {
	var have []string
	for _, s := range p.sources {
		for _, name := range s.Names() {
			if c, ok := compilerOf(name); ok && c == name {
				have = append(have, name)
			}
		}
	}
	slices.SortFunc(have, func(a, b string) int { return -compareVersions(a, b) })
	have = slices.Compact(have)
	who := fmt.Sprintf("the kernel was built by %q, of which %s/%s has no package", by.name, k.Distro, k.Suite)
	if text := by.facts.Compiler.Text; text != "" {
		who = fmt.Sprintf("the kernel was built by %q, and %s/%s has no package %q", text, k.Distro, k.Suite, by.name)
	}
	if by.forced {
		return fmt.Errorf("--compiler %s: %s/%s has no such package; it has %s: %w", by.name, k.Distro, k.Suite, strings.Join(have, ", "), kernels.ErrNotFound)
	}
	return fmt.Errorf("%s; it has %s, and --compiler takes one of those all the same: %w", who, strings.Join(have, ", "), kernels.ErrNotFound)
}

// maxBrought is how many packages one dependency of a package file may bring. Of the 40 -dkms packages of Debian 12 those that serve
// a build bring at most 18 (libelf-dev); the one that brings an X server brings 81.
const maxBrought = 40

func (p *pool) noKernel(k kernels.Kernel, d *distro) error {
	list, err := p.kernels(d, k.Suite)
	if err != nil {
		return err
	}
	var have []string
	for _, c := range list {
		have = append(have, c.Release)
	}
	return fmt.Errorf("no kernel %q%s: %w", k.Release, kernels.DidYouMean(k.Release, have), kernels.ErrNotFound)
}

// known tells whether some package has or provides one of a dependency's names.
func (p *pool) known(g group) error {
	for _, r := range g {
		real, err := p.named(r.name)
		if err != nil {
			return err
		}
		virtual, err := p.offering(r.name)
		if err != nil {
			return err
		}
		if len(real) > 0 || len(virtual) > 0 {
			return nil
		}
	}
	var have []string
	for _, s := range p.sources {
		have = append(have, s.Names()...)
	}
	return fmt.Errorf("no package %q%s: %w", g[0].name, kernels.DidYouMean(g[0].name, have), kernels.ErrNotFound)
}

func (k *candidate) digest() v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(k.sha256[:])}
}

func pin(chosen []*candidate) []kernels.Package {
	out := make([]kernels.Package, len(chosen))
	for i, k := range chosen {
		out[i] = kernels.Package{Name: k.name, Version: k.version, Arch: k.arch, Digest: k.digest(), Size: k.size,
			URL: k.urls[0], Mirrors: append([]string(nil), k.urls[1:]...)}
		if k.all {
			out[i].Arch = "all"
		}
	}
	slices.SortFunc(out, func(a, b kernels.Package) int { return cmp.Compare(a.Name, b.Name) })
	return out
}
