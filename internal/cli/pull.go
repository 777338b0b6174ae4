package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// referenceHelp is for commands that read from a repository.
const referenceHelp = `REF is a repository, as registry.example/modules/hello, or a directory in OCI's layout, as oci:DIR; behind it may stand a
version of the module, as :1.0, the tag of one kernel, or a digest, as @sha256:…. Without these it is the only version there.`

func (a *app) pullCommand() *cobra.Command {
	var list []string
	var out, arch string
	cmd := &cobra.Command{
		Use:   "pull REF [--kernel KERNELS]",
		Short: "Get prebuilt modules from a registry",
		Long: `Gets the modules for kernels from a registry, and puts them into DIR/<distro>-<suite>/<release>/. Every byte is checked against
the digest of what REF names; a download that was cut off goes on where it was; nothing is put in its place before all is there.
The record of their last test is put beside them as test.json, if they have one.

` + referenceHelp + `

KERNELS is a list with commas of [DISTRO/SUITE:]RELEASE; each may be a shell pattern, RELEASE "running" too, which is the
default. What has ! before it is left out, and @FILE is a list in a file, as for 'build --kernels'. A kernel of this host must
fit it: the distribution and the suite are those of its os-release, and where the headers of the kernel are installed, their
Module.symvers is the one that the modules were built against.` + exitStatus(
			"  0  the modules are there",
			"  1  the command line is wrong, or the files can't be written",
			" 22  the registry can't be reached, refuses, or has something that was altered",
			" 23  the registry has no such module, or none for that kernel",
			"130  interrupted"),
		Example: `  godkms-hermetic pull registry.example/modules/hello
  godkms-hermetic pull registry.example/modules/hello:1.0 --kernel debian/bookworm:6.1.0-56-amd64 --out modules`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runPull(cmd.Context(), args[0], list, kernels.ArchOf(arch), out)
		},
		ValidArgsFunction: completeReference(cobra.ShellCompDirectiveNoFileComp),
	}
	f := cmd.Flags()
	f.StringSliceVar(&list, "kernel", []string{kernels.Running}, "`KERNELS` to get modules for")
	f.StringVar(&out, "out", "out", "`DIR` for the modules")
	f.StringVar(&arch, "arch", kernels.HostArch(), "architecture, as Debian names it or uname -m")
	cmd.MarkFlagDirname("out")
	for _, name := range []string{"kernel", "arch"} {
		cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	return cmd
}

// completeReference offers no files in a reference's place, and says what becomes of a second argument.
func completeReference(then cobra.ShellCompDirective) cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 1 {
			return nil, then
		}
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
}

// open gives the repository of a reference that was typed.
func (a *app) open(text string) (*registry.Client, *registry.Repo, registry.Reference, error) {
	ref, err := registry.Parse(text)
	if err != nil {
		return nil, nil, ref, err
	}
	client, err := a.registries()
	if err != nil {
		return nil, nil, ref, err
	}
	repo, err := client.Open(ref)
	if err != nil {
		return nil, nil, ref, registryError(err)
	}
	return client, repo, ref, nil
}

func (a *app) runPull(ctx context.Context, text string, list []string, arch, out string) error {
	selectors, err := listSelectors(list)
	if err != nil {
		return err
	}
	if len(selectors) == 0 {
		return errors.New("no kernel given; leave --kernel away for the running one")
	}
	if err := writable(out); err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	client, repo, ref, err := a.open(text)
	if err != nil {
		return err
	}
	chosen, err := choose(ctx, repo, ref, selectors, readMachine("/", running()), arch)
	if err != nil {
		return err
	}
	temp, err := a.temp()
	if err != nil {
		return err
	}
	var partial partialDir
	reports := make([]ui.Result, len(chosen))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(8)
	for i, c := range chosen {
		line := a.board.Line(kernelOf(c.Meta).String())
		g.Go(func() error {
			start := time.Now()
			err := a.pullOne(gctx, client, repo, c, temp, out, &partial, line, &reports[i])
			if err != nil {
				line.End(ui.Failed, err.Error())
				return err
			}
			reports[i].Seconds = time.Since(start).Seconds()
			line.End(ui.Pulled, "")
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	a.board.Close()
	if a.json() {
		return ui.PrintJSON(a.stdout, reports)
	}
	return ui.PrintText(a.stdout, reports)
}

// testFile is the record of a test, beside modules that were pulled.
const testFile = "test.json"

// smallArtifact is, in bytes, what is put in its place as it comes. Of larger ones, what has come is kept when the program ends before
// all has, for the next time.
const smallArtifact = 16 << 20

// pullOne downloads one artifact, checks all of it, and hands its modules out.
func (a *app) pullOne(ctx context.Context, client *registry.Client, repo *registry.Repo, e artifact.Entry, temp, out string, partial *partialDir,
	line *ui.Line, report *ui.Result) error {
	line.Phase("pulling")
	img, err := repo.Image(ctx, e.Digest.String())
	if err != nil {
		return registryError(err)
	}
	if err := e.Check(img); err != nil { // before anything large is downloaded
		return registryError(fmt.Errorf("%s: %w", repo.Name(), err))
	}
	if e.Size > smallArtifact {
		dir, err := durable.NewTemp(filepath.Join(temp, "pull"))
		if err != nil {
			return err
		}
		defer dir.Close()
		if img, err = client.Fetch(ctx, repo, e.Digest.String(), dir.Dir, line.Bytes); err != nil {
			return registryError(err)
		}
	}
	attached, err := artifact.ReadAttachmentsOf(ctx, repo, e.Digest, e.Meta, artifact.TestType)
	if err != nil {
		a.board.Warn(fmt.Sprintf("%s: without what came of its tests: %v", kernelOf(e.Meta), err))
	}
	tests := attachedTests(e.Digest, attached)
	var meta artifact.Meta
	var files []artifact.File
	to := folderOf(out, kernelOf(e.Meta))
	err = place(ctx, partial, out, to, func(partial string) (names []string, err error) {
		if len(tests) > 0 {
			text, err := json.Marshal(tests[0])
			if err == nil {
				err = write(filepath.Join(partial, testFile), io.NopCloser(bytes.NewReader(text)))
			}
			if err != nil {
				return nil, err
			}
			names = append(names, testFile)
		}
		meta, files, err = artifact.Unpack(img, func(f artifact.File) (io.WriteCloser, error) {
			names = append(names, f.Name)
			return create(filepath.Join(partial, f.Name))
		})
		return names, err
	})
	if ofRegistry(err) {
		return registryError(fmt.Errorf("%s@%s: %w", repo.Name(), e.Digest, err))
	}
	if err != nil {
		return fmt.Errorf("write the modules: %w; see to it or choose another folder with --out", err)
	}
	k := kernelOf(meta)
	*report = ui.Result{Module: meta.Module, Version: meta.Version, Kernel: k.String(), Distro: k.Distro, Suite: k.Suite, Release: k.Release,
		Status: ui.Pulled, Key: meta.Key.String(), Digest: e.Digest.String(), Compiler: meta.Compiler,
		Reference: repo.Name() + "@" + e.Digest.String()}
	for _, f := range files {
		report.Modules = append(report.Modules, moduleIn(to, f))
	}
	if len(tests) > 0 {
		report.Test = &tests[0].Result
	}
	return nil
}

// offered is all that a reference stands for.
func offered(ctx context.Context, repo *registry.Repo, ref registry.Reference) ([]artifact.Entry, error) {
	list, err := artifact.Entries(ctx, repo, ref.Identifier())
	if ref.Identifier() != "" && errors.Is(err, registry.ErrNotFound) {
		err = fmt.Errorf("%w; 'list %s' shows what is there", err, ref.Repository())
	}
	if err != nil {
		return nil, registryError(err)
	}
	return list, nil
}

// choose gives what selectors name of what a reference stands for, in their order. A kernel of the host's own must fit it.
func choose(ctx context.Context, repo *registry.Repo, ref registry.Reference, selectors []kernels.Selector, h machine, arch string) ([]artifact.Entry, error) {
	offers, err := offered(ctx, repo, ref)
	if err != nil {
		return nil, err
	}
	var out []artifact.Entry
	for _, s := range wantedOf(selectors) {
		if s.Release == kernels.Running {
			if h.running == "" {
				return nil, errors.New("the running kernel's release is not known; name one with --kernel")
			}
			s.Release = h.running
		}
		wants, err := wanted(offers, s, h, arch)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", ref, err)
		}
		if len(wants) == 0 {
			return nil, &exitError{code: exitAbsent, err: fmt.Errorf("%s has no modules for %q on %s; it has those for %s", ref, s, arch, names(offers))}
		}
		for _, w := range wants {
			if kernels.Excluded(selectors, kernels.Kernel{Distro: w.Distro, Suite: w.Suite, Arch: w.Arch, Release: w.Release}) {
				continue
			}
			e, err := find(ctx, repo, ref, offers, w)
			if err != nil {
				return nil, err
			}
			if !slices.ContainsFunc(out, func(o artifact.Entry) bool { return o.Digest == e.Digest }) {
				out = append(out, e)
			}
		}
	}
	if len(out) == 0 {
		return nil, &exitError{code: exitAbsent, err: fmt.Errorf("%s has no modules for %q; it has those for %s", ref, joined(selectors), names(offers))}
	}
	return out, nil
}

// find gives what is offered for a kernel. What isn't offered may be there still: the index can lack what was pushed a moment ago.
func find(ctx context.Context, repo *registry.Repo, ref registry.Reference, offers []artifact.Entry, w artifact.Want) (artifact.Entry, error) {
	for _, e := range offers {
		if k := e.Kernel; k.Distro == w.Distro && k.Suite == w.Suite && k.Release == w.Release && k.Arch == w.Arch &&
			(w.Symvers == v1.Hash{} || w.Symvers == e.Symvers) {
			return e, nil
		}
	}
	e, _, err := artifact.Find(ctx, repo, ref.Identifier(), w)
	if no := (*artifact.NoMatchError)(nil); errors.As(err, &no) {
		return e, &exitError{code: exitAbsent, err: fmt.Errorf("%w: %s", err, names(no.Have))}
	}
	if err != nil {
		return e, registryError(err)
	}
	return e, nil
}

// wanted are the kernels that a selector stands for, of what is offered. One of the host's own must be of its distribution, and where
// its headers are installed, of their Module.symvers.
func wanted(offers []artifact.Entry, s kernels.Selector, h machine, arch string) ([]artifact.Want, error) {
	if s.Distro == "" && s.Release == h.running && h.suite != "" {
		s.Distro, s.Suite = h.distro, h.suite
	}
	var wants []artifact.Want
	if s.IsExact() {
		wants = append(wants, artifact.Want{Distro: s.Distro, Suite: s.Suite, Release: s.Release, Arch: arch})
	} else {
		for _, e := range offers {
			k := kernelOf(e.Meta)
			if k.Arch != arch || !selects(s, k, h.running) {
				continue
			}
			if i := slices.IndexFunc(wants, func(w artifact.Want) bool { return w.Release == k.Release }); i >= 0 && s.Distro == "" && !s.IsPattern() {
				return nil, fmt.Errorf("%q is a release of %s/%s and of %s/%s: put the suite before it, as in %[4]s/%[5]s:%[1]s", s.Release, wants[i].Distro, wants[i].Suite, k.Distro, k.Suite)
			}
			wants = append(wants, artifact.Want{Distro: k.Distro, Suite: k.Suite, Release: k.Release, Arch: arch})
		}
	}
	for i := range wants {
		w := &wants[i]
		if !h.isOwn(kernels.Kernel{Distro: w.Distro, Suite: w.Suite}) {
			continue
		}
		var err error
		if w.Symvers, _, err = h.symvers(w.Release); err != nil {
			return nil, fmt.Errorf("read the headers of %s: %w", w.Release, err)
		}
	}
	return wants, nil
}

// names lists the kernels of what is offered.
func names(offers []artifact.Entry) string {
	var out []string
	for _, o := range offers {
		out = append(out, kernelOf(o.Meta).String())
	}
	slices.Sort(out)
	out = slices.Compact(out)
	if len(out) == 0 {
		return "none"
	}
	if n := len(out); n > 20 {
		out = append(out[:20], fmt.Sprintf("and %d more", n-20))
	}
	return strings.Join(out, ", ")
}
