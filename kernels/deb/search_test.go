package deb

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

func TestPackages(t *testing.T) {
	b := newBench(t)
	b.publish(published{pocket: "bookworm", packages: stanzas(basePackages + "\na-dkms 1 all\nb-dkms 2")})
	b.publish(published{archive: "debian-security", pocket: "bookworm-security", packages: stanzas("b-dkms 2.1")})
	b.publish(published{pocket: "bookworm-backports", packages: stanzas("b-dkms 3\nc-dkms 1")})
	p := b.client(Options{})
	got, err := p.Packages(t.Context(), "bookworm", "amd64", func(name string) bool { return strings.HasSuffix(name, "-dkms") })
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, k := range got {
		list = append(list, fmt.Sprint(k.Name, " ", k.Version, " ", k.Arch))
	}
	if want := []string{"a-dkms 1 all", "b-dkms 2.1 amd64"}; !slices.Equal(list, want) {
		t.Errorf("packages: %q; want %q", list, want)
	}
	if _, err := p.Packages(t.Context(), "bookwurm", "amd64", func(string) bool { return true }); err == nil {
		t.Error("an unknown suite has packages")
	}
}
