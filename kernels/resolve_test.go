package kernels

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// fixed is a provider of lists: suite -> "release=digest compiler flavour date", of which all but the release may lack. A star before it is
// the latest, a plus another of the default flavour.
type fixed struct {
	distro string // empty: "debian"
	claims string // pattern of releases; empty: all
	suites []string
	ended  string // one of them that claims nothing
	lists  map[string][]string
	asked  atomic.Int32
}

func (f *fixed) Suites() []string { return f.suites }

func (f *fixed) Claims(release string) []string {
	if f.claims == "" || Overlap(f.claims, release) {
		return slices.DeleteFunc(slices.Clone(f.suites), func(s string) bool { return s == f.ended })
	}
	return nil
}

func (f *fixed) Indexes(context.Context, string, string) ([]Index, error) { return nil, nil }

func (f *fixed) Kernels(_ context.Context, suite, arch string) ([]Candidate, error) {
	f.asked.Add(1)
	if arch != "amd64" {
		return nil, fmt.Errorf("no %s: %w", arch, ErrNotFound)
	}
	var out []Candidate
	for _, item := range f.lists[suite] {
		switch item {
		case "old":
			return nil, fmt.Errorf("%s is %w", suite, ErrExpired)
		case "broken":
			return nil, fmt.Errorf("%s is broken", suite)
		case "nowhere":
			return nil, fmt.Errorf("kernels of %s: %w; give one", suite, ErrNoMirror)
		}
		fields := append(strings.Fields(item), "", "", "")
		release, digest, _ := strings.Cut(fields[0], "=")
		release, latest := strings.CutPrefix(release, "*")
		release, def := strings.CutPrefix(release, "+")
		k := Candidate{Kernel: Kernel{cmp.Or(f.distro, "debian"), suite, arch, release}, Default: latest || def, Latest: latest,
			Digest: v1.Hash{Algorithm: "sha256", Hex: digest}, Compiler: strings.Trim(fields[1], "-"), Flavour: fields[2]}
		if fields[3] != "" {
			var err error
			if k.Date, err = time.Parse(time.RFC3339, fields[3]); err != nil {
				return nil, err
			}
		}
		out = append(out, k)
	}
	return out, nil
}

func (f *fixed) Lock(context.Context, Kernel, Extra) (Lock, error) {
	return Lock{}, errors.New("not asked for")
}
func (f *fixed) Image(context.Context, Lock) (Image, error) {
	return Image{}, errors.New("not asked for")
}

func (f *fixed) Payload(io.Reader) (io.ReadCloser, error) { return nil, errors.New("not asked for") }

func (f *fixed) Open(io.Reader) (io.ReadCloser, []string, error) {
	return nil, nil, errors.New("not asked for")
}

// all puts answers together, up to the first that is an error.
func all(answers []Answer, err error) ([]Kernel, error) {
	var out []Kernel
	for _, a := range answers {
		err = cmp.Or(err, a.Err)
		for _, k := range a.Kernels {
			out = append(out, k.Kernel)
		}
	}
	return out, err
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
		r := Resolver{Providers: map[string]Provider{"debian": newFixed()}, Arch: "amd64", Running: Kernel{Release: c.running},
			Warn: func(s string) { warnings = append(warnings, s) }}
		list, err := all(r.Resolve(t.Context(), sel))
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
		if _, err := all(r.Resolve(t.Context(), sel)); err != nil && !strings.Contains(err.Error(), "not looked into: sid is "+c.sid) {
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
	if _, err := all(Resolver{Providers: map[string]Provider{"debian": f}, Arch: "amd64"}.Resolve(t.Context(), sel)); err != nil {
		t.Fatal(err)
	}
	if n := f.asked.Load(); n != 3 {
		t.Errorf("suites were asked %d times; want 3", n)
	}
	_, err = all(Resolver{Providers: map[string]Provider{"debian": f}, Arch: "vax"}.Resolve(t.Context(), sel))
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

// world has several distributions, with what is the same in them and what isn't.
func world() map[string]Provider {
	return map[string]Provider{
		"debian": &fixed{claims: "*-amd64", suites: []string{"trixie", "bookworm"}, lists: map[string][]string{
			"trixie": {"*6.12.8-amd64=a gcc-14 amd64", "6.12.8-rt-amd64=b gcc-14 rt-amd64"},
			"bookworm": {"6.12.8-amd64=c gcc-12 amd64", "*6.1.0-56-amd64=d gcc-12 amd64", "6.1.0-56-rt-amd64=e gcc-12 rt-amd64",
				"+6.1.0-55-amd64=f gcc-12 amd64", "6.1.0-55-rt-amd64=g gcc-12 rt-amd64", "+6.1.0-54-amd64=h gcc-12 amd64"},
		}},
		"ubuntu": &fixed{distro: "ubuntu", claims: "*-generic", suites: []string{"noble", "mantic", "jammy"}, ended: "mantic", lists: map[string][]string{
			"noble":  {"*6.8.0-149-generic=a gcc-13 generic", "+6.8.0-31-generic=b gcc-13 generic"},
			"mantic": {"old"},
			"jammy":  {"6.8.0-149-generic=c gcc-12 generic", "*5.15.0-9-generic=d gcc-11 generic", "+5.15.0-8-generic=e gcc-11 generic"},
		}},
		"rocky":     el("rocky", "a"),
		"almalinux": el("almalinux", "b"),
		"rhel":      &fixed{distro: "rhel", claims: "*.el[0-9]*.x86_64", suites: []string{"9", "8"}, lists: map[string][]string{"9": {"nowhere"}, "8": {"nowhere"}}},
	}
}

func el(distro, digest string) *fixed {
	return &fixed{distro: distro, claims: "*.el[0-9]*.x86_64", suites: []string{"9"}, lists: map[string][]string{"9": {
		"5.14.0-503.el9_5.x86_64+rt=" + digest + "1 - rt 2024-11-12T09:00:00+02:00",
		"*5.14.0-503.el9_5.x86_64=" + digest + "1 - default 2024-11-12T00:30:00+02:00",
		"+5.14.0-427.13.1.el9_4.x86_64=" + digest + "2 - default 2024-05-01T12:00:00Z",
	}}}
}

func TestResolveDistros(t *testing.T) {
	bookworm, container := Kernel{Distro: "debian", Suite: "bookworm"}, "6.8.0-31-generic"
	for _, c := range []struct {
		in      string
		running Kernel
		want    string // kernels, without what is said before by an earlier one
		err     string // or this
	}{
		// A pattern of suites is about each of them.
		{in: "debian/*:latest", want: "debian/trixie:6.12.8-amd64 debian/bookworm:6.1.0-56-amd64"},
		{in: "debian/*:6.12.8-amd64", want: "debian/trixie:6.12.8-amd64 debian/bookworm:6.12.8-amd64"},
		{in: "[ru]*/*:latest", want: "rocky/9:5.14.0-503.el9_5.x86_64 ubuntu/noble:6.8.0-149-generic ubuntu/jammy:5.15.0-9-generic"},
		{in: "rh*/*:latest", err: `rh*/* has no kernel of the default flavour for "amd64": name a release; not looked into: kernels of 9: no mirror; give one`},
		{in: "debian/w*:latest", err: `debian has no suite "w*"; known are trixie, bookworm: not found`},
		{in: "[g]*/*:latest", err: `no distribution "[g]*"; known are almalinux, debian, rhel, rocky, ubuntu: not found`},
		{in: "ubuntu/mantic:latest", err: "mantic is expired"},
		{in: "*/*:6.8.0-31-generic", want: "ubuntu/noble:6.8.0-31-generic"},
		{in: "ubuntu/m*:latest", err: "not looked into: mantic is expired"},
		{in: "rhel/9:latest", err: "kernels of 9: no mirror; give one"},
		// Without a suite it follows from the release.
		{in: "6.8.0-31-generic", want: "ubuntu/noble:6.8.0-31-generic"},
		{in: "6.8.0-149-generic", err: `ubuntu/noble (gcc-13) and ubuntu/jammy (gcc-12) have different kernels of the release "6.8.0-149-generic": write ubuntu/noble:6.8.0-149-generic or ubuntu/jammy:6.8.0-149-generic`},
		{in: "5.14.0-427.13.1.el9_4.x86_64", err: `almalinux/9 and rocky/9 have different kernels of the release "5.14.0-427.13.1.el9_4.x86_64": write almalinux/9:5.14.0-427.13.1.el9_4.x86_64 or rocky/9:5.14.0-427.13.1.el9_4.x86_64`},
		{in: "rocky/9:5.14.0-427.13.1.el9_4.x86_64", want: "rocky/9:5.14.0-427.13.1.el9_4.x86_64"},
		{in: "5.14.0-1.el9.x86_64", err: `no release "5.14.0-1.el9.x86_64" in any suite whose kernels are named like that; near are "5.14.0-503.el9_5.x86_64", "5.14.0-503.el9_5.x86_64+rt", "5.14.0-427.13.1.el9_4.x86_64"; not looked into: kernels of 9: no mirror; give one`},
		{in: "6.8.0-31-genric", err: `no known distribution has releases like "6.8.0-31-genric"; near are "6.8.0-31-generic" (ubuntu), "6.1.0-56-amd64" (debian), "6.12.43+deb13-amd64" (debian); write DISTRO/SUITE:6.8.0-31-genric to look into a suite for it`},
		{in: "6.8.0-*", err: `the pattern "6.8.0-*" fits the kernels of almalinux, debian, rhel, rocky and ubuntu: write DISTRO/SUITE:6.8.0-*, as in almalinux/*:6.8.0-*, or */*:6.8.0-* for all of them`},
		{in: "6.8.0-3*-generic", want: "ubuntu/noble:6.8.0-31-generic"},
		// The latest, of a flavour, and of a time.
		{in: "debian/bookworm:latest=2", want: "debian/bookworm:6.1.0-56-amd64 debian/bookworm:6.1.0-55-amd64"},
		{in: "debian/bookworm:latest=9", want: "debian/bookworm:6.1.0-56-amd64 debian/bookworm:6.1.0-55-amd64 debian/bookworm:6.1.0-54-amd64"},
		{in: "debian/bookworm:latest@rt-*", want: "debian/bookworm:6.1.0-56-rt-amd64"},
		{in: "debian/bookworm:latest@amd64", want: "debian/bookworm:6.12.8-amd64"},
		{in: "debian/bookworm:latest=2@*", want: "debian/bookworm:6.12.8-amd64 debian/bookworm:6.1.0-56-amd64 debian/bookworm:6.1.0-56-rt-amd64 debian/bookworm:6.1.0-55-rt-amd64"},
		{in: "debian/bookworm:latest@cloud", err: `debian/bookworm has no kernel of a flavour "cloud" for "amd64"`},
		{in: "rocky/9:since=2024-11-01", want: "rocky/9:5.14.0-503.el9_5.x86_64"},
		{in: "rocky/9:since=2024-11-12@*", want: "rocky/9:5.14.0-503.el9_5.x86_64+rt"}, // the other was built on the 11th, in UTC
		{in: "rocky/9:since=2024-05-01", want: "rocky/9:5.14.0-503.el9_5.x86_64 rocky/9:5.14.0-427.13.1.el9_4.x86_64"},
		{in: "rocky/9:since=2025-01-01", err: `rocky/9 has no kernel for "amd64" that is rocky/9:since=2025-01-01`},
		{in: "[rd]*/*:since=2024-01-01", err: "the indexes of debian/trixie and debian/bookworm have no dates of packages, which [rd]*/*:since=2024-01-01 asks for: take latest=N"},
		// Excludes are about all of the request.
		{in: "!*-rt-*,debian/bookworm:6.1.0-5[56]-*", want: "debian/bookworm:6.1.0-56-amd64 debian/bookworm:6.1.0-55-amd64"},
		{in: "debian/*:latest,!debian/bookworm:6.1.0-56-*", want: "debian/trixie:6.12.8-amd64 debian/bookworm:6.1.0-55-amd64"},
		{in: "6.8.0-*-generic,!ubuntu/jammy:*", want: "ubuntu/noble:6.8.0-149-generic ubuntu/noble:6.8.0-31-generic"},
		{in: "ubuntu/noble:latest=2@*,!ubuntu/jammy:*,!*-149-*", want: "ubuntu/noble:6.8.0-31-generic"},
		{in: "6.1.0-56-amd64,debian/bookworm:6.1.0-55-amd64,!*-56-*", want: "debian/bookworm:6.1.0-55-amd64"},
		{in: "debian/bookworm:6.1.0-56-*,!6.1.*", err: "the request excludes all kernels that it names"},
		{in: "!6.1.*", err: "excludes kernels and names none"},
		// Running: of the host's own suite.
		{in: "running", running: Kernel{Distro: "rocky", Suite: "9", Release: "5.14.0-427.13.1.el9_4.x86_64"}, want: "rocky/9:5.14.0-427.13.1.el9_4.x86_64"},
		{in: "running", running: Kernel{Distro: "ubuntu", Suite: "jammy", Release: "6.8.0-149-generic"}, want: "ubuntu/jammy:6.8.0-149-generic"},
		{in: "running", running: Kernel{Distro: "alpine", Suite: "3.20", Release: "6.8.0-31-generic"}, want: "ubuntu/noble:6.8.0-31-generic"},
		{in: "running", running: Kernel{Distro: bookworm.Distro, Suite: bookworm.Suite, Release: container},
			err: `the running kernel, "6.8.0-31-generic", is not in debian/bookworm, which this machine's os-release names; in a container the kernel is the host's: write ubuntu/noble:6.8.0-31-generic or ubuntu/jammy:6.8.0-31-generic`},
		{in: "running", running: Kernel{Distro: "debian", Suite: "trixie", Release: "6.6.0-linuxkit"}, err: "the kernel is the host's: write DISTRO/SUITE:6.6.0-linuxkit"},
		{in: "running", running: Kernel{Distro: "ubuntu", Suite: "zesty", Release: container}, err: `the running kernel, "6.8.0-31-generic", of ubuntu/zesty: ubuntu has no suite "zesty"; known are`},
		{in: "running", running: Kernel{Distro: "rhel", Suite: "9", Release: "5.14.0-427.13.1.el9_4.x86_64"}, err: "kernels of 9: no mirror; give one"},
		{in: "ubuntu/noble:running", running: Kernel{Distro: bookworm.Distro, Suite: bookworm.Suite, Release: container}, want: "ubuntu/noble:6.8.0-31-generic"},
	} {
		sel, err := ParseSelectors(c.in)
		if err != nil {
			t.Fatal(err)
		}
		list, err := all(Resolver{Providers: world(), Arch: "amd64", Running: c.running}.Resolve(t.Context(), sel))
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("Resolve(%s) = %v, %v; want error %q", c.in, list, err, c.err)
			}
			continue
		}
		var got []string
		for _, k := range list {
			got = append(got, k.String())
		}
		if s := strings.Join(got, " "); err != nil || s != c.want {
			t.Errorf("Resolve(%s) = %s, %v; want %s", c.in, s, err, c.want)
		}
	}
}

// One selector's failure is no other's, and what the first has the second doesn't repeat.
func TestResolveAnswers(t *testing.T) {
	sel, err := ParseSelectors("debian/bookworm:6.1.0-5[56]-amd64,!*-rt-*,7.0-amd64,debian/bookworm:latest=3")
	if err != nil {
		t.Fatal(err)
	}
	answers, err := Resolver{Providers: world(), Arch: "amd64"}.Resolve(t.Context(), sel)
	if err != nil || len(answers) != 3 {
		t.Fatalf("Resolve = %v, %v; want three answers", answers, err)
	}
	if a := answers[1]; a.Selector.Release != "7.0-amd64" || !errors.Is(a.Err, ErrNotFound) {
		t.Errorf("the second answer is %+v", a)
	}
	if n, m := len(answers[0].Kernels), len(answers[2].Kernels); n != 2 || m != 1 {
		t.Errorf("the answers have %d and %d kernels; want 2 and 1", n, m)
	}
}

// A release's form says which indexes are worth a download.
func TestResolveAsksWhoClaims(t *testing.T) {
	w := world()
	sel, err := ParseSelectors("6.8.0-31-generic,*/*:6.8.0-31-generic,ubuntu/*:latest")
	if err != nil {
		t.Fatal(err)
	}
	r := Resolver{Providers: w, Arch: "amd64", Warn: func(s string) { t.Errorf("warning: %s", s) }}
	if _, err := all(r.Resolve(t.Context(), sel)); err != nil {
		t.Fatal(err)
	}
	for name, p := range w {
		want := int32(0)
		if name == "ubuntu" {
			want = 2
		}
		if n := p.(*fixed).asked.Load(); n != want {
			t.Errorf("%s was asked %d times; want %d", name, n, want)
		}
	}
}

// Where nothing can be read, that is what the error says, and of many reasons the first.
func TestResolveReadsNothing(t *testing.T) {
	f := newFixed()
	for _, s := range f.suites {
		f.lists[s] = []string{"broken"}
	}
	_, err := all(Resolver{Providers: map[string]Provider{"debian": f}, Arch: "amd64"}.Resolve(t.Context(), []Selector{{Release: "6.1.0-56-amd64"}}))
	if want := `whether any known suite has a release "6.1.0-56-amd64" can't be told; not looked into: ` + f.suites[0] + " is broken; not looked into: " +
		f.suites[1] + " is broken; and 1 more"; !errors.Is(err, ErrNotFound) || err.Error() != want {
		t.Errorf("error is %v; want %s", err, want)
	}
}
