package rpm

import (
	"strings"
	"testing"
)

func TestParseDepend(t *testing.T) {
	for in, want := range map[string]string{
		"a":                               "a",
		" a  >=  1:2-3 ":                  "a >= 1:2-3",
		"a == 1":                          "a = 1",
		"libc.so.6(GLIBC_2.34)(64bit)":    "libc.so.6(GLIBC_2.34)(64bit)",
		"perl(:VERSION) >= 5.8":           "perl(:VERSION) >= 5.8",
		"(a if b)":                        "(a if b)",
		"( a  or b or c )":                "(a or b or c)",
		"(a >= 1 with a < 2)":             "(a >= 1 with a < 2)",
		"(a if (b and c) else d)":         "(a if (b and c) else d)",
		"(lib(x)(64bit) or /bin/sh)":      "(lib(x)(64bit) or /bin/sh)",
		"((a unless b) or (c without d))": "((a unless b) or (c without d))",
		"(a)":                             "a",
		"(a with b with c)":               "(a with b with c)",
		"if":                              "if",
	} {
		d, err := parseDepend(in)
		if err != nil || d.String() != want {
			t.Errorf("parseDepend(%q) = %v, %v; want %q", in, d, err, want)
		}
	}
	for _, in := range []string{"", "a >=", "a b", "(a", "a)", "(a or)", "(a or b and c)", "(a if b if c)", "(a without b without c)", "(a else b)", "()", "a = -", "a = -1", "a = :1:2", "(a nor b)",
		"(a if b else c else d)", "a >= 1 2", strings.Repeat("(a or ", 30) + "b" + strings.Repeat(")", 30), strings.Repeat("a", 5000)} {
		if d, err := parseDepend(in); err == nil {
			t.Errorf("parseDepend(%q) = %v; want an error", in, d)
		}
	}
}

func FuzzDepend(f *testing.F) {
	for _, s := range []string{"a >= 1:2-3", "(a if (b and c) else d)", "lib(x)(64bit)", "((a unless b) or (c without d >= 1))"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, in string) {
		d, err := parseDepend(in)
		if err != nil {
			return
		}
		once := d.String()
		again, err := parseDepend(once)
		if err != nil {
			t.Fatalf("%q became %q: %v", in, once, err)
		}
		if twice := again.String(); twice != once {
			t.Fatalf("%q became %q, then %q", in, once, twice)
		}
		p := newPool("x86_64", nil)
		newClosure(p).satisfy(d)
	})
}
