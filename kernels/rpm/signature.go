package rpm

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	_ "crypto/sha256" // what v3Hashes names
	_ "crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// An oldSignature is an OpenPGP signature of version 3 (RFC 4880, section 5.2.2), which the openpgp package passes over. Many packages
// have such, "Header V3 RSA/SHA256" in the words of rpm -K (github.com/rpm-software-management/rpm/pull/2290), and obs-sign, the signer of
// SUSE's indexes, makes them unless it's told otherwise (github.com/openSUSE/obs-sign/issues/43). They're as strong as their hash and key.
type oldSignature struct {
	signed [5]byte // type and time: they are hashed behind the text
	issuer uint64  // key ID
	hash   crypto.Hash
	rsa    []byte
}

// v3Hashes are the hashes that are taken (RFC 4880, section 9.4): SHA-1 and MD5 aren't.
var v3Hashes = map[byte]crypto.Hash{8: crypto.SHA256, 9: crypto.SHA384, 10: crypto.SHA512}

// readOldSignature gives the first packet of a signature if it is of version 3, else nil.
func readOldSignature(signature []byte) (*oldSignature, error) {
	p, err := packet.NewOpaqueReader(bytes.NewReader(signature)).Next()
	if err != nil || p.Tag != 2 || len(p.Contents) == 0 || p.Contents[0] != 3 {
		return nil, nil // or what the openpgp package has to judge
	}
	b := p.Contents // version, 5, type and time, key ID, algorithm, hash, 2 bytes of the hash, a number led by its length in bits
	if len(b) < 21 || b[1] != 5 {
		return nil, errors.New("it is damaged")
	}
	s := &oldSignature{signed: [5]byte(b[2:7]), issuer: binary.BigEndian.Uint64(b[7:]), rsa: b[21:]}
	var ok bool
	if s.hash, ok = v3Hashes[b[16]]; !ok {
		return nil, fmt.Errorf("hash algorithm %d isn't taken", b[16])
	}
	if kind := s.signed[0]; kind != byte(packet.SigTypeBinary) || b[15] != 1 && b[15] != 3 || (int(binary.BigEndian.Uint16(b[19:]))+7)/8 != len(s.rsa) {
		return nil, errors.New("it is none by RSA of a file")
	}
	return s, nil
}

func (s *oldSignature) made() time.Time {
	return time.Unix(int64(binary.BigEndian.Uint32(s.signed[1:])), 0)
}

// verify checks it against the keys as they are at a time. Its errors are those of the openpgp package.
func (s *oldSignature) verify(keys openpgp.EntityList, text []byte, at time.Time) error {
	h := s.hash.New()
	h.Write(text)
	h.Write(s.signed[:])
	sum := h.Sum(nil)
	err := pgperrors.ErrUnknownIssuer
	for _, k := range keys.KeysByIdUsage(s.issuer, packet.KeyFlagSign) {
		public, ok := k.PublicKey.PublicKey.(*rsa.PublicKey)
		if !ok || len(s.rsa) > public.Size() {
			continue
		}
		if e := rsa.VerifyPKCS1v15(public, s.hash, sum, new(big.Int).SetBytes(s.rsa).FillBytes(make([]byte, public.Size()))); e != nil {
			err = pgperrors.SignatureError("RSA verification failure")
			continue
		}
		self, id := k.Entity.PrimarySelfSignature()
		isSub := k.PublicKey != k.Entity.PrimaryKey
		switch {
		case s.made().After(at):
			return pgperrors.ErrSignatureExpired // as the openpgp package has it of those from the future
		case k.Entity.Revoked(at), isSub && k.Revoked(at), id != nil && id.Revoked(at):
			return pgperrors.ErrKeyRevoked
		case self == nil, k.Entity.PrimaryKey.KeyExpired(self, at), isSub && k.PublicKey.KeyExpired(k.SelfSignature, at):
			return pgperrors.ErrKeyExpired
		}
		return nil
	}
	return err
}
