// Package dkms says what a dkms.conf means for one kernel: its directives, and the plan of commands that they come to.
//
// The rules are those of dkms 3.2 (its script and man page). A dkms.conf is bash: bash evaluates it, inside the sandbox.
// Only the module's name and version are read outside, by an interpreter that runs no program.
package dkms

import (
	_ "embed"
	"path"
	"strconv"
)

//go:embed evaluate.bash
var evaluate string

// The folders that dkms uses by default. Real dkms.conf files build paths from them.
const (
	Tree        = "/var/lib/dkms"
	SourceTree  = "/usr/src"
	InstallTree = "/lib/modules"
)

// OverrideFolder is where the overrides of a dkms.conf are put to be evaluated.
const OverrideFolder = Tree + "/.overrides"

// Target is what a dkms.conf is evaluated for.
type Target struct {
	Module, Version string
	Distro          string            // decides where modules are installed
	Release         string            // $kernelver
	Machine         string            // $arch, in uname -m's words: "x86_64"
	Jobs            int               // $parallel_jobs
	Config          map[string]string // the kernel's configuration, "CONFIG_SMP" -> "y"; nil where the kernel has none
}

// Source is where the source tree lies: /usr/src/<module>-<version>.
func (t Target) Source() string { return path.Join(SourceTree, t.Module+"-"+t.Version) }

// Build is the copy that make runs in: /var/lib/dkms/<module>/<version>/build.
func (t Target) Build() string { return path.Join(Tree, t.Module, t.Version, "build") }

// Output is where dkms collects the modules that were built.
func (t Target) Output() string {
	return path.Join(Tree, t.Module, t.Version, t.Release, t.Machine, "module")
}

// Symvers is where the step after make leaves what every Module.symvers of the build says, wherever make wrote it.
func (t Target) Symvers() string { return path.Join(path.Dir(t.Output()), "symvers") }

// KernelSource is $kernel_source_dir.
func (t Target) KernelSource() string { return path.Join(InstallTree, t.Release, "build") }

// Clang says whether the kernel was built by clang.
func (t Target) Clang() bool { return t.Config["CONFIG_CC_IS_CLANG"] == "y" }

// prelude sets, from positional parameters, the variables that dkms has in its shell but does not export.
const prelude = `kernelver=$1 arch=$2 module=$3 module_version=$4 parallel_jobs=$5
dkms_tree=$6 source_tree=$7 install_tree=$8 kernel_source_dir=$9 kernel_config=$9/include/config/auto.conf
[[ -e $kernel_config ]] || kernel_config=$9/.config
shift 9
`

// bash is a command line that runs a fixed script with the variables of a dkms.conf set, and args as $1, $2, ….
func (t Target) bash(script string, args ...string) []string {
	return append([]string{"bash", "-c", prelude + script, "bash",
		t.Release, t.Machine, t.Module, t.Version, strconv.Itoa(max(1, t.Jobs)),
		Tree, SourceTree, InstallTree, t.KernelSource()}, args...)
}

// Input is what the directives of a source come from.
type Input struct {
	Conf       []byte     // the text of its dkms.conf, where the lines of faults are found
	Overrides  []Override // files that are read after it, in this order
	Directives []string   // "NAME=VALUE" or "NAME[INDEX]=VALUE"; they come last
}

// Evaluation is the command that evaluates the dkms.conf of the source tree and the overrides, which are files of
// OverrideFolder. It is run in the build folder. Its output is read by Parse.
func (t Target) Evaluation(in Input) []string {
	files := []string{path.Join(t.Source(), confName)}
	for _, o := range in.Overrides {
		files = append(files, path.Join(OverrideFolder, o.Name))
	}
	return t.evaluation(Tree+"/.values", files, in.Directives)
}

func (t Target) evaluation(spool string, files, directives []string) []string {
	args := append([]string{spool, strconv.Itoa(len(files))}, files...)
	for _, d := range directives {
		if d, err := parseDirective(d); err == nil {
			args = append(args, d.name, strconv.Itoa(d.index), d.value)
		}
	}
	return t.bash(evaluate, args...)
}
