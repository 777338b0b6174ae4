package ui

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"
)

func TestReadFailureFirst(t *testing.T) {
	for name, c := range map[string]struct{ log, want string }{
		"gcc": {`make -C /lib/modules/6.1/build
hello.c: In function 'f':
hello.c:9:5: warning: unused variable 'error' [-Wunused-variable]
make[2]: *** [Makefile:250: other.o] Error 1
/var/lib/dkms/hello/1.0/build/hello.c:10:2: error: implicit declaration of function 'g' [-Werror=implicit-function-declaration]
hello.c:11:2: error: second
make: *** [Makefile:1: all] Error 2`,
			"/var/lib/dkms/hello/1.0/build/hello.c:10:2: error: implicit declaration of function 'g' [-Werror=implicit-function-declaration]"},
		"colors":        {"\x1b[01m\x1b[Khello.c:10:2:\x1b[m\x1b[K \x1b[01;31m\x1b[Kerror: \x1b[m\x1b[Kno \x1b[01m\x1b[Kg\x1b[m\x1b[K\n", "hello.c:10:2: error: no g"},
		"fatal":         {"In file included from a.c:1:\na.h:3:10: fatal error: linux/none.h: No such file or directory", "a.h:3:10: fatal error: linux/none.h: No such file or directory"},
		"clang":         {"a.c:3:5: error: call to undeclared function 'g'; ISO C99 and later do not support implicit function declarations", "a.c:3:5: error: call to undeclared function 'g'; ISO C99 and later do not support implicit function declarations"},
		"#error":        {"a.c:7:2: error: #error \"too new\"", "a.c:7:2: error: #error \"too new\""},
		"assembler":     {"x.s: Assembler messages:\nx.s:12: Error: no such instruction: `foo'", "x.s:12: Error: no such instruction: `foo'"},
		"internal":      {"a.c:1:1: internal compiler error: Segmentation fault", "a.c:1:1: internal compiler error: Segmentation fault"},
		"modpost":       {"  MODPOST x\nERROR: modpost: \"no_such_symbol\" [/b/x.ko] undefined!\nmake[1]: *** [x] Error 1", "ERROR: modpost: \"no_such_symbol\" [/b/x.ko] undefined!"},
		"old modpost":   {"ERROR: \"no_such_symbol\" [/b/x.ko] undefined!", "ERROR: \"no_such_symbol\" [/b/x.ko] undefined!"},
		"ld":            {"ld: x.o: in function `f':\nx.c:(.text+0x5): undefined reference to `g'\nmake[1]: *** [x] Error 1", "x.c:(.text+0x5): undefined reference to `g'"},
		"ld file":       {"/usr/bin/x86_64-linux-gnu-ld: cannot find foo.o: No such file or directory\nmake: *** [x] Error 1", "/usr/bin/x86_64-linux-gnu-ld: cannot find foo.o: No such file or directory"},
		"lld":           {"ld.lld: error: undefined symbol: g", "ld.lld: error: undefined symbol: g"},
		"gcc option":    {"gcc: error: unrecognized command-line option '-mfoo'\nmake: *** [x] Error 1", "gcc: error: unrecognized command-line option '-mfoo'"},
		"versioned gcc": {"x86_64-linux-gnu-gcc-12: error: x: No such file", "x86_64-linux-gnu-gcc-12: error: x: No such file"},
		"$(error)":      {"make[1]: Entering directory '/b'\nMakefile:3: *** no kernel headers.  Stop.\nmake: *** [all] Error 2", "Makefile:3: *** no kernel headers.  Stop."},
		"shell":         {"/bin/bash: line 1: curl: command not found\nmake: *** [Makefile:4: all] Error 127", "/bin/bash: line 1: curl: command not found"},
		"dash":          {"/bin/sh: 1: curl: not found\nmake: *** [Makefile:4: all] Error 127", "/bin/sh: 1: curl: not found"},
		"echoed":        {"test -e x || { echo \"x.c:1:1: error: y\"; exit 1; }\nx.c:1:1: error: y", "x.c:1:1: error: y"},
		"cat":           {"cat: /etc/none: No such file or directory\nmake: *** [Makefile:5: all] Error 1", "cat: /etc/none: No such file or directory"},
		"no folder":     {"make[1]: *** /lib/modules/6.1/build: No such file or directory.  Stop.\nmake: *** [all] Error 2", "make[1]: *** /lib/modules/6.1/build: No such file or directory.  Stop."},
		"patch":         {"patching file a.c\nHunk #1 FAILED at 3.\n1 out of 1 hunk FAILED -- saving rejects to file a.c.rej", "Hunk #1 FAILED at 3."},
		"no rule":       {"make[1]: *** No rule to make target 'x.o', needed by 'y'.  Stop.\nmake: *** [all] Error 2", "make[1]: *** No rule to make target 'x.o', needed by 'y'.  Stop."},
		"only make":     {"make[1]: *** [a] Error 7\nmake: *** [b] Error 2", "make[1]: *** [a] Error 7"},
		"nothing":       {"CC x.o\nwarning: no error\n0 errors", ""},
		"empty":         {"", ""},
		"CRLF":          {"a.c:1:1: error: x\r\nb\r\n", "a.c:1:1: error: x"},
	} {
		f, err := ReadFailure(strings.NewReader(c.log))
		if err != nil || f.First != c.want {
			t.Errorf("%s: first error %q, %v; want %q", name, f.First, err, c.want)
		}
	}
}

func TestReadFailureTail(t *testing.T) {
	var log strings.Builder
	for i := range 50 {
		fmt.Fprintf(&log, "line %d\n\n", i)
	}
	log.WriteString(strings.Repeat("x", 10*maxTailLine) + "\nlast, without a newline")
	f, err := ReadFailure(iotest.OneByteReader(strings.NewReader(log.String())))
	if err != nil || len(f.Tail) != tailLines || f.Tail[0] != "line 32" || f.Tail[tailLines-1] != "last, without a newline" {
		t.Errorf("tail %q, %v", f.Tail, err)
	}
	if n := len(f.Tail[tailLines-2]); n != maxTailLine {
		t.Errorf("a long line is cut to %d bytes, want %d", n, maxTailLine)
	}
	if _, err := ReadFailure(iotest.ErrReader(io.ErrUnexpectedEOF)); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a log that can't be read: %v", err)
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain\ttext\n":                    "plain\ttext\n",
		"caf\u00e9 \u4e16\u754c":           "caf\u00e9 \u4e16\u754c",
		"a\x1b[31;1mb\x1b[0mc":             "abc",
		"a\x1b]0;title\x07b":               "ab",
		"a\x1b]8;;http://x\x1b\\b":         "ab",
		"a\x1b]0;never ends\nnext":         "a\nnext",
		"a\x1bPdcs\x1b\\b\x1b_apc\x1b\\c":  "abc",
		"a\x1b(0b\x1bcc\x1b7d":             "abcd",
		"a\x1b":                            "a",
		"a\x1b[":                           "a",
		"a\x1b[12":                         "a",
		"a\x1b\x1b[31mb":                   "ab",
		"a\x1b]x\x1b[31mb":                 "ab",
		"a\u009b31mb":                      "a\ufffd31mb",
		"bell\x07 back\x08 null\x00 \x7f":  "bell\ufffd back\ufffd null\ufffd \ufffd",
		"\x7f":                             "\ufffd",
		"\xff\xfe":                         "\ufffd\ufffd",
		"\u202eevil\u2066":                 "\ufffdevil\ufffd",
		"one\r\ntwo\rthree":                "one\ntwo\ufffdthree",
		"\x1b[?1049h\x1b[2J\x1b[Hscreen\v": "screen\ufffd",
	} {
		if got := Clean(in); got != want {
			t.Errorf("Clean(%q) = %q; want %q", in, got, want)
		}
	}
}

func safe(s string) bool {
	for _, r := range s {
		if r < 0x20 && r != '\t' && r != '\n' || r >= 0x7f && r < 0xa0 || r >= 0x202a && r <= 0x202e {
			return false
		}
	}
	return utf8.ValidString(s)
}

func FuzzClean(f *testing.F) {
	f.Add("a\x1b[31mb\x1b]0;t\x07\u009b\xff\r\n")
	f.Fuzz(func(t *testing.T, s string) {
		got := Clean(s)
		if !safe(got) {
			t.Errorf("Clean(%q) = %q", s, got)
		}
		if again := Clean(got); again != got {
			t.Errorf("Clean(%q) = %q, then %q", s, got, again)
		}
		if strings.Count(got, "\n") != strings.Count(s, "\n") {
			t.Errorf("Clean(%q) = %q: lines are lost", s, got)
		}
	})
}

func FuzzReadFailure(f *testing.F) {
	f.Add([]byte("a.c:1:2: error: x\nmake: *** [a] Error 1\n\x1b[31m"))
	f.Add([]byte("ERROR: modpost: \"x\" [y.ko] undefined!\r\n"))
	f.Add([]byte("a.c:1:2: error: too many arguments to function call\na.h:1:1: note: '\x1b[1mf' declared here\n"))
	f.Add([]byte("a.c:1:2: fatal error: ../x\u00a0y.h: No such file or directory\nsh: 1: a\x07b: not found"))
	f.Fuzz(func(t *testing.T, log []byte) {
		got, err := ReadFailure(bytes.NewReader(log))
		if err != nil {
			t.Fatal(err)
		}
		if len(got.Tail) > tailLines {
			t.Errorf("%d lines", len(got.Tail))
		}
		for _, m := range got.Missing {
			if !missingName.MatchString(m.Name) {
				t.Errorf("missing %q", m)
			}
		}
		if width(got.Why) > maxWhy || len(got.Missing) > maxMissing {
			t.Errorf("why %q, %d missing", got.Why, len(got.Missing))
		}
		for _, line := range append(got.Tail, got.First, got.Why) {
			if !safe(line) || strings.Contains(line, "\n") {
				t.Errorf("%q", line)
			}
		}
	})
}
