package deb

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
)

// Where a mirror's URL comes from.
const (
	Given   = "given"    // Options.Mirrors, or beside one that is
	FromApt = "apt"      // Options.AptDir
	BuiltIn = "built-in" // nothing else was said
)

// Mirror is where an archive is read from.
type Mirror struct {
	Archive string // "debian-security"
	URL     string // without a slash at its end
	From    string // Given, FromApt or BuiltIn
}

// Mirrors are those of all archives, the main one first.
func (p *Provider) Mirrors() []Mirror { return slices.Clone(p.from) }

// Probe asks a mirror for an index of its archive, and verifies its signature; it keeps nothing. A mirror need have
// one suite only. The error doesn't name the mirror, whose URL may have a password.
func (p *Provider) Probe(ctx context.Context, archive string) error {
	keys, err := p.keys()
	if err != nil {
		return fmt.Errorf("read the keys of %s: %w", p.distro.name, err)
	}
	err = fmt.Errorf("no archive %q", archive)
	for _, s := range p.distro.suites {
		for _, pk := range s.pockets {
			if pk.archive != archive {
				continue
			}
			file := "dists/" + pk.name + "/InRelease"
			var got *reply
			if got, err = p.net.fetch(ctx, p.bases[archive]+"/"+file, nil, maxRelease); err == nil {
				_, err = readRelease(got.body, p.opts.Component, keys, p.opts.Now)
			}
			if err == nil {
				return nil
			}
			if err = fmt.Errorf("%s: %w", file, err); !isMissing(err) {
				return err
			}
		}
	}
	return err
}

// Key is one of the keys that may sign the distribution's indexes.
type Key struct {
	Name    string    // of its owner
	Expires time.Time // zero: never
}

// Keys are those that may sign the distribution's indexes.
func (p *Provider) Keys() ([]Key, error) {
	list, err := p.keys()
	if err != nil {
		return nil, fmt.Errorf("read the keys of %s: %w", p.distro.name, err)
	}
	var out []Key
	for _, e := range list {
		out = append(out, keyOf(e))
	}
	return out, nil
}

func keyOf(e *openpgp.Entity) Key {
	id := e.PrimaryIdentity()
	if id == nil {
		return Key{Name: e.PrimaryKey.KeyIdString()}
	}
	k := Key{Name: id.Name}
	if life := id.SelfSignature.KeyLifetimeSecs; life != nil && *life > 0 { // counted from the key's creation (RFC 9580, section 5.2.3.13)
		k.Expires = e.PrimaryKey.CreationTime.Add(time.Duration(*life) * time.Second).UTC()
	}
	return k
}
