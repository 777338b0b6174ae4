package rpm

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

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
	name  string // of the repository
	keep  string // folder of the cache
	bases []string
	date  time.Time
	list  listRef
}

// A view is what the mirrors have of a suite for an architecture now.
type view struct {
	suite, arch string
	found       []found
	until       time.Time // good until then within this process
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
	answers, errs := make([][]found, len(s.repos)), make([]error, len(s.repos))
	until := make([]time.Time, len(s.repos))
	var wg sync.WaitGroup
	for i, r := range s.repos {
		wg.Go(func() { answers[i], until[i], errs[i] = p.ask(ctx, s, r, roots, theirs) })
	}
	wg.Wait()
	for i, r := range s.repos {
		if errs[i] != nil {
			return nil, errs[i]
		}
		if len(answers[i]) == 0 && !r.optional {
			return nil, fmt.Errorf("no repository %s/%s for %s: use a mirror that has it (--mirror): %w",
				roots[0], r.at(theirs), arch, kernels.ErrNotFound)
		}
		v.found = append(v.found, answers[i]...)
		if until[i].Before(v.until) {
			v.until = until[i]
		}
	}
	slot.Value, slot.OK = v, true
	return v, nil
}

// ask asks the mirrors for a repository's repomd.xml. Those that have the same list of packages are one answer.
func (p *Provider) ask(ctx context.Context, s suite, r repository, roots []string, arch string) ([]found, time.Time, error) {
	keep := s.name + "-" + r.name + "-" + arch
	until := p.asker.Now().Add(repo.MaxAge)
	var bases []string
	for _, root := range roots {
		bases = append(bases, root+"/"+r.at(arch))
	}
	if r.listed {
		var err error
		if until, err = p.follow(ctx, keep, bases, arch); err != nil {
			return nil, until, err
		}
	}
	got, err := repo.Question[listRef]{
		Name: keep, Mirrors: bases, File: "repodata/repomd.xml", Limit: maxRepomd, Optional: true,
		Read: func(ctx context.Context, file []byte, beside func(string, int64) ([]byte, error)) (repo.Reading[listRef], error) {
			return p.readRepomd(file, beside)
		},
	}.Ask(ctx, p.asker)
	if err != nil {
		return nil, until, err
	}
	if got.Until.Before(until) {
		until = got.Until
	}
	var out []found
	for _, a := range got.Have {
		if i := slices.IndexFunc(out, func(f found) bool { return f.list.Digest == a.Value.Digest }); i >= 0 {
			out[i].bases = append(out[i].bases, a.Mirror)
			continue
		}
		out = append(out, found{name: r.name, keep: keep, bases: []string{a.Mirror}, date: a.Date, list: a.Value})
	}
	return out, until, nil
}

// follow puts the URL in the place of each base that a list there says, of which the first entry counts. Lists are not signed: they lead
// to what is.
func (p *Provider) follow(ctx context.Context, keep string, bases []string, arch string) (until time.Time, err error) {
	got, err := repo.Question[string]{
		Name: keep + "-list", Mirrors: slices.Clone(bases), File: "mirror.list", Limit: maxList, Optional: true,
		Read: func(_ context.Context, file []byte, _ func(string, int64) ([]byte, error)) (repo.Reading[string], error) {
			line, _, _ := strings.Cut(strings.TrimSpace(string(file)), "\n")
			line = strings.TrimRight(strings.ReplaceAll(strings.TrimSpace(line), "$basearch", arch), "/")
			u, err := url.Parse(line)
			if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
				return repo.Reading[string]{}, fmt.Errorf("%.200q is no URL of a mirror", line)
			}
			return repo.Reading[string]{Value: line}, nil
		},
	}.Ask(ctx, p.asker)
	for _, a := range got.Have {
		if i := slices.Index(bases, a.Mirror); i >= 0 {
			bases[i] = a.Value
		}
	}
	return got.Until, err
}

// readRepomd verifies a repomd.xml by its signature, which must be there where the distribution has them, and reads it.
func (p *Provider) readRepomd(file []byte, beside func(string, int64) ([]byte, error)) (repo.Reading[listRef], error) {
	var none repo.Reading[listRef]
	keys, err := p.keys()
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

// pool opens the lists of packages of a view.
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
