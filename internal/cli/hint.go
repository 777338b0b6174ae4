package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

const (
	hintPatience = 60 * time.Second
	maxHinted    = 4 // things that a hint is about
	maxHolders   = 3 // packages that it names for one of them
)

// hint says which packages have what a failed build missed, or nothing. A failure to find that out is no more than a note: the
// build's own error is what counts.
func (r *buildRun) hint(ctx context.Context, c *cell, lock kernels.Lock, missing []ui.Missing) string {
	finder, ok := r.distros[c.kernel.Distro].(kernels.Finder)
	var wanted []kernels.Wanted
	for _, m := range missing[:min(len(missing), maxHinted)] {
		wanted = append(wanted, kernels.Wanted{Kind: kernels.Kind(m.Kind), Name: m.Name}) // both have the same kinds
	}
	if !ok || len(wanted) == 0 {
		return ""
	}
	ctx, cancel := context.WithTimeoutCause(ctx, hintPatience, fmt.Errorf("no answer within %s", hintPatience))
	defer cancel()
	c.line.Phase("looking for the package")
	holders, err := finder.Holders(ctx, c.kernel.Suite, c.kernel.Arch, wanted, c.line.Bytes)
	if err != nil {
		if !r.offline && !errors.Is(err, context.Canceled) {
			r.board.Print(fmt.Sprintf("%s: which package has %s is not known: %v", c.title, called(wanted[0]), err))
		}
		return ""
	}
	return hintText(wanted, holders, slices.Concat(lock.Toolchain, lock.Headers))
}

// hintText words what is in which packages. What a package of the root has is not what was missing.
func hintText(wanted []kernels.Wanted, holders [][]string, root []kernels.Package) string {
	var parts, with []string
	choice := false
	for i, w := range wanted {
		list := holders[i]
		inRoot := slices.ContainsFunc(list, func(name string) bool {
			return slices.ContainsFunc(root, func(p kernels.Package) bool { return p.Name == name })
		})
		if len(list) == 0 || inRoot {
			continue
		}
		list = list[:min(len(list), maxHolders)]
		at := list[len(list)-1]
		if len(list) > 1 {
			at = strings.Join(list[:len(list)-1], ", ") + " or " + at
			choice = true
		}
		if at == called(w) {
			at = "the package of that name"
		}
		parts = append(parts, called(w)+" is in "+at)
		if !slices.ContainsFunc(list, func(name string) bool { return slices.Contains(with, name) }) {
			with = append(with, list[0])
		}
	}
	if len(parts) == 0 {
		return ""
	}
	them := "it"
	switch {
	case len(with) > 1:
		them = "them"
	case choice:
		them = "one"
	}
	return fmt.Sprintf("%s; add %s with --with %s, or to [build] packages in godkms.toml", strings.Join(parts, ", "), them, strings.Join(with, ","))
}

// called is what people call a wanted thing.
func called(w kernels.Wanted) string {
	switch w.Kind {
	case kernels.PkgConfig:
		return w.Name + ".pc"
	case kernels.Library:
		return "lib" + w.Name
	}
	return w.Name
}
