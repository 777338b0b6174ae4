package cli

import (
	"archive/tar"
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/cache"
	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/decompress"
	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/host"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
)

// A tarball carries a module from one machine to another: a .tar.gz with one folder, <module>-<version>, in which there are
//
//	source/        the tree, as package builder has it
//	modules.oci/   what was built of it, a directory in OCI's layout, as a registry has it
//
// Either may be absent. All in it is owned by root and as old as builder.Epoch, so that the same contents are the same bytes.
const (
	tarSource  = "source"
	tarModules = "modules.oci"
)

type tarballOptions struct {
	hostOptions
	kernels                 []string
	sourceOnly, modulesOnly bool
	archive                 string
}

func (a *app) mktarballCommand() *cobra.Command {
	var o tarballOptions
	cmd := &cobra.Command{
		Use:   "mktarball [SRC|MODULE/VERSION]",
		Short: "Pack a module's source and what was built of it",
		Long: `Packs the source of a module, and what was built of it for kernels, into a file that ldtarball reads on another machine, and
prints its path. The same contents give the same bytes.

SRC and KERNELS are written as for push; of a MODULE/VERSION that is registered with the host its source and what it has are
taken. Modules that were built of another state of the source are an error.` + exitStatus(
			"  0  the file is there",
			"  1  the command line is wrong, there is no such source or result, or the file can't be written",
			"  4  the state of the module is broken",
			" 77  every kernel was skipped (BUILD_EXCLUSIVE in dkms.conf)",
			"130  interrupted"),
		Example: `  godkms-hermetic mktarball hello/1.0
  godkms-hermetic mktarball . --source-only --archive /tmp/hello.tar.gz`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runMakeTarball(cmd.Context(), o, args) },
	}
	o.moduleFlags(cmd)
	f := cmd.Flags()
	f.StringSliceVarP(&o.kernels, "kernels", "k", nil, "`KERNELS` to pack modules for (default all)")
	f.BoolVar(&o.sourceOnly, "source-only", false, "no modules")
	f.BoolVar(&o.modulesOnly, "binaries-only", false, "no source")
	f.StringVar(&o.archive, "archive", "", "`FILE` to write (default <module>-<version>.tar.gz)")
	cmd.MarkFlagsMutuallyExclusive("source-only", "binaries-only")
	cmd.MarkFlagsMutuallyExclusive("source-only", "kernels")
	cmd.RegisterFlagCompletionFunc("kernels", cobra.NoFileCompletions)
	return cmd
}

// tarballReport is what mktarball and ldtarball print as JSON.
type tarballReport struct {
	Path    string   `json:"path"`
	Module  string   `json:"module"`
	Version string   `json:"version"`
	Source  bool     `json:"source"`
	Kernels []string `json:"kernels"` // that there are modules for
	SHA256  string   `json:"sha256,omitempty"`
}

func (a *app) runMakeTarball(ctx context.Context, o tarballOptions, args []string) error {
	selectors, err := listSelectors(o.kernels)
	if err != nil {
		return err
	}
	src, err := o.subject(args)
	if err != nil {
		return err
	}
	root, err := a.openRoot(o.hostOptions)
	if err != nil {
		return err
	}
	exclude := []string{o.archive}
	report := tarballReport{Path: o.archive, Kernels: []string{}}
	var source *builder.Source
	if !o.modulesOnly {
		if source, err = a.keptSource(ctx, root, src, exclude); err != nil {
			return err
		}
		defer source.Close()
		report.Module, report.Version, report.Source = source.Module, source.Version, true
	}
	var list []kept
	if !o.sourceOnly {
		if list, err = a.keptOf(ctx, root, src, selectors, exclude); err != nil {
			return err
		}
		for _, k := range list {
			if source != nil && k.meta.Source != source.Digest {
				return fmt.Errorf("%s: it was built of another state of the source; build it again, or take --source-only or --binaries-only", k.kernel())
			}
			report.Module, report.Version = k.meta.Module, k.meta.Version
			report.Kernels = append(report.Kernels, k.kernel().String())
		}
	}
	name := report.Module + "-" + report.Version
	if report.Path == "" {
		report.Path = name + ".tar.gz"
	}
	var partials partialDir
	dir := filepath.Dir(report.Path)
	err = place(ctx, &partials, dir, dir, func(partial string) ([]string, error) {
		file := filepath.Base(report.Path)
		layout := filepath.Join(partial, "layout")
		if len(list) > 0 {
			if err := a.publishTo(ctx, layout, list); err != nil {
				return nil, err
			}
		}
		var err error
		report.SHA256, err = writeHashed(filepath.Join(partial, file), func(w io.Writer) error {
			return writeTarball(ctx, w, name, source, layout)
		})
		return []string{file}, err
	})
	if err != nil {
		return err
	}
	return a.printTarball(report, report.Path)
}

func (a *app) printTarball(report tarballReport, text string) error {
	a.board.Close()
	if a.json() {
		return ui.WriteJSON(a.stdout, report)
	}
	return a.println(text)
}

// layout is the repository in a directory.
func (a *app) layout(dir string) (*registry.Repo, error) {
	client, err := a.registries()
	if err != nil {
		return nil, err
	}
	return client.Open(registry.InLayout(dir))
}

// publishTo makes a layout of artifacts.
func (a *app) publishTo(ctx context.Context, dir string, list []kept) error {
	repo, err := a.layout(dir)
	if err != nil {
		return err
	}
	var all []artifact.Publication
	for _, k := range list {
		all = append(all, artifact.Publication{Image: k.entry.Image, Log: k.entry.Log, Lock: k.entry.Lock, Inputs: k.entry.Inputs, Created: builder.Epoch})
	}
	_, err = artifact.Publish(ctx, repo, all)
	return err
}

// writeTarball writes a tarball of a source, which may be nil, and a layout, which may be absent.
func writeTarball(ctx context.Context, w io.Writer, name string, source *builder.Source, layout string) error {
	z, err := gzip.NewWriterLevel(w, gzip.DefaultCompression)
	if err != nil {
		return err
	}
	to := tar.NewWriter(z)
	folder := func(name string) error {
		return to.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: builder.Epoch})
	}
	if err := folder(name); err != nil {
		return err
	}
	if source != nil {
		if err := folder(path.Join(name, tarSource)); err != nil {
			return err
		}
		for from := tar.NewReader(source.Tar()); ; {
			h, err := from.Next()
			if err == io.EOF {
				break
			}
			if err == nil && ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			if err != nil {
				return err
			}
			h.Name, h.Uid, h.Gid = name+"/"+tarSource+"/"+h.Name, 0, 0
			if err := to.WriteHeader(h); err != nil {
				return err
			}
			if _, err := io.Copy(to, from); err != nil {
				return err
			}
		}
	}
	err = filepath.WalkDir(layout, func(file string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist) && file == layout:
			return nil
		case err == nil && ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil:
			return err
		}
		at := filepath.ToSlash(strings.TrimPrefix(file, layout))
		as := path.Join(name, tarModules, at)
		if d.IsDir() {
			return folder(as)
		}
		if !layoutFile.MatchString(strings.TrimPrefix(at, "/")) {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if err := to.WriteHeader(&tar.Header{Name: as, Mode: 0o644, Size: info.Size(), ModTime: builder.Epoch}); err != nil {
			return err
		}
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(to, f)
		return err
	})
	return errors.Join(err, to.Close(), z.Close())
}

// layoutFile is a file of a layout: image-layout.md of the OCI image specification.
var layoutFile = regexp.MustCompile(`^(oci-layout|index\.json|blobs/sha256/([0-9a-f]{64}))$`)

func (a *app) ldtarballCommand() *cobra.Command {
	var o addOptions
	cmd := &cobra.Command{
		Use:   "ldtarball FILE",
		Short: "Register a module from a tarball",
		Long: `Registers the module of a tarball with this host, as add does it, and keeps what the tarball has built for kernels of the host's
distribution: status shows it, and install finds it there. All of it is checked before anything is changed; that it was built of
what it says is for who made it.

Of a tarball that dkms has made the source is taken. What it has of modules is not: nothing says what they were built for, and of
what. A tarball of dkms's without the source has nothing else.

What is registered already stays, and gets what the tarball has for other kernels; --force takes the tarball's.` + exitStatus(
			"  0  the module is registered, now or before",
			"  1  the command line is wrong, the file is none, or was altered, another source is in the way, or the root can't be changed",
			"  2  there is no such file",
			"  8  its dkms.conf is faulty",
			"130  interrupted"),
		Example: `  godkms-hermetic ldtarball hello-1.0.tar.gz
  godkms-hermetic ldtarball hello-1.0.dkms.tar.gz --root /mnt`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runLoadTarball(cmd.Context(), o, args[0]) },
	}
	o.rootFlags(cmd)
	o.forceFlag(cmd.Flags(), "replace what is there of the module, and keep another source in /usr/src aside")
	return cmd
}

func (a *app) runLoadTarball(ctx context.Context, o addOptions, file string) error {
	root, err := a.openRoot(o.hostOptions)
	if err != nil {
		return err
	}
	base, err := a.temp()
	if err != nil {
		return err
	}
	temp, err := durable.NewTemp(filepath.Join(base, "tarball"))
	if err != nil {
		return err
	}
	defer temp.Close()
	has, err := readTarball(ctx, file, temp.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		err = &exitError{code: exitNoSource, err: err}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	for _, k := range has.dkms {
		a.board.Warn(fmt.Sprintf("%s: the modules that dkms has built for %s are not taken: nothing says what they were built of; build them again", file, k))
	}
	var list []kept
	if has.modules {
		if list, err = a.readLayout(ctx, temp.Dir); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	var source *builder.Source
	if has.source {
		if source, err = a.openToAdd(ctx, file); err != nil {
			return err
		}
		defer source.Close()
		for _, k := range list {
			if k.meta.Module != source.Module || k.meta.Version != source.Version || k.meta.Source != source.Digest {
				return fmt.Errorf("%s: %w: what it has for %s was not built of its source", file, artifact.ErrInvalid, k.kernel())
			}
		}
	} else if len(list) == 0 {
		return fmt.Errorf("%s: it has neither a source nor modules that can be taken", file)
	}
	report, err := a.load(ctx, root, o, source, list)
	if err != nil {
		return hostError(root, err)
	}
	report.Path = file
	text := fmt.Sprintf("%s/%s: added", report.Module, report.Version)
	if len(report.Kernels) > 0 {
		text += ", with modules for " + strings.Join(report.Kernels, ", ")
	}
	return a.printTarball(report, text)
}

// load registers a module with a source or without one, and keeps what was built of it.
func (a *app) load(ctx context.Context, root *host.Root, o addOptions, source *builder.Source, list []kept) (report tarballReport, err error) {
	report.Kernels = []string{}
	var g host.Registration
	if source != nil {
		report.Source = true
		g, err = a.addOpened(ctx, root, o, source)
	} else {
		m := list[0].meta
		g = host.Registration{Module: m.Module, Version: m.Version, Added: time.Now().UTC().Truncate(time.Second)}
		err = root.Add(ctx, g)
	}
	if err != nil && !errors.Is(err, host.ErrAdded) {
		return report, err
	}
	report.Module, report.Version = g.Module, g.Version
	own := readMachine(root.Dir(), "")
	results, err := rootResults(root, a.board.Warn)
	if err != nil {
		return report, err
	}
	for _, k := range list {
		if !own.isOwn(k.kernel()) {
			a.board.Warn(fmt.Sprintf("%s: left out: this is %s/%s", k.kernel(), own.distro, own.suite))
			continue
		}
		taken, err := a.keepLoaded(ctx, root, results, k, o.force)
		if err != nil {
			return report, err
		}
		if taken {
			report.Kernels = append(report.Kernels, k.kernel().String())
		}
	}
	return report, nil
}

// keepLoaded keeps what a tarball has for a kernel, unless there is something else already.
func (a *app) keepLoaded(ctx context.Context, root *host.Root, results *cache.Dir, k kept, force bool) (bool, error) {
	digest, err := k.entry.Image.Digest()
	if err != nil {
		return false, err
	}
	m, err := root.ModuleFor(k.meta.Module, k.meta.Version, k.meta.Kernel)
	if err != nil {
		return false, err
	}
	rec, there := m.Find(k.meta.Kernel.Release, k.meta.Kernel.Arch)
	switch {
	case there && rec.State != host.Failed && rec.Artifact == digest:
		return true, nil
	case there && (rec.State == host.Installed || rec.State == host.Built && !force):
		a.board.Warn(fmt.Sprintf("%s: left out: another one is %s", k.kernel(), rec.State))
		return false, nil
	}
	// The key is what the tarball says it is: nothing else may have it.
	if e, err := results.Get(ctx, k.meta.Key); err == nil {
		if have, err := e.Image.Digest(); err != nil || have != digest {
			return false, fmt.Errorf("%s: %w: there is another result under its key, %s", k.kernel(), artifact.ErrInvalid, k.meta.Key)
		}
	}
	if err := results.Put(ctx, k.meta.Key, k.entry); err != nil {
		return false, err
	}
	return true, root.Note(ctx, host.Record{Module: m.Module, Version: m.Version, Kernel: k.meta.Kernel, State: host.Built, Key: k.meta.Key, Artifact: digest,
		Changed: time.Now().UTC().Truncate(time.Second)})
}

// The bounds of a tarball that is read.
const (
	maxTarball      = 8 << 30 // bytes, unpacked
	maxTarballFiles = 300_000
)

// tarballContents is what a tarball has.
type tarballContents struct {
	source  bool
	modules bool     // in our form
	dkms    []string // kernels that dkms has packed modules for
}

// readTarball looks at what is in a tarball, and writes the layout in it to dir.
func readTarball(ctx context.Context, file, dir string) (has tarballContents, err error) {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return has, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return has, errors.Join(err, errors.New("it is no file"))
	}
	if err := os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755); err != nil {
		return has, err
	}
	plain, err := decompress.NewReader(bufio.NewReader(f))
	if err != nil {
		return has, fmt.Errorf("it is no tarball: %w", err)
	}
	defer plain.Close()
	limited := &io.LimitedReader{R: plain, N: maxTarball}
	tr := tar.NewReader(limited)
	size := int64(0) // a sparse file is small in the tarball
	for n := 0; ; n++ {
		h, err := tr.Next()
		if err == nil {
			size += min(h.Size, maxTarball+1)
		}
		switch {
		case limited.N == 0, size > maxTarball:
			err = fmt.Errorf("it has more than %d bytes", int64(maxTarball))
		case err == io.EOF:
			return has, nil
		case n == maxTarballFiles:
			err = fmt.Errorf("it has more than %d files", maxTarballFiles)
		case ctx.Err() != nil:
			err = context.Cause(ctx)
		case n == 0 && err != nil:
			err = fmt.Errorf("it is no tarball: %w", err)
		}
		if err != nil {
			return has, err
		}
		parts := strings.Split(path.Clean(h.Name), "/")
		switch {
		case parts[0] == "dkms_main_tree":
			if len(parts) == 3 && h.Typeflag == tar.TypeDir {
				has.dkms = append(has.dkms, parts[1]+" ("+parts[2]+")")
			}
		case len(parts) > 2 && parts[1] == tarModules && h.Typeflag != tar.TypeDir:
			if err := takeLayoutFile(h, tr, strings.Join(parts[2:], "/"), dir); err != nil {
				return has, err
			}
			has.modules = true
		case parts[len(parts)-1] == "dkms.conf" && parts[0] != "dkms_binaries_only":
			has.source = true
		}
	}
}

// takeLayoutFile writes a file of a layout. A blob is what its name says.
func takeLayoutFile(h *tar.Header, from io.Reader, name, dir string) error {
	m := layoutFile.FindStringSubmatch(name)
	if m == nil || h.Typeflag != tar.TypeReg {
		return fmt.Errorf("%w: %q is no file of a layout", artifact.ErrInvalid, h.Name)
	}
	f, err := os.OpenFile(filepath.Join(dir, filepath.FromSlash(name)), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("%w: %q is there twice", artifact.ErrInvalid, h.Name)
	}
	if err != nil {
		return err
	}
	sum := sha256.New()
	_, err = io.Copy(io.MultiWriter(f, sum), from)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if got := hex.EncodeToString(sum.Sum(nil)); m[2] != "" && got != m[2] {
		return fmt.Errorf("%w: %q has digest %s", artifact.ErrInvalid, h.Name, got)
	}
	return nil
}

// readLayout gives the artifacts of a layout, which are of one version of a module.
func (a *app) readLayout(ctx context.Context, dir string) ([]kept, error) {
	repo, err := a.layout(dir)
	if err != nil {
		return nil, err
	}
	entries, err := artifact.Entries(ctx, repo, "")
	if err != nil {
		return nil, err
	}
	var list []kept
	for _, e := range entries {
		img, err := repo.Image(ctx, e.Digest.String())
		if err == nil {
			err = e.Check(img)
		}
		k := kept{entry: cache.Entry{Image: img}}
		if err == nil {
			k.meta, k.files, err = artifact.Read(img)
		}
		if err != nil {
			return nil, err
		}
		if err := errors.Join(host.CheckName("module", k.meta.Module), host.CheckName("version", k.meta.Version)); err != nil {
			return nil, err
		}
		attached, err := artifact.ReadAttachments(ctx, repo, e.Digest)
		if err != nil {
			return nil, err
		}
		k.entry.Log, k.entry.Lock, k.entry.Inputs = attached.Log, attached.Lock, attached.Inputs
		if len(list) > 0 && (list[0].meta.Module != k.meta.Module || list[0].meta.Version != k.meta.Version) {
			return nil, fmt.Errorf("%w: it has %s/%s and %s/%s", artifact.ErrInvalid, list[0].meta.Module, list[0].meta.Version, k.meta.Module, k.meta.Version)
		}
		list = append(list, k)
	}
	slices.SortFunc(list, func(a, b kept) int { return strings.Compare(a.kernel().String(), b.kernel().String()) })
	return list, nil
}
