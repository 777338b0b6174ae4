package builder

import (
	"fmt"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
)

func TestCompare(t *testing.T) {
	hash := func(text string) v1.Hash {
		h, _, err := v1.SHA256(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	file := func(name, dest, text string) artifact.File {
		return artifact.File{Name: name, Dest: dest, Size: int64(len(text)), Digest: hash(text), Open: opener([]byte(text))}
	}
	script := func(text string, executable bool) artifact.Extra {
		return artifact.Extra{Name: "POST_INSTALL", Command: "post.sh", Executable: executable, Size: int64(len(text)), Digest: hash(text), Open: opener([]byte(text))}
	}
	before := Result{
		Meta:  artifact.Meta{Status: artifact.Built, Compiler: "gcc-12", Symvers: hash("symvers"), Extras: []artifact.Extra{script("exit 0", true)}},
		Files: []artifact.File{file("a.ko", "extra", "one"), file("b.ko", "extra", "two"), file("c.ko", "extra", "three")},
	}
	rooted := before
	rooted.Meta.Root = hash("root")
	for name, now := range map[string]Result{"the same": before, "what doesn't say its root": rooted} {
		if got, err := Compare(before, now, t.TempDir()); err != nil || got != nil {
			t.Errorf("Compare with %s = %+v, %v", name, got, err)
		}
	}
	altered, other := rooted, rooted
	altered.Digest = hash("altered")
	other.Meta.Headers = "6.1.2"
	for _, now := range []Result{altered, other} {
		if got, err := Compare(rooted, now, t.TempDir()); err != nil || len(got) != 1 {
			t.Errorf("Compare with one that says another thing = %+v, %v; want one change", got, err)
		}
	}
	now := Result{
		Meta:  artifact.Meta{Status: artifact.Built, Compiler: "gcc-13", Root: hash("root"), Extras: []artifact.Extra{script("exit 1", false)}},
		Files: []artifact.File{file("b.ko", "extra", "to"), file("c.ko", "updates", "three"), file("d.ko", "extra", "four")},
	}
	got, err := Compare(before, now, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, c := range got {
		text := c.Name
		if strings.HasPrefix(c.Values[0]+c.Values[1], "sha256:") {
			text += fmt.Sprintf(" %v %v", c.Sizes, len(c.Parts))
		} else {
			text += fmt.Sprintf(" %q", c.Values)
		}
		for _, p := range c.Parts {
			text += fmt.Sprintf(" %d %q", p.Offset, p.Bytes)
		}
		all = append(all, text)
	}
	want := []string{
		`compiler ["gcc-12" "gcc-13"]`,
		`Module.symvers of the kernel [0 0] 0`,
		`a.ko [0 0] 0`,
		`b.ko [3 2] 1 1 ["wo" "o"]`,
		`c.ko ["in extra" "in updates"]`,
		`POST_INSTALL ["runs post.sh" "runs post.sh, which isn't executable"]`,
		`POST_INSTALL [6 6] 1 5 ["0" "1"]`,
		`d.ko [0 0] 0`,
	}
	if fmt.Sprint(all) != fmt.Sprint(want) {
		t.Errorf("Compare = %s\nwant %s", strings.Join(all, "\n"), strings.Join(want, "\n"))
	}
}
