package images

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/godkms-hermetic/godkms-hermetic/internal/kmod"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// A moduleIndex says what a kernel's modules need, and where in a file they are. Names have _ where files and aliases may have -. Its text
// has a line for each:
//
//	module NAME OFFSET LENGTH SIZE SHA256 NEEDED,... BEFORE,...
//	alias NAME MODULE
//	builtin NAME
//
// with - for an empty list.
type moduleIndex struct {
	modules map[string]indexed
	aliases map[string]string // those that can be a name in a soft dependency, each with the module that it stands for
	builtin map[string]bool   // names and aliases
}

// indexed is a module of an index.
type indexed struct {
	offset, length int64 // in the file of modules, compressed
	size           int64
	sum            string   // SHA-256 of the module, hexadecimal
	needs          []string // modules without which it doesn't load
	before         []string // modules or aliases that are better loaded before it (softdep pre:), where there are such
}

// Limits for what is read of a kernel's modules. Debian's 6.12 has 4,300, the longest of whose names has 37 bytes.
const (
	maxModules     = 1 << 15
	maxModuleName  = 128
	maxModuleNames = 1 << 18 // aliases and what is built in, together
)

// moduleName is the form of a name that is one in an index. What is none can't be asked for.
var moduleName = regexp.MustCompile(`^[A-Za-z0-9_.+,]+$`)

// normal gives a name as the index has it, or false if it can't be one.
func normal(name string) (string, bool) {
	name = strings.ReplaceAll(name, "-", "_")
	return name, len(name) <= maxModuleName && name != "_" && !strings.Contains(name, ",") && moduleName.MatchString(name)
}

// needsOf gives the modules that a module says it needs.
func needsOf(info kmod.Info) ([]string, error) {
	var out []string
	for name := range strings.SplitSeq(info.Get("depends"), ",") {
		if name == "" {
			continue
		}
		n, ok := normal(name)
		if !ok {
			return nil, fmt.Errorf("it depends on %q, which is no module's name", name)
		}
		out = append(out, n)
	}
	return out, nil
}

// beforeOf gives what a module would have loaded before it: "softdep=pre: a b post: c".
func beforeOf(info kmod.Info) []string {
	var out []string
	for _, value := range info.All("softdep") {
		pre := false
		for _, word := range strings.Fields(value) {
			switch n, ok := normal(word); {
			case word == "pre:" || word == "post:":
				pre = word == "pre:"
			case pre && ok && !slices.Contains(out, n):
				out = append(out, n)
			}
		}
	}
	return out
}

// aliasesOf gives the aliases that a soft dependency could name. Those of devices, which are most, have a colon or a wildcard.
func aliasesOf(info kmod.Info) []string {
	var out []string
	for _, a := range info.All("alias") {
		if n, ok := normal(a); ok {
			out = append(out, n)
		}
	}
	return out
}

// readBuiltin gives the names that modules.builtin has, one path in a line.
func readBuiltin(text []byte) []string {
	var out []string
	for line := range bytes.Lines(text) {
		line = bytes.TrimSpace(line)
		base, ok := bytes.CutSuffix(line[bytes.LastIndexByte(line, '/')+1:], []byte(".ko"))
		if n, valid := normal(string(base)); ok && valid {
			out = append(out, n)
		}
	}
	return out
}

// readBuiltinInfo gives the aliases that modules.builtin.modinfo has, which is MODULE.KEY=VALUE, each with a zero behind it.
func readBuiltinInfo(text []byte) []string {
	var out []string
	for field := range bytes.SplitSeq(text, []byte{0}) {
		key, value, _ := bytes.Cut(field, []byte("="))
		if !bytes.HasSuffix(key, []byte(".alias")) {
			continue
		}
		if n, ok := normal(string(value)); ok {
			out = append(out, n)
		}
	}
	return out
}

// addAlias notes that a module has an alias. Of several that have it, it stands for the one that any processor can run, whose name ends in
// _generic, or else for the first by name.
func (x *moduleIndex) addAlias(alias, module string) {
	generic := func(name string) bool { return strings.HasSuffix(name, "_generic") }
	old, ok := x.aliases[alias]
	if !ok || generic(module) && !generic(old) || generic(module) == generic(old) && module < old {
		x.aliases[alias] = module
	}
}

// encode gives the index's text.
func (x *moduleIndex) encode() []byte {
	var b bytes.Buffer
	join := func(names []string) string {
		if len(names) == 0 {
			return "-"
		}
		return strings.Join(names, ",")
	}
	for _, name := range slices.Sorted(maps.Keys(x.modules)) {
		m := x.modules[name]
		fmt.Fprintln(&b, "module", name, m.offset, m.length, m.size, m.sum, join(m.needs), join(m.before))
	}
	for _, name := range slices.Sorted(maps.Keys(x.aliases)) {
		fmt.Fprintln(&b, "alias", name, x.aliases[name])
	}
	for _, name := range slices.Sorted(maps.Keys(x.builtin)) {
		fmt.Fprintln(&b, "builtin", name)
	}
	return b.Bytes()
}

// decodeModuleIndex reads what encode gave, for a file of modules of size bytes.
func decodeModuleIndex(text []byte, size int64) (*moduleIndex, error) {
	x := &moduleIndex{modules: map[string]indexed{}, aliases: map[string]string{}, builtin: map[string]bool{}}
	for line := range strings.Lines(string(text)) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), " ")
		bad := fmt.Errorf("the line %.200q has no meaning", line)
		for _, name := range f {
			if !moduleName.MatchString(name) && name != "-" {
				return nil, bad
			}
		}
		switch {
		case f[0] == "module" && len(f) == 8:
			m := indexed{sum: f[5]}
			for i, n := range []*int64{&m.offset, &m.length, &m.size} {
				var err error
				if *n, err = strconv.ParseInt(f[2+i], 10, 64); err != nil || *n < 0 {
					return nil, bad
				}
			}
			for i, list := range []*[]string{&m.needs, &m.before} {
				if f[6+i] != "-" {
					*list = strings.Split(f[6+i], ",")
				}
			}
			sum, err := hex.DecodeString(m.sum)
			if err != nil || len(sum) != 32 || m.offset > size || m.length > size-m.offset || m.size > maxModule {
				return nil, bad
			}
			x.modules[f[1]] = m
		case f[0] == "alias" && len(f) == 3:
			x.aliases[f[1]] = f[2]
		case f[0] == "builtin" && len(f) == 2:
			x.builtin[f[1]] = true
		default:
			return nil, bad
		}
	}
	return x, nil
}

// errNoModule is of a name that the kernel doesn't know.
func errNoModule(name string) error {
	return fmt.Errorf("the kernel has no module %q: %w", name, kernels.ErrNotFound)
}

// resolve gives the modules that names stand for, with all that they need, each after what it needs.
func (x *moduleIndex) resolve(names []string) ([]string, error) {
	r := resolution{index: x, state: map[string]int{}}
	for _, name := range names {
		if err := r.add(name); err != nil {
			return nil, err
		}
	}
	return r.order, nil
}

// A resolution is an answer while it's being made.
type resolution struct {
	index *moduleIndex
	order []string
	state map[string]int // of modules: begun, or added
}

const (
	begun = 1 + iota
	added
)

// find gives the module that a name or an alias stands for; it is empty if that's built in.
func (x *moduleIndex) find(name string) (string, error) {
	n, ok := normal(name)
	if !ok {
		return "", errNoModule(name)
	}
	if x.builtin[n] {
		return "", nil
	}
	if _, ok := x.modules[n]; ok {
		return n, nil
	}
	if m, ok := x.aliases[n]; ok {
		return m, nil
	}
	return "", errNoModule(name)
}

func (r *resolution) add(name string) error {
	name, err := r.index.find(name)
	if err != nil || name == "" || r.state[name] == added {
		return err
	}
	if r.state[name] == begun {
		return fmt.Errorf("the module %q needs itself", name)
	}
	r.state[name] = begun
	m := r.index.modules[name]
	for _, soft := range m.before {
		// Those that there aren't, or that would need this one first, are passed over, as modprobe does.
		if !r.blocked(soft, map[string]bool{}) {
			if err := r.add(soft); err != nil {
				return err
			}
		}
	}
	for _, need := range m.needs {
		if err := r.add(need); err != nil {
			return fmt.Errorf("the module %q needs %q: %w", name, need, err)
		}
	}
	r.state[name] = added
	r.order = append(r.order, name)
	return nil
}

// blocked tells whether a module can't be added now.
func (r *resolution) blocked(name string, seen map[string]bool) bool {
	name, err := r.index.find(name)
	if err != nil || r.state[name] == begun {
		return true
	}
	if seen[name] || r.state[name] == added {
		return false
	}
	seen[name] = true
	return slices.ContainsFunc(r.index.modules[name].needs, func(n string) bool { return r.blocked(n, seen) })
}

var errNotAKernel = errors.New("not a kernel that can be booted")
