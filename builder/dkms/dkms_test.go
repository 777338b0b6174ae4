package dkms

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

var bookworm = Target{
	Module: "m", Version: "1", Distro: "debian", Release: "6.1.0-56-amd64", Machine: "x86_64", Jobs: 3,
	Config: map[string]string{"CONFIG_ACPI": "y", "CONFIG_DRM": "m"},
}

const head = "PACKAGE_NAME=m\nPACKAGE_VERSION=1\n"

// evaluateHere evaluates a conf with the machine's bash, as the sandbox does with its own.
func evaluateHere(t testing.TB, in Input, target Target) (Conf, error) {
	t.Helper()
	dir := t.TempDir()
	files := []string{filepath.Join(dir, confName)}
	texts := [][]byte{in.Conf}
	for _, o := range in.Overrides {
		files = append(files, filepath.Join(dir, OverrideFolder, o.Name))
		texts = append(texts, o.Text)
	}
	for i, file := range files {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, texts[i], 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(dir, "patches"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"all.patch", "five.patch", "six.patch"} {
		if err := os.WriteFile(filepath.Join(dir, "patches", name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	args := target.evaluation(filepath.Join(dir, ".values"), files, in.Directives)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a conf that loops does it in a child
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.Dir = dir
	cmd.Env = []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH"), "kernelver=" + target.Release, "arch=" + target.Machine}
	stderr, err := os.Create(filepath.Join(dir, "stderr")) // a pipe would be waited for as long as any process is left
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	cmd.Stderr = stderr
	out, err := cmd.Output()
	said, readErr := os.ReadFile(stderr.Name())
	if readErr != nil {
		t.Fatal(readErr)
	}
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return Conf{}, errors.New(string(said))
	} else if err != nil {
		t.Fatal(err)
	}
	return Parse(bytes.NewReader(out), said, in)
}

// plan is what a conf without overrides comes to.
func plan(t testing.TB, conf string, target Target) (Plan, error) {
	t.Helper()
	return planOf(t, Input{Conf: []byte(conf)}, target)
}

func planOf(t testing.TB, in Input, target Target) (Plan, error) {
	t.Helper()
	c, err := evaluateHere(t, in, target)
	if err != nil {
		return Plan{}, err
	}
	return c.Plan(target)
}

// command is the make command of a plan as it is handed to eval.
func command(p Plan) string {
	for _, s := range p.Steps {
		if s.Name == "make" {
			return s.Args[len(s.Args)-1]
		}
	}
	return ""
}

func TestMakeCommand(t *testing.T) {
	const loc = head + "DEST_MODULE_LOCATION=/extra\n"
	build := "/var/lib/dkms/m/1/build"
	for _, tt := range []struct{ name, conf, want string }{
		{"default", "", "make -j3 KERNELRELEASE=6.1.0-56-amd64 -C /lib/modules/6.1.0-56-amd64/build M=" + build},
		{"scalar", `MAKE="make all"`, "make -j3 KERNELRELEASE=6.1.0-56-amd64 all"},
		{"variables", `MAKE[0]="make -C ${kernel_source_dir} M=${dkms_tree}/${PACKAGE_NAME}/${PACKAGE_VERSION}/build"`,
			"make -j3 KERNELRELEASE=6.1.0-56-amd64 -C /lib/modules/6.1.0-56-amd64/build M=" + build},
		{"quoted make", `MAKE="'make' all"`, "'make' all"},
		{"expanded twice", `MAKE='make K=$kernelver'`, "make -j3 KERNELRELEASE=6.1.0-56-amd64 K=6.1.0-56-amd64"},
		{"white space", "MAKE=\"make a\n\t b\"", "make -j3 KERNELRELEASE=6.1.0-56-amd64 a b"},
		{"star", "MAKE=\"make *\"", "make -j3 KERNELRELEASE=6.1.0-56-amd64 *"},
		{"crlf", "MAKE=\"make all\"\r", "make -j3 KERNELRELEASE=6.1.0-56-amd64 all"},
		{"match", "MAKE[0]=\"make a\"\nMAKE[1]=\"make b\"\nMAKE_MATCH[1]=\"^6\\.1\"", "make -j3 KERNELRELEASE=6.1.0-56-amd64 b"},
		{"no match", "MAKE[0]=\"make a\"\nMAKE[1]=\"make b\"\nMAKE_MATCH[1]=\"^5\"", "make -j3 KERNELRELEASE=6.1.0-56-amd64 a"},
		{"last match", "MAKE[1]=\"make b\"\nMAKE_MATCH[1]=6\nMAKE[4]=\"make c\"\nMAKE_MATCH[4]=amd64", "make -j3 KERNELRELEASE=6.1.0-56-amd64 c"},
		{"first has pattern", "MAKE[0]=\"make a\"\nMAKE_MATCH[0]=^5", "make -j3 KERNELRELEASE=6.1.0-56-amd64 -C /lib/modules/6.1.0-56-amd64/build M=" + build},
		{"conditional", "if [[ $kernelver == 6.1* ]]; then MAKE=\"make new\"; else MAKE=\"make old\"; fi", "make -j3 KERNELRELEASE=6.1.0-56-amd64 new"},
	} {
		p, err := plan(t, loc+tt.conf+"\n", bookworm)
		if got := command(p); err != nil || got != tt.want {
			t.Errorf("%s: make command %q, error %v; want %q", tt.name, got, err, tt.want)
		}
	}
}

func TestModules(t *testing.T) {
	p, err := plan(t, head+`
BUILT_MODULE_NAME[0]="a"
BUILT_MODULE_LOCATION[0]="src"
DEST_MODULE_NAME[0]="x-a"
DEST_MODULE_LOCATION[0]="/kernel/drivers/a"
BUILT_MODULE_NAME[1]="b"
DEST_MODULE_LOCATION[1]="/extra"
STRIP[0]="no"
STRIP[1]="Yes"
BUILT_MODULE_NAME[2]="c"
DEST_MODULE_LOCATION[2]="/updates"
`, bookworm)
	want := []Module{{"src/a.ko", "x-a.ko", "updates/dkms", false}, {"b.ko", "b.ko", "updates/dkms", true}, {"c.ko", "c.ko", "updates/dkms", false}}
	if err != nil || !slices.Equal(p.Modules, want) {
		t.Errorf("modules %v, error %v; want %v", p.Modules, err, want)
	}
	other := bookworm
	other.Distro = "gentoo"
	p, err = plan(t, head+"DEST_MODULE_LOCATION=/kernel/drivers/md/\n", other)
	if want := []Module{{"m.ko", "m.ko", "kernel/drivers/md", true}}; err != nil || !slices.Equal(p.Modules, want) {
		t.Errorf("modules %v, error %v; want %v", p.Modules, err, want)
	}
}

func TestPatches(t *testing.T) {
	p, err := plan(t, head+`DEST_MODULE_LOCATION=/extra
PATCH[0]=all.patch
PATCH[2]=six.patch
PATCH_MATCH[2]="^6\."
PATCH[3]=five.patch
PATCH_MATCH[3]="^5\."
PRE_BUILD="gen.sh $kernelver"
POST_BUILD=done.sh
`, bookworm)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range p.Steps {
		names = append(names, s.Name)
	}
	want := []string{"patch all.patch", "patch six.patch", "PRE_BUILD", "make", "collecting the modules", "POST_BUILD"}
	if !slices.Equal(names, want) {
		t.Errorf("steps %q; want %q", names, want)
	}
}

func TestExcluded(t *testing.T) {
	for _, tt := range []struct{ conf, skip string }{
		{"BUILD_EXCLUSIVE_KERNEL='^6\\.1'", ""},
		{"BUILD_EXCLUSIVE_KERNEL='^(5|6\\.8)'", "BUILD_EXCLUSIVE_KERNEL"},
		{"BUILD_EXCLUSIVE_ARCH='x86_64|aarch64'", ""},
		{"BUILD_EXCLUSIVE_ARCH=aarch64", "BUILD_EXCLUSIVE_ARCH"},
		{"BUILD_EXCLUSIVE_KERNEL_MIN=3.9", ""},
		{"BUILD_EXCLUSIVE_KERNEL_MIN=6.1", ""},
		{"BUILD_EXCLUSIVE_KERNEL_MIN=6.10", "BUILD_EXCLUSIVE_KERNEL_MIN"},
		{"BUILD_EXCLUSIVE_KERNEL_MAX=6.1", ""}, // dkms says no: defect 11
		{"BUILD_EXCLUSIVE_KERNEL_MAX=6.1.0-55", "BUILD_EXCLUSIVE_KERNEL_MAX"},
		{"BUILD_EXCLUSIVE_KERNEL_MAX=6.0.9", "BUILD_EXCLUSIVE_KERNEL_MAX"},
		{"OBSOLETE_BY=5.10", "OBSOLETE_BY"},
		{"OBSOLETE_BY=5.10\nBUILD_EXCLUSIVE_KERNEL_MAX=7", ""},
		{"BUILD_EXCLUSIVE_CONFIG='CONFIG_ACPI CONFIG_DRM !CONFIG_NONE'", ""},
		{"BUILD_EXCLUSIVE_CONFIG='CONFIG_NONE'", "CONFIG_NONE is not set"},
		{"BUILD_EXCLUSIVE_CONFIG='!CONFIG_DRM'", "CONFIG_DRM is set"},
	} {
		p, err := plan(t, head+"DEST_MODULE_LOCATION=/extra\n"+tt.conf+"\n", bookworm)
		if err != nil || (tt.skip == "") != (p.Skip == "") || !strings.Contains(p.Skip, tt.skip) {
			t.Errorf("%s: skip %q, error %v; want %q", tt.conf, p.Skip, err, tt.skip)
		}
	}
}

func TestFaults(t *testing.T) {
	for _, tt := range []struct{ name, conf, want string }{
		{"all at once", head + "BUILT_MODULE_NAME[0]=a.ko\nBUILT_MODULE_NAME[1]=b\nDEST_MODULE_LOCATION[1]=/usr", "DEST_MODULE_LOCATION[1] is \"/usr\""},
		{"suffix", head + "BUILT_MODULE_NAME[0]=a.ko\nDEST_MODULE_LOCATION=/extra", `leave out the ".ko"`},
		{"gap", head + "BUILT_MODULE_NAME[0]=a\nBUILT_MODULE_NAME[2]=b\nDEST_MODULE_LOCATION[0]=/extra\nDEST_MODULE_LOCATION[2]=/extra", "BUILT_MODULE_NAME[1] is missing"},
		{"no location", head + "BUILT_MODULE_NAME=a", "DEST_MODULE_LOCATION[0] is missing"},
		{"twice", head + "BUILT_MODULE_NAME[0]=a\nBUILT_MODULE_NAME[1]=a\nDEST_MODULE_LOCATION[0]=/extra\nDEST_MODULE_LOCATION[1]=/extra", "a second time"},
		{"path", head + "BUILT_MODULE_NAME=../../a\nDEST_MODULE_LOCATION=/extra", "a name, not a path"},
		{"location outside", head + "BUILT_MODULE_LOCATION=../..\nDEST_MODULE_LOCATION=/extra", "must stay below"},
		{"patch outside", head + "DEST_MODULE_LOCATION=/extra\nPATCH=../x", `has a ".." in its path`},
		{"name by kernel", "PACKAGE_NAME=m\nPACKAGE_VERSION=1\n[[ $kernelver ]] && PACKAGE_VERSION=2\nDEST_MODULE_LOCATION=/extra", "must not depend on the kernel"},
		{"exit", head + "exit 3", "ended before it was read to its end (exit code 3)"},
		{"index", head + "MAKE[99999]=x\nDEST_MODULE_LOCATION=/extra", "indexes go from 0"},
	} {
		_, err := plan(t, tt.conf+"\n", bookworm)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v; want one with %q", tt.name, err, tt.want)
		}
	}
	if _, err := plan(t, head+"BUILT_MODULE_NAME[0]=a.ko\nBUILT_MODULE_NAME[1]=b\n", bookworm); len(strings.Split(err.Error(), "\n")) != 3 {
		t.Errorf("error %q; want all three faults, one a line", err)
	}
}

// The conf can't reach the evaluation that goes on after it: not by options, functions, traps or redirections.
func TestEvaluationIsApart(t *testing.T) {
	for _, conf := range []string{
		"set -eu", "set -f", "IFS=x", "echo() { :; }; printf() { :; }", "trap 'echo x' EXIT DEBUG", "exec >/dev/null 2>&1", "readonly i=1",
		"shopt -s nullglob extglob", "echo MAKE=evil", "cd /", "unset kernelver; kernelver=5", "set -T; trap 'echo MAKE=evil' DEBUG RETURN",
		"builtin() { :; }", "eval() { exit 9; }", "unset() { exit 9; }", ".() { exit 9; }", "exit() { while :; do :; done; }", "exec() { return 1; }",
		"set() { :; }; trap() { :; }", "make() { exit 9; }; [[() { :; }", "shopt -s expand_aliases; alias eval='exit 9' builtin='exit 9' for='exit 9'",
		"declare -r x=1; return 3", "sleep 5 &", "exec 0<&- 1>&- 2>&-", "hash -p /bin/false sleep", "ulimit -n 20", "shopt -s xpg_echo nocasematch",
		"POSIXLY_CORRECT=1", "set -o posix", "set -k", "set -v -x", "coproc sleep 5", "BASH_ENV=/etc/passwd; ENV=/etc/passwd", "exec 5>x 6>y; disown -a",
	} {
		begin := time.Now()
		p, err := plan(t, head+"MAKE='make all'\nDEST_MODULE_LOCATION=/extra\n"+conf+"\n", bookworm)
		if d := time.Since(begin); d > 3*time.Second {
			t.Errorf("%s: it took %s", conf, d)
		}
		if got, want := command(p), "make -j3 KERNELRELEASE=6.1.0-56-amd64 all"; err != nil || got != want {
			t.Errorf("%s: make command %q, error %v; want %q", conf, got, err, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for _, out := range []string{"", "END", "END\x00x", "MAKE\x000\x00make\x00END\x00", "MAKE\x00-1\x00\x00\x00END\x00", "MAKE\x00x\x00\x00\x00END\x00", "MAKE\x000\x00a\x00\x00"} {
		if c, err := Parse(strings.NewReader(out), nil, Input{}); err == nil {
			t.Errorf("Parse(%q) = %v; want an error", out, c)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("MAKE\x000\x00make\x00\x00END\x00"))
	f.Add([]byte("BUILT_MODULE_NAME\x003\x00../a\x00\x00DEST_MODULE_LOCATION\x003\x00/extra\x001\x00END\x00"))
	f.Fuzz(func(t *testing.T, out []byte) {
		c, err := Parse(bytes.NewReader(out), nil, Input{})
		if err != nil {
			return
		}
		p, err := c.Plan(bookworm)
		for _, m := range p.Modules {
			if err == nil && (strings.Contains(m.Name, "/") || strings.HasPrefix(m.Built, "../") || filepath.IsAbs(m.Built)) {
				t.Errorf("Plan of %q has the module %+v", out, m)
			}
		}
	})
}

func TestCompareBound(t *testing.T) {
	for _, tt := range []struct {
		release, bound string
		want           int
	}{
		{"6.2.0-b", "6.2", 0}, {"6.2.1", "6.2", 1}, {"6.10.0-1", "6.9", 1}, {"6.1.0-56-amd64", "6.1.0-9", 1},
		{"5.14.0-427.el9", "5.14.0-70", 1}, {"5.14.0-70.el9", "5.14.0-427", -1}, {"6.12.117+deb12-amd64", "6.12.117", 0}, {"4.9", "4.19", -1},
	} {
		if got := compareBound(tt.release, tt.bound); (got > 0) != (tt.want > 0) || (got < 0) != (tt.want < 0) {
			t.Errorf("compareBound(%q, %q) = %d; want %d", tt.release, tt.bound, got, tt.want)
		}
	}
}
