package builder

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/builder/dkms"
	"github.com/godkms-hermetic/godkms-hermetic/cache"
	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// recipe is the version of what a build does. A change that can alter a byte of the output must raise it.
const recipe = 4

// Status is how a job ended.
type Status string

const (
	Built   Status = "built"
	Cached  Status = "cached"  // the same inputs were built before
	Skipped Status = "skipped" // the dkms.conf excludes this kernel
	Failed  Status = "failed"
)

// Results is where built modules are kept.
type Results interface {
	cache.Store
	// Lock waits until no other process builds for the key.
	Lock(ctx context.Context, key v1.Hash) (io.Closer, error)
	// KeepLog keeps the log of a failed build and says where.
	KeepLog(ctx context.Context, key v1.Hash, log []byte) (path string, err error)
}

// Builder builds jobs. Its fields are not changed after the first Build; Build is safe for concurrent use.
type Builder struct {
	Results Results
	Remotes []*Remote // are asked in this order for what Results hasn't got. Default: none.
	Share   *Remote   // gets what is built, and what Results has. Default: none.
	// Engine gives the engine. It is called on a cache miss only, and before Root: where there is none, nothing need be fetched.
	Engine func(context.Context) (Engine, error)
	// Root assembles the root of a lock. It is called on a cache miss only.
	Root func(ctx context.Context, l kernels.Lock, progress func(phase string, done, total int64)) (Root, error)
	// RootVersion is the version of what a root has beside its packages; part of the key.
	RootVersion  string
	Temp         string        // folder for unnamed files; default: os.TempDir()
	Jobs         int           // make's -j, at least 1
	Timeout      time.Duration // for the commands of one job; 0: none
	Memory       int64         // bytes that one job's build may hold; see Spec; 0: no limit
	Surroundings Surroundings  // what builds see of where they run; part of no key
	Verify       bool          // build even what is cached, and fail where the result differs; Remotes are not asked
}

// Job is one source tree for one locked kernel.
type Job struct {
	Source *Source
	Lock   kernels.Lock
	// Depends are the modules of MayDepend that there are, and what those were built on, in any order. They are in the job's
	// root as dkms would have them there.
	Depends    []Dependency
	Overrides  []dkms.Override // those that hold for this kernel, in dkms's order; see dkms.Target.OverrideNames
	Directives []string        // as "MAKE[1]=make all"; they come after the dkms.conf and its overrides
}

// MayDepend is every module that the job may find in BUILD_DEPENDS.
func (j Job) MayDepend() []string {
	return dkms.MayDepend(j.Source.MayDepend, j.Overrides, j.Directives)
}

// Dependency is a module that another one may need, and how its build for the same kernel ended.
type Dependency struct {
	Source *Source
	Result Result
}

// TimeoutError says that a build was ended because it took longer than Builder.Timeout allows.
type TimeoutError struct{ Limit time.Duration }

func (e *TimeoutError) Error() string {
	return fmt.Sprintf("the build took longer than %s; --timeout sets the limit", e.Limit)
}

// Watch follows a job. Every field may be nil.
type Watch struct {
	Phase    func(name string)
	Progress func(phase string, done, total int64) // of the root's assembly
	Warn     func(string)                          // told of what deserves attention but stops nothing
	Log      io.Writer                             // the build's log while it is written
}

// Result is how a job ended. Log and LogPath are those of the build, however long ago it was.
type Result struct {
	Status  Status
	From    string // where it was found: Local, or the name of a Remote; empty if it was built now
	Err     error  // of a failed job
	Reason  string // why it was skipped or failed, one line
	Key     v1.Hash
	Meta    artifact.Meta
	Files   []artifact.File // the modules; every byte is verified while it is read
	Image   v1.Image        // the artifact; nil for a failed job
	Digest  v1.Hash         // of Image
	Inputs  []byte          // see cache.Entry
	Log     []byte
	LogPath string // of a failed job's log
	Seconds float64
}

// Inputs are what a key is the hash of, in JSON.
type Inputs struct {
	Recipe      int             `json:"recipe"`
	RootVersion string          `json:"root_version"`
	Source      v1.Hash         `json:"source"`
	Lock        v1.Hash         `json:"lock"`
	Depends     []string        `json:"depends,omitempty"` // "MODULE VERSION KEY", sorted
	Overrides   []dkms.Override `json:"overrides,omitempty"`
	Directives  []string        `json:"directives,omitempty"`
}

// ReadInputs reads what cache.Entry keeps of a key's inputs.
func ReadInputs(text []byte) (Inputs, error) {
	var in Inputs
	if err := json.Unmarshal(text, &in); err != nil {
		return in, fmt.Errorf("read the inputs of a build: %w", err)
	}
	return in, nil
}

// Key is the hash of everything that the result depends on, and of nothing else: not the engine, not -j, no path, no
// variable, no time.
func (b *Builder) Key(j Job) v1.Hash {
	sum := sha256.Sum256(b.Inputs(j).encode())
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}

func (i Inputs) encode() []byte {
	text, err := json.Marshal(i)
	if err != nil {
		return nil // numbers and strings: cannot fail
	}
	return text
}

// Inputs are what a job's key is made of.
func (b *Builder) Inputs(j Job) Inputs {
	var depends []string
	for _, d := range j.Depends {
		if d.Result.Status == Failed { // the build goes without it, now; the next time it may be there
			continue
		}
		depends = append(depends, d.Source.Module+" "+d.Source.Version+" "+d.Result.Key.String())
	}
	slices.Sort(depends)
	return Inputs{recipe, b.RootVersion, j.Source.Digest, j.Lock.Digest(), depends, j.Overrides, j.Directives}
}

// entry is what is kept of a result.
func (b *Builder) entry(img v1.Image, log []byte, j Job) cache.Entry {
	e := cache.Entry{Image: img, Log: log, Lock: j.Lock.Encode()}
	if len(j.Depends)+len(j.Overrides)+len(j.Directives) > 0 {
		e.Inputs = b.Inputs(j).encode()
	}
	return e
}

// Build gives the result of a job: from the cache, or built. It never fails as a whole; Result says how it went.
func (b *Builder) Build(ctx context.Context, j Job, w Watch) Result {
	start := time.Now()
	r := b.build(ctx, j, w)
	if r.Err == nil {
		b.share(ctx, r, j, w)
	}
	if r.Err != nil {
		r.Status, r.Image, r.Files = Failed, nil, nil
		r.Reason, _, _ = strings.Cut(r.Err.Error(), "\n")
		if faults := (dkms.Errors)(nil); errors.As(r.Err, &faults) && len(faults) > 1 {
			r.Reason += fmt.Sprintf(" (the first of %d faults)", len(faults))
		}
	}
	r.Seconds = time.Since(start).Seconds()
	return r
}

func (b *Builder) build(ctx context.Context, j Job, w Watch) (r Result) {
	r.Key = b.Key(j)
	if !b.Verify {
		if r.load(ctx, b.Results) || r.Err != nil {
			return r
		}
		w.phase("waiting")
		lock, err := b.Results.Lock(ctx, r.Key)
		if err != nil {
			r.Err = err
			return r
		}
		defer lock.Close()
		if r.load(ctx, b.Results) || r.Err != nil { // another process built it meanwhile
			return r
		}
		if b.fetch(ctx, &r, j, w) || r.Err != nil {
			return r
		}
	}
	o, root, err := b.make(ctx, &r, j, w)
	if err != nil {
		r.Err = err
		return r
	}
	defer o.Close()

	w.phase("storing")
	r.Err = b.store(ctx, &r, j, root, o)
	return r
}

// make runs a job on a root, whose digest it gives. It fills in r's log, and keeps that of a build that fails.
func (b *Builder) make(ctx context.Context, r *Result, j Job, w Watch) (o *output, digest v1.Hash, err error) {
	engine, err := b.Engine(ctx)
	if err != nil {
		return nil, digest, err
	}
	w.phase("root")
	root, err := b.Root(ctx, j.Lock, w.Progress)
	if err != nil {
		return nil, digest, err
	}
	defer root.Close()

	log := &logBuffer{stream: w.Log}
	if b.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, b.Timeout, &TimeoutError{b.Timeout})
		defer cancel()
	}
	o, err = b.run(ctx, engine, root, j, w, log)
	r.Log = log.Bytes()
	if err != nil {
		keep, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		var kept error
		if r.LogPath, kept = b.Results.KeepLog(keep, r.Key, r.Log); kept != nil {
			w.warn(kept.Error())
		}
	}
	return o, root.Digest(), err
}

// load fills r from the cache. It reports whether the key was there.
func (r *Result) load(ctx context.Context, results Results) bool {
	e, err := results.Get(ctx, r.Key)
	if errors.Is(err, cache.ErrNotFound) {
		return false
	}
	if err == nil {
		err = r.read(e)
	}
	if err != nil {
		r.Err = fmt.Errorf("cache: %w", err)
		return false
	}
	r.From = Local
	return true
}

// read fills r from an entry, every byte of which it checks.
func (r *Result) read(e cache.Entry) (err error) {
	if r.Meta, r.Files, err = artifact.Read(e.Image); err != nil {
		return err
	}
	if r.Digest, err = e.Image.Digest(); err != nil {
		return err
	}
	r.Status, r.Image, r.Log, r.Inputs, r.Reason = Cached, e.Image, e.Log, e.Inputs, r.Meta.Reason
	if r.Meta.Status == artifact.Skipped {
		r.Status = Skipped
	}
	return nil
}

// pack makes the artifact of an output.
func (b *Builder) pack(j Job, key, root v1.Hash, o *output) (v1.Image, error) {
	meta := b.meta(j, key)
	meta.Compiler, meta.Symvers, meta.Root = o.compiler, o.symvers, root
	meta.Status, meta.Reason = artifact.Built, o.skip
	if o.skip != "" {
		meta.Status = artifact.Skipped
	}
	meta.Extras = o.extras
	img, err := artifact.New(meta, o.files)
	if err != nil {
		return nil, fmt.Errorf("pack: %w", err)
	}
	return img, nil
}

// store packs an output and keeps it, or, to verify, compares it with what is kept.
func (b *Builder) store(ctx context.Context, r *Result, j Job, root v1.Hash, o *output) error {
	img, err := b.pack(j, r.Key, root, o)
	if err != nil {
		return err
	}
	digest, err := img.Digest()
	if err != nil {
		return fmt.Errorf("pack: %w", err)
	}
	before, err := b.Results.Get(ctx, r.Key)
	switch {
	case err == nil:
		had, err := before.Image.Digest()
		if err != nil {
			return fmt.Errorf("cache: %w", err)
		}
		if had != digest {
			return fmt.Errorf("the build is not reproducible: its modules differ from the cached ones (%s now, %s before); "+
				"look for the time, random numbers or the order of files in the source's Makefile; the command reproduce shows where", digest, had)
		}
	case errors.Is(err, cache.ErrNotFound):
		if err := b.Results.Put(ctx, r.Key, b.entry(img, r.Log, j)); err != nil {
			return fmt.Errorf("cache: %w", err)
		}
	default:
		return fmt.Errorf("cache: %w", err)
	}
	log := r.Log
	if !r.load(ctx, b.Results) {
		if r.Err == nil {
			return errors.New("cache: the result vanished as soon as it was written; is something else clearing the cache?")
		}
		return r.Err
	}
	r.Log, r.From = log, ""
	if r.Status == Cached {
		r.Status = Built
	}
	return nil
}

func (w Watch) warn(text string) {
	if w.Warn != nil {
		w.Warn(text)
	}
}

func (w Watch) phase(name string) {
	if w.Phase != nil {
		w.Phase(name)
	}
}

// logBuffer keeps the beginning and the end of a log and says what it left out between them.
type logBuffer struct {
	stream io.Writer
	head   []byte
	tail   []byte
	cut    int64
}

// What is kept of a log, in bytes: with the note between them, as much as the cache takes.
const (
	logHead = cache.MaxLog / 4
	logTail = cache.MaxLog - logHead - 128
)

func (l *logBuffer) Write(p []byte) (int, error) {
	n := len(p)
	if l.stream != nil {
		l.stream.Write(p) // the log is whole even where nobody can watch it
	}
	if room := logHead - len(l.head); room > 0 {
		k := min(room, len(p))
		l.head, p = append(l.head, p[:k]...), p[k:]
	}
	l.tail = append(l.tail, p...)
	if over := len(l.tail) - logTail; over > logTail {
		l.cut += int64(over)
		l.tail = append(l.tail[:0], l.tail[over:]...)
	}
	return n, nil
}

// Bytes is the log as it is kept.
func (l *logBuffer) Bytes() []byte {
	tail, cut := l.tail, l.cut
	if over := len(tail) - logTail; over > 0 {
		tail, cut = tail[over:], cut+int64(over)
	}
	out := append([]byte(nil), l.head...)
	if cut > 0 {
		out = fmt.Appendf(out, "\n[… %d bytes of the log were cut here …]\n", cut)
	}
	return append(out, tail...)
}
