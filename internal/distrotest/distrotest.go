// Package distrotest makes the package repositories of distributions, for tests that build through them.
//
// What is packed is real: the kernel headers of Debian's bookworm and as much of its toolchain as builds a module, found through the signed
// index. It is packed under any distribution's names, layout, compression and kinds of dependencies, by the real tools: dpkg-deb,
// apt-ftparchive, rpmbuild, createrepo_c, repo-add, gpg. All that is made stays in the cache of tests, by what it was made from, for any
// number of processes: it is not to be written to.
package distrotest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/internal/dkmstest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
)

// recipe counts the ways in which this package makes things from the same inputs.
const recipe = 4

// maxAge is how long what no test has asked for is kept.
const maxAge = 14 * 24 * time.Hour

// Files are what a package installs, by path below the root. Folders follow from them.
type Files map[string]File

// File is a file or a symbolic link.
type File struct {
	From string `json:"-"`    // where on this machine its content is; empty: Text is it
	Sum  string `json:"sum"`  // sha256 of what From has
	Text string `json:"text"` // its content, without From
	Link string `json:"link"` // target of a symbolic link
	Exec bool   `json:"exec"`
}

// Text is a file of that content.
func Text(s string) File { return File{Text: s} }

// Link is a symbolic link.
func Link(to string) File { return File{Link: to} }

// Below gives the files in another folder.
func (f Files) Below(dir string) Files {
	return f.Rename(func(name string) string { return path.Join(dir, name) })
}

// Rename gives the files under other names; those whose new name is empty are left out.
func (f Files) Rename(to func(name string) string) Files {
	out := Files{}
	for name, file := range f {
		if name = to(name); name != "" {
			out[name] = file
		}
	}
	return out
}

// With gives the files with more, which replace those of the same name.
func (f Files) With(more ...Files) Files {
	out := maps.Clone(f)
	for _, m := range more {
		maps.Copy(out, m)
	}
	return out
}

// few files are copied. Of more, links are made, which change the originals' ctime: tar fails if it's just then reading one for another
// package.
const few = 100

// write puts the files into a folder.
func (f Files) write(dir string) error {
	for _, name := range slices.Sorted(maps.Keys(f)) {
		file, at := f[name], filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			return err
		}
		var err error
		switch mode := file.mode(); {
		case file.Link != "":
			err = os.Symlink(file.Link, at)
		case file.From == "":
			err = errors.Join(os.WriteFile(at, []byte(file.Text), mode), os.Chtimes(at, epoch, epoch))
		case len(f) < few:
			var b []byte
			if b, err = os.ReadFile(file.From); err == nil {
				err = errors.Join(os.WriteFile(at, b, mode), os.Chtimes(at, epoch, epoch))
			}
		default:
			err = os.Link(file.From, at) // of the same mode and time
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (f File) mode() os.FileMode {
	if f.Exec {
		return 0o755
	}
	return 0o644
}

// epoch is the time of all files.
var epoch = time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC)

// A Package is written by Deb, RPM and Arch. All but Files is in the words of its distribution.
type Package struct {
	Name    string
	Version string // with epoch and release: "1:12.2.0-14", "12.2.0-4.el9"
	Arch    string // "amd64", "x86_64", "noarch", "all", "any"
	// Of a dependency: "libc6 (>= 2.36)", "libc.so.6()(64bit)", "(gcc or clang)", "glibc>=2.36".
	Depends, Provides, Conflicts []string
	// More lines of the control file, the spec's preamble or .PKGINFO: "Essential: yes", "base = linux".
	Fields      []string
	Compression string // of what it installs: "zstd" (default), "xz" or "gzip"; of the lowest level
	Files       Files
}

func (p Package) compression() string { return cmp.Or(p.Compression, "zstd") }

// File name as the distribution composes it, less the ending.
func (p Package) base(join string) string {
	version := p.Version
	if join == "_" { // APT's have no epoch
		_, after, ok := strings.Cut(version, ":")
		if ok {
			version = after
		}
		return p.Name + "_" + version + "_" + p.Arch
	}
	if _, after, ok := strings.Cut(version, ":"); ok && join == "." {
		version = after
	}
	return p.Name + "-" + version + join + p.Arch
}

// sorted gives packages in an order that doesn't depend on the caller's: what is kept is found by all of them.
func sorted(list []Package) []Package {
	return slices.SortedFunc(slices.Values(list), func(a, b Package) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version), cmp.Compare(a.Arch, b.Arch))
	})
}

// kept gives the folder that fill has made from inputs, in this process or another. It is not to be written to.
func kept(t testing.TB, kind string, inputs any, fill func(dir string) error) string {
	t.Helper()
	dir, err := keep(t.Context(), kind, inputs, fill)
	if err != nil {
		t.Fatalf("%s: %v", kind, err)
	}
	return dir
}

func keep(ctx context.Context, kind string, inputs any, fill func(dir string) error) (string, error) {
	text, err := json.Marshal([]any{recipe, inputs})
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(text)
	base := filepath.Join(dkmstest.Cache(), "distro")
	dir := filepath.Join(base, kind, hex.EncodeToString(sum[:12]))
	there := func() bool {
		st, err := os.Stat(dir)
		if err == nil && time.Since(st.ModTime()) > time.Hour {
			os.Chtimes(dir, time.Time{}, time.Now())
		}
		return err == nil
	}
	if there() {
		return dir, nil
	}
	lock, err := durable.Lock(ctx, filepath.Join(base, kind, ".lock"), false)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if there() {
		return dir, nil
	}
	temp, err := durable.NewTemp(filepath.Join(base, "tmp"))
	if err != nil {
		return "", err
	}
	defer temp.Close()
	made := filepath.Join(temp.Dir, "made")
	if err := os.Mkdir(made, 0o755); err != nil {
		return "", err
	}
	if err := fill(made); err != nil {
		return "", err
	}
	prune(filepath.Join(base, kind))
	return dir, durable.Rename(made, dir)
}

func prune(dir string) {
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if i, err := e.Info(); err == nil && e.IsDir() && time.Since(i.ModTime()) > maxAge {
			os.RemoveAll(filepath.Join(dir, e.Name()))
		}
	}
}

// run runs a program in a folder, and gives what it prints to standard output.
func run(dir, stdin, program string, args ...string) ([]byte, error) {
	cmd := exec.Command(program, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", fmt.Sprintf("SOURCE_DATE_EPOCH=%d", epoch.Unix()))
	cmd.Stdin = strings.NewReader(stdin)
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w\n%s%s", program, strings.Join(args, " "), err, errs.String(), out)
	}
	return out, nil
}

// programs makes sure that this machine has them.
func programs(t testing.TB, names ...string) {
	t.Helper()
	for _, n := range names {
		need.Program(t, n)
	}
}

// Copy gives a copy of a repository for a test to write to. Files that are replaced, not written to, stay what they are in the cache: remove
// them first.
func Copy(t testing.TB, dir string) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "repo")
	if _, err := run("", "", "cp", "-alT", dir, to); err != nil { // TMPDIR may be another file system
		if _, err := run("", "", "cp", "-aT", dir, to); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// Serve serves a folder on the loopback interface until the test ends, and gives its URL, without a slash at its end.
func Serve(t testing.TB, dir string) string {
	t.Helper()
	srv := httptest.NewServer(http.FileServer(http.Dir(dir)))
	t.Cleanup(srv.Close)
	return srv.URL
}
