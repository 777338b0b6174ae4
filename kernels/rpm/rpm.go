// Package rpm reads signed RPM repositories (repomd): it lists their kernels, pins what builds modules for one, and opens rpm packages.
package rpm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// recipe counts the ways in which answers are computed from indexes. It changes with anything that changes an answer: a lock, or which
// kernel is the latest.
const recipe = 1

// Provider is a kernels.Provider for one distribution.
type Provider struct {
	distro  *distro
	mirrors []string // without slashes at their ends
	given   bool     // that they were, and are not the distribution's own
	asker   *repo.Asker
	keys    func() (openpgp.EntityList, error)

	views repo.Slots[*view]  // by suite and architecture
	pools repo.Slots[*pool]  // by view key
	open  repo.Slots[*index] // by file

	warned sync.Map // what warnOnce has said
}

var (
	_ kernels.Provider = (*Provider)(nil)
	_ kernels.Partial  = (*Provider)(nil)
)

// Distros lists what New takes, each with the archive that Options.Mirrors may name.
func Distros() map[string][]string {
	out := map[string][]string{}
	for _, d := range distros() {
		out[d.name] = []string{d.name}
	}
	return out
}

// New makes the provider of a distribution. It touches no network. The archive that Options.Mirrors doesn't give is the distribution's own,
// whatever this host is configured for; RHEL and SLES have none.
func New(distro string, o repo.Options) (*Provider, error) {
	for _, d := range distros() {
		if d.name == distro {
			return newProvider(d, o)
		}
	}
	return nil, fmt.Errorf("rpm: no distribution %q", distro)
}

// Mirrors are those that the distribution's repositories are read from; none if it has no public one and none was given.
func (p *Provider) Mirrors() []repo.Mirror {
	from := repo.BuiltIn
	if p.given {
		from = repo.Given
	}
	var out []repo.Mirror
	for _, m := range p.mirrors {
		out = append(out, repo.Mirror{Archive: p.distro.name, URL: m, From: from})
	}
	return out
}

func newProvider(d *distro, o repo.Options) (*Provider, error) {
	o, err := o.Defaults()
	if err != nil {
		return nil, fmt.Errorf("rpm: %w", err)
	}
	p := &Provider{distro: d, asker: repo.NewAsker(o, repo.Keep{Dir: filepath.Join(o.CacheDir, d.name)})}
	urls, ok := o.Mirrors[d.name]
	p.given = ok
	if !ok {
		urls = d.urls
	}
	for _, m := range urls {
		u, err := url.Parse(m)
		if err != nil {
			return nil, fmt.Errorf("mirror of %q: %w", d.name, err)
		}
		if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			return nil, fmt.Errorf("mirror of %q: %q is no http or https URL of a folder", d.name, m)
		}
		if m = strings.TrimRight(m, "/"); !slices.Contains(p.mirrors, m) {
			p.mirrors = append(p.mirrors, m)
		}
	}
	p.keys = sync.OnceValues(func() (openpgp.EntityList, error) {
		if o.Keyring != nil {
			return o.Keyring, nil
		}
		var all openpgp.EntityList
		for _, armored := range d.keyrings {
			keys, err := openpgp.ReadArmoredKeyRing(strings.NewReader(armored))
			if err != nil {
				return nil, fmt.Errorf("read the keys of %s: %w", d.name, err)
			}
			all = append(all, keys...)
		}
		return all, nil
	})
	return p, nil
}

// Suites implements kernels.Provider.
func (p *Provider) Suites() []string {
	var out []string
	for _, s := range p.distro.suites {
		out = append(out, s.name)
	}
	return out
}

// Claims implements kernels.Provider. A distribution without a mirror claims nothing.
func (p *Provider) Claims(release string) []string {
	var out []string
	for _, s := range p.distro.suites {
		if len(p.mirrors) > 0 && s.claims(release) {
			out = append(out, s.name)
		}
	}
	return out
}

// Indexes implements kernels.Provider.
func (p *Provider) Indexes(ctx context.Context, suite, arch string) ([]kernels.Index, error) {
	out, err := answer(ctx, p, suite, arch, func(v *view) ([]kernels.Index, error) { return v.indexes(), nil })
	if err != nil {
		return nil, fmt.Errorf("indexes of %s/%s %s: %w", p.distro.name, suite, arch, err)
	}
	return out, nil
}

// A listed kernel is one that is listed, with its package of headers.
type listedKernel struct {
	kernels.Candidate
	Package kernels.Package `json:"package"`
}

// Kernels implements kernels.Provider. A kernel is listed when the suite has its headers.
func (p *Provider) Kernels(ctx context.Context, suite, arch string) ([]kernels.Candidate, error) {
	list, err := answer(ctx, p, suite, arch, func(v *view) ([]listedKernel, error) { return p.kernels(ctx, v, arch) })
	if err != nil {
		return nil, fmt.Errorf("kernels of %s/%s %s: %w", p.distro.name, suite, arch, err)
	}
	out := []kernels.Candidate{}
	for _, k := range list {
		if facts, ok := repo.KnownFacts(p.asker.Keep, k.Package); ok {
			k.Compiler = facts.Compiler.String()
		}
		out = append(out, k.Candidate)
	}
	return out, nil
}

func (p *Provider) kernels(ctx context.Context, v *view, arch string) ([]listedKernel, error) {
	return repo.Memo(p.asker.Keep, v.key(p.distro, "kernels"), p.asker.Warn, func() ([]listedKernel, error) {
		pool, err := p.pool(ctx, v)
		if err != nil {
			return nil, err
		}
		pool.Lock()
		defer pool.Unlock()
		return pool.kernels(p.distro, v.suite, arch)
	})
}

// kernels lists the packages of headers, those of the newest kernel first.
func (p *pool) kernels(d *distro, suite, arch string) ([]listedKernel, error) {
	names := map[string]bool{}
	for _, s := range p.sources {
		first, end := s.WithPrefix("kernel")
		for i := first; i < end; i++ {
			names[string(s.Name(i))] = true
		}
	}
	type headers struct {
		*candidate
		release, flavour string
	}
	var all []headers
	for name := range names {
		flavour, ok := flavourOf(name)
		if !ok {
			continue
		}
		said, err := p.said(name)
		if err != nil {
			return nil, err
		}
		versions, err := p.named(name)
		if err != nil {
			return nil, err
		}
		for _, k := range versions {
			release, ok := said[k]
			switch {
			case ok, k.arch == noarch:
			case d.names == suse:
				release, ok = suseRelease(k.pkg, flavour)
			default:
				release, ok = redHatRelease(k.pkg, flavour)
			}
			if ok && validName(release) == nil { // what a list says becomes a word of scripts, and the name of folders
				all = append(all, headers{k, release, flavour})
			}
		}
	}
	slices.SortFunc(all, func(a, b headers) int {
		return cmp.Or(-compareVersions(a.version, b.version), cmp.Compare(a.name, b.name), cmp.Compare(a.digest.Hex, b.digest.Hex))
	})
	plain := cmp.Or(d.plain, plainFlavour)
	out, latest, seen := []listedKernel{}, false, map[string]bool{}
	for _, h := range all {
		if seen[h.release] { // of SUSE's rebuilds the newest
			continue
		}
		seen[h.release] = true
		first := !latest && h.flavour == plain
		latest = latest || first
		c := kernels.Candidate{Kernel: kernels.Kernel{Distro: d.name, Suite: suite, Arch: arch, Release: h.release},
			PackageVersion: h.version, Flavour: h.flavour, Default: h.flavour == plain, Digest: h.digest, Latest: first}
		if h.built > 0 {
			c.Date = time.Unix(h.built, 0).UTC()
		}
		out = append(out, listedKernel{c, h.pin()})
	}
	return out, nil
}

// said gives the releases that packages of headers of a name say theirs to be.
func (p *pool) said(name string) (map[*candidate]string, error) {
	out := map[*candidate]string{}
	all, err := p.named(name)
	if err != nil {
		return nil, err
	}
	for _, s := range p.sources {
		for _, offer := range unames(name) {
			offers, err := s.Offers(offer)
			if err != nil {
				return nil, err
			}
			for _, o := range offers {
				if string(s.Name(o.Package)) != name {
					continue
				}
				k, err := s.pkg(o.Package)
				if err != nil {
					return nil, err
				}
				v, is := splitOffer(o.Version)
				i := slices.IndexFunc(all, func(c *candidate) bool { return c.digest == k.digest })
				if i >= 0 && is == equal && v.release != "" {
					out[all[i]] = v.version + "-" + v.release
				}
			}
		}
	}
	return out, nil
}

// Lock implements kernels.Provider. Toolchain is the closure of what kbuild and dkms run and of the kernel's compiler; Headers is what the
// closure of the kernel's headers and the extra packages adds to it. Which compiler that is says the package of headers, which is fetched
// for it once (repo.Facts).
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

func (p *Provider) lock(ctx context.Context, k kernels.Kernel, extra kernels.Extra) (kernels.Lock, error) {
	packages, err := parseExtra(extra.Packages)
	if err != nil {
		return kernels.Lock{}, err
	}
	depends, err := parseExtra(extra.Depends)
	if err != nil {
		return kernels.Lock{}, err
	}
	l, err := answer(ctx, p, k.Suite, k.Arch, func(v *view) (locked, error) { return p.lockIn(ctx, v, k, packages, depends) })
	if err != nil {
		return kernels.Lock{}, err
	}
	for _, why := range l.LeftOut {
		p.warnOnce(fmt.Sprintf("%s/%s: of what the package depends on, %s", k.Distro, k.Suite, why))
	}
	return l.Lock, nil
}

// lockIn locks what a view has.
func (p *Provider) lockIn(ctx context.Context, v *view, k kernels.Kernel, packages, depends []extra) (locked, error) {
	list, err := p.kernels(ctx, v, k.Arch)
	if err != nil {
		return locked{}, err
	}
	i := slices.IndexFunc(list, func(c listedKernel) bool { return c.Release == k.Release })
	if i < 0 {
		return locked{}, p.noKernel(k, list)
	}
	facts, err := repo.Facts(ctx, p.asker.Keep, p.asker.Options, p.Payload, list[i].Package)
	forced := p.asker.Compiler != ""
	if err != nil && !(forced && errors.Is(err, kernels.ErrNotFound)) {
		return locked{}, err
	}
	if facts.Release != "" && facts.Release != k.Release {
		return locked{}, fmt.Errorf("package %s %s has the headers of the kernel %q", list[i].Package.Name, list[i].Package.Version, facts.Release)
	}
	w := wanted{kernel: k, root: list[i].Package, build: cmp.Or(facts.Build, "usr/src/kernels/"+k.Release), compiler: facts.Compiler.String(),
		version: facts.Compiler.Version, forced: forced, packages: packages, depends: depends}
	if forced {
		w.compiler, w.version = p.asker.Compiler, ""
	}
	return repo.Memo(p.asker.Keep, v.key(p.distro, "lock", w.key()...), p.asker.Warn, func() (locked, error) {
		pool, err := p.pool(ctx, v)
		if err != nil {
			return locked{}, err
		}
		pool.Lock()
		defer pool.Unlock()
		return pool.lock(p.distro, w)
	})
}

// warnOnce says a thing once, for however many kernels it holds.
func (p *Provider) warnOnce(text string) {
	if _, said := p.warned.LoadOrStore(text, true); !said {
		p.asker.Warn(text)
	}
}

func (p *Provider) noKernel(k kernels.Kernel, list []listedKernel) error {
	var have []string
	for _, c := range list {
		have = append(have, c.Release)
	}
	text := "another mirror may still have it (--mirror)"
	if p.distro.past != "" {
		text = fmt.Sprintf("what mirrors dropped an older release has, as in --mirror %s=%s", p.distro.name, p.distro.past)
	}
	return fmt.Errorf("no kernel %q%s: %w; %s", k.Release, kernels.DidYouMean(k.Release, have), kernels.ErrNotFound, text)
}

// Payload implements kernels.Provider. Where the distribution's indexes aren't signed, one of its keys must have signed the package.
func (p *Provider) Payload(pkg io.Reader) (io.ReadCloser, error) {
	f, err := p.openPackage(pkg)
	if err != nil {
		return nil, err
	}
	return f.ReadCloser, nil
}

// Open implements kernels.Provider. The package file is anyone's: nobody need have signed it.
func (p *Provider) Open(pkg io.Reader) (payload io.ReadCloser, depends []string, err error) {
	f, err := openPackage(pkg, trust{})
	if err != nil {
		return nil, nil, err
	}
	return f.ReadCloser, f.requires, nil
}

func (p *Provider) openPackage(pkg io.Reader) (*file, error) {
	if !p.distro.signedPackages {
		return openPackage(pkg, trust{})
	}
	keys, err := p.keys()
	if err != nil {
		return nil, err
	}
	return openPackage(pkg, trust{keys, p.asker.Now})
}
