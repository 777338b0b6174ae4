package dkms

import (
	"bytes"
	"fmt"
	"regexp"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/syntax"
)

// validName is what may stand in a module's name or version: they become folder names, file names and tags.
var validName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~@=,-]{0,127}$`)

// A dkms.conf is hostile input, and this part of it is read outside the sandbox. These bounds keep what an assignment can
// grow to (the values of all variables in one word) below some hundred megabytes.
const (
	MaxConf  = 64 << 10 // bytes of a dkms.conf
	maxValue = 4 << 10  // bytes of a variable
)

// Name reads PACKAGE_NAME and PACKAGE_VERSION from a dkms.conf without running anything: it follows the plain assignments, in
// order, and passes over all else. Inside the sandbox bash evaluates the whole file, and Conf.Plan holds the two against it.
func Name(conf []byte) (name, version string, err error) {
	if len(conf) > MaxConf {
		return "", "", fmt.Errorf("dkms.conf has %d bytes; at most %d are read", len(conf), MaxConf)
	}
	conf = bytes.ReplaceAll(conf, []byte("\r\n"), []byte("\n"))
	file, err := syntax.NewParser(syntax.Variant(syntax.LangBash)).Parse(bytes.NewReader(conf), "dkms.conf")
	if err != nil {
		return "", "", fmt.Errorf("dkms.conf is not valid bash: %w", err)
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
	name, version = vars["PACKAGE_NAME"], vars["PACKAGE_VERSION"]
	for _, v := range []struct{ directive, value string }{{"PACKAGE_NAME", name}, {"PACKAGE_VERSION", version}} {
		switch {
		case v.value == "":
			return "", "", fmt.Errorf("dkms.conf has no %s that can be read without running it: give it as a plain value", v.directive)
		case !validName.MatchString(v.value):
			return "", "", fmt.Errorf("dkms.conf: %s is %q: only letters, digits and . _ + ~ @ = , - may stand in it", v.directive, v.value)
		}
	}
	return name, version, nil
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
		value, err := expand.Literal(&expand.Config{Env: v}, a.Value)
		if err != nil || len(value) > maxValue {
			value = ""
		}
		v[a.Name.Value] = value
	}
}

func isZero(index syntax.ArithmExpr) bool {
	if index == nil {
		return true
	}
	w, ok := index.(*syntax.Word)
	return ok && w.Lit() == "0"
}
