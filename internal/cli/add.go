package cli

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/builder/dkms"
	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/host"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
)

// sourceTree is where a root has the sources of its modules, each in <module>-<version>.
const sourceTree = "/usr/src"

// addHelp says what can be added.
const addHelp = `What is added is one of these; a file or folder of that name is taken first:

  MODULE/VERSION   the source in /usr/src/MODULE-VERSION of the root
  DIR, dkms.conf   a source, which is copied to there; so is a tarball (plain, gzip, xz, zstd), or a Debian package that carries
                   usr/src/*/dkms.conf
  REF              a repository with prebuilt modules: oci:DIR, or one that begins with a registry, as registry.example/hello or
                   localhost/hello. Behind it may stand the module's version, as :1.0, which is needed where there are several.`

type addOptions struct {
	hostOptions
	prebuilt string
}

func (a *app) addCommand() *cobra.Command {
	var o addOptions
	cmd := &cobra.Command{
		Use:   "add [MODULE/VERSION|SRC|REF]",
		Short: "Register a module with this host",
		Long: `Registers a module with the host: build and install know it then, and if its dkms.conf says AUTOINSTALL=yes new kernels get it.
Nothing is built yet. With --root it is a mounted image or a chroot that the module is registered with.

` + addHelp + `

A source is copied whole or not at all. Another one that is at its place already stays there, and that is an error; with --force
it is moved to /usr/src/.replaced. POST_ADD of dkms.conf runs on this machine's own root only; if it fails nothing is registered.

With --prebuilt, the repository REF is looked into before anything is built of the source. A module from REF alone is never built
here, and new kernels get it if it is there.` + exitStatus(
			"  0  the module is registered",
			"  1  the command line is wrong, POST_ADD failed, another source is in the way, or the root can't be changed",
			"  2  there is no such source",
			"  3  the module is registered already",
			"  8  its dkms.conf is faulty",
			" 22  the registry can't be reached, refuses, or has something that was altered",
			" 23  the registry has no such module",
			"130  interrupted"),
		Example: `  godkms-hermetic add hello/1.0
  godkms-hermetic add ./hello --prebuilt registry.example/modules/hello
  godkms-hermetic add registry.example/modules/hello:1.0 --root /mnt`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.runAdd(cmd.Context(), o, args) },
	}
	o.moduleFlags(cmd)
	o.forceFlag(cmd.Flags(), "replace another source that is in /usr/src, and keep that one aside")
	cmd.Flags().StringVar(&o.prebuilt, "prebuilt", "", "repository `REF` with prebuilt modules of it")
	cmd.RegisterFlagCompletionFunc("prebuilt", cobra.NoFileCompletions)
	return cmd
}

func (a *app) runAdd(ctx context.Context, o addOptions, args []string) error {
	root, err := a.openRoot(o.hostOptions)
	if err != nil {
		return err
	}
	g, err := a.add(ctx, root, o, args)
	if errors.Is(err, host.ErrAdded) && o.prebuilt != "" { // what is new is the repository
		err = a.setReference(ctx, root, &g, o.prebuilt)
	}
	if err != nil {
		return hostError(root, err)
	}
	a.board.Close()
	if a.json() {
		return ui.WriteJSON(a.stdout, g)
	}
	_, err = fmt.Fprintf(a.stdout, "%s/%s: added\n", g.Module, g.Version)
	return err
}

func (a *app) setReference(ctx context.Context, root *host.Root, g *host.Registration, text string) error {
	m, err := root.ModuleFor(g.Module, g.Version)
	if err != nil {
		return err
	}
	*g = m.Registration
	if g.Reference, err = repositoryOf(text); err != nil {
		return fmt.Errorf("--prebuilt: %w", err)
	}
	return root.Update(ctx, *g)
}

// add registers what was named. Of what is registered already the registration is there, with an error that wraps host.ErrAdded.
func (a *app) add(ctx context.Context, root *host.Root, o addOptions, args []string) (g host.Registration, err error) {
	if len(args) > 0 && o.module == "" && o.version == "" {
		if _, err := os.Stat(args[0]); err == nil {
			return a.addSource(ctx, root, o, args[0])
		}
		if isReference(args[0]) && !hasSource(root, args[0]) {
			return a.addReference(ctx, root, o, args[0])
		}
		if !moduleVersion.MatchString(args[0]) {
			return g, &exitError{code: exitNoSource, err: fmt.Errorf("%q: there is no such file or folder; a module of %s is named as MODULE/VERSION, as in hello/1.0", args[0], sourceTree)}
		}
	}
	module, version, err := o.theModule(args)
	if err != nil {
		return g, err
	}
	g.Module, g.Version = module, version
	if _, err := root.ModuleFor(module, version); !errors.Is(err, host.ErrNotAdded) {
		if err == nil {
			err = fmt.Errorf("%s/%s is %w", module, version, host.ErrAdded)
		}
		return g, err
	}
	path, err := registrable(root, module, version)
	if err != nil {
		return g, err
	}
	source, err := a.openToAdd(ctx, path)
	if err != nil {
		return g, err
	}
	defer source.Close()
	if source.Module != module || source.Version != version {
		return g, &exitError{code: exitConf, err: fmt.Errorf("%s is of %s/%s, by its dkms.conf", path, source.Module, source.Version)}
	}
	return a.register(ctx, root, o, source)
}

// sourceOf is the folder of a module's source in a root.
func sourceOf(module, version string) string { return filepath.Join(sourceTree, module+"-"+version) }

// registrable gives the folder with the source of a module that isn't registered.
func registrable(root *host.Root, module, version string) (path string, err error) {
	if path, err = root.Path(sourceOf(module, version)); err != nil {
		return "", err
	}
	if conf := filepath.Join(path, "dkms.conf"); unix.Access(conf, unix.F_OK) != nil {
		return "", &exitError{code: exitNoSource, err: fmt.Errorf("no source of %s/%s: there is no %s", module, version, conf)}
	}
	return path, nil
}

// hasSource tells whether a MODULE/VERSION is registered with a root, or its source is there.
func hasSource(root *host.Root, name string) bool {
	m := moduleVersion.FindStringSubmatch(name)
	if m == nil {
		return false
	}
	if _, err := root.ModuleFor(m[1], m[2]); err == nil {
		return true
	}
	path, err := root.Path(sourceOf(m[1], m[2]))
	if err == nil {
		_, err = os.Stat(path)
	}
	return err == nil
}

// openToAdd reads a source. What is wrong with its dkms.conf has the exit code for it.
func (a *app) openToAdd(ctx context.Context, path string) (*builder.Source, error) {
	source, err := a.openSource(ctx, path, nil)
	if errors.As(err, new(*dkms.HeaderError)) {
		err = &exitError{code: exitConf, err: err}
	}
	return source, err
}

// addSource registers a source of this machine, whose tree it copies to where the root has them.
func (a *app) addSource(ctx context.Context, root *host.Root, o addOptions, path string) (g host.Registration, err error) {
	source, err := a.openToAdd(ctx, path)
	if err != nil {
		return g, err
	}
	defer source.Close()
	return a.addOpened(ctx, root, o, source)
}

func (a *app) addOpened(ctx context.Context, root *host.Root, o addOptions, source *builder.Source) (g host.Registration, err error) {
	g.Module, g.Version = source.Module, source.Version
	if err := errors.Join(host.CheckName("module", g.Module), host.CheckName("version", g.Version)); err != nil {
		return g, &exitError{code: exitConf, err: err}
	}
	undo, err := a.placeSource(ctx, root, source, o.force)
	if err != nil {
		return g, err
	}
	if g, err = a.register(ctx, root, o, source); err != nil && !errors.Is(err, host.ErrAdded) {
		return g, errors.Join(err, undo())
	}
	return g, err
}

// register registers a source that is in its place, and runs its POST_ADD.
func (a *app) register(ctx context.Context, root *host.Root, o addOptions, source *builder.Source) (g host.Registration, err error) {
	if g, err = registration(source); err != nil {
		return g, err
	}
	h, err := headerOf(source)
	if err != nil {
		return g, err
	}
	if o.prebuilt != "" {
		if g.Reference, err = repositoryOf(o.prebuilt); err != nil {
			return g, fmt.Errorf("--prebuilt: %w", err)
		}
	}
	if err := root.Add(ctx, g); err != nil {
		return g, err
	}
	if err := a.postAdd(ctx, root, g, h.PostAdd); err != nil {
		return g, errors.Join(err, root.Remove(context.WithoutCancel(ctx), g.Module, g.Version))
	}
	return g, nil
}

// headerOf is the header of a source's dkms.conf.
func headerOf(source *builder.Source) (dkms.Header, error) {
	text, _, err := source.ReadFile("dkms.conf", dkms.MaxConf)
	if err != nil {
		return dkms.Header{}, err
	}
	return dkms.Read(text)
}

// postAdd runs a POST_ADD, which is a script below the source and its arguments, in the folder of the source.
func (a *app) postAdd(ctx context.Context, root *host.Root, g host.Registration, command string) error {
	words := strings.Fields(command)
	if len(words) == 0 {
		return nil
	}
	name := g.Module + "/" + g.Version
	if !root.IsHost() {
		a.board.Warn(fmt.Sprintf("%s: POST_ADD is not run: %s is not this machine's own root", name, root.Dir()))
		return nil
	}
	if !filepath.IsLocal(words[0]) {
		return fmt.Errorf("%s: POST_ADD is %q: it must be a script in the source", name, command)
	}
	script := filepath.Join(g.Source, words[0])
	if unix.Access(script, unix.X_OK) != nil {
		a.board.Warn(fmt.Sprintf("%s: the POST_ADD script %s is not executable", name, script))
		return nil
	}
	cmd := exec.CommandContext(ctx, script, words[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = g.Source, a.stderr, a.stderr
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C",
		"module=" + g.Module, "module_version=" + g.Version, "source_tree=" + sourceTree, "dkms_tree=/var/lib/dkms"}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: POST_ADD: %s: %w", name, script, err)
	}
	return nil
}

// placeSource copies a source to its place in a root, unless it is there. Undo removes the copy.
func (a *app) placeSource(ctx context.Context, root *host.Root, source *builder.Source, force bool) (undo func() error, err error) {
	nothing := func() error { return nil }
	base, err := root.Path(sourceTree)
	if err != nil {
		return nothing, err
	}
	if err := os.MkdirAll(base, 0o755); err != nil {
		return nothing, err
	}
	lock, err := durable.LockDir(ctx, base)
	if err != nil {
		return nothing, err
	}
	defer lock.Close()
	name := source.Module + "-" + source.Version
	to := filepath.Join(base, name)
	replaced := ""
	if _, err := os.Lstat(to); err == nil {
		path, err := root.Path(sourceOf(source.Module, source.Version))
		if err != nil {
			return nothing, err
		}
		there, err := a.openSource(ctx, path, nil)
		if err == nil {
			there.Close()
			if there.Digest == source.Digest {
				return nothing, nil
			}
		}
		if ctx.Err() != nil {
			return nothing, context.Cause(ctx)
		}
		if !force {
			return nothing, fmt.Errorf("%s has another source of %s/%s; give this one a version of its own, or replace that one with --force", to, source.Module, source.Version)
		}
		old, err := root.Path(filepath.Join(sourceTree, ".replaced"))
		if err != nil {
			return nothing, err
		}
		replaced = filepath.Join(old, name+time.Now().UTC().Format("-20060102T150405.000000000"))
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nothing, err
	}
	partial := filepath.Join(base, ".partial")
	if err := os.RemoveAll(partial); err != nil { // of one that was killed
		return nothing, err
	}
	defer os.RemoveAll(partial)
	if err := unpack(ctx, source.Tar(), partial); err != nil {
		return nothing, err
	}
	if replaced != "" {
		if err := durable.Rename(to, replaced); err != nil {
			return nothing, err
		}
		a.board.Print(fmt.Sprintf("the source that was in %s is in %s now", to, replaced))
	}
	if err := durable.Rename(partial, to); err != nil {
		if replaced != "" {
			err = errors.Join(err, durable.Rename(replaced, to))
		}
		return nothing, err
	}
	return func() error {
		if replaced == "" {
			return durable.RemoveAll(to)
		}
		return errors.Join(durable.Rename(to, replaced+"-failed"), durable.Rename(replaced, to))
	}, nil
}

// unpack writes a source's tar to a new folder; it is on the disk then.
func unpack(ctx context.Context, from io.Reader, dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for tr := tar.NewReader(from); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err == nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		name, mode := strings.TrimSuffix(h.Name, "/"), fs.FileMode(h.Mode)
		switch h.Typeflag {
		case tar.TypeDir:
			if err = root.Mkdir(name, mode); err == nil {
				err = root.Chmod(name, mode) // whatever the umask
			}
		case tar.TypeSymlink:
			err = root.Symlink(h.Linkname, name)
		default:
			err = unpackFile(root, name, mode, tr)
		}
		if err != nil {
			return err
		}
	}
	d, err := root.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	return errors.Join(d.Chmod(0o755), unix.Syncfs(int(d.Fd())))
}

func unpackFile(root *os.Root, name string, mode fs.FileMode, from io.Reader) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, from)
	return errors.Join(err, f.Chmod(mode), f.Close())
}

// addReference registers a module that a repository has prebuilt.
func (a *app) addReference(ctx context.Context, root *host.Root, o addOptions, text string) (g host.Registration, err error) {
	if o.prebuilt != "" {
		return g, fmt.Errorf("%q is a repository of prebuilt modules itself: leave --prebuilt away", text)
	}
	_, repo, ref, err := a.open(text)
	if err != nil {
		return g, err
	}
	list, err := offered(ctx, repo, ref)
	if err != nil {
		return g, err
	}
	if len(list) == 0 {
		return g, &exitError{code: exitAbsent, err: fmt.Errorf("%s has no modules", text)}
	}
	g = host.Registration{Module: list[0].Module, Version: list[0].Version, Autoinstall: true, Added: time.Now().UTC().Truncate(time.Second)}
	for _, e := range list {
		if e.Module != g.Module || e.Version != g.Version {
			return g, registryError(fmt.Errorf("%s: %w: it has %s/%s and %s/%s", text, artifact.ErrInvalid, g.Module, g.Version, e.Module, e.Version))
		}
	}
	if g.Reference, err = repositoryOf(ref.Repository()); err != nil {
		return g, err
	}
	return g, root.Add(ctx, g)
}

// repositoryOf is the repository of a reference as it is registered: a layout directory by its absolute path.
func repositoryOf(text string) (string, error) {
	ref, err := registry.Parse(text)
	if err != nil {
		return "", err
	}
	if ref.Identifier() != "" {
		return "", fmt.Errorf("reference %q: the version is the module's: write %s", text, ref.Repository())
	}
	if !ref.IsLayout() {
		return ref.Repository(), nil
	}
	dir, err := filepath.Abs(strings.TrimPrefix(ref.Repository(), registry.Layout))
	return registry.Layout + dir, err
}
