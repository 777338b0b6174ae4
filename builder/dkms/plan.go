package dkms

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Plan is what has to be done to build for one kernel. If Skip is set nothing has to be done, and it says why.
type Plan struct {
	Skip     string
	Steps    []Step
	Modules  []Module
	Depends  []string     // BUILD_DEPENDS: modules that must be there first
	Scripts  []HostScript // POST_ADD, PRE_INSTALL, POST_INSTALL, POST_REMOVE: for the host that installs; never run while building
	Warnings []string     // what is dubious in the conf, and what dkms would do and this plan does not
	Notices  []string     // directives that mean nothing any more and do no harm

	Autoinstall    bool // AUTOINSTALL=yes
	DependsRebuild bool // BUILD_DEPENDS_REBUILD=yes
	NoWeakModules  bool // NO_WEAK_MODULES=yes

	// Why the steps are what they are, for people.
	PreBuild, PostBuild string
	Make                Choice
	Patches             []Choice // all of them, in their order
	Rules               []Choice // BUILD_EXCLUSIVE and OBSOLETE_BY; a rule that isn't Taken excludes the kernel
}

// Choice is a value of a dkms.conf that was taken or left for this kernel, and why.
type Choice struct {
	Directive string // "MAKE[1]", "BUILD_EXCLUSIVE_KERNEL"; empty for what no directive says
	Value     string
	Taken     bool
	Why       string
}

// Step is one command of a plan, to be run in the build folder.
type Step struct {
	Name   string // what it is, for people: "patch fix-6.2.patch", "PRE_BUILD", "make"
	Args   []string
	Script string // if set, the step is left out where this file is not executable
	Tells  bool   // when it fails, its last line says why
}

// DKMSCode is the exit code that dkms ends with when the step fails with a code of its own.
func (s Step) DKMSCode(code int) int {
	switch {
	case strings.HasPrefix(s.Name, "patch "):
		return 6
	case s.Name == "make":
		return 10
	case s.Name == collecting:
		return 7
	}
	return code // of the script
}

// HostScript is what a directive has the host run that adds, installs or removes the module: a path below the source tree, with
// arguments.
type HostScript struct{ Directive, Command string }

// Module is one module that the plan makes.
type Module struct {
	Built string // relative to the build folder: "src/v4l2loopback.ko"
	Name  string // file name after the build: "v4l2loopback.ko"
	Dest  string // folder below /lib/modules/<release>, as the distribution wants it: "updates/dkms"
	Strip bool
}

// planner collects the faults of a conf.
type planner struct {
	Conf
	t      Target
	faults Errors
	more   int // faults that are not told
}

// maxFaults is how many faults of a conf are told.
const maxFaults = 50

// fault is of an element that is there; without one it is of the record of a module with that number.
func (p *planner) fault(code int, directive string, i int, format string, args ...any) {
	if len(p.faults) >= maxFaults {
		p.more++
		return
	}
	f := Fault{Text: fmt.Sprintf(format, args...), code: code}
	f.File, f.Line = p.places.of(directive, i, p.get(directive, i))
	for _, d := range moduleDirectives {
		if _, there := p.values[directive][i]; !there && f.Line == 0 && slices.Contains(moduleDirectives, directive) {
			f.File, f.Line = p.places.of(d, i, p.get(d, i))
		}
	}
	p.faults = append(p.faults, f)
}

var moduleDirectives = []string{"BUILT_MODULE_NAME", "BUILT_MODULE_LOCATION", "DEST_MODULE_NAME", "DEST_MODULE_LOCATION"}

// Plan decides what the directives come to. The error, if any, is an Errors with every fault found.
func (c Conf) Plan(t Target) (Plan, error) {
	b := &planner{Conf: c, t: t}
	var p Plan
	for _, r := range c.said {
		if r.syntax {
			b.faults = append(b.faults, r.Fault)
		} else {
			p.Warnings = append(p.Warnings, r.String())
		}
	}
	for _, v := range []struct{ directive, have, want string }{
		{"PACKAGE_NAME", c.Name(), t.Module}, {"PACKAGE_VERSION", c.Version(), t.Version},
	} {
		if v.have != v.want {
			b.fault(0, v.directive, 0, "%s is %q for %s, but %q without running any program; it must not depend on the kernel",
				v.directive, v.have, t.Release, v.want)
		}
	}
	p.Modules = b.modules()
	p.Rules = b.rules()
	p.Make = b.make()
	for _, name := range []string{"AUTOINSTALL", "BUILD_DEPENDS_REBUILD", "NO_WEAK_MODULES"} {
		if v := c.get(name, 0); v != "" && !strings.EqualFold(v, "yes") && !strings.EqualFold(v, "no") {
			b.fault(0, name, 0, "%s is %q: it can be yes, no or empty", name, v)
		}
	}
	yes := func(name string) bool { return strings.EqualFold(c.get(name, 0), "yes") }
	p.Autoinstall, p.DependsRebuild, p.NoWeakModules = yes("AUTOINSTALL"), yes("BUILD_DEPENDS_REBUILD"), yes("NO_WEAK_MODULES")
	p.PreBuild, p.PostBuild = c.get("PRE_BUILD", 0), c.get("POST_BUILD", 0)
	for i := range c.size("BUILD_DEPENDS") {
		if on := c.get("BUILD_DEPENDS", i); on != "" {
			p.Depends = append(p.Depends, on)
		}
	}
	for _, name := range []string{"PRE_BUILD", "POST_BUILD", "POST_ADD", "PRE_INSTALL", "POST_INSTALL", "POST_REMOVE"} {
		s := c.get(name, 0)
		if file, _, _ := strings.Cut(s, " "); leaves(file) {
			b.fault(0, name, 0, "%s is %q: it must stay below the source tree", name, s)
		}
		if len(s) > maxCommand || !utf8.ValidString(s) {
			b.fault(0, name, 0, "%s has %d bytes, or is not UTF-8: it can have %d", name, len(s), maxCommand)
		}
		if s != "" && !strings.HasSuffix(name, "_BUILD") {
			p.Scripts = append(p.Scripts, HostScript{name, s})
		}
	}
	for _, r := range p.Rules {
		if !r.Taken {
			p.Skip = r.Why
			break
		}
	}
	more := b.more
	if p.Patches = b.patches(); p.Skip != "" { // dkms looks at a patch when it's its turn
		b.more = more
		b.faults = slices.DeleteFunc(b.faults, func(f Fault) bool { return f.code == codePatch })
	}
	if b.more > 0 {
		b.faults = append(b.faults, Fault{File: confName, Text: fmt.Sprintf("and %d more", b.more)})
	}
	if len(b.faults) > 0 {
		return Plan{}, b.faults
	}
	b.remarks(&p)
	if p.Skip == "" {
		p.Steps = b.steps(p)
	}
	return p, nil
}

func (b *planner) steps(p Plan) []Step {
	var steps []Step
	for _, patch := range p.Patches {
		if patch.Taken {
			steps = append(steps, Step{
				Name: "patch " + patch.Value, Args: []string{"patch", "-p1", "-i", path.Join("patches", patch.Value)}, Tells: true,
			})
		}
	}
	if p.PreBuild != "" {
		steps = append(steps, b.t.script("PRE_BUILD", p.PreBuild))
	}
	steps = append(steps,
		Step{Name: "make", Args: b.t.bash("PACKAGE_NAME=$module PACKAGE_VERSION=$module_version\n"+`eval "$1"`, p.Make.Value)},
		b.t.collect(p.Modules))
	if p.PostBuild != "" {
		steps = append(steps, b.t.script("POST_BUILD", p.PostBuild))
	}
	return steps
}

func (b *planner) modules() []Module {
	n := b.size(moduleDirectives...)
	var modules []Module
	builds, dests := map[string]int{}, map[string]int{}
	for i := range n {
		built, loc := b.get("BUILT_MODULE_NAME", i), b.get("BUILT_MODULE_LOCATION", i)
		if built == "" && n == 1 {
			built = b.Name()
		}
		dest := b.get("DEST_MODULE_NAME", i)
		if dest == "" {
			dest = built
		}
		if built == "" {
			b.fault(0, "BUILT_MODULE_NAME", i, "BUILT_MODULE_NAME[%d] is missing: module %d of %d has no name", i, i, n)
		}
		for _, v := range []struct{ directive, name string }{
			{"BUILT_MODULE_NAME", built}, {"DEST_MODULE_NAME", b.get("DEST_MODULE_NAME", i)},
		} {
			if ext := path.Ext(v.name); ext == ".o" || ext == ".ko" {
				b.fault(0, v.directive, i, "%s[%d] is %q: leave out the %q", v.directive, i, v.name, ext)
			}
			if strings.ContainsFunc(v.name, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) {
				b.fault(0, v.directive, i, "%s[%d] is %q: a module's name has no white space", v.directive, i, v.name)
			}
			// dkms takes a folder in the built name where the name at the destination has none.
			path := strings.ContainsRune(v.name, '/') && (v.directive == "DEST_MODULE_NAME" || dest == built)
			if path || v.name == "." || v.name == ".." || leaves(v.name) {
				b.fault(0, v.directive, i, "%s[%d] is %q: a name, not a path; the folder goes into %s[%d]", v.directive, i, v.name,
					strings.Replace(v.directive, "NAME", "LOCATION", 1), i)
			}
		}
		if path.IsAbs(loc) || slices.Contains(strings.Split(loc, "/"), "..") {
			b.fault(0, "BUILT_MODULE_LOCATION", i, "BUILT_MODULE_LOCATION[%d] is %q: it must stay below the source tree", i, loc)
		}
		switch where := b.get("DEST_MODULE_LOCATION", i); {
		case where == "":
			b.fault(0, "DEST_MODULE_LOCATION", i, "DEST_MODULE_LOCATION[%d] is missing", i)
		case !strings.HasPrefix(where, "/kernel") && !strings.HasPrefix(where, "/updates") && !strings.HasPrefix(where, "/extra"):
			b.fault(0, "DEST_MODULE_LOCATION", i, "DEST_MODULE_LOCATION[%d] is %q: it must begin with /kernel, /updates or /extra", i, where)
		case slices.Contains(strings.Split(where, "/"), ".."):
			b.fault(0, "DEST_MODULE_LOCATION", i, "DEST_MODULE_LOCATION[%d] is %q: it must not have a \"..\"", i, where)
		}
		m := Module{
			Built: path.Join(loc, built+".ko"),
			Name:  dest + ".ko",
			Dest:  destination(b.t.Distro, b.get("DEST_MODULE_LOCATION", i)),
			Strip: b.strip(i),
		}
		if first, again := builds[m.Built]; again && built != "" {
			b.fault(0, "BUILT_MODULE_NAME", i, "BUILT_MODULE_NAME[%d] names %q a second time, after BUILT_MODULE_NAME[%d]", i, m.Built, first)
		} else {
			builds[m.Built] = i
		}
		if first, again := dests[m.Name]; again && dest != "" {
			b.fault(0, "DEST_MODULE_NAME", i, "DEST_MODULE_NAME[%d] names %q a second time, after DEST_MODULE_NAME[%d]", i, dest, first)
		} else {
			dests[m.Name] = i
		}
		modules = append(modules, m)
	}
	return modules
}

// strip: the first letter decides; element 0 is the default for the rest, and yes its own. What begins with another letter is yes.
func (c Conf) strip(i int) bool {
	v := c.get("STRIP", i)
	if v == "" {
		v = c.get("STRIP", 0)
	}
	return !strings.HasPrefix(v, "n") && !strings.HasPrefix(v, "N")
}

// leaves says whether a path leads out of the folder that it is put behind.
func leaves(file string) bool {
	clean := path.Clean("./" + file)
	return clean == ".." || strings.HasPrefix(clean, "../")
}

// destination is dkms's override_dest_module_location: on most distributions the conf's own word does not count. dkms goes by ID_LIKE of
// os-release(5), which is fedora's or rhel's for Red Hat's kin, and suse's for SUSE's.
func destination(distro, location string) string {
	switch distro {
	case "fedora", "rhel", "rocky", "almalinux", "centos", "ol", "amzn":
		return "extra"
	case "opensuse-leap", "opensuse-tumbleweed", "sles":
		return "updates"
	case "debian", "ubuntu", "arch":
		return "updates/dkms"
	}
	return strings.Trim(path.Clean(location), "/")
}

// Installable says whether dkms installs modules in a folder below /lib/modules/<release> on a distribution.
func Installable(distro, folder string) bool {
	if fixed := destination(distro, ""); fixed != "." {
		return folder == fixed
	}
	begins := strings.HasPrefix(folder, "kernel") || strings.HasPrefix(folder, "updates") || strings.HasPrefix(folder, "extra")
	return begins && folder == destination(distro, "/"+folder)
}

// rules applies the BUILD_EXCLUSIVE directives and OBSOLETE_BY.
func (b *planner) rules() []Choice {
	var rules []Choice
	rule := func(directive, value string, taken bool, yes, no string) {
		c := Choice{Directive: directive, Value: value, Taken: taken, Why: fmt.Sprintf("%s=%s %s", directive, quote(value), no)}
		if taken {
			c.Why = fmt.Sprintf("%s=%s %s", directive, quote(value), yes)
		}
		rules = append(rules, c)
	}
	for _, d := range []struct{ name, against string }{
		{"BUILD_EXCLUSIVE_KERNEL", b.t.Release}, {"BUILD_EXCLUSIVE_ARCH", b.t.Machine},
	} {
		if e := b.values[d.name][0]; e.value != "" && b.pattern(d.name, 0) {
			rule(d.name, e.value, e.is, fmt.Sprintf("matches %q", d.against), fmt.Sprintf("does not match %q", d.against))
		}
	}
	if lowest := b.get("BUILD_EXCLUSIVE_KERNEL_MIN", 0); lowest != "" {
		rule("BUILD_EXCLUSIVE_KERNEL_MIN", lowest, compareBound(b.t.Release, lowest) >= 0,
			fmt.Sprintf("is not newer than %q", b.t.Release), fmt.Sprintf("is newer than %q", b.t.Release))
	}
	name, highest := "BUILD_EXCLUSIVE_KERNEL_MAX", b.get("BUILD_EXCLUSIVE_KERNEL_MAX", 0)
	if highest == "" {
		name, highest = "OBSOLETE_BY", b.get("OBSOLETE_BY", 0)
	}
	if highest != "" {
		rule(name, highest, compareBound(b.t.Release, highest) <= 0,
			fmt.Sprintf("is not older than %q", b.t.Release), fmt.Sprintf("is older than %q", b.t.Release))
	}
	if b.t.Config == nil { // as in dkms
		return rules
	}
	for _, want := range strings.Fields(b.get("BUILD_EXCLUSIVE_CONFIG", 0)) {
		option, absent := strings.CutPrefix(want, "!")
		set := b.t.Config[option] == "y" || b.t.Config[option] == "m"
		state := fmt.Sprintf("and %s is %s in this kernel", strings.ToValidUTF8(short(option), "?"), map[bool]string{true: "set", false: "not set"}[set])
		name, value := "BUILD_EXCLUSIVE_CONFIG", want
		c := Choice{Directive: name, Value: value, Taken: set != absent, Why: fmt.Sprintf("%s=%s, %s", name, quote(value), state)}
		rules = append(rules, c)
	}
	return rules
}

// pattern says whether an element is a regular expression; if not, that is a fault.
func (b *planner) pattern(directive string, i int) bool {
	e := b.values[directive][i]
	if e.bad {
		b.fault(0, directive, i, "%s[%d] is %q: that is no regular expression", directive, i, e.value)
	}
	return !e.bad
}

// patches are all of them, in their order, and which are applied.
func (b *planner) patches() []Choice {
	var all []Choice
	for i := range b.size("PATCH", "PATCH_MATCH") {
		file, match := b.values["PATCH"][i], b.values["PATCH_MATCH"][i]
		ok := b.pattern("PATCH_MATCH", i)
		if file.value == "" {
			continue
		}
		c := Choice{Directive: fmt.Sprintf("PATCH[%d]", i), Value: file.value, Taken: match.value == "" || ok && match.is, Why: "it is for every kernel"}
		if match.value != "" {
			c.Why = fmt.Sprintf("PATCH_MATCH[%d]=%s %s %q", i, quote(match.value), matches(match.is), b.t.Release)
		}
		switch {
		case !c.Taken:
		case slices.Contains(strings.Split(file.value, "/"), ".."):
			b.fault(codePatch, "PATCH", i, "PATCH[%d] is %q: it has a \"..\" in its path", i, file.value)
		case !file.is:
			b.fault(codePatch, "PATCH", i, "PATCH[%d] is %q, but there is no %q", i, file.value, path.Join("patches", file.value))
		}
		all = append(all, c)
	}
	return all
}

// maxCommand bounds what names a script, in bytes: it goes into an annotation of the artifact.
const maxCommand = 4096

// short is a value, or of a long one the beginning.
func short(s string) string {
	const most = 400
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "…"
	}
	return s
}

// quote shows a pattern as it stands in the conf: with its backslashes once.
func quote(s string) string {
	s = short(s)
	if !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return r == '"' || !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return `"` + s + `"`
}

func matches(yes bool) string {
	if yes {
		return "matches"
	}
	return "does not match"
}

// make chooses among MAKE[]: element 0 unless it has a pattern, then the last whose pattern matches. A literal leading make gets -j
// and KERNELRELEASE; 'make' in quotes is how a conf says no to that.
func (b *planner) make() Choice {
	c := Choice{Taken: true}
	first, hasPattern := b.get("MAKE", 0), b.get("MAKE_MATCH", 0) != ""
	if first != "" && !hasPattern {
		c = Choice{Directive: "MAKE[0]", Value: first, Taken: true, Why: "it is for every kernel"}
	}
	n, others := 0, 0
	for i := range b.size("MAKE", "MAKE_MATCH") {
		m := b.values["MAKE_MATCH"][i]
		if !b.pattern("MAKE_MATCH", i) || m.value == "" || b.get("MAKE", i) == "" {
			continue
		}
		others++
		if m.is {
			n++
			c = Choice{Directive: fmt.Sprintf("MAKE[%d]", i), Value: b.get("MAKE", i), Taken: true,
				Why: fmt.Sprintf("MAKE_MATCH[%d]=%s matches %q", i, quote(m.value), b.t.Release)}
		}
	}
	switch {
	case n > 1:
		c.Why += ", the last that does"
	case n == 0 && others > 0:
		c.Why = fmt.Sprintf("no MAKE_MATCH matches %q", b.t.Release)
	}
	if c.Value == "" {
		c.Value = "make -C " + b.t.KernelSource() + " M=" + b.t.Build()
		if c.Why == "" {
			c.Why = "there is no MAKE"
		}
	}
	if b.t.Clang() {
		c.Value += " LLVM=1"
	}
	if rest, ok := strings.CutPrefix(c.Value, "make"); ok {
		c.Value = fmt.Sprintf("make -j%d KERNELRELEASE=%s%s", max(1, b.t.Jobs), b.t.Release, rest)
	}
	return c
}

// remarks adds what is said of a conf that is not faulty.
func (b *planner) remarks(p *Plan) {
	warn := func(directive string, i int, format string, args ...any) string {
		f := Fault{Text: fmt.Sprintf(format, args...)}
		f.File, f.Line = b.places.of(directive, i, b.get(directive, i))
		return f.String()
	}
	if len(p.Modules) == 0 {
		p.Warnings = append(p.Warnings, "dkms.conf: it names no module: BUILT_MODULE_NAME and DEST_MODULE_LOCATION are missing")
	}
	for _, f := range b.misspelt {
		p.Warnings = append(p.Warnings, f.String())
	}
	for _, name := range directives {
		if len(b.values[name]) > 0 && (name == "REMAKE_INITRD" || strings.HasPrefix(name, "MODULES_CONF")) {
			p.Warnings = append(p.Warnings, warn(name, 0, "%s is deprecated and means nothing", name))
		}
	}
	if clean := b.get("CLEAN", 0); clean != "" && path.Base(clean) != "true" {
		p.Notices = append(p.Notices, warn("CLEAN", 0, "CLEAN is deprecated and not run: every build has a fresh copy of the source"))
	}
}

// script runs a PRE_BUILD or POST_BUILD: a path below the build folder, with arguments. As in dkms one that is not executable is
// left out.
func (t Target) script(name, command string) Step {
	file, _, _ := strings.Cut(command, " ")
	return Step{Name: name, Args: t.bash(`eval "$PWD/$1"`, command), Script: path.Join(t.Build(), file), Tells: true}
}

const collecting = "collecting the modules"

// collect strips the modules and copies them to where dkms keeps what it built, so that POST_BUILD finds them there. Of the
// Module.symvers it takes one byte more than kmod.ReadSymvers does: they may be sparse files of any size.
func (t Target) collect(modules []Module) Step {
	args := []string{t.Output()}
	for _, m := range modules {
		strip := ""
		if m.Strip {
			strip = "strip"
			if t.Clang() {
				strip = "llvm-strip"
			}
		}
		args = append(args, m.Built, m.Name, strip)
	}
	return Step{Name: collecting, Tells: true, Args: append([]string{"bash", "-c", `set -e
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
