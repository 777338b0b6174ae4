package deb

import (
	"context"
	"fmt"
	"slices"

	"github.com/godkms-hermetic/godkms-hermetic/internal/mirror"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// Mirrors are those of all archives, the main one first.
func (p *Provider) Mirrors() []repo.Mirror {
	if p.ports != nil {
		return slices.Concat(p.from, p.ports.from)
	}
	return slices.Clone(p.from)
}

// Probe asks a mirror for an index of its archive, and verifies its signature, which there must be; it keeps nothing. A mirror need have
// one suite only. The error doesn't name the mirror, whose URL may have a password.
func (p *Provider) Probe(ctx context.Context, m repo.Mirror) (signed bool, err error) {
	if p.ports != nil && !slices.ContainsFunc(p.distro.archives, func(a archive) bool { return a.name == m.Archive }) {
		return p.ports.Probe(ctx, m)
	}
	keys, err := p.keys()
	if err != nil {
		return false, fmt.Errorf("read the keys of %s: %w", p.distro.name, err)
	}
	err = fmt.Errorf("no archive %q", m.Archive)
	for _, s := range p.distro.suites {
		for _, pk := range s.pockets {
			if pk.archive != m.Archive {
				continue
			}
			file := pk.release()
			var got *mirror.Reply
			if got, err = p.asker.Net.Fetch(ctx, m.URL+"/"+file, nil, maxRelease); err == nil {
				_, err = readRelease(got.Body, p.distro.components, keys, p.opts.Now)
			}
			if err == nil {
				return true, nil
			}
			if err = fmt.Errorf("%s: %w", file, err); !mirror.IsMissing(err) {
				return false, err
			}
		}
	}
	return false, err
}

// Keys are those that may sign the distribution's indexes.
func (p *Provider) Keys() ([]repo.Key, error) {
	list, err := p.keys()
	if err != nil {
		return nil, fmt.Errorf("read the keys of %s: %w", p.distro.name, err)
	}
	var out []repo.Key
	for _, e := range list {
		out = append(out, repo.KeyOf(e))
	}
	return out, nil
}
