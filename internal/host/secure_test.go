package host

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/kmod"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
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
	signed := &kmod.Module{Signed: true, Signature: kmod.Signature{Hash: crypto.SHA512}}
	for _, tt := range []struct {
		name   string
		root   files
		native *kmod.Module
		want   crypto.Hash
		fail   string
	}{
		{"config", files{"boot/config-6.1": "CONFIG_MODULE_SIG_HASH=\"sha384\"\n"}, signed, crypto.SHA384, ""},
		{"SHA-3", files{"boot/config-6.1": "CONFIG_MODULE_SIG_HASH=\"sha3-256\"\n"}, nil, crypto.SHA3_256, ""},
		{"module", nil, signed, crypto.SHA512, ""},
		{"config that says nothing", files{"boot/config-6.1": "CONFIG_X=y\n"}, signed, crypto.SHA512, ""},
		{"nothing is known", nil, nil, crypto.SHA256, ""},
		{"module without a signature", nil, &kmod.Module{}, crypto.SHA256, ""},
		{"SHA-1", files{"boot/config-6.1": "CONFIG_MODULE_SIG_HASH=\"sha1\"\n"}, signed, 0, "SHA-1"},
		{"unknown", files{"boot/config-6.1": "CONFIG_MODULE_SIG_HASH=\"sm3\"\n"}, signed, 0, `"sm3"`},
	} {
		got, err := secureRoot(t, nil, tt.root).signatureHash("6.1", func() *kmod.Module { return tt.native })
		if got != tt.want || (err == nil) != (tt.fail == "") || err != nil && (!errors.Is(err, ErrSigning) || !strings.Contains(err.Error(), tt.fail)) {
			t.Errorf("%s: %v, %v; want %v", tt.name, got, err, tt.want)
		}
	}
}

// broken is a key in a token that has gone.
type broken struct{ crypto.Signer }

func (broken) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("the token is gone")
}

// An install signs and compresses as the kernel's own modules are, and without a signature there is none where it is wanted.
func TestInstallSigned(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "Test modules"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	good, err := kmod.NewSigner(key, cert)
	if err != nil {
		t.Fatal(err)
	}
	template.SerialNumber = big.NewInt(2) // a later one, of the same name
	if der, err = x509.CreateCertificate(rand.Reader, template, template, key.Public(), key); err != nil {
		t.Fatal(err)
	}
	laterCert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	later, err := kmod.NewSigner(key, laterCert)
	if err != nil {
		t.Fatal(err)
	}
	gone, err := kmod.NewSigner(broken{key}, cert)
	if err != nil {
		t.Fatal(err)
	}
	signed := bytesOf(t, "kernel/drivers/net/veth.ko")
	end := len(signed) - len("~Module signature appended~\n")
	unsigned := signed[:end-12-int(binary.BigEndian.Uint32(signed[end-4:]))]
	img := one(t, "hello.ko", unsigned)

	r := newRoot(t)
	config := filepath.Join(r.Dir(), "boot/config-"+bookworm.Release)
	write(t, config, []byte("CONFIG_MODULE_SIG_HASH=\"sha1\"\n"))
	if err := r.fails(t, Install{Artifact: img, Signer: good}, ErrSigning); !says(err, "SHA-1") {
		t.Error(err)
	}
	write(t, config, []byte("CONFIG_MODULE_SIG_FORCE=y\nCONFIG_MODULE_SIG_HASH=\"sha512\"\n"))
	if err := r.fails(t, Install{Artifact: img}, ErrSigning); !says(err, "hello.ko", "CONFIG_MODULE_SIG_FORCE", "--sign-key") {
		t.Error(err)
	}
	r.fails(t, Install{Artifact: img, Force: true}, ErrSigning)
	if err := r.fails(t, Install{Artifact: img, Signer: gone}, ErrSigning); !says(err, "the token is gone") {
		t.Error(err)
	}
	for compression, suffix := range map[string]string{"": "", "xz": ".xz", "zstd": ".zst"} {
		var own bytes.Buffer
		w, err := kmod.Compress(&own, compression)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytesOf(t, "kernel/drivers/net/mii.ko")); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(r.lib, "kernel/drivers/net/mii.ko")); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(r.lib, "kernel/drivers/net/mii.ko"+suffix), own.Bytes())
		rec := r.install(t, Install{Artifact: img, Signer: good})
		name := "updates/dkms/hello.ko" + suffix
		if got := resolves(t, r.Dir(), "hello"); got != name || rec.Signer != "Test modules" {
			t.Errorf("modprobe hello finds %q, want %q; signed by %q", got, name, rec.Signer)
		}
		out, err := exec.Command(need.Program(t, "modinfo"), filepath.Join(r.lib, name)).CombinedOutput()
		if err != nil || !strings.Contains(string(out), "signer:         Test modules\n") || !strings.Contains(string(out), "sig_hashalgo:   sha512\n") {
			t.Errorf("modinfo %s: %v\n%s", name, err, out)
		}
		// With the same key nothing is done, nor without one; another is another signature.
		for _, same := range []*kmod.Signer{good, nil} {
			if again := r.install(t, Install{Artifact: img, Signer: same}); !again.Changed.Equal(rec.Changed) {
				t.Errorf("what is installed already is installed anew: %+v", again)
			}
		}
		if again := r.install(t, Install{Artifact: img, Signer: later}); again.Signature != later.Fingerprint() || again.Files[0].Digest == rec.Files[0].Digest {
			t.Errorf("with another certificate it's still %+v", again)
		}
		r.uninstall(t, "hello", "1.0")
		if err := os.Rename(filepath.Join(r.lib, "kernel/drivers/net/mii.ko"+suffix), filepath.Join(r.lib, "kernel/drivers/net/mii.ko")); err != nil {
			t.Fatal(err)
		}
	}
}
