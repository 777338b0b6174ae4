package trial

import (
	"strings"
	"testing"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/internal/qemu"
)

// A machine under KVM that fails is void, whether it has told of something or not: the one after it goes on.
func TestVoidMachineEndsNothing(t *testing.T) {
	o := Options{QEMU: qemu.Program{Arch: "amd64"}, Timeout: time.Minute}
	for _, told := range []string{"", `{"type":"boot","uname":["6.1","#1"]}` + "\n", "garbage\n" + strings.Repeat("x", 100)} {
		ended := false
		f := follow(o, task{Modules: []tried{{Name: "hello"}}}, "kvm", func(error) { ended = true })
		if _, err := f.data.Write([]byte(told)); err != nil {
			t.Fatal(err)
		}
		f.stop()
		if want := strings.HasPrefix(told, "garbage"); ended != want {
			t.Errorf("after %.30q: it ends the machine: %v; want %v", told, ended, want)
		}
	}
}
