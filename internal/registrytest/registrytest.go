// Package registrytest runs real OCI registries for a test, and has the real programs that are used with them.
//
// The registries are distribution v3 and the 2.8 that Debian has. They listen on the loopback device without TLS, keep what they
// are given in a folder, and end with the test, or with the test's process, however that ends.
package registrytest

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"
	"golang.org/x/sys/unix"
)

// Options say how a registry differs from the usual.
type Options struct {
	Debian bool   // the 2.8 of Debian's package docker-registry; default: distribution v3
	Auth   bool   // it asks for a user and a password, to read as well
	Dir    string // where it keeps what it is given; default: a temporary folder
}

// A Registry is one that runs. Manifests and blobs can be deleted from it.
type Registry struct {
	Host           string // 127.0.0.1:PORT
	Dir            string // what it has, for tests to alter
	User, Password string // empty if it doesn't ask

	t       testing.TB
	args    []string // of the program that serves
	work    string   // its configuration and its logs
	process *process
	marks   int // requests of Requests itself
}

// Start starts a registry and waits until it answers. Its end is the test's.
func Start(t testing.TB, o Options) *Registry {
	t.Helper()
	r := &Registry{t: t, Dir: o.Dir, work: t.TempDir()}
	var program string
	if o.Debian {
		program = debian(t)
	} else {
		program = tool(t, "registry")
	}
	if r.Dir == "" {
		r.Dir = t.TempDir()
	}
	r.Host = hold(t)
	config := map[string]any{
		"version": "0.1",
		"log":     map[string]any{"level": "warn"},
		"storage": map[string]any{
			"filesystem": map[string]any{"rootdirectory": r.Dir},
			"delete":     map[string]any{"enabled": true},
		},
		"http": map[string]any{"addr": r.Host, "secret": rand.Text()}, // an upload that was begun can go on after Restart
	}
	if o.Auth {
		r.User, r.Password = "tester", rand.Text()
		hash, err := bcrypt.GenerateFromPassword([]byte(r.Password), bcrypt.MinCost)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(r.work, "htpasswd")
		if err := os.WriteFile(path, fmt.Appendf(nil, "%s:%s\n", r.User, hash), 0o600); err != nil {
			t.Fatal(err)
		}
		config["auth"] = map[string]any{"htpasswd": map[string]any{"realm": "test", "path": path}}
	}
	b, err := json.Marshal(config) // which is YAML too
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(r.work, "config.yml")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	r.args = []string{program, "serve", path}
	t.Cleanup(func() {
		if r.process != nil {
			r.Kill()
		}
		if t.Failed() {
			b, _ := os.ReadFile(filepath.Join(r.work, "log"))
			t.Logf("the registry at %s said:\n%s", r.Host, b)
		}
	})
	r.Restart()
	return r
}

// hold gives an address with a port that is a registry's until the test ends. The port belongs to a socket that doesn't listen,
// so Linux lets another one do so that asks for the port by its number, and gives it to nobody who asks for any.
func hold(t testing.TB) string {
	t.Helper()
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(s) })
	if err := unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(s, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(s)
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(name.(*unix.SockaddrInet4).Port))
}

// Restart starts a registry that was killed, at the same address and with what it had, and waits until it answers.
func (r *Registry) Restart() {
	r.t.Helper()
	cmd := exec.Command(r.args[0], r.args[1:]...)
	cmd.Env = []string{} // REGISTRY_* and OTEL_* would be configuration
	out, err := appendTo(filepath.Join(r.work, "access"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer out.Close()
	log, err := appendTo(filepath.Join(r.work, "log"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = out, log
	p, err := start(cmd)
	if err != nil {
		r.t.Fatal(err)
	}
	r.process = p
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.DialTimeout("tcp", r.Host, time.Second) // no request: Requests would have it
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-p.done:
			r.t.Fatalf("the registry has ended: %v", p.err)
		default:
		}
		if time.Now().After(deadline) {
			r.t.Fatal("the registry doesn't listen")
		}
	}
}

func appendTo(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
}

// A process ends with this one, however that ends.
type process struct {
	*os.Process
	done chan struct{} // closed when it has ended
	err  error         // of its end, once done
}

func start(cmd *exec.Cmd) (*process, error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: unix.SIGKILL}
	p := &process{done: make(chan struct{})}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // Pdeathsig is about the thread
		err := cmd.Start()
		p.Process = cmd.Process
		started <- err
		if err == nil {
			p.err = cmd.Wait()
		}
		close(p.done)
	}()
	return p, <-started
}

// Kill ends the registry at once, as a crash does. A second call does nothing.
func (r *Registry) Kill() {
	r.t.Helper()
	if err := r.process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		r.t.Error(err)
	}
	<-r.process.done
}

// A Request is one that a registry answered.
type Request struct {
	Method, Path string // with the query, if any
	Status       int
}

func (r Request) String() string { return fmt.Sprintf("%s %s %d", r.Method, r.Path, r.Status) }

// logged is the request and the status in a line of the combined log format.
var logged = regexp.MustCompile(`"([A-Z]+) (\S+) HTTP/[0-9.]+" ([0-9]{3}) `)

// Requests lists what the registry, which must run, has answered since Start, in the order of the answers' ends.
func (r *Registry) Requests() []Request {
	r.t.Helper()
	// A request is logged when it has been answered, so its client can be here first. What came before this one is in the log
	// when this one is.
	r.marks++
	mark := fmt.Sprintf("/v2/?mark=%d", r.marks)
	resp, err := http.Get("http://" + r.Host + mark)
	if err != nil {
		r.t.Fatal(err)
	}
	resp.Body.Close()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(filepath.Join(r.work, "access"))
		if err != nil {
			r.t.Fatal(err)
		}
		var all []Request
		for line := range strings.Lines(string(b)) {
			m := logged.FindStringSubmatch(line)
			if m == nil {
				continue
			}
			if m[2] == mark {
				return all
			}
			if status, err := strconv.Atoi(m[3]); err == nil && !strings.HasPrefix(m[2], "/v2/?mark=") {
				all = append(all, Request{m[1], m[2], status})
			}
		}
	}
	r.t.Fatal("the registry doesn't log its requests")
	return nil
}

// DockerConfig makes a folder for DOCKER_CONFIG, with the users and passwords of registries that ask for them.
func DockerConfig(t testing.TB, registries ...*Registry) string {
	t.Helper()
	type login struct {
		Auth string `json:"auth"`
	}
	auths := map[string]login{}
	for _, r := range registries {
		if r.User != "" {
			auths[r.Host] = login{base64.StdEncoding.EncodeToString([]byte(r.User + ":" + r.Password))}
		}
	}
	b, err := json.Marshal(map[string]any{"auths": auths})
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}
