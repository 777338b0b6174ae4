package cli

import (
	"bufio"
	"io"
	"os"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/host"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// machine is what a Linux root says of itself, for a module must fit it.
type machine struct {
	root          string // empty: there is none to look at
	distro, suite string // that os-release(5) names, as kernels.SuiteOf reads it; empty where it doesn't say
	running       string // kernel release; empty if it isn't known
}

// readMachine reads what a root says, this machine's own or a mounted one.
func readMachine(root, running string) machine {
	h := machine{root: root, running: running}
	for _, name := range []string{"etc/os-release", "usr/lib/os-release"} {
		f, err := h.open(name)
		if err != nil {
			continue
		}
		defer f.Close()
		fields := map[string]string{}
		for s := bufio.NewScanner(io.LimitReader(f, 1<<16)); s.Scan(); {
			key, value, _ := strings.Cut(strings.TrimSpace(s.Text()), "=")
			fields[key] = strings.Trim(value, `"'`)
		}
		h.distro, h.suite = kernels.SuiteOf(fields)
		break
	}
	return h
}

// open opens a file of the root. Links in it are followed as within it.
func (h machine) open(name string) (*os.File, error) {
	r, err := host.Open(h.root, host.Options{})
	if err != nil {
		return nil, err
	}
	path, err := r.Path(name)
	if err != nil {
		return nil, err
	}
	return os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe in an image is waited for by nobody
}

// isOwn tells whether a kernel can be one of this host's: where the host doesn't say what it is, it may be.
func (h machine) isOwn(k kernels.Kernel) bool {
	return (h.distro == "" || h.distro == k.Distro) && (h.suite == "" || h.suite == k.Suite)
}

// symvers is the digest of the Module.symvers in the headers of a release, if they are installed here.
func (h machine) symvers(release string) (digest v1.Hash, found bool, err error) {
	if h.root == "" || host.CheckName("kernel", release) != nil {
		return v1.Hash{}, false, nil
	}
	root, err := host.Open(h.root, host.Options{})
	if err != nil {
		return v1.Hash{}, false, err
	}
	digest, path, err := root.Symvers(release)
	return digest, path != "", err
}
