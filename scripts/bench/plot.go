package main

import (
	"bytes"
	"fmt"
	"html"
)

// The plot's measures, in pixels.
const (
	plotWidth, plotLine, plotTop, plotMargin = 1000, 22, 78, 16

	barsAt, barsWidth = 390, 270 // of which the limit is at barLimit
	barLimit          = 180
	figuresAt         = barsAt + barsWidth + 16
)

// plotStyle has the colours for a page that is light, and for one that is dark. They differ for those too who see no red or green.
const plotStyle = `<style>
text { font: 12px system-ui, -apple-system, "Segoe UI", "DejaVu Sans", sans-serif; fill: #1f2328 }
.title { font-size: 15px; font-weight: 600 }
.small { font-size: 11px; fill: #59636e }
.right { text-anchor: end }
.paper { fill: #ffffff; stroke: #d1d9e0 }
.met { fill: #2f6fdb }
.missed { fill: #d9730d }
.limit { stroke: #1f2328; stroke-dasharray: 3 2 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 }
.small { fill: #9198a1 }
.paper { fill: #0d1117; stroke: #3d444d }
.met { fill: #4c8dff }
.missed { fill: #f0883e }
.limit { stroke: #e6edf3 }
}
</style>
`

// plot draws the table as an SVG picture: for each line a bar of how much it takes of what was asked for, which is where the dashed line
// is. A bar that would be too long ends in an arrow. The same report gives the same bytes.
func (r report) plot() []byte {
	var out bytes.Buffer
	bottom := plotTop + plotLine*len(r.Results)
	height := bottom + plotMargin
	met, measured := 0, 0
	for _, l := range r.Results {
		if l.measured() {
			measured++
		}
		if l.measured() && l.Met {
			met++
		}
	}
	text := func(x, y int, class, s string) {
		fmt.Fprintf(&out, "<text x=\"%d\" y=\"%d\"", x, y)
		if class != "" {
			fmt.Fprintf(&out, " class=\"%s\"", class)
		}
		fmt.Fprintf(&out, ">%s</text>\n", html.EscapeString(s))
	}
	summary := fmt.Sprintf("Speed: what is taken of what was asked for; %d of %d met", met, measured)
	fmt.Fprintf(&out, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %[1]d %[2]d\" role=\"img\">\n", plotWidth, height)
	fmt.Fprintf(&out, "<title>%s</title>\n%s", html.EscapeString(summary), plotStyle)
	fmt.Fprintf(&out, "<rect class=\"paper\" x=\"0.5\" y=\"0.5\" width=\"%d\" height=\"%d\" rx=\"8\"/>\n", plotWidth-1, height-1)
	text(plotMargin, 28, "title", summary)
	text(plotMargin, 46, "small", fmt.Sprintf("%s; %s; %d used, medians of %d, %s", r.Tool, r.Machine, r.Processors, r.Runs, r.Start.Format("2006-01-02")))
	text(barsAt+barLimit-4, 68, "small right", "shorter is better")
	text(barsAt+barLimit+4, 68, "small", "more than asked")
	text(figuresAt, 68, "small", "ours : the other")
	text(plotWidth-plotMargin, 68, "small right", "asked for")
	for i, l := range r.Results {
		y := plotTop + plotLine*i
		line := y + 15
		text(barsAt-10, line, "right", l.title())
		text(plotWidth-plotMargin, line, "small right", l.Asked.String())
		if !l.measured() {
			text(barsAt, line, "small", "not measured")
			continue
		}
		class, width := "met", l.share()*barLimit
		if !l.Met {
			class = "missed"
		}
		if width <= barsWidth {
			fmt.Fprintf(&out, "<rect class=\"%s\" x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"14\"/>\n", class, barsAt, y+4, max(width, 1))
		} else {
			fmt.Fprintf(&out, "<path class=\"%s\" d=\"M%d %dh%dl8 7l-8 7h-%[4]d z\"/>\n", class, barsAt, y+4, barsWidth-8)
		}
		text(figuresAt, line, "", l.summary())
	}
	fmt.Fprintf(&out, "<line class=\"limit\" x1=\"%d\" y1=\"%d\" x2=\"%[1]d\" y2=\"%[3]d\"/>\n</svg>\n", barsAt+barLimit, plotTop-4, bottom+2)
	return out.Bytes()
}
