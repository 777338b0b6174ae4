package images

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/validate"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

func mustImage(t testing.TB, r *Root) v1.Image {
	t.Helper()
	img, err := r.Image(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func mustDigest(t testing.TB, img v1.Image) string {
	t.Helper()
	h, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

// goldenImage is the digest of the tiny lock's image, on every machine. It changes with format, packing, the glue, the labels,
// and the version of klauspost/compress: then every header image in a registry is another one, so change it on purpose.
const goldenImage = "sha256:0fd3cefc500a5348e93c8103074405107d0c20e588ad0f7c7bf08accb19d0546"

func TestImageDigestIsGolden(t *testing.T) {
	m := newMirror(t)
	img := mustImage(t, mustRoot(t, openStore(t, t.TempDir()), tinyLockIn(t, m, plain, plain)))
	if got := mustDigest(t, img); got != goldenImage {
		t.Errorf("Image digest = %s; want %s", got, goldenImage)
	}
}

func TestImage(t *testing.T) {
	m := newMirror(t)
	lock := tinyLock(t, m)
	r := mustRoot(t, openStore(t, t.TempDir()), lock)
	img := mustImage(t, r)
	if err := validate.Image(img); err != nil {
		t.Fatal(err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	if len(layers) != 3 {
		t.Fatalf("image has %d layers; want 3", len(layers))
	}
	want := []string{ // of the toolchain: sorted, merged, without documents, the private date, set-id bits off, links kept
		"usr/", "usr/bin/", "usr/bin/dash", "usr/bin/gcc-12 -> x86_64-linux-gnu-gcc-12", "usr/bin/install", "usr/bin/mawk", "usr/bin/sh -> dash",
		"usr/bin/su => usr/bin/install", "usr/bin/x86_64-linux-gnu-gcc-12", "usr/lib/", "usr/lib/godkms-hermetic/", "usr/lib/godkms-hermetic/date",
		"usr/lib/godkms-hermetic/uname", "usr/share/", "usr/share/both", "usr/share/doc/", "usr/share/doc/coreutils/",
		"usr/share/doc/coreutils/copyright",
	}
	rc, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	var got []string
	for tr := tar.NewReader(rc); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		name := h.Name
		switch h.Typeflag {
		case tar.TypeSymlink:
			name += " -> " + h.Linkname
		case tar.TypeLink:
			name += " => " + h.Linkname
		}
		got = append(got, name)
		if h.Uid != 0 || h.Gid != 0 || h.Uname != "" || h.Gname != "" || h.Mode&0o7000 != 0 {
			t.Errorf("entry %q is of %d:%d %q:%q, mode %o", h.Name, h.Uid, h.Gid, h.Uname, h.Gname, h.Mode)
		}
		if h.Name == "usr/share/both" {
			if b, _ := io.ReadAll(tr); string(b) != "mawk" {
				t.Errorf("%s is %q; want that of the later package", h.Name, b)
			}
		}
		if wantTime := int64(1700000000); h.Typeflag == tar.TypeReg && h.ModTime.Unix() != wantTime {
			t.Errorf("entry %q is of %d; want %d", h.Name, h.ModTime.Unix(), wantTime)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("toolchain layer has\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if cfg.OS != "linux" || cfg.Architecture != "amd64" || cfg.Created.Unix() != epoch {
		t.Errorf("config is for %s/%s, made at %v", cfg.OS, cfg.Architecture, cfg.Created)
	}
	var back kernels.Lock
	if err := json.Unmarshal([]byte(cfg.Config.Labels[LabelLock]), &back); err != nil {
		t.Fatal(err)
	}
	if back.Digest() != lock.Digest() || back.Toolchain[0].URL != "" {
		t.Errorf("the image's lock has digest %v; want %v, without URLs", back.Digest(), lock.Digest())
	}
	manifest, err := img.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	for where, labels := range map[string]map[string]string{"label": cfg.Config.Labels, "annotation": manifest.Annotations} {
		if labels[LabelLockDigest] != lock.Digest().String() || labels[LabelKernel] != "debian/bookworm:6.1.0-9-amd64" {
			t.Errorf("%ss are %v", where, labels)
		}
	}
}

// TestImageIsTheLockAlone makes the same image by another mirror that answers in another order, with other numbers of jobs,
// another umask, and, where this test may do so, as another user.
func TestImageIsTheLockAlone(t *testing.T) {
	m := newMirror(t)
	lock := tinyLock(t, m)
	first := mustRoot(t, openStore(t, t.TempDir()), lock)
	want, wantTree := mustDigest(t, mustImage(t, first)), describe(t, first.Layers()[0])

	other := newMirror(t)
	for name, b := range m.files {
		other.add(name, b)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	delays := make(chan time.Duration, 1000)
	for range cap(delays) {
		delays <- time.Duration(rng.IntN(20)) * time.Millisecond
	}
	other.hook = func(http.ResponseWriter, *http.Request, string, []byte) bool { time.Sleep(<-delays); return false }
	relocked := lock
	relocked.Toolchain, relocked.Headers = slices.Clone(lock.Toolchain), slices.Clone(lock.Headers)
	for _, list := range [][]kernels.Package{relocked.Toolchain, relocked.Headers} {
		for i := range list {
			list[i].URL = other.URL + "/" + list[i].Name
		}
	}
	defer syscall.Umask(syscall.Umask(0o077))
	for jobs := range 8 {
		s, err := Open(Options{Dir: t.TempDir(), Payload: tarPayload, Jobs: jobs})
		if err != nil {
			t.Fatal(err)
		}
		r := mustRoot(t, s, relocked)
		if got := mustDigest(t, mustImage(t, r)); got != want {
			t.Errorf("with %d jobs, digest = %s; want %s", jobs, got, want)
		}
		if got := describe(t, r.Layers()[0]); got != wantTree {
			t.Errorf("with %d jobs, tree =\n%s\nwant\n%s", jobs, got, wantTree)
		}
	}
}

func TestImageOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("becomes another user: needs root")
	}
	m := newMirror(t)
	lock := tinyLock(t, m)
	want := mustDigest(t, mustImage(t, mustRoot(t, openStore(t, t.TempDir()), lock)))
	dir, err := os.MkdirTemp("", "images-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	exe := filepath.Join(dir, "test")
	if b, err := os.ReadFile(os.Args[0]); err != nil || os.WriteFile(exe, b, 0o755) != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "lock.json")
	writeJSON(t, file, rootRecord{Lock: lock})
	for _, p := range []string{dir, file} {
		if err := os.Chown(p, 65534, 65534); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(exe, "-test.run=^TestHelperProcess$", "-test.v")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "IMAGES_TEST_HELPER="+filepath.Join(dir, "cache"), "IMAGES_TEST_LOCK="+file, "IMAGES_TEST_PACK=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	list, err := openStore(t, filepath.Join(dir, "cache")).List(context.Background())
	if err != nil || len(list) != 1 || list[0].Image.String() != want {
		t.Errorf("List = %v, %v; want the image %s", list, err, want)
	}
}

func TestPackIsOneGzip(t *testing.T) {
	data := append(randomBytes(3*gzipBlock/2), bytes.Repeat([]byte("text "), 1<<19)...)
	var want []byte
	for jobs := 1; jobs < 6; jobs++ {
		var buf bytes.Buffer
		b := newBlocks(&buf, jobs)
		for rest := data; len(rest) > 0; {
			n := min(len(rest), 1+rand.IntN(100000))
			if _, err := b.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if want == nil {
			want = buf.Bytes()
		} else if !bytes.Equal(want, buf.Bytes()) {
			t.Errorf("%d jobs give other bytes", jobs)
		}
	}
	r, err := gzip.NewReader(bytes.NewReader(want))
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, r); err != nil {
		t.Fatal(err)
	}
	if whole := sha256.Sum256(data); !bytes.Equal(sum.Sum(nil), whole[:]) {
		t.Error("gzip gives other data back")
	}
}

type failing struct{ after int }

var errFull = errors.New("full")

func (f *failing) Write(b []byte) (int, error) {
	if f.after--; f.after < 0 {
		return 0, errFull
	}
	return len(b), nil
}

func TestPackTellsOfFailedWrites(t *testing.T) {
	for after := range 4 {
		b := newBlocks(&failing{after}, 2)
		b.Write(randomBytes(10 * gzipBlock))
		if err := b.Close(); !errors.Is(err, errFull) {
			t.Errorf("Close = %v; want %v", err, errFull)
		}
	}
}

func TestPackedLayerIsCheckedWhenRead(t *testing.T) {
	m := newMirror(t)
	r := mustRoot(t, openStore(t, t.TempDir()), tinyLock(t, m))
	want := mustDigest(t, mustImage(t, r))
	file := filepath.Join(r.store.packedDir(r.specs[0].key), "layer.tar.gz")
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2]++
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
	layers, err := mustImage(t, r).Layers()
	if err != nil {
		t.Fatal(err)
	}
	rc, err := layers[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, rc); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("reading a damaged layer = %v; want an error", err)
	}
	rc.Close()
	img := mustImage(t, r)
	if err := validate.Image(img); err != nil || mustDigest(t, img) != want {
		t.Errorf("the next image is not made anew: %v", err)
	}
	// An unpacked file that was altered is found when it is packed.
	if err := os.RemoveAll(r.store.packedDir(r.specs[0].key)); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.Layers()[0], "usr/bin/dash"), []byte("mash"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Image(context.Background()); err == nil || !strings.Contains(err.Error(), "usr/bin/dash") {
		t.Errorf("Image of an altered layer = %v; want an error that names the file", err)
	}
}
