// Package dkms says what a dkms.conf means for one kernel: its directives, and the plan of commands that they come to.
//
// The rules are those of dkms 3.2 (its script and man page). A dkms.conf is bash: bash evaluates it, inside the sandbox.
// Only the module's name and version are read outside, by an interpreter that runs no program.
package dkms

import (
	"bytes"
	_ "embed"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
)

//go:embed evaluate.bash
var evaluate string

// The folders that dkms uses by default. Real dkms.conf files build paths from them.
const (
	Tree        = "/var/lib/dkms"
	SourceTree  = "/usr/src"
	InstallTree = "/lib/modules"
)

// Target is what a dkms.conf is evaluated for.
type Target struct {
	Module, Version string
	Distro          string            // decides where modules are installed
	Release         string            // $kernelver
	Machine         string            // $arch, in uname -m's words: "x86_64"
	Jobs            int               // $parallel_jobs
	Config          map[string]string // the kernel's configuration, "CONFIG_SMP" -> "y"
}

// Source is where the source tree lies: /usr/src/<module>-<version>.
func (t Target) Source() string { return path.Join(SourceTree, t.Module+"-"+t.Version) }

// Build is the copy that make runs in: /var/lib/dkms/<module>/<version>/build.
func (t Target) Build() string { return path.Join(Tree, t.Module, t.Version, "build") }

// Output is where dkms collects the modules that were built.
func (t Target) Output() string {
	return path.Join(Tree, t.Module, t.Version, t.Release, t.Machine, "module")
}

// Symvers is where the step after make leaves what every Module.symvers of the build says, wherever make wrote it.
func (t Target) Symvers() string { return path.Join(path.Dir(t.Output()), "symvers") }

// KernelSource is $kernel_source_dir.
func (t Target) KernelSource() string { return path.Join(InstallTree, t.Release, "build") }

// prelude sets, from positional parameters, the variables that dkms has in its shell but does not export.
const prelude = `kernelver=$1 arch=$2 module=$3 module_version=$4 parallel_jobs=$5
dkms_tree=$6 source_tree=$7 install_tree=$8 kernel_source_dir=$9 kernel_config=$9/include/config/auto.conf
[[ -e $kernel_config ]] || kernel_config=$9/.config
shift 9
`

// bash is a command line that runs a fixed script with the variables of a dkms.conf set, and args as $1, $2, ….
func (t Target) bash(script string, args ...string) []string {
	return append([]string{"bash", "-c", prelude + script, "bash",
		t.Release, t.Machine, t.Module, t.Version, strconv.Itoa(max(1, t.Jobs)),
		Tree, SourceTree, InstallTree, t.KernelSource()}, args...)
}

// Evaluation is the command that evaluates the dkms.conf of the source tree. Its output is read by Parse.
func (t Target) Evaluation() []string { return t.bash(evaluate, path.Join(t.Source(), "dkms.conf")) }

// Conf holds the directives of a dkms.conf as they are for one kernel.
type Conf struct {
	values map[string]map[int]element
}

type element struct {
	value   string
	matches bool // a pattern that matches the kernel
}

const maxIndex = 1 << 12

// Parse reads the output of Evaluation. The output is not trusted: it comes from a shell that ran the dkms.conf.
func Parse(r io.Reader) (Conf, error) {
	const limit = 4 << 20
	b, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		return Conf{}, fmt.Errorf("read the evaluated dkms.conf: %w", err)
	}
	if len(b) > limit {
		return Conf{}, fmt.Errorf("the directives of dkms.conf are larger than %d bytes", limit)
	}
	fields := strings.Split(string(b), "\x00")
	if len(fields) < 2 || fields[len(fields)-2] != "END" || fields[len(fields)-1] != "" || (len(fields)-2)%4 != 0 {
		return Conf{}, fmt.Errorf("dkms.conf was not evaluated to its end")
	}
	c := Conf{values: map[string]map[int]element{}}
	for f := range slices.Chunk(fields[:len(fields)-2], 4) {
		i, err := strconv.Atoi(f[1])
		if err != nil || i < 0 || i > maxIndex {
			return Conf{}, fmt.Errorf("dkms.conf: %s has the index %q; indexes go from 0 to %d", f[0], f[1], maxIndex)
		}
		if c.values[f[0]] == nil {
			c.values[f[0]] = map[int]element{}
		}
		c.values[f[0]][i] = element{f[2], f[3] == "1"}
	}
	return c, nil
}

// get gives an element; a scalar is element 0 of its name.
func (c Conf) get(name string, i int) string { return c.values[name][i].value }

// size is the highest index in use, plus one.
func (c Conf) size(names ...string) int {
	n := 0
	for _, name := range names {
		for i := range c.values[name] {
			n = max(n, i+1)
		}
	}
	return n
}

// Name and Version are PACKAGE_NAME and PACKAGE_VERSION.
func (c Conf) Name() string    { return c.get("PACKAGE_NAME", 0) }
func (c Conf) Version() string { return c.get("PACKAGE_VERSION", 0) }

// Plan is what has to be done to build for one kernel. If Skip is set nothing has to be done, and it says why.
type Plan struct {
	Skip     string
	Steps    []Step
	Modules  []Module
	Depends  []string     // BUILD_DEPENDS: modules that must have been built for the kernel
	Scripts  []HostScript // for the host that installs the modules; no build runs them
	Warnings []string     // what dkms would do and this plan does not
}

// HostScript is a script that dkms runs on the host.
type HostScript struct {
	Directive string // "POST_ADD", "PRE_INSTALL", "POST_INSTALL" or "POST_REMOVE"
	Command   string // its path below the source tree, and arguments
}

// Step is one command of a plan, to be run in the build folder.
type Step struct {
	Name   string // what it is, for people: "patch fix-6.2.patch", "PRE_BUILD", "make"
	Args   []string
	Script string // if set, the step is left out where this file is not executable
	Tells  bool   // when it fails, its last line says why
}

// Module is one module that the plan makes.
type Module struct {
	Built string // relative to the build folder: "src/v4l2loopback.ko"
	Name  string // file name after the build: "v4l2loopback.ko"
	Dest  string // folder below /lib/modules/<release>, as the distribution wants it: "updates/dkms"
	Strip bool
}

// Errors are all the faults of a dkms.conf.
type Errors []string

func (e Errors) Error() string { return "dkms.conf: " + strings.Join(e, "\ndkms.conf: ") }

// Plan decides what the directives come to. The error, if any, is an Errors with every fault found.
func (c Conf) Plan(t Target) (Plan, error) {
	var p Plan
	var faults Errors
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }

	if c.Name() != t.Module || c.Version() != t.Version {
		fault("PACKAGE_NAME and PACKAGE_VERSION are %q and %q for %s, but %q and %q without running any program; "+
			"they must not depend on the kernel", c.Name(), c.Version(), t.Release, t.Module, t.Version)
	}
	if p.Modules = c.modules(t, fault); len(p.Modules) == 0 && len(faults) == 0 {
		fault("it names no module: BUILT_MODULE_NAME and DEST_MODULE_LOCATION are missing")
	}
	if len(faults) > 0 {
		return Plan{}, faults
	}
	if p.Skip = c.excluded(t); p.Skip != "" {
		return Plan{Skip: p.Skip}, nil
	}
	for i := range c.size("BUILD_DEPENDS") {
		if on := c.get("BUILD_DEPENDS", i); on != "" {
			p.Depends = append(p.Depends, on)
		}
	}
	for _, d := range []string{"POST_ADD", "PRE_INSTALL", "POST_INSTALL", "POST_REMOVE"} {
		if command := c.get(d, 0); command != "" {
			p.Scripts = append(p.Scripts, HostScript{d, command})
		}
	}
	for _, name := range c.patches() {
		if slices.Contains(strings.Split(name, "/"), "..") {
			return Plan{}, Errors{fmt.Sprintf("PATCH %q has a \"..\" in its path", name)}
		}
		p.Steps = append(p.Steps, Step{Name: "patch " + name, Args: []string{"patch", "-p1", "-i", path.Join("patches", name)}, Tells: true})
	}
	if s := c.get("PRE_BUILD", 0); s != "" {
		p.Steps = append(p.Steps, t.script("PRE_BUILD", s))
	}
	p.Steps = append(p.Steps, Step{Name: "make", Args: t.bash(`eval "$1"`, c.makeCommand(t))}, t.collect(p.Modules))
	if s := c.get("POST_BUILD", 0); s != "" {
		p.Steps = append(p.Steps, t.script("POST_BUILD", s))
	}
	return p, nil
}

func (c Conf) modules(t Target, fault func(string, ...any)) []Module {
	n := c.size("BUILT_MODULE_NAME", "BUILT_MODULE_LOCATION", "DEST_MODULE_NAME", "DEST_MODULE_LOCATION")
	var modules []Module
	for i := range n {
		built, loc := c.get("BUILT_MODULE_NAME", i), c.get("BUILT_MODULE_LOCATION", i)
		if built == "" && n == 1 {
			built = c.Name()
		}
		dest := c.get("DEST_MODULE_NAME", i)
		if dest == "" {
			dest = built
		}
		if built == "" {
			fault("BUILT_MODULE_NAME[%d] is missing: module %d of %d has no name", i, i, n)
			continue
		}
		for _, v := range []struct{ directive, name string }{
			{"BUILT_MODULE_NAME", built}, {"DEST_MODULE_NAME", c.get("DEST_MODULE_NAME", i)},
		} {
			if ext := path.Ext(v.name); ext == ".o" || ext == ".ko" {
				fault("%s[%d] is %q: leave out the %q", v.directive, i, v.name, ext)
			}
			if strings.ContainsRune(v.name, '/') || v.name == "." || v.name == ".." {
				fault("%s[%d] is %q: a name, not a path; the folder goes into %s", v.directive, i, v.name,
					strings.Replace(v.directive, "NAME", "LOCATION", 1))
			}
		}
		if path.IsAbs(loc) || slices.Contains(strings.Split(loc, "/"), "..") {
			fault("BUILT_MODULE_LOCATION[%d] is %q: it must stay below the source tree", i, loc)
		}
		switch where := c.get("DEST_MODULE_LOCATION", i); {
		case where == "":
			fault("DEST_MODULE_LOCATION[%d] is missing", i)
		case !strings.HasPrefix(where, "/kernel") && !strings.HasPrefix(where, "/updates") && !strings.HasPrefix(where, "/extra"):
			fault("DEST_MODULE_LOCATION[%d] is %q: it must begin with /kernel, /updates or /extra", i, where)
		case slices.Contains(strings.Split(where, "/"), ".."):
			fault("DEST_MODULE_LOCATION[%d] is %q: it must not have a \"..\"", i, where)
		}
		m := Module{
			Built: path.Join(loc, built+".ko"),
			Name:  dest + ".ko",
			Dest:  destination(t.Distro, c.get("DEST_MODULE_LOCATION", i)),
			Strip: c.strip(i),
		}
		for _, other := range modules {
			if other.Built == m.Built {
				fault("BUILT_MODULE_NAME[%d] names %q a second time", i, m.Built)
			}
			if other.Name == m.Name {
				fault("DEST_MODULE_NAME[%d] names %q a second time", i, dest)
			}
		}
		modules = append(modules, m)
	}
	return modules
}

// strip: the first letter decides; element 0 is the default for the rest, and yes its own.
func (c Conf) strip(i int) bool {
	for _, v := range []string{c.get("STRIP", i), c.get("STRIP", 0)} {
		switch {
		case strings.HasPrefix(v, "n"), strings.HasPrefix(v, "N"):
			return false
		case strings.HasPrefix(v, "y"), strings.HasPrefix(v, "Y"):
			return true
		}
	}
	return true
}

// destination is dkms's override_dest_module_location: on most distributions the conf's own word does not count.
func destination(distro, location string) string {
	switch distro {
	case "fedora", "rhel", "rocky", "alma", "centos", "oracle", "amazon":
		return "extra"
	case "opensuse", "sles":
		return "updates"
	case "debian", "ubuntu", "arch":
		return "updates/dkms"
	}
	return strings.Trim(path.Clean(location), "/")
}

// excluded applies the BUILD_EXCLUSIVE directives and OBSOLETE_BY; the result says which one decided.
func (c Conf) excluded(t Target) string {
	for _, d := range []struct{ name, against string }{
		{"BUILD_EXCLUSIVE_KERNEL", t.Release}, {"BUILD_EXCLUSIVE_ARCH", t.Machine},
	} {
		if e := c.values[d.name][0]; e.value != "" && !e.matches {
			return fmt.Sprintf("%s=%q does not match %q", d.name, e.value, d.against)
		}
	}
	if lowest := c.get("BUILD_EXCLUSIVE_KERNEL_MIN", 0); lowest != "" && compareBound(t.Release, lowest) < 0 {
		return fmt.Sprintf("BUILD_EXCLUSIVE_KERNEL_MIN=%q is newer than %q", lowest, t.Release)
	}
	name, highest := "BUILD_EXCLUSIVE_KERNEL_MAX", c.get("BUILD_EXCLUSIVE_KERNEL_MAX", 0)
	if highest == "" {
		name, highest = "OBSOLETE_BY", c.get("OBSOLETE_BY", 0)
	}
	if highest != "" && compareBound(t.Release, highest) > 0 {
		return fmt.Sprintf("%s=%q is older than %q", name, highest, t.Release)
	}
	for _, want := range strings.Fields(c.get("BUILD_EXCLUSIVE_CONFIG", 0)) {
		option, absent := strings.CutPrefix(want, "!")
		set := t.Config[option] == "y" || t.Config[option] == "m"
		if set == absent {
			state := map[bool]string{true: "set", false: "not set"}[set]
			return fmt.Sprintf("BUILD_EXCLUSIVE_CONFIG=%q, and %s is %s in this kernel", want, option, state)
		}
	}
	return ""
}

func (c Conf) patches() []string {
	var names []string
	for i := range c.size("PATCH") {
		name, match := c.get("PATCH", i), c.values["PATCH_MATCH"][i]
		if name != "" && (match.value == "" || match.matches) {
			names = append(names, name)
		}
	}
	return names
}

// makeCommand chooses among MAKE[]: element 0 unless it has a pattern, then the last whose pattern matches. A literal leading
// make gets -j and KERNELRELEASE; 'make' in quotes is how a conf says no to that.
func (c Conf) makeCommand(t Target) string {
	command := ""
	if c.get("MAKE_MATCH", 0) == "" {
		command = c.get("MAKE", 0)
	}
	for i := range c.size("MAKE") {
		if m := c.values["MAKE_MATCH"][i]; m.value != "" && m.matches && c.get("MAKE", i) != "" {
			command = c.get("MAKE", i)
		}
	}
	if command == "" {
		command = "make -C " + t.KernelSource() + " M=" + t.Build()
	}
	if t.Config["CONFIG_CC_IS_CLANG"] == "y" {
		command += " LLVM=1"
	}
	if rest, ok := strings.CutPrefix(command, "make"); ok {
		command = fmt.Sprintf("make -j%d KERNELRELEASE=%s%s", max(1, t.Jobs), t.Release, rest)
	}
	return command
}

// script runs a PRE_BUILD or POST_BUILD: a path below the build folder, with arguments. As in dkms one that is not executable is
// left out.
func (t Target) script(name, command string) Step {
	file, _, _ := strings.Cut(command, " ")
	return Step{Name: name, Args: t.bash(`eval "$PWD/$1"`, command), Script: path.Join(t.Build(), file), Tells: true}
}

// collect strips the modules and copies them to where dkms keeps what it built, so that POST_BUILD finds them there. Of the
// Module.symvers it takes one byte more than kmod.ReadSymvers does: they may be sparse files of any size.
func (t Target) collect(modules []Module) Step {
	args := []string{t.Output()}
	for _, m := range modules {
		strip := ""
		if m.Strip {
			strip = "strip"
			if t.Config["CONFIG_CC_IS_CLANG"] == "y" {
				strip = "llvm-strip"
			}
		}
		args = append(args, m.Built, m.Name, strip)
	}
	return Step{Name: "collecting the modules", Tells: true, Args: append([]string{"bash", "-c", `set -e
out=$1; shift
mkdir -p "$out"
missing=
for ((i = 1; i <= $#; i += 3)); do [[ -e ${!i} ]] || missing+=" ${!i}"; done
if [[ $missing ]]; then
	made=$(find . -name '*.ko' | sort | tr '\n' ' ')
	echo "The build ended without an error, but did not make$missing. It made ${made:-no module}."
	exit 7
fi
while (($#)); do
	[[ -f $1 && ! -L $1 ]] || { echo "$1 is not a regular file."; exit 7; }
	if [[ $3 ]]; then "$3" -g "$1"; fi
	cp "$1" "$out/$2"
	shift 3
done
if [[ -f Module.symvers && ! -L Module.symvers ]]; then cp Module.symvers "$out/Module.symvers"; fi
find . -name Module.symvers -type f -print0 | sort -z | xargs -0r cat | head -c 16777217 >"$out/../symvers"`, "bash"}, args...)}
}

// compareBound compares a release with a bound from a dkms.conf: the numbers before the first other sign first, where an
// absent one counts as 0; then, if the bound goes on ("5.14.0-427"), what follows, number by number. So 6.2.0-b is within a
// maximum of 6.2, which dkms itself gets wrong, and 6.2.1 is not.
func compareBound(release, bound string) int {
	rn, rr := versionNumbers(release)
	bn, br := versionNumbers(bound)
	for i := range max(len(rn), len(bn)) {
		var a, b int
		if i < len(rn) {
			a = rn[i]
		}
		if i < len(bn) {
			b = bn[i]
		}
		if a != b {
			return a - b
		}
	}
	if br == "" {
		return 0
	}
	return strings.Compare(padNumbers(rr), padNumbers(br))
}

func versionNumbers(v string) (numbers []int, rest string) {
	rest = v
	for {
		end := strings.IndexFunc(rest, func(r rune) bool { return r < '0' || r > '9' })
		if end < 0 {
			end = len(rest)
		}
		n, err := strconv.Atoi(rest[:end])
		if err != nil {
			return numbers, rest
		}
		numbers, rest = append(numbers, n), rest[end:]
		if len(rest) < 2 || rest[0] != '.' || rest[1] < '0' || rest[1] > '9' {
			return numbers, rest
		}
		rest = rest[1:]
	}
}

// padNumbers makes numbers comparable as text.
func padNumbers(s string) string {
	var b bytes.Buffer
	for i := 0; i < len(s); {
		j := i
		for j < len(s) && s[j] >= '0' && s[j] <= '9' {
			j++
		}
		if j > i {
			b.WriteString(strings.Repeat("0", max(0, 12-(j-i))))
			b.WriteString(s[i:j])
			i = j
			continue
		}
		b.WriteByte(s[i])
		i++
	}
	return b.String()
}
