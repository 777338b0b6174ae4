// Package pacman reads pacman repositories with signed packages: it lists their kernels, pins what builds modules for one, and opens Arch
// packages.
package pacman

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/internal/mirror"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// recipe counts the ways in which answers are computed from databases.
const recipe = 1

// Provider is a kernels.Provider for one distribution. Databases are asked for again as repo.Asker says.
type Provider struct {
	distro *distro
	opts   repo.Options
	from   []repo.Mirror
	ask    *repo.Asker
	keys   func() (keyring, error)

	views   repo.Slots[*view] // by suite
	indexes repo.Slots[*repo.Index]
	said    sync.Map // warnings that come once
}

var _ kernels.Provider = (*Provider)(nil)

func distros() []*distro { return []*distro{arch()} }

// Distros lists what New takes, each with the archives that Options.Mirrors may name, the main one first.
func Distros() map[string][]string {
	out := map[string][]string{}
	for _, d := range distros() {
		out[d.name] = []string{d.name}
	}
	return out
}

// New makes the provider of a distribution. It touches no network.
func New(distro string, o repo.Options) (*Provider, error) {
	for _, d := range distros() {
		if d.name == distro {
			return newProvider(d, o)
		}
	}
	return nil, fmt.Errorf("pacman: no distribution %q", distro)
}

func newProvider(d *distro, o repo.Options) (*Provider, error) {
	o, err := o.Defaults()
	if err != nil {
		return nil, fmt.Errorf("pacman: %w", err)
	}
	net := mirror.NewFetcher(o.Client)
	net.Health = o.Health
	p := &Provider{distro: d, opts: o, from: d.mirrors(o), ask: &repo.Asker{Options: o, Keep: repo.Keep{Dir: filepath.Join(o.CacheDir, d.name)}, Net: net}}
	p.keys = sync.OnceValues(func() (keyring, error) {
		if o.Keyring != nil {
			return newKeyring(o.Keyring), nil
		}
		list, err := openpgp.ReadArmoredKeyRing(strings.NewReader(d.keyring))
		if err != nil {
			return keyring{}, fmt.Errorf("read the keys of %s: %w", d.name, err)
		}
		return newKeyring(list), nil
	})
	return p, nil
}

// mirrors are those that are given, else the first one of the host's own list, if the host is of this distribution.
func (d *distro) mirrors(o repo.Options) []repo.Mirror {
	var out []repo.Mirror
	for _, url := range o.Mirrors[d.name] {
		out = append(out, repo.Mirror{Archive: d.name, URL: strings.TrimRight(url, "/"), From: repo.Given})
	}
	if out != nil {
		return out
	}
	if url := d.hostMirror(o.Etc); url != "" {
		return []repo.Mirror{{Archive: d.name, URL: url, From: repo.FromHost}}
	}
	return []repo.Mirror{{Archive: d.name, URL: d.url, From: repo.BuiltIn}}
}

// hostMirror reads pacman.d/mirrorlist, which other distributions with pacman have too: "Server = https://mirror.example/$repo/os/$arch".
func (d *distro) hostMirror(etc string) string {
	release, err := os.ReadFile(filepath.Join(etc, "os-release"))
	if err != nil || !slices.Contains(strings.Fields(string(release)), "ID="+d.name) {
		return ""
	}
	f, err := os.Open(filepath.Join(etc, "pacman.d/mirrorlist"))
	if err != nil {
		return ""
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		name, url, _ := strings.Cut(lines.Text(), "=")
		base, ok := strings.CutSuffix(strings.TrimSpace(url), "/$repo/os/$arch")
		if strings.TrimSpace(name) == "Server" && ok && (strings.HasPrefix(base, "https://") || strings.HasPrefix(base, "http://")) && !strings.Contains(base, "$") {
			return base
		}
	}
	return ""
}

// Suites implements kernels.Provider.
func (p *Provider) Suites() []string { return []string{p.distro.suite} }

// Claims implements kernels.Provider.
func (p *Provider) Claims(release string) []string {
	if p.distro.claims(release) {
		return p.Suites()
	}
	return nil
}

// Mirrors are those that databases are read from.
func (p *Provider) Mirrors() []repo.Mirror { return slices.Clone(p.from) }

// Keys are those that may sign packages.
func (p *Provider) Keys() ([]repo.Key, error) {
	k, err := p.keys()
	if err != nil {
		return nil, err
	}
	var out []repo.Key
	for _, e := range k.list {
		out = append(out, repo.KeyOf(e))
	}
	return out, nil
}

// Probe asks a mirror for its first database, which nothing signs, and reads it; it keeps nothing. The error doesn't name the mirror, whose URL may have a
// password.
func (p *Provider) Probe(ctx context.Context, m repo.Mirror) (signed bool, err error) {
	file := p.distro.database(p.distro.repositories[0])
	got, err := p.ask.Net.Fetch(ctx, m.URL+"/"+file, nil, maxPacked)
	if err == nil {
		_, err = buildIndex(io.Discard, got.Body)
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", file, err)
	}
	return false, nil
}

func (d *distro) folder(repository string) string { return repository + "/os/" + d.machine }
func (d *distro) database(repository string) string {
	return d.folder(repository) + "/" + repository + ".db"
}

// A database is one that was read, by its SHA-256, which the compact form of it is kept under.
type database struct {
	SHA256 string `json:"sha256"`
}

// A view is the databases as they are now.
type view struct {
	have  []held
	until time.Time // good until then
}

// held is a database at a mirror.
type held struct {
	kernels.Index
	repository, mirror string
}

// view asks for the databases, where it's time to.
func (p *Provider) view(ctx context.Context, suite, arch string) (*view, error) {
	if suite != p.distro.suite {
		return nil, fmt.Errorf("no suite %q; known is %s: %w", suite, p.distro.suite, kernels.ErrNotFound)
	}
	if machine := (kernels.Kernel{Arch: arch}).Machine(); machine != p.distro.machine {
		return nil, fmt.Errorf("no architecture %q; it has amd64: %w", arch, kernels.ErrNotFound)
	}
	slot := p.views.At(suite)
	slot.Lock()
	defer slot.Unlock()
	if slot.OK && p.opts.Now().Before(slot.Value.until) {
		return slot.Value, nil
	}
	v := &view{}
	answers, errs := make([]repo.Answers[database], len(p.distro.repositories)), make([]error, len(p.distro.repositories))
	var wg sync.WaitGroup
	for i, name := range p.distro.repositories {
		wg.Go(func() { answers[i], errs[i] = p.databases(ctx, name) })
	}
	wg.Wait()
	for i, name := range p.distro.repositories {
		if errs[i] != nil {
			return nil, errs[i]
		}
		if i == 0 || answers[i].Until.Before(v.until) {
			v.until = answers[i].Until
		}
		for _, a := range answers[i].Have {
			v.have = append(v.have, held{repository: name, mirror: a.Mirror, Index: kernels.Index{Name: name, URL: mirror.Public(a.Mirror), Date: a.Date,
				Digest: v1.Hash{Algorithm: "sha256", Hex: a.Value.SHA256}}})
		}
	}
	slot.Value, slot.OK = v, true
	return v, nil
}

// databases asks all mirrors for a database. What Read makes of it, the compact form, is kept beside the answer; where that was lost, or
// damaged, the mirrors are asked as if for the first time.
func (p *Provider) databases(ctx context.Context, name string) (repo.Answers[database], error) {
	q := repo.Question[database]{Name: name, File: p.distro.database(name), Limit: maxPacked}
	for _, m := range p.from {
		q.Mirrors = append(q.Mirrors, m.URL)
	}
	q.Read = func(_ context.Context, file []byte, _ func(string, int64) ([]byte, error)) (repo.Reading[database], error) {
		sum := sha256.Sum256(file)
		d := database{hex.EncodeToString(sum[:])}
		var r repo.Reading[database]
		path := p.indexPath(name, d.SHA256)
		err := p.ask.Keep.Write(path, func(w io.Writer) (err error) {
			r.Date, err = buildIndex(w, file)
			return err
		})
		if err != nil {
			return r, err
		}
		r.Value = d
		return r, nil
	}
	for again := false; ; again = true {
		answers, err := q.Ask(ctx, p.ask)
		if err != nil {
			return answers, err
		}
		for _, a := range answers.Have {
			if _, err = p.openIndex(name, a.Value.SHA256); err != nil {
				break
			}
		}
		switch {
		case err == nil:
			p.prune(name, answers)
			return answers, nil
		case p.opts.Offline:
			return answers, fmt.Errorf("no usable index of %q in the cache (%w): run once without --offline", name, err)
		case again:
			return answers, err
		}
		if err := os.RemoveAll(p.ask.Keep.Path(name)); err != nil {
			return answers, err
		}
	}
}

// prune removes what answers have replaced a day ago.
func (p *Provider) prune(name string, answers repo.Answers[database]) {
	files, err := filepath.Glob(p.ask.Keep.Path(name, "*.idx"))
	if err != nil {
		return
	}
	for _, f := range files {
		used := slices.ContainsFunc(answers.Have, func(a repo.Answer[database]) bool { return p.indexPath(name, a.Value.SHA256) == f })
		if st, err := os.Stat(f); err == nil && !used && time.Since(st.ModTime()) > 24*time.Hour {
			os.Remove(f)
		}
	}
}

func (p *Provider) indexPath(repository, sum string) string {
	return p.ask.Keep.Path(repository, sum[:32]+".idx")
}

// openIndex opens a file that stays open, and readable if it is removed, for as long as the index is referenced.
func (p *Provider) openIndex(repository, sum string) (*repo.Index, error) {
	path := p.indexPath(repository, sum)
	return p.indexes.Get(path, func() (*repo.Index, error) {
		f, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		st, err := f.Stat()
		if err == nil {
			var x *repo.Index
			if x, err = repo.OpenIndex(f, st.Size(), indexForm); err == nil {
				return x, nil
			}
		}
		f.Close()
		return nil, fmt.Errorf("read %q: %w", path, err)
	})
}

// pool opens the databases of a view.
func (p *Provider) pool(v *view) (*pool, error) {
	out := &pool{known: map[string][]*pkg{}}
	for _, h := range v.have {
		x, err := p.openIndex(h.repository, h.Digest.Hex)
		if err != nil {
			return nil, err
		}
		out.sources = append(out.sources, source{x, h.mirror + "/" + p.distro.folder(h.repository)})
	}
	return out, nil
}

// key names an answer by what it is computed from.
func (p *Provider) key(v *view, more ...string) string {
	h := sha256.New()
	e := json.NewEncoder(h)
	e.Encode([]any{recipe, indexForm, p.distro.name, p.distro.tools, p.opts.Compiler, more})
	for _, x := range v.have {
		e.Encode([]string{x.repository, x.mirror, x.Digest.Hex})
	}
	return hex.EncodeToString(h.Sum(nil)[:20])
}

// Indexes implements kernels.Provider.
func (p *Provider) Indexes(ctx context.Context, suite, arch string) ([]kernels.Index, error) {
	v, err := p.view(ctx, suite, arch)
	if err != nil {
		return nil, fmt.Errorf("indexes of %s/%s %s: %w", p.distro.name, suite, arch, err)
	}
	var out []kernels.Index
	for _, h := range v.have {
		out = append(out, h.Index)
	}
	return out, nil
}

// Kernels implements kernels.Provider. Nothing of the list is signed: Lock is what verifies.
func (p *Provider) Kernels(ctx context.Context, suite, arch string) ([]kernels.Candidate, error) {
	out, err := p.kernels(ctx, suite, arch)
	if err != nil {
		return nil, fmt.Errorf("kernels of %s/%s %s: %w", p.distro.name, suite, arch, err)
	}
	return out, nil
}

func (p *Provider) kernels(ctx context.Context, suite, arch string) ([]kernels.Candidate, error) {
	v, err := p.view(ctx, suite, arch)
	if err != nil {
		return nil, err
	}
	list, err := repo.Memo(p.ask.Keep, p.key(v, "kernels"), p.opts.Warn, func() ([]kernels.Candidate, error) {
		pool, err := p.pool(v)
		if err != nil {
			return nil, err
		}
		return p.distro.kernels(pool, suite, arch)
	})
	for i, c := range list {
		if f, ok := repo.KnownFacts(p.ask.Keep, kernels.Package{Digest: c.Digest}); ok {
			list[i].Compiler = f.Compiler.String()
		}
	}
	return list, err
}

func (d *distro) kernels(p *pool, suite, arch string) ([]kernels.Candidate, error) {
	out := []kernels.Candidate{}
	for i, f := range d.flavours {
		all, err := p.named(f.headers)
		if err != nil {
			return nil, err
		}
		for _, k := range all {
			release, ok := f.release(k.version)
			if !ok || slices.ContainsFunc(out, func(c kernels.Candidate) bool { return c.Release == release }) {
				continue
			}
			out = append(out, kernels.Candidate{Kernel: kernels.Kernel{Distro: d.name, Suite: suite, Arch: arch, Release: release},
				PackageVersion: k.version, Flavour: f.name, Default: i == 0, Date: k.built, Digest: k.digest()})
		}
	}
	slices.SortStableFunc(out, func(a, b kernels.Candidate) int {
		return cmp.Or(-compareVersions(a.PackageVersion, b.PackageVersion), cmp.Compare(a.Flavour, b.Flavour))
	})
	for i := range out {
		if out[i].Default {
			out[i].Latest = true
			break
		}
	}
	return out, nil
}

// Lock implements kernels.Provider. Toolchain is the closure of the tools that kbuild and dkms run and of the kernel's compiler; Headers is what
// the closure of the kernel's headers and the extra packages adds to it. All of it is downloaded, and its signatures verified, unless
// that was done before.
func (p *Provider) Lock(ctx context.Context, k kernels.Kernel, extra kernels.Extra) (kernels.Lock, error) {
	if k.Distro != p.distro.name {
		return kernels.Lock{}, fmt.Errorf("lock %s: distribution %q is not %q", k, k.Distro, p.distro.name)
	}
	l, err := p.lock(ctx, k, extra)
	if err != nil {
		return kernels.Lock{}, fmt.Errorf("lock %s: %w", k, err)
	}
	return l, nil
}

func (p *Provider) lock(ctx context.Context, k kernels.Kernel, extra kernels.Extra) (kernels.Lock, error) {
	wanted, err := parseExtra(extra.Packages)
	if err != nil {
		return kernels.Lock{}, err
	}
	wished, err := parseExtra(extra.Depends)
	if err != nil {
		return kernels.Lock{}, err
	}
	v, err := p.view(ctx, k.Suite, k.Arch)
	if err != nil {
		return kernels.Lock{}, err
	}
	keys, err := p.keys()
	if err != nil {
		return kernels.Lock{}, err
	}
	l, err := repo.Memo(p.ask.Keep, p.key(v, "lock", keys.id, k.Release, fmt.Sprint(wanted), fmt.Sprint(wished)), p.opts.Warn, func() (locked, error) {
		pool, err := p.pool(v)
		if err != nil {
			return locked{}, err
		}
		return p.choose(ctx, pool, k, wanted, wished)
	})
	if err != nil {
		return kernels.Lock{}, err
	}
	for _, why := range l.LeftOut {
		if _, said := p.said.LoadOrStore(why, true); !said {
			p.opts.Warn(fmt.Sprintf("%s/%s: of what the package depends on, %s", k.Distro, k.Suite, why))
		}
	}
	return l.Lock, nil
}

// locked is a lock with what it lacks of the dependencies that were wished for.
type locked struct {
	Lock    kernels.Lock `json:"lock"`
	LeftOut []string     `json:"left_out"` // each with why, for a warning
}

// parseExtra reads dependencies, and gives each of them once, sorted.
func parseExtra(list []string) ([]relation, error) {
	var out []relation
	for _, entry := range list {
		r, ok := parseRelation(entry)
		if !ok {
			return nil, &kernels.ExtraError{Entry: entry, Err: errors.New("it must be a package, as in libelf or libelf>=0.190")}
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b relation) int { return cmp.Compare(a.String(), b.String()) })
	return slices.Compact(out), nil
}

// choose settles what a lock has, and verifies it.
func (p *Provider) choose(ctx context.Context, pool *pool, k kernels.Kernel, wanted, wished []relation) (locked, error) {
	d := p.distro
	header, err := d.header(pool, k)
	if err != nil {
		return locked{}, err
	}
	if err := p.verify(ctx, []*pkg{header}); err != nil {
		return locked{}, err
	}
	facts, err := repo.Facts(ctx, p.ask.Keep, p.opts, p.Payload, header.pin())
	if err != nil {
		return locked{}, err
	}
	if facts.Release != k.Release {
		return locked{}, fmt.Errorf("package %q %s has the headers of the kernel %q", header.name, header.version, facts.Release)
	}
	compiler := cmp.Or(p.opts.Compiler, facts.Compiler.String())
	exact := ""
	if p.opts.Compiler == "" {
		exact = facts.Compiler.Version
	}
	programs, err := compilers(pool, compiler, exact)
	if err != nil {
		return locked{}, err
	}

	c := newClosure(pool)
	for _, k := range programs {
		if c.by[k.name] != nil {
			continue
		}
		if err := c.install(k); err != nil {
			return locked{}, fmt.Errorf("toolchain: %w", err)
		}
	}
	for _, name := range d.tools {
		if err := c.satisfy(relation{name: name}); err != nil {
			return locked{}, fmt.Errorf("toolchain: %w", err)
		}
	}
	mark := len(c.order)
	if err := c.install(header); err != nil {
		return locked{}, err
	}
	for _, r := range wanted {
		if err := c.satisfy(r); err != nil {
			return locked{}, &kernels.ExtraError{Entry: r.String(), Err: err}
		}
	}
	leftOut := []string{}
	for _, r := range wished {
		if slices.Contains(d.moot, r.name) {
			continue
		}
		switch err := c.satisfy(r); {
		case errors.Is(err, repo.ErrDamagedIndex):
			return locked{}, err
		case err != nil:
			leftOut = append(leftOut, fmt.Sprintf("%q is left out of the build root: it's not to be had", r))
		}
	}
	if err := p.verify(ctx, c.order); err != nil {
		return locked{}, err
	}
	return locked{LeftOut: leftOut, Lock: kernels.Lock{Kernel: k, Compiler: compiler, Forced: p.opts.Compiler != "", Build: facts.Build,
		Toolchain: pin(c.order[:mark]), Headers: pin(c.order[mark:])}}, nil
}

// header finds the package with a kernel's headers.
func (d *distro) header(p *pool, k kernels.Kernel) (*pkg, error) {
	for _, f := range d.flavours {
		all, err := p.named(f.headers)
		if err != nil {
			return nil, err
		}
		for _, h := range all {
			if release, ok := f.release(h.version); ok && release == k.Release {
				return h, nil
			}
		}
	}
	list, err := d.kernels(p, k.Suite, k.Arch)
	if err != nil {
		return nil, err
	}
	var have []string
	for _, c := range list {
		have = append(have, c.Release)
	}
	return nil, fmt.Errorf("no kernel %q%s: %w", k.Release, kernels.DidYouMean(k.Release, have), kernels.ErrNotFound)
}

// compilers finds the packages of a compiler of a family and major version: of the exact version where there is one, else the newest.
func compilers(p *pool, compiler, exact string) ([]*pkg, error) {
	names, major, ok := compilerPackages(compiler)
	if !ok {
		return nil, fmt.Errorf("compiler %q: it must be of the form gcc-13 or clang-17", compiler)
	}
	var out []*pkg
	for _, name := range names {
		all, err := p.named(name)
		if err != nil {
			return nil, err
		}
		var best *pkg
		var have []string
		for _, k := range all {
			_, v, _, _ := split(k.version)
			have = append(have, v)
			if !begins(v, major) {
				continue
			}
			if best == nil || exact != "" && begins(v, exact) && !begins(versionOf(best), exact) {
				best = k
			}
		}
		if best == nil {
			return nil, fmt.Errorf("the kernel was built by %s, but of the package %q there is %s: give a mirror of its time with --mirror, "+
				"or another compiler with --compiler: %w", compiler, name, cmp.Or(strings.Join(have, ", "), "none"), kernels.ErrNotFound)
		}
		out = append(out, best)
	}
	return out, nil
}

func versionOf(k *pkg) string {
	_, v, _, _ := split(k.version)
	return v
}

// begins tells whether a version is another one, or begins with it and a separator: 13.2.1 and 13.2.1+r814 with 13 and 13.2.1.
func begins(v, with string) bool {
	rest, ok := strings.CutPrefix(v, with)
	return ok && (rest == "" || !isDigit(rest[0]) && !isLetter(rest[0]))
}
