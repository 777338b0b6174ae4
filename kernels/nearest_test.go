package kernels

import (
	"strings"
	"testing"
)

func TestNearest(t *testing.T) {
	have := []string{"6.1.0-9-amd64", "6.1.0-56-amd64", "6.1.0-55-amd64", "6.1.0-56-amd64", "6.1.0-56-cloud-amd64"}
	if got := strings.Join(Nearest("6.1.0-58-amd64", have, 3), " "); got != "6.1.0-56-amd64 6.1.0-55-amd64 6.1.0-9-amd64" {
		t.Errorf("Nearest = %s", got)
	}
	for _, c := range []struct {
		a, b string
		want int
	}{{"", "", 0}, {"", "abc", 3}, {"kitten", "sitting", 3}, {"flaw", "lawn", 2}, {"same", "same", 0}} {
		if got := edits(c.a, c.b); got != c.want || edits(c.b, c.a) != got {
			t.Errorf("edits(%q, %q) = %d; want %d", c.a, c.b, got, c.want)
		}
	}
	if got := DidYouMean("x", nil); got != "" {
		t.Errorf("DidYouMean of nothing = %q", got)
	}
}
