package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// machineMemory is what each virtual machine has.
const machineMemory = "512M"

// trialRows are about loading the module in virtual machines that run its kernels, without KVM.
func (b *bench) trialRows() []row {
	newest := b.releases[:1]
	ready := func(releases []string) func(context.Context) error {
		return func(ctx context.Context) error {
			if _, err := exec.LookPath("qemu-system-x86_64"); err != nil {
				return &unavailable{"there is no qemu here: it's in Debian's qemu-system-x86"}
			}
			// The first downloads images, and finds out whether KVM works.
			_, err := b.offlineFirst(ctx, "test", b.source, "--kernels", list(releases...), "--mem", machineMemory)
			if err != nil {
				return err
			}
			_, err = b.tested(ctx, releases)
			return err
		}
	}
	one := func(ctx context.Context) (sample, error) { return b.tested(ctx, newest) }
	return []row{
		{
			name: "test of one module, TCG, 512 MB", quick: true,
			prepare: ready(newest),
			ours:    one,
			asked:   limit{Total: 6},
		},
		{
			name:    "test of one module, seconds of processors",
			prepare: ready(newest),
			ours: func(ctx context.Context) (sample, error) {
				s, err := one(ctx)
				s.Seconds = s.Busy
				return s, err
			},
			asked: limit{Total: 5},
		},
		{
			name: "test on six kernels", against: "on one",
			prepare: ready(b.releases),
			ours:    func(ctx context.Context) (sample, error) { return b.tested(ctx, b.releases) },
			other:   one,
			asked:   limit{Ratio: 3.5},
		},
	}
}

// tested times the tool from the command to the verdicts on the module: it loads, unloads, and does so again, on each kernel in a machine of
// its own. What it tests is built, and all packages are there.
func (b *bench) tested(ctx context.Context, releases []string) (sample, error) {
	if _, _, err := b.build(ctx, releases); err != nil { // another row may have removed the results
		return sample{}, err
	}
	s, text, err := b.text(ctx, b.cache, 0, "test", b.source, "--kernels", list(releases...), "--mem", machineMemory, "--offline")
	if err != nil {
		return s, err
	}
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) < 2 || f[1] != "loads" {
			return s, fmt.Errorf("the module doesn't load: %s", strings.TrimSpace(line))
		}
		if !strings.HasSuffix(strings.TrimSpace(line), "tcg") {
			return s, &unavailable{"KVM works here: what is asked for is about machines without it"}
		}
	}
	if got := strings.Count(string(text), "\n"); got != len(releases) {
		return s, fmt.Errorf("%d kernels have a verdict; want %d:\n%s", got, len(releases), text)
	}
	return s, nil
}
