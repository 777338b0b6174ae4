package main

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/dkmstest"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// installRows are about a host that has the newest kernel, all of its modules.
func (b *bench) installRows() []row {
	return []row{{
		name: "install of a prebuilt module", against: "depmod alone", warm: true, quick: true, // depmod reads all modules: the first to do so after a while has them read from the disk
		prepare: b.prepareInstall,
		ours: func(ctx context.Context) (sample, error) {
			if _, err := b.onHost(ctx, "uninstall", "--no-depmod"); err != nil {
				return sample{}, err
			}
			unix.Sync()
			return b.onHost(ctx, "install")
		},
		other: func(ctx context.Context) (sample, error) {
			start := time.Now()
			_, err := b.output(ctx, "depmod", "-b", b.installed, b.releases[0])
			return sample{Seconds: time.Since(start).Seconds()}, err
		},
		asked: limit{More: 0.05},
	}}
}

// onHost runs a command of the tool for the module and the newest kernel.
func (b *bench) onHost(ctx context.Context, name string, flags ...string) (sample, error) {
	args := append([]string{name, b.module + "/" + b.moduleVersion, "--kernel", b.releases[0], "--root", b.installed, "--offline"}, flags...)
	return b.run(ctx, b.cache, 0, args...)
}

// prepareInstall makes the host, and installs the module there, which builds it once.
func (b *bench) prepareInstall(ctx context.Context) error {
	if b.installed != "" {
		return nil
	}
	d, err := dkmstest.Open(b.cache)
	if err != nil {
		return err
	}
	modules, err := d.Image(ctx, kernels.Kernel{Distro: "debian", Suite: "bookworm", Arch: "amd64", Release: b.releases[0]})
	if err != nil {
		return err
	}
	root := b.folder("host")
	lib, source := filepath.Join(root, "lib/modules"), filepath.Join(root, "usr/src", b.module+"-"+b.moduleVersion)
	for _, dir := range []string{lib, filepath.Join(root, "etc"), filepath.Dir(source)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(filepath.Join(root, "etc/os-release"), []byte("ID=debian\nVERSION_CODENAME=bookworm\n"), 0o644); err != nil {
		return err
	}
	for from, to := range map[string]string{modules: filepath.Join(lib, b.releases[0]), b.source: source} {
		if _, err := b.output(ctx, "cp", "-a", from, to); err != nil {
			return err
		}
	}
	b.installed = root
	_, err = b.onHost(ctx, "install")
	return err
}
