package deb

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// A source is one pocket's index, with where its packages are.
type source struct {
	*index
	bases     []string // the archive's URLs at the mirrors that have this index, without slashes at their ends
	backports bool     // lower priority: used only for what the other pockets cannot satisfy; also a component other than the first
}

// candidate is a package that can be chosen. It is compared by pointer: a pool gives the same one each time.
type candidate struct {
	*pkg
	arch      string   // of the pool
	urls      []string // of its file, at all mirrors that have it
	backports bool
}

// A pool answers for all pockets of a suite together. Its lock is held while it is used.
type pool struct {
	sync.Mutex
	sources []source
	arch    string
	byName  map[string][]*candidate
	byOffer map[string][]virtual
}

type virtual struct {
	*candidate
	as string
}

func newPool(arch string, sources []source) *pool {
	return &pool{sources: sources, arch: arch, byName: map[string][]*candidate{}, byOffer: map[string][]virtual{}}
}

// named gives all versions of a package, newest first; of one that several pockets or mirrors have, the first one's.
func (p *pool) named(name string) ([]*candidate, error) {
	if c, ok := p.byName[name]; ok {
		return c, nil
	}
	var out []*candidate
	for _, s := range p.sources {
		pkgs, err := s.withPrefix(name, true)
		if err != nil {
			return nil, err
		}
		for _, k := range pkgs {
			i := slices.IndexFunc(out, func(c *candidate) bool { return c.version == k.version && c.all == k.all })
			if i < 0 {
				i = len(out)
				out = append(out, &candidate{pkg: k, arch: p.arch, backports: s.backports})
			}
			if c := out[i]; c.sha256 == k.sha256 && c.size == k.size {
				c.addURLs(s.bases, k.filename)
			}
		}
	}
	slices.SortStableFunc(out, func(a, b *candidate) int { return -compareVersions(a.version, b.version) })
	p.byName[name] = out
	return out, nil
}

func (c *candidate) addURLs(bases []string, filename string) {
	for _, base := range bases {
		if u := base + "/" + strings.ReplaceAll(filename, "%", "%25"); !slices.Contains(c.urls, u) {
			c.urls = append(c.urls, u)
		}
	}
}

// current is what apt would install: the newest version outside backports, or nil.
func (p *pool) current(name string) (*candidate, error) {
	all, err := p.named(name)
	if err != nil {
		return nil, err
	}
	for _, c := range all {
		if !c.backports {
			return c, nil
		}
	}
	return nil, nil
}

// offering gives the packages that provide a name, the most important first. Older versions of a package do not count.
func (p *pool) offering(name string) ([]virtual, error) {
	if v, ok := p.byOffer[name]; ok {
		return v, nil
	}
	var out []virtual
	for _, s := range p.sources {
		offers, err := s.providers(name)
		if err != nil {
			return nil, err
		}
		for _, o := range offers {
			all, err := p.named(o.name)
			if err != nil {
				return nil, err
			}
			for _, c := range all {
				if c.version == o.version && c.all == o.all && c.sha256 == o.sha256 && c.backports == s.backports {
					out = append(out, virtual{c, o.as})
				}
				if c.backports == s.backports {
					break // only the newest there
				}
			}
		}
	}
	slices.SortStableFunc(out, func(a, b virtual) int {
		return cmp.Or(cmp.Compare(a.priority, b.priority), cmp.Compare(a.name, b.name), -compareVersions(a.version, b.version),
			strings.Compare(a.as, b.as))
	})
	out = slices.Compact(out) // several indexes have one package
	p.byOffer[name] = out
	return out, nil
}

// maxSteps bounds the search for a closure. Real ones take a few thousand steps.
const maxSteps = 1 << 20

var errTooHard = errors.New("dependencies take too long to resolve")

// A closure is a set of packages that satisfies all its own dependencies. It grows by install; a failed install leaves it as it
// was. Conflicts and Breaks are not looked at: nothing is configured or run, and the packages' files are merged.
type closure struct {
	pool   *pool
	chosen map[string]*candidate
	offers map[string][]virtual // what the chosen ones provide
	order  []*candidate
	steps  int
	// skip leaves out a dependency of a package.
	skip func(*candidate, group) bool
}

func newClosure(p *pool) *closure {
	return &closure{pool: p, chosen: map[string]*candidate{}, offers: map[string][]virtual{},
		skip: func(*candidate, group) bool { return false }}
}

// satisfy makes one alternative of a dependency true: one that is already, else the first that can be, in the order of the
// alternatives; real packages come before those that provide the name, and backports come last.
func (c *closure) satisfy(g group) error {
	for _, r := range g {
		if c.holds(r) {
			return nil
		}
	}
	var first error
	for _, backports := range []bool{false, true} {
		for _, r := range g {
			if !c.ofArch(r) {
				continue
			}
			real, err := c.pool.named(r.name)
			if err != nil {
				return err
			}
			var try []*candidate
			for _, k := range real {
				if k.backports == backports && r.accepts(k.version) {
					try = append(try, k)
				}
			}
			virtuals, err := c.pool.offering(r.name)
			if err != nil {
				return err
			}
			for _, v := range virtuals {
				if v.backports == backports && r.accepts(v.as) {
					try = append(try, v.candidate)
				}
			}
			for _, k := range try {
				err := c.install(k)
				if err == nil {
					return nil
				}
				if errors.Is(err, errTooHard) || errors.Is(err, errDamagedIndex) {
					return err
				}
				if first == nil {
					first = err
				}
			}
		}
	}
	if first != nil {
		return first
	}
	return fmt.Errorf("nothing satisfies %q", g.String())
}

func (c *closure) ofArch(r relation) bool {
	return r.qual == "" || r.qual == "any" || r.qual == "native" || r.qual == c.pool.arch
}

func (c *closure) holds(r relation) bool {
	if !c.ofArch(r) {
		return false
	}
	if k := c.chosen[r.name]; k != nil && r.accepts(k.version) {
		return true
	}
	return slices.ContainsFunc(c.offers[r.name], func(v virtual) bool { return r.accepts(v.as) })
}

// install adds a package with all that it depends on.
func (c *closure) install(k *candidate) error {
	if c.steps++; c.steps > maxSteps {
		return errTooHard
	}
	if have := c.chosen[k.name]; have == k {
		return nil
	} else if have != nil {
		return fmt.Errorf("%s is needed as version %s and as %s", k.name, have.version, k.version)
	}
	mark := len(c.order)
	if err := c.add(k); err != nil {
		c.rollback(mark)
		return err
	}
	groups, err := parseDepends(k.depends)
	if err != nil {
		c.rollback(mark)
		return fmt.Errorf("package %q: %w", k.name, err)
	}
	for _, g := range groups {
		if c.skip(k, g) {
			continue
		}
		if err := c.satisfy(g); err != nil {
			c.rollback(mark)
			return fmt.Errorf("%s %s: %w", k.name, k.version, err)
		}
	}
	return nil
}

func (c *closure) add(k *candidate) error {
	c.chosen[k.name] = k
	c.order = append(c.order, k)
	groups, err := parseDepends(k.provides)
	if err != nil {
		return fmt.Errorf("package %q: %w", k.name, err)
	}
	for _, g := range groups {
		c.offers[g[0].name] = append(c.offers[g[0].name], virtual{k, g[0].ver})
	}
	return nil
}

func (c *closure) rollback(mark int) {
	for _, k := range c.order[mark:] {
		delete(c.chosen, k.name)
		groups, err := parseDepends(k.provides)
		if err != nil {
			continue
		}
		for _, g := range groups {
			c.offers[g[0].name] = slices.DeleteFunc(c.offers[g[0].name], func(v virtual) bool { return v.candidate == k })
		}
	}
	c.order = c.order[:mark]
}
