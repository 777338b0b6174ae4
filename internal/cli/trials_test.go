package cli

import (
	"crypto"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/host"
	"github.com/godkms-hermetic/godkms-hermetic/internal/trial"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
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

// What is tried is all that was given, or nothing.
func TestDistinct(t *testing.T) {
	t.Parallel()
	var modules []loadable
	var files []artifact.File
	for file, name := range map[string]string{"hello.ko": "hello", "hello-truncated.ko": "hello", "other.ko": "other"} {
		modules, files = append(modules, loadable{Module: trial.Module{Name: name}}), append(files, artifact.File{Name: file})
	}
	_, order, _, _ := loadOrder(modules, nil)
	if err := distinct(modules, files); err == nil || !strings.Contains(err.Error(), "both the module hello") {
		t.Errorf("of %v, %d would be tried: %v", modules, len(order), err)
	}
	if err := distinct(order, files[:2]); err != nil {
		t.Error(err)
	}
}

// kernelOfNames has modules of a hundred bytes; a name with a + needs the one without it.
type kernelOfNames []string

func (k kernelOfNames) Resolve(names []string) (out []string, err error) {
	for _, n := range names {
		if !slices.Contains(k, n) {
			return nil, fmt.Errorf("%s: %w", n, kernels.ErrNotFound)
		}
		for i := range n {
			if n[i] == '+' && !slices.Contains(out, n[:i]) {
				out = append(out, n[:i])
			}
		}
		if !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out, nil
}

func (kernelOfNames) Read(string) ([]byte, error) { return make([]byte, 100), nil }

// A module that asks for all that there is gets what there is room for, and nothing in the place of itself.
func TestNeeded(t *testing.T) {
	t.Parallel()
	kernel := kernelOfNames{"a", "a+b", "c", "d", "d+e"}
	for _, c := range []struct {
		memory              int64
		depends, wants, own []string
		want                []string // nil: refused
	}{
		{4000, []string{"a+b"}, []string{"c", "x"}, nil, []string{"a", "a+b", "c"}},
		{1200, []string{"a+b"}, []string{"d+e", "c", "d"}, nil, []string{"a", "a+b", "c"}},
		{400, []string{"a+b"}, nil, nil, nil},
		{4000, []string{"a+b"}, []string{"c", "d+e"}, []string{"a", "d"}, []string{"a+b", "c"}},
		{4000, nil, []string{"c"}, []string{"c"}, []string{}},
	} {
		got, err := (&trials{memory: c.memory}).needed(kernel, c.depends, c.wants, c.own)
		if names := moduleNames(got); (err != nil) != (c.want == nil) || err == nil && !slices.Equal(names, c.want) {
			t.Errorf("%+v: %v, %v", c, names, err)
		}
		for _, m := range got {
			if len(m.File) != 100 {
				t.Errorf("%+v: %s has %d bytes", c, m.Name, len(m.File))
			}
		}
	}
}

// A test's signatures are those of the key that install would take, and in its kernel's hash.
func TestSignatures(t *testing.T) {
	t.Parallel()
	signer := func(root string, o signOptions) string {
		t.Helper()
		a := &app{env: func(string) string { return "" }, board: ui.New(io.Discard, ui.Options{})}
		tr, err := a.newTrials(trialOptions{signature: true, timeout: time.Second, root: root, sign: o})
		if err != nil {
			t.Fatal(err)
		}
		return tr.with().Signer
	}
	root, keys := t.TempDir(), keyFiles(t, nil)
	if got := signer(root, signOptions{}); got != "" {
		t.Errorf("without a key it's %s; want a new one", got)
	}
	want := signer(root, signOptions{filepath.Join(keys, keyFile), filepath.Join(keys, certFile)})
	own := filepath.Join(root, host.StateDir)
	if err := errors.Join(os.MkdirAll(own, 0o755), os.Rename(keys, filepath.Join(own, "keys"))); err != nil {
		t.Fatal(err)
	}
	if got := signer(root, signOptions{}); got != want || got == "" {
		t.Errorf("with a key of the host's own it's %q; want %q", got, want)
	}

	headers, glue := t.TempDir(), t.TempDir()
	layers := []string{headers, glue}
	if hash, err := signatureHash(layers, "6.1"); hash != 0 || err != nil {
		t.Errorf("without a configuration it's %v, %v", hash, err)
	}
	config := filepath.Join(headers, "usr/src/linux/.config")
	err := errors.Join(os.MkdirAll(filepath.Dir(config), 0o755), os.MkdirAll(filepath.Join(glue, "boot"), 0o755),
		os.Symlink("/usr/src/linux/.config", filepath.Join(glue, "boot/config-6.1")))
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]crypto.Hash{"sha512": crypto.SHA512, "sha256": crypto.SHA256, "sha1": 0} {
		if err := os.WriteFile(config, []byte("CONFIG_MODULE_SIG=y\nCONFIG_MODULE_SIG_HASH=\""+name+"\"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if hash, err := signatureHash(layers, "6.1"); hash != want || errors.Is(err, host.ErrSigning) != (want == 0) {
			t.Errorf("of a kernel with %s it's %v, %v", name, hash, err)
		}
	}
}
