package main

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/internal/kmod"
)

// signTimes is how often a module is signed in one run: once takes a few milliseconds.
const signTimes = 20

// signRows are about signatures. The tool signs while it installs, and has no command for that alone: what is compared with
// sign-file is a process like it, this program's own with the arguments of sign-file, which reads the key, the certificate and the
// module anew each time. Installing reads the key once.
func (b *bench) signRows() []row {
	return []row{{
		name: fmt.Sprintf("signing a module, %d times, a process each", signTimes), against: "sign-file", quick: true,
		prepare: b.prepareSign,
		ours: func(ctx context.Context) (sample, error) {
			self, err := os.Executable()
			if err != nil {
				return sample{}, err
			}
			return b.sign(ctx, self, signCommand)
		},
		other: func(ctx context.Context) (sample, error) { return b.sign(ctx, b.signFile) },
		asked: limit{Ratio: 1.2},
	}}
}

// prepareSign makes a key and a module, and sees that both sides sign it with the same bytes.
func (b *bench) prepareSign(ctx context.Context) error {
	if b.signFile != "" {
		return nil
	}
	found, err := filepath.Glob(filepath.Join(b.bareRoot, "usr/lib/linux-kbuild-*/scripts/sign-file"))
	if err != nil || len(found) != 1 {
		return fmt.Errorf("the header image has the programs %q, one sign-file is wanted: %v", found, err)
	}
	b.keys = b.folder("keys")
	if _, err := b.output(ctx, b.tool, "keys", "generate", "--out", b.keys); err != nil {
		return err
	}
	_, out, err := b.build(ctx, b.releases[:1])
	if err != nil {
		return err
	}
	b.unsigned = filepath.Join(out, strings.Replace(suite, "/", "-", 1), b.releases[0], b.module+".ko")
	b.signFile = found[0]
	if _, err := b.sign(ctx, b.signFile); err != nil {
		b.signFile = ""
		return &unavailable{"sign-file doesn't run here, it needs libcrypto.so.3: " + err.Error()}
	}
	want, err := os.ReadFile(b.signed())
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if _, err := b.sign(ctx, self, signCommand); err != nil {
		return err
	}
	if got, err := os.ReadFile(b.signed()); err != nil || !bytes.Equal(got, want) {
		return errors.Join(err, errors.New("sign-file and the tool sign differently: they are no comparison"))
	}
	return nil
}

func (b *bench) signed() string { return filepath.Join(b.keys, "signed.ko") }

// sign times a program that signs the module.
func (b *bench) sign(ctx context.Context, program string, args ...string) (sample, error) {
	args = append(args, "sha256", filepath.Join(b.keys, "signing.key"), filepath.Join(b.keys, "signing.pem"), b.unsigned, b.signed())
	start := time.Now()
	for range signTimes {
		if _, err := b.output(ctx, program, args...); err != nil {
			return sample{}, err
		}
	}
	return sample{Seconds: time.Since(start).Seconds()}, nil
}

// signCommand is the argument by which this program signs one module and ends.
const signCommand = "-as-sign-file"

// signOne does what sign-file does with the same arguments.
func signOne(args []string) error {
	if len(args) != 5 {
		return errors.New("sign-file takes five arguments")
	}
	hash, err := kmod.HashByName(args[0])
	if err != nil {
		return err
	}
	var files [3][]byte
	for i, name := range args[1:4] {
		if files[i], err = os.ReadFile(name); err != nil {
			return err
		}
	}
	key, _ := pem.Decode(files[0])
	cert, _ := pem.Decode(files[1])
	if key == nil || cert == nil {
		return errors.New("the key and the certificate must be PEM")
	}
	private, err := x509.ParsePKCS8PrivateKey(key.Bytes)
	if err != nil {
		return err
	}
	certificate, err := x509.ParseCertificate(cert.Bytes)
	if err != nil {
		return err
	}
	signer, err := kmod.NewSigner(private.(crypto.Signer), certificate)
	if err != nil {
		return err
	}
	out, err := signer.Sign(files[2], hash)
	if err != nil {
		return err
	}
	return os.WriteFile(args[4], out, 0o644)
}
