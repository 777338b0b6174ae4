package images

import (
	"archive/tar"
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

func here(name string) (string, bool) { return name, true }

func extractAll(t testing.TB, place func(string) (string, bool), archives ...[]byte) (*tree, record, error) {
	t.Helper()
	tr, err := newTree(t.TempDir(), make([]string, len(archives)), defaultLimits)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.close)
	for i, a := range archives {
		if err := tr.extract(context.Background(), i, bytes.NewReader(a), policy{place: place}); err != nil {
			return tr, record{}, err
		}
	}
	rec, err := tr.finish()
	return tr, rec, err
}

func TestExtract(t *testing.T) {
	odd := e("etc/secret", "x")
	odd.Mode, odd.Uid, odd.Gid, odd.Uname = 0o6700, 12, 13, "daemon"
	closed := e("etc/closed/", "")
	closed.Mode = 0o1000
	old := e("etc/old", "")
	old.ModTime = time.Unix(-5, 0)
	long := strings.Repeat("d/", 120) + strings.Repeat("n", 255) // needs a PAX or GNU name
	tr, rec, err := extractAll(t, here, makeTar(t, e("./", ""), e("./usr/", ""), e("usr//bin/./x", "#!"), e("usr/bin/l -> /etc/passwd", ""),
		e("usr/bin/y => ./usr/bin/x", ""), odd, closed, old, e("up -> usr/../etc", ""), e("usr/bin/up -> ../../etc", ""),
		e(long, "long"), e("dup", "first"), e("dup", "second"), e("ü", "utf-8")))
	if err != nil {
		t.Fatal(err)
	}
	got := describe(t, filepath.Join(tr.dir, "fs"))
	for _, want := range []string{
		"/etc/closed drwxr-xr-x 1700000000\n", "/etc/old -rw-r--r-- 0 \"\"\n", "/etc/secret -rwxr-xr-x 1700000000 \"x\"\n",
		"/usr/bin/l Lrwxrwxrwx 1700000000 -> /etc/passwd\n", "/usr/bin/x -rw-r--r-- 1700000000 \"#!\"\n",
		"/usr/bin/y -rw-r--r-- 1700000000 \"#!\"\n", "/usr/bin drwxr-xr-x 315532800\n", "/dup -rw-r--r-- 1700000000 \"second\"\n",
		"/ü -rw", "/" + long + " -rw-r--r-- 1700000000 \"long\"\n", "\n/etc drwxr-xr-x 315532800\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("tree lacks %q", want)
		}
	}
	if t.Failed() {
		t.Log(got)
	}
	if rec.Size != int64(len("#!xlongsecondutf-8")) {
		t.Errorf("record has %d bytes", rec.Size)
	}
	if st, _ := os.ReadDir(tr.dir); len(st) != 2 {
		t.Errorf("finish left %v; want fs and index", st)
	}
}

// A link that is out of the glue's way still leads where its package meant it to.
func TestDivertedLink(t *testing.T) {
	tr, _, err := extractAll(t, placePackage, makeTar(t, e("usr/lib/cargo/bin/date", "date"), e("usr/bin/date -> ../lib/cargo/bin/date", ""),
		e("bin/uname -> /usr/lib/cargo/bin/uname", "")))
	if err != nil {
		t.Fatal(err)
	}
	got := describe(t, filepath.Join(tr.dir, "fs"))
	for _, want := range []string{"/usr/lib/godkms-hermetic/date Lrwxrwxrwx 1700000000 -> /usr/lib/cargo/bin/date\n",
		"/usr/lib/godkms-hermetic/uname Lrwxrwxrwx 1700000000 -> /usr/lib/cargo/bin/uname\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("tree lacks %q:\n%s", want, got)
		}
	}
}

func TestExtractRefuses(t *testing.T) {
	typed := func(flag byte, name, link string) ent {
		h := e(name, "")
		h.Typeflag, h.Linkname = flag, link
		return h
	}
	for name, c := range map[string]struct {
		entries []ent
		want    string
	}{
		"dots":                  {[]ent{e("../x", "")}, "leads out"},
		"dots inside":           {[]ent{e("usr/../../x", "")}, "leads out"},
		"absolute":              {[]ent{e("/etc/x", "")}, "absolute"},
		"character device":      {[]ent{typed(tar.TypeChar, "dev/null", "")}, "device"},
		"block device":          {[]ent{typed(tar.TypeBlock, "dev/sda", "")}, "device"},
		"pipe":                  {[]ent{typed(tar.TypeFifo, "run/p", "")}, "pipe"},
		"link out":              {[]ent{e("usr/x -> ../../etc", "")}, "leads out"},
		"link out, later":       {[]ent{e("usr/x -> a/../../..", "")}, "leads out"},
		"absolute link out":     {[]ent{e("usr/x -> /../etc", "")}, "leads out"},
		"empty link":            {[]ent{typed(tar.TypeSymlink, "x", "")}, "unusable"},
		"through a link":        {[]ent{e("x -> /tmp", ""), e("x/y", "")}, "at once"},
		"through inner link":    {[]ent{e("d/", ""), e("x -> d", ""), e("x/y", "")}, "at once"},
		"folder through a link": {[]ent{e("x -> /tmp", ""), e("x/y/", "")}, "at once"},
		"through a file":        {[]ent{e("x", ""), e("x/y", "")}, "at once"},
		"file over folder":      {[]ent{e("x/", ""), e("x", "")}, "at once"},
		"folder over file":      {[]ent{e("x", ""), e("x/", "")}, "at once"},
		"hard link out":         {[]ent{e("x => ../../etc/passwd", "")}, "leads out"},
		"absolute hard link":    {[]ent{e("x => /etc/passwd", "")}, "absolute"},
		"hard link to nothing":  {[]ent{e("x => y", "")}, "no file"},
		"hard link, folder":     {[]ent{e("d/", ""), e("x => d", "")}, "no file"},
		"hard link, via link":   {[]ent{e("l -> /etc", ""), e("x => l/passwd", "")}, "no file"},
		"top is a file":         {[]ent{e(".", "x")}, "no folder"},
		"long part":             {[]ent{e(strings.Repeat("n", 256), "")}, "255"},
		"long name":             {[]ent{e(strings.Repeat("n/", 2001), "")}, "too long"},
		"not UTF-8":             {[]ent{e("a\xff", "")}, "UTF-8"},
		"not UTF-8 link":        {[]ent{typed(tar.TypeSymlink, "a", "\xff")}, "unusable"},
		"odd type":              {[]ent{typed('S', "a", "")}, "read tar"},
	} {
		t.Run(name, func(t *testing.T) {
			var buf []byte
			if name == "odd type" {
				buf = bytes.Repeat([]byte("not a tar"), 200)
			} else {
				buf = makeTar(t, c.entries...)
			}
			tr, _, err := extractAll(t, here, buf)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("extract = %v; want %q\n%s", err, c.want, describe(t, tr.dir))
			}
		})
	}
}

func TestExtractBounds(t *testing.T) {
	bomb := e("zeros", "")
	for name, c := range map[string]struct {
		lim     limits
		archive []byte
	}{
		"bytes":   {limits{100, 10}, makeTar(t, e("a", "12345"), e("b", "123456"))},
		"entries": {limits{2, 1000}, makeTar(t, e("a", ""), e("b", ""), e("c", ""))},
		"trailer": {limits{100, 1000}, append(makeTar(t, bomb), make([]byte, maxTrailer+4096)...)},
	} {
		t.Run(name, func(t *testing.T) {
			tr, err := newTree(t.TempDir(), []string{"p"}, c.lim)
			if err != nil {
				t.Fatal(err)
			}
			defer tr.close()
			if err := tr.extract(context.Background(), 0, bytes.NewReader(c.archive), policy{place: here}); err == nil || !strings.Contains(err.Error(), "more than") {
				t.Errorf("extract = %v; want an error about a bound", err)
			}
		})
	}
}

// slow hands out few bytes at a time, with pauses.
type slow struct {
	r   io.Reader
	rng *rand.Rand
}

func (s slow) Read(b []byte) (int, error) {
	if s.rng.IntN(4) == 0 {
		time.Sleep(time.Duration(s.rng.IntN(300)) * time.Microsecond)
	}
	return s.r.Read(b[:min(len(b), 1+s.rng.IntN(700))])
}

// TestExtractOrder unpacks archives that have paths in common, at the same time and in any order: the result is the same.
func TestExtractOrder(t *testing.T) {
	first, second, third := e("d/", ""), e("d/", ""), e("d/", "")
	first.ModTime, second.ModTime, third.ModTime = time.Unix(1, 0), time.Unix(2, 0), time.Unix(3, 0)
	archives := [][]byte{
		makeTar(t, first, e("d/a", "0"), e("d/b => d/a", ""), e("d/own0 => d/a", ""), e("l -> zero", ""), e("x", "file")),
		makeTar(t, second, e("d/a", "11"), e("d/b", "one"), e("d/own1 => d/a", ""), e("l -> one", ""), e("d/own1b => d/b", "")),
		makeTar(t, third, e("d/b", "222"), e("d/own2 => d/b", ""), e("x -> d", ""), e("lx => x", "")),
		makeTar(t, e("d/sub/c", "only implies its folder"), e("l", "a file now")),
	}
	var want string
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 1))
		tr, err := newTree(t.TempDir(), []string{"a", "b", "c", "d"}, defaultLimits)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for _, i := range rng.Perm(len(archives)) {
			r := slow{bytes.NewReader(archives[i]), rand.New(rand.NewPCG(seed, uint64(i)))}
			if seed%2 == 0 {
				if err := tr.extract(context.Background(), i, r, policy{place: here}); err != nil {
					t.Error(err)
				}
				continue
			}
			wg.Go(func() {
				if err := tr.extract(context.Background(), i, r, policy{place: here}); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		rec, err := tr.finish()
		if err != nil {
			t.Fatal(err)
		}
		index, err := os.ReadFile(filepath.Join(tr.dir, "index"))
		if err != nil {
			t.Fatal(err)
		}
		got := rec.Tree + "\n" + string(index) + describe(t, filepath.Join(tr.dir, "fs"))
		if want == "" {
			want = got
			for _, line := range []string{"/d/a -rw-r--r-- 1700000000 \"11\"", "/d/b -rw-r--r-- 1700000000 \"222\"", "/d/own0 -rw-r--r-- 1700000000 \"0\"",
				"/d/own1 -rw-r--r-- 1700000000 \"11\"", "/d/own1b -rw-r--r-- 1700000000 \"one\"", "/d/own2 -rw-r--r-- 1700000000 \"222\"",
				"/d drwxr-xr-x 3\n", "/x Lrwxrwxrwx 1700000000 -> d", "/lx Lrwxrwxrwx 1700000000 -> d", "/l -rw-r--r-- 1700000000 \"a file now\"",
				`{"p":"d/own1","t":"h","m":420,"s":1700000000,"l":"d/a"}`} {
				if !strings.Contains(got, line) {
					t.Errorf("tree lacks %q:\n%s", line, got)
				}
			}
		} else if got != want {
			t.Fatalf("seed %d gives another tree:\n%s\nwant\n%s", seed, got, want)
		}
	}
}

func TestPlacePackage(t *testing.T) {
	for name, want := range map[string]string{
		"bin/sh": "usr/bin/sh", "lib64/ld.so": "usr/lib64/ld.so", "lib/x/y": "usr/lib/x/y", "sbin/a": "usr/sbin/a", "bin": "", "lib64": "",
		"libexec/a": "libexec/a", "usr/bin/gcc": "usr/bin/gcc", "bin/date": privateDir + "/date", "usr/bin/uname": privateDir + "/uname",
		"usr/share/man": "", "usr/share/man/man1/x": "", "usr/share/manual": "usr/share/manual", "usr/share/locale/de/x": "",
		"usr/share/doc": "usr/share/doc", "usr/share/doc/gcc": "usr/share/doc/gcc", "usr/share/doc/gcc/copyright": "usr/share/doc/gcc/copyright",
		"usr/share/doc/gcc/README": "", "usr/share/doc/gcc/a/copyright": "",
	} {
		if got, ok := placePackage(name); got != want || ok != (want != "") {
			t.Errorf("placePackage(%q) = %q, %v; want %q", name, got, ok, want)
		}
	}
}

func FuzzExtract(f *testing.F) {
	f.Add(makeTar(f, e("x -> ..", ""), e("x/y", "z")))
	f.Add(makeTar(f, e("a", "b"), e("c => a", ""), e("d/", ""), e("d/e -> ../a", "")))
	f.Add(makeTar(f, e("l -> /etc", ""), e("l/passwd", "x"), e("../up", "")))
	f.Fuzz(func(t *testing.T, archive []byte) {
		outer := t.TempDir()
		dir := filepath.Join(outer, "a", "b")
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		tr, err := newTree(dir, []string{"p", "q"}, limits{1000, 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		defer tr.close()
		err = tr.extract(context.Background(), 0, bytes.NewReader(archive), policy{place: here})
		if err2 := tr.extract(context.Background(), 1, bytes.NewReader(archive), policy{place: placePackage}); err == nil && err2 == nil {
			if _, err := tr.finish(); err != nil {
				t.Fatalf("finish: %v", err)
			}
			readBack(t, dir)
		}
		filepath.Walk(outer, func(p string, st os.FileInfo, err error) error {
			if err != nil {
				t.Fatal(err)
			}
			if rel := strings.TrimPrefix(p, outer); rel != "" && rel != "/a" && !strings.HasPrefix(rel, "/a/b") {
				t.Fatalf("wrote %q", rel)
			}
			if m := st.Mode(); m&(os.ModeSetuid|os.ModeSetgid|os.ModeDevice|os.ModeNamedPipe) != 0 {
				t.Fatalf("%q has mode %v", p, m)
			}
			return nil
		})
	})
}

// readBack checks a finished tree against its own index.
func readBack(t testing.TB, dir string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "index"))
	if err != nil {
		t.Fatal(err)
	}
	if err := readIndex(dir, sha256Name(b), func(e entry) error { return verifyEntry(filepath.Join(dir, "fs"), e) }); err != nil {
		t.Fatal(err)
	}
}
