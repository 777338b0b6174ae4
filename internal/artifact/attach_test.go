package artifact_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	v1registry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
)

func openRepo(t testing.TB, ref string) *registry.Repo {
	t.Helper()
	c, err := registry.New(registry.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := registry.Parse(ref)
	if err != nil {
		t.Fatal(err)
	}
	r, err := c.Open(parsed)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// stores runs a test against each kind of repository; open gives the same one every time, as another process sees it.
func stores(t *testing.T, run func(t *testing.T, open func() *registry.Repo)) {
	for name, opts := range map[string][]v1registry.Option{
		"registry": {v1registry.WithReferrersSupport(true)}, "registry without referrers": nil,
	} {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(newRegistry(opts...))
			t.Cleanup(s.Close)
			run(t, func() *registry.Repo { return openRepo(t, strings.TrimPrefix(s.URL, "http://")+"/team/mod") })
		})
	}
	t.Run("layout", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "layout")
		run(t, func() *registry.Repo { return openRepo(t, "oci:"+dir) })
	})
}

const exported = "0x12345678\tfoo\tfoo\tEXPORT_SYMBOL\t\n"

// pushed is an artifact in a repository.
func pushed(t *testing.T, repo *registry.Repo, m artifact.Meta) v1.Descriptor {
	t.Helper()
	img := newImage(t, m, file("a.ko", "aaaa"))
	if err := repo.Push(context.Background(), "tag", img); err != nil {
		t.Fatal(err)
	}
	d, err := partial.Descriptor(img)
	if err != nil {
		t.Fatal(err)
	}
	return *d
}

func attachable() artifact.Meta {
	m := withExtras(extra("Module.symvers", "", exported))
	m.Lock, m.Key = hash("the lock"), hash("the inputs")
	return m
}

func TestAttach(t *testing.T) {
	stores(t, func(t *testing.T, open func() *registry.Repo) {
		ctx, repo := context.Background(), open()
		d := pushed(t, repo, attachable())
		if got, err := artifact.ReadAttachments(ctx, repo, d.Digest); err != nil || got.Log != nil || got.Lock != nil || got.Symvers != nil {
			t.Errorf("attached to what has nothing: %+v, %v", got, err)
		}
		now := time.Date(2026, 1, 2, 3, 4, 5, 6, time.FixedZone("", 3600))
		a := artifact.Attachments{Log: []byte("first"), Created: now, Lock: []byte("the lock"), Symvers: []byte(exported), Inputs: []byte("the inputs")}
		if err := artifact.Attach(ctx, repo, d, a); err != nil {
			t.Fatal(err)
		}
		a.Log, a.Created = []byte("second"), now.Add(time.Hour)
		if err := artifact.Attach(ctx, open(), d, a); err != nil {
			t.Fatal(err)
		}
		if list, err := repo.Referrers(ctx, d.Digest); err != nil || len(list) != 4 {
			t.Errorf("%d referrers, %v; want 4: nothing is attached twice", len(list), err)
		}
		got, err := artifact.ReadAttachments(ctx, open(), d.Digest)
		if err != nil || string(got.Log) != "first" || string(got.Lock) != "the lock" || string(got.Symvers) != exported || string(got.Inputs) != "the inputs" ||
			!got.Created.Equal(now.Truncate(time.Second)) {
			t.Errorf("ReadAttachments = %+v, %v", got, err)
		}
		got, err = artifact.ReadAttachmentsOf(ctx, open(), d.Digest, attachable(), artifact.LogType)
		if err != nil || string(got.Log) != "first" || got.Lock != nil || got.Symvers != nil {
			t.Errorf("ReadAttachmentsOf for the log alone = %+v, %v", got, err)
		}
	})
}

func TestAttachTests(t *testing.T) {
	stores(t, func(t *testing.T, open func() *registry.Repo) {
		ctx, repo := context.Background(), open()
		d := pushed(t, repo, attachable())
		first := artifact.Test{Verdict: "crashes", Tested: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Image: hash("vmlinuz"), QEMU: "7.2.22", Accel: "tcg", Record: []byte(`{"a":1}`)}
		second := first
		second.Verdict, second.Tested, second.Record = "loads", first.Tested.Add(time.Hour), []byte(`{"a":2}`)
		for _, a := range [][]artifact.Test{{first}, {second, first}} {
			if err := artifact.Attach(ctx, open(), d, artifact.Attachments{Tests: a}); err != nil {
				t.Fatal(err)
			}
		}
		wrong := second // as something else may attach it
		wrong.Verdict, wrong.Tested = "", second.Tested.Add(time.Hour)
		if err := artifact.Attach(ctx, repo, d, artifact.Attachments{Tests: []artifact.Test{wrong}}); err == nil {
			t.Error("a test without a verdict was attached")
		}
		if list, err := repo.Referrers(ctx, d.Digest); err != nil || len(list) != 2 {
			t.Errorf("%d referrers, %v; want 2: no test is attached twice", len(list), err)
		}
		got, err := artifact.ReadAttachmentsOf(ctx, open(), d.Digest, attachable(), artifact.TestType)
		if want := []artifact.Test{second, first}; err != nil || !reflect.DeepEqual(got.Tests, want) {
			t.Errorf("ReadAttachmentsOf = %+v, %v; want %+v", got.Tests, err, want)
		}
	})
}

// Of more tests than are read, those are read that count.
func TestManyTests(t *testing.T) {
	t.Parallel()
	stores(t, func(t *testing.T, open func() *registry.Repo) {
		ctx, repo := context.Background(), open()
		d := pushed(t, repo, attachable())
		test := artifact.Test{Verdict: "loads", Image: hash("vmlinuz"), QEMU: "7.2.22", Accel: "tcg", Record: []byte("{}")}
		var all []artifact.Test
		for i := range 40 {
			test.Tested = time.Date(2026, 1, 1, i, 0, 0, 0, time.UTC)
			all = append(all, test)
		}
		all[len(all)-1].Verdict = "crashes"
		if err := artifact.Attach(ctx, repo, d, artifact.Attachments{Tests: all, Lock: []byte("the lock")}); err != nil {
			t.Fatal(err)
		}
		got, err := artifact.ReadAttachmentsOf(ctx, open(), d.Digest, attachable(), artifact.TestType, artifact.LockType)
		if err != nil || string(got.Lock) != "the lock" || len(got.Tests) == 0 || got.Tests[0].Verdict != "crashes" || !got.Tests[len(got.Tests)-1].Tested.Equal(all[len(all)-len(got.Tests)].Tested) {
			t.Errorf("ReadAttachmentsOf = %d tests, lock %q, %v; want the lock and the newest tests, the last of which crashes", len(got.Tests), got.Lock, err)
		}
	})
}

// A referrer that says it is a test and isn't is none.
func TestForeignTests(t *testing.T) {
	ctx, repo := context.Background(), openRepo(t, "oci:"+t.TempDir())
	d := pushed(t, repo, attachable())
	good := artifact.Test{Verdict: "loads", Tested: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Image: hash("vmlinuz"), QEMU: "7.2.22", Accel: "tcg", Record: []byte(`{}`)}
	if err := artifact.Attach(ctx, repo, d, artifact.Attachments{Tests: []artifact.Test{good}}); err != nil {
		t.Fatal(err)
	}
	list, err := repo.Referrers(ctx, d.Digest)
	if err != nil || len(list) != 1 {
		t.Fatalf("Referrers = %v, %v", list, err)
	}
	_, raw, err := repo.Manifest(ctx, list[0].Digest.String())
	if err != nil {
		t.Fatal(err)
	}
	want := 1
	for _, spoil := range []struct{ annotation, value string }{
		{artifact.AnnotationTestVerdict, ""}, {artifact.AnnotationTestVerdict, "\x1b[31mloads"}, {artifact.AnnotationTestImage, "sha256:1"},
		{artifact.AnnotationTestQEMU, "7 2"}, {artifact.AnnotationTestAccel, strings.Repeat("x", 65)}, {"org.opencontainers.image.created", "today"},
		{"another", "whose value is nobody's business"},
	} {
		m, err := v1.ParseManifest(bytes.NewReader(raw))
		if err != nil {
			t.Fatal(err)
		}
		m.Annotations[spoil.annotation] = spoil.value
		b, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if err := repo.PutManifest(ctx, hash(string(b)).String(), types.OCIManifestSchema1, b); err != nil {
			t.Fatal(err)
		}
		if spoil.annotation == "another" {
			want++
		}
		got, err := artifact.ReadAttachmentsOf(ctx, repo, d.Digest, attachable(), artifact.TestType)
		if err != nil || len(got.Tests) != want || got.Tests[0].Verdict != "loads" {
			t.Errorf("%s %q: ReadAttachmentsOf = %+v, %v; want %d tests", spoil.annotation, spoil.value, got.Tests, err, want)
		}
	}
}

func TestAttachRefuses(t *testing.T) {
	repo := openRepo(t, "oci:"+t.TempDir())
	d := pushed(t, repo, attachable())
	err := artifact.Attach(context.Background(), repo, d, artifact.Attachments{Log: make([]byte, 2<<20+1)})
	if err == nil || !strings.Contains(err.Error(), "build.log") {
		t.Errorf("Attach of a huge log = %v", err)
	}
}

// referrer is what anybody may attach.
func referrer(t *testing.T, repo *registry.Repo, subject v1.Descriptor, artifactType string, layer types.MediaType, size int64, content string, notes ...string) v1.Hash {
	t.Helper()
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, ArtifactType: artifactType, Subject: &subject,
		Config: v1.Descriptor{MediaType: "application/vnd.oci.empty.v1+json", Size: 2, Digest: hash("{}")},
		Layers: []v1.Descriptor{{MediaType: layer, Size: size, Digest: hash(content)}}, Annotations: map[string]string{}}
	for _, note := range notes {
		m.Annotations[hash(note).Hex] = note
	}
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.PutManifest(context.Background(), hash(string(raw)).String(), types.OCIManifestSchema1, raw); err != nil {
		t.Fatal(err)
	}
	return hash(string(raw))
}

// What is attached to an artifact but isn't its own is not believed, and is not read.
func TestReadAttachmentsHostile(t *testing.T) {
	stores(t, func(t *testing.T, open func() *registry.Repo) {
		ctx, repo := context.Background(), open()
		bare := meta()
		for _, tt := range []struct {
			name, artifactType string
			layer              types.MediaType
			size               int64
			m                  artifact.Meta
		}{
			{"another lock", artifact.LockType, "application/json", 8, attachable()},
			{"lock of another type", artifact.LockType, "text/plain", 8, attachable()},
			{"huge lock", artifact.LockType, "application/json", 5 << 20, attachable()},
			{"negative size", artifact.LockType, "application/json", -1, attachable()},
			{"other inputs", artifact.InputsType, "application/json", 8, attachable()},
			{"other symbols", artifact.SymversType, "text/plain", 8, attachable()},
			{"symbols of none", artifact.SymversType, "text/plain", 8, bare},
			{"huge log", artifact.LogType, "text/plain", 3 << 20, attachable()},
			{"log of another type", artifact.LogType, "application/octet-stream", 8, attachable()},
		} {
			tt.m.Reason, tt.m.Compiler = "", tt.name // another artifact for each
			d := pushed(t, repo, tt.m)
			referrer(t, repo, d, tt.artifactType, tt.layer, tt.size, "whatever")
			if got, err := artifact.ReadAttachments(ctx, open(), d.Digest); !errors.Is(err, artifact.ErrInvalid) {
				t.Errorf("%s: ReadAttachments = %+v, %v; want ErrInvalid", tt.name, got, err)
			}
			// The right one is found beside it.
			a := artifact.Attachments{Lock: []byte("the lock")}
			switch tt.artifactType {
			case artifact.SymversType:
				a = artifact.Attachments{Symvers: []byte(exported)}
			case artifact.InputsType:
				a = artifact.Attachments{Inputs: []byte("the inputs")}
			}
			if tt.artifactType == artifact.LogType || len(tt.m.Extras) == 0 {
				continue
			}
			if err := artifact.Attach(ctx, repo, d, a); err != nil {
				t.Fatal(err)
			}
			if got, err := artifact.ReadAttachments(ctx, open(), d.Digest); err != nil || !bytes.Equal(got.Lock, a.Lock) || !bytes.Equal(got.Symvers, a.Symvers) || !bytes.Equal(got.Inputs, a.Inputs) {
				t.Errorf("%s: ReadAttachments = %+v, %v", tt.name, got, err)
			}
		}
	})
}

// What is far too large for an attachment is passed over, rather than held in memory.
func TestReadAttachmentsLarge(t *testing.T) {
	stores(t, func(t *testing.T, open func() *registry.Repo) {
		repo := open()
		d := pushed(t, repo, attachable())
		referrer(t, repo, d, artifact.LockType, "application/json", 8, "whatever", strings.Repeat("x", 200_000))
		if got, err := artifact.ReadAttachments(context.Background(), repo, d.Digest); err != nil || got.Lock != nil {
			t.Errorf("ReadAttachments = %+v, %v; want nothing", got, err)
		}
	})
}

// Thousands of referrers cost a bounded number of requests, and of several logs the same one is read, whoever came first.
func TestReadAttachmentsMany(t *testing.T) {
	n := 0
	reg := newRegistry(v1registry.WithReferrersSupport(true))
	s := httptest.NewServer(countRequests(reg, &n))
	defer s.Close()
	ctx, repo := context.Background(), openRepo(t, strings.TrimPrefix(s.URL, "http://")+"/mod")
	d := pushed(t, repo, attachable())
	var all []string
	for i := range 300 {
		h := referrer(t, repo, d, artifact.LogType, "text/plain", 3, fmt.Sprint(100+i))
		all = append(all, h.String()+" "+fmt.Sprint(100+i))
	}
	for i := range 300 {
		blob := fmt.Sprint(100 + i)
		putBlob(t, s.URL, "mod", blob)
	}
	n = 0
	got, err := artifact.ReadAttachments(ctx, openRepo(t, repo.Name()), d.Digest)
	if err != nil {
		t.Fatal(err)
	}
	smallest := all[0]
	for _, x := range all {
		smallest = min(smallest, x)
	}
	if want := smallest[len(smallest)-3:]; string(got.Log) != want {
		t.Errorf("log = %q; want that with the smallest digest, %q", got.Log, want)
	}
	if n > 60 {
		t.Errorf("%d requests", n)
	}
}
