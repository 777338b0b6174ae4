package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/godkms-hermetic/godkms-hermetic/internal/dkmstest"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// prove asks the kernel's own tools about modules that dkms built and the tool refused: depmod whether every symbol is there with
// the version that the module wants, beside the modules of the kernel's own package; modinfo whether the vermagic is the one that
// those have. The refusal is confirmed when a module that they complain about is one that the tool names.
func (c *comparison) prove(ctx context.Context, k kernels.Kernel, root *dkmstest.Root, modules map[string][]byte, ours outcome) (proof string, confirmed bool, err error) {
	image, err := c.dkms.Image(ctx, k)
	if err != nil {
		return "", false, err
	}
	symvers, err := root.File("usr/src/linux-headers-" + k.Release + "/Module.symvers")
	if err != nil {
		return "", false, err
	}
	base := c.folder("modules")
	defer os.RemoveAll(base)
	dir := filepath.Join(base, "lib/modules", k.Release)
	mine := filepath.Join(dir, "updates/dkms")
	if err := os.MkdirAll(mine, 0o755); err != nil {
		return "", false, err
	}
	for name, b := range modules {
		if err := os.WriteFile(filepath.Join(mine, name), b, 0o644); err != nil {
			return "", false, err
		}
	}
	entries, err := os.ReadDir(image)
	if err != nil {
		return "", false, err
	}
	for _, e := range entries {
		if err := os.Symlink(filepath.Join(image, e.Name()), filepath.Join(dir, e.Name())); err != nil && !errors.Is(err, fs.ErrExist) {
			return "", false, err
		}
	}
	cmd := command(ctx, "depmod", "-n", "-e", "-E", symvers, "-b", base, k.Release)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err = cmd.Run()
	if err != nil {
		return "", false, fmt.Errorf("depmod: %w: %s", err, lastLine(stderr.String()))
	}
	said := map[string][]string{}
	for line := range strings.Lines(stderr.String()) {
		for name := range modules {
			if strings.Contains(line, "/updates/dkms/"+name+" ") {
				said[name] = append(said[name], strings.TrimSpace(strings.ReplaceAll(line, base, "")))
			}
		}
	}
	want, err := ownVermagic(ctx, image)
	if err != nil {
		return "", false, err
	}
	for name := range modules {
		got, err := output(ctx, "modinfo", "-F", "vermagic", filepath.Join(mine, name))
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			said[name] = append(said[name], fmt.Sprintf("modinfo: %s: %s", name, lastLine(string(exit.Stderr))))
			continue
		}
		if err != nil {
			return "", false, err
		}
		if got = strings.TrimSpace(got); got != want {
			said[name] = append(said[name], fmt.Sprintf("modinfo: %s has vermagic %q; the kernel's own modules have %q", name, got, want))
		}
	}
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(said)) {
		lines = append(lines, said[name]...)
		confirmed = confirmed || ours.Verdict == failed && strings.Contains(ours.Reason, name)
	}
	if len(lines) == 0 {
		lines = []string{"depmod and modinfo have nothing against these modules"}
	}
	return strings.Join(lines, "\n"), confirmed, nil
}

// ownVermagic is that of a module of the kernel's own package.
func ownVermagic(ctx context.Context, image string) (string, error) {
	found := ""
	err := filepath.WalkDir(filepath.Join(image, "kernel/fs"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.Contains(d.Name(), ".ko") {
			found = path
			return fs.SkipAll
		}
		return err
	})
	if err != nil {
		return "", err
	}
	out, err := output(ctx, "modinfo", "-F", "vermagic", found)
	return strings.TrimSpace(out), err
}
