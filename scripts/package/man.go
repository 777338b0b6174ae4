package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// manPages gives the manual pages of a command and all below it, by file name, in man(7)'s macros.
func manPages(c *cobra.Command, date, version string) map[string]string {
	pages := map[string]string{}
	var walk func(*cobra.Command)
	walk = func(c *cobra.Command) {
		c.InitDefaultHelpFlag()
		pages[pageName(c)+".1"] = manPage(c, date, version)
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() {
				walk(sub)
			}
		}
	}
	walk(c)
	return pages
}

func pageName(c *cobra.Command) string { return strings.ReplaceAll(c.CommandPath(), " ", "-") }

func manPage(c *cobra.Command, date, version string) string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p(`.TH %s 1 %s "%s" "User Commands"`, roff(strings.ToUpper(pageName(c))), date, roff(c.Root().Name()+" "+version))
	p(".SH NAME\n%s \\- %s", roff(pageName(c)), roff(c.Short))
	p(".SH SYNOPSIS\n.B %s", roff(c.CommandPath()))
	if c.HasAvailableSubCommands() {
		p(".I COMMAND")
	} else if rest := strings.TrimPrefix(c.UseLine(), c.CommandPath()); rest != "" {
		p("%s", roff(strings.TrimSpace(rest)))
	}
	p(".SH DESCRIPTION")
	text, status, _ := strings.Cut(c.Long, "\n\nExit status:\n")
	if text == "" {
		text = c.Short + "."
	}
	paragraphs(&b, text)
	if c.HasAvailableSubCommands() {
		p(".SH COMMANDS")
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() {
				p(".TP\n.BR %s (1)\n%s", roff(pageName(sub)), roff(sub.Short))
			}
		}
	}
	flags(&b, "OPTIONS", c.NonInheritedFlags())
	flags(&b, "OPTIONS OF ALL COMMANDS", c.InheritedFlags())
	if status != "" {
		p(".SH EXIT STATUS")
		for _, line := range strings.Split(status, "\n") {
			line = strings.TrimSpace(line)
			code, meaning, _ := strings.Cut(line, "  ")
			if meaning == "" {
				code, meaning, _ = strings.Cut(line, " ")
			}
			switch {
			case line == "":
				p(".PP")
			case strings.Trim(code, "0123456789, ") == "":
				p(".TP\n.B %s\n%s", roff(code), roff(strings.TrimSpace(meaning)))
			default: // of the last one
				p("%s", roff(line))
			}
		}
	}
	if c.Example != "" {
		p(".SH EXAMPLES")
		verbatim(&b, strings.Split(c.Example, "\n"))
	}
	if c.HasParent() {
		p(".SH SEE ALSO\n.BR %s (1)", roff(pageName(c.Parent())))
	}
	return b.String()
}

// paragraphs writes text as help has it: paragraphs with empty lines between them, those with indented lines as they are.
func paragraphs(b *strings.Builder, text string) {
	for i, par := range strings.Split(strings.TrimSpace(text), "\n\n") {
		lines := strings.Split(strings.Trim(par, "\n"), "\n")
		if i > 0 {
			b.WriteString(".PP\n")
		}
		if strings.HasPrefix(par, " ") || strings.Contains(par, "\n  ") {
			verbatim(b, lines)
			continue
		}
		for _, l := range lines {
			b.WriteString(roff(l) + "\n")
		}
	}
}

func verbatim(b *strings.Builder, lines []string) {
	b.WriteString(".nf\n")
	for _, l := range lines {
		b.WriteString(roff(strings.TrimPrefix(l, "  ")) + "\n")
	}
	b.WriteString(".fi\n")
}

func flags(b *strings.Builder, title string, set *pflag.FlagSet) {
	if !set.HasAvailableFlags() {
		return
	}
	fmt.Fprintf(b, ".SH %s\n", title)
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden {
			return
		}
		arg, usage := pflag.UnquoteUsage(f)
		name := `\fB` + roff("--"+f.Name) + `\fR`
		if f.Shorthand != "" {
			name = `\fB` + roff("-"+f.Shorthand) + `\fR, ` + name
		}
		if arg != "" {
			name += ` \fI` + roff(arg) + `\fR`
		}
		switch f.DefValue {
		case "", "false", "[]", "0", "0s":
		default:
			usage += " (default " + strings.Trim(f.DefValue, "[]") + ")"
		}
		fmt.Fprintf(b, ".TP\n%s\n%s\n", name, roff(usage))
	})
}

var roffEscapes = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", "\\(ga", "^", `\(ha`, "~", `\(ti`, `"`, `\(dq`, "…", `\&...`, "’", `\(cq`)

// roff is text that means nothing to roff, whatever line or argument it stands in.
func roff(s string) string {
	s = roffEscapes.Replace(s)
	if strings.HasPrefix(s, ".") {
		s = `\&` + s
	}
	return s
}
