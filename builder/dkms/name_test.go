package dkms

import (
	"slices"
	"strings"
	"testing"
)

func TestRead(t *testing.T) {
	long := strings.Repeat("x", maxValue)
	for _, tt := range []struct{ conf, name, version, err string }{
		{conf: "PACKAGE_NAME=a\nPACKAGE_VERSION=1\n", name: "a", version: "1"},
		{conf: "PACKAGE_NAME=\"a-b\"\r\nPACKAGE_VERSION='1.2~rc1'\r\n", name: "a-b", version: "1.2~rc1"},
		{conf: "V=1\nPACKAGE_VERSION=\"$V.0\"\nPACKAGE_NAME[0]=x${V}", name: "x1", version: "1.0"},
		{conf: "if [ -f /etc/passwd ]; then . /etc/passwd; fi\nPACKAGE_NAME=a PACKAGE_VERSION=1", name: "a", version: "1"},
		{conf: "PACKAGE_NAME=a\nPACKAGE_VERSION=$(cat VERSION)", err: "no PACKAGE_VERSION that can be read without running"},
		{conf: "PACKAGE_VERSION=1", err: "no PACKAGE_NAME"},
		{conf: "PACKAGE_NAME=a/../b\nPACKAGE_VERSION=1", err: `PACKAGE_NAME is "a/../b"`},
		{conf: "PACKAGE_NAME=..\nPACKAGE_VERSION=1", err: `PACKAGE_NAME is ".."`},
		{conf: "if then fi (", err: "not valid bash"},
		{conf: "x=aaaaaaaa\n" + strings.Repeat("x=$x$x\n", 60) + "PACKAGE_NAME=$x\nPACKAGE_VERSION=1", err: "no PACKAGE_NAME"},
		{conf: "V=1-2\nPACKAGE_NAME=a\nPACKAGE_VERSION=${V//-/.}", name: "a", version: "1.2"},
		{conf: "PACKAGE_NAME=a\nPACKAGE_VERSION=<(cat VERSION)", err: "no PACKAGE_VERSION"},
		{conf: "x=" + long + "\nPACKAGE_NAME=a\nPACKAGE_VERSION=" + strings.Repeat("${x//x/", 5) + "$x" + strings.Repeat("}", 5), err: "no PACKAGE_VERSION"},
		{conf: "x=" + long + "\nPACKAGE_NAME=a\nPACKAGE_VERSION=${x#" + strings.Repeat("$x", 20_000) + "}", err: "no PACKAGE_VERSION"},
		{conf: strings.Repeat("#", MaxConf+1), err: "at most"},
	} {
		h, err := Read([]byte(tt.conf))
		if tt.err != "" {
			if err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("Read(%.60q) = %v; want an error with %q", tt.conf, err, tt.err)
			}
			continue
		}
		if err != nil || h.Name != tt.name || h.Version != tt.version {
			t.Errorf("Read(%.60q) = %q, %q, %v; want %q, %q", tt.conf, h.Name, h.Version, err, tt.name, tt.version)
		}
	}
}

// AUTOINSTALL counts where it may be yes for a kernel, and POST_ADD as it is assigned always.
func TestReadForHosts(t *testing.T) {
	const head = "PACKAGE_NAME=a\nPACKAGE_VERSION=1\n"
	for _, tt := range []struct {
		conf, postAdd string
		auto          bool
	}{
		{"", "", false},
		{"AUTOINSTALL=yes", "", true},
		{"AUTOINSTALL=\"YES\"\r\n", "", true},
		{"AUTOINSTALL=yes\nAUTOINSTALL=no", "", false},
		{"AUTOINSTALL=maybe", "", false},
		{"[ $kernelver = 6 ] && AUTOINSTALL=yes", "", true},
		{"AUTOINSTALL=no\nif x; then AUTOINSTALL=Yes; fi", "", true},
		{"if x; then AUTOINSTALL=no; POST_ADD=x; fi", "", false},
		{"POST_ADD='scripts/add.sh $a b'", "scripts/add.sh $a b", false},
	} {
		h, err := Read([]byte(head + tt.conf))
		if err != nil || h.Autoinstall != tt.auto || h.PostAdd != tt.postAdd {
			t.Errorf("Read(%q) = %v, %q, %v; want %v, %q", tt.conf, h.Autoinstall, h.PostAdd, err, tt.auto, tt.postAdd)
		}
	}
}

// Whatever a name of BUILD_DEPENDS depends on, it is known before the sandbox is, unless it takes a program to make it.
func TestBuildDepends(t *testing.T) {
	const head = "PACKAGE_NAME=a\nPACKAGE_VERSION=1\n"
	for _, tt := range []struct {
		conf string
		want []string
	}{
		{"", nil},
		{"BUILD_DEPENDS=spl", []string{"spl"}},
		{"BUILD_DEPENDS[0]=\"b\"\r\nBUILD_DEPENDS[1]='c'\r\n", []string{"b", "c"}},
		{"BUILD_DEPENDS=(b c)\nBUILD_DEPENDS+=(d b)", []string{"b", "c", "d"}},
		{"if [[ $kernelver == 6.* ]]; then BUILD_DEPENDS=\"$PACKAGE_NAME-common\"; fi", []string{"a-common"}},
		{"f() { declare -ga BUILD_DEPENDS[2]=e; }\ncase x in x) BUILD_DEPENDS=g;; esac", []string{"e", "g"}},
		{"BUILD_DEPENDS=$(ls)\nBUILD_DEPENDS+=(<(ls))\nBUILD_DEPENDS[1]=../x\nBUILD_DEPENDS[2]=", nil},
	} {
		h, err := Read([]byte(head + tt.conf))
		if err != nil || !slices.Equal(h.BuildDepends, tt.want) {
			t.Errorf("Read(%q) = %q, %v; want %q", tt.conf, h.BuildDepends, err, tt.want)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("PACKAGE_NAME=a\nPACKAGE_VERSION=${x:=1}\n"))
	f.Add([]byte("PACKAGE_NAME=${a/$b/{1..9}}\nPACKAGE_VERSION=$((1<<3))\ndeclare -a q=(1 2)\n"))
	f.Add([]byte("PACKAGE_NAME=<(a)\nBUILD_DEPENDS=(\"${x//a/$b}\" >(b))\n"))
	f.Fuzz(func(t *testing.T, conf []byte) {
		h, err := Read(conf)
		if err != nil {
			return
		}
		for _, name := range append(h.BuildDepends, h.Name, h.Version) {
			if !validName.MatchString(name) {
				t.Errorf("Read(%q) = %+v", conf, h)
			}
		}
	})
}

func TestInstallable(t *testing.T) {
	for _, tt := range []struct {
		distro, folder string
		want           bool
	}{
		{"debian", "updates/dkms", true}, {"debian", "updates", false}, {"debian", "build", false}, {"debian", "", false},
		{"fedora", "extra", true}, {"fedora", "updates/dkms", false}, {"opensuse-leap", "updates", true}, {"sles", "extra", false},
		{"almalinux", "extra", true}, {"ol", "extra", true}, {"amzn", "updates", false}, {"arch", "updates/dkms", true},
		{"alpine", "kernel/drivers/net", true}, {"alpine", "extra", true}, {"alpine", "build", false}, {"alpine", ".", false},
		{"alpine", "kernel/../build", false}, {"alpine", "/kernel", false}, {"alpine", "source/kernel", false},
	} {
		if got := Installable(tt.distro, tt.folder); got != tt.want {
			t.Errorf("Installable(%q, %q) = %v; want %v", tt.distro, tt.folder, got, tt.want)
		}
	}
}
