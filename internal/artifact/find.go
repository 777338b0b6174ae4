package artifact

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"

	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
)

// Want is the kernel that an artifact is looked for. Distro, Suite and Release are needed: two kernels of one release, of different
// distributions, take different modules.
type Want struct {
	Distro, Suite, Release string
	Arch                   string  // any if empty
	Symvers                v1.Hash // of the host's Module.symvers; any if it is the zero value
}

func (w Want) String() string { return w.Distro + "/" + w.Suite + ":" + w.Release }

func (w Want) isFor(k Kernel) bool {
	return w.Distro == k.Distro && w.Suite == k.Suite && w.Release == k.Release && (w.Arch == "" || sameArch(w.Arch, k.Arch))
}

// NoMatchError says that there is no artifact for a kernel. It wraps registry.ErrNotFound.
type NoMatchError struct {
	Where string // the repository
	Want  Want
	// Other are entries for that kernel that can't be taken: of another architecture, or built against headers with another
	// Module.symvers than the host's.
	Other []Entry
	Have  []Entry // all that the index has
}

func (e *NoMatchError) Error() string {
	text := fmt.Sprintf("%q has no artifact for %s", e.Where, e.Want)
	if len(e.Other) > 0 && (e.Want.Arch == "" || sameArch(e.Other[0].Kernel.Arch, e.Want.Arch)) {
		return fmt.Sprintf("%s with the Module.symvers of this host, %s: what it has was built against headers %.200q with %s",
			text, e.Want.Symvers, cmp.Or(e.Other[0].Headers, "of an unknown version"), said(e.Other[0].Symvers))
	}
	if len(e.Other) > 0 {
		return fmt.Sprintf("%s on %s, but for %s", text, e.Want.Arch, e.Other[0].Kernel.Arch)
	}
	if len(e.Have) == 1 {
		return text + "; it has artifacts for 1 other kernel"
	}
	return fmt.Sprintf("%s; it has artifacts for %d other kernels", text, len(e.Have))
}

func said(h v1.Hash) string {
	if h == (v1.Hash{}) {
		return "none"
	}
	return h.String()
}

func (e *NoMatchError) Unwrap() error { return registry.ErrNotFound }

// VersionsError says that a version must be named, and which there are.
type VersionsError struct {
	Where    string
	Versions []string // sorted
}

func (e *VersionsError) Error() string {
	if len(e.Versions) == 0 {
		return fmt.Sprintf("%q has no artifacts", e.Where)
	}
	return fmt.Sprintf("%q has several versions: name one of %s", e.Where, strings.Join(e.Versions, ", "))
}

func (e *VersionsError) Unwrap() error { return registry.ErrNotFound }

// ReadIndex reads the index that an identifier names: a version, a tag or a digest. If it is empty, that of the only version.
func ReadIndex(ctx context.Context, repo *registry.Repo, identifier string) (Index, error) {
	identifier, err := resolve(ctx, repo, identifier)
	if err != nil {
		return Index{}, err
	}
	return readIndex(ctx, repo, identifier)
}

func readIndex(ctx context.Context, repo *registry.Repo, identifier string) (Index, error) {
	fail := func(err error) (Index, error) {
		return Index{}, fmt.Errorf("%q in %q: %w", identifier, repo.Name(), err)
	}
	d, raw, err := repo.Manifest(ctx, identifier)
	if err != nil {
		return Index{}, err
	}
	if !d.MediaType.IsIndex() {
		return fail(fmt.Errorf("%w: %w: it is not an index but a %q", ErrInvalid, errForeign, d.MediaType))
	}
	idx, wrong, err := parseIndex(raw)
	if err == nil && len(wrong) > 0 {
		err = wrong[0]
	}
	if err == nil {
		if t, ok := ParseTag(identifier); ok && t.Release == "" && t.Version != idx.Version {
			err = fmt.Errorf("%w: %w: it is the index of version %q", ErrInvalid, errForeign, idx.Version)
		}
	}
	if err != nil {
		return fail(err)
	}
	return idx, nil
}

// resolve gives the tag, or the digest, of what was named.
func resolve(ctx context.Context, repo *registry.Repo, identifier string) (string, error) {
	if _, err := v1.NewHash(identifier); err == nil {
		return identifier, nil
	}
	if _, ok := ParseTag(identifier); ok {
		return identifier, nil
	}
	if identifier != "" {
		return VersionTag(identifier)
	}
	tags, err := repo.Tags(ctx)
	if err != nil {
		return "", err
	}
	// An artifact whose index isn't there yet tells of a version, too.
	versions := map[string]bool{}
	for _, tag := range tags {
		if t, ok := ParseTag(tag); ok && t.Release != "" {
			versions[t.Version] = true
		}
	}
	// Some clients copy an index without the tags of its kernels.
	if len(versions) == 0 && len(tags) <= maxListed {
		for _, tag := range tags {
			t, ok := ParseTag(tag)
			if !ok {
				continue
			}
			switch idx, err := readIndex(ctx, repo, tag); {
			case err == nil && idx.Version == t.Version:
				versions[t.Version] = true
			case err == nil, errors.Is(err, errForeign), errors.Is(err, ErrInvalid), errors.Is(err, registry.ErrNotFound):
			default:
				return "", err
			}
		}
	}
	e := &VersionsError{Where: repo.Name()}
	for v := range versions {
		e.Versions = append(e.Versions, v)
	}
	if len(e.Versions) != 1 {
		slices.Sort(e.Versions)
		return "", e
	}
	return VersionTag(e.Versions[0])
}

// Find gives the artifact for a kernel, below what an identifier names: a version, the tag or digest of an index, or the tag or
// digest of the artifact itself. If it is empty, the only version. Its manifest has been read, and says what the index says. The image
// is as Repo.Image gives it. If there is none, the error is a *NoMatchError.
func Find(ctx context.Context, repo *registry.Repo, identifier string, want Want) (Entry, v1.Image, error) {
	fail := func(err error) (Entry, v1.Image, error) { return Entry{}, nil, err }
	if want.Distro == "" || want.Suite == "" || want.Release == "" {
		return fail(fmt.Errorf("look for an artifact in %q: for which kernel? It takes a distribution, a suite and a release", repo.Name()))
	}
	identifier, err := resolve(ctx, repo, identifier)
	if err != nil {
		return fail(err)
	}
	var e Entry
	var img v1.Image
	tag, _ := ParseTag(identifier)
	idx, missing := readIndex(ctx, repo, identifier)
	switch err := missing; {
	case err == nil:
		if tag.Version = idx.Version; identifier == idx.Digest.String() {
			tag.Version = "" // what a digest names has nothing besides
		}
	case errors.Is(err, errForeign) && (tag.Release != "" || tag == Tag{}): // an artifact was named
		if e, img, err = readImage(ctx, repo, identifier); err != nil {
			return fail(err)
		}
		idx.Entries = []Entry{e}
		tag, missing = Tag{}, nil
	case !errors.Is(err, registry.ErrNotFound) || tag.Version == "" || tag.Release != "":
		return fail(err)
	}
	none := &NoMatchError{Where: repo.Name(), Want: want, Have: idx.Entries}
	e, ok := none.choose(idx.Entries)
	if !ok && len(none.Other) == 0 && tag.Version != "" {
		// Whoever pushed the artifact may not have come to the index.
		kernel, err := kernelTag(tag.Version, Kernel{want.Distro, want.Suite, cmp.Or(want.Arch, ImpliedArch(want.Release)), want.Release})
		if err != nil {
			return fail(err)
		}
		switch e, img, err = readImage(ctx, repo, kernel); {
		case errors.Is(err, registry.ErrNotFound):
			return fail(cmp.Or(missing, error(none)))
		case err != nil:
			return fail(err)
		case e.Tag != kernel || idx.Module != "" && e.Module != idx.Module:
			return fail(fmt.Errorf("%q in %q: %w", kernel, repo.Name(), invalid("it is of %s %s, for %s", e.Module, e.Version, e.Tag)))
		}
		e, ok = none.choose([]Entry{e})
	}
	if !ok {
		return fail(none)
	}
	if img == nil {
		entry := e
		if e, img, err = readImage(ctx, repo, e.Digest.String()); err != nil {
			return fail(err)
		}
		if !entry.sameAs(e) {
			return fail(fmt.Errorf("%s in %q: %w", e.Digest, repo.Name(), invalid("it is not what the index %s says of it", idx.Digest)))
		}
	}
	return e, img, nil
}

// choose gives the entry that is wanted, and keeps those that are nearly.
func (n *NoMatchError) choose(entries []Entry) (Entry, bool) {
	anyArch := n.Want
	anyArch.Arch = ""
	for _, e := range entries {
		if n.Want.isFor(e.Kernel) && (n.Want.Symvers == v1.Hash{} || n.Want.Symvers == e.Symvers) {
			return e, true
		}
		if anyArch.isFor(e.Kernel) {
			n.Other = append(n.Other, e)
		}
	}
	// That of the architecture which is asked for says best why it isn't taken.
	slices.SortStableFunc(n.Other, func(a, b Entry) int {
		x, y := n.Want.isFor(a.Kernel), n.Want.isFor(b.Kernel)
		switch {
		case x == y:
			return 0
		case x:
			return -1
		}
		return 1
	})
	return Entry{}, false
}

// Listed is an artifact of a repository.
type Listed struct {
	Entry
	Indexed bool      // whether its version's index has it
	Created time.Time // of its log, if Describe was asked and found one
	Test    Test      // the newest one, without its record, likewise
	Err     error     // Tag can't be read: nothing else is set
}

// List reads no more than that.
const (
	maxListed      = 4096     // tags
	maxListedBytes = 64 << 20 // of annotations; some 60,000 artifacts have as much
)

// List gives all artifacts of a repository, by version and then as an index has them: those that the versions' indexes have, and those
// that have a tag but aren't in an index. Other things that are in the repository are left out.
func List(ctx context.Context, repo *registry.Repo) ([]Listed, error) {
	tags, err := repo.Tags(ctx)
	if err != nil {
		return nil, err
	}
	tags = slices.DeleteFunc(tags, func(tag string) bool { _, ok := ParseTag(tag); return !ok })
	if len(tags) > maxListed {
		return nil, fmt.Errorf("list %q: %w: it has %d tags, more than %d", repo.Name(), registry.ErrRefused, len(tags), maxListed)
	}
	var size atomic.Int64
	read := func(kernels bool, one func(ctx context.Context, tag string) ([]Listed, error)) ([]Listed, error) {
		lists := make([][]Listed, len(tags))
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(requests)
		for i, tag := range tags {
			if t, _ := ParseTag(tag); (t.Release != "") != kernels {
				continue
			}
			g.Go(func() error {
				list, err := one(gctx, tag)
				for _, l := range list {
					for k, v := range l.written.Annotations {
						size.Add(int64(len(k) + len(v)))
					}
				}
				switch {
				case size.Load() > maxListedBytes:
					return fmt.Errorf("list %q: %w: its indexes say more than %d bytes", repo.Name(), registry.ErrRefused, maxListedBytes)
				case errors.Is(err, errForeign), errors.Is(err, registry.ErrNotFound): // not ours, or removed meanwhile
				case errors.Is(err, ErrInvalid), errors.Is(err, registry.ErrAltered):
					lists[i] = []Listed{{Entry: Entry{Tag: tag}, Err: err}}
				case err != nil:
					return err
				default:
					lists[i] = list
				}
				return nil
			})
		}
		err := g.Wait()
		return slices.Concat(lists...), err
	}
	all, err := read(false, func(ctx context.Context, tag string) ([]Listed, error) {
		idx, err := readIndex(ctx, repo, tag)
		var list []Listed
		for _, e := range idx.Entries {
			list = append(list, Listed{Entry: e, Indexed: true})
		}
		return list, err
	})
	if err != nil {
		return nil, err
	}
	indexed := map[string]bool{}
	for _, l := range all {
		indexed[l.Tag] = l.Err == nil
	}
	rest, err := read(true, func(ctx context.Context, tag string) ([]Listed, error) {
		if indexed[tag] {
			return nil, nil
		}
		e, err := readEntry(ctx, repo, tag)
		if err == nil && e.Tag != tag {
			err = fmt.Errorf("%q in %q: %w", tag, repo.Name(), invalid("it is of %s %s, for %s", e.Module, e.Version, e.Tag))
		}
		return []Listed{{Entry: e}}, err
	})
	all = append(all, rest...)
	slices.SortStableFunc(all, func(a, b Listed) int {
		return cmp.Or(strings.Compare(a.Version, b.Version), compareEntries(a.Entry, b.Entry))
	})
	return all, err
}

// Describe looks up what is known of artifacts beside themselves: when they were made, by what their logs say, as an artifact itself has
// no date, since the same build gives the same bytes; and what came of their last test.
func Describe(ctx context.Context, repo *registry.Repo, list []Listed) error {
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(requests)
	for i := range list {
		l := &list[i]
		if l.Err != nil {
			continue
		}
		g.Go(func() error {
			have, err := candidates(gctx, repo, l.Digest, []string{LogType, TestType})
			if err != nil {
				return err
			}
			for _, c := range have[LogType] {
				if attachments[0].check(c, l.Meta) == nil {
					l.Created = c.created()
					break
				}
			}
			if tests := testsOf(have[TestType]); len(tests) > 0 {
				l.Test = tests[0].Test
			}
			return nil
		})
	}
	return g.Wait()
}
