package builder

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/godkms-hermetic/godkms-hermetic/builder/dkms"
	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/kmod"
)

// maxScript bounds a script for the host, in bytes.
const maxScript = 4 << 20

// DependsError says which modules of BUILD_DEPENDS a build did not have, and why.
type DependsError struct {
	Problems []string // one for each: `BUILD_DEPENDS "spl": …`
}

// DKMSCode is dkms's exit code for it.
func (e *DependsError) DKMSCode() int { return 13 }

func (e *DependsError) Error() string { return strings.Join(e.Problems, "; ") }

// installed is what a build finds of the modules that it may depend on.
type installed struct {
	depends []Dependency // by name
	may     []string
	built   []placed
	sources []string // scratch folders for their sources
	modules []string // and for the modules as they are installed
	exports []kmod.Symvers
}

// placed is a dependency that was built, and where its parts are.
type placed struct {
	Dependency
	target dkms.Target
}

// install finds out what of the dependencies is to be put where. Those that failed or were skipped are not there, as under dkms.
func install(j Job, t dkms.Target) (in installed, err error) {
	in.may = j.MayDepend()
	in.depends = slices.SortedFunc(slices.Values(j.Depends), func(a, b Dependency) int { return cmp.Compare(a.Source.Module, b.Source.Module) })
	for _, d := range in.depends {
		if d.Result.Status != Built && d.Result.Status != Cached {
			continue
		}
		p := placed{d, t}
		p.target.Module, p.target.Version = d.Source.Module, d.Source.Version
		in.built = append(in.built, p)
		source := p.target.Source()
		if source == t.Source() || slices.Contains(in.sources, source) { // a-b 1 and a b-1
			return in, fmt.Errorf("two modules have the same source folder, %q; rename one of them", source)
		}
		in.sources = append(in.sources, source)
		for _, f := range d.Result.Files {
			if !dkms.Installable(t.Distro, f.Dest) { // such as build, which would hide the kernel's headers
				return in, fmt.Errorf("%s of %s is for the folder %q, where nothing is installed", f.Name, d.Source.Module, f.Dest)
			}
			top, _, _ := strings.Cut(f.Dest, "/")
			in.modules = append(in.modules, path.Join(dkms.InstallTree, t.Release, top))
		}
		for _, e := range d.Result.Meta.Extras {
			if e.Name != artifact.ModuleSymvers {
				continue
			}
			r, err := e.Open()
			if err != nil {
				return in, fmt.Errorf("the Module.symvers of %s: %w", d.Source.Module, err)
			}
			symvers, err := kmod.ReadSymvers(r)
			if err = errors.Join(err, r.Close()); err != nil {
				return in, fmt.Errorf("the Module.symvers of %s: %w", d.Source.Module, err)
			}
			in.exports = append(in.exports, symvers)
		}
	}
	slices.Sort(in.modules)
	in.modules = slices.Compact(in.modules)
	return in, nil
}

// satisfy wants every module of BUILD_DEPENDS to be there.
func (in installed) satisfy(names []string) error {
	e := &DependsError{}
	for _, name := range names {
		i := slices.IndexFunc(in.depends, func(d Dependency) bool { return d.Source.Module == name })
		switch {
		case i < 0 && !slices.Contains(in.may, name):
			e.Problems = append(e.Problems, fmt.Sprintf("BUILD_DEPENDS %q can't be read without running dkms.conf: give it as a plain value", name))
		case i < 0:
			e.Problems = append(e.Problems, fmt.Sprintf("BUILD_DEPENDS %q: no such module is given; name its source too, or the folder that it is in with --depends", name))
		case in.depends[i].Result.Status == Skipped:
			e.Problems = append(e.Problems, fmt.Sprintf("BUILD_DEPENDS %q was skipped: %s", name, in.depends[i].Result.Reason))
		case in.depends[i].Result.Status == Failed:
			e.Problems = append(e.Problems, fmt.Sprintf("BUILD_DEPENDS %q failed: %s", name, in.depends[i].Result.Reason))
		}
	}
	if len(e.Problems) > 0 {
		return e
	}
	return nil
}

// install puts the dependencies where dkms has them: sources in /usr/src, what was built in dkms's tree, and the modules below
// /lib/modules.
func (s *session) install(ctx context.Context) error {
	for _, d := range s.installed.built {
		step := "installing " + d.Source.Module
		unpack := func(dir string, stream io.Reader) error {
			c := Command{Args: []string{"tar", "-xp", "-C", dir, "-f", "-"}, Stdin: stream, Stdout: s.log, Stderr: s.log}
			if err := s.run(ctx, c); err != nil {
				return &StepError{Step: step, Err: err}
			}
			return nil
		}
		if err := unpack(d.target.Source(), d.Source.Tar()); err != nil {
			return err
		}
		for _, t := range []struct {
			dir   string
			write func(*tar.Writer) error
		}{{dkms.Tree, d.tree}, {path.Join(dkms.InstallTree, d.target.Release), d.modules}} {
			r, w := io.Pipe()
			written := make(chan struct{})
			go func() {
				tw := tar.NewWriter(w)
				err := t.write(tw)
				if err == nil {
					err = tw.Close()
				}
				w.CloseWithError(err)
				close(written)
			}()
			err := unpack(t.dir, r)
			r.Close()
			<-written
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// header is of a file or link that is as everything in a root: owned by the user, and of Epoch.
func header(name string, mode, size int64) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: size, Uid: UID, Gid: GID, ModTime: Epoch}
}

// tree writes <module>/<version>/{source,<release>/<machine>/module/…} and the link that dkms makes for what is installed.
func (p placed) tree(w *tar.Writer) error {
	below := func(name string) string { return strings.TrimPrefix(name, dkms.Tree+"/") }
	t := p.target
	for _, link := range []struct{ name, to string }{
		{path.Dir(t.Build()) + "/source", t.Source()},
		{path.Join(dkms.Tree, t.Module, "kernel-"+t.Release+"-"+t.Machine), path.Join(t.Version, t.Release, t.Machine)},
	} {
		h := header(below(link.name), 0o777, 0)
		h.Typeflag, h.Linkname = tar.TypeSymlink, link.to
		if err := w.WriteHeader(h); err != nil {
			return err
		}
	}
	for _, f := range p.Result.Files {
		if err := add(w, below(path.Join(t.Output(), f.Name)), f.Size, f.Open); err != nil {
			return err
		}
	}
	for _, e := range p.Result.Meta.Extras {
		if e.Name == artifact.ModuleSymvers {
			if err := add(w, below(path.Join(t.Output(), e.Name)), e.Size, e.Open); err != nil {
				return err
			}
		}
	}
	return nil
}

// modules writes the modules as they are installed.
func (p placed) modules(w *tar.Writer) error {
	for _, f := range p.Result.Files {
		if err := add(w, path.Join(f.Dest, f.Name), f.Size, f.Open); err != nil {
			return err
		}
	}
	return nil
}

func add(w *tar.Writer, name string, size int64, open func() (io.ReadCloser, error)) error {
	r, err := open()
	if err != nil {
		return err
	}
	defer r.Close()
	if err := w.WriteHeader(header(name, 0o644, size)); err != nil {
		return err
	}
	_, err = io.Copy(w, r)
	return err
}

// hostScripts reads the scripts that the host is to run from the source as it was given, not as the build left it. One that
// is not there is recorded without content, and without the right to be run: dkms warns of it when it comes to it.
func hostScripts(source *Source, scripts []dkms.HostScript) ([]artifact.Extra, error) {
	var out []artifact.Extra
	for _, s := range scripts {
		file, _, _ := strings.Cut(s.Command, " ")
		text, executable, err := source.ReadFile(path.Join(".", file), maxScript) // dkms puts the tree's path before it
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s: %w", s.Directive, err)
		}
		out = append(out, artifact.Extra{
			Name: s.Directive, Command: s.Command, Executable: executable, Size: int64(len(text)), Open: opener(text),
		})
	}
	return out, nil
}

func opener(text []byte) func() (io.ReadCloser, error) {
	return func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(text)), nil }
}
