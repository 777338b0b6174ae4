package rpm

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// A source is one repository's index, with where its packages are.
type source struct {
	*index
	base string // the repository's URL, without a slash at its end
	late bool   // used only for what the other sources can't satisfy
}

// A candidate is a package that can be chosen. It is compared by pointer: a pool gives the same one each time.
type candidate struct {
	*pkg
	bases []string // of the sources that have the very same file, in their order
	late  bool
}

// A pool answers for all repositories of a suite together. Its lock is held while it is used. In which order sources of one kind come
// makes a difference for a candidate's bases only.
type pool struct {
	sync.Mutex
	sources []source
	arch    string // in rpm's words: "x86_64"
	byName  map[string][]*candidate
	byWant  map[string][]*candidate // what meets a plain dependency, by its text
}

func newPool(arch string, sources []source) *pool {
	return &pool{sources: sources, arch: arch, byName: map[string][]*candidate{}, byWant: map[string][]*candidate{}}
}

// named gives all versions of a package, the best first: what is of a module stream, which a machine only has if somebody enabled it,
// comes after all else, and late sources after others; then the newest come first. Of several files with the same name, version and
// architecture the one with the least digest counts.
func (p *pool) named(name string) ([]*candidate, error) {
	if c, ok := p.byName[name]; ok {
		return c, nil
	}
	var out []*candidate
	for _, s := range p.sources {
		pkgs, err := s.named(name)
		if err != nil {
			return nil, err
		}
		for _, k := range pkgs {
			i := slices.IndexFunc(out, func(c *candidate) bool { return c.version == k.version && c.arch == k.arch })
			switch {
			case i < 0:
				out = append(out, &candidate{k, []string{s.base}, s.late})
			case out[i].digest == k.digest:
				out[i].late = out[i].late && s.late
				if !slices.Contains(out[i].bases, s.base) {
					out[i].bases = append(out[i].bases, s.base)
				}
			case k.digest.String() < out[i].digest.String():
				out[i] = &candidate{k, []string{s.base}, s.late}
			}
		}
	}
	slices.SortStableFunc(out, func(a, b *candidate) int {
		return cmp.Or(compareBool(a.isModular(), b.isModular()), compareBool(a.late, b.late), -compareVersions(a.version, b.version),
			strings.Compare(a.version, b.version), compareBool(a.arch == noarch, b.arch == noarch))
	})
	p.byName[name] = out
	return out, nil
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case b:
		return -1
	}
	return 1
}

// isModular tells a package of a module stream by its release: "3.module_el8.6.0+1234", "3.module+el8.5.0+765".
func (k *pkg) isModular() bool {
	return strings.Contains(k.version, ".module_") || strings.Contains(k.version, ".module+")
}

// meeting gives what meets a plain dependency, in the order in which it is tried: packages of that name, the best first, then those
// that provide it, the ones with the shortest names first.
func (p *pool) meeting(d *depend) ([]*candidate, error) {
	key := d.String()
	if c, ok := p.byWant[key]; ok {
		return c, nil
	}
	var out []*candidate
	for _, name := range aliases(d.name) {
		found, err := p.meetingAs(name, d)
		if err != nil {
			return nil, err
		}
		if out = found; len(out) > 0 {
			break
		}
	}
	p.byWant[key] = out
	return out, nil
}

func (p *pool) meetingAs(name string, d *depend) ([]*candidate, error) {
	real, err := p.named(name)
	if err != nil {
		return nil, err
	}
	var out []*candidate
	for _, k := range real {
		if overlap(splitEVR(k.version), equal, d.evr, d.is) {
			out = append(out, k)
		}
	}
	if bare, ok := strings.CutSuffix(name, isaSuffix(p.arch)); ok {
		native, err := p.named(bare)
		if err != nil {
			return nil, err
		}
		for _, k := range native {
			if k.arch == p.arch && overlap(splitEVR(k.version), equal, d.evr, d.is) {
				out = append(out, k)
			}
		}
	}
	ours := len(out)
	for _, s := range p.sources {
		offers, err := s.Offers(name)
		if err != nil {
			return nil, err
		}
		if len(offers) > maxSame {
			return nil, fmt.Errorf("%w: a list has %d packages that provide %q", errTooHard, len(offers), name)
		}
		for _, o := range offers {
			if v, is := splitOffer(o.Version); !overlap(v, is, d.evr, d.is) {
				continue
			}
			k, err := s.pkg(o.Package)
			if err != nil {
				return nil, err
			}
			all, err := p.named(k.name)
			if err != nil {
				return nil, err
			}
			i := slices.IndexFunc(all, func(c *candidate) bool { return c.version == k.version && c.arch == k.arch && c.digest == k.digest })
			if i >= 0 && !slices.Contains(out, all[i]) {
				out = append(out, all[i])
			}
		}
	}
	rank := func(k *candidate) int { all, _ := p.named(k.name); return slices.Index(all, k) }
	slices.SortStableFunc(out[ours:], func(a, b *candidate) int {
		return cmp.Or(compareBool(a.isModular(), b.isModular()), compareBool(a.late, b.late), cmp.Compare(len(a.name), len(b.name)),
			strings.Compare(a.name, b.name), cmp.Compare(rank(a), rank(b)))
	})
	return out, nil
}

// splitOffer reads the version of an offer of the index.
func splitOffer(s string) (evr, sense) {
	n := 0
	for n < len(s) && strings.IndexByte("<=>", s[n]) >= 0 {
		n++
	}
	switch {
	case s == "":
		return evr{}, 0
	case n > 0:
		return splitEVR(s[n:]), senses[s[:n]]
	}
	return splitEVR(s), equal
}

// aliases gives the paths by which a file may be listed, that which was asked for first: distributions merged /bin and /sbin into /usr,
// and some of them /usr/sbin into /usr/bin, and packages name their files in either way.
func aliases(name string) []string {
	if !strings.HasPrefix(name, "/") {
		return []string{name}
	}
	out := []string{name}
	merged := strings.TrimPrefix(name, "/usr")
	for _, pair := range [][2]string{{"/bin/", "/sbin/"}, {"/sbin/", "/bin/"}, {"/lib/", ""}, {"/lib64/", ""}} {
		if rest, ok := strings.CutPrefix(merged, pair[0]); ok {
			out = append(out, "/usr"+merged, merged)
			if pair[1] != "" {
				out = append(out, "/usr"+pair[1]+rest, pair[1]+rest)
			}
		}
	}
	return out
}

// isUnlisted tells whether a dependency is on a file that primary lists leave out whoever has it: they have programs and
// configuration (createrepo_c's rule), the others are in filelists.xml, which is ten times as large and isn't read.
func (d *depend) isUnlisted() bool {
	return strings.HasPrefix(d.name, "/") && !strings.Contains(d.name, "bin/") && !strings.HasPrefix(d.name, "/etc/") &&
		d.name != "/usr/lib/sendmail"
}

// maxSteps bounds the search for a closure. Real ones take a few thousand steps.
const maxSteps = 1 << 20

// maxSame bounds how many packages of a list may have one name, or provide one: what is done with them takes its square. The longest real
// ones have some thousands, of "application()".
const maxSame = 20000

var errTooHard = errors.New("dependencies take too long to resolve")

// A closure is a set of packages that satisfies all its own dependencies. It grows by satisfy and install; what fails leaves it as it
// was. Conflicts, Obsoletes and Recommends are not looked at: nothing is configured or run, and the packages' files are merged. A
// dependency on a file that primary lists leave out is met by whatever provides it there, and else left open: see unlisted.
type closure struct {
	pool   *pool
	chosen map[string]*candidate
	order  []*candidate
	// unlisted are the files that packages depend on and of which no list that is read says who has them.
	unlisted []string
	// skip leaves out a dependency of a package.
	skip func(*candidate, *depend) bool

	later  []conditional // dependencies that hold only under a condition
	parsed map[*candidate][]*depend
	steps  int
}

type conditional struct {
	*depend
	of *candidate // nil: of whoever called satisfy
}

func newClosure(p *pool) *closure {
	return &closure{pool: p, chosen: map[string]*candidate{}, skip: func(*candidate, *depend) bool { return false },
		parsed: map[*candidate][]*depend{}}
}

// A mark is a state of a closure to go back to.
type mark struct{ order, unlisted, later int }

func (c *closure) mark() mark { return mark{len(c.order), len(c.unlisted), len(c.later)} }

func (c *closure) rollback(m mark) {
	for _, k := range c.order[m.order:] {
		delete(c.chosen, k.name)
	}
	c.order, c.unlisted, c.later = c.order[:m.order], c.unlisted[:m.unlisted], c.later[:m.later]
}

// satisfy makes a dependency true: by what is chosen already, else by the first that can be.
func (c *closure) satisfy(d *depend) error { return c.whole(func() error { return c.meet(d, nil) }) }

// install adds a package with all that it depends on.
func (c *closure) install(k *candidate) error { return c.whole(func() error { return c.add(k) }) }

// whole does a thing, and then what has become due by it of dependencies under conditions.
func (c *closure) whole(do func() error) error {
	m := c.mark()
	err := do()
	for again := true; err == nil && again; {
		before := c.mark()
		for i := 0; err == nil && i < len(c.later); i++ {
			d := c.later[i]
			if err = c.meetConditional(d.depend, d.of); err != nil && d.of != nil {
				err = fmt.Errorf("%s %s: %w", d.of.name, d.of.version, err)
			}
		}
		again = c.mark() != before
	}
	if err != nil {
		c.rollback(m)
	}
	return err
}

// fatal tells the errors after which no other candidate is tried.
func fatal(err error) bool { return errors.Is(err, errTooHard) || errors.Is(err, errDamagedIndex) }

func (c *closure) add(k *candidate) error {
	if c.steps++; c.steps > maxSteps {
		return errTooHard
	}
	if have := c.chosen[k.name]; have == k {
		return nil
	} else if have != nil {
		return fmt.Errorf("%s is needed as version %s and as %s", k.name, have.version, k.version)
	}
	depends, err := c.dependsOf(k)
	if err != nil {
		return err
	}
	m := c.mark()
	c.chosen[k.name] = k
	c.order = append(c.order, k)
	for _, d := range depends {
		if c.skip(k, d) {
			continue
		}
		if err := c.meet(d, k); err != nil {
			c.rollback(m)
			return fmt.Errorf("%s %s: %w", k.name, k.version, err)
		}
	}
	return nil
}

func (c *closure) dependsOf(k *candidate) ([]*depend, error) {
	if out, ok := c.parsed[k]; ok {
		return out, nil
	}
	seen := map[string]bool{}
	var out []*depend
	for text := range strings.Lines(k.requires) {
		if seen[text] {
			continue
		}
		seen[text] = true
		d, err := parseDepend(strings.TrimSuffix(text, "\n"))
		if err != nil {
			return nil, fmt.Errorf("package %q: %w", k.name, err)
		}
		out = append(out, d)
	}
	c.parsed[k] = out
	return out, nil
}

// holds tells whether a dependency is true as things are.
func (c *closure) holds(d *depend) (bool, error) {
	switch d.op {
	case plain, with, without:
		all, err := c.candidates(d)
		if err != nil {
			return false, err
		}
		return slices.ContainsFunc(all, func(k *candidate) bool { return c.chosen[k.name] == k }), nil
	case and, or:
		for _, a := range d.args {
			if ok, err := c.holds(a); err != nil || ok == (d.op == or) {
				return ok, err
			}
		}
		return d.op == and, nil
	}
	due, err := c.due(d)
	if err != nil || due == nil {
		return err == nil, err
	}
	return c.holds(due)
}

// due is what a dependency under a condition comes to as things are, nil for nothing.
func (c *closure) due(d *depend) (*depend, error) {
	is, err := c.holds(d.args[1])
	switch {
	case err != nil:
		return nil, err
	case is == (d.op == onlyIf):
		return d.args[0], nil
	case len(d.args) > 2:
		return d.args[2], nil
	}
	return nil, nil
}

// candidates gives the packages each of which alone makes a dependency true, in the order in which they are tried.
func (c *closure) candidates(d *depend) ([]*candidate, error) {
	switch d.op {
	case plain:
		return c.pool.meeting(d)
	case or:
		var out []*candidate
		for _, a := range d.args {
			more, err := c.candidates(a)
			if err != nil {
				return nil, err
			}
			for _, k := range more {
				if !slices.Contains(out, k) {
					out = append(out, k)
				}
			}
		}
		return out, nil
	case with, without:
		out, err := c.candidates(d.args[0])
		if err != nil {
			return nil, err
		}
		for _, a := range d.args[1:] {
			others, err := c.candidates(a)
			if err != nil {
				return nil, err
			}
			out = slices.DeleteFunc(slices.Clone(out), func(k *candidate) bool { return slices.Contains(others, k) == (d.op == without) })
		}
		return out, nil
	}
	return nil, fmt.Errorf("%q is more than one package can be", d)
}

// meet makes a dependency of a package true.
func (c *closure) meet(d *depend, of *candidate) error {
	if c.steps++; c.steps > maxSteps {
		return errTooHard
	}
	if d.op == onlyIf || d.op == unless {
		c.later = append(c.later, conditional{d, of})
		return nil
	}
	if ok, err := c.holds(d); err != nil || ok {
		return err
	}
	switch d.op {
	case and:
		m := c.mark()
		for _, a := range d.args {
			if err := c.meet(a, of); err != nil {
				c.rollback(m)
				return err
			}
		}
		return nil
	case or:
		return c.first(len(d.args), d, func(i int) error { return c.meet(d.args[i], of) })
	}
	all, err := c.candidates(d)
	if err != nil {
		return err
	}
	if len(all) == 0 && d.isUnlisted() {
		if !slices.Contains(c.unlisted, d.name) {
			c.unlisted = append(c.unlisted, d.name)
		}
		return nil
	}
	return c.first(len(all), d, func(i int) error { return c.add(all[i]) })
}

// first does the first of n things that can be done.
func (c *closure) first(n int, d *depend, do func(i int) error) error {
	var first error
	for i := range n {
		err := do(i)
		if err == nil || fatal(err) {
			return err
		}
		first = cmp.Or(first, err)
	}
	if first == nil {
		first = fmt.Errorf("nothing provides %q", d)
	}
	return first
}

// meetConditional makes what a dependency under a condition comes to true. Inside it, what has a condition of its own is met as it is now.
func (c *closure) meetConditional(d *depend, of *candidate) error {
	if ok, err := c.holds(d); err != nil || ok {
		return err
	}
	due, err := c.due(d)
	if err != nil || due == nil {
		return err
	}
	if due.op == onlyIf || due.op == unless {
		return c.meetConditional(due, of)
	}
	return c.meet(due, of)
}
