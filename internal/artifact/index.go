package artifact

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
)

// IndexType is the media type of the index over a version's kernels.
const IndexType = types.OCIImageIndex

// AnnotationSize is an annotation of an index's entry: the bytes of the artifact's layer. Its others are those of the artifact.
const AnnotationSize = prefix + "size"

// ofEntry are the artifact's annotations that its entry has.
var ofEntry = []string{
	AnnotationDistro, AnnotationSuite, AnnotationArch, AnnotationRelease, AnnotationHeaders, AnnotationCompiler, AnnotationSymvers, AnnotationKey,
	AnnotationSource, AnnotationLock, AnnotationRoot, AnnotationStatus,
}

// An Index is what a version's index says of its kernels.
type Index struct {
	Module, Version string
	Digest          v1.Hash // of the index
	Entries         []Entry // one for each kernel, sorted by distribution, suite, architecture and release
}

// An Entry is an artifact, as an index tells of it.
type Entry struct {
	Meta            // without Extras
	Digest  v1.Hash // of the manifest
	Size    int64   // of the layer, in bytes
	Tag     string  // of the kernel
	written v1.Descriptor
}

// entryOf makes the entry of an artifact.
func entryOf(d v1.Descriptor, img v1.Image) (Entry, error) {
	m, _, err := ReadMeta(img)
	if err != nil {
		return Entry{}, err
	}
	manifest, err := img.Manifest()
	if err != nil {
		return Entry{}, err
	}
	arch, variant := platform(m.Kernel.Arch)
	notes := map[string]string{AnnotationSize: strconv.FormatInt(manifest.Layers[0].Size, 10)}
	for _, k := range ofEntry {
		if v, ok := manifest.Annotations[k]; ok {
			notes[k] = v
		}
	}
	return parseEntry(m.Module, m.Version, v1.Descriptor{
		MediaType: d.MediaType, Size: d.Size, Digest: d.Digest, Annotations: notes,
		Platform: &v1.Platform{OS: "linux", Architecture: arch, Variant: variant, OSVersion: m.Kernel.Release},
	})
}

// parseEntry reads what entryOf made. The entries of other programs, and of later versions of this one, may have further annotations.
func parseEntry(module, version string, d v1.Descriptor) (Entry, error) {
	fail := func(format string, a ...any) (Entry, error) {
		return Entry{}, invalid("entry %s: %s", d.Digest, fmt.Sprintf(format, a...))
	}
	if d.MediaType != ManifestType || d.Digest.Algorithm != "sha256" || d.Size <= 0 || d.Size > maxMeta {
		return fail("a %q of %d bytes", d.MediaType, d.Size)
	}
	notes := maps.Clone(d.Annotations)
	notes[AnnotationModule], notes[AnnotationVersion], notes[AnnotationModules] = module, version, "[]"
	delete(notes, AnnotationExtras)
	if notes[AnnotationStatus] == string(Skipped) {
		return fail("it was skipped")
	}
	m, _, err := parseAnnotations(notes)
	if err != nil {
		return fail("%v", err)
	}
	e := Entry{Meta: m, Digest: d.Digest, written: d}
	if e.Size, err = strconv.ParseInt(notes[AnnotationSize], 10, 64); err != nil || e.Size < 0 {
		return fail("size %q", notes[AnnotationSize])
	}
	arch, variant := platform(m.Kernel.Arch)
	if p := d.Platform; p == nil || p.OS != "linux" || p.Architecture != arch || p.Variant != variant || p.OSVersion != m.Kernel.Release {
		return fail("its platform is %v, its annotations are for %s %q", p, m.Kernel.Arch, m.Kernel.Release)
	}
	if e.Tag, err = KernelTag(m); err != nil {
		return fail("%v", err)
	}
	return e, nil
}

// sameAs tells whether an entry says of an artifact what the artifact says itself, which of is made of.
func (e Entry) sameAs(of Entry) bool {
	if e.Digest != of.Digest || e.written.Size != of.written.Size || e.Module != of.Module || e.Version != of.Version {
		return false
	}
	for _, k := range append(slices.Clone(ofEntry), AnnotationSize) {
		// One that another version of this program wrote may have fewer.
		if v, ok := e.written.Annotations[k]; ok && v != of.written.Annotations[k] {
			return false
		}
	}
	return true
}

// newIndex gives the bytes of an index. They follow from the set of entries.
func newIndex(module, version string, entries []Entry) ([]byte, error) {
	list := make([]v1.Descriptor, len(entries))
	for i, e := range slices.SortedFunc(slices.Values(entries), compareEntries) {
		list[i] = e.written
	}
	raw, err := json.Marshal(v1.IndexManifest{
		SchemaVersion: 2, MediaType: IndexType, Manifests: list,
		Annotations: map[string]string{
			ocispec.AnnotationTitle: module, ocispec.AnnotationVersion: version, AnnotationModule: module, AnnotationVersion: version,
		},
	})
	if err == nil && len(raw) > maxMeta {
		err = fmt.Errorf("the index over %d kernels has %d bytes, more than the %d that registries take: remove the tags of old kernels",
			len(entries), len(raw), maxMeta)
	}
	return raw, err
}

func compareEntries(a, b Entry) int {
	for _, c := range []int{
		strings.Compare(a.Kernel.Distro, b.Kernel.Distro), strings.Compare(a.Kernel.Suite, b.Kernel.Suite),
		strings.Compare(a.Kernel.Arch, b.Kernel.Arch), strings.Compare(a.Kernel.Release, b.Kernel.Release),
	} {
		if c != 0 {
			return c
		}
	}
	return strings.Compare(a.Digest.String(), b.Digest.String())
}

// errForeign is wrapped by the errors about what was never meant to be an artifact, or an index over artifacts.
var errForeign = errors.New("it is not of a module")

// parseIndex reads an index. Entries that aren't valid are left out, and wrong tells about them; those that don't mean to be artifacts are
// left out, too.
func parseIndex(raw []byte) (idx Index, wrong []error, err error) {
	if len(raw) > maxMeta {
		return idx, nil, invalid("the index has %d bytes", len(raw))
	}
	m, err := v1.ParseIndexManifest(bytes.NewReader(raw))
	if err != nil {
		return idx, nil, invalid("index: %v", err)
	}
	idx.Module, idx.Version = m.Annotations[AnnotationModule], m.Annotations[AnnotationVersion]
	if idx.Module == "" || idx.Version == "" || m.MediaType != IndexType {
		return idx, nil, fmt.Errorf("%w: %w: the index has no annotation %q or %q", ErrInvalid, errForeign, AnnotationModule, AnnotationVersion)
	}
	if idx.Digest, _, err = v1.SHA256(bytes.NewReader(raw)); err != nil {
		return idx, nil, err
	}
	seen := map[string]bool{}
	for _, d := range m.Manifests {
		if _, ok := d.Annotations[AnnotationRelease]; !ok {
			continue
		}
		e, err := parseEntry(idx.Module, idx.Version, d)
		if err == nil && seen[e.Tag] {
			err = invalid("two entries are for %s", e.Tag)
		}
		if err != nil {
			wrong = append(wrong, err)
			continue
		}
		seen[e.Tag] = true
		idx.Entries = append(idx.Entries, e)
	}
	slices.SortFunc(idx.Entries, compareEntries)
	return idx, wrong, nil
}

// readEntry makes the entry of an artifact in a repository: of its manifest and config, not of its layer.
func readEntry(ctx context.Context, repo *registry.Repo, identifier string) (Entry, error) {
	e, _, err := readImage(ctx, repo, identifier)
	return e, err
}

func readImage(ctx context.Context, repo *registry.Repo, identifier string) (Entry, v1.Image, error) {
	fail := func(err error) (Entry, v1.Image, error) {
		return Entry{}, nil, fmt.Errorf("%q in %q: %w", identifier, repo.Name(), err)
	}
	img, err := repo.Image(ctx, identifier)
	if err != nil {
		if errors.Is(err, registry.ErrNotFound) || errors.Is(err, registry.ErrUnavailable) {
			return Entry{}, nil, err
		}
		if d, _, other := repo.Manifest(ctx, identifier); other == nil { // it is there, and not an image
			return fail(fmt.Errorf("%w: %w: it is a %q: %w", ErrInvalid, errForeign, d.MediaType, err))
		}
		return Entry{}, nil, err
	}
	m, err := img.Manifest()
	if err != nil {
		return fail(err)
	}
	if m.Annotations[AnnotationModule] == "" {
		return fail(fmt.Errorf("%w: %w: it has no annotation %q", ErrInvalid, errForeign, AnnotationModule))
	}
	d, err := partial.Descriptor(img)
	if err != nil {
		return fail(err)
	}
	e, err := entryOf(*d, img)
	if err != nil {
		return fail(err)
	}
	return e, img, nil
}
