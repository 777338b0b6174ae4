package rpm

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

func TestProbe(t *testing.T) {
	for name, c := range map[string]struct {
		distro string
		files  map[string]string
		says   string
	}{
		"an older release":     {"fedora", map[string]string{"/releases/43/Everything/x86_64/os/repodata/repomd.xml": sampleRepomd}, ""},
		"through a list":       {"amzn", map[string]string{"/x86_64/mirror.list": "HERE/a/\n", "/a/repodata/repomd.xml": sampleRepomd}, ""},
		"without a list":       {"amzn", map[string]string{"/x86_64/repodata/repomd.xml": sampleRepomd}, ""},
		"no list of ours":      {"amzn", map[string]string{"/x86_64/mirror.list": "file:///x\n"}, "is no URL of a mirror"},
		"no index":             {"fedora", map[string]string{"/releases/43/Everything/x86_64/os/repodata/repomd.xml": "<html/>"}, "it is no repomd.xml"},
		"nothing":              {"fedora", nil, "404"},
		"not signed":           {"rocky", map[string]string{"/9/BaseOS/x86_64/os/repodata/repomd.xml": sampleRepomd}, "repomd.xml.asc is not beside it"},
		"signed by somebody":   {"rocky", map[string]string{"/9/BaseOS/x86_64/os/repodata/repomd.xml": sampleRepomd, "/9/BaseOS/x86_64/os/repodata/repomd.xml.asc": "x"}, "signature"},
		"the folder of a Leap": {"opensuse-leap", map[string]string{"/distribution/leap/15.6/repo/oss/repodata/repomd.xml": sampleRepomd}, "repomd.xml.asc is not beside it"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var here string
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				text, ok := c.files[strings.Replace(r.URL.Path, "aarch64", "x86_64", 1)]
				if !ok {
					http.NotFound(w, r)
					return
				}
				w.Write([]byte(strings.Replace(text, "HERE", here, 1)))
			}))
			defer s.Close()
			here = s.URL
			p, err := New(c.distro, repo.Options{CacheDir: t.TempDir(), Mirrors: map[string][]string{c.distro: {s.URL}}})
			if err != nil {
				t.Fatal(err)
			}
			switch signed, err := p.Probe(t.Context(), p.Mirrors()[0]); {
			case c.says == "" && (err != nil || signed):
				t.Errorf("%v, %v", signed, err)
			case c.says != "" && (err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), s.URL+"/")):
				t.Errorf("%v; want %s", err, c.says)
			}
		})
	}
}
