package qemu

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// MissingError says that there is no qemu for an architecture on PATH.
type MissingError struct {
	Arch    string // in Debian's words
	Program string // "qemu-system-x86_64"
	Package string // that has it, of the distribution that runs here; of several where that isn't known
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("%s is not on PATH: install %s", e.Program, e.Package)
}

// packages are the packages that have a program, by the ID of os-release(5), and what the distribution is called.
var packages = map[string][]struct{ id, distro, name string }{
	"amd64": {
		{"debian", "Debian, Ubuntu", "qemu-system-x86"},
		{"fedora", "Fedora", "qemu-system-x86-core"},
		{"suse", "openSUSE", "qemu-x86"},
		{"arch", "Arch Linux", "qemu-system-x86"},
		{"alpine", "Alpine", "qemu-system-x86_64"},
	},
	"arm64": {
		{"debian", "Debian, Ubuntu", "qemu-system-arm"},
		{"fedora", "Fedora", "qemu-system-aarch64-core"},
		{"suse", "openSUSE", "qemu-arm"},
		{"arch", "Arch Linux", "qemu-system-aarch64"},
		{"alpine", "Alpine", "qemu-system-aarch64"},
	},
}

// packageFor names the package to install on a root: the one of its distribution, or of all that are known.
func packageFor(root, arch string) string {
	var ids []string
	for _, name := range []string{"etc/os-release", "usr/lib/os-release"} {
		b, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			continue
		}
		fields := map[string]string{}
		for line := range strings.Lines(string(b)) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			fields[key] = strings.Trim(value, `"'`)
		}
		ids = append(strings.Fields(fields["ID"]), strings.Fields(fields["ID_LIKE"])...)
		break
	}
	for _, id := range ids {
		for _, p := range packages[arch] {
			if p.id == id {
				return p.name
			}
		}
		if id == "rhel" { // like Fedora, but its qemu-kvm runs no such machine: it has neither this name nor these devices
			break
		}
	}
	var all []string
	for _, p := range packages[arch] {
		all = append(all, p.name+" ("+p.distro+")")
	}
	return strings.Join(all, ", ")
}
