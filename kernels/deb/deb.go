// Package deb reads signed APT repositories: it lists their kernels, pins what builds modules for one, and opens .deb files.
package deb

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/ProtonMail/go-crypto/openpgp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// recipe counts the ways in which answers are computed from indexes. It changes with anything that changes an answer: a lock, or which
// kernel is the latest.
const recipe = 3

// Options are those of every reader of repositories.
type Options = repo.Options

// Provider is a kernels.Provider for one distribution.
//
// Of several mirrors each is asked, and what any of them has can be used: of a package that several have, with the same digest, all URLs
// are locked; where one version has several digests, it's the first mirror's. A mirror that can't be looked into is told of by a warning,
// and by the error of what isn't found. Else it is as repo.Asker says.
type Provider struct {
	distro *distro
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
func distros() []*distro { return []*distro{debian()} }

// Distros lists what New takes, each with the archives that Options.Mirrors may name, the main one first.
func Distros() map[string][]string {
	out := map[string][]string{}
	for _, d := range distros() {
		for _, a := range d.archives {
			out[d.name] = append(out[d.name], a.name)
		}
	}
	return out
}

// New makes the provider of a distribution. It touches no network.
func New(distro string, o Options) (*Provider, error) {
	for _, d := range distros() {
		if d.name == distro {
			return newProvider(d, o)
		}
	}
	return nil, fmt.Errorf("deb: no distribution %q", distro)
}

func newProvider(d *distro, o Options) (*Provider, error) {
	o, err := o.Defaults()
	if err != nil {
		return nil, fmt.Errorf("deb: %w", err)
	}
	o.Component = cmp.Or(o.Component, "main")
	from, err := d.mirrors(o.Mirrors, filepath.Join(o.Etc, "apt"))
	if err != nil {
		return nil, err
	}
	bases := map[string][]string{}
	for _, m := range from {
		bases[m.Archive] = append(bases[m.Archive], m.URL)
	}
	keep := repo.Keep{Dir: filepath.Join(o.CacheDir, d.name)}
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

// Claims implements kernels.Provider.
func (p *Provider) Claims(release string) []string { return p.Suites() }

// Kernels implements kernels.Provider. A kernel is listed when the suite has its headers.
func (p *Provider) Kernels(ctx context.Context, suite, arch string) ([]kernels.Candidate, error) {
	out, err := p.kernels(ctx, suite, arch)
	if err != nil {
		return nil, fmt.Errorf("kernels of %s/%s %s: %w", p.distro.name, suite, arch, err)
	}
	return out, nil
}

func (p *Provider) kernels(ctx context.Context, suite, arch string) ([]kernels.Candidate, error) {
	return answer(ctx, p, suite, arch, func(v *view) string { return v.key("kernels", arch) },
		func(pool *pool) ([]kernels.Candidate, error) { return pool.kernels(p.distro.name, suite) })
}

// Lock implements kernels.Provider. Toolchain is the closure of the suite's essential packages, the tools that kbuild and dkms run,
// and the kernel's compiler; Headers is what the closure of the kernel's headers and the extra packages adds to it.
func (p *Provider) Lock(ctx context.Context, k kernels.Kernel, extra kernels.Extra) (kernels.Lock, error) {
	if k.Distro != p.distro.name {
		return kernels.Lock{}, fmt.Errorf("lock %s: distribution %q is not %q", k, k.Distro, p.distro.name)
	}
	l, err := p.lock(ctx, k, extra)
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
	l, err := answer(ctx, p, k.Suite, k.Arch,
		func(v *view) string { return v.key("lock", k.Arch, k.Release, asField(packages), asField(depends)) },
		func(pool *pool) (locked, error) { return pool.lock(k, p.distro, packages, depends) })
	if err != nil {
		return kernels.Lock{}, err
	}
	for _, why := range l.LeftOut {
		p.warnOnce(fmt.Sprintf("%s/%s: of what the package depends on, %s", k.Distro, k.Suite, why))
	}
	return l.Lock, nil
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

// commonOf gives the release, without a flavour, of the headers that flavours share: linux-headers-RELEASE-common or, for rt,
// linux-headers-RELEASE-common-rt.
func commonOf(name string) (release string, ok bool) {
	name, isHeaders := strings.CutPrefix(name, headersPrefix)
	release, tail, isCommon := strings.Cut(name, "-common")
	return release, isHeaders && isCommon && release != "" && (tail == "" || tail[0] == '-')
}

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

// headers tells whether a package is the headers of one kernel, and of which flavour. Those depend on the headers that all flavours
// share; metapackages don't.
func headers(k *candidate) (flavour string, ok bool) {
	release, named := strings.CutPrefix(k.name, headersPrefix)
	if !named || k.all {
		return "", false
	}
	groups, err := parseDepends(k.depends)
	if err != nil {
		return "", false
	}
	for _, g := range groups {
		if base, ok := commonOf(g[0].name); ok {
			if flavour, ok := strings.CutPrefix(release, base+"-"); ok {
				return flavour, true
			}
		}
	}
	return "", false
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

func (p *pool) kernels(distro, suite string) ([]kernels.Candidate, error) {
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
	out := []kernels.Candidate{}
	latest := false
	for _, k := range all {
		flavour, ok := headers(k)
		if !ok {
			continue
		}
		gcc, err := p.compiler(k)
		if err != nil {
			return nil, err
		}
		first := !latest && flavour == p.arch && !k.backports // the plain flavour is named like the architecture
		latest = latest || first
		out = append(out, kernels.Candidate{
			Kernel:         kernels.Kernel{Distro: distro, Suite: suite, Arch: p.arch, Release: strings.TrimPrefix(k.name, headersPrefix)},
			PackageVersion: k.version, Compiler: gcc, Flavour: flavour, Default: flavour == p.arch && !k.backports, Digest: k.digest(), Latest: first,
		})
	}
	return out, nil
}

func (p *pool) lock(k kernels.Kernel, d *distro, packages, depends []extra) (locked, error) {
	name := headersPrefix + k.Release
	versions, err := p.named(name)
	if err != nil {
		return locked{}, err
	}
	if i := slices.IndexFunc(versions, func(c *candidate) bool { _, ok := headers(c); return ok }); i < 0 {
		return locked{}, p.noKernel(k)
	} else if i > 0 {
		versions = versions[i:]
	}
	root := versions[0]
	gcc, err := p.compiler(root)
	if err != nil {
		return locked{}, err
	}
	if gcc == "" {
		return locked{}, fmt.Errorf("package %q names no compiler among its dependencies", root.name)
	}

	c := newClosure(p)
	var start []string
	for _, s := range p.sources {
		if s.backports {
			continue
		}
		ess, err := s.essentials()
		if err != nil {
			return locked{}, err
		}
		for _, e := range ess {
			if now, err := p.current(e.name); err != nil {
				return locked{}, err
			} else if now.essential {
				start = append(start, e.name)
			}
		}
	}
	slices.Sort(start)
	start = slices.Concat(slices.Compact(start), d.tools, withCompiler(gcc))
	for _, name := range slices.Backward(d.prefer) {
		if k, err := p.current(name); err != nil {
			return locked{}, err
		} else if k != nil {
			start = slices.Insert(start, 0, name)
		}
	}
	for _, name := range start {
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
			leftOut = append(leftOut, fmt.Sprintf("%q is left out of the build root: it's not to be had in the component main", e))
		case len(c.order)-before > maxBrought:
			leftOut = append(leftOut, fmt.Sprintf("%q is left out of the build root: it brings %d packages, so it's there to run something; "+
				"--with adds it all the same", e, len(c.order)-before))
			c.rollback(before)
		}
	}
	return locked{LeftOut: leftOut,
		Lock: kernels.Lock{Kernel: k, Compiler: gcc, Toolchain: pin(c.order[:mark], p.arch), Headers: pin(c.order[mark:], p.arch)}}, nil
}

// maxBrought is how many packages one dependency of a package file may bring. Of the 40 -dkms packages of Debian 12 those that serve
// a build bring at most 18 (libelf-dev); the one that brings an X server brings 81.
const maxBrought = 40

func (p *pool) noKernel(k kernels.Kernel) error {
	list, err := p.kernels(k.Distro, k.Suite)
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
		have = append(have, s.names()...)
	}
	return fmt.Errorf("no package %q%s: %w", g[0].name, kernels.DidYouMean(g[0].name, have), kernels.ErrNotFound)
}

func (k *candidate) digest() v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(k.sha256[:])}
}

func pin(chosen []*candidate, arch string) []kernels.Package {
	out := make([]kernels.Package, len(chosen))
	for i, k := range chosen {
		out[i] = kernels.Package{Name: k.name, Version: k.version, Arch: arch, Digest: k.digest(), Size: k.size,
			URL: k.urls[0], Mirrors: append([]string(nil), k.urls[1:]...)}
		if k.all {
			out[i].Arch = "all"
		}
	}
	slices.SortFunc(out, func(a, b kernels.Package) int { return cmp.Compare(a.Name, b.Name) })
	return out
}
