package artifact

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
)

// Artifact types of the manifests whose subject is an artifact. Each has one layer, a file.
const (
	LogType     = "application/vnd.dev.godkms-hermetic.log.v1"
	LockType    = "application/vnd.dev.godkms-hermetic.lock.v1"
	SymversType = "application/vnd.dev.godkms-hermetic.symvers.v1"
	InputsType  = "application/vnd.dev.godkms-hermetic.inputs.v1"
	TestType    = "application/vnd.dev.godkms-hermetic.test.v1"
)

// Attachments are what is kept beside an artifact. What is empty isn't there.
type Attachments struct {
	Log     []byte    // of the build, 2 MiB at most
	Created time.Time // of the log: when it was attached, in whole seconds; the zero value if it isn't said
	Lock    []byte    // the packages of the build root, in the canonical form whose digest is Meta.Lock; 4 MiB at most
	Symvers []byte    // the bytes of the Extra ModuleSymvers; 32 MiB at most
	Inputs  []byte    // the text whose digest is Meta.Key; 4 MiB at most
	Tests   []Test    // the newest first
}

// attachment is a kind of Attachments.
type attachment struct {
	artifactType, title string
	layerType           types.MediaType
	max                 int64
	// digest is what the file's must be; ok is false if an artifact has no such file. nil: it may be any.
	digest func(Meta) (h v1.Hash, ok bool)
	field  func(*Attachments) *[]byte
}

var attachments = [...]attachment{
	{LogType, "build.log", "text/plain", 2 << 20, nil, func(a *Attachments) *[]byte { return &a.Log }},
	{LockType, "lock.json", "application/json", 4 << 20, func(m Meta) (v1.Hash, bool) { return m.Lock, true },
		func(a *Attachments) *[]byte { return &a.Lock }},
	{SymversType, ModuleSymvers, "text/plain", maxExtra, func(m Meta) (v1.Hash, bool) {
		i := slices.IndexFunc(m.Extras, func(e Extra) bool { return e.Name == ModuleSymvers })
		if i < 0 {
			return v1.Hash{}, false
		}
		return m.Extras[i].Digest, true
	}, func(a *Attachments) *[]byte { return &a.Symvers }},
	{InputsType, "inputs.json", "application/json", 4 << 20, func(m Meta) (v1.Hash, bool) { return m.Key, true },
		func(a *Attachments) *[]byte { return &a.Inputs }},
}

const (
	maxReferrers  = 16        // manifests of one artifact type that are read to find the attachments of an artifact
	maxAttachment = 128 << 10 // bytes of such a manifest; those of Attach have a thousand
	requests      = 8         // at a time
)

// Attach pushes the attachments of an artifact that the repository has. A log is left out where there is one: builds of one result
// have different logs.
func Attach(ctx context.Context, repo *registry.Repo, subject v1.Descriptor, a Attachments) error {
	fail := func(err error) error {
		return fmt.Errorf("attach to %q: %w", repo.Name()+"@"+subject.Digest.String(), err)
	}
	if len(a.Log) > 0 {
		have, err := candidates(ctx, repo, subject.Digest, []string{LogType})
		if err != nil {
			return err
		}
		if len(have[LogType]) > 0 {
			a.Log = nil
		}
	}
	var images []v1.Image
	for _, kind := range attachments {
		content := *kind.field(&a)
		if len(content) == 0 {
			continue
		}
		if int64(len(content)) > kind.max {
			return fail(fmt.Errorf("%q has %d bytes, more than %d", kind.title, len(content), kind.max))
		}
		var annotations map[string]string
		if kind.artifactType == LogType && !a.Created.IsZero() {
			annotations = map[string]string{ocispec.AnnotationCreated: a.Created.UTC().Format(time.RFC3339)}
		}
		img, err := kind.image(subject, content, annotations)
		if err != nil {
			return fail(err)
		}
		images = append(images, img)
	}
	for _, t := range a.Tests {
		img, err := t.image(subject)
		if err != nil {
			return fail(err)
		}
		images = append(images, img)
	}
	if len(images) == 0 {
		return nil
	}
	return repo.Attach(ctx, subject.Digest, images...)
}

// image is the same for the same subject, content and annotations.
func (k attachment) image(subject v1.Descriptor, content []byte, annotations map[string]string) (v1.Image, error) {
	layer := static.NewLayer(content, k.layerType)
	digest, err := layer.Digest()
	if err != nil {
		return nil, err
	}
	config, size, err := v1.SHA256(strings.NewReader(emptyConfig))
	if err != nil {
		return nil, err
	}
	m := v1.Manifest{
		SchemaVersion: 2,
		MediaType:     ManifestType,
		ArtifactType:  k.artifactType,
		Config:        v1.Descriptor{MediaType: ocispec.MediaTypeEmptyJSON, Size: size, Digest: config},
		Layers: []v1.Descriptor{{
			MediaType: k.layerType, Size: int64(len(content)), Digest: digest,
			Annotations: map[string]string{ocispec.AnnotationTitle: k.title},
		}},
		Subject:     &v1.Descriptor{MediaType: subject.MediaType, Size: subject.Size, Digest: subject.Digest},
		Annotations: annotations,
	}
	manifest, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return partial.CompressedToImage(attached{manifest, layer})
}

const emptyConfig = "{}" // image-spec, "Guidance for an Empty Descriptor"

// attached implements partial.CompressedImageCore.
type attached struct {
	manifest []byte
	layer    v1.Layer
}

func (a attached) RawManifest() ([]byte, error)        { return a.manifest, nil }
func (a attached) RawConfigFile() ([]byte, error)      { return []byte(emptyConfig), nil }
func (a attached) MediaType() (types.MediaType, error) { return ManifestType, nil }
func (a attached) LayerByDigest(h v1.Hash) (partial.CompressedLayer, error) {
	if d, err := a.layer.Digest(); err != nil || d != h {
		return nil, fmt.Errorf("no layer %s", h)
	}
	return a.layer, nil
}

// candidate is a manifest that may be an attachment.
type candidate struct {
	manifest *v1.Manifest
	digest   v1.Hash
}

// candidates gives what refers to an artifact, for each of some artifact types, in the order of digests.
func candidates(ctx context.Context, repo *registry.Repo, subject v1.Hash, artifactTypes []string) (map[string][]candidate, error) {
	list, err := repo.Referrers(ctx, subject)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(a, b v1.Descriptor) int { return strings.Compare(a.Digest.String(), b.Digest.String()) })
	// Registries from before image-spec 1.1 give the config's type in place of the artifact's.
	known := append(slices.Clone(artifactTypes), ocispec.MediaTypeEmptyJSON, "")
	kind := func(d v1.Descriptor) string {
		if _, ok := d.Annotations[AnnotationTestVerdict]; ok && (d.ArtifactType == ocispec.MediaTypeEmptyJSON || d.ArtifactType == "") {
			return TestType
		}
		return d.ArtifactType
	}
	// Each push may add a test: those that are read are the newest, by what the list says of them, and no others are left out for them.
	tested := func(d v1.Descriptor) (t time.Time) {
		if kind(d) == TestType {
			t, _ = time.Parse(time.RFC3339, d.Annotations[ocispec.AnnotationCreated])
		}
		return t
	}
	slices.SortStableFunc(list, func(a, b v1.Descriptor) int { return tested(b).Compare(tested(a)) })
	count := map[string]int{}
	list = slices.DeleteFunc(list, func(d v1.Descriptor) bool {
		k := kind(d)
		count[k]++
		return !slices.Contains(known, k) || count[k] > maxReferrers || d.Size > maxAttachment
	})
	manifests := make([]*v1.Manifest, len(list))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(requests)
	for i, d := range list {
		g.Go(func() error {
			_, raw, err := repo.Manifest(gctx, d.Digest.String())
			if errors.Is(err, registry.ErrNotFound) {
				return nil // a list in a registry without the referrers API names what is gone
			}
			if err != nil {
				return err
			}
			if len(raw) > maxAttachment { // whatever the list says of it
				return nil
			}
			m, err := v1.ParseManifest(bytes.NewReader(raw))
			if err == nil && m.Subject != nil && m.Subject.Digest == subject {
				manifests[i] = m
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	out := map[string][]candidate{}
	for i, m := range manifests {
		if m != nil && slices.Contains(artifactTypes, m.ArtifactType) {
			out[m.ArtifactType] = append(out[m.ArtifactType], candidate{m, list[i].Digest})
		}
	}
	return out, nil
}

// ReadAttachments reads what is attached to the artifact with a digest. See ReadAttachmentsOf.
func ReadAttachments(ctx context.Context, repo *registry.Repo, subject v1.Hash) (Attachments, error) {
	img, err := repo.Image(ctx, subject.String())
	if err != nil {
		return Attachments{}, err
	}
	m, _, err := ReadMeta(img)
	if err != nil {
		return Attachments{}, fmt.Errorf("%q: %w", repo.Name()+"@"+subject.String(), err)
	}
	return ReadAttachmentsOf(ctx, repo, subject, m)
}

// ReadAttachmentsOf reads what is attached to an artifact that is known: files of those artifact types, or all. Lock, Symvers and Inputs are
// what the artifact says that they are; if only others are attached, the error wraps ErrInvalid. Of several logs it is always the
// same one. What is attached as a test and isn't one is left out.
func ReadAttachmentsOf(ctx context.Context, repo *registry.Repo, subject v1.Hash, m Meta, artifactTypes ...string) (Attachments, error) {
	var out Attachments
	if len(artifactTypes) == 0 {
		artifactTypes = []string{LogType, LockType, SymversType, InputsType, TestType}
	}
	have, err := candidates(ctx, repo, subject, artifactTypes)
	if err != nil {
		return out, err
	}
	for _, kind := range attachments {
		list := have[kind.artifactType]
		if len(list) == 0 {
			continue
		}
		var wrong error
		i := slices.IndexFunc(list, func(c candidate) bool {
			err := kind.check(c, m)
			if wrong == nil {
				wrong = err
			}
			return err == nil
		})
		if i < 0 {
			return Attachments{}, fmt.Errorf("attached to %q: %w", repo.Name()+"@"+subject.String(), wrong)
		}
		if *kind.field(&out), err = readBlob(ctx, repo, list[i].manifest.Layers[0]); err != nil {
			return Attachments{}, err
		}
		if kind.artifactType == LogType {
			out.Created = list[i].created()
		}
	}
	tests := testsOf(have[TestType])
	for i := range tests {
		if tests[i].Record, err = readBlob(ctx, repo, tests[i].layer); err != nil {
			return Attachments{}, err
		}
		out.Tests = append(out.Tests, tests[i].Test)
	}
	return out, nil
}

// created is when an attachment says that it was made.
func (c candidate) created() time.Time {
	t, err := time.Parse(time.RFC3339, c.manifest.Annotations[ocispec.AnnotationCreated])
	if err != nil {
		return time.Time{}
	}
	return t.UTC()
}

// check tells whether an attachment is one of an artifact.
func (k attachment) check(c candidate, m Meta) error {
	if len(c.manifest.Layers) != 1 || c.manifest.Layers[0].MediaType != k.layerType {
		return invalid("%s has not one layer of type %q", c.digest, k.layerType)
	}
	d := c.manifest.Layers[0]
	if d.Size < 0 || d.Size > k.max {
		return invalid("%q in %s has %d bytes; %d are allowed", k.title, c.digest, d.Size, k.max)
	}
	if k.digest == nil {
		return nil
	}
	want, ok := k.digest(m)
	if !ok {
		return invalid("%s is a %q, which the artifact doesn't have", c.digest, k.title)
	}
	if d.Digest != want {
		return invalid("%q in %s has digest %s, want %s", k.title, c.digest, d.Digest, want)
	}
	return nil
}

// readBlob reads a blob whose size has been checked.
func readBlob(ctx context.Context, repo *registry.Repo, d v1.Descriptor) ([]byte, error) {
	r, err := repo.Blob(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}
