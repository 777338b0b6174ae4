package rpm

import (
	"fmt"
	"strings"
)

// A depend is a dependency: a name with the versions of it that will do, or several of them joined (a "rich" dependency,
// https://rpm-software-management.github.io/rpm/manual/boolean_dependencies.html).
type depend struct {
	op   operator // plain: the fields up to args count, else args
	name string   // of a package, a file's path, or anything that packages provide
	is   sense
	evr  evr
	args []*depend // two or more of and, or, with; two of without; of if and unless the dependency, the condition, and what else, if any
}

type operator string

const (
	plain   operator = ""
	and     operator = "and"
	or      operator = "or"
	with    operator = "with"    // one package is both
	without operator = "without" // one package is the first and not the second
	onlyIf  operator = "if"
	unless  operator = "unless"
)

const maxDepth = 20 // of parentheses in a rich dependency

// String is the dependency as rpm prints it: "gcc >= 11", "(a or b)".
func (d *depend) String() string {
	switch {
	case d.op == plain && d.is == 0:
		return d.name
	case d.op == plain:
		return d.name + " " + d.is.String() + " " + d.evr.String()
	}
	s := "(" + d.args[0].String()
	for i, a := range d.args[1:] {
		op := d.op
		if i == 1 && (op == onlyIf || op == unless) {
			op = "else"
		}
		s += " " + string(op) + " " + a.String()
	}
	return s + ")"
}

// parseDepend reads one dependency as rpm writes it: "NAME", "NAME >= VERSION", or one in parentheses.
func parseDepend(text string) (*depend, error) {
	p := parser{rest: strings.Trim(text, " \t\n")}
	d, err := p.operand(0)
	if err == nil && p.rest != "" {
		err = fmt.Errorf("unexpected %q", p.rest)
	}
	if err != nil {
		return nil, fmt.Errorf("dependency %.200q: %w", text, err)
	}
	return d, nil
}

type parser struct{ rest string }

// word takes what ends at white space, or at a parenthesis that it didn't open.
func (p *parser) word() string {
	depth, i := 0, 0
scan:
	for ; i < len(p.rest); i++ {
		switch p.rest[i] {
		case '(':
			depth++
		case ')':
			if depth--; depth < 0 {
				break scan
			}
		case ' ', '\t', '\n':
			break scan
		}
	}
	w := p.rest[:i]
	p.rest = strings.TrimLeft(p.rest[i:], " \t\n")
	return w
}

func (p *parser) operand(depth int) (*depend, error) {
	if strings.HasPrefix(p.rest, "(") {
		return p.rich(depth + 1)
	}
	d := &depend{name: p.word()}
	if err := checkWord(d.name); err != nil {
		return nil, err
	}
	before := *p
	if is, ok := senses[p.word()]; ok && is != 0 {
		v := p.word()
		if err := checkWord(v); err != nil {
			return nil, fmt.Errorf("version of %q: %w", d.name, err)
		}
		if d.is, d.evr = is, splitEVR(v); d.evr.version == "" || strings.IndexByte(d.evr.version, ':') >= 0 {
			return nil, fmt.Errorf("version of %q: %q is none", d.name, v)
		}
	} else {
		*p = before
	}
	return d, nil
}

func (p *parser) rich(depth int) (*depend, error) {
	if depth > maxDepth {
		return nil, fmt.Errorf("more than %d parentheses deep", maxDepth)
	}
	p.rest = strings.TrimLeft(p.rest[1:], " \t\n")
	first, err := p.operand(depth)
	if err != nil {
		return nil, err
	}
	d := &depend{args: []*depend{first}}
	for !strings.HasPrefix(p.rest, ")") {
		op := operator(p.word())
		if op == "else" && len(d.args) == 2 && (d.op == onlyIf || d.op == unless) {
			op = d.op
		} else if d.op != plain && (op != d.op || d.op != and && d.op != or && d.op != with) {
			return nil, fmt.Errorf("%q after %q wants parentheses", op, d.op)
		}
		switch op {
		case and, or, with, without, onlyIf, unless:
		default:
			return nil, fmt.Errorf("%q joins no dependencies", op)
		}
		d.op = op
		next, err := p.operand(depth)
		if err != nil {
			return nil, err
		}
		d.args = append(d.args, next)
	}
	p.rest = strings.TrimLeft(p.rest[1:], " \t\n")
	if d.op == plain {
		return first, nil
	}
	return d, nil
}
