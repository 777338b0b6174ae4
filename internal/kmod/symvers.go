package kmod

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// A Symbol is one that a kernel, or a module of it, exports.
type Symbol struct {
	CRC       uint32 // 0: none was computed, any matches
	Module    string // "vmlinux", "drivers/net/mii"
	Export    string // "EXPORT_SYMBOL", "EXPORT_SYMBOL_GPL", …
	Namespace string // "" for none
}

// GPLOnly says whether only modules with a GPL-compatible licence may use the symbol.
func (s Symbol) GPLOnly() bool {
	return s.Export == "EXPORT_SYMBOL_GPL" || s.Export == "EXPORT_UNUSED_SYMBOL_GPL"
}

// Symvers are exported symbols by name.
type Symvers map[string]Symbol

// Bounds of a Module.symvers. Debian's have 27,000 lines of 1.5 MB.
const (
	maxSymvers      = 16 << 20 // bytes
	maxSymversLines = 1 << 18
)

// ReadSymvers reads a Module.symvers (Documentation/kbuild/modules.rst): a line each of CRC, symbol, module, kind of export
// (absent before 2.6.18) and namespace (since 5.4, where it stood third; last since 5.6), separated by tabs.
func ReadSymvers(r io.Reader) (Symvers, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxSymvers+1))
	if err != nil {
		return nil, fmt.Errorf("read Module.symvers: %w", err)
	}
	if len(b) > maxSymvers {
		return nil, fmt.Errorf("read Module.symvers: more than %d bytes", maxSymvers)
	}
	lines := bytes.Count(b, []byte{'\n'})
	if lines > maxSymversLines {
		return nil, fmt.Errorf("read Module.symvers: more than %d lines", maxSymversLines)
	}
	out := make(Symvers, lines)
	rest := string(b)
	for n := 1; rest != ""; n++ {
		var line string
		line, rest, _ = strings.Cut(rest, "\n")
		if line == "" {
			continue
		}
		var col [6]string
		cols := 0
		for l, more := line, true; more && cols < len(col); cols++ {
			col[cols], l, more = strings.Cut(l, "\t")
		}
		crc, ok := parseCRC(col[0])
		if !ok || cols < 3 || cols > 5 || col[1] == "" {
			return nil, fmt.Errorf("read Module.symvers: line %d: %.80q is not \"CRC symbol module export namespace\"", n, line)
		}
		s := Symbol{CRC: crc, Module: col[2], Export: col[3], Namespace: col[4]}
		if cols == 5 && strings.HasPrefix(col[4], "EXPORT_") {
			s.Namespace, s.Module, s.Export = col[2], col[3], col[4]
		}
		out[col[1]] = s
	}
	return out, nil
}

func parseCRC(s string) (uint32, bool) {
	s, ok := strings.CutPrefix(s, "0x")
	if !ok {
		return 0, false
	}
	if len(s) > 8 { // 64-bit kernels before 2.6.38 printed an unsigned long
		s = strings.TrimLeft(s[:len(s)-8], "0") + s[len(s)-8:]
	}
	n, err := strconv.ParseUint(s, 16, 32)
	return uint32(n), err == nil
}

// SelectSymvers gives the lines of a Module.symvers that are about some symbols, sorted by symbol. Of several about one, it is the
// first. Lines stay as they are: their columns depend on the kernel's version.
func SelectSymvers(r io.Reader, names []string) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxSymvers+1))
	if err != nil {
		return nil, fmt.Errorf("read Module.symvers: %w", err)
	}
	if len(b) > maxSymvers {
		return nil, fmt.Errorf("read Module.symvers: more than %d bytes", maxSymvers)
	}
	lines := map[string][]byte{}
	for line := range bytes.Lines(b) {
		cols := bytes.SplitN(line, []byte("\t"), 3)
		if len(cols) == 3 && lines[string(cols[1])] == nil {
			lines[string(cols[1])] = bytes.TrimSuffix(line, []byte("\n"))
		}
	}
	var out bytes.Buffer
	for _, name := range slices.Compact(slices.Sorted(slices.Values(names))) {
		if line := lines[name]; line != nil {
			out.Write(line)
			out.WriteByte('\n')
		}
	}
	return out.Bytes(), nil
}
