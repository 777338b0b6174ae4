package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

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

// layoutDirs are the files and folders of the layout directories among some references, empty ones aside: they may lie in a source, or be
// it, and are no part of it. moduleWord in one stands for any name.
func layoutDirs(references ...string) (out []string) {
	for _, text := range references {
		ref, err := registry.Parse(text)
		if err != nil || !ref.IsLayout() { // who opens it says what is wrong
			continue
		}
		dirs := []string{strings.TrimPrefix(ref.Repository(), registry.Layout)}
		if strings.Contains(dirs[0], moduleWord) {
			pattern := strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`, moduleWord, "*").Replace(dirs[0])
			if dirs, err = filepath.Glob(pattern); err != nil {
				continue
			}
			dirs = slices.DeleteFunc(dirs, func(dir string) bool { return !isLayout(dir) })
		}
		for _, dir := range dirs {
			out = append(out, dir)
			if isLayout(dir) {
				for _, name := range []string{ocispec.ImageBlobsDir, ocispec.ImageIndexFile, ocispec.ImageLayoutFile, ".partial"} {
					out = append(out, filepath.Join(dir, name))
				}
			}
		}
	}
	return out
}

func isLayout(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, ocispec.ImageLayoutFile))
	return err == nil
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
