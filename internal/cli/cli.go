// Package cli is the command line: it reads flags, wires the packages together, and maps errors to exit codes.
package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/godkms-hermetic/godkms-hermetic/builder/docker"
	"github.com/godkms-hermetic/godkms-hermetic/builder/sandbox"
	"github.com/godkms-hermetic/godkms-hermetic/cache"
	"github.com/godkms-hermetic/godkms-hermetic/images"
	"github.com/godkms-hermetic/godkms-hermetic/internal/distpkg"
	"github.com/godkms-hermetic/godkms-hermetic/internal/mirror"
	"github.com/godkms-hermetic/godkms-hermetic/internal/registry"
	"github.com/godkms-hermetic/godkms-hermetic/internal/trial"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/deb"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/pacman"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/rpm"
)

// Exit codes. With several failures of a run, the lowest of theirs is the run's.
const (
	exitUsage    = 1   // the command line, the source or the configuration is wrong, or the tool itself failed
	exitNoSource = 2   // there is no such source to add
	exitAdded    = 3   // a module is not registered, or is already
	exitBroken   = 4   // what the state of installed modules refers to is gone or damaged
	exitInstall  = 6   // an install is refused or failed
	exitConf     = 8   // a dkms.conf that is to be added is faulty
	exitBuild    = 10  // a build failed
	exitAuto     = 11  // autoinstall or gate: one or more modules can't be had
	exitDepends  = 13  // a module of BUILD_DEPENDS is missing, failed or was skipped, or they go in a circle
	exitNoKernel = 21  // a kernel whose headers can't be found, fetched or trusted
	exitRegistry = 22  // a registry can't be reached, refuses, or has something that was altered
	exitAbsent   = 23  // a registry has no such module, or none for that kernel
	exitRefused  = 30  // a kernel refuses to load a module that was tried on it
	exitCrashes  = 31  // a module crashes its kernel
	exitHangs    = 32  // a module hangs
	exitStays    = 33  // a module loads, but doesn't unload
	exitWarns    = 34  // a kernel warned about a module that loads
	exitScript   = 35  // the script of a test failed
	exitNoBoot   = 36  // a kernel couldn't be booted: nothing is known of the modules
	exitDiffers  = 37  // a build didn't come to what is recorded
	exitSkipped  = 77  // every kernel was skipped
	exitPre      = 101 // PRE_INSTALL refused
	exitSignal   = 130 // interrupted
)

// exitError carries the exit code of an error that has been reported already, or that is to be printed.
type exitError struct {
	code   int
	err    error
	silent bool // what it says stands on the screen already
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// codeOf is the exit code of an error.
func codeOf(err error) int {
	if e := (*exitError)(nil); errors.As(err, &e) {
		return e.code
	}
	return exitUsage
}

// Main runs the command line args (without the program's name) and returns the exit code. When ctx ends, what is under way
// is cancelled and cleaned up first. It comes first in a program: an engine starts that same program once more, as the first
// process inside.
func Main(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	if sandbox.IsInit() {
		return sandbox.Init()
	}
	if trial.IsInit() {
		return trial.Init()
	}
	if docker.IsInit() {
		return docker.Init()
	}
	a := &app{stdout: stdout, stderr: stderr, env: os.Getenv}
	return a.run(ctx, args)
}

// Command is the command line for what documents it; it isn't to be run.
func Command() *cobra.Command {
	return (&app{stdout: io.Discard, stderr: io.Discard, env: func(string) string { return "" }}).command()
}

// run runs a command line.
func (a *app) run(ctx context.Context, args []string) int {
	root := a.command()
	root.SetArgs(args)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	err := root.ExecuteContext(ctx)
	a.close()
	if err == nil {
		return 0
	}
	code, silent := codeOf(err), false
	if e := (*exitError)(nil); errors.As(err, &e) {
		silent = e.silent
	}
	if ctx.Err() != nil {
		code, err, silent = exitSignal, errors.New("interrupted; nothing unfinished was left behind"), false
	}
	if !silent {
		err = a.advise(err)
		fmt.Fprintf(a.stderr, "godkms-hermetic: %s\n", ui.Clean(err.Error()))
	}
	return code
}

// Interruptible ends on the signals that ask a program to stop.
func Interruptible() (context.Context, context.CancelFunc) {
	return signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
}

// app holds what the commands share: the flags of all of them, and what is made from these when it is first needed.
type app struct {
	stdout, stderr io.Writer
	env            func(string) string
	keyring        openpgp.EntityList // whose signatures Debian's indexes need; nil: Debian's. Tests have mirrors of their own.
	sys            string             // host.Options.Sys, for tests

	cacheDir      string
	format        string
	mirrors       []string
	quiet         bool
	verbose       bool
	offline       bool
	refresh       bool
	acceptExpired bool
	insecure      []string
	compiler      string // of the commands that lock; see compilerFlag

	board  *ui.Board
	config config
	client *registry.Client // of all registries, once one is needed
	health mirror.Health    // of the mirrors
}

func (a *app) close() { a.board.Close() }

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "godkms-hermetic",
		Short: "Build DKMS modules for many kernels, hermetically",
		Long: `Builds the modules of a DKMS source tree for any number of kernels, without the kernels, a compiler or headers on this
machine: the headers and the compiler of each kernel come from its distribution, pinned by hash, and the build runs in a
sandbox without network. The same inputs give the same bytes, and what was built once is not built again. A registry takes them
for other machines, and a host installs them for its kernels and for those that it will get, with the commands of dkms.`,
		Example: `  godkms-hermetic build . --kernels debian/bookworm:6.1.0-56-amd64,debian/trixie:latest
  godkms-hermetic kernels debian/bookworm
  godkms-hermetic install hello/1.0`,
		Version:       version(),
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.start(); err != nil {
				return err
			}
			if err := exclusive(cmd); err != nil {
				return err
			}
			var err error
			a.config, err = readConfig(a.env)
			return err
		},
	}
	f := root.PersistentFlags()
	f.StringVar(&a.cacheDir, "cache-dir", "", "folder for indexes, packages, header images and results (default $XDG_CACHE_HOME/godkms-hermetic, /var/cache/godkms-hermetic for root without a home)")
	f.StringVar(&a.format, "format", "text", "what to print on standard output: text or json")
	f.StringArrayVar(&a.mirrors, "mirror", nil, "mirror or dated snapshot of an archive, `ARCHIVE=URL`, as in debian=URL; can be repeated, for one archive too: what any has is used")
	f.BoolVarP(&a.quiet, "quiet", "q", false, "no progress, only warnings and errors")
	f.BoolVar(&a.verbose, "verbose", false, "stream the logs of builds")
	f.BoolVar(&a.offline, "offline", false, "never use the network")
	f.BoolVar(&a.refresh, "refresh", false, "ask the mirrors for new indexes, even if that was done less than 6 hours ago")
	f.BoolVar(&a.acceptExpired, "accept-expired", false, "accept indexes past their Valid-Until, of an archived suite or a stale mirror")
	f.StringArrayVar(&a.insecure, "insecure-registry", nil, "registry that may be spoken to without TLS, `HOST` or HOST:PORT; can be repeated (those of this machine always may)")
	for _, g := range []struct {
		id, title string
		commands  []*cobra.Command
	}{
		{"build", "Build:", []*cobra.Command{a.buildCommand(), a.testCommand(), a.reproduceCommand(), a.matrixCommand(), a.confCommand(), a.kernelsCommand(), a.lockCommand(), a.imageCommand(), a.cacheCommand()}},
		{"registry", "Registries:", []*cobra.Command{a.pushCommand(), a.pullCommand(), a.listCommand(), a.inspectCommand()}},
		{"host", "This host:", []*cobra.Command{a.addCommand(), a.installCommand(), a.uninstallCommand(), a.unbuildCommand(), a.removeCommand(),
			a.statusCommand(), a.autoinstallCommand(), a.gateCommand(), a.hooksCommand(), a.keysCommand(), a.matchCommand(), a.adoptCommand(), a.kernelPrermCommand()}},
		{"package", "Packages:", []*cobra.Command{a.mkpkgCommand(distpkg.Deb), a.mkpkgCommand(distpkg.RPM), a.mktarballCommand(), a.ldtarballCommand()}},
		{"", "", []*cobra.Command{a.doctorCommand(), a.versionCommand()}},
	} {
		if g.id != "" {
			root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		}
		for _, c := range g.commands {
			c.GroupID = g.id
			root.AddCommand(c)
		}
	}
	for _, c := range root.Commands() {
		for _, sub := range append(c.Commands(), c) {
			sub.DisableFlagsInUseLine = true
			if check := sub.Args; check != nil {
				sub.Args = func(cmd *cobra.Command, args []string) error {
					if err := check(cmd, args); err != nil {
						return fmt.Errorf("%w; it is '%s'", err, cmd.UseLine())
					}
					return nil
				}
			}
		}
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; see '%s --help'", err, cmd.CommandPath())
	})
	root.CompletionOptions.HiddenDefaultCmd = false
	root.RegisterFlagCompletionFunc("format", cobra.FixedCompletions([]string{"text", "json"}, cobra.ShellCompDirectiveNoFileComp))
	return root
}

// exclusive is cobra's check of the flags that exclude each other, in words like those of the other flags' errors.
func exclusive(cmd *cobra.Command) error {
	err := cmd.ValidateFlagGroups()
	if err != nil {
		_, set, _ := strings.Cut(err.Error(), "; [")
		if set, ok := strings.CutSuffix(set, "] were all set"); ok {
			return fmt.Errorf("--%s exclude each other", strings.ReplaceAll(set, " ", " and --"))
		}
	}
	return err
}

// start checks the flags that every command has.
func (a *app) start() error {
	if a.format != "text" && a.format != "json" {
		return fmt.Errorf("--format is %q: it can be text or json", a.format)
	}
	if a.quiet && a.verbose {
		return errors.New("--quiet and --verbose exclude each other")
	}
	if a.offline && a.refresh {
		return errors.New("--offline and --refresh exclude each other")
	}
	a.board = ui.New(a.stderr, ui.Options{Quiet: a.quiet, Verbose: a.verbose, Env: a.env})
	return nil
}

func (a *app) json() bool { return a.format == "json" }

// dir is a folder of the cache.
func (a *app) dir(name string) (string, error) {
	base := a.cacheDir
	if base == "" {
		user, err := os.UserCacheDir()
		if os.Getuid() == 0 && a.env("HOME") == "" && a.env("XDG_CACHE_HOME") == "" { // as in services and hooks of package managers
			user, err = "/var/cache", nil
		}
		if err != nil {
			return "", fmt.Errorf("no folder for the cache: %w; give one with --cache-dir", err)
		}
		base = filepath.Join(user, "godkms-hermetic")
	}
	abs, err := filepath.Abs(filepath.Join(base, name))
	if err != nil {
		return "", err
	}
	return abs, nil
}

// temp is the cache's folder for unnamed files. It is there, and can be written to.
func (a *app) temp() (string, error) {
	temp, err := a.dir("tmp")
	if err != nil {
		return "", err
	}
	err = os.MkdirAll(temp, 0o755)
	if err == nil {
		err = writable(temp)
	}
	if err != nil {
		return "", fmt.Errorf("the cache folder can't be used: %w; choose another with --cache-dir", err)
	}
	return temp, nil
}

// distros are the providers by name.
func (a *app) distros() (map[string]kernels.Provider, error) {
	dir, err := a.dir("index")
	if err != nil {
		return nil, err
	}
	mirrors := map[string][]string{}
	for name, list := range a.config.Mirrors {
		mirrors[name] = list
	}
	given := map[string][]string{}
	for _, m := range a.mirrors {
		name, url, ok := strings.Cut(m, "=")
		if !ok || name == "" || url == "" {
			return nil, fmt.Errorf("--mirror is %q: it must be ARCHIVE=URL, as in debian=https://mirror.example/debian", m)
		}
		given[name] = append(given[name], url)
	}
	maps.Copy(mirrors, given)
	out := map[string]kernels.Provider{}
	o := repo.Options{CacheDir: dir, AcceptExpired: a.acceptExpired, Refresh: a.refresh, Offline: a.offline, Warn: a.board.Warn, Keyring: a.keyring,
		Health: &a.health}
	if o.Compiler = a.compiler; o.Compiler != "" && !kernels.IsCompiler(o.Compiler) {
		return nil, fmt.Errorf("--compiler is %q: it must be a family and its major version, as in gcc-12 or clang-17", o.Compiler)
	}
	o.Fetch = func(ctx context.Context, p kernels.Package) (io.ReadCloser, error) {
		store, err := a.images(out, 1)
		if err != nil {
			return nil, err
		}
		return store.Package(ctx, p)
	}
	var known []string
	open := func(distro string, archives []string, make func(repo.Options) (kernels.Provider, error)) error {
		o.Mirrors = map[string][]string{}
		for _, name := range archives {
			known = append(known, name)
			if urls, ok := mirrors[name]; ok {
				o.Mirrors[name] = urls
				delete(mirrors, name)
			}
		}
		p, err := make(o)
		out[distro] = p
		return err
	}
	for name, archives := range deb.Distros() {
		err = cmp.Or(err, open(name, archives, func(o repo.Options) (kernels.Provider, error) { return deb.New(name, o) }))
	}
	for name, archives := range rpm.Distros() {
		err = cmp.Or(err, open(name, archives, func(o repo.Options) (kernels.Provider, error) { return rpm.New(name, o) }))
	}
	for name, archives := range pacman.Distros() {
		err = cmp.Or(err, open(name, archives, func(o repo.Options) (kernels.Provider, error) { return pacman.New(name, o) }))
	}
	if err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(mirrors)) {
		slices.Sort(known)
		return nil, fmt.Errorf("mirror of %q: the archives are %s", name, strings.Join(known, ", "))
	}
	return out, nil
}

// compilerFlag is of commands that lock kernels.
func (a *app) compilerFlag(f *pflag.FlagSet) {
	f.StringVar(&a.compiler, "compiler", "", "`COMPILER` of the build root, as in gcc-12 (default the one that built the kernel)")
}

// results is the cache of built modules.
func (a *app) results() (*cache.Dir, error) {
	dir, err := a.dir("results")
	if err != nil {
		return nil, err
	}
	return cache.Open(dir, cache.Options{Warn: a.board.Warn})
}

// images is the store of packages and header images.
func (a *app) images(distros map[string]kernels.Provider, jobs int) (*images.Store, error) {
	return a.imagesOf(distros, jobs, images.Remote{})
}

// imagesOf is images with a repository where there may be more.
func (a *app) imagesOf(distros map[string]kernels.Provider, jobs int, remote images.Remote) (*images.Store, error) {
	dir, err := a.dir("images")
	if err != nil {
		return nil, err
	}
	return images.Open(images.Options{
		Dir: dir, Offline: a.offline, Jobs: jobs, Remote: remote, Warn: a.board.Warn, Health: &a.health,
		Payload: func(distro string, pkg io.Reader) (io.ReadCloser, error) {
			p, ok := distros[distro]
			if !ok {
				return nil, fmt.Errorf("no reader for packages of %q", distro)
			}
			return p.Payload(pkg)
		},
	})
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "version",
		Short:   "Print the version",
		Long:    "Prints the version." + exitStatus("0  always"),
		Example: "  godkms-hermetic version --format json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if a.json() {
				return ui.WriteJSON(a.stdout, struct {
					Version string `json:"version"`
					Go      string `json:"go"`
				}{version(), runtime.Version()})
			}
			_, err := fmt.Fprintf(a.stdout, "godkms-hermetic %s %s\n", version(), runtime.Version())
			return err
		},
	}
}

// version is what the build stamped on the program.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(unknown)"
}

// exitStatus is the end of every command's help.
func exitStatus(lines ...string) string {
	return "\n\nExit status:\n  " + strings.Join(lines, "\n  ")
}
