package cli

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/host"
	"github.com/godkms-hermetic/godkms-hermetic/internal/kmod"
)

// signHelp is for commands that sign modules.
const signHelp = `Modules are signed with the key of --sign-key, else that of [signing] in the configuration, else the one that 'keys generate'
made for the host; where there is none they stay as they are built. A key that can't be used is an error: nothing is installed
unsigned for it. The key may be in a token, as pkcs11:token=T;object=KEY?pin-source=file:/path, which takes the program openssl and
its engine for PKCS#11. The environment variable KBUILD_SIGN_PIN has the PIN, or the password of a key's file.`

// signOptions say what modules are signed with.
type signOptions struct{ key, cert string }

func (o *signOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.key, "sign-key", "", "`KEY` to sign modules with: a PEM file, or pkcs11:… (default the configuration's, else the host's own)")
	f.StringVar(&o.cert, "sign-cert", "", "`FILE` of the key's certificate, PEM or DER (default the one in the key's file)")
}

// signer gives what modules of a root are to be signed with, or nil where there is no key. What is odd about it is warned of. Errors
// wrap host.ErrSigning.
func (a *app) signer(root *host.Root, o signOptions) (*kmod.Signer, error) {
	o, err := a.signFiles(root, o)
	if err != nil || o.key == "" {
		return nil, err
	}
	key, cert, err := a.readPair(o)
	if err != nil {
		return nil, fmt.Errorf("modules %w: %w", host.ErrSigning, err)
	}
	s, err := kmod.NewSigner(key, cert)
	if err != nil {
		return nil, fmt.Errorf("modules %w: %s, %s: %w", host.ErrSigning, withoutPIN(o.key), cmp.Or(o.cert, "the same file"), err)
	}
	return s, nil
}

// signFiles says where the key and the certificate are. Without one both are empty.
func (a *app) signFiles(root *host.Root, o signOptions) (signOptions, error) {
	switch c := a.config.Signing; {
	case o.key == "" && o.cert != "":
		return o, fmt.Errorf("modules %w: --sign-cert without --sign-key", host.ErrSigning)
	case o.key != "":
		return o, nil
	case c.Key == "" && c.Cert != "":
		return o, fmt.Errorf("modules %w: [signing] of the configuration has a cert and no key", host.ErrSigning)
	case c.Key != "":
		for _, path := range []string{c.Key, c.Cert} {
			if path != "" && !filepath.IsAbs(path) && !isToken(path) {
				return o, fmt.Errorf("modules %w: [signing] of the configuration names %q, which must be an absolute path or a pkcs11: URI", host.ErrSigning, path)
			}
		}
		return signOptions{c.Key, c.Cert}, nil
	}
	dir, err := keyDir(root)
	if err != nil {
		return o, err
	}
	own := signOptions{filepath.Join(dir, keyFile), filepath.Join(dir, certFile)}
	switch _, err := os.Lstat(own.key); {
	case errors.Is(err, fs.ErrNotExist):
		return signOptions{}, nil
	case err != nil:
		return o, fmt.Errorf("modules %w: whether the host has a key: %w", host.ErrSigning, err)
	}
	return own, nil
}

func isToken(key string) bool { return strings.HasPrefix(key, "pkcs11:") }

// readPair reads a key and its certificate, whether or not they belong together.
func (a *app) readPair(o signOptions) (crypto.Signer, *x509.Certificate, error) {
	var text []byte
	if !isToken(o.key) {
		info, b, err := readSmall(o.key)
		if err != nil {
			return nil, nil, fmt.Errorf("the key: %w", err)
		}
		if info.Mode().Perm()&0o077 != 0 {
			a.board.Warn(fmt.Sprintf("the key %s can be read by others than its owner, who could sign with it: chmod 600 %[1]s", o.key))
		}
		text = b
	}
	in, b := o.cert, text
	if in == "" {
		in = o.key
		if isToken(o.key) {
			return nil, nil, errors.New("a key of a token needs its certificate as a file: give --sign-cert")
		}
		if !bytes.Contains(b, []byte("-----BEGIN CERTIFICATE-----")) {
			return nil, nil, fmt.Errorf("%s has no certificate in it: give the file of it with --sign-cert", in)
		}
	} else {
		var err error
		if _, b, err = readSmall(in); err != nil {
			return nil, nil, fmt.Errorf("the certificate: %w", err)
		}
	}
	cert, err := parseCertificate(b)
	if err != nil {
		return nil, nil, fmt.Errorf("the certificate %s: %w", in, err)
	}
	if now := time.Now(); now.After(cert.NotAfter) {
		a.board.Warn(fmt.Sprintf("the certificate %s has expired on %s; kernels take it all the same", in, cert.NotAfter.Format(time.DateOnly)))
	}
	if isToken(o.key) {
		return a.tokenKey(o.key, cert), cert, nil
	}
	key, err := parseKey(text)
	if errors.Is(err, errEncrypted) && a.env(pinVariable) != "" {
		return opensslKey{cert.PublicKey, o.key, []string{"-inkey", o.key, "-passin", "env:" + pinVariable}}, cert, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("the key %s: %w", o.key, err)
	}
	return key, cert, nil
}

// readSmall reads a file that is no device or pipe and has 1 MiB at most.
func readSmall(path string) (fs.FileInfo, []byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > 1<<20 {
		return nil, nil, fmt.Errorf("%s is no file of a key or a certificate", path)
	}
	b, err := io.ReadAll(f)
	return info, b, err
}

// parseCertificate reads the first certificate of a PEM file, or one in DER.
func parseCertificate(b []byte) (*x509.Certificate, error) {
	for rest := b; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			return x509.ParseCertificate(b)
		}
		if block.Type == "CERTIFICATE" {
			return x509.ParseCertificate(block.Bytes)
		}
	}
}

// pinVariable has the password of a key for the kernel's sign-file, too.
const pinVariable = "KBUILD_SIGN_PIN"

var errEncrypted = errors.New("it has a password: put it into the environment variable " + pinVariable + ", as for the kernel's sign-file")

// parseKey reads the first private key of a PEM file.
func parseKey(b []byte) (crypto.Signer, error) {
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			return nil, errors.New("it has no private key in PEM's form")
		}
		var key any
		var err error
		switch {
		case block.Type == "ENCRYPTED PRIVATE KEY", block.Headers["DEK-Info"] != "":
			err = errEncrypted
		case block.Type == "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case block.Type == "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case block.Type == "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		default:
			continue
		}
		if err != nil {
			return nil, err
		}
		if s, ok := key.(crypto.Signer); ok {
			return s, nil
		}
		return nil, fmt.Errorf("%T is no key to sign with", key)
	}
}

// opensslKey is a key that only the program openssl can use. Its password comes from the URI or pinVariable, never from an argument.
type opensslKey struct {
	public crypto.PublicKey // of its certificate; a signature that isn't this one's is an error
	name   string
	args   []string // that name the key to openssl pkeyutl
}

// tokenKey is the key of a PKCS#11 token. This program is static and loads no library of a token's; openssl does.
func (a *app) tokenKey(uri string, cert *x509.Certificate) opensslKey {
	args := []string{"-engine", "pkcs11", "-keyform", "engine", "-inkey", uri}
	if a.env(pinVariable) != "" {
		args = append(args, "-passin", "env:"+pinVariable)
	}
	return opensslKey{cert.PublicKey, uri, args}
}

func (k opensslKey) Public() crypto.PublicKey { return k.public }

// opensslPatience is how long a token may take for a signature; some wait for a finger.
const opensslPatience = time.Minute

func (k opensslKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	name := strings.ToLower(strings.Replace(opts.HashFunc().String(), "SHA-", "SHA", 1)) // sha256
	args := append([]string{"pkeyutl", "-sign", "-pkeyopt", "digest:" + name}, k.args...)
	ctx, cancel := context.WithTimeout(context.Background(), opensslPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "openssl", args...)
	cmd.WaitDelay = time.Second
	cmd.Stdin = bytes.NewReader(digest)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	hint := ""
	if isToken(k.name) {
		hint = "; tokens need openssl with its engine for PKCS#11 (Debian and Ubuntu: libengine-pkcs11-openssl, Fedora: openssl-pkcs11)"
	}
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("no answer within %s", opensslPatience)
		}
		said := strings.TrimSpace(strings.ReplaceAll(errs.String(), "Engine \"pkcs11\" set.\n", ""))
		return nil, fmt.Errorf("openssl with %s: %w: %s%s", withoutPIN(k.name), err, withoutPIN(strings.ReplaceAll(said, "\n", "; ")), hint)
	}
	ok := false
	switch pub := k.public.(type) {
	case *rsa.PublicKey:
		ok = rsa.VerifyPKCS1v15(pub, opts.HashFunc(), digest, out.Bytes()) == nil
	case *ecdsa.PublicKey:
		ok = ecdsa.VerifyASN1(pub, digest, out.Bytes())
	}
	if !ok {
		return nil, fmt.Errorf("the key %s is not that of the certificate", withoutPIN(k.name))
	}
	return out.Bytes(), nil
}

var pinValue = regexp.MustCompile(`pin-value=[^&;?\s"']*`)

// withoutPIN hides the password that a URI may have.
func withoutPIN(s string) string { return pinValue.ReplaceAllString(s, "pin-value=…") }
