package ui

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
)

// What CI services read as JUnit's has no standard. These are the elements and attributes, in the order, that the schemas of Jenkins
// (https://github.com/jenkinsci/xunit-plugin, junit-10.xsd) and of Ant's tasks share, without a time of day or a host's name.
type (
	junitSuites struct {
		XMLName  xml.Name     `xml:"testsuites"`
		Name     string       `xml:"name,attr"`
		Tests    int          `xml:"tests,attr"`
		Failures int          `xml:"failures,attr"`
		Skipped  int          `xml:"skipped,attr"`
		Time     string       `xml:"time,attr"` // seconds
		Suites   []junitSuite `xml:"testsuite"`
	}
	junitSuite struct { // a kernel
		Name       string          `xml:"name,attr"`
		Tests      int             `xml:"tests,attr"`
		Failures   int             `xml:"failures,attr"`
		Errors     int             `xml:"errors,attr"`
		Skipped    int             `xml:"skipped,attr"`
		Time       string          `xml:"time,attr"`
		Properties []junitProperty `xml:"properties>property"`
		Cases      []junitCase     `xml:"testcase"`
	}
	junitProperty struct {
		Name  string `xml:"name,attr"`
		Value string `xml:"value,attr"`
	}
	junitCase struct { // a module
		Name    string        `xml:"name,attr"`
		Class   string        `xml:"classname,attr"`
		Time    string        `xml:"time,attr"`
		Skipped *junitMessage `xml:"skipped"`
		Failure *junitMessage `xml:"failure"`
		Out     string        `xml:"system-out,omitempty"`
	}
	junitMessage struct {
		Message string `xml:"message,attr"`
		Type    string `xml:"type,attr"`
		Text    string `xml:",chardata"`
	}
)

// junit writes a suite of tests for each kernel, with each module as one of them.
func (r Report) junit(w io.Writer) error {
	t := r.table()
	out := junitSuites{Name: "godkms-hermetic", Time: junitTime(r.Took.Seconds())}
	for _, row := range t.rows {
		s := junitSuite{Name: cleanLine(row.kernel)}
		total := 0.0
		for _, res := range row.cells {
			if res == nil {
				continue
			}
			c := junitCase{Name: cleanLine(moduleOf(*res)), Class: s.Name, Time: junitTime(res.Seconds)}
			total += res.Seconds
			s.Tests++
			switch status := r.status(*res); status {
			case Failed:
				s.Failures++
				lines := why(*res)
				if res.Hint != "" {
					lines = append(lines, "hint: "+cleanLine(res.Hint))
				}
				kind := "build"
				if res.Test != nil {
					kind = "test"
				}
				c.Failure = &junitMessage{cleanLine(res.Reason), kind, strings.Join(lines, "\n")}
				c.Out = cleanText(res.Tail)
			case Skipped, interrupted:
				s.Skipped++
				c.Skipped = &junitMessage{Message: cleanLine(res.Reason), Type: string(status)}
			default:
				c.Out = strings.TrimSpace(string(status) + " " + cleanLine(res.Digest))
				if res.Test != nil {
					c.Out += "\n" + cleanLine(string(res.Test.Verdict)+" "+Outcome(*res.Test))
				}
			}
			s.Cases = append(s.Cases, c)
			if res.Compiler != "" && len(s.Properties) == 0 {
				s.Properties = []junitProperty{{"compiler", cleanLine(res.Compiler)}}
			}
		}
		s.Time = junitTime(total)
		out.Tests, out.Failures, out.Skipped = out.Tests+s.Tests, out.Failures+s.Failures, out.Skipped+s.Skipped
		out.Suites = append(out.Suites, s)
	}
	b, err := xml.MarshalIndent(out, "", "  ") // what no XML may have, U+FFFE say, becomes U+FFFD
	if err != nil {
		return fmt.Errorf("write JUnit: %w", err)
	}
	_, err = fmt.Fprintf(w, "%s%s\n", xml.Header, b)
	return err
}

func junitTime(seconds float64) string { return fmt.Sprintf("%.3f", max(seconds, 0)) }

func cleanText(lines []string) string {
	clean := make([]string, len(lines))
	for i, l := range lines {
		clean[i] = cleanLine(l)
	}
	return strings.Join(clean, "\n")
}
