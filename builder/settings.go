package builder

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// settingsFile stands beside dkms.conf and says what dkms.conf has no word for:
//
//	[build]
//	packages = ["pkg-config", "libxtables-dev | iptables-dev"]
//
// It is TOML, as the program's own configuration: it has comments, no type that depends on how a value looks (as YAML's no, 1.10 and
// 0755 do), and one obvious way to write a list.
const settingsFile = "godkms.toml"

// The bounds of a settings file.
const (
	maxSettings = 16 << 10 // bytes; the time that the library takes grows with their square
	maxWishes   = 256
	maxWish     = 1 << 10 // bytes
)

// Wish is a package that a source asks for in its build root.
type Wish struct {
	Package string // its name, or a dependency as the distribution writes it; see kernels.Extra
	From    string // where it stands: "godkms.toml:3"
}

// readSettings reads a settings file. Its errors name file and line.
func readSettings(text []byte) ([]Wish, error) {
	var top map[string]toml.Primitive
	meta, err := toml.Decode(string(text), &top)
	if err != nil {
		return nil, settingsError(err)
	}
	if err := onlyKeys(meta, top, nil, "", "build"); err != nil {
		return nil, err
	}
	build, ok := top["build"]
	if !ok {
		return nil, nil
	}
	var keys map[string]toml.Primitive
	if err := meta.PrimitiveDecode(build, &keys); err != nil || keys == nil { // nil: it is no table
		return nil, at(meta, build, "build must be a table: a line with [build], and below it its settings")
	}
	if err := onlyKeys(meta, keys, []string{"build"}, " in [build]", "packages"); err != nil {
		return nil, err
	}
	packages, ok := keys["packages"]
	if !ok {
		return nil, nil
	}
	var list []any
	if err := meta.PrimitiveDecode(packages, &list); err != nil {
		return nil, at(meta, packages, `packages must be a list of texts, as in packages = ["libxtables-dev"]`)
	}
	if len(list) > maxWishes {
		return nil, at(meta, packages, fmt.Sprintf("packages has %d entries; at most %d are read", len(list), maxWishes))
	}
	first := line(meta, packages)
	var out []Wish
	for i, v := range list {
		name, isText := v.(string)
		n := first
		if isText {
			n = lineOf(text, first, name)
		}
		bad := func(what string) error {
			return fmt.Errorf("%s:%d: entry %d of packages %s", settingsFile, n, i+1, what)
		}
		switch {
		case !isText:
			return nil, bad(`is no text; write names in quotes, as in packages = ["libxtables-dev"]`)
		case strings.TrimSpace(name) == "":
			return nil, bad("is empty; take it away")
		case len(name) > maxWish:
			return nil, bad(fmt.Sprintf("has %d bytes; at most %d are read", len(name), maxWish))
		case strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r > '~' }):
			return nil, bad(fmt.Sprintf("is %q: a package's name has no such characters", name))
		case strings.Contains(name, ","):
			return nil, bad(fmt.Sprintf("is %q: write each package as an entry of its own", name))
		}
		out = append(out, Wish{Package: name, From: fmt.Sprintf("%s:%d", settingsFile, n)})
	}
	return out, nil
}

// onlyKeys refuses keys of a table other than those that are known; the first of them in the file.
func onlyKeys(meta toml.MetaData, have map[string]toml.Primitive, table []string, where string, known ...string) error {
	for _, path := range meta.Keys() {
		if len(path) <= len(table) || !slices.Equal(path[:len(table)], table) {
			continue
		}
		if key := path[len(table)]; !slices.Contains(known, key) {
			return at(meta, have[key], fmt.Sprintf("there is no setting %q%s%s", key, where, kernels.DidYouMean(key, known)))
		}
	}
	return nil
}

// at is an error about a value.
func at(meta toml.MetaData, value toml.Primitive, what string) error {
	return fmt.Errorf("%s:%d: %s", settingsFile, line(meta, value), what)
}

// line is where a value stands. The library says so in errors only.
func line(meta toml.MetaData, value toml.Primitive) int {
	if e := (toml.ParseError{}); errors.As(meta.PrimitiveDecode(value, &refusal{}), &e) {
		return max(1, e.Position.Line)
	}
	return 1
}

// refusal is a value that nothing can be decoded to.
type refusal struct{}

func (*refusal) UnmarshalTOML(any) error { return errors.New("refused") }

// lineOf is the line, first or a later one, that an entry of a list stands in; first where it's written in another way than usual.
func lineOf(text []byte, first int, entry string) int {
	n := 0
	for l := range bytes.Lines(text) {
		if n++; n >= first && (bytes.Contains(l, []byte(strconv.Quote(entry))) || bytes.Contains(l, []byte("'"+entry+"'"))) {
			return n
		}
	}
	return first
}

// settingsError puts file and line before what the TOML library says.
func settingsError(err error) error {
	if e := (toml.ParseError{}); errors.As(err, &e) {
		return fmt.Errorf("%s:%d: it is not valid TOML: %s", settingsFile, e.Position.Line, e.Message)
	}
	return fmt.Errorf("%s: it is not valid TOML: %w", settingsFile, err)
}
