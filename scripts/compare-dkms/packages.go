package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/godkms-hermetic/godkms-hermetic/builder/dkms"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// suite is where the packages and the kernels are from.
const suite = "bookworm"

// targets finds the kernels: of a line, as "6.12", the newest of the default flavour.
func (c *comparison) targets(ctx context.Context, lines []string) ([]kernels.Kernel, error) {
	list, err := c.dkms.Kernels(ctx, suite)
	if err != nil {
		return nil, err
	}
	var out []kernels.Kernel
	for _, line := range lines {
		i := slices.IndexFunc(list, func(k kernels.Candidate) bool {
			plain := strings.HasSuffix(k.Release, "-"+k.Arch) && !strings.Contains(k.Release, "-rt-") && !strings.Contains(k.Release, "-cloud-")
			return k.Release == line || plain && strings.HasPrefix(k.Release, line+".")
		})
		if i < 0 {
			return nil, fmt.Errorf("-kernels: %s has no kernel %q", suite, line)
		}
		out = append(out, list[i].Kernel)
	}
	return out, nil
}

// packages gets the sources: the packages named, which are names or files, or all.
func (c *comparison) packages(ctx context.Context, components, named []string) ([]subject, error) {
	var out []subject
	missing := map[string]bool{}
	for _, n := range named {
		if strings.HasSuffix(n, ".deb") {
			out = append(out, c.open(ctx, n))
		} else {
			missing[n] = true
		}
	}
	if len(named) > 0 && len(missing) == 0 {
		return out, nil
	}
	for _, component := range components {
		found, err := c.dkms.Packages(ctx, suite, component, func(name string) bool {
			if len(named) > 0 {
				return missing[name]
			}
			return strings.HasSuffix(name, "-dkms") && name != "dh-dkms" // which helps to make such packages
		})
		if err != nil {
			return nil, err
		}
		for _, p := range found {
			delete(missing, p.Name)
			file, err := c.dkms.Fetch(ctx, p)
			if err != nil {
				return nil, err
			}
			out = append(out, c.open(ctx, file))
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("%s has no packages %q in %s", suite, slices.Sorted(maps.Keys(missing)), strings.Join(components, ", "))
	}
	return out, nil
}

// open unpacks a package for dkms. An error of it is one of the subject.
func (c *comparison) open(ctx context.Context, file string) subject {
	s := subject{label: filepath.Base(file), source: file, tree: c.folder("tree")}
	s.err = func() error {
		fields, err := output(ctx, "dpkg-deb", "-W", "--showformat", "${Package} ${Version}\n${Depends}", file)
		if err != nil {
			return err
		}
		var depends string
		s.label, depends, _ = strings.Cut(fields, "\n")
		if s.with, err = c.depends(ctx, depends); err != nil {
			return err
		}
		if err := os.Mkdir(s.tree, 0o755); err != nil {
			return err
		}
		if _, err := output(ctx, "dpkg-deb", "-x", file, s.tree); err != nil {
			return err
		}
		if _, err := output(ctx, "sh", "-c", merge, "sh", s.tree); err != nil {
			return err
		}
		confs, err := filepath.Glob(filepath.Join(s.tree, "usr/src/*/dkms.conf"))
		if err != nil || len(confs) != 1 {
			return fmt.Errorf("the package has %d dkms.conf: %v", len(confs), err)
		}
		text, err := os.ReadFile(confs[0])
		if err != nil {
			return err
		}
		h, err := dkms.Read(text)
		s.module, s.version = h.Name, h.Version
		return err
	}()
	return s
}

// merge moves what a package has beside /usr below it, where the root's links of these names lead.
const merge = `cd "$1" && for d in bin lib lib32 lib64 libx32 sbin; do
	if [ -d "$d" ]; then mkdir -p "usr/$d" && cp -a "$d/." "usr/$d" && rm -r "$d" || exit; fi
done`

// depends gives the names of packages that satisfy a Depends field, of alternatives the first that main has. Those that it has not,
// of packages outside of it, are left out. Dkms itself is on its side's root, and of no use on the other.
func (c *comparison) depends(ctx context.Context, field string) ([]string, error) {
	var out []string
	for group := range strings.SplitSeq(field, ",") {
		var names []string
		for one := range strings.SplitSeq(group, "|") {
			if f := strings.Fields(one); len(f) > 0 {
				name, _, _ := strings.Cut(f[0], ":")
				names = append(names, name)
			}
		}
		if len(names) == 0 || slices.Contains(names, "dkms") {
			continue
		}
		found, err := c.dkms.Packages(ctx, suite, "main", func(name string) bool { return slices.Contains(names, name) })
		if err != nil {
			return nil, err
		}
		i := slices.IndexFunc(names, func(n string) bool {
			return slices.ContainsFunc(found, func(p kernels.Package) bool { return p.Name == n })
		})
		if i >= 0 {
			out = append(out, names[i])
		}
	}
	return out, nil
}
