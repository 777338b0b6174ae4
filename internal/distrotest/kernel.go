package distrotest

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Kernel is the headers of a real kernel under another release. They are those that the modules in testdata include, with all that
// is included by them; Module.symvers is whole.
type Kernel struct {
	Release  string // what uname -r is to print
	Compiler string // CONFIG_CC_VERSION_TEXT

	m *material
}

// Headers gives the headers of a kernel of that release, which says that compiler built it: "gcc (GCC) 12.2.0". Empty, it is Debian's.
func Headers(t testing.TB, release, compiler string) Kernel {
	t.Helper()
	m := source(t)
	if compiler == "" {
		compiler = m.Compiler
	}
	return Kernel{release, compiler, m}
}

// OneFolder has the headers in one folder, as RPM distributions have them in usr/src/kernels/RELEASE and Arch in usr/lib/modules/RELEASE/build.
func (k Kernel) OneFolder(dir string) Files {
	return k.m.Common.With(k.flavour(), k.m.Kbuild, Files{"Makefile": k.m.Common["Makefile"]}).Below(dir)
}

// TwoFolders has the sources, which any flavour shares, in one folder, and in another what is this kernel's, whose Makefile includes the
// first one's. So it is in Debian (usr/src/linux-headers-6.1.0-56-common and …-amd64) and SUSE (usr/src/linux-6.4.0-150600.21 and
// usr/src/linux-6.4.0-150600.21-obj/x86_64/default).
func (k Kernel) TwoFolders(shared, own string) (common, flavour Files) {
	common = k.m.Common.With(k.m.Kbuild.only(false)).Below(shared)
	flavour = k.flavour().With(k.m.Kbuild).Below(own)
	flavour[path.Join(own, "Makefile")] = Text("include /" + path.Join(shared, "Makefile") + "\n")
	return common, flavour
}

// Linked has what any flavour shares in one folder, and in another what is this kernel's, with links to all of the first. So it is in
// Ubuntu (usr/src/linux-headers-6.8.0-31 and …-generic).
func (k Kernel) Linked(shared, own string) (common, flavour Files) {
	common = k.m.Common.With(k.m.Kbuild.only(false)).Below(shared)
	flavour = k.flavour().With(k.m.Kbuild.only(true))
	delete(flavour, "Makefile")
	var link func(dir string)
	link = func(dir string) {
		for _, name := range k.children(dir) {
			at := path.Join(dir, name)
			if flavour.hasBelow(at) {
				link(at)
			} else if _, ok := flavour[at]; !ok {
				up, _ := filepath.Rel(path.Join("/", own, dir), path.Join("/", shared, at))
				flavour[at] = Link(up)
			}
		}
	}
	link("")
	return common, flavour.Below(own)
}

// children are the names in a folder of what flavours share.
func (k Kernel) children(dir string) []string {
	found := map[string]bool{}
	for _, files := range []Files{k.m.Common, k.m.Kbuild.only(false)} {
		for name := range files {
			rest, ok := strings.CutPrefix("/"+name, path.Join("/", dir)+"/")
			if dir == "" {
				rest, ok = name, true
			}
			if ok {
				first, _, _ := strings.Cut(rest, "/")
				found[first] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

func (f Files) hasBelow(dir string) bool {
	for name := range f {
		if strings.HasPrefix(name, dir+"/") {
			return true
		}
	}
	return false
}

// only gives the files that are programs for this machine, or those that are not.
func (f Files) only(programs bool) Files {
	out := Files{}
	for name, file := range f {
		if isProgram(name) == programs {
			out[name] = file
		}
	}
	return out
}

// isProgram tells a compiled program of kbuild's, by its name.
func isProgram(name string) bool {
	switch path.Base(name) {
	case "fixdep", "modpost", "genksyms", "objtool", "recordmcount", "kallsyms", "sign-file", "mk_elfconfig", "unifdef", "bin2c", "conf":
		return true
	}
	return false
}

// Config is the text of .config.
func (k Kernel) Config() string { return k.flavour()[".config"].Text }

// flavour has this kernel's own files, with its release and its compiler.
func (k Kernel) flavour() Files {
	out := maps.Clone(k.m.Flavour)
	for name, file := range out {
		if file.Sum == "" || !rewritten[name] {
			continue
		}
		b, err := os.ReadFile(file.From)
		if err != nil {
			continue // the writer will say so
		}
		out[name] = Text(strings.ReplaceAll(strings.ReplaceAll(string(b), k.m.Compiler, k.Compiler), k.m.Release, k.Release))
	}
	out["include/config/kernel.release"] = Text(k.Release + "\n") // Debian's has the version of the sources
	return out
}

// rewritten are the files that say a kernel's release or its compiler.
var rewritten = map[string]bool{
	".config": true, "include/config/auto.conf": true, "include/config/kernel.release": true, "include/generated/utsrelease.h": true,
	"include/generated/compile.h": true, "include/generated/autoconf.h": true, "include/generated/package.h": true,
}

func kbuild(m material) string {
	version := strings.SplitN(m.Release, ".", 3)
	return "linux-kbuild-" + version[0] + "." + version[1]
}

var compilerText = regexp.MustCompile(`(?m)^CONFIG_CC_VERSION_TEXT="(.*)"$`)

// headers takes what modules need of a kernel's headers.
func (m *material) headers(e extractor) error {
	flavour := "usr/src/linux-headers-" + m.Release
	common := "usr/src/linux-headers-" + strings.TrimSuffix(m.Release, "amd64") + "common"
	config, err := os.ReadFile(e.layers.find(flavour + "/.config"))
	if err != nil {
		return err
	}
	text := compilerText.FindSubmatch(config)
	if text == nil {
		return fmt.Errorf("the configuration of %s names no compiler", m.Release)
	}
	m.Compiler = string(text[1])
	take := func(dir string, wanted func(name string) bool) (Files, error) {
		out := Files{}
		base := e.layers.find(dir)
		if base == "" {
			return nil, &fs.PathError{Op: "find", Path: dir, Err: fs.ErrNotExist}
		}
		err := filepath.WalkDir(base, func(at string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() {
				return err
			}
			name, _ := filepath.Rel(base, at)
			if !wanted(name) {
				return nil
			}
			f, err := e.file(path.Join(dir, name))
			out[name] = f
			return err
		})
		return out, err
	}
	included, err := closure(e, common, flavour)
	if err != nil {
		return err
	}
	if m.Common, err = take(common, func(name string) bool {
		return included[name] || name != "scripts" && name != "tools" && !strings.HasSuffix(name, ".h") &&
			(!strings.HasPrefix(name, "arch/") || strings.HasPrefix(name, "arch/x86/"))
	}); err != nil {
		return err
	}
	if m.Flavour, err = take(flavour, func(name string) bool {
		switch name {
		case "scripts", "tools", ".kernelvariables": // the last is Debian's own
			return false
		case "include/config/auto.conf", "include/config/kernel.release":
			return true
		}
		return !strings.HasPrefix(name, "include/config/")
	}); err != nil {
		return err
	}
	delete(m.Flavour, "Makefile")
	m.Kbuild, err = take("usr/lib/"+kbuild(*m), func(name string) bool {
		return name != "scripts/kernel-doc" && path.Base(name) != "sign-file" && !strings.HasPrefix(name, "certs")
	})
	return err
}

var include = regexp.MustCompile(`(?m)^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]`)

// closure gives the headers of a kernel that its modules may include, whatever the configuration. Beside those of the modules in testdata they
// are what kbuild itself has included, into modules and what it makes for them.
func closure(e extractor, common, flavour string) (map[string]bool, error) {
	search := []string{"arch/x86/include", "arch/x86/include/generated", "include", "arch/x86/include/uapi", "arch/x86/include/generated/uapi", "include/uapi", "include/generated/uapi"}
	seen := map[string]bool{}
	var visit func(name string) error
	read := func(name string) error {
		if seen[name] {
			return nil
		}
		seen[name] = true
		at := e.layers.find(path.Join(flavour, name))
		if at == "" {
			at = e.layers.find(path.Join(common, name))
		}
		b, err := os.ReadFile(at)
		if err != nil {
			return err
		}
		for _, m := range include.FindAllStringSubmatch(string(b), -1) {
			if beside := path.Join(path.Dir(name), m[2]); m[1] == `"` && e.layers.find(path.Join(common, beside)) != "" {
				visitErr := visit(beside)
				if visitErr != nil {
					return visitErr
				}
				continue
			}
			if err := visit(m[2]); err != nil {
				return err
			}
		}
		return nil
	}
	visit = func(name string) error {
		for _, dir := range append([]string{""}, search...) {
			full := path.Join(dir, name)
			if e.layers.find(path.Join(flavour, full)) != "" || e.layers.find(path.Join(common, full)) != "" {
				if err := read(full); err != nil {
					return err
				}
			}
		}
		return nil // the compiler's own, or another architecture's
	}
	for _, name := range []string{"linux/init.h", "linux/module.h", "linux/moduleparam.h", "linux/kallsyms.h", "linux/string.h", "linux/kconfig.h",
		"linux/compiler_types.h", "linux/compiler-version.h", "linux/build-salt.h", "linux/elfnote-lto.h", "linux/export-internal.h", "linux/vermagic.h", "linux/compiler.h"} {
		if err := visit(name); err != nil {
			return nil, err
		}
	}
	return seen, nil
}
