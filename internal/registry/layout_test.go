package registry_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
)

// layoutWith is a layout directory with an image as 1.0.
func layoutWith(t *testing.T, img v1.Image) (string, *registry.Repo) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "layout")
	r := open(t, client(t, registry.Options{}), "oci:"+dir)
	if err := r.Push(t.Context(), "1.0", img); err != nil {
		t.Fatal(err)
	}
	return dir, r
}

func blobFile(dir string, h v1.Hash) string { return filepath.Join(dir, "blobs", h.Algorithm, h.Hex) }

// A layout has what image-spec says, and nothing else.
func TestLayoutFiles(t *testing.T) {
	img := layers(t, 1, 10)
	dir, r := layoutWith(t, img)
	if got := names(t, dir); !slices.Equal(got, []string{"blobs", "index.json", "oci-layout"}) {
		t.Errorf("files: %q", got)
	}
	if got := names(t, filepath.Join(dir, "blobs", "sha256")); len(got) != 3 {
		t.Errorf("blobs: %q", got)
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	other := layers(t, 2, 10)
	if err := open(t, client(t, registry.Options{}), "oci:"+link).Push(t.Context(), "2.0", other); err != nil {
		t.Fatal(err)
	}
	if tags, err := r.Tags(t.Context()); err != nil || !slices.Equal(tags, []string{"1.0", "2.0"}) {
		t.Errorf("Tags = %q, %v", tags, err)
	}
	// Who comes first makes no difference.
	back, _ := layoutWith(t, img)
	os.RemoveAll(back)
	r = open(t, client(t, registry.Options{}), "oci:"+back)
	for _, p := range []struct {
		tag string
		img v1.Image
	}{{"2.0", other}, {"1.0", other}, {"1.0", img}} {
		if err := r.Push(t.Context(), p.tag, p.img); err != nil {
			t.Fatal(err)
		}
	}
	a, b := read(t, dir, "index.json"), read(t, back, "index.json")
	if !bytes.Equal(a, b) {
		t.Errorf("%s is not %s", a, b)
	}
}

func read(t *testing.T, path ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(path...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A damaged blob is found, and healed by the next push of the same.
func TestLayoutHeals(t *testing.T) {
	img := layers(t, 1, 1000, 2000)
	d, content := layer(t, img, 0)
	config, err := img.ConfigName()
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range []v1.Hash{d.Digest, config, digest(t, img)} {
		for name, damage := range map[string]func(path string) error{
			"a bit": func(path string) error {
				b := read(t, path)
				b[len(b)/2] ^= 1
				return os.WriteFile(path, b, 0o644)
			},
			"cut":  func(path string) error { return os.Truncate(path, 10) },
			"more": func(path string) error { return os.WriteFile(path, append(read(t, path), 1), 0o644) },
			"gone": os.Remove,
			"fifo": func(path string) error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o644)) },
		} {
			dir, r := layoutWith(t, img)
			if err := damage(blobFile(dir, h)); err != nil {
				t.Fatal(err)
			}
			check := func() error {
				got, err := r.Image(t.Context(), "1.0")
				if err != nil {
					return err
				}
				l, err := got.LayerByDigest(d.Digest)
				if err != nil {
					return err
				}
				rc, err := l.Compressed()
				if err != nil {
					return err
				}
				defer rc.Close()
				b, err := io.ReadAll(rc)
				if err == nil && !bytes.Equal(b, content) {
					t.Errorf("%s of %s: another content", name, h)
				}
				_, cerr := got.RawConfigFile()
				return errors.Join(err, cerr)
			}
			err := check()
			if want := map[string]error{"gone": registry.ErrNotFound}[name]; err == nil || want != nil && !errors.Is(err, want) ||
				want == nil && name != "fifo" && !errors.Is(err, registry.ErrAltered) {
				t.Errorf("%s of %s: %v", name, h, err)
			}
			if err := r.Push(t.Context(), "1.0", img); err != nil {
				t.Errorf("%s of %s: Push: %v", name, h, err)
			}
			if err := check(); err != nil {
				t.Errorf("%s of %s, after a push: %v", name, h, err)
			}
		}
	}
}

// What others wrote into index.json stays as it is.
func TestLayoutOfOthers(t *testing.T) {
	img := layers(t, 1, 10)
	dir, r := layoutWith(t, img)
	var idx map[string]any
	if err := json.Unmarshal(read(t, dir, "index.json"), &idx); err != nil {
		t.Fatal(err)
	}
	foreign := []any{
		map[string]any{"mediaType": "application/vnd.example.thing", "digest": "blake3:00", "size": 5., "example": map[string]any{"a": 1.}},
		map[string]any{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "sha256:../../../etc/passwd", "size": 5.,
			"annotations": map[string]any{"org.opencontainers.image.ref.name": "evil"}},
		map[string]any{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": "../x:" + strings.Repeat("a", 64), "size": 5.,
			"annotations": map[string]any{"org.opencontainers.image.ref.name": "evil2"}},
		map[string]any{"annotations": map[string]any{"org.opencontainers.image.ref.name": "docker.io/library/x:1", "digest": 5.}},
		"not even an object",
	}
	idx["manifests"] = append(idx["manifests"].([]any), foreign...)
	idx["annotations"] = map[string]any{"example": "kept"}
	b, err := json.Marshal(idx)
	if err != nil {
		t.Fatal(err)
	}
	write(t, b, dir, "index.json")
	if err := r.Push(t.Context(), "2.0", layers(t, 2, 10)); err != nil {
		t.Fatal(err)
	}
	var now map[string]any
	if err := json.Unmarshal(read(t, dir, "index.json"), &now); err != nil {
		t.Fatal(err)
	}
	for _, f := range foreign {
		if !slices.ContainsFunc(now["manifests"].([]any), func(e any) bool { return fmt.Sprint(e) == fmt.Sprint(f) }) {
			t.Errorf("%v is not there any more", f)
		}
	}
	if len(now["manifests"].([]any)) != 7 || fmt.Sprint(now["annotations"]) != "map[example:kept]" {
		t.Errorf("index.json: %v", now)
	}
	if tags, err := r.Tags(t.Context()); err != nil || !slices.Equal(tags, []string{"1.0", "2.0", "evil", "evil2"}) {
		t.Errorf("Tags = %q, %v", tags, err)
	}
	for _, id := range []string{"evil", "evil2"} {
		if _, err := r.Image(t.Context(), id); !errors.Is(err, registry.ErrAltered) {
			t.Errorf("Image(%q) = %v; want ErrAltered", id, err)
		}
	}
	for _, id := range []string{"../../x", "", "sha512:" + strings.Repeat("a", 128)} {
		if _, err := r.Head(t.Context(), id); err == nil {
			t.Errorf("Head(%q) found something", id)
		}
		if err := r.Push(t.Context(), id, img); err == nil {
			t.Errorf("Push to %q went well", id)
		}
	}
}

func TestLayoutGarbage(t *testing.T) {
	for _, text := range []string{"", "{", `{"manifests":5,"schemaVersion":2}`, `[]`, "null", `{"schemaVersion":1}`, strings.Repeat(" ", 17<<20) + "{}"} {
		dir := t.TempDir()
		write(t, []byte(text), dir, "index.json")
		r := open(t, client(t, registry.Options{}), "oci:"+dir)
		if _, err := r.Tags(t.Context()); !errors.Is(err, registry.ErrAltered) || !strings.Contains(err.Error(), "index.json") {
			t.Errorf("%.20q: Tags = %v; want ErrAltered", text, err)
		}
		if err := r.Push(t.Context(), "1.0", layers(t, 1, 10)); err == nil {
			t.Errorf("%.20q: Push went well", text)
		}
		if got := string(read(t, dir, "index.json")); got != text {
			t.Errorf("%.20q has become %.20q", text, got)
		}
	}
}

// A push that fails, is cancelled or killed leaves no layout where there was none, and the next one goes well.
func TestLayoutWholeOrNot(t *testing.T) {
	img := layers(t, 1, 10, 1000)
	d, _ := layer(t, img, 1)
	for _, name := range []string{"absent", "empty", "killed"} {
		dir := filepath.Join(t.TempDir(), "a", "layout")
		switch name {
		case "empty":
			if err := os.MkdirAll(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		case "killed":
			write(t, []byte("x"), dir, ".partial", "123", "abc")
		}
		r := open(t, client(t, registry.Options{}), "oci:"+dir)
		if _, err := r.Tags(t.Context()); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("%s: Tags = %v; want ErrNotFound", name, err)
		}
		failing := &withoutLayer{img, d.Digest}
		if err := r.Push(t.Context(), "1.0", failing); err == nil {
			t.Errorf("%s: Push without a layer went well", name)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := r.Push(ctx, "1.0", img); !errors.Is(err, context.Canceled) {
			t.Errorf("%s: Push = %v; want Canceled", name, err)
		}
		if _, err := os.Stat(dir); (err == nil) != (name != "absent") {
			t.Errorf("%s: the directory: %v", name, err)
		} else if got := names(t, dir); len(got) > 0 {
			t.Errorf("%s: left: %q", name, got)
		}
		l, err := r.Lock(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		if _, err := r.Tags(t.Context()); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("%s: Tags = %v; want ErrNotFound", name, err)
		}
		if err := r.Push(t.Context(), "1.0", img); err != nil {
			t.Errorf("%s: Push: %v", name, err)
		}
		if got := names(t, dir); !slices.Equal(got, []string{"blobs", "index.json", "oci-layout"}) {
			t.Errorf("%s: files: %q", name, got)
		}
	}
}

// withoutLayer is an image one of whose layers can't be read.
type withoutLayer struct {
	v1.Image
	h v1.Hash
}

func (w *withoutLayer) LayerByDigest(h v1.Hash) (v1.Layer, error) {
	l, err := w.Image.LayerByDigest(h)
	if h == w.h {
		return &unreadable{l}, err
	}
	return l, err
}

type unreadable struct{ v1.Layer }

func (u *unreadable) Compressed() (io.ReadCloser, error) {
	return io.NopCloser(io.MultiReader(strings.NewReader("some bytes"), failing{})), nil
}

type failing struct{}

func (failing) Read([]byte) (int, error) { return 0, errors.New("it can't be read") }

// Also where a registry is the place to go: why it can't be read is said, and it isn't tried again.
func TestUnreadableLayer(t *testing.T) {
	img := layers(t, 1, 10, 1000)
	d, _ := layer(t, img, 1)
	s := serve(t)
	err := open(t, client(t, registry.Options{}), s.host()+"/team/mod").Push(t.Context(), "1.0", &withoutLayer{img, d.Digest})
	if err == nil || !strings.Contains(err.Error(), "it can't be read") || errors.Is(err, registry.ErrUnavailable) {
		t.Errorf("Push = %v", err)
	}
	if n := s.count("PUT", d.Digest.Hex); n > 1 {
		t.Errorf("%d tries", n)
	}
	if n := s.count("PUT", "/manifests/"); n > 0 {
		t.Error("the manifest was pushed")
	}
}

// A layout that may only be read can be.
func TestLayoutReadOnly(t *testing.T) {
	img := layers(t, 1, 10)
	dir, _ := layoutWith(t, img)
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		need.Skip(t, "no mount: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	if err := unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	c := client(t, registry.Options{})
	r := open(t, c, "oci:"+dir)
	got, err := c.Fetch(t.Context(), r, "1.0", t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, img)
	if err := r.Push(t.Context(), "2.0", img); !errors.Is(err, os.ErrPermission) && !errors.Is(err, unix.EROFS) {
		t.Errorf("Push = %v", err)
	}
}

// Eight processes push and attach at once, to a layout and to a registry without the referrers API, and nothing is lost.
func TestProcesses(t *testing.T) {
	const n = 8
	subject := layers(t, 1, 100)
	if ref := os.Getenv("TEST_PROCESS_REF"); ref != "" {
		var i int
		fmt.Sscan(os.Getenv("TEST_PROCESS"), &i)
		d, err := partial.Descriptor(subject)
		if err != nil {
			t.Fatal(err)
		}
		r := open(t, client(t, registry.Options{}), ref)
		for time.Now().UnixMilli()%200 > 5 { // at once
		}
		if err := r.Push(t.Context(), fmt.Sprintf("2.%d", i), layers(t, uint64(100+i), 50_000)); err != nil {
			t.Fatal(err)
		}
		if err := r.Attach(t.Context(), d.Digest, mutate.Subject(layers(t, uint64(200+i), 10), *d).(v1.Image)); err != nil {
			t.Fatal(err)
		}
		return
	}
	s := serve(t)
	for _, ref := range []string{"oci:" + filepath.Join(t.TempDir(), "layout"), s.host() + "/team/mod"} {
		r := open(t, client(t, registry.Options{}), ref)
		if err := r.Push(t.Context(), "1.0", subject); err != nil {
			t.Fatal(err)
		}
		var all []*exec.Cmd
		for i := range n {
			cmd := exec.Command(os.Args[0], "-test.run=^TestProcesses$")
			cmd.Env = append(os.Environ(), "TEST_PROCESS_REF="+ref, fmt.Sprintf("TEST_PROCESS=%d", i))
			cmd.Stdout = new(bytes.Buffer)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			all = append(all, cmd)
		}
		for _, cmd := range all {
			if err := cmd.Wait(); err != nil {
				t.Errorf("%v\n%s", err, cmd.Stdout)
			}
		}
		tags, err := r.Tags(t.Context())
		tags = slices.DeleteFunc(tags, func(tag string) bool { return strings.HasPrefix(tag, "sha256-") })
		if err != nil || len(tags) != n+1 {
			t.Errorf("%s: Tags = %q, %v", ref, tags, err)
		}
		least := 1 // a registry's list, which has no lock
		if strings.HasPrefix(ref, "oci:") {
			least = n
		}
		if list, err := r.Referrers(t.Context(), digest(t, subject)); err != nil || len(list) < least {
			t.Errorf("%s: %d referrers, %v; want %d", ref, len(list), err, least)
		}
		if dir, ok := strings.CutPrefix(ref, "oci:"); ok && !slices.Equal(names(t, dir), []string{"blobs", "index.json", "oci-layout"}) {
			t.Errorf("files: %q", names(t, dir))
		}
	}
}
