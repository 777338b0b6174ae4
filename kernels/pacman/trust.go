package pacman

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"golang.org/x/sync/errgroup"

	"github.com/godkms-hermetic/godkms-hermetic/internal/mirror"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// Arch signs its packages, and not its databases. So each package that a lock pins was read before, all of it, and its signature verified:
// what a lock has is the digest of something that one of the keys has signed under that name and version. A lock costs the download
// of what it pins, once, which the build needs next. What a mirror could still do is to offer yesterday's packages.

// maxHead is how much of a package is kept to read its .PKGINFO from, which comes behind other metadata, in bytes; .MTREE has a MB in the
// largest packages.
const maxHead = 8 << 20

// signed is what is known of a package by its digest, under a keyring.
type signed struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Arch    string `json:"arch"`
}

// verify checks the signatures of packages, unless that was done before. What isn't signed wraps kernels.ErrUntrusted.
func (p *Provider) verify(ctx context.Context, list []*pkg) error {
	keys, err := p.keys()
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	for _, k := range list {
		g.Go(func() error {
			err := p.verifyOne(ctx, keys, k)
			if err != nil && ctx.Err() == nil {
				err = fmt.Errorf("package %q %s: %w", k.name, k.version, err)
			}
			return err
		})
	}
	return g.Wait()
}

func (p *Provider) verifyOne(ctx context.Context, keys keyring, k *pkg) error {
	s, err := repo.Memo(p.ask.Keep, "signed-"+keys.id+"-"+k.digest().Hex, p.opts.Warn, func() (signed, error) {
		return p.readSigned(ctx, keys, k)
	})
	if err != nil {
		return err
	}
	if want := (signed{k.name, k.version, k.arch}); s != want {
		return repo.Refuse(fmt.Errorf("what the mirror has under its name is signed as %q %s for %s: use another mirror (--mirror)", s.Name, s.Version, s.Arch))
	}
	return nil
}

// readSigned reads a package, and verifies the signature that the database has of it, or else the one that a mirror has beside it.
func (p *Provider) readSigned(ctx context.Context, keys keyring, k *pkg) (signed, error) {
	var refused error
	if len(k.signature) > 0 {
		s, err := p.check(ctx, keys, k, k.signature)
		if _, bad := errors.AsType[repo.Refusal](err); !bad {
			return s, err
		}
		refused = err
	}
	for _, url := range k.urls {
		from := mirror.Public(url) + ".sig"
		got, err := p.ask.Net.Fetch(ctx, url+".sig", nil, maxSignature)
		if ctx.Err() != nil {
			return signed{}, context.Cause(ctx)
		}
		switch {
		case mirror.IsMissing(err) && refused == nil:
			refused = repo.Refuse(errors.New("it isn't signed: use another mirror (--mirror)"))
		case mirror.IsMissing(err):
		case err != nil:
			refused = cmp.Or(refused, fmt.Errorf("fetch %s: %w: %s", from, err, repo.Advice(err)))
		default:
			s, err := p.check(ctx, keys, k, got.Body)
			if _, bad := errors.AsType[repo.Refusal](err); !bad {
				return s, err
			}
			refused = err
		}
	}
	return signed{}, refused
}

// check reads a package to its end, and gives what it says of itself if the signature is one of the keyring's over all of it. If not, the
// error is a repo.Refusal. A key counts as it was when it signed: packages are not signed again when the key of who made them expires
// (pacman takes them, too).
func (p *Provider) check(ctx context.Context, keys keyring, k *pkg, signature []byte) (signed, error) {
	made, err := signedAt(signature)
	if err != nil {
		return signed{}, repo.Refuse(fmt.Errorf("its signature: %w: use another mirror (--mirror)", err))
	}
	if made.After(p.opts.Now().Add(maxSkew)) {
		return signed{}, fmt.Errorf("it was signed on %s, in the future: check this machine's clock", made.UTC().Format(time.DateOnly))
	}
	file, err := p.opts.Fetch(ctx, k.pin())
	if err != nil {
		return signed{}, err
	}
	defer file.Close()
	read := &reading{r: file}
	_, err = openpgp.CheckDetachedSignature(keys.list, read, bytes.NewReader(signature),
		&packet.Config{Time: func() time.Time { return made }})
	if read.err != nil { // the package's, not the signature's
		return signed{}, read.err
	}
	if err != nil {
		return signed{}, repo.Refuse(fmt.Errorf("its signature: %w: use another mirror (--mirror)", err))
	}
	content, about, err := openPackage(bytes.NewReader(read.head))
	if err != nil {
		return signed{}, err
	}
	content.Close()
	return signed{about.name, about.version, about.arch}, nil
}

// maxSkew is how far in the future a signature may be dated.
const maxSkew = 24 * time.Hour

// signedAt gives the time of a detached signature.
func signedAt(signature []byte) (time.Time, error) {
	pkt, err := packet.Read(bytes.NewReader(signature))
	if err != nil {
		return time.Time{}, err
	}
	s, ok := pkt.(*packet.Signature)
	if !ok {
		return time.Time{}, errors.New("it is none")
	}
	return s.CreationTime, nil
}

// reading keeps the beginning of what is read, and why that failed.
type reading struct {
	r    io.Reader
	head []byte
	err  error
}

func (r *reading) Read(b []byte) (int, error) {
	n, err := r.r.Read(b)
	if more := min(n, maxHead-len(r.head)); more > 0 {
		r.head = append(r.head, b[:more]...)
	}
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

// A keyring is the keys that may sign packages. The id changes with them.
type keyring struct {
	list openpgp.EntityList
	id   string
}

func newKeyring(list openpgp.EntityList) keyring {
	h := sha256.New()
	for _, e := range list {
		h.Write(e.PrimaryKey.Fingerprint)
		for _, r := range e.Revocations {
			fmt.Fprintln(h, r.CreationTime.Unix())
		}
	}
	return keyring{list, hex.EncodeToString(h.Sum(nil)[:10])}
}
