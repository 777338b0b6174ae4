// Package makes the packages of this program, with its manual, completions and hooks:
//
//	go run ./scripts/package -program bin/godkms-hermetic -out out deb rpm
//
// The version and the time of all that is in them are those of the last commit. The same commit gives the same bytes.
package main

import (
	"bytes"
	"compress/gzip"
	"context"
	"debug/buildinfo"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/internal/cli"
	"github.com/godkms-hermetic/godkms-hermetic/internal/distpkg"
	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/host"
)

func main() {
	program := flag.String("program", "bin/godkms-hermetic", "the program, static and without symbols")
	out := flag.String("out", "out", "folder for the packages")
	flag.Parse()
	ctx, stop := cli.Interruptible()
	defer stop()
	for _, f := range flag.Args() {
		name, err := run(ctx, *program, *out, distpkg.Format(f))
		if err != nil {
			fmt.Fprintln(os.Stderr, "package:", err)
			os.Exit(1)
		}
		fmt.Println(name)
	}
}

const (
	name       = "godkms-hermetic"
	binary     = "/usr/bin/" + name
	maintainer = "Unnamed Maintainer <unnamed@example.org>" // whoever builds it
)

// run writes a package and gives its path.
func run(ctx context.Context, program, out string, f distpkg.Format) (string, error) {
	if f != distpkg.Deb && f != distpkg.RPM {
		return "", fmt.Errorf("%q is neither %s nor %s", f, distpkg.Deb, distpkg.RPM)
	}
	version, when, err := commit(ctx)
	if err != nil {
		return "", err
	}
	p, err := tool(f, program, version.In(f), when)
	if err != nil {
		return "", err
	}
	temp, err := durable.NewTemp(filepath.Join(out, ".package"))
	if err != nil {
		return "", err
	}
	defer os.Remove(filepath.Join(out, ".package"))
	defer os.Remove(filepath.Join(out, ".package/.lock"))
	defer temp.Close()
	parts := filepath.Join(temp.Dir, "parts")
	if err := os.Mkdir(parts, 0o755); err != nil {
		return "", err
	}
	to := filepath.Join(out, f.FileName(p))
	return to, durable.WriteFile(temp.Dir, to, 0o644, func(w io.Writer) error { return distpkg.Write(ctx, w, f, p, parts) })
}

// commit gives the version and the time of the commit that is checked out.
func commit(ctx context.Context) (v distpkg.Version, when time.Time, err error) {
	git := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, "git", args...)
		cmd.Stderr = os.Stderr
		b, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("git %s: %w", args[0], err)
		}
		return strings.TrimSpace(string(b)), nil
	}
	text, err := git("log", "-1", "--abbrev=12", "--format=%ct %h %(describe:tags,abbrev=12)")
	if err != nil {
		return v, when, err
	}
	fields := strings.Fields(text)
	seconds, err := strconv.ParseInt(fields[0], 10, 64)
	if err != nil {
		return v, when, err
	}
	when = time.Unix(seconds, 0).UTC()
	switch {
	case len(fields) < 3: // there is no tag
		n, err := git("rev-list", "--count", "HEAD")
		if err != nil {
			return v, when, err
		}
		v.Commit = fields[1]
		v.Commits, err = strconv.Atoi(n)
		return v, when, err
	case strings.HasSuffix(fields[2], "-g"+fields[1]):
		v, err = distpkg.ParseDescribe(fields[2])
	default:
		v.Base = fields[2]
	}
	return v, when, err
}

// tool is the package of the program.
func tool(f distpkg.Format, program, version string, when time.Time) (distpkg.Package, error) {
	p := distpkg.Package{
		Name: name, Version: version, Maintainer: maintainer, License: "Apache-2.0", Time: when,
		Homepage: "https://github.com/godkms-hermetic/godkms-hermetic",
		Summary:  "kernel modules of DKMS sources, built hermetically",
		Text: `Builds out-of-tree kernel modules for any kernel of a distribution in a
sandbox, with the compiler and headers that the distribution has for it,
or gets them prebuilt from a registry, and installs them.

It knows DKMS's sources, commands and states, and needs neither a compiler
nor headers on the machine.`,
		Depends: []string{"kmod"},
		Scripts: scripts(f), Triggers: distpkg.Triggers{Interest: []string{cli.Trigger}},
	}
	info, err := buildinfo.ReadFile(program)
	if err != nil {
		return p, err
	}
	for _, s := range info.Settings {
		if s.Key == "GOARCH" {
			p.Arch = s.Value
		}
	}
	switch p.Arch { // as Debian names it
	case "386":
		p.Arch = "i386"
	case "arm":
		p.Arch = "armhf"
	case "ppc64le":
		p.Arch = "ppc64el"
	}
	size, err := os.Stat(program)
	if err != nil {
		return p, err
	}
	p.Files = []distpkg.File{{Path: binary, Mode: 0o755, Size: size.Size(), Open: func() (io.ReadCloser, error) { return os.Open(program) }}}
	return p, errors.Join(documents(&p, f, info), completions(&p, f), hooks(&p, f))
}

// scripts of an .rpm there are none: of a source package, which its own builds.
func scripts(f distpkg.Format) distpkg.Scripts {
	if f != distpkg.Deb {
		return distpkg.Scripts{}
	}
	return distpkg.Scripts{PostInstall: `#!/bin/sh
set -e
# What can't be built must not fail dpkg; it is in the status.
if [ "$1" = triggered ] && [ -n "$(find /lib/modules/ -mindepth 2 -maxdepth 2 -name kernel)" ]; then
	HOME=/root XDG_CACHE_HOME=/var/cache ` + name + ` autoinstall --all --timeout 30m </dev/null ||
		echo '` + name + ` failed; see ` + name + ` status' >&2
fi
`}
}

// documents adds the manual, the licence, and of a .deb a changelog.
func documents(p *distpkg.Package, f distpkg.Format, info *buildinfo.BuildInfo) error {
	for file, text := range manPages(cli.Command(), p.Time.Format(time.DateOnly), p.Version) {
		if err := addGzip(p, path.Join("/usr/share/man/man1", file+".gz"), text); err != nil {
			return err
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, `Copyright the authors of godkms-hermetic
Source: %s
License: Apache-2.0, see /usr/share/common-licenses/Apache-2.0 or
https://www.apache.org/licenses/LICENSE-2.0

The program is one static file. It has Go's library (BSD-3-Clause) of %s,
and these modules, whose licences come with their sources:

`, p.Homepage, info.GoVersion)
	for _, d := range info.Deps {
		fmt.Fprintf(&b, "  %s %s\n", d.Path, d.Version)
	}
	dir := path.Join("/usr/share/doc", name)
	p.Files = append(p.Files, distpkg.Text(path.Join(dir, "copyright"), b.String()))
	if f != distpkg.Deb {
		return nil
	}
	p.Files = append(p.Files, distpkg.Text("/usr/share/lintian/overrides/"+name,
		"# It runs on any Linux, and in roots that have nothing else.\n"+name+": statically-linked-binary\n"))
	return addGzip(p, path.Join(dir, "changelog.gz"), fmt.Sprintf("%s (%s) unstable; urgency=medium\n\n  * As of this commit.\n\n -- %s  %s\n",
		name, p.Version, p.Maintainer, p.Time.Format(time.RFC1123Z)))
}

func addGzip(p *distpkg.Package, path, text string) error {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return err
	}
	_, err = io.WriteString(z, text)
	if err := errors.Join(err, z.Close()); err != nil {
		return err
	}
	p.Files = append(p.Files, distpkg.Text(path, b.String()))
	return nil
}

// completions adds those of the usual shells, where the distributions that have such packages look for them.
func completions(p *distpkg.Package, f distpkg.Format) error {
	zsh := "/usr/share/zsh/vendor-completions/_"
	if f == distpkg.RPM {
		zsh = "/usr/share/zsh/site-functions/_"
	}
	root := cli.Command()
	for file, write := range map[string]func(io.Writer) error{
		"/usr/share/bash-completion/completions/" + name:         func(w io.Writer) error { return root.GenBashCompletionV2(w, true) },
		"/usr/share/fish/vendor_completions.d/" + name + ".fish": func(w io.Writer) error { return root.GenFishCompletion(w, true) },
		zsh + name: root.GenZshCompletion,
	} {
		var b bytes.Buffer
		if err := write(&b); err != nil {
			return err
		}
		p.Files = append(p.Files, distpkg.Text(file, b.String()))
	}
	return nil
}

// hooks adds those that 'hooks install' would write; systemd's unit is enabled as packages do it.
func hooks(p *distpkg.Package, f distpkg.Format) error {
	list, err := host.HookFiles(binary)
	if err != nil {
		return err
	}
	for _, h := range list {
		if h.For == "pacman" || h.For == "dpkg" && f != distpkg.Deb {
			continue
		}
		file := distpkg.Text(h.Path, string(h.Text))
		file.Mode, file.Config = h.Mode, strings.HasPrefix(h.Path, "/etc/")
		if h.Link != "" {
			unit := path.Base(h.Link)
			file = distpkg.File{Path: path.Join(path.Dir(h.Link), path.Base(path.Dir(h.Path)), unit), Mode: fs.ModeSymlink, Link: "../" + unit}
		}
		p.Files = append(p.Files, file)
	}
	return nil
}
