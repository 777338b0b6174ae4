package kmod

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
)

// selfSigned makes a certificate for a key, with a name of several parts and characters.
func selfSigned(t testing.TB, key crypto.Signer) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes([]byte{0x91, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}), // a zero comes before it
		Subject:      pkix.Name{Organization: []string{"Ünits & Söhne"}, CommonName: "modules of a test"},
		NotBefore:    time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// rsaKey is the same for all tests: it takes a while to make.
var rsaKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func rsaSigner(t testing.TB) *Signer {
	t.Helper()
	key, err := rsaKey()
	if err != nil {
		t.Fatal(err)
	}
	return signer(t, key)
}

func ecdsaSigner(t testing.TB, curve elliptic.Curve) *Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return signer(t, key)
}

func signer(t testing.TB, key crypto.Signer) *Signer {
	t.Helper()
	s, err := NewSigner(key, selfSigned(t, key))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// files writes a signer's key and certificate as sign-file reads them.
func files(t testing.TB, s *Signer) (key, cert string) {
	t.Helper()
	dir := t.TempDir()
	der, err := x509.MarshalPKCS8PrivateKey(s.key)
	if err != nil {
		t.Fatal(err)
	}
	key, cert = filepath.Join(dir, "key.pem"), filepath.Join(dir, "cert.pem")
	write(t, key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
	write(t, cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.cert.Raw}))
	return key, cert
}

func write(t testing.TB, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

// dummy is a real module, with Debian's own signature cut off.
func dummy(t testing.TB) (unsigned, signed []byte) {
	t.Helper()
	modules, _ := realKernel(t)
	signed, err := os.ReadFile(filepath.Join(modules, "kernel/drivers/net/dummy.ko"))
	if err != nil {
		t.Fatal(err)
	}
	unsigned, _, err = cutSignature(signed)
	if err != nil {
		t.Fatal(err)
	}
	return unsigned, signed
}

// signFile is the path of the kernel's own program. It needs this machine's libcrypto.so.3.
var signFile = sync.OnceValues(func() (string, error) {
	root, _, err := download("-kbuild", func(string) []string { return []string{"linux-kbuild-6.1"} })
	return filepath.Join(root, "usr/lib/linux-kbuild-6.1/scripts/sign-file"), err
})

// runSignFile signs with the kernel's own program.
func runSignFile(t testing.TB, s *Signer, hash string, module []byte) []byte {
	t.Helper()
	program, err := signFile()
	if err != nil {
		need.Skip(t, "no sign-file to compare with: %v", err)
	}
	key, cert := files(t, s)
	in, out := filepath.Join(t.TempDir(), "in.ko"), filepath.Join(t.TempDir(), "out.ko")
	write(t, in, module)
	if text, err := exec.Command(program, hash, key, cert, in, out).CombinedOutput(); err != nil {
		t.Fatalf("sign-file: %v: %s", err, text)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The kernel's own sign-file gives the same bytes with RSA, and but for the signature itself with ECDSA.
func TestSignFile(t *testing.T) {
	unsigned, signed := dummy(t)
	s := rsaSigner(t)
	for _, d := range digests {
		want := runSignFile(t, s, d.name, unsigned)
		for what, module := range map[string][]byte{"an unsigned": unsigned, "Debian's signed": signed, "its own": want} {
			got, err := s.Sign(module, d.hash)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s of %s module: %d bytes, %v; sign-file gives %d others", d.name, what, len(got), err, len(want))
			}
		}
	}
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		s := ecdsaSigner(t, curve)
		for _, d := range digests {
			got, err := s.Sign(unsigned, d.hash)
			if d.ecdsa == nil {
				if err == nil || got != nil {
					t.Errorf("Sign with ECDSA and %s: no error", d.name)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			have, want := structure(t, got), structure(t, runSignFile(t, s, d.name, unsigned))
			if have != want {
				t.Errorf("%s with %s:\n%s\nsign-file:\n%s", d.name, curve.Params().Name, have, want)
			}
		}
	}
}

// structure is what openssl sees in a signature, without lengths and the signature proper.
func structure(t testing.TB, module []byte) string {
	t.Helper()
	_, cms, err := cutSignature(module)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(need.Program(t, "openssl"), "asn1parse", "-inform", "DER")
	cmd.Stdin = bytes.NewReader(cms)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for line := range strings.Lines(string(out)) {
		_, line, _ = strings.Cut(line, ":")
		depth, line, _ := strings.Cut(line, " ")
		_, what, _ := strings.Cut(line, ": ")
		what, _, _ = strings.Cut(what, "[HEX DUMP]")
		fmt.Fprintln(&b, depth, strings.TrimSpace(what))
	}
	return b.String()
}

// openssl takes the signatures, and finds a module that was altered.
func TestOpenSSLVerifies(t *testing.T) {
	openssl := need.Program(t, "openssl")
	unsigned, _ := dummy(t)
	altered := bytes.Clone(unsigned)
	altered[len(altered)/2] ^= 1
	for name, s := range map[string]*Signer{"RSA": rsaSigner(t), "ECDSA": ecdsaSigner(t, elliptic.P384())} {
		out, err := s.Sign(unsigned, crypto.SHA256)
		if err != nil {
			t.Fatal(err)
		}
		rest, cms, err := cutSignature(out)
		if err != nil || !bytes.Equal(rest, unsigned) {
			t.Fatalf("%s: the module proper is another one: %v", name, err)
		}
		_, cert := files(t, s)
		dir := t.TempDir()
		write(t, filepath.Join(dir, "cms"), cms)
		for what, module := range map[string][]byte{"the module": unsigned, "an altered one": altered} {
			write(t, filepath.Join(dir, "module"), module)
			cmd := exec.Command(openssl, "cms", "-verify", "-binary", "-inform", "DER", "-in", "cms", "-content", "module", "-certfile", cert,
				"-noverify", "-out", os.DevNull)
			cmd.Dir = dir
			text, err := cmd.CombinedOutput()
			if (err == nil) != (what == "the module") {
				t.Errorf("openssl cms -verify of %s, %s: %v: %s", name, what, err, text)
			}
		}
	}
}

// modinfo reads our signature as it reads any. Debian's has no gzip.
func TestModinfoReadsSignature(t *testing.T) {
	modinfo := need.Program(t, "modinfo")
	unsigned, _ := dummy(t)
	s := rsaSigner(t)
	out, err := s.Sign(unsigned, crypto.SHA512)
	if err != nil {
		t.Fatal(err)
	}
	for compression, suffix := range map[string]string{"": "", "xz": ".xz", "zstd": ".zst"} {
		path := filepath.Join(t.TempDir(), "dummy.ko"+suffix)
		write(t, path, compressed(t, compression, out))
		text, err := exec.Command(modinfo, path).CombinedOutput()
		if err != nil {
			t.Fatalf("modinfo: %v: %s", err, text)
		}
		for _, want := range []string{
			"sig_id:         PKCS#7", "signer:         modules of a test", "sig_hashalgo:   sha512",
			"sig_key:        91:02:03:04:05:06:07:08:09:0A:0B:0C:0D:0E:0F:10",
		} {
			if !strings.Contains(string(text), want+"\n") {
				t.Errorf("modinfo of %q lacks %q:\n%s", suffix, want, text)
			}
		}
	}
}

func TestReadSignature(t *testing.T) {
	unsigned, signed := dummy(t)
	m, err := Read(bytes.NewReader(signed), int64(len(signed)))
	if err != nil {
		t.Fatal(err)
	}
	if got := m.Signature; got.Hash != crypto.SHA256 || !strings.Contains(got.Issuer.CommonName, "kernel key") || got.Serial == nil {
		t.Errorf("the signature of Debian's = %+v", got)
	}
	if got, err := readSignature(unsigned); err == nil {
		t.Errorf("readSignature of an unsigned module = %+v", got)
	}
	for _, s := range []*Signer{rsaSigner(t), ecdsaSigner(t, elliptic.P256())} {
		out, err := s.Sign(unsigned, crypto.SHA384)
		if err != nil {
			t.Fatal(err)
		}
		got, err := readSignature(out)
		if err != nil || got.Hash != crypto.SHA384 || got.Issuer.String() != s.cert.Issuer.String() || got.Serial.Cmp(s.cert.SerialNumber) != 0 {
			t.Errorf("readSignature = %+v, %v; want %s, %s", got, err, s.cert.Issuer, s.cert.SerialNumber)
		}
		// Whatever byte of it is cut off or another: an error or a signature, and the module proper is never longer.
		for i := len(unsigned); i < len(out); i++ {
			b := bytes.Clone(out)
			b[i] ^= 0xff
			readSignature(b)
			readSignature(out[i:])
		}
	}
}

func FuzzReadSignature(f *testing.F) {
	s := ecdsaSigner(f, elliptic.P256())
	out, err := s.Sign([]byte("module"), crypto.SHA256)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(out)
	f.Add([]byte(signatureMarker))
	f.Add(append(make([]byte, trailerSize), signatureMarker...))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, err := readSignature(b)
		if err == nil && !bytes.HasSuffix(b, []byte(signatureMarker)) {
			t.Error("a signature without its marker")
		}
		again, err := s.Sign(b, crypto.SHA256)
		if err != nil {
			if again != nil {
				t.Error("an error, and a module")
			}
			return
		}
		rest, _, err := cutSignature(again)
		if err != nil || !bytes.HasPrefix(b, rest) || bytes.HasSuffix(rest, []byte(signatureMarker)) {
			t.Errorf("signed anew it is another module: %v", err)
		}
	})
}

type failing struct{ crypto.Signer }

func (failing) Sign(io.Reader, []byte, crypto.SignerOpts) ([]byte, error) {
	return nil, errors.New("the token is gone")
}

// Nothing comes out where signing fails, least of all an unsigned module.
func TestSignRefuses(t *testing.T) {
	s := rsaSigner(t)
	broken := signer(t, s.key)
	broken.key = failing{s.key}
	cut := append([]byte("module\x00\x00\x02\x00\x00\x00\x00\x00\xff\x00\x00\x00"), signatureMarker...)
	old := append([]byte("module\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00"), signatureMarker...)
	for _, tt := range []struct {
		s      *Signer
		module []byte
		hash   crypto.Hash
		want   string
	}{
		{broken, []byte("module"), crypto.SHA256, "the token is gone"},
		{s, []byte("module"), crypto.SHA1, "SHA-1 is not signed with"},
		{s, []byte("module"), crypto.MD5, "no signing with the hash"},
		{s, []byte("module"), 0, "no signing with the hash"},
		{s, cut, crypto.SHA256, "malformed module signature"},
		{s, old, crypto.SHA256, "its type is 1"},
		{s, []byte("\x1f\x8b\x08"), crypto.SHA256, "compressed already, with gzip"},
		{s, []byte(signatureMarker), crypto.SHA256, "malformed module signature"},
	} {
		out, err := tt.s.Sign(tt.module, tt.hash)
		if out != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("Sign(%q, %d) = %d bytes, %v; want %q", tt.module, tt.hash, len(out), err, tt.want)
		}
	}
}

func TestNewSigner(t *testing.T) {
	good := rsaSigner(t)
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p224, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		key  crypto.Signer
		cert *x509.Certificate
		want string
	}{
		{good.key, ecdsaSigner(t, elliptic.P256()).cert, "is not that of the certificate"},
		{ed, selfSigned(t, ed), "RSA or ECDSA"},
		{p224, selfSigned(t, p224), "P-224"},
		{short, selfSigned(t, short), "1024 bits"},
	} {
		if s, err := NewSigner(tt.key, tt.cert); s != nil || err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("NewSigner(%T) = %v; want %q", tt.key, err, tt.want)
		}
	}
}

func compressed(t testing.TB, compression string, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := Compress(&out, compression)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// The programs themselves unpack what is compressed, and xz is as the kernel can read it.
func TestCompress(t *testing.T) {
	_, module := dummy(t)
	for compression, program := range map[string]string{"gzip": "gzip", "xz": "xz", "zstd": "zstd"} {
		b := compressed(t, compression, module)
		if Compression(b) != compression || len(b) > len(module)/2 || !bytes.Equal(b, compressed(t, compression, module)) {
			t.Errorf("%s: %d of %d bytes, found to be %q, or not the same twice", compression, len(b), len(module), Compression(b))
		}
		cmd := exec.Command(need.Program(t, program), "-dc")
		cmd.Stdin = bytes.NewReader(b)
		if out, err := cmd.Output(); err != nil || !bytes.Equal(out, module) {
			t.Errorf("%s -dc gives %d bytes, %v", program, len(out), err)
		}
		if m, err := Read(bytes.NewReader(b), int64(len(b))); err != nil || m.Compression != compression || !m.Signed {
			t.Errorf("Read of %s = %+v, %v", compression, m, err)
		}
	}
	path := filepath.Join(t.TempDir(), "dummy.ko.xz")
	write(t, path, compressed(t, "xz", module))
	out, err := exec.Command(need.Program(t, "xz"), "--robot", "-lvv", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"\tCRC32\t", "--lzma2=dict=1MiB"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("xz -lvv has no %q: the kernel couldn't read it:\n%s", want, out)
		}
	}
	if b := compressed(t, "", module); !bytes.Equal(b, module) {
		t.Error("not compressed, it is another")
	}
	if _, err := Compress(io.Discard, "lzma"); err == nil {
		t.Error("Compress takes lzma")
	}
}

func BenchmarkSign(b *testing.B) {
	unsigned, _ := dummy(b)
	s := rsaSigner(b)
	for b.Loop() {
		if _, err := s.Sign(unsigned, crypto.SHA256); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCompress(b *testing.B) {
	_, module := dummy(b)
	module = bytes.Repeat(module, 100_000/len(module)+1)[:100_000]
	for _, compression := range []string{"gzip", "xz", "zstd"} {
		b.Run(compression, func(b *testing.B) {
			for b.Loop() {
				compressed(b, compression, module)
			}
		})
	}
}
