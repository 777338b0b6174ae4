package cli

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/godkms-hermetic/godkms-hermetic/internal/dkmstest"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// makeHost makes the root of a bookworm host: of each kernel a few modules and what depmod makes of them, and two sources.
func makeHost(dir, trees string, list []string) error {
	d, err := dkmstest.Open(dkmstest.Cache())
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "etc"), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "etc/os-release"), []byte("ID=debian\nVERSION_CODENAME=bookworm\n"), 0o644); err != nil {
		return err
	}
	for _, name := range list {
		s, err := kernels.ParseSelector(name)
		if err != nil {
			return err
		}
		from, err := d.Image(context.Background(), kernels.Kernel{Distro: s.Distro, Suite: s.Suite, Arch: kernels.HostArch(), Release: s.Release})
		if err != nil {
			return err
		}
		to := filepath.Join(dir, "lib/modules", s.Release)
		if err := os.MkdirAll(to, 0o755); err != nil {
			return err
		}
		cp := exec.Command("sh", "-c", `cp --parents modules.order modules.builtin modules.builtin.modinfo kernel/drivers/net/dummy.ko* kernel/drivers/net/veth.ko* "$1"`, "sh", to)
		cp.Dir = from
		for _, cmd := range []*exec.Cmd{cp, exec.Command("depmod", "-b", dir, s.Release)} {
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
			}
		}
	}
	src := filepath.Join(dir, "usr/src")
	if err := os.MkdirAll(src, 0o755); err != nil {
		return err
	}
	for from, to := range map[string]string{"hello": "hello-1.0", "importer": "importer-3"} {
		if err := os.CopyFS(filepath.Join(src, to), os.DirFS(filepath.Join(trees, from))); err != nil {
			return err
		}
	}
	return nil
}
