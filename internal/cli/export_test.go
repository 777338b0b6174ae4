package cli

import (
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/creack/pty"

	"github.com/godkms-hermetic/godkms-hermetic/internal/dockertest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
)

// exported is a header image of a release with a plus, in a file.
func exported(t *testing.T) (file, tag string) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "image.tar")
	var out struct {
		Images []struct{ Kernel, Tag string }
	}
	shared := sharedCache(t)
	b := program(t, shared, "image", "export", newest(t, shared, "6.12.").String(), file, "--format", "json", "--quiet")
	if err := json.Unmarshal(b, &out); err != nil || len(out.Images) != 1 {
		t.Fatalf("image export printed %s (%v)", b, err)
	}
	if i := out.Images[0]; !strings.Contains(i.Kernel, "+") || strings.Contains(i.Tag, "+") {
		t.Errorf("the tag of %q is %q; want one without the plus", i.Kernel, i.Tag)
	}
	return file, out.Images[0].Tag
}

func TestExportIsForSkopeo(t *testing.T) {
	skopeo := need.Program(t, "skopeo")
	file, tag := exported(t)
	run := func(args ...string) []byte {
		cmd := exec.Command(skopeo, args...)
		var errs strings.Builder
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("skopeo %s: %v\n%s", strings.Join(args, " "), err, errs.String())
		}
		return out
	}
	var image struct {
		Architecture string
		Labels       map[string]string
		Layers       []string
	}
	if err := json.Unmarshal(run("inspect", "docker-archive:"+file+":"+tag), &image); err != nil {
		t.Fatal(err)
	}
	if image.Labels["dev.godkms-hermetic.suite"] != "bookworm" || image.Architecture == "" || len(image.Layers) != 3 {
		t.Errorf("skopeo inspect says %+v; want bookworm, an architecture and three layers", image)
	}
	to := filepath.Join(t.TempDir(), "oci")
	run("--insecure-policy", "copy", "docker-archive:"+file, "oci:"+to+":x")
	if _, err := os.Stat(filepath.Join(to, "index.json")); err != nil {
		t.Errorf("skopeo copied nothing: %v", err)
	}
}

func TestExportToATerminal(t *testing.T) {
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	shown := make(chan int)
	go func() {
		b, _ := io.ReadAll(master) // it ends with EIO
		shown <- len(b)
	}()
	var errs strings.Builder
	code := Main(t.Context(), []string{"image", "export", "debian/trixie:latest", "-", "--cache-dir", sharedCache(t)}, slave, &errs)
	slave.Close()
	if code != exitUsage || !strings.Contains(errs.String(), "not for a terminal") {
		t.Errorf("exit code %d, %q; want %d and a refusal", code, errs.String(), exitUsage)
	}
	if n := <-shown; n > 0 {
		t.Errorf("%d bytes were written to the terminal", n)
	}
}

// Docker runs what was exported: the compiler of the kernel's root.
func testExportIsForDocker(t *testing.T, d *dockertest.Daemon) {
	docker := need.Program(t, "docker")
	file, tag := exported(t)
	run := func(args ...string) string {
		cmd := exec.Command(docker, args...)
		cmd.Env = append(os.Environ(), "DOCKER_HOST="+d.Host)
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return string(out)
	}
	if got := run("load", "--input", file); !strings.Contains(got, tag) {
		t.Errorf("docker load says %q; want %q in it", got, tag)
	}
	compiler := strings.TrimSpace(run("image", "inspect", "--format", `{{index .Config.Labels "dev.godkms-hermetic.compiler"}}`, tag))
	if got := run("run", "--rm", "--network", "none", tag, compiler, "--version"); !strings.HasPrefix(got, compiler+" ") {
		t.Errorf("%s --version in the image says %q", compiler, got)
	}
}
