package images

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

func TestResolve(t *testing.T) {
	sum := strings.Repeat("0", 64)
	text := ""
	for _, line := range []string{
		"mc - -", "videodev mc -", "videobuf2_v4l2 videodev,mc -", "dm_mod - dax", "libcrc32c - crc32c,absent", "crc32c_generic - -", "crc32c_intel - -",
		"a b -", "b - a", "self self -", "orphan gone -", "ring1 ring2 -", "ring2 ring1 -",
	} {
		f := strings.Fields(line)
		text += "module " + f[0] + " 0 0 0 " + sum + " " + f[1] + " " + f[2] + "\n"
	}
	text += "alias crc32c crc32c_generic\nbuiltin dax\nbuiltin crypto_sha256\n"
	x, err := decodeModuleIndex([]byte(text), 0)
	if err != nil {
		t.Fatal(err)
	}
	for names, want := range map[string]string{
		"videobuf2-v4l2 dm-mod": "mc videodev videobuf2_v4l2 dm_mod", // dax is built in
		"videodev mc videodev":  "mc videodev",
		"libcrc32c":             "crc32c_generic libcrc32c",
		"crypto-sha256":         "",
		"a":                     "b a", // b would have a first, which needs b
		"b":                     "b",
		"none":                  "",
	} {
		got, err := x.resolve(strings.Fields(names))
		if names == "none" {
			if !errors.Is(err, kernels.ErrNotFound) {
				t.Errorf("resolve(%s) = %q, %v; want an error that wraps ErrNotFound", names, got, err)
			}
		} else if err != nil || !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("resolve(%s) = %q, %v; want %q", names, got, err, want)
		}
	}
	for names, want := range map[string]string{"self": `the module "self" needs itself`, "ring1": `needs itself`,
		"orphan": `the module "orphan" needs "gone": the kernel has no module "gone"`, "../mc": "no module"} {
		if got, err := x.resolve([]string{names}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("resolve(%s) = %q, %v; want an error with %q", names, got, err, want)
		}
	}
	again, err := decodeModuleIndex(x.encode(), 0)
	if err != nil || !reflect.DeepEqual(again, x) {
		t.Errorf("the index comes back as %v, %v; want %v", again, err, x)
	}
}
