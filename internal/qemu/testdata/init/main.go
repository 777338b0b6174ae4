// Command init is the first process of the machines of tests. Its arguments: the port, what to do, and for some of that a file.
package main

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"time"
	"unsafe"
)

func main() {
	for kind, dir := range map[string]string{"devtmpfs": "/dev", "proc": "/proc"} {
		syscall.Mount(kind, dir, kind, 0, "")
	}
	port, err := os.OpenFile(os.Args[1], os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		fmt.Println("port:", err) // to the console
		end()
	}
	switch os.Args[2] {
	case "hello":
		fmt.Println("hello, console")
		fmt.Fprint(port, "hello, port")
	case "wait":
		fmt.Fprint(port, "waiting")
		time.Sleep(time.Hour)
	case "flood":
		go flood(os.Stdout)
		flood(port)
	case "load":
		f, err := os.Open(os.Args[3])
		if err == nil {
			params := []byte{0}
			if _, _, errno := syscall.Syscall(uintptr(finitModule), f.Fd(), uintptr(unsafe.Pointer(&params[0])), 0); errno != 0 {
				err = errno
			}
		}
		loaded, _ := os.ReadFile("/proc/modules")
		name, _, _ := strings.Cut(string(loaded), " ")
		fmt.Fprintf(port, "%v %s", err, name)
	}
	time.Sleep(100 * time.Millisecond) // for the port
	end()
}

func flood(f *os.File) {
	for b := make([]byte, 4096); ; {
		f.Write(b)
	}
}

func end() {
	syscall.Reboot(syscall.LINUX_REBOOT_CMD_RESTART)
	select {}
}
