package distrotest

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
)

// YUM is a repository of RPM packages.
type YUM struct {
	Packages [][]Package // each list is packed, and kept, for itself: other repositories with the same list have the same packages
	Index    string      // compression of primary.xml and the others: "gz" (default), "xz" or "zst"
	Sum      string      // what pins packages and lists: "sha256" (default) or "sha512", not with "zst"
	// What is signed.
	SignPackages, SignIndex bool
}

// RPM gives the folder with packages that rpmbuild has written, and signed if so wanted, NAME-VERSION.ARCH.rpm.
func RPM(t testing.TB, signed bool, packages ...Package) string {
	t.Helper()
	programs(t, "rpmbuild", "rpmsign")
	private, program := key(t), need.Program(t, "gpg")
	packages = sorted(packages)
	return kept(t, "rpm", []any{fingerprint(t), packages, signed}, func(dir string) error {
		for i, b := range batches(packages) {
			if err := b.build(dir, filepath.Join(dir, fmt.Sprintf("batch-%d", i))); err != nil {
				return err
			}
		}
		if !signed {
			return nil
		}
		return withGPG(private, func(home string) error {
			files, err := filepath.Glob(filepath.Join(dir, "*.rpm"))
			if err != nil {
				return err
			}
			_, err = run("", "", "rpmsign", append([]string{"--define", "_gpg_name " + signer, "--define", "_gpg_path " + home, "--define", "__gpg " + program, "--define", "_gpg_digest_algo sha256", "--addsign"}, files...)...)
			return err
		})
	})
}

// A batch is packages that one spec can make: no two of a name, and no file with two contents.
type batch struct {
	compression string
	packages    []Package
	files       Files
}

func batches(packages []Package) []*batch {
	var out []*batch
next:
	for _, p := range packages {
		for _, b := range out {
			if b.takes(p) {
				b.packages = append(b.packages, p)
				maps.Copy(b.files, p.Files)
				continue next
			}
		}
		out = append(out, &batch{p.compression(), []Package{p}, maps.Clone(p.Files)})
	}
	return out
}

func (b *batch) takes(p Package) bool {
	if b.compression != p.compression() || slices.ContainsFunc(b.packages, func(q Package) bool { return q.Name == p.Name }) {
		return false
	}
	for name, f := range p.Files {
		if other, ok := b.files[name]; ok && other != f {
			return false
		}
	}
	return true
}

func (b *batch) build(to, work string) error {
	stage := filepath.Join(work, "stage")
	if err := b.files.write(stage); err != nil {
		return err
	}
	var s strings.Builder
	fmt.Fprintf(&s, "Name: distrotest\nVersion: 1\nRelease: 1\nSummary: test\nLicense: none\n%%description\ntest\n")
	for _, p := range b.packages {
		epoch, version, ok := strings.Cut(p.Version, ":")
		if !ok {
			epoch, version = "", p.Version
		}
		version, release, ok := strings.Cut(version, "-")
		if !ok {
			return fmt.Errorf("%s: the version %q has no release", p.Name, p.Version)
		}
		fmt.Fprintf(&s, "%%package -n %s\nVersion: %s\nRelease: %s\nSummary: test\nAutoReqProv: no\n", p.Name, version, release)
		if epoch != "" {
			fmt.Fprintf(&s, "Epoch: %s\n", epoch)
		}
		if p.Arch == "noarch" {
			s.WriteString("BuildArch: noarch\n")
		}
		for _, f := range []struct {
			name   string
			values []string
		}{{"Requires", p.Depends}, {"Provides", p.Provides}, {"Conflicts", p.Conflicts}} {
			for _, v := range f.values {
				fmt.Fprintf(&s, "%s: %s\n", f.name, v)
			}
		}
		for _, line := range p.Fields {
			s.WriteString(line + "\n")
		}
		fmt.Fprintf(&s, "%%description -n %s\ntest\n%%files -n %s\n%%defattr(-,root,root,-)\n", p.Name, p.Name)
		for _, name := range slices.Sorted(maps.Keys(p.Files)) {
			fmt.Fprintf(&s, "\"/%s\"\n", name)
		}
	}
	s.WriteString("%install\nmkdir -p %{buildroot}\ncp -al " + stage + "/. %{buildroot}/\n")
	spec := filepath.Join(work, "distrotest.spec")
	if err := os.WriteFile(spec, []byte(s.String()), 0o644); err != nil {
		return err
	}
	args := []string{"-bb", "--quiet", "--target", "x86_64-linux"}
	for name, value := range map[string]string{
		"_topdir": work, "_rpmdir": to, "_build_name_fmt": "%%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm",
		"_binary_payload": map[string]string{"zstd": "w1.zstdio", "xz": "w1.xzdio", "gzip": "w1.gzdio"}[b.compression],
		"debug_package":   "%{nil}", "__os_install_post": "%{nil}", "_build_id_links": "none", "_buildhost": "localhost",
		"_binaries_in_noarch_packages_terminate_build": "0", "use_source_date_epoch_as_buildtime": "1", "clamp_mtime_to_source_date_epoch": "1",
	} {
		args = append(args, "--define", name+" "+value)
	}
	if _, err := run(work, "", "rpmbuild", append(args, spec)...); err != nil {
		return err
	}
	return os.RemoveAll(work)
}

// Repository gives the folder of a repository.
func (y YUM) Repository(t testing.TB) string {
	t.Helper()
	programs(t, "createrepo_c", "zstd")
	var dirs []string
	for i, list := range y.Packages {
		y.Packages[i] = sorted(list)
		dirs = append(dirs, RPM(t, y.SignPackages, list...))
	}
	private := key(t)
	return kept(t, "yum", []any{fingerprint(t), y}, func(dir string) error {
		for _, from := range dirs {
			files, err := filepath.Glob(filepath.Join(from, "*.rpm"))
			if err != nil {
				return err
			}
			for _, f := range files {
				base := filepath.Base(f)
				if err := link(f, filepath.Join(dir, "Packages", base[:1], base)); err != nil {
					return err
				}
			}
		}
		kind := y.Index
		if kind == "" || kind == "zst" {
			kind = "gz"
		}
		if _, err := run("", "", "createrepo_c", "--quiet", "--no-database", "--general-compress-type", kind, "--checksum", cmp.Or(y.Sum, "sha256"), "--set-timestamp-to-revision",
			"--revision", fmt.Sprint(epoch.Unix()), dir); err != nil {
			return err
		}
		repomd := filepath.Join(dir, "repodata/repomd.xml")
		if y.Index == "zst" { // which Debian's createrepo_c can't write yet
			if err := recompress(dir, repomd); err != nil {
				return err
			}
		}
		if !y.SignIndex {
			return nil
		}
		return withGPG(private, func(home string) error { return gpg(home, repomd, repomd+".asc", "--armor", "--detach-sign") })
	})
}

var location = regexp.MustCompile(`<location href="(repodata/[0-9a-f]+-[a-z]+\.xml)\.gz"/>`)

// recompress makes the lists of a repository, which are gzip's, zstd's.
func recompress(dir, repomd string) error {
	text, err := os.ReadFile(repomd)
	if err != nil {
		return err
	}
	for _, m := range location.FindAllStringSubmatch(string(text), -1) {
		old := filepath.Join(dir, m[1]+".gz")
		packed, err := os.ReadFile(old)
		if err != nil {
			return err
		}
		plain, err := run("", string(packed), "gzip", "-dc")
		if err != nil {
			return err
		}
		again, err := run("", string(plain), "zstd", "-q", "-c")
		if err != nil {
			return err
		}
		was, is := fmt.Sprintf("%x", sha256.Sum256(packed)), fmt.Sprintf("%x", sha256.Sum256(again))
		text = bytes.ReplaceAll(text, []byte(was), []byte(is))
		text = bytes.Replace(text, fmt.Appendf(nil, "<size>%d<", len(packed)), fmt.Appendf(nil, "<size>%d<", len(again)), 1)
		name := strings.Replace(m[1], was, is, 1)
		text = bytes.Replace(text, []byte(name+".gz"), []byte(name+".zst"), 1)
		if err := os.WriteFile(filepath.Join(dir, name+".zst"), again, fs.FileMode(0o644)); err != nil {
			return err
		}
		if err := os.Remove(old); err != nil {
			return err
		}
	}
	return os.WriteFile(repomd, text, 0o644)
}
