package ui

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html/template"
	"io"
	"strings"
)

var (
	//go:embed report.html
	reportHTML string
	//go:embed report.css
	reportCSS string
)

// openTails is how many failures a page shows the logs' ends of at once.
const openTails = 10

// page is a report as report.html shows it. Its text is clean; the template escapes it.
type page struct {
	Headline, About string
	Bad             bool
	Tallies         []pageTally
	Total           int
	Modules         []string
	Rows            []pageRow
	Failures        []pageFailure
	Filter          bool // some rows have a failure, and some have none
	Style           template.CSS
	Policy          string // Content-Security-Policy
}

type pageTally struct {
	tally
	At int // how many come before them
}

type pageRow struct {
	Where, Release, Compiler string
	Bad                      bool
	Cells                    []pageCell
}

type pageCell struct {
	Status Status // empty: there is none
	Time   string
	Detail string // why it was skipped or failed, or the verdict of its test
	ID     string // of its failure
}

type pageFailure struct {
	ID, Where, Release, Module string
	Why                        []string
	Hint, Tail, Log, Time      string
	Lines                      int // of Tail
	Open                       bool
}

// html writes one file that needs no other, has no script, and lets no browser load or run anything.
func (r Report) html(w io.Writer) error {
	t, err := template.New("report").Parse(reportHTML)
	if err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(reportCSS))
	p := page{
		Headline: r.headline(), About: r.about(), Total: len(r.Results), Style: template.CSS(reportCSS),
		Policy: "default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'",
	}
	at := 0
	for _, t := range r.tallies() {
		p.Tallies = append(p.Tallies, pageTally{t, at})
		at += t.N
	}
	p.Bad = r.count(Failed)+r.count(interrupted) > 0
	cells := r.table()
	for _, m := range cells.modules {
		p.Modules = append(p.Modules, cleanLine(m))
	}
	bad := 0
	for _, row := range cells.rows {
		out := pageRow{}
		out.Where, out.Release = whereOf(row.kernel)
		for _, res := range row.cells {
			if res == nil {
				out.Cells = append(out.Cells, pageCell{})
				continue
			}
			c := pageCell{Status: r.status(*res), Time: elapsed(seconds(res.Seconds))}
			if res.Compiler != "" {
				out.Compiler = cleanLine(res.Compiler)
			}
			if res.Test != nil {
				c.Detail = cleanLine(string(res.Test.Verdict))
			}
			switch c.Status {
			case Skipped:
				c.Detail = cleanLine(res.Reason)
			case Failed:
				out.Bad = true
				f := r.failure(*res)
				f.ID = fmt.Sprintf("failure-%d", len(p.Failures)+1)
				f.Open = len(p.Failures) < openTails
				c.ID, c.Detail = f.ID, f.Why[0]
				p.Failures = append(p.Failures, f)
			}
			out.Cells = append(out.Cells, c)
		}
		if out.Bad {
			bad++
		}
		p.Rows = append(p.Rows, out)
	}
	p.Filter = bad > 0 && bad < len(p.Rows)
	var b bytes.Buffer // what fails is not written by half
	if err := t.Execute(&b, p); err != nil {
		return err
	}
	_, err = w.Write(b.Bytes())
	return err
}

func (r Report) failure(res Result) pageFailure {
	f := pageFailure{Module: cleanLine(moduleOf(res)), Why: why(res), Hint: cleanLine(res.Hint), Tail: cleanText(res.Tail),
		Log: cleanLine(res.Log), Time: elapsed(seconds(res.Seconds)), Lines: len(res.Tail)}
	f.Where, f.Release = whereOf(res.Kernel)
	return f
}

// whereOf divides a kernel's name after its suite, which many have in common.
func whereOf(kernel string) (where, release string) {
	kernel = cleanLine(kernel)
	if where, release, ok := strings.Cut(kernel, ":"); ok {
		return where, release
	}
	return "", kernel
}
