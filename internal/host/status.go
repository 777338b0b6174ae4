package host

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// Line is a line of the status: a version of a module, for one kernel or for none.
type Line struct {
	Module  string   `json:"module"`
	Version string   `json:"version"`
	Release string   `json:"release,omitempty"` // of the kernel; empty: the line is about none
	Arch    string   `json:"arch,omitempty"`    // of the kernel, in uname -m's words: "x86_64"
	State   State    `json:"state"`
	Notes   []string `json:"notes,omitempty"`  // DKMS's remarks, as the constants below
	Reason  string   `json:"reason,omitempty"` // of a Failed one; one line
	By      string   `json:"by,omitempty"`     // "dkms" of what real dkms manages; empty: it's ours
	Record  *Record  `json:"record,omitempty"` // of ours, for a kernel, where it can be read
}

// DKMS's remarks. It makes the second where its copy of what it built is gone, and the third where an installed file is; here the
// second says what its words say, and the third is of files that are there.
const (
	NoteOriginals   = "Original modules exist"                                 // a module of the kernel's own was moved aside
	NoteMissing     = "Built modules are missing in the kernel modules folder" // an installed file is gone
	NoteDifferences = "Differences between built and installed modules"        // an installed file has another size
)

// String is the line as dkms 3.2 prints it: "m/v: added", "m/v: broken", "m/v, K, A: built", "m/v, K, A: installed" with remarks. DKMS
// has no words for a kernel that a module couldn't be had for, "m/v, K, A: failed (reason)", for a record that is damaged, "m/v, K, A:
// broken", and for itself: what it manages ends in " (by dkms)". What follows the state is always in brackets; a script that
// looks for ": installed" finds what is.
func (l Line) String() string {
	var b strings.Builder
	b.WriteString(l.Module + "/" + l.Version)
	if l.Release != "" {
		b.WriteString(", " + l.Release + ", " + l.Arch)
	}
	b.WriteString(": " + string(l.State))
	for _, n := range l.Notes {
		b.WriteString(" (" + n + ")")
	}
	if l.Reason != "" {
		b.WriteString(" (" + l.Reason + ")")
	}
	if l.By != "" {
		b.WriteString(" (by " + l.By + ")")
	}
	return printable(b.String())
}

// printable is a text in one line, and nothing in it that a terminal would obey: names and reasons are from files of the root.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

// Filter says which lines of the status are wanted. An empty field means all.
type Filter struct {
	Module, Version string
	Kernels         []string // releases, which are gone through one after the other; a module that has nothing for one is Added, as dkms has it
	Arch            string   // in uname -m's words or the distribution's
}

// Status says what there is of each module, from the state, and read-only from dkms's own tree. Beside the state's records it looks
// whether source folders are there, and at the sizes of installed files; no module is read. It waits for nobody: what another
// process changes meanwhile is shown as it was or as it will be.
//
// Lines are in dkms's order, that of the paths <module>/<version> and <release>/<arch> by their bytes, and ours before dkms's. What
// is damaged is shown as Broken, and told to Options.Warn; an error is about the whole.
func (r *Root) Status(f Filter) ([]Line, error) {
	groups, err := r.groups(f)
	if err != nil {
		return nil, err
	}
	releases := f.Kernels
	if len(releases) == 0 {
		releases = []string{""}
	}
	var lines []Line
	for _, release := range releases {
		for _, g := range groups {
			n := len(lines)
			for _, l := range g.kernels {
				if !g.broken && (release == "" || l.Release == release) {
					lines = append(lines, l)
				}
			}
			if n == len(lines) {
				state := Added
				if g.broken {
					state = Broken
				}
				lines = append(lines, Line{Module: g.module, Version: g.version, State: state, By: g.by})
			}
		}
	}
	return lines, nil
}

// group is a version of a module and its lines of kernels, in their order.
type group struct {
	module, version, by string
	broken              bool
	kernels             []Line
}

// groups are the modules that a filter lets through, in the status's order. Their lines are not filtered by release.
func (r *Root) groups(f Filter) ([]group, error) {
	ours, err := r.ours()
	if err != nil {
		return nil, err
	}
	groups := slices.DeleteFunc(append(ours, r.dkmsGroups()...), func(g group) bool {
		return f.Module != "" && g.module != f.Module || f.Version != "" && g.version != f.Version
	})
	for i, g := range groups {
		g.kernels = slices.DeleteFunc(g.kernels, func(l Line) bool { return f.Arch != "" && l.Arch != machine(f.Arch) })
		for j := range g.kernels {
			g.kernels[j].Module, g.kernels[j].Version, g.kernels[j].By = g.module, g.version, g.by
		}
		slices.SortFunc(g.kernels, func(a, b Line) int { return strings.Compare(a.Release+"/"+a.Arch, b.Release+"/"+b.Arch) })
		groups[i] = g
	}
	slices.SortStableFunc(groups, func(a, b group) int {
		return strings.Compare(a.module+"/"+a.version, b.module+"/"+b.version)
	})
	return groups, nil
}

// machine is an architecture in uname -m's words.
func machine(arch string) string { return kernels.Kernel{Arch: arch}.Machine() }

// ours are the modules of the state.
func (r *Root) ours() ([]group, error) {
	modules, err := r.modules(r.warn)
	if err != nil {
		return nil, err
	}
	type place struct{ module, release, arch string }
	originals := map[place]bool{} // as dkms, which shows them for every version
	for _, m := range modules {
		for _, rec := range m.Records {
			if len(rec.Originals) > 0 {
				originals[place{m.Module, rec.Kernel.Release, rec.Kernel.Arch}] = true
			}
		}
	}
	files := finder{r, map[string]string{}}
	var groups []group
	for _, m := range modules {
		g := group{module: m.Module, version: m.Version, broken: m.damaged}
		if err := files.checkSource(m.Registration); err != nil {
			g.broken = true
			r.warn(err)
		}
		for _, rec := range m.Records {
			l := Line{Release: rec.Kernel.Release, Arch: machine(rec.Kernel.Arch), State: rec.State, Reason: rec.Reason}
			if rec.State != Broken {
				l.Record = &rec
			}
			if rec.State != Failed && originals[place{m.Module, rec.Kernel.Release, rec.Kernel.Arch}] {
				l.Notes = append(l.Notes, NoteOriginals)
			}
			if rec.State == Installed {
				if note := files.note(rec); note != "" {
					l.Notes = append(l.Notes, note)
				}
			}
			g.kernels = append(g.kernels, l)
		}
		groups = append(groups, g)
	}
	return groups, nil
}

func (r *Root) warnf(format string, a ...any) { r.warn(fmt.Errorf(format, a...)) }

// warn tells an error, or each of those that are joined in it.
func (r *Root) warn(err error) {
	for line := range strings.SplitSeq(err.Error(), "\n") {
		r.o.Warn(printable(line))
	}
}

// CheckSource wraps ErrBroken where the source folder of a module is gone that has no other origin.
func (r *Root) CheckSource(g Registration) error {
	return finder{r, map[string]string{}}.checkSource(g)
}

// finder looks at files of a root. It remembers where their folders are, with links followed.
type finder struct {
	root    *Root
	folders map[string]string
}

func (f finder) lstat(name string) (os.FileInfo, error) {
	dir := filepath.Dir(name)
	at, ok := f.folders[dir]
	if !ok {
		var err error
		if at, err = f.root.Path(dir); err != nil {
			return nil, err
		}
		f.folders[dir] = at
	}
	return os.Lstat(filepath.Join(at, filepath.Base(name)))
}

func (f finder) checkSource(g Registration) error {
	if g.Source == "" || g.Reference != "" {
		return nil
	}
	info, err := f.lstat(g.Source)
	if err == nil && info.IsDir() {
		return nil
	}
	if err == nil && info.Mode()&os.ModeSymlink != 0 {
		if _, ok := f.root.folder(g.Source); ok {
			return nil
		}
	}
	return fmt.Errorf("%s/%s is %w: its source folder %s is gone; put it back, or remove the module", g.Module, g.Version, ErrBroken, g.Source)
}

// note is what there is to say of an installed module's files; empty: they are there.
func (f finder) note(rec Record) string {
	note := ""
	for _, file := range rec.Files {
		info, err := f.lstat(filepath.Join("/lib/modules", rec.Kernel.Release, file.Path))
		if err != nil {
			return NoteMissing
		}
		if !info.Mode().IsRegular() || info.Size() != file.Size {
			note = NoteDifferences
		}
	}
	return note
}
