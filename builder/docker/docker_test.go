package docker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/builder/enginetest"
	"github.com/godkms-hermetic/godkms-hermetic/builder/sandbox"
	"github.com/godkms-hermetic/godkms-hermetic/internal/dockertest"
	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// layersVar has the layers of a test root, for a test binary that another one starts to be a tool.
const layersVar = "DOCKER_TEST_LAYERS"

// labelVar has the label of a container, for a test binary that says whether it's stale.
const labelVar = "DOCKER_TEST_LABEL"

func TestMain(m *testing.M) {
	if IsInit() {
		os.Exit(Init())
	}
	if sandbox.IsInit() {
		os.Exit(sandbox.Init())
	}
	if label := os.Getenv(labelVar); label != "" {
		fmt.Print(stale(label, true, 0))
		os.Exit(0)
	}
	if layers := os.Getenv(layersVar); layers != "" {
		if err := tool(enginetest.Folders(strings.Split(layers, "\n")...)); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// tool runs a command that prints "ready" and stays.
func tool(root builder.Root) error {
	e := New()
	defer e.Close()
	sb, err := e.Start(context.Background(), spec(root))
	if err != nil {
		return err
	}
	defer sb.Close()
	c := command("echo ready; sleep 1000 & (setsid sh -c 'trap \"\" TERM; sleep 1000; true' &); sleep 1000")
	c.Stdout = os.Stdout
	return sb.Run(context.Background(), c)
}

func spec(root builder.Root, scratch ...string) builder.Spec {
	return builder.Spec{Root: root, Kernel: kernels.Kernel{Arch: enginetest.Arch()}, Scratch: scratch}
}

func command(script string) builder.Command {
	return builder.Command{Args: []string{"sh", "-c", script}, Env: []string{"PATH=/usr/bin:/bin"}, Dir: "/"}
}

func output(t *testing.T, sb builder.Sandbox, script string) string {
	t.Helper()
	var out bytes.Buffer
	c := command(script)
	c.Stdout, c.Stderr = &out, &out
	if err := sb.Run(t.Context(), c); err != nil {
		t.Errorf("Run(%q) = %v; output %q", script, err, out.String())
	}
	return strings.TrimSpace(out.String())
}

// engine gives an engine of a Docker Engine.
func engine(t testing.TB, d *dockertest.Daemon) *Engine {
	t.Helper()
	t.Setenv(client.EnvOverrideHost, d.Host)
	e := New()
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func connect(t testing.TB, d *dockertest.Daemon) *client.Client {
	t.Helper()
	c, err := client.NewClientWithOpts(client.WithHost(d.Host), client.WithAPIVersionNegotiation())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// containers counts those of an Engine, in whatever state.
func containers(t testing.TB, c *client.Client) int {
	t.Helper()
	list, err := c.ContainerList(t.Context(), container.ListOptions{All: true})
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

func TestSuite(t *testing.T) {
	d := dockertest.Start(t, dockertest.Options{})
	enginetest.Run(t, engine(t, d), enginetest.NewRoot(t))
	c := connect(t, d)
	if n := containers(t, c); n != 0 {
		t.Errorf("%d containers are left", n)
	}
	volumes := d.CLI("volume", "ls", "-q")
	if volumes != "" {
		t.Errorf("volumes are left: %s", volumes)
	}
}

// A job that looks at all that a build may see comes to the same bytes in both engines.
func TestSameJob(t *testing.T) {
	e := engine(t, dockertest.Start(t, dockertest.Options{}))
	root := enginetest.NewRoot(t)
	want, wantSum, err := enginetest.Job(t.Context(), sandbox.Engine{}, spec(root))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(want, "== end") {
		t.Errorf("the job printed\n%s", want)
	}
	for range 2 {
		got, sum, err := enginetest.Job(t.Context(), e, spec(root))
		if err != nil {
			t.Fatal(err)
		}
		if sum != wantSum {
			wants, gots := strings.Split(want, "\n"), strings.Split(got, "\n")
			for i := range max(len(wants), len(gots)) {
				if i >= len(wants) || i >= len(gots) || wants[i] != gots[i] {
					t.Fatalf("the job differs from line %d on. Sandbox:\n%s\nDocker:\n%s", i+1, strings.Join(wants[i:min(i+6, len(wants))], "\n"), strings.Join(gots[i:min(i+6, len(gots))], "\n"))
				}
			}
		}
	}
}

// A second kernel's image sends only what the first lacks, and a second sandbox nothing.
func TestTransfer(t *testing.T) {
	d := dockertest.Start(t, dockertest.Options{})
	root := enginetest.NewRoot(t)
	// As with real images: the first layer, which kernels share, is by far the largest.
	noise := make([]byte, 32<<20)
	rand.NewChaCha8([32]byte{}).Read(noise)
	if err := os.WriteFile(filepath.Join(root.Layers()[0], "toolchain"), noise, 0o644); err != nil {
		t.Fatal(err)
	}
	kernel := func(name string) builder.Root {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "kernel"), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
		return enginetest.Folders(append(root.Layers(), dir)...)
	}
	first, second := kernel("one"), kernel("two")
	start := func(e *Engine, root builder.Root) (sent int64, name string) {
		before := e.Sent()
		sb, err := e.Start(t.Context(), spec(root))
		if err != nil {
			t.Fatal(err)
		}
		defer sb.Close()
		return e.Sent() - before, output(t, sb, "cat /kernel")
	}
	e := engine(t, d)
	whole, name := start(e, first)
	if whole < int64(len(noise)) || name != "one" {
		t.Errorf("the first kernel: sent %d bytes, is %q", whole, name)
	}
	part, name := start(e, second)
	if part == 0 || part > 64<<10 || name != "two" {
		t.Errorf("the second kernel: sent %d bytes of %d, is %q", part, whole, name)
	}
	t.Logf("sent %d bytes for the first kernel, %d for the second", whole, part)
	for _, e := range []*Engine{e, engine(t, d)} { // the second is another run of the tool
		if sent, name := start(e, first); sent != 0 || name != "one" {
			t.Errorf("the first kernel again: sent %d bytes, is %q", sent, name)
		}
	}
	// Images that an administrator removes are loaded again.
	d.CLI("image", "prune", "--all", "--force")
	if sent, name := start(engine(t, d), second); sent < int64(len(noise)) || name != "two" {
		t.Errorf("after the images were removed: sent %d bytes, is %q", sent, name)
	}
	d.CLI("image", "prune", "--all", "--force")
	if sent, name := start(e, first); sent < int64(len(noise)) || name != "one" {
		t.Errorf("after the images were removed: sent %d bytes, is %q", sent, name)
	}
}

// An image that another version of the program loaded is replaced.
func TestProgramVersion(t *testing.T) {
	d := dockertest.Start(t, dockertest.Options{})
	e := engine(t, d)
	root := enginetest.NewRoot(t)
	c, _, err := e.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	img, err := root.Image(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	p, err := newProgram()
	if err != nil {
		t.Fatal(err)
	}
	a, err := newArchive(img, digest, p)
	if err != nil {
		t.Fatal(err)
	}
	a.config = bytes.Replace(a.config, []byte(`"`+programLabel+`":"`+p.diffID.String()), []byte(`"`+programLabel+`":"sha256:older`), 1)
	a.name = repository + ":older"
	var sent int64
	if err := a.ensure(t.Context(), c, &sent); err != nil {
		t.Fatal(err)
	}
	if got := d.CLI("image", "ls", "--quiet", repository+":older"); got == "" {
		t.Fatal("the older image isn't there")
	}
	load := func() {
		sb, err := engine(t, d).Start(t.Context(), spec(root))
		if err != nil {
			t.Fatal(err)
		}
		sb.Close()
	}
	load()
	if got := d.CLI("image", "ls", "--quiet", repository+":older"); got == "" {
		t.Error("an image that another version of the program has just loaded is removed")
	}
	now, err := newArchive(img, digest, p)
	if err != nil {
		t.Fatal(err)
	}
	d.CLI("image", "rm", now.name)
	old := outdated
	outdated = 0
	defer func() { outdated = old }()
	load()
	if got := d.CLI("image", "ls", "--quiet", repository+":older"); got != "" {
		t.Errorf("the older image is still there: %s", got)
	}
	if got := strings.Count(d.CLI("image", "ls", "--quiet", repository), "\n"); got != 0 {
		t.Errorf("%d images too many", got)
	}
}

// A daemon over TCP that sees nothing of this machine's files: bind mounts are impossible.
func TestRemote(t *testing.T) {
	root := enginetest.NewRoot(t)
	hide := t.TempDir()
	// Its configuration gives every container a first process of its own.
	d := dockertest.Start(t, dockertest.Options{TCP: true, Hide: append(root.Layers(), hide), Args: []string{"--init"}})
	if !strings.HasPrefix(d.Host, "tcp://127.0.0.1:") {
		t.Fatalf("the Engine is at %s", d.Host)
	}
	sb, err := engine(t, d).Start(t.Context(), spec(root, "/job"))
	if err != nil {
		t.Fatal(err)
	}
	defer sb.Close()
	in := command("cat > /job/file && sha256sum < /job/file")
	var out bytes.Buffer
	in.Stdin, in.Stdout = io.LimitReader(rand.NewChaCha8([32]byte{1}), 8<<20), &out
	if err := sb.Run(t.Context(), in); err != nil || out.Len() < 64 {
		t.Errorf("Run() = %v, %q", err, out.String())
	}
	if got := output(t, sb, "wc -c < /job/file"); got != fmt.Sprint(8<<20) {
		t.Errorf("the file has %s bytes", got)
	}
}

// gone waits until an Engine has no container.
func gone(t *testing.T, c *client.Client, what string) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); containers(t, c) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: containers are left", what)
		}
	}
}

// When the tool is killed, in whatever phase, its container goes: at once when it runs, with the next run when it was only made.
func TestKilled(t *testing.T) {
	d := dockertest.Start(t, dockertest.Options{})
	c := connect(t, d)
	root := enginetest.NewRoot(t)
	start := func() (*exec.Cmd, *bufio.Reader) {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), client.EnvOverrideHost+"="+d.Host, layersVar+"="+strings.Join(root.Layers(), "\n"))
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd, bufio.NewReader(out)
	}
	cmd, out := start()
	if line, err := out.ReadString('\n'); line != "ready\n" {
		t.Fatalf("the tool says %q, %v", line, err)
	}
	if n := containers(t, c); n != 1 {
		t.Fatalf("%d containers; want 1", n)
	}
	cmd.Process.Kill()
	cmd.Wait()
	gone(t, c, "killed while a command ran")

	e := engine(t, d)
	for i := range 12 {
		cmd, out := start()
		time.Sleep(time.Duration(i) * 40 * time.Millisecond)
		cmd.Process.Kill()
		io.Copy(io.Discard, out)
		cmd.Wait()
		// One whose start was under way may start now, and end.
		for deadline := time.Now().Add(10 * time.Second); containers(t, c) > 0 && time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
			if err := sweep(t.Context(), c); err != nil {
				t.Fatal(err)
			}
		}
		gone(t, c, fmt.Sprintf("killed after %d ms", i*40))
	}
	sb, err := e.Start(t.Context(), spec(root))
	if err != nil {
		t.Fatal(err)
	}
	output(t, sb, "true")
	if err := sb.Close(); err != nil {
		t.Error(err)
	}
	if n := containers(t, c); n != 0 {
		t.Errorf("%d containers after Close", n)
	}
}

// Containers of dead runs are removed by the next, and no others.
func TestSweep(t *testing.T) {
	d := dockertest.Start(t, dockertest.Options{})
	c := connect(t, d)
	e := engine(t, d)
	root := enginetest.NewRoot(t)
	sb, err := e.Start(t.Context(), spec(root))
	if err != nil {
		t.Fatal(err)
	}
	defer sb.Close()
	images, err := c.ImageList(t.Context(), image.ListOptions{Filters: filters.NewArgs(filters.Arg("label", imageLabel))})
	if err != nil || len(images) != 1 {
		t.Fatalf("images: %v, %v", images, err)
	}
	dead := exec.Command("true")
	if err := dead.Start(); err != nil {
		t.Fatal(err)
	}
	deadOwner := fmt.Sprintf("%s %d %s", machine(), dead.Process.Pid, started(dead.Process.Pid))
	dead.Wait()
	made := func(label string) string {
		made, err := c.ContainerCreate(t.Context(), &container.Config{Image: images[0].ID, Entrypoint: []string{marker}, Labels: map[string]string{ownerLabel: label}}, nil, nil, nil, "")
		if err != nil {
			t.Fatal(err)
		}
		return made.ID
	}
	mine, dying := made(owner()), made(deadOwner)
	recycled := made(fmt.Sprintf("%s %d %s", machine(), os.Getpid(), "1")) // the pid is in use again
	elsewhere, garbled := made("another-boot pid:[1] 1 1"), made("")
	other := engine(t, d)
	if _, err := other.Check(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := containers(t, c); n != 6 {
		t.Errorf("%d containers after Check(), which must change nothing; want 6", n)
	}
	next, err := other.Start(t.Context(), spec(root))
	if err != nil {
		t.Fatal(err)
	}
	next.Close()
	for id, want := range map[string]bool{mine: true, dying: false, recycled: false, elsewhere: true, garbled: true, sb.(*box).id: true} {
		if _, err := c.ContainerInspect(t.Context(), id); (err == nil) != want {
			t.Errorf("container %s: %v; want it kept: %v", id, err, want)
		}
	}
	if !stale("another-boot pid:[1] 1 1", false, 2*abandoned) || stale("another-boot pid:[1] 1 1", true, 2*abandoned) {
		t.Error("a container of another machine is stale when it hasn't run for long, and only then")
	}
	output(t, sb, "true")
}

// A run of another user is alive, though /proc doesn't show it.
func TestHiddenProcesses(t *testing.T) {
	if os.Geteuid() != 0 {
		need.Skip(t, "only root mounts another /proc")
	}
	need.Program(t, "setpriv")
	exe := filepath.Join(t.TempDir(), "test")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", self, exe).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for p := exe; p != os.TempDir() && p != "/"; p = filepath.Dir(p) {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	for label, want := range map[string]string{owner(): "false", fmt.Sprintf("%s %d 1", machine(), dead.Process.Pid): "true"} {
		cmd := exec.Command("sh", "-c", `mount -t proc -o hidepid=2 proc /proc && exec setpriv --reuid 54321 --regid 54321 --clear-groups "$0"`, exe)
		cmd.Dir, cmd.Env = "/", append(os.Environ(), labelVar+"="+label)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != want {
			t.Errorf("stale(%q) = %s, %v; want %s", label, out, err, want)
		}
	}
}

// between gives the address of a server that passes requests on to an Engine. One whose path ends in suffix is handed to hook,
// and then passed on whether whoever sent it still waits or not.
func between(t *testing.T, d *dockertest.Daemon, suffix string, hook func(*http.Request)) string {
	t.Helper()
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "docker" },
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", strings.TrimPrefix(d.Host, "unix://"))
		}},
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, suffix) {
			hook(r)
			ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
			defer cancel()
			r = r.WithContext(ctx)
		}
		proxy.ServeHTTP(w, r)
	}))
	t.Cleanup(s.Close)
	return "tcp://" + s.Listener.Addr().String()
}

// Cancelled while the Engine answers, Start returns soon and leaves nothing.
func TestStartCancelled(t *testing.T) {
	d := dockertest.Start(t, dockertest.Options{})
	c := connect(t, d)
	root := enginetest.NewRoot(t)
	for _, suffix := range []string{"/containers/create", "/attach", "/start"} {
		why := errors.New("because")
		ctx, cancel := context.WithCancelCause(t.Context())
		t.Setenv(client.EnvOverrideHost, between(t, d, suffix, func(r *http.Request) {
			cancel(why)
			if suffix == "/attach" { // takes its time
				time.Sleep(3 * time.Second)
			} else {
				time.Sleep(200 * time.Millisecond)
			}
		}))
		e := New()
		begin := time.Now()
		sb, err := e.Start(ctx, spec(root))
		if !errors.Is(err, why) {
			t.Errorf("Start() cancelled at %s = %v; want %v", suffix, err, why)
		}
		if sb != nil {
			sb.Close()
		}
		t.Logf("%s: %v", suffix, time.Since(begin))
		if d := time.Since(begin); suffix == "/attach" && d > 2*time.Second+500*time.Millisecond {
			t.Errorf("Start() cancelled at %s took %v", suffix, d)
		}
		if n := containers(t, c); n != 0 {
			t.Errorf("cancelled at %s: %d containers are left", suffix, n)
			gone(t, c, suffix)
		}
		e.Close()
	}
}

// An Engine that is killed in the middle of a command is an error at once, and leaves nothing once it's back.
func TestEngineKilled(t *testing.T) {
	d := dockertest.Start(t, dockertest.Options{})
	e := engine(t, d)
	root := enginetest.NewRoot(t)
	for _, end := range []struct {
		name string
		end  func()
	}{{"killed", d.Kill}, {"stopped", d.Stop}} {
		sb, err := e.Start(t.Context(), spec(root))
		if err != nil {
			t.Fatal(err)
		}
		r, w := io.Pipe()
		c := command("echo ready; sleep 1000")
		c.Stdout = w
		result := make(chan error, 1)
		go func() { result <- sb.Run(t.Context(), c) }()
		if _, err := io.ReadFull(r, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
		end.end()
		select {
		case err := <-result:
			// One that is stopped may kill the command first.
			if exit := (*builder.ExitError)(nil); !errors.As(err, new(*builder.UnavailableError)) && (end.name == "killed" || !errors.As(err, &exit)) {
				t.Errorf("%s: Run() = %v; want an *UnavailableError", end.name, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: Run() goes on", end.name)
		}
		begin := time.Now()
		sb.Close() // can't remove anything
		if d := time.Since(begin); d > 5*time.Second {
			t.Errorf("%s: Close() took %v", end.name, d)
		}
		if _, err := New().Check(t.Context()); !errors.As(err, new(*builder.UnavailableError)) {
			t.Errorf("%s: Check() = %v; want an *UnavailableError", end.name, err)
		}
		d.Restart()
		if sb, err = e.Start(t.Context(), spec(root)); err != nil {
			t.Fatalf("%s and started again: %v", end.name, err)
		}
		output(t, sb, "true")
		if err := sb.Close(); err != nil {
			t.Error(err)
		}
		gone(t, connect(t, d), end.name)
	}
}

func TestUnavailable(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	dir := t.TempDir()
	for host, want := range map[string]string{
		"unix://" + dir + "/none.sock": "no Docker Engine answers",
		"tcp://127.0.0.1:1":            "no Docker Engine answers",
		"ssh://somebody@localhost":     "forward the socket",
		"nonsense":                     "can't be used as its address",
	} {
		t.Setenv(client.EnvOverrideHost, host)
		begin := time.Now()
		_, err := New().Check(t.Context())
		e := (*builder.UnavailableError)(nil)
		if !errors.As(err, &e) || !strings.Contains(err.Error(), want) || e.Engine != "docker" || e.Hint == "" {
			t.Errorf("Check() at %s = %v; want %q", host, err, want)
		}
		if d := time.Since(begin); d > patience+time.Second {
			t.Errorf("Check() at %s took %v", host, d)
		}
	}
}

// Contexts are found where the docker program keeps them.
func TestContexts(t *testing.T) {
	d := dockertest.Start(t, dockertest.Options{})
	config := t.TempDir()
	t.Setenv("DOCKER_CONFIG", config)
	t.Setenv(client.EnvOverrideHost, "")
	t.Setenv("DOCKER_CONTEXT", "")
	docker := func(args ...string) {
		t.Helper()
		cmd := exec.Command("docker", args...)
		cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool {
			return strings.HasPrefix(v, client.EnvOverrideHost+"=") || strings.HasPrefix(v, "DOCKER_CONTEXT=")
		})
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("docker %q: %v: %s", args, err, out)
		}
	}
	docker("context", "create", "of-the-test", "--docker", "host="+d.Host)
	docker("context", "create", "far", "--docker", "host=ssh://somebody@localhost")
	if at, err := find(); err != nil || at.host != client.DefaultDockerHost || at.context != "" {
		t.Errorf("without a context: %+v, %v", at, err)
	}
	t.Setenv("DOCKER_CONTEXT", "of-the-test")
	if info, err := New().Check(t.Context()); err != nil || info.Host != d.Host || info.Context != "of-the-test" || info.Version == "" || info.API == "" || info.Arch != enginetest.Arch() {
		t.Errorf("with DOCKER_CONTEXT: %+v, %v", info, err)
	}
	for name, want := range map[string]string{"missing": `no Docker context "missing"`, "far": "forward the socket"} {
		t.Setenv("DOCKER_CONTEXT", name)
		if _, err := New().Check(t.Context()); !errors.As(err, new(*builder.UnavailableError)) || !strings.Contains(err.Error(), want) {
			t.Errorf("with context %q: %v; want %q", name, err, want)
		}
	}
	t.Setenv("DOCKER_CONTEXT", "")
	docker("context", "use", "of-the-test")
	if info, err := New().Check(t.Context()); err != nil || info.Context != "of-the-test" {
		t.Errorf("with the context in use: %+v, %v", info, err)
	}
	t.Setenv(client.EnvOverrideHost, "unix:///nowhere")
	if at, err := find(); err != nil || at.host != "unix:///nowhere" || at.context != "" {
		t.Errorf("DOCKER_HOST comes before contexts: %+v, %v", at, err)
	}
	t.Setenv(client.EnvOverrideHost, "")
	if err := os.WriteFile(filepath.Join(config, "config.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New().Check(t.Context()); !errors.As(err, new(*builder.UnavailableError)) || !strings.Contains(err.Error(), "config.json") {
		t.Errorf("with a broken configuration: %v", err)
	}
}

// With DOCKER_TLS_VERIFY alone the keys are where docker has them, and nothing is said without them.
func TestTLS(t *testing.T) {
	said := 0
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		said++
		fmt.Fprintf(w, `{"Version":"1","ApiVersion":"1.41","Os":"linux","Arch":%q}`, enginetest.Arch())
	}))
	defer s.Close()
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	config := t.TempDir()
	t.Setenv("DOCKER_CONFIG", config)
	t.Setenv(client.EnvOverrideHost, "tcp://"+s.Listener.Addr().String())
	t.Setenv(client.EnvTLSVerify, "1")
	t.Setenv(client.EnvOverrideCertPath, "")
	if _, err := New().Check(t.Context()); err == nil || said > 0 {
		t.Errorf("without the Engine's certificate: %v, %d requests", err, said)
	}
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(config, "ca.pem"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New().Check(t.Context()); err != nil || said == 0 {
		t.Errorf("with it: %v, %d requests", err, said)
	}
}

func BenchmarkStartTrueClose(b *testing.B) {
	e := engine(b, dockertest.Start(b, dockertest.Options{}))
	root := enginetest.NewRoot(b)
	for b.Loop() {
		sb, err := e.Start(b.Context(), spec(root, "/job"))
		if err != nil {
			b.Fatal(err)
		}
		if err := sb.Run(b.Context(), command("true")); err != nil {
			b.Fatal(err)
		}
		if err := sb.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRun(b *testing.B) {
	sb, err := engine(b, dockertest.Start(b, dockertest.Options{})).Start(b.Context(), spec(enginetest.NewRoot(b)))
	if err != nil {
		b.Fatal(err)
	}
	defer sb.Close()
	for b.Loop() {
		if err := sb.Run(b.Context(), command("true")); err != nil {
			b.Fatal(err)
		}
	}
}
