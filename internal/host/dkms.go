package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// dkmsDir is where real dkms keeps what it manages, as its script reads it (3.2; dkms(8) says what is where):
//
//	<module>/<version>/source                  link to the source folder
//	<module>/<version>/<release>/<arch>/module what was built
//	<module>/kernel-<release>-<arch>           link to <version>/<release>/<arch>, which is installed
//	<module>/original_module/<release>/<arch>  modules that were moved aside, each with a file .origin that says from where
//
// A dkms_tree that /etc/dkms/framework.conf puts elsewhere isn't looked for.
const dkmsDir = "/var/lib/dkms"

// DKMSModule is a version of a module that real dkms manages.
type DKMSModule struct {
	Module  string
	Version string
	Source  string       // folder of the root, with its links followed: "/usr/src/hello-1.0"; empty where it is gone: dkms calls that broken
	Kernels []DKMSKernel // for which it is built, in dkms's order
}

// DKMSKernel is a kernel that dkms has built a module for.
type DKMSKernel struct {
	Release   string
	Arch      string   // in uname -m's words: "x86_64"
	Installed bool     // this version is the one that dkms has installed for it
	Originals bool     // modules were moved aside for the module, whichever its version
	Files     []string // names of what was built: "hello.ko.xz"
}

// DKMSModules gives what real dkms manages, in dkms's order; nothing where it manages nothing. What dkms wouldn't show isn't there, nor
// what can't be read, nor folders that are links, which dkms makes none of.
func (r *Root) DKMSModules() []DKMSModule {
	base, err := r.Path(dkmsDir)
	if err != nil {
		return nil
	}
	var all []DKMSModule
	for _, module := range visible(base) {
		for _, version := range visible(filepath.Join(base, module)) {
			if m, ok := r.dkmsModule(base, module, version); ok {
				all = append(all, m)
			}
		}
	}
	slices.SortFunc(all, func(a, b DKMSModule) int { return strings.Compare(a.Module+"/"+a.Version, b.Module+"/"+b.Version) })
	return all
}

// dkmsRelease is what dkms takes for a kernel's folder.
var dkmsRelease = regexp.MustCompile(`^[0-9]+\.`)

// dkmsModule reads one version, if dkms would show it.
func (r *Root) dkmsModule(base, module, version string) (m DKMSModule, ok bool) {
	m = DKMSModule{Module: module, Version: version}
	dir := filepath.Join(base, module, version)
	isLink := false
	if info, err := os.Lstat(filepath.Join(dir, "source")); err == nil {
		isLink = info.Mode()&fs.ModeSymlink != 0
	}
	if isLink {
		if source, isDir := r.folder(filepath.Join(dkmsDir, module, version, "source")); isDir {
			m.Source = filepath.Join("/", strings.TrimPrefix(source, r.dir))
		}
	} else if _, isDir := r.folder(filepath.Join("/usr/src", module+"-"+version)); !isDir {
		return m, false
	}
	for _, release := range visible(dir) {
		if !dkmsRelease.MatchString(release) {
			continue
		}
		for _, arch := range visible(filepath.Join(dir, release)) {
			built := filepath.Join(dir, release, arch, "module")
			if info, err := os.Lstat(built); err != nil || !info.IsDir() {
				continue
			}
			k := DKMSKernel{Release: release, Arch: arch}
			target, err := os.Readlink(filepath.Join(base, module, "kernel-"+release+"-"+arch))
			k.Installed = err == nil && filepath.Clean(target) == filepath.Join(version, release, arch)
			info, err := os.Lstat(filepath.Join(base, module, "original_module", release, arch))
			k.Originals = err == nil && info.IsDir()
			entries, _ := os.ReadDir(built) // it has just gone: nothing is built
			for _, e := range entries {
				if _, ok := moduleName(e.Name()); ok {
					k.Files = append(k.Files, e.Name())
				}
			}
			m.Kernels = append(m.Kernels, k)
		}
	}
	return m, true
}

// folder finds a folder below the root, with its links followed.
func (r *Root) folder(name string) (path string, ok bool) {
	path, err := r.Path(name)
	if err != nil {
		return "", false
	}
	info, err := os.Lstat(path)
	return path, err == nil && info.IsDir()
}

// visible are the folders in one, as a shell's * finds them.
func visible(dir string) []string {
	names, _ := subfolders(dir) // what can't be read has none
	return slices.DeleteFunc(names, func(n string) bool { return strings.HasPrefix(n, ".") })
}

// dkmsGroups are the status's lines of what dkms manages. Of the remarks, that built modules are missing is made where there are none at
// all: how many there are to be, dkms.conf says.
func (r *Root) dkmsGroups() []group {
	var seek seeker
	var groups []group
	for _, m := range r.DKMSModules() {
		g := group{module: m.Module, version: m.Version, by: "dkms", broken: m.Source == ""}
		for _, k := range m.Kernels {
			l := Line{Release: k.Release, Arch: k.Arch, State: Built}
			if k.Originals {
				l.Notes = append(l.Notes, NoteOriginals)
			}
			switch {
			case len(k.Files) == 0:
				l.Notes = append(l.Notes, NoteMissing)
			case k.Installed && r.dkmsDiffers(&seek, m, k):
				l.Notes = append(l.Notes, NoteDifferences)
			}
			if k.Installed {
				l.State = Installed
			}
			g.kernels = append(g.kernels, l)
		}
		groups = append(groups, g)
	}
	return groups
}

// dkmsDiffers tells whether an installed file isn't there, or has another size than what dkms built.
func (r *Root) dkmsDiffers(seek *seeker, m DKMSModule, k DKMSKernel) bool {
	built, err := r.Path(filepath.Join(dkmsDir, m.Module, m.Version, k.Release, k.Arch, "module"))
	if err != nil {
		return true
	}
	lib, err := r.Path(filepath.Join("/lib/modules", k.Release))
	if err != nil {
		return true
	}
	for _, name := range k.Files {
		want, err := os.Lstat(filepath.Join(built, name))
		if err != nil {
			return true
		}
		have, err := os.Lstat(seek.find(lib, name))
		if err != nil || have.Size() != want.Size() {
			return true
		}
	}
	return false
}

// seeker finds modules below /lib/modules/<release> by their file names. Where dkms puts them, the distribution says or
// dkms.conf does.
type seeker struct {
	lib   string
	names map[string]string // of all modules there, once they were looked for
}

// find gives the path that a module would have; it may not be there.
func (s *seeker) find(lib, name string) string {
	for _, dir := range []string{"updates/dkms", "extra", "updates"} { // Debian and Arch; Fedora; SUSE
		path := filepath.Join(lib, dir, name)
		if _, err := os.Lstat(path); err == nil {
			return path
		}
	}
	if s.lib != lib {
		*s = seeker{lib, map[string]string{}}
		filepath.WalkDir(lib, func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				s.names[d.Name()] = path
			}
			return nil // what can't be read has none
		})
	}
	return s.names[name]
}

// ReleaseFromDKMS takes a version of a module away from real dkms, once modules of ours are installed for every kernel that dkms
// has it installed for; else it wraps ErrRefused and names those that are missing. What dkms built goes, and so do its links
// to the version; /usr/src stays, as do modules in its original_module that nothing of ours has taken over, with a warning. A version
// that dkms doesn't have wraps ErrNotAdded.
//
// Cut off at any point, it leaves what a second call finishes: links of kernels go first, the link to the source last, and it
// is by its folder that the version is found.
func (r *Root) ReleaseFromDKMS(ctx context.Context, module, version string) error {
	unlock, err := r.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if err := errors.Join(CheckName("module", module), CheckName("version", version)); err != nil {
		return err
	}
	dkms, err := r.dkms()
	if err != nil {
		return err
	}
	if dkms == nil {
		return fmt.Errorf("%s/%s is %w to dkms", module, version, ErrNotAdded)
	}
	defer dkms.Close()
	dir := path.Join(module, version)
	for _, d := range []string{module, dir} {
		if info, err := dkms.Lstat(d); errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
			return fmt.Errorf("%s/%s is %w to dkms", module, version, ErrNotAdded)
		} else if err != nil {
			return err
		}
	}
	links, err := dkmsLinks(dkms, module, version)
	if err != nil {
		return err
	}
	modules, err := r.Modules()
	if err != nil && !errors.Is(err, ErrBroken) {
		return err
	}
	var missing []string
	for _, l := range links {
		if !slices.ContainsFunc(modules, func(m Module) bool {
			return m.Module == module && slices.ContainsFunc(m.Records, func(rec Record) bool {
				return rec.State == Installed && rec.Kernel.Release == l.release && machine(rec.Kernel.Arch) == machine(l.arch)
			})
		}) {
			missing = append(missing, l.release)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("%s/%s stays with dkms: %w: it has it installed for %s, where nothing of this tool's is; install it there first, or have dkms uninstall it",
			module, version, ErrRefused, strings.Join(missing, ", "))
	}
	for _, l := range links {
		if err := r.step("release %s", l.name); err != nil {
			return err
		}
		if err := remove(dkms, path.Join(module, l.name)); err != nil {
			return err
		}
		if err := r.clearOriginals(dkms, module, l); err != nil {
			return err
		}
	}
	entries, err := fs.ReadDir(dkms.FS(), dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == "source" {
			continue
		}
		if err := r.step("release %s", e.Name()); err != nil {
			return err
		}
		if err := dkms.RemoveAll(path.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	for _, name := range []string{path.Join(dir, "source"), dir} {
		if err := r.step("release %s", path.Base(name)); err != nil {
			return err
		}
		if err := dkms.RemoveAll(name); err != nil {
			return err
		}
	}
	dkms.Remove(module) // if it's empty
	return nil
}

// dkmsLink says that a version is installed for a kernel.
type dkmsLink struct{ name, release, arch string }

// dkmsLinks are those to a version, in the folder of its module.
func dkmsLinks(dkms *os.Root, module, version string) ([]dkmsLink, error) {
	entries, err := fs.ReadDir(dkms.FS(), module)
	if err != nil {
		return nil, err
	}
	var links []dkmsLink
	for _, e := range entries {
		if e.Type() != fs.ModeSymlink || !strings.HasPrefix(e.Name(), "kernel-") {
			continue
		}
		target, err := dkms.Readlink(path.Join(module, e.Name()))
		if err != nil {
			return nil, err
		}
		if part := strings.Split(path.Clean(target), "/"); len(part) == 3 && part[0] == version {
			links = append(links, dkmsLink{e.Name(), part[1], part[2]})
		}
	}
	return links, nil
}

// clearOriginals removes what dkms noted of the modules that it had moved aside for a kernel, but no module.
func (r *Root) clearOriginals(dkms *os.Root, module string, l dkmsLink) error {
	top := path.Join(module, "original_module")
	if info, err := dkms.Lstat(top); err != nil || !info.IsDir() { // dkms makes no links there, and what is behind one isn't its own
		return nil
	}
	dir := path.Join(top, l.release, l.arch)
	left := 0
	err := fs.WalkDir(dkms.FS(), dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil {
			if _, ok := moduleName(d.Name()); ok {
				left++
			}
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if left > 0 {
		r.warnf("%s stays: it has %d modules of %s that dkms moved aside", filepath.Join(dkms.Name(), dir), left, l.release)
		return nil
	}
	if err := dkms.RemoveAll(dir); err != nil {
		return err
	}
	for up := path.Dir(dir); up != module; up = path.Dir(up) {
		dkms.Remove(up) // if it's empty
	}
	return nil
}
