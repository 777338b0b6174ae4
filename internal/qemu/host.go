package qemu

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
)

// Host runs machines: as many at a time as there are processors and as this machine's memory has room for, under KVM if that works. It
// can be used by several goroutines at once.
type Host struct {
	dir      string
	device   string        // /dev/kvm
	patience time.Duration // for a machine under KVM that says nothing

	mu      sync.Mutex
	running int
	claimed int64         // bytes, by the machines that run
	room    int64         // bytes that there were when none ran
	freed   chan struct{} // closed when a machine ends
	trying  chan struct{} // holds something while KVM is tried
}

// NewHost is a Host that remembers in a folder, which is made when it's needed, whether KVM works.
func NewHost(dir string) *Host {
	return &Host{dir: dir, device: "/dev/kvm", patience: patience, freed: make(chan struct{}), trying: make(chan struct{}, 1)}
}

// claim waits until there is a processor and so much memory for a machine. release gives them back.
func (h *Host) claim(ctx context.Context, bytes int64) (release func(), err error) {
	for {
		h.mu.Lock()
		if h.running == 0 {
			h.room = available("/")
			if bytes > h.room {
				h.mu.Unlock()
				return nil, fmt.Errorf("a virtual machine takes %d MB of memory here, of which %d are qemu's own, and there are %d MB: "+
					"give it less with --mem, or end what holds the rest", bytes>>20, overhead>>20, h.room>>20)
			}
		}
		if h.running < runtime.GOMAXPROCS(0) && h.claimed+bytes <= h.room {
			h.running++
			h.claimed += bytes
			h.mu.Unlock()
			return func() { h.release(bytes) }, nil
		}
		freed := h.freed
		h.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

func (h *Host) release(bytes int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.running--
	h.claimed -= bytes
	close(h.freed)
	h.freed = make(chan struct{})
}

// choose says whether a machine is to be run under KVM: where nobody knows yet if that works, the first one is the try, and others wait
// for it. answered must be called; only its first call counts: with the accelerator that the machine came to life under, or "".
func (h *Host) choose(ctx context.Context, p Program) (kvm bool, answered func(accel string), err error) {
	accel := p.Accelerator()
	locked := false
	if accel == "" {
		select {
		case h.trying <- struct{}{}:
			locked = true
		case <-ctx.Done():
			return false, nil, context.Cause(ctx)
		}
		accel = p.Accelerator() // somebody else may have found out
	}
	var once sync.Once
	return accel != "tcg", func(found string) {
		once.Do(func() {
			if found != "" && found != accel && accel != "tcg" {
				p.remember(found)
			}
			if locked {
				<-h.trying
			}
		})
	}, nil
}

// Accelerator is what machines of an architecture run with here: "kvm", "tcg", or "" where KVM hasn't been tried yet.
func (p Program) Accelerator() string {
	if p.Arch != runtime.GOARCH || !p.host.kvmOpens() {
		return "tcg"
	}
	b, err := os.ReadFile(p.memory())
	if err != nil {
		return ""
	}
	if accel, about, _ := strings.Cut(string(b), " "); about == p.about() && (accel == "kvm" || accel == "tcg") {
		return accel
	}
	return ""
}

// remember keeps an answer for other processes and later ones. If it can't, they try again.
func (p Program) remember(accel string) {
	if err := os.MkdirAll(p.host.dir, 0o755); err == nil {
		durable.WriteFile(p.host.dir, p.memory(), 0o644, func(w io.Writer) error {
			_, err := io.WriteString(w, accel+" "+p.about())
			return err
		})
	}
}

func (p Program) memory() string { return filepath.Join(p.host.dir, "accelerator-"+p.Arch) }

// about is what an answer holds for: this qemu, until the machine is started anew.
func (p Program) about() string {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	var changed int64
	if st, err := os.Stat(p.Path); err == nil {
		changed = st.ModTime().UnixNano()
	}
	return fmt.Sprintf("%s %s %q %d", strings.TrimSpace(string(boot)), p.Version, p.Path, changed)
}

// kvmOpens says whether qemu could open KVM's device: this process can, and so can nobody, if that is who qemu will be.
func (h *Host) kvmOpens() bool {
	f, err := os.OpenFile(h.device, os.O_RDWR, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	if os.Geteuid() != 0 {
		return true
	}
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && (st.Mode&0o006 == 0o006 || len(kvmGroup(st)) > 0)
}

// kvmGroup is the group that may open KVM's device, unless that is root's.
func kvmGroup(device unix.Stat_t) []uint32 {
	if device.Mode&0o060 != 0o060 || device.Gid == 0 {
		return nil
	}
	return []uint32{device.Gid}
}
