package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/builder/sandbox"
	"github.com/godkms-hermetic/godkms-hermetic/internal/distrotest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/dockertest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// What built the kernels of the suites. The tools are bookworm's: its gcc-12 is of another release than jammy's kernels name, and gcc-13 is a
// script that says so when it's asked for its version, and runs gcc-12.
const (
	jammyGCC = "x86_64-linux-gnu-gcc-12 (Ubuntu 12.3.0-1ubuntu1~22.04) 12.3.0"
	nobleGCC = "x86_64-linux-gnu-gcc-13 (Ubuntu 13.2.0-23ubuntu4) 13.2.0"
)

// ubuntuTools are the packages of a suite's component main, and of universe.
func ubuntuTools(t *testing.T, suite string) (main, universe []distrotest.Package) {
	names := map[string]string{"glibc": "libc6", "libs": "libs", "awk": "mawk", "xz": "xz-utils", "gcc": "gcc-12"}
	for group, g := range distrotest.Tools(t, distrotest.Multiarch) {
		p := distrotest.Package{Name: group, Version: "1-1", Arch: "amd64", Files: g.Files}
		if name, ok := names[group]; ok {
			p.Name = name
		}
		switch group {
		case "glibc":
		case "libs":
			p.Depends = []string{"libc6"}
		case "gcc":
			p.Version, p.Depends = "12.3.0-1ubuntu1~22.04", []string{"libs", "binutils"}
			delete(p.Files, "usr/bin/gcc") // it's the package gcc's
			universe = append(universe, p)
			continue
		default:
			p.Depends = []string{"libc6", "libs"}
			if !slices.Contains([]string{"make", "patch", "kmod", "xz", "binutils"}, group) {
				p.Fields = []string{"Essential: yes", "Priority: required"}
			}
		}
		main = append(main, p)
	}
	main = append(main, distrotest.Package{Name: "bc", Version: "1-1", Arch: "amd64", Files: distrotest.Files{"usr/share/bc": distrotest.Text("")}})
	if suite == "noble" {
		script := distrotest.File{Exec: true, Text: "#!/bin/sh\ncase $1 in\n--version) echo 'gcc-13 (Ubuntu 13.2.0-23ubuntu4) 13.2.0' ;;\n*) exec gcc-12 \"$@\" ;;\nesac\n"}
		main = append(main, universe[0], distrotest.Package{Name: "gcc-13", Version: "13.2.0-23ubuntu4", Arch: "amd64", Depends: []string{"gcc-12"},
			Files: distrotest.Files{"usr/bin/gcc-13": script, "usr/bin/x86_64-linux-gnu-gcc-13": script}})
		universe = nil
	}
	return main, universe
}

// ubuntuKernel are the packages of a kernel's headers, which say that compiler built it; source is what kernels of the suite's own line have
// in their names: nothing.
func ubuntuKernel(t *testing.T, source, abi, version, compiler string, depends ...string) []distrotest.Package {
	shared := "linux-headers-" + abi
	if source != "" {
		shared = "linux-" + source + "-headers-" + abi
	}
	own := "linux-headers-" + abi + "-generic"
	common, flavour := distrotest.Headers(t, abi+"-generic", compiler).Linked("usr/src/"+shared, "usr/src/"+own)
	return []distrotest.Package{
		{Name: shared, Version: version, Arch: "all", Files: common},
		{Name: own, Version: version, Arch: "amd64", Depends: append([]string{shared, "libc6", "libs"}, depends...), Files: flavour},
	}
}

func ubuntuMirror(t *testing.T) string {
	pocket := func(suite, name string, components map[string][]distrotest.Package) distrotest.Pocket {
		return distrotest.Pocket{Codename: name, Suite: name, Series: suite, Origin: "Ubuntu", Components: components, ByHash: true}
	}
	jammy, universe := ubuntuTools(t, "jammy")
	noble, _ := ubuntuTools(t, "noble")
	return distrotest.Serve(t, distrotest.APT(t,
		pocket("jammy", "jammy", map[string][]distrotest.Package{"main": jammy, "universe": universe}),
		pocket("jammy", "jammy-updates", map[string][]distrotest.Package{"main": slices.Concat(
			ubuntuKernel(t, "hwe-6.5", "6.5.0-14", "6.5.0-14.14~22.04.1", jammyGCC),
			ubuntuKernel(t, "hwe-6.8", "6.8.0-149", "6.8.0-149.149~22.04.1", jammyGCC),
		)}),
		pocket("noble", "noble", map[string][]distrotest.Package{"main": slices.Concat(noble,
			ubuntuKernel(t, "", "6.8.0-31", "6.8.0-31.31", nobleGCC))}),
		pocket("noble", "noble-updates", map[string][]distrotest.Package{"main": slices.Concat(
			ubuntuKernel(t, "", "6.8.0-149", "6.8.0-149.149", nobleGCC),
			ubuntuKernel(t, "hwe-6.17", "6.17.0-41", "6.17.0-41.41~24.04.1", nobleGCC),
			ubuntuKernel(t, "hwe-6.17", "6.17.0-42", "6.17.0-42.42", nobleGCC),
			ubuntuKernel(t, "", "6.8.0-150", "6.8.0-150.150", strings.ReplaceAll(nobleGCC, "13", "14")),
			ubuntuKernel(t, "", "6.8.0-151", "6.8.0-151.151", nobleGCC, "gcc-12"), // which isn't what its headers say
		)}),
	))
}

// Kernels of two suites, each with its compiler, from a repository in the form of Ubuntu's: what users type first.
func TestUbuntu(t *testing.T) {
	if err := (sandbox.Engine{}).Check(t.Context()); err != nil {
		need.Skip(t, "no sandbox: %v", err)
	}
	mirror, cache := ubuntuMirror(t), t.TempDir()
	run := func(v any, want int, args ...string) string {
		t.Helper()
		var out, errs bytes.Buffer
		a := &app{stdout: &out, stderr: &errs, env: os.Getenv, keyring: distrotest.Keyring(t)}
		if code := a.run(t.Context(), append(args, "--cache-dir", cache, "--mirror", "ubuntu="+mirror, "--format", "json")); code != want {
			t.Fatalf("godkms-hermetic %s: exit code %d; want %d\n%s%s", strings.Join(args, " "), code, want, &out, &errs)
		}
		if v != nil {
			if err := json.Unmarshal(out.Bytes(), v); err != nil {
				t.Fatal(err)
			}
		}
		return errs.String()
	}
	var built struct{ Results []ui.Result }
	build := []string{"build", "../../testdata/hello", "--out", filepath.Join(cache, "out"), "--kernels"}
	want := []struct{ suite, release, compiler string }{{"jammy", "6.5.0-14-generic", "gcc-12"}, {"noble", "6.8.0-31-generic", "gcc-13"}}

	said := run(&built, 0, append(build, "6.5.0-14-generic,6.8.0-31-generic", "--engine", "sandbox")...)
	if len(built.Results) != 2 {
		t.Fatalf("%+v\n%s", built, said)
	}
	for i, w := range want {
		r := built.Results[i]
		if r.Status != ui.Built || r.Suite != w.suite || r.Compiler != w.compiler || len(r.Modules) != 1 {
			t.Fatalf("%+v; want %s built with %s\n%s", r, w.release, w.compiler, said)
		}
		if got := r.Modules[0].Vermagic; !strings.HasPrefix(got, w.release+" ") {
			t.Errorf("vermagic %q; want that of %s", got, w.release)
		}
		log, err := os.ReadFile(r.Log)
		if err != nil {
			t.Fatal(err)
		}
		const other = "# the kernel was built by another release of gcc-12, 12.3.0; this is 12.2.0"
		if bytes.Contains(log, []byte(other)) != (w.compiler == "gcc-12") {
			t.Errorf("%s: the log is\n%s", w.release, log)
		}
	}

	t.Run("docker", func(t *testing.T) { // builds what is cached too, and fails where a byte differs
		t.Setenv("DOCKER_HOST", dockertest.Start(t, dockertest.Options{}).Host)
		run(&built, 0, append(build, "6.5.0-14-generic,6.8.0-31-generic", "--engine", "docker", "--no-cache")...)
		for i, r := range built.Results {
			if r.Status != ui.Built || r.Suite != want[i].suite {
				t.Errorf("%+v", r)
			}
		}
	})

	t.Run("one release on two suites", func(t *testing.T) {
		said := run(nil, exitNoKernel, append(build, "6.8.0-149-generic")...)
		for _, part := range []string{"ubuntu/jammy:6.8.0-149-generic", "ubuntu/noble:6.8.0-149-generic"} {
			if !strings.Contains(said, part) {
				t.Errorf("it doesn't name %s:\n%s", part, said)
			}
		}
		file := filepath.Join(cache, "two.lock")
		run(nil, 0, "lock", "../../testdata/hello", "--kernels", "ubuntu/jammy:6.8.0-149-generic,ubuntu/noble:6.8.0-149-generic", "--out", file)
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range []string{"kernel ubuntu/jammy:6.8.0-149-generic amd64 gcc-12 ", "kernel ubuntu/noble:6.8.0-149-generic amd64 gcc-13 "} {
			if !strings.Contains(string(text), line) {
				t.Errorf("the lock file has no %q:\n%s", line, text)
			}
		}
	})

	t.Run("listing", func(t *testing.T) {
		var list struct{ Kernels []kernels.Candidate }
		run(&list, 0, "kernels", "ubuntu/noble")
		var got []string
		for _, k := range list.Kernels {
			got = append(got, fmt.Sprintf("%s %s %t %t", k.Release, k.Compiler, k.Default, k.Latest))
		}
		if want := []string{"6.17.0-42-generic  false false", "6.17.0-41-generic  false false", "6.8.0-151-generic gcc-12 true true",
			"6.8.0-150-generic  true false", "6.8.0-149-generic gcc-13 true false", "6.8.0-31-generic gcc-13 true false"}; !slices.Equal(got, want) {
			t.Errorf("kernels are %q\nwant %q", got, want)
		}
	})

	t.Run("no such compiler", func(t *testing.T) {
		said := run(&built, exitNoKernel, append(build, "ubuntu/noble:6.8.0-150-generic")...)
		for _, part := range []string{"14.2.0", `no package \"gcc-14\"`, "gcc-13, gcc-12", "--compiler"} {
			if why := built.Results[0].Reason; !strings.Contains(why, strings.ReplaceAll(part, `\"`, `"`)) {
				t.Errorf("the reason has no %s: %s\n%s", part, why, said)
			}
		}
		run(&built, 0, append(build, "ubuntu/noble:6.8.0-150-generic", "--compiler", "gcc-13")...)
		if r := built.Results[0]; r.Status != ui.Built || r.Compiler != "gcc-13" {
			t.Errorf("%+v; want built with gcc-13", r)
		}
		if said := run(nil, exitUsage, append(build, "ubuntu/noble:6.8.0-150-generic", "--compiler", "13")...); !strings.Contains(said, "gcc-12 or clang-17") {
			t.Errorf("--compiler 13: %s", said)
		}
	})

	t.Run("another compiler than the index says", func(t *testing.T) {
		run(&built, exitBuild, append(build, "ubuntu/noble:6.8.0-151-generic")...)
		for _, part := range []string{nobleGCC, `"gcc-12"`, "--compiler gcc-12"} {
			if why := built.Results[0].Reason; !strings.Contains(why, part) {
				t.Errorf("the reason has no %s: %s", part, why)
			}
		}
		run(&built, 0, append(build, "ubuntu/noble:6.8.0-151-generic", "--compiler", "gcc-12")...)
		if r := built.Results[0]; r.Status != ui.Built || r.Compiler != "gcc-12" {
			t.Errorf("%+v; want built with gcc-12", r)
		}
	})
}
