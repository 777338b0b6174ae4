package repo

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/mirror"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

const (
	// MaxAge is how long an answer of a mirror is good for before it's asked again.
	MaxAge = 6 * time.Hour

	maxHeldAge = 7 * 24 * time.Hour // without an end of its own, an answer is not used for longer when the mirror fails
	maxSkew    = 24 * time.Hour     // how far in the future an index may be dated
)

// An Asker asks mirrors for the signed files that their indexes are pinned by, and keeps the answers. What a mirror says is taken until
// it's 6 hours old, what was expired already when it came included. When a mirror can't be reached, or offers something that is older
// than what it had, or damaged, what is held of it stands in with a warning: until its end, or for 7 days where it has none.
type Asker struct {
	Options
	Keep Keep
	Net  mirror.Fetcher

	said sync.Map // warnings that come once
}

// NewAsker makes an Asker with the usual patience. o has its defaults.
func NewAsker(o Options, k Keep) *Asker {
	net := mirror.NewFetcher(o.Client)
	net.Health = o.Health
	return &Asker{Options: o, Keep: k, Net: net}
}

// ErrNotBeside is wrapped by the error of a further file that a mirror doesn't have.
var ErrNotBeside = errors.New("is not beside it")

// A Question is one file that all mirrors of an archive are asked for.
type Question[T any] struct {
	Name    string   // of the index, which is also its folder of the Keep: "bookworm-updates"
	Mirrors []string // URLs of the archive there, without a slash at their ends; at least one
	File    string   // below them: "dists/bookworm-updates/InRelease"
	Limit   int64    // bytes of it
	// Form names what Read makes a Value of. What is kept of another form is asked for anew.
	Form string
	// Optional says that a mirror need not have it. An answer that it hasn't is kept like any other.
	Optional bool
	// Read verifies the file, in which nothing is to be trusted before, and tells what it says. What it refuses is an error that needs
	// name neither URL nor remedy. Further files of the same mirror, such as a signature, it gets from beside, whose errors it hands on.
	// The value is kept as JSON, and is to be all that is wanted of the file later on.
	Read func(ctx context.Context, file []byte, beside func(file string, limit int64) ([]byte, error)) (Reading[T], error)
}

// A Reading is what a file says.
type Reading[T any] struct {
	Value      T
	Date       time.Time // an earlier one from the same mirror is refused from then on; zero: not known
	ValidUntil time.Time // zero: for ever
}

// An Answer is what one mirror has.
type Answer[T any] struct {
	Mirror string // its URL
	Reading[T]
}

// Answers are what the mirrors of a Question have, in its order.
type Answers[T any] struct {
	Have   []Answer[T] // none: all that could be asked say that they don't have it, which is no error where it's Optional
	Unread []Unread    // where others could be; warnings were given
	Until  time.Time   // when it's time to ask again
}

// Unread is why a mirror couldn't be looked into, in one line that names it.
type Unread struct {
	Mirror string // its URL
	Err    error
}

func (u Unread) Error() string { return u.Err.Error() }
func (u Unread) Unwrap() error { return u.Err }

// state is what is kept of an answer, in NAME/HASH.state, by the mirror's URL.
type state[T any] struct {
	Mirror       string    `json:"mirror"`  // its URL, without a password
	Form         string    `json:"form"`    // Question.Form
	Checked      time.Time `json:"checked"` // when it was last asked
	Missing      bool      `json:"missing"` // it has no such file
	ETag         string    `json:"etag"`
	LastModified string    `json:"last_modified"`
	Date         time.Time `json:"date"`
	ValidUntil   time.Time `json:"valid_until"`
	Expired      bool      `json:"expired"` // it was past that already when it came
	Value        T         `json:"value"`
}

// Ask asks all mirrors side by side, where it's time to. It fails when none of them gives an answer, and nothing is held of any: with
// what wraps kernels.ErrExpired or kernels.ErrUntrusted where that's why, and the mirror's answer where there is no such file.
func (q Question[T]) Ask(ctx context.Context, a *Asker) (Answers[T], error) {
	states, errs := make([]*state[T], len(q.Mirrors)), make([]error, len(q.Mirrors))
	var wg sync.WaitGroup
	for i, m := range q.Mirrors {
		wg.Go(func() { states[i], errs[i] = q.one(ctx, a, m) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		return Answers[T]{}, context.Cause(ctx)
	}
	out := Answers[T]{Until: a.Now().Add(MaxAge)}
	answered := false
	for i, s := range states {
		if errs[i] == nil {
			answered = true
			out.add(s, q.Mirrors[i], a.Now())
		}
	}
	if !answered {
		return q.stranger(a, oneLine(errs))
	}
	for i, err := range errs {
		if err == nil {
			continue
		}
		out.Unread = append(out.Unread, Unread{q.Mirrors[i], err})
		text := fmt.Sprintf("%v; going on with the archive's other mirrors", err)
		if down, ok := errors.AsType[*unreachable](err); ok && !mirror.IsMissing(err) { // one warning for all its indexes
			text = fmt.Sprintf("mirror %s can't be looked into: %v; going on with the archive's other mirrors", mirror.Public(q.Mirrors[i]), down.err)
		}
		a.once(text)
	}
	return out, nil
}

func (out *Answers[T]) add(s *state[T], from string, now time.Time) {
	if !s.Missing {
		out.Have = append(out.Have, Answer[T]{from, Reading[T]{s.Value, s.Date, s.ValidUntil}})
	}
	if t := s.Checked.Add(MaxAge); t.After(now) && t.Before(out.Until) {
		out.Until = t
	}
}

// stranger is for when none of the mirrors gave an answer: another one that was asked in an earlier run may have.
func (q Question[T]) stranger(a *Asker, why error) (Answers[T], error) {
	var best *state[T]
	entries, _ := os.ReadDir(a.Keep.Path(q.Name))
	for _, e := range entries {
		if filepath.Ext(e.Name()) != ".state" || slices.ContainsFunc(q.Mirrors, func(m string) bool { return stateFile(m) == e.Name() }) {
			continue
		}
		if s, _ := q.held(a, e.Name()); s != nil && (best == nil || s.Checked.After(best.Checked)) && (a.Offline || a.usable(s.Checked, s.ValidUntil)) {
			best = s
		}
	}
	if best == nil || errors.Is(why, kernels.ErrExpired) {
		return Answers[T]{}, why
	}
	if !a.Offline {
		a.Warn(fmt.Sprintf("%v; using what was fetched on %s from %s", why, day(best.Checked), best.Mirror))
	}
	if err := q.valid(a, best, best.Mirror); err != nil {
		return Answers[T]{}, err
	}
	out := Answers[T]{Until: a.Now().Add(MaxAge)}
	out.add(best, best.Mirror, a.Now())
	return out, nil
}

func (a *Asker) once(text string) {
	if _, said := a.said.LoadOrStore(text, true); !said {
		a.Warn(text)
	}
}

// oneLine joins errors with their texts in one line.
func oneLine(errs []error) error {
	err := errs[0]
	for _, e := range errs[1:] {
		err = fmt.Errorf("%w; %w", err, e)
	}
	return err
}

// stateFile names what is kept of a mirror, whoever asks it.
func stateFile(base string) string {
	sum := sha256.Sum256([]byte(mirror.Public(base)))
	return fmt.Sprintf("%x.state", sum[:10])
}

// held gives what is kept of a mirror, or nil, and the date that no answer of it may be older than.
func (q Question[T]) held(a *Asker, file string) (*state[T], time.Time) {
	var form struct {
		Form string    `json:"form"`
		Date time.Time `json:"date"`
	}
	path := a.Keep.Path(q.Name, file)
	s := &state[T]{}
	if !a.Keep.ReadJSON(path, &form) || form.Form != q.Form || !a.Keep.ReadJSON(path, s) {
		return nil, form.Date
	}
	return s, form.Date
}

func (s *state[T]) expired(now time.Time) bool {
	return !s.Missing && !s.ValidUntil.IsZero() && now.After(s.ValidUntil)
}

// one gives what one mirror has, asking it if it's time to.
func (q Question[T]) one(ctx context.Context, a *Asker, base string) (*state[T], error) {
	file, start := stateFile(base), a.Now()
	held, _ := q.held(a, file)
	if a.Offline {
		if held == nil {
			return nil, fmt.Errorf("no index of %q in the cache: run once without --offline", q.Name)
		}
		return held, q.valid(a, held, base)
	}
	fresh := func() bool {
		age := start.Sub(held.Checked)
		return age >= 0 && age < MaxAge && (held.Expired || !held.expired(start))
	}
	if held != nil && !a.Refresh && fresh() {
		return held, q.valid(a, held, base)
	}
	lock, err := durable.Lock(ctx, a.Keep.Path(q.Name, ".lock-"+strings.TrimSuffix(file, ".state")), false)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	again, date := q.held(a, file)
	if again != nil { // another process may have asked while this one waited
		asked := held == nil || again.Checked.After(held.Checked)
		if held = again; asked && fresh() && (!a.Refresh || !held.Checked.Before(start)) {
			return held, q.valid(a, held, base)
		}
	}
	next, err := q.request(ctx, a, held, date, base)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	usable := held != nil && !held.Missing && a.usable(held.Checked, held.ValidUntil)
	if mirror.IsMissing(err) && q.Optional && !usable {
		next, err = &state[T]{Checked: start, Missing: true, Date: date}, nil // what comes back may not be older
	}
	if err == nil {
		next.Mirror, next.Form = mirror.Public(base), q.Form
		next.Expired = next.expired(start) // so that it is not fetched again only to be refused again
		if err := a.Keep.WriteJSON(a.Keep.Path(q.Name, file), next); err != nil {
			return nil, err
		}
		return next, q.valid(a, next, base)
	}
	if held != nil && a.usable(held.Checked, held.ValidUntil) {
		a.once(fmt.Sprintf("%v; using what was fetched on %s", err, day(held.Checked)))
		return held, q.valid(a, held, base)
	}
	return nil, err
}

// usable tells whether an answer from before may stand in for one that cannot be had now.
func (a *Asker) usable(checked, validUntil time.Time) bool {
	switch now := a.Now(); {
	case a.AcceptExpired:
		return true
	case validUntil.IsZero():
		return now.Sub(checked) < maxHeldAge
	default:
		return !now.After(validUntil)
	}
}

func day(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

// valid refuses what is expired, or warns of it.
func (q Question[T]) valid(a *Asker, s *state[T], base string) error {
	if !s.expired(a.Now()) {
		return nil
	}
	if !a.AcceptExpired {
		return fmt.Errorf("the index of %q %w on %s (%s): use another mirror, or accept it with --accept-expired",
			q.Name, kernels.ErrExpired, day(s.ValidUntil), mirror.Public(base)+"/"+q.File)
	}
	a.once(fmt.Sprintf("the index of %q expired on %s and is used all the same", q.Name, day(s.ValidUntil)))
	return nil
}

// unreachable is the error of a request that brought no file.
type unreachable struct {
	url string
	err error
}

func (e *unreachable) Error() string {
	return fmt.Sprintf("fetch %s: %v: %s", e.url, e.err, Advice(e.err))
}
func (e *unreachable) Unwrap() error { return e.err }

// Advice says what to do about a request that failed.
func Advice(err error) string {
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

// request fetches the file unless it is the one that is held, and checks everything but whether it's expired. It may not be older
// than date.
func (q Question[T]) request(ctx context.Context, a *Asker, held *state[T], date time.Time, base string) (*state[T], error) {
	net := a.Net
	net.Others = len(q.Mirrors) > 1
	get := func(file string, header http.Header, limit int64) (*mirror.Reply, error) {
		got, err := net.Fetch(ctx, base+"/"+file, header, limit)
		if err != nil {
			return nil, &unreachable{mirror.Public(base) + "/" + file, err}
		}
		return got, nil
	}
	header := http.Header{"Cache-Control": {"max-age=0"}} // a proxy on the way is to ask the mirror
	if held != nil && !held.Missing {
		if held.ETag != "" {
			header.Set("If-None-Match", held.ETag)
		}
		if held.LastModified != "" {
			header.Set("If-Modified-Since", held.LastModified)
		}
	}
	now, url := a.Now(), mirror.Public(base)+"/"+q.File
	got, err := get(q.File, header, q.Limit)
	if err != nil {
		return nil, err
	}
	if got.NotModified {
		if len(header) == 1 {
			return nil, fmt.Errorf("fetch %s: the mirror answers 304 to an unconditional request: use another mirror", url)
		}
		next := *held
		next.Checked = now // its date cannot be newer than what is held
		return &next, nil
	}
	r, err := q.Read(ctx, got.Body, func(file string, limit int64) ([]byte, error) {
		got, err := get(file, http.Header{"Cache-Control": {"max-age=0"}}, limit)
		if mirror.IsMissing(err) { // not to be taken for an index that isn't there
			return nil, fmt.Errorf("%s %w", file, ErrNotBeside)
		}
		if err != nil {
			return nil, err
		}
		return got.Body, nil
	})
	if _, down := errors.AsType[*unreachable](err); down || ctx.Err() != nil {
		return nil, err
	}
	switch {
	case err != nil:
		return nil, Refuse(fmt.Errorf("refused %s: %w: use another mirror", url, err))
	case r.Date.After(now.Add(maxSkew)):
		return nil, fmt.Errorf("refused %s: it is dated %s, in the future: check this machine's clock", url, day(r.Date))
	case r.Date.Before(date):
		return nil, Refuse(fmt.Errorf("refused %s: it is of %s, older than the one of %s that was seen before: use another mirror",
			url, day(r.Date), day(date)))
	}
	return &state[T]{Checked: now, ETag: got.Header.Get("ETag"), LastModified: got.Header.Get("Last-Modified"),
		Date: r.Date, ValidUntil: r.ValidUntil, Value: r.Value}, nil
}
