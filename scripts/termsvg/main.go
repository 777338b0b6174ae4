// Termsvg runs shell commands on a terminal and draws what the terminal shows at their end as an SVG picture. It is how
// docs/terminal.svg is made:
//
//	go run ./scripts/termsvg -o docs/terminal.svg 'godkms-hermetic version'
//
// Programs are looked for in ./bin first.
package main

import (
	"bytes"
	"flag"
	"fmt"
	"html"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/creack/pty"
)

func main() {
	cols := flag.Int("cols", 120, "columns of the terminal")
	rows := flag.Int("rows", 40, "rows of the terminal")
	out := flag.String("o", "", "write the picture to this file; default standard output")
	flag.Parse()
	if err := run(*cols, *rows, *out, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "termsvg:", err)
		os.Exit(1)
	}
}

// run goes on after a command that fails: failures are worth a picture too.
func run(cols, rows int, out string, commands []string) error {
	if len(commands) == 0 {
		return fmt.Errorf("no command: usage: termsvg [-cols N] [-o FILE] COMMAND…")
	}
	s := newScreen(cols)
	for _, c := range commands {
		s.write([]byte("\x1b[1m$ " + c + "\x1b[0m\r\n"))
		cmd := exec.Command("bash", "-c", c)
		cmd.Env = append(os.Environ(), "TERM=xterm-256color", "PATH=bin:"+os.Getenv("PATH"))
		tty, err := pty.StartWithSize(cmd, &pty.Winsize{Cols: uint16(cols), Rows: uint16(rows)})
		if err != nil {
			return fmt.Errorf("run %q: %w", c, err)
		}
		var raw bytes.Buffer
		io.Copy(&raw, tty) // ends with EIO when the last process of the terminal is gone
		tty.Close()
		cmd.Wait()
		s.write(raw.Bytes())
	}
	picture := s.svg()
	if out == "" {
		_, err := os.Stdout.WriteString(picture)
		return err
	}
	return os.WriteFile(out, []byte(picture), 0o644)
}

type cell struct {
	r     rune
	style string // attributes of a tspan
}

// screen is a terminal that never forgets a row. It knows the escape sequences that progress lines are made of, and skips
// the others.
type screen struct {
	cols  int
	rows  [][]cell
	x, y  int
	bold  bool
	color int // of palette; -1 is the default
}

var palette = [16]string{
	"#484f58", "#ff7b72", "#3fb950", "#d29922", "#58a6ff", "#bc8cff", "#39c5cf", "#b1bac4",
	"#6e7681", "#ffa198", "#56d364", "#e3b341", "#79c0ff", "#d2a8ff", "#56d4dd", "#ffffff",
}

func newScreen(cols int) *screen { return &screen{cols: cols, rows: [][]cell{nil}, color: -1} }

func (s *screen) write(b []byte) {
	for len(b) > 0 {
		if n := s.sequence(b); n > 0 {
			b = b[n:]
			continue
		}
		r, n := utf8.DecodeRune(b)
		b = b[n:]
		switch {
		case r == '\r':
			s.x = 0
		case r == '\n':
			s.down()
		case r == '\t':
			s.x = min(s.x/8*8+8, s.cols-1)
		case r >= ' ':
			s.put(r)
		}
	}
}

func (s *screen) down() {
	s.y++
	if s.y == len(s.rows) {
		s.rows = append(s.rows, nil)
	}
}

func (s *screen) put(r rune) {
	if s.x == s.cols {
		s.x = 0
		s.down()
	}
	for len(s.rows[s.y]) <= s.x {
		s.rows[s.y] = append(s.rows[s.y], cell{r: ' '})
	}
	style := ""
	if s.color >= 0 {
		style += ` fill="` + palette[s.color] + `"`
	}
	if s.bold {
		style += ` font-weight="bold"`
	}
	s.rows[s.y][s.x] = cell{r, style}
	s.x++
}

// sequence obeys the control sequence that b begins with, and gives its length; 0 if there is none.
func (s *screen) sequence(b []byte) int {
	if !bytes.HasPrefix(b, []byte("\x1b[")) {
		return 0
	}
	end := 2
	for end < len(b) && b[end] < 0x40 {
		end++
	}
	if end == len(b) {
		return end
	}
	args := strings.Split(string(b[2:end]), ";")
	first, _ := strconv.Atoi(args[0])
	switch b[end] {
	case 'A':
		s.y = max(s.y-max(first, 1), 0)
	case 'J':
		s.rows = s.rows[:s.y+1]
		s.clear()
	case 'K':
		s.clear()
	case 'm':
		for _, a := range args {
			switch n, _ := strconv.Atoi(a); {
			case n == 0:
				s.bold, s.color = false, -1
			case n == 1:
				s.bold = true
			case n == 39:
				s.color = -1
			case n >= 30 && n < 38:
				s.color = n - 30
			case n >= 90 && n < 98:
				s.color = n - 90 + 8
			}
		}
	}
	return end + 1
}

// clear empties the row from the cursor on.
func (s *screen) clear() { s.rows[s.y] = s.rows[s.y][:min(s.x, len(s.rows[s.y]))] }

const (
	charWidth, lineHeight, margin = 7.8, 18, 16 // pixels, at 13px
)

func (s *screen) svg() string {
	rows := s.rows
	for len(rows) > 0 && len(rows[len(rows)-1]) == 0 {
		rows = rows[:len(rows)-1]
	}
	cols := 40
	for _, row := range rows {
		cols = max(cols, len(row))
	}
	var out strings.Builder
	w, h := int(float64(cols)*charWidth)+2*margin, len(rows)*lineHeight+2*margin
	fmt.Fprintf(&out, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %[1]d %[2]d\">\n", w, h)
	fmt.Fprintf(&out, "<rect width=\"100%%\" height=\"100%%\" rx=\"8\" fill=\"#0d1117\"/>\n")
	fmt.Fprintf(&out, "<g font-family=\"ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace\" font-size=\"13\" fill=\"#e6edf3\">\n")
	for i, row := range rows {
		fmt.Fprintf(&out, "<text x=\"%d\" y=\"%d\" xml:space=\"preserve\">", margin, margin+(i+1)*lineHeight-5)
		for len(row) > 0 {
			n := 1
			for n < len(row) && row[n].style == row[0].style {
				n++
			}
			var text strings.Builder
			for _, c := range row[:n] {
				text.WriteRune(c.r)
			}
			if row[0].style == "" {
				out.WriteString(html.EscapeString(text.String()))
			} else {
				fmt.Fprintf(&out, "<tspan%s>%s</tspan>", row[0].style, html.EscapeString(text.String()))
			}
			row = row[n:]
		}
		out.WriteString("</text>\n")
	}
	out.WriteString("</g>\n</svg>\n")
	return out.String()
}
