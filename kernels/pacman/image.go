package pacman

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// Image implements kernels.Provider. It is the kernel's package, linux of linux-headers, which is downloaded and its signature verified as
// those of a lock are.
func (p *Provider) Image(ctx context.Context, l kernels.Lock) (kernels.Image, error) {
	i, err := p.image(ctx, l)
	if err != nil {
		return kernels.Image{}, fmt.Errorf("image of %s: %w", l.Kernel, err)
	}
	return i, nil
}

func (p *Provider) image(ctx context.Context, l kernels.Lock) (kernels.Image, error) {
	k := l.Kernel
	if k.Distro != p.distro.name {
		return kernels.Image{}, fmt.Errorf("distribution %q is not %q", k.Distro, p.distro.name)
	}
	at := slices.IndexFunc(l.Headers, func(h kernels.Package) bool {
		return slices.ContainsFunc(p.distro.flavours, func(f flavour) bool {
			release, ok := f.release(h.Version)
			return f.headers == h.Name && ok && release == k.Release
		})
	})
	if at < 0 {
		return kernels.Image{}, fmt.Errorf("the lock has no package of its headers")
	}
	headers := l.Headers[at]
	v, err := p.view(ctx, k.Suite, k.Arch)
	if err != nil {
		return kernels.Image{}, err
	}
	keys, err := p.keys()
	if err != nil {
		return kernels.Image{}, err
	}
	key := p.key(v, "image", keys.id, k.Release, headers.Name, headers.Version)
	return repo.Memo(p.ask.Keep, key, p.opts.Warn, func() (kernels.Image, error) {
		pool, err := p.pool(v)
		if err != nil {
			return kernels.Image{}, err
		}
		name := strings.TrimSuffix(headers.Name, "-headers")
		all, err := pool.named(name)
		if err != nil {
			return kernels.Image{}, err
		}
		var have []string
		for _, c := range all {
			if c.version != headers.Version {
				have = append(have, name+" "+c.version)
				continue
			}
			if err := p.verify(ctx, []*pkg{c}); err != nil {
				return kernels.Image{}, err
			}
			return kernels.Image{Kernel: k, Packages: pin([]*pkg{c})}, nil
		}
		return kernels.Image{}, kernels.NoImage(headers.Version, []string{name}, have)
	})
}
