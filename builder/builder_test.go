package builder

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/builder/dkms"
	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// The key depends on what goes into the bytes, and on nothing else.
func TestKey(t *testing.T) {
	hash := func(c string) v1.Hash { return v1.Hash{Algorithm: "sha256", Hex: strings.Repeat(c, 64)} }
	pkg := kernels.Package{Name: "gcc-12", Version: "1", Arch: "amd64", URL: "http://a/", Digest: hash("a"), Size: 1}
	lock := kernels.Lock{
		Kernel:   kernels.Kernel{Distro: "debian", Suite: "bookworm", Arch: "amd64", Release: "6.1.0-56-amd64"},
		Compiler: "gcc-12", Toolchain: []kernels.Package{pkg},
	}
	base := Job{Source: &Source{Module: "m", Version: "1", Digest: hash("1")}, Lock: lock}
	b := &Builder{RootVersion: "1"}
	want := b.Key(base)
	full := base
	full.Overrides, full.Directives = []dkms.Override{{Name: "m.conf", Text: []byte("X=1")}}, []string{"MAKE=make"}
	in := b.Inputs(full)
	text := fmt.Sprintf(`{"recipe":%d,"root_version":"1","source":"%s","lock":"%s","overrides":[{"name":"m.conf","text":"WD0x"}],"directives":["MAKE=make"]}`,
		recipe, full.Source.Digest, lock.Digest())
	if got := string(in.encode()); got != text || b.Key(full).Hex != fmt.Sprintf("%x", sha256.Sum256([]byte(text))) {
		t.Errorf("the inputs are %s, and their key %s; want %s, and its hash", got, b.Key(full), text)
	}
	if again, err := ReadInputs([]byte(text)); err != nil || !reflect.DeepEqual(again, in) {
		t.Errorf("ReadInputs(%s) = %+v, %v; want %+v", text, again, err, in)
	}

	elsewhere := base
	moved := pkg
	moved.URL = "http://b/"
	elsewhere.Lock.Toolchain = []kernels.Package{moved}
	for name, got := range map[string]v1.Hash{
		"mirror":  b.Key(elsewhere),
		"options": (&Builder{RootVersion: "1", Jobs: 9, Timeout: time.Hour, Verify: true, Temp: "/x"}).Key(base),
	} {
		if got != want {
			t.Errorf("%s: the key is another", name)
		}
	}

	source, suite, toolchain := base, base, base
	source.Source = &Source{Module: "m", Version: "1", Digest: hash("2")}
	suite.Lock.Kernel.Suite = "trixie"
	newer := pkg
	newer.Digest = hash("b")
	toolchain.Lock.Toolchain = []kernels.Package{newer}
	needs := func(keys ...string) v1.Hash {
		j := base
		for _, k := range keys {
			j.Depends = append(j.Depends, Dependency{&Source{Module: "on" + k, Version: "1"}, Result{Key: hash(k), Seconds: 1}})
		}
		return b.Key(j)
	}
	if needs("a", "b") != needs("b", "a") {
		t.Error("the order of the dependencies changes the key")
	}
	if needs("a") == needs("b") || needs("a") == needs("a", "b") {
		t.Error("another dependency has the same key")
	}
	failed := base
	failed.Depends = []Dependency{{&Source{Module: "ona", Version: "1"}, Result{Key: hash("a"), Status: Failed}}}
	if b.Key(failed) == needs("a") {
		t.Error("what is built without a dependency that failed has the key of what is built with it")
	}
	for name, got := range map[string]v1.Hash{
		"dependency": needs("a"),
		"source":     b.Key(source), "suite": b.Key(suite), "toolchain": b.Key(toolchain),
		"root": (&Builder{RootVersion: "2"}).Key(base),
	} {
		if got == want {
			t.Errorf("%s: the key is the same", name)
		}
	}
}

// The folders of a 1-b and a-1 b are one and the same.
func TestSameFolder(t *testing.T) {
	source := func(name, version string) *Source { return &Source{Module: name, Version: version} }
	target := func(s *Source) dkms.Target { return dkms.Target{Module: s.Module, Version: s.Version} }
	built := Result{Status: Built}
	a, b, c := source("a", "1-b"), source("a-1", "b"), source("c", "1")
	for _, j := range []Job{{Source: a, Depends: []Dependency{{b, built}}}, {Source: c, Depends: []Dependency{{a, built}, {b, built}}}} {
		if _, err := install(j, target(j.Source)); err == nil || !strings.Contains(err.Error(), `"/usr/src/a-1-b"`) {
			t.Errorf("%s with %d: error %v", j.Source.Module, len(j.Depends), err)
		}
	}
	if _, err := install(Job{Source: a, Depends: []Dependency{{b, Result{Status: Failed}}, {c, built}}}, target(a)); err != nil {
		t.Errorf("with one that failed: %v", err)
	}
}

// A dependency whose modules are for a folder that dkms doesn't install to would hide what the kernel has there.
func TestDependencyElsewhere(t *testing.T) {
	for dest, want := range map[string]bool{"updates/dkms": true, "build": false, "build/include": false, "kernel": false} {
		j := Job{Source: &Source{Module: "a", Version: "1"}, Depends: []Dependency{{&Source{Module: "b", Version: "1"},
			Result{Status: Cached, Files: []artifact.File{{Name: "b.ko", Dest: dest}}}}}}
		in, err := install(j, dkms.Target{Module: "a", Version: "1", Release: "6.1", Distro: "debian"})
		if want != (err == nil) || want && !slices.Equal(in.modules, []string{"/lib/modules/6.1/updates"}) {
			t.Errorf("%s: %q, %v", dest, in.modules, err)
		}
	}
}

func TestLogIsCapped(t *testing.T) {
	var stream bytes.Buffer
	l := &logBuffer{stream: &stream}
	for i := range 200_000 {
		fmt.Fprintf(l, "%063d\n", i)
	}
	got := l.Bytes()
	if n := len(got); n > logHead+logTail+100 || n < logHead+logTail {
		t.Errorf("a log of %d bytes was kept as %d", stream.Len(), n)
	}
	if !bytes.HasPrefix(got, []byte("000")) || !bytes.HasSuffix(got, []byte("199999\n")) {
		t.Error("the beginning or the end of the log is not there")
	}
	want := fmt.Sprintf("[… %d bytes of the log were cut here …]", stream.Len()-logHead-logTail)
	if !bytes.Contains(got, []byte(want)) {
		t.Errorf("the log does not say %q", want)
	}
	short := &logBuffer{}
	io.WriteString(short, "a\n")
	if got := string(short.Bytes()); got != "a\n" {
		t.Errorf("a short log was kept as %q", got)
	}
}

func TestReadOutput(t *testing.T) {
	read := func(limit int64, headers ...*tar.Header) (map[string]*io.SectionReader, *os.File, error) {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, h := range headers {
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
			io.WriteString(w, strings.Repeat("x", int(min(h.Size, 10_000))))
		}
		w.Flush()
		b.Write(make([]byte, 1024))
		f, err := durable.Unnamed(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		files, err := readOutput(&b, f, limit)
		return files, f, err
	}
	files, spool, err := read(1<<20, &tar.Header{Name: "a", Size: 700, Mode: 0o644}, &tar.Header{Name: strings.Repeat("b", 300), Size: 3, Mode: 0o644})
	if err != nil || len(files) != 2 {
		t.Fatalf("readOutput = %d files, %v; want 2", len(files), err)
	}
	if b, err := io.ReadAll(files[strings.Repeat("b", 300)]); err != nil || string(b) != "xxx" {
		t.Errorf("read %q, %v; want xxx", b, err)
	}
	if st, err := spool.Stat(); err != nil || st.Size()%512 != 0 || st.Size() < 2048 {
		t.Errorf("the spool has %d bytes, %v", st.Size(), err)
	}
	for _, kind := range []byte{tar.TypeSymlink, tar.TypeLink, tar.TypeFifo, tar.TypeChar, tar.TypeBlock, tar.TypeDir} {
		if _, _, err := read(1<<20, &tar.Header{Name: "d/a.ko", Typeflag: kind, Linkname: "b"}); err == nil || err.Error() != "a.ko is not a regular file" {
			t.Errorf("type %q: error %v; want that it is not a regular file", kind, err)
		}
	}
	// What is too large ends at its header, alone or with what came before.
	for _, test := range []struct {
		sizes []int64
		want  string
	}{
		{[]int64{9000}, ""},
		{[]int64{9000, 9000}, "1.ko has 9000 bytes; all modules together may have 16384"},
		{[]int64{16 << 10}, "0.ko has 16384 bytes"},
		{[]int64{5 << 30}, "0.ko has 5368709120 bytes"},
		{[]int64{700, 1<<63 - 1}, "1.ko has 9223372036854775807 bytes"},
	} {
		var headers []*tar.Header
		for i, size := range test.sizes {
			headers = append(headers, &tar.Header{Name: fmt.Sprintf("d/%d.ko", i), Size: size, Mode: 0o644})
		}
		_, spool, err := read(16<<10, headers...)
		if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("sizes %d: error %v; want %q", test.sizes, err, test.want)
		}
		if st, err := spool.Stat(); err != nil || st.Size() > 16<<10 {
			t.Errorf("sizes %d: %d bytes were kept, %v", test.sizes, st.Size(), err)
		}
	}
}
