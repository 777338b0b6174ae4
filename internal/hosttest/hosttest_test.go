package hosttest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A root is Debian's, has nothing to build with, and what runs in it sees nothing of this machine.
func TestRoot(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r := New(t, exe)
	if got := r.Must("sh", "-c", ". /etc/os-release; echo $ID/$VERSION_CODENAME"); got != "debian/"+Suite+"\n" {
		t.Errorf("the root is %q; want debian/%s", got, Suite)
	}
	for _, program := range []string{"gcc", "cc", "make", "ld"} {
		if out, code := r.Run("sh", "-c", "command -v "+program); code == 0 {
			t.Errorf("the root has %s", out)
		}
	}
	if out := r.Must("sh", "-c", "touch /here; ls /proc/1/exe /dev/pts/ptmx >/dev/null; find /mnt -mindepth 1"); out != "" {
		t.Errorf("below /mnt in the root: %s", out)
	}
	if _, err := os.Stat(filepath.Join(r.Dir, "here")); err != nil {
		t.Error(err)
	}
	if out := r.Must("cat", "/proc/mounts"); strings.Contains(out, r.Dir) || strings.Count(out, " /proc proc ") != 1 {
		t.Errorf("the root's mounts:\n%s", out)
	}
	if _, code := r.Run("sh", "-c", "exit 7"); code != 7 {
		t.Errorf("exit code %d; want 7", code)
	}
	r.Must("dpkg", "--audit")
	r.Must("godkms-hermetic", "-test.run=^$")
}
