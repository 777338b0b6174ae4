package images

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// dpkgDeb is a payload reader that asks dpkg-deb.
func dpkgDeb(_ string, pkg io.Reader) (io.ReadCloser, error) {
	cmd := exec.Command("dpkg-deb", "--fsys-tarfile", "/dev/stdin")
	cmd.Stdin = pkg
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return waiter{out, cmd}, cmd.Start()
}

type waiter struct {
	io.Reader
	cmd *exec.Cmd
}

func (w waiter) Close() error { return w.cmd.Wait() }

var uriLine = regexp.MustCompile(`^'([^']*)' (\S+) (\d+) SHA256:([0-9a-f]{64})`)

// aptLocks makes locks for the newest 6.1 kernels of this machine's suite by asking its apt, as if nothing was installed.
func aptLocks(t testing.TB, n int) []kernels.Lock {
	t.Helper()
	if _, err := exec.LookPath("apt-get"); err != nil {
		t.Skip("no apt-get here")
	}
	out, err := exec.Command("apt-cache", "search", "--names-only", `^linux-headers-6\.1\.0-[0-9]+-amd64$`).Output()
	if err != nil || len(out) == 0 {
		t.Skipf("apt knows no 6.1 kernel: %v", err)
	}
	var releases []string
	for _, line := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		name, _, _ := strings.Cut(line, " ")
		releases = append(releases, strings.TrimPrefix(name, "linux-headers-"))
	}
	slices.Sort(releases)
	slices.Reverse(releases)
	var locks []kernels.Lock
	for _, r := range releases[:min(n, len(releases))] {
		locks = append(locks, aptLock(t, r))
	}
	return locks
}

func aptLock(t testing.TB, release string) kernels.Lock {
	t.Helper()
	status := filepath.Join(t.TempDir(), "status")
	if err := os.WriteFile(status, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"-o", "Dir::State::status=" + status, "-o", "Debug::NoLocking=1", "-o", "Acquire::ForceHash=SHA256", "-y",
		"--no-install-recommends", "--print-uris", "install", "linux-headers-" + release}
	args = append(args, strings.Fields("gcc-12 libc6-dev make bash dash coreutils sed grep mawk findutils diffutils tar gzip bzip2 "+
		"xz-utils kmod patch perl-base cpio bc file debianutils base-files hostname libelf-dev")...)
	cmd := exec.Command("apt-get", args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("apt-get: %v: %s", err, stderr.String())
	}
	lock := kernels.Lock{Kernel: kernels.Kernel{Distro: "debian", Suite: "bookworm", Arch: "amd64", Release: release}, Compiler: "gcc-12"}
	for _, line := range strings.Split(string(out), "\n") {
		m := uriLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		part := strings.Split(strings.TrimSuffix(m[2], ".deb"), "_")
		size, _ := strconv.ParseInt(m[3], 10, 64)
		p := kernels.Package{Name: part[0], Version: strings.ReplaceAll(part[1], "%3a", ":"), Arch: part[2], URL: m[1], Size: size,
			Digest: v1.Hash{Algorithm: "sha256", Hex: m[4]}}
		if strings.HasPrefix(p.Name, "linux-headers-") || strings.HasPrefix(p.Name, "linux-kbuild") || strings.HasPrefix(p.Name, "linux-compiler") {
			lock.Headers = append(lock.Headers, p)
		} else {
			lock.Toolchain = append(lock.Toolchain, p)
		}
	}
	if len(lock.Headers) == 0 {
		t.Skipf("apt-get prints no package with its SHA256: %s", out)
	}
	byName := func(a, b kernels.Package) int { return strings.Compare(a.Name, b.Name) }
	slices.SortFunc(lock.Headers, byName)
	slices.SortFunc(lock.Toolchain, byName)
	return lock
}

// TestRealPackages assembles the roots of two real kernels, timed.
func TestRealPackages(t *testing.T) {
	if testing.Short() {
		t.Skip("downloads 90 MB")
	}
	locks := aptLocks(t, 2)
	dir := os.Getenv("IMAGES_TEST_CACHE") // keeps the packages between runs
	if dir == "" {
		dir = t.TempDir()
	}
	s, err := Open(Options{Dir: dir, Payload: dpkgDeb})
	if err != nil {
		t.Fatal(err)
	}
	for _, lock := range locks {
		for range 2 {
			start := time.Now()
			r, err := s.Root(context.Background(), lock, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s: %d + %d packages, root in %v", lock.Kernel, len(lock.Toolchain), len(lock.Headers), time.Since(start))
			if err := r.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}
