package artifact

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Read checks an image, every byte of it, and returns what it holds. The layer is read once and not kept; opening a file
// reads it again up to that file, and fails before EOF if its bytes are not those that were checked. Errors about the image,
// as opposed to errors of reading it, wrap ErrInvalid.
//
// The layer must be what New would write for the image's annotations, entry by entry: no name, link or mode in it is ever
// believed.
func Read(img v1.Image) (Meta, []File, error) {
	m, files, l, err := readMeta(img)
	if err != nil {
		return Meta{}, nil, err
	}
	size, digest, err := describe(l)
	if err != nil {
		return Meta{}, nil, err
	}
	as := &layer{meta: m, files: files}
	sum := sha256.New()
	if err := as.walk(l, func(r io.Reader, p *part) error { return p.check(r, io.Discard) }, size, sum); err != nil {
		return Meta{}, nil, err
	}
	if h := hashOf(sum); h != digest {
		return Meta{}, nil, invalid("its layer has digest %s, want %s", h, digest)
	}
	for _, p := range as.parts() {
		*p.open = func() (io.ReadCloser, error) { return as.open(l, size, p) }
	}
	return m, files, nil
}

// Unpack is Read that hands the modules out on the way, each to what create gives for it. What was written is good once Unpack has
// returned without an error. The files that it returns can't be opened.
func Unpack(img v1.Image, create func(File) (io.WriteCloser, error)) (Meta, []File, error) {
	m, files, l, err := readMeta(img)
	if err != nil {
		return Meta{}, nil, err
	}
	size, _, err := describe(l)
	if err != nil {
		return Meta{}, nil, err
	}
	// The layer's own digest tells nothing about the files that theirs don't, and nothing else in it is used.
	as := &layer{meta: m, files: files}
	err = as.walk(l, func(r io.Reader, p *part) error {
		i := slices.IndexFunc(files, func(f File) bool { return f.Digest == *p.digest && p.what == moduleName(f) })
		if i < 0 { // an extra
			return p.check(r, io.Discard)
		}
		w, err := create(files[i])
		if err != nil {
			return &createError{err}
		}
		err = p.check(r, w)
		return errors.Join(err, w.Close())
	}, size, io.Discard)
	if c := (*createError)(nil); errors.As(err, &c) {
		err = c.error
	}
	if err != nil {
		return Meta{}, nil, err
	}
	return m, files, nil
}

// createError is not about the artifact.
type createError struct{ error }

// check reads a part, which goes to w too.
func (p part) check(r io.Reader, w io.Writer) error {
	own := sha256.New()
	if _, err := io.Copy(io.MultiWriter(w, own), r); err != nil {
		return err
	}
	if h := hashOf(own); h != *p.digest {
		return invalid("%s has digest %s, want %s", p.what, h, *p.digest)
	}
	return nil
}

// ReadMeta returns what the annotations say, without reading the layer: enough to list an artifact or to decide whether it
// fits a kernel. The files can't be opened.
func ReadMeta(img v1.Image) (Meta, []File, error) {
	m, files, _, err := readMeta(img)
	return m, files, err
}

func readMeta(img v1.Image) (Meta, []File, v1.Layer, error) {
	fail := func(err error) (Meta, []File, v1.Layer, error) { return Meta{}, nil, nil, err }
	raw, err := img.RawManifest()
	if err != nil {
		return fail(fmt.Errorf("read manifest: %w", err))
	}
	if len(raw) > maxMeta {
		return fail(invalid("its manifest has %d bytes", len(raw)))
	}
	manifest, err := v1.ParseManifest(bytes.NewReader(raw))
	if err != nil {
		return fail(invalid("manifest: %v", err))
	}
	if manifest.MediaType != ManifestType {
		return fail(invalid("its manifest is a %q, want %q", manifest.MediaType, ManifestType))
	}
	m, files, err := parseAnnotations(manifest.Annotations)
	if err != nil {
		return fail(err)
	}
	if len(manifest.Layers) != 1 || manifest.Layers[0].MediaType != LayerType || manifest.Config.MediaType != ConfigType {
		return fail(invalid("it has not one layer of type %q and a config of type %q", LayerType, ConfigType))
	}
	config, err := img.RawConfigFile()
	if err != nil {
		return fail(fmt.Errorf("read config: %w", err))
	}
	if h, n, err := v1.SHA256(bytes.NewReader(config)); err != nil || h != manifest.Config.Digest || n != manifest.Config.Size {
		return fail(invalid("its config has digest %s, want %s", h, manifest.Config.Digest))
	}
	if len(config) > maxMeta {
		return fail(invalid("its config has %d bytes", len(config)))
	}
	var c v1.ConfigFile
	if err := json.Unmarshal(config, &c); err != nil {
		return fail(invalid("config: %v", err))
	}
	arch, variant := platform(m.Kernel.Arch)
	if c.OS != "linux" || c.Architecture != arch || c.Variant != variant || c.OSVersion != m.Kernel.Release {
		return fail(invalid("its config is for %s/%s%s %q, the annotations for %s %q", c.OS, c.Architecture, c.Variant, c.OSVersion,
			m.Kernel.Arch, m.Kernel.Release))
	}
	if !slices.Equal(c.RootFS.DiffIDs, []v1.Hash{manifest.Layers[0].Digest}) {
		return fail(invalid("its config names other layers than the manifest"))
	}
	if !maps.Equal(c.Config.Labels, manifest.Annotations) {
		return fail(invalid("its labels differ from its annotations"))
	}
	l, err := img.LayerByDigest(manifest.Layers[0].Digest)
	if err != nil {
		return fail(fmt.Errorf("read layer: %w", err))
	}
	return m, files, described{l, manifest.Layers[0]}, nil
}

// described is a layer that is what the manifest says, whatever it says itself.
type described struct {
	v1.Layer
	d v1.Descriptor
}

func describe(l v1.Layer) (int64, v1.Hash, error) {
	d, ok := l.(described)
	if !ok {
		return 0, v1.Hash{}, errors.New("a layer without descriptor")
	}
	return d.d.Size, d.d.Digest, nil
}

// errStop ends a walk early.
var errStop = errors.New("stop")

// walk reads a layer that is to be as l, and calls visit for every part in it, in order. Everything that was read goes to sum.
func (l *layer) walk(from v1.Layer, visit func(io.Reader, *part) error, size int64, sum io.Writer) error {
	rc, err := from.Compressed()
	if err != nil {
		return fmt.Errorf("read layer: %w", err)
	}
	defer rc.Close()
	lr := &io.LimitedReader{R: rc, N: size}
	src := io.TeeReader(lr, sum)
	tr := tar.NewReader(src)
	headers, data := l.entries()
	for i, want := range headers {
		got, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return invalid("its layer ends before %q", want.Name)
		}
		if err != nil {
			return layerError(err)
		}
		if got.Typeflag != want.Typeflag || got.Name != want.Name || got.Linkname != want.Linkname || got.Mode != want.Mode ||
			got.Size != want.Size || got.Uid != 0 || got.Gid != 0 || !got.ModTime.Equal(want.ModTime) {
			return invalid("its layer has %q (type %q, mode %o, %d bytes), want %q", got.Name, got.Typeflag, got.Mode, got.Size, want.Name)
		}
		if data[i] == nil {
			continue
		}
		if err := visit(tr, data[i]); err != nil {
			if errors.Is(err, errStop) {
				return nil
			}
			return layerError(err)
		}
	}
	if h, err := tr.Next(); err == nil {
		return invalid("its layer has %q, which the annotations don't name", h.Name)
	} else if !errors.Is(err, io.EOF) {
		return layerError(err)
	}
	if _, err := io.Copy(io.Discard, src); err != nil {
		return layerError(err)
	}
	if n, err := io.ReadFull(rc, make([]byte, 1)); n != 0 {
		return invalid("its layer has more than %d bytes", size)
	} else if err != io.EOF {
		return layerError(err)
	}
	if lr.N != 0 {
		return invalid("its layer has %d bytes, want %d", size-lr.N, size)
	}
	return nil
}

func layerError(err error) error {
	if errors.Is(err, ErrInvalid) {
		return err
	}
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
		return invalid("layer: %v", err)
	}
	return fmt.Errorf("read layer: %w", err)
}

// open streams one part out of the layer.
func (l *layer) open(from v1.Layer, size int64, p part) (io.ReadCloser, error) {
	pr, pw := io.Pipe()
	go func() {
		pw.CloseWithError(l.walk(from, func(r io.Reader, at *part) error {
			if at.digest != p.digest {
				return nil
			}
			if err := p.check(r, pw); err != nil {
				return err
			}
			return errStop
		}, size, io.Discard)) // the part is checked, and what is around it doesn't matter
	}()
	return pr, nil
}
