package builder

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/cache"
	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
	"github.com/godkms-hermetic/godkms-hermetic/internal/kmod"
)

// Rebuild builds a job, whatever the cache has, and keeps nothing but the log of a failure. The result's files and image can be read
// until free is called, which is never nil.
func (b *Builder) Rebuild(ctx context.Context, j Job, w Watch) (r Result, free func()) {
	r.Key, r.Status = b.Key(j), Failed
	free = func() {}
	fail := func(err error) (Result, func()) {
		r.Err = err
		r.Reason, _, _ = strings.Cut(err.Error(), "\n")
		return r, free
	}
	o, root, err := b.make(ctx, &r, j, w)
	if err != nil {
		return fail(err)
	}
	free = o.Close
	img, err := b.pack(j, r.Key, root, o)
	if err != nil {
		return fail(err)
	}
	log := r.Log
	if err := r.read(cache.Entry{Image: img, Log: log}); err != nil {
		return fail(err)
	}
	if r.Status == Cached {
		r.Status = Built
	}
	return r, free
}

// A Change is what two results for one key don't share: a file, or something that is said of them.
type Change struct {
	Name   string            // of a file of the artifact, or what is said: "compiler"
	Values [2]string         // of a file its digest, otherwise what is said; empty where one has nothing
	Sizes  [2]int64          // of a file that both have, in bytes
	Parts  []kmod.Difference // of a file that both have
}

// Compare says where two results differ, both of which can be read. There is no Change where all bytes that a host would get are the
// same, and all that is said of what they were built on. temp is a folder for unnamed files.
func Compare(before, now Result, temp string) ([]Change, error) {
	var out []Change
	for _, f := range []struct{ what, before, now string }{
		{"status", string(before.Meta.Status), string(now.Meta.Status)},
		{"reason", before.Meta.Reason, now.Meta.Reason},
		{"headers", before.Meta.Headers, now.Meta.Headers},
		{"compiler", before.Meta.Compiler, now.Meta.Compiler},
		{"Module.symvers of the kernel", text(before.Meta.Symvers), text(now.Meta.Symvers)},
		{"header image", text(cmp.Or(before.Meta.Root, now.Meta.Root)), text(now.Meta.Root)}, // earlier versions didn't say it
	} {
		if f.before != f.now {
			out = append(out, Change{Name: f.what, Values: [2]string{f.before, f.now}})
		}
	}
	a, b := contents(before), contents(now)
	for _, c := range a {
		i := slices.IndexFunc(b, func(o content) bool { return o.name == c.name })
		if i < 0 {
			out = append(out, Change{Name: c.name, Values: [2]string{c.digest.String(), ""}})
			continue
		}
		o := b[i]
		if c.about != o.about {
			out = append(out, Change{Name: c.name, Values: [2]string{c.about, o.about}})
		}
		if c.digest == o.digest {
			continue
		}
		change := Change{Name: c.name, Values: [2]string{c.digest.String(), o.digest.String()}, Sizes: [2]int64{c.size, o.size}}
		var err error
		if change.Parts, err = diff(c, o, temp); err != nil {
			return nil, fmt.Errorf("compare %s: %w", c.name, err)
		}
		out = append(out, change)
	}
	for _, o := range b {
		if !slices.ContainsFunc(a, func(c content) bool { return c.name == o.name }) {
			out = append(out, Change{Name: o.name, Values: [2]string{"", o.digest.String()}})
		}
	}
	if len(out) == 0 && before.Digest != now.Digest && before.Meta.Root != (v1.Hash{}) { // as of what is altered in a way that nobody thought of
		out = append(out, Change{Name: "artifact", Values: [2]string{text(before.Digest), text(now.Digest)}})
	}
	return out, nil
}

func text(h v1.Hash) string {
	if h == (v1.Hash{}) {
		return ""
	}
	return h.String()
}

// content is a file of a result.
type content struct {
	name, about string
	size        int64
	digest      v1.Hash
	open        func() (io.ReadCloser, error)
}

func contents(r Result) (out []content) {
	for _, f := range r.Files {
		out = append(out, content{f.Name, "in " + f.Dest, f.Size, f.Digest, f.Open})
	}
	for _, e := range r.Meta.Extras {
		about := "runs " + e.Command
		if e.Command != "" && !e.Executable {
			about += ", which isn't executable"
		}
		out = append(out, content{e.Name, about, e.Size, e.Digest, e.Open})
	}
	return out
}

// diff compares files, which are read in any order for that.
func diff(a, b content, temp string) ([]kmod.Difference, error) {
	var at [2]*os.File
	for i, c := range []content{a, b} {
		var err error
		if at[i], err = durable.Unnamed(temp); err != nil {
			return nil, err
		}
		defer at[i].Close()
		r, err := c.open()
		if err != nil {
			return nil, err
		}
		n, err := io.Copy(at[i], r)
		r.Close()
		if err == nil && n != c.size {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return nil, err
		}
	}
	return kmod.Diff(at[0], at[1], a.size, b.size)
}
