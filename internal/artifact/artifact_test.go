package artifact_test

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
)

func hash(s string) v1.Hash {
	sum := sha256.Sum256([]byte(s))
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

func file(name, content string) artifact.File {
	return artifact.File{
		Name: name, Dest: "updates/dkms", Size: int64(len(content)), Vermagic: "6.1.0-56-amd64 SMP preempt mod_unload modversions ",
		Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil },
	}
}

func meta() artifact.Meta {
	return artifact.Meta{
		Module: "xtables-addons", Version: "3.23-1", Kernel: artifact.Kernel{Distro: "debian", Suite: "bookworm", Arch: "amd64", Release: "6.1.0-56-amd64"},
		Headers: "6.1.192-2", Compiler: "gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0", Symvers: hash("symvers"),
		Key: hash("key"), Source: hash("source"), Lock: hash("lock"), Root: hash("root"), Status: artifact.Built,
	}
}

func skipped() artifact.Meta {
	m := meta()
	m.Status, m.Reason = artifact.Skipped, "BUILD_EXCLUSIVE_KERNEL does not match"
	return m
}

func extra(name, command, content string) artifact.Extra {
	return artifact.Extra{
		Name: name, Command: command, Executable: command != "", Size: int64(len(content)),
		Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil },
	}
}

// withExtras is an artifact for other modules to depend on, and with scripts for the host.
func withExtras(extras ...artifact.Extra) artifact.Meta {
	m := meta()
	m.Extras = extras
	return m
}

func newImage(t testing.TB, m artifact.Meta, files ...artifact.File) v1.Image {
	t.Helper()
	img, err := artifact.New(m, files)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func digest(t testing.TB, img v1.Image) string {
	t.Helper()
	h, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h.Hex
}

// The whole format in one digest. A change of it is a change of the format: every artifact that was ever pushed stays behind.
func TestGolden(t *testing.T) {
	a, b := file("xt_ACCOUNT.ko", "account"), file("compat_xtables.ko", "compat")
	b.Dest = "updates/dkms/" + strings.Repeat("long", 30) // needs an extended header
	const want = "5735ec125b193ad99ff57e990a0c872b578cf0ea9682f181b1d4a3656a1bc2ff"
	if got := digest(t, newImage(t, meta(), a, b)); got != want {
		t.Errorf("digest = %s; want %s", got, want)
	}
	if got := digest(t, newImage(t, meta(), b, a)); got != want {
		t.Errorf("digest in another order = %s; want %s", got, want)
	}
	const wantSkipped = "a9df04bf10c9d95beb2616c45f05d1f9b78c3fa053fd3358801813aa6d987fee"
	if got := digest(t, newImage(t, skipped())); got != wantSkipped {
		t.Errorf("digest of a skipped result = %s; want %s", got, wantSkipped)
	}
	if got := digest(t, newImage(t, meta(), a)); got == want {
		t.Error("another set of files has the same digest")
	}
}

func TestRoundTrip(t *testing.T) {
	for _, tt := range []struct {
		name  string
		m     artifact.Meta
		files map[string]string
	}{
		{"two", meta(), map[string]string{"a.ko": "aaaa", "b-c.ko": strings.Repeat("b", 100_000)}},
		{"no module", meta(), nil},
		{"least", func() artifact.Meta { // what may be unknown is
			m := meta()
			m.Headers, m.Compiler, m.Symvers, m.Root = "", "", v1.Hash{}, v1.Hash{}
			return m
		}(), map[string]string{"a.ko": "aaaa"}},
		{"extras", withExtras(extra("POST_INSTALL", "scripts/post.sh $kernelver", "#!/bin/sh\n"), extra("Module.symvers", "", "0x1\ta\tb\tEXPORT_SYMBOL\t\n"),
			extra("POST_ADD", "add", "")), map[string]string{"a.ko": "aaaa"}},
		{"empty file", meta(), map[string]string{"a.ko": ""}},
		{"skipped", skipped(), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var files []artifact.File
			for n, c := range tt.files {
				files = append(files, file(n, c))
			}
			made := newImage(t, tt.m, files...)
			for name, img := range map[string]v1.Image{"as made": made, "through a layout": throughLayout(t, made)} {
				m, files, err := artifact.Read(img)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				sameMeta(t, name, m, tt.m)
				if len(files) != len(tt.files) {
					t.Errorf("%s: %d files; want %d", name, len(files), len(tt.files))
				}
				for _, f := range files {
					want := tt.files[f.Name]
					got, err := readAll(f)
					if err != nil || got != want || f.Dest != "updates/dkms" || f.Size != int64(len(want)) || f.Digest != hash(want) || f.Vermagic == "" {
						t.Errorf("%s: %+v has %d bytes, %v; want %d", name, f, len(got), err, len(want))
					}
				}
				again := newImage(t, m, files...)
				if digest(t, again) != digest(t, made) {
					t.Errorf("%s: the same again has another digest", name)
				}
			}
		})
	}
}

// sameMeta compares all, extras by what they hold and in the order of their names.
func sameMeta(t *testing.T, name string, got, want artifact.Meta) {
	t.Helper()
	if !slices.IsSortedFunc(got.Extras, func(a, b artifact.Extra) int { return strings.Compare(a.Name, b.Name) }) {
		t.Errorf("%s: the extras are not sorted", name)
	}
	hold := func(m *artifact.Meta) map[string]string {
		all := map[string]string{}
		for _, e := range m.Extras {
			b, err := readAll(artifact.File{Open: e.Open})
			if err != nil {
				t.Errorf("%s: %q: %v", name, e.Name, err)
			}
			all[e.Name] = fmt.Sprintf("%s %v %d %s", e.Command, e.Executable, e.Size, b)
		}
		m.Extras = nil
		return all
	}
	if g, w := hold(&got), hold(&want); !maps.Equal(g, w) {
		t.Errorf("%s: extras %q; want %q", name, g, w)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s: meta = %+v; want %+v", name, got, want)
	}
}

func readAll(f artifact.File) (string, error) {
	r, err := f.Open()
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(r)
	return string(b), errors.Join(err, r.Close())
}

func throughLayout(t *testing.T, img v1.Image) v1.Image {
	t.Helper()
	p, err := layout.Write(t.TempDir(), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.AppendImage(img); err != nil {
		t.Fatal(err)
	}
	h, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	out, err := p.Image(h)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Ordinary tools take the image as any other.
func TestOtherTools(t *testing.T) {
	img := newImage(t, meta(), file("a.ko", "aaaa"), file("b.ko", "bbbb"))
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if c.OS != "linux" || c.Architecture != "amd64" || c.OSVersion != "6.1.0-56-amd64" || !c.Created.Equal(time.Unix(0, 0)) {
		t.Errorf("config = %+v", c)
	}
	if err := tarball.Write(name.Tag{}, img, io.Discard); err != nil {
		t.Errorf("docker save's format: %v", err)
	}
	tarPath := need.Program(t, "tar")
	dir := t.TempDir()
	cmd := exec.Command(tarPath, "-x", "-p", "-C", dir)
	cmd.Stdin = mutate.Extract(img)
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("tar: %v: %s", err, out)
	}
	opt, err := os.Stat(filepath.Join(dir, artifact.OptPath("6.1.0-56-amd64", "b.ko")))
	if err != nil {
		t.Fatal(err)
	}
	usr, err := os.Stat(filepath.Join(dir, artifact.InstallPath("6.1.0-56-amd64", "updates/dkms", "b.ko")))
	if err != nil {
		t.Fatal(err)
	}
	if !os.SameFile(opt, usr) || opt.Mode() != 0o644 || opt.Size() != 4 {
		t.Errorf("%v and %v; want one file of mode 0644", opt, usr)
	}
	st, err := os.Stat(filepath.Join(dir, "usr/lib/modules"))
	if err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("usr/lib/modules = %v, %v; want mode 0755", st, err)
	}
}

func TestNewRefuses(t *testing.T) {
	other := file("a.ko", "a")
	other.Dest = "extra"
	with := func(change func(*artifact.File)) artifact.File {
		f := file("a.ko", "aaaa")
		change(&f)
		return f
	}
	noKey := meta()
	noKey.Key = v1.Hash{}
	badRelease := meta()
	badRelease.Kernel.Release = "../6.1"
	binary := meta()
	binary.Compiler = "gcc \xff"
	long := skipped()
	long.Reason = strings.Repeat("x", 5000)
	noReason := skipped()
	noReason.Reason = ""
	for _, tt := range []struct {
		name  string
		m     artifact.Meta
		files []artifact.File
		want  string
	}{
		{"one name twice", meta(), []artifact.File{file("a.ko", "a"), other}, `two modules are named "a.ko", in "extra" and "updates/dkms"`},
		{"an extra file of a skipped one", func() artifact.Meta {
			m := skipped()
			m.Extras = withExtras(extra("Module.symvers", "", "")).Extras
			return m
		}(), nil, "skipped"},
		{"extra file of another name", withExtras(extra("../x", "", "")), nil, "../x"},
		{"extra file twice", withExtras(extra("POST_ADD", "a", ""), extra("POST_ADD", "a", "")), nil, "twice"},
		{"script without command", withExtras(extra("POST_ADD", "", "")), nil, "command"},
		{"symvers with command", withExtras(extra("Module.symvers", "rm", "")), nil, "command"},
		{"extra file that is larger", withExtras(func() artifact.Extra { e := extra("POST_ADD", "a", "xx"); e.Size = 1; return e }()), nil, "size"},
		{"module name that is a path", func() artifact.Meta { m := withExtras(extra("POST_ADD", "a", "")); m.Module = "../../etc"; return m }(), nil, "../../etc"},
		{"files of a skipped one", skipped(), []artifact.File{other}, "has modules"},
		{"no reason", noReason, nil, "without a reason"},
		{"compiler that is no text", binary, []artifact.File{other}, "compiler"},
		{"long reason", long, nil, "reason"},
		{"vermagic that is no text", meta(), []artifact.File{with(func(f *artifact.File) { f.Vermagic = "\xff" })}, "vermagic"},
		{"no key", noKey, []artifact.File{other}, "key"},
		{"release", badRelease, []artifact.File{other}, "release"},
		{"name", meta(), []artifact.File{with(func(f *artifact.File) { f.Name = "../a.ko" })}, "name"},
		{"name without .ko", meta(), []artifact.File{with(func(f *artifact.File) { f.Name = "a" })}, "name"},
		{"dest up", meta(), []artifact.File{with(func(f *artifact.File) { f.Dest = "updates/../.." })}, "folder"},
		{"dest absolute", meta(), []artifact.File{with(func(f *artifact.File) { f.Dest = "/updates" })}, "folder"},
		{"dest empty", meta(), []artifact.File{with(func(f *artifact.File) { f.Dest = "" })}, "folder"},
		{"smaller", meta(), []artifact.File{with(func(f *artifact.File) { f.Size = 3 })}, "size"},
		{"larger", meta(), []artifact.File{with(func(f *artifact.File) { f.Size = 5 })}, "size"},
		{"giants", meta(), func() (list []artifact.File) {
			for i := range 5 {
				list = append(list, file(fmt.Sprint(i, ".ko"), ""))
				list[i].Size = 1 << 30
			}
			return list
		}(), "more than 4294967296"},
		{"digest", meta(), []artifact.File{with(func(f *artifact.File) { f.Digest = hash("x") })}, "digest"},
	} {
		if _, err := artifact.New(tt.m, tt.files); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("New(%s) = %v; want an error about %q", tt.name, err, tt.want)
		}
	}
}

// A file that changes after New makes the layer's reader fail before EOF.
func TestFileChanges(t *testing.T) {
	content := "aaaa"
	f := file("a.ko", content)
	f.Open = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil }
	img := newImage(t, meta(), f)
	for _, content = range []string{"bbbb", "aaaaa", "aaa"} {
		ls, err := img.Layers()
		if err != nil {
			t.Fatal(err)
		}
		r, err := ls[0].Compressed()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, r); err == nil {
			t.Errorf("a layer with %q is read without error", content)
		}
		r.Close()
	}
}

// forged is an image whose digests all fit, whatever is in it.
type forged struct {
	manifest, config, layer []byte
	layerErr                error
}

func (f *forged) RawManifest() ([]byte, error)        { return f.manifest, nil }
func (f *forged) RawConfigFile() ([]byte, error)      { return f.config, nil }
func (f *forged) MediaType() (types.MediaType, error) { return artifact.ManifestType, nil }
func (f *forged) LayerByDigest(v1.Hash) (partial.CompressedLayer, error) {
	return forgedLayer{f}, nil
}

type forgedLayer struct{ f *forged }

func (l forgedLayer) Digest() (v1.Hash, error)            { return hash(string(l.f.layer)), nil }
func (l forgedLayer) Size() (int64, error)                { return int64(len(l.f.layer)), nil }
func (l forgedLayer) MediaType() (types.MediaType, error) { return artifact.LayerType, nil }
func (l forgedLayer) Compressed() (io.ReadCloser, error) {
	r := io.Reader(bytes.NewReader(l.f.layer))
	if l.f.layerErr != nil {
		r = io.MultiReader(bytes.NewReader(l.f.layer[:len(l.f.layer)/2]), errReader{l.f.layerErr})
	}
	return io.NopCloser(r), nil
}

type errReader struct{ err error }

func (e errReader) Read([]byte) (int, error) { return 0, e.err }

type entry struct {
	tar.Header
	data string
}

func entriesOf(t testing.TB, layer []byte) []entry {
	t.Helper()
	var out []entry
	for tr := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, entry{*h, string(b)})
	}
}

func pack(t testing.TB, entries []entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		e.Size = int64(len(e.data))
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestReadRefuses(t *testing.T) {
	img := newImage(t, meta(), file("a.ko", "aaaa"), file("b.ko", "bbbb"))
	ls, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	r, err := ls[0].Compressed()
	if err != nil {
		t.Fatal(err)
	}
	layer, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	type parts struct {
		manifest v1.Manifest
		config   v1.ConfigFile
		layer    []byte
		forge    func(*forged) // at last, when all digests are set
	}
	notes := func(change func(map[string]string)) func(*parts) {
		return func(p *parts) {
			p.manifest.Annotations = maps.Clone(p.manifest.Annotations)
			change(p.manifest.Annotations)
			p.config.Config.Labels = p.manifest.Annotations
		}
	}
	without := func(key string) func(*parts) { return notes(func(a map[string]string) { delete(a, key) }) }
	set := func(key, value string) func(*parts) { return notes(func(a map[string]string) { a[key] = value }) }
	modules := func(from, to string) func(*parts) {
		return notes(func(a map[string]string) {
			if !strings.Contains(a[artifact.AnnotationModules], from) {
				t.Fatalf("no %s in %s", from, a[artifact.AnnotationModules])
			}
			a[artifact.AnnotationModules] = strings.Replace(a[artifact.AnnotationModules], from, to, 1)
		})
	}
	tarred := func(change func([]entry) []entry) func(*parts) {
		return func(p *parts) { p.layer = pack(t, change(entriesOf(t, p.layer))) }
	}
	find := func(es []entry, name string) *entry {
		i := slices.IndexFunc(es, func(e entry) bool { return e.Name == name })
		if i < 0 {
			t.Fatalf("no %s", name)
		}
		return &es[i]
	}
	const a = "opt/lib/modules/6.1.0-56-amd64/a.ko"
	const link = "usr/lib/modules/6.1.0-56-amd64/updates/dkms/a.ko"
	tests := map[string]func(*parts){
		"no module":      without(artifact.AnnotationModule),
		"no version":     without(artifact.AnnotationVersion),
		"no distro":      without(artifact.AnnotationDistro),
		"no suite":       without(artifact.AnnotationSuite),
		"no arch":        without(artifact.AnnotationArch),
		"no release":     without(artifact.AnnotationRelease),
		"no key":         without(artifact.AnnotationKey),
		"no source":      without(artifact.AnnotationSource),
		"no lock":        without(artifact.AnnotationLock),
		"no status":      without(artifact.AnnotationStatus),
		"no list":        without(artifact.AnnotationModules),
		"no annotations": notes(func(a map[string]string) { clear(a) }),
		"status":         set(artifact.AnnotationStatus, "failed"),
		"module":         set(artifact.AnnotationModule, "a\nb"),
		"version":        set(artifact.AnnotationVersion, "../1"),
		"distro":         set(artifact.AnnotationDistro, "../../../etc"),
		"suite":          set(artifact.AnnotationSuite, "/../../etc"),
		"suite in lines": set(artifact.AnnotationSuite, "a\nb"),
		"arch":           set(artifact.AnnotationArch, ".."),
		"skipped with modules": notes(func(a map[string]string) {
			a[artifact.AnnotationStatus] = "skipped"
			a[artifact.AnnotationReason] = "x"
		}),
		"built with a reason":    set(artifact.AnnotationReason, "x"),
		"key":                    set(artifact.AnnotationKey, "sha256:12"),
		"key of another kind":    set(artifact.AnnotationKey, "md5:d41d8cd98f00b204e9800998ecf8427e"),
		"root":                   set(artifact.AnnotationRoot, "sha256:12"),
		"release up":             set(artifact.AnnotationRelease, ".."),
		"release with a slash":   set(artifact.AnnotationRelease, "6.1/../x"),
		"huge annotation":        set("x", strings.Repeat("x", 5000)),
		"list":                   set(artifact.AnnotationModules, "{"),
		"list: name":             modules(`"a.ko"`, `"../a.ko"`),
		"list: dest":             modules(`"updates/dkms"`, `"../../../etc"`),
		"list: dest hidden":      modules(`"updates/dkms"`, `".ssh"`),
		"list: size":             modules(`"size":4`, `"size":5`),
		"list: negative size":    modules(`"size":4`, `"size":-4`),
		"list: digest":           modules(hash("aaaa").Hex, hash("cccc").Hex),
		"list: twice":            modules(`"b.ko"`, `"a.ko"`),
		"list: order":            modules(`"a.ko"`, `"c.ko"`),
		"labels":                 func(p *parts) { p.config.Config.Labels = map[string]string{} },
		"config for another os":  func(p *parts) { p.config.OS = "windows" },
		"config for another cpu": func(p *parts) { p.config.Architecture = "arm64" },
		"config for another kernel": func(p *parts) {
			p.config.OSVersion = "6.1.0-57-amd64"
		},
		"content":       tarred(func(es []entry) []entry { find(es, a).data = "cccc"; return es }),
		"longer":        tarred(func(es []entry) []entry { find(es, a).data = "aaaaa"; return es }),
		"setuid":        tarred(func(es []entry) []entry { find(es, a).Mode = 0o4755; return es }),
		"owner":         tarred(func(es []entry) []entry { find(es, a).Uid = 1; return es }),
		"time":          tarred(func(es []entry) []entry { find(es, a).ModTime = time.Unix(1, 0); return es }),
		"renamed":       tarred(func(es []entry) []entry { find(es, a).Name = "../../etc/passwd"; return es }),
		"link away":     tarred(func(es []entry) []entry { find(es, link).Linkname = "../../etc/shadow"; return es }),
		"symlink":       tarred(func(es []entry) []entry { find(es, link).Typeflag = tar.TypeSymlink; return es }),
		"missing entry": tarred(func(es []entry) []entry { return es[:len(es)-1] }),
		"added entry": tarred(func(es []entry) []entry {
			return append(es, entry{tar.Header{Typeflag: tar.TypeSymlink, Name: "x", Linkname: "/etc"}, ""})
		}),
		"entries in another order": tarred(func(es []entry) []entry { slices.Reverse(es); return es }),
		"cut":                      func(p *parts) { p.layer = p.layer[:len(p.layer)/2] },
		"no tar":                   func(p *parts) { p.layer = []byte(strings.Repeat("hello, world", 1000)) },
		"empty layer":              func(p *parts) { p.layer = nil },
		"layer of another type":    func(p *parts) { p.manifest.Layers[0].MediaType = types.OCILayer },
		"manifest type":            func(p *parts) { p.manifest.MediaType = types.DockerManifestSchema2 },
		"two layers":               func(p *parts) { p.manifest.Layers = append(p.manifest.Layers, p.manifest.Layers[0]) },
		"no layer":                 func(p *parts) { p.manifest.Layers = nil },
		"layer is not its digest": func(p *parts) {
			p.forge = func(f *forged) { f.layer = bytes.Replace(f.layer, []byte("aaaa"), []byte("cccc"), 1) }
		},
		"rubbish after the layer": func(p *parts) { p.forge = func(f *forged) { f.layer = append(f.layer, 0) } },
		"rubbish in the padding": func(p *parts) {
			p.forge = func(f *forged) { f.layer[len(f.layer)-1] = 1 }
		},
		"rubbish after a file": func(p *parts) {
			p.forge = func(f *forged) { f.layer[bytes.Index(f.layer, []byte("aaaa"))+4] = 1 }
		},
		"layer is shorter than said": func(p *parts) {
			p.forge = func(f *forged) {
				size := fmt.Sprintf(`"size":%d`, len(f.layer))
				f.manifest = bytes.Replace(f.manifest, []byte(size), []byte(size+"0"), 1)
			}
		},
		"config names another layer": func(p *parts) {
			p.forge = func(f *forged) {
				f.config = bytes.Replace(f.config, []byte(hash(string(f.layer)).Hex), []byte(hash("").Hex), 1)
				m := p.manifest
				m.Config.Digest = hash(string(f.config))
				f.manifest, _ = json.Marshal(m)
			}
		},
		"config is not its digest, same size": func(p *parts) {
			p.forge = func(f *forged) { f.config = bytes.Replace(f.config, []byte("1970"), []byte("1971"), 1) }
		},
		"config is not its digest": func(p *parts) { p.forge = func(f *forged) { f.config = append(f.config, ' ') } },
		"manifest is no JSON":      func(p *parts) { p.forge = func(f *forged) { f.manifest = f.manifest[1:] } },
	}
	build := func(change func(*parts)) v1.Image {
		m, err := img.Manifest()
		if err != nil {
			t.Fatal(err)
		}
		c, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		p := parts{manifest: *m.DeepCopy(), config: *c.DeepCopy(), layer: bytes.Clone(layer)}
		change(&p)
		f := &forged{layer: p.layer}
		for i := range p.manifest.Layers {
			p.manifest.Layers[i].Digest, p.manifest.Layers[i].Size = hash(string(p.layer)), int64(len(p.layer))
		}
		p.config.RootFS.DiffIDs = []v1.Hash{hash(string(p.layer))}
		if f.config, err = json.Marshal(p.config); err != nil {
			t.Fatal(err)
		}
		p.manifest.Config.Digest, p.manifest.Config.Size = hash(string(f.config)), int64(len(f.config))
		if f.manifest, err = json.Marshal(p.manifest); err != nil {
			t.Fatal(err)
		}
		if p.forge != nil {
			p.forge(f)
		}
		out, err := partial.CompressedToImage(f)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if _, _, err := artifact.Read(build(func(*parts) {})); err != nil {
		t.Fatalf("Read of an image that is not altered = %v", err)
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			m, files, err := artifact.Read(build(change))
			if !errors.Is(err, artifact.ErrInvalid) {
				t.Errorf("Read = %+v, %v, %v; want %v", m, files, err, artifact.ErrInvalid)
			}
		})
	}
	t.Run("broken connection", func(t *testing.T) {
		cause := errors.New("connection reset")
		_, _, err := artifact.Read(build(func(p *parts) { p.forge = func(f *forged) { f.layerErr = cause } }))
		if !errors.Is(err, cause) || errors.Is(err, artifact.ErrInvalid) {
			t.Errorf("Read = %v; want %v", err, cause)
		}
	})
	t.Run("altered after Read", func(t *testing.T) {
		var f *forged
		_, files, err := artifact.Read(build(func(p *parts) { p.forge = func(g *forged) { f = g } }))
		if err != nil {
			t.Fatal(err)
		}
		f.layer = bytes.Replace(f.layer, []byte("bbbb"), []byte("cccc"), 1)
		if got, err := readAll(files[0]); err != nil || got != "aaaa" {
			t.Errorf("a.ko = %q, %v", got, err)
		}
		if got, err := readAll(files[1]); !errors.Is(err, artifact.ErrInvalid) {
			t.Errorf("b.ko = %q, %v; want %v", got, err, artifact.ErrInvalid)
		}
	})
}

// 200 MB of modules pass without being held.
func TestMemory(t *testing.T) {
	const n = 50 << 20
	var files []artifact.File
	for i := range 4 {
		f := file(fmt.Sprintf("m%d.ko", i), "")
		f.Size = n
		f.Open = func() (io.ReadCloser, error) { return io.NopCloser(io.LimitReader(zeros{}, n)), nil }
		files = append(files, f)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, _, err := artifact.Read(newImage(t, meta(), files...)); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 2<<20 {
		t.Errorf("%d bytes allocated", got)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func BenchmarkNew(b *testing.B) {
	f := file("a.ko", strings.Repeat("x", 100_000))
	for b.Loop() {
		newImage(b, meta(), f)
	}
}

func BenchmarkRead(b *testing.B) {
	img := newImage(b, meta(), file("a.ko", strings.Repeat("x", 100_000)))
	for b.Loop() {
		if _, _, err := artifact.Read(img); err != nil {
			b.Fatal(err)
		}
	}
}
