package rpm

import (
	"maps"
	"slices"
	"strings"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

// plainFlavour is that of the kernels whose packages have no other word in their names.
const plainFlavour = "default"

// flavourOf gives the flavour of the kernel that a package of headers is for, by its name: "rt" of kernel-rt-devel, and plainFlavour of
// kernel-devel. Not every package of that form is one of headers; unameOf and suseRelease tell.
func flavourOf(name string) (flavour string, ok bool) {
	middle, isKernel := strings.CutPrefix(name, "kernel")
	middle, isDevel := strings.CutSuffix(middle, "-devel")
	if !isKernel || !isDevel {
		return "", false
	}
	if flavour = strings.TrimPrefix(middle, "-"); flavour == "" {
		flavour = plainFlavour
	}
	return flavour, true
}

// unames are the names that a package of headers may provide with its kernel's release as their version:
// "kernel-devel-uname-r = 5.14.0-427.13.1.el9_4.x86_64+rt".
func unames(name string) []string {
	out := []string{"kernel-devel-uname-r", "kernel-uname-r"}
	if name != "kernel-devel" {
		out = append(out, name+"-uname-r")
	}
	return out
}

// redHatRelease makes the release of a kernel from what its package of headers is called, for those that don't say it.
func redHatRelease(p *pkg, flavour string) (string, bool) {
	v := splitEVR(p.version)
	release := v.version + "-" + v.release + "." + p.arch
	switch flavour {
	case plainFlavour, "uek", "uek64k":
		return release, true
	case "debug", "64k", "64k-debug", "rt-debug", "rt-64k", "rt-64k-debug":
		return release + "+" + flavour, true
	case "rt":
		if strings.Contains(v.release, ".rt") { // Enterprise Linux 8, where it is a kernel of its own
			return release, true
		}
		return release + "+" + flavour, true
	}
	return "", false
}

// suseRelease is made of the version that a package of headers says its sources have, in what it requires, "kernel-devel = 6.4.0-150600.21",
// and of its flavour. The package's own release has the count of rebuilds behind it, 150600.21.3, which the kernel's hasn't.
func suseRelease(p *pkg, flavour string) (string, bool) {
	own := splitEVR(p.version)
	for line := range strings.SplitSeq(p.requires, "\n") {
		if !strings.HasPrefix(line, "kernel-devel") {
			continue
		}
		d, err := parseDepend(line)
		if err != nil || d.is != equal || d.evr.version != own.version || d.evr.release == "" {
			continue
		}
		release := d.evr.release
		if release == own.release {
			i := strings.LastIndexByte(release, '.')
			if i < 0 {
				return "", false
			}
			release = release[:i]
		}
		return own.version + "-" + release + "-" + flavour, true
	}
	return "", false
}

// isOfImage tells whether a dependency of a package of headers is on the kernel that they are of. Nothing in a build reads that, and it
// is many times as large.
func isOfImage(d *depend) bool {
	return d.op == plain && strings.HasPrefix(d.name, "kernel") && !strings.Contains(d.name, "devel") && !strings.Contains(d.name, "macros")
}

// redHatEnds are what releases of Red Hat's kin end in: ".x86_64", ".aarch64+64k-debug".
var redHatEnds = func() []string {
	var out []string
	for _, arch := range slices.Sorted(maps.Values(architectures)) {
		out = append(out, "."+arch)
		for _, variant := range []string{"16k", "16k-debug", "64k", "64k-debug", "debug", "rt", "rt-64k", "rt-64k-debug", "rt-debug", "zfcpdump"} {
			out = append(out, "."+arch+"+"+variant)
		}
	}
	return out
}()

// suseEnds are what releases of SUSE's end in, their flavours.
var suseEnds = []string{"-64kb", "-azure", "-coco", "-coco_debug", "-debug", "-default", "-kvmsmall", "-longterm", "-lpae", "-pae", "-preempt", "-rt",
	"-rt_debug", "-vanilla", "-zfcpdump"}

// marks begin what tells distributions apart in the releases of their kernels.
var marks = []string{".fc", ".el", ".amzn"}

// claims tells whether kernels of a suite can be named as a release, or as what a shell pattern of releases matches. A release has one
// mark, though a pattern's stars would leave room for others.
func (s suite) claims(release string) bool {
	fits := func(form string) bool {
		for _, m := range marks {
			i, j := strings.Index(release, m), strings.Index(form, m)
			if i >= 0 && (j < 0 || !kernels.Overlap(form[j:], release[i:])) {
				return false
			}
		}
		return kernels.Overlap(form, release)
	}
	return slices.ContainsFunc(s.forms, func(form string) bool {
		return fits(form+"*") && slices.ContainsFunc(s.ends, func(end string) bool { return fits(form + end) })
	})
}
