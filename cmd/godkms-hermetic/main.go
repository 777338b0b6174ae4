// Command godkms-hermetic builds DKMS modules for many kernels, hermetically.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/godkms-hermetic/godkms-hermetic/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code := cli.Main(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
