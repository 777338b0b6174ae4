package cli

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
)

func (a *app) pushCommand() *cobra.Command {
	var list []string
	cmd := &cobra.Command{
		Use:   "push REF [SRC|MODULE/VERSION]",
		Short: "Push built modules to a registry",
		Long: `Pushes what was built of a source to a repository, as registry.example/modules/hello, or to a directory in OCI's layout, as
oci:DIR: for each kernel an image with the tag <version>-<distro>-<suite>-<release>, and the index of all kernels with the tag
<version>. Several may push to one index at once. A repository is for one module.

What came of the last test of a result goes with it, for list and 'install --require-tested'; see test.

SRC is written as for build; the default is the current folder. MODULE/VERSION, as hello/1.0, stands for the newest result of
each kernel, whatever the source. KERNELS is a list with commas of [DISTRO/SUITE:]RELEASE; each may be a shell pattern, RELEASE
"running" too. What has ! before it is left out, and @FILE is a list in a file, as for 'build --kernels'; the default is every
kernel that there is a result for. Nothing is built: what isn't in the cache is an error.` + exitStatus(
			"  0  all were pushed, or had been before",
			"  1  the command line is wrong, or there is no such result",
			" 22  the registry can't be reached or refuses",
			" 77  every kernel was skipped (BUILD_EXCLUSIVE in dkms.conf)",
			"130  interrupted"),
		Example: `  godkms-hermetic push registry.example/modules/hello
  godkms-hermetic push oci:out/layout hello/1.0 --kernels 'debian/bookworm:*'`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runPush(cmd.Context(), append(args, ".")[:2], list)
		},
		ValidArgsFunction: completeReference(cobra.ShellCompDirectiveDefault),
	}
	cmd.Flags().StringSliceVar(&list, "kernels", nil, "`KERNELS` to push for (default all)")
	cmd.RegisterFlagCompletionFunc("kernels", cobra.NoFileCompletions)
	return cmd
}

func (a *app) runPush(ctx context.Context, args, list []string) error {
	selectors, err := listSelectors(list)
	if err != nil {
		return err
	}
	repo, err := a.openToPush(args[0])
	if err != nil {
		return err
	}
	results, err := a.results()
	if err != nil {
		return err
	}
	found, err := a.storedOf(ctx, results, args[1], selectors, layoutDirs(args[0]))
	if err != nil {
		return err
	}
	publications := make([]artifact.Publication, len(found))
	reports := make([]ui.Result, len(found))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.NumCPU()) // reading hashes
	for i, s := range found {
		k := s.kernel()
		reports[i] = ui.Result{Module: s.meta.Module, Version: s.meta.Version, Kernel: k.String(), Distro: k.Distro, Suite: k.Suite, Release: k.Release,
			Key: s.Key.String(), Digest: s.Digest.String(), Compiler: s.meta.Compiler}
		g.Go(func() error {
			e, err := results.Get(gctx, s.Key)
			if err != nil {
				return err
			}
			tests, err := attachableTests(gctx, results, s.Key, s.Digest, kernelOf(s.meta))
			publications[i] = artifact.Publication{Image: e.Image, Log: e.Log, Lock: e.Lock, Inputs: e.Inputs, Created: s.Created, Tests: tests}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	return a.report(reports, a.publish(ctx, repo, publications, reports))
}

// report prints results, then gives the error that they come to.
func (a *app) report(reports []ui.Result, err error) error {
	a.board.Close()
	if err != nil {
		return err
	}
	print := ui.PrintText
	if a.json() {
		print = ui.PrintJSON
	}
	if err := print(a.stdout, reports); err != nil {
		return err
	}
	return outcome(reports, make([]int, len(reports)))
}

// openToPush gives the repository of a reference, which has neither tag nor digest.
func (a *app) openToPush(text string) (*registry.Repo, error) {
	_, repo, ref, err := a.open(text)
	if err != nil {
		return nil, err
	}
	if ref.Identifier() != "" {
		return nil, fmt.Errorf("%q: tags follow from version and kernel; name the repository alone, %s", text, ref.Repository())
	}
	return repo, nil
}

// publish pushes results of one version of a module, which repositories of from may have. It fills in how they ended.
func (a *app) publish(ctx context.Context, repo *registry.Repo, list []artifact.Publication, reports []ui.Result, from ...registry.Reference) error {
	if len(list) == 0 {
		return nil
	}
	for i := range list {
		if list[i].Created.IsZero() { // built, or found in the cache, just now
			list[i].Created = time.Now()
		}
	}
	line := a.board.Line("push " + reports[0].Module + "/" + reports[0].Version)
	line.Phase("pushing")
	done, err := artifact.Publish(ctx, repo, list, from...)
	if err != nil {
		line.End(ui.Failed, err.Error())
		return registryError(err)
	}
	if len(done.Entries) == 0 {
		line.End(ui.Skipped, "")
	} else {
		line.End(ui.Pushed, repo.Name())
	}
	for _, w := range done.Warnings {
		a.board.Warn(w.Error())
	}
	for i := range reports {
		r := &reports[i]
		r.Status, r.Reason = ui.Skipped, "it has no modules for this kernel (BUILD_EXCLUSIVE)"
		for _, e := range done.Entries {
			if e.Digest.String() == r.Digest {
				r.Status, r.Reason, r.Reference = ui.Pushed, "", repo.Name()+":"+e.Tag
			}
		}
	}
	return nil
}

// moduleWord stands for the module's name in the reference of build's --push.
const moduleWord = "{module}"

// pushTargets gives the repository that each source that was named is pushed to.
func (a *app) pushTargets(text string, us units) (map[string]*registry.Repo, error) {
	out := map[string]*registry.Repo{}
	for _, u := range us {
		if !u.named {
			continue
		}
		if len(out) > 0 && !strings.Contains(text, moduleWord) {
			return nil, fmt.Errorf("--push %s: a repository is for one module, and there are several; write %s for the module's name, as in registry.example/modules/%[2]s",
				text, moduleWord)
		}
		repo, err := a.openToPush(strings.ReplaceAll(text, moduleWord, u.source.Module))
		if err != nil {
			return nil, fmt.Errorf("--push: %w", err)
		}
		out[u.source.Module] = repo
	}
	return out, nil
}

// push pushes what was built or cached, each module to its repository. What failed is left out. One repository's failure stops no other,
// unless the registry is down.
func (r *buildRun) push(ctx context.Context, cells []*cell) error {
	var failed []error
	for _, u := range r.units {
		repo := r.targets[u.source.Module]
		if repo == nil {
			continue
		}
		var list []artifact.Publication
		var of []*cell
		for _, c := range cells {
			if c.source == u.source && c.result.Image != nil && c.report.Status != ui.Failed {
				tests, err := attachableTests(ctx, r.tests, c.result.Key, c.result.Digest, c.kernel)
				if err != nil {
					r.board.Warn(fmt.Sprintf("%s: it is pushed without what came of its test: %v", c.title, err))
				}
				list = append(list, artifact.Publication{Image: c.result.Image, Log: c.result.Log, Lock: c.lock, Inputs: c.result.Inputs, Tests: tests})
				of = append(of, c)
			}
		}
		reports := make([]ui.Result, len(of))
		for i, c := range of {
			reports[i] = c.report
			reports[i].Digest = c.result.Digest.String()
		}
		if err := r.publish(ctx, repo, list, reports, r.caches...); err != nil {
			if failed = append(failed, err); ctx.Err() != nil || errors.Is(err, registry.ErrUnavailable) {
				break
			}
			continue
		}
		for i, c := range of {
			c.report.Reference = reports[i].Reference
		}
	}
	return errors.Join(failed...)
}
