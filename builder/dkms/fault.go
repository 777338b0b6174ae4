package dkms

import (
	"fmt"
	"slices"
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

// Fault is one thing that is wrong with a dkms.conf.
type Fault struct {
	File string `json:"file"` // "dkms.conf", the name of an override, or "--directive"
	Line int    `json:"line,omitempty"`
	Text string `json:"text"`
	code int    // dkms's exit code; 0 is 8, a bad conf
}

func (f Fault) String() string {
	if f.Line == 0 {
		return f.File + ": " + f.Text
	}
	return fmt.Sprintf("%s:%d: %s", f.File, f.Line, f.Text)
}

// dkms's exit codes for what it finds before make.
const (
	codeBadConf = 8
	codePatch   = 5
)

// Errors are all the faults of a dkms.conf, a line for each.
type Errors []Fault

func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i, f := range e {
		lines[i] = f.String()
	}
	return strings.Join(lines, "\n")
}

// DKMSCode is the exit code that dkms itself ends with: 5 for patches that can't be applied, else 8.
func (e Errors) DKMSCode() int {
	if len(e) > 0 && !slices.ContainsFunc(e, func(f Fault) bool { return f.code != codePatch }) {
		return codePatch
	}
	return codeBadConf
}

// places are the assignments to each directive, in order, that may be the one that counts.
type places map[string][]place

type place struct {
	file  string
	line  int
	index int    // anyIndex where it's not known
	value string // as written, where nothing in it has to be expanded, with one space for each run of white space
	plain bool   // value is that
}

const anyIndex = -1

func findPlaces(in Input) places {
	p := places{}
	p.read(confName, in.Conf)
	for _, o := range in.Overrides {
		p.read(o.Name, o.Text)
	}
	for _, text := range in.Directives {
		if d, err := parseDirective(text); err == nil {
			p.add(d.name, place{file: "--directive", index: d.index, value: d.value, plain: true}, true)
		}
	}
	return p
}

// read follows the assignments of one file. One that stands by itself replaces those before it; one in a condition, a loop or a
// function joins them.
func (p places) read(name string, text []byte) {
	file, err := parse(text)
	if err != nil {
		return
	}
	for _, s := range file.Stmts {
		certain := false
		switch cmd := s.Cmd.(type) {
		case *syntax.CallExpr:
			if certain = len(cmd.Args) == 0; !certain {
				continue // variables of one command
			}
		case *syntax.DeclClause:
			certain = true
		}
		syntax.Walk(s, func(n syntax.Node) bool {
			if a, ok := n.(*syntax.Assign); ok && a.Name != nil && !a.Naked {
				p.assign(name, a, certain)
			}
			return true
		})
	}
}

func (p places) assign(file string, a *syntax.Assign, certain bool) {
	directive := a.Name.Value
	if a.Array == nil {
		at := place{file: file, line: int(a.Pos().Line()), index: indexOf(a.Index)}
		if a.Index == nil {
			at.index = 0
		}
		if !a.Append {
			at.value, at.plain = plainWord(a.Value)
		}
		p.add(directive, at, certain && !a.Append)
		return
	}
	if certain && !a.Append {
		delete(p, directive)
	}
	next := 0
	if a.Append {
		next = anyIndex
	}
	for _, e := range a.Array.Elems {
		index := next
		if e.Index != nil {
			index = indexOf(e.Index)
		}
		value, plain := plainWord(e.Value)
		p.add(directive, place{file: file, line: int(e.Pos().Line()), index: index, value: value, plain: plain}, certain)
		if next = index + 1; index == anyIndex || !plain { // what is expanded may be several words
			next = anyIndex
		}
	}
}

func (p places) add(directive string, at place, certain bool) {
	at.value = words(at.value)
	if certain && at.index != anyIndex {
		p[directive] = slices.DeleteFunc(p[directive], func(o place) bool { return o.index == at.index })
	}
	p[directive] = append(p[directive], at)
}

// of gives the place of an element with a value; its line is 0 where that can't be known.
func (p places) of(directive string, index int, value string) (file string, line int) {
	value = words(value)
	var exact, others int // places with that value, and with one that isn't known
	var at, other place
	for _, here := range p[directive] {
		switch {
		case here.index != index && here.index != anyIndex:
		case !here.plain:
			others, other = others+1, here
		case here.value == value:
			exact, at = exact+1, here
		}
	}
	switch {
	case exact == 1:
		return at.file, at.line
	case exact == 0 && others == 1:
		return other.file, other.line
	}
	return confName, 0
}

func words(s string) string { return strings.Join(strings.Fields(s), " ") }

func indexOf(e syntax.ArithmExpr) int {
	w, ok := e.(*syntax.Word)
	if !ok {
		return anyIndex
	}
	n := 0
	lit := w.Lit()
	for _, c := range []byte(lit) {
		if c < '0' || c > '9' || n > maxIndex {
			return anyIndex
		}
		n = 10*n + int(c-'0')
	}
	if lit == "" || lit[0] == '0' && len(lit) > 1 { // octal
		return anyIndex
	}
	return n
}

// plainWord is the value of a word that nothing has to be expanded in.
func plainWord(w *syntax.Word) (string, bool) {
	if w == nil {
		return "", true
	}
	var b strings.Builder
	for _, part := range w.Parts {
		parts := []syntax.WordPart{part}
		if q, ok := part.(*syntax.DblQuoted); ok && !q.Dollar {
			parts = q.Parts
		}
		for _, part := range parts {
			switch part := part.(type) {
			case *syntax.Lit:
				b.WriteString(part.Value)
			case *syntax.SglQuoted:
				b.WriteString(part.Value)
			default:
				return "", false
			}
		}
	}
	if strings.ContainsAny(b.String(), "\\$`\"*?[{~") {
		return "", false
	}
	return b.String(), true
}
