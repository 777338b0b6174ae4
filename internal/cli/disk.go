package cli

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/images"
)

// ofDisk says whether an error is one of this machine's disk or permissions. What comes from the network or from a command of a
// build is none, though the system may have the same words for it.
func ofDisk(err error) bool {
	if errors.As(err, new(*net.OpError)) || errors.As(err, new(*builder.UnavailableError)) || errors.As(err, new(*builder.ExitError)) {
		return false
	}
	errno := unix.Errno(0)
	if !errors.As(err, &errno) {
		return false
	}
	at := fileOf(err) // a relative one that isn't there may be one that a package lacks
	return slices.Contains(diskErrors, errno) || filepath.IsAbs(at) || at != "" && errno != unix.ENOENT
}

// fileOf is the file that an error is about, if it says so.
func fileOf(err error) string {
	if p := (*fs.PathError)(nil); errors.As(err, &p) {
		return p.Path
	}
	if l := (*os.LinkError)(nil); errors.As(err, &l) {
		return l.New
	}
	return ""
}

// diskErrors are those that say so by themselves, without a file's name.
var diskErrors = []unix.Errno{unix.ENOSPC, unix.EDQUOT, unix.EROFS, unix.EIO}

// failureCode is the exit code of a kernel that could not be built for.
func failureCode(err error) int {
	switch {
	case errors.As(err, new(*exitError)):
		return codeOf(err)
	case ofDisk(err):
		return exitUsage
	case errors.As(err, new(*images.PackageError)):
		return exitNoKernel
	case errors.As(err, new(*builder.DependsError)):
		return exitDepends
	}
	return exitBuild
}

// lockCode is the exit code of a kernel that could not be locked.
func lockCode(err error) int {
	if ofDisk(err) {
		return exitUsage
	}
	return exitNoKernel
}

// advise adds to an error of the cache folder what to do next.
func (a *app) advise(err error) error {
	dir, derr := a.dir("")
	at := fileOf(err)
	ours := at == dir || strings.HasPrefix(at, dir+"/") || strings.HasPrefix(dir, at+"/") // in it, or above where it can't be made
	if derr != nil || !filepath.IsAbs(at) || !ours || strings.Contains(err.Error(), "--cache-dir") {
		return err
	}
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w; free some space (cache gc removes what is not needed) or choose another folder with --cache-dir", err)
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w; see to its permissions or choose another folder with --cache-dir", err)
	}
	return fmt.Errorf("%w; see to it or choose another folder with --cache-dir", err)
}
