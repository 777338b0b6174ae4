// Package hermetic_test checks what holds for the whole repository.
package hermetic_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/format"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/godkms-hermetic/godkms-hermetic"

// leaves may be imported by every package, and import none of ours.
var leaves = []string{"internal/decompress", "internal/durable", "internal/mirror", "internal/registry"}

// mayImport is the map of section 1 of the design; "*" is every package. Tests may import more.
var mayImport = map[string][]string{
	"cmd/godkms-hermetic":      {"internal/cli"},
	"internal/cli":             {"*"},
	"kernels":                  {},
	"kernels/repo":             {"kernels"},
	"kernels/deb":              {"kernels", "kernels/repo"},
	"kernels/rpm":              {"kernels", "kernels/repo"},
	"kernels/pacman":           {"kernels", "kernels/repo"},
	"images":                   {"kernels", "internal/kmod"},
	"cache":                    {"internal/artifact"},
	"builder":                  {"kernels", "cache", "builder/dkms", "internal/artifact", "internal/kmod"},
	"builder/dkms":             {},
	"builder/guest":            {"builder"},
	"builder/sandbox":          {"builder", "builder/guest"},
	"builder/docker":           {"builder", "builder/guest"},
	"builder/enginetest":       {"builder", "kernels"},
	"builder/enginetest/probe": {},
	"internal/artifact":        {},
	"internal/kmod":            {},
	"internal/host":            {"kernels", "internal/artifact", "internal/kmod"},
	"internal/distpkg":         {},
	"internal/ui":              {"internal/trial"},
	"internal/decompress":      {},
	"internal/durable":         {},
	"internal/mirror":          {},
	"internal/registry":        {},
	"internal/dockertest":      {"internal/need"},
	"internal/distrotest":      {"images", "internal/dkmstest", "internal/need", "kernels", "kernels/deb", "kernels/repo"},
	"internal/dkmstest":        {"images", "internal/need", "kernels", "kernels/deb"},
	"internal/registrytest":    {"internal/need"},
	"internal/memtest":         {},
	"internal/hosttest":        {"internal/dkmstest", "internal/need", "kernels"},
	"internal/need":            {},
	"internal/qemu":            {},
	"internal/trial":           {"internal/kmod", "internal/qemu"},
	"scripts":                  {},
	"scripts/bench":            {"internal/artifact", "internal/dkmstest", "internal/host", "internal/kmod", "internal/registrytest", "kernels"},
	"scripts/package":          {"internal/cli", "internal/distpkg", "internal/host"},
	"scripts/compare-dkms":     {"builder/dkms", "internal/dkmstest", "kernels"},
}

// onlyIn says in which one package an outside module is used.
var onlyIn = map[string]string{
	"github.com/docker/docker":                             "builder/docker",
	"github.com/vbauerster/mpb":                            "internal/ui",
	"github.com/goreleaser/nfpm":                           "internal/distpkg",
	"github.com/mattn/go-isatty":                           "nowhere",
	"github.com/spf13/viper":                               "nowhere",
	"github.com/stretchr/testify":                          "nowhere",
	"github.com/google/go-containerregistry/pkg/v1/daemon": "nowhere", // it brings a client that Debian 12's Engine refuses
}

// ends are the only calls of panic, os.Exit and log.Fatal outside of main packages and tests: file and function, how many,
// and why.
var ends = map[string]struct {
	n   int
	why string
}{
	"builder/guest/relay.go Relay": {1, "the first process of a container whose commands can't be ended: its own end is theirs"},
	"kernels/kernels.go encode":    {1, "marshals strings and numbers: cannot fail"},
}

type pkg struct {
	ImportPath, Name, Dir            string
	Imports, GoFiles, IgnoredGoFiles []string
	TestImports, XTestImports        []string
}

func (p pkg) path() string { return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/") }

func packages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Name,Dir,Imports,GoFiles,IgnoredGoFiles,TestImports,XTestImports", "./...")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var all []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); dec.More(); {
		var p pkg
		if err := dec.Decode(&p); err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) < 3 {
		t.Fatalf("go list found %d packages", len(all))
	}
	return all
}

func TestImports(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.GoFiles) == 0 {
			continue
		}
		name := p.path()
		rule, known := mayImport[name]
		if dir, _, _ := strings.Cut(name, "/"); !known && dir == "scripts" {
			rule, known = mayImport[dir]
		}
		if !known {
			t.Errorf("%s is not on the map: say in house_test.go what it may import", name)
		}
		for _, imp := range p.Imports {
			ours, inside := strings.CutPrefix(imp, module+"/")
			if inside && !slices.Contains(leaves, ours) && !slices.Contains(rule, ours) && !slices.Contains(rule, "*") {
				t.Errorf("%s imports %s; it may import %q", name, ours, rule)
			}
		}
		for _, imp := range slices.Concat(p.Imports, p.TestImports, p.XTestImports) {
			for outside, only := range onlyIn {
				if strings.HasPrefix(imp, outside) && name != only {
					t.Errorf("%s imports %s, which belongs %s", name, imp, only)
				}
			}
		}
	}
}

func TestPackageComments(t *testing.T) {
	for _, p := range packages(t) {
		var docs []string
		for _, f := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, f), nil, parser.PackageClauseOnly|parser.ParseComments)
			if err != nil {
				t.Fatal(err)
			}
			if file.Doc != nil {
				docs = append(docs, file.Doc.Text())
			}
		}
		if len(p.GoFiles) == 0 {
			continue
		}
		if len(docs) != 1 {
			t.Errorf("%s has %d package comments, want one", p.path(), len(docs))
			continue
		}
		doc := strings.ReplaceAll(docs[0], "\n", " ")
		sentence, _, ok := strings.Cut(doc, ". ")
		if !ok || p.Name != "main" && !strings.HasPrefix(sentence, "Package "+p.Name+" ") {
			t.Errorf("%s opens with %q, want one sentence that begins with its name", p.path(), doc)
		}
	}
}

// Every Go file is gofmt'd, and none outside of tests has a func init. Outside of main packages nothing ends the program.
func TestGoFiles(t *testing.T) {
	found := map[string]int{}
	for _, path := range files(t) {
		if filepath.Ext(path) != ".go" {
			continue
		}
		src, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if want, err := format.Source(src); err != nil || !bytes.Equal(src, want) {
			t.Errorf("%s is not gofmt'd (%v)", path, err)
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, path, src, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || strings.HasSuffix(path, "_test.go") {
				continue
			}
			if fn.Name.Name == "init" && fn.Recv == nil {
				t.Errorf("%s: func init", fset.Position(fn.Pos()))
			}
			if file.Name.Name == "main" || strings.HasPrefix(path, "builder/enginetest/") {
				continue
			}
			ast.Inspect(fn, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok {
					return true
				}
				name := callee(call)
				if name == "panic" || name == "os.Exit" || strings.HasPrefix(name, "log.Fatal") || strings.HasPrefix(name, "log.Panic") {
					found[path+" "+fn.Name.Name]++
				}
				return true
			})
		}
	}
	for where, n := range found {
		if n != ends[where].n {
			t.Errorf("%s can end the program in %d places, want %d", where, n, ends[where].n)
		}
	}
	for where := range ends {
		if found[where] == 0 {
			t.Errorf("%s ends the program no more: take it off the list", where)
		}
	}
}

func callee(call *ast.CallExpr) string {
	switch f := call.Fun.(type) {
	case *ast.Ident:
		return f.Name
	case *ast.SelectorExpr:
		if x, ok := f.X.(*ast.Ident); ok {
			return x.Name + "." + f.Sel.Name
		}
	}
	return ""
}

// Nothing in the repository names the servers that the machine of whoever works on it gets its packages from.
func TestNoHostOfThisMachine(t *testing.T) {
	var config strings.Builder
	for _, glob := range []string{
		"/etc/apt/sources.list", "/etc/apt/sources.list.d/*.list", "/etc/apt/sources.list.d/*.sources", // apt reads no others
		"/etc/apt/apt.conf", "/etc/apt/apt.conf.d/*",
	} {
		paths, err := filepath.Glob(glob)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range paths {
			if b, err := os.ReadFile(p); err == nil { // some are for root alone
				fmt.Fprintf(&config, "%s\n", b)
			}
		}
	}
	goenv, err := exec.Command("go", "env", "GOPROXY", "GOSUMDB").Output()
	if err != nil {
		t.Fatalf("go env: %v", err)
	}
	config.Write(goenv)
	for _, v := range []string{"http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"} {
		fmt.Fprintln(&config, os.Getenv(v))
	}
	private := hosts(config.String())
	for _, path := range files(t) {
		if path == "kernels/deb/debian.go" { // the built-in mirrors, which a machine may well use
			continue
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range private {
			if bytes.Contains(b, []byte(h)) {
				t.Errorf("%s names a host of this machine's configuration", path) // without saying it again
			}
		}
	}
}

var comment = regexp.MustCompile(`(?m)^\s*(#|//).*$`)

var hostInURL = regexp.MustCompile(`://(?:[^/@\s"']*@)?([A-Za-z0-9.-]+)`)

// hosts gives the host names of a configuration's URLs.
func hosts(config string) []string {
	var out []string
	for _, m := range hostInURL.FindAllStringSubmatch(comment.ReplaceAllString(config, ""), -1) {
		h := strings.ToLower(m[1])
		local := h == "localhost" || strings.HasPrefix(h, "127.") || !strings.Contains(h, ".")
		if !local && !slices.Contains(out, h) {
			out = append(out, h)
		}
	}
	return out
}

func TestHosts(t *testing.T) {
	got := hosts("# see https://other.example.org\n  // and http://another.example.org\ndeb http://localhost/debian x\nURIs: https://user:pw@Mirror.example.net:8080/debian\nhttps://go.example.com,direct http://10.0.0.7/")
	if want := []string{"mirror.example.net", "go.example.com", "10.0.0.7"}; !slices.Equal(got, want) {
		t.Errorf("hosts: %q; want %q", got, want)
	}
}

// files gives every file of the repository but what git or a build made.
func files(t *testing.T) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case path == ".git" || path == "bin" || path == "out" || path == ".cache":
			if d.IsDir() {
				return filepath.SkipDir
			}
		case d.Type().IsRegular():
			out = append(out, path)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
