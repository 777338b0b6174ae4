package cli

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// host is what a Linux root says of itself, for a module must fit it.
type host struct {
	root          string // empty: there is none to look at
	distro, suite string // of os-release(5), ID and VERSION_CODENAME; empty where it doesn't say
	running       string // kernel release; empty if it isn't known
}

// readHost reads what the root of this machine says.
func readHost(root, running string) host {
	h := host{root: root, running: running}
	for _, name := range []string{"etc/os-release", "usr/lib/os-release"} {
		f, err := os.Open(filepath.Join(root, name))
		if err != nil {
			continue
		}
		defer f.Close()
		for s := bufio.NewScanner(io.LimitReader(f, 1<<16)); s.Scan(); {
			key, value, _ := strings.Cut(s.Text(), "=")
			value = strings.Trim(strings.TrimSpace(value), `"'`)
			switch key {
			case "ID":
				h.distro = value
			case "VERSION_CODENAME":
				h.suite = value
			}
		}
		break
	}
	return h
}

// isOwn tells whether a kernel can be one of this host's: where the host doesn't say what it is, it may be.
func (h host) isOwn(k kernels.Kernel) bool {
	return (h.distro == "" || h.distro == k.Distro) && (h.suite == "" || h.suite == k.Suite)
}

// symvers is the digest of the Module.symvers in the headers of a release, if they are installed here.
func (h host) symvers(release string) (digest v1.Hash, found bool, err error) {
	if h.root == "" || release == "" || strings.Contains(release, "/") || release == ".." {
		return v1.Hash{}, false, nil
	}
	for _, dir := range []string{
		"lib/modules/" + release + "/build", // a link, on a host whose headers are complete
		"usr/src/linux-headers-" + release,  // Debian, Ubuntu
		"usr/src/kernels/" + release,        // Fedora and its kin
	} {
		f, err := os.Open(filepath.Join(h.root, dir, "Module.symvers"))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return v1.Hash{}, false, err
		}
		defer f.Close()
		sum := sha256.New()
		if _, err := io.Copy(sum, f); err != nil {
			return v1.Hash{}, false, err
		}
		return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum.Sum(nil))}, true, nil
	}
	return v1.Hash{}, false, nil
}
