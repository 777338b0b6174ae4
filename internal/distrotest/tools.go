package distrotest

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/images"
	"github.com/godkms-hermetic/godkms-hermetic/internal/dkmstest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/deb"
)

// suite is where the headers and the tools are from. Its compiler is gcc-12.
const suite = "bookworm"

var line = regexp.MustCompile(`^6\.1\.0-[0-9]+-amd64$`)

// A Group is files that belong into one package.
type Group struct {
	Files Files
	Has   []string // sonames of its libraries: "libgmp.so.10"
	Needs []string // sonames that its programs need of other groups
}

// Layout is where a distribution has its libraries.
type Layout string

const (
	Multiarch Layout = "usr/lib/x86_64-linux-gnu" // Debian, Ubuntu
	Lib64     Layout = "usr/lib64"                // RPM distributions
	Lib       Layout = "usr/lib"                  // Arch, whose lib64 is a link to it
)

// groups are the names of files by group, as patterns. Libraries that are not among them are libs, if something needs them.
var groups = map[string][]string{
	"glibc":     {multi + loader, multi + "libc.so.6", multi + "libm.so.6", multi + "libdl.so.2", multi + "libpthread.so.0"},
	"bash":      {"usr/bin/bash"},
	"dash":      {"usr/bin/dash"},
	"coreutils": {"usr/bin/{" + strings.ReplaceAll(coreutils, " ", ",") + "}", private + "{date,uname}"},
	"sed":       {"usr/bin/sed"},
	"grep":      {"usr/bin/grep", "usr/bin/egrep", "usr/bin/fgrep"},
	"awk":       {"usr/bin/mawk"},
	"findutils": {"usr/bin/find", "usr/bin/xargs"},
	"diffutils": {"usr/bin/cmp", "usr/bin/diff"},
	"patch":     {"usr/bin/patch"},
	"make":      {"usr/bin/make"},
	"tar":       {"usr/bin/tar"},
	"gzip":      {"usr/bin/gzip", "usr/bin/zcat", "usr/bin/gunzip"},
	"xz":        {"usr/bin/xz", "usr/bin/unxz"},
	"kmod":      {"usr/bin/kmod", "usr/sbin/depmod", "usr/sbin/modinfo"},
	"gcc": {"usr/bin/x86_64-linux-gnu-gcc-12", "usr/bin/gcc-12", gcc + "cc1", gcc + "collect2", gcc + "liblto_plugin.so", gcc + "lto-wrapper",
		gcc + "include/{stdarg,stddef,stdbool,stdint,stdint-gcc,limits,syslimits,float,stdalign}.h"},
	"binutils": {"usr/bin/{as,ld,ld.bfd,ar,nm,objcopy,objdump,strip,readelf,ranlib}",
		"usr/bin/x86_64-linux-gnu-{as,ld,ld.bfd,ar,nm,objcopy,objdump,strip,readelf,ranlib}",
		multi + "libbfd-*-system.so", multi + "libopcodes-*-system.so", multi + "libctf.so.0*", multi + "libctf-nobfd.so.0*"},
}

const (
	multi     = "usr/lib/x86_64-linux-gnu/"
	private   = "usr/lib/godkms-hermetic/" // where header images have programs that their glue stands in for
	gcc       = "usr/lib/gcc/x86_64-linux-gnu/12/"
	coreutils = "basename cat chgrp chmod chown comm cp cut dd dirname echo env expr false head id install link ln ls md5sum mkdir mkfifo mktemp mv " +
		"nproc od paste printf pwd readlink realpath rm rmdir seq sha1sum sha256sum sleep sort split stat stty sum sync tail tee test touch tr true " +
		"truncate tsort tty uniq unlink wc whoami yes"
)

// material is what is taken from bookworm: the tools, and the newest kernel's headers.
type material struct {
	Release  string
	Compiler string // CONFIG_CC_VERSION_TEXT
	Groups   map[string]Group
	Common   Files // of the folder linux-headers-VERSION-common
	Flavour  Files // of the folder linux-headers-RELEASE
	Kbuild   Files // of the folder linux-kbuild-VERSION
}

var loaded struct {
	sync.Once
	*material
	err error
}

// source gives the material, or ends the test.
func source(t testing.TB) *material {
	t.Helper()
	if kernels.HostArch() != "amd64" {
		need.Skip(t, "the packages are amd64's")
	}
	loaded.Do(func() { loaded.material, loaded.err = load(context.Background()) })
	if loaded.err != nil {
		need.Skip(t, "no packages of %s to make repositories of: %v", suite, loaded.err)
	}
	return loaded.material
}

func load(ctx context.Context) (*material, error) {
	cache := dkmstest.Cache()
	index, err := deb.New("debian", deb.Options{CacheDir: filepath.Join(cache, "index")})
	if err != nil {
		return nil, err
	}
	list, err := index.Kernels(ctx, suite, "amd64")
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(list, func(c kernels.Candidate) bool { return line.MatchString(c.Release) })
	if i < 0 {
		return nil, fmt.Errorf("it has no kernel %s", line)
	}
	lock, err := index.Lock(ctx, list[i].Kernel, kernels.Extra{})
	if err != nil {
		return nil, err
	}
	dir, err := keep(ctx, "material", lock.Digest(), func(dir string) error {
		store, err := images.Open(images.Options{
			Dir:     filepath.Join(cache, "images"),
			Payload: func(_ string, pkg io.Reader) (io.ReadCloser, error) { return index.Payload(pkg) },
		})
		if err != nil {
			return err
		}
		root, err := store.Root(ctx, lock, nil)
		if err != nil {
			return err
		}
		defer root.Close()
		return extract(dir, layers(root.Layers()[:2]), lock.Kernel.Release)
	})
	if err != nil {
		return nil, err
	}
	b, err := os.ReadFile(filepath.Join(dir, "material.json"))
	if err != nil {
		return nil, err
	}
	m := &material{}
	if err := json.Unmarshal(b, m); err != nil {
		return nil, err
	}
	all := []Files{m.Common, m.Flavour, m.Kbuild}
	for _, g := range m.Groups {
		all = append(all, g.Files)
	}
	for _, files := range all {
		for name, f := range files {
			if f.Sum != "" {
				f.From = filepath.Join(dir, f.Sum)
				files[name] = f
			}
		}
	}
	return m, nil
}

// layers are folders that lie over each other, the lowest first.
type layers []string

// find gives the path on this machine.
func (l layers) find(name string) string {
	for _, dir := range slices.Backward(l) {
		if at := filepath.Join(dir, name); exists(at) {
			return at
		}
	}
	return ""
}

func exists(name string) bool { _, err := os.Lstat(name); return err == nil }

var braces = regexp.MustCompile(`^(.*)\{(.*)\}(.*)$`)

func (l layers) glob(pattern string) []string {
	var out []string
	alternatives := []string{pattern}
	if m := braces.FindStringSubmatch(pattern); m != nil {
		alternatives = nil
		for a := range strings.SplitSeq(m[2], ",") {
			alternatives = append(alternatives, m[1]+a+m[3])
		}
	}
	for _, dir := range l {
		for _, a := range alternatives {
			found, _ := filepath.Glob(filepath.Join(dir, a))
			for _, f := range found {
				rel, _ := filepath.Rel(dir, f)
				out = append(out, rel)
			}
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// An extractor copies files into a folder, by the hashes of their content.
type extractor struct {
	to     string
	layers layers
}

func (e extractor) file(name string) (File, error) {
	at := e.layers.find(name)
	if at == "" {
		return File{}, &fs.PathError{Op: "find", Path: name, Err: fs.ErrNotExist}
	}
	st, err := os.Lstat(at)
	if err != nil {
		return File{}, err
	}
	if st.Mode().Type() == fs.ModeSymlink {
		to, err := os.Readlink(at)
		return Link(to), err
	}
	b, err := os.ReadFile(at)
	if err != nil {
		return File{}, err
	}
	return e.content(b, st.Mode()&0o111 != 0)
}

func (e extractor) content(b []byte, exec bool) (File, error) {
	f := File{Exec: exec}
	h := sha256.New()
	fmt.Fprintln(h, exec)
	h.Write(b)
	f.Sum = hex.EncodeToString(h.Sum(nil))
	at := filepath.Join(e.to, f.Sum)
	if exists(at) {
		return f, nil
	}
	return f, errors.Join(os.WriteFile(at, b, f.mode()), os.Chtimes(at, epoch, epoch))
}

// needs gives the sonames that a program or library needs.
func (e extractor) needs(f File) (needs []string, soname string) {
	x, err := elf.Open(filepath.Join(e.to, f.Sum))
	if err != nil {
		return nil, ""
	}
	defer x.Close()
	needs, _ = x.ImportedLibraries()
	names, _ := x.DynString(elf.DT_SONAME)
	return needs, strings.Join(names, "")
}

func extract(dir string, root layers, release string) error {
	e := extractor{dir, root}
	m := material{Release: release, Groups: map[string]Group{}}
	owner := map[string]string{} // group by soname
	wanted := []string{}
	add := func(group, name string) error {
		g := m.Groups[group]
		if g.Files == nil {
			g.Files = Files{}
		}
		f, err := e.file(name)
		if err != nil {
			return err
		}
		if program, ok := strings.CutPrefix(name, private); ok {
			name = "usr/bin/" + program
		}
		g.Files[name] = f
		if f.Link == "" {
			needs, soname := e.needs(f)
			if soname != "" {
				g.Has = append(g.Has, soname)
				owner[soname] = group
			}
			g.Needs = append(g.Needs, needs...)
			wanted = append(wanted, needs...)
		}
		m.Groups[group] = g
		if f.Link != "" && group == "libs" {
			wanted = append(wanted, path.Base(f.Link))
		}
		return nil
	}
	for group, patterns := range groups {
		for _, p := range patterns {
			for _, name := range root.glob(p) {
				if err := add(group, name); err != nil {
					return err
				}
			}
		}
		if len(m.Groups[group].Files) == 0 {
			return fmt.Errorf("nothing of %s is there", group)
		}
	}
	if err := m.headers(e); err != nil {
		return err
	}
	objtool, err := e.file("usr/lib/" + kbuild(m) + "/tools/objtool/objtool")
	if err != nil {
		return err
	}
	needs, _ := e.needs(objtool)
	wanted = append(wanted, needs...)
	for len(wanted) > 0 {
		lib := wanted[0]
		wanted = wanted[1:]
		if owner[lib] != "" || slices.ContainsFunc(slices.Collect(maps.Values(m.Groups)), func(g Group) bool { _, ok := g.Files[multi+lib]; return ok }) {
			continue
		}
		if err := add("libs", multi+lib); err != nil {
			return err
		}
	}
	for name, g := range m.Groups {
		slices.Sort(g.Has)
		slices.Sort(g.Needs)
		g.Needs = slices.DeleteFunc(slices.Compact(g.Needs), func(n string) bool { return owner[n] == name })
		m.Groups[name] = g
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "material.json"), b, 0o644)
}

// Tools gives a small toolchain that builds modules, by group: glibc, libs (all other libraries), bash, dash, coreutils, sed, grep, awk (mawk), findutils,
// diffutils, patch, make, tar, gzip, xz, kmod, gcc (version 12) and binutils. Programs with a name of their own version have one without too.
// There is no link for sh and awk: distributions differ in what these are, and who has them.
func Tools(t testing.TB, at Layout) map[string]Group {
	t.Helper()
	out := map[string]Group{}
	for name, g := range source(t).Groups {
		files := g.Files.Rename(func(name string) string {
			if rest, ok := strings.CutPrefix(name, multi); ok {
				return path.Join(string(at), rest)
			}
			return name
		})
		if name == "glibc" {
			switch at {
			case Multiarch:
				files["usr/lib64/"+loader] = Link("../lib/x86_64-linux-gnu/" + loader)
			case Lib64: // the loader is Debian's, and looks there
				files["usr/lib/x86_64-linux-gnu"] = Link("../lib64")
			}
		}
		if name == "gcc" {
			files["usr/bin/gcc"] = Link("gcc-12")
		}
		out[name] = Group{Files: files, Has: g.Has, Needs: g.Needs}
	}
	return out
}

const loader = "ld-linux-x86-64.so.2"
