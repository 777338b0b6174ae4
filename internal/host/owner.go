package host

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// dkmsOwner gives the module, and its version, that dkms has put a file for, going by the link that says what is installed. Both are
// empty where it is none of dkms's.
func (r *Root) dkmsOwner(release, path string) (module, version string, err error) {
	if inTree(path) {
		return "", "", nil
	}
	name, _ := moduleName(filepath.Base(path))
	base, err := r.Path(dkmsTree)
	if err != nil {
		return "", "", err
	}
	modules, err := subfolders(base)
	if err != nil {
		return "", "", err
	}
	for _, m := range modules {
		links, err := filepath.Glob(filepath.Join(base, m, "kernel-*"))
		if err != nil {
			return "", "", err
		}
		for _, link := range links {
			to, err := os.Readlink(link) // VERSION/RELEASE/ARCH
			if err != nil || !strings.HasPrefix(filepath.Base(link), "kernel-"+release+"-") {
				continue
			}
			dir, err := r.Path(filepath.Join(dkmsTree, m, to, "module"))
			if err != nil {
				return "", "", err
			}
			entries, _ := os.ReadDir(dir)
			if slices.ContainsFunc(entries, func(e os.DirEntry) bool { n, ok := moduleName(e.Name()); return ok && n == name }) {
				version, _, _ := strings.Cut(to, "/")
				return m, version, nil
			}
		}
	}
	return "", "", nil
}

// packageOwner says which package a file belongs to.
func (r *Root) packageOwner(release, path string) string {
	info, err := r.Path("/var/lib/dpkg/info")
	if err == nil {
		lists, _ := filepath.Glob(filepath.Join(info, "*.list"))
		for _, list := range lists {
			b, err := os.ReadFile(list)
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
