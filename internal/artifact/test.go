package artifact

import (
	"fmt"
	"regexp"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Annotations of the manifest of a test's record.
const (
	AnnotationTestVerdict = prefix + "test.verdict" // "loads"
	AnnotationTestImage   = prefix + "test.image"   // digest of the file of the kernel that was booted
	AnnotationTestQEMU    = prefix + "test.qemu"    // version
	AnnotationTestAccel   = prefix + "test.accel"   // "kvm" or "tcg"
)

// MaxTest is how many bytes the record of a test has at most.
const MaxTest = 1 << 20

// Test is what came of loading an artifact's modules in a virtual machine that ran their kernel. The zero value is none.
type Test struct {
	Verdict string    // "loads"; see package trial
	Tested  time.Time // in whole seconds
	Image   v1.Hash   // of the file of the kernel that was booted
	QEMU    string    // version
	Accel   string    // "kvm" or "tcg"
	Record  []byte    // all that is known of it, as JSON; MaxTest at most
}

// testKind is how the record of a test is attached.
var testKind = attachment{artifactType: TestType, title: "test.json", layerType: "application/json", max: MaxTest}

// wordForm is what verdicts, versions and names of accelerators are made of.
var wordForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~:-]{0,63}$`)

func (t Test) check() error {
	if h, err := v1.NewHash(t.Image.String()); err != nil || h.Algorithm != "sha256" {
		return invalid("a test on the kernel image %q", t.Image)
	}
	for _, word := range []string{t.Verdict, t.QEMU, t.Accel} {
		if !wordForm.MatchString(word) {
			return invalid("a test with %.80q", word)
		}
	}
	if t.Tested.IsZero() {
		return invalid("a test without a time")
	}
	return nil
}

// image is the same for the same subject and test.
func (t Test) image(subject v1.Descriptor) (v1.Image, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	if len(t.Record) == 0 || len(t.Record) > MaxTest {
		return nil, fmt.Errorf("%q has %d bytes; 1 to %d are allowed", testKind.title, len(t.Record), MaxTest)
	}
	return testKind.image(subject, t.Record, map[string]string{
		ocispec.AnnotationCreated: t.Tested.UTC().Format(time.RFC3339),
		AnnotationTestVerdict:     t.Verdict,
		AnnotationTestImage:       t.Image.String(),
		AnnotationTestQEMU:        t.QEMU,
		AnnotationTestAccel:       t.Accel,
	})
}

// attachedTest is a test whose record isn't read yet.
type attachedTest struct {
	Test
	layer v1.Descriptor
}

// testsOf gives the tests among candidates, the newest first. What is none is left out.
func testsOf(list []candidate) (out []attachedTest) {
	for _, c := range list {
		if testKind.check(c, Meta{}) != nil {
			continue
		}
		a := c.manifest.Annotations
		t := Test{Verdict: a[AnnotationTestVerdict], Tested: c.created(), QEMU: a[AnnotationTestQEMU], Accel: a[AnnotationTestAccel]}
		var err error
		if t.Image, err = v1.NewHash(a[AnnotationTestImage]); err != nil || t.check() != nil {
			continue
		}
		out = append(out, attachedTest{t, c.manifest.Layers[0]})
	}
	slices.SortStableFunc(out, func(a, b attachedTest) int { return b.Tested.Compare(a.Tested) })
	return out
}
