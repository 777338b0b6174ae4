package deb

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// epoch is the time in most tests.
var epoch = time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)

// signer makes a key that is valid in the tests' time.
var signer = sync.OnceValue(func() *openpgp.Entity { return newKey("archive") })

func newKey(name string) *openpgp.Entity {
	e, err := openpgp.NewEntity(name, "", name+"@example.org", &packet.Config{
		Algorithm: packet.PubKeyAlgoEdDSA, Time: func() time.Time { return epoch.AddDate(-1, 0, 0) }})
	if err != nil {
		panic(err)
	}
	return e
}

// A repo is an archive on the loopback interface. Its fields may be changed between requests, under mu.
type archiveRepo struct {
	t   *testing.T
	url string // of the server; the archives are below it, /debian and /debian-security

	mu     sync.Mutex
	files  map[string][]byte
	dates  map[string]time.Time // Last-Modified of files that have one
	hits   map[string]int       // requests by path
	answer func(w http.ResponseWriter, r *http.Request) bool
}

func newRepo(t *testing.T) *archiveRepo {
	r := &archiveRepo{t: t, files: map[string][]byte{}, dates: map[string]time.Time{}, hits: map[string]int{}}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.hits[req.URL.Path]++
		if got := req.UserAgent(); got != "godkms-hermetic" {
			t.Errorf("User-Agent is %q", got)
		}
		if r.answer != nil && r.answer(w, req) {
			return
		}
		body, ok := r.files[req.URL.Path]
		if !ok {
			http.NotFound(w, req)
			return
		}
		if d, ok := r.dates[req.URL.Path]; ok {
			http.ServeContent(w, req, "", d, bytes.NewReader(body))
			return
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		w.Write(body)
	}))
	t.Cleanup(srv.Close)
	r.url = srv.URL
	return r
}

func (r *archiveRepo) count(suffix string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for path, hits := range r.hits {
		if strings.HasSuffix(path, suffix) {
			n += hits
		}
	}
	return n
}

// hitsOf counts the requests whose paths have a part.
func (r *archiveRepo) hitsOf(part string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for path, hits := range r.hits {
		if strings.Contains(path, part) {
			n += hits
		}
	}
	return n
}

// published is one index to publish. Zero values are replaced by what is right.
type published struct {
	archive, pocket, codename, packages string
	suite, arch, universe               string // universe: packages of that component
	date, validUntil                    time.Time
	noByHash                            bool
	noHashFiles                         bool // by-hash is promised, and not there
	key                                 *openpgp.Entity
	sums                                string            // instead of the right SHA256 lines
	contents                            map[string]string // lists of files by architecture
}

func (r *archiveRepo) publish(p published) {
	r.t.Helper()
	if p.archive == "" {
		p.archive = "debian"
	}
	if p.codename == "" {
		p.codename = p.pocket
	}
	if p.date.IsZero() {
		p.date = epoch.Add(-time.Hour)
	}
	if p.key == nil {
		p.key = signer()
	}
	dir := "/" + p.archive + "/dists/" + p.pocket + "/"
	files := map[string][]byte{}
	sums := ""
	pack := func(folder, name, text string) {
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		z.Write([]byte(text))
		z.Close()
		sum := fmt.Sprintf("%x", sha256.Sum256(packed.Bytes()))
		sums += fmt.Sprintf(" %s %d %s%s\n", sum, packed.Len(), folder, name)
		files[dir+folder+name] = packed.Bytes()
		if !p.noHashFiles {
			files[dir+folder+"by-hash/SHA256/"+sum] = packed.Bytes()
		}
	}
	if p.arch == "" {
		p.arch = "amd64"
	}
	if p.suite == "" {
		p.suite = "whatever"
	}
	pack("main/binary-"+p.arch+"/", "Packages.gz", p.packages)
	if p.universe != "" {
		pack("universe/binary-"+p.arch+"/", "Packages.gz", p.universe)
	}
	for arch, text := range p.contents {
		pack("main/", "Contents-"+arch+".gz", text)
	}
	if p.sums == "" {
		p.sums = sums
	}
	var text strings.Builder
	fmt.Fprintf(&text, "Origin: Test\nSuite: %s\nCodename: %s\nDate: %s\n", p.suite, p.codename, p.date.Format(time.RFC1123))
	if !p.validUntil.IsZero() {
		fmt.Fprintf(&text, "Valid-Until: %s\n", p.validUntil.Format(time.RFC1123))
	}
	if !p.noByHash {
		text.WriteString("Acquire-By-Hash: yes\n")
	}
	text.WriteString("Components: main\nSHA256:\n" + p.sums)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.files[dir+"InRelease"] = sign(r.t, p.key, text.String())
	maps.Copy(r.files, files)
}

func sign(t *testing.T, key *openpgp.Entity, text string) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := clearsign.Encode(&out, key.PrivateKey, &packet.Config{Time: func() time.Time { return epoch.AddDate(0, -1, 0) }})
	if err != nil {
		t.Fatal(err)
	}
	w.Write([]byte(text))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// stanzas writes a Packages index: a line "name version" starts a package, other lines are its further fields.
func stanzas(text string) string {
	var out strings.Builder
	for block := range strings.SplitSeq(strings.TrimSpace(text), "\n") {
		block = strings.TrimSpace(block)
		if block == "" {
			continue
		}
		head, fields, _ := strings.Cut(block, ";")
		f := strings.Fields(head)
		arch := "amd64"
		if len(f) > 2 {
			arch = f[2]
		}
		sum := sha256.Sum256([]byte(f[0] + f[1] + arch))
		fmt.Fprintf(&out, "Package: %s\nVersion: %s\nArchitecture: %s\nFilename: pool/main/%s_%s.deb\nSize: %d\nSHA256: %x\n",
			f[0], f[1], arch, f[0], strings.ReplaceAll(f[1], ":", ""), len(head), sum)
		for field := range strings.SplitSeq(fields, ";") {
			if field = strings.TrimSpace(field); field != "" {
				out.WriteString(field + "\n")
			}
		}
		out.WriteString("Description: something\n to be skipped: over\n\n")
	}
	return out.String()
}

// basePackages is the least that a lock needs, with one kernel and the usual things around it.
const basePackages = `
base-files 12; Essential: yes; Pre-Depends: awk
dash 0.5; Essential: yes; Priority: required; Depends: libc6 (>= 2.3)
init 1; Essential: yes; Depends: usrmerge | usr-is-merged
usrmerge 1 all; Depends: perl
usr-is-merged 1 all
perl 5
gawk 1:5; Priority: optional; Provides: awk; Depends: libmpfr
mawk 1.3; Priority: required; Provides: awk
libmpfr 4
libc6 2.36; Depends: libgcc-s1
libgcc-s1 12; Depends: libc6 (>= 2.30)
make 4; Depends: libc6:any
patch 2
kmod 30; Depends: libc6
bc 1
xz-utils 5
binutils 2.40
gcc-12 12.2; Depends: binutils (>= 2.35), libc6; Recommends: libc6-dev
libc6-dev 2.36
linux-headers-6.1.0-1-common 6.1.1-1 all
linux-headers-6.1.0-1-amd64 6.1.1-1; Depends: linux-headers-6.1.0-1-common (= 6.1.1-1), linux-kbuild-6.1 (>= 6.1.1-1), linux-compiler-gcc-12-x86
linux-headers-6.1.0-1-cloud-amd64 6.1.1-1; Depends: linux-headers-6.1.0-1-common (= 6.1.1-1), linux-kbuild-6.1 (>= 6.1.1-1), linux-compiler-gcc-12-x86
linux-headers-6.1-amd64 6.1.1-1; Depends: linux-headers-6.1.0-1-amd64 (= 6.1.1-1)
linux-headers-amd64 6.1.1-1; Provides: linux-headers-generic; Depends: linux-headers-6.1.0-1-amd64 (= 6.1.1-1)
linux-kbuild-6.1 6.1.1-1; Depends: libelf1
linux-compiler-gcc-12-x86 6.1.1-1; Depends: gcc-12
libelf1 0.188
`

// clock is a time that tests move.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

// bench is a repository with clients that share a cache folder and a clock.
type bench struct {
	*archiveRepo
	clock    *clock
	cache    string
	mu       sync.Mutex
	warnings []string
}

func newBench(t *testing.T) *bench {
	return &bench{archiveRepo: newRepo(t), clock: &clock{t: epoch}, cache: t.TempDir()}
}

// client stands for a process of its own.
func (b *bench) client(o Options) *Provider {
	b.t.Helper()
	return b.clientOf("debian", o)
}

func (b *bench) clientOf(distro string, o Options) *Provider {
	b.t.Helper()
	o.CacheDir, o.Now = b.cache, b.clock.now
	o.Etc = b.t.TempDir()
	if o.Keyring == nil {
		o.Keyring = openpgp.EntityList{signer()}
	}
	if o.Mirrors == nil {
		o.Mirrors = map[string][]string{"debian": {b.url + "/debian/"}}
	}
	o.Warn = func(s string) {
		b.mu.Lock()
		defer b.mu.Unlock()
		b.warnings = append(b.warnings, s)
	}
	p, err := New(distro, o)
	if err != nil {
		b.t.Fatal(err)
	}
	for q := p; q != nil; q = q.ports {
		q.asker.Net.Wait = time.Millisecond
	}
	return p
}

func (b *bench) warned(part string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.ContainsFunc(b.warnings, func(s string) bool { return strings.Contains(s, part) })
}

// cached lists the files of the cache folder by their names' ends.
func (b *bench) cached(suffix string) []string {
	var out []string
	filepath.WalkDir(b.cache, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && strings.HasSuffix(path, suffix) {
			out = append(out, path)
		}
		return nil
	})
	return out
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
