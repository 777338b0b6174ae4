package kernels

import (
	"slices"
	"strings"
	"testing"
)

func TestParseSelectors(t *testing.T) {
	for in, want := range map[string][]Selector{
		"6.1.0-56-amd64": {{Release: "6.1.0-56-amd64"}},
		"debian/bookworm:6.12.117+deb12-amd64,running":               {{Distro: "debian", Suite: "bookworm", Release: "6.12.117+deb12-amd64"}, {Release: "running"}},
		" debian/sid:latest , debian/bookworm:6.1.0-*-[a-c]loud-?* ": {{Distro: "debian", Suite: "sid", Release: "latest"}, {Distro: "debian", Suite: "bookworm", Release: "6.1.0-*-[a-c]loud-?*"}},
		"rocky/9:5.14.0-427.13.1.el9_4.x86_64+rt":                    {{Distro: "rocky", Suite: "9", Release: "5.14.0-427.13.1.el9_4.x86_64+rt"}},
		"*/*:latest=3@*":                               {{Distro: "*", Suite: "*", Release: "latest", Count: 3, Flavour: "*"}},
		"ubuntu/jammy:latest=1":                        {{Distro: "ubuntu", Suite: "jammy", Release: "latest"}},
		"opensuse-leap/15.6:since=2026-01-31@[dr]*":    {{Distro: "opensuse-leap", Suite: "15.6", Release: "since", Day: "2026-01-31", Flavour: "[dr]*"}},
		"!*-rt-*,!debian/bookworm:6.1.0-5?-amd64":      {{Release: "*-rt-*", Exclude: true}, {Distro: "debian", Suite: "bookworm", Release: "6.1.0-5?-amd64", Exclude: true}},
		"debian/bookworm:6.1.0-[!4]*,ubuntu/*:6.[^5]*": {{Distro: "debian", Suite: "bookworm", Release: "6.1.0-[!4]*"}, {Distro: "ubuntu", Suite: "*", Release: "6.[^5]*"}},
	} {
		got, err := ParseSelectors(in)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("ParseSelectors(%q) = %v, %v; want %v", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		"":                                 "no release",
		"a,,b":                             "no release",
		"!":                                "no release",
		"debian/bookworm:":                 "no release",
		"debian/bookworm:@x":               "no release",
		"bookworm:6.1":                     "DISTRO/SUITE",
		"debian/:6.1":                      "DISTRO/SUITE",
		"/bookworm:6.1":                    "DISTRO/SUITE",
		"a/b/c:6.1":                        "DISTRO/SUITE",
		"debian/bookworm:6:1":              "characters",
		"6.1/2":                            "characters",
		"6.1 amd64":                        "characters",
		"debian/bookworm:newest=3":         "characters",
		"debian/bookworm:6.[12":            "not well-formed",
		"debian/[b:6.1":                    "not well-formed",
		"debian/bookworm:latest@[":         "not well-formed",
		"latest":                           "latest of what",
		"latest=3@rt":                      "write DISTRO/SUITE:latest=3@rt",
		"since=2026-01-01":                 "since of what",
		"debian/bookworm":                  "write debian/bookworm:latest",
		"ubuntu/*":                         "write ubuntu/*:latest",
		"debian/bookworm:latest=0":         "how many",
		"debian/bookworm:latest=+3":        "how many",
		"debian/bookworm:latest=":          "how many",
		"debian/bookworm:since":            "since when",
		"debian/bookworm:since=2026":       "since when",
		"debian/bookworm:since=2026-02-30": "since when",
		"debian/bookworm:latest@":          "is not a flavour",
		"debian/bookworm:6.1.0-*@rt":       "only latest and since",
		"running@rt":                       "only latest and since",
		"!debian/bookworm:latest":          "what is excluded is",
		"!running":                         "what is excluded is",
		"@kernels.txt":                     "can't be named here",
		"!@kernels.txt":                    "can't be named here",
	} {
		if got, err := ParseSelectors(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseSelectors(%q) = %v, %v; want error %q", in, got, err, want)
		}
	}
}

func TestReadSelectors(t *testing.T) {
	got, err := ReadSelectors(strings.NewReader("# all of them\n\ndebian/bookworm:latest\r\n  6.1.0-*, 6.8.0-31-generic # two\n!*-rt-*"))
	if err != nil || len(got) != 4 || got[0].String() != "debian/bookworm:latest" || got[2].String() != "6.8.0-31-generic" || !got[3].Exclude {
		t.Errorf("ReadSelectors = %v, %v", got, err)
	}
	for in, want := range map[string]string{
		"6.1.0-*\n\n6 1":                     "line 3: kernel selector \"6 1\"",
		"@other":                             "line 1: ",
		strings.Repeat("6", maxSelector+1):   `line 1: kernel selector "6666666666666666666666666666666666666666"…: it has more than 512 bytes`,
		strings.Repeat("6.1\n", maxList/4+1): "more than 1048576 bytes",
		strings.Repeat("6", maxList+1):       "more than",
	} {
		if got, err := ReadSelectors(strings.NewReader(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ReadSelectors(%.20q) = %d, %v; want error %q", in, len(got), err, want)
		}
	}
}

func FuzzParseSelectors(f *testing.F) {
	for _, s := range []string{"debian/bookworm:6.1.0-*", "*/*:latest=3@*", "!ubuntu/jammy:6.[^5]*,running", "amzn/2023:since=2026-01-31@rt", "6.12.43+deb13-amd64"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		list, err := ParseSelectors(in)
		if err != nil {
			return
		}
		for _, s := range list {
			if again, err := ParseSelector(s.String()); err != nil || again != s {
				t.Errorf("%q became %+v, then %+v, %v", in, s, again, err)
			}
		}
		if again, err := ReadSelectors(strings.NewReader(in)); !strings.ContainsAny(in, "#\n") && (err != nil || !slices.Equal(again, list)) {
			t.Errorf("%q in a file became %v, %v; want %v", in, again, err, list)
		}
	})
}
