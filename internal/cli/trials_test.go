package cli

import (
	"crypto"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/internal/host"
	"github.com/godkms-hermetic/godkms-hermetic/internal/trial"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
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
