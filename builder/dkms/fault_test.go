package dkms

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// Every fault of a conf is reported, all at once, with the line that is to be changed.
func TestFaultLines(t *testing.T) {
	const begin = head + "DEST_MODULE_LOCATION=/extra\n" // lines 1 to 3
	for _, tt := range []struct {
		name string
		conf string
		want []string
	}{
		{"all of them", head + `BUILT_MODULE_NAME[0]=a.ko
BUILT_MODULE_NAME[1]="b"
DEST_MODULE_LOCATION[1]='/usr'
BUILT_MODULE_NAME[2]=b
DEST_MODULE_LOCATION[2]=/extra/../..
DEST_MODULE_NAME[2]=c.o
BUILT_MODULE_LOCATION[2]=../x
AUTOINSTALL=maybe
NO_WEAK_MODULES=1
BUILD_DEPENDS_REBUILD="always"
MAKE_MATCH[3]="("
PATCH_MATCH[1]='[a'
BUILD_EXCLUSIVE_KERNEL='a{'
BUILD_EXCLUSIVE_ARCH='*('
PRE_BUILD=../up.sh
POST_INSTALL="a/../../up.sh now"
PATCH[0]=x/../../y.patch
PATCH[1]=none.patch
PATCH[2]=none.patch
`, []string{
			`dkms.conf:3: BUILT_MODULE_NAME[0] is "a.ko": leave out the ".ko"`,
			`dkms.conf:3: DEST_MODULE_LOCATION[0] is missing`,
			`dkms.conf:5: DEST_MODULE_LOCATION[1] is "/usr": it must begin with /kernel, /updates or /extra`,
			`dkms.conf:8: DEST_MODULE_NAME[2] is "c.o": leave out the ".o"`,
			`dkms.conf:9: BUILT_MODULE_LOCATION[2] is "../x": it must stay below the source tree`,
			`dkms.conf:7: DEST_MODULE_LOCATION[2] is "/extra/../..": it must not have a ".."`,
			`dkms.conf:15: BUILD_EXCLUSIVE_KERNEL[0] is "a{": that is no regular expression`,
			`dkms.conf:16: BUILD_EXCLUSIVE_ARCH[0] is "*(": that is no regular expression`,
			`dkms.conf:13: MAKE_MATCH[3] is "(": that is no regular expression`,
			`dkms.conf:10: AUTOINSTALL is "maybe": it can be yes, no or empty`,
			`dkms.conf:12: BUILD_DEPENDS_REBUILD is "always": it can be yes, no or empty`,
			`dkms.conf:11: NO_WEAK_MODULES is "1": it can be yes, no or empty`,
			`dkms.conf:17: PRE_BUILD is "../up.sh": it must stay below the source tree`,
			`dkms.conf:18: POST_INSTALL is "a/../../up.sh now": it must stay below the source tree`,
			`dkms.conf:19: PATCH[0] is "x/../../y.patch": it has a ".." in its path`,
			`dkms.conf:14: PATCH_MATCH[1] is "[a": that is no regular expression`,
			`dkms.conf:21: PATCH[2] is "none.patch", but there is no "patches/none.patch"`,
		}},
		{"the last assignment", begin + "AUTOINSTALL=a\nAUTOINSTALL=yes\nAUTOINSTALL=b", []string{`dkms.conf:6: AUTOINSTALL is "b"`}},
		{"the last of two that are expanded", begin + "x=b\nAUTOINSTALL=$x\nAUTOINSTALL=$x", []string{`dkms.conf:6: AUTOINSTALL is "b"`}},
		{"an array over lines", head + "BUILT_MODULE_NAME=(\n\ta\n\tb.o\n)\nDEST_MODULE_LOCATION=(/extra\n /lib)", []string{`dkms.conf:5: BUILT`, `dkms.conf:8: DEST_MODULE_LOCATION[1] is "/lib"`}},
		{"the branch that was taken", begin + "if [[ $kernelver == 6* ]]; then\n AUTOINSTALL=six\nelse\n AUTOINSTALL=five\nfi", []string{`dkms.conf:5: AUTOINSTALL is "six"`}},
		{"an expansion", begin + "x=six\nif [[ $kernelver == 6* ]]; then\n AUTOINSTALL=$x\nfi", []string{`dkms.conf:6: AUTOINSTALL is "six"`}},
		{"two that may be", begin + "x=six\nif [[ $kernelver == 6* ]]; then\n AUTOINSTALL=$x\nelse\n AUTOINSTALL=$x$x\nfi", []string{`dkms.conf: AUTOINSTALL is "six"`}},
		{"an index that is computed", head + "i=0\nDEST_MODULE_LOCATION[$i]=/a", []string{`dkms.conf:4: DEST_MODULE_LOCATION[0] is "/a"`}},
		{"by eval", begin + "eval AUTOINSTALL=x", []string{`dkms.conf: AUTOINSTALL is "x"`}},
		{"not the one before eval", begin + "AUTOINSTALL=yes\neval AUTOINSTALL=x", []string{`dkms.conf: AUTOINSTALL is "x"`}},
		{"for one command", begin + "AUTOINSTALL=x\nAUTOINSTALL=x true", []string{`dkms.conf:4: AUTOINSTALL is "x"`}},
		{"syntax error of the second expansion's kind", begin + "AUTOINSTALL=$'x\\ty'", []string{`dkms.conf:4: AUTOINSTALL is "x y"`}},
		{"CRLF", head + "DEST_MODULE_LOCATION=/extra\r\nAUTOINSTALL=x\r\n", []string{`dkms.conf:4: AUTOINSTALL is "x"`}},
		{"bash's own", begin + "MAKE=x\nif true; then\n", []string{`dkms.conf:7: syntax error: unexpected end of file`}},
		{"bash's own, in its middle", begin + "MAKE=x\nfi\nMAKE=y", []string{`dkms.conf:5: syntax error near unexpected token`}},
		{"white space", head + "BUILT_MODULE_NAME='a b'\nDEST_MODULE_LOCATION=/extra", []string{`dkms.conf:3: BUILT_MODULE_NAME[0] is "a b": a module's name has no white space`}},
		{"index", head + "MAKE[99999]=x\nDEST_MODULE_LOCATION=/extra", []string{`dkms.conf:3: MAKE has the index "99999"; indexes go from 0 to 4096`}},
	} {
		_, err := plan(t, tt.conf+"\n", bookworm)
		var faults Errors
		if !errors.As(err, &faults) {
			t.Errorf("%s: error %v; want Errors", tt.name, err)
			continue
		}
		got := strings.Split(err.Error(), "\n")
		if !slices.EqualFunc(got, tt.want, strings.HasPrefix) {
			t.Errorf("%s: faults\n%s\nwant\n%s", tt.name, strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
		}
	}
}

// A fault of an override or of the command line names that.
func TestFaultFiles(t *testing.T) {
	in := Input{
		Conf:       []byte(head + "DEST_MODULE_LOCATION=/extra\nMAKE=x\n"),
		Overrides:  []Override{{"m.conf", []byte("\nAUTOINSTALL=a\n")}, {"m-1.conf", []byte("NO_WEAK_MODULES=b\nPACKAGE_VERSION=2\n")}},
		Directives: []string{"PATCH=none.patch", "BUILD_DEPENDS_REBUILD=c"},
	}
	_, err := planOf(t, in, bookworm)
	want := `m-1.conf:2: PACKAGE_VERSION is "2" for 6.1.0-56-amd64, but "1" without running any program; it must not depend on the kernel
m.conf:2: AUTOINSTALL is "a": it can be yes, no or empty
--directive: BUILD_DEPENDS_REBUILD is "c": it can be yes, no or empty
m-1.conf:1: NO_WEAK_MODULES is "b": it can be yes, no or empty
--directive: PATCH[0] is "none.patch", but there is no "patches/none.patch"`
	if err == nil || err.Error() != want {
		t.Errorf("error\n%v\nwant\n%s", err, want)
	}
	in.Overrides = []Override{{"m.conf", []byte("MAKE=x\nif\n")}}
	in.Directives = nil
	if _, err := planOf(t, in, bookworm); err == nil || !strings.HasPrefix(err.Error(), "m.conf:3: syntax error") {
		t.Errorf("error %v; want the line of m.conf", err)
	}
}

// dkms ends with 8 for a bad conf, and with 5 for a patch, which it looks for only where the kernel is not excluded.
func TestFaultCodes(t *testing.T) {
	const begin = head + "DEST_MODULE_LOCATION=/extra\n"
	for _, tt := range []struct {
		conf string
		code int
	}{
		{begin + "PATCH=none.patch", 5}, {begin + "PATCH=../all.patch", 5}, {begin + "PATCH=none.patch\nAUTOINSTALL=x", 8}, {begin + "AUTOINSTALL=x", 8},
		{begin + "PATCH=none.patch\nBUILD_EXCLUSIVE_KERNEL=^5", 0}, {begin + "PATCH=none.patch\nPATCH_MATCH=^5", 0}, {begin + "PATCH=all.patch", 0},
		{begin + "AUTOINSTALL=x\nBUILD_EXCLUSIVE_KERNEL=^5", 8},
	} {
		code := 0
		if _, err := plan(t, tt.conf+"\n", bookworm); err != nil {
			code = err.(Errors).DKMSCode()
		}
		if code != tt.code {
			t.Errorf("%s: dkms's code is %d; want %d", tt.conf, code, tt.code)
		}
	}
}

// What is dubious is said, and nothing else.
func TestWarnings(t *testing.T) {
	const begin = head + "DEST_MODULE_LOCATION=/extra\n"
	for _, tt := range []struct {
		name, conf        string
		warnings, notices []string
	}{
		{"nothing", begin + "CLEAN=/bin/true\nMAKE_OPTS=x\nMAKE=\"make $MAKE_OPTS\"\nsome_name=1\nKERNEL=2", nil, nil},
		{"deprecated", begin + "CLEAN='make clean'\nREMAKE_INITRD=no\nMODULES_CONF[2]=x", []string{"dkms.conf:5: REMAKE_INITRD is deprecated", "dkms.conf: MODULES_CONF is deprecated"}, []string{"dkms.conf:4: CLEAN is deprecated"}},
		{"misspelt", begin + "MAKE_MACTH[0]=^6\nBUILT_MODULE_NAMES=a\nPATCHES=x\nAUTO_INSTALL=yes", []string{
			"dkms.conf:4: MAKE_MACTH is no directive; is MAKE_MATCH meant?", "dkms.conf:5: BUILT_MODULE_NAMES is no directive; is BUILT_MODULE_NAME meant?",
			"dkms.conf:7: AUTO_INSTALL is no directive; is AUTOINSTALL meant?"}, nil},
		{"misspelt, but used", begin + "AUTO_INSTALL=yes\nAUTOINSTALL=$AUTO_INSTALL", nil, nil},
		{"no module", head, []string{"dkms.conf: it names no module"}, nil},
		{"run time", begin + "nosuchcommand\nMAKE=x\ncd /nowhere\n", []string{"dkms.conf:4: nosuchcommand: command not found", "dkms.conf:6: cd: /nowhere: No such file"}, nil},
		{"the second expansion", begin + "MAKE='make A=\"x y\"'", []string{"dkms.conf: a value, when it is expanded a second time as in dkms: y"}, nil},
		{"a program", begin + "echo 'dkms.conf is nice' >&2; ls /nowhere", nil, nil},
		{"without end", begin + "for i in {1..99}; do no$i; done", slices.Repeat([]string{"dkms.conf:4: no"}, 10), nil},
	} {
		p, err := plan(t, tt.conf+"\n", bookworm)
		if err != nil || !slices.EqualFunc(p.Warnings, tt.warnings, strings.HasPrefix) || !slices.EqualFunc(p.Notices, tt.notices, strings.HasPrefix) {
			t.Errorf("%s: warnings %q, notices %q, error %v; want %q and %q", tt.name, p.Warnings, p.Notices, err, tt.warnings, tt.notices)
		}
	}
}

// A conf that can't be evaluated ends in an error that says so.
func TestEvaluationFails(t *testing.T) {
	const begin = head + "DEST_MODULE_LOCATION=/extra\n"
	for _, tt := range []struct{ conf, want string }{
		{"exit", "dkms.conf ended before it was read to its end (exit code 0)"},
		{"exit 7", "dkms.conf ended before it was read to its end (exit code 7)"},
		{"exec true", "dkms.conf ended before it was read to its end (exit code 0)"},
		{"trap 'exit 5' DEBUG", "ended before it was read to its end (exit code 5)"},
		{"kill -9 $BASHPID", "ended before it was read to its end (exit code 137)"},
		{"set -n", "ended before it was read to its end"},
		{"readonly POSIXLY_CORRECT=", "ended before it was read to its end"},
		{"builtin() { :; }; readonly -f builtin", "ended before it was read to its end"},
		{"readonly IFS=x", "ended before it was read to its end"},
		{"for i in {5..40}; do eval \"exec $i>&-\"; done; ulimit -n 3", "ended before it was read to its end"},
		{"MAKE='\"; exit 3; \"'", "a value ends the shell when it is expanded a second time"},
		{"MAKE='a\"b'", "a value can't be expanded a second time"},
		{"MAKE='$('", "a value can't be expanded a second time"},
		{"MAKE=x\\\\", "a value can't be expanded a second time"},
		{"enable -n echo", "ended before it was read to its end"},
	} {
		_, err := plan(t, begin+tt.conf+"\n", bookworm)
		if err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v; want %q", tt.conf, err, tt.want)
		}
	}
}

func TestDirectives(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"MAKE=make all", ""}, {"MAKE[3]=x", ""}, {"STRIP=", ""}, {"POST_INSTALL=a=b\nc", ""},
		{"MAKE_MACTH[1]=^6", "there is no directive MAKE_MACTH; the nearest is MAKE_MATCH"},
		{"DESTINATION=x", "there is no directive DESTINATION"},
		{"PACKAGE_NAME=x", "PACKAGE_NAME can't be changed"}, {"PACKAGE_VERSION[0]=x", "PACKAGE_VERSION can't be changed"},
		{"MAKE", "is not NAME=VALUE"}, {"", "is not NAME=VALUE"}, {"MAKE[-1]=x", "is not NAME=VALUE"}, {"MAKE[a]=x", "is not NAME=VALUE"},
		{"MAKE;rm=x", "is not NAME=VALUE"}, {"=x", "is not NAME=VALUE"}, {"MAKE[5000]=x", "indexes go from 0 to 4096"},
		{"MAKE[99999999999999999999]=x", "indexes go from 0 to 4096"}, {"MAKE=\x00", "NUL"},
	} {
		err := CheckDirective(tt.text)
		if (tt.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("CheckDirective(%q) = %v; want %q", tt.text, err, tt.want)
		}
	}
	p, err := planOf(t, Input{Conf: []byte(head + "DEST_MODULE_LOCATION=/extra\nMAKE=a\n"), Directives: []string{"MAKE[2]=$(touch x) \"y\"", "MAKE_MATCH[2]=^6"}}, bookworm)
	if err != nil || p.Make.Value != `$(touch x) "y"` { // it is expanded when it runs, as under dkms
		t.Errorf("make command %q, error %v; want it as it is", p.Make.Value, err)
	}
	names := bookworm.OverrideNames()
	want := []string{"m.conf", "m-1.conf", "m-1-6.1.0-56-amd64.conf", "m-1-6.1.0-56-amd64-x86_64.conf", "m--6.1.0-56-amd64.conf", "m--6.1.0-56-amd64-x86_64.conf"}
	if !slices.Equal(names, want) {
		t.Errorf("overrides %q; want %q", names, want)
	}
	if err := CheckOverride(Override{"m.conf", []byte(strings.Repeat("#", MaxConf+1))}); err == nil || !strings.Contains(err.Error(), "m.conf has 65537 bytes") {
		t.Errorf("a large override: %v", err)
	}
	if err := CheckOverride(Override{"m.conf", []byte("x=1\nif\n")}); err == nil || !strings.HasPrefix(err.Error(), "m.conf is not valid bash: 2:") {
		t.Errorf("an override that is not bash: %v", err)
	}
	got := MayDepend(nil, []Override{{"m.conf", []byte("BUILD_DEPENDS+=(a)")}, {"m-1.conf", []byte("if")}}, []string{"BUILD_DEPENDS[1]=b", "MAKE=c"})
	if !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("MayDepend = %q; want a and b", got)
	}
}

// The reasons name what decided.
func TestWhy(t *testing.T) {
	const begin = head + "DEST_MODULE_LOCATION=/extra\n"
	for _, tt := range []struct{ conf, directive, why string }{
		{"", "", "there is no MAKE"},
		{"MAKE=a", "MAKE[0]", "it is for every kernel"},
		{"MAKE=a\nMAKE[1]=b\nMAKE_MATCH[1]='^6\\.'", "MAKE[1]", `MAKE_MATCH[1]="^6\." matches "6.1.0-56-amd64"`},
		{"MAKE=(a b c)\nMAKE_MATCH=(^6 6 ^5)", "MAKE[1]", `MAKE_MATCH[1]="6" matches "6.1.0-56-amd64", the last that does`},
		{"MAKE=(a b)\nMAKE_MATCH[1]=^5", "MAKE[0]", `no MAKE_MATCH matches "6.1.0-56-amd64"`},
		{"MAKE=a\nMAKE_MATCH=^5", "", `no MAKE_MATCH matches "6.1.0-56-amd64"`},
	} {
		p, err := plan(t, begin+tt.conf+"\n", bookworm)
		if err != nil || p.Make.Directive != tt.directive || p.Make.Why != tt.why {
			t.Errorf("%s: %q because %q, error %v; want %q because %q", tt.conf, p.Make.Directive, p.Make.Why, err, tt.directive, tt.why)
		}
	}
	p, err := plan(t, begin+`PATCH=(all.patch five.patch six.patch)
PATCH_MATCH=([1]=^5 ^6)
BUILD_EXCLUSIVE_ARCH=x86
BUILD_EXCLUSIVE_KERNEL_MIN=5
BUILD_EXCLUSIVE_KERNEL_MAX=5.19
BUILD_EXCLUSIVE_CONFIG="CONFIG_ACPI !CONFIG_DRM"
`, bookworm)
	want := []Choice{
		{"PATCH[0]", "all.patch", true, "it is for every kernel"},
		{"PATCH[1]", "five.patch", false, `PATCH_MATCH[1]="^5" does not match "6.1.0-56-amd64"`},
		{"PATCH[2]", "six.patch", true, `PATCH_MATCH[2]="^6" matches "6.1.0-56-amd64"`},
		{"BUILD_EXCLUSIVE_ARCH", "x86", true, `BUILD_EXCLUSIVE_ARCH="x86" matches "x86_64"`},
		{"BUILD_EXCLUSIVE_KERNEL_MIN", "5", true, `BUILD_EXCLUSIVE_KERNEL_MIN="5" is not newer than "6.1.0-56-amd64"`},
		{"BUILD_EXCLUSIVE_KERNEL_MAX", "5.19", false, `BUILD_EXCLUSIVE_KERNEL_MAX="5.19" is older than "6.1.0-56-amd64"`},
		{"BUILD_EXCLUSIVE_CONFIG", "CONFIG_ACPI", true, `BUILD_EXCLUSIVE_CONFIG="CONFIG_ACPI", and CONFIG_ACPI is set in this kernel`},
		{"BUILD_EXCLUSIVE_CONFIG", "!CONFIG_DRM", false, `BUILD_EXCLUSIVE_CONFIG="!CONFIG_DRM", and CONFIG_DRM is set in this kernel`},
	}
	if got := append(p.Patches, p.Rules...); err != nil || !slices.Equal(got, want) || p.Skip != want[5].Why || len(p.Steps) != 0 {
		t.Errorf("choices %v, skip %q, %d steps, error %v; want %v", got, p.Skip, len(p.Steps), err, want)
	}
}

// What goes into an artifact's annotations fits there.
func TestLongValues(t *testing.T) {
	const begin = head + "DEST_MODULE_LOCATION=/extra\nprintf -v long %5000s\nlong=${long// /x}\n"
	for _, directive := range []string{"POST_INSTALL=$long", "PRE_INSTALL=$'x\\xff'"} {
		_, err := plan(t, begin+directive+"\n", bookworm)
		if err == nil || !strings.Contains(err.Error(), "or is not UTF-8: it can have 4096") {
			t.Errorf("%s: error %v", directive, err)
		}
	}
	for _, directive := range []string{"BUILD_EXCLUSIVE_KERNEL=$long", "BUILD_EXCLUSIVE_CONFIG=CONFIG_$long", "BUILD_EXCLUSIVE_ARCH=$'\\xff'", "BUILD_EXCLUSIVE_CONFIG=$'\\xff'"} {
		p, err := plan(t, begin+directive+"\n", bookworm)
		if err != nil || p.Skip == "" || len(p.Skip) > 1500 || !utf8.ValidString(p.Skip) {
			t.Errorf("%s: skipped because %q, error %v", directive, p.Skip, err)
		}
	}
}

func TestPlanOfAll(t *testing.T) {
	p, err := plan(t, head+`DEST_MODULE_LOCATION=/extra
BUILD_DEPENDS=(b "" a)
AUTOINSTALL=yEs; BUILD_DEPENDS_REBUILD=no; NO_WEAK_MODULES=Yes
POST_REMOVE="rm.sh $kernelver"; POST_ADD=add.sh; POST_INSTALL=host/in.sh; PRE_INSTALL=pre.sh
PRE_BUILD=gen.sh; POST_BUILD=done.sh
`, bookworm)
	scripts := []HostScript{{"POST_ADD", "add.sh"}, {"PRE_INSTALL", "pre.sh"}, {"POST_INSTALL", "host/in.sh"}, {"POST_REMOVE", "rm.sh 6.1.0-56-amd64"}}
	if err != nil || !slices.Equal(p.Depends, []string{"b", "a"}) || !slices.Equal(p.Scripts, scripts) || !p.Autoinstall || p.DependsRebuild || !p.NoWeakModules {
		t.Errorf("plan %+v, error %v", p, err)
	}
	for _, s := range p.Steps {
		if strings.Contains(strings.Join(s.Args, " "), "in.sh") || strings.Contains(strings.Join(s.Args, " "), "add.sh") {
			t.Errorf("the step %s runs a script of the host: %q", s.Name, s.Args)
		}
	}
	none := bookworm
	none.Config = nil
	if p, err := plan(t, head+"DEST_MODULE_LOCATION=/extra\nBUILD_EXCLUSIVE_CONFIG=CONFIG_X\n", none); err != nil || p.Skip != "" {
		t.Errorf("a kernel without a configuration: skip %q, %v; want none, as in dkms", p.Skip, err)
	}
	clang := bookworm
	clang.Config = map[string]string{"CONFIG_CC_IS_CLANG": "y"}
	p, err = plan(t, head+"DEST_MODULE_LOCATION=/extra\nMAKE='make all'\n", clang)
	if err != nil || p.Make.Value != "make -j3 KERNELRELEASE=6.1.0-56-amd64 all LLVM=1" || !slices.Contains(p.Steps[1].Args, "llvm-strip") {
		t.Errorf("a kernel of clang: make command %q, collecting %q, %v", p.Make.Value, p.Steps[1].Args, err)
	}
}

// A conf that has thousands of faults has some of them told, soon.
func TestManyFaults(t *testing.T) {
	for _, conf := range []string{
		"for i in {0..4000}; do BUILT_MODULE_NAME[i]=a.ko; done",
		"BUILT_MODULE_NAME[4096]=a",
		strings.Repeat("DEST_MODULE_NAME+=(b)\n", 2800),
		strings.Repeat("[ $i ] || MAKE_MACTH[$i]=(\n", 2300) + "BUILT_MODULE_NAME[4096]=a",
	} {
		begin := time.Now()
		_, err := plan(t, head+conf+"\n", bookworm)
		if d := time.Since(begin); d > 5*time.Second {
			t.Errorf("%.60s: it took %s", conf, d)
		}
		if err == nil || len(strings.Split(err.Error(), "\n")) > maxFaults+1 || len(err.Error()) > 16<<10 {
			t.Errorf("%.60s: error of %d bytes", conf, len(fmt.Sprint(err)))
		}
		if faults := (Errors)(nil); errors.As(err, &faults) && len(faults) > maxFaults && !strings.Contains(err.Error(), " more") {
			t.Errorf("%.60s: the error doesn't say how many more there are: %v", conf, faults[len(faults)-1])
		}
	}
}

// What is looked for in a conf outside the sandbox is found, or not, in any file.
func FuzzPlaces(f *testing.F) {
	f.Add("A=1\nif x; then BUILT_MODULE_NAME=(a [3]=b \"$c\"); fi\nMAKE+=(x) MAKE_MACTH[1+1]=$'y'\n", "x/dkms.conf: line 3: y: z\nx/dkms.conf: line 99999999999999999999: y")
	f.Fuzz(func(t *testing.T, conf, stderr string) {
		in := Input{Conf: []byte(conf), Overrides: []Override{{"m.conf", []byte(conf)}}}
		p := findPlaces(in)
		for name := range p {
			for i := range 4 {
				if file, line := p.of(name, i, "x"); line < 0 || line > strings.Count(conf, "\n")+1 || file == "" {
					t.Errorf("%q: %s[%d] is in %s:%d", conf, name, i, file, line)
				}
			}
		}
		misspelt("m.conf", []byte(conf))
		if said := readRemarks([]byte(stderr), in); len(said) > 10 {
			t.Errorf("%d remarks", len(said))
		}
	})
}

// The faults of thousands of elements are found in no more memory and time than they are worth.
func TestManyElements(t *testing.T) {
	var out strings.Builder
	element := func(name string, i int, value string) { fmt.Fprintf(&out, "%s\x00%d\x00%s\x00\x00", name, i, value) }
	for i := range maxIndex {
		element("BUILT_MODULE_NAME", i, "x"+strings.Repeat(" y", 100))
		element("DEST_MODULE_NAME", i, "x")
	}
	out.WriteString("END\x00")
	in := Input{Conf: []byte("if true; then BUILT_MODULE_NAME+=(" + strings.Repeat("x ", 30_000) + "); fi\n")}
	start := time.Now()
	conf, err := Parse(strings.NewReader(out.String()), nil, in)
	if err != nil {
		t.Fatal(err)
	}
	faults := (Errors)(nil)
	if _, err = conf.Plan(Target{Distro: "debian", Release: "6.1"}); !errors.As(err, &faults) || len(faults) > 10*maxIndex {
		t.Errorf("%d faults of %d modules", len(faults), maxIndex)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("it took %s", took)
	}
}
