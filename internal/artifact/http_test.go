package artifact_test

import (
	"io"
	"log"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"

	v1registry "github.com/google/go-containerregistry/pkg/registry"
)

func newRegistry(opts ...v1registry.Option) http.Handler {
	return v1registry.New(append(opts, v1registry.Logger(log.New(io.Discard, "", 0)))...)
}

func countRequests(h http.Handler, n *int) http.Handler {
	var mu sync.Mutex
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		*n++
		mu.Unlock()
		h.ServeHTTP(w, r)
	})
}

// putBlob uploads a blob.
func putBlob(t *testing.T, server, repo, content string) {
	t.Helper()
	u := server + "/v2/" + repo + "/blobs/uploads/?digest=" + url.QueryEscape(hash(content).String())
	resp, err := http.Post(u, "application/octet-stream", strings.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("upload: %s", resp.Status)
	}
}
