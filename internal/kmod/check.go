package kmod

import (
	"debug/elf"
	"fmt"
	"slices"
	"strings"
)

// A Target is a kernel that a module is meant for.
type Target struct {
	Arch                Arch
	Release             string
	Vermagic            string // "" leaves it unchecked
	ModVersions         bool   // CONFIG_MODVERSIONS: CRCs count
	AllowMissingImports bool   // CONFIG_MODULE_ALLOW_MISSING_NAMESPACE_IMPORTS: namespaces need not be imported
	Symvers             Symvers
	Others              []Symvers // of modules that will be loaded before; they win over Symvers, which may list them in-tree
}

func (t Target) lookup(name string) (Symbol, bool) {
	for _, o := range t.Others {
		if s, ok := o[name]; ok {
			return s, true
		}
	}
	s, ok := t.Symvers[name]
	return s, ok
}

// A LoadError lists why a kernel would not load a module, one problem a line, always in the same order.
type LoadError struct {
	Module   string // its name by .modinfo, may be empty
	Problems []string
}

func (e *LoadError) Error() string { return strings.Join(e.Problems, "\n") }

// Check returns a *LoadError with every reason for which the target would not load the module, as kernel/module decides it
// without force, or nil. It is stricter in two things: a release that differs is an error even where versioned symbols
// would let it pass, and so is a module that carries symbol versions but none for module_layout.
func Check(m *Module, t Target) error {
	e := &LoadError{Module: m.Get("name")}
	add := func(format string, a ...any) { e.Problems = append(e.Problems, fmt.Sprintf(format, a...)) }

	if m.Type != elf.ET_REL || !m.ThisModule {
		add("not a kernel module: its ELF type is %s and section .gnu.linkonce.this_module is %s", typeName(m.Type), presence(m.ThisModule))
	}
	if got := (Arch{m.Machine, m.Class, m.Data}); t.Arch != (Arch{}) && got != t.Arch {
		add("built for %s, the kernel is %s", got, t.Arch)
	}
	if !m.HasSymbols {
		add("it has no symbol table (stripped too far)")
	}
	if t.Vermagic != "" && m.Vermagic() != t.Vermagic {
		got, want := m.Vermagic(), t.Vermagic
		if g, w := strings.TrimRight(got, " "), strings.TrimRight(want, " "); g != w {
			got, want = g, w
		}
		add("vermagic is %q, the kernel wants %q", got, want)
	}

	var missing []string
	for _, name := range m.Undefined {
		if _, ok := t.lookup(name); !ok {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		add("the kernel does not export: %s", list(missing))
	}
	if t.ModVersions {
		checkVersions(m, t, add)
	}

	used := slices.Concat(m.Undefined, m.Weak)
	slices.Sort(used)
	if !t.AllowMissingImports {
		imports := m.All("import_ns")
		for _, name := range used {
			s, ok := t.lookup(name)
			if ok && s.Namespace != "" && !slices.Contains(imports, s.Namespace) && !inModuleNamespace(s.Namespace, m.Get("name")) {
				add("symbol %q is in namespace %q, which the module does not import", name, s.Namespace)
			}
		}
	}
	if l := m.Get("license"); !gplCompatible(l) {
		var gpl []string
		for _, name := range used {
			if s, ok := t.lookup(name); ok && s.GPLOnly() {
				gpl = append(gpl, name)
			}
		}
		if len(gpl) > 0 {
			add("the licence %q is not compatible with the GPL, but these symbols need it: %s", l, strings.Join(gpl, ", "))
		}
	}
	if len(e.Problems) == 0 {
		return nil
	}
	return e
}

func checkVersions(m *Module, t Target, add func(string, ...any)) {
	if !m.HasVersions {
		add("it has no symbol versions, the kernel wants them")
		return
	}
	// In-tree modules of a few hundred bytes, without any symbol, have module_layout too: modpost adds it always.
	layout := false
	vs := slices.Clone(m.Versions)
	slices.SortStableFunc(vs, func(a, b Version) int { return strings.Compare(a.Name, b.Name) })
	for _, v := range slices.Compact(vs) {
		layout = layout || v.Name == "module_layout"
		if s, ok := t.lookup(v.Name); ok && s.CRC != 0 && s.CRC != v.CRC {
			add("symbol %q has version %#08x, the kernel's is %#08x", v.Name, v.CRC, s.CRC)
		}
	}
	if _, ok := t.lookup("module_layout"); ok && !layout {
		add("it has no version for \"module_layout\"")
	}
}

// gplCompatible is license_is_gpl_compatible of include/linux/license.h.
func gplCompatible(license string) bool {
	switch license {
	case "GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL":
		return true
	}
	return false
}

// inModuleNamespace is verify_module_namespace of kernel/module/main.c (6.16): "module:a,b*" is open to the modules a and b*.
func inModuleNamespace(namespace, module string) bool {
	list, ok := strings.CutPrefix(namespace, "module:")
	if !ok {
		return false
	}
	module = strings.ReplaceAll(module, "-", "_")
	for p := range strings.SplitSeq(strings.ReplaceAll(list, "-", "_"), ",") {
		if prefix, glob := strings.CutSuffix(p, "*"); p == module || glob && strings.HasPrefix(module, prefix) {
			return true
		}
	}
	return false
}

// list names all of them, unless there are more than anybody would read.
func list(names []string) string {
	const most = 500
	if n := len(names) - most; n > 0 {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), n)
	}
	return strings.Join(names, ", ")
}

func presence(there bool) string {
	if there {
		return "there"
	}
	return "missing"
}

func typeName(t elf.Type) string {
	switch t {
	case elf.ET_REL:
		return "relocatable"
	case elf.ET_EXEC:
		return "executable"
	case elf.ET_DYN:
		return "shared object"
	}
	return fmt.Sprintf("%d", uint16(t))
}

// String gives the kernel's name of the architecture: "x86_64", "aarch64", …, "powerpc64 big-endian".
func (a Arch) String() string {
	for _, name := range []string{"x86_64", "aarch64", "i386", "arm", "ppc64le", "s390x", "riscv64", "mips64el", "mipsel", "loongarch64"} {
		if known, err := ArchOf(name); err == nil && known == a {
			return name
		}
	}
	return fmt.Sprintf("ELF machine %d, %s, %s", uint16(a.Machine), a.Class, a.Data)
}
