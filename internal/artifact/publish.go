package artifact

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/partial"
	"golang.org/x/sync/errgroup"

	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
)

// A Publication is an artifact to be pushed, and what is attached to it. Its Module.symvers is attached too.
type Publication struct {
	Image   v1.Image
	Log     []byte
	Created time.Time // of the log
	Lock    []byte    // in the form that Attachments say, as are the inputs
	Inputs  []byte
	Tests   []Test
}

// Published is what was pushed.
type Published struct {
	Index    v1.Hash  // digest of the version's index; the zero value if nothing was to be pushed
	Entries  []Entry  // in the order of the publications, without those that were skipped
	Skipped  []Kernel // kernels that the module excludes: they have no modules, and are not pushed
	Warnings []error  // what else is in the repository below the version's tags, and isn't in the index
}

// ErrIndex is wrapped when all artifacts are in the repository, each with its tag, but the index isn't known to have them.
var ErrIndex = errors.New("the artifacts are pushed, but the index may lack some: push them again")

const (
	maxRounds   = 50   // of bringing an index up to date
	maxKernels  = 4096 // of one version
	maxWarnings = 16
	pushes      = 8 // at a time
)

// Publish pushes artifacts of one version of one module by the tags of their kernels, and brings the index of that version up to date: it
// then has every kernel that has a tag, whoever else pushes at the same time. A repository is for one module.
//
// Registries have no compare-and-swap, so that two who change an index may undo each other's change. Hence the tags of kernels are
// the truth, which nobody shares with others, and the index follows from them. Who pushes does it in this order: first all tags;
// then, in rounds, list the tags, then read the index, and write it if it isn't what it should be; until a round has nothing to
// write. When all are done, no tag is missing: take the last of all writes. Its author had a later round, which wrote nothing; so the
// tags that were there at the start of that round are in the index. Whoever pushed a tag after that had all rounds after that, thus
// after the last write, read this index, and wrote nothing: the tag is in it, too. Where nobody wrote anything, everybody read the same
// index, and found it right.
//
// This ends since the bytes of an index follow from its set of entries alone: when no more tags are pushed, all write the same.
// It is as good as the registry is: one that shows a list of tags, or an index, that is older than what it said it has stored can
// hide a kernel, until somebody pushes again.
//
// Layers that a repository of from has, on the same registry, aren't sent if that lets them be shared.
func Publish(ctx context.Context, repo *registry.Repo, list []Publication, from ...registry.Reference) (Published, error) {
	var out Published
	var push []Publication
	seen := map[string]bool{}
	for _, p := range list {
		m, _, err := ReadMeta(p.Image)
		if err != nil {
			return out, err
		}
		if m.Status == Skipped {
			out.Skipped = append(out.Skipped, m.Kernel)
			continue
		}
		d, err := partial.Descriptor(p.Image)
		if err != nil {
			return out, err
		}
		e, err := entryOf(*d, p.Image)
		if err != nil {
			return out, err
		}
		if len(out.Entries) > 0 && (e.Module != out.Entries[0].Module || e.Version != out.Entries[0].Version) {
			return out, fmt.Errorf("push to %q: it is for one version at a time, and these are %s %s and %s %s", repo.Name(),
				out.Entries[0].Module, out.Entries[0].Version, e.Module, e.Version)
		}
		if seen[e.Tag] {
			return out, fmt.Errorf("push to %q: two artifacts are for %s", repo.Name(), e.Tag)
		}
		seen[e.Tag] = true
		out.Entries, push = append(out.Entries, e), append(push, p)
	}
	if len(push) == 0 {
		return out, nil
	}
	if err := checkModule(ctx, repo, out.Entries[0].Meta); err != nil {
		return out, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(pushes)
	for i, p := range push {
		g.Go(func() error { return publish(gctx, repo, out.Entries[i], p, from) })
	}
	if err := g.Wait(); err != nil {
		return out, err
	}
	var err error
	if out.Index, out.Warnings, err = updateIndex(ctx, repo, out.Entries); err != nil {
		err = fmt.Errorf("index of %s %s in %q: %w: %w", out.Entries[0].Module, out.Entries[0].Version, repo.Name(), ErrIndex, err)
	}
	return out, err
}

func publish(ctx context.Context, repo *registry.Repo, e Entry, p Publication, from []registry.Reference) error {
	if err := repo.PushWith(ctx, e.Tag, p.Image, registry.PushOptions{From: from}); err != nil {
		return err
	}
	symvers, err := symversOf(p.Image)
	if err != nil {
		return err
	}
	return Attach(ctx, repo, e.written, Attachments{Log: p.Log, Created: p.Created, Lock: p.Lock, Symvers: symvers, Inputs: p.Inputs, Tests: p.Tests})
}

// symversOf reads the Extra ModuleSymvers of an artifact, if it has one.
func symversOf(img v1.Image) ([]byte, error) {
	m, files, l, err := readMeta(img)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(m.Extras, func(e Extra) bool { return e.Name == ModuleSymvers })
	if i < 0 {
		return nil, nil
	}
	size, _, err := describe(l)
	if err != nil {
		return nil, err
	}
	as := &layer{meta: m, files: files}
	r, err := as.open(l, size, as.parts()[len(files)+i])
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// checkModule refuses a repository that has another module, or something else in the place of the version's index. Beside that it looks
// at one tag: whatever was pushed there was refused, too, unless it was of the same module.
func checkModule(ctx context.Context, repo *registry.Repo, m Meta) error {
	tags, err := repo.Tags(ctx)
	if errors.Is(err, registry.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	index, err := VersionTag(m.Version)
	if err != nil {
		return err
	}
	module := ""
	if slices.Contains(tags, index) {
		idx, err := readOwnIndex(ctx, repo, index, m.Version)
		if err != nil && !errors.Is(err, registry.ErrNotFound) { // which is to say, removed meanwhile
			return err
		}
		module = idx.Module
	}
	tags = slices.DeleteFunc(tags, func(tag string) bool { _, ok := ParseTag(tag); return !ok })
	for _, tag := range tags[:min(len(tags), 16)] { // where none of them is of any module, all may be something else
		if module != "" {
			break
		}
		if module, err = moduleOf(ctx, repo, tag); err != nil {
			return err
		}
	}
	if module != "" && module != m.Module {
		return fmt.Errorf("push %s %s to %q: the repository has modules of %s; each module has a repository of its own, such as %q",
			m.Module, m.Version, repo.Name(), module, sibling(repo.Name(), m.Module))
	}
	return nil
}

// readOwnIndex reads the index that is to be changed, so what is wrong with its entries does no harm.
func readOwnIndex(ctx context.Context, repo *registry.Repo, tag, version string) (Index, error) {
	_, raw, err := repo.Manifest(ctx, tag)
	if err != nil {
		return Index{}, err
	}
	idx, _, err := parseIndex(raw)
	if err == nil && idx.Version != version {
		err = invalid("it is the index of %s %s", idx.Module, idx.Version)
	}
	if err != nil {
		return Index{}, fmt.Errorf("tag %q in %q is in the place of the index, but names something else: %w; remove the tag, or push to another repository",
			tag, repo.Name(), err)
	}
	return idx, nil
}

// sibling names a repository beside another one.
func sibling(name, module string) string {
	i := strings.LastIndexAny(name, "/:")
	return name[:i+1] + strings.ToLower(module)
}

// moduleOf tells of which module a tag's index or artifact is; it is empty for anything else.
func moduleOf(ctx context.Context, repo *registry.Repo, tag string) (string, error) {
	_, raw, err := repo.Manifest(ctx, tag)
	if errors.Is(err, registry.ErrNotFound) { // it was removed meanwhile
		return "", nil
	}
	if err != nil {
		return "", err
	}
	m, err := v1.ParseIndexManifest(bytes.NewReader(raw)) // annotations are at the same place in a manifest
	if err != nil {
		return "", nil
	}
	return m.Annotations[AnnotationModule], nil
}

// updateIndex brings the index of own's version up to date. own have their tags already.
func updateIndex(ctx context.Context, repo *registry.Repo, own []Entry) (v1.Hash, []error, error) {
	lock, err := repo.Lock(ctx)
	if err != nil {
		return v1.Hash{}, nil, err
	}
	defer lock.Close()
	tag, err := VersionTag(own[0].Version)
	if err != nil {
		return v1.Hash{}, nil, err
	}
	u := &updater{repo: repo, tag: tag, module: own[0].Module, version: own[0].Version, own: own}
	for u.round = 0; u.round < maxRounds; u.round++ {
		if u.round > 1 { // the first two are writing and looking again
			select {
			case <-ctx.Done():
				return v1.Hash{}, nil, context.Cause(ctx)
			case <-time.After(rand.N(time.Duration(min(u.round, 10)) * 20 * time.Millisecond)):
			}
		}
		want, had, complete, warnings, err := u.look(ctx)
		if err != nil {
			return v1.Hash{}, nil, err
		}
		// Another version of this program may write the same in another way: that is for it and us no reason to go on.
		if bytes.Equal(want, had) || complete && u.round > 0 {
			h, _, err := v1.SHA256(bytes.NewReader(had))
			return h, warnings, err
		}
		if err := repo.PutManifest(ctx, tag, IndexType, want); err != nil {
			return v1.Hash{}, nil, err
		}
	}
	return v1.Hash{}, nil, fmt.Errorf("others went on changing it for %d rounds", maxRounds)
}

type updater struct {
	repo                 *registry.Repo
	tag, module, version string
	own                  []Entry
	round                int
}

// look gives the index as it should be, and as it is, which is complete if it has all that it should.
func (u *updater) look(ctx context.Context) (want, had []byte, complete bool, warnings []error, err error) {
	fail := func(err error) ([]byte, []byte, bool, []error, error) { return nil, nil, false, nil, err }
	digests, err := u.tagged(ctx)
	if err != nil {
		return fail(err)
	}
	var before Index
	_, had, err = u.repo.Manifest(ctx, u.tag)
	switch {
	case errors.Is(err, registry.ErrNotFound):
	case err != nil:
		return fail(err)
	default:
		var wrong []error
		before, wrong, err = parseIndex(had)
		if err != nil {
			return fail(fmt.Errorf("tag %q names something else: %w", u.tag, err))
		}
		if before.Module != u.module || before.Version != u.version {
			return fail(fmt.Errorf("tag %q names the index of %s %s: each module has a repository of its own", u.tag, before.Module, before.Version))
		}
		warnings = append(warnings, wrong...)
	}
	var mu sync.Mutex
	var union []Entry
	keep := func(e Entry, warning error) {
		mu.Lock()
		defer mu.Unlock()
		if warning != nil {
			warnings = append(warnings, warning)
			return
		}
		union = append(union, e)
	}
	known := map[string]Entry{}
	for _, e := range before.Entries {
		known[e.Tag] = e
	}
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(requests)
	for tag, digest := range digests {
		// What an index says of an artifact is kept as it is: else two versions of this program would go on correcting each other.
		if e, ok := known[tag]; ok && e.Digest == digest {
			if own, ok := u.ownEntry(digest); ok && u.round == 0 {
				e = own
			}
			keep(e, nil)
			continue
		}
		g.Go(func() error {
			e, err := u.entry(gctx, digest)
			if err == nil && e.Tag != tag {
				err = invalid("it is of %s %s, for %s", e.Module, e.Version, e.Tag)
			}
			if errors.Is(err, ErrInvalid) || errors.Is(err, registry.ErrNotFound) || errors.Is(err, registry.ErrAltered) ||
				errors.Is(err, registry.ErrRefused) {
				keep(e, fmt.Errorf("tag %q is left out of the index: %w", tag, err))
				return nil
			}
			if err == nil {
				keep(e, nil)
			}
			return err
		})
	}
	for tag, e := range known {
		if _, ok := digests[tag]; ok {
			continue
		}
		g.Go(func() error { // its tag was removed
			_, err := u.repo.Head(gctx, e.Digest.String())
			if errors.Is(err, registry.ErrNotFound) {
				return nil
			}
			if err == nil {
				keep(e, nil)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return fail(err)
	}
	slices.SortFunc(warnings, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	if more := len(warnings) - maxWarnings; more > 0 {
		warnings = append(warnings[:maxWarnings], fmt.Errorf("%d further entries or tags are left out of the index", more))
	}
	complete = had != nil
	for _, e := range union {
		complete = complete && known[e.Tag].Digest == e.Digest
	}
	want, err = newIndex(u.module, u.version, union)
	return want, had, complete, warnings, err
}

// tagged gives the digests of what the tags of the version's kernels name.
func (u *updater) tagged(ctx context.Context) (map[string]v1.Hash, error) {
	tags, err := u.repo.Tags(ctx)
	if err != nil {
		return nil, err
	}
	tags = slices.DeleteFunc(tags, func(tag string) bool {
		t, ok := ParseTag(tag)
		return !ok || t.Version != u.version || t.Release == ""
	})
	for _, e := range u.own { // whether or not the list has them yet
		if !slices.Contains(tags, e.Tag) {
			tags = append(tags, e.Tag)
		}
	}
	if len(tags) > maxKernels {
		return nil, fmt.Errorf("there are %d kernels of this version, more than %d: remove the tags of old ones", len(tags), maxKernels)
	}
	out := map[string]v1.Hash{}
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(requests)
	for _, tag := range tags {
		g.Go(func() error {
			d, err := u.repo.Head(ctx, tag)
			if errors.Is(err, registry.ErrNotFound) { // it was removed meanwhile
				return nil
			}
			if err != nil {
				return err
			}
			mu.Lock()
			defer mu.Unlock()
			out[tag] = d.Digest
			return nil
		})
	}
	return out, g.Wait()
}

// ownEntry gives the entry of what was pushed just now.
func (u *updater) ownEntry(digest v1.Hash) (Entry, bool) {
	i := slices.IndexFunc(u.own, func(e Entry) bool { return e.Digest == digest })
	if i < 0 {
		return Entry{}, false
	}
	return u.own[i], true
}

func (u *updater) entry(ctx context.Context, digest v1.Hash) (Entry, error) {
	if e, ok := u.ownEntry(digest); ok {
		return e, nil
	}
	e, err := readEntry(ctx, u.repo, digest.String())
	if err == nil && (e.Module != u.module || e.Version != u.version) {
		err = invalid("it is of %s %s", e.Module, e.Version)
	}
	return e, err
}
