package ui

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"
)

// hostile is what a source, a log or an index might have in the hope that somebody reads a report.
const hostile = "</pre></style><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">' \" & {{.}} ]]> \x1b[31m\u202e\ufffe\x00 `` | @all #1 $x$ [a](http://x.example) www.x.example"

// sample is a report of many kernels and some modules, with all that can happen.
func sample() Report {
	r := Report{Shard: "2/4", Took: 83 * time.Second, Version: "v1.2.3"}
	add := func(kernel, module string, s Status, seconds float64, change func(*Result)) {
		res := Result{Kernel: kernel, Module: module, Version: "1.0", Status: s, Seconds: seconds, Compiler: "gcc-12", Digest: "sha256:" + strings.Repeat("0f", 32)}
		if change != nil {
			change(&res)
		}
		r.Results = append(r.Results, res)
	}
	for i := range 24 {
		kernel := fmt.Sprintf("debian/bookworm:6.1.0-%d-amd64", 60-i)
		add(kernel, "hello", Built, 2.31+float64(i)/7, nil)
		switch i {
		case 2, 3:
			add(kernel, "v4l2loopback", Failed, 4.2, func(r *Result) {
				r.Digest, r.Log = "", "out/logs/3f.log"
				r.Why = "the kernel's API changed: strlcpy is not declared in this kernel"
				r.First = "v4l2loopback.c:2310:9: error: implicit declaration of function 'strlcpy' [-Werror=implicit-function-declaration]"
				r.Reason = "make failed with exit code 2: " + r.Why + ": " + r.First
				r.Hint = "xtables.h is in libxtables-dev; add it with --with libxtables-dev, or to [build] packages in godkms.toml"
				for n := range 20 {
					r.Tail = append(r.Tail, fmt.Sprintf("make[%d]: *** [scripts/Makefile.build:%d: /usr/src/v4l2loopback-1.0/v4l2loopback.o] Error 1", n%3, 200+n))
				}
			})
		case 5:
			add(kernel, "v4l2loopback", Skipped, 0.01, func(r *Result) { r.Reason = `BUILD_EXCLUSIVE_KERNEL="^6\.[2-9]" does not match "6.1.0-55-amd64"` })
		default:
			add(kernel, "v4l2loopback", Cached, 0.02, nil)
		}
	}
	add("debian/trixie:nothing-<b>", hostile, Failed, 0.1, func(r *Result) {
		r.Reason, r.Hint, r.Log, r.Tail, r.Compiler = hostile, hostile, hostile, []string{hostile, hostile}, hostile
	})
	return r
}

func render(t *testing.T, r Report, form string) string {
	t.Helper()
	var b bytes.Buffer
	if err := r.Write(&b, form); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestReportsCount(t *testing.T) {
	for want, r := range map[string]Report{
		"3 of 49 builds failed":           sample(),
		"Nothing to build":                {},
		"1 build, none failed":            {Results: []Result{{Status: Cached}}},
		"2 builds, none failed":           {Results: []Result{{Status: Built}, {Status: Skipped}}},
		"All skipped: 2 builds":           {Results: []Result{{Status: Skipped}, {Status: Skipped}}},
		"Interrupted: 1 of 3 builds done": {Results: []Result{{Status: Built}, {Status: Failed, Reason: Interruption}, {Status: Failed, Reason: Interruption}}, Interrupted: true},
		// A build may say so itself.
		"1 of 1 build failed": {Results: []Result{{Status: Failed, Reason: Interruption}}},
	} {
		if got := r.headline(); got != want {
			t.Errorf("headline %q; want %q", got, want)
		}
		for _, form := range ReportForms {
			if text := render(t, r, form); text != render(t, r, form) || form != "junit" && !strings.Contains(text, want) {
				t.Errorf("%s: %q isn't in it, or it isn't the same each time", form, want)
			}
		}
	}
	if err := sample().Write(io.Discard, "pdf"); err == nil {
		t.Error("a report of an unknown form was written")
	}
}

// A module that a kernel hasn't got leaves its cell empty; a kernel that is there twice has two rows.
func TestReportTable(t *testing.T) {
	r := Report{Results: []Result{{Kernel: "a", Module: "x"}, {Kernel: "a", Module: "y"}, {Kernel: "b", Module: "y"}, {Kernel: "b", Module: "y"}}}
	var got []string
	for _, row := range r.table().rows {
		text := row.kernel
		for _, c := range row.cells {
			if c == nil {
				text += " -"
			} else {
				text += " " + c.Module
			}
		}
		got = append(got, text)
	}
	if want := []string{"a x y", "b - y", "b - y"}; !slices.Equal(got, want) {
		t.Errorf("rows %q; want %q", got, want)
	}
}

// What every reader of JUnit's format relies on: the elements in their places and order, counts that are right, and XML.
func TestReportJUnit(t *testing.T) {
	text := render(t, sample(), "junit")
	children := map[string][]string{ // in their order
		"": {"testsuites"}, "testsuites": {"testsuite"}, "testsuite": {"properties", "testcase"}, "properties": {"property"},
		"testcase": {"skipped", "failure", "system-out"},
	}
	attributes := map[string]string{
		"testsuites": "name tests failures skipped time", "testsuite": "name tests failures errors skipped time", "property": "name value",
		"testcase": "name classname time", "failure": "message type", "skipped": "message type",
	}
	count := map[string]int{}
	path, last := []string{""}, []int{0}
	for d := xml.NewDecoder(strings.NewReader(text)); ; {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch e := token.(type) {
		case xml.StartElement:
			name, depth := e.Name.Local, len(path)-1
			place := slices.Index(children[path[depth]], name)
			if place < last[depth] {
				t.Errorf("<%s> in <%s>, at this place", name, path[depth])
			}
			var names []string
			for _, a := range e.Attr {
				names = append(names, a.Name.Local)
			}
			if got := strings.Join(names, " "); got != attributes[name] {
				t.Errorf("<%s> has the attributes %q; want %q", name, got, attributes[name])
			}
			last[depth] = place
			path, last = append(path, name), append(last, 0)
			count[name]++
		case xml.EndElement:
			path, last = path[:len(path)-1], last[:len(last)-1]
		}
	}
	if count["testsuite"] != 25 || count["testcase"] != 49 || count["failure"] != 3 || count["skipped"] != 1 {
		t.Errorf("elements %v; want 25 suites with 49 cases, 3 failed and 1 skipped", count)
	}
	for _, want := range []string{
		`<testsuites name="godkms-hermetic" tests="49" failures="3" skipped="1" time="83.000">`,
		`<testcase name="v4l2loopback/1.0" classname="debian/bookworm:6.1.0-58-amd64" time="4.200">`, "hint: xtables.h is in", "Error 1\nmake[",
	} {
		if !strings.Contains(strings.ReplaceAll(text, "&#xA;", "\n"), want) {
			t.Errorf("no %q in it", want)
		}
	}
}

func TestReportMarkdown(t *testing.T) {
	text := render(t, sample(), "markdown")
	for line := range strings.Lines(text) {
		bars := strings.Count(line, "|") - strings.Count(line, `\|`)
		if strings.HasPrefix(line, "|") && bars != 5 {
			t.Errorf("%q has %d columns; want 4", line, bars-1)
		}
		if line = codeSpan(line); strings.Contains(line, "<") && !strings.Contains(strings.ReplaceAll(strings.ReplaceAll(line, `\<`, ""), "<br>", ""), "<") {
			continue
		} else if strings.Contains(line, "<") || strings.Contains(line, " @") || strings.Contains(line, "http:") {
			t.Errorf("what others wrote has a meaning in %q", line)
		}
	}
	for _, want := range []string{
		"### 3 of 49 builds failed\n", "✅ 24 built · ✅ 21 cached · ⏭️ 1 skipped · ❌ 3 failed · shard 2/4 · 1m23s · godkms-hermetic v1.2.3\n",
		"\n| `debian/bookworm:6.1.0-58-amd64` | ✅ built 2.5s | ❌ failed 4.2s | |\n",
		"strlcpy is not declared in this kernel<br>`v4l2loopback.c:2310:9: error: ", `hint: xtables.h`,
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	var big Report // more than GitHub takes
	for i := range 20000 {
		big.Results = append(big.Results, Result{Kernel: fmt.Sprint("debian/bookworm:", i), Module: "m", Status: Failed, Reason: hostile})
	}
	text = render(t, big, "markdown")
	if len(text) > 1<<20 || len(text) < 1<<19 || strings.Count(text, "\n… and ") != 2 {
		t.Errorf("%d bytes, %d notes of what was left out; want less than 1 MiB and two", len(text), strings.Count(text, "\n… and "))
	}
}

// codeSpan takes the code spans out of a line.
func codeSpan(line string) string {
	out := ""
	for {
		before, rest, found := strings.Cut(line, "`")
		if found && strings.HasSuffix(before, `\`) {
			out, line = out+before+"`", rest
			continue
		}
		out += before
		if !found {
			return out
		}
		n := 1 + len(rest) - len(strings.TrimLeft(rest, "`"))
		rest = rest[n-1:]
		_, after, closed := strings.Cut(rest, strings.Repeat("`", n))
		if !closed {
			return out + rest
		}
		line = after
	}
}

func TestMarkdownCode(t *testing.T) {
	for s, want := range map[string]string{
		"a": "`a`", "": "", " a\tb ": "`a b`", "a`b": "``a`b``", "`a": "`` `a ``", "a``b`": "``` a``b` ```", "a|b": "`a\\|b`",
	} {
		if got := markdownCode(s, true); got != want {
			t.Errorf("markdownCode(%q) = %q; want %q", s, got, want)
		}
	}
}
