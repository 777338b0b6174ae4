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
	"maps"
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
	m.Extras = slices.SortedFunc(slices.Values(m.Extras), func(a, b Extra) int { return strings.Compare(a.Name, b.Name) })
	if err := m.check(); err != nil {
		return nil, err
	}
	files = sortFiles(files)
	if err := checkFiles(m, files); err != nil {
		return nil, err
	}
	l := &layer{meta: m, files: files}
	for _, p := range l.parts() {
		h, err := p.hash()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p.what, err)
		}
		if *p.digest != (v1.Hash{}) && *p.digest != h {
			return nil, fmt.Errorf("%s has digest %s, want %s", p.what, h, *p.digest)
		}
		*p.digest = h
	}
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

// A part is a file whose bytes are in the layer: a module or an extra file.
type part struct {
	what   string // for errors
	size   int64
	digest *v1.Hash
	open   *func() (io.ReadCloser, error)
}

// parts are in the layer's order.
func (l *layer) parts() []part {
	var out []part
	for i := range l.files {
		f := &l.files[i]
		out = append(out, part{moduleName(*f), f.Size, &f.Digest, &f.Open})
	}
	for i := range l.meta.Extras {
		e := &l.meta.Extras[i]
		out = append(out, part{fmt.Sprintf("%q", e.Name), e.Size, &e.Digest, &e.Open})
	}
	return out
}

func moduleName(f File) string { return fmt.Sprintf("module %q", f.Name) }

func (p part) hash() (v1.Hash, error) {
	r, err := (*p.open)()
	if err != nil {
		return v1.Hash{}, err
	}
	defer r.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, io.LimitReader(r, p.size+1))
	if err != nil {
		return v1.Hash{}, err
	}
	if n != p.size {
		return v1.Hash{}, fmt.Errorf("its size is not %d bytes", p.size)
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

// layer is a tar of the files and extras, composed anew on every read; it holds none of their bytes.
type layer struct {
	meta   Meta
	files  []File
	digest v1.Hash
	size   int64
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

// entries are the headers of the layer's tar, in order, with the part that each holds the data of, or nil.
func (l *layer) entries() (headers []*tar.Header, data []*part) {
	add := func(h tar.Header, p *part) {
		h.ModTime, h.Format = time.Unix(0, 0), tar.FormatUSTAR
		if len(h.Name) > 100 || len(h.Linkname) > 100 {
			h.Format = tar.FormatPAX
		}
		headers, data = append(headers, &h), append(data, p)
	}
	release := l.meta.Kernel.Release
	var paths []string
	for _, f := range l.files {
		paths = append(paths, OptPath(release, f.Name), InstallPath(release, f.Dest, f.Name))
	}
	for _, e := range l.meta.Extras {
		paths = append(paths, ExtraPath(l.meta, e.Name))
	}
	// Folders are entries of their own: Docker gives implied ones the mode 0600.
	dirs := map[string]bool{}
	for _, p := range paths {
		for d := path.Dir(p); d != "/"; d = path.Dir(d) {
			dirs[d] = true
		}
	}
	for _, d := range slices.Sorted(maps.Keys(dirs)) {
		add(tar.Header{Typeflag: tar.TypeDir, Name: d[1:] + "/", Mode: 0o755}, nil)
	}
	parts := l.parts()
	for i, f := range l.files {
		add(tar.Header{Typeflag: tar.TypeReg, Name: OptPath(release, f.Name)[1:], Mode: 0o644, Size: f.Size}, &parts[i])
	}
	for _, f := range l.files {
		add(tar.Header{
			Typeflag: tar.TypeLink, Name: InstallPath(release, f.Dest, f.Name)[1:], Linkname: OptPath(release, f.Name)[1:], Mode: 0o644,
		}, nil)
	}
	for i, e := range l.meta.Extras {
		mode := int64(0o644)
		if e.Executable {
			mode = 0o755
		}
		add(tar.Header{Typeflag: tar.TypeReg, Name: ExtraPath(l.meta, e.Name)[1:], Mode: mode, Size: e.Size}, &parts[len(l.files)+i])
	}
	return headers, data
}

func (l *layer) writeTo(w io.Writer) (int64, error) {
	cw := &countingWriter{w: w}
	tw := tar.NewWriter(cw)
	headers, data := l.entries()
	for i, h := range headers {
		if err := tw.WriteHeader(h); err != nil {
			return cw.n, fmt.Errorf("pack %q: %w", h.Name, err)
		}
		if data[i] == nil {
			continue
		}
		if err := data[i].copy(tw); err != nil {
			return cw.n, fmt.Errorf("pack %q: %w", h.Name, err)
		}
	}
	err := tw.Close()
	return cw.n, err
}

func (p part) copy(w io.Writer) error {
	r, err := (*p.open)()
	if err != nil {
		return err
	}
	defer r.Close()
	n, err := io.Copy(w, r)
	if err == nil && n != p.size {
		err = fmt.Errorf("its size is not %d bytes", p.size)
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
