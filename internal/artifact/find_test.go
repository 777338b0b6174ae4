package artifact_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
)

var want = artifact.Want{Distro: "debian", Suite: "bookworm", Arch: "amd64", Release: "6.1.0-1-amd64", Symvers: hash("symvers")}

func wanted(change func(*artifact.Want)) artifact.Want {
	w := want
	change(&w)
	return w
}

func TestFind(t *testing.T) {
	stores(t, func(t *testing.T, open func() *registry.Repo) {
		ctx, repo := context.Background(), open()
		if _, _, err := artifact.Find(ctx, repo, "3.23-1", want); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("Find in nothing = %v", err)
		}
		var list []artifact.Publication
		for _, r := range []string{"6.1.0-1-amd64", "6.1.0-2-amd64"} {
			p, err := publication(r)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, p)
		}
		out, err := artifact.Publish(ctx, repo, list)
		if err != nil {
			t.Fatal(err)
		}
		first := out.Entries[0]
		for _, id := range []string{"", "3.23-1", "3.23_-1", out.Index.String(), first.Tag, first.Digest.String()} {
			e, img, err := artifact.Find(ctx, open(), id, want)
			if err != nil || e.Digest != first.Digest {
				t.Errorf("Find(%q) = %v, %v; want %v", id, e.Digest, err, first.Digest)
				continue
			}
			if m, _, err := artifact.Read(img); err != nil || m.Kernel != first.Kernel {
				t.Errorf("Find(%q): Read = %+v, %v", id, m, err)
			}
		}
		for _, tt := range []struct {
			id    string
			w     artifact.Want
			says  string
			other int
		}{
			{"3.23-1", wanted(func(w *artifact.Want) { w.Release = "6.1.0-9-amd64" }), "2 other kernels", 0},
			{"3.23-1", wanted(func(w *artifact.Want) { w.Suite = "sid" }), "debian/sid:6.1.0-1-amd64", 0},
			{"3.23-1", wanted(func(w *artifact.Want) { w.Distro = "ubuntu" }), "ubuntu/", 0},
			{"3.23-1", wanted(func(w *artifact.Want) { w.Arch = "arm64" }), "on arm64", 1},
			{"3.23-1", wanted(func(w *artifact.Want) { w.Symvers = hash("other") }), hash("other").String(), 1},
			{first.Tag, wanted(func(w *artifact.Want) { w.Release = "6.1.0-2-amd64" }), "1 other kernel", 0},
			{first.Digest.String(), wanted(func(w *artifact.Want) { w.Symvers = hash("other") }), "6.1.192-2", 1},
		} {
			_, _, err := artifact.Find(ctx, open(), tt.id, tt.w)
			var none *artifact.NoMatchError
			if !errors.As(err, &none) || !errors.Is(err, registry.ErrNotFound) || !strings.Contains(err.Error(), tt.says) || len(none.Other) != tt.other || len(none.Have) == 0 {
				t.Errorf("Find(%q, %+v) = %v; want a NoMatchError with %q", tt.id, tt.w, err, tt.says)
			}
		}
		if e, _, err := artifact.Find(ctx, open(), "", wanted(func(w *artifact.Want) { w.Arch, w.Symvers = "x86_64", v1.Hash{} })); err != nil || e.Digest != first.Digest {
			t.Errorf("Find with another name of the architecture = %v, %v", e.Digest, err)
		}
		if _, _, err := artifact.Find(ctx, open(), "", artifact.Want{Release: want.Release}); err == nil {
			t.Error("Find by a release alone found something")
		}

		// One who pushed hasn't come to the index.
		p, err := publication("6.1.0-3-amd64")
		if err != nil {
			t.Fatal(err)
		}
		if err := repo.Push(ctx, "3.23_-1-debian-bookworm-6.1.0-3-amd64", p.Image); err != nil {
			t.Fatal(err)
		}
		if e, _, err := artifact.Find(ctx, open(), "3.23-1", wanted(func(w *artifact.Want) { w.Release = "6.1.0-3-amd64" })); err != nil || e.Digest.Hex != digest(t, p.Image) {
			t.Errorf("Find of what has a tag only = %v, %v", e.Digest, err)
		}
		if e, _, err := artifact.Find(ctx, open(), out.Index.String(), wanted(func(w *artifact.Want) { w.Release = "6.1.0-3-amd64" })); !errors.As(err, new(*artifact.NoMatchError)) {
			t.Errorf("Find by the digest of an index that lacks it = %v, %v; want a NoMatchError", e.Digest, err)
		}
		if err := repo.Push(ctx, "3.23_-1-debian-bookworm-6.1.0-4-amd64", p.Image); err != nil {
			t.Fatal(err)
		}
		if _, _, err := artifact.Find(ctx, open(), "3.23-1", wanted(func(w *artifact.Want) { w.Release = "6.1.0-4-amd64" })); !errors.Is(err, artifact.ErrInvalid) {
			t.Errorf("Find of a tag that names another kernel's artifact = %v; want ErrInvalid", err)
		}
		if err := repo.Push(ctx, "4-debian-bookworm-6.1.0-3-amd64", p.Image); err != nil {
			t.Fatal(err)
		}
		var several *artifact.VersionsError
		if _, _, err := artifact.Find(ctx, open(), "", want); !errors.As(err, &several) || !slices.Equal(several.Versions, []string{"3.23-1", "4"}) {
			t.Errorf("Find without a version = %v; want a VersionsError", err)
		}
		if _, _, err := artifact.Find(ctx, open(), "5", want); errors.As(err, new(*artifact.NoMatchError)) || !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("Find in a version that isn't there = %v", err)
		}
	})
}

// An index that lies is refused: what counts is the artifact.
func TestFindHostile(t *testing.T) {
	ctx, repo := context.Background(), openRepo(t, "oci:"+t.TempDir())
	out := publishOne(t, repo, want.Release)
	publishOne(t, repo, "6.1.0-2-amd64")
	_, good, err := repo.Manifest(ctx, "3.23_-1")
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*v1.IndexManifest){
		"the other kernel's artifact": func(m *v1.IndexManifest) {
			m.Manifests[0].Digest, m.Manifests[0].Size = m.Manifests[1].Digest, m.Manifests[1].Size
		},
		"symvers":         func(m *v1.IndexManifest) { m.Manifests[0].Annotations[artifact.AnnotationKey] = hash("x").String() },
		"size":            func(m *v1.IndexManifest) { m.Manifests[0].Annotations[artifact.AnnotationSize] = "1" },
		"size of no sort": func(m *v1.IndexManifest) { m.Manifests[0].Annotations[artifact.AnnotationSize] = "-1" },
		"manifest's size": func(m *v1.IndexManifest) { m.Manifests[0].Size++ },
		"version": func(m *v1.IndexManifest) {
			m.Annotations[artifact.AnnotationVersion] = "4"
		},
		"module":      func(m *v1.IndexManifest) { m.Annotations[artifact.AnnotationModule] = "other" },
		"no module":   func(m *v1.IndexManifest) { delete(m.Annotations, artifact.AnnotationModule) },
		"skipped":     func(m *v1.IndexManifest) { m.Manifests[0].Annotations[artifact.AnnotationStatus] = "skipped" },
		"media type":  func(m *v1.IndexManifest) { m.Manifests[0].MediaType = types.DockerManifestSchema2 },
		"platform":    func(m *v1.IndexManifest) { m.Manifests[0].Platform.OSVersion = "6" },
		"no platform": func(m *v1.IndexManifest) { m.Manifests[0].Platform = nil },
		"twice":       func(m *v1.IndexManifest) { m.Manifests = append(m.Manifests, m.Manifests[0]) },
		"huge": func(m *v1.IndexManifest) {
			for len(m.Manifests) < 20_000 {
				m.Manifests = append(m.Manifests, v1.Descriptor{MediaType: "x", Digest: hash(fmt.Sprint(len(m.Manifests))),
					Annotations: map[string]string{artifact.AnnotationRelease: "6"}})
			}
		},
		"digest": func(m *v1.IndexManifest) { m.Manifests[0].Digest.Algorithm = "sha512" },
	} {
		m, err := v1.ParseIndexManifest(bytes.NewReader(good))
		if err != nil {
			t.Fatal(err)
		}
		change(m)
		raw, err := json.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		if err := repo.PutManifest(ctx, "3.23_-1", types.OCIImageIndex, raw); err != nil {
			t.Fatal(err)
		}
		e, _, err := artifact.Find(ctx, repo, "3.23_-1", want)
		if !errors.Is(err, artifact.ErrInvalid) && !errors.Is(err, registry.ErrAltered) {
			t.Errorf("%s: Find = %+v, %v; want an error", name, e, err)
		}
		// Somebody who pushes mends what can be.
		p, err := publication(want.Release)
		if err != nil {
			t.Fatal(err)
		}
		again, err := artifact.Publish(ctx, repo, []artifact.Publication{p})
		switch name {
		case "version", "module", "no module", "digest":
			if err == nil || errors.Is(err, artifact.ErrIndex) {
				t.Errorf("%s: Publish over something else = %v; want it refused before anything is pushed", name, err)
			}
		default:
			if len(again.Warnings) > 17 {
				t.Errorf("%s: %d warnings", name, len(again.Warnings))
			}
			if e, _, err2 := artifact.Find(ctx, repo, "3.23_-1", want); err != nil || err2 != nil || e.Digest != out.Entries[0].Digest {
				t.Errorf("%s: Publish = %+v, %v; then Find = %+v, %v", name, again, err, e, err2)
			}
		}
	}
	// An entry that says less, as an older version of this program may write, is taken.
	m, err := v1.ParseIndexManifest(bytes.NewReader(good))
	if err != nil {
		t.Fatal(err)
	}
	delete(m.Manifests[0].Annotations, artifact.AnnotationCompiler)
	m.Manifests[0].Annotations["dev.example.later"] = "x"
	m.Manifests = append(m.Manifests, v1.Descriptor{MediaType: "application/vnd.example", Digest: hash("another thing"), Size: 2})
	raw, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := repo.PutManifest(ctx, "3.23_-1", types.OCIImageIndex, raw); err != nil {
		t.Fatal(err)
	}
	if e, _, err := artifact.Find(ctx, repo, "3.23_-1", want); err != nil || e.Digest != out.Entries[0].Digest {
		t.Errorf("Find in the index of another version of this program = %v, %v", e.Digest, err)
	}
}

func TestList(t *testing.T) {
	stores(t, func(t *testing.T, open func() *registry.Repo) {
		ctx, repo := context.Background(), open()
		if _, err := artifact.List(ctx, repo); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("List of nothing = %v; want ErrNotFound", err)
		}
		publishOne(t, repo, "6.1.0-2-amd64")
		publishOne(t, repo, "6.1.0-1-amd64")
		m := meta()
		m.Version = "2"
		img := newImage(t, m, file("a.ko", "a"))
		if err := repo.Push(ctx, "2-debian-bookworm-6.1.0-56-amd64", img); err != nil { // in no index
			t.Fatal(err)
		}
		// Other things, and one that isn't what it says.
		for _, tag := range []string{"latest", "key-00"} {
			if err := repo.Push(ctx, tag, img); err != nil {
				t.Fatal(err)
			}
		}
		if err := repo.PutManifest(ctx, "1.0", types.OCIImageIndex, []byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`)); err != nil {
			t.Fatal(err)
		}
		if err := repo.Push(ctx, "3.23_-1-debian-bookworm-wrong", img); err != nil {
			t.Fatal(err)
		}
		list, err := artifact.List(ctx, open())
		if err != nil {
			t.Fatal(err)
		}
		if err := artifact.Describe(ctx, open(), list); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, l := range list {
			got = append(got, fmt.Sprint(l.Module, " ", l.Version, " ", l.Kernel.Release, " ", l.Tag, " ", l.Indexed, " ", l.Created.Equal(time.Unix(1e9, 0)), " ", l.Err != nil))
			if l.Err == nil && (l.Size < 1024 || l.Digest == v1.Hash{} || l.Headers == "") {
				t.Errorf("%+v", l)
			}
		}
		want := []string{
			"  " + " 3.23_-1-debian-bookworm-wrong false false true",
			"xtables-addons 2 6.1.0-56-amd64 2-debian-bookworm-6.1.0-56-amd64 false false false",
			"xtables-addons 3.23-1 6.1.0-1-amd64 3.23_-1-debian-bookworm-6.1.0-1-amd64 true true false",
			"xtables-addons 3.23-1 6.1.0-2-amd64 3.23_-1-debian-bookworm-6.1.0-2-amd64 true true false",
		}
		if !slices.Equal(got, want) {
			t.Errorf("List:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}
