package kernels

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Nearest gives the at most n names of have that take the fewest edits to get from want, the closest first; ties are in the
// order of have.
func Nearest(want string, have []string, n int) []string {
	type near struct {
		name  string
		edits int
	}
	var all []near
	seen := map[string]bool{}
	for _, name := range have {
		if !seen[name] {
			seen[name] = true
			all = append(all, near{name, edits(want, name)})
		}
	}
	slices.SortStableFunc(all, func(a, b near) int { return cmp.Compare(a.edits, b.edits) })
	out := make([]string, 0, n)
	for _, a := range all[:min(n, len(all))] {
		out = append(out, a.name)
	}
	return out
}

// DidYouMean words the three nearest names as the tail of an error text, `; near are "a", "b"`, or nothing.
func DidYouMean(want string, have []string) string {
	near := Nearest(want, have, 3)
	if len(near) == 0 {
		return ""
	}
	for i := range near {
		near[i] = fmt.Sprintf("%q", near[i])
	}
	return "; near are " + strings.Join(near, ", ")
}

// edits is the Levenshtein distance in bytes.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
