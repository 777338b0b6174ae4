// Package kernels names Linux kernels and pins the distribution packages that are needed to build modules for one.
package kernels

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// ErrNotFound is wrapped by every error that means: the distribution has no such kernel, suite or package.
var ErrNotFound = errors.New("not found")

// ErrExpired is wrapped by the error of an index that was refused for being past its Valid-Until, and for nothing else.
var ErrExpired = errors.New("expired")

// ErrNoMirror is wrapped by the error of a distribution that has no public mirror, where none was given.
var ErrNoMirror = errors.New("no mirror")

// ErrUntrusted is wrapped by the error of an index that was refused for its signature, its digest, or being older than one seen before.
var ErrUntrusted = errors.New("not to be trusted")

// Kernel names one kernel. The release alone is not enough: two suites of one distribution can have the same release
// with different compilers and symbol versions.
type Kernel struct {
	Distro  string `json:"distro"`  // ID of os-release(5): "debian", "rocky", "opensuse-leap"
	Suite   string `json:"suite"`   // what SuiteOf makes of os-release(5): "bookworm", "9", "15.6", "rolling"
	Arch    string `json:"arch"`    // in Debian's words, whatever the distribution calls it: "amd64", "arm64"
	Release string `json:"release"` // what uname -r prints: "6.1.0-56-amd64"
}

// String gives the form that --kernels takes, "debian/bookworm:6.1.0-56-amd64".
func (k Kernel) String() string { return k.Distro + "/" + k.Suite + ":" + k.Release }

// Candidate is a kernel that a distribution offers now.
type Candidate struct {
	Kernel
	PackageVersion string    `json:"package_version"` // of the header package: "6.1.192-2"
	Compiler       string    `json:"compiler"`        // as Lock.Compiler; empty where only the header package tells and wasn't read yet
	Flavour        string    `json:"flavour"`         // "amd64", "cloud-amd64", "generic", "rt", "lts"; what Selector takes behind @
	Default        bool      `json:"default"`         // of the default flavour, backports and hardware enablement aside
	Date           time.Time `json:"date,omitzero"`   // when the package was built, where the index tells
	Digest         v1.Hash   `json:"digest"`          // sha256 of the header package's file
	Latest         bool      `json:"latest"`          // the newest that is Default
}

// Package pins one distribution package. URL and Mirrors say where it was last seen and are not part of any digest: mirrors differ.
type Package struct {
	Name    string   `json:"name"`
	Version string   `json:"version"`
	Arch    string   `json:"arch"` // in the distribution's words: "amd64", "x86_64", "noarch"
	URL     string   `json:"url"`
	Mirrors []string `json:"mirrors,omitempty"` // further URLs of the same file, for when that one fails
	Digest  v1.Hash  `json:"digest"`            // sha256 of the package file; sha512 where the index has no other
	Size    int64    `json:"size"`              // bytes of the package file
}

// Lock pins everything that the root of a build is made of. Toolchain is the same for every kernel of a suite with that
// compiler; Headers is what this kernel (and the extra packages that were asked for) needs beside it. Both are sorted by name.
type Lock struct {
	Kernel    Kernel    `json:"kernel"`
	Compiler  string    `json:"compiler"`        // family and major version: "gcc-12", "clang-17"
	Forced    bool      `json:"forced,omitzero"` // the compiler was asked for, and need not be the kernel's
	Build     string    `json:"build,omitempty"` // folder of the kernel's headers, below the root; empty: usr/src/linux-headers-RELEASE
	Toolchain []Package `json:"toolchain"`
	Headers   []Package `json:"headers"`
}

// Digest is the SHA-256 over the lock's canonical form: kernel, compiler, and each package's name, version, architecture,
// digest and size, in the lock's order. Where a package was downloaded from does not count.
func (l Lock) Digest() v1.Hash { return hash(l.Encode()) }

// Encode is the lock's canonical form, JSON of one kind only: what Digest hashes. It has no URLs.
func (l Lock) Encode() []byte {
	l.Toolchain, l.Headers = withoutURLs(l.Toolchain), withoutURLs(l.Headers)
	return encode(l)
}

// DecodeLock reads what Encode wrote, and refuses anything else.
func DecodeLock(b []byte) (Lock, error) {
	var l Lock
	if err := json.Unmarshal(b, &l); err != nil {
		return Lock{}, fmt.Errorf("read lock: %w", err)
	}
	if string(l.Encode()) != string(b) {
		return Lock{}, errors.New("read lock: it is not in its canonical form")
	}
	return l, nil
}

// ToolchainDigest is the same for the toolchain alone: locks that share it share that layer of their header images.
func (l Lock) ToolchainDigest() v1.Hash { return hash(encode(withoutURLs(l.Toolchain))) }

// Extra is what a build root has beside what every build needs. An entry is the name of a package, or a dependency as the
// distribution writes it, with alternatives and versions: "libxtables-dev | iptables-dev (>= 1.4)".
type Extra struct {
	Packages []string // what the suite can't satisfy is an error
	Depends  []string // of a package file; what the suite can't satisfy is left out, with a warning
}

// ExtraError says what is wrong with one of the extra packages.
type ExtraError struct {
	Entry string // as it was given
	Err   error
}

func (e *ExtraError) Error() string { return fmt.Sprintf("extra package %q: %v", e.Entry, e.Err) }
func (e *ExtraError) Unwrap() error { return e.Err }

// Provider answers for one distribution. Implementations are safe for concurrent use.
type Provider interface {
	// Suites lists the suites that are known, newest first.
	Suites() []string
	// Claims gives those of them whose kernels are named in the way of a release, or of a shell pattern of releases, newest first. It
	// looks into no index: a suite that it leaves out can't have such a kernel, one that it names may.
	Claims(release string) []string
	// Indexes says what the answers about a suite are read from, as it is now. It fails as Kernels does.
	Indexes(ctx context.Context, suite, arch string) ([]Index, error)
	// Kernels lists what can be built for in a suite, newest first. An unknown suite wraps ErrNotFound, one whose
	// index is too old ErrExpired, one that is nowhere to be read from ErrNoMirror.
	Kernels(ctx context.Context, suite, arch string) ([]Candidate, error)
	// Lock pins the build root of a kernel, with extra packages. An unknown kernel or package wraps ErrNotFound, and what is wrong
	// with one of the extra packages is an *ExtraError. In which order they are named, or how often, makes no difference.
	Lock(ctx context.Context, k Kernel, extra Extra) (Lock, error)
	// Image pins the packages of the kernel itself whose headers a lock has, in just their version. It wraps ErrNotFound, and says which
	// versions there are, where the distribution hasn't got them, or has them no longer.
	Image(ctx context.Context, l Lock) (Image, error)
	// Payload turns a package file into the tar stream of the files that it installs. The caller closes it.
	Payload(pkg io.Reader) (io.ReadCloser, error)
	// Open is Payload with what the package file says that it depends on, for Extra.
	Open(pkg io.Reader) (payload io.ReadCloser, depends []string, err error)
}

// Index is a signed list of packages, at one of its mirrors.
type Index struct {
	Archive string    `json:"archive"`       // as --mirror names it: "debian-security"
	Name    string    `json:"name"`          // within the suite: "bookworm-updates", "baseos"
	URL     string    `json:"url"`           // of the archive there, without passwords
	Date    time.Time `json:"date,omitzero"` // that it says it has
	Digest  v1.Hash   `json:"digest"`        // sha256 of the list
}

// Partial is what a Provider can be whose archives have several mirrors.
type Partial interface {
	// Unread says why mirrors of a suite couldn't be looked into by the last answer about it, each in one line that names the mirror.
	// Warnings of them were given.
	Unread(suite string) []error
}

// Finder is what a Provider can be that knows which files packages have that nobody has installed.
type Finder interface {
	// Holders gives, for each thing that is wanted, the packages of a suite that have it, the likeliest first; none if there is none.
	// It may need to download a list of files, of which progress is told the bytes.
	Holders(ctx context.Context, suite, arch string, wanted []Wanted, progress func(done, total int64)) ([][]string, error)
}

// Wanted is something that a build missed.
type Wanted struct {
	Kind Kind
	Name string
}

// Kind is what a missing thing is.
type Kind string

const (
	Program   Kind = "program"    // named as it's called: "flex"
	Header    Kind = "header"     // as it's included: "libelf/gelf.h"
	PkgConfig Kind = "pkg-config" // as pkg-config takes it: "xtables"
	Library   Kind = "library"    // as the linker takes it behind -l: "elf"
)

func withoutURLs(in []Package) []Package {
	out := make([]Package, len(in))
	for i, p := range in {
		p.URL, p.Mirrors = "", nil
		out[i] = p
	}
	return out
}

// encode gives a value's JSON, which for the plain structs of this package has one form only.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("kernels: marshal %T: %v", v, err)) // strings and numbers only: cannot fail
	}
	return b
}

func hash(b []byte) v1.Hash {
	sum := sha256.Sum256(b)
	return v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(sum[:])}
}
