package artifact

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// New makes an image of a build's result. It reads every file twice to hash it, once alone and once within the layer; the
// image reads them again whenever its layer is read, and fails if their bytes have changed. The same meta and files, in any
// order, give the same digest.
func New(m Meta, files []File) (v1.Image, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	files = sortFiles(files)
	if err := checkFiles(m, files); err != nil {
		return nil, err
	}
	for i := range files {
		f := &files[i]
		h, err := hashFile(*f)
		if err != nil {
			return nil, fmt.Errorf("module %q: %w", f.Name, err)
		}
		if f.Digest != (v1.Hash{}) && f.Digest != h {
			return nil, fmt.Errorf("module %q has digest %s, want %s", f.Name, h, f.Digest)
		}
		f.Digest = h
	}
	l := &layer{release: m.Kernel.Release, files: files}
	sum := sha256.New()
	n, err := l.writeTo(sum)
	if err != nil {
		return nil, err
	}
	l.digest, l.size = hashOf(sum), n

	notes, err := annotations(m, files)
	if err != nil {
		return nil, err
	}
	arch, variant := platform(m.Kernel.Arch)
	config, err := json.Marshal(&v1.ConfigFile{
		Architecture: arch,
		Variant:      variant,
		OS:           "linux",
		OSVersion:    m.Kernel.Release,
		Created:      v1.Time{Time: time.Unix(0, 0).UTC()},
		RootFS:       v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{l.digest}},
		Config:       v1.Config{Labels: notes},
	})
	if err != nil {
		return nil, err
	}
	configHash, configSize, err := v1.SHA256(bytes.NewReader(config))
	if err != nil {
		return nil, err
	}
	manifest, err := json.Marshal(&v1.Manifest{
		SchemaVersion: 2,
		MediaType:     ManifestType,
		Config:        v1.Descriptor{MediaType: ConfigType, Size: configSize, Digest: configHash},
		Layers: []v1.Descriptor{{
			MediaType:   LayerType,
			Size:        l.size,
			Digest:      l.digest,
			Annotations: map[string]string{ocispec.AnnotationTitle: layerTitle(m)},
		}},
		Annotations: notes,
	})
	if err != nil {
		return nil, err
	}
	return partial.CompressedToImage(&image{manifest: manifest, config: config, layer: l})
}

// layerTitle is the file name that clients of plain artifacts, such as oras, store the layer under.
func layerTitle(m Meta) string {
	return strings.ReplaceAll(m.Module+"-"+m.Version+"-"+m.Kernel.Release, "/", "_") + ".tar"
}

func hashFile(f File) (v1.Hash, error) {
	r, err := f.Open()
	if err != nil {
		return v1.Hash{}, err
	}
	defer r.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, io.LimitReader(r, f.Size+1))
	if err != nil {
		return v1.Hash{}, err
	}
	if n != f.Size {
		return v1.Hash{}, fmt.Errorf("its size is not %d bytes", f.Size)
	}
	return hashOf(sum), nil
}

func hashOf(h hash.Hash) v1.Hash {
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
}

// image implements partial.CompressedImageCore.
type image struct {
	manifest, config []byte
	layer            *layer
}

func (i *image) RawManifest() ([]byte, error)        { return i.manifest, nil }
func (i *image) RawConfigFile() ([]byte, error)      { return i.config, nil }
func (i *image) MediaType() (types.MediaType, error) { return ManifestType, nil }
func (i *image) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	if h != i.layer.digest {
		return nil, fmt.Errorf("no layer %s", h)
	}
	return i.layer, nil
}

// layer is a tar of the files, composed anew on every read; it holds none of their bytes.
type layer struct {
	release string
	files   []File
	digest  v1.Hash
	size    int64
}

func (l *layer) Digest() (v1.Hash, error)             { return l.digest, nil }
func (l *layer) DiffID() (v1.Hash, error)             { return l.digest, nil }
func (l *layer) Size() (int64, error)                 { return l.size, nil }
func (l *layer) MediaType() (types.MediaType, error)  { return LayerType, nil }
func (l *layer) Uncompressed() (io.ReadCloser, error) { return l.Compressed() }

func (l *layer) Compressed() (io.ReadCloser, error) {
	pr, pw := io.Pipe()
	go func() {
		sum := sha256.New()
		_, err := l.writeTo(io.MultiWriter(pw, sum))
		if err == nil && hashOf(sum) != l.digest {
			err = errors.New("the modules have changed since the layer was hashed")
		}
		pw.CloseWithError(err)
	}()
	return pr, nil
}

// entries are the headers of the layer's tar, in order, with the file that each holds the data of.
func entries(release string, files []File) (headers []*tar.Header, data []*File) {
	add := func(h tar.Header, f *File) {
		h.ModTime, h.Format = time.Unix(0, 0), tar.FormatUSTAR
		if len(h.Name) > 100 || len(h.Linkname) > 100 {
			h.Format = tar.FormatPAX
		}
		headers, data = append(headers, &h), append(data, f)
	}
	// Folders are entries of their own: Docker gives implied ones the mode 0600.
	dirs := map[string]bool{}
	var names []string
	for i := range files {
		for _, p := range []string{OptPath(release, files[i].Name), InstallPath(release, files[i].Dest, files[i].Name)} {
			for d := path.Dir(p); d != "/"; d = path.Dir(d) {
				if !dirs[d] {
					dirs[d] = true
					names = append(names, d)
				}
			}
		}
	}
	slices.Sort(names)
	for _, d := range names {
		add(tar.Header{Typeflag: tar.TypeDir, Name: d[1:] + "/", Mode: 0o755}, nil)
	}
	for i := range files {
		add(tar.Header{Typeflag: tar.TypeReg, Name: OptPath(release, files[i].Name)[1:], Mode: 0o644, Size: files[i].Size}, &files[i])
	}
	for _, f := range files {
		add(tar.Header{
			Typeflag: tar.TypeLink, Name: InstallPath(release, f.Dest, f.Name)[1:], Linkname: OptPath(release, f.Name)[1:], Mode: 0o644,
		}, nil)
	}
	return headers, data
}

func (l *layer) writeTo(w io.Writer) (int64, error) {
	cw := &countingWriter{w: w}
	tw := tar.NewWriter(cw)
	headers, data := entries(l.release, l.files)
	for i, h := range headers {
		if err := tw.WriteHeader(h); err != nil {
			return cw.n, fmt.Errorf("pack %q: %w", h.Name, err)
		}
		if data[i] == nil {
			continue
		}
		if err := copyFile(tw, data[i]); err != nil {
			return cw.n, fmt.Errorf("pack %q: %w", h.Name, err)
		}
	}
	err := tw.Close()
	return cw.n, err
}

func copyFile(w io.Writer, f *File) error {
	r, err := f.Open()
	if err != nil {
		return err
	}
	defer r.Close()
	n, err := io.Copy(w, r)
	if err == nil && n != f.Size {
		err = fmt.Errorf("its size is not %d bytes", f.Size)
	}
	return err
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
