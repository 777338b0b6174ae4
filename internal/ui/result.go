package ui

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"path/filepath"
	"strings"

	"github.com/godkms-hermetic/godkms-hermetic/internal/trial"
)

// Status is how the work for one kernel ended.
type Status string

const (
	Built     Status = "built"
	Cached    Status = "cached"
	Pushed    Status = "pushed"    // to a repository
	Pulled    Status = "pulled"    // from one
	Installed Status = "installed" // on a host
	Skipped   Status = "skipped"
	Failed    Status = "failed"
)

// Result is what came out for one kernel. Its JSON form is what --format json promises: fields are added, never renamed.
type Result struct {
	Module    string   `json:"module"`  // the DKMS package's name
	Version   string   `json:"version"` // and its version
	Kernel    string   `json:"kernel"`  // as --kernels takes it: "debian/bookworm:6.1.0-56-amd64"
	Distro    string   `json:"distro"`
	Suite     string   `json:"suite"`
	Release   string   `json:"release"`
	Status    Status   `json:"status"`
	Reason    string   `json:"reason"`              // why it was skipped or failed, one line
	Why       string   `json:"why"`                 // what made it fail, where that's one of the common causes, one line
	Key       string   `json:"key"`                 // of the cache
	Cache     string   `json:"cache,omitempty"`     // where it was found, if it was: "local", or the reference of a shared cache
	Digest    string   `json:"digest"`              // of the OCI image: "sha256:…"
	Reference string   `json:"reference,omitempty"` // what it was pushed to, or pulled from
	Compiler  string   `json:"compiler"`            // "gcc-12"
	Modules   []Module `json:"modules"`
	Log       string   `json:"log"`                 // path of the build's log
	Hint      string   `json:"hint"`                // what to do about a failure, one line, where that is known
	Seconds   float64  `json:"seconds"`             // printed to the millisecond
	DKMSCode  int      `json:"dkms_code,omitempty"` // the exit code that dkms ends with in the same case; see builder.DKMSCode
	First     string   `json:"-"`                   // for reports: a failure's First
	Tail      []string `json:"-"`                   // and its Tail

	Test *trial.Result `json:"test,omitempty"` // of the modules in a virtual machine, where they were tried
}

// Module is one file that was handed out.
type Module struct {
	Name     string `json:"name"` // without .ko
	Path     string `json:"path"`
	SHA256   string `json:"sha256"`
	Vermagic string `json:"vermagic"`
}

// PrintText writes one line per result, in the order given: kernel, the source where there are several, status, then digest and
// folder of the modules, or why there are none.
func PrintText(w io.Writer, results []Result) error {
	return printRows(w, results, func(r Result) (string, []string) {
		rest := []string{r.Reason}
		switch r.Status {
		case Built, Cached, Pulled:
			rest = []string{r.Digest, folder(r.Modules)}
			if r.Test != nil {
				rest = append(rest, string(r.Test.Verdict))
			}
		case Pushed:
			rest = []string{r.Digest, r.Reference}
		}
		return string(r.Status), rest
	})
}

// printRows writes a line for each result: what it is of, then a word and the rest, of which what is empty is left out.
func printRows(w io.Writer, results []Result, text func(Result) (word string, rest []string)) error {
	name := func(r Result) string { return r.Kernel }
	for _, r := range results {
		if r.Module != results[0].Module {
			name = func(r Result) string { return r.Kernel + " " + r.Module + "/" + r.Version }
		}
	}
	label, words := 0, statusWidth
	for _, r := range results {
		word, _ := text(r)
		label, words = max(label, width(cleanLine(name(r)))), max(words, len(word))
	}
	var out strings.Builder
	for _, r := range results {
		word, rest := text(r)
		line := pad(cleanLine(name(r)), label) + "  " + fmt.Sprintf("%-*s", words, word)
		for _, s := range rest {
			if s != "" {
				line += "  " + cleanLine(s)
			}
		}
		out.WriteString(strings.TrimRight(line, " ") + "\n")
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// PrintJSON writes {"results":[…]} on lines of its own.
func PrintJSON(w io.Writer, results []Result) error {
	list := make([]Result, len(results))
	for i, r := range results {
		if r.Modules == nil {
			r.Modules = []Module{}
		}
		r.Seconds = math.Round(r.Seconds*1000) / 1000
		list[i] = r
	}
	return WriteJSON(w, struct {
		Results []Result `json:"results"`
	}{list})
}

// WriteJSON writes v indented by two spaces. Control characters that JSON lets pass as they are get escaped: on a terminal
// they could be commands.
func WriteJSON(w io.Writer, v any) error {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("write JSON: %w", err)
	}
	var out strings.Builder
	for _, r := range buf.String() { // outside of strings JSON is ASCII
		if r >= 0x7f && r < 0xa0 || invisible(r) {
			fmt.Fprintf(&out, `\u%04x`, r)
			continue
		}
		out.WriteRune(r)
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// folder is the deepest one that all modules are in.
func folder(modules []Module) string {
	dir := ""
	for i, m := range modules {
		d := filepath.Dir(m.Path)
		if i == 0 {
			dir = d
		}
		for dir != "." && dir != "/" && d != dir && !strings.HasPrefix(d, dir+"/") {
			dir = filepath.Dir(dir)
		}
	}
	return dir
}
