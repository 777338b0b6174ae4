package host

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
)

// dkmsOwner gives the module, and its version, that dkms has put a file for. Both are empty where it is none of dkms's.
func (r *Root) dkmsOwner(release, path string) (module, version string) {
	name, _ := moduleName(filepath.Base(path))
	for _, m := range r.DKMSModules() {
		for _, k := range m.Kernels {
			if k.Installed && k.Release == release && !inTree(path) && slices.ContainsFunc(k.Files, func(f string) bool {
				of, _ := moduleName(f)
				return of == name
			}) {
				return m.Module, m.Version
			}
		}
	}
	return "", ""
}

// dkmsOriginal is a module that dkms moved aside.
type dkmsOriginal struct {
	path  string   // below /lib/modules/<release>
	files []string // it, and what says where it is from; below dkmsDir
}

// dkmsOriginals are those that dkms moved aside for a module and a kernel. Each has a file beside it that names the place it had;
// where there were several of one name they are in a folder of their own.
func (r *Root) dkmsOriginals(module string, k artifact.Kernel) ([]dkmsOriginal, error) {
	dkms, err := r.dkms()
	if err != nil || dkms == nil {
		return nil, err
	}
	defer dkms.Close()
	var out []dkmsOriginal
	dir := path.Join(module, "original_module", k.Release, machine(k.Arch))
	err = fs.WalkDir(dkms.FS(), dir, func(name string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		file, ok := strings.CutSuffix(name, ".origin")
		if err != nil || !ok || !d.Type().IsRegular() {
			return err
		}
		b, err := readRegular(filepath.Join(dkms.Name(), name), unix.PathMax)
		if err != nil {
			return err
		}
		line, _, _ := strings.Cut(string(b), "\n")
		info, err := dkms.Lstat(file)
		if errors.Is(err, fs.ErrNotExist) || err == nil && !info.Mode().IsRegular() {
			return nil
		}
		if err != nil {
			return err
		}
		place, ok := strings.CutPrefix(strings.TrimPrefix(line, "/usr"), "/lib/modules/"+k.Release+"/")
		if !ok || !filepath.IsLocal(place) || path.Clean(place) != place {
			r.warnf("%s: %.200q is no place of a module: it is left to dkms", filepath.Join(dkms.Name(), name), line)
			return nil
		}
		out = append(out, dkmsOriginal{place, []string{file, name}})
		return nil
	})
	return out, err
}

// dkms opens dkms's folder; nil if there is none.
func (r *Root) dkms() (*os.Root, error) {
	dir, err := r.Path(dkmsDir)
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return root, err
}

func (r *Root) removeFromDKMS(name string) error {
	dkms, err := r.dkms()
	if err != nil || dkms == nil {
		return err
	}
	defer dkms.Close()
	return remove(dkms, name)
}

// maxList is for a list of a package's files, in bytes. That of a kernel has 500 kB.
const maxList = 16 << 20

// packageOwner says which package a file belongs to.
func (r *Root) packageOwner(release, path string) string {
	info, err := r.Path("/var/lib/dpkg/info")
	if err == nil {
		lists, _ := filepath.Glob(filepath.Join(info, "*.list"))
		for _, list := range lists {
			b, err := readRegular(list, maxList)
			if err != nil {
				continue
			}
			for _, lib := range []string{"/lib", "/usr/lib"} {
				if bytes.Contains(append([]byte("\n"), b...), []byte("\n"+filepath.Join(lib, "modules", release, path)+"\n")) {
					return fmt.Sprintf("the package %s has it", strings.TrimSuffix(filepath.Base(list), ".list"))
				}
			}
		}
	}
	for _, dir := range []string{"/usr/lib/sysimage/rpm", "/var/lib/rpm"} {
		if p, err := r.Path(dir); err == nil {
			if _, err := os.Stat(p); err == nil {
				return fmt.Sprintf("see 'rpm -qf %s' for the package that has it", r.shown(release, path))
			}
		}
	}
	return "nobody known has put it there"
}
