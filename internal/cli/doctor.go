package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/builder/docker"
	"github.com/godkms-hermetic/godkms-hermetic/internal/qemu"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

const (
	// doctorPatience is how long one check may take. They run side by side.
	doctorPatience = 8 * time.Second
	// leastFree is what a first build for a kernel or two takes on the disk: packages, roots and results.
	leastFree = 2 << 30
)

func (a *app) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Say what works on this machine, and what to do about the rest",
		Long: `Looks at what builds need of this machine, changes nothing, and prints a line for each finding: ok, warn or fail; its name;
what was found, and what to do about it where it is not ok. "warn" is what builds can do without, such as a second engine, or
a mirror that doesn't answer: what was fetched before can be used. "fail" is what stops them. With --offline no mirror is
asked. It takes 8 seconds where something does not answer.` + exitStatus(
			"  0  builds can run here: an engine works, and the cache can be written to",
			"  1  they can't: a line says fail"),
		Example: "  godkms-hermetic doctor\n  godkms-hermetic doctor --format json",
		Args:    cobra.NoArgs,
		// In place of the root's: a configuration that is wrong is one of the findings.
		PersistentPreRunE: func(*cobra.Command, []string) error { return a.start() },
		RunE:              func(cmd *cobra.Command, _ []string) error { return a.runDoctor(cmd.Context()) },
	}
}

func (a *app) runDoctor(ctx context.Context) error {
	configured := make(chan struct{})
	all := []struct {
		name, late string // late is the status if it takes too long
		run        func(context.Context) []ui.Check
	}{
		{"engines", ui.CheckFail, func(ctx context.Context) []ui.Check { return checkMachine(ctx, "/") }},
		{"qemu", ui.CheckWarn, a.checkQEMU},
		{"cache", ui.CheckFail, func(context.Context) []ui.Check { return []ui.Check{a.checkCache()} }},
		{"configuration", ui.CheckFail, func(context.Context) []ui.Check {
			defer close(configured)
			return a.checkConfig()
		}},
		{"mirrors", ui.CheckWarn, func(ctx context.Context) []ui.Check {
			select { // it says which mirrors
			case <-configured:
				return a.checkMirrors(ctx)
			case <-ctx.Done():
				return []ui.Check{{Name: "mirrors", Status: ui.CheckWarn, Detail: "not asked: the configuration could not be read", Hint: "see to it first"}}
			}
		}},
	}
	limit, cancel := context.WithTimeout(ctx, doctorPatience)
	defer cancel()
	found := make([]chan []ui.Check, len(all))
	for i, c := range all {
		found[i] = make(chan []ui.Check, 1)
		go func() { found[i] <- c.run(limit) }()
	}
	// A system call that hangs, as on a file system of a server that is gone, can't be ended: it is left behind.
	late, stop := context.WithTimeout(ctx, doctorPatience+time.Second) // after what ends by itself
	defer stop()
	var checks []ui.Check
	for i, c := range all {
		var list []ui.Check
		select {
		case list = <-found[i]:
		case <-late.Done():
			select {
			case list = <-found[i]:
			default:
				list = []ui.Check{{Name: c.name, Status: c.late, Detail: fmt.Sprintf("no answer within %s", doctorPatience),
					Hint: "look for a file system or a server that hangs"}}
			}
		}
		checks = append(checks, list...)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var err error
	if a.json() {
		err = ui.WriteJSON(a.stdout, struct {
			Checks []ui.Check `json:"checks"`
		}{checks})
	} else {
		err = ui.PrintChecks(a.stdout, checks, a.env)
	}
	if err == nil && slices.ContainsFunc(checks, func(c ui.Check) bool { return c.Status == ui.CheckFail }) {
		err = &exitError{code: exitUsage, err: errors.New("builds can't run here"), silent: true}
	}
	return err
}

func ok(name, format string, a ...any) ui.Check {
	return ui.Check{Name: name, Status: ui.CheckOK, Detail: fmt.Sprintf(format, a...)}
}

// checkMachine looks at the engines, and at what they need of the kernel and of the user. root is where /proc is.
func checkMachine(ctx context.Context, root string) []ui.Check {
	type answer struct {
		info docker.Info
		err  error
	}
	asked := make(chan answer, 1)
	go func() {
		d := docker.New()
		defer d.Close()
		info, err := d.Check(ctx)
		asked <- answer{info, err}
	}()
	refused := checkSandbox(ctx)
	d := <-asked

	box, dock := ok("sandbox", "works; --engine auto takes it"), ok("docker", "Docker Engine %s at %s", d.info.Version, where(d.info))
	if refused != nil {
		box = unavailable("sandbox", refused)
		dock.Detail += "; --engine auto takes it"
	}
	if d.err != nil {
		dock = unavailable("docker", d.err)
		if refused == nil {
			dock.Hint = "not needed while the sandbox works; else " + dock.Hint
		} else {
			box.Status, dock.Status = ui.CheckFail, ui.CheckFail
		}
	}
	return append([]ui.Check{box, dock}, checkKernel(root, os.Geteuid(), refused == nil)...)
}

// where names the Engine, without a password that its address may have.
func where(i docker.Info) string {
	s := redacted(i.Host)
	if i.Context != "" {
		s += " (context " + i.Context + ")"
	}
	return s
}

func redacted(address string) string {
	if u, err := url.Parse(address); err == nil {
		return u.Redacted()
	}
	return address
}

func unavailable(name string, err error) ui.Check {
	c := ui.Check{Name: name, Status: ui.CheckWarn, Detail: err.Error(), Hint: "try again"}
	if e := (*builder.UnavailableError)(nil); errors.As(err, &e) {
		c.Detail, c.Hint = fmt.Sprintf("%s (%v)", e.Cause, e.Err), e.Hint
	} else if errors.Is(err, context.DeadlineExceeded) {
		c.Detail, c.Hint = fmt.Sprintf("no answer within %s", doctorPatience), "see what it is busy with, or start it anew"
	}
	return c
}

// checkKernel looks at what the sandbox needs. works says whether it has just been started: then nothing is missing.
func checkKernel(root string, uid int, works bool) []ui.Check {
	read := func(name string) string {
		b, _ := os.ReadFile(filepath.Join(root, "proc", name))
		return strings.TrimSpace(string(b))
	}
	warn := func(name, detail, hint string) ui.Check {
		return ui.Check{Name: name, Status: ui.CheckWarn, Detail: detail, Hint: hint}
	}
	status := map[string]string{}
	for line := range strings.Lines(read("self/status")) {
		name, value, _ := strings.Cut(line, ":")
		status[name] = strings.TrimSpace(value)
	}
	var out []ui.Check

	// Who.
	who := "ordinary user " + strconv.Itoa(uid) + ", who needs no capability"
	caps, _ := strconv.ParseUint(status["CapEff"], 16, 64)
	var lacks []string
	if uid == 0 {
		who = "root"
		for _, c := range []struct {
			bit  int
			name string
		}{{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"}, {unix.CAP_SETUID, "CAP_SETUID"}, {unix.CAP_SETGID, "CAP_SETGID"}} {
			if caps&(1<<c.bit) == 0 {
				lacks = append(lacks, c.name)
			}
		}
		if f := strings.Fields(read("self/uid_map")); len(f) == 3 && f[2] != "4294967295" {
			who += " of a user namespace"
		}
		if len(lacks) > 0 {
			who += ", without " + strings.Join(lacks, ", ")
		} else {
			who += ", with the capabilities that a sandbox takes"
		}
	}
	if len(lacks) > 0 && !works {
		out = append(out, warn("privileges", who, "as an ordinary user none is needed; or give the container these"))
	} else {
		out = append(out, ok("privileges", "%s", who))
	}

	// User namespaces.
	most, unprivileged := read("sys/user/max_user_namespaces"), read("sys/kernel/unprivileged_userns_clone")
	said := "user.max_user_namespaces is " + most
	if unprivileged != "" {
		said += ", kernel.unprivileged_userns_clone is " + unprivileged
	}
	const name = "user namespaces"
	switch {
	case most == "":
		out = append(out, warn(name, "the kernel has none", "use a kernel that was built with CONFIG_USER_NS, or Docker"))
	case most == "0":
		out = append(out, warn(name, said, "raise it as root, with sysctl user.max_user_namespaces=10000"))
	case unprivileged == "0" && uid != 0:
		out = append(out, warn(name, said, "allow them as root, with sysctl kernel.unprivileged_userns_clone=1"))
	default:
		out = append(out, ok(name, "%s", said))
	}
	switch restricted := read("sys/kernel/apparmor_restrict_unprivileged_userns"); {
	case restricted == "":
		out = append(out, ok("apparmor", "does not restrict user namespaces"))
	case restricted == "1" && uid != 0 && !works:
		out = append(out, warn("apparmor", "kernel.apparmor_restrict_unprivileged_userns is 1",
			"install an AppArmor profile with \"userns,\" for this program, or allow all, as root, with sysctl kernel.apparmor_restrict_unprivileged_userns=0"))
	default:
		out = append(out, ok("apparmor", "kernel.apparmor_restrict_unprivileged_userns is %s", restricted))
	}

	// Overlays in user namespaces are of Linux 5.11.
	release := read("sys/kernel/osrelease")
	var major, minor int
	fmt.Sscanf(release, "%d.%d", &major, &minor)
	known := slices.Contains(strings.Fields(read("filesystems")), "overlay")
	switch {
	case !works && (major < 5 || major == 5 && minor < 11):
		out = append(out, warn("overlayfs", "Linux "+release+" has none in user namespaces, as before 5.11", "use a newer kernel or Docker"))
	case !works && !known:
		out = append(out, warn("overlayfs", "the kernel doesn't have it now", "load it as root, with modprobe overlay"))
	case works:
		out = append(out, ok("overlayfs", "works in user namespaces, on Linux %s", release))
	default:
		out = append(out, ok("overlayfs", "known to Linux %s", release))
	}

	switch mode, present := status["Seccomp"]; {
	case !present:
		out = append(out, warn("seccomp", "the kernel has none", "use a kernel that was built with CONFIG_SECCOMP_FILTER"))
	case mode == "2":
		out = append(out, ok("seccomp", "filters work; one is on this program, as in a container"))
	default:
		out = append(out, ok("seccomp", "filters work"))
	}
	return out
}

// checkQEMU looks for what tests of modules need: the qemu of this machine's own architecture, and others if they are there.
func (a *app) checkQEMU(ctx context.Context) []ui.Check {
	dir, err := a.dir(machineDir)
	if err != nil {
		return nil // the cache's check says so
	}
	host := qemu.NewHost(dir)
	var out []ui.Check
	for _, arch := range qemu.Architectures() {
		p, err := host.Find(ctx, arch)
		missing := (*qemu.MissingError)(nil)
		switch {
		case errors.As(err, &missing) && arch != runtime.GOARCH:
		case missing != nil:
			out = append(out, ui.Check{Name: "qemu " + arch, Status: ui.CheckWarn, Detail: missing.Program + " is not on PATH: modules can be built, and not tested",
				Hint: "install " + missing.Package})
		case err != nil:
			out = append(out, ui.Check{Name: "qemu " + arch, Status: ui.CheckWarn, Detail: err.Error(), Hint: "install it anew"})
		default:
			with := map[string]string{
				"":    "KVM not tried yet",
				"kvm": "KVM works",
				"tcg": "without KVM: it emulates",
			}[p.Accelerator()]
			out = append(out, ok("qemu "+arch, "%s, version %s, %s", p.Path, p.Version, with))
		}
	}
	return out
}

// checkCache finds out whether the cache could be written to, without trying.
func (a *app) checkCache() ui.Check {
	c := ui.Check{Name: "cache", Status: ui.CheckFail, Hint: "choose another folder with --cache-dir"}
	base, err := a.dir("")
	if err != nil {
		c.Detail, c.Hint = err.Error(), "set HOME, XDG_CACHE_HOME or --cache-dir"
		return c
	}
	for _, name := range []string{"", "index", "images", "results", "tmp"} {
		if err := writable(filepath.Join(base, name)); err != nil {
			c.Detail = err.Error()
			return c
		}
	}
	at, made := base, ""
	for !exists(at) && at != filepath.Dir(at) {
		at, made = filepath.Dir(at), " (not made yet)"
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(at, &fs); err != nil {
		c.Detail = fmt.Sprintf("%s: %v", base, err)
		return c
	}
	free := int64(fs.Bavail) * int64(fs.Bsize)
	c.Detail = fmt.Sprintf("%s%s: %s free on %s", base, made, bytesText(free), fileSystem(int64(fs.Type)))
	if free < leastFree {
		c.Hint = fmt.Sprintf("builds take some %s: free some, with 'godkms-hermetic cache gc' if it is the cache's, or choose another folder with --cache-dir", bytesText(leastFree))
		return c
	}
	c.Status, c.Hint = ui.CheckOK, ""
	return c
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// fileSystem names a type of file system (statfs(2)).
func fileSystem(magic int64) string {
	name, known := map[int64]string{
		unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.TMPFS_MAGIC: "tmpfs",
		unix.OVERLAYFS_SUPER_MAGIC: "overlayfs", unix.NFS_SUPER_MAGIC: "nfs", unix.F2FS_SUPER_MAGIC: "f2fs", unix.FUSE_SUPER_MAGIC: "fuse",
		unix.V9FS_MAGIC: "9p", unix.SMB2_SUPER_MAGIC: "smb", unix.CIFS_SUPER_MAGIC: "cifs", unix.ECRYPTFS_SUPER_MAGIC: "ecryptfs",
		unix.BCACHEFS_SUPER_MAGIC: "bcachefs", 0x2fc12fc1: "zfs",
	}[magic]
	if !known {
		return fmt.Sprintf("a file system of type %#x", magic)
	}
	return name
}

// checkConfig reads the configuration, which the mirrors' check then has.
func (a *app) checkConfig() []ui.Check {
	var out []ui.Check
	files := configFiles(a.env)
	for _, name := range files {
		before := a.config
		before.Mirrors = maps.Clone(a.config.Mirrors)
		switch err := a.config.read(name); {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			a.config = before
			out = append(out, ui.Check{Name: "configuration", Status: ui.CheckFail, Detail: err.Error(), Hint: "correct or remove " + name})
		default:
			out = append(out, ok("configuration", "%s is read", name))
		}
	}
	if len(out) == 0 {
		out = append(out, ok("configuration", "no file; it would be %s", strings.Join(files, " or ")))
	}
	return out
}

// prober is a distribution whose archives can be asked for.
type prober interface {
	Mirrors() []repo.Mirror
	Probe(ctx context.Context, m repo.Mirror) (signed bool, err error)
	Keys() ([]repo.Key, error)
}

func (a *app) checkMirrors(ctx context.Context) []ui.Check {
	distros, err := a.distros()
	if err != nil {
		return []ui.Check{{Name: "mirrors", Status: ui.CheckFail, Detail: err.Error(), Hint: "correct --mirror or the configuration"}}
	}
	probers := map[string]prober{}
	for name, p := range distros {
		if p, ok := p.(prober); ok {
			probers[name] = p
		}
	}
	var waits []chan ui.Check
	for _, asked := range toProbe(probers, readMachine("/", "").distro) {
		p, name := probers[asked.distro], asked.distro
		for _, m := range asked.mirrors {
			done := make(chan ui.Check, 1)
			waits = append(waits, done)
			go func() { done <- a.checkMirror(ctx, p, m) }()
		}
		done := make(chan ui.Check, 1)
		waits = append(waits, done)
		done <- checkKeys(name, p, time.Now())
	}
	var out []ui.Check
	for _, w := range waits {
		out = append(out, <-w)
	}
	return out
}

// asked is a distribution with those of its mirrors that are to be asked.
type asked struct {
	distro  string
	mirrors []repo.Mirror
}

// toProbe picks the mirrors that somebody here has to do with: all of the host's own distribution, and those that are given; where there
// is neither, Debian's.
func toProbe(all map[string]prober, own string) []asked {
	var out []asked
	for _, name := range slices.Sorted(maps.Keys(all)) {
		list := slices.Clone(all[name].Mirrors())
		if name != own {
			list = slices.DeleteFunc(list, func(m repo.Mirror) bool { return m.From != repo.Given })
		}
		if len(list) > 0 {
			out = append(out, asked{name, list})
		}
	}
	if len(out) == 0 && own != "debian" {
		return toProbe(all, "debian")
	}
	return out
}

func (a *app) checkMirror(ctx context.Context, p prober, m repo.Mirror) ui.Check {
	name := "mirror " + m.Archive
	what := fmt.Sprintf("%s (%s)", redacted(m.URL), a.origin(p.Mirrors(), m))
	if a.offline {
		return ok(name, "%s: not asked, because of --offline", what)
	}
	signed, err := p.Probe(ctx, m)
	if err == nil && !signed {
		return ok(name, "%s: answers; packages there are signed, and their index isn't", what)
	}
	if err == nil {
		return ok(name, "%s: answers, with a signature of the distribution's", what)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = fmt.Errorf("no answer within %s", doctorPatience)
	}
	return ui.Check{Name: name, Status: ui.CheckWarn, Detail: what + ": " + err.Error(),
		Hint: fmt.Sprintf("see to the network or its proxy, or name another with --mirror %s=URL; what was fetched before can be used with --offline", m.Archive)}
}

// origin says where one of a distribution's mirrors comes from.
func (a *app) origin(all []repo.Mirror, m repo.Mirror) string {
	switch m.From {
	case repo.Given:
		return a.given(m.Archive, all[0].Archive)
	case repo.FromHost:
		return "from this machine's package manager"
	}
	return "built in"
}

// given says whether a flag or the configuration gave an archive's mirror, or that of the main archive, beside which it is.
func (a *app) given(archive, main string) string {
	for _, name := range []string{archive, main} {
		beside := ""
		if name != archive {
			beside = "beside " + name + "'s, "
		}
		for _, m := range a.mirrors {
			if strings.HasPrefix(m, name+"=") {
				return beside + "from --mirror"
			}
		}
		if len(a.config.Mirrors[name]) > 0 {
			return beside + "from the configuration"
		}
	}
	return "given"
}

func checkKeys(distro string, p prober, now time.Time) ui.Check {
	c := ui.Check{Name: "keyring " + distro, Status: ui.CheckFail, Hint: "get a newer version of this program"}
	keys, err := p.Keys()
	if err != nil {
		c.Detail = err.Error()
		return c
	}
	slices.SortStableFunc(keys, func(a, b repo.Key) int { return a.Expires.Compare(b.Expires) })
	expired := 0
	var next *repo.Key
	for i, k := range keys {
		switch {
		case k.Expires.IsZero():
		case !k.Expires.After(now):
			expired++
		case next == nil:
			next = &keys[i]
		}
	}
	c.Detail = fmt.Sprintf("%d keys are built in", len(keys))
	if expired > 0 {
		c.Detail += fmt.Sprintf(", %d of them expired", expired)
	}
	if next != nil {
		c.Detail += fmt.Sprintf("; the next expires on %s: %s", next.Expires.Format(time.DateOnly), cmp.Or(next.Name, "unnamed"))
	}
	if expired < len(keys) {
		c.Status, c.Hint = ui.CheckOK, ""
	}
	return c
}
