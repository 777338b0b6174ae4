package enginetest

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
)

// tools are the programs of this machine that a test root gets.
var tools = []string{
	"sh", "bash", "cat", "chmod", "cp", "date", "env", "grep", "head", "hostname", "id", "ln", "ls", "mkdir", "mkfifo", "nproc", "od", "pwd", "readlink", "rm",
	"setsid", "sha256sum", "sleep", "stat", "tail", "touch", "true", "truncate", "uname", "wc",
}

const probePath = "usr/bin/enginetest-probe"

// NewRoot makes a root for tests out of this machine's own shell and coreutils, without any network. It has four layers:
// libraries, programs, the links of a merged /usr, and the probe. The folders are removed when the test ends. More programs can
// be named.
func NewRoot(t testing.TB, more ...string) builder.Root {
	t.Helper()
	base, err := os.MkdirTemp("", "enginetest-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	var layers []string
	for _, name := range []string{"0 libraries", "1:programs", `2,lin\ks`, "3 probe"} { // names that overlayfs would have to escape
		layers = append(layers, filepath.Join(base, name))
		if err := os.Mkdir(layers[len(layers)-1], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(base, 0o755); err != nil { // for tests under another uid
		t.Fatal(err)
	}
	libs, bins, links, probe := layers[0], layers[1], layers[2], layers[3]
	for _, name := range []string{"bin", "lib", "lib64", "sbin"} {
		if to, err := os.Readlink("/" + name); err == nil {
			if err := os.Symlink(to, filepath.Join(links, name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, tool := range slices.Concat(tools, more) {
		path, err := exec.LookPath(tool)
		if err != nil {
			t.Fatal(err)
		}
		add(t, bins, path, "/usr/bin")
		out, err := exec.Command("ldd", path).Output()
		if err != nil {
			continue // not dynamic
		}
		for line := range strings.Lines(string(out)) {
			if at := strings.Index(line, "/"); at >= 0 {
				lib := strings.Fields(line[at:])[0]
				dir, err := filepath.EvalSymlinks(filepath.Dir(lib))
				if err != nil {
					t.Fatal(err)
				}
				add(t, libs, lib, dir)
			}
		}
	}
	if err := buildProbe(probe); err != nil {
		t.Fatal(err)
	}
	return folders(layers)
}

func buildProbe(layer string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-o", filepath.Join(layer, probePath), "github.com/godkms-hermetic/godkms-hermetic/builder/enginetest/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the probe: %w\n%s", err, out)
	}
	return nil
}

// add copies a program or library into a folder of a layer, once.
func add(t testing.TB, layer, from, dir string) {
	to := filepath.Join(layer, dir, filepath.Base(from))
	if _, err := os.Lstat(to); err == nil {
		return
	}
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o755); err != nil {
		t.Fatal(err)
	}
}

// Folders makes a root of layers that are there already, lowest first.
func Folders(layers ...string) builder.Root { return folders(layers) }

type folders []string

func (f folders) Layers() []string { return slices.Clone(f) }
func (f folders) Close() error     { return nil }

// Digest is that of their names: nothing here depends on more.
func (f folders) Digest() v1.Hash {
	sum := sha256.Sum256([]byte(strings.Join(f, "\n")))
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

func (f folders) Image(ctx context.Context) (v1.Image, error) {
	img := empty.Image
	for _, dir := range f {
		layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
			r, w := io.Pipe()
			go func() { w.CloseWithError(writeTar(w, dir)) }()
			return r, nil
		})
		if err != nil {
			return nil, err
		}
		if img, err = mutate.AppendLayers(img, layer); err != nil {
			return nil, err
		}
	}
	return img, nil
}

func writeTar(w io.Writer, dir string) error {
	tw := tar.NewWriter(w)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		link := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			if link, err = os.Readlink(path); err != nil {
				return err
			}
		}
		h, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return err
		}
		if h.Name, err = filepath.Rel(dir, path); err != nil {
			return err
		}
		h.Uid, h.Gid, h.Uname, h.Gname = 0, 0, "", ""
		if err := tw.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(tw, f)
		return err
	})
	if err != nil {
		return err
	}
	return tw.Close()
}
