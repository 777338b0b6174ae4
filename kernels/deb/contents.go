package deb

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/godkms-hermetic/godkms-hermetic/internal/decompress"
	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/mirror"
	"github.com/godkms-hermetic/godkms-hermetic/kernels"
	"github.com/godkms-hermetic/godkms-hermetic/kernels/repo"
)

// A Contents index lists every file of every package: 670 MB of text for Debian 12. Nineteen of twenty lines are of files that no build
// can miss. The others are kept, as lines of a path, a tab and package names with commas between, packed with zstd, which has a
// checksum: 2.6 MB, which are searched from begin to end in 0.1 s.
const (
	contentsMagic = "deb-files1\n"
	maxFiles      = 256 << 20 // bytes of the lines that are kept
)

// maxDeep is how many packages may have a header in folders that a compiler doesn't look into by itself. Names that more of them
// have, such as config.h, say nothing.
const maxDeep = 4

var errDamagedFiles = errors.New("list of files is damaged")

// Holders implements kernels.Finder, by the component main of the suite's first pocket.
func (p *Provider) Holders(ctx context.Context, suite, arch string, wanted []kernels.Wanted, progress func(done, total int64)) ([][]string, error) {
	out, err := p.of(arch).holders(ctx, suite, arch, wanted, progress)
	if err != nil {
		return nil, fmt.Errorf("files of %s/%s %s: %w", p.distro.name, suite, arch, err)
	}
	return out, nil
}

func (p *Provider) holders(ctx context.Context, suite, arch string, wanted []kernels.Wanted, progress func(done, total int64)) ([][]string, error) {
	return answer(ctx, p, suite, arch, func(v *view) ([][]string, error) {
		var lists []listed
		var archs []string
		for _, a := range []string{arch, "all"} { // a suite may list the latter with each of the others
			l := indexesOf(v.main(), func(t part) (indexRef, bool) { ref, ok := t.Contents[a]; return ref, ok })
			if len(l) > 0 { // of several mirrors the first one's will do
				lists, archs = append(lists, l[0]), append(archs, a)
			}
		}
		if len(lists) == 0 {
			return nil, fmt.Errorf("there is no list of files: %w", kernels.ErrNotFound)
		}
		sum := &progressSum{report: progress}
		found, errs := make([][][]holder, len(lists)), make([]error, len(lists))
		var wg sync.WaitGroup
		for i, l := range lists {
			part := sum.part(l.ref.Size)
			wg.Go(func() { found[i], errs[i] = p.searchFiles(ctx, l, archs[i], wanted, part) })
		}
		wg.Wait()
		for _, err := range errs {
			if err != nil {
				return nil, err
			}
		}
		pool, err := p.pool(ctx, v, arch, false)
		if err != nil {
			return nil, err
		}
		pool.Lock()
		defer pool.Unlock()
		out := make([][]string, len(wanted))
		for i, w := range wanted {
			var all []holder
			for _, f := range found {
				all = append(all, f[i]...)
			}
			names := best(w, all)
			for _, name := range names {
				if have, err := pool.named(name); err != nil {
					return nil, err
				} else if len(have) > 0 {
					out[i] = append(out[i], name)
				}
			}
		}
		return out, nil
	})
}

// progressSum adds up the progress of parts.
type progressSum struct {
	report      func(done, total int64)
	mu          sync.Mutex
	done, total int64
}

// part gives what one part is to call. All parts are asked for before the first of them begins.
func (s *progressSum) part(size int64) func(done int64) {
	s.total += size
	var last int64
	return func(done int64) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.done += done - last
		last = done
		s.report(s.done, s.total)
	}
}

// searchFiles searches the list of files of one architecture, which it fetches if need be.
func (p *Provider) searchFiles(ctx context.Context, l listed, arch string, wanted []kernels.Wanted, progress func(done int64)) ([][]holder, error) {
	pk := l.parts[0].pocket
	path := p.keep.Path(pk.name, arch+"-"+l.ref.SHA256[:32]+".files")
	found, err := searchFile(ctx, path, wanted)
	if err == nil || ctx.Err() != nil {
		return found, err
	}
	if p.opts.Offline {
		return nil, fmt.Errorf("no usable list of files of %q for %s in the cache (%w): run once without --offline", pk.name, arch, err)
	}
	lock, err := durable.Lock(ctx, p.keep.Path(pk.name, ".lock-files-"+arch), false)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if found, err = searchFile(ctx, path, wanted); err == nil || ctx.Err() != nil { // another one may have fetched it
		return found, err
	}
	err = p.fetchIndex(ctx, "files of "+pk.name+" "+arch, l, progress, func(url string, text io.Reader) error {
		return p.keep.Write(path, func(w io.Writer) error {
			if err := buildFiles(ctx, w, text); err != nil {
				return fmt.Errorf("read %s: %w", url, err)
			}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	p.keep.Prune(path, arch+"-", ".files")
	return searchFile(ctx, path, wanted)
}

// buildFiles keeps of a Contents index what a build can miss.
func buildFiles(ctx context.Context, w io.Writer, text io.Reader) error {
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		return err
	}
	defer z.Close()
	if _, err := io.WriteString(z, contentsMagic); err != nil {
		return err
	}
	left := maxFiles
	out := make([]byte, 0, 4<<10)
	err = readContents(ctx, text, func(path, packages []byte) error {
		if !telling(path) {
			return nil
		}
		out = append(append(out[:0], path...), '\t')
		for name := range bytes.SplitSeq(packages, []byte(",")) {
			name = name[bytes.LastIndexByte(name, '/')+1:] // without its section
			if validName(string(name)) {
				out = append(append(out, name...), ',')
			}
		}
		if out[len(out)-1] == '\t' {
			return nil
		}
		out[len(out)-1] = '\n'
		if left -= len(out); left < 0 {
			return mirror.ErrTooLarge
		}
		_, err := z.Write(out)
		return err
	})
	if err != nil {
		return err
	}
	return z.Close()
}

// readContents calls each for every line of a Contents index (https://wiki.debian.org/DebianRepository/Format#A.22Contents.22_indices):
// a path, which may have spaces in it, spaces, and the packages with commas between. What is no such line is passed over, as
// the format asks for. The slices are only valid until the next line.
func readContents(ctx context.Context, text io.Reader, each func(path, packages []byte) error) error {
	br := bufio.NewReaderSize(text, maxLine)
	for n := 1; ; n++ {
		line, err := br.ReadSlice('\n')
		if err == bufio.ErrBufferFull {
			return fmt.Errorf("line %d is longer than %d bytes", n, maxLine)
		}
		if err != nil && err != io.EOF {
			return err
		}
		last := err == io.EOF
		if n%1024 == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		line = bytes.TrimRight(line, " \t\r\n")
		if i := bytes.LastIndexAny(line, " \t"); i > 0 {
			if path := bytes.TrimRight(line[:i], " \t"); len(path) > 0 && bytes.IndexByte(path, '\t') < 0 {
				if err := each(bytes.TrimPrefix(path, []byte("./")), line[i+1:]); err != nil {
					return err
				}
			}
		}
		if last {
			return nil
		}
	}
}

var programDirs = []string{"usr/bin/", "bin/", "usr/sbin/", "sbin/"}

const includeDir = "usr/include/"

// telling says whether a build can miss a file: a program, a header, what pkg-config reads, or what a linker does.
func telling(path []byte) bool {
	if bytes.HasPrefix(path, []byte(includeDir)) {
		return true
	}
	for _, dir := range programDirs {
		if bytes.HasPrefix(path, []byte(dir)) {
			return bytes.IndexByte(path[len(dir):], '/') < 0
		}
	}
	return bytes.HasSuffix(path, []byte(".pc")) || bytes.HasSuffix(path, []byte(".so")) && inLibDir(string(path)) ||
		bytes.HasSuffix(path, []byte(".a")) && inLibDir(string(path))
}

// inLibDir says whether a file is where the linker looks: in lib or usr/lib, or their folder of an architecture.
func inLibDir(path string) bool {
	rest, ok := strings.CutPrefix(strings.TrimPrefix(path, "usr/"), "lib/")
	return ok && (strings.Count(rest, "/") == 0 || strings.Count(rest, "/") == 1 && isTriplet(rest[:strings.IndexByte(rest, '/')]))
}

// isTriplet tells the name of an architecture's folder, x86_64-linux-gnu.
func isTriplet(s string) bool { return strings.Contains(s, "-linux-gnu") }

// A holder is a package that has a thing, and how far its place is from the best one.
type holder struct {
	name string
	far  int
}

// match says whether a path is that of a wanted thing, and how far it is from the best place.
func match(w kernels.Wanted, path string) (far int, ok bool) {
	switch w.Kind {
	case kernels.Program:
		for i, dir := range programDirs {
			if name, ok := strings.CutPrefix(path, dir); ok {
				return i / 2, name == w.Name
			}
		}
	case kernels.Header:
		rest, ok := strings.CutPrefix(path, includeDir)
		if !ok {
			return 0, false
		}
		if dir, below, ok := strings.Cut(rest, "/"); ok && isTriplet(dir) {
			rest = below
		}
		above, ok := strings.CutSuffix(rest, w.Name)
		if !ok || above != "" && !strings.HasSuffix(above, "/") {
			return 0, false
		}
		return strings.Count(above, "/"), true
	case kernels.PkgConfig:
		dir, ok := strings.CutSuffix(path, "/pkgconfig/"+w.Name+".pc")
		return 0, ok && (dir == "usr/share" || inLibDir(dir+"/x"))
	case kernels.Library:
		name := path[strings.LastIndexByte(path, '/')+1:]
		if !inLibDir(path) {
			return 0, false
		}
		if name == "lib"+w.Name+".a" {
			return 1, true
		}
		return 0, name == "lib"+w.Name+".so"
	}
	return 0, false
}

// ends are the last parts of the paths that match can accept, to tell quickly those that it can't.
func ends(w kernels.Wanted) [][]byte {
	switch w.Kind {
	case kernels.PkgConfig:
		return [][]byte{[]byte("/" + w.Name + ".pc")}
	case kernels.Library:
		return [][]byte{[]byte("/lib" + w.Name + ".so"), []byte("/lib" + w.Name + ".a")}
	default:
		return [][]byte{[]byte("/" + w.Name)}
	}
}

// best gives the packages that have a thing in the best place, the likeliest first.
func best(w kernels.Wanted, all []holder) []string {
	least := -1
	for _, h := range all {
		if least < 0 || h.far < least {
			least = h.far
		}
	}
	var names []string
	for _, h := range all {
		if h.far == least {
			names = append(names, h.name)
		}
	}
	unlikely := func(name string) int {
		switch {
		case w.Kind == kernels.Program && name == w.Name:
			return 0
		case w.Kind != kernels.Program && strings.HasSuffix(name, "-dev"):
			return 0
		}
		return 1
	}
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(unlikely(a), unlikely(b)), cmp.Compare(len(a), len(b)), cmp.Compare(a, b))
	})
	names = slices.Compact(names)
	if w.Kind == kernels.Header && least > 0 && len(names) > maxDeep {
		return nil
	}
	return names
}

// searchFile searches what buildFiles wrote.
func searchFile(ctx context.Context, path string, wanted []kernels.Wanted) ([][]holder, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out, err := searchFiles(ctx, f, wanted)
	if err != nil && ctx.Err() == nil {
		return nil, fmt.Errorf("read %q: %w", path, err)
	}
	return out, err
}

func searchFiles(ctx context.Context, packed io.Reader, wanted []kernels.Wanted) ([][]holder, error) {
	z, err := decompress.NewReader(packed)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDamagedFiles, err)
	}
	defer z.Close()
	magic := make([]byte, len(contentsMagic))
	if _, err := io.ReadFull(z, magic); err != nil || string(magic) != contentsMagic {
		return nil, errDamagedFiles
	}
	out := make([][]holder, len(wanted))
	tails := make([][][]byte, len(wanted))
	for i, w := range wanted {
		tails[i] = ends(w)
	}
	err = readContents(ctx, &repo.Capped{R: z, N: maxFiles + maxLine}, func(path, packages []byte) error {
		for i, w := range wanted {
			if !slices.ContainsFunc(tails[i], func(end []byte) bool { return bytes.HasSuffix(path, end) }) {
				continue
			}
			far, ok := match(w, string(path))
			if !ok {
				continue
			}
			for name := range strings.SplitSeq(string(packages), ",") {
				if len(out[i]) < maxHolders {
					out[i] = append(out[i], holder{name, far})
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errDamagedFiles, err)
	}
	return out, nil
}

// maxHolders bounds what is remembered of one wanted thing. Only names that say nothing come near it.
const maxHolders = 10_000
