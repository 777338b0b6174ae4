package distrotest

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// Who signs.
const signer = "distrotest"

// key gives the file of a key without a passphrase, which this machine's repositories are signed with.
func key(t testing.TB) string {
	t.Helper()
	return filepath.Join(kept(t, "key", signer, func(dir string) error {
		e, err := openpgp.NewEntity(signer, "", signer+"@example.org", &packet.Config{RSABits: 2048}) // any rpm and gpg knows RSA
		if err != nil {
			return err
		}
		var b bytes.Buffer
		if err := e.SerializePrivate(&b, nil); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, "key"), b.Bytes(), 0o600)
	}), "key")
}

// Keyring is the key that repositories are signed with, for repo.Options.
func Keyring(t testing.TB) openpgp.EntityList {
	t.Helper()
	f, err := os.Open(key(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	list, err := openpgp.ReadKeyRing(f)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// fingerprint is the key's. What is signed is made again for another.
func fingerprint(t testing.TB) string { return fmt.Sprintf("%x", Keyring(t)[0].PrimaryKey.Fingerprint) }

// withGPG calls use with the home folder of a gpg that has the key. Its agent ends with it.
func withGPG(keyFile string, use func(home string) error) (err error) {
	home, err := os.MkdirTemp("", "gpg-") // short, for sockets
	if err != nil {
		return err
	}
	defer func() {
		_, kerr := run("", "", "gpgconf", "--homedir", home, "--kill", "all")
		err = errors.Join(err, kerr, os.RemoveAll(home))
	}()
	if _, err := run("", "", "gpg", "--homedir", home, "--batch", "--quiet", "--import", keyFile); err != nil {
		return err
	}
	return use(home)
}

// gpg runs gpg with the key: "--clearsign", "--armor --detach-sign".
func gpg(home, from, to string, args ...string) error {
	args = append([]string{"--homedir", home, "--batch", "--quiet", "--yes", "--local-user", signer, "--digest-algo", "SHA256", "--output", to}, args...)
	if _, err := run("", "", "gpg", append(args, from)...); err != nil {
		return fmt.Errorf("sign %s: %w", from, err)
	}
	return nil
}
