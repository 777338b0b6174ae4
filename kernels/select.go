package kernels

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
)

// A Selector names kernels, "[DISTRO/SUITE:]RELEASE".
type Selector struct {
	Distro, Suite string // both or neither; without them the suite follows from the release
	Release       string // a release, a shell pattern of releases, "latest" or "running"
}

// Words that stand for a release.
const (
	Latest  = "latest"  // the newest of the default flavour, backports aside
	Running = "running" // the release that the caller says is running
)

func (s Selector) String() string {
	if s.Distro == "" {
		return s.Release
	}
	return s.Distro + "/" + s.Suite + ":" + s.Release
}

func (s Selector) isPattern() bool { return strings.ContainsAny(s.Release, "*?[") }

// ParseSelectors reads a list with commas between.
func ParseSelectors(list string) ([]Selector, error) {
	var out []Selector
	for item := range strings.SplitSeq(list, ",") {
		s, err := ParseSelector(strings.TrimSpace(item))
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

// ParseSelector reads one selector.
func ParseSelector(text string) (Selector, error) {
	var s Selector
	where, release, qualified := strings.Cut(text, ":")
	if qualified {
		var ok bool
		s.Distro, s.Suite, ok = strings.Cut(where, "/")
		if !ok || !isWord(s.Distro, "") || !isWord(s.Suite, "") {
			return Selector{}, fmt.Errorf("kernel selector %q: %q is not of the form DISTRO/SUITE, as in debian/bookworm", text, where)
		}
	} else {
		release = text
	}
	s.Release = release
	if release == "" {
		return Selector{}, fmt.Errorf("kernel selector %q: no release; give one, a pattern such as 6.1.0-*-amd64, or latest or running", text)
	}
	if d, s, ok := strings.Cut(release, "/"); !qualified && ok && isWord(d, "") && isWord(s, "") && (d[0] < '0' || d[0] > '9') {
		return Selector{}, fmt.Errorf("kernel selector %q: which kernel of it? write %s:latest, or a release in latest's place", text, text)
	}
	if !isWord(release, "*?[]^!") {
		return Selector{}, fmt.Errorf("kernel selector %q: %q has characters that no release has", text, release)
	}
	if _, err := path.Match(release, ""); err != nil {
		return Selector{}, fmt.Errorf("kernel selector %q: pattern %q is not well-formed", text, release)
	}
	if release == Latest && !qualified {
		return Selector{}, fmt.Errorf("kernel selector %q: latest of what? write DISTRO/SUITE:latest, as in debian/bookworm:latest", text)
	}
	return s, nil
}

func isWord(s, more string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("._+~-"+more, c) >= 0) {
			return false
		}
	}
	return s != ""
}

// A Resolver turns selectors into kernels. It is safe for concurrent use if its Warn is.
type Resolver struct {
	Providers map[string]Provider // by distribution
	Arch      string              // the distribution's own name: "amd64"
	Running   string              // what uname -r prints, for the selector "running"; may be empty
	// Warn is told of suites that could not be looked into for something that was found elsewhere. It is not if they are merely
	// expired and all was found in one suite. Default: nothing.
	Warn func(string)
}

// Resolve gives the kernels in the order of the selectors; what a pattern matches comes newest first, and a kernel that is named
// twice comes once. A selector without a suite looks into all of them: a release that several have belongs to the newest of them
// if its header packages are the same, and is an error if not. What matches nothing wraps ErrNotFound.
func (r Resolver) Resolve(ctx context.Context, selectors []Selector) ([]Kernel, error) {
	var (
		out  []Kernel
		seen = map[Kernel]bool{}
		look = &lookup{Resolver: r, lists: map[string]listing{}, told: map[string]bool{}}
	)
	for _, s := range selectors {
		found, err := look.resolve(ctx, s)
		if err != nil {
			return nil, err
		}
		for _, k := range found {
			if !seen[k] {
				seen[k] = true
				out = append(out, k)
			}
		}
	}
	return out, nil
}

// A listing is what a suite offers.
type listing struct {
	distro, suite string
	kernels       []Candidate
	err           error
}

// lookup keeps listings for the time of one Resolve. The key is "distro/suite".
type lookup struct {
	Resolver
	lists map[string]listing
	told  map[string]bool // warnings that were given
}

func (l *lookup) resolve(ctx context.Context, s Selector) ([]Kernel, error) {
	running := s.Release == Running
	if running {
		if l.Running == "" {
			return nil, errors.New("the running kernel's release is not known")
		}
		s.Release = l.Running
	}
	lists, err := l.listings(ctx, s)
	if err != nil {
		return nil, err
	}
	var (
		found  []Candidate
		have   []string
		unread []error
		suites int // that have what is looked for
	)
	for _, list := range lists {
		here := false
		if list.err != nil {
			unread = append(unread, list.err)
		}
		for _, k := range list.kernels {
			have = append(have, k.Release)
			if !s.matches(k) {
				continue
			}
			here = true
			i := slices.IndexFunc(found, func(f Candidate) bool { return f.Release == k.Release })
			if i < 0 {
				found = append(found, k)
			} else if f := found[i]; f.Digest != k.Digest {
				return nil, fmt.Errorf("%s/%s and %s/%s have different kernels of the release %q: write %s or %s",
					f.Distro, f.Suite, k.Distro, k.Suite, k.Release, f.Kernel, k.Kernel)
			}
		}
		if here {
			suites++
		}
	}
	if len(found) == 0 {
		return nil, l.nothing(s, running, have, unread)
	}
	for _, err := range unread {
		if text := err.Error(); l.Warn != nil && !l.told[text] && !(suites == 1 && errors.Is(err, ErrExpired)) {
			l.told[text] = true
			l.Warn(text)
		}
	}
	out := make([]Kernel, len(found))
	for i, f := range found {
		out[i] = f.Kernel
	}
	return out, nil
}

func (s Selector) matches(k Candidate) bool {
	switch {
	case s.Release == Latest:
		return k.Latest
	case s.isPattern():
		ok, err := path.Match(s.Release, k.Release)
		return ok && err == nil
	}
	return s.Release == k.Release
}

func (l *lookup) nothing(s Selector, running bool, have []string, unread []error) error {
	where := "any known suite"
	if s.Distro != "" {
		where = s.Distro + "/" + s.Suite
	}
	var text string
	switch {
	case s.Release == Latest:
		text = fmt.Sprintf("%s has no kernel of the default flavour for %q: name a release", where, l.Arch)
	case s.isPattern():
		text = fmt.Sprintf("the pattern %q matches no release in %s%s", s.Release, where, DidYouMean(s.Release, have))
	case running:
		text = fmt.Sprintf("the running kernel, %q, is not in %s: name another", s.Release, where)
	default:
		text = fmt.Sprintf("no release %q in %s%s", s.Release, where, DidYouMean(s.Release, have))
	}
	for _, u := range unread {
		text += fmt.Sprintf("; not looked into: %v", u)
	}
	return &missingError{text, append([]error{ErrNotFound}, unread...)}
}

// missingError says in its text alone that something is not found.
type missingError struct {
	text string
	errs []error
}

func (e *missingError) Error() string   { return e.text }
func (e *missingError) Unwrap() []error { return e.errs }

// listings reads the suites that a selector is about, the newest first. Of several, some may fail.
func (l *lookup) listings(ctx context.Context, s Selector) ([]listing, error) {
	var lists []listing
	if s.Distro != "" {
		p, ok := l.Providers[s.Distro]
		if !ok {
			return nil, fmt.Errorf("no distribution %q; known are %s: %w", s.Distro,
				strings.Join(slices.Sorted(maps.Keys(l.Providers)), ", "), ErrNotFound)
		}
		if !slices.Contains(p.Suites(), s.Suite) {
			return nil, fmt.Errorf("%s has no suite %q; known are %s: %w", s.Distro, s.Suite, strings.Join(p.Suites(), ", "), ErrNotFound)
		}
		lists = []listing{{distro: s.Distro, suite: s.Suite}}
	} else {
		for _, distro := range slices.Sorted(maps.Keys(l.Providers)) {
			for _, suite := range l.Providers[distro].Claims(s.Release) {
				lists = append(lists, listing{distro: distro, suite: suite})
			}
		}
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, 2) // an index that must be read in full takes some 30 MB
	for i := range lists {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			li := &lists[i]
			if have, ok := l.lists[li.distro+"/"+li.suite]; ok {
				*li = have
				return
			}
			li.kernels, li.err = l.Providers[li.distro].Kernels(ctx, li.suite, l.Arch)
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if s.Distro != "" && lists[0].err != nil {
		return nil, lists[0].err
	}
	for i, li := range lists {
		if errors.Is(li.err, ErrNotFound) { // a suite without that architecture
			lists[i].err = nil
		}
		l.lists[li.distro+"/"+li.suite] = lists[i]
	}
	return lists, nil
}
