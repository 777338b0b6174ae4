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
	return tool(t, "crane")
}

// Oras is the path of the program oras, or ends the test. It wants to be told --plain-http.
func Oras(t testing.TB) string {
	t.Helper()
	return tool(t, "oras")
}

var built = sync.OnceValues(buildTools)

func tool(t testing.TB, name string) string {
	t.Helper()
	dir, err := built()
	if err != nil {
		need.Skip(t, "no program %s: %v", name, err)
	}
	return filepath.Join(dir, name)
}

// buildTools gives a folder with the programs of the module in the folder tools.
func buildTools() (string, error) {
	gomod, err := exec.Command("go", "env", "GOMOD").Output() // of the package under test
	if err != nil {
		return "", fmt.Errorf("go env: %w", err)
	}
	source := filepath.Join(filepath.Dir(strings.TrimSpace(string(gomod))), "internal/registrytest/tools")
	key, err := hash(source)
	if err != nil {
		return "", err
	}
	return keep("tools-"+key, func(dir string) error {
		// As go test builds packages, so that what both have is compiled once.
		cmd := exec.Command("go", "build", "-C", source, "-ldflags", "-s -w", "-o", dir+"/",
			"./registry", "github.com/google/go-containerregistry/cmd/crane", "oras.land/oras/cmd/oras")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off", "GOFLAGS=")
		return run(cmd)
	})
}

// hash is of the toolchain and of the files in a folder.
func hash(dir string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version(), runtime.GOARCH)
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

// unpack gets a Debian package through apt, which verifies it. Where apt has no lists, or only old ones, it makes others here:
// that needs no root, as it wouldn't do to install the package, which starts a registry for everybody on port 5000.
const unpack = `
set -e
apt-get -q download "$1" || {
	apt-get -q -o Dir::State::lists="$PWD/lists" -o Dir::Cache="$PWD/cache" update || :
	apt-get -q -o Dir::State::lists="$PWD/lists" -o Dir::Cache="$PWD/cache" download "$1"
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

// debian is the path of the program of Debian's package docker-registry, or ends the test.
func debian(t testing.TB) string {
	t.Helper()
	dir, err := unpacked()
	if err != nil {
		need.Skip(t, "no docker-registry of Debian's: %v", err)
	}
	return filepath.Join(dir, "usr/bin/docker-registry")
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
