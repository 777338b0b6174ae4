package registrytest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
)

// Crane is the path of go-containerregistry's program, or ends the test. It does without TLS on the loopback device.
func Crane(t testing.TB) string {
	t.Helper()
	return program(t, "crane")
}

// Oras is the path of the program oras, or ends the test. It wants to be told --plain-http.
func Oras(t testing.TB) string {
	t.Helper()
	return program(t, "oras")
}

func program(t testing.TB, name string) string {
	t.Helper()
	path, err := Program(name)
	if err != nil {
		need.Skip(t, "no program %s: %v", name, err)
	}
	return path
}

// Program is the path of crane, oras or registry, which is distribution v3's. The first call on a machine builds them.
func Program(name string) (string, error) {
	dir, err := built()
	return filepath.Join(dir, name), err
}

var built = sync.OnceValues(buildTools)

// buildTools gives a folder with the programs of the module in the folder tools.
func buildTools() (string, error) {
	gomod, err := exec.Command("go", "env", "GOMOD").Output() // of the package under test
	if err != nil {
		return "", fmt.Errorf("go env: %w", err)
	}
	source := filepath.Join(filepath.Dir(strings.TrimSpace(string(gomod))), "internal/registrytest/tools")
	// As make build and .ci/run compile packages, so that what all have is compiled once.
	args := []string{"-trimpath", "-ldflags=-s -w"}
	for _, big := range []string{
		"google.golang.org/protobuf", "github.com/redis", "github.com/prometheus", "go.opentelemetry.io/otel/exporters",
	} {
		args = append(args, "-gcflags="+big+"/...=-N -l") // not optimised, which takes a quarter off the build
	}
	args = append(args, "./registry", "github.com/google/go-containerregistry/cmd/crane", "oras.land/oras/cmd/oras")
	key, err := hash(source, args)
	if err != nil {
		return "", err
	}
	return keep("tools-"+key, func(dir string) error {
		cmd := exec.Command("go", append([]string{"build", "-C", source, "-o", dir + "/"}, args...)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
		return run(cmd)
	})
}

// hash is of the toolchain, go build's arguments and the files in a folder.
func hash(dir string, args []string) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "%s %s %q\n", runtime.Version(), runtime.GOARCH, args)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, path)
		fmt.Fprintf(h, "%q %x\n", name, sha256.Sum256(b))
		return err
	})
	return fmt.Sprintf("%x", h.Sum(nil))[:16], err
}

// unpack gets a Debian package through apt, which verifies it. Where apt has no lists, or only old ones, it makes others here,
// which needs no root. The package isn't installed: that would start a registry for everybody on port 5000.
const unpack = `
set -e
apt-get -q download "$1" || {
	mkdir -p lists/partial cache/archives/partial
	here="-q -o Dir::State::lists=./lists -o Dir::Cache=./cache"
	apt-get $here update || : # of some sources alone will do
	apt-get $here download "$1"
	rm -rf lists cache
}
dpkg-deb -x "$1"_*.deb .
rm "$1"_*.deb
`

var unpacked = sync.OnceValues(func() (string, error) {
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", err
	}
	return keep(fmt.Sprintf("docker-registry-%x", sha256.Sum256(release))[:32], func(dir string) error {
		cmd := exec.Command("sh", "-c", unpack, "sh", "docker-registry")
		cmd.Dir = dir
		return run(cmd)
	})
})

// debian is the path of the program of Debian's package docker-registry.
func debian() (string, error) {
	dir, err := unpacked()
	return filepath.Join(dir, "usr/bin/docker-registry"), err
}

// keep gives a folder of that name in this user's cache, which fill fills if it isn't there yet. Several processes may call it
// at once.
func keep(name string, fill func(dir string) error) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	base := filepath.Join(cache, "godkms-hermetic-test", "registry-tools")
	dir := filepath.Join(base, name)
	lock, err := durable.Lock(context.Background(), dir+".lock", false)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	tmp, err := durable.NewTemp(filepath.Join(base, "tmp"))
	if err != nil {
		return "", err
	}
	defer tmp.Close()
	whole := filepath.Join(tmp.Dir, name)
	if err := os.Mkdir(whole, 0o755); err != nil {
		return "", err
	}
	if err := fill(whole); err != nil {
		return "", err
	}
	return dir, durable.Rename(whole, dir)
}

// run runs a command and has its output in the error.
func run(cmd *exec.Cmd) error {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	p, err := start(cmd)
	if err != nil {
		return err
	}
	<-p.done
	if p.err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), p.err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}
