package deb

import (
	"fmt"
	"maps"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// mirrors settles each archive's URLs, in the archives' order: those given, else the siblings of the given ones of the main archive, else
// the one of the apt configuration, else the sibling of the main archive found there, else the default.
func (d *distro) mirrors(given map[string][]string, aptDir string) ([]repo.Mirror, error) {
	known := make([]string, len(d.archives))
	for i, a := range d.archives {
		known[i] = a.name
	}
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("mirror of %q: the archives of %s are %s", name, d.name, strings.Join(known, ", "))
		}
		for _, m := range given[name] {
			u, err := url.Parse(m)
			if err != nil {
				return nil, fmt.Errorf("mirror of %q: %w", name, err)
			}
			if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
				return nil, fmt.Errorf("mirror of %q: %q is no http or https URL of a folder", name, m)
			}
		}
	}
	main := d.archives[0]
	apt := d.aptMirrors(aptDir)
	var out []repo.Mirror
	for _, a := range d.archives {
		for _, from := range []struct {
			what string
			urls []string
		}{
			{repo.Given, given[a.name]},
			{repo.Given, siblings(given[main.name], main.name, a.name)},
			{repo.FromHost, []string{apt[a.name]}},
			{repo.FromHost, siblings([]string{apt[main.name]}, main.name, a.name)},
			{repo.BuiltIn, []string{a.url}},
		} {
			before := len(out)
			for _, u := range from.urls {
				m := repo.Mirror{Archive: a.name, URL: strings.TrimRight(u, "/"), From: from.what}
				if m.URL != "" && !slices.Contains(out[before:], m) {
					out = append(out, m)
				}
			}
			if len(out) > before {
				break
			}
		}
	}
	return out, nil
}

// snapshotForm is the last part of the path of an archive as it was at a time: "20240301T083000Z".
var snapshotForm = regexp.MustCompile(`^[0-9]{8}T[0-9]{6}Z$`)

// siblings replaces the last part of URLs' paths, a snapshot's time aside, by to. Those where it isn't from have none.
func siblings(urls []string, from, to string) []string {
	var out []string
	for _, u := range urls {
		u, time := strings.TrimRight(u, "/"), ""
		if i := strings.LastIndexByte(u, '/'); i >= 0 && snapshotForm.MatchString(u[i+1:]) {
			u, time = u[:i], u[i:]
		}
		if dir, ok := strings.CutSuffix(u, "/"+from); ok {
			out = append(out, dir+"/"+to+time)
		}
	}
	return out
}

// An aptSource is one source of binary packages in an apt configuration.
type aptSource struct {
	uri, suite string
	components []string
	signedBy   string
}

// aptMirrors finds the distribution's archives in an apt configuration: the first source over http of each archive with a suite that
// is ours, the component main, and no key of someone else. Configuration that cannot be read is passed over.
func (d *distro) aptMirrors(dir string) map[string]string {
	var sources []aptSource
	files := []string{filepath.Join(dir, "sources.list")}
	entries, _ := os.ReadDir(filepath.Join(dir, "sources.list.d")) // sorted by name, as apt reads them
	for _, e := range entries {
		files = append(files, filepath.Join(dir, "sources.list.d", e.Name()))
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		switch path.Ext(file) {
		case ".list":
			sources = append(sources, oneLineSources(string(text))...)
		case ".sources":
			sources = append(sources, deb822Sources(string(text))...)
		}
	}
	out := map[string]string{}
	for _, s := range sources {
		u, err := url.Parse(s.uri)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
			continue
		}
		name, ok := d.archiveOf(s)
		if ok && out[name] == "" {
			out[name] = strings.TrimRight(s.uri, "/")
		}
	}
	return out
}

// archiveOf tells which archive a source is, by its suite.
func (d *distro) archiveOf(s aptSource) (string, bool) {
	if !slices.Contains(s.components, "main") {
		return "", false
	}
	if s.signedBy != "" && !strings.HasPrefix(path.Base(s.signedBy), d.name+"-archive-") {
		return "", false
	}
	if d.isOurs != nil && !d.isOurs(s) {
		return "", false
	}
	suite := strings.TrimRight(s.suite, "/")
	for _, alias := range d.aliases { // any of ours: they share archives
		if suite == alias || strings.HasPrefix(suite, alias+"-") || strings.HasPrefix(suite, alias+"/") {
			suite = d.suites[len(d.suites)-1].name + suite[len(alias):]
		}
	}
	if base, ok := strings.CutSuffix(suite, "/updates"); ok { // security, up to Debian 10
		suite = base + "-security"
	}
	for _, known := range d.suites {
		for _, pk := range known.pockets {
			if suite == pk.name {
				return pk.archive, true
			}
		}
	}
	return "", false
}

// oneLineSources reads the form of sources.list(5): deb [options] uri suite components...
func oneLineSources(text string) []aptSource {
	var out []aptSource
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		kind, rest, _ := strings.Cut(strings.TrimSpace(strings.ReplaceAll(line, "\t", " ")), " ")
		if kind != "deb" {
			continue
		}
		rest = strings.TrimSpace(rest)
		var s aptSource
		if opts, ok := strings.CutPrefix(rest, "["); ok {
			opts, rest, ok = strings.Cut(opts, "]")
			if !ok {
				continue
			}
			for opt := range strings.FieldsSeq(opts) {
				if v, ok := strings.CutPrefix(opt, "signed-by="); ok {
					s.signedBy, _, _ = strings.Cut(v, ",")
				}
			}
		}
		f := strings.Fields(rest)
		if len(f) < 3 { // a flat repository, or none
			continue
		}
		s.uri, s.suite, s.components = f[0], f[1], f[2:]
		out = append(out, s)
	}
	return out
}

// deb822Sources reads the stanzas of .sources files.
func deb822Sources(text string) []aptSource {
	var out []aptSource
	fields := map[string]string{}
	field := ""
	flush := func() {
		f := fields
		fields, field = map[string]string{}, ""
		if !slices.Contains(strings.Fields(f["types"]), "deb") || slices.Contains([]string{"no", "false", "0", "off", "without", "disable"},
			strings.ToLower(strings.TrimSpace(f["enabled"]))) {
			return
		}
		signedBy := ""
		if s := strings.Fields(f["signed-by"]); len(s) > 0 && !strings.Contains(f["signed-by"], "BEGIN PGP") {
			signedBy = s[0]
		}
		for uri := range strings.FieldsSeq(f["uris"]) {
			for suite := range strings.FieldsSeq(f["suites"]) {
				out = append(out, aptSource{uri, suite, strings.Fields(f["components"]), signedBy})
			}
		}
	}
	for line := range strings.Lines(text) {
		switch trimmed := strings.TrimSpace(line); {
		case strings.HasPrefix(line, "#"):
		case trimmed == "":
			flush()
		case line[0] == ' ' || line[0] == '\t':
			if field != "" {
				fields[field] += " " + trimmed
			}
		default:
			name, value, ok := strings.Cut(trimmed, ":")
			if !ok {
				field = ""
				continue
			}
			field = strings.ToLower(strings.TrimSpace(name))
			fields[field] = strings.TrimSpace(value)
		}
	}
	flush()
	return out
}
