package rpm

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

func newTestProvider(t *testing.T, distro string, mirrors ...string) *Provider {
	t.Helper()
	o := repo.Options{CacheDir: t.TempDir()}
	if mirrors != nil {
		o.Mirrors = map[string][]string{distro: mirrors}
	}
	p, err := New(distro, o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// The embedded keys are those that the comment names, and can sign.
func TestKeys(t *testing.T) {
	text, err := os.ReadFile("distros.go")
	if err != nil {
		t.Fatal(err)
	}
	var named, have []string
	named = append(named, regexp.MustCompile(`[0-9A-F]{40}`).FindAllString(string(text), -1)...)
	for name := range Distros() {
		keys, err := newTestProvider(t, name).keys()
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range keys {
			have = append(have, fmt.Sprintf("%X", k.PrimaryKey.Fingerprint))
			if len(k.Identities) == 0 {
				t.Errorf("%s: key %X has no user ID", name, k.PrimaryKey.Fingerprint)
			}
		}
	}
	for _, list := range []*[]string{&named, &have} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	if !slices.Equal(named, have) {
		t.Errorf("embedded are %v\nnamed are %v", have, named)
	}
}

// Each release's indexes are signed with keys of its own, where the distribution has such: those of the others aren't taken.
func TestSigners(t *testing.T) {
	for _, name := range []string{"rocky", "almalinux"} {
		p := newTestProvider(t, name)
		seen := map[string]string{}
		for _, s := range p.distro.suites {
			keys, err := p.signers(s)
			if err != nil || len(keys) == 0 || len(keys) != len(s.signers) {
				t.Errorf("%s %s: %d keys, error %v; want %q", name, s.name, len(keys), err, s.signers)
			}
			for _, k := range keys {
				id := k.PrimaryKey.KeyIdString()
				if seen[id] != "" {
					t.Errorf("%s: key %s is of %s and of %s", name, id, seen[id], s.name)
				}
				seen[id] = s.name
			}
		}
	}
}

func TestClaims(t *testing.T) {
	for release, want := range map[string]string{
		"6.8.9-300.fc43.x86_64":           "fedora/43",
		"5.14.0-427.13.1.el9_4.x86_64":    "almalinux/9 ol/9 rocky/9",
		"5.14.0-427.13.1.el9_4.x86_64+rt": "almalinux/9 ol/9 rocky/9",
		"5.14.0-427.el9.x86_64":           "almalinux/9 centos/9 ol/9 rocky/9",
		"4.18.0-553.el8_10.x86_64":        "almalinux/8 ol/8 rocky/8",
		"5.15.0-100.96.32.el9uek.x86_64":  "ol/9",
		"6.1.90-99.173.amzn2023.x86_64":   "amzn/2023",
		"6.4.0-150600.21-default":         "opensuse-leap/15.6",
		"5.14.21-150500.55.7-default":     "opensuse-leap/15.5",
		"6.12.0-160000.5-default":         "opensuse-leap/16.0",
		"6.17.8-1-default":                "opensuse-tumbleweed/rolling",
		"6.4.0-150600.10.5-rt":            "opensuse-leap/15.6",
		"*.el9uek.*":                      "ol/9",
		"*.el1[0-9].*":                    "almalinux/10 centos/10 ol/10 rocky/10",
		"6.1.0-56-amd64":                  "",
		"6.8.0-31-generic":                "",
		"6.12.10-arch1-1":                 "",
		"6.1.0-9-rt-amd64":                "",
	} {
		var got []string
		for name := range Distros() {
			for _, s := range newTestProvider(t, name).Claims(release) {
				got = append(got, name+"/"+s)
			}
		}
		slices.Sort(got)
		if strings.Join(got, " ") != want {
			t.Errorf("%s: claimed by %v; want %s", release, got, want)
		}
	}
	if got := newTestProvider(t, "rhel", "https://satellite.example/dist").Claims("5.14.0-427.el9.x86_64"); !slices.Equal(got, []string{"9"}) {
		t.Errorf("RHEL with a mirror claims %v; want 9", got)
	}
}

func TestRoots(t *testing.T) {
	for _, c := range []struct{ distro, suite, mirror, want string }{
		{"rocky", "9", "https://m/pub/rocky", "https://m/pub/rocky/9"},
		{"rocky", "9", "https://m/vault/rocky/9.3", "https://m/vault/rocky/9.3"},
		{"rocky", "8", "https://m/vault/rocky/9.3", ""},
		{"rocky", "9", "https://m/rocky/9", "https://m/rocky/9"},
		{"centos", "10", "https://m", "https://m/10-stream"},
		{"rhel", "9", "https://m/content/dist", "https://m/content/dist/rhel9/9"},
		{"rhel", "9", "https://m/content/dist/rhel9/9.4", "https://m/content/dist/rhel9/9.4"},
		{"ol", "9", "https://m/OracleLinux", "https://m/OracleLinux/OL9"},
		{"opensuse-leap", "15.6", "https://m", "https://m"},
	} {
		p := newTestProvider(t, c.distro, c.mirror)
		i := slices.IndexFunc(p.distro.suites, func(s suite) bool { return s.name == c.suite })
		if got := strings.Join(p.distro.suites[i].roots(p.mirrors), " "); got != c.want {
			t.Errorf("%s %s at %s: %q; want %q", c.distro, c.suite, c.mirror, got, c.want)
		}
	}
}

func TestReleases(t *testing.T) {
	for _, c := range []struct {
		release func(*pkg, string) (string, bool)
		pkg     pkg
		want    string
	}{
		{redHatRelease, pkg{name: "kernel-devel", version: "6.8.9-300.fc40", arch: "x86_64"}, "6.8.9-300.fc40.x86_64"},
		{redHatRelease, pkg{name: "kernel-rt-devel", version: "5.14.0-427.el9", arch: "x86_64"}, "5.14.0-427.el9.x86_64+rt"},
		{redHatRelease, pkg{name: "kernel-rt-devel", version: "4.18.0-553.rt7.342.el8_10", arch: "x86_64"}, "4.18.0-553.rt7.342.el8_10.x86_64"},
		{redHatRelease, pkg{name: "kernel-64k-debug-devel", version: "5.14.0-427.el9", arch: "aarch64"}, "5.14.0-427.el9.aarch64+64k-debug"},
		{redHatRelease, pkg{name: "kernel-tools-libs-devel", version: "5.14.0-427.el9", arch: "x86_64"}, ""},
		{suseRelease, pkg{name: "kernel-default-devel", version: "6.4.0-150600.21.3", requires: "make\nkernel-devel = 6.4.0-150600.21\n"}, "6.4.0-150600.21-default"},
		{suseRelease, pkg{name: "kernel-default-devel", version: "6.4.0-150600.21.3", requires: "kernel-devel = 6.4.0-150600.21.3\n"}, "6.4.0-150600.21-default"},
		{suseRelease, pkg{name: "kernel-rt-devel", version: "6.4.0-150600.10.5.2", requires: "kernel-devel-rt = 6.4.0-150600.10.5\n"}, "6.4.0-150600.10.5-rt"},
		{suseRelease, pkg{name: "kernel-default-livepatch-devel", version: "6.4.0-150600.21.3", requires: "kernel-default-devel\n"}, ""},
	} {
		flavour, ok := flavourOf(c.pkg.name)
		if !ok {
			t.Fatalf("%s has no flavour", c.pkg.name)
		}
		if got, _ := c.release(&c.pkg, flavour); got != c.want {
			t.Errorf("%s %s: %q; want %q", c.pkg.name, c.pkg.version, got, c.want)
		}
	}
}

// A list that nobody signed can't name a kernel as no kernel is named.
func TestReleasesSaid(t *testing.T) {
	p := newPool("x86_64", []source{{index: compact(t, packages("kernel-devel 6.8.9-300.fc40; Provides: kernel-devel-uname-r = 6.8.9-300.fc40.x86_64'$(id)'\n"+
		"kernel-devel 6.8.8-300.fc40; Provides: kernel-devel-uname-r = 6.8.8-300.fc40.x86_64")), base: "http://mirror"}})
	list, err := p.kernels(fedora(), "40", "amd64")
	if err != nil || len(list) != 1 || list[0].Release != "6.8.8-300.fc40.x86_64" {
		t.Errorf("kernels are %v, error %v; want 6.8.8-300.fc40.x86_64 alone", list, err)
	}
}

func TestCompilerVersions(t *testing.T) {
	for _, c := range []struct {
		version, line string
		want          bool
	}{{"13.2.1+git8285", "13", true}, {"13.2.1", "13.2", true}, {"13", "13", true}, {"130", "13", false}, {"1.3", "13", false}} {
		if got := isVersion(c.version, c.line); got != c.want {
			t.Errorf("isVersion(%q, %q) = %v", c.version, c.line, got)
		}
	}
}
