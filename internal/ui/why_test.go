package ui

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestWhy reads what real compilers and tools said. In the logs of testdata a line "# why: …" comes before an error and says what
// a log is explained by that begins there; "# missing: KIND NAME" says what is missing. The samples' C files are of a few
// lines; gcc-10 and -11, clang-13 and -16 say the same as those that are there. Of tools.txt some lines are of other logs.
func TestWhy(t *testing.T) {
	names, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(names) != 6 {
		t.Fatalf("%q, %v", names, err)
	}
	for _, name := range names {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		tried := 0
		for _, section := range strings.Split("\n"+string(b), "\n## ")[1:] {
			title, text, _ := strings.Cut(section, "\n")
			lines := strings.Split(text, "\n")
			for i, line := range lines {
				want, ok := strings.CutPrefix(line, "# why: ")
				if !ok {
					continue
				}
				var log, missing, wanted []string
				for j, l := range lines[i+1:] {
					if m, ok := strings.CutPrefix(l, "# missing: "); ok && j == len(wanted) {
						wanted = append(wanted, m)
					} else if !strings.HasPrefix(l, "# ") {
						log = append(log, l)
					}
				}
				f, err := ReadFailure(strings.NewReader(strings.Join(log, "\n")))
				if err != nil {
					t.Fatal(err)
				}
				for _, m := range f.Missing {
					missing = append(missing, m.Kind+" "+m.Name)
				}
				if f.Why != want || !slices.Equal(missing, wanted) {
					t.Errorf("%s: %s: %q\nwhy %q, missing %q; want %q, %q", name, title, log[0], f.Why, missing, want, wanted)
				}
				tried++
			}
		}
		if tried < 30 {
			t.Errorf("%s has %d errors", name, tried)
		}
	}
}

// Where something is missing, all that's missing is said, what stopped the build first.
func TestMissing(t *testing.T) {
	read := func(log string) Failure {
		f, err := ReadFailure(strings.NewReader(log))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	const absent = "/bin/sh: 1: pkg-config: not found\n/bin/sh: 1: pkg-config: not found\n/bin/sh: 1: flex: not found\n"
	got := read(absent + "a.c:1:10: fatal error: libnl3/netlink.h: No such file or directory\nb.c:1:10: fatal error: zlib.h: No such file or directory\n").Missing
	want := []Missing{{MissingHeader, "libnl3/netlink.h"}, {MissingProgram, "pkg-config"}, {MissingProgram, "flex"}, {MissingHeader, "zlib.h"}}
	if !slices.Equal(got, want) {
		t.Errorf("missing %q; want %q", got, want)
	}
	if got := read(absent + "a.c:1:1: error: 'X' undeclared (first use in this function)\n").Missing; got != nil {
		t.Errorf("missing %q, though that's not why", got)
	}
	for _, name := range []string{"-rf", "../../etc/x.h", "a/../b.h", "x y", "a;b", strings.Repeat("x", 129), "/etc/passwd"} {
		f := read("a.c:1:10: fatal error: " + name + ": No such file or directory\n")
		if f.Missing != nil || f.Why == "" {
			t.Errorf("%q: missing %q, why %q", name, f.Missing, f.Why)
		}
	}
	var log strings.Builder
	for i := range 10 * maxMissing {
		log.WriteString("sh: 1: prog" + strings.Repeat("x", i) + ": not found\n")
	}
	if n := len(read(log.String()).Missing); n != maxMissing {
		t.Errorf("%d are missing, want %d", n, maxMissing)
	}
}

// What a log may have to confuse: notes of another error, endless lines and names, control characters, a log of errors alone.
func TestWhyOfHostileLogs(t *testing.T) {
	for name, c := range map[string]struct{ log, want string }{
		"note of the next error": {"a.c:1:1: error: too many arguments to function call\na.c:2:1: error: x\nb.h:1:1: note: 'other' declared here\n",
			changed + "a function takes fewer arguments in this kernel"},
		"note too far": {"a.c:1:1: error: too many arguments to function call\n" + strings.Repeat("x\n", nextLines) + "b.h:1:1: note: 'other' declared here\n",
			changed + "a function takes fewer arguments in this kernel"},
		"other function": {"a.c:1:1: error: passing argument 2 of 'f' from incompatible pointer type\na.c:2:1: error: too many arguments to function 'g'\n",
			changed + "argument 2 of f has another type in this kernel"},
		"better error later":  {"sh: 1: flex: not found\na.c:1:1: error: 'X' undeclared here\n", changed + "X is not declared in this kernel"},
		"the second is known": {"a.c:1:1: error: expected ';'\na.c:1:1: error: 'X' undeclared here\n", ""},
		"control characters":  {"a.c:1:1: error: 'X\x1b[2J\u202e' undeclared here\n", changed + "X\ufffd is not declared in this kernel"},
		"templates":           {"a.c:1:1: error: '$2$1' undeclared here\n", changed + "$2$1 is not declared in this kernel"},
		"a kernel's message":  {"a.c:1:1: warning: error: 'X' undeclared here\n", ""},
	} {
		f, err := ReadFailure(strings.NewReader(c.log))
		if err != nil || f.Why != c.want {
			t.Errorf("%s: why %q, %v; want %q", name, f.Why, err, c.want)
		}
	}
	f, err := ReadFailure(strings.NewReader("a.c:1:1: error: '" + strings.Repeat("x", 3000) + "' undeclared here\n"))
	if err != nil || width(f.Why) != maxWhy {
		t.Errorf("%d columns, %v; want %d", width(f.Why), err, maxWhy)
	}
	// What else is missing is looked for in so many lines: a log may be nothing but errors.
	f, err = ReadFailure(strings.NewReader("sh: 1: flex: not found\n" + strings.Repeat("x\n", maxFurther) + "sh: 1: bison: not found\na.c:1:1: error: 'X' undeclared here\n"))
	if err != nil || f.Why != changed+"X is not declared in this kernel" {
		t.Errorf("after many lines: why %q, %v", f.Why, err)
	}
	f, err = ReadFailure(strings.NewReader("sh: 1: flex: not found\n" + strings.Repeat("x\n", maxFurther) + "sh: 1: bison: not found\n"))
	if want := []Missing{{MissingProgram, "flex"}}; err != nil || !slices.Equal(f.Missing, want) {
		t.Errorf("after many lines: missing %q, %v; want %q", f.Missing, err, want)
	}
}
