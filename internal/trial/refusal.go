package trial

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

var panicked = regexp.MustCompile(`^Kernel panic - not syncing`)

// refusals are what kernels print when they refuse a module, and what it means; those that explain others come first. They are those
// of kernel/module/{main,version,signing,kmod}.c (kernel/module.c until 5.18), kernel/params.c, security/lockdown/lockdown.c and
// arch/{x86,arm64}/kernel/module.c. %s is what the groups have, of all lines that fit.
var refusals = []struct {
	text    *regexp.Regexp
	meaning string
}{
	{regexp.MustCompile(`: version magic '.*' should be '.*'`), "it was built for another kernel"},
	{regexp.MustCompile(`this_module section size must match`), "it was built for another kernel, whose modules have another form"},
	{regexp.MustCompile(`: disagrees about version of symbol (\S+)`), "it was built against the headers of another kernel: %s is another one there"},
	{regexp.MustCompile(`: no symbol version for (\S+)`), "it was built without the symbol versions of this kernel"},
	{regexp.MustCompile(`module uses symbol \(?(\S+?)\)? from namespace`), "it doesn't import the namespace of %s"},
	{regexp.MustCompile(`module using GPL-only symbols|cannot use GPL-only|incompatible with.*GPL`), "its licence doesn't allow the symbols that it uses"},
	{regexp.MustCompile(`: Unknown symbol (\S+)`), "neither this kernel nor a module that is there exports to it: %s"},
	{regexp.MustCompile(`: exports duplicate symbol (\S+)`), "%s is exported by another already"},
	{regexp.MustCompile(`Loading of unsigned module is rejected`), "it isn't signed, and this kernel takes none that isn't"},
	{regexp.MustCompile(`Loading of module with unavailable key is rejected`), "it is signed with a key that this kernel doesn't know"},
	{regexp.MustCompile(`Loading of module with unsupported crypto is rejected`), "it is signed in a way that this kernel can't check"},
	{regexp.MustCompile(`^Lockdown: .*(unsigned module|module)`), "the kernel is locked down and takes no unsigned module"},
	{regexp.MustCompile("`.*' (?:invalid|too large) for parameter `(.*)'|parameter '?(\\S+?)'? requires"), "the value of its parameter %s isn't one"},
	{regexp.MustCompile(`^(?:Invalid (?:ELF|module)|Only one \.symtab|.*has no symbols \(stripped\?\)|.*No module found in object|` +
		`.*\.gnu\.linkonce\.this_module|invalid sh_|Module has invalid ELF|.*ELF (?:header|section)|.*(?:section|string|entry).*(?:overflow|past|beyond))`), "the file is damaged, truncated, or no module for this kernel"},
	{regexp.MustCompile(`(?:Invalid relocation target|overflow in relocation|Unknown rela|relocation .* out of range|unsupported RELA|Skipping invalid relocation)`), "the file's relocations are damaged, or those of another compiler's"},
	{regexp.MustCompile(`(?:failed to validate module .* BTF|BTF: .*mismatch)`), "its BTF isn't this kernel's"},
	{regexp.MustCompile(`is blacklisted`), "the kernel's command line forbids it"},
	{regexp.MustCompile(`vmap allocation for size|vmalloc error: size|page allocation failure|Could not allocate \d+ bytes percpu`), "there is not enough memory for it: give the machine more (--mem)"},
	{regexp.MustCompile(`livepatch support is disabled`), "it is a live patch, and this kernel takes none"},
	{regexp.MustCompile(`cannot create duplicate filename|kobject_add_internal failed .*EEXIST`), "the kernel has something of its name already"},
}

// refusal judges a module that wasn't loaded, by the errno and what the kernel said meanwhile: the verdict and the reason in one line.
// The kernel says why it refuses one, nearly always, but nothing of an init function that fails.
func refusal(e event, log []message) (Verdict, string) {
	for _, r := range refusals {
		var about []string
		said := ""
		for _, m := range log {
			if g := r.text.FindStringSubmatch(m.text); g != nil {
				if about = append(about, strings.Join(g[1:], "")); said == "" {
					said = m.text
				}
			}
		}
		if said != "" {
			return Refused, fmt.Sprintf("%s: the kernel says %q", strings.ReplaceAll(r.meaning, "%s", list(about)), said)
		}
	}
	switch errno := syscall.Errno(e.Errno); errno {
	case 0:
		return Refused, clean(e.Error)
	case unix.ENODEV, unix.ENXIO:
		return NoHardware, "its init function returned " + meaning(e, "") + ": what it drives isn't in this machine" + lastWords(log)
	case unix.ENOEXEC:
		return Refused, "the kernel finds no module for it in the file: damaged, truncated, or for another kernel or processor"
	case unix.EBADMSG:
		return Refused, "its signature is malformed"
	case unix.ENOKEY:
		return Refused, "it isn't signed, or with a key that this kernel doesn't know"
	case unix.EKEYREJECTED:
		return Refused, "its signature is refused: there is none, or it isn't that of these bytes"
	case unix.ENOPKG:
		return Refused, "it is signed in a way that this kernel can't check"
	case unix.EPERM:
		return Refused, "the kernel forbids it: it is locked down, or takes no modules any more"
	case unix.EEXIST:
		return Refused, "the kernel has a module of its name already, or something that it wants to make" + lastWords(log)
	case unix.ENOMEM:
		return Refused, "there is not enough memory for it: give the machine more (--mem)" + lastWords(log)
	}
	return Refused, "its init function returned " + meaning(e, "an error") + "; the kernel itself gives no reason" + lastWords(log)
}

// list is the first few of several, once each.
func list(several []string) string {
	const few = 5
	slices.Sort(several)
	several = slices.Compact(several)
	if len(several) > few {
		return fmt.Sprintf("%s and %d more", strings.Join(several[:few], ", "), len(several)-few)
	}
	return strings.Join(several, ", ")
}

// lastWords are the last that were said at the level of warnings or above, which are then the module's own, or about it. Of a trace that is
// what it's of.
func lastWords(log []message) string {
	words, inTrace := "", -1
	for i, m := range log {
		switch {
		case m.text == cutHere:
			inTrace = i
		case ended.MatchString(m.text):
			inTrace = -1
		case inTrace >= 0 && i != inTrace+1 || m.level > 4 || m.level == 0 || strings.Contains(m.text, "taints kernel") || strings.Contains(m.text, "tainting kernel"):
		default:
			words = m.text
		}
	}
	if words == "" {
		return ""
	}
	return fmt.Sprintf("; the last it said: %q", words)
}

// meaning is an errno with its meaning: "EINVAL (invalid argument)".
func meaning(e event, none string) string {
	if e.Errno == 0 {
		if e.Error != "" {
			return clean(e.Error)
		}
		return none
	}
	return fmt.Sprintf("%s (%s)", errnoName(e.Errno), syscall.Errno(e.Errno).Error())
}

// unknown is of kernel/module/main.c: "NAME: unknown parameter 'x' ignored".
var unknown = regexp.MustCompile(`^(\S+): unknown parameter '(.*)' ignored`)

func unknownParam(log []message, name string) string {
	for _, m := range log {
		if g := unknown.FindStringSubmatch(m.text); g != nil && g[1] == name {
			return g[2]
		}
	}
	return ""
}

func sorted(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
