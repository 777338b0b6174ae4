package artifact_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
)

var (
	annotationForm = regexp.MustCompile(`dev\.godkms-hermetic\.[a-z.]*[a-z]`)
	constantForm   = regexp.MustCompile(`prefix \+ "([a-z.]+)"`)
	typeForm       = regexp.MustCompile(`application/[a-z0-9.+-]*[a-z0-9]`)
)

// docs/artifact.md and the code say the same: annotations, labels, media types and tags.
func TestDocument(t *testing.T) {
	read := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	doc := read("../../docs/artifact.md")
	constants := map[string]bool{}
	sources, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	types := map[string]bool{
		string(artifact.ManifestType): true, string(artifact.ConfigType): true, string(artifact.LayerType): true, string(artifact.IndexType): true,
		ocispec.MediaTypeEmptyJSON: true, ocispec.MediaTypeImageLayerGzip: true, // the latter in header images
		"application/json": true,
	}
	for _, path := range append(sources, "../../images/pack.go") {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		text := read(path)
		for _, m := range constantForm.FindAllStringSubmatch(text, -1) {
			constants["dev.godkms-hermetic."+m[1]] = true
		}
		for _, m := range annotationForm.FindAllString(text, -1) {
			if !strings.Contains(text, `application/vnd.`+m) {
				constants[m] = true
			}
		}
		for _, m := range typeForm.FindAllString(text, -1) {
			types[m] = true
		}
	}
	if len(constants) < 20 || len(types) < 9 {
		t.Fatalf("found %d annotations and %d media types in the code", len(constants), len(types))
	}
	for c := range constants {
		if !strings.Contains(doc, "`"+c+"`") {
			t.Errorf("the document lacks %q", c)
		}
	}
	for c := range types {
		if !strings.Contains(doc, "`"+c+"`") {
			t.Errorf("the document lacks the media type %q", c)
		}
	}
	for _, m := range typeForm.FindAllString(doc, -1) {
		if !types[m] {
			t.Errorf("the document has the media type %q, the code doesn't", m)
		}
	}
	for _, m := range annotationForm.FindAllString(typeForm.ReplaceAllString(doc, ""), -1) {
		if !constants[m] {
			t.Errorf("the document has %q, the code doesn't", m)
		}
	}
	for _, s := range []string{ocispec.AnnotationTitle, ocispec.AnnotationVersion, ocispec.AnnotationDescription, ocispec.AnnotationCreated} {
		if !strings.Contains(doc, "`"+s+"`") {
			t.Errorf("the document lacks %q", s)
		}
	}
	// What an artifact has is what its table has.
	m := skipped()
	m.Extras = nil
	manifest, err := newImage(t, m).Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for k := range manifest.Annotations {
		if !strings.Contains(doc, "\n| `"+k+"` |") {
			t.Errorf("the table of annotations lacks %q", k)
		}
	}
	rows := 0
	for _, line := range strings.Split(doc, "\n") {
		c := strings.Split(strings.ReplaceAll(strings.Trim(line, "| "), "`", ""), " | ")
		if len(c) != 7 || !strings.Contains(line, "`") {
			continue
		}
		rows++
		k := artifact.Kernel{Distro: c[1], Suite: c[2], Release: c[3], Arch: c[4]}
		tag, err := artifact.KernelTag(artifact.Meta{Version: c[0], Kernel: k})
		index, err2 := artifact.VersionTag(c[0])
		if got := append(slices.Clone(c[:5]), tag, index); err != nil || err2 != nil || !slices.Equal(got, c) {
			t.Errorf("the document has %q; want %q (%v, %v)", c, got, err, err2)
		}
	}
	if rows < 4 {
		t.Errorf("found %d tags in the document", rows)
	}
}
