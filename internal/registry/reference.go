package registry

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// A Reference names a repository, and a tag or a digest in it, if any. The zero value is none.
type Reference struct {
	Tag    string
	Digest v1.Hash // the zero value unless one is named
	dir    string  // of a layout directory; or
	repo   name.Repository
}

// Layout is what the reference of a layout directory begins with.
const Layout = "oci:"

var tagForm = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`) // distribution-spec, "Pulling manifests"

// Parse reads a reference: "registry.example/team/module", with ":TAG" or "@sha256:DIGEST" behind it, or the same behind
// "oci:DIR". Without a registry it is Docker Hub's.
func Parse(text string) (Reference, error) {
	fail := func(format string, a ...any) (Reference, error) {
		return Reference{}, fmt.Errorf("reference %q: %s", text, fmt.Sprintf(format, a...))
	}
	if scheme, rest, ok := strings.Cut(text, "://"); ok {
		return fail("write it without %q, as %s", scheme+"://", rest)
	}
	var r Reference
	where, digest, byDigest := strings.Cut(text, "@")
	dir, layout := strings.CutPrefix(where, Layout)
	if byDigest {
		var err error
		if r.Digest, err = v1.NewHash(digest); err != nil || r.Digest.Algorithm != "sha256" {
			return fail("%q is not a SHA-256 digest", digest)
		}
	}
	// A colon ends the name of the repository, unless a slash follows: then it's a registry's port.
	if i := strings.LastIndexByte(where, ':'); i >= 0 && !strings.Contains(where[i:], "/") && !(layout && i < len(Layout)) {
		r.Tag = where[i+1:]
		where, dir = where[:i], strings.TrimPrefix(where[:i], Layout)
		if !tagForm.MatchString(r.Tag) {
			return fail("%q can't be a tag", r.Tag)
		}
	}
	if layout {
		if dir == "" {
			return fail("no directory behind %q", Layout)
		}
		r.dir = filepath.Clean(dir)
		return r, nil
	}
	if !strings.Contains(where, "/") && (strings.Contains(where, ".") || where == "localhost") {
		return fail("that is a registry; write the repository behind it, as in %s/modules/hello", text)
	}
	repo, err := name.NewRepository(where)
	if err != nil {
		return fail("%v", err)
	}
	r.repo = repo
	return r, nil
}

// InLayout names the repository in a layout directory, whatever its path is like.
func InLayout(dir string) Reference { return Reference{dir: filepath.Clean(dir)} }

// IsLayout tells whether it names a layout directory.
func (r Reference) IsLayout() bool { return r.dir != "" }

// Repository is the reference without tag and digest.
func (r Reference) Repository() string {
	if r.dir != "" {
		return Layout + r.dir
	}
	return r.repo.Name()
}

// Identifier is the digest, or else the tag; empty if there is neither.
func (r Reference) Identifier() string {
	if r.Digest != (v1.Hash{}) {
		return r.Digest.String()
	}
	return r.Tag
}

func (r Reference) String() string {
	s := r.Repository()
	if r.Tag != "" {
		s += ":" + r.Tag
	}
	if r.Digest != (v1.Hash{}) {
		s += "@" + r.Digest.String()
	}
	return s
}
