package cli

import (
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

func TestHintText(t *testing.T) {
	root := []kernels.Package{{Name: "perl-base"}, {Name: "libelf-dev"}}
	w := func(kind kernels.Kind, name string) kernels.Wanted { return kernels.Wanted{Kind: kind, Name: name} }
	for _, c := range []struct {
		wanted  []kernels.Wanted
		holders [][]string
		want    string
	}{
		{[]kernels.Wanted{w(kernels.Header, "xtables.h")}, [][]string{{"libxtables-dev"}},
			"xtables.h is in libxtables-dev; add it with --with libxtables-dev, or to [build] packages in godkms.toml"},
		{[]kernels.Wanted{w(kernels.Program, "flex")}, [][]string{{"flex", "flex-old"}},
			"flex is in flex or flex-old; add one with --with flex, or to [build] packages in godkms.toml"},
		{[]kernels.Wanted{w(kernels.Program, "bison")}, [][]string{{"bison"}},
			"bison is in the package of that name; add it with --with bison, or to [build] packages in godkms.toml"},
		{[]kernels.Wanted{w(kernels.Header, "curl/curl.h")}, [][]string{{"a-dev", "b-dev", "c-dev", "d-dev"}},
			"curl/curl.h is in a-dev, b-dev or c-dev; add one with --with a-dev, or to [build] packages in godkms.toml"},
		{[]kernels.Wanted{w(kernels.PkgConfig, "xtables"), w(kernels.Library, "ssl"), w(kernels.Header, "xtables.h")}, [][]string{{"libxtables-dev"}, {"libssl-dev"}, {"libxtables-dev"}},
			"xtables.pc is in libxtables-dev, libssl is in libssl-dev, xtables.h is in libxtables-dev; add them with --with libxtables-dev,libssl-dev, or to [build] packages in godkms.toml"},
		{[]kernels.Wanted{w(kernels.Program, "perl"), w(kernels.Library, "elf"), w(kernels.Header, "none.h")}, [][]string{{"perl-base"}, {"other-dev", "libelf-dev"}, nil}, ""},
		{[]kernels.Wanted{w(kernels.Program, "perl"), w(kernels.Program, "gawk")}, [][]string{{"perl-base"}, {"gawk"}},
			"gawk is in the package of that name; add it with --with gawk, or to [build] packages in godkms.toml"},
	} {
		if got := hintText(c.wanted, c.holders, root); got != c.want {
			t.Errorf("hintText(%v, %v) = %q; want %q", c.wanted, c.holders, got, c.want)
		}
	}
}

// What a log is said to miss and what is looked for have the same kinds.
func TestKindsAgree(t *testing.T) {
	for said, looked := range map[string]kernels.Kind{
		ui.MissingProgram: kernels.Program, ui.MissingHeader: kernels.Header, ui.MissingPkgConfig: kernels.PkgConfig, ui.MissingLibrary: kernels.Library,
	} {
		if kernels.Kind(said) != looked {
			t.Errorf("%q is %q", said, looked)
		}
	}
}
