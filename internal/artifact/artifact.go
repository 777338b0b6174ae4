// Package artifact turns a set of built modules into an OCI image, and back.
package artifact

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Media types of what an artifact is made of. The layer is not compressed: modules are small, and a hash over plain bytes
// depends on no compressor's version.
const (
	ManifestType = types.OCIManifestSchema1
	ConfigType   = types.OCIConfigJSON
	LayerType    = types.OCIUncompressedLayer
)

// Annotations of the manifest, repeated as labels of the image's config for clients that show only those.
const (
	prefix = "dev.godkms-hermetic."

	AnnotationModule   = prefix + "module"   // the DKMS package name
	AnnotationVersion  = prefix + "version"  // its version
	AnnotationDistro   = prefix + "distro"   // "debian"
	AnnotationSuite    = prefix + "suite"    // "bookworm"
	AnnotationArch     = prefix + "arch"     // the distribution's name of it
	AnnotationRelease  = prefix + "release"  // of the kernel, as uname -r prints it
	AnnotationHeaders  = prefix + "headers"  // version of the kernel's header package
	AnnotationCompiler = prefix + "compiler" // CONFIG_CC_VERSION_TEXT of the kernel
	AnnotationSymvers  = prefix + "symvers"  // digest of the kernel's Module.symvers
	AnnotationKey      = prefix + "key"      // of the build
	AnnotationSource   = prefix + "source"   // digest of the source tree
	AnnotationLock     = prefix + "lock"     // digest of the packages that the build root was made of
	AnnotationRoot     = prefix + "root"     // digest of what is in the header image that it was built on: a function of the lock
	AnnotationStatus   = prefix + "status"   // "built" or "skipped"
	AnnotationReason   = prefix + "reason"   // why it was skipped
	AnnotationModules  = prefix + "modules"  // JSON: [{"name","dest","size","digest","vermagic"}], sorted by name
	AnnotationExtras   = prefix + "extras"   // JSON: [{"name","size","digest","command","executable"}], sorted by name
)

// Status is how a build ended that has a result.
type Status string

const (
	Built   Status = "built"
	Skipped Status = "skipped" // the module excludes this kernel (BUILD_EXCLUSIVE); there are no files
)

// Kernel is the kernel that the modules are for.
type Kernel struct {
	Distro  string `json:"distro"`
	Suite   string `json:"suite"`
	Arch    string `json:"arch"`
	Release string `json:"release"`
}

// Meta is what is known of an artifact. Headers, Compiler, Symvers and Root may be empty, Reason is set for skipped ones only.
type Meta struct {
	Module, Version string
	Kernel          Kernel
	Headers         string
	Compiler        string
	Symvers         v1.Hash
	Key             v1.Hash
	Source          v1.Hash
	Lock            v1.Hash
	Root            v1.Hash
	Status          Status
	Reason          string
	Extras          []Extra
}

// ModuleSymvers is the name of the Extra that has the symbols which the modules export, in the form of a Module.symvers
// (Documentation/kbuild/modules.rst), sorted by symbol: modules that depend on these are built against it.
const ModuleSymvers = "Module.symvers"

// ScriptNames are the names of the Extras that are scripts: directives of a dkms.conf whose script a host runs, where it
// installs or removes the modules.
var ScriptNames = []string{"POST_ADD", "PRE_INSTALL", "POST_INSTALL", "POST_REMOVE"}

// Extra is what an artifact has beside its modules: ModuleSymvers, or one of ScriptNames. A name is there once at most.
type Extra struct {
	Name       string
	Command    string // of a script: its path below the source tree, and its arguments, as the dkms.conf gives them
	Executable bool   // whether the script is; DKMS runs no other
	Size       int64
	Digest     v1.Hash // as File.Digest
	Open       func() (io.ReadCloser, error)
}

// File is one module. Open may be called more than once and gives the same Size bytes each time.
type File struct {
	Name     string // "v4l2loopback.ko"
	Dest     string // folder below /lib/modules/<release>/: "updates/dkms"
	Size     int64
	Vermagic string
	Digest   v1.Hash // sha256; New computes it where it is empty, and compares it where it is not
	Open     func() (io.ReadCloser, error)
}

// ErrInvalid is wrapped by every error that means: this is not an artifact, or it was altered.
var ErrInvalid = errors.New("not a valid artifact")

func invalid(format string, a ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, a...))
}

// Limits for what is accepted: of a hostile registry, above all.
const (
	maxFiles = 1024
	maxFile  = 1 << 30 // bytes of one module
	maxAll   = 4 << 30 // bytes of all modules of an artifact
	maxExtra = 32 << 20
	maxMeta  = 4 << 20 // bytes of the manifest and of the config
	maxText  = 4096    // bytes of an annotation, other than the list of modules
)

var (
	nameForm      = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+-]*\.ko$`)
	folderForm    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~@=,:-]{0,127}$`) // as package dkms takes names and versions, and a colon, as Debian's have
	componentForm = regexp.MustCompile(`^[A-Za-z0-9_+~][A-Za-z0-9._+~-]*$`)
)

// checkComponents accepts relative paths of plain names only.
func checkComponents(what, p string) error {
	for c := range strings.SplitSeq(p, "/") {
		if !componentForm.MatchString(c) || len(c) > 200 {
			return invalid("%s %q", what, p)
		}
	}
	return nil
}

// checkText accepts what a JSON string carries unchanged.
func checkText(what, s string) error {
	if len(s) > maxText || !utf8.ValidString(s) {
		return invalid("a %s of %d bytes, or not UTF-8", what, len(s))
	}
	return nil
}

func (m Meta) check() error {
	for _, f := range []struct{ what, value string }{
		{"module name", m.Module}, {"module version", m.Version}, {"distribution", m.Kernel.Distro}, {"suite", m.Kernel.Suite},
		{"architecture", m.Kernel.Arch}, {"kernel release", m.Kernel.Release},
	} {
		if f.value == "" {
			return invalid("it has no %s", f.what)
		}
		if err := checkText(f.what, f.value); err != nil {
			return err
		}
	}
	for _, f := range []struct{ what, value string }{{"header version", m.Headers}, {"compiler", m.Compiler}, {"reason", m.Reason}} {
		if err := checkText(f.what, f.value); err != nil {
			return err
		}
	}
	if !folderForm.MatchString(m.Module) || !folderForm.MatchString(m.Version) {
		return invalid("module %q, version %q", m.Module, m.Version)
	}
	for _, f := range []struct{ what, value string }{ // they become names of folders
		{"distribution", m.Kernel.Distro}, {"suite", m.Kernel.Suite}, {"architecture", m.Kernel.Arch}, {"kernel release", m.Kernel.Release},
	} {
		if strings.Contains(f.value, "/") {
			return invalid("%s %q", f.what, f.value)
		}
		if err := checkComponents(f.what, f.value); err != nil {
			return err
		}
	}
	for _, f := range []struct {
		what string
		h    v1.Hash
		must bool
	}{
		{"key", m.Key, true}, {"source digest", m.Source, true}, {"lock digest", m.Lock, true},
		{"Module.symvers digest", m.Symvers, false}, {"root digest", m.Root, false},
	} {
		if f.h == (v1.Hash{}) && !f.must {
			continue
		}
		if h, err := v1.NewHash(f.h.String()); err != nil || h.Algorithm != "sha256" {
			return invalid("%s %q", f.what, f.h)
		}
	}
	switch {
	case m.Status != Built && m.Status != Skipped:
		return invalid("status %q", m.Status)
	case m.Status == Skipped && m.Reason == "":
		return invalid("it was skipped without a reason")
	case m.Status == Built && m.Reason != "":
		return invalid("it was built, but has a reason to skip it: %.80q", m.Reason)
	}
	return checkExtras(m)
}

// checkExtras wants extras sorted by name.
func checkExtras(m Meta) error {
	if m.Status == Skipped && len(m.Extras) != 0 {
		return invalid("it was skipped, but has %q", m.Extras[0].Name)
	}
	for i, e := range m.Extras {
		script := slices.Contains(ScriptNames, e.Name)
		switch {
		case !script && e.Name != ModuleSymvers:
			return invalid("an extra file named %q", e.Name)
		case i > 0 && e.Name <= m.Extras[i-1].Name:
			return invalid("extra files are not sorted, or %q is there twice", e.Name)
		case script != (e.Command != ""), e.Executable && !script:
			return invalid("%q has the command %.80q", e.Name, e.Command)
		case e.Size < 0 || e.Size > maxExtra:
			return invalid("%q has %d bytes", e.Name, e.Size)
		}
		if err := checkText("command", e.Command); err != nil {
			return err
		}
	}
	return nil
}

// checkFiles wants files sorted by name. Two of one name are refused even with different folders: depmod takes one of them only.
// There may be none: a dkms.conf without modules is built, too.
func checkFiles(m Meta, files []File) error {
	if m.Status == Skipped && len(files) != 0 {
		return invalid("it was skipped, but has modules")
	}
	if len(files) > maxFiles {
		return invalid("%d modules, more than %d", len(files), maxFiles)
	}
	left := int64(maxAll)
	for i, f := range files {
		if !nameForm.MatchString(f.Name) || len(f.Name) > 200 {
			return invalid("module file name %q", f.Name)
		}
		if err := checkComponents("folder", f.Dest); err != nil {
			return err
		}
		if len(f.Dest) > maxText {
			return invalid("a folder of %d bytes", len(f.Dest))
		}
		if err := checkText("vermagic", f.Vermagic); err != nil {
			return err
		}
		if f.Size < 0 || f.Size > maxFile {
			return invalid("module %q has %d bytes", f.Name, f.Size)
		}
		if left -= f.Size; left < 0 {
			return invalid("the modules have more than %d bytes", int64(maxAll))
		}
		if i > 0 && f.Name <= files[i-1].Name {
			if f.Name == files[i-1].Name {
				return invalid("two modules are named %q, in %q and %q", f.Name, files[i-1].Dest, f.Dest)
			}
			return invalid("modules are not sorted")
		}
	}
	return nil
}

// moduleJSON is an element of AnnotationModules.
type moduleJSON struct {
	Name     string  `json:"name"`
	Dest     string  `json:"dest"`
	Size     int64   `json:"size"`
	Digest   v1.Hash `json:"digest"`
	Vermagic string  `json:"vermagic,omitempty"`
}

// extraJSON is an element of AnnotationExtras.
type extraJSON struct {
	Name       string  `json:"name"`
	Size       int64   `json:"size"`
	Digest     v1.Hash `json:"digest"`
	Command    string  `json:"command,omitempty"`
	Executable bool    `json:"executable,omitempty"`
}

func annotations(m Meta, files []File) (map[string]string, error) {
	list := make([]moduleJSON, len(files))
	for i, f := range files {
		list[i] = moduleJSON{f.Name, f.Dest, f.Size, f.Digest, f.Vermagic}
	}
	b, err := json.Marshal(list)
	if err != nil {
		return nil, err
	}
	out := map[string]string{
		ocispec.AnnotationTitle:   m.Module,
		ocispec.AnnotationVersion: m.Version,
		ocispec.AnnotationDescription: fmt.Sprintf("kernel modules of %s %s for %s %s %s (%s)", m.Module, m.Version,
			m.Kernel.Distro, m.Kernel.Suite, m.Kernel.Release, m.Kernel.Arch),
		AnnotationModule:   m.Module,
		AnnotationVersion:  m.Version,
		AnnotationDistro:   m.Kernel.Distro,
		AnnotationSuite:    m.Kernel.Suite,
		AnnotationArch:     m.Kernel.Arch,
		AnnotationRelease:  m.Kernel.Release,
		AnnotationHeaders:  m.Headers,
		AnnotationCompiler: m.Compiler,
		AnnotationKey:      m.Key.String(),
		AnnotationSource:   m.Source.String(),
		AnnotationLock:     m.Lock.String(),
		AnnotationStatus:   string(m.Status),
		AnnotationReason:   m.Reason,
		AnnotationModules:  string(b),
	}
	if len(m.Extras) > 0 {
		list := make([]extraJSON, len(m.Extras))
		for i, e := range m.Extras {
			list[i] = extraJSON{e.Name, e.Size, e.Digest, e.Command, e.Executable}
		}
		b, err := json.Marshal(list)
		if err != nil {
			return nil, err
		}
		out[AnnotationExtras] = string(b)
	}
	for k, h := range map[string]v1.Hash{AnnotationSymvers: m.Symvers, AnnotationRoot: m.Root} {
		if h != (v1.Hash{}) {
			out[k] = h.String()
		}
	}
	maps.DeleteFunc(out, func(_, v string) bool { return v == "" })
	return out, nil
}

func parseAnnotations(a map[string]string) (Meta, []File, error) {
	for k, v := range a {
		if k != AnnotationModules && k != AnnotationExtras && len(v) > maxText {
			return Meta{}, nil, invalid("annotation %.80q has %d bytes", k, len(v))
		}
	}
	m := Meta{
		Module:  a[AnnotationModule],
		Version: a[AnnotationVersion],
		Kernel: Kernel{
			Distro: a[AnnotationDistro], Suite: a[AnnotationSuite], Arch: a[AnnotationArch], Release: a[AnnotationRelease],
		},
		Headers:  a[AnnotationHeaders],
		Compiler: a[AnnotationCompiler],
		Status:   Status(a[AnnotationStatus]),
		Reason:   a[AnnotationReason],
	}
	for k, h := range map[string]*v1.Hash{
		AnnotationSymvers: &m.Symvers, AnnotationKey: &m.Key, AnnotationSource: &m.Source, AnnotationLock: &m.Lock,
		AnnotationRoot: &m.Root,
	} {
		v, ok := a[k]
		if !ok {
			continue // check tells which of them must be there
		}
		var err error
		if *h, err = v1.NewHash(v); err != nil {
			return Meta{}, nil, invalid("annotation %q: %v", k, err)
		}
	}
	if text, ok := a[AnnotationExtras]; ok {
		var extras []extraJSON
		if err := json.Unmarshal([]byte(text), &extras); err != nil {
			return Meta{}, nil, invalid("annotation %q: %v", AnnotationExtras, err)
		}
		for _, j := range extras {
			if j.Digest.Algorithm != "sha256" {
				return Meta{}, nil, invalid("%q has digest %q", j.Name, j.Digest)
			}
			m.Extras = append(m.Extras, Extra{Name: j.Name, Size: j.Size, Digest: j.Digest, Command: j.Command, Executable: j.Executable})
		}
	}
	if err := m.check(); err != nil {
		return Meta{}, nil, err
	}
	list, ok := a[AnnotationModules]
	if !ok {
		return Meta{}, nil, invalid("annotation %q is missing", AnnotationModules)
	}
	var mods []moduleJSON
	if err := json.Unmarshal([]byte(list), &mods); err != nil {
		return Meta{}, nil, invalid("annotation %q: %v", AnnotationModules, err)
	}
	files := make([]File, len(mods))
	for i, j := range mods {
		if j.Digest.Algorithm != "sha256" {
			return Meta{}, nil, invalid("module %q has digest %q", j.Name, j.Digest)
		}
		files[i] = File{Name: j.Name, Dest: j.Dest, Size: j.Size, Digest: j.Digest, Vermagic: j.Vermagic}
	}
	return m, files, checkFiles(m, files)
}

// platform names the architecture as images do (GOARCH), where it differs from distributions' names.
func platform(arch string) (architecture, variant string) {
	switch arch {
	case "x86_64":
		return "amd64", ""
	case "aarch64", "arm64":
		return "arm64", ""
	case "i386", "i686":
		return "386", ""
	case "armhf", "armv7hl":
		return "arm", "v7"
	case "armel":
		return "arm", "v5"
	case "ppc64el":
		return "ppc64le", ""
	case "mips64el":
		return "mips64le", ""
	case "mipsel":
		return "mipsle", ""
	}
	return arch, ""
}

// OptPath is where a module is in the image's file system, the folder that Kubernetes' Kernel Module Management loads from.
func OptPath(release, name string) string { return path.Join("/opt/lib/modules", release, name) }

// InstallPath is where the same file is again, as a hard link: its place on a host.
func InstallPath(release, dest, name string) string {
	return path.Join("/usr/lib/modules", release, dest, name)
}

// ExtraPath is where an extra file is in the image's file system.
func ExtraPath(m Meta, name string) string {
	return path.Join("/usr/share/godkms-hermetic", m.Module, m.Version, m.Kernel.Release, name)
}

func sortFiles(files []File) []File {
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b File) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return strings.Compare(a.Dest, b.Dest)
	})
	return files
}
