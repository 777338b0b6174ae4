package kernels

import (
	"archive/tar"
	"bufio"
	"cmp"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Compiler is a compiler as a kernel's configuration names it.
type Compiler struct {
	Family  string `json:"family"`  // "gcc" or "clang"
	Version string `json:"version"` // "12.2.0"
	Text    string `json:"text"`    // all that was said of it: "gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0"
}

// String is its family and major version, as Lock.Compiler has it: "gcc-12". What the family counts as one are two numbers before GCC 5
// and LLVM 4: "gcc-4.8".
func (c Compiler) String() string {
	if c.Family == "" {
		return ""
	}
	major, rest, _ := strings.Cut(c.Version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	if n, err := strconv.Atoi(major); err == nil && n < oneNumber[c.Family] && minor != "" {
		major += "." + minor
	}
	return c.Family + "-" + major
}

// oneNumber are the versions of the families since which the first number alone is the major version (gcc.gnu.org/develop.html,
// llvm.org/docs/HowToReleaseLLVM.html).
var oneNumber = map[string]int{"gcc": 5, "clang": 4}

// maxCompilerText is how much is read of what a kernel says of its compiler, in bytes.
const maxCompilerText = 1 << 10

// ParseCompiler reads what a compiler says of itself: the first line of its --version, which is CONFIG_CC_VERSION_TEXT, or the last one
// of its -v, which is LINUX_COMPILER up to Linux 5.7.
func ParseCompiler(text string) (Compiler, error) {
	text = strings.TrimSpace(text)
	bad := func(why string) (Compiler, error) {
		return Compiler{}, fmt.Errorf("compiler %.200q: %s", text, why)
	}
	if len(text) > maxCompilerText {
		return bad("the text is too long")
	}
	if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return bad("the text has control characters")
	}
	family, rest := "clang", ""
	if before, after, ok := strings.Cut(text, "clang version "); ok && (before == "" || strings.HasSuffix(before, " ")) {
		rest = after
	} else if after, ok := strings.CutPrefix(text, "gcc version "); ok {
		family, rest = "gcc", after
	} else {
		// gcc prints its own name, what its packager put in parentheses, and the version (gcc/gcc.cc).
		name, after, _ := strings.Cut(text, " ")
		if !isGCC(path.Base(name)) {
			return bad("neither gcc nor clang")
		}
		family, rest = "gcc", afterParentheses(strings.TrimSpace(after))
	}
	version := strings.TrimLeft(rest, " ")
	end := 0
	for end < len(version) && (version[end] == '.' || version[end] >= '0' && version[end] <= '9') {
		end++
	}
	version = strings.TrimRight(version[:end], ".")
	for part := range strings.SplitSeq(version, ".") {
		if n, err := strconv.Atoi(part); err != nil || n > 1<<20 { // an empty one too
			return bad("no version in it")
		}
	}
	return Compiler{Family: family, Version: version, Text: text}, nil
}

// isGCC tells whether a program is called gcc, perhaps for a target and with its version: "x86_64-linux-gnu-gcc-13".
func isGCC(name string) bool {
	if i := strings.LastIndexByte(name, '-'); i >= 0 && strings.Trim(name[i+1:], "0123456789.") == "" {
		name = name[:i]
	}
	return name == "gcc" || name == "cc" || strings.HasSuffix(name, "-gcc")
}

// afterParentheses leaves out a leading group of parentheses, which may have others in it.
func afterParentheses(s string) string {
	if !strings.HasPrefix(s, "(") {
		return s
	}
	depth := 0
	for i := range len(s) {
		switch s[i] {
		case '(':
			depth++
		case ')':
			if depth--; depth == 0 {
				return s[i+1:]
			}
		}
	}
	return ""
}

// Facts are what a kernel's header package says of the kernel.
type Facts struct {
	Build    string   `json:"build"`   // folder of the headers, below the root: "usr/src/linux-headers-6.8.0-31-generic"; as Lock.Build
	Release  string   `json:"release"` // of include/config/kernel.release, else of include/generated/utsrelease.h, else empty
	Compiler Compiler `json:"compiler"`
}

// The bounds of the files that ReadFacts reads, in bytes: of all of one, and of a line. A .config has 300 kB.
const (
	maxFactFile = 8 << 20
	maxFactLine = 64 << 10
)

// buildFolders are where header packages have a kernel's configured headers.
var buildFolders = []string{
	"usr/src/linux-headers-*", // Debian, Ubuntu
	"usr/src/kernels/*",       // Fedora, its relatives, Amazon Linux
	"usr/src/linux-*-obj/*/*", // SUSE
	"usr/lib/modules/*/build", // Arch
}

// factFiles are the files of such a folder that are read, with what takes a line of each.
var factFiles = map[string]func(*facts, string){
	".config":                        (*facts).config,
	"include/config/auto.conf":       (*facts).config,
	"include/config/kernel.release":  (*facts).release,
	"include/generated/utsrelease.h": (*facts).define,
	"include/generated/compile.h":    (*facts).define,
}

// facts are what was read so far.
type facts struct {
	build            string
	options          map[string]string // those of the configuration that ConfigCompiler reads
	comment, compile string            // # Compiler:, LINUX_COMPILER
	kernel, uts      string            // release of include/config/kernel.release, UTS_RELEASE
}

// ReadFacts reads the tar stream of a header package's payload, as far as it needs to and in little memory. To know that the package
// was whole, the caller reads its file on to the end. The compiler is, in this order: CONFIG_CC_VERSION_TEXT of .config or
// include/config/auto.conf; the comment "# Compiler:" of .config (4.18 to 5.7), or CONFIG_GCC_VERSION and CONFIG_CLANG_VERSION where
// that text is of no known form; LINUX_COMPILER in include/generated/compile.h (4.x). A package without any wraps ErrNotFound.
func ReadFacts(payload io.Reader) (Facts, error) {
	f := facts{options: map[string]string{}}
	in := tar.NewReader(payload)
	for f.options[versionText] == "" || f.kernel == "" {
		h, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return Facts{}, fmt.Errorf("read header package: %w", err)
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		if err := f.read(path.Clean("/" + h.Name)[1:], in); err != nil {
			return Facts{}, fmt.Errorf("read header package: %.300q: %w", h.Name, err)
		}
	}
	return f.done()
}

// read takes what a file says, if it is one of those that say something.
func (f *facts) read(name string, in io.Reader) error {
	if strings.HasPrefix(name, "lib/modules/") {
		name = "usr/" + name
	}
	for file, line := range factFiles {
		build, ok := strings.CutSuffix(name, "/"+file)
		if !ok || !slices.ContainsFunc(buildFolders, func(p string) bool { ok, _ := path.Match(p, build); return ok }) {
			continue
		}
		if f.build != "" && f.build != build {
			return fmt.Errorf("headers of another kernel are in %q", f.build)
		}
		f.build = build
		lines := bufio.NewScanner(io.LimitReader(in, maxFactFile))
		lines.Buffer(nil, maxFactLine)
		for lines.Scan() {
			line(f, lines.Text())
		}
		return lines.Err()
	}
	return nil
}

// config takes a line of .config or auto.conf.
func (f *facts) config(line string) {
	if text, ok := strings.CutPrefix(line, "# Compiler: "); ok {
		f.comment = cmp.Or(f.comment, text)
		return
	}
	name, value, _ := strings.Cut(line, "=")
	if name == versionText || slices.Contains(versionNumbers, name) {
		f.options[name] = cmp.Or(f.options[name], value)
	}
}

// release takes the line of kernel.release.
func (f *facts) release(line string) { f.kernel = cmp.Or(f.kernel, strings.TrimSpace(line)) }

// define takes a line of utsrelease.h or compile.h.
func (f *facts) define(line string) {
	if rest, ok := strings.CutPrefix(line, "#define "); ok {
		switch name, value, _ := strings.Cut(strings.TrimSpace(rest), " "); name {
		case "UTS_RELEASE":
			f.uts = cmp.Or(f.uts, unquote(value))
		case "LINUX_COMPILER":
			f.compile = cmp.Or(f.compile, unquote(value))
		}
	}
}

// unquote takes the quotes and backslashes of Kconfig and of C from a string.
func unquote(s string) string {
	s = strings.TrimSpace(s)
	if len(s) < 2 || s[0] != '"' || s[len(s)-1] != '"' {
		return s
	}
	inner := s[1 : len(s)-1]
	var out strings.Builder
	for i := 0; i < len(inner); i++ {
		if inner[i] == '\\' && i+1 < len(inner) {
			i++
		}
		out.WriteByte(inner[i])
	}
	return out.String()
}

// done settles what was read.
func (f *facts) done() (Facts, error) {
	if f.build == "" {
		return Facts{}, fmt.Errorf("read header package: no kernel's configured headers in it: %w", ErrNotFound)
	}
	out := Facts{Build: f.build, Release: cmp.Or(f.kernel, f.uts)}
	if out.Release != "" && !isWord(out.Release, "") {
		return Facts{}, fmt.Errorf("read header package: %q: %.200q is no release", f.build, out.Release)
	}
	if f.options[versionText] == "" {
		f.options[versionText] = f.comment
	}
	c, err := ConfigCompiler(f.options)
	if errors.Is(err, ErrNotFound) && f.compile != "" {
		c, err = ParseCompiler(f.compile)
	}
	if err != nil {
		return Facts{}, fmt.Errorf("read header package: %q: %w", f.build, err)
	}
	out.Compiler = c
	return out, nil
}

// The options of a kernel's configuration that say which compiler built it. Numbers are like 90400, for 9.4.0, and 0 for the family
// that it wasn't (scripts/gcc-version.sh, scripts/clang-version.sh).
const versionText = "CONFIG_CC_VERSION_TEXT"

var versionNumbers = []string{"CONFIG_CLANG_VERSION", "CONFIG_GCC_VERSION"}

// ConfigCompiler gives the compiler that a kernel's configuration names, the options of which are written as there. If the text is of no
// known form, the number counts. A configuration that names none, as before Linux 4.18, wraps ErrNotFound.
func ConfigCompiler(options map[string]string) (Compiler, error) {
	text := unquote(options[versionText])
	c, err := ParseCompiler(text)
	if err == nil {
		return c, nil
	}
	for _, name := range versionNumbers {
		if n, err := strconv.Atoi(options[name]); err == nil && n >= 1e4 && n < 1e8 {
			family := strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(name, "CONFIG_"), "_VERSION"))
			return Compiler{Family: family, Version: fmt.Sprintf("%d.%d.%d", n/1e4, n/100%100, n%100), Text: text}, nil
		}
	}
	if text == "" {
		err = fmt.Errorf("nothing says which compiler built the kernel: %w", ErrNotFound)
	}
	return Compiler{}, err
}

// IsCompiler tells whether a name has the form of Lock.Compiler: "gcc-12", "clang-17", "gcc-4.8".
func IsCompiler(name string) bool {
	family, version, _ := strings.Cut(name, "-")
	c := Compiler{Family: family, Version: version}
	return oneNumber[family] > 0 && version != "" && strings.Trim(version, "0123456789.") == "" && c.String() == name
}
