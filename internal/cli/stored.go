package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/cache"
	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// stored is a result in the cache.
type stored struct {
	cache.Info
	meta artifact.Meta
}

func (s stored) kernel() kernels.Kernel { return kernelOf(s.meta) }

func kernelOf(m artifact.Meta) kernels.Kernel {
	return kernels.Kernel{Distro: m.Kernel.Distro, Suite: m.Kernel.Suite, Arch: m.Kernel.Arch, Release: m.Kernel.Release}
}

// storedOf finds what was built of a source, or of a MODULE/VERSION, whatever the source: of each kernel the newest result, in the
// order of the kernels' names. Of those it keeps what selectors name, all if there are none. exclude is no part of the source.
func (a *app) storedOf(ctx context.Context, results *cache.Dir, src string, selectors []kernels.Selector, exclude []string) ([]stored, error) {
	module, version, named := strings.Cut(src, "/")
	if _, err := os.Stat(src); err == nil || module == "" || version == "" || strings.Contains(version, "/") {
		named = false
	}
	var digest v1.Hash
	if !named {
		source, err := a.openSource(ctx, src, exclude)
		if err != nil {
			return nil, err
		}
		module, version, digest = source.Module, source.Version, source.Digest
		source.Close()
	}
	infos, err := results.List(ctx)
	if err != nil {
		return nil, err
	}
	newest := map[kernels.Kernel]stored{}
	others := false // results of another state of the source
	for _, i := range infos {
		img, err := results.Peek(ctx, i.Key)
		if errors.Is(err, cache.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		m, _, err := artifact.ReadMeta(img)
		if err != nil || m.Module != module || m.Version != version { // one of an earlier version of this program can be unreadable
			continue
		}
		if digest != (v1.Hash{}) && m.Source != digest {
			others = true
			continue
		}
		if have, ok := newest[kernelOf(m)]; !ok || have.Created.Before(i.Created) {
			newest[kernelOf(m)] = stored{i, m}
		}
	}
	if len(newest) == 0 {
		if others {
			return nil, fmt.Errorf("what was built of %s/%s was not built of this source as it is now; build it again, or name %s/%s to take the newest results of it",
				module, version, module, version)
		}
		return nil, fmt.Errorf("no result of %s/%s is in the cache; build it first", module, version)
	}
	var all []stored
	for _, s := range newest {
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b stored) int { return strings.Compare(a.kernel().String(), b.kernel().String()) })
	out, none := pick(all, stored.kernel, selectors)
	if none != "" {
		var have []string
		for _, s := range all {
			have = append(have, s.kernel().String())
		}
		return nil, fmt.Errorf("no result of %s/%s for %q is in the cache; there are those for %s", module, version, none, strings.Join(have, ", "))
	}
	return out, nil
}

// openSource opens a source as build does: what build hands out into the source's folder by default is no part of it.
func (a *app) openSource(ctx context.Context, src string, exclude []string) (*builder.Source, error) {
	distros, err := a.distros()
	if err != nil {
		return nil, err
	}
	temp, err := a.temp()
	if err != nil {
		return nil, err
	}
	return builder.OpenSource(ctx, src, builder.SourceOptions{
		Temp: temp, Exclude: append([]string{"out", filepath.Dir(temp)}, exclude...), Open: distros["debian"].Open,
	})
}
