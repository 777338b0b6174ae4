package deb

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// These tests run against the real archive, through the mirror of this machine's apt configuration.

// mirrorCache is filled by the first test that needs it and used by the others: indexes are large.
func mirrorCache(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("needs a Debian mirror")
	}
	return filepath.Join(os.TempDir(), "deb-mirror-test")
}

func mirrorProvider(t *testing.T, o Options) *Provider {
	t.Helper()
	o.CacheDir = mirrorCache(t)
	o.Warn = func(s string) { t.Log("warning: " + s) }
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestMirrorSuites(t *testing.T) {
	for _, c := range []struct {
		suite, arch, compiler string
		expired               bool
	}{
		{"bullseye", "amd64", "gcc-10", false},
		{"bookworm", "amd64", "gcc-12", false},
		{"bookworm", "arm64", "gcc-12", false},
		{"trixie", "amd64", "gcc-14", false},
		{"trixie", "arm64", "gcc-14", false},
		{"sid", "amd64", "", true},
	} {
		t.Run(c.suite+" "+c.arch, func(t *testing.T) {
			p := mirrorProvider(t, Options{AcceptExpired: c.expired})
			start := time.Now()
			list, err := p.Kernels(t.Context(), c.suite, c.arch)
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d kernels in %v", len(list), time.Since(start))
			defaults := 0
			for _, k := range list {
				t.Logf("%s %s %s %v", k.Release, k.PackageVersion, k.Compiler, k.Default)
				start := time.Now()
				l, err := p.Lock(t.Context(), k.Kernel, nil)
				if err != nil {
					t.Errorf("Lock(%v): %v", k.Kernel, err)
					continue
				}
				if k.Default {
					defaults++
				}
				took := time.Since(start)
				var size, hsize int64
				for _, q := range slices.Concat(l.Toolchain, l.Headers) {
					size += q.Size
				}
				for _, q := range l.Headers {
					hsize += q.Size
				}
				t.Logf("  %v: %d + %d packages, %d MB, headers %d MB; %s", took, len(l.Toolchain), len(l.Headers), size>>20, hsize>>20, l.Digest())
				if k.Default {
					var names []string
					for _, q := range l.Toolchain {
						names = append(names, q.Name)
					}
					names = append(names, "|")
					for _, q := range l.Headers {
						names = append(names, q.Name)
					}
					t.Log(names)
				}
				if c.compiler != "" && l.Compiler != c.compiler {
					t.Errorf("Lock(%v).Compiler = %q; want %q", k.Kernel, l.Compiler, c.compiler)
				}
			}
			if defaults != 1 {
				t.Errorf("%d kernels of %s are the default; want 1", defaults, c.suite)
			}
		})
	}
}

var _ = []any{tar.NewReader, bytes.NewReader, context.Background, sha256.New, hex.EncodeToString, errors.New, io.EOF, http.Get, exec.Command, strings.Cut, kernels.ErrNotFound}
