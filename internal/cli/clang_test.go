package cli

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"

	"github.com/godkms-hermetic/godkms-hermetic/builder/sandbox"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/deb"
)

// Debian has no kernel that clang built. So bookworm's newest one is made into one: its package of headers, with the configuration
// that clang 14 and lld 14 give, becomes another package, in a repository that has nothing else and a key of its own. The rest is
// real: the other indexes and their signatures, the packages of clang, lld and LLVM, and the build.
func TestKernelBuiltByClang(t *testing.T) {
	t.Parallel()
	if kernels.HostArch() != "amd64" {
		need.Skip(t, "the packages are amd64's")
	}
	if err := (sandbox.Engine{}).Check(t.Context()); err != nil {
		need.Skip(t, "no sandbox: %v", err)
	}
	shared := sharedCache(t)
	var k61 kernels.Kernel
	for _, v := range newestKernels(t, shared) {
		if name, ok := strings.CutPrefix(v, "R61="); ok {
			k61 = kernels.Kernel{Distro: "debian", Suite: "bookworm", Arch: kernels.HostArch(), Release: name}
		}
	}
	release := strings.Replace(k61.Release, "-amd64", "-clang-amd64", 1)
	mirror, keys := clangMirror(t, shared, k61, release)

	// Packages and roots are kept between runs; indexes of a mirror that is gone are not.
	kept, cache := filepath.Join(shared, "clang/images"), t.TempDir()
	packages := filepath.Join(kept, "packages/sha256")
	if err := os.MkdirAll(packages, 0o755); err != nil {
		t.Fatal(err)
	}
	theirs, err := filepath.Glob(filepath.Join(shared, "images/packages/sha256/*"))
	if err != nil || len(theirs) == 0 {
		t.Fatalf("no packages in %s (%v)", shared, err)
	}
	for _, file := range theirs {
		if err := os.Link(file, filepath.Join(packages, filepath.Base(file))); err != nil && !errors.Is(err, fs.ErrExist) {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(kept, filepath.Join(cache, "images")); err != nil {
		t.Fatal(err)
	}
	run := func(v any, want int, args ...string) string {
		var out, errs bytes.Buffer
		a := &app{stdout: &out, stderr: &errs, env: os.Getenv, keyring: keys}
		if code := a.run(t.Context(), append(args, "--cache-dir", cache, "--mirror", "debian="+mirror, "--format", "json")); code != want {
			t.Fatalf("godkms-hermetic %s: exit code %d; want %d\n%s%s", strings.Join(args, " "), code, want, &out, &errs)
		}
		if err := json.Unmarshal(out.Bytes(), v); err != nil {
			t.Fatal(err)
		}
		return errs.String()
	}

	var list struct{ Kernels []kernels.Candidate }
	run(&list, 0, "kernels", "debian/bookworm")
	i := slices.IndexFunc(list.Kernels, func(k kernels.Candidate) bool { return k.Release == release })
	if i < 0 || list.Kernels[i].Compiler != "clang-14" {
		t.Fatalf("%d of %+v; want %s with clang-14", i, list.Kernels, release)
	}

	// The module has what says how it was made.
	src := filepath.Join(t.TempDir(), "hello")
	if err := os.CopyFS(src, os.DirFS("../../testdata/hello")); err != nil {
		t.Fatal(err)
	}
	makefile, err := os.OpenFile(filepath.Join(src, "Makefile"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(makefile, "ccflags-y += -g\n$(info LLVM=$(LLVM) CC=$(CC) LD=$(LD) STRIP=$(STRIP))")
	if err := makefile.Close(); err != nil {
		t.Fatal(err)
	}
	var built struct{ Results []ui.Result }
	said := run(&built, 0, "build", src, "--kernels", "debian/bookworm:"+release, "--out", cache+"/out", "--engine", "sandbox")
	r := built.Results[0]
	if r.Status != ui.Built || r.Compiler != "clang-14" || len(r.Modules) != 1 {
		t.Fatalf("%+v; want built with clang-14\n%s", r, said)
	}
	if got, want := r.Modules[0].Vermagic, release+" SMP preempt mod_unload modversions"; got != want {
		t.Errorf("vermagic %q; want %q", got, want)
	}
	log, err := os.ReadFile(r.Log)
	if err != nil {
		t.Fatal(err)
	}
	if want := "LLVM=1 CC=clang LD=ld.lld STRIP=llvm-strip\n"; !bytes.Contains(log, []byte(want)) || bytes.Contains(log, []byte("the compiler differs")) {
		t.Errorf("the log has no %q, or a warning of the compiler:\n%s", want, log)
	}
	checkClang(t, r.Modules[0].Path)

	// What clang says is understood as well.
	run(&built, exitBuild, "build", "../../testdata/broken", "--kernels", "debian/bookworm:"+release, "--out", cache+"/out", "--engine", "sandbox")
	if got, want := built.Results[0].Why, "the kernel's API changed: godkms_hermetic_no_such_function is not declared in this kernel"; got != want {
		t.Errorf("why %q; want %q", got, want)
	}
}

// checkClang looks at a module: clang compiled it, lld linked it, and llvm-strip took its debug information. GNU strip would have
// put the sections of names last, behind that of symbols; LLVM's leaves them in lld's order.
func checkClang(t *testing.T, file string) {
	t.Helper()
	f, err := elf.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var names []string
	comment := ""
	for _, s := range f.Sections {
		names = append(names, s.Name)
		if s.Name == ".comment" {
			b, err := s.Data()
			if err != nil {
				t.Fatal(err)
			}
			comment = string(b)
		}
	}
	if !strings.Contains(comment, "Debian clang version 14.") || strings.Contains(comment, "GCC") {
		t.Errorf(".comment is %q; want clang alone", comment)
	}
	all := strings.Join(names, " ")
	if !strings.HasSuffix(all, " .symtab .shstrtab .strtab") || strings.Contains(all, ".debug_") || !strings.Contains(all, ".llvm_addrsig") {
		t.Errorf("sections %s; want those that lld makes and llvm-strip leaves, none for debugging", all)
	}
}

// clangMirror is a mirror of what this machine's has, but with the headers of a kernel that clang built in bookworm-updates.
func clangMirror(t *testing.T, shared string, k kernels.Kernel, release string) (url string, keys openpgp.EntityList) {
	t.Helper()
	p, err := deb.New("debian", deb.Options{CacheDir: filepath.Join(shared, "index")})
	if err != nil {
		t.Fatal(err)
	}
	l, err := p.Lock(t.Context(), k, kernels.Extra{})
	if err != nil {
		t.Fatal(err)
	}
	var (
		pkg     []byte
		depends = []string{"clang-14"}
		version string
	)
	for _, h := range l.Headers {
		switch {
		case h.Name == "linux-headers-"+k.Release:
			original := download(t, shared, h)
			files, err := p.Payload(bytes.NewReader(original))
			if err != nil {
				t.Fatal(err)
			}
			pkg, version = clangHeaders(t, files, k.Release, release), h.Version
		case strings.HasPrefix(h.Name, "linux-headers-"), strings.HasPrefix(h.Name, "linux-kbuild-"):
			depends = append(depends, fmt.Sprintf("%s (= %s)", h.Name, h.Version))
		}
	}
	name := "linux-headers-" + release
	index := fmt.Sprintf("Package: %s\nSource: linux\nVersion: %s\nArchitecture: amd64\nDepends: %s\nFilename: pool/main/l/linux/%s.deb\nSize: %d\nSHA256: %x\n\n",
		name, version, strings.Join(depends, ", "), name, len(pkg), sha256.Sum256(pkg))
	own, err := openpgp.NewEntity("mirror of a test", "", "test@example.org", nil)
	if err != nil {
		t.Fatal(err)
	}
	var signed bytes.Buffer
	w, err := clearsign.Encode(&signed, own.PrivateKey, nil)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(w, "Origin: Test\nCodename: bookworm-updates\nDate: %s\nSHA256:\n %x %d main/binary-amd64/Packages\n",
		time.Now().UTC().Format(time.RFC1123), sha256.Sum256([]byte(index)), len(index))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}

	armored, err := os.Open("../../kernels/deb/keys/debian.asc")
	if err != nil {
		t.Fatal(err)
	}
	defer armored.Close()
	if keys, err = openpgp.ReadArmoredKeyRing(armored); err != nil {
		t.Fatal(err)
	}
	base, err := mirrorURL(shared)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{
		"/debian/dists/bookworm-updates/InRelease":                  signed.Bytes(),
		"/debian/dists/bookworm-updates/main/binary-amd64/Packages": []byte(index),
		"/debian/pool/main/l/linux/" + name + ".deb":                pkg,
	}
	rest := spoil(base, "not at all")
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if b, ok := files[r.URL.Path]; ok {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
			return
		}
		rest.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return s.URL + "/debian", append(keys, own)
}

// download gives a package of a lock, from the cache if it's there.
func download(t *testing.T, shared string, p kernels.Package) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(shared, "images/packages/sha256", p.Digest.Hex))
	if err != nil {
		r, err := http.Get(p.URL)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		if b, err = io.ReadAll(r.Body); err != nil {
			t.Fatal(err)
		}
	}
	if sum(b) != p.Digest.Hex {
		t.Fatalf("%s: sha256 %s; want %s", p.Name, sum(b), p.Digest.Hex)
	}
	return b
}

// clangHeaders makes a package of the headers of a kernel that gcc built: the same for one that clang built.
func clangHeaders(t *testing.T, files io.ReadCloser, from, to string) []byte {
	t.Helper()
	defer files.Close()
	rename := func(s string) string { return strings.ReplaceAll(s, from, to) }
	var data bytes.Buffer
	w := tar.NewWriter(&data)
	changed := 0
	for r := tar.NewReader(files); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		h.Name, h.Linkname = rename(h.Name), rename(h.Linkname)
		switch base := path.Base(h.Name); {
		case base == ".config", base == "auto.conf":
			b = []byte(clangConfig(string(b), "CONFIG_%s=%s\n", "y", base == ".config"))
			changed++
		case base == "autoconf.h":
			b = []byte(clangConfig(string(b), "#define CONFIG_%s %s\n", "1", true))
			changed++
		case base == ".kernelvariables": // the release; the compiler is left to LLVM=1
			b = regexp.MustCompile(`(?m)^CC(ACHE)? = .*\n`).ReplaceAll([]byte(rename(string(b))), nil)
			changed++
		case base == "utsrelease.h", base == "kernel.release":
			b = []byte(rename(string(b)))
			changed++
		}
		h.Size = int64(len(b))
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if changed != 6 {
		t.Fatalf("%d files of the headers were changed", changed)
	}
	var out bytes.Buffer
	out.WriteString("!<arch>\n")
	for _, m := range []struct {
		name string
		data []byte
	}{{"debian-binary", []byte("2.0\n")}, {"data.tar", data.Bytes()}} {
		fmt.Fprintf(&out, "%-16s%-12d%-6d%-6d%-8o%-10d`\n", m.name, 0, 0, 0, 0o100644, len(m.data))
		out.Write(m.data)
		if len(m.data)%2 == 1 {
			out.WriteByte('\n')
		}
	}
	return out.Bytes()
}

// clangOptions are those that another compiler changes; "" takes an option away. Clang 14 has no return thunks,
// no -mharden-sls, no -mrecord-mcount, and wants to be asked twice for variables of zeros.
var clangOptions = map[string]string{
	"CC_VERSION_TEXT": `"Debian clang version 14.0.6"`, "CC_IS_CLANG": "y", "CLANG_VERSION": "140006", "CC_IS_GCC": "", "GCC_VERSION": "0",
	"LD_IS_LLD": "y", "LLD_VERSION": "140006", "LD_IS_BFD": "", "LD_VERSION": "0", "AS_IS_LLVM": "y", "AS_VERSION": "140006", "AS_IS_GNU": "",
	"RETHUNK": "", "CC_HAS_RETURN_THUNK": "", "SLS": "", "CC_HAS_SLS": "", "GCC10_NO_ARRAY_BOUNDS": "", "CC_NO_ARRAY_BOUNDS": "",
	"GCC_ASM_GOTO_OUTPUT_WORKAROUND": "", "CPU_UNRET_ENTRY": "", "CPU_SRSO": "", "CC_HAS_ZERO_CALL_USED_REGS": "",
	"FTRACE_MCOUNT_USE_CC": "", "FTRACE_MCOUNT_USE_OBJTOOL": "y", "CC_HAS_AUTO_VAR_INIT_ZERO_BARE": "", "CC_HAS_AUTO_VAR_INIT_ZERO_ENABLER": "y",
	"CC_IMPLICIT_FALLTHROUGH": `"-Wimplicit-fallthrough"`,
}

// clangConfig changes a configuration of lines in a format, which has its own word for yes and may have quotes around texts.
func clangConfig(text, format, yes string, quotes bool) string {
	line := regexp.MustCompile(`(?m)^(?:#define )?CONFIG_(\w+)[= ].*\n`)
	text = line.ReplaceAllStringFunc(text, func(l string) string {
		if _, ok := clangOptions[line.FindStringSubmatch(l)[1]]; ok {
			return ""
		}
		return l
	})
	for _, name := range slices.Sorted(maps.Keys(clangOptions)) { // in one order, so that the package is the same each time
		value := clangOptions[name]
		switch {
		case value == "":
			continue
		case value == "y":
			value = yes
		case !quotes:
			value = strings.Trim(value, `"`)
		}
		text += fmt.Sprintf(format, name, value)
	}
	return text
}
