package deb

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/mirror"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// The cache folder of a distribution:
//
//	POCKET/HASH.state       what is known of a pocket's InRelease at one mirror, as JSON after a line with its SHA-256
//	POCKET/ARCH-HASH.idx    the compact form of the index with that SHA-256
//	POCKET/COMPONENT-ARCH-HASH.idx  the same of a component other than the first
//	POCKET/ARCH-HASH.files  what is of use of the list of all packages' files with that SHA-256
//	memo/HASH               answers, by everything that they were computed from; same form as state
//	tmp/                    what is being written; who writes next removes what dead processes left there
//
// Each file appears whole, under its final name, and is made anew when it is damaged.

const maxRelease = 10 << 20 // bytes of an InRelease file

// signed is what is kept of a pocket's InRelease.
type signed struct {
	Indexes  map[string]indexRef `json:"indexes"`  // by indexKey
	Contents map[string]indexRef `json:"contents"` // the lists of files by architecture
}

// A part is what one mirror has of a pocket.
type part struct {
	pocket
	base string // the archive's URL there, without a slash at its end
	date time.Time
	signed
}

// A view is one suite as its mirrors have it now.
type view struct {
	distro *distro
	suite  string
	parts  []part        // in the order of the pockets, and of the mirrors of each
	unread []repo.Unread // of each mirror the first index
	until  time.Time     // good until then within this process
}

// view brings what is known of a suite up to date.
func (p *Provider) view(ctx context.Context, name string) (*view, error) {
	s, ok := p.distro.suite(name)
	if !ok {
		return nil, fmt.Errorf("no suite %q; known are %s: %w", name, strings.Join(p.Suites(), ", "), kernels.ErrNotFound)
	}
	slot := p.views.At(name)
	slot.Lock()
	defer slot.Unlock()
	now := p.opts.Now()
	if slot.OK && now.Before(slot.Value.until) {
		return slot.Value, nil
	}
	v := &view{distro: p.distro, suite: name, until: now.Add(repo.MaxAge)}
	answers, errs := make([]repo.Answers[signed], len(s.pockets)), make([]error, len(s.pockets))
	var wg sync.WaitGroup
	for i, pk := range s.pockets {
		wg.Go(func() { answers[i], errs[i] = p.question(pk, i > 0).Ask(ctx, p.asker) })
	}
	wg.Wait()
	for i, pk := range s.pockets {
		if errs[i] != nil {
			return nil, errs[i]
		}
		for _, a := range answers[i].Have {
			v.parts = append(v.parts, part{pk, a.Mirror, a.Date, a.Value})
		}
		if len(answers[i].Have) == 0 && strings.HasSuffix(pk.name, "-security") {
			p.opts.Warn(fmt.Sprintf("%s does not exist: security updates of it are left out",
				mirror.Public(p.bases[pk.archive][0])+"/"+pk.release()))
		}
		v.addUnread(answers[i].Unread...)
		if t := answers[i].Until; t.Before(v.until) {
			v.until = t
		}
	}
	slot.Value, slot.OK = v, true
	return v, nil
}

func (v *view) addUnread(list ...repo.Unread) {
	for _, u := range list {
		if !slices.ContainsFunc(v.unread, func(have repo.Unread) bool { return have.Mirror == u.Mirror }) {
			v.unread = append(v.unread, u)
		}
	}
}

// release is a pocket's signed file.
func (pk pocket) release() string { return "dists/" + pk.name + "/InRelease" }

func (p *Provider) question(pk pocket, optional bool) repo.Question[signed] {
	return repo.Question[signed]{Name: pk.name, Mirrors: p.bases[pk.archive], File: pk.release(), Limit: maxRelease, Form: "deb1", Optional: optional,
		Read: func(_ context.Context, file []byte, _ func(string, int64) ([]byte, error)) (repo.Reading[signed], error) {
			keys, err := p.keys()
			if err != nil {
				return repo.Reading[signed]{}, fmt.Errorf("read the keys of %s: %w", p.distro.name, err)
			}
			r, err := readRelease(file, p.distro.components, keys, p.opts.Now)
			if err != nil {
				return repo.Reading[signed]{}, err
			}
			if !r.isOf(pk) {
				return repo.Reading[signed]{}, fmt.Errorf("it is the index of %q, suite %q", r.codename, r.suite)
			}
			return repo.Reading[signed]{Value: signed{r.indexes, r.contents}, Date: r.date, ValidUntil: r.validUntil}, nil
		}}
}

// main are the parts of the first pocket.
func (v *view) main() []part {
	return slices.DeleteFunc(slices.Clone(v.parts), func(t part) bool { return t.pocket != v.parts[0].pocket })
}

// offers checks that the suite has an architecture.
func (v *view) offers(arch string) error {
	var have []string
	for _, t := range v.main() {
		for key := range t.Indexes {
			if !strings.Contains(key, "/") {
				have = append(have, key)
			}
		}
	}
	if slices.Contains(have, arch) {
		return nil
	}
	slices.Sort(have)
	return fmt.Errorf("no architecture %q; it has %s: %w", arch, strings.Join(slices.Compact(have), ", "), kernels.ErrNotFound)
}

// key names an answer by what it is computed from.
func (v *view) key(what, arch string, more ...string) string {
	h := sha256.New()
	e := json.NewEncoder(h)
	e.Encode([]any{recipe, indexMagic, v.distro.name, v.distro.tools, v.distro.prefer, v.distro.moot, v.suite, what, arch, more})
	for _, t := range v.parts {
		for n := range v.distro.components {
			e.Encode([]string{t.name, t.base, t.Indexes[indexKey(n, v.distro.components, arch)].SHA256})
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:20])
}

// note adds to an error which mirrors couldn't be looked into.
func (v *view) note(err error) error {
	if err == nil {
		return nil
	}
	for _, u := range v.unread {
		err = fmt.Errorf("%w; not looked into: %s", err, u)
	}
	return err
}

// Unread implements kernels.Partial.
func (p *Provider) Unread(suite string) []error {
	var out []error
	for q := p; q != nil; q = q.ports {
		slot := q.views.At(suite)
		slot.Lock()
		if slot.OK {
			for _, u := range slot.Value.unread {
				out = append(out, u)
			}
		}
		slot.Unlock()
	}
	return out
}

// answer gives what compute makes of a suite as it is now. An index that can't be had goes without, with a warning, where another mirror
// has one of the same pocket.
func answer[T any](ctx context.Context, p *Provider, suite, arch string, compute func(*view) (T, error)) (T, error) {
	var none T
	v, err := p.view(ctx, suite)
	if err != nil {
		return none, err
	}
	for {
		if err := v.offers(arch); err != nil {
			return none, v.note(err)
		}
		out, err := compute(v)
		lost, ok := errors.AsType[*lostError](err)
		if !ok {
			return out, v.note(err)
		}
		v = p.without(v, lost)
	}
}

// lostError is the error of indexes without which there are others of the same pockets.
type lostError struct {
	parts []part
	errs  []error // the same number
}

func (e *lostError) Error() string { return e.errs[0].Error() }

// without is a view that lacks some parts, which takes the place of the old one.
func (p *Provider) without(v *view, lost *lostError) *view {
	for _, err := range lost.errs {
		p.warnOnce(fmt.Sprintf("%v; going on with the archive's other mirrors", err))
	}
	next := *v
	next.unread = slices.Clone(v.unread)
	for i, t := range lost.parts {
		next.addUnread(repo.Unread{Mirror: t.base, Err: lost.errs[i]})
	}
	next.parts = slices.DeleteFunc(slices.Clone(v.parts), func(t part) bool {
		return slices.ContainsFunc(lost.parts, func(l part) bool { return l.pocket == t.pocket && l.base == t.base })
	})
	slot := p.views.At(v.suite)
	slot.Lock()
	defer slot.Unlock()
	if slot.Value == v {
		slot.Value = &next
	}
	return &next
}

// A listed index is one that several mirrors may have.
type listed struct {
	parts []part // of one pocket
	ref   indexRef
}

func (l listed) bases() []string {
	var out []string
	for _, t := range l.parts {
		out = append(out, t.base)
	}
	return out
}

// indexesOf gives each different index of parts once, in their order. of tells a part's.
func indexesOf(parts []part, of func(part) (indexRef, bool)) []listed {
	var out []listed
	for _, t := range parts {
		ref, ok := of(t)
		if !ok {
			continue
		}
		i := slices.IndexFunc(out, func(l listed) bool { return l.parts[0].pocket == t.pocket && l.ref == ref })
		if i < 0 {
			out = append(out, listed{[]part{t}, ref})
		} else {
			out[i].parts = append(out[i].parts, t)
		}
	}
	return out
}

// pool opens the indexes of a view for one architecture: of the first component, or wide of all. Where some can't be had beside which
// other mirrors have some, it fails with a *lostError.
func (p *Provider) pool(ctx context.Context, v *view, arch string, wide bool) (*pool, error) {
	slot := p.pools.At(v.key("pool", arch, strconv.FormatBool(wide)))
	slot.Lock()
	defer slot.Unlock()
	if slot.OK {
		return slot.Value, nil
	}
	type opened struct {
		listed
		component int
		key       string
		index     *index
		err       error
	}
	var all []*opened
	for n := range v.distro.components {
		if n > 0 && !wide {
			break
		}
		key := indexKey(n, v.distro.components, arch)
		for _, l := range indexesOf(v.parts, func(t part) (indexRef, bool) { ref, ok := t.Indexes[key]; return ref, ok }) {
			all = append(all, &opened{listed: l, component: n, key: key})
		}
	}
	var wg sync.WaitGroup
	for _, o := range all {
		wg.Go(func() { o.index, o.err = p.openIndex(ctx, o.listed, o.key, arch) })
	}
	wg.Wait()
	var sources []source
	lost := &lostError{}
	for _, o := range all {
		if o.err == nil {
			sources = append(sources, source{o.index, o.bases(), o.parts[0].backports || o.component > 0})
			continue
		}
		_, local := errors.AsType[*os.PathError](o.err)
		beside := slices.ContainsFunc(all, func(b *opened) bool { return b.err == nil && b.key == o.key && b.parts[0].pocket == o.parts[0].pocket })
		if local || !beside || ctx.Err() != nil {
			return nil, o.err
		}
		for _, t := range o.parts {
			lost.parts, lost.errs = append(lost.parts, t), append(lost.errs, o.err)
		}
	}
	if len(lost.errs) > 0 {
		return nil, lost
	}
	slot.Value, slot.OK = newPool(arch, sources), true
	return slot.Value, nil
}

// openIndex opens the compact form of an index, which it makes if need be.
func (p *Provider) openIndex(ctx context.Context, l listed, key, arch string) (*index, error) {
	pk := l.parts[0].pocket
	prefix := strings.ReplaceAll(key, "/", "-") + "-" // no component begins with an architecture
	path := p.keep.Path(pk.name, prefix+l.ref.SHA256[:32]+".idx")
	slot := p.index.At(path)
	slot.Lock()
	defer slot.Unlock()
	if slot.OK {
		return slot.Value, nil
	}
	x, err := readIndex(path)
	if err == nil {
		slot.Value, slot.OK = x, true
		return x, nil
	}
	if p.opts.Offline {
		return nil, fmt.Errorf("no usable index of %q for %s in the cache (%w): run once without --offline", pk.name, key, err)
	}
	lock, err := durable.Lock(ctx, p.keep.Path(pk.name, ".lock-"+prefix+l.ref.SHA256[:32]), false)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if x, err = readIndex(path); err != nil {
		if err := p.download(ctx, path, l, key, arch); err != nil {
			return nil, err
		}
		if x, err = readIndex(path); err != nil {
			return nil, err
		}
		p.keep.Prune(path, prefix, ".idx")
	}
	slot.Value, slot.OK = x, true
	return x, nil
}

// readIndex opens a file that stays open, and readable if it is removed, for as long as the index is referenced.
func readIndex(path string) (*index, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	x, err := openIndex(f, st.Size())
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("read %q: %w", path, err)
	}
	return x, nil
}

// download fetches an index and keeps its compact form at path.
func (p *Provider) download(ctx context.Context, path string, l listed, key, arch string) error {
	what := l.parts[0].name + " " + key
	return p.fetchIndex(ctx, what, l, func(done int64) { p.opts.Progress(what, done, l.ref.Size) }, func(url string, text io.Reader) error {
		return p.keep.Write(path, func(w io.Writer) error {
			if err := buildIndex(w, text, arch); err != nil {
				return fmt.Errorf("make the compact index of %s: %w", url, err)
			}
			return nil
		})
	})
}

// fetchIndex fetches an index, checks it against the signed release file, and hands its text to use.
func (p *Provider) fetchIndex(ctx context.Context, what string, l listed, progress func(done int64), use func(url string, text io.Reader) error) error {
	dir := "dists/" + l.parts[0].name + "/"
	paths := []string{dir + l.ref.Path}
	if l.ref.ByHash {
		paths = []string{dir + l.ref.Path[:strings.LastIndexByte(l.ref.Path, '/')+1] + "by-hash/SHA256/" + l.ref.SHA256, dir + l.ref.Path}
	}
	return p.asker.Get(ctx, repo.Pinned{What: what, Paths: paths, Size: l.ref.Size, Digest: v1.Hash{Algorithm: "sha256", Hex: l.ref.SHA256}},
		l.bases(), progress, use)
}

// Indexes implements kernels.Provider. It names what is read of the first component.
func (p *Provider) Indexes(ctx context.Context, suite, arch string) ([]kernels.Index, error) {
	out, err := answer(ctx, p.of(arch), suite, arch, func(v *view) ([]kernels.Index, error) {
		var out []kernels.Index
		for _, t := range v.parts {
			if ref, ok := t.Indexes[arch]; ok {
				out = append(out, kernels.Index{Archive: t.archive, Name: t.name, URL: mirror.Public(t.base), Date: t.date,
					Digest: v1.Hash{Algorithm: "sha256", Hex: ref.SHA256}})
			}
		}
		return out, nil
	})
	if err != nil {
		return nil, fmt.Errorf("indexes of %s/%s %s: %w", p.distro.name, suite, arch, err)
	}
	return out, nil
}
