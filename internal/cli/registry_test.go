package cli

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/dockertest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registrytest"
)

// newCache is a cache folder without results, whose indexes and header images are the shared cache's.
func newCache(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, part := range []string{"index", "images"} {
		if err := os.Symlink(filepath.Join(sharedCache(t), part), filepath.Join(dir, part)); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// results is what the program prints as JSON.
type results struct {
	Results []struct {
		Kernel, Release, Status, Digest, Reference, Reason string
		Modules                                            []struct{ Name, Path, SHA256 string }
	}
}

func parse[T any](t *testing.T, b []byte) (v T) {
	t.Helper()
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	return v
}

func command(t *testing.T, name string, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(name, args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", filepath.Base(name), args, err, &errs)
	}
	return out
}

// What one registry was given, another one, and every usual client, has as it was: the modules' bytes, wherever they come from.
func TestRegistries(t *testing.T) {
	newestKernels(t, sharedCache(t))
	locked := registrytest.Start(t, registrytest.Options{Auth: true})
	open := registrytest.Start(t, registrytest.Options{Debian: true})
	t.Setenv("DOCKER_CONFIG", registrytest.DockerConfig(t, locked))
	cache, out := newCache(t), t.TempDir()
	repo := locked.Host + "/modules/hello"
	made := parse[results](t, program(t, cache, "build", "../../testdata/hello", "--kernels", "debian/bookworm:latest,debian/trixie:latest",
		"--out", out, "--cache-to", locked.Host+"/cache", "--push", locked.Host+"/modules/{module}", "--format", "json", "--quiet"))
	mounted := 0
	for _, r := range locked.Requests() {
		if r.Method == "POST" && strings.Contains(r.Path, "/v2/modules/hello/blobs/uploads/?") && strings.Contains(r.Path, "mount=") && r.Status == http.StatusCreated {
			mounted++
		}
	}
	if mounted < 2 { // the layers, which went to the cache before
		t.Errorf("%d blobs were mounted from the shared cache; want those of both kernels: %v", mounted, locked.Requests())
	}
	if len(made.Results) != 2 || !strings.HasPrefix(made.Results[0].Reference, repo+":1.0-debian-bookworm-") {
		t.Fatalf("build --push says %+v", made)
	}
	want := map[string][]byte{}
	for _, r := range made.Results {
		b, err := os.ReadFile(r.Modules[0].Path)
		if err != nil {
			t.Fatal(err)
		}
		want[r.Release] = b
	}
	again := parse[results](t, program(t, cache, "push", open.Host+"/modules/hello", "../../testdata/hello", "--format", "json", "--quiet"))
	if len(again.Results) != 2 || again.Results[0].Status != "pushed" || again.Results[0].Digest != made.Results[0].Digest {
		t.Errorf("push says %+v; want what was built, %+v", again, made)
	}

	for _, from := range []string{repo, open.Host + "/modules/hello:1.0"} {
		list := parse[struct {
			Modules []struct{ Kernel, Digest, Tag, Created string }
		}](t, program(t, cache, "list", from, "--format", "json"))
		if len(list.Modules) != 2 || list.Modules[0].Digest != made.Results[0].Digest || list.Modules[0].Created == "" {
			t.Errorf("list %s says %+v", from, list)
		}
		var names []string
		for _, r := range made.Results {
			names = append(names, r.Kernel)
		}
		got := parse[results](t, program(t, t.TempDir(), "pull", from, "--kernel", strings.Join(names, ","), "--out", t.TempDir(), "--format", "json", "--quiet"))
		if len(got.Results) != 2 {
			t.Fatalf("pull %s says %+v", from, got)
		}
		for i, r := range got.Results {
			if b, err := os.ReadFile(r.Modules[0].Path); err != nil || !bytes.Equal(b, want[r.Release]) || r.Digest != made.Results[i].Digest {
				t.Errorf("pull %s: %+v has %d bytes, %v", from, r, len(b), err)
			}
		}
		about := parse[inspected](t, program(t, cache, "inspect", from, "--kernel", names[0], "--format", "json"))
		if about.Attachments.Lock == nil || about.Attachments.Lock.Digest().String() != about.Lock || about.Attachments.Log == 0 || about.Root == "" || len(about.Modules) != 1 {
			t.Errorf("inspect %s says %+v", from, about)
		}
		if log := program(t, cache, "inspect", from, "--kernel", names[0], "--log"); !bytes.Contains(log, []byte("# make")) {
			t.Errorf("inspect --log says %s", log)
		}
	}

	release, ref := made.Results[0].Release, strings.Replace(made.Results[0].Reference, locked.Host, open.Host, 1)
	path := "lib/modules/" + release + "/updates/dkms/hello.ko"
	t.Run("crane", func(t *testing.T) {
		b := command(t, registrytest.Crane(t), "export", made.Results[0].Reference, "-") // with the password
		if got := fileOfTar(t, b, "usr/"+path); !bytes.Equal(got, want[release]) {
			t.Errorf("%s has %d bytes", path, len(got))
		}
		command(t, registrytest.Crane(t), "validate", "--fast", "--remote", ref) // the layer is not compressed, which the whole of it takes for a fault
	})
	t.Run("oras", func(t *testing.T) {
		dir := t.TempDir()
		oras := registrytest.Oras(t)
		command(t, oras, "pull", "--plain-http", ref, "--output", dir)
		b, err := os.ReadFile(filepath.Join(dir, "hello-1.0-"+release+".tar"))
		if err != nil {
			t.Fatal(err)
		}
		if got := fileOfTar(t, b, "opt/lib/modules/"+release+"/hello.ko"); !bytes.Equal(got, want[release]) {
			t.Errorf("the module has %d bytes", len(got))
		}
		var found struct {
			Referrers []struct{ ArtifactType string }
		}
		text := command(t, oras, "discover", "--plain-http", "--format", "json", ref)
		if err := json.Unmarshal(text, &found); err != nil || len(found.Referrers) != 2 {
			t.Errorf("oras discover says %s (%v); want the log and the lock", text, err)
		}
		// A layout that oras made is a repository, too.
		layout := filepath.Join(dir, "layout")
		command(t, oras, "copy", "--from-plain-http", "--to-oci-layout", "--recursive", open.Host+"/modules/hello:1.0", layout+":1.0")
		got := parse[results](t, program(t, t.TempDir(), "pull", "oci:"+layout, "--kernel", release, "--out", t.TempDir(), "--format", "json", "--quiet"))
		if len(got.Results) != 1 || got.Results[0].Digest != made.Results[0].Digest {
			t.Errorf("pull from the layout says %+v", got)
		}
	})
	t.Run("docker", func(t *testing.T) {
		d := dockertest.Start(t, dockertest.Options{})
		d.CLI("pull", ref)
		d.CLI("create", "--name", "pulled", ref, "none")
		dir := t.TempDir()
		d.CLI("cp", "pulled:/usr/"+path, filepath.Join(dir, "copied.ko"))
		if got, err := os.ReadFile(filepath.Join(dir, "copied.ko")); err != nil || !bytes.Equal(got, want[release]) {
			t.Errorf("docker cp gives %d bytes (%v)", len(got), err)
		}
		if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), fmt.Appendf(nil, "FROM scratch\nCOPY --from=%s /usr/lib/modules /usr/lib/modules\n", ref), 0o644); err != nil {
			t.Fatal(err)
		}
		d.CLI("build", "--tag", "with-module", dir)
		d.CLI("create", "--name", "built", "with-module", "none")
		d.CLI("cp", "built:/usr/"+path, filepath.Join(dir, "built.ko"))
		if got, err := os.ReadFile(filepath.Join(dir, "built.ko")); err != nil || !bytes.Equal(got, want[release]) {
			t.Errorf("COPY --from gives %d bytes (%v)", len(got), err)
		}
	})
}

// fileOfTar is a file's content, also where it's a hard link to one before.
func fileOfTar(t *testing.T, b []byte, name string) []byte {
	t.Helper()
	files := map[string][]byte{}
	for tr := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return files[name]
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeLink {
			files[h.Name] = files[h.Linkname]
		}
	}
}
