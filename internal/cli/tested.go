package cli

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/cache"
	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/trial"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// testedWith is what decides what comes of a test, beside the modules and the kernel's packages.
type testedWith struct {
	LoadOnly  bool     `json:"load_only,omitempty"`
	Script    string   `json:"script,omitempty"` // SHA-256 of the file
	Params    []string `json:"params,omitempty"`
	Signature bool     `json:"signature,omitempty"`
	Signer    string   `json:"signer,omitempty"` // fingerprint of the certificate, if it's not of a key made for the test
	Memory    int64    `json:"memory"`           // bytes
	Timeout   float64  `json:"timeout"`          // seconds
}

// testRecord is what is kept of a test, as JSON: docs/artifact.md has its form.
type testRecord struct {
	Artifact v1.Hash      `json:"artifact"` // digest of the image with the modules
	Kernel   string       `json:"kernel"`   // as --kernels takes it
	Packages v1.Hash      `json:"packages"` // kernels.Image.Digest
	Options  testedWith   `json:"options"`
	Result   trial.Result `json:"result"`
	Tested   time.Time    `json:"tested"` // in whole seconds
}

// about is what a record is about: a later one about the same takes its place.
func (r testRecord) about() (v1.Hash, error) {
	b, err := json.Marshal(struct {
		Packages v1.Hash
		Options  testedWith
	}{r.Packages, r.Options})
	sum := sha256.Sum256(b)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}, err
}

// attachable is the record as it is attached to an artifact.
func (r testRecord) attachable() (artifact.Test, error) {
	b, err := json.Marshal(r)
	m := r.Result.Machine
	return artifact.Test{Verdict: string(r.Result.Verdict), Tested: r.Tested, Image: m.Image, QEMU: m.QEMU, Accel: m.Accel, Record: b}, err
}

// counts says whether a record tells what is to be thought of the modules as they are installed for a kernel. That isn't so of a test with
// parameters, nor of one that only loaded them or left one untried, unless even that failed.
func (r testRecord) counts(kernel kernels.Kernel) bool {
	return r.Kernel == kernel.String() && r.Result.Machine.Release == kernel.Release && len(r.Options.Params) == 0 &&
		!((r.Options.LoadOnly || len(r.Result.Untried()) > 0) && r.Result.Verdict.Passed())
}

// noteTest keeps a record with the result in a cache that it is of. Of one that is too long the middle of the transcript is left out, and
// if need be all but what came of the whole: a verdict is kept whatever the guest says.
func noteTest(ctx context.Context, results *cache.Dir, key v1.Hash, r testRecord) error {
	about, err := r.about()
	if err != nil {
		return err
	}
	b, err := json.Marshal(r)
	for err == nil && len(b) > cache.MaxNote && (len(r.Result.Log) > 0 || r.Result.Modules != nil) {
		if n := len(r.Result.Log); n > 0 {
			r.Result.Log = slices.Concat(r.Result.Log[:n/4], r.Result.Log[n-n/4:])
		} else {
			r.Result.Modules = nil
		}
		b, err = json.Marshal(r)
	}
	if err != nil {
		return err
	}
	return results.Note(ctx, key, about, b)
}

// readTests reads the records of tests of an artifact, the newest first. What is none is left out. That they are true is for who may write
// them to say.
func readTests(of v1.Hash, notes [][]byte) (out []testRecord) {
	for _, b := range notes {
		var r testRecord
		if json.Unmarshal(b, &r) != nil || r.Artifact != of || r.Tested.IsZero() {
			continue
		}
		if v := r.Result.Verdict; v.Passed() || verdictCodes[v] != 0 {
			out = append(out, r)
		}
	}
	slices.SortStableFunc(out, func(a, b testRecord) int { return b.Tested.Compare(a.Tested) })
	return out
}

// testsIn are the records of tests that a cache has of an artifact, the newest first.
func testsIn(ctx context.Context, results *cache.Dir, key, of v1.Hash) ([]testRecord, error) {
	notes, err := results.Notes(ctx, key)
	return readTests(of, notes), err
}

// attachedTests are the records of tests that are attached to an artifact, the newest first.
func attachedTests(of v1.Hash, a artifact.Attachments) []testRecord {
	var notes [][]byte
	for _, t := range a.Tests {
		notes = append(notes, t.Record)
	}
	return readTests(of, notes)
}

// attachableTests is the newest record that a cache has of a test of an artifact, if any that counts for its kernel, to be attached.
func attachableTests(ctx context.Context, results *cache.Dir, key, of v1.Hash, kernel kernels.Kernel) ([]artifact.Test, error) {
	list, err := testsIn(ctx, results, key, of)
	i := slices.IndexFunc(list, func(r testRecord) bool { return r.counts(kernel) })
	if err != nil || i < 0 {
		return nil, err
	}
	t, err := list[i].attachable()
	return []artifact.Test{t}, err
}

// passedIn tells whether, of the tests of an artifact that any of some caches has and that count for its kernel, the newest was passed, and
// how many there are.
func passedIn(ctx context.Context, key, of v1.Hash, kernel kernels.Kernel, caches ...*cache.Dir) (passed bool, n int, err error) {
	var all []testRecord
	for _, c := range caches {
		list, err := testsIn(ctx, c, key, of)
		if err != nil {
			return false, 0, err
		}
		all = append(all, slices.DeleteFunc(list, func(r testRecord) bool { return !r.counts(kernel) })...)
	}
	if len(all) == 0 {
		return false, 0, nil
	}
	newest := slices.MaxFunc(all, func(a, b testRecord) int { return a.Tested.Compare(b.Tested) })
	return newest.Result.Verdict.Passed(), len(all), nil
}

// before gives the result of a test of a subject that was passed before under the same conditions.
func (t *trials) before(ctx context.Context, s subject, r testRecord) (trial.Result, bool) {
	if s.results == nil {
		return trial.Result{}, false
	}
	want, err := r.about()
	list, listErr := testsIn(ctx, s.results, s.key, s.digest)
	if cmp.Or(err, listErr) != nil {
		return trial.Result{}, false
	}
	for _, had := range list {
		if about, err := had.about(); err == nil && about == want {
			return had.Result, had.Result.Verdict.Passed()
		}
	}
	return trial.Result{}, false
}

// record keeps the result of a test. That it can't is a warning: the test was made.
func (t *trials) record(ctx context.Context, s subject, r testRecord) {
	if s.results == nil {
		return
	}
	err := noteTest(ctx, s.results, s.key, r)
	if err != nil && !errors.Is(err, cache.ErrNotFound) && ctx.Err() == nil {
		t.board.Warn(fmt.Sprintf("%s: what came of the test isn't kept: %v", s.title, err))
	}
}
