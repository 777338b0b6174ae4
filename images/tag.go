package images

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// maxTag is how long a tag can be (distribution-spec, "Pulling manifests").
const maxTag = 128

// LockTag is the tag of the image of a lock, whatever its kernel's is: "lock-" and the lock's digest. Another Version of this package
// needs another form of it.
func LockTag(lock kernels.Lock) string { return "lock-" + lock.Digest().Hex }

// KernelTag is the tag of the newest image that was pushed of a kernel with these extra packages, "debian-bookworm-6.1.0-56-amd64". It is
// empty if it would be too long.
//
// What a tag can't have is escaped, so that it can be read back: "__" is an underscore, "_-" a minus of the distribution or the
// suite, "_p" a plus, "_t" a tilde, "_c" a colon, "_xHH" another byte. "_a" and an architecture follow where the release doesn't end in
// it, "_w" and 16 hexadecimal digits of a hash of the extra packages where there are any.
func KernelTag(k kernels.Kernel, extra kernels.Extra) string {
	tag := escape(k.Distro, true) + "-" + escape(k.Suite, true) + "-" + releaseTag(k, extra)
	if len(tag) > maxTag {
		return ""
	}
	return tag
}

// releaseTag is a KernelTag without distribution and suite.
func releaseTag(k kernels.Kernel, extra kernels.Extra) string {
	tag := escape(k.Release, false)
	if archOf(k.Release) != k.Arch {
		tag += "_a" + escape(k.Arch, false)
	}
	if sum := extraSum(extra); sum != "" {
		tag += "_w" + sum
	}
	return tag
}

// archOf is the architecture that a release ends in, as Debian's and Fedora's do.
func archOf(release string) string { return release[strings.LastIndexAny(release, "-.")+1:] }

// extraSum is the same for the same request, in whatever order.
func extraSum(extra kernels.Extra) string {
	if len(extra.Packages)+len(extra.Depends) == 0 {
		return ""
	}
	packages, depends := slices.Sorted(slices.Values(extra.Packages)), slices.Sorted(slices.Values(extra.Depends))
	b, err := json.Marshal([][]string{slices.Compact(packages), slices.Compact(depends)})
	if err != nil {
		return "" // strings: cannot fail
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:8])
}

var escapes = map[byte]byte{'_': '_', '+': 'p', '~': 't', ':': 'c'}

func escape(s string, minus bool) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch e, ok := escapes[c]; {
		case ok:
			b.WriteByte('_')
			b.WriteByte(e)
		case c == '-' && minus:
			b.WriteString("_-")
		case c == '-', c == '.', c >= '0' && c <= '9', c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "_x%02x", c)
		}
	}
	return b.String()
}

var sumForm = regexp.MustCompile(`^[0-9a-f]{16}$`)

var errTag = errors.New("not a kernel's tag")

// parseTag reads what KernelTag made. extra is the hash of the extra packages.
func parseTag(tag string) (k kernels.Kernel, extra string, err error) {
	parts := []*string{&k.Distro, &k.Suite, &k.Release, &k.Arch, &extra}
	at := 0
	var b strings.Builder
	next := func(to int) bool {
		*parts[at] = b.String()
		b.Reset()
		ok := to > at && *parts[at] != ""
		at = to
		return ok
	}
	for i := 0; i < len(tag); i++ {
		c := tag[i]
		if c == '-' && at < 2 {
			if !next(at + 1) {
				return k, "", errTag
			}
			continue
		}
		if c != '_' {
			b.WriteByte(c)
			continue
		}
		if i++; i == len(tag) {
			return k, "", errTag
		}
		ok := true
		switch c = tag[i]; c {
		case '_', '-':
			b.WriteByte(c)
		case 'p':
			b.WriteByte('+')
		case 't':
			b.WriteByte('~')
		case 'c':
			b.WriteByte(':')
		case 'x':
			var h []byte
			if i+2 < len(tag) {
				h, err = hex.DecodeString(tag[i+1 : i+3])
			}
			if ok = err == nil && len(h) == 1; ok {
				b.Write(h)
				i += 2
			}
		case 'a':
			ok = at >= 2 && next(3)
		case 'w':
			ok = at >= 2 && next(4)
		default:
			ok = false
		}
		if !ok {
			return k, "", errTag
		}
	}
	*parts[at] = b.String()
	if k.Arch == "" {
		k.Arch = archOf(k.Release)
	}
	if at < 2 || k.Release == "" || at == 4 && !sumForm.MatchString(extra) {
		return k, "", errTag
	}
	again := KernelTag(k, kernels.Extra{})
	if at == 4 {
		again += "_w" + extra
	}
	if again != tag { // not the one form that its parts have
		return k, "", errTag
	}
	return k, extra, nil
}
