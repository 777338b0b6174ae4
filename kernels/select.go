package kernels

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Selector names kernels, "[DISTRO/SUITE:]WHICH", or with an exclamation mark before it those that a request is not about.
type Selector struct {
	Distro, Suite string // both or neither, each may be a shell pattern; without them the suite follows from the release
	Release       string // a release, a shell pattern of releases, or one of Latest, Since and Running
	Count         int    // of Latest: how many; 0 is one
	Day           string // of Since: the first that counts, in UTC: "2026-01-01"
	Flavour       string // of Latest and Since: a shell pattern of flavours; empty: what is Candidate.Default
	Exclude       bool   // it has a release or a pattern then
}

// Words that stand for releases.
const (
	Latest  = "latest"  // the newest, or as many as Count says; of each flavour if there is one
	Since   = "since"   // those whose packages were built on Day or later
	Running = "running" // the one that the caller says is running
)

// maxList is how many bytes a file of selectors may have.
const maxList = 1 << 20

// maxSelector is how many bytes a selector may have.
const maxSelector = 512

// String gives the form that ParseSelector reads.
func (s Selector) String() string {
	out := s.Release
	switch {
	case s.Release == Latest && s.Count > 1:
		out += "=" + strconv.Itoa(s.Count)
	case s.Release == Since:
		out += "=" + s.Day
	}
	if s.Flavour != "" {
		out += "@" + s.Flavour
	}
	if s.Distro != "" {
		out = s.Distro + "/" + s.Suite + ":" + out
	}
	if s.Exclude {
		out = "!" + out
	}
	return out
}

// IsPattern tells whether the release is a shell pattern.
func (s Selector) IsPattern() bool { return isPattern(s.Release) }

// IsExact tells whether the selector names one kernel in full, DISTRO/SUITE:RELEASE.
func (s Selector) IsExact() bool {
	return s.Distro != "" && !s.ofSuites() && !s.IsPattern() && !s.isWord()
}

func (s Selector) isWord() bool { return slices.Contains([]string{Latest, Since, Running}, s.Release) }

// ofSuites tells whether the selector is about several suites by its own words.
func (s Selector) ofSuites() bool { return isPattern(s.Distro) || isPattern(s.Suite) }

func isPattern(s string) bool { return strings.ContainsAny(s, "*?[") }

// Matches tells whether a selector, excluding or not, has the release of a kernel and its suite. One of a word has no kernel's.
func (s Selector) Matches(k Kernel) bool {
	return (s.Distro == "" || match(s.Distro, k.Distro) && match(s.Suite, k.Suite)) && match(s.Release, k.Release)
}

// Excluded tells whether one of a request's selectors excludes a kernel.
func Excluded(request []Selector, k Kernel) bool {
	return slices.ContainsFunc(request, func(s Selector) bool { return s.Exclude && s.Matches(k) })
}

func match(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return pattern == name || ok && err == nil
}

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

// ReadSelectors reads a file of selectors: one in a line, or a list with commas; # begins a comment. It may have 1 MiB.
func ReadSelectors(r io.Reader) ([]Selector, error) {
	var out []Selector
	in := &io.LimitedReader{R: r, N: maxList + 1}
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, maxList+1)
	n := 1
	for ; lines.Scan(); n++ {
		line, _, _ := strings.Cut(lines.Text(), "#")
		if line = strings.TrimSpace(line); line == "" {
			continue
		}
		list, err := ParseSelectors(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		out = append(out, list...)
	}
	if in.N == 0 {
		return nil, fmt.Errorf("it has more than %d bytes", maxList)
	}
	return out, lines.Err()
}

// ParseSelector reads one selector.
func ParseSelector(text string) (Selector, error) {
	var s Selector
	fail := func(format string, args ...any) (Selector, error) {
		return Selector{}, fmt.Errorf("kernel selector %q: "+format, append([]any{text}, args...)...)
	}
	if len(text) > maxSelector {
		return Selector{}, fmt.Errorf("kernel selector %q…: it has more than %d bytes", text[:40], maxSelector)
	}
	rest, exclude := strings.CutPrefix(text, "!")
	s.Exclude = exclude
	if strings.HasPrefix(rest, "@") {
		return fail("a file of selectors can't be named here")
	}
	where, which, qualified := strings.Cut(rest, ":")
	if qualified {
		var ok bool
		s.Distro, s.Suite, ok = strings.Cut(where, "/")
		if !ok || !isWord(s.Distro, patternChars) || !isWord(s.Suite, patternChars) {
			return fail("%q is not of the form DISTRO/SUITE, as in debian/bookworm", where)
		}
	} else {
		which = rest
	}
	which, flavour, flavoured := strings.Cut(which, "@")
	s.Release, s.Flavour = which, flavour
	switch word, value, valued := strings.Cut(which, "="); {
	case word == Latest && valued:
		n, err := strconv.Atoi(value)
		if err != nil || n < 1 || value != strconv.Itoa(n) {
			return fail("how many of the latest? write a number, as in latest=3")
		}
		s.Release, s.Count = Latest, n
		if n == 1 {
			s.Count = 0
		}
	case word == Since:
		if _, err := time.Parse(time.DateOnly, value); err != nil {
			return fail("since when? write a day, as in since=2026-01-31")
		}
		s.Release, s.Day = Since, value
	}
	if s.Release == "" {
		return fail("no release; give one, a pattern such as 6.1.0-*-amd64, or latest or running")
	}
	if d, suite, ok := strings.Cut(which, "/"); !qualified && ok && isWord(d, patternChars) && isWord(suite, patternChars) && (d[0] < '0' || d[0] > '9') {
		return fail("which kernel of it? write %s:latest, or a release in latest's place", text)
	}
	if !isWord(s.Release, patternChars) {
		return fail("%q has characters that no release has", s.Release)
	}
	if flavoured && !isWord(s.Flavour, patternChars) {
		return fail("%q is not a flavour; write one behind the @, as in latest@cloud-amd64, or * for all", s.Flavour)
	}
	for _, pattern := range []string{s.Distro, s.Suite, s.Release, s.Flavour} {
		if _, err := path.Match(pattern, ""); err != nil {
			return fail("pattern %q is not well-formed", pattern)
		}
	}
	switch {
	case s.Exclude && s.isWord():
		return fail("what is excluded is a release or a pattern of releases")
	case flavoured && s.Release != Latest && s.Release != Since:
		return fail("only latest and since take a flavour behind @")
	case (s.Release == Latest || s.Release == Since) && !qualified:
		return fail("%s of what? write DISTRO/SUITE:%s, as in debian/bookworm:%s", s.Release, s, s)
	}
	return s, nil
}

// patternChars are what shell patterns have beside the characters of what they match.
const patternChars = "*?[]^!"

func isWord(s, more string) bool {
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("._+~-"+more, c) >= 0) {
			return false
		}
	}
	return s != ""
}

// forms are releases as the distributions name them, for those who wrote another.
var forms = []struct{ distro, release string }{
	{"debian", "6.1.0-56-amd64"}, {"debian", "6.12.43+deb13-amd64"}, {"ubuntu", "6.8.0-31-generic"}, {"arch", "6.9.3-arch1-1"},
	{"fedora", "6.8.9-300.fc40.x86_64"}, {"centos", "5.14.0-503.el9.x86_64"}, {"rocky", "5.14.0-427.13.1.el9_4.x86_64"},
	{"ol", "5.15.0-209.161.7.2.el9uek.x86_64"}, {"amzn", "6.1.90-99.173.amzn2023.x86_64"}, {"opensuse-leap", "6.4.0-150600.21-default"},
	{"opensuse-tumbleweed", "6.9.3-1-default"},
}

// unclaimed is the error for a release or a pattern that is named as no distribution names its kernels.
func unclaimed(s Selector, providers map[string]Provider) error {
	digits := func(s string) string { // numbers tell nothing of the form
		return strings.Map(func(c rune) rune {
			if c >= '1' && c <= '9' {
				return '0'
			}
			return c
		}, s)
	}
	known := slices.DeleteFunc(slices.Clone(forms), func(f struct{ distro, release string }) bool { return providers[f.distro] == nil })
	slices.SortStableFunc(known, func(a, b struct{ distro, release string }) int {
		return cmp.Compare(edits(digits(s.Release), digits(a.release)), edits(digits(s.Release), digits(b.release)))
	})
	text := fmt.Sprintf("no known distribution has releases like %q", s.Release)
	for i, f := range known[:min(3, len(known))] {
		text += []string{"; near are ", ", ", ", "}[i] + fmt.Sprintf("%q (%s)", f.release, f.distro)
	}
	return &missingError{text + fmt.Sprintf("; write DISTRO/SUITE:%s to look into a suite for it", s.Release), []error{ErrNotFound}}
}

// missingError says in its text alone that something is not found.
type missingError struct {
	text string
	errs []error
}

func (e *missingError) Error() string   { return e.text }
func (e *missingError) Unwrap() []error { return e.errs }
