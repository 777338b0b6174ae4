// Package dockertest runs a real Docker Engine for a test, beside whatever else this machine runs.
//
// The Engine has process and mount namespaces of its own, so that it, its containers and its mounts end with the test, or with
// the test's process, however that ends. It keeps its state in a temporary folder, sets up no network, and listens on a socket
// in that folder or on the loopback device.
package dockertest

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
)

// Options say how an Engine differs from the usual.
type Options struct {
	TCP  bool     // listen on a port of the loopback device, without TLS
	Hide []string // folders of this machine that are empty for the Engine
	Args []string // further ones of dockerd
}

// Daemon is an Engine that runs.
type Daemon struct {
	Host string // as DOCKER_HOST has it

	t    testing.TB
	dir  string
	args []string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	log  bytes.Buffer  // its output, once done
}

// setUp is run by a shell: a /proc for the new process namespace, hidden folders, and dockerd in the shell's place.
const setUp = `set -e
mount --make-rprivate /
mount -t proc proc /proc
while [ "$1" != -- ]; do mount -t tmpfs -o size=4k tmpfs "$1"; shift; done
shift
exec dockerd "$@"`

// Start starts an Engine and waits until it answers. Its end is the test's.
func Start(t testing.TB, o Options) *Daemon {
	t.Helper()
	if os.Geteuid() != 0 {
		need.Skip(t, "only root starts a Docker Engine")
	}
	for _, program := range []string{"dockerd", "containerd", "runc"} {
		need.Program(t, program)
	}
	dir, err := os.MkdirTemp("", "dockertest-")
	if err != nil {
		t.Fatal(err)
	}
	d := &Daemon{t: t, dir: dir, Host: "unix://" + filepath.Join(dir, "docker.sock")}
	t.Cleanup(func() {
		d.Stop()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("dockerd said:\n%s", &d.log)
		}
	})
	if o.TCP {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		d.Host = "tcp://" + l.Addr().String()
		l.Close()
	}
	d.args = append(append([]string{"-c", setUp, "sh"}, o.Hide...), "--",
		"--host", d.Host, "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"--pidfile", filepath.Join(dir, "pid"), "--config-file", filepath.Join(dir, "none.json"), "--log-level", "warn",
		"--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false",
		"--oom-score-adjust=0", // less would need a privilege
		"--shutdown-timeout=1")
	d.args = append(d.args, o.Args...)
	if err := os.WriteFile(filepath.Join(dir, "none.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.Restart()
	return d
}

// Restart starts an Engine that was stopped or killed, with the state that it had, and waits until it answers.
func (d *Daemon) Restart() {
	d.t.Helper()
	for _, name := range []string{"pid", "exec"} { // what a machine's start empties
		if err := os.RemoveAll(filepath.Join(d.dir, name)); err != nil {
			d.t.Fatal(err)
		}
	}
	d.done = make(chan struct{})
	cmd, done := exec.Command("sh", d.args...), d.done
	cmd.Stdout, cmd.Stderr = &d.log, &d.log
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL}
	d.cmd = cmd
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // Pdeathsig is about the thread
		err := cmd.Start()
		started <- err
		if err == nil {
			cmd.Wait()
		}
		close(done)
	}()
	if err := <-started; err != nil {
		d.t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); !d.answers(); time.Sleep(20 * time.Millisecond) {
		select {
		case <-d.done:
			d.t.Fatalf("dockerd has ended:\n%s", &d.log)
		default:
		}
		if time.Now().After(deadline) {
			d.t.Fatal("dockerd doesn't answer")
		}
	}
}

// answers says whether the Engine takes requests (GET /_ping of the Engine's API).
func (d *Daemon) answers() bool {
	network, address, _ := strings.Cut(d.Host, "://")
	c := http.Client{Timeout: time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, address)
		},
	}}
	r, err := c.Get("http://docker/_ping")
	if err != nil {
		return false
	}
	r.Body.Close()
	return r.StatusCode == http.StatusOK
}

// Stop ends the Engine as an administrator does, with its containers. A second call does nothing.
func (d *Daemon) Stop() {
	select {
	case <-d.done:
		return
	default:
	}
	d.cmd.Process.Signal(unix.SIGTERM)
	select {
	case <-d.done:
	case <-time.After(15 * time.Second):
		d.Kill()
	}
}

// Kill ends the Engine, its containers and all of its processes at once, as a machine does that loses power.
func (d *Daemon) Kill() {
	if err := d.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		d.t.Error(err)
	}
	<-d.done
}

// CLI runs the docker program against the Engine and returns its output.
func (d *Daemon) CLI(args ...string) string {
	d.t.Helper()
	need.Program(d.t, "docker")
	cmd := exec.Command("docker", append([]string{"--host", d.Host}, args...)...)
	cmd.Env = append(os.Environ(), "DOCKER_CONTEXT=", "DOCKER_CONFIG="+d.dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		d.t.Errorf("docker %q: %v: %s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}
