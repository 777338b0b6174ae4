package deb

import (
	"cmp"
	"errors"
	"slices"
	"strings"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// An extra is a dependency of a build root, with the words that it was given in.
type extra struct {
	group
	given string
}

// parseExtra reads dependencies and gives each of them once. Those without alternatives come first, for they may satisfy one of the
// others; beyond that they are sorted, so that the order they were given in makes no difference.
func parseExtra(list []string) ([]extra, error) {
	var out []extra
	for _, entry := range list {
		groups, err := parseDepends(entry)
		if err == nil && len(groups) != 1 {
			err = errors.New("it must be one package, or alternatives to it behind |")
		}
		if err != nil {
			return nil, &kernels.ExtraError{Entry: entry, Err: err}
		}
		out = append(out, extra{groups[0], entry})
	}
	slices.SortFunc(out, func(a, b extra) int {
		return cmp.Or(cmp.Compare(min(len(a.group), 2), min(len(b.group), 2)), cmp.Compare(a.String(), b.String()), cmp.Compare(a.given, b.given))
	})
	return slices.CompactFunc(out, func(a, b extra) bool { return a.String() == b.String() }), nil
}

// asField writes dependencies in the one form that a set of them has.
func asField(list []extra) string {
	s := make([]string, len(list))
	for i, e := range list {
		s[i] = e.String()
	}
	return strings.Join(s, ", ")
}
