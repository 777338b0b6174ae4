package dkms

import (
	"strings"
	"testing"
)

// What dkms makes of a conf this package makes of it too: the modules, the make command, the patches, the exclusion, the faults.
func TestSame(t *testing.T) {
	const one = "DEST_MODULE_LOCATION=/extra\n"
	confs := []string{
		one,
		"",
		one + `MAKE="'make' all"`,
		one + `MAKE='make K=$kernelver'`,
		one + `MAKE='make K=\$kernelver'`,
		one + "MAKE=\"make a\n\t b\"",
		one + "MAKE=\" make a \"",
		one + "MAKE=\"make all\"\r\n\r\nSTRIP=no\r",
		one + `MAKE="make CFLAGS=\"-O2 -g\" all"`,
		one + `MAKE="make X='a  b'"`,
		one + `MAKE="make X=\\\"a\\\""`,
		one + `MAKE[0]="make a"; MAKE[1]="make b"; MAKE_MATCH[1]="^6\.1"`,
		one + `MAKE[0]="make a"; MAKE_MATCH[0]="^5"`,
		one + `MAKE[0]="make a"; MAKE_MATCH[0]="^6"; MAKE[1]="make b"; MAKE_MATCH[1]="amd64"; MAKE[2]="make c"; MAKE_MATCH[2]="^5"`,
		one + `MAKE=("make a" "make b"); MAKE_MATCH=(^5 ^6)`,
		one + `MAKE[0]=; MAKE_MATCH[0]=^6`,
		one + `[[ ${kernelver%%.*} -ge 6 ]] && MAKE="make new" || MAKE="make old"`,
		one + `if [ -n "$kernel_config" ]; then MAKE="make $(basename $kernel_source_dir)"; fi`,
		one + `MAKE="make -C $source_tree/$module-$module_version $install_tree $parallel_jobs $arch"`,
		one + `BUILT_MODULE_NAME=a; BUILT_MODULE_LOCATION=src/deep; DEST_MODULE_NAME=b`,
		one + `BUILT_MODULE_NAME=src/a; DEST_MODULE_NAME=b`,
		`BUILT_MODULE_NAME=(a b); DEST_MODULE_LOCATION=(/extra /kernel/fs/); STRIP=(no)`,
		`BUILT_MODULE_NAME=(a b c); DEST_MODULE_LOCATION=(/extra /kernel/fs/ /updates); STRIP=(no yes)`,
		`BUILT_MODULE_NAME=(a b c); DEST_MODULE_LOCATION=(/extra /kernel/fs/ /updates); STRIP=(no maybe Nope)`,
		`BUILT_MODULE_NAME=(a b); DEST_MODULE_LOCATION=(/extra /extra); STRIP[0]=maybe`,
		`BUILT_MODULE_NAME=(a a); BUILT_MODULE_LOCATION=(x y); DEST_MODULE_NAME=(b c); DEST_MODULE_LOCATION=(/extra /extra)`,
		`BUILT_MODULE_NAME[1]=a; DEST_MODULE_LOCATION[1]=/extra`,
		`for m in a b; do BUILT_MODULE_NAME[$i]=$m; DEST_MODULE_LOCATION[$((i++))]=/extra; done`,
		one + `PATCH[0]=all.patch; PATCH[1]=five.patch; PATCH_MATCH[1]=^5; PATCH[2]=six.patch; PATCH_MATCH[2]='^6\.[0-9]'`,
		one + `PATCH=(six.patch all.patch six.patch); PATCH_MATCH=([1]=rt)`,
		one + `BUILD_EXCLUSIVE_KERNEL='^(5|6)\.'`,
		one + `BUILD_EXCLUSIVE_KERNEL='^5'`,
		one + `BUILD_EXCLUSIVE_ARCH='i?86|aarch64'`,
		one + `BUILD_EXCLUSIVE_KERNEL_MIN=6.1`,
		one + `BUILD_EXCLUSIVE_KERNEL_MIN=6.10`,
		one + `BUILD_EXCLUSIVE_KERNEL_MAX=6.0`,
		one + `BUILD_EXCLUSIVE_KERNEL_MAX=6.2; OBSOLETE_BY=5`,
		one + `OBSOLETE_BY=5.10`,
		one + `BUILD_EXCLUSIVE_CONFIG="CONFIG_ACPI !CONFIG_SMP"`,
		one + `BUILD_EXCLUSIVE_CONFIG="CONFIG_DRM !CONFIG_ACPI"`,
		one + `BUILD_DEPENDS=(a "" b); BUILD_DEPENDS_REBUILD=YES; AUTOINSTALL=no; NO_WEAK_MODULES=nO`,
		one + `PRE_BUILD="a.sh $kernelver"; POST_BUILD=b; POST_ADD=c; PRE_INSTALL="d  e"; POST_INSTALL=f; POST_REMOVE=g`,
		one + `CLEAN="make clean"; REMAKE_INITRD=yes; MODULES_CONF[0]="alias a b"`,
		one + `declare -a MAKE; MAKE[0]="make a"; declare -i N=3; export CLEAN`,
		one + `unset kernelver; kernelver=5.10; MAKE="make $kernelver"; BUILD_EXCLUSIVE_KERNEL=^6`,
		one + `MAKE="make a"; return 1; MAKE="make b"`,
		one + `MAKE="make a"; exit 3`,
		one + `MAKE="make ${UNSET-default} ${#arch} ${arch^^} $((1+2))"`,
		one + `set -e; false; MAKE=b`,
		one + `set -u; MAKE=$nothing`,
		// The error column.
		`BUILT_MODULE_NAME=a`,
		`BUILT_MODULE_NAME=(a.ko); DEST_MODULE_LOCATION=/extra`,
		`BUILT_MODULE_NAME=(a); DEST_MODULE_NAME=b.o; DEST_MODULE_LOCATION=/extra`,
		`DEST_MODULE_LOCATION=/usr/lib`,
		`DEST_MODULE_LOCATION=extra`,
		`BUILT_MODULE_NAME=(a [2]=b); DEST_MODULE_LOCATION=(/extra /extra /extra)`,
		`BUILT_MODULE_NAME=(a b); DEST_MODULE_LOCATION=(/extra)`,
		`BUILT_MODULE_NAME=(a a); DEST_MODULE_NAME=(b c); DEST_MODULE_LOCATION=(/extra /extra)`,
		`BUILT_MODULE_NAME=(a b); DEST_MODULE_NAME=(c c); DEST_MODULE_LOCATION=(/extra /extra)`,
		`BUILT_MODULE_NAME=(a b); DEST_MODULE_NAME=(b); DEST_MODULE_LOCATION=(/extra /extra)`,
		one + `AUTOINSTALL=maybe`,
		one + `BUILD_DEPENDS_REBUILD=1`,
		one + `NO_WEAK_MODULES=true`,
		one + `PACKAGE_NAME=`,
		one + `unset PACKAGE_VERSION`,
	}
	for i := range confs {
		confs[i] = head + confs[i] + "\n"
	}
	bad := 0
	for i, theirs := range asDKMS(t, confs, Input{}, bookworm) {
		if ours := asWe(t, Input{Conf: []byte(confs[i])}, bookworm); differ(ours, theirs) {
			t.Errorf("%s\nours: %s\ntheirs: %s", confs[i], ours, theirs)
		}
		if theirs.code != 0 {
			bad++
		}
	}
	if bad < 14 || bad > len(confs)/2 {
		t.Errorf("dkms refuses %d of %d confs", bad, len(confs))
	}
}

// Overrides are read in dkms's order, each with what those before it left; then come the directives of the command line.
func TestSameOverrides(t *testing.T) {
	conf := head + "DEST_MODULE_LOCATION=/extra\nMAKE[0]='make conf'\nPRE_BUILD=a.sh\nSTRIP=no\n"
	var all []Override
	for i, name := range bookworm.OverrideNames() {
		all = append(all, Override{name, []byte("PRE_BUILD=\"$PRE_BUILD " + name + "\"\nBUILD_DEPENDS[" + string(rune('0'+i)) + "]=x\n")})
	}
	for _, tt := range []struct {
		name string
		in   Input
		want string // in dkms's understanding
	}{
		{"all", Input{Overrides: all}, `PRE_BUILD[0] "a.sh m.conf m-1.conf m-1-6.1.0-56-amd64.conf m-1-6.1.0-56-amd64-x86_64.conf m--6.1.0-56-amd64.conf m--6.1.0-56-amd64-x86_64.conf"`},
		{"one", Input{Overrides: []Override{{"m--6.1.0-56-amd64.conf", []byte("MAKE='make over'")}}}, `KERNELRELEASE=6.1.0-56-amd64 over"`},
		{"CRLF", Input{Overrides: []Override{{"m.conf", []byte("MAKE='make over'\r\n")}}}, `KERNELRELEASE=6.1.0-56-amd64 over"`},
		{"unset changes nothing", Input{Overrides: []Override{{"m.conf", []byte("unset STRIP PRE_BUILD")}}}, `PRE_BUILD[0] "a.sh"`},
		{"an array joins", Input{Overrides: []Override{{"m.conf", []byte("MAKE=([1]='make one'); MAKE_MATCH[1]=.")}}}, `KERNELRELEASE=6.1.0-56-amd64 one"`},
		{"faulty", Input{Overrides: []Override{{"m.conf", []byte("DEST_MODULE_LOCATION=/opt")}}}, "code 8"},
		{"exit", Input{Overrides: []Override{{"m-1.conf", []byte("MAKE='make lost'\nreturn 0\nMAKE=x")}}}, `KERNELRELEASE=6.1.0-56-amd64 lost"`},
		{"directive", Input{Overrides: all[:1], Directives: []string{"PRE_BUILD=last $kernelver", "MAKE=make direct", "STRIP="}}, `PRE_BUILD[0] "last $kernelver"`},
		{"directive twice", Input{Directives: []string{"MAKE=make one", "MAKE=make two=2"}}, `two=2"`},
		{"directive excludes", Input{Directives: []string{"BUILD_EXCLUSIVE_KERNEL=^5"}}, "skip true"},
		{"directive, faulty", Input{Directives: []string{"AUTOINSTALL=x"}}, "code 8"},
	} {
		tt.in.Conf = []byte(conf)
		theirs, ours := asDKMS(t, []string{conf}, tt.in, bookworm)[0], asWe(t, tt.in, bookworm)
		if differ(ours, theirs) || !strings.Contains(theirs.String(), tt.want) {
			t.Errorf("%s: want %s\nours: %s\ntheirs: %s", tt.name, tt.want, ours, theirs)
		}
	}
}

// Where dkms is wrong: each row says what dkms makes of the conf, and what is right. The numbers are those of the list of defects in
// the reference.
func TestDefects(t *testing.T) {
	const one = "DEST_MODULE_LOCATION=/extra\n"
	minor := bookworm
	minor.Release = "6.2.0-b"
	for _, tt := range []struct {
		name         string
		conf         string
		target       Target
		theirs, ours string // in what each makes of it
	}{
		{"11: 6.2.0-b is within a maximum of 6.2", one + "BUILD_EXCLUSIVE_KERNEL_MAX=6.2", minor, "skip true", "skip false"},
		{"11: the same of OBSOLETE_BY", one + "OBSOLETE_BY=6.2", minor, "skip true", "skip false"},
		{"11: within a maximum of its own version", one + "BUILD_EXCLUSIVE_KERNEL_MAX=6.1.0", bookworm, "skip true", "skip false"},
		{"13: MAKE with a gap", one + "MAKE[0]='make a'\nMAKE[2]='make c'\nMAKE_MATCH[2]=^6", bookworm, "amd64 a\"", "amd64 c\""},
		{"13: MAKE that begins late", one + "MAKE[1]='make b'\nMAKE_MATCH[1]=^6", bookworm, "M=/var/lib/dkms/m/1/build\"", "amd64 b\""},
		{"13: PATCH with a gap", one + "PATCH[0]=all.patch\nPATCH[3]=six.patch", bookworm, `patches ["all.patch"]`, `patches ["all.patch" "six.patch"]`},
		{"a pattern that is none matches nothing, and excludes nothing", one + "BUILD_EXCLUSIVE_KERNEL='('", bookworm, "code 0", "code 8"},
		{"a syntax error ends the file", one + "MAKE='make a'\nfi\nMAKE='make b'", bookworm, `amd64 a"`, "code 8"},
		{"a quote in a value loses all that come after it", one + "POST_ADD='\"'", bookworm, "modules []", "code 8"},
		{"a last line that ends in a program: with bash 5.2, code 8", one + "MAKE=b; ls /nowhere", bookworm, "code ", "make \"b\""},
		{"the same behind &&", one + "MAKE=b && env false", bookworm, "code ", "make \"b\""},
		{"modules that lie outside", one + "BUILT_MODULE_LOCATION=../..", bookworm, "code 0", "code 8"},
		{"scripts that lie outside", one + "POST_INSTALL=../../bin/sh", bookworm, "code 0", "code 8"},
		{"modules that go outside", "DEST_MODULE_LOCATION=/kernel/../../bin", bookworm, "code 0", "code 8"},
	} {
		conf := head + tt.conf + "\n"
		theirs := asDKMS(t, []string{conf}, Input{}, tt.target)[0].String()
		ours := asWe(t, Input{Conf: []byte(conf)}, tt.target).String()
		if !strings.Contains(theirs, tt.theirs) || !strings.Contains(ours, tt.ours) {
			t.Errorf("%s:\nours, which wants %s: %s\ntheirs, which wants %s: %s", tt.name, tt.ours, ours, tt.theirs, theirs)
		}
	}
}
