package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/internal/host"
	"github.com/godkms-hermetic/godkms-hermetic/internal/hosttest"
)

// A new kernel on a Debian host gets the modules when apt installs it, and loses them when apt removes it. One that doesn't compile
// leaves dpkg configured, and the reason where it's looked for.
func TestKernelUpgrade(t *testing.T) {
	t.Parallel()
	exe, err := exec.LookPath("godkms-hermetic")
	if err != nil {
		t.Fatal(err)
	}
	r := hosttest.New(t, exe)
	k := hosttest.Kernel(t, "6.1.", "cloud-amd64")
	modules := filepath.Join(r.Dir, "usr/lib/modules", k.Release)
	installed := filepath.Join(modules, "updates/dkms/hello.ko")
	exists := func(path string) bool {
		_, err := os.Stat(path)
		return err == nil
	}
	record := func(module string) (host.Record, bool) {
		t.Helper()
		root, err := host.Open(r.Dir, host.Options{})
		if err != nil {
			t.Fatal(err)
		}
		m, err := root.Module(module, "1.0")
		if err != nil {
			t.Fatal(err)
		}
		return m.Find(k.Release, k.Arch)
	}

	// All systems that there are hooks for are on this host.
	r.Must("godkms-hermetic", "hooks", "install")
	var hooks struct{ Hooks []host.Hook }
	if err := json.Unmarshal([]byte(r.Must("godkms-hermetic", "hooks", "status", "--format", "json")), &hooks); err != nil {
		t.Fatal(err)
	}
	for _, h := range hooks.Hooks {
		if h.State != host.HookInstalled {
			t.Errorf("%s is %s", h.Path, h.State)
		}
	}
	if out := r.Must("systemd-analyze", "verify", "--man=no", "godkms-hermetic.service"); out != "" {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	if out := r.Must("systemctl", "is-enabled", "godkms-hermetic.service"); out != "enabled\n" {
		t.Errorf("the service is %q", out)
	}

	for _, name := range []string{"hello", "broken", "exclusive"} {
		if out, err := exec.Command("cp", "-r", filepath.Join("../../testdata", name), filepath.Join(r.Dir, "srv", name)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		r.Must("godkms-hermetic", "add", "/srv/"+name)
	}

	// What would be lost is known before, and what won't is ready.
	out, code := r.Run("godkms-hermetic", "gate", "-k", k.Release)
	for _, want := range []string{
		"hello/1.0, " + k.Release + ", x86_64: built\n", "exclusive/1.0, " + k.Release + ", x86_64: skipped: ", "broken/1.0, " + k.Release + ", x86_64: failed: make failed",
	} {
		if code != exitAuto || !strings.Contains(out, want) {
			t.Fatalf("gate: exit code %d, without %q:\n%s", code, want, out)
		}
	}
	if _, found := record("broken"); found {
		t.Error("gate keeps a failure for a kernel that isn't there")
	}

	journal := listen(t, filepath.Join(r.Dir, "run/log"))
	if err := os.WriteFile(filepath.Join(r.Dir, "etc/initramfs-tools/modules"), []byte("hello\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	out = r.Must("apt-get", "install", "-y", "-q", "-o", "Dpkg::Use-Pty=0", "--no-install-recommends", r.KernelPackage(k))
	for _, want := range []string{
		"Autoinstall on " + k.Release + " succeeded for module(s) hello.\n",
		"Autoinstall on " + k.Release + " was skipped for module(s) exclusive.\n",
		"Autoinstall on " + k.Release + " failed for module(s) broken(10).\n",
		"update-initramfs: Generating",
	} {
		if !strings.Contains(out, want) {
			t.Fatalf("apt-get install says nothing of %q:\n%s", want, out)
		}
	}
	if out := r.Must("dpkg-query", "-W", "-f", "${Status}", "linux-image-"+k.Release) + r.Must("dpkg", "--audit"); out != "install ok installed" {
		t.Errorf("the kernel's package is %q", out)
	}
	if out := r.Must("modprobe", "-S", k.Release, "--show-depends", "hello"); out != "insmod /lib/modules/"+k.Release+"/updates/dkms/hello.ko \n" {
		t.Errorf("modprobe: %q", out)
	}
	if out := r.Must("lsinitramfs", "/boot/initrd.img-"+k.Release); !strings.Contains(out, "/updates/dkms/hello.ko\n") {
		t.Errorf("the initramfs doesn't have hello.ko:\n%s", out)
	}
	if rec, _ := record("broken"); rec.State != host.Failed || !strings.HasPrefix(rec.Reason, "make failed") {
		t.Errorf("the record of the broken module is %+v", rec)
	}
	if out := r.Must("godkms-hermetic", "status"); !strings.Contains(out, "make failed") {
		t.Errorf("status says nothing of the failure:\n%s", out)
	}
	for _, want := range []string{"broken/1.0, " + k.Release + ", x86_64: failed: make failed", "autoinstall -k " + k.Release} {
		if !strings.Contains(journal(), want) {
			t.Errorf("the journal has nothing of %q:\n%s", want, journal())
		}
	}

	// A failure is tried again, and forgotten when it's mended.
	if _, code := r.Run("godkms-hermetic", "autoinstall"); code != exitAuto {
		t.Errorf("autoinstall: exit code %d; want %d", code, exitAuto)
	}
	source := filepath.Join(r.Dir, "usr/src/broken-1.0/broken.c")
	text, err := os.ReadFile(source)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(source, append([]byte("#define godkms_hermetic_no_such_function() do { } while (0)\n"), text...), 0o644); err != nil {
		t.Fatal(err)
	}
	r.Must("godkms-hermetic", "autoinstall")
	if rec, _ := record("broken"); rec.State != host.Installed || rec.Reason != "" {
		t.Errorf("the record of the mended module is %+v", rec)
	}
	r.Must("godkms-hermetic", "remove", "exclusive/1.0", "--all") // whether it still doesn't want the kernel is looked at each time
	if out := r.Must("godkms-hermetic", "autoinstall", "-k", k.Release, "--offline"); out != "" {
		t.Errorf("with nothing to do autoinstall says %q", out)
	}
	// What is gone from the kernel's folder comes back.
	if err := os.Remove(installed); err != nil {
		t.Fatal(err)
	}
	r.Must("godkms-hermetic", "autoinstall", "--offline")
	if !exists(installed) {
		t.Error("autoinstall leaves a module out that is gone")
	}

	// The other package managers call it as well.
	gone := func(by string) {
		t.Helper()
		if left, err := filepath.Glob(filepath.Join(modules, "updates*")); err != nil || len(left) > 0 {
			t.Errorf("after %s there is %s (%v)", by, left, err)
		}
		if rec, found := record("hello"); found {
			t.Errorf("after %s there is a record: %+v", by, rec)
		}
	}
	back := func(by string) {
		t.Helper()
		if !exists(installed) {
			t.Errorf("%s installs nothing", by)
		}
	}
	r.Must("kernel-install", "remove", k.Release)
	gone("kernel-install remove")
	r.Must("sh", "-ec", `mkdir -p /srv/arch/usr/lib/modules/$1 && cd /srv/arch
echo kernel >usr/lib/modules/$1/vmlinuz
printf 'pkgname = linux\npkgbase = linux\npkgver = 1-1\narch = any\nsize = 7\n' >.PKGINFO
tar -czf ../linux.pkg.tar.gz .PKGINFO usr
printf '[options]\nArchitecture = auto\nSigLevel = Never\n' >/etc/pacman.conf
mkdir -p /var/lib/pacman`, "sh", k.Release)
	r.Must("pacman", "-U", "--noconfirm", "/srv/linux.pkg.tar.gz")
	back("pacman -U")
	r.Must("pacman", "-R", "--noconfirm", "linux")
	gone("pacman -R")
	r.Must("kernel-install", "add", k.Release, "/boot/vmlinuz-"+k.Release)
	back("kernel-install add")

	// An upgrade of the same kernel keeps what is there.
	before, err := os.Stat(installed)
	if err != nil {
		t.Fatal(err)
	}
	r.Must("apt-get", "install", "-y", "-q", "-o", "Dpkg::Use-Pty=0", "--reinstall", r.KernelPackage(k))
	if after, err := os.Stat(installed); err != nil || !os.SameFile(before, after) {
		t.Errorf("installing the same kernel again changed the module (%v)", err)
	}

	r.Must("apt-get", "remove", "-y", "-q", "-o", "Dpkg::Use-Pty=0", "linux-image-"+k.Release)
	gone("apt-get remove")
	err = filepath.WalkDir(modules, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !strings.HasPrefix(d.Name(), "modules.") { // which depmod of Debian's own leaves, too
			t.Errorf("apt-get remove leaves %s", path)
		}
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}

	// Without the program the hooks do nothing.
	if err := os.Remove(filepath.Join(r.Dir, "usr/bin/godkms-hermetic")); err != nil {
		t.Fatal(err)
	}
	if out := r.Must("/etc/kernel/postinst.d/40-godkms-hermetic", k.Release); out != "" {
		t.Errorf("a hook without its program says %q", out)
	}
}

// listen gives what is sent to a log's socket.
func listen(t *testing.T, path string) func() string {
	t.Helper()
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var said bytes.Buffer
	return func() string {
		b := make([]byte, 1<<16)
		for {
			l.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			n, err := l.Read(b)
			if err != nil {
				return said.String()
			}
			fmt.Fprintf(&said, "%s\n", b[:n])
		}
	}
}
