package ui

import (
	"fmt"
	"io"
	"strings"
)

// GitHub takes no more than 1 MiB of a step's summary:
// https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands#step-isolation-and-limits
const (
	maxMarkdown      = 1000 << 10 // bytes of the whole
	maxMarkdownTable = maxMarkdown / 2
	maxMarkdownLine  = 400 // columns of what comes from a log
)

var marks = map[Status]string{Built: "✅", Cached: "✅", Skipped: "⏭️", Failed: "❌", interrupted: "⏹️"}

// markdown writes GitHub's flavour: a table and the failures. What would make it too long for a summary is left out, and counted.
func (r Report) markdown(w io.Writer) error {
	var out strings.Builder
	fmt.Fprintf(&out, "### %s\n\n", r.headline())
	var counts []string
	for _, t := range r.tallies() {
		counts = append(counts, fmt.Sprintf("%s %d %s", marks[t.Status], t.N, t.Status))
	}
	fmt.Fprintf(&out, "%s\n", strings.Join(append(counts, markdownText(r.about())), " · "))
	t := r.table()
	head, under := "\n| kernel |", "|---|"
	for _, m := range t.modules {
		head += " " + markdownCode(m, true) + " |"
		under += "---|"
	}
	if len(head) > maxMarkdownTable/4 {
		fmt.Fprintf(&out, "\n%d modules are too many for a table here.\n", len(t.modules))
		t.rows = nil
	} else if len(t.rows) > 0 {
		out.WriteString(head + "\n" + under + "\n")
	}
	left := 0
	for _, row := range t.rows {
		line := "| " + markdownCode(row.kernel, true) + " |"
		for _, res := range row.cells {
			if res == nil {
				line += " |"
				continue
			}
			s := r.status(*res)
			verdict := ""
			if res.Test != nil {
				verdict = markdownText(string(res.Test.Verdict)) + " "
			}
			line += fmt.Sprintf(" %s %s %s%s |", marks[s], s, verdict, elapsed(seconds(res.Seconds)))
		}
		if left > 0 || out.Len()+len(line) > maxMarkdownTable {
			left++
			continue
		}
		out.WriteString(line + "\n")
	}
	if left > 0 {
		fmt.Fprintf(&out, "\n… and %d more kernels.\n", left)
	}
	left = 0
	for _, res := range r.Results {
		s := r.status(res)
		if s != Failed && s != Skipped {
			continue
		}
		item := fmt.Sprintf("- %s %s %s", marks[s], markdownCode(res.Kernel, false), markdownCode(moduleOf(res), false))
		switch lines := why(res); {
		case s == Skipped:
			item += ": " + markdownText(cut(cleanLine(res.Reason), maxMarkdownLine))
		case res.Why != "" && res.First != "":
			item += ": " + markdownText(cut(lines[0], maxMarkdownLine)) + "<br>" + markdownCode(cut(lines[1], maxMarkdownLine), false)
		default:
			item += ": " + markdownCode(cut(lines[0], maxMarkdownLine), false)
		}
		if res.Hint != "" {
			item += "<br>" + markdownText("hint: "+cut(cleanLine(res.Hint), maxMarkdownLine))
		}
		if left > 0 || out.Len()+len(item) > maxMarkdown-100 {
			left++
			continue
		}
		if !strings.Contains(out.String(), "\n- ") {
			out.WriteByte('\n')
		}
		out.WriteString(item + "\n")
	}
	if left > 0 {
		fmt.Fprintf(&out, "\n… and %d more.\n", left)
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// markdownCode is text as a code span, in which nothing has a meaning but backticks, of which there are more around it than in it, and
// the bars of a table: https://github.github.com/gfm/#code-spans, https://github.github.com/gfm/#example-200
func markdownCode(s string, inTable bool) string {
	s = strings.TrimSpace(strings.ReplaceAll(cleanLine(s), "\t", " "))
	if s == "" {
		return ""
	}
	fence := "`"
	for strings.Contains(s, fence) {
		fence += "`"
	}
	if strings.HasPrefix(s, "`") || strings.HasSuffix(s, "`") {
		s = " " + s + " "
	}
	if inTable {
		s = strings.ReplaceAll(s, "|", `\|`)
	}
	return fence + s + fence
}

// plainMarkdown takes the meaning from what has one in a line: https://github.github.com/gfm/#backslash-escapes
var plainMarkdown = strings.NewReplacer(`\`, `\\`, "`", "\\`", "*", `\*`, "_", `\_`, "[", `\[`, "]", `\]`, "<", `\<`, ">", `\>`, "#", `\#`,
	"|", `\|`, "~", `\~`, "&", `\&`, "@", `\@`, "$", `\$`, "://", `\://`, "www.", `www\.`)

func markdownText(s string) string { return plainMarkdown.Replace(cleanLine(s)) }
