package deb

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/godkms-hermetic/godkms-hermetic/kernels"
)

const holderPackages = basePackages + `
flex 2; Provides: lex
flex-old 2
bison++ 1
libxtables-dev 1
libelf-dev 1
libelf1 1
libcurl4-openssl-dev 1
libcurl4-gnutls-dev 1
libglib2.0-dev 1
python3-minimal 3
ethtool 1
linux-libc-dev 6 all
a-dev 1
b-dev 1
c-dev 1
d-dev 1
e-dev 1
`

var holderContents = map[string]string{
	"amd64": `FILE                  LOCATION
bin/sh                                                  shells/dash
usr/bin/flex                                            devel/flex,devel/flex-old
usr/bin/lex                                             devel/flex
usr/share/doc/flex/flex                                 doc/elsewhere
usr/lib/flex/flex                                       devel/elsewhere
usr/bin/python3			                                      python/python3-minimal
usr/sbin/ethtool                                        net/ethtool
usr/include/xtables.h                                   libdevel/libxtables-dev
usr/include/xtables-of-mine/xtables.h                   libdevel/a-dev
usr/include/x86_64-linux-gnu/curl/curl.h                libdevel/libcurl4-openssl-dev,libdevel/libcurl4-gnutls-dev
usr/include/curl/curl.h                                 libs/curl-of-contrib
usr/arm-linux-gnueabi/include/xtables.h                 devel/cross
usr/include/glib-2.0/glib.h                             libdevel/libglib2.0-dev
usr/include/glib-2.0/more/deep/glib.h                   libdevel/b-dev
usr/include/a/config.h                                  libdevel/a-dev,libdevel/b-dev,libdevel/c-dev
usr/include/b/config.h                                  libdevel/d-dev,libdevel/e-dev
usr/include/with space.h                                libdevel/a-dev
usr/lib/x86_64-linux-gnu/pkgconfig/xtables.pc           libdevel/libxtables-dev
usr/share/pkgconfig/udev.pc                             admin/c-dev
usr/lib/x86_64-linux-gnu/other/pkgconfig/odd.pc         libdevel/a-dev
usr/lib/x86_64-linux-gnu/libelf.so                      libdevel/libelf-dev
usr/lib/x86_64-linux-gnu/libelf.a                       libdevel/b-dev
usr/lib/x86_64-linux-gnu/libelf.so.1                    libs/libelf1
usr/lib/x86_64-linux-gnu/dri/libdri.so                  libs/a-dev
lib/libonlya.a                                          libdevel/c-dev`,
	"all": `usr/include/linux/if_link.h                            kernel/linux-libc-dev
usr/bin/flex                                            contrib/devel/not-in-main
`,
}

func holdersBench(t *testing.T) *bench {
	b := newBench(t)
	b.publish(published{pocket: "bookworm", packages: stanzas(holderPackages), contents: holderContents})
	return b
}

func nobody(done, total int64) {}

func TestHolders(t *testing.T) {
	cases := []struct {
		w    kernels.Wanted
		want string
	}{
		{kernels.Wanted{Kind: kernels.Program, Name: "flex"}, "flex flex-old"},
		{kernels.Wanted{Kind: kernels.Program, Name: "lex"}, "flex"},
		{kernels.Wanted{Kind: kernels.Program, Name: "python3"}, "python3-minimal"},
		{kernels.Wanted{Kind: kernels.Program, Name: "ethtool"}, "ethtool"},
		{kernels.Wanted{Kind: kernels.Program, Name: "sh"}, "dash"},
		{kernels.Wanted{Kind: kernels.Program, Name: "bison"}, ""},
		{kernels.Wanted{Kind: kernels.Program, Name: "FILE"}, ""},
		{kernels.Wanted{Kind: kernels.Header, Name: "xtables.h"}, "libxtables-dev"},
		{kernels.Wanted{Kind: kernels.Header, Name: "tables.h"}, ""},
		{kernels.Wanted{Kind: kernels.Header, Name: "curl/curl.h"}, "libcurl4-gnutls-dev libcurl4-openssl-dev"}, // the third is not in main
		{kernels.Wanted{Kind: kernels.Header, Name: "curl.h"}, "libcurl4-gnutls-dev libcurl4-openssl-dev"},
		{kernels.Wanted{Kind: kernels.Header, Name: "glib.h"}, "libglib2.0-dev"},
		{kernels.Wanted{Kind: kernels.Header, Name: "config.h"}, ""},
		{kernels.Wanted{Kind: kernels.Header, Name: "a/config.h"}, "a-dev b-dev c-dev"},
		{kernels.Wanted{Kind: kernels.Header, Name: "with space.h"}, "a-dev"},
		{kernels.Wanted{Kind: kernels.Header, Name: "linux/if_link.h"}, "linux-libc-dev"},
		{kernels.Wanted{Kind: kernels.PkgConfig, Name: "xtables"}, "libxtables-dev"},
		{kernels.Wanted{Kind: kernels.PkgConfig, Name: "udev"}, "c-dev"},
		{kernels.Wanted{Kind: kernels.PkgConfig, Name: "odd"}, ""},
		{kernels.Wanted{Kind: kernels.Library, Name: "elf"}, "libelf-dev"},
		{kernels.Wanted{Kind: kernels.Library, Name: "onlya"}, "c-dev"},
		{kernels.Wanted{Kind: kernels.Library, Name: "dri"}, ""},
		{kernels.Wanted{Kind: "other", Name: "flex"}, ""},
		{kernels.Wanted{Kind: kernels.Header, Name: ""}, ""},
	}
	var wanted []kernels.Wanted
	for _, c := range cases {
		wanted = append(wanted, c.w)
	}
	b := holdersBench(t)
	var reported [2]int64
	for range 2 { // fetched, then kept
		got, err := b.client(Options{}).Holders(t.Context(), "bookworm", "amd64", wanted, func(done, total int64) { reported = [2]int64{done, total} })
		if err != nil {
			t.Fatal(err)
		}
		for i, c := range cases {
			if s := strings.Join(got[i], " "); s != c.want {
				t.Errorf("%v is in %q; want %q", c.w, s, c.want)
			}
		}
	}
	if reported[0] == 0 || reported[0] != reported[1] {
		t.Errorf("progress ended at %d of %d bytes", reported[0], reported[1])
	}
	if n := b.count("Contents-amd64.gz") + b.count("Contents-all.gz"); n != 0 {
		t.Errorf("the plain paths were asked for %d times; want 0", n)
	}
	if n := len(b.cached(".files")); n != 2 {
		t.Errorf("%d lists are kept; want 2", n)
	}
	asked := b.count("")
	got, err := b.client(Options{Offline: true}).Holders(t.Context(), "bookworm", "amd64", wanted[:1], nobody)
	if err != nil || !slices.Equal(got[0], []string{"flex", "flex-old"}) {
		t.Errorf("offline: %q, %v", got, err)
	}
	if n := b.count(""); n != asked {
		t.Errorf("%d requests while offline, or for what is kept", n-asked)
	}
}

func TestHoldersRefused(t *testing.T) {
	flex := []kernels.Wanted{{Kind: kernels.Program, Name: "flex"}}
	list := func(b *bench, arch string) string {
		b.mu.Lock()
		defer b.mu.Unlock()
		for path, data := range b.files {
			if strings.Contains(path, "/main/by-hash/") && bytes.Equal(data, b.files["/debian/dists/bookworm/main/Contents-"+arch+".gz"]) {
				return path
			}
		}
		t.Fatal("no list of files by its hash")
		return ""
	}
	for _, c := range []struct {
		name string
		opts Options
		spy  func(b *bench)
		want string
	}{
		{"altered", Options{}, func(b *bench) { b.files[list(b, "all")][30] ^= 1 }, "sha256"},
		{"truncated", Options{}, func(b *bench) { p := list(b, "amd64"); b.files[p] = b.files[p][:50] }, "it ends after 50 of"},
		{"missing", Options{}, func(b *bench) {
			delete(b.files, list(b, "amd64"))
			delete(b.files, "/debian/dists/bookworm/main/Contents-amd64.gz")
		}, "404"},
		{"offline", Options{Offline: true}, nil, "run once without --offline"},
		{"not listed", Options{}, func(b *bench) { b.publish(published{pocket: "bookworm", packages: stanzas(holderPackages)}) }, "not found"},
		{"long line", Options{}, func(b *bench) {
			b.publish(published{pocket: "bookworm", packages: stanzas(holderPackages),
				contents: map[string]string{"amd64": "usr/bin/" + strings.Repeat("x", maxLine) + " a/b\n"}})
		}, "line 1 is longer than"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := holdersBench(t)
			if c.spy != nil {
				c.spy(b)
			}
			if c.opts.Offline {
				if err := use(b.client(Options{})); err != nil {
					t.Fatal(err)
				}
			}
			got, err := b.client(c.opts).Holders(t.Context(), "bookworm", "amd64", flex, nobody)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Holders = %q, %v; want the error %q", got, err, c.want)
			}
			if err := use(b.client(Options{})); err != nil {
				t.Errorf("a lock fails too: %v", err)
			}
		})
	}
}

// A kept list that is damaged is fetched again, and one of before this program knew of lists makes it ask for the index again.
func TestFilesAreMadeAnew(t *testing.T) {
	b := holdersBench(t)
	b.dates[inRelease] = epoch.Add(-time.Hour)
	flex := []kernels.Wanted{{Kind: kernels.Program, Name: "flex"}}
	look := func(what string) {
		t.Helper()
		got, err := b.client(Options{}).Holders(t.Context(), "bookworm", "amd64", flex, nobody)
		if err != nil || !reflect.DeepEqual(got, [][]string{{"flex", "flex-old"}}) {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
	look("at first")
	for _, path := range b.cached(".files") {
		data := mustRead(t, path)
		for what, damaged := range map[string][]byte{
			"shortened": data[:len(data)-1], "emptied": {}, "changed": append(bytes.Clone(data[:len(data)-6]), make([]byte, 6)...), "other": []byte("nonsense"), "longer": []byte("usr/bin/flex other-package\nusr/bin/flex another\n"),
		} {
			if err := os.WriteFile(path, damaged, 0o644); err != nil {
				t.Fatal(err)
			}
			look(what)
			if again := mustRead(t, path); !bytes.Equal(again, data) {
				t.Errorf("%s: it was not made anew", what)
			}
		}
	}
	for _, path := range b.cached(".state") {
		var s map[string]any
		keep := b.client(Options{}).keep
		if !keep.ReadJSON(path, &s) || s["form"] == "" {
			t.Fatalf("%s: %v", path, s)
		}
		s["form"] = ""
		if err := keep.WriteJSON(path, s); err != nil {
			t.Fatal(err)
		}
	}
	asked := b.count("bookworm/InRelease")
	look("with a state of before")
	look("and again")
	if n := b.count("bookworm/InRelease") - asked; n != 1 {
		t.Errorf("the index was asked for %d times; want 1", n)
	}
}

func TestHoldersEnd(t *testing.T) {
	b := holdersBench(t)
	if err := use(b.client(Options{})); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("took too long"))
	defer cancel()
	b.answer = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/main/by-hash/") {
			<-r.Context().Done()
			return true
		}
		return false
	}
	_, err := b.client(Options{}).Holders(ctx, "bookworm", "amd64", []kernels.Wanted{{Kind: kernels.Program, Name: "flex"}}, nobody)
	if err == nil || !strings.Contains(err.Error(), "took too long") {
		t.Errorf("error is %v", err)
	}
}

func FuzzContents(f *testing.F) {
	f.Add([]byte(holderContents["amd64"]), "flex")
	f.Add([]byte("./usr/include/a.h\t\tx/y,z\r\n bin/a b\nbin/c\n"), "a.h")
	f.Fuzz(func(t *testing.T, text []byte, name string) {
		var packed bytes.Buffer
		if err := buildFiles(context.Background(), &packed, bytes.NewReader(text)); err != nil {
			return
		}
		var wanted []kernels.Wanted
		for _, k := range []kernels.Kind{kernels.Program, kernels.Header, kernels.PkgConfig, kernels.Library} {
			wanted = append(wanted, kernels.Wanted{Kind: k, Name: name})
		}
		found, err := searchFiles(context.Background(), &packed, wanted)
		if err != nil {
			t.Fatalf("what was kept can't be read: %v", err)
		}
		for i, holders := range found {
			for _, h := range holders {
				if !validName(h.name) {
					t.Fatalf("%v is in %q", wanted[i], h.name)
				}
				if !bytes.Contains(text, []byte(h.name)) || !bytes.Contains(text, []byte(name)) {
					t.Fatalf("%v is in %q, of which the text says nothing", wanted[i], h.name)
				}
			}
		}
	})
}

// FuzzFiles is about files of the cache that have the right checksum and the wrong content.
func FuzzFiles(f *testing.F) {
	f.Add([]byte(contentsMagic + "usr/bin/flex\tflex,flex-old\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		z, err := zstd.NewWriter(nil)
		if err != nil {
			t.Fatal(err)
		}
		searchFiles(context.Background(), bytes.NewReader(z.EncodeAll(text, nil)), []kernels.Wanted{{Kind: kernels.Header, Name: "x"}, {Kind: kernels.Program, Name: "flex"}})
	})
}

// BenchmarkHolders is the search of what is kept of as many lines as Debian 12 has.
func BenchmarkHolders(b *testing.B) {
	var text bytes.Buffer
	for i := range 350_000 {
		fmt.Fprintf(&text, "usr/include/some-library-%d/with/a/folder/header-%d.h  libdevel/some-library-%d-dev\n", i/50, i, i/50)
	}
	var packed bytes.Buffer
	if err := buildFiles(b.Context(), &packed, &text); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := searchFiles(b.Context(), bytes.NewReader(packed.Bytes()), []kernels.Wanted{{Kind: kernels.Header, Name: "xtables.h"}}); err != nil {
			b.Fatal(err)
		}
	}
}
