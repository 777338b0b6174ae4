package images

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gcr "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// testRegistry is a registry that counts and can be told what to do.
type testRegistry struct {
	*httptest.Server
	handler http.Handler
	mu      sync.Mutex
	down    bool
	cut     int            // of that many blobs only a half is sent
	got     map[string]int // requests by "METHOD kind", with kind manifests or blobs
	sent    int64          // bytes of blobs that were pushed
	served  int64          // bytes of blobs that were asked for
}

func newRegistry(t testing.TB) *testRegistry {
	r := &testRegistry{handler: gcr.New(gcr.Logger(log.New(io.Discard, "", 0))), got: map[string]int{}}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *testRegistry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	kind := "other"
	for _, k := range []string{"manifests", "blobs"} {
		if strings.Contains(req.URL.Path, "/"+k+"/") {
			kind = k
		}
	}
	r.mu.Lock()
	down, cut := r.down, kind == "blobs" && req.Method == http.MethodGet && r.cut > 0
	if cut {
		r.cut--
	}
	r.got[req.Method+" "+kind]++
	if kind == "blobs" && req.ContentLength > 0 {
		r.sent += req.ContentLength
	}
	r.mu.Unlock()
	if down {
		http.Error(w, "down", http.StatusForbidden) // which isn't tried again
		return
	}
	if kind != "blobs" || req.Method != http.MethodGet {
		r.handler.ServeHTTP(w, req)
		return
	}
	wanted := req.Header.Clone()
	req.Header.Del("Range") // the handler knows no ranges without an end
	rec := httptest.NewRecorder()
	r.handler.ServeHTTP(rec, req)
	body := rec.Body.Bytes()
	size := len(body)
	if cut {
		body = body[:size/2]
	}
	from := int64(0)
	fmt.Sscanf(wanted.Get("Range"), "bytes=%d-", &from)
	r.mu.Lock()
	r.served += int64(len(body)) - from // before it is sent: who asks may be gone before all is
	r.mu.Unlock()
	if cut {
		w.Header().Set("Content-Length", fmt.Sprint(size))
		w.Write(body)
	} else if rec.Code != http.StatusOK {
		w.WriteHeader(rec.Code)
	} else {
		req.Header = wanted
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(body))
	}
}

func (r *testRegistry) count(what string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.got[what]
}

func openRemote(t testing.TB, at string) Remote {
	t.Helper()
	c, err := registry.New(registry.Options{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	ref, err := registry.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	repo, err := c.Open(ref)
	if err != nil {
		t.Fatal(err)
	}
	return Remote{c, repo}
}

// remotes runs a test with a registry and with a layout directory.
func remotes(t *testing.T, test func(t *testing.T, r Remote)) {
	t.Run("registry", func(t *testing.T) {
		test(t, openRemote(t, strings.TrimPrefix(newRegistry(t).URL, "http://")+"/headers"))
	})
	t.Run("layout", func(t *testing.T) { test(t, openRemote(t, "oci:"+filepath.Join(t.TempDir(), "layout"))) })
}

// warnings keeps what a store warns of.
type warnings struct {
	mu   sync.Mutex
	list []string
}

func (w *warnings) add(s string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.list = append(w.list, s)
}

func storeWith(t testing.TB, r Remote) (*Store, *warnings) {
	t.Helper()
	w := &warnings{}
	s, err := Open(Options{Dir: t.TempDir(), Payload: tarPayload, Remote: r, Warn: w.add})
	if err != nil {
		t.Fatal(err)
	}
	return s, w
}

func mustPush(t testing.TB, r *Root, to Remote, extra kernels.Extra) v1.Hash {
	t.Helper()
	sent := [2]int64{}
	h, err := r.Push(context.Background(), to.Repo, extra, func(phase string, done, total int64) {
		if phase == "push" {
			sent = [2]int64{done, total}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if sent[0] != sent[1] || sent[0] == 0 {
		t.Errorf("progress of pushing ends at %v", sent)
	}
	return h
}

// bigLock is the tiny one with n bytes more, which don't compress, in its toolchain.
func bigLock(t testing.TB, m *packageServer, n int) kernels.Lock {
	t.Helper()
	lock := tinyLock(t, m)
	lock.Toolchain = append(slices.Clone(lock.Toolchain), m.add("random", makeTar(t, e("./usr/random", string(randomBytes(n))))))
	return lock
}

func withoutLinks(t testing.TB, l kernels.Lock) kernels.Lock {
	back, err := kernels.DecodeLock(l.Encode())
	if err != nil {
		t.Fatal(err)
	}
	return back
}

func TestPushAndPull(t *testing.T) {
	remotes(t, func(t *testing.T, remote Remote) {
		m := newMirror(t)
		lock := tinyLock(t, m)
		first := mustRoot(t, openStore(t, t.TempDir()), lock)
		want := mustPush(t, first, remote, kernels.Extra{})
		m.Close()

		gone, _, err := remote.Lock(t.Context(), lock.Kernel, kernels.Extra{})
		if err != nil || gone.Digest() != lock.Digest() {
			t.Fatalf("Lock = %v, %v; want %v", gone.Digest(), err, lock.Digest())
		}
		s, warned := storeWith(t, remote)
		last := map[string][2]int64{}
		pulled, err := s.Root(t.Context(), gone, func(phase string, done, total int64) { last[phase] = [2]int64{done, total} })
		if err != nil {
			t.Fatal(err)
		}
		defer pulled.Close()
		if len(warned.list) > 0 {
			t.Errorf("warnings: %q", warned.list)
		}
		for _, phase := range []string{"download", "unpack"} {
			if p := last[phase]; p[0] != p[1] || p[1] == 0 {
				t.Errorf("progress of %q ends at %v", phase, p)
			}
		}
		if pulled.Digest() != first.Digest() || pulled.Digest().Hex == "" {
			t.Errorf("Digest = %v; want %v", pulled.Digest(), first.Digest())
		}
		for i := range first.Layers() {
			if got, want := describe(t, pulled.Layers()[i]), describe(t, first.Layers()[i]); got != want {
				t.Errorf("layer %d is\n%s\nwant\n%s", i, got, want)
			}
		}
		if got := mustDigest(t, mustImage(t, pulled)); got != want.String() {
			t.Errorf("the pulled root's image is %s; want %s", got, want)
		}
		if left := files(t, s.path("tmp")); len(left) > 0 {
			t.Errorf("tmp has %v", left)
		}
		if n, bad, err := s.Verify(t.Context()); err != nil || len(bad) > 0 || n == 0 {
			t.Errorf("Verify = %d, %v, %v", n, bad, err)
		}
		rec, err := readRecord(s.layerDir(pulled.specs[0].key))
		if err != nil || rec.From != remote.Repo.Name() {
			t.Errorf("the layer's record is %+v, %v; want it from %q", rec, err, remote.Repo.Name())
		}

		if list, err := remote.Kernels(t.Context()); err != nil || !slices.Equal(list, []kernels.Kernel{lock.Kernel}) {
			t.Errorf("Kernels = %v, %v; want %v", list, err, lock.Kernel)
		}
		other := lock.Kernel
		other.Release = "6.1.0-10-amd64"
		if _, _, err := remote.Lock(t.Context(), other, kernels.Extra{}); !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("Lock of a kernel that isn't there = %v; want ErrNotFound", err)
		}
	})
}

// A second kernel sends and gets its headers alone.
func TestSecondKernelSharesTheToolchain(t *testing.T) {
	reg := newRegistry(t)
	remote := openRemote(t, strings.TrimPrefix(reg.URL, "http://")+"/headers")
	m := newMirror(t)
	lock := bigLock(t, m, 1<<20)
	second := secondLock(t, m, lock)
	s := openStore(t, t.TempDir())
	mustPush(t, mustRoot(t, s, lock), remote, kernels.Extra{})
	reg.sent = 0
	r := mustRoot(t, s, second)
	mustPush(t, r, remote, kernels.Extra{})
	if reg.sent == 0 || reg.sent > 32<<10 {
		t.Errorf("the second kernel sent %d bytes; the toolchain has 1 MiB", reg.sent)
	}

	into, _ := storeWith(t, remote)
	mustRoot(t, into, lock)
	before := reg.count("GET blobs")
	mustRoot(t, into, second)
	if got := reg.count("GET blobs") - before; got != 2 { // its config and its headers
		t.Errorf("the second kernel's root took %d blobs; want 2", got)
	}
	// What is there, or can be made of packages that are, asks no registry.
	before = reg.count("GET manifests")
	mustRoot(t, into, second)
	full, err := Open(Options{Dir: s.dir, Payload: tarPayload, Remote: remote})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := full.Remove(t.Context(), lock.Kernel.Release); err == nil {
		t.Error("a root in use was removed")
	}
	mustRoot(t, full, lock)
	if got := reg.count("GET manifests") - before; got != 0 {
		t.Errorf("%d requests for what is in the cache", got)
	}
}

// altered is an image with another config, layers, or annotations.
func altered(t *testing.T, img v1.Image, change func(cfg *v1.ConfigFile, layers []v1.Layer) []v1.Layer) v1.Image {
	t.Helper()
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	layers = change(cfg, layers)
	raw, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	config := static.NewLayer(raw, types.OCIConfigJSON)
	m := v1.Manifest{SchemaVersion: 2, MediaType: types.OCIManifestSchema1, Config: describeLayer(t, config)}
	blobs := map[v1.Hash]v1.Layer{m.Config.Digest: config}
	for _, l := range layers {
		d := describeLayer(t, l)
		m.Layers = append(m.Layers, d)
		blobs[d.Digest] = l
	}
	return &rawImage{Image: img, manifest: m, config: raw, blobs: blobs}
}

// rawImage is an image with any manifest and config.
type rawImage struct {
	v1.Image
	manifest v1.Manifest
	config   []byte
	blobs    map[v1.Hash]v1.Layer
}

func (r *rawImage) Manifest() (*v1.Manifest, error)           { return &r.manifest, nil }
func (r *rawImage) RawManifest() ([]byte, error)              { return json.Marshal(r.manifest) }
func (r *rawImage) RawConfigFile() ([]byte, error)            { return r.config, nil }
func (r *rawImage) ConfigName() (v1.Hash, error)              { return r.manifest.Config.Digest, nil }
func (r *rawImage) MediaType() (types.MediaType, error)       { return r.manifest.MediaType, nil }
func (r *rawImage) LayerByDigest(h v1.Hash) (v1.Layer, error) { return r.blobs[h], nil }
func (r *rawImage) Layers() ([]v1.Layer, error) {
	var out []v1.Layer
	for _, d := range r.manifest.Layers {
		out = append(out, r.blobs[d.Digest])
	}
	return out, nil
}
func (r *rawImage) Digest() (v1.Hash, error) {
	raw, err := r.RawManifest()
	if err != nil {
		return v1.Hash{}, err
	}
	h, _, err := v1.SHA256(bytes.NewReader(raw))
	return h, err
}

func describeLayer(t *testing.T, l v1.Layer) v1.Descriptor {
	t.Helper()
	h, err := l.Digest()
	if err != nil {
		t.Fatal(err)
	}
	n, err := l.Size()
	if err != nil {
		t.Fatal(err)
	}
	media, err := l.MediaType()
	if err != nil {
		t.Fatal(err)
	}
	return v1.Descriptor{Digest: h, Size: n, MediaType: media}
}

// packTar is a layer of these entries; it gives its diff ID too.
func packTar(t *testing.T, entries ...ent) (v1.Layer, v1.Hash) {
	t.Helper()
	return packBytes(t, makeTar(t, entries...))
}

func packBytes(t *testing.T, b []byte) (v1.Layer, v1.Hash) {
	t.Helper()
	diff, _, err := v1.SHA256(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return static.NewLayer(gz(t, b), types.OCILayer), diff
}

// Whatever a registry has in place of the image is refused, and said; the root is then made of packages.
func TestPullRefuses(t *testing.T) {
	m := newMirror(t)
	lock := tinyLock(t, m)
	s := openStore(t, t.TempDir())
	good := mustRoot(t, s, lock)
	img := mustImage(t, good)
	second := mustRoot(t, s, secondLock(t, m, lock))
	evil := e("./usr/bin/gcc-12", "evil")
	device := e("./dev/null", "")
	device.Typeflag = tar.TypeChar
	type change = func(cfg *v1.ConfigFile, layers []v1.Layer) []v1.Layer
	label := func(name, to string) change {
		return func(cfg *v1.ConfigFile, layers []v1.Layer) []v1.Layer {
			cfg.Config.Labels[name] = to
			return layers
		}
	}
	layer := func(i int, entries ...ent) change {
		return func(cfg *v1.ConfigFile, layers []v1.Layer) []v1.Layer {
			layers[i], cfg.RootFS.DiffIDs[i] = packTar(t, entries...)
			return layers
		}
	}
	for name, test := range map[string]struct {
		change change
		want   string
	}{
		"another lock":      {label(LabelLock, string(secondLock(t, m, lock).Encode())), "label dev.godkms-hermetic"},
		"a lock in no form": {label(LabelLock, "{}"), "label dev.godkms-hermetic.lock"},
		"another kernel":    {label(LabelKernel, "debian/sid:1"), "label dev.godkms-hermetic.kernel"},
		"another root":      {label(LabelRoot, second.Digest().String()), "make the root"},
		"no root":           {label(LabelRoot, ""), "label dev.godkms-hermetic.root"},
		"another machine": {func(cfg *v1.ConfigFile, layers []v1.Layer) []v1.Layer {
			cfg.Architecture = "arm64"
			return layers
		}, "linux/arm64"},
		"another layer":         {layer(0, evil), "make the root"},
		"a layer too many":      {func(_ *v1.ConfigFile, l []v1.Layer) []v1.Layer { return append(l, l[0]) }, "4 layers"},
		"a layer too few":       {func(_ *v1.ConfigFile, l []v1.Layer) []v1.Layer { return l[:2] }, "2 layers"},
		"layers in other order": {func(_ *v1.ConfigFile, l []v1.Layer) []v1.Layer { return []v1.Layer{l[1], l[0], l[2]} }, "unpacked it is"},
		"another glue":          {layer(2, evil), "its glue is"},
		"another diff ID": {func(cfg *v1.ConfigFile, l []v1.Layer) []v1.Layer {
			cfg.RootFS.DiffIDs[1] = cfg.RootFS.DiffIDs[0]
			return l
		}, "unpacked it is"},
		"a way out":        {layer(1, e("../../../out", "x")), "leads out"},
		"a link out":       {layer(1, e("./usr/out -> ../../..", "")), "leads out"},
		"through a link":   {layer(1, e("./a -> usr", ""), e("./a/b", "x")), "at once"},
		"an absolute name": {layer(1, e("/etc/passwd", "x")), "absolute"},
		"a device":         {layer(1, device), "device"},
		"a bomb": {func(cfg *v1.ConfigFile, l []v1.Layer) []v1.Layer {
			l[1], cfg.RootFS.DiffIDs[1] = packTar(t, e("./usr/zero", strings.Repeat("\x00", 2<<20)))
			return l
		}, "more than"},
		"a long end": {func(cfg *v1.ConfigFile, l []v1.Layer) []v1.Layer {
			l[1], cfg.RootFS.DiffIDs[1] = packBytes(t, append(makeTar(t, e("./x", "")), make([]byte, 2*maxTrailer)...))
			return l
		}, "follow its end"},
		"no gzip": {func(_ *v1.ConfigFile, l []v1.Layer) []v1.Layer {
			l[1] = static.NewLayer([]byte("plain text, and long enough"), types.OCILayer)
			return l
		}, "gzip"},
		"huge": {func(_ *v1.ConfigFile, l []v1.Layer) []v1.Layer {
			l[1] = static.NewLayer(randomBytes(3<<20), types.OCILayer)
			return l
		}, "bytes of type"},
		"another media type": {func(_ *v1.ConfigFile, l []v1.Layer) []v1.Layer {
			l[1] = static.NewLayer([]byte("x"), types.DockerLayer)
			return l
		}, "of type"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they wait for the disk
			remote := openRemote(t, "oci:"+filepath.Join(t.TempDir(), "layout"))
			if err := remote.Repo.Push(t.Context(), LockTag(lock), altered(t, img, test.change)); err != nil {
				t.Fatal(err)
			}
			s, warned := storeWith(t, remote)
			s.limits.bytes = 1 << 20
			if r, err := s.Pull(t.Context(), lock, nil); err == nil || !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), test.want) {
				if err == nil {
					r.Close()
				}
				t.Fatalf("Pull = %v; want an error with %q", err, test.want)
			}
			for _, folder := range []string{"tmp", "layers"} {
				if left := files(t, s.path(folder)); len(left) > 0 {
					t.Errorf("%s has %v", folder, left)
				}
			}
			r := mustRoot(t, s, lock)
			if r.Digest() != good.Digest() {
				t.Errorf("Digest = %v; want %v", r.Digest(), good.Digest())
			}
			if len(warned.list) != 1 || !strings.Contains(warned.list[0], test.want) {
				t.Errorf("warnings: %q; want one with %q", warned.list, test.want)
			}
			if name != "another layer" && name != "another glue" && name != "another lock" {
				return
			}
			// Pushing puts it right.
			if sent, err := r.PushMissing(t.Context(), kernels.Extra{}, nil); !sent || err != nil {
				t.Errorf("PushMissing = %v, %v; want it sent", sent, err)
			}
			again, _ := storeWith(t, remote)
			if r, err := again.Pull(t.Context(), lock, nil); err != nil {
				t.Error(err)
			} else {
				r.Close()
			}
		})
	}
	t.Run("an index", func(t *testing.T) {
		remote := openRemote(t, "oci:"+filepath.Join(t.TempDir(), "layout"))
		idx := mutate.AppendManifests(empty.Index, mutate.IndexAddendum{Add: img})
		if err := remote.Repo.Push(t.Context(), LockTag(lock), idx); err != nil {
			t.Fatal(err)
		}
		s, _ := storeWith(t, remote)
		if _, err := s.Pull(t.Context(), lock, nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("Pull = %v; want ErrInvalid", err)
		}
	})
	t.Run("below another lock's tag", func(t *testing.T) {
		remote := openRemote(t, "oci:"+filepath.Join(t.TempDir(), "layout"))
		if err := remote.Repo.Push(t.Context(), LockTag(lock), mustImage(t, second)); err != nil {
			t.Fatal(err)
		}
		s, _ := storeWith(t, remote)
		if _, err := s.Pull(t.Context(), lock, nil); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "its lock has digest") {
			t.Errorf("Pull = %v; want ErrInvalid, for the lock", err)
		}
	})
	t.Run("below another kernel's tag", func(t *testing.T) {
		remote := openRemote(t, "oci:"+filepath.Join(t.TempDir(), "layout"))
		if err := remote.Repo.Push(t.Context(), KernelTag(lock.Kernel, kernels.Extra{}), mustImage(t, second)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := remote.Lock(t.Context(), lock.Kernel, kernels.Extra{}); !errors.Is(err, ErrInvalid) {
			t.Errorf("Lock = %v; want ErrInvalid", err)
		}
	})
}

// A registry that can't be used is said once; packages are then taken. Where there are none, the error speaks of both.
func TestRemoteThatIsDown(t *testing.T) {
	reg := newRegistry(t)
	remote := openRemote(t, strings.TrimPrefix(reg.URL, "http://")+"/headers")
	reg.down = true
	m := newMirror(t)
	lock := tinyLock(t, m)
	s, warned := storeWith(t, remote)
	mustRoot(t, s, lock)
	asked := reg.count("GET other")
	mustRoot(t, s, secondLock(t, m, lock))
	if len(warned.list) != 1 || !strings.Contains(warned.list[0], remote.Repo.Name()) {
		t.Errorf("warnings: %q; want one", warned.list)
	}
	if got := reg.count("GET other"); got != asked {
		t.Error("it was asked again")
	}

	gone := withoutLinks(t, lock)
	s, _ = storeWith(t, remote)
	if _, err := s.Root(t.Context(), gone, nil); !errors.As(err, new(*PackageError)) || !errors.Is(err, registry.ErrDenied) {
		t.Errorf("Root = %v; want the package's and the registry's", err)
	}
	reg.down = false
	s, warned = storeWith(t, remote)
	_, err := s.Root(t.Context(), gone, nil)
	if !errors.As(err, new(*PackageError)) || !strings.Contains(err.Error(), "has no header image of it either") || len(warned.list) > 0 {
		t.Errorf("Root = %v, warnings %q; want the package's, and that the registry has it not", err, warned.list)
	}
	if _, err := s.Pull(t.Context(), gone, nil); !errors.Is(err, registry.ErrNotFound) {
		t.Errorf("Pull = %v; want ErrNotFound", err)
	}
}

// A pull that is cancelled leaves no layer, and what was downloaded is not downloaded again.
func TestPullIsCancelledAndGoesOn(t *testing.T) {
	reg := newRegistry(t)
	remote := openRemote(t, strings.TrimPrefix(reg.URL, "http://")+"/headers")
	m := newMirror(t)
	lock := bigLock(t, m, 4<<20)
	mustPush(t, mustRoot(t, openStore(t, t.TempDir()), lock), remote, kernels.Extra{})
	s, _ := storeWith(t, remote)
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("stop")
	first := int64(0)
	_, err := s.Pull(ctx, lock, func(phase string, done, _ int64) {
		if phase == "download" && done > 2<<20 && first == 0 {
			first = done
			cancel(stop)
		}
	})
	if !errors.Is(err, stop) {
		t.Fatalf("Pull = %v; want it to be cancelled", err)
	}
	for _, folder := range []string{"tmp", "layers"} {
		if left := files(t, s.path(folder)); len(left) > 0 {
			t.Errorf("%s has %v", folder, left)
		}
	}
	reg.cut = 1 // a connection that breaks is made again
	before := reg.served
	r, err := s.Pull(t.Context(), lock, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	if got := reg.served - before; got > 4<<20-first+64<<10 {
		t.Errorf("after %d of 4 MiB were downloaded %d more were", first, got)
	}
}

// Several that pull the same at once, as processes do that share a cache, download it once.
func TestPullAtOnce(t *testing.T) {
	reg := newRegistry(t)
	remote := openRemote(t, strings.TrimPrefix(reg.URL, "http://")+"/headers")
	m := newMirror(t)
	lock := tinyLock(t, m)
	mustPush(t, mustRoot(t, openStore(t, t.TempDir()), lock), remote, kernels.Extra{})
	dir := t.TempDir()
	var all sync.WaitGroup
	for range 4 {
		s, err := Open(Options{Dir: dir, Payload: tarPayload, Remote: remote})
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			r, err := s.Pull(t.Context(), lock, nil)
			if err != nil {
				t.Error(err)
				return
			}
			r.Close()
		})
	}
	all.Wait()
	if got := reg.count("GET blobs"); got != 3 { // the config, and two layers
		t.Errorf("%d blobs were asked for; want 3", got)
	}
	list, err := openStore(t, dir).List(t.Context())
	if err != nil || len(list) != 1 || list[0].From != remote.Repo.Name() {
		t.Errorf("List = %+v, %v; want one from %q", list, err, remote.Repo.Name())
	}
}

func TestPushMissing(t *testing.T) {
	reg := newRegistry(t)
	remote := openRemote(t, strings.TrimPrefix(reg.URL, "http://")+"/headers")
	m := newMirror(t)
	lock := tinyLock(t, m)
	s, _ := storeWith(t, remote)
	r := mustRoot(t, s, lock)
	for i, test := range []struct {
		extra kernels.Extra
		sent  bool
		tags  int
	}{{kernels.Extra{}, true, 2}, {kernels.Extra{}, false, 2}, {kernels.Extra{Packages: []string{"a", "b"}}, false, 3},
		{kernels.Extra{Packages: []string{"b", "a", "b"}}, false, 3}, {kernels.Extra{Depends: []string{"a", "b"}}, false, 4}} {
		sent, err := r.PushMissing(t.Context(), test.extra, nil)
		if err != nil || sent != test.sent {
			t.Errorf("%d: PushMissing = %v, %v; want %v", i, sent, err, test.sent)
		}
		tags, err := remote.Repo.Tags(t.Context())
		if err != nil || len(tags) != test.tags {
			t.Errorf("%d: tags are %q, %v; want %d", i, tags, err, test.tags)
		}
	}
	for _, test := range []struct {
		extra kernels.Extra
		plain bool
		found bool
	}{
		{kernels.Extra{Packages: []string{"b", "a"}}, false, true},
		{kernels.Extra{Packages: []string{"c"}}, false, false},
		{kernels.Extra{Depends: []string{"c"}}, true, true}, // a package file's are left out where there is nothing else
	} {
		got, plain, err := remote.Lock(t.Context(), lock.Kernel, test.extra)
		if (err == nil) != test.found || plain != test.plain || err == nil && got.Digest() != lock.Digest() {
			t.Errorf("Lock(%v) = %v, %v, %v", test.extra, got.Digest(), plain, err)
		}
		if !test.found && !errors.Is(err, registry.ErrNotFound) {
			t.Errorf("Lock(%v) = %v; want ErrNotFound", test.extra, err)
		}
	}
	reg.down = true
	if _, err := r.PushMissing(t.Context(), kernels.Extra{}, nil); !errors.Is(err, registry.ErrDenied) {
		t.Errorf("PushMissing = %v; want ErrDenied", err)
	}
}

func TestKernelTag(t *testing.T) {
	for _, test := range []struct {
		kernel kernels.Kernel
		extra  kernels.Extra
		want   string
	}{
		{kernels.Kernel{Distro: "debian", Suite: "bookworm", Arch: "amd64", Release: "6.1.0-56-amd64"}, kernels.Extra{}, "debian-bookworm-6.1.0-56-amd64"},
		{kernels.Kernel{Distro: "debian", Suite: "trixie", Arch: "amd64", Release: "6.12.96+deb13-cloud-amd64"}, kernels.Extra{},
			"debian-trixie-6.12.96_pdeb13-cloud-amd64"},
		{kernels.Kernel{Distro: "a-b", Suite: "c_d", Arch: "arm64", Release: "6.8.0-149-generic"}, kernels.Extra{Packages: []string{"x"}},
			"a_-b-c__d-6.8.0-149-generic_aarm64_w39bfd09c83721fd7"},
		{kernels.Kernel{Distro: "fedora", Suite: "42", Arch: "x86_64", Release: "6.1~rc1:2@.x86_64"}, kernels.Extra{}, "fedora-42-6.1_trc1_c2_x40.x86__64"},
		{kernels.Kernel{Distro: "rocky", Suite: "9", Arch: "amd64", Release: "5.14.0-427.13.1.el9_4.x86_64+rt"}, kernels.Extra{},
			"rocky-9-5.14.0-427.13.1.el9__4.x86__64_prt_aamd64"},
		{kernels.Kernel{Distro: "opensuse-leap", Suite: "15.6", Arch: "amd64", Release: "6.4.0-150600.21-default"}, kernels.Extra{},
			"opensuse_-leap-15.6-6.4.0-150600.21-default_aamd64"},
		{kernels.Kernel{Distro: "debian", Suite: "bookworm", Arch: "amd64", Release: strings.Repeat("6", 120)}, kernels.Extra{}, ""},
	} {
		got := KernelTag(test.kernel, test.extra)
		if got != test.want {
			t.Errorf("KernelTag(%v) = %q; want %q", test.kernel, got, test.want)
		}
		if got == "" {
			continue
		}
		if back, extra, err := parseTag(got); err != nil || back != test.kernel || extra != extraSum(test.extra) {
			t.Errorf("parseTag(%q) = %v, %q, %v; want %v", got, back, extra, err, test.kernel)
		}
	}
	for _, tag := range []string{"", "latest", "lock-" + strings.Repeat("0", 64), "debian-bookworm-", "debian--6.1.0-56-amd64", "debian-bookworm-6_", "debian-bookworm-6_q",
		"debian-bookworm-6_-1", "debian-bookworm-6_x4", "debian-bookworm-6_x41", "debian-bookworm-6-amd64_aamd64", "debian-bookworm-6_w0", "a-b-c_w" + strings.Repeat("A", 16),
		"a-b-c_w" + strings.Repeat("0", 16) + "_ax", "_a-b-c"} {
		if k, _, err := parseTag(tag); err == nil {
			t.Errorf("parseTag(%q) = %v; want an error", tag, k)
		}
	}
}

// A lock that comes with the image makes nobody download without end.
func TestMaxPacked(t *testing.T) {
	for _, tt := range []struct {
		size int64
		n    int
		want int64
	}{{1000, 2, 1<<20 + 32_000}, {1 << 62, 20_000, 16 << 30}, {3 << 30, 1, 16 << 30}} {
		pkgs := make([]kernels.Package, tt.n)
		for i := range pkgs {
			pkgs[i].Size = tt.size
		}
		if got := maxPacked(pkgs); got != tt.want {
			t.Errorf("maxPacked of %d packages of %d bytes = %d; want %d", tt.n, tt.size, got, tt.want)
		}
	}
}
