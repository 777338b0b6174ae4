package images_test

import (
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/images"
	"github.com/godkms-hermetic/godkms-hermetic/internal/dkmstest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/deb"
)

// chrootScript runs in a root, as root; its uid is the only thing that a sandbox would have otherwise.
const chrootScript = `set -e
case $(uname -a) in "Linux godkms-hermetic $RELEASE #1 SMP Debian "*" x86_64 GNU/Linux") ;; *) uname -a; exit 1 ;; esac
[ "$(uname -r)" = "$RELEASE" ]
[ "$(date +%s) $(date -d now +%s) $(date -ud@5 +%s)" = "315532800 315532800 5" ]
[ "$(SOURCE_DATE_EPOCH=77 date +%s)" = 77 ]
[ "$(echo a b | awk '{print $2}')" = b ]
[ "$(which cc)" = /usr/bin/cc ]
grep -q CONFIG_MODULES=y /boot/config-$RELEASE
grep -q CONFIG_MODULES=y /lib/modules/$RELEASE/config
grep -q CONFIG_MODULES=y /lib/modules/$RELEASE/build/.config
test -e /lib/modules/$RELEASE/source/Makefile -o -e /lib/modules/$RELEASE/build/Makefile
grep -q ^build:x:1000:1000: /etc/passwd
test -d /var/lib/dkms -a -d /usr/src -a -L /bin -a -L /lib64
gcc --version | head -1
cc --version >/dev/null && cpp --version >/dev/null && x86_64-linux-gnu-gcc --version >/dev/null && ld --version >/dev/null
mkdir /tmp/hello && cd /tmp/hello
cat > hello.c <<X
#include <linux/module.h>
#include <linux/kallsyms.h>
static int __init hello(void) { pr_info("hello\n"); return 0; }
static void __exit bye(void) { }
module_init(hello);
module_exit(bye);
MODULE_LICENSE("GPL");
X
echo 'obj-m := hello.o' > Makefile
make -C /lib/modules/$RELEASE/build M=$PWD modules
strings -a hello.ko | grep "^vermagic=$RELEASE " || grep -a -o "vermagic=$RELEASE [a-z_ A-Z]*" hello.ko
`

// TestRealKernelsCompile locks and assembles the newest kernel of each suite, and compiles a module in it.
func TestRealKernelsCompile(t *testing.T) {
	if testing.Short() {
		t.Skip("downloads 300 MB")
	}
	if os.Geteuid() != 0 {
		t.Skip("mounts an overlay: needs root")
	}
	// What other tests unpacked is not unpacked again, and the other way round: where nothing is, as in CI, each root is assembled once.
	cache := dkmstest.Cache()
	p, err := deb.New("debian", deb.Options{CacheDir: filepath.Join(cache, "index")})
	if err != nil {
		t.Fatal(err)
	}
	s, err := images.Open(images.Options{Dir: filepath.Join(cache, "images"), Payload: func(_ string, r io.Reader) (io.ReadCloser, error) { return p.Payload(r) }})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ suite, prefix string }{
		{"bookworm", "6.1."}, {"bookworm", "6.12."}, {"trixie", "6.12."}, {"bullseye", "5.10."},
	} {
		t.Run(c.suite+"-"+c.prefix, func(t *testing.T) {
			ctx := context.Background()
			list, err := p.Kernels(ctx, c.suite, "amd64")
			if err != nil {
				need.Skip(t, "no index: %v", err)
			}
			i := slices.IndexFunc(list, func(k kernels.Candidate) bool {
				return strings.HasPrefix(k.Release, c.prefix) && strings.HasSuffix(k.Release, "-amd64") &&
					!strings.Contains(k.Release, "cloud") && !strings.Contains(k.Release, "-rt-")
			})
			if i < 0 {
				need.Skip(t, "the mirror has no such kernel")
			}
			lock, err := p.Lock(ctx, list[i].Kernel, kernels.Extra{})
			if err != nil {
				t.Fatal(err)
			}
			start := time.Now()
			r, err := s.Root(ctx, lock, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			t.Logf("%s: %d + %d packages in %v", lock.Kernel, len(lock.Toolchain), len(lock.Headers), time.Since(start))
			out, err := inChroot(t, r, lock.Kernel.Release)
			t.Logf("%s", out)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(out, "vermagic="+lock.Kernel.Release+" ") {
				t.Error("no module with the right vermagic")
			}
		})
	}
}

func inChroot(t *testing.T, r *images.Root, release string) (string, error) {
	t.Helper()
	layers := r.Layers()
	slices.Reverse(layers)
	scratch := t.TempDir()
	cmd := exec.Command("unshare", "-m", "-n", "sh", "-ec", `
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" "$1/root"
mount -t proc proc "$1/root/proc"
mount --bind /dev "$1/root/dev"
exec chroot "$1/root" /bin/sh -c "$3"`, "sh", scratch, strings.Join(layers, ":"), chrootScript)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "RELEASE=" + release}
	out, err := cmd.CombinedOutput()
	return string(out), err
}
