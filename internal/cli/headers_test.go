package cli

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/builder/sandbox"
	"github.com/godkms-hermetic/godkms-hermetic/cache"
	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registrytest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// A kernel that the mirror has no more is built for with its header image of a registry, and comes to the same artifact.
func TestKernelThatIsGone(t *testing.T) {
	t.Parallel()
	if err := (sandbox.Engine{}).Check(t.Context()); err != nil {
		need.Skip(t, "no sandbox: %v", err)
	}
	shared := sharedCache(t)
	var kernel string
	for _, v := range newestKernels(t, shared) {
		if name, ok := strings.CutPrefix(v, "K61="); ok {
			kernel = name
		}
	}
	repo := registrytest.Start(t, registrytest.Options{}).Host + "/team/headers"
	keys, mirror := emptyMirror(t, "bookworm")
	temp := t.TempDir()

	// A cache has everything but results; the other has nothing, and the mirror that has nothing either.
	full, bare := filepath.Join(temp, "full"), filepath.Join(temp, "bare")
	if err := os.MkdirAll(full, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"index", "images"} {
		if err := os.Symlink(filepath.Join(shared, name), filepath.Join(full, name)); err != nil {
			t.Fatal(err)
		}
	}
	at := mirror
	run := func(cache string, want int, v any, args ...string) string {
		t.Helper()
		var out, errs bytes.Buffer
		a := &app{stdout: &out, stderr: &errs, env: os.Getenv}
		args = append(args, "--cache-dir", cache, "--format", "json")
		if cache != full {
			a.keyring = keys
			args = append(args, "--mirror", "debian="+at)
		}
		if code := a.run(t.Context(), args); code != want {
			t.Fatalf("godkms-hermetic %s: exit code %d; want %d\n%s%s", strings.Join(args, " "), code, want, &out, &errs)
		}
		if v != nil {
			if err := json.Unmarshal(out.Bytes(), v); err != nil {
				t.Fatal(err)
			}
		}
		return errs.String()
	}
	build := func(more ...string) []string {
		return append([]string{"build", "../../testdata/hello", "--kernels", kernel, "--out", filepath.Join(temp, "out"), "--engine", "sandbox"}, more...)
	}
	contains := func(text string, want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("%q is not in\n%s", w, text)
			}
		}
	}

	// Nothing is there yet.
	contains(run(full, exitAbsent, nil, "image", "pull", kernel, repo), "not found", kernel)
	contains(run(bare, exitNoKernel, nil, "image", "pull", kernel, repo), "no release", "has no header image of it either")
	contains(run(bare, exitNoKernel, nil, build("--images", repo)...), "has no header image of it either")

	var first, second struct{ Results []ui.Result }
	contains(run(full, 0, &first, build("--images", repo, "--push-images")...), "header image of "+kernel+"  pushed")
	if r := first.Results[0]; r.Status != ui.Built {
		t.Fatalf("%+v; want built", r)
	}

	said := run(bare, 0, &second, build("--images", repo, "--push-images")...)
	contains(said, "no release", "its packages are those of its header image in \""+repo)
	if a, b := first.Results[0], second.Results[0]; b.Status != ui.Built || b.Key != a.Key || b.Digest != a.Digest {
		t.Errorf("%+v; want built, with the key and the digest of %+v\n%s", b, a, said)
	}
	if left, err := filepath.Glob(filepath.Join(bare, "images/packages/*/*")); err != nil || len(left) > 0 {
		t.Errorf("packages: %q, %v; want none", left, err)
	}
	run(bare, exitNoKernel, nil, build()...)
	// What is pulled and pushed is the same image, and there already.
	var pushed1, pulled struct{ Images []pushed }
	run(full, 0, &pushed1, "image", "push", kernel, repo)
	_, release, _ := strings.Cut(kernel, ":")
	run(bare, 0, &pulled, "image", "pull", release, repo)
	if !slices.Equal(pushed1.Images, pulled.Images) || len(pulled.Images) != 1 {
		t.Errorf("pushed %+v, pulled %+v; want the same", pushed1.Images, pulled.Images)
	} else if p := pulled.Images[0]; p.Kernel != kernel || p.Reference != repo+":"+"debian-bookworm-"+release || p.Root == "" {
		t.Errorf("pulled %+v", p)
	}
	contains(run(bare, exitAbsent, nil, "image", "pull", kernel, repo, "--with", "libelf-dev"), "with the extra packages libelf-dev")

	if results, err := cache.Open(filepath.Join(bare, "results"), cache.Options{}); err != nil {
		t.Error(err)
	} else if key, err := v1.NewHash(second.Results[0].Key); err != nil {
		t.Error(err)
	} else if e, err := results.Get(t.Context(), key); err != nil {
		t.Error(err)
	} else if meta, _, err := artifact.Read(e.Image); err != nil || meta.Root.String() != pulled.Images[0].Root {
		t.Errorf("the artifact's root is %s, %v; want %s", meta.Root, err, pulled.Images[0].Root)
	}

	// A mirror that refuses, and a registry that does: a warning each.
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusForbidden) }))
	defer refusing.Close()
	closed := strings.TrimPrefix(refusing.URL, "http://") + "/headers"
	at = refusing.URL + "/debian"
	contains(run(bare, 0, &second, build("--images", repo)...), at, "its packages are those of its header image")
	if r := second.Results[0]; r.Status != ui.Cached || r.Digest != first.Results[0].Digest {
		t.Errorf("%+v; want what was built before", r)
	}
	at = mirror
	said = run(full, exitSkipped, nil, append(build("--images", closed, "--push-images"), "--directive", "BUILD_EXCLUSIVE_KERNEL=none")...)
	if n := strings.Count(said, "warning"); n != 1 || !strings.Contains(said, "--push-images: ") {
		t.Errorf("%d warnings in\n%s", n, said)
	}

	// What can't be meant.
	contains(run(bare, exitUsage, nil, build("--push-images")...), "name a repository with --images")
	contains(run(bare, exitUsage, nil, build("--images", repo+":latest")...), "header images have tags of their own")
	contains(run(bare, exitUsage, nil, "image", "push", kernel, repo, "--offline"), "leave --offline away")
	contains(run(bare, exitRegistry, nil, "image", "pull", kernel, closed), "access denied")
}

// emptyMirror is a mirror that has no package of a suite any more, and the key that it signs with.
func emptyMirror(t *testing.T, suite string) (keys openpgp.EntityList, url string) {
	t.Helper()
	own, err := openpgp.NewEntity("mirror of a test", "", "test@example.org", nil)
	if err != nil {
		t.Fatal(err)
	}
	index := fmt.Sprintf("Package: nothing\nVersion: 1\nArchitecture: %s\nFilename: pool/nothing.deb\nSize: 1\nSHA256: %x\n\n", kernels.HostArch(), sha256.Sum256(nil))
	where := "main/binary-" + kernels.HostArch() + "/Packages"
	var signed bytes.Buffer
	w, err := clearsign.Encode(&signed, own.PrivateKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(w, "Origin: Test\nCodename: %s\nDate: %s\nSHA256:\n %x %d %s\n", suite, time.Now().UTC().Format(time.RFC1123), sha256.Sum256([]byte(index)), len(index), where)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{"/debian/dists/" + suite + "/InRelease": signed.Bytes(), "/debian/dists/" + suite + "/" + where: []byte(index)}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if b, ok := files[r.URL.Path]; ok {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
			return
		}
		http.NotFound(w, r)
	}))
	t.Cleanup(s.Close)
	return openpgp.EntityList{own}, s.URL + "/debian"
}

// What a mirror says that can't be trusted is not made good by a registry.
func TestMayBeArchived(t *testing.T) {
	exact := kernels.Selector{Distro: "debian", Suite: "bookworm", Release: "6.1.0-40-amd64"}
	for _, tt := range []struct {
		name  string
		asked kernels.Selector
		err   error
		want  bool
	}{
		{"not there", kernels.Selector{Release: "6.1.0-*"}, fmt.Errorf("x: %w", kernels.ErrNotFound), true},
		{"no mirror", exact, errors.New("connection refused"), true},
		{"no mirror, and a pattern", kernels.Selector{Distro: "debian", Suite: "bookworm", Release: "6.1.0-*"}, errors.New("connection refused"), false},
		{"a bad signature", exact, fmt.Errorf("x: %w", kernels.ErrUntrusted), false},
		{"a bad signature of one suite", kernels.Selector{Release: exact.Release}, errors.Join(kernels.ErrNotFound, kernels.ErrUntrusted), false},
		{"there", exact, nil, false},
	} {
		if got := mayBeArchived(target{asked: tt.asked, err: tt.err}); got != tt.want {
			t.Errorf("%s: %v; want %v", tt.name, got, tt.want)
		}
	}
}
