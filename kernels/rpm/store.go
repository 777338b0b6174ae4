package rpm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/mirror"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// The cache folder of a distribution, beside what package repo keeps there:
//
//	SUITE-REPOSITORY-ARCH/HASH.state  what is known of a mirror's repomd.xml, or, with -list behind ARCH, of its mirror.list
//	SUITE-REPOSITORY-ARCH/HASH.idx    the compact form of the list of packages with that SHA-256
const (
	maxRepomd    = 10 << 20 // bytes
	maxSignature = 1 << 20  // bytes
	maxList      = 4 << 10  // bytes of a mirror.list
)

// A found repository is one as one or more mirrors have it: with the same list of packages.
type found struct {
	name  string   // of the repository
	keep  string   // folder of the cache
	bases []string // of the repository at each mirror
	roots []string // of the suite there
	date  time.Time
	list  listRef
}

// A view is what the mirrors have of a suite for an architecture now.
type view struct {
	suite, arch string
	found       []found
	unread      []repo.Unread // of each mirror the first repository
	until       time.Time     // good until then within this process
}

// minor is a release within a suite, as folders of archives are named by: 9.3.
var minor = regexp.MustCompile(`^[0-9]+\.[0-9]+$`)

// roots gives the URLs that a suite's repositories are below at the mirrors. A mirror may be the archive, or the folder of one of its
// suites' releases; then it has none of the others.
func (s suite) roots(mirrors []string) []string {
	if s.folder == "" {
		return mirrors
	}
	own := path.Base(s.folder)
	var out []string
	for _, m := range mirrors {
		switch last := path.Base(m); {
		case last == own || strings.HasPrefix(last, s.name+".") && minor.MatchString(last):
			out = append(out, m)
		case !minor.MatchString(last):
			out = append(out, m+"/"+s.folder)
		}
	}
	return out
}

// view brings what is known of a suite up to date.
func (p *Provider) view(ctx context.Context, name, arch string) (*view, error) {
	i := slices.IndexFunc(p.distro.suites, func(s suite) bool { return s.name == name })
	if i < 0 {
		return nil, fmt.Errorf("no suite %q; known are %s: %w", name, strings.Join(p.Suites(), ", "), kernels.ErrNotFound)
	}
	s := p.distro.suites[i]
	theirs, ok := architectures[arch]
	if !ok {
		return nil, fmt.Errorf("no architecture %q: %w", arch, kernels.ErrNotFound)
	}
	if len(p.mirrors) == 0 {
		return nil, fmt.Errorf("%w: %s has no public mirror: give one with --mirror, as in --mirror %s=%s",
			kernels.ErrNoMirror, p.distro.name, p.distro.name, p.distro.give)
	}
	roots := s.roots(p.mirrors)
	if len(roots) == 0 {
		return nil, fmt.Errorf("none of the mirrors of %s has release %s: add one with --mirror: %w", p.distro.name, name, kernels.ErrNotFound)
	}
	slot := p.views.At(name + " " + arch)
	slot.Lock()
	defer slot.Unlock()
	if slot.OK && p.asker.Now().Before(slot.Value.until) {
		return slot.Value, nil
	}
	v := &view{suite: name, arch: theirs, until: p.asker.Now().Add(repo.MaxAge)}
	answers, errs := make([]*view, len(s.repos)), make([]error, len(s.repos))
	var wg sync.WaitGroup
	for i, r := range s.repos {
		wg.Go(func() { answers[i], errs[i] = p.ask(ctx, s, r, roots, theirs) })
	}
	wg.Wait()
	for i, r := range s.repos {
		if errs[i] != nil {
			return nil, errs[i]
		}
		if len(answers[i].found) == 0 && !r.optional && len(answers[i].unread) > 0 {
			return nil, answers[i].unread[0].Err
		}
		if len(answers[i].found) == 0 && !r.optional {
			return nil, fmt.Errorf("no repository %s/%s for %s: use a mirror that has it (--mirror): %w",
				roots[0], r.at(theirs), arch, kernels.ErrNotFound)
		}
		v.found = append(v.found, answers[i].found...)
		v.addUnread(answers[i].unread...)
		if answers[i].until.Before(v.until) {
			v.until = answers[i].until
		}
	}
	slot.Value, slot.OK = v, true
	return v, nil
}

// Unread implements kernels.Partial.
func (p *Provider) Unread(suite string) []error {
	var out []error
	for _, arch := range slices.Sorted(maps.Keys(architectures)) {
		slot := p.views.At(suite + " " + arch)
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

// answer gives what compute makes of a suite as it is now. A list that can't be had goes without, with a warning, where another mirror
// has one of the same repository.
func answer[T any](ctx context.Context, p *Provider, suite, arch string, compute func(*view) (T, error)) (T, error) {
	v, err := p.view(ctx, suite, arch)
	for {
		if err != nil {
			var none T
			return none, err
		}
		out, err := compute(v)
		lost, ok := errors.AsType[*lostError](err)
		if !ok {
			return out, v.note(err)
		}
		v = p.without(v, suite+" "+arch, lost)
	}
}

// addUnread keeps the first of each mirror.
func (v *view) addUnread(list ...repo.Unread) {
	for _, u := range list {
		if !slices.ContainsFunc(v.unread, func(have repo.Unread) bool { return have.Mirror == u.Mirror }) {
			v.unread = append(v.unread, u)
		}
	}
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

// lostError is the error of a list without which there are others of the same repository.
type lostError struct {
	found
	error
}

// without is a view that lacks a list, which takes the place of the old one.
func (p *Provider) without(v *view, key string, lost *lostError) *view {
	p.warnOnce(fmt.Sprintf("%v; going on with the archive's other mirrors", lost.error))
	next := *v
	next.unread = slices.Clone(v.unread)
	for _, root := range lost.roots {
		next.addUnread(repo.Unread{Mirror: root, Err: lost.error})
	}
	next.found = slices.DeleteFunc(slices.Clone(v.found), func(f found) bool { return f.name == lost.name && f.list == lost.list })
	slot := p.views.At(key)
	slot.Lock()
	defer slot.Unlock()
	if slot.Value == v {
		slot.Value = &next
	}
	return &next
}

// ask asks the mirrors for a repository's repomd.xml: the part of a view that is this repository's. Mirrors that have the same list of
// packages are one answer.
func (p *Provider) ask(ctx context.Context, s suite, r repository, roots []string, arch string) (*view, error) {
	keep := s.name + "-" + r.name + "-" + arch
	v := &view{until: p.asker.Now().Add(repo.MaxAge)}
	var bases []string
	for _, root := range roots {
		bases = append(bases, root+"/"+r.at(arch))
	}
	if r.listed {
		var err error
		if v.until, err = p.follow(ctx, keep, bases, arch); err != nil {
			return nil, err
		}
	}
	got, err := repo.Question[listRef]{
		Name: keep, Mirrors: bases, File: "repodata/repomd.xml", Limit: maxRepomd, Optional: true,
		Read: func(ctx context.Context, file []byte, beside func(string, int64) ([]byte, error)) (repo.Reading[listRef], error) {
			return p.readRepomd(s, file, beside)
		},
	}.Ask(ctx, p.asker)
	if err != nil {
		return nil, err
	}
	rootOf := func(base string) string {
		if i := slices.Index(bases, base); i >= 0 {
			return roots[i]
		}
		return base
	}
	for _, u := range got.Unread {
		v.addUnread(repo.Unread{Mirror: rootOf(u.Mirror), Err: u.Err})
	}
	if got.Until.Before(v.until) {
		v.until = got.Until
	}
	for _, a := range got.Have {
		if i := slices.IndexFunc(v.found, func(f found) bool { return f.list.Digest == a.Value.Digest }); i >= 0 {
			v.found[i].bases, v.found[i].roots = append(v.found[i].bases, a.Mirror), append(v.found[i].roots, rootOf(a.Mirror))
			continue
		}
		v.found = append(v.found, found{name: r.name, keep: keep, bases: []string{a.Mirror}, roots: []string{rootOf(a.Mirror)}, date: a.Date, list: a.Value})
	}
	return v, nil
}

// follow puts the URL in the place of each base that a list there says, of which the first entry counts. Lists are not signed: they lead
// to what is.
func (p *Provider) follow(ctx context.Context, keep string, bases []string, arch string) (until time.Time, err error) {
	got, err := repo.Question[string]{
		Name: keep + "-list", Mirrors: slices.Clone(bases), File: "mirror.list", Limit: maxList, Optional: true,
		Read: func(_ context.Context, file []byte, _ func(string, int64) ([]byte, error)) (repo.Reading[string], error) {
			line, err := readList(file, arch)
			return repo.Reading[string]{Value: line}, err
		},
	}.Ask(ctx, p.asker)
	for _, a := range got.Have {
		if i := slices.Index(bases, a.Mirror); i >= 0 {
			bases[i] = a.Value
		}
	}
	return got.Until, err
}

// readList reads the first entry of a mirror.list.
func readList(file []byte, arch string) (string, error) {
	line, _, _ := strings.Cut(strings.TrimSpace(string(file)), "\n")
	line = strings.TrimRight(strings.ReplaceAll(strings.TrimSpace(line), "$basearch", arch), "/")
	u, err := url.Parse(line)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return "", fmt.Errorf("%.200q is no URL of a mirror", line)
	}
	return line, nil
}

// Probe asks a mirror for an index of a suite, the newest that it has, and verifies its signature if there is to be one, which signed
// tells; it keeps nothing. The error doesn't name the mirror, whose URL may have a password.
func (p *Provider) Probe(ctx context.Context, m repo.Mirror) (signed bool, err error) {
	arch := architectures[kernels.HostArch()]
	err = errors.New("it has none of the releases that are known")
	for _, s := range p.distro.suites {
		for _, root := range s.roots([]string{m.URL}) {
			err = p.probe(ctx, s, m.URL, root+"/"+s.repos[0].at(arch), arch)
			if err == nil || !mirror.IsMissing(err) {
				return p.distro.signedIndexes, err
			}
		}
	}
	return false, err
}

func (p *Provider) probe(ctx context.Context, s suite, of, base, arch string) error {
	fetch := func(file string, limit int64) ([]byte, error) {
		got, err := p.asker.Net.Fetch(ctx, base+"/"+file, nil, limit)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", strings.TrimPrefix(strings.TrimPrefix(base, of)+"/"+file, "/"), err)
		}
		return got.Body, nil
	}
	if s.repos[0].listed {
		list, err := fetch("mirror.list", maxList)
		if err == nil {
			base, err = readList(list, arch)
		}
		if err != nil && !mirror.IsMissing(err) {
			return err
		}
	}
	file, err := fetch("repodata/repomd.xml", maxRepomd)
	if err != nil {
		return err
	}
	_, err = p.readRepomd(s, file, func(name string, limit int64) ([]byte, error) {
		got, err := fetch(name, limit)
		if mirror.IsMissing(err) {
			err = fmt.Errorf("%s %w", name, repo.ErrNotBeside)
		}
		return got, err
	})
	return err
}

// Keys are those that may sign packages and indexes.
func (p *Provider) Keys() ([]repo.Key, error) {
	list, err := p.keys()
	if err != nil {
		return nil, err
	}
	var out []repo.Key
	for _, e := range list {
		out = append(out, repo.KeyOf(e))
	}
	return out, nil
}

// signers are the keys that may sign a suite's indexes.
func (p *Provider) signers(s suite) (openpgp.EntityList, error) {
	keys, err := p.keys()
	if err != nil || s.signers == nil || p.asker.Keyring != nil {
		return keys, err
	}
	return slices.DeleteFunc(slices.Clone(keys), func(e *openpgp.Entity) bool {
		return !slices.Contains(s.signers, fmt.Sprintf("%X", e.PrimaryKey.Fingerprint))
	}), nil
}

// readRepomd verifies a repomd.xml by its signature, which must be there where the distribution has them, and reads it.
func (p *Provider) readRepomd(s suite, file []byte, beside func(string, int64) ([]byte, error)) (repo.Reading[listRef], error) {
	var none repo.Reading[listRef]
	keys, err := p.signers(s)
	if err != nil {
		return none, err
	}
	signature, err := beside("repodata/repomd.xml.asc", maxSignature)
	switch {
	case err == nil:
		if err := checkSignature(file, signature, keys, p.asker.Now); err != nil {
			return none, err
		}
	case p.distro.signedIndexes || !errors.Is(err, repo.ErrNotBeside):
		return none, err
	}
	r, err := parseRepomd(file)
	if err != nil {
		return none, err
	}
	if r.primary.Size == 0 {
		return none, errors.New("it doesn't say how large the list of packages is")
	}
	return repo.Reading[listRef]{Value: r.primary, Date: r.date}, nil
}

// key names an answer by what it is computed from.
func (v *view) key(d *distro, what string, more ...string) string {
	h := sha256.New()
	e := json.NewEncoder(h)
	e.Encode([]any{recipe, indexForm, d.name, v.suite, v.arch, what, more})
	for _, f := range v.found {
		e.Encode([]any{f.name, f.bases, f.list.Digest})
	}
	return hex.EncodeToString(h.Sum(nil)[:20])
}

// indexes says what is known of what a view is read from.
func (v *view) indexes() []kernels.Index {
	out := []kernels.Index{}
	for _, f := range v.found {
		for _, b := range f.bases {
			out = append(out, kernels.Index{Name: f.name, URL: mirror.Public(b), Date: f.date, Digest: f.list.Digest})
		}
	}
	return out
}

// pool opens the lists of packages of a view. Where one of them can't be had and another mirror has one of the same repository, it fails
// with a *lostError.
func (p *Provider) pool(ctx context.Context, v *view) (*pool, error) {
	return p.pools.Get(v.key(p.distro, "pool"), func() (*pool, error) {
		indexes, errs := make([]*index, len(v.found)), make([]error, len(v.found))
		var wg sync.WaitGroup
		slots := make(chan struct{}, 2) // a list that must be read in full takes some 50 MB
		for i, f := range v.found {
			wg.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				indexes[i], errs[i] = p.openIndex(ctx, f, v.arch)
			})
		}
		wg.Wait()
		var sources []source
		for i, f := range v.found {
			if errs[i] != nil && ctx.Err() == nil && slices.ContainsFunc(v.found, func(g found) bool { return g.name == f.name && g.list != f.list }) {
				return nil, &lostError{f, errs[i]}
			}
			if errs[i] != nil { // where all fail, they do so for the same reason
				return nil, errs[i]
			}
			for _, base := range f.bases {
				sources = append(sources, source{index: indexes[i], base: base})
			}
		}
		return newPool(v.arch, sources), nil
	})
}

// openIndex opens the compact form of a list of packages, which it makes if need be.
func (p *Provider) openIndex(ctx context.Context, f found, arch string) (*index, error) {
	file := p.asker.Keep.Path(f.keep, f.list.Digest.Hex[:32]+".idx")
	return p.open.Get(file, func() (*index, error) {
		x, err := readIndex(file, arch)
		if err == nil {
			return x, nil
		}
		if p.asker.Offline {
			return nil, fmt.Errorf("no usable index of %q for %s in the cache (%w): run once without --offline", f.name, arch, err)
		}
		lock, err := durable.Lock(ctx, p.asker.Keep.Path(f.keep, ".lock"), false)
		if err != nil {
			return nil, err
		}
		defer lock.Close()
		if x, err := readIndex(file, arch); err == nil {
			return x, nil
		}
		if err := p.download(ctx, file, f, arch); err != nil {
			return nil, err
		}
		p.asker.Keep.Prune(file, "", ".idx")
		return readIndex(file, arch)
	})
}

// readIndex opens a file that stays open, and readable if it is removed, for as long as the index is referenced.
func readIndex(file, arch string) (*index, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil {
		var x *index
		if x, err = openIndex(f, st.Size(), arch); err == nil {
			return x, nil
		}
	}
	f.Close()
	return nil, fmt.Errorf("read %q: %w", file, err)
}

// download fetches a list of packages and keeps its compact form in a file.
func (p *Provider) download(ctx context.Context, file string, f found, arch string) error {
	progress := func(done int64) { p.asker.Progress(f.keep, done, f.list.Size) }
	return p.asker.Get(ctx, repo.Pinned{What: f.keep, Paths: []string{f.list.Path}, Digest: f.list.Digest, Size: f.list.Size}, f.bases, progress,
		func(url string, text io.Reader) error {
			return p.asker.Keep.Write(file, func(w io.Writer) error {
				if err := buildIndex(w, text, arch); err != nil {
					return fmt.Errorf("make the compact index of %s: %w", url, err)
				}
				return nil
			})
		})
}
