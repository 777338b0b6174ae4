package distrotest

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// Pocket is one of the suites of an APT archive.
type Pocket struct {
	Codename   string // "noble-updates"; also the name of its folder
	Suite      string // default: the codename
	Series     string // what it gives as its codename, as Ubuntu's do: "noble"; default: the codename
	Origin     string
	Components map[string][]Package // by name: "main"
	Indexes    string               // compressions of the lists of packages, "gz", "xz" or both; default: "gz xz"
	ByHash     bool                 // they are there by their hashes too, and the pocket says so
}

// Deb gives the file of a package that dpkg-deb has written. Compression is "zstd", "xz" or "gzip".
func Deb(t testing.TB, p Package) string {
	t.Helper()
	dir := kept(t, "deb", p, func(dir string) error {
		root := filepath.Join(dir, "root")
		control := fmt.Sprintf("Package: %s\nVersion: %s\nArchitecture: %s\nMaintainer: distrotest <distrotest@example.org>\nDescription: test\n",
			p.Name, p.Version, p.Arch)
		for _, f := range []struct {
			name   string
			values []string
		}{{"Depends", p.Depends}, {"Provides", p.Provides}, {"Conflicts", p.Conflicts}} {
			if len(f.values) > 0 {
				control += f.name + ": " + strings.Join(f.values, ", ") + "\n"
			}
		}
		for _, line := range p.Fields {
			control += line + "\n"
		}
		if err := p.Files.With(Files{"DEBIAN/control": Text(control)}).write(root); err != nil {
			return err
		}
		if _, err := run("", "", "dpkg-deb", "--root-owner-group", "--uniform-compression", "-Z"+p.compression(), "-z1", "--build", root,
			filepath.Join(dir, p.base("_")+".deb")); err != nil {
			return err
		}
		return os.RemoveAll(root)
	})
	return filepath.Join(dir, p.base("_")+".deb")
}

// APT gives the folder of a signed archive.
func APT(t testing.TB, pockets ...Pocket) string {
	t.Helper()
	programs(t, "dpkg-deb", "apt-ftparchive", "gpg", "xz")
	debs := map[string]string{} // by place in the archive
	for _, k := range pockets {
		for component, list := range k.Components {
			k.Components[component] = sorted(list)
			for _, p := range list {
				file := Deb(t, p)
				debs[filepath.Join("pool", k.Codename, component, filepath.Base(file))] = file
			}
		}
	}
	private := key(t)
	return kept(t, "apt", []any{fingerprint(t), pockets}, func(dir string) error {
		for place, file := range debs {
			if err := link(file, filepath.Join(dir, place)); err != nil {
				return err
			}
		}
		for _, k := range pockets {
			if err := k.write(dir); err != nil {
				return err
			}
		}
		return withGPG(private, func(home string) error {
			for _, k := range pockets {
				at := filepath.Join(dir, "dists", k.Codename)
				if err := gpg(home, filepath.Join(at, "Release"), filepath.Join(at, "InRelease"), "--clearsign"); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

func link(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	return os.Link(from, to)
}

// write writes a pocket's indexes.
func (k Pocket) write(dir string) error {
	archs := map[string]bool{}
	for _, list := range k.Components {
		for _, p := range list {
			archs[p.Arch] = p.Arch != "all"
		}
	}
	maps.DeleteFunc(archs, func(_ string, real bool) bool { return !real })
	at := filepath.Join("dists", k.Codename)
	byHash := map[string][]byte{} // by place
	for component := range k.Components {
		pool := filepath.Join("pool", k.Codename, component)
		if err := os.MkdirAll(filepath.Join(dir, pool), 0o755); err != nil {
			return err
		}
		for arch := range archs {
			text, err := run(dir, "", "apt-ftparchive", "--arch", arch, "packages", pool)
			if err != nil {
				return err
			}
			folder := filepath.Join(dir, at, component, "binary-"+arch)
			if err := os.MkdirAll(folder, 0o755); err != nil {
				return err
			}
			kinds := strings.Fields(k.Indexes)
			if len(kinds) == 0 {
				kinds = []string{"gz", "xz"}
			}
			plain := filepath.Join(folder, "Packages")
			if err := os.WriteFile(plain, text, 0o644); err != nil {
				return err
			}
			for _, kind := range kinds {
				b, err := run("", string(text), map[string]string{"gz": "gzip", "xz": "xz"}[kind], "-c")
				if err != nil {
					return err
				}
				if err := os.WriteFile(plain+"."+kind, b, 0o644); err != nil {
					return err
				}
				byHash[folder+" "+kind] = b
			}
		}
	}
	suite := k.Suite
	if suite == "" {
		suite = k.Codename
	}
	args := []string{"release", at}
	for name, value := range map[string]string{
		"Origin": k.Origin, "Suite": suite, "Codename": cmp.Or(k.Series, k.Codename), "Components": strings.Join(slices.Sorted(maps.Keys(k.Components)), " "),
		"Architectures": strings.Join(slices.Sorted(maps.Keys(archs)), " "),
	} {
		args = append([]string{"-o", "APT::FTPArchive::Release::" + name + "=" + value}, args...)
	}
	release, err := run(dir, "", "apt-ftparchive", args...)
	if err != nil {
		return err
	}
	if k.ByHash {
		release = bytes.Replace(release, []byte("SHA256:\n"), []byte("Acquire-By-Hash: yes\nSHA256:\n"), 1)
		for place, b := range byHash {
			folder, _, _ := strings.Cut(place, " ")
			folder = filepath.Join(folder, "by-hash/SHA256")
			if err := os.MkdirAll(folder, 0o755); err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(folder, fmt.Sprintf("%x", sha256.Sum256(b))), b, 0o644); err != nil {
				return err
			}
		}
	}
	return os.WriteFile(filepath.Join(dir, at, "Release"), release, 0o644)
}
