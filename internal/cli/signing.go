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
const signHelp = `Modules are signed with the key of --sign-key, else that of [signing] in the configuration, else the one that
'keys generate' made for the host; where there is none they stay as they are. A key that can't be used is an error: nothing is
installed unsigned for it. The key may be in a token, as pkcs11:token=T;object=KEY?pin-source=file:/path, which takes the program
openssl and its engine or provider for PKCS#11. The environment variable KBUILD_SIGN_PIN has the PIN, or the password of a file.`

// signOptions say what modules are signed with.
type signOptions struct{ key, cert string }

func (o *signOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.key, "sign-key", "", "`KEY` to sign modules with: a PEM file, or pkcs11:… (default the configuration's, else the host's own)")
	f.StringVar(&o.cert, "sign-cert", "", "`FILE` of the key's certificate, PEM or DER (default the one in the key's file)")
}

// signer gives what modules of a root are to be signed with, or nil where there is no key. What is odd about it is warned of. Errors
// wrap host.ErrSigning.
func (a *app) signer(root *host.Root, o signOptions) (*kmod.Signer, error) {
	_, s, _, err := a.signerOf(root, o)
	if err != nil {
		return nil, fmt.Errorf("modules %w: %w", host.ErrSigning, err)
	}
	return s, nil
}

// signerOf is signer that also says where the key and the certificate are, and what the latter is.
func (a *app) signerOf(root *host.Root, o signOptions) (where signOptions, s *kmod.Signer, cert *x509.Certificate, err error) {
	where, err = a.signFiles(root, o)
	if err != nil || where.key == "" {
		return where, nil, nil, err
	}
	key, cert, err := a.readPair(where)
	if err != nil {
		return where, nil, nil, err
	}
	if s, err = kmod.NewSigner(key, cert); err != nil {
		err = fmt.Errorf("%s with %s: %w", withoutPIN(where.key), where.cert, err)
	}
	return where, s, cert, err
}

// signFiles says where the key and the certificate are. Without a key both are empty.
func (a *app) signFiles(root *host.Root, o signOptions) (signOptions, error) {
	switch c := a.config.Signing; {
	case o.key == "" && o.cert != "":
		return o, &exitError{code: exitUsage, err: errors.New("--sign-cert without --sign-key")}
	case o.key != "":
		return signOptions{o.key, cmp.Or(o.cert, o.key)}, nil
	case c.Key == "" && c.Cert != "":
		return o, errors.New("[signing] of the configuration has a cert and no key")
	case c.Key != "":
		c.Cert = cmp.Or(c.Cert, c.Key)
		for _, path := range []string{c.Key, c.Cert} {
			if !filepath.IsAbs(path) && !isToken(path) {
				return o, fmt.Errorf("[signing] of the configuration names %q, which must be an absolute path or a pkcs11: URI", path)
			}
		}
		return signOptions{c.Key, c.Cert}, nil
	}
	dir, err := keyDir(root)
	if err != nil {
		return o, err
	}
	switch _, err := os.Lstat(filepath.Join(dir, keyFile)); {
	case errors.Is(err, fs.ErrNotExist):
		return signOptions{}, nil
	case err != nil:
		return o, fmt.Errorf("whether the host has a key: %w", err)
	}
	// A link in an image would have its modules signed with this machine's key.
	var own signOptions
	if own.key, err = root.Path(filepath.Join(host.StateDir, "keys", keyFile)); err == nil {
		own.cert, err = root.Path(filepath.Join(host.StateDir, "keys", certFile))
	}
	if err != nil {
		return o, err
	}
	return own, nil
}

func isToken(key string) bool { return strings.HasPrefix(key, "pkcs11:") }

// readPair reads a key and its certificate, whether or not they belong together.
func (a *app) readPair(o signOptions) (crypto.Signer, *x509.Certificate, error) {
	if isToken(o.cert) {
		return nil, nil, errors.New("a key in a token needs its certificate in a file: give it with --sign-cert")
	}
	_, b, err := readSmall(o.cert)
	if err != nil {
		return nil, nil, fmt.Errorf("the certificate: %w", err)
	}
	if o.cert == o.key && !bytes.Contains(b, []byte("-----BEGIN CERTIFICATE-----")) {
		return nil, nil, fmt.Errorf("%s has no certificate in it: give the file of that with --sign-cert", o.key)
	}
	cert, err := parseCertificate(b)
	if err != nil {
		return nil, nil, fmt.Errorf("the certificate %s: %w", o.cert, err)
	}
	if time.Now().After(cert.NotAfter) {
		a.board.Warn(fmt.Sprintf("the certificate %s has expired on %s; kernels take it all the same", o.cert, cert.NotAfter.Format(time.DateOnly)))
	}
	pin := a.env(pinVariable) != ""
	if isToken(o.key) {
		if pinValue.MatchString(o.key) {
			a.board.Warn("the PIN in the key's URI can be seen among this machine's processes: take pin-source, or " + pinVariable)
		}
		return opensslKey{cert.PublicKey, o.key, pin}, cert, nil
	}
	info, b, err := readSmall(o.key)
	if err != nil {
		return nil, nil, fmt.Errorf("the key: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		a.board.Warn(fmt.Sprintf("the key %s can be read by others than its owner, who could sign with it: chmod 600 %[1]s", o.key))
	}
	key, err := parseKey(b)
	if errors.Is(err, errEncrypted) && pin {
		return opensslKey{cert.PublicKey, o.key, pin}, cert, nil
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

// opensslKey is a key that only the program openssl can use: in a token, for this program is static and loads no library of a
// token's, or with a password. That comes from pinVariable, or a token's from the URI.
type opensslKey struct {
	public crypto.PublicKey // of its certificate; a signature that isn't this one's is an error
	name   string           // file or URI
	pin    bool             // pinVariable is set
}

func (k opensslKey) Public() crypto.PublicKey { return k.public }

// opensslPatience is how long a token may take for a signature; some wait for a finger.
const opensslPatience = time.Minute

func (k opensslKey) Sign(_ io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), opensslPatience)
	defer cancel()
	name := strings.ToLower(strings.Replace(opts.HashFunc().String(), "SHA-", "SHA", 1)) // sha256
	args := []string{"pkeyutl", "-sign", "-pkeyopt", "digest:" + name, "-inkey", k.name}
	hint := ""
	if isToken(k.name) {
		// The engine comes first while there are engines: the provider of Debian 13 ends in a crash when it has signed.
		if exec.CommandContext(ctx, "openssl", "engine", "pkcs11").Run() == nil {
			args = append(args, "-engine", "pkcs11", "-keyform", "engine")
		} else {
			args = append(args, "-provider", "pkcs11", "-provider", "default")
		}
		hint = "; a token takes the program openssl with its engine or provider for PKCS#11: " +
			"libengine-pkcs11-openssl or pkcs11-provider of Debian and Ubuntu, openssl-pkcs11 or pkcs11-provider of Fedora"
	}
	if k.pin {
		args = append(args, "-passin", "env:"+pinVariable)
	}
	cmd := exec.CommandContext(ctx, "openssl", args...)
	cmd.WaitDelay = time.Second
	cmd.Stdin = bytes.NewReader(digest)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	switch pub := k.public.(type) { // a signature that is right is one, whatever openssl thinks of its end
	case *rsa.PublicKey:
		if rsa.VerifyPKCS1v15(pub, opts.HashFunc(), digest, out.Bytes()) == nil {
			return out.Bytes(), nil
		}
	case *ecdsa.PublicKey:
		if ecdsa.VerifyASN1(pub, digest, out.Bytes()) {
			return out.Bytes(), nil
		}
	}
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("openssl with %s: no answer within %s", withoutPIN(k.name), opensslPatience)
	case err != nil && out.Len() == 0:
		said := strings.ReplaceAll(strings.TrimSpace(strings.ReplaceAll(errs.String(), "Engine \"pkcs11\" set.\n", "")), "\n", "; ")
		return nil, fmt.Errorf("openssl with %s: %w: %s%s", withoutPIN(k.name), err, withoutPIN(said), hint)
	}
	return nil, fmt.Errorf("the key %s is not that of the certificate", withoutPIN(k.name))
}

var pinValue = regexp.MustCompile(`pin-value=[^&;?\s"']*`)

// withoutPIN hides the password that a URI may have.
func withoutPIN(s string) string { return pinValue.ReplaceAllString(s, "pin-value=…") }
