package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// dial connects, sends a byte and, where nothing else tells that it arrived, waits for an answer.
func dial(network, address string) error {
	c, err := net.DialTimeout(network, address, time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(500 * time.Millisecond))
	if _, err := c.Write([]byte("x")); err != nil {
		return err
	}
	if network == "udp" {
		_, err = c.Read(make([]byte, 1))
	}
	return err
}

// lookup asks for a name: the servers of resolv.conf, or one.
func lookup(name, server string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	r := net.Resolver{PreferGo: true}
	if server != "" {
		r.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "udp", server)
		}
	}
	_, err := r.LookupHost(ctx, name)
	if e := (*net.DNSError)(nil); errors.As(err, &e) && e.IsNotFound {
		return nil // somebody knew that it doesn't exist
	}
	return err
}

// ways are paths that may lead out: the roots and working directories of every process, and every open folder.
func ways() []string {
	found := []string{"", "/proc/self/root", "/proc/thread-self/root"}
	for _, pattern := range []string{
		"/proc/[0-9]*/root", "/proc/[0-9]*/cwd", "/proc/[0-9]*/fd/*", "/proc/[0-9]*/task/*/root", "/proc/[0-9]*/task/*/cwd", "/dev/fd/*",
	} {
		matches, _ := filepath.Glob(pattern)
		for _, m := range matches {
			found = append(found, m, m+strings.Repeat("/..", 40))
		}
	}
	for fd := range 1024 { // those that no listing shows
		found = append(found, "/proc/self/fd/"+strconv.Itoa(fd))
	}
	return found
}

// hunt looks for a text in whatever is known of processes and in a file, by whatever path leads there. It prints where it is.
func hunt(text, file string) {
	self := strconv.Itoa(os.Getpid())
	var places []string
	for _, name := range []string{"environ", "cmdline", "maps", "mountinfo", "cgroup", "status", "auxv", "stack", "fdinfo/*"} {
		for _, pattern := range []string{"/proc/[0-9]*/", "/proc/[0-9]*/task/*/"} {
			matches, _ := filepath.Glob(pattern + name)
			places = append(places, matches...)
		}
	}
	for _, way := range ways() {
		places = append(places, way+file)
		if strings.Contains(way, "/fd/") {
			places = append(places, way)
		}
	}
	for _, p := range places {
		if strings.HasPrefix(p, "/proc/"+self+"/") && strings.HasSuffix(p, "/cmdline") { // has it from the command line itself
			continue
		}
		if st, err := os.Stat(p); err != nil || !st.Mode().IsRegular() { // a pipe would be waited for
			continue
		}
		f, err := os.Open(p)
		if err != nil {
			continue
		}
		b, _ := io.ReadAll(io.LimitReader(f, 1<<20))
		f.Close()
		if bytes.Contains(b, []byte(text)) {
			fmt.Println(p)
		}
	}
	if f, err := os.Open("/proc/1/mem"); err == nil {
		fmt.Println("/proc/1/mem can be read")
		f.Close()
	}
}

// overwrite tries to change a file, and to make one beside it, by whatever path leads there. It prints what it did.
func overwrite(file string) {
	for _, way := range ways() {
		for _, try := range []struct {
			what string
			f    func(string) error
		}{
			{"opened to write", func(p string) error { return open(p, unix.O_WRONLY)() }},
			{"made beside", func(p string) error {
				err := open(p+".made", unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)()
				if err == nil {
					unix.Unlink(p + ".made")
				}
				return err
			}},
			{"changed the mode", func(p string) error {
				var st unix.Stat_t
				if err := unix.Stat(p, &st); err != nil {
					return err
				}
				return unix.Chmod(p, st.Mode&0o7777)
			}},
			{"linked", func(p string) error {
				err := unix.Link(p, "/tmp/enginetest-linked")
				if err == nil {
					unix.Unlink("/tmp/enginetest-linked")
				}
				return err
			}},
			{"changed the times", func(p string) error { return unix.UtimesNanoAt(unix.AT_FDCWD, p, nil, 0) }},
		} {
			if err := try.f(way + file); err == nil {
				fmt.Printf("%s %s%s\n", try.what, way, file)
			}
		}
	}
}
