package deb

import (
	_ "embed"
	"path"
	"slices"
	"strings"
)

// The Ubuntu Archive Automatic Signing Key (2018), F6ECB3762474EDA9D21B7022871920D1991BC93C, which signs the indexes of all suites since
// focal. It is as chisel.yaml of github.com/canonical/chisel-releases has it, and as the package ubuntu-keyring does. Only the key and
// what binds its user ID is kept of it. That of 2012, which signs focal beside it, isn't needed.
//
//go:embed keys/ubuntu.asc
var ubuntuKeys string

// ubuntu describes Ubuntu. Kernels and their headers are in the component main; a compiler that isn't the suite's default, and what
// else somebody may ask for, can be in universe, which is read only where main won't do. Packages of amd64 and i386 are in one archive,
// those of all other architectures in another.
func ubuntu() *distro {
	d := ubuntuIn("ubuntu", "http://archive.ubuntu.com/ubuntu")
	d.archs = []string{"amd64", "i386"}
	d.ports = ubuntuIn("ubuntu-ports", "http://ports.ubuntu.com/ubuntu-ports")
	return d
}

func ubuntuIn(name, url string) *distro {
	debian := debian()
	d := &distro{
		name:       "ubuntu",
		keyring:    ubuntuKeys,
		archives:   []archive{{name, url}},
		components: []string{"main", "universe"},
		tools:      debian.tools,
		prefer:     debian.prefer,
		moot:       debian.moot,
		headers:    ubuntuHeaders,
		forms:      ubuntuForms,
	}
	// PPAs have the suites' names and a component main too, at URLs that end in ubuntu; but no other component.
	d.isOurs = func(s aptSource) bool {
		more := slices.ContainsFunc(s.components, func(c string) bool { return c == "universe" || c == "restricted" })
		return (more || s.signedBy != "") && (path.Base(s.uri) == "ubuntu-ports") == (name == "ubuntu-ports")
	}
	for _, s := range []struct {
		name  string
		ended bool // mirrors have it no more; old-releases.ubuntu.com has
	}{
		// The series of distro-info-data's ubuntu.csv: 26.10, 26.04 LTS, 25.10 and so on.
		{"stonking", false}, {"resolute", false}, {"questing", true}, {"plucky", true}, {"oracular", true}, {"noble", false}, {"mantic", true},
		{"jammy", false}, {"focal", false},
	} {
		d.suites = append(d.suites, suite{name: s.name, ended: s.ended, pockets: []pocket{
			{name: s.name, archive: name, codename: s.name},
			{name: s.name + "-security", archive: name, codename: s.name},
			{name: s.name + "-updates", archive: name, codename: s.name},
		}})
	}
	return d
}

// ubuntuForms are what releases of Ubuntu's kernels look like: "6.8.0-31-generic", "6.8.0-1008-aws". The third number is always 0.
var ubuntuForms = func() []string {
	var out []string
	for _, flavour := range []string{"allwinner", "aws", "azure", "bluefield", "fips", "gcp", "generic", "gke", "gkeop", "ibm", "intel", "iot",
		"kvm", "laptop", "lowlatency", "nvidia", "oem", "oracle", "qcom", "raspi", "realtime", "starfive", "tegra", "xilinx"} {
		for _, more := range []string{"", "-64k", "-cvm", "-fde", "-fips", "-iotg", "-lowlatency", "-lpae", "-realtime", "-tegra", "-zynqmp"} {
			out = append(out, "[0-9]*.[0-9]*.0-[0-9]*-"+flavour+more)
		}
	}
	return out
}()

// ubuntuHeaders is distro.headers. Headers of a kernel depend on those that its flavours share: linux-headers-ABI of the suite's own
// kernel, linux-SOURCE-headers-ABI of those that came later (linux-hwe-6.17-headers-6.17.0-41) or serve one cloud. Their versions need not agree.
func ubuntuHeaders(k *candidate) (flavour string, isDefault, ok bool) {
	release, named := strings.CutPrefix(k.name, headersPrefix)
	version, rest, _ := strings.Cut(release, "-")
	number, flavour, _ := strings.Cut(rest, "-")
	if !named || k.all || flavour == "" || version == "" || !isDigit(version[0]) || number == "" || strings.Trim(number, "0123456789") != "" {
		return "", false, false
	}
	groups, err := parseDepends(k.depends)
	if err != nil {
		return "", false, false
	}
	abi := "headers-" + version + "-" + number
	for _, g := range groups {
		source, ok := strings.CutSuffix(g[0].name, abi)
		if ok && strings.HasPrefix(source, "linux-") {
			return flavour, flavour == "generic" && source == "linux-" && !k.backports, true
		}
	}
	return "", false, false
}
