package rpm

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"
)

// packages writes a primary list: a line "name evr [arch]" starts a package; behind it, separated by semicolons, come "Requires: …",
// "Provides: …" and "File: …".
func packages(text string) string {
	var out []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		parts := strings.Split(line, ";")
		head := strings.Fields(parts[0])
		arch := "x86_64"
		if len(head) > 2 {
			arch = head[2]
		}
		v := splitEVR(head[1])
		var provides, requires, files strings.Builder
		entry := func(b *strings.Builder, dep string) {
			if strings.HasPrefix(dep, "(") {
				fmt.Fprintf(b, "<rpm:entry name=%q/>", strings.NewReplacer("<", "&lt;", ">", "&gt;").Replace(dep))
				return
			}
			d, err := parseDepend(dep)
			if err != nil {
				panic(err)
			}
			fmt.Fprintf(b, "<rpm:entry name=%q", d.name)
			if d.is != 0 {
				fmt.Fprintf(b, " flags=%q epoch=%q ver=%q", map[sense]string{less: "LT", less | equal: "LE", equal: "EQ", greater | equal: "GE", greater: "GT"}[d.is],
					d.evr.epoch, d.evr.version)
				if d.evr.release != "" {
					fmt.Fprintf(b, " rel=%q", d.evr.release)
				}
			}
			b.WriteString("/>")
		}
		entry(&provides, head[0]+" = "+head[1])
		if arch != noarch {
			entry(&provides, head[0]+isaSuffix(arch)+" = "+head[1])
		}
		for _, p := range parts[1:] {
			kind, what, _ := strings.Cut(strings.TrimSpace(p), ": ")
			switch kind {
			case "Requires":
				entry(&requires, what)
			case "Provides":
				entry(&provides, what)
			case "File":
				fmt.Fprintf(&files, "<file>%s</file>", what)
			default:
				panic(p)
			}
		}
		out = append(out, fmt.Sprintf(`<package type="rpm"><name>%s</name><arch>%s</arch><version epoch=%q ver=%q rel=%q/>
<checksum type="sha256" pkgid="YES">%x</checksum><time file="1" build="2"/><size package="100"/><location href="%[1]s-%[4]s-%[5]s.%[2]s.rpm"/>
<format><rpm:provides>%[7]s</rpm:provides><rpm:requires>%[8]s</rpm:requires>%[9]s</format></package>
`, head[0], arch, v.epoch, v.version, v.release, sha256.Sum256([]byte(line)), provides.String(), requires.String(), files.String()))
	}
	return primaryOf(out...)
}

func compact(t testing.TB, text string) *index {
	t.Helper()
	var b bytes.Buffer
	if err := buildIndex(&b, strings.NewReader(text), "x86_64"); err != nil {
		t.Fatal(err)
	}
	x, err := openIndex(bytes.NewReader(b.Bytes()), int64(b.Len()), "x86_64")
	if err != nil {
		t.Fatal(err)
	}
	return x
}

func TestClosure(t *testing.T) {
	for what, c := range map[string]struct{ list, want, get string }{
		"closure":                  {"a 1-1; Requires: b\nb 1-1; Requires: c\nc 1-1\nd 1-1", "a", "a-1-1 b-1-1 c-1-1"},
		"circle":                   {"a 1-1; Requires: b\nb 1-1; Requires: a", "a", "a-1-1 b-1-1"},
		"the newest":               {"a 1-1; Requires: b\nb 1-1\nb 1:0-1\nb 9-1", "a", "a-1-1 b-1:0-1"},
		"an older one":             {"a 1-1; Requires: b < 2\nb 1-1\nb 9-1", "a", "a-1-1 b-1-1"},
		"without a release":        {"a 1-1; Requires: b = 1\nb 1-7\nb 2-1", "a", "a-1-1 b-1-7"},
		"a provided name":          {"a 1-1; Requires: libx.so.1()(64bit)\nx-libs 1-1; Provides: libx.so.1()(64bit)", "a", "a-1-1 x-libs-1-1"},
		"provided version":         {"a 1-1; Requires: v >= 2\nb 1-1; Provides: v = 1\nc 1-1; Provides: v = 2", "a", "a-1-1 c-1-1"},
		"provided range":           {"a 1-1; Requires: v >= 2\nb 1-1; Provides: v < 2\nc 1-1; Provides: v >= 1", "a", "a-1-1 c-1-1"},
		"its own name before":      {"a 1-1; Requires: v\nb 1-1; Provides: v\nv 1-1", "a", "a-1-1 v-1-1"},
		"the shortest name":        {"a 1-1; Requires: v\nbbb 1-1; Provides: v\ncc 1-1; Provides: v\ndd 2-1; Provides: v", "a", "a-1-1 cc-1-1"},
		"what is chosen":           {"a 1-1; Requires: long; Requires: v\nlong 1-1; Provides: v\ncc 1-1; Provides: v", "a", "a-1-1 long-1-1"},
		"architecture":             {"a 1-1; Requires: b(x86-64) = 1-1\nb 1-1\nb 1-1 i686\nb 1-1 noarch", "a", "a-1-1 b-1-1"},
		"noarch isn't it":          {"a 1-1; Requires: b(x86-64)\nb 1-1 noarch", "a", `nothing provides "b(x86-64)"`},
		"no i686":                  {"a 1-1; Requires: b\nb 1-1 i686", "a", `nothing provides "b"`},
		"a file":                   {"a 1-1; Requires: /usr/bin/perl\nperl 1-1; File: /usr/bin/perl", "a", "a-1-1 perl-1-1"},
		"a file as it was":         {"a 1-1; Requires: /bin/sh\nbash 1-1; File: /usr/bin/sh", "a", "a-1-1 bash-1-1"},
		"a file as it is":          {"a 1-1; Requires: /usr/bin/sh\nbash 1-1; File: /bin/sh", "a", "a-1-1 bash-1-1"},
		"sbin":                     {"a 1-1; Requires: /usr/sbin/x\nx 1-1; File: /usr/bin/x", "a", "a-1-1 x-1-1"},
		"a provided file":          {"a 1-1; Requires: /usr/libexec/p\np 1-1; Provides: /usr/libexec/p", "a", "a-1-1 p-1-1"},
		"an unlisted file":         {"a 1-1; Requires: /usr/share/x", "a", "a-1-1 +/usr/share/x"},
		"a missing program":        {"a 1-1; Requires: /usr/bin/x", "a", `nothing provides "/usr/bin/x"`},
		"rpmlib":                   {"a 1-1; Requires: rpmlib(X) <= 1", "a", "a-1-1"},
		"config":                   {"a 1-1; Provides: config(a) = 1-1; Requires: config(a) = 1-1", "a", "a-1-1"},
		"back from a dead end":     {"a 1-1; Requires: v\nb 1-1; Provides: v; Requires: gone\nc 1-1; Provides: v", "a", "a-1-1 c-1-1"},
		"back to an older":         {"a 1-1; Requires: b\nb 2-1; Requires: gone\nb 1-1", "a", "a-1-1 b-1-1"},
		"two versions":             {"a 1-1; Requires: b = 1; Requires: b = 2\nb 1-1\nb 2-1", "a", "a 1-1: b is needed as version 1-1 and as 2-1"},
		"and":                      {"a 1-1; Requires: (b and c)\nb 1-1\nc 1-1", "a", "a-1-1 b-1-1 c-1-1"},
		"or":                       {"a 1-1; Requires: (x or c)\nb 1-1\nc 1-1", "a", "a-1-1 c-1-1"},
		"or, as chosen":            {"a 1-1; Requires: c; Requires: (b or c)\nb 1-1\nc 1-1", "a", "a-1-1 c-1-1"},
		"if not":                   {"a 1-1; Requires: (b if c)\nb 1-1\nc 1-1", "a", "a-1-1"},
		"if":                       {"a 1-1; Requires: (b if c); Requires: d\nb 1-1\nc 1-1\nd 1-1; Requires: c", "a", "a-1-1 b-1-1 c-1-1 d-1-1"},
		"if, of a chain":           {"a 1-1; Requires: (b if c); Requires: (c if d); Requires: d\nb 1-1\nc 1-1\nd 1-1", "a", "a-1-1 b-1-1 c-1-1 d-1-1"},
		"if else":                  {"a 1-1; Requires: (b if c else d)\nb 1-1\nc 1-1\nd 1-1", "a", "a-1-1 d-1-1"},
		"if impossible":            {"a 1-1; Requires: (gone if c); Requires: c\nc 1-1", "a", `nothing provides "gone"`},
		"unless":                   {"a 1-1; Requires: (b unless c)\nb 1-1\nc 1-1", "a", "a-1-1 b-1-1"},
		"unless it is":             {"a 1-1; Requires: (b unless c); Requires: c\nb 1-1\nc 1-1", "a", "a-1-1 c-1-1"},
		"with":                     {"a 1-1; Requires: (v >= 1 with v < 2)\nb 1-1; Provides: v = 3\nc 1-1; Provides: v = 1\nd 1-1; Provides: v = 2", "a", "a-1-1 c-1-1"},
		"with, of one package":     {"a 1-1; Requires: (v with w)\nb 1-1; Provides: v\nc 1-1; Provides: w", "a", `nothing provides "(v with w)"`},
		"without":                  {"a 1-1; Requires: (v without w)\nb 1-1; Provides: v; Provides: w\nc 1-1; Provides: v", "a", "a-1-1 c-1-1"},
		"or of and":                {"a 1-1; Requires: ((b and gone) or (c and d))\nb 1-1\nc 1-1\nd 1-1", "a", "a-1-1 c-1-1 d-1-1"},
		"modules last":             {"a 1-1; Requires: b\nb 9-1.module_el8.6.0+1\nb 1-1", "a", "a-1-1 b-1-1"},
		"modules if need be":       {"a 1-1; Requires: b\nb 9-1.module+el8", "a", "a-1-1 b-9-1.module+el8"},
		"tilde":                    {"a 1-1; Requires: b >= 2\nb 2~rc1-1\nb 2^git-1", "a", "a-1-1 b-2^git-1"},
		"rich in what is provided": {"a 1-1; Requires: (b if c)\nb 1-1\nc 1-1", "(c and a)", "a-1-1 b-1-1 c-1-1"},
	} {
		// in whatever order the list has them
		lines := strings.Split(c.list, "\n")
		for range 3 {
			p := newPool("x86_64", []source{{index: compact(t, packages(strings.Join(lines, "\n"))), base: "http://mirror"}})
			if got := resolve(t, p, c.want); got != c.get && !strings.Contains(got, c.get) || strings.HasSuffix(c.get, "-1") && got != c.get {
				t.Errorf("%s: %s; want %s", what, got, c.get)
			}
			rand.Shuffle(len(lines), func(i, j int) { lines[i], lines[j] = lines[j], lines[i] })
		}
	}
}

// resolve gives what a closure of a dependency has, sorted, or the error.
func resolve(t testing.TB, p *pool, want string) string {
	t.Helper()
	d, err := parseDepend(want)
	if err != nil {
		t.Fatal(err)
	}
	c := newClosure(p)
	if err := c.satisfy(d); err != nil {
		if len(c.order)+len(c.chosen)+len(c.later) > 0 {
			t.Errorf("a failed closure holds %d packages", len(c.order))
		}
		return err.Error()
	}
	var out []string
	for _, k := range c.order {
		out = append(out, k.name+"-"+k.version)
	}
	slices.Sort(out)
	for _, f := range c.unlisted {
		out = append(out, "+"+f)
	}
	return strings.Join(out, " ")
}

func TestPool(t *testing.T) {
	first := compact(t, packages("a 1-1; File: /usr/bin/a\na 2-1; Provides: v"))
	second := compact(t, packages("a 2-1; Provides: v\na 3-1\nb 1-1"))
	other := compact(t, packages("b 1-1; Requires: a")) // another file of the same name
	sources := []source{{first, "http://one", false}, {second, "http://two", false}, {other, "http://three", false}}
	var digests []string
	for _, order := range [][]int{{0, 1, 2}, {2, 1, 0}, {1, 2, 0}} {
		var in []source
		for _, i := range order {
			in = append(in, sources[i])
		}
		p := newPool("x86_64", in)
		all, err := p.named("a")
		of := slices.DeleteFunc([]string{in[0].base, in[1].base, in[2].base}, func(base string) bool { return base == "http://three" })
		if err != nil || len(all) != 3 || all[0].version != "3-1" || !slices.Equal(all[1].bases, of) {
			t.Errorf("named(a) = %v, %v", all, err)
		}
		b, err := p.named("b")
		if err != nil || len(b) != 1 {
			t.Errorf("named(b) = %v, %v", b, err)
		}
		digests = append(digests, b[0].digest.Hex)
	}
	if digests[0] != digests[1] || digests[1] != digests[2] {
		t.Errorf("the order of sources chooses among files of one name: %q", digests)
	}
	late := newPool("x86_64", []source{{second, "http://two", true}, {first, "http://one", false}})
	if all, err := late.named("a"); err != nil || all[0].version != "2-1" || all[2].version != "3-1" {
		t.Errorf("a late source comes first: %v, %v", all, err)
	}
}

// Dependencies that can't be resolved in reasonable time are an error, soon.
func TestClosureTooHard(t *testing.T) {
	var list strings.Builder
	for i := range 40 {
		for _, alt := range []string{"x", "y", "z"} {
			fmt.Fprintf(&list, "p%s%d 1-1; Provides: v%d; Requires: v%d\n", alt, i, i, i+1)
		}
	}
	list.WriteString("end 1-1; Provides: v40; Requires: gone\n")
	p := newPool("x86_64", []source{{index: compact(t, packages(list.String())), base: "http://mirror"}})
	if got := resolve(t, p, "v0"); !strings.Contains(got, errTooHard.Error()) {
		t.Errorf("%.300s", got)
	}
}

// A list that nobody signed can be made to take for ever.
func TestPoolTooMany(t *testing.T) {
	var many []string
	one := packages("many 1-1; Provides: lots")
	body := one[strings.Index(one, "<package"):strings.LastIndex(one, "</metadata>")]
	for range maxSame + 1 {
		many = append(many, body)
	}
	p := newPool("x86_64", []source{{index: compact(t, primaryOf(many...)), base: "http://mirror"}})
	for _, name := range []string{"many", "lots"} {
		start := time.Now()
		if _, err := p.meeting(&depend{name: name}); !errors.Is(err, errTooHard) || time.Since(start) > time.Second {
			t.Errorf("%s: error is %v after %v", name, err, time.Since(start))
		}
	}
}
