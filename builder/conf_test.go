package builder_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/builder/dkms"
	"github.com/godkms-hermetic/godkms-hermetic/builder/docker"
	"github.com/godkms-hermetic/godkms-hermetic/builder/enginetest"
	"github.com/godkms-hermetic/godkms-hermetic/builder/sandbox"
	"github.com/godkms-hermetic/godkms-hermetic/internal/dkmstest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/dockertest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// job is one of a source with these files, for the kernel of the bench.
func (b *bench) job(t testing.TB, files map[string]string) builder.Job {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		write(t, filepath.Join(dir, name), text)
	}
	source, err := builder.OpenSource(t.Context(), dir, builder.SourceOptions{Temp: b.temp})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { source.Close() })
	return builder.Job{Source: source, Lock: kernels.Lock{
		Kernel:   kernels.Kernel{Distro: "debian", Suite: "bookworm", Arch: runtime.GOARCH, Release: release},
		Compiler: "gcc-12", Headers: []kernels.Package{{Name: "linux-headers-" + release, Version: "1", Digest: v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("a", 64)}}},
	}}
}

// The compiler of the root is the lock's, whatever the headers say; another release of the kernel's own is told in the log alone.
func testRootCompiler(t *testing.T, e builder.Engine) {
	b := newBench(t, e) // its compiler says that it is gcc-12, 12.2.0
	root := kernelRoot(t)
	headers := t.TempDir()
	b.builder.Root = func(context.Context, kernels.Lock, func(string, int64, int64)) (builder.Root, error) {
		return enginetest.Folders(append(root.Layers(), headers)...), nil
	}
	for _, test := range []struct {
		config, lock string
		forced       bool
		failed       string // in the reason
		log          string
	}{
		{"CONFIG_CC_VERSION_TEXT=\"gcc-12 (Test) 12.2.0\"", "gcc-12", false, "", ""},
		{"CONFIG_CC_VERSION_TEXT=\"gcc-12 (Test) 12.3.1\"", "gcc-12", false, "", "# the kernel was built by another release of gcc-12, 12.3.1; this is 12.2.0"},
		{"CONFIG_CC_VERSION_TEXT=\"gcc-13 (Test) 13.2.0\"", "gcc-12", false, `the kernel was built by "gcc-13 (Test) 13.2.0", but the lock of debian/bookworm:` + release + ` has "gcc-12"; --compiler gcc-12`, ""},
		{"CONFIG_CC_VERSION_TEXT=\"gcc-13 (Test) 13.2.0\"", "gcc-12", true, "", `# the kernel was built by "gcc-13 (Test) 13.2.0"; gcc-12 stands in for it`},
		{"CONFIG_CC_VERSION_TEXT=\"gcc-13 (Test) 13.2.0\"", "gcc-13", false, `it says "gcc-12 (Test 12.2.0-1) 12.2.0", but the lock of debian/bookworm:` + release + ` has "gcc-13"`, ""},
		{"CONFIG_GCC_VERSION=90400", "gcc-12", false, `the kernel was built by gcc 9.4.0, but the lock of`, ""},
		{"CONFIG_GCC_VERSION=90400", "gcc-12", true, "", "stands in"},
		{"CONFIG_SMP=y", "gcc-12", false, "", ""},
	} {
		modules := "lib/modules"
		if to, err := os.Readlink("/lib"); err == nil {
			modules = filepath.Join(to, "modules")
		}
		write(t, filepath.Join(headers, modules, release, "build/include/config/auto.conf"), test.config+"\nCONFIG_MODULES=y\n")
		j := b.job(t, map[string]string{"dkms.conf": confHead + "BUILD_EXCLUSIVE_KERNEL=^none # " + test.config + "\n"}) // a key of its own
		j.Lock.Compiler, j.Lock.Forced = test.lock, test.forced
		r := b.builder.Build(t.Context(), j, builder.Watch{})
		if test.failed == "" && r.Status != builder.Skipped || test.failed != "" && (r.Status != builder.Failed || !strings.Contains(r.Reason, test.failed)) {
			t.Errorf("%s, locked %s (forced: %t): %s, %s; want %q", test.config, test.lock, test.forced, r.Status, r.Reason, test.failed)
		}
		if !strings.Contains(string(r.Log), test.log) || test.log == "" && strings.Contains(string(r.Log), "the kernel was built by") && test.failed == "" {
			t.Errorf("%s, locked %s (forced: %t): log %q; want %q", test.config, test.lock, test.forced, r.Log, test.log)
		}
	}
}

const confHead = "PACKAGE_NAME=m\nPACKAGE_VERSION=1\nDEST_MODULE_LOCATION=/extra\n"

// A conf can do what it likes in there: either it is understood, or the error says what it did. Both come soon.
func testHostileConf(t *testing.T, e builder.Engine) {
	b := newBench(t, e)
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	builder.LowerEvaluationLimit(t, 8*time.Second)
	for _, test := range []struct {
		name, conf string
		want       string // in the error; "" is that MAKE is "make all"
	}{
		{"exit", "exit 0", "dkms.conf ended before it was read to its end (exit code 0)"},
		{"make", "make() { exit 1; }; eval() { exit 1; }; printf() { exit 1; }; builtin() { exit 1; }; echo() { exit 1; }", ""},
		{"1 GB on standard output", "yes 'a line of some length, again and again' | head -c 1000000000", ""},
		{"1 GB on standard error", "yes 'a line of some length, again and again' | head -c 300000000 >&2", ""},
		{"passwd", `MAKE="make $(cat /etc/passwd /proc/1/environ)"; DEST_MODULE_LOCATION="$MAKE"`, "DEST_MODULE_LOCATION[0] is"},
		{"passwd, sourced", ". /etc/passwd; . /etc/shadow", ""},
		{"a process that stays", "sleep 1000 & (trap '' TERM HUP; setsid sleep 1000) &", ""},
		{"input", "read MORE; read -t 100 MORE; cat", ""},
		{"closed", "exec <&- >&- 2>&-", ""},
		{"traps", "trap 'exit 1' EXIT ERR DEBUG; false", "ended before it was read to its end (exit code 1)"},
		{"killed", "kill -9 $$; sleep 100", "was ended by a signal: killed"},
		{"many values", "for i in {0..499}; do printf -v CLEAN[i] %010000d 0; done", "there are more than 4194304 bytes"},
		{"a value", "printf -v PRE_BUILD %05000000d 0", "dkms.conf: PRE_BUILD[0] has 5000000 characters; at most 65536 are read"},
		{"the files of the evaluation", "rm -rf /var/lib/dkms/.values; ln -s /etc/passwd /var/lib/dkms/.values; mkdir -p /var/lib/dkms/x", "dkms.conf"},
	} {
		t.Run(test.name, func(t *testing.T) {
			begin := time.Now()
			got, err := b.builder.Evaluate(t.Context(), b.job(t, map[string]string{"dkms.conf": confHead + "MAKE=\"'make' all\"\n" + test.conf + "\n"}), builder.Watch{})
			if d := time.Since(begin); d > 8*time.Second {
				t.Errorf("it took %v", d)
			}
			if test.want == "" && (err != nil || got.Plan.Make.Value != "'make' all") {
				t.Errorf("make command %q, error %v; want 'make' all", got.Plan.Make.Value, err)
			}
			if test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("plan %+v, error %v; want %q", got.Plan, err, test.want)
			}
			if line, _, _ := bytes.Cut(passwd, []byte("\n")); strings.Contains(fmt.Sprint(got, err), string(line)) {
				t.Errorf("a file of the host was read: %v, %v", got, err)
			}
		})
	}
	builder.LowerEvaluationLimit(t, 300*time.Millisecond)
	_, err = b.builder.Evaluate(t.Context(), b.job(t, map[string]string{"dkms.conf": confHead + "while :; do :; done\n"}), builder.Watch{})
	if want := "dkms.conf was not evaluated within 300ms: does it loop, or wait for input?"; err == nil || !strings.Contains(err.Error(), want) || builder.DKMSCode(err) != 8 {
		t.Errorf("error %v, dkms's code %d; want %q, 8", err, builder.DKMSCode(err), want)
	}
}

// Overrides and directives reach the evaluation, in their order, and are part of the key.
func testOverrides(t *testing.T, e builder.Engine) {
	b := newBench(t, e)
	j := b.job(t, map[string]string{"dkms.conf": confHead + "PRE_BUILD=a\n"})
	plain := b.builder.Key(j)
	j.Overrides = []dkms.Override{{Name: "m.conf", Text: []byte("PRE_BUILD=\"$PRE_BUILD b\"\nMAKE=x\n")}, {Name: "m-1.conf", Text: []byte("PRE_BUILD=\"$PRE_BUILD c\"\n")}}
	over := b.builder.Key(j)
	j.Directives = []string{"MAKE=y", "POST_BUILD=$z"}
	if all := b.builder.Key(j); plain == over || over == all {
		t.Errorf("keys %s, %s, %s; want three", plain, over, all)
	}
	got, err := b.builder.Evaluate(t.Context(), j, builder.Watch{})
	if p := got.Plan; err != nil || p.PreBuild != "a b c" || p.Make.Value != "y" || p.PostBuild != "$z" {
		t.Errorf("PRE_BUILD %q, make command %q, POST_BUILD %q, error %v", p.PreBuild, p.Make.Value, p.PostBuild, err)
	}
	slices.Reverse(j.Overrides)
	if got, err := b.builder.Evaluate(t.Context(), j, builder.Watch{}); err != nil || got.Plan.PreBuild != "a c b" {
		t.Errorf("PRE_BUILD %q, error %v; want a c b", got.Plan.PreBuild, err)
	}
	j.Overrides[0].Text = []byte("\n\nAUTOINSTALL=x\n")
	r := b.builder.Build(t.Context(), j, builder.Watch{})
	if want := `m-1.conf:3: AUTOINSTALL is "x": it can be yes, no or empty`; r.Reason != want || !strings.Contains(string(r.Log), want) || builder.DKMSCode(r.Err) != 8 {
		t.Errorf("reason %q, dkms's code %d, log %q; want %q in both", r.Reason, builder.DKMSCode(r.Err), r.Log, want)
	}
}

func TestConf(t *testing.T) {
	for _, engine := range []struct {
		name string
		make func(*testing.T) builder.Engine
	}{
		{"sandbox", func(*testing.T) builder.Engine { return sandbox.Engine{} }},
		{"docker", func(t *testing.T) builder.Engine {
			t.Setenv("DOCKER_HOST", dockertest.Start(t, dockertest.Options{}).Host)
			e := docker.New()
			t.Cleanup(func() { e.Close() })
			return e
		}},
	} {
		t.Run(engine.name, func(t *testing.T) {
			e := engine.make(t)
			t.Run("Hostile", func(t *testing.T) { testHostileConf(t, e) })
			t.Run("Overrides", func(t *testing.T) { testOverrides(t, e) })
			t.Run("Compiler", func(t *testing.T) { testRootCompiler(t, e) })
		})
	}
}

// BenchmarkEvaluate is the evaluation of a dkms.conf alone, in a sandbox that is there.
func BenchmarkEvaluate(b *testing.B) {
	bench := newBench(b, sandbox.Engine{})
	j := bench.job(b, map[string]string{"dkms.conf": confHead + "MAKE='make -C $kernel_source_dir M=$dkms_tree/m/1/build'\nAUTOINSTALL=yes\n"})
	var took time.Duration
	for b.Loop() {
		e, err := bench.builder.Evaluate(b.Context(), j, builder.Watch{})
		if err != nil {
			b.Fatal(err)
		}
		took += e.Took
	}
	b.ReportMetric(float64(took.Microseconds())/1000/float64(b.N), "bash-ms/op")
}

// script traces what it sees, into the log.
func script(word, more string) string {
	return "#!/bin/sh\necho TRACE " + word + " $PWD $kernelver $arch $module $module_version \"$@\" $(ls ../*/*/module 2>/dev/null)\n" + more + "\n"
}

// The same sources end in the same code under dkms itself, and their scripts run in the same places, with the same variables, in
// the same order. What the test's "make" makes is no module, so that here a build that is good ends in the check of modules.
func TestSameBuild(t *testing.T) {
	if os.Getuid() != 0 {
		need.Skip(t, "dkms itself runs as root only")
	}
	real := dkmstest.Script(t)
	b := newBench(t, sandbox.Engine{})
	const conf = confHead + "STRIP=no\nMAKE=\"'sh' make.sh $kernelver\"\n"
	const diff = "--- a/text\n+++ b/text\n@@ -1 +1 @@\n-%s\n+%s\n"
	base := map[string]string{
		"text": "one\n", "make.sh": script("make", "cat text; echo TRACE $(cat text); echo x >m.ko"),
		"pre.sh": script("pre", ""), "post.sh": script("post", ""), "three.sh": script("fails", "exit 3"), "plain": "text\n",
		"patches/two.patch": fmt.Sprintf(diff, "one", "two"), "patches/three.patch": fmt.Sprintf(diff, "two", "three"),
		"host.sh": script("host", ""),
	}
	for _, test := range []struct {
		name, conf string
		code       int
		trace      []string // the first words
	}{
		{"good", conf, 0, []string{"make", "one"}},
		{"scripts", conf + "PRE_BUILD='pre.sh a $arch'\nPOST_BUILD='post.sh b  c'", 0, []string{"pre", "make", "one", "post"}},
		{"patches before scripts", conf + "PATCH=(two.patch three.patch)\nPRE_BUILD=pre.sh", 0, []string{"pre", "make", "three"}},
		{"patches that don't match", conf + "PATCH=(two.patch three.patch)\nPATCH_MATCH[1]=^5", 0, []string{"make", "two"}},
		{"scripts of the host", conf + "POST_ADD=host.sh\nPRE_INSTALL=host.sh\nPOST_INSTALL=host.sh\nPOST_REMOVE=host.sh", 0, []string{"make", "one"}},
		{"a script that is not executable", conf + "PRE_BUILD=plain\nPOST_BUILD=none.sh", 0, []string{"make", "one"}},
		{"a bad conf", conf + "AUTOINSTALL=x", 8, nil},
		{"a conf that exits", conf + "exit 0", 8, nil},
		{"excluded", conf + "BUILD_EXCLUSIVE_KERNEL=^5", 77, nil},
		{"a patch that is missing", conf + "PATCH=(two.patch none.patch)", 5, nil},
		{"a patch that is elsewhere", conf + "PATCH=a/../two.patch", 5, nil},
		{"a patch that fails", conf + "PATCH=three.patch\nPRE_BUILD=pre.sh", 6, nil},
		{"PRE_BUILD fails", conf + "PRE_BUILD=three.sh", 3, []string{"fails"}},
		{"make fails", conf + "MAKE=\"'sh' three.sh\"\nPOST_BUILD=post.sh", 10, []string{"fails"}},
		{"no module", conf + "BUILT_MODULE_NAME=other\nPOST_BUILD=post.sh", 7, []string{"make", "one"}},
		{"a module elsewhere", conf + "BUILT_MODULE_LOCATION=src", 7, []string{"make", "one"}},
		{"POST_BUILD fails", conf + "POST_BUILD=three.sh", 3, []string{"make", "one", "fails"}}, // and dkms calls it built: defect 12
		{"a dependency that is missing", conf + "BUILD_DEPENDS=other", 13, nil},
	} {
		t.Run(test.name, func(t *testing.T) {
			files := map[string]string{"dkms.conf": test.conf + "\n"}
			for name, text := range base {
				files[name] = text
			}
			code, log := buildWithDKMS(t, real, files)
			theirs := trace(log)
			r := b.builder.Build(t.Context(), b.job(t, files), builder.Watch{})
			ours, oursCode := trace(string(r.Log)), builder.DKMSCode(r.Err)
			if r.Status == builder.Skipped {
				oursCode = 77
			}
			if code != test.code || oursCode != test.code {
				t.Errorf("dkms ends with %d, we with %d (%v); want %d. dkms's log:\n%s\nours:\n%s", code, oursCode, r.Err, test.code, log, r.Log)
			}
			if test.code == 0 && (r.Err == nil || !strings.Contains(r.Err.Error(), "m.ko is no kernel module")) {
				t.Errorf("error %v; want that all went well up to the check", r.Err)
			}
			if !slices.Equal(ours, theirs) || !slices.EqualFunc(ours, test.trace, func(line, word string) bool { return strings.HasPrefix(line, word) }) {
				t.Errorf("dkms ran\n%s\nwe ran\n%s\nwant %q", strings.Join(theirs, "\n"), strings.Join(ours, "\n"), test.trace)
			}
		})
	}
}

func trace(log string) []string {
	var out []string
	for line := range strings.Lines(log) {
		if text, ok := strings.CutPrefix(line, "TRACE "); ok {
			out = append(out, strings.TrimSpace(text))
		}
	}
	return out
}

// buildWithDKMS runs dkms itself in folders of the test's own. The log is that of the build, with the tree's usual place.
func buildWithDKMS(t *testing.T, dkms string, files map[string]string) (code int, log string) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		write(t, filepath.Join(dir, "src/m-1", name), text)
	}
	write(t, filepath.Join(dir, "modules", release, "build/include/config/auto.conf"), "CONFIG_SMP=y\n")
	tree := filepath.Join(dir, "dkms")
	if err := os.Mkdir(tree, 0o755); err != nil {
		t.Fatal(err)
	}
	machine := kernels.Kernel{Arch: runtime.GOARCH}.Machine()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "bash", dkms, "build", "m/1", "-k", release, "-a", machine, "-j", "1",
		"--dkmstree", tree, "--sourcetree", filepath.Join(dir, "src"), "--installtree", filepath.Join(dir, "modules"))
	cmd.Env = []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH")}
	output, err := os.Create(filepath.Join(dir, "output")) // a pipe is held for seconds by the sleep of its progress
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	cmd.Stdout, cmd.Stderr = output, output
	err = cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{filepath.Join("m/1", release, machine, "log/make.log"), "m/1/build/make.log"} {
		if text, err := os.ReadFile(filepath.Join(tree, name)); err == nil {
			return code, strings.ReplaceAll(string(text), tree, "/var/lib/dkms")
		}
	}
	out, err := os.ReadFile(output.Name())
	if err != nil {
		t.Fatal(err)
	}
	return code, strings.ReplaceAll(string(out), "TRACE", "in the output:")
}

// A kernel's compiler is exported as dkms exports it, and has to be the locked one.
func TestCompilers(t *testing.T) {
	clang := map[string]string{"CONFIG_CC_IS_CLANG": "y", "CONFIG_LD_IS_LLD": "y"}
	for _, test := range []struct {
		text, lock string // behind an exclamation mark: forced
		config     map[string]string
		want       string // the environment, or what the error says
	}{
		{"gcc (Ubuntu 9.4.0-1ubuntu1~20.04.2) 9.4.0", "gcc-9", nil, "CC=gcc KERNEL_CC=gcc"},
		{"gcc (GCC) 11.4.1 20231218 (Red Hat 11.4.1-3)", "gcc-11", nil, "CC=gcc KERNEL_CC=gcc"},
		{"gcc (SUSE Linux) 7.5.0", "gcc-13", nil, `was built by "gcc (SUSE Linux) 7.5.0", but the lock of`},
		{"gcc (SUSE Linux) 7.5.0", "!gcc-13", nil, "CC=gcc-13 KERNEL_CC=gcc-13"},
		{"icc 19", "gcc-13", nil, "--compiler gcc-13"},
		{"icc 19", "!gcc-13", nil, "CC=gcc-13 KERNEL_CC=gcc-13"},
		{"Debian clang version 14.0.6", "!clang-15", clang, "CC=clang-15 KERNEL_CC=clang-15 LD=ld.lld KERNEL_LD=ld.lld"},
		{"Debian clang version 14.0.6", "!gcc-12", clang, "gcc-12 can't stand in"},
		{"gcc-12 (Debian 12.2.0-14) 12.2.0", "gcc-12", nil, "CC=gcc-12 KERNEL_CC=gcc-12"},
		{"x86_64-linux-gnu-gcc-14 (Debian 14.2.0-19) 14.2.0", "gcc-14", nil, "CC=x86_64-linux-gnu-gcc-14 KERNEL_CC=x86_64-linux-gnu-gcc-14"},
		{"gcc-12 (Debian 12.2.0-14) 12.2.0", "gcc-13", nil, `was built by "gcc-12 (Debian 12.2.0-14) 12.2.0", but the lock of`},
		{"Debian clang version 14.0.6", "clang-14", clang, "CC=clang KERNEL_CC=clang LD=ld.lld KERNEL_LD=ld.lld"},
		{"clang version 19.1.7 (/home/x 123)", "clang-19", map[string]string{"CONFIG_CC_IS_CLANG": "y"}, "CC=clang KERNEL_CC=clang"},
		{"Ubuntu clang version 18.1.3 (1ubuntu1)", "clang-18", clang, "CC=clang KERNEL_CC=clang LD=ld.lld KERNEL_LD=ld.lld"},
		{"Debian clang version 14.0.6", "clang-15", clang, `was built by "Debian clang version 14.0.6", but the lock of`},
		{"Debian clang version 14.0.6", "gcc-12", clang, "but the lock of"},
		{"gcc-12 (Debian 12.2.0-14) 12.2.0", "gcc-12", map[string]string{"CONFIG_LD_IS_LLD": "y"}, "CC=gcc-12 KERNEL_CC=gcc-12 LD=ld.lld KERNEL_LD=ld.lld"},
	} {
		lock, forced := strings.CutPrefix(test.lock, "!")
		env, err := builder.Compilers(dkms.Target{Config: test.config}, test.text, kernels.Lock{Compiler: lock, Forced: forced})
		if got := strings.Join(env, " "); err != nil && !strings.Contains(err.Error(), test.want) || err == nil && got != test.want {
			t.Errorf("%s, locked %s: %q, %v; want %q", test.text, test.lock, got, err, test.want)
		}
	}
}
