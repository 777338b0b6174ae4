package rpm

import (
	_ "embed"
	"strconv"
	"strings"
)

// The keys that sign packages and, where there are such signatures, indexes: from the package distribution-gpg-keys, which each
// distribution's own files are gathered in. Only the keys and what binds their user IDs and subkeys is kept of them. By fingerprint:
//
//	fedora      115DF9AEF857853EE8445D0A0727707EA15B79CC (40), 466CF2D8B60BC3057AA9453ED0622462E99D6AD1 (41),
//	            B0F4950458F69E1150C6C5EDC8AC4916105EF944 (42), C6E7F081CF80E13146676E88829B606631645531 (43),
//	            36F612DCF27F7D1A48A835E4DBFCF71C6D9F90A6 (44), 4F50A6114CD5C6976A7F1179655A4B02F577861E (45)
//	centos      99DB70FAE1D7CE227FB6488205B555B38483C65D
//	rocky       7051C470A929F454CEBE37B715AF5DAC6D745A60 (8), 21CB256AE16FC54C6E652949702D426D350D275D (9),
//	            FC226859C0860BF0DDB95B085B106C736FEDFC85 (10)
//	almalinux   5E9B8F5617B5066CE92057C3488FCF7C3ABB34F8 and BC5EDDCADF502C077F1582882AE81E8ACED7258B (8),
//	            BF18AC2876178908D6E71267D36CB86CB86B3716 (9), EE6DB7B98F5BF5EDD9DA0DE5DEE5C11CC2A1E572 (10)
//	rhel        567E347AD0044ADE55BA8A5F199E2F91FD431D51, 7E4624258C406535D56D6F135054E4A45A6340B3
//	ol          76FD3DB13AB67410B89DB10E82562EA9AD986DA3 (8), 3E6D826D3FBAB389C2F38E34BC4D06A08D8B756F and
//	            982231759C7467065D0CE9B2A7DD07088B4EFBE6 (9, 10)
//	opensuse    22C07BA534178CD02EFE22AAB88B2FD43DBDC284, AD485664E901B867051AB15F35A2F86E29B700A4,
//	            F044C2C507A1262B538AAADD8A49EB0325DB7AE0 (Backports)
//	suse        FEAB502539D846DB2C0961CA70AF9E8139DB7C82 (12, 15), 7F009157B127B994D5CFBE76F74F09BC3FA1D6CE (2023),
//	            1C59D66FCD52563A16933DBCFEC28EAF09D9EA69 (16)
//	amzn        B21C50FA44A99720EAA72F7FE951904AD832C631
var (
	//go:embed keys/fedora.asc
	fedoraKeys string
	//go:embed keys/centos.asc
	centosKeys string
	//go:embed keys/rocky.asc
	rockyKeys string
	//go:embed keys/almalinux.asc
	almalinuxKeys string
	//go:embed keys/rhel.asc
	rhelKeys string
	//go:embed keys/ol.asc
	olKeys string
	//go:embed keys/opensuse.asc
	opensuseKeys string
	//go:embed keys/suse.asc
	suseKeys string
	//go:embed keys/amzn.asc
	amznKeys string
)

// A distro describes one distribution. All its repositories are in one archive, which has its name.
type distro struct {
	name     string
	keyrings []string // armored OpenPGP public keys
	urls     []string // of the archive when nothing else is said; none: it's to be given
	give     string   // what --mirror takes where there is none: an example of a URL
	past     string   // an example of a URL that has what mirrors dropped
	// What vouches for a package. Indexes that are signed pin it by its digest, and what isn't signed is refused; where they
	// aren't, its own signature must be good. An index's signature that is there is checked in any case.
	signedIndexes, signedPackages bool
	names                         naming
	plain                         string  // flavour of the kernels that Candidate.Default means; empty: that of plain names
	suites                        []suite // newest first
}

// A naming is how a family of distributions names its kernels and what it calls the packages of a toolchain.
type naming int

const (
	redHat naming = iota
	suse
)

// A suite is one release of a distribution.
type suite struct {
	name   string
	folder string   // of all its repositories, below the archive's URL; empty: that itself
	forms  []string // shell patterns of its kernels' releases, without what is in ends behind them
	ends   []string
	repos  []repository
	// signers are the fingerprints of those of the distribution's keys that sign its indexes; none: all of them do. An index doesn't say
	// which release it is of: a mirror that has another release's in its place is found out by the key.
	signers []string
}

// A repository is a folder with repodata/ in it. $arch in its path is the distribution's name of the architecture.
type repository struct {
	name     string // "baseos"
	path     string // below the suite's folder
	ports    string // the same for other architectures than amd64, where it differs
	optional bool   // not every mirror, minor release or architecture has it
	listed   bool   // path/mirror.list, where there is one, says where it is
}

func (r repository) at(arch string) string {
	path := r.path
	if r.ports != "" && arch != "x86_64" {
		path = r.ports
	}
	return strings.ReplaceAll(path, "$arch", arch)
}

// architectures are the distributions' names of them, by Debian's.
var architectures = map[string]string{"amd64": "x86_64", "arm64": "aarch64", "ppc64el": "ppc64le", "s390x": "s390x", "riscv64": "riscv64"}

// distros are those that New takes. What --mirror takes is the URL of the folder that archives have the paths below; where these begin
// with a release's own folder, as in Rocky Linux, that one will do too, and stands for any minor release of it: vault/rocky/9.3.
func distros() []*distro {
	return []*distro{fedora(), centos(), rocky(), almalinux(), rhel(), oracle(), leap(), tumbleweed(), sles(), amazon()}
}

// fedora has its archive of past releases beside it, which is a mirror like any other.
func fedora() *distro {
	d := &distro{name: "fedora", keyrings: []string{fedoraKeys}, signedPackages: true,
		urls: []string{"https://dl.fedoraproject.org/pub/fedora/linux", "https://archives.fedoraproject.org/pub/archive/fedora/linux"}}
	for _, v := range []string{"45", "44", "43", "42", "41", "40"} {
		d.suites = append(d.suites, suite{name: v, forms: []string{"*.fc" + v}, ends: redHatEnds, repos: []repository{
			{name: "fedora", path: "releases/" + v + "/Everything/$arch/os"},
			{name: "updates", path: "updates/" + v + "/Everything/$arch", optional: true},
		}})
	}
	return d
}

// enterprise gives the forms of the kernels of an Enterprise Linux, the first without a minor release.
func enterprise(major string) []string {
	return []string{"*.el" + major, "*.el" + major + "_[0-9]", "*.el" + major + "_[0-9][0-9]"}
}

// elRepos are the repositories of Enterprise Linux as its public rebuilds have them.
func elRepos(major string) []repository {
	out := []repository{{name: "baseos", path: "BaseOS/$arch/os"}, {name: "appstream", path: "AppStream/$arch/os"}}
	more := []string{"CRB", "RT", "NFV"}
	if major == "8" {
		more[0] = "PowerTools"
	}
	for _, name := range more {
		out = append(out, repository{name: strings.ToLower(name), path: name + "/$arch/os", optional: true})
	}
	return out
}

func centos() *distro {
	d := &distro{name: "centos", keyrings: []string{centosKeys}, urls: []string{"https://mirror.stream.centos.org"},
		signedIndexes: true, signedPackages: true}
	for _, v := range []string{"10", "9"} {
		d.suites = append(d.suites, suite{name: v, folder: v + "-stream", forms: enterprise(v)[:1], ends: redHatEnds, repos: elRepos(v)})
	}
	return d
}

func rocky() *distro {
	return rebuild("rocky", rockyKeys, "https://dl.rockylinux.org/pub/rocky", "https://dl.rockylinux.org/vault/rocky/9.3", map[string][]string{
		"8":  {"7051C470A929F454CEBE37B715AF5DAC6D745A60"},
		"9":  {"21CB256AE16FC54C6E652949702D426D350D275D"},
		"10": {"FC226859C0860BF0DDB95B085B106C736FEDFC85"},
	})
}

func almalinux() *distro {
	return rebuild("almalinux", almalinuxKeys, "https://repo.almalinux.org/almalinux", "https://vault.almalinux.org/9.3", map[string][]string{
		"8":  {"5E9B8F5617B5066CE92057C3488FCF7C3ABB34F8", "BC5EDDCADF502C077F1582882AE81E8ACED7258B"},
		"9":  {"BF18AC2876178908D6E71267D36CB86CB86B3716"},
		"10": {"EE6DB7B98F5BF5EDD9DA0DE5DEE5C11CC2A1E572"},
	})
}

func rebuild(name, keys, url, past string, signers map[string][]string) *distro {
	d := &distro{name: name, keyrings: []string{keys}, urls: []string{url}, past: past, signedIndexes: true, signedPackages: true}
	for _, v := range []string{"10", "9", "8"} {
		d.suites = append(d.suites, suite{name: v, folder: v, forms: enterprise(v), ends: redHatEnds, repos: elRepos(v), signers: signers[v]})
	}
	return d
}

// rhel is laid out as Red Hat's content delivery network is below content/dist, and what Satellite publishes of it.
func rhel() *distro {
	d := &distro{name: "rhel", keyrings: []string{rhelKeys}, signedPackages: true,
		give: "https://satellite.example/pulp/content/ORGANISATION/Library/content/dist"}
	for _, v := range []string{"10", "9", "8"} {
		d.suites = append(d.suites, suite{name: v, folder: "rhel" + v + "/" + v, forms: enterprise(v), ends: redHatEnds, repos: []repository{
			{name: "baseos", path: "$arch/baseos/os"},
			{name: "appstream", path: "$arch/appstream/os"},
			{name: "codeready-builder", path: "$arch/codeready-builder/os", optional: true},
			{name: "rt", path: "$arch/rt/os", optional: true},
			{name: "nfv", path: "$arch/nfv/os", optional: true},
		}})
	}
	return d
}

// oracle has two lines of kernels: Red Hat's, and its own (UEK) in a repository for each of their releases.
func oracle() *distro {
	d := &distro{name: "ol", keyrings: []string{olKeys}, urls: []string{"https://yum.oracle.com/repo/OracleLinux"}, signedPackages: true,
		plain: "uek"}
	for _, v := range []struct {
		major string
		uek   []string
	}{{"10", []string{"UEKR8"}}, {"9", []string{"UEKR7", "UEKR8"}}, {"8", []string{"UEKR6", "UEKR7"}}} {
		s := suite{name: v.major, folder: "OL" + v.major, forms: append(enterprise(v.major), "*.el"+v.major+"uek", "*.el"+v.major+"uek64k"), ends: redHatEnds, repos: []repository{
			{name: "baseos", path: "baseos/latest/$arch"},
			{name: "appstream", path: "appstream/$arch"},
			{name: "codeready-builder", path: "codeready/builder/$arch", optional: true},
		}}
		for _, u := range v.uek {
			s.repos = append(s.repos, repository{name: strings.ToLower(u), path: u + "/$arch", optional: true})
		}
		d.suites = append(d.suites, s)
	}
	return d
}

// suseForms are those of SUSE's kernels from 15.3 on, whose package releases begin with the service pack's number: 150600.
func suseForms(version string) []string {
	major, minor, _ := strings.Cut(version, ".")
	return []string{"*-" + major + "0" + minor + "00.*"}
}

func leap() *distro {
	d := &distro{name: "opensuse-leap", keyrings: []string{opensuseKeys, suseKeys}, names: suse, signedIndexes: true,
		urls: []string{"https://download.opensuse.org"}}
	d.suites = append(d.suites, suite{name: "16.0", forms: suseForms("16.0"), ends: suseEnds, repos: []repository{
		{name: "oss", path: "distribution/leap/16.0/repo/oss/$arch"},
	}})
	for _, v := range []string{"15.6", "15.5"} {
		d.suites = append(d.suites, suite{name: v, forms: suseForms(v), ends: suseEnds, repos: []repository{
			{name: "oss", path: "distribution/leap/" + v + "/repo/oss"},
			{name: "update", path: "update/leap/" + v + "/oss", optional: true},
			{name: "sle-update", path: "update/leap/" + v + "/sle", optional: true},
			{name: "backports-update", path: "update/leap/" + v + "/backports", optional: true},
		}})
	}
	return d
}

// tumbleweed is a snapshot of some day each day, which history/ keeps the last of: a mirror is history/20261120 too.
func tumbleweed() *distro {
	return &distro{name: "opensuse-tumbleweed", keyrings: []string{opensuseKeys, suseKeys}, names: suse, signedIndexes: true,
		urls: []string{"https://download.opensuse.org"}, past: "https://download.opensuse.org/history/20261101",
		suites: []suite{{name: "rolling", forms: []string{"*-[0-9]", "*-[0-9][0-9]"}, ends: suseEnds, repos: []repository{
			{name: "oss", path: "tumbleweed/repo/oss", ports: "ports/$arch/tumbleweed/repo/oss"},
			{name: "update", path: "update/tumbleweed", ports: "ports/$arch/update/tumbleweed", optional: true},
		}}}}
}

// sles is laid out as the SUSE Customer Center is below SUSE/, and what RMT mirrors of it.
func sles() *distro {
	d := &distro{name: "sles", keyrings: []string{suseKeys}, names: suse, signedIndexes: true, give: "https://rmt.example/repo/SUSE"}
	d.suites = append(d.suites, suite{name: "16.0", forms: suseForms("16.0"), ends: suseEnds, repos: []repository{
		{name: "product", path: "Products/SLES/16.0/$arch/product"},
	}})
	for minor := 7; minor >= 4; minor-- {
		v := "15." + strconv.Itoa(minor)
		s := suite{name: v, forms: suseForms(v), ends: suseEnds}
		for i, module := range []string{"Basesystem", "Development-Tools", "Public-Cloud", "RT"} {
			name := strings.ToLower(module)
			path := "/SLE-Module-" + module + "/15-SP" + strconv.Itoa(minor) + "/$arch/"
			s.repos = append(s.repos, repository{name: name, path: "Products" + path + "product", optional: i > 1},
				repository{name: name + "-update", path: "Updates" + path + "update", optional: true})
		}
		d.suites = append(d.suites, s)
	}
	return d
}

// amazon has each of its releases in a folder of its own, of which latest is the newest; an older one is a mirror like any other:
// core/mirrors/2023.4.20240416. Where its repository is says a list there.
func amazon() *distro {
	return &distro{name: "amzn", keyrings: []string{amznKeys}, signedPackages: true,
		urls: []string{"https://cdn.amazonlinux.com/al2023/core/mirrors/latest"}, past: "https://cdn.amazonlinux.com/al2023/core/mirrors/2023.4.20240416",
		suites: []suite{{name: "2023", forms: []string{"*.amzn2023"}, ends: redHatEnds, repos: []repository{
			{name: "core", path: "$arch", listed: true},
		}}}}
}
