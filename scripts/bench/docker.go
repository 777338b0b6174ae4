package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// docker is a daemon of this run's own.
type docker struct {
	host string // for DOCKER_HOST
	cmd  *exec.Cmd
}

// warmDocker starts a daemon and has the tool build once, which loads the header image.
func (b *bench) warmDocker(ctx context.Context, release string) error {
	if os.Geteuid() != 0 {
		return &unavailable{"a Docker daemon needs root"}
	}
	if err := b.startDocker(ctx); err != nil {
		return &unavailable{err.Error()}
	}
	if _, err := b.uncached(ctx, []string{release}, "--engine", "docker"); err != nil {
		return &unavailable{err.Error()}
	}
	return nil
}

// startDocker starts the machine's dockerd, or Debian's package of it, unpacked and not installed: its installation would start a
// daemon of the machine. The daemon has a mount namespace of its own, so that no mount of it is left when it has ended.
func (b *bench) startDocker(ctx context.Context) error {
	if b.docker != nil { // for another row
		return nil
	}
	search := os.Getenv("PATH")
	daemon, err := exec.LookPath("dockerd")
	if err != nil {
		root := filepath.Join(b.downloads, "docker")
		daemon = filepath.Join(root, "usr/sbin/dockerd")
		search = filepath.Join(root, "usr/sbin") + ":" + filepath.Join(root, "usr/bin") + ":" + search
		if err := b.unpackDocker(ctx, root); err != nil {
			return err
		}
	}
	dir := filepath.Join(b.work, "docker")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		return err
	}
	defer log.Close()
	// The socket's path is short, whatever the work folder's: it may have 107 bytes.
	run, err := os.MkdirTemp("", "bench-docker-")
	if err != nil {
		return err
	}
	socket := filepath.Join(run, "socket")
	cmd := exec.Command(daemon, "--host", "unix://"+socket, "--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(run, "exec"),
		"--pidfile", filepath.Join(run, "pid"), "--iptables=false", "--ip6tables=false", "--bridge=none", "--oom-score-adjust=0")
	cmd.Env = append(os.Environ(), "PATH="+search)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Unshareflags: syscall.CLONE_NEWNS}
	if err := cmd.Start(); err != nil {
		os.RemoveAll(run)
		return err
	}
	b.docker = &docker{host: "unix://" + socket, cmd: cmd}
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if conn, err := net.Dial("unix", socket); err == nil {
			return conn.Close()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(deadline) || cmd.Process.Signal(syscall.Signal(0)) != nil {
			text, _ := os.ReadFile(log.Name())
			return fmt.Errorf("dockerd does not start: %s", lastLine(string(text)))
		}
	}
}

// unpackDocker downloads Debian's packages through apt, once.
func (b *bench) unpackDocker(ctx context.Context, root string) error {
	if _, err := os.Stat(root); err == nil {
		return nil
	}
	debs, partial := b.folder("debs"), b.folder("docker-root")
	if err := os.Mkdir(debs, 0o755); err != nil {
		return err
	}
	get := command(ctx, "apt-get", "download", "-q", "docker.io", "containerd", "runc", "tini")
	get.Dir = debs
	if out, err := get.CombinedOutput(); err != nil {
		return fmt.Errorf("there is no dockerd, and 'apt-get download' failed: %s", lastLine(string(out)))
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil {
		return err
	}
	for _, f := range files {
		if _, err := b.output(ctx, "dpkg-deb", "-x", f, partial); err != nil {
			return err
		}
	}
	return os.Rename(partial, root)
}

// stop ends the daemon, which ends its containers and containerd first.
func (d *docker) stop() error {
	if d == nil {
		return nil
	}
	d.cmd.Process.Signal(syscall.SIGTERM)
	kill := time.AfterFunc(grace, func() { d.cmd.Process.Kill() })
	defer kill.Stop()
	d.cmd.Wait()
	return os.RemoveAll(filepath.Dir(strings.TrimPrefix(d.host, "unix://")))
}
