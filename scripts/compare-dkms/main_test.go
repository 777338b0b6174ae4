package main

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
)

// Some of Debian's packages; all of them are the command's to compare.
func TestPackages(t *testing.T) {
	c, targets := start(t, "6.1", "6.12")
	cloud, err := c.targets(context.Background(), []string{strings.Replace(targets[0].Release, "-amd64", "-cloud-amd64", 1)})
	if err != nil {
		t.Fatal(err)
	}
	targets = append(targets, cloud...)
	wants := map[string][]want{ // for 6.1, 6.12 and 6.1 of the flavour cloud
		"acpi-call-dkms":      {{modules: "acpi_call.ko"}, {modules: "acpi_call.ko"}},
		"librem-ec-acpi-dkms": {{dkms: 10, reason: "incompatible pointer type"}},
		"nat-rtsp-dkms":       {{modules: "nf_conntrack_rtsp.ko nf_nat_rtsp.ko"}, {dkms: 10, reason: "strlcpy"}},
		"v4l2loopback-dkms":   {{modules: "v4l2loopback.ko"}, {dkms: 10}, {dkms: 77, reason: "CONFIG_VIDEO"}},
	}
	for name, wants := range wants {
		found, err := c.packages(context.Background(), []string{"main"}, []string{name})
		if err != nil {
			need.Skip(t, "no packages to compare with: %v", err)
		}
		for i, w := range wants {
			t.Run(fmt.Sprintf("%s-%d", name, i), func(t *testing.T) {
				t.Parallel()
				r := c.compare(context.Background(), found[0], targets[i])
				check(t, r, w)
				if r.SameBytes != len(r.DKMS.Modules) {
					t.Errorf("%d of %d modules have the same bytes", r.SameBytes, len(r.DKMS.Modules))
				}
			})
		}
	}
}

func TestReport(t *testing.T) {
	ok := side{Verdict: built, Modules: []string{"a.ko"}, Seconds: 2}
	no := side{Verdict: failed, Code: 10, Seconds: 1}
	line := func(name string, dkms, ours side) row {
		return row{Package: name, Kernel: "6.1", DKMS: dkms, Ours: ours}
	}
	other := ok
	other.Modules = []string{"b.ko"}
	missing := no
	missing.As = 7
	proven := line("proven", ok, no)
	proven.Proof, proven.Explained = "depmod: WARNING: it needs x", true
	rep := report{Rows: []row{
		line("same", ok, ok), line("both fail", no, no), line("ours fails", ok, no), line("ours builds", no, ok), line("another set", ok, other),
		line("another step", no, missing), proven, {Package: "broken", Kernel: "6.1", Error: "no such thing\nat all"},
	}}
	rep.Rows[0].SameBytes = 1
	var out bytes.Buffer
	if err := rep.print(&out); err != nil {
		t.Fatal(err)
	}
	text := strings.Join(strings.Fields(out.String()), " ")
	for _, want := range []string{
		"same 6.1 built 0 built 0 1 2.00 s 2.00 s 1.00 same both", "both fail 6.1 failed 10 failed 10 - 1.00 s 1.00 s 1.00 same ours",
		"ours fails 6.1 built 0 failed 10 1/0 2.00 s 1.00 s 0.50 DIFFERENT", "ours builds 6.1 failed 10 built 0",
		"another set 6.1 built 0 built 0 1/1 2.00 s 2.00 s 1.00 DIFFERENT", "failed 10 (as 7) - 1.00 s 1.00 s 1.00 DIFFERENT",
		"different, explained", "depmod: WARNING: it needs x", "NOT COMPARED: no such thing ours fails", "broken for 6.1: no such thing at all",
		"8 comparisons, 6 differences: 1 explained, 5 unexplained",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("the table is\n%s\nwant %q in it", out.String(), want)
		}
	}
	if n := rep.unexplained(); n != 5 {
		t.Errorf("unexplained: %d; want 5", n)
	}
	file := filepath.Join(t.TempDir(), "new/report.json")
	if err := rep.write(file); err != nil {
		t.Fatal(err)
	}
	if back, err := readReport(file); err != nil || len(back.Rows) != 8 || back.unexplained() != 5 {
		t.Errorf("read again: %v, %d rows, %d unexplained; want 8 and 5", err, len(back.Rows), back.unexplained())
	}
}

func TestFaults(t *testing.T) {
	log := "  CC [M]  a/b.o\nIn file included from x.h:3:\n/var/lib/dkms/t/1/build/a/b.c:12:3: error: no x\nb.c:1:1: warning: y\nc.h:7:10: fatal error: z.h: none\n" +
		"ERROR: modpost: \"f\" [m.ko] undefined!\nmake[1]: *** [Makefile:3: all] Error 2\n"
	got := strings.Join(faults(log), "|")
	if want := `b.c:12:3: error: no x|c.h:7:10: fatal error: z.h: none|ERROR: modpost: "f" [m.ko] undefined!`; got != want {
		t.Errorf("faults: %q; want %q", got, want)
	}
}
