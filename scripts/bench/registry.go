package main

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/registrytest"
)

// bigModule is how many bytes the module has that is pushed and pulled: six of them are 50 MB.
const bigModule = 50_000_000 / 6

// registryRows are about a real registry on the loopback device, with its files on this disk.
func (b *bench) registryRows() []row {
	return []row{
		{
			name: "push of six kernels' modules, 50 MB", against: "crane push", warm: true,
			prepare: b.warmRegistry,
			ours: func(ctx context.Context) (sample, error) {
				return b.run(ctx, b.publisher, 0, "push", b.repository("ours"), "big/1") // a source of 8 MB needn't be read
			},
			other: func(ctx context.Context) (sample, error) {
				return b.crane(ctx, "push", "--index", b.layout, b.repository("crane")+":1")
			},
			asked: limit{Ratio: 1.1},
		},
		{
			name: "pull of the same, 50 MB", against: "crane pull", warm: true,
			prepare: b.warmRegistry,
			ours: func(ctx context.Context) (sample, error) {
				return b.run(ctx, b.publisher, 0, "pull", b.pushed+":1", "--kernel", "debian/bookworm:*", "--out", b.folder("out"))
			},
			other: func(ctx context.Context) (sample, error) {
				return b.crane(ctx, "pull", "--format", "oci", b.pushed+":1", b.folder("pulled"))
			},
			asked: limit{Ratio: 1.1},
		},
		{
			name: "pull of one prebuilt module",
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
			name: "hit in a shared cache",
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
	if err := writeBig(b.big); err != nil {
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

// writeBig writes a source whose module is large, and has bytes that nothing makes smaller.
func writeBig(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	var blob []byte
	for n := uint64(0); len(blob) < bigModule; n++ {
		sum := sha256.Sum256(binary.BigEndian.AppendUint64(nil, n))
		blob = append(blob, sum[:]...)
	}
	for name, text := range map[string]string{
		"blob":     string(blob),
		"Makefile": "obj-m := big.o\n",
		"dkms.conf": `PACKAGE_NAME="big"
PACKAGE_VERSION="1"
BUILT_MODULE_NAME[0]="big"
DEST_MODULE_LOCATION[0]="/updates"
`,
		"big.c": `// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>
asm(".pushsection .rodata\n.incbin \"/var/lib/dkms/big/1/build/blob\"\n.popsection\n");
MODULE_LICENSE("GPL");
`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
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
