package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
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
			name: "listing the kernels of a suite, warm", quick: true,
			prepare: func(context.Context) error { return nil },
			ours: func(ctx context.Context) (sample, error) {
				return b.run(ctx, b.cache, 0, "kernels", "debian/bookworm", "--offline")
			},
			asked: limit{Total: 0.05},
		},
		{
			name: "locking all kernels of two suites, their indexes there", quick: true,
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

// parserRows are about reading an index of 100,000 packages on one processor: what is published is smaller, so it is a benchmark of Go's
// that makes one and reads it, in a process of its own for each run.
func (b *bench) parserRows() []row {
	var rows []row
	for _, p := range []struct {
		index, in, benchmark string
		quick                bool
	}{
		{"APT, plain", "kernels/deb", "^BenchmarkIndex$/^plain$", true},
		{"APT, gzip", "kernels/deb", "^BenchmarkIndex$/^gzip$", false},
		{"APT, xz", "kernels/deb", "^BenchmarkIndex$/^xz$", false}, // which xz makes in 10 s
		{"RPM, gzip", "kernels/rpm", "^BenchmarkIndex$/^gz$", true},
		{"RPM, zstd", "kernels/rpm", "^BenchmarkIndex$/^zst$", false},
		{"Arch, zstd", "kernels/pacman", "^BenchmarkIndex$", true},
	} {
		program := filepath.Join(b.work, filepath.Base(p.in)+".test")
		rows = append(rows, row{
			name: "index of 100,000 packages, " + p.index, quick: p.quick,
			prepare: func(ctx context.Context) error {
				if _, err := os.Stat(program); err == nil { // for another row
					return nil
				}
				_, err := b.output(ctx, "go", "test", "-c", "-o", program, "./"+p.in)
				return err
			},
			ours: func(ctx context.Context) (sample, error) {
				text, err := b.output(ctx, program, "-test.run", "^$", "-test.bench", p.benchmark, "-test.benchtime", "1x")
				if err != nil {
					return sample{}, err
				}
				return parseBenchmark(text)
			},
			asked: limit{Total: 1, Peak: 100},
		})
	}
	return rows
}

// parseBenchmark reads what a program with one benchmark prints (golang.org/design/14313-benchmark-format): beside the time it has the
// most memory, as "peak-MB".
func parseBenchmark(text string) (sample, error) {
	var s sample
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		if s != (sample{}) {
			return s, fmt.Errorf("there is more than one benchmark in %q", text)
		}
		for i := 2; i+1 < len(f); i += 2 {
			value, err := strconv.ParseFloat(f[i], 64)
			if err != nil {
				return s, fmt.Errorf("the benchmark says %q: %w", line, err)
			}
			switch f[i+1] {
			case "ns/op":
				s.Seconds = value / 1e9
			case "peak-MB":
				s.PeakMB = value
			}
		}
	}
	if s.Seconds == 0 || s.PeakMB == 0 {
		return s, fmt.Errorf("no benchmark's time and memory in %q", text)
	}
	return s, nil
}
