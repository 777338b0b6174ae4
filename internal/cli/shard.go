package cli

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// maxShards bounds what a request is divided into: a mistyped number is one.
const maxShards = 10000

// shard is one of the parts that a request is divided into. The zero value is all of it.
type shard struct{ n, of int } // n from 1 on

func (s shard) String() string { return fmt.Sprintf("%d/%d", s.n, s.of) }

// parseShard reads "2/4". Empty is all.
func parseShard(text string) (s shard, err error) {
	if text == "" {
		return shard{}, nil
	}
	n, of, _ := strings.Cut(text, "/")
	s.n, err = strconv.Atoi(n)
	var more error
	s.of, more = strconv.Atoi(of)
	if err != nil || more != nil || s.n < 1 || s.n > s.of || s.of > maxShards {
		return shard{}, fmt.Errorf("--shard is %q: it must be N/SHARDS, from 1/SHARDS to SHARDS/SHARDS, as in 2/4", text)
	}
	return s, nil
}

// take gives the targets of the shard, in their order.
func (s shard) take(targets []target) []target {
	if s.of == 0 {
		return targets
	}
	var out []target
	for i, part := range divide(targets, s.of) {
		if part == s.n-1 {
			out = append(out, targets[i])
		}
	}
	return out
}

// divide puts each target into one of n parts, whose sizes differ by one at most; of more parts than targets, the last ones are empty.
// Neighbours by suite and release stay together, as they share a compiler and so the toolchain of their header images. It depends on
// nothing but the names: neither on the order of the request nor on where its kernels were found.
func divide(targets []target, n int) (parts []int) {
	order := make([]int, len(targets))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, j int) int {
		a, b := targets[i], targets[j]
		return cmp.Or(cmp.Compare(a.kernel.Distro, b.kernel.Distro), cmp.Compare(a.kernel.Suite, b.kernel.Suite),
			cmp.Compare(a.kernel.Arch, b.kernel.Arch), cmp.Compare(a.label, b.label))
	})
	parts = make([]int, len(targets))
	n = min(n, len(targets))
	for place, i := range order {
		parts[i] = place * n / len(targets)
	}
	return parts
}
