package dkmstest

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// Step is one command of a Run, and how things were after it.
type Step struct {
	Code   int               // the command's exit code
	Output string            // what it printed
	Status []string          // lines of "dkms status"
	Files  map[string]string // modules below /lib/modules/<release>, "updates/dkms/hello.ko.xz", with their SHA-256 in hexadecimal
}

// Session is what came of a Run.
type Session struct {
	Steps []Step            // of each command
	Built map[string][]byte // modules that dkms built, by "<module>/<version>/<file>", as they were after the step that made them
}

// steps is run by bash in the root. Its arguments are a release and the commands, each a number of words and the words. Its output is a
// tar of /result.
const steps = `release=$1
shift
mkdir -p /result/built
exec 3>&1 </dev/null
n=0
while (($#)); do
	command=("${@:2:$1}")
	shift $(($1 + 1))
	mkdir /result/$n
	"${command[@]}" >/result/$n/output 2>&1
	echo $? >/result/$n/code
	dkms status >/result/$n/status 2>/dev/null
	(cd "/usr/lib/modules/$release" && find . -name '*.ko*' -exec sha256sum {} +) >/result/$n/files
	for module in /var/lib/dkms/*/*/"$release"/*/module/*.ko*; do
		[[ -f $module ]] || continue
		IFS=/ read -r _ _ _ _ m v _ <<<"$module"
		mkdir -p "/result/built/$m/$v"
		cp -n "$module" "/result/built/$m/$v/"
	done
	n=$((n + 1))
done
mkdir -p /result/end/var/lib /result/end/usr/lib/modules
cp -a /var/lib/dkms /result/end/var/lib/
cp -a "/usr/lib/modules/$release" /result/end/usr/lib/modules/
exec tar -C /result -cf - . >&3`

// Run runs commands one after the other, dkms or others, on the root with a tree of this machine laid over it, which may have
// modules in usr/lib/modules/<release>. A command that fails doesn't end it. What is at the end in /var/lib/dkms and in
// /usr/lib/modules/<release> goes below a folder of this machine, end. When ctx ends, everything in the root does.
func (r *Root) Run(ctx context.Context, tree, end string, commands [][]string) (Session, error) {
	args := []string{r.kernel.Release}
	for _, c := range commands {
		args = append(append(args, strconv.Itoa(len(c))), c...)
	}
	s, err := r.run(ctx, tree, end, args, len(commands))
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return Session{}, fmt.Errorf("run dkms on %s: %w", r.kernel, err)
	}
	return s, nil
}

func (r *Root) run(ctx context.Context, tree, end string, args []string, n int) (Session, error) {
	s := Session{Steps: make([]Step, n), Built: map[string][]byte{}}
	out, err := r.bash(ctx, tree, steps, args...)
	if err != nil {
		return s, err
	}
	said := 0
	for tr := tar.NewReader(out); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return s, err
		}
		name := path.Clean(h.Name)
		if rest, ok := strings.CutPrefix(name, "end/"); ok {
			if err := place(filepath.Join(end, rest), h, tr); err != nil {
				return s, err
			}
			continue
		}
		if h.Typeflag != tar.TypeReg {
			continue
		}
		b, err := io.ReadAll(tr)
		if err != nil {
			return s, err
		}
		if module, ok := strings.CutPrefix(name, "built/"); ok {
			s.Built[module] = b
			continue
		}
		i, err := strconv.Atoi(path.Dir(name))
		if err != nil || i >= n {
			return s, fmt.Errorf("it has printed a file %q", name)
		}
		step := &s.Steps[i]
		switch path.Base(name) {
		case "code":
			step.Code, err = strconv.Atoi(strings.TrimSpace(string(b)))
			said++
		case "output":
			step.Output = string(b)
		case "status":
			step.Status = strings.Split(strings.TrimRight(string(b), "\n"), "\n")
			if len(b) == 0 {
				step.Status = nil
			}
		case "files":
			step.Files = map[string]string{}
			for line := range strings.Lines(string(b)) {
				sum, file, _ := strings.Cut(strings.TrimRight(line, "\n"), "  ")
				step.Files[path.Clean(file)] = sum
			}
		}
		if err != nil {
			return s, err
		}
	}
	if said != n {
		return s, errors.New("it has not said how all commands ended")
	}
	return s, nil
}

// place writes what a tar has.
func place(name string, h *tar.Header, content io.Reader) error {
	switch h.Typeflag {
	case tar.TypeDir:
		return os.MkdirAll(name, 0o755)
	case tar.TypeSymlink:
		return os.Symlink(h.Linkname, name)
	case tar.TypeReg:
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, h.FileInfo().Mode().Perm())
		if err != nil {
			return err
		}
		_, err = io.Copy(f, content)
		return errors.Join(err, f.Close(), os.Chtimes(name, h.ModTime, h.ModTime))
	}
	return fmt.Errorf("%s has type %q", h.Name, h.Typeflag)
}
