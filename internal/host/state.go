package host

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/kmod"
)

// Registration is a version of a module that the host is to have.
type Registration struct {
	Module      string    `json:"module"`
	Version     string    `json:"version"`
	Source      string    `json:"source,omitempty"`      // folder of the root, as "/usr/src/hello-1.0"; empty if there is none
	Reference   string    `json:"reference,omitempty"`   // repository to look into first, without a tag; empty if there is none
	Autoinstall bool      `json:"autoinstall,omitempty"` // new kernels get it without being asked
	Depends     []string  `json:"depends,omitempty"`     // modules that it may name in BUILD_DEPENDS
	Added       time.Time `json:"added"`
}

// State is how far a module is for a kernel.
type State string

const (
	Built     State = "built"     // its artifact is in the results
	Installed State = "installed" // and its files are below /lib/modules
	Failed    State = "failed"    // it couldn't be had; Reason says why
	Broken    State = "broken"    // its record can't be read: nothing is known but its kernel; never written
	Added     State = "added"     // of a Line: there is nothing for any kernel
)

// Record is a version of a module for one kernel of the host.
type Record struct {
	Module    string          `json:"module"`
	Version   string          `json:"version"`
	Kernel    artifact.Kernel `json:"kernel"`
	State     State           `json:"state"`
	Reason    string          `json:"reason,omitempty"`    // one line: why it failed
	Key       v1.Hash         `json:"key,omitzero"`        // of the build
	Artifact  v1.Hash         `json:"artifact,omitzero"`   // digest of the image
	From      string          `json:"from,omitempty"`      // where the artifact came from: "registry.example/hello", or empty: built or cached here
	Signer    string          `json:"signer,omitempty"`    // common name of the certificate that it was signed for; empty: not signed here
	Signature string          `json:"signature,omitempty"` // fingerprint of that certificate, as kmod.Signer has it
	Files     []File          `json:"files,omitempty"`     // that are installed, sorted by path
	Originals []Original      `json:"originals,omitempty"` // modules of others that were moved aside for it, sorted by path
	Folders   []string        `json:"folders,omitempty"`   // below /lib/modules/<release> that were made for it or another of ours: empty ones go

	// PostRemove is POST_REMOVE's command of an installed module. Its script is beside the record.
	PostRemove string    `json:"post_remove,omitempty"`
	Changed    time.Time `json:"changed"`
}

// SignedBy tells whether an installed module was signed by a signer. By none, nil, is as it is.
func (rec Record) SignedBy(s *kmod.Signer) bool { return s == nil || rec.Signature == s.Fingerprint() }

// File is one that was installed.
type File struct {
	Path   string  `json:"path"`   // below /lib/modules/<release>: "updates/dkms/hello.ko.xz"
	Size   int64   `json:"size"`   // bytes
	Digest v1.Hash `json:"digest"` // of the file as it is there, signed and compressed
	Module v1.Hash `json:"module"` // of the module in the artifact
}

// Original is a module that was there before: it is kept below originals in the state, and put back when ours goes.
type Original struct {
	Path    string      `json:"path"` // below /lib/modules/<release>: "kernel/drivers/net/dummy.ko.xz"
	Size    int64       `json:"size"`
	Digest  v1.Hash     `json:"digest"`
	Mode    fs.FileMode `json:"mode"`
	ModTime time.Time   `json:"modtime"`
}

// Module is a registration and what there is of it, sorted by kernel release and architecture.
type Module struct {
	Registration
	Records []Record

	damaged bool // the registration can't be read
}

// Find gives the record for a kernel.
func (m Module) Find(release, arch string) (Record, bool) {
	i := slices.IndexFunc(m.Records, func(r Record) bool { return r.Kernel.Release == release && r.Kernel.Arch == arch })
	if i < 0 {
		return Record{}, false
	}
	return m.Records[i], true
}

// nameForm is what a module's name, its version and a kernel's release must be like: they become names of folders.
var nameForm = regexp.MustCompile(`^[A-Za-z0-9_+:~][A-Za-z0-9_.+:~-]*$`)

// CheckName says what is wrong with a module's name, a version or a kernel release.
func CheckName(what, name string) error {
	if len(name) > 200 || !nameForm.MatchString(name) {
		return fmt.Errorf("%s %q: it must have letters, digits and _ . + : ~ - only, and not begin with . or -", what, name)
	}
	return nil
}

const registrationFile = "module.json"

func (r *Root) moduleDir(module, version string) (string, error) {
	if err := errors.Join(CheckName("module", module), CheckName("version", version)); err != nil {
		return "", err
	}
	return r.state("modules", module, version)
}

func recordName(k artifact.Kernel) string { return k.Release + "." + k.Arch + ".json" }

// Add registers a module. One that is registered wraps ErrAdded.
func (r *Root) Add(ctx context.Context, g Registration) error {
	unlock, err := r.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	dir, err := r.moduleDir(g.Module, g.Version)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, registrationFile)
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s/%s is %w", g.Module, g.Version, ErrAdded)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return r.write(path, g)
}

// Update replaces a registration that is there, else it wraps ErrNotAdded.
func (r *Root) Update(ctx context.Context, g Registration) error {
	unlock, err := r.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := r.ModuleFor(g.Module, g.Version); err != nil {
		return err
	}
	dir, err := r.moduleDir(g.Module, g.Version)
	if err != nil {
		return err
	}
	return r.write(filepath.Join(dir, registrationFile), g)
}

// Remove forgets a registration. One that still has a record that is Built or Installed wraps ErrRemains.
func (r *Root) Remove(ctx context.Context, module, version string) error {
	unlock, err := r.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	m, err := r.Module(module, version)
	if err != nil && !errors.Is(err, ErrBroken) {
		return err
	}
	for _, rec := range m.Records {
		if rec.State == Built || rec.State == Installed {
			return fmt.Errorf("%s/%s is %s for %s: %w", module, version, rec.State, rec.Kernel.Release, ErrRemains)
		}
	}
	dir, err := r.moduleDir(module, version)
	if err != nil {
		return err
	}
	// The registration goes first: records without one are nothing.
	if err := os.Remove(filepath.Join(dir, registrationFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	os.Remove(filepath.Dir(dir)) // if it's empty
	return nil
}

// Note keeps a record of a module that is Built or Failed. One that is Installed is Install's alone, and stays: then Note does
// nothing but to wrap ErrRefused.
func (r *Root) Note(ctx context.Context, rec Record) error {
	unlock, err := r.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	m, err := r.ModuleFor(rec.Module, rec.Version, rec.Kernel)
	if err != nil {
		return err
	}
	if have, ok := m.Find(rec.Kernel.Release, rec.Kernel.Arch); ok && have.State == Installed {
		return fmt.Errorf("%s/%s is installed for %s: %w", rec.Module, rec.Version, rec.Kernel.Release, ErrRefused)
	}
	return r.writeRecord(rec)
}

// Forget removes the record of a module that isn't installed. One that isn't there wraps ErrNotAdded.
func (r *Root) Forget(ctx context.Context, module, version string, k artifact.Kernel) error {
	unlock, err := r.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	m, err := r.Module(module, version)
	if err != nil && !errors.Is(err, ErrBroken) {
		return err
	}
	rec, ok := m.Find(k.Release, k.Arch)
	if !ok {
		return fmt.Errorf("%s/%s for %s: %w", module, version, k.Release, ErrNotAdded)
	}
	if rec.State == Installed {
		return fmt.Errorf("%s/%s is installed for %s: %w", module, version, k.Release, ErrRefused)
	}
	dir, err := r.moduleDir(module, version)
	if err != nil {
		return err
	}
	return os.Remove(filepath.Join(dir, recordName(k)))
}

// check is about the names that become a path.
func (rec Record) check() error {
	return errors.Join(CheckName("module", rec.Module), CheckName("version", rec.Version),
		CheckName("kernel", rec.Kernel.Release), CheckName("architecture", rec.Kernel.Arch))
}

// writeRecord writes a record whose registration is there; the root is locked.
func (r *Root) writeRecord(rec Record) error {
	if err := rec.check(); err != nil {
		return err
	}
	dir, err := r.moduleDir(rec.Module, rec.Version)
	if err != nil {
		return err
	}
	return r.write(filepath.Join(dir, recordName(rec.Kernel)), rec)
}

// write writes a value as JSON, whole or not at all.
func (r *Root) write(path string, value any) error {
	tmp, err := r.state("tmp")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(tmp, path, 0o644, func(w io.Writer) error {
		_, err := w.Write(append(b, '\n'))
		return err
	})
}

// Module gives one version of a module. It wraps ErrNotAdded, or ErrBroken where a file of the state can't be read as one: then
// what could be read is there, and a record that couldn't is Broken.
func (r *Root) Module(module, version string) (Module, error) {
	dir, err := r.moduleDir(module, version)
	if err != nil {
		return Module{}, err
	}
	return loadModule(dir, module, version)
}

// ModuleFor is Module for what is about some kernels: that the record of another one is broken is no error.
func (r *Root) ModuleFor(module, version string, ks ...artifact.Kernel) (Module, error) {
	m, err := r.Module(module, version)
	broken := func(k artifact.Kernel) bool {
		rec, _ := m.Find(k.Release, k.Arch)
		return rec.State == Broken
	}
	if errors.Is(err, ErrBroken) && !m.damaged && !slices.ContainsFunc(ks, broken) {
		err = nil
	}
	return m, err
}

func loadModule(dir, module, version string) (Module, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return Module{}, fmt.Errorf("%s/%s: %w", module, version, ErrNotAdded)
	}
	if err != nil {
		return Module{}, err
	}
	m := Module{Registration: Registration{Module: module, Version: version}}
	added := false
	var broken []error
	for _, e := range entries {
		kernel, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if e.Name() == registrationFile {
			var g Registration
			err := readJSON(path, &g)
			if errors.Is(err, fs.ErrNotExist) {
				continue // it has just gone
			}
			added = true
			if err == nil && (g.Module != module || g.Version != version) {
				err = errors.New("it is another's")
			}
			if err != nil {
				m.damaged = true
				broken = append(broken, fmt.Errorf("%s/%s is %w: its registration %q can't be read: %w; 'remove --force' removes the module, which then can be added again",
					module, version, ErrBroken, path, err))
				continue
			}
			m.Registration = g
			continue
		}
		dot := strings.LastIndexByte(kernel, '.')
		k := artifact.Kernel{Release: kernel[:max(dot, 0)], Arch: kernel[dot+1:]}
		if CheckName("kernel", k.Release) != nil || CheckName("architecture", k.Arch) != nil {
			continue // no name of ours
		}
		var rec Record
		err := readJSON(path, &rec)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil && (rec.Module != module || rec.Version != version || rec.Kernel.Release != k.Release || rec.Kernel.Arch != k.Arch) {
			err = errors.New("it is another's")
		}
		if err == nil && rec.State != Built && rec.State != Installed && rec.State != Failed {
			err = fmt.Errorf("its state is %q", rec.State)
		}
		if err != nil {
			rec = Record{Module: module, Version: version, Kernel: k, State: Broken}
			broken = append(broken, fmt.Errorf("%s/%s is %w for %s: its record %q can't be read: %w; remove that file, and install the module again with --force",
				module, version, ErrBroken, k.Release, path, err))
		}
		m.Records = append(m.Records, rec)
	}
	if !added {
		return Module{}, fmt.Errorf("%s/%s: %w", module, version, ErrNotAdded)
	}
	slices.SortFunc(m.Records, func(a, b Record) int { return strings.Compare(recordName(a.Kernel), recordName(b.Kernel)) })
	return m, errors.Join(broken...)
}

// Modules gives all that are registered, sorted by module and then by version. The error joins those of broken ones, as Module
// says them; the others are there all the same.
func (r *Root) Modules() ([]Module, error) {
	var broken []error
	all, err := r.modules(func(err error) { broken = append(broken, err) })
	if err != nil {
		return nil, err
	}
	return all, errors.Join(broken...)
}

// modules tells of what is broken, and gives the rest.
func (r *Root) modules(broken func(error)) ([]Module, error) {
	base, err := r.state("modules")
	if err != nil {
		return nil, err
	}
	modules, err := subfolders(base)
	if err != nil {
		return nil, err
	}
	var all []Module
	for _, module := range modules {
		versions, err := subfolders(filepath.Join(base, module))
		if err != nil {
			broken(err)
		}
		for _, version := range versions {
			if CheckName("module", module) != nil || CheckName("version", version) != nil {
				continue // no name of ours
			}
			m, err := loadModule(filepath.Join(base, module, version), module, version)
			if errors.Is(err, ErrNotAdded) {
				continue
			}
			if err != nil {
				broken(err)
			}
			if err == nil || errors.Is(err, ErrBroken) {
				all = append(all, m)
			}
		}
	}
	return all, nil
}

// Newest keeps the newest version of each module, by CompareVersions. The order is that of modules.
func Newest(modules []Module) []Module {
	newest := map[string]string{}
	for _, m := range modules {
		if have, ok := newest[m.Module]; !ok || CompareVersions(m.Version, have) > 0 {
			newest[m.Module] = m.Version
		}
	}
	return slices.DeleteFunc(slices.Clone(modules), func(m Module) bool { return newest[m.Module] != m.Version })
}

// stateLimit is how large a file of the state may be, in bytes. Those of a module with a hundred files have 50 kB.
const stateLimit = 1 << 20

// readJSON reads a file of the state. What isn't a regular file is an error: the root may be anybody's. Errors don't name the file. The
// status reads hundreds of them, and os.File would make twice as many system calls.
func readJSON(path string, value any) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	b := make([]byte, 0, 2048)
	for len(b) < stateLimit {
		b = slices.Grow(b, 1)
		n, err := unix.Read(fd, b[len(b):cap(b)])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		b = b[:len(b)+n]
	}
	return json.Unmarshal(b, value)
}

// subfolders are the names of the folders in one that may be absent, sorted.
func subfolders(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}
