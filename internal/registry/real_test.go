package registry_test

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registrytest"
)

// patient is a client that waits long enough for a registry to be started again.
func patient(t testing.TB, o registry.Options) *registry.Client {
	c := client(t, o)
	c.Patient()
	return c
}

// A registry is killed in the middle of a push and of a pull: started again, it gets and gives everything; left dead, that is what the
// error says, and nothing is half there.
func TestKilled(t *testing.T) {
	for _, debian := range []bool{false, true} {
		t.Run(fmt.Sprintf("debian=%v", debian), func(t *testing.T) {
			reg := registrytest.Start(t, registrytest.Options{Debian: debian})
			before, after := layers(t, 1, 1000), layers(t, 2, 24<<20, 2000) // more than sockets hold
			ref := reg.Host + "/team/mod"
			if err := open(t, client(t, registry.Options{}), ref).Push(t.Context(), "1.0", before); err != nil {
				t.Fatal(err)
			}
			for _, again := range []bool{false, true} {
				c := patient(t, registry.Options{})
				r := open(t, c, ref)
				restarted := make(chan bool)
				killed := &killer{Image: after, kill: func() {
					reg.Kill()
					if again {
						time.AfterFunc(50*time.Millisecond, func() {
							defer close(restarted)
							if err := reg.Server.Restart(); err != nil {
								t.Error(err)
							}
						})
					}
				}}
				err := r.Push(t.Context(), "1.0", killed)
				if again {
					<-restarted
				}
				if again && err != nil {
					t.Fatalf("Push to a registry that comes back: %v", err)
				}
				if !again {
					if !errors.Is(err, registry.ErrUnavailable) || !strings.Contains(err.Error(), reg.Host) {
						t.Errorf("Push to a registry that is gone: %v", err)
					}
					reg.Restart()
					if d, err := r.Head(t.Context(), "1.0"); err != nil || d.Digest != digest(t, before) {
						t.Errorf("the tag is at %v (%v) now", d.Digest, err)
					}
				}
			}
			d, content := layer(t, after, 0)
			base := t.TempDir()
			for _, again := range []bool{false, true} {
				dir := t.TempDir()
				c := patient(t, registry.Options{Dir: base})
				var once sync.Once
				_, err := c.Fetch(t.Context(), open(t, c, ref), "1.0", dir, func(done, total int64) {
					if done > 1<<20 && done < total {
						once.Do(func() {
							reg.Kill()
							if again {
								reg.Restart()
							}
						})
					}
				})
				if again && err != nil {
					t.Errorf("Fetch from a registry that comes back: %v", err)
				}
				if again {
					continue
				}
				if !errors.Is(err, registry.ErrUnavailable) {
					t.Errorf("Fetch from a registry that is gone: %v", err)
				}
				if got := names(t, dir); len(got) > 0 {
					t.Errorf("%q is in the folder", got)
				}
				if st, err := os.Stat(filepath.Join(base, d.Digest.Hex+".partial")); err != nil || st.Size() == 0 || st.Size() >= int64(len(content)) {
					t.Errorf("nothing to go on from: %v", err)
				}
				reg.Restart()
			}
		})
	}
}

// killer is an image whose first layer kills a registry once when it is half read.
type killer struct {
	v1.Image
	once sync.Once
	kill func()
}

func (k *killer) LayerByDigest(h v1.Hash) (v1.Layer, error) {
	l, err := k.Image.LayerByDigest(h)
	if err != nil {
		return nil, err
	}
	return &killerLayer{l, k}, nil
}

type killerLayer struct {
	v1.Layer
	k *killer
}

func (l *killerLayer) Compressed() (io.ReadCloser, error) {
	rc, err := l.Layer.Compressed()
	return &killerReader{ReadCloser: rc, k: l.k}, err
}

type killerReader struct {
	io.ReadCloser
	k *killer
	n int
}

func (r *killerReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	if r.n += n; r.n > 4<<20 {
		r.k.once.Do(r.k.kill)
	}
	return n, err
}

// What is altered in a registry's storage is found, and isn't kept.
func TestAlteredStorage(t *testing.T) {
	reg := registrytest.Start(t, registrytest.Options{})
	img := layers(t, 1, 100_000)
	d, _ := layer(t, img, 0)
	r := open(t, client(t, registry.Options{}), reg.Host+"/team/mod")
	if err := r.Push(t.Context(), "1.0", img); err != nil {
		t.Fatal(err)
	}
	for _, h := range []v1.Hash{d.Digest, digest(t, img)} {
		data := filepath.Join(reg.Dir, "docker/registry/v2/blobs/sha256", h.Hex[:2], h.Hex, "data")
		good := read(t, data)
		bad := append([]byte{}, good...)
		bad[len(bad)/2] ^= 1
		write(t, bad, data)
		base, dir := t.TempDir(), t.TempDir()
		c := client(t, registry.Options{Dir: base})
		if _, err := c.Fetch(t.Context(), open(t, c, reg.Host+"/team/mod"), digest(t, img).String(), dir, nil); !errors.Is(err, registry.ErrAltered) {
			t.Errorf("Fetch = %v; want ErrAltered", err)
		}
		for _, name := range append(names(t, base), names(t, dir)...) {
			if strings.HasPrefix(name, h.Hex) {
				t.Errorf("left: %q", name)
			}
		}
		write(t, good, data)
	}
}

// tiny mounts a small file system.
func tiny(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		need.Skip(t, "no mount: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	return dir
}

// The disk is full: on the registry's side, on ours, and in a layout.
func TestDiskFull(t *testing.T) {
	small, large := layers(t, 1, 1000), layers(t, 2, 3<<20)
	reg := registrytest.Start(t, registrytest.Options{Dir: filepath.Join(tiny(t, "1m"), "storage")})
	r := open(t, client(t, registry.Options{}), reg.Host+"/team/mod")
	if err := r.Push(t.Context(), "1.0", small); err != nil {
		t.Fatal(err)
	}
	if err := r.Push(t.Context(), "1.0", large); !errors.Is(err, registry.ErrUnavailable) || !strings.Contains(err.Error(), "500") && !strings.Contains(err.Error(), "503") {
		t.Errorf("Push to a full registry = %v; want ErrUnavailable", err)
	}
	if d, err := r.Head(t.Context(), "1.0"); err != nil || d.Digest != digest(t, small) {
		t.Errorf("the tag is at %v (%v) now", d.Digest, err)
	}
	s := seeded(t, large)
	disk := tiny(t, "1m")
	c := client(t, registry.Options{Dir: filepath.Join(disk, "downloads")})
	dir := filepath.Join(disk, "dir")
	_, err := c.Fetch(t.Context(), open(t, c, s.host()+"/team/mod"), "1.0", dir, nil)
	if !errors.Is(err, unix.ENOSPC) || errors.Is(err, registry.ErrUnavailable) || !strings.Contains(err.Error(), s.host()) {
		t.Errorf("Fetch to a full disk = %v", err)
	}
	if got := names(t, dir); len(got) > 0 {
		t.Errorf("%q is in the folder", got)
	}
	disk = tiny(t, "1m")
	l := open(t, client(t, registry.Options{}), "oci:"+filepath.Join(disk, "layout"))
	if err := l.Push(t.Context(), "1.0", small); err != nil {
		t.Fatal(err)
	}
	if err := l.Push(t.Context(), "1.0", large); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Push to a full disk = %v", err)
	}
	if d, err := l.Head(t.Context(), "1.0"); err != nil || d.Digest != digest(t, small) {
		t.Errorf("the tag is at %v (%v) now", d.Digest, err)
	}
	if got := names(t, filepath.Join(disk, "layout", "blobs", "sha256")); len(got) != 3 {
		t.Errorf("blobs: %q", got)
	}
}

// Blobs that another repository of the registry has are mounted: those of images that come from there, and those that a push is told of.
func TestMount(t *testing.T) {
	reg := registrytest.Start(t, registrytest.Options{Auth: true})
	keys := keychain{authn.FromConfig(authn.AuthConfig{Username: reg.User, Password: reg.Password})}
	c := client(t, registry.Options{Keychain: keys})
	img := layers(t, 1, 100_000, 2000)
	if err := open(t, c, reg.Host+"/team/mod").Push(t.Context(), "1.0", img); err != nil {
		t.Fatal(err)
	}
	uploads := func() (sent, mounted int) {
		for _, q := range reg.Requests() {
			if q.Method == "PUT" && strings.Contains(q.Path, "/uploads/") && q.Status == 201 {
				sent++
			}
			if q.Method == "POST" && strings.Contains(q.Path, "mount=") && q.Status == 201 {
				mounted++
			}
		}
		return sent, mounted
	}
	before, _ := uploads()
	from, err := open(t, c, reg.Host+"/team/mod").Image(t.Context(), "1.0")
	if err != nil {
		t.Fatal(err)
	}
	var done, total int64
	progress := func(d, n int64) { done, total = d, n }
	if err := open(t, c, reg.Host+"/other/mod").PushWith(t.Context(), "1.0", from, registry.PushOptions{Progress: progress}); err != nil {
		t.Fatal(err)
	}
	if done != total || total < 100_000 {
		t.Errorf("progress: %d of %d", done, total)
	}
	if sent, mounted := uploads(); sent != before+1 || mounted != 2 { // the config is small
		t.Errorf("%d blobs sent and %d mounted; want 1 and 2", sent-before, mounted)
	}
	if err := open(t, c, reg.Host+"/third/mod").PushWith(t.Context(), "1.0", img, registry.PushOptions{From: []registry.Reference{
		parse(t, "registry.example/elsewhere"), parse(t, "oci:somewhere"), parse(t, reg.Host+"/no/such"), parse(t, reg.Host+"/team/mod")}}); err != nil {
		t.Fatal(err)
	}
	if sent, mounted := uploads(); sent != before+1 || mounted != 5 {
		t.Errorf("%d blobs sent and %d mounted; want 1 and 5", sent-before, mounted)
	}
	got, err := c.Fetch(t.Context(), open(t, c, reg.Host+"/third/mod"), "1.0", t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, img)
}

// 8 clients attach at once in a real registry without the referrers API.
func TestAttachReal(t *testing.T) {
	reg := registrytest.Start(t, registrytest.Options{})
	img := layers(t, 1, 100)
	r := open(t, client(t, registry.Options{}), reg.Host+"/team/mod")
	if err := r.Push(t.Context(), "1.0", img); err != nil {
		t.Fatal(err)
	}
	subject, err := partial.Descriptor(img)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			a := mutate.Subject(layers(t, uint64(i+10), 10), *subject).(v1.Image)
			if err := open(t, client(t, registry.Options{}), reg.Host+"/team/mod").Attach(t.Context(), subject.Digest, a); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if list, err := r.Referrers(t.Context(), subject.Digest); err != nil || len(list) == 0 {
		t.Errorf("%d referrers, %v", len(list), err)
	}
}

// Behind a proxy that ends TLS and doesn't say so, a registry's own URLs have the wrong scheme.
func TestBehindTLS(t *testing.T) {
	reg := registrytest.Start(t, registrytest.Options{})
	to, err := url.Parse("http://" + reg.Host)
	if err != nil {
		t.Fatal(err)
	}
	proxy := httptest.NewTLSServer(&httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
		p.Out.URL.Scheme, p.Out.URL.Host = to.Scheme, to.Host // and the Host is the proxy's
	}})
	defer proxy.Close()
	img := layers(t, 1, 10_000)
	host := strings.TrimPrefix(proxy.URL, "https://")
	c := client(t, registry.Options{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.URL.Scheme != "https" {
			return nil, fmt.Errorf("asked %s", r.URL)
		}
		return proxy.Client().Transport.RoundTrip(r)
	})})
	r := open(t, c, host+"/team/mod")
	if err := r.Push(t.Context(), "1.0", img); err != nil {
		t.Fatal(err)
	}
	got, err := r.Image(t.Context(), "1.0")
	if err != nil {
		t.Fatal(err)
	}
	same(t, got, img)
}
