package ui

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

const (
	tailLines   = 20
	maxTailLine = 4 << 10 // bytes; the rest of a longer line is left out
)

// Failure is what the log of a failed build says. Its text is safe to show.
type Failure struct {
	// Why is what First comes from, in plain English and one line, where that is one of the common causes.
	Why string
	// Missing is what the build root lacks, where that's the cause: what First names, then what else the log says is missing.
	Missing []Missing
	First   string   // the error that explains the others, "" if the log has none; one line
	Tail    []string // the last 20 lines
	Hint    string   // what to do about it, "" if that isn't known; not from the log
	Of      string   // what Tail is. Default: the end of the log
}

// Kinds of errors, the most telling first. An error of the compiler explains the linker's and make's that come after it, and
// also one that a parallel make printed earlier.
var kinds = [...]*regexp.Regexp{
	// hello.c:10:2: error: …, x.h:3: fatal error: …, x.S:4: Error: …: gcc, clang, as
	regexp.MustCompile(`^[^\s:]+:\d+(:\d+)?: ((fatal|internal compiler) )?[eE]rror: `),
	// ERROR: modpost: "x" [y.ko] undefined!, and before Linux 5.8 without the program's name
	regexp.MustCompile(`^(ERROR: (modpost: )?"|FATAL: modpost: |ERROR: modpost: )`),
	// what the linker and the driver of the compiler say without a line number
	regexp.MustCompile(`undefined reference to |multiple definition of |^error: |^(\S*/)?(\S+-)?(ld(\.\w+)?|cc1|gcc|g?cc-\d+|clang(-\d+)?|collect2|objtool|rustc)(-\d+)?: (\S+: )*(fatal )?error: |^(\S*/)?(\S+-)?(ld(\.\w+)?|as): .*(cannot|can't|unrecognized|not found)`),
	// patch, the shell, a program that misses a file, a module or the network, and what a Makefile reports by $(error)
	regexp.MustCompile(`^(Hunk #\d+ FAILED|\d+ out of \d+ hunks? )|: line \d+: .|^(\S*/)?(ba|da)?sh: \d+: |^[^\s:]+:\d+: \*\*\* |^make(\[\d+\])?: \*\*\* No rule |^[^\s:*]+: [^*]*(No such file or directory|Permission denied|not found)$` +
		`|^patch: \*\*\*\* |^can't find file to patch |^Reversed \(or previously applied\) patch |^The build ended without an error, but did not make ` +
		`|: 'No space left on device'|: No space left on device|: Disk quota exceeded|^virtual memory exhausted|^LLVM ERROR: |(?i:could not resolve host|temporary failure in name resolution|unable to resolve host|network is unreachable)` +
		`|^Package '[^']+', required by |^Package \S+ was not found in the pkg-config |^No package '[^']+' found|^Can't locate \S+\.pm in @INC|^(ModuleNotFound|Import)Error: `),
	// make's own last word
	regexp.MustCompile(`^make(\[\d+\])?: \*\*\* `),
	regexp.MustCompile(`(?i)\berror: |^fatal: `),
}

// maxFurther bounds the lines after the first error that are looked at for what else is missing: a log may be nothing but errors.
const maxFurther = 2000

// telling is how many of the kinds are never of a build that goes well.
const telling = 3

// lacks adds what is missing, unless it's known or nothing.
func (f *Failure) lacks(m Missing) {
	if m.Name != "" && len(f.Missing) < maxMissing && !slices.Contains(f.Missing, m) {
		f.Missing = append(f.Missing, m)
	}
}

// ReadFailure reads the log of a failed build to its end, in little memory however long it is.
func ReadFailure(log io.Reader) (Failure, error) {
	var (
		f       Failure
		tail    [tailLines]string
		n       int
		best    = len(kinds)
		why     explanation // of f.First
		further int         // lines after the first that was an error
	)
	br := bufio.NewReaderSize(log, maxTailLine)
	for {
		raw, err := br.ReadSlice('\n')
		if len(raw) == 0 && err != nil {
			if errors.Is(err, io.EOF) {
				break
			}
			return f, fmt.Errorf("read build log: %w", err)
		}
		line := cleanLine(strings.TrimRight(string(raw), "\r\n"))
		for errors.Is(err, bufio.ErrBufferFull) {
			_, err = br.ReadSlice('\n')
		}
		if strings.TrimSpace(line) == "" {
			continue
		}
		tail[n%tailLines] = line
		n++
		why.read(line)
		among := kinds[:]
		if best < len(kinds) {
			if further++; further > maxFurther {
				among = kinds[:best]
			}
		}
		for k, re := range among {
			if !re.MatchString(line) {
				continue
			}
			if k >= telling && noise.MatchString(line) {
				break
			}
			e := explain(line)
			f.lacks(e.missing)
			if k < best {
				f.First, best, why = strings.TrimSpace(line), k, e
			}
			break
		}
	}
	f.Why = why.why
	if why.missing.Name == "" {
		f.Missing = nil
	} else { // it goes first
		f.Missing = append([]Missing{why.missing}, slices.DeleteFunc(f.Missing, func(m Missing) bool { return m == why.missing })...)
	}
	for i := max(0, n-tailLines); i < n; i++ {
		f.Tail = append(f.Tail, tail[i%tailLines])
	}
	return f, nil
}
