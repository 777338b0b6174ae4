package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/godkms-hermetic/godkms-hermetic/internal/durable"
)

// Failed builds' logs go after this time, or when there are more.
const (
	logsFor  = 30 * 24 * time.Hour
	logsKept = 200
)

// Info describes an entry.
type Info struct {
	Key      v1.Hash
	Digest   v1.Hash // of the image
	Size     int64   // bytes of its blobs, also of those that it shares
	Created  time.Time
	LastUsed time.Time // exact to the hour
}

// List lists the entries, last used first. Damaged records are left out; Verify names them.
func (d *Dir) List(ctx context.Context) ([]Info, error) {
	infos, _, err := d.list(ctx)
	return infos, err
}

func (d *Dir) list(ctx context.Context) ([]Info, map[v1.Hash]record, error) {
	keys, err := d.keys()
	if err != nil {
		return nil, nil, fmt.Errorf("list cache: %w", err)
	}
	records := make(map[v1.Hash]record, len(keys))
	var infos []Info
	for _, key := range keys {
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		r, used, err := d.readRecord(key)
		var bad *damage
		if errors.As(err, &bad) || errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("list cache: %w", err)
		}
		records[key] = r
		i := Info{Key: key, Digest: r.Manifest, Created: r.Created, LastUsed: used}
		for _, b := range r.Blobs {
			i.Size += b.Size
		}
		infos = append(infos, i)
	}
	slices.SortFunc(infos, func(a, b Info) int {
		if c := b.LastUsed.Compare(a.LastUsed); c != 0 {
			return c
		}
		return strings.Compare(a.Key.Hex, b.Key.Hex)
	})
	return infos, records, nil
}

func (d *Dir) keys() ([]v1.Hash, error) { return hashes(d.path("entries")) }

// hashes lists the files of a folder that are named for a hash, sorted.
func hashes(dir string) ([]v1.Hash, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []v1.Hash
	for _, e := range entries {
		if h := (v1.Hash{Algorithm: "sha256", Hex: e.Name()}); checkHash(h) == nil {
			out = append(out, h)
		}
	}
	return out, nil
}

// Report is what Verify found.
type Report struct {
	Entries int   // whole ones
	Blobs   int   // whole ones, also those that no entry refers to
	Bytes   int64 // that were hashed
	Damaged []Damage
}

// Damage is an entry, or a blob that no entry refers to, that was not what it was stored as.
type Damage struct {
	Key     v1.Hash // of the entry; zero for a blob
	Blob    v1.Hash // zero for an entry
	Err     error
	Removed bool // false in a read-only cache
}

// Verify hashes everything in the cache again, and removes and names what is damaged. Damage is in the report, not in the error.
func (d *Dir) Verify(ctx context.Context) (Report, error) {
	var rep Report
	keys, err := d.keys()
	if err != nil {
		return rep, fmt.Errorf("verify cache: %w", err)
	}
	good, reported := map[v1.Hash]bool{}, map[v1.Hash]bool{}
	for _, key := range keys {
		err := d.checkEntry(ctx, key, good, &rep)
		var bad *damage
		switch {
		case err == nil:
			rep.Entries++
			if err := d.verifyNotes(key, &rep); err != nil {
				return rep, fmt.Errorf("verify cache: notes on %q: %w", key, err)
			}
		case errors.Is(err, ErrNotFound): // removed meanwhile
		case errors.As(err, &bad):
			gone, err := d.removeDamaged(ctx, key)
			if err != nil {
				return rep, fmt.Errorf("verify cache: %w", err)
			}
			for _, h := range bad.blobs {
				reported[h] = true
			}
			rep.Damaged = append(rep.Damaged, Damage{Key: key, Err: bad.err, Removed: gone})
		default:
			return rep, fmt.Errorf("verify cache: entry %q: %w", key, err)
		}
	}
	blobs, err := hashes(d.path("blobs", "sha256"))
	if err != nil {
		return rep, fmt.Errorf("verify cache: %w", err)
	}
	for _, h := range blobs {
		if good[h] || reported[h] {
			continue
		}
		err := d.checkBlob(ctx, h, good, &rep)
		var bad *damage
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if !errors.As(err, &bad) {
			return rep, fmt.Errorf("verify cache: blob %q: %w", h, err)
		}
		gone, err := d.removeDamagedBlob(ctx, h)
		if err != nil {
			return rep, fmt.Errorf("verify cache: %w", err)
		}
		rep.Damaged = append(rep.Damaged, Damage{Blob: h, Err: bad.err, Removed: gone})
	}
	return rep, nil
}

// checkEntry hashes an entry's blobs, each once for all entries: good holds those that are whole.
func (d *Dir) checkEntry(ctx context.Context, key v1.Hash, good map[v1.Hash]bool, rep *Report) error {
	r, _, err := d.readRecord(key)
	if err != nil {
		return err
	}
	for _, b := range r.Blobs {
		if good[b.Digest] {
			continue
		}
		if err := d.checkBlob(ctx, b.Digest, good, rep); errors.Is(err, fs.ErrNotExist) {
			return damaged("blob %s is missing", b.Digest)
		} else if err != nil {
			return err
		}
	}
	return nil
}

func (d *Dir) checkBlob(ctx context.Context, h v1.Hash, good map[v1.Hash]bool, rep *Report) error {
	if err := checkHash(h); err != nil {
		return damaged("%w", err)
	}
	st, err := os.Stat(d.blobPath(h))
	if err != nil {
		return err
	}
	f, err := d.openBlob(ctx, blob{h, st.Size()})
	if err != nil {
		return err
	}
	f.Close()
	good[h] = true
	rep.Blobs++
	rep.Bytes += st.Size()
	return nil
}

func (d *Dir) removeDamaged(ctx context.Context, key v1.Hash) (removed bool, err error) {
	lock, err := d.lock(ctx, false)
	if err != nil {
		if notWritable(err) {
			return false, nil
		}
		return false, err
	}
	defer lock.Close()
	_, _, err = d.load(ctx, key)
	var bad *damage
	if !errors.As(err, &bad) {
		return true, nil // another has replaced or removed it
	}
	return true, d.remove(key, bad)
}

func (d *Dir) removeDamagedBlob(ctx context.Context, h v1.Hash) (removed bool, err error) {
	lock, err := d.lock(ctx, false)
	if err != nil {
		if notWritable(err) {
			return false, nil
		}
		return false, err
	}
	defer lock.Close()
	var rep Report
	var bad *damage
	if err := d.checkBlob(ctx, h, map[v1.Hash]bool{}, &rep); !errors.As(err, &bad) {
		return true, nil
	}
	return true, os.Remove(d.blobPath(h))
}

// GCOptions say what is to be removed. The zero value removes only what no entry needs.
type GCOptions struct {
	MaxSize   int64         // bytes of all blobs that entries refer to: the least recently used go first. 0: no limit.
	OlderThan time.Duration // since the last use. 0: no limit.
}

// GCResult is what GC did.
type GCResult struct {
	Entries, Blobs, Logs int   // removed
	Freed                int64 // bytes
}

// GC removes old entries, blobs that no entry refers to, logs of failed builds that are older than 30 days (or OlderThan, if
// less) or beyond the newest 200, and what killed processes left. Keys that are locked stay, and images that are open stay readable. Writers wait
// for it.
func (d *Dir) GC(ctx context.Context, o GCOptions) (GCResult, error) {
	res, err := d.gc(ctx, o)
	if err != nil {
		return res, fmt.Errorf("clean cache: %w", err)
	}
	return res, nil
}

func (d *Dir) gc(ctx context.Context, o GCOptions) (GCResult, error) {
	var res GCResult
	lock, err := d.lock(ctx, false)
	if err != nil {
		return res, err
	}
	defer lock.Close()
	infos, records, err := d.list(ctx)
	if err != nil {
		return res, err
	}
	held, err := d.sweepLocks()
	if err != nil {
		return res, err
	}

	refs := map[v1.Hash]int{}
	var total int64
	for _, i := range infos {
		for _, b := range records[i.Key].Blobs {
			if refs[b.Digest]++; refs[b.Digest] == 1 {
				total += b.Size
			}
		}
	}
	kept := map[v1.Hash]bool{}
	for key := range records {
		kept[key] = true
	}
	now := time.Now()
	for _, i := range slices.Backward(infos) {
		old := o.OlderThan > 0 && now.Sub(i.LastUsed) > o.OlderThan
		if !old && (o.MaxSize <= 0 || total <= o.MaxSize) || held[i.Key] {
			continue
		}
		if err := os.Remove(d.recordPath(i.Key)); err != nil {
			return res, err
		}
		res.Entries++
		delete(kept, i.Key)
		for _, b := range records[i.Key].Blobs {
			if refs[b.Digest]--; refs[b.Digest] == 0 {
				total -= b.Size
			}
		}
	}

	blobs, err := os.ReadDir(d.path("blobs", "sha256"))
	if err != nil {
		return res, err
	}
	for _, e := range blobs {
		if ctx.Err() != nil {
			return res, context.Cause(ctx)
		}
		if refs[v1.Hash{Algorithm: "sha256", Hex: e.Name()}] > 0 {
			continue
		}
		n, err := removeFile(d.path("blobs", "sha256", e.Name()))
		if err != nil {
			return res, err
		}
		res.Blobs++
		res.Freed += n
	}
	freed, err := d.sweepNotes(func(key v1.Hash) bool { return kept[key] })
	res.Freed += freed
	if err != nil {
		return res, err
	}
	if err := durable.Sweep(d.path("tmp")); err != nil {
		return res, err
	}
	return res, d.sweepLogs(now, o, &res)
}

func (d *Dir) sweepLogs(now time.Time, o GCOptions, res *GCResult) error {
	entries, err := os.ReadDir(d.path("logs"))
	if err != nil {
		return err
	}
	var logs []fs.FileInfo
	for _, e := range entries {
		i, err := e.Info()
		if err != nil {
			return err
		}
		logs = append(logs, i)
	}
	slices.SortFunc(logs, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	limit := logsFor
	if o.OlderThan > 0 {
		limit = min(limit, o.OlderThan)
	}
	for n, i := range logs {
		if n < logsKept && now.Sub(i.ModTime()) <= limit {
			continue
		}
		freed, err := removeFile(d.path("logs", i.Name()))
		if err != nil {
			return err
		}
		res.Logs++
		res.Freed += freed
	}
	return nil
}

// sweepLocks tells which keys are held and removes the lock files of the others.
func (d *Dir) sweepLocks() (held map[v1.Hash]bool, err error) {
	held = map[v1.Hash]bool{}
	keys, err := hashes(d.path("locks"))
	if err != nil {
		return nil, err
	}
	for _, key := range keys {
		f, err := os.Open(d.path("locks", key.Hex))
		if err != nil {
			return nil, err
		}
		switch err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); {
		case errors.Is(err, unix.EWOULDBLOCK):
			held[key] = true
		case err == nil:
			err = os.Remove(f.Name())
			if err != nil {
				f.Close()
				return nil, err
			}
		}
		f.Close()
	}
	return held, nil
}

func removeFile(path string) (int64, error) {
	st, err := os.Lstat(path)
	if err != nil {
		return 0, err
	}
	return st.Size(), os.RemoveAll(path)
}
