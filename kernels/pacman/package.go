package pacman

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/godkms-hermetic/godkms-hermetic/internal/decompress"
)

// maxInfo bounds a .PKGINFO, in bytes. Those of packages that replace and provide hundreds of others have some 30 kB.
const maxInfo = 1 << 20

// Payload implements kernels.Provider. The files that pacman keeps for itself, all of those in the root folder that begin with a dot, are
// left out.
func (p *Provider) Payload(pkg io.Reader) (io.ReadCloser, error) {
	payload, _, err := openPackage(pkg)
	return payload, err
}

// Open implements kernels.Provider.
func (p *Provider) Open(pkg io.Reader) (io.ReadCloser, []string, error) {
	payload, about, err := openPackage(pkg)
	if err != nil {
		return nil, nil, err
	}
	return payload, about.depends, nil
}

// info is what a package's .PKGINFO says.
type info struct {
	name, version, arch string
	depends             []string
}

// openPackage opens a package file: a tar, compressed by zstd, xz or gzip, whose metadata comes before all that is installed (alpm's
// package format, PKGINFO(5)).
func openPackage(pkg io.Reader) (io.ReadCloser, info, error) {
	bad := func(err error) (io.ReadCloser, info, error) {
		return nil, info{}, fmt.Errorf("read Arch package: %w", err)
	}
	text, err := decompress.NewReader(pkg)
	if err != nil {
		return bad(err)
	}
	end := &ending{r: text}
	in := tar.NewReader(end)
	var (
		about info
		found bool
		next  *tar.Header
	)
	for {
		next, err = in.Next()
		if err == io.EOF && found { // a metapackage
			break
		}
		if err == nil && !isMetadata(next.Name) && !found {
			err = errors.New("no .PKGINFO comes first")
		}
		if err == nil && next.Name == ".PKGINFO" {
			found = true
			about, err = readInfo(in, next.Size)
		}
		if err != nil {
			text.Close()
			return bad(err)
		}
		if !isMetadata(next.Name) {
			break
		}
	}
	r, w := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.CloseWithError(repack(w, in, next, end, pkg))
	}()
	return &payload{r, text, done}, about, nil
}

// payload is the tar stream that repack writes.
type payload struct {
	*io.PipeReader
	text io.Closer
	done chan struct{}
}

func (p *payload) Close() error {
	p.PipeReader.Close()
	<-p.done
	return p.text.Close()
}

func isMetadata(name string) bool {
	return strings.HasPrefix(name, ".") && !strings.Contains(name, "/")
}

// repack writes what follows next, it included, without metadata. It gives nil, which ends the stream well, only when the package was
// whole.
func repack(w io.Writer, in *tar.Reader, next *tar.Header, end *ending, pkg io.Reader) error {
	out := tar.NewWriter(w)
	var err error
	for ; err == nil && next != nil; next, err = in.Next() {
		if isMetadata(next.Name) {
			continue
		}
		h := *next
		h.Format, h.PAXRecords = tar.FormatUnknown, nil // whatever form the names, sizes and times now need
		for name, value := range next.PAXRecords {
			if strings.HasPrefix(name, "SCHILY.xattr.") {
				if h.PAXRecords == nil {
					h.PAXRecords = map[string]string{}
				}
				h.PAXRecords[name] = value
			}
		}
		if err = out.WriteHeader(&h); err != nil {
			return err
		}
		if _, err = io.Copy(out, in); err != nil {
			return err
		}
	}
	if err != nil && err != io.EOF {
		return fmt.Errorf("read Arch package: %w", err)
	}
	if err := end.reached(); err != nil {
		return fmt.Errorf("read Arch package: %w", err)
	}
	if _, err := io.Copy(io.Discard, pkg); err != nil { // which may check itself at its end
		return err
	}
	return out.Close()
}

// readInfo reads a .PKGINFO: lines of "name = value", and comments.
func readInfo(r io.Reader, size int64) (info, error) {
	var out info
	if size > maxInfo {
		return out, fmt.Errorf(".PKGINFO has %d bytes", size)
	}
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxInfo)
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " = ")
		switch strings.TrimSpace(name) {
		case "pkgname":
			out.name = value
		case "pkgver":
			out.version = value
		case "arch":
			out.arch = value
		case "depend":
			out.depends = append(out.depends, value)
		}
	}
	return out, lines.Err()
}
