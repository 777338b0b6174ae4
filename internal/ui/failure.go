package ui

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
)

const (
	tailLines   = 20
	maxTailLine = 4 << 10 // bytes; the rest of a longer line is left out
)

// Failure is what the log of a failed build says. Its text is safe to show.
type Failure struct {
	First string   // the error that explains the others, "" if the log has none; one line
	Tail  []string // the last 20 lines
	Hint  string   // what to do about it, "" if that is not known; not from the log
}

// Kinds of errors, the most telling first. An error of the compiler explains the linker's and make's that come after it, and
// also one that a parallel make printed earlier.
var kinds = [...]*regexp.Regexp{
	// hello.c:10:2: error: …, x.h:3: fatal error: …, x.S:4: Error: …: gcc, clang, as
	regexp.MustCompile(`^[^\s:]+:\d+(:\d+)?: ((fatal|internal compiler) )?[eE]rror: `),
	// ERROR: modpost: "x" [y.ko] undefined!, and before Linux 5.8 without the program's name
	regexp.MustCompile(`^(ERROR: (modpost: )?"|FATAL: modpost: |ERROR: modpost: )`),
	// what the linker and the driver of the compiler say without a line number
	regexp.MustCompile(`undefined reference to |multiple definition of |^(\S*/)?(\S+-)?(ld(\.\w+)?|cc1|gcc|g?cc-\d+|clang(-\d+)?|collect2|objtool|rustc)(-\d+)?: (\S+: )*(fatal )?error: |^(\S*/)?(\S+-)?ld(\.\w+)?: .*(cannot|can't|unrecognized|not found)`),
	// patch, the shell, a program that misses a file, and what a Makefile reports by $(error)
	regexp.MustCompile(`^(Hunk #\d+ FAILED|\d+ out of \d+ hunks? )|: line \d+: .|^(\S*/)?(ba|da)?sh: \d+: |^[^\s:]+:\d+: \*\*\* |^make(\[\d+\])?: \*\*\* No rule |^[^\s:*]+: [^*]*(No such file or directory|Permission denied|not found)$`),
	// make's own last word
	regexp.MustCompile(`^make(\[\d+\])?: \*\*\* `),
	regexp.MustCompile(`(?i)\berror: |^fatal: `),
}

// ReadFailure reads the log of a failed build to its end, in little memory however long it is.
func ReadFailure(log io.Reader) (Failure, error) {
	var (
		f    Failure
		tail [tailLines]string
		n    int
		best = len(kinds)
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
		for k, re := range kinds[:best] {
			if re.MatchString(line) {
				f.First, best = strings.TrimSpace(line), k
				break
			}
		}
	}
	for i := max(0, n-tailLines); i < n; i++ {
		f.Tail = append(f.Tail, tail[i%tailLines])
	}
	return f, nil
}
