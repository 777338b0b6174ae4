package dkms

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

const confName = "dkms.conf"

// Conf holds the directives of a source as they are for one kernel.
type Conf struct {
	values   map[string]map[int]element
	places   places
	said     []remark // by bash, while it read the files
	misspelt []Fault
}

type element struct {
	value string
	is    bool // of a pattern: it matches the kernel; of a patch: its file is there
	bad   bool // of a pattern: it is not a regular expression
}

const maxIndex = 1 << 12

// Parse reads what Evaluation printed on standard output, and the beginning of what it printed on standard error. Neither is
// trusted: they come from a shell that ran the dkms.conf.
func Parse(out io.Reader, stderr []byte, in Input) (Conf, error) {
	const limit = 4 << 20
	b, err := io.ReadAll(io.LimitReader(out, limit+1))
	if err != nil {
		return Conf{}, fmt.Errorf("read the evaluated dkms.conf: %w", err)
	}
	if len(b) > limit {
		return Conf{}, fmt.Errorf("the directives of dkms.conf are larger than %d bytes", limit)
	}
	fields := strings.Split(string(b), "\x00")
	if len(fields) < 2 || fields[len(fields)-2] != "END" || fields[len(fields)-1] != "" || (len(fields)-2)%4 != 0 {
		return Conf{}, fmt.Errorf("dkms.conf was not evaluated to its end")
	}
	c := Conf{values: map[string]map[int]element{}, places: findPlaces(in), said: readRemarks(stderr, in), misspelt: misspelt(confName, in.Conf)}
	for _, o := range in.Overrides {
		c.misspelt = append(c.misspelt, misspelt(o.Name, o.Text)...)
	}
	for f := range slices.Chunk(fields[:len(fields)-2], 4) {
		i, err := strconv.Atoi(f[1])
		if err != nil || i < 0 || i > maxIndex {
			file, line := c.places.of(f[0], i, f[2])
			return Conf{}, Errors{{File: file, Line: line, Text: fmt.Sprintf("%s has the index %q; indexes go from 0 to %d", f[0], f[1], maxIndex)}}
		}
		if c.values[f[0]] == nil {
			c.values[f[0]] = map[int]element{}
		}
		c.values[f[0]][i] = element{value: f[2], is: f[3] == "1", bad: f[3] == "bad"}
	}
	return c, nil
}

// get gives an element; a scalar is element 0 of its name.
func (c Conf) get(name string, i int) string { return c.values[name][i].value }

// size is the highest index in use, plus one.
func (c Conf) size(names ...string) int {
	n := 0
	for _, name := range names {
		for i := range c.values[name] {
			n = max(n, i+1)
		}
	}
	return n
}

// Name and Version are PACKAGE_NAME and PACKAGE_VERSION.
func (c Conf) Name() string    { return c.get("PACKAGE_NAME", 0) }
func (c Conf) Version() string { return c.get("PACKAGE_VERSION", 0) }

// remark is a message of bash about a line of one of the files.
type remark struct {
	Fault
	syntax bool // bash read no further
}

// readRemarks finds what bash itself says in the standard error of an evaluation: "FILE: line 3: foo: command not found". What else
// is there comes from programs, and says nothing about a line. A file that bash can't read further than some line is faulty,
// though dkms makes do with what came before that line.
func readRemarks(stderr []byte, in Input) []remark {
	const most = 10
	var said []remark
	for line := range bytes.Lines(stderr) {
		place, rest, ok := strings.Cut(strings.TrimRight(string(line), "\r\n"), ": line ")
		number, text, ok2 := strings.Cut(rest, ": ")
		n, err := strconv.Atoi(number)
		if !ok || !ok2 || err != nil || len(said) == most {
			continue
		}
		r := remark{Fault: Fault{Line: n, Text: text}}
		dir, name := place[:strings.LastIndex(place, "/")+1], place[strings.LastIndex(place, "/")+1:]
		switch {
		case strings.HasSuffix(dir, OverrideFolder+"/") && slices.ContainsFunc(in.Overrides, func(o Override) bool { return o.Name == name }),
			name == confName:
			r.File = name
			r.syntax = strings.HasPrefix(text, "syntax error") || strings.HasPrefix(text, "unexpected EOF")
		case name == ".values":
			r.File, r.Line = confName, 0
			r.Text = "a value, when it is expanded a second time as in dkms: " + text
		default:
			continue
		}
		if strings.HasPrefix(text, "`") || slices.Contains(said, r) { // the line that a syntax error is in, once more
			continue
		}
		said = append(said, r)
	}
	return said
}
