// Command godkms-hermetic builds DKMS modules for many kernels, hermetically.
package main

import (
	"os"

	"github.com/godkms-hermetic/godkms-hermetic/internal/cli"
)

func main() {
	ctx, stop := cli.Interruptible()
	code := cli.Main(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
