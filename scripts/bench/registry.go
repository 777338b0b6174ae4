package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/registrytest"
)

// bigModule is how many bytes the module has that is pushed and pulled: six of them are 50 MB.
const bigModule = 50_000_000 / 6

// hugeModule is how many bytes that one has by which it's seen that memory doesn't grow with size.
const hugeModule = 300_000_000

// registryRows are about a real registry on the loopback device, with its files on this disk.
func (b *bench) registryRows() []row {
	return []row{
		{
			name: "push of six kernels' modules, 50 MB", against: "crane push", warm: true, quick: true,
			prepare: b.warmRegistry,
			ours: func(ctx context.Context) (sample, error) {
				return b.run(ctx, b.publisher, 0, "push", b.repository("ours"), "big/1") // a source of 8 MB needn't be read
			},
			other: func(ctx context.Context) (sample, error) {
				return b.crane(ctx, "push", "--index", b.layout, b.repository("crane")+":1")
			},
			asked: limit{Ratio: 1.1, Peak: 100},
		},
		{
			name: "pull of the same, 50 MB", against: "crane pull", warm: true, quick: true,
			prepare: b.warmRegistry,
			ours: func(ctx context.Context) (sample, error) {
				return b.run(ctx, b.publisher, 0, "pull", b.pushed+":1", "--kernel", "debian/bookworm:*", "--out", b.folder("out"))
			},
			other: func(ctx context.Context) (sample, error) {
				return b.crane(ctx, "pull", "--format", "oci", b.pushed+":1", b.folder("pulled"))
			},
			asked: limit{Ratio: 1.1, Peak: 100},
		},
		{
			name:    "push and pull of a module of 300 MB",
			prepare: b.prepareHuge,
			ours: func(ctx context.Context) (sample, error) {
				repository := b.repository("huge")
				push, err := b.run(ctx, b.publisher, 0, "push", repository, "huge/1")
				if err != nil {
					return push, err
				}
				out := b.folder("out")
				defer os.RemoveAll(out) // it's large
				pull, err := b.run(ctx, b.publisher, 0, "pull", repository+":1", "--kernel", list(b.releases[0]), "--out", out)
				return sample{Seconds: push.Seconds + pull.Seconds, PeakMB: max(push.PeakMB, pull.PeakMB)}, err
			},
			asked: limit{Peak: 100},
		},
		{
			name: "pull of one prebuilt module", quick: true,
			prepare: func(ctx context.Context) error {
				if err := b.warmRegistry(ctx); err != nil {
					return err
				}
				b.prebuilt = b.repository("prebuilt")
				return b.online(ctx, b.releases, "--push", b.prebuilt)
			},
			ours: func(ctx context.Context) (sample, error) {
				return b.run(ctx, b.publisher, 0, "pull", b.prebuilt+":"+b.moduleVersion, "--kernel", list(b.releases[0]), "--out", b.folder("out"))
			},
			asked: limit{Total: 0.1},
		},
		{
			name: "hit in a shared cache", quick: true,
			prepare: func(ctx context.Context) error {
				if err := b.warmRegistry(ctx); err != nil {
					return err
				}
				b.shared = b.repository("cache")
				return b.online(ctx, b.releases[:1], "--cache-to", b.shared)
			},
			ours: func(ctx context.Context) (sample, error) {
				cache, err := b.runner()
				if err != nil {
					return sample{}, err
				}
				out := b.folder("out")
				s, text, err := b.text(ctx, cache, 0, "build", b.source, "--kernels", list(b.releases[0]), "--out", out, "--cache-from", b.shared)
				if err == nil && !strings.Contains(string(text), " cached ") {
					err = fmt.Errorf("it was no hit: %s", text)
				}
				return s, err
			},
			asked: limit{Total: 0.15},
		},
	}
}

// warmRegistry starts a registry, and builds and pushes the big module for six kernels.
func (b *bench) warmRegistry(ctx context.Context) error {
	if b.pushed != "" {
		return nil
	}
	server, err := registrytest.Serve(registrytest.Options{Dir: filepath.Join(b.work, "registry")})
	if err != nil {
		return &unavailable{err.Error()}
	}
	b.registry = server
	if b.craneProgram, err = registrytest.Program("crane"); err != nil {
		return &unavailable{err.Error()}
	}
	if b.publisher, err = b.runner(); err != nil {
		return err
	}
	b.big = filepath.Join(b.work, "big")
	if err := writeModule(b.big, bigModule); err != nil {
		return err
	}
	if _, err := b.run(ctx, b.publisher, 0, "build", b.big, "--kernels", list(b.releases...), "--out", b.folder("out"), "--offline"); err != nil {
		return err
	}
	pushed := b.repository("big")
	if _, err := b.run(ctx, b.publisher, 0, "push", pushed, b.big); err != nil {
		return err
	}
	// What crane pushes is the same: images, index, and what is attached.
	b.layout = b.folder("layout")
	if _, err := b.run(ctx, b.publisher, 0, "push", "oci:"+b.layout, b.big); err != nil {
		return err
	}
	b.pushed = pushed
	return nil
}

// prepareHuge builds the huge module.
func (b *bench) prepareHuge(ctx context.Context) error {
	if err := b.warmRegistry(ctx); err != nil {
		return err
	}
	source := filepath.Join(b.work, "huge")
	if err := writeModule(source, hugeModule); err != nil {
		return err
	}
	_, err := b.run(ctx, b.publisher, 0, "build", source, "--kernels", list(b.releases[0]), "--out", b.folder("out"), "--offline")
	return err
}

// runner is a cache folder without results, which other rows don't remove. Indexes and header images are those of the bench.
func (b *bench) runner() (string, error) {
	dir := b.folder("runner")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	for _, part := range []string{"images", "index"} {
		if err := os.Symlink(filepath.Join(b.cache, part), filepath.Join(dir, part)); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// writeModule writes a source, named as its folder, whose module is of that size, and of bytes that nothing makes smaller.
func writeModule(dir string, size int) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	name := filepath.Base(dir)
	blob := make([]byte, size)
	rand.NewChaCha8([32]byte{}).Read(blob) // the same each time; it never fails
	for file, text := range map[string]string{
		"Makefile": "obj-m := " + name + ".o\n",
		"dkms.conf": fmt.Sprintf(`PACKAGE_NAME="%[1]s"
PACKAGE_VERSION="1"
BUILT_MODULE_NAME[0]="%[1]s"
DEST_MODULE_LOCATION[0]="/updates"
`, name),
		name + ".c": fmt.Sprintf(`// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>
asm(".pushsection .rodata\n.incbin \"/var/lib/dkms/%s/1/build/blob\"\n.popsection\n");
MODULE_LICENSE("GPL");
`, name),
	} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "blob"), blob, 0o644)
}

// online builds the module with the loopback device, and with flags that are about registries.
func (b *bench) online(ctx context.Context, releases []string, args ...string) error {
	args = append([]string{"build", b.source, "--kernels", list(releases...), "--out", b.folder("out")}, args...)
	_, err := b.run(ctx, b.publisher, 0, args...)
	return err
}

// repository is one that nothing has been pushed to.
func (b *bench) repository(name string) string {
	b.count++
	return fmt.Sprintf("%s/bench/%s-%d", b.registry.Host, name, b.count)
}

func (b *bench) crane(ctx context.Context, args ...string) (sample, error) {
	unix.Sync()
	start := time.Now()
	_, err := b.output(ctx, b.craneProgram, args...)
	return sample{Seconds: time.Since(start).Seconds()}, err
}

func (b *bench) stopRegistry() error {
	if b.registry == nil {
		return nil
	}
	return b.registry.Close()
}
