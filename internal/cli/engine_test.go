package cli

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/cache"
	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/dockertest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
)

// TestDocker has one Engine for all of these: the layers of a header image are loaded once.
func TestDocker(t *testing.T) {
	d := dockertest.Start(t, dockertest.Options{})
	t.Setenv("DOCKER_HOST", d.Host)
	t.Run("auto", func(t *testing.T) { testAutoFallsToDocker(t, d) })
	t.Run("reproduce", testReproduceWithDocker)
	t.Run("dies", func(t *testing.T) { testDockerDies(t, d) })
	t.Run("export", func(t *testing.T) { testExportIsForDocker(t, d) })
}

// Where there is no sandbox, auto builds with Docker, says so once, and the bytes are the same, dependencies included.
func testAutoFallsToDocker(t *testing.T, d *dockertest.Daemon) {
	need.Program(t, "unshare")
	shared := sharedCache(t)
	vars := newestKernels(t, shared)
	list := strings.TrimPrefix(vars[0], "K61=") + "," + strings.TrimPrefix(vars[2], "K612=") // of one toolchain
	build := func(wrap ...string) (results []ui.Result, errs string) {
		cmd := exec.Command(append(wrap, "godkms-hermetic")[0], append(wrap, "godkms-hermetic", "build", "../../testdata/importer", "../../testdata/exporter",
			"--kernels", list, "--cache-dir", shared, "--out", filepath.Join(t.TempDir(), "out"), "--format", "json", "--no-cache")[1:]...)
		var e bytes.Buffer
		cmd.Stderr = &e
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v\n%s%s", err, out, &e)
		}
		var r struct{ Results []ui.Result }
		if err := json.Unmarshal(out, &r); err != nil {
			t.Fatal(err)
		}
		return r.Results, e.String()
	}
	want, quiet := build()
	got, said := build("unshare", "--user", "--map-root-user", "sh", "-c", noNamespaces, "sh")
	if strings.Contains(quiet, "Docker") {
		t.Errorf("with a sandbox it says %q", quiet)
	}
	if n := strings.Count(said, "building with Docker at "+d.Host+"; sandbox: user namespaces are switched off"); n != 1 {
		t.Errorf("%d times it says that Docker builds; want once: %s", n, said)
	}
	found, code := diagnosis(t, nil, "unshare", "--user", "--map-root-user", "sh", "-c", noNamespaces, "sh", "godkms-hermetic", "doctor", "--offline")
	if box, dock := found["sandbox"], found["docker"]; code != 0 || box.Status != ui.CheckWarn || dock.Status != ui.CheckOK ||
		!strings.Contains(dock.Detail, d.Host+"; --engine auto takes it") {
		t.Errorf("doctor: exit code %d, %+v, %+v; want 0, and Docker", code, box, dock)
	}
	for i := range want {
		if got[i].Status != ui.Built || want[i].Status != ui.Built || got[i].Digest != want[i].Digest {
			t.Errorf("%s: Docker %s %s; the sandbox %s %s", want[i].Kernel, got[i].Status, got[i].Digest, want[i].Status, want[i].Digest)
		}
	}
}

// An Engine that dies in mid-build is not the source's fault: exit code 1, what to do next, nothing half-made. Then it builds.
func testDockerDies(t *testing.T, d *dockertest.Daemon) {
	shared := sharedCache(t)
	kernel := strings.TrimPrefix(newestKernels(t, shared)[0], "K61=")
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "src/dkms.conf"), "PACKAGE_NAME=slow\nPACKAGE_VERSION=1\nBUILT_MODULE_NAME=slow\nDEST_MODULE_LOCATION=/extra\nPRE_BUILD=pre.sh\n")
	writeFile(t, filepath.Join(dir, "src/Makefile"), "obj-m := slow.o\n")
	writeFile(t, filepath.Join(dir, "src/slow.c"), "#include <linux/module.h>\nMODULE_LICENSE(\"GPL\");\n")
	script := filepath.Join(dir, "src/pre.sh")
	build := func() (*exec.Cmd, *bytes.Buffer) {
		cmd := exec.Command("godkms-hermetic", "build", filepath.Join(dir, "src"), "--engine", "docker", "--kernels", kernel,
			"--cache-dir", shared, "--out", filepath.Join(dir, "out"), "--verbose")
		var both bytes.Buffer
		cmd.Stdout = &both
		return cmd, &both
	}
	writeFile(t, script, "#!/bin/sh\necho it waits\nsleep 1000\n")
	if err := os.Chmod(script, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd, both := build()
	errs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	for lines := bufio.NewScanner(errs); lines.Scan(); {
		said.WriteString(lines.Text() + "\n")
		if strings.Contains(lines.Text(), "it waits") {
			d.Kill()
		}
	}
	cmd.Wait()
	both.WriteString(said.String())
	if code := cmd.ProcessState.ExitCode(); code != exitUsage || !strings.Contains(both.String(), "the container ended, or the connection to the Engine at "+d.Host) ||
		!strings.Contains(both.String(), "try again") {
		t.Errorf("exit code %d, want %d and what to do:\n%s", code, exitUsage, both)
	}
	if _, err := os.Stat(filepath.Join(dir, "out")); err == nil {
		t.Error("something was handed out")
	}
	d.Restart()
	writeFile(t, script, fmt.Sprintf("#!/bin/sh\necho it goes on %d\n", time.Now().UnixNano())) // not cached
	if cmd, both = build(); cmd.Run() != nil || !strings.Contains(both.String(), " built ") {
		t.Errorf("with the Engine back:\n%s", both)
	}
	if left := d.CLI("ps", "--all", "--quiet"); left != "" {
		t.Errorf("containers are left: %s", left)
	}
}

func TestParseMemory(t *testing.T) {
	for s, want := range map[string]int64{"0": 0, "64M": 64 << 20, "2G": 2 << 30, "67108864": 64 << 20, "": max(memory("/")/4*3, minMemory)} {
		if got, err := parseMemory(s); err != nil || got != want {
			t.Errorf("parseMemory(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
	for _, s := range []string{"63M", "1", "-1", "00", "G", "2 G", "1e9", "9999999999T", "0M"} {
		if got, err := parseMemory(s); err == nil {
			t.Errorf("parseMemory(%q) = %d; want an error", s, got)
		}
	}
}

func TestMemory(t *testing.T) {
	const info = "MemTotal:        8000000 kB\nMemFree:         1 kB\n"
	for name, c := range map[string]struct {
		files map[string]string
		want  int64
	}{
		"nothing known": {nil, 0},
		"no limit":      {map[string]string{"proc/meminfo": info, "proc/self/cgroup": "0::/a\n", "sys/fs/cgroup/a/memory.max": "max\n"}, 8000000 << 10},
		"version 2": {map[string]string{"proc/meminfo": info, "proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "2000000\n",
			"sys/fs/cgroup/a/memory.max": "max\n"}, 2000000},
		"a group above": {map[string]string{"proc/meminfo": info, "proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "2000000\n",
			"sys/fs/cgroup/a/memory.max": "1000000\n"}, 1000000},
		"version 1": {map[string]string{"proc/meminfo": info, "proc/self/cgroup": "3:cpu:/x\n2:hugetlb,memory:/a\n0::/\n",
			"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "3000000\n", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}, 3000000},
		"a container's": {map[string]string{"proc/meminfo": info, "proc/self/cgroup": "2:memory:/docker/0123\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": "4000000\n"}, 4000000},
		"more than there is": {map[string]string{"proc/meminfo": info, "proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "99000000000\n"}, 8000000 << 10},
	} {
		root := t.TempDir()
		for file, text := range c.files {
			writeFile(t, filepath.Join(root, file), text)
		}
		if got := memory(root); got != c.want {
			t.Errorf("%s: %d bytes; want %d", name, got, c.want)
		}
	}
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

var answerLine = regexp.MustCompile(`^0x[0-9a-f]{8}\texporter_answer\t[^\t]*\tEXPORT_SYMBOL_GPL\t\n$`)

// What a host and dependent modules need is in the artifact: the scripts as the source has them, and the exported symbols.
func TestArtifactExtras(t *testing.T) {
	shared := sharedCache(t)
	kernel := strings.TrimPrefix(newestKernels(t, shared)[0], "K61=")
	var out, errs bytes.Buffer
	if code := Main(t.Context(), []string{"build", "../../testdata/exporter", "--kernels", kernel, "--cache-dir", shared,
		"--out", filepath.Join(t.TempDir(), "out"), "--format", "json"}, &out, &errs); code != 0 {
		t.Fatalf("exit code %d: %s", code, &errs)
	}
	var r struct{ Results []ui.Result }
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	results, err := cache.Open(filepath.Join(shared, "results"), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	key, err := v1.NewHash(r.Results[0].Key)
	if err != nil {
		t.Fatal(err)
	}
	e, err := results.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	m, _, err := artifact.Read(e.Image)
	if err != nil {
		t.Fatal(err)
	}
	script, err := os.ReadFile("../../testdata/exporter/host/post-install")
	if err != nil {
		t.Fatal(err)
	}
	release := strings.TrimPrefix(kernel, "debian/bookworm:")
	want := map[string]string{
		"POST_INSTALL": "host/post-install " + release + " true " + string(script),
		"POST_REMOVE":  "host/not-there false ",
	}
	for _, e := range m.Extras {
		f, err := e.Open()
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(f)
		if err != nil {
			t.Fatal(err)
		}
		if e.Name == artifact.ModuleSymvers {
			if !answerLine.Match(text) {
				t.Errorf("Module.symvers is %q", text)
			}
			continue
		}
		if got := fmt.Sprint(e.Command, " ", e.Executable, " ", string(text)); got != want[e.Name] {
			t.Errorf("%s is %q; want %q", e.Name, got, want[e.Name])
		}
		delete(want, e.Name)
	}
	if len(want) > 0 || len(m.Extras) != 3 {
		t.Errorf("%d extra files; these are not there: %q", len(m.Extras), want)
	}
}
