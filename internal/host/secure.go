package host

import (
	"bufio"
	"crypto"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/kmod"
)

// Enforced says why the root's kernel of a release would refuse a module without a signature, as "Secure Boot is on"; empty if
// nothing says that it would. How this machine was started counts for every kernel of its own root.
func (r *Root) Enforced(release string) (why string, err error) {
	lockdown := r.readSys("kernel/security/lockdown")
	switch {
	case strings.TrimSpace(r.readSys("module/module/parameters/sig_enforce")) == "Y":
		return "it runs with module.sig_enforce", nil
	case strings.Contains(lockdown, "[integrity]"), strings.Contains(lockdown, "[confidentiality]"):
		return "it is locked down", nil
	case r.SecureBoot() && !strings.Contains(lockdown, "[none]"): // not every kernel is locked down by Secure Boot
		return "Secure Boot is on", nil
	}
	config, err := r.kernelConfig(release)
	if err != nil {
		return "", err
	}
	for _, option := range []string{
		"CONFIG_MODULE_SIG_FORCE", "CONFIG_LOCK_DOWN_KERNEL_FORCE_INTEGRITY", "CONFIG_LOCK_DOWN_KERNEL_FORCE_CONFIDENTIALITY",
	} {
		if config[option] == "y" {
			return "it was built with " + option, nil
		}
	}
	return "", nil
}

// SecureBoot tells whether the firmware says that this machine was started with Secure Boot. For a root that isn't this machine's own
// it is false.
func (r *Root) SecureBoot() bool {
	// Four bytes of attributes, and the value: chapters 3.3 and 8.2 of the UEFI specification, and the kernel's efivarfs.rst.
	v := r.readSys("firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c")
	return len(v) == 5 && v[4] == 1
}

// readSys reads a file of sysfs. One that isn't there, or is for root alone, says nothing.
func (r *Root) readSys(name string) string {
	sys := r.o.Sys
	if sys == "" {
		if !r.IsHost() {
			return ""
		}
		sys = "/sys"
	}
	b, err := os.ReadFile(filepath.Join(sys, name))
	if err != nil {
		return ""
	}
	return string(b)
}

// signatureHash is the one that a kernel's own modules are signed with, CONFIG_MODULE_SIG_HASH: as its configuration says, or
// one of its modules, which native gives, nil if there is none. Where neither says, the kernel was hardly built to verify any, and
// it is SHA-256. It wraps ErrSigning for a hash that isn't signed with.
func (r *Root) signatureHash(release string, native func() *kmod.Module) (crypto.Hash, error) {
	config, err := r.kernelConfig(release)
	if err != nil {
		return 0, err
	}
	if hash, err := SignatureHash(config, release); hash != 0 || err != nil {
		return hash, err
	}
	if m := native(); m != nil && m.Signature.Hash != 0 {
		return m.Signature.Hash, nil
	}
	return crypto.SHA256, nil
}

// SignatureHash is CONFIG_MODULE_SIG_HASH of a kernel's configuration, or 0 if that has none. It wraps ErrSigning for a hash that isn't
// signed with.
func SignatureHash(config map[string]string, release string) (crypto.Hash, error) {
	name := strings.Trim(config["CONFIG_MODULE_SIG_HASH"], `"`)
	if name == "" {
		return 0, nil
	}
	hash, err := kmod.HashByName(name)
	if err != nil {
		return 0, fmt.Errorf("%w as the kernel %s wants it: %w", ErrSigning, release, err)
	}
	return hash, nil
}

// maxConfig is for a kernel's configuration, in bytes. Debian's has 280 kB.
const maxConfig = 16 << 20

// kernelConfig reads a kernel's configuration, from wherever distributions have it. It is empty where there is none.
func (r *Root) kernelConfig(release string) (map[string]string, error) {
	if err := CheckName("kernel", release); err != nil {
		return nil, err
	}
	for _, name := range []string{"/boot/config-" + release, "/lib/modules/" + release + "/config", "/lib/modules/" + release + "/build/.config"} {
		path, err := r.Path(name)
		if err != nil {
			return nil, err
		}
		f, _, err := openRegular(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("the configuration of kernel %s: %w", release, err)
		}
		defer f.Close()
		config, err := ReadConfig(f)
		if err != nil {
			return nil, fmt.Errorf("the configuration of kernel %s: %s: %w", release, path, err)
		}
		return config, nil
	}
	return nil, nil
}

// ReadConfig reads the options that a kernel's configuration sets, with their values as they are there.
func ReadConfig(r io.Reader) (map[string]string, error) {
	config := map[string]string{}
	s := bufio.NewScanner(io.LimitReader(r, maxConfig))
	for s.Scan() {
		if key, value, ok := strings.Cut(s.Text(), "="); ok && strings.HasPrefix(key, "CONFIG_") {
			config[key] = value
		}
	}
	return config, s.Err()
}

// readRegular is openRegular that reads the file, or as much of it as limit says, in bytes.
func readRegular(path string, limit int64) ([]byte, error) {
	f, _, err := openRegular(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// openRegular opens a file for reading that is no link, device or pipe, and gives its size.
func openRegular(path string) (*os.File, int64, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", path)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}
