package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/docker/docker/api/types/filters"
	"github.com/docker/docker/api/types/image"
	"github.com/docker/docker/client"
	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
	"github.com/godkms-hermetic/godkms-hermetic/builder/guest"
)

// marker is where an image has this program, and so argv[0] of a container's first process.
const marker = "/.godkms-hermetic"

// IsInit says whether this process was started to be a container's first. A program that starts sandboxes asks before it does
// anything else, and when it's so, does nothing but os.Exit(docker.Init()).
func IsInit() bool { return os.Getpid() == 1 && len(os.Args) == 1 && os.Args[0] == marker }

// Init is the first process of a container. It returns the process's exit code.
func Init() int { return guest.Relay(os.Stdin, os.Stdout, userProcesses) }

// Labels of images: the digest of the header image, and the diffID of the layer with this program.
const (
	imageLabel   = "dev.godkms-hermetic.image"
	programLabel = "dev.godkms-hermetic.program"
)

// repository is what images are named in the Engine; the tag is the beginning of their configuration's hash.
const repository = "godkms-hermetic"

// program is this program as a layer.
type program struct {
	diffID v1.Hash
	size   int64
}

const executable = "/proc/self/exe"

// static makes sure that this program is, and so can run in any container: the image has none of its libraries.
func static() error {
	f, err := elf.Open(executable)
	if err != nil {
		return err
	}
	defer f.Close()
	if slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }) {
		return unavailable("this program needs the C library, and containers have another", "build it with CGO_ENABLED=0, as 'make build' does", errors.ErrUnsupported)
	}
	return nil
}

// write writes the layer: one file, the same bytes for the same program.
func (p *program) write(w io.Writer) error {
	f, err := os.Open(executable)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	h := &tar.Header{Name: strings.TrimPrefix(marker, "/"), Mode: 0o555, Size: info.Size(), ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR}
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	if _, err := io.Copy(tw, f); err != nil {
		return err
	}
	return tw.Close()
}

func newProgram() (*program, error) {
	p := &program{}
	h := sha256.New()
	n := &counter{}
	if err := p.write(io.MultiWriter(h, n)); err != nil {
		return nil, fmt.Errorf("read this program: %w", err)
	}
	p.size = n.n.Load()
	p.diffID = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(h.Sum(nil))}
	return p, nil
}

type counter struct{ n atomic.Int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

// load makes sure that the Engine has a root's image, and gives its name there. Images are loaded one after another, so that
// the second finds the layers of the first.
func (e *Engine) load(ctx context.Context, c *client.Client, root builder.Root) (string, error) {
	e.loading.Lock()
	defer e.loading.Unlock()
	img, err := root.Image(ctx)
	if err != nil {
		return "", err
	}
	digest, err := img.Digest()
	if err != nil {
		return "", err
	}
	if name := e.loaded[digest.String()]; name != "" {
		return name, nil
	}
	if e.program == nil {
		if e.program, err = newProgram(); err != nil {
			return "", err
		}
	}
	a, err := newArchive(img, digest, e.program)
	if err != nil {
		return "", err
	}
	if err := a.ensure(ctx, c, &e.sent); err != nil {
		return "", err
	}
	e.loaded[digest.String()] = a.name
	return a.name, nil
}

// forget has the image of that name looked for, and loaded, anew.
func (e *Engine) forget(name string) {
	e.loading.Lock()
	defer e.loading.Unlock()
	maps.DeleteFunc(e.loaded, func(_, loaded string) bool { return loaded == name })
}

// Sent is how many bytes of images the Engine was sent so far.
func (e *Engine) Sent() int64 {
	e.loading.Lock()
	defer e.loading.Unlock()
	return e.sent
}

// archive is an image in the form that "docker load" takes (moby: image/tarexport; docker-archive of containers/image).
type archive struct {
	name    string
	digest  v1.Hash // of the header image
	program *program
	config  []byte
	diffIDs []v1.Hash
	layers  []v1.Layer // nil for the program's
}

// newArchive adds the program's layer to an image. It comes after the first, which kernels with the same compiler share: so
// neither a new kernel nor a new version of the program sends that one again.
func newArchive(img v1.Image, digest v1.Hash, p *program) (*archive, error) {
	layers, err := img.Layers()
	if err != nil {
		return nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	if len(layers) == 0 || len(config.RootFS.DiffIDs) != len(layers) {
		return nil, errors.New("the image has no layers")
	}
	a := &archive{
		digest: digest, program: p,
		layers:  slices.Insert(slices.Clone(layers), 1, nil),
		diffIDs: slices.Insert(slices.Clone(config.RootFS.DiffIDs), 1, p.diffID),
	}
	config = config.DeepCopy()
	config.RootFS.DiffIDs, config.History = a.diffIDs, nil
	config.Config = v1.Config{Labels: map[string]string{imageLabel: digest.String(), programLabel: p.diffID.String()}}
	if config.OS == "" {
		config.OS = "linux"
	}
	if a.config, err = json.Marshal(config); err != nil {
		return nil, err
	}
	sum := sha256.Sum256(a.config)
	a.name = repository + ":" + hex.EncodeToString(sum[:])[:32]
	return a, nil
}

// ensure loads the image unless the Engine has it.
func (a *archive) ensure(ctx context.Context, c *client.Client, sent *int64) error {
	if a.there(ctx, c) {
		return nil
	}
	had, old, err := a.search(ctx, c)
	if err != nil {
		return err
	}
	err = a.send(ctx, c, had, sent)
	if err != nil && had > 0 && ctx.Err() == nil { // the layers went meanwhile, or this Engine wants all of them
		err = a.send(ctx, c, 0, sent)
	}
	if err != nil {
		return err
	}
	if !a.there(ctx, c) {
		return fmt.Errorf("the Engine has no image %s after it was loaded", a.name)
	}
	c.ImageTag(ctx, a.name, a.name) // notes the time, which loading doesn't
	for _, id := range old {        // of other versions of this program; one that is in use stays
		c.ImageRemove(ctx, id, image.RemoveOptions{})
	}
	return nil
}

// there says whether the Engine has the image, by its name and its layers.
func (a *archive) there(ctx context.Context, c *client.Client) bool {
	found, err := c.ImageInspect(ctx, a.name)
	return err == nil && found.RootFS.Type == "layers" && a.common(found.RootFS.Layers) == len(a.diffIDs) && len(found.RootFS.Layers) == len(a.diffIDs)
}

// common is how many of the lowest layers are the same: an Engine keeps a layer by what lies below it.
func (a *archive) common(layers []string) int {
	n := 0
	for n < len(layers) && n < len(a.diffIDs) && layers[n] == a.diffIDs[n].String() {
		n++
	}
	return n
}

// outdated is how long ago an image was loaded that another version of the program can be taken to need no more: two may be in
// use in turns.
var outdated = 24 * time.Hour

// search looks through our images in the Engine for those that have layers of this one, and for the same header image with
// another version of the program that is outdated.
func (a *archive) search(ctx context.Context, c *client.Client) (had int, old []string, err error) {
	list, err := c.ImageList(ctx, image.ListOptions{Filters: filters.NewArgs(filters.Arg("label", imageLabel))})
	if err != nil {
		return 0, nil, err
	}
	for _, i := range list {
		found, err := c.ImageInspect(ctx, i.ID)
		if err != nil {
			continue // it may have gone
		}
		if i.Labels[imageLabel] == a.digest.String() && i.Labels[programLabel] != a.program.diffID.String() && time.Since(found.Metadata.LastTagTime) > outdated {
			old = append(old, i.ID)
		}
		had = max(had, a.common(found.RootFS.Layers))
	}
	return had, old, nil
}

// send loads the image, without the lowest layers that the Engine has.
func (a *archive) send(ctx context.Context, c *client.Client, had int, sent *int64) error {
	r, w := io.Pipe()
	n := &counter{}
	go func() { w.CloseWithError(a.write(io.MultiWriter(w, n), had)) }()
	defer func() { *sent += n.n.Load() }()
	defer r.Close()
	answer, err := c.ImageLoad(ctx, r, client.ImageLoadWithQuiet(true))
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	for dec := json.NewDecoder(answer.Body); ; {
		var line struct {
			Error string `json:"error"`
		}
		if err := dec.Decode(&line); err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		if line.Error != "" {
			return errors.New(line.Error)
		}
	}
}

func (a *archive) write(w io.Writer, had int) error {
	tw := tar.NewWriter(w)
	file := func(name string, size int64, from io.Reader) error {
		if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, Format: tar.FormatPAX}); err != nil {
			return err
		}
		_, err := io.Copy(tw, from)
		return err
	}
	sum := sha256.Sum256(a.config)
	config := hex.EncodeToString(sum[:]) + ".json"
	var names []string
	for _, id := range a.diffIDs {
		names = append(names, id.Hex+".tar")
	}
	manifest, err := json.Marshal([]any{map[string]any{"Config": config, "RepoTags": []string{a.name}, "Layers": names}})
	if err != nil {
		return err
	}
	for i, layer := range a.layers {
		switch {
		case i < had:
			continue
		case layer == nil:
			if err := tw.WriteHeader(&tar.Header{Name: names[i], Mode: 0o644, Size: a.program.size, Format: tar.FormatPAX}); err != nil {
				return err
			}
			if err := a.program.write(tw); err != nil {
				return err
			}
		default:
			size, err := layer.Size()
			if err != nil {
				return err
			}
			from, err := layer.Compressed() // the Engine unpacks it; on the way to another machine it's a fifth
			if err != nil {
				return err
			}
			err = file(names[i], size, from)
			from.Close()
			if err != nil {
				return err
			}
		}
	}
	if err := file(config, int64(len(a.config)), bytes.NewReader(a.config)); err != nil {
		return err
	}
	if err := file("manifest.json", int64(len(manifest)), bytes.NewReader(manifest)); err != nil {
		return err
	}
	return tw.Close()
}
