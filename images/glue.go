package images

import (
	"archive/tar"
	"bytes"
	"cmp"
	_ "embed"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

var (
	//go:embed glue/uname
	unameScript string
	//go:embed glue/date
	dateScript string
)

// The user that commands of a build run as, and the machine's name that they see: those of package builder (UID, GID, HostName).
const (
	buildUser = 1000
	hostName  = "godkms-hermetic"
)

// A glueFile is a file, folder or link that no package holds.
type glueFile struct {
	mode int64
	text string // of a file
	link string // of a symbolic link
	dir  bool
}

// glueTar gives what maintainer scripts would have made, and the programs that answer for the target kernel. It depends on the
// lock alone, so a name is given on the packages that are in the lock, not on what they turned out to hold.
func glueTar(lock kernels.Lock) ([]byte, error) {
	files := map[string]glueFile{}
	dir := func(names ...string) {
		for _, n := range names {
			files[n] = glueFile{dir: true, mode: 0o755}
		}
	}
	link := func(name, to string) { files[name] = glueFile{link: to, mode: 0o777} }
	file := func(name string, mode int64, text string) { files[name] = glueFile{mode: mode, text: text} }
	packages := map[string]kernels.Package{}
	for _, p := range slices.Concat(lock.Toolchain, lock.Headers) {
		packages[p.Name] = p
	}
	has := func(name string) bool { _, ok := packages[name]; return ok }
	k := lock.Kernel

	dir("boot", "dev", "etc", "home", "proc", "root", "run", "run/lock", "sys", "usr", "usr/lib", "usr/lib/modules", "usr/lib/modules/"+k.Release,
		"usr/src", "var", "var/lib", "var/lib/dkms", privateDir)
	for _, d := range []string{"tmp", "var/tmp"} {
		files[d] = glueFile{dir: true, mode: 0o1777}
	}
	for _, d := range merged {
		dir("usr/" + d)
		link(d, "usr/"+d)
	}
	for name, to := range unified(k) {
		link(name, to)
	}
	link("var/run", "/run")
	link("var/lock", "/run/lock")
	link("etc/os-release", "../usr/lib/os-release")

	id := strconv.Itoa(buildUser)
	file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n"+
		"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"+
		"build:x:"+id+":"+id+":build:/tmp:/bin/sh\n")
	file("etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\nbuild:x:"+id+":\n")
	file("etc/hosts", 0o644, "127.0.0.1 localhost "+hostName+"\n::1 localhost\n")
	file("etc/nsswitch.conf", 0o644, "passwd: files\ngroup: files\nhosts: files\n")

	// Debian's alternatives, by their priorities. /bin/sh is in the package dash from Debian 12 on, and made by a script before.
	switch {
	case has("dash"):
		link("usr/bin/sh", "dash")
	case has("bash"):
		link("usr/bin/sh", "bash")
	}
	for _, awk := range []string{"gawk", "mawk", "original-awk"} {
		if has(awk) {
			link("usr/bin/awk", awk)
			link("usr/bin/nawk", awk)
			break
		}
	}
	if p, ok := packages["debianutils"]; ok && major(p.Version) >= 5 { // older ones hold which itself
		link("usr/bin/which", "which.debianutils")
	}
	switch k.Distro {
	case "debian", "ubuntu", "arch":
	default: // the alternatives of RPM distributions
		if has("binutils") {
			link("usr/bin/ld", "ld.bfd")
		}
		versionedCompilerLinks(lock, has, link)
	}
	compilerLinks(lock.Compiler, triplet(k.Arch), has, link)

	// Where Makefiles and dkms.confs look for the kernel's configuration.
	link("boot/config-"+k.Release, "/lib/modules/"+k.Release+"/build/.config")
	link("usr/lib/modules/"+k.Release+"/config", "build/.config")
	build := cmp.Or(lock.Build, "usr/src/linux-headers-"+k.Release)
	if !fs.ValidPath(build) {
		return nil, fmt.Errorf("lock of %s: %q is no folder of a root", k, build)
	}
	if of := "usr/lib/modules/" + k.Release + "/build"; of != build {
		link(of, "/"+build)
	}

	version := "#1 SMP"
	if p, ok := packages["linux-headers-"+k.Release]; ok {
		version += " " + strings.ToUpper(k.Distro[:1]) + k.Distro[1:] + " " + p.Version
	}
	file("usr/bin/uname", 0o755, strings.NewReplacer("@RELEASE@", k.Release, "@MACHINE@", machine(k.Arch),
		"@VERSION@", strings.ReplaceAll(version, "'", "")).Replace(unameScript))
	file("usr/bin/date", 0o755, strings.ReplaceAll(dateScript, "@EPOCH@", strconv.Itoa(epoch)))
	return packGlue(files)
}

// compilerLinks gives the lock's compiler the names without a version, as the packages gcc and cpp would for the
// distribution's default one.
func compilerLinks(compiler, triplet string, has func(string) bool, link func(name, to string)) {
	family, version, ok := strings.Cut(compiler, "-")
	if !ok {
		return
	}
	names := map[string][]string{} // of a package, less the version
	switch family {
	case "gcc":
		names[compiler] = []string{"gcc", "gcc-ar", "gcc-nm", "gcc-ranlib", "gcov"}
		names["cpp-"+version] = []string{"cpp"}
		names["g++-"+version] = []string{"g++"}
		link("usr/bin/cc", "gcc")
	case "clang":
		// Beside the compiler's these are the programs that kbuild runs with LLVM=1.
		names[compiler] = []string{"clang", "clang++", "clang-cpp"}
		names["lld-"+version] = []string{"lld", "ld.lld"}
		names["llvm-"+version] = []string{"llvm-ar", "llvm-nm", "llvm-objcopy", "llvm-objdump", "llvm-ranlib", "llvm-readelf", "llvm-strip"}
		link("usr/bin/cc", "clang")
		link("usr/bin/c++", "clang++")
	}
	for pkg, programs := range names {
		if !has(pkg) {
			continue
		}
		for _, p := range programs {
			link("usr/bin/"+p, p+"-"+version)
			if family == "gcc" && triplet != "" {
				link("usr/bin/"+triplet+"-"+p, triplet+"-"+p+"-"+version)
			}
		}
	}
	if has("g++-" + version) {
		link("usr/bin/c++", "g++")
	}
}

// versionedCompilerLinks does the same for RPM distributions whose default compiler is another than the lock's: SUSE's gcc13, Amazon Linux's
// gcc14, and the toolsets of Enterprise Linux, which have a folder and binutils of their own.
func versionedCompilerLinks(lock kernels.Lock, has func(string) bool, link func(name, to string)) {
	compiler := lock.Compiler
	family, version, ok := strings.Cut(compiler, "-")
	if !ok || family != "gcc" {
		return
	}
	toolset, dir := "gcc-toolset-"+version, "/opt/rh/gcc-toolset-"+version+"/root/usr/bin/"
	names := func(pkg string, to func(program string) string, programs ...string) {
		for _, p := range programs {
			if has(pkg) {
				link("usr/bin/"+p, to(p))
			}
		}
	}
	inDir := func(p string) string { return dir + p }
	behind := func(p string) string { return p + "-" + version } // SUSE
	if lock.Kernel.Distro == "amzn" {
		behind = func(p string) string { return "gcc" + version + "-" + p }
	}
	names("gcc"+version, behind, "gcc", "gcc-ar", "gcc-nm", "gcc-ranlib", "gcov")
	names("gcc"+version+"-c++", behind, "g++")
	names("cpp"+version, behind, "cpp")
	if lock.Forced { // it is called by its version then
		if !has("gcc" + version) {
			names("gcc", func(string) string { return "gcc" }, compiler)
		} else if to := behind("gcc"); to != compiler {
			link("usr/bin/"+compiler, to)
		}
		names(toolset+"-gcc", func(string) string { return dir + "gcc" }, compiler)
	}
	names(toolset+"-gcc", inDir, "gcc", "gcc-ar", "gcc-nm", "gcc-ranlib", "gcov", "cpp")
	names(toolset+"-gcc-c++", inDir, "g++")
	names(toolset+"-binutils", inDir, "ar", "as", "nm", "objcopy", "objdump", "ranlib", "readelf", "strip")
	names(toolset+"-binutils", func(string) string { return dir + "ld.bfd" }, "ld")
}

// unified are the folders that a distribution has as links to others, beside those of merged.
func unified(k kernels.Kernel) map[string]string {
	switch version, _ := strconv.Atoi(k.Suite); {
	case k.Distro == "fedora" && version >= 42: // the change "Unify bin and sbin"
		return map[string]string{"usr/sbin": "bin"}
	case k.Distro == "arch":
		return map[string]string{"usr/sbin": "bin", "usr/lib64": "lib"}
	}
	return nil
}

func packGlue(files map[string]glueFile) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		f := files[name]
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: f.mode, Size: int64(len(f.text)), ModTime: time.Unix(epoch, 0)}
		if f.dir {
			h.Typeflag = tar.TypeDir
		} else if f.link != "" {
			h.Typeflag, h.Linkname = tar.TypeSymlink, f.link
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(w, f.text); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return buf.Bytes(), err
}

// major gives the first number of a Debian version, without its epoch.
func major(version string) int {
	if _, after, ok := strings.Cut(version, ":"); ok {
		version = after
	}
	end := strings.IndexFunc(version, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(version)
	}
	n, _ := strconv.Atoi(version[:end])
	return n
}

// An architecture's names: of the distribution (key), of uname -m, of GNU, and of Go and OCI with its variant.
var architectures = map[string]struct{ machine, triplet, oci, variant string }{
	"amd64":   {"x86_64", "x86_64-linux-gnu", "amd64", ""},
	"x86_64":  {"x86_64", "", "amd64", ""},
	"arm64":   {"aarch64", "aarch64-linux-gnu", "arm64", ""},
	"aarch64": {"aarch64", "", "arm64", ""},
	"armhf":   {"armv7l", "arm-linux-gnueabihf", "arm", "v7"},
	"armel":   {"armv5tel", "arm-linux-gnueabi", "arm", "v5"},
	"i386":    {"i686", "i686-linux-gnu", "386", ""},
	"ppc64el": {"ppc64le", "powerpc64le-linux-gnu", "ppc64le", ""},
	"ppc64le": {"ppc64le", "", "ppc64le", ""},
	"riscv64": {"riscv64", "riscv64-linux-gnu", "riscv64", ""},
	"s390x":   {"s390x", "s390x-linux-gnu", "s390x", ""},
}

func machine(arch string) string {
	if a, ok := architectures[arch]; ok {
		return a.machine
	}
	return arch
}

func triplet(arch string) string { return architectures[arch].triplet }
