package kernels

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

func TestParseCompiler(t *testing.T) {
	for _, c := range []struct{ text, name, version string }{
		{"gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0", "gcc-12", "12.2.0"},
		{"gcc-14 (Debian 14.2.0-19) 14.2.0", "gcc-14", "14.2.0"},
		{"x86_64-linux-gnu-gcc-13 (Ubuntu 13.2.0-23ubuntu4) 13.2.0", "gcc-13", "13.2.0"},
		{"aarch64-linux-gnu-gcc-11 (Ubuntu 11.4.0-1ubuntu1~22.04) 11.4.0", "gcc-11", "11.4.0"},
		{"gcc (Ubuntu 9.4.0-1ubuntu1~20.04.2) 9.4.0", "gcc-9", "9.4.0"},
		{"gcc (GCC) 11.4.1 20231218 (Red Hat 11.4.1-3)", "gcc-11", "11.4.1"},
		{"gcc (GCC) 8.5.0 20210514 (Red Hat 8.5.0-20)", "gcc-8", "8.5.0"},
		{"gcc (GCC) 13.2.1 20231205 (Red Hat 13.2.1-6)", "gcc-13", "13.2.1"}, // Fedora, and gcc-toolset
		{"gcc (GCC) 14.2.1 20250110 (Red Hat 14.2.1-7)", "gcc-14", "14.2.1"},
		{"/opt/rh/gcc-toolset-11/root/usr/bin/gcc (GCC) 11.2.1 20210728 (Red Hat 11.2.1-1)", "gcc-11", "11.2.1"},
		{"gcc (SUSE Linux) 7.5.0", "gcc-7", "7.5.0"},
		{"gcc-13 (SUSE Linux) 13.3.1 20240807 [revision 5c6c4fb7ae5cb5d1ddd3ad6cc24e5b0b2a3d87b0]", "gcc-13", "13.3.1"},
		{"gcc10-gcc (GCC) 10.5.0 20230707 (Red Hat 10.5.0-1)", "gcc-10", "10.5.0"},
		{"gcc (GCC) 14.1.1 20240522", "gcc-14", "14.1.1"},
		{"gcc (Gentoo 12.3.1_p20230526 (p2)) 12.3.1 20230526", "gcc-12", "12.3.1"},
		{"gcc-12 (Debian 12.2.0-14) 12.2.0, GNU ld (GNU Binutils for Debian) 2.40", "gcc-12", "12.2.0"},
		{"gcc version 4.8.5 20150623 (Red Hat 4.8.5-44) (GCC) ", "gcc-4.8", "4.8.5"},
		{"gcc version 5.4.0 20160609 (Ubuntu 5.4.0-6ubuntu1~16.04.12) ", "gcc-5", "5.4.0"},
		{"gcc (Debian 4.9.2-10) 4.9.2", "gcc-4.9", "4.9.2"},
		{"Debian clang version 14.0.6", "clang-14", "14.0.6"},
		{"Ubuntu clang version 18.1.3 (1ubuntu1)", "clang-18", "18.1.3"},
		{"Ubuntu clang version 14.0.0-1ubuntu1.1", "clang-14", "14.0.0"},
		{"clang version 17.0.6 (Fedora 17.0.6-2.fc39)", "clang-17", "17.0.6"},
		{"clang version 19.1.7", "clang-19", "19.1.7"},
		{"clang version 16.0.0git (https://github.com/llvm/llvm-project 0123)", "clang-16", "16.0.0"},
		{"Android (7284624, based on r416183b) clang version 12.0.5 (https://android.googlesource.com/toolchain/llvm-project c935d99)", "clang-12", "12.0.5"},
		{"clang version 3.9.1", "clang-3.9", "3.9.1"},
	} {
		got, err := ParseCompiler(c.text)
		if err != nil || got.String() != c.name || got.Version != c.version || got.Text != strings.TrimSpace(c.text) {
			t.Errorf("ParseCompiler(%q) = %+v (%s), %v; want %s, version %s", c.text, got, got, err, c.name, c.version)
		}
	}
	for text, want := range map[string]string{
		"":                               "neither",
		"icc (ICC) 19.0":                 "neither",
		"rustc 1.70":                     "neither",
		"gcc":                            "no version",
		"gcc (unclosed 12.2.0":           "no version",
		"gcc (GCC) unknown":              "no version",
		"gcc (GCC) 12..2":                "no version",
		"gcc (GCC) 99999999999999999999": "no version",
		"clang version x":                "no version",
		"gcc (a\nb) 12":                  "control characters",
		"gcc (GCC) 12 " + strings.Repeat("x", 1024): "too long",
	} {
		if got, err := ParseCompiler(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseCompiler(%.40q) = %+v, %v; want %q", text, got, err, want)
		}
	}
	if got := (Compiler{}).String(); got != "" {
		t.Errorf("no compiler is %q", got)
	}
}

// factsTar makes a tar stream of names and texts.
func factsTar(t testing.TB, files ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		h := &tar.Header{Name: files[i], Mode: 0o644, Size: int64(len(files[i+1])), Typeflag: tar.TypeReg}
		if target, ok := strings.CutPrefix(files[i+1], "-> "); ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, target, 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if _, err := io.WriteString(w, files[i+1]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestReadFacts(t *testing.T) {
	const ubuntu = "usr/src/linux-headers-6.8.0-31-generic"
	for _, c := range []struct {
		name                     string
		files                    []string
		build, release, compiler string
		err                      string
		absent                   bool // err wraps ErrNotFound
	}{
		{name: "Ubuntu, names with a dot in front", files: []string{
			"./usr/src/linux-headers-6.8.0-31/Makefile", "x",
			"./" + ubuntu + "/Makefile", "-> ../linux-headers-6.8.0-31/Makefile",
			"./" + ubuntu + "/.config", "#\n# Linux\n#\nCONFIG_CC_VERSION_TEXT=\"x86_64-linux-gnu-gcc-13 (Ubuntu 13.2.0-23ubuntu4) 13.2.0\"\nCONFIG_GCC_VERSION=130200\n",
			"./" + ubuntu + "/include/config/kernel.release", "6.8.0-31-generic\n",
			"./" + ubuntu + "/never", "read",
		}, build: ubuntu, release: "6.8.0-31-generic", compiler: "gcc-13 13.2.0"},
		{name: "auto.conf, and the release as C has it", files: []string{
			"/" + ubuntu + "/include/generated/utsrelease.h", "#define UTS_RELEASE \"6.8.0-31-generic\"\n#define UTS_UBUNTU_RELEASE_ABI 31\n",
			"/" + ubuntu + "/include/config/auto.conf", "CONFIG_A=y\nCONFIG_CC_VERSION_TEXT=\"gcc (a \\\"b\\\") 12.2.0\"\n",
		}, build: ubuntu, release: "6.8.0-31-generic", compiler: "gcc-12 12.2.0"},
		{name: "kernel.release goes before utsrelease.h", files: []string{
			ubuntu + "/include/generated/utsrelease.h", "#define UTS_RELEASE \"6.8.0-31\"\n",
			ubuntu + "/.config", "CONFIG_CC_VERSION_TEXT=\"gcc (GCC) 12.2.0\"\n",
			ubuntu + "/include/config/kernel.release", "6.8.0-31-generic\n",
		}, build: ubuntu, release: "6.8.0-31-generic", compiler: "gcc-12 12.2.0"},
		{name: "Red Hat's folder", files: []string{
			"usr/src/kernels/5.14.0-427.el9.x86_64/include/config/kernel.release", "5.14.0-427.el9.x86_64\n",
			"usr/src/kernels/5.14.0-427.el9.x86_64/.config", "CONFIG_CC_VERSION_TEXT=\"gcc (GCC) 11.4.1 20231218 (Red Hat 11.4.1-3)\"\n",
		}, build: "usr/src/kernels/5.14.0-427.el9.x86_64", release: "5.14.0-427.el9.x86_64", compiler: "gcc-11 11.4.1"},
		{name: "SUSE's folder", files: []string{
			"usr/src/linux-6.4.0-150600.21/.config", "CONFIG_CC_VERSION_TEXT=\"gcc (GCC) 1.2.3\"\n",
			"usr/src/linux-6.4.0-150600.21-obj/x86_64/default/.config", "CONFIG_CC_VERSION_TEXT=\"gcc (SUSE Linux) 7.5.0\"\n",
			"usr/src/linux-6.4.0-150600.21-obj/x86_64/default/include/config/kernel.release", "6.4.0-150600.21-default\n",
		}, build: "usr/src/linux-6.4.0-150600.21-obj/x86_64/default", release: "6.4.0-150600.21-default", compiler: "gcc-7 7.5.0"},
		{name: "Arch's folder, under the old name of it", files: []string{
			"lib/modules/6.8.0-arch1-1/build/.config", "CONFIG_CC_VERSION_TEXT=\"gcc (GCC) 14.1.1 20240522\"\n",
		}, build: "usr/lib/modules/6.8.0-arch1-1/build", compiler: "gcc-14 14.1.1"},
		{name: "the text goes before the comment, and both before compile.h", files: []string{
			ubuntu + "/include/generated/compile.h", "#define LINUX_COMPILER \"gcc version 4.8.5 20150623 (Red Hat 4.8.5-44) (GCC) \"\n",
			ubuntu + "/.config", "# Compiler: gcc (Ubuntu 9.4.0-1ubuntu1~20.04.2) 9.4.0\nCONFIG_GCC_VERSION=90400\n",
			ubuntu + "/include/config/auto.conf", "CONFIG_CC_VERSION_TEXT=\"gcc-10 (Ubuntu) 10.1\"\n",
		}, build: ubuntu, compiler: "gcc-10 10.1"},
		{name: "the comment of 5.4 goes before compile.h", files: []string{
			ubuntu + "/include/generated/compile.h", "#define LINUX_COMPILER \"gcc version 4.8.5 20150623 (Red Hat 4.8.5-44) (GCC) \"\n",
			ubuntu + "/.config", "#\n# Compiler: gcc (Ubuntu 9.4.0-1ubuntu1~20.04.2) 9.4.0\n#\nCONFIG_GCC_VERSION=90400\n",
		}, build: ubuntu, compiler: "gcc-9 9.4.0"},
		{name: "a text of no known form with a number", files: []string{
			ubuntu + "/.config", "# Compiler: ccache of ours\nCONFIG_CC_IS_CLANG=y\nCONFIG_GCC_VERSION=0\nCONFIG_CLANG_VERSION=100001\n",
		}, build: ubuntu, compiler: "clang-10 10.0.1"},
		{name: "a number alone", files: []string{ubuntu + "/.config", "CONFIG_GCC_VERSION=120200\n"}, build: ubuntu, compiler: "gcc-12 12.2.0"},
		{name: "4.x", files: []string{
			ubuntu + "/.config", "CONFIG_A=y\n",
			ubuntu + "/include/generated/compile.h", "/* made */\n#define UTS_VERSION \"#1\"\n#define LINUX_COMPILER \"gcc version 4.8.5 20150623 (Red Hat 4.8.5-44) (GCC) \"\n",
		}, build: ubuntu, compiler: "gcc-4.8 4.8.5"},
		{name: "no headers", files: []string{"usr/share/doc/x/.config", "CONFIG_CC_VERSION_TEXT=\"gcc (GCC) 12\"\n"}, err: "no kernel's configured headers", absent: true},
		{name: "a .config that is a link", files: []string{ubuntu + "/.config", "-> /etc/passwd"}, err: "no kernel's configured headers", absent: true},
		{name: "no compiler", files: []string{ubuntu + "/.config", "CONFIG_A=y\n"}, err: "nothing says which compiler", absent: true},
		{name: "unknown compiler", files: []string{ubuntu + "/.config", "CONFIG_CC_VERSION_TEXT=\"icc 19\"\n"}, err: `compiler "icc 19": neither gcc nor clang`},
		{name: "two kernels", files: []string{
			ubuntu + "/.config", "CONFIG_A=y\n", "usr/src/linux-headers-6.8.0-32-generic/.config", "CONFIG_A=y\n",
		}, err: "another kernel"},
		{name: "no release", files: []string{
			ubuntu + "/.config", "CONFIG_CC_VERSION_TEXT=\"gcc (GCC) 12\"\n", ubuntu + "/include/config/kernel.release", "../../x\n",
		}, err: "is no release"},
		{name: "an endless line", files: []string{ubuntu + "/.config", strings.Repeat("x", 1<<20)}, err: "token too long"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := ReadFacts(bytes.NewReader(factsTar(t, c.files...)))
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) || errors.Is(err, ErrNotFound) != c.absent {
					t.Errorf("ReadFacts = %+v, %v; want error %q", got, err, c.err)
				}
				return
			}
			if name := got.Compiler.String() + " " + got.Compiler.Version; err != nil || got.Build != c.build || got.Release != c.release || name != c.compiler {
				t.Errorf("ReadFacts = %+v (%s), %v; want %s, %s, %s", got, name, err, c.build, c.release, c.compiler)
			}
		})
	}
	broken := errors.New("broken")
	if _, err := ReadFacts(iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("ReadFacts of a broken stream: %v", err)
	}
	whole := factsTar(t, ubuntu+"/.config", "CONFIG_A=y\n", ubuntu+"/x", strings.Repeat("x", 4096))
	if _, err := ReadFacts(bytes.NewReader(whole[:2048])); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("ReadFacts of half a stream: %v", err)
	}
}

func FuzzReadFacts(f *testing.F) {
	f.Add(factsTar(f, "usr/src/kernels/5.14.0/.config", "CONFIG_CC_VERSION_TEXT=\"gcc (GCC) 11.4.1\"\n", "lib/modules/x/build/.config", "y"))
	f.Add(factsTar(f, "usr/src/linux-headers-5.4/include/generated/compile.h", "#define LINUX_COMPILER \"gcc version 4.8.5\"\n"))
	f.Add(factsTar(f, "usr/src/linux-headers-5.4/.config", "# Compiler: x\nCONFIG_GCC_VERSION=90400\n"))
	f.Fuzz(func(t *testing.T, payload []byte) {
		got, err := ReadFacts(bytes.NewReader(payload))
		if err != nil {
			return
		}
		if got.Build == "" || got.Compiler.String() == "" || got.Release != "" && !isWord(got.Release, "") {
			t.Errorf("ReadFacts = %+v", got)
		}
	})
}

func FuzzParseCompiler(f *testing.F) {
	f.Add("gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0")
	f.Add("Android (1, based on r2) clang version 12.0.5 (x)")
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseCompiler(text)
		if err != nil {
			return
		}
		again, err := ParseCompiler(c.Text)
		if err != nil || again != c || !strings.HasPrefix(c.String(), c.Family+"-") {
			t.Errorf("ParseCompiler(%q) = %+v; of its own text it is %+v, %v", text, c, again, err)
		}
	})
}
