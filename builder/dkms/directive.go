package dkms

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

// directives are the names that dkms knows. The last five mean nothing any more.
var directives = []string{
	"PACKAGE_NAME", "PACKAGE_VERSION", "BUILT_MODULE_NAME", "BUILT_MODULE_LOCATION", "DEST_MODULE_NAME", "DEST_MODULE_LOCATION",
	"STRIP", "MAKE", "MAKE_MATCH", "CLEAN", "PATCH", "PATCH_MATCH", "PRE_BUILD", "POST_BUILD", "POST_ADD", "PRE_INSTALL",
	"POST_INSTALL", "POST_REMOVE", "BUILD_EXCLUSIVE_KERNEL", "BUILD_EXCLUSIVE_KERNEL_MIN", "BUILD_EXCLUSIVE_KERNEL_MAX",
	"BUILD_EXCLUSIVE_ARCH", "BUILD_EXCLUSIVE_CONFIG", "OBSOLETE_BY", "BUILD_DEPENDS", "BUILD_DEPENDS_REBUILD", "AUTOINSTALL",
	"NO_WEAK_MODULES",
	"REMAKE_INITRD", "MODULES_CONF", "MODULES_CONF_OBSOLETES", "MODULES_CONF_ALIAS_TYPE", "MODULES_CONF_OBSOLETE_ONLY",
}

// Override is a file that changes directives of a dkms.conf, as one in /etc/dkms does.
type Override struct {
	Name string `json:"name"`
	Text []byte `json:"text"`
}

// OverrideNames are the files that dkms looks for in /etc/dkms, in the order in which they are read.
func (t Target) OverrideNames() []string {
	return []string{
		t.Module + ".conf",
		t.Module + "-" + t.Version + ".conf",
		t.Module + "-" + t.Version + "-" + t.Release + ".conf",
		t.Module + "-" + t.Version + "-" + t.Release + "-" + t.Machine + ".conf",
		t.Module + "--" + t.Release + ".conf",
		t.Module + "--" + t.Release + "-" + t.Machine + ".conf",
	}
}

// CheckOverride says what is wrong with an override before it is evaluated: its size, or its syntax.
func CheckOverride(o Override) error {
	if len(o.Text) > MaxConf {
		return fmt.Errorf("%s has %d bytes; at most %d are read", o.Name, len(o.Text), MaxConf)
	}
	if _, err := parse(o.Text); err != nil {
		return fmt.Errorf("%s is not valid bash: %s", o.Name, strings.TrimPrefix(err.Error(), "dkms.conf is not valid bash: dkms.conf:"))
	}
	return nil
}

// CheckDirective says what is wrong with a directive that the command line gives.
func CheckDirective(text string) error {
	_, err := parseDirective(text)
	return err
}

type directive struct {
	name  string
	index int
	value string
}

var directiveForm = regexp.MustCompile(`(?s)^([A-Za-z_][A-Za-z0-9_]*)(?:\[([0-9]+)\])?=(.*)$`)

func parseDirective(text string) (directive, error) {
	m := directiveForm.FindStringSubmatch(text)
	if m == nil {
		return directive{}, fmt.Errorf("%q is not NAME=VALUE or NAME[INDEX]=VALUE", text)
	}
	d := directive{name: m[1], value: m[3]}
	if m[2] != "" {
		var err error
		if d.index, err = strconv.Atoi(m[2]); err != nil || d.index > maxIndex {
			return directive{}, fmt.Errorf("%s has the index %q; indexes go from 0 to %d", d.name, m[2], maxIndex)
		}
	}
	switch {
	case !slices.Contains(directives, d.name):
		return directive{}, fmt.Errorf("there is no directive %s; the nearest is %s", d.name, nearest(d.name))
	case d.name == "PACKAGE_NAME", d.name == "PACKAGE_VERSION":
		return directive{}, fmt.Errorf("%s can't be changed: it says which source this is", d.name)
	case strings.ContainsRune(d.value, 0):
		return directive{}, fmt.Errorf("%s has a NUL in its value", d.name)
	}
	return d, nil
}

// nearest is the directive that takes the fewest changes to come to from a name.
func nearest(name string) string {
	return slices.MinFunc(directives, func(a, b string) int { return distance(name, a) - distance(name, b) })
}

// distance counts the signs to insert, remove, replace or swap with their neighbour to make b of a.
func distance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
		for j := range rows[i] {
			if i == 0 {
				rows[i][j] = j
			}
			if i == 0 || j == 0 {
				continue
			}
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}

// misspelt finds the names that a file assigns to, uses nowhere, and that are nearly those of directives.
func misspelt(name string, text []byte) []Fault {
	file, err := parse(text)
	if err != nil {
		return nil
	}
	used := map[string]bool{}
	lines := map[string]int{}
	var order []string
	syntax.Walk(file, func(n syntax.Node) bool {
		switch n := n.(type) {
		case *syntax.ParamExp:
			if n.Param != nil {
				used[n.Param.Value] = true
			}
		case *syntax.Assign:
			if n.Name != nil && lines[n.Name.Value] == 0 && len(n.Name.Value) <= 64 {
				lines[n.Name.Value] = int(n.Pos().Line())
				order = append(order, n.Name.Value)
			}
		}
		return true
	})
	var found []Fault
	for _, v := range order {
		if used[v] || slices.Contains(directives, v) || v != strings.ToUpper(v) || len(v) < 4 {
			continue
		}
		near := ""
		for _, d := range directives {
			most := min(2, len(d)/4)
			if n := len(v) - len(d); -most <= n && n <= most && distance(v, d) <= most && (near == "" || distance(v, d) < distance(v, near)) {
				near = d
			}
		}
		if near != "" {
			found = append(found, Fault{File: name, Line: lines[v], Text: fmt.Sprintf("%s is no directive; is %s meant?", v, near)})
		}
	}
	return found
}
