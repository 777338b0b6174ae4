package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
)

// maxGitHub is how many jobs GitHub makes of one matrix:
// https://docs.github.com/en/actions/reference/limits#existing-system-limits
const maxGitHub = 256

var matrixFormats = []string{"text", "json", "github", "gitlab"}

func (a *app) matrixCommand() *cobra.Command {
	o := defaultBuild()
	o.out = "out" // as build's: it isn't part of a source
	var format string
	var shards int
	cmd := &cobra.Command{
		Use:   "matrix [SRC...] --kernels KERNELS",
		Short: "Divide a build into jobs of a CI service",
		Long: `Divides the kernels of a build into jobs, for a CI service to run side by side: one for each kernel, or with --shards N at most
N, which differ by one kernel at most. Kernels of one suite stay together as far as that goes, since they share a toolchain. Each
job names its kernels by their releases: it builds these, whatever the mirrors have got by then. The same request and the same
indexes give the same jobs. Nothing is built: whether a dkms.conf excludes a kernel (BUILD_EXCLUSIVE) is found out by the job. A
kernel that can't be found is an error, and nothing is printed then.

SRC, KERNELS and --lock are as in build. build --shard 2/4 builds what matrix --shards 4 puts into its second job, for where the
number of jobs stands in the CI's configuration and nothing need be divided first.

--format github is a line of JSON for strategy.matrix, as in ${{ fromJSON(needs.plan.outputs.matrix) }}: each entry has a name, an
id that can be part of an artifact's name, and kernels for --kernels. GitHub takes no more than 256 entries.
--format gitlab is a child pipeline for trigger: include: artifact. Its jobs extend .godkms-hermetic, which is in
docs/ci/gitlab.yml, with GODKMS_KERNELS set. docs/ci.md has pipelines for both.
--format json is {"jobs":[{"name":"1/4 debian/bookworm","id":"1-of-4","kernels":["debian/bookworm:6.1.0-56-amd64"]}]}.` + exitStatus(
			"  0  the jobs were printed",
			"  1  the command line or the source is wrong, or there are too many jobs",
			" 21  a kernel can't be found, or an index can't be had or trusted",
			"130  interrupted"),
		Example: `  godkms-hermetic matrix . --kernels 'debian/bookworm:*,debian/trixie:*' --shards 8
  matrix=$(godkms-hermetic matrix . --kernels 'debian/bookworm:*' --format github) && echo "matrix=$matrix" >>"$GITHUB_OUTPUT"
  godkms-hermetic matrix . --kernels 'debian/bookworm:*' --shards 20 --format gitlab >jobs.yml`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(matrixFormats, format) {
				return fmt.Errorf("--format is %q: it can be %s", format, strings.Join(matrixFormats, ", "))
			}
			if shards < 1 && cmd.Flags().Changed("shards") || shards > maxShards {
				return fmt.Errorf("--shards is %d: it must be from 1 to %d", shards, maxShards)
			}
			return a.runMatrix(cmd.Context(), o, sourcesOf(args), shards, format)
		},
	}
	f := cmd.Flags()
	f.StringSliceVarP(&o.kernels, "kernels", "k", nil, "`KERNELS` to build for; required, but for --lock")
	f.StringVar(&o.lock, "lock", "", "`FILE` of the command lock, whose kernels are divided, for jobs with the same --lock")
	f.StringVar(&format, "format", "text", "what to print on standard output: text, json, github or gitlab")
	f.IntVar(&shards, "shards", 0, "at most `N` jobs (default one for each kernel)")
	f.StringVar(&o.headers.repo, "images", "", "repository of header images, `REPO` of a registry or oci:DIR, as in build (default none)")
	cmd.RegisterFlagCompletionFunc("kernels", a.completeKernels)
	cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(matrixFormats, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// ciJob is what one job of a CI service builds.
type ciJob struct {
	Name    string   `json:"name"` // for people: "1/4 debian/bookworm", or the kernel where it has one for each
	ID      string   `json:"id"`   // of the letters that names of files and artifacts may have: "1-of-4"
	Kernels []string `json:"kernels"`
}

func (a *app) runMatrix(ctx context.Context, o buildOptions, sources []string, shards int, format string) error {
	r, err := a.newRun(o)
	if err != nil {
		return err
	}
	defer r.close()
	targets, err := r.plan(ctx, sources)
	if err != nil {
		return err
	}
	for _, t := range targets {
		if t.err != nil {
			return &exitError{code: lockCode(t.err), err: t.err}
		}
	}
	jobs := ciJobs(targets, shards)
	switch format {
	case "json":
		return ui.WriteJSON(a.stdout, struct {
			Jobs []ciJob `json:"jobs"`
		}{jobs})
	case "github":
		return printGitHub(a.stdout, jobs)
	case "gitlab":
		return printGitLab(a.stdout, jobs)
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, j := range jobs {
		fmt.Fprintf(w, "%s\t%s\n", j.Name, strings.Join(j.Kernels, ","))
	}
	return w.Flush()
}

// ciJobs divides targets, one for each of them if shards is 0.
func ciJobs(targets []target, shards int) []ciJob {
	if shards == 0 {
		jobs := make([]ciJob, len(targets))
		for i, t := range targets {
			jobs[i] = ciJob{Name: t.label, ID: idOf(t.label), Kernels: []string{t.label}}
		}
		return jobs
	}
	var jobs []ciJob
	for n := 1; n <= min(shards, len(targets)); n++ {
		s := shard{n, shards}
		j := ciJob{ID: fmt.Sprintf("%d-of-%d", s.n, s.of)}
		var suites []string
		for _, t := range s.take(targets) {
			j.Kernels = append(j.Kernels, t.label)
			if suite := t.kernel.Distro + "/" + t.kernel.Suite; !slices.Contains(suites, suite) {
				suites = append(suites, suite)
			}
		}
		j.Name = s.String() + " " + suites[0]
		if len(suites) > 1 { // all of them can be more than the name of a job may have
			j.Name += fmt.Sprintf(" and %d more", len(suites)-1)
		}
		jobs = append(jobs, j)
	}
	return jobs
}

// idOf leaves of a name what GitHub allows in the names of artifacts, and shells without quotes.
func idOf(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._+-", r) {
			return r
		}
		return '-'
	}, name)
}

// printGitHub writes a matrix of GitHub Actions, on one line as an output of a step must be.
func printGitHub(w io.Writer, jobs []ciJob) error {
	if len(jobs) > maxGitHub {
		return fmt.Errorf("%d jobs, and GitHub runs no more than %d of a matrix: put several kernels into one with --shards %d", len(jobs), maxGitHub, maxGitHub)
	}
	type entry struct {
		Name    string `json:"name"`
		ID      string `json:"id"`
		Kernels string `json:"kernels"`
	}
	var m struct {
		Include []entry `json:"include"`
	}
	for _, j := range jobs {
		m.Include = append(m.Include, entry{j.Name, j.ID, strings.Join(j.Kernels, ",")})
	}
	return json.NewEncoder(w).Encode(m)
}

// printGitLab writes a child pipeline. Its jobs are written out: those of parallel:matrix would have their kernels in their names, which
// may have 255 characters, and could be 200.
func printGitLab(w io.Writer, jobs []ciJob) error {
	var out strings.Builder
	out.WriteString("# godkms-hermetic matrix --format gitlab; .godkms-hermetic is in docs/ci/gitlab.yml\n")
	for _, j := range jobs {
		fmt.Fprintf(&out, "%s:\n  extends: .godkms-hermetic\n  variables:\n    GODKMS_KERNELS: %s\n",
			quoteYAML(j.Name), quoteYAML(strings.Join(j.Kernels, ",")))
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// quoteYAML is a string as YAML has it, which takes those of JSON: https://yaml.org/spec/1.2.2/#13-terminology. In GitLab's variables, a
// dollar sign would begin the name of another: it is doubled.
func quoteYAML(s string) string {
	b, err := json.Marshal(strings.ReplaceAll(s, "$", "$$"))
	if err != nil {
		return `""` // it can't be: a string can always be encoded
	}
	return string(b)
}
