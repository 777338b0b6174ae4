package cli

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/host"
	"github.com/godkms-hermetic/godkms-hermetic/internal/kmod"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
)

// runKeys runs the program in this process.
func runKeys(t *testing.T, sys string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	a := &app{stdout: &out, stderr: &errs, env: func(string) string { return "" }, sys: sys}
	code = a.run(t.Context(), append([]string{"--cache-dir", t.TempDir()}, args...))
	return code, out.String(), errs.String()
}

// madeKey is what newKey makes, once for all tests: it takes a while.
var madeKey = sync.OnceValues(func() (map[string][]byte, error) {
	files, _, err := newKey("key of a test", 10)
	return files, err
})

// keyFiles writes the files of a key to a folder, with some of a test's own.
func keyFiles(t *testing.T, more map[string][]byte) (dir string) {
	t.Helper()
	made, err := madeKey()
	if err != nil {
		t.Fatal(err)
	}
	files := maps.Clone(made)
	maps.Copy(files, more)
	dir = filepath.Join(t.TempDir(), "keys")
	if err := writeKey(dir, files); err != nil {
		t.Fatal(err)
	}
	for name := range files {
		if err := os.Chmod(filepath.Join(dir, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestKeysGenerate(t *testing.T) {
	root := t.TempDir()
	for _, args := range [][]string{{"--cn", strings.Repeat("x", 65)}, {"--cn", "a\nb"}, {"--days", "0"}, {"--days", "36501"}, {"--root", root + "/absent"}} {
		if code, _, _ := runKeys(t, "", append([]string{"keys", "generate", "--root", root}, args...)...); code != 1 {
			t.Errorf("keys generate %q: exit code %d; want 1", args, code)
		}
	}
	if list, err := os.ReadDir(root); err != nil || len(list) > 0 {
		t.Fatalf("something was written: %v, %v", list, err)
	}

	code, stdout, stderr := runKeys(t, "", "keys", "generate", "--root", root, "--cn", "Søme modules", "--days", "10", "--format", "json")
	if code != 0 {
		t.Fatalf("keys generate: %d: %s", code, stderr)
	}
	var got struct {
		Key, Certificate, DER, Subject string
		Expires                        time.Time
	}
	if err := json.Unmarshal([]byte(stdout), &got); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, host.StateDir, "keys")
	if got.Key != filepath.Join(dir, keyFile) || got.Subject != "CN=Søme modules" || time.Until(got.Expires).Round(24*time.Hour) != 240*time.Hour {
		t.Errorf("keys generate says %s", stdout)
	}
	for path, want := range map[string]os.FileMode{dir: 0o700 | os.ModeDir, got.Key: 0o600, got.Certificate: 0o644, got.DER: 0o644} {
		if info, err := os.Stat(path); err != nil || info.Mode() != want {
			t.Errorf("%s: %v, %v; want %v", path, info.Mode(), err, want)
		}
	}
	out, err := exec.Command(need.Program(t, "openssl"), "x509", "-inform", "DER", "-in", got.DER, "-noout", "-ext", "basicConstraints,keyUsage,extendedKeyUsage").Output()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Code Signing, 1.3.6.1.4.1.2312.16.1.2\n", "CA:FALSE\n", "Digital Signature\n"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the certificate has not %q:\n%s", want, out)
		}
	}
	if out, err := exec.Command("openssl", "verify", "-CAfile", got.Certificate, got.Certificate).CombinedOutput(); err != nil {
		t.Errorf("openssl verify: %v: %s", err, out)
	}

	// What is there stays.
	before, err := os.ReadFile(got.Key)
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"--root", root}, {"--out", dir}} {
		code, _, stderr := runKeys(t, "", append([]string{"keys", "generate"}, args...)...)
		if after, err := os.ReadFile(got.Key); code != 1 || !strings.Contains(stderr, `"Søme modules"`) || err != nil || !bytes.Equal(before, after) {
			t.Errorf("a second key, %q: %d: %s", args, code, stderr)
		}
	}
	strange := t.TempDir()
	if err := os.WriteFile(filepath.Join(strange, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := runKeys(t, "", "keys", "generate", "--out", strange); code != 1 || !strings.Contains(stderr, "is not empty") {
		t.Errorf("a folder of others: %d: %s", code, stderr)
	}
	if code, _, stderr := runKeys(t, "", "keys", "generate", "--out", t.TempDir()); code != 0 {
		t.Errorf("an empty folder: %d: %s", code, stderr)
	}
	if left, err := filepath.Glob(filepath.Join(filepath.Dir(dir), ".keys-*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// signerOf is what a command gets for its flags, with what it is warned of.
func signerOf(t *testing.T, a *app, root string, o signOptions) (name, warnings string, err error) {
	t.Helper()
	var errs bytes.Buffer
	if a.env == nil {
		a.env = func(string) string { return "" }
	}
	a.board = ui.New(&errs, ui.Options{Env: a.env})
	r, err := host.Open(root, host.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := a.signer(r, o)
	a.board.Close()
	if (s != nil) && err != nil {
		t.Errorf("a signer and an error: %v", err)
	}
	if s != nil {
		name = s.Name()
	}
	return name, errs.String(), err
}

func TestSignerFrom(t *testing.T) {
	dir := keyFiles(t, nil)
	given := signOptions{filepath.Join(dir, keyFile), filepath.Join(dir, certFile)}
	other, _, err := newKey("the host's own", 10)
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := writeKey(filepath.Join(root, host.StateDir, "keys"), other); err != nil {
		t.Fatal(err)
	}
	linked := t.TempDir()
	if err := os.MkdirAll(filepath.Join(linked, host.StateDir, "keys"), 0o700); err != nil {
		t.Fatal(err)
	}
	for file, to := range map[string]string{keyFile: given.key, certFile: given.cert} {
		if err := os.Symlink(to, filepath.Join(linked, host.StateDir, "keys", file)); err != nil {
			t.Fatal(err)
		}
	}
	a := &app{}
	for _, tt := range []struct {
		what, root   string
		flags, conf  signOptions
		want, refuse string
	}{
		{"nothing", t.TempDir(), signOptions{}, signOptions{}, "", ""},
		{"the host's", root, signOptions{}, signOptions{}, "the host's own", ""},
		{"an image's, linked to this machine's", linked, signOptions{}, signOptions{}, "", "no such file"},
		{"the configuration's", root, signOptions{}, given, "key of a test", ""},
		{"the flags'", root, given, signOptions{"/absent", ""}, "key of a test", ""},
		{"a certificate alone", root, signOptions{"", given.cert}, signOptions{}, "", "--sign-cert without --sign-key"},
		{"a configured certificate alone", root, signOptions{}, signOptions{"", given.cert}, "", "no key"},
		{"a relative path", root, signOptions{}, signOptions{"my.key", given.cert}, "", "must be an absolute path"},
		{"a configured key that is gone", root, signOptions{}, signOptions{"/absent", given.cert}, "", "no such file"},
		{"another's certificate", root, signOptions{given.key, filepath.Join(root, host.StateDir, "keys", certFile)}, signOptions{}, "", "not that of the certificate"},
	} {
		a.config.Signing.Key, a.config.Signing.Cert = tt.conf.key, tt.conf.cert
		name, _, err := signerOf(t, a, tt.root, tt.flags)
		if name != tt.want || (err == nil) != (tt.refuse == "") || err != nil && (!errors.Is(err, host.ErrSigning) || !strings.Contains(err.Error(), tt.refuse)) {
			t.Errorf("%s: %q, %v; want %q, %q", tt.what, name, err, tt.want, tt.refuse)
		}
	}
	a.config.Signing.Key, a.config.Signing.Cert = "", ""
	for uri, warned := range map[string]bool{"pkcs11:object=x?pin-value=1234": true, "pkcs11:object=x?pin-source=file:/pin": false} {
		_, warnings, err := signerOf(t, a, root, signOptions{uri, given.cert})
		if err != nil || strings.Contains(warnings, "pin-source") != warned || strings.Contains(warnings, "1234") {
			t.Errorf("%s: %v, warnings %q", uri, err, warnings)
		}
	}
}

func TestKeyForms(t *testing.T) {
	made, err := madeKey()
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(made[keyFile])
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: time.Now().Add(-time.Hour)}
	template.Subject.CommonName = "expired"
	ecCert, err := x509.CreateCertificate(rand.Reader, template, template, ec.Public(), ec)
	if err != nil {
		t.Fatal(err)
	}
	ecKey, err := x509.MarshalECPrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	dir := keyFiles(t, map[string][]byte{
		"pkcs1":   pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(parsed.(*rsa.PrivateKey))}),
		"both":    append(bytes.Clone(made[keyFile]), made[certFile]...),
		"ec":      pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: ecKey}),
		"ec.der":  ecCert,
		"garbage": []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
		"empty":   nil,
		"huge":    make([]byte, 1<<20+1),
		"open":    made[keyFile],
	})
	at := func(name string) string { return filepath.Join(dir, name) }
	if err := errors.Join(os.Chmod(at("open"), 0o644), unix.Mkfifo(at("pipe"), 0o600)); err != nil {
		t.Fatal(err)
	}
	openssl := need.Program(t, "openssl")
	for name, args := range map[string][]string{
		"encrypted":  {"pkcs8", "-topk8", "-in", at(keyFile), "-passout", "pass:secret", "-out", at("encrypted")},
		"encrypted1": {"rsa", "-traditional", "-aes128", "-in", at(keyFile), "-passout", "pass:secret", "-out", at("encrypted1")},
	} {
		if out, err := exec.Command(openssl, args...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", name, err, out)
		}
		if err := os.Chmod(at(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ key, cert, want, warning, refuse string }{
		{keyFile, certFile, "key of a test", "", ""},
		{keyFile, derFile, "key of a test", "", ""},
		{"pkcs1", certFile, "key of a test", "", ""},
		{"both", "", "key of a test", "", ""},
		{"ec", "ec.der", "expired", "has expired on", ""},
		{"open", certFile, "key of a test", "chmod 600", ""},
		{keyFile, "", "", "", "give the file of that with --sign-cert"},
		{"absent", certFile, "", "", "no such file"},
		{keyFile, "absent", "", "", "no such file"},
		{"pipe", certFile, "", "", "is no file of a key"},
		{".", certFile, "", "", "is no file of a key"},
		{"huge", certFile, "", "", "is no file of a key"},
		{"empty", certFile, "", "", "no private key"},
		{certFile, certFile, "", "", "no private key"},
		{"garbage", certFile, "", "", "asn1"},
		{keyFile, "garbage", "", "", "x509"},
		{"ec", certFile, "", "", "is not that of the certificate"},
		{"encrypted", certFile, "", "", pinVariable},
		{"encrypted1", certFile, "", "", pinVariable},
	} {
		o := signOptions{key: at(tt.key)}
		if tt.cert != "" {
			o.cert = at(tt.cert)
		}
		name, warnings, err := signerOf(t, &app{}, t.TempDir(), o)
		if name != tt.want || !strings.Contains(warnings, tt.warning) || tt.warning == "" && warnings != "" ||
			(err == nil) != (tt.refuse == "") || err != nil && (!errors.Is(err, host.ErrSigning) || !strings.Contains(err.Error(), tt.refuse)) {
			t.Errorf("%s, %s: %q, %q, %v; want %q, %q, %q", tt.key, tt.cert, name, warnings, err, tt.want, tt.warning, tt.refuse)
		}
	}

	// With the password, openssl signs; the wrong one is an error and no module.
	want := signWith(t, signOptions{at(keyFile), at(certFile)})
	for _, key := range []string{"encrypted", "encrypted1"} {
		t.Setenv(pinVariable, "secret")
		if got := signWith(t, signOptions{at(key), at(certFile)}); !bytes.Equal(got, want) {
			t.Errorf("%s signs otherwise than the key without a password", key)
		}
		t.Setenv(pinVariable, "wrong")
		s, err := openSigner(t, signOptions{at(key), at(certFile)})
		if err != nil {
			t.Fatal(err)
		}
		if out, err := s.Sign([]byte("module"), crypto.SHA256); err == nil || out != nil {
			t.Errorf("%s with a wrong password: %d bytes, %v", key, len(out), err)
		}
	}
}

// signWith signs a few bytes with what the options name.
func signWith(t *testing.T, o signOptions) []byte {
	t.Helper()
	s, err := openSigner(t, o)
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.Sign([]byte("module"), crypto.SHA512)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func openSigner(t *testing.T, o signOptions) (*kmod.Signer, error) {
	t.Helper()
	r, err := host.Open(t.TempDir(), host.Options{})
	if err != nil {
		t.Fatal(err)
	}
	a := &app{env: os.Getenv, board: ui.New(io.Discard, ui.Options{Env: os.Getenv})}
	defer a.board.Close()
	return a.signer(r, o)
}

// A key in a token of PKCS #11 gives the same signatures as it does in a file.
func TestTokenSigns(t *testing.T) {
	softhsm := need.Program(t, "softhsm2-util")
	openssl := need.Program(t, "openssl")
	if out, err := exec.Command(openssl, "engine", "pkcs11").CombinedOutput(); err != nil {
		if exec.Command(openssl, "list", "-providers", "-provider", "pkcs11").Run() != nil {
			need.Skip(t, "openssl has neither engine nor provider for PKCS#11: %s", out)
		}
	}
	dir := keyFiles(t, nil)
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, text := range map[string]string{"conf": "directories.tokendir = " + dir + "\n", "pin": "1234"} {
		if err := os.WriteFile(at(name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("SOFTHSM2_CONF", at("conf"))
	for _, args := range [][]string{
		{"--init-token", "--free", "--label", "test", "--pin", "1234", "--so-pin", "4321"},
		{"--import", at(keyFile), "--token", "test", "--label", "modules", "--id", "01", "--pin", "1234"},
	} {
		if out, err := exec.Command(softhsm, args...).CombinedOutput(); err != nil {
			t.Fatalf("softhsm2-util: %v: %s", err, out)
		}
	}
	want := signWith(t, signOptions{at(keyFile), at(certFile)})
	for _, uri := range []string{"pkcs11:token=test;object=modules?pin-value=1234", "pkcs11:token=test;object=modules?pin-source=file:" + at("pin")} {
		if got := signWith(t, signOptions{uri, at(certFile)}); !bytes.Equal(got, want) {
			t.Errorf("%s signs otherwise than the file", uri)
		}
	}
	t.Setenv(pinVariable, "1234")
	if got := signWith(t, signOptions{"pkcs11:token=test;object=modules", at(certFile)}); !bytes.Equal(got, want) {
		t.Error("with " + pinVariable + ", it signs otherwise than the file")
	}
	t.Setenv(pinVariable, "")

	other, _, err := newKey("another", 1)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at("other.pem"), other[certFile], 0o600); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ uri, cert, want string }{
		{"pkcs11:token=test;object=absent?pin-value=1234", certFile, "libengine-pkcs11-openssl"},
		{"pkcs11:token=test;object=modules?pin-value=9876", certFile, "openssl with"},
		{"pkcs11:token=test;object=modules?pin-value=1234", "other.pem", "not that of the certificate"},
	} {
		s, err := openSigner(t, signOptions{tt.uri, at(tt.cert)})
		if err != nil {
			t.Fatal(err)
		}
		out, err := s.Sign([]byte("module"), crypto.SHA256)
		if out != nil || err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "1234") || strings.Contains(err.Error(), "9876") {
			t.Errorf("%s: %d bytes, %v; want %q and no PIN", tt.uri, len(out), err, tt.want)
		}
	}
	if _, err := openSigner(t, signOptions{key: "pkcs11:token=test"}); err == nil || !strings.Contains(err.Error(), "--sign-cert") {
		t.Errorf("a token without a certificate: %v", err)
	}
}

// mokutil needs firmware that tests have none of: this one answers as it does.
func fakeMokutil(t *testing.T, answer string) (calls string) {
	t.Helper()
	dir := t.TempDir()
	calls = filepath.Join(dir, "calls")
	script := fmt.Sprintf("#!/bin/sh\necho \"$@\" >>%s\ncase $1 in --test-key) echo \"$2 %s\"; exit 1;; --import) test \"$FAKE\" != refuse;; esac\n", calls, answer)
	if err := os.WriteFile(filepath.Join(dir, "mokutil"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	return calls
}

func TestKeysEnroll(t *testing.T) {
	dir := keyFiles(t, nil)
	flags := []string{"--sign-key", filepath.Join(dir, keyFile), "--sign-cert", filepath.Join(dir, certFile)}
	on := t.TempDir()
	boot := filepath.Join(on, "firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c")
	if err := errors.Join(os.MkdirAll(filepath.Dir(boot), 0o755), os.WriteFile(boot, []byte{6, 0, 0, 0, 1}, 0o644)); err != nil {
		t.Fatal(err)
	}
	der := filepath.Join(dir, derFile)
	for _, tt := range []struct {
		what, sys, answer, fake string
		code                    int
		want, calls             string
	}{
		{"new", on, "is not enrolled", "", 0, "Enroll MOK", "--test-key " + der + "\n--import " + der + "\n"},
		{"there", on, "is already enrolled", "", 0, "trusts", "--test-key " + der + "\n"},
		{"asked for", on, "is already in the enrollment request", "", 0, "Enroll MOK", "--test-key " + der + "\n"},
		{"refused", on, "is not enrolled", "refuse", 1, "is not enrolled", "--test-key " + der + "\n--import " + der + "\n"},
		{"blocked", on, "is blocked in MokListXRT", "", 1, "is blocked in MokListXRT", "--test-key " + der + "\n"},
		{"off", t.TempDir(), "is not enrolled", "", 1, "without Secure Boot", ""},
	} {
		t.Run(tt.what, func(t *testing.T) {
			calls := fakeMokutil(t, tt.answer)
			t.Setenv("FAKE", tt.fake)
			code, stdout, stderr := runKeys(t, tt.sys, append([]string{"keys", "enroll"}, flags...)...)
			got, err := os.ReadFile(calls)
			if err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
			if code != tt.code || !strings.Contains(stdout+stderr, tt.want) || string(got) != tt.calls {
				t.Errorf("exit code %d\n%s%s\nmokutil was called with %q; want %d, %q, %q", code, stdout, stderr, got, tt.code, tt.want, tt.calls)
			}
		})
	}
	t.Run("no mokutil", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		if code, _, stderr := runKeys(t, on, append([]string{"keys", "enroll"}, flags...)...); code != 1 || !strings.Contains(stderr, "install the package mokutil") {
			t.Errorf("%d: %s", code, stderr)
		}
	})
}

func TestKeysStatus(t *testing.T) {
	root := t.TempDir()
	if err := errors.Join(
		os.MkdirAll(filepath.Join(root, "lib/modules/6.1.0-a/kernel"), 0o755),
		os.MkdirAll(filepath.Join(root, "lib/modules/6.1.0-b/kernel"), 0o755),
		os.WriteFile(filepath.Join(root, "lib/modules/6.1.0-b/config"), []byte("CONFIG_MODULE_SIG_FORCE=y\n"), 0o644),
	); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"keys generate", "6.1.0-a  loads modules without a signature\n", "6.1.0-b  loads no module without a signature: it was built with CONFIG_MODULE_SIG_FORCE\n"} {
		if code, stdout, stderr := runKeys(t, "", "keys", "status", "--root", root); code != 0 || !strings.Contains(stdout, want) {
			t.Errorf("keys status: %d\n%s%s\nwant %q", code, stdout, stderr, want)
		}
	}
	made, err := madeKey()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(root, host.StateDir, "keys")
	if err := writeKey(dir, made); err != nil {
		t.Fatal(err)
	}
	fakeMokutil(t, "is already enrolled")
	code, stdout, stderr := runKeys(t, "", "keys", "status", "--root", root, "--format", "json")
	var got struct {
		Key struct{ Key, Certificate, Subject, Serial, Enrolled, SHA256 string }
	}
	if err := json.Unmarshal([]byte(stdout), &got); code != 0 || err != nil || got.Key.Key != filepath.Join(dir, keyFile) || got.Key.Subject != "CN=key of a test" || got.Key.Enrolled != "yes" {
		t.Errorf("keys status: %d, %v\n%s%s", code, err, stdout, stderr)
	}
	if err := os.WriteFile(filepath.Join(dir, keyFile), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := runKeys(t, "", "keys", "status", "--root", root); code == 0 || !strings.Contains(stderr, "no private key") {
		t.Errorf("keys status of garbage: %d: %s", code, stderr)
	}
}
