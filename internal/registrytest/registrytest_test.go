package registrytest

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/random"
)

// With REGISTRYTEST_CHILD set the test binary serves instead of testing, and waits.
func TestMain(m *testing.M) {
	if os.Getenv("REGISTRYTEST_CHILD") == "" {
		os.Exit(m.Run())
	}
	s, err := Serve(Options{})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(s.Host)
	select {}
}

// client runs a program that is used with registries, and gives its standard output.
func client(t *testing.T, config, program string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+config)
	out, err := cmd.Output()
	if exit, ok := err.(*exec.ExitError); ok {
		err = fmt.Errorf("%s %q: %w: %s", filepath.Base(program), args, err, exit.Stderr)
	}
	return strings.TrimSpace(string(out)), err
}

func must(t *testing.T, config, program string, args ...string) string {
	t.Helper()
	out, err := client(t, config, program, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// image writes an OCI layout with one image and gives the folder, the image's digest and its layer's.
func image(t *testing.T) (dir, digest, layer string) {
	t.Helper()
	img, err := random.Image(1000, 1)
	if err != nil {
		t.Fatal(err)
	}
	dir = t.TempDir()
	path, err := layout.Write(dir, empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.AppendImage(img, layout.WithAnnotations(map[string]string{"org.opencontainers.image.ref.name": "1"})); err != nil {
		t.Fatal(err)
	}
	d, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	l, err := layers[0].Digest()
	if err != nil {
		t.Fatal(err)
	}
	return dir, d.String(), l.String()
}

// has says whether an OCI layout has a blob.
func has(dir, digest string) bool {
	_, err := os.Stat(filepath.Join(dir, "blobs", strings.Replace(digest, ":", "/", 1)))
	return err == nil
}

func TestRegistries(t *testing.T) {
	for name, o := range map[string]Options{
		"v3": {}, "v3 with a password": {Auth: true}, "Debian's": {Debian: true}, "Debian's with a password": {Debian: true, Auth: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, crane, oras := Start(t, o), Crane(t), Oras(t)
			config := DockerConfig(t, r)
			dir, digest, layer := image(t)
			out := t.TempDir()

			must(t, config, crane, "push", dir, r.Host+"/by/crane:1")
			must(t, config, oras, "copy", "--from-plain-http", r.Host+"/by/crane:1", "--to-oci-layout", out+"/oras:1")
			must(t, config, oras, "copy", "--from-oci-layout", dir+":1", "--to-plain-http", r.Host+"/by/oras:1")
			must(t, config, crane, "pull", "--format=oci", r.Host+"/by/oras:1", out+"/crane")
			for _, by := range []string{"oras", "crane"} {
				if !has(filepath.Join(out, by), digest) || !has(filepath.Join(out, by), layer) {
					t.Errorf("%s pulls something else than was pushed", by)
				}
			}

			all := r.Requests()
			for _, want := range []Request{
				{"HEAD", "/v2/by/crane/blobs/" + layer, 404},
				{"PUT", "/v2/by/crane/manifests/1", 201},
				{"GET", "/v2/by/oras/blobs/" + layer, 200},
			} {
				if !slices.Contains(all, want) {
					t.Errorf("no %s among %v", want, all)
				}
			}
			if again := r.Requests(); !slices.Equal(again, all) {
				t.Errorf("then: %v, after nothing but %v", again, all)
			}

			r.Kill()
			r.Kill()
			if out, err := client(t, config, crane, "digest", r.Host+"/by/oras:1"); err == nil {
				t.Errorf("a dead registry answers %q", out)
			}
			r.Restart()
			if got := must(t, config, crane, "digest", r.Host+"/by/oras:1"); got != digest {
				t.Errorf("after a crash: %s, want %s", got, digest)
			}
			must(t, config, crane, "delete", r.Host+"/by/oras@"+digest)

			if !o.Auth {
				return
			}
			wrong := *r.Server
			wrong.Password += "x"
			for _, config := range []string{t.TempDir(), DockerConfig(t, &Registry{&wrong, t})} {
				for _, args := range [][]string{{"digest", r.Host + "/by/crane:1"}, {"push", dir, r.Host + "/by/nobody:1"}} {
					out, err := client(t, config, crane, args...)
					if err == nil || !strings.Contains(strings.ToLower(err.Error()), "unauthorized") {
						t.Errorf("crane %q without the password: %q, %v", args, out, err)
					}
				}
			}
		})
	}
}

// What one registry has another one can serve.
func TestDir(t *testing.T) {
	r := Start(t, Options{})
	dir, digest, layer := image(t)
	must(t, "", Crane(t), "push", dir, r.Host+"/a:1")
	blob := filepath.Join(r.Dir, "docker/registry/v2/blobs/sha256", layer[7:9], layer[7:], "data")
	if _, err := os.Stat(blob); err != nil {
		t.Error(err)
	}
	other := Start(t, Options{Dir: r.Dir, Debian: true})
	if got := must(t, "", Crane(t), "digest", other.Host+"/a:1"); got != digest {
		t.Errorf("the other says %s, want %s", got, digest)
	}
}

// A process that is killed takes its registries with it.
func TestEndsWithItsProcess(t *testing.T) {
	Crane(t) // or skip
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), "REGISTRYTEST_CHILD=1", "TMPDIR="+t.TempDir()) // which it can't remove
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	line, err := bufio.NewReader(out).ReadString('\n')
	host := strings.TrimSpace(line)
	if err == nil {
		var c net.Conn
		if c, err = net.Dial("tcp", host); err == nil {
			c.Close()
		}
	}
	if err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", host)
		if err != nil {
			return
		}
		c.Close()
		if time.Now().After(deadline) {
			t.Fatalf("%s still answers", host)
		}
	}
}

func TestKeep(t *testing.T) {
	t.Setenv("XDG_CACHE_HOME", t.TempDir())
	fail := errors.New("no")
	fill := func(err error) func(string) error {
		return func(dir string) error {
			return errors.Join(os.WriteFile(filepath.Join(dir, "program"), nil, 0o755), err)
		}
	}
	if dir, err := keep("it", fill(fail)); !errors.Is(err, fail) {
		t.Errorf("a failure gives %q, %v", dir, err)
	}
	dir, err := keep("it", fill(nil)) // nothing of the failure is kept
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "program")); err != nil {
		t.Error(err)
	}
	if again, err := keep("it", fill(fail)); again != dir || err != nil {
		t.Errorf("then: %q, %v; want %q", again, err, dir)
	}
}
