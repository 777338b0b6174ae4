package cli

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/distpkg"
	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/host"
	"github.com/godkms-hermetic/godkms-hermetic/internal/kmod"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// packageOptions are the flags of mkdeb and mkrpm.
type packageOptions struct {
	hostOptions
	sign             signOptions
	prebuilt, source bool
	as, maintainer   string // version and maintainer of the packages
	out              string
}

// nobody is the maintainer of a package that nobody is named for. example.org is reserved (RFC 2606).
const nobody = "Unnamed Maintainer <unnamed@example.org>"

func (a *app) mkpkgCommand(f distpkg.Format) *cobra.Command {
	var o packageOptions
	what, example := "a .deb", "-modules-6.1.0-56-amd64_1.0_amd64.deb"
	if f == distpkg.RPM {
		what, example = "an .rpm", "-modules-6.1.0-56-amd64-1.0-1.x86_64.rpm"
	}
	cmd := &cobra.Command{
		Use:   "mk" + string(f) + " --prebuilt|--source [SRC|MODULE/VERSION]",
		Short: "Make " + what + " of a module",
		Long: `Makes packages of a module, and prints their paths. The same input gives the same bytes.

With --prebuilt there is a package for each kernel that the module was built for, as
hello` + example + `. Those of several kernels can be installed together; each needs its kernel's
own package, and runs depmod. Nothing is built: what isn't in the cache is an error. The modules are not compressed; every kernel
loads them so. Scripts of the module's own, as POST_INSTALL, are left out. With --sign-key, or [signing] in the configuration,
modules are signed; with an RSA key the same module has the same signature.

With --source there is one package, with the source in /usr/src/<module>-<version>. Where it is installed this program, which the
package depends on, builds the module for the kernels there, and for new ones.

SRC and KERNELS are written as for push; of a MODULE/VERSION that is registered with the host its source and what it has are
taken. The package's version is the module's, that of --version, or with "--version git" what git describe says of the
folder's repository, as 1.0+3.gabcdef0 for the third commit after the tag v1.0; only commits count. Files are as old as
SOURCE_DATE_EPOCH says, else from the year 2000. The maintainer is --maintainer, else $DEBFULLNAME <$DEBEMAIL>.` + exitStatus(
			"  0  the packages are there",
			"  1  the command line is wrong, there is no such source or result, or the files can't be written",
			"  4  the state of the module is broken",
			"  6  the modules can't be signed",
			" 77  every kernel was skipped (BUILD_EXCLUSIVE in dkms.conf)",
			"130  interrupted"),
		Example: `  godkms-hermetic mk` + string(f) + ` --prebuilt hello/1.0 --kernels 'debian/bookworm:*'
  godkms-hermetic mk` + string(f) + ` --source --version git .`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runMakePackages(cmd.Context(), f, args, o)
		},
	}
	o.moduleFlags(cmd)
	fl := cmd.Flags()
	fl.BoolVar(&o.prebuilt, "prebuilt", false, "package built modules, for each kernel")
	fl.BoolVar(&o.source, "source", false, "package the source")
	fl.StringSliceVarP(&o.kernels, "kernels", "k", nil, "`KERNELS` to package modules for (default all)")
	fl.StringVar(&o.as, "version", "", "`VERSION` of the package, or git (default the module's)")
	fl.StringVar(&o.maintainer, "maintainer", "", "`NAME <ADDRESS>` of who answers for the package")
	o.sign.flags(fl)
	fl.Lookup("sign-key").Usage = "`KEY` to sign modules with: a PEM file, or pkcs11:… (default the configuration's, else none)"
	fl.StringVar(&o.out, "out", "out", "`DIR` for the packages")
	cmd.MarkFlagsOneRequired("prebuilt", "source")
	cmd.MarkFlagsMutuallyExclusive("prebuilt", "source")
	for _, name := range []string{"kernels", "sign-key", "sign-cert"} {
		cmd.MarkFlagsMutuallyExclusive("source", name)
	}
	cmd.MarkFlagDirname("out")
	for _, name := range []string{"kernels", "version", "maintainer"} {
		cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	return cmd
}

// madePackage is one that was written.
type madePackage struct {
	Path    string `json:"path"`
	Name    string `json:"name"`
	Version string `json:"version"`
	Arch    string `json:"arch"`             // as Debian names it
	Kernel  string `json:"kernel,omitempty"` // that its modules are for
	Signer  string `json:"signer,omitempty"` // common name of the certificate that they are signed for
	SHA256  string `json:"sha256"`
}

func (a *app) runMakePackages(ctx context.Context, f distpkg.Format, args []string, o packageOptions) error {
	p := packaging{app: a, format: f, time: distpkg.Epoch, maintainer: nobody}
	if s := a.env("SOURCE_DATE_EPOCH"); s != "" {
		n, err := strconv.ParseInt(s, 10, 64)
		if err != nil || n < 0 {
			return fmt.Errorf("SOURCE_DATE_EPOCH is %q: it must be a number of seconds", s)
		}
		p.time = time.Unix(n, 0).UTC()
	}
	if name, mail := a.env("DEBFULLNAME"), a.env("DEBEMAIL"); name != "" && mail != "" { // as Debian's own tools take them
		p.maintainer = fmt.Sprintf("%s <%s>", name, mail)
	}
	if o.maintainer != "" {
		p.maintainer = o.maintainer
	}
	if err := distpkg.CheckMaintainer(p.maintainer); err != nil {
		return err
	}
	if err := writable(o.out); err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	src, err := o.subject(args)
	if err != nil {
		return err
	}
	if p.root, err = a.openRoot(o.hostOptions); err != nil {
		return err
	}
	// The key of this host would do on this host alone.
	if o.sign != (signOptions{}) || a.config.Signing.Key != "" {
		if p.signer, err = a.signer(p.root, o.sign); err != nil {
			return hostError(p.root, err)
		}
	}
	switch o.as {
	case "":
	case "git":
		v, err := gitVersion(ctx, src)
		if err != nil {
			return fmt.Errorf("--version git: %w", err)
		}
		p.version = v
	default:
		if err := f.CheckVersion(o.as); err != nil {
			return fmt.Errorf("--version: %w", err)
		}
		p.exact = o.as
	}
	var list []toWrite
	if o.source {
		list, err = p.ofSource(ctx, src, o.out)
	} else {
		list, err = p.prebuilt(ctx, src, o.kernels, o.out)
	}
	if err != nil {
		return hostError(p.root, err)
	}
	made, err := p.write(ctx, list, o.out)
	if err != nil {
		return err
	}
	a.board.Close()
	if a.json() {
		return ui.WriteJSON(a.stdout, struct {
			Packages []madePackage `json:"packages"`
		}{made})
	}
	for _, m := range made {
		if _, err := fmt.Fprintln(a.stdout, ui.Clean(m.Path)); err != nil {
			return err
		}
	}
	return nil
}

// gitVersion asks git for the version of the repository that a folder is in. Nothing in the folder is run: git looks at commits alone.
func gitVersion(ctx context.Context, dir string) (distpkg.Version, error) {
	var v distpkg.Version
	if filepath.Base(dir) == "dkms.conf" {
		dir = filepath.Dir(dir)
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return v, fmt.Errorf("%q is no folder; name the source's own, which is in a repository", dir)
	}
	git := func(args ...string) (string, error) {
		var errs bytes.Buffer
		cmd := exec.CommandContext(ctx, "git", append([]string{"-C", dir, "-c", "core.fsmonitor=false"}, args...)...)
		cmd.Env = append(slices.DeleteFunc(os.Environ(), func(s string) bool { return strings.HasPrefix(s, "GIT_") }), "GIT_NO_LAZY_FETCH=1", "LC_ALL=C")
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if err != nil {
			return "", fmt.Errorf("git %s: %w: %s", args[0], err, strings.TrimSpace(errs.String()))
		}
		return strings.TrimSpace(string(out)), nil
	}
	commit, err := git("rev-parse", "--verify", "--short=12", "HEAD")
	if err != nil {
		return v, err
	}
	if text, err := git("describe", "--tags", "--long", "--abbrev=12"); err == nil {
		return distpkg.ParseDescribe(text)
	}
	// There is no tag.
	if shallow, err := git("rev-parse", "--is-shallow-repository"); err != nil || shallow != "false" {
		return v, errors.Join(err, errors.New("the clone is shallow, and the commits since a tag can't be counted: git fetch --unshallow --tags"))
	}
	n, err := git("rev-list", "--count", "HEAD")
	if err != nil {
		return v, err
	}
	v.Commit = commit
	v.Commits, err = strconv.Atoi(n)
	return v, err
}

// packaging makes packages of one module.
type packaging struct {
	*app
	root       *host.Root
	format     distpkg.Format
	exact      string          // version of the packages
	version    distpkg.Version // else they have this one, whose base can be the module's
	maintainer string
	time       time.Time
	signer     *kmod.Signer // of modules; nil leaves them as they are
}

// toWrite is a package, and the kernel that it's for, if it is for one, and whose signatures it has.
type toWrite struct {
	distpkg.Package
	kernel, signer string
}

// write writes packages: all or none.
func (p *packaging) write(ctx context.Context, list []toWrite, out string) ([]madePackage, error) {
	base, err := p.temp()
	if err != nil {
		return nil, err
	}
	var made []madePackage
	var partials partialDir
	err = place(ctx, &partials, out, out, func(partial string) (names []string, err error) {
		for _, w := range list {
			temp, err := durable.NewTemp(filepath.Join(base, "package"))
			if err != nil {
				return nil, err
			}
			name := p.format.FileName(w.Package)
			digest, err := func() (string, error) {
				defer temp.Close()
				return writeHashed(filepath.Join(partial, name), func(to io.Writer) error {
					return distpkg.Write(ctx, to, p.format, w.Package, temp.Dir)
				})
			}()
			if err != nil {
				return nil, err
			}
			names = append(names, name)
			made = append(made, madePackage{filepath.Join(out, name), w.Name, w.Version, w.Arch, w.kernel, w.signer, digest})
		}
		return names, nil
	})
	return made, err
}

// prebuilt are the packages of what was built, one for each kernel.
func (p *packaging) prebuilt(ctx context.Context, src string, list []string, out string) ([]toWrite, error) {
	selectors, err := listSelectors(list)
	if err != nil {
		return nil, err
	}
	found, err := p.keptOf(ctx, p.root, src, selectors, []string{out})
	if err != nil {
		return nil, err
	}
	var packages []toWrite
	for _, k := range found {
		w, err := p.ofKernel(k.meta, k.files)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", k.kernel(), err)
		}
		if i := slices.IndexFunc(packages, func(o toWrite) bool { return p.format.FileName(o.Package) == p.format.FileName(w.Package) }); i >= 0 {
			return nil, fmt.Errorf("the packages for %s and %s would have the same name; name one of them with --kernels", packages[i].kernel, w.kernel)
		}
		packages = append(packages, w)
	}
	return packages, nil
}

// ofKernel is the package of the modules for a kernel.
func (p *packaging) ofKernel(m artifact.Meta, files []artifact.File) (w toWrite, err error) {
	k := kernelOf(m)
	// They come to stand in scripts that root runs.
	if err := errors.Join(host.CheckName("module", m.Module), host.CheckName("version", m.Version), host.CheckName("kernel", k.Release)); err != nil {
		return w, err
	}
	w = toWrite{kernel: k.String(), Package: distpkg.Package{
		Name: packageName(m.Module + "-modules-" + k.Release), Version: p.versionOf(m.Version), Arch: k.Arch, Maintainer: p.maintainer, Time: p.time,
		Summary: fmt.Sprintf("kernel modules of %s for Linux %s", m.Module, k.Release),
		Depends: kernelDepends(p.format, k), Scripts: depmodScripts(k.Release),
	}}
	if len(w.Depends) == 0 {
		p.board.Warn(fmt.Sprintf("%s: what a .%s of %s's kernel is called isn't known, so the package depends on none", k, p.format, k.Distro))
	}
	var licences []string
	var about, text strings.Builder
	for _, f := range files {
		module, err := readModule(f)
		if err != nil {
			return w, fmt.Errorf("%s: %w", f.Name, err)
		}
		info, err := kmod.Read(bytes.NewReader(module), int64(len(module)))
		if err != nil {
			return w, fmt.Errorf("%s: %w", f.Name, err)
		}
		if p.signer != nil {
			if module, err = p.signer.Sign(module, signHash); err != nil {
				return w, fmt.Errorf("%s %w: %w", f.Name, host.ErrSigning, err)
			}
			w.signer = p.signer.Name()
		}
		fmt.Fprintf(&about, "\n%s\n", f.Name)
		for _, key := range []string{"author", "license"} {
			for _, v := range info.All(key) {
				fmt.Fprintf(&about, "  %s: %s\n", key, ui.Clean(v))
			}
		}
		licences = append(licences, ui.Clean(info.Get("license")))
		fmt.Fprintf(&text, "\n%s: %s", f.Name, ui.Clean(info.Get("description")))
		w.Files = append(w.Files, distpkg.File{
			Path: path.Join(modulesDir(k), k.Release, f.Dest, f.Name), Mode: 0o644, Size: int64(len(module)),
			Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(module)), nil },
		})
	}
	for _, e := range m.Extras {
		if e.Command != "" {
			p.board.Warn(fmt.Sprintf("%s: the module's %s is not in the package, whose scripts run depmod alone", k, e.Name))
		}
	}
	w.License = licenceOf(licences)
	w.Text = fmt.Sprintf("Modules of %s %s, built for %s of %s %s:%s", m.Module, m.Version, k.Release, k.Distro, k.Suite, text.String())
	return w, p.documents(&w.Package, fmt.Sprintf("%s %s for Linux %s", m.Module, m.Version, k.Release),
		fmt.Sprintf("Kernel modules of %s %s, built by godkms-hermetic for %s.\nWhat each says of itself:\n%s", m.Module, m.Version, k, about.String()))
}

// Trigger is dpkg's trigger that the program's own package has autoinstall run for, once, when all that is installed with it is there.
const Trigger = "godkms-hermetic-autoinstall"

// moduleLicence is how a module declares its licence.
var moduleLicence = regexp.MustCompile(`(?m)^\s*MODULE_LICENSE\s*\(\s*"([ -~]{1,60}?)"\s*\)`)

// ofSource is the package of a source.
func (p *packaging) ofSource(ctx context.Context, src, out string) ([]toWrite, error) {
	source, err := p.keptSource(ctx, p.root, src, []string{out})
	if err != nil {
		return nil, err
	}
	defer source.Close()
	m, v := source.Module, source.Version
	// They come to stand in scripts that root runs.
	if err := errors.Join(host.CheckName("module", m), host.CheckName("version", v)); err != nil {
		return nil, err
	}
	w := toWrite{Package: distpkg.Package{
		Name: packageName(m + "-hermetic"), Version: p.versionOf(v), Arch: "all", Maintainer: p.maintainer, Time: p.time,
		Summary: fmt.Sprintf("source of the kernel modules of %s", m),
		Text: fmt.Sprintf("The source of %s %s, of which godkms-hermetic builds modules for\n"+
			"the kernels of this machine, and for new ones when they are installed.", m, v),
		Depends: []string{"godkms-hermetic"}, Provides: []string{packageName(m + "-dkms")}, Conflicts: []string{packageName(m + "-dkms")},
		Scripts: sourceScripts(p.format, m+"/"+v), Triggers: distpkg.Triggers{Activate: []string{Trigger}},
	}}
	dir := path.Join("/usr/src", m+"-"+v)
	w.Files = []distpkg.File{{Path: dir, Mode: fs.ModeDir | 0o755}}
	var licences []string
	var size int64
	for tr := tar.NewReader(source.Tar()); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return nil, err
		}
		f := distpkg.File{Path: path.Join(dir, h.Name), Mode: h.FileInfo().Mode(), Link: h.Linkname}
		if h.Typeflag == tar.TypeReg {
			if size += h.Size; size > distpkg.MaxBytes {
				return nil, fmt.Errorf("the source has more than %d bytes, which is the most that a package takes", int64(distpkg.MaxBytes))
			}
			b, err := io.ReadAll(tr)
			if err != nil {
				return nil, err
			}
			f.Size, f.Open = h.Size, func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b)), nil }
			if path.Ext(h.Name) == ".c" {
				for _, l := range moduleLicence.FindAllSubmatch(b, -1) {
					licences = append(licences, string(l[1]))
				}
			}
		}
		w.Files = append(w.Files, f)
	}
	w.License = licenceOf(licences)
	err = p.documents(&w.Package, fmt.Sprintf("%s %s", m, v),
		fmt.Sprintf("Source of the kernel modules of %s %s, which is in %s. They declare this licence:\n\n  %s\n", m, v, dir, w.License))
	return []toWrite{w}, err
}

// sourceScripts register a module, build it, and remove it again. They fail no package manager: what went wrong is in the status. On
// Debian building is for the trigger; see there.
func sourceScripts(f distpkg.Format, module string) distpkg.Scripts {
	const (
		fails  = " || echo 'godkms-hermetic failed; see godkms-hermetic status' >&2\n"
		add    = "godkms-hermetic add \"$module\"" + fails
		remove = "godkms-hermetic remove \"$module\" --all" + fails
		all    = "godkms-hermetic autoinstall --all" + fails
	)
	vars := "export XDG_CACHE_HOME=/var/cache\nmodule='" + module + "'\n"
	if f == distpkg.RPM { // in an upgrade what is old goes after what is new has come, and only PostTrans is later
		return distpkg.Scripts{PostTrans: vars + add + all, PreRemove: vars + remove}
	}
	const script = "#!/bin/sh\nset -e\n%scase \"$1\" in\n%s)\n\t%s\t;;\nesac\n"
	return distpkg.Scripts{
		PostInstall: fmt.Sprintf(script, vars, "configure", add),
		PreRemove:   fmt.Sprintf(script, vars, "remove|upgrade|deconfigure", remove),
	}
}

// documents adds what Debian wants in each package: a copyright and a changelog.
func (p *packaging) documents(w *distpkg.Package, change, copyright string) error {
	if err := p.format.CheckVersion(w.Version); err != nil {
		return fmt.Errorf("%w; give one with --version", err)
	}
	dir := path.Join("/usr/share/doc", w.Name)
	copyright += "\nOn Debian systems the texts of common licences, as the GPL, are in /usr/share/common-licenses.\n"
	w.Files = append(w.Files, distpkg.Text(path.Join(dir, "copyright"), copyright))
	if p.format != distpkg.Deb {
		return nil
	}
	var log bytes.Buffer
	z, err := gzip.NewWriterLevel(&log, gzip.BestCompression)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(z, "%s (%s) unstable; urgency=medium\n\n  * %s\n\n -- %s  %s\n", w.Name, w.Version, change, w.Maintainer, w.Time.Format(time.RFC1123Z))
	if err := errors.Join(err, z.Close()); err != nil {
		return err
	}
	w.Files = append(w.Files, distpkg.Text(path.Join(dir, "changelog.gz"), log.String()))
	return nil
}

// versionOf is the version of a package of a module.
func (p *packaging) versionOf(module string) string {
	if p.exact != "" {
		return p.exact
	}
	v := p.version
	if v.Base == "" {
		v.Base = module
	}
	return v.In(p.format)
}

// packageName is a name that packages can have: lower case, without _ : and ~.
func packageName(s string) string {
	return strings.NewReplacer("_", "-", ":", "-", "~", "-").Replace(strings.ToLower(s))
}

// licenceOf is one line for the licences that modules name.
func licenceOf(names []string) string {
	names = slices.DeleteFunc(names, func(s string) bool { return s == "" })
	slices.Sort(names)
	if names = slices.Compact(names); len(names) == 0 {
		return "unknown"
	}
	return strings.Join(names, " and ")
}

// kernelDepends is what a package for a kernel depends on. Debian's and Ubuntu's kernels are signed by a second package, which has the
// plain name; who builds without that has the other. Those of Red Hat's kin provide their release. SUSE's release leaves out how often the
// package was built again, and its kernels provide the version without that (rpm/kernel-binary.spec.in).
func kernelDepends(f distpkg.Format, k kernels.Kernel) []string {
	switch k.Distro {
	case "debian":
		if f == distpkg.Deb {
			return []string{fmt.Sprintf("linux-image-%s | linux-image-%[1]s-unsigned", k.Release)}
		}
	case "ubuntu":
		if f == distpkg.Deb {
			return []string{fmt.Sprintf("linux-image-%s | linux-image-unsigned-%[1]s", k.Release)}
		}
	case "fedora", "rhel", "centos", "rocky", "almalinux", "ol", "amzn":
		if f == distpkg.RPM {
			return []string{"kernel-uname-r = " + k.Release}
		}
	case "opensuse-leap", "opensuse-tumbleweed", "sles":
		if i := strings.LastIndexByte(k.Release, '-'); f == distpkg.RPM && i > 0 {
			return []string{"kernel" + k.Release[i:], "kernel = " + k.Release[:i]}
		}
	}
	return nil
}

// modulesDir is where packages of a kernel's suite have modules: /lib, which leads to the same place, until /usr was merged for good.
func modulesDir(k kernels.Kernel) string {
	if k.Distro == "debian" && !slices.Contains([]string{"buster", "bullseye", "bookworm"}, k.Suite) {
		return "/usr/lib/modules"
	}
	return "/lib/modules"
}

// depmodScripts run depmod for a kernel that is there. It fails no package manager: without modules.dep the kernel's own modules would
// have been lost before.
func depmodScripts(release string) distpkg.Scripts {
	script := fmt.Sprintf(`#!/bin/sh
set -e
release='%s'
if [ -e "$DPKG_ROOT/lib/modules/$release/modules.order" ]; then
	depmod -b "${DPKG_ROOT:-/}" -a "$release" || echo "depmod failed for $release: see to it, then run: depmod -a $release" >&2
fi
`, release)
	return distpkg.Scripts{PostInstall: script, PostRemove: script}
}

// signHash is what modules in packages are signed with: their kernel's own choice isn't known, but this one every kernel with signatures
// has, for certificates.
const signHash = crypto.SHA256

func readModule(f artifact.File) ([]byte, error) {
	if f.Size > distpkg.MaxBytes {
		return nil, fmt.Errorf("it has %d bytes; a package has at most %d", f.Size, int64(distpkg.MaxBytes))
	}
	r, err := f.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}
