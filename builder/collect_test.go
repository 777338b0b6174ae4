package builder_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/builder/docker"
	"github.com/godkms-hermetic/godkms-hermetic/builder/enginetest"
	"github.com/godkms-hermetic/godkms-hermetic/builder/sandbox"
	"github.com/godkms-hermetic/godkms-hermetic/cache"
	"github.com/godkms-hermetic/godkms-hermetic/internal/dockertest"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

func TestMain(m *testing.M) {
	if sandbox.IsInit() {
		os.Exit(sandbox.Init())
	}
	if docker.IsInit() {
		os.Exit(docker.Init())
	}
	os.Exit(m.Run())
}

const release = "6.1.0-test"

// kernelRoot is a root that has all of a kernel's headers that the builder itself looks at, and no compiler.
func kernelRoot(t testing.TB) builder.Root {
	t.Helper()
	root := enginetest.NewRoot(t, "tar", "test", "patch", "find", "sort", "tr", "xargs", "ln", "mkfifo", "mknod", "truncate", "yes", "dd")
	dir := t.TempDir()
	modules := "lib/modules"
	if to, err := os.Readlink("/lib"); err == nil { // as in NewRoot's links
		modules = filepath.Join(to, "modules")
	}
	for name, text := range map[string]string{
		"Module.symvers":                 "0x12345678\tprintk\tvmlinux\tEXPORT_SYMBOL\t\n",
		"include/config/auto.conf":       "CONFIG_SMP=y\nCONFIG_PREEMPT=y\nCONFIG_MODULES=y\nCONFIG_MODULE_UNLOAD=y\nCONFIG_MODVERSIONS=y\n",
		"include/generated/utsrelease.h": "#define UTS_RELEASE \"" + release + "\"\n",
	} {
		write(t, filepath.Join(dir, modules, release, "build", name), text)
	}
	write(t, filepath.Join(dir, "usr/bin/gcc"), "#!/bin/sh\necho 'gcc-12 (Test 12.2.0-1) 12.2.0'\n")
	return enginetest.Folders(append(root.Layers(), dir)...)
}

func write(t testing.TB, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	mode := os.FileMode(0o644)
	if strings.HasPrefix(text, "#!") {
		mode = 0o755
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// bench builds sources on one root.
type bench struct {
	builder *builder.Builder
	temp    string
}

func newBench(t testing.TB, e builder.Engine) *bench {
	t.Helper()
	root := kernelRoot(t)
	results, err := cache.Open(t.TempDir(), cache.Options{})
	if err != nil {
		t.Fatal(err)
	}
	temp := t.TempDir()
	return &bench{temp: temp, builder: &builder.Builder{
		Results: results, Temp: temp, Timeout: 20 * time.Second,
		Engine: func(context.Context) (builder.Engine, error) { return e, nil },
		Root: func(context.Context, kernels.Lock, func(string, int64, int64)) (builder.Root, error) {
			return root, nil
		},
	}}
}

// build builds a source of one dkms.conf and a script for make and one for POST_BUILD, either of which may be "".
func (b *bench) build(t *testing.T, module, conf, script, post string) builder.Result {
	t.Helper()
	dir := t.TempDir()
	text := fmt.Sprintf("PACKAGE_NAME=%s\nPACKAGE_VERSION=1\nDEST_MODULE_LOCATION=/extra\nSTRIP=no\nMAKE=\"'sh' make.sh\"\n%s\n", module, conf)
	write(t, filepath.Join(dir, "make.sh"), "set -e\n"+script)
	if post != "" {
		text += "POST_BUILD=post.sh\n"
		write(t, filepath.Join(dir, "post.sh"), fmt.Sprintf("#!/bin/sh\nset -e\ncd /var/lib/dkms/%s/1/$kernelver/$arch/module\n%s\n", module, post))
	}
	write(t, filepath.Join(dir, "dkms.conf"), text)
	source, err := builder.OpenSource(t.Context(), dir, builder.SourceOptions{Temp: b.temp})
	if err != nil {
		t.Fatal(err)
	}
	defer source.Close()
	r := b.builder.Build(t.Context(), builder.Job{Source: source, Lock: kernels.Lock{
		Kernel:   kernels.Kernel{Distro: "debian", Suite: "bookworm", Arch: runtime.GOARCH, Release: release},
		Compiler: "gcc-12", Headers: []kernels.Package{{Name: "linux-headers-" + release, Version: "1", Digest: v1.Hash{Algorithm: "sha256", Hex: strings.Repeat("a", 64)}}},
	}}, builder.Watch{})
	left, err := os.ReadDir(b.temp)
	if err != nil || len(left) > 0 {
		t.Errorf("files are left: %v, %v", left, err)
	}
	return r
}

// What comes out of a build is not trusted. Whatever lies where the module should, whether make left it in its tree or a later
// step in dkms's folder, the build ends soon, in an error that names it; no file of this machine is read, and none is left. An engine
// has no part in what the bytes of an ordinary file are taken for: that is left out without contents.
func testOutput(t *testing.T, e builder.Engine, contents bool) {
	b := newBench(t, e)
	secret := filepath.Join(t.TempDir(), "secret")
	write(t, secret, "a secret of the host\n")
	const notRegular = "m.ko is not a regular file"
	elf := `printf '\177ELF\2\1\1\0\0\0\0\0\0\0\0\0\1\0\076\0\1\0\0\0' >m.ko`
	for _, test := range []struct {
		name, script string
		want         string // in the error
		post         string // in the error when it's done by POST_BUILD; "" is the same
	}{
		{"link to passwd", "ln -s /etc/passwd m.ko", "m.ko", notRegular},
		{"link to a file of the host", "ln -s " + secret + " m.ko", "m.ko", notRegular},
		{"link up", "ln -s ../../../../../../../../etc/shadow m.ko", "m.ko", notRegular},
		{"link to a program", "ln -s /bin/sh m.ko", notRegular, ""},
		{"link to another module", "echo x >other.ko; ln -s other.ko m.ko", notRegular, ""},
		{"link to itself", "ln -s m.ko m.ko", "m.ko", notRegular},
		{"link to a device", "ln -s /dev/zero m.ko", notRegular, ""},
		{"link into proc", "ln -s /proc/1/environ m.ko", "m.ko", notRegular},
		{"fifo", "mkfifo m.ko", notRegular, ""},
		{"socket", "enginetest-probe socket m.ko", notRegular, "m.ko"}, // tar leaves sockets out
		{"folder", "mkdir m.ko; echo x >m.ko/x", notRegular, ""},
		{"device", "mknod m.ko c 1 5", "make failed with exit code 1", "POST_BUILD"},
		{"device, nevertheless", "mknod m.ko c 1 5 || true", "did not make m.ko", "m.ko"},
		{"whiteout", "mknod m.ko c 0 0", notRegular, ""}, // the one device that everybody may make
		{"nothing", "true", "did not make m.ko", "m.ko"},
		{"giant", "truncate -s 5G m.ko", "m.ko has 5368709120 bytes", ""},
		{"large", "truncate -s 1G m.ko", "m.ko has 1073741824 bytes", ""},
		{"largest", "truncate -s 8E m.ko 2>/dev/null || truncate -s 1P m.ko || truncate -s 8T m.ko", "m.ko has ", ""},
		{"closed", "echo x >m.ko; chmod 0 m.ko", "m.ko", "m.ko: Cannot open: Permission denied"},
		{"empty", ": >m.ko", "m.ko is no kernel module", ""},
		{"text", "echo text >m.ko", "m.ko is no kernel module", ""},
		{"hard link to text", "echo text >text; ln text m.ko", "m.ko is no kernel module", ""},
		{"truncated ELF", elf, "m.ko is no kernel module", ""},
		{"script", "printf '#!/bin/sh\n' >m.ko; chmod 4777 m.ko", "m.ko is no kernel module", ""},
		{"gzip", `printf '\037\213\010' >m.ko`, "m.ko is no kernel module: it is compressed with gzip", ""},
	} {
		if !contents && strings.HasPrefix(test.want, "m.ko is no kernel module") {
			continue
		}
		for _, post := range []bool{false, true} {
			name, script, later, want := test.name, test.script, "", test.want
			if post {
				name, script, later = name+", POST_BUILD", "echo x >m.ko", "rm -f m.ko\n"+test.script
				if test.post != "" {
					want = test.post
				}
			}
			t.Run(name, func(t *testing.T) {
				begin := time.Now()
				r := b.build(t, "m", "", script, later)
				if d := time.Since(begin); d > 10*time.Second {
					t.Errorf("it took %v", d)
				}
				if r.Status != builder.Failed || r.Err == nil || !strings.Contains(r.Reason, want) {
					t.Errorf("%s, %v; want %q. The log:\n%s", r.Status, r.Err, want, r.Log)
				}
				if got := fmt.Sprint(r.Err) + string(r.Log); strings.Contains(got, "a secret of the host") || strings.Contains(got, "root:") {
					t.Errorf("a file of the host was read:\n%s", got)
				}
			})
		}
	}
}

// The same of the Module.symvers, which is collected beside the modules.
func testOutputSymvers(t *testing.T, e builder.Engine) {
	b := newBench(t, e)
	for _, test := range []struct{ name, script, post, want string }{
		// Of those that make leaves, only files are read: it's the module, which is none, that is spoken of.
		{"link", "ln -s /etc/passwd Module.symvers", "", "m.ko is no kernel module"},
		{"fifo", "mkfifo Module.symvers", "", "m.ko is no kernel module"},
		{"folder", "mkdir Module.symvers", "", "m.ko is no kernel module"},
		{"giant", "truncate -s 5G Module.symvers", "", "Module.symvers: more than 16777216 bytes"},
		{"many", "for d in a b c; do mkdir $d; truncate -s 6M $d/Module.symvers; done", "", "Module.symvers: more than 16777216 bytes"},
		{"text", "echo text >Module.symvers", "", "Module.symvers"},
		{"link later", "", "ln -sf /etc/passwd ../symvers", "symvers is not a regular file"},
		{"fifo later", "", "rm ../symvers; mkfifo ../symvers", "symvers is not a regular file"},
		{"folder later", "", "rm ../symvers; mkdir ../symvers", "symvers is not a regular file"},
		{"giant later", "", "truncate -s 5G ../symvers", "symvers has 5368709120 bytes"},
		{"large later", "", "truncate -s 17M ../symvers", "Module.symvers: more than 16777216 bytes"},
		{"gone later", "", "rm ../symvers", "symvers: Cannot stat: No such file"},
	} {
		t.Run(test.name, func(t *testing.T) {
			begin := time.Now()
			r := b.build(t, "m", "", "echo x >m.ko\n"+test.script, test.post)
			if d := time.Since(begin); d > 10*time.Second {
				t.Errorf("it took %v", d)
			}
			if r.Status != builder.Failed || !strings.Contains(r.Reason, test.want) {
				t.Errorf("%s, %v; want %q. The log:\n%s", r.Status, r.Err, test.want, r.Log)
			}
		})
	}
}

// Where dkms's folders themselves lead elsewhere, the build still sees only what it could see anyway.
func testOutputFolder(t *testing.T, e builder.Engine) {
	b := newBench(t, e)
	host := filepath.Join(t.TempDir(), "m.ko")
	write(t, host, "a module of the host")
	for name, post := range map[string]string{
		"to the host":     "cd ..; rm -r module; ln -s " + filepath.Dir(host) + " module",
		"by way of proc":  "cd ..; rm -r module; ln -s /proc/1/root" + filepath.Dir(host) + " module",
		"gone":            "cd ..; rm -r module",
		"closed":          "chmod 0 .",
		"a file":          "cd ..; rm -r module; echo x >module",
		"all of the tree": "cd /var/lib/dkms; rm -r m",
	} {
		t.Run(name, func(t *testing.T) {
			if r := b.build(t, "m", "", "echo x >m.ko", post); r.Status != builder.Failed || !strings.Contains(r.Reason, "collecting the modules: ") {
				t.Errorf("%s, %v; want that collecting failed", r.Status, r.Err)
			}
		})
	}
}

// Many modules that are each within the limit, but not all together.
func testOutputTogether(t *testing.T, e builder.Engine) {
	b := newBench(t, e)
	conf := "BUILT_MODULE_NAME=(a b c)\nDEST_MODULE_LOCATION=(/extra /extra /extra)\n"
	builder.LowerMaxOutput(t, 8<<20)
	r := b.build(t, "m", conf, "truncate -s 3M a.ko b.ko c.ko", "")
	if r.Status != builder.Failed || !strings.Contains(r.Reason, "c.ko has 3145728 bytes; all modules together may have 8388608") {
		t.Errorf("%s, %v; want that c.ko is too much", r.Status, r.Err)
	}
}

// A log of 50 MB is kept as 1 MiB, beginning and end; the build neither waits nor fails for it.
func testOutputLog(t *testing.T, e builder.Engine) {
	b := newBench(t, e)
	r := b.build(t, "m", "", "echo first; yes 'a line of some length, again and again' | head -c 50000000; echo; echo last >&2; exit 3", "")
	var exit *builder.ExitError
	if !errors.As(r.Err, &exit) || exit.Code != 3 || r.Reason != "make failed with exit code 3" {
		t.Errorf("%v; want exit code 3", r.Err)
	}
	log := string(r.Log)
	if len(log) > cache.MaxLog || len(log) < cache.MaxLog/2 || !strings.Contains(log, "\nfirst\n") || !strings.HasSuffix(log, "last\n") ||
		!strings.Contains(log, " bytes of the log were cut here …]") {
		t.Errorf("the log has %d bytes, from %.100q to %.100q", len(log), log, log[max(0, len(log)-100):])
	}
	if kept, err := os.ReadFile(r.LogPath); err != nil || string(kept) != log {
		t.Errorf("the log that was kept has %d bytes, %v; want %d", len(kept), err, len(log))
	}
	// Without a line's end, and with every byte there is.
	r = b.build(t, "m", "", "head -c 50000000 /dev/urandom; head -c 1000000 /dev/zero; exit 3", "")
	if len(r.Log) > cache.MaxLog || !errors.As(r.Err, &exit) {
		t.Errorf("a log of %d bytes, %v", len(r.Log), r.Err)
	}
}

// What a source leaves behind is collected in the same way from every engine.
func TestCollect(t *testing.T) {
	for _, engine := range []struct {
		name string
		make func(*testing.T) builder.Engine
	}{
		{"sandbox", func(*testing.T) builder.Engine { return sandbox.Engine{} }},
		{"docker", func(t *testing.T) builder.Engine {
			t.Setenv("DOCKER_HOST", dockertest.Start(t, dockertest.Options{}).Host)
			e := docker.New()
			t.Cleanup(func() { e.Close() })
			return e
		}},
	} {
		t.Run(engine.name, func(t *testing.T) {
			e := engine.make(t)
			t.Run("Output", func(t *testing.T) { testOutput(t, e, engine.name == "sandbox") })
			t.Run("OutputSymvers", func(t *testing.T) { testOutputSymvers(t, e) })
			t.Run("OutputFolder", func(t *testing.T) { testOutputFolder(t, e) })
			t.Run("OutputTogether", func(t *testing.T) { testOutputTogether(t, e) })
			t.Run("OutputLog", func(t *testing.T) { testOutputLog(t, e) })
		})
	}
}
