package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/builder/dkms"
	"github.com/godkms-hermetic/godkms-hermetic/internal/dkmstest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

func TestMain(m *testing.M) {
	code := m.Run()
	os.RemoveAll(programs)
	os.Exit(code)
}

var programs string // a folder

// program builds the program, once.
var program = sync.OnceValues(func() (tool string, err error) {
	if programs, err = os.MkdirTemp("", "compare-dkms-test-"); err != nil {
		return "", err
	}
	tool = filepath.Join(programs, "godkms-hermetic")
	if out, err := exec.Command("go", "build", "-o", tool, "../../cmd/godkms-hermetic").CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return tool, nil
})

// start makes a comparison with the program as it is now, and finds kernels.
func start(t *testing.T, lines ...string) (*comparison, []kernels.Kernel) {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a Debian mirror")
	}
	for _, name := range []string{"dpkg-deb", "depmod", "modinfo"} {
		need.Program(t, name)
	}
	tool, err := program()
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background() // not t's, which is over before parallel subtests are
	c, err := newComparison(ctx, options{tool: tool, cache: dkmstest.Cache(), timeout: 10 * time.Minute}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	targets, err := c.targets(ctx, lines)
	if err != nil {
		need.Skip(t, "no kernels to compare with: %v", err)
	}
	return c, targets
}

// want is what both are to say about a source.
type want struct {
	dkms    int    // exit code of dkms, and that which ours stands for
	reason  string // part of what ours says
	modules string // of both; default "hello.ko" where they build
	differs string // why ours is not to do as dkms does
	ours    string // its verdict then
	proven  bool   // the kernel's own tools say that ours is right
}

// conf is a dkms.conf of the module t 1.0, with further lines.
func conf(lines string) string {
	return "PACKAGE_NAME=\"t\"\nPACKAGE_VERSION=\"1.0\"\nBUILT_MODULE_NAME[0]=\"hello\"\nDEST_MODULE_LOCATION[0]=\"/updates\"\n" + lines
}

const fails = "#!/bin/sh\necho what is wrong\nexit 3\n"

// trees are small sources, each for one rule. Beside dkms.conf they have hello's files, unless said otherwise.
var trees = []struct {
	name, conf string
	files      map[string]string // further ones; those that begin with #! are executable
	want
}{
	{name: "plain", conf: conf("")},
	{name: "no module", conf: conf("MAKE=true"), want: want{dkms: 7, reason: "did not make hello.ko"}},
	{name: "make fails", conf: conf("MAKE=false"), want: want{dkms: 10, reason: "make failed with exit code 1"}},
	{name: "does not compile", conf: conf(""), files: map[string]string{"hello.c": "int f(void) { return x; }\n"},
		want: want{dkms: 10, reason: "hello.c:1:"}},
	{name: "patch missing", conf: conf("PATCH[0]=no.patch"), want: want{dkms: 5, reason: "no.patch"}},
	{name: "patch outside", conf: conf("PATCH[0]=../dkms.conf"), want: want{dkms: 5, reason: `has a ".."`}},
	{name: "patch does not apply", conf: conf("PATCH[0]=a.patch"), files: map[string]string{"patches/a.patch": "--- a/hello.c\n+++ b/hello.c\n@@ -1 +1 @@\n-int nothing;\n+int something;\n"},
		want: want{dkms: 6, reason: "patch a.patch"}},
	{name: "PRE_BUILD fails", conf: conf("PRE_BUILD=pre.sh"), files: map[string]string{"pre.sh": fails},
		want: want{dkms: 3, reason: "PRE_BUILD: what is wrong"}},
	{name: "PRE_BUILD has arguments", conf: conf("PRE_BUILD='pre.sh a b'\nMAKE=true"), files: map[string]string{"pre.sh": "#!/bin/sh\n[ \"$*\" = 'a b' ] && exit 4\n"},
		want: want{dkms: 4, reason: "PRE_BUILD"}},
	{name: "PRE_BUILD not executable", conf: conf("PRE_BUILD=pre.sh\nMAKE=true"), files: map[string]string{"pre.sh": "exit 3"},
		want: want{dkms: 7, reason: "did not make hello.ko"}},
	{name: "POST_BUILD fails", conf: conf("POST_BUILD=post.sh"), files: map[string]string{"post.sh": fails},
		want: want{dkms: 3, reason: "POST_BUILD: what is wrong"}},
	{name: "BUILD_EXCLUSIVE_KERNEL", conf: conf("BUILD_EXCLUSIVE_KERNEL='^5\\.'"), want: want{dkms: 77, reason: "BUILD_EXCLUSIVE_KERNEL="}},
	{name: "BUILD_EXCLUSIVE_ARCH", conf: conf("BUILD_EXCLUSIVE_ARCH=aarch64"), want: want{dkms: 77, reason: "BUILD_EXCLUSIVE_ARCH="}},
	{name: "BUILD_EXCLUSIVE_KERNEL_MIN", conf: conf("BUILD_EXCLUSIVE_KERNEL_MIN=6.2"), want: want{dkms: 77, reason: "BUILD_EXCLUSIVE_KERNEL_MIN="}},
	{name: "BUILD_EXCLUSIVE_KERNEL_MAX", conf: conf("BUILD_EXCLUSIVE_KERNEL_MAX=6.0.99"), want: want{dkms: 77, reason: "BUILD_EXCLUSIVE_KERNEL_MAX="}},
	{name: "BUILD_EXCLUSIVE_KERNEL_MAX met", conf: conf("MAKE=true\nBUILD_EXCLUSIVE_KERNEL_MAX=6.1"),
		want: want{dkms: 77, ours: failed, reason: "did not make", differs: "dkms compares strings: to it 6.1.0-56-amd64 is past 6.1"}},
	{name: "BUILD_EXCLUSIVE_CONFIG", conf: conf("BUILD_EXCLUSIVE_CONFIG='CONFIG_SMP CONFIG_NONE'"), want: want{dkms: 77, reason: "CONFIG_NONE"}},
	{name: "BUILD_EXCLUSIVE_CONFIG not", conf: conf("BUILD_EXCLUSIVE_CONFIG='!CONFIG_SMP'"), want: want{dkms: 77, reason: "CONFIG_SMP"}},
	{name: "BUILD_EXCLUSIVE all met", conf: conf("MAKE=false\nBUILD_EXCLUSIVE_CONFIG='CONFIG_SMP !CONFIG_NONE CONFIG_EXT4_FS'\n" +
		"BUILD_EXCLUSIVE_KERNEL='6.1'\nBUILD_EXCLUSIVE_ARCH='64'\nBUILD_EXCLUSIVE_KERNEL_MIN=6.1\nBUILD_EXCLUSIVE_KERNEL_MAX=6.12"),
		want: want{dkms: 10, reason: "make failed"}},
	{name: "OBSOLETE_BY", conf: conf("OBSOLETE_BY=5.10"), want: want{dkms: 77, reason: "OBSOLETE_BY="}},
	{name: "no place", conf: "PACKAGE_NAME=t\nPACKAGE_VERSION=1.0\nBUILT_MODULE_NAME=hello\n", want: want{dkms: 8, reason: "DEST_MODULE_LOCATION[0] is missing"}},
	{name: "bad place", conf: conf("DEST_MODULE_LOCATION=/lib"), want: want{dkms: 8, reason: "DEST_MODULE_LOCATION[0]"}},
	{name: "suffix", conf: conf("BUILT_MODULE_NAME[0]=hello.ko"), want: want{dkms: 8, reason: "BUILT_MODULE_NAME[0]"}},
	{name: "suffix of the destination", conf: conf("DEST_MODULE_NAME[0]=hello.o"), want: want{dkms: 8, reason: "DEST_MODULE_NAME[0]"}},
	{name: "gap", conf: conf("BUILT_MODULE_NAME[2]=two\nDEST_MODULE_LOCATION[2]=/updates"), want: want{dkms: 8, reason: "BUILT_MODULE_NAME[1]"}},
	{name: "same name twice", conf: conf("BUILT_MODULE_NAME[1]=hello\nDEST_MODULE_LOCATION[1]=/updates\nDEST_MODULE_NAME[1]=other"),
		want: want{dkms: 8, reason: "BUILT_MODULE_NAME[1]"}},
	{name: "same destination twice", conf: conf("BUILT_MODULE_NAME[1]=other\nDEST_MODULE_NAME[1]=hello\nDEST_MODULE_LOCATION[1]=/updates"),
		want: want{dkms: 8, reason: "DEST_MODULE_NAME[1]"}},
	{name: "AUTOINSTALL", conf: conf("MAKE=false\nAUTOINSTALL=perhaps"), want: want{dkms: 8, reason: "AUTOINSTALL"}},
	{name: "NO_WEAK_MODULES", conf: conf("MAKE=false\nNO_WEAK_MODULES=1"), want: want{dkms: 8, reason: "NO_WEAK_MODULES"}},
	{name: "zero modules", conf: "PACKAGE_NAME=t\nPACKAGE_VERSION=1.0\nMAKE=true\n", want: want{modules: "none"}},
	{name: "default name", conf: "PACKAGE_NAME=t\nPACKAGE_VERSION=1.0\nDEST_MODULE_LOCATION=/extra\n", files: map[string]string{"Makefile": "obj-m := t.o\nt-y := hello.o\n"},
		want: want{modules: "t.ko"}},
	{name: "destination renames", conf: conf("DEST_MODULE_NAME[0]=other"), want: want{modules: "other.ko"}},
	{name: "STRIP and LOCATION", conf: conf("STRIP=no\nBUILT_MODULE_LOCATION[0]=sub"), files: map[string]string{"Makefile": "obj-m := sub/\n", "sub/Makefile": "obj-m := hello.o\n",
		"sub/hello.c": "#include <linux/module.h>\nMODULE_LICENSE(\"GPL\");\n"}},
	{name: "MAKE_MATCH", conf: conf("MAKE[0]=false\nMAKE[1]='make -C $kernel_source_dir M=$dkms_tree/$module/$module_version/build'\nMAKE[2]=false\n" +
		"MAKE_MATCH[1]='^6\\.1\\.'\nMAKE_MATCH[2]='^5'\n")},
	{name: "MAKE_MATCH of the first", conf: conf("MAKE[0]=false\nMAKE_MATCH[0]='^5'\nMAKE[1]='exit 12'\nMAKE_MATCH[1]=.\n"), want: want{dkms: 10, reason: "exit code 12"}},
	{name: "CRLF", conf: strings.ReplaceAll(conf("MAKE='exit 12'\n"), "\n", "\r\n"), want: want{dkms: 10, reason: "exit code 12"}},
	{name: "make in quotes", conf: conf(`MAKE="'make' -f /dev/null KERNELRELEASE; exit 12"`), want: want{dkms: 10, reason: "no Makefile has the target KERNELRELEASE"}},
	{name: "make unquoted", conf: conf(`MAKE="make -f release.mk"`), files: map[string]string{"release.mk": "all:\n\ttest -z '$(KERNELRELEASE)'\n"},
		want: want{dkms: 10, reason: "exit code 2"}},
	{name: "values are expanded twice", conf: conf(`MAKE='test $kernelver = "" || exit 12'`), want: want{dkms: 10, reason: "exit code 12"}},
	// Dkms goes on with what bash has understood before the error, and it's make that fails; ours does not.
	{name: "not bash", conf: conf("MAKE=false\nCLEAN=\""), want: want{dkms: 10, reason: "not valid bash"}},
	{name: "no name", conf: "PACKAGE_VERSION=1.0\nBUILT_MODULE_NAME=hello\nDEST_MODULE_LOCATION=/updates\n", want: want{dkms: 8, reason: "PACKAGE_NAME"}},
	{name: "no version", conf: "PACKAGE_NAME=t\nBUILT_MODULE_NAME=hello\nDEST_MODULE_LOCATION=/updates\n", want: want{dkms: 8, reason: "PACKAGE_VERSION"}},
	{name: "no module at all", conf: conf("MAKE='echo text >hello.ko'"),
		want: want{ours: failed, reason: "file format not recognized", differs: "dkms takes any file for a module", proven: true}},
	{name: "BUILD_DEPENDS missing", conf: conf("BUILD_DEPENDS=other\nMAKE=true"), want: want{dkms: 13, reason: `BUILD_DEPENDS "other"`}},
	{name: "sparse PATCH", conf: conf("PATCH[3]=no.patch\nMAKE=false"), want: want{dkms: 10, reason: "no.patch", differs: "dkms cuts arrays with gaps short"}},
	{name: "sparse MAKE", conf: conf("MAKE[0]=true\nMAKE[3]=false\nMAKE_MATCH[3]=6"), want: want{dkms: 7, reason: "make failed", differs: "dkms cuts arrays with gaps short"}},
}

// Every row of dkms's rules comes to the same verdict and the same modules, or differs for the reason given.
func TestTrees(t *testing.T) {
	c, targets := start(t, "6.1")
	hello, err := os.ReadFile("../../testdata/hello/hello.c")
	if err != nil {
		t.Fatal(err)
	}
	for _, tree := range trees {
		t.Run(strings.ReplaceAll(tree.name, " ", "-"), func(t *testing.T) {
			t.Parallel()
			s := subject{label: tree.name, tree: t.TempDir(), module: "t", version: "1.0"}
			s.source = filepath.Join(s.tree, "usr/src/t-1.0")
			files := map[string]string{"dkms.conf": tree.conf, "hello.c": string(hello), "Makefile": "obj-m := hello.o\n"}
			for name, text := range tree.files {
				files[name] = text
			}
			for name, text := range files {
				mode := os.FileMode(0o644)
				if strings.HasPrefix(text, "#!") {
					mode = 0o755
				}
				file := filepath.Join(s.source, name)
				if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, []byte(text), mode); err != nil {
					t.Fatal(err)
				}
			}
			check(t, c.compare(context.Background(), s, targets[0]), tree.want)
		})
	}
}

func check(t *testing.T, r row, w want) {
	t.Helper()
	if r.Error != "" {
		t.Fatal(r.Error)
	}
	verdict := map[int]string{0: built, 77: skipped}[w.dkms]
	if verdict == "" {
		verdict = failed
	}
	if w.modules == "" {
		w.modules = "hello.ko"
	}
	if r.DKMS.Code != w.dkms || r.DKMS.Verdict != verdict {
		t.Errorf("dkms: %s; want %s %d", r.DKMS, verdict, w.dkms)
	}
	if got := strings.Join(r.DKMS.Modules, " "); verdict == built && got != strings.TrimPrefix(w.modules, "none") {
		t.Errorf("modules of dkms: %q; want %q", got, w.modules)
	}
	if w.ours != "" {
		verdict = w.ours
	}
	if r.Ours.Verdict != verdict || !strings.Contains(r.Ours.Reason, w.reason) {
		t.Errorf("ours: %s, because %q; want %s, %q", r.Ours, r.Ours.Reason, verdict, w.reason)
	}
	if r.different() != (w.differs != "") || r.Explained != w.proven {
		t.Errorf("different: %v, proven: %v; want %v, %v (%s)", r.different(), r.Explained, w.differs != "", w.proven, w.differs)
	}
	if t.Failed() {
		t.Logf("modules: %q, %q\n%s", r.DKMS.Modules, r.Ours.Modules, r.why())
	}
}

// The repository's own trees.
func TestRepositoryTrees(t *testing.T) {
	c, targets := start(t, "6.1", "6.12")
	for _, tree := range []struct {
		name string
		want []want // by kernel
	}{
		{"broken", []want{{dkms: 10}}},
		{"date", []want{{modules: "date.ko"}}},
		{"exclusive", []want{{dkms: 77}}},
		{"exporter", []want{{modules: "exporter.ko"}}},
		{"hello", []want{{}}},
		{"hostfile", []want{{dkms: 10}}},
		{"importer", []want{{modules: "importer.ko"}}}, // BUILD_DEPENDS that are met
		{"importer below", []want{{dkms: 10, ours: built, differs: "dkms takes a Module.symvers in the top folder alone"}}},
		{"mixed", []want{{modules: "mixed.ko"}, {dkms: 10}}},
		{"multi", []want{{modules: "multi_one.ko two.ko"}, {modules: "multi_one.ko two.ko"}}},
		{"network", []want{{dkms: 10}}},
		{"uname", []want{{modules: "uname.ko"}}},
		{"uname-cheat", []want{{modules: "uname_cheat.ko", ours: failed, reason: "vermagic", differs: "its kernel refuses it", proven: true}}},
		{"unresolved", []want{{modules: "unresolved.ko", ours: failed, reason: "does not export", differs: "its kernel refuses it", proven: true}}},
	} {
		name, _, below := strings.Cut(tree.name, " ")
		text, err := os.ReadFile(filepath.Join("../../testdata", name, "dkms.conf"))
		if err != nil {
			t.Fatal(err)
		}
		h, err := dkms.Read(text)
		if err != nil {
			t.Fatal(err)
		}
		s := subject{label: tree.name, tree: t.TempDir(), module: h.Name, version: h.Version}
		s.source = filepath.Join(s.tree, "usr/src", s.module+"-"+s.version)
		if err := os.CopyFS(s.source, os.DirFS(filepath.Join("../../testdata", name))); err != nil {
			t.Fatal(err)
		}
		if strings.HasPrefix(tree.name, "importer") {
			s.first = []string{"exporter/1.2"}
			exporter := filepath.Join(s.tree, "usr/src/exporter-1.2")
			if err := os.CopyFS(exporter, os.DirFS("../../testdata/exporter")); err != nil {
				t.Fatal(err)
			}
			if below {
				appendTo(t, filepath.Join(exporter, "dkms.conf"), "MAKE=\"make -C $kernel_source_dir M=$dkms_tree/exporter/1.2/build/src\"\n")
			}
		}
		for i, w := range tree.want {
			t.Run(fmt.Sprintf("%s-%d", strings.ReplaceAll(tree.name, " ", "-"), i), func(t *testing.T) {
				t.Parallel()
				check(t, c.compare(context.Background(), s, targets[i]), w)
			})
		}
	}
}

func appendTo(t *testing.T, file, text string) {
	t.Helper()
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}
