package rpm

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// Image implements kernels.Provider. What a kernel is made of differs: Fedora and Enterprise Linux have kernel-core, with the file that
// boots, and kernel-modules-core, -modules and -modules-extra; SUSE, Amazon and Oracle's older ones kernel-default, kernel or kernel-uek,
// with most modules in it, and some with more of them beside. Other flavours have their word in all of these names.
func (p *Provider) Image(ctx context.Context, l kernels.Lock) (kernels.Image, error) {
	k := l.Kernel
	if k.Distro != p.distro.name {
		return kernels.Image{}, fmt.Errorf("image of %s: distribution %q is not %q", k, k.Distro, p.distro.name)
	}
	at := slices.IndexFunc(l.Headers, func(h kernels.Package) bool {
		_, ok := flavourOf(h.Name)
		return ok && h.Arch != noarch // SUSE's flavours share one
	})
	if at < 0 {
		return kernels.Image{}, fmt.Errorf("image of %s: the lock has no package of headers", k)
	}
	headers := l.Headers[at]
	i, err := answer(ctx, p, k.Suite, k.Arch, func(v *view) (kernels.Image, error) {
		key := v.key(p.distro, "image", k.Release, headers.Name, headers.Version)
		return repo.Memo(p.asker.Keep, key, p.asker.Warn, func() (kernels.Image, error) {
			pool, err := p.pool(ctx, v)
			if err != nil {
				return kernels.Image{}, err
			}
			pool.Lock()
			defer pool.Unlock()
			return pool.image(k, headers)
		})
	})
	if err != nil {
		return kernels.Image{}, fmt.Errorf("image of %s: %w", k, err)
	}
	return i, nil
}

func (p *pool) image(k kernels.Kernel, headers kernels.Package) (kernels.Image, error) {
	base := strings.TrimSuffix(headers.Name, "-devel")
	names := []string{base + "-core", base}
	var chosen []*candidate
	var have []string
	for _, name := range names {
		c, versions, err := p.inVersion(name, headers)
		if err != nil {
			return kernels.Image{}, err
		}
		if c != nil {
			chosen = append(chosen, c)
			break
		}
		have = append(have, versions...)
	}
	if chosen == nil {
		return kernels.Image{}, kernels.NoImage(headers.Version, names, have)
	}
	for _, name := range p.modules(base) {
		c, _, err := p.inVersion(name, headers)
		if err != nil {
			return kernels.Image{}, err
		}
		if c != nil {
			chosen = append(chosen, c)
		}
	}
	return kernels.Image{Kernel: k, Packages: pin(chosen)}, nil
}

// inVersion gives the package of a name that has the version and architecture of the headers, or else says which versions there are.
func (p *pool) inVersion(name string, headers kernels.Package) (*candidate, []string, error) {
	all, err := p.named(name)
	if err != nil {
		return nil, nil, err
	}
	var have []string
	for _, c := range all {
		if c.version == headers.Version && c.arch == headers.Arch {
			return c, nil, nil
		}
		have = append(have, name+" "+c.version)
	}
	return nil, have, nil
}

// modules gives the names of packages that have modules of a kernel, by the name of its own one: kernel-rt-modules-extra of kernel-rt, and
// kernel-default-optional of kernel-default. Those for the distribution's own tests are left out, and what isn't modules at all.
func (p *pool) modules(base string) []string {
	out := []string{base + "-extra", base + "-optional"}
	for _, s := range p.sources {
		first, end := s.WithPrefix(base + "-modules")
		for i := first; i < end; i++ {
			name := string(s.Name(i))
			rest := strings.TrimPrefix(name, base+"-modules")
			if rest != "" && rest[0] != '-' || strings.HasSuffix(rest, "-internal") || strings.Contains(rest, "-debug") || strings.HasSuffix(rest, "-devel") {
				continue
			}
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
