package enginetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"github.com/godkms-hermetic/godkms-hermetic/builder"
)

// look prints what a build may see of where it runs: every engine shows the same. Left out is what engines can't have in
// common:
//
//   - the processor, how many there are and what else /proc and /sys say of the machine: the same for every engine on one
//     machine, but not everywhere, and some hide it
//   - the kernel that runs: uname -r and -v, which no namespace changes; a header image has a uname of its own
//   - process ids, inode numbers, device numbers, free space, times other than those that are set
//   - which devices and files there are in /dev and /etc beside the contract's
//   - the owners of the root's files, who in a sandbox of an ordinary user is he himself
//   - supplementary groups that an ordinary user could not leave, and has no name for
//   - /proc/self/limits for what is no limit in one engine, and one of the daemon's own in another: pending signals,
//     POSIX queues, locked memory, and processes where there is a cgroup for them
const look = `
section() { echo "== $*"; }
section environment; env
section identity; id -u; id -g; umask; pwd
section names; hostname; uname -s -n -m
section status
while read -r k v; do case $k in
	Umask:|Uid:|Gid:|Cap*|NoNewPrivs:|Seccomp:|SigBlk:|SigIgn:|SigCgt:|SigPnd:|ShdPnd:) echo "$k $v";;
esac; done </proc/self/status
section limits; for l in c d f n s t v; do echo "$l $(ulimit -S -$l) $(ulimit -H -$l)"; done
section personality; cat /proc/self/personality
section session; read -r line </proc/self/stat; set -- ${line##*) }; echo "nice $((${17})) terminal $5"
section descriptors; for f in 0 1 2 3 4 5 6 7 8 9; do if [ -e /proc/self/fd/$f ]; then to=$(readlink /proc/$$/fd/$f); echo "$f ${to%%:*}"; fi; done
section signals; trap | wc -l
section folders; stat -c '%A %n' / /usr /usr/bin /usr/bin/env; stat -c '%A %u %g %n' /tmp /job /job/deep /job/deep/er
section scratch; ls -A /tmp /job/deep/er; stat -f -c %T /tmp /job
section devices; for d in null zero full random urandom fd stdin stdout stderr; do stat -c '%n %F' /dev/$d; done
for d in null zero full random urandom; do stat -c '%n %t:%T %a' /dev/$d; done
section modes
cd /job
touch file; mkdir folder; ln -s file link; ln file hard; : >script; chmod 755 script; cp -p script copy; mkfifo pipe
chmod 4755 script; stat -c '%A %h %u %g %s %n' file folder link hard script copy pipe
section names of files
for n in a B é ' ' '*' .hidden -dash "$(printf 'new\nline')" "$(printf '\377')" $(printf %0255d 0); do : >"folder/$n" && echo ok; done
ls -A folder | od -c
LC_ALL=C; set -- folder/*; printf '%s\n' "$#" "$@" | sha256sum
section order
mkdir many; cd many; i=0; while [ $i -lt 1000 ]; do : >f$i; i=$((i+1)); done
ls -U | sha256sum; rm f5 f50 f500; : >f50; ls -U | sha256sum; cd ..
section times
touch -d @315532800.123456789 file; stat -c %.9Y file; touch -d @-1 file; stat -c %Y file; touch -d @4294967296 file; stat -c %Y file
date -u -d @0; date +%Z
section sparse; truncate -s 1G sparse; stat -c '%s %b %B' sparse; rm sparse; : >empty; stat -c '%s %b %o' empty
section links; ln -s /proc/self/cwd cwd; readlink -f cwd; [ -e /proc/self/exe ] && readlink /proc/$$/exe
section network; cat /proc/net/dev 2>/dev/null | tail -n +3 | grep -vc '^ *lo:'
section programs; for p in sh bash env no-such-program; do command -v $p; done; echo $0 $#
section random; [ "$(head -c 16 /dev/urandom | sha256sum)" != "$(head -c 16 /dev/urandom | sha256sum)" ] && echo differs
section shell; echo "$BASH_VERSION" | wc -l; echo "$-"; printf '%s|' "$IFS" | od -c
section end
`

// Job runs one job that looks at whatever a build may see, in a sandbox of an engine, and returns what it printed and its
// sha256: on one root, every engine's are the same. The root needs grep, od, tail, mkfifo, ln, truncate and date beside what Run
// needs.
func Job(ctx context.Context, e builder.Engine, s builder.Spec) (text, sum string, err error) {
	s.Scratch = []string{"/tmp", "/job", "/job/deep/er"}
	sb, err := e.Start(ctx, s)
	if err != nil {
		return "", "", err
	}
	defer sb.Close()
	var out, errs bytes.Buffer
	env := []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC0", "HOME=/tmp", "Z=last", "A=first"}
	if err := sb.Run(ctx, builder.Command{Args: []string{"sh", "-c", look, "job"}, Env: env, Dir: "/job", Stdin: bytes.NewReader(nil), Stdout: &out, Stderr: &errs}); err != nil {
		return out.String(), "", fmt.Errorf("%w: %s", err, errs.String())
	}
	fmt.Fprintf(&out, "== said\n%s", errs.String())
	h := sha256.Sum256(out.Bytes())
	return out.String(), hex.EncodeToString(h[:]), nil
}
