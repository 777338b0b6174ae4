package trial

import (
	"bytes"
	"runtime"
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

// What goes into a machine is what was signed, and nothing of the key.
func TestKeyStaysOutside(t *testing.T) {
	t.Parallel()
	signer, key, err := throwaway()
	if err != nil {
		t.Fatal(err)
	}
	_, entries, err := prepare(Options{QEMU: qemu.Program{Arch: runtime.GOARCH}, Init: self(t), Modules: []Module{{Name: "m", File: []byte("module")}}, Signature: true, Signer: signer})
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := archive(&b, entries); err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(b.Bytes(), []byte("~Module signature appended~\n")); n < 2 {
		t.Fatalf("it has %d signed modules", n)
	}
	for _, secret := range [][]byte{key.D.Bytes(), key.Primes[0].Bytes(), key.Primes[1].Bytes(), key.Precomputed.Dp.Bytes()} {
		if bytes.Contains(b.Bytes(), secret) {
			t.Error("the initramfs has the key")
		}
	}
}
