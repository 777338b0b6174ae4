// Package repo is what the readers of signed package repositories share, whatever the repositories' form: their options, what they keep
// on disk, and what they keep in memory.
package repo

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"

	"github.com/godkms-hermetic/godkms-hermetic/internal/mirror"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// Options says where indexes come from and how they are kept.
type Options struct {
	// CacheDir keeps indexes between runs. Any number of processes may share it. Required.
	CacheDir string
	// Mirrors gives URLs by archive, as in "debian" or "fedora": all of them are asked, and what any of them has can be used, be it a
	// mirror of today or a snapshot of last year. Of a package that several have, the first one's is taken, and the others stand in when
	// it fails. An archive that is not given is taken from the host's own configuration in Etc, else it is the distribution's own.
	Mirrors map[string][]string
	// Component is the part of an APT archive that is read, in place of those that have kernels and what they need; it wants a CacheDir
	// of its own. Default: those.
	Component string
	// Etc is where the configuration of the host's package manager is looked for. Default: /etc.
	Etc string
	// AcceptExpired uses indexes past their Valid-Until. Their signature is still checked.
	AcceptExpired bool
	// Refresh asks the mirrors whether indexes have changed, however recently that was done.
	Refresh bool
	// Offline never asks a mirror. Indexes that were fetched before are used at any age, but within their Valid-Until unless
	// AcceptExpired is set.
	Offline bool
	// Keyring replaces the distribution's embedded keys.
	Keyring openpgp.EntityList
	// Client sends the requests. Default: one with time-outs that honours the environment's proxies.
	Client *http.Client
	// Health is what this process knows of the mirrors. Default: nothing yet.
	Health *mirror.Health
	// Fetch gives a package's file, each byte of which is checked before it ends. It is what header packages are read with whose
	// compiler no index tells. Default: an error.
	Fetch func(context.Context, kernels.Package) (io.ReadCloser, error)
	// Compiler stands in for the kernel's own: "gcc-12". Default: the kernel's own, found as kernels.Facts says.
	Compiler string
	// Now is the clock. Default: time.Now.
	Now func() time.Time
	// Warn is told what deserves attention but stops nothing. It may be called from several goroutines. Default: nothing.
	Warn func(string)
	// Progress is told how many bytes of an index were downloaded. It may be called from several goroutines. Default: nothing.
	Progress func(what string, done, total int64)
}

// Defaults fills in what isn't said.
func (o Options) Defaults() (Options, error) {
	if o.CacheDir == "" {
		return o, errors.New("no cache folder given")
	}
	if o.Etc == "" {
		o.Etc = "/etc"
	}
	if o.Client == nil {
		o.Client = mirror.NewClient()
	}
	if o.Health == nil {
		o.Health = new(mirror.Health)
	}
	if o.Fetch == nil {
		o.Fetch = func(context.Context, kernels.Package) (io.ReadCloser, error) {
			return nil, errors.New("packages can't be read here")
		}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Warn == nil {
		o.Warn = func(string) {}
	}
	if o.Progress == nil {
		o.Progress = func(string, int64, int64) {}
	}
	return o, nil
}

// Where a mirror's URL comes from.
const (
	Given    = "given"    // Options.Mirrors, or beside one that is
	FromHost = "host"     // the configuration in Options.Etc
	BuiltIn  = "built-in" // nothing else was said
)

// Mirror is where an archive is read from.
type Mirror struct {
	Archive string // "debian-security"
	URL     string // without a slash at its end
	From    string // Given, FromHost or BuiltIn
}

// Key is one of the keys that may sign the distribution's indexes.
type Key struct {
	Name    string    // of its owner
	Expires time.Time // zero: never
}

// KeyOf tells what is of use of an OpenPGP key.
func KeyOf(e *openpgp.Entity) Key {
	id := e.PrimaryIdentity()
	if id == nil {
		return Key{Name: e.PrimaryKey.KeyIdString()}
	}
	k := Key{Name: id.Name}
	if life := id.SelfSignature.KeyLifetimeSecs; life != nil && *life > 0 { // counted from the key's creation (RFC 9580, section 5.2.3.13)
		k.Expires = e.PrimaryKey.CreationTime.Add(time.Duration(*life) * time.Second).UTC()
	}
	return k
}

// Refusal wraps kernels.ErrUntrusted, which its text doesn't name.
type Refusal struct{ error }

// Refuse makes an error a Refusal.
func Refuse(err error) error { return Refusal{err} }

func (r Refusal) Unwrap() []error { return []error{r.error, kernels.ErrUntrusted} }

// Capped fails, rather than ends, after N bytes of R.
type Capped struct {
	R io.Reader
	N int64
}

func (c *Capped) Read(b []byte) (int, error) {
	n, err := c.R.Read(b)
	if c.N -= int64(n); c.N < 0 {
		return 0, mirror.ErrTooLarge
	}
	return n, err
}
