package deb

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/internal/decompress"
	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/mirror"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// The cache folder of a distribution:
//
//	POCKET/state            what is known of a pocket's InRelease, as JSON after a line with its SHA-256
//	POCKET/ARCH-HASH.idx    the compact form of the index with that SHA-256
//	POCKET/COMPONENT-ARCH-HASH.idx  the same of a component other than the first
//	POCKET/ARCH-HASH.files  what is of use of the list of all packages' files with that SHA-256
//	memo/HASH               answers, by everything that they were computed from; same form as state
//	tmp/                    what is being written; who writes next removes what dead processes left there
//
// Each file appears whole, under its final name, and is made anew when it is damaged.
const (
	maxAge     = 6 * time.Hour      // an index is not asked for again before
	maxHeldAge = 7 * 24 * time.Hour // without Valid-Until, an index is not used for longer when the mirror fails
	maxSkew    = 24 * time.Hour     // how far in the future an index may be dated
	maxMemoAge = 30 * 24 * time.Hour

	maxRelease = 10 << 20  // bytes of an InRelease file
	maxPacked  = 256 << 20 // bytes of a compressed index
	maxText    = 2 << 30   // bytes of an index's text
)

// state is what is kept of a pocket's InRelease.
type state struct {
	Base         string              `json:"base"`    // the archive's URL that it came from
	Checked      time.Time           `json:"checked"` // when the mirror was last asked
	Missing      bool                `json:"missing"` // the mirror has no such pocket
	ETag         string              `json:"etag"`
	LastModified string              `json:"last_modified"`
	Date         time.Time           `json:"date"`
	ValidUntil   time.Time           `json:"valid_until"`
	Expired      bool                `json:"expired"`  // it was past that already when it came
	Indexes      map[string]indexRef `json:"indexes"`  // by architecture
	Contents     map[string]indexRef `json:"contents"` // the same of the lists of files; nil: not known
}

// A view is one suite's pockets as they are now.
type view struct {
	distro  *distro
	suite   string
	pockets []pocket
	states  []*state
	bases   []string
	until   time.Time // good until then within this process
}

// view brings the state of all pockets of a suite up to date.
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
	v := &view{distro: p.distro, suite: name, until: now.Add(maxAge)}
	states, errs := make([]*state, len(s.pockets)), make([]error, len(s.pockets))
	var wg sync.WaitGroup
	for i, pk := range s.pockets {
		wg.Go(func() { states[i], errs[i] = p.pocket(ctx, pk, i == 0) })
	}
	wg.Wait()
	for i, pk := range s.pockets {
		if errs[i] != nil {
			return nil, errs[i]
		}
		if states[i].Missing {
			continue
		}
		v.pockets = append(v.pockets, pk)
		v.states = append(v.states, states[i])
		v.bases = append(v.bases, p.bases[pk.archive])
		if t := states[i].Checked.Add(maxAge); t.After(now) && t.Before(v.until) {
			v.until = t
		}
	}
	slot.Value, slot.OK = v, true
	return v, nil
}

// offers checks that the suite has an architecture.
func (v *view) offers(arch string) error {
	if _, ok := v.states[0].Indexes[arch]; !ok {
		have := slices.DeleteFunc(slices.Sorted(maps.Keys(v.states[0].Indexes)), func(key string) bool { return strings.Contains(key, "/") })
		return fmt.Errorf("no architecture %q; it has %s: %w", arch, strings.Join(have, ", "), kernels.ErrNotFound)
	}
	return nil
}

// key names an answer by what it is computed from.
func (v *view) key(what, arch string, more ...string) string {
	h := sha256.New()
	e := json.NewEncoder(h)
	e.Encode([]any{recipe, indexMagic, v.distro.name, v.distro.tools, v.distro.prefer, v.distro.moot, v.suite, what, arch, more})
	for i, pk := range v.pockets {
		for n := range v.distro.components {
			e.Encode([]string{pk.name, v.bases[i], v.states[i].Indexes[indexKey(n, v.distro.components, arch)].SHA256})
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:20])
}

// pocket gives a pocket's state, asking the mirror if it is time to.
func (p *Provider) pocket(ctx context.Context, pk pocket, main bool) (*state, error) {
	path, base, start := p.keep.Path(pk.name, "state"), p.bases[pk.archive], p.opts.Now()
	url := base + "/dists/" + pk.name + "/InRelease"
	held := p.readState(path)
	if p.opts.Offline {
		if held == nil {
			return nil, fmt.Errorf("no index of %q in the cache: run once without --offline", pk.name)
		}
		return held, p.valid(held, pk, url)
	}
	fresh := func() bool {
		age := start.Sub(held.Checked)
		return held.Base == base && (held.Missing || held.Contents != nil) && age >= 0 && age < maxAge && (held.Expired || !held.expired(start))
	}
	if held != nil && !p.opts.Refresh && fresh() {
		return held, p.valid(held, pk, url)
	}
	lock, err := durable.Lock(ctx, p.keep.Path(pk.name, ".lock"), false)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if again := p.readState(path); again != nil { // another process may have asked while this one waited
		asked := held == nil || again.Checked.After(held.Checked)
		if held = again; asked && fresh() && (!p.opts.Refresh || !held.Checked.Before(start)) {
			return held, p.valid(held, pk, url)
		}
	}
	next, err := p.ask(ctx, pk, held, base, url)
	if err == nil {
		next.Expired = next.expired(start) // so that it is not fetched again only to be refused again
		if err := p.keep.WriteJSON(path, next); err != nil {
			return nil, err
		}
		return next, p.valid(next, pk, url)
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if mirror.IsMissing(err) && !main && (held == nil || held.Missing || !p.usable(held)) {
		next = &state{Base: base, Checked: start, Missing: true}
		if held != nil {
			next.Date = held.Date // what comes back may not be older
		}
		if err := p.keep.WriteJSON(path, next); err != nil {
			return nil, err
		}
		return next, p.valid(next, pk, url)
	}
	if held != nil && p.usable(held) {
		p.opts.Warn(fmt.Sprintf("%v; using what was fetched on %s", err, day(held.Checked)))
		return held, p.valid(held, pk, url)
	}
	return nil, err
}

func (p *Provider) readState(path string) *state {
	s := &state{}
	if !p.keep.ReadJSON(path, s) {
		return nil
	}
	return s
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

func (s *state) expired(now time.Time) bool {
	return !s.Missing && !s.ValidUntil.IsZero() && now.After(s.ValidUntil)
}

// valid refuses an expired index, or warns of it. It also warns, at every run, of security updates that aren't there.
func (p *Provider) valid(s *state, pk pocket, url string) error {
	if s.Missing && strings.HasSuffix(pk.archive, "-security") {
		p.opts.Warn(fmt.Sprintf("%s does not exist: security updates of it are left out", url))
	}
	if !s.expired(p.opts.Now()) {
		return nil
	}
	if !p.opts.AcceptExpired {
		return fmt.Errorf("the index of %q %w on %s (%s): use another mirror, or accept it with --accept-expired",
			pk.name, kernels.ErrExpired, day(s.ValidUntil), url)
	}
	p.opts.Warn(fmt.Sprintf("the index of %q expired on %s and is used all the same", pk.name, day(s.ValidUntil)))
	return nil
}

// advice says what to do about a failed request.
func advice(err error) string {
	if _, local := errors.AsType[*os.PathError](err); local {
		return "make room for the cache, or use another folder (--cache-dir)"
	}
	if mirror.IsMissing(err) {
		return "use a mirror that has it (--mirror)"
	}
	if errors.Is(err, mirror.ErrTooLarge) {
		return "try again (the mirror may be updating), or use another mirror (--mirror)"
	}
	return "check the network and the mirror (--mirror)"
}

// usable tells whether an index from before may stand in for one that cannot be had now.
func (p *Provider) usable(s *state) bool {
	switch now := p.opts.Now(); {
	case p.opts.AcceptExpired:
		return true
	case s.ValidUntil.IsZero():
		return now.Sub(s.Checked) < maxHeldAge
	default:
		return !now.After(s.ValidUntil)
	}
}

// ask fetches a pocket's InRelease unless it is the one that is held, and checks everything but its expiry.
func (p *Provider) ask(ctx context.Context, pk pocket, held *state, base, url string) (*state, error) {
	header := http.Header{"Cache-Control": {"max-age=0"}} // a proxy on the way is to ask the mirror
	if held != nil && held.Base == base && !held.Missing && held.Contents != nil {
		if held.ETag != "" {
			header.Set("If-None-Match", held.ETag)
		}
		if held.LastModified != "" {
			header.Set("If-Modified-Since", held.LastModified)
		}
	}
	now := p.opts.Now()
	got, err := p.net.Fetch(ctx, url, header, maxRelease)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: %w: %s", url, err, advice(err))
	}
	if got.NotModified {
		if held == nil || len(header) == 1 {
			return nil, fmt.Errorf("fetch %s: the mirror answers 304 to an unconditional request: use another mirror", url)
		}
		next := *held
		next.Checked = now // its date cannot be newer than what is held
		return &next, nil
	}
	keys, err := p.keys()
	if err != nil {
		return nil, fmt.Errorf("read the keys of %s: %w", p.distro.name, err)
	}
	r, err := readRelease(got.Body, p.distro.components, keys, p.opts.Now)
	if err != nil {
		return nil, repo.Refuse(fmt.Errorf("refused %s: %w: use another mirror", url, err))
	}
	switch {
	case !r.isOf(pk):
		return nil, repo.Refuse(fmt.Errorf("refused %s: it is the index of %q, suite %q: use another mirror", url, r.codename, r.suite))
	case r.date.After(now.Add(maxSkew)):
		return nil, fmt.Errorf("refused %s: it is dated %s, in the future: check this machine's clock", url, day(r.date))
	case held != nil && r.date.Before(held.Date):
		return nil, repo.Refuse(fmt.Errorf("refused %s: it is of %s, older than the one of %s that was seen before: use another mirror",
			url, day(r.date), day(held.Date)))
	}
	return &state{Base: base, Checked: now, ETag: got.Header.Get("ETag"), LastModified: got.Header.Get("Last-Modified"),
		Date: r.date, ValidUntil: r.validUntil, Indexes: r.indexes, Contents: r.contents}, nil
}

// pool opens the indexes of a view for one architecture: of the first component, or wide of all.
func (p *Provider) pool(ctx context.Context, v *view, arch string, wide bool) (*pool, error) {
	slot := p.pools.At(v.key("pool", arch, strconv.FormatBool(wide)))
	slot.Lock()
	defer slot.Unlock()
	if slot.OK {
		return slot.Value, nil
	}
	components := len(v.distro.components)
	if !wide {
		components = 1
	}
	n := components * len(v.pockets)
	sources, errs := make([]source, n), make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		component, at := i/len(v.pockets), i%len(v.pockets)
		key, pk := indexKey(component, v.distro.components, arch), v.pockets[at]
		ref, ok := v.states[at].Indexes[key]
		if !ok {
			continue
		}
		wg.Go(func() {
			var x *index
			x, errs[i] = p.openIndex(ctx, pk, v.bases[at], key, arch, ref)
			sources[i] = source{x, v.bases[at], pk.backports || component > 0}
		})
	}
	wg.Wait()
	for _, err := range errs { // where all fail, they do so for the same reason
		if err != nil {
			return nil, err
		}
	}
	sources = slices.DeleteFunc(sources, func(s source) bool { return s.index == nil })
	slot.Value, slot.OK = newPool(arch, sources), true
	return slot.Value, nil
}

// openIndex opens the compact form of an index, which it makes if need be.
func (p *Provider) openIndex(ctx context.Context, pk pocket, base, key, arch string, ref indexRef) (*index, error) {
	prefix := strings.ReplaceAll(key, "/", "-") + "-" // no component begins with an architecture
	path := p.keep.Path(pk.name, prefix+ref.SHA256[:32]+".idx")
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
	lock, err := durable.Lock(ctx, p.keep.Path(pk.name, ".lock"), false)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if x, err = readIndex(path); err != nil {
		if err := p.download(ctx, path, pk, base, key, arch, ref); err != nil {
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
func (p *Provider) download(ctx context.Context, path string, pk pocket, base, key, arch string, ref indexRef) error {
	what := pk.name + " " + key
	return p.fetchIndex(ctx, what, pk, base, ref, func(done int64) { p.opts.Progress(what, done, ref.Size) }, func(url string, text io.Reader) error {
		return p.keep.Write(path, func(w io.Writer) error {
			if err := buildIndex(w, text, arch); err != nil {
				return fmt.Errorf("make the compact index of %s: %w", url, err)
			}
			return nil
		})
	})
}

// fetchIndex fetches an index, checks it against the signed release file, and hands its text to use.
func (p *Provider) fetchIndex(ctx context.Context, what string, pk pocket, base string, ref indexRef, progress func(done int64),
	use func(url string, text io.Reader) error) error {
	if ref.Size > maxPacked {
		return fmt.Errorf("index of %s: %d bytes are too many", what, ref.Size)
	}
	root := base + "/dists/" + pk.name + "/"
	urls := []string{root + ref.Path}
	if ref.ByHash {
		urls = []string{root + ref.Path[:strings.LastIndexByte(ref.Path, '/')+1] + "by-hash/SHA256/" + ref.SHA256, root + ref.Path}
	}
	tmp, err := p.keep.Temp()
	if err != nil {
		return err
	}
	defer tmp.Close()
	packed, err := os.Create(filepath.Join(tmp.Dir, "packed"))
	if err != nil {
		return fmt.Errorf("write to the cache: %w", err)
	}
	defer packed.Close()
	sum := sha256.New()
	start := func() (io.Writer, error) {
		sum.Reset()
		if _, err := packed.Seek(0, io.SeekStart); err != nil {
			return nil, err
		}
		return io.MultiWriter(packed, sum), packed.Truncate(0)
	}
	var url string
	for _, url = range urls {
		_, err = p.net.FetchTo(ctx, start, url, nil, ref.Size, progress)
		if err == nil || !mirror.IsMissing(err) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("fetch %s: %w: %s", url, err, advice(err))
	}
	n, err := packed.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if n != ref.Size {
		return fmt.Errorf("refused %s: it ends after %d of %d bytes: try again, or use another mirror", url, n, ref.Size)
	}
	if got := hex.EncodeToString(sum.Sum(nil)); got != ref.SHA256 {
		return repo.Refuse(fmt.Errorf("refused %s: its sha256 is %s, signed is %s: try again (the mirror may be updating), or use another mirror",
			url, got, ref.SHA256))
	}
	text, err := decompress.NewReader(io.NewSectionReader(packed, 0, ref.Size))
	if err != nil {
		return fmt.Errorf("read %s: %w", url, err)
	}
	defer text.Close()
	return use(url, &repo.Capped{R: text, N: maxText})
}
