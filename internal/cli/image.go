package cli

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/godkms-hermetic/godkms-hermetic/images"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
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
	build.Flags().StringSliceVar(&with, "with", nil, "extra `PACKAGES`, of the kernel's distribution")
	cmd.AddCommand(build, &cobra.Command{
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
	selectors, err := parseSelectors(distros, list)
	if err != nil {
		return err
	}
	targets, err := a.resolve(ctx, distros, selectors)
	if err != nil {
		return err
	}
	for _, t := range targets {
		if t.err != nil {
			return &exitError{code: lockCode(t.err), err: t.err}
		}
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
		line := a.board.Line(t.label)
		line.Phase("locking")
		lock, err := distros[t.kernel.Distro].Lock(ctx, t.kernel, with)
		if err != nil {
			line.End(ui.Failed, err.Error())
			return &exitError{code: lockCode(err), err: err}
		}
		root, err := store.Root(ctx, lock, progress(line))
		if err != nil {
			line.End(ui.Failed, err.Error())
			if !ofDisk(err) && errors.As(err, new(*images.PackageError)) {
				return &exitError{code: exitNoKernel, err: err}
			}
			return err
		}
		defer root.Close()
		line.Phase("packing")
		img, err := root.Image(ctx)
		if err != nil {
			line.End(ui.Failed, err.Error())
			return err
		}
		digest, err := img.Digest()
		if err != nil {
			return err
		}
		line.End(ui.Built, "")
		rows = append(rows, row{t.label, digest.String(), lock.Digest().String()})
		return nil
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
