package artifact

import (
	"fmt"
	"strings"
)

// A Tag is what a tag of this package says: of an index over the kernels of a version, or, with the other fields set, of the artifact
// for one kernel.
type Tag struct {
	Version, Distro, Suite, Release string
	Arch                            string // set only if it isn't the one that the release implies
}

// maxTag is how many characters a tag has at most (distribution-spec, "Pulling manifests").
const maxTag = 128

// KernelTag is the tag of an artifact: <version>-<distro>-<suite>-<release>, with _ before what stands for something else. It has at
// least three - that are not behind _.
func KernelTag(m Meta) (string, error) {
	return kernelTag(m.Version, m.Kernel)
}

func kernelTag(version string, k Kernel) (string, error) {
	t := Tag{Version: version, Distro: k.Distro, Suite: k.Suite, Release: k.Release}
	if !implied(k.Release, k.Arch) {
		t.Arch = k.Arch
	}
	return t.encode()
}

// VersionTag is the tag of the index over a version's kernels. It has no - that is not behind _.
func VersionTag(version string) (string, error) {
	return Tag{Version: version}.encode()
}

func (t Tag) encode() (string, error) {
	parts := []struct{ what, value string }{{"version", t.Version}}
	if t.Release != "" || t.Distro != "" || t.Suite != "" {
		parts = append(parts, []struct{ what, value string }{{"distribution", t.Distro}, {"suite", t.Suite}, {"kernel release", t.Release}}...)
	}
	var b strings.Builder
	longest := parts[0]
	for i, p := range parts {
		if p.value == "" {
			return "", fmt.Errorf("make a tag: no %s", p.what)
		}
		if i > 0 {
			b.WriteByte('-')
		}
		if len(p.value) > len(longest.value) {
			longest = p
		}
		escape(&b, p.value, i == 3)
	}
	if t.Arch != "" {
		b.WriteString("_a")
		escape(&b, t.Arch, true)
	}
	if b.Len() > maxTag {
		return "", fmt.Errorf("make a tag: %.200q has %d characters, more than the %d that registries allow; what takes most is the %s %.200q",
			b.String(), b.Len(), maxTag, longest.what, longest.value)
	}
	return b.String(), nil
}

// short has the escapes of two characters that stand for one.
var short = map[byte]byte{'_': '_', '-': '-', 'p': '+', 't': '~', 'c': ':'}

// escape appends a part of a tag; dashes stay in the last.
func escape(b *strings.Builder, s string, dashes bool) {
	for i := range len(s) {
		c := s[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-' && dashes, c == '.' && b.Len() > 0:
			b.WriteByte(c)
		case c == '_', c == '-':
			b.WriteString("_" + string(c))
		case c == '+':
			b.WriteString("_p")
		case c == '~':
			b.WriteString("_t")
		case c == ':':
			b.WriteString("_c")
		default:
			fmt.Fprintf(b, "_x%02x", c)
		}
	}
}

// ParseTag reads a tag that KernelTag or VersionTag made. Others are refused: those of other things have one or two dashes, such as
// "sha256-<hex>" (what refers to a digest, in registries without the referrers API) or "key-<hex>".
func ParseTag(tag string) (Tag, bool) {
	parts := []string{""}
	arch := false
	for i := 0; i < len(tag); i++ {
		last := &parts[len(parts)-1]
		switch c := tag[i]; {
		case c == '-' && len(parts) < 4:
			parts = append(parts, "")
		case c != '_':
			*last += string(rune(c)) // encode refuses what isn't ASCII
		case i+1 == len(tag):
			return Tag{}, false
		default:
			i++
			switch plain, ok := short[tag[i]]; {
			case ok:
				*last += string(rune(plain))
			case tag[i] == 'a' && len(parts) == 4:
				parts, arch = append(parts, ""), true
			case tag[i] == 'x' && i+2 < len(tag):
				hi, lo := strings.IndexByte(hexDigits, tag[i+1]), strings.IndexByte(hexDigits, tag[i+2])
				if hi < 0 || lo < 0 {
					return Tag{}, false
				}
				*last += string([]byte{byte(hi<<4 | lo)})
				i += 2
			default:
				return Tag{}, false
			}
		}
	}
	t := Tag{Version: parts[0]}
	switch {
	case len(parts) >= 4:
		t.Distro, t.Suite, t.Release = parts[1], parts[2], parts[3]
		if arch {
			t.Arch = parts[4]
		}
	case len(parts) != 1:
		return Tag{}, false
	}
	// There is one way only to write it.
	if again, err := t.encode(); err != nil || again != tag || arch && implied(t.Release, t.Arch) {
		return Tag{}, false
	}
	return t, true
}

const hexDigits = "0123456789abcdef"

// architectures are the names that releases end in.
var architectures = []string{
	"amd64", "x86_64", "arm64", "aarch64", "armhf", "armv7hl", "armel", "i386", "i686", "ppc64le", "ppc64el", "s390x", "riscv64", "mips64el", "mipsel", "loong64",
}

// ImpliedArch is the architecture that a kernel's release tells of: what it ends in, "6.1.0-56-arm64", or else x86-64. It need not be
// the kernel's: Ubuntu, for one, has the same release for several.
func ImpliedArch(release string) string {
	for _, a := range architectures {
		if s, ok := strings.CutSuffix(release, a); ok && (strings.HasSuffix(s, "-") || strings.HasSuffix(s, ".")) {
			return a
		}
	}
	return "amd64"
}

func implied(release, arch string) bool { return sameArch(ImpliedArch(release), arch) }

// sameArch tells whether two names are of one architecture.
func sameArch(a, b string) bool {
	x, xv := platform(a)
	y, yv := platform(b)
	return x == y && xv == yv
}
