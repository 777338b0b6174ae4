package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// readSelectors reads selectors as flags and arguments have them, and passes over empty ones. @FILE stands for those in a file, @- for those
// of standard input; a request that comes to nothing through an empty file is an error, as no request means all kernels to some.
func readSelectors(list []string) ([]kernels.Selector, error) {
	var out []kernels.Selector
	empty := ""
	for _, text := range list {
		text = strings.TrimSpace(text)
		name, isFile := strings.CutPrefix(text, "@")
		switch {
		case text == "":
		case isFile:
			found, err := selectorsIn(name)
			if err != nil {
				return nil, err
			}
			if len(found) == 0 {
				empty = text
			}
			out = append(out, found...)
		default:
			found, err := kernels.ParseSelectors(text)
			if err != nil {
				return nil, err
			}
			out = append(out, found...)
		}
	}
	if len(out) == 0 && empty != "" {
		return nil, fmt.Errorf("%s names no kernel; write one in a line, as in debian/bookworm:latest", empty)
	}
	return out, nil
}

// selectorsIn reads a file of selectors.
func selectorsIn(name string) ([]kernels.Selector, error) {
	var in io.Reader = os.Stdin
	switch name {
	case "":
		return nil, errors.New("kernels of which file? write @FILE, or @- for standard input")
	case "-":
		name = "standard input"
	default:
		f, err := os.OpenFile(name, os.O_RDONLY, 0)
		if err != nil {
			return nil, fmt.Errorf("kernels of a file: %w", err)
		}
		defer f.Close()
		in = f
	}
	list, err := kernels.ReadSelectors(in)
	if err != nil {
		if errors.Is(err, unix.EISDIR) {
			err = errors.New("it is a folder; name a file of selectors, or write @- for standard input")
		}
		return nil, fmt.Errorf("kernels of %s: %w", name, err)
	}
	return list, nil
}

// parseSelectors is readSelectors for kernels that distributions have: one that is of none of these is an error.
func parseSelectors(distros map[string]kernels.Provider, list []string) ([]kernels.Selector, error) {
	parsed, err := readSelectors(list)
	if err != nil {
		return nil, err
	}
	known := slices.Sorted(maps.Keys(distros))
	for _, s := range parsed {
		if s.Distro != "" && !slices.ContainsFunc(known, func(name string) bool { ok, _ := path.Match(s.Distro, name); return ok }) {
			return nil, fmt.Errorf("kernel %q: no distribution %q; known are %s", s, s.Distro, strings.Join(known, ", "))
		}
	}
	return parsed, nil
}

// listSelectors is readSelectors for kernels that somebody has, of which none is the latest that the distribution offers.
func listSelectors(list []string) ([]kernels.Selector, error) {
	out, err := readSelectors(list)
	if err != nil {
		return nil, err
	}
	for _, s := range out {
		if s.Release == kernels.Latest || s.Release == kernels.Since {
			return nil, fmt.Errorf("kernel %q: which one is the latest isn't known here; name a release or a pattern of releases", s)
		}
	}
	return out, nil
}

// wantedOf are the selectors of a request that aren't excludes, for kernels that somebody has: of nothing but excludes, all kernels.
func wantedOf(request []kernels.Selector) []kernels.Selector {
	out := slices.DeleteFunc(slices.Clone(request), func(s kernels.Selector) bool { return s.Exclude })
	if len(out) == 0 {
		out = append(out, kernels.Selector{Release: "*"})
	}
	return out
}

// pick gives what a request names of what somebody has, in the request's order; an empty request names all. none is what of the request
// nothing is left of, if that is so of any.
func pick[T any](list []T, kernel func(T) kernels.Kernel, request []kernels.Selector) (out []T, none string) {
	if len(request) == 0 {
		return list, ""
	}
	taken := make([]bool, len(list))
	for _, s := range wantedOf(request) {
		found := false
		for i, item := range list {
			k := kernel(item)
			if !selects(s, k, running()) {
				continue
			}
			found = true
			if !taken[i] && !kernels.Excluded(request, k) {
				taken[i] = true
				out = append(out, item)
			}
		}
		if !found {
			return nil, s.String()
		}
	}
	if len(out) == 0 {
		return nil, joined(request)
	}
	return out, ""
}

// joined is a request as it could be written.
func joined(request []kernels.Selector) string {
	var out []string
	for _, s := range request {
		out = append(out, s.String())
	}
	return strings.Join(out, ",")
}

// selects tells whether a selector is about a kernel, among those that somebody has.
func selects(s kernels.Selector, k kernels.Kernel, running string) bool {
	if s.Release == kernels.Running {
		s.Release = running
	}
	return s.Matches(k)
}

// resolver finds kernels of this machine's architecture, or of another.
func (a *app) resolver(distros map[string]kernels.Provider, arch string) kernels.Resolver {
	h := readMachine("/", running())
	own := kernels.Kernel{Distro: h.distro, Suite: h.suite, Release: h.running}
	return kernels.Resolver{Providers: distros, Arch: arch, Running: own, Warn: a.board.Warn}
}

// resolve finds the kernels of a request, before any of them is built for. A selector that names none becomes a target with an
// error, so that it stops no other.
func (a *app) resolve(ctx context.Context, distros map[string]kernels.Provider, selectors []kernels.Selector) ([]target, error) {
	answers, err := a.resolver(distros, kernels.HostArch()).Resolve(ctx, selectors)
	if err != nil {
		return nil, err
	}
	var targets []target
	for _, w := range answers {
		s := w.Selector
		if w.Err != nil {
			targets = append(targets, target{label: s.String(), kernel: kernels.Kernel{Distro: s.Distro, Suite: s.Suite}, asked: s, err: a.advise(w.Err)})
		}
		for _, k := range w.Kernels {
			targets = append(targets, target{label: k.String(), kernel: k.Kernel})
		}
	}
	return targets, nil
}

// running is this machine's uname -r.
func running() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}
