package images_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/images"
	"github.com/godkms-hermetic/godkms-hermetic/internal/distrotest"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/deb"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/pacman"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/rpm"
)

// Every distribution's kernel, in packages as it makes them, comes to the same file that boots and the same modules.
func TestKernelsOfDistributions(t *testing.T) {
	real := distrotest.Itself(t)
	boot, err := os.ReadFile(real.Boot.From)
	if err != nil {
		t.Fatal(err)
	}
	type list = []distrotest.Package
	type row struct {
		distro, suite, release string
		headers                kernels.Package // of the lock
		packages               list
		want                   []string // names, in order
	}
	media, rest := []string{"mc", "videodev"}, []string{"crc32c_generic", "libcrc32c", "dm_mod", "dm_bufio"}
	all := slices.Concat(media, rest)
	files := func(more ...distrotest.Files) distrotest.Files { return distrotest.Files{}.With(more...) }
	one := func(name string, f distrotest.File) distrotest.Files { return distrotest.Files{name: f} }
	header := func(name, version, arch string) kernels.Package {
		return kernels.Package{Name: name, Version: version, Arch: arch}
	}
	ubuntu := func(image, release, version, compression string, extra bool) list {
		lib := "lib/modules/" + release + "/"
		out := list{
			{Name: image + release, Version: version, Arch: "amd64", Depends: []string{"kmod", "linux-base (>= 4.5)", "linux-modules-" + release},
				Files: one("boot/vmlinuz-"+release, real.Boot)},
			{Name: image + release, Version: version + "9", Arch: "amd64", Files: one("boot/vmlinuz-"+release, distrotest.Text("newer"))},
			{Name: "linux-modules-" + release, Version: version, Arch: "amd64", Files: real.Below(lib, compression, all...).With(
				one(lib+"modules.builtin", distrotest.Text("kernel/fs/ext4/ext4.ko\n")))},
		}
		if extra {
			out[2].Files = real.Below(lib, compression, rest...)
			out = append(out, distrotest.Package{Name: "linux-modules-extra-" + release, Version: version, Arch: "amd64", Files: real.Below(lib, compression, media...)})
		}
		return out
	}
	// redHat are the packages of a flavour, without and with those of newer kernels.
	redHat := func(base, version, release, compression string) list {
		lib := "lib/modules/" + release + "/"
		p := func(name string, files distrotest.Files) distrotest.Package {
			return distrotest.Package{Name: base + name, Version: version, Arch: "x86_64", Compression: "zstd", Files: files}
		}
		return list{p("", one("usr/share/doc/"+base, distrotest.Text("all of them"))), p("-core", one(lib+"vmlinuz", real.Boot)),
			p("-modules-core", real.Below(lib, compression, rest...)), p("-modules", real.Below(lib, compression, "mc")),
			p("-modules-extra", real.Below(lib, compression, "videodev")),
			p("-modules-internal", one(lib+"internal/kunit.ko", distrotest.Text("for tests of their own"))),
			p("-debug-core", one(lib+"../debug/vmlinuz", distrotest.Text("another flavour")))}
	}
	single := func(name, version, release, compression string, more ...string) list {
		lib := "lib/modules/" + release + "/"
		out := list{{Name: name, Version: version, Arch: "x86_64", Compression: "xz", Files: files(one(lib+"vmlinuz", real.Boot),
			one("boot/vmlinuz-"+release, distrotest.Link("../lib/modules/"+release+"/vmlinuz")), real.Below(lib, compression, rest...))}}
		for i, m := range more {
			out = append(out, distrotest.Package{Name: name + m, Version: version, Arch: "x86_64", Compression: "xz", Files: real.Below(lib, compression, media[i])})
		}
		return out
	}
	rows := []row{
		{"ubuntu", "noble", "6.8.0-31-generic", header("linux-headers-6.8.0-31-generic", "6.8.0-31.31", "amd64"),
			ubuntu("linux-image-", "6.8.0-31-generic", "6.8.0-31.31", "zst", true),
			[]string{"linux-image-6.8.0-31-generic", "linux-modules-6.8.0-31-generic", "linux-modules-extra-6.8.0-31-generic"}},
		{"ubuntu", "jammy", "5.15.0-25-lowlatency", header("linux-headers-5.15.0-25-lowlatency", "5.15.0-25.25", "amd64"),
			ubuntu("linux-image-unsigned-", "5.15.0-25-lowlatency", "5.15.0-25.25", "", false),
			[]string{"linux-image-unsigned-5.15.0-25-lowlatency", "linux-modules-5.15.0-25-lowlatency"}},
		{"fedora", "43", "6.17.5-300.fc43.x86_64", header("kernel-devel", "6.17.5-300.fc43", "x86_64"),
			redHat("kernel", "6.17.5-300.fc43", "6.17.5-300.fc43.x86_64", "xz"), []string{"kernel-core", "kernel-modules", "kernel-modules-core", "kernel-modules-extra"}},
		{"rocky", "9", "5.14.0-427.13.1.el9_4.x86_64+rt", header("kernel-rt-devel", "5.14.0-427.13.1.el9_4", "x86_64"),
			redHat("kernel-rt", "5.14.0-427.13.1.el9_4", "5.14.0-427.13.1.el9_4.x86_64+rt", "xz"),
			[]string{"kernel-rt-core", "kernel-rt-modules", "kernel-rt-modules-core", "kernel-rt-modules-extra"}},
		{"ol", "9", "5.15.0-100.96.32.el9uek.x86_64", header("kernel-uek-devel", "5.15.0-100.96.32.el9uek", "x86_64"),
			single("kernel-uek", "5.15.0-100.96.32.el9uek", "5.15.0-100.96.32.el9uek.x86_64", "xz", "-modules", "-modules-extra"),
			[]string{"kernel-uek", "kernel-uek-modules", "kernel-uek-modules-extra"}},
		{"opensuse-leap", "15.6", "6.4.0-150600.23.7-default", header("kernel-default-devel", "6.4.0-150600.23.7.4", "x86_64"),
			single("kernel-default", "6.4.0-150600.23.7.4", "6.4.0-150600.23.7-default", "zst", "-extra", "-optional"),
			[]string{"kernel-default", "kernel-default-extra", "kernel-default-optional"}},
		{"amzn", "2023", "6.12.20-23.97.amzn2023.x86_64", header("kernel6.12-devel", "6.12.20-23.97.amzn2023", "x86_64"),
			single("kernel6.12", "6.12.20-23.97.amzn2023", "6.12.20-23.97.amzn2023.x86_64", "gz", "-modules-extra", "-modules-extra-common"),
			[]string{"kernel6.12", "kernel6.12-modules-extra", "kernel6.12-modules-extra-common"}},
		{"arch", "rolling", "6.8.9-arch1-2", header("linux-headers", "6.8.9.arch1-2", "x86_64"),
			list{{Name: "linux", Version: "6.8.9.arch1-2", Arch: "x86_64", Files: files(one("usr/lib/modules/6.8.9-arch1-2/vmlinuz", real.Boot),
				real.Below("usr/lib/modules/6.8.9-arch1-2", "zst", all...))}}, []string{"linux"}},
	}
	debian := "lib/modules/7.2.9+deb13-amd64/"
	rows = append(rows, row{"debian", "trixie", "7.2.9+deb13-amd64", header("linux-headers-7.2.9+deb13-amd64", "7.2.9-1~bpo13+1", "amd64"), list{
		{Name: "linux-image-7.2.9+deb13-amd64", Version: "7.2.9-1~bpo13+1", Arch: "amd64", Depends: []string{"linux-binary-7.2.9+deb13-amd64 (= 7.2.9-1~bpo13+1)",
			"linux-modules-7.2.9+deb13-amd64 (= 7.2.9-1~bpo13+1)", "linux-base-7.2.9+deb13-amd64 (= 7.2.9-1~bpo13+1)", "kmod"}, Files: one("usr/share/lintian/i", distrotest.Text("\n"))},
		{Name: "linux-binary-7.2.9+deb13-amd64", Version: "7.2.9-1~bpo13+1", Arch: "amd64", Files: one("usr/"+debian+"vmlinuz", real.Boot)},
		{Name: "linux-modules-7.2.9+deb13-amd64", Version: "7.2.9-1~bpo13+1", Arch: "amd64", Files: real.Below("usr/"+debian, "xz", all...)},
		{Name: "linux-base-7.2.9+deb13-amd64", Version: "7.2.9-1~bpo13+1", Arch: "amd64", Files: one("usr/"+debian+"modules.builtin", distrotest.Text("kernel/fs/ext4/ext4.ko\n"))},
	}, []string{"linux-base-7.2.9+deb13-amd64", "linux-binary-7.2.9+deb13-amd64", "linux-image-7.2.9+deb13-amd64", "linux-modules-7.2.9+deb13-amd64"}})
	places := map[string][]string{"fedora": {"releases/43/Everything/x86_64/os"}, "rocky": {"9/BaseOS/x86_64/os", "9/AppStream/x86_64/os"},
		"ol": {"OL9/baseos/latest/x86_64", "OL9/appstream/x86_64"}, "opensuse-leap": {"distribution/leap/15.6/repo/oss"}, "amzn": {"x86_64"}}
	for _, r := range rows {
		t.Run(r.distro+" "+r.suite, func(t *testing.T) {
			t.Parallel()
			dir := ""
			switch r.distro {
			case "ubuntu", "debian":
				dir = distrotest.APT(t, distrotest.Pocket{Codename: r.suite, Suite: r.suite, Series: r.suite, Origin: "Test",
					Components: map[string][]distrotest.Package{"main": r.packages}, ByHash: true})
			case "arch":
				dir = distrotest.Mirror(t, distrotest.Pacman{Name: "core", Packages: r.packages}, distrotest.Pacman{Name: "extra", Packages: list{
					{Name: "other", Version: "1-1", Arch: "x86_64", Files: one("usr/share/other", distrotest.Text("\n"))}}})
			default:
				dir = t.TempDir()
				from := distrotest.YUM{Packages: [][]distrotest.Package{r.packages}, SignPackages: true, SignIndex: true}.Repository(t)
				for _, place := range places[r.distro] {
					at := filepath.Join(dir, place)
					if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.Symlink(from, at)); err != nil {
						t.Fatal(err)
					}
				}
			}
			var p kernels.Provider
			var s *images.Store
			mirrors := map[string][]string{r.distro: {distrotest.Serve(t, dir)}}
			if r.distro == "debian" {
				mirrors["debian-security"] = mirrors["debian"]
			}
			o := repo.Options{CacheDir: t.TempDir(), Mirrors: mirrors, Keyring: distrotest.Keyring(t), Etc: t.TempDir(),
				Fetch: func(ctx context.Context, p kernels.Package) (io.ReadCloser, error) { return s.Package(ctx, p) }}
			var err error
			switch r.distro {
			case "ubuntu", "debian":
				p, err = deb.New(r.distro, o)
			case "arch":
				p, err = pacman.New(r.distro, o)
			default:
				p, err = rpm.New(r.distro, o)
			}
			if err != nil {
				t.Fatal(err)
			}
			s, err = images.Open(images.Options{Dir: t.TempDir(), Payload: func(_ string, pkg io.Reader) (io.ReadCloser, error) { return p.Payload(pkg) }})
			if err != nil {
				t.Fatal(err)
			}
			lock := kernels.Lock{Kernel: kernels.Kernel{Distro: r.distro, Suite: r.suite, Arch: "amd64", Release: r.release}, Headers: []kernels.Package{r.headers}}
			img, err := p.Image(t.Context(), lock)
			if err != nil {
				t.Fatal(err)
			}
			var names []string
			for _, p := range img.Packages {
				names = append(names, p.Name)
				if p.Version != r.headers.Version {
					t.Errorf("%s is %s; want the version of the headers, %s", p.Name, p.Version, r.headers.Version)
				}
			}
			if !slices.Equal(names, r.want) {
				t.Errorf("packages are %q; want %q", names, r.want)
			}
			k, err := s.Kernel(t.Context(), img, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer k.Close()
			if got, err := os.ReadFile(k.Path()); err != nil || !bytes.Equal(got, boot) {
				t.Errorf("what boots has %d bytes, %v; want the %d of the real one", len(got), err, len(boot))
			}
			got, err := k.Resolve([]string{"videodev", "libcrc32c", "dm-bufio"})
			if err != nil || !slices.Equal(got, all) {
				t.Errorf("Resolve: %q, %v; want %q", got, err, all)
			}
			for _, name := range got {
				want, _ := os.ReadFile(real.Modules[name].From)
				if b, err := k.Read(name); err != nil || !bytes.Equal(b, want) {
					t.Errorf("module %s has %d bytes, %v; want the %d of the real one", name, len(b), err, len(want))
				}
			}
			// The index goes on without the version of the headers.
			gone := strings.NewReplacer("-1", "-8", "-2", "-8", "-300", "-8", "-3", "-8", "-4", "-8") // of which a release of Arch's follows
			lock.Headers[0].Version = gone.Replace(r.headers.Version)
			if r.distro == "arch" {
				lock.Kernel.Release = gone.Replace(r.release)
			}
			_, err = p.Image(t.Context(), lock)
			if !errors.Is(err, kernels.ErrNotFound) || !strings.Contains(err.Error(), "the headers are "+lock.Headers[0].Version+", and the index has ") ||
				!strings.Contains(err.Error(), " "+r.headers.Version) {
				t.Errorf("another version: %v; want one that wraps ErrNotFound, and says what there is", err)
			}
		})
	}
}
