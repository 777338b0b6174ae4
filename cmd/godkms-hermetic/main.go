// Command godkms-hermetic builds DKMS modules for many kernels, hermetically.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/godkms-hermetic/godkms-hermetic/builder/sandbox"
	"github.com/godkms-hermetic/godkms-hermetic/internal/cli"
)

func main() {
	if sandbox.IsInit() { // this process was started to be the first one of a sandbox
		os.Exit(sandbox.Init())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code := cli.Main(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
