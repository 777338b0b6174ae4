// Package registrytest runs real OCI registries for a test, or a command, and has the real programs that are used with them.
//
// The registries are distribution v3 and the 2.8 that Debian has. They listen on the loopback device without TLS, keep what they
// are given in a folder, and end with the process that started them, however that ends.
package registrytest

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
)

// Options say how a registry differs from the usual.
type Options struct {
	Debian bool   // the 2.8 of Debian's package docker-registry; default: distribution v3
	Auth   bool   // it asks for a user and a password, to read as well
	Dir    string // where it keeps what it is given; default: a temporary folder
}

// A Server is a registry that runs, for commands; tests have Registry. Manifests and blobs can be deleted from it.
type Server struct {
	Host           string // 127.0.0.1:PORT
	Dir            string // what it has, for tests to alter
	User, Password string // empty if it doesn't ask

	work    string   // its configuration and its logs
	port    int      // the socket that holds Host's port
	args    []string // of the program that serves
	process *process
	marks   int // requests of Requests itself
}

// Serve starts a registry and waits until it answers. Close ends it.
func Serve(o Options) (_ *Server, err error) {
	s := &Server{Dir: o.Dir, port: -1}
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	program, err := Program("registry")
	if o.Debian {
		program, err = debian()
	}
	if err != nil {
		return nil, err
	}
	if s.work, err = os.MkdirTemp("", "registrytest-"); err != nil {
		return nil, err
	}
	if s.Dir == "" {
		s.Dir = filepath.Join(s.work, "storage")
	}
	if s.port, s.Host, err = hold(); err != nil {
		return nil, fmt.Errorf("hold a port: %w", err)
	}
	config := map[string]any{
		"version": "0.1",
		"log":     map[string]any{"level": "warn"},
		"storage": map[string]any{
			"filesystem": map[string]any{"rootdirectory": s.Dir},
			"delete":     map[string]any{"enabled": true},
		},
		"http": map[string]any{"addr": s.Host, "secret": rand.Text()}, // an upload that was begun can go on after Restart
	}
	if o.Auth {
		s.User, s.Password = "tester", rand.Text()
		hash, err := bcrypt.GenerateFromPassword([]byte(s.Password), bcrypt.MinCost)
		if err != nil {
			return nil, err
		}
		path := filepath.Join(s.work, "htpasswd")
		if err := os.WriteFile(path, fmt.Appendf(nil, "%s:%s\n", s.User, hash), 0o600); err != nil {
			return nil, err
		}
		config["auth"] = map[string]any{"htpasswd": map[string]any{"realm": "test", "path": path}}
	}
	b, err := json.Marshal(config) // which is YAML too
	if err != nil {
		return nil, err
	}
	path := filepath.Join(s.work, "config.yml")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		return nil, err
	}
	s.args = []string{program, "serve", path}
	return s, s.Restart()
}

// hold gives a socket and its address. It doesn't listen, so Linux lets another one do so that asks for the port by its number,
// and gives the port to nobody who asks for any.
func hold() (socket int, host string, err error) {
	socket, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, "", err
	}
	if err := unix.SetsockoptInt(socket, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return socket, "", err
	}
	if err := unix.Bind(socket, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return socket, "", err
	}
	name, err := unix.Getsockname(socket)
	if err != nil {
		return socket, "", err
	}
	return socket, fmt.Sprintf("127.0.0.1:%d", name.(*unix.SockaddrInet4).Port), nil
}

// Restart starts the registry again, at the same address and with what it has, and waits until it answers. If it runs still it is
// killed before.
func (s *Server) Restart() error {
	if s.process != nil {
		if err := s.Kill(); err != nil {
			return err
		}
	}
	cmd := exec.Command(s.args[0], s.args[1:]...)
	cmd.Env = []string{} // REGISTRY_* and OTEL_* would be configuration
	for name, to := range map[string]*io.Writer{"access": &cmd.Stdout, "log": &cmd.Stderr} {
		f, err := os.OpenFile(filepath.Join(s.work, name), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		*to = f
	}
	p, err := start(cmd)
	if err != nil {
		return err
	}
	s.process = p
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.DialTimeout("tcp", s.Host, time.Second) // no request: Requests would have it
		if err == nil {
			return c.Close()
		}
		select {
		case <-p.done:
			return fmt.Errorf("the registry has ended: %w\n%s", p.err, s.log())
		default:
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the registry at %s: %w\n%s", s.Host, err, s.log())
		}
	}
}

// log is what the registry said.
func (s *Server) log() []byte {
	b, err := os.ReadFile(filepath.Join(s.work, "log"))
	if err != nil {
		return []byte(err.Error())
	}
	return b
}

// Kill ends the registry at once, as a crash does. A second call does nothing.
func (s *Server) Kill() error {
	err := s.process.Kill()
	<-s.process.done
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Close ends the registry and removes what it has, unless that is in a folder of Options.
func (s *Server) Close() error {
	var err error
	if s.process != nil {
		err = s.Kill()
	}
	if s.port >= 0 {
		err = errors.Join(err, unix.Close(s.port))
	}
	return errors.Join(err, os.RemoveAll(s.work))
}

// A Request is one that a registry answered.
type Request struct {
	Method, Path string // with the query, if any
	Status       int
}

func (r Request) String() string { return fmt.Sprintf("%s %s %d", r.Method, r.Path, r.Status) }

// logged is the request and the status in a line of the combined log format.
var logged = regexp.MustCompile(`"([A-Z]+) (\S+) HTTP/[0-9.]+" ([0-9]{3}) `)

// Requests lists what the registry, which must run, has answered since it was first started, in the order of the answers' ends.
func (s *Server) Requests() ([]Request, error) {
	// A request is logged when it has been answered, so its client can be here first. What came before this one is in the log
	// when this one is.
	const mark = "/v2/?mark="
	s.marks++
	last := mark + strconv.Itoa(s.marks)
	resp, err := http.Get("http://" + s.Host + last)
	if err != nil {
		return nil, err
	}
	resp.Body.Close()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		b, err := os.ReadFile(filepath.Join(s.work, "access"))
		if err != nil {
			return nil, err
		}
		var all []Request
		for _, m := range logged.FindAllStringSubmatch(string(b), -1) {
			if m[2] == last {
				return all, nil
			}
			status, err := strconv.Atoi(m[3])
			if err != nil {
				return nil, err
			}
			if !strings.HasPrefix(m[2], mark) {
				all = append(all, Request{m[1], m[2], status})
			}
		}
	}
	return nil, errors.New("the registry doesn't log its requests")
}

// A Registry is a Server whose failures are a test's.
type Registry struct {
	*Server
	t testing.TB
}

// Start starts a registry and waits until it answers. Its end is the test's.
func Start(t testing.TB, o Options) *Registry {
	t.Helper()
	if o.Debian {
		if _, err := debian(); err != nil {
			need.Skip(t, "no docker-registry of Debian's: %v", err)
		}
	} else {
		program(t, "registry")
	}
	s, err := Serve(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			said := s.log()
			t.Logf("the registry at %s said last:\n%s", s.Host, said[max(0, len(said)-4000):])
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return &Registry{s, t}
}

// Kill ends the registry at once, as a crash does. A second call does nothing.
func (r *Registry) Kill() {
	r.t.Helper()
	if err := r.Server.Kill(); err != nil {
		r.t.Fatal(err)
	}
}

// Restart starts the registry again, at the same address and with what it has, and waits until it answers. If it runs still it is
// killed before.
func (r *Registry) Restart() {
	r.t.Helper()
	if err := r.Server.Restart(); err != nil {
		r.t.Fatal(err)
	}
}

// Requests lists what the registry, which must run, has answered since Start, in the order of the answers' ends.
func (r *Registry) Requests() []Request {
	r.t.Helper()
	all, err := r.Server.Requests()
	if err != nil {
		r.t.Fatal(err)
	}
	return all
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
