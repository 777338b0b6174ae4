package ui

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/creack/pty"
)

const label = "debian/bookworm:6.1.0-56-amd64"

// clock makes every look at it a second later than the one before.
func clock() func() time.Time {
	t := time.Unix(0, 0)
	return func() time.Time { t = t.Add(time.Second); return t }
}

func noEnv(string) string { return "" }

// tour makes every kind of call.
func tour(b *Board) {
	one, two := b.Line(label), b.Line("debian/trixie:6.12.115+deb13-amd64")
	b.Line("debian/sid:7.0-amd64") // never begins
	one.Phase("locking")
	one.Phase("locking")
	fmt.Fprintf(one.Log(), "make: Entering\nCC [M]  hel")
	two.Phase("locking")
	one.Phase("downloading")
	one.Bytes(10, 100)
	fmt.Fprintf(one.Log(), "lo.o\n\x1b[31mred\x1b[0m\tcarriage\r\nno newline")
	b.Warn("the index is 9 days old\x1b]0;title\x07")
	b.Print("a message\nin two lines\n")
	one.End(Built, "2 modules")
	one.Phase("building")
	one.End(Failed, "twice")
	two.End(Failed, "")
	b.Fail(two.label, Failure{First: "hello.c:3:2: error: x", Tail: []string{"a", "\tb"}, Hint: "add a package\x1b[2J"}, "out/build.log")
	b.Close()
	b.Close()
	b.Warn("late")
}

func TestPlain(t *testing.T) {
	for name, c := range map[string]struct {
		o    Options
		want string
	}{
		"default": {Options{}, `
debian/bookworm:6.1.0-56-amd64  locking
debian/trixie:6.12.115+deb13-amd64  locking
debian/bookworm:6.1.0-56-amd64  downloading
warning: the index is 9 days old
a message
in two lines
debian/bookworm:6.1.0-56-amd64  built    2.0s  2 modules
debian/trixie:6.12.115+deb13-amd64  failed   2.0s
debian/trixie:6.12.115+deb13-amd64: hello.c:3:2: error: x
  the end of the log:
    a
    	b
  the whole log: out/build.log
  hint: add a package
warning: late
`},
		"quiet": {Options{Quiet: true, Verbose: true}, `
warning: the index is 9 days old
debian/trixie:6.12.115+deb13-amd64: hello.c:3:2: error: x
  the end of the log:
    a
    	b
  the whole log: out/build.log
  hint: add a package
warning: late
`},
		"verbose": {Options{Verbose: true}, `
debian/bookworm:6.1.0-56-amd64  locking
make: Entering
debian/trixie:6.12.115+deb13-amd64  locking
debian/bookworm:6.1.0-56-amd64  downloading
debian/bookworm:6.1.0-56-amd64  CC [M]  hello.o
debian/bookworm:6.1.0-56-amd64  red	carriage
warning: the index is 9 days old
a message
in two lines
debian/bookworm:6.1.0-56-amd64  no newline
debian/bookworm:6.1.0-56-amd64  built    2.0s  2 modules
debian/trixie:6.12.115+deb13-amd64  failed   2.0s
debian/trixie:6.12.115+deb13-amd64: hello.c:3:2: error: x
  the end of the log:
    a
    	b
  the whole log: out/build.log
  hint: add a package
warning: late
`},
	} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			c.o.Env = noEnv
			b := New(&out, c.o)
			b.now = clock()
			tour(b)
			if got, want := out.String(), c.want[1:]; got != want {
				t.Errorf("plain log:\n%s\nwant:\n%s", got, want)
			}
		})
	}
}

func TestNilIsSilent(t *testing.T) {
	var b *Board
	l := b.Line("x")
	l.Phase("p")
	l.Bytes(1, 2)
	fmt.Fprint(l.Log(), "log\n")
	l.End(Built, "")
	b.Warn("w")
	b.Print("p")
	b.Fail("x", Failure{}, "")
	b.Close()
}

func TestFailSaysWhyFirst(t *testing.T) {
	var out bytes.Buffer
	b := New(&out, Options{Quiet: true, Env: noEnv})
	b.Fail("k", Failure{Why: "the program flex is\nmissing\x1b[2J", First: "sh: 1: flex: not found", Tail: []string{"a"}}, "log")
	want := "k: the program flex is missing\n  sh: 1: flex: not found\n  the end of the log:\n    a\n  the whole log: log\n"
	if out.String() != want {
		t.Errorf("shown:\n%s\nwant:\n%s", &out, want)
	}
}

func TestCloseShowsAnUnfinishedLogLine(t *testing.T) {
	var out bytes.Buffer
	b := New(&out, Options{Verbose: true, Env: noEnv})
	io.WriteString(b.Line("k").Log(), "no newline")
	b.Close()
	if out.String() != "no newline\n" {
		t.Errorf("shown: %q", &out)
	}
}

func TestLongLogLineIsBroken(t *testing.T) {
	var out bytes.Buffer
	b := New(&out, Options{Verbose: true, Env: noEnv})
	l := b.Line("k")
	for range 3 * maxLogLine / 16 {
		io.WriteString(l.Log(), "0123456789abcdef")
	}
	io.WriteString(l.Log(), strings.Repeat("x", 2*maxLogLine)+"\n\nend\n")
	l.End(Built, "")
	for line := range strings.Lines(out.String()) {
		if len(line) > maxLogLine+1 {
			t.Fatalf("a line of %d bytes", len(line))
		}
	}
	if got, want := strings.ReplaceAll(out.String(), "\n", ""), 5*maxLogLine+len("end")+len("k  built"); len(got) != want {
		t.Errorf("%d bytes shown, want %d", len(got), want)
	}
	if !strings.Contains(out.String(), "\n\nend\n") {
		t.Error("the empty line is gone")
	}
}

func TestDraw(t *testing.T) {
	b := New(io.Discard, Options{Env: noEnv})
	now := time.Unix(100, 0)
	b.now = func() time.Time { return now }
	names := []string{label, "debian/bookworm-backports:6.12.115+deb12-cloud-amd64", "debian/sid:7.0-amd64"}
	for i, n := range names {
		l := b.Line(n)
		l.Phase("downloading")
		l.Bytes(int64(i)*12_345_678, 92_000_000)
	}
	now = now.Add(75 * time.Second)
	for _, c := range []struct {
		cols, rows int
		want       string
	}{
		{120, 24, `
debian/bookworm:6.1.0-56-amd64                        downloading  0 B of 92.0 MB  0%  1m15s
debian/bookworm-backports:6.12.115+deb12-cloud-amd64  downloading  12.3 MB of 92.0 MB  13%  1m15s
debian/sid:7.0-amd64                                  downloading  24.7 MB of 92.0 MB  26%  1m15s
`},
		{60, 24, `
debian/bookworm:6.1.0-56-amd64        downloading  0%  1m15s
…-backports:6.12.115+deb12-cloud-amd64  downloading  13%  1m15s
debian/sid:7.0-amd64                   downloading  26%  1m15s
`},
		{24, 24, ""},
		{20, 3, ""},
		{80, 3, `
debian/bookworm:6.1.0-56-amd64  downloading  0 B of 92.0 MB  0%  1m15s
… and 2 more
`},
	} {
		rows := b.draw(c.cols, c.rows)
		if got := strings.Join(rows, "\n") + "\n"; c.want != "" && got != c.want[1:] && c.cols != 60 {
			t.Errorf("draw(%d, %d):\n%s\nwant:\n%s", c.cols, c.rows, got, c.want[1:])
		}
		if len(rows) >= c.rows {
			t.Errorf("draw(%d, %d): %d rows", c.cols, c.rows, len(rows))
		}
		for _, r := range rows {
			if width(r) >= c.cols {
				t.Errorf("draw(%d, %d): %q takes %d columns", c.cols, c.rows, r, width(r))
			}
		}
		if c.cols == 60 && !strings.Contains(rows[1], "deb12-cloud-amd64  downloading  13%  1m15s") {
			t.Errorf("a narrow row lost its end: %q", rows[1])
		}
	}
}

// terminal runs f on a Board that writes to a pseudo-terminal, and gives every byte that arrived there.
func terminal(t *testing.T, cols, rows int, o Options, f func(b *Board, wait func(text string))) string {
	t.Helper()
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer master.Close()
	if err := pty.Setsize(master, &pty.Winsize{Cols: uint16(cols), Rows: uint16(rows)}); err != nil {
		t.Fatal(err)
	}
	var raw lockedBuffer
	done := make(chan error)
	go func() {
		_, err := io.Copy(&raw, master) // ends with EIO when the slave is closed
		done <- err
	}()
	wait := func(text string) { // until it was on the screen, however slow the machine is
		for end := time.Now().Add(20 * time.Second); !strings.Contains(raw.String(), text) && time.Now().Before(end); {
			time.Sleep(time.Millisecond)
		}
	}
	b := New(slave, o)
	b.refresh = 5 * time.Millisecond
	f(b, wait)
	b.Close()
	slave.Close()
	<-done
	return raw.String()
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// screen is what a terminal shows after these bytes, with what scrolled off its top. It knows what a frame is made of.
func screen(t *testing.T, cols, rows int, raw string) []string {
	t.Helper()
	lines, top, y, x := [][]rune{{}}, 0, 0, 0
	down := func() {
		y++
		if y == len(lines) {
			lines = append(lines, nil)
		}
		top = max(top, y-rows+1)
	}
	for i := 0; i < len(raw); {
		switch c := raw[i]; {
		case c == '\r':
			x, i = 0, i+1
		case c == '\n':
			down()
			i++
		case c == 0x1b:
			n := escape(raw[i:])
			seq := raw[i+2 : i+n]
			i += n
			switch arg := seq[:len(seq)-1]; seq[len(seq)-1] {
			case 'A':
				up, _ := strconv.Atoi(arg)
				y = max(top, y-max(up, 1))
			case 'J':
				lines = lines[:y+1]
				lines[y] = lines[y][:min(x, len(lines[y]))]
			case 'm':
			default:
				t.Fatalf("escape sequence %q", seq)
			}
		default:
			r := []rune(raw[i:min(len(raw), i+4)])[0]
			i += len(string(r))
			if x == cols {
				down()
				x = 0
			}
			for len(lines[y]) <= x {
				lines[y] = append(lines[y], ' ')
			}
			lines[y][x] = r
			x++
		}
	}
	var out []string
	for _, l := range lines {
		out = append(out, strings.TrimRight(string(l), " "))
	}
	return out
}

func TestTerminal(t *testing.T) {
	for name, env := range map[string]func(string) string{
		"color":    noEnv,
		"no color": func(k string) string { return map[string]string{"NO_COLOR": "1"}[k] },
	} {
		t.Run(name, func(t *testing.T) {
			raw := terminal(t, 100, 24, Options{Env: env}, func(b *Board, wait func(string)) {
				one, two := b.Line("one"), b.Line("two")
				two.Phase("waiting")
				one.Phase("downloading")
				one.Bytes(46, 92)
				wait("one  downloading  46 B of 92 B  50%")
				b.Warn("careful")
				one.End(Built, "here")
				two.End(Failed, "")
			})
			if !strings.Contains(raw, "one  downloading  46 B of 92 B  50%") || !strings.Contains(raw, "two  waiting") {
				t.Errorf("no live lines in %q", raw)
			}
			if i, j := strings.Index(raw, "one  downl"), strings.LastIndex(raw, "two  waiting"); i > j {
				t.Errorf("lines are not in the order of creation: %q", raw)
			}
			if got, want := strings.Contains(raw, "\x1b[3"), name == "color"; got != want {
				t.Errorf("colors: %v, want %v: %q", got, want, raw)
			}
			got := screen(t, 100, 24, raw)
			want := []string{"warning: careful", "one  built    0.0s  here", "two  failed   0.1s", ""}
			for i := range got {
				if j := strings.Index(got[i], ".") - 1; j > 0 {
					got[i] = got[i][:j] + "T" + got[i][j+4:] // however slow the machine is
				}
			}
			for i := range want {
				if j := strings.Index(want[i], ".") - 1; j > 0 {
					want[i] = want[i][:j] + "T" + want[i][j+4:]
				}
			}
			if !slices.Equal(got, want) {
				t.Errorf("screen at the end: %q\nwant %q", got, want)
			}
		})
	}
}

func TestTerminalWithMoreKernelsThanRows(t *testing.T) {
	const cols, rows, n = 40, 6, 30
	raw := terminal(t, cols, rows, Options{Verbose: true, Env: noEnv}, func(b *Board, _ func(string)) {
		var wg sync.WaitGroup
		for i := range n {
			l := b.Line(fmt.Sprintf("debian/bookworm:6.1.0-%d-cloud-amd64", 100+i))
			wg.Go(func() {
				for step := range 20 {
					l.Phase(fmt.Sprintf("phase %d", step))
					l.Bytes(int64(step), 20)
					time.Sleep(time.Duration(i%7) * time.Millisecond)
				}
				fmt.Fprintf(l.Log(), "log of %d\n", 100+i)
				l.End(Built, "")
			})
		}
		wg.Wait()
	})
	if !strings.Contains(raw, " more") {
		t.Errorf("no row says how many are not shown: %q", raw)
	}
	got := strings.Join(screen(t, cols, rows, raw), "\n")
	if strings.Contains(got, "phase") || strings.Contains(got, "more") {
		t.Errorf("live rows are left on the screen:\n%s", got)
	}
	flat := strings.NewReplacer("\n", "", " ", "").Replace(got)
	for i := range n {
		for _, want := range []string{fmt.Sprintf("logof%d", 100+i), fmt.Sprintf("6.1.0-%d-cloud-amd64built", 100+i)} {
			if c := strings.Count(flat, want); c != 1 {
				t.Errorf("%q was shown %d times:\n%s", want, c, got)
			}
		}
	}
}

// A run that is interrupted closes the Board with lines that never ended.
func TestTerminalCloseInTheMiddle(t *testing.T) {
	raw := terminal(t, 80, 24, Options{Env: noEnv}, func(b *Board, wait func(string)) {
		l := b.Line(label)
		l.Phase("building")
		wait("building")
		b.Close()
		b.Warn("interrupted")
		l.Phase("late")
		l.End(Failed, "")
	})
	got := strings.Join(screen(t, 80, 24, raw), "\n")
	if strings.Contains(got, "building") || !strings.HasPrefix(got, "warning: interrupted\n") {
		t.Errorf("screen:\n%s", got)
	}
}

func TestTerminalThatIsNone(t *testing.T) {
	for name, c := range map[string]struct {
		cols, rows int
		env        string
	}{"dumb": {80, 24, "dumb"}, "no size": {0, 0, "xterm"}, "narrow": {19, 24, "xterm"}, "low": {80, 2, "xterm"}} {
		raw := terminal(t, c.cols, c.rows, Options{Env: func(k string) string {
			return map[string]string{"TERM": c.env, "NO_COLOR": "1"}[k]
		}}, func(b *Board, _ func(string)) { b.Line("k").Phase("building") })
		if want := "k  building\r\n"; raw != want {
			t.Errorf("%s: %q, want %q", name, raw, want)
		}
	}
}

// A terminal that goes away in the middle (a closed ssh session) must not stop a build.
func TestTerminalGoesAway(t *testing.T) {
	master, slave, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer slave.Close()
	if err := pty.Setsize(master, &pty.Winsize{Cols: 80, Rows: 24}); err != nil {
		t.Fatal(err)
	}
	b := New(slave, Options{Env: noEnv, Verbose: true})
	b.refresh = time.Millisecond
	l := b.Line("k")
	l.Phase("building")
	master.Close()
	time.Sleep(20 * time.Millisecond)
	ok := make(chan bool)
	go func() {
		fmt.Fprintln(l.Log(), "log")
		b.Warn("w")
		b.Line("other").Phase("p")
		l.End(Built, "")
		b.Close()
		close(ok)
	}()
	select {
	case <-ok:
	case <-time.After(10 * time.Second):
		t.Fatal("hangs")
	}
}

func TestWriterThatFails(t *testing.T) {
	tour(New(failing{}, Options{Env: noEnv}))
	if err := PrintText(failing{}, nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("PrintText on a closed file: %v", err)
	}
	if err := PrintJSON(failing{}, nil); !errors.Is(err, os.ErrClosed) {
		t.Errorf("PrintJSON on a closed file: %v", err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, os.ErrClosed }
