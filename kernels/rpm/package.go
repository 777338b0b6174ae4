package rpm

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"

	"github.com/godkms-hermetic/godkms-hermetic/internal/decompress"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// A file is an open rpm package: what its header says, and its payload as a tar stream. Before that reports io.EOF the package has been
// read to its end, so that one which checks its own digest gets to do so.
type file struct {
	io.ReadCloser
	name, version, arch string // as pkg has them
	requires            []string
}

// A trust is what makes a package file trusted.
//
// Where a distribution signs its repomd.xml, the digests of packages in it are enough, and there are no keys here. Where it doesn't, the
// digest that a lock has is only what some mirror said, and each package must be signed itself: one of the keys must have signed its
// header, which has the SHA-256 of the payload, and that is checked as the payload is read. So nothing of the file but its lead and its
// signature header is unsigned, and of these nothing is used.
// What the signatures don't cover is which packages a mirror offers: it may leave some out, or stay behind. That a file is not some other
// signed package is checked where the reader that it comes from is a describer.
type trust struct {
	keys openpgp.EntityList // nil: the file's digest was checked by other means
	now  func() time.Time
}

// A describer is what a reader of a package file can be that knows which package it must be.
type describer interface{ Package() kernels.Package }

// openPackage reads an rpm package file (format 3, 4 or 6: https://rpm-software-management.github.io/rpm/manual/format_v4.html). What
// isn't trusted is a repo.Refusal.
func openPackage(pkg io.Reader, by trust) (*file, error) {
	in := bufio.NewReaderSize(pkg, 64<<10)
	f, err := openFile(in, by)
	if err != nil {
		return nil, fmt.Errorf("read rpm package: %w", noEOF(err))
	}
	if d, ok := pkg.(describer); ok {
		if p := d.Package(); f.name != p.Name || f.version != p.Version || f.arch != p.Arch {
			f.Close()
			return nil, repo.Refuse(fmt.Errorf("read rpm package: it is %s-%s.%s, and not %s-%s.%s: use another mirror",
				f.name, f.version, f.arch, p.Name, p.Version, p.Arch))
		}
	}
	return f, nil
}

func openFile(in *bufio.Reader, by trust) (*file, error) {
	var lead [leadSize]byte
	if _, err := io.ReadFull(in, lead[:]); err != nil {
		return nil, noEOF(err)
	}
	if !bytes.HasPrefix(lead[:], []byte{0xed, 0xab, 0xee, 0xdb}) {
		return nil, errors.New("not an rpm package")
	}
	signatures, err := readHeader(in)
	if err != nil {
		return nil, fmt.Errorf("signatures: %w", err)
	}
	if pad := -len(signatures.raw) & 7; pad > 0 {
		if _, err := in.Discard(pad); err != nil {
			return nil, noEOF(err)
		}
	}
	h, err := readHeader(in)
	if err != nil {
		return nil, err
	}
	f := &file{}
	if f.name, f.version, f.arch, err = h.identity(); err != nil {
		return nil, err
	}
	if by.keys != nil {
		if err := checkPackage(h.raw, signatures, by); err != nil {
			return nil, repo.Refuse(fmt.Errorf("package %s-%s.%s: %w", f.name, f.version, f.arch, err))
		}
	}
	if f.requires, err = h.requires(); err != nil {
		return nil, err
	}
	sum, want, err := h.payloadDigest()
	if err != nil {
		return nil, err
	}
	if sum == nil {
		if by.keys != nil {
			return nil, repo.Refuse(fmt.Errorf("package %s-%s.%s: its header has no digest of its files", f.name, f.version, f.arch))
		}
		sum = sha256.New()
	}
	if format, err := h.text(tagPayloadFormat); err != nil {
		return nil, err
	} else if format != "cpio" && format != "" {
		return nil, fmt.Errorf("payload format %.40q is not cpio", format)
	}
	packing, err := h.text(tagPayloadCompressor)
	if err != nil {
		return nil, err
	}
	if !slices.Contains([]string{"", "gzip", "xz", "zstd"}, packing) {
		return nil, fmt.Errorf("compression %.40q is not supported", packing)
	}
	list, err := h.fileList()
	if err != nil {
		return nil, err
	}
	raw := io.TeeReader(in, sum)
	z, err := decompress.NewReader(raw)
	if err != nil {
		return nil, fmt.Errorf("payload: %w", noEOF(err))
	}
	f.ReadCloser = &payload{z: z, tar: newConverter(z, list), raw: raw, sum: sum, want: want}
	return f, nil
}

// checkPackage checks that one of the keys signed the header, before it expired: packages outlive keys.
func checkPackage(raw []byte, signatures *header, by trust) error {
	var found [][]byte
	for _, tag := range []uint32{sigRSA, sigDSA} {
		b, err := signatures.blob(tag)
		if err != nil {
			return err
		}
		if b != nil {
			found = append(found, b)
		}
	}
	texts, err := signatures.texts(sigOpenPGP) // of rpm 6
	if err != nil {
		return err
	}
	for _, text := range texts[:min(len(texts), 16)] {
		b, err := base64.StdEncoding.DecodeString(strings.NewReplacer("\n", "", "\r", "").Replace(text))
		if err != nil {
			return fmt.Errorf("its signature can't be read: %w", err)
		}
		found = append(found, b)
	}
	if len(found) == 0 {
		return errors.New("its header is not signed")
	}
	err = errors.New("it is signed with none of the distribution's keys")
	for _, sig := range found {
		old, e := readOldSignature(sig)
		if e != nil {
			err = fmt.Errorf("its signature can't be used: %w", e)
			continue
		}
		check := func(now func() time.Time) (made time.Time, err error) {
			if old != nil {
				return old.made(), old.verify(by.keys, raw, now())
			}
			s, _, err := openpgp.VerifyDetachedSignature(by.keys, bytes.NewReader(raw), bytes.NewReader(sig), &packet.Config{Time: now})
			if s != nil {
				made = s.CreationTime
			}
			return made, err
		}
		made, e := check(by.now)
		if errors.Is(e, pgperrors.ErrKeyExpired) && !made.IsZero() {
			_, e = check(func() time.Time { return made })
		}
		if e == nil {
			return nil
		}
		if !errors.Is(e, pgperrors.ErrUnknownIssuer) {
			err = fmt.Errorf("its signature does not hold: %w", e)
		}
	}
	return err
}

// payloadDigest gives what the digest of the compressed payload is computed with, nil if the header has none, and its value.
func (h *header) payloadDigest() (hash.Hash, string, error) {
	sums, err := h.texts(tagPayloadDigest)
	if err != nil || len(sums) == 0 {
		return nil, "", err
	}
	algo, err := h.numbers(tagPayloadDigestAlgo)
	if err != nil || len(algo) != 1 || len(sums) != 1 {
		return nil, "", errors.Join(err, errors.New("the digest of its files can't be read"))
	}
	switch algo[0] { // RFC 9580, section 9.5
	case 8:
		return sha256.New(), sums[0], nil
	case 10:
		return sha512.New(), sums[0], nil
	}
	return nil, "", fmt.Errorf("digest algorithm %d is not supported", algo[0])
}

// payload reads the tar stream, then the package to its end, and checks its digest.
type payload struct {
	z     io.ReadCloser // decompresses raw
	tar   *converter    // reads z
	raw   io.Reader
	sum   hash.Hash // of raw
	want  string    // hex; empty: not known
	ended error
}

// maxRest bounds what may follow the last file: padding.
const maxRest = 1 << 20

func (p *payload) Read(b []byte) (int, error) {
	if p.ended != nil {
		return 0, p.ended
	}
	n, err := p.tar.Read(b)
	if err == nil {
		return n, nil
	}
	if err == io.EOF {
		err = p.finish()
	}
	if err != io.EOF {
		err = fmt.Errorf("read rpm package: %w", err)
	}
	p.ended = err
	return n, err
}

func (p *payload) finish() error {
	if _, err := io.Copy(io.Discard, &repo.Capped{R: p.z, N: maxRest}); err != nil {
		return fmt.Errorf("behind its files: %w", err)
	}
	if err := p.z.Close(); err != nil { // before it nobody else may read from raw
		return err
	}
	if _, err := io.Copy(io.Discard, p.raw); err != nil {
		return err
	}
	if got := hex.EncodeToString(p.sum.Sum(nil)); p.want != "" && !strings.EqualFold(got, p.want) {
		return repo.Refuse(fmt.Errorf("its files have the digest %s, its header says %s", got, p.want))
	}
	return io.EOF
}

func (p *payload) Close() error {
	if p.ended == nil {
		p.ended = errors.New("read rpm package: it is closed")
	}
	return p.z.Close()
}
