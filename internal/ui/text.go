package ui

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mattn/go-runewidth"
)

// Clean makes text from a build or a server safe to show on a terminal: escape sequences are taken out; other control
// characters, invisible ones that turn the direction of text, and bytes that are not UTF-8 become U+FFFD. Tabs and line feeds
// stay.
func Clean(s string) string {
	if plain(s) {
		return s
	}
	var out strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == 0x1b:
			n = escape(s[i:])
		case r == '\t' || r == '\n':
			out.WriteRune(r)
		case r == '\r' && strings.HasPrefix(s[i:], "\r\n"):
		case r < 0x20, r >= 0x7f && r < 0xa0, invisible(r), r == utf8.RuneError:
			out.WriteRune(utf8.RuneError)
		default:
			out.WriteRune(r)
		}
		i += n
	}
	return out.String()
}

// cleanLine is Clean for text that must stay on one line.
func cleanLine(s string) string {
	return strings.ReplaceAll(strings.TrimRight(Clean(s), "\n"), "\n", " ")
}

func plain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c >= 0x7f || c < 0x20 && c != '\t' && c != '\n' {
			return false
		}
	}
	return true
}

// invisible tells line separators, zero-width characters and the marks that turn the direction of text.
func invisible(r rune) bool {
	return r == 0x061c || r >= 0x200b && r <= 0x200f || r >= 0x2028 && r <= 0x202e || r >= 0x2060 && r <= 0x206f || r == 0xfeff
}

// escape gives the length of the escape sequence that s begins with. None goes past the end of its line.
func escape(s string) int {
	if len(s) < 2 {
		return len(s)
	}
	i := 2
	switch s[1] {
	case '[': // control sequence: parameters, then one final byte
		for i < len(s) && s[i] >= 0x20 && s[i] <= 0x3f {
			i++
		}
		if i < len(s) && s[i] >= 0x40 && s[i] <= 0x7e {
			i++
		}
		return i
	case ']', 'P', 'X', '^', '_': // a string that BEL or ESC \ ends
		for ; i < len(s) && s[i] != '\n'; i++ {
			if s[i] == 0x07 {
				return i + 1
			}
			if s[i] == 0x1b {
				if strings.HasPrefix(s[i:], "\x1b\\") {
					return i + 2
				}
				return i
			}
		}
		return i
	}
	i = 1
	for i < len(s) && s[i] >= 0x20 && s[i] <= 0x2f {
		i++
	}
	if i < len(s) && s[i] >= 0x30 && s[i] <= 0x7e {
		i++
	}
	return i
}

func width(s string) int { return runewidth.StringWidth(s) }

// cut shortens s to w columns at its end, cutLeft at its beginning: the end of a kernel's name is what tells it from others.
func cut(s string, w int) string { return runewidth.Truncate(s, w, "…") }

func cutLeft(s string, w int) string {
	if over := width(s) - w; over > 0 {
		return runewidth.TruncateLeft(s, over+1, "…")
	}
	return s
}

func pad(s string, w int) string { return runewidth.FillRight(s, w) }

func progress(done, total int64, narrow bool) string {
	if done <= 0 && total <= 0 {
		return ""
	}
	if total <= 0 {
		return "  " + size(done)
	}
	percent := fmt.Sprintf("  %d%%", min(max(done, 0), total)*100/total)
	if narrow {
		return percent
	}
	return "  " + size(done) + " of " + size(total) + percent
}

// size is in decimal units, as package indexes and mirrors give it.
func size(n int64) string {
	switch {
	case n >= 1e9:
		return fmt.Sprintf("%.1f GB", float64(n)/1e9)
	case n >= 1e6:
		return fmt.Sprintf("%.1f MB", float64(n)/1e6)
	case n >= 1e3:
		return fmt.Sprintf("%.0f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%d B", n)
}

func elapsed(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", max(d, 0).Truncate(100*time.Millisecond).Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	}
	return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
}
