package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/godkms-hermetic/godkms-hermetic/internal/ui"
)

// reportPatience is how long a report waits for another that is being written to the same folder.
const reportPatience = 10 * time.Second

// reportFile is where a report goes.
type reportFile struct{ form, path string }

// parseReports reads the values of --report, FORM=FILE. The files' folders need not be there yet.
func parseReports(list []string) (files []reportFile, err error) {
	for _, text := range list {
		form, name, _ := strings.Cut(text, "=")
		if name == "" || !slices.Contains(ui.ReportForms[:], form) {
			return nil, fmt.Errorf("--report is %q: it must be FORM=FILE, where FORM can be %s", text, strings.Join(ui.ReportForms[:], ", "))
		}
		path, err := regularFile(name)
		if err == nil {
			path, err = filepath.Abs(path)
		}
		if err == nil {
			err = writable(filepath.Dir(path))
		}
		if err != nil {
			return nil, fmt.Errorf("--report %s: %w", form, err)
		}
		if i := slices.IndexFunc(files, func(f reportFile) bool { return f.path == path }); i >= 0 {
			return nil, fmt.Errorf("--report: %s and %s are to go to one file, %q", files[i].form, form, name)
		}
		files = append(files, reportFile{form, path})
	}
	return files, nil
}

// report writes the reports of a run, also of one that failed or was interrupted.
func (r *buildRun) report(ctx context.Context, results []ui.Result) error {
	if len(r.reports) == 0 {
		return nil
	}
	rep := ui.Report{Results: results, Took: time.Since(r.began), Interrupted: ctx.Err() != nil, Version: version()}
	if r.shard.of > 0 {
		rep.Shard = r.shard.String()
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reportPatience)
	defer cancel()
	for _, f := range r.reports {
		err := os.MkdirAll(filepath.Dir(f.path), 0o755)
		if err == nil {
			err = writeWhole(ctx, f.path, func(w io.Writer) error { return rep.Write(w, f.form) })
		}
		if err != nil {
			return fmt.Errorf("--report %s: write %q: %w", f.form, f.path, err)
		}
	}
	return nil
}

// completeReports completes the last of a list.
func completeReports(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	done := typed[:strings.LastIndex(typed, ",")+1]
	if strings.Contains(typed[len(done):], "=") {
		return nil, cobra.ShellCompDirectiveDefault
	}
	var out []string
	for _, form := range ui.ReportForms {
		out = append(out, done+form+"=")
	}
	return out, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
}
