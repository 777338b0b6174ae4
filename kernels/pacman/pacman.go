// Package pacman reads signed pacman repositories: it lists their kernels, pins what builds modules for one, and opens Arch packages.
package pacman

import (
	"context"
	"errors"
	"io"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// Distros lists what New takes, each with the archives that Options.Mirrors may name, the main one first.
func Distros() map[string][]string { return nil }

// Provider is a kernels.Provider for one distribution.
type Provider struct{}

var _ kernels.Provider = (*Provider)(nil)

// New makes the provider of a distribution. It touches no network.
func New(distro string, o repo.Options) (*Provider, error) { return nil, errors.ErrUnsupported }

// Suites implements kernels.Provider.
func (p *Provider) Suites() []string { return nil }

// Claims implements kernels.Provider.
func (p *Provider) Claims(release string) []string { return nil }

// Indexes implements kernels.Provider.
func (p *Provider) Indexes(ctx context.Context, suite, arch string) ([]kernels.Index, error) {
	return nil, errors.ErrUnsupported
}

// Kernels implements kernels.Provider.
func (p *Provider) Kernels(ctx context.Context, suite, arch string) ([]kernels.Candidate, error) {
	return nil, errors.ErrUnsupported
}

// Lock implements kernels.Provider.
func (p *Provider) Lock(ctx context.Context, k kernels.Kernel, extra kernels.Extra) (kernels.Lock, error) {
	return kernels.Lock{}, errors.ErrUnsupported
}

// Payload implements kernels.Provider.
func (p *Provider) Payload(pkg io.Reader) (io.ReadCloser, error) { return nil, errors.ErrUnsupported }

// Open implements kernels.Provider.
func (p *Provider) Open(pkg io.Reader) (payload io.ReadCloser, depends []string, err error) {
	return nil, nil, errors.ErrUnsupported
}
