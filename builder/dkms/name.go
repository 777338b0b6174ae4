package dkms

import (
	"bytes"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/syntax"
)

// validName is what may stand in a module's name or version: they become folder names, file names and tags.
var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~@=,-]{0,127}$`)

// A dkms.conf is hostile input, and this part of it is read outside the sandbox. These bounds keep what a word of it can grow to
// below some ten megabytes.
const (
	MaxConf  = 64 << 10 // bytes of a dkms.conf
	maxValue = 512      // bytes of a variable
	maxUsed  = 64       // variables in one word
)

// Header is what is known of a dkms.conf before any kernel is.
type Header struct {
	Name, Version string // PACKAGE_NAME and PACKAGE_VERSION
	// BuildDepends is every name that the file may give to BUILD_DEPENDS, for one kernel or another, in the order of their
	// first places. Those that hold for a kernel are Plan.Depends.
	BuildDepends []string
	// Autoinstall tells whether AUTOINSTALL is yes, or is on some condition: a kernel that it doesn't hold for is better tried than
	// forgotten.
	Autoinstall bool
	PostAdd     string // POST_ADD's value: a script below the source, and its arguments
}

// HeaderError says why a dkms.conf has no Header that can be read.
type HeaderError struct{ err error }

func (e *HeaderError) Error() string { return e.err.Error() }
func (e *HeaderError) Unwrap() error { return e.err }

// Read reads the header of a dkms.conf without running anything: it follows the plain assignments, in order, and passes over all
// else. Inside the sandbox bash evaluates the whole file, and Conf.Plan holds the header against it. An error is a *HeaderError.
func Read(conf []byte) (Header, error) {
	h, err := read(conf)
	if err != nil {
		return Header{}, &HeaderError{err}
	}
	return h, nil
}

func read(conf []byte) (Header, error) {
	file, err := parse(conf)
	if err != nil {
		return Header{}, err
	}
	vars := variables{}
	for _, s := range file.Stmts {
		switch cmd := s.Cmd.(type) {
		case *syntax.CallExpr:
			if len(cmd.Args) == 0 {
				vars.assign(cmd.Assigns)
			}
		case *syntax.DeclClause:
			vars.assign(cmd.Args)
		}
	}
	h := Header{Name: vars["PACKAGE_NAME"], Version: vars["PACKAGE_VERSION"], BuildDepends: buildDepends(file, vars), PostAdd: vars["POST_ADD"]}
	for _, v := range []struct{ directive, value string }{{"PACKAGE_NAME", h.Name}, {"PACKAGE_VERSION", h.Version}} {
		switch {
		case v.value == "":
			return Header{}, fmt.Errorf("dkms.conf has no %s that can be read without running it: give it as a plain value", v.directive)
		case !validName.MatchString(v.value):
			return Header{}, fmt.Errorf("dkms.conf: %s is %q: only letters, digits and . _ + ~ @ = , - may stand in it", v.directive, v.value)
		}
	}
	h.Autoinstall = strings.EqualFold(vars["AUTOINSTALL"], "yes") || sometimes(file, vars, "AUTOINSTALL", "yes")
	return h, nil
}

// sometimes tells whether a variable is given a value, in any case of letters, by an assignment that isn't made always.
func sometimes(file *syntax.File, vars variables, name, value string) bool {
	found := false
	for _, s := range file.Stmts {
		switch s.Cmd.(type) {
		case *syntax.CallExpr, *syntax.DeclClause: // made always
			continue
		}
		syntax.Walk(s, func(n syntax.Node) bool {
			if a, ok := n.(*syntax.Assign); ok && a.Name != nil && a.Name.Value == name && a.Value != nil {
				v, err := vars.literal(a.Value)
				found = found || err == nil && strings.EqualFold(v, value)
			}
			return !found
		})
	}
	return found
}

// MayDepend is Header.BuildDepends with what overrides and directives may add. Faults of theirs are found when they are evaluated.
func MayDepend(names []string, overrides []Override, directives []string) []string {
	names = slices.Clone(names)
	for _, o := range overrides {
		if file, err := parse(o.Text); err == nil {
			names = append(names, buildDepends(file, variables{})...)
		}
	}
	for _, text := range directives {
		if d, err := parseDirective(text); err == nil && d.name == "BUILD_DEPENDS" && validName.MatchString(d.value) {
			names = append(names, d.value)
		}
	}
	seen := map[string]bool{}
	return slices.DeleteFunc(names, func(n string) bool {
		was := seen[n]
		seen[n] = true
		return was
	})
}

func parse(conf []byte) (*syntax.File, error) {
	if len(conf) > MaxConf {
		return nil, fmt.Errorf("dkms.conf has %d bytes; at most %d are read", len(conf), MaxConf)
	}
	conf = bytes.ReplaceAll(conf, []byte("\r\n"), []byte("\n"))
	file, err := syntax.NewParser(syntax.Variant(syntax.LangBash)).Parse(bytes.NewReader(conf), "dkms.conf")
	if err != nil {
		return nil, fmt.Errorf("dkms.conf is not valid bash: %w", err)
	}
	return file, nil
}

// buildDepends looks at all assignments, whatever they depend on: which of them are made is known in the sandbox only.
func buildDepends(file *syntax.File, vars variables) []string {
	var names []string
	add := func(w *syntax.Word) {
		if w == nil {
			return
		}
		name, err := vars.literal(w)
		if err == nil && validName.MatchString(name) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	syntax.Walk(file, func(n syntax.Node) bool {
		if a, ok := n.(*syntax.Assign); ok && a.Name != nil && a.Name.Value == "BUILD_DEPENDS" {
			add(a.Value)
			if a.Array != nil {
				for _, e := range a.Array.Elems {
					add(e.Value)
				}
			}
		}
		return true
	})
	return names
}

// variables is the environment of the assignments that Name follows. It serves package expand.
type variables map[string]string

func (v variables) Get(name string) expand.Variable {
	s, ok := v[name]
	return expand.Variable{Set: ok, Kind: expand.String, Str: s}
}

func (v variables) Each(f func(string, expand.Variable) bool) {
	for name := range v {
		if !f(name, v.Get(name)) {
			return
		}
	}
}

// assign follows assignments of plain words to variables and to elements 0. One that needs a program leaves its variable empty.
func (v variables) assign(assigns []*syntax.Assign) {
	for _, a := range assigns {
		if a.Name == nil || a.Naked || a.Value == nil || a.Append || !isZero(a.Index) {
			continue
		}
		value, err := v.literal(a.Value)
		if err != nil || len(value) > maxValue {
			value = ""
		}
		v[a.Name.Value] = value
	}
}

// literal is the value of a word. What takes a program is an error, and so is what multiplies two values, ${a//b/$c}: it could do so
// again and again in one word.
func (v variables) literal(w *syntax.Word) (string, error) {
	var err error
	used := 0
	syntax.Walk(w, func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.ProcSubst: // package expand has no answer to it
			err = errors.New("it takes a program")
		case *syntax.ParamExp:
			if used++; used > maxUsed {
				err = fmt.Errorf("there are more than %d variables in one word", maxUsed)
			}
			if n.Repl != nil && n.Repl.With != nil {
				if _, plain := plainWord(n.Repl.With); !plain {
					err = errors.New("a replacement has to be expanded itself")
				}
			}
		}
		return err == nil
	})
	if err != nil {
		return "", err
	}
	return expand.Literal(&expand.Config{Env: v}, w)
}

func isZero(index syntax.ArithmExpr) bool {
	if index == nil {
		return true
	}
	w, ok := index.(*syntax.Word)
	return ok && w.Lit() == "0"
}
