package guest

import (
	"slices"
	"strings"
	"testing"
)

func FuzzUnpack(f *testing.F) {
	f.Add(pack([]string{"run"}, nil, []string{"", "a\x00\xff", strings.Repeat("x", 300)})[4:])
	f.Fuzz(func(t *testing.T, b []byte) {
		lists, err := unpack(b)
		if err != nil {
			return
		}
		again, err := unpack(pack(lists...)[4:])
		if err != nil || !slices.EqualFunc(lists, again, slices.Equal) {
			t.Errorf("unpack(pack(%q)) = %q, %v", lists, again, err)
		}
	})
}
