package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"

	"github.com/godkms-hermetic/godkms-hermetic/images"
	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

func (a *app) imageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image COMMAND",
		Short: "Look after the header images",
		Long: `A header image is the root that a kernel's modules are built on: the kernel's headers and the compiler that built it, as the
distribution packages them. build assembles what it needs by itself.` + exitStatus("0  done", "1  see the commands"),
		Example: "  godkms-hermetic image build debian/bookworm:6.1.0-56-amd64\n  godkms-hermetic image ls",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var with []string
	extra := func(c *cobra.Command) *cobra.Command {
		c.Flags().StringSliceVar(&with, "with", nil, "extra `PACKAGES`, of the kernel's distribution")
		return c
	}
	build := &cobra.Command{
		Use:   "build KERNEL...",
		Short: "Assemble the header image of a kernel",
		Long: `Assembles the header images of kernels and prints their digests. The same packages give the same digest on every machine.
A KERNEL is written as for 'build --kernels'.` + exitStatus(
			"  0  all were assembled",
			"  1  the command line is wrong, or the cache can't be written to",
			" 21  a kernel whose headers can't be found, fetched or trusted"),
		Example: "  godkms-hermetic image build debian/bookworm:6.1.0-56-amd64",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runImageBuild(cmd.Context(), args, with)
		},
		ValidArgsFunction: a.completeKernels,
	}
	export := &cobra.Command{
		Use:   "export KERNEL FILE",
		Short: "Write the header image of a kernel to a file, for docker load or skopeo",
		Long: `Writes a kernel's header image to FILE, a tar that 'docker load' takes, and 'skopeo copy docker-archive:FILE'; assembles the image
if it isn't there. KERNEL is written as for 'build --kernels', and stands for one kernel. The image's name is that of the kernel,
as in godkms-hermetic/debian-bookworm:6.1.0-56-amd64; a plus in it is written _p, and with extra packages a hash of their names
follows. The same packages give the same bytes.

FILE appears whole or not at all. "-" is standard output. Prints the kernel, the image's digest and FILE, on standard error where
the tar is on standard output.` + exitStatus(
			"  0  it was written",
			"  1  the command line is wrong, or the file or the cache can't be written to",
			" 21  a kernel whose headers can't be found, fetched or trusted"),
		Example: `  godkms-hermetic image export debian/bookworm:6.1.0-56-amd64 image.tar
  godkms-hermetic image export debian/trixie:latest - | docker load`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runImageExport(cmd.Context(), args[0], args[1], with)
		},
		ValidArgsFunction: kernelThen(a, cobra.ShellCompDirectiveDefault),
	}
	push := &cobra.Command{
		Use:   "push KERNEL REPO",
		Short: "Send the header images of kernels to a registry",
		Long: `Sends the header images of kernels to a repository, REPO of a registry or oci:DIR, for the --images of builds on other machines,
and for when the distribution has the kernel no more; assembles those that aren't there. KERNEL is written as for 'build
--kernels'. What the repository has is not sent again: a second kernel costs its headers.

An image has the tag lock-DIGEST, of the packages that it's made of, and that of its kernel, as in debian-bookworm-6.1.0-56-amd64.
Prints the kernel, the image's digest and its reference.` + exitStatus(
			"  0  all are there",
			"  1  the command line is wrong, or the cache or the layout directory can't be written to",
			" 21  a kernel whose headers can't be found, fetched or trusted",
			" 22  the registry can't be reached, or refuses"),
		Example: `  godkms-hermetic image push debian/bookworm:6.1.0-56-amd64 registry.example/headers
  godkms-hermetic image push 'debian/trixie:*-amd64' oci:headers`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runImagePush(cmd.Context(), args[0], args[1], with)
		},
		ValidArgsFunction: kernelThen(a, cobra.ShellCompDirectiveNoFileComp),
	}
	pull := &cobra.Command{
		Use:   "pull KERNEL REPO",
		Short: "Get the header images of kernels from a registry",
		Long: `Gets the header images of kernels from a repository, REPO of a registry or oci:DIR, into the cache. KERNEL is written as for
'build --kernels'. What the distribution has is pulled with the packages that it has now; of a kernel that it has no more, or
that is named in full while it can't be asked, the newest image is pulled.

Every byte is checked, and what was pulled is used as if it had been assembled: it's trusted as much as REPO is. A download that
was cut off goes on where it was. Prints the kernel, the image's digest and its reference.` + exitStatus(
			"  0  all are in the cache",
			"  1  the command line is wrong, or the cache can't be written to",
			" 21  a kernel that neither the distribution nor the repository has",
			" 22  the registry can't be reached, refuses, or has something else in an image's place",
			" 23  the repository has no image of a kernel with these packages"),
		Example: `  godkms-hermetic image pull debian/bookworm:6.1.0-56-amd64 registry.example/headers
  godkms-hermetic image pull debian/trixie:latest oci:headers --with libelf-dev`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runImagePull(cmd.Context(), args[0], args[1], with)
		},
		ValidArgsFunction: kernelThen(a, cobra.ShellCompDirectiveNoFileComp),
	}
	cmd.AddCommand(extra(build), extra(export), extra(push), extra(pull), &cobra.Command{
		Use:   "ls",
		Short: "List the header images of this machine",
		Long: `Lists the header images in the cache, last used first, and from where those come that were pulled; then the kernels themselves
that are kept for tests, with the digest of what boots.` + exitStatus("0  the list was printed", "1  the cache can't be read"),
		Example: "  godkms-hermetic image ls --format json",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.runImageList(cmd.Context()) },
	}, &cobra.Command{
		Use:   "rm KERNEL|DIGEST...",
		Short: "Remove header images",
		Long: `Removes header images, with the layers that no other image needs, and the kernels themselves that were kept for tests. A KERNEL is
written as 'image ls' prints it; a DIGEST is that of the image or of its lock. Packages stay until 'cache gc'.` + exitStatus("0  all were removed", "1  there is no such image, or it is in use"),
		Example: "  godkms-hermetic image rm debian/bookworm:6.1.0-56-amd64",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := a.images(nil, 0)
			if err != nil {
				return err
			}
			removed, booted, err := store.Remove(cmd.Context(), args...)
			if err != nil {
				return err
			}
			for _, i := range removed {
				a.board.Print(fmt.Sprintf("removed the header image of %s", i.Kernel))
			}
			for _, i := range booted {
				a.board.Print(fmt.Sprintf("removed the kernel %s itself", i.Kernel))
			}
			return nil
		},
	})
	return cmd
}

// kernelThen completes a first argument as a kernel, and says what becomes of the others.
func kernelThen(a *app, then cobra.ShellCompDirective) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, then
		}
		return a.completeKernels(cmd, args, typed)
	}
}

func (a *app) runImageBuild(ctx context.Context, list, with []string) error {
	distros, err := a.distros()
	if err != nil {
		return err
	}
	targets, err := a.existing(ctx, distros, images.Remote{}, list)
	if err != nil {
		return err
	}
	store, err := a.images(distros, 0)
	if err != nil {
		return err
	}
	type row struct {
		Kernel string `json:"kernel"`
		Digest string `json:"digest"`
		Lock   string `json:"lock"`
	}
	var rows []row
	one := func(t target) error {
		return a.withImage(ctx, distros, store, t, with, ui.Built, func(lock kernels.Lock, _ *images.Root, img v1.Image, _ images.Progress) error {
			digest, err := img.Digest()
			if err == nil {
				rows = append(rows, row{t.label, digest.String(), lock.Digest().String()})
			}
			return err
		})
	}
	for _, t := range targets {
		if err := one(t); err != nil {
			return err
		}
	}
	a.board.Close()
	if a.json() {
		return ui.WriteJSON(a.stdout, struct {
			Images []row `json:"images"`
		}{rows})
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\n", r.Kernel, r.Digest)
	}
	return w.Flush()
}

// existing resolves a list of selectors, all of which must name kernels, of the indexes or of a repository that may be none.
func (a *app) existing(ctx context.Context, distros map[string]kernels.Provider, remote images.Remote, list []string) ([]target, error) {
	selectors, err := parseSelectors(distros, list)
	if err != nil {
		return nil, err
	}
	if len(selectors) == 0 {
		return nil, errors.New("no kernel given; name one as in debian/trixie:latest")
	}
	targets, err := a.resolve(ctx, distros, selectors)
	if err != nil {
		return nil, err
	}
	if targets, err = a.archived(ctx, remote, selectors, targets); err != nil {
		return nil, registryError(err)
	}
	for _, t := range targets {
		if t.err != nil {
			return nil, &exitError{code: lockCode(t.err), err: t.err}
		}
	}
	return targets, nil
}

// pushed is a header image in a repository.
type pushed struct {
	Kernel    string `json:"kernel"`
	Digest    string `json:"digest"`
	Lock      string `json:"lock"`
	Root      string `json:"root"`
	Reference string `json:"reference"`
}

func pushedOf(t target, root *images.Root, digest v1.Hash, lock kernels.Lock, repo string, extra kernels.Extra) pushed {
	tag := images.KernelTag(lock.Kernel, extra)
	if tag == "" {
		tag = images.LockTag(lock)
	}
	return pushed{t.label, digest.String(), lock.Digest().String(), root.Digest().String(), repo + ":" + tag}
}

func (a *app) printPushed(list []pushed) error {
	a.board.Close()
	if a.json() {
		return ui.WriteJSON(a.stdout, struct {
			Images []pushed `json:"images"`
		}{list})
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, p := range list {
		fmt.Fprintf(w, "%s\t%s\t%s\n", p.Kernel, p.Digest, ui.Clean(p.Reference))
	}
	return w.Flush()
}

func (a *app) runImagePush(ctx context.Context, kernel, repo string, with []string) error {
	remote, err := a.openHeaders(repo)
	if err != nil {
		return err
	}
	distros, err := a.distros()
	if err != nil {
		return err
	}
	targets, err := a.existing(ctx, distros, images.Remote{}, []string{kernel})
	if err != nil {
		return err
	}
	store, err := a.images(distros, 0)
	if err != nil {
		return err
	}
	extra := kernels.Extra{Packages: with}
	var list []pushed
	for _, t := range targets {
		err := a.withImage(ctx, distros, store, t, with, ui.Pushed, func(lock kernels.Lock, root *images.Root, _ v1.Image, progress images.Progress) error {
			digest, err := root.Push(ctx, remote.Repo, extra, progress)
			if err != nil {
				return headerError(err)
			}
			list = append(list, pushedOf(t, root, digest, lock, remote.Repo.Name(), extra))
			return nil
		})
		if err != nil {
			return err
		}
	}
	return a.printPushed(list)
}

// headerError gives an error about a header image of a registry its exit code.
func headerError(err error) error {
	if errors.Is(err, images.ErrInvalid) {
		return &exitError{code: exitRegistry, err: err}
	}
	return registryError(err)
}

func (a *app) runImagePull(ctx context.Context, kernel, repo string, with []string) error {
	remote, err := a.openHeaders(repo)
	if err != nil {
		return err
	}
	distros, err := a.distros()
	if err != nil {
		return err
	}
	targets, err := a.existing(ctx, distros, remote, []string{kernel})
	if err != nil {
		return err
	}
	store, err := a.imagesOf(distros, 0, remote)
	if err != nil {
		return err
	}
	extra := kernels.Extra{Packages: with}
	var list []pushed
	for _, t := range targets {
		line := a.board.Line(t.label)
		p, err := func() (p pushed, err error) {
			line.Phase("locking")
			var lock kernels.Lock
			if t.archived {
				if lock, err = a.archivedLock(ctx, remote, t.kernel, extra); err != nil {
					return p, headerError(err)
				}
			} else if lock, err = distros[t.kernel.Distro].Lock(ctx, t.kernel, extra); err != nil {
				return p, &exitError{code: lockCode(err), err: err}
			}
			d, err := remote.Repo.Head(ctx, images.LockTag(lock))
			if err != nil {
				return p, headerError(fmt.Errorf("header image of %s: %w", t.label, err))
			}
			root, err := store.Pull(ctx, lock, progress(line))
			if err != nil {
				return p, headerError(err)
			}
			return pushedOf(t, root, d.Digest, lock, remote.Repo.Name(), extra), root.Close()
		}()
		if err != nil {
			line.End(ui.Failed, err.Error())
			return err
		}
		line.End(ui.Pulled, "")
		list = append(list, p)
	}
	return a.printPushed(list)
}

func (a *app) runImageExport(ctx context.Context, kernel, file string, with []string) error {
	to, report := file, a.stdout
	switch {
	case file != "-":
		var err error
		if to, err = fileToWrite(file); err != nil {
			return fmt.Errorf("export: %w", err)
		}
	case ui.IsTerminal(a.stdout):
		return errors.New("an image is not for a terminal: name a FILE, or send standard output to a file or a program")
	default:
		report = a.stderr
	}
	distros, err := a.distros()
	if err != nil {
		return err
	}
	targets, err := a.existing(ctx, distros, images.Remote{}, []string{kernel})
	if err != nil {
		return err
	}
	if len(targets) > 1 {
		return fmt.Errorf("%q stands for %d kernels; export takes one, such as %s", kernel, len(targets), targets[0].label)
	}
	store, err := a.images(distros, 0)
	if err != nil {
		return err
	}
	type result struct {
		Kernel string `json:"kernel"`
		Digest string `json:"digest"`
		Tag    string `json:"tag"` // the image's name in the file
		File   string `json:"file"`
	}
	var r result
	err = a.withImage(ctx, distros, store, targets[0], with, ui.Built, func(lock kernels.Lock, root *images.Root, img v1.Image, _ images.Progress) error {
		digest, err := img.Digest()
		if err != nil {
			return err
		}
		tag := images.Tag(lock.Kernel, kernels.Extra{Packages: with})
		r = result{targets[0].label, digest.String(), tag, file}
		if file == "-" {
			return root.Export(ctx, a.stdout, tag)
		}
		return writeWhole(ctx, to, func(w io.Writer) error { return root.Export(ctx, w, tag) })
	})
	if err != nil {
		return err
	}
	a.board.Close()
	if a.json() {
		return ui.WriteJSON(report, struct {
			Images []result `json:"images"`
		}{[]result{r}})
	}
	_, err = fmt.Fprintf(report, "%s  %s  %s\n", r.Kernel, r.Digest, ui.Clean(r.File))
	return err
}

// fileToWrite says where a file that is named on the command line comes to be: behind symbolic links, for writing to /dev/stdout must
// not replace it. Its folder must be there and writable.
func fileToWrite(name string) (string, error) {
	name, err := regularFile(name)
	if err != nil {
		return "", fmt.Errorf("%w; - is standard output", err)
	}
	dir := filepath.Dir(name)
	if _, err := os.Stat(dir); err != nil {
		return "", err
	}
	return name, writable(dir)
}

// regularFile is where a file that is named comes to be, which is no device or folder.
func regularFile(name string) (string, error) {
	if name == "" {
		return "", errors.New("no file given")
	}
	if real, err := filepath.EvalSymlinks(name); err == nil {
		name = real
	}
	switch info, err := os.Stat(name); {
	case err == nil && !info.Mode().IsRegular():
		return "", fmt.Errorf("%q is not a regular file", name)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	return name, nil
}

// writeWhole writes a file that appears whole or not at all. Until then it is in a folder beside it, which goes away; that of a process
// that was killed is removed by the next one.
func writeWhole(ctx context.Context, name string, write func(io.Writer) error) error {
	dir := filepath.Dir(name)
	lock, err := durable.LockDir(ctx, dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	partial := partialOf(name)
	if err := os.RemoveAll(partial); err != nil {
		return err
	}
	if err := os.Mkdir(partial, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(partial)
	return durable.WriteFile(partial, name, 0o644, write)
}

// partialOf is the folder that has a file of writeWhole until it is whole.
func partialOf(name string) string {
	return filepath.Join(filepath.Dir(name), "."+filepath.Base(name)+".partial")
}

// withImage assembles a kernel's header image, and hands it to use while it can be read.
func (a *app) withImage(ctx context.Context, distros map[string]kernels.Provider, store *images.Store, t target, with []string,
	done ui.Status, use func(kernels.Lock, *images.Root, v1.Image, images.Progress) error) error {
	line := a.board.Line(t.label)
	fail := func(err error, code int) error {
		line.End(ui.Failed, err.Error())
		return &exitError{code: code, err: err}
	}
	line.Phase("locking")
	lock, err := distros[t.kernel.Distro].Lock(ctx, t.kernel, kernels.Extra{Packages: with})
	if err != nil {
		return fail(err, lockCode(err))
	}
	root, err := store.Root(ctx, lock, progress(line))
	if !ofDisk(err) && errors.As(err, new(*images.PackageError)) {
		return fail(err, exitNoKernel)
	}
	if err != nil {
		return fail(err, exitUsage)
	}
	defer root.Close()
	line.Phase("packing")
	img, err := root.Image(ctx)
	if err == nil {
		err = use(lock, root, img, progress(line))
	}
	if e := (*exitError)(nil); errors.As(err, &e) {
		return fail(e.err, e.code)
	}
	if err != nil {
		return fail(err, exitUsage)
	}
	line.End(done, "")
	return nil
}

func (a *app) runImageList(ctx context.Context) error {
	store, err := a.images(nil, 0)
	if err != nil {
		return err
	}
	list, err := store.List(ctx)
	if err != nil {
		return err
	}
	type row struct {
		Kernel   string    `json:"kernel"`
		Digest   string    `json:"digest"` // empty until the image was packed
		Lock     string    `json:"lock"`
		Size     int64     `json:"size"`
		From     string    `json:"from,omitempty"` // the repository that it was pulled from
		LastUsed time.Time `json:"last_used"`
	}
	rows := []row{}
	for _, i := range list {
		r := row{Kernel: i.Kernel.String(), Lock: i.Lock.String(), Size: i.Size, From: i.From, LastUsed: i.Used.UTC()}
		if i.Image.Hex != "" {
			r.Digest = i.Image.String()
		}
		rows = append(rows, r)
	}
	booted, err := store.Kernels()
	if err != nil {
		return err
	}
	type kernelRow struct {
		Kernel   string    `json:"kernel"`
		Digest   string    `json:"digest"` // of what boots
		Size     int64     `json:"size"`   // with its modules
		LastUsed time.Time `json:"last_used"`
	}
	kernelRows := []kernelRow{}
	for _, k := range booted {
		kernelRows = append(kernelRows, kernelRow{k.Kernel.String(), k.Boot.String(), k.Size, k.Used})
	}
	if a.json() {
		return ui.WriteJSON(a.stdout, struct {
			Images  []row       `json:"images"`
			Kernels []kernelRow `json:"kernels"`
		}{rows, kernelRows})
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		digest := r.Digest
		if digest == "" {
			digest = "(not packed)"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s", r.Kernel, digest, bytesText(r.Size), r.LastUsed.Format(time.DateOnly))
		if r.From != "" {
			fmt.Fprintf(w, "\tfrom %s", ui.Clean(r.From))
		}
		fmt.Fprintln(w)
	}
	for _, k := range kernelRows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\tthe kernel itself\n", k.Kernel, k.Digest, bytesText(k.Size), k.LastUsed.Format(time.DateOnly))
	}
	return w.Flush()
}
