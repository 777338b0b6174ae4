package cli

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1registry "github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/cache"
	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

func hashOf(s string) v1.Hash {
	sum := sha256.Sum256([]byte(s))
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

func kernelNamed(t testing.TB, name string) artifact.Kernel {
	t.Helper()
	s, err := kernels.ParseSelector(name)
	if err != nil || s.Distro == "" {
		t.Fatalf("%q: %v", name, err)
	}
	return artifact.Kernel{Distro: s.Distro, Suite: s.Suite, Arch: "amd64", Release: s.Release}
}

// made is a result that nobody built: a module of so many bytes for a kernel.
type made struct {
	version, kernel string
	size            int
	source          v1.Hash // of the tree; has a default
	note            string  // another one, another result
	skipped         bool
}

// stock puts a result of the module made into a cache folder.
func stock(t testing.TB, dir string, list ...made) {
	t.Helper()
	results, err := cache.Open(filepath.Join(dir, "results"), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range list {
		k := kernelNamed(t, r.kernel)
		lock := kernels.Lock{Kernel: kernels.Kernel{Distro: k.Distro, Suite: k.Suite, Arch: k.Arch, Release: k.Release}, Compiler: "gcc-12"}
		m := artifact.Meta{
			Module: "made", Version: r.version, Kernel: k, Headers: "1-1", Compiler: "gcc-12 12.2.0", Symvers: hashOf("symvers of " + r.kernel),
			Key: hashOf(r.version + r.kernel + r.note), Source: r.source, Lock: lock.Digest(), Status: artifact.Built,
		}
		if m.Source == (v1.Hash{}) {
			m.Source = hashOf("source")
		}
		files := []artifact.File{{
			Name: "made.ko", Dest: "updates/dkms", Size: int64(r.size), Vermagic: k.Release + " SMP ",
			Open: func() (io.ReadCloser, error) {
				return io.NopCloser(bytes.NewReader(contentOf(r))), nil
			},
		}}
		if r.skipped {
			m.Status, m.Reason, files = artifact.Skipped, "BUILD_EXCLUSIVE_KERNEL", nil
		}
		img, err := artifact.New(m, files)
		if err != nil {
			t.Fatal(err)
		}
		if err := results.Put(t.Context(), m.Key, cache.Entry{Image: img, Log: []byte("built for " + r.kernel + "\n"), Lock: lock.Encode()}); err != nil {
			t.Fatal(err)
		}
	}
}

func contentOf(r made) []byte {
	text := []byte(r.version + r.kernel + r.note + "\n")
	return bytes.Repeat(text, r.size/len(text)+1)[:r.size]
}

// ran is what a run of the program came to.
type ran struct {
	code      int
	out, errs string
}

func run(t testing.TB, cache string, args ...string) ran {
	t.Helper()
	return runWith(t.Context(), cache, args...)
}

func runWith(ctx context.Context, cache string, args ...string) ran {
	var out, errs bytes.Buffer
	code := Main(ctx, append(args, "--cache-dir", cache), &out, &errs)
	return ran{code, out.String(), errs.String()}
}

// wants checks a run's exit code, and that its output or its errors have all of some texts.
func (r ran) wants(t testing.TB, code int, texts ...string) ran {
	t.Helper()
	if r.code != code {
		t.Errorf("exit code %d; want %d\n%s%s", r.code, code, r.out, r.errs)
	}
	for _, text := range texts {
		if !strings.Contains(r.out+r.errs, text) {
			t.Errorf("it says\n%s%s; want %q", r.out, r.errs, text)
		}
	}
	if n := strings.Count(r.errs, "godkms-hermetic: "); code != 0 && code != exitSkipped && n != 1 {
		t.Errorf("%d lines tell of the failure:\n%s", n, r.errs)
	}
	return r
}

// memoryRegistry is a registry of this process. It gives a repository there.
func memoryRegistry(t testing.TB) string {
	t.Helper()
	s := httptest.NewServer(v1registry.New(v1registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://") + "/modules/made"
}

const (
	k1      = "debian/bookworm:6.1.0-1-amd64"
	k2      = "debian/bookworm:6.1.0-2-amd64"
	k1other = "debian/trixie:6.1.0-1-amd64"
	kPlus   = "debian/trixie:6.12.9+deb13-amd64"
)

func TestPushUsage(t *testing.T) {
	dir := t.TempDir()
	stock(t, dir, made{version: "1.0", kernel: k1, size: 10}, made{version: "1.0", kernel: k2, size: 10}, made{version: "1.0", kernel: kPlus, size: 10},
		made{version: "2.0", kernel: k1, size: 10, skipped: true})
	src := filepath.Join(t.TempDir(), "src")
	writeFile(t, filepath.Join(src, "dkms.conf"), "PACKAGE_NAME=made\nPACKAGE_VERSION=1.0\nBUILT_MODULE_NAME=made\nDEST_MODULE_LOCATION=/extra\n")
	repo := "oci:" + filepath.Join(t.TempDir(), "layout")
	for _, c := range []struct {
		args  []string
		code  int
		texts []string
	}{
		{[]string{}, 1, []string{"received 0", "godkms-hermetic push REF [SRC|MODULE/VERSION]"}},
		{[]string{repo, "made/1.0", "more"}, 1, []string{"received 3"}},
		{[]string{"", "made/1.0"}, 1, []string{`reference ""`}},
		{[]string{"http://registry.example/x", "made/1.0"}, 1, []string{"write it without"}},
		{[]string{"registry.example:5000", "made/1.0"}, 1, []string{"that is a registry", "registry.example:5000/modules/hello"}},
		{[]string{"registry.example/Made", "made/1.0"}, 1, []string{"registry.example/Made"}},
		{[]string{repo + ":1.0", "made/1.0"}, 1, []string{"tags follow from version and kernel", "the repository alone, " + repo}},
		{[]string{"registry.example/x@" + hashOf("").String(), "made/1.0"}, 1, []string{"alone, registry.example/x"}},
		{[]string{"registry.example/x", "made/1.0", "--offline"}, 1, []string{"offline", "oci:DIR"}},
		{[]string{repo, "made/3.0"}, 1, []string{"no result of made/3.0 is in the cache; build it first"}},
		{[]string{repo, "nosuch"}, 1, []string{`"nosuch"`, "no such file"}},
		{[]string{repo, t.TempDir()}, 1, []string{"no dkms.conf"}},
		{[]string{repo, src}, 1, []string{"not built of this source as it is now", "or name made/1.0"}},
		{[]string{repo, "made/1.0", "--kernels", "debian/bookworm:latest"}, 1, []string{"latest"}},
		{[]string{repo, "made/1.0", "--kernels", "a:b:c"}, 1, nil},
		{[]string{repo, "made/1.0", "--kernels", "["}, 1, []string{"not well-formed"}},
		{[]string{repo, "made/1.0", "--kernels", "6.1.0-*-amd64,9*"}, 1, []string{`for "9*" is in the cache`, k1 + ", " + k2 + ", " + kPlus}},
		{[]string{repo, "made/1.0", "--nonsense"}, 1, []string{"godkms-hermetic push --help"}},
		{[]string{repo, "made/2.0"}, 77, []string{"BUILD_EXCLUSIVE"}},
	} {
		run(t, dir, append([]string{"push"}, c.args...)...).wants(t, c.code, c.texts...)
	}
	if _, err := os.Stat(strings.TrimPrefix(repo, "oci:")); err == nil {
		t.Error("a layout was made of nothing")
	}

	// Patterns, one suite's, everything; a kernel that two selectors name is pushed once.
	pushed := func(args ...string) (names []string) {
		t.Helper()
		r := run(t, dir, append([]string{"push", repo, "made/1.0", "--format", "json", "-q"}, args...)...).wants(t, 0)
		for _, p := range parse[results](t, []byte(r.out)).Results {
			if p.Status != "pushed" || p.Reference == "" || p.Digest == "" {
				t.Errorf("%+v", p)
			}
			names = append(names, p.Kernel)
		}
		return names
	}
	if got := pushed("--kernels", "6.1.0-2-amd64, debian/bookworm:*"); !slices.Equal(got, []string{k2, k1}) {
		t.Errorf("pushed %q", got)
	}
	if got := pushed(); !slices.Equal(got, []string{k1, k2, kPlus}) {
		t.Errorf("pushed %q", got)
	}
	run(t, dir, "push", repo, "made/1.0", "--kernels", "*deb13*").wants(t, 0, kPlus+"  pushed   sha256:", repo+":1.0-debian-trixie-6.12.9_pdeb13-amd64\n")
}

// Of a source as it is, what was built of it is pushed, and of several results of a kernel the newest.
func TestPushSource(t *testing.T) {
	dir, src := t.TempDir(), filepath.Join(t.TempDir(), "src")
	conf := "PACKAGE_NAME=made\nPACKAGE_VERSION=1.0\nBUILT_MODULE_NAME=made\nDEST_MODULE_LOCATION=/extra\n"
	writeFile(t, filepath.Join(src, "dkms.conf"), conf)
	a := &app{stderr: io.Discard, env: os.Getenv, cacheDir: dir}
	source, err := a.openSource(t.Context(), src, nil)
	if err != nil {
		t.Fatal(err)
	}
	source.Close()
	stock(t, dir, made{version: "1.0", kernel: k1, size: 10, source: source.Digest}, made{version: "1.0", kernel: k2, size: 10, source: source.Digest})
	layout := filepath.Join(src, "layout") // which is no part of the source
	push := func(what string) results {
		t.Helper()
		return parse[results](t, []byte(run(t, dir, "push", "oci:"+layout, what, "--format", "json", "-q").wants(t, 0).out))
	}
	old := push(src)
	if again := push(src); len(old.Results) != 2 || len(again.Results) != 2 || again.Results[0].Digest != old.Results[0].Digest {
		t.Errorf("first %+v, then %+v", old, again)
	}
	writeFile(t, filepath.Join(src, "made.c"), "/* changed */")
	run(t, dir, "push", "oci:"+layout, src).wants(t, 1, "not built of this source as it is now")
	stock(t, dir, made{version: "1.0", kernel: k1, size: 10, note: "new"})
	if now := push("made/1.0"); len(now.Results) != 2 || now.Results[0].Digest == old.Results[0].Digest || now.Results[1].Digest != old.Results[1].Digest {
		t.Errorf("pushed %+v; want the newest of each kernel, and had %+v", now, old)
	}
	run(t, dir, "list", "oci:"+layout).wants(t, 0, parse[results](t, []byte(run(t, dir, "push", "oci:"+layout, "made/1.0", "--format", "json").out)).Results[0].Digest)
}

// What is wrong with build's references is said before any work.
func TestBuildReferences(t *testing.T) {
	dir := t.TempDir()
	for args, text := range map[string]string{
		"--push registry.example/x":                          "a repository is for one module, and there are several; write {module}",
		"--push registry.example/{module}:1":                 "--push: ",
		"--push registry.example/{module} --offline":         "offline",
		"--push-images":                                      "name a repository with --images",
		"--images registry.example/x:1":                      "tags of their own",
		"--cache-from registry.example":                      "that is a registry",
		"--cache-to oci:":                                    "no directory behind",
		"--push https://registry.example/{module}":           "write it without",
		"--push oci:a/{module} --cache-to registry.example@": "--cache-to",
	} {
		args := append([]string{"build", "../../testdata/hello", "../../testdata/exporter", "--kernels", "debian/bookworm:6.1.0-1-amd64", "--mirror", "debian=http://127.0.0.1:1",
			"--out", filepath.Join(dir, "out")}, strings.Fields(args)...)
		if r := run(t, dir, args...).wants(t, 1, text); r.out != "" {
			t.Errorf("%q prints %s", args, r.out)
		}
	}
}

func TestPullUsage(t *testing.T) {
	dir := t.TempDir()
	stock(t, dir, made{version: "1.0", kernel: k1, size: 1000}, made{version: "1.0", kernel: k1other, size: 1000}, made{version: "1.0", kernel: kPlus, size: 1000},
		made{version: "2~rc1-1", kernel: k2, size: 1000})
	for kind, repo := range map[string]string{"layout": "oci:" + filepath.Join(t.TempDir(), "layout"), "registry": memoryRegistry(t)} {
		t.Run(kind, func(t *testing.T) {
			run(t, dir, "push", repo, "made/1.0").wants(t, 0)
			out := filepath.Join(t.TempDir(), "out")
			cache := t.TempDir()
			pull := func(args ...string) ran {
				t.Helper()
				return run(t, cache, append([]string{"pull", "--out", out}, args...)...)
			}
			for _, c := range []struct {
				args  []string
				code  int
				texts []string
			}{
				{nil, 1, []string{"received 0", "godkms-hermetic pull REF"}},
				{[]string{repo, "--kernel", ""}, 1, []string{"no kernel given"}},
				{[]string{repo, "--kernel", "latest"}, 1, nil},
				{[]string{repo, "--kernel", "debian/trixie:latest"}, 1, []string{"which one is the latest isn't known"}},
				{[]string{repo, "--kernel", "6.1.0-1-amd64"}, 1, []string{"of debian/bookworm and of debian/trixie: put the suite before it, as in " + k1other}},
				{[]string{repo, "--kernel", k2}, 23, []string{"has no artifact for " + k2, "3 other kernels: " + k1 + ", " + k1other + ", " + kPlus}},
				{[]string{repo, "--kernel", "9.9"}, 23, []string{`no modules for "9.9" on amd64; it has those for ` + k1 + ", " + k1other}},
				{[]string{repo, "--kernel", k1 + ",debian/sid:*"}, 23, []string{`"debian/sid:*"`}},
				{[]string{repo, "--kernel", k1, "--arch", "arm64"}, 23, []string{"on arm64, but for amd64"}},
				{[]string{repo, "--kernel", "running"}, 23, []string{running(), k1}},
				{[]string{repo + ":3.0", "--kernel", k1}, 23, []string{"3.0", "'list " + repo + "' shows what is there"}},
				{[]string{repo + ":1.0-debian-bookworm-6.1.0-9-amd64", "--kernel", "*"}, 23, []string{"list " + repo}},
				{[]string{repo + "@" + hashOf("").String(), "--kernel", "*"}, 23, []string{"list " + repo}},
				{[]string{repo + ":te st", "--kernel", "*"}, 1, []string{"can't be a tag"}},
				{[]string{repo + "-none", "--kernel", "*"}, 23, []string{repo + "-none"}},
				{[]string{"oci:" + t.TempDir(), "--kernel", "*"}, 23, []string{"no OCI layout directory"}},
				{[]string{repo, "--kernel", k1, "--out", filepath.Join(cache, "file", "below")}, 1, []string{"--out: "}},
			} {
				writeFile(t, filepath.Join(cache, "file"), "")
				pull(c.args...).wants(t, c.code, c.texts...)
			}
			if left := files(t, out); len(left) > 0 {
				t.Errorf("%q is in the folder for modules", left)
			}
			if _, err := os.Stat(out); err == nil {
				t.Error("a folder was made for nothing")
			}

			// By selector, tag and digest; what else is in the folder stays.
			to := filepath.Join(out, "debian-bookworm/6.1.0-1-amd64/made.ko")
			writeFile(t, to, "old")
			writeFile(t, filepath.Join(filepath.Dir(to), "own.ko"), "own")
			check := func(r ran) string {
				t.Helper()
				got := parse[results](t, []byte(r.wants(t, 0).out))
				if b, err := os.ReadFile(to); err != nil || !bytes.Equal(b, contentOf(made{version: "1.0", kernel: k1, size: 1000})) {
					t.Errorf("%s has %d bytes, %v", to, len(b), err)
				}
				if len(got.Results) != 1 || got.Results[0].Status != "pulled" || got.Results[0].Kernel != k1 || got.Results[0].Modules[0].Path != to ||
					got.Results[0].Reference != repo+"@"+got.Results[0].Digest {
					t.Fatalf("pull says %+v", got)
				}
				if err := os.Remove(to); err != nil {
					t.Fatal(err)
				}
				return got.Results[0].Digest
			}
			digest := check(pull(repo, "--kernel", k1, "--format", "json"))
			check(pull(repo+":1.0-debian-bookworm-6.1.0-1-amd64", "--kernel", "6.1.0-1-amd64", "--format", "json"))
			check(pull(repo+"@"+digest, "--kernel", "*", "--format", "json"))
			if got := files(t, out); !slices.Equal(got, []string{filepath.Join(filepath.Dir(to), "own.ko")}) {
				t.Errorf("%q is in the folder for modules", got)
			}
			if r := pull(repo, "--kernel", "6.1.*,"+k1, "-q").wants(t, 0, k1, k1other); r.errs != "" || strings.Count(r.out, "\n") != 2 {
				t.Errorf("pull --quiet says %s%s", r.out, r.errs)
			}

			// Several versions: one must be named.
			run(t, dir, "push", repo, "made/2~rc1-1").wants(t, 0)
			for _, command := range []string{"pull", "inspect"} {
				run(t, cache, command, repo, "--kernel", k1).wants(t, 23, "several versions: name one of 1.0, 2~rc1-1")
			}
			pull(repo+":2_trc1_-1", "--kernel", "*").wants(t, 0, k2)
			pull(repo+":1.0", "--kernel", k1).wants(t, 0, k1)
			if kind == "registry" {
				pull(repo, "--kernel", k1, "--offline").wants(t, 1, "leave --offline away, or name a layout directory")
			} else {
				pull(repo+":1.0", "--kernel", k1, "--offline").wants(t, 0)
			}
		})
	}
}

func TestListAndInspect(t *testing.T) {
	dir := t.TempDir()
	stock(t, dir, made{version: "1.0", kernel: k1, size: 1000}, made{version: "1.0", kernel: kPlus, size: 1000}, made{version: "2.0", kernel: k2, size: 1000})
	for kind, repo := range map[string]string{"layout": "oci:" + filepath.Join(t.TempDir(), "layout"), "registry": memoryRegistry(t)} {
		t.Run(kind, func(t *testing.T) {
			run(t, dir, "list", repo).wants(t, 23, repo)
			run(t, dir, "inspect", repo).wants(t, 23, repo)
			run(t, dir, "push", repo, "made/1.0").wants(t, 0)
			run(t, dir, "inspect", repo).wants(t, 1, "name one of them with --kernel", k1+", "+kPlus)
			run(t, dir, "inspect", repo, "--kernel", "*").wants(t, 1, "name one of them")
			run(t, dir, "inspect", repo, "--kernel", k2).wants(t, 23, k1)
			run(t, dir, "push", repo, "made/2.0").wants(t, 0)

			type row struct {
				Module, Version, Kernel, Arch, Created, Digest, Tag string
				Size                                                int64
			}
			list := func(ref string) []row {
				t.Helper()
				return parse[struct{ Modules []row }](t, []byte(run(t, dir, "list", ref, "--format", "json").wants(t, 0).out)).Modules
			}
			all := list(repo)
			if len(all) != 3 || all[1].Kernel != kPlus || all[1].Tag != "1.0-debian-trixie-6.12.9_pdeb13-amd64" || all[2].Version != "2.0" ||
				all[0].Size < 1000 || all[0].Size > 100_000 || all[0].Arch != "amd64" || all[0].Created == "" {
				t.Fatalf("list says %+v", all)
			}
			text := run(t, dir, "list", repo).wants(t, 0).out
			lines := strings.Split(text, "\n")
			for i, a := range all {
				date, _, _ := strings.Cut(a.Created, "T")
				if got := strings.Fields(lines[i]); len(got) != 6 || got[0] != "made/"+a.Version || got[1] != a.Kernel || got[4] != date || got[5] != a.Digest {
					t.Errorf("list says %q of %+v", got, a)
				}
				if at := strings.Index(lines[i], "debian/"); at != strings.Index(lines[0], "debian/") {
					t.Errorf("no column: %s", text)
				}
			}
			if got := list(repo + ":2.0"); len(got) != 1 || got[0] != all[2] {
				t.Errorf("list of a version: %+v", got)
			}
			if got := list(repo + "@" + all[0].Digest); len(got) != 1 || got[0] != all[0] {
				t.Errorf("list of a digest: %+v", got)
			}
			run(t, dir, "list", repo+":9").wants(t, 23, "'list "+repo+"' shows what is there")

			got := parse[inspected](t, []byte(run(t, dir, "inspect", repo+":1.0", "--kernel", k1, "--format", "json").wants(t, 0).out))
			if got.Digest != all[0].Digest || got.Reference != repo+"@"+got.Digest || got.Tag != all[0].Tag || got.Size != all[0].Size || got.Created != all[0].Created ||
				got.Module != "made" || got.Version != "1.0" || got.Kernel != k1 || got.Release != "6.1.0-1-amd64" || got.Headers != "1-1" || got.Compiler != "gcc-12 12.2.0" ||
				got.Symvers != hashOf("symvers of "+k1).String() || got.Key != hashOf("1.0"+k1).String() || got.Source != hashOf("source").String() || got.Root != "" ||
				len(got.Modules) != 1 || got.Modules[0].Path != "/usr/lib/modules/6.1.0-1-amd64/updates/dkms/made.ko" || got.Modules[0].Size != 1000 ||
				got.Modules[0].Digest != hashOf(string(contentOf(made{version: "1.0", kernel: k1, size: 1000}))).String() ||
				got.Attachments.Lock == nil || got.Attachments.Lock.Digest().String() != got.Lock || got.Attachments.Log != len("built for "+k1+"\n") {
				t.Errorf("inspect says %+v", got)
			}
			said := run(t, dir, "inspect", repo+":1.0", "--kernel", k1).wants(t, 0).out
			for _, value := range []string{"made/1.0 for " + k1 + "\n", got.Reference, got.Tag, got.Created, got.Headers, got.Compiler, got.Symvers, got.Key, got.Source, got.Lock,
				got.Modules[0].Path, got.Modules[0].Digest, got.Modules[0].Vermagic, "--log prints it"} {
				if !strings.Contains(said, strings.TrimSpace(value)) {
					t.Errorf("inspect says\n%s; want %q", said, value)
				}
			}
			if r := run(t, dir, "inspect", repo+":"+got.Tag, "--log").wants(t, 0); r.out != "built for "+k1+"\n" {
				t.Errorf("inspect --log says %q", r.out)
			}
			if kind == "registry" {
				run(t, dir, "list", repo, "--offline").wants(t, 1, "offline")
				run(t, dir, "inspect", repo, "--offline").wants(t, 1, "offline")
			} else {
				run(t, dir, "list", repo, "--offline").wants(t, 0, k2)
			}
		})
	}
	// A repository of something else has none, which is no failure.
	empty := filepath.Join(t.TempDir(), "empty")
	writeFile(t, filepath.Join(empty, "oci-layout"), `{"imageLayoutVersion":"1.0.0"}`)
	writeFile(t, filepath.Join(empty, "index.json"), `{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`)
	if r := run(t, dir, "list", "oci:"+empty).wants(t, 0, "no modules are in oci:"+empty); r.out != "" {
		t.Errorf("list prints %s", r.out)
	}
	run(t, dir, "pull", "oci:"+empty, "--out", t.TempDir()).wants(t, 23, "has no artifacts")
}

// No files are offered where a reference is to be written.
func TestCompleteReferences(t *testing.T) {
	for args, want := range map[string]string{
		"push ": ":4", "push registry.example/x ": ":0", "pull ": ":4", "pull x ": ":4", "list ": ":4", "inspect x --kernel ": ":4", "pull x --kernel ": ":4", "pull x --out ": ":16",
	} {
		var out bytes.Buffer
		if code := Main(t.Context(), append([]string{"__complete"}, strings.Split(args, " ")...), &out, io.Discard); code != 0 || !strings.HasPrefix(out.String(), want+"\n") {
			t.Errorf("%q completes with %d, %s; want %s", args, code, out.String(), want)
		}
	}
}

func TestHost(t *testing.T) {
	root := func(list ...string) string {
		dir := t.TempDir()
		for i := 0; i < len(list); i += 2 {
			writeFile(t, filepath.Join(dir, list[i]), list[i+1])
		}
		return dir
	}
	const release = "6.1.0-1-amd64"
	debian := "PRETTY_NAME=\"Debian\"\nID=debian\nVERSION_CODENAME=bookworm\n"
	for _, c := range []struct {
		root, distro, suite string
	}{
		{root(), "", ""},
		{root("etc/os-release", debian), "debian", "bookworm"},
		{root("usr/lib/os-release", `ID="debian"`+"\n"+`VERSION_CODENAME='trixie'`), "debian", "trixie"},
		{root("etc/os-release", "ID=debian\nID_LIKE=x\n# VERSION_CODENAME=sid\n", "usr/lib/os-release", debian), "debian", ""},
		{root("etc/os-release", strings.Repeat("\x00", 100_000)), "", ""},
	} {
		if h := readMachine(c.root, release); h.distro != c.distro || h.suite != c.suite || h.running != release {
			t.Errorf("%+v; want %+v", h, c)
		}
	}
	for _, file := range []string{"lib/modules/" + release + "/build/Module.symvers", "usr/src/linux-headers-" + release + "/Module.symvers", "usr/src/kernels/" + release + "/Module.symvers"} {
		if h, found, err := (machine{root: root(file, "symvers of "+k1)}).symvers(release); err != nil || !found || h != hashOf("symvers of "+k1) {
			t.Errorf("%s: %s, %v, %v", file, h, found, err)
		}
	}
	for _, r := range []string{"", "..", "../../etc", release} {
		if h, found, err := (machine{root: root("lib/modules/"+release+"x/build/Module.symvers", "")}).symvers(r); err != nil || found || h != (v1.Hash{}) {
			t.Errorf("%q: %s, %v, %v", r, h, found, err)
		}
	}
	// A link that leads nowhere, as that of headers which were removed.
	gone := root("lib/modules/"+release+"/x", "")
	if err := os.Symlink("/no/such", filepath.Join(gone, "lib/modules", release, "build")); err != nil {
		t.Fatal(err)
	}
	if _, found, err := (machine{root: gone}).symvers(release); err != nil || found {
		t.Errorf("a link to nowhere: %v, %v", found, err)
	}

	// What a host takes of what is offered.
	dir, repo := t.TempDir(), "oci:"+filepath.Join(t.TempDir(), "layout")
	stock(t, dir, made{version: "1.0", kernel: k1, size: 10}, made{version: "1.0", kernel: k1other, size: 10}, made{version: "1.0", kernel: k2, size: 10})
	run(t, dir, "push", repo, "made/1.0").wants(t, 0)
	a := &app{stderr: io.Discard, env: os.Getenv, cacheDir: dir}
	_, opened, ref, err := a.open(repo)
	if err != nil {
		t.Fatal(err)
	}
	offers, err := offered(t.Context(), opened, ref)
	if err != nil {
		t.Fatal(err)
	}
	headers := func(of string) []string {
		return []string{"etc/os-release", debian, "usr/src/linux-headers-" + release + "/Module.symvers", of}
	}
	for name, c := range map[string]struct {
		host     machine
		selector string
		want     string // kernel, or the error's text
		code     int
	}{
		"the running one":               {readMachine(root("etc/os-release", debian), release), "running", k1, 0},
		"with its headers":              {readMachine(root(headers("symvers of "+k1)...), release), "running", k1, 0},
		"with other headers":            {readMachine(root(headers("others")...), release), "running", hashOf("others").String(), 23},
		"other headers, by its release": {readMachine(root(headers("others")...), "9"), release, "put the suite before it", 1},
		"other headers, by its name":    {readMachine(root(headers("others")...), "9"), k1, hashOf("others").String(), 23},
		"another suite's":               {readMachine(root(headers("others")...), "9"), k1other, k1other, 0},
		"its own suite's":               {readMachine(root("etc/os-release", debian), release), release, k1, 0},
		"another one":                   {readMachine(root("etc/os-release", debian), "9"), "6.1.0-2-amd64", k2, 0},
		"what isn't excluded":           {readMachine(root("etc/os-release", debian), "9"), "*,!debian/trixie:*,!6.1.0-1-*", k2, 0},
		"all but":                       {readMachine(root("etc/os-release", debian), "9"), "!*/bookworm:*", k1other, 0},
		"a pattern of suites":           {readMachine(root("etc/os-release", debian), "9"), "debian/t*:" + release, k1other, 0},
		"all excluded":                  {readMachine(root("etc/os-release", debian), "9"), "6.1.*,!*", `no modules for "6.1.*,!*"`, 23},
		"not there":                     {readMachine(root("etc/os-release", debian), "9"), "running", "no artifact for debian/bookworm:9", 23},
		"of an unknown system":          {readMachine(root(), release), "running", "put the suite before it", 1},
		"not there, unknown system":     {readMachine(root(), "9"), "running", `no modules for "9" on amd64`, 23},
		"running what":                  {readMachine(root("etc/os-release", debian), ""), "running", "name one with --kernel", 1},
	} {
		selectors, err := listSelectors(strings.Split(c.selector, ","))
		if err != nil {
			t.Fatal(err)
		}
		got, err := choose(t.Context(), opened, ref, selectors, c.host, "amd64")
		if c.code == 0 {
			if err != nil || len(got) != 1 || kernelOf(got[0].Meta).String() != c.want {
				t.Errorf("%s: %v, %v; want %s", name, names(got), err, c.want)
			}
			continue
		}
		code := exitUsage
		if e, ok := err.(*exitError); ok {
			code = e.code
		}
		if err == nil || code != c.code || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v; want %d and %q", name, names(got), err, c.code, c.want)
		}
	}
	// What the index lacks, and has its tag, is found.
	if e, err := find(t.Context(), opened, registry.Reference{}, offers[:1], artifact.Want{Distro: "debian", Suite: "bookworm", Release: "6.1.0-2-amd64", Arch: "amd64"}); err != nil || e.Digest != offers[1].Digest {
		t.Errorf("%v, %v", e.Tag, err)
	}
}
