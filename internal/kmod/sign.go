package kmod

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256" // this and the next two are the hashes that modules are signed with
	_ "crypto/sha3"
	_ "crypto/sha512"
	"crypto/x509"
	"crypto/x509/pkix"
	encasn1 "encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// A Signer signs modules as the kernel's scripts/sign-file does: its bytes are the same for RSA. It is safe for concurrent use if its
// key is.
type Signer struct {
	key  crypto.Signer
	cert *x509.Certificate
}

// NewSigner makes a signer of a key and its certificate: RSA of 2048 bits or more, or ECDSA on P-256, P-384 or P-521, which are those
// that kernels verify. Whether the certificate is of use for it, such as its dates, is not looked at: kernels don't.
func NewSigner(key crypto.Signer, cert *x509.Certificate) (*Signer, error) {
	switch pub := key.Public().(type) {
	case *rsa.PublicKey:
		if pub.N.BitLen() < 2048 {
			return nil, fmt.Errorf("an RSA key of %d bits is too short to sign with: it must have 2048 or more", pub.N.BitLen())
		}
	case *ecdsa.PublicKey:
		if c := pub.Curve; c != elliptic.P256() && c != elliptic.P384() && c != elliptic.P521() {
			return nil, fmt.Errorf("kernels don't verify signatures on the curve %s: it must be P-256, P-384 or P-521", c.Params().Name)
		}
	default:
		return nil, fmt.Errorf("kernels don't verify signatures of a key like this (%T): it must be RSA or ECDSA", pub)
	}
	if pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool }); !ok || !pub.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("the key is not that of the certificate (%s)", cert.Subject)
	}
	return &Signer{key, cert}, nil
}

// Name is the common name of the certificate.
func (s *Signer) Name() string { return s.cert.Subject.CommonName }

// Fingerprint is the SHA-256 of the certificate in DER, in hexadecimal.
func (s *Signer) Fingerprint() string { return fmt.Sprintf("%x", sha256.Sum256(s.cert.Raw)) }

// A digest is a hash with its names in a signature.
type digest struct {
	hash  crypto.Hash
	name  string                   // CONFIG_MODULE_SIG_HASH
	oid   encasn1.ObjectIdentifier // the hash's own
	ecdsa encasn1.ObjectIdentifier // of ECDSA with it; nil: nobody signs so yet
}

// digests are those of include/linux/oid_registry.h that sign-file takes.
var digests = []digest{
	{crypto.SHA224, "sha224", encasn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 4}, encasn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 1}},
	{crypto.SHA256, "sha256", encasn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}, encasn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}},
	{crypto.SHA384, "sha384", encasn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 2}, encasn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}},
	{crypto.SHA512, "sha512", encasn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 3}, encasn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}},
	{crypto.SHA3_256, "sha3-256", encasn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 8}, nil},
	{crypto.SHA3_384, "sha3-384", encasn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 9}, nil},
	{crypto.SHA3_512, "sha3-512", encasn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 10}, nil},
}

// HashByName finds the hash of CONFIG_MODULE_SIG_HASH: "sha256".
func HashByName(name string) (crypto.Hash, error) {
	if i := slices.IndexFunc(digests, func(d digest) bool { return d.name == name }); i >= 0 {
		return digests[i].hash, nil
	}
	if name == "sha1" {
		return 0, errors.New("SHA-1 is not signed with: who has one module could make another with the same signature")
	}
	return 0, fmt.Errorf("there is no signing with the hash %q", name)
}

var (
	oidData          = encasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidSignedData    = encasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidRSAEncryption = encasn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
)

const (
	trailerSize = 12 // struct module_signature of include/linux/module_signature.h
	typePKCS7   = 2  // PKEY_ID_PKCS7, the only one since Linux 4.3
)

// Sign gives a module, not compressed, with a signature appended. One that is signed already is signed anew. SHA-1 is refused.
func (s *Signer) Sign(module []byte, hash crypto.Hash) ([]byte, error) {
	i := slices.IndexFunc(digests, func(d digest) bool { return d.hash == hash })
	if i < 0 {
		_, err := HashByName(map[crypto.Hash]string{crypto.SHA1: "sha1"}[hash])
		return nil, err
	}
	d := digests[i]
	_, isRSA := s.key.Public().(*rsa.PublicKey)
	if !isRSA && d.ecdsa == nil {
		return nil, fmt.Errorf("there is no signing with ECDSA and the hash %q: it takes an RSA key", d.name)
	}
	if c := Compression(module); c != "" {
		return nil, fmt.Errorf("the module is compressed already, with %s: its signature would not be found", c)
	}
	module, err := Unsigned(module)
	if err != nil {
		return nil, err
	}
	h := hash.New()
	h.Write(module)
	signature, err := s.key.Sign(rand.Reader, h.Sum(nil), hash)
	if err != nil {
		return nil, err
	}
	cms, err := s.signedData(d, isRSA, signature)
	if err != nil {
		return nil, err
	}
	out := slices.Grow(slices.Clone(module), len(cms)+trailerSize+len(signatureMarker))
	out = append(out, cms...)
	out = append(out, 0, 0, typePKCS7, 0, 0, 0, 0, 0)
	out = binary.BigEndian.AppendUint32(out, uint32(len(cms)))
	return append(out, signatureMarker...), nil
}

// Unsigned gives a module, not compressed, without the signatures that are appended to it. The result is a part of module.
func Unsigned(module []byte) ([]byte, error) {
	for bytes.HasSuffix(module, []byte(signatureMarker)) {
		rest, _, err := cutSignature(module)
		if err != nil {
			return nil, err
		}
		module = rest
	}
	return module, nil
}

// signedData is a ContentInfo of CMS (RFC 5652) with a detached signature, without certificates and without signed attributes.
func (s *Signer) signedData(d digest, isRSA bool, signature []byte) ([]byte, error) {
	var b cryptobyte.Builder
	digestAlgorithm := func(b *cryptobyte.Builder) { // without parameters: RFC 5754
		b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(d.oid) })
	}
	b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidSignedData)
		b.AddASN1(asn1.Tag(0).Constructed().ContextSpecific(), func(b *cryptobyte.Builder) {
			b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1)
				b.AddASN1(asn1.SET, digestAlgorithm)
				b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidData) })
				b.AddASN1(asn1.SET, func(b *cryptobyte.Builder) {
					b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
						b.AddASN1Int64(1)
						b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
							b.AddBytes(s.cert.RawIssuer)
							b.AddASN1BigInt(s.cert.SerialNumber)
						})
						digestAlgorithm(b)
						b.AddASN1(asn1.SEQUENCE, func(b *cryptobyte.Builder) {
							if isRSA {
								b.AddASN1ObjectIdentifier(oidRSAEncryption)
								b.AddASN1NULL()
							} else {
								b.AddASN1ObjectIdentifier(d.ecdsa)
							}
						})
						b.AddASN1OctetString(signature)
					})
				})
			})
		})
	})
	return b.Bytes()
}

// A Signature is what an appended one says of itself. Nothing of it is verified.
type Signature struct {
	Issuer pkix.Name // of the signer's certificate, whose own name it is if it's self-signed
	Serial *big.Int  // of the signer's certificate
	Hash   crypto.Hash
}

// readSignature reads the signature that sign-file appended to a module, of which the end is enough.
func readSignature(module []byte) (Signature, error) {
	_, cms, err := cutSignature(module)
	if err != nil {
		return Signature{}, err
	}
	return parseSignature(cms)
}

var errSignature = errors.New("malformed module signature")

// cutSignature parts a module from the CMS structure that is appended to it.
func cutSignature(module []byte) (rest, cms []byte, err error) {
	b, ok := bytes.CutSuffix(module, []byte(signatureMarker))
	if !ok {
		return nil, nil, fmt.Errorf("%w: there is none", errSignature)
	}
	if len(b) < trailerSize {
		return nil, nil, fmt.Errorf("%w: it is cut off", errSignature)
	}
	b, trailer := b[:len(b)-trailerSize], b[len(b)-trailerSize:]
	size := binary.BigEndian.Uint32(trailer[8:])
	if uint64(size) > uint64(len(b)) {
		return nil, nil, fmt.Errorf("%w: it has %d bytes of a file that has fewer", errSignature, size)
	}
	if trailer[2] != typePKCS7 {
		return nil, nil, fmt.Errorf("%w: its type is %d, kernels since 4.3 know %d only", errSignature, trailer[2], typePKCS7)
	}
	at := len(b) - int(size)
	return b[:at:at], b[at:], nil
}

// parseSignature reads the first signer of a CMS structure.
func parseSignature(cms []byte) (Signature, error) {
	var content, data, signers, signer, issuer, algorithm cryptobyte.String
	var explicit cryptobyte.String
	var kind, hash encasn1.ObjectIdentifier
	var s Signature
	in := cryptobyte.String(cms)
	certificates, revocations := asn1.Tag(0).Constructed().ContextSpecific(), asn1.Tag(1).Constructed().ContextSpecific()
	s.Serial = new(big.Int)
	if !in.ReadASN1(&content, asn1.SEQUENCE) || !content.ReadASN1ObjectIdentifier(&kind) || !kind.Equal(oidSignedData) ||
		!content.ReadASN1(&explicit, asn1.Tag(0).Constructed().ContextSpecific()) || !explicit.ReadASN1(&data, asn1.SEQUENCE) ||
		!data.SkipASN1(asn1.INTEGER) || !data.SkipASN1(asn1.SET) || !data.SkipASN1(asn1.SEQUENCE) ||
		!data.SkipOptionalASN1(certificates) || !data.SkipOptionalASN1(revocations) ||
		!data.ReadASN1(&signers, asn1.SET) || !signers.ReadASN1(&signer, asn1.SEQUENCE) || !signer.SkipASN1(asn1.INTEGER) {
		return Signature{}, errSignature
	}
	if signer.PeekASN1Tag(asn1.SEQUENCE) { // else the signer is named by the key's identifier, as sign-file -k does
		var name cryptobyte.String
		var rdn pkix.RDNSequence
		if !signer.ReadASN1(&issuer, asn1.SEQUENCE) || !issuer.ReadASN1Element(&name, asn1.SEQUENCE) || !issuer.ReadASN1Integer(s.Serial) {
			return Signature{}, errSignature
		}
		if rest, err := encasn1.Unmarshal(name, &rdn); err != nil || len(rest) > 0 {
			return Signature{}, errSignature
		}
		s.Issuer.FillFromRDNSequence(&rdn)
	} else if !signer.SkipASN1(asn1.Tag(0).ContextSpecific()) {
		return Signature{}, errSignature
	}
	if !signer.ReadASN1(&algorithm, asn1.SEQUENCE) || !algorithm.ReadASN1ObjectIdentifier(&hash) {
		return Signature{}, errSignature
	}
	i := slices.IndexFunc(digests, func(d digest) bool { return d.oid.Equal(hash) })
	if i < 0 {
		return Signature{}, fmt.Errorf("%w: its hash is %s, which is none that modules are signed with here", errSignature, hash)
	}
	s.Hash = digests[i].hash
	return s, nil
}
