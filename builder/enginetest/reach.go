package enginetest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
)

// outside runs the probe on this machine, as whoever runs the test.
func (s suite) outside(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, s.probe(t), args...).CombinedOutput()
	if err != nil {
		t.Errorf("outside of the sandbox, %q: %v", args, err)
	}
	return strings.TrimSpace(string(out))
}

// inside runs the probe in a sandbox.
func inside(t *testing.T, sb builder.Sandbox, args ...string) string {
	t.Helper()
	return output(t, sb, append([]string{"enginetest-probe"}, args...)...)
}

// network listens on this machine in every way there is. The probe reaches each listener from outside of the sandbox, and none
// from within; and nothing arrives.
func (s suite) network(t *testing.T) {
	sb := s.shared(t)
	var arrived atomic.Int32
	check := func(what string, args ...string) {
		t.Helper()
		arrived.Store(0)
		if got := inside(t, sb, args...); got == "ok" || got == "" {
			t.Errorf("%s of the host can be reached: %q", what, got)
		}
		if n := arrived.Load(); n != 0 {
			t.Errorf("%s of the host was reached %d times", what, n)
		}
		if got := s.outside(t, args...); got != "ok" {
			t.Errorf("%s can't be reached from outside either: %s", what, got)
		}
		for range 100 {
			if arrived.Load() != 0 {
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
		t.Errorf("%s: nothing arrived from outside either", what)
	}
	listen := func(network, address string) net.Addr {
		t.Helper()
		l, err := net.Listen(network, address)
		if err != nil {
			t.Logf("not tried: %v", err)
			return nil
		}
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				arrived.Add(1)
				go func() {
					io.Copy(io.Discard, c)
					c.Close()
				}()
			}
		}()
		return l.Addr()
	}
	// packets answers each packet; where it is a question for a name, with an address.
	packets := func(network, address string) net.Addr {
		t.Helper()
		c, err := net.ListenPacket(network, address)
		if err != nil {
			t.Logf("not tried: %v", err)
			return nil
		}
		t.Cleanup(func() { c.Close() })
		go func() {
			for b := make([]byte, 1500); ; {
				n, from, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				arrived.Add(1)
				if from != nil && network != "unixgram" {
					c.WriteTo(answer(b[:n]), from)
				}
			}
		}()
		return c.LocalAddr()
	}

	addresses := []string{"127.0.0.1", "::1"}
	if all, err := net.InterfaceAddrs(); err == nil { // this machine's own, which no packet leaves it for
		for _, a := range all {
			if ip, ok := a.(*net.IPNet); ok && ip.IP.IsGlobalUnicast() {
				addresses = append(addresses, ip.IP.String())
			}
		}
	}
	for _, ip := range addresses {
		if a := listen("tcp", net.JoinHostPort(ip, "0")); a != nil {
			check("tcp "+ip, "dial", "tcp", a.String())
		}
		if a := packets("udp", net.JoinHostPort(ip, "0")); a != nil {
			check("udp "+ip, "dial", "udp", a.String())
			check("a name server at "+ip, "lookup", "enginetest.example", a.String())
		}
	}
	// Abstract sockets, and those with a path that everybody may go.
	dir, err := os.MkdirTemp("", "enginetest-sockets-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{fmt.Sprintf("@enginetest-%d-", os.Getpid()), dir + "/"} {
		for _, network := range []string{"unix", "unixpacket"} {
			if a := listen(network, name+network); a != nil {
				check(network+" "+name, "dial", network, a.String())
			}
		}
		if a := packets("unixgram", name+"unixgram"); a != nil {
			check("unixgram "+name, "dial", "unixgram", a.String())
		}
	}

	// With the name servers that a sandbox has, if any, no name is found; and it doesn't take long.
	begin := time.Now()
	if got := inside(t, sb, "lookup", "enginetest.example", ""); got == "ok" || got == "" {
		t.Errorf("a name server answers: %q", got)
	}
	if d := time.Since(begin); d > prompt {
		t.Errorf("looking up a name took %v", d)
	}
	if got := inside(t, sb, "dial", "udp", "192.0.2.1:53"); got == "ok" { // TEST-NET-1 of RFC 5737
		t.Error("a packet to elsewhere is answered")
	}
	// No interface but loopback, and those that the kernel's tunnels have in every network namespace.
	got := sh(t, sb, "cat /proc/net/dev 2>/dev/null; true")
	for line := range strings.Lines(got) {
		name, _, ok := strings.Cut(strings.TrimSpace(line), ":")
		if ok && name != "lo" && !slices.Contains([]string{"tunl0", "sit0", "ip6tnl0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6gre0"}, name) {
			t.Errorf("/proc/net/dev has %s", name)
		}
	}
}

// answer makes an answer of a DNS question (RFC 1035): the same message as a response, with one address of TEST-NET-1.
func answer(question []byte) []byte {
	if len(question) < 12 {
		return question
	}
	end := 12
	for end < len(question) && question[end] != 0 {
		end += 1 + int(question[end])
	}
	if end += 5; end > len(question) { // the last label's 0, type and class
		return question
	}
	a := bytes.Clone(question[:end])
	a[2], a[3] = 0x81, 0x80                                                 // a response, without an error
	copy(a[6:12], []byte{0, 1, 0, 0, 0, 0})                                 // one answer, nothing else
	return append(a, 0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1) // the name as above, A, IN
}

// secrets puts one text where a tool has its secrets: its environment, its arguments, an open file, and a file of its home
// folder that everybody may read. The probe finds it by each of these outside, and by none inside.
func (s suite) secrets(t *testing.T) {
	text := fmt.Sprintf("secret-%d-of-the-tool", os.Getpid())
	t.Setenv("ENGINETEST_TOKEN", text)
	home, err := os.MkdirTemp("", "enginetest-home-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(home) })
	file := filepath.Join(home, ".token")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(home, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", home)
	t.Chdir(home) // a process that keeps it would have a way to it
	held, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	// One that doesn't close on exec, as a tool's caller may have left it.
	leaked, err := syscall.Dup(int(held.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(leaked)

	sb := s.start(t, "/writable")
	if got := inside(t, sb, "hunt", text, file); got != "" {
		t.Errorf("what the tool knows is in\n%s", got)
	}
	if got := inside(t, sb, "hunt", home, file); got != "" {
		t.Errorf("the tool's home folder is named in\n%s", got)
	}
	got := s.outside(t, "hunt", text, file)
	for _, want := range []string{"/environ", "/fd/", "/proc/self/root" + file, "\n" + file} {
		if !strings.Contains("\n"+got, want) {
			t.Errorf("outside of the sandbox the probe finds nothing by way of %q; it finds\n%s", want, got)
		}
	}
	sh(t, sb, `[ "$ENGINETEST_TOKEN$HOME" = "" ]`)
}

// cache tries to change the layers by their paths on this machine, and what lies beside them.
func (s suite) cache(t *testing.T) {
	dir, err := os.MkdirTemp("", "enginetest-cache-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	open := func(path string) string { // for everybody: what keeps a command out is the sandbox
		t.Helper()
		if err := os.WriteFile(path, []byte("x"), 0o666); err != nil {
			t.Fatal(err)
		}
		for p := path; p != filepath.Dir(dir); p = filepath.Dir(p) {
			if err := os.Chmod(p, 0o777); err != nil {
				t.Fatal(err)
			}
		}
		return path
	}
	layer := filepath.Join(dir, "layer")
	if err := os.MkdirAll(filepath.Join(layer, "usr/share"), 0o777); err != nil {
		t.Fatal(err)
	}
	inLayer, beside := open(filepath.Join(layer, "usr/share/of-the-layer")), open(filepath.Join(dir, "beside"))
	fd, err := syscall.Open(dir, syscall.O_RDONLY|syscall.O_DIRECTORY, 0) // stays open on exec
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	if got := s.outside(t, "overwrite", beside); !strings.Contains(got, "opened to write "+beside) || !strings.Contains(got, "/proc/self/root"+beside) {
		t.Errorf("outside of the sandbox the probe could not write: %s", got)
	}

	s.root = Folders(append(s.root.Layers(), layer)...)
	before := snapshot(t, []string{dir})
	sb := s.start(t)
	for _, path := range []string{inLayer, beside, "/usr/share/of-the-layer"} {
		if got := inside(t, sb, "overwrite", path); got != "" {
			t.Errorf("%q can be changed:\n%s", path, got)
		}
	}
	if after := snapshot(t, []string{dir}); after != before {
		t.Errorf("the layer has changed, from\n%sto\n%s", before, after)
	}
	if got := sh(t, sb, "cat /usr/share/of-the-layer"); got != "x" {
		t.Errorf("the layer's file is %q", got)
	}
}
