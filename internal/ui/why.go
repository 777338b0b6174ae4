package ui

import (
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// Missing is what a build root lacks.
type Missing struct {
	Kind string // MissingProgram, …
	Name string // "flex", "libnl3/netlink/netlink.h", "libnl-3.0", "elf" for -lelf
}

// Kinds of what is missing.
const (
	MissingProgram   = "program"
	MissingHeader    = "header" // of a library: the kernel's own are in no package that could be added
	MissingPkgConfig = "pkg-config"
	MissingLibrary   = "library"
)

const (
	maxWhy     = 200 // columns
	maxMissing = 16
	nextLines  = 16 // after an error, in which its notes are
)

const (
	changed = "the kernel's API changed: "
	quoted  = `'([^']+)'`
	aka     = `(?: (?:\{aka|\(aka) [^'"]*'[^']+'[})])?` // the type behind a typedef, of gcc or clang
)

// rule explains one message. Of quotes a line has ASCII ones when it's looked at; why and then may have $1, which is what the first
// group of re or next matched.
type rule struct {
	re   *regexp.Regexp
	why  string
	kind string // of Missing, named by $1
	// next is looked for in the lines that follow; where it matches, then takes the place of why.
	next *regexp.Regexp
	then string
	// say takes the place of why and then, where that takes more than a template. after is nil, or what next matched.
	say func(m, after []string) (string, Missing)
}

func re(s string) *regexp.Regexp { return regexp.MustCompile(s) }

// rules are tried in order. The samples in testdata are of gcc 12 to 16 and clang 14 to 19. Making them takes longer than all else that
// the program does before it begins, and few commands need them.
var rules = sync.OnceValue(func() []rule {
	return []rule{
		// What the build ran out of.
		{re: re(`: No space left on device|: 'No space left on device'|: Disk quota exceeded`), why: "no space is left for what the build writes"},
		{re: re(`Killed signal terminated program|internal compiler error: Killed|unable to execute command: Killed|^make.*\] (?:Killed|Error 137)$`),
			why: "a program of the build was killed: most likely it was out of memory"},
		{re: re(`virtual memory exhausted|[Oo]ut of memory|out of memory allocating|Cannot allocate memory|memory exhausted`), why: "out of memory"},

		// What the source uses and the kernel hasn't.
		{re: re(`error: (?:implicit declaration of|call to undeclared) (?:library )?function ` + quoted), why: changed + "$1 is not declared in this kernel"},
		{re: re(`error: ` + quoted + ` undeclared |error: use of undeclared identifier ` + quoted), why: changed + "$1$2 is not declared in this kernel"},
		{re: re(`error: unknown type name ` + quoted), why: changed + "the type $1 is not declared in this kernel"},
		{re: re(`error: (?:invalid use of undefined type|dereferencing pointer to incomplete type|(?:.* )?incomplete (?:definition of )?type) ` + quoted),
			why: changed + "$1 is not defined in this kernel"},
		{re: re(`error: storage size of ` + quoted + ` isn't known`), why: changed + "the type of $1 is not defined in this kernel",
			next: re(`\b((?:struct|union) \w+) `), then: changed + "$1 is not defined in this kernel"},
		{re: re(`error: '(?:const )?([^']+)'` + aka + ` has no member named ` + quoted), why: changed + "$1 has no member $2"},
		{re: re(`error: no member named ` + quoted + ` in '(?:const )?([^']+)'`), why: changed + "$2 has no member $1"},
		{re: re(`error: field designator ` + quoted + ` does not refer to any (?:non-static data member|field) in type '(?:const )?([^']+)'`),
			why: changed + "$2 has no member $1"},
		{re: re(`error: unknown field ` + quoted + ` specified in initializer`), why: changed + "a struct has no member $1"},
		{re: re(`error: [^']*too many arguments to (?:method |function )` + quoted), why: changed + "$1 takes fewer arguments in this kernel"},
		{re: re(`error: [^']*too few arguments to (?:method |function )` + quoted), why: changed + "$1 takes more arguments in this kernel"},
		{re: re(`error: too many arguments to function call`), why: changed + "a function takes fewer arguments in this kernel",
			next: re(`note: ` + quoted + ` declared here`), then: changed + "$1 takes fewer arguments in this kernel"},
		{re: re(`error: too few arguments to function call`), why: changed + "a function takes more arguments in this kernel",
			next: re(`note: ` + quoted + ` declared here`), then: changed + "$1 takes more arguments in this kernel"},
		{re: re(`error: macro ['"](\w+)['"] passed \d+ arguments`), why: changed + "$1 takes fewer arguments in this kernel"},
		{re: re(`error: macro ['"](\w+)['"] requires \d+ arguments`), why: changed + "$1 takes more arguments in this kernel"},
		{re: re(`error: too many arguments provided to function-like macro`), why: changed + "a macro takes fewer arguments in this kernel",
			next: re(`note: macro ` + quoted + ` defined here`), then: changed + "$1 takes fewer arguments in this kernel"},
		{re: re(`error: too few arguments provided to function-like macro`), why: changed + "a macro takes more arguments in this kernel",
			next: re(`note: macro ` + quoted + ` defined here`), then: changed + "$1 takes more arguments in this kernel"},
		{re: re(`error: (?:passing|incompatible type for) argument (\d+) of ` + quoted), say: argument,
			next: re(`error: too (many|few) arguments to function ` + quoted)},
		{re: re(`error: incompatible (?:function )?(?:pointer|integer to pointer|pointer to integer) (?:types|conversion) passing ` + quoted + aka + ` to parameter of type ` + quoted),
			why: changed + "an argument is '$2' in this kernel, not '$1'"},
		{re: re(`error: (?:initialization of|assignment to) ` + quoted + aka + ` from (?:incompatible pointer type )?` + quoted),
			why:  changed + "it wants '$1', not '$2'",
			next: re(`\(near initialization for '[^']*?[\].](\w+)'\)|(?:->|\.)(\w+) = `), then: changed + ".$1$2 has another type in this kernel"},
		{re: re(`error: incompatible (?:function )?(?:pointer|integer to pointer|pointer to integer) (?:types|conversion) (?:initializing|assigning to) ` + quoted + aka + ` (?:with an expression of type|from) ` + quoted),
			why:  changed + "it wants '$1', not '$2'",
			next: re(`(?:->|\.)(\w+) = `), then: changed + ".$1 has another type in this kernel"},
		{re: re(`error: (?:void value not ignored as it ought to be|invalid use of void expression)|error: (?:initializing|assigning to|returning) .*incompatible type 'void'|error: returning 'void' from a function with incompatible`),
			why:  changed + "a function returns nothing in this kernel",
			next: re(`(?:=|return) *(\w+)\(`), then: changed + "$1 returns nothing in this kernel"},
		{re: re(`error: (?:incompatible .*)?returning ` + quoted + aka + ` from a function with (?:incompatible return|result) type ` + quoted),
			why: changed + "it wants '$2', not '$1'"},
		{re: re(`error: (?:conflicting types for|redefinition of|static declaration of) ` + quoted), why: changed + "this kernel has its own $1"},

		// Headers.
		{re: re(`:\d+: fatal error: (?:([^:']+): No such file or directory|` + quoted + ` file not found)`), say: header, next: re(`#\s*include\s*(["<])`)},

		// What the source checks.
		{re: re(`error: #error (.*)`), say: refused},
		{re: re(`^[^\s:]+:\d+: \*\*\* (.*CONFIG_[A-Z0-9_]+.*)`), say: refused},
		{re: re(`error: call to '__compiletime_assert_\d+' declared with (?:attribute error|'error' attribute): (.*)`), why: "the source checks something that doesn't hold for this kernel: $1"},
		{re: re(`error: static(?:_assert| assertion) failed(?: due to requirement)?[: ]*(.*)`), why: "the source checks something that doesn't hold for this kernel: $1"},

		// modpost and the linkers.
		{re: re(`^ERROR: (?:modpost: )?"([^"]+)" \[[^\]]*\] undefined!`), why: "this kernel exports no symbol $1"},
		{re: re(`modpost: GPL-incompatible module \S+ uses GPL-only symbol ` + quoted), why: "this kernel exports $1 to modules with a GPL-compatible MODULE_LICENSE only"},
		{re: re(`modpost: module \S+ uses symbol (\S+) from namespace ([^\s,]+), but does not import it`),
			why: changed + "$1 is in the namespace $2, which the source must import with MODULE_IMPORT_NS"},
		{re: re(`modpost: missing MODULE_LICENSE\(\)`), why: "the source has no MODULE_LICENSE"},
		{re: re(`(?:cannot find|unable to find library) -l([\w.+-]+)`), why: "the library $1 is missing", kind: MissingLibrary},
		{re: re(`undefined reference to ` + quoted + `|undefined symbol: (\S+)`), why: "nothing that is linked defines $1$2"},

		// Flags.
		{re: re(`(?:^|[/-])(?:ld(?:\.\w+)?): (?:error: )?(?:unrecognized option|unknown argument:?) ` + quoted), why: "the linker doesn't know the flag $1"},
		{re: re(`^as: unrecognized option ` + quoted), why: "the assembler doesn't know the flag $1"},
		{re: re(`error: (?:unrecognized (?:command[- ]line option|argument in option)|unknown argument:?|unknown warning option|unsupported option|(?:unsupported argument|invalid value) '[^']*' (?:to option|in)) ` + quoted),
			why: "the compiler doesn't know the flag $1"},
		{re: re(`error: bad value \(?'([^']*)'\)? for '([^']*)' switch`), why: "the compiler doesn't know the flag $2$1"},
		{re: re(`error: unknown target CPU ` + quoted), why: "the compiler doesn't know the processor $1"},

		// Warnings; what is said above says more than that it's one.
		{re: re(`error: .* \[-Werror(?:=|,-W)([\w+=-]+)\]$`), why: "the source has warnings taken for errors: -W$1"},
		{re: re(`error: .* \[-Werror\]$`), why: "the source has warnings taken for errors (-Werror)"},
		{re: re(`: error: (.+)$`), say: func(_, after []string) (string, Missing) { // clang says what stands behind the #error, without the word
			if after == nil {
				return "", Missing{}
			}
			return refused(after, nil)
		}, next: re(`^\s*(?:\d+ \|)?\s*#\s*error\s+(.*)`)},

		// Programs and files.
		{re: re(`(?i)could not resolve host|temporary failure in name resolution|unable to resolve host|network is unreachable`), why: "the build wants something from the network, and has none"},
		{re: re(`: ([^\s:]+): bad interpreter: `), say: program},
		{re: re(`(?:^|/)(?:ba|da)?sh: (?:(?:line )?\d+: )?([^\s:]+): (?:command )?not found$|: line \d+: ([^\s:]+): command not found$|: \d+: ([^\s:]+): not found$`), say: program},
		{re: re(`(?:^|/)(?:make(?:\[\d+\])?|env|xargs|nice|time|timeout): '?([^\s:']+)'?: No such file or directory$`), say: program},
		{re: re(`^Package '([^']+)', required by '[^']*', not found|^Package (\S+) was not found in the pkg-config search path|^No package '([^']+)' found`),
			why: "the library $1$2$3 is missing: pkg-config doesn't know it", kind: MissingPkgConfig},
		{re: re(`Can't locate (\S+)\.pm in @INC`), why: "a module of perl is missing: $1.pm"},
		{re: re(`^(?:ModuleNotFoundError|ImportError): No module named '?([\w.]+)`), why: "a module of python is missing: $1"},
		{re: re(`\*\*\* No rule to make target ` + quoted + `, needed by `), why: "the file $1 is missing, and no Makefile says how to make it"},
		{re: re(`\*\*\* No rule to make target ` + quoted), why: "no Makefile has the target $1"},
		{re: re(`\*\*\* ((?:/usr)?/lib/modules/[^:]+|/usr/src/[^:]+): No such file or directory`), why: "the Makefile asks for a kernel in $1, where none is"},

		// Steps of the build that say in the end that something failed.
		{re: re(`^patch: \*\*\*\* Can't open patch file '?([^\s']+)`), why: "the patch $1 is missing"},
		{re: re(`^Hunk #\d+ FAILED|^\d+ out of \d+ hunks? |^can't find file to patch|^Reversed \(or previously applied\) patch|^patch: \*\*\*\* `), why: "a patch doesn't apply to this source"},
		{re: re(`^The build ended without an error, but did not make `), why: "the modules are not where the dkms.conf says: see its BUILT_MODULE_NAME and BUILT_MODULE_LOCATION"},
	}
})

// noise are lines that a good build may have too.
var noise = re(`: warning: |\bpahole\b|Skipping BTF |load BTF |^libbpf: `)

var straight = strings.NewReplacer("‘", "'", "’", "'", "`", "'", "“", `"`, "”", `"`)

// explanation is what a line is explained by. More may follow in the next lines.
type explanation struct {
	rule    *rule
	m       []string
	why     string
	missing Missing
	left    int // lines in which next is looked for
}

// explain finds the rule for a line that is an error.
func explain(line string) explanation {
	line = straight.Replace(line)
	all := rules()
	for i := range all {
		r := &all[i]
		m := r.re.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		e := explanation{rule: r, m: m}
		if r.next != nil {
			e.left = nextLines
		}
		e.set(r.why, m, nil)
		return e
	}
	return explanation{}
}

// read looks at a line that follows.
func (e *explanation) read(line string) {
	if e.left == 0 {
		return
	}
	e.left--
	line = straight.Replace(line)
	if m := e.rule.next.FindStringSubmatch(line); m != nil {
		e.left = 0
		e.set(e.rule.then, e.m, m)
	} else if strings.Contains(line, ": error: ") || strings.Contains(line, ": warning: ") { // notes of another
		e.left = 0
	}
}

func (e *explanation) set(template string, m, after []string) {
	r := e.rule
	if r.say != nil {
		e.why, e.missing = r.say(m, after)
	} else {
		if after != nil {
			m = after
		}
		e.why = fill(template, m)
		if r.kind != "" {
			e.missing = Missing{r.kind, fill("$1$2$3", m)}
		}
	}
	e.why = cut(strings.TrimSpace(cleanLine(e.why)), maxWhy)
	if !missingName.MatchString(e.missing.Name) || strings.Contains("/"+e.missing.Name+"/", "/../") {
		e.missing = Missing{}
	}
}

// missingName keeps a log from handing anything to a search that is no name.
var missingName = re(`^\w[\w.+/-]{0,127}$`)

func fill(template string, m []string) string {
	m = append(slices.Clone(m), "", "", "")
	return strings.NewReplacer("$1", m[1], "$2", m[2], "$3", m[3]).Replace(template)
}

// argument: where another argument was put in front or dropped, the compiler complains of the type before it does of the number.
func argument(m, after []string) (string, Missing) {
	if after != nil && after[2] == m[2] {
		return changed + m[2] + " takes " + map[string]string{"many": "fewer", "few": "more"}[after[1]] + " arguments in this kernel", Missing{}
	}
	return changed + "argument " + m[1] + " of " + m[2] + " has another type in this kernel", Missing{}
}

// ofKernel are the folders of headers that are a kernel's own.
var ofKernel = re(`^(acpi|asm|asm-generic|clocksource|config|crypto|cxl|drm|dt-bindings|generated|keys|kunit|kvm|linux|math-emu|media|memory|misc|net|pcmcia|ras|rdma|rv|scsi|soc|sound|target|trace|uapi|ufs|vdso|video|xen)/`)

func header(m, after []string) (string, Missing) {
	name := m[1] + m[2]
	switch {
	case ofKernel.MatchString(name):
		return "the header " + name + " is not in this kernel", Missing{}
	case name == "stdarg.h" || name == "stddef.h":
		return changed + name + " is linux/" + name + " in this kernel", Missing{}
	case after != nil && after[1] == `"`:
		return "the header " + name + " is missing", Missing{MissingHeader, name}
	}
	return "the header " + name + " of a library is missing", Missing{MissingHeader, name}
}

var (
	option = re(`\bCONFIG_[A-Z0-9_]+`)
	unless = re(`(?i)\b(disable|disabled|unset|turn off|switch off|must not|conflicts?|incompatible|not supported with|does not support|doesn't support|without)\b`)
)

// refused is about the text of an #error or $(error).
func refused(m, _ []string) (string, Missing) {
	text := strings.Trim(strings.TrimSuffix(strings.TrimSpace(m[1]), "Stop."), `" `)
	switch name := option.FindString(text); {
	case name == "":
		return "the source refuses this kernel: " + text, Missing{}
	case unless.MatchString(text):
		return "this kernel is built with " + name, Missing{}
	default:
		return "this kernel is built without " + name, Missing{}
	}
}

func program(m, _ []string) (string, Missing) {
	name := strings.Join(m[1:], "")
	if path.IsAbs(name) {
		return "the program " + name + " is missing", Missing{MissingProgram, path.Base(name)}
	}
	if strings.Contains(name, "/") { // of the source
		return "the program " + name + " is missing", Missing{}
	}
	return "the program " + name + " is missing", Missing{MissingProgram, name}
}
