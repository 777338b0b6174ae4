package cli

import (
	"fmt"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1registry "github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/godkms-hermetic/godkms-hermetic/images"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

func TestPick(t *testing.T) {
	var have []kernels.Kernel
	for _, text := range []string{"debian/bookworm:6.1.0-1-amd64", "debian/bookworm:6.1.0-1-rt-amd64", "rocky/9:5.14.0-1.el9.x86_64+rt", "ubuntu/noble:" + running()} {
		where, release, _ := strings.Cut(text, ":")
		distro, suite, _ := strings.Cut(where, "/")
		have = append(have, kernels.Kernel{Distro: distro, Suite: suite, Arch: "amd64", Release: release})
	}
	for list, want := range map[string]string{
		"":                  "0 1 2 3",
		"!*rt*":             "0 3",
		"running,6.1.0-*":   "3 0 1",
		"*/*:*,!debian/*:*": "2 3",
		"6.1.0-*,!6.1.0-1-rt-amd64,rocky/[0-9]:*": "0 2",
		"7.*,6.1.0-*":        "nothing of 7.*",
		"6.1.0-*,!6.*-amd64": "nothing of 6.1.0-*,!6.*-amd64",
	} {
		request, err := listSelectors(strings.Split(list, ","))
		if err != nil {
			t.Fatal(err)
		}
		out, none := pick(have, func(k kernels.Kernel) kernels.Kernel { return k }, request)
		var got []string
		for _, k := range out {
			got = append(got, fmt.Sprint(slices.Index(have, k)))
		}
		if none != "" {
			got = []string{"nothing of " + none}
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("pick(%s) = %s; want %s", list, s, want)
		}
	}
}

// A file without selectors isn't a request for all that there is.
func TestEmptySelectors(t *testing.T) {
	name := filepath.Join(t.TempDir(), "empty")
	if err := os.WriteFile(name, []byte("# none yet\n\n"), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, err := readSelectors([]string{"@" + name}); err == nil || err.Error() != "@"+name+" names no kernel; write one in a line, as in debian/bookworm:latest" {
		t.Errorf("of an empty file: %v", err)
	}
	if list, err := readSelectors([]string{"6.1.*", "@" + name}); err != nil || len(list) != 1 {
		t.Errorf("of a release beside an empty file: %v, %v", list, err)
	}
	if _, err := readSelectors([]string{"@" + t.TempDir()}); err == nil || !strings.Contains(err.Error(), "it is a folder") {
		t.Errorf("of a folder: %v", err)
	}
	for args, text := range map[string]string{
		"kernels ,":                        "no kernel given",
		"kernels debain":                   `no distribution "debain"; a suite is named DISTRO/SUITE, as in debian/bookworm, of the distributions almalinux, amzn`,
		"kernels latest@cloud":             "latest of what?",
		"kernels @" + name:                 "names no kernel",
		"build --kernels @" + name:         "names no kernel",
		"build --lock x --compiler gcc-12": "--compiler and --lock exclude each other",
	} {
		run(t, t.TempDir(), strings.Fields(args)...).wants(t, 1, text)
	}
}

// What the indexes of whatever distribution haven't got is looked for in a repository of header images.
func TestArchivedDistros(t *testing.T) {
	s := httptest.NewServer(v1registry.New(v1registry.Logger(log.New(io.Discard, "", 0))))
	defer s.Close()
	repo := strings.TrimPrefix(s.URL, "http://") + "/headers"
	for _, k := range []kernels.Kernel{
		{Distro: "ubuntu", Suite: "noble", Arch: "amd64", Release: "6.8.0-31-generic"},
		{Distro: "ubuntu", Suite: "noble", Arch: "amd64", Release: "6.8.0-35-generic"},
		{Distro: "ubuntu", Suite: "jammy", Arch: "amd64", Release: "6.8.0-35-generic"},
		{Distro: "rocky", Suite: "9", Arch: "amd64", Release: "5.14.0-427.13.1.el9_4.x86_64+rt"},
		{Distro: "rhel", Suite: "9", Arch: "amd64", Release: "5.14.0-427.el9.x86_64"},
		{Distro: "opensuse-leap", Suite: "15.6", Arch: "amd64", Release: "6.4.0-150600.21-default"},
		{Distro: "opensuse-leap", Suite: "15.6", Arch: "arm64", Release: "6.4.0-150600.23-default"},
	} {
		k.Arch = strings.Replace(k.Arch, "amd64", kernels.HostArch(), 1)
		tag, err := name.NewTag(repo + ":" + images.KernelTag(k, kernels.Extra{}))
		if err == nil {
			err = remote.Write(tag, empty.Image)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	a := &app{stderr: io.Discard, env: os.Getenv, cacheDir: t.TempDir(), format: "text"}
	if err := a.start(); err != nil {
		t.Fatal(err)
	}
	from, err := a.openHeaders(repo)
	if err != nil {
		t.Fatal(err)
	}
	for list, want := range map[string]string{
		"6.8.0-31-generic":                           "ubuntu/noble:6.8.0-31-generic",
		"ubuntu/*:6.8.0-3?-generic":                  "ubuntu/jammy:6.8.0-35-generic ubuntu/noble:6.8.0-31-generic ubuntu/noble:6.8.0-35-generic",
		"6.8.0-*-generic,!ubuntu/jammy:*":            "ubuntu/noble:6.8.0-31-generic ubuntu/noble:6.8.0-35-generic",
		"6.8.0-35-generic":                           `gone: not found; "` + repo + `" has the release "6.8.0-35-generic" of several suites: write DISTRO/SUITE:6.8.0-35-generic`,
		"rocky/9:5.14.0-427.13.1.el9_4.x86_64+rt":    "rocky/9:5.14.0-427.13.1.el9_4.x86_64+rt",
		"opensuse-leap/15.6:*":                       "opensuse-leap/15.6:6.4.0-150600.21-default",
		"opensuse-leap/15.6:6.4.0-150600.23-default": `gone: not found; "` + repo + `" has no header image of it either`,
		"opensuse-leap/15.6:latest":                  "gone: not found",
		"opensuse-leap/15.6:*,!*-default":            `gone: not found; "` + repo + `" has no header image of it either`,
		"rhel/9:5.14.0-427.el9.x86_64":               "rhel/9:5.14.0-427.el9.x86_64",
		"debian/bookworm:since=2026-01-01@*,!6.8.*":  "gone: not found",
	} {
		request, err := readSelectors(strings.Split(list, ","))
		if err != nil {
			t.Fatal(err)
		}
		var targets []target
		for _, s := range wantedOf(request) {
			targets = append(targets, target{asked: s, err: fmt.Errorf("gone: %w", kernels.ErrNotFound)})
		}
		found, err := a.archived(t.Context(), from, request, targets)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range found {
			if f.err != nil {
				got = append(got, f.err.Error())
			} else if got = append(got, f.label); !f.archived {
				t.Errorf("%s: %s isn't archived", list, f.label)
			}
		}
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s: %s; want %s", list, s, want)
		}
	}
}

// The form of a release, or of a pattern, says whose indexes are looked into.
func TestClaims(t *testing.T) {
	a := &app{stderr: io.Discard, env: os.Getenv, cacheDir: t.TempDir(), format: "text"}
	if err := a.start(); err != nil {
		t.Fatal(err)
	}
	distros, err := a.distros()
	if err != nil {
		t.Fatal(err)
	}
	for release, want := range map[string]string{
		"6.1.0-56-amd64":                   "debian",
		"6.12.115+deb13-cloud-amd64":       "debian",
		"6.1.0-*-amd64":                    "debian",
		"6.5.0-14-generic":                 "ubuntu",
		"6.8.0-*-generic":                  "ubuntu",
		"6.8.0-1009-aws":                   "ubuntu",
		"6.8.9-300.fc40.x86_64":            "fedora",
		"6.8.*.fc40.x86_64":                "fedora",
		"5.14.0-427.13.1.el9_4.x86_64":     "almalinux ol rocky",
		"5.14.0-427.13.1.el9_4.x86_64+rt":  "almalinux ol rocky",
		"5.14.0-503.el9.x86_64":            "almalinux centos ol rocky",
		"4.18.0-553.rt7.342.el8_10.x86_64": "almalinux ol rocky",
		"5.15.0-209.161.7.2.el9uek.x86_64": "ol",
		"6.4.0-150600.21-default":          "opensuse-leap",
		"6.9.3-1-default":                  "opensuse-tumbleweed",
		"6.1.90-99.173.amzn2023.x86_64":    "amzn",
		"6.8.0-arch1-1":                    "arch",
		"6.6.32-1-lts":                     "arch",
		"6.9.3-zen1-1-zen":                 "arch",
		"6.8.0-31-genric":                  "",
		"6.6.31+rpt-rpi-v8":                "",
	} {
		var got []string
		for name, p := range distros {
			if len(p.Claims(release)) > 0 {
				got = append(got, name)
			}
		}
		slices.Sort(got)
		if s := strings.Join(got, " "); s != want {
			t.Errorf("%s is claimed by %q; want %q", release, s, want)
		}
	}
}
