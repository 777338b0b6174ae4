package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/host"
)

// statusModules and statusKernels are how much a host has that is asked for its status. DKMS is asked about fewer modules: it takes a
// tenth of a second for each and each kernel.
const statusModules, statusKernels, statusModulesOfDKMS = 50, 5, 4

// statusRows are about a host with many modules.
func (b *bench) statusRows() []row {
	name := func(modules int) string {
		return fmt.Sprintf("status of %d modules x %d kernels", modules, statusKernels)
	}
	return []row{{
		name: name(statusModules), against: fmt.Sprintf("dkms, %d modules", statusModulesOfDKMS), warm: true, quick: true,
		prepare: func(ctx context.Context) error { return b.installMany(ctx) },
		ours: func(ctx context.Context) (sample, error) {
			s, text, err := b.text(ctx, b.cache, 0, "status", "--root", b.many)
			if got := bytes.Count(text, []byte(": installed\n")); err == nil && got != statusModules*statusKernels {
				err = fmt.Errorf("status has %d lines; want %d:\n%s", got, statusModules*statusKernels, text)
			}
			return s, err
		},
		other: b.dkmsStatus,
		asked: limit{Total: 0.02},
	}}
}

// installMany makes two hosts with modules that are installed, as the status sees it: one that has them by this tool, and
// one by dkms. The modules are a few bytes each, which neither reads.
func (b *bench) installMany(ctx context.Context) error {
	if b.many != "" {
		return nil
	}
	many := b.folder("host")
	write := func(path string, content []byte) error {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return os.WriteFile(path, content, 0o644)
	}
	root := filepath.Join(many, "ours")
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	r, err := host.Open(root, host.Options{})
	if err != nil {
		return err
	}
	content := []byte("a module")
	digest, size, err := v1.SHA256(bytes.NewReader(content))
	if err != nil {
		return err
	}
	for i := range statusModules {
		module := fmt.Sprintf("module%02d", i)
		source := "/usr/src/" + module + "-1.0"
		conf := fmt.Appendf(nil, "PACKAGE_NAME=%s\nPACKAGE_VERSION=1.0\nBUILT_MODULE_NAME=%[1]s\nDEST_MODULE_LOCATION=/updates\n", module)
		if err := write(filepath.Join(root, source, "dkms.conf"), conf); err != nil {
			return err
		}
		if err := r.Add(ctx, host.Registration{Module: module, Version: "1.0", Source: source, Added: time.Now().UTC()}); err != nil {
			return err
		}
		for _, release := range b.releases[:statusKernels] {
			file := "updates/dkms/" + module + ".ko"
			rec := host.Record{
				Module: module, Version: "1.0", State: host.Installed,
				Kernel: artifact.Kernel{Distro: "debian", Suite: "bookworm", Arch: "amd64", Release: release},
				Key:    digest, Artifact: digest, Files: []host.File{{Path: file, Size: size, Digest: digest, Module: digest}},
				Folders: []string{"updates", "updates/dkms"}, Changed: time.Now().UTC(),
			}
			text, err := json.MarshalIndent(rec, "", "  ")
			if err != nil {
				return err
			}
			// As host.StateDir says; Install alone makes such a record, of a module that fits the kernel.
			if err := write(filepath.Join(root, host.StateDir, "modules", module, "1.0", release+".amd64.json"), text); err != nil {
				return err
			}
			if err := write(filepath.Join(root, "lib/modules", release, file), content); err != nil {
				return err
			}
			if i >= statusModulesOfDKMS {
				continue
			}
			tree := filepath.Join(many, "dkms", module)
			if err := write(filepath.Join(tree, "1.0", release, "x86_64/module", module+".ko"), content); err != nil {
				return err
			}
			if err := os.Symlink("1.0/"+release+"/x86_64", filepath.Join(tree, "kernel-"+release+"-x86_64")); err != nil {
				return err
			}
		}
		if i < statusModulesOfDKMS {
			if err := os.Symlink(source, filepath.Join(many, "dkms", module, "1.0/source")); err != nil {
				return err
			}
		}
	}
	b.many, b.manyOfDKMS = root, filepath.Join(many, "dkms")
	return nil
}

// dkmsStatusScript is run by bash, in bubblewrap.
const dkmsStatusScript = `set -e
echo ready
read
dkms status >&2`

func (b *bench) dkmsStatus(ctx context.Context) (sample, error) {
	s, log, err := b.timed(ctx, b.dkmsRoot, []string{path}, []string{
		"--ro-bind", b.manyOfDKMS, "/var/lib/dkms",
		"--ro-bind", filepath.Join(b.many, "usr/src"), "/usr/src",
		"--ro-bind", filepath.Join(b.many, "lib/modules"), "/usr/lib/modules",
	}, dkmsStatusScript)
	if got := strings.Count(log, ": installed\n"); err == nil && got != statusModulesOfDKMS*statusKernels {
		err = fmt.Errorf("dkms's status has %d lines; want %d:\n%s", got, statusModulesOfDKMS*statusKernels, log)
	}
	return s, err
}
