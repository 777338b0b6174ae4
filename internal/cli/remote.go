package cli

import (
	"errors"
	"fmt"

	"github.com/spf13/pflag"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/cache"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
)

// sharedOptions say which repositories are caches of results that machines share.
type sharedOptions struct {
	from []string
	to   string
}

func (o *sharedOptions) flags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.from, "cache-from", nil, "shared cache, `REPO` of a registry or oci:DIR, to look for results; can be repeated, and goes in that order")
	f.StringVar(&o.to, "cache-to", "", "shared cache, `REPO` of a registry or oci:DIR, to send results to, where it lacks them")
}

// sharedCaches are what the options name.
type sharedCaches struct {
	from []*builder.Remote
	to   *builder.Remote
	refs []registry.Reference
}

// shared opens the caches of the options. One that is on the network is none when offline. Nothing is asked of one yet.
func (a *app) shared(o sharedOptions, temp string) (s sharedCaches, err error) {
	if len(o.from) == 0 && o.to == "" {
		return s, nil
	}
	client, err := a.registries()
	if err != nil {
		return s, err
	}
	opened := map[string]*builder.Remote{} // one that is read and written is left alone as one
	open := func(flag, text string) (*builder.Remote, error) {
		ref, err := registry.Parse(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", flag, err)
		}
		name := ref.Repository()
		if ref.Identifier() != "" {
			return nil, fmt.Errorf("%s: reference %q: the results in a shared cache have tags of their own: write %s", flag, text, name)
		}
		if r, ok := opened[name]; ok {
			return r, nil
		}
		repo, err := client.Open(ref)
		if errors.Is(err, registry.ErrOffline) {
			a.board.Warn(fmt.Sprintf("%s: %q is not used: offline", flag, text))
			opened[name] = nil
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", flag, err)
		}
		s.refs = append(s.refs, ref)
		opened[name] = builder.NewRemote(name, cache.NewRegistry(repo, cache.RegistryOptions{Temp: temp, Warn: a.board.Warn}), a.board.Warn)
		return opened[name], nil
	}
	for _, text := range o.from {
		had := len(opened)
		r, err := open("--cache-from", text)
		if err != nil {
			return s, err
		}
		if r != nil && len(opened) > had { // once is enough
			s.from = append(s.from, r)
		}
	}
	if o.to != "" {
		s.to, err = open("--cache-to", o.to)
	}
	return s, err
}
