package kernels

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

func TestParseSelectors(t *testing.T) {
	for in, want := range map[string][]Selector{
		"6.1.0-56-amd64": {{"", "", "6.1.0-56-amd64"}},
		"debian/bookworm:6.12.117+deb12-amd64,running":               {{"debian", "bookworm", "6.12.117+deb12-amd64"}, {"", "", "running"}},
		" debian/sid:latest , debian/bookworm:6.1.0-*-[a-c]loud-?* ": {{"debian", "sid", "latest"}, {"debian", "bookworm", "6.1.0-*-[a-c]loud-?*"}},
	} {
		got, err := ParseSelectors(in)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("ParseSelectors(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		"":                      "no release",
		"a,,b":                  "no release",
		"debian/bookworm:":      "no release",
		"bookworm:6.1":          "DISTRO/SUITE",
		"debian/:6.1":           "DISTRO/SUITE",
		"/bookworm:6.1":         "DISTRO/SUITE",
		"a/b/c:6.1":             "DISTRO/SUITE",
		"debian/bookworm:6:1":   "characters",
		"6.1/2":                 "characters",
		"6.1 amd64":             "characters",
		"debian/bookworm:6.[12": "not well-formed",
		"latest":                "latest of what",
	} {
		if got, err := ParseSelectors(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseSelectors(%q) = %v, %v; want error %q", in, got, err, want)
		}
	}
}

func FuzzParseSelector(f *testing.F) {
	f.Add("debian/bookworm:6.1.0-*")
	f.Fuzz(func(t *testing.T, in string) {
		s, err := ParseSelector(in)
		if err != nil {
			return
		}
		if again, err := ParseSelector(s.String()); err != nil || again != s {
			t.Errorf("%q became %v, then %v, %v", in, s, again, err)
		}
	})
}

// fixed is a provider of lists: suite -> "release=digest", the default with a star before it.
type fixed struct {
	suites []string
	lists  map[string][]string
	asked  atomic.Int32
}

func (f *fixed) Suites() []string { return f.suites }

func (f *fixed) Kernels(_ context.Context, suite, arch string) ([]Candidate, error) {
	f.asked.Add(1)
	if arch != "amd64" {
		return nil, fmt.Errorf("no %s: %w", arch, ErrNotFound)
	}
	var out []Candidate
	for _, item := range f.lists[suite] {
		if item == "old" {
			return nil, fmt.Errorf("%s is %w", suite, ErrExpired)
		}
		if item == "broken" {
			return nil, fmt.Errorf("%s is broken", suite)
		}
		release, digest, _ := strings.Cut(item, "=")
		release, def := strings.CutPrefix(release, "*")
		out = append(out, Candidate{Kernel: Kernel{"debian", suite, arch, release}, Latest: def, Digest: v1.Hash{Algorithm: "sha256", Hex: digest}})
	}
	return out, nil
}

func (f *fixed) Lock(context.Context, Kernel, Extra) (Lock, error) {
	return Lock{}, errors.New("not asked for")
}
func (f *fixed) Payload(io.Reader) (io.ReadCloser, error) { return nil, errors.New("not asked for") }

func (f *fixed) Open(io.Reader) (io.ReadCloser, []string, error) {
	return nil, nil, errors.New("not asked for")
}

func newFixed() *fixed {
	return &fixed{suites: []string{"sid", "trixie", "bookworm"}, lists: map[string][]string{
		"sid":      {"old"},
		"trixie":   {"6.12.9-amd64=a", "*6.12.8-amd64=b", "6.9-common=c", "6.8-differs=d", "6.12.8-cloud-amd64=e"},
		"bookworm": {"6.12.9-rt-amd64=f", "6.12.9-amd64=a", "*6.1.0-56-amd64=g", "6.1.0-56-cloud-amd64=h", "6.1.0-55-cloud-amd64=i", "6.8-differs=x"},
	}}
}

func TestResolve(t *testing.T) {
	for _, c := range []struct {
		in, running, want, err string
		warns                  bool
	}{
		{in: "6.1.0-56-amd64", want: "bookworm:6.1.0-56-amd64"},
		{in: "debian/bookworm:6.12.9-amd64", want: "bookworm:6.12.9-amd64"},
		{in: "6.12.9-amd64", want: "trixie:6.12.9-amd64", warns: true}, // the same package in both: the newest suite
		{in: "6.8-differs", err: `debian/trixie and debian/bookworm have different kernels of the release "6.8-differs": write debian/trixie:6.8-differs or debian/bookworm:6.8-differs`},
		{in: "6.8-*", err: `different kernels`},
		{in: "debian/trixie:6.8-*", want: "trixie:6.8-differs"},
		{in: "debian/bookworm:latest,debian/trixie:latest", want: "bookworm:6.1.0-56-amd64 trixie:6.12.8-amd64"},
		{in: "6.1.0-*-cloud-amd64", want: "bookworm:6.1.0-56-cloud-amd64 bookworm:6.1.0-55-cloud-amd64"},
		{in: "6.1.0-55-*,6.1.0-5?-cloud-amd64,6.1.0-56-cloud-amd64", want: "bookworm:6.1.0-55-cloud-amd64 bookworm:6.1.0-56-cloud-amd64"},
		{in: "*cloud*", want: "trixie:6.12.8-cloud-amd64 bookworm:6.1.0-56-cloud-amd64 bookworm:6.1.0-55-cloud-amd64", warns: true},
		{in: "running", running: "6.1.0-56-amd64", want: "bookworm:6.1.0-56-amd64"},
		{in: "debian/trixie:running", running: "6.1.0-56-amd64", err: `the running kernel, "6.1.0-56-amd64", is not in debian/trixie`},
		{in: "running", err: "is not known"},
		{in: "debian/bookworm:6.1.0-57-amd64", err: `no release "6.1.0-57-amd64" in debian/bookworm; near are "6.1.0-56-amd64", "6.12.9-rt-amd64", "6.12.9-amd64"`},
		{in: "6.1.0-57-amd64", err: `in any known suite; near are "6.1.0-56-amd64", "6.12.9-rt-amd64", "6.12.9-amd64"; not looked into: sid is expired`},
		{in: "7.*", err: "matches no release in any known suite"},
		{in: "debian/bookworm:7.*", err: "matches no release in debian/bookworm"},
		{in: "debian/sid:latest", err: "sid is expired"},
		{in: "debian/lenny:6.1", err: `debian has no suite "lenny"; known are sid, trixie, bookworm: not found`},
		{in: "hannah/montana:6.1", err: `no distribution "hannah"; known are debian: not found`},
	} {
		sel, err := ParseSelectors(c.in)
		if err != nil {
			t.Fatal(err)
		}
		var warnings []string
		r := Resolver{Providers: map[string]Provider{"debian": newFixed()}, Arch: "amd64", Running: c.running,
			Warn: func(s string) { warnings = append(warnings, s) }}
		list, err := r.Resolve(t.Context(), sel)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("Resolve(%s) = %v, %v; want error %q", c.in, list, err, c.err)
			}
			named := strings.Contains(c.err, "is not known") || strings.Contains(c.err, "different kernels") || strings.Contains(c.err, "expired") && !strings.Contains(c.err, "near")
			if !named && !errors.Is(err, ErrNotFound) {
				t.Errorf("Resolve(%s): %v does not wrap ErrNotFound", c.in, err)
			}
			continue
		}
		var got []string
		for _, k := range list {
			if k.Distro != "debian" || k.Arch != "amd64" {
				t.Errorf("Resolve(%s) has %+v", c.in, k)
			}
			got = append(got, k.Suite+":"+k.Release)
		}
		if s := strings.Join(got, " "); err != nil || s != c.want {
			t.Errorf("Resolve(%s) = %s, %v; want %s", c.in, s, err, c.want)
		}
		if len(warnings) > 0 != c.warns {
			t.Errorf("Resolve(%s) warns %q", c.in, warnings)
		}
	}
}

// A suite that could not be read is worth a warning, unless it is merely expired and one other suite has all that was asked for.
func TestResolveWarns(t *testing.T) {
	for _, c := range []struct {
		in, sid string
		want    []string
	}{
		{"6.1.0-56-amd64", "old", nil},
		{"6.1.0-*", "old", nil},
		{"6.1.0-56-amd64", "broken", []string{"sid is broken"}},
		{"6.12.9-amd64", "old", []string{"sid is expired"}}, // in two suites
		{"6.12.9-amd64,6.1.0-56-amd64,*cloud*", "broken", []string{"sid is broken"}},
		{"debian/trixie:latest", "broken", nil},
		{"7.1", "broken", nil}, // the error says it
	} {
		f := newFixed()
		f.lists["sid"] = []string{c.sid}
		sel, err := ParseSelectors(c.in)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		r := Resolver{Providers: map[string]Provider{"debian": f}, Arch: "amd64", Warn: func(s string) { got = append(got, s) }}
		if _, err := r.Resolve(t.Context(), sel); err != nil && !strings.Contains(err.Error(), "not looked into: sid is "+c.sid) {
			t.Errorf("Resolve(%s): %v", c.in, err)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("Resolve(%s) with a suite that is %s warns %q; want %q", c.in, c.sid, got, c.want)
		}
	}
}

func TestResolveAsksOnce(t *testing.T) {
	f := newFixed()
	sel, err := ParseSelectors("6.1.0-56-amd64,6.12.9-amd64,6.1.0-*")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (Resolver{Providers: map[string]Provider{"debian": f}, Arch: "amd64"}).Resolve(t.Context(), sel); err != nil {
		t.Fatal(err)
	}
	if n := f.asked.Load(); n != 3 {
		t.Errorf("suites were asked %d times; want 3", n)
	}
	_, err = Resolver{Providers: map[string]Provider{"debian": f}, Arch: "vax"}.Resolve(t.Context(), sel)
	if !errors.Is(err, ErrNotFound) || strings.Contains(err.Error(), "not looked into") {
		t.Errorf("another architecture: %v", err)
	}
}

func TestResolveStops(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Resolver{Providers: map[string]Provider{"debian": newFixed()}, Arch: "amd64"}.Resolve(ctx, []Selector{{Release: "6.1.0-56-amd64"}})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("error is %v", err)
	}
}

func TestNearest(t *testing.T) {
	have := []string{"6.1.0-9-amd64", "6.1.0-56-amd64", "6.1.0-55-amd64", "6.1.0-56-amd64", "6.1.0-56-cloud-amd64"}
	if got := strings.Join(Nearest("6.1.0-58-amd64", have, 3), " "); got != "6.1.0-56-amd64 6.1.0-55-amd64 6.1.0-9-amd64" {
		t.Errorf("Nearest = %s", got)
	}
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"kitten", "sitting", 3}, {"flaw", "lawn", 2}, {"same", "same", 0}} {
		if got := edits(c.a, c.b); got != c.want || edits(c.b, c.a) != got {
			t.Errorf("edits(%q, %q) = %d; want %d", c.a, c.b, got, c.want)
		}
	}
	if got := DidYouMean("x", nil); got != "" {
		t.Errorf("DidYouMean of nothing = %q", got)
	}
}

func (f *fixed) Claims(string) []string { return f.Suites() }

func (f *fixed) Indexes(context.Context, string, string) ([]Index, error) { return nil, nil }
