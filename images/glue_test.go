package images

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// glueFiles gives the glue of a lock by name: a file's text, or "-> target".
func glueFiles(t testing.TB, lock kernels.Lock) map[string]string {
	t.Helper()
	b, err := glueTar(lock)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for tr := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(tr)
		if h.Linkname != "" {
			text = []byte("-> " + h.Linkname)
		}
		files[h.Name] = string(text)
	}
}

func lockOf(compiler string, packages ...string) kernels.Lock {
	lock := kernels.Lock{Kernel: kernels.Kernel{Distro: "debian", Suite: "bookworm", Arch: "amd64", Release: "6.1.0-9-amd64"}, Compiler: compiler}
	for _, p := range packages {
		name, version, _ := strings.Cut(p, "=")
		lock.Toolchain = append(lock.Toolchain, kernels.Package{Name: name, Version: version})
	}
	return lock
}

func rpmLock(distro, suite, compiler string, packages ...string) kernels.Lock {
	lock := lockOf(compiler, packages...)
	lock.Kernel = kernels.Kernel{Distro: distro, Suite: suite, Arch: "amd64", Release: "6.1-1.x86_64"}
	lock.Build = "usr/src/kernels/6.1-1.x86_64"
	return lock
}

func forced(lock kernels.Lock) kernels.Lock {
	lock.Forced = true
	return lock
}

func TestGlueLinks(t *testing.T) {
	for name, c := range map[string]struct {
		lock kernels.Lock
		want map[string]string // "" for a name that is not there
	}{
		"bookworm": {lockOf("gcc-12", "bash", "cpp-12", "dash", "debianutils=5.7-0.5~deb12u1", "gcc-12", "mawk"), map[string]string{
			"usr/bin/sh": "-> dash", "usr/bin/awk": "-> mawk", "usr/bin/nawk": "-> mawk", "usr/bin/which": "-> which.debianutils",
			"usr/bin/gcc": "-> gcc-12", "usr/bin/cc": "-> gcc", "usr/bin/cpp": "-> cpp-12", "usr/bin/gcc-ar": "-> gcc-ar-12", "usr/bin/g++": "",
			"usr/bin/x86_64-linux-gnu-gcc": "-> x86_64-linux-gnu-gcc-12"}},
		"bullseye": {lockOf("gcc-10", "dash", "debianutils=4.11.2", "gawk", "gcc-10", "mawk", "g++-10"), map[string]string{
			"usr/bin/awk": "-> gawk", "usr/bin/which": "", "usr/bin/gcc": "-> gcc-10", "usr/bin/cpp": "", "usr/bin/g++": "-> g++-10", "usr/bin/c++": "-> g++"}},
		"clang": {lockOf("clang-19", "bash", "binutils", "clang-19", "gcc-12", "lld-19", "llvm-19"), map[string]string{
			"usr/bin/sh": "-> bash", "usr/bin/awk": "", "usr/bin/gcc": "", "usr/bin/strip": "", "usr/bin/cc": "-> clang", "usr/bin/c++": "-> clang++",
			"usr/bin/clang": "-> clang-19", "usr/bin/clang++": "-> clang++-19", "usr/bin/ld.lld": "-> ld.lld-19", "usr/bin/llvm-ar": "-> llvm-ar-19",
			"usr/bin/llvm-nm": "-> llvm-nm-19", "usr/bin/llvm-objcopy": "-> llvm-objcopy-19", "usr/bin/llvm-objdump": "-> llvm-objdump-19",
			"usr/bin/llvm-readelf": "-> llvm-readelf-19", "usr/bin/llvm-strip": "-> llvm-strip-19"}},
		"clang alone": {lockOf("clang-19", "bash", "clang-19"), map[string]string{"usr/bin/clang": "-> clang-19", "usr/bin/ld.lld": "", "usr/bin/llvm-strip": ""}},
		"fedora 43": {rpmLock("fedora", "43", "gcc-15", "bash", "binutils", "gawk", "gcc=15.2.1-1.fc43"), map[string]string{
			"usr/bin/ld": "-> ld.bfd", "usr/bin/cc": "-> gcc", "usr/bin/gcc": "", "usr/bin/gcc-15": "", "usr/bin/sh": "-> bash", "usr/sbin": "-> bin",
			"usr/lib/modules/6.1-1.x86_64/build": "-> /usr/src/kernels/6.1-1.x86_64"}},
		"rocky with a toolset": {rpmLock("rocky", "9", "gcc-13", "binutils", "gcc", "gcc-toolset-13-binutils", "gcc-toolset-13-gcc"), map[string]string{
			"usr/bin/gcc": "-> /opt/rh/gcc-toolset-13/root/usr/bin/gcc", "usr/bin/gcc-13": "", "usr/bin/cc": "-> gcc",
			"usr/bin/as": "-> /opt/rh/gcc-toolset-13/root/usr/bin/as", "usr/bin/ld": "-> /opt/rh/gcc-toolset-13/root/usr/bin/ld.bfd", "usr/bin/g++": ""}},
		"fedora with a compiler that was asked for": {forced(rpmLock("fedora", "41", "gcc-14", "gcc")), map[string]string{
			"usr/bin/gcc-14": "-> gcc", "usr/bin/ld": "", "usr/sbin": ""}},
		"suse": {rpmLock("opensuse-leap", "15.6", "gcc-7", "binutils", "cpp7", "gcc7"), map[string]string{
			"usr/bin/gcc": "-> gcc-7", "usr/bin/cpp": "-> cpp-7", "usr/bin/cc": "-> gcc", "usr/bin/gcc-ar": "-> gcc-ar-7", "usr/bin/gcc-7": ""}},
		"amazon": {rpmLock("amzn", "2023", "gcc-14", "binutils", "gcc", "gcc14"), map[string]string{"usr/bin/gcc": "-> gcc14-gcc"}},
	} {
		t.Run(name, func(t *testing.T) {
			files := glueFiles(t, c.lock)
			for f, want := range c.want {
				if got := files[f]; got != want {
					t.Errorf("glue has %q as %q; want %q", f, got, want)
				}
			}
		})
	}
}

// script puts a glue script where it can be run, with this machine's own date as the real one.
func script(t *testing.T, name string) string {
	t.Helper()
	need.Program(t, "dash")
	lock := lockOf("gcc-12", "dash")
	lock.Headers = []kernels.Package{{Name: "linux-headers-6.1.0-9-amd64", Version: "6.1.27-1"}}
	text := strings.ReplaceAll(glueFiles(t, lock)["usr/bin/"+name], "/"+privateDir+"/date", "/bin/date")
	file := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	return file
}

func run(t *testing.T, env []string, name string, args ...string) (string, bool) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append([]string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}, env...)
	out, err := cmd.Output()
	return strings.TrimSuffix(string(out), "\n"), err == nil
}

// TestUname compares the glue's uname with this machine's, word by word.
func TestUname(t *testing.T) {
	file := script(t, "uname")
	words := map[string]string{} // what the real one says, and what the script says for it
	for flag, want := range map[string]string{"-s": "Linux", "-n": "godkms-hermetic", "-r": "6.1.0-9-amd64", "-v": "#1 SMP Debian 6.1.27-1",
		"-m": "x86_64", "-o": "GNU/Linux", "-p": "unknown", "-i": "unknown"} {
		real, ok := run(t, nil, "uname", flag)
		if !ok {
			need.Skip(t, "no GNU uname here")
		}
		words[flag] = want
		if got, ok := run(t, nil, file, flag); !ok || got != want {
			t.Errorf("uname %s = %q, %v; want %q (here: %q)", flag, got, ok, want, real)
		}
	}
	order := []string{"-s", "-n", "-r", "-v", "-m", "-p", "-i", "-o"}
	for _, args := range [][]string{{}, {"-a"}, {"-rs"}, {"-mrs"}, {"-s", "-n"}, {"-r", "-r"}, {"--all"}, {"--kernel-release"}, {"--kernel-rel", "-m"},
		{"--machine"}, {"--nodename", "--operating-system"}, {"--kernel-version"}, {"--processor"}, {"--hardware-platform"}, {"-snrvmpio"}, {"-ap"},
		{"-x"}, {"operand"}, {"--frob"}, {"--kernel-name"}, {"-a", "-i"}} {
		real, realOK := run(t, nil, "uname", args...)
		var parts []string
		for _, flag := range order {
			if word, _ := run(t, nil, "uname", flag); word != "unknown" || !slices.Contains(args, "-a") {
				parts = append(parts, word, "\x00"+flag+"\x00")
			}
		}
		// Word by word, the real answer becomes what the script should say.
		want := real
		for i := 0; i+1 < len(parts); i += 2 {
			want = strings.Replace(want, parts[i], parts[i+1], map[bool]int{true: -1, false: 1}[parts[i] == "unknown"])
		}
		for _, flag := range order {
			want = strings.ReplaceAll(want, "\x00"+flag+"\x00", words[flag])
		}
		if got, ok := run(t, nil, file, args...); got != want || ok != realOK {
			t.Errorf("uname %q = %q, %v; want %q, %v", args, got, ok, want, realOK)
		}
	}
}

func TestDate(t *testing.T) {
	file := script(t, "date")
	for _, c := range []struct {
		env  string
		args string // separated by |
		want string // "!": fails
	}{
		{"", "+%s", "315532800"},
		{"", "", "Tue Jan  1 00:00:00 UTC 1980"},
		{"", "-u", "Tue Jan  1 00:00:00 UTC 1980"},
		{"SOURCE_DATE_EPOCH=86400", "+%F %T", "1970-01-02 00:00:00"},
		{"SOURCE_DATE_EPOCH=86400", "-d|now|+%s", "86400"},
		{"", "-Iseconds", "1980-01-01T00:00:00+00:00"},
		{"", "--iso-8601", "1980-01-01"},
		{"", "-R", "Tue, 01 Jan 1980 00:00:00 +0000"},
		{"", "-uR", "Tue, 01 Jan 1980 00:00:00 +0000"},
		{"", "-d|@5|+%s", "5"},
		{"", "-d@5|+%s", "5"},
		{"", "-ud@5|+%s", "5"},
		{"", "-ud|@5|+%s", "5"},
		{"", "--date=@5|+%s", "5"},
		{"", "--da=@5|+%s", "5"},
		{"", "--date|@5|+%s", "5"},
		{"", "+%s|-d|@5", "5"},
		{"", "-d|2021-01-02|+%F", "2021-01-02"},
		{"", "-d|2021-01-02 + 3 days|+%F", "2021-01-05"},
		{"", "-d|Tue Nov 10 23:00:00 UTC 2009|+%s", "1257894000"},
		{"", "-d|20200229|+%F", "2020-02-29"},
		{"", "-d|yesterday|+%F", "1979-12-31"},
		{"", "-d|1000 days ago|+%F", "1977-04-06"},
		{"", "-d|+1 month|+%F", "1980-02-01"},
		{"", "-d|12:34|+%F %T", "1980-01-01 12:34:00"},
		{"", "-d|Sep 10|+%F", "1980-09-10"},
		{"", "-d||+%s", "315532800"},
		{"", "-d|next monday|+%F", "!"},
		{"", "-d|frobnicate", "!"},
		{"", "-d", "!"},
		{"", "-r|" + file + "|+%Y", "20"},
		{"", "--reference=" + file + "|+%Y", "20"},
		{"", "--|+%s", "315532800"},
		{"TZ=America/New_York", "-d|yesterday|+%s", "315446400"},
	} {
		var args []string
		if c.args != "" {
			args = strings.Split(c.args, "|")
		}
		got, ok := run(t, []string{c.env}, file, args...)
		if c.want == "!" {
			if ok {
				t.Errorf("date %q = %q; want it to fail", args, got)
			}
			continue
		}
		if !ok || (got != c.want && !(c.want == "20" && strings.HasPrefix(got, c.want))) {
			t.Errorf("%s date %q = %q, %v; want %q", c.env, args, got, ok, c.want)
		}
	}
}

// Links that a merged /usr makes pointless are dropped from the packages of distributions that have them.
func TestMergedLinks(t *testing.T) {
	for link, want := range map[[2]string]bool{
		{"bin/cat", "/usr/bin/cat"}:                 true,
		{"bin/cat", "../usr/bin/cat"}:               true,
		{"sbin/depmod", "/usr/bin/kmod"}:            false,
		{"usr/sbin", "bin"}:                         true,
		{"usr/bin/sh", "bash"}:                      false,
		{"lib64/libz.so.1", "libz.so.1.2"}:          false,
		{"lib64/libz.so.1", "/usr/lib64/libz.so.1"}: true,
	} {
		if got := isMerged(link[0], link[1]); got != want {
			t.Errorf("isMerged(%q, %q) = %v; want %v", link[0], link[1], got, want)
		}
	}
}
