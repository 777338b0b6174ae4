package images

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

func writeJSON(t testing.TB, file string, v any) {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
}

// secondLock is a lock with the same toolchain and other headers.
func secondLock(t testing.TB, m *packageServer, first kernels.Lock) kernels.Lock {
	t.Helper()
	second := first
	second.Kernel.Release = "6.1.0-10-amd64"
	second.Headers = []kernels.Package{m.add("linux-headers-6.1.0-10-amd64",
		makeTar(t, e("./usr/src/linux-headers-6.1.0-10-amd64/.config", "CONFIG_MODULES=y\n")))}
	return second
}

// Each package that is being unpacked takes memory.
func TestJobsAreBounded(t *testing.T) {
	s, err := Open(Options{Dir: t.TempDir(), Payload: tarPayload, Jobs: 1000})
	if err != nil {
		t.Fatal(err)
	}
	if got := cap(s.decoders); got != maxJobs {
		t.Errorf("Open with 1000 jobs unpacks %d packages at a time; want %d", got, maxJobs)
	}
}

func TestRoot(t *testing.T) {
	m := newMirror(t)
	lock := tinyLock(t, m)
	s := openStore(t, t.TempDir())
	last := map[string][2]int64{}
	r, err := s.Root(context.Background(), lock, func(phase string, done, total int64) { last[phase] = [2]int64{done, total} })
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, phase := range []string{"download", "unpack"} {
		if p := last[phase]; p[0] != p[1] || p[1] == 0 {
			t.Errorf("progress of %q ends at %v", phase, p)
		}
	}
	all := ""
	for _, l := range r.Layers() {
		all += describe(t, l)
	}
	for _, want := range []string{
		"/bin Lrwxrwxrwx 315532800 -> usr/bin\n", "/lib64 Lrwxrwxrwx 315532800 -> usr/lib64\n", "/usr/bin/sh Lrwxrwxrwx 315532800 -> dash\n",
		"/usr/bin/awk Lrwxrwxrwx 315532800 -> mawk\n", "/usr/bin/gcc Lrwxrwxrwx 315532800 -> gcc-12\n", "/usr/bin/cc Lrwxrwxrwx 315532800 -> gcc\n",
		"/usr/bin/x86_64-linux-gnu-gcc Lrwxrwxrwx 315532800 -> x86_64-linux-gnu-gcc-12\n", "/tmp dtrwxrwxrwx 315532800\n",
		"/boot/config-6.1.0-9-amd64 Lrwxrwxrwx 315532800 -> /lib/modules/6.1.0-9-amd64/build/.config\n",
		"/usr/lib/modules/6.1.0-9-amd64/build Lrwxrwxrwx 315532800 -> /usr/src/linux-headers-6.1.0-9-amd64\n", "/etc/passwd -rw-r--r-- 315532800",
		"/var/lib/dkms drwxr-xr-x 315532800\n", "/proc drwxr-xr-x 315532800\n", "/usr/bin/su -rwxr-xr-x 1700000000",
	} {
		if !strings.Contains(all, want) {
			t.Errorf("root lacks %q", want)
		}
	}
	if left := files(t, s.path("tmp")); len(left) > 0 {
		t.Errorf("tmp has %v", left)
	}
	requests := len(m.seen())
	second := mustRoot(t, s, secondLock(t, m, lock))
	if got := len(m.seen()) - requests; got != 1 {
		t.Errorf("a second kernel made %d requests; want 1", got)
	}
	if second.Layers()[0] != r.Layers()[0] || second.Layers()[1] == r.Layers()[1] || second.Layers()[2] == r.Layers()[2] {
		t.Errorf("layers = %q and %q; want the toolchain to be the same", r.Layers(), second.Layers())
	}
}

func TestWarmRootIsQuick(t *testing.T) {
	m := newMirror(t)
	lock := tinyLock(t, m)
	s := openStore(t, t.TempDir())
	mustRoot(t, s, lock).Close()
	m.Close() // needs no network either
	best := time.Hour
	for range 20 {
		start := time.Now()
		mustRoot(t, s, lock).Close()
		best = min(best, time.Since(start))
	}
	t.Logf("warm root: %v", best)
	if best > 2*time.Millisecond {
		t.Errorf("a cached root takes %v; want 2ms at most", best)
	}
}

func TestRootReplacesDamagedPackages(t *testing.T) {
	m := newMirror(t)
	lock := tinyLock(t, m)
	want := describe(t, mustRoot(t, openStore(t, t.TempDir()), lock).Layers()[0])
	for name, damage := range map[string]func([]byte){
		"middle": func(b []byte) { b[len(b)/2]++ },
		"end":    func(b []byte) { b[len(b)-1]++ },
		"zeroed": func(b []byte) { clear(b) },
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, t.TempDir())
			for _, p := range lock.Toolchain {
				b := slices.Clone(m.files[p.Name])
				damage(b)
				if err := os.WriteFile(s.packageFile(p), b, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			r, err := s.Root(context.Background(), lock, nil)
			for i := 0; err != nil && i < 4; i++ { // at most three are replaced in one go
				r, err = s.Root(context.Background(), lock, nil)
			}
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if got := describe(t, r.Layers()[0]); got != want {
				t.Errorf("tree =\n%s\nwant\n%s", got, want)
			}
		})
	}
	t.Run("offline", func(t *testing.T) {
		s := openStore(t, t.TempDir())
		mustRoot(t, s, lock).Close()
		if err := os.RemoveAll(s.path("layers")); err != nil {
			t.Fatal(err)
		}
		s.offline = true
		os.MkdirAll(s.path("layers"), 0o755)
		mustRoot(t, s, lock).Close() // from the packages that are there
		os.RemoveAll(s.path("layers"))
		os.MkdirAll(s.path("layers"), 0o755)
		b, _ := os.ReadFile(s.packageFile(lock.Toolchain[0]))
		b[10]++
		os.WriteFile(s.packageFile(lock.Toolchain[0]), b, 0o644)
		if _, err := s.Root(context.Background(), lock, nil); !errors.Is(err, ErrOffline) || !strings.Contains(err.Error(), "coreutils") {
			t.Errorf("Root offline with a damaged package = %v; want ErrOffline for coreutils", err)
		}
	})
}

func TestRootRefusesBadPackages(t *testing.T) {
	device := e("dev/null", "")
	device.Typeflag = tar.TypeChar
	for name, c := range map[string]struct {
		body []byte
		want string
	}{
		"device":    {makeTar(t, device), "device"},
		"climbs":    {makeTar(t, e("../../etc/passwd", "x")), "leads out"},
		"garbage":   {[]byte(strings.Repeat("garbage", 1000)), "read tar"},
		"truncated": {gz(t, makeTar(t, e("a", "b")))[:40], "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			m := newMirror(t)
			lock := tinyLock(t, m)
			lock.Headers = append(lock.Headers, m.add("bad", c.body))
			s := openStore(t, t.TempDir())
			_, err := s.Root(context.Background(), lock, nil)
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), `"bad"`) {
				t.Errorf("Root = %v; want %q and the package's name", err, c.want)
			}
			for _, d := range []string{"layers", "packed"} {
				if left, _ := os.ReadDir(s.path(d)); len(left) > 0 {
					t.Errorf("%s has %v", d, left)
				}
			}
		})
	}
}

func TestRootRefusesBadLocks(t *testing.T) {
	m := newMirror(t)
	for name, spoil := range map[string]func(*kernels.Lock){
		"release": func(l *kernels.Lock) { l.Kernel.Release = "../../x" },
		"quote":   func(l *kernels.Lock) { l.Kernel.Release = "6.1'; rm -rf" },
		"empty":   func(l *kernels.Lock) { l.Toolchain, l.Headers = nil, nil },
		"hash":    func(l *kernels.Lock) { l.Headers[0].Digest.Hex = "../../../etc/passwd" },
		"size":    func(l *kernels.Lock) { l.Headers[0].Size = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			lock := tinyLock(t, m)
			spoil(&lock)
			if r, err := openStore(t, t.TempDir()).Root(context.Background(), lock, nil); err == nil {
				r.Close()
				t.Error("Root = nil; want an error")
			}
		})
	}
}

func TestRootForAllAtOnce(t *testing.T) {
	m := newMirror(t)
	lock := tinyLock(t, m)
	second := secondLock(t, m, lock)
	dir := t.TempDir()
	var unpacked atomic.Int32
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			s, err := Open(Options{Dir: dir, Payload: func(d string, r io.Reader) (io.ReadCloser, error) {
				unpacked.Add(1)
				return tarPayload(d, r)
			}})
			if err != nil {
				t.Error(err)
				return
			}
			l := lock
			if i%2 == 1 {
				l = second
			}
			r, err := s.Root(context.Background(), l, nil)
			if err != nil {
				t.Error(err)
				return
			}
			if _, err := r.Image(context.Background()); err != nil {
				t.Error(err)
			}
			r.Close()
		})
	}
	wg.Wait()
	if want := int32(len(lock.Toolchain) + len(lock.Headers) + len(second.Headers)); unpacked.Load() != want {
		t.Errorf("%d packages were unpacked; want %d: each layer once", unpacked.Load(), want)
	}
	if want := len(lock.Toolchain) + len(lock.Headers) + len(second.Headers); len(m.seen()) != want {
		t.Errorf("%d downloads; want %d", len(m.seen()), want)
	}
}

func TestRootSurvivesKill(t *testing.T) {
	m := newMirror(t)
	lock := tinyLock(t, m)
	for i := range 12 { // enough to be killed at any point
		lock.Headers = append(lock.Headers, m.add("z"+string(rune('a'+i)), gz(t, makeTar(t, e("./usr/share/z"+string(rune('a'+i)), string(randomBytes(300000)))))))
	}
	want := mustDigest(t, mustImage(t, mustRoot(t, openStore(t, t.TempDir()), lock)))
	dir := t.TempDir()
	killed := 0
	for after := time.Duration(0); after < 400*time.Millisecond; after += 12 * time.Millisecond {
		os.RemoveAll(filepath.Join(dir, "packed"))
		cmd, _ := helper(t, dir, lock, "IMAGES_TEST_PACK=1")
		time.Sleep(after)
		cmd.Process.Kill()
		if cmd.Wait() != nil {
			killed++
		}
		if killed%3 == 0 {
			os.RemoveAll(filepath.Join(dir, "layers"))
		}
	}
	s := openStore(t, dir)
	r := mustRoot(t, s, lock)
	if got := mustDigest(t, mustImage(t, r)); got != want {
		t.Errorf("after %d kills, digest = %s; want %s", killed, got, want)
	}
	if _, damaged, err := s.Verify(context.Background()); err != nil || len(damaged) > 0 {
		t.Errorf("after %d kills, Verify = %v, %v", killed, damaged, err)
	}
	temp, err := durable.NewTemp(s.path("tmp")) // cleans up
	if err != nil {
		t.Fatal(err)
	}
	temp.Close()
	if left := files(t, s.path("tmp")); len(left) > 0 {
		t.Errorf("tmp has %v", left)
	}
	if killed < 3 {
		t.Errorf("only %d processes were killed in their work", killed)
	}
}

func TestRootCancelled(t *testing.T) {
	m := newMirror(t)
	lock := tinyLock(t, m)
	ctx, cancel := context.WithCancelCause(context.Background())
	stop := errors.New("enough")
	m.hook = func(w http.ResponseWriter, r *http.Request, name string, body []byte) bool {
		if name != "gcc-12" || r.Header.Get("Range") != "" {
			return false
		}
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		w.Write(body[:1000])
		w.(http.Flusher).Flush()
		time.AfterFunc(50*time.Millisecond, func() { cancel(stop) })
		<-r.Context().Done()
		return true
	}
	s := openStore(t, t.TempDir())
	if _, err := s.Root(ctx, lock, nil); !errors.Is(err, stop) {
		t.Errorf("Root = %v; want %v", err, stop)
	}
	for _, d := range []string{"layers", "tmp", "packed"} {
		if left := files(t, s.path(d)); len(left) > 0 {
			t.Errorf("%s has %v", d, left)
		}
	}
	mustRoot(t, s, lock)
	if !slices.Contains(m.seen(), "gcc-12 bytes=1000-") {
		t.Errorf("requests = %q; want the partial download to go on", m.seen())
	}
}

func TestListAndRemove(t *testing.T) {
	ctx := context.Background()
	m := newMirror(t)
	lock := tinyLock(t, m)
	second := secondLock(t, m, lock)
	s := openStore(t, t.TempDir())
	r1, r2 := mustRoot(t, s, lock), mustRoot(t, s, second)
	image := mustDigest(t, mustImage(t, r2))
	r2.Close()
	os.Chtimes(s.path("roots", second.Digest().Hex+".json"), time.Now(), time.Now().Add(time.Hour))
	list, err := s.List(ctx)
	if err != nil || len(list) != 2 {
		t.Fatalf("List = %v, %v; want two", list, err)
	}
	if l := list[0]; l.Kernel != second.Kernel || l.Image.String() != image || l.Lock != second.Digest() || l.Shared <= 0 || l.Size <= l.Shared {
		t.Errorf("List[0] = %+v; want the image %s of %v", l, image, second.Kernel)
	}
	if l := list[1]; l.Kernel != lock.Kernel || l.Image.Hex != "" {
		t.Errorf("List[1] = %+v; want %v, not packed", l, lock.Kernel)
	}
	for _, sel := range []string{"6.1.0-11-amd64", "debian/trixie:6.1.0-9-amd64", "sha256:00"} {
		if _, _, err := s.Remove(ctx, second.Kernel.Release, sel); !errors.Is(err, kernels.ErrNotFound) || !strings.Contains(err.Error(), sel) {
			t.Errorf("Remove(%q) = %v; want ErrNotFound", sel, err)
		}
	}
	if _, _, err := s.Remove(ctx, "6.1.0-*"); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), lock.Kernel.String()) {
		t.Errorf("Remove of an open root = %v; want ErrInUse", err)
	}
	if list, _ := s.List(ctx); len(list) != 2 {
		t.Errorf("a refused Remove left %d roots; want 2", len(list))
	}
	if gone, _, err := s.Remove(ctx, image); err != nil || len(gone) != 1 {
		t.Fatalf("Remove = %v, %v", gone, err)
	}
	for i, dir := range r2.Layers() {
		if _, err := os.Stat(dir); (err == nil) != (i == 0) {
			t.Errorf("layer %d after Remove: %v; want only the shared toolchain", i, err)
		}
	}
	if left, _ := os.ReadDir(s.path("packed")); len(left) != 1 {
		t.Errorf("packed has %v; want the toolchain", left)
	}
	r1.Close()
	if _, _, err := s.Remove(ctx, "debian/bookworm:6.1.0-9-amd64"); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"layers", "packed", "roots", "tmp"} {
		if left := files(t, s.path(d)); len(left) > 0 {
			t.Errorf("%s has %v", d, left)
		}
	}
	mustRoot(t, s, lock)
}

// TestRemoveRefusesWhatAnotherProcessUses holds the root in a process, and kills that.
func TestRemoveRefusesWhatAnotherProcessUses(t *testing.T) {
	m := newMirror(t)
	lock := tinyLock(t, m)
	s := openStore(t, t.TempDir())
	cmd, _ := helper(t, s.dir, lock, "IMAGES_TEST_STAY=1")
	defer cmd.Process.Kill()
	inUse := false
	for range 500 {
		if list, _ := s.List(context.Background()); len(list) == 1 {
			_, _, err := s.Remove(context.Background(), lock.Kernel.Release)
			inUse = errors.Is(err, ErrInUse)
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if !inUse {
		t.Error("Remove did not say ErrInUse")
	}
	cmd.Process.Kill()
	cmd.Wait()
	if _, _, err := s.Remove(context.Background(), lock.Kernel.Release); err != nil {
		t.Errorf("Remove after the process died = %v", err)
	}
}

func TestGC(t *testing.T) {
	ctx := context.Background()
	m := newMirror(t)
	lock := tinyLock(t, m)
	second := secondLock(t, m, lock)
	s := openStore(t, t.TempDir())
	mustRoot(t, s, lock).Close()
	r2 := mustRoot(t, s, second)
	old := time.Now().Add(-48 * time.Hour)
	os.Chtimes(s.path("roots", lock.Digest().Hex+".json"), old, old)
	stray := s.path("packages", "partial", strings.Repeat("a", 64))
	os.WriteFile(stray, make([]byte, 1000), 0o644)

	if n, err := s.GC(ctx, GCOptions{}); err != nil || n != 1000 {
		t.Errorf("GC without bounds = %d, %v; want the stray partial download's 1000", n, err)
	}
	if list, _ := s.List(ctx); len(list) != 2 {
		t.Errorf("GC without bounds left %d roots; want 2", len(list))
	}
	if n, err := s.GC(ctx, GCOptions{OlderThan: 24 * time.Hour}); err != nil || n < lock.Headers[0].Size {
		t.Errorf("GC by age = %d, %v", n, err)
	}
	if list, _ := s.List(ctx); len(list) != 1 || list[0].Kernel != second.Kernel {
		t.Errorf("GC by age left %v", list)
	}
	if s.have(lock.Headers[0]) || !s.have(lock.Toolchain[0]) {
		t.Error("GC by age: want the old headers gone and the toolchain kept")
	}
	if _, err := s.GC(ctx, GCOptions{MaxSize: 1}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(r2.Layers()[0]); err != nil {
		t.Errorf("GC removed what is in use: %v", err)
	}
	r2.Close()
	if _, err := s.GC(ctx, GCOptions{MaxSize: 1}); err != nil {
		t.Error(err)
	}
	for _, d := range []string{"layers", "packed", "roots", "tmp", "packages"} {
		if left := files(t, s.path(d)); len(left) > 0 {
			t.Errorf("%s has %v", d, left)
		}
	}
}

func TestVerify(t *testing.T) {
	ctx := context.Background()
	m := newMirror(t)
	lock := tinyLock(t, m)
	for name, spoil := range map[string]func(*Store, *Root) string{
		"package": func(s *Store, r *Root) string { return s.packageFile(lock.Toolchain[0]) },
		"packed":  func(s *Store, r *Root) string { return filepath.Join(s.packedDir(r.specs[1].key), "layer.tar.gz") },
		"file":    func(s *Store, r *Root) string { return filepath.Join(r.Layers()[0], "usr/bin/dash") },
		"more":    func(s *Store, r *Root) string { return filepath.Join(r.Layers()[0], "usr/bin/more") },
		"missing": func(s *Store, r *Root) string { return filepath.Join(r.Layers()[0], "usr/share/both") },
		"index":   func(s *Store, r *Root) string { return filepath.Join(s.layerDir(r.specs[2].key), "index") },
		"root":    func(s *Store, r *Root) string { return s.path("roots", lock.Digest().Hex+".json") },
	} {
		t.Run(name, func(t *testing.T) {
			s := openStore(t, t.TempDir())
			r := mustRoot(t, s, lock)
			want := mustDigest(t, mustImage(t, r))
			if n, damaged, err := s.Verify(ctx); err != nil || len(damaged) > 0 || n != len(lock.Toolchain)+len(lock.Headers)+3+3+1 {
				t.Fatalf("Verify of a good cache = %d, %v, %v", n, damaged, err)
			}
			file := spoil(s, r)
			if b, err := os.ReadFile(file); name == "missing" {
				os.Remove(file)
				os.Chtimes(filepath.Dir(file), time.Unix(epoch, 0), time.Unix(epoch, 0))
			} else if err == nil {
				b[len(b)/2] ^= 1
				os.WriteFile(file, b, 0o644)
			} else {
				os.WriteFile(file, nil, 0o644)
			}
			os.Chtimes(file, time.Unix(1700000000, 0), time.Unix(1700000000, 0))
			if name == "file" {
				if _, damaged, _ := s.Verify(ctx); len(damaged) != 1 || damaged[0].Removed || !strings.Contains(damaged[0].Err.Error(), "usr/bin/dash") {
					t.Errorf("Verify of a layer in use = %v; want it reported and kept", damaged)
				}
			}
			r.Close()
			if _, damaged, err := s.Verify(ctx); err != nil || len(damaged) != 1 || !damaged[0].Removed {
				t.Errorf("Verify = %v, %v; want one damaged thing, removed", damaged, err)
			}
			if _, damaged, err := s.Verify(ctx); err != nil || len(damaged) > 0 {
				t.Errorf("second Verify = %v, %v; want nothing", damaged, err)
			}
			if got := mustDigest(t, mustImage(t, mustRoot(t, s, lock))); got != want {
				t.Errorf("image made anew = %s; want %s", got, want)
			}
		})
	}
}

// TestUnsavedLayers: after a crash of the machine, a layer that was not known to be on the disk is verified before it is used.
func TestUnsavedLayers(t *testing.T) {
	m := newMirror(t)
	lock := tinyLock(t, m)
	s := openStore(t, t.TempDir())
	r := mustRoot(t, s, lock)
	want := describe(t, r.Layers()[0])
	r.Close()
	<-r.saved
	crash := func() {
		os.Remove(filepath.Join(s.layerDir(r.specs[0].key), "synced"))
		s.boot += "+"
	}
	if _, ok := s.trusted(r.specs[0].key); !ok {
		t.Error("a layer is not trusted that was just made")
	}
	crash()
	if _, ok := s.trusted(r.specs[0].key); ok {
		t.Error("a layer is trusted after a crash")
	}
	mustRoot(t, s, lock).Close()
	if _, ok := s.trusted(r.specs[0].key); !ok {
		t.Error("a layer is not trusted that was verified")
	}
	crash()
	if err := os.Truncate(filepath.Join(r.Layers()[0], "usr/bin/dash"), 0); err != nil {
		t.Fatal(err)
	}
	if got := describe(t, mustRoot(t, s, lock).Layers()[0]); got != want {
		t.Errorf("layer after a crash =\n%s\nwant\n%s", got, want)
	}
}

// Whoever lists the images sees a packed one or none, also while another removes it.
func TestListWhileAnotherRemoves(t *testing.T) {
	ctx := context.Background()
	m := newMirror(t)
	lock := tinyLock(t, m)
	dir := t.TempDir()
	s := openStore(t, dir)
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			other := openStore(t, dir)
			for {
				select {
				case <-done:
					return
				default:
				}
				if _, err := other.List(ctx); err != nil {
					t.Errorf("List = %v", err)
					return
				}
			}
		})
	}
	for range 10 {
		r, err := s.Root(ctx, lock, nil)
		if err != nil {
			t.Fatal(err)
		}
		mustImage(t, r)
		r.Close()
		if _, _, err := s.Remove(ctx, lock.Kernel.String()); err != nil {
			t.Fatal(err)
		}
	}
	close(done)
	wg.Wait()
}
