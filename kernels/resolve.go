package kernels

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// A Resolver turns selectors into kernels. It is safe for concurrent use if its Warn is.
type Resolver struct {
	Providers map[string]Provider // by distribution
	Arch      string              // in Debian's words: "amd64"
	// Running is what this machine runs, for the selector of that name: Release as uname -r prints it, Distro and Suite as SuiteOf reads
	// them. Each may be empty.
	Running Kernel
	// Warn is told of suites that could not be looked into for something that was found elsewhere. It is not if they are merely
	// expired and all was found in one suite. Default: nothing.
	Warn func(string)
}

// An Answer is what one selector of a request stands for.
type Answer struct {
	Selector Selector
	Kernels  []Candidate // without those that an earlier answer has
	Err      error       // why there are none; wraps ErrNotFound if nothing matches
}

// Resolve answers each selector of a request that isn't an exclude, in their order; what one stands for comes newest first, suite by
// suite. What is excluded, wherever in the request that stands, is as if it weren't there: the latest is then the one before.
//
// A selector without a suite looks into those whose kernels are named in that way: a release that several have belongs to the newest of
// them if its header packages are the same, and is an error if not. A pattern of releases is to fit those of one distribution. One with a pattern of suites stands for the kernels of each. What it
// can't look into is passed over where another suite has what is wanted.
//
// An error is of a request that has nothing but excludes, or nothing left beside them, or of ctx.
func (r Resolver) Resolve(ctx context.Context, request []Selector) ([]Answer, error) {
	look := &lookup{Resolver: r, request: request, lists: map[suite]*listing{}, told: map[string]bool{}}
	var (
		out     []Answer
		seen    = map[Kernel]bool{}
		nothing = true
	)
	for _, s := range request {
		if s.Exclude {
			continue
		}
		found, err := look.resolve(ctx, s)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		a := Answer{Selector: s, Err: err}
		for _, k := range found {
			if !seen[k.Kernel] {
				seen[k.Kernel] = true
				a.Kernels = append(a.Kernels, k)
			}
		}
		nothing = nothing && err == nil && len(found) == 0
		out = append(out, a)
	}
	switch {
	case len(out) == 0 && len(request) > 0:
		return nil, errOnlyExcludes
	case len(out) > 0 && nothing:
		return nil, errAllExcluded
	}
	return out, nil
}

// Why a request has no answers.
var (
	errOnlyExcludes = errors.New("the request excludes kernels and names none; name those that are wanted too, as in debian/bookworm:*")
	errAllExcluded  = errors.New("the request excludes all kernels that it names")
)

// A suite is one of a distribution.
type suite struct{ distro, name string }

func (s suite) String() string { return s.distro + "/" + s.name }

// A listing is what a suite offers.
type listing struct {
	suite
	kernels []Candidate
	err     error
	partly  []error // why mirrors of it couldn't be looked into, of which warnings were given
}

// lookup keeps listings for the time of one Resolve.
type lookup struct {
	Resolver
	request []Selector
	lists   map[suite]*listing
	told    map[string]bool // warnings that were given
}

func (l *lookup) resolve(ctx context.Context, s Selector) ([]Candidate, error) {
	asked := s
	if s.Release == Running {
		if s.Release = l.Running.Release; s.Release == "" {
			return nil, errors.New("the running kernel's release is not known")
		}
		if s.Distro == "" && l.Providers[l.Running.Distro] != nil && l.Running.Suite != "" {
			s.Distro, s.Suite = l.Running.Distro, l.Running.Suite
		}
	}
	lists, err := l.listings(ctx, s)
	if err != nil && asked.Release == Running && asked.Distro != s.Distro {
		return nil, fmt.Errorf("the running kernel, %q, of %s/%s: %w", s.Release, s.Distro, s.Suite, err)
	}
	if err != nil {
		return nil, err
	}
	var (
		found    []Candidate
		have     []string
		unread   []error
		partly   []error
		undated  []string
		suites   int // that have what is looked for
		excluded bool
	)
	for _, list := range lists {
		if list.err != nil {
			unread = append(unread, list.err)
		}
		partly = append(partly, list.partly...)
		for _, k := range list.kernels {
			have = append(have, k.Release)
		}
		matching, dated := s.among(list.kernels, func(k Candidate) bool {
			if Excluded(l.request, k.Kernel) {
				excluded = true
				return false
			}
			return true
		})
		if !dated {
			undated = append(undated, list.String())
		}
		if len(matching) > 0 {
			suites++
		}
		found = append(found, matching...)
	}
	if len(undated) > 0 {
		what := "the index of %s has no dates"
		if len(undated) > 1 {
			what = "the indexes of %s have no dates"
		}
		return nil, fmt.Errorf(what+" of packages, which %s asks for: take latest=N, or name releases", series(undated, "and"), s)
	}
	if s.Distro == "" {
		if found, err = l.merge(s, found); err != nil {
			return nil, err
		}
	}
	if len(found) == 0 && !excluded {
		return nil, l.nothing(asked, s, have, append(unread, partly...))
	}
	for _, err := range unread {
		if text := err.Error(); l.Warn != nil && !l.told[text] && !errors.Is(err, ErrNoMirror) && !(suites == 1 && errors.Is(err, ErrExpired)) {
			l.told[text] = true
			l.Warn(text)
		}
	}
	return found, nil
}

// among gives what a selector stands for of a suite's kernels. What counts says is asked of those alone. dated is false where it
// needs a date that isn't there.
func (s Selector) among(list []Candidate, counts func(Candidate) bool) (found []Candidate, dated bool) {
	taken := map[string]int{} // by flavour; those of the default one are one
	for _, k := range list {
		flavour := k.Flavour
		switch {
		case s.Release != Latest && s.Release != Since:
			if !match(s.Release, k.Release) {
				continue
			}
		case s.Flavour != "":
			if !match(s.Flavour, k.Flavour) {
				continue
			}
		case !k.Default:
			continue
		default:
			flavour = ""
		}
		if s.Release == Since && k.Date.IsZero() {
			return nil, false
		}
		if s.Release == Since && k.Date.UTC().Format(time.DateOnly) < s.Day || s.Release == Latest && taken[flavour] == max(s.Count, 1) || !counts(k) {
			continue
		}
		taken[flavour]++
		found = append(found, k)
	}
	return found, true
}

// merge leaves of each release the first, if it's the same package everywhere.
func (l *lookup) merge(s Selector, found []Candidate) ([]Candidate, error) {
	var out []Candidate
	for i, k := range found {
		first := slices.IndexFunc(found, func(f Candidate) bool { return f.Release == k.Release })
		if first < i {
			continue
		}
		var where, write []string
		differ := false
		for _, o := range found[i:] {
			if o.Release != k.Release {
				continue
			}
			differ = differ || o.Digest != k.Digest
			name := o.Distro + "/" + o.Suite
			write = append(write, name+":"+s.Release)
			if o.Compiler != "" {
				name += " (" + o.Compiler + ")"
			}
			where = append(where, name)
		}
		if differ {
			return nil, fmt.Errorf("%s have different kernels of the release %q: write %s", series(where, "and"), k.Release, series(write, "or"))
		}
		out = append(out, k)
	}
	return out, nil
}

// series is a list as people write it.
func series(list []string, last string) string {
	n := len(list) - 1
	if n < 1 {
		return strings.Join(list, "")
	}
	return strings.Join(list[:n], ", ") + " " + last + " " + list[n]
}

// maxUnread is how many of the reasons an error gives for which suites couldn't be looked into: where the network is down, all have one.
const maxUnread = 2

// nothing is the error of a selector that nothing matches. asked is it before the running release was put in its place.
func (l *lookup) nothing(asked, s Selector, have []string, unread []error) error {
	where := "any known suite"
	switch {
	case s.Distro != "":
		where = s.Distro + "/" + s.Suite
	case len(l.claiming(s)) < len(l.all()):
		where = "any suite whose kernels are named like that"
	}
	var text string
	switch {
	case s.Release == Latest && s.Flavour == "":
		text = fmt.Sprintf("%s has no kernel of the default flavour for %q: name a release", where, l.Arch)
	case s.Release == Latest:
		text = fmt.Sprintf("%s has no kernel of a flavour %q for %q", where, s.Flavour, l.Arch)
	case s.Release == Since:
		text = fmt.Sprintf("%s has no kernel for %q that is %s", where, l.Arch, s)
	case s.Release == "*":
		text = fmt.Sprintf("%s has no kernels for %q", where, l.Arch)
	case s.IsPattern():
		text = fmt.Sprintf("the pattern %q matches no release in %s%s", s.Release, where, DidYouMean(s.Release, have))
	case asked.Release == Running && asked.Distro == "" && s.Distro != "":
		text = fmt.Sprintf("the running kernel, %q, is not in %s, which this machine's os-release names; in a container the kernel is the host's: write %s",
			s.Release, where, series(l.elsewhere(s), "or"))
	case asked.Release == Running:
		text = fmt.Sprintf("the running kernel, %q, is not in %s: name another", s.Release, where)
	case len(have) == 0 && len(unread) > 0:
		text = fmt.Sprintf("whether %s has a release %q can't be told", where, s.Release)
	default:
		text = fmt.Sprintf("no release %q in %s%s", s.Release, where, DidYouMean(s.Release, have))
		if len(unread) == 0 {
			text += "; one that the mirrors have dropped may be in an older archive of the distribution's: name that with --mirror too"
		}
	}
	told := map[string]bool{} // of two suites one mirror may say the same
	for _, u := range unread {
		if why := u.Error(); !told[why] {
			if told[why] = true; len(told) <= maxUnread {
				text += "; not looked into: " + why
			}
		}
	}
	if more := len(told) - maxUnread; more > 0 {
		text += fmt.Sprintf("; and %d more", more)
	}
	return &missingError{text, append([]error{ErrNotFound}, unread...)}
}

// elsewhere gives up to three ways to write a release with a suite that may have it, another than the selector's.
func (l *lookup) elsewhere(s Selector) []string {
	var out []string
	for _, c := range l.claiming(s) {
		if (c.distro != s.Distro || c.name != s.Suite) && len(out) < 3 {
			out = append(out, c.String()+":"+s.Release)
		}
	}
	if len(out) == 0 {
		return []string{"DISTRO/SUITE:" + s.Release}
	}
	return out
}

// all are the suites of all distributions, in the order of the distributions' names, newest first.
func (l *lookup) all() []suite {
	var out []suite
	for _, distro := range slices.Sorted(maps.Keys(l.Providers)) {
		for _, name := range l.Providers[distro].Suites() {
			out = append(out, suite{distro, name})
		}
	}
	return out
}

// claiming are those of all whose kernels are named like the selector's release.
func (l *lookup) claiming(s Selector) []suite {
	release := s.Release
	if s.isWord() {
		release = "*"
	}
	claims := map[string][]string{}
	for distro, p := range l.Providers {
		claims[distro] = p.Claims(release)
	}
	return slices.DeleteFunc(l.all(), func(at suite) bool { return !slices.Contains(claims[at.distro], at.name) })
}

// suites are those that a selector is about: of a pattern's, those that name their kernels like that, if any does.
func (l *lookup) suites(s Selector) ([]suite, error) {
	var claiming []suite
	if s.Distro == "" || s.ofSuites() {
		claiming = l.claiming(s)
	}
	if s.Distro == "" {
		if len(claiming) == 0 {
			return nil, unclaimed(s, l.Providers)
		}
		var distros []string
		for _, at := range claiming {
			distros = append(distros, at.distro)
		}
		if distros = slices.Compact(distros); s.IsPattern() && len(distros) > 1 { // dozens of indexes, for what may be a slip
			return nil, fmt.Errorf("the pattern %q fits the kernels of %s: write DISTRO/SUITE:%[1]s, as in %[3]s/*:%[1]s, or */*:%[1]s for all of them",
				s.Release, series(distros, "and"), distros[0])
		}
		return claiming, nil
	}
	var known []string
	var out []suite
	for _, at := range l.all() {
		if match(s.Distro, at.distro) {
			known = append(known, at.name)
			if match(s.Suite, at.name) {
				out = append(out, at)
			}
		}
	}
	some := slices.DeleteFunc(slices.Clone(out), func(at suite) bool { return !slices.Contains(claiming, at) })
	if len(some) > 0 {
		return some, nil
	}
	switch {
	case len(out) > 0:
		return out, nil
	case l.Providers[s.Distro] != nil || len(known) > 0:
		return nil, fmt.Errorf("%s has no suite %q; known are %s: %w", s.Distro, s.Suite, strings.Join(slices.Compact(known), ", "), ErrNotFound)
	}
	return nil, fmt.Errorf("no distribution %q; known are %s: %w", s.Distro, strings.Join(slices.Sorted(maps.Keys(l.Providers)), ", "), ErrNotFound)
}

// listings reads the suites that a selector is about. Of several, some may fail: of those that can't be read from anywhere, the first of a
// distribution tells it.
func (l *lookup) listings(ctx context.Context, s Selector) ([]*listing, error) {
	suites, err := l.suites(s)
	if err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, 2) // an index that must be read in full takes some 30 MB
	lists := make([]*listing, len(suites))
	for i, at := range suites {
		if lists[i] = l.lists[at]; lists[i] != nil {
			continue
		}
		lists[i] = &listing{suite: at}
		l.lists[at] = lists[i]
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			lists[i].kernels, lists[i].err = l.Providers[at.distro].Kernels(ctx, at.name, l.Arch)
			if p, ok := l.Providers[at.distro].(Partial); ok && lists[i].err == nil {
				lists[i].partly = p.Unread(at.name)
			}
		})
	}
	wg.Wait()
	if s.Distro != "" && !s.ofSuites() {
		return lists, lists[0].err
	}
	told := map[string]bool{}
	return slices.DeleteFunc(lists, func(li *listing) bool {
		if errors.Is(li.err, ErrNoMirror) {
			again := told[li.distro]
			told[li.distro] = true
			return again
		}
		return errors.Is(li.err, ErrNotFound) // a suite without that architecture
	}), nil
}
