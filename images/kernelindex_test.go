package images

import (
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/kmod"
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

// Whatever a package has in place of these lists, what comes of it is an index that can be read again.
func FuzzModuleIndex(f *testing.F) {
	f.Add([]byte("kernel/fs/ext4.ko\nkernel/a-b.ko\n"), []byte("ext4.alias=fs-ext4\x00dax.alias=a:b*\x00"), "mc,i2c-core", "pre: crc32c a,b post: x")
	f.Add([]byte("/\n.ko"), []byte("\x00.alias=\x00=.alias"), ",,", "pre: - _")
	f.Fuzz(func(t *testing.T, builtin, info []byte, depends, softdep string) {
		x := &moduleIndex{modules: map[string]indexed{}, aliases: map[string]string{}, builtin: map[string]bool{}}
		for _, name := range slices.Concat(readBuiltin(builtin), readBuiltinInfo(info)) {
			x.builtin[name] = true
		}
		fields := kmod.Info{{Key: "depends", Value: depends}, {Key: "softdep", Value: softdep}, {Key: "alias", Value: softdep}}
		needs, err := needsOf(fields)
		if err != nil {
			return
		}
		x.modules["m"] = indexed{sum: strings.Repeat("0", 64), needs: needs, before: beforeOf(fields)}
		for _, a := range aliasesOf(fields) {
			x.addAlias(a, "m")
		}
		again, err := decodeModuleIndex(x.encode(), 0)
		if err != nil || !reflect.DeepEqual(again, x) {
			t.Fatalf("%+v comes back as %+v, %v", x, again, err)
		}
		if order, err := again.resolve([]string{"m", softdep}); err == nil && len(order) > 1 {
			t.Errorf("it resolves to %q", order)
		}
	})
}

// An index is this program's own, and is checked by its hash; what else is there is refused or read, and can be asked.
func FuzzDecodeModuleIndex(f *testing.F) {
	f.Add([]byte("module a 0 1 2 "+strings.Repeat("0", 64)+" b,c -\nalias x a\nbuiltin y\n"), "a")
	f.Add([]byte("module a 9223372036854775807 1 2 "+strings.Repeat("0", 64)+" a a\n"), "a")
	f.Fuzz(func(t *testing.T, text []byte, name string) {
		x, err := decodeModuleIndex(text, 10)
		if err != nil {
			return
		}
		for _, m := range x.modules {
			if m.offset < 0 || m.length < 0 || m.length > 10-m.offset {
				t.Fatalf("a module lies at %d, with %d bytes of 10", m.offset, m.length)
			}
		}
		x.resolve([]string{name})
	})
}
