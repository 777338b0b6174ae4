package host

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
)

// testRoot is an empty root, and what it warns of.
func testRoot(t *testing.T) (*Root, *[]string) {
	t.Helper()
	warnings := &[]string{}
	r, err := Open(t.TempDir(), Options{NoDepmod: true, Warn: func(w string) { *warnings = append(*warnings, w) }})
	if err != nil {
		t.Fatal(err)
	}
	return r, warnings
}

// putFile writes a file of a root, by its path there.
func putFile(t testing.TB, r *Root, name, text string) {
	t.Helper()
	path := filepath.Join(r.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// register adds modules, as "name/version", that have their source.
func register(t testing.TB, r *Root, modules ...string) {
	t.Helper()
	for _, m := range modules {
		name, version, _ := strings.Cut(m, "/")
		source := "/usr/src/" + name + "-" + version
		putFile(t, r, source+"/dkms.conf", "")
		if err := r.Add(context.Background(), Registration{Module: name, Version: version, Source: source}); err != nil {
			t.Fatal(err)
		}
	}
}

// note writes a record, Installed ones included.
func note(t testing.TB, r *Root, module, release string, state State, change func(*Record)) {
	t.Helper()
	name, version, _ := strings.Cut(module, "/")
	rec := Record{
		Module: name, Version: version, State: state,
		Kernel: artifact.Kernel{Distro: "debian", Suite: "bookworm", Arch: "amd64", Release: release},
	}
	if change != nil {
		change(&rec)
	}
	if err := r.writeRecord(rec); err != nil {
		t.Fatal(err)
	}
}

// texts is the status as it is printed.
func texts(t *testing.T, r *Root, f Filter) []string {
	t.Helper()
	lines, err := r.Status(f)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, l := range lines {
		out = append(out, l.String())
	}
	return out
}

func wantLines(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n\t%s\nwant\n\t%s", what, strings.Join(got, "\n\t"), strings.Join(want, "\n\t"))
	}
}

const (
	k56    = "6.1.0-56-amd64"
	k56rt  = "6.1.0-56-amd64-rt"
	k612   = "6.12.117+deb12-amd64"
	ofHost = ", x86_64: "
)

func TestStatus(t *testing.T) {
	r, warnings := testRoot(t)
	wantLines(t, "of an empty root", texts(t, r, Filter{}))

	register(t, r, "a/1", "a-b/1", "hello/1.0", "hello/2.0", "gone/1", "empty/1")
	if err := os.RemoveAll(filepath.Join(r.dir, "usr/src/gone-1")); err != nil {
		t.Fatal(err)
	}
	if err := r.Add(t.Context(), Registration{Module: "pulled", Version: "1", Source: "/usr/src/pulled-1", Reference: "registry.example/pulled"}); err != nil {
		t.Fatal(err)
	}
	note(t, r, "gone/1", k56, Built, nil)
	note(t, r, "a/1", k612, Built, nil)
	note(t, r, "a/1", k56, Built, nil)
	note(t, r, "a/1", k56rt, Built, nil)
	file := File{Path: "updates/dkms/hello.ko.xz", Size: 5, Digest: someHash, Module: someHash}
	installed := func(rec *Record) {
		rec.Files = []File{file}
		rec.Originals = []Original{{Path: "kernel/drivers/hello.ko.xz", Digest: someHash}}
	}
	note(t, r, "hello/1.0", k56, Installed, installed)
	note(t, r, "hello/2.0", k56, Built, nil)
	register(t, r, "hello/3.0")
	note(t, r, "hello/3.0", k56, Failed, nil)
	note(t, r, "hello/2.0", k612, Failed, func(rec *Record) { rec.Reason = "no headers:\n\x1b[31mred" })
	putFile(t, r, "lib/modules/"+k56+"/"+file.Path, "12345")

	all := []string{
		"a-b/1: added",
		"a/1, " + k56rt + ofHost + "built",
		"a/1, " + k56 + ofHost + "built",
		"a/1, " + k612 + ofHost + "built",
		"empty/1: added",
		"gone/1: broken",
		"hello/1.0, " + k56 + ofHost + "installed (Original modules exist)",
		"hello/2.0, " + k56 + ofHost + "built (Original modules exist)",
		"hello/2.0, " + k612 + ofHost + "failed (no headers:??[31mred)",
		"hello/3.0, " + k56 + ofHost + "failed",
		"pulled/1: added",
	}
	wantLines(t, "all", texts(t, r, Filter{}), all...)
	if want := []string{"gone/1 is broken: its source folder /usr/src/gone-1 is gone; put it back, or remove the module"}; !slices.Equal(*warnings, want) {
		t.Errorf("warnings: %q; want %q", *warnings, want)
	}
	wantLines(t, "of one module", texts(t, r, Filter{Module: "hello"}), all[6:10]...)
	wantLines(t, "of one version", texts(t, r, Filter{Module: "hello", Version: "2.0"}), all[7:9]...)
	wantLines(t, "of another architecture", texts(t, r, Filter{Module: "a", Arch: "arm64"}), "a/1: added")
	wantLines(t, "of two kernels", texts(t, r, Filter{Module: "hello", Kernels: []string{k612, k56}}), "hello/1.0: added", all[8], "hello/3.0: added", all[6], all[7], all[9])

	putFile(t, r, "lib/modules/"+k56+"/"+file.Path, "123456")
	wantLines(t, "with another file", texts(t, r, Filter{Version: "1.0"}),
		"hello/1.0, "+k56+ofHost+"installed (Original modules exist) (Differences between built and installed modules)")
	if err := os.Remove(filepath.Join(r.dir, "lib/modules", k56, file.Path)); err != nil {
		t.Fatal(err)
	}
	wantLines(t, "without the file", texts(t, r, Filter{Version: "1.0"}),
		"hello/1.0, "+k56+ofHost+"installed (Original modules exist) (Built modules are missing in the kernel modules folder)")
}

// What is damaged is shown as broken, with a warning, and nothing else is.
func TestStatusOfDamagedState(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"truncated": func(path string) error { return os.Truncate(path, 40) },
		"empty":     func(path string) error { return os.Truncate(path, 0) },
		"another's": func(path string) error { return os.WriteFile(path, []byte(`{"module":"other"}`), 0o644) },
		"a link": func(path string) error {
			return errors.Join(os.Rename(path, path+".moved"), os.Symlink(path+".moved", path))
		},
		"a FIFO":   func(path string) error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o644)) },
		"a folder": func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o755)) },
		"a new state": func(path string) error {
			return os.WriteFile(path, []byte(`{"module":"hello","version":"1.0","kernel":{"Release":"`+k56+`","Arch":"amd64"},"state":"melted"}`), 0o644)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, warnings := testRoot(t)
			register(t, r, "a/1", "hello/1.0")
			note(t, r, "hello/1.0", k56, Built, nil)
			note(t, r, "hello/1.0", k612, Built, nil)
			dir := filepath.Join(r.dir, StateDir, "modules/hello/1.0")
			if err := damage(filepath.Join(dir, k56+".amd64.json")); err != nil {
				t.Fatal(err)
			}
			wantLines(t, "of a damaged record", texts(t, r, Filter{}), "a/1: added", "hello/1.0, "+k56+ofHost+"broken", "hello/1.0, "+k612+ofHost+"built")
			if len(*warnings) != 1 || !strings.Contains((*warnings)[0], k56+".amd64.json") || !strings.Contains((*warnings)[0], "remove that file") {
				t.Errorf("warnings: %q; want one that names the file and says what to do", *warnings)
			}
			if name == "a new state" { // which a registration has none of
				return
			}
			*warnings = nil
			if err := damage(filepath.Join(dir, registrationFile)); err != nil {
				t.Fatal(err)
			}
			wantLines(t, "of a damaged registration", texts(t, r, Filter{}), "a/1: added", "hello/1.0: broken")
			if len(*warnings) != 2 {
				t.Errorf("warnings: %q; want two", *warnings)
			}
			if err := r.Remove(t.Context(), "hello", "1.0"); !errors.Is(err, ErrRemains) {
				t.Errorf("remove of what is built for another kernel: %v; want ErrRemains", err)
			}
			if err := os.Remove(filepath.Join(dir, k612+".amd64.json")); err != nil {
				t.Fatal(err)
			}
			if err := r.Remove(t.Context(), "hello", "1.0"); err != nil {
				t.Errorf("remove of what is damaged: %v", err)
			}
			wantLines(t, "in the end", texts(t, r, Filter{}), "a/1: added")
		})
	}
}

// What another process is changing is seen as it was or as it is, never half.
func TestStatusWhileStateChanges(t *testing.T) {
	r, warnings := testRoot(t)
	register(t, r, "a/1", "stays/1")
	note(t, r, "stays/1", k56, Built, nil)
	other, err := Open(r.dir, Options{})
	if err != nil {
		t.Fatal(err)
	}
	rec := Record{Module: "a", Version: "1", State: Built, Kernel: artifact.Kernel{Distro: "debian", Suite: "bookworm", Arch: "amd64", Release: k56}}
	done := make(chan error)
	go func() {
		for range 15 {
			err := errors.Join(
				other.Note(t.Context(), rec),
				other.Add(t.Context(), Registration{Module: "b", Version: "1"}),
				other.Forget(t.Context(), "a", "1", rec.Kernel),
				other.Remove(t.Context(), "b", "1"),
			)
			if err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	seen := map[string]int{}
	for n := 0; ; n++ {
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			if len(*warnings) > 0 || len(seen) < 2 {
				t.Errorf("%d times the status was one of %v, with warnings %q; want more than one, and no warning", n, seen, *warnings)
			}
			return
		default:
		}
		lines := texts(t, r, Filter{})
		seen[strings.Join(lines, "\n")]++
		lines = slices.DeleteFunc(lines, func(l string) bool { return l == "b/1: added" })
		first := "a/1: added"
		if lines[0] != first {
			first = "a/1, " + k56 + ofHost + "built"
		}
		wantLines(t, "status", lines, first, "stays/1, "+k56+ofHost+"built")
	}
}

// A source that is a link is there if the folder is, which is looked for in the root.
func TestStatusOfLinkedSource(t *testing.T) {
	r, _ := testRoot(t)
	for name, target := range map[string]string{"in": "/srv/source", "out": t.TempDir(), "dangling": "/srv/none"} {
		symlink(t, r, target, "usr/src/"+name+"-1")
		if err := r.Add(t.Context(), Registration{Module: name, Version: "1", Source: "/usr/src/" + name + "-1"}); err != nil {
			t.Fatal(err)
		}
	}
	putFile(t, r, "srv/source/dkms.conf", "")
	wantLines(t, "status", texts(t, r, Filter{}), "dangling/1: broken", "in/1: added", "out/1: broken")
}

func TestNewest(t *testing.T) {
	r, _ := testRoot(t)
	register(t, r, "a/1.9", "a/1.10", "a/1.10~rc1", "b/0", "c/2", "c/v3")
	all, err := r.Modules()
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range Newest(all) {
		got = append(got, m.Module+"/"+m.Version)
	}
	wantLines(t, "the newest", got, "a/1.10", "b/0", "c/v3")
	if len(all) != 6 {
		t.Errorf("Newest has left %d of the modules that it was given; want 6", len(all))
	}
}
