package rpm

import (
	"context"
	"fmt"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// Image implements kernels.Provider.
func (p *Provider) Image(_ context.Context, l kernels.Lock) (kernels.Image, error) {
	return kernels.Image{}, fmt.Errorf("image of %s: %w", l.Kernel, kernels.ErrNotFound)
}
