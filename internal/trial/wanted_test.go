package trial

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// What a module asks the kernel's modprobe for is told of: names that could be one, each once, and not without end.
func TestJudgeWanted(t *testing.T) {
	asked := []string{"crc8", "crypto-hmac(sha256)", "crc8", "../init", "a b", "", strings.Repeat("x", 65)}
	for i := range 2 * maxWanted {
		asked = append(asked, fmt.Sprintf("net-pf-%d", i))
	}
	events := make(chan event, len(asked)+10)
	events <- event{Type: "boot", Uname: []string{"6.1.0", "#1"}}
	events <- event{Type: "step", Step: "load", Name: "m"}
	for _, name := range asked {
		events <- event{Type: "wanted", Text: name}
	}
	events <- event{Type: "done", Step: "load", Name: "m", State: &State{Name: "m", Size: 4096}}
	events <- event{Type: "step", Step: "settle"}
	events <- event{Type: "done", Step: "settle"}
	events <- event{Type: "end"}
	close(events)
	j := newJudge(task{Modules: []tried{{Name: "m"}}, LoadOnly: true}, events)
	j.boot, j.step = time.Minute, time.Minute
	j.follow()
	r := j.verdict("")
	if r.Verdict != Loads || len(r.Wanted) != maxWanted || !slices.Equal(r.Wanted[:3], []string{"crc8", "crypto-hmac(sha256)", "net-pf-0"}) {
		t.Errorf("%s, wanted %q; want loads, and %d names", r.Verdict, r.Wanted, maxWanted)
	}
}

func TestDepended(t *testing.T) {
	task := task{
		Needed:  []tried{{Name: "mc"}, {Name: "videodev", Needs: []string{"mc"}}, {Name: "crc8"}, {Name: "asked", Needs: []string{"crc8"}}},
		Modules: []tried{{Name: "v4l2loopback", Needs: []string{"videodev"}}},
	}
	for name, want := range map[string]bool{"mc": true, "videodev": true, "crc8": false, "asked": false, "v4l2loopback": false} {
		if got := task.depended(name); got != want {
			t.Errorf("depended(%q) = %v; want %v", name, got, want)
		}
	}
}
