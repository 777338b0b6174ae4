package cli

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/godkms-hermetic/godkms-hermetic/cache"
	"github.com/godkms-hermetic/godkms-hermetic/images"
	"github.com/godkms-hermetic/godkms-hermetic/internal/artifact"
	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
)

func (a *app) cacheCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "cache COMMAND",
		Short:   "Look after the cache of built modules",
		Long:    "Lists, checks and cleans the cache of built modules, packages, header images and kernels." + exitStatus("0  done", "1  see the commands"),
		Example: "  godkms-hermetic cache verify\n  godkms-hermetic cache gc --older-than 30d",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var age, size string
	gc := &cobra.Command{
		Use:   "gc [--max-size SIZE] [--older-than AGE]",
		Short: "Remove what is not needed, or old",
		Long: `Removes built modules, packages, header images and kernels that were not used for a time, then the least recently used until the
rest fits: built modules last, for the others can be had again. Without flags it removes only what nothing refers to.` + exitStatus(
			"0  done", "1  the command line is wrong, or the cache can't be changed"),
		Example: "  godkms-hermetic cache gc --max-size 2G --older-than 30d",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.runCacheGC(cmd.Context(), size, age)
		},
	}
	gc.Flags().StringVar(&size, "max-size", "", "keep at most `SIZE`, as in 500M or 20G (default no limit)")
	gc.Flags().StringVar(&age, "older-than", "", "remove what was not used for `AGE`, as in 12h or 30d (default no limit)")
	cmd.AddCommand(gc, &cobra.Command{
		Use:     "ls",
		Short:   "List what was built",
		Long:    "Lists the results in the cache, last used first, with the verdicts of their last tests." + exitStatus("0  the list was printed", "1  the cache can't be read"),
		Example: "  godkms-hermetic cache ls --format json",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.runCacheList(cmd.Context()) },
	}, &cobra.Command{
		Use:   "verify",
		Short: "Hash everything in the cache again",
		Long: `Hashes every built module, package, header image and kernel in the cache again. What is damaged is named and removed; it will be
built or downloaded again when it is needed.` + exitStatus("0  everything is whole", "1  something was damaged, or the cache can't be read"),
		Example: "  godkms-hermetic cache verify",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.runCacheVerify(cmd.Context()) },
	})
	return cmd
}

func (a *app) runCacheList(ctx context.Context) error {
	results, err := a.results()
	if err != nil {
		return err
	}
	infos, err := results.List(ctx)
	if err != nil {
		return err
	}
	type row struct {
		Key      string    `json:"key"`
		Digest   string    `json:"digest"`
		Module   string    `json:"module"`
		Version  string    `json:"version"`
		Kernel   string    `json:"kernel"`
		Status   string    `json:"status"`
		Size     int64     `json:"size"`
		Created  time.Time `json:"created"`
		LastUsed time.Time `json:"last_used"`

		Test *listedTest `json:"test,omitempty"` // the last one
	}
	rows := []row{}
	for _, i := range infos {
		img, err := results.Peek(ctx, i.Key)
		if errors.Is(err, cache.ErrNotFound) { // damaged: verify names it
			continue
		}
		if err != nil {
			return err
		}
		m, _, err := artifact.ReadMeta(img)
		if err != nil {
			return fmt.Errorf("%s: %w", i.Key, err)
		}
		kernel := m.Kernel.Distro + "/" + m.Kernel.Suite + ":" + m.Kernel.Release
		rows = append(rows, row{i.Key.String(), i.Digest.String(), m.Module, m.Version, kernel, string(m.Status), i.Size, i.Created.UTC(), i.LastUsed.UTC(), nil})
		if tests, err := testsIn(ctx, results, i.Key, i.Digest); err != nil {
			return err
		} else if len(tests) > 0 {
			t, err := tests[0].attachable()
			if err != nil {
				return err
			}
			rows[len(rows)-1].Test = listTest(t)
		}
	}
	if a.json() {
		return ui.WriteJSON(a.stdout, struct {
			Entries []row `json:"entries"`
		}{rows})
	}
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintf(w, "%s/%s\t%s\t%s\t%s\t%s\t%s%s\n", r.Module, r.Version, r.Kernel, r.Status, r.Digest, bytesText(r.Size), r.LastUsed.Format(time.DateOnly),
			r.Test.column())
	}
	return w.Flush()
}

func (a *app) runCacheVerify(ctx context.Context) error {
	results, err := a.results()
	if err != nil {
		return err
	}
	rep, err := results.Verify(ctx)
	if err != nil {
		return err
	}
	store, err := a.images(nil, 0)
	if err != nil {
		return err
	}
	checked, bad, err := store.Verify(ctx)
	if err != nil {
		return err
	}
	type damage struct {
		What    string `json:"what"`
		Removed bool   `json:"removed"`
	}
	damaged := []damage{}
	for _, d := range rep.Damaged {
		damaged = append(damaged, damage{d.Err.Error(), d.Removed})
	}
	for _, d := range bad {
		damaged = append(damaged, damage{d.Path + ": " + d.Err.Error(), d.Removed})
	}
	if a.json() {
		err = ui.WriteJSON(a.stdout, struct {
			Results int      `json:"results"` // whole ones
			Parts   int      `json:"parts"`   // packages and layers of header images that were looked at
			Damaged []damage `json:"damaged"`
		}{rep.Entries, checked, damaged})
	} else {
		for _, d := range damaged {
			state := map[bool]string{true: "damaged, removed", false: "damaged, still there"}[d.Removed]
			fmt.Fprintf(a.stdout, "%s: %s\n", state, ui.Clean(d.What))
		}
		_, err = fmt.Fprintf(a.stdout, "%d results, %d packages and layers: %d damaged\n", rep.Entries, checked, len(damaged))
	}
	if err != nil {
		return err
	}
	if len(damaged) > 0 {
		return &exitError{code: exitUsage, err: fmt.Errorf("%d are damaged", len(damaged)), silent: true}
	}
	return nil
}

func (a *app) runCacheGC(ctx context.Context, size, age string) error {
	maxSize, err := parseSize(size)
	if err != nil {
		return fmt.Errorf("--max-size: %w", err)
	}
	olderThan, err := parseAge(age)
	if err != nil {
		return fmt.Errorf("--older-than: %w", err)
	}
	results, err := a.results()
	if err != nil {
		return err
	}
	store, err := a.images(nil, 0)
	if err != nil {
		return err
	}
	r, err := results.GC(ctx, cache.GCOptions{MaxSize: maxSize, OlderThan: olderThan})
	if err != nil {
		return err
	}
	// Results are small and take long to make again, so they come first.
	left := maxSize
	if maxSize > 0 {
		infos, err := results.List(ctx)
		if err != nil {
			return err
		}
		for _, i := range infos {
			left -= i.Size
		}
		left = max(left, 1) // 0 would be no bound
	}
	had, hadKernels, err := counts(ctx, store)
	if err != nil {
		return err
	}
	freed, err := store.GC(ctx, images.GCOptions{MaxSize: left, OlderThan: olderThan})
	if err != nil {
		return err
	}
	have, haveKernels, err := counts(ctx, store)
	if err != nil {
		return err
	}
	removed, removedKernels := had-have, hadKernels-haveKernels
	if a.json() {
		return ui.WriteJSON(a.stdout, struct {
			Results int   `json:"results"` // that were removed
			Images  int   `json:"images"`  // header images that were removed
			Kernels int   `json:"kernels"` // kernels that were removed
			Freed   int64 `json:"freed"`   // bytes
		}{r.Entries, removed, removedKernels, r.Freed + freed})
	}
	_, err = fmt.Fprintf(a.stdout, "removed %d results, %d header images and %d kernels; freed %s\n", r.Entries, removed, removedKernels,
		bytesText(r.Freed+freed))
	return err
}

// counts says how many header images and kernels there are.
func counts(ctx context.Context, store *images.Store) (headers, booted int, err error) {
	list, err := store.List(ctx)
	if err != nil {
		return 0, 0, err
	}
	more, err := store.Kernels()
	return len(list), len(more), err
}

// parseSize reads "500M", "2G", "1048576": powers of 1024. Nothing is 0, no limit.
func parseSize(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	digits := strings.TrimRight(strings.TrimSuffix(strings.ToUpper(s), "B"), "KMGT")
	n, err := strconv.ParseInt(digits, 10, 64)
	unit := strings.TrimSuffix(strings.ToUpper(s), "B")[len(digits):]
	shift, ok := map[string]uint{"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[unit]
	if err != nil || !ok || n <= 0 || n > 1<<62>>shift {
		return 0, fmt.Errorf("%q is not a size; write a number and K, M, G or T, as in 2G", s)
	}
	return n << shift, nil
}

// parseAge reads "30d", and what time.ParseDuration reads. Nothing is 0, no limit.
func parseAge(s string) (time.Duration, error) {
	if s == "" {
		return 0, nil
	}
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil && n > 0 && n < 100_000 {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%q is not an age; write it as in 12h or 30d", s)
	}
	return d, nil
}

// bytesText is a size for people.
func bytesText(n int64) string {
	f, unit := float64(n), "B"
	for _, u := range []string{"kB", "MB", "GB", "TB"} {
		if f < 1000 {
			break
		}
		f, unit = f/1000, u
	}
	if unit == "B" {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, unit)
}
