package dkms

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/dkmstest"
)

// oracle is a bash script that takes the functions out of dkms's own, and has them read each conf.N of the current folder for one
// kernel. It prints, each with a NUL: what read_conf_strict returned, what it made of the directives, and every directive.
const oracle = `script=$1 overrides=$2 config=$3 n=$4
kernelver=$5 arch=$6 module=$7 module_version=$8 parallel_jobs=$9
shift 9
directive_array=("$@")
eval "$(sed -n '/^readonly dkms_conf_variables=/,/"$/p' "$script")"
eval "$(awk '/^[A-Za-z_]+ ?\(\)/ {on=1} on {print} /^[})]/ {on=0}' "$script" | sed "s,/etc/dkms/,$overrides/,g")"
dkms_tree=/var/lib/dkms source_tree=/usr/src install_tree=/lib/modules running_distribution=debian12
kconfig_fromcli=1 kernel_config=$config
for ((conf_number = 0; conf_number < n; conf_number++)); do
	(
		exec {out}>&1 >/dev/null 2>&1
		read_conf_strict "$kernelver" "$arch" "$PWD/conf.$conf_number"
		code=$?
		exec >&$out
		printf '%s\0' "$code" "$build_exclude" "${make_command/#make/make -j$parallel_jobs KERNELRELEASE=$kernelver}" "$num_modules"
		for ((i = 0; i < num_modules; i++)); do
			printf '%s\0' "${built_module_location[i]}${built_module_name[i]}" "${dest_module_location[i]}/${dest_module_name[i]}" "${strip[i]}"
		done
		printf '%s\0' "${#patch_array[@]}" "${patch_array[@]}"
		for name in $dkms_conf_variables; do
			[[ $name == [A-Z]* ]] || continue
			eval "keys=(\${!$name[@]})"
			for i in "${keys[@]}"; do
				eval "printf '%s\\0' \"\$name[\$i]\" \"\${$name[\$i]}\""
			done
		done
		printf 'END\0'
	)
done
`

// understood is what dkms and this package each make of a conf.
type understood struct {
	code    int // 8: bad
	skip    bool
	make    string
	modules []string // built -> destination, strip
	patches []string
	values  map[string]string // of every directive: "MAKE[1]" -> "make all"
}

func (u understood) String() string {
	s := fmt.Sprintf("code %d, skip %t\nmake %q\nmodules %q\npatches %q\n", u.code, u.skip, u.make, u.modules, u.patches)
	var names []string
	for name, v := range u.values {
		names = append(names, fmt.Sprintf("%s %q\n", name, v))
	}
	slices.Sort(names)
	return s + strings.Join(names, "")
}

// asDKMS asks dkms itself what it makes of confs.
func asDKMS(t testing.TB, confs []string, in Input, target Target) []understood {
	t.Helper()
	dir, etc := t.TempDir(), t.TempDir()
	for i, conf := range confs {
		writeFile(t, filepath.Join(dir, fmt.Sprintf("conf.%d", i)), conf)
	}
	for _, o := range in.Overrides {
		writeFile(t, filepath.Join(etc, o.Name), string(o.Text))
	}
	config := filepath.Join(etc, "auto.conf")
	var text strings.Builder
	for name, value := range target.Config {
		fmt.Fprintf(&text, "%s=%s\n", name, value)
	}
	writeFile(t, config, text.String())
	args := append([]string{"-c", oracle, "bash", dkmstest.Script(t), etc, config, strconv.Itoa(len(confs)),
		target.Release, target.Machine, target.Module, target.Version, strconv.Itoa(target.Jobs)}, in.Directives...)
	cmd := exec.Command("bash", args...)
	cmd.Dir = dir
	cmd.Env = []string{"LC_ALL=C", "PATH=" + os.Getenv("PATH"), "TMPDIR=" + etc}
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("dkms's functions: %v", err)
	}
	fields := strings.Split(string(out), "\x00")
	next := func() string {
		if len(fields) < 2 {
			t.Fatal("dkms's functions printed too little")
		}
		f := fields[0]
		fields = fields[1:]
		return f
	}
	number := func() int {
		n, err := strconv.Atoi(next())
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	all := make([]understood, len(confs))
	for i := range all {
		u := understood{values: map[string]string{}}
		if number() != 0 {
			u.code = 8
		}
		u.skip = next() != ""
		u.make = next()
		for range number() {
			built, dest, strip := next(), next(), next()
			u.modules = append(u.modules, fmt.Sprintf("%s -> %s %t", path.Clean(built), dest, strip != "no"))
		}
		for range number() {
			u.patches = append(u.patches, next())
		}
		for {
			name := next()
			if name == "END" {
				break
			}
			u.values[name] = next()
		}
		all[i] = u
	}
	return all
}

// asWe is what this package makes of a conf.
func asWe(t testing.TB, in Input, target Target) understood {
	t.Helper()
	u := understood{values: map[string]string{}}
	c, err := evaluateHere(t, in, target)
	if err != nil {
		u.code = 8
		return u
	}
	for name, elements := range c.values {
		for i, e := range elements {
			u.values[fmt.Sprintf("%s[%d]", name, i)] = e.value
		}
	}
	p, err := c.Plan(target)
	if err != nil {
		u.code = err.(Errors).DKMSCode()
		return u
	}
	u.skip = p.Skip != ""
	u.make = p.Make.Value
	for _, m := range p.Modules {
		u.modules = append(u.modules, fmt.Sprintf("%s -> /%s/%s %t", strings.TrimSuffix(m.Built, ".ko"), m.Dest, strings.TrimSuffix(m.Name, ".ko"), m.Strip))
	}
	for _, patch := range p.Patches {
		if patch.Taken {
			u.patches = append(u.patches, patch.Value)
		}
	}
	return u
}

// differ compares the two, as far as a rejected conf means anything.
func differ(ours, theirs understood) bool {
	if theirs.code != 0 || ours.code != 0 {
		return ours.code != theirs.code
	}
	for name, v := range theirs.values {
		if name == "BUILD_EXCLUSIVE_KERNEL_MAX[0]" && ours.values[name] == "" && ours.values["OBSOLETE_BY[0]"] == v {
			delete(theirs.values, name) // dkms sets it
		}
		for _, yesNo := range []string{"AUTOINSTALL[0]", "BUILD_DEPENDS_REBUILD[0]", "NO_WEAK_MODULES[0]"} {
			if name == yesNo && v == "" {
				delete(theirs.values, name) // dkms empties a no
				delete(ours.values, name)
			}
		}
	}
	return ours.String() != theirs.String()
}

func writeFile(t testing.TB, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// generate writes a conf by chance: mostly one that a person could have written, in all of bash's ways to say a thing.
func generate(seed uint64) string {
	r := rand.New(rand.NewPCG(seed, 1))
	g := &generator{r: r}
	g.say("PACKAGE_NAME=m\nPACKAGE_VERSION=1")
	if r.IntN(3) == 0 {
		g.say("ver=" + g.quote("2.5"))
	}
	n := r.IntN(4)
	for i := range n {
		if n == 1 && r.IntN(2) == 0 {
			g.assign("DEST_MODULE_LOCATION", 0, "/extra")
			break
		}
		if r.IntN(25) > 0 {
			g.assign("BUILT_MODULE_NAME", i, g.of("a", "b", "mod_c", "d-e", "m", "x1"))
		}
		if r.IntN(25) > 0 {
			g.assign("DEST_MODULE_LOCATION", i, g.of("/extra", "/kernel/drivers/x", "/updates", "/updates/dkms", "/kernel", "/extrax", "/extra", "/extra", "/usr"))
		}
		if r.IntN(4) == 0 {
			g.assign("BUILT_MODULE_LOCATION", i, g.of("src", "src/", "./", "a/b"))
		}
		if r.IntN(4) == 0 {
			g.assign("DEST_MODULE_NAME", i, g.of("a", "n"+strconv.Itoa(i), "q", "z.ko", "w.o"))
		}
		if r.IntN(4) == 0 {
			g.assign("STRIP", i, g.of("no", "yes", "n", "Y", "No", "", "maybe"))
		}
	}
	for i := range r.IntN(4) {
		g.assign("MAKE", i, g.command())
		if r.IntN(2) == 0 {
			g.assign("MAKE_MATCH", i, g.pattern())
		}
	}
	for i := range r.IntN(4) {
		g.assign("PATCH", i, g.of("all.patch", "five.patch", "six.patch"))
		if r.IntN(2) == 0 {
			g.assign("PATCH_MATCH", i, g.pattern())
		}
	}
	for range r.IntN(4) {
		switch r.IntN(12) {
		case 0:
			g.assign("BUILD_EXCLUSIVE_KERNEL", 0, g.pattern())
		case 1:
			g.assign("BUILD_EXCLUSIVE_ARCH", 0, g.of("x86_64", "x86", "aarch64", "^(i.86|x86_64)$", "_"))
		case 2:
			g.assign(g.of("BUILD_EXCLUSIVE_KERNEL_MIN", "BUILD_EXCLUSIVE_KERNEL_MAX", "OBSOLETE_BY"), 0, g.of("5.10", "6.12", "3.0.1", "7", "5.10.0-3"))
		case 3:
			g.assign("BUILD_EXCLUSIVE_CONFIG", 0, g.of("CONFIG_ACPI", "!CONFIG_ACPI", "CONFIG_DRM CONFIG_ACPI", "CONFIG_NONE", "!CONFIG_NONE  CONFIG_DRM", "CONFIG_DR"))
		case 4:
			g.assign(g.of("AUTOINSTALL", "BUILD_DEPENDS_REBUILD", "NO_WEAK_MODULES"), 0, g.of("yes", "YES", "no", "No", "", "true", "yes please"))
		case 5:
			g.assign(g.of("PRE_BUILD", "POST_BUILD", "POST_ADD", "PRE_INSTALL", "POST_INSTALL", "POST_REMOVE"), 0, g.of("run.sh", "run.sh $kernelver x", "sub/run  a"))
		case 6:
			g.assign("BUILD_DEPENDS", r.IntN(3), g.of("zlib", "other", ""))
		case 7:
			g.assign(g.of("CLEAN", "REMAKE_INITRD", "MODULES_CONF_OBSOLETES"), r.IntN(2), g.of("make clean", "yes", "true"))
		case 8:
			g.say(g.of("unset STRIP", "unset 'MAKE[1]'", "return 0", "nosuchcommand", "echo noise", "set -f", "shopt -s nocasematch", "PATCH+=(six.patch)", "export MAKE", "exit 1"))
		default:
			g.say(g.of("# a comment", "", "x=1", ":", "true && y=2"))
		}
	}
	text := strings.Join(g.lines, "\n") + "\n"
	// With CRLF bash knows no "then", so that dkms reads such a file only halfway.
	if r.IntN(6) == 0 && !strings.ContainsAny(text, "({") && !strings.Contains(text, "\nif ") && !strings.Contains(text, "\ncase ") && !strings.Contains(text, "\nfor ") {
		text = strings.ReplaceAll(text, "\n", "\r\n")
	}
	return text
}

type generator struct {
	r     *rand.Rand
	lines []string
}

func (g *generator) of(list ...string) string { return list[g.r.IntN(len(list))] }
func (g *generator) say(line string)          { g.lines = append(g.lines, line) }

func (g *generator) pattern() string {
	return g.of("^6", "^5\\.", "amd64", "^6\\.1\\.0-[0-9]+-amd64$", "rt", "^(5|6)\\.", "6.1", ".*", "", "^4", "[0-9]")
}

func (g *generator) command() string {
	return g.of("make", "make all", "make -C ${kernel_source_dir} M=${dkms_tree}/${PACKAGE_NAME}/${PACKAGE_VERSION}/build", "'make' all",
		"make KVER=$kernelver ARCH=${arch}", "./build.sh", "make  a   b", "make X=\"a b\" all", "make V=${ver:-none}", "make\tall", "make a && make b",
		"makefile.sh", "make CFLAGS=-DX=\\\"y\\\"", "make $(echo all)", "make `echo all`", "make ${module}-${module_version}", "make 'x  y'", "make all; true")
}

// quote says a value in one of bash's ways. A value with variables may be expanded at once, or the second time.
func (g *generator) quote(v string) string {
	double := `"` + strings.NewReplacer(`"`, `\"`, `\`, `\\`).Replace(v) + `"`
	switch {
	case v == "":
		return g.of(`""`, `''`, "")
	case strings.Contains(v, "'"):
		return double
	case g.r.IntN(3) == 0:
		return "'" + v + "'"
	case g.r.IntN(6) == 0 && !strings.ContainsAny(v, "\\\""):
		return "$'" + v + "'"
	case g.r.IntN(3) == 0 && !strings.ContainsAny(v, " \t\"'$`&;()|\\[]*?^{}<>~!#"):
		return v
	case g.r.IntN(6) == 0 && strings.Contains(v, "$"):
		return `"` + strings.NewReplacer(`"`, `\"`, `\`, `\\`, "$", `\$`).Replace(v) + `"`
	}
	return double
}

func (g *generator) assign(name string, i int, v string) {
	value := g.quote(v)
	line := fmt.Sprintf("%s[%d]=%s", name, i, value)
	if i == 0 && g.r.IntN(2) == 0 {
		line = name + "=" + value
	}
	switch g.r.IntN(16) {
	case 0:
		line = fmt.Sprintf("if [[ $kernelver == 6.* ]]; then\n\t%s\nelse\n\t%s[%d]=other\nfi", line, name, i)
	case 1:
		line = fmt.Sprintf("case $arch in\n\tx86_64) %s ;;\n\t*) exit 1 ;;\nesac", line)
	case 2:
		line = fmt.Sprintf("[ \"$arch\" = x86_64 ] && %s", line)
	case 3:
		line = fmt.Sprintf("set_it() { %s; }\nset_it", line)
	case 4:
		line = fmt.Sprintf("for i in %d; do %s[$i]=%s; done", i, name, value)
	case 5:
		if i == 0 {
			line = fmt.Sprintf("%s=(%s)", name, value)
		}
	case 6:
		line = fmt.Sprintf("%s+=([%d]=%s)", name, i, value)
	case 7:
		line += " # " + v
		if strings.Contains(v, "\n") {
			line = "#"
		}
	case 8:
		line = "declare " + line
	case 9:
		if g.r.IntN(3) == 0 {
			line = fmt.Sprintf("%s[%d]=%s", name, i+g.r.IntN(2), value)
		}
	}
	g.say(line)
}

// cut is what dkms gets wrong on its own: MAKE and PATCH with gaps are cut short there (defect 13 of its list). A conf with a gap is
// left to TestDefects.
func cut(u understood) bool {
	for _, name := range []string{"MAKE", "PATCH"} {
		n := 0
		for i := range 8 {
			if _, ok := u.values[fmt.Sprintf("%s[%d]", name, i)]; ok {
				if i != n {
					return true
				}
				n++
			}
		}
	}
	return false
}

// TestGenerated compares with dkms's own functions on confs made by chance. GODKMS_CONFS sets how many; the suite's number is for some
// seconds.
func TestGenerated(t *testing.T) {
	n, first := 100, uint64(0)
	if s := os.Getenv("GODKMS_CONFS"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
		first = rand.Uint64()
	}
	confs := make([]string, n)
	for i := range confs {
		confs[i] = generate(first + uint64(i))
	}
	good, skipped, bad, left := 0, 0, 0, 0
	for i, theirs := range asDKMS(t, confs, Input{}, bookworm) {
		if cut(theirs) {
			left++
			continue
		}
		ours := asWe(t, Input{Conf: []byte(confs[i])}, bookworm)
		if differ(ours, theirs) {
			t.Errorf("seed %d:\n%s\nours: %s\ntheirs: %s", first+uint64(i), confs[i], ours, theirs)
		}
		switch {
		case theirs.code != 0:
			bad++
		case theirs.skip:
			skipped++
		default:
			good++
		}
	}
	t.Logf("%d good, %d excluded, %d bad, %d left out", good, skipped, bad, left)
	if good < n/5 || skipped < n/20 || bad < n/20 {
		t.Errorf("of %d confs %d are good, %d excluded and %d bad: that's no test of all three", n, good, skipped, bad)
	}
}

// FuzzConf is TestGenerated without end.
func FuzzConf(f *testing.F) {
	f.Add(uint64(1 << 40))
	f.Fuzz(func(t *testing.T, seed uint64) {
		conf := generate(seed)
		theirs := asDKMS(t, []string{conf}, Input{}, bookworm)[0]
		if ours := asWe(t, Input{Conf: []byte(conf)}, bookworm); !cut(theirs) && differ(ours, theirs) {
			t.Errorf("%s\nours: %s\ntheirs: %s", conf, ours, theirs)
		}
	})
}
