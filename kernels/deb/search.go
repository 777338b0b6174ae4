package deb

import (
	"context"
	"fmt"
	"slices"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// Packages finds the packages of a suite by name, sorted by it: of each the version that apt would install, backports aside.
func (p *Provider) Packages(ctx context.Context, suite, arch string, wanted func(name string) bool) ([]kernels.Package, error) {
	out, err := p.of(arch).packages(ctx, suite, arch, wanted)
	if err != nil {
		return nil, fmt.Errorf("packages of %s/%s %s: %w", p.distro.name, suite, arch, err)
	}
	return out, nil
}

func (p *Provider) packages(ctx context.Context, suite, arch string, wanted func(name string) bool) ([]kernels.Package, error) {
	return answer(ctx, p, suite, arch, func(v *view) ([]kernels.Package, error) {
		pool, err := p.pool(ctx, v, arch, false)
		if err != nil {
			return nil, err
		}
		pool.Lock()
		defer pool.Unlock()
		var names []string
		for _, s := range pool.sources {
			for _, name := range s.Names() {
				if wanted(name) {
					names = append(names, name)
				}
			}
		}
		slices.Sort(names)
		var found []*candidate
		for _, name := range slices.Compact(names) {
			c, err := pool.current(name)
			if err != nil {
				return nil, err
			}
			if c != nil {
				found = append(found, c)
			}
		}
		return pin(found), nil
	})
}
