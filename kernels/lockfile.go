package kernels

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// LockFile has the locks of many kernels, for builds that are to look into no index. Its text is for people to review, with one package
// on a line; there is one text for what it says, so that a difference of two texts is one of what they say:
//
//	godkms.lock 1
//
//	index debian/bookworm amd64 debian bookworm-updates 2026-07-11T08:12:01Z sha256:HEX URL
//
//	kernel debian/bookworm:6.1.0-56-amd64 amd64 gcc-12 sha256:HEX
//	  with libxtables-dev | iptables-dev
//	  toolchain sha256:HEX
//	  package linux-headers-6.1.0-56-amd64 6.1.192-2 amd64 1234567 sha256:HEX URL...
//	  image sha256:HEX
//	  package linux-image-6.1.0-56-amd64 6.1.192-2 amd64 12345678 sha256:HEX URL...
//
//	toolchain sha256:HEX
//	  package bash 5.2.15-2+b7 amd64 1491776 sha256:HEX URL...
//
// The line of an index has the suite and architecture, the archive, the name, the date and the digest of the index, with - for what isn't
// known; that of a kernel ends in its Lock.Digest, so that nothing that counts for a build can change unnoticed; that of a package has
// its size before its digest. Behind "image", with its Image.Digest, are the packages of the kernel itself; it is missing where the
// distribution had them not, and in files from before there was such a thing. Below a kernel there may also be "forced", "build FOLDER" and "depends ENTRY", as Lock and Extra have them.
// A kernel comes once for each set of extra packages; a toolchain once for all kernels. Kernels are sorted, and the toolchains come in
// the order in which these name them.
type LockFile struct {
	Indexes []LockedIndex
	Locks   []ExtraLock
}

// LockedIndex is an index that a lock was read from.
type LockedIndex struct {
	Distro, Suite, Arch string
	Index
}

// ExtraLock is the lock of a kernel with extra packages, and the kernel itself.
type ExtraLock struct {
	Extra Extra
	Lock  Lock
	Image Image // the zero value if it isn't locked
}

// String is the kernel, and the extra packages if there are any.
func (l ExtraLock) String() string {
	e := l.Extra.Canonical()
	if all := slices.Concat(e.Packages, e.Depends); len(all) > 0 {
		return l.Lock.Kernel.String() + " with " + strings.Join(all, ", ")
	}
	return l.Lock.Kernel.String()
}

const (
	lockFileName    = "godkms.lock"
	lockFileVersion = "1"
	unknown         = "-" // stands for what an index doesn't say
)

// Canonical is one form for what asks for the same: sorted, each entry once, with single spaces.
func (e Extra) Canonical() Extra {
	tidy := func(list []string) []string {
		var out []string
		for _, entry := range list {
			parts := strings.Split(entry, "|")
			for i, p := range parts {
				parts[i] = strings.Join(strings.Fields(p), " ")
			}
			out = append(out, strings.Join(parts, " | "))
		}
		slices.Sort(out)
		return slices.Compact(out)
	}
	return Extra{tidy(e.Packages), tidy(e.Depends)}
}

// compare orders locks by kernel, then by extra packages. It is zero for the lock of the same thing.
func (l ExtraLock) compare(o ExtraLock) int {
	a, b := l.Lock.Kernel, o.Lock.Kernel
	c := cmp.Or(cmp.Compare(a.Distro, b.Distro), cmp.Compare(a.Suite, b.Suite), cmp.Compare(a.Arch, b.Arch), cmp.Compare(a.Release, b.Release))
	if c != 0 {
		return c
	}
	e, f := l.Extra.Canonical(), o.Extra.Canonical()
	return cmp.Or(slices.Compare(e.Packages, f.Packages), slices.Compare(e.Depends, f.Depends))
}

// IsLockFile tells whether a text begins as lock files of any version do.
func IsLockFile(text []byte) bool { return bytes.HasPrefix(text, []byte(lockFileName+" ")) }

// Encode is the file's text. What can't be written, such as a package whose URL isn't known, is an error.
func (f *LockFile) Encode() ([]byte, error) {
	text := f.text()
	if _, err := ParseLockFile(text); err != nil {
		return nil, fmt.Errorf("the lock file can't be written: %w", err)
	}
	return text, nil
}

// text is Encode without a look at what it writes.
func (f *LockFile) text() []byte {
	var b bytes.Buffer
	fmt.Fprintln(&b, lockFileName, lockFileVersion)
	var indexes []string
	for _, i := range f.Indexes {
		date := unknown
		if !i.Date.IsZero() {
			date = i.Date.UTC().Format(time.RFC3339)
		}
		indexes = append(indexes, fmt.Sprintln("index", i.Distro+"/"+i.Suite, i.Arch, cmp.Or(i.Archive, unknown), i.Name, date, i.Digest, i.URL))
	}
	slices.Sort(indexes)
	for n, line := range slices.Compact(indexes) {
		if n == 0 {
			b.WriteByte('\n')
		}
		b.WriteString(line)
	}
	packages := func(list []Package) {
		for _, p := range list {
			urls := strings.Join(append([]string{p.URL}, p.Mirrors...), " ")
			fmt.Fprintln(&b, "  package", p.Name, p.Version, p.Arch, p.Size, p.Digest, urls)
		}
	}
	var toolchains []Lock
	seen := map[v1.Hash]bool{}
	for _, l := range slices.SortedFunc(slices.Values(f.Locks), ExtraLock.compare) {
		fmt.Fprintf(&b, "\nkernel %s %s %s %s\n", l.Lock.Kernel, l.Lock.Kernel.Arch, l.Lock.Compiler, l.Lock.Digest())
		if l.Lock.Forced {
			fmt.Fprintln(&b, "  forced")
		}
		if l.Lock.Build != "" {
			fmt.Fprintln(&b, "  build", l.Lock.Build)
		}
		e := l.Extra.Canonical()
		for _, entry := range e.Packages {
			fmt.Fprintln(&b, "  with", entry)
		}
		for _, entry := range e.Depends {
			fmt.Fprintln(&b, "  depends", entry)
		}
		digest := l.Lock.ToolchainDigest()
		if !seen[digest] {
			seen[digest] = true
			toolchains = append(toolchains, l.Lock)
		}
		fmt.Fprintln(&b, "  toolchain", digest)
		packages(l.Lock.Headers)
		if len(l.Image.Packages) > 0 {
			fmt.Fprintln(&b, "  image", l.Image.Digest())
			packages(l.Image.Packages)
		}
	}
	for _, l := range toolchains {
		fmt.Fprintf(&b, "\ntoolchain %s\n", l.ToolchainDigest())
		packages(l.Toolchain)
	}
	return b.Bytes()
}

// ParseLockFile reads what Encode wrote, and refuses anything else. Its errors name the line.
func ParseLockFile(text []byte) (*LockFile, error) {
	lines := strings.Split(string(text), "\n")
	if version, ok := strings.CutPrefix(lines[0], lockFileName+" "); !ok {
		return nil, fmt.Errorf("it is no lock file: one begins with %q", lockFileName+" "+lockFileVersion)
	} else if version != lockFileVersion {
		return nil, fmt.Errorf("line 1: a lock file of the version %q; this program reads %s", version, lockFileVersion)
	}
	var r lockReader
	for i, line := range lines[1:] {
		if line == "" {
			continue
		}
		if err := r.line(i+2, line); err != nil {
			return nil, fmt.Errorf("line %d: %w", i+2, err)
		}
	}
	f, err := r.finish()
	if err != nil {
		return nil, err
	}
	want := strings.Split(string(f.text()), "\n")
	for i := range max(len(lines), len(want)) {
		switch {
		case i >= len(want):
			return nil, fmt.Errorf("line %d: there is something behind the end", i+1)
		case i >= len(lines):
			return nil, fmt.Errorf("line %d: the end is missing: %q", i+1, want[i])
		case lines[i] != want[i]:
			return nil, fmt.Errorf("line %d: it is %q where %q belongs", i+1, lines[i], want[i])
		}
	}
	return f, nil
}

// lockReader collects the blocks of a lock file.
type lockReader struct {
	indexes    []LockedIndex
	locks      []readLock
	toolchains []readToolchain
	packages   *[]Package // of the block that lines belong to
	kernel     bool       // that block is a kernel's
}

type readLock struct {
	ExtraLock
	line      int
	digest    v1.Hash
	toolchain v1.Hash
	image     v1.Hash
}

type readToolchain struct {
	line     int
	digest   v1.Hash
	packages []Package
}

// line reads one line that isn't empty.
func (r *lockReader) line(n int, line string) (err error) {
	text, inner := strings.CutPrefix(line, "  ")
	word, rest, _ := strings.Cut(text, " ")
	for i := range len(rest) {
		if rest[i] < ' ' || rest[i] > '~' {
			return fmt.Errorf("it has the character %q", rest[i])
		}
	}
	f := strings.Split(rest, " ")
	fields := func(n int) error {
		if len(f) != n || slices.Contains(f, "") {
			return fmt.Errorf("%s has %d words with single spaces between behind it; it is %q", word, n, line)
		}
		return nil
	}
	if !inner {
		r.packages, r.kernel = nil, false
	}
	last := len(r.locks) - 1
	switch {
	case !inner && word == "index":
		if err = fields(7); err == nil {
			err = r.index(f)
		}
	case !inner && word == "kernel":
		if err = fields(4); err != nil {
			return err
		}
		l := readLock{line: n}
		if l.Lock.Kernel, err = parseKernel(f[0], f[1]); err != nil {
			return err
		}
		if l.digest, err = parseDigest(f[3]); err != nil {
			return err
		}
		if l.Lock.Compiler = f[2]; !isName(f[2]) {
			return fmt.Errorf("%q is no compiler", f[2])
		}
		l.Lock.Toolchain, l.Lock.Headers = []Package{}, []Package{}
		r.locks = append(r.locks, l)
		r.packages, r.kernel = &r.locks[len(r.locks)-1].Lock.Headers, true
	case !inner && word == "toolchain":
		t := readToolchain{line: n, packages: []Package{}}
		if t.digest, err = parseDigest(rest); err != nil {
			return err
		}
		r.toolchains = append(r.toolchains, t)
		r.packages = &r.toolchains[len(r.toolchains)-1].packages
	case inner && word == "package" && r.packages != nil:
		p, err := parsePackage(f)
		if err != nil {
			return err
		}
		*r.packages = append(*r.packages, p)
	case inner && word == "forced" && r.kernel:
		r.locks[last].Lock.Forced = true
	case inner && word == "build" && r.kernel:
		if r.locks[last].Lock.Build = rest; !fs.ValidPath(rest) || !isWord(rest, "/") {
			return fmt.Errorf("%q is no folder below the root", rest)
		}
	case inner && word == "with" && r.kernel && rest != "":
		r.locks[last].Extra.Packages = append(r.locks[last].Extra.Packages, rest)
	case inner && word == "depends" && r.kernel && rest != "":
		r.locks[last].Extra.Depends = append(r.locks[last].Extra.Depends, rest)
	case inner && word == "toolchain" && r.kernel:
		r.locks[last].toolchain, err = parseDigest(rest)
	case inner && word == "image" && r.kernel:
		l := &r.locks[last]
		l.image, err = parseDigest(rest)
		l.Image.Kernel, r.packages = l.Lock.Kernel, &l.Image.Packages
	default:
		return fmt.Errorf("%q has no meaning here", line)
	}
	return err
}

func (r *lockReader) index(f []string) (err error) {
	i := LockedIndex{Arch: f[1], Index: Index{Archive: f[2], Name: f[3], URL: f[6]}}
	if i.Distro, i.Suite, err = parseSuite(f[0]); err != nil {
		return err
	}
	if f[2] == unknown {
		i.Archive = ""
	}
	if f[4] != unknown {
		if i.Date, err = time.Parse(time.RFC3339, f[4]); err != nil {
			return fmt.Errorf("%q is no date such as 2026-07-11T08:12:01Z", f[4])
		}
	}
	if i.Digest, err = parseFileDigest(f[5]); err == nil {
		err = checkURL(i.URL)
	}
	r.indexes = append(r.indexes, i)
	return err
}

// finish puts the blocks together and compares each with its digest.
func (r *lockReader) finish() (*LockFile, error) {
	toolchains := map[v1.Hash][]Package{}
	for _, t := range r.toolchains {
		if _, twice := toolchains[t.digest]; twice {
			return nil, fmt.Errorf("line %d: the toolchain comes twice", t.line)
		}
		if got := (Lock{Toolchain: t.packages}).ToolchainDigest(); got != t.digest {
			return nil, fmt.Errorf("line %d: the packages of this toolchain have the digest %s: they were altered; restore the file, or write it anew with the command lock", t.line, got)
		}
		toolchains[t.digest] = t.packages
	}
	f := &LockFile{Indexes: r.indexes}
	for i, l := range r.locks {
		if i > 0 && l.compare(r.locks[i-1].ExtraLock) == 0 {
			return nil, fmt.Errorf("line %d: %s comes twice", l.line, l.ExtraLock)
		}
		var ok bool
		if l.Lock.Toolchain, ok = toolchains[l.toolchain]; !ok {
			return nil, fmt.Errorf("line %d: this kernel's toolchain is not in the file", l.line)
		}
		if got := l.Lock.Digest(); got != l.digest {
			return nil, fmt.Errorf("line %d: what is locked for this kernel has the digest %s: it was altered; restore the file, or write it anew with the command lock", l.line, got)
		}
		if got := l.Image.Digest(); len(l.Image.Packages) > 0 && got != l.image {
			return nil, fmt.Errorf("line %d: the packages of this kernel itself have the digest %s: they were altered; restore the file, or write it anew with the command lock", l.line, got)
		}
		f.Locks = append(f.Locks, l.ExtraLock)
	}
	return f, nil
}

func parseKernel(name, arch string) (k Kernel, err error) {
	where, release, _ := strings.Cut(name, ":")
	if k.Distro, k.Suite, err = parseSuite(where); err != nil {
		return k, err
	}
	if k.Release, k.Arch = release, arch; !isName(release) || !isName(arch) {
		return k, fmt.Errorf("%q is no kernel such as debian/bookworm:6.1.0-56-amd64, or %q no architecture", name, arch)
	}
	return k, nil
}

func parseSuite(text string) (distro, suite string, err error) {
	distro, suite, _ = strings.Cut(text, "/")
	if !isName(distro) || !isName(suite) {
		return "", "", fmt.Errorf("%q is not of the form DISTRO/SUITE", text)
	}
	return distro, suite, nil
}

// isName tells whether a word can be part of the name of a folder.
func isName(s string) bool { return isWord(s, "") && strings.IndexByte("._+~-", s[0]) < 0 }

func parsePackage(f []string) (p Package, err error) {
	if len(f) < 6 || slices.Contains(f, "") {
		return p, errors.New("a package has a name, version, architecture, size, digest and URLs, with single spaces between")
	}
	p = Package{Name: f[0], Version: f[1], Arch: f[2], URL: f[5], Mirrors: slices.Clone(f[6:])}
	if len(p.Mirrors) == 0 {
		p.Mirrors = nil
	}
	if p.Size, err = strconv.ParseInt(f[3], 10, 64); err != nil || p.Size <= 0 {
		return p, fmt.Errorf("package %q: %q is no size in bytes", p.Name, f[3])
	}
	if p.Digest, err = parseFileDigest(f[4]); err != nil {
		return p, fmt.Errorf("package %q: %w", p.Name, err)
	}
	for _, u := range f[5:] {
		if err := checkURL(u); err != nil {
			return p, fmt.Errorf("package %q: %w", p.Name, err)
		}
	}
	return p, nil
}

func parseDigest(text string) (v1.Hash, error) {
	h, err := v1.NewHash(text)
	if err != nil || h.Algorithm != "sha256" && h.Algorithm != "sha512" || h.String() != text {
		return v1.Hash{}, fmt.Errorf("%q is no digest: one is sha256: and 64 hexadecimal digits, or sha512: and 128", text)
	}
	return h, nil
}

// parseFileDigest takes SHA-512 too, for indexes, and packages of which an index has no other.
func parseFileDigest(text string) (v1.Hash, error) {
	if h, err := v1.NewHash(text); err == nil && h.Algorithm == "sha512" {
		return h, nil
	}
	return parseDigest(text)
}

func checkURL(text string) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "":
		return fmt.Errorf("%q is no http or https URL", text)
	case u.User != nil:
		return fmt.Errorf("the URL at %q has a password, or a user", u.Host)
	}
	return nil
}

// Kernels gives the kernels of the file, each once.
func (f *LockFile) Kernels() []Kernel {
	var out []Kernel
	for _, l := range slices.SortedFunc(slices.Values(f.Locks), ExtraLock.compare) {
		if n := len(out); n == 0 || out[n-1] != l.Lock.Kernel {
			out = append(out, l.Lock.Kernel)
		}
	}
	return out
}

// Renew takes over the locks of another file. With them go, of this file, all others of the same kernels; and the indexes of the suites
// that have no other lock left.
func (f *LockFile) Renew(by *LockFile) {
	renewed := map[Kernel]bool{}
	toolchains := map[v1.Hash][]Package{} // with the URLs of now
	for _, l := range by.Locks {
		renewed[l.Lock.Kernel] = true
		toolchains[l.Lock.ToolchainDigest()] = l.Lock.Toolchain
	}
	f.Locks = slices.DeleteFunc(f.Locks, func(l ExtraLock) bool { return renewed[l.Lock.Kernel] })
	for i, l := range f.Locks {
		if t, ok := toolchains[l.Lock.ToolchainDigest()]; ok {
			f.Locks[i].Lock.Toolchain = t
		}
	}
	f.Indexes = slices.DeleteFunc(f.Indexes, func(i LockedIndex) bool {
		return !slices.ContainsFunc(f.Locks, func(l ExtraLock) bool {
			k := l.Lock.Kernel
			return k.Distro == i.Distro && k.Suite == i.Suite && k.Arch == i.Arch
		})
	})
	f.Locks, f.Indexes = append(f.Locks, by.Locks...), append(f.Indexes, by.Indexes...)
}

// Provider answers for one distribution from the file alone, and looks into no index: a kernel that the file doesn't have, or not with just
// those extra packages, wraps ErrNotFound. Package files are read by another provider of that distribution.
func (f *LockFile) Provider(distro string, files Provider) Provider {
	return lockedProvider{Provider: files, distro: distro, file: f}
}

type lockedProvider struct {
	Provider
	distro string
	file   *LockFile
}

func (p lockedProvider) Suites() []string {
	var out []string
	for _, k := range p.file.Kernels() {
		if k.Distro == p.distro && !slices.Contains(out, k.Suite) {
			out = append(out, k.Suite)
		}
	}
	return out
}

func (p lockedProvider) Claims(string) []string { return p.Suites() }

func (p lockedProvider) Indexes(_ context.Context, suite, arch string) ([]Index, error) {
	var out []Index
	for _, i := range p.file.Indexes {
		if i.Distro == p.distro && i.Suite == suite && i.Arch == arch {
			out = append(out, i.Index)
		}
	}
	return out, nil
}

// Kernels lists them in the order of the file. What only an index tells of a kernel is missing.
func (p lockedProvider) Kernels(_ context.Context, suite, arch string) ([]Candidate, error) {
	var out []Candidate
	for _, l := range p.file.Locks {
		k := l.Lock.Kernel
		if k.Distro == p.distro && k.Suite == suite && k.Arch == arch && (len(out) == 0 || out[len(out)-1].Kernel != k) {
			out = append(out, Candidate{Kernel: k, Compiler: l.Lock.Compiler, Digest: l.Lock.Digest()})
		}
	}
	return out, nil
}

func (p lockedProvider) Lock(_ context.Context, k Kernel, extra Extra) (Lock, error) {
	want := ExtraLock{Extra: extra, Lock: Lock{Kernel: k}}
	var have []string
	for _, l := range p.file.Locks {
		if l.compare(want) == 0 {
			return l.Lock, nil
		}
		if l.Lock.Kernel == k {
			have = append(have, l.String())
		}
	}
	if have == nil {
		return Lock{}, fmt.Errorf("%s is not in the lock file: %w", k, ErrNotFound)
	}
	return Lock{}, fmt.Errorf("%s is not in the lock file, which has %s: %w", want, strings.Join(have, "; "), ErrNotFound)
}

func (p lockedProvider) Image(_ context.Context, l Lock) (Image, error) {
	for _, have := range p.file.Locks {
		// One kernel may be locked with the headers of several versions, each of them with the kernel of its own.
		if have.Lock.Kernel == l.Kernel && slices.EqualFunc(have.Lock.Headers, l.Headers, samePackage) && len(have.Image.Packages) > 0 {
			return have.Image, nil
		}
	}
	return Image{}, fmt.Errorf("the kernel %s itself is not in the lock file, just what builds for it: %w", l.Kernel, ErrNotFound)
}

func samePackage(a, b Package) bool {
	return a.Name == b.Name && a.Version == b.Version && a.Digest == b.Digest
}

// LockChange is what differs between the locks of some kernels.
type LockChange struct {
	What    string   `json:"what"`    // "kernel", "compiler", "toolchain", "headers" or "image"
	Name    string   `json:"name"`    // of the kernel, as in Kernels, or the package; empty of a compiler
	Old     string   `json:"old"`     // the version, or the compiler; empty: it wasn't there
	New     string   `json:"new"`     // the same; empty: it isn't there any more
	Kernels []string `json:"kernels"` // where that is so, with their extra packages
}

// Diff says what changes from one lock file to another: compilers and packages, each once for all kernels where that's the same. Where
// packages are downloaded from, and the dates of indexes, don't count.
func (f *LockFile) Diff(to *LockFile) []LockChange {
	out := []LockChange{}
	at := map[[4]string]int{}
	change := func(l ExtraLock, what, name, old, new string) {
		key := [4]string{what, name, old, new}
		i, ok := at[key]
		if !ok {
			i, at[key] = len(out), len(out)
			out = append(out, LockChange{What: what, Name: name, Old: old, New: new})
		}
		if k := l.String(); !slices.Contains(out[i].Kernels, k) {
			out[i].Kernels = append(out[i].Kernels, k)
		}
	}
	packages := func(l ExtraLock, what string, old, new []Package) {
		was, is := versions(old, new), versions(new, old)
		for _, p := range old {
			if name := p.Name; was[name] != is[name] {
				change(l, what, name, was[name], is[name])
			}
		}
		for _, p := range new {
			if _, both := was[p.Name]; !both {
				change(l, what, p.Name, "", is[p.Name])
			}
		}
	}
	order := func(f *LockFile) []ExtraLock { return slices.SortedFunc(slices.Values(f.Locks), ExtraLock.compare) }
	old, new := order(f), order(to)
	for len(old) > 0 || len(new) > 0 {
		switch {
		case len(new) == 0 || len(old) > 0 && old[0].compare(new[0]) < 0:
			change(old[0], "kernel", old[0].String(), old[0].Lock.Compiler, "")
			old = old[1:]
		case len(old) == 0 || old[0].compare(new[0]) > 0:
			change(new[0], "kernel", new[0].String(), "", new[0].Lock.Compiler)
			new = new[1:]
		default:
			a, b := old[0].Lock, new[0].Lock
			if a.Compiler != b.Compiler {
				change(new[0], "compiler", "", a.Compiler, b.Compiler)
			}
			packages(new[0], "toolchain", a.Toolchain, b.Toolchain)
			packages(new[0], "headers", a.Headers, b.Headers)
			packages(new[0], "image", old[0].Image.Packages, new[0].Image.Packages)
			old, new = old[1:], new[1:]
		}
	}
	return out
}

// versions gives the versions of packages by name. Where others have the same version in another file, its digest is part of it.
func versions(list, others []Package) map[string]string {
	out := map[string]string{}
	for _, p := range list {
		text := p.Version
		if slices.ContainsFunc(others, func(o Package) bool { return o.Name == p.Name && o.Version == p.Version && o.Digest != p.Digest }) {
			text += " (" + p.Digest.String() + ")"
		}
		if out[p.Name] != "" {
			text = out[p.Name] + ", " + text
		}
		out[p.Name] = text
	}
	return out
}
