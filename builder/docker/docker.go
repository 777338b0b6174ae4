// Package docker is the engine that runs builds in containers of a Docker Engine, local or remote.
//
// A sandbox is a container: no network, a read-only root that is the header image, no capability and no way to gain one, an
// ordinary user, a limit of processes, scratch folders in memory. Its first process is this same program (package guest), which
// the image has in a layer of its own, and everything goes in and out over that process's streams: nothing of this machine is
// mounted. When the tool ends, however it ends, the stream does, the first process does, and the Engine removes the container.
//
// What a command sees beside builder.Engine's contract: no socket reaches anything, as the loopback device is down; of /proc, the
// processes, and empty files where the hardware would be; an empty /sys; and /dev as Docker makes it, without terminals.
package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/docker/docker/api/types"
	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/versions"
	"github.com/docker/docker/client"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/builder/guest"
)

// Engine starts sandboxes. It's safe for concurrent use.
type Engine struct {
	connecting sync.Mutex
	client     *client.Client // once there was an answer
	info       Info

	sweeping sync.Once

	loading sync.Mutex
	loaded  map[string]string // digest of a header image -> name of the image in the Engine
	program *program
	sent    int64 // bytes of images
}

// Info is what an Engine says of itself.
type Info struct {
	Host    string // "unix:///var/run/docker.sock"
	Context string // the Docker context that names the host; empty without one
	Version string // "20.10.24"
	API     string // the version of the API that is spoken: "1.41"
	Arch    string // "amd64"
}

var _ builder.Engine = (*Engine)(nil)

// New gives the engine of DOCKER_HOST, or of the Docker context in use. It contacts nothing.
func New() *Engine { return &Engine{loaded: map[string]string{}} }

// patience is how long an Engine may take to answer for the first time.
const patience = 10 * time.Second

// Check asks the Engine who it is. The error is a *builder.UnavailableError.
func (e *Engine) Check(ctx context.Context) (Info, error) {
	_, info, err := e.connect(ctx)
	return info, err
}

func unavailable(cause, hint string, err error) error {
	return &builder.UnavailableError{Engine: "docker", Cause: cause, Hint: hint, Err: err}
}

// connect gives a client that has had an answer.
func (e *Engine) connect(ctx context.Context) (*client.Client, Info, error) {
	e.connecting.Lock()
	defer e.connecting.Unlock()
	if e.client != nil {
		return e.client, e.info, nil
	}
	at, err := find()
	if err != nil {
		return nil, Info{}, err
	}
	info := Info{Host: at.host, Context: at.context}
	c, err := at.client()
	if err != nil {
		return nil, info, unavailable(fmt.Sprintf("%q can't be used as its address", at.host), "correct DOCKER_HOST or the Docker context", err)
	}
	wait, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	v, err := c.ServerVersion(wait)
	if err == nil {
		err = static()
	}
	if err != nil {
		c.Close()
		if ctx.Err() != nil {
			return nil, info, context.Cause(ctx)
		}
		return nil, info, explain(at, err)
	}
	info.Version, info.API, info.Arch = v.Version, c.ClientVersion(), v.Arch
	if v.Os != "linux" || v.Arch != runtime.GOARCH {
		c.Close()
		return nil, info, unavailable(fmt.Sprintf("it runs on %s/%s, and this program is for linux/%s", v.Os, v.Arch, runtime.GOARCH),
			"use an Engine of the same kind, or the program that was built for it", errors.ErrUnsupported)
	}
	if versions.LessThan(v.APIVersion, oldestAPI) {
		c.Close()
		return nil, info, unavailable("its version "+v.Version+" is too old: a container of it can't have all that keeps a build apart", "use Docker Engine 20.10 or newer",
			fmt.Errorf("API %s is older than %s: %w", v.APIVersion, oldestAPI, errors.ErrUnsupported))
	}
	e.client, e.info = c, info
	return c, info, nil
}

// oldestAPI is the version that brought cgroup namespaces for containers, that of Docker Engine 20.10.
const oldestAPI = "1.41"

// explain finds the reason why an Engine doesn't answer.
func explain(at address, err error) error {
	if e := (*builder.UnavailableError)(nil); errors.As(err, &e) {
		return err
	}
	where := at.host
	if at.context != "" {
		where += " (context " + at.context + ")"
	}
	switch {
	case errors.Is(err, os.ErrPermission):
		return unavailable("its socket "+where+" is closed to this user", "join the group that owns the socket (docker, as a rule) or become root", err)
	case client.IsErrConnectionFailed(err), errors.Is(err, os.ErrNotExist):
		return unavailable("no Docker Engine answers at "+where, "install and start one, or name one with DOCKER_HOST or a Docker context", err)
	case errors.Is(err, context.DeadlineExceeded):
		return unavailable(fmt.Sprintf("%s doesn't answer within %s", where, patience), "see what it is busy with, or start it anew", err)
	}
	return unavailable("the Docker Engine at "+where+" refuses", "look at the Engine's log", err)
}

// Close lets go of the connections.
func (e *Engine) Close() error {
	e.connecting.Lock()
	defer e.connecting.Unlock()
	if e.client == nil {
		return nil
	}
	err := e.client.Close()
	e.client = nil
	return err
}

// processes is how many a sandbox may have, its first with its threads included.
const processes = 4096

// userProcesses is a limit that counts all processes of the user on the Engine's machine, whatever container they are in: it's
// there for an Engine that can't limit a container's.
const userProcesses = 1 << 15

// overhead is the memory that a container may have beside a build's: for the first process, and for the kernel's own.
const overhead = 256 << 20

// Start starts a container, and loads the root's image first where the Engine lacks it. The error is a
// *builder.UnavailableError when no Engine answers.
func (e *Engine) Start(ctx context.Context, s builder.Spec) (_ builder.Sandbox, err error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	defer func() {
		if err != nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
	}()
	tmpfs, scratch, err := mounts(s)
	if err != nil {
		return nil, err
	}
	c, info, err := e.connect(ctx)
	if err != nil {
		return nil, err
	}
	if s.Kernel.Arch != info.Arch {
		return nil, fmt.Errorf("start a container for %q: the Docker Engine is %s and runs no programs of another architecture: %w", s.Kernel.Arch, info.Arch, errors.ErrUnsupported)
	}
	e.sweeping.Do(func() { sweep(ctx, c) }) // what it can't remove now, the next run will
	image, err := e.load(ctx, c, s.Root)
	if err != nil {
		return nil, fmt.Errorf("load the header image into the Docker Engine: %w", err)
	}
	limit, noInit := int64(processes), false
	uid, gid := s.IDs()
	config := &container.Config{
		Image: image, Entrypoint: []string{marker}, WorkingDir: "/",
		User: fmt.Sprintf("%d:%d", uid, gid), Hostname: s.HostName(),
		OpenStdin: true, StdinOnce: true, AttachStdin: true, AttachStdout: true, AttachStderr: true,
		NetworkDisabled: true, Labels: map[string]string{ownerLabel: owner()},
	}
	host := &container.HostConfig{
		NetworkMode: "none", IpcMode: "none", CgroupnsMode: "private", AutoRemove: true,
		Init:           &noInit, // whatever the Engine's configuration says: the first process is this program
		ReadonlyRootfs: true, CapDrop: []string{"ALL"}, SecurityOpt: []string{"no-new-privileges"},
		MaskedPaths: masked, ReadonlyPaths: []string{}, Tmpfs: tmpfs,
		LogConfig: container.LogConfig{Type: "none"},
		Resources: container.Resources{PidsLimit: &limit},
	}
	if s.Memory > 0 {
		host.Memory = s.Memory + overhead
		host.MemorySwap = host.Memory
	}
	id, err := create(ctx, c, config, host)
	if errdefs.IsNotFound(err) && ctx.Err() == nil { // an administrator, or another run, has removed the image since
		e.forget(image)
		if config.Image, err = e.load(ctx, c, s.Root); err != nil {
			return nil, fmt.Errorf("load the header image into the Docker Engine: %w", err)
		}
		id, err = create(ctx, c, config, host)
	}
	if err != nil {
		return nil, fmt.Errorf("create a container: %w", err)
	}
	sb := &box{client: c, host: info.Host, id: id}
	defer func() {
		if err != nil {
			sb.Close()
		}
	}()
	attached, err := attach(ctx, c, sb.id)
	if err != nil {
		return nil, fmt.Errorf("attach to a container: %w", err)
	}
	sb.stream = &stream{conn: attached.Conn, r: attached.Reader}
	if err := c.ContainerStart(ctx, sb.id, container.StartOptions{}); err != nil {
		return nil, fmt.Errorf("start a container: %w", err)
	}
	if sb.Remote, err = guest.NewRemote(ctx, sb.stream, scratch, s.Memory, s.Processors); err != nil {
		return nil, fmt.Errorf("set a container up: %w%s", err, sb.stream.said())
	}
	return sb, nil
}

// create makes a container. When ctx ends meanwhile it waits for the answer all the same, for a while: one whose id isn't known
// can't be removed.
func create(ctx context.Context, c *client.Client, config *container.Config, host *container.HostConfig) (id string, err error) {
	wait, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(patience, cancel) })()
	created, err := c.ContainerCreate(wait, config, host, nil, nil, "")
	return created.ID, err
}

// attach connects to a container's streams. The client's own ends with ctx only before it's connected.
func attach(ctx context.Context, c *client.Client, id string) (types.HijackedResponse, error) {
	type result struct {
		types.HijackedResponse
		err error
	}
	done := make(chan result, 1)
	go func() {
		r, err := c.ContainerAttach(ctx, id, container.AttachOptions{Stream: true, Stdin: true, Stdout: true, Stderr: true})
		done <- result{r, err}
	}()
	select {
	case r := <-done:
		return r.HijackedResponse, r.err
	case <-ctx.Done():
		go func() {
			if r := <-done; r.err == nil {
				r.Close()
			}
		}()
		return types.HijackedResponse{}, context.Cause(ctx)
	}
}

// mounts are the scratch folders, as options of tmpfs; those within others are made by the first process. The terminals' and
// the message queues' file systems make room for empty folders.
func mounts(s builder.Spec) (tmpfs map[string]string, scratch []string, err error) {
	tmpfs = map[string]string{
		"/dev/pts": "ro,nosuid,nodev,mode=555,size=4k", "/dev/mqueue": "ro,nosuid,nodev,mode=555,size=4k",
	}
	uid, gid := s.IDs()
	scratch = []string{"/tmp"}
	for _, dir := range s.Scratch {
		clean := cleanPath(dir)
		if clean == "" || clean == "/" {
			return nil, nil, fmt.Errorf("scratch folder %q: not an absolute path below /", dir)
		}
		for _, taken := range []string{"/proc", "/dev", "/sys"} {
			if clean == taken || within(clean, taken) {
				return nil, nil, fmt.Errorf("scratch folder %q: can't be a folder of its own", dir)
			}
		}
		scratch = append(scratch, clean)
	}
	slices.Sort(scratch) // outer ones first
	scratch = slices.Compact(scratch)
	for _, dir := range scratch {
		if slices.ContainsFunc(scratch, func(outer string) bool { return within(dir, outer) }) {
			continue
		}
		mode := "755"
		if dir == "/tmp" {
			mode = "1777"
		}
		tmpfs[dir] = fmt.Sprintf("rw,exec,nosuid,nodev,mode=%s,uid=%d,gid=%d", mode, uid, gid)
		if size := guest.FolderSize(s.Memory); size > 0 {
			tmpfs[dir] += fmt.Sprintf(",size=%d", size)
		}
	}
	return tmpfs, scratch, nil
}

func within(p, dir string) bool { return strings.HasPrefix(p, dir+"/") }

// masked are the files of /proc that are about the machine and its kernel, and all of /sys. A path that doesn't exist is
// passed over.
var masked = func() []string {
	paths := []string{"/sys"}
	for name := range strings.FieldsSeq(`acpi asound buddyinfo bus cgroups cmdline config.gz consoles cpuinfo crypto device-tree devices
		diskstats dma driver dynamic_debug execdomains fb filesystems fs interrupts iomem ioports irq kallsyms kcore key-users keys
		kmsg kpagecgroup kpagecount kpageflags latency_stats loadavg locks mdstat meminfo misc modules mtd mtrr pagetypeinfo
		partitions pressure sched_debug schedstat scsi slabinfo softirqs stat swaps sys sysrq-trigger sysvipc timer_list
		timer_stats tty uptime version version_signature vmallocinfo vmstat xen zoneinfo`) {
		paths = append(paths, "/proc/"+name)
	}
	return paths
}()

// box is a container.
type box struct {
	*guest.Remote
	client *client.Client
	host   string
	id     string
	stream *stream // nil before it's attached

	ending  atomic.Bool
	closing sync.Once
	closed  error
}

// Run implements builder.Sandbox. When the container ends, or the Engine, the error is a *builder.UnavailableError.
func (s *box) Run(ctx context.Context, c builder.Command) error {
	err := s.Remote.Run(ctx, c)
	if errors.Is(err, guest.ErrEnded) && !s.ending.Load() {
		return unavailable("the container ended, or the connection to the Engine at "+s.host, "see whether it still runs, and what its log says, and try again", fmt.Errorf("%w%s", err, s.stream.said()))
	}
	return err
}

// Close implements builder.Sandbox. It returns when the container is gone.
func (s *box) Close() error {
	s.ending.Store(true)
	s.closing.Do(func() {
		if s.stream != nil {
			defer s.stream.Close()
		}
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		s.closed = remove(ctx, s.client, s.id)
	})
	return s.closed
}

// remove ends and removes a container, and waits until it's gone. One that is gone already is no error.
func remove(ctx context.Context, c *client.Client, id string) error {
	gone, failed := c.ContainerWait(ctx, id, container.WaitConditionRemoved) // the Engine may be removing it by itself
	err := c.ContainerRemove(ctx, id, container.RemoveOptions{Force: true, RemoveVolumes: true})
	if err != nil && !errdefs.IsConflict(err) && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove container %.12s: %w", id, err)
	}
	select {
	case end := <-gone:
		if end.Error != nil {
			return fmt.Errorf("remove container %.12s: %s", id, end.Error.Message)
		}
		return nil
	case err := <-failed:
		if errdefs.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("wait for the removal of container %.12s: %w", id, err)
	}
}

// stream is the connection to a container's streams, without the heads that say which one follows: stdout is passed on, and
// the end of stderr is kept. The format is in the Engine's API, at ContainerAttach.
type stream struct {
	conn interface {
		io.Writer
		io.Closer
	}
	r    io.Reader
	left int // bytes of stdout until the next head

	mu     sync.Mutex
	errors []byte
}

const keptErrors = 2 << 10

func (s *stream) Read(p []byte) (int, error) {
	for s.left == 0 {
		var head [8]byte
		if _, err := io.ReadFull(s.r, head[:]); err != nil {
			return 0, err
		}
		size := int(head[4])<<24 | int(head[5])<<16 | int(head[6])<<8 | int(head[7])
		if head[0] == 1 {
			s.left = size
			continue
		}
		text := make([]byte, min(size, keptErrors))
		if _, err := io.ReadFull(s.r, text); err != nil {
			return 0, err
		}
		if _, err := io.CopyN(io.Discard, s.r, int64(size-len(text))); err != nil {
			return 0, err
		}
		s.mu.Lock()
		s.errors = append(s.errors, text...)
		s.errors = s.errors[max(0, len(s.errors)-keptErrors):]
		s.mu.Unlock()
	}
	n, err := s.r.Read(p[:min(len(p), s.left)])
	s.left -= n
	return n, err
}

func (s *stream) Write(p []byte) (int, error) { return s.conn.Write(p) }
func (s *stream) Close() error                { return s.conn.Close() }

// said is what the first process wrote to stderr, for an error.
func (s *stream) said() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if text := strings.TrimSpace(string(s.errors)); text != "" {
		return ": " + text
	}
	return ""
}
