package cli

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/godkms-hermetic/godkms-hermetic/internal/need"
)

// action is what of action.yml the tests look at.
type action struct {
	Inputs map[string]struct {
		Description, Default string
		Required             bool
	}
	Outputs map[string]struct{ Description, Value string }
	Runs    struct {
		Using string
		Steps []struct {
			ID, Shell, Run string
			Env            map[string]string
		}
	}
}

func readYAML[T any](t *testing.T, text []byte) (v T) {
	t.Helper()
	if err := yaml.Unmarshal(text, &v); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return v
}

func readAction(t *testing.T) action {
	t.Helper()
	text, err := os.ReadFile("../../action.yml")
	if err != nil {
		t.Fatal(err)
	}
	return readYAML[action](t, text)
}

// actionRun is a run of the action's step, as a runner does it.
type actionRun struct {
	code          int
	log           string
	outputs       map[string]string
	dir           string // the workspace
	temp, summary string
}

// runAction runs the step with inputs, and the defaults of the others, in a workspace. A program of the tests is the default of the input
// program. While it runs, signal is told of its process.
func runAction(t *testing.T, dir string, inputs map[string]string, signal func(*os.Process)) actionRun {
	t.Helper()
	return runActionWith(t, dir, os.Getenv("PATH"), inputs, signal)
}

// runActionWith is runAction with another PATH.
func runActionWith(t *testing.T, dir, path string, inputs map[string]string, signal func(*os.Process)) actionRun {
	t.Helper()
	a := readAction(t)
	step := a.Runs.Steps[0]
	bash := need.Program(t, "bash")
	exe, err := exec.LookPath("godkms-hermetic")
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	temp := t.TempDir()
	r := actionRun{dir: dir, temp: filepath.Join(temp, "runner's temp"), outputs: map[string]string{}}
	script, output, summary := filepath.Join(temp, "step.sh"), filepath.Join(temp, "output"), filepath.Join(temp, "summary")
	for _, err := range []error{os.Mkdir(r.temp, 0o755), os.WriteFile(output, nil, 0o644), os.WriteFile(summary, []byte("before\n"), 0o644),
		os.WriteFile(script, []byte(step.Run), 0o755)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), bash, "--noprofile", "--norc", "-e", "-o", "pipefail", script)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + path, "HOME=" + temp, "GITHUB_ACTION_PATH=" + root, "RUNNER_TEMP=" + r.temp,
		"GITHUB_OUTPUT=" + output, "GITHUB_STEP_SUMMARY=" + summary, "GITHUB_WORKSPACE=" + dir}
	for name, value := range step.Env {
		input := strings.TrimSuffix(strings.TrimPrefix(value, "${{ inputs."), " }}")
		given, ok := inputs[input]
		if !ok {
			given = a.Inputs[input].Default
		}
		if input == "program" && !ok {
			given = exe
		}
		cmd.Env = append(cmd.Env, name+"="+given)
	}
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if signal != nil {
		signal(cmd.Process)
	}
	if err := cmd.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	r.code, r.log = cmd.ProcessState.ExitCode(), log.String()
	text, err := os.ReadFile(output)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if _, ok := a.Outputs[name]; !ok {
			t.Errorf("action.yml has no output %q", name)
		}
		r.outputs[name] = value
	}
	text, err = os.ReadFile(summary)
	if err != nil {
		t.Fatal(err)
	}
	r.summary = string(text)
	return r
}

// copyTree makes a copy of a tree of testdata.
func copyTree(t *testing.T, name string) (dir string) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "a tree")
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("../../testdata", name))); err != nil {
		t.Fatal(err)
	}
	return dir
}

// What action.yml says and what its script does are the same, and no input is part of a script's text.
func TestActionYAML(t *testing.T) {
	a := readAction(t)
	if a.Runs.Using != "composite" || len(a.Runs.Steps) != 1 {
		t.Fatalf("action.yml is %+v; want one step", a.Runs)
	}
	step := a.Runs.Steps[0]
	if step.Shell != "bash" || strings.Contains(step.Run, "${{") {
		t.Errorf("the step runs %q", step.Run)
	}
	script, err := os.ReadFile("../../scripts/action/build.sh")
	if err != nil {
		t.Fatal(err)
	}
	for name, input := range a.Inputs {
		variable := "INPUT_" + strings.ToUpper(strings.ReplaceAll(name, "-", "_"))
		if step.Env[variable] != "${{ inputs."+name+" }}" || !strings.Contains(string(script), variable) || input.Description == "" {
			t.Errorf("input %q: %s is %q", name, variable, step.Env[variable])
		}
	}
	if len(step.Env) != len(a.Inputs) {
		t.Errorf("%d variables for %d inputs", len(step.Env), len(a.Inputs))
	}
	for name, output := range a.Outputs {
		if output.Value != "${{ steps."+step.ID+".outputs."+name+" }}" || output.Description == "" {
			t.Errorf("output %q is %q", name, output.Value)
		}
	}
}

// The action and GitLab's jobs, run as their services run them, build a module for a real kernel.
func TestCIBuilds(t *testing.T) {
	cache, src := newCache(t), copyTree(t, "hello")
	kernel := newest(t, sharedCache(t), "6.1.").String()
	inputs := map[string]string{"kernels": "\n" + kernel + "\r\n\n", "cache-dir": cache, "out": "the out", "args": "--jobs\n1", "plan": ""}
	r := runAction(t, src, inputs, nil)
	if r.code != 0 {
		t.Fatalf("the action ends with %d\n%s", r.code, r.log)
	}
	modules, err := filepath.Glob(filepath.Join(src, "the out/debian-bookworm/*/hello.ko"))
	if err != nil || len(modules) != 1 {
		t.Errorf("modules %q (%v); want one", modules, err)
	}
	if r.outputs["exit-code"] != "0" || r.outputs["out"] != "the out" || len(r.outputs) != 6 {
		t.Errorf("outputs %q", r.outputs)
	}
	text, err := os.ReadFile(r.outputs["results"])
	if err != nil {
		t.Fatal(err)
	}
	if got := parse[results](t, text).Results; len(got) != 1 || got[0].Status != "built" || got[0].Kernel != kernel {
		t.Errorf("results %+v; want %s built", got, kernel)
	}
	for _, form := range []string{"junit", "markdown", "html"} {
		if text, err := os.ReadFile(r.outputs[form]); err != nil || !strings.Contains(string(text), kernel) && form != "html" {
			t.Errorf("%s: %v, %d bytes; want a report with %s", form, err, len(text), kernel)
		}
	}
	if want := "before\n### 1 build, none failed\n"; !strings.HasPrefix(r.summary, want) {
		t.Errorf("summary %q; want what was there, and the report", r.summary)
	}

	inputs["plan"] = "5"
	inputs["args"] = "--no-such-flag" // of build alone
	r = runAction(t, src, inputs, nil)
	if want := fmt.Sprintf(`{"include":[{"name":"1/5 debian/bookworm","id":"1-of-5","kernels":"%s"}]}`, kernel); r.code != 0 || r.outputs["matrix"] != want || len(r.outputs) != 1 {
		t.Errorf("a plan ends with %d, outputs %q; want %s\n%s", r.code, r.outputs, want, r.log)
	}

	template, err := os.ReadFile("../../docs/ci/gitlab.yml")
	if err != nil {
		t.Fatal(err)
	}
	pipeline := readYAML[gitlabJobs](t, template)
	pipeline["plan"] = gitlabJob{Extends: ".godkms-hermetic-plan", Variables: map[string]string{"GODKMS_KERNELS": kernel}}
	more := map[string]string{"GODKMS_CACHE": cache}
	if code, log := pipeline.run(t, "plan", src, more); code != 0 {
		t.Fatalf("GitLab's plan ends with %d\n%s", code, log)
	}
	planned, err := os.ReadFile(filepath.Join(src, "godkms-hermetic.yml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"godkms-hermetic.yml", "the out"} { // what these jobs wrote is no part of the source
		if err := os.RemoveAll(filepath.Join(src, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, job := range readYAML[map[string]gitlabJob](t, planned) {
		pipeline[name] = job
		code, log := pipeline.run(t, name, src, more)
		if code != 0 || !strings.Contains(log, kernel) || !strings.Contains(log, " cached ") {
			t.Errorf("GitLab's job %q ends with %d; want %s as the action built it\n%s", name, code, kernel, log)
		}
		if text, err := os.ReadFile(filepath.Join(src, "out/report.xml")); err != nil || !strings.Contains(string(text), `tests="1" failures="0"`) {
			t.Errorf("GitLab's report: %v\n%s", err, text)
		}
	}
	if len(pipeline) != 5 {
		t.Errorf("%d jobs; want one beside the plan and those of the template", len(pipeline))
	}
	for _, kernels := range []string{"$(touch pwned)", "`touch pwned`", "'; touch pwned; '", "x\" & touch pwned #", "--help", "debian/bookworm:6.1.0-1-amd64\n--help"} {
		job := gitlabJob{Extends: ".godkms-hermetic", Variables: map[string]string{"GODKMS_KERNELS": kernels, "GODKMS_SOURCE": "--version"}}
		pipeline["hostile"] = job
		if code, log := pipeline.run(t, "hostile", src, more); code == 0 || strings.Contains(log, "Usage:") {
			t.Errorf("GitLab's job for %q ends with %d\n%s", kernels, code, log)
		}
		if _, err := os.Stat(filepath.Join(src, "pwned")); err == nil {
			t.Errorf("%q was run", kernels)
		}
	}
}

// gitlabJob is a job of GitLab, as far as it's needed to run it.
type gitlabJob struct {
	Extends      string
	Variables    map[string]string
	BeforeScript []string `yaml:"before_script"`
	Script       []string
}

type gitlabJobs map[string]gitlabJob

// run runs a job as GitLab's runner does: before_script and script are one shell's.
func (jobs gitlabJobs) run(t *testing.T, name, dir string, variables map[string]string) (int, string) {
	t.Helper()
	exe, err := exec.LookPath("godkms-hermetic")
	if err != nil {
		t.Fatal(err)
	}
	var before, script []string
	vars := map[string]string{"GODKMS_PROGRAM": exe}
	for k, v := range variables {
		vars[k] = v
	}
	for name != "" {
		j, ok := jobs[name]
		if !ok {
			t.Fatalf("no job %q to extend", name)
		}
		if script == nil {
			script = j.Script
		}
		if before == nil {
			before = j.BeforeScript
		}
		for k, v := range j.Variables {
			if _, ok := vars[k]; !ok {
				vars[k] = v
			}
		}
		name = j.Extends
	}
	cmd := exec.CommandContext(t.Context(), "sh", "-e", "-c", strings.Join(slices.Concat(before, script), "\n"))
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "CI_PROJECT_DIR=" + dir}
	for k, v := range vars {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	out, err := cmd.CombinedOutput()
	if err != nil && !errors.As(err, new(*exec.ExitError)) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// Inputs of the action are data, and what a build prints is no command to the runner.
func TestActionIsSafe(t *testing.T) {
	t.Parallel()
	dir := copyTree(t, "hello")
	fake := func(text string) string {
		name := filepath.Join(t.TempDir(), "fake")
		if err := os.WriteFile(name, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
		return name
	}
	hostile := "$(touch pwned) `touch pwned` '; touch pwned; ' \"; touch pwned; \" ${{ github.token }} * ~ \\"
	all := map[string]string{}
	for name := range readAction(t).Inputs {
		all[name] = hostile
	}
	delete(all, "plan")
	all["program"] = fake(`for a; do printf '<%s>\n' "$a"; done >args; exit 10`)
	all["args"] = hostile + "\n\n--with=x y"
	all["source"] = "-s\n" + hostile
	r := runAction(t, dir, all, nil)
	text, err := os.ReadFile(filepath.Join(dir, "args"))
	if err != nil || r.code != 10 || r.outputs["exit-code"] != "10" {
		t.Fatalf("%v; exit code %d, outputs %q\n%s", err, r.code, r.outputs, r.log)
	}
	reports := regexp.MustCompile(`(?m)^<--report=.*\n`)
	h := hostile
	want := "<build>\n<--kernels=" + h + ">\n<--mirror=" + h + ">\n<--lock=" + h + ">\n<--cache-dir=" + h + ">\n<--format=json>\n<--out=" + h + ">\n<--engine=" + h +
		">\n<--shard=" + h + ">\n<" + h + ">\n<--with=x y>\n<-->\n<-s>\n<" + h + ">\n"
	if got := reports.ReplaceAllString(string(text), ""); got != want || len(reports.FindAll(text, -1)) != 3 {
		t.Errorf("arguments\n%s\nwant\n%s", text, want)
	}
	if _, err := os.Stat(filepath.Join(dir, "pwned")); err == nil {
		t.Error("an input was run")
	}

	// What would be an output of its own is refused.
	if r := runAction(t, dir, map[string]string{"out": "x\nexit-code=0", "kernels": "x"}, nil); r.code != 1 || len(r.outputs) != 0 {
		t.Errorf("an out of two lines: exit code %d, outputs %q", r.code, r.outputs)
	}

	// The runner listens again only after the build, to a word that the build doesn't know. Excluded kernels are no failure.
	r = runAction(t, dir, map[string]string{"program": fake(`echo "  ::warning::owned" >&2; exit 77`), "kernels": "x"}, nil)
	stop := regexp.MustCompile(`(?s)^::stop-commands::([0-9a-f]{32})\n.*  ::warning::owned\n.*::([0-9a-f]{32})::\n::notice::.*$`).FindStringSubmatch(r.log)
	if stop == nil || stop[1] != stop[2] || r.code != 0 || r.outputs["exit-code"] != "77" {
		t.Errorf("exit code %d, outputs %q, log\n%s", r.code, r.outputs, r.log)
	}

	// Without a program, the action's own is built, whatever the workspace is.
	bin := filepath.Dir(fake(""))
	if err := os.WriteFile(filepath.Join(bin, "go"), []byte("#!/bin/sh\n"+`printf '<%s>' "$@" >gone; while [ "$1" != -o ]; do shift; done; mkdir -p "${2%/*}"; printf '#!/bin/sh\nexit 21\n' >"$2"; chmod 755 "$2"`), 0o755); err != nil {
		t.Fatal(err)
	}
	inputs := map[string]string{"program": "", "kernels": "x"}
	r = runActionWith(t, dir, bin+":"+os.Getenv("PATH"), inputs, nil)
	text, _ = os.ReadFile(filepath.Join(dir, "gone"))
	if r.code != 21 || !strings.HasSuffix(string(text), "<./cmd/godkms-hermetic>") || !strings.HasPrefix(string(text), "<build><-C></") {
		t.Errorf("exit code %d, go %s\n%s", r.code, text, r.log)
	}

	// A job that is cancelled tells the build, and waits for it.
	r = runAction(t, dir, map[string]string{"kernels": "x", "program": fake(`trap 'sleep 0.3; echo late >late; exit 130' TERM; touch begun; for i in $(seq 100); do sleep 0.1; done`)}, func(p *os.Process) {
		for range 100 {
			if _, err := os.Stat(filepath.Join(dir, "begun")); err == nil {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		p.Signal(syscall.SIGINT)
	})
	if _, err := os.Stat(filepath.Join(dir, "late")); err != nil || r.code != 130 || r.outputs["exit-code"] != "130" {
		t.Errorf("cancelled: %v, exit code %d, outputs %q\n%s", err, r.code, r.outputs, r.log)
	}
}

// The examples of docs/ci.md are YAML, and use what there is.
func TestCIExamples(t *testing.T) {
	text, err := os.ReadFile("../../docs/ci.md")
	if err != nil {
		t.Fatal(err)
	}
	template, err := os.ReadFile("../../docs/ci/gitlab.yml")
	if err != nil {
		t.Fatal(err)
	}
	jobs, a := readYAML[map[string]gitlabJob](t, template), readAction(t)
	blocks := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(text, -1)
	used := 0
	var look func(node any)
	look = func(node any) {
		switch n := node.(type) {
		case map[string]any:
			if uses, _ := n["uses"].(string); strings.HasPrefix(uses, "godkms-hermetic/godkms-hermetic@") {
				with, _ := n["with"].(map[string]any)
				for name := range with {
					if _, ok := a.Inputs[name]; !ok {
						t.Errorf("the action has no input %q", name)
					}
				}
				used++
			}
			if extends, ok := n["extends"].(string); ok {
				if _, ok := jobs[extends]; !ok {
					t.Errorf("the template has no job %q", extends)
				}
				variables, _ := n["variables"].(map[string]any)
				for name := range variables {
					if !strings.Contains(string(template), `"$`+name) {
						t.Errorf("the template doesn't use %q", name)
					}
				}
				used++
			}
			for _, v := range n {
				look(v)
			}
		case []any:
			for _, v := range n {
				look(v)
			}
		}
	}
	for _, b := range blocks {
		look(readYAML[map[string]any](t, b[1]))
	}
	if len(blocks) != 4 || used != 5 {
		t.Errorf("%d examples, that use %d of ours; want 4 and 5", len(blocks), used)
	}
	for _, m := range regexp.MustCompile(`steps\.\w+\.outputs\.([\w-]+)`).FindAllSubmatch(text, -1) {
		if _, ok := a.Outputs[string(m[1])]; !ok {
			t.Errorf("the action has no output %q", m[1])
		}
	}
}
