package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
)

// suites are those whose kernels are locked all at once: what is asked for is about 50 at least.
const suites = "debian/bookworm:*,debian/trixie:*"

// indexRows are about what is done with indexes that are there.
func (b *bench) indexRows() []row {
	lock := func(ctx context.Context, args ...string) (sample, error) {
		return b.run(ctx, b.cache, 0, append([]string{"lock", b.source, "--kernels", suites, "--out", b.folder("lock")}, args...)...)
	}
	return []row{
		{
			name:    "listing the kernels of a suite, warm",
			prepare: func(context.Context) error { return nil },
			ours: func(ctx context.Context) (sample, error) {
				return b.run(ctx, b.cache, 0, "kernels", "debian/bookworm", "--offline")
			},
			asked: limit{Total: 0.05},
		},
		{
			name: "locking all kernels of two suites, their indexes there",
			prepare: func(ctx context.Context) error {
				_, text, err := b.text(ctx, b.cache, 0, "kernels", suites)
				if n := bytes.Count(text, []byte("\n")); err == nil && n < 50 {
					err = fmt.Errorf("%s has %d kernels: the row is about 50 at least", suites, n)
				}
				if err == nil {
					_, err = lock(ctx)
				}
				return err
			},
			ours: func(ctx context.Context) (sample, error) {
				if err := os.RemoveAll(filepath.Join(b.cache, "index", "debian", "memo")); err != nil { // what was answered before
					return sample{}, err
				}
				return lock(ctx, "--offline")
			},
			asked: limit{Total: 2},
		},
	}
}
