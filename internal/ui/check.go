package ui

import (
	"fmt"
	"io"
	"os"
	"strings"
)

// What a check came to.
const (
	CheckOK   = "ok"
	CheckWarn = "warn" // works less well, or not always
	CheckFail = "fail"
)

// Check is one finding about this machine. Its JSON form is what --format json promises.
type Check struct {
	Name   string `json:"name"`
	Status string `json:"status"` // CheckOK, CheckWarn or CheckFail
	Detail string `json:"detail"`
	Hint   string `json:"hint"` // what to do about it; empty when it's ok
}

// PrintChecks writes a line for each check, in colours where w is a terminal that shows them. env is as in Options.
func PrintChecks(w io.Writer, checks []Check, env func(string) string) error {
	if env == nil {
		env = os.Getenv
	}
	colors := map[string]string{CheckOK: "32", CheckWarn: "33", CheckFail: "31"}
	paint := Board{color: IsTerminal(w) && env("TERM") != "dumb" && env("NO_COLOR") == ""}
	name := 0
	for _, c := range checks {
		name = max(name, width(cleanLine(c.Name)))
	}
	var out strings.Builder
	for _, c := range checks {
		fmt.Fprintf(&out, "%s  %s  %s", paint.tint(colors[c.Status], fmt.Sprintf("%-4s", c.Status)), pad(cleanLine(c.Name), name), cleanLine(c.Detail))
		if c.Hint != "" {
			out.WriteString("; " + cleanLine(c.Hint))
		}
		out.WriteByte('\n')
	}
	_, err := io.WriteString(w, out.String())
	return err
}
