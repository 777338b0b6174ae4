package cache_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/cache"
)

// files lists the files below a folder of the cache, without locks.
func files(t testing.TB, dir, sub string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(filepath.Join(dir, "v1", sub), func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && d.Name() != "lock" {
			out = append(out, p)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Whatever file is damaged, and however, the entry is gone with a warning, and comes back with the next Put.
func TestDamage(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	ways := map[string]func(t *testing.T, path string){
		"flip a bit": func(t *testing.T, path string) {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			b[r.IntN(len(b))] ^= 1 << r.IntN(8)
			if err := os.WriteFile(path, b, 0o644); err != nil {
				t.Fatal(err)
			}
		},
		"cut it": func(t *testing.T, path string) {
			st, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(path, r.Int64N(st.Size())); err != nil {
				t.Fatal(err)
			}
		},
		"lengthen it": func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteString("\n"); err != nil {
				t.Fatal(err)
			}
		},
		"remove it": func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		},
	}
	for way, damage := range ways {
		for i := range 7 * 5 { // six blobs and the record, at several places
			t.Run(fmt.Sprint(way, " ", i), func(t *testing.T) {
				for _, verify := range []bool{false, true} {
					dir := t.TempDir()
					var warnings []string
					d, err := cache.Open(dir, cache.Options{Warn: func(s string) { warnings = append(warnings, s) }})
					if err != nil {
						t.Fatal(err)
					}
					put(t, d, "a", "1")
					all := append(files(t, dir, "blobs"), files(t, dir, "entries")...)
					if len(all) != 7 {
						t.Fatalf("%q", all)
					}
					path := all[i%7]
					damage(t, path)
					isRecord := strings.Contains(path, "/entries/")
					if verify {
						rep, err := d.Verify(context.Background())
						if err != nil {
							t.Fatal(err)
						}
						if want := !isRecord || way != "remove it"; (len(rep.Damaged) == 1 && rep.Damaged[0].Key == hash("a") && rep.Damaged[0].Removed) != want {
							t.Errorf("Verify = %+v", rep)
						}
						checkMissing(t, d, "a")
					} else {
						checkMissing(t, d, "a")
						if want := !isRecord || way != "remove it"; (len(warnings) == 1 && strings.Contains(warnings[0], hash("a").Hex)) != want {
							t.Errorf("warnings = %q", warnings)
						}
					}
					warnings = nil
					checkMissing(t, d, "a")
					rep, err := d.Verify(context.Background())
					if err != nil || len(rep.Damaged) != 0 {
						t.Errorf("Verify afterwards = %+v, %v", rep, err)
					}
					put(t, d, "a", "1")
					check(t, d, "a", "1")
					if len(warnings) != 0 {
						t.Errorf("warnings afterwards = %q", warnings)
					}
				}
			})
		}
	}
}

// A blob that two entries share is lost for both, but only what is damaged goes.
func TestDamagedSharedBlob(t *testing.T) {
	dir := t.TempDir()
	d, err := cache.Open(dir, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	put(t, d, "a", "1")
	put(t, d, "b", "2")
	if err := os.WriteFile(filepath.Join(dir, "v1/blobs/sha256", hash("shared").Hex), []byte("Shared"), 0o644); err != nil {
		t.Fatal(err)
	}
	rep, err := d.Verify(context.Background())
	if err != nil || len(rep.Damaged) != 2 || rep.Entries != 0 {
		t.Errorf("Verify = %+v, %v; want two damaged entries", rep, err)
	}
	put(t, d, "a", "1")
	check(t, d, "a", "1")
	checkMissing(t, d, "b")
}

// A damaged blob that no entry needs is found too; and a Put does not trust one that lies there.
func TestDamagedOrphan(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	path := filepath.Join(dir, "v1/blobs/sha256", hash("shared").Hex)
	if err := os.WriteFile(path, []byte("junk"), 0o644); err != nil {
		t.Fatal(err)
	}
	put(t, d, "a", "1")
	check(t, d, "a", "1")
	other := filepath.Join(dir, "v1/blobs/sha256", hash("other").Hex)
	if err := os.WriteFile(other, []byte("junk"), 0o644); err != nil {
		t.Fatal(err)
	}
	rep, err := d.Verify(context.Background())
	if err != nil || rep.Entries != 1 || rep.Blobs != 6 || len(rep.Damaged) != 1 || rep.Damaged[0].Blob != hash("other") {
		t.Errorf("Verify = %+v, %v", rep, err)
	}
	if _, err := os.Stat(other); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Stat = %v; want it removed", err)
	}
}

// A record in another's place is damage too.
func TestMisplacedRecord(t *testing.T) {
	dir := t.TempDir()
	d, err := cache.Open(dir, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	put(t, d, "a", "1")
	entries := filepath.Join(dir, "v1/entries")
	if err := os.Link(filepath.Join(entries, hash("a").Hex), filepath.Join(entries, hash("b").Hex)); err != nil {
		t.Fatal(err)
	}
	checkMissing(t, d, "b")
	check(t, d, "a", "1")
}

// A layer that changes after Get fails before EOF.
func TestDamageAfterGet(t *testing.T) {
	dir := t.TempDir()
	d := open(t, dir)
	put(t, d, "a", "1")
	e, err := d.Get(context.Background(), hash("a"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "v1/blobs/sha256", hash("1").Hex), []byte("2"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, err := layers(e.Image); err == nil {
		t.Errorf("layers = %q without error", got)
	}
}

func TestListAndLastUsed(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	d := open(t, dir)
	put(t, d, "a", "1")
	put(t, d, "b", "2")
	old := time.Now().Add(-2 * time.Hour)
	for _, f := range files(t, dir, "entries") {
		if err := os.Chtimes(f, old, old); err != nil {
			t.Fatal(err)
		}
	}
	check(t, d, "b", "2")
	infos, err := d.List(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(infos) != 2 || infos[0].Key != hash("b") || infos[1].Key != hash("a") || !infos[1].LastUsed.Equal(old) || time.Since(infos[0].LastUsed) > time.Minute {
		t.Errorf("List = %+v; want b, used now, before a, used two hours ago", infos)
	}
	img := image(t, "1")
	want, _ := img.Size()
	m, _ := img.Manifest()
	want += m.Config.Size + int64(len("shared1log of 1lock of 1"))
	if infos[1].Size != want {
		t.Errorf("Size = %d; want %d", infos[1].Size, want)
	}
	if digest, _ := img.Digest(); infos[1].Digest != digest {
		t.Errorf("Digest = %s; want %s", infos[1].Digest, digest)
	}
	if time.Since(infos[1].Created) > time.Minute {
		t.Errorf("Created = %s", infos[1].Created)
	}
}

// What others share stays.
func TestRemove(t *testing.T) {
	dir := t.TempDir()
	d, err := cache.Open(dir, cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	put(t, d, "a", "1")
	one := len(files(t, dir, "blobs"))
	put(t, d, "b", "2")
	for _, key := range []string{"b", "b", "never"} {
		if err := d.Remove(context.Background(), hash(key)); err != nil {
			t.Fatal(err)
		}
	}
	check(t, d, "a", "1")
	checkMissing(t, d, "b")
	if n := len(files(t, dir, "blobs")); n != one {
		t.Errorf("%d blobs are left of one entry; want %d", n, one)
	}
	if err := d.Remove(context.Background(), hash("a")); err != nil {
		t.Fatal(err)
	}
	if left := append(files(t, dir, "blobs"), files(t, dir, "entries")...); len(left) != 0 {
		t.Errorf("there still is %q", left)
	}
	put(t, d, "b", "2")
	check(t, d, "b", "2")
}

func TestGC(t *testing.T) {
	ctx := context.Background()
	fill := func(t *testing.T) (string, *cache.Dir) {
		dir := t.TempDir()
		d := open(t, dir)
		for i, k := range []string{"a", "b", "c"} { // a was used last, c first
			put(t, d, k, strings.Repeat(k, 10000))
			at := time.Now().Add(-time.Duration(i) * 24 * time.Hour)
			if err := os.Chtimes(filepath.Join(dir, "v1/entries", hash(k).Hex), at, at); err != nil {
				t.Fatal(err)
			}
		}
		return dir, d
	}
	left := func(t *testing.T, d *cache.Dir) string {
		infos, err := d.List(ctx)
		if err != nil {
			t.Fatal(err)
		}
		var out []string
		for _, i := range infos {
			for _, k := range []string{"a", "b", "c"} {
				if hash(k) == i.Key {
					out = append(out, k)
				}
			}
		}
		if rep, err := d.Verify(ctx); err != nil || len(rep.Damaged) != 0 {
			t.Errorf("Verify = %+v, %v", rep, err)
		}
		return strings.Join(out, "")
	}
	for _, tt := range []struct {
		name string
		o    cache.GCOptions
		want string
	}{
		{"nothing", cache.GCOptions{}, "abc"},
		{"all fit", cache.GCOptions{MaxSize: 1 << 20}, "abc"},
		{"two fit", cache.GCOptions{MaxSize: 50000}, "ab"},
		{"none fits", cache.GCOptions{MaxSize: 1}, ""},
		{"old", cache.GCOptions{OlderThan: 36 * time.Hour}, "ab"},
		{"older", cache.GCOptions{OlderThan: 12 * time.Hour}, "a"},
		{"both", cache.GCOptions{OlderThan: 36 * time.Hour, MaxSize: 30000}, "a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir, d := fill(t)
			before := size(t, dir)
			res, err := d.GC(ctx, tt.o)
			if err != nil {
				t.Fatal(err)
			}
			if got := left(t, d); got != tt.want {
				t.Errorf("left = %q; want %q", got, tt.want)
			}
			if res.Entries != 3-len(tt.want) || before-size(t, dir) != res.Freed {
				t.Errorf("GC = %+v; want %d entries, %d bytes", res, 3-len(tt.want), before-size(t, dir))
			}
		})
	}
	t.Run("in use", func(t *testing.T) {
		_, d := fill(t)
		lock, err := d.Lock(ctx, hash("b"))
		if err != nil {
			t.Fatal(err)
		}
		e, err := d.Get(ctx, hash("c"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.GC(ctx, cache.GCOptions{MaxSize: 1}); err != nil {
			t.Fatal(err)
		}
		if got := left(t, d); got != "b" {
			t.Errorf("left = %q; want b, which is locked", got)
		}
		if got, err := layers(e.Image); err != nil || len(got) != 10006 {
			t.Errorf("an open image = %d bytes, %v", len(got), err)
		}
		if err := lock.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := d.GC(ctx, cache.GCOptions{MaxSize: 1}); err != nil {
			t.Fatal(err)
		}
		if got := left(t, d); got != "" {
			t.Errorf("left = %q; want nothing", got)
		}
	})
	t.Run("rubbish", func(t *testing.T) {
		dir, d := fill(t)
		for _, f := range []string{"tmp/file-1", "blobs/sha256/" + hash("orphan").Hex, "blobs/sha256/stray"} {
			if err := os.WriteFile(filepath.Join(dir, "v1", f), []byte("12345"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if res, err := d.GC(ctx, cache.GCOptions{}); err != nil || res.Freed != 10 || res.Blobs != 2 || res.Entries != 0 {
			t.Errorf("GC = %+v, %v", res, err)
		}
		if got := left(t, d); got != "abc" {
			t.Errorf("left = %q", got)
		}
	})
	t.Run("a damaged record keeps its blobs from nobody", func(t *testing.T) {
		dir, d := fill(t)
		if err := os.WriteFile(filepath.Join(dir, "v1/entries", hash("a").Hex), []byte("x"), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := d.GC(ctx, cache.GCOptions{}); err != nil {
			t.Fatal(err)
		}
		check(t, d, "b", strings.Repeat("b", 10000))
	})
}

func size(t testing.TB, dir string) (n int64) {
	t.Helper()
	for _, sub := range []string{"blobs", "tmp", "logs"} {
		for _, f := range files(t, dir, sub) {
			st, err := os.Stat(f)
			if err != nil {
				t.Fatal(err)
			}
			n += st.Size()
		}
	}
	return n
}

// A cache in a mounted image may have links that lead out of it: nothing is made or removed there.
func TestLinksInCache(t *testing.T) {
	for _, name := range []string{"v1", "v1/entries", "v1/blobs", "v1/blobs/sha256", "v1/locks", "v1/logs", "v1/tmp", "v1/lock", "v1/tmp/.lock"} {
		dir, outside := t.TempDir(), t.TempDir()
		to := outside
		if strings.HasSuffix(name, "lock") {
			to = filepath.Join(outside, "absent")
		} else if err := os.WriteFile(filepath.Join(outside, "precious"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		before, err := os.ReadDir(outside)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, filepath.Dir(name)), 0o755), os.Symlink(to, filepath.Join(dir, name))); err != nil {
			t.Fatal(err)
		}
		d, err := cache.Open(dir, cache.Options{})
		if err == nil {
			err = d.Put(t.Context(), hash("k"), entry(t, "1"))
		}
		if err == nil {
			t.Errorf("%s leads out of the cache, and it is written to", name)
		}
		if after, err := os.ReadDir(outside); err != nil || len(after) != len(before) {
			t.Errorf("%s leads out of the cache, where there is %v now, %v before (%v)", name, after, before, err)
		}
	}
}

// A key's inputs are kept with its entry, and are those of the key.
func TestInputs(t *testing.T) {
	d, ctx := open(t, t.TempDir()), context.Background()
	e := entry(t, "1")
	e.Inputs = []byte("what a is the hash of")
	key := hash(string(e.Inputs))
	if err := d.Put(ctx, hash("a"), e); err == nil {
		t.Error("Put took the inputs of another key")
	}
	if err := d.Put(ctx, key, e); err != nil {
		t.Fatal(err)
	}
	put(t, d, "b", "1")
	if _, err := d.GC(ctx, cache.GCOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, err := d.Get(ctx, key); err != nil || !bytes.Equal(got.Inputs, e.Inputs) {
		t.Errorf("Get: inputs = %q, %v; want %q", got.Inputs, err, e.Inputs)
	}
	if got, err := d.Get(ctx, hash("b")); err != nil || got.Inputs != nil {
		t.Errorf("Get of what has none: inputs = %q, %v", got.Inputs, err)
	}
}

func TestKeepLog(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	d := open(t, dir)
	path, err := d.KeepLog(ctx, hash("a"), []byte("it failed"))
	if err != nil {
		t.Fatal(err)
	}
	checkMissing(t, d, "a")
	if b, err := os.ReadFile(path); err != nil || string(b) != "it failed" {
		t.Errorf("%s = %q, %v", path, b, err)
	}
	left := filepath.Join(dir, "v1/tmp/file-1") // of one that was killed
	if err := os.WriteFile(left, []byte("half"), 0o644); err != nil {
		t.Fatal(err)
	}
	again, err := d.KeepLog(ctx, hash("a"), bytes.Repeat([]byte("x"), 2*cache.MaxLog))
	if err != nil || again != path {
		t.Errorf("KeepLog = %q, %v; want %q", again, err, path)
	}
	if _, err := os.Stat(left); err == nil {
		t.Errorf("%s is still there", left)
	}
	if st, err := os.Stat(path); err != nil || st.Size() > cache.MaxLog {
		t.Errorf("the log has %d bytes, %v", st.Size(), err)
	}
	for i := range 250 {
		p, err := d.KeepLog(ctx, hash(fmt.Sprint(i)), nil)
		if err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-time.Duration(i) * time.Hour)
		if err := os.Chtimes(p, at, at); err != nil {
			t.Fatal(err)
		}
	}
	if res, err := d.GC(ctx, cache.GCOptions{}); err != nil || res.Logs != 51 {
		t.Errorf("GC = %+v, %v; want 200 logs left of 251", res, err)
	}
	if res, err := d.GC(ctx, cache.GCOptions{OlderThan: 10*time.Hour + time.Minute}); err != nil || res.Logs != 200-12 {
		t.Errorf("GC = %+v, %v; want 12 logs left", res, err)
	}
}

func TestLock(t *testing.T) {
	ctx := context.Background()
	d := open(t, t.TempDir())
	a, err := d.Lock(ctx, hash("a"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := d.Lock(ctx, hash("b")) // another key is free
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := d.Lock(short, hash("a")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Lock of what is locked = %v", err)
	}
	got := make(chan error)
	go func() {
		l, err := d.Lock(ctx, hash("a"))
		if err == nil {
			err = l.Close()
		}
		got <- err
	}()
	if _, err := d.GC(ctx, cache.GCOptions{}); err != nil { // removes lock files that are free
		t.Fatal(err)
	}
	select {
	case err := <-got:
		t.Fatalf("Lock of what is locked = %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-got; err != nil {
		t.Fatal(err)
	}
}

// helpers are what this test binary does when it runs itself as another process.
var helpers = map[string]func(args []string) error{
	"build":    helperBuild,
	"put":      helperPut,
	"readonly": helperReadOnly,
}

func helper(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), "CACHE_TEST_HELPER="+name)
	cmd.Stderr = &bytes.Buffer{}
	return cmd
}

func openHelper(dir string) (*cache.Dir, error) {
	return cache.Open(dir, cache.Options{Warn: func(s string) { fmt.Fprintln(os.Stderr, "warning:", s) }})
}

const rounds = 20

// helperBuild gets keys as builder does: under the key's lock, and "built" where absent. GC runs in between.
func helperBuild(args []string) error {
	ctx := context.Background()
	d, err := openHelper(args[0])
	if err != nil {
		return err
	}
	log, err := os.OpenFile(args[1], os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	for i := range rounds {
		key := strconv.Itoa(i)
		content := strings.Repeat(key, 5000)
		l, err := d.Lock(ctx, hash(key))
		if err != nil {
			return err
		}
		_, err = d.Get(ctx, hash(key))
		if errors.Is(err, cache.ErrNotFound) {
			fmt.Fprintf(log, "%s\n", key)
			err = d.Put(ctx, hash(key), entry(&testing.B{}, content))
		}
		if err != nil {
			return err
		}
		if _, err := d.GC(ctx, cache.GCOptions{}); err != nil {
			return err
		}
		if err := compare(d, key, content); err != nil {
			return err
		}
		if err := l.Close(); err != nil {
			return err
		}
	}
	return nil
}

func TestEightProcesses(t *testing.T) {
	dir := t.TempDir()
	built := filepath.Join(t.TempDir(), "built")
	if err := os.WriteFile(built, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	var cmds []*exec.Cmd
	for range 8 {
		cmd := helper(t, "build", dir, built)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, cmd)
	}
	for _, cmd := range cmds {
		if err := cmd.Wait(); err != nil || cmd.Stderr.(*bytes.Buffer).Len() > 0 {
			t.Errorf("%v: %s", err, cmd.Stderr)
		}
	}
	b, err := os.ReadFile(built)
	if err != nil {
		t.Fatal(err)
	}
	keys := strings.Fields(string(b))
	slices.Sort(keys)
	if len(keys) != rounds || len(slices.Compact(keys)) != rounds {
		t.Errorf("%d builds for %d keys: %q", len(keys), rounds, keys)
	}
	rep, err := open(t, dir).Verify(context.Background())
	if err != nil || len(rep.Damaged) != 0 || rep.Entries != rounds {
		t.Errorf("Verify = %+v, %v", rep, err)
	}
}

// helperPut puts entries until it is killed.
func helperPut(args []string) error {
	d, err := openHelper(args[0])
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		key := strconv.Itoa(i % 50)
		content := strings.Repeat(strconv.Itoa(i), 1000)
		if err := d.Put(context.Background(), hash(key), cache.Entry{Image: image(&testing.B{}, content), Log: []byte(content)}); err != nil {
			return err
		}
	}
}

func TestKilledWhilePutting(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	d := open(t, dir)
	r := rand.New(rand.NewPCG(3, 4))
	left := false
	for range 30 {
		cmd := helper(t, "put", dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20*time.Millisecond + time.Duration(r.IntN(30000))*time.Microsecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		cmd.Wait()
		if s := cmd.Stderr.(*bytes.Buffer).String(); s != "" {
			t.Fatal(s)
		}
		left = left || len(files(t, dir, "tmp")) > 0
		rep, err := d.Verify(ctx)
		if err != nil || len(rep.Damaged) != 0 {
			t.Fatalf("Verify = %+v, %v", rep, err)
		}
		infos, err := d.List(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range infos {
			e, err := d.Get(ctx, i.Key)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := layers(e.Image); err != nil || got != "shared"+string(e.Log) {
				t.Fatalf("entry %s: %d bytes, %v; want its log's %d", i.Key, len(got), err, len(e.Log))
			}
		}
	}
	t.Logf("an interrupted write was seen: %v", left)
	put(t, d, "later", "later") // the next one cleans up
	if tmp := files(t, dir, "tmp"); len(tmp) != 1 || filepath.Base(tmp[0]) != ".lock" {
		t.Errorf("after the next Put there is %q", tmp)
	}
	if _, err := d.GC(ctx, cache.GCOptions{}); err != nil {
		t.Fatal(err)
	}
	infos, err := d.List(ctx)
	if err != nil || len(infos) == 0 {
		t.Errorf("List = %d entries, %v", len(infos), err)
	}
}

func helperReadOnly(args []string) error {
	ctx := context.Background()
	var warnings []string
	d, err := cache.Open(args[0], cache.Options{Warn: func(s string) { warnings = append(warnings, s) }})
	if err != nil {
		return err
	}
	if err := compare(d, "a", "1"); err != nil {
		return err
	}
	if len(warnings) != 0 {
		return fmt.Errorf("warnings = %q", warnings)
	}
	if err := d.Put(ctx, hash("c"), cache.Entry{Image: image(&testing.B{}, "1")}); err == nil || !strings.Contains(err.Error(), "can't be written to") {
		return fmt.Errorf("Put = %v", err)
	}
	if _, err := d.Get(ctx, hash("damaged")); !errors.Is(err, cache.ErrNotFound) || len(warnings) != 1 {
		return fmt.Errorf("Get of a damaged entry = %v, warnings %q", err, warnings)
	}
	if infos, err := d.List(ctx); err != nil || len(infos) != 2 {
		return fmt.Errorf("List = %+v, %v", infos, err)
	}
	rep, err := d.Verify(ctx)
	if err != nil || rep.Entries != 1 || len(rep.Damaged) != 1 || rep.Damaged[0].Removed {
		return fmt.Errorf("Verify = %+v, %v", rep, err)
	}
	if _, err := cache.Open(filepath.Join(args[0], "new"), cache.Options{}); err == nil {
		return errors.New("Open makes a folder where it can't")
	}
	return nil
}

func TestReadOnly(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("NOT TESTED: only root can become a user that may not write here")
	}
	// Neither the test's temporary folder nor its binary may be reachable for others.
	base, err := os.MkdirTemp("", "cache-test-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(base)
	if err := os.Chmod(base, 0o755); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(base, "cache")
	d := open(t, dir)
	put(t, d, "a", "1")
	put(t, d, "damaged", "2")
	if err := os.WriteFile(filepath.Join(dir, "v1/blobs/sha256", hash("2").Hex), []byte("3"), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := helper(t, "readonly", dir)
	exe, err := os.ReadFile(cmd.Path)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Path = filepath.Join(base, "helper")
	if err := os.WriteFile(cmd.Path, exe, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd.Dir = base
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if err := cmd.Run(); err != nil {
		t.Errorf("%v: %s", err, cmd.Stderr)
	}
}

func BenchmarkGet(b *testing.B) {
	d := open(b, b.TempDir())
	put(b, d, "a", strings.Repeat("x", 100_000))
	for b.Loop() {
		if _, err := d.Get(context.Background(), hash("a")); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkPut(b *testing.B) {
	d := open(b, b.TempDir())
	for i := 0; b.Loop(); i++ {
		put(b, d, "a", fmt.Sprint(i))
	}
}
