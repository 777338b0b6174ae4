package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/spf13/cobra"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

func (a *app) listCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list REF",
		Short: "List the prebuilt modules in a registry",
		Long: `Lists the modules in a repository: module and version, kernel, size of the layer, when it was pushed, digest, and the verdict of
the last test, if there was one. REF is a repository, as registry.example/modules/hello, or a directory in OCI's layout, as
oci:DIR; with a version behind it, as :1.0, only that one is listed.` + exitStatus(
			"  0  the list was printed; it may be empty",
			"  1  the command line is wrong",
			" 22  the registry can't be reached, refuses, or has something that was altered",
			" 23  the registry has no such repository or version"),
		Example: "  godkms-hermetic list registry.example/modules/hello\n  godkms-hermetic list oci:out/layout --format json",
		Args:    cobra.ExactArgs(1),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.runList(cmd.Context(), args[0]) },

		ValidArgsFunction: completeReference(cobra.ShellCompDirectiveNoFileComp),
	}
}

func (a *app) runList(ctx context.Context, text string) error {
	_, repo, ref, err := a.open(text)
	if err != nil {
		return err
	}
	list, err := artifact.List(ctx, repo)
	if err == nil {
		err = artifact.Describe(ctx, repo, list)
	}
	if err != nil {
		return registryError(err)
	}
	if ref.Identifier() != "" {
		named, err := offered(ctx, repo, ref)
		if err != nil {
			return err
		}
		list = slices.DeleteFunc(list, func(l artifact.Listed) bool {
			return !slices.ContainsFunc(named, func(e artifact.Entry) bool { return e.Digest == l.Digest })
		})
	}
	type row struct {
		Module  string `json:"module"`
		Version string `json:"version"`
		Kernel  string `json:"kernel"`
		Arch    string `json:"arch"`
		Size    int64  `json:"size"` // bytes of the layer
		Created string `json:"created"`
		Digest  string `json:"digest"`
		Tag     string `json:"tag"`

		Test *listedTest `json:"test,omitempty"` // the last one
	}
	rows := []row{}
	for _, e := range list {
		if e.Err != nil {
			a.board.Warn(fmt.Sprintf("%s: %v", e.Tag, e.Err))
			continue
		}
		r := row{Module: e.Module, Version: e.Version, Kernel: kernelOf(e.Meta).String(), Arch: e.Kernel.Arch, Size: e.Size, Digest: e.Digest.String(), Tag: e.Tag}
		if !e.Created.IsZero() {
			r.Created = e.Created.UTC().Format(time.RFC3339)
		}
		r.Test = listTest(e.Test)
		rows = append(rows, r)
	}
	if a.json() {
		return ui.WriteJSON(a.stdout, struct {
			Modules []row `json:"modules"`
		}{rows})
	}
	if len(rows) == 0 {
		a.board.Print(fmt.Sprintf("no modules are in %s", ref))
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		date, _, _ := strings.Cut(r.Created, "T")
		if date == "" {
			date = "-"
		}
		fmt.Fprintf(w, "%s/%s\t%s\t%s\t%s\t%s%s\n", ui.Clean(r.Module), ui.Clean(r.Version), ui.Clean(r.Kernel), bytesText(r.Size), date, r.Digest, r.Test.column())
	}
	return w.Flush()
}

// listedTest is a test as lists have it.
type listedTest struct {
	Verdict string `json:"verdict"`
	Tested  string `json:"tested"`
	Image   string `json:"image"` // digest of the file of the kernel that was booted
	QEMU    string `json:"qemu"`
	Accel   string `json:"accel"`
}

// listTest is nil where there was no test.
func listTest(t artifact.Test) *listedTest {
	if t.Verdict == "" {
		return nil
	}
	return &listedTest{t.Verdict, t.Tested.UTC().Format(time.RFC3339), t.Image.String(), t.QEMU, t.Accel}
}

// column is the last one of a list for people. There is none without a test.
func (t *listedTest) column() string {
	if t == nil {
		return ""
	}
	return "\t" + ui.Clean(t.Verdict)
}

func (a *app) inspectCommand() *cobra.Command {
	var list []string
	var arch string
	var log bool
	cmd := &cobra.Command{
		Use:   "inspect REF [--kernel KERNEL]",
		Short: "Show all that is known of a prebuilt module",
		Long: `Shows what is known of the modules for a kernel in a registry: what they were built of, the files, and what is attached: the
build's log, the lock of its packages, its Module.symvers, and what came of tests. The modules themselves are not downloaded.

` + referenceHelp + `

KERNEL is [DISTRO/SUITE:]RELEASE; it may be left away where there is one kernel only.` + exitStatus(
			"  0  it was printed",
			"  1  the command line is wrong, or there are several kernels",
			" 22  the registry can't be reached, refuses, or has something that was altered",
			" 23  the registry has no such module, or none for that kernel"),
		Example: `  godkms-hermetic inspect registry.example/modules/hello:1.0 --kernel 6.1.0-56-amd64
  godkms-hermetic inspect oci:out/layout --kernel 6.1.0-56-amd64 --log`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.runInspect(cmd.Context(), args[0], list, kernels.ArchOf(arch), log)
		},
		ValidArgsFunction: completeReference(cobra.ShellCompDirectiveNoFileComp),
	}
	f := cmd.Flags()
	f.StringSliceVar(&list, "kernel", nil, "`KERNEL` whose modules are shown")
	f.StringVar(&arch, "arch", kernels.HostArch(), "architecture, as Debian names it or uname -m")
	f.BoolVar(&log, "log", false, "print the build's log instead")
	for _, name := range []string{"kernel", "arch"} {
		cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions)
	}
	return cmd
}

// inspected is what inspect prints as JSON.
type inspected struct {
	Reference   string            `json:"reference"` // by digest
	Tag         string            `json:"tag"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"` // bytes of the layer
	Created     string            `json:"created"`
	Module      string            `json:"module"`
	Version     string            `json:"version"`
	Kernel      string            `json:"kernel"`
	Distro      string            `json:"distro"`
	Suite       string            `json:"suite"`
	Arch        string            `json:"arch"`
	Release     string            `json:"release"`
	Headers     string            `json:"headers"`
	Compiler    string            `json:"compiler"`
	Symvers     string            `json:"symvers"`
	Key         string            `json:"key"`
	Source      string            `json:"source"`
	Lock        string            `json:"lock"`
	Root        string            `json:"root"`
	Modules     []inspectedModule `json:"modules"`
	Extras      []inspectedExtra  `json:"extras"`
	Attachments inspectedAttached `json:"attachments"`
	Annotations map[string]string `json:"annotations"`
}

type inspectedModule struct {
	Name     string `json:"name"`
	Path     string `json:"path"` // on a host
	Size     int64  `json:"size"`
	Digest   string `json:"digest"`
	Vermagic string `json:"vermagic"`
}

type inspectedExtra struct {
	Name    string `json:"name"`
	Command string `json:"command,omitempty"`
	Size    int64  `json:"size"`
	Digest  string `json:"digest"`
}

type inspectedAttached struct {
	Log     int             `json:"log"`     // bytes; 0: there is none
	Symvers int             `json:"symvers"` // bytes; 0: there is none
	Lock    *kernels.Lock   `json:"lock"`
	Inputs  *builder.Inputs `json:"inputs"`
	Tests   []testRecord    `json:"tests"` // the newest first
}

func (a *app) runInspect(ctx context.Context, text string, list []string, arch string, log bool) error {
	selectors, err := listSelectors(list)
	if err != nil {
		return err
	}
	_, repo, ref, err := a.open(text)
	if err != nil {
		return err
	}
	e, err := chooseOne(ctx, repo, ref, selectors, arch)
	if err != nil {
		return err
	}
	img, err := repo.Image(ctx, e.Digest.String())
	if err != nil {
		return registryError(err)
	}
	if err := e.Check(img); err != nil {
		return registryError(fmt.Errorf("%s: %w", repo.Name(), err))
	}
	meta, files, err := artifact.ReadMeta(img)
	if err != nil {
		return registryError(err)
	}
	attached, err := artifact.ReadAttachments(ctx, repo, e.Digest)
	if err != nil {
		return registryError(err)
	}
	if log {
		if attached.Log == nil {
			return &exitError{code: exitAbsent, err: errors.New("no log is attached")}
		}
		_, err := io.WriteString(a.stdout, ui.Clean(string(attached.Log)))
		return err
	}
	out, err := inspection(repo, e, meta, files, attached)
	if err != nil {
		return err
	}
	if a.json() {
		return ui.WriteJSON(a.stdout, out)
	}
	_, err = io.WriteString(a.stdout, out.text())
	return err
}

// chooseOne gives what selectors name of what a reference stands for, or all of it, if that is one.
func chooseOne(ctx context.Context, repo *registry.Repo, ref registry.Reference, selectors []kernels.Selector, arch string) (e artifact.Entry, err error) {
	var offers []artifact.Entry
	if len(selectors) > 0 {
		offers, err = choose(ctx, repo, ref, selectors, machine{running: running()}, arch)
	} else {
		offers, err = offered(ctx, repo, ref)
	}
	switch {
	case err != nil:
		return e, err
	case len(offers) == 0:
		return e, &exitError{code: exitAbsent, err: fmt.Errorf("%s has no modules", ref)}
	case len(offers) > 1:
		return e, fmt.Errorf("%s has modules for %s: name one of them with --kernel", ref, names(offers))
	}
	return offers[0], nil
}

func inspection(repo *registry.Repo, e artifact.Entry, m artifact.Meta, files []artifact.File, attached artifact.Attachments) (inspected, error) {
	k := kernelOf(m)
	hash := func(h v1.Hash) string {
		if h == (v1.Hash{}) {
			return ""
		}
		return h.String()
	}
	out := inspected{
		Reference: repo.Name() + "@" + e.Digest.String(), Tag: e.Tag, Digest: e.Digest.String(), Size: e.Size,
		Module: m.Module, Version: m.Version, Kernel: k.String(), Distro: k.Distro, Suite: k.Suite, Arch: k.Arch, Release: k.Release,
		Headers: m.Headers, Compiler: m.Compiler, Symvers: hash(m.Symvers), Key: hash(m.Key), Source: hash(m.Source), Lock: hash(m.Lock), Root: hash(m.Root),
		Modules: []inspectedModule{}, Extras: []inspectedExtra{},
	}
	if !attached.Created.IsZero() {
		out.Created = attached.Created.UTC().Format(time.RFC3339)
	}
	for _, f := range files {
		out.Modules = append(out.Modules, inspectedModule{f.Name, artifact.InstallPath(k.Release, f.Dest, f.Name), f.Size, f.Digest.String(), f.Vermagic})
	}
	for _, x := range m.Extras {
		out.Extras = append(out.Extras, inspectedExtra{x.Name, x.Command, x.Size, x.Digest.String()})
	}
	out.Attachments.Log, out.Attachments.Symvers = len(attached.Log), len(attached.Symvers)
	if attached.Lock != nil {
		l, err := kernels.DecodeLock(attached.Lock)
		if err != nil {
			return out, fmt.Errorf("the attached lock: %w", err)
		}
		out.Attachments.Lock = &l
	}
	if attached.Inputs != nil {
		in, err := builder.ReadInputs(attached.Inputs)
		if err != nil {
			return out, fmt.Errorf("the attached inputs: %w", err)
		}
		out.Attachments.Inputs = &in
	}
	out.Attachments.Tests = append([]testRecord{}, attachedTests(e.Digest, attached)...)
	return out, nil
}

// text is for people.
func (i inspected) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s/%s for %s\n", i.Module, i.Version, i.Kernel)
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	oneLine := strings.NewReplacer("\n", " ", "\t", " ")
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "  %s\t%s\n", name, oneLine.Replace(value))
		}
	}
	line("reference", i.Reference)
	line("tag", i.Tag)
	line("created", i.Created)
	line("size", bytesText(i.Size))
	line("headers", i.Headers)
	line("compiler", i.Compiler)
	line("symvers", i.Symvers)
	line("key", i.Key)
	line("source", i.Source)
	line("lock", i.Lock)
	line("root", i.Root)
	for _, m := range i.Modules {
		line("module", fmt.Sprintf("%s  %s  %s", m.Path, bytesText(m.Size), m.Digest))
		line("", "")
		line("vermagic", m.Vermagic)
	}
	for _, x := range i.Extras {
		line("extra", strings.TrimSpace(fmt.Sprintf("%s  %s  %s  %s", x.Name, bytesText(x.Size), x.Digest, x.Command)))
	}
	if n := i.Attachments.Log; n > 0 {
		line("attached", "build log, "+bytesText(int64(n))+"; --log prints it")
	}
	if l := i.Attachments.Lock; l != nil {
		line("attached", fmt.Sprintf("lock of %d packages; --format json has it", len(l.Toolchain)+len(l.Headers)))
	}
	if in := i.Attachments.Inputs; in != nil {
		line("attached", fmt.Sprintf("%d overrides, %d directives and %d modules of BUILD_DEPENDS; --format json has them", len(in.Overrides), len(in.Directives), len(in.Depends)))
	}
	if n := i.Attachments.Symvers; n > 0 {
		line("attached", "Module.symvers, "+bytesText(int64(n)))
	}
	for _, t := range i.Attachments.Tests {
		m := t.Result.Machine
		line("test", fmt.Sprintf("%s  %s  on %s, qemu %s, %s; --format json has all of it", t.Result.Verdict, t.Tested.UTC().Format(time.RFC3339), m.Image, m.QEMU, m.Accel))
	}
	w.Flush()
	return ui.Clean(b.String())
}
