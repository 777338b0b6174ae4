// Package distpkg writes the packages of distributions: .deb and .rpm. The same package gives the same bytes.
package distpkg

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/goreleaser/nfpm/v2"
	"github.com/goreleaser/nfpm/v2/deb"
	"github.com/goreleaser/nfpm/v2/files"
	"github.com/goreleaser/nfpm/v2/rpm"
)

// Format is a kind of package.
type Format string

const (
	Deb Format = "deb"
	RPM Format = "rpm"
)

// Epoch is the default time of a package and of all that is in it. Debian's checker takes files older than 1984 for damaged.
var Epoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// Package is what a package is made of. All but Files, Scripts, Triggers and the relations must be there.
type Package struct {
	Name       string
	Version    string // valid in the format; see Version
	Arch       string // as Debian names it; "all" is every one
	Maintainer string // "Name <address>"
	License    string // shown by rpm alone; Debian's is in File CopyrightPath
	Homepage   string // may be empty
	Summary    string // one line
	Text       string // lines that say more; an empty one parts paragraphs

	Depends, Provides, Conflicts []string // in the format's own syntax

	Files    []File
	Scripts  Scripts
	Triggers Triggers  // of a .deb
	Time     time.Time // default: Epoch
}

// Scripts are texts for /bin/sh; an empty one is none. They get the arguments of their format: a .deb's "configure", "remove" and so on, an
// .rpm's number of versions that stay.
type Scripts struct {
	PostInstall, PreRemove, PostRemove string
	PostTrans                          string // of an .rpm: when all packages of the transaction are in place
}

// Triggers are names of dpkg's triggers, deb-triggers(5). Nobody waits for them.
type Triggers struct{ Interest, Activate []string }

// File is a file, a folder or a symbolic link of a package, owned by root.
type File struct {
	Path string      // absolute
	Mode fs.FileMode // type and permissions
	Link string      // target of a symbolic link
	Size int64       // bytes that Open gives, of a file
	Open func() (io.ReadCloser, error)

	Config bool // the administrator's: an upgrade keeps it where it was changed
}

// Text is a file, 0644, with a text.
func Text(path, text string) File {
	return File{Path: path, Mode: 0o644, Size: int64(len(text)), Open: func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(text)), nil
	}}
}

// MaxBytes bounds what is in a package: all of it is held in memory while it is written.
const MaxBytes = 1 << 30

var (
	debName    = regexp.MustCompile(`^[a-z0-9][a-z0-9+.-]+$`)         // Debian Policy 5.6.7
	rpmName    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9+._-]*$`)  // what rpmbuild takes
	debVersion = regexp.MustCompile(`^[0-9][A-Za-z0-9.+~]*$`)         // Debian Policy 5.6.12, without epoch and revision
	rpmVersion = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~^]*$`) // what rpmbuild takes
	archForm   = regexp.MustCompile(`^[a-z0-9][a-z0-9_-]*$`)          //
	mailForm   = regexp.MustCompile(`^[^<>@,\s][^<>@,]* <[^<>@\s]+@[^<>@\s]+>$`)
)

// CheckVersion says what is wrong with a version in a format.
func (f Format) CheckVersion(v string) error {
	if f == Deb && !debVersion.MatchString(v) {
		return fmt.Errorf("version %q: a .deb's must begin with a digit and have letters, digits and . + ~ only", v)
	}
	if f == RPM && !rpmVersion.MatchString(v) {
		return fmt.Errorf("version %q: an .rpm's must have letters, digits and . _ + ~ ^ only", v)
	}
	return nil
}

// CheckMaintainer says what is wrong with a maintainer.
func CheckMaintainer(s string) error {
	if !mailForm.MatchString(s) || strings.ContainsFunc(s, unicode.IsControl) {
		return fmt.Errorf("maintainer %q: it must be like 'Name <name@example.org>'", s)
	}
	return nil
}

// FileName is what a package's file is called by custom.
func (f Format) FileName(p Package) string {
	if f == Deb {
		return fmt.Sprintf("%s_%s_%s.deb", p.Name, p.Version, p.Arch)
	}
	return fmt.Sprintf("%s-%s-%s.%s.rpm", p.Name, p.Version, rpmRelease, rpmArch(p.Arch))
}

// rpmRelease is the release of every .rpm: who changes a package changes its version.
const rpmRelease = "1"

// rpmArch is rpm's name of an architecture.
func rpmArch(deb string) string {
	switch deb {
	case "all":
		return "noarch"
	case "amd64":
		return "x86_64"
	case "arm64":
		return "aarch64"
	case "armhf":
		return "armv7hl"
	case "ppc64el":
		return "ppc64le"
	case "i386":
		return "i686"
	}
	return deb
}

func (p Package) check(f Format) error {
	name := debName
	if f == RPM {
		name = rpmName
	}
	switch {
	case !name.MatchString(p.Name) || len(p.Name) > 200:
		return fmt.Errorf("%q can't be the name of a .%s", p.Name, f)
	case !archForm.MatchString(p.Arch):
		return fmt.Errorf("%q can't be an architecture", p.Arch)
	case p.Summary == "" || p.License == "":
		return errors.New("it has no summary or licence")
	}
	if err := errors.Join(f.CheckVersion(p.Version), CheckMaintainer(p.Maintainer)); err != nil {
		return err
	}
	for _, field := range slices.Concat([]string{p.Maintainer, p.License, p.Homepage, p.Summary}, p.Depends, p.Provides, p.Conflicts,
		p.Triggers.Activate, p.Triggers.Interest) {
		if strings.ContainsFunc(field, unicode.IsControl) {
			return fmt.Errorf("%q: a field of a package is one line", field)
		}
	}
	var n int64
	folder := map[string]bool{}
	for _, file := range p.Files {
		folder[file.Path] = file.Mode.IsDir()
	}
	for _, file := range p.Files {
		for dir := path.Dir(file.Path); dir != "/" && dir != "."; dir = path.Dir(dir) {
			if is, known := folder[dir]; known && !is {
				return fmt.Errorf("%q is below a file", file.Path)
			}
		}
		if !path.IsAbs(file.Path) || path.Clean(file.Path) != file.Path || file.Path == "/" {
			return fmt.Errorf("%q is no absolute path", file.Path)
		}
		if strings.ContainsFunc(file.Path+file.Link, unicode.IsControl) {
			return fmt.Errorf("%q: a name with control characters can't be packaged", file.Path)
		}
		if n += file.Size; file.Size < 0 || n > MaxBytes {
			return fmt.Errorf("it has more than %d bytes", int64(MaxBytes))
		}
	}
	return nil
}

// Write writes a package. What is in it goes through temp, an empty folder. It and its contents are in memory.
func Write(ctx context.Context, w io.Writer, f Format, p Package, temp string) error {
	if err := p.check(f); err != nil {
		return fmt.Errorf("package %s: %w", p.Name, err)
	}
	if p.Time.IsZero() {
		p.Time = Epoch
	}
	s := spool{dir: temp}
	info := &nfpm.Info{
		Name: p.Name, Version: p.Version, Arch: p.Arch, Platform: "linux", Section: "kernel", Priority: "optional", Maintainer: p.Maintainer,
		Homepage: p.Homepage, License: p.License, Description: p.Summary, MTime: p.Time, VersionSchema: "none", DisableGlobbing: true,
	}
	info.Depends, info.Provides, info.Conflicts = p.Depends, p.Provides, p.Conflicts
	if p.Text != "" {
		info.Description += "\n" + p.Text
	}
	for _, file := range p.Files {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		c, err := s.content(file, p.Time)
		if err != nil {
			return fmt.Errorf("package %s: %s: %w", p.Name, file.Path, err)
		}
		info.Contents = append(info.Contents, c)
	}
	for to, text := range map[*string]string{
		&info.Scripts.PostInstall: p.Scripts.PostInstall, &info.Scripts.PreRemove: p.Scripts.PreRemove,
		&info.Scripts.PostRemove: p.Scripts.PostRemove, &info.RPM.Scripts.PostTrans: p.Scripts.PostTrans,
	} {
		if text == "" {
			continue
		}
		var err error
		if *to, err = s.write(strings.NewReader(text), int64(len(text))); err != nil {
			return err
		}
	}
	var packager nfpm.Packager = rpm.DefaultRPM
	switch f {
	case Deb:
		packager = deb.Default
		info.Deb.Compression = compression
		info.Deb.Triggers = nfpm.DebTriggers{InterestNoAwait: p.Triggers.Interest, ActivateNoAwait: p.Triggers.Activate}
	case RPM:
		info.Arch, info.Release = rpmArch(p.Arch), rpmRelease
		info.RPM.Compression, info.RPM.BuildHost, info.RPM.Summary = compression, "localhost", p.Summary
	}
	if err := packager.Package(info, w); err != nil {
		return fmt.Errorf("package %s: %w", p.Name, err)
	}
	return nil
}

// compression of packages: gzip is the only one that every dpkg and rpm reads, and whose writers here give the same bytes on any number of
// processors. At its highest level it takes twice the time, for a hundredth of the size.
const compression = "gzip:6"

// spool puts what is packaged into files, as nfpm wants it.
type spool struct {
	dir string
	n   int
}

func (s *spool) write(r io.Reader, size int64) (name string, err error) {
	s.n++
	name = filepath.Join(s.dir, strconv.Itoa(s.n))
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", err
	}
	n, err := io.Copy(f, r)
	if err == nil && n != size {
		err = fmt.Errorf("it has %d bytes, want %d", n, size)
	}
	return name, errors.Join(err, f.Close())
}

func (s *spool) content(file File, t time.Time) (*files.Content, error) {
	c := &files.Content{Destination: file.Path, FileInfo: &files.ContentFileInfo{Owner: "root", Group: "root", Mode: file.Mode.Perm(), MTime: t}}
	switch file.Mode.Type() {
	case fs.ModeDir:
		c.Type = files.TypeDir
	case fs.ModeSymlink:
		c.Type, c.Source = files.TypeSymlink, file.Link
		c.FileInfo.Mode, c.FileInfo.Size = 0o777, int64(len(file.Link)) // else nfpm asks what this machine has there
	case 0:
		r, err := file.Open()
		if err != nil {
			return nil, err
		}
		defer r.Close()
		if c.Source, err = s.write(r, file.Size); err != nil {
			return nil, err
		}
		if file.Config {
			c.Type = files.TypeConfigNoReplace
		}
	default:
		return nil, errors.New("neither a file, a folder nor a symbolic link")
	}
	return c, nil
}
