// Package ui shows the progress of a run on a terminal or in a plain log, and prints its results as text or JSON.
package ui

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/cwriter"
	"github.com/vbauerster/mpb/v8/decor"
)

const (
	refresh     = 120 * time.Millisecond
	maxLogLine  = 64 << 10 // bytes; a longer line of a log is broken there
	minCols     = 20       // a terminal narrower or lower than these gets the plain log
	minRows     = 3
	statusWidth = len("skipped")
)

// Options say how a Board shows things.
type Options struct {
	Quiet   bool                // nothing but warnings and failures
	Verbose bool                // stream the logs of builds; see Line.Log
	Env     func(string) string // default os.Getenv; NO_COLOR and TERM are read
}

// Board shows how far a run has come, one line per kernel. On a terminal the lines are live; elsewhere, and where TERM is
// "dumb", a line is written when a phase begins or ends. A Board and its lines are safe for concurrent use, and methods of nil
// ones do nothing.
type Board struct {
	w       io.Writer
	opt     Options
	color   bool
	size    func() (cols, rows int) // nil when there are no live lines
	now     func() time.Time
	refresh time.Duration

	out    sync.Mutex // serialises what is written; taken before mu, and never by a frame
	p      *mpb.Progress
	bar    *mpb.Bar // one for all lines: mpb draws a bar that ended a few times more, beside a new one
	closed bool

	mu    sync.Mutex // guards the lines' state
	lines []*Line
	frame []string // the rows below the first one of the frame that is being drawn
}

// Line is one kernel's.
type Line struct {
	b           *Board
	label       string
	phase       string
	done, total int64
	start       time.Time // zero before the first phase
	ended       bool
	log         logWriter
}

// New makes a Board that writes to w, which is standard error. It finds out by itself whether w is a terminal.
func New(w io.Writer, o Options) *Board {
	if o.Env == nil {
		o.Env = os.Getenv
	}
	b := &Board{w: w, opt: o, now: time.Now, refresh: refresh}
	if !IsTerminal(w) || o.Env("TERM") == "dumb" {
		return b
	}
	f := w.(*os.File)
	b.color = o.Env("NO_COLOR") == ""
	size := func() (int, int) {
		cols, rows, err := cwriter.GetSize(int(f.Fd()))
		if err != nil {
			return 0, 0
		}
		return cols, rows
	}
	if cols, rows := size(); !o.Quiet && cols >= minCols && rows >= minRows {
		b.size = size
	}
	return b
}

// IsTerminal says whether what is written to w appears on a terminal.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && cwriter.IsTerminal(int(f.Fd()))
}

// Line adds a line. It is shown from its first phase on, in the order of creation.
func (b *Board) Line(label string) *Line {
	if b == nil {
		return nil
	}
	l := &Line{b: b, label: cleanLine(label)}
	l.log.l = l
	b.mu.Lock()
	defer b.mu.Unlock()
	b.lines = append(b.lines, l)
	return l
}

// Phase says what is being done now: "locking", "downloading", "building". Naming the same phase again changes nothing.
func (l *Line) Phase(name string) {
	if l == nil {
		return
	}
	b := l.b
	name = cleanLine(name)
	b.out.Lock()
	defer b.out.Unlock()
	b.mu.Lock()
	if l.ended || l.phase == name {
		b.mu.Unlock()
		return
	}
	l.phase, l.done, l.total = name, 0, 0
	if l.start.IsZero() {
		l.start = b.now()
	}
	b.mu.Unlock()
	switch {
	case b.opt.Quiet:
	case b.size == nil || b.closed:
		fmt.Fprintf(b.w, "%s  %s\n", l.label, name)
	default:
		b.live()
	}
}

// Bytes says how much of the phase is done; a total of 0 is unknown. Only a terminal shows it.
func (l *Line) Bytes(done, total int64) {
	if l == nil {
		return
	}
	l.b.mu.Lock()
	defer l.b.mu.Unlock()
	l.done, l.total = done, total
}

// End stops the line. What it says stays on the screen: the status, the time it took, and a detail that may be empty. Later
// calls of the line's methods do nothing.
func (l *Line) End(s Status, detail string) {
	if l == nil {
		return
	}
	l.log.flush()
	b := l.b
	b.out.Lock()
	defer b.out.Unlock()
	b.mu.Lock()
	if l.ended {
		b.mu.Unlock()
		return
	}
	l.ended = true
	took, label := "", 0
	if !l.start.IsZero() {
		took = elapsed(b.now().Sub(l.start))
	}
	if b.size != nil { // on a screen they stand in a column
		for _, l := range b.lines {
			label = max(label, width(l.label))
		}
	}
	b.mu.Unlock()
	if !b.opt.Quiet {
		text := pad(l.label, label) + "  " + b.paint(s, fmt.Sprintf("%-*s", statusWidth, s))
		for _, t := range []string{took, cleanLine(detail)} {
			if t != "" {
				text += "  " + t
			}
		}
		b.write(strings.TrimRight(text, " ") + "\n")
	}
}

// Log gives the writer for the output of this kernel's build. With Options.Verbose each of its lines is shown at once, behind
// the line's label when other lines are active too; without, or when quiet, what is written is dropped. It never fails.
func (l *Line) Log() io.Writer {
	if l == nil || !l.b.opt.Verbose || l.b.opt.Quiet {
		return io.Discard
	}
	return &l.log
}

// Warn shows a warning, also when quiet.
func (b *Board) Warn(msg string) {
	if b == nil {
		return
	}
	b.out.Lock()
	defer b.out.Unlock()
	b.write(b.tint("33", "warning:") + " " + strings.TrimRight(Clean(msg), "\n") + "\n")
}

// Print shows a message above the live lines, unless quiet.
func (b *Board) Print(msg string) {
	if b == nil || b.opt.Quiet {
		return
	}
	b.out.Lock()
	defer b.out.Unlock()
	b.write(strings.TrimRight(Clean(msg), "\n") + "\n")
}

// Fail reports a build that failed, also when quiet: why, the first error of its log, the log's end, where all of it is, and what to
// do about it. An empty reason, path or hint is left out.
func (b *Board) Fail(label string, f Failure, logPath string) {
	if b == nil {
		return
	}
	var s strings.Builder
	first := f.First
	if first == "" {
		first = "the build failed"
	}
	if f.Why != "" {
		first = cleanLine(f.Why) + "\n  " + cleanLine(first)
	} else {
		first = cleanLine(first)
	}
	fmt.Fprintf(&s, "%s %s\n", b.tint("31", cleanLine(label)+":"), first)
	if len(f.Tail) > 0 {
		fmt.Fprintf(&s, "  %s:\n", cmp.Or(f.Of, "the end of the log"))
	}
	for _, t := range f.Tail {
		fmt.Fprintf(&s, "    %s\n", cleanLine(t))
	}
	if logPath != "" {
		fmt.Fprintf(&s, "  the whole log: %s\n", cleanLine(logPath))
	}
	if f.Hint != "" {
		fmt.Fprintf(&s, "  hint: %s\n", cleanLine(f.Hint))
	}
	b.out.Lock()
	defer b.out.Unlock()
	b.write(s.String())
}

// Close takes the live lines off the terminal and flushes everything. What is shown after that is written plainly. Calling it
// twice is harmless.
func (b *Board) Close() {
	if b == nil {
		return
	}
	b.mu.Lock()
	lines := b.lines
	b.mu.Unlock()
	for _, l := range lines {
		l.log.flush()
	}
	b.out.Lock()
	defer b.out.Unlock()
	if b.closed {
		return
	}
	b.closed = true
	if b.bar != nil {
		b.bar.Abort(true)
	}
	if b.p != nil {
		b.p.Wait()
	}
}

// running gives the lines that have begun and not ended; b.mu is held.
func (b *Board) running() []*Line {
	var out []*Line
	for _, l := range b.lines {
		if !l.start.IsZero() && !l.ended {
			out = append(out, l)
		}
	}
	return out
}

// write shows finished text, above the live lines if there are any; b.out is held. That the screen is gone stops no build, so
// errors are dropped.
func (b *Board) write(s string) {
	if b.p != nil && !b.closed {
		io.WriteString(b.p, s)
		return
	}
	io.WriteString(b.w, s)
}

// live makes sure that frames are drawn; b.out is held. mpb owns the cursor and the clock; the rows are ours, so that they
// stay in order and never fill the screen: at its full height a frame would scroll, and leave rows behind.
func (b *Board) live() {
	if b.p == nil {
		b.p = mpb.New(mpb.WithOutput(b.w), mpb.WithRefreshRate(b.refresh))
	}
	if b.bar != nil {
		return
	}
	first := mpb.BarFillerFunc(func(w io.Writer, _ decor.Statistics) error {
		cols, rows := b.size()
		b.mu.Lock()
		defer b.mu.Unlock()
		b.frame = b.draw(cols, rows)
		if len(b.frame) == 0 {
			return nil
		}
		_, err := io.WriteString(w, b.frame[0])
		b.frame = b.frame[1:]
		return err
	})
	rest := mpb.BarFillerFunc(func(w io.Writer, _ decor.Statistics) error {
		b.mu.Lock()
		defer b.mu.Unlock()
		for _, row := range b.frame {
			if _, err := io.WriteString(w, row+"\n"); err != nil {
				return err
			}
		}
		return nil
	})
	bar, err := b.p.Add(0, first, mpb.BarFillerTrim(), mpb.BarExtender(rest, false))
	if err == nil { // else the terminal is gone
		b.bar = bar
	}
}

// draw gives the rows of a frame, each shorter than cols, fewer than rows; b.mu is held.
func (b *Board) draw(cols, rows int) []string {
	lines := b.running()
	hidden := 0
	if most := max(rows-1, 1); len(lines) > most {
		hidden = len(lines) - (most - 1)
		lines = lines[:most-1]
	}
	label := 0
	for _, l := range lines {
		label = max(label, width(l.label))
	}
	now := b.now()
	var out []string
	for _, l := range lines {
		tail := "  " + l.phase + progress(l.done, l.total, cols < 72) + "  " + elapsed(now.Sub(l.start))
		room := min(label, max(cols-1-width(tail), 8))
		out = append(out, cut(pad(cutLeft(l.label, room), room)+tail, cols-1))
	}
	if hidden > 0 {
		out = append(out, cut(fmt.Sprintf("… and %d more", hidden), cols-1))
	}
	return out
}

func (b *Board) paint(s Status, text string) string {
	switch s {
	case Built, Cached, Pushed, Pulled:
		return b.tint("32", text)
	case Skipped:
		return b.tint("33", text)
	case Failed:
		return b.tint("31", text)
	}
	return text
}

func (b *Board) tint(code, text string) string {
	if !b.color {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// logWriter cuts a stream into lines.
type logWriter struct {
	l   *Line
	mu  sync.Mutex // taken before Board.out
	buf []byte     // an unfinished line
}

func (w *logWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := len(p)
	var out strings.Builder
	for len(p) > 0 {
		i := bytes.IndexByte(p, '\n')
		if i < 0 && len(w.buf)+len(p) < maxLogLine {
			w.buf = append(w.buf, p...)
			break
		}
		end := i
		if room := maxLogLine - len(w.buf); i < 0 || i > room {
			end, i = room, room-1
		}
		w.buf = append(w.buf, p[:end]...)
		w.line(&out)
		p = p[i+1:]
	}
	w.show(out.String())
	return n, nil
}

func (w *logWriter) flush() {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.buf) > 0 {
		var out strings.Builder
		w.line(&out)
		w.show(out.String())
	}
}

func (w *logWriter) line(out *strings.Builder) {
	b := w.l.b
	b.mu.Lock()
	many := len(b.running()) > 1
	b.mu.Unlock()
	if many {
		out.WriteString(w.l.label + "  ")
	}
	out.WriteString(cleanLine(string(bytes.TrimSuffix(w.buf, []byte("\r")))))
	out.WriteByte('\n')
	w.buf = w.buf[:0]
}

func (w *logWriter) show(s string) {
	if s == "" {
		return
	}
	b := w.l.b
	b.out.Lock()
	defer b.out.Unlock()
	b.write(s)
}
