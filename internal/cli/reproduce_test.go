package cli

import (
	"encoding/json"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// What the sandbox has built of a module and its dependency, Docker builds again, with what was recorded of that.
func testReproduceWithDocker(t *testing.T) {
	shared := sharedCache(t)
	kernel := strings.TrimPrefix(newestKernels(t, shared)[0], "K61=")
	var built struct{ Results []ui.Result }
	if err := json.Unmarshal(program(t, shared, "build", "../../testdata/importer", "--depends", "../../testdata", "--kernels", kernel, "--engine", "sandbox",
		"--directive", "REMAKE_INITRD=no", "--out", filepath.Join(t.TempDir(), "out"), "--format", "json"), &built); err != nil {
		t.Fatal(err)
	}
	var got reproduction
	text := program(t, shared, "reproduce", built.Results[0].Key, "../../testdata/importer", "--depends", "../../testdata", "--format", "json")
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if !got.Reproduced || got.Module != "importer" || got.Rebuilt != got.Recorded || got.Recorded != built.Results[0].Digest ||
		!slices.Contains(got.Varied, surrounding{What: "engine", From: "sandbox", To: "docker"}) {
		t.Errorf("reproduce of %s: %s", built.Results[0].Digest, text)
	}
}

// A recorded lock has no URLs: where a package isn't there yet they are the distribution's.
func TestURLsOfRecord(t *testing.T) {
	shared := sharedCache(t)
	want, err := lock(shared, "libc6-dev")
	if err != nil {
		t.Fatal(err)
	}
	recorded, err := kernels.DecodeLock(want.Encode())
	if err != nil {
		t.Fatal(err)
	}
	a := &app{stdout: io.Discard, stderr: io.Discard, env: os.Getenv, cacheDir: shared, format: "text"}
	if err := a.start(); err != nil {
		t.Fatal(err)
	}
	defer a.close()
	r, err := a.newRun(defaultBuild())
	if err != nil {
		t.Fatal(err)
	}
	urls, err := r.urlsOf(t.Context(), recorded)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range slices.Concat(want.Toolchain, want.Headers) {
		if got := urls[p.Digest].URL; got == "" || path.Base(got) != path.Base(p.URL) {
			t.Errorf("%s is at %q; want %q", p.Name, got, p.URL)
		}
	}
}
