package cli

import (
	"slices"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/trial"
)

// A parameter is one to the kernel too, which splits them at what its isspace says of bytes.
func TestGive(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"a=b":      "a=b",
		"a=":       "a=",
		"a=b,c=d":  "a=b,c=d",
		"a=b c=d":  `a="b c=d"`,
		"a=é":      "a=é",
		"a=à=b":    `a="à=b"`, // whose second byte is a blank
		"m-n.a=1":  "a=1",
		"o.a=1":    "",
		`a=b" c=d`: "",
		"a=b\tc=d": "",
		"a b=c":    "",
		"-- a=b":   "",
	} {
		tr := &trials{}
		modules := []loadable{{Module: trial.Module{Name: "m_n"}}}
		p, err := parseParam(text)
		if err == nil {
			tr.params = []param{p}
			err = tr.give(modules)
		}
		if got := modules[0].Params; want == "" && err == nil || want != "" && (err != nil || !slices.Equal(got, []string{want})) {
			t.Errorf("--param %q gives %q, %v; want %q", text, got, err, want)
		}
	}
}
