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
as in godkms-hermetic/debian-bookworm:6.1.0-56-amd64; what a tag can't have, such as a plus, becomes an underscore. The same
packages give the same bytes.

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
		ValidArgsFunction: func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveDefault
			}
			return a.completeKernels(cmd, args, typed)
		},
	}
	cmd.AddCommand(extra(build), extra(export), &cobra.Command{
		Use:     "ls",
		Short:   "List the header images of this machine",
		Long:    "Lists the header images in the cache, last used first." + exitStatus("0  the list was printed", "1  the cache can't be read"),
		Example: "  godkms-hermetic image ls --format json",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.runImageList(cmd.Context()) },
	}, &cobra.Command{
		Use:   "rm KERNEL|DIGEST...",
		Short: "Remove header images",
		Long: `Removes header images, and the layers that no other image needs. A KERNEL is written as 'image ls' prints it; a DIGEST is that of
the image or of its lock. Packages stay until 'cache gc'.` + exitStatus("0  all were removed", "1  there is no such image, or it is in use"),
		Example: "  godkms-hermetic image rm debian/bookworm:6.1.0-56-amd64",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := a.images(nil, 0)
			if err != nil {
				return err
			}
			removed, err := store.Remove(cmd.Context(), args...)
			if err != nil {
				return err
			}
			for _, i := range removed {
				a.board.Print(fmt.Sprintf("removed the header image of %s", i.Kernel))
			}
			return nil
		},
	})
	return cmd
}

func (a *app) runImageBuild(ctx context.Context, list, with []string) error {
	distros, err := a.distros()
	if err != nil {
		return err
	}
	targets, err := a.existing(ctx, distros, list)
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
		return a.withImage(ctx, distros, store, t, with, func(lock kernels.Lock, _ *images.Root, img v1.Image) error {
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

// existing resolves a list of selectors, all of which must name kernels.
func (a *app) existing(ctx context.Context, distros map[string]kernels.Provider, list []string) ([]target, error) {
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
	for _, t := range targets {
		if t.err != nil {
			return nil, &exitError{code: lockCode(t.err), err: t.err}
		}
	}
	return targets, nil
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
	targets, err := a.existing(ctx, distros, []string{kernel})
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
	err = a.withImage(ctx, distros, store, targets[0], with, func(lock kernels.Lock, root *images.Root, img v1.Image) error {
		digest, err := img.Digest()
		if err != nil {
			return err
		}
		r = result{targets[0].label, digest.String(), images.Tag(lock.Kernel), file}
		if file == "-" {
			return root.Export(ctx, a.stdout)
		}
		return writeWhole(ctx, to, func(w io.Writer) error { return root.Export(ctx, w) })
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
	if name == "" {
		return "", errors.New("no file given")
	}
	if real, err := filepath.EvalSymlinks(name); err == nil {
		name = real
	}
	switch info, err := os.Stat(name); {
	case err == nil && !info.Mode().IsRegular():
		return "", fmt.Errorf("%q is not a regular file; - is standard output", name)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return "", err
	}
	dir := filepath.Dir(name)
	if _, err := os.Stat(dir); err != nil {
		return "", err
	}
	return name, writable(dir)
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
	partial := filepath.Join(dir, "."+filepath.Base(name)+".partial")
	if err := os.RemoveAll(partial); err != nil {
		return err
	}
	if err := os.Mkdir(partial, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(partial)
	return durable.WriteFile(partial, name, 0o644, write)
}

// withImage assembles a kernel's header image, and hands it to use while it can be read.
func (a *app) withImage(ctx context.Context, distros map[string]kernels.Provider, store *images.Store, t target, with []string,
	use func(kernels.Lock, *images.Root, v1.Image) error) error {
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
		err = use(lock, root, img)
	}
	if err != nil {
		return fail(err, exitUsage)
	}
	line.End(ui.Built, "")
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
		LastUsed time.Time `json:"last_used"`
	}
	rows := []row{}
	for _, i := range list {
		r := row{Kernel: i.Kernel.String(), Lock: i.Lock.String(), Size: i.Size, LastUsed: i.Used.UTC()}
		if i.Image.Hex != "" {
			r.Digest = i.Image.String()
		}
		rows = append(rows, r)
	}
	if a.json() {
		return ui.WriteJSON(a.stdout, struct {
			Images []row `json:"images"`
		}{rows})
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		digest := r.Digest
		if digest == "" {
			digest = "(not packed)"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.Kernel, digest, bytesText(r.Size), r.LastUsed.Format(time.DateOnly))
	}
	return w.Flush()
}
