package host

import (
	"fmt"
	"testing"
)

func BenchmarkStatus(b *testing.B) {
	r, err := Open(b.TempDir(), Options{})
	if err != nil {
		b.Fatal(err)
	}
	manyModules(b, r)
	for b.Loop() {
		lines, err := r.Status(Filter{})
		if err != nil || len(lines) != 250 || lines[0].String() != "module00/1.0, 6.1.0-50-amd64, x86_64: installed" {
			b.Fatalf("%d lines, %v", len(lines), err)
		}
	}
}

// manyModules are 50, installed for five kernels each.
func manyModules(t testing.TB, r *Root) {
	t.Helper()
	for m := range 50 {
		module := fmt.Sprintf("module%02d/1.0", m)
		register(t, r, module)
		for k := range 5 {
			release := fmt.Sprintf("6.1.0-%d-amd64", 50+k)
			file := fmt.Sprintf("updates/dkms/module%02d.ko", m)
			putFile(t, r, "lib/modules/"+release+"/"+file, "12345")
			note(t, r, module, release, Installed, func(rec *Record) {
				rec.Key, rec.Artifact = someHash, someHash
				rec.Files = []File{{file, 5, someHash, someHash}}
			})
		}
	}
}
