package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/host"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// moduleHelp is for commands about registered modules.
const moduleHelp = `A module is named as MODULE/VERSION, or with -m and -v. With --root the modules are those of a mounted image or a chroot.`

// kernelHelp is for commands about a host's kernels.
const kernelHelp = `The kernels are those of -k, or with --all every one that the host has; the default is the running one. Where the root has no
modules of it, as an image or a chroot, and has one kernel only, it's that one.`

// hostOptions are what the commands have that are about the modules of a host.
type hostOptions struct {
	root            string
	module, version string
	kernels         []string
	arch            string
	all             bool
	force           bool
	noDepmod        bool
}

// rootFlags, moduleFlags and kernelFlags add what a command takes of them.
func (o *hostOptions) rootFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.root, "root", "/", "`DIR` of the host: a mounted image or a chroot")
	cmd.MarkFlagDirname("root")
}

func (o *hostOptions) moduleFlags(cmd *cobra.Command) {
	o.rootFlags(cmd)
	cmd.Flags().StringVarP(&o.module, "module", "m", "", "`MODULE`, or MODULE/VERSION")
	cmd.Flags().StringVarP(&o.version, "module-version", "v", "", "`VERSION` of the module")
	cmd.RegisterFlagCompletionFunc("module", o.completeModules())
	cmd.RegisterFlagCompletionFunc("module-version", cobra.NoFileCompletions)
}

func (o *hostOptions) kernelFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVarP(&o.kernels, "kernel", "k", nil, "`RELEASE` of a kernel, or a list with commas; can be repeated (default the running kernel)")
	o.archFlags(cmd)
	cmd.RegisterFlagCompletionFunc("kernel", o.completeKernels)
}

func (o *hostOptions) archFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVarP(&o.arch, "arch", "a", kernels.HostArch(), "`ARCH` of the kernels, as the distribution or uname names it")
	f.BoolVar(&o.all, "all", false, "every kernel")
	cmd.RegisterFlagCompletionFunc("arch", cobra.NoFileCompletions)
}

func (o *hostOptions) forceFlag(f *pflag.FlagSet, usage string) {
	f.BoolVar(&o.force, "force", false, usage)
}

func (o *hostOptions) depmodFlag(f *pflag.FlagSet) {
	f.BoolVar(&o.noDepmod, "no-depmod", false, "leave modules.dep as it is")
}

// openRoot opens the root of the options.
func (a *app) openRoot(o hostOptions) (*host.Root, error) {
	r, err := host.Open(o.root, host.Options{NoDepmod: o.noDepmod, Warn: a.board.Warn, Sys: a.sys})
	if err != nil {
		return nil, fmt.Errorf("--root: %w", err)
	}
	return r, nil
}

// moduleVersion is how dkms has a module and its version in one word. "./hello" and "../hello" are paths.
var moduleVersion = regexp.MustCompile(`^([^/.][^/]*)/([^/]+)$`)

// named gives the module and version that -m and -v, or an argument, name. Without -v and an argument version is empty, and without
// any of them both are.
func (o hostOptions) named(args []string) (module, version string, err error) {
	module, version = o.module, o.version
	if m := moduleVersion.FindStringSubmatch(module); m != nil {
		if version != "" && version != m[2] {
			return "", "", fmt.Errorf("-m %s and -v %s are two versions; give one of them", module, version)
		}
		module, version = m[1], m[2]
	}
	if len(args) > 0 {
		m := moduleVersion.FindStringSubmatch(args[0])
		switch {
		case module != "" || version != "":
			return "", "", fmt.Errorf("%q and -m or -v both name a module; give one of them", args[0])
		case m == nil:
			return "", "", fmt.Errorf("%q is no MODULE/VERSION, as in hello/1.0", args[0])
		}
		module, version = m[1], m[2]
	}
	if module == "" && version != "" {
		return "", "", errors.New("-v without -m: name the module, too")
	}
	if module != "" {
		err = host.CheckName("module", module)
	}
	if version != "" {
		err = errors.Join(err, host.CheckName("version", version))
	}
	return module, version, err
}

// theModule is named where there must be a module and a version.
func (o hostOptions) theModule(args []string) (module, version string, err error) {
	module, version, err = o.named(args)
	if err == nil && (module == "" || version == "") {
		err = errors.New("no module given; name it as MODULE/VERSION, as in hello/1.0, or with -m and -v")
	}
	return module, version, err
}

// subject is what an argument, or -m and -v, name for commands that take a source as well; the default is the current folder.
func (o hostOptions) subject(args []string) (string, error) {
	if o.module == "" && o.version == "" {
		return append(args, ".")[0], nil
	}
	module, version, err := o.theModule(args)
	return module + "/" + version, err
}

// releases are the kernels that a root has modules of, sorted.
func releases(r *host.Root) ([]string, error) {
	dir, err := r.Path("/lib/modules")
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if host.CheckName("kernel", e.Name()) != nil {
			continue
		}
		if info, err := os.Stat(filepath.Join(dir, e.Name(), "kernel")); err == nil && info.IsDir() { // not what a removed one left behind
			out = append(out, e.Name())
		}
	}
	return out, nil
}

// kernelsOf gives the kernels that the options name, or else the default.
func (a *app) kernelsOf(r *host.Root, o hostOptions) ([]artifact.Kernel, error) {
	list, err := o.releasesOf(a, r)
	if err != nil {
		return nil, err
	}
	return o.complete(r, list)
}

// complete adds to releases what the root says of itself. Where it says nothing the distribution and the suite are empty.
func (o hostOptions) complete(r *host.Root, releases []string) ([]artifact.Kernel, error) {
	h := readMachine(r.Dir(), "")
	arch := kernels.ArchOf(cmp.Or(o.arch, kernels.HostArch()))
	var out []artifact.Kernel
	for _, release := range releases {
		if err := errors.Join(host.CheckName("kernel", release), host.CheckName("architecture", arch)); err != nil {
			return nil, err
		}
		k := artifact.Kernel{Distro: h.distro, Suite: h.suite, Arch: arch, Release: release}
		if !slices.Contains(out, k) {
			out = append(out, k)
		}
	}
	return out, nil
}

func (o hostOptions) releasesOf(a *app, r *host.Root) ([]string, error) {
	var out []string
	for _, text := range o.kernels {
		if text = strings.TrimSpace(text); text == "" {
			continue
		}
		if release, arch, ok := strings.Cut(text, "/"); ok && !strings.Contains(text, ":") { // as dkms takes it, too
			if kernels.ArchOf(arch) != kernels.ArchOf(o.arch) {
				return nil, fmt.Errorf("kernel %q: the architecture is %q; name another one with -a", text, o.arch)
			}
			text = release
		}
		s, err := kernels.ParseSelector(text)
		if err != nil {
			return nil, fmt.Errorf("kernel %q: name a release of this root, or take --all", text)
		}
		h := readMachine(r.Dir(), "")
		switch {
		case s.Distro != "" && (s.Distro != h.distro || s.Suite != h.suite):
			return nil, fmt.Errorf("kernel %q is none of this root, which is %s/%s; to build for other kernels name the folder of the source", text, h.distro, h.suite)
		case s.Exclude || s.IsPattern() || s.Release == kernels.Latest || s.Release == kernels.Since:
			return nil, fmt.Errorf("kernel %q: name a release of this root, or take --all", text)
		case s.Release == kernels.Running:
			s.Release = running()
		}
		out = append(out, s.Release)
	}
	if len(out) > 0 {
		if o.all {
			return nil, errors.New("-k and --all exclude each other")
		}
		return out, nil
	}
	have, err := releases(r)
	if err != nil {
		return nil, err
	}
	switch own := running(); {
	case o.all && len(have) > 0:
		return have, nil
	case slices.Contains(have, own):
		return []string{own}, nil
	case len(have) == 1:
		a.board.Print(fmt.Sprintf("for the kernel %s, the only one of %s", have[0], r.Dir()))
		return have, nil
	case len(have) == 0:
		return nil, &exitError{code: exitInstall, err: fmt.Errorf("%s has no kernel; install one, or name its release with -k", filepath.Join(r.Dir(), "lib/modules"))}
	default:
		return nil, fmt.Errorf("%s has no modules of the running kernel, %s; name one with -k: %s", filepath.Join(r.Dir(), "lib/modules"), own, strings.Join(have, ", "))
	}
}

// hostError gives an error of package host its exit code, and says what to do next.
func hostError(r *host.Root, err error) error {
	if err == nil || errors.As(err, new(*exitError)) {
		return err
	}
	is := func(kinds ...error) bool {
		return slices.ContainsFunc(kinds, func(kind error) bool { return errors.Is(err, kind) })
	}
	code := exitUsage
	switch {
	case is(host.ErrNotAdded, host.ErrAdded):
		code = exitAdded
	case is(host.ErrBroken):
		code = exitBroken
	case is(host.ErrPre):
		code = exitPre
	case is(host.ErrNoKernel, host.ErrRefused, host.ErrUnfit, host.ErrSigning, host.ErrDepmod):
		code = exitInstall
	case is(fs.ErrPermission) && os.Getuid() != 0:
		err = fmt.Errorf("%w; the modules of %s are changed by root: run it as root, with sudo for example", err, r.Dir())
	case is(unix.EROFS):
		err = fmt.Errorf("%w; %s is mounted read-only", err, r.Dir())
	}
	return &exitError{code: code, err: err}
}

// isReference tells whether an argument that is neither a file nor a registered module can be a reference: "oci:DIR", or one whose
// first part is a registry: localhost, or with a dot or a port. One that begins with a dot is the path of a file that isn't there.
func isReference(text string) bool {
	registryPart, _, ok := strings.Cut(text, "/")
	return strings.HasPrefix(text, registry.Layout) ||
		ok && (registryPart == "localhost" || strings.ContainsAny(registryPart, ".:") && registryPart[0] != '.')
}

// completeSources offers the registered modules, and files.
func (o *hostOptions) completeSources() cobra.CompletionFunc {
	modules := o.completeModules()
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		out, _ := modules(cmd, args, typed)
		return out, cobra.ShellCompDirectiveDefault
	}
}

// completeModules offers the registered modules.
func (o *hostOptions) completeModules() cobra.CompletionFunc {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		root, err := host.Open(o.root, host.Options{})
		if err != nil || len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		list, _ := root.Modules()
		var out []string
		for _, m := range list {
			out = append(out, m.Module+"/"+m.Version)
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeKernels offers the kernels of the root.
func (o *hostOptions) completeKernels(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	root, err := host.Open(o.root, host.Options{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	list, _ := releases(root)
	return list, cobra.ShellCompDirectiveNoFileComp
}
