package cli

import (
	"slices"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
)

// What the overrides of another module say, whose name begins with this one's, is nothing that this one may depend on.
func TestMayDepend(t *testing.T) {
	c := confInput{overrides: map[string][]byte{
		"a.conf":              []byte("BUILD_DEPENDS=all\n"),
		"a-1.conf":            []byte("BUILD_DEPENDS=version\n"),
		"a-1-6.1.0.conf":      []byte("BUILD_DEPENDS=release\n"),
		"a--6.1.0-amd64.conf": []byte("BUILD_DEPENDS=any-version\n"),
		"a-b.conf":            []byte("BUILD_DEPENDS=a\n"),
		"a-2.conf":            []byte("BUILD_DEPENDS=other-version\n"),
		"b.conf":              []byte("BUILD_DEPENDS=other\n"),
	}}
	got := c.mayDepend(&builder.Source{Module: "a", Version: "1"}, true)
	slices.Sort(got)
	if want := []string{"all", "any-version", "release", "version"}; !slices.Equal(got, want) {
		t.Errorf("mayDepend() = %q; want %q", got, want)
	}
}
