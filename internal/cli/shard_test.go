package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

func targetsOf(names ...string) (targets []target) {
	for _, name := range names {
		where, release, _ := strings.Cut(name, ":")
		distro, suite, _ := strings.Cut(where, "/")
		targets = append(targets, target{label: name, kernel: kernels.Kernel{Distro: distro, Suite: suite, Arch: "amd64", Release: release}})
	}
	return targets
}

// Each kernel is in one shard, the same in whichever order the request has them; shards have the same size, but for one; and a suite is
// in no more shards than it must.
func TestDivide(t *testing.T) {
	var names []string
	for i := range 7 {
		names = append(names, fmt.Sprintf("ubuntu/jammy:6.8.0-%d-generic", 30+i), fmt.Sprintf("debian/bookworm:6.1.0-%d-amd64", 40+i))
	}
	names = append(names, "ubuntu/noble:6.8.0-31-generic")
	targets := targetsOf(names...)
	var want []string
	for try := range 5 {
		rand.Shuffle(len(targets), func(i, j int) { targets[i], targets[j] = targets[j], targets[i] })
		seen := map[string]int{}
		var got []string
		for n := 1; n <= 4; n++ {
			part := shard{n, 4}.take(targets)
			if len(part) != 3 && len(part) != 4 {
				t.Errorf("shard %d has %d of %d kernels", n, len(part), len(targets))
			}
			suites := map[string]bool{}
			var labels []string
			for _, p := range part {
				seen[p.label]++
				suites[p.kernel.Suite] = true
				labels = append(labels, p.label)
			}
			if len(suites) > 2 {
				t.Errorf("shard %d has kernels of %d suites: %q", n, len(suites), labels)
			}
			slices.Sort(labels)
			got = append(got, strings.Join(labels, " "))
		}
		for _, name := range names {
			if seen[name] != 1 {
				t.Errorf("%s is in %d shards", name, seen[name])
			}
		}
		if try == 0 {
			want = got
		} else if !slices.Equal(got, want) {
			t.Errorf("in another order the shards are %q; want %q", got, want)
		}
	}
	// More shards than kernels: the last are empty, as those of matrix aren't there.
	two := targetsOf("debian/bookworm:1", "debian/bookworm:2")
	for n, want := range []int{1, 1, 0, 0, 0} {
		if got := (shard{n + 1, 5}).take(two); len(got) != want {
			t.Errorf("shard %d of 5 has %d of 2 kernels; want %d", n+1, len(got), want)
		}
	}
	if got := (shard{}).take(two); len(got) != 2 {
		t.Errorf("no shard was asked for, and %d of 2 kernels are left", len(got))
	}
}

func TestParseShard(t *testing.T) {
	for text, want := range map[string]shard{"": {}, "1/1": {1, 1}, "2/4": {2, 4}, "10000/10000": {10000, 10000}} {
		if got, err := parseShard(text); got != want || err != nil {
			t.Errorf("parseShard(%q) = %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"2", "0/4", "5/4", "-1/4", "2/", "/4", "a/b", "1/0", "1/2/3", "1/10001", "1/99999999999999999999"} {
		if got, err := parseShard(text); err == nil {
			t.Errorf("parseShard(%q) = %v; want an error", text, got)
		}
	}
}

// Jobs divide a request as build --shard does.
func TestMatrixIsLikeShard(t *testing.T) {
	targets := targetsOf("debian/trixie:6.12.1", "debian/bookworm:6.1.0-1-amd64", "debian/bookworm:6.1.0-2-amd64", "ubuntu/noble:6.8.0-1-generic", "debian/trixie:6.12.2")
	for shards := 1; shards < 8; shards++ {
		jobs := ciJobs(targets, shards)
		if len(jobs) != min(shards, len(targets)) {
			t.Errorf("%d jobs for %d kernels and --shards %d", len(jobs), len(targets), shards)
		}
		for i, j := range jobs {
			var want []string
			for _, p := range (shard{i + 1, shards}).take(targets) {
				want = append(want, p.label)
			}
			if !slices.Equal(j.Kernels, want) {
				t.Errorf("job %d of %d builds %q; build --shard %q", i+1, shards, j.Kernels, want)
			}
		}
	}
	jobs := ciJobs(targets, 2)
	if jobs[1].Name != "2/2 ubuntu/noble and 1 more" || jobs[1].ID != "2-of-2" {
		t.Errorf("the second job is %+v", jobs[1])
	}
}

func TestPrintGitHub(t *testing.T) {
	var many []target
	for i := range maxGitHub + 1 {
		many = append(many, targetsOf(fmt.Sprintf("debian/sid:6.1.%d+\"%d\"", i, i))...)
	}
	var out bytes.Buffer
	if err := printGitHub(&out, ciJobs(many, 0)); err == nil || !strings.Contains(err.Error(), "--shards 256") || out.Len() > 0 {
		t.Errorf("%d jobs: error %v, %d bytes; want an error with --shards", len(many), err, out.Len())
	}
	if err := printGitHub(&out, ciJobs(many[:3], 0)); err != nil {
		t.Fatal(err)
	}
	var m struct{ Include []map[string]string }
	if err := json.Unmarshal(out.Bytes(), &m); err != nil || strings.Count(out.String(), "\n") != 1 || len(m.Include) != 3 {
		t.Fatalf("%q: %v; want a line of JSON with three entries", &out, err)
	}
	if e := m.Include[2]; e["kernels"] != many[2].label || e["name"] != many[2].label || e["id"] != `debian-sid-6.1.2+-2-` {
		t.Errorf("entry %v", e)
	}
}

func TestPrintGitLab(t *testing.T) {
	const name = `debian/sid:6.1"$CI_JOB_TOKEN": &x *y # \u0041`
	var out bytes.Buffer
	if err := printGitLab(&out, ciJobs(targetsOf(name, "debian/sid:null"), 0)); err != nil {
		t.Fatal(err)
	}
	var jobs map[string]struct {
		Extends   string
		Variables map[string]string
	}
	if err := yaml.Unmarshal(out.Bytes(), &jobs); err != nil || len(jobs) != 2 {
		t.Fatalf("%s: %v; want two jobs", &out, err)
	}
	for key, j := range jobs {
		if j.Extends != ".godkms-hermetic" || j.Variables["GODKMS_KERNELS"] != key || strings.Count(key, "$") != 2*strings.Count(strings.ReplaceAll(key, "$$", "$"), "$") {
			t.Errorf("job %q: %+v", key, j)
		}
	}
}

func TestParseReports(t *testing.T) {
	dir := t.TempDir()
	got, err := parseReports([]string{"junit=" + dir + "/a=b.xml", "html=" + dir + "/r.html"})
	if want := []reportFile{{"junit", dir + "/a=b.xml"}, {"html", dir + "/r.html"}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("reports %v, %v; want %v", got, err, want)
	}
	for _, list := range [][]string{{""}, {"html"}, {"html="}, {"pdf=x"}, {"html=" + dir}, {"html=/dev/null"}, {"html=/proc/self/exe/x"},
		{"html=" + dir + "/x", "junit=" + dir + "/./x"}} {
		if got, err := parseReports(list); err == nil {
			t.Errorf("parseReports(%q) = %v; want an error", list, got)
		}
	}
}
