package deb

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
)

// buildDeb makes a package with dpkg-deb.
func buildDeb(t testing.TB, compression string, fields ...string) []byte {
	t.Helper()
	need.Program(t, "dpkg-deb")
	dir := t.TempDir()
	for name, text := range map[string]string{
		"DEBIAN/control": "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\n" +
			strings.Join(append(fields, "Description: x\n"), "\n"),
		"usr/share/x/hello": strings.Repeat("hello\n", 30000),
	} {
		path := filepath.Join(dir, "root", name)
		os.MkdirAll(filepath.Dir(path), 0o755)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(dir, "x.deb")
	cmd := exec.Command("dpkg-deb", "--root-owner-group", "-Z"+compression, "-b", filepath.Join(dir, "root"), out)
	if msg, err := cmd.CombinedOutput(); err != nil {
		need.Skip(t, "dpkg-deb -Z%s: %v: %s", compression, err, msg)
	}
	data, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestPayload(t *testing.T) {
	for _, compression := range []string{"none", "gzip", "xz", "zstd"} {
		t.Run(compression, func(t *testing.T) {
			deb := buildDeb(t, compression)
			cmd := exec.Command("dpkg-deb", "--fsys-tarfile", "/dev/stdin")
			cmd.Stdin = bytes.NewReader(deb)
			want, err := cmd.Output()
			if err != nil {
				t.Fatal(err)
			}
			in := bytes.NewReader(deb)
			r, err := (*Provider)(nil).Payload(iotest.OneByteReader(in))
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			got, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("payload of %d bytes differs from dpkg-deb's of %d", len(got), len(want))
			}
			if in.Len() != 0 {
				t.Errorf("%d bytes of the package were not read", in.Len())
			}
			for _, n := range []int{0, 7, 8, 30, 67, 70, 100, len(deb) / 2, len(deb) - 1} {
				if n == len(deb)-1 && deb[n] == '\n' { // only padding is gone
					continue
				}
				if err := readPayload(deb[:n]); err == nil {
					t.Errorf("the first %d of %d bytes are read without an error", n, len(deb))
				}
			}
		})
	}
}

func readPayload(deb []byte) error {
	r, err := (*Provider)(nil).Payload(bytes.NewReader(deb))
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, r)
	return err
}

// TestPayloadReportsTheInputsError is about an input that checks its digest, and says so at its end.
func TestPayloadReportsTheInputsError(t *testing.T) {
	bad := errors.New("digest mismatch")
	once := make(chan error, 1)
	once <- bad
	r, err := (*Provider)(nil).Payload(io.MultiReader(bytes.NewReader(buildDeb(t, "xz")), readerFunc(func([]byte) (int, error) {
		select {
		case err := <-once:
			return 0, err
		default:
			return 0, io.EOF
		}
	})))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, r); !errors.Is(err, bad) {
		t.Errorf("error is %v; want %v", err, bad)
	}
	if _, err := r.Read(make([]byte, 1)); !errors.Is(err, bad) {
		t.Errorf("the next error is %v; want %v", err, bad)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

func arMember(name string, body string) string {
	s := fmt.Sprintf("%-16s%-12d%-6d%-6d%-8o%-10d`\n%s", name, 0, 0, 0, 0o100644, len(body), body)
	if len(body)%2 == 1 {
		s += "\n"
	}
	return s
}

func TestPayloadRefuses(t *testing.T) {
	const magic, binary = "!<arch>\n", "debian-binary"
	var tarball bytes.Buffer
	tar.NewWriter(&tarball).Close()
	good := magic + arMember(binary, "2.0\n") + arMember("control.tar.gz", "odd") + arMember("_extra", "x") + arMember("data.tar/", tarball.String())
	if err := readPayload([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{
		"empty":           "",
		"not an archive":  "hello, hello",
		"no member":       magic,
		"other first":     magic + arMember("data.tar", "2.0\n"),
		"version 3":       magic + arMember(binary, "3.0\n"),
		"no data":         magic + arMember(binary, "2.0\n") + arMember("control.tar.gz", "even"),
		"bzip2":           magic + arMember(binary, "2.0\n") + arMember("data.tar.bz2", "BZh9"),
		"negative size":   magic + strings.Replace(arMember(binary, "2.0\n"), "4         `", "-4        `", 1),
		"huge size":       magic + strings.Replace(arMember(binary, "2.0\n"), "4         `", "9999999999`", 1),
		"bad end":         magic + strings.Replace(arMember(binary, "2.0\n"), "`\n", "``", 1),
		"too many":        magic + arMember(binary, "2.0\n") + strings.Repeat(arMember("x", ""), 101) + arMember("data.tar", ""),
		"garbage as xz":   magic + arMember(binary, "2.0\n") + arMember("data.tar.xz", "\xfd7zXZ\x00garbage"),
		"garbage as gzip": magic + arMember(binary, "2.0\n") + arMember("data.tar.gz", "\x1f\x8bgarbage"),
		"garbage as zstd": magic + arMember(binary, "2.0\n") + arMember("data.tar.zst", "\x28\xb5\x2f\xfdgarbage"),
		"cut":             good[:len(good)-1],
	} {
		if err := readPayload([]byte(text)); err == nil {
			t.Errorf("%s: no error", what)
		} else if !strings.HasPrefix(err.Error(), "read deb package: ") {
			t.Errorf("%s: error is %v", what, err)
		}
	}
}

func FuzzPayload(f *testing.F) {
	f.Add([]byte("!<arch>\n" + arMember("debian-binary", "2.0\n") + arMember("data.tar", "x")))
	for _, c := range []string{"gzip", "xz", "zstd"} {
		f.Add(buildDeb(f, c))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := (*Provider)(nil).Payload(bytes.NewReader(data))
		if err != nil {
			return
		}
		defer r.Close()
		io.Copy(io.Discard, io.LimitReader(r, 16<<20))
	})
}

// TestPayloadOfRealPackages compares with dpkg-deb on packages of a real lock.
func TestPayloadOfRealPackages(t *testing.T) {
	p := mirrorProvider(t, Options{})
	need.Program(t, "dpkg-deb")
	l := newestLock(t, p, "bookworm", "amd64", "")
	for _, k := range append(l.Headers, l.Toolchain[:3]...) {
		got, err := p.asker.Net.Fetch(t.Context(), k.URL, nil, k.Size)
		if err != nil {
			t.Fatalf("%s: %v", k.URL, err)
		}
		if sum := fmt.Sprintf("%x", sha256.Sum256(got.Body)); sum != k.Digest.Hex || int64(len(got.Body)) != k.Size {
			t.Errorf("%s has sha256 %s and %d bytes; want %s and %d", k.URL, sum, len(got.Body), k.Digest.Hex, k.Size)
		}
		cmd := exec.Command("dpkg-deb", "--fsys-tarfile", "/dev/stdin")
		cmd.Stdin = bytes.NewReader(got.Body)
		want, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		r, err := p.Payload(bytes.NewReader(got.Body))
		if err != nil {
			t.Fatal(err)
		}
		have, err := io.ReadAll(r)
		r.Close()
		if err != nil || !bytes.Equal(have, want) {
			t.Errorf("%s: payload differs from dpkg-deb's: %v", k.Name, err)
		}
	}
}

// Open gives what dpkg-deb says of the dependencies, and the same payload as Payload.
func TestOpen(t *testing.T) {
	for _, compression := range []string{"none", "gzip", "xz", "zstd"} {
		t.Run(compression, func(t *testing.T) {
			deb := buildDeb(t, compression, "Pre-Depends: init-system-helpers (>= 1.54~)", "Depends: dkms (>= 2.1), libc6-dev|libc-dev,", " perl:any")
			r, depends, err := (*Provider)(nil).Open(iotest.OneByteReader(bytes.NewReader(deb)))
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if got, want := strings.Join(depends, ", "), "init-system-helpers (>= 1.54~), dkms (>= 2.1), libc6-dev | libc-dev, perl:any"; got != want {
				t.Errorf("depends = %s; want %s", got, want)
			}
			got, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			plain, err := (*Provider)(nil).Payload(bytes.NewReader(deb))
			if err != nil {
				t.Fatal(err)
			}
			defer plain.Close()
			if want, err := io.ReadAll(plain); err != nil || !bytes.Equal(got, want) {
				t.Errorf("payload of %d bytes differs from Payload's of %d (%v)", len(got), len(want), err)
			}
		})
	}
}

func tarOf(t testing.TB, files ...string) string {
	t.Helper()
	var out strings.Builder
	w := tar.NewWriter(&out)
	for i := 0; i < len(files); i += 2 {
		if err := w.WriteHeader(&tar.Header{Name: files[i], Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(files[i+1]))}); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, files[i+1])
	}
	w.Close()
	return out.String()
}

func TestOpenRefuses(t *testing.T) {
	data := arMember("data.tar", tarOf(t))
	debOf := func(members ...string) []byte {
		return []byte("!<arch>\n" + arMember("debian-binary", "2.0\n") + strings.Join(members, ""))
	}
	control := func(text string) string { return arMember("control.tar", tarOf(t, "./control", text)) }
	if _, d, err := (*Provider)(nil).Open(bytes.NewReader(debOf(control("Package: x\nDepends: a\n"), data))); err != nil || len(d) != 1 {
		t.Fatalf("Open: %q, %v", d, err)
	}
	for _, c := range []struct {
		name, err string
		deb       []byte
	}{
		{"no control.tar", "no control.tar before its data.tar", debOf(data)},
		{"control.tar after it", "no control.tar before its data.tar", debOf(data, control("Depends: a\n"))},
		{"two of them", "twice", debOf(control("Depends: a\n"), control("Depends: b\n"), data)},
		{"no control file", "no control file", debOf(arMember("control.tar", tarOf(t, "md5sums", "x")), data)},
		{"an empty one", "0 stanzas", debOf(control(""), data)},
		{"two stanzas", "2 stanzas", debOf(control("Depends: a\n\nDepends: b\n"), data)},
		{"no dependency", `"a b" is no package name`, debOf(control("Depends: a b\n"), data)},
		{"two fields", "comes twice", debOf(control("Depends: a\nDepends: b\n"), data)},
		{"large", "at most 1048576 are read", debOf(control(strings.Repeat("X: y\n", maxControl)), data)},
		{"large before it", "too large", debOf(arMember("control.tar", tarOf(t, "md5sums", strings.Repeat("0", maxControlTar), "control", "Depends: a\n")), data)},
		{"cut", "unexpected EOF", debOf(arMember("control.tar", tarOf(t, "./control", strings.Repeat("X: y\n", 500))[:700]), data)},
		{"not a tar", "control.tar: ", debOf(arMember("control.tar", strings.Repeat("nonsense", 200)), data)},
	} {
		_, _, err := (*Provider)(nil).Open(bytes.NewReader(c.deb))
		if err == nil || !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v; want %q", c.name, err, c.err)
		}
	}
}

func FuzzControl(f *testing.F) {
	f.Add([]byte("Package: x\nDepends: a | b (>= 1), c:any\nPre-Depends: d,\n e\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		depends, err := parseControl(bytes.NewReader(text))
		if err != nil {
			return
		}
		list, err := parseExtra(depends)
		if err != nil {
			t.Fatalf("%q of %q: %v", depends, text, err)
		}
		if len(list) > len(depends) {
			t.Fatalf("%q became %d dependencies", depends, len(list))
		}
		if _, err := parseExtra([]string{asField(list)}); len(list) == 1 && err != nil {
			t.Fatalf("%q is not read again: %v", asField(list), err)
		}
	})
}

func FuzzOpen(f *testing.F) {
	f.Add([]byte("!<arch>\n" + arMember("debian-binary", "2.0\n") + arMember("control.tar", tarOf(f, "./control", "Package: x\nDepends: a\n")) +
		arMember("data.tar", tarOf(f))))
	f.Fuzz(func(t *testing.T, deb []byte) {
		r, _, err := (*Provider)(nil).Open(bytes.NewReader(deb))
		if err == nil {
			io.Copy(io.Discard, io.LimitReader(r, 1<<20))
			r.Close()
		}
	})
}
