package deb

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// Image implements kernels.Provider. It is the package linux-image-RELEASE, which is the signed one where there are two, with those of the
// kernel's that it depends on, and linux-modules-extra-RELEASE.
func (p *Provider) Image(ctx context.Context, l kernels.Lock) (kernels.Image, error) {
	k := l.Kernel
	if k.Distro != p.distro.name {
		return kernels.Image{}, fmt.Errorf("image of %s: distribution %q is not %q", k, k.Distro, p.distro.name)
	}
	at := slices.IndexFunc(l.Headers, func(p kernels.Package) bool { return p.Name == headersPrefix+k.Release })
	if at < 0 {
		return kernels.Image{}, fmt.Errorf("image of %s: the lock has no package %q", k, headersPrefix+k.Release)
	}
	version := l.Headers[at].Version
	q := p.of(k.Arch)
	i, err := answer(ctx, q, k.Suite, k.Arch, func(v *view) (kernels.Image, error) {
		return repo.Memo(q.keep, v.key("image", k.Arch, k.Release, version), q.opts.Warn, func() (kernels.Image, error) {
			return q.image(ctx, v, k, version)
		})
	})
	if err != nil {
		return kernels.Image{}, fmt.Errorf("image of %s: %w", k, err)
	}
	return i, nil
}

// image looks among the first component's packages, and then among those of all.
func (p *Provider) image(ctx context.Context, v *view, k kernels.Kernel, version string) (kernels.Image, error) {
	for wide := false; ; wide = true {
		pool, err := p.pool(ctx, v, k.Arch, wide)
		if err != nil {
			return kernels.Image{}, err
		}
		i, err := pool.image(k, version)
		if !errors.Is(err, kernels.ErrNotFound) || wide || len(p.distro.components) == 1 {
			return i, err
		}
	}
}

func (p *pool) image(k kernels.Kernel, version string) (kernels.Image, error) {
	p.Lock()
	defer p.Unlock()
	// What Debian signs is named like what it was made from without "-unsigned", what Ubuntu signs without "unsigned-".
	names := []string{"linux-image-" + k.Release, "linux-image-unsigned-" + k.Release, "linux-image-" + k.Release + "-unsigned"}
	var all []*candidate
	var have []string
	for _, name := range names {
		versions, err := p.named(name)
		if err != nil {
			return kernels.Image{}, err
		}
		for _, c := range versions {
			if c.version == version {
				all = append(all, c)
			}
			have = append(have, name+" "+c.version)
		}
	}
	if len(all) == 0 {
		return kernels.Image{}, kernels.NoImage(version, names, have)
	}
	all = all[:1]
	for n := 0; n < len(all); n++ {
		groups, err := parseDepends(all[n].depends)
		if err != nil {
			return kernels.Image{}, fmt.Errorf("package %q: %w", all[n].name, err)
		}
		for _, g := range groups {
			c, own, err := p.part(g, k.Release, version)
			if err != nil {
				return kernels.Image{}, err
			}
			if own && c == nil {
				return kernels.Image{}, fmt.Errorf("package %q depends on %q, which the index has not: %w; another mirror may have it (--mirror)",
					all[n].name, g, kernels.ErrNotFound)
			}
			if own && !slices.Contains(all, c) {
				all = append(all, c)
			}
		}
	}
	if c, _, err := p.part(group{{name: "linux-modules-extra-" + k.Release}}, k.Release, version); err != nil {
		return kernels.Image{}, err
	} else if c != nil && !slices.Contains(all, c) {
		all = append(all, c)
	}
	return kernels.Image{Kernel: k, Packages: pin(all)}, nil
}

// part tells whether a dependency is on packages of a kernel, and gives the one that meets it, if there is one. It has the kernel's version,
// but for what is made from another source, as Ubuntu's linux-main-modules-zfs-RELEASE.
func (p *pool) part(g group, release, version string) (c *candidate, own bool, err error) {
	for _, r := range g {
		name, isLinux := strings.CutPrefix(strings.TrimSuffix(r.name, "-unsigned"), "linux-")
		if !isLinux || !strings.HasSuffix(name, "-"+release) || strings.HasPrefix(r.name, headersPrefix) {
			continue
		}
		own = true
		versions, err := p.named(r.name)
		if err != nil {
			return nil, own, err
		}
		accepted := slices.IndexFunc(versions, func(c *candidate) bool { return c.version == version && r.accepts(version) })
		if accepted < 0 && strings.HasPrefix(name, "main-modules-") {
			accepted = slices.IndexFunc(versions, func(c *candidate) bool { return r.accepts(c.version) })
		}
		if accepted >= 0 {
			return versions[accepted], own, nil
		}
	}
	return nil, own, nil
}
