package mirror

import (
	"cmp"
	"net/url"
	"slices"
	"sync"
	"time"
)

// grudge is how long a failure counts.
const grudge = time.Minute

// Health is what a process remembers of mirrors: which of them failed lately, and how much each is doing now. Its zero value is empty.
// It is safe for concurrent use.
type Health struct {
	mu     sync.Mutex
	byHost map[string]*host
}

type host struct {
	failures int // in a row
	last     time.Time
	busy     int // downloads under way
}

// of gives what is known of a URL's server. The caller holds the lock.
func (h *Health) of(from string) *host {
	name := from
	if u, err := url.Parse(from); err == nil {
		name = u.Scheme + "://" + u.Host
	}
	if h.byHost == nil {
		h.byHost = map[string]*host{}
	}
	if h.byHost[name] == nil {
		h.byHost[name] = &host{}
	}
	return h.byHost[name]
}

// take picks the URL to ask next, whose download is under way until done is called: of those with the fewest tries one whose server
// has not failed lately, and of these the one that does the least now. Otherwise the first comes first.
func (h *Health) take(urls []string, tries map[string]int) (from string, done func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	failures := func(of *host) int {
		if now.Sub(of.last) > grudge {
			return 0
		}
		return of.failures
	}
	from = slices.MinFunc(urls, func(a, b string) int {
		x, y := h.of(a), h.of(b)
		return cmp.Or(cmp.Compare(tries[a], tries[b]), cmp.Compare(failures(x), failures(y)), cmp.Compare(x.busy, y.busy))
	})
	of := h.of(from)
	of.busy++
	return from, func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		of.busy--
	}
}

// note remembers how an attempt ended.
func (h *Health) note(from string, well bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	of := h.of(from)
	if of.failures++; well {
		of.failures = 0
	}
	of.last = time.Now()
}

// Public is a URL without a user's name and password, to be shown and kept.
func Public(from string) string {
	u, err := url.Parse(from)
	if err != nil || u.User == nil {
		return from
	}
	u.User = nil
	return u.String()
}
