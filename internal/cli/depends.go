package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/builder/dkms"
)

// unit is one source of a run. Those that it may need come before it.
type unit struct {
	source *builder.Source
	from   string   // a path
	named  bool     // by the user, not found in a folder
	may    []string // modules that it may need
	needs  []int    // units that it may need, and all that those may need
	err    error    // why it can't be built for any kernel
}

func (u unit) name() string { return u.source.Module + "/" + u.source.Version }

// units are the sources of a run, in the order in which they are reported: as they were named, then those that only others need.
type units []unit

func (us units) close() {
	for _, u := range us {
		u.source.Close()
	}
}

// find gives the unit of a module, or -1.
func (us units) find(module string) int {
	return slices.IndexFunc(us, func(u unit) bool { return u.source.Module == module })
}

// openUnits opens the sources that were named, and what they may depend on from the folders of --depends. The error of a circle
// has the exit code for it.
func openUnits(ctx context.Context, named, folders []string, input confInput, o builder.SourceOptions) (us units, err error) {
	defer func() {
		if err != nil {
			us.close()
		}
	}()
	for _, from := range named {
		source, err := builder.OpenSource(ctx, from, o)
		if err != nil {
			return us, err
		}
		if i := us.find(source.Module); i >= 0 {
			source.Close()
			return us, fmt.Errorf("%q and %q are both of the module %q; build them one after the other", us[i].from, from, source.Module)
		}
		us = append(us, unit{source: source, from: from, named: true, may: input.mayDepend(source, true)})
	}
	var offers []offer
	for _, dir := range folders {
		found, err := offersOf(ctx, dir, o)
		if err != nil {
			return us, fmt.Errorf("--depends: %w", err)
		}
		offers = append(offers, found...)
	}
	if us, err = us.complete(ctx, offers, input, o); err != nil {
		return us, fmt.Errorf("--depends: %w", err)
	}
	for _, u := range us {
		if u.err != nil {
			return us, u.err
		}
	}
	return us, nil
}

// complete adds to units what they may depend on, of what is offered. Units whose needs go in a circle have an error then, with the exit
// code for it.
func (us units) complete(ctx context.Context, offers []offer, input confInput, o builder.SourceOptions) (units, error) {
	for i := 0; i < len(us); i++ { // grows
		for _, need := range us[i].may {
			if us.find(need) >= 0 {
				continue
			}
			var match []offer
			for _, f := range offers {
				if f.module == need {
					match = append(match, f)
				}
			}
			switch len(match) {
			case 0: // whether it is needed indeed is known when the dkms.conf is evaluated for a kernel
				continue
			case 1:
			default:
				return us, fmt.Errorf("%q and %q are both of the module %q, which %q may need; name the one to take as a source",
					match[0].from, match[1].from, need, us[i].source.Module)
			}
			source, err := builder.OpenSource(ctx, match[0].from, o)
			if err != nil {
				return us, err
			}
			us = append(us, unit{source: source, from: match[0].from, may: input.mayDepend(source, false)})
		}
	}
	for i := range us {
		if err := us.reach(i, []int{i}); err != nil {
			us[i].err = &exitError{code: exitDepends, err: err}
		}
	}
	for i := range us {
		if us[i].err != nil {
			us[i].needs = nil
		}
	}
	return us, nil
}

// reach adds to the needs of a path's first unit what its last one may need.
func (us units) reach(from int, path []int) error {
	last := path[len(path)-1]
	for _, name := range us[last].may {
		i := us.find(name)
		if i < 0 || slices.Contains(us[from].needs, i) {
			continue
		}
		if i == from {
			var names []string
			for _, p := range append(path, from) {
				names = append(names, us[p].source.Module)
			}
			return fmt.Errorf("BUILD_DEPENDS go in a circle: %s", strings.Join(names, " needs "))
		}
		if slices.Contains(path, i) { // a circle that this one is not in: it is found from there
			continue
		}
		if err := us.reach(from, append(slices.Clone(path), i)); err != nil {
			return err
		}
		us[from].needs = append(us[from].needs, i)
	}
	return nil
}

// order gives all units, each after those that it needs, otherwise as they are.
func (us units) order() []int {
	out := make([]int, 0, len(us))
	for len(out) < len(us) {
		for i := range us {
			missing := func(n int) bool { return !slices.Contains(out, n) }
			if missing(i) && !slices.ContainsFunc(us[i].needs, missing) {
				out = append(out, i)
				break
			}
		}
	}
	return out
}

// offer is a source in a folder of --depends.
type offer struct{ module, from string }

// offersOf looks for sources right below a folder, and for the folder itself: it may be one. What is no source is passed over.
func offersOf(ctx context.Context, dir string, o builder.SourceOptions) ([]offer, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var out []offer
	paths := []string{dir}
	for _, e := range entries {
		paths = append(paths, filepath.Join(dir, e.Name()))
	}
	for _, path := range paths {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		info, err := os.Stat(path)
		switch {
		case err != nil:
			continue
		case info.IsDir():
			h, err := readHeader(filepath.Join(path, "dkms.conf"))
			if err == nil {
				out = append(out, offer{h.Name, path})
			}
		case info.Mode().IsRegular() && isArchive(path):
			if source, err := builder.OpenSource(ctx, path, o); err == nil {
				out = append(out, offer{source.Module, path})
				source.Close()
			}
		}
	}
	return out, nil
}

func isArchive(path string) bool {
	for _, end := range []string{".deb", ".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.zst"} {
		if strings.HasSuffix(path, end) {
			return true
		}
	}
	return false
}

func readHeader(path string) (dkms.Header, error) {
	info, err := os.Stat(path)
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a file")
	}
	if err != nil {
		return dkms.Header{}, err
	}
	f, err := os.Open(path)
	if err != nil {
		return dkms.Header{}, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, dkms.MaxConf+1))
	if err != nil {
		return dkms.Header{}, err
	}
	return dkms.Read(text)
}
