package pacman

import (
	"bytes"
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// A source is a database at one of its mirrors.
type source struct {
	*repo.Index
	url string // of the folder that it and its packages are in
}

// A pool is all packages of a suite. It is not safe for concurrent use.
type pool struct {
	sources []source // in the order of repositories, then mirrors
	known   map[string][]*pkg
}

// maxSame bounds how many packages of a database may have one name, for what is done with them takes its square. Real ones have one.
const maxSame = 10000

// named gives the packages of a name, newest first. Which mirrors have one, and in what order they were given, says nothing but where it
// can be had.
func (p *pool) named(name string) ([]*pkg, error) {
	if out, ok := p.known[name]; ok {
		return out, nil
	}
	var out []*pkg
	for _, s := range p.sources {
		first, end := s.Named(name)
		if end-first > maxSame {
			return nil, fmt.Errorf("a database has %d packages %q: use another mirror (--mirror)", end-first, name)
		}
		for i := first; i < end; i++ {
			b, err := s.Record(i)
			if err != nil {
				return nil, err
			}
			k, err := readRecord(name, b)
			if err != nil {
				return nil, err
			}
			k.urls = []string{s.url + "/" + k.file}
			if at := slices.IndexFunc(out, func(o *pkg) bool { return o.sha256 == k.sha256 && o.version == k.version }); at >= 0 {
				out[at].urls = append(out[at].urls, k.urls...)
				if len(out[at].signature) == 0 {
					out[at].signature = k.signature
				}
				continue
			}
			out = append(out, k)
		}
	}
	slices.SortStableFunc(out, func(a, b *pkg) int {
		return cmp.Or(-compareVersions(a.version, b.version), bytes.Compare(a.sha256[:], b.sha256[:]))
	})
	p.known[name] = out
	return out, nil
}

// satisfying gives what a dependency can be satisfied with, the best first: packages of that name, newest first, then by name others
// that provide it.
func (p *pool) satisfying(r relation) ([]*pkg, error) {
	all, err := p.named(r.name)
	if err != nil {
		return nil, err
	}
	var out []*pkg
	for _, k := range all {
		if r.accepts(k.version) {
			out = append(out, k)
		}
	}
	names := map[string]bool{}
	for _, s := range p.sources {
		offers, err := s.Offers(r.name)
		if err != nil {
			return nil, err
		}
		for _, o := range offers {
			if r.accepts(o.Version) {
				names[string(s.Name(o.Package))] = true
			}
		}
	}
	delete(names, r.name)
	for _, name := range sortedKeys(names) {
		all, err := p.named(name)
		if err != nil {
			return nil, err
		}
		for _, k := range all {
			if k.offers(r) {
				out = append(out, k)
			}
		}
	}
	return out, nil
}

func sortedKeys(m map[string]bool) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	slices.Sort(out)
	return out
}

// offers tells whether a package satisfies a dependency.
func (k *pkg) offers(r relation) bool {
	if k.name == r.name && r.accepts(k.version) {
		return true
	}
	return slices.ContainsFunc(k.provides, func(s string) bool {
		o, ok := parseRelation(s)
		return ok && o.name == r.name && (o.op == "" || o.op == "=") && r.accepts(o.version)
	})
}

// A closure is packages with all that they depend on.
type closure struct {
	pool   *pool
	order  []*pkg
	by     map[string]*pkg
	budget int // how many packages may be tried
}

// maxTried bounds the search. A build root has some 80 packages, and hardly ever is more than one of a name tried.
const maxTried = 20000

func newClosure(p *pool) *closure { return &closure{pool: p, by: map[string]*pkg{}, budget: maxTried} }

func (c *closure) rollback(mark int) {
	for _, k := range c.order[mark:] {
		delete(c.by, k.name)
	}
	c.order = c.order[:mark]
}

// satisfy adds what a dependency needs, unless it's there. Of what would do, it takes the first whose own dependencies can be had beside
// what was chosen before.
func (c *closure) satisfy(r relation, chain ...string) error {
	for _, k := range c.order {
		if k.offers(r) {
			return nil
		}
	}
	found, err := c.pool.satisfying(r)
	if err != nil {
		return err
	}
	var first error
	for _, k := range found {
		if other := c.by[k.name]; other != nil {
			first = cmp.Or(first, fmt.Errorf("%q needs another version of %q than %s", strings.Join(chain, " -> "), k.name, other.version))
			continue
		}
		err := c.install(k, chain...)
		if err == nil || errors.Is(err, repo.ErrDamagedIndex) || c.budget < 0 {
			return err
		}
		first = cmp.Or(first, err)
	}
	if first == nil {
		first = fmt.Errorf("no package %q%s: %w", r, from(chain), kernels.ErrNotFound)
	}
	return first
}

func from(chain []string) string {
	if len(chain) == 0 {
		return ""
	}
	return ", which " + strings.Join(chain, " -> ") + " needs"
}

// install adds a package with what it depends on.
func (c *closure) install(k *pkg, chain ...string) error {
	if c.budget--; c.budget < 0 {
		return errors.New("the dependencies are too tangled")
	}
	mark := len(c.order)
	c.order, c.by[k.name] = append(c.order, k), k
	for _, d := range k.depends {
		r, ok := parseRelation(d)
		if !ok {
			c.rollback(mark)
			return fmt.Errorf("package %q %s: %.100q is no dependency", k.name, k.version, d)
		}
		if err := c.satisfy(r, append(slices.Clip(chain), k.name)...); err != nil {
			c.rollback(mark)
			return err
		}
	}
	return nil
}

func (k *pkg) digest() v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(k.sha256[:])}
}

func (k *pkg) pin() kernels.Package {
	p := kernels.Package{Name: k.name, Version: k.version, Arch: k.arch, URL: k.urls[0], Digest: k.digest(), Size: k.size}
	for _, u := range k.urls[1:] {
		if u != p.URL && !slices.Contains(p.Mirrors, u) {
			p.Mirrors = append(p.Mirrors, u)
		}
	}
	return p
}

func pin(chosen []*pkg) []kernels.Package {
	out := make([]kernels.Package, len(chosen))
	for i, k := range chosen {
		out[i] = k.pin()
	}
	slices.SortFunc(out, func(a, b kernels.Package) int { return strings.Compare(a.Name, b.Name) })
	return out
}
