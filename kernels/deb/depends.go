package deb

import (
	"fmt"
	"strings"
)

// A relation names a package, or what packages provide, and the versions of it that will do.
type relation struct {
	name string
	qual string // after the colon: "any", "native", an architecture, or nothing
	op   string // "<<", "<=", "=", ">=", ">>", or nothing: any version
	ver  string
}

func (r relation) String() string {
	s := r.name
	if r.qual != "" {
		s += ":" + r.qual
	}
	if r.op != "" {
		s += " (" + r.op + " " + r.ver + ")"
	}
	return s
}

// accepts tells whether a version fits. A provided name without a version has version "", which fits only where any does.
func (r relation) accepts(version string) bool {
	if r.op == "" {
		return true
	}
	if version == "" {
		return false
	}
	c := compareVersions(version, r.ver)
	switch r.op {
	case "<<":
		return c < 0
	case "<=":
		return c <= 0
	case "=":
		return c == 0
	case ">=":
		return c >= 0
	default:
		return c > 0
	}
}

// A group is one dependency: any of its alternatives satisfies it, the first ones are preferred.
type group []relation

func (g group) String() string {
	s := make([]string, len(g))
	for i, r := range g {
		s[i] = r.String()
	}
	return strings.Join(s, " | ")
}

// parseDepends reads the syntax of Depends and Provides fields of binary packages (Debian Policy, section 7.1).
func parseDepends(field string) ([]group, error) {
	var out []group
	for part := range strings.SplitSeq(field, ",") {
		if strings.TrimSpace(part) == "" {
			continue
		}
		var g group
		for alt := range strings.SplitSeq(part, "|") {
			r, err := parseRelation(strings.TrimSpace(alt))
			if err != nil {
				return nil, fmt.Errorf("dependency %q: %w", strings.TrimSpace(part), err)
			}
			g = append(g, r)
		}
		out = append(out, g)
	}
	return out, nil
}

func parseRelation(s string) (relation, error) {
	var r relation
	name, rest, versioned := strings.Cut(s, "(")
	name = strings.TrimSpace(name)
	r.name, r.qual, _ = strings.Cut(name, ":")
	if !validName(r.name) {
		return r, fmt.Errorf("%q is no package name", r.name)
	}
	if !versioned {
		return r, nil
	}
	rest, tail, closed := strings.Cut(rest, ")")
	if !closed || strings.TrimSpace(tail) != "" {
		return r, fmt.Errorf("version of %q is not closed", r.name)
	}
	rest = strings.TrimSpace(rest)
	n := 0
	for n < len(rest) && strings.IndexByte("<=>", rest[n]) >= 0 {
		n++
	}
	r.op, r.ver = rest[:n], strings.TrimSpace(rest[n:])
	switch r.op {
	case "<<", "<=", "=", ">=", ">>":
	case "<": // deb-control(5): the obsolete forms mean "or equal"
		r.op = "<="
	case ">":
		r.op = ">="
	default:
		return r, fmt.Errorf("%q is no comparison", r.op)
	}
	if !validVersion(r.ver) {
		return r, fmt.Errorf("%q is no version", r.ver)
	}
	return r, nil
}

func validName(s string) bool {
	if s == "" {
		return false
	}
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || isDigit(c)
		if !alnum && (i == 0 || strings.IndexByte("+-._", c) < 0) {
			return false
		}
	}
	return true
}

func validVersion(s string) bool {
	if s == "" {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || isDigit(c) || strings.IndexByte(".+-~:", c) >= 0) {
			return false
		}
	}
	return true
}
