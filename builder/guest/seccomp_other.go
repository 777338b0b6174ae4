//go:build !amd64 && !arm64

package guest

import (
	"errors"
	"fmt"
	"runtime"
)

func confine() error {
	return fmt.Errorf("%w: no seccomp filter for %s", errors.ErrUnsupported, runtime.GOARCH)
}
