package ui

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

var results = []Result{
	{Module: "hello", Version: "1.0", Kernel: label, Distro: "debian", Suite: "bookworm", Status: Built, Key: "sha256:aa", Digest: "sha256:" + strings.Repeat("0f", 32), Compiler: "gcc-12", Modules: []Module{
		{Name: "b", Path: "out/debian-bookworm/6.1.0-56-amd64/sub/b.ko", SHA256: "bb", Vermagic: "6.1.0-56-amd64 SMP "},
		{Name: "a", Path: "out/debian-bookworm/6.1.0-56-amd64/a.ko", SHA256: "aa", Vermagic: "<&>"},
	}, Log: "out/debian-bookworm/6.1.0-56-amd64/build.log", Seconds: 1.23456},
	{Module: "hello", Version: "1.0", Kernel: "debian/trixie:6.12.115+deb13-amd64", Distro: "debian", Suite: "trixie", Status: Failed, Reason: "hello.c:3:2: error: \x1b[2Jgone\nnext"},
	{Module: "hello", Version: "1.0", Kernel: "debian/sid:7.0-amd64", Distro: "debian", Suite: "sid", Status: Skipped, Reason: "BUILD_EXCLUSIVE_KERNEL does not match", Key: "\u009b2J\u202e"},
}

func TestPrintText(t *testing.T) {
	var out bytes.Buffer
	if err := PrintText(&out, results); err != nil {
		t.Fatal(err)
	}
	want := `
debian/bookworm:6.1.0-56-amd64      built    sha256:0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f  out/debian-bookworm/6.1.0-56-amd64
debian/trixie:6.12.115+deb13-amd64  failed   hello.c:3:2: error: gone next
debian/sid:7.0-amd64                skipped  BUILD_EXCLUSIVE_KERNEL does not match
`[1:]
	if out.String() != want {
		t.Errorf("text:\n%s\nwant:\n%s", &out, want)
	}
}

// Where there are several sources, each line names its own.
func TestPrintTextOfSeveral(t *testing.T) {
	var out bytes.Buffer
	if err := PrintText(&out, []Result{
		{Module: "a", Version: "1", Kernel: label, Status: Skipped, Reason: "because"},
		{Module: "long", Version: "2.0", Kernel: label, Status: Failed, Reason: "so"},
	}); err != nil {
		t.Fatal(err)
	}
	want := label + " a/1       skipped  because\n" + label + " long/2.0  failed   so\n"
	if out.String() != want {
		t.Errorf("text:\n%s\nwant:\n%s", &out, want)
	}
}

func TestPrintJSON(t *testing.T) {
	var out bytes.Buffer
	if err := PrintJSON(&out, results[:1]); err != nil {
		t.Fatal(err)
	}
	want := `
{
  "results": [
    {
      "module": "hello",
      "version": "1.0",
      "kernel": "debian/bookworm:6.1.0-56-amd64",
      "distro": "debian",
      "suite": "bookworm",
      "release": "",
      "status": "built",
      "reason": "",
      "why": "",
      "key": "sha256:aa",
      "digest": "sha256:0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f",
      "compiler": "gcc-12",
      "modules": [
        {
          "name": "b",
          "path": "out/debian-bookworm/6.1.0-56-amd64/sub/b.ko",
          "sha256": "bb",
          "vermagic": "6.1.0-56-amd64 SMP "
        },
        {
          "name": "a",
          "path": "out/debian-bookworm/6.1.0-56-amd64/a.ko",
          "sha256": "aa",
          "vermagic": "<&>"
        }
      ],
      "log": "out/debian-bookworm/6.1.0-56-amd64/build.log",
      "hint": "",
      "seconds": 1.235
    }
  ]
}
`[1:]
	if out.String() != want {
		t.Errorf("JSON:\n%s\nwant:\n%s", &out, want)
	}
}

func TestPrintJSONIsSafeAndFaithful(t *testing.T) {
	var out bytes.Buffer
	if err := PrintJSON(&out, results); err != nil {
		t.Fatal(err)
	}
	if got := Clean(out.String()); got != out.String() {
		t.Errorf("control characters in %q", out.String())
	}
	if strings.Contains(out.String(), "null") {
		t.Errorf("null in %s", &out)
	}
	var back struct{ Results []Result }
	if err := json.Unmarshal(out.Bytes(), &back); err != nil {
		t.Fatal(err)
	}
	for i := range results {
		if back.Results[i].Reason != results[i].Reason || back.Results[i].Key != results[i].Key {
			t.Errorf("result %d came back as %+v", i, back.Results[i])
		}
	}
	out.Reset()
	if err := PrintJSON(&out, nil); err != nil || out.String() != "{\n  \"results\": []\n}\n" {
		t.Errorf("no results: %q, %v", &out, err)
	}
}

func TestFolder(t *testing.T) {
	for want, paths := range map[string][]string{
		"":      nil,
		"out/a": {"out/a/x.ko"},
		"out":   {"out/a/x.ko", "out/ab/y.ko"},
		"/":     {"/a/x.ko", "/b/x.ko"},
		".":     {"x.ko", "a/x.ko"},
	} {
		var m []Module
		for _, p := range paths {
			m = append(m, Module{Path: p})
		}
		if got := folder(m); got != want {
			t.Errorf("folder(%q) = %q; want %q", paths, got, want)
		}
	}
}
