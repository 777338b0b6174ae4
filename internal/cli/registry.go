package cli

import (
	"errors"
	"fmt"
	"slices"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
)

// registries is the client of all registries. The cache keeps downloads that are cut off.
func (a *app) registries() (*registry.Client, error) {
	if a.client != nil {
		return a.client, nil
	}
	dir, err := a.dir("downloads")
	if err != nil {
		return nil, err
	}
	a.client, err = registry.New(registry.Options{Dir: dir, Insecure: a.insecure, Offline: a.offline})
	return a.client, err
}

// ofRegistry tells whether an error is about a registry or what it has.
func ofRegistry(err error) bool {
	return slices.ContainsFunc([]error{registry.ErrNotFound, registry.ErrDenied, registry.ErrUnavailable, registry.ErrAltered, registry.ErrRefused,
		artifact.ErrInvalid}, func(kind error) bool { return errors.Is(err, kind) })
}

// registryError gives an error about a registry its exit code, and says what to do next.
func registryError(err error) error {
	code, hint := exitUsage, ""
	switch {
	case errors.Is(err, registry.ErrOffline):
		hint = "leave --offline away, or name a layout directory as oci:DIR"
	case errors.Is(err, registry.ErrNotFound):
		code = exitAbsent
	case errors.Is(err, registry.ErrDenied):
		code, hint = exitRegistry, "log in with 'docker login', or another program that writes Docker's configuration"
	case ofRegistry(err):
		code = exitRegistry
	}
	if hint != "" {
		err = fmt.Errorf("%w; %s", err, hint)
	}
	return &exitError{code: code, err: err}
}
