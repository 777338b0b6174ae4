package host

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/decompress"
	"github.com/godkms-hermetic/godkms-hermetic/internal/dkmstest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/kmod"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// secureRoot makes a root and a sysfs of files.
func secureRoot(t *testing.T, sys, root map[string]string) *Root {
	t.Helper()
	dirs := []string{t.TempDir(), t.TempDir()}
	for i, files := range []map[string]string{sys, root} {
		for name, text := range files {
			path := filepath.Join(dirs[i], name)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	r, err := Open(dirs[1], Options{Sys: dirs[0]})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestEnforced(t *testing.T) {
	const (
		enforce  = "module/module/parameters/sig_enforce"
		lockdown = "kernel/security/lockdown"
		boot     = "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
		on, off  = "\x06\x00\x00\x00\x01", "\x06\x00\x00\x00\x00"
	)
	type files = map[string]string
	for _, tt := range []struct {
		name      string
		sys, root files
		want      string
	}{
		{"nothing is known", nil, nil, ""},
		{"all is off", files{enforce: "N\n", lockdown: "[none] integrity confidentiality\n", boot: off}, files{"boot/config-6.1": "CONFIG_MODULE_SIG=y\n# CONFIG_MODULE_SIG_FORCE is not set\n"}, ""},
		{"parameter", files{enforce: "Y\n"}, nil, "module.sig_enforce"},
		{"integrity", files{lockdown: "none [integrity] confidentiality\n"}, nil, "locked down"},
		{"confidentiality", files{lockdown: "none integrity [confidentiality]\n"}, nil, "locked down"},
		{"Secure Boot", files{boot: on}, nil, "Secure Boot"},
		{"Secure Boot that locks nothing down", files{boot: on, lockdown: "[none] integrity confidentiality\n", enforce: "N\n"}, nil, ""},
		{"no value", files{boot: "\x06\x00\x00\x00"}, nil, ""},
		{"config in boot", nil, files{"boot/config-6.1": "CONFIG_X=y\nCONFIG_MODULE_SIG_FORCE=y\n"}, "CONFIG_MODULE_SIG_FORCE"},
		{"config of the modules", nil, files{"lib/modules/6.1/config": "CONFIG_MODULE_SIG_FORCE=y\n"}, "CONFIG_MODULE_SIG_FORCE"},
		{"config of the headers", nil, files{"lib/modules/6.1/build/.config": "CONFIG_LOCK_DOWN_KERNEL_FORCE_INTEGRITY=y\n"}, "FORCE_INTEGRITY"},
		{"config of another kernel", nil, files{"boot/config-6.2": "CONFIG_MODULE_SIG_FORCE=y\n"}, ""},
	} {
		got, err := secureRoot(t, tt.sys, tt.root).Enforced("6.1")
		if err != nil || (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%s: %q, %v; want %q", tt.name, got, err, tt.want)
		}
	}

	// The firmware of this machine says nothing of a root that isn't its own.
	r, err := Open(t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := r.Enforced("6.1"); err != nil || got != "" || r.SecureBoot() {
		t.Errorf("an empty root: %q, %v, Secure Boot %v", got, err, r.SecureBoot())
	}
	if _, err := r.Enforced("../6.1"); err == nil {
		t.Error("a release that leads out of its folder is taken")
	}

	// A configuration is none of a link that leads out, and one that can't be read is no reason to install what may be refused.
	r = secureRoot(t, nil, files{"boot/x": ""})
	outside := filepath.Join(t.TempDir(), "config")
	if err := os.WriteFile(outside, []byte("CONFIG_MODULE_SIG_FORCE=y\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(r.Dir(), "boot/config-6.1")
	if err := os.Symlink(outside, link); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Enforced("6.1"); err != nil || got != "" {
		t.Errorf("a link out of the root: %q, %v", got, err)
	}
	if err := errors.Join(os.Remove(link), unix.Mkfifo(link, 0o644)); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Enforced("6.1"); err == nil {
		t.Errorf("a pipe for a configuration: %q and no error", got)
	}
}

func TestSignatureHash(t *testing.T) {
	type files = map[string]string
	for _, tt := range []struct {
		name string
		root files
		want crypto.Hash
		fail string
	}{
		{"config", files{"boot/config-6.1": "CONFIG_MODULE_SIG_HASH=\"sha384\"\n"}, crypto.SHA384, ""},
		{"SHA-3", files{"boot/config-6.1": "CONFIG_MODULE_SIG_HASH=\"sha3-256\"\n"}, crypto.SHA3_256, ""},
		{"nothing is known", nil, crypto.SHA256, ""},
		{"modules without a signature", files{"lib/modules/6.1/kernel/a.ko": "\x7fELF"}, crypto.SHA256, ""},
		{"SHA-1", files{"boot/config-6.1": "CONFIG_MODULE_SIG_HASH=\"sha1\"\n"}, 0, "SHA-1"},
		{"unknown", files{"boot/config-6.1": "CONFIG_MODULE_SIG_HASH=\"sm3\"\n"}, 0, `"sm3"`},
	} {
		got, err := secureRoot(t, nil, tt.root).signatureHash("6.1")
		if got != tt.want || (err == nil) != (tt.fail == "") || err != nil && (!errors.Is(err, ErrSigning) || !strings.Contains(err.Error(), tt.fail)) {
			t.Errorf("%s: %v, %v; want %v", tt.name, got, err, tt.want)
		}
	}
}

// A real kernel's module tells the hash where no configuration does, compressed too.
func TestSignatureHashOfModules(t *testing.T) {
	d, err := dkmstest.Open(dkmstest.Cache())
	if err != nil {
		t.Fatal(err)
	}
	list, err := d.Kernels(context.Background(), "bookworm")
	if err != nil {
		need.Skip(t, "no list of kernels: %v", err)
	}
	k := list[slices.IndexFunc(list, func(c kernels.Candidate) bool { return c.Latest })].Kernel
	dir, err := d.Image(context.Background(), k)
	if err != nil {
		need.Skip(t, "no kernel: %v", err)
	}
	found, err := filepath.Glob(filepath.Join(dir, "kernel/drivers/net/dummy.ko*"))
	if err != nil || len(found) != 1 {
		t.Fatalf("dummy.ko: %q, %v", found, err)
	}
	original, err := os.ReadFile(found[0])
	if err != nil {
		t.Fatal(err)
	}
	z, err := decompress.NewReader(bytes.NewReader(original))
	if err != nil {
		t.Fatal(err)
	}
	defer z.Close()
	module, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	s, err := kmod.NewSigner(key, cert)
	if err != nil {
		t.Fatal(err)
	}
	other, err := s.Sign(module, crypto.SHA512)
	if err != nil {
		t.Fatal(err)
	}
	var packed bytes.Buffer
	w, err := kmod.Compress(&packed, "xz")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(other); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		file string
		want crypto.Hash
	}{
		filepath.Base(found[0]): {string(original), crypto.SHA256},
		"dummy.ko":              {string(module), crypto.SHA256},
		"other.ko.xz":           {packed.String(), crypto.SHA512},
	} {
		r := secureRoot(t, nil, map[string]string{"lib/modules/6.1/kernel/a.ko": "no module", "lib/modules/6.1/kernel/" + name: tt.file})
		if got, err := r.signatureHash("6.1"); got != tt.want || err != nil {
			t.Errorf("%s: %v, %v; want %v", name, got, err, tt.want)
		}
	}
}
