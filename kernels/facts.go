package kernels

import (
	"errors"
	"io"
)

// Compiler is a compiler as a kernel's configuration names it.
type Compiler struct {
	Family  string // "gcc" or "clang"
	Version string // "12.2.0"
	Text    string // all that was said of it: "gcc-12 (Debian 12.2.0-14+deb12u1) 12.2.0"
}

// String is its family and major version, as Lock.Compiler has it: "gcc-12".
func (c Compiler) String() string { return "" }

// ParseCompiler reads CONFIG_CC_VERSION_TEXT, or LINUX_COMPILER of 4.x.
func ParseCompiler(text string) (Compiler, error) { return Compiler{}, errors.ErrUnsupported }

// Facts are what a kernel's header package says of the kernel.
type Facts struct {
	Build    string // folder of the headers, below the root: "usr/src/linux-headers-6.8.0-31-generic"; as Lock.Build
	Release  string // of include/config/kernel.release, else of include/generated/utsrelease.h
	Compiler Compiler
}

// ReadFacts reads the tar stream of a header package's payload, as far as it needs to. The compiler is, in this order: CONFIG_CC_VERSION_TEXT
// of .config or include/config/auto.conf; the comment "# Compiler:" of .config with CONFIG_GCC_VERSION (5.4 and before); LINUX_COMPILER in
// include/generated/compile.h (4.x). A package without any wraps ErrNotFound.
func ReadFacts(payload io.Reader) (Facts, error) { return Facts{}, errors.ErrUnsupported }
