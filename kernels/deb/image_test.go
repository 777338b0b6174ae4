package deb

import (
	"errors"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// The kernel's own packages are those of the headers' version, wherever in the suite they are, and the signed ones of two.
func TestImage(t *testing.T) {
	const r = "6.1.0-1-amd64"
	split := "linux-image-" + r + " 2; Depends: kmod, linux-binary-" + r + " (= 2), linux-modules-" + r + " (= 2)\n" +
		"linux-binary-" + r + " 2\nlinux-modules-" + r + " 2; Depends: linux-base-" + r + " (= 2)\nlinux-base-" + r + " 2\nkmod 2"
	for name, c := range map[string]struct {
		bookworm, security string
		want               string // NAME VERSION, ...
		err                string
	}{
		"signed":         {bookworm: "linux-image-" + r + " 2\nlinux-image-" + r + "-unsigned 2\nlinux-image-" + r + "-dbg 2", want: "linux-image-" + r + " 2"},
		"unsigned alone": {bookworm: "linux-image-" + r + "-unsigned 2", want: "linux-image-" + r + "-unsigned 2"},
		"an update":      {bookworm: "linux-image-" + r + " 1", security: "linux-image-" + r + " 2", want: "linux-image-" + r + " 2"},
		"the one before": {bookworm: "linux-image-" + r + " 2", security: "linux-image-" + r + " 3", want: "linux-image-" + r + " 2"},
		"several":        {bookworm: split, want: "linux-base-" + r + " 2, linux-binary-" + r + " 2, linux-image-" + r + " 2, linux-modules-" + r + " 2"},
		"modules of a rebuild": {bookworm: strings.Replace(split, "linux-modules-"+r+" 2;", "linux-modules-"+r+" 3;", 1),
			err: `package "linux-image-` + r + `" depends on "linux-modules-` + r + ` (= 2)", which the index has not: not found`},
		"modules of another source": {bookworm: "linux-image-" + r + " 2; Depends: linux-modules-" + r + "\nlinux-modules-" + r + " 2; Depends: linux-main-modules-zfs-" + r +
			"\nlinux-modules-" + r + " 3\nlinux-main-modules-zfs-" + r + " 2+1\nlinux-modules-extra-" + r + " 3",
			want: "linux-image-" + r + " 2, linux-main-modules-zfs-" + r + " 2+1, linux-modules-" + r + " 2"},
		"gone": {bookworm: "linux-image-" + r + " 1", security: "linux-image-" + r + " 3",
			err: "the headers are 2, and the index has linux-image-" + r + " 3, linux-image-" + r + " 1: not found; another mirror"},
		"none": {bookworm: "kmod 1", err: "the headers are 2, and the index has neither linux-image-" + r + " nor linux-image-unsigned-" + r + " nor linux-image-" + r + "-unsigned: not found"},
	} {
		b := newBench(t)
		b.publish(published{pocket: "bookworm", packages: stanzas(c.bookworm)})
		b.publish(published{archive: "debian-security", pocket: "bookworm-security", packages: stanzas(c.security)})
		lock := kernels.Lock{Kernel: kernel(r), Headers: []kernels.Package{{Name: "libelf1", Version: "1"}, {Name: "linux-headers-" + r, Version: "2"}}}
		got, err := b.client(Options{}).Image(t.Context(), lock)
		if c.err != "" {
			if !errors.Is(err, kernels.ErrNotFound) || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, %v; want %q", name, got, err, c.err)
			}
			continue
		}
		var list []string
		for _, p := range got.Packages {
			list = append(list, p.Name+" "+p.Version)
		}
		if text := strings.Join(list, ", "); err != nil || text != c.want || got.Kernel != lock.Kernel {
			t.Errorf("%s: %q, %v; want %q", name, text, err, c.want)
		}
	}
	b := newBench(t)
	b.publish(published{pocket: "bookworm", packages: stanzas("kmod 1")})
	if _, err := b.client(Options{}).Image(t.Context(), kernels.Lock{Kernel: kernel(r)}); err == nil || !strings.Contains(err.Error(), `no package "linux-headers-`+r) {
		t.Errorf("a lock without headers: %v", err)
	}
}
